"""Studies end to end: what is declared, what runs, what the table says."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest

from allometry.study.claim import Outcome
from allometry.study.running import StudyError
from allometry.study.study import Study, axis
from allometry.study.tune import Tune

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def studies():
    spec = importlib.util.spec_from_file_location("allometry_tests_means", HERE / "means.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def options(tmp_path):
    return {"store": tmp_path / "store.db", "workers": 0, "display": None}


def test_a_study_runs_once_and_judges(studies, options):
    result = studies.means.run("quick", **options)
    assert len(result.table) == 2 * 3 * 4
    assert result.complete
    assert [one.outcome for one in result.verdicts] == [Outcome.HOLDS, Outcome.CONTRADICTED]
    assert result.verdict == "contradicted"
    assert result.slope("slow").value == pytest.approx(-0.5, abs=0.01)
    assert result.ratio("slow", at={"draws": 100}).value == pytest.approx(10.0, rel=0.02)
    assert result.gap("slow", at={"draws": 100}).value == pytest.approx(0.09, rel=0.02)
    again = studies.means.run("quick", **options)  # nothing runs: the clock's column would differ
    assert again.table["seconds"].tolist() == result.table["seconds"].tolist()
    assert studies.means.result("quick", store=options["store"]).table.equals(again.table)


def test_workers_give_the_same_table(studies, options, tmp_path):
    one = studies.means.run("quick", **options)
    two = studies.means.run("quick", store=tmp_path / "other.db", workers=2, display=None)
    drop = ["seconds"]
    assert one.table.drop(columns=drop).equals(two.table.drop(columns=drop))


def test_one_seed_decides_nothing(studies, options):
    result = studies.means.run("tiny", **options)
    assert {one.outcome for one in result.verdicts} == {Outcome.UNDECIDED}


def test_cells_together_equal_cells_alone(studies, options):
    result = studies.together.run("quick", **options)
    assert len(result.table) == 2 * 2 * 3 * 2
    for _, row in result.table.iterrows():
        assert row["loss"] == pytest.approx(row["width"] + row["seed"] / 10 + row["steps"] / 100, abs=1e-12)


def test_a_record_that_tells_no_seconds_has_its_part_of_the_trials(studies, options, monkeypatch):
    from allometry.study import cells

    clock = iter(range(100))  # each look takes a second
    monkeypatch.setattr(cells.time, "perf_counter", lambda: float(next(clock)))
    told = studies.together.run("quick", **options).table["seconds"]
    assert told.tolist() == pytest.approx([1 / 6] * len(told))  # six cells a trial, a second a record
    assert not studies.means.run("quick", **options).table["seconds"].eq(1.0).any()  # its own are kept


def test_divergence_is_a_status_with_its_step(studies, options):
    table = studies.diverging.run("quick", **options).table
    lost = table[table["rate"] == 10.0]
    assert (lost["status"] == "diverged").all()
    assert (lost["diverged"] == 7).all()
    assert lost["loss"].isna().all()
    assert (table[table["rate"] == 1.0]["status"] == "done").all()


def test_each_arm_is_tuned_on_fresh_seeds_and_keeps_its_choice(studies, options):
    result = studies.tuned.run("quick", **options)
    assert result.tuned == {"a": {"learning rate": 2}, "b": {"learning rate": 3}}
    assert (result.table["loss"] == 0.0).all()
    assert len(result.table) == 2 * 2 * 3  # tuning's own trials are not among the results
    assert [len(row) for row in result.tuning["a"]] == [3, 3, 3, 3]


def test_trials_that_fail_are_rows_with_their_reason(studies, options):
    said = []
    result = studies.failing.run("quick", tell=said.append, **options)
    bad = result.table[result.table["width"] == 4]
    assert set(bad["status"]) == {"failed"}
    assert all("no room" in reason for reason in bad["reason"])
    assert not result.complete
    assert any("no room" in sentence for sentence in said)


def test_a_study_of_which_nothing_was_run_says_so(studies, options):
    studies.means.run("tiny", **options)
    with pytest.raises(StudyError, match="was not run with profile 'full'"):
        studies.means.result("full", store=options["store"])


def test_a_changed_setting_or_claim_is_another_plan(studies):
    from allometry.study.running import plan_of

    first = plan_of(studies.means, "quick")[0]
    assert first == plan_of(studies.means, "quick")[0]
    assert first != plan_of(studies.means, "quick", seed=1)[0]
    assert first != plan_of(studies.means, "full")[0]


def test_a_missing_extra_is_named(options, monkeypatch):
    monkeypatch.setattr("allometry.extras.installed", lambda extra: extra == "train")
    study = Study(
        "needs", question="?", arms=["a"], axis=axis("n", 1), measure="loss", requires=("train", "hub")
    )
    with pytest.raises(StudyError, match=r"'hub': pip install 'allometry\[hub\]'"):
        study.run("quick", **options)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "Not A Slug"}, "lower-case words"),
        ({"arms": ()}, "at least one arm"),
        ({"measure": None}, "at least one measure"),
        ({"profiles": {"huge": {}}}, "there are tiny"),
        ({"together": ("depth",)}, "together names 'depth'"),
        ({"over": "depth"}, "over names 'depth'"),
        ({"measure": "seed"}, "names of their own"),
    ],
)
def test_a_declaration_that_cannot_run_is_refused(change, says):
    declared = {
        "name": "a",
        "question": "?",
        "arms": ["a"],
        "axis": axis("n", 1),
        "measure": "loss",
        **change,
    }
    with pytest.raises(ValueError, match=says):
        Study(**declared)


def test_axes_refuse_what_they_cannot_scale():
    with pytest.raises(ValueError, match="no logarithm"):
        axis("n", 0, 1)
    with pytest.raises(ValueError, match="twice"):
        axis("n", 1, 1)
    with pytest.raises(ValueError, match="profiles are"):
        axis("n", 1, fast=(1,))
    assert axis("n", 0, 1, log=False).values("tiny") == (0, 1)


def test_trials_that_tell_too_little_are_refused(tmp_path):
    study = Study(
        "short", question="?", arms=["a"], axis=axis("n", 1), measures=["loss", "accuracy"], seeds=1
    )
    study.trial(lambda arm, n, seed, profile: {"loss": 1.0})
    from allometry.study.cells import checked

    with pytest.raises(ValueError, match="not 'accuracy'"):
        checked(study, study.cells("quick")[0], {"loss": 1.0}, "run")
    with pytest.raises(ValueError, match="the study's own"):
        checked(study, study.cells("quick")[0], {"loss": 1.0, "accuracy": 0.0, "seed": 1}, "run")


def test_a_value_that_diverged_is_never_chosen():
    tune = Tune("rate", (1, 2), on="loss")
    assert tune.choose({1: [0.5, 0.5], 2: [0.1, math.inf]}) == 1
    assert Tune("rate", (1, 2), on="accuracy", maximise=True).choose({1: [0.5], 2: [0.6]}) == 2
    with pytest.raises(ValueError, match="no value of rate"):
        tune.choose({1: [math.nan], 2: []})


def test_a_curve_keeps_apart_what_diverged_and_what_is_not_known(studies, options):
    diverged = studies.diverging.run("quick", **options).curve("a")
    assert diverged.censored.tolist() == [[False] * 3, [True] * 3]
    failed = studies.failing.run("quick", **options)
    assert not failed.complete
    assert failed.curve("a").y.shape == (1, 3)  # a width of which nothing is known is no scale


def test_a_run_is_tuned_by_its_last_record(options):
    study = Study(
        "late", question="?", arms=["a"], measure="loss",
        axes=[axis("n", 1), axis("steps", 1, 2, recorded=True)], tune=Tune("rate", (1, 2), on="loss"),
    )  # fmt: skip

    @study.trial
    def trial(arm, n, seed, profile):
        yield {"steps": 1, "loss": 0.0 if profile.rate == 2 else 0.5}
        yield {"steps": 2, "loss": 0.4} if profile.rate == 1 else {"steps": 2, "diverged": 2}

    from allometry.study import cells

    found = cells.find
    cells.find = lambda home, name: study
    try:
        assert study.run("quick", **options).tuned == {"a": {"rate": 1}}
    finally:
        cells.find = found
