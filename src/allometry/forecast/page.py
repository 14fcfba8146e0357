"""A forecast's page: what :mod:`allometry.forecast.report` gathers, as one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

from allometry.forecast.report import (
    FORMULAS,
    backtest,
    choice_table,
    command,
    contest,
    facts,
    ladder_table,
    law_table,
    level,
    plan_facts,
    verdict,
)
from allometry.show.drawing import inline_svg
from allometry.show.markup import bullets, document, listing, section, shown, table
from allometry.show.text import percent

if TYPE_CHECKING:
    from allometry.forecast.result import Forecast


def page(result: Forecast, drawn: Mapping[str, str]) -> str:
    """The page's HTML; ``drawn`` holds the SVG text of the figures ``forecast`` and ``residuals``."""
    from allometry import __version__

    sizes = int(result.runs["width"].nunique())
    state = "open" if result.check is None else "held" if result.check.inside else "refuted"
    word = {"open": "not checked", "held": "held", "refuted": "refuted"}[state]
    measured = "not trained" if result.check is None else f"{result.check.measured:.4f}"
    numbers = [
        ("forecast", f"{result.value:.4f}", f"{result.low:.4f} to {result.high:.4f}, {level(result)}"),
        ("measured", measured, "" if result.check is None else "nats a token"),
    ]
    if result.check is not None:
        where = "inside the interval" if result.check.inside else "outside the interval"
        numbers.append(("error", percent(result.check.error), where))
    goal = result.target
    told = (
        f"Forecast {result.value:.4f} nats a token for width {goal['width']}; "
        + ("not measured" if result.check is None else f"measured {measured}")
    )  # fmt: skip
    sections = [
        f'<p class="verdict {state}"><strong>{word}</strong> {shown(verdict(result))}</p>',
        '<dl class="numbers">'
        + "".join(
            f"<div><dt>{escape(name)}</dt><dd>{shown(number)}<small>{escape(small)}</small></dd></div>"
            for name, number, small in numbers
        )
        + "</dl>",
        f"<figure>{inline_svg(drawn['forecast'], 'Loss against training compute. ' + told, 'loss', sizes)}"
        "<figcaption>Points are the ladder's records, lines the fitted law at each size. "
        f"Dashed: the least loss that the law foretells at each compute, with its {level(result)} band. "
        "Dotted: the naive forecasts. The target need not lie on the dashed line: widths come in steps, and "
        "its split is held to what the ladder and the text can bear.</figcaption></figure>",
        section(
            "Forecast, measurement and naive forecasts",
            table(["", "loss", "low", "high", "error"], contest(result)),
        ),
        section("Notes", bullets(map(str, result.notes))) if result.notes else "",
        section("In short", listing(facts(result), shown)),
    ]
    if result.backtest:
        sections.append(
            section(
                "Backtest: the largest size foretold from the smaller ones", listing(backtest(result), shown)
            )
        )
    sections += [
        section(
            "The ladder: mean loss over seeds, and their standard deviation", table(*ladder_table(result))
        ),
        f"<figure>{inline_svg(drawn['residuals'], 'Residuals of the law against tokens', 'residuals', sizes)}"
        "<figcaption>Measured loss over the law's, in per cent; lines join the means of a size.</figcaption>"
        "</figure>",
        section("Choice of the law", _chosen(result) + table(*choice_table(result))),
        *(
            section(
                f"The law: {fit.form.name}",
                f"<p><code>{escape(FORMULAS.get(fit.form.name, 'see law.json'))}</code></p>"
                + table(
                    ["", "value", *([f"low, {level(result)}", "high"] if len(fit.theta_draws) else [])],
                    law_table(fit, result.level),
                ),
            )
            for fit in result.fits
        ),
        section("The plan, fixed before anything was trained", listing(plan_facts(result))),
        section(
            "To do it again",
            f"<pre><code>{escape(command(result))}</code></pre><p>Every record is in "
            '<a href="runs.csv">runs.csv</a>, '
            'the law and all other numbers in <a href="law.json">law.json</a>.</p>',
        ),
    ]
    return document(
        f"Forecast: {result.value:.4f} nats a token",
        f"Width {goal['width']}, {goal['params']:,.0f} parameters without embeddings, {goal['tokens']:,.0f} "
        f"tokens: foretold from a ladder of {sizes} sizes.",
        sections,
        f"allometry {__version__}, plan {result.digest[:12]}",
        sizes,
    )


def _chosen(result: Forecast) -> str:
    rule = result.plan.get("law", {}).get("choice")
    told = f" The rule, fixed in the plan: {escape(str(rule))}." if rule else ""
    used = " and ".join(fit.form.name for fit in result.fits)
    how = ", averaged" if len(result.fits) > 1 else ""
    return f"<p>Used: <strong>{escape(used)}</strong>{how}.{told}</p>"
