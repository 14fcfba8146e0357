"""``allometry forecast``: train a ladder, forecast the large model, check it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def target_multiple(text: str) -> float:
    """``8x``, ``8`` or ``8.0`` as a number.

    >>> target_multiple("8x")
    8.0
    """
    try:
        return float(text.strip().lower().removesuffix("x"))
    except ValueError:
        raise typer.BadParameter(
            f"give a multiple of the largest rung's compute such as 8x, not {text!r}"
        ) from None


def forecast(
    text: Annotated[
        list[str] | None,
        typer.Argument(
            help="Text, JSONL or Parquet files, folders, patterns; the standard library's source by default."
        ),
    ] = None,
    plan: Annotated[
        str | None, typer.Option(help="small, default or large; a probe chooses otherwise.")
    ] = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="A ladder of seconds: shows that everything runs, says nothing.")
    ] = False,
    target: Annotated[
        str, typer.Option(help="The target's training compute over the largest rung's.")
    ] = "8x",
    tokens: Annotated[
        float | None, typer.Option(help="The target's tokens; the fitted optimum by default.")
    ] = None,
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not train the target.")] = False,
    seeds: Annotated[int, typer.Option(help="Seeds a size.")] = 3,
    seed: Annotated[int, typer.Option(help="Which family of seeds.")] = 0,
    replays: Annotated[
        int, typer.Option(help="Repeat the whole job so often, all seeds different, and judge it.")
    ] = 1,
    report: Annotated[Path, typer.Option(help="Folder for the page, figures and tables.")] = Path("forecast"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    store: Annotated[
        str, typer.Option(help="Where records go: a file or a database URL.")
    ] = ".allometry/store.db",
    tokenizer: Annotated[
        str | None, typer.Option(help="A Hugging Face tokenizer's file or folder; bytes by default.")
    ] = None,
    text_field: Annotated[str, typer.Option(help="The key or column that holds the text.")] = "text",
    workers: Annotated[
        int | None, typer.Option(help="Worker processes; as many as cores by default.")
    ] = None,
    executor: Annotated[
        str, typer.Option(help="local: processes of this machine; ray: a Ray cluster, with the same numbers.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="The Ray cluster's host:port; the one this machine is in by default.")
    ] = None,
    target_processes: Annotated[
        int, typer.Option(help="Processes that share the target's weights out (FSDP2); one a GPU.")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a ladder of small models on TEXT, forecast a larger one, train it, and compare."""
    from allometry.forecast.forecast import forecast as run
    from allometry.forecast.report import to_json

    if tiny and plan not in (None, "tiny"):
        raise typer.BadParameter(f"--tiny and --plan {plan} contradict each other")
    settings: dict[str, Any] = {
        "plan": "tiny" if tiny else plan, "target": target_multiple(target), "tokens": tokens, "seeds": seeds,
        "device": device, "store": store, "tokenizer": tokenizer, "text_field": text_field,
        "workers": workers, "executor": executor, "address": address, "target_processes": target_processes,
        "tell": lambda sentence: print(sentence, file=sys.stderr, flush=True),
    }  # fmt: skip
    if replays > 1:
        from allometry.forecast.replays import replay

        judged = replay(text, replays, seed=seed, report=report, **settings)
        print(to_json(judged.to_dict()) if as_json else judged)
        return
    result = run(text, seed=seed, check=not no_check, report=report, **settings)
    print(to_json(result.to_dict()) if as_json else result)
    print(f"Report: {report / 'report.html'}", file=sys.stderr)
