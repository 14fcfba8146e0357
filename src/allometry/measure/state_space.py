"""Responses of linear systems: what a state-space layer passes, how far back it hears, where it is fragile.

After Gu, Gupta, Goel and Ré (2022, arXiv:2206.11893) and Yu, Nigmetov, Morozov, Mahoney and Erichson (2023,
arXiv:2310.01698). A diagonal system that stands in for a dense one may agree with it at every fixed
frequency and still keep tall spikes at its own eigenfrequencies; `response_gap` looks there, `fourier_attack`
aims there.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["ResponseGap", "fourier_attack", "memory_curve", "response_gap", "spike_frequencies", "transfer"]


def transfer(
    poles: Tensor, inputs: Tensor, readout: Tensor, omega: Tensor, weight: Tensor | None = None
) -> Tensor:
    """The response C (iω − A)⁻¹ B of a system, dense or diagonal.

    Parameters
    ----------
    poles : Tensor, shape (n, n) or (n,)
        A, or its diagonal, per unit of time.
    inputs : Tensor, shape (n,)
    readout : Tensor, shape (..., n)
    omega : Tensor, shape (W,)
        Radians per unit of time.
    weight : Tensor, shape (n,), optional
        For diagonals that keep one pole of each conjugate pair: 2 there and 1 at real poles. The response of
        the real system is then (weight/2) · (C r(ω) + conj(C r(−ω))), which is what comes back.

    Returns
    -------
    Tensor, shape (..., W), complex128

    Raises
    ------
    ValueError
        A is neither square nor a diagonal.

    Examples
    --------
    >>> one = torch.ones(1)
    >>> transfer(-one, one, one, torch.tensor([0.0, 1.0])).abs()
    tensor([1.0000, 0.7071], dtype=torch.float64)
    """
    a, b, c = (one.to(torch.complex128) for one in (poles, inputs, readout))
    s = 1j * omega.to(torch.complex128)
    if a.ndim == 1:
        forward = b[:, None] / (s - a[:, None])  # (n, W)
        if weight is None:
            return c @ forward
        half = weight.to(torch.complex128) / 2
        backward = b[:, None] / (-s - a[:, None])
        return (c * half) @ forward + ((c * half) @ backward).conj()
    if a.ndim != 2 or a.shape[0] != a.shape[1]:
        raise ValueError(f"A is square, or a diagonal; got shape {tuple(a.shape)}")
    eye = torch.eye(len(a), dtype=a.dtype, device=a.device)
    count = max(1, 2**22 // len(a) ** 2)  # 64 MB of matrices at a time
    found = [
        torch.linalg.solve(part[:, None, None] * eye - a, b.expand(len(part), -1)) for part in s.split(count)
    ]
    return c @ torch.cat(found).mT


class ResponseGap(NamedTuple):
    """How far two responses are apart: largest, median, and the ω of the largest."""

    sup: float
    median: float
    argmax: float


def response_gap(first: Tensor, second: Tensor, omega: Tensor) -> ResponseGap:
    """Largest and median distance of two responses (..., W) over frequencies and outputs.

    The largest is one over the frequencies given: they must include the systems' eigenfrequencies, at which
    spikes stand that a grid steps over.

    Examples
    --------
    >>> response_gap(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.5, 3.0]), torch.arange(3.0))
    ResponseGap(sup=0.5, median=0.0, argmax=1.0)
    """
    if first.shape != second.shape or first.shape[-1] != len(omega):
        raise ValueError(
            f"responses of {tuple(first.shape)} and {tuple(second.shape)} at {len(omega)} frequencies"
        )
    distance = (first - second).abs()
    worst = distance.flatten(0, -2).amax(0) if distance.ndim > 1 else distance
    place = int(worst.argmax())
    return ResponseGap(float(worst[place]), float(distance.median()), float(omega[place]))


def memory_curve(model: nn.Module, inputs: Tensor, *, probes: int = 8) -> Tensor:
    """How strongly the last output hears the input ``lag`` samples earlier: (L,), root mean square.

    ‖∂y_L/∂u_{L−lag}‖ in Frobenius norm, averaged over the batch, estimated with random signs in ``probes``
    backward passes (exact where the last output is one number).

    Parameters
    ----------
    model : nn.Module
        (B, L, D) -> (B, L, H).
    inputs : Tensor, shape (B, L, D)
    probes : int

    Examples
    --------
    >>> memory_curve(nn.Linear(3, 1), torch.zeros(1, 4, 3)).count_nonzero().item()
    1
    """
    if inputs.ndim != 3 or probes < 1:
        raise ValueError(
            f"inputs are (batch, length, features), probes at least 1; got {tuple(inputs.shape)}"
        )
    u = inputs.detach().clone().requires_grad_()
    last = model(u)[:, -1]
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(inputs.shape[1])
    for _ in range(1 if last.shape[-1] == 1 else probes):
        signs = torch.randint(0, 2, last.shape, generator=generator).to(last) * 2 - 1
        (gradient,) = torch.autograd.grad(last, u, signs, retain_graph=True)
        total += gradient.square().sum(-1).mean(0).cpu()
    return (total / (1 if last.shape[-1] == 1 else probes)).sqrt().flip(0)


def spike_frequencies(layer: Any) -> Tensor:
    """Eigenfrequencies of a layer's systems in radians a sample, |Im λ| Δ, below π; sorted, all channels.

    ``layer`` has a ``system`` with ``poles()`` and ``steps()``, as `S4D` and `S5` have. Frequencies above π
    alias: an attack there shows nothing, so they are left out.

    Raises
    ------
    ValueError
        Something else than such a layer.

    Examples
    --------
    >>> from allometry.models import S4D
    >>> bool((spike_frequencies(S4D(2, 8, init="lin")) <= math.pi).all())
    True
    """
    if not hasattr(getattr(layer, "system", None), "poles"):
        raise ValueError(f"spikes are those of an S4D or S5 layer; got {type(layer).__name__}")
    with torch.no_grad():
        poles, steps = layer.system.poles(), layer.system.steps()
        turns = (poles.imag.abs() * (steps[:, None] if poles.shape[0] == len(steps) else steps)).flatten()
    return turns[(turns > 0) & (turns < math.pi)].sort().values


def fourier_attack(x: Tensor, frequency: float | Tensor, amplitude: float, phase: float = 0.0) -> Tensor:
    """A sinusoid added along the length of (B, L, D), as large as ``amplitude`` times each signal's spread.

    Parameters
    ----------
    x : Tensor, shape (B, L, D)
    frequency : float or Tensor, shape (F,)
        Radians a sample, such as some of `spike_frequencies`; several share the amplitude's energy.
    amplitude : float
        Root mean square of what is added over the standard deviation of each signal.
    phase : float

    Examples
    --------
    >>> x = torch.randn(2, 100, 1)
    >>> bool((fourier_attack(x, 0.3, 0.1) - x).std() < 0.2)
    True
    """
    if x.ndim != 3 or amplitude < 0:
        raise ValueError(f"signals are (batch, length, features), amplitude at least 0; got {tuple(x.shape)}")
    frequencies = torch.as_tensor(frequency, dtype=torch.float64, device="cpu").reshape(-1, 1)
    wave = torch.sin(frequencies * torch.arange(x.shape[1], dtype=torch.float64) + phase).sum(0)
    wave = (wave / wave.square().mean().sqrt().clamp_min(1e-12)).to(x)
    spread = x.std(dim=1, keepdim=True, correction=0)
    return x + amplitude * spread * wave[:, None]
