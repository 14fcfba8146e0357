"""Probes of a model: what it costs, and how its activations and updates grow with width."""

from typing import TYPE_CHECKING

from allometry.rooms import open_room

if TYPE_CHECKING:
    from allometry.measure.complexity import (
        Complexity,
        Parameters,
        complexity,
        count_parameters,
        flops_per_token,
        mfu,
    )
    from allometry.measure.coordinates import CoordinateCheck, coordinate_check

open_room(
    __name__,
    {
        "complexity": ["Complexity", "Parameters", "complexity", "count_parameters", "flops_per_token",
            "mfu"],
        "coordinates": ["CoordinateCheck", "coordinate_check"],
    },
)  # fmt: skip

__all__ = [
    "Complexity", "CoordinateCheck", "Parameters", "complexity", "coordinate_check", "count_parameters",
    "flops_per_token", "mfu",
]  # fmt: skip
