"""Sets hold a known truth as often as they say; designs see what they say they would."""

import numpy as np
import pytest

from allometry.laws import worth_coverage
from allometry.laws.worth_calibration import _measure, worlds

SCALES = 1e6 * 4.0 ** np.arange(5)
WORLDS = {world.name: world for world in worlds()}


def held(name: str, simulations: int = 150) -> dict[str, float]:
    return _measure(WORLDS[name], simulations, 80, 0.9, 5)


def test_sets_and_trends_hold_the_truth() -> None:
    """Of 150, 90 % are 135 with a standard deviation of 3.7; all five scales together vary less."""
    found = held("worth 1.5")
    assert 0.84 <= found["coverage, all scales"] <= 0.96
    assert 0.82 <= found["trend coverage"] <= 0.97
    assert found["holds"] > 0.95


def test_no_effect_raises_no_more_alarms_than_stated() -> None:
    found = held("no effect: worth 1")
    assert found["excludes 1"] <= 0.16  # nominal 0.10, three standard deviations above
    assert found["coverage, all scales"] >= 0.84


def test_nothing_is_claimed_where_nothing_can_be_known() -> None:
    assert held("base flat", 40)["undetermined"] >= 0.85
    assert held("base falls, then rises", 20)["undetermined"] == 1.0
    assert held("arm below the base's floor", 40)["half-line"] >= 0.95


def test_a_detectable_worth_is_detected_four_times_of_five() -> None:
    design = {"seeds": 5, "resamples": 80}
    least = worth_coverage(SCALES, worth=1.0, simulations=60, **design)["minimum detectable"]
    found = worth_coverage(SCALES, worth=least, simulations=150, random_state=1, **design)
    assert 0.70 <= found["excludes 1"] <= 0.91  # 0.80, standard error 0.033


def test_a_design_that_cannot_be_simulated_is_refused() -> None:
    with pytest.raises(ValueError, match="three scales"):
        worth_coverage(SCALES[:2])
    with pytest.raises(ValueError, match="evenly"):
        worth_coverage([1e6, 2e6, 64e6])
    with pytest.raises(ValueError, match="correlation"):
        worth_coverage(SCALES, correlation=1.5)
