"""Tasks side by side in processes, so that a kill at any moment loses only what was in flight.

The parent decides what runs where; workers do it and write to the store themselves
(:mod:`allometry.study.worker`). The parent keeps nothing that is not in the store, so it may be killed too:
the next call reads which runs have ended, skips those, and lets half-done tasks go on.

In which order, and what becomes of a task whose worker dies, :mod:`allometry.study.job` decides.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Literal

from allometry.study import progress
from allometry.study.canonical import message, restore
from allometry.study.cores import usable_cores
from allometry.study.database import StoreError
from allometry.study.job import Event, Job, Report
from allometry.study.owner import Owner
from allometry.study.store import Plan, Store
from allometry.study.task import Context, Record, Task
from allometry.study.worker import MEMORY_SETTINGS, Message, carry_out

__all__ = ["Context", "Event", "Record", "Report", "Task", "execute"]

_GRACE_SECONDS = 2.0  # how long a task may take to save and return after Ctrl-C
# The interpreter's own first line: Ctrl-C belongs to the parent, and modules are found where it finds them.
_BOOT = (
    "import json,signal,sys;signal.signal(signal.SIGINT,signal.SIG_IGN);"
    "sys.path[:]=json.loads(sys.argv.pop());from allometry.study.worker import main;main()"
)


def _death(code: int) -> str:
    """Why a worker's process is gone, in words."""
    if code >= 0:
        return f"worker exited with code {code} in the middle of the task"
    if code == -9:
        return "worker was killed (signal 9), often for lack of memory"
    with contextlib.suppress(ValueError):
        return f"worker was killed by signal {-code} ({signal.Signals(-code).name})"
    return f"worker was killed by signal {-code}"


class _Worker:
    """A worker's process as its parent sees it: two pipes, and a thread that waits on one of them."""

    def __init__(
        self, store: Store, plan: str, threads: int, inbox: "queue.Queue[tuple[_Worker, Message | None]]"
    ):
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOT, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**MEMORY_SETTINGS, **os.environ},
        )
        self.owner = Owner.of(self._process.pid)
        self.task: Task | None = None
        self.ready = False
        self._inbox = inbox
        self._send(
            {
                "url": store.url,
                "directory": str(store.directory),
                "plan": plan,
                "threads": threads,
                "parent": os.getpid(),
            }
        )
        self._thread = threading.Thread(target=self._listen, name="worker messages", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError, OSError):
            for line in self._process.stdout:
                if line.endswith("\n"):  # else it died in the middle of a word
                    self._inbox.put((self, restore(line)))
        self._inbox.put((self, None))

    def _send(self, words: Message) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it is gone: its end of the other pipe tells so
            self._process.stdin.write(message(words) + "\n")
            self._process.stdin.flush()

    def give(self, task: Task) -> None:
        self.task = task
        self._send({"task": {**asdict(task), "arguments": dict(task.arguments)}})

    def ask_to_stop(self) -> None:
        self._send({"stop": True})

    def code(self) -> int:
        return self._process.wait()

    def end(self) -> None:
        """Close its pipe, which ends it at once, or kill it; and bury it."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(0.5 if self.task is None else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join()
        if self._process.stdout is not None:
            self._process.stdout.close()


def _in_workers(job: Job, threads: int) -> None:
    inbox: queue.Queue[tuple[_Worker, Message | None]] = queue.Queue()
    workers: list[_Worker] = []

    def take(worker: _Worker, words: Message | None) -> None:
        if words is not None:
            if words["event"] == "ready":
                worker.ready = True
            elif words["event"] == "refused":  # it cannot open the store, and so says which one and why
                raise StoreError(words["reason"])
            elif worker.task is not None and job.handle(worker.task, words):
                worker.task = None
            return
        workers.remove(worker)
        code, task = worker.code(), worker.task
        worker.end()
        if not worker.ready and code >= 0:
            raise RuntimeError(
                f"a worker ended with code {code} before it could begin; its own words are above"
            )
        if task is not None:
            job.died(task, worker.owner, _death(code))

    try:
        while job.unfinished:
            while (task := job.next()) is not None:
                if task.key in job.not_before and not job.look_again(task):
                    continue
                worker = next((worker for worker in workers if worker.task is None), None)
                if worker is None:
                    worker = _Worker(job.store, job.plan, threads, inbox)
                    workers.append(worker)
                job.start(task)
                worker.give(task)
            if job.unfinished:
                with contextlib.suppress(queue.Empty):
                    take(*inbox.get(timeout=0.5))
    except KeyboardInterrupt:
        for worker in workers:
            worker.ask_to_stop()
        patience = time.monotonic() + _GRACE_SECONDS
        while any(worker.task for worker in workers) and (left := patience - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                take(*inbox.get(timeout=left))
        raise
    finally:
        for worker in workers:
            worker.end()
        for worker in workers:
            if worker.task is not None:
                with contextlib.suppress(Exception):  # the store may be why we are here
                    job.store.release_owner(job.plan, worker.owner)


def _in_process(job: Job, threads: int) -> None:
    never = threading.Event()
    while job.unfinished:
        task = job.next()
        if task is None:
            time.sleep(0.2)
        elif task.key not in job.not_before or job.look_again(task):
            job.start(task)

            def tell(words: Message, task: Task = task) -> None:
                job.handle(task, words)

            ended = carry_out(task, job.store, job.plan, threads, tell, never)
            job.handle(task, {"event": "ended", **ended})


def refuse_executor(executor: str, address: str | None = None) -> None:
    """Say what is wrong with an executor and a cluster's address, before anything is begun.

    Raises
    ------
    ValueError
        If there is no such executor, or the address is none of a cluster that it can use.
    MissingExtra
        If ray is asked for and not installed.

    Examples
    --------
    >>> refuse_executor("local")
    """
    if executor not in ("local", "ray"):
        raise ValueError(f"executor is {executor!r}; it is 'local' or 'ray'")
    if executor == "local" and address is not None:
        raise ValueError(f"the address {address!r} is of a Ray cluster; choose the executor 'ray' as well")
    if executor == "ray":
        from allometry.study.on_ray import refuse_cluster

        refuse_cluster(address)


def execute(
    tasks: Iterable[Task],
    store: Store,
    plan: Plan | str,
    *,
    workers: int | None = None,
    threads: int = 1,
    on_event: Callable[[Event], None] | None = None,
    display: Literal["auto", "terminal", "plain"] | None = "auto",
    retries: int = 1,
    executor: Literal["local", "ray"] = "local",
    address: str | None = None,
) -> Report:
    """Do every task of a plan whose runs have not ended yet.

    Parameters
    ----------
    tasks : iterable of Task
        All tasks of the plan, at every call: those that have ended are skipped. Runs that are not in the
        store are added with the task's arguments as their spec and its ``seed`` argument, if any, as seed.
    store : Store
    plan : Plan or str
        The plan, or first digits of its digest.
    workers : int, optional
        Processes; by default the cores that this process may use over ``threads``. 0 does the tasks in this
        process, one after another, for debugging. On a cluster the most at once; by default as many as its
        CPUs allow from moment to moment.
    threads : int
        Threads that each worker computes with.
    on_event : callable, optional
        Called in this process with each :class:`Event`.
    display : {"auto", "terminal", "plain"} or None
        Bars on a terminal, lines elsewhere, both on standard error; None shows nothing.
    retries : int
        How often a task whose worker was killed is tried again, alone on the machine. A task that raises is
        not tried again by this call, only by the next: it would raise again.
    executor : {"local", "ray"}
        Processes of this machine, or tasks on a Ray cluster (:mod:`allometry.study.on_ray`), with the same
        numbers.
    address : str, optional
        Of the Ray cluster, ``host:port``; by default the one that this machine belongs to, or else one is
        made of this machine alone for the time of the call.

    Returns
    -------
    Report
        What ended, what failed and why. Nothing is raised for a task that fails.

    Raises
    ------
    ValueError
        If keys or runs are not unique, a need is missing, needs form a circle, or no cluster answers.
    MissingExtra
        If ray is asked for and not installed.
    KeyboardInterrupt
        On Ctrl-C, after tasks had two seconds to save and workers have ended; the next call goes on.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> store = Store(Path(tempfile.mkdtemp()) / "store.db")
    >>> plan = store.put_plan("example", {}, {})
    >>> execute([], store, plan).ok
    True
    """
    tasks = list(tasks)
    for name, value, least in (("workers", workers, 0), ("threads", threads, 1), ("retries", retries, 0)):
        if value is not None and (not isinstance(value, int) or value < least):
            raise ValueError(f"{name} is {value!r}; give a whole number of at least {least}")
    refuse_executor(executor, address)
    if executor == "ray" and workers == 0:
        raise ValueError("workers is 0, which means this process; on a Ray cluster give at least 1 or None")
    digest = plan.digest if isinstance(plan, Plan) else store.plan(plan).digest
    count = max(1, usable_cores() // threads) if workers is None else workers
    shown = progress.show(display, tasks)

    def tell(event: Event) -> None:
        if shown is not None:
            shown.show(event)
        if on_event is not None:
            on_event(event)

    try:
        job = Job(tasks, store, digest, max(1, count), retries, tell)
        if executor == "ray":
            from allometry.study.on_ray import in_cluster

            in_cluster(job, threads, workers, address)
        elif count == 0:
            _in_process(job, threads)
        else:
            _in_workers(job, threads)
        return job.report()
    finally:
        if shown is not None:
            shown.close()
