"""How much to filter: the best union of pools for every budget, where it changes, what a fixed filter costs.

Goyal, Maini, Lipton, Raghunathan and Kolter, 2024, arXiv:2404.07177, section on the best pool.  Pools are
ordered from the best; candidates are the unions of the first 1, 2, ... of them.  Beyond the paper: mixtures
with free weights, budgets at which the answer switches with their intervals, and regret.

- All unions, budgets and resamples are one call of the law.
- With free weights the logarithm of the error is a sum with one term for each pool's weight, so that the best
  weights on a grid of 1/120 are found exactly, by dynamic programming over pools.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from allometry.laws.law import Array
from allometry.laws.utility import UtilityLaw

if TYPE_CHECKING:
    import pandas

__all__ = ["PoolPlan", "plan_pools"]

_GRID = 240  # budgets among which switches are looked for
_STEPS = 120  # a free weight is a multiple of one over this


@dataclass(frozen=True, eq=False)
class PoolPlan:
    """Which pools to train on; made by `plan_pools`.

    Attributes
    ----------
    unions : list of str
        Candidates, from the strictest filter to none.
    budgets : array (B,)
        In samples.
    errors : array (B, unions)
        As foretold.
    best : DataFrame
        A row a budget: ``union``, ``error`` with its interval ``low`` and ``high``, and ``sure``, the share
        of resamples in which that union is the best; with free weights also a column for each pool's share.
    frontier : DataFrame
        A row for each stretch of budgets: ``union`` is the best ``from`` one budget ``to`` another. ``low``
        and ``high`` are the interval of the budget at which it takes over; they may be 0 or infinite, where
        resamples are without that switch.
    regret : DataFrame
        A row for each union that is taken whatever the budget: ``mean`` and ``worst`` relative excess of its
        error over the best one's, over the budgets.
    """

    unions: list[str]
    budgets: Array
    errors: Array
    best: pandas.DataFrame
    frontier: pandas.DataFrame
    regret: pandas.DataFrame


def plan_pools(
    law: UtilityLaw,
    budgets: Sequence[float] | Array,
    max_pools: int | None = None,
    weights: str = "equal",
    *,
    order: Sequence[str] | None = None,
    level: float = 0.9,
) -> PoolPlan:
    """Find the best union of pools for each budget.

    Parameters
    ----------
    law : UtilityLaw
        Fitted.
    budgets : array (B,)
        Samples that training will see.
    max_pools : int, optional
        The largest union that is considered.
    weights : {"equal", "free"}
        Every sample of a union equally often; or, for the ``"utility"`` kind with its floor outside, any
        shares, chosen anew for each budget.
    order : sequence of str, optional
        Pools from the best; by default by utility.
    level : float
        Of the intervals, which need resamples.

    Raises
    ------
    ValueError
        Budgets are not positive, the order names unknown pools, or free weights are asked of a law that
        cannot have them.

    Examples
    --------
    >>> law = UtilityLaw.known({"A": 0.2, "B": 0.15}, {"A": 2.0, "B": 2.0}, {"A": 1e4, "B": 1e4}, a=100.0)
    >>> plan_pools(law, [1e4, 1e6]).best["union"].tolist()
    ['A', 'A+B']
    """
    import pandas

    amounts = np.unique(np.asarray(budgets, dtype=float))
    if not len(amounts) or not (np.isfinite(amounts) & (amounts > 0)).all():
        raise ValueError("budgets must be positive numbers of samples")
    if weights not in ("equal", "free"):
        raise ValueError(f"weights must be 'equal' or 'free', not {weights!r}")
    if max_pools is not None and not 1 <= max_pools <= len(law.pools):
        raise ValueError(f"max_pools must be from 1 to {len(law.pools)}, not {max_pools}")
    ranked = sorted(law.pools, key=lambda pool: -law.utility[pool]) if order is None else list(order)
    chosen = [ranked[: i + 1] for i in range(max_pools or len(ranked))]
    shares = np.stack([law.shares(pools) for pools in chosen])
    unions = ["+".join(pools) for pools in chosen]

    low, high = amounts[0], amounts[-1]
    grid = np.unique(np.concatenate([amounts, np.geomspace(low, max(high, low * 1.0001), _GRID)]))
    point, draws = _errors(law, grid, shares)
    here = np.searchsorted(grid, amounts)
    winner = point[here].argmin(axis=1)
    tails = [(1 - level) / 2, (1 + level) / 2]
    best = pandas.DataFrame({"budget": amounts, "union": [unions[i] for i in winner]})
    best["error"] = np.exp(point[here, winner])
    if len(draws):
        ends = np.exp(np.quantile(draws[:, here, winner], tails, axis=0))
        best["low"], best["high"] = ends
        best["sure"] = (draws[:, here].argmin(axis=2) == winner).mean(axis=0)
    excess = np.exp(point[here] - point[here].min(axis=1, keepdims=True)) - 1
    regret = pandas.DataFrame({"union": unions, "mean": excess.mean(axis=0), "worst": excess.max(axis=0)})
    frontier = _frontier(grid, point, draws, unions, tails)
    if weights == "free":
        best = _free(law, amounts, ranked[: len(chosen)], level)
    return PoolPlan(unions, amounts, np.exp(point[here]), best, frontier, regret)


def _errors(law: UtilityLaw, amounts: Array, shares: Array) -> tuple[Array, Array]:
    """Log errors ``(amounts, unions)``, and those of resamples ``(draws, amounts, unions)``."""
    fit = law.fit_
    x = {"samples": np.repeat(amounts, len(shares)), "weights": np.tile(shares, (len(amounts), 1))}
    features = fit.form.features(x)
    shape = (len(amounts), len(shares))
    point = fit.form.log_prediction(fit.theta[None], features).reshape(shape)
    blocks = [fit.theta_draws[i : i + 500] for i in range(0, len(fit.theta_draws), 500)]
    told = [fit.form.log_prediction(block, features).reshape(-1, *shape) for block in blocks]
    return point, np.concatenate(told) if told else np.empty((0, *shape))


def _frontier(
    grid: Array, point: Array, draws: Array, unions: list[str], tails: list[float]
) -> pandas.DataFrame:
    """Stretches of the grid with one best union, and when each of them takes over from the one before."""
    import pandas

    best = point.argmin(axis=1)
    starts = np.flatnonzero(np.diff(best, prepend=-1))
    rows: list[dict[str, Any]] = []
    for i, start in enumerate(starts):
        row = {"union": unions[best[start]], "from": grid[0], "to": grid[-1], "low": np.nan, "high": np.nan}
        if i > 0:
            old, new = best[starts[i - 1]], best[start]
            row["from"] = float(_switch(grid, point[None, :, new] - point[None, :, old])[0])
            if len(draws):
                when = _switch(grid, draws[:, :, new] - draws[:, :, old])
                row["low"], row["high"] = np.quantile(when, tails, method="nearest")
            rows[-1]["to"] = row["from"]
        rows.append(row)
    return pandas.DataFrame(rows)


def _switch(grid: Array, gap: Array) -> Array:
    """Budget ``(draws,)`` from which a gap of log errors ``(draws, grid)`` stays negative.

    Zero where it is negative throughout, infinite where it is positive at the end.
    """
    behind: NDArray[np.bool_] = gap >= 0
    last = gap.shape[1] - 1 - behind[:, ::-1].argmax(axis=1)  # the last budget at which the old union wins
    inner = np.minimum(last, gap.shape[1] - 2)
    left, right = (np.take_along_axis(gap, (inner + i)[:, None], axis=1)[:, 0] for i in (0, 1))
    falls = left > right
    part = np.clip(np.where(falls, left / np.where(falls, left - right, 1.0), 0.0), 0.0, 1.0)
    log = np.log(grid)
    found = np.exp(log[inner] + part * (log[inner + 1] - log[inner]))
    return np.where(~behind.any(axis=1), 0.0, np.where(last == gap.shape[1] - 1, np.inf, found))


def _free(law: UtilityLaw, amounts: Array, pools: list[str], level: float) -> pandas.DataFrame:
    """The best shares for each budget, and their errors."""
    import pandas

    if law.kind != "utility" or law.floor != "outside":
        raise ValueError(
            "free weights need the law of kind 'utility' with its floor outside, whose logarithm is a sum "
            "over pools"
        )
    form, theta = law._curves, law.fit_.theta
    count = len(law.pools)
    every = np.arange(_STEPS + 1) / _STEPS
    gain = np.zeros((len(pools), len(amounts), _STEPS + 1))  # what a pool adds to -log error at each share
    for i, pool in enumerate(pools):
        place = law.pools.index(pool)
        for j, share in enumerate(every[1:], 1):
            gain[i, :, j] = form.gain(theta, place, float(share), amounts)
    total, choice = gain[0], np.zeros((len(pools), len(amounts), _STEPS + 1), dtype=np.intp)
    choice[0] = np.arange(_STEPS + 1)
    used, own = np.arange(_STEPS + 1)[:, None], np.arange(_STEPS + 1)[None]
    allowed = own <= used
    for i in range(1, len(pools)):
        options = np.where(allowed, total[:, np.maximum(used - own, 0)] + gain[i][:, None], -np.inf)
        choice[i] = options.argmax(axis=2)
        total = options.max(axis=2)
    left = np.full(len(amounts), _STEPS)
    shares = np.zeros((len(amounts), count))
    for i in reversed(range(len(pools))):
        taken = choice[i][np.arange(len(amounts)), left]
        shares[:, law.pools.index(pools[i])] = taken / _STEPS
        left = left - taken
    named = ["+".join(p for p in pools if row[law.pools.index(p)] > 0) for row in shares]
    frame = pandas.DataFrame({"budget": amounts, "union": named})
    x = {"samples": amounts, "weights": shares}
    frame["error"] = law.fit_.predict(x)
    if len(law.fit_.theta_draws):
        told = law.fit_.interval(x, level)
        frame["low"], frame["high"] = told.low, told.high
    for i, pool in enumerate(law.pools):
        frame[pool] = shares[:, i]
    return frame
