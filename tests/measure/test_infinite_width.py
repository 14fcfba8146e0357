"""Infinite width against the paper's recursion at known points, quadrature, sampled networks and symmetry."""

import math

import numpy as np
import pytest
import torch

from allometry.measure import (
    Architecture,
    TangentNetwork,
    analytic_kernels,
    dual_activation,
    empirical_kernel,
)
from allometry.measure.dual_activation import gauss_hermite


def circle(*angles):
    angle = torch.tensor(angles, dtype=torch.float64)
    return torch.stack([angle.cos(), angle.sin()], 1)


def test_the_reference_values_of_four_layers_on_the_circle():
    found = analytic_kernels(circle(0.0), circle(0.0, 0.75, 1.5, 2.25, 3.0), Architecture(4)).ntk
    wanted = torch.tensor([[0.2825, 0.1748, 0.0973, 0.0676, 0.0642]], dtype=torch.float64)
    assert torch.allclose(found, wanted, rtol=0, atol=5e-5)


def test_depth_one_is_the_inputs_covariance():
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    found = analytic_kernels(x, None, Architecture(1, bias_std=0.5))
    exact = x.double() @ x.double().T / 3 + 0.25
    assert torch.allclose(found.ntk, exact, rtol=1e-14)
    assert torch.allclose(found.nngp, exact, rtol=1e-14)


@pytest.mark.parametrize(("name", "room"), [("relu", 2e-3), ("leaky_relu", 2e-3), ("erf", 1e-10)])
def test_closed_forms_are_the_quadrature_s(name, room):
    exact = dual_activation(name, slope=0.3)
    generator = torch.Generator().manual_seed(1)
    own, other = (0.2 + torch.rand(50, dtype=torch.float64, generator=generator) for _ in range(2))
    cosine = 1.98 * torch.rand(50, dtype=torch.float64, generator=generator) - 0.99
    covariance = cosine * (own * other).sqrt()
    by_nodes = gauss_hermite(exact.activation, 60)
    ours, theirs = exact.pair(own, other, covariance), by_nodes.pair(own, other, covariance)
    assert float((ours[0] - theirs[0]).abs().max()) < room
    # The derivative jumps, so 60 nodes only tell it to about their spacing.
    assert float((ours[1] - theirs[1]).abs().max()) < (0.06 if room > 1e-6 else 1e-8)
    same, same_by_nodes = exact.same(own), by_nodes.same(own)
    assert float((same[0] - same_by_nodes[0]).abs().max()) < room
    assert float((same[1] - same_by_nodes[1]).abs().max()) < max(room, 1e-8)


@pytest.mark.parametrize("name", ["relu", "erf", "leaky_relu", "tanh", "identity"])
def test_a_pair_s_limit_is_the_sample_with_itself(name):
    found = dual_activation(name)
    k = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)
    for near, exact in zip(found.pair(k, k, k * (1 - 1e-14)), found.same(k), strict=True):
        assert torch.allclose(near, exact, atol=1e-6)


def test_the_paper_s_relu_expectation_by_random_draws():
    """E[σσ] has 1/(2π) and no factor two."""
    draws = np.random.default_rng(0).multivariate_normal([0, 0], [[1, 0.4], [0.4, 2]], 400_000)
    sampled = np.maximum(draws, 0).prod(1)
    one = torch.ones((), dtype=torch.float64)
    exact = float(dual_activation("relu").pair(one, 2 * one, 0.4 * one)[0])
    assert abs(sampled.mean() - exact) < 4 * sampled.std() / math.sqrt(len(sampled))


STACKS = {
    "relu": (Architecture(4), (4,)),
    "erf": (Architecture(3, "erf", weight_std=1.3, bias_std=0.4), (4,)),
    "gelu": (Architecture(3, "gelu", readout_bias=False), (4,)),
    "residual": (Architecture(4, "relu", residual=True), (4,)),
    "convolution, flat": (Architecture(3, "relu", kernel_size=3, weight_std=1.5), (2, 5, 4)),
    "convolution, pooled": (Architecture(4, "erf", kernel_size=3, pooling="average"), (2, 4, 5)),
    "convolution, pooled, residual": (
        Architecture(4, "relu", kernel_size=3, pooling="average", residual=True), (2, 6),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", STACKS)
def test_wide_networks_have_these_kernels(kind):
    """Means over networks, within five standard errors of their spread and 2 % for the finite width."""
    architecture, shape = STACKS[kind]
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    exact = analytic_kernels(x, None, architecture)
    width, draws = (256, 24) if architecture.kernel_size is None else (96, 24)
    tangent, outputs = [], []
    for seed in range(draws):
        generator = torch.Generator().manual_seed(seed)
        network = TangentNetwork(architecture, shape, 8, width, generator)
        tangent.append(empirical_kernel(network, x, reduce="trace"))
        with torch.no_grad():
            found = network(x).double()
        outputs.append(found @ found.T / 8)
    for sampled, told in ((tangent, exact.ntk), (outputs, exact.nngp)):
        values = torch.stack(sampled)
        error = values.std(0) / math.sqrt(draws)
        assert bool(((values.mean(0) - told).abs() < 5 * error + 0.02 * told.abs().max()).all())
    assert float(torch.stack(tangent).std(0).max()) < 0.3 * float(exact.ntk.max())  # so the test has teeth


@pytest.mark.parametrize("kind", STACKS)
def test_halves_and_blocks_agree_with_all_pairs(kind):
    architecture, shape = STACKS[kind]
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    half, whole = analytic_kernels(x, None, architecture), analytic_kernels(x, x, architecture)
    for a, b in zip(half, whole, strict=True):
        assert torch.allclose(a, b, rtol=1e-7)  # arccos near 1 costs half of the digits where x is told twice
        assert torch.equal(a, a.mT)
        values = torch.linalg.eigvalsh(a)
        assert values[0] >= -1e-10 * values[-1]
        off = ~torch.eye(4, dtype=torch.bool)
        assert torch.allclose(a[off], b[off], rtol=1e-13)


def test_a_one_by_one_convolution_over_one_place_is_dense():
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    dense = analytic_kernels(x, None, Architecture(3))
    for pooling in ("flatten", "average"):
        found = analytic_kernels(x[:, :, None], None, Architecture(3, kernel_size=1, pooling=pooling))
        assert torch.allclose(found.ntk, dense.ntk, rtol=1e-13)
    wider = analytic_kernels(x[:, :, None], None, Architecture(3, kernel_size=3, weight_std=3**0.5))
    assert not torch.allclose(wider.ntk, dense.ntk, rtol=0.05)  # padding counts in the mean


def test_the_kernel_is_positive_definite_on_the_sphere_with_a_bias():
    x = circle(*np.linspace(0, 6, 12))
    assert float(torch.linalg.eigvalsh(analytic_kernels(x, None, Architecture(2)).ntk)[0]) > 1e-4


def test_what_makes_no_kernel_is_refused():
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        Architecture(3, kernel_size=2)
    with pytest.raises(ValueError, match="depth counts weight layers"):
        Architecture(0)
    with pytest.raises(ValueError, match="activations are relu"):
        Architecture(2, "swish")
    with pytest.raises(ValueError, match=r"\(samples, features\)"):
        analytic_kernels(torch.ones(2, 3, 4))
    with pytest.raises(ValueError, match="not finite"):
        analytic_kernels(torch.tensor([[math.nan]]))
    with pytest.raises(ValueError, match="differ in shape"):
        analytic_kernels(torch.ones(2, 3), torch.ones(2, 4))
