"""What is to be done and in which order: the state of one call that carries out a plan's tasks.

A task's rank is the cost of the longest chain of tasks that begins with it, and the highest rank goes first
(the critical path; R. L. Graham, 1966, bounds what list scheduling can lose). A wide task at the head waits
for its places, and nothing overtakes it, so it cannot starve. Exclusive tasks wait until no other is ready.
Where a task runs, and beside which, has no part in its numbers.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from allometry.study.owner import Owner
from allometry.study.store import ENDED, Store
from allometry.study.task import Task
from allometry.study.worker import Message

BUSY_SECONDS = 2.0  # how often a task that another process holds is looked at again


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


def ranks_of(tasks: Sequence[Task]) -> dict[str, float]:
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


class Job:
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
        ranks = ranks_of(tasks)
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
        # On a cluster: how many places a task takes, which may have to be alone, but on its node only.
        self.width_of: Callable[[Task, bool], int] | None = None
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
        if self.width_of is not None:
            return min(self.width_of(task, task.key in self.alone), self.places)
        return min(task.slots, self.places)

    def _alone(self, task: Task) -> bool:
        """Whether nothing else may run beside it."""
        return self.width_of is None and (task.exclusive or task.key in self.alone)

    def next(self) -> Task | None:
        """The task to start now, if one may start."""
        if any(self._alone(task) for task in self.running.values()):
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
        shared = [task for task in ready if not self._alone(task)]
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
            self.not_before[task.key] = time.monotonic() + BUSY_SECONDS
        elif outcome == "stopped":
            self.running.pop(task.key, None)
            self.say("stopped", task)
        else:
            self.end(task, outcome, reason)
        return True

    def died(self, task: Task, owner: Owner | None, reason: str, *, alone: bool = True) -> None:
        """A worker is gone in the middle of a task: once more, and alone, since memory is the usual cause."""
        left = self.store.release_owner(self.plan, owner) if owner is not None else []
        self.running.pop(task.key, None)
        if self.tries[task.key] <= self.retries:
            if alone:
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
