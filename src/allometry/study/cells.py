"""What a worker does for a study: find it, run a trial, and check what the trial tells.

A trial that stacks several cells in one program returns one record for each; its cells are one task.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from allometry.study.canonical import digest
from allometry.study.profiles import Profile
from allometry.study.study import Cell, Study
from allometry.study.task import Context, Record, Task
from allometry.study.tune import FRESH

CLOCK = ("seconds",)  # columns that a clock measured: kept from the first time, never compared


def tasks(
    study: Study,
    profile: str,
    cells: Sequence[Cell],
    *,
    tuned: Mapping[str, Mapping[str, Any]] | None = None,
    tuning: bool = False,
    prefix: str = "",
) -> list[Task]:
    """Tasks that run the cells: one for each, or one for all that go together.

    Parameters
    ----------
    tuned : mapping, optional
        By "arm" or "arm/point", what tuning chose.
    tuning : bool
        Whether these are the trials that tuning compares.
    prefix : str
        Put before keys.
    """
    names = [one.name for one in study.axes if not one.recorded]
    groups: dict[tuple[tuple[str, Any], ...], list[Cell]] = {}
    for cell in cells:
        apart: list[tuple[str, Any]] = [("arm", cell.arm)] + [
            (name, value) for name, value in zip(names, cell.point, strict=True) if name not in study.together
        ]
        if "seed" not in study.together:
            apart.append(("seed", cell.seed))
        groups.setdefault(tuple(apart), []).append(cell)
    made = []
    for shared, members in groups.items():
        weight = 1.0 if study.weight is None else float(study.weight(members[0].arm, *members[0].point))
        key = prefix + "/".join(value if name == "arm" else f"{name}={value}" for name, value in shared)
        arguments: dict[str, Any] = {
            "home": list(study.home),
            "study": study.name,
            "profile": profile,
            "cells": [{"arm": c.arm, "point": list(c.point), "seed": c.seed} for c in members],
            "tuned": dict(_chosen(tuned or {}, members[0], names)),
            "tuning": tuning,
            "prefix": prefix,
        }
        made.append(
            Task(
                key,
                "allometry.study.cells:run_cells",
                arguments,
                runs=tuple(prefix + cell.key(names) for cell in members),
                cost=weight * len(members),
                slots=study.processes,
                exclusive=study.exclusive,
                threads=study.threads,
            )
        )
    return made


def _chosen(tuned: Mapping[str, Mapping[str, Any]], cell: Cell, names: Sequence[str]) -> Mapping[str, Any]:
    return tuned.get(place_of(cell, names), tuned.get(cell.arm, {}))


def place_of(cell: Cell, names: Sequence[str]) -> str:
    """An arm at a point, in words."""
    return "/".join([cell.arm, *(f"{n}={v}" for n, v in zip(names, cell.point, strict=True))])


def run_cells(arguments: Mapping[str, Any], context: Context) -> Iterator[Record]:
    """The function that workers call.

    A record that does not tell its ``"seconds"`` gets those of its trial, an equal part for each cell.
    """
    study = find(arguments["home"], arguments["study"])
    names = [one.name for one in study.axes if not one.recorded]
    cells = [Cell(one["arm"], tuple(one["point"]), one["seed"]) for one in arguments["cells"]]
    runs = [arguments["prefix"] + cell.key(names) for cell in cells]
    profile = study.profile(arguments["profile"], tuned=arguments["tuned"], tuning=arguments["tuning"])
    begin = time.perf_counter()
    for told in _told(study, cells, names, profile):
        seconds = (time.perf_counter() - begin) / len(cells)
        if len(told) != len(cells):
            raise ValueError(
                f"a trial of {len(cells)} cells together gave {len(told)} records; give one for each"
            )
        for run, cell, one in zip(runs, cells, told, strict=True):
            record, step = checked(study, cell, one, run)
            yield replace(record, timing={"seconds": seconds, **record.timing})
            if step is not None:
                context.diverged(run, f"diverged at step {step}", step)
        begin = time.perf_counter()


def _told(
    study: Study, cells: list[Cell], names: list[str], profile: Profile
) -> Iterator[list[Mapping[str, Any]]]:
    """What the trial tells, each time one record a cell."""
    if not study.together:
        (cell,) = cells
        for record in _several(study.call(cell.arm, cell.point, cell.seed, profile)):
            yield [record]
        return
    point = [
        [cell.point[place] for cell in cells] if name in study.together else cells[0].point[place]
        for place, name in enumerate(names)
    ]
    seed = [cell.seed for cell in cells] if "seed" in study.together else cells[0].seed
    told: Any = study.call(cells[0].arm, point, seed, profile)
    if inspect.isgenerator(told):
        rows: Iterable[Any] = told
        yield from map(list, rows)
        return
    parts = [list(_several(part)) for part in told]
    if len({len(part) for part in parts}) > 1:
        raise ValueError("cells that run together must tell equally many records")
    yield from map(list, zip(*parts, strict=True))


def _several(told: Any) -> Iterable[Mapping[str, Any]]:
    if isinstance(told, Mapping):
        return [told]
    if isinstance(told, Iterable) and not isinstance(told, str):
        several: Iterable[Any] = told if inspect.isgenerator(told) else list(told)
        return several
    raise TypeError(
        f"a trial returns a dictionary of measures, or several; it returned {type(told).__name__}"
    )


def checked(study: Study, cell: Cell, told: Mapping[str, Any], run: str) -> tuple[Record, int | None]:
    """A record for the store, with the step at which the run diverged, if it did."""
    if not isinstance(told, Mapping):
        raise TypeError(f"a trial tells a dictionary of measures, not {type(told).__name__}")
    values = dict(told)
    step = values.get("diverged")
    recorded = [one.name for one in study.axes if one.recorded]
    missing = [name for name in (*study.measures, *recorded) if name not in values]
    if missing and not (step is not None and set(missing) <= set(study.measures)):
        raise ValueError(
            f"the trial of {cell.arm!r} told {', '.join(map(str, values)) or 'nothing'}, not {missing[0]!r}"
        )
    for name in study.measures:
        values.setdefault(name, float("nan"))
    taken = {"arm", "seed", "run", "status"} & set(values)
    if taken:
        raise ValueError(
            f"the trial's record has a column {sorted(taken)[0]!r}, which is the study's own; rename it"
        )
    values["diverged"] = None if step is None else int(step)
    timing = {name: values.pop(name) for name in CLOCK if name in values}
    name = ",".join(f"{one}={values[one]}" for one in recorded) or "result"
    return Record(run, name, values, timing), values["diverged"]


def find(home: Sequence[str], name: str) -> Study:
    """The study of that name in a module or a file, loaded if it is not.

    Raises
    ------
    ValueError
        There is none.
    """
    module, file = home
    if module in ("__main__", "") or importlib.util.find_spec(module.partition(".")[0]) is None:
        found = load(file)
    else:
        found = importlib.import_module(module)
    for value in vars(found).values():
        if isinstance(value, Study) and value.name == name:
            return value
        for part in getattr(value, "studies", ()) if not isinstance(value, type | ModuleType) else ():
            if isinstance(part, Study) and part.name == name:
                return part
    raise ValueError(f"{module or file} declares no study {name!r}; declare it at the module's top level")


def load(file: str | Path) -> ModuleType:
    """A Python file as a module of its own, under a name that its path alone decides."""
    path = Path(file).resolve()
    if not path.is_file():
        raise ValueError(f"no file {str(file)!r} to read a study from")
    main = sys.modules.get("__main__")
    if main is not None and getattr(main, "__file__", None) and Path(str(main.__file__)).resolve() == path:
        return main
    name = f"allometry_study_{digest({'file': str(path)})[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{str(file)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.parent))
    return module


def tuning_cells(study: Study, profile: str) -> dict[str, list[tuple[Any, Cell]]]:
    """By arm, or arm and point, the trials that tuning compares: (value, cell) pairs."""
    assert study.tune is not None
    names = [one.name for one in study.axes if not one.recorded]
    points = list(study.points(profile))
    if study.tune.at == "smallest":
        points = [min(points, key=lambda point: tuple(_order(value) for value in point))]
    found: dict[str, list[tuple[Any, Cell]]] = {}
    for arm in study.arms:
        for point in points:
            cells = [Cell(arm, point, FRESH + s) for s in range(study.tune.seeds)]
            where = arm if study.tune.at == "smallest" else place_of(cells[0], names)
            found[where] = [(value, cell) for value in study.tune.grid(profile) for cell in cells]
    return found


def _order(value: Any) -> tuple[int, Any]:
    return (0, value) if isinstance(value, int | float) else (1, str(value))
