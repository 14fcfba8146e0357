"""``allometry doctor``: what this machine has, what is installed, and what stands in the way, with its cure.

Nothing is changed and nothing is left behind. A store that does not exist is not made; one that exists is
tried by a write that is rolled back, and its disk by a file that is removed. Works without torch, which is
when it is needed most.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from sqlalchemy.engine import URL

_RATE_SECONDS = 0.3  # for each number format
_LITTLE_MEMORY = 1e9  # bytes; the smallest ladder with two workers holds about as much
_LITTLE_DISK = 1e9
_NO_DISK = 1e8
_CONNECT_SECONDS = 3
_WIDE = 100  # columns


@dataclass(frozen=True)
class Problem:
    """What stands in the way, and what to do about it. Without ``essential`` things `forecast` can run."""

    what: str
    cure: str
    essential: bool


@dataclass
class Finding:
    """One section: facts for a program, rows for a person, problems for both."""

    facts: dict[str, Any] = field(default_factory=dict)
    rows: list[tuple[str, str]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def trouble(self, what: str, cure: str, *, essential: bool = False) -> None:
        self.problems.append(Problem(what, cure, essential))


def size(count: float) -> str:
    """Bytes for a person.

    >>> size(9_832_478), size(24.7e9), size(512)
    ('9.8 MB', '24.7 GB', '512 B')
    """
    for unit, power in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= power:
            return f"{count / power:.1f} {unit}"
    return f"{count:.0f} B"


# --- the machine -------------------------------------------------------------------------------------------
def machine() -> Finding:
    """Python, system, processor, cores, memory."""
    from allometry.study.cores import usable_cores
    from allometry.study.machine import memory, processor

    found, cores, held, chip = Finding(), usable_cores(), memory(), processor()
    logical = os.cpu_count() or 1
    granted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    found.facts = {
        "python": platform.python_version(), "implementation": platform.python_implementation(),
        "executable": sys.executable, "system": platform.system(), "release": platform.release(),
        "machine": platform.machine(), "processor": chip.name, "abilities": list(chip.abilities),
        "usable_cores": cores, "affinity": granted, "logical_processors": logical,
        "memory_total": held.total, "memory_available": held.available, "memory_limit": held.limit,
        "memory_left": held.left,
    }  # fmt: skip
    told = [] if held.total is None else [f"{size(held.total)} in all"]
    told += [] if held.available is None else [f"{size(held.available)} available"]
    told += [] if held.limit is None else [f"this container may use {size(held.limit)}"]
    found.rows = [
        ("Python", f"{platform.python_version()} ({platform.python_implementation()}), {sys.executable}"),
        ("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        ("processor", ", ".join((chip.name, *chip.abilities))),
        ("cores", f"{cores} usable; {granted} of {logical} logical processors are granted to this process"),
        ("memory", ", ".join(told) or "unknown on this system"),
    ]
    if held.left is not None and held.left < _LITTLE_MEMORY:
        found.trouble(
            f"only {size(held.left)} of memory are left to this process",
            "end other programs, raise the container's limit, or train with --workers 1",
        )
    return found


# --- packages ----------------------------------------------------------------------------------------------
def _wanted(name: str, extra: str, seen: frozenset[str] = frozenset()) -> Iterator[Requirement]:
    """What an extra asks for (the empty one: what is always needed), extras within extras opened."""
    from importlib import metadata

    from packaging.requirements import Requirement

    for text in metadata.requires(name) or []:
        wanted = Requirement(text)
        holds = wanted.marker is None or wanted.marker.evaluate({"extra": extra})
        always = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        if not holds or (extra and always):
            continue
        if wanted.name.lower() == name:
            for inner in sorted(wanted.extras - seen):
                yield from _wanted(name, inner, seen | wanted.extras)
        else:
            yield wanted


def _installed(wanted: Requirement) -> tuple[str | None, bool]:
    """The version that is installed, if any, and whether it is one that is asked for."""
    from importlib import metadata

    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return None, False
    return version, wanted.specifier.contains(version, prereleases=True)


def packages(name: str = "allometry") -> Finding:
    """What a distribution needs always, and each of its extras, from its own metadata."""
    from importlib import metadata

    found = Finding()
    try:
        import packaging.requirements  # noqa: F401

        extras = metadata.metadata(name).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        found.trouble(f"{name} is not installed, only importable", "pip install -e . in its checkout")
        return found
    except ModuleNotFoundError:
        found.trouble("packaging, which matplotlib brings, is not installed", "pip install packaging")
        return found
    for extra in ("", *sorted(extras)):
        versions, missing, wrong = {}, [], []
        for wanted in {one.name: one for one in _wanted(name, extra)}.values():
            version, good = _installed(wanted)
            versions[wanted.name] = version
            if version is None:
                missing.append(f"{wanted.name}{wanted.specifier}")
            elif not good:
                wrong.append(f"{wanted.name} {version} (asked for: {wanted.specifier})")
        target = f"{name}[{extra}]" if extra else name
        command = f"pip install --upgrade '{target}'" if wrong else f"pip install '{target}'"
        whole = not missing and not wrong
        found.facts[extra or "always"] = {
            "complete": whole, "installed": versions, "missing": missing, "unsuitable": wrong,
            "command": None if whole else command,
        }  # fmt: skip
        told = [", ".join(f"{one} {version}" for one, version in versions.items() if version)]
        told += [f"missing: {', '.join(missing)}"] if missing else []
        told += [f"unsuitable: {', '.join(wrong)}"] if wrong else []
        told += [command] if not whole else []
        found.rows.append((extra or "always", "; ".join(part for part in told if part)))
        needed = extra in ("", "train")
        if needed and missing:
            found.trouble(f"{', '.join(missing)} not installed", command, essential=True)
        if wrong:
            found.trouble(f"unsuitable: {', '.join(wrong)}", command, essential=needed)
    return found


# --- torch -------------------------------------------------------------------------------------------------
def torch_here() -> Finding:
    """Version, build, threads, what products of matrices cost, devices."""
    found = Finding(facts={"installed": False})
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name == "torch":
            found.rows.append(("torch", "not installed: laws can be fitted, nothing can be trained"))
            found.trouble("torch is not installed", "pip install 'allometry[train]'", essential=True)
        else:
            _broken(found, error)
        return found
    except Exception as error:  # a library that does not load, a build for another machine
        _broken(found, error)
        return found
    capability = torch.backends.cpu.get_cpu_capability()
    rates = {name: _rate(torch, getattr(torch, name)) for name in ("float32", "bfloat16")}
    found.facts = {
        "installed": True, "version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip,
        "threads": torch.get_num_threads(), "cpu_capability": capability,
        "flops_per_second": rates, "devices": _devices(torch, found),
    }  # fmt: skip
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    build = f"ROCm {torch.version.hip}" if torch.version.hip else build
    found.rows = [
        ("torch", f"{torch.__version__}, built for {build}"),
        ("threads", f"{torch.get_num_threads()}; code for {capability}"),
        ("products", ", ".join(f"{name} {rate / 1e9:.3g} GFLOP/s" for name, rate in rates.items())),
        *(
            (f"{one['type']}:{one['index']}", f"{one['name']}, {_room(one)}")
            for one in found.facts["devices"]
        ),
    ]
    if not found.facts["devices"]:
        found.rows.append(("devices", "none beside the processor"))
    return found


def _broken(found: Finding, error: Exception) -> None:
    reason = " ".join(str(error).split())[:200]
    found.rows.append(("torch", f"cannot be imported: {reason}"))
    cure = "pip install --force-reinstall 'allometry[train]', best in a new environment"
    found.trouble(f"torch cannot be imported: {reason}", cure, essential=True)


def _rate(torch: Any, dtype: Any) -> float:
    """Floating-point operations a second of square products, the best of those that fit the time."""
    best, width, end = 0.0, 256, time.perf_counter() + _RATE_SECONDS
    generator = torch.Generator().manual_seed(0)
    while True:
        a, b = (torch.randn(width, width, generator=generator).to(dtype) for _ in range(2))
        with torch.inference_mode():
            torch.mm(a, b)
            while True:
                start = time.perf_counter()
                torch.mm(a, b)
                took = time.perf_counter() - start
                best = max(best, 2.0 * width**3 / took)
                now = time.perf_counter()
                if now > end:
                    return best
                if width < 1024 and 16.0 * took < (end - now) / 4.0:  # twice the width, eight times the work
                    width *= 2
                    break


def _devices(torch: Any, found: Finding) -> list[dict[str, Any]]:
    devices = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about: dict[str, Any] = {"type": "cuda", "index": index}
            try:
                about["name"] = torch.cuda.get_device_name(index)
                about["memory_free"], about["memory_total"] = torch.cuda.mem_get_info(index)
            except RuntimeError as error:  # in use by another program for itself, or out of order
                reason = " ".join(str(error).split())[:120]
                found.trouble(f"cuda:{index} does not answer: {reason}", "nvidia-smi tells who holds it")
                continue
            devices.append(about)
    elif torch.version.cuda:
        found.trouble(
            f"torch is built for CUDA {torch.version.cuda}, but no such device can be used",
            "where there is one, nvidia-smi must list it (driver, CUDA_VISIBLE_DEVICES, container runtime)",
        )
    if torch.backends.mps.is_available():
        total = torch.mps.recommended_max_memory()
        devices.append({"type": "mps", "index": 0, "name": "Apple GPU", "memory_total": total,
                        "memory_free": total - torch.mps.driver_allocated_memory()})  # fmt: skip
    return devices


def _room(device: dict[str, Any]) -> str:
    return f"{size(device['memory_total'])}, {size(device['memory_free'])} free"


# --- data --------------------------------------------------------------------------------------------------
def data() -> Finding:
    """The text that a forecast reads where none is named."""
    from allometry.data.text import StandardLibrary

    found = Finding()
    try:
        library = StandardLibrary()
    except (ValueError, OSError) as error:
        what, _, cure = str(error).partition("; ")
        found.facts["standard_library"] = None
        found.rows.append(("standard library", "not found"))
        found.trouble(what, cure or "name text of your own: allometry forecast TEXT", essential=True)
        return found
    files = sum(1 for split in ("train", "validation") for _ in library.documents(split))
    found.facts["standard_library"] = {"files": files, "bytes": library.bytes, "digest": library.digest}
    told = f"{files} files, {size(library.bytes)}, digest {library.digest[:12]}"
    found.rows.append(("standard library", told))
    return found


# --- the store ---------------------------------------------------------------------------------------------
def store(target: str) -> Finding:
    """Where records go: whether it can be opened, read and written, and what it holds."""
    from allometry.extras import MissingExtra
    from allometry.study.database import StoreError, parse, where

    found = Finding()
    try:
        url = parse(target)
    except MissingExtra as error:
        what, _, cure = str(error).partition("; install it with: ")
        found.facts, found.rows = {"place": target, "opens": False}, [("store", f"{target} cannot be opened")]
        found.trouble(what, cure, essential=True)
        return found
    place = where(url)
    found.facts = {"place": place, "kind": url.get_backend_name(), "exists": True, "opens": False}
    found.rows = [("store", place)]
    folder = Path(".allometry")  # checkpoints of a store on a server
    if found.facts["kind"] == "sqlite":
        file = Path(str(url.database)).absolute()
        folder = file.parent
        found.facts["exists"] = file.exists()
    elif "connect_timeout" not in url.query:
        url = url.update_query_dict({"connect_timeout": str(_CONNECT_SECONDS)})
    try:
        if found.facts["exists"]:
            _contents(url, found)
        else:
            found.rows.append(("contents", "not there yet; the first forecast makes it"))
        _disk(folder.absolute(), found)
    except StoreError as error:
        what, _, cure = str(error).rpartition("; ")
        found.rows.append(("contents", "cannot be read"))
        cure = cure if what else "name another with --store"
        found.trouble(what or str(error), cure, essential=True)
    return found


def _contents(url: URL, found: Finding) -> None:
    import sqlalchemy as sql

    from allometry.study.database import (
        SCHEMA_VERSION,
        Database,
        about_table,
        plan_table,
        record_table,
        run_table,
    )

    database = Database(url.render_as_string(hide_password=False))
    try:
        with database.reading() as connection:
            plans, records = (
                connection.scalar(sql.select(sql.func.count()).select_from(table)) or 0
                for table in (plan_table, record_table)
            )
            by_status = sql.select(run_table.c.status, sql.func.count()).group_by(run_table.c.status)
            runs = {row[0]: row[1] for row in connection.execute(by_status)}
        with database.writing() as connection:
            connection.execute(about_table.insert().values(name="doctor", value="rolled back"))
            connection.rollback()
    finally:
        database.close()
    found.facts |= {"opens": True, "schema_version": SCHEMA_VERSION, "plans": plans, "runs": runs,
                    "records": records}  # fmt: skip
    told = ", ".join(f"{count} {status}" for status, count in sorted(runs.items())) or "no runs"
    found.rows.append(("contents", f"{plans} plans, {told}, {records} records; tables of version "
                                   f"{SCHEMA_VERSION}"))  # fmt: skip
    if found.facts["kind"] == "sqlite":
        file = Path(str(url.database))
        beside = (file.with_name(file.name + ending) for ending in ("", "-wal"))
        found.facts["bytes"] = sum(one.stat().st_size for one in beside if one.exists())
        found.rows.append(("size", size(found.facts["bytes"])))


def _disk(folder: Path, found: Finding) -> None:
    """Free space, and a megabyte written and synced, in the folder or the nearest one above that exists."""
    there = next(one for one in (folder, *folder.parents) if one.exists())
    free = shutil.disk_usage(there).free
    found.facts["free_bytes"] = free
    start = time.perf_counter()
    try:
        if not there.is_dir():
            raise NotADirectoryError(0, "not a folder")
        with tempfile.TemporaryFile(dir=there) as trial:
            trial.write(os.urandom(1 << 20))
            trial.flush()
            os.fsync(trial.fileno())
    except OSError as error:
        found.facts["writable"] = False
        found.rows.append(("folder", f"{there} cannot be written ({error.strerror})"))
        cure = "make it writable, free some space, or name another store with --store"
        found.trouble(f"{there} cannot be written ({error.strerror})", cure, essential=True)
        return
    took = time.perf_counter() - start
    found.facts |= {"writable": True, "write_seconds": took}
    told = f"{there}, {size(free)} free; 1 MB written and synced in {1e3 * took:.0f} ms"
    found.rows.append(("folder", told))
    if free < _LITTLE_DISK:
        found.trouble(f"only {size(free)} are free in {there}", "free some space: checkpoints lie there",
                      essential=free < _NO_DISK)  # fmt: skip


# --- all of it ---------------------------------------------------------------------------------------------
def examine(target: str) -> dict[str, Finding]:
    """All sections by title; what one of them could not look at is a problem of its own, not an end."""
    looks: list[tuple[str, Callable[[], Finding]]] = [
        ("machine", machine), ("packages", packages), ("torch", torch_here), ("data", data),
        ("store", lambda: store(target)),
    ]  # fmt: skip
    found = {}
    for title, look in looks:
        try:
            found[title] = look()
        except ModuleNotFoundError as error:  # a package without which this part of us does not load
            found[title] = Finding(facts={"missing": error.name}, rows=[(title, f"needs {error.name}")])
            found[title].trouble(
                f"{error.name}, which is always needed, is not installed", "pip install allometry",
                essential=True,
            )  # fmt: skip
    return found


def report(found: dict[str, Finding]) -> dict[str, Any]:
    """Everything, JSON-ready."""
    problems = list(_problems(found.values()))
    return {
        "ready": not any(one.essential for one in problems),
        **{title: one.facts for title, one in found.items()},
        "problems": [{"what": p.what, "cure": p.cure, "essential": p.essential} for p in problems],
    }


def _problems(found: Iterable[Finding]) -> Iterator[Problem]:
    yield from dict.fromkeys(problem for one in found for problem in one.problems)


def summary(found: dict[str, Finding]) -> str:
    """The same as aligned text."""
    import textwrap

    wide = max(len(name) for one in found.values() for name, _ in one.rows)
    lines = []
    for title, one in found.items():
        lines.append(title.capitalize())
        for name, told in one.rows:
            first, *rest = textwrap.wrap(told, _WIDE - wide - 4, break_on_hyphens=False)
            lines += [f"  {name:<{wide}}  {first}", *(" " * (wide + 4) + more for more in rest)]
        lines.append("")
    problems = list(_problems(found.values()))
    if problems:
        lines.append("Problems")
    for problem in problems:
        mark = "!" if problem.essential else "-"
        lines += [f"  {mark} {problem.what}", f"    cure: {problem.cure}"]
    if problems:
        lines.append("")
    ready = not any(problem.essential for problem in problems)
    lines.append("Ready: `allometry forecast` can run here." if ready
                 else "Not ready for `allometry forecast`: see what is marked with !")  # fmt: skip
    return "\n".join(lines)


def doctor(
    store: Annotated[
        str, typer.Option(help="The store to look at: a file or a database URL.")
    ] = ".allometry/store.db",
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """What this machine has, what is installed, and what stands in the way of a forecast."""
    from allometry.forecast.report import to_json

    found = examine(store)
    told = report(found)
    print(to_json(told) if as_json else summary(found))
    if not told["ready"]:
        raise typer.Exit(1)
