"""Inference: sampling a model until it passes, verifiers that may err, strategies that spend samples."""

from typing import TYPE_CHECKING

from allometry.rooms import open_room

if TYPE_CHECKING:
    from allometry.infer.sampling import HFSampler, Sampler, TokenSampler, draw_many

open_room(
    __name__,
    {
        "sampling": ["HFSampler", "Sampler", "TokenSampler", "draw_many"],
    },
)

__all__ = ["HFSampler", "Sampler", "TokenSampler", "draw_many"]
