"""Shift or slope: intervals of the difference hold the truth, and verdicts follow from them."""

import numpy as np
import pytest

from allometry.laws import LearningCurve, compare_slopes

M = 500 * 2.0 ** np.arange(7)
U = np.log(M) - np.log(M).mean()


def pair(generator, delta, *, seeds=5, shared=0.05, own=0.01, tilt=0.0, labels=None):
    """Two curves on the same seeds: common noise, own noise, and slopes that differ from seed to seed."""
    common = shared * generator.standard_normal((7, seeds))
    arms = []
    for arm in range(2):
        noise = common + own * generator.standard_normal((7, seeds))
        noise += tilt * U[:, None] * generator.standard_normal(seeds)
        y = np.exp(-(0.3 + arm * delta) * U[:, None] - 0.2 * arm + noise)
        if labels is None:
            arms.append(LearningCurve(M, y))
        else:
            one = LearningCurve()
            rows = {"samples": np.repeat(M, seeds), "error": y.ravel(), "seed": np.tile(labels[arm], 7)}
            arms.append(one.fit(rows, form="power", resamples=0))
    return arms


@pytest.mark.parametrize(
    ("case", "rests_on"),
    [
        ({}, "paired seeds"),
        ({"tilt": 0.03}, "paired seeds"),
        ({"seeds": 2}, "sizes"),
        ({"seeds": 1}, "sizes"),
        ({"labels": (range(5), range(5, 10)), "shared": 0.0, "own": 0.03}, "seeds"),
    ],
)
def test_intervals_of_the_difference_hold_it(case, rests_on):
    generator = np.random.default_rng(0)
    held = np.zeros(2)
    for _ in range(300):
        found = compare_slopes(*pair(generator, 0.1, **case))
        assert found.rests_on == rests_on
        held += [0.1 in found.alpha, -0.2 in found.shift]
    # Ninety per cent promised: 300 simulations lie within 85 and 95 in 99.6 of 100 such tests
    assert (held > 255).all(), held / 300
    assert (held < 288).all(), held / 300


def test_pairs_cancel_what_they_share():
    generator = np.random.default_rng(1)
    paired = [compare_slopes(*pair(generator, 0.0)).alpha.width for _ in range(30)]
    labels = (range(5), range(5, 10))
    apart = [compare_slopes(*pair(generator, 0.0, labels=labels)).alpha.width for _ in range(30)]
    # noise of 0.01 √2 against 0.05 √2, and fewer degrees of freedom
    assert 0.1 < np.median(paired) / np.median(apart) < 0.4


def test_verdicts():
    generator = np.random.default_rng(2)
    assert compare_slopes(*pair(generator, 0.0)).verdict == "shift"
    assert compare_slopes(*pair(generator, 0.2)).verdict == "slope"
    assert compare_slopes(*pair(generator, 0.0, own=0.3)).verdict == "undecided"
    same = LearningCurve(M, M**-0.3 * np.exp(0.003 * generator.standard_normal(7)))
    other = LearningCurve(M, M**-0.3 * np.exp(0.003 * generator.standard_normal(7)))
    assert compare_slopes(same, other).verdict == "same"
    # a margin that is too narrow to be shown turns equality into ignorance
    assert compare_slopes(same, other, margin=1e-5).verdict == "undecided"


def test_the_second_curve_is_measured_against_the_first():
    a, b = LearningCurve(M, M**-0.3), LearningCurve(M, 0.5 * M**-0.4)
    there, back = compare_slopes(a, b), compare_slopes(b, a)
    assert there.alpha.value == pytest.approx(0.1, abs=1e-12)
    assert back.alpha.value == pytest.approx(-0.1, abs=1e-12)
    assert there.shift.value == pytest.approx(np.log(0.5) - 0.1 * np.log(M).mean())
    assert there.at == pytest.approx(np.exp(np.log(M).mean()))
    assert there.alpha.width == pytest.approx(0.0, abs=1e-12)


def test_only_power_law_regions_are_compared():
    generator = np.random.default_rng(3)
    y = np.where(M < 3000, 0.9, 0.9 * (M / 2000) ** -0.4)
    a = LearningCurve(M, y[:, None] * np.exp(0.01 * generator.standard_normal((7, 3))), best_guess=0.9)
    b = LearningCurve(M, M[:, None] ** -0.4 * np.exp(0.01 * generator.standard_normal((7, 3))))
    found = compare_slopes(a, b)
    assert found.sizes.tolist() == M[3:].tolist()
    assert abs(found.alpha.value) < 0.05


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="0 common sizes"):
        compare_slopes(LearningCurve(M, M**-0.3), LearningCurve(3 * M, M**-0.3))
    with pytest.raises(ValueError, match="margin must be positive"):
        compare_slopes(LearningCurve(M, M**-0.3), LearningCurve(M, M**-0.3), margin=0.0)
