"""What a study found: a table with one row a record, and the statistics that claims are made of.

Everything is computed from the table alone, so a result read from evidence judges as the run did.  Runs,
not records, are paired and resampled: two arms share a seed's data order and, where shapes allow, its first
values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from allometry.study.claim import Estimate, Outcome, Verdict

if TYPE_CHECKING:
    import pandas

    from allometry.laws.crossover import Crossover, Curve
    from allometry.laws.worth import Worth
    from allometry.study.store import Plan, Store
    from allometry.study.study import Cell, Study

LEADING = ("arm", "seed", "run", "status", "diverged")
_STORED = ("plan", "run", "name", "status", "seed", "attempts", "reason")  # the store's own columns
_WORST_FIRST = {Outcome.CONTRADICTED: 0, Outcome.FALLS_SHORT: 1, Outcome.UNDECIDED: 2, Outcome.HOLDS: 3}


def table_of(study: Study, cells: Sequence[Cell], store: Store, plan: Plan) -> pandas.DataFrame:
    """One row a record of the study's trials; runs that failed have a row with their reason."""
    import pandas

    names = [one.name for one in study.axes if not one.recorded]
    records = store.records(plan)
    told = dict(iter(records.groupby("run", sort=False))) if len(records) else {}
    runs = store.runs(plan).set_index("run") if len(cells) else None
    rows: list[dict[str, Any]] = []
    for cell in cells:
        key = cell.key(names)
        known = {"arm": cell.arm, **dict(zip(names, cell.point, strict=True)), "seed": cell.seed, "run": key}
        status = str(runs.loc[key, "status"]) if runs is not None and key in runs.index else "missing"
        if key not in told:
            reason = runs.loc[key, "reason"] if runs is not None and key in runs.index else None
            rows.append({**known, "status": status, "reason": reason})
            continue
        own = [name for name in told[key] if name not in _STORED and not name.startswith("spec.")]
        for record in told[key][own].to_dict("records"):
            values = {name.removeprefix("value."): value for name, value in record.items()}
            rows.append({**known, "status": status, **values})
    frame = pandas.DataFrame(rows)
    recorded = [one.name for one in study.axes if one.recorded]
    for name in (*recorded, "diverged", *study.measures):
        if name not in frame:
            frame[name] = np.nan
    first = ["arm", *names, *recorded, "seed", "run", "status", "diverged", *study.measures]
    return frame[[*first, *(name for name in frame if name not in first)]]


@dataclass(eq=False)
class Result:
    """The outcome of a study in a profile.

    Attributes
    ----------
    study : Study
    profile : str
    table : DataFrame
        One row a record: arm, axes, seed, run, status (done, diverged, failed, missing), diverged (step),
        measures, and whatever else the trials told.
    digest : str
        Of the plan.
    modules : dict
        The code behind it, hash by module; ``definitions`` is of what it reaches in each.
    tuned : dict
        What was chosen for each arm; ``tuning`` has the losses it was chosen by.
    """

    study: Study
    profile: str
    table: pandas.DataFrame
    digest: str = ""
    modules: dict[str, str] = field(default_factory=dict)
    definitions: dict[str, str] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    tuned: dict[str, Any] = field(default_factory=dict)
    tuning: Any = None

    # Picking

    def rows(self, arm: str | None = None, at: Mapping[str, Any] | None = None) -> pandas.DataFrame:
        """Rows of an arm at given values of axes (or other columns)."""
        found = self.table
        if arm is not None:
            if arm not in self.study.arms:
                raise ValueError(f"no arm {arm!r}; arms are {', '.join(self.study.arms)}")
            found = found[found["arm"] == arm]
        for name, value in (at or {}).items():
            if name not in found:
                raise ValueError(f"no column {name!r}; columns are {', '.join(map(str, self.table))}")
            found = found[found[name] == value]
        return found

    def values(
        self, arm: str, measure: str | None = None, *, at: Mapping[str, Any] | None = None
    ) -> pandas.Series:
        """A measure by seed: its mean over what ``at`` leaves open. Diverged runs are NaN, not missing."""
        rows = self.rows(arm, at)
        return rows.groupby("seed")[measure or self.study.measures[0]].agg(
            lambda part: part.mean(skipna=False)
        )

    def each_seed(
        self, statistic: Callable[[pandas.DataFrame], float], *, what: str = "", level: float = 0.95
    ) -> Estimate:
        """Mean and Student's interval of a number computed from each seed's rows of the table."""
        found = [float(statistic(part)) for _, part in self.table.groupby("seed")]
        return Estimate.of(found, level=level, what=what)

    # Effects

    def mean(
        self,
        arm: str,
        measure: str | None = None,
        *,
        at: Mapping[str, Any] | None = None,
        level: float = 0.95,
    ) -> Estimate:
        """Mean over seeds with its interval."""
        name = measure or self.study.measures[0]
        return Estimate.of(self.values(arm, name, at=at), level=level, what=f"{name} of {arm}{_said(at)}")

    def gap(
        self, arm: str, base: str | None = None, measure: str | None = None, *,
        at: Mapping[str, Any] | None = None, level: float = 0.95,
    ) -> Estimate:  # fmt: skip
        """Measure of the arm less the base's, over paired seeds."""
        base, name = base or self.study.base, measure or self.study.measures[0]
        pairs = self._pairs(arm, base, name, at)
        return Estimate.of(pairs[0] - pairs[1], level=level, what=f"{name} of {arm} less {base}'s{_said(at)}")

    def ratio(
        self, arm: str, base: str | None = None, measure: str | None = None, *,
        at: Mapping[str, Any] | None = None, level: float = 0.95,
    ) -> Estimate:  # fmt: skip
        """Measure of the arm over the base's: the geometric mean over paired seeds."""
        base, name = base or self.study.base, measure or self.study.measures[0]
        ours, theirs = self._pairs(arm, base, name, at)
        with np.errstate(all="ignore"):
            log = Estimate.of(np.log(ours / theirs), level=level)
        value, low, high = (
            math.exp(one) if one < 700 else math.inf for one in (log.value, log.low, log.high)
        )
        return Estimate(value, low, high, level, log.n, what=f"{name} of {arm} over {base}'s{_said(at)}")

    def _pairs(
        self, arm: str, base: str, measure: str, at: Mapping[str, Any] | None
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        ours, theirs = self.values(arm, measure, at=at), self.values(base, measure, at=at)
        seeds = ours.index.intersection(theirs.index)
        return ours[seeds].to_numpy(float), theirs[seeds].to_numpy(float)

    def slope(
        self, arm: str, measure: str | None = None, *, axis: str | None = None,
        at: Mapping[str, Any] | None = None, least: float | None = None, log: bool | None = None,
        level: float = 0.95,
    ) -> Estimate:  # fmt: skip
        """Least-squares slope of a measure along an axis, fitted for each seed by itself.

        Parameters
        ----------
        axis : str, optional
            The first by default.
        least : float, optional
            Only points from here up.
        log : bool, optional
            Whether the measure's logarithm is taken; by default where the axis is logarithmic, so that the
            slope is a power's exponent.
        """
        chosen = next((one for one in self.study.axes if one.name == axis), self.study.axes[0])
        if axis is not None and chosen.name != axis:
            raise ValueError(f"no axis {axis!r}; axes are {', '.join(one.name for one in self.study.axes)}")
        name = measure or self.study.measures[0]
        logarithm = chosen.log if log is None else log
        rows = self.rows(arm, at)
        if least is not None:
            rows = rows[rows[chosen.name] >= least]
        found = []
        for _, part in rows.groupby("seed"):
            line = part.groupby(chosen.name)[name].agg(lambda some: some.mean(skipna=False))
            x, y = line.index.to_numpy(float), line.to_numpy(float)
            if len(x) < 2:
                raise ValueError(f"a slope along {chosen.name} needs two values; there are {len(x)}")
            with np.errstate(all="ignore"):
                x = np.log(x) if chosen.log else x
                y = np.log(y) if logarithm else y
            x = x - x.mean()
            found.append(float((x * (y - y.mean())).sum() / (x * x).sum()))
        kind = "exponent" if logarithm and chosen.log else "slope"
        return Estimate.of(found, level=level, what=f"{kind} of {name} of {arm} in {chosen.name}{_said(at)}")

    # Curves: what scale is worth

    def curve(
        self, arm: str, measure: str | None = None, *, x: str | None = None,
        at: Mapping[str, Any] | None = None, least: float | None = None,
    ) -> Curve:  # fmt: skip
        """Scales and losses by seed, for `allometry.laws`; diverged runs are censored, not dropped.

        Parameters
        ----------
        x : str, optional
            A column: by default the study's cost, or its first axis.
        at : mapping, optional
            Values of further axes.
        least : float, optional
            Only points of the first axis from here up.
        """
        from allometry.laws.crossover import Curve

        first, name = self.study.axes[0].name, measure or self.study.measures[0]
        column = x or self.study.cost or first
        rows = self.rows(arm, at)
        rows = rows[rows["status"].isin(["done", "diverged"])]
        if least is not None:
            rows = rows[rows[first] >= least]
        lost = (rows["status"] == "diverged") | ~np.isfinite(rows[name].astype(float))
        told = rows.assign(lost=lost, scale=rows[column].astype(float))
        places = told.groupby([first, "seed"])[["scale", name, "lost"]].last().unstack("seed")
        costs = places["scale"].to_numpy(float)
        costs = np.where(np.isfinite(costs), costs, np.nanmean(costs, axis=1, keepdims=True))
        missing = places["lost"].isna().to_numpy()  # trials that failed or have not run: nothing is known
        return Curve(
            costs, places[name].to_numpy(float), name=arm, censored=places["lost"].eq(True).to_numpy(),
            missing=missing, seeds=list(places["lost"].columns),
        )  # fmt: skip

    def worth(self, arm: str, base: str | None = None, **options: Any) -> Worth:
        """What the arm is worth in the base's scale; options as in `curve` and `allometry.laws.worth`.

        Raises
        ------
        ValueError
            The measure is none of which less is better.
        """
        from allometry.laws.worth import worth

        pick = _for_curve(options, "point")
        self._refuse_gains("worth", pick.get("measure"))
        unit = pick.get("x") or self.study.cost or self.study.axes[0].name
        curves = self.curve(base or self.study.base, **pick), self.curve(arm, **pick)
        return worth(*curves, **{"unit": unit, **options})

    def crossover(self, arm: str, base: str | None = None, **options: Any) -> Crossover:
        """Where the arm's curve crosses the base's; options as in `curve` and `allometry.laws.crossover`.

        Raises
        ------
        ValueError
            The measure is none of which less is better.
        """
        from allometry.laws.crossover import crossover

        pick = _for_curve(options, "at")
        self._refuse_gains("the verdict of a crossing", pick.get("measure"))
        return crossover(self.curve(base or self.study.base, **pick), self.curve(arm, **pick), **options)

    def _refuse_gains(self, what: str, measure: str | None) -> None:
        from allometry.study.told import better_told

        first = self.study.measures[0]
        if measure in (None, first) and self.study.lower_is_better is not True:
            raise ValueError(
                f"{what} is read from losses, and {better_told(self.study)}; give measure= with one of the "
                "study's measures of which less is better"
            )

    def slope_of_gap(
        self, arm: str, base: str | None = None, measure: str | None = None, *,
        at: Mapping[str, Any] | None = None, level: float = 0.95,
    ) -> Estimate:  # fmt: skip
        """Slope of the log ratio of the arm's measure to the base's, in the log of the first axis."""
        base, name, first = (
            base or self.study.base,
            measure or self.study.measures[0],
            self.study.axes[0].name,
        )
        lines = []
        for one in (arm, base):
            rows = self.rows(one, at)
            lines.append(
                rows.groupby(["seed", first])[name].agg(lambda some: some.mean(skipna=False)).unstack(first)
            )
        seeds = lines[0].index.intersection(lines[1].index)
        x = np.log(lines[0].columns.to_numpy(float))
        with np.errstate(all="ignore"):
            y = np.log(lines[0].loc[seeds].to_numpy(float) / lines[1].loc[seeds].to_numpy(float))
        x = x - x.mean()
        slopes = (y - y.mean(1, keepdims=True)) @ x / (x @ x)
        return Estimate.of(
            slopes, level=level, what=f"slope of log {name} of {arm} over {base}'s in log {first}"
        )

    # Verdicts

    @property
    def verdicts(self) -> list[Verdict]:
        """Each claim and how it fared."""
        return [claim.judge(self) for claim in self.study.claims]

    @property
    def verdict(self) -> str:
        """All claims in one word: the least favourable outcome, or ``"no claim"``."""
        outcomes = [one.outcome for one in self.verdicts]
        return str(min(outcomes, key=_WORST_FIRST.__getitem__)) if outcomes else "no claim"

    @property
    def complete(self) -> bool:
        """Whether every trial ended, in a result or in divergence."""
        return bool(self.table["status"].isin(["done", "diverged"]).all())

    # Showing

    def plot(self, figure: Any = None) -> Any:
        """The study's figure (matplotlib)."""
        from allometry.study.report import draw

        return draw(self, figure)

    def report(self, directory: str | Path) -> Path:
        """Write page, figures, table and result.json into a folder; returns the page."""
        from allometry.study.report import write

        return write(self, directory)

    def __str__(self) -> str:
        from allometry.study.report import summary

        return summary(self)

    __repr__ = __str__


def _for_curve(options: dict[str, Any], at: str) -> dict[str, Any]:
    """Takes out of the options what `Result.curve` understands; ``at`` names its values of further axes."""
    names = {"measure": "measure", "x": "x", "least": "least", at: "at"}
    return {names[key]: options.pop(key) for key in list(options) if key in names}


def _said(at: Mapping[str, Any] | None) -> str:
    return "" if not at else " at " + ", ".join(f"{name} {value}" for name, value in at.items())
