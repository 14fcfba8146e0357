"""Finding the optimum of a law from nothing, refitting it to resamples, and inverting it.

Starts are many and cheap, the path down is short, and what the starts share is merged on the way.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from allometry.laws.forms import Array, Form
from allometry.laws.solver import Problem, Solution, solve, stages
from allometry.laws.uncertainty import resample_noise, resample_weights

__all__ = ["invert", "redraw", "search"]

_FEW_POINTS = 100  # up to here a fit is so cheap that its search can be thorough


def search(problem: Problem) -> tuple[Solution, list[list[tuple[Array, float]]]]:
    """Best optimum of every curve, and all distinct ones within one per cent of it.

    With few points a nearly absolute loss has local minima at its kinks: the search is then wider and ends
    with bootstrap restarts (Wood, 2001), which refit to randomly weighted points and come back from where
    that leads.
    """
    curves, size = len(problem.log_y), len(problem.lower)
    few = len(problem.features) <= _FEW_POINTS
    starts = problem.form.starts(problem.features, problem.log_y, problem.weights)
    starts = np.clip(starts, problem.lower, problem.upper)
    theta, curve = starts.reshape(-1, size), np.repeat(np.arange(curves), starts.shape[1])
    deltas = stages(problem.delta, problem.loss)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        value = problem.objective(theta, curve, deltas[0])
    keep = _best_rows(theta, np.nan_to_num(value, nan=np.inf), curve, 30 if few else 8, merge=False)
    theta, curve = theta[keep], curve[keep]
    coarse = solve(
        problem, theta, curve, deltas=deltas[:1], iterations=20 if few else 4, tolerance=1e-6 if few else 1e-3
    )
    keep = _best_rows(coarse.theta, coarse.objective, curve, 10 if few else 3, merge=True)
    theta, curve = coarse.theta[keep], curve[keep]
    final = solve(
        problem, theta, curve, deltas=deltas[1:] if few and len(deltas) > 1 else deltas[-1:], iterations=100
    )
    if few and problem.loss == "huber":
        final, curve = _restart(problem, final, curve)
    order = np.lexsort((final.objective, curve))
    first = order[np.searchsorted(curve[order], np.arange(curves))]
    best = Solution(final.theta[first], final.objective[first], final.converged[first], final.iterations)
    optima: list[list[tuple[Array, float]]] = []
    near = final.objective <= best.objective[curve] * 1.01 + 1e-20
    for c in range(curves):
        found: list[tuple[Array, float]] = []
        for row in order[(curve[order] == c) & near[order]]:
            if all(np.abs(final.theta[row] - other).max() > 1e-3 for other, _ in found):
                found.append((final.theta[row], float(final.objective[row])))
        optima.append(found)
    return best, optima


def _restart(
    problem: Problem, final: Solution, curve: NDArray[np.intp], count: int = 16
) -> tuple[Solution, NDArray[np.intp]]:
    """Add ``count`` bootstrap restarts a curve to the optima found so far."""
    curves = len(problem.log_y)
    first = _best_rows(final.theta, final.objective, curve, 1, merge=False)
    again = np.repeat(np.arange(curves), count)
    generator = np.random.default_rng(
        0
    )  # the search is part of the fit, not of its uncertainty: one fixed seed
    shaken = generator.exponential(size=(curves * count, problem.log_y.shape[1]))
    moved = replace(problem, log_y=problem.log_y[again], weights=problem.weights[again] * shaken)
    away = solve(moved, np.repeat(final.theta[first], count, axis=0), np.arange(len(again)), iterations=8)
    back = solve(problem, away.theta, again, iterations=100)
    both = Solution(
        np.concatenate([final.theta, back.theta]),
        np.concatenate([final.objective, back.objective]),
        np.concatenate([final.converged, back.converged]),
    )
    return both, np.concatenate([curve, again])


def _best_rows(
    theta: Array, value: Array, curve: NDArray[np.intp], count: int, *, merge: bool
) -> NDArray[np.intp]:
    """Rows to keep: for each curve the ``count`` lowest, near-duplicates merged on request."""
    order = np.lexsort((value, curve))
    if merge:
        same_curve = curve[order][1:] == curve[order][:-1]
        close = np.abs(theta[order][1:] - theta[order][:-1]).max(axis=1) < 1e-2
        order = order[np.concatenate([[True], ~(same_curve & close)])]
    begins = np.searchsorted(curve[order], np.arange(curve.max() + 1))
    rank = np.arange(len(order)) - begins[curve[order]]
    return order[rank < count]


def redraw(
    problem: Problem,
    theta: Array,
    run: NDArray[np.intp],
    count: int,
    resampling: str,
    between: Array,
    within: Array,
    degrees: Array,
    random_state: int,
    scatter: Array | float = 1.0,
) -> Array:
    """Refitted coordinates ``(curves, count, p)``; ``scatter (n,)`` is the noise of each point in units of
    the variances given."""
    curves, size = theta.shape
    if count == 0:
        return np.empty((curves, 0, size))
    generator = np.random.default_rng(random_state)
    shape = (curves, count, problem.log_y.shape[1])
    if resampling == "pairs":
        weights = resample_weights(run, count, generator)[None] * problem.weights[:, None]
        targets = np.broadcast_to(problem.log_y[:, None], shape)
    else:
        weights = np.broadcast_to(problem.weights[:, None], shape)
        clean = problem.form.log_prediction(theta, problem.features)
        noise = resample_noise(run, count, between, within, degrees, generator)
        targets = clean[:, None] + scatter * noise
    batch = Problem(
        problem.form, problem.features, targets.reshape(-1, shape[2]), weights.reshape(-1, shape[2]),
        problem.lower, problem.upper, problem.loss, problem.delta, problem.space, problem.censored,
    )  # fmt: skip
    start = np.repeat(theta, count, axis=0)
    # A resample's optimum is close: no stages are needed from here.
    refits = solve(batch, start, np.arange(len(start)), iterations=40, tolerance=1e-6)
    return refits.theta.reshape(curves, count, size)


def invert(
    form: Form, thetas: Array, log_loss: float, name: str, fixed: dict[str, float], log_x: Array
) -> Array:
    """Log scale at which each row reaches the loss, by bisection over 60 orders of magnitude."""
    column = form.inputs.index(name)

    def at(grid: Array) -> Array:
        columns = [grid if i == column else np.full(len(grid), np.log(fixed[other]))
                   for i, other in enumerate(form.inputs)]  # fmt: skip
        return np.stack(columns, axis=-1)

    centre = float(log_x[:, column].mean())
    low = np.full(len(thetas), centre - 70.0)
    high = np.full(len(thetas), centre + 70.0)

    def value(place: Array) -> Array:  # row i of thetas at its own place i, in blocks
        blocks = [slice(begin, begin + 64) for begin in range(0, len(thetas), 64)]
        return np.concatenate([np.diagonal(form.log_prediction(thetas[b], at(place[b]))) for b in blocks])

    with np.errstate(over="ignore", invalid="ignore"):
        never = value(high) > log_loss
        always = value(low) < log_loss
        for _ in range(60):
            middle = 0.5 * (low + high)
            above = value(middle) > log_loss
            low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.where(never, np.inf, np.where(always, -np.inf, 0.5 * (low + high)))
