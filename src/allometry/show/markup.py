"""Pieces of a page, and the page itself: one file that needs nothing else.

Figures are inside it, it has no script, it fetches nothing.  It reads on a phone, in the dark, on paper.
Whatever comes from outside, a path most of all, is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from html import escape

from allometry.show.drawing import DARK, LIGHT, size_colors
from allometry.show.text import sentence


def document(title: str, lead: str, sections: Iterable[str], footer: str, sizes: int) -> str:
    """A whole page.

    Parameters
    ----------
    title, footer : str
        Plain text.
    lead : str
        HTML of the line below the title.
    sections : strings of HTML
        Empty ones are left out.
    sizes : int
        Number of colours that the figures need (``--size-0`` and so on).
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)}</title>\n'
        f"<style>{style(sizes)}</style>\n</head>\n<body>\n<main>\n<header><h1>{escape(title)}</h1>\n"
        f"<p>{lead}</p></header>\n"
        + "\n".join(section for section in sections if section)
        + f"\n</main>\n<footer>{escape(footer)}</footer>\n</body>\n</html>\n"
    )


def section(title: str, body: str) -> str:
    """A part of the page under a heading; ``body`` is HTML."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text, the first column its rows' names; it scrolls sideways where it has to."""
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{shown(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


def shown(cell: str) -> str:
    """What we wrote ourselves, for the page: numbers get a true minus."""
    return escape(re.sub(r"(?<![\w-])-(?=\d)", "−", cell))


def listing(facts: Sequence[tuple[str, str]], told: Callable[[str], str] = escape) -> str:
    """Names and what is told of each; ``told`` makes HTML of it."""
    return (
        "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{told(value)}</dd>" for name, value in facts) + "</dl>"
    )


def bullets(notes: Iterable[str]) -> str:
    """Notes as a list of sentences."""
    return "<ul>" + "".join(f"<li>{escape(sentence(note))}</li>" for note in notes) + "</ul>"


def style(sizes: int) -> str:
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
code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.93em;overflow-wrap:anywhere}
li{margin:.25rem 0;overflow-wrap:anywhere}
a{color:inherit}
footer{font-size:.85rem;border-top:1px solid var(--grid)}
@media (max-width:34rem){
section>dl{display:block}section>dl dd{margin-bottom:.6rem}
main,footer{padding-left:.75rem;padding-right:.75rem}
table{font-size:.85rem;min-width:0}th,td{padding-right:.55rem}
tbody th{white-space:normal;min-width:4.5rem}
}
@media print{
main,footer{max-width:none;padding:0}
section,figure,tr{break-inside:avoid}h2{break-after:avoid}
.wide,pre{overflow:visible}pre{white-space:pre-wrap}
}
"""
