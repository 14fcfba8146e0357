"""One optimizer for a stack of models, equal to one optimizer a model.

The weights of a stack lie in one matrix, a row a replica. An element-wise optimizer (SGD, Adam and their kin)
does to a long vector what it does to its pieces, so each replica's run of parameters with equal settings is
one vector, and replicas with equal settings share a group: a fused step touches a handful of tensors instead
of hundreds. Other optimizers get every parameter in its own shape. Either way the arithmetic is the given
optimizer's, with each replica's own rate and its own count of steps; a replica that is frozen, or whose
gradient is not finite, is left out of the step, as the training loop leaves out a single model.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from allometry.train.replicas import Stack

_ELEMENTWISE = tuple(
    getattr(torch.optim, name)
    for name in (
        "SGD",
        "Adam",
        "AdamW",
        "NAdam",
        "RAdam",
        "Adamax",
        "RMSprop",
        "Adagrad",
        "Adadelta",
        "Rprop",
        "ASGD",
    )
)


def is_elementwise(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step treats every number by itself: torch's own, subclasses with the same ``step``, or those
    that say so by an attribute ``elementwise``.

    >>> is_elementwise(torch.optim.AdamW([nn.Parameter(torch.zeros(1))]))
    True
    """
    told = getattr(optimizer, "elementwise", None)
    if told is not None:
        return bool(told)
    kin = [base for base in _ELEMENTWISE if isinstance(optimizer, base)]
    return any(inspect.unwrap(type(optimizer).step) is inspect.unwrap(base.step) for base in kin)


class StackOptimizer(torch.optim.Optimizer):
    """Made by :meth:`allometry.train.Stack.optimizer`; used like any other.

    ``param_groups``, ``state`` and ``state_dict`` are those of the optimizer underneath.
    """

    def __init__(
        self, stack: Stack, models: Sequence[nn.Module], given: Sequence[torch.optim.Optimizer]
    ) -> None:
        super().__init__([stack.weights], {})
        self.stack = stack
        self._inner = given[0]
        names = [_names(model, optimizer) for model, optimizer in zip(models, given, strict=True)]
        if any(other != names[0] for other in names) or len({type(optimizer) for optimizer in given}) > 1:
            raise ValueError(
                "make_optimizer must give every replica the same optimizer with the same groups of parameters"
            )
        self._pieces: list[tuple[Tensor, int, int, int, torch.Size | None]] = []
        whole = is_elementwise(self._inner)
        groups: dict[Hashable, dict[str, Any]] = {}
        for index, members in enumerate(names[0]):
            for replica, optimizer in enumerate(given):
                settings = {
                    key: value for key, value in optimizer.param_groups[index].items() if key != "params"
                }
                _prefer_fused(self._inner, settings, stack.weights)
                key = (index, repr(sorted(settings.items())))
                group = groups.setdefault(key, {"params": [], **settings})
                for start, end, shape in _runs(stack, members, whole):
                    piece = _piece(stack.weights.data, replica, start, end, shape)
                    self._pieces.append((piece, replica, start, end, shape))
                    group["params"].append(piece)
        self._inner.state.clear()
        self._inner.param_groups[:] = groups.values()
        self._link()

    def _link(self) -> None:
        self.param_groups, self.state, self.defaults = (
            self._inner.param_groups, self._inner.state, self._inner.defaults
        )  # fmt: skip

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the replicas that are neither frozen nor without a finite gradient."""
        if closure is not None:
            raise ValueError("a stack's optimizer takes no closure; call losses, backward and step")
        gradient = self.stack.weights.grad
        if gradient is None:
            return
        moves = self.stack.healthy().tolist()
        for piece, replica, start, end, shape in self._pieces:
            piece.grad = _piece(gradient, replica, start, end, shape) if moves[replica] else None
        self._inner.step()
        for piece, *_ in self._pieces:
            piece.grad = None
        self.stack.forget_clipping()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the stack's gradient."""
        self.stack.forget_clipping()
        if set_to_none:
            self.stack.weights.grad = None
        elif self.stack.weights.grad is not None:
            self.stack.weights.grad.zero_()

    def state_dict(self) -> dict[str, Any]:
        """State of the optimizer underneath."""
        return self._inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._inner.load_state_dict(state_dict)
        self._link()


def _names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """Names of the parameters in each group."""
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    try:
        return [[known[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    except KeyError:
        raise ValueError("make_optimizer must optimize parameters of the model that it is given") from None


def _runs(stack: Stack, names: Sequence[str], whole: bool) -> list[tuple[int, int, torch.Size | None]]:
    """Columns of the parameters, neighbours joined where shape does not matter."""
    runs: list[tuple[int, int, torch.Size | None]] = []
    for start, end, shape in sorted(stack.columns[name] for name in names if name in stack.columns):
        if whole and runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], end, None)
        else:
            runs.append((start, end, None if whole else shape))
    return runs


def _piece(matrix: Tensor, replica: int, start: int, end: int, shape: torch.Size | None) -> Tensor:
    row = matrix[replica, start:end]
    return row if shape is None else row.view(shape)


def _prefer_fused(optimizer: torch.optim.Optimizer, settings: dict[str, Any], weights: Tensor) -> None:
    # torch leaves its fused kernels off unless asked; here they are what makes one step of all replicas cheap
    undecided = (
        settings.get("fused", False) is None
        and not settings.get("foreach")
        and not settings.get("capturable")
    )
    if (
        undecided
        and isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW)
        and weights.is_floating_point()
    ):
        settings["fused"] = not settings.get("differentiable")
