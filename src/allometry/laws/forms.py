"""Law forms: how loss falls with parameters, tokens or any other scale, with exact derivatives.

A form is a small object that knows four things: the names of its inputs, its parameters with their bounds,
its log-prediction with Jacobian (and the second derivatives contracted with a vector, which a true Newton
step on a robust loss needs), and where to start.  It holds no data and no fitted values.

- *Many problems at once.*  Parameters come as ``(batch, p)``, answers leave as ``(batch, n)`` and
  ``(batch, p, n)``; the design (the scales at which losses were measured) is shared by the batch.
- *Coordinates.*  Coefficients and widths are fitted as logarithms, exponents and floors as they are: a floor
  may then truly reach zero, which a logarithm forbids.
- *Units.*  The solver divides inputs by their geometric mean, which removes the near-perfect correlation of
  ``log A`` with ``alpha``.  `Form.units` gives the linear map back.
- *Starts* come from variable projection (Golub and Pereyra, 1973): given exponents the coefficients of a sum
  of powers solve a non-negative least-squares problem exactly, so only the exponents need a grid.

Power laws: Hestness et al., 2017, arXiv:1712.00409.  Kaplan et al., 2020, arXiv:2001.08361 (equation 1.5).
Hoffmann et al., 2022, arXiv:2203.15556 (equation 2).  Broken power laws: Caballero et al., 2022,
arXiv:2210.14891 (equation 1).
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BrokenPowerLaw", "Chinchilla", "Form", "Kaplan", "KaplanOffset", "Parameter", "PowerLaw",
    "PowerLawOffset", "get_form",
]  # fmt: skip

Array = NDArray[np.float64]

_SYNONYMS = {
    "params": ("n", "parameters", "n_params", "num_params", "model_size", "model size", "non_embedding"),
    "tokens": ("d", "n_tokens", "num_tokens", "training_tokens", "dataset_size"),
    "unique_tokens": ("u", "unique", "unique tokens", "u_d"),
    "flops": ("c", "compute", "flop", "training flop", "training_flop"),
}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a law: its name, its bounds, and whether it is fitted as a logarithm."""

    name: str
    lower: float
    upper: float
    log: bool = False


class Form(ABC):
    """A law's shape.  Sub-classes give `parameters`, `inputs` and the derivatives; data never lives here."""

    name: str
    inputs: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    scales_target: bool = True  # whether multiplying y by a constant is a linear map of the coordinates

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of every array."""
        return tuple(parameter.name for parameter in self.parameters)

    @cached_property
    def floor(self) -> int | None:
        """Index of the irreducible loss ``E``, or None."""
        return self.names.index("E") if "E" in self.names else None

    @cached_property
    def exponents(self) -> tuple[int, ...]:
        """Indices of the exponents."""
        return tuple(i for i, name in enumerate(self.names) if name.startswith(("alpha", "beta")))

    # --- coordinates -------------------------------------------------------------------------------------
    def to_coordinates(self, values: Array) -> Array:
        """Natural parameters ``(..., p)`` to the coordinates in which the solver works."""
        out = np.array(values, dtype=float)
        for i, parameter in enumerate(self.parameters):
            if parameter.log:
                with np.errstate(divide="ignore"):
                    out[..., i] = np.log(out[..., i])
        return out

    def from_coordinates(self, theta: Array) -> Array:
        """Coordinates ``(..., p)`` to natural parameters."""
        out = np.array(theta, dtype=float)
        for i, parameter in enumerate(self.parameters):
            if parameter.log:
                out[..., i] = np.exp(out[..., i])
        return out

    def bounds(self) -> tuple[Array, Array]:
        """Lower and upper bounds ``(p,)`` in coordinates, for inputs and target of geometric mean one."""
        limits = np.array([(parameter.lower, parameter.upper) for parameter in self.parameters])
        return self.to_coordinates(limits[:, 0]), self.to_coordinates(limits[:, 1])

    @abstractmethod
    def units(self, shift: Array, target_shift: float) -> tuple[Array, Array]:
        """Map coordinates fitted in scaled units to the caller's units: ``theta = matrix @ scaled + offset``.

        Parameters
        ----------
        shift : array (k,)
            Logarithm of the unit of each input.
        target_shift : float
            Logarithm of the unit of the target (zero where `scales_target` is False).

        Returns
        -------
        matrix : array (p, p)
        offset : array (p,)
        """

    def shifts(self, features: Array) -> Array:
        """Logarithms of the units ``(k,)`` in which the solver sees the inputs: their geometric means."""
        return features.mean(axis=0)

    # --- the law -----------------------------------------------------------------------------------------
    @abstractmethod
    def log_prediction(self, theta: Array, features: Array) -> Array:
        """Log of the predicted loss ``(batch, n)`` at log inputs ``features (n, k)``."""

    @abstractmethod
    def jacobian(self, theta: Array, features: Array) -> tuple[Array, Array]:
        """Log-prediction ``(batch, n)`` and its derivatives ``(batch, p, n)``."""

    def curvature(self, theta: Array, features: Array, cotangent: Array) -> Array:
        """Second derivatives of the log-prediction summed with ``cotangent (batch, n)``: ``(batch, p, p)``.

        Central differences of the exact gradient unless a form knows better.
        """
        size = len(self.parameters)
        out = np.empty((len(theta), size, size))
        for i in range(size):
            step = np.zeros(size)
            step[i] = 1e-5
            above = self.jacobian(theta + step, features)[1]
            below = self.jacobian(theta - step, features)[1]
            out[:, i] = np.matmul(above - below, cotangent[..., None])[..., 0] / 2e-5
        return 0.5 * (out + out.transpose(0, 2, 1))

    @abstractmethod
    def starts(self, features: Array, log_y: Array, weights: Array) -> Array:
        """Starting points ``(curves, starts, p)`` for targets ``log_y (curves, n)``."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(inputs={self.inputs}, parameters={self.names})"

    # --- columns -----------------------------------------------------------------------------------------
    def features(self, x: Any) -> Array:
        """Log inputs ``(n, k)`` from a mapping or table of columns, or an array ``(n, k)``.

        Raises
        ------
        ValueError
            A column is missing, has the wrong length, or holds a value that is not positive and finite.
        """
        columns = self._columns(x)
        lengths = {len(column) for column in columns}
        if len(lengths) > 1:
            if lengths - {1} and len(lengths - {1}) == 1:
                columns = list(np.broadcast_arrays(*columns))
            else:
                raise ValueError(f"columns {self.inputs} have different lengths {sorted(lengths)}")
        out = np.stack(columns, axis=-1)
        bad = ~(np.isfinite(out) & (out > 0))
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise ValueError(
                f"scales must be positive and finite; {self.inputs[column]} is {out[row, column]} in row "
                f"{row}"
            )
        return np.log(out)

    def _columns(self, x: Any) -> list[Array]:
        if isinstance(x, Mapping) or hasattr(x, "columns"):
            names = [str(name) for name in (x.keys() if isinstance(x, Mapping) else x.columns)]
            if len(self.inputs) == 1 and len(names) == 1:
                return [np.atleast_1d(np.asarray(x[names[0]], dtype=float))]
            lowered = {name.lower(): name for name in names}
            columns = []
            for wanted in self.inputs:
                known = (wanted, *_SYNONYMS.get(wanted, ()))
                found = next((lowered[name] for name in known if name in lowered), None)
                if found is None:
                    raise ValueError(
                        f"the {self.name} form needs a column {wanted!r} "
                        f"(or {', '.join(known[1:]) or 'so'}); "
                        f"the columns given are {names}"
                    )
                columns.append(np.atleast_1d(np.asarray(x[found], dtype=float)))
            return columns
        array = np.asarray(x, dtype=float)
        if array.ndim <= 1 and len(self.inputs) == 1:
            array = array.reshape(-1, 1)
        if array.ndim == 1 and array.shape[0] == len(self.inputs):
            array = array[None]
        if array.ndim != 2 or array.shape[1] != len(self.inputs):
            raise ValueError(
                f"the {self.name} form needs columns {self.inputs}; an array of shape {np.shape(x)} was given"
            )
        return [array[:, i] for i in range(array.shape[1])]


class SumOfPowers(Form):
    """``L = E + sum_k exp(a_k - alpha_k * log x_k)``, the floor ``E`` and every term optional.

    ``terms`` lists (index of the coefficient, index of the exponent, index of the input).
    """

    terms: tuple[tuple[int, int, int], ...]
    grid: Array = np.array([0.05, 0.12, 0.22, 0.35, 0.55, 0.9, 1.4])

    def units(self, shift: Array, target_shift: float) -> tuple[Array, Array]:
        size = len(self.parameters)
        matrix, offset = np.eye(size), np.zeros(size)
        for coefficient, exponent, column in self.terms:
            matrix[coefficient, exponent] = shift[column]
            offset[coefficient] = target_shift
        if self.floor is not None:
            matrix[self.floor, self.floor] = np.exp(target_shift)
        return matrix, offset

    def _values(self, theta: Array, features: Array) -> tuple[list[Array], Array]:
        values = [
            np.exp(theta[:, i, None] - theta[:, j, None] * features[None, :, k]) for i, j, k in self.terms
        ]
        total = values[0] if len(values) == 1 else values[0] + values[1]
        for value in values[2:]:
            total = total + value
        if self.floor is not None:
            total = total + theta[:, self.floor, None]
        return values, total

    def log_prediction(self, theta: Array, features: Array) -> Array:
        if self.floor is None and len(self.terms) == 1:  # exactly linear: no exponential to overflow
            i, j, k = self.terms[0]
            return theta[:, i, None] - theta[:, j, None] * features[None, :, k]
        with np.errstate(over="ignore"):
            return np.log(self._values(theta, features)[1])

    def jacobian(self, theta: Array, features: Array) -> tuple[Array, Array]:
        values, total = self._values(theta, features)
        out = np.empty((len(theta), len(self.parameters), len(features)))
        inverse = 1.0 / total
        if self.floor is not None:
            out[:, self.floor] = inverse
        for (i, j, k), value in zip(self.terms, values, strict=True):
            share = np.multiply(value, inverse, out=out[:, i])
            np.multiply(share, -features[:, k], out=out[:, j])
        return np.log(total), out

    def curvature(self, theta: Array, features: Array, cotangent: Array) -> Array:
        jacobian = self.jacobian(theta, features)[1]
        out = -np.matmul(jacobian * cotangent[:, None], jacobian.transpose(0, 2, 1))
        self.add_curvature(
            out, np.matmul(jacobian, cotangent[..., None])[..., 0], jacobian, features, cotangent
        )
        return out

    def add_curvature(
        self, out: Array, gradient: Array, jacobian: Array, features: Array, cotangent: Array
    ) -> None:
        """Add to ``out`` what `curvature` holds besides ``-J diag(cotangent) J^T``.

        With f = log L, f_ij = L_ij / L - f_i f_j; a term is an exponential, so the sums of L_ij / L for its
        coefficient are those of the gradient ``J cotangent``.
        """
        for i, j, k in self.terms:
            out[:, i, i] += gradient[:, i]
            out[:, i, j] += gradient[:, j]
            out[:, j, i] += gradient[:, j]
            out[:, j, j] -= (cotangent * jacobian[:, j]) @ features[:, k]

    def starts(self, features: Array, log_y: Array, weights: Array) -> Array:
        # The grid is a product, so its few distinct columns give all normal equations at once.
        picks = np.array(list(itertools.product(range(len(self.grid)), repeat=len(self.terms))))
        exponents = self.grid[picks]  # (g, terms)
        columns = [np.exp(-self.grid[:, None] * features[:, k]) for _, _, k in self.terms]
        index = picks + len(self.grid) * np.arange(len(self.terms))
        if self.floor is not None:
            columns.insert(0, np.ones((1, len(features))))
            index = np.concatenate([np.zeros((len(index), 1), dtype=int), index + 1], axis=1)
        basis = np.concatenate(columns)  # (distinct, n)
        relative = np.exp(-log_y)
        gram = np.matmul(basis * (weights * relative**2)[:, None], basis.T)
        right = (weights * relative) @ basis.T
        coefficients = nonnegative_solution(gram[:, index[:, :, None], index[:, None]], right[:, index])
        out = np.zeros((len(log_y), len(exponents), len(self.parameters)))
        offset = 0
        if self.floor is not None:
            out[..., self.floor] = coefficients[..., 0]
            offset = 1
        for t, (i, j, _) in enumerate(self.terms):
            out[..., i] = np.log(np.maximum(coefficients[..., t + offset], 1e-3))
            out[..., j] = exponents[:, t]
        return out


def nonnegative_least_squares(basis: Array, log_y: Array, weights: Array) -> Array:
    """Non-negative coefficients that minimise the relative error of ``basis @ coefficients`` against ``y``.

    Parameters
    ----------
    basis : array (grid, n, m)
    log_y, weights : arrays (curves, n)

    Returns
    -------
    array (curves, grid, m)
    """
    grid, n, m = basis.shape
    relative = weights * np.exp(-2 * log_y)
    products = (basis[..., :, None] * basis[..., None, :]).transpose(1, 0, 2, 3).reshape(n, -1)
    gram = (relative @ products).reshape(len(log_y), grid, m, m)
    right = np.matmul(weights * np.exp(-log_y), basis.transpose(1, 0, 2).reshape(n, -1)).reshape(-1, grid, m)
    return nonnegative_solution(gram, right)


def nonnegative_solution(gram: Array, right: Array) -> Array:
    """Non-negative least squares ``(..., m)`` from normal equations ``(..., m, m)`` and ``(..., m)``.

    Every support is tried (at most seven for three columns) and the best feasible one kept: exact, and
    unlike an active-set walk, the same instructions for every problem of the batch.
    """
    m = right.shape[-1]
    best = np.zeros_like(right)
    best_gain = np.full(right.shape[:-1], -1.0)
    for size in range(1, m + 1):
        for support in itertools.combinations(range(m), size):
            chosen = list(support)
            block = gram[..., chosen, :][..., chosen]
            if size == 1:
                solution = right[..., chosen] / block[..., 0]
            else:
                ridge = 1e-12 * np.trace(block, axis1=-2, axis2=-1)[..., None, None] * np.eye(size)
                solution = np.linalg.solve(block + ridge, right[..., chosen, None])[..., 0]
            gain = np.where((solution >= 0).all(axis=-1), (solution * right[..., chosen]).sum(axis=-1), -1.0)
            better = gain > best_gain
            best_gain = np.where(better, gain, best_gain)
            full = np.zeros_like(best)
            full[..., chosen] = solution
            best = np.where(better[..., None], full, best)
    return best


_FLOOR = Parameter("E", 0.0, np.inf)


def _coefficient(name: str) -> Parameter:
    return Parameter(name, 1e-9, 1e3, log=True)  # size of the term at the centre of the data


def _exponent(name: str) -> Parameter:
    return Parameter(name, 1e-3, 2.0)


class PowerLaw(SumOfPowers):
    """``y = A x^-alpha``: a straight line on log axes.

    >>> PowerLaw().names
    ('A', 'alpha')
    """

    name = "power"
    parameters = (_coefficient("A"), _exponent("alpha"))
    terms = ((0, 1, 0),)

    def __init__(self, input: str = "x") -> None:
        self.inputs = (input,)


class PowerLawOffset(SumOfPowers):
    """``y = E + A x^-alpha``: a power law above an irreducible floor."""

    name = "power-offset"
    parameters = (_FLOOR, _coefficient("A"), _exponent("alpha"))
    terms = ((1, 2, 0),)

    def __init__(self, input: str = "x") -> None:
        self.inputs = (input,)


class Chinchilla(SumOfPowers):
    """``L = E + A N^-alpha + B D^-beta`` (Hoffmann et al., 2022, equation 2).

    >>> Chinchilla().names
    ('E', 'A', 'B', 'alpha', 'beta')
    """

    name = "chinchilla"
    inputs = ("params", "tokens")
    parameters = (_FLOOR, _coefficient("A"), _coefficient("B"), _exponent("alpha"), _exponent("beta"))
    terms = ((1, 3, 0), (2, 4, 1))


class Kaplan(Form):
    """``L = ((Nc/N)^(alpha_N/alpha_D) + Dc/D)^alpha_D`` (Kaplan et al., 2020, equation 1.5): no floor.

    >>> Kaplan().names
    ('Nc', 'Dc', 'alpha_N', 'alpha_D')
    """

    name = "kaplan"
    inputs = ("params", "tokens")
    parameters = (
        Parameter("Nc", np.exp(-500.0), np.exp(500.0), log=True),
        Parameter("Dc", np.exp(-500.0), np.exp(500.0), log=True),
        _exponent("alpha_N"),
        _exponent("alpha_D"),
    )
    scales_target = False

    def units(self, shift: Array, target_shift: float) -> tuple[Array, Array]:
        return np.eye(4), np.array([shift[0], shift[1], 0.0, 0.0])

    def _parts(self, theta: Array, features: Array) -> tuple[Array, Array, Array]:
        ratio = (theta[:, 2] / theta[:, 3])[:, None]
        distance = theta[:, 0, None] - features[None, :, 0]  # log(Nc / N)
        capacity = ratio * distance
        return distance, capacity, np.logaddexp(capacity, theta[:, 1, None] - features[None, :, 1])

    def log_prediction(self, theta: Array, features: Array) -> Array:
        return theta[:, 3, None] * self._parts(theta, features)[2]

    def jacobian(self, theta: Array, features: Array) -> tuple[Array, Array]:
        distance, capacity, total = self._parts(theta, features)
        share = np.exp(capacity - total)
        tokens = theta[:, 3, None]
        out = np.stack(
            [share * theta[:, 2, None], (1 - share) * tokens, share * distance, total - share * capacity],
            axis=1,
        )
        return tokens * total, out

    def starts(self, features: Array, log_y: Array, weights: Array) -> Array:
        # L^(1/alpha_D) = Nc^(alpha_N/alpha_D) N^-(alpha_N/alpha_D) + Dc/D is linear once the exponents are
        # given.
        exponents = np.array(list(itertools.product((0.03, 0.08, 0.15, 0.3, 0.6), repeat=2)))
        out = np.empty((len(log_y), len(exponents), 4))
        for g, (params, tokens) in enumerate(exponents):
            ratio = params / tokens
            basis = np.exp(-np.stack([ratio * features[:, 0], features[:, 1]], axis=-1))[None]
            solution = nonnegative_least_squares(basis, log_y / tokens, weights)[:, 0]
            logs = np.log(np.maximum(solution, 1e-3))
            out[:, g] = np.stack(
                [logs[:, 0] / ratio, logs[:, 1], np.full(len(logs), params), np.full(len(logs), tokens)],
                axis=-1,
            )
        return out


class KaplanOffset(Form):
    """`Kaplan` above an irreducible loss: ``L = E + ((Nc/N)^(alpha_N/alpha_D) + Dc/D)^alpha_D``.

    The terms interact as in Kaplan et al., 2020 (equation 1.5): a model limited by its size gains less from
    more data, which a sum of powers cannot say. The floor is that of Hoffmann et al., 2022 (equation 2).

    >>> KaplanOffset().names
    ('E', 'Nc', 'Dc', 'alpha_N', 'alpha_D')
    """

    name = "kaplan-offset"
    inputs = ("params", "tokens")
    parameters = (_FLOOR, *Kaplan.parameters)
    scales_target = False
    _above = Kaplan()

    def units(self, shift: Array, target_shift: float) -> tuple[Array, Array]:
        return np.eye(5), np.concatenate([[0.0], self._above.units(shift, target_shift)[1]])

    def log_prediction(self, theta: Array, features: Array) -> Array:
        with np.errstate(over="ignore"):
            return np.log(theta[:, :1] + np.exp(self._above.log_prediction(theta[:, 1:], features)))

    def jacobian(self, theta: Array, features: Array) -> tuple[Array, Array]:
        log_above, inner = self._above.jacobian(theta[:, 1:], features)
        above = np.exp(log_above)
        total = theta[:, :1] + above
        own = (above / total)[:, None] * inner
        return np.log(total), np.concatenate([1.0 / total[:, None], own], axis=1)

    def starts(self, features: Array, log_y: Array, weights: Array) -> Array:
        lowest = np.exp(log_y.min(axis=1, keepdims=True))
        found = []
        for share in (0.0, 0.3, 0.6, 0.8):
            above = self._above.starts(features, np.log(np.exp(log_y) - share * lowest), weights)
            floor = np.broadcast_to((share * lowest)[:, None], (*above.shape[:2], 1))
            found.append(np.concatenate([floor, above], axis=2))
        return np.concatenate(found, axis=1)


class BrokenPowerLaw(Form):
    """``y = E + A x^-alpha (1 + (x/x0)^(1/f))^(-c f)``: one smooth break (Caballero et al., 2022).

    ``alpha`` is the slope before the break ``x0``, ``alpha + c`` after it, ``f`` the break's width in
    e-folds of x.

    >>> BrokenPowerLaw().names
    ('E', 'A', 'alpha', 'c', 'x0', 'f')
    """

    name = "broken-power"
    parameters = (
        _FLOOR,
        _coefficient("A"),
        Parameter("alpha", 0.0, 2.0),
        Parameter("c", -2.0, 2.0),
        Parameter("x0", np.exp(-12.0), np.exp(12.0), log=True),
        Parameter("f", 0.05, 3.0, log=True),
    )

    def __init__(self, input: str = "x") -> None:
        self.inputs = (input,)

    def units(self, shift: Array, target_shift: float) -> tuple[Array, Array]:
        matrix, offset = np.eye(6), np.zeros(6)
        matrix[0, 0] = np.exp(target_shift)
        matrix[1, 2] = shift[0]
        offset[1], offset[4] = target_shift, shift[0]
        return matrix, offset

    def _term(self, theta: Array, features: Array) -> tuple[Array, Array, Array]:
        width = np.exp(theta[:, 5, None])
        position = (features[None, :, 0] - theta[:, 4, None]) / width
        soft = np.logaddexp(0.0, position)
        log_term = (
            theta[:, 1, None] - theta[:, 2, None] * features[None, :, 0] - theta[:, 3, None] * width * soft
        )
        return np.exp(log_term), position, soft

    def log_prediction(self, theta: Array, features: Array) -> Array:
        return np.log(theta[:, 0, None] + self._term(theta, features)[0])

    def jacobian(self, theta: Array, features: Array) -> tuple[Array, Array]:
        term, position, soft = self._term(theta, features)
        total = theta[:, 0, None] + term
        share = term / total
        width, change = np.exp(theta[:, 5, None]), theta[:, 3, None]
        beyond = np.exp(position - soft)
        out = np.stack(
            [
                1.0 / total,
                share,
                -features[None, :, 0] * share,
                -width * soft * share,
                change * beyond * share,
                -change * width * (soft - position * beyond) * share,
            ],
            axis=1,
        )
        return np.log(total), out

    def starts(self, features: Array, log_y: Array, weights: Array) -> Array:
        x = features[:, 0]
        rows = []
        for slope, change, place, width in itertools.product(
            (0.1, 0.3, 0.7), (-0.3, 0.3, 0.8), np.quantile(x, (0.2, 0.5, 0.8)), (0.3, 1.0)
        ):
            basis = np.exp(-slope * x - change * width * np.logaddexp(0.0, (x - place) / width))
            columns = np.stack([np.ones_like(basis), basis], axis=-1)[None]
            solution = nonnegative_least_squares(columns, log_y, weights)[:, 0]
            log_a = np.log(np.maximum(solution[:, 1], 1e-3))
            rest = np.broadcast_to([slope, change, place, np.log(width)], (len(log_y), 4))
            rows.append(np.concatenate([solution[:, :1], log_a[:, None], rest], axis=1))
        return np.stack(rows, axis=1)


def get_form(form: str | Form) -> Form:
    """A form by its name, or the form itself.

    >>> get_form("power-offset").names
    ('E', 'A', 'alpha')
    """
    if isinstance(form, Form):
        return form
    from allometry.laws.bounded import BoundedPowerLaw
    from allometry.laws.repetition import DataConstrained

    known: dict[str, type[Form]] = {
        cls.name: cls
        for cls in (
            PowerLaw,
            PowerLawOffset,
            Kaplan,
            KaplanOffset,
            Chinchilla,
            BrokenPowerLaw,
            BoundedPowerLaw,
            DataConstrained,
        )
    }
    if not isinstance(form, str) or form not in known:
        raise ValueError(f"unknown law form {form!r}; choose one of {', '.join(known)} or pass a Form object")
    return known[form]()
