"""``allometry study`` and ``allometry paper``, as a person calls them."""

import json
import sys
from pathlib import Path

import pytest

from allometry.cli.main import main
from allometry.papers import entries
from allometry.study.starting import KINDS

MEANS = Path(__file__).parents[1] / "study" / "means.py"


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Run the command line in a folder of its own: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["allometry", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        shown = capsys.readouterr()
        return stopped.value.code, shown.out, shown.err

    return run


def test_list_has_every_study_of_every_paper(call):
    code, out, _ = call("study", "list", "--json")
    assert code == 0
    declared = [study.name for paper in entries() for study in paper.studies]
    assert [one["name"] for one in json.loads(out)] == declared
    told = call("study", "list")[1]
    assert all(name in told for name in declared)


def test_a_paper_is_shown_with_all_that_it_says(call):
    papers = entries()
    code, out, _ = call("paper", "list", "--json")
    assert code == 0
    assert [one["slug"] for one in json.loads(out)] == [paper.slug for paper in papers]
    for paper in papers[:1]:
        code, out, _ = call("paper", "show", paper.slug)
        assert code == 0
        assert paper.url in out
        assert " ".join(out.split()).find(paper.summary[:60]) > 0
        assert all(study.name in out for study in paper.studies)


def test_show_tells_claims_with_rules_and_how_to_run(call):
    code, out, _ = call("study", "show", f"{MEANS}:means")
    assert code == 0
    assert "The error falls as one over n." in out
    assert "no evidence" in out
    told = json.loads(call("study", "show", f"{MEANS}:means", "--profile", "tiny", "--json")[1])
    assert told["axes"][0]["values"] == {"tiny": [10, 100]}
    assert told["profiles"] == {"tiny": {"seeds": 1, "settings": {}, "trials": 4}}


def test_run_reports_judges_and_compares(call, tmp_path):
    name = f"{MEANS}:means"
    code, out, err = call("study", "run", name, "--workers", 0, "--report", "one", "--json")
    assert code == 0
    told = json.loads(out)
    assert [one["outcome"] for one in told["verdicts"]] == ["holds", "contradicted"]
    assert len(told["table"]) == 24
    assert "report.html" in err
    assert (tmp_path / ".allometry" / "store.db").exists()
    code, out, _ = call("study", "run", name, "--workers", 0, "--seed", 7, "--report", "two")
    assert code == 0
    assert out.index("✓ holds") < out.index("✗ contradicted") < out.index("error by draws")
    told = json.loads(call("study", "compare", name, "one", "two", "--json")[1])
    assert told["judged"] == 6
    assert told["verdicts"][0] == {
        "claim": "The error falls as one over n.",
        "first": "holds",
        "second": "holds",
    }
    same = json.loads(call("study", "compare", name, "one", "quick", "--json")[1])
    assert [row["difference"] for row in same["table"]] == [0.0] * 6
    assert same["agree"] == 6
    assert "agree" in call("study", "compare", name, "one", "two")[1]


def test_evidence_of_a_full_run_is_shown_and_a_changed_rule_is_stale(call, tmp_path, monkeypatch):
    from allometry import papers
    from allometry.study.cells import load

    source = MEANS.read_text()
    files = [tmp_path / "first.py", tmp_path / "second.py"]
    files[0].write_text(source)
    files[1].write_text(source.replace('slope("slow") < -1', 'slope("slow") < -2'))
    studies = [load(file).means for file in files]
    monkeypatch.setattr(papers, "study", lambda name: studies[0])
    code, _, err = call(
        "study", "run", "means", "--profile", "full", "--workers", 0, "--evidence", "evidence"
    )
    assert code == 0
    assert {one.name for one in (tmp_path / "evidence" / "means").iterdir()} == {"result.json", "figure.svg"}
    assert "evidence/means" in err
    assert json.loads(call("study", "show", "means", "--json")[1])["evidence"]["verdict"] == "contradicted"
    assert json.loads(call("study", "show", "means", "--json")[1])["evidence"]["stale"] == []
    monkeypatch.setattr(papers, "study", lambda name: studies[1])
    assert "contradicted, stale" in call("study", "show", "means")[1]


def test_a_run_that_fails_in_part_exits_1_and_says_why(call):
    code, out, err = call("study", "run", f"{MEANS}:failing", "--workers", 0)
    assert code == 1
    assert "no room" in out
    assert "again" in err


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_study_is_a_short_file_that_declares_one(call, tmp_path, kind):
    code, out, _ = call("study", "new", "mine.py", "--kind", kind)
    assert code == 0
    assert "allometry study run mine.py --profile tiny" in out
    text = (tmp_path / "mine.py").read_text()
    assert len(text.splitlines()) <= 66
    code, _, err = call("study", "new", "mine.py")
    assert (code, "not written over" in err) == (2, True)
    assert (tmp_path / "mine.py").read_text() == text
    told = json.loads(call("study", "show", "mine.py", "--json")[1])
    assert list(told["arms"])[1] == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_study_runs_as_it_is(call, kind):
    pytest.importorskip("torch")
    assert call("study", "new", "mine.py", "--kind", kind)[0] == 0
    code, out, _ = call("study", "run", "mine.py", "--profile", "tiny", "--workers", 0, "--json")
    assert code == 0
    assert json.loads(out)["complete"]


@pytest.mark.slow
@pytest.mark.parametrize("example", ["optimizer", "initialization"])
def test_the_examples_run_as_they_are(call, example):
    pytest.importorskip("torch")
    file = MEANS.parents[2] / "examples" / f"price_an_{example}.py"
    code, out, _ = call("study", "run", file, "--profile", "tiny", "--workers", 0, "--json")
    assert code == 0
    assert json.loads(out)["complete"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("study", "show", "no-such-study"), "no study 'no-such-study'"),
        (("paper", "show", "no-such-paper"), "no entry 'no-such-paper'"),
        (("study", "run", "absent.py"), "no file 'absent.py'"),
        (("study", "run", MEANS), "declares the studies"),
        (("study", "run", f"{MEANS}:other"), "no study 'other'"),
        (("study", "run", f"{MEANS}:means", "--profile", "huge"), "profiles tiny, quick, full, not 'huge'"),
        (("study", "run", f"{MEANS}:means", "--workers", "-1"), "0 or more"),
        (("study", "run", f"{MEANS}:means", "--executor", "abacus"), "local or ray"),
        (("study", "run", f"{MEANS}:means", "--evidence", "evidence"), "full profile"),
        (("study", "run", f"{MEANS}:means", "--profile", "full", "--evidence", "e"), "study of your own"),
        (("study", "compare", f"{MEANS}:means", "here", "there"), "no evidence in 'here'"),
        (("study", "compare", f"{MEANS}:means", "evidence", "tiny"), "no evidence of means"),
        (("study", "new", "mine.txt"), "does not end in .py"),
        (("study", "new", "mine.py", "--kind", "poem"), "optimizer, init, technique"),
    ],
)
def test_bad_input_exits_2_with_one_sentence(call, arguments, says):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("allometry: ")
    assert len(err.strip().splitlines()) == 1
    assert says in err
