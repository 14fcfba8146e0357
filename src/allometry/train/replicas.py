"""Several small models of one shape, trained as one program, each as if it were alone.

A small model leaves a machine idle: its step is hundreds of tiny operators. Ladders, seeds and learning-rate
sweeps want many such models, so they are stacked: parameters of shape (R, ...), losses of shape (R,).

* Forward and backward are traced once and run as a fixed program (:mod:`allometry.train.program`), over
  ``torch.func.vmap`` of any ``nn.Module``. :meth:`Stack.forward` is plain vmap and autograd.
* Replicas are computed together only while their activations stay in the cache; larger models take turns in
  one program, which still spares them dispatch, autograd and page faults. A stack of one model is of use too.
* Nothing is shared between replicas: clipping, rates, counts of steps and failures are each one's own. A
  replica without a finite loss does not move, and its numbers never enter another's.
* Equal to single runs up to the order of float32 sums.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from allometry.train.program import NotTraceable, Program
from allometry.train.small_attention import SmallAttention
from allometry.train.stack_optimizer import StackOptimizer

Loss = Callable[[Tensor, Tensor], Tensor]

CACHE_BYTES = 4 << 20  # the largest activation that is still computed for several replicas at once
_MOST_PROGRAMS = 16
_MOVES = -2  # in place of the step at which a replica was frozen


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of logits (..., V) against integers (...).

    >>> round(float(cross_entropy(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long))), 4)
    1.3863
    """
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


class Stack(nn.Module):
    """R models of one shape as one module whose losses have shape (R,).

    Parameters
    ----------
    models : sequence of nn.Module
        Equal in structure, parameter shapes and dtypes; copied. Dropout must be off: its draws could not be
        those of single runs. Frozen parameters (``requires_grad=False``) stay frozen.
    chunk : int, optional
        Replicas computed at once. By default as many as keep the largest activation within 4 MiB.

    Attributes
    ----------
    weights : nn.Parameter, shape (R, P)
        All trainable parameters, a row a replica; the one leaf that autograd knows.
    replicas : int
        R.
    frozen : dict of int to int
        Replica -> the step at which it was frozen (-1 where none was told).

    Raises
    ------
    ValueError
        If there are no models, they differ, use dropout, or mix dtypes.

    Examples
    --------
    >>> stack = Stack([nn.Linear(3, 2) for _ in range(4)])
    >>> tuple(stack(torch.ones(4, 5, 3)).shape)
    (4, 5, 2)
    >>> tuple(stack.losses(torch.ones(4, 5, 3), torch.zeros(4, 5, dtype=torch.long)).shape)
    (4,)
    """

    def __init__(self, models: Sequence[nn.Module], *, chunk: int | None = None) -> None:
        super().__init__()
        models = list(models)
        _check(models)
        self.replicas, self.chunk = len(models), chunk
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk is the number of replicas computed at once, at least 1, got {chunk}")
        # in a list, so that its parameters are not registered as the stack's
        self._template = [copy.deepcopy(models[0])]
        trained = [name for name, p in models[0].named_parameters() if p.requires_grad]
        sizes = dict(models[0].named_parameters())
        # vectors last: matrices, which usually share an optimizer group, are neighbours
        trained.sort(key=lambda name: sizes[name].ndim < 2)
        self.columns: dict[str, tuple[int, int, torch.Size]] = {}
        at = 0
        for name in trained:
            self.columns[name] = (at, at + sizes[name].numel(), sizes[name].shape)
            at += sizes[name].numel()
        rows = [
            torch.cat([dict(m.named_parameters())[name].detach().flatten() for name in trained])
            for m in models
        ]
        self.weights = nn.Parameter(torch.stack(rows))
        self._shared, self._own = _fixed_tensors(models)
        device = self.weights.device
        self.register_buffer(
            "_frozen_at", torch.full((self.replicas,), _MOVES, dtype=torch.long, device=device)
        )
        self._zeroed = torch.zeros(self.replicas, dtype=torch.bool, device=device)  # by the last clipping
        self._programs: dict[Hashable, tuple[Program | None, int]] = {}
        self.untraced: str | None = None  # why programs are not used, where they are not

    _frozen_at: Tensor

    # -- what it holds ---------------------------------------------------------------------------------

    @property
    def stacked(self) -> dict[str, Tensor]:
        """Views of the trainable parameters by name, each of shape (R, ...)."""
        rows = self.weights.data
        return {n: rows[:, a:b].view(self.replicas, *shape) for n, (a, b, shape) in self.columns.items()}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """Parameters and buffers by their names in one model, each of shape (R, ...), and who is frozen."""
        return {**self.stacked, **self._own, "stack.frozen": self._frozen_at}

    @torch.no_grad()
    def load_state_dict(
        self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False
    ) -> Any:
        """Go on from :meth:`state_dict`; values are copied."""
        mine = self.state_dict()
        unknown, missing = sorted(set(state_dict) - set(mine)), sorted(set(mine) - set(state_dict))
        if strict and (unknown or missing):
            raise ValueError(
                f"the state does not fit this stack: missing {missing[:5]}, unknown {unknown[:5]}"
            )
        for name in mine.keys() & state_dict.keys():
            if mine[name].shape != state_dict[name].shape:
                raise ValueError(
                    f"{name} has shape {tuple(state_dict[name].shape)} in the state "
                    f"and {tuple(mine[name].shape)} here"
                )
            mine[name].copy_(state_dict[name])

    @torch.no_grad()
    def unstack(self, replica: int) -> nn.Module:
        """A copy of one replica as an ordinary module."""
        if not -self.replicas <= replica < self.replicas:
            raise IndexError(f"replica {replica} of a stack of {self.replicas}")
        model = copy.deepcopy(self._template[0])
        values = {**self.stacked, **self._own}
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name in values:
                tensor.copy_(values[name][replica])
            tensor.grad = None
        model.train(self.training)
        return model

    def train(self, mode: bool = True) -> Stack:
        """Training or evaluation mode, of every replica."""
        super().train(mode)
        for template in getattr(self, "_template", ()):
            template.train(mode)
        return self

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Stack:
        super()._apply(function, recurse)
        self._template[0]._apply(function)
        for tensors in (self._shared, self._own):
            for name, value in tensors.items():
                tensors[name] = function(value)
        self._programs.clear()
        return self

    # -- what it computes ------------------------------------------------------------------------------

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (R, ...) of every replica on its own inputs (R, B, ...), differentiable by autograd."""
        self._check_inputs(inputs)
        with SmallAttention():
            return vmap(self._one, in_dims=(0, 0, None, 0))(
                self._named(self.weights), self._own, self._shared, inputs
            )

    def losses(self, inputs: Tensor, targets: Tensor, loss: Loss = cross_entropy) -> Tensor:
        """Each replica's loss on its own batch, shape (R,); ``.sum().backward()`` gives each its gradient.

        Parameters
        ----------
        inputs, targets : Tensor, shapes (R, B, ...)
        loss : (outputs, targets) of one replica -> (), a function that is defined once, not in the loop
            A frozen replica's loss is nan while gradients are recorded.
        """
        self._check_inputs(inputs)
        if targets.shape[:1] != inputs.shape[:1]:
            raise ValueError(
                f"targets start with {targets.shape[0]} replicas and inputs with {inputs.shape[0]}"
            )
        if torch.is_grad_enabled() and self.weights.requires_grad:
            return _Losses.apply(self.weights, self, inputs, targets, loss)
        return self._run(inputs, targets, loss, None)

    def _one(self, named: Any, own: Any, shared: Any, inputs: Tensor) -> Any:
        output = functional_call(self._template[0], {**named, **own, **shared}, (inputs,))
        return getattr(output, "logits", output)

    def _named(self, rows: Tensor) -> dict[str, Tensor]:
        parts = rows.split([b - a for a, b, _ in self.columns.values()], -1)
        return {
            name: part.view(*rows.shape[:-1], *shape)
            for part, (name, (_, _, shape)) in zip(parts, self.columns.items(), strict=True)
        }

    def _check_inputs(self, inputs: Tensor) -> None:
        if inputs.shape[:1] != (self.replicas,):
            raise ValueError(
                f"a stack of {self.replicas} takes inputs of shape ({self.replicas}, batch, ...), "
                f"got {tuple(inputs.shape)}"
            )

    def _run(self, inputs: Tensor, targets: Tensor, loss: Loss, gradient: Tensor | None) -> Tensor:
        """Losses (R,), and each replica's gradient in the rows of ``gradient``."""
        frozen = set(self.frozen) if gradient is not None else set()
        losses = torch.full((self.replicas,), torch.nan, device=self.weights.device)
        weights = self.weights.detach()
        program, size = self._program(inputs, targets, loss, gradient is not None)
        start = 0
        while start < self.replicas:
            rows = slice(start, min(start + size, self.replicas))
            start = rows.stop
            if frozen.issuperset(range(rows.start, rows.stop)):
                continue
            own = {name: value[rows] for name, value in self._own.items()}
            if program is None:
                found = self._direct(
                    weights[rows], own, inputs[rows], targets[rows], loss, gradient is not None
                )
            else:
                with torch.autocast(weights.device.type, enabled=False):  # casts are part of the program
                    found = program(
                        weights[rows], inputs[rows], targets[rows], *own.values(), *self._shared.values()
                    )
                if self.training:  # running statistics, which the program keeps in copies
                    for mine, used in zip(own.values(), program.inputs[3:], strict=False):
                        mine.copy_(used)
            losses[rows] = found[0].to(losses.dtype)
            if gradient is not None:
                gradient[rows] = found[1]
        if frozen:
            losses[sorted(frozen)] = torch.nan
            assert gradient is not None
            gradient[sorted(frozen)] = 0.0
        return losses

    def _direct(
        self,
        rows: Tensor,
        own: dict[str, Tensor],
        inputs: Tensor,
        targets: Tensor,
        loss: Loss,
        differentiate: bool,
    ) -> tuple[Tensor, ...]:
        """Losses (c,) and gradients (c, P) of c replicas: the function that programs are traced from."""
        count = rows.shape[0]

        def single(named: Any, own: Any, x: Tensor, y: Tensor) -> Tensor:
            return loss(self._one(named, own, self._shared, x), y)

        def several(named: dict[str, Tensor], own: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            if count == 1:  # without vmap, whose batched products gain nothing here
                first, its = ({n: t[0] for n, t in group.items()} for group in (named, own))
                losses = single(first, its, inputs[0], targets[0])[None]
            else:
                losses = vmap(single)(named, own, inputs, targets)
            return losses.sum(), losses

        named = self._named(rows)
        with SmallAttention():
            if not differentiate:
                return (several(named, own)[1],)
            gradients, (_, losses) = grad_and_value(several, has_aux=True)(named, own)
        return losses, torch.cat([gradients[name].reshape(count, -1) for name in self.columns], 1)

    def _program(
        self, inputs: Tensor, targets: Tensor, loss: Loss, differentiate: bool
    ) -> tuple[Program | None, int]:
        kind = self.weights.device.type
        cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = (
            loss, differentiate, self.training, cast, self.weights.data_ptr(),
            inputs.shape, inputs.dtype, targets.shape, targets.dtype,
        )  # fmt: skip
        if key in self._programs:
            return self._programs[key]
        if len(self._programs) >= _MOST_PROGRAMS:
            # new functions or shapes at every call would be traced at every call
            return None, self.chunk or 1
        size = self.chunk or self._fitting(inputs, targets, loss)
        size = max(n for n in range(1, min(size, self.replicas) + 1) if self.replicas % n == 0)
        shared = list(self._shared)

        def function(rows: Tensor, x: Tensor, y: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            own = dict(zip(self._own, rest, strict=False))
            before, self._shared = self._shared, dict(zip(shared, rest[len(own) :], strict=True))
            try:
                return self._direct(rows, own, x, y, loss, differentiate)
            finally:
                self._shared = before

        examples = [self.weights.detach()[:size], inputs[:size], targets[:size]]
        examples += [value[:size] for value in self._own.values()] + list(self._shared.values())
        fixed = range(len(examples) - len(shared), len(examples))
        program: Program | None = None
        try:
            program = Program(function, examples, fixed=fixed)
        except NotTraceable as error:
            self.untraced = str(error)
        self._programs[key] = program, size
        return program, size

    def _fitting(self, inputs: Tensor, targets: Tensor, loss: Loss) -> int:
        """How many replicas keep the largest intermediate within the cache."""
        largest = 1

        class Watch(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(
                self, function: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                nonlocal largest
                result = function(*args, **(kwargs or {}))
                if isinstance(result, Tensor) and result.is_floating_point():
                    largest = max(largest, result.numel() * result.element_size())
                return result

        own = {name: value[:1].clone() for name, value in self._own.items()}
        one = self.weights.detach()[:1].clone(), own, inputs[:1], targets[:1], loss, False
        with torch.no_grad(), Watch():
            self._direct(*one)
        return max(1, CACHE_BYTES // largest)

    # -- how it trains ---------------------------------------------------------------------------------

    def optimizer(
        self,
        make_optimizer: Callable[..., torch.optim.Optimizer],
        learning_rates: float | Sequence[float] | None = None,
    ) -> StackOptimizer:
        """One optimizer for all replicas, equal to one each.

        Parameters
        ----------
        make_optimizer : (model, learning_rate) -> Optimizer; without ``learning_rates``, (model) -> Optimizer
            What a single run would use; called once a replica, with a copy that it must not change.
        learning_rates : float or sequence of R floats, optional
        """
        models = [self.unstack(replica) for replica in range(self.replicas)]
        if learning_rates is None:
            return StackOptimizer(self, models, [make_optimizer(model) for model in models])
        rates = (
            [learning_rates] * self.replicas
            if isinstance(learning_rates, int | float)
            else list(learning_rates)
        )
        if len(rates) != self.replicas:
            raise ValueError(f"{len(rates)} learning rates for a stack of {self.replicas}")
        return StackOptimizer(
            self, models, [make_optimizer(m, rate) for m, rate in zip(models, rates, strict=True)]
        )

    @torch.no_grad()
    def clip_grad_norm(self, max_norm: float) -> Tensor:
        """Scale each replica's gradient down to ``max_norm``; its norms before, shape (R,).

        A gradient that is not finite becomes zero, and its norm is returned as it was.
        """
        gradient = self.weights.grad
        if gradient is None:
            return torch.zeros(self.replicas, device=self.weights.device)
        norms = torch.linalg.vector_norm(gradient, dim=1)
        gradient.mul_((max_norm / (norms + 1e-6)).clamp(max=1.0)[:, None])
        self._zeroed = ~norms.isfinite()
        if bool(self._zeroed.any()):
            gradient[self._zeroed] = 0.0
        return norms

    def forget_clipping(self) -> None:
        """Let replicas whose last gradient was not finite move again, once that gradient is gone."""
        self._zeroed = torch.zeros_like(self._zeroed)

    def freeze(self, replica: int, step: int = -1) -> None:
        """Stop a replica for good: no gradient, no update, nan as its training loss. The rest go on."""
        self._frozen_at[replica] = step

    @property
    def frozen(self) -> dict[int, int]:
        """Replica -> step at which it was frozen."""
        return {replica: step for replica, step in enumerate(self._frozen_at.tolist()) if step != _MOVES}

    @torch.no_grad()
    def healthy(self) -> Tensor:
        """Which replicas may move, shape (R,): not frozen, with a finite gradient of a finite loss."""
        fine = (self._frozen_at == _MOVES) & ~self._zeroed
        if self.weights.grad is not None:
            fine &= torch.linalg.vector_norm(self.weights.grad, dim=1).isfinite()
        return fine


class _Losses(torch.autograd.Function):
    """Losses whose gradient the program has computed together with them."""

    @staticmethod
    def forward(
        ctx: Any, weights: Tensor, stack: Stack, inputs: Tensor, targets: Tensor, loss: Loss
    ) -> Tensor:
        gradient = torch.empty_like(weights)
        losses = stack._run(inputs, targets, loss, gradient)
        ctx.gradient, ctx.frozen = gradient, sorted(stack.frozen)
        # without a finite loss a replica has no gradient to trust, whatever its numbers are
        ctx.factor = torch.ones_like(losses).masked_fill(~losses.isfinite(), torch.nan)
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError("the gradient of a stack's losses is there once; call losses again")
        gradient.mul_((upstream * ctx.factor)[:, None])
        gradient[ctx.frozen] = 0.0
        return gradient, None, None, None, None


def _check(models: list[nn.Module]) -> None:
    if not models:
        raise ValueError("a stack needs at least one model")
    first = {name: (p.shape, p.dtype, p.requires_grad) for name, p in models[0].named_parameters()}
    for index, model in enumerate(models):
        mine = {name: (p.shape, p.dtype, p.requires_grad) for name, p in model.named_parameters()}
        if mine != first or type(model) is not type(models[0]):
            different = sorted(
                name for name in mine.keys() | first.keys() if mine.get(name) != first.get(name)
            )
            raise ValueError(
                f"model {index} differs from model 0 in {different[:3] or 'its class'}; "
                "only equal shapes stack"
            )
    trained = [dtype for _, dtype, requires in first.values() if requires]
    if not trained:
        raise ValueError("the models have no parameter that requires gradients")
    if len(set(trained)) > 1:
        raise ValueError(f"trainable parameters must have one dtype, got {sorted(map(str, set(trained)))}")
    for name, module in models[0].named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            raise ValueError(
                f"{name} drops with p={module.p}: its draws could not be those of single runs; "
                "set p to 0 to stack"
            )


def _fixed_tensors(models: list[nn.Module]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What is not trained: tensors that all replicas share, and stacks of those that they do not.

    A buffer that a checkpoint would hold may change in training, so it is each replica's own.
    """
    persistent = set(models[0].state_dict(keep_vars=True))
    fixed = {name: p for name, p in models[0].named_parameters() if not p.requires_grad}
    shared: dict[str, Tensor] = {}
    own: dict[str, Tensor] = {}
    for name, value in [*fixed.items(), *models[0].named_buffers()]:
        all_values = [_lookup(model, name).detach() for model in models]
        constant = name in fixed or name not in persistent
        if constant and all(torch.equal(value, other) for other in all_values):
            shared[name] = value.detach().clone(memory_format=torch.contiguous_format)
        else:
            own[name] = torch.stack(all_values)
    return shared, own


def _lookup(model: nn.Module, name: str) -> Tensor:
    owner, _, last = name.rpartition(".")
    return getattr(model.get_submodule(owner), last)
