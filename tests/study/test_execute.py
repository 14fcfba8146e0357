"""Work goes on whatever is killed, and where it is done has no part in its numbers."""

import importlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from allometry.study import Event, Store, Task
from allometry.study.execute import execute
from allometry.study.job import Job, ranks_of
from allometry.study.owner import Owner

sys.path.append(str(Path(__file__).parent))  # workers look for modules where this process does
chores = importlib.import_module("chores")
counts = chores.counts

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="process groups and /proc")


def numbers(store: Store, plan: str) -> list[tuple[Any, ...]]:
    """What the records say, sorted; without clocks and counts of attempts."""
    frame = store.records(plan)
    return sorted(zip(frame["run"], frame["name"], frame["value"], strict=True))


@pytest.fixture
def plan(store: Store) -> str:
    return store.put_plan("kind", {}, {})


class TestOrdinaryWork:
    def test_numbers_do_not_depend_on_workers_or_order(self, tmp_path: Path) -> None:
        results = []
        for workers, turn in ((0, 1), (1, 1), (3, -1)):
            folder = tmp_path / f"{workers}"
            with Store(folder / "store.db") as store:
                plan = store.put_plan("kind", {}, {})
                report = execute(counts(tmp_path, 4)[::turn], store, plan, workers=workers, display=None)
                assert report.ok
                assert sorted(report.done) == ["run0", "run1", "run2", "run3"]
                assert store.runs(plan)["status"].tolist() == ["done"] * 4
                results.append(numbers(store, plan))
        assert results[0] == results[1] == results[2]
        assert len(results[0]) == 4 + 5 + 6 + 7

    def test_what_has_ended_is_not_called_again(self, store: Store, plan: str, tmp_path: Path) -> None:
        tasks = counts(tmp_path, 3)
        execute(tasks[:2], store, plan, workers=0, display=None)
        report = execute(tasks, store, plan, workers=0, display=None)
        assert report.done == ("run2",)
        assert sorted(report.skipped) == ["run0", "run1"]
        assert Counter((tmp_path / "log.txt").read_text().split("\n"))["start run0"] == 1

    def test_a_first_attempt_finds_an_empty_folder(self, store: Store, plan: str, tmp_path: Path) -> None:
        (task,) = counts(tmp_path, 1)
        stale = store.directory / "plans" / plan[:12] / "run0" / "state.json"
        stale.parent.mkdir(parents=True)
        stale.write_text('[19, "of a store that was deleted"]')
        execute([task], store, plan, workers=0, display=None)
        assert [name for _, name, _ in numbers(store, plan)] == ["step=10", "step=15", "step=20", "step=5"]

    def test_workers_live_long_and_keep_output_and_threads(self, store: Store, plan: str) -> None:
        tasks = [Task(f"t{n}", "chores:where", {"key": f"t{n}"}) for n in range(4)]
        tasks.append(Task("wide", "chores:where", {"key": "wide"}, threads=2, needs=("t0",)))
        assert execute(tasks, store, plan, workers=1, threads=3, display=None).ok
        told = store.records(plan).set_index("run")
        assert told["pid"].nunique() == 1
        assert told["pid"].iloc[0] != os.getpid()
        assert told.loc["t1", ["omp", "threads"]].tolist() == ["3", 3]
        assert told.loc["wide", ["omp", "threads"]].tolist() == ["2", 2]
        folder = store.directory / "plans" / plan[:12] / "t2"
        assert (folder / "output.txt").read_text() == "printed by the task\n"

    def test_events_tell_the_story(self, store: Store, plan: str, tmp_path: Path) -> None:
        events: list[Event] = []
        execute(counts(tmp_path, 1), store, plan, workers=1, on_event=events.append, display=None)
        kinds = [event.kind for event in events]
        assert kinds[0] == "started"
        assert kinds[-1] == "finished"
        assert kinds.count("record") == 4
        last = [event for event in events if event.kind == "progress"][-1]
        assert (last.step, last.total, last.values) == (20, 20, {"loss": 0.05})
        record = next(event for event in events if event.kind == "record")
        assert (record.run, record.name) == ("run0", "step=5")
        assert set(record.values) == {"value", "at"}


class TestOrder:
    def testranks_of_are_costs_of_longest_chains(self) -> None:
        tasks = [
            Task("a", "m:f", {}, cost=1.0),
            Task("b", "m:f", {}, cost=5.0, needs=("a",)),
            Task("c", "m:f", {}, cost=2.0, needs=("a", "a")),
            Task("d", "m:f", {}, cost=7.0, needs=("c",)),
        ]
        assert ranks_of(tasks) == {"a": 10.0, "b": 5.0, "c": 9.0, "d": 7.0}

    def test_longest_chain_first_and_needs_before(self, store: Store, plan: str) -> None:
        def task(key: str, **fields: Any) -> Task:
            return Task(key, "chores:where", {"key": key, "pause": 0.0}, **fields)

        tasks = [
            task("small", cost=1),
            task("last", cost=9, needs=("first",)),
            task("first", cost=1),
            task("big", cost=5),
        ]
        execute(tasks, store, plan, workers=0, display=None)
        assert store.records(plan)["run"].tolist() == ["first", "last", "big", "small"]

    def test_places_are_filled_and_never_overfilled(self, store: Store, plan: str) -> None:
        tasks = [
            Task("timing", "m:f", {}, exclusive=True, cost=9.0),
            Task("a", "m:f", {}, cost=4.0),
            Task("wide", "m:f", {}, slots=2, cost=3.0),
            Task("wider", "m:f", {}, slots=7, cost=2.0),  # more than there are: it takes all
            Task("b", "m:f", {}, cost=1.0),
            Task("c", "m:f", {}, cost=1.0),
        ]
        job = Job(tasks, store, plan, 2, 0, lambda event: None)

        def begin() -> list[str]:
            began = []
            while (task := job.next()) is not None:
                job.start(task)
                began.append(task.key)
            return began

        story = []
        while job.unfinished:
            began = begin()
            story.append(began)
            assert began  # it never stands still
            for key in began:
                job.end(job.running[key], "done")
        # One place stays empty beside "a": nothing overtakes the wide task, or it might never begin.
        assert story == [["a"], ["wide"], ["wider"], ["b", "c"], ["timing"]]

    @pytest.mark.parametrize(
        ("tasks", "said"),
        [
            ([Task("a", "m:f", {}), Task("a", "m:f", {})], "two tasks have the key 'a'"),
            (
                [Task("a", "m:f", {}, runs=("r",)), Task("b", "m:f", {}, runs=("r",))],
                "run 'r' is trained by both",
            ),
            ([Task("a", "m:f", {}, needs=("z",))], "needs 'z'"),
            ([Task("a", "m:f", {}, needs=("b",)), Task("b", "m:f", {}, needs=("a",))], "in a circle: a, b"),
        ],
    )
    def test_what_can_never_be_run_is_refused(
        self, store: Store, plan: str, tasks: list[Task], said: str
    ) -> None:
        with pytest.raises(ValueError, match=said):
            execute(tasks, store, plan, workers=0, display=None)

    @pytest.mark.parametrize(
        "fields",
        [
            {"key": ""},
            {"key": "k" * 201},
            {"function": "__main__:f"},
            {"function": "f"},
            {"cost": 0.0},
            {"slots": 0},
        ],
    )
    def test_what_is_no_task_is_refused(self, fields: dict[str, Any]) -> None:
        with pytest.raises(ValueError):
            Task(**{"key": "a", "function": "m:f", "arguments": {}, **fields})
        with pytest.raises(TypeError, match=r"arguments of task 'a'\.x"):
            Task("a", "m:f", {"x": object()})

    def test_any_key_has_a_folder_inside_the_plan(self, store: Store, plan: str) -> None:
        keys = ["width=64,rate=0.1", "../../up", "..", "a/b", "ä" * 200, "ä" * 199 + "b"]
        tasks = [Task(key, "chores:nothing", {}) for key in keys]
        assert execute(tasks, store, plan, workers=0, display=None).ok
        inside = {path.name for path in (store.directory / "plans" / plan[:12]).iterdir()}
        assert len(inside) == len(keys)
        assert "width=64,rate=0.1" in inside


class TestFailure:
    @pytest.mark.parametrize("workers", [0, 1])
    def test_an_exception_fails_its_task_alone_and_the_next_call_tries_again(
        self, store: Store, plan: str, tmp_path: Path, workers: int
    ) -> None:
        cure = tmp_path / "cure"
        tasks = [
            Task("bad", "chores:break_down", {"key": "bad", "cure": str(cure)}, cost=9),
            Task("after", "chores:nothing", {}, needs=("bad",)),
            Task("last", "chores:nothing", {}, needs=("after",)),
            *counts(tmp_path, 1),
        ]
        report = execute(tasks, store, plan, workers=workers, display=None)
        assert report.done == ("run0",)
        assert report.failed == {"bad": "FloatingPointError: a gradient was not finite"}
        assert list(report.blocked) == ["after", "last"]
        assert not report.ok
        row = store.runs(plan).set_index("run").loc["bad"]
        assert row[["status", "step", "reason"]].tolist() == ["failed", 17, report.failed["bad"]]
        trace = (store.directory / "plans" / plan[:12] / "bad" / "error.txt").read_text()
        assert "Traceback" in trace
        assert "break_down" in trace
        cure.touch()
        report = execute(tasks, store, plan, workers=workers, display=None)
        assert report.ok
        assert set(report.done) == {"bad", "after", "last"}
        assert store.runs(plan).set_index("run").loc["bad", "attempts"] == 2

    @LINUX
    def test_a_killed_worker_is_replaced_and_its_task_tried_again_alone(
        self, store: Store, plan: str, tmp_path: Path
    ) -> None:
        events: list[Event] = []
        tasks = [
            Task("once", "chores:die", {"key": "once", "deaths": 1}, cost=99),
            Task("always", "chores:die", {"key": "always", "deaths": 9}, cost=98),
            *counts(tmp_path, 3),
        ]
        report = execute(tasks, store, plan, workers=2, on_event=events.append, display=None)
        sentence = "worker was killed (signal 9), often for lack of memory"
        assert report.failed == {"always": sentence}
        assert set(report.done) == {"once", "run0", "run1", "run2"}
        assert [event.reason for event in events if event.kind == "retried"] == [sentence, sentence]
        last = store.records(plan, run="once", name="last").iloc[0]
        assert last["known"] == [["once", "first"]]
        assert store.runs(plan).set_index("run").loc["always", ["status", "attempts", "reason"]].tolist() == [
            "failed", 2, sentence
        ]  # fmt: skip

    def test_an_interrupt_in_this_process_holds_nothing_back(
        self, store: Store, plan: str, tmp_path: Path
    ) -> None:
        def interrupt(event: Event) -> None:
            if event.kind == "record":
                raise KeyboardInterrupt

        tasks = counts(tmp_path, 2)
        with pytest.raises(KeyboardInterrupt):
            execute(tasks, store, plan, workers=0, on_event=interrupt, display=None)
        assert store.runs(plan)["status"].tolist() == ["pending", "pending"]
        assert len(store.records(plan)) == 1  # it was stored before it was told
        assert execute(tasks, store, plan, workers=0, display=None).ok
        assert numbers(store, plan) == [
            row for row in undisturbed(tmp_path / "calm") if row[0] in ("run0", "run1")
        ]

    def test_a_worker_that_leaves(self, store: Store, plan: str) -> None:
        report = execute([Task("a", "chores:leave", {})], store, plan, workers=1, retries=0, display=None)
        assert report.failed == {"a": "worker exited with code 7 in the middle of the task"}

    def test_diverged_is_a_result_of_one_run_and_final(self, store: Store, plan: str) -> None:
        task = Task("stack", "chores:stack", {"runs": ["a", "ab", "abc"]}, runs=("a", "ab", "abc"))
        report = execute([task], store, plan, workers=1, display=None)
        assert report.ok
        assert report.diverged == {"ab": "loss is nan"}
        assert store.runs(plan)["status"].tolist() == ["done", "diverged", "done"]
        assert len(store.records(plan)) == 4
        again = execute([task], store, plan, workers=1, display=None)
        assert again.skipped == ("stack",)
        assert again.diverged == {"ab": "loss is nan"}

    @pytest.mark.parametrize(
        ("function", "arguments", "said"),
        [
            ("chores:wrong", {}, "not among the runs of the task: a"),
            ("chores:wrong", {"yields": 3}, "it must yield Record"),
            ("chores:missing", {}, "AttributeError"),
            ("no_such_module:f", {}, "ModuleNotFoundError"),
        ],
    )
    def test_a_wrong_function_is_a_failure_with_its_reason(
        self, store: Store, plan: str, function: str, arguments: dict[str, Any], said: str
    ) -> None:
        report = execute([Task("a", function, arguments)], store, plan, workers=0, display=None)
        assert said in report.failed["a"]


def start(folder: Path, pause: float, workers: int) -> "subprocess.Popen[str]":
    """Six counting runs in a process group of their own."""
    return subprocess.Popen(
        [sys.executable, chores.__file__, str(folder), str(pause), str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def living(group: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, _, number = text[text.rindex(")") + 2 :].split()[:3]
        if int(number) == group and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def assert_gone(group: int) -> None:
    """No process of the group lives, or is about to go on living."""
    until = time.monotonic() + 2.0
    while living(group) and time.monotonic() < until:
        time.sleep(0.01)
    assert living(group) == []


def wait_for_work(folder: Path, process: "subprocess.Popen[str]", lines: int) -> None:
    until = time.monotonic() + 30
    log = folder / "log.txt"
    while process.poll() is None and time.monotonic() < until:
        if log.exists() and log.read_text().count("\n") >= lines:
            return
        time.sleep(0.01)


def undisturbed(folder: Path) -> list[tuple[Any, ...]]:
    with Store(folder / "store.db") as store:
        plan = store.put_plan("kind", {}, {})
        assert execute(counts(folder, 6), store, plan, workers=0, display=None).ok
        return numbers(store, plan)


def test_two_processes_share_the_work_and_double_none(tmp_path: Path) -> None:
    both = [start(tmp_path, 0.01, 1) for _ in range(2)]
    told = [process.communicate(timeout=60) for process in both]
    assert all(out.endswith("True\n") for out, _ in told), told
    assert sum(int(out.split()[0]) for out, _ in told) == 6
    starts = Counter((tmp_path / "log.txt").read_text().split("\n")[:-1])
    assert starts == {f"start run{n}": 1 for n in range(6)}


def test_workers_commit_to_a_server(
    fresh_schema: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Store(fresh_schema()) as store:
        plan = store.put_plan("kind", {}, {})
        assert execute(counts(tmp_path, 6), store, plan, workers=2, display=None).ok
        assert numbers(store, plan) == undisturbed(tmp_path / "calm")
        assert (tmp_path / ".allometry" / "plans" / plan[:12] / "run0" / "state.json").exists()


@LINUX
class TestKilled:
    @pytest.mark.parametrize("kills", [3, pytest.param(12, marks=pytest.mark.slow)])
    def test_killed_again_and_again_the_numbers_are_those_of_an_undisturbed_run(
        self, tmp_path: Path, kills: int
    ) -> None:
        wanted = undisturbed(tmp_path / "calm")
        folder = tmp_path / "killed"
        folder.mkdir()
        chance = random.Random(kills)
        ended: dict[str, int] = {}  # run -> how often it had been started when it was seen to have ended
        for _ in range(kills):
            process = start(folder, 0.02, 2)
            seen = (folder / "log.txt").read_text().count("\n") if (folder / "log.txt").exists() else 0
            if chance.random() < 0.8:  # else anywhere, also while it starts
                wait_for_work(folder, process, seen + 1)
            time.sleep(chance.uniform(0.0, 0.5))
            if process.poll() is not None:
                break  # a fast machine may be done before the last kill
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert_gone(process.pid)
            with Store(folder / "store.db") as store:
                starts = Counter((folder / "log.txt").read_text().split("\n")) if seen else Counter()
                plans = store.plans()["digest"].tolist()
                done = store.runs(plans[0], status="done")["run"].tolist() if plans else []
                for run in done:
                    assert ended.setdefault(run, starts[f"start {run}"]) == starts[f"start {run}"]
        process = start(folder, 0.0, 2)
        out, told = process.communicate(timeout=60)
        assert out.endswith("True\n"), told
        with Store(folder / "store.db") as store:
            plan = store.find_plan("kind", {})
            assert plan is not None
            assert numbers(store, plan.digest) == wanted
            assert store.runs(plan)["status"].tolist() == ["done"] * 6
        starts = Counter((folder / "log.txt").read_text().split("\n"))
        assert all(starts[f"start {run}"] == number for run, number in ended.items())

    def test_workers_die_with_their_parent(self, tmp_path: Path) -> None:
        process = start(tmp_path, 5.0, 2)  # each step sleeps: nothing but its parent's death can end it
        wait_for_work(tmp_path, process, 2)
        assert len(living(process.pid)) == 3
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert_gone(process.pid)

    def test_control_c_stops_saves_and_leaves_nothing_held(self, tmp_path: Path) -> None:
        process = start(tmp_path, 0.05, 2)
        wait_for_work(tmp_path, process, 2)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of the group
        _, told = process.communicate(timeout=20)
        assert process.returncode == -signal.SIGINT
        assert told.count("KeyboardInterrupt") == 1  # workers say nothing
        assert "stopped; the next call goes on from here" in told
        assert_gone(process.pid)
        assert "stop run" in (tmp_path / "log.txt").read_text()
        with Store(tmp_path / "store.db") as store:
            assert set(store.runs()["status"]) <= {"pending", "done"}
            plan = store.plans()["digest"].iloc[0]
            assert execute(counts(tmp_path, 6), store, plan, workers=0, display=None).ok
            assert numbers(store, plan) == undisturbed(tmp_path / "calm")

    def test_a_living_process_elsewhere_is_waited_for(self, store: Store, plan: str, tmp_path: Path) -> None:
        """A run held by a process that lives is not begun; when that process is gone, it is."""
        holder = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        (task,) = counts(tmp_path, 1)
        store.add_run(plan, "run0", task.arguments, seed=0)
        assert store.claim(plan, ["run0"], owner=Owner.of(holder.pid))

        def end_holder(event: Event) -> None:
            events.append(event.kind)
            if event.kind == "waiting":
                assert not (tmp_path / "log.txt").exists()
                holder.kill()
                holder.wait()

        events: list[str] = []
        report = execute([task], store, plan, workers=0, on_event=end_holder, display=None)
        assert report.done == ("run0",)
        assert events[0] == "waiting"
        assert "resumed" in events
