"""The training loop beside one written by hand, and generation with a cache beside reading all again.

The hand-written loop does the same arithmetic on the same model, optimizer, clipping and schedule, and keeps
the same loss; what is compared is what the loop adds: the guard against losses that are not finite, the
watch for divergence, the log.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allometry.data import Windows
from allometry.models.gpt import GPT, GPTConfig
from allometry.optim.adamw import AdamWIndependent
from allometry.optim.schedules import cosine
from allometry.train.loop import fit
from benchmarks import Case

STEPS = 30


def _start(width: int, context: int) -> tuple[GPT, Windows, torch.optim.Optimizer]:
    model = GPT(GPTConfig(width=width, depth=3, context=context))
    text = torch.randint(256, (100_000,), generator=torch.Generator().manual_seed(0))
    return model, Windows(text, context, 8, seed=0), AdamWIndependent(model.parameters(), 3e-3, fused=True)


def _training(width: int, context: int = 64) -> Case:
    mine, theirs = _start(width, context), _start(width, context)

    def ours() -> Any:
        model, windows, optimizer = mine
        return fit(model, windows, optimizer=optimizer, horizons=STEPS, schedule=cosine)

    def peer() -> list[float]:
        model, windows, optimizer = theirs
        losses = []
        for step in range(STEPS):
            inputs, targets = windows.batch(step)
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * cosine(step, STEPS)
            loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
        return losses

    return Case(
        f"train: {STEPS} steps, width {width}",
        ours,
        peer,
        "a loop by hand",
        0.95,
        rounds=9,
        note="the same arithmetic, so 1.0 is the most there is; a twentieth is left to noise",
    )


def _generation(width: int, context: int, target: float) -> Case:
    model = GPT(GPTConfig(width=width, depth=4, context=context, zero_init_outputs=False)).eval()
    prompt = torch.randint(256, (1, 8), generator=torch.Generator().manual_seed(1))
    new = context - 8

    def ours() -> Tensor:
        return model.generate(prompt, new, temperature=0)

    @torch.no_grad()
    def peer() -> Tensor:
        tokens = prompt
        for _ in range(new):
            tokens = torch.cat((tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)), dim=1)
        return tokens

    assert torch.equal(ours(), peer())
    return Case(
        f"train: {new} tokens from a cache, width {width}",
        ours,
        peer,
        "all read again at each token",
        target,
        rounds=3,
    )


def cases() -> list[Case]:
    """Training at two sizes, generation at two lengths."""
    return [_training(32), _training(128), _generation(128, 128, 1.5), _generation(128, 384, 3.0)]
