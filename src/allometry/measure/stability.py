"""At which size will a run become unstable, at the learning rate that is meant for it?

Wortsman and others, "Small-scale proxies for large-scale Transformer training instabilities", 2023,
arXiv:2309.14322, section 3.3: attention logits grow and gradients shrink like powers of size, and both depend
on the rate. Small runs at several sizes *and* rates tell both exponents; where the line at one's own rate
reaches the threshold, there it bites. `allometry.measure.forecast_onset` is for one quantity at one rate, has
a parabola as well, and agrees with this where all runs have one rate.

* ln y = a + b ln size + c ln rate, `allometry.laws.LogLinear` by least squares, a row a run. Limits of a size
  are those of a new run, so that curvature that the small runs show as scatter widens them.
* A quantity whose exponent in size is not told from zero, or points away from its threshold, is said not to
  be seen, whatever a line through it would cross at some size.
* A lost run has no numbers. It is counted and left out, and it is where it bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from allometry.laws import fit as fit_law
from allometry.laws.log_linear import LogLinear
from allometry.measure.sensitivity import crossing
from allometry.measure.telemetry import (
    COARSE_LOG_Z,
    ENTROPY,
    FAILING_LOGIT,
    GRADIENT,
    LOG_Z,
    MAX_LOGIT,
    UPDATE,
    Threshold,
    flowing,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_stability", "stability_forecast", "summarise"]

Array = NDArray[np.float64]

EPSILON = 1e-8  # AdamW's, by torch's default
THRESHOLDS: dict[str, Threshold] = {  # (lower, upper), as in Monitor.alerts
    MAX_LOGIT: (None, FAILING_LOGIT),
    LOG_Z: (None, COARSE_LOG_Z),
    GRADIENT: (EPSILON, None),
}
_WORST_IS_SMALLEST = (GRADIENT, UPDATE, ENTROPY)
_POINTS = 33  # of a line whose edges bend little between them; each is a quantile of thousands of draws


def summarise(monitor: Any, over: Literal["end", "training"] = "end") -> dict[str, float]:
    """One number for each quantity of a run, to stand as its row in a table of runs.

    Parameters
    ----------
    monitor : Monitor, or DataFrame of its table
    over : "end" or "training"
        The last step that was measured, or all of them.

    Returns
    -------
    dict of quantity to float
        The worst over modules (and steps): the smallest of gradients, updates and entropies, the largest
        absolute value of everything else; nan where any is not finite, as in a run that was lost. Gradients
        that are rounding errors of zero, and updates from them, do not count.

    Raises
    ------
    ValueError
        For a table without rows, or another ``over``.

    Examples
    --------
    >>> import pandas
    >>> rows = [(0, "gradient rms", "a", 0.3), (1, "gradient rms", "a", 0.2), (1, "gradient rms", "b", 0.5)]
    >>> summarise(pandas.DataFrame(rows, columns=["step", "quantity", "module", "value"]))
    {'gradient rms': 0.2}
    """
    if over not in ("end", "training"):
        raise ValueError(f"over must be 'end' or 'training', got {over!r}")
    table = monitor.table() if hasattr(monitor, "alerts") else monitor
    if not len(table):
        raise ValueError("the monitor has measured no step yet, and there is nothing to summarise")
    if over == "end":
        table = table[table["step"] == table["step"].max()]
    found = {}
    table = flowing(table)
    for quantity, values in table.groupby("quantity", sort=False)["value"]:
        size = np.abs(values.to_numpy(dtype=float))
        worst = size.min() if quantity in _WORST_IS_SMALLEST else size.max()
        found[str(quantity)] = float(worst) if np.isfinite(size).all() else math.nan
    return found


def stability_forecast(
    runs: Any,
    learning_rate: float,
    *,
    size: str | None = None,
    thresholds: Mapping[str, Threshold] | None = None,
    by_module: bool = False,
    level: float = 0.9,
    reach: float = 1e6,
    random_state: int = 0,
) -> pd.DataFrame:
    """How each quantity of small runs grows with size and learning rate, and at which size it bites.

    Parameters
    ----------
    runs : sequence of (size, learning rate, monitor), or DataFrame
        A monitor is an `allometry.measure.Monitor` after a run, or its table; its last step counts. A
        DataFrame is either wide, a row a run: a size, ``learning_rate`` and a column for each quantity, as
        `summarise` gives them; or long: a size, ``learning_rate``, ``quantity``, ``value``, and maybe
        ``module`` and, to tell seeds apart, ``seed``. Numbers that are not finite are those of a lost run.
    learning_rate : float
        The rate for which sizes are foretold. Where all runs have one rate, that one: the exponent in the
        rate is then not fitted, and nan.
    size : str, optional
        Name of the column of sizes, by default the first there is of ``size``, ``params``, ``width``.
    thresholds : mapping of quantity to threshold, optional
        A (lower, upper) pair with None for the one that is not meant, or a number, which is met from below
        where it lies above what the smallest runs have. By default, of those that were measured, largest
        attention logits up to 1e4, absolute log Z up to 128, and gradients down to the ε of the monitors'
        optimizers, or to 1e-8, AdamW's by default.
    by_module : bool
        A row for each module or parameter that all runs have, instead of the worst of each run.
    level : float
        Of all intervals.
    reach : float
        How many times beyond the largest size to look.
    random_state : int

    Returns
    -------
    DataFrame
        Indexed by quantity (and module): ``size_exponent`` and ``rate_exponent`` with ``_low`` and ``_high``,
        ``threshold``, ``met_from`` ("below" or "above"), ``size`` at which it bites with ``low`` and ``high``
        (infinite: not within reach), ``extrapolated`` (that size over the largest of the runs, at least 1),
        ``scatter`` (residual standard deviation in log10), ``runs``, ``lost``, and ``verdict``: "at this
        size", "already", "beyond reach", "not seen", or "zero" of a module without any value in some run.

    Raises
    ------
    ValueError
        For a quantity that was not measured, is negative (log Z may be) or zero, fewer than two sizes, fewer
        runs with numbers than coefficients and one more, or another rate than the only one.

    Examples
    --------
    >>> import pandas
    >>> runs = [(n, r, n * r**0.5) for n in (64, 128, 256) for r in (0.01, 0.04, 0.16)]
    >>> table = pandas.DataFrame(runs, columns=["width", "learning_rate", "max attention logit"])
    >>> found = stability_forecast(table, 0.01)
    >>> found[["size_exponent", "rate_exponent", "size"]].round(1).loc["max attention logit"].tolist()
    [1.0, 0.5, 100000.0]
    """
    rows: dict[Any, dict[str, Any]] = {}
    for key, line in _lines(runs, learning_rate, size, thresholds, by_module, level, reach, random_state):
        rows[key] = line.row()
    import pandas as pd

    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = (
        pd.MultiIndex.from_tuples(list(rows), names=["quantity", "module"])
        if by_module
        else pd.Index(list(rows), name="quantity")
    )
    return table


def plot_stability(
    runs: Any,
    learning_rate: float,
    *,
    size: str | None = None,
    thresholds: Mapping[str, Threshold] | None = None,
    level: float = 0.9,
    reach: float = 1e6,
    random_state: int = 0,
) -> Figure:
    """A panel for each quantity of `stability_forecast`: runs, lines, threshold, and where they meet.

    Dots are runs, coloured by rate with the line through them; the band is that of a new run at
    ``learning_rate``. Parameters and refusals are those of `stability_forecast`.

    >>> import pandas
    >>> runs = [(n, r, n * r**0.5) for n in (64, 128, 256) for r in (0.01, 0.04, 0.16)]
    >>> table = pandas.DataFrame(runs, columns=["width", "learning_rate", "max attention logit"])
    >>> plot_stability(table, 0.01).axes[0].get_title()
    'at this size 1e+05'
    """
    import matplotlib.pyplot as plt

    lines = list(_lines(runs, learning_rate, size, thresholds, False, level, reach, random_state))
    figure, axes = plt.subplots(1, len(lines), figsize=(4.2 * len(lines), 3.4), squeeze=False)
    for panel, (quantity, line) in zip(axes[0], lines, strict=True):
        line.draw(panel, str(quantity))
    figure.tight_layout()
    return figure


def _lines(
    runs: Any,
    learning_rate: float,
    size: str | None,
    thresholds: Mapping[str, Threshold] | None,
    by_module: bool,
    level: float,
    reach: float,
    random_state: int,
) -> Iterator[tuple[Any, _Line]]:
    """The fitted line of each quantity, or of each of its modules."""
    if not 0 < learning_rate < math.inf or not 0 < level < 1 or not reach > 1:
        raise ValueError(
            f"the rate is positive, level lies between 0 and 1 and reach above 1; got "
            f"{learning_rate}, {level}, {reach}"
        )
    frame, epsilon = _frame(runs, size, thresholds)
    measured = list(dict.fromkeys(frame["quantity"]))
    wanted: dict[str, Threshold] = (
        dict(thresholds)
        if thresholds is not None
        else {k: v for k, v in (THRESHOLDS | {GRADIENT: (epsilon, None)}).items() if k in measured}
    )
    unknown = [name for name in wanted if name not in measured]
    if unknown or not wanted:
        raise ValueError(
            f"{unknown[0] if unknown else 'nothing that has a threshold'} was not measured; measured were "
            f"{', '.join(map(str, measured)) or 'no quantities'}"
        )
    for quantity, limit in wanted.items():
        part = frame[frame["quantity"] == quantity]
        if quantity == LOG_Z:
            part = part.assign(value=part["value"].abs())
        elif (part["value"] < 0).any():
            raise ValueError(
                f"{quantity!r} is {part['value'].min():g} in a run; a power law needs positive values"
            )
        threshold, rises = _threshold(quantity, limit, part)
        for module, one in part.groupby("module", sort=False) if by_module else [("", part)]:
            if by_module and one["run"].nunique() < frame["run"].nunique():
                continue  # a layer that smaller models do not have
            name = f"{quantity!r} of {module}" if by_module else repr(quantity)
            line = _Line.through(one, name, threshold, rises, learning_rate, level, reach, random_state)
            if line.fit is None and not by_module:
                raise ValueError(f"{quantity!r} is 0 in a run; a power law needs positive values")
            yield (quantity, module) if by_module else quantity, line


def _threshold(quantity: str, limit: Threshold, part: pd.DataFrame) -> tuple[float, bool]:
    """The threshold, and whether it is met from below."""
    if isinstance(limit, tuple):
        given = [value for value in limit if value is not None]
        if len(limit) != 2 or len(given) != 1:
            raise ValueError(f"give {quantity!r} one threshold, (lower, None) or (None, upper); got {limit}")
        threshold, rises = float(given[0]), limit[0] is None
    else:
        threshold = float(limit)
        smallest = part.loc[part["size"] == part["size"].min(), "value"].to_numpy(dtype=float)
        known = THRESHOLDS.get(quantity)
        # runs that are beyond already must not turn round what is known to grow
        rises = known[0] is None if isinstance(known, tuple) else bool(threshold > np.nanmedian(smallest))
    if not 0 < threshold < math.inf:
        raise ValueError(f"the threshold of {quantity!r} must be positive and finite, got {threshold}")
    return threshold, rises


def _frame(
    runs: Any, name: str | None, thresholds: Mapping[str, Threshold] | None
) -> tuple[pd.DataFrame, float]:
    """size, learning_rate, quantity, module, value, run: a row a module and run; and AdamW's ε."""
    import pandas as pd

    epsilon = EPSILON
    if not isinstance(runs, pd.DataFrame):
        parts = []
        seen = []
        for number, (scale, rate, told) in enumerate(runs):
            table = told.table() if hasattr(told, "alerts") else told
            table = table[table["step"] == table["step"].max()]
            parts.append(table.assign(size=scale, learning_rate=rate, seed=number))
            groups = getattr(getattr(told, "optimizer", None), "param_groups", ())
            seen += [float(group["eps"]) for group in groups if group.get("eps")]
        if not parts:
            raise ValueError("there are no runs to forecast from")
        runs, name, epsilon = pd.concat(parts, ignore_index=True), "size", max(seen, default=EPSILON)
    named = name or next((one for one in ("size", "params", "width") if one in runs), "size")
    long = "quantity" in runs or "value" in runs
    missing = [one for one in (named, "learning_rate", *(("quantity", "value") if long else ()))
               if one not in runs]  # fmt: skip
    if missing:
        raise ValueError(
            f"the table of runs lacks {', '.join(missing)}; it has {', '.join(map(str, runs.columns))}"
        )
    frame = runs.assign(size=runs[named])
    for column in ("size", "learning_rate"):
        values = frame[column].to_numpy(dtype=float)
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"{column} must be positive and finite in every row")
    if not long:
        quantities = [one for one in (THRESHOLDS if thresholds is None else thresholds) if one in frame]
        keep = frame[["size", "learning_rate", *quantities]].assign(run=np.arange(len(frame)), module="")
        return keep.melt(["size", "learning_rate", "run", "module"], var_name="quantity"), epsilon
    if "module" not in frame:
        frame["module"] = ""
    keys = ["size", "learning_rate", *(["seed"] if "seed" in frame else [])]
    repeats = frame.duplicated(["size", "learning_rate", "quantity", "module"]).any()
    # repeats of one module without seeds are runs that nothing tells apart
    alone = repeats and "seed" not in frame
    frame["run"] = np.arange(len(frame)) if alone else frame.groupby(keys).ngroup()
    return flowing(frame), epsilon


@dataclass(frozen=True)
class _Line:
    """One quantity against size and rate."""

    size: Array  # (n,) of the runs with numbers, as the next two
    rate: Array
    value: Array
    fit: Any  # None where a run has no value but 0
    threshold: float
    rises: bool
    at: float  # the rate that is asked for
    level: float
    reach: float
    lost: int

    @classmethod
    def through(
        cls,
        part: pd.DataFrame,
        name: str,
        threshold: float,
        rises: bool,
        at: float,
        level: float,
        reach: float,
        random_state: int,
    ) -> _Line:
        count = part["run"].nunique()
        # exactly 0 says that nothing flows there, as in a branch that starts at zero
        part = part[part["value"] != 0]
        runs = part.groupby("run").agg({
            "size": "first", "learning_rate": "first",
            "value": lambda one: one.max(skipna=False) if rises else one.min(skipna=False),
        })  # fmt: skip
        values = runs["value"].to_numpy(dtype=float)
        good = np.isfinite(values)
        size, rate = (runs[one].to_numpy(dtype=float)[good] for one in ("size", "learning_rate"))
        found = cls(size, rate, values[good], None, threshold, rises, at, level, reach, int((~good).sum()))
        if len(runs) < count:
            return found
        sizes, rates = len(np.unique(size)), len(np.unique(rate))
        needed = 4 if rates > 1 else 3
        if sizes < 2 or len(size) < needed:
            raise ValueError(
                f"{name} needs two sizes and {needed} runs that were not lost; it has {sizes} and {len(size)}"
            )
        if rates == 1 and not math.isclose(rate[0], at, rel_tol=1e-6):
            raise ValueError(
                f"{name} was measured at a learning rate of {rate[0]:g} only, so that nothing is known of "
                f"{at:g}; two rates tell the exponent"
            )
        logs = np.log(np.stack([size, rate]))
        if rates > 1 and np.linalg.matrix_rank(logs - logs.mean(axis=1, keepdims=True)) < 2:
            raise ValueError(
                f"{name}: rates go with sizes, so that their parts cannot be told; run a full grid"
            )
        columns = {"size": size} | ({"rate": rate} if rates > 1 else {})
        law = fit_law(
            LogLinear(*columns), columns, found.value, loss="squared", resampling="noise",
            random_state=random_state,
        )  # fmt: skip
        return cls(size, rate, found.value, law, threshold, rises, at, level, reach, found.lost)

    def columns(self, size: Array, rate: float) -> dict[str, Array]:
        every = {"size": size, "rate": np.full(len(size), rate)}
        return {name: every[name] for name in self.fit.form.inputs}

    def row(self) -> dict[str, Any]:
        told: dict[str, Any] = dict.fromkeys(
            ("size_exponent", "size_low", "size_high", "rate_exponent", "rate_low", "rate_high"), math.nan
        )
        told |= {"threshold": self.threshold, "met_from": "below" if self.rises else "above"}
        counts = {"runs": len(self.size), "lost": self.lost}
        if self.fit is None:
            nothing = dict.fromkeys(("size", "low", "high", "extrapolated", "scatter"), math.nan)
            return told | nothing | counts | {"verdict": "zero"}
        for name, exponent in self.fit.table(self.level).iloc[1:].iterrows():
            kind = str(name).removeprefix("alpha_")
            # LogLinear's alpha is that of a fall
            told |= {f"{kind}_exponent": -float(exponent["value"]), f"{kind}_low": -float(exponent["high"]),
                     f"{kind}_high": -float(exponent["low"])}  # fmt: skip
        grid = np.geomspace(self.size.min(), self.size.max() * self.reach, _POINTS)
        band = self.fit.interval(self.columns(grid, self.at), self.level, kind="prediction")
        early, late = (band.high, band.low) if self.rises else (band.low, band.high)
        size, low, high = (
            crossing(grid, edge, self.threshold, self.rises) for edge in (band.value, early, late)
        )
        towards = told["size_low"] > 0 if self.rises else told["size_high"] < 0
        if size <= self.size.min():
            verdict = "already"
        elif not towards:
            verdict, size, high = "not seen", math.inf, math.inf
        else:
            verdict = "at this size" if math.isfinite(size) else "beyond reach"
        residuals = self.fit.residuals
        freedom = len(residuals) - len(self.fit.theta)
        scatter = math.sqrt(float(residuals @ residuals) / freedom) / math.log(10)
        beyond = max(1.0, size / float(self.size.max()))
        return told | {
            "size": size, "low": low, "high": high, "extrapolated": beyond, "scatter": scatter,
        } | counts | {"verdict": verdict}  # fmt: skip

    def draw(self, axes: Axes, quantity: str) -> None:
        row = self.row()
        end = self.size.max() * 10
        if math.isfinite(row["size"]):
            end = max(end, row["size"] * 3)
        grid = np.geomspace(self.size.min() / 1.5, end, _POINTS)
        for i, rate in enumerate(np.unique(self.rate)):
            here = self.rate == rate
            axes.plot(self.size[here], self.value[here], "o", color=f"C{i}", label=f"rate {rate:g}")
            axes.plot(grid, self.fit.predict(self.columns(grid, rate)), color=f"C{i}", linewidth=0.8)
        band = self.fit.interval(self.columns(grid, self.at), self.level, kind="prediction")
        axes.plot(grid, band.value, color="black", label=f"at {self.at:g}")
        axes.fill_between(grid, band.low, band.high, color="black", alpha=0.15, linewidth=0)
        axes.axhline(self.threshold, color="black", linestyle="--", linewidth=0.8)
        if math.isfinite(row["size"]):
            axes.axvline(row["size"], color="black", linestyle=":", linewidth=0.8)
        where = f" {row['size']:.3g}" if row["verdict"] == "at this size" else ""
        axes.set(xscale="log", yscale="log", xlabel="size", ylabel=quantity, title=row["verdict"] + where)
        axes.legend(fontsize="small")
