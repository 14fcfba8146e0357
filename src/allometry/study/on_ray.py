"""The same tasks on a Ray cluster: Ray places them and tells of deaths, everything else is as on one machine.

Tasks become Ray tasks; a task's process is :func:`allometry.study.worker.carry_out`, as in a local worker.

- *Who writes.* One actor beside the driver, the desk, has the store open; a worker's claims, records and
  endings go through it, and a record is committed before its task goes on. So SQLite serves a whole cluster
  (other nodes need not see the file), nodes need neither a database driver nor a password, and PostgreSQL is
  no other case. A commit takes milliseconds, a record seconds to hours.
- *Deaths.* A killed worker costs the trials it had in hand; they are tried again as often as on one machine,
  alone on a node where memory may have been the cause. A lost node likewise. When the driver dies Ray ends
  the desk and all workers; the same command goes on.
- *Order.* The driver hands out no more than fits, the longest chain first, since Ray's own queue knows no
  ranks. ``workers`` may ask for more than there is, which is what makes an autoscaler act.
- *Files.* Checkpoints lie under the store's directory. Where a node does not see it they lie under the same
  path on that node, and are lost with it, which is said; numbers are the same, for the task begins anew.
  What tasks read (text) must be seen by every node under the same path.

Ray: Moritz and others, 2018. arXiv:1712.05889
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import socket
import sys
import sysconfig
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from allometry.extras import MissingExtra
from allometry.study.cores import usable_cores
from allometry.study.owner import Owner
from allometry.study.rows import Run
from allometry.study.store import Store
from allometry.study.task import Task
from allometry.study.worker import (
    MEMORY_SETTINGS,
    THREAD_VARIABLES,
    Message,
    carry_out,
    keep_output,
    task_directory,
)

if TYPE_CHECKING:
    from allometry.study.job import Job

_GRACE_SECONDS = 5.0  # how long tasks may take to save and return after Ctrl-C
_LISTEN_SECONDS = 0.5  # how long the driver waits for news before it looks for deaths
_CONNECT_SECONDS = 5.0  # how long a cluster's head may take to answer
_STOP_SECONDS = 1.0  # how often a worker asks whether to stop


class _Desk:
    """The actor that has the store open: what workers ask of it, and what they tell the driver."""

    def __init__(self, url: str, directory: str) -> None:
        self._store = Store(url, directory=directory)
        self._news: asyncio.Queue[tuple[int, Message]] = asyncio.Queue()
        self._stopping = False

    async def call(self, method: str, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """A method of the store."""
        return getattr(self._store, method)(*given, **named)

    async def tell(self, number: int, words: Message) -> None:
        """Leave a message for the driver."""
        self._news.put_nowait((number, words))

    async def take(self, seconds: float) -> list[tuple[int, Message]]:
        """Messages so far; where there are none, wait for one so long."""
        news: list[tuple[int, Message]] = []
        with contextlib.suppress(asyncio.TimeoutError):
            if self._news.empty() and seconds > 0:
                news.append(await asyncio.wait_for(self._news.get(), seconds))
        while not self._news.empty():
            news.append(self._news.get_nowait())
        return news

    async def stop(self) -> None:
        """Ask all tasks to stop."""
        self._stopping = True

    async def stopping(self) -> bool:
        """Whether tasks are to stop."""
        return self._stopping


class _StoreAtDesk:
    """The store as a worker has it: the methods that ``carry_out`` calls, done at the desk."""

    def __init__(self, desk: Any, directory: str) -> None:
        self._desk = desk
        self.directory = Path(directory)

    def __getattr__(self, method: str) -> Any:
        import ray

        def call(*given: Any, **named: Any) -> Any:
            try:
                return ray.get(self._desk.call.remote(method, given, named))
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None  # the store's own sentence, without the way it came

        return call

    def claim(self, plan: str, keys: tuple[str, ...]) -> list[Run] | None:
        """For this process, not for the desk's."""
        return self.__getattr__("claim")(plan, keys, owner=Owner.here())


def _do(desk: Any, setup: dict[str, Any], task: dict[str, Any], number: int) -> None:
    """One task in a process of Ray's."""
    import ray

    stop, over = threading.Event(), threading.Event()

    def listen() -> None:
        while not over.wait(_STOP_SECONDS):
            try:
                if ray.get(desk.stopping.remote()):
                    stop.set()
            except ray.exceptions.RayActorError:
                os._exit(1)  # the driver is gone: nothing that runs here may go on

    host = socket.gethostname()
    seen = Path(setup["mark"])
    shared = seen.is_file() and seen.read_text() == setup["token"]

    def tell(words: Message) -> None:
        if words["event"] in ("started", "resumed") and not shared:
            folder = setup["directory"]
            words["reason"] = f"{host} does not see {folder}; checkpoints stay there and are lost with it"
        told = desk.tell.remote(number, words)
        if words["event"] != "progress":  # what matters has arrived before the task goes on
            ray.get(told)

    node = ray.get_runtime_context().get_node_id()
    tell({"event": "placed", "owner": asdict(Owner.here()), "node": node})
    threading.Thread(target=listen, name="stop", daemon=True).start()
    keep_output()
    store = cast(Store, _StoreAtDesk(desk, setup["directory"]))
    try:
        ended = carry_out(
            Task(**task), store, setup["plan"], setup["threads"], tell, stop, place=f"{host}, node {node[:8]}"
        )
    finally:
        over.set()
    tell({"event": "ended", **ended})


def _environment(threads: int) -> dict[str, str]:
    """What a worker's process is started with: threads, memory, and where it finds the caller's modules."""
    places = sysconfig.get_paths()  # what is installed is found on every node without being told
    installed = tuple(places[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    paths = [os.path.abspath(path) for path in sys.path if not path.startswith(installed)]
    kept = {name: os.environ.get(name, value) for name, value in MEMORY_SETTINGS.items()}
    return {**kept, **dict.fromkeys(THREAD_VARIABLES, str(threads)), "PYTHONPATH": os.pathsep.join(paths)}


def _write_mark(folder: Path) -> tuple[Path, str]:
    """A file by whose content a node knows that the folder it sees is the driver's."""
    mark, token = folder / ".seen", uuid.uuid4().hex
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(token)
    return mark, token


def refuse_cluster(address: str | None) -> None:
    """Say that ray is missing, or that an address cannot be used.

    Raises
    ------
    MissingExtra
    ValueError
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingExtra("running on a cluster needs ray; install it with: pip install 'allometry[ray]'")
    if address is not None and address.startswith("ray://"):
        raise ValueError(
            f"{address!r} is a client's address, and the store must lie on a machine of the cluster; start "
            "this on one of its machines (`ray job submit`, or a shell there) with host:port or no address"
        )
    if address in (None, "auto", "local"):
        return
    host, _, port = str(address).rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"a Ray cluster's address is host:port, as `ray start` prints it, not {address!r}")
    try:  # asked directly: Ray itself would try for minutes and write about it
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise ValueError(
            f"no Ray cluster answers at {address!r} ({error.strerror or error}); start one with `ray start "
            "--head`, or leave the address out to use this machine alone"
        ) from None


def _joined(ray: Any, address: str | None, **settings: Any) -> bool:
    """Join a cluster; False if none is named and this machine belongs to none."""
    if address == "local":
        return False
    try:
        ray.init(address=address or "auto", **settings)
        return True
    except ConnectionError as error:
        if address is None:
            return False
        raise ValueError(
            f"what answers at {address!r} is no Ray cluster that this Ray can join ({_one_line(error)})"
        ) from error


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray, connected to a cluster: the one at the address, the one this machine is in, or one made here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning at every start
    import ray

    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if not _joined(ray, address, **quiet):
        ray.init(address="local", num_cpus=usable_cores(), include_dashboard=False, **quiet)
    try:
        yield ray
    finally:
        ray.shutdown()


class _Cluster:
    """Tasks in flight on a cluster, as their driver sees them."""

    def __init__(self, ray: Any, job: Job, threads: int, workers: int | None) -> None:
        self.ray, self.job, self.threads, self.workers = ray, job, threads, workers
        self.flying: dict[int, tuple[Any, Task]] = {}
        self.owners: dict[int, Owner] = {}
        self.count = 0
        self.largest = 1
        self.look()
        job.width_of = self.cpus
        mark, token = _write_mark(task_directory(job.store, job.plan, "any").parent)
        self.setup = {
            "plan": job.plan,
            "threads": threads,
            "directory": str(job.store.directory),
            "mark": str(mark),
            "token": token,
        }
        here = ray.get_runtime_context().get_node_id()
        beside = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
        settings = {"num_cpus": 0, "max_concurrency": 10_000, "scheduling_strategy": beside}
        environment = {"env_vars": _environment(1)}
        self.desk = (
            ray.remote(_Desk)
            .options(**settings, runtime_env=environment)
            .remote(job.store.url, str(job.store.directory))
        )
        self.do = ray.remote(_do)

    def look(self) -> None:
        """How much the cluster has now: nodes come and go."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        self.largest = max([1, *(int(node.get("CPU", 0)) for node in nodes)])
        gpus = max([0.0, *(node.get("GPU", 0.0) for node in nodes)])
        total = sum(int(node.get("CPU", 0)) for node in nodes)
        self.job.places = max(1, total if self.workers is None else self.workers * self.threads)
        wanting = [task for task in self.job.tasks if task.gpus > gpus and task.key not in self.job.ended]
        if wanting and self.workers is None:
            raise ValueError(
                f"task {wanting[0].key!r} needs {wanting[0].gpus} CUDA device(s) on one node, and no node of "
                f"the Ray cluster has more than {gpus:g}; add one, or choose the device cpu"
            )

    def cpus(self, task: Task, alone: bool) -> int:
        """What a task takes of a node: all of it where it must be alone."""
        if task.exclusive or alone:
            return self.largest
        return min((task.threads or self.threads) * task.slots, self.largest)

    def start(self, task: Task) -> None:
        """Hand a task to Ray."""
        self.job.start(task)
        self.count += 1
        threads = task.threads or self.threads
        handed = self.do.options(
            name=f"allometry {task.key}",
            num_cpus=self.cpus(task, task.key in self.job.alone),
            num_gpus=task.gpus,
            max_retries=0,  # the job counts tries, and gives back what a dead worker held
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": _environment(threads)},
        ).remote(self.desk, self.setup, {**asdict(task), "arguments": dict(task.arguments)}, self.count)
        self.flying[self.count] = (handed, task)

    def hear(self, seconds: float) -> None:
        """Take in what tasks have told, waiting so long for a first word."""
        try:
            news = self.ray.get(self.desk.take.remote(seconds))
        except self.ray.exceptions.RayActorError as error:
            raise RuntimeError(
                "the process that writes to the store was killed; what was stored is safe, and the same "
                f"command goes on ({_one_line(error)})"
            ) from None
        for number, words in news:
            if number not in self.flying:  # a late word of one that was given up
                continue
            task = self.flying[number][1]
            if words["event"] == "placed":
                self.owners[number] = Owner(**words["owner"])
            elif self.job.handle(task, words):
                del self.flying[number]

    def bury(self) -> None:
        """See which tasks have left without a word."""
        if not self.flying:
            return
        handed = [ref for ref, _ in self.flying.values()]
        left, _ = self.ray.wait(handed, num_returns=len(handed), timeout=0)
        if not left:
            return
        self.hear(0.0)  # their last words first
        for number in [number for number, (ref, _) in self.flying.items() if ref in left]:
            ref, task = self.flying.pop(number)
            self._died(ref, task, self.owners.get(number))

    def _died(self, ref: Any, task: Task, owner: Owner | None) -> None:
        errors = self.ray.exceptions
        try:
            self.ray.get(ref)
            raise RuntimeError(f"task {task.key!r} ended on the cluster without a word")
        except errors.NodeDiedError:
            self.job.died(task, owner, "its node was lost", alone=False)
        except errors.OutOfMemoryError:
            self.job.died(task, owner, "worker was killed by Ray for lack of memory on its node")
        except errors.WorkerCrashedError:
            self.job.died(task, owner, "worker was killed, often for lack of memory")
        except errors.RayError as error:
            cause = getattr(error, "cause", None) or error
            if owner is not None:
                self.job.store.release_owner(self.job.plan, owner)
            self.job.end(task, "failed", f"{type(cause).__name__}: {_one_line(cause)}")

    def ask_to_stop(self) -> None:
        """Let tasks save and return."""
        until = time.monotonic() + _GRACE_SECONDS
        with contextlib.suppress(Exception):
            self.ray.get(self.desk.stop.remote(), timeout=_GRACE_SECONDS)
            while self.flying and time.monotonic() < until:
                self.hear(_LISTEN_SECONDS)

    def end(self) -> None:
        """Leave nothing running and nothing held."""
        for ref, _ in self.flying.values():
            with contextlib.suppress(Exception):
                self.ray.cancel(ref, force=True)
        with contextlib.suppress(Exception):
            self.ray.kill(self.desk)
        for number in self.flying:
            if number in self.owners:
                with contextlib.suppress(Exception):  # the store may be why we are here
                    self.job.store.release_owner(self.job.plan, self.owners[number])


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def in_cluster(job: Job, threads: int, workers: int | None, address: str | None) -> None:
    """Do a job's tasks on a Ray cluster.

    Raises
    ------
    ValueError
        If no cluster answers at the address, or no node has the devices that a task needs.
    """
    with _connected(address) as ray:
        cluster = _Cluster(ray, job, threads, workers)
        try:
            while job.unfinished:
                cluster.look()
                while (task := job.next()) is not None:
                    if task.key not in job.not_before or job.look_again(task):
                        cluster.start(task)
                if job.unfinished:
                    cluster.hear(_LISTEN_SECONDS)
                    cluster.bury()
        except KeyboardInterrupt:
            cluster.ask_to_stop()
            raise
        finally:
            cluster.end()
