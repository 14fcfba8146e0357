"""The main job: train a ladder of small models, fit laws, forecast the large one, check the forecast.

The room can be called: ``allometry.forecast(...)`` is ``allometry.forecast.forecast.forecast``.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

_PUBLIC = {
    "ACCELERATORS": "accelerators",
    "BudgetPlan": "budget",
    "Check": "check",
    "Forecast": "forecast",
    "ForecastError": "forecast",
    "Ladder": "ladder",
    "PLANS": "ladder",
    "Replays": "replays",
    "interval_score": "check",
    "naive_forecasts": "check",
    "plan_budget": "budget",
    "replay": "replays",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"allometry.forecast.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'allometry.forecast' has no attribute {name!r}")


class _Room(ModuleType):
    """A room whose main job has the room's own name: calling the module does the job."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        from allometry.forecast.forecast import forecast

        return forecast(*arguments, **settings)


sys.modules[__name__].__class__ = _Room
