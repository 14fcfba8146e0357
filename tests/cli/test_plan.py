"""``allometry plan`` from the shell: the numbers of the library, and one line for what cannot be."""

import json
import subprocess
import sys

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
