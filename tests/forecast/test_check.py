"""The check: the interval score against closed forms, the naive forecasts against lines drawn by hand."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from allometry.forecast.check import check, interval_score, naive_forecasts, seed_noise


def rungs(losses: dict[int, list[float]], flops: dict[int, float]) -> pd.DataFrame:
    """One record a run, at one horizon: losses by width, one a seed."""
    return pd.DataFrame(
        [
            {
                "run": f"{w}/{s}",
                "width": w,
                "seed": s,
                "params": w,
                "tokens": 100,
                "flops": flops[w],
                "loss": loss,
            }
            for w, seeds in losses.items()
            for s, loss in enumerate(seeds)
        ]
    )


FLOPS = {16: 1e10, 32: 1e11, 48: 1e12}


# --- the score ---------------------------------------------------------------------------------------------
def test_inside_the_score_is_the_width_and_outside_it_grows_by_twice_the_distance_over_alpha() -> None:
    assert interval_score(2.0, 3.0, 2.5) == pytest.approx(math.log(1.5), rel=1e-12)
    assert interval_score(2.0, 3.0, 4.0, 0.8) == pytest.approx(
        math.log(1.5) + 10.0 * math.log(4 / 3), rel=1e-12
    )
    assert interval_score(2.0, 3.0, 1.0, 0.5) == pytest.approx(math.log(1.5) + 4.0 * math.log(2.0), rel=1e-12)
    assert interval_score(2.0, 2.0, 2.0) == 0.0


def test_the_score_knows_no_unit() -> None:
    for factor in (1e-3, 7.0):
        assert interval_score(factor * 1.4, factor * 1.5, factor * 1.6) == pytest.approx(
            interval_score(1.4, 1.5, 1.6), rel=1e-12
        )


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_the_true_quantiles_score_best_and_as_well_as_theory_says(level: float) -> None:
    """Winkler's score is proper: for a log-normal truth its mean is least at the central quantiles.

    There it is 2 s phi(q) / (alpha / 2) with q the quantile, s the spread and alpha = 1 - level.
    """
    spread = 0.02
    truths = np.exp(spread * np.random.default_rng(5).standard_normal(20_000))
    half = spread * stats.norm.ppf(0.5 + level / 2)

    def mean_score(shift: float, stretch: float) -> float:
        low, high = math.exp(shift - stretch * half), math.exp(shift + stretch * half)
        return float(np.mean([interval_score(low, high, truth, level) for truth in truths]))

    best = mean_score(0.0, 1.0)
    theory = 2.0 * spread * stats.norm.pdf(half / spread) / ((1 - level) / 2)
    assert best == pytest.approx(theory, rel=0.02)
    for shift, stretch in ((0.5 * half, 1.0), (-0.5 * half, 1.0), (0.0, 0.6), (0.0, 1.6)):
        assert mean_score(shift, stretch) > 1.02 * best


@pytest.mark.parametrize(
    "numbers",
    [(2.0, 1.0, 1.5), (0.0, 1.0, 0.5), (-1.0, 1.0, 0.5), (1.0, 2.0, 0.0), (1.0, 2.0, math.nan),
     (math.nan, 2.0, 1.0), (1.0, math.nan, 1.0), (1.0, math.inf, 1.0)],
)  # fmt: skip
def test_an_interval_that_cannot_be_is_refused(numbers: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="0 < low <= high"):
        interval_score(*numbers)


@pytest.mark.parametrize("level", [0.0, 1.0, 90.0, math.nan])
def test_a_level_that_cannot_be_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        interval_score(1.0, 2.0, 1.5, level)
    with pytest.raises(ValueError, match="between 0 and 1"):
        naive_forecasts(rungs({16: [3.0], 32: [2.0]}, FLOPS), 1e13, level)


# --- noise between seeds -----------------------------------------------------------------------------------
def test_seed_noise_pools_variances_and_counts_runs() -> None:
    table = rungs(
        {16: [math.exp(0.02), math.exp(-0.02)], 32: [math.exp(0.01), 1.0, math.exp(-0.01)], 48: [1.0]}, FLOPS
    )
    noise, freedom = seed_noise(table)
    assert freedom == 1 + 2
    assert noise == pytest.approx(math.sqrt((2 * 0.02**2 + 2 * 0.01**2) / 3), rel=1e-12)


def test_more_horizons_of_the_same_runs_are_no_more_freedom() -> None:
    table = rungs({16: [3.0, 3.1], 32: [2.0, 2.1]}, FLOPS)
    longer = table.assign(tokens=200, loss=0.9 * table["loss"])
    assert seed_noise(pd.concat([table, longer])) == pytest.approx(seed_noise(table), rel=1e-12)


def test_seed_noise_ignores_what_is_not_a_loss_and_seeds_that_share_no_horizon() -> None:
    table = rungs({16: [3.0, 3.1, math.nan], 32: [2.0, math.inf]}, FLOPS)
    assert seed_noise(table) == pytest.approx(
        seed_noise(rungs({16: [3.0, 3.1], 32: [2.0]}, FLOPS)), rel=1e-12
    )
    apart = rungs({16: [3.0, 3.1]}, FLOPS).assign(tokens=[100, 200])
    noise, freedom = seed_noise(apart)
    assert math.isnan(noise)
    assert freedom == 0


# --- naive forecasts ---------------------------------------------------------------------------------------
def test_the_ruler_is_exact_on_a_power_law_of_compute() -> None:
    def law(flops: float) -> float:
        return 40.0 * flops**-0.11

    table = rungs({w: [law(f)] * 2 for w, f in FLOPS.items()}, FLOPS)
    naive = naive_forecasts(table, 8e12)
    assert naive.loc["ruler", "value"] == pytest.approx(law(8e12), rel=1e-12)
    assert naive.loc["last rung", "value"] == pytest.approx(law(1e12), rel=1e-12)
    assert naive.loc["ruler", "high"] == pytest.approx(
        naive.loc["ruler", "low"], rel=1e-12
    )  # no noise, no width


def test_only_the_longest_horizon_of_a_size_is_its_rung() -> None:
    table = rungs({16: [3.0], 32: [2.5], 48: [2.0]}, FLOPS)
    shorter = table.assign(tokens=50, loss=9.0, flops=table["flops"] / 2)
    pd.testing.assert_frame_equal(
        naive_forecasts(pd.concat([shorter, table]), 1e13), naive_forecasts(table, 1e13), check_exact=True
    )


def test_without_a_second_seed_there_is_no_interval() -> None:
    naive = naive_forecasts(rungs({16: [3.0], 32: [2.5]}, FLOPS), 1e13)
    assert np.isfinite(naive["value"]).all()
    assert naive[["low", "high"]].isna().all(axis=None)


def test_widths_of_the_naive_intervals_follow_from_the_rules() -> None:
    table = rungs({16: [3.0, 3.1], 32: [2.4, 2.5], 48: [2.0, 2.1]}, FLOPS)
    noise, freedom = seed_noise(table)
    naive = naive_forecasts(table, 1e13, 0.8)  # one decade beyond rungs that are one decade apart: reach 1
    student = stats.t.ppf(0.9, freedom)
    halves = np.log(naive["high"] / naive["low"]) / 2
    assert halves["last rung"] == pytest.approx(student * noise * math.sqrt(1 / 2 + 1), rel=1e-12)
    assert halves["ruler"] == pytest.approx(student * noise * math.sqrt(4 / 2 + 1 / 2 + 1), rel=1e-12)


def test_where_the_ruler_is_right_its_misses_are_students() -> None:
    """Ladders drawn again and again: the miss over its standard error follows Student's t with 3 freedoms."""
    generator, noise, level = np.random.default_rng(11), 0.01, 0.8
    misses = []
    for _ in range(120):
        table = rungs(
            {w: list(f**-0.1 * np.exp(noise * generator.standard_normal(2))) for w, f in FLOPS.items()}, FLOPS
        )
        row = naive_forecasts(table, 8e12, level).loc["ruler"]
        truth = 8e12**-0.1 * math.exp(noise * generator.standard_normal())
        error = math.log(row["high"] / row["low"]) / 2 / stats.t.ppf(0.5 + level / 2, 3)
        misses.append(math.log(truth / row["value"]) / error)
    assert stats.kstest(misses, stats.t(3).cdf).pvalue > 0.05


@pytest.mark.parametrize("flops", [0.0, -1.0, math.nan, math.inf])
def test_compute_that_cannot_be_is_refused(flops: float) -> None:
    with pytest.raises(ValueError, match="flops must be positive"):
        naive_forecasts(rungs({16: [3.0], 32: [2.5]}, FLOPS), flops)


def test_a_ruler_needs_two_different_rungs() -> None:
    with pytest.raises(ValueError, match="two sizes"):
        naive_forecasts(rungs({16: [3.0, 3.1]}, FLOPS), 1e13)
    with pytest.raises(ValueError, match="two sizes"):
        naive_forecasts(rungs({16: [3.0], 32: [math.nan]}, FLOPS), 1e13)
    with pytest.raises(ValueError, match="different compute"):
        naive_forecasts(rungs({16: [3.0], 32: [2.0]}, {16: 1e10, 32: 1e10}), 1e13)


# --- the comparison ----------------------------------------------------------------------------------------
def test_a_check_says_how_far_off_each_forecast_was() -> None:
    naive = pd.DataFrame(
        {"value": [2.2, 1.9], "low": [2.1, math.nan], "high": [2.3, math.nan]}, index=["last rung", "ruler"]
    )
    found = check(2.1, 2.0, 2.2, naive, 2.0, 2.9)
    assert found.error == pytest.approx(0.05, rel=1e-12)
    assert found.inside  # the ends belong to the interval
    assert found.naive_errors == pytest.approx({"last rung": 0.1, "ruler": -0.05}, rel=1e-12)
    assert found.scores["forecast"] == pytest.approx(math.log(1.1), rel=1e-12)
    assert found.scores["last rung"] == pytest.approx(interval_score(2.1, 2.3, 2.0), rel=1e-12)
    assert math.isnan(found.scores["ruler"])
    assert not check(2.1, 2.0, 2.2, naive, 2.3, 2.9).inside
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["measured"] == 2.0
    assert plain["inside"] is True


def test_a_measurement_that_is_no_loss_is_refused() -> None:
    naive = pd.DataFrame({"value": [2.2], "low": [2.1], "high": [2.3]}, index=["ruler"])
    with pytest.raises(ValueError, match="positive truth"):
        check(2.1, 2.0, 2.2, naive, math.nan, math.nan)
