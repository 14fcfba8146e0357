"""S4D's kernel beside the direct Vandermonde product in complex64, forward alone and with its gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from allometry.models import vandermonde
from benchmarks import Case


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
    return [
        Case(
            f"models: S4D kernel, 64 x 32 poles, length {length}{', with gradient' if learn else ''}",
            _call(vandermonde, logs, weights, length, learn), _call(_direct, logs, weights, length, learn),
            "direct complex64 product", 1.0, rounds=5, note="one thread; the peer holds every power",
        )
        for length in (256, 4096) for learn in (False, True)
    ]  # fmt: skip
