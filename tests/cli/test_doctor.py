"""``allometry doctor``: what it says is what is there, it leaves nothing behind, and it needs no torch."""

import json
import subprocess
import sys
import time
from importlib import metadata

import pytest

from allometry.cli import doctor
from allometry.cli.main import main
from allometry.study import Store


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command in this process; gives its exit code, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["allometry", "doctor", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code, *capsys.readouterr()

    return run


HIDE = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
sys.argv = ["allometry", "doctor", *{arguments!r}]
from allometry.cli.main import main
main()
"""


def hidden(modules, *arguments, folder):
    program = HIDE.format(hidden=tuple(modules), arguments=arguments)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder)


def test_all_that_a_forecast_needs_is_found_here(call, tmp_path):
    import torch

    from allometry.data import StandardLibrary

    code, told, errors = call("--store", tmp_path / "new" / "store.db", "--json")
    found = json.loads(told)
    assert (code, errors, found["ready"]) == (0, "", True)
    assert not (tmp_path / "new").exists()  # looked at, not made
    assert found["torch"]["version"] == torch.__version__
    assert min(found["torch"]["flops_per_second"].values()) > 1e8
    assert found["data"]["standard_library"]["digest"] == StandardLibrary().digest
    assert found["packages"]["train"]["installed"]["torch"] == metadata.version("torch")
    assert 1 <= found["machine"]["usable_cores"] <= found["machine"]["logical_processors"]


def test_text_is_aligned_and_a_hundred_columns_wide(call, tmp_path):
    code, told, _ = call("--store", tmp_path / "store.db")
    assert code == 0
    rows = [line for line in told.splitlines() if line.startswith("  ") and line[2] != " "]
    column = len("  standard library  ")
    assert all(row[column - 2 : column] == "  " and row[column] != " " for row in rows if row[2] not in "-!")
    assert max(map(len, told.splitlines())) <= 100
    assert told.rstrip().splitlines()[-1].startswith("Ready")


def test_without_torch_it_says_so_and_how_to_get_it(tmp_path):
    done = hidden(["torch"], "--json", folder=tmp_path)
    found = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (1, "")
    assert found["torch"] == {"installed": False}
    assert [p["cure"] for p in found["problems"] if p["essential"]] == ["pip install 'allometry[train]'"]
    assert found["data"]["standard_library"]["files"] > 100
    assert found["store"]["writable"]


def test_a_part_that_is_missing_is_a_problem_not_the_end(tmp_path):
    done = hidden(["torch", "sqlalchemy", "packaging"], "--json", folder=tmp_path)
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert any("sqlalchemy" in problem["what"] for problem in found["problems"])
    assert found["data"]["standard_library"]["files"] > 100


def test_a_store_is_counted_tried_and_left_as_it_was(tmp_path):
    path = tmp_path / "store.db"
    with Store(path) as store:
        plan = store.put_plan("forecast", {"budget": 1}, {"sizes": [1, 2]})
        for key, reason in (("a", None), ("b", None), ("c", "out of memory")):
            run = store.start_run(plan, key, {"width": 1})
            for name in ("first", "second"):
                store.add_record(plan, key, name, {"loss": 1.0})
            if reason:
                store.fail_run(run, reason)
            else:
                store.finish_run(run)
    before = sorted(tmp_path.iterdir())
    found = doctor.store(str(path))
    assert (found.facts["plans"], found.facts["records"], found.facts["runs"]) == (
        1,
        6,
        {"done": 2, "failed": 1},
    )
    assert found.facts["opens"]
    assert found.facts["writable"]
    assert found.problems == []
    assert sorted(tmp_path.iterdir()) == before
    assert doctor.store(str(path)).facts["records"] == 6


def test_a_store_that_is_none_has_its_cure(call, tmp_path):
    (tmp_path / "notes.txt").write_text("not a database at all " * 100)
    code, told, _ = call("--store", tmp_path / "notes.txt")
    assert code == 1
    assert "! " in told
    assert "cure: name another file" in told
    assert "notes.txt" in told
    found = doctor.store(str(tmp_path / "notes.txt" / "store.db"))  # a folder that cannot be made
    assert not found.facts["writable"]
    assert [problem.essential for problem in found.problems] == [True]


def test_a_server_that_is_away_is_told_at_once_and_its_password_is_not():
    pytest.importorskip("psycopg")
    start = time.monotonic()
    found = doctor.store("postgresql://someone:sesame@127.0.0.1:9/records")
    assert time.monotonic() - start < 5
    assert not found.facts["opens"]
    assert [problem.essential for problem in found.problems] == [True]
    assert "sesame" not in repr(found)


def test_a_target_that_no_store_can_be_is_bad_input(call):
    code, told, errors = call("--store", "mysql://somewhere/else")
    assert (code, told) == (2, "")
    assert len(errors.strip().splitlines()) == 1


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """A distribution with extras: one that is whole, one missing, one too old, one made of others."""
    about = tmp_path / "housework-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: housework\nVersion: 1.0\n"
        "Requires-Dist: numpy>=1\n"
        "Requires-Dist: pandas>=1; extra == 'whole'\n"
        "Requires-Dist: no-such-package-anywhere>=3; extra == 'missing'\n"
        "Requires-Dist: numpy<0.1; extra == 'old'\n"
        "Requires-Dist: housework[missing,whole]; extra == 'both'\n"
        "Requires-Dist: scipy; python_version < '3' and extra == 'whole'\n"
        + "".join(f"Provides-Extra: {extra}\n" for extra in ("whole", "missing", "old", "both"))
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "housework"


def test_extras_are_those_of_the_metadata(distribution):
    found = doctor.packages(distribution)
    facts = found.facts
    assert {extra for extra, about in facts.items() if about["complete"]} == {"always", "whole"}
    assert facts["whole"]["installed"] == {"pandas": metadata.version("pandas")}
    assert facts["missing"]["missing"] == ["no-such-package-anywhere>=3"]
    assert facts["missing"]["command"] == "pip install 'housework[missing]'"
    assert facts["both"]["missing"] == ["no-such-package-anywhere>=3"]
    assert set(facts["both"]["installed"]) == {"no-such-package-anywhere", "pandas"}
    assert facts["old"]["command"] == "pip install --upgrade 'housework[old]'"
    # an extra that nobody asked for is no problem; a version that it cannot work with is
    assert [problem.cure for problem in found.problems] == ["pip install --upgrade 'housework[old]'"]
    assert not found.problems[0].essential


def test_a_disk_that_is_full_stops_a_forecast(tmp_path, monkeypatch):
    for free, count, essential in ((5e9, 0, False), (5e8, 1, False), (5e7, 1, True)):
        usage = type("Usage", (), {"free": int(free)})
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path, usage=usage: usage)
        found = doctor.store(str(tmp_path / "store.db"))
        assert len(found.problems) == count
        assert any(problem.essential for problem in found.problems) is essential
