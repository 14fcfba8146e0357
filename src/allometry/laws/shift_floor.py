"""Power laws above floors, one a collection, whose resamples share the luck of their runs.

``L = E + A x^-alpha`` for each collection, by least squares of relative errors. A resample gives every run
one random weight and multiplies the run's residuals on all collections by it (the wild bootstrap by cluster:
Cameron, Gelbach and Miller, 2008; the six weights of Webb, 2014, of which few runs have enough patterns), so
that what a run's luck does to one collection it does to the others too. A scale drawn from the degrees of
freedom that are left widens the draws as Student's t does. All refits are one batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from allometry.laws.forms import Array, PowerLawOffset
from allometry.laws.refit import refit

__all__ = ["Floors", "fit_floors"]

_WEIGHTS = np.sqrt(np.array([0.5, 1.0, 1.5]))


@dataclass(frozen=True)
class Floors:
    """Laws of c collections: coordinates ``theta (c, 3)`` (E, log A, alpha) in log x about ``centre (c,)``,
    their resamples ``draws (B, c, 3)``, and the rows' variance of log losses ``noise (c,)`` with its
    ``degrees (c,)``."""

    theta: Array
    draws: Array
    centre: Array
    noise: Array
    degrees: Array

    def log_loss(self, log_x: Array, index: NDArray[np.intp], theta: Array | None = None) -> Array:
        """Log losses ``(..., m)`` of collections ``index (m,)`` at log scales, of ``theta (..., c, 3)``."""
        chosen = (self.theta if theta is None else theta)[..., index, :]
        u = log_x - self.centre[index]
        with np.errstate(over="ignore", divide="ignore"):
            return np.asarray(np.log(chosen[..., 0] + np.exp(chosen[..., 1] - chosen[..., 2] * u)))


def fit_floors(
    log_x: Array,
    log_y: Array,
    group: NDArray[np.intp],
    run: NDArray[np.intp],
    resamples: int,
    generator: np.random.Generator,
) -> Floors:
    """Fit rows ``(n,)`` of collections ``group`` and runs ``run``.

    Examples
    --------
    >>> u = np.log([1e3, 1e4, 1e5, 1e6])
    >>> rows = np.arange(4)
    >>> told = fit_floors(u, np.log(2 + 30 * np.exp(-0.5 * u)), 0 * rows, rows, 0, np.random.default_rng(0))
    >>> told.theta[0, [0, 2]].round(6).tolist()
    [2.0, 0.5]
    """
    count, runs = int(group.max()) + 1, int(run.max()) + 1
    form = PowerLawOffset()
    # one weight a run, whatever the collection, and one scale a resample
    weight = generator.choice(np.r_[_WEIGHTS, -_WEIGHTS], size=(resamples, runs))
    theta, draws = np.empty((count, 3)), np.empty((resamples, count, 3))
    centre, noise, degrees = np.empty(count), np.empty(count), np.empty(count)
    for index in range(count):  # collections, a handful
        mine = group == index
        centre[index], unit = log_x[mine].mean(), log_y[mine].mean()
        u, y = log_x[mine] - centre[index], log_y[mine] - unit
        theta[index] = refit(form, u, y[None])[0]
        told = np.log(theta[index, 0] + np.exp(theta[index, 1] - theta[index, 2] * u))
        left = y - told
        degrees[index] = max(min(len(u), len(np.unique(run[mine]))) - 3.0, 1.0)
        noise[index] = (left**2).sum() / max(len(u) - 3, 1)
        if resamples:
            # residuals are smaller the more a point pulls the law: given back as by the jackknife (HC3)
            slopes = np.linalg.qr(form.jacobian(theta[index][None], u[:, None])[1][0].T)[0]
            full = left / np.maximum(1.0 - (slopes**2).sum(axis=1), 0.1)
            scale = np.sqrt(degrees[index] / generator.chisquare(degrees[index], size=(resamples, 1)))
            draws[:, index] = refit(form, u, told + scale * full * weight[:, run[mine]], 1e-4)
        for values in (theta[index], draws[:, index].T):
            values[0] *= np.exp(unit)
            values[1] += unit
    return Floors(theta, draws, centre, noise, degrees)
