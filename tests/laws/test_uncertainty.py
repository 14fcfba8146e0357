"""Intervals: coverage by simulation, noise components, the bootstrap."""

import numpy as np
import pytest

from allometry import laws
from allometry.laws.calibration import TARGET, ladder, scenarios
from allometry.laws.uncertainty import estimate_noise, resample_weights


@pytest.mark.parametrize("name", ["independent noise", "noise by run", "four runs only"])
def test_intervals_cover_what_they_promise_at_eight_times_the_compute(name):
    scenario = next(one for one in scenarios() if one.name == name)
    design, run = ladder(scenario.seeds)
    found = laws.coverage(
        scenario.truth, "chinchilla", design, TARGET,
        run=run, between=scenario.between, within=scenario.within,
        simulations=120, resamples=120, random_state=11,
    )  # fmt: skip
    # Nominal 0.90; the standard error over 120 simulations is 0.027.
    assert 0.83 <= found["mean coverage"] <= 0.99
    assert 0.83 <= found["prediction coverage"] <= 1.0
    assert found["mean width"] < (0.35 if scenario.seeds == 1 else 0.15)
    assert found["prediction width"] >= found["mean width"]


def test_ignoring_runs_makes_intervals_too_narrow():
    scenario = next(one for one in scenarios() if one.name == "noise by run")
    design, run = ladder(2)
    arguments = {"between": scenario.between, "within": scenario.within, "simulations": 60, "resamples": 80}
    honest = laws.coverage(scenario.truth, "chinchilla", design, TARGET, run=run, **arguments)
    losses = np.exp(np.log(scenario.truth(design)) + 0.0092 * np.random.default_rng(0).normal(size=8)[run])
    by_point = laws.fit("chinchilla", design, losses, resamples=200)
    by_run = laws.fit("chinchilla", design, losses, run=run, resamples=200)
    assert by_run.interval(TARGET).width > 1.2 * by_point.interval(TARGET).width
    assert honest["mean coverage"] > 0.8


def test_noise_components_are_unbiased_for_a_linear_law():
    generator = np.random.default_rng(0)
    run = np.repeat(np.arange(8), 4)
    size = np.repeat([0.0, 1.0, 2.0, 3.0], 8)
    columns = np.stack([np.ones(32), size, np.tile([0.0, 1.0, 2.0, 3.0], 8)])
    simulations = 4000
    noise = 0.9 * generator.normal(size=(simulations, 8))[:, run] + 0.4 * generator.normal(
        size=(simulations, 32)
    )
    hat = columns.T @ np.linalg.inv(columns @ columns.T) @ columns
    residuals = noise - noise @ hat
    between, within, degrees = estimate_noise(residuals, np.broadcast_to(columns, (simulations, 3, 32)), run)
    assert between.mean() == pytest.approx(0.81, rel=0.05)
    assert within.mean() == pytest.approx(0.16, rel=0.03)
    assert degrees[0] == pytest.approx(6.0, abs=1e-6)  # eight runs less the level and the slope in size


def test_whole_runs_are_drawn():
    run = np.repeat(np.arange(40), 3)
    weights = resample_weights(run, 200, np.random.default_rng(0))
    assert (weights.reshape(200, 40, 3) == weights.reshape(200, 40, 3)[..., :1]).all()
    assert (weights.sum(axis=1) == 120).all()
    assert weights.var() == pytest.approx(1 - 1 / 40, rel=0.05)


def test_prediction_interval_adds_the_noise_of_a_new_run():
    generator = np.random.default_rng(4)
    x = np.geomspace(1e6, 1e9, 400)
    y = (x / 1e6) ** -0.2 * np.exp(0.02 * generator.normal(size=400))
    found = laws.fit("power", x, y, resamples=400)
    inside = found.interval(x, kind="prediction")
    share = np.mean((inside.low <= y) & (y <= inside.high))
    assert share == pytest.approx(0.9, abs=0.03)
    assert found.noise.total == pytest.approx(0.02, rel=0.1)
    assert found.resampling == "pairs"


def test_bootstrap_agrees_with_the_normal_theory_of_a_mean():
    values = np.random.default_rng(0).normal(size=200)
    interval = laws.bootstrap(lambda a: np.mean(a, axis=-1), values, unit="item", resamples=4000)
    assert interval.value == pytest.approx(values.mean())
    assert interval.width == pytest.approx(2 * 1.645 * values.std() / np.sqrt(200), rel=0.06)
    assert interval.low < interval.value < interval.high


def test_pairing_keeps_what_two_arms_share():
    generator = np.random.default_rng(1)
    shared = generator.normal(size=12)
    a, b = shared + 0.1 * generator.normal(size=12) + 0.2, shared + 0.1 * generator.normal(size=12)
    gap = lambda one, two: np.mean(one, axis=-1) - np.mean(two, axis=-1)  # noqa: E731
    paired = laws.bootstrap(gap, a, b)
    apart = laws.bootstrap(gap, a, b, paired=False)
    assert apart.width > 4 * paired.width
    loop = laws.bootstrap(lambda one, two: float(np.mean(one) - np.mean(two)), a, b)
    assert loop.low == pytest.approx(paired.low)


def test_bootstrap_refuses_what_it_cannot_resample():
    with pytest.raises(ValueError, match="at least 3"):
        laws.bootstrap(np.mean, [1.0, 2.0])
    with pytest.raises(ValueError, match="one length"):
        laws.bootstrap(lambda a, b: 0.0, [1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0])
    with pytest.raises(ValueError, match="not finite"):
        laws.bootstrap(np.mean, [1.0, np.nan, 3.0])
