"""A study's report: plain text for the terminal, and a folder with page, figure, table and evidence.

The page is one file that fetches nothing.  Outcomes are told by a sign and a word as well as by a colour.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from allometry.study.claim import Outcome, Verdict
from allometry.study.figure import caption, draw
from allometry.study.told import (
    MARKS,
    WORTH_HEAD,
    facts,
    means_table,
    notes,
    summary,
    tuning_table,
    worth_tables,
)

if TYPE_CHECKING:
    from allometry.study.result import Result

__all__ = ["draw", "leave_evidence", "page", "summary", "write"]

_CLASSES = {Outcome.HOLDS: "held", Outcome.CONTRADICTED: "refuted", Outcome.FALLS_SHORT: "short"}
_SHORT = ' style="border-color:var(--accent)"', ' style="color:var(--accent)"'


def write(result: Result, directory: str | Path) -> Path:
    """Write the report into a folder, each file whole or not at all; returns ``report.html`` in it.

    Beside the page: ``figure`` as .svg and .png, ``table.csv`` (one row a record, floats exact), and, when no
    trial is missing or failed, ``result.json``, which `allometry.study.evidence.read` reads.
    """
    from allometry.show.drawing import save, write_atomically
    from allometry.study.evidence import keep

    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    svg = save(draw(result), folder / "figure")
    write_atomically(folder / "table.csv", result.table.to_csv(index=False).encode())
    if result.complete:
        keep(result, folder)
    return write_atomically(folder / "report.html", page(result, svg).encode())


def leave_evidence(result: Result, directory: str | Path) -> Path:
    """Write what evidence consists of, ``result.json`` and ``figure.svg``, and return the folder.

    Raises
    ------
    ValueError
        Trials are missing or failed.
    """
    import io

    from allometry.show.drawing import style, write_atomically
    from allometry.study.evidence import keep

    file, text = keep(result, directory), io.StringIO()
    with style():
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # no block of metadata at all
        draw(result).savefig(text, format="svg", metadata=nothing)
    write_atomically(file.with_name("figure.svg"), text.getvalue().encode())
    return file.parent


def page(result: Result, svg: str) -> str:
    """The page's HTML around the figure's ``svg``."""
    from allometry import __version__
    from allometry.show.drawing import inline_svg
    from allometry.show.markup import bullets, document, listing, section, shown, table

    study = result.study
    colors = max(len(study.arms) - 2, 1)
    label = f"{study.measures[0]} over {study.shown.name} for {', '.join(study.arms)}"
    figure = inline_svg(svg, label, "figure", colors)
    sections = [
        *(claim_told(one) for one in result.verdicts),
        f"<figure>{figure}<figcaption>{escape(caption(result))}</figcaption></figure>",
    ]
    for measure in study.measures:
        sections.append(section(f"Means: {measure}", table(*means_table(result, measure))))
    sections[-1] += "<p><small>Mean over seeds ± half of its 95 % interval.</small></p>"
    found, reason = worth_tables(result)
    for title, rows, reasons in found:
        told = "".join(f"<p><small>{escape(said)}.</small></p>" for said in reasons)
        sections.append(section(title, table(WORTH_HEAD, rows) + told))
    remarks = notes(result)
    if reason and len(study.arms) > 1:
        remarks.append(f"worth in scale is left out: {reason}")
    if remarks:
        sections.append(section("Notes", bullets(remarks)))
    tuning = tuning_table(result)
    if tuning is not None:
        sections.append(section("What was tuned", table(*tuning)))
    sections.append(section("How it was made", listing(facts(result), shown) + _code(result)))
    links = '<p>Every record is in <a href="table.csv">table.csv</a>'
    if result.complete:
        links += ', all of the result in <a href="result.json">result.json</a>'
    sections.append(section("The numbers", links + ".</p>"))
    title = study.question
    lead = f"{escape(study.name)}, {escape(result.profile)} profile"
    return document(title, lead, sections, f"allometry {__version__}", colors)


def claim_told(verdict: Verdict) -> str:
    """A claim with its outcome, its rule in words, and what was compared: HTML."""
    claim, outcome = verdict.claim, verdict.outcome
    border, color = _SHORT if outcome is Outcome.FALLS_SHORT else ("", "")
    where = f" <small>({escape(claim.where)})</small>" if claim.where else ""
    lines = []
    if claim.threshold:
        lines.append(f"Rule: {claim.threshold}")
    lines += [str(one) for one in verdict.test.estimates]
    if verdict.test.reason:
        lines.append(f"Not seen at this scale: {verdict.test.reason}")
    from allometry.show.markup import shown

    below = "".join(f"<br><small>{shown(line)}</small>" for line in lines)
    return (
        f'<p class="verdict {_CLASSES.get(outcome, "open")}"{border}><strong{color}>{MARKS[outcome]} '
        f"{escape(str(outcome))}</strong> {escape(claim.sentence)}{where}{below}</p>"
    )


def _code(result: Result) -> str:
    """The modules behind the numbers, each with the beginning of its hash, folded away."""
    if not result.modules:
        return ""
    rows = "".join(
        f"<li><code>{escape(name)}</code> <small>{escape(digest[:12])}</small></li>"
        for name, digest in sorted(result.modules.items())
    )
    count = len(result.modules)
    return (
        f"<p></p><details><summary>{count} module{'' if count == 1 else 's'} of code behind it</summary>"
        f"<ul>{rows}</ul></details>"
    )
