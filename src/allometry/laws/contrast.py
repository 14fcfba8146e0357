"""Is one arm better than another?  Differences, interactions, slopes and rank correlations from few seeds.

Runs are dear, so a comparison rests on three to ten of them: intervals are Student's, which are exact for
normal noise at any number; beside them stands the p-value of every sign flip or relabelling, which is exact
for any noise.  Runs with one seed are pairs, and their differences are what is tested.

The last axis of every array holds the seeds; leading axes are comparisons of their own, done at once.

Student, 1908; Welch, 1947 (unequal variances); Fisher, 1935 (permutations); Holm, 1979 (several arms);
Bonett and Wright, 2000 (intervals of rank correlations).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from allometry.laws.permutations import relabellings, sign_flips
from allometry.laws.ranks import ORDERS, all_orders, kendall_p, partial_correlation, rank_features
from allometry.laws.uncertainty import Interval

__all__ = [
    "Contrast", "Effect", "contrast", "holm", "interaction", "rank_correlation", "sign_test", "slope",
]  # fmt: skip

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Effect:
    """An estimate with its interval and p-value; floats, or arrays (...) over the leading axes.

    Attributes
    ----------
    value, low, high : float or array
        Estimate and the ends of its interval; not numbers where seeds are too few to tell.
    p : float or array
        Two-sided p-value of no effect.
    n : int or array
        What it rests on: pairs, runs or points.
    level : float
        Of the interval.
    """

    value: Any
    low: Any
    high: Any
    p: Any
    n: Any
    level: float

    @property
    def interval(self) -> Interval:
        """Value, low and high as an `Interval`."""
        return Interval(self.value, self.low, self.high, self.level)


@dataclass(frozen=True)
class Contrast(Effect):
    """A difference between arms, arm minus base.

    Attributes
    ----------
    p_exact : float or array
        p-value of all sign flips (pairs) or relabellings (unpaired); not a number where these are too many.
    verdict : str or array of str
        ``"helps"``, ``"hurts"``, ``"no difference"`` (the whole interval lies within the margin) or
        ``"undecided"``.
    """

    p_exact: Any
    verdict: Any


def contrast(
    arm: ArrayLike,
    base: ArrayLike,
    *,
    paired: bool = True,
    margin: float = 0.0,
    level: float = 0.95,
    better: str = "lower",
) -> Contrast:
    """Mean difference ``arm - base`` with Student's interval.

    Parameters
    ----------
    arm, base : array (..., S)
        One value a seed; unpaired arms may have different numbers.
    paired : bool
        Whether equal positions share a seed.
    margin : float
        In the unit of the values: differences smaller than it are no difference.
    level : float
    better : {"lower", "higher"}
        Which way is good: a loss or an error, or an accuracy.

    Raises
    ------
    ValueError
        Values are not finite (a diverged run has no average; see `sign_test`), or pairs do not match.

    Examples
    --------
    >>> found = contrast([2.90, 2.85, 2.88], [2.98, 2.95, 2.96])
    >>> found.verdict, round(found.value, 3), round(found.low, 3), found.p_exact
    ('helps', -0.087, -0.115, 0.25)
    """
    _check(margin, level, better)
    ours, theirs = _values(arm, "arm"), _values(base, "base")
    if paired:
        return _of_pairs(_subtract(ours, theirs), margin, level, better)
    n_a, n_b = ours.shape[-1], theirs.shape[-1]
    value = ours.mean(axis=-1) - theirs.mean(axis=-1)
    error, degrees = _welch((1.0, 1.0), ours, theirs)
    return _judge(value, error, degrees, n_a + n_b, relabellings(ours, theirs), margin, level, better)


def interaction(
    a1: ArrayLike,
    a0: ArrayLike,
    b1: ArrayLike,
    b0: ArrayLike,
    *,
    paired: bool = True,
    margin: float = 0.0,
    level: float = 0.95,
    better: str = "lower",
) -> Contrast:
    """How much more a change does in setting a than in setting b: ``(a1 - a0) - (b1 - b0)``.

    Parameters
    ----------
    a1, a0, b1, b0 : array (..., S)
        With the change and without, in settings a and b.
    paired, margin, level, better
        As in `contrast`; ``"helps"`` says that the change helps more in a.

    Examples
    --------
    >>> interaction([1.0, 1.2, 1.1], [2.0, 2.2, 2.1], [3.0, 3.1, 2.9], [3.0, 3.1, 3.1]).verdict
    'helps'
    """
    _check(margin, level, better)
    named = {"a1": a1, "a0": a0, "b1": b1, "b0": b0}
    cells = [_values(value, name) for name, value in named.items()]
    if paired:
        difference = _subtract(_subtract(cells[0], cells[1]), _subtract(cells[2], cells[3]))
        return _of_pairs(difference, margin, level, better)
    signs = (1.0, -1.0, -1.0, 1.0)
    value = sum(sign * cell.mean(axis=-1) for sign, cell in zip(signs, cells, strict=True))
    error, degrees = _welch(signs, *cells)
    n = sum(cell.shape[-1] for cell in cells)
    none = np.full(np.shape(value), np.nan)  # relabelling within each setting would not test the interaction
    return _judge(np.asarray(value), error, degrees, n, none, margin, level, better)


def slope(x: ArrayLike, y: ArrayLike, *, seeds: bool = False, level: float = 0.95) -> Effect:
    """Least-squares slope of y on x with Student's interval.

    Parameters
    ----------
    x : array (m,)
        Such as the log of a scale.
    y : array (..., m), or (..., m, S) with ``seeds``
    seeds : bool
        The last axis of ``y`` holds seeds, and a seed may move all of its points together: the slope of each
        seed is one observation.  Otherwise all points are independent.
    level : float

    Examples
    --------
    >>> found = slope([0.0, 1.0, 2.0, 3.0], [1.0, 2.1, 2.9, 4.0])
    >>> round(found.value, 2), round(found.low, 2), round(found.high, 2)
    (0.98, 0.8, 1.16)
    """
    _check(0.0, level, "lower")
    at, values = _values(x, "x"), _values(y, "y")
    if at.ndim != 1:
        raise ValueError(f"x must have one axis; its shape is {at.shape}")
    axis = -2 if seeds else -1
    if values.ndim < -axis or values.shape[axis] != len(at):
        raise ValueError(
            f"y must have {len(at)} values along axis {axis}, as x has; its shape is {values.shape}"
        )
    centred = at - at.mean()
    spread = (centred**2).sum()
    if not spread > 0:
        raise ValueError("a slope needs at least two different values of x")
    if seeds:
        slopes = np.einsum("...ms,m->...s", values, centred) / spread
        found = _of_pairs(slopes, 0.0, level, "lower")
        return Effect(found.value, found.low, found.high, found.p, found.n, level)
    value = values @ centred / spread
    residual = values - values.mean(axis=-1, keepdims=True) - value[..., None] * centred
    squares = _clean((residual**2).sum(axis=-1), values)
    degrees = len(at) - 2
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.sqrt(squares / degrees / spread) if degrees > 0 else np.full(value.shape, np.nan)
    low, high, p = _student(value, error, np.full(value.shape, float(max(degrees, 1))), level)
    return _effect(value, low, high, p, len(at), level)


def rank_correlation(
    x: ArrayLike, y: ArrayLike, kind: str = "spearman", given: ArrayLike | None = None, *, level: float = 0.95
) -> Effect:
    """Rank correlation, or partial rank correlation given other variables.

    Parameters
    ----------
    x, y : array (..., n)
    kind : {"spearman", "kendall"}
        Kendall's is tau-b.
    given : array (n,) or (k, n), optional
        Variables whose influence is taken out, the same for all leading axes.
    level : float

    Returns
    -------
    Effect
        The p-value is that of all orders up to seven points, beyond them Student's t (Spearman) or the normal
        approximation with ties (Kendall); partial correlations lose a degree of freedom for each given
        variable.  The interval is Fisher's z with the variance of Bonett and Wright (Spearman) or of Fieller,
        Hartley and Pearson (Kendall); it needs five points.

    Examples
    --------
    >>> found = rank_correlation([1, 2, 3, 4, 5], [1, 3, 2, 4, 5])
    >>> round(found.value, 3), round(found.p, 3)
    (0.9, 0.083)
    """
    _check(0.0, level, "lower")
    if kind not in ("spearman", "kendall"):
        raise ValueError(f"kind must be 'spearman' or 'kendall', not {kind!r}")
    a, b = np.broadcast_arrays(_values(x, "x"), _values(y, "y"))
    n = a.shape[-1]
    rest = [] if given is None else list(np.atleast_2d(_values(given, "given")))
    if any(len(one) != n for one in rest):
        raise ValueError(f"given must have {n} values a variable, as x has, not {[len(one) for one in rest]}")
    k = len(rest)
    if n < 3 + k:
        raise ValueError(f"a rank correlation given {k} others needs at least {3 + k} points, not {n}")
    features = [rank_features(one, kind) for one in (a, b, *rest)]
    value = partial_correlation(features)
    if not rest and n <= ORDERS:
        p = all_orders(a, b, kind, value)
    elif kind == "spearman":
        from scipy.special import stdtr

        with np.errstate(divide="ignore"):
            p = 2 * stdtr(n - 2 - k, -np.abs(value) * np.sqrt((n - 2 - k) / (1 - value**2)))
    else:
        p = kendall_p(a, b, value, k)
    variance = (1 + value**2 / 2) / (n - 3 - k) if kind == "spearman" and n > 3 + k else np.nan
    if kind == "kendall" and n > 4 + k:
        variance = 0.437 / (n - 4 - k)
    with np.errstate(divide="ignore", invalid="ignore"):
        centre, half = np.arctanh(value), _normal(level) * np.sqrt(variance)
    low, high = np.tanh(centre - half), np.tanh(centre + half)
    return _effect(value, low, high, p, n, level)


def sign_test(arm: ArrayLike, base: ArrayLike, *, level: float = 0.95, better: str = "lower") -> Effect:
    """Share of pairs in which the arm is better, with its exact p-value and interval.

    The test for runs that diverged: pass their loss as infinite, worse than any value.  Ties, such as pairs
    of which both diverged, count for neither.

    Parameters
    ----------
    arm, base : array (..., S)
        One value a seed, possibly infinite.
    level : float
        Of the interval of Clopper and Pearson.
    better : {"lower", "higher"}

    Examples
    --------
    >>> sign_test([1.0, 1.1, 1.2, 1.0, 0.9], [2.0, float("inf"), 2.1, 2.0, 2.0]).p
    0.0625
    """
    from scipy.special import bdtr, betaincinv

    _check(0.0, level, better)
    a, b = (np.asarray(value, dtype=float) for value in (arm, base))
    if np.isnan(a).any() or np.isnan(b).any():
        raise ValueError("a sign test cannot order values that are not numbers; give a diverged run as inf")
    if a.ndim == 0 or a.shape[-1:] != b.shape[-1:]:
        raise ValueError(
            f"pairs need as many values of the arm as of the base; given were {a.shape}, {b.shape}"
        )
    a, b = np.broadcast_arrays(a, b)
    wins, losses = (a < b).sum(axis=-1), (a > b).sum(axis=-1)
    if better == "higher":
        wins, losses = losses, wins
    n = np.asarray(wins + losses)
    p = np.where(n > 0, np.minimum(1.0, 2 * bdtr(np.minimum(wins, losses), n, 0.5)), 1.0)
    tail = 0.5 - 0.5 * level
    with np.errstate(invalid="ignore", divide="ignore"):
        value = wins / n
        low = np.where(wins > 0, betaincinv(np.maximum(wins, 1), losses + 1, tail), 0.0)
        high = np.where(losses > 0, betaincinv(wins + 1, np.maximum(losses, 1), 1 - tail), 1.0)
    return _effect(value, low, high, p, n, level)


def holm(p_values: ArrayLike) -> Array:
    """p-values (..., k) of k comparisons, adjusted so that the chance of any false one is kept (Holm, 1979).

    A p-value that is not a number counts as a comparison made, and stays what it is.

    Raises
    ------
    ValueError
        A value lies outside 0 to 1.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.atleast_1d(np.asarray(p_values, dtype=float))
    if (p < 0).any() or (p > 1).any():
        raise ValueError(
            f"p-values lie between 0 and 1; the ones given run from {np.nanmin(p)} to {np.nanmax(p)}"
        )
    filled = np.where(np.isnan(p), 1.0, p)
    order = np.argsort(filled, axis=-1, kind="stable")
    scaled = np.take_along_axis(filled, order, axis=-1) * np.arange(p.shape[-1], 0, -1)
    out = np.empty_like(p)
    np.put_along_axis(out, order, np.minimum(1.0, np.maximum.accumulate(scaled, axis=-1)), axis=-1)
    return np.where(np.isnan(p), np.nan, out)


# --- Student and Welch ------------------------------------------------------------------------------------
def _of_pairs(difference: Array, margin: float, level: float, better: str) -> Contrast:
    n = difference.shape[-1]
    value = difference.mean(axis=-1)
    squares = _clean(((difference - value[..., None]) ** 2).sum(axis=-1), difference)
    error = np.sqrt(squares / (n - 1) / n) if n > 1 else np.full(value.shape, np.nan)
    degrees = np.full(value.shape, float(max(n - 1, 1)))
    return _judge(value, error, degrees, n, sign_flips(difference), margin, level, better)


def _welch(signs: tuple[float, ...], *cells: Array) -> tuple[Array, Array]:
    """Standard error and degrees of freedom of a signed sum of means of independent samples."""
    parts, weights = [], []
    for cell in cells:
        n = cell.shape[-1]
        squares = _clean(((cell - cell.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1), cell)
        part = squares / (n - 1) / n if n > 1 else np.full(cell.shape[:-1], np.nan)
        parts.append(part)
        weights.append(part**2 / max(n - 1, 1))
    total = np.asarray(sum(parts))
    with np.errstate(invalid="ignore", divide="ignore"):
        degrees = total**2 / np.asarray(sum(weights))
    fallback = float(sum(cell.shape[-1] - 1 for cell in cells))
    return np.sqrt(total), np.where(total > 0, degrees, max(fallback, 1.0))


def _student(value: Array, error: Array, degrees: Array, level: float) -> tuple[Array, Array, Array]:
    from scipy.special import stdtr, stdtrit

    with np.errstate(invalid="ignore", divide="ignore"):
        half = stdtrit(degrees, 0.5 + 0.5 * level) * error
        p = 2 * stdtr(degrees, -np.abs(value) / error)
    p = np.where(error == 0, np.where(value == 0, 1.0, 0.0), p)  # values without noise differ or do not
    return value - half, value + half, p


def _judge(
    value: Array, error: Array, degrees: Array, n: int, exact: Array, margin: float, level: float, better: str
) -> Contrast:
    low, high, p = _student(value, error, degrees, level)
    good, bad = ("helps", "hurts") if better == "lower" else ("hurts", "helps")
    inside = (low >= -margin) & (high <= margin)
    verdict = np.where(inside, "no difference", np.where(high < 0, good, np.where(low > 0, bad, "undecided")))
    value, low, high, p, exact, words = map(_plain, (value, low, high, p, exact, verdict))
    return Contrast(value, low, high, p, n, level, p_exact=exact, verdict=words)


# --- the door ---------------------------------------------------------------------------------------------
def _values(value: ArrayLike, name: str) -> Array:
    array = np.asarray(value, dtype=float)
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ValueError(
            f"{name} must hold at least one value along its last axis; its shape is {array.shape}"
        )
    if not np.isfinite(array).all():
        raise ValueError(
            f"{name} holds {array[~np.isfinite(array)][0]}: a run that diverged has no average; compare by "
            "sign_test, with its loss infinite"
        )
    return array


def _subtract(one: Array, other: Array) -> Array:
    if one.shape[-1] != other.shape[-1]:
        raise ValueError(
            f"pairs need equal numbers of seeds; given were {one.shape[-1]} and {other.shape[-1]} "
            "(paired=False compares arms without pairs)"
        )
    return one - other


def _clean(squares: Array, values: Array) -> Array:
    """Sums of squares that are rounding errors of the values are no noise."""
    rounding = values.shape[-1] * (1e-15 * np.abs(values).max(axis=-1)) ** 2
    return np.where(squares <= rounding, 0.0, squares)


def _normal(level: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(0.5 + 0.5 * level))


def _plain(value: Any) -> Any:
    return np.asarray(value).item() if np.ndim(value) == 0 else value


def _effect(value: Array, low: Array, high: Array, p: Array, n: Any, level: float) -> Effect:
    return Effect(_plain(value), _plain(low), _plain(high), _plain(p), _plain(n), level)


def _check(margin: float, level: float, better: str) -> None:
    if better not in ("lower", "higher"):
        raise ValueError(f"better must be 'lower' or 'higher', not {better!r}")
    if not margin >= 0:
        raise ValueError(f"margin must not be negative, not {margin}")
    if not 0 < level < 1:
        raise ValueError(f"level is a share between 0 and 1, not {level}")
