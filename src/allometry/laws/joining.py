"""From rows to runs: what was logged apart is joined, what diverged left out, what is missing derived.

- Rows of one step are one record; where a step was logged twice, as after a restart, the later loss counts.
- Tokens and flops between and beyond their records go in proportion to steps.
- The one of parameters N, tokens D and flops C that is missing follows from C = 6 N D (Kaplan et al., 2020,
  arXiv:2001.08361).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from allometry.laws.columns import GOOD, SCALES, numbers
from allometry.laws.holding import Holding

__all__ = ["Told", "runs_of"]

_RISE = 1.5  # a run that ends so many times above its own least loss has diverged

Told = dict[str, dict[str, None]]  # of each quantity, what it was read or derived from


def runs_of(held: Holding, used: Told) -> tuple[Any, frozenset[str]]:
    """The finished table, and the names of those runs that are logs; ``used`` hears what was derived.

    The table is empty where no run is left.
    """
    table = held.table()
    for name in ("params", "unique_tokens", "learning_rate"):
        if name in table:
            table[name] = table[name].astype(float)
    by = ["run", "step", "order"] if "step" in table else ["run", "order"]
    table = table.sort_values(by, kind="stable")
    log = np.array(held.log)[table["run"].to_numpy()]
    if log.any():
        import pandas

        joined = _join(table[log], held)
        table = pandas.concat([table[~log], joined], ignore_index=True) if (~log).any() else joined
    table = _without_diverged(table, held)
    table = table[table["event"] == 1.0].sort_values("order", kind="stable").reset_index(drop=True)
    _derive(table, used, held.notes)
    table = _whole(table, held)
    if table.empty:
        return table, frozenset()
    numbers_of_runs = table["run"].to_numpy()
    table, names = _named(table, held)
    logs = frozenset(names[int(i)] for i in np.unique(numbers_of_runs) if held.log[i])
    table["file"] = np.array(held.files, dtype=object)[table["file"].to_numpy()]
    order = ["run", *SCALES, "unique_tokens", "loss", "seed", "learning_rate", "step", "file", "row"]
    return table[[name for name in order if name in table]], logs


# --- one record a step -------------------------------------------------------------------------------------
def _join(table: Any, held: Holding) -> Any:
    """Rows of one step as one, settings throughout their run, tokens and flops in proportion to steps."""
    if table["step"].isna().any():
        table = _stepped(table, held)
    told = table["event"].notna()
    again = told & table[told].duplicated(["run", "step"], keep="last").reindex(table.index, fill_value=False)
    held.lost.rows(
        held.files, table[again & table["event"].eq(1.0)], "a later row holds the loss of this step"
    )
    grouped = table.groupby(["run", "step"], sort=False)
    out = grouped.last().reset_index()
    if told.any():  # file and row of the record that holds the loss
        where = table[told].groupby(["run", "step"], sort=False)[["file", "row", "order"]].last()
        at = out.set_index(["run", "step"]).index
        found = where.reindex(at)
        for name in ("file", "row", "order"):
            out[name] = np.where(found[name].notna(), found[name].fillna(0), out[name]).astype(np.int64)
    # the last record of a step decides: its loss, or that it is none
    ends = table[told].groupby(["run", "step"], sort=False)["event"].last()
    out["event"] = ends.reindex(out.set_index(["run", "step"]).index).to_numpy()
    out.loc[out["event"] == 2.0, "loss"] = math.nan
    for name in ("params", "unique_tokens", "learning_rate", "tokens_per_step"):
        if name in out and out[name].isna().any():
            filled = out.groupby("run", sort=False)[name].ffill()
            out[name] = filled if name == "learning_rate" else filled.groupby(out["run"]).bfill()
    for name in ("tokens", "flops"):
        if name in out and out[name].isna().any():
            out[name] = _proportional(out, name)
    return out


def _stepped(table: Any, held: Holding) -> Any:
    """Rows without a step: in their order where a run has none at all, else a loss there cannot be placed."""
    table = table.sort_values(["run", "order"], kind="stable")
    step = table["step"]
    none = step.groupby(table["run"]).transform("count") == 0
    lost = step.isna() & ~none & table["event"].notna()
    held.lost.rows(held.files, table[lost & table["event"].eq(1.0)], "step is missing")
    # what else such a row tells, a setting say, goes to the step before it
    near = step.groupby(table["run"]).ffill()
    near = near.fillna(step.groupby(table["run"]).bfill())
    counted = table.groupby("run")["order"].rank(method="first")
    table["step"] = np.where(none, counted, near)
    return table[~lost].sort_values(["run", "step", "order"], kind="stable")


def _proportional(out: Any, name: str) -> Any:
    """Blank tokens or flops of each run, linear in steps from zero; beyond the last record by its rate."""
    filled = out[name].to_numpy(float).copy()
    steps = out["step"].to_numpy(float)
    members = out.groupby("run", sort=False).indices
    for run in out.loc[out[name].isna(), "run"].unique():
        places = members[run]
        x, y = steps[places], filled[places]
        known = np.isfinite(y)
        if not known.any():
            continue
        x_known, y_known = x[known], y[known]
        if x_known[0] > 0:
            x_known, y_known = np.r_[0.0, x_known], np.r_[0.0, y_known]
        value = np.interp(x, x_known, y_known)
        beyond = x > x_known[-1]
        if x_known[-1] > 0:
            value[beyond] = y_known[-1] * x[beyond] / x_known[-1]
        filled[places] = np.where(known, y, value)
    return filled


def _without_diverged(table: Any, held: Holding) -> Any:
    """Leave out logs whose last loss is not finite, or far above what they had reached."""
    told = table[table["event"].notna()]
    told = told[np.array(held.log)[told["run"].to_numpy()]]
    if told.empty:
        return table
    grouped = told.groupby("run", sort=False)
    last, least = grouped.tail(1).set_index("run"), grouped["loss"].min()
    endless = last["event"] == 2.0
    risen = ~endless & (last["loss"] > _RISE * least.reindex(last.index))
    for bad, reason in (
        (endless, "the run ends with a loss that is not finite: diverged"),
        (risen, f"the run ends more than {_RISE:g} times above its own least loss: diverged"),
    ):
        mine = table["run"].isin(last.index[bad])
        held.lost.rows(held.files, table[mine & table["event"].eq(1.0)], reason)
        table = table[~mine]
    return table


# --- what is missing ---------------------------------------------------------------------------------------
def _derive(table: Any, used: Told, notes: dict[str, None]) -> None:
    """Tokens from steps; then the one of N, D, C that is missing from C = 6 N D, row by row."""

    def fill(name: str, value: Any, told: str) -> None:
        if name not in table:
            table[name] = math.nan
        blank = table[name].isna() & np.isfinite(value) & (value > 0)
        if blank.any():
            table.loc[blank, name] = value[blank]
            used.setdefault(name, {})[told] = None
            rows = "" if blank.all() else f" in {int(blank.sum())} rows"
            notes[f"{'FLOPs' if name == 'flops' else name} = {told}{rows}."] = None
        elif table[name].isna().all():
            del table[name]

    if "tokens_per_step" in table and "step" in table:
        fill("tokens", table["step"] * table["tokens_per_step"], "steps × tokens a step")
    have = {name for name in SCALES if name in table}
    if {"params", "tokens"} <= have:
        fill("flops", 6.0 * table["params"] * table["tokens"], "6 × params × tokens")
    if {"params", "flops"} <= have:
        fill("tokens", table["flops"] / (6.0 * table["params"]), "flops / (6 × params)")
    if {"tokens", "flops"} <= have:
        fill("params", table["flops"] / (6.0 * table["tokens"]), "flops / (6 × tokens)")
    if have == set(SCALES):
        ratio = (table["flops"] / (6.0 * table["params"] * table["tokens"])).median()
        if not 0.4 < ratio < 2.5:
            told = f"flops are {ratio:.3g} times 6 × params × tokens: check the units of the three columns."
            notes[told] = None


def _whole(table: Any, held: Holding) -> Any:
    """Leave out rows that lack a scale which others have."""
    for name in SCALES:
        if name in table and table[name].isna().all():
            del table[name]
        if name in table:
            lacking = table[name].isna()
            held.lost.rows(held.files, table[lacking], f"{name} is missing")
            table = table[~lacking]
    return table.reset_index(drop=True)


# --- names -------------------------------------------------------------------------------------------------
def _named(table: Any, held: Holding) -> tuple[Any, dict[int, str]]:
    """Names of runs: the file's or the run column's, and what tells apart runs that share it; seeds."""
    key_of = {number: key for key, number in held.keys.items()}
    shared: dict[str, list[int]] = {}
    for i in table["run"].unique():
        shared.setdefault(key_of[int(i)][0], []).append(int(i))
    names: dict[int, str] = {}
    for base, members in shared.items():
        apart = [position for position in (1, 2, 3) if len({key_of[m][position] for m in members}) > 1]
        for i in members:
            _, params, seed, rate = key_of[i]
            shown = {1: f"params {params:.12g}", 2: f"seed {seed}", 3: f"learning rate {rate}"}
            told = ", ".join(shown[position] for position in apart)
            plain = base.rstrip("\0")
            names[i] = f"{plain} ({told})" if told else plain
    numbered, present = np.unique(table["run"].to_numpy(), return_inverse=True)
    table["run"] = np.array([names[int(i)] for i in numbered], dtype=object)[present]
    codes, place = np.unique(table["seed"].to_numpy(), return_inverse=True)
    seeds = [held.seeds[code] for code in codes]
    value, state = numbers(seeds, suffixes=False)
    if not any(seeds):
        table = table.drop(columns="seed")
    elif (state == GOOD).all():
        whole = (value == np.floor(value)).all() and np.abs(value).max() < 2**53
        table["seed"] = (value.astype(np.int64) if whole else value)[place]
    else:
        table["seed"] = np.array(seeds, dtype=object)[place]
    for name in ("unique_tokens", "learning_rate", "step"):
        if name in table and table[name].isna().all():
            table = table.drop(columns=name)
    return table, names
