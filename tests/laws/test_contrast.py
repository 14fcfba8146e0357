"""Contrasts against scipy's tests, exact p-values by brute force, symmetries, refusals."""

import itertools

import numpy as np
import pytest
from scipy import stats

from allometry.laws.contrast import (
    contrast,
    holm,
    interaction,
    rank_correlation,
    sign_test,
    slope,
)  # fmt: skip

RNG = np.random.default_rng(0)
BASE = RNG.normal(3.0, 0.1, size=(4, 6))
ARM = BASE - 0.05 + RNG.normal(0.0, 0.03, size=(4, 6))


# --- differences ------------------------------------------------------------------------------------------
def test_pairs_are_students_test():
    found = contrast(ARM, BASE, level=0.9)
    peer = stats.ttest_rel(ARM, BASE, axis=-1)
    ends = peer.confidence_interval(0.9)
    np.testing.assert_allclose(found.value, (ARM - BASE).mean(axis=-1), rtol=1e-13)
    np.testing.assert_allclose(found.p, peer.pvalue, rtol=1e-10)
    np.testing.assert_allclose([found.low, found.high], [ends.low, ends.high], rtol=1e-10)


def test_without_pairs_it_is_welchs_test():
    other = RNG.normal(3.1, 0.3, size=(4, 9))
    found = contrast(ARM, other, paired=False)
    peer = stats.ttest_ind(ARM, other, axis=-1, equal_var=False)
    ends = peer.confidence_interval(0.95)
    np.testing.assert_allclose(found.p, peer.pvalue, rtol=1e-10)
    np.testing.assert_allclose([found.low, found.high], [ends.low, ends.high], rtol=1e-10)


def test_leading_axes_are_comparisons_of_their_own():
    together = contrast(ARM, BASE)
    for i in range(4):
        one = contrast(ARM[i], BASE[i])
        assert (one.value, one.low, one.p_exact, one.verdict) == pytest.approx(
            (together.value[i], together.low[i], together.p_exact[i], together.verdict[i])
        )


def test_every_sign_flip_is_tried():
    d = (ARM - BASE)[0]
    flips = [abs(np.dot(s, d)) for s in itertools.product((1, -1), repeat=6)]
    assert contrast(ARM[0], BASE[0]).p_exact == np.mean(np.array(flips) >= abs(d.sum()) - 1e-12)
    peer = stats.permutation_test(
        (ARM[0], BASE[0]), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf
    )
    assert contrast(ARM[0], BASE[0]).p_exact == pytest.approx(peer.pvalue, abs=1e-12)


def test_every_relabelling_is_tried():
    a, b = RNG.normal(size=4), RNG.normal(0.5, 1.0, size=6)
    pooled = np.concatenate([a, b])
    differences = []
    for pick in itertools.combinations(range(10), 4):
        mask = np.isin(np.arange(10), pick)
        differences.append(abs(pooled[mask].mean() - pooled[~mask].mean()))
    expected = np.mean(np.array(differences) >= abs(a.mean() - b.mean()) - 1e-12)
    assert contrast(a, b, paired=False).p_exact == pytest.approx(expected, abs=1e-12)


def test_three_pairs_cannot_have_a_small_exact_p():
    found = contrast([1.0, 1.0, 1.0], [2.0, 2.1, 2.05])
    assert found.p_exact == 0.25
    assert found.p < 0.001
    assert np.isnan(contrast(np.zeros(13), np.ones(13)).p_exact)


def test_the_words():
    loss = np.array([2.0, 2.01, 1.99, 2.0])
    assert contrast(loss - 0.1 * np.array([1, 1.1, 0.9, 1]), loss).verdict == "helps"
    assert contrast(loss + 0.1 * np.array([1, 1.1, 0.9, 1]), loss).verdict == "hurts"
    assert contrast(loss + 0.1 * np.array([1, 1.1, 0.9, 1]), loss, better="higher").verdict == "helps"
    assert contrast(loss + 0.001 * np.array([1, -1, 1, -1]), loss, margin=0.01).verdict == "no difference"
    assert contrast(loss + 0.100 * np.array([1, -1, 1, -1]), loss, margin=0.01).verdict == "undecided"
    assert contrast(loss, loss).verdict == "no difference"


def test_exchanging_the_arms_mirrors():
    one, other = contrast(ARM, BASE), contrast(BASE, ARM)
    np.testing.assert_allclose(one.value, -other.value)
    np.testing.assert_allclose(one.low, -other.high)
    np.testing.assert_allclose(one.p_exact, other.p_exact)
    mirror = {"helps": "hurts", "hurts": "helps"}
    assert [mirror.get(word, word) for word in one.verdict] == list(other.verdict)


def test_one_seed_decides_nothing_and_equal_seeds_decide_all():
    lone = contrast([1.0], [2.0])
    assert lone.verdict == "undecided"
    assert np.isnan(lone.low)
    sure = contrast([1.0, 1.0], [2.0, 2.0])
    assert (sure.low, sure.high, sure.p, sure.verdict) == (-1.0, -1.0, 0.0, "helps")
    assert contrast([1.0, 1.0], [2.0], paired=False).verdict == "undecided"


def test_the_level_is_kept_with_three_seeds():
    noise = np.random.default_rng(1).normal(size=(2, 20_000, 3))
    false = (contrast(noise[0], noise[1]).p < 0.05).mean()
    assert false == pytest.approx(0.05, abs=0.006)


# --- interactions -----------------------------------------------------------------------------------------
def test_an_interaction_of_pairs_is_a_test_of_differences_of_differences():
    a1, a0, b1, b0 = RNG.normal(size=(4, 3, 5))
    peer = stats.ttest_1samp((a1 - a0) - (b1 - b0), 0.0, axis=-1)
    np.testing.assert_allclose(interaction(a1, a0, b1, b0).p, peer.pvalue, rtol=1e-10)


def test_an_interaction_without_pairs_has_satterthwaites_degrees():
    cells = [RNG.normal(size=n) for n in (4, 5, 6, 7)]
    found = interaction(*cells, paired=False)
    parts = np.array([c.var(ddof=1) / len(c) for c in cells])
    degrees = parts.sum() ** 2 / (parts**2 / np.array([3, 4, 5, 6])).sum()
    value = cells[0].mean() - cells[1].mean() - cells[2].mean() + cells[3].mean()
    half = stats.t.ppf(0.975, degrees) * np.sqrt(parts.sum())
    np.testing.assert_allclose([found.value, found.low, found.high], [value, value - half, value + half])
    assert np.isnan(found.p_exact)


# --- slopes -----------------------------------------------------------------------------------------------
def test_a_slope_is_linregress():
    x, y = RNG.normal(size=7), RNG.normal(size=(3, 7))
    found = slope(x, y)
    for i in range(3):
        peer = stats.linregress(x, y[i])
        half = stats.t.ppf(0.975, 5) * peer.stderr
        np.testing.assert_allclose(
            [found.value[i], found.p[i], found.high[i]], [peer.slope, peer.pvalue, peer.slope + half]
        )


def test_a_slope_by_seed_keeps_its_level_where_seeds_move_all_points():
    generator = np.random.default_rng(2)
    x = np.arange(5.0)
    tilt = generator.normal(size=(4000, 1, 4))  # each seed has a slope of its own
    y = tilt * x[:, None] + 0.1 * generator.normal(size=(4000, 5, 4))
    assert (slope(x, y, seeds=True).p < 0.05).mean() == pytest.approx(0.05, abs=0.012)
    pooled = slope(np.repeat(x, 4), y.reshape(4000, -1))
    assert (pooled.p < 0.05).mean() > 0.2  # points that are not independent


# --- ranks ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ties", [False, True])
def test_correlations_agree_with_scipy(ties):
    x, y = RNG.normal(size=(2, 25))
    if ties:
        x, y = np.round(x), np.round(y)
    for kind, peer in (
        ("spearman", stats.spearmanr(x, y)),
        ("kendall", stats.kendalltau(x, y, method="asymptotic")),
    ):
        found = rank_correlation(x, y, kind)
        np.testing.assert_allclose([found.value, found.p], [peer.statistic, peer.pvalue], rtol=1e-10)


def test_few_points_have_their_exact_p():
    x, y = RNG.normal(size=(2, 6))
    tau = rank_correlation(x, y, "kendall")
    assert tau.p == pytest.approx(stats.kendalltau(x, y, method="exact").pvalue, abs=1e-12)
    rho = rank_correlation(x, y)
    peer = stats.permutation_test(
        (x,), lambda a: stats.spearmanr(a, y).statistic, permutation_type="pairings", n_resamples=np.inf
    )
    assert rho.p == pytest.approx(peer.pvalue, abs=1e-12)
    assert rank_correlation([1, 2, 3], [1, 2, 3]).p == pytest.approx(1 / 3)


def test_partial_spearman_is_the_correlation_of_rank_residuals():
    x, y, z, w = RNG.normal(size=(4, 30))
    x, y = x + z, y + z - 0.5 * w
    ranks = [stats.rankdata(v) for v in (x, y)]
    design = np.stack([np.ones(30), stats.rankdata(z), stats.rankdata(w)], axis=1)
    left = [r - design @ np.linalg.lstsq(design, r, rcond=None)[0] for r in ranks]
    found = rank_correlation(x, y, given=[z, w])
    assert found.value == pytest.approx(np.corrcoef(*left)[0, 1], abs=1e-12)
    t = found.value * np.sqrt(26 / (1 - found.value**2))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(t), 26), rel=1e-9)


def test_partial_kendall_is_kendalls_formula():
    x, y, z = RNG.normal(size=(3, 20))
    t = {
        k: stats.kendalltau(a, b).statistic
        for k, (a, b) in {"xy": (x, y), "xz": (x, z), "yz": (y, z)}.items()
    }
    expected = (t["xy"] - t["xz"] * t["yz"]) / np.sqrt((1 - t["xz"] ** 2) * (1 - t["yz"] ** 2))
    assert rank_correlation(x, y, "kendall", given=z).value == pytest.approx(expected, abs=1e-12)


def test_monotone_maps_leave_ranks_alone_and_constants_have_none():
    x, y = RNG.normal(size=(2, 12))
    assert rank_correlation(np.exp(x), y**3).value == pytest.approx(rank_correlation(x, y).value, abs=1e-12)
    assert np.isnan(rank_correlation(np.ones(12), y).value)
    assert np.isnan(rank_correlation(np.ones(5), y[:5]).p)


def test_intervals_of_rank_correlations_cover():
    generator = np.random.default_rng(3)
    x = generator.normal(size=(1500, 25))
    y = 0.6 * x + 0.8 * generator.normal(size=(1500, 25))
    truth = {"spearman": 6 / np.pi * np.arcsin(0.3), "kendall": 2 / np.pi * np.arcsin(0.6)}
    for kind, value in truth.items():
        found = rank_correlation(x, y, kind)
        covered = ((found.low <= value) & (value <= found.high)).mean()
        assert 0.92 < covered < 0.98


# --- signs ------------------------------------------------------------------------------------------------
def test_signs_are_a_binomial_test_and_infinity_is_worse_than_any_value():
    arm = np.array([1.0, 2.0, np.inf, 1.0, np.inf, 1.0, 1.0, 1.0])
    base = np.array([2.0, 1.0, 9.9, 2.0, np.inf, 2.0, 2.0, 2.0])
    found = sign_test(arm, base)
    peer = stats.binomtest(5, 7)
    ends = peer.proportion_ci(0.95)
    assert found.n == 7
    np.testing.assert_allclose(
        [found.value, found.p, found.low, found.high], [5 / 7, peer.pvalue, ends.low, ends.high], rtol=1e-10
    )
    assert sign_test(arm, base, better="higher").value == pytest.approx(2 / 7)
    ties = sign_test([np.inf, 1.0], [np.inf, 1.0])
    assert (ties.n, ties.p) == (0, 1.0)
    assert np.isnan(ties.value)
    assert sign_test(np.zeros((2, 4)), np.ones((2, 4))).p.tolist() == [0.125, 0.125]


# --- several arms -----------------------------------------------------------------------------------------
def test_holm_is_the_closure_of_bonferroni():
    p = RNG.uniform(size=5) ** 2
    expected = []
    for i in range(5):  # the largest Bonferroni p-value of all sets of hypotheses that hold the i-th
        sets = [s for r in range(1, 6) for s in itertools.combinations(range(5), r) if i in s]
        expected.append(max(min(1.0, len(s) * p[list(s)].min()) for s in sets))
    np.testing.assert_allclose(holm(p), expected, rtol=1e-12)
    np.testing.assert_allclose(holm(np.stack([p, p[::-1]]))[1], expected[::-1], rtol=1e-12)


def test_a_comparison_that_could_not_be_made_still_counts():
    assert holm([0.01, np.nan]).tolist() == pytest.approx([0.02, np.nan], nan_ok=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: contrast([1.0, np.inf], [1.0, 2.0]), "diverged has no average; compare by sign_test"),
        (lambda: contrast([1.0, 2.0], [1.0]), "equal numbers of seeds; given were 2 and 1"),
        (lambda: contrast(1.0, 2.0), "at least one value"),
        (lambda: contrast([1.0], [1.0], better="up"), "'lower' or 'higher'"),
        (lambda: contrast([1.0], [1.0], margin=-1), "margin must not be negative"),
        (lambda: contrast([1.0], [1.0], level=95), "between 0 and 1, not 95"),
        (lambda: slope([1.0, 1.0], [1.0, 2.0]), "two different values"),
        (lambda: slope([1.0, 2.0], [1.0, 2.0, 3.0]), "2 values along axis -1"),
        (lambda: slope([[1.0, 2.0]], [1.0, 2.0]), "one axis"),
        (lambda: rank_correlation([1, 2, 3], [1, 2, 3], "pearson"), "'spearman' or 'kendall'"),
        (lambda: rank_correlation([1, 2], [1, 2]), "at least 3 points, not 2"),
        (lambda: rank_correlation([1, 2, 3, 4], [1, 2, 3, 4], given=[1, 2]), "4 values a variable"),
        (lambda: sign_test([np.nan], [1.0]), "diverged run as inf"),
        (lambda: sign_test([1.0, 2.0], [1.0]), "as many values"),
        (lambda: holm([0.5, 1.5]), "between 0 and 1"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
