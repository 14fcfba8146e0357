"""Schedules as scalar functions of (step, total): a multiplier of the peak, of rates or of anything else.

Warm-up-stable-decay: Hu and others, 2024 (MiniCPM). arXiv:2404.06395; Hägele and others, 2024, whose decay
branches off one trunk give every horizon for the price of little more than one. arXiv:2405.18392

Step ``s`` of ``total`` is the multiplier of the update that turns weights ``s`` into weights ``s + 1``, for
s = 0 ... total - 1. Warm-up ends at 1 on its last step; a decay reaches ``floor`` one step after the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

Schedule = Callable[[int, int], float]
Shape = Literal["linear", "cosine", "sqrt"]


def _warm(step: int, warmup: int) -> float:
    return 1.0 if step >= warmup else (step + 1) / warmup


def _fall(progress: float, floor: float, shape: Shape) -> float:
    """From 1 at progress 0 to ``floor`` at progress 1."""
    progress = min(max(progress, 0.0), 1.0)
    if shape == "linear":
        left = 1.0 - progress
    elif shape == "cosine":
        left = 0.5 * (1.0 + math.cos(math.pi * progress))
    elif shape == "sqrt":
        left = 1.0 - math.sqrt(progress)
    else:
        raise ValueError(f"shape must be 'linear', 'cosine' or 'sqrt', got {shape!r}")
    return floor + (1.0 - floor) * left


def constant(step: int, total: int, *, warmup: int = 0) -> float:
    """1, after a linear warm-up.

    >>> [constant(step, 4, warmup=2) for step in range(4)]
    [0.5, 1.0, 1.0, 1.0]
    """
    return _warm(step, warmup)


def linear(step: int, total: int, *, warmup: int = 0, floor: float = 0.0) -> float:
    """Warm-up, then a straight line to ``floor``."""
    return _warm(step, warmup) * _fall((step - warmup) / max(1, total - warmup), floor, "linear")


def cosine(step: int, total: int, *, warmup: int = 0, floor: float = 0.0) -> float:
    """Warm-up, then half a cosine to ``floor`` (Loshchilov and Hutter, 2016. arXiv:1608.03983).

    >>> round(cosine(5, 10), 3)
    0.5
    """
    return _warm(step, warmup) * _fall((step - warmup) / max(1, total - warmup), floor, "cosine")


def decay_start(total: int, decay: float) -> int:
    """First step of the decay of a run of ``total`` steps that spends the share ``decay`` on it."""
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay is a share of the run and lies in [0, 1], got {decay}")
    return total - round(decay * total)


def wsd(
    step: int,
    total: int,
    *,
    warmup: int = 0,
    decay: float = 0.25,
    floor: float = 0.0,
    shape: Shape = "linear",
) -> float:
    """Warm-up, stable, decay over the last share ``decay`` of the run.

    >>> [round(wsd(step, 8, warmup=2, decay=0.5), 2) for step in range(8)]
    [0.5, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    start = decay_start(total, decay)
    progress = (step - start) / max(1, total - start) if step >= start else 0.0
    return _warm(step, warmup) * _fall(progress, floor, shape)


@dataclass(frozen=True)
class WSD:
    """:func:`wsd` with its settings, and the step at which a run of a given length leaves the trunk.

    >>> schedule = WSD(warmup=2, decay=0.5)
    >>> schedule(7, 8), schedule.branch(8)
    (0.25, 4)
    """

    warmup: int = 0
    decay: float = 0.25
    floor: float = 0.0
    shape: Shape = "linear"

    def __call__(self, step: int, total: int) -> float:
        """Multiplier of step ``step`` of a run of ``total`` steps."""
        return wsd(step, total, warmup=self.warmup, decay=self.decay, floor=self.floor, shape=self.shape)

    def branch(self, total: int) -> int:
        """First step that is not shared with longer runs."""
        start = decay_start(total, self.decay)
        if start < self.warmup:
            raise ValueError(
                f"a run of {total} steps starts to decay at {start}, inside its warm-up of {self.warmup}"
            )
        return start


def two_step(step: int, total: int, *, warmup: int = 0, at: float = 0.5, factor: float = 0.1) -> float:
    """1 up to the share ``at`` of the run, ``factor`` after it."""
    return _warm(step, warmup) * (factor if step >= at * total else 1.0)


def cyclic(step: int, total: int, *, cycles: int = 4, warmup: int = 0, floor: float = 0.0) -> float:
    """Cosines that start anew ``cycles`` times (Loshchilov and Hutter, 2016. arXiv:1608.03983)."""
    return _warm(step, warmup) * _fall((step * cycles / max(1, total)) % 1.0, floor, "cosine")


def as_scheduler(optimizer: Optimizer, schedule: Schedule, total: int, **settings: float) -> LambdaLR:
    """A ``torch.optim.lr_scheduler.LambdaLR`` that follows ``schedule`` for ``total`` steps."""
    from torch.optim.lr_scheduler import LambdaLR

    bound = partial(schedule, **settings)
    return LambdaLR(optimizer, lambda step: bound(step, total))
