"""The same arms judged by several costs side by side: equal steps, and equal total cost.

A technique that saves a third of the steps and doubles the price of a step is worth 1.5 by the one count and
0.75 by the other; a table that shows only the first has answered another question.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from allometry.laws.curve import Curve
from allometry.laws.worth import worths

if TYPE_CHECKING:
    import pandas

__all__ = ["MEASURES", "worth_table"]

Array = NDArray[np.float64]

MEASURES: dict[str, Callable[[Array], Array]] = {
    "loss": lambda value: value,
    "error": lambda value: 1.0 - value,  # of an accuracy, in [0, 1)
    "odds": lambda value: (
        (1.0 - value) / value
    ),  # of an accuracy, in (0, 1): its logarithm is minus the logit
}


def worth_table(
    frame: Any,
    *,
    base: Hashable,
    measure: str = "loss",
    costs: Sequence[str] = ("steps", "flops"),
    transform: str | Callable[[Array], Array] = "loss",
    by: str | None = None,
    diverged: str | None = None,
    **options: Any,
) -> pandas.DataFrame:
    """Worth of every arm by every cost, from a table with one row a run.

    Parameters
    ----------
    frame : pandas.DataFrame
        Columns ``arm``, ``seed``, the costs and the measure.
    base : hashable
        The arm, in column ``arm``, against which the others are held.
    measure : str
        Column of what is measured.
    costs : sequence of str
        Columns of costs, each a unit of its own.
    transform : str or callable
        What makes the measure a positive quantity of which less is better: ``"loss"`` (it is one already),
        ``"error"`` (1 - accuracy), ``"odds"`` (of being wrong, whose logarithm is minus the logit), or a
        function of an array.  The law is fitted to that quantity.
    by : str, optional
        Column that says which runs of an arm are one scale, such as ``"width"``; by default the first cost.
        Needed where costs differ from run to run.
    diverged : str, optional
        Column that is true where a run diverged; a measure that is not finite counts as diverged too.
    **options
        As in `allometry.laws.worths`, but ``at``: an arm is judged at its largest scale, whatever that costs.

    Returns
    -------
    pandas.DataFrame
        Indexed by arm and cost, the columns of `allometry.laws.worths`.  P-values are adjusted over arms
        within one cost: two costs of one arm are one technique seen twice.

    Raises
    ------
    ValueError
        A column or the base is absent, a run has two rows, or the transformed measure is not positive.

    Examples
    --------
    >>> import pandas
    >>> rows = [
    ...     {"arm": arm, "seed": seed, "steps": n, "flops": n * price, "loss": (gain * n) ** -0.2 * noise}
    ...     for arm, gain, price in (("base", 1.0, 10.0), ("two passes", 1.5, 20.0))
    ...     for n in (100, 400, 1600) for seed, noise in enumerate((0.999, 1.0, 1.001))]
    >>> table = worth_table(pandas.DataFrame(rows), base="base", resamples=100)
    >>> table["factor"].round(2).to_dict()
    {('two passes', 'steps'): 1.5, ('two passes', 'flops'): 0.75}
    """
    import pandas

    table = pandas.DataFrame(frame)
    scale = costs[0] if by is None and len(costs) else by
    needed = ["arm", "seed", measure, *costs, *([by] if by else []), *([diverged] if diverged else [])]
    absent = [name for name in needed if name not in table.columns]
    if absent or not len(costs):
        what = f"no column {', '.join(map(repr, absent))}" if absent else "no cost"
        raise ValueError(
            f"worth_table was given {what}; the table's columns are {', '.join(map(str, table))}"
        )
    if base not in set(table["arm"]):
        raise ValueError(
            f"no rows of the base {base!r}; the arms are {', '.join(map(str, table['arm'].unique()))}"
        )
    if isinstance(transform, str) and transform not in MEASURES:
        raise ValueError(f"transform must be a function or one of {', '.join(MEASURES)}, not {transform!r}")
    change = MEASURES[transform] if isinstance(transform, str) else transform
    others = [arm for arm in table["arm"].unique() if arm != base]
    if not others:
        raise ValueError(f"the table holds the base {base!r} alone; an arm to compare is needed")
    parts = []
    for cost in costs:
        curves = {
            arm: _curve(table[table["arm"] == arm], str(scale), cost, measure, diverged, change)
            for arm in (base, *others)
        }
        part = worths(curves.pop(base), curves, unit=cost, **options)
        part["cost"] = cost
        parts.append(part)
    out = pandas.concat(parts).set_index("cost", append=True)
    return out.loc[[(arm, cost) for arm in others for cost in costs]]


def _curve(
    rows: pandas.DataFrame, scale: str, cost: str, measure: str, diverged: str | None,
    change: Callable[[Array], Array],
) -> Curve:  # fmt: skip
    """One arm: a row a scale, a column a seed, every run with its own cost."""
    arm = rows["arm"].iloc[0]
    twice = rows.duplicated(["seed", scale])
    if twice.any():
        first = rows[twice].iloc[0]
        raise ValueError(
            f"arm {arm!r} has two rows of seed {first['seed']} at {scale} = {first[scale]}; keep one row a "
            "run"
        )
    value = rows[measure].to_numpy(dtype=float)
    broken = ~np.isfinite(value)
    if diverged is not None:
        broken |= rows[diverged].to_numpy(dtype=bool)
    loss = np.full(len(value), np.inf)
    loss[~broken] = change(value[~broken])
    if (loss <= 0).any() or np.isnan(loss).any():
        worst = value[~broken][(loss[~broken] <= 0) | np.isnan(loss[~broken])][0]
        raise ValueError(
            f"arm {arm!r} has {measure} = {worst:g}, of which the transformed value is not positive: "
            "logarithms are compared; choose another transform"
        )
    distinct, row = np.unique(rows[scale].to_numpy(), return_inverse=True)
    seeds = sorted(set(rows["seed"]), key=lambda label: (isinstance(label, str), label))
    column = np.array([seeds.index(label) for label in rows["seed"]])
    losses = np.full((len(distinct), len(seeds)), np.inf)
    prices = np.full(losses.shape, np.nan)
    missing = np.ones(losses.shape, dtype=bool)
    losses[row, column], prices[row, column] = loss, rows[cost].to_numpy(dtype=float)
    missing[row, column] = False
    return Curve(prices, losses, name=str(arm), missing=missing, seeds=seeds)
