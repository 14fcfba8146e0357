"""What a ``full`` run left behind: records, verdicts, seeds, environment, hashes of the code behind them.

Evidence lies in ``evidence/<study>/``: with the user, in the repository, or inside the installed package.  It
knows when it is stale: when a definition that the study reaches has changed what it does.  A result read
from it judges by the table alone, as the run did, so a reader can check a verdict without running anything.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allometry.show.drawing import write_atomically
from allometry.study.canonical import canonical, restore
from allometry.study.claim import Outcome
from allometry.study.running import plan_of
from allometry.study.sources import counts

if TYPE_CHECKING:
    import pandas

    from allometry.study.result import Result
    from allometry.study.study import Study

FILE = "result.json"
WORST_FIRST = (Outcome.CONTRADICTED, Outcome.FALLS_SHORT, Outcome.UNDECIDED, Outcome.HOLDS)


@dataclass(frozen=True)
class Evidence:
    """Evidence as it lies in a folder.

    Attributes
    ----------
    content : dict
        ``study``, ``profile``, ``design``, ``verdicts``, ``table``, ``modules``, ``environment``, ``digest``,
        ``definitions``, ``tuned``, ``seconds``.
    folder : Path
    """

    content: dict[str, Any]
    folder: Path

    @property
    def outcomes(self) -> list[str]:
        """How each claim fared."""
        return [one["outcome"] for one in self.content["verdicts"]]

    @property
    def verdict(self) -> str:
        """All of them in one word: the least favourable."""
        found = [one for one in WORST_FIRST if one in self.outcomes]
        return str(found[0]) if found else "no claim"

    def stale(self, study: Study) -> list[str]:
        """Why this evidence no longer speaks for the study as it is; empty while it does."""
        profile = self.content["profile"]
        request, content = plan_of(study, profile, min(self.content["design"]["seeds"], default=0))
        reasons = []
        before, now = self.content["design"], json.loads(canonical(request["design"]))
        if canonical(before) != canonical(now):
            differ = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
            reasons.append(f"the study's {', '.join(differ)} changed since")
        kind = "definitions" if self.content.get("definitions") else "modules"  # older evidence has none
        was = {name: code for name, code in self.content[kind].items() if counts(name)}
        modules = content[kind]
        changed = sorted(name for name in was.keys() | modules.keys() if was.get(name) != modules.get(name))
        if changed and sorted(was.values()) != sorted(modules.values()):
            reasons.append(f"code changed since: {', '.join(changed)}")
        return reasons

    def result(self, study: Study) -> Result:
        """The result, with its table, for the study as it is declared now."""
        import pandas

        from allometry.study.result import Result

        told = self.content
        table = pandas.DataFrame(told["table"])
        for name in study.measures:  # of which all runs may have diverged
            if name in table:
                table[name] = pandas.to_numeric(table[name])
        return Result(
            study, told["profile"], table, digest=told["digest"],
            modules=told["modules"], definitions=told.get("definitions", {}),
            environment=told["environment"], tuned=told["tuned"], tuning=told["tuning"],
        )  # fmt: skip


def keep(result: Result, folder: str | Path) -> Path:
    """Write a result's evidence into a folder; returns the file.

    Raises
    ------
    ValueError
        Trials are missing or failed: evidence is of whole runs.
    """
    if not result.complete:
        bad = result.table[~result.table["status"].isin(["done", "diverged"])]
        raise ValueError(
            f"{len(bad)} of {len(result.table)} records of {result.study.name} are missing or failed "
            f"(first: {bad['run'].iloc[0]}); run it again before keeping evidence"
        )
    from allometry.study.told import command

    request, _ = plan_of(result.study, result.profile, int(result.table["seed"].min()))
    seconds = float(result.table["seconds"].sum()) if "seconds" in result.table else math.nan
    content = {
        "study": result.study.name, "question": result.study.question, "profile": result.profile,
        "command": command(result),
        "design": request["design"], "digest": result.digest,
        "verdicts": [one.to_dict() for one in result.verdicts],
        "tuned": result.tuned, "tuning": result.tuning, "seconds": seconds,
        "environment": result.environment, "modules": result.modules, "definitions": result.definitions,
    }  # fmt: skip
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    file = place / FILE
    write_atomically(file, _text(content, result.table).encode())
    return file


def _text(content: dict[str, Any], table: pandas.DataFrame) -> str:
    """The file: a field a line, and of the table a record a line, so that a change reads well in a diff."""
    head = json.dumps(json.loads(canonical(content, place="evidence")), indent=1, ensure_ascii=False)
    columns = json.dumps(list(map(str, table.columns)), ensure_ascii=False)
    values = table.astype(object).where(table.notna(), None).to_numpy().tolist()
    rows = ",\n".join(
        "   " + json.dumps(json.loads(canonical(row, place="the table")), ensure_ascii=False)
        for row in values
    )
    return f'{head[:-2]},\n "table": {{\n  "columns": {columns},\n  "rows": [\n{rows}\n  ]\n }}\n}}\n'


def read(folder: str | Path) -> Evidence:
    """The evidence in a folder.

    Raises
    ------
    ValueError
        There is none, or it cannot be read.
    """
    file = Path(folder) / FILE
    try:
        content = restore(file.read_text(encoding="utf-8"))
        table = content["table"]
        content["table"] = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
        return Evidence(content, file.parent)
    except FileNotFoundError:
        raise ValueError(f"no evidence in {str(folder)!r}: it holds no {FILE}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(file)!r} cannot be read as evidence: {error}") from None


def places() -> list[Path]:
    """Folders that hold evidence, the nearest first: here, beside the sources, inside the package."""
    package = Path(__file__).resolve().parents[1]
    found = [Path("evidence")]
    if (package.parents[1] / "pyproject.toml").is_file():  # installed from a checkout, to be edited there
        found.append(package.parents[1] / "evidence")
    return [place for place in (*found, package / "evidence") if place.is_dir()]


def find(name: str) -> Evidence | None:
    """The nearest evidence of the study of that name; None where there is none.

    Raises
    ------
    ValueError
        It cannot be read.

    Examples
    --------
    >>> find("no-such-study") is None
    True
    """
    for place in places():
        if (place / name / FILE).is_file():
            return read(place / name)
    return None
