"""The process that does the work: one task after another, each record in the store before the next is made.

- A worker lives for many tasks, since importing torch takes 1.4 s of a core, and is a fresh interpreter:
  nothing is forked, thread counts are set before any library loads, and the caller's ``__main__`` is not run
  again (``multiprocessing``'s spawn does, so that a script without a guard would start itself anew).
- It talks with its parent in lines of JSON over two pipes of its own. What a task prints goes to
  ``output.txt`` in the task's folder.
- It owns the runs that it trains: were the parent to own them, a resumed job could begin a run while an
  orphan still trains it.
- It dies with its parent: on Linux the kernel sees to it, elsewhere the closed pipe does. Ctrl-C leaves it at
  its work (the parent decides), and it offers itself first when memory runs out.
"""

import contextlib
import ctypes
import faulthandler
import importlib
import os
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from allometry.study.canonical import canonical, digest, message, restore
from allometry.study.database import StoreError, StoreUnreachable
from allometry.study.store import BEAT, Run, Store
from allometry.study.task import Context, Record, Task

_PROGRESS_SECONDS = 0.1  # progress is passed on at most this often
_PATIENCE = 300.0  # seconds that a result waits for a server that is restarted or cut off
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS",
                     "VECLIB_MAXIMUM_THREADS")  # fmt: skip
# glibc hands freed memory back to the system at the end of every training step and faults it in again at the
# next; keeping it makes small models 5 to 15 % faster. What the user has set stands.
MEMORY_SETTINGS = {
    "MALLOC_TRIM_THRESHOLD_": "4294967295",
    "MALLOC_TOP_PAD_": "268435456",
    "MALLOC_MMAP_MAX_": "0",
}

Message = dict[str, Any]


def task_directory(store: Store, plan: str, key: str) -> Path:
    """The folder of one task: ``plans/<first 12 digits>/<key>`` under the store's directory.

    Characters that some file systems refuse are written as ``%xx``; a name too long ends in its digest.
    """
    name = quote(key, safe="=,+@()[] ")
    if name.startswith("."):
        name = "%2E" + name[1:]
    if len(name) > 150:
        name = f"{name[:130]}~{digest(key)[:12]}"
    return store.directory / "plans" / plan[:12] / name


@contextlib.contextmanager
def computing_threads(count: int) -> Iterator[None]:
    """Libraries compute with so many threads inside the block, those loaded already and those yet to load."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update({name: str(count) for name in THREAD_VARIABLES})
    torch = sys.modules.get("torch")
    earlier = torch.get_num_threads() if torch is not None else None
    if torch is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if torch is not None:
            torch.set_num_threads(earlier)


def find_function(name: str) -> Callable[[dict[str, Any], Context], Any]:
    """The function that ``"package.module:function"`` names."""
    module, _, attribute = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{name} is {found!r}, not a function")
    return found


class _Heart:
    """Beats for the claimed runs from a thread of its own, and notices when one was taken over."""

    def __init__(self, store: Store, runs: list[Run], steps: dict[str, int], lost: threading.Event) -> None:
        self._store, self._runs, self._steps, self._lost = store, runs, steps, lost
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def _beat(self) -> None:
        while not self._end.wait(BEAT):
            # A heartbeat that cannot be written is no reason to stop; the next record will tell.
            with contextlib.suppress(Exception):
                if not self._store.beat(self._runs, dict(self._steps)):
                    self._lost.set()

    def __enter__(self) -> "_Heart":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def carry_out(
    task: Task,
    store: Store,
    plan: str,
    threads: int,
    tell: Callable[[Message], None],
    stop: threading.Event,
    *,
    place: str = "",
) -> Message:
    """Do one task in this process and return how it ended.

    Parameters
    ----------
    place : str
        Where this is, for the reason of a failure; empty on the user's own machine.

    Returns
    -------
    dict
        ``outcome`` is ``done``, ``skipped`` (all its runs have ended meanwhile), ``busy`` (another living
        process holds one), ``stopped`` or ``failed``, the last with a ``reason`` in one line.
    """
    try:
        claimed = _patiently(store.claim, plan, task.runs)
    except StoreError as error:
        return {"outcome": "failed", "reason": _reason(error, place)}
    if claimed is None:
        return {"outcome": "busy"}
    if not claimed:
        return {"outcome": "skipped"}
    open_runs = {run.key: run for run in claimed}
    steps: dict[str, int] = {}
    directory = task_directory(store, plan, task.key)
    last_told = 0.0
    context: Context | None = None

    def on_progress(step: int, total: int, values: dict[str, Any]) -> None:
        nonlocal last_told
        steps.update(dict.fromkeys(open_runs, step))
        now = time.monotonic()
        if step >= total or now - last_told >= _PROGRESS_SECONDS:
            last_told = now
            tell({"event": "progress", "step": step, "total": total, "values": values})

    def on_diverged(run: str, reason: str, step: int | None) -> None:
        if run not in task.runs:
            raise ValueError(f"task {task.key!r} has no run {run!r}; its runs are {', '.join(task.runs)}")
        if run in open_runs:  # told before, perhaps by an earlier attempt: nothing changes
            _patiently(store.fail_run, open_runs.pop(run), reason, "diverged", step)
            tell({"event": "diverged", "run": run, "reason": reason, "step": step})

    def keep(record: Record) -> None:
        _keep(record, task, store, plan, tell)

    try:
        attempt = max(run.attempts for run in claimed)
        if attempt == 1 and directory.exists():
            shutil.rmtree(directory)  # left by a store that is gone: its checkpoints are ahead of our records
        directory.mkdir(parents=True, exist_ok=True)
        done = frozenset(store.record_names(plan, task.runs))
        tell({"event": "started" if attempt == 1 else "resumed", "attempt": attempt, "records": len(done)})
        context = Context(
            directory,
            done=done,
            ended=frozenset(task.runs) - set(open_runs),
            attempt=attempt,
            threads=task.threads or threads,
            on_progress=on_progress,
            on_diverged=on_diverged,
            on_record=keep,
            stop=stop,
        )
        with _Heart(store, claimed, steps, stop):
            try:
                _work(task, context, keep)
            except Exception as error:
                if not _unreadable(error):
                    raise
                _set_aside(directory)
                tell({"event": "retried", "reason": "its checkpoints cannot be read: set aside, begun anew"})
                _work(task, context, keep)
        if stop.is_set():
            # Did it come to its end or return early? Only the task can tell: it will be asked again.
            store.release(*open_runs.values())
            return {"outcome": "stopped"}
        _patiently(store.finish_run, *open_runs.values())
        return {"outcome": "done"}
    except Exception as error:
        reason = _reason(error, place)
        with contextlib.suppress(OSError):
            (directory / "error.txt").write_text(traceback.format_exc())
        step = context.step if context is not None else None
        for run in open_runs.values():
            try:
                store.fail_run(run, reason, "failed", step)
            except Exception:  # the store itself may be what failed
                store.forsake(run)
        return {"outcome": "failed", "reason": reason}
    except BaseException:  # Ctrl-C where the task runs in the caller's own process
        try:
            store.release(*open_runs.values())
        except Exception:
            store.forsake(*open_runs.values())
        raise


def _work(task: Task, context: Context, keep: Callable[[Record], None]) -> None:
    arguments = restore(canonical(dict(task.arguments)))  # what any worker would be given, here too
    with _output_to(context.directory / "output.txt"), computing_threads(context.threads):
        for record in find_function(task.function)(arguments, context) or ():
            keep(record)


def _reason(error: Exception, place: str) -> str:
    words = str(error)
    if not words.strip():
        words = "there was no memory left for it" if isinstance(error, MemoryError) else "no reason given"
    if place:
        where = f"on {place}" + (
            "; every machine of the cluster must see the same files under the same paths"
            if isinstance(error, FileNotFoundError)
            else ""
        )
        words = f"{words} ({where})"
    return " ".join(f"{type(error).__name__}: {words}".split())


def _patiently(call: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """Call a method of the store; while its server is away, again and again, as long as patience lasts.

    A task waits where it stands, so that a server's restart costs the time that it takes and no run.
    """
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return call(*given, **named)
        except StoreUnreachable:
            if time.monotonic() > until:
                raise
            time.sleep(min(1.0, _PATIENCE))


def _unreadable(error: Exception) -> bool:
    """Whether checkpoints are what failed; asked without loading torch, which a task need not use."""
    module = sys.modules.get("allometry.train.checkpoint")
    return module is not None and isinstance(error, module.CheckpointError)


def _set_aside(directory: Path) -> None:
    """Move a task's folder out of the way, for whoever wants to look, and make an empty one."""
    beside = directory.with_name(directory.name + ".unreadable")
    shutil.rmtree(beside, ignore_errors=True)
    directory.rename(beside)
    directory.mkdir()


def _keep(record: Any, task: Task, store: Store, plan: str, tell: Callable[[Message], None]) -> None:
    if not isinstance(record, Record):
        raise TypeError(f"{task.function} yielded {record!r}; it must yield Record")
    if record.run not in task.runs:
        raise ValueError(
            f"{task.function} yielded a record of run {record.run!r}, which is not among the runs of the "
            f"task: {', '.join(task.runs)}"
        )
    if _patiently(store.add_record, plan, record.run, record.name, record.values, timing=record.timing):
        told = {**record.values, **record.timing}
        tell({"event": "record", "run": record.run, "name": record.name, "values": told})


_redirect_output = False  # only a worker's own descriptors are moved, never those of a caller


def keep_output() -> None:
    """From now on what tasks print in this process goes to their folders."""
    global _redirect_output
    _redirect_output = True


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """What is printed inside the block, also by native code, is appended to a file."""
    if not _redirect_output:
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.dup2(file, 1)
        os.dup2(file, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        for descriptor in (*kept, file):
            os.close(descriptor)


def die_with(parent: int) -> None:
    """Let this process end when its parent does, whatever the parent ends of."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("500")
    if hasattr(os, "getppid") and os.getppid() != parent:  # it died before the kernel was told
        os._exit(1)


def main() -> None:
    """A worker's life: a first line that sets it up, then a line a task, until the pipe closes."""
    # The pipes move to descriptors that no child inherits; what prints to descriptor 1 then goes to 2.
    commands = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    keep_output()
    setup = restore(commands.readline() or "null")
    if setup is None:
        return
    die_with(setup["parent"])
    faulthandler.enable()
    stop = threading.Event()
    tasks: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def listen() -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in commands:
                if (command := restore(line)).get("stop"):
                    stop.set()
                else:
                    tasks.put(command)
        os._exit(0)  # the parent has closed the pipe, or is gone: whatever runs here may not go on

    threading.Thread(target=listen, name="commands", daemon=True).start()

    def tell(words: Message) -> None:
        try:
            answers.write(message(words) + "\n")
            answers.flush()
        except OSError:
            os._exit(1)

    try:
        store = Store(setup["url"], directory=setup["directory"])
    except StoreError as error:
        tell({"event": "refused", "reason": str(error)})
        return
    with store:
        tell({"event": "ready"})
        while True:
            command = tasks.get()
            stop.clear()
            task = Task(**command["task"])
            tell({"event": "ended", **carry_out(task, store, setup["plan"], setup["threads"], tell, stop)})
