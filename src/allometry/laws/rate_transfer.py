"""Does a learning rate that was tuned small keep its meaning when the model grows?

Greg Yang and others, "Tensor Programs V", 2022, arXiv:2203.03466, draw loss against rate, a curve a size:
under standard parametrization the best rate falls like one over width, under maximal update the minima lie
above one another. Depth has the same picture (Yang, Yu, Zhu and Hayou, 2023, arXiv:2310.02244). Here it is
read off any table of runs, in numbers:

* *Best rate*: vertex of a parabola in log rate through the points about the lowest mean loss. A lowest point
  at the end of the grid, or beside a lost run, is a bound and no minimum, and is said to be.
* *Slope* of log best rate in log size: 0 transfers.
* *Transfer error*, in nats: the loss at the rate that is best at the smallest size, less the least loss of
  the size's own curve. It is what one pays for not tuning again.

The least of several noisy losses is too small by luck, and so is a loss at a rate that luck chose. Both ends
are therefore read off the fitted curve; the bias that is left is taken out by the jackknife over seeds, which
gives the variance as well, and limits are Student's. Where two rates are equal the error is a square, flat in
both: its variance there, twice the squared bias, is added. All refits are one product of matrices. Few seeds
are the rule, which is why nothing is bootstrapped: of three seeds a bootstrap knows ten samples, and its
intervals are too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from allometry.laws.uncertainty import Interval

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

__all__ = ["RateTransfer", "rate_transfer"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RateTransfer:
    """What `rate_transfer` found.

    Attributes
    ----------
    size : str
        Name of what is scaled.
    sizes, rates : array (S,), (R,)
        Rising.
    losses : array (S, R, K)
        Of each size, rate and seed; nan where the run was lost.
    best : DataFrame (S rows)
        By size: best_rate, low, high (0 or infinity where open), loss (of the curve there), edge ("low",
        "high" or ""), transfer_error, error_low, error_high (nats), lost (runs at all rates). No limits with
        one seed. An interval that reaches below 0 says that no error is seen.
    slope : Interval
        Of log best rate in log size, over sizes whose optimum lies within the grid; nan below two of them.
        About 0: rates transfer. Standard parametrization has about -1 in width.
    notes : list of str
        What to know before believing it.
    level : float
    """

    size: str
    sizes: Array
    rates: Array
    losses: Array
    best: pandas.DataFrame
    slope: Interval
    notes: list[str]
    level: float

    def table(self) -> pandas.DataFrame:
        """`best`, a row a size."""
        return self.best

    def plot(self, ax: Axes | None = None) -> Axes:
        """Loss against rate, a curve a size, optima marked (hollow: bounds); broken, the smallest's rate."""
        if ax is None:
            from matplotlib.figure import Figure

            ax = Figure(figsize=(6, 4), layout="constrained").subplots()
        from matplotlib import colormaps

        colors = colormaps["viridis"](np.linspace(0.85, 0.0, len(self.sizes)))
        means = self.losses.mean(axis=2)  # nan where a run was lost: the curve ends there
        for size, curve, row, color in zip(self.sizes, means, self.best.itertuples(), colors, strict=True):
            ax.plot(self.rates, curve, "-", color=color, lw=1.2, label=f"{self.size} {size:g}")
            open_ended = bool(row.edge)
            ax.plot(
                row.best_rate, row.loss, "v" if open_ended else "o", color=color, mec="black",
                mfc="white" if open_ended else color, zorder=3,
            )  # fmt: skip
        ax.axvline(self.best["best_rate"].iloc[0], color="0.5", lw=0.9, ls="--")
        low = float(self.best["loss"].min())
        reach = float(np.nanmax(np.nanmin(means, axis=1))) - low + 3 * float(np.nanstd(means[0]))
        ax.set(
            xscale="log",
            xlabel="learning rate",
            ylabel="loss, nats",
            ylim=(low - 0.1 * reach, low + 1.5 * reach),
        )
        ax.legend(frameon=False, fontsize=8)
        return ax


def rate_transfer(table: Any, size: str = "width", *, points: int = 3, level: float = 0.95) -> RateTransfer:
    """Best rate a size, how it moves, and what it costs to keep the smallest one's.

    Parameters
    ----------
    table : DataFrame or mapping of columns (n,)
        ``size``, ``learning_rate``, ``loss`` in nats, and where there are several ``seed``; a row a run. A
        lost run is a row: its loss not finite, or its ``status``, where there is such a column, not "done".
        Every size, rate and seed once. A rate at which any seed is lost is no candidate for the best.
    size : str
        The column of what is scaled: width, depth, params ...
    points : 3 or 5
        How many rates a parabola goes through. Five are steadier where the curve is symmetric; one that is
        steeper on one side, as where high rates lose runs, moves their vertex, and three follow.
    level : float
        Of all intervals.

    Returns
    -------
    RateTransfer

    Raises
    ------
    ValueError
        A column is missing, a size or rate is not positive, a run is missing or there twice, there is one
        size, or every rate of a size lost a run.

    Examples
    --------
    >>> runs = [(n, 2.0**k, (k + 4) ** 2 / 50 + 64 / n) for n in (64, 128) for k in range(-9, 0)]
    >>> width, rate, loss = np.array(runs).T
    >>> found = rate_transfer({"width": width, "learning_rate": rate, "loss": loss})
    >>> round(abs(found.slope.value), 6), float(abs(found.best.loc[128, "transfer_error"])) < 1e-12
    (0.0, True)
    """
    if points not in (3, 5):
        raise ValueError(f"the parabola goes through 3 or 5 points, got points={points}")
    if not 0 < level < 1:
        raise ValueError(f"level lies between 0 and 1, got {level}")
    sizes, rates, losses = _grid(table, size)
    count = losses.shape[2]
    # the mean over all seeds, then over all but one each: (1 + K, S, R), or (1, S, R) of a single seed
    total = losses.sum(axis=2)
    means = total[None] / count
    if count > 1:
        means = np.concatenate([means, (total[None] - np.moveaxis(losses, 2, 0)) / (count - 1)])
    x = np.log2(rates)
    curves = [_Curve(x, means[:, i], points, f"{size} {sizes[i]:g}") for i in range(len(sizes))]
    tuned = curves[0].vertex
    rows, notes = [], []
    for value, curve, runs in zip(sizes, curves, losses, strict=True):
        error = _corrected(curve.at(tuned) - curve.bottom, level)
        where = _interval(curve.vertex, level)
        low, high = (float(2.0**where.low), float(2.0**where.high))
        if curve.edge:
            low, high = (
                (0.0, float(2.0**curve.right)) if curve.edge == "low" else (float(2.0**curve.left), np.inf)
            )
            notes.append(
                f"{size} {value:g}: the lowest loss stands at the {curve.edge} end of the rates that all "
                "seeds survived, so its best rate is a bound and its transfer error is a lower bound"
            )
        if value == sizes[0]:
            error = Interval(0.0, 0.0, 0.0, level)  # by definition
        elif not np.isfinite(error.value):
            notes.append(f"{size} {value:g}: at the rate tuned at {sizes[0]:g} runs are lost")
        rows.append({
            size: value, "best_rate": float(2.0 ** curve.vertex[0]), "low": low, "high": high,
            "loss": float(curve.bottom[0]), "edge": curve.edge, "transfer_error": error.value,
            "error_low": error.low, "error_high": error.high, "lost": int((~np.isfinite(runs)).sum()),
        })  # fmt: skip
    if count == 1:
        notes.append("one seed: nothing is known of the noise, so there are no intervals")
    inside = [i for i, curve in enumerate(curves) if not curve.edge]
    slope = Interval(np.nan, np.nan, np.nan, level)
    if len(inside) > 1:
        u = np.log2(sizes[inside])
        u = u - u.mean()
        slope = _interval(np.stack([curves[i].vertex for i in inside], axis=1) @ u / (u @ u), level)
    else:
        notes.append("fewer than two sizes have their best rate within the grid, so there is no slope")
    import pandas

    best = pandas.DataFrame(rows).set_index(size)
    return RateTransfer(size, sizes, rates, losses, best, slope, notes, level)


class _Curve:
    """One size's losses (D, R) in log2 of the rate, D draws: where they are least, and what elsewhere."""

    def __init__(self, x: Array, means: Array, points: int, what: str) -> None:
        self.x, self.means = x, means
        self.fine = np.isfinite(means[0])
        if not self.fine.any():
            raise ValueError(f"at {what} every rate lost a run; try lower learning rates")
        lowest = int(np.argmin(np.where(self.fine, means[0], np.inf)))
        at_low = lowest == 0 or not self.fine[lowest - 1]
        at_high = lowest == len(x) - 1 or not self.fine[lowest + 1]
        self.edge = "high" if at_high else "low" if at_low else ""
        self.left = -np.inf if at_low else float(x[lowest - 1])
        self.right = np.inf if at_high else float(x[lowest + 1])
        if self.edge:
            self.first = self.last = lowest
            self.vertex, self.bottom = np.full(len(means), x[lowest]), means[:, lowest]
            return
        reach = (points - 1) // 2
        start, end = max(0, lowest - reach), min(len(x) - 1, lowest + reach)
        lost = np.flatnonzero(~self.fine)  # the points on both sides, unbroken
        self.first = int(max([start, *(lost[lost < lowest] + 1)]))
        self.last = int(min([end, *(lost[lost > lowest] - 1)]))
        if not self._fit():  # the lowest point with its neighbours is always convex
            self.first, self.last = lowest - 1, lowest + 1
            self._fit()

    def _fit(self) -> bool:
        """Whether the parabola through all seeds' mean opens upwards with its vertex among the points."""
        near = slice(self.first, self.last + 1)
        self.origin = float(self.x[near].mean())
        u = self.x[near] - self.origin
        design = np.stack([np.ones_like(u), u, u * u], axis=1)
        self.coefficients = self.means[:, near] @ np.linalg.pinv(design).T  # (D, 3)
        b, a = self.coefficients.T[1:]
        with np.errstate(divide="ignore", invalid="ignore"):
            free = -b / (2 * a)
        # without one seed there may be no minimum within: the lower end stands in
        end = np.where(self._value(np.full_like(a, u[0])) < self._value(np.full_like(a, u[-1])), u[0], u[-1])
        place = np.where(a > 0, np.clip(free, u[0], u[-1]), end)
        self.vertex, self.bottom = self.origin + place, self._value(place)
        return bool(a[0] > 0 and u[0] <= free[0] <= u[-1])

    def _value(self, u: Array) -> Array:
        c, b, a = self.coefficients.T
        return c + b * u + a * u * u

    def at(self, place: Array) -> Array:
        """Losses (D,) at log2 rates (D,); infinite where a run about there was lost."""
        middle = float(place[0])
        if not self.edge and self.x[self.first] <= middle <= self.x[self.last]:
            return self._value(place - self.origin)
        right = int(np.clip(np.searchsorted(self.x, middle), 0, len(self.x) - 1))
        bracket = [right] if np.isclose(self.x[right], middle) else [right - 1, right]
        if not self.fine[bracket].all():
            return np.full(len(place), np.inf)
        known = np.flatnonzero(self.fine)
        near = np.sort(known[np.argsort(np.abs(self.x[known] - middle), kind="stable")[:3]])
        knots = self.x[near]
        # Lagrange's polynomial through the nearest points, three where there are as many
        weights = np.stack(
            [
                np.prod([(place - other) / (knot - other) for other in knots if other != knot], axis=0)
                * np.ones_like(place)
                for knot in knots
            ],
            axis=1,
        )
        return np.asarray((weights * self.means[:, near]).sum(axis=1))


def _spread(draws: Array) -> float:
    """Jackknife's standard error; draws are (of all, of all but one ...)."""
    left = draws[1:]
    return float(np.sqrt((len(left) - 1) / len(left) * np.square(left - left.mean()).sum()))


def _interval(draws: Array, level: float) -> Interval:
    value = float(draws[0])
    if len(draws) == 1:
        return Interval(value, np.nan, np.nan, level)
    half = _student(len(draws) - 2, level) * _spread(draws)
    return Interval(value, value - half, value + half, level)


def _corrected(draws: Array, level: float) -> Interval:
    """With the jackknife's bias taken out, and the variance that a square has where it is flat."""
    if len(draws) == 1 or not np.isfinite(draws).all():
        return Interval(float(draws[0]), np.nan, np.nan, level)
    left = draws[1:]
    bias = (len(left) - 1) * float(left.mean() - draws[0])
    value = float(draws[0]) - bias
    half = _student(len(left) - 1, level) * float(np.hypot(_spread(draws), np.sqrt(2.0) * bias))
    return Interval(value, value - half, value + half, level)


def _student(freedom: int, level: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, freedom))


def _grid(table: Any, size: str) -> tuple[Array, Array, Array]:
    """Sizes (S,), rates (R,) and losses (S, R, K), nan where lost."""
    import pandas

    frame = pandas.DataFrame(table)
    missing = [name for name in (size, "learning_rate", "loss") if name not in frame.columns]
    if missing:
        raise ValueError(
            f"the table has no column {missing[0]!r}; it has {', '.join(map(str, frame.columns))}"
        )
    loss = frame["loss"].to_numpy(dtype=float).copy()
    if "status" in frame:
        loss[frame["status"].to_numpy() != "done"] = np.nan
    loss[~np.isfinite(loss)] = np.nan
    keys = []
    for name in (size, "learning_rate"):
        values = frame[name].to_numpy(dtype=float)
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"column {name!r} must hold positive numbers")
        keys.append(np.unique(values, return_inverse=True))
    seed = frame["seed"].to_numpy() if "seed" in frame else np.zeros(len(frame), dtype=int)
    keys.append(np.unique(seed, return_inverse=True))
    (sizes, i), (rates, j), (seeds, k) = keys
    if len(sizes) < 2:
        raise ValueError(f"transfer needs two values of {size}, and the table has {len(sizes)}")
    seen = np.zeros((len(sizes), len(rates), len(seeds)), dtype=int)
    np.add.at(seen, (i, j, k), 1)
    if (seen != 1).any():
        a, b, c = np.argwhere(seen != 1)[0]
        raise ValueError(
            f"the table has {seen[a, b, c]} runs of {size} {sizes[a]:g}, rate {rates[b]:g}, seed {seeds[c]}, "
            "and needs one; a lost run is a row without a loss, and repeats have seeds of their own"
        )
    losses = np.full(seen.shape, np.nan)
    losses[i, j, k] = loss
    return sizes, rates, losses
