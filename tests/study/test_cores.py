"""Cores are counted as the machine grants them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from allometry.study.cores import _physical, _quota


def test_hyper_threads_of_one_core_count_once(tmp_path: Path) -> None:
    for cpu in range(8):  # two packages of two cores of two threads
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{cpu // 4}\n")
        (folder / "core_id").write_text(f"{cpu % 2}\n")
    assert _physical(set(range(8)), tmp_path) == 4
    assert _physical({0, 2}, tmp_path) == 1
    assert _physical({0, 9}, tmp_path) == 2  # a machine that does not tell counts each


@pytest.mark.parametrize(("own", "cores"), [("/job", 1.5), ("/job/step", 1.5), ("/", float("inf"))])
def test_the_tightest_quota_on_the_way_up_holds(tmp_path: Path, own: str, cores: float) -> None:
    (tmp_path / "job" / "step").mkdir(parents=True)
    (tmp_path / "job" / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "job" / "step" / "cpu.max").write_text("max 100000\n")
    assert _quota(tmp_path, own) == cores


def test_the_first_version_of_control_groups_is_understood(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert _quota(tmp_path, "") == float("inf")
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("200000\n")
    assert _quota(tmp_path, "") == 2.0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_affinity_takes_cores_away() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from allometry.study import usable_cores; print(usable_cores())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "1"
