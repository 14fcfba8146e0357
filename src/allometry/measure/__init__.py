"""Probes of a model: what it costs, and how its activations and updates grow with width."""

import importlib
from typing import TYPE_CHECKING, Any

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

_HOMES = {
    "Complexity": "complexity",
    "Parameters": "complexity",
    "complexity": "complexity",
    "count_parameters": "complexity",
    "flops_per_token": "complexity",
    "mfu": "complexity",
    "CoordinateCheck": "coordinates",
    "coordinate_check": "coordinates",
}

__all__ = [
    "Complexity", "CoordinateCheck", "Parameters", "complexity", "coordinate_check", "count_parameters",
    "flops_per_token", "mfu",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        # a name that is also its file's, such as `complexity`, must go on meaning the function once the
        # import system has bound the submodule to it, hence the assignment
        found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = found
        return found
    if name in _HOMES.values():
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
