"""What telemetry costs: ten training steps with a Monitor that measures one of them, and ten without.

A ratio of 1 is free; 0.9 means that the run takes 11 % longer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allometry.measure import Monitor
from allometry.models import GPT, GPTConfig
from benchmarks import Case

_STEPS = 10


def _data(vocabulary: int, batch: int, context: int) -> tuple[Tensor, Tensor]:
    window = torch.randint(vocabulary, (batch, context + 1), generator=torch.Generator().manual_seed(0))
    return window[:, :-1].contiguous(), window[:, 1:].contiguous()


def _steps(width: int, batch: int, context: int, every: int | None) -> Callable[[], None]:
    model = GPT(GPTConfig(width=width, depth=3, context=context))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    inputs, targets = _data(256, batch, context)
    monitor = None if every is None else Monitor(model, optimizer, every=every)

    def run() -> None:
        for step in range(_STEPS):
            F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if monitor is not None:
                monitor.step(step)

    return run


def cases() -> list[Case]:
    """A small model and a longer context, measured every tenth step."""
    torch.set_num_threads(1)
    note = "one thread; 10 training steps a call, every probe at one of them; 1.0 would be free"
    return [
        Case(
            f"measure: Monitor every 10, width {width}, {batch} x {context}",
            _steps(width, batch, context, 10), _steps(width, batch, context, None),
            "the same steps unwatched", 0.9, note=note,
        )
        for width, batch, context in ((64, 8, 128), (128, 2, 512))
    ]  # fmt: skip
