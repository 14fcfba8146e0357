"""One solver for many small robust fits at once: bounded, semi-smooth Newton with a majorising damper.

A Huber loss with ``delta = 1e-3`` on residuals of 1e-2 is nearly an absolute loss: Gauss-Newton forgets that
the loss has bent, L-BFGS crawls along its kinks.  Here

- *second derivatives are exact*: ``H = sum w [rho'' J J^T + rho' Hess]``, with rho'' the generalised
  (semi-smooth) derivative, one inside ``delta`` and zero outside, so that a step is exact once the set of
  points inside is known;
- *damping uses the loss's own majoriser*: the step solves ``(H + lambda M) s = -g`` with
  ``M = sum w (rho'/r) J J^T``, the matrix of iteratively reweighted least squares.  For a linear law
  ``lambda = 1`` can never overshoot, so rejected steps are few;
- *delta is lowered by stages* where the landscape is rough (few points): each stage starts where the last
  ended, as Madsen and Nielsen (1993) do for linear problems; with many points one coarse stage is enough;
- *nothing loops over problems*: starts, resamples and curves are rows of one batch, the small systems are
  factored across the batch by a modified LDL^T, and rows that have converged leave the batch.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from allometry.laws.forms import Form, SumOfPowers

__all__ = ["Problem", "Solution", "solve", "stages"]

Array = NDArray[np.float64]
_BLOCK = 1 << 15  # batch entries times points worked on at once, so that the arrays stay in cache


@dataclass(frozen=True)
class Problem:
    """What is minimised: targets and weights by curve, a shared design, a loss.

    ``log_y`` and ``weights`` are ``(curves, n)``; bounds are in coordinates ``(p,)``.
    """

    form: Form
    features: Array
    log_y: Array
    weights: Array
    lower: Array
    upper: Array
    loss: str = "huber"
    delta: float = 1e-3
    space: str = "log"
    censored: NDArray[np.bool_] | None = None

    def objective(self, theta: Array, curve: NDArray[np.intp], delta: float | None = None) -> Array:
        """Sum of losses ``(batch,)`` for parameters ``(batch, p)`` of curves ``(batch,)``."""
        residual, _ = self._residual(self.form.log_prediction(theta, self.features), curve)
        value = self._loss(residual, self.delta if delta is None else delta)[0]
        return np.einsum("bn,bn->b", self.weights[curve], value)

    def _residual(self, log_prediction: Array, curve: NDArray[np.intp]) -> tuple[Array, Array | None]:
        prediction = None
        if self.space == "log":
            residual = log_prediction - self.log_y[curve]
        else:
            prediction = np.exp(np.minimum(log_prediction, 300.0))
            residual = prediction - np.exp(self.log_y[curve])
        if self.censored is not None:  # known only to lie at or above y: too high a prediction costs nothing
            residual = np.where(self.censored & (residual > 0), 0.0, residual)
        return residual, prediction

    def _loss(self, residual: Array, delta: float) -> tuple[Array, Array, Array]:
        if self.loss == "squared":
            return 0.5 * residual * residual, residual, np.ones_like(residual)
        slope = np.clip(residual, -delta, delta)
        value = slope * (residual - 0.5 * slope)
        return value, slope, (slope == residual).astype(float)

    def expand(
        self, theta: Array, curve: NDArray[np.intp], delta: float, *, majorise: bool = True
    ) -> tuple[Array, Array, Array, Array | None]:
        """Objective ``(b,)``, gradient ``(b, p)``, Hessian and, on request, majoriser ``(b, p, p)``."""
        log_prediction, jacobian = self.form.jacobian(theta, self.features)
        residual, prediction = self._residual(log_prediction, curve)
        weights = self.weights[curve]
        value, slope, bend = self._loss(residual, delta)
        if self.censored is not None:
            bend = np.where(self.censored & (residual == 0), 0.0, bend)
        objective = np.einsum("bn,bn->b", weights, value)
        transposed = jacobian.transpose(0, 2, 1)
        majoriser = None
        if majorise:
            ratio = bend if self.loss == "squared" else delta / np.maximum(np.abs(residual), delta)
            ratio = ratio * weights
            if self.censored is not None:
                ratio = np.where(self.censored & (residual == 0), 0.0, ratio)
            if prediction is not None:
                ratio *= prediction * prediction
            majoriser = np.matmul(jacobian * ratio[:, None], transposed)
        slope = slope * weights
        bend = bend * weights
        if prediction is not None:  # linear space: g = exp(f), g_i = g f_i, g_ij = g (f_ij + f_i f_j)
            slope *= prediction
            bend *= prediction * prediction
            bend += slope
        gradient = np.matmul(jacobian, slope[..., None])[..., 0]
        if isinstance(self.form, SumOfPowers):
            # curvature = -J diag(slope) J^T + a sparse part: fold the first into the one product
            bend -= slope
            hessian = np.matmul(jacobian * bend[:, None], transposed)
            self.form.add_curvature(hessian, gradient, jacobian, self.features, slope)
        else:
            hessian = np.matmul(jacobian * bend[:, None], transposed)
            hessian += self.form.curvature(theta, self.features, slope)
        return objective, gradient, hessian, majoriser


@dataclass
class Solution:
    """Where each row of the batch ended: coordinates ``(b, p)``, objective ``(b,)``, whether it converged."""

    theta: Array
    objective: Array
    converged: NDArray[np.bool_]
    iterations: int = field(default=0)


def solve_positive(matrix: Array, right: Array) -> Array:
    """Solve ``(b, p, p) s = (b, p)`` by LDL^T across the batch; pivots that are not positive are made so.

    The change makes the matrix positive definite, hence ``-s`` a direction of descent for ``right`` a
    gradient.
    """
    size = right.shape[1]
    if len(right) <= 32:
        # LAPACK is quicker for a few rows; its answer stands if every one of them goes downhill.
        with contextlib.suppress(np.linalg.LinAlgError):
            quick = np.asarray(np.linalg.solve(matrix, right[..., None])[..., 0], dtype=np.float64)
            if ((quick * right).sum(axis=1) >= 0).all():
                return quick
    # A unit diagonal, so that any units will do.
    scale = np.sqrt(np.maximum(np.abs(np.einsum("bii->bi", matrix)), 1e-300))
    columns: list[list[Array]] = [[None] * size for _ in range(size)]  # type: ignore[list-item]
    pivots: list[Array] = []
    for j in range(size):
        pivot = matrix[:, j, j] / (scale[:, j] * scale[:, j])
        for k in range(j):
            pivot = pivot - columns[j][k] * columns[j][k] * pivots[k]
        pivot = np.maximum(np.abs(pivot), 1e-14)
        pivots.append(pivot)
        for i in range(j + 1, size):
            entry = matrix[:, i, j] / (scale[:, i] * scale[:, j])
            for k in range(j):
                entry = entry - columns[i][k] * columns[j][k] * pivots[k]
            columns[i][j] = entry / pivot
    solution = [right[:, i] / scale[:, i] for i in range(size)]
    for i in range(size):
        for k in range(i):
            solution[i] = solution[i] - columns[i][k] * solution[k]
    for i in range(size):
        solution[i] = solution[i] / pivots[i]
    for i in reversed(range(size)):
        for k in range(i + 1, size):
            solution[i] = solution[i] - columns[k][i] * solution[k]
    return np.stack(solution, axis=1) / scale


def stages(delta: float, loss: str, first: float = 3e-2) -> list[float]:
    """Deltas from ``first`` down to ``delta``, about a factor of four apart."""
    if loss == "squared" or delta >= first:
        return [delta]
    count = 1 + int(np.ceil(np.log(first / delta) / np.log(4.0)))
    return [float(value) for value in np.geomspace(first, delta, count)]


def solve(
    problem: Problem,
    theta: Array,
    curve: NDArray[np.intp],
    *,
    deltas: list[float] | None = None,
    iterations: int = 60,
    early: int = 6,
    tolerance: float = 1e-12,
) -> Solution:
    """Minimise every row of the batch from its own start.

    Parameters
    ----------
    problem : Problem
    theta : array (b, p)
        Starts, in coordinates.
    curve : integer array (b,)
        Which row of the problem's targets and weights each start belongs to.
    deltas : list of float, optional
        Stages of the Huber loss; the last counts.  All but the last get ``early`` iterations only.
    iterations : int
        Limit for the last stage.
    tolerance : float
        Stop when the decrease that the quadratic model still promises is below this share of the objective.
    """
    deltas = [problem.delta] if deltas is None else deltas
    rows = max(1, _BLOCK // max(1, len(problem.features)))
    out = Solution(np.empty_like(theta), np.empty(len(theta)), np.zeros(len(theta), dtype=bool))
    for begin in range(0, len(theta), rows):
        part = slice(begin, begin + rows)
        place = np.clip(theta[part], problem.lower, problem.upper)
        for delta in deltas[:-1]:
            place = _descend(problem, place, curve[part], delta, early, 1e-6).theta
        last = _descend(problem, place, curve[part], deltas[-1], iterations, tolerance)
        out.theta[part], out.objective[part] = last.theta, last.objective
        out.converged[part] = last.converged
        out.iterations = max(out.iterations, last.iterations)
    return out


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # a trial may overflow; it is then refused
def _descend(
    problem: Problem, start: Array, curve: NDArray[np.intp], delta: float, iterations: int, tolerance: float
) -> Solution:
    lower, upper = problem.lower, problem.upper
    final = Solution(start.copy(), np.empty(len(start)), np.zeros(len(start), dtype=bool))
    alive = np.arange(len(start))
    theta, which = final.theta.copy(), curve
    objective, gradient, hessian, first = problem.expand(theta, which, delta)
    assert first is not None
    majoriser = first
    damping = np.full(len(start), 1e-1)
    flat = 1e-26 * problem.weights[which].sum(axis=1)
    diagonal = np.arange(theta.shape[1])
    iteration = 0
    while iteration < iterations:
        iteration += 1
        # A parameter at a bound with the gradient pointing out stays there for this step (Bertsekas, 1982).
        held = ((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0))
        system = hessian + damping[:, None, None] * majoriser
        slope = gradient
        if held.any():
            system[held] = 0.0
            system.transpose(0, 2, 1)[held] = 0.0
            system[:, diagonal, diagonal] += held
            slope = np.where(held, 0.0, gradient)
        step = solve_positive(system, slope)
        trial = np.minimum(np.maximum(theta - np.minimum(np.maximum(step, -4.0), 4.0), lower), upper)
        moved = trial - theta
        promised = -np.einsum("bp,bp->b", moved, gradient + 0.5 * np.matmul(system, moved[..., None])[..., 0])
        # The majoriser only measures distance: renewed every fourth step, it costs a quarter.
        renew = iteration % 4 == 0
        new, new_gradient, new_hessian, new_majoriser = problem.expand(trial, which, delta, majorise=renew)
        gain = objective - new
        accept = gain > 0
        settled = (np.abs(promised) <= tolerance * objective + flat) & (damping < 10)
        ratio = gain / np.maximum(promised, 1e-300)
        if accept.all():
            theta, objective, gradient, hessian = trial, new, new_gradient, new_hessian
            majoriser = majoriser if new_majoriser is None else new_majoriser
        else:
            theta[accept], objective[accept] = trial[accept], new[accept]
            gradient[accept], hessian[accept] = new_gradient[accept], new_hessian[accept]
            if new_majoriser is not None:
                majoriser[accept] = new_majoriser[accept]
        damping = np.where(
            accept,
            damping * np.where(ratio > 0.7, 0.2, np.where(ratio < 0.25, 3.0, 1.0)),
            np.maximum(damping * 6.0, 0.03),
        )
        done = settled | (damping > 1e9)
        if done.any():
            finished = alive[done]
            final.theta[finished], final.objective[finished] = theta[done], objective[done]
            final.converged[finished] = True
            keep = ~done
            alive, which, damping, flat = alive[keep], which[keep], damping[keep], flat[keep]
            theta, objective, gradient = theta[keep], objective[keep], gradient[keep]
            hessian, majoriser = hessian[keep], majoriser[keep]
            if not len(alive):
                break
    if len(alive):
        final.theta[alive], final.objective[alive] = theta, objective
    final.iterations = iteration
    return final
