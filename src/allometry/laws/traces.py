"""Learning-rate schedules as laws see them: areas under the curve, and how long ago it came down by how much.

Annealing area: Tissue, Wang and Wang, 2024, arXiv:2408.11029 (section 3). Drops weighted by the area since:
Luo and others, 2025, arXiv:2503.12811 (section 3).

- A schedule is an array of rates ``(T,)``, one an update: ``rates[i]`` is that of update i.  A log that tells
  the rate at some steps stands for the straight lines between them.
- *Lags*: what a fall of the rate does depends on how long ago it was.  All falls before a step are shared
  out, by linear interpolation, among lags that grow geometrically, so a long schedule has about a hundred of
  them whatever its length, and any response costs points times a hundred.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Lags", "Trace", "lag_grid", "lags", "schedule_areas", "traces"]

Array = NDArray[np.float64]
_STEPS = 20_000_000  # longer schedules than this are a mistake in the step column


def schedule_areas(lrs: ArrayLike, lam: float = 0.999, warmup: int = 0) -> tuple[Array, Array]:
    """Forward area S1 and annealing area S2 at every step of a schedule.

    ``S1(s)`` sums the rates up to and including step s. ``S2(s)`` sums the momenta ``m_i = lam m_{i-1} +
    (eta_{i-1} - eta_i)``, so that a fall by D in the end counts D / (1 - lam) (Tissue et al., 2024, equation
    1).

    Parameters
    ----------
    lrs : array (T,) or (K, T)
        Learning rates, not negative; a tensor will do.
    lam : float
        In [0, 1): a delay of 1 / (1 - lam) steps.
    warmup : int
        So many first steps count as if they were at the rate that they lead to, as the paper does.

    Returns
    -------
    S1, S2 : arrays of the shape of ``lrs``

    Raises
    ------
    ValueError
        Rates are negative or not finite, ``lam`` is not in [0, 1), or the warm-up is longer than the
        schedule.

    Examples
    --------
    >>> first, second = schedule_areas([1.0, 1.0, 0.5, 0.5], lam=0.5)
    >>> first.tolist(), second.tolist()
    ([1.0, 2.0, 2.5, 3.0], [0.0, 0.0, 0.5, 0.75])
    """
    from scipy.signal import lfilter

    rates = _rates(lrs)
    if not 0.0 <= lam < 1.0:
        raise ValueError(f"lam must lie in [0, 1): it keeps that share of the momentum a step; got {lam}")
    if not 0 <= warmup < rates.shape[-1]:
        raise ValueError(f"a warm-up of {warmup} steps does not fit a schedule of {rates.shape[-1]}")
    if warmup:
        rates = rates.copy()
        rates[..., :warmup] = rates[..., warmup : warmup + 1]
    fall = np.zeros_like(rates)
    fall[..., 1:] = rates[..., :-1] - rates[..., 1:]
    momentum = lfilter([1.0], [1.0, -lam], fall, axis=-1)
    return np.cumsum(rates, axis=-1), np.cumsum(momentum, axis=-1)


def _rates(lrs: ArrayLike, name: str = "the schedule") -> Array:
    if hasattr(lrs, "detach"):
        lrs = lrs.detach().cpu().numpy()
    rates = np.asarray(lrs, dtype=float)
    if rates.ndim not in (1, 2) or not rates.size:
        raise ValueError(f"{name} must be an array (T,) of learning rates, not of shape {rates.shape}")
    bad = ~(np.isfinite(rates) & (rates >= 0))
    if bad.any():
        raise ValueError(
            f"{name} holds a learning rate of {rates[bad][0]}; rates are finite and not negative"
        )
    return rates


@dataclass(frozen=True)
class Trace:
    """One run: its whole schedule, and the steps at which its loss is known or asked for.

    Attributes
    ----------
    name : str
    rates : array (T,)
        Learning rate of every update from 0 to the last step asked for.
    steps : integer array (n,)
        In the order of the rows.
    warmup : int
        Updates before the rate first reached its height; their rise is no annealing.
    rows : integer array (n,)
        Rows of the table that these steps are.
    """

    name: str
    rates: Array
    steps: NDArray[np.intp]
    warmup: int
    rows: NDArray[np.intp]


def traces(
    columns: Mapping[str, Any],
    *,
    schedules: Mapping[str, Any] | None = None,
    warmup: int = 0,
    ramp: bool = True,
    known: Mapping[str, tuple[Array, Array]] | None = None,
) -> list[Trace]:
    """The runs of a table, each with its schedule filled in.

    Parameters
    ----------
    columns : mapping of ``step``, ``learning_rate`` and, if there is one, ``run``, each (n,)
        ``learning_rate`` may be missing where ``schedules`` has the run.
    schedules : mapping of run to array (T,), optional
        Whole schedules, where the log is too coarse.
    warmup : int
        Steps of a linear rise from zero that the log does not show; where the log itself begins with a rise,
        that is taken.
    ramp : bool
        Whether the rise counts with its own small rates, or as if at full rate.
    known : mapping of run to (steps, rates), optional
        What is known of the history of runs from elsewhere.

    Raises
    ------
    ValueError
        Steps are negative, not whole, or beyond the schedule; two rows of a run disagree about a rate.
    """
    step = np.asarray(columns["step"], dtype=float)
    if (step < 0).any() or (step != np.round(step)).any():
        raise ValueError(
            f"steps are whole numbers from 0; found {step[(step < 0) | (step != np.round(step))][0]:g}"
        )
    if step.max() > _STEPS:
        raise ValueError(f"step {step.max():g} is beyond {_STEPS:,}; are these tokens? Give updates")
    label = np.asarray(columns["run"]).astype(str) if "run" in columns else np.full(len(step), "run")
    found = []
    for name in dict.fromkeys(label.tolist()):
        rows = np.flatnonzero(label == name)
        at = step[rows].astype(np.intp)
        if schedules is not None and name in schedules:
            rates = _rates(schedules[name], f"the schedule of run {name!r}")
            if at.max() >= len(rates):
                raise ValueError(
                    f"run {name!r} has step {at.max()}, but its schedule ends after {len(rates)} steps"
                )
            found.append(_risen(name, rates[: at.max() + 1].copy(), at, rows, warmup, ramp, whole=True))
            continue
        before = None if known is None else known.get(name)
        if "learning_rate" not in columns and before is not None and before[0][-1] >= at.max():
            full = np.interp(np.arange(at.max() + 1), *before)
            found.append(_risen(name, full, at, rows, warmup, ramp, whole=True))
            continue
        if "learning_rate" not in columns:
            raise ValueError(f"run {name!r} needs a column 'learning_rate', or a schedule given for it")
        places, values = at.astype(float), np.asarray(columns["learning_rate"], dtype=float)[rows]
        if before is not None:
            places, values = np.concatenate([before[0], places]), np.concatenate([before[1], values])
        order = np.argsort(places, kind="stable")
        places, values = places[order], values[order]
        again = np.flatnonzero(places[1:] == places[:-1])
        if len(again) and np.abs(values[again + 1] - values[again]).max() > 1e-6 * values.max():
            raise ValueError(
                f"run {name!r} has two learning rates at step {places[again[0]]:.0f}; name the runs apart in "
                "a column 'run'"
            )
        full = np.interp(np.arange(at.max() + 1), places, _rates(values, f"run {name!r}"))
        found.append(_risen(name, full, at, rows, warmup, ramp, whole=places[0] == 0))
    return found


def _risen(
    name: str,
    rates: Array,
    at: NDArray[np.intp],
    rows: NDArray[np.intp],
    warmup: int,
    ramp: bool,
    *,
    whole: bool,
) -> Trace:
    """The trace with its warm-up known: read off the schedule where it shows one, else as told."""
    if not rates.max() > 0:
        raise ValueError(f"the learning rate of run {name!r} is zero throughout")
    falls = np.flatnonzero(np.diff(rates) <= 0)
    shown = int(falls[0]) if len(falls) else len(rates) - 1
    if whole and shown > 0:
        warmup = shown
    elif warmup >= len(rates):
        raise ValueError(f"run {name!r} ends at step {len(rates) - 1}, inside its warm-up of {warmup} steps")
    elif warmup:
        rates[:warmup] = rates[warmup] * np.arange(warmup) / warmup
    if not ramp and warmup:
        rates[:warmup] = rates[warmup]
    return Trace(name, rates, at, warmup, rows)


# --- lags -------------------------------------------------------------------------------------------------
def lag_grid(longest: int, ratio: float = 1.1) -> NDArray[np.intp]:
    """Lags in steps, from 0 to at least ``longest``, every one at first and then ``ratio`` apart.

    >>> lag_grid(20, 1.15).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 21]
    """
    places = [0]
    while places[-1] < longest:
        places.append(max(places[-1] + 1, round(places[-1] * ratio)))
    return np.array(places, dtype=np.intp)


@dataclass(frozen=True)
class Lags:
    """What came down how long ago, for each step asked for; an entry for each pair of a step and a lag.

    Attributes
    ----------
    point : integer array (e,)
        Row of each entry.
    weight : array (e,)
        By how much the rate fell about that long ago; negative where it rose.
    lag : array (e,)
        Steps since.
    area : array (e,)
        Sum of the rates since.
    rate : array (e,)
        The rate that it fell to.
    forward : array (n,)
        S1: the sum of all rates up to the step.
    """

    point: NDArray[np.intp]
    weight: Array
    lag: Array
    area: Array
    rate: Array
    forward: Array


def lags(rates: Array, steps: NDArray[np.intp], warmup: int, ratio: float = 1.1) -> Lags:
    """The lags of one schedule ``(T,)`` at ``steps (n,)``; falls within the warm-up do not count.

    An update k that lowers the rate by g adds g at lag ``s - k + 1``, so a response r that is linear between
    the lags of `lag_grid` gives ``sum weight r(lag)`` exactly.
    """
    total = len(rates)
    grid = lag_grid(int(steps.max()) + 1, ratio)
    fall = np.zeros(total)
    fall[1:] = rates[:-1] - rates[1:]
    fall[: warmup + 1] = 0.0
    # Sums of falls, and of falls times their update, before each place: any range is then a difference.
    none = np.concatenate([[0.0], np.cumsum(fall)])
    first = np.concatenate([[0.0], np.cumsum(fall * np.arange(total))])
    passed = np.concatenate([[0.0], np.cumsum(rates)])
    after = steps[:, None] + 1
    place = np.clip(after - grid[None], -1, total - 1) + 1  # updates k < place have at least the lag
    mass = none[place[:, :-1]] - none[place[:, 1:]]  # (n, J - 1): falls with lag in [grid_j, grid_j+1)
    moment = after * mass - (first[place[:, :-1]] - first[place[:, 1:]])
    upper = (moment - grid[:-1] * mass) / np.diff(grid)
    weight = np.zeros(place.shape)
    weight[:, :-1] += mass - upper
    weight[:, 1:] += upper
    point, column = np.nonzero(np.abs(weight) > 1e-15 * rates.max())
    since = np.clip(after[point, 0] - grid[column], 0, total - 1)
    return Lags(
        point, weight[point, column], grid[column].astype(float),
        passed[after[point, 0]] - passed[since], rates[since], passed[steps + 1],
    )  # fmt: skip


def joined(parts: list[Lags]) -> Lags:
    """The lags of several schedules, one after another."""
    before = np.cumsum([0, *(len(one.forward) for one in parts)])
    return Lags(
        np.concatenate([one.point + start for one, start in zip(parts, before, strict=False)]),
        *(np.concatenate([getattr(one, name) for one in parts])
          for name in ("weight", "lag", "area", "rate", "forward")),
    )  # fmt: skip


def final_lags(rates: Array, warmup: int = 0, ratio: float = 1.1) -> Lags:
    """The lags of the last step of each of many schedules ``(K, T)``, in one pass."""
    total = rates.shape[1]
    grid = lag_grid(total, ratio)
    fall = np.zeros_like(rates)
    fall[:, 1:] = rates[:, :-1] - rates[:, 1:]
    fall[:, : warmup + 1] = 0.0
    back = fall[:, ::-1]  # column j fell j + 1 steps ago
    starts = grid[(grid >= 1) & (grid <= total)] - 1
    mass = np.add.reduceat(back, starts, axis=1)
    moment = np.add.reduceat(back * np.arange(1, total + 1), starts, axis=1)
    low = starts + 1
    high = grid[np.searchsorted(grid, low) + 1]
    upper = (moment - low * mass) / (high - low)
    weight = np.concatenate([mass - upper, np.zeros((len(rates), 1))], axis=1)
    weight[:, 1:] += upper
    lag = np.append(low, high[-1])
    passed = np.concatenate([np.zeros((len(rates), 1)), np.cumsum(rates, axis=1)], axis=1)
    point, column = np.nonzero(np.abs(weight) > 1e-15 * rates.max())
    since = np.maximum(total - lag[column], 0)
    return Lags(
        point, weight[point, column], lag[column].astype(float),
        passed[point, total] - passed[point, since], rates[point, since], passed[:, total],
    )  # fmt: skip
