"""How to spend a budget: parameters against tokens at fixed FLOPs, and whole units by largest remainder.

Compute-optimal training: Hoffmann et al., 2022, arXiv:2203.15556 (equation 4), with training FLOPs = 6 N D
(Kaplan et al., 2020, arXiv:2001.08361).  Forms without a closed answer are minimised along the line log N +
log D = log(C/6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from allometry.laws.forms import Array, Chinchilla, Form, Kaplan, KaplanOffset, get_form

if TYPE_CHECKING:
    from allometry.laws.uncertainty import Interval

__all__ = ["Allocation", "allocate", "apportion", "compute_optimal"]


@dataclass(frozen=True)
class Allocation:
    """The best split of ``flops`` = 6 x ``params`` x ``tokens``; intervals where a fit has draws."""

    params: float
    tokens: float
    loss: float
    flops: float
    params_interval: Interval | None = None
    tokens_interval: Interval | None = None
    loss_interval: Interval | None = None

    @property
    def tokens_per_param(self) -> float:
        """Tokens seen for each parameter."""
        return self.tokens / self.params


def compute_optimal(
    form: str | Form, params: dict[str, float], flops: float, *, method: str = "auto", **fixed: float
) -> Allocation:
    """Parameters and tokens that minimise a law's loss at a training budget.

    Parameters
    ----------
    form : str or Form
        A law of parameters and tokens.
    params : dict
        The law's parameters by name.
    flops : float
        Training budget, 6 N D.
    method : {"auto", "numeric"}
        ``"auto"`` uses the closed form where there is one (chinchilla, kaplan).
    **fixed : float
        Further inputs of the form, such as ``unique_tokens``.

    Raises
    ------
    ValueError
        The form has no parameters and tokens among its inputs, or the budget is not positive.

    Examples
    --------
    >>> law = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
    >>> best = compute_optimal("chinchilla", law, 5.76e23)
    >>> f"{best.params:.3g} {best.tokens_per_param:.3g}"
    '7.22e+10 18.4'
    """
    law = get_form(form)
    missing = [name for name in law.names if name not in params]
    if missing:
        raise ValueError(f"the {law.name} form also needs {missing}; parameters given: {sorted(params)}")
    theta = law.to_coordinates(np.array([[params[name] for name in law.names]]))
    log_n, log_d, log_loss = optimal_coordinates(law, theta, flops, method=method, fixed=fixed)
    return Allocation(
        float(np.exp(log_n[0])), float(np.exp(log_d[0])), float(np.exp(log_loss[0])), float(flops)
    )


def optimal_coordinates(
    form: Form, theta: Array, flops: float, *, method: str = "auto", fixed: dict[str, float]
) -> tuple[Array, Array, Array]:
    """Log parameters, log tokens and log loss, each ``(batch,)``, at the optimum of each row."""
    if "params" not in form.inputs or "tokens" not in form.inputs:
        raise ValueError(f"the {form.name} form has inputs {form.inputs}; an optimum needs params and tokens")
    if not (np.isfinite(flops) and flops > 0):
        raise ValueError(f"flops must be positive and finite, not {flops}")
    others = [name for name in form.inputs if name not in ("params", "tokens")]
    if set(others) != set(fixed):
        raise ValueError(
            f"the {form.name} form needs {others or 'no further inputs'} fixed; given {sorted(fixed)}"
        )
    budget = np.log(flops / 6.0)
    if method == "auto" and isinstance(form, Chinchilla):
        _, a, b, alpha, beta = theta.T
        log_n = (np.log(alpha) + a - np.log(beta) - b + beta * budget) / (alpha + beta)
    elif method == "auto" and isinstance(form, Kaplan | KaplanOffset):  # a floor moves no optimum
        log_nc, log_dc, alpha_n, alpha_d = theta[:, -4:].T
        ratio = alpha_n / alpha_d
        log_n = (np.log(ratio) + ratio * log_nc + budget - log_dc) / (1.0 + ratio)
    else:
        log_n = _minimise_on_line(form, theta, budget, fixed)
    loss = _diagonal(form, theta, log_n, budget, fixed)
    return log_n, budget - log_n, loss


def _line(form: Form, log_n: Array, budget: float, fixed: dict[str, float]) -> Array:
    columns = {"params": log_n, "tokens": budget - log_n}
    columns |= {name: np.full(len(log_n), np.log(value)) for name, value in fixed.items()}
    return np.stack([columns[name] for name in form.inputs], axis=-1)


def _diagonal(form: Form, theta: Array, log_n: Array, budget: float, fixed: dict[str, float]) -> Array:
    """Log loss of row i of theta at point i, in blocks: forms evaluate every row at every point."""
    out = np.empty(len(theta))
    for begin in range(0, len(theta), 64):
        part = slice(begin, begin + 64)
        out[part] = np.diagonal(form.log_prediction(theta[part], _line(form, log_n[part], budget, fixed)))
    return out


def _minimise_on_line(form: Form, theta: Array, budget: float, fixed: dict[str, float]) -> Array:
    """Grid, then golden section for each row: anywhere between one parameter and one token."""
    grid = np.linspace(0.0, budget, 241)
    values = form.log_prediction(theta, _line(form, grid, budget, fixed))
    best = np.clip(np.argmin(values, axis=1), 1, len(grid) - 2)
    low, high = grid[best - 1], grid[best + 1]
    golden = (np.sqrt(5.0) - 1.0) / 2.0
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left = _diagonal(form, theta, left, budget, fixed)
    at_right = _diagonal(form, theta, right, budget, fixed)
    for _ in range(34 if len(theta) < 10 else 14):
        lower = at_left < at_right
        low, high = np.where(lower, low, left), np.where(lower, right, high)
        fresh = np.where(lower, high - golden * (high - low), low + golden * (high - low))
        value = _diagonal(form, theta, fresh, budget, fixed)
        left, right, at_left, at_right = (
            np.where(lower, fresh, right),
            np.where(lower, left, fresh),
            np.where(lower, value, at_right),
            np.where(lower, at_left, value),
        )
    return 0.5 * (low + high)


def apportion(total: int, weights: Sequence[float], minimum: int = 0) -> list[int]:
    """Whole shares of ``total`` in proportion to ``weights``, by largest remainder, none below ``minimum``.

    >>> apportion(10, [1, 1, 1])
    [4, 3, 3]
    """
    shares = np.asarray(weights, dtype=float)
    if (
        shares.ndim != 1
        or not len(shares)
        or not np.isfinite(shares).all()
        or (shares < 0).any()
        or not shares.sum()
    ):
        raise ValueError(f"weights must be finite, not negative and not all zero; given {list(weights)}")
    spare = int(total) - int(minimum) * len(shares)
    if spare < 0:
        raise ValueError(f"{total} cannot be shared among {len(shares)} with at least {minimum} each")
    exact = spare * shares / shares.sum()
    whole = np.floor(exact + 1e-12).astype(int)
    order = np.argsort(-(exact - whole), kind="stable")
    whole[order[: spare - whole.sum()]] += 1
    return [int(value) + int(minimum) for value in whole]


def allocate(
    gains: Any, unit_cost: Any, budget: float, floor: int = 0, cap: int | None = None
) -> NDArray[np.intp]:
    """Units for each of several items under one budget, by the best gain per cost at every step.

    Parameters
    ----------
    gains : array (items, levels)
        Gain of the k-th further unit of each item.  Greedy is optimal where gains fall along a row and costs
        are equal; otherwise it is the usual knapsack heuristic.
    unit_cost : array (items,) or float
        Cost of one unit of each item.
    budget : float
        Total cost not to be exceeded.
    floor, cap : int
        Units that every item gets at least, and at most.

    Returns
    -------
    integer array (items,)

    Examples
    --------
    >>> allocate([[3.0, 1.0], [2.0, 1.5]], 1.0, 3).tolist()
    [1, 2]
    """
    gain = np.asarray(gains, dtype=float)
    if gain.ndim != 2 or not np.isfinite(gain).all():
        raise ValueError(f"gains must be a finite array (items, levels); the shape given is {gain.shape}")
    items, levels = gain.shape
    cost = np.broadcast_to(np.asarray(unit_cost, dtype=float), (items,))
    if (cost <= 0).any():
        raise ValueError("unit_cost must be positive")
    top = levels if cap is None else min(cap, levels)
    units = np.full(items, int(floor))
    spent = float((units * cost).sum())
    if spent > budget or floor > top:
        raise ValueError(
            f"a floor of {floor} units each costs {spent}, over the budget of {budget} or the cap {top}"
        )
    while True:
        rate = np.where(
            (units < top) & (spent + cost <= budget),
            gain[np.arange(items), np.minimum(units, levels - 1)] / cost,
            0.0,
        )
        best = int(np.argmax(rate))
        if rate[best] <= 0:
            return units
        units[best] += 1
        spent += float(cost[best])
