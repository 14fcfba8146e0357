"""The report's page: one file that needs nothing else.

Figures are inside it, it has no script, it fetches nothing. It reads on a phone, in the dark, on paper.
Whatever comes from outside, a path most of all, is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from allometry.forecast.drawing import DARK, LIGHT, inline_svg, size_colors
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
    percent,
    plan_facts,
    sentence,
    verdict,
)

if TYPE_CHECKING:
    from allometry.forecast.forecast import Forecast


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
        f'<p class="verdict {state}"><strong>{word}</strong> {_shown(verdict(result))}</p>',
        '<dl class="numbers">'
        + "".join(
            f"<div><dt>{escape(name)}</dt><dd>{_shown(number)}<small>{escape(small)}</small></dd></div>"
            for name, number, small in numbers
        )
        + "</dl>",
        f"<figure>{inline_svg(drawn['forecast'], 'Loss against training compute. ' + told, 'loss', sizes)}"
        "<figcaption>Points are the ladder's records, lines the fitted law at each size. "
        f"Dashed: the least loss that the law foretells at each compute, with its {level(result)} band. "
        "Dotted: the naive forecasts. The target need not lie on the dashed line: widths come in steps, and "
        "its split is held to what the ladder and the text can bear.</figcaption></figure>",
        _section(
            "Forecast, measurement and naive forecasts",
            _table(["", "loss", "low", "high", "error"], contest(result)),
        ),
        _section("Notes", _notes(result)) if result.notes else "",
        _section("In short", _list(facts(result), _shown)),
    ]
    if result.backtest:
        sections.append(
            _section(
                "Backtest: the largest size foretold from the smaller ones", _list(backtest(result), _shown)
            )
        )
    sections += [
        _section(
            "The ladder: mean loss over seeds, and their standard deviation", _table(*ladder_table(result))
        ),
        f"<figure>{inline_svg(drawn['residuals'], 'Residuals of the law against tokens', 'residuals', sizes)}"
        "<figcaption>Measured loss over the law's, in per cent; lines join the means of a size.</figcaption>"
        "</figure>",
        _section("Choice of the law", _chosen(result) + _table(*choice_table(result))),
        *(
            _section(
                f"The law: {fit.form.name}",
                f"<p><code>{escape(FORMULAS.get(fit.form.name, 'see law.json'))}</code></p>"
                + _table(
                    ["", "value", *([f"low, {level(result)}", "high"] if len(fit.theta_draws) else [])],
                    law_table(fit, result.level),
                ),
            )
            for fit in result.fits
        ),
        _section("The plan, fixed before anything was trained", _list(plan_facts(result))),
        _section(
            "To do it again",
            f"<pre><code>{escape(command(result))}</code></pre><p>Every record is in "
            '<a href="runs.csv">runs.csv</a>, '
            'the law and all other numbers in <a href="law.json">law.json</a>.</p>',
        ),
    ]
    title = f"Forecast: {result.value:.4f} nats a token"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)}</title>\n'
        f"<style>{_css(sizes)}</style>\n</head>\n<body>\n<main>\n<header><h1>{escape(title)}</h1>\n"
        f"<p>Width {goal['width']}, {goal['params']:,.0f} parameters without embeddings, "
        f"{goal['tokens']:,.0f} tokens: foretold from a ladder of {sizes} sizes.</p></header>\n"
        + "\n".join(section for section in sections if section)
        + f"\n</main>\n<footer>allometry {escape(__version__)}, plan {escape(result.digest[:12])}</footer>\n"
        + "</body>\n</html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{_shown(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


def _shown(cell: str) -> str:
    """What we wrote ourselves, for the page: numbers get a true minus."""
    return escape(re.sub(r"(?<![\w-])-(?=\d)", "−", cell))


def _list(facts: Sequence[tuple[str, str]], told: Callable[[str], str] = escape) -> str:
    return (
        "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{told(value)}</dd>" for name, value in facts) + "</dl>"
    )


def _notes(result: Forecast) -> str:
    return "<ul>" + "".join(f"<li>{escape(sentence(str(note)))}</li>" for note in result.notes) + "</ul>"


def _chosen(result: Forecast) -> str:
    rule = result.plan.get("law", {}).get("choice")
    told = f" The rule, fixed in the plan: {escape(str(rule))}." if rule else ""
    used = " and ".join(fit.form.name for fit in result.fits)
    how = ", averaged" if len(result.fits) > 1 else ""
    return f"<p>Used: <strong>{escape(used)}</strong>{how}.{told}</p>"


def _css(sizes: int) -> str:
    """The page's style; both themes' colours, with the sizes' own."""

    def colors(palette: dict[str, str], dark: bool) -> str:
        named = palette | {f"size-{index}": color for index, color in enumerate(size_colors(sizes, dark))}
        named |= (
            {"held": "#6cc79a", "refuted": "#ff8f8f"} if dark else {"held": "#14683f", "refuted": "#a81f2b"}
        )
        return "".join(f"--{name}:{color};" for name, color in named.items())

    return _STYLE.replace("/*light*/", colors(LIGHT, False)).replace("/*dark*/", colors(DARK, True))


_STYLE = """
:root{color-scheme:light dark;/*light*/}
@media screen and (prefers-color-scheme:dark){:root{/*dark*/}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);line-height:1.5;
font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;font-variant-numeric:tabular-nums}
main,footer{max-width:52rem;margin:0 auto;padding:1.5rem 1rem}
h1{font-size:1.8rem;line-height:1.2;margin:.5rem 0 .25rem}
h2{font-size:1.1rem;margin:2.25rem 0 .5rem}
header p,footer,small,figcaption,dt,thead th{color:var(--muted)}
header p{margin:0}
.verdict{border-left:.3rem solid var(--muted);padding:.4rem .9rem;margin:1.25rem 0}
.verdict strong{text-transform:uppercase;letter-spacing:.05em;margin-right:.4rem}
.held{border-color:var(--held)}.held strong{color:var(--held)}
.refuted{border-color:var(--refuted)}.refuted strong{color:var(--refuted)}
.numbers{display:flex;flex-wrap:wrap;gap:.75rem 2.5rem;margin:1rem 0}
.numbers div{display:block}
.numbers dd{font-size:1.7rem;font-weight:600;line-height:1.2;margin:0}
.numbers small{display:block;font-size:.85rem;font-weight:400}
figure{margin:1.5rem 0}
figure svg{display:block;width:100%;max-width:44rem;height:auto}
figcaption{font-size:.88rem;margin-top:.5rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.93rem;min-width:60%}
th,td{padding:.35rem 1rem .35rem 0;text-align:right;white-space:nowrap;border-bottom:1px solid var(--grid)}
th:first-child{text-align:left}
th{font-weight:500}
section>dl{display:grid;grid-template-columns:max-content 1fr;gap:.35rem 1.25rem;margin:0;font-size:.93rem}
section>dl dd{margin:0;min-width:0;overflow-wrap:anywhere}
pre{overflow-x:auto;border:1px solid var(--grid);border-radius:.4rem;padding:.75rem 1rem;font-size:.88rem}
li{margin:.25rem 0;overflow-wrap:anywhere}
a{color:inherit}
footer{font-size:.85rem;border-top:1px solid var(--grid)}
@media (max-width:34rem){
section>dl{display:block}section>dl dd{margin-bottom:.6rem}
main,footer{padding-left:.75rem;padding-right:.75rem}
table{font-size:.85rem}th,td{padding-right:.5rem}
}
@media print{
main,footer{max-width:none;padding:0}
section,figure,tr{break-inside:avoid}h2{break-after:avoid}
.wide,pre{overflow:visible}pre{white-space:pre-wrap}
}
"""
