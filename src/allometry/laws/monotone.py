"""A curve that can only fall: fitted to mean losses by scale, many data sets at a time, and read backwards.

The horizontal distance between two learning curves ("as good as 1.4 times the compute") needs the inverse of
one of them, and a curve has an inverse only where it is monotone.  Here it is so by construction.

- ``"power-offset"``: ``E + A x^-alpha`` with E, A >= 0 (Hestness et al., 2017, arXiv:1712.00409), fitted by
  least squares of log losses with the room's own solver; ``"power"`` is the same with ``E = 0``.
- ``"interpolation"``: pooled adjacent violators (Ayer et al., 1955), then a cubic of Fritsch and Carlson
  (1980) through the means on log axes.  It assumes no law and therefore says nothing outside the measured
  scales.
- ``"auto"`` takes the power law with a floor unless the scatter between seeds says that it misses the means
  (a test of lack of fit at five per cent), and then the interpolation.
- A *row* is one curve: a data set, a resample, a simulation.  Nothing here loops over rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from allometry.laws.forms import PowerLawOffset
from allometry.laws.search import search
from allometry.laws.solver import Problem, solve

__all__ = [
    "FORMS", "InterpolatedCurves", "PowerCurves", "fit_interpolation", "fit_power", "floor_upper", "misfit",
]  # fmt: skip

Array = NDArray[np.float64]
FORMS = ("auto", "power-offset", "power", "interpolation")
_FORM = PowerLawOffset()


@dataclass(frozen=True)
class PowerCurves:
    """Rows of ``log(E + exp(a - alpha (log x - centre)))``; ``floor``, ``a``, ``alpha`` are ``(rows,)``."""

    floor: Array
    a: Array
    alpha: Array
    centre: float

    def log_loss(self, log_x: Array) -> Array:
        """Log losses ``(rows, g)`` at ``log_x``, ``(g,)`` for every row alike or ``(rows, g)``."""
        out = -self.alpha[:, None] * (np.atleast_2d(log_x) - self.centre)
        out += self.a[:, None]  # in place from here on: rows are many
        np.exp(out, out=out)
        out += self.floor[:, None]
        return np.asarray(np.log(out, out=out))

    def elasticity(self, log_x: Array) -> Array:
        """Minus the slope of log loss in log x, ``(rows, g)``."""
        above = np.exp(self.a[:, None] - self.alpha[:, None] * (np.atleast_2d(log_x) - self.centre))
        return self.alpha[:, None] * above / (self.floor[:, None] + above)

    def repeat(self, count: int) -> PowerCurves:
        """Every row ``count`` times in a run."""
        floor, a, alpha = (np.repeat(part, count) for part in (self.floor, self.a, self.alpha))
        return PowerCurves(floor, a, alpha, self.centre)

    def __getitem__(self, rows: slice) -> PowerCurves:
        return PowerCurves(self.floor[rows], self.a[rows], self.alpha[rows], self.centre)

    def inverse(self, log_loss: Array) -> Array:
        """Log scales ``(rows, g)`` at which each row reaches ``log_loss (rows, g)``; inf below the floor."""
        height = -np.expm1(np.minimum(np.log(np.maximum(self.floor, 1e-300))[:, None] - log_loss, 0.0))
        with np.errstate(divide="ignore"):
            above = log_loss + np.log(height)  # log(L - E), without cancellation where E = 0
            return np.asarray(self.centre + (self.a[:, None] - above) / self.alpha[:, None])


@dataclass(frozen=True)
class InterpolatedCurves:
    """Rows of monotone cubics through ``values (rows, m)``, falling, at ``knots (m,)`` (logarithms)."""

    knots: Array
    values: Array
    slopes: Array

    def _pieces(self, log_x: Array) -> tuple[NDArray[np.intp], Array, Array]:
        piece = np.clip(np.searchsorted(self.knots, log_x, side="right") - 1, 0, len(self.knots) - 2)
        width = np.diff(self.knots)[piece]
        return piece, (log_x - self.knots[piece]) / width, width

    def log_loss(self, log_x: Array) -> Array:
        """Log losses ``(rows, g)`` at ``log_x`` ``(g,)`` or ``(rows, g)``; not a number outside the knots."""
        piece, t, width = self._pieces(log_x)
        value, slope = self.values, self.slopes
        if np.ndim(log_x) == 1:
            low, high, left, right = (
                value[:, piece],
                value[:, piece + 1],
                slope[:, piece],
                slope[:, piece + 1],
            )
        else:
            low, high = np.take_along_axis(value, piece, 1), np.take_along_axis(value, piece + 1, 1)
            left, right = np.take_along_axis(slope, piece, 1), np.take_along_axis(slope, piece + 1, 1)
        rise = t * t * (3 - 2 * t)
        bend = t * (1 - t)
        out = low + (high - low) * rise + width * bend * ((1 - t) * left - t * right)
        inside = (log_x >= self.knots[0] - 1e-12) & (log_x <= self.knots[-1] + 1e-12)
        return np.asarray(np.where(inside, out, np.nan))

    def chord(self, log_x: Array) -> Array:
        """Straight lines between the knots instead, ``(rows, g)``: how else one might have interpolated."""
        piece, t, _ = self._pieces(log_x)
        if np.ndim(log_x) == 1:
            return np.asarray(self.values[:, piece] * (1 - t) + self.values[:, piece + 1] * t)
        low, high = (np.take_along_axis(self.values, piece + i, 1) for i in (0, 1))
        return np.asarray(low * (1 - t) + high * t)

    def elasticity(self, log_x: Array) -> Array:
        """Minus the slope of log loss in log x, ``(rows, g)``, by central differences."""
        step = 1e-5
        high = np.minimum(log_x + step, self.knots[-1])
        low = np.maximum(log_x - step, self.knots[0])
        return np.asarray((self.log_loss(low) - self.log_loss(high)) / (high - low))

    def inverse(self, log_loss: Array) -> Array:
        """Log scales ``(rows, g)``; inf below the last value, -inf above the first.  By bisection."""
        low = np.full(log_loss.shape, self.knots[0])
        high = np.full(log_loss.shape, self.knots[-1])
        for _ in range(50):
            middle = 0.5 * (low + high)
            above = self.log_loss(middle) > log_loss
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        out = np.where(log_loss < self.values[:, -1:], np.inf, 0.5 * (low + high))
        return np.asarray(np.where(log_loss > self.values[:, :1], -np.inf, out))


def fit_power(
    log_x: Array, log_y: Array, weights: Array, *, offset: bool = True, start: PowerCurves | None = None
) -> PowerCurves:
    """Least squares of log losses to ``E + A x^-alpha`` for every row.

    Parameters
    ----------
    log_x : array (n,)
        Logarithms of all scales that occur in any row.
    log_y, weights : array (rows, n)
        Mean log losses and the number of runs behind each; weight zero where a row was not measured.
    offset : bool
        False for a power law without a floor.
    start : PowerCurves, optional
        Rows to start from; the search is then local, as befits a resample.
    """
    used = weights.sum(axis=0) > 0
    log_x, log_y, weights = log_x[used], log_y[:, used], weights[:, used]
    log_y = np.where(weights > 0, log_y, 0.0)
    if not offset:
        return _fit_line(log_x, log_y, weights)
    centre = float(log_x.mean()) if start is None else start.centre
    # The floor's unit is one constant for all rows, so that starts of other rows can be carried over.
    lower, upper = _FORM.bounds()
    unit = (weights * log_y).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
    problem = Problem(
        _FORM, (log_x - centre)[:, None], np.where(weights > 0, log_y - unit, 0.0), weights, lower, upper,
        loss="squared",
    )  # fmt: skip
    if start is None:
        theta = search(problem)[0].theta
    else:
        first = np.stack([start.floor * np.exp(-unit[:, 0]), start.a - unit[:, 0], start.alpha], axis=1)
        theta = solve(problem, first, np.arange(len(first)), iterations=40, tolerance=1e-6).theta
    return PowerCurves(theta[:, 0] * np.exp(unit[:, 0]), theta[:, 1] + unit[:, 0], theta[:, 2], centre)


def _fit_line(log_x: Array, log_y: Array, weights: Array) -> PowerCurves:
    """A power law is a straight line on log axes; it may not rise."""
    total = weights.sum(axis=1)
    middle = (weights @ log_x) / total
    height = (weights * log_y).sum(axis=1) / total
    away = log_x - middle[:, None]
    slope = (weights * away * (log_y - height[:, None])).sum(axis=1) / (weights * away**2).sum(axis=1)
    alpha = np.maximum(-slope, 1e-9)
    return PowerCurves(np.zeros(len(alpha)), height + alpha * middle, alpha, 0.0)


def fit_interpolation(log_x: Array, log_y: Array, weights: Array) -> InterpolatedCurves:
    """Falling cubics through the means: ``log_x (m,)`` ascending, ``log_y`` and ``weights (rows, m)``."""
    # Pooled adjacent violators in closed form: the least over beginnings of the greatest mean over ends, for
    # a falling curve.  m is the number of scales, so m^3 is small.
    m = len(log_x)
    mass = np.concatenate([np.zeros((len(log_y), 1)), np.cumsum(weights, axis=1)], axis=1)
    sums = np.concatenate([np.zeros((len(log_y), 1)), np.cumsum(weights * log_y, axis=1)], axis=1)
    values = np.empty_like(log_y)
    for i in range(m):
        best = np.full(len(log_y), np.inf)
        for begin in range(i + 1):
            reach = mass[:, i + 1 :] - mass[:, begin : begin + 1]
            best = np.minimum(best, ((sums[:, i + 1 :] - sums[:, begin : begin + 1]) / reach).max(axis=1))
        values[:, i] = best
    width = np.diff(log_x)
    chord = np.diff(values, axis=1) / width  # (rows, m - 1), none positive
    slopes = np.zeros_like(values)
    if m == 2:
        slopes[:] = chord
    else:
        # Interior slopes: the weighted harmonic mean of the chords, zero where one is (Fritsch and Butland).
        one, two = 2 * width[1:] + width[:-1], width[1:] + 2 * width[:-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            inner = (one + two) / (one / chord[:, :-1] + two / chord[:, 1:])
        slopes[:, 1:-1] = np.where((chord[:, :-1] < 0) & (chord[:, 1:] < 0), inner, 0.0)
        for end, near, next_ in ((0, 0, 1), (-1, -1, -2)):
            guess = ((2 * width[near] + width[next_]) * chord[:, near] - width[near] * chord[:, next_]) / (
                width[near] + width[next_]
            )
            slopes[:, end] = np.clip(guess, 3 * chord[:, near], 0.0)
    return InterpolatedCurves(log_x, values, slopes)


def misfit(means: Array, fitted: Array, counts: Array, variance: Array, parameters: Any) -> Array:
    """Lack of fit ``(rows,)``: mean square of the means about the curve over the variance between seeds.

    Distributed as F with (scales - parameters, degrees of the variance) where the curve is right; zero where
    there are no more scales than ``parameters``, of all rows or of each: a floor held at zero is none, so
    that three scales suffice to see that losses fall ever faster.  Seeds that agree to a millionth are taken
    to differ by one.
    """
    left = (counts > 0).sum(axis=1) - parameters
    square = np.where(counts > 0, counts * (means - fitted) ** 2, 0.0).sum(axis=1)
    return np.asarray(np.where(left > 0, square / np.maximum(left, 1) / np.maximum(variance, 1e-12), 0.0))


def floor_upper(
    curve: PowerCurves, log_x: Array, means: Array, counts: Array, variance: Array, quantile: Array
) -> Array:
    """Upper end ``(rows,)`` of the interval of the floor, as a loss, by the profile of the squared error.

    The largest E for which some ``A x^-alpha`` on top leaves at most ``quantile^2`` variances more than the
    best fit.  A profile and not a standard error: however uncertain, a floor cannot lie above the losses.

    Parameters
    ----------
    curve : PowerCurves
        The best fit.
    log_x : array (m,)
    means, counts : array (rows, m)
    variance, quantile : array (rows,)
    """
    loss, away = np.exp(means), log_x - log_x.mean()
    best = _left_over(curve.floor, loss, counts, away)
    allowed = best + quantile**2 * variance
    low, high = curve.floor.copy(), loss.min(axis=1)
    for _ in range(30):
        middle = 0.5 * (low + high)
        within = _left_over(middle, loss, counts, away) <= allowed
        low, high = np.where(within, middle, low), np.where(within, high, middle)
    return low


def _left_over(floor: Array, loss: Array, counts: Array, away: Array) -> Array:
    """Squared relative error ``(rows,)`` of the best ``E + exp(a - alpha u)`` at given floors ``(rows,)``."""
    above = np.maximum(loss - floor[:, None], 1e-12 * loss)
    # A line through log(L - E), each point with the precision it has there, then Gauss-Newton.
    weight = counts * (above / loss) ** 2
    total = weight.sum(axis=1)
    centre = (weight @ away) / total
    height = (weight * np.log(above)).sum(axis=1) / total
    lean = away - centre[:, None]
    spread = (weight * lean**2).sum(axis=1)
    slope = np.clip(-(weight * lean * np.log(above)).sum(axis=1) / np.maximum(spread, 1e-300), 1e-3, 2.0)
    a = height + slope * centre
    found = np.full(len(loss), np.inf)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for _ in range(8):
            term = np.exp(a[:, None] - slope[:, None] * away) / loss
            residual = above / loss - term
            found = np.fmin(found, (counts * residual**2).sum(axis=1))
            by_a, by_slope = term, -away * term
            aa = (counts * by_a**2).sum(axis=1)
            ab = (counts * by_a * by_slope).sum(axis=1)
            bb = (counts * by_slope**2).sum(axis=1)
            ra, rb = (counts * by_a * residual).sum(axis=1), (counts * by_slope * residual).sum(axis=1)
            determinant = aa * bb - ab**2
            moved = np.clip(slope + (aa * rb - ab * ra) / determinant, 1e-3, 2.0)
            a = a + (ra - ab * (moved - slope)) / aa  # the best a for the slope, which may be at its bound
            slope = moved
    return found
