"""Optimizers, schedules, parameter groups, averages of weights."""

import importlib
from typing import Any

_PUBLIC = {
    "AdamWIndependent": "adamw",
    "AveragedWeights": "ema",
    "Role": "groups",
    "Schedule": "schedules",
    "WSD": "schedules",
    "as_scheduler": "schedules",
    "constant": "schedules",
    "cosine": "schedules",
    "cyclic": "schedules",
    "linear": "schedules",
    "param_groups": "groups",
    "two_step": "schedules",
    "wsd": "schedules",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"allometry.optim.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'allometry.optim' has no attribute {name!r}")
