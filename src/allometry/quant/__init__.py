"""Quantization: number formats, scales shared by blocks, and layers that compute with few bits."""

from allometry.rooms import open_room

open_room(
    __name__,
    {},
)  # fmt: skip

__all__: list[str] = []
