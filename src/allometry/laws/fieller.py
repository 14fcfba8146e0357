"""Where a straight line with uncertain intercept and slope may cross zero: Fieller's set, solved exactly.

The crossing of d = p + q u is u* = -p/q, a ratio of two estimates.  Its confidence set is all u at which the
line is not told apart from zero (Fieller, 1954),

    (q^2 - t^2 V_qq) u^2 + 2 (p q - t^2 V_pq) u + (p^2 - t^2 V_pp) <= 0,

and where the slope itself is not told apart from zero it is rightly unbounded: everything outside a gap, or
the whole line.  A symmetric interval about -p/q would promise a crossing that the data do not show.

Every function takes batches: any leading dimensions are data sets of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["FiellerSet", "Line", "fieller", "line"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class FiellerSet:
    """Confidence set of the point where a line crosses zero; arrays of one shape, or scalars.

    Attributes
    ----------
    kind : str or array of str
        ``"bounded"``: ``low <= u <= high``.  ``"half-line"``: the same with an infinite end.
        ``"complement"``: everything but ``low < u < high``.  ``"whole line"``.  ``"empty"``: a line without
        noise that is parallel to zero and not at it.
    low, high : float or array
        Ends of the interval, or of the gap.
    """

    kind: Any
    low: Any
    high: Any

    def __contains__(self, u: float) -> bool:
        return bool(np.all(self.contains(u)))

    def contains(self, u: ArrayLike) -> Any:
        """Whether the set holds ``u``, element by element."""
        within = (np.asarray(u) >= self.low) & (np.asarray(u) <= self.high)
        in_gap = (np.asarray(u) > self.low) & (np.asarray(u) < self.high)
        kind = np.asarray(self.kind)
        answer = np.where(kind == "complement", ~in_gap, within & (kind != "empty"))
        return bool(answer) if answer.ndim == 0 else answer

    def pieces(self) -> tuple[tuple[float, float], ...]:
        """The set as disjoint intervals, in order (of a single set, not a batch)."""
        if self.kind == "empty":
            return ()
        if self.kind == "complement":
            return ((-np.inf, float(self.low)), (float(self.high), np.inf))
        return ((float(self.low), float(self.high)),)


def fieller(p: ArrayLike, q: ArrayLike, covariance: ArrayLike, t: ArrayLike) -> FiellerSet:
    """All u at which ``|p + q u| <= t * standard error``.

    Parameters
    ----------
    p, q : float or array (...)
        Intercept and slope.
    covariance : array (..., 2, 2)
        Of intercept and slope.
    t : float or array (...)
        Quantile, such as Student's at 0.975 for a set of 95 %.

    Returns
    -------
    FiellerSet

    Raises
    ------
    ValueError
        The covariance is not of shape (..., 2, 2), or t is negative.

    Examples
    --------
    >>> found = fieller(-1.0, 0.5, [[0.01, 0.0], [0.0, 0.0]], t=2.0)
    >>> found.kind, round(found.low, 3), round(found.high, 3)
    ('bounded', 1.6, 2.4)
    """
    spread = np.asarray(covariance, dtype=float)
    if spread.shape[-2:] != (2, 2):
        raise ValueError(f"the covariance of intercept and slope is (..., 2, 2); its shape is {spread.shape}")
    if np.any(np.asarray(t) < 0):
        raise ValueError(f"t must not be negative; it is {t!r}")
    p, q, t, v_pp, v_pq, v_qq = np.broadcast_arrays(
        *(np.asarray(value, dtype=float) for value in (p, q, t)),
        spread[..., 0, 0], spread[..., 0, 1], spread[..., 1, 1],
    )  # fmt: skip
    square = t * t
    a = q * q - square * v_qq
    b = p * q - square * v_pq
    c = p * p - square * v_pp
    # b^2 - a c with the equal terms p^2 q^2 taken out by hand: for tight data nothing else would be left.
    variance = q * q * v_pp - 2 * p * q * v_pq + p * p * v_qq  # that of p + q u at the crossing, times q^2
    gap = square * (variance - square * (v_pp * v_qq - v_pq * v_pq))
    root = np.sqrt(np.maximum(gap, 0.0))
    far = -(b + np.copysign(root, b))  # the root of larger magnitude is far / a, the other c / far
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        first = np.where(far == 0, 0.0, far / a)
        second = np.where(far == 0, 0.0, c / far)
    kind = np.full(p.shape, "bounded", dtype="<U10")
    low, high = np.minimum(first, second), np.maximum(first, second)
    kind[a < 0] = "complement"
    whole = ((a < 0) & (gap <= 0)) | ((a == 0) & (b == 0) & (c <= 0))
    kind[whole] = "whole line"
    half = (a == 0) & (b != 0)  # the slope exactly at its limit: 2 b u + c <= 0
    kind[half] = "half-line"
    with np.errstate(divide="ignore", invalid="ignore"):
        end = -c / (2 * b)
    low = np.where(whole | (half & (b > 0)), -np.inf, np.where(half, end, low))
    high = np.where(whole | (half & (b < 0)), np.inf, np.where(half, end, high))
    kind[(a == 0) & (b == 0) & (c > 0)] = "empty"
    empty = kind == "empty"
    low, high = np.where(empty, np.nan, low), np.where(empty, np.nan, high)
    if kind.ndim == 0:
        return FiellerSet(str(kind), float(low), float(high))
    return FiellerSet(kind, low, high)


@dataclass(frozen=True)
class Line:
    """Straight lines fitted by least squares, one for each data set of a batch (...).

    Attributes
    ----------
    p, q : array (...)
        Value at ``centre``, and slope.
    covariance : array (..., 2, 2)
        Of p and q; not a number without degrees of freedom.
    degrees : array (...)
        Degrees of freedom of the covariance.
    centre : array (...)
        Abscissa from which ``p`` is counted: the mean of the data's.
    lack_of_fit : array (...)
        p-value of the F test of the line against free means at each abscissa; one where it cannot be made.
    """

    p: Array
    q: Array
    covariance: Array
    degrees: Array
    centre: Array
    lack_of_fit: Array


def line(u: ArrayLike, d: ArrayLike, observed: ArrayLike | None = None) -> Line:
    """Fit d = p + q (u - centre) to runs at m abscissas with S seeds each.

    Parameters
    ----------
    u : array (m,) or (m, S)
    d : array (..., m, S)
        Values; the leading dimensions are data sets of a batch.
    observed : boolean array (m, S), optional
        Which runs count, the same for the whole batch; all by default.
    """
    from scipy.special import fdtrc

    d = np.asarray(d, dtype=float)
    m, seeds = d.shape[-2:]
    use = np.ones((m, seeds), dtype=bool) if observed is None else np.asarray(observed, dtype=bool)
    x = np.broadcast_to(np.asarray(u, dtype=float).reshape(m, -1), (m, seeds))
    x, d = x[use], d[..., use]  # (n,), (..., n)
    n = x.size
    centre = x.mean()
    x = x - centre
    spread = (x * x).sum()
    p = d.mean(axis=-1)
    q = d @ x / spread
    residual = d - p[..., None] - q[..., None] * x
    squares = (residual * residual).sum(axis=-1)
    degrees = n - 2
    # Rounding leaves residuals of some 1e-16 of the values: that is no noise.
    scale = 1e-13 * np.maximum(1.0, np.abs(d).max(axis=-1))
    squares = np.where(squares <= n * scale**2, 0.0, squares)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = squares / degrees if degrees > 0 else np.full(p.shape, np.nan)
    covariance = np.zeros((*p.shape, 2, 2))
    covariance[..., 0, 0] = variance / n
    covariance[..., 1, 1] = variance / spread
    group = np.nonzero(use)[0]
    member = (group[:, None] == np.unique(group)).astype(float)  # (n, groups)
    within = d - (d @ (member / member.sum(axis=0))) @ member.T
    pure = (within * within).sum(axis=-1)
    groups = member.shape[1]
    lack = np.ones(p.shape)
    if n > groups > 2:
        noise = np.where(pure > n * scale**2, pure, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.maximum(squares - noise, 0.0) / (groups - 2) / (noise / (n - groups))
        exact = np.where(squares > 0, 0.0, 1.0)  # runs that agree to rounding leave no doubt of a misfit
        lack = np.where(noise > 0, fdtrc(groups - 2, n - groups, ratio), exact)
    shape = p.shape
    return Line(p, q, covariance, np.full(shape, float(degrees)), np.full(shape, centre), np.asarray(lack))
