"""The z-loss as a switch on a model that computes its own loss, as those of ``transformers`` do.

Wortsman and others, 2023, arXiv:2309.14322; the penalty itself is in :mod:`allometry.optim.z_loss`. It is
added by a forward hook, so that weights, ``state_dict`` and any trainer stay as they are.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from allometry.optim.z_loss import z_loss

__all__ = ["add_z_loss_"]


def add_z_loss_(
    model: nn.Module, coefficient: float = 1e-4, *, shift: bool = True, ignore_index: int = -100
) -> RemovableHandle:
    """Add ``coefficient`` x mean log² Z to the loss that a model returns, in training only.

    In evaluation mode the loss stays the cross-entropy, which is what models are compared by.

    Parameters
    ----------
    model : nn.Module
        Whose output has ``loss`` and ``logits`` (..., T, V) when it is called with ``labels``.
    coefficient : float
    shift : bool
        Whether the logits of a position are judged by the label of the next, as in causal language models:
        the last position then does not count.
    ignore_index : int
        Positions with this label do not count, as in the model's own cross-entropy.

    Returns
    -------
    RemovableHandle
        ``handle.remove()`` switches it off.

    Raises
    ------
    ValueError
        For a negative coefficient, or a second switch on one model. In the forward pass, where there are
        labels and no loss, no logits, or not as many labels as rows of logits.

    Notes
    -----
    A trainer that divides sums of losses itself (``num_items_in_batch``) sees the mean over this call's
    positions added, not a share of its sum.

    Examples
    --------
    >>> import torch
    >>> from types import SimpleNamespace
    >>> class Model(nn.Module):
    ...     def forward(self, x, labels):
    ...         return SimpleNamespace(loss=torch.zeros(()), logits=x)
    >>> model = Model(); handle = add_z_loss_(model, 1.0)
    >>> round(float(model(torch.zeros(1, 3, 4), labels=torch.ones(1, 3).long()).loss), 4)  # ln(4) squared
    1.9218
    """
    if not 0 <= coefficient < float("inf"):
        raise ValueError(f"the coefficient of the z-loss must be at least 0 and finite, got {coefficient!r}")
    if any(isinstance(hook, _Penalty) for hook in model._forward_hooks.values()):
        raise ValueError("this model has a z-loss already; remove its handle first")
    return model.register_forward_hook(_Penalty(coefficient, shift, ignore_index), with_kwargs=True)


class _Penalty:
    """The hook; an object, so that models with it can be copied and pickled."""

    def __init__(self, coefficient: float, shift: bool, ignore_index: int) -> None:
        self.coefficient, self.shift, self.ignore_index = coefficient, shift, ignore_index

    def __call__(self, model: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        labels = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments.get("labels")
        if labels is None or not model.training:
            return output
        loss, logits = getattr(output, "loss", None), getattr(output, "logits", None)
        if not isinstance(loss, Tensor) or not isinstance(logits, Tensor):
            raise ValueError(
                f"the z-loss needs an output with loss and logits, and {type(model).__name__} gave a "
                f"{type(output).__name__}; call it with return_dict=True, or use CrossEntropyWithZ"
            )
        if logits.shape[:-1] != labels.shape:
            raise ValueError(
                "the z-loss needs a label for each row of logits; their shapes are "
                f"{tuple(labels.shape)} and {tuple(logits.shape)}"
            )
        if self.shift:
            logits, labels = logits[..., :-1, :], labels[..., 1:]
        counts = (labels != self.ignore_index).to(logits.device)
        output.loss = loss + z_loss(logits, self.coefficient, counts)
        return output
