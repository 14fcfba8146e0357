"""Facts about HiPPO's matrices and the layers made of them, against closed forms and SciPy."""

import math

import numpy as np
import pytest
import torch

from allometry.models import S4D, S5, SSMClassifier, discretize, hippo, vandermonde
from allometry.models.ssm import _fast

scipy_signal = pytest.importorskip("scipy.signal")
linalg = pytest.importorskip("scipy.linalg")
special = pytest.importorskip("scipy.special")


def test_the_kernels_of_legs_are_legendre_polynomials_of_a_warped_past():
    matrix, inputs, _ = (one.numpy() for one in hippo.hippo_legs(8))
    for t in (0.05, 0.5, 1.7, 4.0):
        found = linalg.expm(t * matrix) @ inputs
        k = np.arange(8)
        exact = np.sqrt(2 * k + 1) * math.exp(-t) * special.eval_legendre(k, 2 * math.exp(-t) - 1)
        assert np.abs(found - exact).max() < 1e-10


def test_the_closed_response_is_that_of_the_dense_system():
    matrix, inputs, _ = hippo.hippo_legs(12)
    omega = torch.tensor([0.0, 0.3, 2.0, 50.0], dtype=torch.float64)
    exact = hippo.legs_transfer(12, omega)
    for w, row in zip(omega, exact, strict=True):
        eye = torch.eye(12, dtype=torch.complex128)
        dense = torch.linalg.solve(1j * w * eye - matrix, inputs.to(torch.complex128))
        assert torch.allclose(dense, row, atol=1e-12)


def test_the_normal_part_is_half_a_unit_from_skew_and_has_the_published_spectrum():
    matrix, _, p = hippo.hippo_legs(64)
    normal = matrix + torch.outer(p, p)
    assert torch.allclose(normal + normal.T, -torch.eye(64, dtype=torch.float64), atol=1e-9)
    values = torch.linalg.eigvals(normal)
    assert (values.real + 0.5).abs().max() < 1e-9
    assert torch.allclose(values.imag[values.imag > 0].sort().values, hippo.legs(64).poles.imag.sort().values)
    assert hippo.legs(16).poles.imag.max().item() == pytest.approx(81.0, abs=0.05)
    assert hippo.legs(64).poles.imag.max().item() == pytest.approx(1303, abs=1)


def test_dropping_the_low_rank_part_is_the_sherman_morrison_identity():
    """G = C R B / (1 + pᵀ R p): the whole difference between HiPPO and its normal part."""
    n, omega = 32, torch.tensor([0.5, 3.0, 40.0], dtype=torch.float64)
    matrix, inputs, p = hippo.hippo_legs(n)
    normal = (matrix + torch.outer(p, p)).to(torch.complex128)
    for w, exact in zip(omega, hippo.legs_transfer(n, omega), strict=True):
        resolvent = torch.linalg.inv(1j * w * torch.eye(n, dtype=torch.complex128) - normal)
        x = p.to(resolvent.dtype) @ resolvent @ p.to(resolvent.dtype)
        assert torch.allclose(resolvent @ inputs.to(resolvent.dtype) / (1 + x), exact, atol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 127, 1000, 40_000])
def test_the_chunked_kernel_and_its_gradient_are_those_of_the_direct_sum(length):
    generator = torch.Generator().manual_seed(1)
    logs = torch.complex(-torch.rand(3, 5, generator=generator, dtype=torch.float64) / 50,
                         torch.rand(3, 5, generator=generator, dtype=torch.float64) * 3)  # fmt: skip
    weights = torch.randn(3, 5, generator=generator, dtype=torch.complex128)
    pull = torch.randn(3, length, generator=generator, dtype=torch.float64)
    told = []
    for direct in (True, False):
        z, w = logs.clone().requires_grad_(), weights.clone().requires_grad_()
        kernel = ((w[..., None] * torch.exp(z[..., None] * torch.arange(length))).sum(1).real if direct
                  else vandermonde(z, w, length))  # fmt: skip
        (kernel * pull).sum().backward()
        told.append((kernel.detach(), z.grad, w.grad))
    for one, two in zip(*told, strict=True):
        assert torch.allclose(one, two, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["zoh", "bilinear"])
def test_kernels_are_scipys_impulse_responses(method):
    poles = torch.tensor([[-0.3 + 2j, -0.5 + 7j]], dtype=torch.complex128)
    b, c = (torch.tensor([[1 - 1j, 0.5 + 2j]], dtype=torch.complex128), torch.tensor([[0.3 + 1j, 2 - 1j]]))
    log, inputs = discretize(poles, b, torch.tensor(0.05, dtype=torch.float64), method)
    kernel = vandermonde(log, 2 * c * inputs, 40)[0].numpy()
    pole, b, c = (one[0].numpy() for one in (poles, b, c))
    dense = np.block([[np.diag(pole.real), np.diag(-pole.imag)], [np.diag(pole.imag), np.diag(pole.real)]])
    system = (dense, np.r_[b.real, b.imag][:, None], 2 * np.r_[c.real, -c.imag][None], np.zeros((1, 1)))
    a, driven, read, through, _ = scipy_signal.cont2discrete(system, 0.05, method=method)
    _, (answer,) = scipy_signal.dimpulse((a, driven, read, through, 0.05), n=42)
    if method == "zoh":  # SciPy's output waits a sample for the state; ours does not
        assert np.abs(answer[1:41, 0] - kernel).max() < 1e-12
    else:  # SciPy's trapezoid averages two samples of the input: its answer is that mean of ours
        assert np.abs(answer[1:40, 0] - (kernel[1:] + kernel[:-1]) / 2).max() < 1e-12


def test_one_real_pole_has_the_kernel_of_a_leaky_sum():
    one = torch.ones(1, 1, dtype=torch.complex128)
    log, b = discretize(-one, one, torch.tensor(0.1, dtype=torch.float64))
    exact = (1 - math.exp(-0.1)) * torch.exp(-0.1 * torch.arange(50, dtype=torch.float64))
    assert torch.allclose(vandermonde(log, b, 50)[0], exact, atol=1e-15)


@pytest.mark.parametrize("disc", ["zoh", "bilinear"])
@pytest.mark.parametrize("init", ["legs", "inv", "lin", "real", "random"])
def test_recurrence_and_convolution_agree_and_nothing_hears_the_future(disc, init):
    for layer in (S4D(3, 8, init=init, disc=disc), S5(3, 8, init=init, disc=disc, blocks=2)):
        x = torch.randn(2, 60, 3, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            whole, state, steps = layer(x), layer.initial_state(2), []
            for k in range(60):
                y, state = layer.step(x[:, k], state)
                steps.append(y)
            assert torch.allclose(whole, torch.stack(steps, 1), atol=2e-5 * whole.abs().max().item())
            changed = x.clone()
            changed[:, 40:] += 1
            assert torch.allclose(layer(changed)[:, :40], whole[:, :40], atol=1e-5 * whole.abs().max().item())


@pytest.mark.parametrize("transform", ["exp", "softplus", "relu", "none"])
def test_every_parametrization_begins_at_the_same_poles(transform):
    layer = S4D(2, 16, init="inv", real_transform=transform)
    assert torch.allclose(layer.system.poles()[0], hippo.inv(16).poles.to(torch.complex64), atol=1e-5)


def test_a_rate_of_two_is_a_step_twice_as_long():
    layer = S4D(2, 8)
    fast = layer.kernel(30, rate=2.0)
    with torch.no_grad():
        layer.system.log_step += math.log(2)
    assert torch.allclose(layer.kernel(30), fast, atol=1e-5)


def test_both_directions_of_a_layer_are_mirror_images():
    layer = S4D(2, 8, bidirectional=True)
    x = torch.randn(1, 30, 2)
    y = layer(x)
    with torch.no_grad():
        layer.readout.copy_(layer.readout.flip(0))
    assert torch.allclose(layer(x.flip(1)).flip(1), y, atol=1e-5)
    with pytest.raises(ValueError, match="no step"):
        layer.step(x[:, 0], layer.initial_state(1))


def test_half_precision_comes_back_as_it_went_in():
    layer = S4D(2, 8)
    x = torch.randn(1, 30, 2)
    assert layer(x.bfloat16()).dtype is torch.bfloat16
    assert torch.allclose(layer(x.bfloat16()).float(), layer(x), atol=0.05 * layer(x).abs().max().item())


def test_a_classifier_learns_to_tell_two_frequencies():
    model = SSMClassifier(1, 2, d_model=8, d_state=8, layers=1)
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 2, (64,), generator=generator)
    phase = torch.rand(64, 1, generator=generator) * 6
    x = torch.sin((0.2 + 0.2 * label[:, None]) * torch.arange(64) + phase)[..., None]
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), label).backward()
        optimizer.step()
    assert (model(x).argmax(-1) == label).float().mean() > 0.9


def test_bad_requests_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="even"):
        S4D(2, 7)
    with pytest.raises(ValueError, match="batch, length, 2"):
        S4D(2, 8)(torch.zeros(1, 2, 30))
    with pytest.raises(ValueError, match="length"):
        S4D(2, 8)(torch.zeros(1, 0, 2))
    with pytest.raises(ValueError, match="negative"):
        S4D(2, init=hippo.Diagonal(torch.tensor([0.1 + 1j]), torch.ones(1) + 0j, torch.full((1,), 2.0)))


def test_transform_lengths_have_small_factors_and_reach_far_enough():
    for size in (1, 7, 97, 1023, 1025, 4097):
        found = _fast(size)
        rest = found
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        assert rest == 1
        assert size <= found <= 2 * size
