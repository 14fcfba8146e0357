"""Where a learning curve is a power law: after the best guess, before the floor.

Joel Hestness et al., "Deep Learning Scaling is Predictable, Empirically", 2017. arXiv:1712.00409 (section on
the three regions).  Fitted across regions, an exponent is precise nonsense.

- *Small data*: errors within two standard errors of the best constant guess, and sizes from which the curve
  bends downwards: its slope is still growing.
- *Floor*: sizes at the end that bend a straight line upwards.
- Bends are judged by the quadratic term of every window of sizes at once, against the noise between seeds
  (what a seed does to its whole curve taken out), or about the window's own parabola where there is one seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import pandas

__all__ = ["Regions", "noise_of_means", "noise_trend", "regions"]

Array = NDArray[np.float64]
SMALL, POWER, FLOOR = "small data", "power law", "floor"


@dataclass(frozen=True)
class Regions:
    """A learning curve cut in three.

    Attributes
    ----------
    sizes, errors : array (n,)
        Sizes of the samples, ascending, and geometric means of their errors over seeds.
    start, stop : int
        Sizes ``start <= i < stop`` form the power-law region.
    slopes, slope_errors : array (n - 1,)
        Local slopes of log error in log size, and their standard errors (NaN where noise is unknown).
    """

    sizes: Array
    errors: Array
    start: int
    stop: int
    slopes: Array
    slope_errors: Array

    @property
    def names(self) -> list[str]:
        """Region of every size: ``"small data"``, ``"power law"`` or ``"floor"``."""
        after = len(self.sizes) - self.stop
        return [SMALL] * self.start + [POWER] * (self.stop - self.start) + [FLOOR] * after

    @property
    def table(self) -> pandas.DataFrame:
        """One row a size; the slope is that from it to the next size."""
        import pandas

        return pandas.DataFrame(
            {"samples": self.sizes, "error": self.errors, "region": self.names,
             "slope": np.append(self.slopes, np.nan), "slope error": np.append(self.slope_errors, np.nan)}
        )  # fmt: skip


def regions(
    sizes: ArrayLike,
    errors: ArrayLike,
    *,
    best_guess: float | None = None,
    tolerance: float = 0.01,
    level: float = 0.99,
) -> Regions:
    """Cut a learning curve into small-data, power-law and floor region.

    Parameters
    ----------
    sizes : array (n,)
        Training samples, ascending.
    errors : array (n,) or (n, seeds)
        Positive; NaN for seeds that were not run.
    best_guess : float, optional
        Error of the best constant prediction, in the unit of ``errors``.
    tolerance : float
        Bends that move the error by less than this share are none.
    level : float
        Confidence with which a window must bend to be cut.

    Raises
    ------
    ValueError
        Sizes do not ascend, or an error is not positive.

    Examples
    --------
    >>> m = 100 * 2.0 ** np.arange(10)
    >>> regions(m, np.minimum(0.9, 20 * m**-0.5), best_guess=0.9).names.count("power law")
    7
    """
    at, log_errors = _checked(sizes, errors)
    n = len(at)
    u, mean = np.log(at), np.nanmean(log_errors, axis=1)
    sd, degrees = noise_of_means(log_errors)
    slopes = np.diff(mean) / np.diff(u)
    slope_errors = np.sqrt(sd[1:] ** 2 + sd[:-1] ** 2) / np.diff(u)
    start = 0
    if best_guess is not None:
        if not (np.isfinite(best_guess) and best_guess > 0):
            raise ValueError(f"best_guess is the error of a constant prediction, positive; not {best_guess}")
        at_guess = mean >= np.log(best_guess) - 2 * np.nan_to_num(sd)
        start = n if at_guess.all() else int(np.argmin(at_guess))
    down, up = _bends(u, mean, sd, degrees, tolerance, level)
    while start < n - 2 and down[start].any():
        start += 1
    stop = n
    while stop - start > 3 and up[start, stop - 1]:
        stop -= 1
    return Regions(at, np.exp(mean), start, stop, slopes, slope_errors)


def noise_of_means(log_errors: Array) -> tuple[Array, float]:
    """Standard deviation (n,) of means over seeds about a smooth curve, and its degrees of freedom.

    What a seed does to all sizes alike bends nothing and is taken out. NaN and 0 where there is one seed.
    """
    n = len(log_errors)
    present = np.isfinite(log_errors)
    count = present.sum(axis=1)
    residual = log_errors - np.nanmean(log_errors, axis=1, keepdims=True)
    degrees = float((count - 1).sum())
    if present.all() and log_errors.shape[1] > 1 and n > 1:
        residual = residual - residual.mean(axis=0)
        degrees = float((n - 1) * (log_errors.shape[1] - 1))
    if degrees < 1:
        return np.full(n, np.nan), 0.0
    variance = np.nansum(residual**2) / degrees
    return np.sqrt(variance / count), degrees


def noise_trend(u: Array, log_errors: Array) -> float:
    """Slope of the log standard deviation between seeds in log size; 0 where it is not clear.

    Small samples scatter more. Log variances of S seeds have the variance trigamma((S - 1) / 2), which tells
    a trend from luck; it takes three seeds and four sizes, and a slope of 2.5 standard errors.
    """
    from scipy.special import polygamma

    seeds = log_errors.shape[1]
    if seeds < 3 or len(u) < 4 or not np.isfinite(log_errors).all():
        return 0.0
    away = log_errors - log_errors.mean(axis=1, keepdims=True)
    centred, slope = u - u.mean(), 0.0
    spread = (centred**2).sum()
    for _ in range(3):  # what a seed does to all sizes is best seen where noise is small
        weights = np.exp(-slope * centred)
        residual = away - weights @ away / weights.sum()
        variance = (residual**2).sum(axis=1)
        if not (variance > 0).all():
            return 0.0
        slope = centred @ np.log(variance) / spread
    error = np.sqrt(polygamma(1, (seeds - 1) / 2) / spread)
    return float(slope / 2) if abs(slope) > 2.5 * error else 0.0


def _bends(
    u: Array, mean: Array, sd: Array, degrees: float, tolerance: float, level: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each window [i, j] of sizes bends down, and up: two boolean arrays (n, n)."""
    from scipy.special import stdtrit

    n = len(u)
    first, last = np.triu_indices(n, 3)
    down, up = np.zeros((n, n), dtype=bool), np.zeros((n, n), dtype=bool)
    if not len(first):
        return down, up
    place = np.arange(n)
    inside = ((place >= first[:, None]) & (place <= last[:, None])).astype(float)  # (windows, n)
    low, high = u[first], u[last]
    v = (2 * u - (low + high)[:, None]) / (high - low)[:, None]  # each window from -1 to 1
    design = np.stack([np.ones_like(v), v, v * v], axis=1) * inside[:, None]
    gram = design @ design.transpose(0, 2, 1)
    inverse = np.linalg.inv(gram)
    weight_of = (inverse @ design)[:, 2]  # the quadratic term as a sum over sizes
    bend = weight_of @ mean
    if degrees > 0:
        error = np.sqrt(weight_of**2 @ sd**2)
        limit = np.full(len(first), stdtrit(degrees, 0.5 + 0.5 * level))
    else:
        values = design * mean
        coefficients = np.einsum("wij,wjn->wi", inverse, values)
        fitted = np.einsum("wi,win->wn", coefficients, design)
        free = inside.sum(axis=1) - 3
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = (inside * (mean - fitted) ** 2).sum(axis=1) / free
        error = np.sqrt(variance * (weight_of**2).sum(axis=1))
        # a window of four sizes leaves one degree of freedom, which decides nothing
        limit = np.where(free >= 2, stdtrit(np.maximum(free, 1), 0.5 + 0.5 * level), np.inf)
    # v^2 leaves its own straight line by a half at most
    with np.errstate(invalid="ignore"):
        room = np.nan_to_num(limit * error, nan=np.inf)
    down[first, last] = bend < -2 * tolerance - room
    up[first, last] = bend > 2 * tolerance + room
    return down, up


def _checked(sizes: ArrayLike, errors: ArrayLike) -> tuple[Array, Array]:
    """Sizes (n,) and log errors (n, seeds)."""
    at, values = np.asarray(sizes, dtype=float), np.asarray(errors, dtype=float)
    values = values[:, None] if values.ndim == 1 else values
    if at.ndim != 1 or values.ndim != 2 or len(values) != len(at) or not len(at):
        raise ValueError(
            f"a learning curve is sizes (n,) and errors (n,) or (n, seeds); the shapes are {at.shape} and "
            f"{np.shape(errors)}"
        )
    if not (np.isfinite(at) & (at > 0)).all() or not (np.diff(at) > 0).all():
        raise ValueError(f"sizes must be positive and ascend without repeating; they are {at.tolist()}")
    bad = ~(np.isnan(values) | (np.isfinite(values) & (values > 0)))
    if bad.any():
        raise ValueError(
            f"errors must be positive; at size {at[np.argwhere(bad)[0][0]]:g} one is {values[bad][0]}. No "
            "mistake in a test set is not an error of zero: give LearningCurve test_samples=, or leave it out"
        )
    if np.isnan(values).all(axis=1).any():
        raise ValueError(f"size {at[np.isnan(values).all(axis=1)][0]:g} has no error at all; leave it out")
    with np.errstate(invalid="ignore"):
        return at, np.log(values)
