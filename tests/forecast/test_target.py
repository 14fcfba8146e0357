"""The target in two processes: the single process's loss, whoever starts them and whatever is killed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from allometry.forecast.ladder import PLANS, Ladder, target_task
from allometry.forecast.target import refuse_processes
from allometry.study import Store
from allometry.study.execute import execute

WIDTH, TOKENS = 32, 8_192  # 32 steps of the tiny plan


@pytest.fixture
def plan(tmp_path: Path) -> dict[str, Any]:
    """A plan on a text of our own."""
    chance = random.Random(0)
    text = tmp_path / "text.txt"
    text.write_text("".join(chance.choices([f"word{index} " for index in range(50)], k=30_000)))
    return {
        "ladder": PLANS["tiny"].to_dict(), "corpus": {"paths": [str(text)], "digest": None},
        "vocab_size": 256, "seeds": [0], "target_seed": 2, "dtype": "float32", "device": "cpu", "threads": 1,
        "workers": 1, "target_threads": 2, "target_stacked": False, "stacked_widths": [],
    }  # fmt: skip


def put(store: Store, plan: dict[str, Any]) -> tuple[str, str]:
    """A forecast and its target, as the forecast leaves them when the target is not to be trained."""
    digest = store.put_plan("forecast", {}, plan)
    target = store.put_plan(
        "forecast/target", {"plan": digest}, {"target": {"width": WIDTH, "tokens": TOKENS}}
    )
    return digest, target


def trained(store: Store, plan: dict[str, Any], target: str, processes: int) -> float:
    task = target_task(plan, WIDTH, TOKENS, 2, processes=processes)
    report = execute([task], store, target, workers=1, threads=1, display=None)
    assert report.ok, report.failed
    (loss,) = store.records(target)["loss"]
    return float(loss)


@pytest.fixture
def alone(plan: dict[str, Any], tmp_path: Path) -> float:
    """The loss of a single process."""
    with Store(tmp_path / "alone" / "store.db") as store:
        return trained(store, plan, put(store, plan)[1], 1)


@pytest.mark.slow
class TestTwoProcesses:
    def test_the_forecast_starts_them(self, plan: dict[str, Any], alone: float, tmp_path: Path) -> None:
        with Store(tmp_path / "store.db") as store:
            _, target = put(store, plan)
            loss = trained(store, plan, target, 2)
            assert loss == pytest.approx(alone, rel=1e-4)
            assert loss != pytest.approx(5.545, rel=0.05)  # it has learned something
            folder = next((store.directory / "plans" / target[:12]).iterdir())
            parts = [f"process-{rank}-of-2" for rank in range(2)]
            assert all((folder / part / "final.safetensors").exists() for part in parts)
            spec = store.run_list(target)[0].spec
            assert spec["processes"] == 2

    def test_torchrun_starts_them(self, plan: dict[str, Any], alone: float, tmp_path: Path) -> None:
        path = tmp_path / "store.db"
        with Store(path) as store:
            digest, target = put(store, plan)
            command = [
                sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                "-m", "allometry.forecast.target", digest[:12], "--store", str(path),
            ]  # fmt: skip
            for said in ("is trained.", "is trained before."):
                told = subprocess.run(command, capture_output=True, text=True, timeout=300)
                assert told.returncode == 0, told.stderr
                assert said in told.stdout
            (loss,) = store.records(target)["loss"]
            assert loss == pytest.approx(alone, rel=1e-4)
            # the forecast finds it done
            task = target_task(plan, WIDTH, TOKENS, 2)
            assert execute([task], store, target, workers=1, display=None).skipped == (task.key,)

    def test_killed_in_the_middle_nothing_lives_on_and_it_goes_on_from_there(
        self, plan: dict[str, Any], alone: float, tmp_path: Path
    ) -> None:
        code = f"""
import json
from allometry.forecast.ladder import target_task
from allometry.study import Store
from allometry.study.execute import execute
def show(event):
    if event.kind == "progress":
        print(event.step, flush=True)
with Store({str(tmp_path / "store.db")!r}) as store:
    plan = store.plans("forecast/target")["digest"].iloc[0]
    content = store.plan(store.plan(plan).request["plan"]).content
    task = target_task(content, {WIDTH}, {TOKENS}, 2, processes=2)
    execute([task], store, plan, workers=1, on_event=show, display=None)
"""
        with Store(tmp_path / "store.db") as store:
            _, target = put(store, plan)
            process = subprocess.Popen(
                [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
            )
            assert process.stdout is not None
            assert process.stdout.readline()  # they train
            os.kill(process.pid, signal.SIGKILL)  # the parent alone
            process.wait()
            until = time.monotonic() + 10.0
            while _living(process.pid) and time.monotonic() < until:
                time.sleep(0.05)
            assert _living(process.pid) == []
            assert trained(store, plan, target, 2) == pytest.approx(alone, rel=1e-4)

    def test_what_goes_wrong_in_a_process_is_the_reason(self, plan: dict[str, Any], tmp_path: Path) -> None:
        plan["corpus"]["digest"] = "0" * 64
        with Store(tmp_path / "store.db") as store:
            _, target = put(store, plan)
            task = target_task(plan, WIDTH, TOKENS, 2, processes=2)
            report = execute([task], store, target, workers=1, threads=1, display=None)
        (reason,) = report.failed.values()
        assert "the text has changed since this plan was made" in reason
        assert "Traceback" not in reason


def _living(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = text[text.rindex(")") + 2 :].split()
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.parametrize(
    ("processes", "devices", "said"),
    [(0, None, "at least 1"), (3, None, "choose one of 1, 2, 4, 8"), (4, 2, "and there are 2")],
)
def test_numbers_that_cannot_be_are_refused(processes: int, devices: int | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        refuse_processes(Ladder((16,), (1000,), batch=8), processes, devices=devices)


def test_a_single_process_is_the_task_that_it_always_was(plan: dict[str, Any]) -> None:
    """A stored run keeps its spec, whatever came to be possible since."""
    one = target_task(plan, WIDTH, TOKENS, 2)
    assert one.function == "allometry.forecast.ladder:train_rung"
    assert "processes" not in one.arguments
    two = target_task(plan, WIDTH, TOKENS, 2, processes=2)
    assert (two.key, two.runs) == (one.key, one.runs)
    assert (two.slots, two.threads) == (2, 1)
