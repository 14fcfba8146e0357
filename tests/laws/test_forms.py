"""Law forms: derivatives against central differences, units, published limits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allometry import laws
from allometry.laws.forms import nonnegative_least_squares
from allometry.laws.repetition import DataConstrained

RNG = np.random.default_rng(3)
EXAMPLES = {
    "power": [0.3, 0.4],
    "power-offset": [0.7, 0.3, 0.4],
    "chinchilla": [0.8, -0.9, -1.4, 0.45, 0.3],
    "kaplan": [3.0, -1.0, 0.2, 0.3],
    "kaplan-offset": [0.7, 3.0, -1.0, 0.2, 0.3],
    "broken-power": [0.4, 0.2, 0.3, 0.25, 0.4, -0.5],
    "data-constrained": [0.8, -0.9, -1.4, 0.45, 0.3, 1.2, 2.0],
}


def design(form: laws.Form, points: int = 9) -> np.ndarray:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(points, len(form.inputs)))
    if "unique_tokens" in form.inputs:  # some points repeat their data up to eight times
        features[:, 2] = features[:, 1] - np.abs(rng.normal(size=points))
    return features


@pytest.mark.parametrize("name", EXAMPLES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_jacobian_and_curvature_are_those_of_central_differences(name, data):
    form = laws.get_form(name)
    wiggle = data.draw(st.lists(st.floats(-0.1, 0.1), min_size=len(form.names), max_size=len(form.names)))
    theta = np.array([EXAMPLES[name]]) + np.array(wiggle)
    features = design(form)
    prediction, jacobian = form.jacobian(theta, features)
    np.testing.assert_allclose(prediction, form.log_prediction(theta, features), rtol=1e-12, atol=1e-14)
    cotangent = np.random.default_rng(4).normal(size=(1, len(features)))
    curvature = form.curvature(theta, features, cotangent)[0]
    for i in range(len(form.names)):
        step = np.zeros(len(form.names))
        step[i] = 1e-6
        above, below = form.jacobian(theta + step, features), form.jacobian(theta - step, features)
        np.testing.assert_allclose(jacobian[0, i], (above[0] - below[0])[0] / 2e-6, rtol=1e-6, atol=1e-8)
        second = ((above[1] - below[1])[0] @ cotangent[0]) / 2e-6
        np.testing.assert_allclose(curvature[i], second, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", EXAMPLES)
def test_units_leave_predictions_as_they_are(name):
    form = laws.get_form(name)
    theta, features = np.array(EXAMPLES[name]), design(form)
    shift = np.array([2.0, -1.0, -1.0])[: len(form.inputs)]
    target = 0.7 if form.scales_target else 0.0
    matrix, offset = form.units(shift, target)
    moved = form.log_prediction((matrix @ theta + offset)[None], features + shift)
    np.testing.assert_allclose(
        moved, form.log_prediction(theta[None], features) + target, rtol=1e-12, atol=1e-12
    )


def test_kaplan_is_the_published_equation():
    # Kaplan et al. 2020, table 2: alpha_N 0.076, alpha_D 0.103, Nc 6.4e13, Dc 1.8e13
    form = laws.Kaplan()
    theta = form.to_coordinates(np.array([[6.4e13, 1.8e13, 0.076, 0.103]]))
    n, d = 1e9, 2e10
    expected = ((6.4e13 / n) ** (0.076 / 0.103) + 1.8e13 / d) ** 0.103
    assert np.exp(form.log_prediction(theta, form.features([[n, d]])))[0, 0] == pytest.approx(
        expected, rel=1e-12
    )


def test_broken_power_law_has_its_two_slopes_far_from_the_break():
    form = laws.BrokenPowerLaw()
    theta = form.to_coordinates(np.array([[0.0, 2.0, 0.2, 0.3, 1e6, 0.5]]))
    x = np.array([1e0, 1e1, 1e11, 1e12])
    slopes = np.diff(form.log_prediction(theta, form.features(x))[0]) / np.log(10)
    assert slopes[0] == pytest.approx(-0.2, abs=1e-4)
    assert slopes[2] == pytest.approx(-0.5, abs=1e-4)


def test_data_seen_once_is_the_chinchilla_law():
    values = np.array([[1.7, 480.0, 2085.0, 0.348, 0.366]])
    plain, repeated = laws.Chinchilla(), DataConstrained()
    theta = repeated.to_coordinates(np.concatenate([values, [[5.3, 15.4]]], axis=1))
    tokens = np.array([1e10, 1e11])
    small = {
        "params": np.array([1e8, 2e8]),
        "tokens": tokens,
    }  # fewer than the optimum for so many unique tokens
    np.testing.assert_allclose(
        repeated.log_prediction(theta, repeated.features(small | {"unique_tokens": tokens})),
        plain.log_prediction(plain.to_coordinates(values), plain.features(small)),
        rtol=1e-12,
    )


def test_repeated_tokens_saturate_at_the_half_life():
    form = DataConstrained()
    theta = form.to_coordinates(
        np.array([[0.0, 1e-6, 1.0, 0.3, 1.0, 5.0, 15.0]])
    )  # loss = 1 / effective tokens
    unique = 1e9
    x = {"params": [1e3] * 3, "tokens": [unique, 4 * unique, 1e6 * unique], "unique_tokens": [unique] * 3}
    effective = 1 / (np.exp(form.log_prediction(theta, form.features(x))[0]) - 1e-6 * 1e3**-0.3) / unique
    assert effective[0] == pytest.approx(1.0, rel=1e-6)
    assert effective[1] == pytest.approx(1 + 15 * (1 - np.exp(-3 / 15)), rel=1e-6)
    assert effective[2] == pytest.approx(16.0, rel=1e-6)


def test_nonnegative_least_squares_agrees_with_scipy():
    from scipy.optimize import nnls

    basis = RNG.normal(size=(4, 12, 3)) + 0.5
    y, weights = np.exp(RNG.normal(size=(2, 12))), RNG.uniform(0.5, 2, size=(2, 12))
    ours = nonnegative_least_squares(basis, np.log(y), weights)
    for c in range(2):
        for g in range(4):
            root = np.sqrt(weights[c])
            theirs = nnls(basis[g] / y[c][:, None] * root[:, None], root)[0]
            np.testing.assert_allclose(ours[c, g], theirs, rtol=1e-7, atol=1e-9)


def test_columns_are_found_by_their_usual_names_and_refused_otherwise():
    form = laws.Chinchilla()
    np.testing.assert_array_equal(form.features({"D": [2.0], "N": [1.0]}), form.features([[1.0, 2.0]]))
    with pytest.raises(ValueError, match="needs a column 'tokens'"):
        form.features({"params": [1.0], "steps": [2.0]})
    with pytest.raises(ValueError, match=r"params is 0.0 in row 1"):
        form.features({"params": [1.0, 0.0], "tokens": [1.0, 1.0]})
    with pytest.raises(ValueError, match="unknown law form"):
        laws.get_form("quadratic")
