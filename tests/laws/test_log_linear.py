"""The log-linear law against ordinary regression."""

import numpy as np
import pytest
from scipy import stats

from allometry.laws import get_law
from allometry.laws.fit import fit
from allometry.laws.log_linear import LogLinear


def data(seed=0, n=40, noise=0.02):
    rng = np.random.default_rng(seed)
    table = {"n": np.exp(rng.uniform(5, 15, n)), "d": np.exp(rng.uniform(8, 20, n))}
    loss = 30 * table["n"] ** -0.12 * table["d"] ** -0.07 * np.exp(noise * rng.normal(size=n))
    return table, loss


def test_least_squares_is_numpy_s():
    table, loss = data()
    rows = np.stack([np.ones(40), -np.log(table["n"]), -np.log(table["d"])], axis=1)
    wanted = np.linalg.lstsq(rows, np.log(loss), rcond=None)[0]
    found = fit(LogLinear("n", "d"), table, loss, loss="squared", resamples=0).params
    assert np.log(found["A"]) == pytest.approx(wanted[0], rel=1e-8)
    assert (found["alpha_n"], found["alpha_d"]) == pytest.approx(tuple(wanted[1:]), rel=1e-8)


def test_of_one_scale_it_is_the_power_law():
    table, loss = data()
    one, other = (
        fit(form, {"n": table["n"]}, loss, resamples=0).params for form in (LogLinear("n"), "power")
    )
    assert one["alpha_n"] == pytest.approx(other["alpha"], rel=1e-6)


def test_derivatives_are_those_of_differences():
    form, rng = LogLinear("a", "b", "c"), np.random.default_rng(1)
    theta, features = rng.normal(size=(2, 4)), rng.normal(size=(5, 3))
    _, jacobian = form.jacobian(theta, features)
    for index in range(4):
        step = np.zeros(4)
        step[index] = 1e-6
        slope = form.log_prediction(theta + step, features) - form.log_prediction(theta - step, features)
        assert np.allclose(jacobian[:, index], slope / 2e-6, atol=1e-8)


def test_intervals_cover():
    inside = 0
    for seed in range(120):
        table, loss = data(seed, n=20)
        law = get_law("log-linear", inputs="n+d").fit({**table, "loss": loss}, resamples=300)
        row = law.table(0.9).loc["alpha_d"]
        inside += row["low"] <= 0.07 <= row["high"]
    low, high = stats.binom.ppf([0.001, 0.999], 120, 0.9)
    assert low <= inside <= high


def test_scales_are_named_once():
    with pytest.raises(ValueError, match="each once"):
        LogLinear("n", "n")
    with pytest.raises(ValueError, match="each once"):
        LogLinear()
