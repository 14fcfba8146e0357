"""From a ladder to a task's accuracy in two steps: the task's loss at a scale, and accuracy at that loss.

Gadre et al., 2024 (arXiv:2403.08540); Bhagia et al., 2024 (arXiv:2412.04403, section 3): accuracy against
scale bends in ways that a ladder of small models does not show, while a task's loss (bits per byte of the
right answer) is as regular as a language model's loss, and accuracy follows it.

- *Step one* is this room's own law of loss (`allometry.laws.answer`): the average of the forms that foretell
  the largest models from the rest, fitted to the last records of each run.
- *Step two* is a sigmoid (`SigmoidLink`) through the records of all runs but the earliest, with the point
  that a loss of zero means the best accuracy. Its records are means of successive ones, without overlap.
- *Uncertainty is carried through*: draws of the loss, with the noise of a new run, go through draws of the
  link, with the link's noise between and within runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from allometry.laws.law import Estimator
from allometry.laws.link import SigmoidLink
from allometry.laws.uncertainty import Interval

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from allometry.laws.held_out import HeldOut

__all__ = ["TaskChain"]

Array = NDArray[np.float64]


class TaskChain(Estimator):
    """Accuracy of a task at a scale, by way of the task's loss.

    Parameters
    ----------
    best : float
        Accuracy at a loss of zero: one, unless some answers are wrong.
    skip : float
        Share of each run's records, from its start, that the link does not see.
    window : int
        Records that are averaged: those of each run's end for step one, and successive ones for step two.

    Attributes
    ----------
    loss_law_ : Average
        Step one.
    link_ : Fit
        Step two.

    Examples
    --------
    >>> n, seen = np.repeat([1e7, 3e7, 1e8], 4), np.tile([0.3, 0.5, 0.8, 1.0], 3)
    >>> loss = 0.3 + 9 * n**-0.2 + 40 * (20 * n * seen) ** -0.2
    >>> accuracy = 1 - 0.75 / (1 + np.exp(-4 * (loss - 0.9)))
    >>> table = {"params": n, "tokens": 20 * n * seen, "task_loss": loss, "accuracy": accuracy}
    >>> chain = TaskChain(window=1).fit(table, resamples=0)
    >>> round(float(chain.predict({"params": 1e9, "tokens": 2e10})[0]), 1)
    0.8
    """

    name: ClassVar[str] = "task-chain"
    columns: ClassVar[Mapping[str, str]] = {
        "params": "parameters", "tokens": "training tokens so far",
        "task_loss": "loss on the right answers, such as bits per byte",
    }  # fmt: skip
    target: ClassVar[str] = "accuracy"
    synonyms: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "task_loss": ("bpb", "task_bpb", "bits_per_byte"), "accuracy": ("acc", "acc_norm", "task_accuracy"),
    }  # fmt: skip

    def __init__(self, best: float = 1.0, skip: float = 0.1, window: int = 5) -> None:
        if not 0 < best <= 1:
            raise ValueError(f"best must be an accuracy above 0 and at most 1, not {best}")
        if not 0 <= skip < 1:
            raise ValueError(f"skip must be a share from 0 up to below 1, not {skip}")
        if int(window) != window or window < 1:
            raise ValueError(f"window must be a whole number of records, at least 1, not {window}")
        self.best, self.skip, self.window = float(best), float(skip), int(window)

    def fit(self, table: Any, *, resamples: int = 1000, random_state: int = 0) -> Self:
        """Both steps, from records of runs along their training.

        Parameters
        ----------
        table : DataFrame or mapping of columns (n,)
            ``params``, ``tokens``, ``task_loss``, ``accuracy`` and ``run``; one row a record.  Where no
            column names the run, rows of the same parameters are one.

        Raises
        ------
        ValueError
            An accuracy lies outside 0 to 1, a loss is not positive, or the runs allow no law of loss.
        """
        from allometry.laws.answers import answer
        from allometry.laws.average import Average
        from allometry.laws.fit import fit

        columns = self.read(table)
        accuracy, loss = columns["accuracy"], columns["task_loss"]
        if ((accuracy < 0) | (accuracy > 1)).any():
            raise ValueError(
                f"accuracies lie between 0 and 1; {accuracy[(accuracy < 0) | (accuracy > 1)][0]} does not"
            )
        if (loss <= 0).any():
            raise ValueError(f"a task's loss must be positive; {loss[loss <= 0][0]} is not")
        self.finals_, records = self._records(columns)
        told = answer(_as_runs(self.finals_), resamples=resamples, random_state=random_state)
        self.loss_law_: Average = told.law
        self.records_ = records
        if len(records) < 8:
            raise ValueError(
                f"{len(records)} records of loss and accuracy for the four parameters of the link: give each "
                "run's records along its training, not its last alone"
            )
        # The best accuracy is a point of its own: known, not measured, so it is no run and has no noise.
        x = np.append(records["task_loss"].to_numpy(float), 1e-6)
        y = np.append(np.maximum(records["accuracy"].to_numpy(float), 1e-6), self.best)
        labels = np.append(records["run"].to_numpy(str), " a loss of zero")
        self.link_ = fit(SigmoidLink(), x, y, run=labels, space="linear", loss="squared", resamples=resamples,
                         bounds={"b": (0.0, self.best)}, random_state=random_state)  # fmt: skip
        self.random_state_ = int(random_state)
        self.warnings_ = [one for one in told.warnings if "orders of magnitude" not in one]
        if self.link_.params["k"] * np.ptp(records["task_loss"]) < 0.5:
            self.warnings_.append(
                "Accuracy hardly moves over the losses seen: the link is nearly a straight line."
            )
        return self

    def _records(self, columns: Mapping[str, Any]) -> tuple[pandas.DataFrame, pandas.DataFrame]:
        """The end of each run for step one, and means of successive records for step two."""
        import pandas

        frame = pandas.DataFrame(columns)
        if "run" not in frame:
            frame["run"] = frame["params"].map("{:.6g}".format)
        frame["run"] = frame["run"].astype(str)
        frame = frame.sort_values(["run", "tokens"], kind="stable")
        finals, blocks = [], []
        for run, rows in frame.groupby("run", sort=False):
            last = rows.iloc[-self.window :]
            end = {
                "run": run,
                "params": float(last["params"].iloc[-1]),
                "tokens": float(last["tokens"].iloc[-1]),
            }
            finals.append(end | {"loss": last["task_loss"].mean(), "accuracy": last["accuracy"].mean()})
            kept = rows.iloc[int(np.ceil(self.skip * len(rows))) :]
            number = (
                len(kept) - 1 - np.arange(len(kept))
            ) // self.window  # counted from the end, all full there
            means = kept.groupby(number)[["task_loss", "accuracy"]].mean().iloc[::-1]
            blocks.append(means.assign(run=run, params=end["params"]))
        return pandas.DataFrame(finals), pandas.concat(blocks, ignore_index=True)

    def hold_out(self, table: Any, *, level: float = 0.9, **options: Any) -> HeldOut:
        """The ends of the largest models' runs, foretold from the other runs."""
        import pandas

        from allometry.laws.held_out import judge

        frame = pandas.DataFrame(self.read(table))
        largest = frame["params"] == frame["params"].max()
        if largest.all():
            raise ValueError(
                f"all runs have {frame['params'].iloc[0]:.4g} parameters: none is left to foretell"
            )
        ends = self._records(frame[largest].to_dict("series"))[0].rename(columns={"loss": "task_loss"})
        self.fit(frame[~largest], **options)
        return judge(self, ends, level, intervals=options.get("resamples", 1) != 0)

    @property
    def params_(self) -> dict[str, float]:
        self._need_fit()
        step_one = {f"loss.{name}": value for name, value in self.loss_law_.fits[0].params.items()}
        return step_one | {f"link.{name}": value for name, value in self.link_.params.items()}

    def table(self, level: float = 0.9) -> pandas.DataFrame:
        import pandas

        self._need_fit()
        parts = [("loss", self.loss_law_.fits[0]), ("link", self.link_)]
        frames = [
            one.table(level).rename(index=lambda name, step=step: f"{step}.{name}") for step, one in parts
        ]
        return pandas.concat(frames)

    def report(self) -> dict[str, pandas.DataFrame]:
        """The runs' ends with what the law says of them."""
        shown = self.finals_.rename(columns={"loss": "task_loss"})
        places = shown[["params", "tokens"]]
        return {
            "Runs": shown.assign(
                foretold_loss=self.loss_law_.predict(places), foretold_accuracy=self.predict(places)
            ).set_index("run")
        }

    def task_loss(self, table: Any, level: float = 0.9, kind: str = "mean") -> Interval:
        """Step one alone: the task's loss with arrays of limits."""
        value, low, high = (
            np.atleast_1d(one) for one in self.loss_law_.interval(self._places(table), level, kind)
        )
        return Interval(value, low, high, level)

    def predict(self, table: Any) -> Array:
        places = self._places(table)
        return self._link(self.link_.theta[None], self.loss_law_.predict(places)[None])[0]

    def interval(self, table: Any, level: float = 0.9, kind: str = "mean") -> Interval:
        draws = self.spread(table, kind)
        low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return Interval(self.predict(table), low, high, level)

    def spread(self, table: Any, kind: str = "mean") -> Array:
        """Draws of the accuracy ``(many, m)``: those of the loss through those of the link."""
        places = self._places(table)
        parts = [one.spread(places, kind) for one in self.loss_law_.fits]
        count = min(len(one) for one in parts)
        losses = np.exp(np.concatenate([one[:count] for one in parts]))
        if not len(self.link_.theta_draws) or not count:
            raise ValueError("this law has no draws; fit with resamples > 0 to get intervals")
        generator = np.random.default_rng([self.random_state_, 2])
        thetas = self.link_.theta_draws[generator.integers(len(self.link_.theta_draws), size=len(losses))]
        accuracy = self._link(thetas, losses)
        if kind == "prediction":
            noise = self.link_.noise
            grow = np.sqrt(noise.degrees / generator.chisquare(noise.degrees, size=(len(losses), 1)))
            accuracy = accuracy * np.exp(grow * noise.total * generator.standard_normal(accuracy.shape))
        return np.clip(accuracy, 0.0, 1.0)

    def plot(self, ax: Axes | None = None, level: float = 0.9) -> Axes:
        """Accuracy against the task's loss: records by size, and the link."""
        import matplotlib.pyplot as plt

        self._need_fit()
        axes = plt.subplots()[1] if ax is None else ax
        for i, (size, rows) in enumerate(self.records_.groupby("params")):
            axes.plot(rows["task_loss"], rows["accuracy"], ".", color=f"C{i}", label=f"params = {size:.3g}")
        seen = self.records_["task_loss"]
        grid = np.linspace(seen.min() - 0.25 * np.ptp(seen), seen.max(), 80)
        grid = grid[grid > 0]
        axes.plot(grid, self._link(self.link_.theta[None], grid[None])[0], color="C5", label="link")
        axes.set(xlabel="task loss", ylabel="accuracy")
        axes.legend()
        return axes

    def _places(self, table: Any) -> dict[str, Array]:
        self._need_fit()
        held = getattr(table, "table", table)
        names = [str(one) for one in (held.keys() if isinstance(held, Mapping) else held.columns)]
        wanted = sorted(
            {name for one in self.loss_law_.fits for name in one.form.inputs} & {"params", "tokens"}
        )
        known = {name: self._source(name, names) for name in ("params", "tokens")}
        missing = [name for name in wanted or ("params", "tokens") if known[name] is None]
        if missing:
            raise ValueError(f"a forecast of the {self.name} law needs {' and '.join(missing)}")
        places = {
            name: np.atleast_1d(np.asarray(held[source], dtype=float))
            for name, source in known.items() if source is not None
        }  # fmt: skip
        if any("flops" in one.form.inputs for one in self.loss_law_.fits):
            return {"flops": 6.0 * places["params"] * places["tokens"]}
        for name in set(places) - set(wanted):  # what the runs did not vary, they cannot tell
            low, high = self.finals_[name].min(), self.finals_[name].max()
            off = (places[name] < 0.99 * low) | (places[name] > 1.01 * high)
            if off.any():
                asked = places[name][off][0]
                raise ValueError(
                    f"all runs have {name} = {low:.4g}, so what the task does at {name} = {asked:.4g} "
                    "cannot be known"
                )
        return places

    @staticmethod
    def _link(thetas: Array, losses: Array) -> Array:
        """Accuracies ``(k, m)`` of row ``i`` of ``losses (k, m)`` by row ``i`` of ``thetas (k, 4)``."""
        from scipy.special import expit

        drop, place, steep, best = (thetas[:, i, None] for i in range(4))
        return best + drop * expit(np.exp(steep) * (losses - place))

    def _need_fit(self) -> None:
        if not hasattr(self, "link_"):
            raise ValueError(f"the {self.name} law has not been fitted; call fit(table) first")


def _as_runs(finals: pandas.DataFrame) -> Any:
    """The ends of runs as `read_runs` would have read them."""
    import pandas

    from allometry.laws.runs import Runs

    table = finals[["run", "params", "tokens", "loss"]].copy()
    table["flops"] = 6.0 * table["params"] * table["tokens"]
    nothing = pandas.DataFrame({"file": [], "row": [], "count": [], "reason": [], "example": []})
    return Runs(table, nothing, {})
