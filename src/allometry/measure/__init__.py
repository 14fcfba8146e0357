"""Probes of a model: what it costs, and how its activations and updates grow with width."""

import importlib
import sys
from types import ModuleType
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


class _Room(ModuleType):
    """Python binds a submodule to its package when it is loaded; `measure.complexity` stays the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        shadowed = isinstance(value, ModuleType) and _HOMES.get(name) == name
        super().__setattr__(name, getattr(value, name) if shadowed else value)


sys.modules[__name__].__class__ = _Room


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
