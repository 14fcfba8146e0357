"""``allometry plan``: what a budget buys, from a published law or one that was fitted."""

from __future__ import annotations

from typing import Annotated

import typer


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
    level: Annotated[float, typer.Option(help="Share of the intervals.")] = 0.9,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """What a budget buys: model, tokens, loss, batch, learning rate, time and money."""
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
