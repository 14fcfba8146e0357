"""A law as an estimator: one interface for every law, whatever columns it reads.

A form (`allometry.laws.forms`) is mathematics without data, a `Fit` is one form with what was learned. A law
stands above them: it knows which columns of a table it needs, brings them into the form that it fits, and
answers as scikit-learn's estimators do: ``fit`` returns the law, what was learned ends in an underscore.

    law = laws.get_law("chinchilla").fit(table)
    law.params_, law.interval({"params": 7e9, "tokens": 2e12})

A paper's law derives from `Law` where it is one form over columns (`design` says how), and from `Estimator`
where its fit is of another kind. Either way `allometry.laws.compare_laws` judges it by what it foretells of
rows held out.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from allometry.laws.columns import candidates, normalise
from allometry.laws.forms import Form, get_form
from allometry.laws.uncertainty import Interval

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from allometry.laws.fit import Fit
    from allometry.laws.held_out import HeldOut

__all__ = ["Estimator", "Law", "ScalingLaw", "get_law", "law_names"]

Array = NDArray[np.float64]

# Names for `get_law` and ``allometry fit --law``: each a file of this room and the class in it.
_HOMES: dict[str, tuple[str, str]] = {
    "schedule": ("schedule_choice", "ScheduleLaw"),
    "annealing": ("annealing", "AnnealingLaw"),
    "multi-power": ("multi_power", "MultiPowerLaw"),
    "effective-rate": ("multi_power", "EffectiveRateLaw"),
    "task": ("task", "TaskLaw"),
    "task-chain": ("task_chain", "TaskChain"),
    "learning-curve": ("learning_curve", "LearningCurve"),
    "resampling": ("resampling_law", "ResamplingLaw"),
    "utility": ("utility", "UtilityLaw"),
    "precision": ("precision", "PrecisionLaw"),
    "shift": ("shift", "ShiftLaw"),
    "log-linear": ("log_linear", "LogLinearLaw"),
}
_FORMS = (
    "power",
    "power-offset",
    "kaplan",
    "kaplan-offset",
    "chinchilla",
    "broken-power",
    "data-constrained",
    "bounded-power",
)


class Estimator(ABC):
    """What every law does: `fit` to a table of columns, then `predict`, `interval`, `params_`, `plot`.

    Attributes
    ----------
    name : str
        As ``allometry fit --law NAME`` calls it.
    columns, optional : mapping of column to what it means, with its unit
        What a table must and may hold beside the target. A column ``run`` always may: rows of one run are
        resampled together.
    target : str
        The column that the law foretells.
    synonyms : mapping of column to other names
        Compared without case and separators.
    held_out_by : str
        The column whose largest value is held out to see what the law foretells; its first by default.
    """

    name: ClassVar[str]
    columns: ClassVar[Mapping[str, str]]
    optional: ClassVar[Mapping[str, str]] = {}
    target: ClassVar[str] = "loss"
    synonyms: ClassVar[Mapping[str, Sequence[str]]] = {}
    held_out_by: ClassVar[str] = ""
    warnings_: list[str]

    @abstractmethod
    def fit(self, table: Any, *, resamples: int = 1000, random_state: int = 0) -> Self:
        """Learn from a mapping or DataFrame of columns (n,), the target among them.

        Raises
        ------
        ValueError
            A column is missing, a value cannot be, or the rows cannot determine the law; in one sentence.
        """

    @property
    @abstractmethod
    def params_(self) -> dict[str, float]:
        """Parameters by name, in the caller's units."""

    @abstractmethod
    def predict(self, table: Any) -> Array:
        """The target foretold ``(m,)`` for a mapping or DataFrame of columns (m,)."""

    @abstractmethod
    def interval(self, table: Any, level: float = 0.9, kind: str = "mean") -> Interval:
        """The prediction with arrays ``(m,)`` of limits: of the law (``"mean"``), or of one new measurement
        (``"prediction"``)."""

    @abstractmethod
    def plot(self, ax: Axes | None = None, level: float = 0.9) -> Axes:
        """What was measured, and the law through it."""

    def table(self, level: float = 0.9) -> pandas.DataFrame:
        """Parameters with intervals where the law has them: columns ``value``, ``low``, ``high``."""
        import pandas

        frame = pandas.DataFrame({"value": self.params_})
        frame.index.name = "parameter"
        return frame

    def hold_out(self, table: Any, *, level: float = 0.9, **options: Any) -> HeldOut:
        """What the law says of the rows of the largest scale, fitted without them; it is then that fit.

        Raises
        ------
        ValueError
            Too little would be left.
        """
        import pandas

        from allometry.laws.held_out import held_out

        columns = pandas.DataFrame(self.read(table))
        return held_out(self, columns, self.held_out_by or next(iter(self.columns)), level=level, **options)

    def report(self) -> dict[str, pandas.DataFrame]:
        """Further tables that the law can make of what it learned, by title; none by default."""
        return {}

    def read(self, table: Any, *, target: bool = True) -> dict[str, Any]:
        """The law's own columns ``(n,)`` of a table, found by name or synonym; numbers as float arrays.

        Parameters
        ----------
        table : mapping, DataFrame or `allometry.laws.Runs`
            Scalars stand for all rows.
        target : bool
            Whether the target is needed.

        Raises
        ------
        ValueError
            A column is missing or of another length, or holds what is no finite number where one is needed.
        """
        held = getattr(table, "table", table)
        names = [str(one) for one in (held.keys() if isinstance(held, Mapping) else held.columns)]
        wanted = {
            **self.columns,
            **self.optional,
            "run": "which run",
            **({self.target: ""} if target else {}),
        }
        found: dict[str, Any] = {}
        for column in wanted:
            source = self._source(column, names)
            if source is not None:
                found[column] = np.atleast_1d(np.asarray(held[source]))
            elif column in self.columns or (target and column == self.target):
                raise ValueError(
                    f"the {self.name} law needs a column {column!r} ({wanted[column] or 'its target'}); "
                    f"the columns given are {', '.join(names)}"
                )
        lengths = {len(values) for values in found.values()} - {1}
        if len(lengths) > 1:
            raise ValueError(f"the columns have different lengths: {sorted(lengths)}")
        rows = lengths.pop() if lengths else 1
        for column, values in found.items():
            if column != "run" and column not in self.labels:
                found[column] = self._numbers(column, values)
            if len(values) != rows:
                found[column] = np.repeat(found[column], rows)
        return found

    labels: ClassVar[Sequence[str]] = ()  # columns that are names, not numbers

    def _source(self, column: str, names: Sequence[str]) -> str | None:
        if column in names:
            return column
        known = [normalise(column), *(normalise(one) for one in self.synonyms.get(column, ()))]
        plain = {normalise(name): name for name in reversed(names)}
        for one in known:
            if one in plain:
                return plain[one]
        usual = candidates(names).get(column, [])
        return next((choice.source for choice in usual if choice.scale == 1.0), None)

    def _numbers(self, column: str, values: NDArray[Any]) -> Array:
        try:
            numbers = values.astype(float)
        except (TypeError, ValueError):
            bad = next(one for one in values if not isinstance(one, int | float | np.number))
            raise ValueError(
                f"column {column!r} of the {self.name} law must hold numbers, not {bad!r}"
            ) from None
        if not np.isfinite(numbers).all():
            row = int(np.flatnonzero(~np.isfinite(numbers))[0])
            raise ValueError(f"column {column!r} is {numbers[row]} in row {row}; leave such rows out")
        return numbers


class Law(Estimator):
    """A law that is one form over columns: derived classes give ``form`` and, where needed, `design`.

    Attributes
    ----------
    form : Form
    fit_ : Fit
        What was learned.
    scale : str
        The column on the horizontal axis of `plot`; the first by default.
    """

    form: Form
    fit_: Fit
    scale: str | None = None
    fit_options: ClassVar[Mapping[str, Any]] = {}

    def design(self, columns: Mapping[str, Any]) -> Any:
        """Columns of the table as the inputs of the form; as they are, by default."""
        return {name: columns[name] for name in self.form.inputs}

    def fit(self, table: Any, *, resamples: int = 1000, random_state: int = 0, **options: Any) -> Self:
        """As `Estimator.fit`; further options go to `allometry.laws.fit`."""
        from allometry.laws.fit import fit

        columns = self.read(table)
        chosen = {**self.fit_options, **options}
        self.fit_ = fit(
            self.form, self.design(columns), columns[self.target], run=columns.get("run"),
            resamples=resamples, random_state=random_state, **chosen,
        )  # fmt: skip
        self.measured_ = columns
        self.warnings_ = list(self.fit_.warnings)
        return self

    @property
    def params_(self) -> dict[str, float]:
        return self._fitted().params

    def predict(self, table: Any) -> Array:
        return self._fitted().predict(self.design(self.read(table, target=False)))

    def interval(self, table: Any, level: float = 0.9, kind: str = "mean") -> Interval:
        told = self._fitted().interval(self.design(self.read(table, target=False)), level, kind)
        value, low, high = (np.atleast_1d(one) for one in told)
        return Interval(value, low, high, level)

    def table(self, level: float = 0.9) -> pandas.DataFrame:
        return self._fitted().table(level)

    def plot(self, ax: Axes | None = None, level: float = 0.9) -> Axes:
        """Observed against foretold along the law's scale, the others as observed."""
        return self._fitted().plot(ax, level)

    def _fitted(self) -> Fit:
        if not hasattr(self, "fit_"):
            raise ValueError(f"the {self.name} law has not been fitted; call fit(table) first")
        return self.fit_


class RunLaw(Law):
    """A law of a table whose column ``run`` may not tell runs apart.

    A table of many trainings is often read from one file, whose name is then all that its rows know as their
    run. A law with a level of its own takes up what one run, or a few, have in common: no noise is left to be
    seen, and intervals would have no width. Rows are then taken for runs of their own, and a warning says so.
    """

    def fit(self, table: Any, *, resamples: int = 1000, random_state: int = 0, **options: Any) -> Self:
        """As `Law.fit`.

        Raises
        ------
        ValueError
            A scale has one value, or a loss lies below a floor that is held.
        """
        given = {"resamples": resamples, "random_state": random_state, **options}
        columns = self.read(table)
        self._refuse(columns, options.get("bounds") or {})
        rows = len(columns[self.target])
        named = len(np.unique(columns["run"].astype(str))) if "run" in columns else rows
        if 1 < named < rows:
            super().fit(columns, **given)
            if not _unseen(self.fit_):
                return self
        said = {1: "All rows are named one run"}.get(named, f"The {named} runs cannot be told apart")
        super().fit({name: one for name, one in columns.items() if name != "run"}, **given)
        if named < rows:
            self.warnings_.append(
                f"{said}: each row was taken for a run of its own, and how runs differ is in no interval."
            )
        return self

    def _refuse(self, columns: Mapping[str, Any], bounds: Mapping[str, tuple[float, float]]) -> None:
        if not len(columns[self.target]):
            raise ValueError(f"the table has no rows to fit the {self.name} law to")
        for name in self.form.inputs:
            if name in columns and len(np.unique(columns[name])) < 2:
                raise ValueError(
                    f"all rows have {name} = {columns[name][0]:g}, so how {self.target} depends on it cannot "
                    "be learned; measure a second value, or use a law without it"
                )
        floor, lowest = bounds.get("E", (0.0, np.inf))[0], float(np.min(columns[self.target]))
        if floor >= lowest > 0:
            raise ValueError(
                f"the floor E is held at {floor:g} or above, and a {self.target} of {lowest:g} is not above "
                "it"
            )


def _unseen(fit: Fit) -> bool:
    """Whether points lie off the law, yet no noise was found."""
    off = float(np.sqrt(np.mean(fit.residuals**2)))
    return off > 1e-9 and fit.noise.total < 1e-6 * off


class ScalingLaw(RunLaw):
    """Any form as a law.

    Examples
    --------
    >>> n = np.array([1e6, 1e7, 1e8, 1e9])
    >>> table = {"params": n, "loss": 1.5 + 400 * n**-0.4}
    >>> law = ScalingLaw("power-offset", "params").fit(table, resamples=0)
    >>> round(law.params_["alpha"], 6), float(law.predict({"params": 1e12})[0].round(3))
    (0.4, 1.506)
    """

    def __init__(self, form: str | Form, *inputs: str) -> None:
        self.form = get_form(form)
        if inputs:
            self.form.inputs = inputs
        self.name = self.form.name  # type: ignore[misc]
        self.columns = dict.fromkeys(self.form.inputs, "a scale, positive")  # type: ignore[misc]


def law_names() -> list[str]:
    """Names that `get_law` knows.

    >>> "chinchilla" in law_names()
    True
    """
    return [*_FORMS, *_HOMES]


def get_law(name: str | Estimator, **options: Any) -> Estimator:
    """A law by its name, not fitted; ``options`` go to its constructor.

    Raises
    ------
    ValueError
        There is no law of that name, or it has no such option.

    Examples
    --------
    >>> get_law("power").params_
    Traceback (most recent call last):
    ValueError: the power law has not been fitted; call fit(table) first
    """
    if isinstance(name, Estimator):
        return name
    if name not in law_names():
        raise ValueError(f"no law {name!r}; there are {', '.join(law_names())}")
    if name in _FORMS:
        if options:
            raise ValueError(f"the {name} law has no option {', '.join(options)}")
        return ScalingLaw(name)
    file, kind = _HOMES[name]
    made = getattr(importlib.import_module(f"allometry.laws.{file}"), kind)
    try:
        return made(**options)
    except TypeError as error:
        raise ValueError(f"the {name} law: {error}") from None
