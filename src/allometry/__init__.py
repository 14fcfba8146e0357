"""Forecast what a model will do at a scale you have not paid for yet, and say how sure the forecast is.

Rooms load when they are first named, so ``import allometry`` costs nothing and ``allometry.laws`` never
needs torch.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_ROOMS = ("laws", "measure", "data", "models", "optim", "train", "init", "study", "forecast", "cli")

if TYPE_CHECKING:
    from allometry import cli, data, init, laws, measure, models, optim, study, train
    from allometry.forecast.forecast import forecast

__all__ = [
    "cli", "data", "forecast", "init", "laws", "measure", "models", "optim", "study", "train",
]  # fmt: skip


def __getattr__(name: str) -> ModuleType:
    if name in _ROOMS:
        return importlib.import_module(f"allometry.{name}")
    raise AttributeError(f"module 'allometry' has no attribute {name!r}; its rooms are {', '.join(_ROOMS)}")


def __dir__() -> list[str]:
    return sorted((*_ROOMS, "__version__"))
