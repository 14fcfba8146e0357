"""What a ``full`` run left behind: records, verdicts, seeds, environment, hashes of the code behind them.

Evidence knows when it is stale: when a module that the study imports has changed what it does.  A result read
from it judges by the table alone, as the run did, so a reader can check a verdict without running anything.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allometry.study.canonical import canonical, restore
from allometry.study.running import plan_of

if TYPE_CHECKING:
    from allometry.study.result import Result
    from allometry.study.study import Study

FILE = "result.json"


@dataclass(frozen=True)
class Evidence:
    """Evidence as it lies in a folder.

    Attributes
    ----------
    content : dict
        ``study``, ``profile``, ``design``, ``verdicts``, ``table``, ``modules``, ``environment``, ``digest``,
        ``tuned``, ``seconds``, ``device``.
    folder : Path
    """

    content: dict[str, Any]
    folder: Path

    @property
    def outcomes(self) -> list[str]:
        """How each claim fared."""
        return [one["outcome"] for one in self.content["verdicts"]]

    def stale(self, study: Study) -> list[str]:
        """Why this evidence no longer speaks for the study as it is; empty while it does."""
        profile = self.content["profile"]
        request, content = plan_of(study, profile, min(self.content["design"]["seeds"], default=0))
        reasons = []
        before, now = self.content["design"], json.loads(canonical(request["design"]))
        if canonical(before) != canonical(now):
            differ = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
            reasons.append(f"the study's {', '.join(differ)} changed since")
        was, modules = self.content["modules"], content["modules"]
        changed = sorted(name for name in was.keys() | modules.keys() if was.get(name) != modules.get(name))
        if changed and sorted(was.values()) != sorted(modules.values()):
            reasons.append(f"code changed since: {', '.join(changed)}")
        return reasons

    def result(self, study: Study) -> Result:
        """The result, with its table, for the study as it is declared now."""
        import pandas

        from allometry.study.result import Result

        told = self.content
        return Result(
            study, told["profile"], pandas.DataFrame(told["table"]), digest=told["digest"],
            modules=told["modules"], environment=told["environment"], tuned=told["tuned"],
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
    request, _ = plan_of(result.study, result.profile, int(result.table["seed"].min()))
    seconds = float(result.table["seconds"].sum()) if "seconds" in result.table else math.nan
    content = {
        "study": result.study.name, "question": result.study.question, "profile": result.profile,
        "command": f"allometry study run {result.study.name} --profile {result.profile}",
        "design": request["design"], "digest": result.digest,
        "verdicts": [one.to_dict() for one in result.verdicts],
        "tuned": result.tuned, "tuning": result.tuning, "seconds": seconds,
        "environment": result.environment, "modules": result.modules,
        "table": result.table.astype(object).where(result.table.notna(), None).to_dict("records"),
    }  # fmt: skip
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    file = place / FILE
    text = json.dumps(json.loads(canonical(content, place="evidence")), indent=1, ensure_ascii=False)
    part = file.with_suffix(".part")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(file)
    return file


def read(folder: str | Path) -> Evidence:
    """The evidence in a folder.

    Raises
    ------
    ValueError
        There is none, or it cannot be read.
    """
    file = Path(folder) / FILE
    try:
        return Evidence(restore(file.read_text(encoding="utf-8")), file.parent)
    except FileNotFoundError:
        raise ValueError(f"no evidence in {str(folder)!r}: it holds no {FILE}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(file)!r} cannot be read as evidence: {error}") from None
