"""scikit-learn's own suite, kernel ridge regression, and real data."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, load_digits
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from allometry.measure import Architecture, NTKClassifier, NTKRegressor, analytic_kernels


@parametrize_with_checks([NTKRegressor(), NTKClassifier()])
def test_scikit_learn_s_suite(estimator, check):
    check(estimator)


@pytest.mark.parametrize("kernel", ["ntk", "nngp"])
def test_regression_is_kernel_ridge_regression_of_centred_targets(kernel):
    x, y = load_diabetes(return_X_y=True, scaled=True)
    x, y = 20 * x[:120], y[:120]
    ours = NTKRegressor(kernel=kernel, ridge=1e-2).fit(x[:80], y[:80]).predict(x[80:])
    own, cross = (
        getattr(analytic_kernels(torch.as_tensor(x[:80]), None, Architecture()), kernel).numpy(),
        getattr(
            analytic_kernels(torch.as_tensor(x[80:]), torch.as_tensor(x[:80]), Architecture()), kernel
        ).numpy(),
    )
    alpha = 1e-2 * own.diagonal().mean()
    peer = KernelRidge(alpha=alpha, kernel="precomputed").fit(own, y[:80] - y[:80].mean())
    assert np.allclose(ours, peer.predict(cross) + y[:80].mean(), rtol=1e-8)


def test_digits_are_told_apart_and_stopping_early_is_a_ridge():
    digits = load_digits()
    x, y = digits.data[:600] / 16, digits.target[:600]
    ours = cross_val_score(NTKClassifier(), x, y, cv=3).mean()
    assert ours > cross_val_score(RidgeClassifier(), x, y, cv=3).mean() + 0.02
    end = NTKClassifier().fit(x[:100], y[:100])
    late = NTKClassifier(time=1e9).fit(x[:100], y[:100]).decision_function(x[100:110])
    early = NTKClassifier(time=0.1).fit(x[:100], y[:100]).decision_function(x[100:110])
    told = end.decision_function(x[100:110])
    assert np.allclose(late, told, atol=1e-8)
    offset = end.offset_.numpy()
    assert np.abs(early - offset).max() < np.abs(told - offset).max() / 2


def test_parameters_can_be_searched():
    x = np.random.default_rng(0).normal(size=(40, 3))
    search = GridSearchCV(NTKRegressor(), {"depth": [1, 3], "activation": ["relu", "erf"]}, cv=2)
    assert search.fit(x, np.abs(x[:, 0])).best_params_["depth"] == 3


@pytest.mark.parametrize("given", [{"ridge": -1}, {"time": 0}, {"kernel": "rbf"}, {"depth": 0}])
def test_values_that_make_no_kernel_are_named(given):
    x = np.eye(3)
    with pytest.raises(ValueError, match=rf"{next(iter(given))}.*got {next(iter(given.values()))!r}$"):
        NTKRegressor(**given).fit(x, x[0])
