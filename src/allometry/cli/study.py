"""``allometry study``: questions about scale, those of papers and one's own: list, show, run, compare, begin.

A study is named as ``small-scale-proxies`` or ``scaling-law-crossover/decay``, or by its file: ``mine.py``,
or ``mine.py:name`` where the file holds several.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from allometry.study import Result, Study

app = typer.Typer(
    help="Questions about scale: those of papers, and your own.", no_args_is_help=True, rich_markup_mode=None
)

_PROFILES = ("tiny", "quick", "full", "large")
NameArgument = Annotated[str, typer.Argument(help="A study's name, FILE.py, or FILE.py:STUDY.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
StoreOption = Annotated[
    str | None, typer.Option(help="Where records go: a file or a database URL; .allometry/store.db.")
]


# --- finding -----------------------------------------------------------------------------------------------
def named(text: str) -> Study:
    """The study of that name, or in that file.

    Raises
    ------
    ValueError
        There is none, or the file has several.
    """
    file, mark, wanted = text.partition(".py:") if ".py:" in text else (text, "", "")
    if not mark and not text.endswith(".py"):
        from allometry.papers import study

        return study(text)
    from allometry.study import Study
    from allometry.study.cells import load

    path = file + ".py" if mark else file
    found = {name: value for name, value in vars(load(path)).items() if isinstance(value, Study)}
    for paper in list(vars(load(path)).values()):
        if not isinstance(paper, type):
            found |= {one.name: one for one in getattr(paper, "studies", ()) if isinstance(one, Study)}
    if wanted:
        for name, one in found.items():
            if wanted in (name, one.name):
                return one
        known = ", ".join(sorted({one.name for one in found.values()})) or "none"
        raise ValueError(f"{path} declares no study {wanted!r}; it declares {known}")
    different = list({id(one): one for one in found.values()}.values())
    if len(different) == 1:
        return different[0]
    if not different:
        raise ValueError(f"{path} declares no study: give it a Study at its top level")
    names = ", ".join(one.name for one in different)
    raise ValueError(f"{path} declares the studies {names}; name one, as in {path}:{different[0].name}")


def evidence_facts(study: Study) -> dict[str, Any]:
    """What evidence there is of a study, and whether it still speaks for it."""
    from allometry.study.evidence import find

    found = find(study.name)
    if found is None:
        return {"verdict": None, "outcomes": [], "stale": [], "folder": None}
    return {
        "verdict": found.verdict, "outcomes": found.outcomes, "stale": found.stale(study),
        "folder": str(found.folder), "profile": found.content["profile"],
    }  # fmt: skip


def evidence_told(facts: dict[str, Any]) -> str:
    """Evidence in a word or two.

    >>> evidence_told({"verdict": "holds", "stale": ["code changed"]})
    'holds, stale'
    """
    if facts["verdict"] is None:
        return "no evidence"
    return str(facts["verdict"]) + (", stale" if facts["stale"] else "")


def study_facts(study: Study, profile: str | None = None) -> dict[str, Any]:
    """All that a study declares, JSON-able."""
    profiles = [profile] if profile is not None else list(study.profiles)
    return {
        "name": study.name, "question": study.question,
        "arms": {name: dict(arm.settings) for name, arm in study.arms.items()},  # type: ignore[union-attr]
        "axes": [
            {"name": one.name, "unit": one.unit, "log": one.log, "recorded": one.recorded,
             "values": {name: list(one.values(name)) for name in profiles}}
            for one in study.axes
        ],
        "measures": list(study.measures), "lower_is_better": study.lower_is_better,
        "profiles": {
            name: {"seeds": found.seeds, "settings": dict(found.settings), "trials": len(study.cells(name))}
            for name in profiles
            for found in (study.profile(name),)
        },
        "tune": None if study.tune is None else study.tune.design(profiles[0]),
        "requires": list(study.requires),
        "claims": [
            {"claim": one.sentence, "where": one.where, "threshold": one.threshold} for one in study.claims
        ],
    }  # fmt: skip


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


# --- list, show --------------------------------------------------------------------------------------------
@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """All studies of all papers, with what evidence there is."""
    from allometry.forecast.report import to_json
    from allometry.papers import entries
    from allometry.show.text import columns

    found: list[dict[str, Any]] = [
        {"name": study.name, "paper": paper.slug, "arms": list(study.arms),
         "axes": [one.name for one in study.axes], "claims": len(study.claims),
         "evidence": evidence_facts(study)}
        for paper in entries() for study in paper.studies
    ]  # fmt: skip
    if as_json:
        print(to_json(found))
        return
    if not found:
        print("There are no studies: no entry of a paper is installed.")
        return
    rows = [
        [
            one["name"],
            f"{len(one['arms'])}",
            one["axes"][0],
            f"{one['claims']}",
            evidence_told(one["evidence"]),
        ]
        for one in found
    ]
    print("\n".join(line.rstrip() for line in columns(["study", "arms", "over", "claims", "evidence"], rows)))


@app.command("show")
def show(
    name: NameArgument,
    profile: Annotated[str | None, typer.Option(help="tiny, quick, full or large; all of them.")] = None,
    as_json: JsonOption = False,
) -> None:
    """A study's question, arms, axes, and claims with the rules that judge them; how to run it."""
    from allometry.forecast.report import to_json

    study = named(name)
    if profile is not None:
        study.profile(profile)  # refuses what there is not
    facts = study_facts(study, profile)
    facts["evidence"] = evidence_facts(study)
    facts["run"] = f"allometry study run {name} --profile {profile or next(iter(study.profiles))}"
    print(to_json(facts) if as_json else study_text(facts))


def study_text(facts: dict[str, Any]) -> str:
    """A study for a person."""
    from allometry.cli.runs import aligned
    from allometry.show.text import wrapped

    arms = "; ".join(
        name + (f" ({', '.join(f'{key} {value}' for key, value in settings.items())})" if settings else "")
        for name, settings in facts["arms"].items()
    )
    told = {"study": facts["name"], "question": facts["question"], "arms": arms}
    for one in facts["axes"]:
        for profile, values in one["values"].items():
            told[f"{one['name']}, {profile}"] = ", ".join(map(str, values)) + f" {one['unit']}".rstrip()
    told["measures"] = ", ".join(facts["measures"])
    for profile, one in facts["profiles"].items():
        settings = ", ".join(f"{key} {value}" for key, value in one["settings"].items())
        told[profile] = (
            _count(one["seeds"], "seed") + f", {one['trials']} trials" + (f"; {settings}" if settings else "")
        )
    if facts["tune"]:
        told["tuned"] = f"{facts['tune']['name']} by {facts['tune']['on']}, for each arm"
    lines = aligned(told)
    outcomes = facts["evidence"]["outcomes"]
    for index, one in enumerate(facts["claims"]):
        where = f" ({one['where']})" if one["where"] else ""
        lines += ["", *aligned({f"claim {index + 1}": one["claim"] + where})]
        if one["threshold"]:
            lines += aligned({"rule": one["threshold"]}, indent="  ")
        if index < len(outcomes):
            lines += aligned({"evidence": outcomes[index]}, indent="  ")
    found = facts["evidence"]
    place = f", in {found['folder']}" if found["folder"] else ""
    lines += ["", *aligned({"evidence": evidence_told(found) + place,
                            "run": facts["run"]})]  # fmt: skip
    lines += [line for reason in found["stale"] for line in wrapped(reason)]
    return "\n".join(lines)


# --- run ---------------------------------------------------------------------------------------------------
@app.command("run")
def run(
    name: NameArgument,
    profile: Annotated[
        str, typer.Option(help="tiny (seconds), quick (a minute), full (evidence) or large.")
    ] = "quick",
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    store: StoreOption = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Worker processes; as many as cores by default, 0 for none, as a tiny run has."),
    ] = None,
    executor: Annotated[
        str, typer.Option(help="local: processes of this machine; ray: a Ray cluster, with the same numbers.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="The Ray cluster's host:port; the one this machine is in by default.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder for report.html, figure, table.csv and result.json.")
    ] = None,
    evidence: Annotated[
        Path | None, typer.Option(help="Keep result and figure under this folder: full profile only.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run the trials that are missing, and judge the claims; stop it at any time, the same call goes on."""
    from allometry.forecast.report import to_json
    from allometry.study.report import leave_evidence
    from allometry.study.told import to_dict

    if executor not in ("local", "ray"):
        raise ValueError(f"--executor is local or ray, not {executor!r}")
    if workers is not None and workers < 0:
        raise ValueError(f"--workers is the number of processes, 0 or more, not {workers}")
    study = named(name)
    study.profile(profile)
    if evidence is not None:
        if profile != "full":
            raise ValueError(f"evidence is of the full profile, not of {profile!r}; use --report for others")
        if name != study.name:
            raise ValueError("evidence is of papers' studies; a study of your own leaves a --report")
    result = study.run(
        profile, seed=seed, store=store, workers=workers, executor=executor, address=address, tell=_say
    )
    if report is not None:
        _say(f"Written: {result.report(report)}")
    if evidence is not None and result.complete:
        _say(f"Evidence: {leave_evidence(result, evidence / study.name)}")
    print(to_json(to_dict(result)) if as_json else result)
    if not result.complete:
        _say("Some trials failed: see the notes. The same command tries them again.")
        raise typer.Exit(1)


# --- compare -----------------------------------------------------------------------------------------------
@app.command("compare")
def compare(
    name: NameArgument,
    first: Annotated[
        str, typer.Argument(help="A profile that was run, 'evidence', or a folder with result.json.")
    ],
    second: Annotated[str, typer.Argument(help="Another.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Two results of one study side by side: means, differences, and whether they agree; verdicts."""
    from allometry.forecast.report import to_json
    from allometry.show.text import columns
    from allometry.study.agreement import compare as beside

    study = named(name)
    one, other = (_result(study, text, store) for text in (first, second))
    table = beside(one, other)
    verdicts = [
        {"claim": ours.claim.sentence, "first": str(ours.outcome), "second": str(theirs.outcome)}
        for ours, theirs in zip(one.verdicts, other.verdicts, strict=True)
    ]
    judged = table["agree"].dropna()
    if as_json:
        told = {"study": study.name, "first": first, "second": second, "verdicts": verdicts,
                "agree": int((judged == True).sum()), "judged": len(judged),  # noqa: E712
                "table": table.astype(object).where(table.notna(), None).to_dict("records")}  # fmt: skip
        print(to_json(told))
        return
    axes = [axis.name for axis in study.axes]
    rows = [
        [" ".join([row["arm"], *(f"{axis} {row[axis]}" for axis in axes)]),
         f"{row['first']:.4g}", f"{row['second']:.4g}", f"{row['difference']:+.3g}",
         f"{row['low']:+.3g} to {row['high']:+.3g}" if math.isfinite(row["low"]) else "",
         {True: "yes", False: "no"}.get(row["agree"], "unknown")]
        for row in table.to_dict("records")
    ]  # fmt: skip
    lines = [
        f"{study.name}: {study.measures[0]} of {first} and {second}, 95 % intervals of the difference",
        "",
    ]
    lines += columns(["", "first", "second", "difference", "interval", "agree"], rows)
    agree = sum(bool(value) for value in judged)
    lines += ["", f"{agree} of {len(judged)} points agree; chance alone would leave about 95 % of them so."]
    other_data = int((table["same_data"] == False).sum())  # noqa: E712
    if other_data:
        lines += [f"{_count(other_data, 'point')} not compared: the data differ, by their digests."]
    lines += [""] if verdicts else []
    lines += [f"{one['first']:>13} | {one['second']:<13} {one['claim']}" for one in verdicts]
    print("\n".join(line.rstrip() for line in lines))


def _result(study: Study, text: str, store: str | None) -> Result:
    """What was found in a folder, kept as evidence, or stored of a profile."""
    from allometry.study.evidence import find, read

    if text in _PROFILES and not (Path(text) / "result.json").is_file():
        return study.result(text, store=store)
    found = find(study.name) if text == "evidence" else read(text)
    if found is None:
        raise ValueError(
            f"there is no evidence of {study.name}; run it with --profile full --evidence evidence"
        )
    if found.content["study"] != study.name:
        raise ValueError(f"{text} holds a result of {found.content['study']}, not of {study.name}")
    for reason in found.stale(study):
        _say(f"{text} is stale: {reason}")
    return found.result(study)


# --- new ---------------------------------------------------------------------------------------------------
@app.command("new")
def new(
    file: Annotated[Path, typer.Argument(help="The file to write, such as mine.py.")],
    kind: Annotated[str, typer.Option(help="optimizer, init or technique.")] = "technique",
    as_json: JsonOption = False,
) -> None:
    """Write a study of your own that runs as it is; change one function in it."""
    from allometry.forecast.report import to_json
    from allometry.show.drawing import write_atomically
    from allometry.study.starting import first_file

    if file.suffix != ".py":
        raise ValueError(f"a study is a Python file; {str(file)!r} does not end in .py")
    if file.exists():
        raise ValueError(f"{file} is there already and is not written over; choose another name")
    text = first_file(kind, file.name)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, text.encode())
    run_by = f"allometry study run {file} --profile tiny"
    print(
        to_json({"file": str(file), "kind": kind, "run": run_by})
        if as_json
        else f"{file} written. Run it:\n{run_by}"
    )
