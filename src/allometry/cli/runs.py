"""``allometry runs``: what a store holds, plan by plan; out of it as a table, and away with it.

A plan is named by the first digits of its digest, a run by its key or the beginning of it. ``export`` writes
one row a record, its run's spec beside it, under names that ``allometry fit`` recognises, so that a ladder
trained here can be fitted again by other laws. Nothing here makes a store where there is none.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas

    from allometry.study import Plan, Run, Store

app = typer.Typer(
    help="What a store holds: plans, their runs and records.", no_args_is_help=True, rich_markup_mode=None
)

StoreOption = Annotated[str, typer.Option("--store", help="The store: a file or a database URL.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
PrefixArgument = Annotated[str, typer.Argument(help="The first digits of the plan's digest.")]

_PLACE = ".allometry/store.db"
_ENDINGS = (".csv", ".parquet", ".jsonl")
_DIGITS = 12  # of a digest, where one is shown
_FEW = 8  # items of a list, where one is shown
_WIDE = 100  # columns


# --- finding -----------------------------------------------------------------------------------------------
def opened(target: str) -> Store:
    """The store, which must be there: looking makes none."""
    from allometry.study import Store
    from allometry.study.database import parse, where

    url = parse(target)
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        raise FileNotFoundError(f"there is no store at {where(url)}; name one with --store")
    return Store(target)


def find_plan(store: Store, prefix: str) -> Plan:
    """The plan whose digest begins so; a ValueError in one sentence where there is not exactly one."""
    return store.plan(prefix.strip().lower())


def find_run(store: Store, plan: Plan, name: str) -> Run:
    """The run of that key, or the only one whose key begins so."""
    everything = store.run_list(plan)
    found = [run for run in everything if run.key == name] or [
        run for run in everything if run.key.startswith(name)
    ]
    if len(found) == 1:
        return found[0]
    shown = ", ".join(run.key for run in (found or everything)[:4]) or "none"
    what = f"{len(found)} runs begin with" if found else "no run is called"
    raise ValueError(f"{what} {name!r} in plan {plan.digest[:_DIGITS]}; there are {shown} ...")


def _known(status: str | None) -> None:
    from allometry.study.rows import STATUSES

    if status is not None and status not in STATUSES:
        raise ValueError(f"--status is one of {', '.join(STATUSES)}, not {status!r}")


def _records(store: Store, plan: Plan | str) -> Counter[str]:
    """How many records each run has."""
    return Counter(run for run, _ in store.record_names(plan))


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _facts(run: Run, records: int) -> dict[str, Any]:
    """A run, JSON-ready."""
    ended = None if run.started is None or run.finished is None else run.finished - run.started
    return {
        "run": run.key, "status": run.status, "seed": run.seed, "attempts": run.attempts, "step": run.step,
        "records": records, "started": _moment(run.started), "finished": _moment(run.finished),
        "seconds": ended, "reason": _reason(run),
    }  # fmt: skip


def _reason(run: Run) -> str | None:
    """Why it failed; of a running one who runs it, and whether that process still lives."""
    if run.status != "running" or run.owner is None:
        return run.reason
    lives = {True: "lives", False: "is gone: the next call takes the run over", None: "is elsewhere"}
    return f"process {run.owner.pid} on {run.owner.machine.split()[0]} {lives[run.owner.alive()]}"


# --- list --------------------------------------------------------------------------------------------------
@app.command("list")
def list_plans(
    plan: Annotated[
        str | None, typer.Option(help="List this plan's runs: first digits of its digest.")
    ] = None,
    status: Annotated[
        str | None,
        typer.Option(help="Only what has such runs: pending, running, done, failed, diverged."),
    ] = None,
    kind: Annotated[str | None, typer.Option(help="Only plans of this kind, such as forecast.")] = None,
    store: StoreOption = _PLACE,
    as_json: JsonOption = False,
) -> None:
    """Plans with their runs by status and records; with --plan the runs of one."""
    from allometry.forecast.report import to_json
    from allometry.study.rows import STATUSES

    _known(status)
    with opened(store) as database:
        if plan is not None:
            chosen = find_plan(database, plan)
            if kind is not None and chosen.kind != kind:
                raise ValueError(f"plan {chosen.digest[:_DIGITS]} is of kind {chosen.kind!r}, not {kind!r}")
            counts = _records(database, chosen)
            runs = [_facts(run, counts[run.key]) for run in database.run_list(chosen, status=status)]
            if as_json:
                print(to_json({"plan": chosen.digest, "kind": chosen.kind, "runs": runs}))
            else:
                print("\n".join(run_lines(runs)) if runs else "No such run.")
            return
        frame = database.plans(kind)
        if status is not None:
            frame = frame[frame[status] > 0]
        plans: list[dict[str, Any]] = [
            {
                "digest": row["digest"], "kind": row["kind"],
                "created": row["created"].isoformat(timespec="seconds"), "code_version": row["code_version"],
                "runs": {name: int(row[name]) for name in STATUSES},
                "records": _records(database, row["digest"]).total(),
            }
            for _, row in frame.iterrows()
        ]  # fmt: skip
    if as_json:
        print(to_json({"plans": plans}))
        return
    if not plans:
        print("No such plan." if status or kind else "The store holds no plan yet.")
        return
    rows = [
        [one["digest"][:_DIGITS], one["kind"], _short(one["created"]),
         *(str(one["runs"][name] or "-") for name in STATUSES), str(one["records"])]
        for one in plans
    ]  # fmt: skip
    print("\n".join(table(["plan", "kind", "created (UTC)", *STATUSES, "records"], rows, left=3)))


def run_lines(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Runs as an aligned table; what is to be said of one stands under it."""
    lines = table(
        ["run", "status", "seed", "attempts", "step", "records", "seconds"],
        [
            [one["run"], one["status"], *("-" if one[name] is None else str(one[name])
             for name in ("seed", "attempts", "step", "records")),
             "-" if one["seconds"] is None else f"{one['seconds']:.1f}"]
            for one in runs
        ],
        left=2,
    )  # fmt: skip
    shown = [lines[0]]
    for line, one in zip(lines[1:], runs, strict=True):
        shown.append(line)
        if one["reason"]:
            shown += _wrapped(one["reason"], "    ")
    return shown


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Aligned lines; the first ``left`` columns are words, the rest numbers.

    >>> table(["run", "loss"], [["a", "12"], ["long", "3"]], left=1)
    ['run   loss', 'a       12', 'long     3']
    """
    wide = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return [
        "  ".join(f"{cell:<{w}}" if i < left else f"{cell:>{w}}"
                  for i, (cell, w) in enumerate(zip(row, wide, strict=True))).rstrip()
        for row in (head, *rows)
    ]  # fmt: skip


def _short(moment: str) -> str:
    return moment[:16].replace("T", " ")


def _wrapped(text: str, indent: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, _WIDE, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


# --- show --------------------------------------------------------------------------------------------------
@app.command("show")
def show(
    prefix: PrefixArgument,
    run: Annotated[str | None, typer.Argument(help="A run's key, or the beginning of it.")] = None,
    store: StoreOption = _PLACE,
    as_json: JsonOption = False,
) -> None:
    """One plan: what was asked, what was decided, its runs. With RUN: that run and all its records."""
    from allometry.forecast.report import to_json

    with opened(store) as database:
        plan = find_plan(database, prefix)
        if run is not None:
            found = find_run(database, plan, run)
            told = records_of(database.records(plan, run=found.key))
            facts = {"plan": plan.digest, **_facts(found, len(told)), "spec": found.spec, "told": told}
            print(to_json(facts) if as_json else run_text(facts))
            return
        counts = _records(database, plan)
        folder = task_folder(database, plan)
        facts = {
            "digest": plan.digest, "kind": plan.kind, "created": _moment(plan.created),
            "code_version": plan.code_version, "environment": plan.environment, "request": plan.request,
            "content": plan.content, "records": counts.total(),
            "runs": [_facts(one, counts[one.key]) for one in database.run_list(plan)],
            "files": str(folder) if folder.exists() else None,
            "error_files": sorted(str(path) for path in folder.glob("*/error.txt")),
        }  # fmt: skip
    print(to_json(facts) if as_json else plan_text(facts))


def task_folder(store: Store, plan: Plan) -> Path:
    """Where the tasks of a plan keep their checkpoints and output."""
    from allometry.study.worker import task_directory

    return task_directory(store, plan.digest, "any").parent


def records_of(frame: pandas.DataFrame) -> list[dict[str, Any]]:
    """Records of one run, each with its name, values and timing, without what its run says."""
    of_run = {"plan", "run", "status", "seed", "attempts", "reason"}
    kept = [name for name in frame.columns if name not in of_run and not name.startswith("spec.")]
    return [
        {name.removeprefix("value."): value for name, value in zip(kept, row, strict=True)}
        for row in frame[kept].itertuples(index=False, name=None)
    ]


def plan_text(facts: Mapping[str, Any]) -> str:
    """A plan for a person."""
    made = facts["environment"]
    system = f"Python {made.get('python')}, {made.get('system')} {made.get('machine')}"
    packages = [f"{name} {version}" for name, version in made.get("packages", {}).items()]
    lines = aligned(
        {
            "plan": facts["digest"], "kind": facts["kind"], "created": f"{_short(facts['created'])} UTC",
            "code": facts["code_version"],
            "made with": ", ".join((system, *packages)),
            **({"files": facts["files"]} if facts["files"] else {}),
        }
    )  # fmt: skip
    for title in ("request", "content"):
        lines += ["", title.capitalize(), *aligned(dict(_flat(facts[title])), indent="  ")]
    lines += ["", f"Runs ({len(facts['runs'])}, {facts['records']} records)"]
    lines += [f"  {line}" for line in run_lines(facts["runs"])] if facts["runs"] else ["  none yet"]
    if facts["error_files"]:
        lines += ["", "Traces of errors", *(f"  {path}" for path in facts["error_files"])]
    return "\n".join(lines)


def run_text(facts: Mapping[str, Any]) -> str:
    """A run and its records for a person."""
    named = ("status", "seed", "attempts", "step", "started", "finished", "reason")
    head = {"run": facts["run"], "plan": facts["plan"]}
    head |= {name: _cell(facts[name]) for name in named if facts[name] is not None}
    lines = [*aligned(head), "", "Spec", *aligned(dict(_flat(facts["spec"])), indent="  ")]
    lines += ["", f"Records ({len(facts['told'])})"]
    for record in facts["told"]:
        lines.append(f"  {record['name']}")
        values = (f"{name}\xa0{_cell(value)}" for name, value in record.items() if name != "name")
        lines += [line.replace("\xa0", " ") for line in _wrapped(", ".join(values), "    ")]
    return "\n".join(lines)


def aligned(facts: Mapping[str, str], *, indent: str = "") -> list[str]:
    """Names and what they say, the latter under each other and at most a hundred columns wide."""
    import textwrap

    column = max((len(name) for name in facts), default=0) + 2
    lines = []
    for name, told in facts.items():
        parts = textwrap.wrap(told, max(30, _WIDE - column - len(indent)), break_on_hyphens=False) or [""]
        lines.append(f"{indent}{name:<{column}}{parts[0]}".rstrip())
        lines += [indent + " " * column + more for more in parts[1:]]
    return lines or [f"{indent}nothing"]


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as ``outer.inner`` and short text."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", _cell(value)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        if any(isinstance(item, list | Mapping) for item in value):
            return f"{len(value)} entries (all of them with --json)"
        more = f" ... ({len(value)} in all)" if len(value) > _FEW else ""
        return ", ".join(_cell(item) for item in value[:_FEW]) + more if value else "none"
    if isinstance(value, float):
        return f"{value:.10g}"
    return "none" if value is None or value == {} else str(value)


# --- export ------------------------------------------------------------------------------------------------
@app.command("export")
def export(
    prefix: PrefixArgument,
    out: Annotated[Path, typer.Option(help="The file to write: .csv, .parquet or .jsonl.")],
    store: StoreOption = _PLACE,
    as_json: JsonOption = False,
) -> None:
    """Write one row a record, its run's spec beside it; `allometry fit FILE` reads it."""
    from allometry.forecast.report import to_json
    from allometry.show.drawing import write_atomically

    ending = out.suffix.lower()
    if ending not in _ENDINGS:
        raise ValueError(f"--out ends in {', '.join(_ENDINGS)}; {str(out)!r} does not")
    with opened(store) as database:
        plan = find_plan(database, prefix)
        frame = exported(database.records(plan))
    if frame.empty:
        raise ValueError(f"plan {plan.digest[:_DIGITS]} has no records yet: there is nothing to export")
    content = encoded(frame, ending)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, content)
    facts = {"plan": plan.digest, "file": str(out), "rows": len(frame), "columns": list(frame.columns)}
    told = f"{out}: {len(frame)} records of {frame['run'].nunique()} runs, {len(frame.columns)} columns"
    print(to_json(facts) if as_json else told)


def exported(frame: pandas.DataFrame) -> pandas.DataFrame:
    """A store's records as a table for others: ``run`` names runs, ``diverged`` marks those that did.

    A seed that only the records tell (a task may train several seeds) takes the run's place.
    """
    for name in [column for column in frame.columns if column.startswith("value.")]:
        plain = name.removeprefix("value.")
        if frame[plain].isna().all():
            frame = frame.drop(columns=plain).rename(columns={name: plain})
    if "record" not in frame:  # `name` might be taken for the run's
        frame = frame.rename(columns={"name": "record"})
    title = "name" if "name" in frame else "record"
    leading = ["plan", "run", title, "status", "seed", "attempts", "reason"]
    spec = [name for name in frame.columns if name.startswith("spec.")]
    told = [name for name in frame.columns if name not in (*leading, *spec)]
    frame = frame[[*leading, *told, *spec]]
    if "diverged" not in frame:
        frame.insert(4, "diverged", frame["status"] == "diverged")
    return frame


def encoded(frame: pandas.DataFrame, ending: str) -> bytes:
    """The table as a file's bytes; lists and dictionaries are JSON, in columns of their own in JSON lines."""
    import io

    import pandas

    if ending == ".jsonl":
        lines = (
            json.dumps({name: _json_cell(value) for name, value in row.items() if not _missing(value)})
            for row in frame.to_dict(orient="records")
        )
        return "".join(f"{line}\n" for line in lines).encode()
    flat = frame.copy()
    for name in flat.columns:
        if flat[name].dtype == object:
            kinds = {type(value) for value in flat[name] if not _missing(value)}
            if not kinds <= {str} and not kinds <= {bool}:
                texts = [
                    None if _missing(v) else v if isinstance(v, str) else json.dumps(v) for v in flat[name]
                ]
                flat[name] = pandas.Series(texts, index=flat.index, dtype=object)
    if ending == ".csv":
        return flat.to_csv(index=False, lineterminator="\n").encode()
    from allometry.extras import need

    need("pyarrow.parquet", extra="logs", purpose="writing Parquet")
    buffer = io.BytesIO()
    flat.to_parquet(buffer, engine="pyarrow", index=False)
    return buffer.getvalue()


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _json_cell(value: Any) -> Any:
    """A cell that strict JSON can hold: an infinity as the word that readers of numbers know."""
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _json_cell(item) for key, item in value.items()}
    return [_json_cell(item) for item in value] if isinstance(value, list | tuple) else value


# --- delete ------------------------------------------------------------------------------------------------
@app.command("delete")
def delete(
    prefix: PrefixArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    store: StoreOption = _PLACE,
    as_json: JsonOption = False,
) -> None:
    """Delete a plan with its runs, records and files; refuses while one of its runs is being trained."""
    from allometry.forecast.report import to_json

    with opened(store) as database:
        plan = find_plan(database, prefix)
        name = plan.digest[:_DIGITS]
        runs, records = len(database.run_list(plan)), _records(database, plan).total()
        folder = task_folder(database, plan)
        files = f", and its files in {folder}" if folder.exists() else ""
        if not yes:
            if not sys.stdin.isatty():
                raise ValueError(f"deleting plan {name} is for good: say --yes where nobody can be asked")
            question = f"Delete plan {name} ({plan.kind}: {runs} runs, {records} records){files}?"
            print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
            if sys.stdin.readline().strip().lower() not in ("y", "yes"):
                print("Nothing was deleted.", file=sys.stderr)
                raise typer.Exit(1)
        database.delete_plan(
            plan
        )  # first: files without a plan are cleared away, a plan without files is not
        had_files = folder.exists()
        if had_files:
            shutil.rmtree(folder)
        others = [
            other for other in map(database.plan, database.plans()["digest"])
            if other.request == {"plan": plan.digest}
        ]  # fmt: skip
    for other in others:
        print(f"Plan {other.digest[:_DIGITS]} ({other.kind}) was made from it and stays.", file=sys.stderr)
    facts = {"deleted": plan.digest, "runs": runs, "records": records,
             "files": str(folder) if had_files else None}  # fmt: skip
    print(to_json(facts) if as_json else f"Deleted plan {name}: {runs} runs, {records} records{files}.")
