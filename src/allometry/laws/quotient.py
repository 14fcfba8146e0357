"""The ratio of two estimates, such as of two slopes, with Fieller's interval.

Fieller, 1954. A ratio's interval is found by asking for which values ``numerator - value * denominator`` is
not told from zero, which is a linear question with Student's answer; percentiles of a ratio fail where the
denominator may be zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from allometry.laws.fieller import fieller
from allometry.laws.uncertainty import Interval

__all__ = ["paired_ratio", "ratio_interval"]


def ratio_interval(
    numerator: float, denominator: float, covariance: ArrayLike, degrees: float, level: float = 0.95
) -> Interval:
    """Interval of a ratio of two estimates.

    Parameters
    ----------
    numerator, denominator : float
    covariance : array (2, 2)
        Of both, in that order.
    degrees : float
        Degrees of freedom of the covariance.
    level : float

    Returns
    -------
    Interval
        With infinite ends where the set is no interval: the denominator is then not told from zero.

    Examples
    --------
    >>> told = ratio_interval(1.0, 2.0, [[0.01, 0.0], [0.0, 0.0]], degrees=1e9)
    >>> round(told.value, 3), round(told.low, 3), round(told.high, 3)
    (0.5, 0.402, 0.598)
    """
    from scipy.special import stdtrit

    if not 0 < level < 1:
        raise ValueError(f"level is a share between 0 and 1, not {level}")
    turned = np.asarray(covariance, dtype=float) * [[1.0, -1.0], [-1.0, 1.0]]
    told = fieller(numerator, -denominator, turned, stdtrit(degrees, 0.5 + level / 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(np.float64(numerator) / np.float64(denominator))
    if told.kind not in ("bounded", "half-line"):
        return Interval(value, -np.inf, np.inf, level)
    return Interval(value, told.low, told.high, level)


def paired_ratio(numerator: Any, denominator: Any, level: float = 0.95) -> Interval:
    """Ratio of two means of paired observations ``(n,)``, such as a slope for each seed.

    Raises
    ------
    ValueError
        Fewer than two pairs, or values that are not finite.

    Examples
    --------
    >>> told = paired_ratio([1.0, 1.2, 1.1], [2.0, 2.4, 2.2])  # the same noise in both
    >>> round(told.value, 6), round(told.low, 6), round(told.high, 6)
    (0.5, 0.5, 0.5)
    """
    both = np.stack([np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)])
    if both.ndim != 2 or both.shape[1] < 2 or not np.isfinite(both).all():
        raise ValueError(f"a ratio of means needs two finite pairs or more; given were {both.tolist()}")
    n = both.shape[1]
    top, bottom = both.mean(axis=1)
    return ratio_interval(float(top), float(bottom), np.cov(both) / n, n - 1, level)
