"""Resampling as a law over a table of judged samples."""

import numpy as np
import pytest

from allometry.laws import AcceptanceTable, get_law, optimal_k, resampling_curve


def rows(tasks=60, samples=50, seed=0):
    generator = np.random.default_rng(seed)
    right = generator.beta(0.6, 1.0, tasks)[:, None]
    correct = generator.random((tasks, samples)) < right
    accepted = correct | (generator.random((tasks, samples)) < 0.15)
    names = [f"task {i}" for i in range(tasks)]
    return {
        "task_id": np.repeat(names, samples), "passed": accepted.ravel(), "reference": correct.ravel(),
    }, AcceptanceTable(accepted, correct)  # fmt: skip


def test_the_law_is_the_curve_of_its_table():
    table, judged = rows()
    law = get_law("resampling", cost_false="1").fit(table, resamples=200)
    at = {"samples": [1, 10, 50]}
    np.testing.assert_allclose(law.predict(at), resampling_curve(judged, at["samples"]).accuracy, rtol=1e-12)
    assert law.params_["single-sample accuracy"] == pytest.approx(judged.pass_at_1)
    assert law.params_["best K"] == optimal_k(judged, cost_false=1.0, resamples=0).k
    told = law.table()
    assert told.loc["ceiling", "low"] < told.loc["ceiling", "value"] < told.loc["ceiling", "high"]


def test_a_new_measurement_falls_into_the_interval_of_predictions():
    inside, narrow = [], []
    for seed in range(150):
        law = get_law("resampling").fit(rows(seed=seed)[0], resamples=200)
        measured = resampling_curve(rows(seed=1000 + seed)[1], [5, 20]).accuracy
        told = {kind: law.interval({"samples": [5, 20]}, kind=kind) for kind in ("mean", "prediction")}
        inside.append((told["prediction"].low <= measured) & (measured <= told["prediction"].high))
        narrow.append((told["mean"].low <= measured) & (measured <= told["mean"].high))
    assert 0.84 < np.mean(inside) < 0.97, np.mean(inside)
    assert np.mean(narrow) < 0.84, np.mean(narrow)


def test_half_of_the_tasks_foretell_the_others():
    table, judged = rows(tasks=80)
    told = get_law("resampling").hold_out(table, resamples=200)
    assert len(told.law.table_) == 40
    assert told.error < 0.35
    assert told.inside > 0.5
    others = judged.select([i for i in range(80) if f"task {i}" not in told.law.table_.tasks])
    np.testing.assert_allclose(told.observed[0], others.right.mean(), rtol=1e-12)
    few = {"task": [1, 2, 3], "accepted": [1, 1, 0], "correct": [1, 0, 0]}
    with pytest.raises(ValueError, match="too few to hold half"):
        get_law("resampling").hold_out(few)


def test_words_for_true_and_false_do_as_well():
    table, judged = rows()
    words = {name: values.astype(str) for name, values in table.items()}
    law = get_law("resampling").fit(words, resamples=10)
    np.testing.assert_array_equal(np.sort(law.table_.right), np.sort(judged.right))


def test_rates_by_task_do_as_well():
    _, judged = rows()
    law = get_law("resampling").fit({"right": judged.right, "wrong": judged.wrong}, resamples=100)
    expected = resampling_curve(judged, [10], exact=False).accuracy
    np.testing.assert_allclose(law.predict({"k": 10}), expected, rtol=1e-12)


def test_the_report_and_the_figure():
    pytest.importorskip("matplotlib").use("Agg")
    law = get_law("resampling", cost_false=3.0).fit(rows()[0], resamples=100)
    told = law.report()
    best = told["best number of samples"]
    assert 3.0 in best.index
    assert (np.diff(best["reward"]) <= 1e-12).all()  # errors that cost more leave less
    assert best["reward on other samples"].notna().all()
    assert told["accuracy by samples"].index[-1] == 50
    assert len(law.plot().lines) == 4


def test_what_it_cannot_know_is_refused():
    table, _ = rows()
    with pytest.raises(ValueError, match="has not been fitted"):
        get_law("resampling").predict({"samples": [1]})
    with pytest.raises(ValueError, match="needs a column 'accepted'"):
        get_law("resampling").fit({"task": [1, 2], "correct": [0, 1]})
    with pytest.raises(ValueError, match="one task"):
        get_law("resampling").fit({"task": [1, 1], "accepted": [0, 1], "correct": [0, 1]})
    with pytest.raises(ValueError, match="0 or 1"):
        get_law("resampling").fit({"task": [1, 2], "accepted": [0, 3], "correct": [0, 1]})
    with pytest.raises(ValueError, match="a column 'samples'"):
        get_law("resampling").fit(table, resamples=10).predict({"tokens": [1]})
    with pytest.raises(ValueError, match="cost_false is -1"):
        get_law("resampling", cost_false=-1)
