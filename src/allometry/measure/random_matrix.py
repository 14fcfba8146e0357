"""Where noise puts the eigenvalues of a matrix: edges, outliers and bulks in closed form.

An eigenvalue that stands out of the noise is pushed outward by it; one that does not drowns in the bulk
(Baik, Ben Arous and Péché, 2005; Benaych-Georges and Nadakuditi, 2011). For the Hessian of a batch: Granziol,
Zohren and Roberts, 2020, arXiv:2006.09092.

- *Symmetric noise* with entries of variance ``v / P`` in ``P`` dimensions: the bulk is Wigner's semicircle on
  ``±2 √v``.
- *Positive noise*, a covariance from ``n`` samples in ``P`` dimensions with ``ratio = P / n``: the bulk is
  that of Marchenko and Pastur, from ``noise (1 - √ratio)²`` to ``noise (1 + √ratio)²``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = [
    "marchenko_pastur_density", "semicircle_density", "wigner_outlier", "wishart_outlier",
]  # fmt: skip

Array = np.ndarray[Any, Any]


def wigner_outlier(eigenvalue: Any, variance: Any) -> Array:
    """Where symmetric noise puts an eigenvalue: ``λ + v / λ`` above the threshold ``√v``, else the edge.

    Parameters
    ----------
    eigenvalue : array_like
        Of the matrix without noise; zero counts as positive.
    variance : array_like
        ``v``, the variance of an entry times the dimension.

    Returns
    -------
    ndarray

    Raises
    ------
    ValueError
        A negative variance.

    Examples
    --------
    >>> wigner_outlier([6.0, 0.5, -3.0], 1.0).round(4).tolist()
    [6.1667, 2.0, -3.3333]
    """
    value, v = np.asarray(eigenvalue, float), np.asarray(variance, float)
    if np.any(v < 0):
        raise ValueError(f"variance must not be negative, got {float(v.min())}")
    stands = np.square(value) > v
    pushed = value + v / np.where(stands, value, 1.0)
    return np.where(stands, pushed, np.where(value < 0, -2.0, 2.0) * np.sqrt(v))


def wishart_outlier(spike: Any, noise: Any, ratio: Any) -> Array:
    """Where sampling puts an eigenvalue ``spike + noise`` of a covariance: outside, or at the bulk's edge.

    Parameters
    ----------
    spike : array_like
        By how much the eigenvalue exceeds the others, which are all ``noise``; not negative.
    noise : array_like
    ratio : array_like
        Dimensions over samples.

    Returns
    -------
    ndarray
        ``(spike + noise) (1 + ratio noise / spike)`` where spike is above ``noise √ratio``, else the edge
        ``noise (1 + √ratio)²``.

    Raises
    ------
    ValueError
        A negative number.

    Examples
    --------
    >>> wishart_outlier([4.0, 0.1], 1.0, 0.25).tolist()
    [5.3125, 2.25]
    """
    theta, level, gamma = (np.asarray(one, float) for one in (spike, noise, ratio))
    for name, one in (("spike", theta), ("noise", level), ("ratio", gamma)):
        if np.any(one < 0):
            raise ValueError(f"{name} must not be negative, got {float(one.min())}")
    stands = theta > level * np.sqrt(gamma)
    pushed = (theta + level) * (1.0 + gamma * level / np.where(stands, theta, 1.0))
    return np.where(stands, pushed, level * np.square(1.0 + np.sqrt(gamma)))


def semicircle_density(x: Any, variance: float) -> Array:
    """Wigner's semicircle: density of the eigenvalues of symmetric noise alone.

    >>> x = np.linspace(-3, 3, 60_001)
    >>> bool(abs(np.trapezoid(semicircle_density(x, 2.0), x) - 1) < 1e-6)
    True
    """
    if not variance > 0:
        raise ValueError(f"variance must be positive, not {variance}")
    inside = np.clip(4.0 * variance - np.square(np.asarray(x, float)), 0.0, None)
    return np.sqrt(inside) / (2.0 * np.pi * variance)


def marchenko_pastur_density(x: Any, noise: float, ratio: float) -> Array:
    """Marchenko and Pastur's law: density of the eigenvalues of a covariance of white noise.

    With ``ratio`` above 1 the rest of the mass, ``1 - 1 / ratio``, lies at zero and is not told.

    >>> x = np.linspace(0.0, 3.0, 60_001)[1:]
    >>> bool(abs(np.trapezoid(marchenko_pastur_density(x, 1.0, 0.25), x) - 1) < 1e-4)
    True
    """
    for name, one in (("noise", noise), ("ratio", ratio)):
        if not one > 0:
            raise ValueError(f"{name} must be positive, not {one}")
    at = np.asarray(x, float)
    low, high = noise * (1 - np.sqrt(ratio)) ** 2, noise * (1 + np.sqrt(ratio)) ** 2
    inside = np.clip((high - at) * (at - low), 0.0, None)
    return np.sqrt(inside) / (2.0 * np.pi * noise * ratio * np.where(inside > 0, at, 1.0))
