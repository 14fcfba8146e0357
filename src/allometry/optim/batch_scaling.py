"""Learning rates from curvature: the largest stable one at any batch size, and a schedule that measures.

Granziol, Zohren and Roberts, "Learning Rates as a Function of Batch Size", 2020. arXiv:2006.09092.  A step
along a direction of curvature λ is stable below 2 / λ, and what counts is the curvature of the *batch*
(`allometry.measure.hessian_noise`), ``λ + c / b``: the largest rate of SGD grows with the batch until noise
adds no more than there is, at ``b = c / λ``, and is ``2 / λ`` from there. Adam's steps are divided by the
gradient's root mean square, which falls with the batch as well: while noise makes both, that leaves ``√b``.

The largest stable rate is not the best rate; both depend on the batch, and only the first is told here.

- `max_learning_rate` and `rescale` say which rate; `CurvatureSchedule` sets it in training, from Lanczos'
  method on the current batch (section 6).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from allometry.measure.curvature import CurvatureOperator
from allometry.measure.hessian_noise import HessianNoise, batch_eigenvalue_law
from allometry.measure.lanczos import lanczos

if TYPE_CHECKING:
    from allometry.measure.gradient_noise import NoiseScale

__all__ = ["CurvatureSchedule", "max_learning_rate", "rescale"]

Given = TypeVar("Given", float, torch.optim.Optimizer)
_RULES = ("linear", "sqrt", "saturating")


def max_learning_rate(
    noise: HessianNoise, batch: Any, *, optimizer: Literal["sgd", "adam"] = "sgd", momentum: float = 0.0,
    dataset_size: float | None = None, gradient: NoiseScale | None = None, parameters: int | None = None,
    weight_decay: float = 0.0,
) -> np.ndarray[Any, Any]:  # fmt: skip
    """The largest learning rate that batches of a size are expected to bear.

    Parameters
    ----------
    noise : HessianNoise
    batch : array_like
        Batch sizes.
    optimizer : {"sgd", "adam"}
    momentum : float
        ρ of SGD, with which ``η < 2 (1 + ρ) / λ``; of Adam its first beta, whose average of gradients is
        scaled by ``1 - β``: ``η < 2 (1 + β) / (1 - β) / λ``, with λ of the preconditioned curvature.
    dataset_size : int, optional
        As in `allometry.measure.batch_eigenvalue_law`.
    gradient : NoiseScale, optional
        For Adam: its denominator is taken as the root of ``(|G|² + tr Σ / b) / P``, alike for all
        parameters, and its epsilon as small beside that. It tells the shape of the curve; the rates that a
        perceptron bore were 1.4 to 12 times smaller (the study of this paper), since small gradients and
        large curvature meet in some parameters.
    parameters : int, optional
        P, for Adam.
    weight_decay : float
        An L2 penalty's factor: added to the curvature.

    Returns
    -------
    ndarray, of the shape of ``batch``

    Raises
    ------
    ValueError
        Momentum out of [0, 1), an unknown optimizer, Adam without ``gradient`` and ``parameters``, batches
        out of range.

    Examples
    --------
    >>> noise = HessianNoise("directional", 2.0, 32.0, 0.1, 1.0, 100, torch.tensor([2.0, 1.0]))
    >>> noise.critical_batch, max_learning_rate(noise, [1, 16, 1024]).round(3).tolist()
    (16.0, [0.059, 0.5, 0.985])
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be from 0 to below 1, not {momentum}")
    if optimizer not in ("sgd", "adam"):
        raise ValueError(f"optimizer is 'sgd' or 'adam', not {optimizer!r}")
    curvature = batch_eigenvalue_law(noise, batch, dataset_size) + weight_decay
    if optimizer == "sgd":
        return 2.0 * (1.0 + momentum) / curvature
    if gradient is None or not parameters:
        raise ValueError("Adam's denominator is the gradient's size: give gradient= and parameters=")
    squares = max(gradient.squared_gradient, 0.0) + max(gradient.trace, 0.0) / np.asarray(batch, float)
    return 2.0 * (1.0 + momentum) / (1.0 - momentum) * np.sqrt(squares / parameters) / curvature


def rescale(
    given: Given, batch: float, to: float, rule: Literal["linear", "sqrt", "saturating"], *,
    noise: HessianNoise | None = None, dataset_size: float | None = None, adam_betas: bool = False,
) -> Given:  # fmt: skip
    """A learning rate, or an optimizer's, from one batch size to another.

    Parameters
    ----------
    given : float or torch.optim.Optimizer
        An optimizer's groups are changed in place: ``lr``, and ``initial_lr`` where a scheduler put one (a
        scheduler made before keeps rates of its own: make it afterwards, or take
        `allometry.optim.adapt_loop_to_batch_`). A decay that is independent of the rate stays.
    batch, to : int
        The batch size that the rate is for, and the one wanted.
    rule : {"linear", "sqrt", "saturating"}
        There is no default. ``"linear"`` is for SGD well below the critical batch, ``"sqrt"`` for Adam there;
        ``"saturating"`` keeps the rate's share of the largest stable one and needs ``noise``.
    noise, dataset_size
        As in `max_learning_rate`.
    adam_betas : bool
        Also the betas, as powers ``to / batch``: averages then reach as many samples back as before.

    Returns
    -------
    as ``given``

    Raises
    ------
    ValueError
        Batches that are not positive, an unknown rule, ``"saturating"`` without noise, betas that are not
        there.

    Examples
    --------
    >>> rescale(0.1, 64, 256, "sqrt"), rescale(rescale(0.1, 64, 256, "linear"), 256, 64, "linear")
    (0.2, 0.1)
    """
    for name, value in (("batch", batch), ("to", to)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be positive, not {value}")
    if rule not in _RULES:
        raise ValueError(f"rule must be one of {', '.join(_RULES)}, not {rule!r}")
    if rule == "saturating":
        if noise is None:
            raise ValueError("the saturating rule needs noise= (see allometry.measure.hessian_noise)")
        before, after = batch_eigenvalue_law(noise, [batch, to], dataset_size)
        factor = float(before / after)
    else:
        factor = to / batch if rule == "linear" else math.sqrt(to / batch)
    if not isinstance(given, torch.optim.Optimizer):
        if adam_betas:
            raise ValueError("a rate has no betas: give the optimizer")
        return given * factor
    if adam_betas and not all("betas" in group for group in given.param_groups):
        raise ValueError(f"{type(given).__name__} has no betas to change")
    for group in given.param_groups:
        for name in ("lr", "initial_lr"):
            if name in group:
                group[name] = group[name] * factor  # a tensor stays one
        if "independent_weight_decay" in group:  # which torch's step multiplies by the rate
            group["weight_decay"] = group["weight_decay"] / factor
        if adam_betas:
            group["betas"] = tuple(float(beta) ** (to / batch) for beta in group["betas"])
    return given


class CurvatureSchedule:
    """Sets an optimizer's rate, and its momentum, from the curvature of the current batch.

    Every ``every`` steps some steps of Lanczos' method tell the largest eigenvalue ``λ₁`` and the smallest
    positive one that they see, ``λ_s``; weight decay is added to both.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        SGD, or any for which the rules make sense; all groups get one rate.
    model : nn.Module
        Looked at in evaluation mode, and put back.
    loss_fn : (output, target) -> Tensor (), optional
    every : int
        Training steps from one measurement to the next; an epoch in the paper.
    first : int
        Steps before the first measurement, taken at the rate that the optimizer came with. Where a network
        begins flat and sharpens, as many do without normalization, what its start would bear is far too
        large a moment later.
    steps : int
        Of Lanczos' method.
    rule : {"heavy_ball", "two_over_lambda"}
        Polyak's rate ``(2 / (√λ₁ + √λ_s))²`` and momentum ``((√λ₁ - √λ_s) / (√λ₁ + √λ_s))²``, the latter at
        most 0.95 (times ``safety``, the rate), or ``2 / λ₁``.
    safety : float
        Factor on the rate, above 0 and at most 1: curvature moves between measurements, and batches differ.
    most : float, optional
        No rate above this is set, however flat it is.
    operator : {"hessian", "ggn"}
    objective, include
        As in `allometry.measure.CurvatureOperator`.
    generator : torch.Generator, optional

    Attributes
    ----------
    last : dict or None
        ``step``, ``largest``, ``smallest``, ``rate``, ``momentum`` of the last measurement.

    Warns
    -----
    RuntimeWarning
        Curvature that is not finite; the rate is then left as it is.

    Raises
    ------
    ValueError
        A number out of range, an unknown rule, or groups without momentum for ``"heavy_ball"``; a batch whose
        loss is not finite.

    Examples
    --------
    >>> line = nn.Linear(1, 1, bias=False)
    >>> optimizer = torch.optim.SGD(line.parameters(), lr=1.0)
    >>> schedule = CurvatureSchedule(optimizer, line, nn.functional.mse_loss, every=10, steps=1,
    ...                              rule="two_over_lambda", safety=0.5)
    >>> schedule.step((torch.ones(4, 1), torch.zeros(4, 1)))  # curvature 2
    >>> round(optimizer.param_groups[0]["lr"], 6)
    0.5
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor] | None = None, *, every: int, first: int = 0, steps: int = 10,
        rule: Literal["heavy_ball", "two_over_lambda"] = "heavy_ball", safety: float = 0.5,
        most: float | None = None,
        operator: Literal["hessian", "ggn"] = "hessian",
        objective: Callable[[nn.Module, Any], Tensor] | None = None, include: Sequence[str] = ("*",),
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        for name, value in (("every", every), ("steps", steps)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if first < 0:
            raise ValueError(f"first must not be negative, not {first}")
        if rule not in ("heavy_ball", "two_over_lambda"):
            raise ValueError(f"rule is 'heavy_ball' or 'two_over_lambda', not {rule!r}")
        if not 0 < safety <= 1:
            raise ValueError(f"safety must be above 0 and at most 1, not {safety}")
        if most is not None and not most > 0:
            raise ValueError(f"most must be a positive rate, not {most}")
        if rule == "heavy_ball" and not all("momentum" in group for group in optimizer.param_groups):
            raise ValueError(
                f"{type(optimizer).__name__} has no momentum to set; take rule='two_over_lambda'"
            )
        self.optimizer, self.model, self.loss_fn = optimizer, model, loss_fn
        self.every, self.first, self.steps = int(every), int(first), int(steps)
        self.rule, self.safety, self.most = rule, float(safety), math.inf if most is None else float(most)
        self.operator, self.objective, self.include = operator, objective, include
        self.generator = generator or torch.Generator().manual_seed(0)
        self.count = 0
        self.last: dict[str, float] | None = None

    def step(self, batch: Any) -> None:
        """Before a training step, with the batch that it is going to see."""
        if self.count >= self.first and (self.count - self.first) % self.every == 0:
            self._measure(batch)
        self.count += 1

    def _measure(self, batch: Any) -> None:
        modes = [(one, one.training) for one in self.model.modules()]
        self.model.eval()
        try:
            curvature = CurvatureOperator(
                self.model, self.loss_fn, [batch], operator=self.operator, objective=self.objective,
                include=self.include,
            )  # fmt: skip
        finally:
            for one, mode in modes:
                one.training = mode
        steps = min(self.steps, curvature.dim)
        try:
            values, _ = lanczos(
                lambda v: _finite(curvature(v)), curvature.dim, steps, self.generator,
                dtype=curvature.dtype, device=curvature.device,
            ).quadrature()  # fmt: skip
        except _LostError:
            warnings.warn(
                "the curvature of the batch is not finite, and the rate is left as it is: this run is lost",
                RuntimeWarning, stacklevel=3,
            )  # fmt: skip
            return
        decay = max(float(group.get("weight_decay", 0.0)) for group in self.optimizer.param_groups)
        positive = values[values > 0]
        if not len(positive):  # nowhere bent upward: nothing that limits a rate was seen
            return
        largest, smallest = float(positive.max()) + decay, float(positive.min()) + decay
        momentum = None
        if self.rule == "two_over_lambda":
            rate = 2.0 / largest
        else:
            up, down = math.sqrt(largest), math.sqrt(smallest)
            rate, momentum = (2.0 / (up + down)) ** 2, min(((up - down) / (up + down)) ** 2, 0.95)
        rate = min(rate * self.safety, self.most)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
            if momentum is not None:
                group["momentum"] = momentum
        self.last = {
            "step": float(self.count), "largest": largest, "smallest": smallest, "rate": rate,
            "momentum": math.nan if momentum is None else momentum,
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Where it is: steps, the last measurement, and the random stream."""
        return {"count": self.count, "last": self.last, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; the optimizer brings its own rates."""
        self.count, self.last = int(state["count"]), state["last"]
        self.generator.set_state(state["generator"])


class _LostError(ArithmeticError):
    """Weights so large that a product overflows."""


def _finite(found: Tensor) -> Tensor:
    if not bool(torch.isfinite(found).all()):
        raise _LostError
    return found
