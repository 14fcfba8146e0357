"""The task law: how the rate at which a model passes grows with its size, foretold from models that hardly
pass.

Hu and others, 2023. arXiv:2310.03262: if every token of the right answer obeys a power law without a floor,
the pass rate of instance s is exp(-c_s N^-alpha_s), so F = log(-log pass rate) is a line in log N. `TaskLaw`
fits the lines of all instances at once from counts (`allometry.laws.pass_likelihood`): an instance of which a
small model passed nothing in ten thousand draws says much, and is neither dropped nor set to zero. What is
foretold is the mean over instances, each taken over what is not known of it.

Intervals are those of a parametric bootstrap. Each resample draws lines from what is known of them, what a
model as a whole and each instance on it scatter beyond the counts, new counts by the rule of the old, and
fits again; the errors made are taken off the prediction (so a bias is, too). A model's scatter has few
degrees of freedom, and each resample draws its scale from what they leave open: intervals widen as Student's
t does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from allometry.laws.pass_likelihood import (
    Lines,
    fit_lines,
    mean_pass_rate,
    score,
    values_of,
    variance_of,
)
from allometry.laws.shape import Shape, bends, judge, mean_squares
from allometry.laws.task_table import Cells, PassColumns
from allometry.laws.uncertainty import Interval

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

__all__ = ["TaskLaw"]

Array = NDArray[np.float64]
_BENDING = 12  # Newton steps for the common deviation, each with the lines refitted
_FARTHEST = (
    1.5  # deviation of F of one instance on one model: beyond, the score's line through zero is no guide
)
_ROUNDS = 12  # of EM for a resample, started at the fit
_AT_ONCE = 2_000_000  # cells of resamples in one batch, for memory


@dataclass(frozen=True)
class _Scatter:
    """What models scatter beyond their counts, standard deviations of F."""

    run: float  # of a model as a whole
    instance: float  # of each instance on it
    found: float  # mean square along the bends
    counting: float  # what counting alone would make of it
    degrees: float


@dataclass(frozen=True)
class _Draws:
    """Resamples: lines as they were (B, S, 2), as they were fitted, and the run's scale (B,)."""

    truth: Array
    theta: Array
    covariance: Array
    run: Array


class TaskLaw(PassColumns):
    """Pass rate against size, from counts of passes.

    Parameters
    ----------
    level : {"instance", "dataset"}
        A line for each instance, averaged afterwards; or one line through the means.
    likelihood : {"censored-nb", "least-squares"}
        Of the counts; or of the points log(-log p) that have an estimate, which is what the paper does and
        leaves out instances that never passed.

    Attributes
    ----------
    lines_ : Lines
        Of all instances, at level "instance".
    instances_ : array (S,)
        Their names, in the order of `lines_`.
    scatter_ : what models scatter beyond their counts, as a model and by instance.

    Examples
    --------
    >>> n = np.repeat([1e5, 1e6, 1e7, 1e8], 2)
    >>> trials = np.full(8, 100_000)
    >>> passes = np.round(trials * np.exp(-np.tile([40, 80], 4) * n**-0.2))
    >>> table = {"params": n, "instance": np.tile([0, 1], 4), "successes": passes, "trials": trials}
    >>> law = TaskLaw().fit(table, resamples=0)
    >>> round(law.params_["alpha"], 2), float(law.predict({"params": 1e9})[0].round(2))
    (0.2, 0.41)
    """

    name: ClassVar[str] = "task"

    def __init__(
        self,
        level: Literal["instance", "dataset"] = "instance",
        likelihood: Literal["censored-nb", "least-squares"] = "censored-nb",
    ) -> None:
        if level not in ("instance", "dataset"):
            raise ValueError(f"level must be 'instance' or 'dataset', not {level!r}")
        if likelihood not in ("censored-nb", "least-squares"):
            raise ValueError(f"likelihood must be 'censored-nb' or 'least-squares', not {likelihood!r}")
        self.level, self.likelihood = level, likelihood

    # --- learning ----------------------------------------------------------------------------------------
    def fit(
        self, table: Any, counts: Sequence[Any] | None = None, *, resamples: int = 1000, random_state: int = 0
    ) -> Self:
        """Learn from a table of counts, or from sizes ``(M,)`` and as many `allometry.measure.PassCounts`.

        Parameters
        ----------
        table : mapping or DataFrame of columns (n,), or sizes (M,)
        counts : sequence of M PassCounts, optional
            Of the same instances in the same order.
        resamples : int
            For intervals; 0 for none.
        random_state : int

        Raises
        ------
        ValueError
            Fewer than three sizes, nothing that passed, or pass rates that chance explains.
        """
        from allometry.laws.task_table import from_counts

        columns = self.read(table if counts is None else from_counts(table, counts))
        self.measured_ = columns
        self.cells_ = cells = Cells.of(columns)
        self.warnings_ = list(cells.warnings)
        if self.level == "dataset":
            from allometry.laws.circuits import SetCurve

            self.set_ = SetCurve().fit(columns, resamples=resamples, random_state=random_state)
            self.warnings_ = list(self.set_.warnings_)
            return self
        self.instances_ = cells.instances
        self.lines_ = self._refit(cells.passes, cells.failures, None, 0.0)
        self.scatter_ = self._measure_scatter(self.lines_, 0.0)
        # an instance's scatter makes its informative cells less so: once more, with weights that know it
        self.lines_ = self._refit(cells.passes, cells.failures, None, self.scatter_.instance)
        self.scatter_ = self._measure_scatter(self.lines_, self.scatter_.instance)
        self._draws = self._resample(resamples, np.random.default_rng(random_state)) if resamples else None
        return self

    def _refit(self, passes: Array, failures: Array, start: Lines | None, scatter: float) -> Lines:
        x = self.cells_.x
        if self.likelihood == "least-squares":
            return least_squares_lines(x, passes, passes + failures)
        rounds = _ROUNDS if start is not None else 200
        weights: Array | float = 1.0
        if scatter > 0:
            near = start or self.lines_
            known = self.cells_.information(values_of(near.theta, x))
            weights = 1.0 / (1.0 + scatter**2 * known)
        return fit_lines(x, passes, failures, weights=weights, start=start, rounds=rounds)

    def _bent(self, lines: Lines, scatter: float) -> tuple[Array, Array, Array]:
        """All models' common deviation from the lines along `bends`, the variances that counting gives it,
        and F ``(S, M)`` with it: the most probable deviation, the lines moving with it."""
        cells = self.cells_
        design = np.stack([np.ones_like(cells.x), -cells.x], axis=1)
        basis = bends(cells.x)
        found = np.zeros(basis.shape[1])
        precision = np.linalg.inv(lines.spread) if len(cells.instances) > 1 else np.zeros((2, 2))
        for _ in range(_BENDING):
            f = values_of(lines.theta, cells.x) + basis @ found
            known = cells.information(f)
            weight = 1.0 / (1.0 + scatter**2 * known)
            known = weight * known
            across = np.einsum("md,sm,mk->sdk", design, known, basis)
            gram = np.einsum("md,sm,me->sde", design, known, design)
            taken = across.transpose(0, 2, 1) @ np.linalg.solve(gram + precision + 1e-9 * np.eye(2), across)
            information = (basis.T * known.sum(axis=0)) @ basis - taken.sum(axis=0)
            # where the counts say nothing of a bend it stays near none, with a variance that says so
            inverse = np.linalg.inv(information + 1e-3 * np.eye(len(found)))
            first, _ = score(f, cells.passes, cells.failures)
            move = inverse @ (basis.T @ (weight * first).sum(axis=0))
            found = found + move * min(1.0, 1.0 / max(np.abs(basis @ move).max(), 1e-300))
            lines = fit_lines(
                cells.x, cells.passes, cells.failures, weights=weight, offset=basis @ found, start=lines,
                rounds=10,
            )  # fmt: skip
            if np.abs(move).max() < 1e-4:
                break
        return found, np.diag(inverse), values_of(lines.theta, cells.x) + basis @ found

    def _measure_scatter(self, lines: Lines, scatter: float) -> _Scatter:
        cells = self.cells_
        found, variances, f = self._bent(lines, scatter)
        square, counting, degrees = mean_squares(found, variances)
        known = cells.information(f)
        first, _ = score(f, cells.passes, cells.failures)
        left = np.clip(first / np.maximum(known, 1e-12), -_FARTHEST, _FARTHEST)
        told = (known / (1.0 + known)) ** 2 * cells.measured
        cells_left = float(told.sum() - lines.absorbed - len(found))
        excess = float((told * (left**2 - 1.0 / np.maximum(known, 1e-12))).sum())
        one = excess / cells_left if len(cells.instances) > 1 and cells_left > 1 else 0.0
        run = np.sqrt(max(square - counting, 0.0))
        return _Scatter(run, np.sqrt(max(one, 0.0)), square, counting, degrees)

    def _resample(self, count: int, generator: np.random.Generator) -> _Draws:
        cells, lines, scatter = self.cells_, self.lines_, self.scatter_
        each = max(1, _AT_ONCE // cells.passes.size)
        parts = []
        factor = np.linalg.cholesky(lines.covariance + 1e-12 * np.eye(2))
        for first in range(0, count, each):
            n = min(each, count - first)
            noise = generator.standard_normal((n, *lines.theta.shape, 1))
            truth = lines.theta + np.matmul(factor, noise)[..., 0]
            # the scale that a mean square with so few degrees of freedom leaves open
            square = scatter.found * scatter.degrees / generator.chisquare(scatter.degrees, n)
            run = np.sqrt(np.maximum(square - scatter.counting, 0.0))
            f = values_of(truth, cells.x) + self._luck(run, cells.x, len(cells.instances), generator)
            passes, failures = cells.redraw(f, generator)
            fitted = self._refit(passes, failures, lines, scatter.instance)
            parts.append((truth, fitted.theta, fitted.covariance, run))
        return _Draws(*(np.concatenate(one) for one in zip(*parts, strict=True)))

    def _luck(self, run: Array, x: Array, instances: int, generator: np.random.Generator) -> Array:
        """Deviations (B, S, k) of k new models."""
        common = run[:, None, None] * generator.standard_normal((len(run), 1, len(x)))
        own = self.scatter_.instance * generator.standard_normal((len(run), instances, len(x)))
        return common + own

    # --- what was learned --------------------------------------------------------------------------------
    @property
    def params_(self) -> dict[str, float]:
        self._fitted()
        if self.level == "dataset":
            return self.set_.params_
        return {
            "log_c": float(self.cells_.log_c(self.lines_.theta).mean()),
            "alpha": float(self.lines_.theta[:, 1].mean()),
            "alpha_sd": float(np.sqrt(self.lines_.spread[1, 1])) if len(self.instances_) > 1 else 0.0,
            "run_sd": float(self.scatter_.run),
            "instance_sd": float(self.scatter_.instance),
        }

    def table(self, level: float = 0.9) -> pandas.DataFrame:
        """``log_c`` and ``alpha`` (means over instances) with intervals; standard deviations over instances
        of alpha, and of F over models and over instances on one model."""
        if self.level == "dataset":
            self._fitted()
            return self.set_.table(level)
        frame = super().table(level)
        frame[["low", "high"]] = np.nan
        if self._draws is not None:
            for name, of in (("log_c", self.cells_.log_c), ("alpha", lambda theta: theta[..., 1])):
                error = of(self._draws.theta).mean(axis=-1) - of(self._draws.truth).mean(axis=-1)
                high, low = frame.loc[name, "value"] - np.quantile(error, [(1 - level) / 2, (1 + level) / 2])
                frame.loc[name, ["low", "high"]] = low, high
        return frame

    def curves(self, s: Any = None) -> pandas.DataFrame:
        """Each instance's ``log_c`` and ``alpha`` with standard errors from counting; or only ``s``."""
        import pandas

        self._by_instance()
        theta, covariance = self.lines_.theta, self.lines_.covariance
        origin = np.array([-self.cells_.centre])
        frame = pandas.DataFrame(
            {"log_c": self.cells_.log_c(theta), "log_c_se": np.sqrt(variance_of(covariance, origin)[:, 0]),
             "alpha": theta[:, 1], "alpha_se": np.sqrt(covariance[:, 1, 1])},
            index=pandas.Index(self.instances_, name="instance"),
        )  # fmt: skip
        return frame if s is None else frame.loc[[s]]

    # --- what it foretells -------------------------------------------------------------------------------
    def predict(self, table: Any) -> Array:
        """Mean pass rates ``(m,)`` over the instances."""
        self._fitted()
        if self.level == "dataset":
            return self.set_.predict(table)
        return self.predict_each(table).mean(axis=0)

    def predict_each(self, table: Any) -> Array:
        """Pass rates ``(S, m)`` of the instances, in the order of ``instances_``."""
        self._by_instance()
        params = self.read(table, target=False)["params"]
        return self._rates(self.lines_.theta, self.lines_.covariance, params)

    def _rates(self, theta: Array, covariance: Array, params: Array) -> Array:
        """Expected pass rates (..., S, m) of models of given sizes, over luck and what is not known."""
        x, row = np.unique(np.log(params) - self.cells_.centre, return_inverse=True)
        luck = self.scatter_.instance**2 + self.scatter_.run**2
        return mean_pass_rate(values_of(theta, x), variance_of(covariance, x) + luck)[..., row]

    def interval(self, table: Any, level: float = 0.9, kind: str = "mean") -> Interval:
        """Pass rates with limits ``(m,)``: of models of that size on the whole (``"mean"``), or of what
        counts of one new model will say (``"prediction"``)."""
        self._fitted()
        if self.level == "dataset":
            return self.set_.interval(table, level, kind)
        if kind not in ("mean", "prediction"):
            raise ValueError(f"kind must be 'mean' or 'prediction', not {kind!r}")
        if self._draws is None:
            raise ValueError("intervals need resamples; fit with resamples=1000")
        params = self.read(table, target=False)["params"]
        places, row = np.unique(params, return_inverse=True)
        value = self.predict({"params": places})
        told = self._rates(self._draws.theta, self._draws.covariance, places).mean(axis=-2)
        nothing = np.zeros((*self._draws.truth.shape[:-1], 2, 2))
        if kind == "mean":
            truth = self._rates(self._draws.truth, nothing, places).mean(axis=-2)
        else:
            truth = self._measured_anew(places)
        with np.errstate(divide="ignore"):
            error = np.log(-np.log(told)) - np.log(-np.log(truth))
            best = np.log(-np.log(value))
            # drawn values, not between them: luck may take a rate to 0 or 1, and F to infinity
            tails = np.quantile(error, [(1 - level) / 2, (1 + level) / 2], axis=0, method="inverted_cdf")
            low, high = best - tails
        return Interval(value[row], np.exp(-np.exp(low))[row], np.exp(-np.exp(high))[row], level)

    def _measured_anew(self, params: Array) -> Array:
        """Mean pass rates (B, m) that new models of these sizes would show, counted as the old were."""
        draws, generator = self._draws, np.random.default_rng(1)
        assert draws is not None
        x = np.log(params) - self.cells_.centre
        out = np.empty((len(draws.run), len(x)))
        each = max(1, _AT_ONCE // max(1, len(self.instances_) * len(x)))
        for first in range(0, len(draws.run), each):
            part = slice(first, first + each)
            f = values_of(draws.truth[part], x)
            f = f + self._luck(draws.run[part], x, len(self.instances_), generator)
            out[part] = self.cells_.recount(f, generator).mean(axis=-2)
        return out

    # --- shape -------------------------------------------------------------------------------------------
    def growth_shape(self, level: float = 0.95) -> Shape:
        """Whether F bends: one curvature for all instances, each about its own line.

        At level "dataset" the curve of the means is judged, which bends also where instances differ.
        """
        self._fitted()
        if self.level == "dataset":
            return self.set_.growth_shape(level)
        found, variances, _ = self._bent(self.lines_, self.scatter_.instance)
        slope = float(self.lines_.theta[:, 1].mean())
        return judge(self.cells_.x, found, variances, slope, level=level)

    def report(self) -> dict[str, pandas.DataFrame]:
        """What was measured at each size with exact limits, and the shape of growth."""
        import pandas

        told = self.growth_shape()
        return {
            "measured": self.cells_.by_size(),
            "shape": pandas.DataFrame(
                [{"kind": told.kind, "curvature": told.curvature, "low": told.interval.low,
                  "high": told.interval.high, "p": told.pvalue}]
            ),
        }  # fmt: skip

    def plot(self, ax: Axes | None = None, level: float = 0.9) -> Axes:
        """-log of the mean pass rate over size, both logarithmic: the law is near a line; arrows where
        nothing passed."""
        from allometry.laws.task_table import draw

        self._fitted()
        return draw(self, ax, level)

    def _fitted(self) -> None:
        if not hasattr(self, "cells_"):
            raise ValueError("the task law has not been fitted; call fit(table) first")

    def _by_instance(self) -> None:
        self._fitted()
        if self.level != "instance":
            raise ValueError("a law of the dataset has no curves of instances; choose level='instance'")


def least_squares_lines(x: Array, passes: Array, trials: Array) -> Lines:
    """Lines by weighted least squares through log(-log p) where r >= 1 draws of several passed.

    All instances as one batch of normal equations (2, 2), ``(..., S, 2, 2)``. Instances with fewer than two
    such sizes take the others' mean line.
    """
    from scipy.special import digamma, polygamma

    some = (passes >= 1) & (passes < trials)
    r, k = np.where(some, passes, 1.0), np.where(some, trials, 2.0)
    log_p = np.minimum(digamma(r) - digamma(k), -1e-9)
    # delta method: var(F) = var(log p) / (log p)^2
    weight = np.where(some, log_p**2 / (polygamma(1, r) - polygamma(1, k)), 0.0)
    f = np.log(-log_p)
    design = np.stack([np.ones_like(x), -x], axis=-1)
    products = (design[:, :, None] * design[:, None, :]).reshape(len(x), 4)
    gram = (weight @ products).reshape(*weight.shape[:-1], 2, 2)
    known = some.sum(axis=-1) >= 2
    safe = np.where(known[..., None, None], gram, np.eye(2))
    inverse = np.linalg.inv(safe)
    theta = np.matmul(inverse, ((weight * f) @ design)[..., None])[..., 0]
    share = known[..., None].astype(float)
    centre = (theta * share).sum(axis=-2) / np.maximum(share.sum(axis=-2), 1.0)
    theta = np.where(known[..., None], theta, centre[..., None, :])
    # what least squares says of an instance's line is taken as known: the paper predicts exp(-c N^-alpha)
    nothing = np.zeros((*theta.shape, 2))
    away = theta - centre[..., None, :]
    spread = (away[..., :, None] * away[..., None, :]).mean(axis=-3) + 1e-8 * np.eye(2)
    return Lines(theta, nothing, centre, spread, 2.0 * known.sum(axis=-1))
