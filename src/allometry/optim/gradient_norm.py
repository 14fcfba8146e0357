"""Gradients divided by their root mean square before every step.

One of the techniques whose gain vanishes with scale in "Rethinking Conventional Wisdom in Machine Learning",
Lechao Xiao, 2024. arXiv:2409.15156; the paper names it and leaves the crossing unexplained.

Adam does not see a constant factor on its gradients (up to its epsilon), so under Adam this acts only through
the change of the norm over time, in both moving averages.  Clipping beside it is always on or always off.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["GradientRMSNorm"]


class GradientRMSNorm:
    """Normalise an optimizer's gradients before each of its steps; a hook, so any optimizer stays what it is.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Stepped without a closure.  With ``torch.amp.GradScaler`` gradients are unscaled before.
    mode : {"global", "tensor"}
        One root mean square for all gradients, or each tensor's own.
    eps : float
        Added to it.

    The optimizer of a stack of replicas (`allometry.train.Stack`) is known by its stack: each replica is
    normalised alone, as a single run would be, by its global norm.

    Raises
    ------
    ValueError
        Unknown mode, or an eps that is not positive.

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.zeros(4))
    >>> optimizer = torch.optim.SGD([weight], lr=1.0)
    >>> norm = GradientRMSNorm(optimizer)
    >>> weight.grad = torch.full((4,), 100.0)
    >>> optimizer.step()
    >>> weight.tolist()
    [-1.0, -1.0, -1.0, -1.0]
    >>> norm.remove()
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        mode: Literal["global", "tensor"] = "global",
        *,
        eps: float = 1e-8,
    ) -> None:
        if mode not in ("global", "tensor"):
            raise ValueError(f"mode must be 'global' or 'tensor', not {mode!r}")
        if not eps > 0:
            raise ValueError(f"eps must be positive, not {eps}")
        if hasattr(optimizer, "stack") and mode == "tensor":
            raise ValueError(
                "in a stack all tensors of a replica are one row: only mode 'global' is possible"
            )
        self.mode, self.eps = mode, eps
        self._handle = optimizer.register_step_pre_hook(self._normalise)

    def remove(self) -> None:
        """Leave the optimizer as it was."""
        self._handle.remove()

    @torch.no_grad()
    def _normalise(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        told = [one for one in args if one is not optimizer]  # torch hands the optimizer on as the first
        if any(one is not None for one in (*told, kwargs.get("closure"))):
            raise ValueError("a closure computes gradients after this looks at them; step without one")
        stack = getattr(optimizer, "stack", None)
        if stack is not None:  # its parameters are pieces of one matrix, a row a replica
            rows = stack.weights.grad
            if rows is not None:
                rows.div_(rows.square().mean(1, keepdim=True).sqrt().add_(self.eps))
            return
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if not gradients:
            return
        if any(gradient.is_sparse for gradient in gradients):
            raise ValueError("sparse gradients are not normalised: their zeros are not stored")
        if self.mode == "tensor":
            for gradient in gradients:
                gradient.div_(self._divisor(self._square_mean(gradient), gradient))
            return
        count = sum(gradient.numel() for gradient in gradients)
        total = sum(self._square_mean(gradient) * (gradient.numel() / count) for gradient in gradients)
        assert isinstance(total, Tensor)
        for gradient in gradients:
            gradient.div_(self._divisor(total.to(gradient.device), gradient))

    def _square_mean(self, gradient: Tensor) -> Tensor:
        wide = gradient.float() if gradient.dtype in (torch.float16, torch.bfloat16) else gradient
        return wide.square().mean()

    def _divisor(self, square_mean: Tensor, gradient: Tensor) -> Tensor:
        return (square_mean.sqrt() + self.eps).to(gradient.dtype)
