"""The main job, end to end on the tiny ladder: order of events, resuming, killing, bad input."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

import allometry
from allometry.forecast.ladder import PLANS, non_embedding
from allometry.forecast.predict import choose_forms, choose_target
from allometry.laws import fit
from allometry.study.store import Store


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    store = folder / "store.db"
    said: list[str] = []
    result = allometry.forecast(
        plan="tiny", store=store, report=folder / "report", display=None, tell=said.append
    )
    return result, store, folder, said


def test_target_is_the_compute_that_was_asked_for(tiny):
    result, *_ = tiny
    ladder = PLANS["tiny"]
    asked = 8 * 6 * non_embedding(ladder, ladder.widths[-1], 256) * ladder.tokens[-1]
    assert result.target["flops"] == pytest.approx(asked, rel=0.01)
    assert result.target["flops"] == 6 * result.target["params"] * result.target["tokens"]


def test_forecast_is_stored_before_the_target_trains(tiny):
    result, store, *_ = tiny
    with Store(store) as database:
        told = database.find_plan("forecast/target", {"plan": result.digest})
        runs = database.runs(told)
    assert told.content["forecast"]["loss"] == result.value
    assert (runs["started"] >= pd.Timestamp(told.created, unit="s", tz="UTC")).all()


def test_measured_loss_and_records_are_in_the_store(tiny):
    result, store, *_ = tiny
    with Store(store) as database:
        told = database.find_plan("forecast/target", {"plan": result.digest})
        (loss,) = database.records(told)["loss"]
        plan = database.plan(result.digest)
    assert loss == result.check.measured
    assert len(result.runs) == 3 * 3 * 3  # widths, seeds, horizons
    assert plan.content["smallest_tokens"] == min(PLANS["tiny"].tokens)
    assert plan.content["corpus"]["digest"]


def test_everything_promised_is_written(tiny):
    _, _, folder, _ = tiny
    names = {path.name for path in (folder / "report").iterdir()}
    assert {"report.html", "forecast.png", "forecast.svg", "runs.csv", "law.json"} <= names
    page = (folder / "report" / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert len(pd.read_csv(folder / "report" / "runs.csv")) == 27


def test_a_first_forecast_comes_before_the_last_run(tiny):
    *_, said = tiny
    early = [i for i, sentence in enumerate(said) if sentence.startswith("With ")]
    final = [i for i, sentence in enumerate(said) if sentence.startswith("Forecast: ")]
    assert early
    assert early[0] < final[0]


def test_asking_again_trains_nothing_and_says_the_same(tiny):
    result, store, *_ = tiny
    with Store(store) as database:
        before = database.runs().set_index("run")[["started", "finished", "attempts"]]
    again = allometry.forecast(plan="tiny", store=store, display=None)
    with Store(store) as database:
        after = database.runs().set_index("run")[["started", "finished", "attempts"]]
    assert before.equals(after)
    assert (again.value, again.low, again.high) == (result.value, result.low, result.high)
    assert again.check == result.check


def test_text_that_changed_is_another_job(tiny, tmp_path):
    text = tmp_path / "text.txt"
    generator = random.Random(0)
    words = [f"word{i} " for i in range(50)]
    text.write_text("".join(generator.choices(words, k=60_000)))
    settings = {"plan": "tiny", "store": tmp_path / "s.db", "check": False, "seeds": 1, "display": None}
    first = allometry.forecast(text, **settings)
    text.write_text("".join(generator.choices(words, k=60_000)))
    second = allometry.forecast(text, **settings)
    assert first.digest != second.digest
    assert first.check is None


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"plan": "huge"}, "plan must be one of"),
        ({"target": 0.5}, "between 1 and 1000"),
        ({"target": float("nan")}, "between 1 and 1000"),
        ({"seeds": 0}, "at least 1"),
        ({"tokens": -1}, "positive"),
        ({"sources": "no-such-file.txt"}, "no-such-file.txt"),
        ({"device": "abacus", "plan": "tiny"}, "abacus"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(settings, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        allometry.forecast(store=tmp_path / "s.db", display=None, **settings)


def _law(alpha=0.3, beta=0.7):
    n, d = (a.ravel() for a in np.meshgrid([9e3, 3.7e4, 8.3e4, 1.5e5], [1e6, 1.5e6, 2e6, 2.5e6]))
    loss = 0.8 + 12 * n**-alpha + 8000 * d**-beta
    return fit("chinchilla", {"params": n, "tokens": d}, loss, resamples=0)


def _plan(**changes):
    plan = {"vocab_size": 256, "target": 8.0, "target_tokens": None, "corpus": {"training_tokens": 9e6}}
    return plan | changes


def test_target_follows_the_law_and_stays_sensible():
    ladder, law = PLANS["default"], _law()
    largest = non_embedding(ladder, ladder.widths[-1], 256)
    goal, notes = choose_target(law, _plan(corpus={"training_tokens": 1e9}), ladder)
    best = law.optimal(8 * 6 * largest * ladder.tokens[-1]).params
    within = min(max(best, largest), 8 * largest)
    step = ladder.head_size
    # the nearest width of whole heads
    near = [non_embedding(ladder, goal["width"] + more, 256) for more in (-step, 0, step)]
    errors = np.abs(np.log(np.array(near) / within))
    assert np.argmin(errors) == 1
    assert bool(notes) == (within != best)
    # little text: the target reads it at most once, so it is wider
    scarce, _ = choose_target(law, _plan(corpus={"training_tokens": 4e6}), ladder)
    assert scarce["width"] > goal["width"] or goal["tokens"] <= 4e6
    assert scarce["epochs"] < 1.1


def test_tokens_given_by_the_user_decide_the_size():
    ladder = PLANS["default"]
    goal, _ = choose_target(_law(), _plan(target_tokens=5_000_000), ladder)
    flops = 8 * 6 * non_embedding(ladder, 64, 256) * ladder.tokens[-1]
    assert goal["tokens"] == pytest.approx(5e6, rel=1e-3)
    assert goal["params"] == pytest.approx(flops / 6 / 5e6, rel=0.15)


def test_laws_count_unless_clearly_beaten():
    rule = {"candidates": ["kaplan-offset", "chinchilla"], "margin": 3.0}

    def chosen(*errors):
        return choose_forms(pd.DataFrame({"held_out_error": errors}, index=rule["candidates"]), rule)

    assert chosen(0.010, 0.006) == ["kaplan-offset", "chinchilla"]
    assert chosen(0.010, 0.003) == ["chinchilla"]
    assert chosen(0.001, 0.004) == ["kaplan-offset"]
    assert chosen(float("nan"), 0.001) == ["kaplan-offset", "chinchilla"]
    assert chosen(float("nan"), float("nan")) == ["kaplan-offset", "chinchilla"]


def _command(folder, *more):
    where = ["--store", str(folder / "store.db"), "--report", str(folder / "report")]
    return [sys.executable, "-m", "allometry.cli.main", "forecast", "--tiny", *where, "--json", *more]


@pytest.mark.slow
def test_twenty_kills_lose_nothing(tmp_path):
    """kill -9 of the whole process group at twenty random moments: the numbers of an undisturbed run."""
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    calm.mkdir(), rough.mkdir()
    undisturbed = json.loads(subprocess.run(_command(calm), capture_output=True, check=True).stdout)
    moments, kills = random.Random(0), 0
    finished: dict[str, tuple] = {}
    while kills < 20:
        process = subprocess.Popen(
            _command(rough), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(moments.uniform(0.2, 7.0))
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        if (rough / "store.db").exists():
            with Store(rough / "store.db") as database:
                done = database.runs(status="done")
            for row in done.itertuples():
                mark = (row.started, row.finished, row.attempts)
                assert finished.setdefault(row.run, mark) == mark, "a finished run was trained again"
    assert kills >= 5
    last = subprocess.run(_command(rough), capture_output=True, check=True)
    survived = json.loads(last.stdout)
    assert survived["forecast"] == undisturbed["forecast"]
    assert survived["check"] == undisturbed["check"]
    assert survived["law"] == undisturbed["law"]
    runs = [pd.read_csv(folder / "report" / "runs.csv") for folder in (calm, rough)]
    pd.testing.assert_frame_equal(*runs, check_exact=True)
