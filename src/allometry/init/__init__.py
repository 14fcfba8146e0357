"""How a network begins: parametrizations that keep their meaning across width and depth."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from allometry.init.depth import depth_scale_
    from allometry.init.mup import apply_, roles
    from allometry.init.parametrization import ABC, ABCReport, ntk_parametrize_
    from allometry.init.widths import WidthInfo, width_dims

_HOMES = {
    "ABC": "parametrization",
    "ABCReport": "parametrization",
    "ntk_parametrize_": "parametrization",
    "WidthInfo": "widths",
    "apply_": "mup",
    "roles": "mup",
    "width_dims": "widths",
    "depth_scale_": "depth",
}

__all__ = [
    "ABC", "ABCReport", "WidthInfo", "apply_", "depth_scale_", "ntk_parametrize_", "roles", "width_dims",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _HOMES.values():
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
