"""What bends and what does not; and the curves that go with it."""

import numpy as np
import pytest

from allometry.laws import BestCircuit, MultiStep, SetCurve, SoftVote, TaskLaw, compare_forms, shape
from allometry.laws.circuits import LowerLine, TwoPowers, Vote

SIZES = np.geomspace(1e4, 1e9, 9)
FORMS = [TwoPowers(), LowerLine(), Vote()]


def f_of(law, theta, x):
    """log(-log pass rate) of a form at log sizes x."""
    return law.log_prediction(np.array([theta], dtype=float), x[:, None])[0]


def test_a_product_of_steps_is_convex_and_the_best_of_circuits_concave():
    """Second differences on a dense grid, and the closed form for the product: the variance of the slopes."""
    x = np.linspace(np.log(1e3), np.log(1e10), 2001)
    for theta in np.random.default_rng(0).uniform([1, 0.05, 1, 0.05], [4, 0.4, 4, 0.4], (50, 4)):
        convex, concave = f_of(FORMS[0], theta, x), f_of(FORMS[1], theta, x)
        assert (np.diff(convex, 2) >= -1e-10).all()
        assert (np.diff(concave, 2) <= 1e-10).all()
    lines = theta[0] - theta[1] * x, theta[2] - theta[3] * x
    share = 1 / (1 + np.exp(lines[1] - lines[0]))
    exact = share * (1 - share) * (theta[1] - theta[3]) ** 2
    numeric = np.diff(convex, 2) / (x[1] - x[0]) ** 2
    assert numeric == pytest.approx(exact[1:-1], rel=1e-2, abs=1e-6)


def test_a_vote_is_concave_at_its_turn_and_a_little_convex_beside_it():
    x = np.linspace(np.log(1e3), np.log(1e10), 2001)
    bent = np.diff(f_of(FORMS[2], [3.0, 0.1, 6.0, 0.4], x), 2) / (x[1] - x[0]) ** 2
    assert bent.min() < -0.1
    assert 0 < bent.max() < 0.3 * -bent.min()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_derivatives_are_exact(form):
    x = np.linspace(-3, 3, 7)[:, None]
    theta = np.array([[0.5, 0.3, 0.2, 0.9]])
    value, jacobian = form.jacobian(theta, x)
    assert value == pytest.approx(form.log_prediction(theta, x))
    for i in range(4):
        step = np.zeros(4)
        step[i] = 1e-6
        numeric = (form.log_prediction(theta + step, x) - form.log_prediction(theta - step, x)) / 2e-6
        keep = np.abs(x[:, 0] - 0.5) > 0.1  # away from where the lower line changes
        assert jacobian[0, i][keep] == pytest.approx(numeric[0][keep], abs=1e-7)


@pytest.mark.parametrize(
    ("law", "form"), [(MultiStep, FORMS[0]), (BestCircuit, FORMS[1]), (SoftVote, FORMS[2])]
)
def test_each_curve_is_found_again_and_preferred(law, form):
    sizes = np.geomspace(1e4, 1e9, 14)
    rate = np.exp(-np.exp(f_of(form, [2.6, 0.11, 7.0, 0.42], np.log(sizes))))
    trials = 10**12
    table = {"params": sizes, "successes": np.round(trials * rate), "trials": np.full(14, trials)}
    fitted = law().fit(table, resamples=0)
    f = np.log(-np.log(fitted.predict({"params": sizes})))
    assert f == pytest.approx(np.log(-np.log(rate)), abs=3e-3)
    others = [one().fit(table, resamples=0) for one in (SetCurve, MultiStep, BestCircuit, SoftVote)]
    assert min(others, key=lambda one: one.aicc).name in (fitted.name, "soft-vote")
    assert fitted.aicc < others[0].aicc


def test_forms_are_compared_as_all_forms_are():
    x = np.geomspace(1e4, 1e9, 14)
    y = np.exp(f_of(FORMS[0], [2.6, 0.11, 7.0, 0.42], np.log(x)))
    table = compare_forms([TwoPowers(), LowerLine()], {"params": x}, y)
    assert table.index[table["chosen"]].tolist() == ["multi-step"]


# --- the test -----------------------------------------------------------------------------------------------
def judged(bend, noise, count, errors=None, n=8):
    rng = np.random.default_rng(0)
    sizes = np.geomspace(1e4, 1e7, n)
    x = np.log(sizes) - np.log(sizes).mean()
    told = [
        shape(sizes, 2 - 0.2 * x + bend * x**2 + noise * rng.standard_normal(n), errors) for _ in range(count)
    ]
    return np.array([one.kind for one in told]), told


@pytest.mark.parametrize("n", [5, 8])
@pytest.mark.parametrize("counted", [0.0, 0.03])
def test_a_line_is_called_bent_in_five_percent(n, counted):
    noise = 0.02 if counted == 0 else counted
    kinds, told = judged(0.0, noise, 1500, np.full(n, counted), n)
    wrong = np.isin(kinds, ["emerging", "sub-scaling"]).mean()
    assert wrong < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1500)
    if counted == 0:
        assert wrong == pytest.approx(0.05, abs=0.017)
        covered = np.mean([one.ci[0] <= 0 <= one.ci[1] for one in told])
        assert covered == pytest.approx(0.95, abs=0.017)


def test_what_bends_is_seen_with_its_sign():
    assert (judged(-0.02, 0.02, 200)[0] == "emerging").mean() > 0.95
    assert (judged(0.02, 0.02, 200)[0] == "sub-scaling").mean() > 0.95


def test_a_line_with_little_noise_is_scaling_and_with_much_undecidable():
    assert (judged(0.0, 0.005, 200)[0] == "scaling").mean() > 0.9
    assert (judged(0.0, 0.3, 200)[0] == "undecidable").mean() > 0.8


def test_few_sizes_decide_nothing():
    sizes = [1e4, 1e5, 1e6, 1e7]
    told = shape(sizes, [2.0, 1.5, 0.5, -1.0])
    assert told.kind == "undecidable"
    assert np.isnan(told.pvalue)
    assert "at least 5" in str(told)
    with pytest.raises(ValueError, match="three sizes"):
        shape([1e4, 1e5], [1, 2])
    with pytest.raises(ValueError, match="finite"):
        shape(sizes, [1, 2, 3, np.inf])


def counts(bend, seed, instances=24, sizes=SIZES):
    rng = np.random.default_rng(seed)
    x = np.log(sizes) - np.log(sizes).mean()
    a, alpha = (
        0.8 + 0.4 * rng.standard_normal((instances, 1)),
        0.15 + 0.02 * rng.standard_normal((instances, 1)),
    )
    p = np.exp(-np.exp(a - alpha * x + bend * x**2 + 0.05 * rng.standard_normal(len(x))))
    return {
        "params": np.tile(sizes, instances), "instance": np.repeat(np.arange(instances), len(x)),
        "successes": rng.binomial(2000, p).ravel(), "trials": np.full(p.size, 2000),
    }  # fmt: skip


def test_instances_are_judged_about_their_own_lines():
    for bend, wanted in [(-0.02, "emerging"), (0.02, "sub-scaling")]:
        told = [TaskLaw().fit(counts(bend, seed), resamples=0).growth_shape() for seed in range(20)]
        assert np.mean([one.kind == wanted for one in told]) > 0.8
        assert np.mean([one.curvature for one in told]) == pytest.approx(bend, abs=0.005)


def test_instances_on_lines_are_called_bent_in_five_percent():
    told = [TaskLaw().fit(counts(0.0, seed), resamples=0).growth_shape() for seed in range(200)]
    wrong = np.mean([one.pvalue < 0.05 for one in told])
    assert wrong < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
    assert abs(np.mean([one.curvature for one in told])) < 0.002
