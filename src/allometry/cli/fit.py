"""``allometry fit``: laws from runs that were made already; no training, seconds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from allometry.forecast.told import draw, refuse_ending
from allometry.forecast.told import summary as summary  # other commands end in an answer too
from allometry.forecast.told import write as write


def named_numbers(text: str) -> dict[str, float]:
    """``params=7B,tokens=2e12`` as numbers by name.

    >>> named_numbers("params=7B,tokens=2e12")
    {'params': 7000000000.0, 'tokens': 2000000000000.0}
    """
    from allometry.laws.columns import GOOD, number

    found = {}
    for name, value in name_value_pairs(text, "params=7e9,tokens=2e12"):
        found[name], state = number(value)
        if state != GOOD:
            raise ValueError(f"{name} must be a number such as 7e9 or 7B, not {value!r}")
    return found


def name_value_pairs(text: str, example: str) -> list[tuple[str, str]]:
    pairs = []
    for part in text.split(","):
        name, mark, value = part.partition("=")
        if not mark or not name.strip() or not value.strip():
            raise ValueError(f"give NAME=VALUE, as in {example}, not {part!r}")
        pairs.append((name.strip(), value.strip()))
    return pairs


def _given(texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """``190M-*:params=190354176``, several times, by pattern."""
    found: dict[str, dict[str, float]] = {}
    for text in texts:
        pattern, mark, rest = text.rpartition(":")
        found.setdefault(pattern if mark else "*", {}).update(named_numbers(rest))
    return found


def _columns(texts: Sequence[str]) -> dict[str, str]:
    """``loss=val/loss,params=N``, several times."""
    return dict(pair for text in texts for pair in name_value_pairs(text, "loss=val/loss,params=N"))


def fit(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="CSV, TSV, JSON(L), Parquet, TensorBoard, W&B, MLflow, trainer_state.json; folders, globs."
        ),
    ] = None,
    law: Annotated[
        str,
        typer.Option(
            help="auto, chinchilla, kaplan, power ...; or a law of columns of its own, with options: "
            "annealing, precision:block=32 ... (--laws lists them)."
        ),
    ] = "auto",
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="A task's accuracy, by way of its loss: [LABEL=]NAME, which its columns hold; a weighted "
            "sum is NAME:WEIGHT+NAME:WEIGHT. May be repeated."
        ),
    ] = None,
    predict: Annotated[
        list[str] | None,
        typer.Option(help="Where to foretell: params=7e9,tokens=2e12, or a table's file. Repeatable."),
    ] = None,
    optimal_for: Annotated[
        str | None, typer.Option(help="Training FLOPs to divide between parameters and tokens.")
    ] = None,
    columns: Annotated[
        list[str] | None, typer.Option(help="Which column is what: loss=val/loss,params=N.")
    ] = None,
    values: Annotated[
        list[str] | None,
        typer.Option("--set", help="What the logs do not say, by run: '190M-*:params=190354176'."),
    ] = None,
    records: Annotated[
        str, typer.Option(help="Of each log the last record, the best, or all: last, best, all.")
    ] = "last",
    level: Annotated[float, typer.Option(help="Share of the intervals.")] = 0.9,
    plot: Annotated[Path | None, typer.Option(help="Draw the law into this file (.png, .svg, .pdf).")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder for report.html, figures, law.json and runs.csv.")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Logs of a technique, RUNS being the base: do the curves cross, where, how many more runs "
            "would settle it. May be repeated."
        ),
    ] = None,
    laws: Annotated[
        bool, typer.Option("--laws", help="List the laws and the columns that each needs.")
    ] = False,
    example: Annotated[
        bool, typer.Option("--example", help="Use the small measured table that comes with the package.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Fit a scaling law to RUNS made already: forecasts with intervals, the best split of a budget."""
    if laws:
        print(_listed())
        return
    if example == bool(runs):
        raise ValueError("give logs of runs (files, folders, patterns), or --example, not both or neither")
    if against:
        if task or predict or optimal_for is not None or report is not None or example or law != "auto":
            raise ValueError("--against goes with --columns, --set, --level, --plot and --json only")
        _against(list(runs or []), against, columns or [], _given(values or []), level, plot, as_json)
        return
    if task or _own_columns(law):
        if optimal_for is not None or columns or example or records != "last":
            raise ValueError("--task and laws of their own columns do not go with --optimal-for, --columns, "
                             "--records or --example")  # fmt: skip
        _own(
            list(runs or []),
            law,
            task or [],
            predict or [],
            _given(values or []),
            level,
            plot,
            report,
            as_json,
        )
        return
    places = [named_numbers(text) for text in predict or []]
    budget = None if optimal_for is None else named_numbers(f"flops={optimal_for}")["flops"]
    wanted, given = _columns(columns or []), _given(values or [])
    from allometry.forecast.report import to_json
    from allometry.laws.answers import answer
    from allometry.laws.runs import read_runs

    if plot is not None:
        refuse_ending(plot)
    paths = list(runs or [])
    if example:
        import allometry.laws

        paths = [str(Path(allometry.laws.__file__).with_name("example_runs.csv"))]
        if not places and budget is None:
            places, budget = [{"params": 331_000.0, "tokens": 6e6}], 1e13
    found = read_runs(paths, columns=wanted, values=given)
    told = answer(found, law=law, predict=places, optimal_for=budget, pick=records, level=level)
    if plot is not None:
        draw(told, plot)
    if report is not None:
        write(told, report)
    print(to_json(told.to_dict()) if as_json else summary(told))
    for path in [plot, *([report / "report.html"] if report is not None else [])]:
        if path is not None:
            print(f"Written: {path}", file=sys.stderr)


# --- laws of columns of their own --------------------------------------------------------------------------
def _own_columns(law: str) -> bool:
    from allometry.laws.law import law_names

    name = law.partition(":")[0]
    return ":" in law or (name in law_names() and name not in _forms())


def _forms() -> set[str]:
    from allometry.laws.law import ScalingLaw, get_law, law_names

    return {name for name in law_names() if isinstance(get_law(name), ScalingLaw)}


def _listed() -> str:
    """Every law with the columns it needs."""
    from allometry.laws.law import get_law, law_names
    from allometry.show.text import cut

    lines = []
    for name in law_names():
        one = get_law(name)
        asked = ", ".join(one.columns)
        more = f" (and {', '.join(one.optional)})" if one.optional else ""
        lines += cut(f"{name:<18} {one.target} from {asked}{more}")
    return "\n".join(lines)


def _own(
    paths: list[str], law: str, tasks: list[str], predict: list[str], values: dict[str, dict[str, float]],
    level: float, plot: Path | None, report: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """`fit` for a law of its own columns, or for tasks by way of their losses."""
    from allometry.forecast.law_told import draw, summary, write
    from allometry.forecast.report import to_json
    from allometry.laws.law_answer import law_answer
    from allometry.laws.raw import read_table
    from allometry.laws.task_columns import Task, task_table

    if plot is not None:
        refuse_ending(plot)
    places = [_place(text) for text in predict]
    table = read_table(paths, values=values)
    if tasks:
        chain = law if law != "auto" else "task-chain"
        asked = [Task.parse(text) for text in tasks]
        tables = {one.label: task_table(table, one) for one in asked}
        if len(tables) < len(asked):
            raise ValueError("two tasks have the same label; name them apart, LABEL=NAME")
    else:
        chain = law
        tables = {law.partition(":")[0]: table}
    answers = {label: law_answer(chain, one, predict=places, level=level) for label, one in tables.items()}
    written = [] if plot is None else draw(answers, plot)
    if report is not None:
        written.append(write(answers, report))
    told = {label: one.to_dict() for label, one in answers.items()}
    print(to_json(told) if as_json else summary(answers))
    for path in written:
        print(f"Written: {path}", file=sys.stderr)


def _against(
    base: list[str], arm: list[str], columns: list[str], values: dict[str, dict[str, float]], level: float,
    plot: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """`fit` for a base and a technique."""
    from allometry.forecast import against
    from allometry.forecast.report import to_json
    from allometry.laws.runs import read_runs

    if plot is not None:
        refuse_ending(plot)
    wanted = _columns(columns)
    first, second = (read_runs(paths, columns=wanted, values=values) for paths in (base, arm))
    found = against.against(first, second, level)
    print(to_json(against.to_dict(*found)) if as_json else against.summary(*found))
    if plot is not None:
        print(f"Written: {against.draw(found[0], (first, second), found[3], plot)}", file=sys.stderr)


def _place(text: str) -> object:
    """``params=7e9,tokens=2e12``, or the rows of a table's file."""
    if "=" in text and not Path(text).exists():
        return named_numbers(text)
    from allometry.laws.raw import read_table

    return read_table(text).drop(columns="run")
