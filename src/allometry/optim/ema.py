"""Averaged weights: an exponential moving average that forgets its start.

Polyak and Juditsky, 1992; the ramp min(decay, (1 + k) / (10 + k)) is TensorFlow's and keeps the first, bad
weights from lasting a thousand steps. Floating-point buffers are averaged too, others copied. Averages of
bfloat16 and float16 weights are kept in float32: a thousandth of the way is less than their last digit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class AveragedWeights:
    """Moving average of a model's state.

    Parameters
    ----------
    model : nn.Module
        Its state is copied, and never changed except inside :meth:`applied`.
    decay : float
        Weight of the past, in [0, 1).
    ramp : bool
        Use min(decay, (1 + k) / (10 + k)) at update k.

    >>> model = nn.Linear(1, 1); average = AveragedWeights(model, decay=0.9, ramp=False)
    >>> before = model.weight.item(); _ = model.weight.data.add_(1.0); average.update(model)
    >>> round(average.state["weight"].item() - before, 6)
    0.1
    """

    def __init__(self, model: nn.Module, *, decay: float = 0.999, ramp: bool = True) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.decay, self.ramp, self.updates = decay, ramp, 0
        self.state = {name: _fine(value.detach()).clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's present state."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.ramp else self.decay
        self.updates += 1
        mine: list[Tensor] = []
        theirs: list[Tensor] = []
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                mine.append(self.state[name])
                theirs.append(_fine(value.detach()))
            else:
                self.state[name].copy_(value)
        if mine:
            torch._foreach_lerp_(mine, theirs, 1.0 - decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model with averaged weights; its own come back at the end."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.state)
        try:
            yield model
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Tensor]:
        """Averages, with the number of updates under ``updates``."""
        return {"updates": torch.tensor(self.updates), **{f"average.{k}": v for k, v in self.state.items()}}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from :meth:`state_dict`."""
        self.updates = int(state["updates"])
        for name, value in self.state.items():
            # of a sharded tensor each process has stored its own part
            mine = value.to_local() if hasattr(value, "to_local") else value
            mine.copy_(state[f"average.{name}"])


def _fine(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
