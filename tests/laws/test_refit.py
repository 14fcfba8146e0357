"""Refits in bulk against an optimizer that fits one curve at a time, and root finding against scipy."""

import numpy as np
import pytest
from scipy import optimize

from allometry import laws
from allometry.laws.refit import bracketed_roots, evaluate_each, refit

U = np.log(np.geomspace(1e6, 3.2e7, 6))
U = U - U.mean()
OFFSET = laws.get_form("power-offset")


def noisy(theta: tuple[float, float, float], sd: float, count: int, seed: int = 0) -> np.ndarray:
    clean = OFFSET.log_prediction(np.array([theta]), U[:, None])
    return clean + sd * np.random.default_rng(seed).normal(size=(count, len(U)))


@pytest.mark.parametrize("theta", [(0.6, -0.9, 0.3), (0.02, 0.1, 0.08), (0.9, -2.0, 1.3)])
def test_a_law_without_noise_is_recovered(theta):
    np.testing.assert_allclose(refit(OFFSET, U, noisy(theta, 0.0, 1))[0], theta, atol=1e-9)


def test_no_local_optimizer_finds_a_better_offset_law():
    log_y = noisy((0.3, -0.4, 0.2), 0.02, 20)
    found = refit(OFFSET, U, log_y)
    for curve, theta in zip(np.exp(log_y), found, strict=True):

        def residual(t, y=curve):
            return (t[0] + np.exp(t[1] - t[2] * U)) / y - 1

        peer = min(
            optimize.least_squares(
                residual, start, bounds=([0, -15, 1e-3], [10, 8, 2]), xtol=1e-15, ftol=1e-15, gtol=1e-15
            ).cost
            for start in ([0.3, -0.4, 0.2], [0.01, 0.0, 0.1], [0.7, -1.5, 0.8])
        )
        assert 0.5 * (residual(theta) ** 2).sum() <= peer * (1 + 1e-9)
    assert (found[:, 0] == 0).any()  # the floor's bound has been met, and kept
    assert (found[:, 0] >= 0).all()


def test_a_power_law_is_linear_regression_and_may_rise():
    log_y = np.random.default_rng(3).normal(size=(5, len(U))) + 0.3 * U
    found = refit(laws.get_form("power"), U, log_y)
    slope, intercept = np.polyfit(U, log_y.T, 1)
    np.testing.assert_allclose(found, np.stack([intercept, -slope], axis=1), atol=1e-12)


def test_another_form_agrees_with_the_careful_fit():
    form = laws.get_form("broken-power")
    u = np.linspace(-4, 4, 16)
    truth = form.to_coordinates(np.array([[0.3, 0.6, 0.1, 0.3, 1.2, 0.4]]))
    log_y = form.log_prediction(truth, u[:, None]) + 1e-4 * np.random.default_rng(0).normal(size=(3, 16))
    found = refit(form, u, log_y)
    left = ((form.log_prediction(found, u[:, None]) - log_y) ** 2).sum(axis=1)
    for curve, mine in zip(log_y, left, strict=True):
        careful = laws.fit(form, np.exp(u), np.exp(curve), loss="squared", resamples=0)
        assert mine <= 2 * careful.objective * (1 + 1e-6)


def test_rows_at_points_of_their_own_agree_with_rows_at_shared_points():
    generator = np.random.default_rng(4)
    u = generator.normal(size=100)
    for name, size in (("power", 2), ("power-offset", 3), ("broken-power", 6)):
        form = laws.get_form(name)
        theta = generator.uniform(0.1, 0.9, size=(100, size))
        shared = np.diagonal(form.log_prediction(theta, u[:, None]))
        np.testing.assert_allclose(evaluate_each(form, theta, u), shared, rtol=1e-14)


def test_roots_agree_with_brent():
    generator = np.random.default_rng(5)
    a = generator.uniform(0.1, 30, size=200)

    def function(x, rows):
        return np.expm1(a[rows] * (x - 0.1234 - 0.01 * rows)) + 0.1 * (x - 0.1234 - 0.01 * rows) ** 3

    found = bracketed_roots(function, np.full(200, -1.0), np.full(200, 3.0))
    one = [
        optimize.brentq(lambda x, i=i: float(function(np.array([x]), np.array([i]))[0]), -1, 3, xtol=1e-15)
        for i in range(0, 200, 20)
    ]
    np.testing.assert_allclose(found[::20], one, atol=1e-11)
    np.testing.assert_allclose(found, 0.1234 + 0.01 * np.arange(200), atol=1e-11)


def test_without_a_change_of_sign_the_nearer_end_comes_back():
    found = bracketed_roots(lambda x, rows: x + 1.0, np.array([0.0, -1.0]), np.array([2.0, 2.0]))
    assert found.tolist() == [0.0, -1.0]


def test_too_few_scales_and_too_many_inputs_are_refused():
    with pytest.raises(ValueError, match="3 parameters, but only 2 scales"):
        refit(OFFSET, U[:2], np.zeros((1, 2)))
    with pytest.raises(ValueError, match="inputs"):
        refit(laws.get_form("chinchilla"), U, np.zeros((1, 6)))
