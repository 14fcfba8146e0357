"""The target in several processes, its weights sharded over them: started by the forecast, or by hand.

- ``allometry forecast --target-processes 4`` starts four processes on the machine that trains the target.
- ``torchrun --nproc-per-node 8 -m allometry.forecast.target DIGEST --store URL`` does the same on as many
  machines as ``torchrun`` is told of, once ``allometry forecast --no-check`` has foretold the target; the
  same ``allometry forecast`` without ``--no-check`` then finds the measured loss and compares.

Each process holds its share of parameters, gradients and optimizer state and reads its share of every batch
(FSDP2: Zhao and others, 2023. arXiv:2304.11277, in its second form). The result is that of one process up to
the order in which float32 numbers are added. The weights are made whole in every process before they are
shared out, so that they are the same at any number of processes: they must fit into each one's memory once,
without gradients and moments.

Only the first process writes records; checkpoints are written by each for its own part, and a resumed run
needs the same number of processes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from allometry.forecast.ladder import Ladder, target_task, train_rung
from allometry.study.execute import Context, Record
from allometry.study.store import Plan, Store
from allometry.study.worker import carry_out, die_with

_LISTEN_SECONDS = 0.1


class TargetFailed(RuntimeError):
    """A process that trained the target failed; the message is its last word."""


def refuse_processes(ladder: Ladder, processes: int, *, devices: int | None = None) -> None:
    """Say what is wrong with a number of processes, if anything.

    Parameters
    ----------
    ladder : Ladder
    processes : int
    devices : int, optional
        CUDA devices that there are, if each process is to have one.

    Raises
    ------
    ValueError
        If it is less than 1, the ladder's batch cannot be divided evenly, or devices are too few.

    Examples
    --------
    >>> refuse_processes(Ladder((16,), (1000,), batch=8), 4)
    """
    if processes < 1:
        raise ValueError(f"the target's processes must be at least 1, got {processes}")
    if ladder.batch % processes:
        fitting = [count for count in range(1, ladder.batch + 1) if ladder.batch % count == 0]
        raise ValueError(
            f"the target's batch of {ladder.batch} sequences cannot be divided evenly among {processes} "
            f"processes; choose one of {', '.join(map(str, fitting))}"
        )
    if devices is not None and processes > devices:
        raise ValueError(
            f"{processes} processes need a CUDA device each, and there are {devices}; choose at most so many"
        )


def train(arguments: Mapping[str, Any], context: Context) -> None:
    """The task: start the processes, pass on what the first one tells, and whether to stop.

    Raises
    ------
    TargetFailed
        If one of them fails; the others are ended.
    """
    from torch.multiprocessing.spawn import ProcessException

    from allometry.train.parallel import launch

    fresh = multiprocessing.get_context("spawn")
    ours, theirs = fresh.Pipe()
    stop, over = fresh.Event(), threading.Event()
    failures: list[Exception] = []
    take: dict[str, Callable[..., None]] = {
        "progress": lambda step, total, values: context.progress(step, total, **values),
        "record": lambda *told: context.record(Record(*told)),
        "diverged": context.diverged,
    }

    def listen() -> None:
        while True:
            if context.should_stop():
                stop.set()
            if ours.poll(_LISTEN_SECONDS):
                kind, told = ours.recv()
                try:
                    take[kind](*told)
                except Exception as error:  # the store's, say: it is raised where the executor hears it
                    failures.append(error)
                if kind != "progress":
                    ours.send(not failures)
            elif over.is_set():
                return

    listener = threading.Thread(target=listen, name="target", daemon=True)
    listener.start()
    try:
        given = (dict(arguments), str(context.directory), os.getpid(), theirs, stop)
        launch(_share, arguments["processes"], *given, threads=context.threads)
    except ProcessException as error:
        if not failures:
            last = str(error).strip().splitlines()[-1]
            killed = ", often for lack of memory" if "SIGKILL" in last else ""
            raise TargetFailed(f"a process of the target's failed: {last}{killed}") from error
    finally:
        over.set()
        listener.join()
    if failures:
        raise failures[0]


def _share(arguments: dict[str, Any], directory: str, parent: int, link: Any, stop: Any) -> None:
    """One process's part; the first one speaks."""
    from allometry.train.parallel import is_main

    die_with(parent)

    def say(kind: str, *told: Any) -> None:
        link.send((kind, told))
        if kind != "progress" and not link.recv():  # what is stored is stored before training goes on
            raise RuntimeError("what was told could not be stored")

    if not is_main():
        train_rung(arguments, Context(Path(directory)))
        return
    context = Context(
        Path(directory),
        on_progress=lambda step, total, values: say("progress", step, total, values),
        on_record=lambda record: say(
            "record", record.run, record.name, dict(record.values), dict(record.timing)
        ),
        on_diverged=lambda run, reason, step: say("diverged", run, reason, step),
        stop=cast(threading.Event, stop),
    )
    train_rung(arguments, context)


def _foretold(store: Store, digest: str) -> tuple[Plan, Plan]:
    """The forecast's plan and its target's, by the digest of either."""
    plan = store.plan(digest)
    if plan.kind == "forecast/target":
        return store.plan(plan.request["plan"]), plan
    target = store.find_plan("forecast/target", {"plan": plan.digest})
    if target is None:
        raise ValueError(
            f"plan {plan.digest[:12]} has no forecast yet; `allometry forecast --no-check` makes one, and "
            "the target is trained after it"
        )
    return plan, target


def _lead(arguments: Mapping[str, Any], context: Context) -> None:
    """The first process's part when started by hand: tell the others to begin, and begin."""
    import torch.distributed as dist

    dist.broadcast_object_list([(dict(arguments), str(context.directory))])
    train_rung(arguments, context)


def _by_hand(digest: str, target: str, directory: str | None) -> None:
    """What every process does that ``torchrun`` has started."""
    import torch
    import torch.distributed as dist

    from allometry.train.parallel import is_main, world_size

    if not is_main():
        told: list[Any] = [None]
        dist.broadcast_object_list(told)
        if told[0] is not None:
            arguments, folder = told[0]
            train_rung(arguments, Context(Path(folder)))
        return
    begun = False

    def tell(words: dict[str, Any]) -> None:
        nonlocal begun
        begun = begun or words["event"] in ("started", "resumed")
        if words["event"] == "record":
            print(f"{words['name']}: loss {words['values']['loss']:.4f}", flush=True)

    try:
        with Store(target, directory=directory) as store:
            plan, foretold = _foretold(store, digest)
            refuse_processes(Ladder.from_dict(plan.content["ladder"]), world_size())
            goal = foretold.content["target"]
            task = target_task(
                plan.content, goal["width"], goal["tokens"], plan.content["target_seed"],
                processes=world_size(),
            )  # fmt: skip
            if store.run(foretold, task.runs[0]) is None:
                store.add_run(foretold, task.runs[0], task.arguments, seed=plan.content["target_seed"])
            task = replace(task, function="allometry.forecast.target:_lead", threads=torch.get_num_threads())
            ended = carry_out(task, store, foretold.digest, task.threads or 1, tell, threading.Event())
    finally:
        if not begun:  # else the others wait for a word that never comes
            dist.broadcast_object_list([None])
    if ended["outcome"] == "failed":
        raise TargetFailed(ended["reason"])
    said = {"done": "trained", "skipped": "trained before", "busy": "being trained by another process"}
    print(f"The target of plan {foretold.digest[:12]} is {said[ended['outcome']]}.", flush=True)


def main() -> None:
    """What ``torchrun -m allometry.forecast.target`` runs."""
    from allometry.train.parallel import launch

    parser = argparse.ArgumentParser(prog="torchrun -m allometry.forecast.target", description=__doc__)
    parser.add_argument("digest", help="first digits of the digest of the forecast's plan")
    parser.add_argument("--store", default=".allometry/store.db", help="a file or a database URL")
    parser.add_argument("--directory", help="where checkpoints lie; by default as for the forecast")
    given = parser.parse_args()
    try:
        launch(_by_hand, 1, given.digest, given.store, given.directory)
    except (ValueError, RuntimeError) as error:
        if os.environ.get("ALLOMETRY_DEBUG"):
            raise
        print(f"allometry: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)


if __name__ == "__main__":
    main()
