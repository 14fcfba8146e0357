"""The main job: train a ladder of small models, fit laws, forecast the large one, check the forecast.

The room can be called: ``allometry.forecast(...)`` is ``allometry.forecast.forecast(...)``.
"""

from typing import TYPE_CHECKING, Any

from allometry.rooms import Room, open_room

if TYPE_CHECKING:
    from allometry.forecast.accelerators import ACCELERATORS
    from allometry.forecast.budget import BudgetPlan, plan_budget
    from allometry.forecast.check import Check, interval_score, naive_forecasts
    from allometry.forecast.commanded import CommandForecast, Goal, forecast_commands
    from allometry.forecast.commands import CommandLadder
    from allometry.forecast.forecast import forecast
    from allometry.forecast.ladder import PLANS, Ladder
    from allometry.forecast.replays import Replays, replay
    from allometry.forecast.result import Forecast, ForecastError


class _Callable(Room):
    """A room whose main job has the room's own name: calling the module does the job."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        from allometry.forecast.forecast import forecast

        return forecast(*arguments, **settings)


open_room(
    __name__,
    {
        "accelerators": ["ACCELERATORS"],
        "budget": ["BudgetPlan", "plan_budget"],
        "check": ["Check", "interval_score", "naive_forecasts"],
        "commanded": ["CommandForecast", "Goal", "forecast_commands"],
        "commands": ["CommandLadder"],
        "forecast": ["forecast"],
        "ladder": ["Ladder", "PLANS"],
        "replays": ["Replays", "replay"],
        "result": ["Forecast", "ForecastError"],
    },
    _Callable,
)

__all__ = [
    "ACCELERATORS", "PLANS", "BudgetPlan", "Check", "CommandForecast", "CommandLadder", "Forecast",
    "ForecastError", "Goal", "Ladder", "Replays", "forecast", "forecast_commands", "interval_score",
    "naive_forecasts", "plan_budget", "replay",
]  # fmt: skip
