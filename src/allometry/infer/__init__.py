"""Inference: sampling a model until it passes, verifiers that may err, strategies that spend samples."""

from allometry.rooms import open_room

open_room(
    __name__,
    {},
)  # fmt: skip

__all__: list[str] = []
