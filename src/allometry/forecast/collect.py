"""What the runs of somebody's command told: a record a run, completed by what the plan knows.

- A run's logs are read by `allometry.laws.runs.read_runs`, so that any trainer's format will do, and must
  hold one run: its last record, or its best.
- The log's own counts stand before the plan's, and where they differ it is said; a log that ends well before
  the plan's tokens is of a run that has not ended.
- Parameters at a width that was not run: N = a w² + b w, which is exact for stacks of one depth whose hidden
  sizes go with the width (w² from the matrices, w from norms, biases and an untied head).  How well the
  ladder's own counts obey it is measured, and where they do not nothing is extrapolated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allometry.laws.runs import Runs, read_runs

if TYPE_CHECKING:
    from allometry.forecast.commands import CommandLadder, CommandRun

__all__ = ["Collected", "RunRecord", "collect", "params_at", "record_of"]

_WHOLE = 0.9  # of the plan's tokens: a log that ends earlier is of a run that has not ended
_SAME = 0.01
_PARAMS = (
    "no parameter count is known; let the trainer log its parameters (without embeddings) as a column "
    "params, or give them: --params 16:12345,32:45678"
)


@dataclass(frozen=True)
class RunRecord:
    """A run's one record, and where it was read.

    ``values`` has ``loss`` and those of ``params``, ``tokens`` that the log tells; ``time`` is when the log
    was last written, in seconds since 1970.
    """

    values: dict[str, Any]
    runs: Runs
    time: float


@dataclass
class Collected:
    """All records of a ladder.

    Attributes
    ----------
    runs : Runs
        One record a run, with its width, for `allometry.laws.answers.answer`.
    missing : dict
        Run key to the reason why it has no record.
    params : dict
        Width to parameters, as the logs or the user tell them.
    """

    runs: Runs
    missing: dict[str, str]
    params: dict[int, float]
    notes: list[str] = field(default_factory=list)


def record_of(run: CommandRun, ladder: CommandLadder) -> RunRecord:
    """The last (or best) record of one run.

    Raises
    ------
    ValueError
        If there is no record that can be used, several runs, or a log that ends early.
    FileNotFoundError
        If there is no log.
    """
    found = read_runs(ladder.paths(run), columns=ladder.columns)
    names = list(dict.fromkeys(found.table["run"]))
    if len(names) > 1:
        files = ", ".join(Path(file).name for file in dict.fromkeys(found.table["file"]))
        raise ValueError(
            f"there are {len(names)} logs where one was looked for ({files}); name the right one, as in "
            "--collect '{out}/metrics.csv'"
        )
    table = found.final(ladder.records)
    row = table.loc[table["loss"].idxmin()] if ladder.records == "best" else table.iloc[-1]
    values: dict[str, Any] = {name: float(row[name]) for name in ("loss", "params") if name in table}
    if "tokens" in table:  # the best loss is that of a run of the whole length
        values["tokens"] = float(found.table["tokens"].max())
        if values["tokens"] < _WHOLE * run.tokens:
            raise ValueError(f"its log ends at {values['tokens']:,.0f} of {run.tokens:,} tokens")
    values |= {"file": str(row["file"]), "row": int(row["row"])}
    if "seed" in table:
        values["seed"] = row["seed"]
    return RunRecord(values, found, Path(values["file"]).stat().st_mtime)


def collect(ladder: CommandLadder, runs: Sequence[CommandRun]) -> Collected:
    """Read every run's record; what cannot be read is listed with its reason.

    Raises
    ------
    ValueError
        If no run has a record, or nothing tells the number of parameters.
    """
    import pandas

    from allometry.forecast.child import ended

    rows: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    read: list[RunRecord] = []
    for run in runs:
        try:
            if ended(ladder.directory / run.out, run.argv) is False:
                missing[run.key] = "it has not ended well"
                continue
            record = record_of(run, ladder)
        except FileNotFoundError:
            missing[run.key] = "no log"
            continue
        except ValueError as error:
            missing[run.key] = str(error)
            continue
        read.append(record)
        told = record.values
        rows.append({
            "run": run.key, "params": (ladder.params or {}).get(run.width, told.get("params", math.nan)),
            "tokens": told.get("tokens", float(run.tokens)), "loss": told["loss"], "width": run.width,
            "seed": run.seed, "learning_rate": math.nan if run.lr is None else run.lr,
            "file": told["file"], "row": told["row"], "planned": float(run.tokens),
            "other seed": "seed" in told and str(told["seed"]) != str(run.seed),
        })  # fmt: skip
    if not rows:
        key, reason = next(iter(missing.items()))
        raise ValueError(f"none of the {len(runs)} runs can be read; the first, {key}: {reason}")
    table = pandas.DataFrame(rows)
    by_width = table.groupby("width")["params"]
    table["params"] = table["params"].fillna(by_width.transform("median"))
    if table["params"].isna().any():
        lacking = sorted(set(table.loc[table["params"].isna(), "width"]))
        raise ValueError(
            _PARAMS if len(lacking) == table["width"].nunique() else f"width {lacking[0]}: {_PARAMS}"
        )
    table["flops"] = 6.0 * table["params"] * table["tokens"]
    notes = _contradictions(table)
    table = table.drop(columns=["planned", "other seed"])
    if table["learning_rate"].isna().all():
        table = table.drop(columns="learning_rate")
    found = Runs(table, _left_out(read), _columns(ladder, read), [*_notes(read), *notes])
    medians = table.groupby("width")["params"].median()
    return Collected(found, missing, dict(zip(medians.index.tolist(), medians.tolist(), strict=True)), notes)


def _contradictions(table: Any) -> list[str]:
    """Where logs say otherwise than the plan, and what was used."""
    notes = []
    off = (table["tokens"] / table["planned"] - 1.0).abs()
    if (off > _SAME).any():
        worst = table.loc[off.idxmax()]
        notes.append(
            f"{_logs(off > _SAME)} other tokens than the plan, {worst['run']} most "
            f"({worst['tokens']:,.0f} for {worst['planned']:,.0f}); the logs' own are used"
        )
    if table["other seed"].any():
        first = table.loc[table["other seed"], "run"].iloc[0]
        notes.append(f"{_logs(table['other seed'])} another seed than the plan, as {first}")
    spread = table.groupby("width")["params"].agg(lambda counts: counts.max() / counts.min() - 1.0)
    if (spread > 1e-6).any():
        notes.append(
            f"runs of width {spread.idxmax()} tell different parameters, {100 * spread.max():.2g} % apart"
        )
    return notes


def _logs(which: Any) -> str:
    count = int(which.sum())
    return f"{count} logs have" if count > 1 else "one log has"


def _notes(read: Sequence[RunRecord]) -> list[str]:
    return list(dict.fromkeys(note for record in read for note in record.runs.notes))


def _columns(ladder: CommandLadder, read: Sequence[RunRecord]) -> dict[str, str]:
    """What each quantity was read from, over all logs."""
    found: dict[str, dict[str, None]] = {}
    for record in read:
        for name, source in record.runs.columns.items():
            found.setdefault(name, {})[source] = None
    shown = {name: ", ".join(found[name]) for name in ("params", "tokens", "loss", "seed") if name in found}
    shown.setdefault("tokens", "the plan's")
    if ladder.params:
        shown["params"] = "as given"
    return {name: shown[name] for name in ("params", "tokens", "loss") if name in shown}


def _left_out(read: Sequence[RunRecord]) -> Any:
    """Rows left out of the logs that were read, by reason over all logs."""
    import pandas

    counts: dict[str, list[int]] = {}
    for record in read:
        for reason, count in zip(record.runs.left_out["reason"], record.runs.left_out["count"], strict=True):
            counts.setdefault(reason, []).append(int(count))
    rows = [
        (f"{len(each)} log{'s' * (len(each) > 1)}", None, sum(each), f"{reason} ({sum(each):,} rows)", "")
        for reason, each in counts.items()
    ]
    frame = pandas.DataFrame(rows, columns=["file", "row", "count", "reason", "example"])
    return frame.astype({"row": "Int64", "count": int})


def params_at(width: int, known: Mapping[int, float]) -> float:
    """Parameters at a width, from those at others: N = a w² + b w with a, b ≥ 0, by least squares of shares.

    Parameters
    ----------
    width : int
    known : mapping of width to parameters
        At least three, unless ``width`` is among them.

    Raises
    ------
    ValueError
        If there are fewer than three widths, or one is over 1 % off the fit.

    Examples
    --------
    >>> params_at(64, {w: 12 * w**2 + 13 * w for w in (8, 16, 32)})
    49984.0
    """
    import numpy as np
    from scipy.optimize import nnls

    if width in known:
        return float(known[width])
    cure = f"give the parameters at width {width} (--target-params)"
    if len(known) < 3:
        raise ValueError(f"{len(known)} widths do not tell how parameters grow with the width; {cure}")
    w, n = np.array(list(known), dtype=float), np.array(list(known.values()), dtype=float)
    design = np.stack([w**2 / n, w / n], axis=1)
    scale = design.max(axis=0)
    found = nnls(design / scale, np.ones(len(w)))[0] / scale
    off = np.abs(design @ found - 1.0)
    if off.max() > _SAME:
        raise ValueError(
            f"parameters do not grow as a w² + b w: at width {w[off.argmax()]:g} that is "
            f"{100 * off.max():.1f} % off; {cure}"
        )
    return float(round(found[0] * width**2 + found[1] * width))
