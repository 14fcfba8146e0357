"""``allometry plan`` from the shell: the numbers of the library, and one line for what cannot be."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from allometry.cli.main import main
from allometry.forecast.budget import plan_budget


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command in this process; gives its exit code, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["allometry", "plan", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code, *capsys.readouterr()

    return run


def test_text_and_json_are_those_of_the_library(call):
    asked = ["--gpus", "8xH100", "--days", "10", "--tokens-served", "1T", "--price", "2.5", "--mfu", "0.35"]
    plan = plan_budget("8xH100", 10, tokens_served=1e12, price=2.5, mfu=0.35)
    code, told, errors = call(*asked)
    assert (code, told.strip(), errors) == (0, str(plan), "")
    assert json.loads(call(*asked, "--json")[1]) == json.loads(json.dumps(plan.to_dict()))


def test_torch_is_not_needed():
    seen = """
import sys
from pathlib import Path
sys.argv = ["allometry", "plan", "--gpus", "2xMyChip", "--days", "1", "--flops-per-gpu", "1e15"]
from allometry.cli.main import app
try:
    app()
except SystemExit:
    pass
print({"torch", "matplotlib", "pandas"} & set(sys.modules))
"""
    shown = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, check=True).stdout
    assert "2 x MyChip" in shown
    assert shown.rstrip().endswith("set()")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--days", "3"], "--gpus 8xH100 --days 10"),
        (["--gpus", "8", "--days", "3"], "not '8'"),
        (["--gpus", "8xabacus", "--days", "3"], "there are H100"),
        (["--gpus", "8xH100", "--days", "-3"], "days must be"),
        (["--gpus", "8xH100", "--days", "3", "--unique-tokens", "many"], "--unique-tokens must be a number"),
        (["--gpus", "8xH100", "--days", "three"], "'--days'"),
        (["--gpus", "8xH100", "--days", "3", "--law", "no-such.json"], "no file of that name"),
    ],
)
def test_bad_input_exits_2_with_a_sentence(call, arguments, words):
    code, told, errors = call(*arguments)
    assert (code, told) == (2, "")
    assert words in errors
    assert len(errors.strip().splitlines()) == 1
    assert errors.startswith("allometry: ")


# --- a ladder of the user's own command ---------------------------------------------------------------------
# Losses of a known law, as fast as an interpreter starts; arguments: width tokens out.
TRAINER = """
import os, sys
width, tokens, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if width == 32 and os.path.exists("broken"):
    sys.exit("no room")
loss = 1.2 + 30 * (36 * width**2) ** -0.35 + 800 * tokens**-0.45
os.makedirs(out, exist_ok=True)
with open(out + "/metrics.csv", "w") as file:
    file.write(f"params,tokens,loss\\n{36 * width**2},{tokens},{loss}\\n")
"""


@pytest.fixture
def ladder(tmp_path, monkeypatch):
    """Arguments of a ladder in a folder of its own, whose name needs quotes."""
    folder = tmp_path / "my runs; $(x)"
    folder.mkdir()
    (folder / "train.py").write_text(TRAINER)
    monkeypatch.chdir(folder)
    program = shlex.join([sys.executable, "-I", "-S", str(folder / "train.py")])
    return ["--ladder", "--command", f"{program} {{width}} {{tokens}} {{out}}", "--widths", "16,32,48,64",
            "--tokens", "0.5M,1M,2M", "--out", "a ladder's"]  # fmt: skip


def test_the_commands_that_are_printed_are_those_that_are_run(call, ladder):
    code, told, errors = call(*ladder)
    lines = told.splitlines()
    assert (code, len(lines)) == (0, 12)
    assert errors.strip() == "12 runs; 0 have their result and are not shown"
    code, text, errors = call(*ladder, "--json")
    runs = json.loads(text)
    assert (code, errors) == (0, "")
    assert [run["command"] for run in runs] == lines
    assert set(runs[0]) == {"key", "width", "tokens", "lr", "seed", "out", "command", "done"}
    for line, run in zip(lines, runs, strict=True):
        # a shell would hand on the very words: no value became two, none was expanded
        assert shlex.split(line)[-3:] == [str(run["width"]), str(run["tokens"]), run["out"]]
    # a scheduler runs some of them by a shell; those are shown no more
    subprocess.run(["sh", "-c", "\n".join(lines[:3])], check=True)
    code, told, errors = call(*ladder)
    assert told.splitlines() == lines[3:]
    assert "3 have their result" in errors
    assert [run["done"] for run in json.loads(call(*ladder, "--json")[1])] == [True] * 3 + [False] * 9


def test_run_forecast_and_check(call, ladder, monkeypatch):
    asked = [*ladder, "--run", "--check", "--target-width", "128", "--target-tokens", "8M", "--workers", "1"]
    Path("broken").touch()
    code, told, errors = call(*asked)
    assert (code, told) == (1, "")
    last = errors.splitlines()[-1]
    assert "3 of the runs failed" in last
    assert "exit code 1: no room" in last
    # what there is can be fitted all the same
    code, told, errors = call(*ladder, "--collect", "{out}", "--target-width", "128", "--json")
    assert (code, len(json.loads(told)["missing"])) == (0, 3)
    assert "3 of 12 runs have no result" in errors
    Path("broken").unlink()
    code, told, errors = call(*asked, "--report", "report")
    assert code == 0
    assert "9 of 12 tasks had ended before" in errors
    assert errors.count(": finished") == 4  # three of the ladder, and the target
    assert "Measured: " in told
    assert "Naive, ruler" in told
    assert {"report.html", "law.json", "runs.csv", "target.json"} <= {
        f.name for f in Path("report").iterdir()
    }
    found = json.loads(Path("report/target.json").read_text())
    truth = 1.2 + 30 * (36 * 128**2) ** -0.35 + 800 * 8e6**-0.45
    assert found["check"]["measured"] == pytest.approx(truth, rel=1e-12)
    assert found["forecast"]["loss"] == pytest.approx(truth, rel=2e-3)
    assert found["target"]["params"] == 36 * 128**2
    assert "Measured: " in Path("report/report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--gpus", "8xH100"], "give one of them"),
        (["--lr", "4e-3"], "the command has no {lr}"),
        (["--seeds", "3"], "3 values of seed, but the command has no {seed}"),
        (["--tokens", "many"], "--tokens must be a number"),
        (["--params", "12345"], "--params is given by width"),
        (["--check"], "give --run too"),
        (["--run", "--check"], "add --target-width"),
        (
            ["--collect", "{out}"],
            "none of the 12 runs can be read; the first, width-16_tokens-500000: no log",
        ),
        (["--target", "big", "--run"], "not 'big'"),
        (["--run", "--target-tokens", "-1"], "target's tokens must be positive"),
        (["--columns", "loss"], "NAME=VALUE"),
    ],
)
def test_bad_ladders_exit_2_with_a_sentence(call, ladder, changes, words):
    code, told, errors = call(*ladder, *changes)
    assert (code, told) == (2, "")
    assert words in errors
    assert len(errors.strip().splitlines()) == 1


def test_a_ladder_needs_its_dials(call):
    code, _, errors = call("--ladder", "--command", "train {width} {out}")
    assert code == 2
    assert "--widths 16,32,64 --tokens 0.5M,1M,2M" in errors
