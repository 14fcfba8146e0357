"""Tasks side by side in processes, so that a kill at any moment loses only what was in flight.

The parent decides what runs where; workers do it and write to the store themselves
(:mod:`allometry.study.worker`). The parent keeps nothing that is not in the store, so it may be killed too:
the next call reads which runs have ended, skips those, and lets half-done tasks go on.

Order: a task's rank is the cost of the longest chain of tasks that begins with it, and the highest rank goes
first (the critical path; R. L. Graham, 1966, bounds what list scheduling can lose). A wide task at the head
waits for its places, and nothing overtakes it, so it cannot starve. Exclusive tasks wait until no other is
ready. Where a task runs, and beside which, has no part in its numbers.
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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from allometry.study import progress
from allometry.study.canonical import message, restore
from allometry.study.cores import usable_cores
from allometry.study.owner import Owner
from allometry.study.store import ENDED, Plan, Store
from allometry.study.task import Context, Record, Task
from allometry.study.worker import Message, carry_out

__all__ = ["Context", "Event", "Record", "Report", "Task", "execute"]

_BUSY_SECONDS = 2.0  # how often a task that another process holds is looked at again
_GRACE_SECONDS = 2.0  # how long a task may take to save and return after Ctrl-C
# The interpreter's own first line: Ctrl-C belongs to the parent, and modules are found where it finds them.
_BOOT = (
    "import json,signal,sys;signal.signal(signal.SIGINT,signal.SIG_IGN);"
    "sys.path[:]=json.loads(sys.argv.pop());from allometry.study.worker import main;main()"
)


@dataclass(frozen=True)
class Event:
    """Something that happened, as told to ``on_event``.

    Attributes
    ----------
    kind : str
        ``skipped`` (all its runs had ended), ``started``, ``resumed``, ``progress``, ``record``,
        ``diverged``, ``waiting`` (another living process holds it), ``retried``, ``finished``, ``failed``,
        ``blocked`` (a task that it needs failed) or ``stopped``.
    task : Task
    seconds : float
        Since ``execute`` began.
    run, name : str, optional
        Of a record, or the run that diverged.
    step, total : int, optional
        Of progress.
    values : dict
        What the record or the progress holds.
    reason : str, optional
        One line.
    """

    kind: str
    task: Task
    seconds: float
    run: str | None = None
    name: str | None = None
    step: int | None = None
    total: int | None = None
    values: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True)
class Report:
    """How a call of :func:`execute` ended.

    Attributes
    ----------
    done : tuple of str
        Keys of the tasks that ended now.
    skipped : tuple of str
        Keys of those that had ended before, or were done by another process meanwhile.
    failed, blocked : dict
        Task key to reason in one line; blocked tasks need one that failed.
    diverged : dict
        Run key to reason, for every diverged run of these tasks.
    seconds : float
        How long the call took.
    """

    done: tuple[str, ...]
    skipped: tuple[str, ...]
    failed: dict[str, str]
    blocked: dict[str, str]
    diverged: dict[str, str]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every task has ended; diverged runs count as ended."""
        return not self.failed and not self.blocked


def _death(code: int) -> str:
    """Why a worker's process is gone, in words."""
    if code >= 0:
        return f"worker exited with code {code} in the middle of the task"
    if code == -9:
        return "worker was killed by signal 9 (often: out of memory)"
    with contextlib.suppress(ValueError):
        return f"worker was killed by signal {-code} ({signal.Signals(-code).name})"
    return f"worker was killed by signal {-code}"


# glibc hands freed memory back to the system at the end of every training step and faults it in again at the
# next; keeping it makes small models 5 to 15 % faster. What the user has set stands.
_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": "4294967295",
    "MALLOC_TOP_PAD_": "268435456",
    "MALLOC_MMAP_MAX_": "0",
}


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
            env={**_MEMORY, **os.environ},
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


def _ranks(tasks: Sequence[Task]) -> dict[str, float]:
    """Cost of the longest chain of tasks that begins with each; refuses what can never be run."""
    by_key = {task.key: task for task in tasks}
    if len(by_key) != len(tasks):
        keys = [task.key for task in tasks]
        raise ValueError(f"two tasks have the key {next(key for key in keys if keys.count(key) > 1)!r}")
    trained: dict[str, str] = {}
    for task in tasks:
        for run in task.runs:
            if run in trained:
                raise ValueError(f"run {run!r} is trained by both {trained[run]!r} and {task.key!r}")
            trained[run] = task.key
        for need in task.needs:
            if need not in by_key:
                raise ValueError(f"task {task.key!r} needs {need!r}, which is not among the tasks")
    followers: dict[str, list[str]] = {key: [] for key in by_key}
    for task in tasks:
        for need in set(task.needs):
            followers[need].append(task.key)
    waiting = {key: len(after) for key, after in followers.items()}
    ranks: dict[str, float] = {}
    ready = [key for key, count in waiting.items() if count == 0]
    while ready:
        key = ready.pop()
        ranks[key] = by_key[key].cost + max((ranks[after] for after in followers[key]), default=0.0)
        for need in set(by_key[key].needs):
            waiting[need] -= 1
            if waiting[need] == 0:
                ready.append(need)
    if len(ranks) != len(tasks):
        raise ValueError(
            f"these tasks need each other in a circle: {', '.join(sorted(set(by_key) - set(ranks)))}"
        )
    return ranks


class _Job:
    """The state of one call: which tasks wait, run and have ended."""

    def __init__(
        self,
        tasks: Sequence[Task],
        store: Store,
        plan: str,
        places: int,
        retries: int,
        tell: Callable[[Event], None],
    ) -> None:
        ranks = _ranks(tasks)
        self.tasks = sorted(tasks, key=lambda task: -ranks[task.key])  # stable: equal ranks keep their order
        self.store, self.plan, self.places, self.retries = store, plan, places, retries
        self.tell_event = tell
        self.began = time.monotonic()
        self.ended: dict[str, str] = {}  # task key -> done, skipped, failed, blocked
        self.reasons: dict[str, str] = {}
        self.running: dict[str, Task] = {}
        self.tries: dict[str, int] = {}
        self.alone: set[str] = set()
        self.not_before: dict[str, float] = {}
        known = {run.key: run for run in store.run_list(plan)}
        for task in self.tasks:
            for key in task.runs:
                if key not in known:
                    known[key] = store.add_run(plan, key, task.arguments, seed=_seed(task))
        self.attempts = {key: run.attempts for key, run in known.items()}
        for task in self.tasks:
            if all(known[run].status in ENDED for run in task.runs):
                self.end(task, "skipped")

    @property
    def unfinished(self) -> bool:
        return len(self.ended) < len(self.tasks)

    def start(self, task: Task) -> None:
        self.running[task.key] = task
        self.tries[task.key] = self.tries.get(task.key, 0) + 1

    def say(self, kind: str, task: Task, **fields: Any) -> None:
        self.tell_event(Event(kind, task, time.monotonic() - self.began, **fields))

    def end(self, task: Task, how: str, reason: str | None = None) -> None:
        self.running.pop(task.key, None)
        self.ended[task.key] = how
        if reason is not None:
            self.reasons[task.key] = reason
        self.say("finished" if how == "done" else how, task, reason=reason)
        if how in ("failed", "blocked"):
            for other in self.tasks:
                if task.key in other.needs and other.key not in self.ended:
                    self.end(other, "blocked", f"it needs {task.key!r}, which did not end")

    def _width(self, task: Task) -> int:
        return min(task.slots, self.places)

    def next(self) -> Task | None:
        """The task to start now, if one may start."""
        if any(task.exclusive or task.key in self.alone for task in self.running.values()):
            return None
        now = time.monotonic()
        ready = [
            task
            for task in self.tasks
            if task.key not in self.ended
            and task.key not in self.running
            and self.not_before.get(task.key, 0.0) <= now
            and all(self.ended.get(need) in ("done", "skipped") for need in task.needs)
        ]
        shared = [task for task in ready if not task.exclusive and task.key not in self.alone]
        if shared:
            free = self.places - sum(self._width(task) for task in self.running.values())
            head = shared[0]
            return head if self._width(head) <= free else None
        return ready[0] if ready and not self.running else None

    def look_again(self, task: Task) -> bool:
        """Whether a task that another process held still is to be done here."""
        runs = self.store.run_list(self.plan, keys=task.runs)
        if all(run.status in ENDED for run in runs):
            self.end(task, "skipped")
            return False
        for run in runs:
            # Tried by another process since this call began, and failed there: it would fail here.
            if run.status == "failed" and run.attempts > self.attempts[run.key]:
                self.end(task, "failed", run.reason or "failed in another process")
                return False
        return True

    def handle(self, task: Task, words: Message) -> bool:
        """Take in what a worker says; True if the task has left its worker."""
        kind = words.pop("event")
        if kind != "ended":
            words.pop("attempt", None)
            words.pop("records", None)
            self.say(kind, task, **words)
            return False
        outcome, reason = words["outcome"], words.get("reason")
        if outcome == "busy":
            self.running.pop(task.key, None)
            if task.key not in self.not_before:
                self.say("waiting", task, reason="another process trains it")
            self.not_before[task.key] = time.monotonic() + _BUSY_SECONDS
        elif outcome == "stopped":
            self.running.pop(task.key, None)
            self.say("stopped", task)
        else:
            self.end(task, outcome, reason)
        return True

    def died(self, task: Task, owner: Owner, code: int) -> None:
        """A worker is gone in the middle of a task: once more, alone, since memory is the usual cause."""
        reason = _death(code)
        left = self.store.release_owner(self.plan, owner)
        self.running.pop(task.key, None)
        if self.tries[task.key] <= self.retries:
            self.alone.add(task.key)
            self.say("retried", task, reason=reason)
            return
        for run in left or self.store.claim(self.plan, task.runs) or []:  # it may have died before its claim
            self.store.fail_run(run, reason, "failed", run.step)
        self.end(task, "failed", reason)

    def report(self) -> Report:
        keys = {how: [task.key for task in self.tasks if self.ended.get(task.key) == how] for how in
                ("done", "skipped", "failed", "blocked")}  # fmt: skip
        ours = {run for task in self.tasks for run in task.runs}
        lost = [run for run in self.store.run_list(self.plan, status="diverged") if run.key in ours]
        return Report(
            tuple(keys["done"]),
            tuple(keys["skipped"]),
            {key: self.reasons[key] for key in keys["failed"]},
            {key: self.reasons[key] for key in keys["blocked"]},
            {run.key: run.reason or "" for run in lost},
            time.monotonic() - self.began,
        )


def _seed(task: Task) -> int | None:
    seed = task.arguments.get("seed")
    return seed if isinstance(seed, int) and not isinstance(seed, bool) else None


def _in_workers(job: _Job, threads: int) -> None:
    inbox: queue.Queue[tuple[_Worker, Message | None]] = queue.Queue()
    workers: list[_Worker] = []

    def take(worker: _Worker, words: Message | None) -> None:
        if words is not None:
            if words["event"] == "ready":
                worker.ready = True
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
            job.died(task, worker.owner, code)

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


def _in_process(job: _Job, threads: int) -> None:
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
        process, one after another, for debugging.
    threads : int
        Threads that each worker computes with.
    on_event : callable, optional
        Called in this process with each :class:`Event`.
    display : {"auto", "terminal", "plain"} or None
        Bars on a terminal, lines elsewhere, both on standard error; None shows nothing.
    retries : int
        How often a task whose worker was killed is tried again, alone on the machine. A task that raises is
        not tried again by this call, only by the next: it would raise again.

    Returns
    -------
    Report
        What ended, what failed and why. Nothing is raised for a task that fails.

    Raises
    ------
    ValueError
        If keys or runs are not unique, a need is missing, or needs form a circle.
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
    digest = plan.digest if isinstance(plan, Plan) else store.plan(plan).digest
    count = max(1, usable_cores() // threads) if workers is None else workers
    shown = progress.show(display, tasks)

    def tell(event: Event) -> None:
        if shown is not None:
            shown.show(event)
        if on_event is not None:
            on_event(event)

    try:
        job = _Job(tasks, store, digest, max(1, count), retries, tell)
        if count == 0:
            _in_process(job, threads)
        else:
            _in_workers(job, threads)
        return job.report()
    finally:
        if shown is not None:
            shown.close()
