"""AdamP and SGDP beside the authors' package: many small tensors, and a few large ones."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any

import torch
from torch import nn

from allometry.optim import SGDP, AdamP
from benchmarks import Case

_STEPS = 5


def _steps(kind: Any, shapes: list[tuple[int, int]], **options: Any) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator)
    optimizer = kind(weights, lr=1e-3, **options)

    def run() -> None:
        for _ in range(_STEPS):
            optimizer.step()

    return run


def cases() -> list[Case]:
    """A hundred tensors of 64 x 64, where calls cost, and ten of 2048 x 2048, where memory does."""
    torch.set_num_threads(1)
    peer = import_module("adamp")
    name = f"adamp {metadata.version('adamp')}"
    found = []
    for shapes, told, adam, sgd in (
        ([(64, 64)] * 100, "100 of 64 x 64", 3.0, 3.0), ([(2048, 2048)] * 10, "10 of 2048 x 2048", 1.0, 1.0),
    ):  # fmt: skip
        for kind, theirs, options, target in (
            (AdamP, peer.AdamP, {"weight_decay": 1e-2}, adam),
            (SGDP, peer.SGDP, {"momentum": 0.9, "weight_decay": 1e-4}, sgd),
        ):
            found.append(Case(
                f"optim: {kind.__name__}, {told}", _steps(kind, shapes, **options),
                _steps(theirs, shapes, **options), name, target, rounds=5,
                note="one thread; five steps a call",
            ))  # fmt: skip
    return found
