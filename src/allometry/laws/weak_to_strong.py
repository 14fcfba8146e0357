"""Can a weak generator resample its way to a strong one?  Ceilings against single samples, over many models.

Benedikt Stroebl, Sayash Kapoor, Arvind Narayanan, 2024. arXiv:2411.17501, figure 1 and section 3.

The share of correct among accepted samples grows with the share of correct samples: a weak model's answers
are wrong more often *also when they pass*.  How that share is averaged matters.  Over the tasks that a model
solved at least once it flatters weak models, whose solved tasks are the easy ones; over tasks that all models
have in common, or over all accepted samples, models are compared on equal terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from allometry.laws.acceptance import AcceptanceTable
from allometry.laws.resampling import limits, task_shares
from allometry.laws.uncertainty import Interval

if TYPE_CHECKING:
    import pandas

__all__ = ["WeakToStrong", "weak_to_strong"]

Array = NDArray[np.float64]
_AVERAGES = ("common", "pooled", "ceiling")


@dataclass(frozen=True, eq=False)
class WeakToStrong:
    """Models against each other; made by `weak_to_strong`.

    Attributes
    ----------
    slope, intercept, correlation : Interval
        Of conditional accuracy on single-sample accuracy, over models.  Intervals from tasks, where tables
        are given: they are about these models.  From two numbers a model, Student's (the correlation's by
        Fisher's z): they are about models like these.
    r2 : float
    p : float
        Two-sided, that the slope is zero, by Student's t over models.
    models : DataFrame
        One row a model: ``single``, ``conditional``, and, from tables, ``ceiling``.
    can_reach : DataFrame of bool
        Row: a weak model; column: a strong one.  Whether the row's ceiling lies above the column's single
        sample: with enough samples, and the tests that there are, it would get as far.
    gap, gap_low, gap_high : DataFrame
        Ceiling less single-sample accuracy, with limits from resampling tasks (NaN without tables).
    """

    slope: Interval
    intercept: Interval
    correlation: Interval
    r2: float
    p: float
    models: pandas.DataFrame
    can_reach: pandas.DataFrame
    gap: pandas.DataFrame
    gap_low: pandas.DataFrame
    gap_high: pandas.DataFrame

    def __str__(self) -> str:
        return f"conditional = {self.intercept} + {self.slope} single, R² = {self.r2:.3f}"


def weak_to_strong(
    tables: Mapping[str, AcceptanceTable | tuple[float, float]],
    *,
    average: str = "pooled",
    level: float = 0.9,
    resamples: int = 2000,
    random_state: int = 0,
) -> WeakToStrong:
    """Regress conditional on single-sample accuracy over models, and say which ceiling reaches which model.

    Parameters
    ----------
    tables : mapping of model to AcceptanceTable, or to (single, conditional)
        Tables over the same tasks in the same order; or the two shares of each model, as published.
    average : {"pooled", "common", "ceiling"}
        Conditional accuracy over all accepted samples; as the mean over tasks of which every model had
        something accepted; or as the ceiling, tasks never answered counted as such.
    level, resamples, random_state

    Raises
    ------
    ValueError
        Fewer than three models, tables over different tasks, or no task in common.

    Examples
    --------
    >>> fit = weak_to_strong({"a": (0.8, 0.9), "b": (0.5, 0.82), "c": (0.1, 0.75)})
    >>> round(fit.slope.value, 3), bool(fit.can_reach.loc["c", "a"])
    (0.212, False)
    """
    if average not in _AVERAGES:
        raise ValueError(f"average must be one of {', '.join(_AVERAGES)}, not {average!r}")
    if len(tables) < 3:
        raise ValueError(f"a line over models needs three or more; there are {len(tables)}")
    kinds = {isinstance(one, AcceptanceTable) for one in tables.values()}
    if len(kinds) > 1:
        raise ValueError("give every model a table, or every model its two shares")
    if kinds == {False}:
        pairs = np.array([[float(one) for one in pair] for pair in tables.values()])  # type: ignore[union-attr]
        if pairs.shape[1:] != (2,) or not ((pairs >= 0) & (pairs <= 1)).all():
            raise ValueError("each model needs its single-sample and its conditional accuracy, from 0 to 1")
        shares = np.concatenate([pairs, pairs[:, 1:]], axis=1)
        return _told(list(tables), shares, None, level, 0)
    found: list[Any] = list(tables.values())
    if len({tuple(map(str, one.tasks)) for one in found}) > 1:
        raise ValueError("the tables are over different tasks; pick those they share, in one order")
    means = _means(found, average)
    point = _shares(means, np.full((1, len(found[0])), 1.0 / len(found[0])))[0]
    drawn = _shares(means, task_shares(found[0], resamples, random_state))
    return _told(list(tables), point, drawn, level, len(found[0]))


def _means(tables: list[AcceptanceTable], average: str) -> Array:
    """What is averaged over tasks ``(T, models, 4)``: single, ceiling, and the conditional's two parts."""
    right, wrong, single = (
        np.stack([getattr(one, name) for one in tables], axis=1) for name in ("right", "wrong", "single")
    )
    accepted = right + wrong
    seen = accepted > 0
    worth = np.where(seen, right / np.where(seen, accepted, 1.0), 0.0)
    if average == "pooled":
        above, below = right, accepted
    else:
        kept = seen.all(axis=1, keepdims=True) | (average == "ceiling")
        if not kept.any():
            raise ValueError("there is no task of which every model had a sample accepted")
        above, below = worth * kept, np.broadcast_to(kept, worth.shape).astype(float)
    return np.stack([single, worth, above, below], axis=2)


def _shares(means: Array, shares: Array) -> Array:
    """Single, conditional and ceiling ``(R, models, 3)`` of each mixture of tasks."""
    tasks = len(means)
    mixed = (shares @ means.reshape(tasks, -1)).reshape(len(shares), *means.shape[1:])
    with np.errstate(invalid="ignore", divide="ignore"):
        conditional = mixed[..., 2] / mixed[..., 3]
    return np.stack([mixed[..., 0], conditional, mixed[..., 1]], axis=2)


def _line(single: Array, conditional: Array) -> Array:
    """Slope, intercept, correlation ``(3, ...)`` over the last axis."""
    x = single - single.mean(axis=-1, keepdims=True)
    y = conditional - conditional.mean(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = (x * y).sum(axis=-1) / (x * x).sum(axis=-1)
        correlation = (x * y).sum(axis=-1) / np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1))
    return np.stack([slope, conditional.mean(axis=-1) - slope * single.mean(axis=-1), correlation])


def _told(names: list[str], point: Array, drawn: Array | None, level: float, tasks: int) -> WeakToStrong:
    import pandas
    from scipy import special

    single, conditional, top = point.T
    if not np.isfinite(conditional).all():
        raise ValueError(f"nothing of {names[int(np.argmin(np.isfinite(conditional)))]} was ever accepted")
    if np.ptp(single) == 0:
        raise ValueError("all models have one single-sample accuracy; no line goes through them")
    line, count = _line(single, conditional), len(names)
    left = conditional - line[1] - line[0] * single
    spread = ((single - single.mean()) ** 2).sum()
    variance = (left**2).sum() / (count - 2)
    errors = np.sqrt(variance / spread), np.sqrt(variance * (1 / count + single.mean() ** 2 / spread))
    gaps = top[:, None] - single[None, :]
    lows = highs = np.full(gaps.shape, np.nan)
    if drawn is None:
        t = -special.stdtrit(count - 2, (1 - level) / 2)
        ends = [(value - t * error, value + t * error) for value, error in zip(line[:2], errors, strict=True)]
        z = -special.ndtri((1 - level) / 2) / np.sqrt(count - 3) if count > 3 else np.inf
        with np.errstate(divide="ignore"):
            ends.append((np.tanh(np.arctanh(line[2]) - z), np.tanh(np.arctanh(line[2]) + z)))
    else:
        low, high = limits(_line(drawn[..., 0], drawn[..., 1]).T, level, tasks)
        ends = list(zip(low, high, strict=True))
        lows, highs = limits(drawn[:, :, None, 2] - drawn[:, None, :, 0], level, tasks)
    told = [Interval(float(v), float(a), float(b), level) for v, (a, b) in zip(line, ends, strict=True)]
    with np.errstate(divide="ignore"):
        p = 2 * special.stdtr(count - 2, -abs(line[0] / errors[0]))
    models = pandas.DataFrame({"single": single, "conditional": conditional, "ceiling": top}, index=names)

    def square(values: Array) -> pandas.DataFrame:
        return pandas.DataFrame(values, index=pandas.Index(names, name="weak"),
                                columns=pandas.Index(names, name="strong"))  # fmt: skip

    return WeakToStrong(
        told[0], told[1], told[2], float(line[2] ** 2), float(p), models, square(gaps >= 0), square(gaps),
        square(lows), square(highs),
    )  # fmt: skip
