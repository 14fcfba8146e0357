"""S4D's kernel beside the direct Vandermonde product in complex64, forward alone and with its gradient.

Each note tells the peak of allocated memory of either side and the error against complex128.  Ours grows as
states + length; the peer's as states · length.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from allometry.models import vandermonde
from benchmarks import Case
from benchmarks.tangent_kernel import peak


def _direct(logs: Tensor, weights: Tensor, length: int) -> Tensor:
    """All powers at once, as a short implementation has it."""
    powers = torch.exp(logs[..., None] * torch.arange(length))
    return torch.einsum("hn,hnl->hl", weights, powers).real


def _call(kernel: Callable[..., Tensor], logs: Tensor, weights: Tensor, length: int, learn: bool) -> Callable:
    z, w = (one.clone().requires_grad_(learn) for one in (logs, weights))

    def run() -> None:
        found = kernel(z, w, length)
        if learn:
            torch.autograd.grad(found.sum(), (z, w))

    return run


def cases() -> list[Case]:
    """Short and long kernels of 64 channels with 32 stored poles."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    decay, turn = (torch.rand(64, 32, generator=generator) for _ in range(2))
    logs, weights = torch.complex(-decay / 50, 3 * turn), torch.randn(64, 32, dtype=torch.complex64)
    found = []
    for length in (256, 4096, 16_384):
        exact = _direct(logs.to(torch.complex128), weights.to(torch.complex128), length)
        wrong = [
            float((kernel(logs, weights, length) - exact).abs().max() / exact.abs().max())
            for kernel in (vandermonde, _direct)
        ]
        for learn in (False, True):
            ours = _call(vandermonde, logs, weights, length, learn)
            peer = _call(_direct, logs, weights, length, learn)
            first, second = peak(ours), peak(peer)
            found.append(Case(
                f"models: S4D kernel, 64 x 32 poles, length {length}{', with gradient' if learn else ''}",
                ours, peer, "direct complex64 product", 1.0, rounds=3 if length > 4096 else 5,
                note=f"one thread; peak memory {first:.0f} MB against {second:.0f} MB ({second / first:.1f} "
                f"times); largest error {wrong[0]:.1e} against {wrong[1]:.1e} of the largest entry",
            ))  # fmt: skip
    return found
