"""The ruler: exact on a power law, along its own ratio, and beside every backtest."""

import numpy as np
import pytest

from allometry import laws
from allometry.laws.ruler import ruled, ruler


def test_a_power_of_compute_is_a_straight_line():
    flops = np.geomspace(1e15, 1e18, 7)
    loss = 40 * flops**-0.07
    np.testing.assert_allclose(
        ruler(flops, loss, [1e19, 1e20]), 40 * np.array([1e19, 1e20]) ** -0.07, rtol=1e-12
    )


def test_only_the_two_largest_count_and_seeds_are_averaged_in_the_log():
    flops = [1e15, 1e16, 1e16, 1e17, 1e17]
    loss = [9.0, 3.0, 3.2, 2.0, 2.2]
    below, last = np.sqrt(3.0 * 3.2), np.sqrt(2.0 * 2.2)
    assert ruler(flops, loss, [1e18])[0] == pytest.approx(last**2 / below, rel=1e-12)


def test_each_place_has_the_line_of_its_own_ratio():
    """Loss is one power of compute for each ratio of tokens to parameters, so the right line is exact."""
    ratio = np.repeat([5.0, 20.0, 80.0], 4)
    flops = np.tile(np.geomspace(1e15, 1e18, 4), 3) * (1 + np.arange(12) / 50)
    exponent = 0.05 + 0.01 * np.log(ratio)
    loss = 9 * (flops / 1e15) ** -exponent
    told = ruler(flops, loss, [1e20, 1e20], ratio=ratio, at_ratio=[20.4, 79.0])
    np.testing.assert_allclose(told, 9 * 1e5 ** -(0.05 + 0.01 * np.log([20.0, 80.0])), rtol=1e-12)


def test_at_a_ratio_of_its_own_a_place_has_the_line_of_the_two_largest():
    flops, loss, ratio = [1e15, 9e16, 1e17, 1.02e17], [4.0, 3.1, 3.0, 3.5], [5.0, 20.0, 30.0, 50.0]
    told = ruler(flops, loss, [1e19], ratio=ratio, at_ratio=[7.0])
    # 1.02e17 is the compute of 1e17, which has the lower loss; 9e16 is too near it to hold a line
    assert told[0] == pytest.approx(3.0 * (3.0 / 4.0), rel=1e-12)


def test_runs_of_one_compute_hold_no_line():
    assert np.isnan(ruler([1e17, 1.05e17], [3.0, 2.9], [1e18])).all()


def test_the_backtest_has_the_ruler_on_the_same_records(tmp_path):
    rows = ["N,D,loss"]
    for n in (1e7, 3e7, 1e8, 3e8, 1e9):
        for multiple in (10, 20, 40):
            loss = 1.7 + 400 * n**-0.34 + 400 * (multiple * n) ** -0.28
            rows.append(f"{n:.0f},{multiple * n:.0f},{loss:.10f}")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    told = laws.answer(laws.read_runs(tmp_path / "t.csv"), law="chinchilla", resamples=20)
    test = told.backtest
    records = test["records"]
    error = [np.log(one["ruler"] / one["observed"]) for one in records]
    assert test["ruler"]["error"] == pytest.approx(np.sqrt(np.mean(np.square(error))), rel=1e-12)
    for one in records:
        multiple = one["tokens"] / one["params"]
        two = [1.7 + 400 * n**-0.34 + 400 * (multiple * n) ** -0.28 for n in (1e8, 3e8)]
        slope = np.log(two[1] / two[0]) / np.log(9.0)
        assert one["ruler"] == pytest.approx(two[1] * (100 / 9) ** slope, rel=1e-6)
    assert test["ruler"]["bias"] < -test["error"]  # the truth is convex in log-log, so a line falls too low
    assert ruled(told.points, told.points["params"].to_numpy() > 5e8, "params").error == pytest.approx(
        test["ruler"]["error"], rel=1e-9
    )
