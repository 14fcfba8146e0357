"""Ghost batch norm beside what is usually written: the batch in chunks, each through one batch norm."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from allometry.models import GhostBatchNorm
from benchmarks import Case

_GHOST = 32


def _pass(norm: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    def run() -> None:
        norm(x).sum().backward()

    return run


def _chunks(channels: int, two: bool) -> Callable[[Tensor], Tensor]:
    """As pytorch-tabnet does; running statistics take in one chunk after the other."""
    norm = nn.BatchNorm2d(channels) if two else nn.BatchNorm1d(channels)
    return lambda x: torch.cat([norm(part) for part in x.split(_GHOST)])


def cases() -> list[Case]:
    """A batch of 1024 in 32 ghosts: features, and small images."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    found = []
    for told, shape, target in (("64 features", (64,), 2.0), ("512 features", (512,), 1.0),
                                ("16 channels of 7 x 7", (16, 7, 7), 1.0)):  # fmt: skip
        x = torch.randn(1024, *shape, generator=generator).requires_grad_()
        found.append(Case(
            f"models: ghost batch norm, {told}", _pass(GhostBatchNorm(shape[0], _GHOST), x),
            _pass(_chunks(shape[0], len(shape) > 1), x), "nn.BatchNorm in chunks", target, rounds=15,
            note="forward and backward, 32 ghosts of 32 samples",
        ))  # fmt: skip
    return found
