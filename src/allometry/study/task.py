"""What is handed to a worker and what comes back: the task, its records, and the context it works in."""

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from allometry.study.canonical import canonical


@dataclass(frozen=True)
class Record:
    """Something a run has to tell, worth keeping at once.

    Attributes
    ----------
    run : str
        Key of one of the task's runs.
    name : str
        Unique within the run, such as ``"tokens=1048576"``.
    values : dict
        JSON-able, and the same whenever the task is done again.
    timing : dict
        What a clock measured: stored the first time and never compared.

    Examples
    --------
    >>> Record("width=64", "final", {"loss": 1.25}, timing={"seconds": 3.0}).run
    'width=64'
    """

    run: str
    name: str
    values: Mapping[str, Any]
    timing: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A piece of work for one worker.

    Attributes
    ----------
    key : str
        Unique within the plan; also names the task's folder.
    function : str
        ``"package.module:function"``, imported in the worker and called as ``function(arguments, context)``;
        it yields :class:`Record`, or tells each by ``context.record``.
    arguments : dict
        JSON-able.
    runs : tuple of str
        Keys of the runs that it trains: several where one program trains them together. Default: its own key.
    cost : float
        Relative; orders the work (the longest chain first) and weighs the time that is left.
    slots : int
        How many workers' places it takes, for its memory or its own processes.
    exclusive : bool
        Whether it has the machine for itself.
    needs : tuple of str
        Keys of tasks that must be done before.
    threads : int, optional
        Threads that it computes with, if other than the executor's: part of the task, since another number of
        threads adds in another order.
    gpus : int
        CUDA devices that it needs. A cluster gives it as many on one node; on one machine tasks share what
        is there.

    Examples
    --------
    >>> Task("width=64", "package.module:train", {"width": 64}).runs
    ('width=64',)
    """

    key: str
    function: str
    arguments: Mapping[str, Any]
    runs: tuple[str, ...] = ()
    cost: float = 1.0
    slots: int = 1
    exclusive: bool = False
    needs: tuple[str, ...] = ()
    threads: int | None = None
    gpus: int = 0

    def __post_init__(self) -> None:
        if not 0 < len(self.key) <= 200:
            raise ValueError(f"a task's key has 1 to 200 characters, not {len(self.key)}: {self.key[:60]!r}")
        module, _, name = self.function.partition(":")
        if not module or not name or module == "__main__":
            raise ValueError(
                f"task {self.key!r} names {self.function!r}; give 'package.module:function', in a module "
                "that a worker can import (not __main__)"
            )
        if not (math.isfinite(self.cost) and self.cost > 0):
            raise ValueError(f"task {self.key!r} has cost {self.cost!r}; give a positive number")
        if self.slots < 1 or (self.threads is not None and self.threads < 1):
            raise ValueError(f"task {self.key!r} needs at least 1 slot and 1 thread")
        if self.gpus < 0:
            raise ValueError(f"task {self.key!r} cannot need {self.gpus!r} CUDA devices")
        canonical(dict(self.arguments), place=f"arguments of task {self.key!r}")
        object.__setattr__(self, "runs", tuple(self.runs) or (self.key,))
        object.__setattr__(self, "needs", tuple(self.needs))


class Context:
    """What a task function may ask and tell while it works.

    Attributes
    ----------
    directory : Path
        This task's own folder, there to keep checkpoints; empty at the first attempt.
    done : frozenset of (str, str)
        (run, record name) pairs that earlier attempts stored; they need not be yielded again.
    ended : frozenset of str
        Keys of those of the task's runs that need no training any more (done or diverged earlier).
    attempt : int
        1 the first time.
    threads : int
        Threads that the task computes with.

    Examples
    --------
    >>> context = Context(Path("."))
    >>> context.progress(10, 100, loss=2.5)
    >>> context.should_stop()
    False
    """

    def __init__(
        self,
        directory: Path,
        *,
        done: frozenset[tuple[str, str]] = frozenset(),
        ended: frozenset[str] = frozenset(),
        attempt: int = 1,
        threads: int = 1,
        on_progress: Callable[[int, int, dict[str, Any]], None] | None = None,
        on_diverged: Callable[[str, str, int | None], None] | None = None,
        on_record: Callable[[Record], None] | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self.directory = directory
        self.done = done
        self.ended = ended
        self.attempt = attempt
        self.threads = threads
        self.step: int | None = None
        self._on_progress = on_progress
        self._on_diverged = on_diverged
        self._on_record = on_record
        self._stop = stop or threading.Event()

    def progress(self, step: int, total: int, **values: float) -> None:
        """Tell how far the task has come; cheap, call it every step. Values, such as the loss, are shown."""
        self.step = int(step)
        if self._on_progress is not None:
            self._on_progress(int(step), int(total), values)

    def record(self, record: Record) -> None:
        """Store a record now, as yielding it would: for a task that learns of its records by a callback."""
        if self._on_record is not None:
            self._on_record(record)

    def diverged(self, run: str, reason: str, step: int | None = None) -> None:
        """Mark one of the task's runs diverged, at once and for good; the others may go on."""
        if self._on_diverged is not None:
            self._on_diverged(run, reason, step)

    def should_stop(self) -> bool:
        """Whether the user wants to stop: save a checkpoint and return, within two seconds."""
        return self._stop.is_set()
