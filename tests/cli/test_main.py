"""The command line: quick help, one line and the right exit code for what cannot be."""

import subprocess
import sys
import time

import pytest


def call(*arguments, folder=None):
    return subprocess.run(
        [sys.executable, "-m", "allometry.cli.main", *arguments], capture_output=True, text=True, cwd=folder
    )


def test_help_needs_neither_torch_nor_pandas():
    seen = """
import sys
sys.argv = ["allometry", "--help"]
from allometry.cli.main import app
try:
    app()
except SystemExit:
    pass
print({"torch", "pandas", "scipy", "matplotlib"} & set(sys.modules))
"""
    shown = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, check=True).stdout
    assert "forecast" in shown
    assert shown.rstrip().endswith("set()")


def test_help_is_quick():
    call("--help")
    times = []
    for _ in range(3):
        start = time.perf_counter()
        assert call("--help").returncode == 0
        times.append(time.perf_counter() - start)
    assert min(times) < 1.5  # half a second on a quiet machine; benchmarks measure it


@pytest.mark.parametrize(
    "arguments",
    [
        ("forecast", "--plan", "huge"),
        ("forecast", "--target", "much"),
        ("forecast", "--tiny", "--plan", "large"),
        ("forecast", "--seeds", "0"),
        ("forecast", "no-such-text.txt"),
        ("forecast", "--tiny", "--device", "abacus"),
        ("forecast", "--tiny", "--tokenizer", "no-such-folder"),
        ("no-such-command",),
    ],
)
def test_bad_input_exits_2_with_a_sentence(arguments, tmp_path):
    done = call(*arguments, folder=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("allometry: ")


def test_a_store_that_is_no_store_is_a_failure_in_one_line(tmp_path):
    (tmp_path / "store.db").write_bytes(b"not a database at all" * 100)
    done = call("forecast", "--tiny", "--store", "store.db", folder=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_debug_shows_the_trace_and_keeps_sentence_and_exit_code(tmp_path):
    quiet, loud = (call(*start, "fit", "no-such.csv", folder=tmp_path) for start in ([], ["--debug"]))
    assert (quiet.returncode, loud.returncode) == (2, 2)
    assert "Traceback" not in quiet.stderr
    assert loud.stderr.startswith("Traceback")
    assert loud.stderr.endswith(quiet.stderr)


@pytest.mark.parametrize("command", ["doctor", "fit", "forecast", "paper", "plan", "runs", "study"])
def test_every_command_has_help(command):
    done = call(command, "--help")
    assert done.returncode == 0
    assert command in done.stdout
