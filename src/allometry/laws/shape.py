"""Does ability grow as the law says, or does it emerge? A test of curvature with its power stated.

By the task law F = log(-log pass rate) is a straight line in the logarithm of the model's size. Hu and others
(2023. arXiv:2310.03262, definition 1) call growth *emergent* where F bends downwards: the exponent rises as
models grow. The paper judges by eye; here curvature is estimated beside its noise, and "not seen" is kept
apart from "not there".

Theorems that the shapes go with: a product of steps that each obey the law makes F a log-sum-exp of lines,
convex (slower than the law); the best of several circuits makes it their minimum, concave.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from allometry.laws.uncertainty import Interval

__all__ = ["Shape", "shape"]

Array = NDArray[np.float64]
Kind = Literal["scaling", "emerging", "sub-scaling", "undecidable"]

FEWEST_SIZES = 5  # with fewer, what bends cannot be told from what scatters
STRAIGHT = 0.5  # an exponent that changes by less than half of itself over the sizes measured: a line


@dataclass(frozen=True)
class Shape:
    """What shape a curve of pass rates has.

    Attributes
    ----------
    kind : {"scaling", "emerging", "sub-scaling", "undecidable"}
        *emerging*: F is concave, the exponent rises (significantly); *sub-scaling*: it falls; *scaling*: any
        change of the exponent over the sizes measured is smaller than half of it, as the interval says;
        *undecidable*: neither can be told, or there are fewer than five sizes.
    curvature : float
        q of F = a + b x + q x^2, x the natural logarithm of the size.
    interval : Interval
        Of the curvature.
    pvalue : float
        Of no curvature, two-sided; NaN where there are too few sizes.
    change : Interval
        By which share of itself the exponent changes from the smallest to the largest size.
    sizes : int
    """

    kind: Kind
    curvature: float
    interval: Interval
    pvalue: float
    change: Interval
    sizes: int

    @property
    def ci(self) -> tuple[float, float]:
        """Limits of the curvature's interval."""
        return float(self.interval.low), float(self.interval.high)

    def __str__(self) -> str:
        if self.sizes < FEWEST_SIZES:
            return f"undecidable: {self.sizes} sizes, and at least {FEWEST_SIZES} are needed"
        return (
            f"{self.kind}: curvature {self.curvature:.3g} [{self.interval.low:.3g}, "
            f"{self.interval.high:.3g}], p = {self.pvalue:.2g}; the exponent changes by "
            f"{self.change.value:+.0%} [{self.change.low:+.0%}, {self.change.high:+.0%}] over the sizes"
        )


def shape(sizes: Any, values: Any, errors: Any = None, *, level: float = 0.95) -> Shape:
    """The shape of F = log(-log pass rate) over the logarithm of size.

    The noise is what scatters about the parabola, and no less than the errors told of; the test is Student's
    with n - 3 degrees of freedom.

    Parameters
    ----------
    sizes : array (n,)
        Of each model measured; a size may come several times.
    values : array (n,)
        F.
    errors : array (n,), optional
        Standard errors of F from counting, by the delta method ``se(log p) / |log p|``.
    level : float
        Share of the intervals, and of the test.

    Raises
    ------
    ValueError
        Values that are not finite, or fewer than three sizes.

    Examples
    --------
    >>> n = 10.0 ** np.arange(4, 10)
    >>> shape(n, 3 - 0.2 * np.log(n)).kind, shape(n, 3 - 0.01 * np.log(n) ** 2).kind
    ('scaling', 'emerging')
    """
    x, f = np.log(np.asarray(sizes, dtype=float)), np.asarray(values, dtype=float)
    noise = np.zeros_like(f) if errors is None else np.asarray(errors, dtype=float)
    if not x.shape == f.shape == noise.shape or x.ndim != 1 or not np.isfinite([*x, *f, *noise]).all():
        raise ValueError("sizes, values and errors must be finite sequences of one length; sizes positive")
    basis = bends(x)
    slope = -np.polynomial.polynomial.polyfit(x - x.mean(), f, 1)[1]
    return judge(x, basis.T @ f, (basis.T**2) @ noise**2, float(slope), level=level)


def bends(x: Array) -> Array:
    """Orthonormal directions ``(n, n - 2)`` that no line in x reaches, the parabola's first.

    Raises
    ------
    ValueError
        There are fewer than three distinct values.
    """
    count = len(np.unique(np.round(x, 9)))
    if count < 3:
        raise ValueError(f"a bend needs at least three sizes; there are {count}")
    z = (x - x.mean()) / np.ptp(x)
    columns = np.concatenate([np.stack([np.ones_like(z), z, z**2], axis=1), np.eye(len(z))], axis=1)
    directions = np.linalg.qr(columns)[0][:, 2:]
    directions[:, 0] *= np.sign(directions[:, 0] @ z**2)
    return directions


def mean_squares(found: Array, variances: Array) -> tuple[float, float, float]:
    """Mean square of coordinates, what counting alone would make of it, and the degrees of freedom of both.

    What counting blurs weighs less: each coordinate by the inverse square of its variance, of counting and of
    the models' scatter together; the latter is found on the way.
    """
    scatter = float(variances.min())
    for _ in range(5):
        weight = 1.0 / np.maximum(variances + scatter, 1e-300) ** 2 if scatter > 0 else np.ones_like(found)
        weight = weight / weight.sum()
        square, counting = float(weight @ found**2), float(weight @ variances)
        scatter = max(square - counting, float(variances.min()))
    return square, counting, float(1.0 / (weight**2).sum())


def judge(x: Array, found: Array, variances: Array, slope: float, *, level: float = 0.95) -> Shape:
    """The shape from coordinates along `bends` and their variances from counting, both ``(n - 2,)``.

    The first coordinate is the curvature's; the others, beyond their variances, tell how much models scatter.
    """
    from scipy.stats import t

    span, sizes = float(np.ptp(x)), len(np.unique(np.round(x, 9)))
    scale = float(bends(x)[:, 0] @ (x - x.mean()) ** 2)  # the coordinate of x^2 itself
    curvature = float(found[0]) / scale
    if sizes < FEWEST_SIZES:
        nothing = Interval(curvature, -np.inf, np.inf, level)
        change = Interval(-2 * curvature * span / slope if slope else np.nan, -np.inf, np.inf, level)
        return Shape("undecidable", curvature, nothing, float("nan"), change, sizes)
    square, counting, degrees = mean_squares(found[1:], variances[1:])
    error = np.sqrt(variances[0] + max(square - counting, 0.0)) / scale
    # rounding is noise too: a curve without any is known to some twelve digits
    error = max(error, 1e-12 * abs(slope) / span)
    half = float(t.ppf(0.5 + level / 2, degrees)) * error
    interval = Interval(curvature, curvature - half, curvature + half, level)
    pvalue = float(2 * t.sf(abs(curvature) / error, degrees))
    change = Interval(np.nan, -np.inf, np.inf, level)
    if slope:
        share = -2 * span / slope
        low, high = sorted((share * interval.low, share * interval.high))
        change = Interval(share * curvature, low, high, level)
    kind: Kind = "undecidable"
    if pvalue < 1 - level:
        kind = "emerging" if curvature < 0 else "sub-scaling"
    elif max(-change.low, change.high) < STRAIGHT:
        kind = "scaling"
    return Shape(kind, curvature, interval, pvalue, change, sizes)
