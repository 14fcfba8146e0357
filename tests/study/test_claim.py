"""Outcomes follow from intervals and thresholds written down before."""

import math

import numpy as np
import pytest
from scipy import stats

from allometry.study.claim import Claim, Estimate, Outcome, Test, undecided


def interval(low, high, n=5):
    return Estimate((low + high) / 2, low, high, n=n)


def test_the_interval_is_students():
    values = np.random.default_rng(0).normal(3.0, 1.0, size=7)
    mine = Estimate.of(values, level=0.9)
    theirs = stats.ttest_1samp(values, 0.0).confidence_interval(0.9)
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), rel=1e-12)
    assert mine.n == 7


@pytest.mark.parametrize(
    ("estimate", "outcome"),
    [
        (interval(0.6, 0.9), "holds"),
        (interval(0.45, 0.7), "holds"),  # reaches below what is claimed, not as far as what contradicts it
        (interval(0.2, 0.4), "falls short"),
        (interval(0.3, 0.6), "undecided"),  # between the two, and the claimed range is not excluded
        (interval(-0.5, -0.2), "contradicted"),
        (interval(-0.5, 0.6), "undecided"),
        (interval(-0.2, 1.4), "undecided"),
    ],
)
def test_two_thresholds_leave_room_for_falling_short(estimate, outcome):
    judged = estimate.judge(holds=(0.5, math.inf), contradicted=(-math.inf, 0.1))
    assert judged.outcome == outcome


def test_one_threshold_decides_by_the_interval():
    assert (interval(0.1, 0.3) > 0).outcome is Outcome.HOLDS
    assert (interval(-0.3, -0.1) > 0).outcome is Outcome.CONTRADICTED
    assert (interval(-0.1, 0.3) > 0).outcome is Outcome.UNDECIDED
    assert interval(-0.1, 0.1).within(-0.2, 0.2).outcome is Outcome.HOLDS
    assert interval(-0.1, 0.3).within(-0.2, 0.2).outcome is Outcome.UNDECIDED


def test_two_seeds_decide_nothing_and_a_closed_form_needs_none():
    judged = interval(0.5, 0.6, n=2) > 0
    assert judged.outcome is Outcome.UNDECIDED
    assert "2 of the 3 seeds" in judged.reason
    assert (Estimate.closed_form(1e-9) > 0).outcome is Outcome.HOLDS
    assert (Estimate.closed_form(-1e-9) > 0).outcome is Outcome.CONTRADICTED


def test_a_run_that_diverged_leaves_the_mean_undefined():
    assert (Estimate.of([1.0, 1.1, math.nan, 1.2]) > 0).outcome is Outcome.UNDECIDED


def test_nominal_coverage():
    values = np.random.default_rng(1).normal(size=(4000, 4))
    inside = np.mean([one.low <= 0 <= one.high for one in map(Estimate.of, values)])
    assert abs(inside - 0.95) < 0.01


def test_joined_tests_are_as_good_as_the_worst():
    holds, contradicted = interval(1, 2) > 0, interval(-2, -1) > 0
    assert (holds & contradicted).outcome is Outcome.CONTRADICTED
    assert (holds & undecided("no data")).outcome is Outcome.UNDECIDED
    assert len((holds & contradicted).estimates) == 2
    with pytest.raises(TypeError, match="join tests by &"):
        bool(holds and contradicted)


def test_the_hash_follows_the_rule_and_not_its_layout():
    one = Claim("a", lambda result: result.slope("x") > 0)
    same = Claim("a", lambda result:   result.slope( "x" )   >  0)  # fmt: skip
    two, three = (
        Claim("a", lambda result: result.slope("x") > 1),
        Claim("a", lambda result: result.slope("y") > 0),
    )
    assert one.digest == same.digest
    assert len({one.digest, two.digest, three.digest, Claim("b", one.rule).digest}) == 4


def test_the_hash_of_a_function_follows_its_body():
    def rule(result):
        return result.slope("x") > 0

    first = Claim("a", rule).digest

    def rule(result):
        return result.slope("x") > 2

    assert Claim("a", rule).digest != first


def test_a_rule_that_fails_leaves_its_claim_undecided():
    verdict = Claim("a", lambda result: result["nothing"] > 0).judge({})
    assert verdict.outcome is Outcome.UNDECIDED
    assert verdict.words == "not seen at this scale (KeyError: 'nothing')"
    with pytest.raises(TypeError, match="compare an estimate"):
        Claim("a", lambda result: True).judge({})


def test_words_and_dictionary():
    verdict = Claim("Wider is better.", lambda result: Test(Outcome.FALLS_SHORT, (interval(1, 2),))).judge(
        None
    )
    assert str(verdict).startswith("falls short: Wider is better. [")
    told = verdict.to_dict()
    assert told["outcome"] == "falls short"
    assert told["estimates"][0]["low"] == 1
