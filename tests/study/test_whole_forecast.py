"""The whole forecast by its command: on a Ray cluster, on PostgreSQL, and cut off from it in the middle."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from allometry.study import Store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chance = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(chance.choices([f"word{index} " for index in range(200)], k=120_000)))
    return path


def command(text: Path, folder: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "allometry.cli.main", "forecast", str(text), "--tiny", "--seeds", "1", "--json",
        "--report", str(folder / "report"), *more,
    ]  # fmt: skip


def told(text: Path, folder: Path, *more: str) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        command(text, folder, *more), capture_output=True, text=True, timeout=550, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def numbers(result: dict[str, Any]) -> list[Any]:
    return [result["forecast"], result["check"]["measured"], result["digest"]]


@pytest.fixture(scope="module")
def local(text: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return numbers(told(text, tmp_path_factory.mktemp("local"), "--workers", "1"))


def test_on_a_cluster_the_forecast_is_the_same(text: Path, local: list[Any], tmp_path: Path) -> None:
    pytest.importorskip("ray")
    here = told(text, tmp_path / "ray", "--workers", "1", "--executor", "ray", "--address", "local")
    assert numbers(here) == local


class TestServer:
    def test_on_a_server_the_forecast_is_the_same(
        self, text: Path, local: list[Any], fresh_schema: Any, tmp_path: Path
    ) -> None:
        url = fresh_schema()
        there = told(text, tmp_path / "server", "--workers", "1", "--store", url)
        assert numbers(there) == local
        with Store(url, directory=tmp_path) as store:
            assert set(store.runs()["status"]) == {"done"}

    def test_cut_off_from_its_server_it_waits_and_goes_on(
        self, text: Path, local: list[Any], own_server: Any, tmp_path: Path
    ) -> None:
        """The server goes and comes back under a running job; then goes, and a new job is told so."""
        url = own_server.fresh_schema()
        arguments = command(text, tmp_path, "--workers", "1", "--store", url)
        process = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )
        with Store(url, directory=tmp_path) as store:
            until = time.monotonic() + 300
            while process.poll() is None and time.monotonic() < until and store.records().empty:
                time.sleep(0.1)
            own_server.stop()
            refused = subprocess.run(arguments, capture_output=True, text=True, timeout=300, cwd=tmp_path)
            assert refused.returncode == 1
            (sentence,) = refused.stderr.strip().splitlines()
            assert "cannot be reached" in sentence
            assert "start the server" in sentence
            own_server.start()
            out, err = process.communicate(timeout=500)
            if process.returncode != 0:  # the parent itself may have asked just then
                assert "cannot be reached" in err.strip().splitlines()[-1]
                out = json.dumps(told(text, tmp_path, "--workers", "1", "--store", url))
            assert numbers(json.loads(out)) == local
