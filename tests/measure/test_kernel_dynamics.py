"""Closed-form training against networks that are linear, SciPy's integrator, and kernel ridge regression."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from sklearn.kernel_ridge import KernelRidge
from torch import nn

from allometry.measure import (
    Architecture,
    KernelDynamics,
    TangentNetwork,
    analytic_kernels,
    empirical_kernel,
    follow_training,
    kernel_drift,
    linearize,
)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def example(n=12, m=5, k=2):
    x, z = drawn(n, 4), drawn(m, 4, seed=1)
    kernels = analytic_kernels(x), analytic_kernels(z, x), analytic_kernels(z)
    return kernels, drawn(n, k, seed=2)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_the_flow_is_the_differential_equation_s(ridge):
    (own, cross, _), y = example()
    start, start_other = drawn(12, 2, seed=3), drawn(5, 2, seed=4)
    dynamics = KernelDynamics(own.ntk, y, initial=start, learning_rate=0.7, ridge=ridge)
    k, c, target = (one.numpy() for one in (own.ntk, cross.ntk, y))

    def slope(_, state):
        f, a = state[:24].reshape(12, 2), state[24:].reshape(12, 2)
        # f = f0 + K a: the parameters' displacement, which a ridge pulls back, is that of a.
        pull = -(0.7 / 12) * ((f - target) + ridge * a)
        return np.concatenate([(k @ pull).ravel(), pull.ravel()])

    begin = np.concatenate([start.numpy().ravel(), np.zeros(24)])
    done = solve_ivp(slope, (0, 9.0), begin, rtol=1e-10, atol=1e-12).y[:, -1]
    assert np.abs(dynamics.predict(9.0).numpy().ravel() - done[:24]).max() < 1e-7
    other = start_other.numpy() + c @ done[24:].reshape(12, 2)
    assert np.abs(dynamics.predict(9.0, cross.ntk, initial=start_other).numpy() - other).max() < 1e-7


def test_the_end_is_kernel_ridge_regression():
    (own, cross, _), y = example()
    for ridge in (1e-10, 0.2):
        peer = KernelRidge(alpha=ridge, kernel="precomputed").fit(own.ntk.numpy(), y.numpy())
        ours = KernelDynamics(own.ntk, y, ridge=ridge).predict(kernel=cross.ntk)
        assert np.abs(ours.numpy() - peer.predict(cross.ntk.numpy())).max() < 1e-7
    assert torch.allclose(KernelDynamics(own.ntk, y).predict(), y, rtol=0, atol=1e-8)


def test_gradient_descent_on_a_linear_network_is_followed_step_by_step():
    torch.manual_seed(0)
    model, x, y = nn.Linear(6, 2).double(), drawn(9, 6), drawn(9, 2, seed=2)
    found = follow_training(model, x, y, steps=[0, 1, 2, 5, 40])
    assert np.abs(found["loss"] - found["predicted"]).max() < 1e-14
    assert found["distance"].max() < 1e-13
    assert found["change"].max() == 0
    assert found["loss"].is_monotonic_decreasing


def test_the_linearised_network_follows_its_first_kernel_and_the_network_does_not_quite():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 2)).double()
    x, y = drawn(8, 3), 2 * drawn(8, 2, seed=2)
    line = linearize(model)
    assert torch.allclose(line(x), model(x), rtol=1e-14)
    assert torch.allclose(empirical_kernel(line, x), empirical_kernel(model, x), rtol=1e-12)
    table = follow_training(line, x, y, steps=[0, 50, 300])
    assert table["distance"].max() < 1e-10
    real = follow_training(model, x, y, steps=[0, 50, 300])
    assert real["distance"].iloc[-1] > 1e-3
    assert real["change"].iloc[-1] > 1e-2


def test_linearise_agrees_with_the_network_to_first_order():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double(), drawn(4, 3)
    start = {name: one.detach().clone() for name, one in model.named_parameters()}
    errors = []
    for size in (1e-2, 1e-3):
        with torch.no_grad():
            for index, (name, one) in enumerate(model.named_parameters()):
                one.copy_(start[name] + size * drawn(*one.shape, seed=index))
        errors.append(float((linearize(model, start)(x) - model(x)).detach().abs().max()))
    assert errors[1] / errors[0] == pytest.approx(1e-2, rel=0.1)  # the error is of second order


def test_steps_of_the_limit_of_stability():
    (own, _, _), y = example()
    dynamics = KernelDynamics(own.ntk, y)
    largest = float(torch.linalg.eigvalsh(own.ntk)[-1])
    assert dynamics.largest_rate == pytest.approx(24 / largest)
    dynamics.learning_rate = 0.99 * dynamics.largest_rate
    assert float(dynamics.loss([3000], steps=True)) < float(dynamics.loss([0], steps=True))
    dynamics.learning_rate = 1.01 * dynamics.largest_rate
    with pytest.raises(ValueError, match="diverge: it must be below largest_rate"):
        dynamics.predict(3, steps=True)
    dynamics.learning_rate = 1e-4 * dynamics.largest_rate  # small steps are the flow
    assert torch.allclose(dynamics.predict(5000, steps=True), dynamics.predict(5000), atol=1e-4)


def test_an_eigenvector_decays_along_a_line():
    (own, _, _), _ = example()
    dynamics = KernelDynamics(own.ntk, torch.zeros(12), initial=torch.linalg.eigh(own.ntk)[1][:, -2])
    times = torch.tensor([0.0, 3.0, 10.0])
    found = dynamics.predict(times)[..., 0]
    rate = float(dynamics.eigenvalues[1]) / 12
    assert torch.allclose(found, found[0] * torch.exp(-rate * times)[:, None].double(), atol=1e-12)


def test_kernels_output_by_output_are_one_kernel_where_outputs_share_it():
    (own, cross, _), y = example()
    shared = torch.einsum("nm,kl->nmkl", own.ntk, torch.eye(2, dtype=torch.float64))
    across = torch.einsum("nm,kl->nmkl", cross.ntk, torch.eye(2, dtype=torch.float64))
    full, one = KernelDynamics(shared, y), KernelDynamics(own.ntk, y)
    assert torch.allclose(full.predict(3.0), one.predict(3.0), atol=1e-12)
    assert torch.allclose(full.predict(3.0, across), one.predict(3.0, cross.ntk), atol=1e-12)


def test_the_spread_is_that_of_networks_and_of_the_gaussian_posterior():
    (own, cross, other), y = example(k=1)
    dynamics = KernelDynamics(own.ntk, y)
    told = dynamics.spread(math.inf, cross.ntk, nngp=own.nngp, nngp_cross=cross.nngp, nngp_other=other.nngp)
    assert torch.allclose(told.mean, dynamics.predict(kernel=cross.ntk))
    # With only the readout trained, Θ = Σ and the spread is the posterior of a Gaussian process.
    readout = KernelDynamics(own.nngp, y)
    found = readout.spread(math.inf, cross.nngp, nngp=own.nngp, nngp_cross=cross.nngp, nngp_other=other.nngp)
    exact = other.nngp - cross.nngp @ torch.linalg.solve(own.nngp, cross.nngp.mT)
    assert torch.allclose(found.covariance, exact, atol=1e-10)
    on_data = dynamics.spread(math.inf, own.ntk, nngp=own.nngp, nngp_cross=own.nngp, nngp_other=own.nngp)
    assert float(on_data.covariance.abs().max()) < 1e-10
    before = dynamics.spread(0.0, cross.ntk, nngp=own.nngp, nngp_cross=cross.nngp, nngp_other=other.nngp)
    assert torch.equal(before.covariance, other.nngp)


def test_training_the_readout_alone_is_nngp_regression_when_wide():
    architecture = Architecture(3)
    x, z, y = drawn(10, 4).float(), drawn(4, 4, seed=1).float(), drawn(10, 1, seed=2)
    exact = KernelDynamics(analytic_kernels(x).nngp, y, ridge=1e-3).predict(
        kernel=analytic_kernels(z, x).nngp
    )
    found = []
    for seed in range(8):
        network = TangentNetwork(architecture, (4,), 1, 2048, torch.Generator().manual_seed(seed))
        own, cross = (
            empirical_kernel(network, x, params="layers.2.*", reduce="trace"),
            empirical_kernel(network, z, x, params="layers.2.*", reduce="trace"),
        )
        found.append(KernelDynamics(own, y, ridge=1e-3).predict(kernel=cross))
    values = torch.stack(found)
    error = values.std(0) / math.sqrt(8)
    assert bool(((values.mean(0) - exact).abs() < 5 * error + 0.02).all())


def test_duplicates_and_what_is_refused():
    (own, _, _), y = example()
    twice = torch.cat([torch.arange(12), torch.tensor([0])])
    dynamics = KernelDynamics(own.ntk[twice][:, twice], torch.cat([y, -y[:1]]))
    assert dynamics.rank == 12
    assert torch.allclose(
        dynamics.predict()[0], torch.zeros(2).double(), atol=1e-6
    )  # the mean of two targets
    with pytest.raises(ValueError, match="is symmetric"):
        KernelDynamics(own.ntk + torch.triu(own.ntk), y)
    with pytest.raises(ValueError, match="negative eigenvalues"):
        KernelDynamics(own.ntk - own.ntk.diagonal().mean() * torch.eye(12), y)
    with pytest.raises(ValueError, match="not finite"):
        KernelDynamics(own.ntk, y * math.nan)
    with pytest.raises(ValueError, match="times are 0 or more"):
        KernelDynamics(own.ntk, y).predict(-1.0)
    with pytest.raises(ValueError, match=r"\(M, 12\)"):
        KernelDynamics(own.ntk, y).predict(1.0, own.ntk[:, :3])


def test_drift_of_a_kernel_that_only_grows():
    (own, _, _), y = example(k=1)
    drift = kernel_drift(own.ntk, 1.5 * own.ntk, y)
    assert drift.change == pytest.approx(0.5)
    assert drift.similarity == pytest.approx(1.0)
    assert drift.target_before == pytest.approx(drift.target_after)
    assert kernel_drift(own.ntk, y @ y.mT, y).target_after == pytest.approx(1.0)


def test_a_number_of_steps_stands_for_places_up_to_it():
    model, x = nn.Linear(3, 1), torch.eye(3)
    found = follow_training(model, x, torch.ones(3), steps=100)
    assert found["step"].tolist()[:3] == [0, 1, 2]
    assert found["step"].iloc[-1] == 100
    assert follow_training(model, x, torch.ones(3), steps=1)["step"].tolist() == [0, 1]
    with pytest.raises(ValueError, match="steps increase, from 0 or more; got \\[-3\\]"):
        follow_training(model, x, torch.ones(3), steps=-3)
