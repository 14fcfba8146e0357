"""Shift or slope?  Whether a technique moves a learning curve or tilts it.

Joel Hestness et al., 2017 (arXiv:1712.00409), claim that better models shift the power law and leave its
exponent.  Two exponents with overlapping intervals are no evidence for that: what is needed is the interval
of their *difference*, on pairs, and a margin within which a difference is none.

The difference of two power laws is one line: log(error_b / error_a) against log size. What pairs share, their
samples and their seed, cancels in it before anything is fitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from allometry.laws.contrast import Effect, contrast, slope
from allometry.laws.curve_regions import Regions
from allometry.laws.learning_curve import LearningCurve
from allometry.laws.uncertainty import Interval

__all__ = ["SlopeComparison", "compare_slopes"]

Array = NDArray[np.float64]
_SEEDS = 3  # from here on seeds are what an interval rests on; with fewer, sizes are


@dataclass(frozen=True)
class SlopeComparison:
    """How one learning curve differs from another.

    Attributes
    ----------
    alpha : Interval
        Exponent of the second curve less that of the first: positive falls faster.
    shift : Interval
        Log ratio of errors, second over first, at the size ``at``: negative is better.
    at : float
        Geometric mean of the sizes compared, where shift and slope are estimated independently.
    sizes : array (n,)
        Common sizes at which both curves are power laws.
    margin : float
        Differences in exponent within it are none.
    verdict : str
        ``"slope"``: the exponents differ; ``"shift"``: they are equal within the margin and the level is not;
        ``"same"``: nor is there a shift to be seen; ``"undecided"``: neither difference nor equality shows.
    rests_on : str
        ``"paired seeds"``, ``"seeds"``, or ``"sizes"`` (each a pair, taken as independent).
    """

    alpha: Interval
    shift: Interval
    at: float
    sizes: Array
    margin: float
    verdict: str
    rests_on: str

    def __str__(self) -> str:
        return (
            f"{self.verdict}: exponent {self.alpha}, log ratio {self.shift} at {self.at:.3g} samples "
            f"(margin {self.margin:g}; {self.rests_on})"
        )


def compare_slopes(
    curve_a: LearningCurve, curve_b: LearningCurve, *, margin: float = 0.05, level: float = 0.9
) -> SlopeComparison:
    """Difference in exponent and level of two learning curves, with an equivalence margin.

    Parameters
    ----------
    curve_a, curve_b : LearningCurve
        Fitted or not. With three common seeds or more each pair of seeds gives one slope and Student's
        interval is theirs, which also holds where seeds differ in slope; with fewer, or none, the sizes are
        the observations. Without common seeds the curves are compared by Welch's interval.
    margin : float
        In the exponent; the default comes to a factor of two in error over a million times the data.
    level : float
        Of both intervals. An equivalence within the margin at level 0.9 is the two one-sided tests at 0.05
        of Schuirmann (1987).

    Raises
    ------
    ValueError
        Fewer than three common sizes lie in the power-law region of both.

    Examples
    --------
    >>> m = 1000 * 2.0 ** np.arange(6)
    >>> a, b = LearningCurve(m, 3 * m**-0.3), LearningCurve(m, 2 * m**-0.3)
    >>> found = compare_slopes(a, b)
    >>> found.verdict, round(found.shift.value, 3)
    ('shift', -0.405)
    """
    if not margin > 0:
        raise ValueError(f"margin must be positive, not {margin}: no interval lies within nothing")
    parts = [one.data() for one in (curve_a, curve_b)]
    sizes = _common(parts)
    u = np.log(sizes)
    logs = [np.log(part.errors[np.isin(part.sizes, sizes)]) for part in parts]
    shared = [seed for seed in parts[0].seeds if seed in set(parts[1].seeds)]
    if shared:
        columns = [[list(part.seeds).index(seed) for seed in shared] for part in parts]
        logs = [values[:, chosen] for values, chosen in zip(logs, columns, strict=True)]
    ratio = logs[1] - logs[0] if shared else np.empty((len(u), 0))
    whole = np.isfinite(ratio).all(axis=0)
    centred = u - u.mean()
    if whole.sum() >= _SEEDS:
        tilt = slope(u, ratio[:, whole], seeds=True, level=level)
        moved: Any = contrast(ratio[:, whole].mean(axis=0), np.zeros(int(whole.sum())), level=level)
        rests_on = "paired seeds"
    elif not shared and all(np.isfinite(values).all() and values.shape[1] >= _SEEDS for values in logs):
        lines = [centred @ values / (centred @ centred) for values in logs]
        tilt = contrast(lines[1], lines[0], paired=False, level=level)
        moved = contrast(logs[1].mean(axis=0), logs[0].mean(axis=0), paired=False, level=level)
        rests_on = "seeds"
    else:
        means = np.nanmean(ratio, axis=1) if shared else np.nanmean(logs[1], 1) - np.nanmean(logs[0], 1)
        tilt = slope(u, means, level=level)
        moved = _level(means, centred, level)
        rests_on = "sizes"
    alpha = Interval(-tilt.value, -tilt.high, -tilt.low, level)
    shift = Interval(moved.value, moved.low, moved.high, level)
    return SlopeComparison(
        alpha, shift, float(np.exp(u.mean())), sizes, margin, _verdict(alpha, shift, margin), rests_on
    )


def _verdict(alpha: Interval, shift: Interval, margin: float) -> str:
    if -margin <= alpha.low and alpha.high <= margin:
        return "same" if shift.low <= 0 <= shift.high else "shift"
    return "undecided" if alpha.low <= 0 <= alpha.high else "slope"


def _level(means: Array, centred: Array, level: float) -> Effect:
    """Mean of log ratios about their own line, with Student's interval."""
    from scipy.special import stdtrit

    n = len(means)
    line = centred * (centred @ means / (centred @ centred))
    residual = means - means.mean() - line
    squares = residual @ residual
    if squares <= n * (1e-15 * max(1.0, np.abs(means).max())) ** 2:  # rounding is no noise
        squares = 0.0
    half = stdtrit(n - 2, 0.5 + 0.5 * level) * np.sqrt(squares / (n - 2) / n)
    value = float(means.mean())
    return Effect(value, value - half, value + half, float("nan"), n, level)


def _common(parts: list[Any]) -> Array:
    inside = []
    for part in parts:
        found: Regions = part.regions
        inside.append(found.sizes[found.start : found.stop])
    sizes = np.intersect1d(inside[0], inside[1])
    if len(sizes) < 3:
        raise ValueError(
            f"{len(sizes)} common sizes lie in the power-law regions of both curves; a comparison of slopes "
            f"needs three (regions from {inside[0][:1]} to {inside[0][-1:]} and {inside[1][:1]} to "
            f"{inside[1][-1:]})"
        )
    return sizes
