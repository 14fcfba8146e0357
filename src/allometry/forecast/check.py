"""The check: naive forecasts beside ours, a backtest on the ladder, and what the large run really reached.

* Naive forecast one, *last rung*: the target will do as well as the largest rung.
* Naive forecast two, *ruler*: the straight line through the two largest rungs, log loss against log compute.
  A rung is a size at its longest horizon, averaged over seeds.
* Both get an interval, and as good a one as their rule allows: the spread between seeds on the ladder,
  carried through the rule, with one more run's noise added and Student's quantile for so few seeds.
* Intervals are compared by the interval score (Winkler, 1972; Gneiting and Raftery, 2007): the width, plus
  2 / (1 - level) times the distance by which the truth lies outside. Here in log loss, so in shares of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Check:
    """A forecast beside the measurement.

    Attributes
    ----------
    measured : float
        Loss of the target run, nats a token.
    bits_per_byte : float
    error : float
        (forecast - measured) / measured.
    inside : bool
        Whether the measured loss lies in the interval.
    naive_errors : dict
        The same error for each naive forecast.
    scores : dict
        Interval score of each forecast, in log loss; lower is better.
    """

    measured: float
    bits_per_byte: float
    error: float
    inside: bool
    naive_errors: Mapping[str, float]
    scores: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def interval_score(low: float, high: float, truth: float, level: float = 0.9) -> float:
    """Winkler's score of a central interval, in log units; lower is better.

    >>> round(interval_score(1.0, math.e, 2.0), 6)
    1.0
    >>> interval_score(1.0, 2.0, 4.0) > interval_score(1.0, 2.0, 3.0) > interval_score(1.0, 2.0, 1.5)
    True
    """
    if not (0 < low <= high < math.inf and 0 < truth < math.inf):
        raise ValueError(
            "an interval score needs 0 < low <= high and a positive truth, all finite, "
            f"got {low}, {high}, {truth}"
        )
    _refuse_level(level)
    below, inside, above = math.log(low), math.log(truth), math.log(high)
    outside = max(0.0, below - inside) + max(0.0, inside - above)
    return above - below + 2.0 / (1.0 - level) * outside


def _refuse_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, such as 0.9, got {level}")


def _finite(table: pd.DataFrame) -> pd.DataFrame:
    """Records with a loss that has a logarithm, and that logarithm."""
    import numpy as np

    usable = table[np.isfinite(table["loss"]) & (table["loss"] > 0)]
    return usable.assign(log_loss=np.log(usable["loss"]))


def seed_noise(table: pd.DataFrame) -> tuple[float, int]:
    """Standard deviation of log loss between seeds at one size and horizon, and its degrees of freedom.

    Horizons of one run are nearly one measurement, so the freedom is counted in runs. Records without a
    finite loss are left out; NaN and 0 where no size has two seeds.
    """
    import numpy as np

    finite = _finite(table)
    shared = finite[finite.groupby(["width", "tokens"])["run"].transform("nunique") > 1]
    if shared.empty:
        return math.nan, 0
    spread = shared.groupby(["width", "tokens"])["log_loss"].agg(["var", "count"])
    freedom = int((shared.groupby("width")["run"].nunique() - 1).sum())
    return float(np.sqrt(np.average(spread["var"], weights=spread["count"] - 1))), freedom


def naive_forecasts(table: pd.DataFrame, flops: float, level: float = 0.9) -> pd.DataFrame:
    """The two naive forecasts at ``flops`` (6 N D), with intervals.

    Parameters
    ----------
    table : DataFrame
        One row a record of the ladder: width, tokens, params, flops, loss, run.

    Returns
    -------
    DataFrame
        Index ``last rung`` and ``ruler``; columns value, low, high (NaN ends with one seed a size).

    Raises
    ------
    ValueError
        With fewer than two sizes, two rungs of one compute, or a ``flops`` or ``level`` that cannot be.
    """
    import pandas as pd
    from scipy import stats

    from allometry.laws.ruler import reach

    _refuse_level(level)
    if not 0 < flops < math.inf:
        raise ValueError(f"flops must be positive and finite, got {flops}")
    noise, freedom = seed_noise(table)
    finite = _finite(table)
    longest = finite[finite["tokens"] == finite.groupby("width")["tokens"].transform("max")]
    rungs = (
        longest.groupby("width")
        .agg(log_loss=("log_loss", "mean"), flops=("flops", "first"), seeds=("run", "nunique"))
        .sort_index()
    )
    if len(rungs) < 2:
        raise ValueError(f"a ruler needs two sizes with a finite loss, got {len(rungs)}")
    below, last = rungs.iloc[-2], rungs.iloc[-1]
    if below["flops"] == last["flops"]:
        raise ValueError(f"a ruler needs two rungs of different compute, both have {last['flops']:g} FLOPs")
    far = float(reach(flops, below["flops"], last["flops"]))
    quantile = stats.t.ppf(0.5 + level / 2, freedom) if freedom else math.nan
    rules = {
        "last rung": (last["log_loss"], 1.0 / last["seeds"]),
        "ruler": (
            last["log_loss"] + far * (last["log_loss"] - below["log_loss"]),
            (1 + far) ** 2 / last["seeds"] + far**2 / below["seeds"],
        ),
    }
    rows = {}
    for name, (value, variance) in rules.items():
        half = quantile * noise * math.sqrt(variance + 1.0)  # one more run's noise: the target's own
        rows[name] = {"value": math.exp(value), "low": math.exp(value - half), "high": math.exp(value + half)}
    return pd.DataFrame.from_dict(rows, orient="index")


def check(
    value: float,
    low: float,
    high: float,
    naive: pd.DataFrame,
    measured: float,
    bits_per_byte: float,
    level: float = 0.9,
) -> Check:
    """Compare a forecast and the naive ones with the measured loss."""
    scores = {"forecast": interval_score(low, high, measured, level)}
    for name, row in naive.iterrows():
        known = math.isfinite(row["low"])
        scores[str(name)] = interval_score(row["low"], row["high"], measured, level) if known else math.nan
    return Check(
        measured=measured,
        bits_per_byte=bits_per_byte,
        error=value / measured - 1.0,
        inside=bool(low <= measured <= high),
        naive_errors={str(name): float(row["value"]) / measured - 1.0 for name, row in naive.iterrows()},
        scores=scores,
    )
