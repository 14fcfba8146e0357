"""Full disks, closed folders, damaged files, jumping clocks, no memory: a sentence, and nothing lost."""

import importlib
import itertools
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from allometry.study import Event, Store, StoreError, Task
from allometry.study import runs as runs_module
from allometry.study import worker as worker_module
from allometry.study.execute import execute
from allometry.study.owner import Owner

sys.path.append(str(Path(__file__).parent))  # workers look for modules where this process does
chores = importlib.import_module("chores")
counts = chores.counts

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="mounts, limits and /proc")


@pytest.fixture
def plan(store: Store) -> str:
    return store.put_plan("kind", {}, {})


def numbers(store: Store, plan: str) -> list[tuple[Any, ...]]:
    frame = store.records(plan)
    return sorted(zip(frame["run"], frame["name"], frame["value"], strict=True))


def python(code: str, *arguments: str, before: str = "") -> "subprocess.CompletedProcess[str]":
    """Run some lines in a fresh interpreter, perhaps after some lines of shell in a namespace of its own."""
    command = [sys.executable, "-c", f"import sys; sys.path.append({str(Path(__file__).parent)!r})\n{code}"]
    if before:
        command = ["unshare", "-rm", "sh", "-ec", f'{before}\nexec "$@"', "sh", *command]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120)


def spoken(report_reason: str) -> None:
    assert len(report_reason.splitlines()) == 1
    assert "Traceback" not in report_reason


class TestDisk:
    @LINUX
    def test_a_disk_that_is_full_costs_the_runs_at_hand_and_nothing_before(self, tmp_path: Path) -> None:
        """A real file system of one megabyte, on which 4 MB of records are asked for; then it grows."""
        if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0:
            pytest.skip("this user may not mount a file system, not even a private one")
        told = python(
            """
import subprocess
from allometry.study import Store, StoreError, Task
from allometry.study.execute import execute
folder = sys.argv[1]
tasks = [Task(key, "chores:fill", {"key": key, "records": 100}) for key in ("a", "b")]
with Store(folder + "/store.db") as store:
    plan = store.put_plan("kind", {}, {})
    try:
        reasons = list(execute(tasks, store, plan, workers=0, display=None).failed.values())
    except StoreError as error:
        reasons = [str(error)]
    before = len(store.records(plan))
subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
with Store(folder + "/store.db") as store:
    kept = len(store.records(plan))
    report = execute(tasks, store, plan, workers=0, display=None)
    print(before, kept, report.ok, len(store.records(plan)))
print(reasons[0])
""",
            str(tmp_path),
            before=f"mount -t tmpfs -o size=1m none {tmp_path}",
        )
        assert told.returncode == 0, told.stderr
        counted, reason = told.stdout.splitlines()  # two lines: the reason is one
        before, kept, ok, after = counted.split()
        assert 0 < int(before) < 200
        assert kept == before
        assert (ok, after) == ("True", "200")
        assert "disk is full" in reason or "No space left" in reason

    @LINUX
    def test_a_limit_on_the_size_of_files(self, tmp_path: Path) -> None:
        told = python(
            """
import resource
from allometry.study import Store, StoreError
with Store(sys.argv[1] + "/store.db") as store:
    plan = store.put_plan("kind", {}, {})
    store.add_run(plan, "run", {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    stored = 0
    try:
        while stored < 100:
            store.add_record(plan, "run", f"{stored}", {"filler": "x" * 20_000})
            stored += 1
    except StoreError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(store.records(plan)) == stored
    assert store.add_record(plan, "run", f"{stored}", {"filler": "x" * 20_000})
    print(stored)
""",
            str(tmp_path),
        )
        assert told.returncode == 0, told.stderr
        reason, stored = told.stdout.splitlines()
        assert "cannot be written" in reason
        assert 0 < int(stored) < 100

    @LINUX
    def test_a_folder_that_is_closed_on_the_way(self) -> None:
        with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
            told = python(
                """
import os
from allometry.study import Store, Task
from allometry.study.execute import execute
tasks = [Task(key, "chores:nothing", {}) for key in ("a", "b")]
os.mkdir(sys.argv[1] + "/first")
os.mkdir(sys.argv[1] + "/second")
for name in ("first", "second"):
    os.chdir(sys.argv[1] + "/" + name)
    with Store("store.db") as store:
        plan = store.put_plan("kind", {}, {})
        assert execute(tasks[:1], store, plan, workers=0, display=None).ok
        folder = store.directory / "plans" / plan[:12]
        if name == "second":
            folder.chmod(0o555)
            print(execute(tasks, store, plan, workers=0, display=None).failed["b"])
            folder.chmod(0o755)
        assert execute(tasks, store, plan, workers=0, display=None).ok
    if os.getuid() == 0:  # the superuser may write anywhere: let an ordinary user try, with all loaded
        os.chown(sys.argv[1] + "/second", 65534, 65534)
        os.chmod(sys.argv[1], 0o755)
        os.setuid(65534)
""",
                name,
            )
        assert told.returncode == 0, told.stderr
        (reason,) = told.stdout.splitlines()
        assert reason.startswith("PermissionError: ")
        assert "/b'" in reason


class TestDamage:
    def test_a_store_that_was_cut_short(self, tmp_path: Path) -> None:
        path = tmp_path / "store.db"
        with Store(path) as store:
            plan = store.put_plan("kind", {}, {})
            task = Task("a", "chores:fill", {"key": "a", "records": 20})
            execute([task], store, plan, workers=0, display=None)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 8192 * 4096])
        with (
            pytest.raises(StoreError, match=r"store\.db is damaged .* restore it") as caught,
            Store(path) as store,
        ):
            store.records(plan)
        spoken(str(caught.value))
        path.write_bytes(whole)  # the cure that the sentence names
        with Store(path) as store:
            assert len(store.records(plan)) == 20

    @pytest.mark.parametrize(
        ("damaged", "began"),
        [(["current"], 6), (["current", "current.previous"], 0)],
    )
    def test_a_damaged_checkpoint(self, store: Store, plan: str, damaged: list[str], began: int) -> None:
        """From the one before; without one from the start, which is said, and the files are kept."""
        pytest.importorskip("torch")
        arguments = {"key": "a", "steps": 12, "killed": 8}
        task = Task("a", "chores:checkpointed", arguments)
        assert list(execute([task], store, plan, workers=0, display=None).failed) == ["a"]
        folder = store.directory / "plans" / plan[:12] / "a"
        for name in damaged:
            path = folder / f"{name}.safetensors"
            path.write_bytes(path.read_bytes()[:-9] + b"\xff" * 5)
        events: list[Event] = []
        report = execute([task], store, plan, workers=0, on_event=events.append, display=None)
        assert report.done == ("a",)
        row = store.records(plan).iloc[0]
        assert (row["value"], row["began"]) == (12, began)
        said = [event.reason for event in events if event.kind == "retried"]
        aside = folder.with_name("a.unreadable")
        if began:
            assert said == []
            assert not aside.exists()
        else:
            assert said == ["its checkpoints cannot be read: set aside, begun anew"]
            assert (aside / "current.safetensors").exists()


class TestClock:
    @pytest.mark.parametrize("jump", [3600.0, -3600.0])
    def test_a_jump_takes_nothing_from_the_living_and_keeps_nothing_for_the_dead(
        self, store: Store, plan: str, jump: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wall, steady = 1e9, 50.0
        monkeypatch.setattr(runs_module, "time", SimpleNamespace(time=lambda: wall, monotonic=lambda: steady))
        for opened in (store, other := Store(store.url)):
            monkeypatch.setattr(opened._database, "clock", lambda connection: wall)
        elsewhere = Owner("another machine", 1, "0")
        store.add_run(plan, "run", {})
        held = store.claim(plan, ["run"], owner=elsewhere)
        assert held
        for beat in range(20):
            steady, wall = steady + runs_module.BEAT, wall + runs_module.BEAT + (jump if beat == 7 else 0.0)
            assert other.claim(plan, ["run"]) is None
            assert store.beat(held)
        assert other.claim(plan, ["run"]) is None  # the last sign of life is seen; then it dies
        wall += jump
        steady += runs_module.LEASE - 1.0
        assert other.claim(plan, ["run"]) is None
        steady += 2.0
        taken = other.claim(plan, ["run"])
        assert taken
        assert taken[0].attempts == 2
        assert not store.beat(held)
        other.close()

    def test_seconds_spent_do_not_follow_the_wall(
        self, store: Store, plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        jumping = itertools.cycle([1e9, 1e9 + 3600.0, 1e9 - 3600.0])
        monkeypatch.setattr(time, "time", lambda: next(jumping))
        report = execute(counts(tmp_path, 3), store, plan, workers=0, display="plain")
        assert report.ok
        assert 0.0 <= report.seconds < 60.0


class TestMemory:
    @LINUX
    def test_a_task_that_leaks_fails_alone(self, store: Store, plan: str, tmp_path: Path) -> None:
        tasks = [Task("leak", "chores:leak", {"key": "leak"}, cost=99), *counts(tmp_path, 2)]
        report = execute(tasks, store, plan, workers=1, display=None)
        assert report.failed == {"leak": "MemoryError: there was no memory left for it"}
        assert set(report.done) == {"run0", "run1"}
        assert store.record_names(plan, ["leak"]) == {("leak", "first")}


class TestServer:
    @pytest.fixture
    def server_store(self, own_server: Any, tmp_path: Path) -> Iterator[tuple[Any, Store]]:
        with Store(own_server.fresh_schema(), directory=tmp_path / "jobs") as opened:
            yield own_server, opened

    def test_a_restart_is_waited_for(self, server_store: tuple[Any, Store], tmp_path: Path) -> None:
        server, store = server_store
        plan = store.put_plan("kind", {}, {})

        def restart(event: Event) -> None:
            if event.kind == "record" and event.name == "step=5" and event.run == "run2":
                server.stop()
                threading.Timer(3.0, server.start).start()

        tasks = counts(tmp_path, 3, pause=0.05)
        report = execute(tasks, store, plan, workers=1, on_event=restart, display=None)
        assert report.ok, report.failed
        assert store.runs(plan)["attempts"].tolist() == [1, 1, 1]
        with Store(tmp_path / "calm" / "store.db") as calm:
            other = calm.put_plan("kind", {}, {})
            execute(counts(tmp_path, 3), calm, other, workers=0, display=None)
            assert numbers(store, plan) == numbers(calm, other)

    def test_a_server_that_stays_away(
        self, server_store: tuple[Any, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(worker_module, "_PATIENCE", 0.3)
        server, store = server_store
        plan = store.put_plan("kind", {}, {})

        def stop(event: Event) -> None:
            if event.kind == "record" and event.name == "step=10":
                server.stop()

        tasks = counts(tmp_path, 3)
        with pytest.raises(StoreError, match=r"cannot be reached .* start the server") as caught:
            execute(tasks, store, plan, workers=0, on_event=stop, display=None)
        spoken(str(caught.value))
        server.start()
        assert len(store.records(plan)) == 2
        assert execute(tasks, store, plan, workers=0, display=None).ok
        assert len(store.records(plan)) == 4 + 5 + 6


def test_a_worker_that_cannot_open_the_store_says_so_in_its_words(
    store: Store, plan: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "garbage.db"
    path.write_bytes(b"no database at all" * 100)
    store.url = f"sqlite:///{path}"  # what workers are given
    with pytest.raises(StoreError, match=r"garbage\.db is not a store"):
        execute(counts(tmp_path, 1), store, plan, workers=1, display=None)
    assert capfd.readouterr().err == ""
    assert store.runs(plan)["status"].tolist() == ["pending"]
