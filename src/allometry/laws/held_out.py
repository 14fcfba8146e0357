"""Laws judged by what they foretell: fit without some rows, ask for them, compare.

In-sample residuals reward flexibility; a plan rests on what happens beyond the data, so that
is what is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from allometry.laws.law import Estimator, get_law

if TYPE_CHECKING:
    import pandas

__all__ = ["HeldOut", "compare_laws", "held_out", "judge"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class HeldOut:
    """What a law fitted without some rows said of them.

    Attributes
    ----------
    error : float
        Mean absolute relative error, ``mean |predicted / observed - 1|``.
    bias : float
        Mean relative error.
    inside : float
        Share of rows within their prediction interval; NaN without resamples.
    score : float
        Mean interval score relative to the observed value (Winkler, 1972; Gneiting and Raftery, 2007,
        equation 43): width plus ``2 / (1 - level)`` times the distance by which it was missed.
    observed, predicted, low, high : arrays (m,)
    level : float
    law : Estimator
    """

    error: float
    bias: float
    inside: float
    score: float
    observed: Array
    predicted: Array
    low: Array
    high: Array
    level: float
    law: Estimator


def held_out(
    law: Estimator, table: Any, hold_out: Sequence[bool] | str, *, level: float = 0.9, **options: Any
) -> HeldOut:
    """Fit without some rows, foretell them, and say how far off that was.

    Parameters
    ----------
    law : Estimator
    table : DataFrame or mapping of columns (n,)
    hold_out : boolean sequence (n,), or a column
        The rows to hold out; of a column, the rows of its largest value.
    level : float
        Share of the interval.
    options
        For the law's ``fit``.

    Raises
    ------
    ValueError
        Nothing, or everything, would be held out.

    Examples
    --------
    >>> from allometry.laws import ScalingLaw
    >>> n = np.array([1e6, 1e7, 1e8, 1e9])
    >>> table = {"params": n, "loss": 400 * n**-0.4}
    >>> held_out(ScalingLaw("power", "params"), table, "params", resamples=0).error < 1e-9
    True
    """
    import pandas

    frame = pandas.DataFrame(getattr(table, "table", table)).reset_index(drop=True)
    if isinstance(hold_out, str):
        if hold_out not in frame:
            raise ValueError(f"no column {hold_out!r} to hold out by; there are {', '.join(map(str, frame))}")
        away = (frame[hold_out] == frame[hold_out].max()).to_numpy()
    else:
        away = np.asarray(hold_out, dtype=bool)
        if away.shape != (len(frame),):
            raise ValueError(f"hold_out must mark each of the {len(frame)} rows; its shape is {away.shape}")
    if not away.any() or away.all():
        raise ValueError("hold_out must leave some rows out and keep some")
    law.fit(frame[~away], **options)
    return judge(law, frame[away], level, intervals=options.get("resamples", 1) != 0)


def judge(law: Estimator, table: Any, level: float = 0.9, *, intervals: bool = True) -> HeldOut:
    """What a fitted law says of rows that it has not seen.

    Examples
    --------
    >>> from allometry.laws import ScalingLaw
    >>> n = np.array([1e6, 1e7, 1e8, 1e9])
    >>> law = ScalingLaw("power", "params").fit({"params": n, "loss": 400 * n**-0.4}, resamples=0)
    >>> round(judge(law, {"params": [1e10], "loss": [0.044]}, intervals=False).error, 3)
    0.091
    """
    observed = np.asarray(law.read(table)[law.target], dtype=float)
    predicted = np.asarray(law.predict(table), dtype=float)
    low = high = np.full(len(observed), np.nan)
    if intervals:
        told = law.interval(table, level, "prediction")
        low, high = np.atleast_1d(told.low), np.atleast_1d(told.high)
    size = np.maximum(np.abs(observed), np.finfo(float).tiny)
    relative = (predicted - observed) / size
    missed = np.maximum(low - observed, 0.0) + np.maximum(observed - high, 0.0)
    score = (high - low + 2.0 / (1.0 - level) * missed) / size
    inside = np.where(np.isfinite(low), (low <= observed) & (observed <= high), np.nan)
    return HeldOut(
        float(np.abs(relative).mean()), float(relative.mean()), float(inside.mean()), float(score.mean()),
        observed, predicted, low, high, level, law,
    )  # fmt: skip


def compare_laws(
    laws: Sequence[str | Estimator],
    table: Any,
    hold_out: Sequence[bool] | str,
    *,
    level: float = 0.9,
    **options: Any,
) -> pandas.DataFrame:
    """Laws beside each other by what they foretell of rows held out; the best first.

    Parameters
    ----------
    laws : sequence of str or Estimator
    table, hold_out, level, options
        As in `held_out`.

    Returns
    -------
    DataFrame
        One row a law: ``error``, ``bias``, ``inside``, ``score``; ``reason`` where it could not be fitted.

    Examples
    --------
    >>> from allometry.laws import ScalingLaw
    >>> n = np.array([1e6, 3e6, 1e7, 3e7, 1e8, 3e8])
    >>> table = {"params": n, "loss": 1 + (n / 1e6) ** -0.5}
    >>> laws = [ScalingLaw("power", "params"), ScalingLaw("power-offset", "params")]
    >>> compare_laws(laws, table, "params", resamples=0).index[0]
    'power-offset'
    """  # fmt: skip
    import pandas

    rows = []
    for one in laws:
        law = get_law(one)
        try:
            test = held_out(law, table, hold_out, level=level, **options)
            rows.append({"law": law.name, "error": test.error, "bias": test.bias, "inside": test.inside,
                         "score": test.score, "reason": ""})  # fmt: skip
        except ValueError as refusal:
            nothing = dict.fromkeys(("error", "bias", "inside", "score"), float("nan"))
            rows.append({"law": law.name, **nothing, "reason": str(refusal)})
    return pandas.DataFrame(rows).set_index("law").sort_values("error", kind="stable")
