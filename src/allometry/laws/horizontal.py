"""The horizontal distance between two curves: tests inverted, trends, what could have been seen.

``w`` solves ``f_base(w x) = L_arm(x)``.  A ratio of two such readings has no useful distribution where the
base is nearly flat (it has no mean, and its percentiles are no confidence set), so a test is inverted, as
Fieller (1954) does for a ratio of means: all w for which ``ln f_base(w x) - ln L_arm(x)`` lies within ``t``
standard errors of zero.  Where the base flattens, the set opens into a half-line or the whole line by itself.

- Arrays only, and always with the *pair* as first axis: an arm in use, or a simulated data set when
  `allometry.laws.worth_calibration` asks whether the sets keep their promise.
- An interpolated base is known at its knots alone: between them the tolerance grows by twice the distance of
  two fair interpolations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from allometry.laws.monotone import floor_upper
from allometry.laws.resampled import Batch, Cells, Noise, Resampled, draw, fit_resampled

__all__ = ["Distances", "Options", "distances"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

_GRID = 160  # places of the base at which the test is tried
_FINE = 9  # places in the step where its answer changes
_POWER = 0.8  # with which a minimum detectable worth is detected


@dataclass(frozen=True)
class Options:
    """How distances are measured; `allometry.laws.worth.worth` says what each means."""

    level: float = 0.9
    paired: bool = True
    form: str = "auto"
    cap: float = 4.0
    resamples: int = 1000
    margin: float = 0.1
    random_state: int = 0


@dataclass(frozen=True)
class Distances:
    """What was found.  Distances are logarithms, ``(pairs, q)`` unless said, so that none is 0.

    ``log_factor`` is inf where the base's curve does not come down to the arm's loss within the cap, and -inf
    where it is there already below its smallest scale over the cap.  ``low`` and ``high`` are infinite where
    the set is open.
    """

    log_factor: Array
    low: Array
    high: Array
    p_value: Array  # of w = 1
    minimum_detectable: Array  # inf where nothing up to the cap would have been seen
    extrapolated: Mask
    below_floor: Mask  # the arm's loss lies under the upper end of the interval of the base's floor
    floor: Array  # (pairs,): that upper end, a loss; zero where the base has no floor
    slope: Array  # (pairs, 3): of log w in log x, and the ends of its interval
    trend: list[str]  # a word for each pair
    flat: Mask  # (pairs,)
    rising: Mask  # (pairs,)
    interpolated: Mask  # (pairs,)


def distances(batch: Batch, options: Options, *, fine: bool = True) -> Distances:
    """Distances of every pair; ``fine=False`` leaves ends of sets to a thousandth, for simulations."""
    from scipy import special

    upper = (1 + options.level) / 2
    base, arm = Cells.of(batch.base), Cells.of(batch.arm)
    noise = draw(
        base, arm, paired=options.paired, resamples=options.resamples, random_state=options.random_state
    )
    fits = fit_resampled(batch, base, arm, noise, options.form)
    variance, quantile = base.variance, special.stdtrit(np.maximum(base.degrees, 1.0), upper)

    first, last = float(batch.log_x_base[0]), float(batch.log_x_base[-1])
    reach = np.log(options.cap)
    # An interpolation says nothing outside its knots.
    least = np.where(fits.interpolated, first, first - reach)[:, None]
    most = np.where(fits.interpolated, last, last + reach)[:, None]
    grid = least + (most - least) * np.linspace(0.0, 1.0, _GRID)
    where = fits.inverse(fits.arm)
    where = np.where(where > most, np.inf, np.where(where < least, -np.inf, where))
    spread, degrees = _spread(fits, noise, np.clip(where, least, most))
    t = special.stdtrit(degrees, upper)
    low, high = _invert(fits, grid, t, fine)
    low, high = np.minimum(low, where), np.maximum(high, where)
    # No amount of base scale is known to reach a loss that the floor may not let through.
    floor = np.zeros(len(grid))
    if options.form != "power" and not fits.interpolated.all():
        assert fits.point is not None
        floor = floor_upper(fits.point, batch.log_x_base, base.mean, base.count, variance, quantile)
        floor = np.where(fits.interpolated, 0.0, floor)
    below_floor = np.exp(fits.arm) < floor[:, None]
    high = np.where(below_floor, np.inf, high)
    low = np.minimum(low, most)  # a set wholly beyond the cap: at least the cap
    high = np.maximum(high, least)
    ends = np.stack([where, low, high])
    beyond = np.isfinite(ends) & ((ends < first - 1e-9) | (ends > last + 1e-9))

    inside = (batch.at >= least) & (batch.at <= most)
    here = np.clip(batch.at, least, most)
    gap, slack = fits.base(here) - fits.arm, fits.slack(here)
    spread, degrees = _spread(fits, noise, here)
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.maximum(np.abs(gap) - slack, 0.0) / spread
    p_value = np.where(inside, 2 * special.stdtr(degrees, -np.nan_to_num(statistic)), np.nan)
    needed = (special.stdtrit(degrees, upper) + special.stdtrit(degrees, _POWER)) * spread + slack
    seen = fits.inverse(fits.base(here) - needed)
    seen = np.where(seen <= most, np.maximum(seen - batch.at, 0.0), np.inf)

    low, high = low - batch.at, high - batch.at
    slope, trend = _trend(batch, fits, noise, where, low, high, options)
    return Distances(
        log_factor=where - batch.at, low=low, high=high, p_value=p_value,
        minimum_detectable=np.where(inside, seen, np.nan), extrapolated=np.asarray(beyond.any(axis=0)),
        below_floor=below_floor, floor=floor, slope=slope, trend=trend,
        flat=_flat(batch.log_x_base, base, upper), rising=_rising(base),
        interpolated=fits.interpolated,
    )  # fmt: skip


def _spread(fits: Resampled, noise: Noise, log_x: Array) -> tuple[Array, Array]:
    """Standard error and degrees of freedom ``(pairs, q)`` of the gap at places ``log_x (pairs, q)``."""
    moved = fits.base_drawn(log_x) - fits.arm_drawn
    return np.sqrt((moved**2).mean(axis=1)), noise.effective_degrees(moved)


def _invert(fits: Resampled, grid: Array, t: Array, fine: bool) -> tuple[Array, Array]:
    """Ends ``(pairs, q)`` of the set of log places that the test accepts; infinite where it is open."""
    size = grid.shape[1]
    resamples = fits.arm_drawn.shape[1]
    drawn = fits.base_drawn(grid)
    square = (drawn**2).mean(axis=1)[:, None] + (fits.arm_drawn**2).mean(axis=1)[..., None]
    square = square - 2 * np.matmul(fits.arm_drawn.transpose(0, 2, 1), drawn) / resamples
    tolerance = t[..., None] * np.sqrt(np.maximum(square, 0.0)) + fits.slack(grid)[:, None]
    gap = fits.base(grid)[:, None] - fits.arm[..., None]  # (pairs, q, grid), falling
    # The set lies between the first place where gap - tolerance <= 0 and the last where gap + tolerance >= 0.
    out = []
    for sign in (-1.0, 1.0):
        bound = gap + sign * tolerance
        if sign < 0:
            after = (bound <= 0).argmax(axis=2)
            none = (bound > 0).all(axis=2)
        else:
            after = size - (bound >= 0)[..., ::-1].argmax(axis=2)
            none = (bound < 0).all(axis=2)
        before = np.clip(after - 1, 0, size - 2)
        left = np.take_along_axis(grid, before, axis=1)
        right = np.take_along_axis(grid, before + 1, axis=1)
        ends = [np.take_along_axis(bound, (before + i)[..., None], axis=2)[..., 0] for i in (0, 1)]
        if fine:
            left, right, ends = _finer(fits, left, right, t, sign)
        with np.errstate(divide="ignore", invalid="ignore"):
            place = left + (right - left) * np.clip(ends[0] / (ends[0] - ends[1]), 0.0, 1.0)
        if sign < 0:
            out.append(np.where(none, np.inf, np.where(after == 0, -np.inf, place)))
        else:
            out.append(np.where(none, -np.inf, np.where(after == size, np.inf, place)))
    return out[0], out[1]


def _finer(
    fits: Resampled, left: Array, right: Array, t: Array, sign: float
) -> tuple[Array, Array, list[Array]]:
    """The part of each step ``(pairs, q)`` in which ``gap + sign tolerance`` passes zero, and its ends."""
    pairs, q = left.shape
    part = np.linspace(0.0, 1.0, _FINE)
    places = (left[..., None] + (right - left)[..., None] * part).reshape(pairs, -1)
    drawn = fits.base_drawn(places).reshape(pairs, -1, q, _FINE) - fits.arm_drawn[..., None]
    tolerance = t[..., None] * np.sqrt((drawn**2).mean(axis=1)) + fits.slack(places).reshape(pairs, q, _FINE)
    bound = fits.base(places).reshape(pairs, q, _FINE) - fits.arm[..., None] + sign * tolerance
    before = np.clip((bound <= 0).argmax(axis=2) - 1, 0, _FINE - 2)[..., None]
    steps = places.reshape(pairs, q, _FINE)
    left, right = (np.take_along_axis(steps, before + i, axis=2)[..., 0] for i in (0, 1))
    return left, right, [np.take_along_axis(bound, before + i, axis=2)[..., 0] for i in (0, 1)]


def _flat(log_x: Array, base: Cells, upper: float) -> Mask:
    """Bases ``(pairs,)`` whose means do not fall by more than their noise: a line's slope, one-sided."""
    from scipy import special

    weight = base.count / base.count.sum(axis=1, keepdims=True)
    away = log_x - (weight * log_x).sum(axis=1, keepdims=True)
    pull = weight * away / (weight * away**2).sum(axis=1, keepdims=True)
    slope = (pull * base.mean).sum(axis=1)
    error = np.sqrt(base.variance * (pull**2 / base.count).sum(axis=1))
    return np.asarray(slope >= -special.stdtrit(np.maximum(base.degrees, 1.0), upper) * error)


def _rising(base: Cells) -> Mask:
    """Bases ``(pairs,)`` of which some mean lies above that of a smaller scale by more than noise allows.

    Every two scales are compared at five per cent in all (Bonferroni).
    """
    from scipy import special

    m = base.mean.shape[1]
    small, large = np.triu_indices(m, 1)
    rise = base.mean[:, large] - base.mean[:, small]
    error = np.sqrt(base.variance[:, None] * (1 / base.count[:, small] + 1 / base.count[:, large]))
    limit = special.stdtrit(np.maximum(base.degrees, 1.0), 1 - 0.05 / len(small))[:, None]
    return np.asarray((rise > limit * error + 1e-12).any(axis=1))


def _trend(
    batch: Batch, fits: Resampled, noise: Noise, where: Array, low: Array, high: Array, options: Options
) -> tuple[Array, list[str]]:
    """Slope of log w in log x with its interval ``(pairs, 3)``, and the word for it.

    Least squares over the scales at which w is an interval, weighted by the square of the base's elasticity:
    one size of noise in log loss is that much noise in log w.  Weights by each scale's own variance would be
    a tenth sharper, but that variance is itself guessed from a few seeds, and intervals at 90 % then hold the
    slope 86 times of 100.  The variance of the slope has the covariances that scales share through one base.
    """
    from scipy import special

    usable = batch.own & np.isfinite(where) & np.isfinite(low) & np.isfinite(high)
    place = np.where(usable, where, batch.log_x_base.mean())
    elasticity = np.where(usable, np.maximum(fits.elasticity(place), 1e-12), 1.0)
    drawn = (fits.base_drawn(place) - fits.arm_drawn) / elasticity[:, None]  # of log w, to first order
    weight = np.where(usable, elasticity**2, 0.0)
    total = weight.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        away = batch.at - (weight * batch.at).sum(axis=1, keepdims=True) / total
        pull = weight * away / (weight * away**2).sum(axis=1, keepdims=True)
        pull = np.where(usable.sum(axis=1, keepdims=True) >= 3, pull, np.nan)
        slope = (pull * np.where(usable, where - batch.at, 0.0)).sum(axis=1)
        moved = np.einsum("pq,prq->pr", pull, drawn)
    known = np.isfinite(slope)
    error = np.sqrt((moved**2).mean(axis=1))
    degrees = noise.effective_degrees(np.nan_to_num(moved)[..., None])[:, 0]
    half = special.stdtrit(degrees, (1 + options.level) / 2) * error
    half = half + (np.abs(pull) * fits.slack(place) / elasticity).sum(axis=1)
    out = np.where(known[:, None], np.stack([slope, slope - half, slope + half], axis=1), np.nan)
    words = []
    for row, ok, below, above in zip(out, usable, high < 0, low > 0, strict=True):
        order = np.flatnonzero(ok)
        if not np.isfinite(row[0]):
            words.append("undetermined")
            continue
        start, end = order[0], order[-1]
        if (row[1] > 0 and below[start] and above[end]) or (row[2] < 0 and above[start] and below[end]):
            words.append("crosses")
        elif row[1] >= -options.margin and row[2] <= options.margin:
            words.append("holds")
        elif row[1] > 0:
            words.append("grows")
        elif row[2] < 0:
            words.append("fades")
        else:
            words.append("undetermined")
    return out, words
