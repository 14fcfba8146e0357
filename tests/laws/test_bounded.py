"""The bounded power law against its own equation, its limits and SciPy's root finder."""

import numpy as np
import pytest
from scipy.optimize import brentq

from allometry.laws import BoundedPowerLaw, PowerLawOffset, fit, get_form

FORM = BoundedPowerLaw()
LAWS = np.array([
    [0.05, 0.9, 3.0, 0.5, 0.8], [0.0, 0.9, 8.0, 0.3, 2.5],
    [0.2, 0.7, 0.4, 0.9, 0.2], [0.1, 2.3, 1.0, 0.1, 1.0],
])  # fmt: skip


def unbalanced(y, x, floor, guess, a, alpha, kappa):
    """By how much the law's equation fails at y."""
    return (y - floor) - a * x**-alpha * (guess - y) ** kappa


def test_it_solves_its_equation():
    x = np.geomspace(1e-2, 1e4, 9)
    told = np.exp(FORM.log_prediction(FORM.to_coordinates(LAWS), np.log(x)[:, None]))
    for law, row in zip(LAWS, told, strict=True):
        roots = [brentq(unbalanced, law[0], law[1], args=(at, *law), xtol=1e-15) for at in x]
        np.testing.assert_allclose(row, roots, rtol=1e-13)


def test_its_derivatives_are_those_of_differences():
    theta, features = FORM.to_coordinates(LAWS[[0, 2, 3]]), np.linspace(-6, 8, 7)[:, None]
    exact = FORM.jacobian(theta, features)[1]
    for i, step in enumerate(1e-6 * np.eye(5)):
        above, below = (FORM.log_prediction(theta + s, features) for s in (step, -step))
        np.testing.assert_allclose(exact[:, i], (above - below) / 2e-6, atol=2e-8)


def test_far_from_its_guess_it_is_a_power_law_with_floor():
    x = np.geomspace(1e6, 1e9, 5)
    bounded = FORM.log_prediction(FORM.to_coordinates(LAWS[:1]), np.log(x)[:, None])
    floor, guess, a, alpha, kappa = LAWS[0]
    plain = PowerLawOffset()
    theta = plain.to_coordinates(np.array([[floor, a * (guess - floor) ** kappa, alpha]]))
    # by one part in (y - E) / (E0 - E) kappa of the term, here below 1e-2
    np.testing.assert_allclose(bounded, plain.log_prediction(theta, np.log(x)[:, None]), rtol=2e-3)


@pytest.mark.parametrize("unit", [1.0, 1e-3, 50.0])
def test_units_of_the_target_do_not_matter(unit):
    x = 16 * 2.0 ** np.arange(14)
    truth = [0.06, 0.9, 40.0, 0.55, 0.7]
    y = unit * np.exp(FORM.log_prediction(FORM.to_coordinates(np.array([truth])), np.log(x)[:, None]))[0]
    found = fit("bounded-power", x, y, loss="squared", resamples=0).params
    # both sides of the equation in other units: A takes up unit^(1 - kappa)
    expected = [0.06 * unit, 0.9 * unit, 40.0 * unit ** (1 - 0.7), 0.55, 0.7]
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-5)


def test_a_known_guess_is_held():
    x = 16 * 2.0 ** np.arange(12)
    y = 0.9 / (1 + 0.02 * x**0.5)
    found = fit("bounded-power", x, y, loss="squared", bounds={"E0": (0.9, 0.9)}, resamples=0).params
    # y / (E0 - y) = 50 x^-1/2: the law with no floor and kappa one
    assert found == pytest.approx({"E": 0, "E0": 0.9, "A": 50, "alpha": 0.5, "kappa": 1}, rel=1e-4, abs=1e-4)


def test_it_has_a_name():
    assert get_form("bounded-power").names == ("E", "E0", "A", "alpha", "kappa")
