"""How much better one arm is than another, as a function of scale: log base loss minus log arm loss.

Three kinds, one for each thing that the data can bear, with the same questions to be asked of them:

- `StraightDifference`: both arms follow power laws, so the difference is a straight line in log scale.
  Exact: Student's t at any scale, Fieller's set for the crossing.
- `LawDifference`: any laws, refitted to resampled seeds; the same resample for both arms keeps their pairs.
- `MeasuredDifference`: fewer than three scales.  No law; it answers at the scales measured, nowhere else.

``u`` is the log of the scale throughout, and a positive difference means that the arm is better.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from allometry.laws.fieller import Line, fieller
from allometry.laws.forms import Form
from allometry.laws.refit import bracketed_roots, evaluate_each

__all__ = ["REACH", "Difference", "LawDifference", "MeasuredDifference", "StraightDifference"]

Array = NDArray[np.float64]
Pieces = tuple[tuple[float, float], ...]
REACH = float(np.log(100.0))  # no evidence reaches further beyond the measured scales
_TEN = float(np.log(10.0))


class Difference(ABC):
    """Log base loss minus log arm loss as a function of log scale, with its uncertainty."""

    low: float  # log of the smallest and largest scale measured in full
    high: float

    @abstractmethod
    def mean(self, u: Array) -> Array:
        """Estimate at ``u`` (n,)."""

    @abstractmethod
    def probability(self, u: Array) -> Array:
        """That the arm is better at ``u`` (n,); not a number where the data cannot say."""

    @abstractmethod
    def bounds(self, u: Array, level: float) -> tuple[Array, Array]:
        """Ends (n,) of the pointwise interval at ``u``."""

    @abstractmethod
    def roots(self) -> Array:
        """Where the estimate crosses zero, in order, within reach of the data."""

    @abstractmethod
    def pieces(self, level: float) -> Pieces | None:
        """Confidence set of the crossing as disjoint intervals of u; None where there is none to give."""

    @abstractmethod
    def places(self) -> dict[str, float]:
        """Probability that the curves cross within the data, up to 10x, up to 100x, below, or never."""

    def stations(self, upto: float | None = None) -> Array:
        """Log scales at which a verdict on the measured range must look."""
        return np.array([self.low, self.high if upto is None else max(upto, self.high)])


class StraightDifference(Difference):
    """A straight line d = p + q (u - centre) from `allometry.laws.fieller.line`.

    Parameters
    ----------
    fitted : Line
        Of one data set.
    low, high : float
        Log of the smallest and largest scale.
    known : bool
        Whether the noise is known, which takes two seeds; without it there are no intervals.
    """

    def __init__(self, fitted: Line, low: float, high: float, *, known: bool = True) -> None:
        self.low, self.high, self.known = low, high, known
        self.p, self.q, self.centre = float(fitted.p), float(fitted.q), float(fitted.centre)
        self.covariance = np.asarray(fitted.covariance, dtype=float)
        self.degrees = float(fitted.degrees)
        # A slope of rounding errors is none: over the range it moves a log loss by less than 1e-13.
        if not self.covariance[1, 1] > 0 and abs(self.q) * max(high - low, 1.0) < 1e-13:
            self.q = 0.0
            self.p = 0.0 if abs(self.p) < 1e-13 else self.p

    def mean(self, u: Array) -> Array:
        return self.p + self.q * (u - self.centre)

    def _error(self, u: Array) -> Array:
        x = u - self.centre
        v = self.covariance
        variance = v[0, 0] + 2 * x * v[0, 1] + x * x * v[1, 1]
        return np.sqrt(np.maximum(variance, 0.0)) if self.known else np.full(np.shape(u), np.nan)

    def probability(self, u: Array) -> Array:
        from scipy.special import stdtr

        return _certain_or(self.mean(u), self._error(u), lambda ratio: stdtr(self.degrees, ratio))

    def bounds(self, u: Array, level: float) -> tuple[Array, Array]:
        half = self._quantile(level) * self._error(u)
        return self.mean(u) - half, self.mean(u) + half

    def _quantile(self, level: float) -> float:
        from scipy.special import stdtrit

        return float(stdtrit(self.degrees, 0.5 + 0.5 * level))

    def roots(self) -> Array:
        if self.q == 0:
            return np.empty(0)
        root = self.centre - self.p / self.q
        return np.array([root]) if self.low - REACH <= root <= self.high + REACH else np.empty(0)

    def pieces(self, level: float) -> Pieces | None:
        if not self.known:
            return None
        found = fieller(self.p, self.q, self.covariance, self._quantile(level))
        return tuple((a + self.centre, b + self.centre) for a, b in found.pieces())

    def places(self) -> dict[str, float]:
        ends = [self.low - REACH, self.low, self.high, self.high + _TEN, self.high + REACH]
        if not self.known:
            return dict.fromkeys(("inside", "up to 10x", "up to 100x", "below", "never"), float("nan"))
        below, inside, ten, hundred = (self._crosses(a, b) for a, b in itertools.pairwise(ends))
        rest = max(0.0, 1.0 - below - inside - ten - hundred)
        return {"inside": inside, "up to 10x": ten, "up to 100x": hundred, "below": below, "never": rest}

    def _crosses(self, a: float, b: float) -> float:
        """Probability of opposite signs at a and b: a bivariate Student t, by quadrature along one of them.

        Given d(a) at z standard errors from its mean, d(b) follows Student's t with one degree of freedom
        more, moved by the correlation and widened by (degrees + z^2) / (degrees + 1).
        """
        from scipy.special import stdtr, stdtrit

        (m_a, m_b), (s_a, s_b) = self.mean(np.array([a, b])), self._error(np.array([a, b]))
        if s_a == 0 or s_b == 0:
            return float(m_a * m_b < 0)
        x_a, x_b, v = a - self.centre, b - self.centre, self.covariance
        covariance = v[0, 0] + (x_a + x_b) * v[0, 1] + x_a * x_b * v[1, 1]
        rho = float(np.clip(covariance / (s_a * s_b), -1.0, 1.0))
        middles = (np.arange(2000) + 0.5) / 2000
        total = 0.0
        for side in (-1.0, 1.0):  # the sign of d(a), its tail counted from outside so that nothing is lost
            share = float(stdtr(self.degrees, side * m_a / s_a))
            if share < 1e-300:
                continue
            z = -side * stdtrit(self.degrees, share * middles)
            width = s_b * np.sqrt((1 - rho * rho) * (self.degrees + z * z) / (self.degrees + 1))
            place = -side * (m_b + rho * s_b * z)  # of d(b) times the sign that it should have
            with np.errstate(divide="ignore", invalid="ignore"):
                inner = np.where(width > 0, stdtr(self.degrees + 1, place / width), place > 0)
            total += share * float(inner.mean())
        return total


class LawDifference(Difference):
    """Two fitted laws and their joint refits.

    Parameters
    ----------
    forms : (Form, Form)
        Of the base and of the arm, of one input each.
    points, draws : pair of array (p,), pair of array (B, p)
        Coordinates at log scales counted from ``centre``; no draws (B = 0) where the noise is not known.
    centre, low, high : float
        Where log scales are counted from; log of the smallest and largest scale.
    """

    def __init__(
        self, forms: tuple[Form, Form], points: tuple[Array, Array], draws: tuple[Array, Array],
        centre: float, low: float, high: float,
    ) -> None:  # fmt: skip
        self.forms, self.points, self.draws = forms, points, draws
        self.centre, self.low, self.high = centre, low, high
        steps = int(np.ceil((high - low + 2 * REACH) / 0.2)) + 1
        self.grid = np.linspace(low - REACH, high + REACH, steps)
        self.on_grid = self._between(draws, self.grid)  # (B, grid)

    def _between(self, laws: tuple[Array, Array], u: Array) -> Array:
        x = (u - self.centre)[:, None]
        base, arm = (form.log_prediction(theta, x) for form, theta in zip(self.forms, laws, strict=True))
        base -= arm
        return base

    def _each(self, laws: tuple[Array, Array], u: Array) -> Array:
        x = u - self.centre
        base, arm = (evaluate_each(form, theta, x) for form, theta in zip(self.forms, laws, strict=True))
        return base - arm

    def mean(self, u: Array) -> Array:
        return self._between((self.points[0][None], self.points[1][None]), u)[0]

    def probability(self, u: Array) -> Array:
        return _share(self._between(self.draws, u))

    def bounds(self, u: Array, level: float) -> tuple[Array, Array]:
        if not len(self.on_grid):
            return np.full(len(u), np.nan), np.full(len(u), np.nan)
        tails = [0.5 - 0.5 * level, 0.5 + 0.5 * level]
        low, high = np.quantile(self._between(self.draws, u), tails, axis=0)
        return low, high

    def roots(self) -> Array:
        points = (self.points[0][None], self.points[1][None])
        return self._roots(points, self.mean(self.grid)[None], 1e-7)[1]

    def _roots(
        self, laws: tuple[Array, Array], values: Array, tolerance: float
    ) -> tuple[NDArray[np.intp], Array]:
        """Every zero of every row: which row, and where."""
        positive = values > 1e-13  # rounding is no crossing
        row, cell = np.nonzero(positive[:, 1:] != positive[:, :-1])
        base, arm = laws[0][row], laws[1][row]

        def function(u: Array, rows: NDArray[np.intp]) -> Array:
            return self._each((base[rows], arm[rows]), u)

        return row, bracketed_roots(function, self.grid[cell], self.grid[cell + 1], tolerance)

    def pieces(self, level: float) -> Pieces | None:
        if not len(self.on_grid):
            return None
        share = _share(self.on_grid)
        tails = np.array([0.5 - 0.5 * level, 0.5 + 0.5 * level])
        # An end of the interval is zero where the share of draws above zero passes one minus its tail.
        which, cell = np.nonzero(np.diff(share > 1 - tails[:, None], axis=1))
        found = self._edges(tails[which], cell) if len(cell) else np.empty(0)
        ends = [float(end) for end in np.sort(np.concatenate([found, self.grid[[0, -1]]]))]
        inner = self.probability(np.array([0.5 * (a + b) for a, b in itertools.pairwise(ends)]))
        pieces: list[tuple[float, float]] = []
        for (a, b), p in zip(itertools.pairwise(ends), inner, strict=True):
            if not (
                tails[0] <= p <= tails[1] or b - a < 1e-5
            ):  # what is shorter than its ends are known: a point
                continue
            if pieces and pieces[-1][1] == a:
                a = pieces.pop()[0]
            pieces.append((-np.inf if a == ends[0] else a, np.inf if b == ends[-1] else b))
        return tuple(pieces)

    def _edges(self, tail: Array, cell: NDArray[np.intp]) -> Array:
        """Where the quantiles of the draws, one for each cell of the grid, cross zero."""

        def function(u: Array, rows: NDArray[np.intp]) -> Array:
            drawn = np.sort(self._between(self.draws, u), axis=0)
            place = tail[rows] * (len(drawn) - 1)
            below = np.minimum(place.astype(int), len(drawn) - 2)
            column = np.arange(len(u))
            low, high = drawn[below, column], drawn[below + 1, column]
            return np.asarray(low + (place - below) * (high - low))

        return bracketed_roots(function, self.grid[cell], self.grid[cell + 1], 1e-4)

    def places(self) -> dict[str, float]:
        names = ("inside", "up to 10x", "up to 100x", "below")
        total = len(self.on_grid)
        if not total:
            return dict.fromkeys((*names, "never"), float("nan"))
        row, root = self._roots(self.draws, self.on_grid, 1e-3)
        spans = [
            (self.low, self.high), (self.high, self.high + _TEN),
            (self.high + _TEN, self.high + REACH), (self.low - REACH, self.low),
        ]  # fmt: skip
        out = {}
        free = np.ones(total, dtype=bool)  # a draw with several crossings counts where it is first met
        for name, (a, b) in zip(names, spans, strict=True):
            here = np.zeros(total, dtype=bool)
            here[row[(root >= a) & (root <= b)]] = True
            out[name] = float((here & free).mean())
            free &= ~here
        out["never"] = float(free.mean())
        return out

    def stations(self, upto: float | None = None) -> Array:
        return np.linspace(self.low, self.high if upto is None else max(upto, self.high), 33)


class MeasuredDifference(Difference):
    """Differences at the measured scales alone.

    Parameters
    ----------
    u, mean, error, degrees : array (m,)
        Log scales, mean log differences (not a number where runs diverged), their standard errors (not a
        number with one seed) and degrees of freedom.
    """

    def __init__(self, u: Array, mean: Array, error: Array, degrees: Array) -> None:
        self.u, self.values, self.errors, self.degrees = u, mean, error, degrees
        self.low, self.high = float(u[0]), float(u[-1])

    def _at(self, u: Array) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        distance = np.abs(np.asarray(u)[:, None] - self.u)
        return distance.argmin(axis=1), distance.min(axis=1) < 1e-9

    def mean(self, u: Array) -> Array:
        place, known = self._at(u)
        return np.where(known, self.values[place], np.nan)

    def probability(self, u: Array) -> Array:
        from scipy.special import stdtr

        place, known = self._at(u)
        degrees = self.degrees[place]
        found = _certain_or(
            self.values[place], self.errors[place], lambda ratio: stdtr(np.maximum(degrees, 1), ratio)
        )
        return np.where(known, found, np.nan)

    def bounds(self, u: Array, level: float) -> tuple[Array, Array]:
        from scipy.special import stdtrit

        place, known = self._at(u)
        half = stdtrit(np.maximum(self.degrees[place], 1), 0.5 + 0.5 * level) * self.errors[place]
        middle = np.where(known, self.values[place], np.nan)
        return middle - half, middle + half

    def roots(self) -> Array:
        return np.empty(0)

    def pieces(self, level: float) -> Pieces | None:
        return None

    def places(self) -> dict[str, float]:
        return dict.fromkeys(("inside", "up to 10x", "up to 100x", "below", "never"), float("nan"))

    def stations(self, upto: float | None = None) -> Array:
        return self.u[np.isfinite(self.values)]


def _share(values: Array) -> Array:
    """Share of rows above zero, ties by half; not a number without rows."""
    if not len(values):
        return np.full(values.shape[1], np.nan)
    return ((values > 1e-13).mean(axis=0) + (values >= -1e-13).mean(axis=0)) / 2


def _certain_or(mean: Array, error: Array, distribution: Callable[[Array], Array]) -> Array:
    """``distribution(mean / error)``, and without noise what the sign says."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(error > 0, mean / error, np.nan)
    found = distribution(ratio)
    sure = np.where(np.abs(mean) < 1e-13, 0.5, np.where(mean > 0, 1.0, 0.0))
    return np.where(error == 0, sure, found)
