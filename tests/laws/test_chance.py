"""Rates above chance: their limits are those of an exact binomial test, and cover."""

import numpy as np
import pytest
from scipy import stats

from allometry.laws import above_chance


@pytest.mark.parametrize("passed", [0, 7, 30, 100])
def test_limits_are_those_of_scipy_s_exact_test_without_chance_and_mapped_with_it(passed):
    exact = stats.binomtest(passed, 100).proportion_ci(0.95, method="exact")
    plain, corrected = above_chance(passed, 100, 0.0), above_chance(passed, 100, 0.25)
    assert (plain.low, plain.high) == pytest.approx((exact.low, exact.high), abs=1e-12)
    assert corrected.value == pytest.approx((passed / 100 - 0.25) / 0.75)
    assert corrected.high == pytest.approx(max(0.0, (exact.high - 0.25) / 0.75), abs=1e-12)


@pytest.mark.parametrize("skill", [0.0, 0.02, 0.3, 0.9])
def test_intervals_cover_and_are_no_wider_than_they_must(skill):
    generator, g = np.random.default_rng(1), 0.25
    passed = generator.binomial(400, g + (1 - g) * skill, size=4000)
    told = above_chance(passed, 400, g, 0.9)
    inside = ((told.low <= skill) & (skill <= told.high)).mean()
    assert 0.89 <= inside <= 0.96  # exact limits cover at least 0.90, standard error 0.005
    assert told.width.mean() < 0.15
    assert told.value.mean() == pytest.approx(skill, abs=0.005)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((5, 4, 0.1), "between 0 and the trials"), ((1, 0, 0.1), "at least one"), ((1, 4, 1.0), "below 1"),
     ((1, np.nan, 0.1), "trials"), ((1, 4, 0.1, 1.0), "level")],
)  # fmt: skip
def test_what_cannot_be_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        above_chance(*arguments)
