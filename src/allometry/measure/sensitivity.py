"""How much a recipe suffers from a wrong learning rate, and at which size an instability is to be expected.

Wortsman and others, "Small-scale proxies for large-scale Transformer training instabilities", 2023.
arXiv:2309.14322.

* Learning-rate sensitivity is the mean over a range of rates, uniform in the logarithm, of the loss that a
  run ends with, less the best of them; a run that ends worse than it began counts as its beginning. It is in
  the unit of the loss, and says what the minimum of a sweep cannot: how steep the walls are.
* A lost run counts as the loss at initialization. To drop it would make unstable recipes look good.
* A sensitivity depends on the range, the budget and the tokenizer: compare within one of each, and look at
  the curve, for at small rates a short run is merely not done.
* Attention logits and gradient sizes move along power laws with scale, so that the size at which they cross
  a threshold can be told from smaller ones; the interval is that of a new measurement, inverted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from allometry.laws import bootstrap
from allometry.laws import fit as fit_law
from allometry.measure.telemetry import flowing

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]
_FEWEST_RATES = 3
_FEWEST_SEEDS = 3


@dataclass(frozen=True)
class Sensitivity:
    """Excess loss over a range of learning rates.

    Attributes
    ----------
    value : float
        Mean loss over the range less the best, in the loss's unit; never negative.
    low, high : float
        Interval by resampling seeds, each with all its rates; nan for fewer than three seeds.
    best_rate, best_loss : float
        Of the grid, the seeds' mean.
    diverged : tuple of float
        Rates at which at least one run was lost or ended above the initial loss.
    interior : bool
        Whether the best rate lies inside the grid, which has three rates at least with a finite loss. Where
        not, better rates may lie outside: the best loss is an upper bound, ``value`` a lower one.
    curve : DataFrame
        ``learning_rate``, ``loss`` (the seeds' mean, after counting lost runs as the initial loss), ``lost``
        (share of runs that were counted so), ``weight`` in the mean.
    """

    value: float
    low: float
    high: float
    best_rate: float
    best_loss: float
    diverged: tuple[float, ...]
    interior: bool
    curve: pd.DataFrame

    def __str__(self) -> str:
        span = "" if math.isnan(self.low) else f" [{self.low:.3g}, {self.high:.3g}]"
        bound = "" if self.interior else ", a lower bound: the best rate is not interior"
        best = f"best loss {self.best_loss:.4g} at {self.best_rate:.3g}"
        return f"sensitivity {self.value:.3g}{span}, {best}{bound}"


def learning_rate_sensitivity(
    losses: Any,
    initial_loss: float,
    *,
    learning_rates: Sequence[float] | Array | None = None,
    range: tuple[float, float] | None = None,
    level: float = 0.9,
    resamples: int = 2000,
    random_state: int = 0,
) -> Sensitivity:
    """E[min(loss(rate), initial loss)] - min loss(rate), over rates uniform in the logarithm.

    Parameters
    ----------
    losses : mapping, DataFrame or array
        Final losses: rate -> loss, or rate -> losses of the seeds; a table with ``learning_rate``, ``loss``
        and where known ``seed`` and ``status``, as :func:`allometry.train.learning_rate_sweep` gives; or an
        array (rates,) or (rates, seeds) with ``learning_rates``. Not finite means lost.
    initial_loss : float
        Before training, on the same data: ln(vocabulary) for a language model that starts blank.
    learning_rates : sequence (rates,), optional
        Positive, each once, in any order.
    range : (low, high), optional
        Use the rates within, ends included.
    level, resamples, random_state
        Of the interval; 0 resamples for none.

    Returns
    -------
    Sensitivity

    Raises
    ------
    ValueError
        For rates that are not positive or repeat, an initial loss that is not finite, or seeds that not every
        rate was run with.

    Notes
    -----
    On a grid that is not uniform each rate stands for the stretch up to half-way to its neighbours, in the
    logarithm, and the outermost for as much outwards as inwards; on a uniform grid that is the plain mean.

    Examples
    --------
    >>> found = learning_rate_sensitivity({1e-3: 4.5, 1e-2: 4.0, 1e-1: 9.0}, initial_loss=7.0)
    >>> round(found.value, 2), found.best_rate, found.diverged
    (1.17, 0.01, (0.1,))
    """
    if not math.isfinite(initial_loss):
        raise ValueError(
            f"the initial loss is what a lost run counts as and must be finite, got {initial_loss}"
        )
    rates, runs = _runs(losses, learning_rates)
    if range is not None:
        low, high = range
        inside = (rates >= low * (1 - 1e-9)) & (rates <= high * (1 + 1e-9))
        if not inside.any():
            raise ValueError(f"no learning rate lies in the range {low:g} to {high:g}; rates are {rates}")
        rates, runs = rates[inside], runs[inside]
    worse = ~np.isfinite(runs) | (runs > initial_loss)
    counted = np.where(worse, initial_loss, runs)
    weight = _log_weights(rates)

    def excess(by_seed: Array) -> Array:  # (..., rates, seeds)
        mean = by_seed.mean(axis=-1)
        return mean @ weight - mean.min(axis=-1)

    mean = counted.mean(axis=1)
    best = int(np.argmin(mean))
    low = high = math.nan
    if counted.shape[1] >= _FEWEST_SEEDS and resamples > 0:
        found = bootstrap(
            excess, counted.T, unit="seed", resamples=resamples, level=level, random_state=random_state
        )
        low, high = found.low, found.high
    import pandas as pd

    return Sensitivity(
        value=float(excess(counted)),
        low=low,
        high=high,
        best_rate=float(rates[best]),
        best_loss=float(mean[best]),
        diverged=tuple(float(rate) for rate in rates[worse.any(axis=1)]),
        interior=bool(np.isfinite(runs).any(axis=1).sum() >= _FEWEST_RATES and 0 < best < len(rates) - 1),
        curve=pd.DataFrame(
            {"learning_rate": rates, "loss": mean, "lost": worse.mean(axis=1), "weight": weight}
        ),
    )


def _runs(losses: Any, learning_rates: Sequence[float] | Array | None) -> tuple[Array, Array]:
    """Rates (n,) ascending, and losses (n, seeds) with nan for what was lost."""
    if hasattr(losses, "columns"):
        losses, learning_rates = _from_table(losses), None
    if isinstance(losses, Mapping):
        if learning_rates is not None:
            raise ValueError("the losses come with their rates; leave learning_rates out")
        given = {float(rate): np.atleast_1d(np.asarray(found, dtype=float)) for rate, found in losses.items()}
        if len({found.shape for found in given.values()}) > 1:
            counts = {rate: found.size for rate, found in given.items()}
            raise ValueError(f"every rate needs a loss for every seed; seeds at each rate are {counts}")
        rates, runs = np.array(list(given)), np.array(list(given.values()))
    elif learning_rates is None:
        raise ValueError("losses without rates need learning_rates=, one for each row")
    else:
        rates, runs = np.asarray(learning_rates, dtype=float), np.asarray(losses, dtype=float)
        runs = runs[:, None] if runs.ndim == 1 else runs
    if runs.ndim != 2 or rates.shape != runs.shape[:1] or not runs.size:
        raise ValueError(
            f"losses must be (rates,) or (rates, seeds), got {runs.shape} for {rates.size} learning rates"
        )
    if not (np.isfinite(rates) & (rates > 0)).all() or len(np.unique(rates)) < len(rates):
        raise ValueError(f"learning rates must be positive, finite and different, got {rates.tolist()}")
    order = np.argsort(rates)
    return rates[order], runs[order]


def _from_table(table: pd.DataFrame) -> dict[float, list[float]]:
    missing = {"learning_rate", "loss"} - set(table.columns)
    if missing:
        raise ValueError(f"the table lacks {', '.join(sorted(missing))}; it has {list(table.columns)}")
    loss = table["loss"].to_numpy(dtype=float).copy()
    if "status" in table:
        loss[(table["status"] == "diverged").to_numpy()] = np.nan
    seeds = table["seed"].tolist() if "seed" in table else [0] * len(table)
    every = sorted(set(seeds))
    found: dict[float, dict[Any, float]] = {}
    for rate, seed, value in zip(table["learning_rate"], seeds, loss, strict=True):
        runs = found.setdefault(float(rate), {})
        if seed in runs:
            raise ValueError(f"the table has two runs at learning rate {rate:g} with seed {seed}")
        runs[seed] = float(value)
    for rate, runs in found.items():
        absent = [seed for seed in every if seed not in runs]
        if absent:
            raise ValueError(
                f"no run at learning rate {rate:g} with seed {absent[0]}; a lost run is a row without a loss"
            )
    return {rate: [runs[seed] for seed in every] for rate, runs in found.items()}


def _log_weights(rates: Array) -> Array:
    if len(rates) == 1:
        return np.ones(1)
    gaps = np.diff(np.log(rates))
    weight = (np.concatenate([gaps[:1], gaps]) + np.concatenate([gaps, gaps[-1:]])) / 2
    return weight / weight.sum()


# -- onset ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Onset:
    """The scale at which a quantity reaches its threshold.

    Attributes
    ----------
    scale : float
        Where the fitted law crosses; infinite if not within reach, and the smallest scale measured if it is
        beyond already there.
    low, high : float
        First scale at which a new measurement may have crossed, and first at which it must have, at
        ``level`` (of both sides together); ``high`` is infinite where it never must.
    rises : bool
        Whether the crossing is upwards.
    threshold, level : float
    form : str
    measured : (float, float)
        Smallest and largest scale of the data.
    predict : scales (m,) -> Interval
        The law with its prediction interval.
    """

    scale: float
    low: float
    high: float
    rises: bool
    threshold: float
    level: float
    form: str
    measured: tuple[float, float]
    predict: Callable[[Any], Any]

    @property
    def extrapolated(self) -> float:
        """By what factor ``scale`` lies beyond the largest scale measured; 1 within the data."""
        return max(1.0, self.scale / self.measured[1])


def forecast_onset(
    scale: Sequence[float] | Array,
    values: Any,
    threshold: float,
    form: Literal["power", "quadratic"] = "power",
    *,
    quantity: str | None = None,
    rises: bool | None = None,
    level: float = 0.9,
    reach: float = 1e6,
    random_state: int = 0,
) -> Onset:
    """At which scale a quantity that moves with scale will cross a threshold.

    Parameters
    ----------
    scale : sequence (n,)
        Parameters, width, or whatever is scaled; repeats are seeds.
    values : sequence (n,), or of n tables
        Of the quantity, positive. A table of :meth:`allometry.measure.Monitor.table` gives ``quantity`` at
        its last step: the largest over modules, or the smallest where it is to fall.
    threshold : float
        1e4 for "max attention logit", the optimizer's ε for "gradient rms" (as the paper has them).
    form : "power" or "quadratic"
        A straight line in log-log, by :func:`allometry.laws.fit`, or a parabola, by exact least squares.
    quantity : str, optional
        With tables only.
    rises : bool, optional
        Whether the crossing meant is upwards; by default, whether the threshold lies above the values at the
        smallest scale.
    level : float
    reach : float
        How many times beyond the largest scale to look.
    random_state : int

    Returns
    -------
    Onset

    Raises
    ------
    ValueError
        For values that are not positive and finite, or too few of them: as many scales as the form has
        coefficients, and one run more, because an interval needs a misfit.

    Examples
    --------
    >>> onset = forecast_onset([1e6, 1e7, 1e8, 1e9], [10.0, 33.0, 100.0, 320.0], 1e4)
    >>> 5e11 < onset.low < onset.scale < onset.high < 2e12
    True
    """
    if form not in ("power", "quadratic"):
        raise ValueError(f"form must be 'power' or 'quadratic', got {form!r}")
    x = np.asarray(scale, dtype=float)
    if not 0 < threshold < math.inf or not reach > 1:
        raise ValueError(f"threshold must be positive and reach above 1, got {threshold} and {reach}")
    if x.ndim != 1 or not (np.isfinite(x) & (x > 0)).all() or len(values) != len(x):
        raise ValueError(
            f"scale must hold a positive number for each of the {len(values)} values, got {scale}"
        )
    if len(x) and hasattr(values[0], "columns"):
        y = _last(values, quantity, rises, threshold, int(np.argmin(x)))
    elif quantity is not None:
        raise ValueError("quantity picks rows of tables, and the values are numbers already; leave it out")
    else:
        y = np.asarray(values, dtype=float)
    if y.shape != x.shape or not (np.isfinite(y) & (y > 0)).all():
        raise ValueError(f"values must be positive and finite, one for each scale, got {y}")
    coefficients = 2 if form == "power" else 3
    if len(np.unique(x)) < coefficients or len(x) <= coefficients:
        raise ValueError(
            f"the {form} form has {coefficients} coefficients and needs as many scales and one run more; "
            f"got {len(np.unique(x))} scales and {len(x)} runs"
        )
    if rises is None:
        rises = bool(threshold > np.exp(np.log(y[x == x.min()]).mean()))
    predict = _power(x, y, level, random_state) if form == "power" else _Quadratic(x, y, level)
    # a line's edges bend little between points, and each of its points is thousands of draws
    grid = np.geomspace(x.min(), x.max() * reach, 161 if form == "power" else 4001)
    line = predict(grid)
    # what crosses first when rising is the upper limit, when falling the lower
    early, late = (line.high, line.low) if rises else (line.low, line.high)
    return Onset(
        scale=crossing(grid, line.value, threshold, rises),
        low=crossing(grid, early, threshold, rises),
        high=crossing(grid, late, threshold, rises),
        rises=rises,
        threshold=float(threshold),
        level=level,
        form=form,
        measured=(float(x.min()), float(x.max())),
        predict=predict,
    )


def _last(
    tables: Sequence[Any], quantity: str | None, rises: bool | None, threshold: float, smallest: int
) -> Array:
    if quantity is None:
        raise ValueError("tables hold several quantities; name one by quantity=")
    columns = []
    for table in tables:
        rows = flowing(table) if "module" in table else table
        rows = rows[rows["quantity"] == quantity]
        if rows.empty:
            raise ValueError(f"a table has no {quantity!r}; it has {sorted(set(table['quantity']))}")
        columns.append(rows.loc[rows["step"] == rows["step"].max(), "value"].to_numpy(dtype=float))
    if rises is None:
        rises = bool(threshold > np.median(columns[smallest]))
    return np.array([column.max() if rises else column.min() for column in columns])


def _power(x: Array, y: Array, level: float, random_state: int) -> Callable[[Any], Any]:
    # sizes may rise as well as fall, so the exponent may have either sign
    law = fit_law(
        "power", {"scale": x}, y, loss="squared", bounds={"alpha": (-20.0, 20.0)}, resampling="noise",
        random_state=random_state,
    )  # fmt: skip

    def predict(at: Any) -> Any:
        return law.interval({"scale": np.atleast_1d(np.asarray(at, dtype=float))}, level, kind="prediction")

    return predict


class _Quadratic:
    """ln y = a + b ln x + c ln² x by least squares, with Student's prediction interval."""

    def __init__(self, x: Array, y: Array, level: float) -> None:
        from scipy.stats import t

        self._centre, self.level = float(np.log(x).mean()), level
        design = self._design(x)
        self._coefficients, *_ = np.linalg.lstsq(design, np.log(y), rcond=None)
        freedom = len(x) - design.shape[1]
        residuals = np.log(y) - design @ self._coefficients
        self._deviation = float(np.sqrt(residuals @ residuals / freedom))
        self._inverse = np.linalg.pinv(design.T @ design)
        self._quantile = float(t.ppf((1 + level) / 2, freedom))

    def _design(self, x: Array) -> Array:
        u = np.log(x) - self._centre
        return np.stack([np.ones_like(u), u, u * u], axis=1)

    def __call__(self, at: Any) -> Any:
        from allometry.laws import Interval

        design = self._design(np.atleast_1d(np.asarray(at, dtype=float)))
        middle = design @ self._coefficients
        leverage = np.einsum("ij,jk,ik->i", design, self._inverse, design)
        half = self._quantile * self._deviation * np.sqrt(1.0 + leverage)
        with np.errstate(over="ignore"):
            return Interval(np.exp(middle), np.exp(middle - half), np.exp(middle + half), self.level)


def crossing(grid: Array, edge: Array, threshold: float, rises: bool) -> float:
    """First scale at which an edge is beyond a threshold, between points straight in log-log.

    Parameters
    ----------
    grid : (n,)
        Scales, ascending and positive.
    edge : (n,)
        Of a quantity there, not negative.
    threshold : float
    rises : bool
        Whether it is met from below.

    Returns
    -------
    float
        Infinite if it is met nowhere, the first scale if it is met there.

    >>> round(crossing(np.array([1.0, 100.0]), np.array([1.0, 100.0]), 10.0, True), 6)
    10.0
    """
    with np.errstate(divide="ignore"):
        gap = (np.log(edge) - math.log(threshold)) * (1.0 if rises else -1.0)
    beyond = np.flatnonzero(gap >= 0)
    if not len(beyond):
        return math.inf
    i = int(beyond[0])
    if i == 0:
        return float(grid[0])
    share = 1.0 if not np.isfinite(gap[i]) else -gap[i - 1] / (gap[i] - gap[i - 1])
    return float(grid[i - 1] * (grid[i] / grid[i - 1]) ** share)
