"""Classifiers: their loss, how they are validated, and several seeds of one trained as one program.

Validation is on all images of a split, in evaluation mode, the same for every model that is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allometry.train.loop import TrainLog
from allometry.train.stack import fit_stack

__all__ = ["classification_loss", "evaluate_classifier", "train_classifier"]


def classification_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats: () for one model, (R,) for a stack.

    ``inputs`` (B, ...) and ``targets`` (B,); (R, B, ...) and (R, B) for a stack.
    """
    stacked = getattr(model, "losses", None)
    if stacked is not None:
        found: Tensor = stacked(inputs, targets)
        return found
    output = model(inputs)
    logits = getattr(output, "logits", output)
    return F.cross_entropy(logits.float(), targets)


@torch.no_grad()
def evaluate_classifier(
    model: nn.Module, images: tuple[Tensor, Tensor], *, batch: int = 1000
) -> dict[str, Tensor]:
    """``loss`` in nats and ``error``, the share misjudged: () for one model, (R,) for a stack.

    Parameters
    ----------
    images : (inputs (N, ...), labels (N,))
    batch : int
        Images a forward pass.

    Examples
    --------
    >>> told = evaluate_classifier(nn.Linear(2, 3), (torch.zeros(4, 2), torch.tensor([0, 1, 2, 0])))
    >>> sorted(told)
    ['error', 'loss']
    """
    inputs, labels = images
    if len(inputs) != len(labels) or not len(inputs):
        raise ValueError(f"{len(inputs)} images and {len(labels)} labels; give as many labels")
    weights = next(iter(model.parameters()))
    replicas = getattr(model, "replicas", None)
    loss, wrong = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for start in range(0, len(inputs), batch):
            x = inputs[start : start + batch].to(weights.device)
            y = labels[start : start + batch].to(weights.device)
            if replicas is not None:
                x, y = x.expand(replicas, *x.shape), y.expand(replicas, *y.shape)
            logits = model(x)
            logits = getattr(logits, "logits", logits).float()
            each = F.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none").reshape(y.shape)
            loss = loss + each.double().sum(-1).cpu()
            wrong = wrong + (logits.argmax(-1) != y).double().sum(-1).cpu()
    finally:
        for module, mode in modes.items():
            module.training = mode
    return {"loss": loss / len(inputs), "error": wrong / len(inputs)}


def train_classifier(
    make_model: Callable[[torch.Generator], nn.Module],
    batches: Sequence[Any],
    *,
    validation: tuple[Tensor, Tensor],
    generators: Sequence[torch.Generator],
    horizons: int | Sequence[int],
    learning_rates: float | Sequence[float] | None = None,
    **settings: Any,
) -> list[TrainLog]:
    """Train one classifier for each generator, stacked; the log's horizons hold ``loss`` and ``error``.

    Parameters
    ----------
    make_model : generator -> nn.Module
    batches : sequence of sources
        One a generator, with ``batch(step) -> (inputs, labels)``.
    validation : (inputs (N, ...), labels (N,))
    generators : sequence of torch.Generator
    horizons : int or sequence of int
        In steps.
    learning_rates : float or sequence of floats, optional
    **settings
        For `fit_stack` and `fit`.

    Returns
    -------
    list of TrainLog
    """
    return fit_stack(
        make_model, len(generators), batches, generators=generators, horizons=horizons,
        learning_rates=learning_rates, validate=lambda stack: evaluate_classifier(stack, validation),
        **settings,
    )  # fmt: skip
