"""Tasks for the executor's tests, in a module of their own because workers import them by name."""

import hashlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from allometry.study import Context, Record, Store, Task
from allometry.study.execute import execute


def _note(arguments: dict[str, Any], line: str) -> None:
    with Path(arguments["log"]).open("a") as file:  # one short append is one write: lines do not mix
        file.write(line + "\n")


def count(arguments: dict[str, Any], context: Context) -> Iterator[Record]:
    """A chain of hashes with a checkpoint at every step: any step missed or done twice changes its end."""
    key, total = arguments["key"], arguments["steps"]
    _note(arguments, f"start {key}")
    checkpoint = context.directory / "state.json"
    step, value = json.loads(checkpoint.read_text()) if checkpoint.exists() else (0, key)
    while step < total:
        time.sleep(arguments.get("pause", 0.0))
        step, value = step + 1, hashlib.sha256(value.encode()).hexdigest()
        context.progress(step, total, loss=1.0 / step)
        if step % 5 == 0:
            number = int(value[:12], 16) / 16**12
            yield Record(key, f"step={step}", {"value": number}, timing={"at": time.time()})
        if context.should_stop():
            _note(arguments, f"stop {key} {step}")
            return
        beside = checkpoint.with_suffix(".part")
        beside.write_text(json.dumps([step, value]))
        beside.replace(checkpoint)


def where(arguments: dict[str, Any], context: Context) -> Iterator[Record]:
    """Tell the process, when it began and ended, and its thread settings."""
    began = time.time()
    time.sleep(arguments.get("pause", 0.05))
    print("printed by the task")
    told = {"pid": os.getpid(), "omp": os.environ["OMP_NUM_THREADS"], "threads": context.threads}
    yield Record(arguments["key"], "where", told, timing={"began": began, "ended": time.time()})


def node(arguments: dict[str, Any], context: Context) -> Iterator[Record]:
    """Tell the node of a Ray cluster."""
    import ray

    time.sleep(arguments["pause"])
    yield Record(arguments["key"], "node", {"node": ray.get_runtime_context().get_node_id()})


def read(arguments: dict[str, Any], context: Context) -> None:
    """Read a file."""
    Path(arguments["path"]).read_text()


def die(arguments: dict[str, Any], context: Context) -> Iterator[Record]:
    """Be killed at the first so many attempts, after one record."""
    key = arguments["key"]
    yield Record(key, "first", {"value": 1.0})
    if context.attempt <= arguments["deaths"]:
        os.kill(os.getpid(), signal.SIGKILL)
    yield Record(key, "last", {"value": 2.0, "known": sorted(context.done)})


def leave(arguments: dict[str, Any], context: Context) -> Iterator[Record]:
    """End the whole worker with an exit code."""
    os._exit(7)


def break_down(arguments: dict[str, Any], context: Context) -> Iterator[Record]:
    """Raise after one record, as long as a file is missing."""
    yield Record(arguments["key"], "first", {"value": 1.0})
    context.progress(17, 100)
    if not Path(arguments["cure"]).exists():
        raise FloatingPointError("a gradient\nwas not finite")


def stack(arguments: dict[str, Any], context: Context) -> Iterator[Record]:
    """Three runs in one program; the second diverges."""
    for step in (1, 2):
        for run in arguments["runs"]:
            if run.endswith("b"):
                context.diverged(run, "loss is nan", step=1)
            else:
                yield Record(run, f"step={step}", {"value": step * len(run)})


def wrong(arguments: dict[str, Any], context: Context) -> Iterator[Any]:
    """Yield what is no record of this task."""
    yield arguments["yields"] if "yields" in arguments else Record("another", "a", {})


def leak(arguments: dict[str, Any], context: Context) -> Iterator[Record]:
    """Ask for ever more memory, under a limit somewhat above what there is, after one record."""
    yield Record(arguments["key"], "first", {"value": 1.0})
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**26, before[1]))
    hoard = []
    try:
        while True:
            hoard.append(bytearray(2**20))
    finally:
        hoard.clear()
        resource.setrlimit(resource.RLIMIT_AS, before)


def fill(arguments: dict[str, Any], context: Context) -> Iterator[Record]:
    """Records of 20 kB each."""
    for number in range(arguments["records"]):
        yield Record(arguments["key"], f"number={number}", {"value": number, "filler": "x" * 20_000})


def checkpointed(arguments: dict[str, Any], context: Context) -> Iterator[Record]:
    """Count by checkpoints, and be killed at the given step of the first attempt."""
    from allometry.train.checkpoint import Checkpointer

    keeper = Checkpointer(context.directory)
    kept = keeper.load("current")
    step = first = 0 if kept is None else kept[1]["step"]
    while step < arguments["steps"]:
        step += 1
        if context.attempt == 1 and step == arguments["killed"]:
            raise InterruptedError("cut short")
        keeper.save("current", {}, {"step": step})
    yield Record(arguments["key"], f"attempt={context.attempt}", {"value": step, "began": first})


def change(arguments: dict[str, Any], context: Context) -> Iterator[Record]:
    """Tell one thing twice, and not the same."""
    for value in (1.0, 2.0):
        yield Record(arguments["key"], "once", {"value": value})


def nothing(arguments: dict[str, Any], context: Context) -> None:
    """A task with nothing to tell."""


def counts(folder: Path, number: int, *, steps: int = 20, pause: float = 0.0) -> list[Task]:
    """Tasks that count, each a little longer than the one before."""
    log = str(folder / "log.txt")
    return [
        Task(
            f"run{n}",
            "chores:count",
            {"key": f"run{n}", "steps": steps + 5 * n, "pause": pause, "log": log, "seed": n},
            cost=steps + 5 * n,
        )
        for n in range(number)
    ]


def main() -> None:
    """Count six runs in a process of its own: folder, pause, workers, then perhaps a store and a cluster."""
    folder = Path(sys.argv[1])
    target = sys.argv[4] if len(sys.argv) > 4 else folder / "store.db"
    cluster = {"executor": "ray", "address": sys.argv[5]} if len(sys.argv) > 5 else {}
    with Store(target) as store:
        plan = store.put_plan("kind", {}, {})
        tasks = counts(folder, 6, pause=float(sys.argv[2]))
        report = execute(tasks, store, plan, workers=int(sys.argv[3]), display="plain", **cluster)
    print(len(report.done), len(report.skipped), report.ok)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background shells start with it ignored
    main()
