"""How many samples pay, when a wrong answer costs something: the best K, and whether there is one.

Benedikt Stroebl, Sayash Kapoor, Arvind Narayanan, 2024. arXiv:2411.17501

With w = c - λ f - κ (λ the cost of a wrong answer, κ that of a sample) the K-th draw adds w β^(K-1), in the
mean over tasks.  Easy tasks leave early; what is left is hard, slow, and may have w < 0: the reward rises and
then falls.  If the tasks that stay longest have w > 0 it rises for ever and the best K is infinite.  Double
precision hides that: increments fall below its grain somewhere between K = 50 and K = 700, and the largest of
the rounded rewards stands there.  Such a K is no optimum, and several in the paper's tables are of this kind;
here signs are decided with the slowest power divided out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from allometry.laws.acceptance import AcceptanceTable
from allometry.laws.resampling import costs, geometric, limits, task_shares
from allometry.laws.uncertainty import Interval

__all__ = ["OptimalK", "optimal_k"]

Array = NDArray[np.float64]
_DENSE = 256  # every K up to here; above, steps of three percent
_SPLITS = 50


@dataclass(frozen=True)
class OptimalK:
    """How many samples to allow; made by `optimal_k`.

    Attributes
    ----------
    k : float
        0 says that answering costs more than it brings; infinity that every further sample pays.
    reward : Interval
        At that K (in the limit, where it is infinite), K being held as it is while tasks are resampled.
    is_infinite : bool
    interval : Interval
        Of K, from resampling tasks.
    share_infinite : float
        Share of the resamples in which K is infinite.
    enough : int
        The smallest K with 99 % of the reward: what to allow where K is infinite.
    held_out : float
        Reward where K is chosen on one half of each task's samples and judged on the other, over random
        halves. ``reward`` was judged by the samples that chose K and flatters it; this does not, and is a
        little low, since half the samples choose less well. NaN for rates.
    warnings : list of str
    """

    k: float
    reward: Interval
    is_infinite: bool
    interval: Interval
    share_infinite: float
    enough: int
    held_out: float
    warnings: list[str] = field(default_factory=list, repr=False)

    def __str__(self) -> str:
        said = "every sample pays" if self.is_infinite else f"K = {self.k:g}"
        return f"{said} [{self.interval.low:g}, {self.interval.high:g}], reward {self.reward}"


def optimal_k(
    table: AcceptanceTable,
    *,
    cost_false: float = 0.0,
    cost_sample: float = 0.0,
    level: float = 0.9,
    resamples: int = 2000,
    random_state: int = 0,
) -> OptimalK:
    """The K with the largest expected reward, by the geometric law.

    Parameters
    ----------
    table : AcceptanceTable
    cost_false, cost_sample : float
        As in `resampling_curve`.
    level : float
        Share of the intervals.
    resamples : int
        Draws of tasks with replacement; 0 for none.
    random_state : int

    Raises
    ------
    ValueError
        A cost is negative.

    Examples
    --------
    >>> table = AcceptanceTable.from_rates([0.87, 0.14], [0.03, 0.21], weights=[0.56, 0.44])
    >>> [optimal_k(table, cost_false=cost).k for cost in (0.5, 0.7, 4, 8)]
    [inf, 3.0, 1.0, 0.0]
    """
    cost_false, cost_sample = costs(cost_false, cost_sample)
    margin = table.right - cost_false * table.wrong - cost_sample
    beta = table.rejected
    k = _best(beta, table.weights * margin)
    grid = _grid(beta)
    reward = float(table.weights @ _worth(margin, beta, np.array([k]))[:, 0])
    warnings = list(table.warnings)
    if table.unseen:
        warnings.append(
            f"nothing was accepted of {table.unseen} of {len(table)} tasks: what they would bring beyond "
            "these samples is not known"
        )
    nothing = float("nan")
    of_k, of_reward, share = (k, nothing, nothing), (reward, nothing, nothing), nothing
    if resamples and len(table) > 1 and not table.weighted:
        shares = task_shares(table, resamples, random_state)
        drawn = _best_of(shares, margin, beta, grid)
        low, high = limits(drawn, level, len(table))
        of_k, share = (k, min(float(low), k), max(float(high), k)), float(np.isinf(drawn).mean())
        low, high = limits(shares @ _worth(margin, beta, np.array([k]))[:, 0], level, len(table))
        of_reward = (reward, float(low), float(high))
    held_out = nothing
    if table.samples is not None and int(table.samples.min()) >= 2 and not table.weighted:
        held_out = _held_out(table, cost_false, cost_sample, grid, random_state)
    return OptimalK(
        k, Interval(*of_reward, level), bool(np.isinf(k)), Interval(*of_k, level), share,
        _enough(table.weights * margin, beta, grid, k, reward), held_out, warnings,
    )  # fmt: skip


def _worth(margin: Array, beta: Array, k: Array) -> Array:
    """Reward of each task after K draws ``(T, m)``, w (1 - β^K) / (1 - β); K may be infinite."""
    _, draws = geometric(beta, np.where(np.isinf(k), 0.0, k))
    with np.errstate(divide="ignore"):
        without_end = np.where(margin == 0, 0.0, 1.0 / (1.0 - beta))
    draws = np.where(np.isinf(k)[None, :], without_end[:, None], draws)
    return np.where(margin[:, None] == 0, 0.0, margin[:, None] * draws)


def _grid(beta: Array) -> Array:
    """K from 0 to where the slowest task that ever ends has ended, to one part in 10¹²."""
    slow = beta[beta < 1]
    slowest = float(slow.max()) if len(slow) else 0.0
    last = 28.0 / -np.log(slowest) if slowest > 0 else 1.0
    steps = max(0, int(np.ceil(np.log(max(last, 1.0) / _DENSE) / np.log(1.03))))
    sparse = np.ceil(_DENSE * 1.03 ** np.arange(steps + 1))
    return np.unique(np.concatenate([np.arange(_DENSE + 1.0), sparse]))


def _by_speed(beta: Array) -> tuple[Array, NDArray[np.intp]]:
    """Different β, the slowest first ``(g,)``, and which of them each task has ``(T,)``."""
    speeds, place = np.unique(-np.round(beta, 12), return_inverse=True)
    return -speeds, place


def _best(beta: Array, weighted: Array) -> float:
    """The first K at which the reward is largest, 0 and infinity among them; exact in the signs."""
    speeds, place = _by_speed(beta)
    sums = np.bincount(place, weighted, len(speeds))
    size = np.bincount(place, np.abs(weighted), len(speeds))
    counts = np.abs(sums) > 1e-12 * size
    if not counts.any():
        return 0.0
    speeds, sums = speeds[counts], sums[counts]
    ratio = speeds / speeds[0] if speeds[0] > 0 else np.zeros_like(speeds)

    def adds(k: Array) -> Array:  # the sign of what the K-th draw adds
        return np.sum(sums * ratio ** (k[:, None] - 1.0), axis=1)

    grid = _grid(speeds)[1:]
    grid = np.append(grid, grid[-1] * 2.0 ** np.arange(1, 30))  # two slow speeds may lie close together
    rises = adds(grid) > 0
    ends = np.flatnonzero(rises[:-1] & ~rises[1:])
    low, high = grid[ends], grid[ends + 1]
    while (high - low > 1).any():  # the last K that adds, of all descents at once
        middle = np.floor((low + high) / 2)
        up = adds(middle) > 0
        low, high = np.where(up, middle, low), np.where(up, high, middle)
    candidates = np.concatenate([[0.0], low])
    if speeds[0] > 0 and sums[0] > 0:
        candidates = np.append(candidates, np.inf)
    rewards = sums @ _worth(np.ones_like(sums), speeds, candidates)
    if np.isinf(candidates[-1]) and rewards[-1] >= rewards.max() * (1 - 1e-12):
        return float("inf")
    return float(candidates[np.argmax(rewards)])


def _best_of(shares: Array, margin: Array, beta: Array, grid: Array) -> Array:
    """The best K of the grid, or infinity, for many mixtures of tasks ``(R, T)``: ``(R,)``."""
    speeds, place = _by_speed(beta)
    member = np.zeros((len(beta), len(speeds)))
    member[np.arange(len(beta)), place] = margin
    sums = shares @ member  # (R, g), the slowest first
    first = np.argmax(np.abs(sums) > 1e-12, axis=1)
    rises = np.take_along_axis(sums, first[:, None], axis=1)[:, 0] > 0
    slow = (speeds[first] > 0) & (speeds[first] < 1)
    without_end = sums @ np.where(speeds < 1, 1.0 / np.where(speeds < 1, 1.0 - speeds, 1.0), 0.0)
    rewards = shares @ _worth(margin, beta, grid)
    best = np.argmax(rewards, axis=1)
    top = np.take_along_axis(rewards, best[:, None], axis=1)[:, 0]
    infinite = rises & slow & (top > 0) & (without_end >= top * (1 - 1e-12))
    return np.where(infinite, np.inf, grid[best])


def _enough(weighted: Array, beta: Array, grid: Array, k: float, reward: float) -> int:
    if k == 0 or reward <= 0:
        return 0
    grid = np.append(grid[grid <= k], k) if np.isfinite(k) else grid
    enough = weighted @ _worth(np.ones_like(weighted), beta, grid) >= 0.99 * reward
    first = int(np.argmax(enough))
    if not enough.any() or first == 0:
        return int(grid[-1] if first or not enough.any() else 0)
    low, high = grid[first - 1], grid[first]
    between = np.arange(low + 1, high + 1) if high - low < 1e5 else np.array([high])
    reaches = weighted @ _worth(np.ones_like(weighted), beta, between) >= 0.99 * reward
    return int(between[np.argmax(reaches)])


def _held_out(
    table: AcceptanceTable, cost_false: float, cost_sample: float, grid: Array, random_state: int
) -> float:
    """Mean reward of K chosen on half of the samples and judged on the other half, over random halves."""
    n, m, g = (one.astype(np.int64) for one in table.counts())
    generator = np.random.default_rng(random_state)
    half, shape = n // 2, (_SPLITS, len(n))
    right = generator.hypergeometric(g, n - g, half, size=shape)
    wrong = generator.hypergeometric(m - g, n - m, half - right, size=shape)
    grid = np.unique(np.ceil(np.geomspace(1.0, grid[-1], 100)))
    grid = np.concatenate([[0.0], grid])

    def rewards(right: Array, wrong: Array) -> Array:  # counts over samples (splits, T), to (splits, m)
        margin, beta = right - cost_false * wrong - cost_sample, np.clip(1.0 - right - wrong, 0.0, 1.0)
        beta = np.where(right + wrong == 0, 1.0, beta)
        return _worth(margin.ravel(), beta.ravel(), grid).reshape(*margin.shape, len(grid)).mean(axis=1)

    chosen = rewards(right / half, wrong / half)
    judged = rewards((g - right) / (n - half), (m - g - wrong) / (n - half))
    best = np.argmax(chosen, axis=1)
    return float(np.take_along_axis(judged, best[:, None], axis=1).mean())
