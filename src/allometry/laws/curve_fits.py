"""Power laws of thousands of learning curves at once, each with sizes of its own.

The law of Hestness et al., 2017 (arXiv:1712.00409): error = A m^-alpha for the best over model sizes, and
error = E + A m^-alpha for one model of fixed size.  A straight line on log axes is closed form; with a floor,
floor and coefficient are closed form given the exponent (variable projection: Golub and Pereyra, 1973), so
that one dimension is left, bracketed on a grid and closed in on.

`LearningCurve` fits one curve with care for regions and noise; this is for surveys of many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from allometry.laws.refit import bracketed_roots

if TYPE_CHECKING:
    import pandas

__all__ = ["CurveFits", "fit_curves"]

Array = NDArray[np.float64]
Rows = NDArray[np.intp]
_EXPONENTS = np.geomspace(1e-3, 2.0, 32)  # the bounds of `PowerLawOffset`


@dataclass(frozen=True)
class CurveFits:
    """Laws of many curves; NaN where a curve has too few points.

    Attributes
    ----------
    alpha, coefficient, floor : array (curves,)
        Of ``floor + coefficient m^-alpha``.
    alpha_error : array (curves,)
        Standard error from the residuals, points independent.
    r_squared : array (curves,)
        Of log errors.
    points : int array (curves,)
    """

    alpha: Array
    coefficient: Array
    floor: Array
    alpha_error: Array
    r_squared: Array
    points: NDArray[np.intp]

    @property
    def table(self) -> pandas.DataFrame:
        """One row a curve."""
        import pandas

        return pandas.DataFrame(vars(self))


def fit_curves(
    sizes: ArrayLike, errors: ArrayLike, *, form: str = "power", weights: ArrayLike | None = None
) -> CurveFits:
    """Fit one law to each of many learning curves by least squares.

    Parameters
    ----------
    sizes : array (n,) or (curves, n)
    errors : array (curves, n)
        NaN where a curve has no point.
    form : {"power", "power-offset"}
        The first minimises squared log residuals and may rise; the second squared *relative* residuals
        ``1 - f / y`` with exponents from 0.001 to 2 and a floor that is not negative.
    weights : array (n,) or (curves, n), optional

    Returns
    -------
    CurveFits

    Raises
    ------
    ValueError
        Shapes do not match, or a size or an error is not positive.

    Examples
    --------
    >>> m = np.array([100.0, 200, 400, 800, 1600])
    >>> fit_curves(m, [5 * m**-0.5, 2 * m**-0.25]).alpha.round(6).tolist()
    [0.5, 0.25]
    """
    y = np.asarray(errors, dtype=float)
    if y.ndim != 2:
        raise ValueError(f"errors must have shape (curves, sizes); their shape is {y.shape}")
    if form not in ("power", "power-offset"):
        raise ValueError(f"form must be 'power' or 'power-offset', not {form!r}")
    try:
        x = np.broadcast_to(np.asarray(sizes, dtype=float), y.shape)
        given = np.ones_like(y) if weights is None else np.broadcast_to(np.asarray(weights, float), y.shape)
    except ValueError:
        raise ValueError(
            f"sizes and weights must have shape {y.shape[1:]} or {y.shape} to match the errors; they have "
            f"{np.shape(sizes)} and {np.shape([] if weights is None else weights)}"
        ) from None
    present = ~np.isnan(y)
    for name, values in (("sizes", x), ("errors", y)):
        bad = present & ~(np.isfinite(values) & (values > 0))
        if bad.any():
            raise ValueError(f"{name} must be positive; curve {np.argwhere(bad)[0][0]} has {values[bad][0]}")
    if not (np.isfinite(given) & (given >= 0)).all():
        raise ValueError("weights must be finite and not negative")
    w = np.where(present, given, 0.0)
    log_x = np.log(np.where(present, x, 1.0))
    log_y = np.log(np.where(present, y, 1.0))
    points = (w > 0).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = w.sum(axis=1)
        centre_x, centre_y = (w * log_x).sum(axis=1) / total, (w * log_y).sum(axis=1) / total
        u, v = log_x - centre_x[:, None], log_y - centre_y[:, None]
        spread = (w * u * u).sum(axis=1)
        parameters = 2 if form == "power" else 3
        usable = (points >= parameters) & (spread > 1e-12 * total)
        alpha, level, floor = -(w * u * v).sum(axis=1) / spread, np.zeros(len(y)), np.zeros(len(y))
        if form == "power-offset" and usable.any():
            floor[usable], level[usable], alpha[usable] = _with_floor(u[usable], v[usable], w[usable])
        term = np.exp(level[:, None] - alpha[:, None] * u)
        residual = v - np.log(floor[:, None] + term)
        squares = (w * residual**2).sum(axis=1)
        r_squared = 1.0 - squares / (w * v * v).sum(axis=1)
        variance = squares / (points - parameters)
        error = np.sqrt(variance * _inverse_information(u, w, floor, term))
        nothing = np.where(usable, 0.0, np.nan)
        return CurveFits(
            alpha + nothing, np.exp(centre_y + level + alpha * centre_x) + nothing,
            floor * np.exp(centre_y) + nothing, np.where(points > parameters, error, np.nan) + nothing,
            r_squared + nothing, points,
        )  # fmt: skip


def _inverse_information(u: Array, w: Array, floor: Array, term: Array) -> Array:
    """Diagonal entry of the exponent in the inverse of J'WJ; a floor of zero is held there."""
    total = floor[:, None] + term
    by = np.stack([term / total, -u * term / total, (floor > 0)[:, None] / total], axis=1)
    gram = (by * w[:, None]) @ by.transpose(0, 2, 1)
    gram[:, 2, 2] += floor == 0
    ridge = 1e-14 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(3)
    usable = np.isfinite(gram).all(axis=(1, 2)) & (np.trace(gram, axis1=1, axis2=2) > 0)
    found = np.full(len(u), np.nan)
    found[usable] = np.linalg.inv((gram + ridge)[usable])[:, 1, 1]
    return found


def _with_floor(u: Array, v: Array, w: Array) -> tuple[Array, Array, Array]:
    """Floor, log coefficient and exponent of every curve (n points each, centred), by relative errors."""
    inverse = np.exp(-v)
    s0, t0 = (w * inverse * inverse).sum(axis=1), (w * inverse).sum(axis=1)

    def given(alpha: Array, rows: Rows | slice) -> tuple[Array, Array, Array, Array]:
        scaled = np.exp(-alpha[:, None] * u[rows]) * inverse[rows]
        weighted = w[rows] * scaled
        s1 = (weighted * inverse[rows]).sum(axis=1)
        s2, t1 = (weighted * scaled).sum(axis=1), weighted.sum(axis=1)
        zero, one = s0[rows], t0[rows]
        determinant = zero * s2 - s1 * s1
        floor = (one * s2 - t1 * s1) / determinant
        size = np.where(floor < 0, t1 / s2, (t1 * zero - one * s1) / determinant)
        rising = size < 0  # the best law of this form is then its floor
        floor = np.where(rising, one / zero, np.maximum(floor, 0.0))
        size = np.maximum(size, 0.0)
        left = floor * (floor * zero + 2 * size * s1 - 2 * one) + size * (size * s2 - 2 * t1)
        residual = 1.0 - floor[:, None] * inverse[rows] - size[:, None] * scaled
        # by the envelope theorem the derivative of what is left is that at fixed coefficients
        return floor, size, left, size * (u[rows] * weighted * residual).sum(axis=1)

    everything = slice(None)
    left = np.stack([given(np.full(len(u), alpha), everything)[2] for alpha in _EXPONENTS])
    best = left.argmin(axis=0)
    low = _EXPONENTS[np.maximum(best - 1, 0)]
    high = _EXPONENTS[np.minimum(best + 1, len(_EXPONENTS) - 1)]
    alpha = bracketed_roots(lambda value, rows: given(value, rows)[3], low, high)
    floor, size, _, _ = given(alpha, everything)
    return floor, np.log(size), alpha
