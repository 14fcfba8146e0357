"""Responses against SciPy; memory, spikes and attacks against what is known of them."""

import numpy as np
import pytest
import torch

from allometry.measure import fourier_attack, memory_curve, response_gap, spike_frequencies, transfer
from allometry.models import S4D, SSMBlock, hippo

signal = pytest.importorskip("scipy.signal")


def test_dense_and_diagonal_responses_are_scipys():
    matrix, inputs, _ = hippo.hippo_legs(4)
    readout = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    omega = torch.tensor([0.1, 1.0, 7.0], dtype=torch.float64)
    system = signal.StateSpace(matrix.numpy(), inputs.numpy()[:, None], readout.numpy()[None], 0)
    _, exact = signal.freqresp(system, omega.numpy())
    assert np.abs(transfer(matrix, inputs, readout, omega).numpy() - exact).max() < 1e-12
    values, basis = torch.linalg.eig(matrix)
    b, c = torch.linalg.solve(basis, inputs + 0j), (readout + 0j) @ basis
    assert np.abs(transfer(values, b, c, omega).numpy() - exact).max() < 1e-10


def test_half_the_poles_with_weights_answer_for_all():
    state = hippo.legs(8)
    c = torch.ones(8, dtype=torch.complex128) @ state.basis
    omega = torch.tensor([0.3, 4.0])
    both = [torch.cat([one, one.conj()]) for one in (state.poles, state.inputs, c)]
    assert torch.allclose(
        transfer(state.poles, state.inputs, c, omega, state.weight), transfer(*both, omega), atol=1e-12
    )


def test_the_gap_halves_with_twice_the_states_and_spikes_keep_their_height():
    """At fixed frequency .0069, .0035, … (ω = ½); at the k-th largest eigenfrequency 2 / ((2k+1) π)."""
    omega, gaps = torch.tensor([0.5], dtype=torch.float64), []
    for n in (64, 128, 256):
        state = hippo.legs(n)
        found = transfer(state.poles, state.inputs, state.basis[:1], omega, state.weight)
        gaps.append(response_gap(found[0], hippo.legs_transfer(n, omega)[:, 0], omega).sup)
    assert gaps[0] == pytest.approx(0.0069, abs=1e-4)
    assert np.diff(np.log2(gaps)) == pytest.approx(-1, abs=0.05)
    state = hippo.legs(512)
    tops = state.poles.imag.sort(descending=True).values[:3]
    heights = transfer(state.poles, state.inputs, state.basis[:1], tops, state.weight)[0].abs().numpy()
    assert heights == pytest.approx([2 / ((2 * k + 1) * np.pi) for k in range(3)], rel=0.02)


def test_a_layer_is_heard_as_its_kernel_says():
    layer = S4D(1, 8)
    x = torch.randn(1, 50, 1)
    kernel = layer.kernel(50)[0].detach().clone()
    kernel[0] += layer.skip.item()
    assert torch.allclose(memory_curve(layer, x), kernel.abs(), atol=1e-5 * kernel.abs().max().item())


def test_an_attack_has_the_energy_and_the_frequency_it_is_given():
    x = torch.randn(3, 400, 1, generator=torch.Generator().manual_seed(0))
    added = fourier_attack(x, 2 * np.pi * 20 / 400, 0.1) - x
    share = added.square().mean(1).sqrt() / x.std(1, correction=0)
    assert torch.allclose(share, torch.full((3, 1), 0.1), atol=1e-5)
    assert (torch.fft.rfft(added, dim=1).abs().argmax(1) == 20).all()


def test_spikes_are_eigenfrequencies_below_the_fastest_that_samples_show():
    layer = S4D(1, 8, init="lin", dt=(0.4, 0.4))
    exact = [0.4 * np.pi * k for k in (1, 2)]
    assert spike_frequencies(layer).tolist() == pytest.approx(exact, rel=1e-5)


def test_spikes_of_something_else_are_refused():
    with pytest.raises(ValueError, match="S4D or S5 layer; got SSMBlock"):
        spike_frequencies(SSMBlock(S4D(1, 8)))
