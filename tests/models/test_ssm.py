"""Facts about HiPPO's matrices and the layers made of them, against closed forms and SciPy."""

import math

import numpy as np
import pytest
import torch

from allometry.models import S4D, S5, SSMBlock, SSMClassifier, discretize, hippo, vandermonde
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


def _direct(layer, length):
    """The kernel of a layer's own parameters, every power at once, in complex128."""
    poles = layer.system.poles().detach().to(torch.complex128)
    step = layer.system.log_step.detach().double().exp()[:, None]
    b, c = (torch.view_as_complex(one.detach().double()) for one in (layer.inputs, layer.readout))
    if layer.system.disc == "zoh":
        a, b = torch.exp(step * poles), (torch.exp(step * poles) - 1) / poles * b
    else:
        a, b = (1 + step * poles / 2) / (1 - step * poles / 2), step * b / (1 - step * poles / 2)
    powers = a.log()[..., None] * torch.arange(length, dtype=torch.float64)
    return ((c[0] * layer.system.weight * b)[..., None] * powers.exp()).sum(1).real


@pytest.mark.parametrize("transform", ["exp", "softplus", "relu", "none"])
@pytest.mark.parametrize("disc", ["zoh", "bilinear"])
@pytest.mark.parametrize("init", ["legs", "inv", "lin", "real", "random"])
def test_kernels_of_twenty_thousand_samples_keep_their_digits(init, disc, transform):
    """Phases of thousands of turns: float32 parameters, 2e-5 of the largest; float64, 1e-11."""
    layer = S4D(2, 64, init=init, disc=disc, real_transform=transform)
    for tolerance in (2e-5, 1e-11):
        exact = _direct(layer, 20_000)
        assert (layer.kernel(20_000) - exact).abs().max() < tolerance * exact.abs().max()
        layer = layer.double()


def test_a_held_input_is_integrated_at_every_size_of_step():
    """(e^x − 1)/x and its derivative, beside 50 digits, where either is small: to 1e-6 in complex64."""
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 50
    for size in (1e-9, 1e-4, 2e-3, 0.09, 0.11, 2.0):
        x = torch.tensor([complex(-size, size)], dtype=torch.complex64, requires_grad=True)
        one = torch.ones(1, dtype=torch.complex64)
        found = discretize(x, one, torch.tensor(1.0))[1]
        z = mpmath.mpc(complex(x.detach()))
        exact = (mpmath.exp(z) - 1) / z
        slope = (mpmath.exp(z) * z - mpmath.exp(z) + 1) / z**2
        (gradient,) = torch.autograd.grad(found.real.sum(), x)
        assert abs(complex(found.detach()) - complex(exact)) < 1e-6
        assert abs(complex(gradient) - complex(slope).conjugate()) < 2e-5


def test_gradients_agree_forward_backward_twice_and_mapped():
    generator = torch.Generator().manual_seed(0)
    logs = torch.complex(-torch.rand(2, 3, generator=generator, dtype=torch.float64) / 5,
                         torch.rand(2, 3, generator=generator, dtype=torch.float64) * 3)  # fmt: skip
    weights = torch.randn(2, 3, generator=generator, dtype=torch.complex128)
    both = (logs.requires_grad_(), weights.requires_grad_())
    assert torch.autograd.gradcheck(lambda z, w: vandermonde(z, w, 37), both, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda z, w: vandermonde(z, w, 37), both)
    many = torch.randn(4, 2, 3, generator=generator, dtype=torch.complex128)
    mapped = torch.func.vmap(lambda w: vandermonde(logs, w, 37))(many)
    assert torch.allclose(mapped, torch.stack([vandermonde(logs, w, 37) for w in many]), atol=1e-12)


def test_a_layers_gradients_are_right_in_float64():
    layer = S4D(2, 4, init="lin").double()
    x = torch.randn(1, 9, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


@pytest.mark.parametrize("kind", [S4D, S5])
def test_each_examples_gradient_is_that_of_the_example_alone(kind):
    """Under ``torch.func``, as tangent kernels and per-example probes need it."""
    layer, x = kind(2, 8), torch.randn(3, 20, 2, generator=torch.Generator().manual_seed(0))
    named = dict(layer.named_parameters())

    def loss(parameters, one):
        return torch.func.functional_call(layer, parameters, (one[None],)).square().sum()

    mapped = torch.func.vmap(torch.func.grad(loss), (None, 0))(named, x)
    for place in range(3):
        alone = torch.autograd.grad(layer(x[place : place + 1]).square().sum(), list(named.values()))
        for name, one in zip(named, alone, strict=True):
            assert torch.allclose(mapped[name][place], one, rtol=1e-3, atol=1e-4 * one.abs().max().item())


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
    layer, slow = S4D(2, 8), S5(2, 8)
    x = torch.randn(1, 30, 2, generator=torch.Generator().manual_seed(0))
    for one in (layer, slow):
        state, steps = one.initial_state(1), []
        for k in range(30):
            y, state = one.step(x[:, k], state, one.recurrence(2.0))
            steps.append(y)
        assert torch.allclose(one(x, rate=2.0), torch.stack(steps, 1), atol=1e-4)
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


@pytest.mark.parametrize("kind", ["s4d", "s5"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_network_moves_to_other_precisions(kind, dtype):
    """Rounded to half precision, poles are others; the outputs stay near, and so does a step."""
    layer = (S4D if kind == "s4d" else S5)(2, 8)
    x = torch.randn(1, 30, 2, generator=torch.Generator().manual_seed(0))
    exact, moved = layer(x), layer.to(dtype)
    found = moved(x.to(dtype))
    assert found.dtype is dtype
    assert torch.allclose(found.float(), exact, atol=0.05 * exact.abs().max().item())
    y, state = moved.step(x[:, 0].to(dtype), moved.initial_state(1))
    assert y.dtype is dtype
    assert state.dtype is (torch.complex128 if dtype is torch.float64 else torch.complex64)


def test_autocast_does_not_reach_the_kernel():
    layer = S4D(2, 64)
    exact = layer.kernel(300)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.kernel(300), exact)


@pytest.mark.parametrize("kind", [S4D, S5])
def test_a_layer_is_built_where_torch_is_told_to_build(kind):
    with torch.device("meta"):
        layer = kind(2, 8)
    assert {one.device.type for one in layer.parameters()} == {"meta"}


@pytest.mark.parametrize("init", ["legs", "lin"])
@pytest.mark.parametrize("kind", [S4D, S5])
def test_parameters_lie_in_order(kind, init):
    """Compiled gradients of S5 were wrong where they did not (torch 2.13), and safetensors refuses them."""
    layer = kind(3, 8, init=init)
    assert all(one.is_contiguous() for one in layer.state_dict().values())


def test_poles_of_ones_own():
    poles = torch.tensor([-0.5 + 3j, -1.0 + 0j])
    layer = S4D(2, init=poles)
    assert torch.allclose(layer.system.poles()[0], poles)
    assert layer.system.weight.tolist() == [2.0, 1.0]


def test_s5_is_that_of_the_package_given_its_parameters():
    """``s5-pytorch``, which keeps both of each pair of poles: outputs to 1e-5, in both modes."""
    peer = pytest.importorskip("s5")
    torch.manual_seed(0)
    theirs = peer.S5(5, 12, block_count=2).seq
    poles = theirs.Lambda.detach()
    ours = S5(5, init=hippo.Diagonal(poles, torch.ones_like(poles), torch.ones(12)))
    with torch.no_grad():
        ours.system.log_step.copy_(theirs.log_step.flatten())
        ours.inputs.copy_(torch.view_as_real(torch.view_as_complex(theirs.B.contiguous())))
        ours.readout.copy_(torch.view_as_real(theirs.C))
        ours.skip.copy_(theirs.D)
        x = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
        found, exact = ours(x[None])[0], theirs(x)
        assert (found - exact).abs().max() < 1e-5 * exact.abs().max()
        state, before = ours.initial_state(1), torch.zeros(12, dtype=torch.complex64)
        for k in range(3):
            y, state = ours.step(x[k : k + 1], state)
            stepped, before = theirs.forward_rnn(x[k], before)
            assert (y[0] - stepped).abs().max() < 1e-5 * exact.abs().max()


def test_a_block_steps_as_it_convolves():
    for system in (S4D(3, 8), S5(3, 8)):
        block = SSMBlock(system)
        x = torch.randn(2, 25, 3, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            whole, state, steps = block(x), block.initial_state(2), []
            once = block.recurrence()
            for k in range(25):
                y, state = block.step(x[:, k], state, once if k % 2 else None)
                steps.append(y)
        assert torch.allclose(whole, torch.stack(steps, 1), atol=1e-5 * whole.abs().max().item())


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
    with pytest.raises(ValueError, match="floating"):
        S4D(2, 8)(torch.zeros(1, 30, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="a state"):
        S4D(2, 8).step(torch.zeros(1, 2), S4D(2, 8).initial_state(3))
    for dt in (0.1, (0.1, math.inf), (math.nan, 0.1), (0.1, 0.01)):
        with pytest.raises(ValueError, match="dt is"):
            S4D(2, 8, dt=dt)
    with pytest.raises(ValueError, match="rate is"):
        S4D(2, 8).kernel(4, rate=math.nan)
    for init in (3, "legz", torch.ones(3)):
        with pytest.raises(ValueError, match=r"init is|poles are complex"):
            S4D(2, 8, init=init)
    with pytest.raises(ValueError, match="whole number"):
        S4D(2, 8).kernel(2.5)
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
