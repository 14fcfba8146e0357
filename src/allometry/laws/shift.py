"""How loss falls with scale inside and outside of the training distribution, and the ratio of the two slopes.

Yao, Yang, Jiang, Liang, Jin and Pan, 2024, arXiv:2410.12360, score each of their forecasters on the data that
it was trained for and on collections that it never saw, and compare exponents of straight lines through
log losses. Here those lines, with what is needed to compare them:

* One run is scored on all collections, and a run that is lucky on one is lucky on the others. Slopes are
  estimated together, and their covariance is taken from residuals of one run on several collections.
* The ratio of two slopes has Fieller's set, which is unbounded where the slope below is not told from zero.
* Intervals of lines are Student's, in closed form, and few runs are few degrees of freedom.
  Where a run has several rows of one collection, such as checkpoints, it is the jackknife over runs.
* Where the losses end above zero, ``form="power-offset"`` gives each collection a floor, and intervals by
  resampling whole runs (`allometry.laws.shift_floor`).
* A negative log likelihood in the units of the data has no zero of its own: multiplied by a, the data add
  log a to it, and a power's exponent changes (d log L = dL / L) while the fall *per decade* does not. Of such
  losses, and of those that reach zero, ``form="log-linear"`` compares what is comparable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from allometry.laws.law import Estimator
from allometry.laws.quotient import ratio_interval
from allometry.laws.shift_floor import fit_floors
from allometry.laws.uncertainty import Interval

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

__all__ = ["ShiftLaw", "loglog_fit"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]


_FORMS = ("power", "log-linear", "power-offset")


def loglog_fit(x: ArrayLike, y: ArrayLike) -> tuple[float, float]:
    """The paper's fit: ``L = (x0 / x) ** alpha`` by a straight line through log10 of both.

    Parameters
    ----------
    x, y : array (n,)
        Scales and losses, positive.

    Returns
    -------
    alpha, x0 : float
        With the line ``log10 L = k log10 x + b``: alpha is -k, x0 is 10 ** (-b / k). A flat line has no x0.

    Raises
    ------
    ValueError
        Values are not positive and finite, or there are fewer than two scales.

    Examples
    --------
    >>> alpha, x0 = loglog_fit([1e3, 1e4, 1e5], [2.0, 1.0, 0.5])
    >>> round(alpha, 6), round(x0)
    (0.30103, 10000)
    """
    scales, losses = (np.asarray(value, dtype=float) for value in (x, y))
    for name, values in (("scales", scales), ("losses", losses)):
        if values.ndim != 1 or not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"{name} must be one row of positive finite numbers; given were {values}")
    if len(scales) != len(losses) or len(np.unique(scales)) < 2:
        raise ValueError(
            f"a line needs two scales and a loss for each: {len(scales)} scales, {len(losses)} losses"
        )
    slope, level = np.polyfit(np.log10(scales), np.log10(losses), 1)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        return float(-slope), float(10 ** (-level / slope))


class ShiftLaw(Estimator):
    """A straight line for each collection, in log scale, fitted together.

    Parameters
    ----------
    scale : str
        The column of what is scaled: ``"params"``, ``"tokens"``, ``"flops"``, or any other.
    form : {"power", "log-linear", "power-offset"}
        ``L = (x0 / x) ** alpha``, ``L = level - fall * log10 x``, or ``L = E + A x ** -alpha``, whose
        exponent does not depend on where the losses end.
    base : str, optional
        The collection that others are compared with, in distribution; by default the first of the table.

    Attributes
    ----------
    collections_ : list of str
    slopes_ : array (c,)
        ``alpha`` of each collection, or ``fall``: positive where loss falls.
    covariance_ : array (c, c)
        Of the slopes.
    degrees_ : array (c,)
        Degrees of freedom.
    draws_ : array (resamples, c)
        Slopes of resamples: of lines drawn from Student's distribution, which their intervals are of; with a
        floor refitted to resampled runs.

    Examples
    --------
    >>> n = np.array([1e3, 1e4, 1e5, 1e6] * 2)
    >>> table = {"params": n, "collection": ["ID"] * 4 + ["OOD"] * 4,
    ...          "loss": np.r_[(1e9 / n[:4]) ** 0.1, (1e12 / n[4:]) ** 0.05]}
    >>> law = ShiftLaw().fit(table)
    >>> round(law.params_["alpha[OOD]"], 6), round(law.ratio("OOD").value, 6)
    (0.05, 0.5)
    """

    name: ClassVar[str] = "shift"
    labels: ClassVar = ("collection",)
    synonyms: ClassVar = {
        "collection": ("dataset", "data_set", "test_set", "domain", "distribution", "split"),
        "loss": ("nll", "nll_norm", "crps"),
    }

    def __init__(self, scale: str = "params", form: str = "power", base: str | None = None) -> None:
        if form not in _FORMS:
            raise ValueError(f"form is one of {', '.join(map(repr, _FORMS))}, not {form!r}")
        self.scale, self.form, self.base = scale, form, base
        self.columns = {  # type: ignore[misc]
            scale: "what is scaled, positive",
            "collection": "the data set that the loss was measured on",
        }

    # --- fitting -----------------------------------------------------------------------------------------
    def fit(self, table: Any, *, resamples: int = 1000, random_state: int = 0) -> ShiftLaw:
        """Fit all collections.

        Parameters
        ----------
        table : mapping or DataFrame of columns (n,)
        resamples : int
            Rows of ``draws_``. Lines need none for their intervals, laws with a floor do.
        random_state : int

        Raises
        ------
        ValueError
            A loss that is not positive under a power law, or a collection with fewer than three runs, or too
            few scales: two for a line, four for a floor.
        """
        columns = self.read(table)
        if not len(columns[self.target]):
            raise ValueError("the table has no rows to fit the shift law to")
        x, y = self._abscissa(columns[self.scale]), columns[self.target]
        if self.form != "log-linear":
            if not (y > 0).all():
                row = int(np.flatnonzero(~(y > 0))[0])
                raise ValueError(
                    f"a power law needs positive losses and row {row} has {y[row]:.4g}; a log likelihood may "
                    "cross zero: use form='log-linear', which compares nats per decade, or a score such as "
                    "CRPS"
                )
            y = np.log10(y) if self.form == "power" else np.log(y)
        names = np.asarray([str(one) for one in columns["collection"]])
        order = list(dict.fromkeys(names.tolist()))
        if self.base is not None and self.base not in order:
            raise ValueError(f"no collection {self.base!r}; the table has {', '.join(order)}")
        group = np.array([order.index(one) for one in names])
        given = columns.get("run")
        run = np.arange(len(x)) if given is None else np.unique(given.astype(str), return_inverse=True)[1]
        self._check(x, group, run, order)
        self.collections_, self.measured_ = order, columns
        self.warnings_ = []
        if given is None and len(order) > 1:
            self.warnings_.append(
                "No column 'run' says which rows are of one model: collections are taken as independent."
            )
        generator = np.random.default_rng(random_state)
        if self.form == "power-offset":
            self._floors = fit_floors(np.log(10.0) * x, y, group, run, resamples, generator)
            self._take_floors()
            return self
        self._solve(x, y, group, run)
        self.draws_ = self._student(resamples, generator)
        return self

    def _take_floors(self) -> None:
        """Slopes, their covariance and falls per decade of laws with a floor."""
        known = self._floors
        self.slopes_, self.degrees_, self.draws_ = known.theta[:, 2], known.degrees, known.draws[..., 2]
        few = len(self.draws_) < 2
        self.covariance_ = np.full((len(self.slopes_),) * 2, np.nan) if few else np.cov(self.draws_.T)
        self.covariance_ = np.atleast_2d(self.covariance_)
        half = 0.5 * np.log(10.0)
        everywhere = np.arange(len(self.slopes_))
        ends = [np.exp(known.log_loss(known.centre + side, everywhere)) for side in (-half, half)]
        self._per_decade = ends[0] - ends[1]

    def _student(self, count: int, generator: np.random.Generator) -> Array:
        """Slopes ``(count, c)`` from the distribution that their intervals are of."""
        values, vectors = np.linalg.eigh(self.covariance_)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        normal = generator.standard_normal((count, len(self.slopes_))) @ root.T
        square = generator.chisquare(self.degrees_, size=(count, len(self.slopes_)))
        return np.asarray(self.slopes_ + normal * np.sqrt(self.degrees_ / square))

    def _check(self, x: Array, group: Index, run: Index, order: list[str]) -> None:
        for index, name in enumerate(order):
            mine = group == index
            if len(np.unique(x[mine])) < 2:
                raise ValueError(f"collection {name!r} was measured at one {self.scale}; a slope needs two")
            if self.form == "power-offset" and len(np.unique(x[mine])) < 4:
                raise ValueError(
                    f"collection {name!r} was measured at {len(np.unique(x[mine]))} values of {self.scale}; "
                    "a floor needs four: use form='power' or 'log-linear'"
                )
            if len(np.unique(run[mine])) < 3:
                raise ValueError(f"collection {name!r} has fewer than three runs: a line through two has no "
                                 "interval")  # fmt: skip

    def _solve(self, x: Array, y: Array, group: Index, run: Index) -> None:
        """Lines of all collections, and the covariance of their levels and slopes."""
        count = len(self.collections_)
        member = (group[:, None] == np.arange(count)).astype(float)  # (n, c)
        number = member.sum(0)
        self._centre = x @ member / number
        u = (x - self._centre[group])[:, None] * member  # (n, c), about each collection's own centre
        spread = (u * u).sum(0)
        level, slope = y @ member / number, y @ u / spread
        residual = y - level[group] - slope[group] * u.sum(1)
        cells = np.zeros((int(run.max()) + 1, count))
        np.add.at(cells, (run, group), 1.0)
        if (cells <= 1).all():
            covariance, degrees = _of_rows(residual, u / spread, member / number, member, run)
        else:
            covariance, degrees = _of_runs(u, y, member, run, np.r_[level, slope])
        self._level, self._slope, self._covariance = level, slope, covariance
        self.degrees_ = degrees
        # A mean of few residuals knows its variance no better than its degrees of freedom say.
        self._noise = residual**2 @ member / np.maximum(number - 2, 1)
        self.slopes_ = -slope
        self.covariance_ = covariance[count:, count:]
        middle = 10**level if self.form == "power" else np.ones(count)
        self._per_decade = (
            middle * (10 ** (-slope / 2) - 10 ** (slope / 2)) if self.form == "power" else -slope
        )

    def _abscissa(self, scale: Array) -> Array:
        if not (scale > 0).all():
            raise ValueError(f"{self.scale} must be positive; one value is {scale[~(scale > 0)][0]:g}")
        return np.log10(scale)

    # --- what was learned --------------------------------------------------------------------------------
    @property
    def params_(self) -> dict[str, float]:
        """``alpha[c]`` and ``log10 x0[c]``; or ``fall[c]`` per decade and ``level[c]`` at scale one; or
        ``E[c]``, ``A[c]`` and ``alpha[c]``."""
        self._fitted()
        found: dict[str, float] = {}
        if self.form == "power-offset":
            for name, (floor, level, alpha), centre in zip(
                self.collections_, self._floors.theta.tolist(), self._floors.centre.tolist(), strict=True
            ):
                with np.errstate(over="ignore"):
                    size = float(np.exp(level + alpha * centre))
                found |= {f"E[{name}]": floor, f"A[{name}]": size, f"alpha[{name}]": alpha}
            return found
        for index, name in enumerate(self.collections_):
            at_one = self._level[index] - self._slope[index] * self._centre[index]
            if self.form == "power":
                with np.errstate(divide="ignore", invalid="ignore"):
                    end = float(-at_one / self._slope[index])
                found |= {f"alpha[{name}]": float(self.slopes_[index]), f"log10 x0[{name}]": end}
            else:
                found |= {f"fall[{name}]": float(self.slopes_[index]), f"level[{name}]": float(at_one)}
        return found

    def slopes(self, level: float = 0.95) -> pandas.DataFrame:
        """A row a collection: ``value``, ``low``, ``high``, ``degrees``, and ``per_decade``, by how much the
        loss falls over a decade about the middle of the scales."""
        import pandas

        self._fitted()
        if self.form == "power-offset":
            low, high = self._quantiles(self.draws_, level)
        else:
            half = self._t(self.degrees_, level) * np.sqrt(np.diag(self.covariance_))
            low, high = self.slopes_ - half, self.slopes_ + half
        return pandas.DataFrame(
            {"value": self.slopes_, "low": low, "high": high,
             "degrees": self.degrees_, "per_decade": self._per_decade},
            index=pandas.Index(self.collections_, name="collection"),
        )  # fmt: skip

    def ratio(self, collection: str, base: str | None = None, level: float = 0.95) -> Interval:
        """Slope of a collection over the base's, such as out over in distribution, with Fieller's interval.

        The ends are infinite where the set is: the base's slope is then not told from zero. Exponents above a
        floor are positive; the interval of their ratio is that of the draws.
        """
        self._fitted()
        over = self._index(base or self.base or self.collections_[0])
        mine = self._index(collection)
        if self.form == "power-offset":
            low, high = self._quantiles(self.draws_[:, mine] / self.draws_[:, over], level)
            return Interval(float(self.slopes_[mine] / self.slopes_[over]), float(low), float(high), level)
        pair = self.covariance_[np.ix_([mine, over], [mine, over])]
        degrees = min(self.degrees_[mine], self.degrees_[over])
        return ratio_interval(float(self.slopes_[mine]), float(self.slopes_[over]), pair, degrees, level)

    def ratios(self, level: float = 0.95) -> pandas.DataFrame:
        """`ratio` of every collection but the base: ``value``, ``low``, ``high``."""
        import pandas

        self._fitted()
        over = self.base or self.collections_[0]
        others = [name for name in self.collections_ if name != over]
        found = [self.ratio(name, level=level) for name in others]
        return pandas.DataFrame(
            {"value": [one.value for one in found], "low": [one.low for one in found],
             "high": [one.high for one in found]},
            index=pandas.Index(others, name=f"slope over that of {over}"),
        )  # fmt: skip

    def report(self, level: float = 0.95) -> dict[str, pandas.DataFrame]:
        """Tables for readers: ``slopes``, and ``ratios`` where there is more than one collection."""
        if self.form == "power-offset" and not len(self.draws_):
            return {}
        found = {"slopes": self.slopes(level)}
        return found if len(self.collections_) == 1 else found | {"ratios": self.ratios(level)}

    def table(self, level: float = 0.9) -> pandas.DataFrame:
        """Parameters; slopes have intervals."""
        frame = super().table(level)
        frame["low"], frame["high"] = np.nan, np.nan
        kind = "fall" if self.form == "log-linear" else "alpha"
        if self.form == "power-offset":
            if not len(self.draws_):
                return frame
            floors = self._quantiles(self._floors.draws[..., 0], level).T
            for name, ends in zip(self.collections_, floors, strict=True):
                frame.loc[f"E[{name}]", ["low", "high"]] = ends
        for name, row in self.slopes(level).iterrows():
            frame.loc[f"{kind}[{name}]", ["low", "high"]] = row["low"], row["high"]
        return frame

    def predict(self, table: Any) -> Array:
        """Losses foretold ``(m,)``; the table needs the scale and the collection."""
        self._fitted()
        if self.form == "power-offset":
            return np.exp(self._floors.log_loss(*self._places(table)))
        return self.interval(table).value

    def _places(self, table: Any) -> tuple[Array, Index]:
        """Log scales and collections ``(m,)`` of rows that are asked for."""
        columns = self.read(table, target=False)
        index = np.array([self._index(str(one)) for one in columns["collection"]], dtype=np.intp)
        return np.log(10.0) * self._abscissa(columns[self.scale]), index

    def _quantiles(self, draws: Array, level: float) -> Array:
        if not 0 < level < 1:
            raise ValueError(f"level is a share between 0 and 1, not {level}")
        if not len(draws):
            raise ValueError("a law with a floor has intervals by resampling; fit with resamples=1000")
        return np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)

    def _above_floors(self, table: Any, level: float, kind: str) -> Interval:
        log_x, index = self._places(table)
        known = self._floors
        draws = known.log_loss(log_x, index, known.draws)
        if kind == "prediction" and len(draws):
            generator = np.random.default_rng([len(draws), 1])
            square = generator.chisquare(known.degrees[index], size=draws.shape) / known.degrees[index]
            draws = draws + np.sqrt(known.noise[index] / square) * generator.standard_normal(draws.shape)
        low, high = self._quantiles(draws, level)
        return Interval(np.exp(known.log_loss(log_x, index)), np.exp(low), np.exp(high), level)

    def interval(self, table: Any, level: float = 0.9, kind: str = "mean") -> Interval:
        if kind not in ("mean", "prediction"):
            raise ValueError(f"kind is 'mean' or 'prediction', not {kind!r}")
        self._fitted()
        if self.form == "power-offset":
            return self._above_floors(table, level, kind)
        log_x, index = self._places(table)
        u = log_x / np.log(10.0) - self._centre[index]
        count, c = len(self.collections_), self._covariance
        value = self._level[index] + self._slope[index] * u
        variance = c[index, index] + 2 * u * c[index, count + index] + u * u * c[count + index, count + index]
        if kind == "prediction":
            variance = variance + self._noise[index]
        half = self._t(self.degrees_[index], level) * np.sqrt(np.maximum(variance, 0.0))
        if self.form == "power":
            return Interval(10**value, 10 ** (value - half), 10 ** (value + half), level)
        return Interval(value, value - half, value + half, level)

    def plot(self, ax: Axes | None = None, level: float = 0.9) -> Axes:
        """Losses and lines over the scale, a colour a collection."""
        import matplotlib.pyplot as plt

        self._fitted()
        if ax is None:
            _, ax = plt.subplots()
        scale, target = self.measured_[self.scale], self.measured_[self.target]
        label = np.asarray([str(one) for one in self.measured_["collection"]])
        for index, name in enumerate(self.collections_):
            mine = label == name
            grid = np.geomspace(scale[mine].min() / 1.5, scale[mine].max() * 3.0, 50)
            asked = {self.scale: grid, "collection": name}
            ax.plot(scale[mine], target[mine], ".", color=f"C{index}")
            ax.plot(grid, self.predict(asked), color=f"C{index}", label=f"{name}: {self.slopes_[index]:.3g}")
            if self.form != "power-offset" or len(self.draws_):
                band = self.interval(asked, level)
                ax.fill_between(grid, band.low, band.high, color=f"C{index}", alpha=0.2, linewidth=0)
        ax.set(xscale="log", xlabel=self.scale, ylabel=self.target)
        if self.form != "log-linear":
            ax.set_yscale("log")
        ax.legend(title="fall per decade" if self.form == "log-linear" else "exponent")
        return ax

    def _t(self, degrees: Any, level: float) -> Any:
        from scipy.special import stdtrit

        if not 0 < level < 1:
            raise ValueError(f"level is a share between 0 and 1, not {level}")
        return stdtrit(degrees, 0.5 + level / 2)

    def _index(self, collection: str) -> int:
        if collection not in self.collections_:
            raise ValueError(f"no collection {collection!r}; fitted were {', '.join(self.collections_)}")
        return self.collections_.index(collection)

    def _fitted(self) -> None:
        if not hasattr(self, "slopes_"):
            raise ValueError("the shift law has not been fitted; call fit(table) first")


def _of_rows(
    residual: Array, slope_of: Array, level_of: Array, member: Array, run: Index
) -> tuple[Array, Array]:
    """Covariance (2c, 2c) of levels and slopes where a run has one row a collection, and degrees (c,).

    Residuals of one run covary between collections, those of different runs do not; each collection has one
    variance, whatever the scale.
    """
    runs = int(run.max()) + 1
    of_run = (run[:, None] == np.arange(runs)).astype(float)  # (n, runs)
    cells = of_run.T @ (residual[:, None] * member)  # (runs, c)
    has = of_run.T @ member
    shared = has.T @ has
    degrees = member.sum(0) - 2
    lost = np.sqrt(degrees / member.sum(0))
    spread = cells.T @ cells / np.maximum(shared, 1) / np.outer(lost, lost)
    # A row's weight in each level and slope, gathered by run: (runs, c, 1) against the run's other rows.
    weights = np.concatenate([level_of, slope_of], 1)  # (n, 2c)
    per_run = np.einsum("nr,nc,np->rcp", of_run, member, weights)
    return np.einsum("rcp,cd,rdq->pq", per_run, spread, per_run), degrees


def _of_runs(u: Array, y: Array, member: Array, run: Index, whole: Array) -> tuple[Array, Array]:
    """The same by the jackknife over runs, where a run has several rows: lines without each run, at once."""
    runs = int(run.max()) + 1
    of_run = (run[:, None] == np.arange(runs)).astype(float)
    y_of = y[:, None] * member

    def without(each: Array) -> Array:
        by_run = of_run.T @ each
        return by_run.sum(0) - by_run

    n, sx, sy = without(member), without(u), without(y_of)
    sxx, sxy = without(u * u), without(u * y_of)
    spread = sxx - sx * sx / np.maximum(n, 1)
    if (spread <= 1e-12 * (u * u).sum(0)).any():
        raise ValueError("without one of the runs a collection is left with one scale: measure more runs")
    slope = (sxy - sx * sy / n) / spread
    level = (sy - slope * sx) / n
    shift = np.concatenate([level, slope], 1) - whole
    present = (of_run.T @ member > 0).sum(0)
    scale = (present - 1) / present
    scale = np.sqrt(np.r_[scale, scale])
    return (shift * scale).T @ (shift * scale), (present - 1).astype(float)
