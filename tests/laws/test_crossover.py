"""Crossings: closed forms, symmetries, the vocabulary of verdicts, diverged runs, what cannot be said."""

import itertools

import numpy as np
import pytest
from scipy import stats

from allometry.laws.crossover import VERDICTS, Curve, crossover

X = np.geomspace(1e6, 3.2e7, 6)


def curves(
    at: float = 6e6, slopes: tuple[float, float] = (0.05, 0.10), sd: float = 0.02, seeds: int = 5,
    floor: float = 0.0, seed: int = 0, x: np.ndarray = X, shared: float = 0.0,
) -> tuple[Curve, Curve]:  # fmt: skip
    """Two power laws that cross at ``at``, with noise of each run and noise shared by a pair."""
    generator = np.random.default_rng(seed)
    luck = shared * generator.normal(size=(len(x), seeds))
    out = []
    for slope, name in zip(slopes, ("base", "arm"), strict=True):
        noise = sd * generator.normal(size=(len(x), seeds)) + luck
        out.append(Curve(x, (3 * (x / at)[:, None] ** -slope + floor) * np.exp(noise), name=name))
    return out[0], out[1]


# --- ground truth -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("slopes", [(0.05, 0.10), (0.4, 0.1), (0.30, 0.31)])
def test_without_noise_the_crossing_is_the_closed_form(slopes):
    c = np.array([5.0, 9.0])
    y = c * X[:, None] ** -np.array(slopes)
    found = crossover(*(Curve(X, np.stack([column] * 2, axis=1)) for column in y.T))
    exact = (c[0] / c[1]) ** (1 / (slopes[0] - slopes[1]))
    if 1e4 < exact < 3.2e9:
        assert found.x == pytest.approx(exact, rel=1e-12)
        assert found.n_roots == 1
    else:
        assert np.isnan(found.x)
        assert found.outside == "beyond evidence"


def test_a_common_floor_leaves_the_crossing_where_it_was():
    found = crossover(*curves(floor=1.5, sd=0.0), method="bootstrap", resamples=100)
    assert found.x == pytest.approx(6e6, rel=1e-8)
    assert found.verdict == "helps above x"
    bent = crossover(*curves(floor=1.5, sd=0.0))
    assert "does not describe the differences" in bent.notes[0]
    assert bent.x != pytest.approx(6e6, rel=1e-2)


def test_two_crossings_are_both_found():
    # floors differ as well: A x^-a + E with the arm ahead only in between
    base = 2.0 + 3.0 * (X / 1e6) ** -0.5
    arm = 2.1 + 3.0 * (X / 1e6) ** -0.9
    grid = np.exp(np.linspace(np.log(1e4), np.log(3.2e9), 200001))
    sign = np.sign(3.0 * (grid / 1e6) ** -0.5 - 3.0 * (grid / 1e6) ** -0.9 - 0.1)
    exact = grid[1:][np.diff(sign) != 0]
    found = crossover(Curve(X, np.stack([base] * 2, 1)), Curve(X, np.stack([arm] * 2, 1)), method="bootstrap")
    assert found.n_roots == len(exact) == 2
    assert found.kind == "several"
    np.testing.assert_allclose([piece[0] for piece in found.pieces], exact, rtol=1e-4)
    assert "cross 2 times" in " ".join(found.notes)


def test_coverage_and_verdicts_over_many_data_sets():
    inside, right = 0, 0
    for seed in range(60):
        found = crossover(*curves(seed=seed))
        inside += any(low <= 6e6 <= high for low, high in found.pieces)
        right += found.verdict == "helps above x"
    assert stats.binom.cdf(inside, 60, 0.95) > 0.001
    assert right > 45


def test_fieller_and_a_large_bootstrap_agree():
    base, arm = curves(seed=3)
    exact = crossover(base, arm)
    drawn = crossover(base, arm, method="bootstrap", forms="power", resamples=10_000)
    assert drawn.x == pytest.approx(exact.x, rel=1e-9)
    assert drawn.interval.low == pytest.approx(exact.interval.low, rel=0.05)
    assert drawn.interval.high == pytest.approx(exact.interval.high, rel=0.05)
    at = np.array([2e6, 5e6, 6e6, 8e6])
    np.testing.assert_allclose(drawn.p_better(at), exact.p_better(at), atol=0.03)
    assert drawn.places["inside"] == pytest.approx(exact.places["inside"], abs=0.01)


def test_pairs_take_out_the_noise_that_they_share():
    base, arm = curves(shared=0.2, seed=1)
    together, apart = crossover(base, arm), crossover(base, arm, paired=False)
    assert together.verdict == "helps above x"
    assert apart.verdict == "undecided"
    assert crossover(base, arm, method="bootstrap", forms="power").verdict == "helps above x"


def test_where_the_crossing_lies_agrees_with_simulation():
    base, arm = curves(at=2.5e7, sd=0.03, seed=2)
    found = crossover(base, arm)
    difference = found._difference
    degrees, count = difference.degrees, 400_000
    generator = np.random.default_rng(0)
    scale = np.sqrt(degrees / generator.chisquare(degrees, size=(count, 1)))
    drawn = scale * generator.multivariate_normal([0, 0], difference.covariance, size=count)
    p, q = difference.p + drawn[:, 0], difference.q + drawn[:, 1]
    u = difference.centre - p / q
    low, high = np.log(X[0]), np.log(X[-1])
    simulated = {
        "inside": (u > low) & (u < high), "up to 10x": (u > high) & (u < high + np.log(10)),
        "up to 100x": (u > high + np.log(10)) & (u < high + np.log(100)),
        "below": (u > low - np.log(100)) & (u < low),
    }  # fmt: skip
    for name, hits in simulated.items():
        assert found.places[name] == pytest.approx(hits.mean(), abs=0.003)
    assert sum(found.places.values()) == pytest.approx(1.0, abs=1e-4)
    for at in (1e6, 2e7, 3e8):
        better = (p + q * (np.log(at) - difference.centre) > 0).mean()
        assert found.p_better(at) == pytest.approx(better, abs=0.003)


# --- symmetries -------------------------------------------------------------------------------------------
MIRROR = {
    "helps": "hurts", "hurts": "helps", "helps below x": "helps above x", "helps above x": "helps below x",
    "no difference": "no difference", "undecided": "undecided",
}  # fmt: skip


# without pairs the bootstrap draws the arms in turn, so exchanging them gives other numbers
@pytest.mark.parametrize(("method", "paired"), [("fieller", True), ("fieller", False), ("bootstrap", True)])
@pytest.mark.parametrize("at", [6e6, 1e5, 1e9, 3e7])
def test_exchanging_the_arms_mirrors_everything(method, paired, at):
    base, arm = curves(at=at, seed=4)
    one = crossover(base, arm, method=method, paired=paired, resamples=500)
    other = crossover(arm, base, method=method, paired=paired, resamples=500)
    assert other.verdict == MIRROR[one.verdict]
    assert other.kind == one.kind
    np.testing.assert_allclose(other.x, one.x, rtol=1e-9)
    np.testing.assert_allclose(np.ravel(other.pieces), np.ravel(one.pieces), rtol=1e-6)
    probes = np.array([1e6, 1e7, 1e9])
    np.testing.assert_allclose(other.p_better(probes), 1 - one.p_better(probes), atol=1e-12)
    assert other.places == pytest.approx(one.places, abs=1e-6)


@pytest.mark.parametrize("method", ["fieller", "bootstrap"])
def test_units_of_scale_and_loss_do_not_matter(method):
    base, arm = curves(seed=6)
    one = crossover(base, arm, method=method, resamples=500)
    moved = [Curve(1e-6 * c.x, 0.37 * c.y, name=c.name) for c in (base, arm)]
    other = crossover(*moved, method=method, resamples=500)
    assert other.x == pytest.approx(1e-6 * one.x, rel=1e-9)
    np.testing.assert_allclose(np.ravel(other.pieces), 1e-6 * np.ravel(one.pieces), rtol=1e-6)
    assert other.verdict == one.verdict
    assert other.p_better(5.0) == pytest.approx(one.p_better(5e6), abs=1e-12)


def test_order_of_rows_and_columns_does_not_matter():
    base, arm = curves(seed=7)
    rows, columns = [3, 0, 5, 1, 4, 2], [4, 2, 0, 1, 3]
    mixed = Curve(X[rows], arm.y[rows][:, columns], seeds=[arm.seeds[i] for i in columns])
    assert crossover(base, mixed).interval.low == pytest.approx(crossover(base, arm).interval.low, rel=1e-12)


# --- verdicts ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["fieller", "bootstrap"])
def test_the_vocabulary(method):
    options = {"method": method, "resamples": 400} | ({"forms": "power"} if method == "bootstrap" else {})
    settle = {
        "helps": curves(at=1e4), "hurts": curves(at=1e9), "helps above x": curves(),
        "helps below x": curves()[::-1], "undecided": curves(slopes=(0.05, 0.051), sd=0.05),
        "no difference": curves(slopes=(0.05, 0.05), sd=0.002),
    }  # fmt: skip
    assert set(settle) == set(VERDICTS)
    for verdict, (base, arm) in settle.items():
        found = crossover(base, arm, **options)
        assert found.verdict == verdict
        if verdict in ("undecided", "no difference"):
            assert verdict == "no difference" or found.p_value > 0.05
        else:
            assert found.p_value <= 0.05 + 1e-9


def test_a_small_but_certain_difference_is_none_within_the_margin_and_some_without():
    base, arm = curves(slopes=(0.05, 0.05), sd=0.0002, seeds=4)
    better = Curve(X, arm.y * 0.998)
    assert crossover(base, better).verdict == "no difference"
    assert crossover(base, better, margin=0.001).verdict == "helps"
    assert crossover(base, better).gain(1e7).value == pytest.approx(0.002, abs=2e-4)


def test_identical_and_parallel_arms():
    base, _ = curves(sd=0.0)
    same = crossover(base, base)
    assert same.verdict == "no difference"
    assert same.p_better(1e7) == 0.5
    parallel = crossover(base, Curve(X, 0.9 * base.y))
    assert parallel.kind == "none"
    assert parallel.verdict == "helps"
    assert parallel.n_roots == 0
    assert parallel.places["never"] == 1.0
    assert parallel.outside == "no crossing"
    drawn = crossover(base, Curve(X, 0.9 * base.y), method="bootstrap", resamples=100)
    assert (drawn.kind, drawn.verdict) == ("none", "helps")


def test_a_verdict_is_about_the_data_and_a_target_extends_it():
    base, arm = curves(at=1.5e8, sd=0.004)
    found = crossover(base, arm)
    assert found.verdict == "hurts"
    assert found.x == pytest.approx(1.5e8, rel=0.2)
    assert "beyond the largest scale" in found.outside
    assert found.places["up to 10x"] > 0.99
    ahead = crossover(base, arm, target=3e9)
    assert ahead.verdict == "helps above x"
    far = crossover(base, arm, target=4e9)
    assert far.verdict == "undecided"
    assert "beyond evidence" in far.notes[-1]


def test_a_crossing_beyond_a_factor_of_a_hundred_is_not_given():
    found = crossover(*curves(at=1e11, sd=0.0))
    assert np.isnan(found.x)
    assert found.n_roots == 0
    assert found.outside == "beyond evidence"
    assert found.places["never"] == 1.0


# --- few scales, few seeds --------------------------------------------------------------------------------
def test_one_seed_decides_nothing():
    for method in ("fieller", "bootstrap"):
        found = crossover(*curves(seeds=1), method=method)
        assert found.verdict == "undecided"
        assert np.isnan(found.interval.low)
        assert np.isfinite(found.x)
        assert np.isnan(found.p_better(1e6))
        assert "fewer than two seeds" in " ".join(found.notes)


def test_two_scales_are_judged_one_by_one_without_a_law():
    base, arm = curves(x=X[[0, 5]], sd=0.005)
    found = crossover(base, arm)
    assert found.verdict == "helps above x"
    assert np.isnan(found.x)
    assert np.isnan(found.p_better(5e6))
    difference = np.log(base.y / arm.y)
    for row, x in enumerate(X[[0, 5]]):
        t = stats.ttest_1samp(difference[row], 0.0)
        assert found.p_better(x) == pytest.approx(stats.t.cdf(t.statistic, 4), abs=1e-12)
    apart = crossover(base, arm, paired=False)
    welch = stats.ttest_ind(np.log(base.y[0]), np.log(arm.y[0]), equal_var=False)
    assert apart.p_better(X[0]) == pytest.approx(stats.t.cdf(welch.statistic, welch.df), abs=1e-12)


def test_different_scales_are_compared_by_their_laws_and_marked():
    base, _ = curves()
    _, arm = curves(x=X * 1.5)
    found = crossover(base, arm)
    assert not found.paired
    assert "different scales: unpaired" in found.notes[0]
    assert found.x == pytest.approx(6e6, rel=0.3)
    assert found.scales[0] == pytest.approx(1.5e6)
    with pytest.raises(ValueError, match="share no range"):
        crossover(base, Curve(X * 1e3, arm.y))


def test_seeds_are_paired_by_label_and_the_rest_is_named():
    base, arm = curves()
    wide = Curve(X, np.concatenate([arm.y, 9 * np.ones((6, 1))], axis=1), seeds=[0, 1, 2, 3, 4, "extra"])
    found = crossover(base, wide)
    assert found.interval.low == pytest.approx(crossover(base, arm).interval.low, rel=1e-12)
    assert "extra" in found.notes[0]
    strangers = crossover(base, Curve(X, arm.y, seeds=list("abcde")))
    assert not strangers.paired
    assert "0 seeds in common" in strangers.notes[0]


def test_runs_that_were_never_made_are_simply_absent():
    base, arm = curves()
    missing = np.zeros((6, 5), dtype=bool)
    missing[5, 2:] = missing[0, 0] = True
    gaps = Curve(X, arm.y, missing=missing)
    found = crossover(base, gaps)
    use = ~missing.ravel()  # ordinary regression on the pairs that there are
    peer = stats.linregress(np.repeat(np.log(X), 5)[use], np.log(base.y / arm.y).ravel()[use])
    assert found.x == pytest.approx(np.exp(-peer.intercept / peer.slope), rel=1e-10)
    drawn = crossover(base, gaps, method="bootstrap", forms="power", resamples=4000)
    assert drawn.interval.low == pytest.approx(found.interval.low, rel=0.08)
    assert drawn.interval.high == pytest.approx(found.interval.high, rel=0.08)


# --- diverged runs ----------------------------------------------------------------------------------------
def diverging(arm: Curve, cells: list[tuple[int, int]]) -> Curve:
    censored = np.zeros(arm.y.shape, dtype=bool)
    for cell in cells:
        censored[cell] = True
    return Curve(arm.scales, arm.y, name=arm.name, censored=censored)


@pytest.mark.parametrize("method", ["fieller", "bootstrap"])
def test_an_arm_that_helps_and_then_diverges_helps_below(method):
    base, arm = curves(at=1e4)
    assert crossover(base, arm, method=method).verdict == "helps"
    broken = diverging(arm, [(5, s) for s in range(5)])
    found = crossover(base, broken, method=method)
    assert found.verdict == "helps below x"
    assert found.kind == "divergence"
    assert X[4] < found.x < X[5]
    assert found.interval.low == pytest.approx(X[4])
    assert found.interval.high == pytest.approx(X[5])
    assert "5 of 5 runs of arm and 0 of 5 runs of base diverged" in " ".join(found.notes)
    # five signs out of five: a beta distribution, and the mid-p value of the sign test
    assert found.p_better(X[5]) == pytest.approx(0.5**6, abs=1e-12)
    assert found.p_better(1e9) == found.p_better(X[5])
    assert found.p_better(X[4]) > 0.975
    assert crossover(broken, base, method=method).verdict == "helps above x"


def test_dropping_the_diverged_runs_would_have_hidden_it():
    base, arm = curves(at=1e4)
    cells = [(4, 0), (4, 3), (5, 0), (5, 1), (5, 2), (5, 4)]
    found = crossover(base, diverging(arm, cells))
    assert found.verdict != "helps"
    missing = np.zeros((6, 5), dtype=bool)
    missing[tuple(np.array(cells).T)] = True
    assert crossover(base, Curve(X, arm.y, missing=missing)).verdict == "helps"


def test_survivors_of_a_scale_do_not_enter_the_law():
    base, arm = curves(at=1e4)
    broken = diverging(arm, [(5, 0)])
    found = crossover(base, broken)
    without = crossover(Curve(X[:5], base.y[:5]), Curve(X[:5], arm.y[:5]))
    assert found.p_better(2e6) == without.p_better(2e6)


def test_divergence_of_both_in_a_pair_is_a_tie():
    base, arm = curves(at=1e4)
    cells = [(5, s) for s in range(5)]
    found = crossover(diverging(base, cells), diverging(arm, cells))
    assert found.verdict == "helps"
    assert found.p_better(X[5]) == 0.5


def test_two_seeds_are_too_few_to_call_a_divergence():
    base, arm = curves(at=1e4, seeds=2, sd=0.005)
    found = crossover(base, diverging(arm, [(5, 0), (5, 1)]))
    assert found.verdict == "undecided"
    longer = crossover(base, diverging(arm, [(r, s) for r in (3, 4, 5) for s in (0, 1)]))
    assert longer.verdict == "helps below x"  # six signs in three scales
    assert longer.p_better(X[4]) == pytest.approx(0.5**7, abs=1e-12)


def test_an_arm_that_diverges_everywhere_hurts():
    base, arm = curves()
    cells = list(itertools.product(range(6), range(4)))
    found = crossover(base, diverging(arm, cells))
    assert found.verdict == "hurts"
    assert found.p_better(1e8) < 1e-3


def test_divergence_is_judged_without_pairs_too():
    base, arm = curves(at=1e4)
    found = crossover(base, diverging(arm, [(5, s) for s in range(5)]), paired=False)
    assert found.verdict == "helps below x"
    assert found.p_better(X[5]) == pytest.approx(0.5**6, abs=1e-12)
    both = diverging(base, [(5, s) for s in range(5)]), diverging(arm, [(5, s) for s in range(5)])
    assert crossover(*both, paired=False).p_better(X[5]) == 0.5


# --- tables, files, refusals ------------------------------------------------------------------------------
def test_two_csv_files_are_enough(tmp_path):
    import pandas

    base, arm = curves()
    for curve in (base, arm):
        rows = [
            {"params": x, "seed": s, "loss": curve.y[i, s]}
            for (i, x), s in itertools.product(enumerate(X), range(5))
        ]
        pandas.DataFrame(rows).sample(frac=1.0, random_state=0).to_csv(
            tmp_path / f"{curve.name}.csv", index=False
        )
    read = [Curve.from_table(pandas.read_csv(tmp_path / f"{name}.csv")) for name in ("base", "arm")]
    assert crossover(*read).x == pytest.approx(crossover(base, arm).x, rel=1e-12)


def test_results_are_plain_json():
    import json

    for base, arm in (curves(), curves(seeds=1), curves(slopes=(0.05, 0.0505))):
        found = crossover(base, arm)
        stored = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert stored["verdict"] == found.verdict
        assert str(found)


def test_the_same_seed_gives_the_same_numbers():
    one, other = (crossover(*curves(), method="bootstrap", random_state=5) for _ in range(2))
    assert one.pieces == other.pieces
    assert crossover(*curves(), method="bootstrap", random_state=6).pieces != one.pieces


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "guess"}, "'fieller' or 'bootstrap', not 'guess'"),
        ({"margin": -0.1}, "margin"),
        ({"level": 95}, "between 0 and 1, not 95"),
        ({"target": 0.0}, "positive scale"),
        ({"forms": "power"}, "forms are for method='bootstrap'"),
        ({"method": "bootstrap", "resamples": 5}, "at least 100"),
        ({"method": "bootstrap", "forms": ["power"] * 3}, "one law or two"),
        ({"method": "bootstrap", "forms": "parabola"}, "unknown law form"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        crossover(*curves(), **options)


def test_arrays_are_no_curves():
    with pytest.raises(TypeError, match="base must be a Curve, not ndarray"):
        crossover(np.ones(3), curves()[1])
    with pytest.raises(ValueError, match="must be positive"):
        crossover(*curves()).p_better(-1.0)
