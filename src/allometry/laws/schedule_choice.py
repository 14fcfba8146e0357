"""The law of annealing that the runs themselves choose, and one call from a log to its forecast.

Each run is cut into four stretches of points; every stretch is foretold by each law fitted to all the rest;
the laws are then weighted, by weights that are not negative and sum to one, so that their mean foretells the
stretches best (stacking: Wolpert, 1992; Breiman, 1996). Nothing but the runs that are fitted is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from allometry.laws.annealing import AnnealingLaw
from allometry.laws.law import Estimator, get_law
from allometry.laws.multi_power import EffectiveRateLaw, MultiPowerLaw
from allometry.laws.schedule import ResponseLaw
from allometry.laws.uncertainty import Interval

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

__all__ = ["ScheduleLaw", "forecast_schedule"]

Array = NDArray[np.float64]


class ScheduleLaw(Estimator):
    """A mean of the annealing, the multi-power and the effective-rate law, weighted on the fitted runs alone.

    Parameters
    ----------
    warmup, ramp, run_noise
        As in `ResponseLaw`.
    laws : sequence of ResponseLaw, optional
        Others to choose among.
    stretches : int
        Into how many each run is cut.

    Attributes
    ----------
    weights_ : dict of name to weight
    errors_ : dict of name to mean absolute log error over the stretches held out
    laws_ : dict of name to the fitted law
    """

    name = "schedule"
    columns: ClassVar[Mapping[str, str]] = ResponseLaw.columns
    optional: ClassVar[Mapping[str, str]] = ResponseLaw.optional
    synonyms: ClassVar[Mapping[str, Sequence[str]]] = ResponseLaw.synonyms

    def __init__(
        self, *, warmup: int = 0, ramp: bool = True, run_noise: float = 0.0,
        laws: Sequence[ResponseLaw] | None = None, stretches: int = 4,
    ) -> None:  # fmt: skip
        if stretches < 2:
            raise ValueError(f"runs are cut into at least two stretches, not {stretches}")
        self.stretches = stretches
        settings: dict[str, Any] = {"warmup": warmup, "ramp": ramp, "run_noise": run_noise}
        self.laws = list(laws) if laws is not None else [
            AnnealingLaw(**settings), MultiPowerLaw(**settings), EffectiveRateLaw(**settings)
        ]  # fmt: skip

    def fit(
        self, table: Any, *, schedules: Mapping[str, ArrayLike] | None = None, resamples: int = 1000,
        random_state: int = 0,
    ) -> Self:  # fmt: skip
        """As `ResponseLaw.fit`; laws with more parameters than there are points are left out."""
        self.laws_: dict[str, ResponseLaw] = {}
        refusals: list[str] = []
        for law in self.laws:
            try:
                self.laws_[law.name] = law.fit(
                    table, schedules=schedules, resamples=resamples, random_state=random_state
                )
            except ValueError as refusal:
                refusals.append(str(refusal))
        if not self.laws_:
            raise ValueError(refusals[0])
        left = {name: law.left_out(self.stretches) for name, law in self.laws_.items()}
        share = next(iter(self.laws_.values())).stretches(self.stretches)
        weight = 1.0 / np.bincount(share)[share]  # every stretch counts alike
        weight /= weight.sum()
        self.errors_ = {name: float(weight @ np.abs(one)) for name, one in left.items()}
        solved = _stack(np.stack(list(left.values())), weight)
        self.weights_ = {name: float(one) for name, one in zip(left, solved, strict=True)}
        self.warnings_ = list(
            dict.fromkeys([*refusals, *(w for law in self.laws_.values() for w in law.warnings_)])
        )
        self.random_state_ = random_state
        return self

    @property
    def params_(self) -> dict[str, float]:
        """Weights of the laws; their own parameters are in `report`."""
        self._fitted()
        return dict(self.weights_)

    def predict(self, table: Any) -> Array:
        return self._mean([law.predict(table) for law in self._fitted().values()])

    def interval(self, table: Any, level: float = 0.9, kind: str = "mean") -> Interval:
        """Limits from draws of all laws in the ratio of their weights, so that where they disagree it
        widens."""
        value = self.predict(table)
        spreads, rows = [], np.arange(len(value))
        for law in self._fitted().values():
            found, rows = law.asked(table)
            spreads.append(law.spread(found, kind)[1])
        ends = np.quantile(self._mixed(spreads), [(1 - level) / 2, (1 + level) / 2], axis=0)
        out = np.empty((2, len(value)))
        out[:, rows] = np.exp(ends)
        return Interval(value, np.minimum(out[0], value), np.maximum(out[1], value), level)

    def final(self, schedules: ArrayLike, *, warmup: int = 0, draws: bool = False) -> Array:
        """As `ResponseLaw.final`."""
        told = [law.final(schedules, warmup=warmup, draws=draws) for law in self._fitted().values()]
        return self._mixed(told) if draws else self._mean(told)

    rank, best, horizons = ResponseLaw.rank, ResponseLaw.best, ResponseLaw.horizons

    def hold_out(self, table: Any, *, level: float = 0.9, **options: Any) -> Any:
        return ResponseLaw.hold_out(self, table, level=level, **options)  # type: ignore[arg-type]

    def report(self) -> dict[str, pandas.DataFrame]:
        """How the laws foretold the stretches held out, and the parameters of each."""
        import pandas

        laws = self._fitted()
        choice = pandas.DataFrame(
            {"weight": self.weights_, "error held out": self.errors_,
             "objective": {name: law.objective_ for name, law in laws.items()}}
        ).rename_axis("law")  # fmt: skip
        return {"laws": choice, **{f"{name} law": law.table() for name, law in laws.items()}}

    def plot(self, ax: Axes | None = None, level: float = 0.9) -> Axes:
        laws = self._fitted()
        return laws[max(self.weights_, key=lambda name: self.weights_[name])].plot(ax, level)

    def _mean(self, told: Sequence[Array]) -> Array:
        weights = np.array(list(self.weights_.values()))
        return np.asarray(np.tensordot(weights, np.stack(told), axes=1))

    def _mixed(self, draws: Sequence[Array]) -> Array:
        """Draws ``(resamples, m)``, each from one law."""
        generator = np.random.default_rng([self.random_state_, 2])
        which = generator.choice(len(draws), size=len(draws[0]), p=list(self.weights_.values()))
        return np.stack(draws)[which, np.arange(len(which))]

    def _fitted(self) -> dict[str, ResponseLaw]:
        if not hasattr(self, "weights_"):
            raise ValueError(f"the {self.name} law has not been fitted; call fit(table) first")
        return self.laws_


def _stack(left: Array, weight: Array) -> Array:
    """Weights ``(k,)`` on the simplex that minimise ``weight @ |weights @ left|``, a linear programme."""
    from scipy.optimize import linprog
    from scipy.sparse import csr_matrix, eye, hstack, vstack

    laws, n = left.shape
    if laws == 1:
        return np.ones(1)
    rows = hstack([csr_matrix(left.T), -eye(n), eye(n)])
    one = csr_matrix(np.concatenate([np.ones(laws), np.zeros(2 * n)])[None])
    found = linprog(
        np.concatenate([np.zeros(laws), weight, weight]),
        A_eq=vstack([rows, one]), b_eq=np.append(np.zeros(n), 1.0),
    )  # fmt: skip
    solved = np.clip(found.x[:laws], 0.0, 1.0)
    return np.asarray(solved / solved.sum())


def forecast_schedule(
    log: Any,
    schedule: Any,
    *,
    law: str | Estimator = "schedule",
    steps: Sequence[int] | None = None,
    level: float = 0.9,
    warmup: int = 0,
    resamples: int = 1000,
    random_state: int = 0,
) -> pandas.DataFrame:
    """From a training log with its schedule to a forecast of the same run under another.

    Parameters
    ----------
    log : mapping or DataFrame
        ``step``, ``learning_rate``, ``loss``, and ``run`` where there are several. The rate must have fallen
        somewhere.
    schedule : array (T,), or table with ``step`` and ``learning_rate``
        The other schedule; of a torch scheduler, `allometry.optim.schedule_rates` gives the array.
    law : str or Estimator
        "schedule" (chosen on the log), "annealing", "multi-power" or "effective-rate".
    steps : sequence of int, optional
        Where the loss is asked for; by default at 200 steps from the warm-up to the end.
    warmup : int
        Steps of linear warm-up that log and schedule do not show.

    Returns
    -------
    DataFrame
        ``step``, ``learning_rate``, ``loss``, ``low``, ``high`` (limits of one new run's measurement).

    Examples
    --------
    >>> step = np.arange(100, 3000, 20)
    >>> rate = 1e-3 * np.minimum(1, (3000 - step) / 600)
    >>> loss = 2.5 + 0.3 * np.cumsum(np.full(len(step), 0.02)) ** -0.4 - 60 * (1e-3 - rate)
    >>> told = forecast_schedule({"step": step, "learning_rate": rate, "loss": loss}, np.full(4000, 1e-3),
    ...                          law="annealing", resamples=100)
    >>> list(told), bool(told["loss"].iloc[-1] > loss[-1])
    (['step', 'learning_rate', 'loss', 'low', 'high'], True)
    """
    import pandas

    options = {"warmup": warmup} if warmup and isinstance(law, str) else {}
    fitted = get_law(law, **options).fit(log, resamples=resamples, random_state=random_state)
    rates = _whole(fitted, schedule)
    last = len(rates) - 1
    asked = np.unique(np.linspace(warmup, last, 200).astype(int) if steps is None else np.asarray(steps, int))
    if asked.max() > last or asked.min() < 0:
        raise ValueError(f"step {asked.max()} is asked for, and the schedule ends at {last}")
    for one in getattr(fitted, "laws_", {"": fitted}).values():
        one.remember("forecast", rates)  # so that only the steps asked for are computed
    out = pandas.DataFrame({"step": asked, "learning_rate": rates[asked]})
    place = out.assign(run="forecast")
    out["loss"], out["low"], out["high"] = fitted.predict(place), np.nan, np.nan
    if resamples:
        told = fitted.interval(place, level, "prediction")
        out["low"], out["high"] = told.low, told.high
    return out


def _whole(law: Estimator, schedule: Any) -> Array:
    """The rates ``(T,)`` of a schedule that is an array, or a table of some of its steps."""
    import pandas

    if not hasattr(schedule, "keys"):
        return np.asarray(schedule, dtype=float).ravel()
    columns = law.read(pandas.DataFrame(dict(schedule)), target=False)
    if "learning_rate" not in columns:
        raise ValueError("a schedule is an array of rates, or a table with step and learning_rate")
    order = np.argsort(columns["step"], kind="stable")
    places, values = columns["step"][order], columns["learning_rate"][order]
    return np.interp(np.arange(int(places[-1]) + 1), places, values)
