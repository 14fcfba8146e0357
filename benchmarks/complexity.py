"""Counts of image networks beside torch's counter, and networks beside another library's."""

from __future__ import annotations

import functools
from importlib import import_module, metadata
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from allometry.measure import convolution_counts
from allometry.models import RegNetConfig, regnet, regnet_config
from benchmarks import Case


def _torch_counts(model: torch.nn.Module, images: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return counter.get_total_flops()


def _step(model: torch.nn.Module, images: torch.Tensor) -> None:
    out: Any = model(images)
    getattr(out, "logits", out).sum().backward()
    model.zero_grad(set_to_none=True)


def cases() -> list[Case]:
    """RegNetY-4.0GF is counted on the meta device; a RegNet of the same kind is trained for a step."""
    torch.set_num_threads(1)
    config = regnet_config("Y-4.0GF")
    with torch.device("meta"):
        model, images = config.build().eval(), torch.empty(1, 3, 224, 224)
    found = [
        Case(
            "measure: counts of RegNetY-4.0GF", functools.partial(convolution_counts, model, images),
            functools.partial(_torch_counts, model, images), "torch's FlopCounterMode", 1.0,
            note="the peer counts flops alone; ours also biases, activations and parameters, by module",
        )
    ]  # fmt: skip
    transformers = import_module("transformers")
    small = RegNetConfig((32, 64, 128, 256), (1, 1, 4, 2), (16,) * 4, squeeze=0.25, resolution=96)
    theirs = transformers.RegNetForImageClassification(
        transformers.RegNetConfig(
            hidden_sizes=small.widths, depths=small.depths, groups_width=16, num_labels=1000
        )
    )
    batch = torch.randn(8, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    found.append(
        Case(
            "models: a training step of a RegNetY",
            functools.partial(_step, regnet(small).train(), batch),
            functools.partial(_step, theirs.train(), batch),
            f"transformers {metadata.version('transformers')}",
            0.95,
            rounds=9,
            note="one thread; 8 images",
        )
    )
    return found
