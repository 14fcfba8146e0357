"""Forms for what few bits cost: a loss above a loss, a product of powers.

The excess is one exponential of a linear combination of the columns' logarithms (or of the columns
themselves), so all derivatives are exact and cheap. It stands alone above a measured baseline (`GapForm`),
where each row has a twin of full precision with the same seed, or together with the law of that baseline
(`PrecisionForm`, Sun et al., 2025, arXiv:2501.02423).

The excess is never fitted as a logarithm: a run with few bits may by luck be better than its twin, and the
residuals stay those of the loss.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from allometry.laws.forms import Array, Chinchilla, Form, Parameter, nonnegative_solution

__all__ = ["GapForm", "PrecisionForm"]


class _Effect(NamedTuple):
    """How a column moves the logarithm of the excess: by ``sign * parameter * f(column)``."""

    parameter: str
    sign: float
    half: float  # added before the logarithm; NaN takes the column itself


EFFECTS = {
    "params": _Effect("alpha", -1.0, 0.0),
    "tokens": _Effect("beta", 1.0, 0.0),
    "exponent_bits": _Effect("delta", -1.0, 0.5),
    "mantissa_bits": _Effect("nu", -1.0, 0.5),
    "bits": _Effect("kappa", -1.0, float("nan")),
}
_SLOPES = (-4.0, 20.0)  # of delta, nu: wide enough for a sign to be found, not assumed
_MANY, _KEPT, _STEPS = 100, 2, 12  # points from which few starts do; how many, with how many steps down


def effect(column: str, values: Any) -> Array:
    """``f(column)`` of an effect: its logarithm, of bits half a bit more, or itself."""
    half = EFFECTS[column].half
    numbers = np.asarray(values, dtype=float)
    return numbers if np.isnan(half) else np.log(numbers + half)


class _Term(NamedTuple):
    """One exponential of a design: its parameters' indices ``(k,)``, their factors ``(k, n)``, a multiplier,
    the products of factors ``(n, k * k)`` and the places of their pairs among ``p * p``."""

    parameters: list[int]
    factors: Array
    multiplier: Array | float
    products: Array
    places: NDArray[np.intp]


class _Sum(Form):
    """A known part, a floor, and exponentials of linear forms: sub-classes list `terms` of their features.

    A fit asks for values, slopes and curvature at one place after another of one design: what depends on the
    design alone is kept, and what slopes share with the curvature that is asked for next.
    """

    _design: tuple[Array, list[_Term]] | None = None
    _place: tuple[Array, Array, list[Array], Array] | None = None

    def known(self, features: Array) -> Array | float:
        """What of the loss ``(n,)`` is not fitted."""
        return 0.0

    def terms(self, features: Array) -> list[tuple[list[int], Array, Array | float]]:
        """Each exponential: its parameters' indices, their factors ``(n, k)``, a multiplier ``(n,)``."""
        raise NotImplementedError

    def _terms(self, features: Array) -> list[_Term]:
        kept = self._design
        if kept is None or kept[0] is not features:
            size, found = len(self.parameters), []
            for index, factors, multiplier in self.terms(features):
                products = (factors[:, :, None] * factors[:, None]).reshape(len(features), -1)
                pairs = (np.array(index, dtype=np.intp)[:, None] * size + np.array(index)).ravel()
                found.append(_Term(index, np.ascontiguousarray(factors.T), multiplier, products, pairs))
            kept = self._design = (features, found)
        return kept[1]

    def _values(self, theta: Array, features: Array) -> tuple[list[Array], Array]:
        """Each exponential and their total, ``(batch, n)``."""
        total = np.zeros((len(theta), len(features))) + self.known(features)
        if self.floor is not None:
            total += theta[:, self.floor, None]
        found = []
        for term in self._terms(features):
            value = theta[:, term.parameters] @ term.factors
            np.exp(np.minimum(value, 300.0, out=value), out=value)
            value *= term.multiplier
            found.append(value)
            total += value
        return found, total

    def log_prediction(self, theta: Array, features: Array) -> Array:
        with np.errstate(over="ignore"):
            return np.log(self._values(theta, features)[1])

    def jacobian(self, theta: Array, features: Array) -> tuple[Array, Array]:
        found, total = self._values(theta, features)
        out = np.zeros((len(total), len(self.parameters), total.shape[1]))
        inverse = 1.0 / total
        if self.floor is not None:
            out[:, self.floor] = inverse
        for term, value in zip(self._terms(features), found, strict=True):
            value *= inverse  # its share of the loss
            for parameter, factor in zip(term.parameters, term.factors, strict=True):
                out[:, parameter] += value * factor
        self._place = (theta.copy(), features, found, out)
        return np.log(total), out

    def curvature(self, theta: Array, features: Array, cotangent: Array) -> Array:
        """With f = log L: f_ij = L_ij / L - f_i f_j, and L_ij of an exponential is itself times factors."""
        kept = self._place
        if kept is None or kept[1] is not features or not np.array_equal(kept[0], theta):
            self.jacobian(theta, features)
            kept = self._place
        assert kept is not None
        _, _, shares, jacobian = kept
        self._place = None  # it is asked for once, and a batch of many rows is large
        out = -np.matmul(jacobian * cotangent[:, None], jacobian.transpose(0, 2, 1))
        flat = out.reshape(len(theta), -1)
        for term, share in zip(self._terms(features), shares, strict=True):
            flat[:, term.places] += (share * cotangent) @ term.products
        return out


class GapForm(_Sum):
    """``L = baseline + Q exp(-g) prod f(column)^(± exponent)``: an excess above a loss that was measured.

    Parameters
    ----------
    *inputs : str
        Columns that move the excess: ``params`` (alpha), ``tokens`` (beta), ``exponent_bits`` (delta),
        ``mantissa_bits`` (nu), ``bits`` (kappa, the excess falls as exp(-kappa bits)); ``block`` (Q is its
        logarithm to base two; without it Q = 1).

    Examples
    --------
    >>> GapForm("params", "bits").names
    ('gamma', 'alpha', 'kappa')
    """

    name = "gap"
    scales_target = False  # the baseline is measured in the same unit

    def __init__(self, *inputs: str) -> None:
        self.moved = tuple(name for name in inputs if name != "block")
        self.blocks = "block" in inputs
        self.inputs = (*inputs, "baseline")
        ends = {"params": (-3.0, 3.0), "tokens": (-3.0, 3.0), "bits": (-5.0, 5.0)}
        self.parameters = (
            Parameter("gamma", 1e-3, 1e12, log=True),
            *(Parameter(EFFECTS[name].parameter, *ends.get(name, _SLOPES)) for name in self.moved),
        )

    def features(self, x: Any) -> Array:
        """``(n, moved + 2)``: the effects, Q, the baseline."""
        columns = np.broadcast_arrays(*self._columns(x))
        given = dict(zip(self.inputs, columns, strict=True))
        multiplier = _log_block(given["block"]) if self.blocks else np.ones_like(columns[0])
        baseline = given["baseline"]
        if not (np.isfinite(baseline) & (baseline > 0)).all():
            raise ValueError("baseline losses must be positive and finite")
        effects = [_checked(name, given[name], multiplier) for name in self.moved]
        return np.stack([*effects, multiplier, baseline], axis=-1)

    def shifts(self, features: Array) -> Array:
        return _centres(features, len(self.moved))

    def units(self, shift: Array, target_shift: float) -> tuple[Array, Array]:
        matrix = np.eye(len(self.parameters))
        for place, name in enumerate(self.moved):
            matrix[0, 1 + place] = EFFECTS[name].sign * shift[place]
        return matrix, np.zeros(len(self.parameters))

    def known(self, features: Array) -> Array:
        return features[:, -1]

    def terms(self, features: Array) -> list[tuple[list[int], Array, Array | float]]:
        signs = [EFFECTS[name].sign for name in self.moved]
        factors = np.concatenate([-np.ones((len(features), 1)), features[:, :-2] * signs], axis=1)
        return [(list(range(len(self.parameters))), factors, features[:, -2])]

    def starts(self, features: Array, log_y: Array, weights: Array) -> Array:
        grids = {"params": (0.0, 0.5), "tokens": (0.0, 0.5), "bits": (0.3, 0.7, 1.2)}
        picks = np.array(list(itertools.product(*(grids.get(name, (0.5, 2.0, 4.0)) for name in self.moved))))
        picks = picks.reshape(-1, len(self.moved))
        signs = [EFFECTS[name].sign for name in self.moved]
        basis = np.exp(picks @ (features[:, :-2] * signs).T) * features[:, -2]  # (g, n)
        relative = np.exp(-log_y)  # residuals are of log losses
        excess = (np.exp(log_y) - features[:, -1]) * relative
        above = (weights * excess * relative) @ basis.T
        below = (weights * relative**2) @ (basis**2).T
        size = np.maximum(above / np.maximum(below, 1e-300), 1e-6)
        slopes = np.broadcast_to(picks, (len(log_y), *picks.shape))
        return np.concatenate([-np.log(size)[..., None], slopes], axis=-1)


class PrecisionForm(_Sum):
    """``L = E + A N^-alpha + B D^-beta + (D^beta / N^alpha) log2(block) / (gamma (e+½)^delta (m+½)^nu)``.

    Sun et al., 2025: A, B, E are their n, d and ε. Rows of full precision have a block of one.

    >>> PrecisionForm().names
    ('E', 'A', 'B', 'alpha', 'beta', 'gamma', 'delta', 'nu')
    """

    name = "precision"
    inputs = ("params", "tokens", "exponent_bits", "mantissa_bits", "block")
    parameters = (
        *Chinchilla.parameters,
        Parameter("gamma", 1e-3, 1e12, log=True),
        Parameter("delta", *_SLOPES),
        Parameter("nu", *_SLOPES),
    )

    def features(self, x: Any) -> Array:
        """``(n, 5)``: log N, log D, log(e+½), log(m+½), log2 of the block."""
        columns = np.broadcast_arrays(*self._columns(x))
        multiplier = _log_block(columns[4])
        effects = [_checked(name, columns[i], multiplier) for i, name in enumerate(self.inputs[:4])]
        return np.stack([*effects, multiplier], axis=-1)

    def shifts(self, features: Array) -> Array:
        centre = _centres(features, 4)
        centre[:2] = features[:, :2].mean(axis=0)
        return centre

    def units(self, shift: Array, target_shift: float) -> tuple[Array, Array]:
        matrix, offset = np.eye(8), np.zeros(8)
        matrix[0, 0] = np.exp(target_shift)
        matrix[1, 3], matrix[2, 4] = shift[0], shift[1]
        matrix[5, [3, 4, 6, 7]] = -shift[0], shift[1], -shift[2], -shift[3]
        offset[1] = offset[2] = target_shift
        offset[5] = -target_shift
        return matrix, offset

    def terms(self, features: Array) -> list[tuple[list[int], Array, Array | float]]:
        n, d, exponent, mantissa, multiplier = features.T
        one = np.ones_like(n)
        return [
            ([1, 3], np.stack([one, -n], axis=1), 1.0),
            ([2, 4], np.stack([one, -d], axis=1), 1.0),
            ([3, 4, 5, 6, 7], np.stack([-n, d, -one, -exponent, -mantissa], axis=1), multiplier),
        ]

    def starts(self, features: Array, log_y: Array, weights: Array) -> Array:
        """A grid of exponents with the coefficients that suit them best.

        Few points may have many optima, and the search begins at all of the grid. Of many points the best
        of the grid are enough, each some steps of least squares down: they cost less than the search's own.
        """
        grid, bits = (0.15, 0.35, 0.8), (1.0, 4.0)
        picks = np.array(list(itertools.product(grid, grid, bits, bits)))
        n, d, exponent, mantissa, multiplier = features.T
        alpha, beta, delta, nu = (picks[:, i, None] for i in range(4))
        excess = multiplier * np.exp(beta * d - alpha * n - delta * exponent - nu * mantissa)
        # few columns of the basis differ, and they give the normal equations of all picks at once
        ladder = np.array(grid)[:, None]
        basis = np.concatenate([np.ones((1, len(n))), np.exp(-ladder * n), np.exp(-ladder * d), excess])
        rank = np.array(list(itertools.product(range(3), range(3), range(4))))
        index = np.stack([0 * rank[:, 0], 1 + rank[:, 0], 4 + rank[:, 1], 7 + np.arange(len(rank))], axis=1)
        relative = np.exp(-log_y)
        gram = np.matmul(basis * (weights * relative**2)[:, None], basis.T)
        right = (weights * relative) @ basis.T
        gram, right = gram[:, index[:, :, None], index[:, None]], right[:, index]
        many = len(features) > _MANY
        if many:  # cut off at zero is near enough for a start that goes on from here
            ridge = 1e-12 * np.trace(gram, axis1=-2, axis2=-1)[..., None, None] * np.eye(4)
            found = np.maximum(np.linalg.solve(gram + ridge, right[..., None])[..., 0], 0.0)
        else:
            found = np.maximum(nonnegative_solution(gram, right), 0.0)
        logs = np.log(np.maximum(found[..., 1:], 1e-6))
        slopes = np.broadcast_to(picks, (len(log_y), *picks.shape))
        starts = np.concatenate(
            [found[..., :1], logs[..., :2], slopes[..., :2], -logs[..., 2:], slopes[..., 2:]], axis=-1
        )
        if not many:
            return starts
        left = (found * (np.matmul(gram, found[..., None])[..., 0] - 2 * right)).sum(axis=-1)
        best = np.argsort(left, axis=1)[:, :_KEPT]
        return self._down(np.take_along_axis(starts, best[..., None], axis=1), features, log_y, weights)

    def _down(self, starts: Array, features: Array, log_y: Array, weights: Array) -> Array:
        """Starts ``(curves, k, p)`` after steps of Levenberg and Marquardt; none ends above its start."""
        curves, kept, size = starts.shape
        theta, curve = starts.reshape(-1, size), np.repeat(np.arange(curves), kept)
        lower, upper = self.bounds()
        theta = np.clip(theta, lower, upper)
        target, weight = log_y[curve], weights[curve]
        damping, diagonal = np.full((len(theta), 1), 1e-3), np.arange(size)
        with np.errstate(all="ignore"):
            told, slopes = self.jacobian(theta, features)
            value = (weight * (told - target) ** 2).sum(axis=1)
            for _ in range(_STEPS):
                weighted = slopes * weight[:, None]
                gram = np.matmul(weighted, slopes.transpose(0, 2, 1))
                right = np.matmul(weighted, (target - told)[..., None])
                gram[:, diagonal, diagonal] *= 1 + damping
                gram[:, diagonal, diagonal] += 1e-12 * gram.max(axis=(1, 2))[:, None]
                step = np.linalg.solve(gram, right)[..., 0]
                step = np.minimum(np.maximum(step, -4.0), 4.0)
                trial = np.minimum(np.maximum(theta + step, lower), upper)
                new_told, new_slopes = self.jacobian(trial, features)
                new = (weight * (new_told - target) ** 2).sum(axis=1)
                better = new < value
                theta[better], told[better] = trial[better], new_told[better]
                slopes[better] = new_slopes[better]
                settled = (better & (new > (1 - 1e-6) * value)).any()
                value = np.where(better, new, value)
                damping *= np.where(better, 0.1, 10.0)[:, None]
                if settled:
                    break
        ends = theta.reshape(curves, kept, size)
        value = np.nan_to_num(value, nan=np.inf).reshape(curves, kept)
        best = np.take_along_axis(ends, value.argmin(axis=1)[:, None, None], axis=1)
        left_behind = value > 1.01 * value.min(axis=1, keepdims=True)
        return np.where(left_behind[..., None], best, ends)


def _log_block(block: Any) -> Array:
    numbers = np.asarray(block, dtype=float)
    if not (np.isfinite(numbers) & (numbers >= 1)).all():
        raise ValueError("a block is at least one value (one: full precision), and finite")
    return np.log2(numbers)


def _checked(name: str, values: Any, multiplier: Array) -> Array:
    """The effect of a column, zero where bits do not matter because nothing is rounded."""
    numbers = np.asarray(values, dtype=float)
    if name in ("params", "tokens"):
        if not (np.isfinite(numbers) & (numbers > 0)).all():
            raise ValueError(f"{name} must be positive and finite")
        return effect(name, numbers)
    rounded = multiplier > 0
    if not (np.isfinite(numbers[rounded]) & (numbers[rounded] >= 0)).all():
        raise ValueError(f"{name} must not be negative, and finite where the block is more than one value")
    return effect(name, np.where(rounded, numbers, 1.0)) * rounded


def _centres(features: Array, count: int) -> Array:
    """Means of the effects over the rounded rows; multipliers and baselines are left as they are."""
    rounded = features[:, count] > 0
    out = np.zeros(features.shape[1])
    if rounded.any():
        out[:count] = features[rounded, :count].mean(axis=0)
    return out


def distinct(columns: Mapping[str, Any], name: str, rows: Any) -> int:
    """Different values of a column among some rows."""
    return len(np.unique(np.asarray(columns[name], dtype=float)[rows]))
