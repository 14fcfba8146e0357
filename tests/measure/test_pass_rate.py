"""Estimators of pass rates against sums over the distribution of K, and against other packages."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import digamma, polygamma

from allometry.measure import PassCounts, pass_at_k


def until(r, trials):
    """Counts that ended at the r-th pass."""
    trials = np.asarray(trials)
    return PassCounts(np.full(trials.shape, r), trials, np.zeros(trials.shape, bool))


def everything(r, p, cap):
    """All outcomes of sampling until r passes or the cap, and their probabilities."""
    k = np.arange(r, cap + 1)
    q = np.arange(r)
    counts = PassCounts(
        np.concatenate([np.full(len(k), r), q]),
        np.concatenate([k, np.full(r, cap)]),
        np.arange(len(k) + r) >= len(k),
    )
    weights = np.concatenate([stats.nbinom.pmf(k - r, r, p), stats.binom.pmf(q, cap, p)])
    return counts, weights


@pytest.mark.parametrize("r", [2, 3, 5])
@pytest.mark.parametrize("p", [0.9, 0.3, 0.02])
@pytest.mark.parametrize("cap", [8, 60])
def test_umvu_and_pass_at_k_are_unbiased_with_any_cap(r, p, cap):
    counts, weights = everything(r, p, cap)
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    assert weights @ counts.estimate() == pytest.approx(p, rel=1e-11)
    for k in (1, 3, 8):
        assert weights @ pass_at_k(counts, k) == pytest.approx(1 - (1 - p) ** k, rel=1e-10)


@pytest.mark.parametrize("r", [1, 2, 5])
@pytest.mark.parametrize("p", [0.9, 0.2, 0.01])
def test_log_is_unbiased_and_so_is_its_variance(r, p):
    k = np.arange(r, int(60 * r / p) + 200)
    weights = stats.nbinom.pmf(k - r, r, p)
    counts = until(r, k)
    mean = weights @ counts.log_pu()
    assert mean == pytest.approx(math.log(p), rel=1e-9)
    assert weights @ (counts.log_pu() - mean) ** 2 == pytest.approx(weights @ counts.se() ** 2, rel=1e-8)


@pytest.mark.parametrize(("r", "bias"), [(2, 2.0), (5, 1.25)])
def test_the_usual_ratio_is_too_high(r, bias):
    p = 1e-4
    k = np.arange(r, 400_000)
    weights = stats.nbinom.pmf(k - r, r, p)
    assert weights @ until(r, k).estimate("mle") / p == pytest.approx(bias, rel=2e-3)
    assert until(r, [10**7]).se()[0] ** 2 == pytest.approx(polygamma(1, r), rel=1e-5)


def test_one_pass_is_inverse_binomial_sampling_as_pyibs_has_it():
    pyibs = pytest.importorskip("pyibs")
    for k in (1, 2, 7, 40):  # a simulator whose k-th answer is the one observed
        answers = iter([0.0] * (k - 1) + [1.0])
        theirs = pyibs.ibs_basic(lambda theta, trial, a=answers: next(a), [0.0], [1.0])
        ours = until(1, [k]).log_pu()[0]
        assert ours == pytest.approx(-sum(1 / j for j in range(1, k)), abs=1e-12)
        assert ours == pytest.approx(float(theirs), abs=1e-12)


def test_pass_at_k_is_the_usual_one_for_fixed_numbers():
    for n, c, k in [(10, 3, 5), (200, 17, 100), (200, 0, 10), (20, 20, 1), (12, 5, 8), (5, 1, 5)]:
        wanted = 1 - math.comb(n - c, k) / math.comb(n, k)
        assert pass_at_k(PassCounts.fixed([c], [n]), k)[0] == pytest.approx(wanted, abs=1e-13)
    package = pytest.importorskip("pass_at_k")
    assert pass_at_k(PassCounts.fixed([17], [200]), 60)[0] == pytest.approx(
        package.pass_at_k(200, 17, 60), abs=1e-13
    )


@pytest.mark.parametrize("p", [0.7, 0.1, 0.01])
@pytest.mark.parametrize("cap", [20, 400])
def test_intervals_cover_at_least_as_often_as_they_say(p, cap):
    for r in (1, 2, 5):
        counts, weights = everything(r, p, cap)
        for level in (0.8, 0.95):
            told = counts.interval(level, "mle")
            for missed in (told.low > p, told.high < p):
                assert weights @ missed <= (1 - level) / 2 + 1e-12
            assert (told.low <= told.value + 1e-12).all()
            assert (told.value <= told.high + 1e-12).all()


def test_a_fixed_number_gives_the_limits_of_clopper_and_pearson():
    told = PassCounts.fixed([0, 3, 10], [10, 10, 10]).interval(0.95)
    for q, low, high in zip([0, 3, 10], told.low, told.high, strict=True):
        theirs = stats.binomtest(q, 10).proportion_ci(0.95, "exact")
        assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-10)


def test_what_has_no_estimate_has_none():
    counts = PassCounts([1, 0, 2], [5, 9, 9], [False, True, True])
    assert np.isnan(counts.estimate("umvu")).tolist() == [True, False, False]
    assert np.isnan(counts.log_pu()).tolist() == [False, True, True]
    assert np.isnan(counts.se()).tolist() == [False, True, True]
    assert counts.log_pu()[0] == pytest.approx(digamma(1) - digamma(5))


def test_chance_is_taken_off():
    counts = PassCounts.fixed([30, 25], [100, 100], chance=0.25)
    told = counts.corrected()
    assert told.value.tolist() == pytest.approx([0.05 / 0.75, 0.0])
    assert told.low[1] < 0 < told.high[1]


def test_tables_go_there_and_back():
    counts = PassCounts([2, 0], [7, 50], [False, True], errors=[0, 3], sampled=[16, 50])
    frame = counts.to_frame(params=1000)
    again = PassCounts.from_frame(frame)
    assert frame["params"].tolist() == [1000, 1000]
    for name in ("successes", "trials", "censored", "errors", "sampled"):
        assert (getattr(again, name) == getattr(counts, name)).all()
    assert PassCounts.from_frame(frame[["successes", "trials"]]).censored.all()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: PassCounts([3], [2], [True]), "no more successes"),
        (lambda: PassCounts([0], [5], [False]), "censored"),
        (lambda: PassCounts([0.5], [5], [True]), "whole numbers"),
        (lambda: PassCounts([1, 1], [5], [True]), "one value an instance"),
        (lambda: PassCounts([1], [5], [True], chance=1.0), "chance"),
        (lambda: PassCounts.fixed([1], [5]).pass_at_k(6), "at least 6 draws"),
        (lambda: PassCounts.fixed([1], [5]).estimate("best"), "kind must be"),
        (lambda: PassCounts.from_frame({"successes": [1]}), "trials"),
    ],
)
def test_counts_that_cannot_be_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
