"""Learning rates over sizes, against worlds whose optimum, drift and costs are known."""

import math

import matplotlib
import numpy as np
import pandas as pd
import pytest

from allometry.train import best_learning_rate, learning_rate_transfer, transfer_sweep

matplotlib.use("Agg")
GRID = 2.0 ** np.arange(-10, 3)
SIZES = (16.0, 32.0, 64.0, 128.0)


def bowl(size, rate, drift, curvature=0.04):
    """A parabola in log2 rate with its bottom at (size / 16)^drift / 16 and a loss that falls with size."""
    off = np.log2(rate) + 4 - drift * np.log2(size / 16)
    return 2 * size**-0.1 + 0.5 * curvature * off**2


def noisy(drift, seeds, noise, generator, curvature=0.04):
    """Each seed has its own level, its own optimum by a little, and noise at every rate."""
    rows = []
    shift = 0.3 * generator.standard_normal(seeds)
    level = 0.02 * generator.standard_normal(seeds)
    for size in SIZES:
        for rate in GRID:
            loss = bowl(size, rate * 2.0**shift, drift, curvature) + level
            loss = loss + noise * generator.standard_normal(seeds)
            rows += [(size, rate, seed, one) for seed, one in enumerate(loss)]
    return pd.DataFrame(rows, columns=["width", "learning_rate", "seed", "loss"])


@pytest.mark.parametrize("drift", [0.0, -1.0, -0.5])
def test_without_noise_all_is_exact(drift):
    found = learning_rate_transfer(transfer_sweep(lambda n, r: [bowl(n, r, drift)] * 2, SIZES, GRID))
    doublings = np.arange(4)
    assert found.drift == pytest.approx(drift, abs=1e-12)
    assert found.drift_low < drift < found.drift_high  # what the valley's shape leaves open
    assert found.drift_high - found.drift_low < 0.2
    np.testing.assert_allclose(np.log2(found.table["best_rate"]), -4 + drift * doublings, atol=1e-9)
    np.testing.assert_allclose(found.table["transfer_error"], 0.02 * (drift * doublings) ** 2, atol=1e-9)
    np.testing.assert_allclose(found.table["best_loss"], 2 * np.array(SIZES) ** -0.1, atol=1e-9)


def test_optima_are_nearly_those_of_a_single_sweep():
    table = noisy(-0.5, 6, 0.01, np.random.default_rng(1))
    for row in learning_rate_transfer(table).table.itertuples():
        alone = best_learning_rate(table[table["width"] == row.width])
        assert abs(np.log2(row.best_rate / alone.rate)) < 0.25
        assert row.low < alone.rate < row.high


@pytest.mark.parametrize("wall", [1.0, 100.0, 1e6])
def test_a_wall_beside_the_optimum_moves_it_by_less_than_a_step_of_the_grid(wall):
    def run(width, rate):
        past = np.log2(rate * width / 16 * 16) + 0.3  # a drift of -1; the wall begins just above the optimum
        return [bowl(width, rate, -1.0) + wall * max(past - 1.2, 0.0) ** 2] * 2

    found = learning_rate_transfer(transfer_sweep(run, SIZES, GRID))
    assert found.drift == pytest.approx(-1.0, abs=1e-6)
    np.testing.assert_allclose(found.table["best_loss"], 2 * np.array(SIZES) ** -0.1, atol=0.04)


@pytest.mark.slow
@pytest.mark.parametrize(("drift", "seeds"), [(0.0, 3), (0.0, 6), (-0.7, 4)])
def test_intervals_cover_and_the_transfer_error_is_unbiased(drift, seeds):
    generator, worlds = np.random.default_rng(0), 300
    inside, errors, plain = [], [], []
    for _ in range(worlds):
        found = learning_rate_transfer(noisy(drift, seeds, 0.01, generator), level=0.9)
        last = found.table.iloc[-1]
        truth = 0.02 * (3 * drift) ** 2
        inside.append((found.drift_low <= drift <= found.drift_high,
                       last["error_low"] <= truth <= last["error_high"]))  # fmt: skip
        errors.append(last["transfer_error"] - truth)
        moved = np.log2(found.table["best_rate"].iloc[0] / last["best_rate"])
        plain.append(0.5 * 0.04 * moved**2 - truth)
    covered = np.mean(inside, axis=0)
    assert covered[0] >= 0.85
    assert covered[1] >= 0.85
    standard_error = np.std(errors) / math.sqrt(worlds)
    assert abs(np.mean(errors)) < 3 * standard_error + 2e-4
    if drift == 0:  # what the same optima say without the correction is too large by its noise
        assert np.mean(plain) > 3 * np.std(plain) / math.sqrt(worlds)
        assert abs(np.mean(errors)) < (1.0 if seeds == 3 else 0.5) * np.mean(plain)


def test_an_optimum_at_the_end_is_a_bound_and_no_part_of_the_drift():
    table = transfer_sweep(lambda n, r: [bowl(n, r, -1.0)] * 2, SIZES, 2.0 ** np.arange(-6.0, 1.0))
    found = learning_rate_transfer(table)
    assert found.table["edge"].tolist() == ["", "", "low", "low"]
    assert found.table["low"].tolist()[2:] == [0.0, 0.0]
    assert found.drift == pytest.approx(-1.0, abs=1e-9)
    alone = learning_rate_transfer(table[table["width"] != 32])
    assert math.isnan(alone.drift)
    assert "cannot be told" in str(alone)


def test_a_lost_run_ends_the_grid_and_a_base_rate_that_loses_runs_costs_everything():
    def run(width, rate):
        lost = rate * width > 3  # the edge falls with width, the optimum of the base lies at 1/16
        return [math.nan if lost else bowl(width, rate, 0.0), bowl(width, rate, 0.0)]

    found = learning_rate_transfer(transfer_sweep(run, SIZES, GRID))
    assert found.table["edge"].tolist() == ["", "high", "high", "high"]
    assert found.table["transfer_error"].tolist()[2:] == [math.inf, math.inf]
    assert found.curves["lost"].max() == 0.5


def test_depth_base_and_one_seed():
    table = transfer_sweep(lambda depth, rate: bowl(16 * depth, rate, -0.5), (1, 2, 4), GRID, size="depth")
    found = learning_rate_transfer(table, "depth", base=2)
    assert found.table["transfer_error"].round(9).tolist() == [0.005, 0.0, 0.005]
    assert found.table["error_low"].isna().all()
    assert math.isnan(found.drift_low)
    assert str(found).startswith("best rate ~ depth^-0.5")


def test_the_picture_shows_every_size_and_the_rate_that_is_carried():
    table = noisy(-0.5, 3, 0.01, np.random.default_rng(2))
    ax = learning_rate_transfer(table).plot()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [f"width {n:g}" for n in SIZES]
    assert ax.get_xscale() == "log"
    assert sum(line.get_marker() == "D" for line in ax.lines) == 4


def swapped(**columns):
    return noisy(0.0, 2, 0.01, np.random.default_rng(0)).assign(**columns)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (swapped().drop(columns="loss"), "lacks loss"),
        (swapped(width=16), "all runs have one width"),
        (swapped(learning_rate=0.0), "learning_rate must be positive"),
        (swapped(loss=math.nan), "every rate of width 16 lost a run"),
        (swapped(seed=0), "stand in two rows"),
        (swapped().iloc[1:], "every one of the 2 seeds must have run"),
        (swapped().query("learning_rate > 1"), "has 2 learning rates"),
    ],
)
def test_bad_tables_are_told_in_a_sentence(table, said):
    with pytest.raises(ValueError, match=said):
        learning_rate_transfer(table)


def test_bad_arguments_are_told_in_a_sentence():
    table = swapped()
    with pytest.raises(ValueError, match="base 20 is no width"):
        learning_rate_transfer(table, base=20)
    with pytest.raises(ValueError, match="level must lie"):
        learning_rate_transfer(table, level=95)
    with pytest.raises(ValueError, match="sizes are positive"):
        transfer_sweep(lambda n, r: 1.0, [0, 1], [0.1])


def test_a_base_rate_on_a_finite_wall_costs_what_the_run_there_lost():
    def run(width, rate):
        fallen = width > 16 and np.log2(rate) > -4.5  # the base's best is -4
        return [3.0 if fallen else bowl(width, rate, 0.0)] * 2

    found = learning_rate_transfer(transfer_sweep(run, SIZES, GRID))
    truth = [0.0] + [3.0 - 2 * size**-0.1 for size in SIZES[1:]]
    np.testing.assert_allclose(found.table["transfer_error"], truth, atol=0.02)


def test_a_run_that_ends_above_where_it_began_is_lost() -> None:
    def run(width, rate):
        exploded = rate > 0.1  # a finite loss all the same
        return [5.0 + noise if exploded else bowl(width, rate, 0.0) + noise for noise in (0.0, 1e-3)]

    table = transfer_sweep(run, SIZES, GRID)
    told = learning_rate_transfer(table, lost_above=math.log(10))
    assert told.curves.loc[told.curves["learning_rate"] > 0.1, "lost"].eq(1).all()
    assert told.table["edge"].tolist() == ["high"] * 4 or told.drift == pytest.approx(0.0, abs=1e-9)
    np.testing.assert_allclose(told.table["best_rate"], 1 / 16, rtol=1e-6)
    np.testing.assert_allclose(told.table["transfer_error"], 0.0, atol=1e-9)
