"""What the executor's choices are worth: workers of one thread each, and workers that live for many tasks.

Everything is measured through ``allometry.study.execute.execute`` itself: workers, pipes, commits and all.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from allometry.study import Context, Record, Store, Task, usable_cores
from allometry.study.execute import execute
from benchmarks import Case

_STEPS = 100
_TASKS = 4


def train(arguments: dict[str, Any], context: Context) -> Iterator[Record]:
    """Train a small transformer block."""
    import torch

    torch.manual_seed(0)
    width, heads, batch, length = arguments["width"], 4, 8, 128
    block = torch.nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True)
    optimizer = torch.optim.AdamW(block.parameters(), lr=1e-3, fused=True)
    inputs = torch.randn(batch, length, width)
    for step in range(arguments["steps"]):
        loss = (block(inputs) - inputs.roll(1, dims=1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        context.progress(step + 1, arguments["steps"])
    yield Record(arguments["key"], "trained", {"loss": float(loss.detach())})


def load(arguments: dict[str, Any], context: Context) -> None:
    """Import torch and do nothing with it."""
    import torch  # noqa: F401


def _do(folder: Path, tasks: list[Task], *, workers: int, threads: int = 1) -> None:
    place = Path(tempfile.mkdtemp(dir=folder))
    with Store(place / "store.db") as store:
        plan = store.put_plan("benchmark", {}, {})
        report = execute(tasks, store, plan, workers=workers, threads=threads, display=None)
    if not report.ok:
        raise RuntimeError(f"the benchmark's tasks failed: {report.failed}")


def cases() -> list[Case]:
    if find_spec("torch") is None:
        return []
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

    def training(width: int, workers: int, threads: int) -> Callable[[], Any]:
        tasks = [
            Task(f"run{n}", "benchmarks.execute:train", {"key": f"run{n}", "width": width, "steps": _STEPS})
            for n in range(_TASKS)
        ]
        return lambda: _do(folder, tasks, workers=workers, threads=threads)

    def loading(keep: bool) -> Callable[[], Any]:
        tasks = [Task(f"load{n}", "benchmarks.execute:load", {}) for n in range(_TASKS)]
        if keep:
            return lambda: _do(folder, tasks, workers=1)
        return lambda: [_do(folder, [task], workers=1) for task in tasks]

    cores = usable_cores()
    found = [
        Case(
            name="study: a worker kept for its tasks",
            ours=loading(keep=True),
            peer=loading(keep=False),
            peer_name="a fresh process for each task",
            target_ratio=2.0,
            rounds=3,
            note=f"{_TASKS} tasks that import torch and end.",
        )
    ]
    if cores >= 2:
        found += [
            Case(
                name=f"study: {cores} workers of one thread, width {width}",
                ours=training(width, cores, 1),
                peer=training(width, 1, cores),
                peer_name=f"one worker of {cores} threads",
                target_ratio=1.2,
                rounds=3,
                note=f"{_TASKS} runs of {_STEPS} steps, from the call to the last commit. On a busy machine "
                "threads that share a step wait for the slowest at every barrier: the ratio grows.",
            )
            for width in (64, 256)
        ]
    return found
