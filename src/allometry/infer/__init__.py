"""Inference: sampling a model until it passes, verifiers that may err, strategies that spend samples."""

from typing import TYPE_CHECKING

from allometry.rooms import open_room

if TYPE_CHECKING:
    from allometry.infer.pass_until import pass_until
    from allometry.infer.sampling import HFSampler, Sampler, TokenSampler, draw_many

open_room(
    __name__,
    {
        "pass_until": ["pass_until"],
        "sampling": ["HFSampler", "Sampler", "TokenSampler", "draw_many"],
    },
)

__all__ = ["HFSampler", "Sampler", "TokenSampler", "draw_many", "pass_until"]
