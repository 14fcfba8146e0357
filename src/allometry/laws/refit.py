"""Thousands of refits of one law to losses at the same scales, all at once.

A joint bootstrap of two arms needs the same law fitted to thousands of resampled curves of a handful of
points.  `allometry.laws.fit` finds one optimum with care; here the many are found with speed:

- ``power``: a straight line on log axes, so one matrix product.
- ``power-offset``: variable projection (Golub and Pereyra, 1973).  Given the exponent, floor and coefficient
  solve a 2 x 2 least-squares problem of relative errors in closed form, the floor kept from falling below
  zero; what is left is one dimension, bracketed on a grid that all resamples share and closed in on by the
  exact derivative.
- other forms of one input: the batched Newton solver, started from the optimum of the first curve.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from allometry.laws.forms import Form, PowerLaw, PowerLawOffset, SumOfPowers

__all__ = ["bracketed_roots", "evaluate_each", "refit"]

Array = NDArray[np.float64]
Rows = NDArray[np.intp]
_LOWEST, _HIGHEST = 1e-3, 2.0  # exponents, as in `PowerLawOffset`
_GRID = np.geomspace(_LOWEST, _HIGHEST, 24)
_BLOCK = 48


def refit(form: Form, u: Array, log_y: Array, tolerance: float = 1e-9) -> Array:
    """Coordinates of the least-squares law of every curve.

    Parameters
    ----------
    form : Form
        Of one input.
    u : array (m,)
        Log scales, counted from their mean (the bounds of a form are for such inputs).
    log_y : array (curves, m)
        Log losses, likewise of order one.
    tolerance : float
        Bracket of the exponent of ``power-offset`` from which a last chord is drawn (see `bracketed_roots`);
        draws of a bootstrap do with 1e-4.

    Returns
    -------
    array (curves, p)
        Least squares of log residuals, for ``power-offset`` of relative residuals ``(f - y) / y``.  A
        ``power`` law may rise; one with a floor may not.

    Raises
    ------
    ValueError
        The form has more than one input, or more parameters than there are scales.
    """
    if len(form.inputs) != 1:
        raise ValueError(f"curves have one scale, but the {form.name} form has inputs {form.inputs}")
    if len(form.parameters) > len(u):
        raise ValueError(
            f"the {form.name} form has {len(form.parameters)} parameters, but only {len(u)} scales were "
            "measured in full; use 'power' or measure more"
        )
    if isinstance(form, PowerLaw):
        design = np.stack([np.ones_like(u), -u], axis=1)
        return log_y @ np.linalg.pinv(design).T
    if isinstance(form, PowerLawOffset):
        return _refit_offset(u, log_y, tolerance)
    return _refit_any(form, u, log_y)


def _refit_offset(u: Array, log_y: Array, tolerance: float) -> Array:
    inverse = np.exp(-np.ascontiguousarray(log_y.T))  # (m, b): sums over scales then run along the batch
    square = inverse * inverse
    s0, t0 = square.sum(axis=0), inverse.sum(axis=0)
    g = np.exp(-_GRID[:, None] * u)  # (grid, m)
    s1, s2, t1 = g @ square, (g * g) @ square, g @ inverse
    floor, slope = _coefficients(s0, t0, s1, s2, t1)
    # what is left of sum (1 - f / y)^2, up to a constant of the curve
    left = floor * (floor * s0 + 2 * slope * s1 - 2 * t0) + slope * (slope * s2 - 2 * t1)
    best = left.argmin(axis=0)

    def solve(alpha: Array, rows: Rows) -> tuple[Array, Array, Array]:
        here = inverse if len(rows) == len(s0) else inverse[:, rows]
        scaled = np.exp(-u[:, None] * alpha)
        scaled *= here
        s1, s2, t1 = (scaled * here).sum(axis=0), (scaled * scaled).sum(axis=0), scaled.sum(axis=0)
        floor, slope = _coefficients(s0[rows], t0[rows], s1, s2, t1)
        residual = 1.0 - floor * here - slope * scaled
        residual *= scaled
        # by the envelope theorem the derivative of what is left is that at fixed coefficients
        return floor, slope, slope * (u @ residual)

    low = _GRID[np.maximum(best - 1, 0)]
    high = _GRID[np.minimum(best + 1, len(_GRID) - 1)]
    alpha = bracketed_roots(lambda value, rows: solve(value, rows)[2], low, high, tolerance)
    floor, slope, _ = solve(alpha, np.arange(len(alpha)))
    with np.errstate(divide="ignore"):
        return np.stack([floor, np.log(slope), alpha], axis=1)


def _coefficients(s0: Array, t0: Array, s1: Array, s2: Array, t1: Array) -> tuple[Array, Array]:
    """Floor and coefficient, neither negative, from the sums of 1/y^2, 1/y, g/y^2, g^2/y^2 and g/y."""
    determinant = s0 * s2 - s1 * s1  # positive, since the scales differ
    floor = (t0 * s2 - t1 * s1) / determinant
    slope = np.where(floor < 0, t1 / s2, (t1 * s0 - t0 * s1) / determinant)
    flat = slope < 0  # a loss that rises: the best law of this form is its floor
    return np.where(flat, t0 / s0, np.maximum(floor, 0.0)), np.maximum(slope, 0.0)


def _refit_any(form: Form, u: Array, log_y: Array) -> Array:
    from allometry.laws.fit import fit
    from allometry.laws.solver import Problem, solve

    first = fit(form, np.exp(u), np.exp(log_y[0]), loss="squared", resamples=0)
    lower, upper = form.bounds()
    problem = Problem(form, u[:, None], log_y, np.ones_like(log_y), lower, upper, loss="squared")
    start = np.repeat(np.asarray(first.theta)[None], len(log_y), axis=0)
    return solve(problem, start, np.arange(len(log_y))).theta


def evaluate_each(form: Form, theta: Array, u: Array) -> Array:
    """Log prediction (n,) of row i of ``theta`` (n, p) at abscissa ``u[i]``."""
    if isinstance(form, SumOfPowers) and len(form.terms) == 1:
        i, j, _ = form.terms[0]
        log_term = theta[:, i] - theta[:, j] * u
        return log_term if form.floor is None else np.log(theta[:, form.floor] + np.exp(log_term))
    out = np.empty(len(u))
    for begin in range(0, len(u), _BLOCK):  # forms share their inputs among rows: the diagonal of a block
        part = slice(begin, begin + _BLOCK)
        out[part] = np.diagonal(form.log_prediction(theta[part], u[part, None]))
    return out


def bracketed_roots(
    function: Callable[[Array, Rows], Array], low: Array, high: Array, tolerance: float = 1e-9
) -> Array:
    """Zeros of many functions at once, each between its own ``low`` and ``high`` (n,).

    Chandrupatla's method (1997): inverse quadratic interpolation where three points say that it can be
    trusted, else bisection, until the bracket is shorter than ``tolerance``; a last chord across it then
    leaves an error of about its square.  Where the signs at the ends are equal, the end with the smaller
    magnitude comes back.

    Parameters
    ----------
    function : callable
        ``function(x, rows)`` gives the values (k,) of the functions ``rows`` (k,) at their points ``x`` (k,).
    low, high : array (n,)
    tolerance : float
        Length of a bracket that will do.
    """
    rows = np.arange(len(low))
    f_low, f_high = function(low, rows), function(high, rows)
    root = np.where(np.abs(f_low) <= np.abs(f_high), low, high)
    alive = f_low * f_high < 0
    rows = rows[alive]
    low, high, f_low, f_high = low[alive], high[alive], f_low[alive], f_high[alive]
    # latest point a, its partner b across the zero, the point c before, their values, and the next step
    state = np.stack([high, low, high, f_high, f_low, f_high, np.full_like(low, 0.5)])
    while len(rows):
        a, b, _, f_a, f_b, _, share = state
        x = a + share * (b - a)
        f = function(x, rows)
        same = (f > 0) == (f_a > 0)
        b, f_b, c, f_c = (
            np.where(same, b, a), np.where(same, f_b, f_a), np.where(same, a, b), np.where(same, f_a, f_b),
        )  # fmt: skip
        width = np.abs(x - b)
        done = (width <= tolerance) | (f == 0)
        if done.any():
            root[rows[done]] = (x - f * (x - b) / (f - f_b))[done]
            keep = ~done
            rows, x, b, c, f, f_b, f_c = (v[keep] for v in (rows, x, b, c, f, f_b, f_c))
            width = width[keep]
        with np.errstate(divide="ignore", invalid="ignore"):
            xi, phi = (x - b) / (c - b), (f - f_b) / (f_c - f_b)
            quick = f / (f_b - f) * f_c / (f_b - f_c) + (c - x) / (b - x) * f / (f_c - f) * f_b / (f_c - f_b)
            trusted = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
        # at least a third of the tolerance from both ends, so that a step close to one closes the bracket
        least = tolerance / (3 * width)
        share = np.clip(np.where(trusted, quick, 0.5), least, 1 - least)
        state = np.stack([x, b, c, f, f_b, f_c, share])
    return root
