"""Train a small model under a strategy; run by tests in processes of their own, and by torchrun."""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from allometry.optim.schedules import WSD
from allometry.train.checkpoint import Checkpointer
from allometry.train.loop import TrainLog, fit
from allometry.train.parallel import (
    clip_grad_norm,
    full_optimizer_state,
    full_state_dict,
    is_main,
    launch,
    load_full_optimizer_state,
    load_full_state_dict,
    rank,
    shard,
    world_size,
)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.enter = nn.Linear(6, 9)
        self.blocks = nn.ModuleList(nn.Linear(9, 9) for _ in range(3))
        self.leave = nn.Linear(9, 5)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0.0, 0.4, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x).tanh()
        return self.leave(x)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 6, generator=generator), torch.randint(5, (16,), generator=generator)


def advance(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    """Each process takes its share of every batch; the gradient norms."""
    norms = []
    for step in steps:
        inputs, targets = (side.chunk(world_size())[rank()] for side in batch(step))
        nn.functional.cross_entropy(model(inputs), targets).backward()
        norms.append(float(clip_grad_norm(model, 0.3)))
        optimizer.step()
        optimizer.zero_grad()
    return norms


def train(how: str, folder: str) -> None:
    """Six steps, a checkpoint, a fresh start from it, four more."""
    where = Path(folder)
    model = shard(Model(), how)
    optimizer = make_optimizer(model)
    norms = advance(model, optimizer, range(6))
    weights, state = full_state_dict(model), full_optimizer_state(model, optimizer)
    if is_main():
        save_file({name: value.contiguous() for name, value in weights.items()}, where / "half.safetensors")
        weights = load_file(where / "half.safetensors")
    fresh = Model()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    model = shard(fresh, how)
    optimizer = make_optimizer(model)
    load_full_state_dict(model, weights)
    load_full_optimizer_state(model, optimizer, state)
    norms += advance(model, optimizer, range(6, 10))
    weights = full_state_dict(model)
    if is_main():
        weights["norms"] = torch.tensor(norms)
        save_file({name: value.contiguous() for name, value in weights.items()}, where / f"{how}.safetensors")
    else:
        assert weights == {}


class Batches:
    """Whole batches; the loop gives every process its share."""

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return batch(step)


def fit_model(how: str | None, folder: str | None, stop_at: int | None = None) -> tuple[nn.Module, TrainLog]:
    """Three horizons through the training loop, perhaps stopped on the way."""
    model = shard(Model(), how)
    steps = 0

    def should_stop() -> bool:
        nonlocal steps
        steps += 1
        return is_main() and stop_at is not None and steps >= stop_at  # one process asks, all stop

    log = fit(
        model,
        Batches(),
        optimizer=make_optimizer(model),
        horizons=[6, 9, 12],
        schedule=WSD(warmup=1, decay=0.5),
        objective=lambda net, x, y: nn.functional.cross_entropy(net(x), y),
        validate=lambda net: {"loss": float(nn.functional.cross_entropy(net(batch(99)[0]), batch(99)[1]))},
        clip=0.3,
        checkpointer=None if folder is None else Checkpointer(Path(folder), every=0.0),
        should_stop=should_stop,
    )
    return model, log


def loop(how: str, folder: str) -> None:
    """Stop inside the second branch, go on from there, write down the end."""
    _, first = fit_model(how, f"{folder}/{how}", stop_at=9)
    assert first.status == "stopped"
    model, log = fit_model(how, f"{folder}/{how}")
    assert log.status == "done"
    weights = full_state_dict(model)
    if is_main():
        weights["losses"] = torch.tensor([record["loss"] for record in log.horizons])
        save_file(
            {name: value.contiguous() for name, value in weights.items()}, f"{folder}/{how}.safetensors"
        )


def fail() -> None:
    """Process 1 raises."""
    if rank() == 1:
        raise ValueError("told to fail")


if __name__ == "__main__":
    launch(train, 2, sys.argv[1], sys.argv[2])
