"""AdamW whose weight decay does not depend on the learning rate.

Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2017, arXiv:1711.05101. Their equation is

    θ ← θ − s_t · (η · m̂ / (√v̂ + ε) + λ · θ),

with s_t the schedule, between 0 and 1. ``torch.optim.AdamW`` multiplies λ by the peak rate η as well, so that
a sweep over η, or µP's rates that fall with width, silently sweep the decay too. Wherever rate or width is an
axis this optimizer keeps them apart (Wortsman and others, 2023, arXiv:2309.14322, call it independent decay).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["AdamWIndependent"]


class AdamWIndependent(torch.optim.AdamW):
    """AdamW as its paper has it: the decay follows the schedule and never the peak learning rate.

    Each group's ``lr`` at the time it is added is its peak η. The step is torch's own, with the group's
    decay set to λ/η, so that schedulers, which change ``lr``, scale step and decay together, and fused
    kernels work. λ itself stands in the group as ``independent_weight_decay``.

    Parameters
    ----------
    params : iterable of Tensor or of groups
    lr : float
        The peak rate of groups that bring none. A group whose peak rate is 0 is frozen: no schedule can be
        read off it, so it does not decay either.
    betas : (float, float)
        (0.9, 0.95), the habit of language models.
    eps : float
    weight_decay : float
        λ, the share of a parameter that vanishes in a step at full schedule; 1e-4 to 1e-3 are usual, about
        what a decay of 0.1 comes to at rates of 1e-3 to 1e-2 in ``torch.optim.AdamW``.
    fused, foreach, capturable, maximize
        As in ``torch.optim.AdamW``.

    Raises
    ------
    ValueError
        If a group's decay is negative, or 1 and above, which would turn parameters around.

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.ones(1))
    >>> optimizer = AdamWIndependent([weight], lr=1e-9, weight_decay=0.25)
    >>> weight.grad = torch.zeros(1)
    >>> optimizer.step()
    >>> round(weight.item(), 6)
    0.75
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        fused: bool | None = None,
        foreach: bool | None = None,
        capturable: bool = False,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            fused=fused,
            foreach=foreach,
            capturable=capturable,
            maximize=maximize,
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its ``lr`` now is its peak, its ``weight_decay`` is λ."""
        decay = float(param_group.get("weight_decay", self.defaults["weight_decay"]))
        if not 0 <= decay < 1:
            raise ValueError(
                "an independent weight_decay is the share of a weight that vanishes in one step, at least 0 "
                f"and below 1; got {decay!r} (torch's decay times the peak rate is the figure wanted)"
            )
        peak = float(param_group.get("lr", self.defaults["lr"]))
        inner = decay / peak if peak > 0 else 0.0
        super().add_param_group({**param_group, "weight_decay": inner, "independent_weight_decay": decay})
