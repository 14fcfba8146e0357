"""Maximal update, the coordinate check and complexity, beside the packages that do the same.

The peer of µP is ``mup`` (Microsoft, 1.0.0), which wants its own readout class in the model; the peer of
`complexity` is torch's ``FlopCounterMode``, which needs a real forward pass and memory for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import Case

WIDTHS = (64, 128, 256)


class _Stack(nn.Module):
    """Twelve wide layers behind an embedding of inputs, with either library's readout."""

    def __init__(self, width: int, readout: type[nn.Linear]) -> None:
        super().__init__()
        self.start = nn.Linear(32, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(12))
        self.readout = readout(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        for layer in self.layers:
            x = x + torch.relu(layer(x))
        return self.readout(x)


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(64, 32, generator=generator), torch.randint(10, (64,), generator=generator)


def _parametrize(width: int) -> Case:
    import mup
    from allometry.init.mup import apply_, roles
    from allometry.optim.groups import param_groups

    def ours() -> torch.optim.Optimizer:
        with torch.device("meta"):
            base, delta = _Stack(256, nn.Linear), _Stack(512, nn.Linear)
        model = apply_(_Stack(width, nn.Linear), base, delta)
        return torch.optim.Adam(param_groups(model, 0.01, roles(model)))

    def peer() -> torch.optim.Optimizer:
        model = _Stack(width, mup.MuReadout)
        mup.set_base_shapes(model, _Stack(256, mup.MuReadout), delta=_Stack(512, mup.MuReadout))
        return mup.MuAdam(model.parameters(), lr=0.01)

    note = "ours builds the base on the meta device; the peer needs it in memory"
    return Case(f"mup: build and parametrize, width {width}", ours, peer, "mup 1.0.0", 1.0, note=note)


def _training_step(width: int) -> Case:
    import mup
    from allometry.init.mup import apply_, roles
    from allometry.optim.groups import param_groups

    inputs, targets = _batch()
    mine = apply_(_Stack(width, nn.Linear), _Stack(64, nn.Linear))
    theirs = _Stack(width, mup.MuReadout)
    mup.set_base_shapes(theirs, _Stack(64, mup.MuReadout), delta=_Stack(128, mup.MuReadout))
    optimizers: dict[nn.Module, Any] = {
        mine: torch.optim.Adam(param_groups(mine, 0.001, roles(mine))),
        theirs: mup.MuAdam(theirs.parameters(), lr=0.001),
    }

    def step(model: nn.Module) -> None:
        for _ in range(10):
            optimizers[model].zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizers[model].step()

    return Case(
        f"mup: ten training steps, width {width}",
        lambda: step(mine),
        lambda: step(theirs),
        "mup 1.0.0",
        0.9,
        note="the same arithmetic; what is compared is a hook against a subclass",
    )


def _coordinates() -> Case:
    from mup.coord_check import get_coord_data

    import mup
    from allometry.init.mup import apply_, roles
    from allometry.measure.coordinates import coordinate_check
    from allometry.optim.groups import param_groups

    batch = _batch()

    def make(width: int) -> nn.Module:
        with torch.device("meta"):
            base, delta = _Stack(64, nn.Linear), _Stack(128, nn.Linear)
        return apply_(_Stack(width, nn.Linear), base, delta)

    def ours() -> Any:
        return coordinate_check(
            make,
            WIDTHS,
            [batch],
            make_optimizer=lambda model: torch.optim.Adam(param_groups(model, 0.001, roles(model))),
        )

    def build(width: int) -> nn.Module:
        model = _Stack(width, mup.MuReadout)
        return mup.set_base_shapes(model, _Stack(64, mup.MuReadout), delta=_Stack(128, mup.MuReadout))

    def peer() -> Any:
        models = {width: (lambda width=width: build(width)) for width in WIDTHS}
        return get_coord_data(
            models, [batch], optimizer="adam", lr=0.001, nsteps=4, nseeds=3, cuda=False, show_progress=False
        )

    return Case(
        "mup: coordinate check, three widths and seeds",
        ours,
        peer,
        "mup 1.0.0",
        1.0,
        note="ours looks at the change of activations too, on a probe pass of its own after each step",
    )


def _complexity() -> Case:
    from torch.utils.flop_counter import FlopCounterMode

    from allometry.measure.complexity import complexity
    from allometry.models.gpt import GPT, GPTConfig

    model = GPT(GPTConfig(width=512, depth=6, context=512))
    tokens = torch.zeros(4, 512, dtype=torch.long)

    def peer() -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(tokens)
        return counter.get_total_flops()

    return Case(
        "measure: operations of a language model",
        lambda: complexity(model, tokens),
        peer,
        "torch FlopCounterMode",
        5.0,
        rounds=3,
        note="the peer runs the model, and on the CPU leaves fused attention out of its count",
    )


def cases() -> list[Case]:
    """Three against mup, one against torch's own counter."""
    return [_parametrize(1024), _training_step(256), _coordinates(), _complexity()]
