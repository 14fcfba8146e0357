"""Stacks of small language models beside the same models trained one after another.

A call is one whole training step of all models: loss, gradient, clipping, fused AdamW. The peer is PyTorch's
own way, eager autograd and one fused optimizer a model; ``torch.func.vmap`` with ``stack_module_state``, the
usual way to stack, is a second peer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from allometry.models import GPT, GPTConfig
from allometry.train import Stack
from benchmarks import Case

_REPLICAS = 8


def _models(width: int, count: int) -> list[GPT]:
    return [
        GPT(GPTConfig(width=width), generator=torch.Generator().manual_seed(seed)) for seed in range(count)
    ]


def _data(count: int, batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(256, (count, batch, 129), generator=generator)
    return windows[..., :-1].contiguous(), windows[..., 1:].contiguous()


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)


def _stacked(width: int, batch: int, count: int) -> Callable[[], None]:
    stack = Stack(_models(width, count))
    optimizer, (inputs, targets) = stack.optimizer(_optimizer), _data(count, batch)

    def step() -> None:
        stack.losses(inputs, targets).sum().backward()
        stack.clip_grad_norm(1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _one_by_one(width: int, batch: int, count: int) -> Callable[[], None]:
    models, (inputs, targets) = _models(width, count), _data(count, batch)
    optimizers = [_optimizer(model) for model in models]

    def step() -> None:
        for model, optimizer, x, y in zip(models, optimizers, inputs, targets, strict=True):
            F.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return step


def _vmapped(width: int, batch: int, count: int) -> Callable[[], None]:
    models, (inputs, targets) = _models(width, count), _data(count, batch)
    values, buffers = stack_module_state(models)
    parameters = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3, fused=True)

    def loss(own: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(models[0], (own, fixed), (x,)).flatten(0, 1), y.flatten())

    def step() -> None:
        vmap(loss)(parameters, buffers, inputs, targets).sum().backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def cases() -> list[Case]:
    """Two sizes of eight models, one model alone, and the usual way of stacking."""
    torch.set_num_threads(1)
    one_by_one, vmapped = (
        f"torch {torch.__version__}, one after another",
        f"torch {torch.__version__}, func.vmap",
    )
    note = "one thread; a step of all models, clipping and AdamW included"
    n = _REPLICAS
    return [
        Case(
            f"train: stack of {n}, width 16, 128 tokens a step",
            _stacked(16, 1, n), _one_by_one(16, 1, n), one_by_one, 3.0, note=note,
        ),
        Case(
            f"train: stack of {n}, width 32, 1024 tokens a step",
            _stacked(32, 8, n), _one_by_one(32, 8, n), one_by_one, 1.5, note=note,
        ),
        Case(
            "train: stack of 1, width 32, 1024 tokens a step",
            _stacked(32, 8, 1), _one_by_one(32, 8, 1), one_by_one, 1.2, note=note,
        ),
        Case(
            f"train: stack of {n}, width 16, 128 tokens a step",
            _stacked(16, 1, n), _vmapped(16, 1, n), vmapped, 1.5, note=note,
        ),
    ]  # fmt: skip
