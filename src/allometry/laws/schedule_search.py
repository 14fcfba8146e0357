"""Which schedule to train with, by a law of annealing: ranking, the best of a family, all horizons of one
trunk.

A law fitted to a few runs foretells the end of any schedule in milliseconds, so schedules are searched by
trying them. What lies far from any schedule that was measured (a step to zero, an end at zero) is a guess of
the law: search within families that you would train anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import pandas

__all__ = ["Foretells", "best_schedule", "horizon_losses", "rank_schedules", "schedule_family", "wsd_rates"]

Array = NDArray[np.float64]
SHAPES = ("linear", "sqrt", "cosine", "exponential")
_FRACTIONS = tuple(np.round(np.arange(0.05, 1.0001, 0.05), 2))


class Foretells(Protocol):
    """What is asked of a law here."""

    def final(self, schedules: ArrayLike, *, warmup: int = 0, draws: bool = False) -> Array:
        """Losses ``(K,)`` at the ends of schedules ``(K, T)``, or draws of them ``(resamples, K)``."""
        ...


def wsd_rates(
    total: int, peak: float, *, warmup: int = 0, decay: float = 0.2, shape: str = "linear", end: float = 0.0
) -> Array:
    """Rates ``(total,)``: linear warm-up, a stable stretch, decay over the last share ``decay`` down to
    ``end``.

    Parameters
    ----------
    shape : {"linear", "sqrt", "cosine", "exponential"}
        ``sqrt`` is 1 - sqrt(progress) (Hägele and others, 2024, arXiv:2405.18392). An exponential that ends
        at zero goes down to a thousandth of the peak.
    decay : float
        0 is a constant rate; with a cosine, 1 is the usual cosine schedule.

    Examples
    --------
    >>> wsd_rates(5, 1.0, decay=0.8).tolist()
    [1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if shape not in SHAPES:
        raise ValueError(f"a decay's shape is one of {', '.join(SHAPES)}, not {shape!r}")
    if not 0 <= decay <= 1 or not peak > 0 or not 0 <= end <= peak:
        raise ValueError(f"decay is a share in [0, 1] and 0 <= end <= peak; got {decay}, {end}, {peak}")
    if total <= warmup:
        raise ValueError(f"a schedule of {total} steps has no room for a warm-up of {warmup}")
    step = np.arange(total, dtype=float)
    start = max(total - round(decay * total), warmup)
    way = np.clip((step - start) / max(1, total - start), 0.0, 1.0)
    if shape == "exponential":
        rates = peak * np.exp(way * np.log(max(end / peak, 1e-3)))
    else:
        left = {"linear": 1 - way, "sqrt": 1 - np.sqrt(way), "cosine": 0.5 * (1 + np.cos(np.pi * way))}[shape]
        rates = end + (peak - end) * left
    if warmup:
        rates[:warmup] = peak * np.arange(1, warmup + 1) / warmup
    return rates


def schedule_family(
    family: str, total: int, peak: float, *, warmup: int = 0, end: float = 0.0,
    fractions: Sequence[float] = _FRACTIONS, shapes: Sequence[str] = SHAPES,
) -> dict[str, Array]:  # fmt: skip
    """Named schedules to choose among.

    Parameters
    ----------
    family : {"wsd", "cosine", "two-step"}
        Decays of every fraction and shape; cosines that end at several shares of the peak; one drop at
        several places to a tenth or a third.

    Examples
    --------
    >>> list(schedule_family("wsd", 100, 1e-3, fractions=(0.1, 0.2), shapes=("linear",)))
    ['wsd linear 0.1', 'wsd linear 0.2']
    """
    if family == "wsd":
        return {
            f"wsd {shape} {part:g}": wsd_rates(total, peak, warmup=warmup, decay=part, shape=shape, end=end)
            for shape in shapes for part in fractions
        }  # fmt: skip
    if family == "cosine":
        ends = {float(max(end, share * peak)) for share in (0.0, 0.01, 0.03, 0.1, 0.3)}
        return {
            f"cosine to {one:g}": wsd_rates(total, peak, warmup=warmup, decay=1.0, shape="cosine", end=one)
            for one in sorted(ends)
        }
    if family == "two-step":
        found = {}
        for part in fractions:
            for factor in (0.3, 0.1):
                rates = wsd_rates(total, peak, warmup=warmup, decay=0.0)
                rates[total - round(part * total) :] = max(factor * peak, end)
                found[f"drop to {factor:g} for {part:g}"] = rates
        return found
    raise ValueError(f"a family of schedules is 'wsd', 'cosine' or 'two-step', not {family!r}")


def rank_schedules(
    law: Foretells, schedules: Mapping[str, ArrayLike], *, warmup: int = 0, level: float = 0.9
) -> pandas.DataFrame:
    """Schedules by the loss that the law foretells at their end, the best first.

    Parameters
    ----------
    schedules : mapping of name to rates (T,)
        They may differ in length, though then the longest tends to win: rank at equal steps.

    Returns
    -------
    DataFrame
        ``loss``, ``low``, ``high``, ``steps``, ``area`` (the sum of the rates), and ``behind``: the chance,
        over the law's draws, that the schedule is worse than the first; NaN without draws.
    """
    import pandas

    if not schedules:
        raise ValueError("give at least one schedule to rank")
    arrays = {name: np.asarray(one, dtype=float).ravel() for name, one in schedules.items()}
    value: dict[str, float] = {}
    drawn: dict[str, Array] = {}
    for length in sorted({len(one) for one in arrays.values()}):
        names = [name for name, one in arrays.items() if len(one) == length]
        block = np.stack([arrays[name] for name in names])
        value |= dict(zip(names, law.final(block, warmup=warmup).tolist(), strict=True))
        drawn |= dict(zip(names, law.final(block, warmup=warmup, draws=True).T, strict=True))
    first = min(value, key=lambda name: value[name])
    tails = [(1 - level) / 2, (1 + level) / 2]
    rows = {}
    for name in sorted(value, key=lambda one: value[one]):
        low, high = np.quantile(drawn[name], tails) if len(drawn[name]) else (np.nan, np.nan)
        behind = float((drawn[name] > drawn[first]).mean()) if len(drawn[name]) else np.nan
        rows[name] = {"loss": value[name], "low": float(low), "high": float(high), "steps": len(arrays[name]),
                      "area": float(arrays[name].sum()), "behind": behind}  # fmt: skip
    frame = pandas.DataFrame.from_dict(rows, orient="index")
    frame.index.name = "schedule"
    return frame


def best_schedule(
    law: Foretells, total_steps: int, peak: float, *, family: str = "wsd", warmup: int = 0, end: float = 0.0,
    level: float = 0.9, **options: Any,
) -> tuple[str, Array, pandas.DataFrame]:  # fmt: skip
    """The best schedule of a family for a horizon: its name, its rates ``(T,)``, and the ranking of all."""
    every = schedule_family(family, total_steps, peak, warmup=warmup, end=end, **options)
    ranked = rank_schedules(law, every, warmup=warmup, level=level)
    name = str(ranked.index[0])
    return name, every[name], ranked


def horizon_losses(
    law: Foretells, horizons: Sequence[int], peak: float, *, decay: float = 0.2, shape: str = "linear",
    warmup: int = 0, end: float = 0.0, level: float = 0.9,
) -> pandas.DataFrame:  # fmt: skip
    """Final losses at many horizons, as if each had been trained: all of them from one trunk and its law.

    The cheap road to a law in parameters and data: one long constant run and one decay a model size, and this
    table stands for the runs of every length.

    Returns
    -------
    DataFrame
        One row a horizon: ``step`` (its last), ``loss``, ``low``, ``high``.
    """
    import pandas

    schedules = {
        str(total): wsd_rates(int(total), peak, warmup=warmup, decay=decay, shape=shape, end=end)
        for total in horizons
    }
    ranked = rank_schedules(law, schedules, warmup=warmup, level=level)
    told = ranked.loc[list(schedules), ["loss", "low", "high"]].reset_index(drop=True)
    told.insert(0, "steps", [int(total) for total in horizons])
    return pandas.DataFrame(told)
