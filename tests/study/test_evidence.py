"""Evidence judges as the run did, and knows when it is stale."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from allometry.study import sources
from allometry.study.evidence import keep, read

SOURCE = (Path(__file__).parent / "means.py").read_text()


@pytest.fixture
def load(tmp_path):
    """Load a study's source, perhaps changed, as a file of its own."""
    names = []

    def make(text=SOURCE):
        file = tmp_path / f"study_{len(names)}.py"
        file.write_text(text)
        name = f"allometry_tests_evidence_{len(names)}"
        spec = importlib.util.spec_from_file_location(name, file)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        names.append(name)
        spec.loader.exec_module(module)
        return module

    yield make
    for name in names:
        del sys.modules[name]


def test_it_says_what_the_run_said(load, tmp_path):
    study = load().means
    result = study.run("quick", store=tmp_path / "store.db", workers=0, display=None)
    evidence = read(keep(result, tmp_path / "evidence").parent)
    assert [str(one) for one in evidence.result(study).verdicts] == [str(one) for one in result.verdicts]
    assert evidence.outcomes == ["holds", "contradicted"]
    assert evidence.stale(study) == []
    assert json.loads((tmp_path / "evidence" / "result.json").read_text())["command"].startswith(
        "allometry study run"
    )


def test_a_comment_leaves_it_fresh_and_code_or_rules_make_it_stale(load, tmp_path):
    study = load().means
    result = study.run("quick", store=tmp_path / "store.db", workers=0, display=None)
    evidence = read(keep(result, tmp_path / "evidence").parent)
    assert evidence.stale(load(SOURCE + "\n# a remark\n").means) == []
    changed = SOURCE.replace("gauss(0, 0.01)", "gauss(0, 0.02)")
    assert "code changed since" in evidence.stale(load(changed).means)[0]
    rule = SOURCE.replace('slope("slow") < -1', 'slope("slow") < -2')
    assert any("claims" in reason for reason in evidence.stale(load(rule).means))
    seeds = SOURCE.replace("seeds=4", "seeds=5")
    assert any("seeds" in reason for reason in evidence.stale(load(seeds).means))


def test_only_whole_runs_become_evidence(load, tmp_path):
    result = load().failing.run("quick", store=tmp_path / "store.db", workers=0, display=None)
    with pytest.raises(ValueError, match="missing or failed"):
        keep(result, tmp_path / "evidence")
    with pytest.raises(ValueError, match="no evidence"):
        read(tmp_path / "evidence")


def test_sources_follow_imports_into_rooms_and_nowhere_else(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "from allometry.study import Study\n"
        "from allometry import laws\n"
        "if TYPE_CHECKING:\n    from allometry.models import GPT\n"
        "def f():\n    from allometry.optim import wsd\n    return laws.PowerLaw, wsd\n"
    )
    found = sources.modules_of(file)
    assert "mine" in found
    assert "allometry.laws.forms" in found
    assert "allometry.optim.schedules" in found
    assert not any(name.startswith(("allometry.study", "allometry.models")) for name in found)
    assert "allometry.laws.logs" not in found
    assert "allometry.laws" not in found, "a new public name of a room would make all evidence stale"
