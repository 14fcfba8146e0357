"""Which form: a floor is found where there is one and not where there is none; backtests."""

import numpy as np
import pytest

from allometry import laws

X = np.geomspace(1e6, 1e10, 12)


def test_a_floor_is_chosen_where_there_is_one_and_not_where_there_is_none():
    generator = np.random.default_rng(0)
    noise = np.exp(0.003 * generator.normal(size=12))
    with_floor = laws.compare_forms(["power", "power-offset"], X, (1.5 + (X / 1e6) ** -0.4) * noise)
    without = laws.compare_forms(["power", "power-offset"], X, 3 * (X / 1e6) ** -0.2 * noise)
    assert with_floor.index[with_floor["chosen"]].tolist() == ["power-offset"]
    assert without.index[without["chosen"]].tolist() == ["power"]
    assert with_floor.loc["power", "held_out_error"] > 3 * with_floor.loc["power-offset", "held_out_error"]


def test_backtest_leaves_out_the_largest_rung_only_and_measures_the_miss():
    y = 1.5 + (X / 1e6) ** -0.4
    y[-1] *= 1.1
    test = laws.backtest("power-offset", X, y, resamples=50)
    assert test.held_out.tolist() == [False] * 11 + [True]
    assert test.error == pytest.approx(np.log(1.1), rel=1e-4)
    assert test.bias == pytest.approx(-np.log(1.1), rel=1e-4)
    assert test.inside == 0.0


def test_aicc_is_the_formula():
    r = np.array([0.1, -0.2, 0.05, 0.1, -0.1, 0.02, 0.03, -0.07])
    k = 3
    expected = 8 * np.log(np.mean(r**2)) + 2 * k + 2 * k * (k + 1) / (8 - k - 1)
    assert laws.aicc(r, 2) == pytest.approx(expected)
    assert laws.aicc(r[:3], 2) == np.inf


def test_more_rungs_than_there_are_cannot_be_held_out():
    with pytest.raises(ValueError, match="1 to 11 rungs"):
        laws.backtest("power", X, X**-0.1, hold_out=12)
