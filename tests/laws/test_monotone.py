"""Falling curves: closed forms, their inverses, and agreement with SciPy."""

import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression, least_squares

from allometry.laws.monotone import fit_interpolation, fit_power, floor_upper, misfit

LOG_X = np.log(4.0) * np.arange(5) + 20.0


def offset(log_x: np.ndarray, floor: float = 0.5, alpha: float = 0.3) -> np.ndarray:
    return np.log(floor + 0.5 * np.exp(-alpha * (log_x - 20.0)))


def test_a_power_law_with_a_floor_is_recovered_exactly_and_read_backwards() -> None:
    curve = fit_power(LOG_X, offset(LOG_X)[None], np.ones((1, 5)))
    assert curve.floor[0] == pytest.approx(0.5, abs=1e-9)
    assert curve.alpha[0] == pytest.approx(0.3, abs=1e-9)
    places = np.linspace(18.0, 30.0, 7)[None]
    np.testing.assert_allclose(curve.inverse(curve.log_loss(places)), places, atol=1e-10)
    assert np.isposinf(curve.inverse(np.log([[0.49]]))).all()


def test_the_elasticity_is_minus_the_slope_on_log_axes() -> None:
    for curve in (
        fit_power(LOG_X, offset(LOG_X)[None], np.ones((1, 5))),
        fit_interpolation(LOG_X, offset(LOG_X)[None], np.ones((1, 5))),
    ):
        places = np.array([[20.7, 22.3, 24.9]])
        slope = (curve.log_loss(places + 1e-4) - curve.log_loss(places - 1e-4)) / 2e-4
        np.testing.assert_allclose(curve.elasticity(places), -slope, rtol=1e-5)


def test_the_fit_is_the_least_squares_of_log_losses_with_weights() -> None:
    generator = np.random.default_rng(0)
    log_y = offset(LOG_X) + 0.01 * generator.standard_normal((6, 5))
    weights = generator.integers(1, 6, size=(6, 5)).astype(float)
    curve = fit_power(LOG_X, log_y, weights)
    ours = (weights * (curve.log_loss(LOG_X) - log_y) ** 2).sum(axis=1)
    for row in range(6):

        def residual(theta: np.ndarray, row: int = row) -> np.ndarray:
            value = np.log(theta[0] + np.exp(theta[1] - theta[2] * (LOG_X - 22.0)))
            return np.sqrt(weights[row]) * (value - log_y[row])

        peer = least_squares(residual, [0.5, -1.0, 0.3], bounds=([0, -9, 1e-3], [9, 9, 2]), xtol=1e-14)
        assert ours[row] == pytest.approx(2 * peer.cost, rel=1e-6)


def test_rows_that_were_not_measured_everywhere_do_not_disturb_each_other() -> None:
    alone = fit_power(LOG_X[:4], offset(LOG_X[:4])[None], np.ones((1, 4)))
    log_y = np.stack([offset(LOG_X), np.where(np.arange(5) < 4, offset(LOG_X), 99.0)])
    both = fit_power(LOG_X, log_y, np.array([[1.0] * 5, [1.0] * 4 + [0.0]]))
    np.testing.assert_allclose(both.log_loss(LOG_X)[1], alone.log_loss(LOG_X)[0], atol=1e-9)


def test_a_power_law_never_rises() -> None:
    curve = fit_power(LOG_X, 0.1 * LOG_X[None], np.ones((1, 5)), offset=False)
    assert np.ptp(curve.log_loss(LOG_X)) < 1e-7


def test_interpolation_pools_violators_as_scipy_does_and_passes_through_the_means() -> None:
    generator = np.random.default_rng(1)
    log_y = -0.1 * np.arange(7) + 0.15 * generator.standard_normal((20, 7))
    weights = generator.integers(1, 6, size=(20, 7)).astype(float)
    knots = np.cumsum(generator.uniform(0.5, 2.0, 7))
    curve = fit_interpolation(knots, log_y, weights)
    for row in range(20):
        peer = isotonic_regression(log_y[row], weights=weights[row], increasing=False).x
        np.testing.assert_allclose(curve.values[row], peer, atol=1e-12)
        np.testing.assert_allclose(curve.log_loss(knots)[row], peer, atol=1e-12)


def test_the_cubic_is_that_of_pchip_and_falls() -> None:
    curve = fit_interpolation(LOG_X, offset(LOG_X)[None], np.ones((1, 5)))
    places = np.linspace(LOG_X[0], LOG_X[-1], 101)
    ours = curve.log_loss(places)[0]
    np.testing.assert_allclose(ours, PchipInterpolator(LOG_X, offset(LOG_X))(places), atol=1e-12)
    assert (np.diff(ours) < 0).all()
    np.testing.assert_allclose(curve.inverse(ours[None, 1:-1])[0], places[1:-1], atol=1e-9)
    assert np.isnan(curve.log_loss(np.array([LOG_X[0] - 0.1, LOG_X[-1] + 0.1]))).all()


def test_misfit_has_the_distribution_of_f() -> None:
    from scipy.stats import f, kstest

    generator = np.random.default_rng(2)
    runs = offset(LOG_X)[:, None] + 0.002 * generator.standard_normal((150, 5, 4))
    means, counts = runs.mean(axis=2), np.full((150, 5), 4.0)
    variance = runs.var(axis=2, ddof=1).mean(axis=1)
    fitted = fit_power(LOG_X, means, counts).log_loss(LOG_X)
    assert kstest(misfit(means, fitted, counts, variance, 3), f(2, 15).cdf).pvalue > 0.01


def test_the_floors_upper_end_covers_and_is_below_every_mean() -> None:
    generator = np.random.default_rng(3)
    runs = offset(LOG_X)[:, None] + 0.005 * generator.standard_normal((200, 5, 4))
    means, variance = runs.mean(axis=2), runs.var(axis=2, ddof=1).mean(axis=1)
    counts = np.full((200, 5), 4.0)
    curve = fit_power(LOG_X, means, counts)
    upper = floor_upper(
        curve, LOG_X, means, counts, variance, np.full(200, 1.753)
    )  # t, 15 degrees, one-sided
    assert (upper < np.exp(means.min(axis=1))).all()
    assert 0.91 < (upper >= 0.5).mean() < 0.99  # nominal 0.95, standard error 0.015
