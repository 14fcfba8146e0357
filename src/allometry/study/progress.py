"""What a long job shows: bars on a terminal, plain lines elsewhere, both on standard error.

Time left is what the costs say: the share of cost done since this call began, and the time it took. The loss
or any other value that a task tells stands beside its bar.
"""

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO

from allometry.study.task import Task

if TYPE_CHECKING:
    from allometry.study.execute import Event

_LINE_SECONDS = 10.0  # plain progress lines of one task are at least so far apart
_MOST_VALUES = 4


class Display(Protocol):
    """Something that shows events."""

    def show(self, event: "Event") -> None:
        """Take in one event."""

    def close(self) -> None:
        """Leave the screen tidy."""


def duration(seconds: float) -> str:
    """Seconds in the words of a clock.

    >>> duration(42), duration(192), duration(7500)
    ('42 s', '3 min 12 s', '2 h 05 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def summary(values: dict[str, Any]) -> str:
    """The first few numbers of a record or of progress, on one line.

    >>> summary({"loss": 2.345678, "tokens": 4096, "note": "a"})
    'loss 2.346  tokens 4096'
    """
    numbers = [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return "  ".join(numbers[:_MOST_VALUES])


class Share:
    """How much of the cost is done, and how long the rest will take at the pace of this call."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._left = {task.key: task.cost for task in tasks}
        self._part: dict[str, float] = {}
        self._first: dict[str, float] = {}  # how far a resumed task already was is not this call's doing
        self._total = sum(self._left.values())
        self._began = time.monotonic()

    def take(self, event: "Event") -> None:
        key = event.task.key
        if event.kind == "skipped":
            self._total -= self._left.pop(key, 0.0)
        elif event.kind in ("finished", "failed", "blocked"):
            self._left.pop(key, None)
            self._part.pop(key, None)
            self._total -= event.task.cost * self._first.pop(key, 0.0)
        elif event.kind == "progress" and event.total:
            part = min(1.0, (event.step or 0) / event.total)
            if event.task.key not in self._first:
                self._first[key] = 0.0 if part < 0.05 else part
            self._part[key] = part
        elif event.kind == "retried":
            self._part.pop(key, None)
            self._first.pop(key, None)

    def done(self) -> float:
        """Between 0 and 1."""
        before = sum(self._left[key] * part for key, part in self._first.items() if key in self._left)
        left = sum(cost * (1.0 - self._part.get(key, 0.0)) for key, cost in self._left.items())
        return 1.0 - left / (self._total - before) if self._total - before > 0 else 1.0

    def seconds_left(self) -> float | None:
        """None while too little is done to tell."""
        done, spent = self.done(), time.monotonic() - self._began
        return spent * (1.0 - done) / done if done > 0.01 and spent > 2.0 else None


_WORDS = {
    "started": "started",
    "resumed": "goes on where it was",
    "waiting": "waits",
    "retried": "is tried again",
    "finished": "finished",
    "failed": "FAILED",
    "blocked": "blocked",
    "diverged": "diverged",
    "stopped": "stopped; the next call goes on from here",
}


def _sentence(event: "Event") -> str:
    parts = [event.task.key]
    if event.kind == "record":
        if event.run != event.task.key:
            parts.append(str(event.run))
        parts += [str(event.name), summary(event.values)]
    else:
        parts.append(
            _WORDS[event.kind] + (f" ({event.run})" if event.run not in (None, event.task.key) else "")
        )
        if event.reason:
            parts.append(event.reason)
    return ": ".join(part for part in parts if part)


class PlainDisplay:
    """Lines for a log file: every record and every change, and progress now and then."""

    def __init__(self, tasks: Sequence[Task], stream: TextIO) -> None:
        self._stream = stream
        self._share = Share(tasks)
        self._skipped = 0
        self._count = len(tasks)
        self._last: dict[str, float] = {}

    def _write(self, line: str) -> None:
        if self._skipped:
            before, self._skipped = self._skipped, 0
            self._write(f"{before} of {self._count} tasks had ended before")
        self._stream.write(f"{time.strftime('%H:%M:%S')}  {line}\n")
        self._stream.flush()

    def show(self, event: "Event") -> None:
        self._share.take(event)
        now, key = time.monotonic(), event.task.key
        if event.kind == "skipped":
            self._skipped += 1
        elif event.kind == "progress":
            if now - self._last.setdefault(key, now) >= _LINE_SECONDS:
                self._last[key] = now
                parts = [f"{key}: {event.step}/{event.total}", summary(event.values)]
                left = self._share.seconds_left()
                if left is not None:
                    parts.append(f"[all {100 * self._share.done():.0f} %, {duration(left)} left]")
                self._write("  ".join(part for part in parts if part))
        else:
            self._write(_sentence(event))

    def close(self) -> None:
        if self._skipped:
            before, self._skipped = self._skipped, 0
            self._write(f"{before} of {self._count} tasks had ended before")


class TerminalDisplay:
    """One bar for the whole and one for each running task; records pass by above them."""

    def __init__(self, tasks: Sequence[Task], console: Any = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._share = Share(tasks)
        self._bars: dict[str, Any] = {}
        self._rates: dict[str, tuple[float, int]] = {}
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[told]}", markup=False),
            console=console or Console(stderr=True),
        )
        self._all = self._progress.add_task("all", total=1.0, told="")
        self._progress.start()

    def show(self, event: "Event") -> None:
        self._share.take(event)
        key = event.task.key
        if event.kind == "progress" and event.total:
            self._advance(event)
        elif event.kind in ("started", "resumed"):
            self._bar(key)
        elif event.kind in ("finished", "failed", "blocked", "stopped", "retried"):
            if (bar := self._bars.pop(key, None)) is not None:
                self._progress.remove_task(bar)
            self._rates.pop(key, None)
        told = ("record", "failed", "diverged", "retried", "waiting", "resumed", "blocked")
        if event.kind in told or (event.kind == "started" and event.reason):
            self._progress.console.print(_sentence(event), markup=False, highlight=False)
        left = self._share.seconds_left()
        self._progress.update(
            self._all,
            completed=self._share.done(),
            told=f"{100 * self._share.done():.0f} %"
            + (f"  {duration(left)} left" if left is not None else ""),
        )

    def _bar(self, key: str) -> Any:
        if key not in self._bars:
            self._bars[key] = self._progress.add_task(key, total=None, told="")
        return self._bars[key]

    def _advance(self, event: "Event") -> None:
        step, now = event.step or 0, time.monotonic()
        since, first = self._rates.setdefault(event.task.key, (now, step))
        told = [f"{step}/{event.total}"]
        if now - since > 1.0 and step > first:
            told.append(f"{(step - first) / (now - since):.3g}/s")
        told.append(summary(event.values))
        self._progress.update(
            self._bar(event.task.key),
            completed=step,
            total=event.total,
            told="  ".join(part for part in told if part),
        )

    def close(self) -> None:
        self._progress.stop()


def show(display: Literal["auto", "terminal", "plain"] | None, tasks: Sequence[Task]) -> Display | None:
    """The display of that name; ``"auto"`` looks whether standard error is a terminal.

    Raises
    ------
    ValueError
        If there is no display of that name.
    """
    if display is None:
        return None
    if display not in ("auto", "terminal", "plain"):
        raise ValueError(f"display is {display!r}; it is 'auto', 'terminal', 'plain' or None")
    if display == "terminal" or (display == "auto" and sys.stderr.isatty()):
        return TerminalDisplay(tasks)
    return PlainDisplay(tasks, sys.stderr)
