"""When a run is lost."""

import math

import pytest

from allometry.train.divergence import DivergenceRule


def first_lost(rule, losses):
    watch = rule.watch()
    return next((step for step, loss in enumerate(losses) if watch.lost(loss)), None)


def test_a_falling_loss_is_never_lost():
    assert first_lost(DivergenceRule(patience=1), [5.0 * 0.99**k for k in range(1000)]) is None


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_so_many_in_a_row(patience):
    rule = DivergenceRule(factor=2.0, patience=patience)
    assert first_lost(rule, [1.0, 1.0] + [3.0] * 10) == 1 + patience
    broken = ([3.0] * (patience - 1) + [1.0]) * 20
    assert first_lost(rule, [1.0, *broken]) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_counts_like_a_loss_above(bad):
    assert first_lost(DivergenceRule(patience=3), [1.0, bad, 1.0, bad, bad, bad]) == 5
    assert first_lost(DivergenceRule(patience=3), [1.0, bad, 5.0, bad]) == 3
    assert first_lost(DivergenceRule(patience=3), [bad, bad, bad]) == 2


def test_the_reference_is_the_first_finite_loss():
    assert first_lost(DivergenceRule(factor=2.0, patience=1), [5.0, 1.0, 9.9, 10.0, 10.1]) == 4
    assert first_lost(DivergenceRule(factor=2.0, patience=2), [math.nan, 5.0, 10.0, 10.1, 10.1]) == 4


def test_or_the_lowest_so_far():
    rule = DivergenceRule(factor=2.0, over="running minimum", patience=1)
    assert first_lost(rule, [5.0, 1.0, 2.0, 2.1]) == 3


def test_the_margin_adds():
    rule = DivergenceRule(factor=1.0, margin=0.5, over="running minimum", patience=1)
    assert first_lost(rule, [2.0, 2.5, 1.0, 1.5, 1.51]) == 4


def test_a_negative_loss_may_stay_where_it_is():
    """A log-density: twice a loss of -3 would be -6, and a run that never moved would be lost."""
    rule = DivergenceRule(factor=2.0, patience=1)
    assert first_lost(rule, [-3.0, -3.0, -2.0, -0.1]) is None
    assert first_lost(rule, [-3.0, -1e-9, 0.1]) == 2


@pytest.mark.parametrize("settings", [{"over": "minimum"}, {"patience": 0}])
def test_rules_that_say_nothing_are_refused(settings):
    with pytest.raises(ValueError, match="must be"):
        DivergenceRule(**settings)
