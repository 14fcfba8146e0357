"""Many curves at once against SciPy's one at a time."""

import numpy as np
import pytest
from scipy.optimize import curve_fit
from scipy.stats import linregress

from allometry.laws import fit_curves

M = 16 * np.sqrt(2.0) ** np.arange(18)


@pytest.fixture(scope="module")
def curves():
    generator = np.random.default_rng(0)
    alpha, floor = generator.uniform(0.1, 0.9, 30), generator.uniform(0, 0.3, 30)
    y = (floor[:, None] + M ** -alpha[:, None]) * np.exp(0.03 * generator.standard_normal((30, 18)))
    y[generator.random(y.shape) < 0.2] = np.nan
    return y


def test_lines_are_those_of_linregress(curves):
    found = fit_curves(M, curves)
    for i, row in enumerate(curves):
        kept = ~np.isnan(row)
        line = linregress(np.log(M[kept]), np.log(row[kept]))
        assert found.alpha[i] == pytest.approx(-line.slope, abs=1e-12)
        assert np.log(found.coefficient[i]) == pytest.approx(line.intercept, abs=1e-11)
        assert found.alpha_error[i] == pytest.approx(line.stderr, rel=1e-9)
        assert found.r_squared[i] == pytest.approx(line.rvalue**2, abs=1e-12)
        assert found.points[i] == kept.sum()


def test_floors_are_those_of_curve_fit(curves):
    found = fit_curves(M, curves, form="power-offset")
    errors = []
    for i, row in enumerate(curves):
        kept = ~np.isnan(row)
        x, y = M[kept], row[kept]
        best, covariance = curve_fit(
            lambda m, e, a, alpha: e + a * m**-alpha, x, y, p0=(y.min() / 2, 1.0, 0.4), sigma=y,
            bounds=([0, 0, 1e-3], [np.inf, np.inf, 2]), xtol=1e-13, ftol=1e-13, gtol=1e-13, max_nfev=20_000,
        )  # fmt: skip
        ours, theirs = (
            np.sum((1 - (p[0] + p[1] * x ** -p[2]) / y) ** 2)
            for p in ((found.floor[i], found.coefficient[i], found.alpha[i]), best)
        )
        assert ours <= theirs * (1 + 1e-9)
        if best[0] > 1e-3:
            assert found.alpha[i] == pytest.approx(best[2], abs=1e-5)
            errors.append(found.alpha_error[i] / np.sqrt(covariance[2, 2]))
    # standard errors of log and of relative residuals differ by the noise, three per cent
    np.testing.assert_allclose(errors, 1.0, atol=0.08)


def test_weights_count_points():
    y = (0.1 + M**-0.4) * np.exp(0.05 * np.random.default_rng(1).standard_normal((4, 18)))
    weights = np.ones(18)
    weights[3:6] = 2.0
    twice = np.concatenate([np.arange(18), [3, 4, 5]])
    for form in ("power", "power-offset"):
        weighted = fit_curves(M, y, form=form, weights=weights)
        repeated = fit_curves(M[twice], y[:, twice], form=form)
        np.testing.assert_allclose(weighted.alpha, repeated.alpha, rtol=1e-7)
        np.testing.assert_allclose(weighted.floor, repeated.floor, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("form", ["power", "power-offset"])
def test_curves_without_noise_come_back_exactly(form):
    alpha, floor = np.array([0.2, 0.5, 1.3]), np.array([0.0, 0.05, 0.2]) * (form == "power-offset")
    found = fit_curves(M, floor[:, None] + 3 * M ** -alpha[:, None], form=form)
    np.testing.assert_allclose(found.alpha, alpha, rtol=1e-6)
    np.testing.assert_allclose(found.coefficient, 3.0, rtol=1e-5)
    np.testing.assert_allclose(found.floor, floor, atol=1e-7)


def test_a_curve_with_too_few_points_is_not_a_number_and_stops_no_other():
    y = np.full((2, 18), np.nan)
    y[0, 4], y[1] = 0.5, M**-0.3
    for form in ("power", "power-offset"):
        found = fit_curves(M, y, form=form)
        assert np.isnan([found.alpha[0], found.floor[0], found.alpha_error[0], found.r_squared[0]]).all()
        assert found.alpha[1] == pytest.approx(0.3, abs=1e-6)
        assert list(found.table["points"]) == [1, 18]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((M, np.ones(18)), "shape"),
        ((M[:5], np.ones((2, 18))), "to match the errors"),
        ((M, np.zeros((2, 18))), "errors must be positive; curve 0 has 0.0"),
        ((-M, np.ones((2, 18))), "sizes must be positive"),
    ],
)
def test_what_is_no_curve_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        fit_curves(*arguments)
