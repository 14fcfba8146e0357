"""The task law against other optimisers, against exact worlds, and at its limits."""

import numpy as np
import pytest
from scipy import optimize, stats

from allometry.laws import TaskLaw, compare_laws, get_law, held_out
from allometry.laws.pass_likelihood import expected_information, fit_lines, mean_pass_rate, score
from allometry.measure import PassCounts

SIZES = np.geomspace(1e4, 3e5, 5)
NEXT = 1e6


def world(seed, *, instances=32, r=2, cap=5000, run=0.0, own=0.0, sizes=SIZES):
    """A table of counts, and the truth behind it: mean alpha, mean log c, mean pass rate at NEXT."""
    rng = np.random.default_rng(seed)
    log = np.log(sizes)
    x = log - log.mean()
    a, alpha = 1.5 + 0.25 * rng.standard_normal(instances), 0.2 + 0.03 * rng.standard_normal(instances)
    f = a[:, None] - alpha[:, None] * x
    f = f + run * rng.standard_normal(len(x)) + own * rng.standard_normal(f.shape)
    p = np.exp(-np.exp(f))
    columns = {"params": np.tile(sizes, instances), "instance": np.repeat(np.arange(instances), len(x))}
    if r:
        k = rng.negative_binomial(r, p) + r
        over = k > cap
        q = np.where(over, np.minimum(rng.binomial(cap, p), r - 1), r)
        columns |= {"successes": q.ravel(), "trials": np.minimum(k, cap).ravel(), "censored": over.ravel()}
    else:
        columns |= {"successes": rng.binomial(cap, p).ravel(), "trials": np.full(p.size, cap)}
    there = (a - alpha * (np.log(NEXT) - log.mean()))[:, None]
    luck = own * np.random.default_rng(1).standard_normal(400)
    return columns, (alpha.mean(), a.mean() + alpha.mean() * log.mean(), np.exp(-np.exp(there + luck)).mean())


# --- the likelihood -----------------------------------------------------------------------------------------
def log_likelihood(f, passes, failures):
    rate = np.exp(f)
    return -passes * rate + failures * np.log(-np.expm1(-rate))


def test_derivatives_are_those_of_the_likelihood_which_is_concave():
    f, s, k = np.meshgrid(np.linspace(-7, 3, 41), [0.0, 1.0, 5.0], [0.0, 3.0, 1e4], indexing="ij")
    first, second = score(f, s, k)
    h = 1e-4
    up, here, down = (log_likelihood(f + d, s, k) for d in (h, 0, -h))
    assert first == pytest.approx((up - down) / (2 * h), rel=1e-4, abs=1e-4)
    numeric = -(up - 2 * here + down) / h**2
    assert second == pytest.approx(numeric, rel=2e-3, abs=2e-2)
    assert (second >= 0).all()


@pytest.mark.parametrize("p", [0.9, 0.2, 0.001])
def test_information_is_the_variance_of_the_score(p):
    f, n = np.log(-np.log(p)), 400
    s = np.arange(n + 1.0)
    first, _ = score(np.full(n + 1, f), s, n - s)
    weights = stats.binom.pmf(s, n, p)
    assert weights @ first == pytest.approx(0.0, abs=1e-8 * n)
    assert weights @ first**2 == pytest.approx(
        float(expected_information(np.array(f), np.array(n))), rel=1e-8
    )


def test_the_mean_pass_rate_is_the_mean_over_a_normal_line():
    draws = np.random.default_rng(0).standard_normal(400_000)
    for f, variance in [(-1.0, 0.3), (1.0, 0.1), (2.0, 0.5)]:
        wanted = np.exp(-np.exp(f + np.sqrt(variance) * draws)).mean()
        assert float(mean_pass_rate(np.array(f), variance)) == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("cap", [400, 10**9])
def test_one_line_is_the_binomial_maximum_likelihood_with_any_cap(cap):
    """Few draws and most censored, or none: the same as SciPy's optimiser on the same likelihood."""
    table, _ = world(0, instances=1, r=4, cap=cap)
    x = np.log(SIZES)
    x = x - x.mean()
    s, k = table["successes"].astype(float), table["trials"].astype(float)

    def minus(theta):
        return -log_likelihood(theta[0] - theta[1] * x, s, k - s).sum()

    best = optimize.minimize(minus, [1.0, 0.2], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    lines = fit_lines(x, s[None], (k - s)[None])
    assert lines.theta[0] == pytest.approx(best.x, abs=1e-5)


def test_a_batch_is_each_alone():
    tables = [world(seed, instances=8)[0] for seed in range(3)]
    x = np.log(SIZES) - np.log(SIZES).mean()
    s, k = (
        np.array([t[name].reshape(8, 5) for t in tables], dtype=float) for name in ("successes", "trials")
    )
    together = fit_lines(x, s, k - s)
    for i in range(3):
        assert together.theta[i] == pytest.approx(fit_lines(x, s[i], k[i] - s[i]).theta, abs=1e-9)


def test_the_distribution_over_instances_is_that_of_the_marginal_likelihood():
    """Against the integral over lines on a grid, maximised by SciPy."""
    table, _ = world(5, instances=60, r=3)
    x = np.log(SIZES) - np.log(SIZES).mean()
    s, k = (table[name].reshape(60, 5).astype(float) for name in ("successes", "trials"))
    a, alpha = np.meshgrid(np.linspace(0.2, 2.8, 61), np.linspace(-0.1, 0.5, 41), indexing="ij")
    f = a[..., None] - alpha[..., None] * x
    like = np.array([log_likelihood(f, s[i], k[i] - s[i]).sum(axis=-1) for i in range(60)])
    top = like.max(axis=(1, 2), keepdims=True)
    weight = np.exp(like - top)

    def minus(theta):
        density = np.exp(-0.5 * (((a - theta[0]) / np.exp(theta[2])) ** 2
                                 + ((alpha - theta[1]) / np.exp(theta[3])) ** 2))  # fmt: skip
        density /= density.sum()
        return -np.log((weight * density).sum(axis=(1, 2))).sum()

    best = optimize.minimize(minus, [1.5, 0.2, -1.5, -3.5], method="Nelder-Mead", options={"maxiter": 600})
    lines = fit_lines(x, s, k - s, rounds=400)
    assert lines.centre[0] == pytest.approx(best.x[0], abs=0.03)
    assert lines.centre[1] == pytest.approx(best.x[1], abs=0.01)
    assert np.sqrt(lines.spread[0, 0]) == pytest.approx(np.exp(best.x[2]), rel=0.2)


# --- the law ------------------------------------------------------------------------------------------------
def test_many_draws_give_the_curve_back():
    table, (alpha, log_c, rate) = world(1, r=0, cap=10**8)
    law = TaskLaw().fit(table, resamples=200)
    assert law.params_["alpha"] == pytest.approx(alpha, abs=2e-3)
    assert law.params_["log_c"] == pytest.approx(log_c, abs=0.02)
    assert law.predict({"params": NEXT})[0] == pytest.approx(rate, rel=0.01)
    assert law.interval({"params": NEXT}).width[0] < 0.02 * rate


def test_instances_that_never_passed_are_not_lost():
    """Dropping them, as least squares on points must, foretells too much."""
    table, (_, _, rate) = world(2, instances=200, r=2, cap=60)
    assert (table["successes"] == 0).mean() > 0.2
    whole = TaskLaw().fit(table, resamples=0).predict({"params": NEXT})[0]
    points = TaskLaw(likelihood="least-squares").fit(table, resamples=0).predict({"params": NEXT})[0]
    assert abs(whole / rate - 1) < 0.2
    assert points > whole


def test_counts_and_a_table_say_the_same():
    table, _ = world(4, instances=6)
    fitted = TaskLaw().fit(table, resamples=50)
    counts = [
        PassCounts(*(table[name][table["params"] == n] for name in ("successes", "trials", "censored")))
        for n in SIZES
    ]
    again = TaskLaw().fit(SIZES, counts, resamples=50)
    assert again.params_ == pytest.approx(fitted.params_)
    assert again.interval({"params": NEXT}).low == pytest.approx(fitted.interval({"params": NEXT}).low)


def test_truth_may_be_written_out():
    table, _ = world(4, instances=6, cap=200)
    written = TaskLaw().fit(table | {"censored": np.where(table["censored"], "True", "False")}, resamples=0)
    assert written.params_ == TaskLaw().fit(table, resamples=0).params_


def test_an_instance_is_foretold_by_its_own_line():
    table, _ = world(6, instances=5, r=0, cap=10**6)
    law = get_law("task").fit(table, resamples=0)
    each = law.predict_each({"params": NEXT})[:, 0]
    curves = law.curves()
    lines = np.exp(-np.exp(curves["log_c"] - curves["alpha"] * np.log(NEXT)))
    assert each == pytest.approx(lines.to_numpy(), rel=1e-3)
    assert law.predict({"params": NEXT})[0] == pytest.approx(each.mean())
    assert law.curves(3).index.tolist() == [3]


def test_a_model_held_out_is_foretold_and_laws_are_compared():
    table, _ = world(7, instances=64, sizes=np.geomspace(1e4, 3e6, 7))
    told = held_out(TaskLaw(), table, "params", resamples=200)
    assert told.error < 0.5
    ranked = compare_laws(["task", TaskLaw("dataset")], table, "params", resamples=50)
    assert ranked["reason"].tolist() == ["", ""]


def test_ten_thousand_resamples_are_practical():
    table, _ = world(8, instances=16)
    law = TaskLaw().fit(table, resamples=10_000)
    assert law.interval({"params": NEXT}, 0.95).width[0] > 0


def test_what_is_told_besides():
    table, _ = world(9, instances=8, cap=40)
    law = TaskLaw().fit(table, resamples=50)
    report = law.report()
    assert len(report["measured"]) == 5
    assert report["shape"]["kind"][0] in ("scaling", "emerging", "sub-scaling", "undecidable")
    assert law.table().loc[["log_c", "alpha"], ["low", "high"]].notna().all().all()
    assert law.plot().get_xscale() == "log"


# --- coverage -----------------------------------------------------------------------------------------------
def shares(count, level, resamples=200, **settings):
    """How often intervals of alpha, log c and the rate foretold hold the truth."""
    hits = np.zeros(3)
    for seed in range(count):
        table, truth = world(seed, **settings)
        law = TaskLaw().fit(table, resamples=resamples, random_state=seed)
        told = law.table(level)
        rate = law.interval({"params": NEXT}, level)
        spans = [*told.loc[["alpha", "log_c"], ["low", "high"]].to_numpy(), (rate.low[0], rate.high[0])]
        hits += [low <= value <= high for (low, high), value in zip(spans, truth, strict=True)]
    return hits / count


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count", "settings"),
    [
        ("one question, counts alone", 1000, {"instances": 1, "r": 0, "cap": 10**5}),
        ("one question, models scatter", 1000, {"instances": 1, "r": 0, "cap": 10**5, "run": 0.1}),
        ("until it passes, counts alone", 300, {"instances": 16}),
        ("until it passes, models and instances scatter", 300, {"instances": 16, "run": 0.05, "own": 0.15}),
        ("few draws, many censored", 300, {"instances": 16, "cap": 100}),
    ],
)
def test_intervals_of_95_percent_hold_the_truth_in_93(name, count, settings):
    found = shares(count, 0.95, **settings)
    allowance = 0.0 if count == 1000 else 2 * np.sqrt(0.95 * 0.05 / count)  # of a smaller simulation
    assert (found >= 0.93 - allowance).all(), (name, found)


# --- what cannot be known -----------------------------------------------------------------------------------
def plain(**changes):
    n = np.array([1e4, 1e5, 1e6])
    return {"params": n, "successes": [1, 20, 60], "trials": [100, 100, 100], **changes}


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (plain(params=[1e4, 1e4, 1e5]), "at least three sizes; there are 2"),
        (plain(successes=[0, 0, 0]), "no draw passed"),
        (plain(successes=[0, 0, 5]), "one size only"),
        (plain(successes=[1, 20, 101]), "101 successes in 100 trials"),
        (plain(params=[0, 1e5, 1e6]), "params must be positive"),
        (plain(successes=[1, 20, np.nan]), "'successes' is nan"),
        ({"params": [1e4, 1e5, 1e6], "successes": [1, 2, 3]}, "needs a column 'trials'"),
        (plain(successes=[26, 40, 60], chance=0.25), "cannot be told from chance"),
    ],
)
def test_what_cannot_be_known_is_refused(table, says):
    with pytest.raises(ValueError, match=says):
        TaskLaw().fit(table, resamples=0)


def test_a_size_without_a_pass_is_a_bound():
    n = np.array([1e4, 1e5, 1e6, 1e7])
    table = {"params": n, "successes": [0, 3, 40, 200], "trials": [1000] * 4}
    law = TaskLaw().fit(table, resamples=0)
    assert any("upper bound" in one for one in law.warnings_)
    row = law.cells_.by_size().iloc[0]
    assert row["only_bounded"]
    assert 1 - (1 - row["high"]) ** 1000 == pytest.approx(0.95, abs=1e-2)


def test_choices_that_are_none_are_refused():
    with pytest.raises(ValueError, match="level"):
        TaskLaw("model")
    with pytest.raises(ValueError, match="likelihood"):
        TaskLaw(likelihood="bayes")
    with pytest.raises(ValueError, match="has not been fitted"):
        TaskLaw().predict({"params": 1e6})
    law = TaskLaw().fit(plain(), resamples=0)
    with pytest.raises(ValueError, match="resamples"):
        law.interval({"params": 1e7})
