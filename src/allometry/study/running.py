"""Running a study: what is missing runs, what is there stays, and the rules were written down before.

The plan, stored and hashed before anything runs, holds the design, the hashes of the claims' rules and of the
code behind the study.  A changed optimizer, rule or grid is another plan; a comment is not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from allometry.study.cells import tasks, tuning_cells
from allometry.study.definitions import definitions_of
from allometry.study.execute import execute
from allometry.study.result import Result, table_of
from allometry.study.sources import digest_of, modules_of
from allometry.study.store import Plan, Store
from allometry.study.study import Study

DEFAULT_STORE = Path(".allometry") / "store.db"


class StudyError(RuntimeError):
    """A study could not be run; the message says why and what to do."""


def missing_extras(study: Study) -> list[str]:
    """Extras that a study requires and that are not installed.

    >>> from allometry.study import Study, axis
    >>> missing_extras(Study("a", "?", ["b"], axis("n", 1), "loss"))
    []
    """
    from allometry.extras import installed

    return [name for name in study.requires if not installed(name)]


def plan_of(study: Study, profile: str, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """The request that identifies a run of a study, and the content of its plan."""
    module, file = study.home
    modules = modules_of(file, module if module != "__main__" else "") if file else {}
    design = study.design(profile, seed=seed)
    request = {"design": design, "code": digest_of(modules)}
    reached = definitions_of(file, module if module != "__main__" else "") if file else {}
    return request, {**request, "modules": modules, "definitions": reached, "question": study.question}


def run(
    study: Study,
    profile: str = "quick",
    *,
    seed: int = 0,
    store: str | Path | Store | None = None,
    workers: int | None = None,
    display: Any = "auto",
    tell: Callable[[str], None] | None = None,
    **executor: Any,
) -> Result:
    """Run the trials that are missing, and return the result.

    Parameters
    ----------
    study : Study
    profile : {"tiny", "quick", "full", "large"}
    seed : int
        The first of the seeds.
    store : path, URL or Store, optional
        Default ``.allometry/store.db``.
    workers : int, optional
        Processes; 0 runs in this one. By default as many as cores, and for a tiny run this one: to start
        others and load libraries in each takes longer than its trials.
    display : {"auto", "terminal", "plain"} or None
    tell : callable, optional
        Called with a sentence now and then.
    **executor
        Passed on to `allometry.study.execute.execute` (``executor="ray"`` and the like).

    Raises
    ------
    StudyError
        An extra is missing, or no value could be tuned.
    """
    say = tell or (lambda sentence: None)
    lacking = missing_extras(study)
    if lacking:
        raise StudyError(
            f"study {study.name} needs the extra {lacking[0]!r}: pip install 'allometry[{','.join(lacking)}]'"
        )
    if workers is None and profile == "tiny" and executor.get("executor", "local") == "local":
        workers = 0
    request, content = plan_of(study, profile, seed)
    with _opened(store) as database:
        database.put_plan("study", request, content)
        plan = database.find_plan("study", request)
        assert plan is not None
        settings: dict[str, Any] = {
            "workers": workers,
            "threads": study.threads,
            "display": display,
            **executor,
        }
        tuned = _tuned(study, profile, database, plan, settings, say)
        cells = study.cells(profile, seed=seed)
        report = execute(tasks(study, profile, cells, tuned=tuned), database, plan, **settings)
        for key, reason in list(report.failed.items())[:3]:
            say(f"{key} failed: {reason}")
        return _result(study, profile, seed, database, plan)


def stored(
    study: Study, profile: str = "quick", *, seed: int = 0, store: str | Path | Store | None = None
) -> Result:
    """What the store has of a study, as it is.

    Raises
    ------
    StudyError
        Nothing was run with this design and code.
    """
    request, _ = plan_of(study, profile, seed)
    if not isinstance(store, Store) and store is None and not DEFAULT_STORE.exists():
        raise StudyError(f"study {study.name} was not run here; run it with profile {profile!r} first")
    with _opened(store) as database:
        plan = database.find_plan("study", request)
        if plan is None:
            raise StudyError(
                f"study {study.name} was not run with profile {profile!r}, this design and code; run it first"
            )
        return _result(study, profile, seed, database, plan)


def _result(study: Study, profile: str, seed: int, database: Store, plan: Plan) -> Result:
    cells = study.cells(profile, seed=seed)
    tuned = database.find_plan("study/tuned", {"plan": plan.digest})
    return Result(
        study, profile, table_of(study, cells, database, plan), digest=plan.digest,
        modules=dict(plan.content["modules"]), definitions=dict(plan.content.get("definitions", {})),
        environment=dict(plan.environment),
        tuned={} if tuned is None else dict(tuned.content["chosen"]),
        tuning=None if tuned is None else tuned.content["scores"],
    )  # fmt: skip


def _tuned(
    study: Study,
    profile: str,
    database: Store,
    plan: Plan,
    settings: Mapping[str, Any],
    say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Run what tuning compares and store what it chose, before the trials; chosen once and for all."""
    tune = study.tune
    if tune is None:
        return {}
    request = {"plan": plan.digest}
    if database.find_plan("study/tuned", request) is None:
        wanted, names = tuning_cells(study, profile), [one.name for one in study.axes if not one.recorded]
        made, keys = [], {}
        for where, pairs in wanted.items():
            for value in tune.grid(profile):
                prefix = f"tune/{tune.name}={value}/"
                cells = [cell for given, cell in pairs if given == value]
                made += tasks(
                    study,
                    profile,
                    cells,
                    tuned={cells[0].arm: {tune.name: value}},
                    tuning=True,
                    prefix=prefix,
                )
                keys[where, value] = [prefix + cell.key(names) for cell in cells]
        report = execute(made, database, plan, **settings)
        records = database.records(plan)
        chosen, scores = {}, {}
        for where in wanted:
            found: dict[Any, list[float]] = {}
            for value in tune.grid(profile):
                rows = records[records["run"].isin(keys[where, value])]
                if len(rows) and tune.on not in rows:
                    raise StudyError(f"tuning looks at {tune.on!r}, which the trials do not tell")
                found[value] = (
                    [float(one) for one in rows.groupby("run").tail(1)[tune.on]] if len(rows) else []
                )
            try:
                chosen[where] = {tune.name: tune.choose(found)}
            except ValueError as error:
                reason = next(iter(report.failed.values()), str(error))
                raise StudyError(f"{where} of study {study.name} could not be tuned: {reason}") from None
            scores[where] = [[value, *losses] for value, losses in found.items()]
            say(f"{where}: {tune.name} {chosen[where][tune.name]}")
        database.put_plan("study/tuned", request, {"plan": plan.digest, "chosen": chosen, "scores": scores})
    pinned = database.find_plan("study/tuned", request)
    assert pinned is not None
    return dict(pinned.content["chosen"])


def _opened(store: str | Path | Store | None) -> Any:
    """The store as a context: one that was given stays open."""
    if isinstance(store, Store):
        import contextlib

        return contextlib.nullcontext(store)
    return Store(os.fspath(store) if store is not None else DEFAULT_STORE)
