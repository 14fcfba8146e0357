"""``allometry paper``: the papers that run here: what each says, what it brings, what came out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from allometry.cli.study import JsonOption, evidence_facts, evidence_told

if TYPE_CHECKING:
    from allometry.papers import Paper

app = typer.Typer(help="Papers whose claims run here.", no_args_is_help=True, rich_markup_mode=None)


def paper_facts(paper: Paper) -> dict[str, Any]:
    """All that an entry tells, JSON-able."""
    return {
        "slug": paper.slug, "title": paper.title, "authors": paper.authors, "year": paper.year,
        "venue": paper.venue or None, "url": paper.url, "summary": paper.summary, "parts": list(paper.parts),
        "studies": [
            {"name": study.name, "question": study.question, "claims": len(study.claims),
             "evidence": evidence_facts(study)}
            for study in paper.studies
        ],
    }  # fmt: skip


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """All papers that run here, with what evidence there is."""
    from allometry.forecast.report import to_json
    from allometry.papers import entries
    from allometry.show.text import columns

    found = [paper_facts(paper) for paper in entries()]
    if as_json:
        print(to_json(found))
        return
    if not found:
        print("No entry of a paper is installed.")
        return
    rows = []
    for one in found:
        told = [evidence_told(study["evidence"]) for study in one["studies"]]
        rows.append([one["slug"], f"{one['year']}", f"{len(told)}", "; ".join(dict.fromkeys(told))])
    print("\n".join(line.rstrip() for line in columns(["paper", "year", "studies", "evidence"], rows)))


@app.command("show")
def show(
    slug: Annotated[str, typer.Argument(help="The paper's short name, as `paper list` has it.")],
    as_json: JsonOption = False,
) -> None:
    """A paper: title, authors, link, what it says, what it brings, its studies and their evidence."""
    from allometry.cli.runs import aligned
    from allometry.forecast.report import to_json
    from allometry.papers import entry

    facts = paper_facts(entry(slug))
    if as_json:
        print(to_json(facts))
        return
    told = {"paper": facts["title"], "authors": facts["authors"], "year": str(facts["year"])}
    told |= {"venue": facts["venue"]} if facts["venue"] else {}
    told |= {
        "link": facts["url"],
        "summary": facts["summary"],
        "brings": ", ".join(facts["parts"]) or "no parts",
    }
    lines = aligned(told)
    for study in facts["studies"]:
        lines += ["", *aligned({"study": study["name"]})]
        lines += aligned({"question": study["question"], "claims": str(study["claims"]),
                          "evidence": evidence_told(study["evidence"]),
                          "run": f"allometry study run {study['name']}"}, indent="  ")  # fmt: skip
    print("\n".join(lines))
