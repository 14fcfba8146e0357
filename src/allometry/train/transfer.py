"""Whether the best learning rate carries over: its optimum at each size, its drift, what a stale one costs.

The question of Greg Yang and others, "Tensor Programs V: Tuning Large Neural Networks via Zero-Shot
Hyperparameter Transfer", 2022, arXiv:2203.03466, of any model and any size: width, depth, tokens.

* At each size the best rate is the bottom of the valley of the seeds' mean losses, which may be skewed and
  end at a wall (:mod:`allometry.train.valley`).
* *Drift* is the slope of log best rate in log size: 0 where the rate carries over, about -1 in width for Adam
  under standard parametrization.
* *Transfer error*, in the loss's unit, is the loss at the rate that was tuned at the base size, less the loss
  at the size's own best rate.
* Seeds are the units: what they have in common across rates and sizes stays together. The jackknife over them
  gives the intervals, which are widened by what the valleys' shape leaves open, and takes off the bias of the
  transfer error, which noise in either optimum makes too large (half the curvature times the variance of the
  distance between them).
* An optimum at the end of a grid, or beside a lost run, is a bound: it is no part of the drift, and is said
  to be one. Where the base's rate loses a run the transfer error is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from allometry.train.learning_rates import learning_rate_sweep
from allometry.train.valley import Valley, unbroken

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["RateTransfer", "learning_rate_transfer", "transfer_sweep"]

Array = NDArray[np.float64]


def transfer_sweep(
    run: Callable[[Any, Any], Any], sizes: Sequence[float], grid: Sequence[float], *, size: str = "width",
    together: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """Run every rate of a grid at every size.

    Parameters
    ----------
    run : (size, rate) -> loss, or with ``together`` (size, list of rates) -> list of losses
        A loss may be a float, a sequence of floats (one a seed), or a mapping, as in
        :func:`allometry.train.learning_rate_sweep`.
    sizes : sequence of float
    grid : sequence of float
        Learning rates, wide enough that the best lies inside at every size.
    size : str
        The column's name: width, depth, ...
    together : bool

    Returns
    -------
    DataFrame
        ``size``'s column, learning_rate, seed, loss, status.

    >>> table = transfer_sweep(lambda width, rate: abs(rate * width - 1), [2, 4], [0.25, 0.5])
    >>> table["loss"].tolist()
    [0.5, 0.0, 0.0, 1.0]
    """
    if len(set(sizes)) != len(sizes) or not all(0 < one < math.inf for one in sizes):
        raise ValueError(f"sizes are positive numbers, each once, got {list(sizes)}")
    return pd.concat(
        [
            learning_rate_sweep(
                lambda rate, one=one: run(one, rate),
                grid,
                together=together,
            ).assign(**{size: one})[[size, "learning_rate", "seed", "loss", "status"]]
            for one in sizes
        ],
        ignore_index=True,
    )


@dataclass(frozen=True)
class RateTransfer:
    """What a sweep over sizes and rates says.

    Attributes
    ----------
    size : str
        What was varied beside the rate.
    base : float
        The size at which the rate is tuned that is carried to the others.
    table : DataFrame
        A row a size: ``best_rate`` with ``low`` and ``high``, ``edge`` ("low", "high" or empty: the best rate
        is then that end of the usable grid), ``best_loss``, ``transfer_error`` with ``error_low`` and
        ``error_high``; nan where one seed tells no interval. Of best rates it then tells the misfit.
    drift, drift_low, drift_high : float
        Exponent of the best rate in the size; nan where fewer than two optima lie inside their grids.
    level : float
        Of the intervals.
    seeds : int
    curves : DataFrame
        size, ``learning_rate``, ``loss`` (mean), ``spread`` (standard deviation over seeds), ``lost`` (share
        of runs).
    """

    size: str
    base: float
    table: pd.DataFrame
    drift: float
    drift_low: float
    drift_high: float
    level: float
    seeds: int
    curves: pd.DataFrame

    def __str__(self) -> str:
        share = f"{100 * self.level:g} %"
        told = f"best rate ~ {self.size}^{self.drift:.3g}"
        if math.isfinite(self.drift_low):
            told += f" [{self.drift_low:.3g}, {self.drift_high:.3g}] at {share}"
        if not math.isfinite(self.drift):
            told = "the drift of the best rate cannot be told: fewer than two optima lie inside their grids"
        return f"{told}\n{self.table.to_string(index=False, float_format=lambda value: f'{value:.4g}')}"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Loss against rate: optima with intervals, rates that lost runs (crossed), the rate carried over."""
        import matplotlib.pyplot as plt

        if ax is None:
            ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")[1]
        tones = plt.get_cmap("viridis")(np.linspace(0.1, 0.85, len(self.table)))
        for tone, row in zip(tones, self.table.itertuples(index=False), strict=True):
            one = self.curves[self.curves[self.size] == row[0]]
            x, y = one["learning_rate"].to_numpy(), one["loss"].to_numpy()
            spread = one["spread"].fillna(0.0).to_numpy()
            ax.plot(x, y, color=tone, marker="o", markersize=3, label=f"{self.size} {row[0]:g}")
            ax.fill_between(x, y - spread, y + spread, color=tone, alpha=0.15, linewidth=0)
            lost = one["lost"].to_numpy() > 0
            ax.plot(x[lost], y[lost], color=tone, marker="x", markersize=9, linestyle="none")
            if not row.edge:
                ax.plot(row.best_rate, row.best_loss, marker="D", markersize=7, color=tone, zorder=3)
                ax.hlines(row.best_loss, row.low, row.high, color=tone, linewidth=1.5, linestyle=":")
        carried = self.table.loc[self.table[self.size] == self.base, "best_rate"].iloc[0]
        ax.axvline(carried, color="0.5", linewidth=1, linestyle="--", zorder=0)
        best, worst = self.table["best_loss"].min(), self.curves["loss"].max()
        ceiling = self.table["best_loss"].max() + 0.6 * max(np.ptp(self.table["best_loss"]), 0.1 * best)
        ax.set_ylim(best - 0.05 * (ceiling - best), min(ceiling, worst) if worst > best else None)
        ax.set(xscale="log", xlabel="learning rate", ylabel="loss")
        ax.legend(frameon=False)
        return ax


def learning_rate_transfer(
    table: Any,
    size: str = "width",
    *,
    base: float | None = None,
    level: float = 0.95,
    lost_above: float = math.inf,
) -> RateTransfer:
    """Optimum at each size, drift, and transfer error, from a table of runs.

    Parameters
    ----------
    table : DataFrame or mapping of columns
        ``size``'s column, ``learning_rate``, ``loss`` and, where known, ``seed`` and ``status`` ("done" or
        "diverged"; a loss that is not finite is a lost run too). Grids may differ between sizes; every seed
        must have run every rate of its size, and sizes must share their seeds.
    size : str
        Name of the column that tells the size: width, depth, params, tokens, ...
    base : float, optional
        The size where the rate is tuned; the smallest by default.
    level : float
        Share of the intervals.
    lost_above : float
        A run that ends above this loss was lost; the loss at initialization is a good choice. Runs that
        explode often end finite, and rates beside such a wall are no best rates.

    Raises
    ------
    ValueError
        Columns are missing, there is one size, a size has fewer than three rates, seeds are not the same
        everywhere, or every run of a size was lost.

    >>> def run(width, rate):
    ...     return [(math.log2(rate * width)) ** 2 + noise for noise in (0.0, 0.1)]
    >>> found = learning_rate_transfer(transfer_sweep(run, [1, 2, 4], [2.0**k for k in range(-6, 4)]))
    >>> round(found.drift, 6), found.table["transfer_error"].round(6).tolist()
    (-1.0, [0.0, 1.0, 4.0])
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    frame = _checked(pd.DataFrame(table), size)
    frame.loc[frame["loss"] > lost_above, "loss"] = np.nan
    sizes = sorted(frame[size].unique())
    base = sizes[0] if base is None else float(base)
    if base not in sizes:
        raise ValueError(
            f"base {base:g} is no {size} of the table; it has {', '.join(f'{s:g}' for s in sizes)}"
        )
    found = {one: _curve(part, f"{size} {one:g}", level) for one, part in frame.groupby(size)}
    valleys = [found[one][0] for one in sizes]
    carried = found[base][0].best  # (1 + S,): of all seeds, then without each in turn
    best = np.stack([one.best for one in valleys])  # (sizes, 1 + S)
    error = np.stack([one.at(carried) - one.bottom for one in valleys])
    count = best.shape[1] - 1
    known = np.isfinite(error).all(axis=1)
    shrunk, wide = np.where(known, error[:, 0], np.inf), np.full(len(sizes), np.nan)
    if count > 1:
        kept = error[known]
        shrunk[known] = count * kept[:, 0] - (count - 1) * kept[:, 1:].mean(axis=1)
        tuned = found[base][0]
        askew = 0.0 if tuned.edge else tuned.shape_error
        for i in np.flatnonzero(known):
            # the rate that is tuned at the base may be off by what its valley's shape leaves open
            ends = [
                min(max(carried[0] + side, valleys[i].x[0]), valleys[i].x[-1]) for side in (-askew, askew)
            ]
            high, low = (valleys[i].at(np.full(1 + count, one))[0] for one in reversed(ends))
            shape = 0.0 if sizes[i] == base else _normal(level) * float(high - low) / 2
            wide[i] = math.hypot(_half(error[i, 1:], level), shape)
    inside = np.array([not one.edge for one in valleys])
    drift, off = math.nan, math.nan
    if inside.sum() > 1:
        x = np.log2(np.array(sizes, dtype=float)[inside])
        share = (x - x.mean()) / np.square(x - x.mean()).sum()
        slopes = share @ best[inside]
        open_shape = float(np.linalg.norm(share * [one.shape_error for one in valleys if not one.edge]))
        drift = float(slopes[0])
        off = math.hypot(_half(slopes[1:], level), _normal(level) * open_shape)
    out = pd.DataFrame({
        size: sizes, "best_rate": 2.0 ** best[:, 0], "low": [2.0**one.low for one in valleys],
        "high": [2.0**one.high for one in valleys], "edge": [one.edge for one in valleys],
        "best_loss": [one.bottom[0] for one in valleys],
        "transfer_error": shrunk, "error_low": shrunk - wide, "error_high": shrunk + wide,
    })  # fmt: skip
    curves = pd.concat([found[one][1].assign(**{size: one}) for one in sizes], ignore_index=True)
    return RateTransfer(
        size, base, out, drift, drift - off, drift + off, level, max(count, 1),
        curves[[size, "learning_rate", "loss", "spread", "lost"]],
    )  # fmt: skip


def _curve(part: pd.DataFrame, what: str, level: float) -> tuple[Valley, pd.DataFrame]:
    """The valley through the usable rates of one size, and what every rate came to."""
    grid = part.pivot(index="learning_rate", columns="seed", values="loss")
    values, rates = grid.to_numpy(dtype=float), grid.index.to_numpy(dtype=float)
    good = np.isfinite(values)
    if len(rates) < 3:
        raise ValueError(f"{what} has {len(rates)} learning rates; a best one takes three or more")
    if not good.all(axis=1).any():
        raise ValueError(f"every rate of {what} lost a run; try lower learning rates")
    with np.errstate(invalid="ignore"):
        means = np.where(
            good.any(axis=1), np.nansum(values, axis=1) / np.maximum(good.sum(axis=1), 1), np.nan
        )
        centred = np.where(good, values - means[:, None], 0.0)
        free = good.sum(axis=1) - 1
        spread = np.sqrt(np.square(centred).sum(axis=1) / np.where(free > 0, free, np.nan))
    usable = unbroken(means, good.all(axis=1))
    told = pd.DataFrame(
        {"learning_rate": rates, "loss": means, "spread": spread, "lost": 1 - good.mean(axis=1)}
    )
    return Valley.of(np.log2(rates[usable]), values[usable], level), told


def _half(left_out: Array, level: float) -> float:
    """Half an interval by the jackknife; nan for fewer than two seeds."""
    from scipy.stats import t

    count = len(left_out)
    if count < 2:
        return math.nan
    error = math.sqrt((count - 1) / count * float(np.square(left_out - left_out.mean()).sum()))
    return float(t.ppf((1 + level) / 2, count - 1)) * error


def _normal(level: float) -> float:
    from scipy.stats import norm

    return float(norm.ppf((1 + level) / 2))


def _checked(frame: pd.DataFrame, size: str) -> pd.DataFrame:
    missing = [name for name in (size, "learning_rate", "loss") if name not in frame]
    if missing:
        raise ValueError(f"the table lacks {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}")
    frame = frame.copy()
    if "seed" not in frame:
        frame["seed"] = 0
    for name in (size, "learning_rate"):
        values = pd.to_numeric(frame[name], errors="coerce").to_numpy(dtype=float)
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"{name} must be positive and finite in every row")
        frame[name] = values
    frame["loss"] = pd.to_numeric(frame["loss"], errors="coerce").to_numpy(dtype=float)
    if "status" in frame:
        frame.loc[frame["status"] != "done", "loss"] = np.nan
    frame.loc[~np.isfinite(frame["loss"]), "loss"] = np.nan
    if frame[size].nunique() < 2:
        raise ValueError(f"all runs have one {size}; a transfer takes two sizes or more")
    if frame.duplicated([size, "learning_rate", "seed"]).any():
        raise ValueError(
            f"a {size}, a learning rate and a seed stand in two rows; give every run a seed of its own"
        )
    seeds = frame["seed"].nunique()
    if (frame.groupby([size, "learning_rate"])["seed"].nunique() < seeds).any():
        raise ValueError(
            f"every one of the {seeds} seeds must have run every learning rate of every {size}; keep lost "
            "runs as rows"
        )
    return frame
