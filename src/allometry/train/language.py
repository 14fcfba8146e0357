"""Language models: the loss, the fixed validation windows, the training of one model or a stack of them.

Losses are in nats a token. ``bits_per_byte`` divides by what the tokens stand for, so that models with
different tokenizers can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allometry.models.gpt import GPT, GPTConfig
from allometry.optim.schedules import WSD
from allometry.train.loop import TrainLog, fit
from allometry.train.meter import Meter
from allometry.train.seeds import Seeds

if TYPE_CHECKING:
    from allometry.data import Corpus


def bits_per_byte(nats_per_token: float, bytes_per_token: float = 1.0) -> float:
    """Bits a byte of text, from the mean loss a token and the mean number of UTF-8 bytes a token.

    >>> bits_per_byte(math.log(256))
    8.0
    """
    return nats_per_token / (math.log(2.0) * bytes_per_token)


def next_token_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats: () for one model, (R,) for a stack.

    ``inputs`` and ``targets`` are (B, T), or (R, B, T) for a stack. ``transformers`` models are welcome.
    """
    stacked = getattr(model, "losses", None)
    if stacked is not None:
        return stacked(inputs, targets)
    output = model(inputs)
    logits = getattr(output, "logits", output)
    if logits.dtype in (torch.bfloat16, torch.float16):  # three digits are too few for a loss
        logits = logits.float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@torch.no_grad()
def evaluate(model: nn.Module, windows: tuple[Tensor, Tensor], *, batch: int = 64) -> Tensor:
    """Mean loss in nats over fixed windows, ``()`` for one model and ``(R,)`` for a stack.

    Parameters
    ----------
    windows : (inputs (M, T), targets (M, T))
        The same for every model that is compared.
    batch : int
        Windows a forward pass.
    """
    inputs, targets = windows
    if not len(inputs) or batch < 1:
        raise ValueError(f"at least one window and a batch of one are needed, got {len(inputs)} and {batch}")
    weights = next(iter(model.parameters()))
    replicas = getattr(model, "replicas", None)
    total: Tensor | float = 0.0
    modes = {module: module.training for module in model.modules()}
    model.eval()  # one model has one loss: no dropout
    try:
        for start in range(0, len(inputs), batch):
            x = inputs[start : start + batch].to(weights.device)
            y = targets[start : start + batch].to(weights.device)
            count = len(x)
            if replicas is not None:
                x, y = x.expand(replicas, *x.shape), y.expand(replicas, *y.shape)
            total = total + next_token_loss(model, x, y).double() * count
    finally:
        for module, mode in modes.items():
            module.training = mode
    return torch.as_tensor(total / len(inputs))


def train_language_model(
    config: GPTConfig,
    corpus: Corpus,
    *,
    tokens: int | Sequence[int],
    seed: int = 0,
    batch: int = 8,
    learning_rate: float = 5e-3,
    warmup: int = 100,
    decay: float = 0.25,
    validation_windows: int = 512,
    make_optimizer: Callable[[GPT], torch.optim.Optimizer] | None = None,
    **settings: Any,
) -> tuple[GPT, TrainLog]:
    """Train one byte or token model of ``config`` on ``corpus`` to each horizon in ``tokens``.

    ``make_optimizer`` gets the new model and may re-parametrize it first (``init.mup.apply_``); AdamW with
    independent decay at ``learning_rate`` otherwise. Other settings go to :func:`allometry.train.fit`. The
    last horizon's model is returned; each horizon's validation loss stands in the log as ``loss``.
    """
    from allometry.data import Windows
    from allometry.data import validation_windows as fixed
    from allometry.optim.adamw import AdamWIndependent

    seeds = Seeds(seed)
    model = GPT(config, generator=seeds.generator("init"))
    optimizer = (
        AdamWIndependent(model.parameters(), learning_rate)
        if make_optimizer is None
        else make_optimizer(model)
    )
    per_step = batch * config.context
    horizons = [tokens] if isinstance(tokens, int) else list(tokens)
    windows = fixed(corpus.tokens("validation"), config.context, validation_windows)
    log = fit(
        model,
        Windows(corpus.tokens("train"), config.context, batch, seed=seeds.integer("data")),
        optimizer=optimizer,
        horizons=[max(1, round(horizon / per_step)) for horizon in horizons],
        schedule=WSD(warmup=warmup, decay=decay),
        validate=lambda network: {"loss": float(evaluate(network, windows))},
        meter=Meter(per_step, 6.0 * config.macs_per_token()),
        **settings,
    )
    return model, log
