"""What the forecasting job has to tell: the forecast, what it rests on, and the measurement beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allometry.forecast.check import Check

if TYPE_CHECKING:
    import pandas as pd

    from allometry.laws import Average, Fit

LEVEL = 0.9


class ForecastError(RuntimeError):
    """The job could not be done; the message says why and what to do."""


@dataclass
class Forecast:
    """What the ladder says about the target, and what the target said.

    Attributes
    ----------
    value, low, high : float
        Forecast of the target's loss in nats a token, and its prediction interval at ``level``: the interval
        for one new run, its own seed noise included.
    target : dict
        width, params (N, non-embedding), tokens (D), flops (6 N D), epochs.
    runs : DataFrame
        One row a record of the ladder.
    fits : list of Fit
        The laws that the forecast averages.
    choice : DataFrame
        The candidate laws and how far off each was on the largest size when fitted without it.
    naive : DataFrame
        The naive forecasts with their intervals.
    check : Check or None
        The comparison with the measured loss, where the target was trained.
    """

    value: float
    low: float
    high: float
    level: float
    target: dict[str, Any]
    plan: dict[str, Any]
    digest: str
    runs: pd.DataFrame
    fits: list[Fit]
    choice: pd.DataFrame
    naive: pd.DataFrame
    backtest: dict[str, Any]
    check: Check | None = None
    notes: list[str] = field(default_factory=list)
    cost: dict[str, float] = field(default_factory=dict)
    directory: Path | None = None

    @property
    def law(self) -> Average:
        """The laws as one."""
        from allometry.laws import Average

        return Average(self.fits)

    @property
    def fit(self) -> Fit:
        """The plan's first law, whose optimum chose the target."""
        return self.fits[0]

    @property
    def half_width(self) -> float:
        """Half the interval's width, as a share of the forecast."""
        return (self.high - self.low) / (2.0 * self.value)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the runs, JSON-ready."""
        return {
            "forecast": {"loss": self.value, "low": self.low, "high": self.high, "level": self.level},
            "target": self.target,
            "check": None if self.check is None else self.check.to_dict(),
            "naive": self.naive.to_dict(orient="index"),
            "backtest": self.backtest,
            "choice": self.choice.reset_index().to_dict(orient="records"),
            "law": self.fit.to_dict(),
            "laws": {fit.form.name: fit.to_dict() for fit in self.fits},
            "notes": self.notes,
            "cost": self.cost,
            "plan": self.plan,
            "digest": self.digest,
        }

    def report(self, directory: str | Path) -> Path:
        """Write report.html, the figures, runs.csv and law.json into ``directory``; returns the page."""
        from allometry.forecast.report import write

        self.directory = Path(directory)
        return write(self, self.directory)

    def __str__(self) -> str:
        from allometry.forecast.report import summary

        return summary(self)

    __repr__ = __str__
