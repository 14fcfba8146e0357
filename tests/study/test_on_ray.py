"""On a Ray cluster of two nodes: the same numbers, and what is lost costs only what it had in hand."""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from allometry.study import Event, Store, Task
from allometry.study.execute import execute

sys.path.append(str(Path(__file__).parent))  # workers look for modules where this process does
chores = importlib.import_module("chores")
counts = chores.counts


def numbers(store: Store, plan: str) -> list[tuple[Any, ...]]:
    frame = store.records(plan)
    return sorted(zip(frame["run"], frame["name"], frame["value"], strict=True))


def on_this_machine(folder: Path, number: int) -> list[tuple[Any, ...]]:
    with Store(folder / "store.db") as store:
        plan = store.put_plan("kind", {}, {})
        assert execute(counts(folder, number), store, plan, workers=0, display=None).ok
        return numbers(store, plan)


@pytest.fixture
def plan(store: Store) -> str:
    return store.put_plan("kind", {}, {})


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple[Any, list[Any]]]:
    """A head without processors, and two nodes of one each."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    size = {"object_store_memory": 80_000_000}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **size})
        try:
            nodes = [cluster.add_node(num_cpus=1, **size) for _ in range(2)]
            cluster.wait_for_nodes()
            yield cluster, nodes
        finally:
            ray.shutdown()
            cluster.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with two_nodes() as (made, _):
        yield made


@pytest.mark.slow
class TestTwoNodes:
    def test_both_work_and_the_numbers_are_those_of_this_machine(
        self, cluster: Any, store: Store, plan: str, tmp_path: Path
    ) -> None:
        events: list[Event] = []
        tasks = counts(tmp_path, 6, pause=0.05)
        tasks.append(Task("after", "chores:where", {"key": "after"}, needs=("run0", "run5")))
        tasks.append(Task("whole", "chores:where", {"key": "whole"}, exclusive=True, threads=2))
        tasks.append(Task("node", "chores:node", {"key": "node", "pause": 1.0}, cost=98))
        tasks.append(Task("other", "chores:node", {"key": "other", "pause": 1.0}, cost=99))
        report = execute(
            tasks, store, plan, on_event=events.append, display=None, executor="ray", address=cluster.address
        )
        assert report.ok, report.failed
        assert store.records(plan, name="node")["node"].nunique() == 2
        told = store.records(plan, name="where").set_index("run")
        assert told.loc["after", ["omp", "threads"]].tolist() == ["1", 1]
        assert told.loc["whole", ["omp", "threads"]].tolist() == ["2", 2]
        ended = store.runs(plan).set_index("run")["finished"]
        assert told.loc["after", "began"] >= max(ended[["run0", "run5"]]).timestamp()
        ours = [row for row in numbers(store, plan) if row[1].startswith("step=")]
        assert ours == on_this_machine(tmp_path / "calm", 6)
        begun = [event.task.key for event in events if event.kind == "started"]
        assert set(begun[:2]) == {"node", "other"}  # the longest first
        progress = [event for event in events if event.kind == "progress" and event.task.key == "run5"]
        assert (progress[-1].step, progress[-1].values) == (45, {"loss": 1 / 45})
        folder = store.directory / "plans" / plan[:12] / "after"
        assert (folder / "output.txt").read_text() == "printed by the task\n"

    def test_a_lost_node_costs_what_it_had_in_hand(self, store: Store, plan: str, tmp_path: Path) -> None:
        with two_nodes() as (cluster, nodes):
            self.lose(cluster, nodes[0], store, plan, tmp_path)

    def lose(self, cluster: Any, lost: Any, store: Store, plan: str, tmp_path: Path) -> None:
        events: list[Event] = []
        stored: list[int] = []

        def lose(event: Event) -> None:
            events.append(event)
            if event.kind == "record" and not stored:
                running = {e.task.key for e in events if e.kind == "started"} - {
                    e.task.key for e in events if e.kind == "finished"
                }
                if len(running) == 2:  # one on each
                    cluster.remove_node(lost, allow_graceful=False)
                    stored.append(len(store.records(plan)))

        report = execute(
            counts(tmp_path, 4, pause=0.1), store, plan,
            on_event=lose, display=None, executor="ray", address=cluster.address,
        )  # fmt: skip
        assert report.ok, report.failed
        (retried,) = [event for event in events if event.kind == "retried"]
        assert retried.reason == "its node was lost"
        assert numbers(store, plan) == on_this_machine(tmp_path / "calm", 4)
        assert store.runs(plan).set_index("run")["attempts"].to_dict() == {
            f"run{n}": 2 if retried.task.key == f"run{n}" else 1 for n in range(4)
        }
        assert stored[0] >= 1
        times = store.records(plan)  # what was stored before is not stored again
        assert times.groupby("run")["name"].nunique().sum() == len(times)

    def test_a_killed_worker_is_replaced_and_what_always_dies_fails_with_its_reason(
        self, cluster: Any, store: Store, plan: str, tmp_path: Path
    ) -> None:
        tasks = [
            Task("once", "chores:die", {"key": "once", "deaths": 1}, cost=99),
            Task("always", "chores:die", {"key": "always", "deaths": 9}, cost=98),
            Task("raises", "chores:break_down", {"key": "raises", "cure": "/nowhere"}, cost=97),
            Task("changes", "chores:change", {"key": "changes"}, cost=96),
            *counts(tmp_path, 2),
        ]
        report = execute(tasks, store, plan, display=None, executor="ray", address=cluster.address)
        assert set(report.done) == {"once", "run0", "run1"}
        assert report.failed["always"] == "worker was killed, often for lack of memory"
        assert report.failed["raises"].startswith("FloatingPointError: a gradient was not finite (on ")
        sentence = "ValueError: record 'once' of run 'changes' is stored with other values: 'value' was 1.0"
        assert report.failed["changes"].startswith(sentence)  # the store's own words, from where it is open
        last = store.records(plan, run="once", name="last").iloc[0]
        assert last["known"] == [["once", "first"]]
        assert store.runs(plan).set_index("run").loc["always", ["status", "attempts"]].tolist() == [
            "failed",
            2,
        ]

    def test_a_killed_driver_and_a_stopped_one(
        self, cluster: Any, store: Store, plan: str, tmp_path: Path
    ) -> None:

        def start() -> "subprocess.Popen[str]":
            log = tmp_path / "log.txt"
            lines = log.read_text().count("\n") if log.exists() else 0
            command = [sys.executable, chores.__file__, str(tmp_path), "0.1", "2", store.url, cluster.address]
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
            )
            until = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < until:
                if log.exists() and log.read_text().count("\n") >= lines + 2:
                    break
                time.sleep(0.1)
            return process

        process = start()
        time.sleep(1.0)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        kept = len(store.records(plan))
        assert kept >= 1
        process = start()
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGINT, told
        assert "stopped; the next call goes on from here" in told
        assert set(store.runs(plan)["status"]) <= {"pending", "done"}
        assert len(store.records(plan)) >= kept
        assert execute(counts(tmp_path, 6), store, plan, workers=0, display=None).ok
        assert numbers(store, plan) == on_this_machine(tmp_path / "calm", 6)

    def test_a_node_that_does_not_see_the_folder_says_so(
        self, cluster: Any, store: Store, plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from allometry.study import on_ray

        monkeypatch.setattr(on_ray, "_write_mark", lambda folder: (folder / "unseen", "token"))
        events: list[Event] = []
        report = execute(
            [*counts(tmp_path, 1), Task("reads", "chores:read", {"path": "/no/such/text"})], store, plan,
            on_event=events.append, display=None, executor="ray", address=cluster.address,
        )  # fmt: skip
        assert report.done == ("run0",)
        (said,) = [event.reason for event in events if event.kind == "started" and event.task.key == "run0"]
        assert "does not see" in str(said)
        assert "are lost with it" in str(said)
        assert "every machine of the cluster must see the same files" in report.failed["reads"]


class TestDoor:
    @pytest.mark.parametrize(
        ("address", "said"),
        [
            ("ray://head:10001", "host:port or no address"),
            ("127.0.0.1:1", "no Ray cluster answers at '127.0.0.1:1'"),
            ("head", "as `ray start` prints it"),
        ],
    )
    def test_an_address_that_cannot_be_used(self, store: Store, plan: str, address: str, said: str) -> None:
        pytest.importorskip("ray")
        began = time.monotonic()
        with pytest.raises(ValueError, match=said):
            execute([], store, plan, display=None, executor="ray", address=address)
        assert time.monotonic() - began < 10.0  # Ray itself tries for minutes

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"executor": "slurm"}, "it is 'local' or 'ray'"),
            ({"address": "head:6379"}, "choose the executor 'ray'"),
            ({"executor": "ray", "workers": 0}, "at least 1 or None"),
        ],
    )
    def test_what_makes_no_sense_is_refused(
        self, store: Store, plan: str, settings: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(ValueError, match=said):
            execute([], store, plan, display=None, **settings)
