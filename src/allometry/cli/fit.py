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


def fit(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="CSV, TSV, JSON(L), Parquet, TensorBoard, W&B, MLflow, trainer_state.json; folders, globs."
        ),
    ] = None,
    law: Annotated[
        str,
        typer.Option(help="auto, chinchilla, kaplan, kaplan-offset, power, power-offset, broken-power ..."),
    ] = "auto",
    predict: Annotated[
        list[str] | None, typer.Option(help="Where to foretell: params=7e9,tokens=2e12. May be repeated.")
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
    example: Annotated[
        bool, typer.Option("--example", help="Use the small measured table that comes with the package.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Fit a scaling law to RUNS made already: forecasts with intervals, the best split of a budget."""
    if example == bool(runs):
        raise ValueError("give logs of runs (files, folders, patterns), or --example, not both or neither")
    places = [named_numbers(text) for text in predict or []]
    budget = None if optimal_for is None else named_numbers(f"flops={optimal_for}")["flops"]
    wanted = dict(pair for text in columns or [] for pair in name_value_pairs(text, "loss=val/loss,params=N"))
    given = _given(values or [])
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
