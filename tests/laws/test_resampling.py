"""Curves, ceilings and their intervals, against closed forms, permutations and simulation."""

import time
from math import comb

import numpy as np
import pytest

from allometry.laws import AcceptanceTable, ceiling, false_share_by_attempt, resampling_curve


def population(tasks, seed=0):
    """Rates of many tasks: accepted and correct, accepted and wrong."""
    generator = np.random.default_rng(seed)
    correct = generator.beta(0.5, 0.8, tasks)
    return correct, (1 - correct) * generator.beta(0.6, 4.0, tasks)


def drawn(right, wrong, samples, generator):
    kinds = generator.multinomial(samples, np.stack([right, wrong, 1 - right - wrong], axis=-1))
    return AcceptanceTable.from_counts(np.full(len(right), samples), kinds[:, 0] + kinds[:, 1], kinds[:, 0])


def test_a_perfect_verifier_gives_pass_at_k():
    right = np.array([0.9, 0.2, 0.01])
    curve = resampling_curve(AcceptanceTable.from_rates(right, np.zeros(3)), [1, 7, 500])
    expected = [np.mean(1 - (1 - right) ** k) for k in curve.k]
    np.testing.assert_allclose(curve.accuracy, expected, rtol=1e-14)
    np.testing.assert_array_equal(curve.false_rate, 0.0)
    counts, n = np.array([20, 3, 0]), 25
    table = AcceptanceTable.from_counts([n] * 3, counts, counts)
    unbiased = [np.mean([1 - comb(n - c, k) / comb(n, k) for c in counts]) for k in range(1, n + 1)]
    np.testing.assert_allclose(resampling_curve(table).accuracy, unbiased, rtol=1e-12)


def test_limits_in_k():
    right, wrong = population(50)
    table = AcceptanceTable.from_rates(right, wrong)
    curve = resampling_curve(table, [0, 1, 10**9])
    assert curve.accuracy[0] == curve.false_rate[0] == curve.draws[0] == 0.0
    assert curve.accuracy[1] == pytest.approx(right.mean(), rel=1e-14)
    assert curve.false_rate[1] == pytest.approx(wrong.mean(), rel=1e-14)
    assert curve.draws[1] == pytest.approx(1.0, rel=1e-14)
    assert curve.accuracy[2] == pytest.approx(ceiling(table).accuracy.value, rel=1e-12)
    nothing = resampling_curve(AcceptanceTable.from_rates([0.0, 0.0], [0.3, 0.0]), [1, 9])
    np.testing.assert_array_equal(nothing.accuracy, 0.0)
    assert nothing.draws[1] == pytest.approx(((1 - 0.7**9) / 0.3 + 9) / 2, rel=1e-13)
    for one in (curve, nothing):
        np.testing.assert_allclose(one.accuracy + one.false_rate + one.abstain, 1.0, rtol=1e-14)


def test_each_draw_adds_what_is_left_times_the_margin():
    right, wrong = population(40, seed=2)
    beta, cost, price = 1 - right - wrong, 1.7, 0.003
    curve = resampling_curve(
        AcceptanceTable.from_rates(right, wrong), np.arange(0, 60), cost_false=cost, cost_sample=price
    )
    k = curve.k[1:, None]
    added = ((right - cost * wrong - price) * beta ** (k - 1)).mean(axis=1)
    np.testing.assert_allclose(np.diff(curve.reward), added, rtol=0, atol=1e-14)


def test_an_incomplete_verifier_is_slower_and_ends_at_the_same_ceiling():
    right, wrong = population(30, seed=3)
    whole, half = (AcceptanceTable.from_rates(s * right, s * wrong, right) for s in (1.0, 0.5))
    slow, fast = (resampling_curve(table, [1, 3, 10**9]).accuracy for table in (half, whole))
    assert (slow[:2] < fast[:2]).all()
    assert slow[2] == pytest.approx(fast[2], rel=1e-12)
    assert half.completeness == pytest.approx(0.5, abs=1e-12)


def test_the_exact_estimate_is_the_mean_over_orders_of_the_samples():
    """10 000 random orders, as the authors' notebook draws them: within four standard errors at every K."""
    generator = np.random.default_rng(4)
    right, wrong = population(12, seed=4)
    table = drawn(right, wrong, 30, generator)
    n, m, g = (one.astype(int) for one in table.counts())
    ks = np.arange(1, 31)
    curve = resampling_curve(table, ks, exact=True)
    accuracy, false, draws = (np.zeros((10_000, len(ks))) for _ in range(3))
    for total, accepted, good in zip(n, m, g, strict=True):
        kinds = np.repeat([1, 2, 0], [good, accepted - good, total - accepted])
        orders = generator.permuted(np.tile(kinds, (10_000, 1)), axis=1)
        first = np.where((orders > 0).any(1), (orders > 0).argmax(1), total)
        kind = np.where(first < total, orders[np.arange(10_000), np.minimum(first, total - 1)], 0)
        found = first[:, None] < ks
        accuracy += found & (kind == 1)[:, None]
        false += found & (kind == 2)[:, None]
        draws += np.minimum(first[:, None] + 1, ks)
    for name, simulated in (("accuracy", accuracy), ("false_rate", false), ("draws", draws)):
        simulated = simulated / len(n)
        error = simulated.std(axis=0) / 100 + 1e-12
        assert (np.abs(simulated.mean(axis=0) - getattr(curve, name)) < 4 * error).all(), name


def test_the_exact_estimate_is_unbiased_and_tends_to_the_geometric_law():
    right, wrong = population(25, seed=5)
    truth = resampling_curve(AcceptanceTable.from_rates(right, wrong), [1, 4, 15], cost_false=1.0)
    generator = np.random.default_rng(6)
    told, plain = [], []
    for _ in range(2000):
        table = drawn(right, wrong, 15, generator)
        told.append(resampling_curve(table, truth.k, cost_false=1.0).reward)
        plain.append(resampling_curve(table, truth.k, cost_false=1.0, exact=False).accuracy)
    error = np.std(told, axis=0) / np.sqrt(2000)
    assert (np.abs(np.mean(told, axis=0) - truth.reward) < 4 * error).all()
    # the geometric law with rates from 15 samples is off where K is like the number of samples
    assert abs(np.mean(plain, axis=0)[2] - truth.accuracy[2]) > 0.01
    many = AcceptanceTable.from_counts(
        np.full(25, 10**7), np.round((right + wrong) * 10**7), np.round(right * 10**7)
    )
    np.testing.assert_allclose(
        resampling_curve(many, truth.k, exact=True).accuracy, truth.accuracy, rtol=1e-5
    )


def test_more_draws_than_samples_are_said_or_refused():
    table = AcceptanceTable.from_counts([30, 30], [3, 0], [2, 0])
    told = resampling_curve(table, [10, 31])
    assert told.model == "geometric"
    assert "extrapolated" in told.warnings[-1]
    assert resampling_curve(table, [10, 30]).model == "unbiased"
    with pytest.raises(ValueError, match="k reaches 31"):
        resampling_curve(table, [31], exact=True)
    with pytest.raises(ValueError, match="rates, not samples"):
        resampling_curve(AcceptanceTable.from_rates([0.1], [0.1]), [3], exact=True)


def test_answers_found_late_are_wrong_more_often():
    right, wrong = population(60, seed=7)
    table = AcceptanceTable.from_rates(right, wrong)
    share = false_share_by_attempt(table, np.arange(1, 40))
    curve = resampling_curve(table, np.arange(0, 40))
    found = np.diff(curve.accuracy + curve.false_rate)
    np.testing.assert_allclose(share, np.diff(curve.false_rate) / found, rtol=1e-9)
    assert share[-1] > share[4] > share[0]
    assert np.isnan(false_share_by_attempt(AcceptanceTable.from_rates([1.0], [0.0]), [2])[0])
    with pytest.raises(ValueError, match="count from 1"):
        false_share_by_attempt(table, [0])


def test_the_ceiling_has_bounds_where_nothing_was_accepted():
    table = AcceptanceTable.from_counts([50] * 4, [50, 10, 0, 0], [50, 5, 0, 0])
    told = ceiling(table)
    assert (told.accuracy.value, told.best.value, told.seen.value) == (0.375, 0.875, 0.75)
    assert told.pooled.value == pytest.approx(55 / 60)
    assert told.unseen == 2
    assert told.accuracy.low <= 0.375 <= told.accuracy.high


@pytest.mark.parametrize(("tasks", "samples", "widest"), [(12, 60, 0.42), (40, 60, 0.24), (200, 60, 0.11)])
def test_intervals_cover(tasks, samples, widest):
    """Tasks drawn anew from 4000, samples drawn anew: 90 % intervals hold the truth of all tasks."""
    right, wrong = population(4000, seed=8)
    all_of_them = AcceptanceTable.from_rates(right, wrong)
    k = [1, 5, 20]
    truth = resampling_curve(all_of_them, k, cost_false=1.0)
    top = ceiling(all_of_them).accuracy.value
    generator = np.random.default_rng(9)
    hits, widths, above = [], [], []
    for seed in range(400):
        pick = generator.integers(0, 4000, tasks)
        table = drawn(right[pick], wrong[pick], samples, generator)
        curve = resampling_curve(table, k, cost_false=1.0)
        told = [curve.interval(what, resamples=400, random_state=seed) for what in ("accuracy", "reward")]
        hits.append([(i.low <= t) & (t <= i.high) for i, t in
                     zip(told, (truth.accuracy, truth.reward), strict=True)])  # fmt: skip
        widths.append(told[0].width)
        above.append(ceiling(table, resamples=400, random_state=seed).accuracy)
    share = np.mean(hits, axis=0)
    assert (share > 0.86).all(), share
    assert (share < 0.95).all(), share
    assert (np.median(widths, axis=0) < widest).all(), np.median(widths, axis=0)
    assert 0.86 < np.mean([one.low <= top <= one.high for one in above]) < 0.95


def test_ten_thousand_resamples_take_seconds_at_most():
    right, wrong = population(200)
    table = drawn(right, wrong, 200, np.random.default_rng(0))
    begin = time.process_time()
    resampling_curve(table).interval("reward", resamples=10_000)
    assert time.process_time() - begin < 5.0  # 0.8 s where nothing else runs


def test_costs_and_draws_are_checked():
    table = AcceptanceTable.from_rates([0.5], [0.1])
    for bad, said in (
        ({"cost_false": -1.0}, "cost_false is -1"),
        ({"cost_sample": np.nan}, "cost_sample is nan"),
        ({"k": [1.5]}, "whole"),
        ({"k": [-1]}, "negative"),
        ({"k": []}, "one or more"),
    ):
        with pytest.raises(ValueError, match=said):
            resampling_curve(table, **bad)
    with pytest.raises(ValueError, match="two or more tasks"):
        resampling_curve(table, [1]).interval()
    with pytest.raises(ValueError, match="no curve"):
        resampling_curve(table, [1]).interval("precision")


def test_the_curve_is_a_table_and_a_figure():
    pytest.importorskip("matplotlib").use("Agg")
    right, wrong = population(20)
    curve = resampling_curve(AcceptanceTable.from_rates(right, wrong), [1, 10], cost_false=2.0)
    frame = curve.frame(resamples=200)
    assert frame.loc[10, "reward"] == pytest.approx(curve.reward[1])
    assert (frame["reward_low"] < frame["reward"]).all()
    assert (frame["reward"] < frame["reward_high"]).all()
    assert len(curve.plot().lines) == 3
