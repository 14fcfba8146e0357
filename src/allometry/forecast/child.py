"""One run of somebody's own training command, as a task of the executor.

- The command is a list of words and runs without a shell, in a process group of its own
  (:mod:`allometry.forecast.guard`), and dies with the worker that started it.
- Its output goes to ``output.log`` in the run's folder, which is also the lock: every process of the run
  holds that file open, so a second attempt begins only when the last process of the first has gone.
- ``command.txt`` in the run's folder says which command the folder belongs to, and how it ended.  So a
  folder tells by itself whether its run is done, also to another store, and a run is never mistaken for one
  of a command that has been changed since.
- Files that the command left are kept: it may go on from its own checkpoints.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from allometry.forecast import guard
from allometry.study.task import Context, Record
from allometry.study.worker import MEMORY_SETTINGS, THREAD_VARIABLES

__all__ = ["CommandFailed", "ended", "run_command", "time_limit"]

COMMAND, OUTPUT = "command.txt", "output.log"
_POSIX = os.name == "posix"
_ENDED = "# exit code 0"
_LIMIT = "ALLOMETRY_COMMAND_SECONDS"
_GRACE_SECONDS = 1.2  # the executor gives a task two seconds to stop
_LOCK_SECONDS = 5.0
_LOOK_SECONDS = 0.1


_RAISED = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)(:|$)")


class CommandFailed(RuntimeError):
    """A command did not end with exit code 0; the message says how, and its last words."""


def ended(folder: Path, argv: Sequence[str]) -> bool | None:
    """Whether the folder's run of this command has ended well; None if no run of ours was ever there.

    Raises
    ------
    ValueError
        If the folder belongs to another command.
    """
    try:
        lines = (folder / COMMAND).read_text().splitlines()
    except FileNotFoundError:
        return None
    before = shlex.split(lines[0]) if lines else []
    if before and before != list(argv):
        raise ValueError(
            f"{folder} holds a run of another command ({shlex.join(before)}); choose another --out, or "
            "delete the folder"
        )
    return any(line.startswith(_ENDED) for line in lines[1:])


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Workers started inside the block end a command after so many seconds.

    In the environment, not among the task's arguments: those are the run's identity, and a run that was cut
    short is to be tried again with more time.
    """
    before = os.environ.get(_LIMIT)
    os.environ.pop(_LIMIT, None)
    if seconds is not None:
        os.environ[_LIMIT] = repr(float(seconds))
    try:
        yield
    finally:
        os.environ.pop(_LIMIT, None)
        if before is not None:
            os.environ[_LIMIT] = before


def run_command(arguments: Mapping[str, Any], context: Context) -> Iterator[Record]:
    """Run ``arguments["argv"]`` in ``arguments["directory"]``, for the run ``arguments["key"]``.

    Raises
    ------
    CommandFailed
        If it ends with another exit code than 0, or takes longer than the time limit.
    """
    directory, argv = Path(arguments["directory"]), [str(word) for word in arguments["argv"]]
    folder = directory / arguments["out"]
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with (folder / OUTPUT).open("ab") as output:
        _lock(output, folder)
        if not ended(folder, argv):
            _write(folder / COMMAND, shlex.join(argv) + "\n")
            start = output.tell()
            code, why = _carried_out(argv, directory, output, context)
            if why == "stopped":
                return
            if why or code:
                raise CommandFailed(f"{why or _exit(code)}: {_last_line(folder / OUTPUT, start)}")
            _write(folder / COMMAND, f"{shlex.join(argv)}\n{_ENDED}\n")
    yield Record(arguments["key"], "command", {"exit_code": 0}, timing={"seconds": time.monotonic() - began})


def _carried_out(argv: list[str], directory: Path, output: BinaryIO, context: Context) -> tuple[int, str]:
    """The command's exit code, and why it was ended if it was: ``stopped``, or that its time was up."""
    limit = float(os.environ.get(_LIMIT, "inf"))
    # The allocator's settings are made for our own workers; what the user has set passes through.
    environment = {name: value for name, value in os.environ.items() if MEMORY_SETTINGS.get(name) != value}
    environment |= {name: str(context.threads) for name in THREAD_VARIABLES}
    environment.pop(_LIMIT, None)
    environment.setdefault("PYTHONUNBUFFERED", "1")  # so that output.log can be followed
    guarded = [sys.executable, "-I", "-S", guard.__file__, str(_GRACE_SECONDS), *argv]
    process = subprocess.Popen(
        guarded if _POSIX else argv, stdin=subprocess.PIPE if _POSIX else subprocess.DEVNULL, stdout=output,
        stderr=subprocess.STDOUT, cwd=directory, env=environment, start_new_session=_POSIX,
    )  # fmt: skip
    deadline, why = time.monotonic() + limit, ""
    try:
        while not why:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_SECONDS)
                break
            if context.should_stop():
                why = "stopped"
            elif time.monotonic() > deadline:
                why = f"took longer than {limit:g} seconds"
    except BaseException:  # Ctrl-C where the task runs in the caller's own process
        why = "stopped"
        raise
    finally:
        _end(process, why)
    return process.returncode, why


def _end(process: subprocess.Popen[bytes], why: str) -> None:
    """Stop what still runs; after a failure, also what the command left behind."""
    if process.stdin is None:
        process.kill()
        process.wait()
        return
    if why and process.poll() is None:
        with contextlib.suppress(OSError):
            process.stdin.write(b"s")
            process.stdin.flush()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS + 0.3)
    if why or process.poll() != 0:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with contextlib.suppress(OSError):
        process.stdin.close()


def _lock(output: BinaryIO, folder: Path) -> None:
    if not _POSIX:
        return None
    import fcntl

    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # any other error: this file system has no locks, so that nothing can be told
            if time.monotonic() > until:
                raise CommandFailed(f"a process of an earlier attempt still writes to {folder}") from None
            time.sleep(_LOOK_SECONDS)
        except OSError:
            return None


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)


def _exit(code: int) -> str:
    if code == guard.NO_PROGRAM:
        return "exit code 127 (no such program)"
    number = -code if code < 0 else code - 128
    with contextlib.suppress(ValueError):
        if number > 0:
            name = signal.Signals(number).name
            often = ", often: out of memory" if number == 9 else ""
            return f"ended by signal {number} ({name}{often})"
    return f"exit code {code}"


def _last_line(path: Path, start: int) -> str:
    """The last words of this attempt: an exception's, or the last line; of a progress bar its last state."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - 8192))
        text = file.read().decode("utf-8", "replace")
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
    raised = [line for line in lines[-20:] if _RAISED.match(line)]  # what was buffered may come after it
    return (raised or lines or ["it printed nothing"])[-1][:300]
