"""A model's loss as a function of its parameters alone: what every derivative of it begins with.

* Two ways to say what the loss is: ``loss_fn(output, target)`` over batches ``(inputs, targets)``, which
  Gauss-Newton products need, or ``objective(model, batch)`` over batches of any kind, for models that make
  their own loss. Either gives the *mean* over the batch's samples. Inputs that are a tuple or a mapping are
  the model's positional or named arguments.
* The weights are copied when it is made: training may go on while a derivative is being taken.
* What would make a curvature random, or no mean over samples, is refused at the door: active dropout, batch
  norms that look at their batch, and losses that are sums.
* Attention takes the path that has second derivatives (fused kernels have none).
"""

from __future__ import annotations

import contextlib
import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["Objective", "batches_of", "each_of", "plain", "samples_in"]

LossFunction = Callable[[Any, Any], Tensor]


class Objective:
    """The mean loss of a batch, a function of parameters.

    Parameters
    ----------
    model : nn.Module
        In the mode in which it is to be looked at; ``eval()`` in nearly every case.
    loss_fn : (output, target) -> Tensor (), optional
        The mean over the batch.
    objective : (model, batch) -> Tensor (), optional
        Instead of ``loss_fn``; it may call the model as it likes, but not change it.
    include : sequence of str
        Globs of parameters' names; the others stay constants.
    dtype : torch.dtype, optional
        Weights, buffers and the batches' floating tensors are cast to it, such as ``torch.float64``.
    unit : {"sample", "batch"}
        What counts as one observation. Batch norms in training mode make a batch one, and are refused
        otherwise; their running statistics are left as they are.

    Raises
    ------
    ValueError
        Neither or both losses, nothing to differentiate by, parameters of several dtypes or devices, batch
        norms that look at their batch.

    Examples
    --------
    >>> one = Objective(nn.Linear(3, 1, bias=False), nn.functional.mse_loss)
    >>> one.dim, float(one.loss(one.params, (torch.zeros(2, 3), torch.ones(2, 1))))
    (3, 1.0)
    """

    def __init__(
        self, model: nn.Module, loss_fn: LossFunction | None = None, *,
        objective: Callable[[nn.Module, Any], Tensor] | None = None, include: Sequence[str] = ("*",),
        dtype: torch.dtype | None = None, unit: str = "sample",
    ) -> None:  # fmt: skip
        if (loss_fn is None) == (objective is None):
            raise ValueError("give loss_fn(output, target), or objective(model, batch), and not both")
        if unit not in ("sample", "batch"):
            raise ValueError(f"unit is 'sample' or 'batch', not {unit!r}")
        self._norms = [one for one in model.modules() if isinstance(one, _BatchNorm) and one.training]
        if self._norms and unit == "sample":
            raise ValueError(
                "batch norms in training mode make the loss of a batch no mean over its samples: call "
                "model.eval(), or pass unit='batch' to take each batch as one observation"
            )
        self.unit, self.dtype, self.loss_fn = unit, dtype, loss_fn
        self.convolves = any(isinstance(one, _ConvNd) for one in model.modules())
        self._whole = _Whole(model, loss_fn, objective)
        wanted = [include] if isinstance(include, str) else list(include)
        named = dict(model.named_parameters())
        chosen = {
            name for name, one in named.items()
            if one.requires_grad and any(fnmatch.fnmatchcase(name, glob) for glob in wanted)
        }  # fmt: skip
        if not chosen:
            raise ValueError(f"no parameter that requires a gradient matches {', '.join(wanted)}")
        self.params = {name: self._cast(named[name]) for name in named if name in chosen}
        rest = {name: self._cast(one) for name, one in named.items() if name not in chosen}
        self._fixed = rest | {name: self._cast(one) for name, one in model.named_buffers()}
        twice = sum(1 for _ in model.named_parameters(remove_duplicate=False)) > len(named)
        self._tied = twice or sum(1 for _ in model.named_buffers(remove_duplicate=False)) > len(
            list(model.named_buffers())
        )
        kinds = {(one.dtype, one.device) for one in self.params.values()}
        if len(kinds) > 1:
            told = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
            raise ValueError(f"parameters are of several kinds ({told}): bring them together, or pass dtype=")
        ((self.weights_dtype, self.device),) = kinds
        if self.device.type == "meta":
            raise ValueError("the model is on the meta device: its weights have no values")
        self.shapes = {name: one.shape for name, one in self.params.items()}
        self.sizes = [one.numel() for one in self.params.values()]
        self.dim = sum(self.sizes)

    def loss(self, params: Mapping[str, Tensor], batch: Any) -> Tensor:
        """The batch's mean loss, ()."""
        found = self._call(params, batch, None)
        if not isinstance(found, Tensor) or found.ndim:
            told = (
                f"a tensor of shape {tuple(found.shape)}"
                if isinstance(found, Tensor)
                else (f"a {type(found).__name__}{' (its .loss is)' if hasattr(found, 'loss') else ''}")
            )
            raise ValueError(f"the loss of a batch must be one number, its mean, not {told}")
        return found

    def output(self, params: Mapping[str, Tensor], batch: Any) -> Tensor:
        """What the model says to the batch's inputs, (B, ...)."""
        if self.loss_fn is None:
            raise ValueError("outputs and their loss are told apart by loss_fn(output, target); give it")
        found = self._call(params, batch, "output")
        if not isinstance(found, Tensor):
            raise ValueError(f"the model's output must be a tensor, not {type(found).__name__}")
        return found

    def of_output(self, output: Tensor, batch: Any) -> Tensor:
        """The loss of an output, ()."""
        assert self.loss_fn is not None
        return self.loss_fn(output, batch[1])

    def each(self, params: Mapping[str, Tensor], batch: Any) -> Tensor:
        """The loss of every sample by itself, (B,)."""
        return each_of(lambda one: self.loss(params, tree_map(lambda leaf: leaf[None], one)), batch)

    def _call(self, params: Mapping[str, Tensor], batch: Any, what: str | None) -> Any:
        values = {f"model.{name}": one for name, one in (*self._fixed.items(), *params.items())}
        with self._scope():
            return functional_call(self._whole, values, (batch, what), tie_weights=self._tied)

    @contextlib.contextmanager
    def _scope(self) -> Iterator[None]:
        tracked = [one.track_running_stats for one in self._norms]
        try:
            for one in self._norms:  # so that they look at the batch and write nothing down
                one.track_running_stats = False
            with sdpa_kernel(SDPBackend.MATH):
                yield
        finally:
            for one, before in zip(self._norms, tracked, strict=True):
                one.track_running_stats = before

    def check(self, batch: Any) -> None:
        """Refuse a loss that is not finite, or differs from one evaluation to the next."""
        with torch.no_grad(), torch.random.fork_rng():
            first = float(self.loss(self.params, batch))
            drawing = any(one.training for one in self._whole.modules())
            random = drawing and first != float(self.loss(self.params, batch))
        if not math.isfinite(first):
            raise ValueError(f"the loss of a batch is {first}: its derivatives say nothing")
        if random:
            raise ValueError(
                "two evaluations of one batch's loss differ, so its curvature is random (dropout?): call "
                "model.eval()"
            )

    @torch.no_grad()
    def check_mean(self, batch: Any) -> None:
        """Refuse a loss that is a sum over samples: of a sample taken twice it is twice what it is once."""
        if self.unit == "batch":
            return
        size = samples_in(batch)

        def take(times: int) -> float:
            return float(self.loss(self.params, tree_map(
                lambda leaf: leaf[:1].repeat_interleave(times, 0)
                if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == size else leaf, batch,
            )))  # fmt: skip

        try:
            once, twice = take(1), take(2)
        except (RuntimeError, ValueError, IndexError):  # a loss that cannot be asked of one sample alone
            return
        if once != 0 and abs(twice - 2 * once) < 1e-2 * abs(once):
            raise ValueError(
                f"one sample has a loss of {once:.4g}, and the same one twice {twice:.4g}: the loss must be "
                "the mean over a batch's samples, not their sum (reduction='mean')"
            )

    def cast(self, batch: Any) -> Any:
        """The batch with its floating tensors of the dtype asked for, its mappings as dictionaries."""
        batch = plain(batch)
        if self.dtype is None:
            return batch
        return tree_map(
            lambda leaf: (
                leaf.to(self.dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
            ),
            batch,
        )

    def _cast(self, one: Tensor) -> Tensor:
        kept = one.detach()
        return (kept.to(self.dtype) if self.dtype is not None and kept.is_floating_point() else kept).clone()

    def split(self, vectors: Tensor) -> dict[str, Tensor]:
        """Vectors (..., dim) as tensors (..., *shape) by parameter, in the order of ``params``."""
        lead = vectors.shape[:-1]
        parts = vectors.split(self.sizes, -1)
        return {
            name: part.reshape((*lead, *shape))
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def join(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `split`."""
        lead = next(iter(parts.values())).ndim - len(next(iter(self.shapes.values())))
        return torch.cat([parts[name].flatten(lead) if len(shape) else parts[name].unsqueeze(-1)
                          for name, shape in self.shapes.items()], -1)  # fmt: skip


class _Whole(nn.Module):
    """The model and its loss as one module, so that its tensors can be called in."""

    def __init__(self, model: nn.Module, loss_fn: Any, objective: Any) -> None:
        super().__init__()
        self.model, self.loss_fn, self.objective = model, loss_fn, objective
        self.training = model.training

    def forward(self, batch: Any, what: str | None) -> Any:
        if self.objective is not None:
            return self.objective(self.model, batch)
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            raise ValueError(
                f"with loss_fn a batch is (inputs, targets), not a {type(batch).__name__}; data that are one "
                "batch are a tuple, not a list"
            )
        inputs = batch[0]
        if isinstance(inputs, Mapping):
            output = self.model(**inputs)
        else:
            output = self.model(*inputs) if isinstance(inputs, tuple) else self.model(inputs)
        return output if what == "output" else self.loss_fn(output, batch[1])


def batches_of(data: Any) -> list[Any] | Iterable[Any]:
    """Batches to be read as often as needed: a lone batch becomes a list of one.

    A tuple of tensors, a mapping, or a tuple of a mapping and a tensor is a batch; all else is an iterable of
    batches.

    Raises
    ------
    ValueError
        An iterator, which can be read once only.

    >>> len(batches_of((torch.zeros(4, 2), torch.zeros(4))))
    1
    """
    if isinstance(data, Tensor | Mapping):
        return [data]
    if isinstance(data, tuple) and data:
        named = isinstance(data[0], Mapping) and len(data) > 1 and isinstance(data[1], Tensor)
        if named or isinstance(data[0], Tensor):
            return [data]
    if iter(data) is data:
        raise ValueError("data is read more than once: give a list of batches or a DataLoader, no iterator")
    return data


def samples_in(batch: Any) -> int:
    """How many samples a batch holds: the length of its first tensor.

    >>> samples_in({"tokens": torch.zeros(3, 5)})
    3
    """
    leaves = tree_leaves(plain(batch))
    first = next((leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim), None)
    if first is None or len(first) == 0:
        raise ValueError("a batch must hold a tensor with at least one sample")
    return len(first)


def plain(batch: Any) -> Any:
    """A batch whose mappings are dictionaries, which torch can look into (transformers' are their own kind).

    >>> from collections import UserDict
    >>> plain((UserDict(tokens=1), 2))
    ({'tokens': 1}, 2)
    """
    return tree_map(
        lambda leaf: (
            {key: plain(value) for key, value in leaf.items()} if isinstance(leaf, Mapping) else leaf
        ),
        batch,
    )


def each_of(function: Callable[..., Any], *given: Any, chunk: int | None = None) -> Any:
    """A function of every row of what is given, all at once; row by row where it cannot be vectorised.

    >>> each_of(lambda x, y: x @ y, torch.ones(3, 2), torch.ones(3, 2)).tolist()
    [2.0, 2.0, 2.0]
    """
    try:
        return vmap(function, chunk_size=chunk)(*given)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # as of torch's own recurrent layers; if there is another reason, a row tells it
        pass
    found = [function(*tree_map(lambda leaf, at=row: leaf[at], given)) for row in range(samples_in(given))]
    return tree_map(lambda *rows: torch.stack(rows), *found)
