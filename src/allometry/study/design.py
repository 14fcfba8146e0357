"""Which trials to run: grids, one change at a time, two-level factorials, and the next scale to pay for.

- `factorial` makes a fraction of a two-level design with as little confusion between effects as its size
  allows: minimum aberration (Fries and Hunter, 1980), found by trying every set of generators.
- `eta_squared` says what share of the variance each factor explains, and refuses designs in which factors
  share a part of it.
- `next_scale` chooses where one more run tells most, for its cost, about where two curves cross (Xiao, 2024,
  arXiv:2409.15156, on crossings): a locally c-optimal design for a ratio (Silvey, 1980).

NumPy only; a design knows nothing of what is trained.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from allometry.laws.curve import Curve
from allometry.laws.fieller import Line, line
from allometry.laws.pairing import pair

__all__ = ["Factorial", "NextScale", "eta_squared", "factorial", "grid", "next_scale", "one_at_a_time"]

Array = NDArray[np.float64]
Point = dict[str, Any]
_SEARCHED = 20_000  # sets of generators that are all tried


def grid(axes: Mapping[str, Sequence[Any]] | None = None, /, **more: Sequence[Any]) -> list[Point]:
    """Every combination of values, the last axis fastest.

    Parameters
    ----------
    axes : mapping of name to values, optional
        For names with spaces; others may be keywords.

    Examples
    --------
    >>> grid(width=[16, 32], rate=[0.1])
    [{'width': 16, 'rate': 0.1}, {'width': 32, 'rate': 0.1}]
    """
    named = _axes(axes, more)
    return [dict(zip(named, values, strict=True)) for values in itertools.product(*named.values())]


def one_at_a_time(
    base: Mapping[str, Any], changes: Mapping[str, Sequence[Any]] | None = None, /, **more: Sequence[Any]
) -> list[Point]:
    """The base, then each other value of each factor with everything else as in the base.

    Cheap, and blind to interactions: what matters only together with something else does not show.

    Raises
    ------
    ValueError
        A factor is not one of the base.

    Examples
    --------
    >>> one_at_a_time({"loss": "mse", "steps": 10}, loss=["mse", "kl"], steps=[20])
    [{'loss': 'mse', 'steps': 10}, {'loss': 'kl', 'steps': 10}, {'loss': 'mse', 'steps': 20}]
    """
    points = [dict(base)]
    for name, values in _axes(changes, more).items():
        if name not in base:
            raise ValueError(f"{name!r} is not set in the base, which has {', '.join(map(str, base))}")
        points.extend({**base, name: value} for value in values if value != base[name])
    return points


# --- two-level factorials ---------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Factorial:
    """A two-level design, full or a fraction.  Made by `factorial`.

    Attributes
    ----------
    factors : dict of name to (low, high)
    coded : integer array (n, k)
        -1 for low and +1 for high, one row a run.
    words : tuple of frozenset of str
        Sets of factors whose product is the same in every run: what this fraction cannot tell apart.
    """

    factors: dict[str, tuple[Any, Any]]
    coded: NDArray[np.int64]
    words: tuple[frozenset[str], ...]

    @cached_property
    def points(self) -> list[Point]:
        """The runs, as settings by name."""
        names = list(self.factors)
        return [
            {name: self.factors[name][int(sign > 0)] for name, sign in zip(names, row, strict=True)}
            for row in self.coded
        ]

    @property
    def resolution(self) -> float:
        """Length of the shortest word; infinite if full.  At 3, factors are confused with pairs of others."""
        return min((len(word) for word in self.words), default=math.inf)

    def aliases(self, *effect: str) -> list[tuple[str, ...]]:
        """Effects that cannot be told from this one, the simplest first.

        >>> factorial({"a": (0, 1), "b": (0, 1), "c": (0, 1)}, runs=4).aliases("a")
        [('b', 'c')]
        """
        place = {name: i for i, name in enumerate(self.factors)}
        others = [frozenset(effect) ^ word for word in self.words]
        ordered = [tuple(sorted(other, key=place.__getitem__)) for other in others]
        return sorted(ordered, key=lambda one: (len(one), [place[name] for name in one]))

    def effects(self, y: ArrayLike, order: int = 2) -> dict[tuple[str, ...], Any]:
        """Mean at high minus mean at low, of factors and of their products up to ``order``.

        Of effects that are aliases the simplest, first in order, stands for all.

        Parameters
        ----------
        y : array (..., n)
            Results of the runs, in the order of `points`.
        """
        values = np.asarray(y, dtype=float)
        if values.ndim == 0 or values.shape[-1] != len(self.coded):
            raise ValueError(f"y must have {len(self.coded)} results, one a run; its shape is {values.shape}")
        out: dict[tuple[str, ...], Any] = {}
        seen: set[frozenset[str]] = {frozenset()}
        for size in range(1, order + 1):
            for chosen in itertools.combinations(range(len(self.factors)), size):
                names = tuple(np.array(list(self.factors), dtype=object)[list(chosen)])
                family = {frozenset(names)} | {frozenset(names) ^ word for word in self.words}
                if family & seen:
                    continue
                seen.add(frozenset(names))
                column = self.coded[:, list(chosen)].prod(axis=1)
                effect = values @ column / (len(column) / 2)
                out[names] = effect.item() if np.ndim(effect) == 0 else effect
        return out


def factorial(
    factors: Mapping[str, tuple[Any, Any]],
    *,
    runs: int | None = None,
    generators: Mapping[str, Sequence[str]] | None = None,
) -> Factorial:
    """All combinations of two levels of each factor, or a fraction of them.

    Parameters
    ----------
    factors : mapping of name to (low, high)
    runs : int, optional
        A power of two smaller than all combinations: the fraction of that size of minimum aberration.
    generators : mapping of name to names, optional
        Choose the fraction yourself: each named factor is set by the product of the others listed.

    Raises
    ------
    ValueError
        A factor has not two levels, ``runs`` is no power of two between k + 1 and 2^k, or a generator names
        what is not a free factor.

    Examples
    --------
    >>> half = factorial({"loss": ("mse", "kl"), "rate": (0.1, 0.3), "mix": (False, True)}, runs=4)
    >>> half.resolution, half.points[0]
    (3, {'loss': 'mse', 'rate': 0.1, 'mix': True})
    """
    levels = {str(name): tuple(values) for name, values in factors.items()}
    for name, values in levels.items():
        if len(values) != 2 or values[0] == values[1]:
            raise ValueError(
                f"factor {name!r} must have two different levels, not {values}; see grid for more"
            )
    if not levels:
        raise ValueError("a factorial needs at least one factor")
    if runs is not None and generators is not None:
        raise ValueError("give the size of the fraction by runs or its generators, not both")
    names = list(levels)
    made = {str(name): tuple(parents) for name, parents in (generators or {}).items()}
    if runs is not None:
        made = _best_generators(names, runs)
    free = [name for name in names if name not in made]
    for name, parents in made.items():
        unknown = [parent for parent in parents if parent not in free] + ([] if name in levels else [name])
        if unknown or not parents or len(set(parents)) != len(parents):
            raise ValueError(
                f"generator {name!r} = {parents} must be a product of free factors: {', '.join(free)}"
            )
    columns = dict(zip(free, _full(len(free)).T, strict=True))
    for name, parents in made.items():
        columns[name] = np.prod([columns[parent] for parent in parents], axis=0)
    coded = np.stack([columns[name] for name in names], axis=1)
    words = _words([frozenset((name, *parents)) for name, parents in made.items()])
    return Factorial(levels, coded, words)


def _full(k: int) -> NDArray[np.int64]:
    return np.array(list(itertools.product((-1, 1), repeat=k)), dtype=np.int64).reshape(-1, k)


def _words(generating: list[frozenset[str]]) -> tuple[frozenset[str], ...]:
    """All products of the generating words, a factor times itself being one."""
    found: list[frozenset[str]] = [frozenset()]
    for word in generating:
        found.extend([other ^ word for other in found])
    return tuple(sorted(found[1:], key=lambda one: (len(one), sorted(one))))


def _best_generators(names: list[str], runs: int) -> dict[str, tuple[str, ...]]:
    k, q = len(names), int(runs).bit_length() - 1
    if 1 << q != runs or not k + 1 <= runs <= 1 << k:
        raise ValueError(
            f"runs must be a power of two from {1 << k.bit_length()} to {1 << k} for {k} factors, not {runs}"
        )
    free, rest = names[:q], names[q:]
    products = [c for size in range(q, 1, -1) for c in itertools.combinations(free, size)]
    if math.comb(len(products), len(rest)) > _SEARCHED:
        raise ValueError(f"a fraction of {runs} runs for {k} factors has too many choices; give generators")

    def pattern(chosen: tuple[tuple[str, ...], ...]) -> list[int]:
        words = _words([frozenset((n, *c)) for n, c in zip(rest, chosen, strict=True)])
        return [sum(len(word) == length for word in words) for length in range(3, k + 1)]

    best = min(itertools.combinations(products, len(rest)), key=pattern)
    return dict(zip(rest, best, strict=True))


def eta_squared(
    points: Sequence[Mapping[str, Any]], y: ArrayLike, *, interactions: bool = False, partial: bool = False
) -> dict[Any, Any]:
    """Share of the variance of y that each factor explains.

    Parameters
    ----------
    points : sequence of n mappings
        Settings of each result, all with the same factors; repeats are replicates.
    y : array (..., n)
        Results; leading axes, such as those of a bootstrap, are data sets of their own.
    interactions : bool
        Also of pairs of factors, under the key ``(first, second)``.
    partial : bool
        Share of what is left by the other factors: SS / (SS + SS of the residual).

    Returns
    -------
    dict
        A share for each factor, and ``"residual"``.

    Raises
    ------
    ValueError
        The design is not balanced, so that two factors share a part of the variance.

    Examples
    --------
    >>> shares = eta_squared(grid(a=[0, 1], b=[0, 1]), [0.0, 1.0, 2.0, 3.0])
    >>> {name: round(share, 3) for name, share in shares.items()}
    {'a': 0.8, 'b': 0.2, 'residual': 0.0}
    """
    values = np.asarray(y, dtype=float)
    if not points or values.ndim == 0 or values.shape[-1] != len(points):
        raise ValueError(f"y must have {len(points)} results, one a point; its shape is {values.shape}")
    names = list(points[0])
    for point in points:
        if list(point) != names and set(point) != set(names):
            raise ValueError(f"every point must set {', '.join(map(str, names))}; one sets {dict(point)}")
    bases: dict[Any, Array] = {name: _contrasts([point[name] for point in points]) for name in names}
    bases = {name: basis for name, basis in bases.items() if basis.shape[1]}
    if interactions:
        for one, other in itertools.combinations(list(bases), 2):
            product = np.einsum("ni,nj->nij", bases[one], bases[other]).reshape(len(points), -1)
            bases[one, other] = product / np.sqrt((product**2).sum(axis=0))
    for (one, a), (other, b) in itertools.combinations(bases.items(), 2):
        if np.abs(a.T @ b).max() > 1e-9:
            raise ValueError(
                f"{one} and {other} share a part of the variance: the design is not balanced in them"
            )
    centred = values - values.mean(axis=-1, keepdims=True)
    total = (centred**2).sum(axis=-1)
    sums = {name: ((centred @ basis) ** 2).sum(axis=-1) for name, basis in bases.items()}
    rest = np.maximum(total - sum(sums.values()), 0.0)
    rest = np.where(rest <= 1e-13 * total, 0.0, rest)
    with np.errstate(invalid="ignore", divide="ignore"):
        out = {name: part / (part + rest if partial else total) for name, part in sums.items()}
        out["residual"] = rest / total
    return {name: value.item() if np.ndim(value) == 0 else value for name, value in out.items()}


def _contrasts(levels: list[Any]) -> Array:
    """Orthonormal columns (n, levels - 1) that span the differences between the levels of a factor."""
    distinct: list[Any] = []
    for level in levels:
        if level not in distinct:
            distinct.append(level)
    member = np.array([[level == other for other in distinct] for level in levels], dtype=float)
    basis = np.linalg.qr(np.concatenate([np.ones((len(levels), 1)), member[:, 1:]], axis=1))[0]
    return np.asarray(basis[:, 1:])


# --- the next scale ---------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class NextScale:
    """Where one more run of each arm tells most about their crossing.  Made by `next_scale`.

    Attributes
    ----------
    scale : float
        The candidate with the largest ``gain / cost``.
    candidates, cost : array (n,)
    half_width : array (n,)
        Expected half-width of the interval of the log crossing with the run.
    gain : array (n,)
        How much smaller that is than now.
    now : float
        Half-width as things stand.
    """

    scale: float
    candidates: Array
    cost: Array
    half_width: Array
    gain: Array
    now: float


def next_scale(
    base: Curve,
    arm: Curve,
    candidates: ArrayLike,
    cost: ArrayLike | Callable[[Array], ArrayLike] | None = None,
    *,
    runs: int = 1,
    paired: bool = True,
    level: float = 0.95,
) -> NextScale:
    """The scale at which more runs shrink the interval of the crossing most per unit of cost.

    Parameters
    ----------
    base, arm : Curve
    candidates : array (n,)
        Scales that could be run.
    cost : array (n,) or callable, optional
        Of a run of each arm at each candidate, in any unit, or a function of the scales; equal by default.
    runs : int
        How many seeds would be added.
    paired, level
        As in `allometry.laws.crossover`.

    Raises
    ------
    ValueError
        Fewer than three scales are measured in full, the noise is unknown, or the arms are parallel.

    Notes
    -----
    Both arms follow power laws, so log base - log arm = p + q u, which crosses zero at u* = -p/q.  By the
    delta method its variance is z' V z / q^2 with z = (1, u*) and V the covariance of p and q.  A run at u
    adds (1, u)(1, u)' / noise variance to the inverse of V, which the formula of Sherman and Morrison turns
    into a closed form for all candidates at once.  The half-width also takes Student's quantile with the
    degrees of freedom gained.

    Examples
    --------
    >>> x, noise = np.array([[1e6], [4e6], [16e6]]), 0.01 * np.array([[1, -1], [-1, 1], [1, -1]])
    >>> base, arm = (Curve(x[:, 0], (x / 8e6) ** -b * np.exp(b * noise)) for b in (0.05, 0.1))
    >>> next_scale(base, arm, [1e6, 8e6, 64e6]).scale
    64000000.0
    """
    from scipy.special import stdtrit

    scales = np.atleast_1d(np.asarray(candidates, dtype=float))
    if scales.ndim != 1 or not scales.size or not (np.isfinite(scales) & (scales > 0)).all():
        raise ValueError(f"candidates must be positive scales; given were {candidates!r}")
    price = _price(cost, scales)
    if runs < 1:
        raise ValueError(f"runs must be at least 1, not {runs}")
    both = pair(base, arm, paired, [])
    if both.full < 3:
        raise ValueError(f"a crossing needs three scales measured in full by both arms, not {both.full}")
    if both.paired:
        lines = [line(both.u[0], both.log_y[0] - both.log_y[1], both.observed[0])]
        p, q, centre = float(lines[0].p), float(lines[0].q), float(lines[0].centre)
    else:
        lines = [line(*data) for data in zip(both.u, both.log_y, both.observed, strict=True)]
        centre = float(lines[0].centre)
        q = float(lines[0].q - lines[1].q)
        p = float(lines[0].p - (lines[1].p + lines[1].q * (centre - lines[1].centre)))
    if not all(np.isfinite(one.covariance).all() and one.covariance[0, 0] > 0 for one in lines):
        raise ValueError("the noise is not known: measure at least two seeds at three scales")
    if q == 0:
        raise ValueError("the arms are exactly parallel: there is no crossing to look for")
    u_star, u = centre - p / q, np.log(scales)
    quantile = 0.5 + 0.5 * level
    before = sum(_variance(one, u_star) for one in lines)
    after = sum(_variance(one, u_star, u, runs) for one in lines)
    degrees = float(sum(one.degrees for one in lines))
    now = float(stdtrit(degrees, quantile) * np.sqrt(before) / abs(q))
    half = np.asarray(stdtrit(degrees + runs * len(lines), quantile) * np.sqrt(after) / abs(q))
    gain = now - half
    return NextScale(float(scales[(gain / price).argmax()]), scales, price, half, gain, now)


def _variance(fitted: Line, at: float, extra: Array | None = None, runs: int = 1) -> Any:
    """Variance of a line at ``at``; with ``runs`` more runs at each of ``extra`` (n,), an array (n,)."""
    v = fitted.covariance
    noise = float(v[0, 0]) * (
        float(fitted.degrees) + 2
    )  # the line is counted from the mean of its n abscissas
    z = np.array([1.0, at - float(fitted.centre)])
    here = z @ v @ z
    if extra is None:
        return here
    new = np.stack([np.ones_like(extra), extra - float(fitted.centre)], axis=1)  # (n, 2)
    moved = new @ v
    return here - runs * (moved @ z) ** 2 / (noise + runs * (moved * new).sum(axis=1))


# --- the door ---------------------------------------------------------------------------------------------
def _axes(
    axes: Mapping[str, Sequence[Any]] | None, more: Mapping[str, Sequence[Any]]
) -> dict[str, list[Any]]:
    named = {**(axes or {}), **more}
    for name, values in named.items():
        if isinstance(values, str) or not hasattr(values, "__iter__"):
            raise TypeError(f"the values of {name!r} must be a sequence, not {values!r}")
    out = {name: list(values) for name, values in named.items()}
    for name, values in out.items():
        if not values:
            raise ValueError(f"{name!r} has no values")
    return out


def _price(cost: ArrayLike | Callable[[Array], ArrayLike] | None, scales: Array) -> Array:
    given = cost(scales) if callable(cost) else (np.ones_like(scales) if cost is None else cost)
    price = np.asarray(given, dtype=float)
    if price.shape != scales.shape or not (np.isfinite(price) & (price > 0)).all():
        raise ValueError(
            f"cost must be positive, one for each of the {len(scales)} candidates; it is {price}"
        )
    return price
