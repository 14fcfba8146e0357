"""Sample until something passes: accuracy, false answers and reward after K draws with a verifier that errs.

Benedikt Stroebl, Sayash Kapoor, Arvind Narayanan, 2024. arXiv:2411.17501

Up to K samples are drawn, and the first that the verifier accepts is the answer; if none is, there is no
answer.  With c, f and β of `AcceptanceTable`, a task is answered with probability 1 - β^K, and rightly with
c / (c + f) of that: more draws never raise what an answer is worth, they only make answers more common.

- For K up to the samples that a task has, the share of K of them without an accepted one is known exactly,
  C(n - m, K) / C(n, K) with m of n accepted: unbiased, and the mean over all orders in which the samples
  could have come.  The authors' notebook draws thousands of such orders instead.
- Beyond, or from rates, the geometric law β^K stands in.  It is biased where m is small: a task of which none
  of n samples was accepted counts as one of which none ever will be.
- All that is told is a mean over tasks, so resamples are one product of counts with a matrix (tasks, K).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from allometry.laws.acceptance import AcceptanceTable
from allometry.laws.uncertainty import Interval, resample_weights

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

__all__ = ["Ceiling", "ResamplingCurve", "ceiling", "false_share_by_attempt", "resampling_curve"]

Array = NDArray[np.float64]
_PARTS = ("accuracy", "false_rate", "abstain", "draws", "reward")


@dataclass(frozen=True, eq=False)
class ResamplingCurve:
    """What K draws bring; made by `resampling_curve`.

    Attributes
    ----------
    k : integer array (m,)
    accuracy, false_rate, abstain : array (m,)
        Shares of tasks answered rightly, answered wrongly, not answered; they add up to one.
    draws : array (m,)
        Samples drawn of a task, mean: it ends with the first that is accepted.
    reward : array (m,)
        ``accuracy - cost_false * false_rate - cost_sample * draws``.
    model : {"unbiased", "geometric"}
    warnings : list of str
    """

    k: NDArray[np.int64]
    accuracy: Array
    false_rate: Array
    abstain: Array
    draws: Array
    reward: Array
    model: str
    table: AcceptanceTable = field(repr=False)
    cost_false: float = 0.0
    cost_sample: float = 0.0
    warnings: list[str] = field(default_factory=list, repr=False)

    def interval(
        self, what: str = "accuracy", level: float = 0.9, *, resamples: int = 2000, random_state: int = 0
    ) -> Interval:
        """One of the curves with limits ``(m,)`` from resampling tasks.

        Raises
        ------
        ValueError
            There is no such curve, or there are not two tasks to resample.
        """
        if what not in _PARTS:
            raise ValueError(f"there is no curve {what!r}; there are {', '.join(_PARTS)}")
        parts = _by_task(self.table, self.k, self.model == "unbiased")
        values = _combine(parts, self.cost_false, self.cost_sample)[what]
        counts = task_shares(self.table, resamples, random_state)
        low, high = limits(counts @ values, level, len(self.table))
        return Interval(getattr(self, what), low, high, level)

    def frame(self, level: float = 0.9, **options: Any) -> pandas.DataFrame:
        """One row a K: every curve with its limits ``<curve>_low`` and ``<curve>_high``."""
        import pandas

        columns: dict[str, Any] = {"k": self.k}
        for what in _PARTS:
            told = self.interval(what, level, **options)
            columns |= {what: told.value, f"{what}_low": told.low, f"{what}_high": told.high}
        return pandas.DataFrame(columns).set_index("k")

    def plot(self, ax: Axes | None = None, level: float = 0.9) -> Axes:
        """Accuracy, false answers and, where errors or samples cost something, reward over K."""
        import matplotlib.pyplot as plt

        axes = plt.subplots()[1] if ax is None else ax
        costly = self.cost_false > 0 or self.cost_sample > 0
        for what in ("accuracy", "false_rate", *(["reward"] if costly else [])):
            told = self.interval(what, level)
            (line,) = axes.plot(self.k, told.value, label=what.replace("_", " "))
            axes.fill_between(self.k, told.low, told.high, color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set(xscale="log", xlabel="samples drawn at most, K", ylabel="share of tasks, or reward")
        axes.legend()
        return axes


def resampling_curve(
    table: AcceptanceTable,
    k: ArrayLike | None = None,
    *,
    cost_false: float = 0.0,
    cost_sample: float = 0.0,
    exact: bool | None = None,
) -> ResamplingCurve:
    """Accuracy, false answers, abstentions, draws and reward when up to K samples are drawn of each task.

    Parameters
    ----------
    table : AcceptanceTable
    k : integer array (m,), optional
        Draws allowed, at least 0; by default 1 to the fewest samples of a task, or to 200 for rates.
    cost_false : float
        What a wrong answer costs, a right one being worth 1 and none at all 0 (the paper's λ).
    cost_sample : float
        What a sample costs.
    exact : bool, optional
        True asks for the unbiased estimate, False for the geometric law; by default the first where samples
        suffice, and the second with a warning.

    Raises
    ------
    ValueError
        A cost is negative, K is no whole number, or K exceeds the samples where the exact estimate is asked
        for.

    Examples
    --------
    >>> table = AcceptanceTable.from_rates([0.5, 0.1], [0.0, 0.3])
    >>> resampling_curve(table, [1, 2, 1000]).accuracy.round(4).tolist()
    [0.3, 0.455, 0.625]
    """
    cost_false, cost_sample = costs(cost_false, cost_sample)
    most = None if table.samples is None else int(table.samples.min())
    wanted = np.arange(1, (most or 200) + 1) if k is None else np.atleast_1d(np.asarray(k))
    if wanted.ndim != 1 or not wanted.size or not np.isfinite(wanted).all():
        raise ValueError("k must be one or more numbers of samples")
    if (wanted < 0).any() or (wanted != np.round(wanted)).any():
        raise ValueError(f"k counts samples, whole and not negative; it holds {wanted.min()}")
    wanted = wanted.astype(np.int64)
    warnings = list(table.warnings)
    enough = most is not None and int(wanted.max()) <= most
    if exact and not enough:
        had = "rates, not samples" if most is None else f"tasks of {most} samples"
        raise ValueError(
            f"k reaches {int(wanted.max())} and the table holds {had}; draw no more than there are, or pass "
            "exact=False for the geometric law"
        )
    if exact is None and most is not None and not enough:
        warnings.append(f"k reaches {int(wanted.max())} where tasks have {most} samples: β^K is extrapolated")
    unbiased = enough if exact is None else exact
    curves = {
        name: table.weights @ values
        for name, values in _combine(_by_task(table, wanted, unbiased), cost_false, cost_sample).items()
    }
    return ResamplingCurve(
        wanted, **curves, model="unbiased" if unbiased else "geometric", table=table,
        cost_false=cost_false, cost_sample=cost_sample, warnings=warnings,
    )  # fmt: skip


def false_share_by_attempt(table: AcceptanceTable, k: ArrayLike) -> Array:
    """Of the answers found at the K-th draw, the share that is wrong, ``(m,)``: it rises as easy tasks leave.

    NaN where no answer is found any more. The geometric law.

    >>> table = AcceptanceTable.from_rates([0.8, 0.1], [0.05, 0.1])
    >>> false_share_by_attempt(table, [1, 10]).round(3).tolist()
    [0.143, 0.5]
    """
    attempts = np.atleast_1d(np.asarray(k))
    if (attempts < 1).any() or (attempts != np.round(attempts)).any():
        raise ValueError(f"attempts count from 1; the least given is {attempts.min()}")
    left = table.rejected[:, None] ** (attempts[None, :] - 1.0) * table.weights[:, None]
    found, false = (table.right + table.wrong) @ left, table.wrong @ left
    with np.errstate(invalid="ignore"):
        return np.where(found > 0, false / np.where(found > 0, found, 1.0), np.nan)


@dataclass(frozen=True)
class Ceiling:
    """Where resampling ends, however many samples are paid for; made by `ceiling`.

    Attributes
    ----------
    accuracy : Interval
        Share of tasks answered rightly in the limit, those of which nothing was ever accepted counted as
        never answered.
    best : Interval
        The same if every one of those would be answered rightly.
    seen : Interval
        Mean of c / (c + f) over the tasks of which something was accepted.  It flatters weak generators, of
        which these are the easy tasks.
    pooled : Interval
        Share of correct among all accepted samples: what an answer is worth at the first draw.
    unseen : int
        Tasks of which nothing was accepted.
    """

    accuracy: Interval
    best: Interval
    seen: Interval
    pooled: Interval
    unseen: int

    def __str__(self) -> str:
        return f"{self.accuracy} to {self.best.value:.4g} ({self.unseen} tasks never answered)"


def ceiling(
    table: AcceptanceTable, level: float = 0.9, *, resamples: int = 2000, random_state: int = 0
) -> Ceiling:
    """The accuracy that no number of samples exceeds; intervals from ``resamples`` draws of tasks, if any.

    >>> told = ceiling(AcceptanceTable.from_rates([0.5, 0.1, 0.0], [0.0, 0.3, 0.0]))
    >>> round(told.accuracy.value, 4), round(told.best.value, 4), told.unseen
    (0.4167, 0.75, 1)
    """
    accepted = table.right + table.wrong
    seen = accepted > 0
    worth = np.where(seen, table.right / np.where(seen, accepted, 1.0), 0.0)
    columns = np.stack([worth, np.where(seen, worth, 1.0), seen, table.right, accepted], axis=1)
    point = told_of(table.weights @ columns)
    alone = len(table) < 2 or table.weighted or not resamples
    drawn = None if alone else told_of(task_shares(table, resamples, random_state) @ columns)

    def of(index: int) -> Interval:
        low = high = np.asarray(np.nan)
        if drawn is not None:
            low, high = limits(drawn[index], level, len(table))
        return Interval(float(point[index]), float(low), float(high), level)

    return Ceiling(of(0), of(1), of(2), of(3), table.unseen)


def told_of(means: Array) -> tuple[Array, Array, Array, Array]:
    """The four ceilings from means ``(..., 5)`` over tasks."""
    worst, best, seen, right, accepted = np.moveaxis(means, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return worst, best, worst / seen, right / accepted


# --- what the files on resampling share ---


def costs(cost_false: float, cost_sample: float) -> tuple[float, float]:
    """Both as floats, refused where negative or not finite."""
    for name, value in (("cost_false", cost_false), ("cost_sample", cost_sample)):
        if not np.isfinite(value) or value < 0:
            raise ValueError(f"{name} is {value}; a cost is at least 0, in units of a right answer")
    return float(cost_false), float(cost_sample)


def task_shares(table: AcceptanceTable, resamples: int, random_state: int) -> Array:
    """Shares ``(resamples, T)`` that tasks have when T of them are drawn with replacement."""
    if table.weighted or len(table) < 2:
        raise ValueError("an interval needs two or more tasks to resample; these are kinds of tasks, or one")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    generator = np.random.default_rng(random_state)
    return resample_weights(np.arange(len(table)), resamples, generator) / len(table)


def limits(drawn: Array, level: float, tasks: int) -> tuple[Array, Array]:
    """Ends of the interval from resamples ``(R, ...)``.

    Percentiles lie too close for few tasks, by the factor sqrt((T - 1) / T) and because Student's quantile is
    wider than the normal one; they are taken further out by as much (Hesterberg, 2015, section 3.3).
    """
    from scipy import special

    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    out = special.ndtr(np.sqrt(tasks / (tasks - 1)) * special.stdtrit(tasks - 1, (1 - level) / 2))
    # A resample that holds nothing to judge by is NaN; K may be infinite, so nothing is interpolated.
    low, high = np.nanquantile(drawn, [out, 1 - out], axis=0, method="nearest")
    return low, high


def _by_task(table: AcceptanceTable, k: NDArray[np.int64], unbiased: bool) -> dict[str, Array]:
    """Each task's accuracy, false answers, abstentions and draws after K, ``(T, m)``."""
    if unbiased:
        n, m, _ = table.counts()
        j = np.arange(int(k.max()))
        # C(n - m, K) / C(n, K) as a running product of (n - m - j) / (n - j)
        kept = np.maximum(n[:, None] - m[:, None] - j, 0.0) / np.maximum(n[:, None] - j, 1.0)
        left = np.concatenate([np.ones((len(table), 1)), np.cumprod(kept, axis=1)], axis=1)
        spent = np.concatenate([np.zeros((len(table), 1)), np.cumsum(left[:, :-1], axis=1)], axis=1)
        none, draws = left[:, k], spent[:, k]
    else:
        none, draws = geometric(table.rejected, k)
    accepted = table.right + table.wrong
    worth = np.where(accepted > 0, table.right / np.where(accepted > 0, accepted, 1.0), 0.0)[:, None]
    answered = 1.0 - none
    right = worth * answered
    return {"accuracy": right, "false_rate": answered - right, "abstain": none, "draws": draws}


def geometric(rejected: Array, k: ArrayLike) -> tuple[Array, Array]:
    """β^K and (1 - β^K) / (1 - β), the draws expected, for β ``(T,)`` and K ``(m,)``: each ``(T, m)``."""
    beta, count = rejected[:, None], np.asarray(k, dtype=float)[None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.log(beta)
        none = np.where(count == 0, 1.0, np.exp(count * log))
        answered = np.where(count == 0, 0.0, -np.expm1(count * log))
        draws = np.where(beta == 1.0, count, answered / np.where(beta == 1.0, 1.0, 1.0 - beta))
    return none, draws


def _combine(parts: dict[str, Array], cost_false: float, cost_sample: float) -> dict[str, Array]:
    reward = parts["accuracy"] - cost_false * parts["false_rate"] - cost_sample * parts["draws"]
    return {**parts, "reward": reward}
