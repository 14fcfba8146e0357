"""What is said of a study's result, gathered once for the terminal, the page and for programs.

Verdicts come first, then means with their intervals, then what the arms are worth in scale, what was tuned,
and what is missing.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from allometry.show.text import WIDE, aligned, columns, cut, wrapped
from allometry.study.claim import SEEDS, Estimate, Outcome, Verdict
from allometry.study.figure import averaged, lost, panels, place_name
from allometry.study.study import finite

if TYPE_CHECKING:
    from allometry.study.result import Result
    from allometry.study.study import Study

SCALES = 3  # the fewest on the first axis for a curve, and so for worth
MARKS = {Outcome.HOLDS: "✓", Outcome.FALLS_SHORT: "◐", Outcome.CONTRADICTED: "✗", Outcome.UNDECIDED: "?"}
WORTH_HEAD = ["", "worth", "trend", "least that could be seen", "p (Holm)"]


# --- the terminal ------------------------------------------------------------------------------------------
def summary(result: Result) -> str:
    """All that matters in at most a hundred columns of plain text, verdicts first."""
    study = result.study
    seeds = result.table["seed"].nunique()
    lines = [f"{study.name}, {result.profile} profile, {seeds} seed{'' if seeds == 1 else 's'}"]
    lines += textwrap.wrap(study.question, WIDE)
    for verdict in result.verdicts:
        lines += ["", *verdict_lines(verdict)]
    lines += ["", *_fitting(*means_table(result))]
    lines += [f"Mean over {' and '.join(averaged(result))}."] if averaged(result) else []
    found, reason = worth_tables(result)
    for title, rows, reasons in found:
        lines += ["", title, *(f"  {line}" for line in _fitting(WORTH_HEAD, rows))]
        lines += [f"  {line}" for said in reasons for line in textwrap.wrap(f"{said}.", WIDE - 2)]
    if reason and len(study.arms) > 1:
        lines += ["", *textwrap.wrap(f"Worth is left out: {reason}.", WIDE)]
    if result.tuned:
        lines += ["", "Tuned", *(f"  {line}" for line in aligned(tuned_facts(result)))]
    told = notes(result)
    if told:
        lines += ["", "Notes", *(line for note in told for line in wrapped(note))]
    return "\n".join(part.rstrip() for line in lines for part in cut(line))


def verdict_lines(verdict: Verdict) -> list[str]:
    """Outcome and sentence, and below them what was compared.

    >>> from allometry.study.claim import Claim, Estimate
    >>> verdict = Claim("It is small.", lambda result: Estimate.closed_form(0.1, what="it") < 1).judge(None)
    >>> verdict_lines(verdict)
    ['✓ holds         It is small.', '                it 0.1 (closed form)']
    """
    head = f"{MARKS[verdict.outcome]} {verdict.outcome!s}"
    told = [(f"{head:<16}", verdict.claim.sentence)]
    told += [(" " * 16, str(one)) for one in verdict.test.estimates]
    if verdict.test.reason:
        told.append((" " * 16, f"not seen at this scale: {verdict.test.reason}"))
    return [
        line
        for start, text in told
        for line in textwrap.wrap(
            text, WIDE, initial_indent=start, subsequent_indent=" " * 16, break_on_hyphens=False
        )
    ]


def _fitting(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines; turned on its side, and at last told item by item, where it is too wide."""
    turned = [list(column) for column in zip(*([*head], *rows), strict=True)]
    for lines in (columns(head, rows), columns(turned[0], turned[1:])):
        if all(len(line) <= WIDE - 2 for line in lines):
            return lines
    told = [(f"{row[0]}, {name}", cell) for row in rows for name, cell in zip(head[1:], row[1:], strict=True)]
    return aligned(told)


# --- what is said, for terminal and page alike -------------------------------------------------------------
def means_table(result: Result, measure: str | None = None) -> tuple[list[str], list[list[str]]]:
    """Head and rows: a value of the axis shown a row, an arm a column, other axes' places apart."""
    study, name = result.study, measure or result.study.measures[0]
    first = study.shown
    rows = []
    for place in panels(result):
        for value in first.values(result.profile):
            at = {first.name: value, **place}
            cells = [mean_told(result, arm, name, at) for arm in study.arms]
            rows.append([f"{value}" + (f", {place_name(place)}" if place else ""), *cells])
    return [f"{name} by {first.name}", *study.arms], rows


def mean_told(result: Result, arm: str, measure: str, at: Mapping[str, Any]) -> str:
    """A mean with its half-width, or why there is none."""
    rows = result.rows(arm, at)
    runs = rows.groupby("run")["status"].first()
    if not len(runs):
        return "missing"
    count = {status: int((runs == status).sum()) for status in ("failed", "missing")}
    count["diverged"] = int(lost(rows, measure).groupby(rows["run"]).any().sum())
    for status, found in count.items():
        if found:
            return status if found == len(runs) else f"{found} of {len(runs)} {status}"
    return plus_minus(result.mean(arm, measure, at=at))


def plus_minus(one: Estimate) -> str:
    """Mean and half-width, with no more digits than the latter allows.

    >>> plus_minus(Estimate(0.123456, 0.122256, 0.124656, n=3)), plus_minus(Estimate.closed_form(2.0))
    ('0.1235 ± 0.0012', '2')
    """
    half = (one.high - one.low) / 2.0
    if not math.isfinite(one.value):
        return "not finite"
    if one.exact or not math.isfinite(half) or half < 1e-12 * abs(one.value):
        return f"{one.value:.6g}" if one.exact else f"{one.value:.4g}"
    if half > 0 and 1e-4 <= max(abs(one.value), half) < 1e6:
        digits = min(8, max(0, 1 - math.floor(math.log10(half))))
        return f"{one.value:.{digits}f} ± {half:.{digits}f}"
    return f"{one.value:.4g} ± {half:.2g}"


def worth_tables(result: Result) -> tuple[list[WorthTable], str]:
    """What each arm is worth in scale, or the reason why it is left out.

    Over the first axis, and where the study counts its cost, over the total cost beside it.
    """
    study, table = result.study, result.table
    first = study.axes[0]
    values = first.values(result.profile)
    if len(study.arms) < 2:
        return [], "there is one arm"
    if not all(finite(value) for value in values):
        return [], f"{first.name} is not a scale in numbers"
    if len(values) < SCALES or table["seed"].nunique() < SEEDS:
        return [], f"it needs {SCALES} values of {first.name} and {SEEDS} seeds"
    if study.lower_is_better is not True:
        return [], f"it is read from losses, and {better_told(study)}"
    if not result.complete:
        return [], "runs are missing or failed"
    if averaged(result, first):
        return [], f"the study has more places on {' and '.join(averaged(result, first))} than can be shown"
    found = []
    try:
        for unit in dict.fromkeys((first.name, study.cost or first.name)):
            for place in panels(result, first):
                where = f" at {place_name(place)}" if place else ""
                title = f"Worth in {unit}{where}, at the largest, 90 % sets"
                found.append(WorthTable(title, *_worth_rows(result, unit, place)))
    except (ValueError, ImportError) as error:
        return [], str(error).rstrip(".")
    return found, ""


def better_told(study: Study) -> str:
    """Which way the study's first measure is better, in words.

    >>> from allometry.study import Study, axis
    >>> better_told(Study("a", "?", ["b"], axis("n", 1), "movement", lower_is_better=None))
    'movement is neither good nor bad'
    """
    if study.lower_is_better is None:
        return f"{study.measures[0]} is neither good nor bad"
    return f"{'less' if study.lower_is_better else 'more'} {study.measures[0]} is better"


class WorthTable(NamedTuple):
    """What the arms are worth: title, rows under `WORTH_HEAD`, and why a set is open or missing."""

    title: str
    rows: list[list[str]]
    reasons: list[str]


def _worth_rows(result: Result, unit: str, at: Mapping[str, Any]) -> tuple[list[list[str]], list[str]]:
    from allometry.laws import worths

    study = result.study
    curves = {arm: result.curve(arm, x=unit, at=at) for arm in study.arms}
    base = curves.pop(study.base)
    rows, reasons = [], []
    for arm, row in worths(base, curves, unit=unit).iterrows():
        low, high = f"{row['low']:.3g}", f"{row['high']:.3g}"
        size = {
            "interval": f"{row['factor']:.3g}× ({low} to {high})",
            "at least": f"at least {low}×",
            "at most": f"at most {high}×",
        }.get(row["kind"], "undetermined")
        least = f"{row['minimum_detectable']:.3g}×" if finite(float(row["minimum_detectable"])) else ""
        holm = f"{row['adjusted_p']:.2g}" if finite(float(row["adjusted_p"])) else ""
        rows.append([str(arm), size, str(row["trend"]), least, holm])
        if row["reason"]:
            reasons.append(f"{arm}: {row['reason']}")
    return rows, reasons


def tuned_facts(result: Result) -> list[tuple[str, str]]:
    """By arm, what tuning chose."""
    arms = list(result.study.arms)
    return [
        (where, ", ".join(f"{name} {value}" for name, value in chosen.items()))
        for where, chosen in sorted(result.tuned.items(), key=lambda pair: _rank(pair[0], arms))
    ]


def _rank(where: str, arms: Sequence[str]) -> int:
    """The arms' own order, for places that begin with an arm's name."""
    return next((i for i, arm in enumerate(arms) if where == arm or where.startswith(f"{arm}/")), len(arms))


def tuning_table(result: Result) -> tuple[list[str], list[list[str]]] | None:
    """Head and rows of what tuning looked at: mean of its measure by arm and value, the chosen one marked."""
    study, tune = result.study, result.study.tune
    if tune is None or not result.tuning:
        return None
    grid = [value for value, *_ in next(iter(result.tuning.values()))]
    rows = []
    arms = list(study.arms)
    for where, scores in sorted(result.tuning.items(), key=lambda pair: _rank(pair[0], arms)):
        chosen = result.tuned.get(where, {}).get(tune.name)
        cells = []
        for value, *losses in scores:
            mean = sum(losses) / len(losses) if losses else math.nan
            told = f"{mean:.4g}" if math.isfinite(mean) else "diverged"
            cells.append(f"{told} ←" if value == chosen else told)
        rows.append([where, *cells])
    return [f"{tune.on} by {tune.name}", *map(str, grid)], rows


def notes(result: Result) -> list[str]:
    """What is missing, and what a reader should not conclude."""
    table, told = result.table, []
    runs = table.drop_duplicates("run")
    for status, word in (("failed", "failed"), ("missing", "have not run")):
        bad = runs[runs["status"] == status]
        if len(bad):
            row = bad.iloc[0]
            reason = row.get("reason")
            said = f" (first: {row['run']}" + (f": {reason}" if isinstance(reason, str) else "") + ")"
            told.append(f"{len(bad)} of {len(runs)} runs {word}{said}")
    diverged = runs[runs["status"] == "diverged"]
    if len(diverged):
        by = ", ".join(f"{count} of {arm}" for arm, count in diverged["arm"].value_counts().items())
        told.append(f"{len(diverged)} of {len(runs)} runs diverged: {by}")
    told += _at_the_edge(result)
    seeds = table["seed"].nunique()
    if seeds < SEEDS:
        told.append(f"{seeds} seed{'' if seeds == 1 else 's'}: fewer than {SEEDS} decide nothing")
    if result.profile == "tiny":
        told.append("a tiny run shows that everything runs, and says nothing about the question")
    elif result.profile == "quick":
        told.append("a quick run shows a direction; verdicts that count come from the full profile")
    return told


def _at_the_edge(result: Result) -> list[str]:
    """Choices of tuning beyond which a better one may lie."""
    tune = result.study.tune
    if tune is None or result.profile == "tiny":
        return []
    grid = [value for value in tune.grid(result.profile) if finite(value)]
    ends = {min(grid), max(grid)} if len(grid) > 1 else set()
    told = [where for where, chosen in result.tuned.items() if chosen.get(tune.name) in ends]
    if not told:
        return []
    return [f"the {tune.name} chosen for {', '.join(told)} is the last of its grid; a better may lie beyond"]


def facts(result: Result) -> list[tuple[str, str]]:
    """How the result was made."""
    study = result.study
    made = result.environment
    system = f"Python {made.get('python', '?')}, {made.get('system', '?')} {made.get('machine', '')}".strip()
    packages = ", ".join(f"{name} {version}" for name, version in made.get("packages", {}).items())
    seconds = float(result.table["seconds"].sum()) if "seconds" in result.table else math.nan
    settings = study.profile(result.profile).settings
    seeds = sorted(result.table["seed"].unique())
    rows = [
        ("command", command(result)),
        ("profile", result.profile),
        ("seeds", f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}"),
        ("arms", "; ".join(_arm_told(arm) for arm in study.arms.values())),  # type: ignore[union-attr]
        *((one.name, ", ".join(map(str, one.values(result.profile)))) for one in study.axes),
        ("settings", ", ".join(f"{name} {value}" for name, value in settings.items())),
        ("runs", f"{result.table['run'].nunique()}"),
        ("time in trials", f"{seconds:.0f} s" if math.isfinite(seconds) and seconds > 0 else ""),
        ("made with", system),
        ("packages", packages),
        ("plan", result.digest[:12]),
    ]
    return [(name, told) for name, told in rows if told]


def _arm_told(arm: Any) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in arm.settings.items())
    return f"{arm} ({settings})" if settings else str(arm)


def command(result: Result) -> str:
    """The command that makes it again."""
    study, first = result.study, int(result.table["seed"].min())
    module, file = study.home
    named = module.startswith("allometry.papers.") or not file
    place = f"{Path(file).name}:{study.name}"
    return f"allometry study run {study.name if named else place} --profile {result.profile}" + (
        f" --seed {first}" if first else ""
    )


def to_dict(result: Result) -> dict[str, Any]:
    """The result for programs: verdicts, means, what was tuned, notes, and the table by records."""
    study = result.study
    first = study.shown
    means = [
        {"arm": str(arm), first.name: value, **place, "mean": one.value, "low": one.low, "high": one.high,
         "n": one.n}
        for arm in study.arms for place in panels(result) for value in first.values(result.profile)
        for one in (result.mean(arm, at={first.name: value, **place}),)
    ]  # fmt: skip
    return {
        "study": study.name, "question": study.question, "profile": result.profile,
        "complete": result.complete, "verdict": result.verdict,
        "verdicts": [one.to_dict() for one in result.verdicts], "measure": study.measures[0],
        "means": means, "tuned": result.tuned, "notes": notes(result), "plan": result.digest,
        "table": result.table.astype(object).where(result.table.notna(), None).to_dict("records"),
    }  # fmt: skip
