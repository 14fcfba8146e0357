"""Which of two number formats rounds a tensor with outliers better, by closed form.

Wu, Yao and He, 2023 (arXiv:2307.09782) find 8-bit floating point better than 8-bit integers where activations
have outliers. Behind it stands one ratio: how far the largest value lies from the bulk.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from allometry.laws.forms import Array

__all__ = ["bulk_error", "format_crossover"]


def format_crossover(levels: Any, other: Any, *, largest: float = 1e3) -> float:
    """The ratio of largest value to standard deviation at which two formats round a bulk equally well.

    A scale takes the largest value of a tensor to the largest number of the format. Integers spend their
    steps evenly, so that one outlier coarsens the steps of all; floating-point numbers do not. Below the
    ratio the format that is better on data without outliers wins, above it the other.

    Parameters
    ----------
    levels, other : arrays
        All numbers of two formats, such as ``FloatFormat(4, 3).grid()`` and ``IntFormat(8).grid()``.
    largest : float
        Up to which ratio it is looked for.

    Returns
    -------
    float
        The smallest ratio above 1.5 at which their squared errors on a normal bulk are equal; NaN where one
        format is better until either loses half of the bulk's variance.

    Examples
    --------
    >>> four_bits = np.arange(-7, 8), [-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6]
    >>> round(format_crossover(*four_bits), 2)
    2.6
    """
    from scipy.optimize import brentq

    first, second = (np.unique(np.asarray(one, dtype=float)) for one in (levels, other))

    def difference(log_ratio: float) -> float:
        ratio = np.exp(log_ratio)
        return float(np.log(bulk_error(first, ratio) / bulk_error(second, ratio)))

    grid = np.linspace(np.log(1.5), np.log(largest), 160)
    # once the bulk is rounded to zero by both, there is nothing left to compare
    seen = [one for one in grid if max(bulk_error(each, np.exp(one)) for each in (first, second)) < 0.5]
    turns = np.flatnonzero(np.diff(np.sign([difference(one) for one in seen])) != 0)
    if not len(turns):
        return float("nan")
    return float(np.exp(brentq(difference, seen[turns[0]], seen[turns[0] + 1], xtol=1e-10)))


def bulk_error(levels: Array, ratio: float) -> float:
    """Mean squared error of rounding a normal bulk of variance one, cut off at ± ``ratio``, to which the
    largest of ``levels`` is scaled.

    In closed form, cell by cell: the integral of (x - q)^2 over the normal density.

    >>> round(bulk_error(np.arange(-127.0, 128.0), 4.0) * 12 * (127 / 4) ** 2, 2)
    1.0
    """
    from scipy.special import ndtr

    numbers = levels * (ratio / np.abs(levels).max())
    edges = np.concatenate([[-ratio], 0.5 * (numbers[1:] + numbers[:-1]), [ratio]])
    density = np.exp(-0.5 * edges**2) / np.sqrt(2 * np.pi)
    mass, first = np.diff(ndtr(edges)), -np.diff(density)
    second = mass - np.diff(edges * density)
    return float((second - 2 * numbers * first + numbers**2 * mass).sum() / mass.sum())
