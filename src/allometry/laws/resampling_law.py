"""Resampling as a law: from judged samples to the accuracy at any number of draws, and how many pay.

Benedikt Stroebl, Sayash Kapoor, Arvind Narayanan, 2024. arXiv:2411.17501

For ``allometry fit samples.csv --law resampling:cost_false=1``; the parts are `AcceptanceTable`,
`resampling_curve`, `optimal_k` and `ceiling`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from allometry.laws.acceptance import AcceptanceTable
from allometry.laws.best_k import OptimalK, optimal_k
from allometry.laws.law import Estimator
from allometry.laws.resampling import Ceiling, ceiling, costs, resampling_curve
from allometry.laws.uncertainty import Interval

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from allometry.laws.held_out import HeldOut

__all__ = ["ResamplingLaw"]

Array = NDArray[np.float64]
_COSTS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
_DRAWS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)


class ResamplingLaw(Estimator):
    """Accuracy after K draws with a verifier, learned from samples that were judged.

    Tables to fit hold one row a sample: ``task`` (a name), ``accepted`` by the verifier and ``correct`` by
    the reference, both 0 or 1; or one row a task: ``right`` and ``wrong``, the shares of samples accepted and
    correct, accepted and wrong.  Tables to foretell hold ``samples``, the draws allowed; ``correct`` is then
    the share of tasks answered rightly.

    Parameters
    ----------
    cost_false, cost_sample : float
        What a wrong answer and a sample cost, a right answer being worth 1.

    Attributes
    ----------
    table_ : AcceptanceTable
    best_ : OptimalK
    ceiling_ : Ceiling

    Examples
    --------
    >>> rows = {"task": [1, 1, 1, 1, 2, 2, 2, 2], "accepted": [1, 1, 0, 0, 1, 0, 0, 0],
    ...         "correct": [1, 1, 0, 0, 0, 0, 0, 0]}
    >>> law = ResamplingLaw().fit(rows, resamples=0)
    >>> law.predict({"samples": [1, 4]}).tolist(), law.params_["ceiling"]
    ([0.25, 0.5], 0.5)
    """

    name = "resampling"
    columns: ClassVar[Mapping[str, str]] = {
        "task": "which task, a name",
        "accepted": "1 where the verifier accepts the sample, else 0",
    }
    target = "correct"
    synonyms: ClassVar[Mapping[str, Sequence[str]]] = {
        "task": ("task_id", "problem", "instance"),
        "accepted": ("passed", "passes", "accept"),
        "correct": ("reference", "truth", "passes_reference"),
        "samples": ("k", "draws", "attempts"),
    }
    labels = ("task",)
    table_: AcceptanceTable
    best_: OptimalK
    ceiling_: Ceiling

    def __init__(self, cost_false: float = 0.0, cost_sample: float = 0.0) -> None:
        self.cost_false, self.cost_sample = costs(float(cost_false), float(cost_sample))

    def read(self, table: Any, *, target: bool = True) -> dict[str, Any]:
        """Columns of judged samples; of a table that holds ``samples``, that and the share ``correct``."""
        if self._source("samples", _names(table)) is None:
            return super().read(table, target=target)
        places = copy.copy(self)
        places.columns = {"samples": "draws allowed of a task"}  # type: ignore[misc]
        return super(ResamplingLaw, places).read(table, target=target)

    def _numbers(self, column: str, values: NDArray[Any]) -> Array:
        if column in ("accepted", "correct") and values.dtype.kind in "OUS":  # as a CSV may have it
            words = np.char.lower(values.astype(str))
            values = np.where(words == "true", "1", np.where(words == "false", "0", values))
        return super()._numbers(column, values)

    def fit(self, table: Any, *, resamples: int = 1000, random_state: int = 0) -> Self:
        names = _names(table)
        if {"right", "wrong"} <= set(names):
            held = getattr(table, "table", table)
            right, wrong = (self._numbers(one, np.asarray(held[one])) for one in ("right", "wrong"))
            tasks = np.asarray(held["task"]).tolist() if "task" in names else None
            self.table_ = AcceptanceTable.from_rates(right, wrong, tasks=tasks)
        else:
            found = super().read(table)
            self.table_ = AcceptanceTable.from_samples(found["task"], found["accepted"], found["correct"])
        if resamples and len(self.table_) < 2:
            raise ValueError("all samples are of one task; intervals need two or more tasks, or resamples=0")
        self.resamples, self.random_state = resamples, random_state
        self.best_ = self._best(self.cost_false, 0.9)
        self.ceiling_ = self._ceiling(0.9)
        self.warnings_ = list(self.best_.warnings)
        return self

    def hold_out(self, table: Any, *, level: float = 0.9, **options: Any) -> HeldOut:
        """What half of the tasks, drawn at random, foretell of the share that is measured on the others."""
        from allometry.laws.held_out import judge

        found = {name: values for name, values in super().read(table).items() if name != "run"}
        names = np.unique(found["task"])
        if len(names) < 4:
            raise ValueError(f"{len(names)} tasks are too few to hold half of them out; four are needed")
        away = np.random.default_rng(options.get("random_state", 0)).permutation(names)[: len(names) // 2]
        out = np.isin(found["task"], away)
        self.fit({name: values[~out] for name, values in found.items()}, **options)
        others = AcceptanceTable.from_samples(*(found[one][out] for one in ("task", "accepted", "correct")))
        known = min(int(one.samples.min()) for one in (others, self.table_) if one.samples is not None)
        draws = np.array([k for k in _DRAWS if k <= known])
        measured = {"samples": draws, "correct": resampling_curve(others, draws).accuracy}
        return judge(self, measured, level, intervals=options.get("resamples", 1) != 0)

    def _best(self, cost_false: float, level: float) -> OptimalK:
        return optimal_k(
            self.table_, cost_false=cost_false, cost_sample=self.cost_sample, level=level,
            resamples=self.resamples, random_state=self.random_state,
        )  # fmt: skip

    def _ceiling(self, level: float) -> Ceiling:
        count = max(self.resamples, 1)
        return ceiling(self._fitted(), level, resamples=count, random_state=self.random_state)

    def _fitted(self) -> AcceptanceTable:
        if not hasattr(self, "table_"):
            raise ValueError("the resampling law has not been fitted; call fit(table) first")
        return self.table_

    @property
    def params_(self) -> dict[str, float]:
        table = self._fitted()
        return {
            "single-sample accuracy": table.pass_at_1,
            "completeness": table.completeness,
            "soundness": table.soundness,
            "correct among accepted": self.ceiling_.pooled.value,
            "ceiling": self.ceiling_.accuracy.value,
            "ceiling at best": self.ceiling_.best.value,
            "best K": self.best_.k,
            "reward at best K": self.best_.reward.value,
        }

    def predict(self, table: Any) -> Array:
        """Share of tasks answered rightly ``(m,)`` at each row's ``samples``."""
        return resampling_curve(self._fitted(), self._draws(table)).accuracy

    def _draws(self, table: Any) -> Array:
        names = _names(table)
        if self._source("samples", names) is None:
            raise ValueError(
                "the resampling law foretells at a column 'samples' (draws allowed of a task); the columns "
                f"given are {', '.join(names)}"
            )
        return np.asarray(self.read(table, target=False)["samples"])

    def interval(self, table: Any, level: float = 0.9, kind: str = "mean") -> Interval:
        """The share with its limits ``(m,)``: of all tasks like these, or (``"prediction"``) as it would be
        measured anew on as many tasks with as many samples."""
        if kind not in ("mean", "prediction"):
            raise ValueError(f"kind must be 'mean' or 'prediction', not {kind!r}")
        curve = resampling_curve(self._fitted(), self._draws(table))
        count = max(self.resamples, 1)
        told = curve.interval("accuracy", level, resamples=count, random_state=self.random_state)
        if kind == "mean":
            return told
        # two measurements that are equally uncertain, of which one is known
        low, high = (told.value + np.sqrt(2.0) * (end - told.value) for end in (told.low, told.high))
        return Interval(told.value, np.maximum(low, 0.0), np.minimum(high, 1.0), level)

    def table(self, level: float = 0.9) -> pandas.DataFrame:
        frame = super().table(level)
        top, best = self._ceiling(level), self._best(self.cost_false, level)
        known = {
            "correct among accepted": top.pooled, "ceiling": top.accuracy, "ceiling at best": top.best,
            "best K": best.interval, "reward at best K": best.reward,
        }  # fmt: skip
        frame["low"] = [known[name].low if name in known else np.nan for name in frame.index]
        frame["high"] = [known[name].high if name in known else np.nan for name in frame.index]
        return frame

    def report(self) -> dict[str, pandas.DataFrame]:
        """``"accuracy by samples"`` and ``"best number of samples"``, over what a wrong answer costs."""
        import pandas

        table = self._fitted()
        most = 1000 if table.samples is None else int(table.samples.min())
        draws = np.array(sorted({*(k for k in _DRAWS if k <= most), most}))
        curve = resampling_curve(
            table, draws, cost_false=self.cost_false, cost_sample=self.cost_sample
        ).frame(resamples=max(self.resamples, 1), random_state=self.random_state)  # fmt: skip
        rows = []
        for cost in sorted({*_COSTS, self.cost_false}):
            best = self._best(cost, 0.9)
            rows.append({
                "cost of a wrong answer": cost, "best K": best.k, "low": best.interval.low,
                "high": best.interval.high, "99 % of its reward at": best.enough,
                "reward": best.reward.value, "reward on other samples": best.held_out,
            })  # fmt: skip
        shown = [name for name in curve if not name.startswith(("abstain", "draws_"))]
        return {
            "accuracy by samples": curve[shown],
            "best number of samples": pandas.DataFrame(rows).set_index("cost of a wrong answer"),
        }

    def plot(self, ax: Axes | None = None, level: float = 0.9) -> Axes:
        """Accuracy, false answers and reward over the draws allowed, with the ceiling."""
        curve = resampling_curve(self._fitted(), cost_false=self.cost_false, cost_sample=self.cost_sample)
        axes = curve.plot(ax, level)
        axes.axhline(self.ceiling_.accuracy.value, color="gray", linestyle=":", label="ceiling")
        axes.legend()
        return axes


def _names(table: Any) -> list[str]:
    held = getattr(table, "table", table)
    return [str(one) for one in (held.keys() if isinstance(held, Mapping) else held.columns)]
