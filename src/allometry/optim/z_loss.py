"""A small penalty on the softmax's normaliser, so that output logits stay log-probabilities.

Cross-entropy does not see a constant added to all logits of a position, so at high learning rates log Z =
logsumexp(logits) may drift until the numbers are too coarse for their differences. Adding coefficient x
mean(log² Z) holds it near zero. Used by PaLM (Chowdhery and others, 2022. arXiv:2204.02311) and studied from
small models on by Wortsman and others, 2023. arXiv:2309.14322, whose coefficient is the default.

* One logsumexp serves the cross-entropy, the penalty and both their gradients.
* The penalty's gradient is 2 x coefficient x log Z x softmax a position: it moves every logit of a position
  the same way, in proportion to its probability.
* A position that the cross-entropy leaves out, the penalty leaves out too.
* Logits in half precision are taken to float32 first: log² Z needs more than three digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def z_loss(logits: Tensor, coefficient: float = 1e-4, mask: Tensor | None = None) -> Tensor:
    """``coefficient`` x mean of log² Z, with Z the sum of exp(logits) over the last dimension.

    Parameters
    ----------
    logits : Tensor, shape (..., V)
    coefficient : float
    mask : Tensor of bool, shape (...), optional
        Positions that count; the same as in the cross-entropy. If none does, the answer is nan, as is
        torch's cross-entropy.

    Returns
    -------
    Tensor, shape ()

    Raises
    ------
    ValueError
        For a negative coefficient, or a mask of another shape.

    >>> round(float(z_loss(torch.zeros(2, 3, 4), coefficient=1.0)), 4)  # ln(4) squared
    1.9218
    """
    _check_coefficient(coefficient)
    if mask is not None and mask.shape != logits.shape[:-1]:
        raise ValueError(
            f"mask must have the shape of the logits without their last dimension, "
            f"{tuple(logits.shape[:-1])}, got {tuple(mask.shape)}"
        )
    return coefficient * _mean(torch.logsumexp(_wide(logits), -1).square(), mask)


def cross_entropy_with_z(
    logits: Tensor, targets: Tensor, coefficient: float = 1e-4, ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy in nats plus the z-loss, and the cross-entropy alone.

    Parameters
    ----------
    logits : Tensor, shape (..., V)
    targets : Tensor of int, shape (...)
    coefficient : float
        0 leaves the cross-entropy.
    ignore_index : int
        Targets that count in neither term.

    Returns
    -------
    loss, cross_entropy : Tensor, shape ()
        Optimize the first; report the second, which is what models without the penalty are compared by.

    Raises
    ------
    ValueError
        For a negative coefficient, or targets of another shape.

    >>> loss, nats = cross_entropy_with_z(torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.long), 0.1)
    >>> round(float(nats), 4), round(float(loss - nats), 5)
    (1.3863, 0.19218)
    """
    _check_coefficient(coefficient)
    if targets.shape != logits.shape[:-1]:
        raise ValueError(
            f"targets must have the shape of the logits without their last dimension, "
            f"{tuple(logits.shape[:-1])}, got {tuple(targets.shape)}"
        )
    wide = _wide(logits)
    counts = targets != ignore_index
    log_z = torch.logsumexp(wide, -1)
    # gather refuses indices out of range, so ignored ones point anywhere and are masked afterwards
    chosen = wide.gather(-1, targets.masked_fill(~counts, 0).unsqueeze(-1)).squeeze(-1)
    cross_entropy = _mean(log_z - chosen, counts)
    return cross_entropy + coefficient * _mean(log_z.square(), counts), cross_entropy


@dataclass(frozen=True)
class CrossEntropyWithZ:
    """:func:`cross_entropy_with_z` with its settings, as one loss ``(logits, targets) -> ()``.

    Equal settings are equal objects, so that ``Stack.losses(inputs, targets, CrossEntropyWithZ())`` finds the
    program that it traced before. As the objective of ``train.fit``, for a stack:
    ``lambda stack, inputs, targets: stack.losses(inputs, targets, CrossEntropyWithZ())``.

    >>> loss = CrossEntropyWithZ(coefficient=0.0)
    >>> round(float(loss(torch.zeros(3, 2), torch.zeros(3, dtype=torch.long))), 4)
    0.6931
    """

    coefficient: float = 1e-4
    ignore_index: int = -100

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss to optimize, penalty included."""
        return cross_entropy_with_z(logits, targets, self.coefficient, self.ignore_index)[0]


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.mean()
    return torch.where(mask, values, 0.0).sum() / mask.sum()


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _check_coefficient(coefficient: float) -> None:
    if not 0 <= coefficient < float("inf"):
        raise ValueError(f"the coefficient of the z-loss must be at least 0 and finite, got {coefficient!r}")
