"""``allometry plan``: what a budget buys; with ``--ladder``, a ladder of runs of somebody's own trainer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from allometry.forecast.commands import CommandLadder


def amount(name: str, text: str | None) -> float | None:
    """``1e12``, ``1T`` or ``70B`` as a number.

    >>> amount("tokens-served", "1T")
    1000000000000.0
    """
    from allometry.laws.columns import GOOD, number

    if text is None:
        return None
    value, state = number(text)
    if state != GOOD:
        raise ValueError(f"--{name} must be a number such as 1e12 or 1T, not {text!r}")
    return value


def plan(
    gpus: Annotated[
        str | None, typer.Option(help="Count and name: 8xH100, 64xA100, 16xTPU-v5p, 256xMI300X ...")
    ] = None,
    days: Annotated[float | None, typer.Option(help="For how many days.")] = None,
    law: Annotated[
        str | None,
        typer.Option(
            help="A law.json, or a published law: chinchilla-replicated (default), chinchilla, "
            "chinchilla-rounded, kaplan, data-constrained."
        ),
    ] = None,
    mfu: Annotated[float, typer.Option(help="Share of the peak that training reaches.")] = 0.4,
    precision: Annotated[str, typer.Option(help="Which peak: bf16, fp16, fp8, fp4, tf32.")] = "bf16",
    flops_per_gpu: Annotated[
        str | None, typer.Option(help="Dense peak FLOP/s of one, for an accelerator without an entry.")
    ] = None,
    tokens_served: Annotated[
        str | None, typer.Option(help="Tokens that the model will serve, paid from the same budget.")
    ] = None,
    unique_tokens: Annotated[
        str | None, typer.Option(help="Tokens that there are; beyond them data repeat.")
    ] = None,
    price: Annotated[float | None, typer.Option(help="Of one accelerator for one hour.")] = None,
    ladder: Annotated[
        bool, typer.Option("--ladder", help="Plan a ladder of runs of your own training --command.")
    ] = False,
    command: Annotated[
        str | None,
        typer.Option(
            help="Your trainer's command, with {width} {tokens} {lr} {seed} {out} {params} where values go; "
            "run without a shell; other braces are doubled."
        ),
    ] = None,
    widths: Annotated[str | None, typer.Option(help="Widths of the ladder: 16,32,48,64.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Training tokens of its runs: 0.5M,1M,2M.")] = None,
    lr: Annotated[
        str | None,
        typer.Option(
            help="Peak rate: 4e-3; several, of which a sweep chooses; or by width: 16:8e-3,32:6e-3."
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds a size; 3 where the command has {seed}.")] = None,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    params: Annotated[
        str | None, typer.Option(help="Parameters by width, where logs do not tell: 16:12345,32:45678.")
    ] = None,
    out: Annotated[str, typer.Option(help="Folder of the runs' folders.")] = "ladder",
    run: Annotated[bool, typer.Option("--run", help="Run what has no result yet, then forecast.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="After the forecast is stored, run the target and compare.")
    ] = False,
    collect: Annotated[
        str | None,
        typer.Option(
            help="Where each run's logs lie, with placeholders: '{out}/**/metrics.csv'. Without --run, "
            "read what there is and forecast."
        ),
    ] = None,
    columns: Annotated[
        list[str] | None, typer.Option(help="Which column of the logs is what: loss=val/loss,params=N.")
    ] = None,
    records: Annotated[
        str, typer.Option(help="Of each log the last record or the best: last, best.")
    ] = "last",
    target: Annotated[
        str | None, typer.Option(help="The target's compute over the largest run's: 8x.")
    ] = None,
    target_width: Annotated[int | None, typer.Option(help="The target's width; needed to check it.")] = None,
    target_tokens: Annotated[str | None, typer.Option(help="The target's tokens.")] = None,
    target_params: Annotated[str | None, typer.Option(help="The target's parameters.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Runs side by side; one for each core by default, 1 on one GPU.")
    ] = None,
    threads_per_run: Annotated[int, typer.Option(help="OMP_NUM_THREADS and its kin, of each run.")] = 1,
    timeout: Annotated[float | None, typer.Option(help="Seconds after which a run has failed.")] = None,
    store: Annotated[
        str, typer.Option(help="Where plans and forecasts go: a file or a database URL.")
    ] = ".allometry/store.db",
    report: Annotated[
        Path | None, typer.Option(help="Folder for report.html, figures, law.json and runs.csv.")
    ] = None,
    level: Annotated[float, typer.Option(help="Share of the intervals.")] = 0.9,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """What a budget buys; or, with --ladder, runs of your own training command, and a forecast from them."""
    if ladder or command is not None:
        if gpus is not None or days is not None:
            raise ValueError("--ladder and --gpus plan different things; give one of them")
        if command is None or widths is None or tokens is None:
            raise ValueError(
                "a ladder needs a command, widths and tokens: --command 'python train.py --width {width} "
                "--tokens {tokens} --out {out}' --widths 16,32,64 --tokens 0.5M,1M,2M"
            )
        from allometry.cli.fit import name_value_pairs
        from allometry.forecast.commands import CommandLadder

        planned = CommandLadder(
            command, amounts("widths", widths), amounts("tokens", tokens), lr=rates(lr), seeds=seeds,
            seed=seed, out=out, params=by_width("params", params), logs=collect or "{out}", records=records,
            columns=dict(
                pair for text in columns or [] for pair in name_value_pairs(text, "loss=val/loss,params=N")
            ),
        )  # fmt: skip
        goal = {
            "width": target_width, "tokens": amount("target-tokens", target_tokens),
            "params": amount("target-params", target_params), "multiple": _multiple(target),
        }  # fmt: skip
        if run or collect is not None:
            _forecast(planned, goal, as_json, report, level=level, store=store, run=run, check=check,
                      workers=workers, threads=threads_per_run, timeout=timeout)  # fmt: skip
        elif check:
            raise ValueError(
                "--check runs the target after the ladder: give --run too, or --collect to read its log"
            )
        else:
            _show(planned, store, as_json)
        return
    if gpus is None or days is None:
        raise ValueError("give the budget: --gpus 8xH100 --days 10")
    from allometry.forecast.budget import plan_budget
    from allometry.forecast.report import to_json

    bought = plan_budget(
        gpus,
        days,
        law=law,
        mfu=mfu,
        precision=precision,
        flops_per_gpu=amount("flops-per-gpu", flops_per_gpu),
        tokens_served=amount("tokens-served", tokens_served) or 0.0,
        unique_tokens=amount("unique-tokens", unique_tokens),
        price=price,
        level=level,
    )
    print(to_json(bought.to_dict()) if as_json else bought)


# --- a ladder of the user's own command ---------------------------------------------------------------------
def amounts(name: str, text: str) -> list[float]:
    """``0.5M,1M`` as numbers.

    >>> amounts("tokens", "0.5M,1M")
    [500000.0, 1000000.0]
    """
    found = [amount(name, part.strip()) for part in text.split(",")]
    return [value for value in found if value is not None]


def by_width(name: str, text: str | None) -> dict[int, float] | None:
    """``16:12345,32:45678`` as numbers by width.

    >>> by_width("params", "16:12k,32:45k")
    {16: 12000.0, 32: 45000.0}
    """
    if text is None:
        return None
    found = {}
    for part in text.split(","):
        width, mark, value = part.partition(":")
        number = amount(name, value.strip()) if mark else None
        if number is None or not width.strip().isdigit():
            raise ValueError(f"--{name} is given by width, as in 16:8e-3,32:6e-3, not {part!r}")
        found[int(width)] = number
    return found


def rates(text: str | None) -> Any:
    """``4e-3``, ``2e-3,4e-3`` or ``16:8e-3,32:6e-3``.

    >>> rates("16:8e-3,32:6e-3"), rates("2e-3,4e-3")
    ({16: 0.008, 32: 0.006}, [0.002, 0.004])
    """
    if text is None:
        return None
    return by_width("lr", text) if ":" in text else amounts("lr", text)


def _multiple(text: str | None) -> float:
    from allometry.cli.forecast import target_multiple

    return 8.0 if text is None else target_multiple(text)


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _show(planned: CommandLadder, store: str, as_json: bool) -> None:
    """Print the runs that have no result yet; of a sweep its own runs first."""
    from allometry.study.store import Store

    what, settled = "runs", planned
    if planned.rates:
        with Store(store) as opened:
            found = planned.settled(opened)
        what = "runs of the sweep over learning rates; once they have results, the ladder's are shown"
        if found is not None:
            settled, what = found, f"runs at the rate that the sweep chose, {found.lr:g}"
    runs = planned.sweep() if settled.rates else settled.runs()
    done = {run.key: settled.done(run) for run in runs}
    if as_json:
        from allometry.forecast.report import to_json

        shown = [
            {"key": run.key, "width": run.width, "tokens": run.tokens, "lr": run.lr, "seed": run.seed,
             "out": run.out, "command": run.command, "done": done[run.key]}
            for run in runs
        ]  # fmt: skip
        print(to_json(shown))
        return
    _say(f"{len(runs)} {what}; {sum(done.values())} have their result and are not shown")
    for run in runs:
        if not done[run.key]:
            print(run.command)


def _forecast(
    planned: CommandLadder, asked: dict[str, Any], as_json: bool, report: Path | None, **settings: Any
) -> None:
    from allometry.forecast.commanded import Goal, forecast_commands
    from allometry.forecast.report import to_json

    told = forecast_commands(planned, Goal(**asked), tell=_say, **settings)
    if report is not None:
        _say(f"Written: {told.report(report)}")
    print(to_json(told.to_dict()) if as_json else told)
