"""The loss at every step of any learning-rate schedule, from a few runs: what the laws of annealing share.

``L(s) = L0 + A S1(s)^-alpha - sum_k (eta_{k-1} - eta_k) response(time since k)``: a power of the area under
the schedule, less what each fall of the rate has brought by now.  The laws differ in the response
(`allometry.laws.annealing`, `allometry.laws.multi_power`).

- Objective: Huber's loss of log residuals with delta 1e-3, as Tissue and others, 2024 (arXiv:2408.11029) and
  Luo and others, 2025 (arXiv:2503.12811) have it, by SciPy's trust-region least squares with exact
  derivatives; starts by variable projection (three of the parameters solve a non-negative least-squares
  problem exactly).
- Residuals along a run are alike (`allometry.laws.persistence`): intervals come from drawing such noise anew
  and taking one Newton step of the robust fit for each draw, all draws in one product.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from allometry.laws.forms import nonnegative_least_squares
from allometry.laws.law import Estimator
from allometry.laws.persistence import Persistence, estimate_persistence
from allometry.laws.schedule_search import best_schedule, horizon_losses, rank_schedules
from allometry.laws.traces import Lags, Trace, final_lags, joined, lags, traces
from allometry.laws.uncertainty import Interval

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from allometry.laws.held_out import HeldOut

__all__ = ["ResponseLaw", "Shape"]

Array = NDArray[np.float64]
_ALPHAS = np.array([0.15, 0.25, 0.35, 0.45, 0.55, 0.7, 0.9, 1.2])


@dataclass(frozen=True)
class Shape:
    """A parameter of a response: its name, bounds and starts in the coordinate that is fitted."""

    name: str
    low: float
    high: float
    starts: tuple[float, ...]


class ResponseLaw(Estimator):
    """What the laws of annealing share; derived classes give `shapes`, `response` and `natural`.

    Parameters
    ----------
    warmup : int
        Steps of linear warm-up that the logs do not show; a column ``warmup`` of the table may say it too.
    ramp : bool
        Whether the warm-up counts with its small rates, or (Tissue et al., 2024) as if at full rate.
    delta : float
        Where Huber's loss of log residuals turns from square to absolute.
    run_noise : float
        Standard deviation of log losses between runs that differ by their seed alone, where it is known.
        Three runs do not tell it (their law takes it up), so intervals leave it out unless it is given.
    """

    columns: ClassVar[Mapping[str, str]] = {"step": "the update, from 0"}
    optional: ClassVar[Mapping[str, str]] = {
        "learning_rate": "the rate of the update",
        "warmup": "steps of linear warm-up before the log begins",
    }
    synonyms: ClassVar[Mapping[str, Sequence[str]]] = {"learning_rate": ("lr", "rate")}
    effective = False  # whether both areas are those of a power of the rate
    gain: ClassVar[str] = "B"

    def __init__(
        self, *, warmup: int = 0, ramp: bool = True, delta: float = 1e-3, run_noise: float = 0.0
    ) -> None:
        if warmup < 0:
            raise ValueError(f"warmup is a number of steps, not {warmup}")
        if not delta > 0:
            raise ValueError(f"delta must be positive, not {delta}")
        if not run_noise >= 0:
            raise ValueError(f"run_noise is a standard deviation of log losses, not {run_noise}")
        self.warmup, self.ramp, self.delta, self.run_noise = warmup, ramp, delta, run_noise

    # --- what a law gives -------------------------------------------------------------------------------
    def shapes(self, peak: float, steps: int) -> tuple[Shape, ...]:
        """Parameters of the response, for runs of about ``steps`` at rates of about ``peak``."""
        raise NotImplementedError

    def response(self, shape: Array, place: Lags) -> tuple[Array, Array]:
        """Share of the gain ``(e,)`` that has arrived, and its derivatives ``(e, q)`` by the shape."""
        raise NotImplementedError

    def natural(self, theta: Array) -> dict[str, Array]:
        """Parameters by name from coordinates ``(..., p)``."""
        raise NotImplementedError

    # --- fitting ----------------------------------------------------------------------------------------
    def fit(
        self,
        table: Any,
        *,
        schedules: Mapping[str, ArrayLike] | None = None,
        resamples: int = 1000,
        random_state: int = 0,
    ) -> Self:
        """Learn from the logged points of one or more runs.

        Parameters
        ----------
        table : mapping or DataFrame
            Columns ``step``, ``learning_rate``, ``loss`` and, for several runs, ``run``; between logged steps
            the rate is on a straight line, before the first as there.
        schedules : mapping of run to array (T,), optional
            Whole schedules, where the log is too coarse for that.
        resamples, random_state
            Number of draws behind the intervals (0 for none), and their seed.

        Raises
        ------
        ValueError
            Losses are not positive, no run ever lowers its rate, or points are fewer than parameters.
        """
        columns = self.read(table)
        loss = columns[self.target]
        if not (loss > 0).all():
            raise ValueError(f"losses must be positive; found {loss[loss <= 0][0]:g}")
        self._known: dict[str, tuple[Array, Array]] = {}
        found = self._traces(columns, schedules)
        self.warnings_, self.dropped_ = [], 0
        for one in found:
            self.remember(one.name, one.rates)
        inside = [one.steps >= one.warmup for one in found]
        self.dropped_ = int(sum((~one).sum() for one in inside))
        if self.dropped_:
            self.warnings_.append(f"{self.dropped_} points within a warm-up were left out.")
        kept = [
            Trace(one.name, one.rates, one.steps[good], one.warmup, one.rows[good])
            for one, good in zip(found, inside, strict=True) if good.any()
        ]  # fmt: skip
        if not kept:
            raise ValueError("all points lie within the warm-up; log beyond it")
        self.traces_ = kept
        self.log_loss_ = np.log(np.concatenate([loss[one.rows] for one in kept]))
        self.peak_ = float(max(one.rates.max() for one in kept))
        peaks = {float(one.rates.max().round(12)) for one in kept}
        if max(peaks) > 1.05 * min(peaks):
            self.warnings_.append(f"The runs have different peak rates, {min(peaks):g} to {max(peaks):g}.")
        self._prepare(kept)
        self._check(len(self.log_loss_))
        self.theta_, self.objective_ = self._search()
        self._uncertainty(resamples, random_state)
        return self

    def _traces(self, columns: Mapping[str, Any], schedules: Mapping[str, Any] | None = None) -> list[Trace]:
        warmup = self.warmup
        if "warmup" in columns and len(columns["warmup"]):
            told = np.unique(columns["warmup"])
            if len(told) > 1:
                raise ValueError(f"the column 'warmup' must hold one number of steps; found {told.tolist()}")
            warmup = int(told[0])
        return traces(columns, schedules=schedules, warmup=warmup, ramp=self.ramp, known=self._known)

    def _prepare(self, kept: Sequence[Trace]) -> None:
        steps = max(len(one.rates) for one in kept)
        self._shapes = self.shapes(self.peak_, steps)
        names = ["L0", "log A", "alpha", "log B", *(one.name for one in self._shapes)]
        low = [0.0, -50.0, 1e-3, -50.0, *(one.low for one in self._shapes)]
        high = [np.inf, 50.0, 4.0, 50.0, *(one.high for one in self._shapes)]
        if self.effective:
            names, low, high = [*names, "kappa"], [*low, 0.1], [*high, 3.0]
        self.coordinates_, self._low, self._high = tuple(names), np.array(low), np.array(high)

    def _held(self) -> dict[str, float]:
        """Coordinates that are given, not fitted."""
        return {}

    def _check(self, points: int) -> None:
        held = self._held()
        free = len(self.coordinates_) - len(held)
        if points < free:
            raise ValueError(f"the {self.name} law has {free} parameters and only {points} points were given")
        place = self._place(self.traces_)
        if "log B" not in held and not (len(place.weight) and np.abs(place.weight).max() > 1e-3 * self.peak_):
            raise ValueError(
                "no run lowers its learning rate, so what annealing gains cannot be learned; add a run that "
                f"does (a short decay will do), or give the gain {self.gain} of a model like yours"
            )

    def _place(self, found: Sequence[Trace], kappa: float = 1.0) -> Lags:
        return joined([self._lags(self._effective(one.rates, kappa), one.steps, one.warmup) for one in found])

    def _lags(self, rates: Array, steps: NDArray[np.intp], warmup: int) -> Lags:
        return lags(rates, steps, warmup)

    def _effective(self, rates: Array, kappa: float) -> Array:
        return rates if kappa == 1.0 else self.peak_ * (rates / self.peak_) ** kappa

    def _parts(self, theta: Array, place: Lags) -> tuple[Array, Array]:
        """Loss ``(n,)`` and derivatives ``(n, p)`` at fixed effective rates."""
        power = np.exp(theta[1] - theta[2] * np.log(np.maximum(place.forward, 1e-300)))
        count, size = len(power), len(self._shapes)
        share, slopes = self.response(theta[4 : 4 + size], place)
        gain = np.exp(theta[3]) * np.bincount(place.point, place.weight * share, minlength=count)
        jacobian = np.empty((count, 4 + size))
        jacobian[:, 0], jacobian[:, 1], jacobian[:, 3] = 1.0, power, -gain
        jacobian[:, 2] = -power * np.log(np.maximum(place.forward, 1e-300))
        for i in range(size):
            moved = np.bincount(place.point, place.weight * slopes[:, i], minlength=count)
            jacobian[:, 4 + i] = -np.exp(theta[3]) * moved
        return theta[0] + power - gain, jacobian

    def _evaluate(
        self, theta: Array, found: Sequence[Trace], place: Lags | None = None
    ) -> tuple[Array, Array]:
        """Log prediction ``(n,)`` and its derivatives ``(n, p)``."""
        kappa = float(theta[-1]) if self.effective else 1.0
        value, jacobian = self._parts(theta, self._place(found, kappa) if place is None else place)
        if self.effective:  # the areas themselves move: a central difference
            step = 1e-4
            above = self._parts(theta, self._place(found, kappa + step))[0]
            below = self._parts(theta, self._place(found, kappa - step))[0]
            jacobian = np.column_stack([jacobian, (above - below) / (2 * step)])
        positive = np.maximum(value, 1e-6)  # a trial may overshoot; it is then refused by its residuals
        return np.log(positive), jacobian / positive[:, None]

    def _search(self) -> tuple[Array, float]:
        place = self._place(self.traces_)
        starts = self._starts(place)
        coarse = [self._descend(start, limit=25) for start in starts]
        theta, _ = min(coarse, key=lambda pair: pair[1])
        return self._descend(theta, limit=400)

    def _starts(self, place: Lags, count: int = 3) -> list[Array]:
        """The best starts: the shape on a grid, the rest exactly (variable projection)."""
        held = self._held()
        grid = [(held[one.name],) if one.name in held else one.starts for one in self._shapes]
        weights = np.ones((1, len(self.log_loss_)))
        found: list[tuple[float, Array]] = []
        for shape in itertools.product(*grid):
            share = self.response(np.array(shape), place)[0]
            gain = np.bincount(place.point, place.weight * share, minlength=len(place.forward))
            powers = place.forward[None] ** -_ALPHAS[:, None]
            basis = np.stack([np.ones_like(powers), powers, np.broadcast_to(-gain, powers.shape)], axis=-1)
            if not gain.any() or "log B" in held:
                basis = basis[..., :2]
            solved = nonnegative_least_squares(basis, self.log_loss_[None], weights)[0]
            told = np.einsum("gnm,gm->gn", basis, solved)
            miss = np.abs(np.log(np.maximum(told, 1e-6)) - self.log_loss_).sum(axis=1)
            best = int(miss.argmin())
            amplitude = solved[best, 2] if basis.shape[-1] == 3 else 0.0
            theta = [solved[best, 0], np.log(max(solved[best, 1], 1e-9)), _ALPHAS[best],
                     held.get("log B", np.log(max(amplitude, 1e-6 / self.peak_))), *shape]  # fmt: skip
            found.append((float(miss[best]), np.array(theta + ([1.0] if self.effective else []))))
        found.sort(key=lambda pair: pair[0])
        return [theta for _, theta in found[:count]]

    def _descend(
        self, theta: Array, rows: NDArray[np.bool_] | None = None, limit: int = 100
    ) -> tuple[Array, float]:
        """Minimise Huber's loss over the ``rows`` from a start; coordinates and the objective."""
        from scipy.optimize import least_squares

        held = self._held()
        free = np.array([name not in held for name in self.coordinates_])
        keep = slice(None) if rows is None else rows
        fixed_place = None if self.effective else self._place(self.traces_)
        memory: dict[bytes, tuple[Array, Array]] = {}

        def at(part: Array) -> tuple[Array, Array]:
            key = part.tobytes()
            if key not in memory:
                memory.clear()
                full = theta.copy()
                full[free] = part
                told, jacobian = self._evaluate(full, self.traces_, fixed_place)
                memory[key] = (told - self.log_loss_)[keep] / self.delta, jacobian[keep][:, free] / self.delta
            return memory[key]

        low, high = self._low[free], self._high[free]
        start = np.clip(theta[free], low + 1e-9, np.where(np.isfinite(high), high - 1e-9, high))
        found = least_squares(
            lambda part: at(part)[0], start, jac=lambda part: at(part)[1], bounds=(low, high), loss="huber",
            x_scale="jac", ftol=1e-12, xtol=1e-12, gtol=1e-12, max_nfev=limit,
        )  # fmt: skip
        out = theta.copy()
        out[free] = found.x
        return out, float(found.cost) * self.delta**2

    def stretches(self, count: int) -> NDArray[np.intp]:
        """Each run's points in ``count`` parts by order: the number of the part of each point ``(n,)``."""
        parts = [
            np.argsort(np.argsort(one.steps, kind="stable")) * count // len(one.steps) + i * count
            for i, one in enumerate(self.traces_)
        ]
        return np.unique(np.concatenate(parts), return_inverse=True)[1].astype(np.intp)

    def left_out(self, count: int) -> Array:
        """Log of foretold over observed loss ``(n,)``, each stretch by a fit to all the others."""
        part = self.stretches(count)
        out = np.empty(len(part))
        for number in range(int(part.max()) + 1):
            away = part == number
            theta = self._descend(self.theta_, ~away, limit=60)[0]
            out[away] = (self._evaluate(theta, self.traces_)[0] - self.log_loss_)[away]
        return out

    # --- uncertainty ------------------------------------------------------------------------------------
    def _uncertainty(self, resamples: int, random_state: int) -> None:
        told, jacobian = self._evaluate(self.theta_, self.traces_)
        residuals = self.log_loss_ - told
        free = np.array([name not in self._held() for name in self.coordinates_])
        at_bound = (self.theta_ <= self._low + 1e-8) | (self.theta_ >= self._high - 1e-8)
        free &= ~at_bound
        for name in np.array(self.coordinates_)[at_bound & (self._low < self._high)]:
            self.warnings_.append(f"{name} lies at its bound.")
        ends = np.cumsum([len(one.steps) for one in self.traces_])[:-1]
        steps = [one.steps.astype(float) for one in self.traces_]
        slopes = jacobian[:, free]
        self.noise_: Persistence = estimate_persistence(
            steps, np.split(residuals, ends), np.split(slopes, ends)
        )
        norms = np.sqrt((slopes**2).sum(axis=0))
        values = np.linalg.svd(slopes / np.where(norms > 0, norms, 1.0), compute_uv=False)
        self.condition_ = float(values[0] / max(values[-1], 1e-300))
        if not any(_keeps_still(one) for one in self.traces_):
            self.warnings_.append(
                "No run keeps its learning rate for a fifth of its steps: what training gains and what "
                "annealing gains are hardly told apart, and predictions for other schedules may be off by "
                "far more than their intervals; add a run that has a constant stretch."
            )
        elif self.condition_ > 1e4:
            self.warnings_.append(
                f"The runs hardly tell some parameters apart (condition {self.condition_:.1e}); predictions "
                "may be sound where parameters are not."
            )
        self.theta_draws_ = np.empty((0, len(self.theta_)))
        self.random_state_ = random_state
        if resamples:
            generator = np.random.default_rng(random_state)
            drawn = self._noise(steps, resamples, generator)
            # One Newton step of the robust fit on each draw of noise; its bend is the share of points within
            # delta. Directions that the runs do not tell at all stay where they are.
            bend = max(float((np.abs(drawn) < self.delta).mean()), 1e-3)
            hessian = bend * slopes.T @ slopes / np.outer(norms, norms)
            solved = np.linalg.pinv(hessian, rcond=1e-10, hermitian=True)
            pushed = np.clip(drawn, -self.delta, self.delta) @ (slopes / norms)
            moves = np.zeros((resamples, len(self.theta_)))
            moves[:, free] = (pushed @ solved) / norms
            self.theta_draws_ = self.theta_ + moves

    def _noise(self, steps: Sequence[Array], count: int, generator: np.random.Generator) -> Array:
        drawn = self.noise_.draw(steps, count, generator)
        if self.run_noise:
            luck = self.run_noise * generator.standard_normal((count, len(steps)))
            drawn = drawn + np.repeat(luck, [len(one) for one in steps], axis=1)
        return drawn

    # --- what it foretells ------------------------------------------------------------------------------
    @property
    def params_(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.natural(self._fitted()).items()}

    def predict(self, table: Any) -> Array:
        """Losses ``(m,)`` at ``step`` of the schedules that ``table`` shows: ``learning_rate`` by ``step``,
        ``run`` where there are several. A run of the fit is taken with its whole history."""
        found, rows = self.asked(table)
        told = np.empty(len(rows))
        told[rows] = np.exp(self._evaluate(self._fitted(), found)[0])
        return told

    def interval(self, table: Any, level: float = 0.9, kind: str = "mean") -> Interval:
        found, rows = self.asked(table)
        value, spread = self.spread(found, kind)
        ends = np.quantile(spread, [(1 - level) / 2, (1 + level) / 2], axis=0)
        out = np.empty((3, len(rows)))
        out[:, rows] = np.exp(np.vstack([value, ends]))
        return Interval(out[0], out[1], out[2], level)

    def spread(self, found: Sequence[Trace], kind: str = "mean") -> tuple[Array, Array]:
        """Log prediction ``(m,)`` and its draws ``(resamples, m)``: of the law, or of one new measurement."""
        if kind not in ("mean", "prediction"):
            raise ValueError(f"kind must be 'mean' or 'prediction', not {kind!r}")
        value, jacobian = self._evaluate(self._fitted(), found)
        if not len(self.theta_draws_):
            raise ValueError("this fit has no draws; fit with resamples > 0 to get intervals")
        draws = value + (self.theta_draws_ - self.theta_) @ jacobian.T
        if kind == "prediction":
            generator = np.random.default_rng([self.random_state_, 1])
            steps = [one.steps.astype(float) for one in found]
            draws = draws + self._noise(steps, len(draws), generator)
        return value, draws

    def remember(self, run: str, rates: ArrayLike) -> None:
        """Let ``run`` stand for a whole schedule ``(T,)``, of which later tables show a few steps."""
        values = np.asarray(rates, dtype=float)
        self._known[run] = (np.arange(len(values), dtype=float), values)

    def hold_out(self, table: Any, *, level: float = 0.9, **options: Any) -> HeldOut:
        """What the law says of the last third of the run that ends lowest, fitted without it."""
        import pandas

        from allometry.laws.held_out import held_out

        frame = pandas.DataFrame(self.read(table)).reset_index(drop=True)
        label = frame["run"].astype(str) if "run" in frame else pandas.Series("run", index=frame.index)
        last = frame.groupby(label)[self.target].min().idxmin()
        frame["run"] = label
        steps = frame["step"].where(label == last)
        return held_out(self, frame, (steps > steps.quantile(2 / 3)).to_numpy(), level=level, **options)

    def asked(self, table: Any) -> tuple[list[Trace], NDArray[np.intp]]:
        """The runs that a table asks about, and the rows of the table in their order."""
        self._fitted()
        columns = self.read(table, target=False)
        if "run" not in columns:  # a schedule of its own, not the rest of a run that was fitted
            columns["run"] = np.full(len(columns["step"]), "asked")
        found = self._traces(columns)
        return found, np.concatenate([one.rows for one in found])

    def final(self, schedules: ArrayLike, *, warmup: int = 0, draws: bool = False) -> Array:
        """Loss at the end of each of many schedules ``(K, T)``: ``(K,)``, or draws ``(resamples, K)``."""
        rates = np.atleast_2d(np.asarray(schedules, dtype=float))
        theta = self._fitted()

        def place(kappa: float) -> Lags:
            return final_lags(self._effective(rates, kappa), warmup)

        kappa = float(theta[-1]) if self.effective else 1.0
        value, jacobian = self._parts(theta, place(kappa))
        if not draws:
            return value
        if self.effective:
            moved = self._parts(theta, place(kappa + 1e-4))[0] - value
            jacobian = np.column_stack([jacobian, moved / 1e-4])
        return value + (self.theta_draws_ - theta) @ jacobian.T

    def rank(self, schedules: Mapping[str, ArrayLike], **options: Any) -> pandas.DataFrame:
        """Schedules by their foretold end, the best first; see `allometry.laws.rank_schedules`."""
        return rank_schedules(self, schedules, **options)

    def best(self, total_steps: int, peak: float, **options: Any) -> tuple[str, Array, pandas.DataFrame]:
        """The best schedule of a family for a horizon; see `allometry.laws.best_schedule`."""
        return best_schedule(self, total_steps, peak, **options)

    def horizons(self, totals: Sequence[int], peak: float, **options: Any) -> pandas.DataFrame:
        """Final losses at many horizons from one trunk's law; see `allometry.laws.horizon_losses`."""
        return horizon_losses(self, totals, peak, **options)

    # --- tables and figures -----------------------------------------------------------------------------
    def table(self, level: float = 0.9) -> pandas.DataFrame:
        """Parameters with intervals."""
        import pandas

        frame = pandas.DataFrame({"value": self.params_})
        if len(self.theta_draws_):
            inside = np.clip(self.theta_draws_, self._low, self._high)
            draws = self.natural(inside)
            ends = {k: np.quantile(v, [(1 - level) / 2, (1 + level) / 2]) for k, v in draws.items()}
            frame["low"] = {name: float(pair[0]) for name, pair in ends.items()}
            frame["high"] = {name: float(pair[1]) for name, pair in ends.items()}
        frame.index.name = "parameter"
        return frame

    def plot(self, ax: Axes | None = None, level: float = 0.9) -> Axes:
        """Loss against step, a colour a run, with the law through it."""
        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.subplots()[1]
        told = np.exp(self._evaluate(self._fitted(), self.traces_)[0])
        start = 0
        for i, one in enumerate(self.traces_):
            part = slice(start, start + len(one.steps))
            start = part.stop
            ax.plot(one.steps, np.exp(self.log_loss_[part]), ".", ms=3, color=f"C{i}", alpha=0.5)
            ax.plot(one.steps, told[part], color=f"C{i}", label=one.name)
        ax.set(xlabel="step", ylabel=self.target)
        ax.legend()
        return ax

    def _fitted(self) -> Array:
        if not hasattr(self, "theta_"):
            raise ValueError(f"the {self.name} law has not been fitted; call fit(table) first")
        return self.theta_


def _keeps_still(one: Trace) -> bool:
    """Whether the rate stays near some value for at least about a fifth of the run after its warm-up."""
    parts = [part for part in np.array_split(one.rates[one.warmup :], 11) if len(part)]
    flat = [bool(np.ptp(part) <= 0.01 * one.rates.max()) for part in parts]
    return any(first and second for first, second in itertools.pairwise(flat))
