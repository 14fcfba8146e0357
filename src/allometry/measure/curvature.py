"""The curvature of a model's loss as a linear operator, over a data set or over many batches at once.

Three matrices, each of which asks of a model no more than derivatives:

- ``"hessian"``: second derivatives of the mean loss;
- ``"ggn"``: the generalised Gauss-Newton matrix, ``mean J' H_out J`` (Schraudolph, 2002), never negative for
  a convex loss of the output;
- ``"gradient covariance"``: ``mean g g' - mean g mean g'`` over samples' gradients.

What is notable:

* All that does not depend on the vector is done once and kept (``keep=True``): a product then costs two
  backward passes, and no forward pass. Without, the memory is that of one batch. (Forward over reverse was
  then from a tenth slower, for perceptrons, to a tenth quicker, for convolutions.)
* `StackedCurvature` holds many batches of one size as one program, each with a vector of its own: the
  largest eigenvalues of a hundred batches in the time of a few.
* Second derivatives are those where there are any: of a loss or a model that is straight piece by piece (a
  hinge, ReLU) the kinks are not seen, as they are not by a small step.
* Gauss-Newton and covariance are one thing here, ``J' M J``, with samples' losses as the outputs of the
  second. ``J v`` is the derivative of ``J' u`` in ``u`` where that is kept, and else goes forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves, tree_map

from allometry.measure.objective import LossFunction, Objective, batches_of, each_of, plain, samples_in

__all__ = ["OPERATORS", "CurvatureOperator", "StackedCurvature", "draw_batches"]

OPERATORS = ("hessian", "ggn", "gradient covariance")
Product = Callable[[Tensor], Tensor]


class CurvatureOperator:
    """The curvature of the mean loss over data: call it with a vector, or with several.

    Parameters
    ----------
    model : nn.Module
        Looked at as it is now; training may go on.
    loss_fn : (output, target) -> Tensor (), optional
        The mean over a batch.
    data : a batch (inputs, targets), or an iterable of batches that can be read again
        Batches may differ in size; each counts by its samples (all alike with ``unit="batch"``).
    operator : {"hessian", "ggn", "gradient covariance"}
    keep : bool
        Keep what is the same for every vector. The memory is that of a forward and a backward pass over all
        of the data; turn it off for data that are many. (Nothing is kept for Gauss-Newton products with
        convolutions, which are quicker anew.)
    objective, include, dtype, unit
        As in `allometry.measure.objective.Objective`.

    Attributes
    ----------
    dim : int
    dtype, device
    samples : int

    Raises
    ------
    ValueError
        An unknown operator, no data, an iterator, or as `Objective`.

    Examples
    --------
    >>> model = nn.Linear(2, 1, bias=False)
    >>> data = (torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1))
    >>> curvature = CurvatureOperator(model, nn.functional.mse_loss, data)
    >>> curvature(torch.eye(2)).tolist()  # 2 X'X / N
    [[1.0, 0.0], [0.0, 4.0]]
    """

    def __init__(
        self, model: nn.Module, loss_fn: LossFunction | None, data: Any, *, operator: str = "hessian",
        keep: bool = True, objective: Callable[[nn.Module, Any], Tensor] | None = None,
        include: Sequence[str] = ("*",), dtype: torch.dtype | None = None, unit: str = "sample",
    ) -> None:  # fmt: skip
        self.objective = Objective(
            model, loss_fn, objective=objective, include=include, dtype=dtype, unit=unit
        )
        self.operator = _known(operator)
        if operator == "gradient covariance" and unit == "batch":
            raise ValueError("the gradient covariance is over samples: take unit='sample'")
        self.dim, self.dtype, self.device = (
            self.objective.dim, self.objective.weights_dtype, self.objective.device
        )  # fmt: skip
        self._data = batches_of(data)
        sizes = [samples_in(batch) for batch in self._data]
        if not sizes:
            raise ValueError("there are no batches")
        self.samples = sum(sizes)
        self._shares = [size / self.samples if unit == "sample" else 1 / len(sizes) for size in sizes]
        first = self.objective.cast(next(iter(self._data)))
        self.objective.check(first)
        self.objective.check_mean(first)
        self._params = {name: one.requires_grad_() for name, one in self.objective.params.items()}
        self._mean = self._mean_gradient() if operator == "gradient covariance" else None
        self._once = not keep
        self._kept = list(self._build()) if keep else None

    def __call__(self, vectors: Tensor) -> Tensor:
        """Products (..., dim) with vectors (..., dim)."""
        if vectors.shape[-1:] != (self.dim,):
            raise ValueError(
                f"vectors must end in an axis of {self.dim} parameters, not in {tuple(vectors.shape)}"
            )
        flat = vectors.detach().to(self.device, self.dtype).reshape(-1, self.dim)
        total = torch.zeros_like(flat)
        for share, product in zip(self._shares, self._kept or self._build(), strict=True):
            total += share * product(flat)
        if self._mean is not None:
            total -= (flat @ self._mean)[:, None] * self._mean
        return total.reshape(vectors.shape)

    def split(self, vectors: Tensor) -> dict[str, Tensor]:
        """Vectors (..., dim) as tensors (..., *shape) by parameter."""
        return self.objective.split(vectors)

    def join(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `split`."""
        return self.objective.join(parts)

    def _build(self) -> Iterator[Product]:
        for batch in self._data:
            batch = self.objective.cast(batch)
            if self.operator == "ggn" and (self._once or self.objective.convolves):
                yield _ggn_once(self.objective, self._params, batch)
            else:
                yield product_on(self.objective, self.operator, self._params, batch, False, self._once)

    def _mean_gradient(self) -> Tensor:
        total = torch.zeros(self.dim, dtype=self.dtype, device=self.device)
        leaves = list(self._params.values())
        for share, batch in zip(self._shares, self._data, strict=True):
            loss = self.objective.loss(self._params, self.objective.cast(batch))
            found = torch.autograd.grad(loss, leaves, allow_unused=True)
            total += share * _joined(found, leaves, 0)
        return total


class StackedCurvature:
    """The curvature on each of many batches of one size: call it with a vector for each.

    Parameters
    ----------
    model, loss_fn, operator, objective, include, dtype
        As in `CurvatureOperator`.
    batches : a batch whose tensors have one more axis in front, or a sequence of batches of one size
        (count, B, ...); see `draw_batches`.
    chunk : int, optional
        Batches that are one program; by default as many as hold about 1024 samples, which
        convolutions are fastest with.
    keep : bool
        As in `CurvatureOperator`.

    Attributes
    ----------
    count, size, dim : int
        Batches, samples in each, parameters.

    Raises
    ------
    ValueError
        Batches of several sizes, or as `CurvatureOperator`.

    Examples
    --------
    >>> model = nn.Linear(2, 1, bias=False)
    >>> batches = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]]), torch.zeros(2, 1, 1)
    >>> StackedCurvature(model, nn.functional.mse_loss, batches)(torch.ones(2, 2)).tolist()
    [[2.0, 0.0], [0.0, 8.0]]
    """

    def __init__(
        self, model: nn.Module, loss_fn: LossFunction | None, batches: Any, *, operator: str = "hessian",
        chunk: int | None = None, keep: bool = True,
        objective: Callable[[nn.Module, Any], Tensor] | None = None, include: Sequence[str] = ("*",),
        dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        self.objective = Objective(model, loss_fn, objective=objective, include=include, dtype=dtype)
        self.operator = _known(operator)
        self._batches = self.objective.cast(_stacked(batches))
        first = next(leaf for leaf in tree_leaves(self._batches) if isinstance(leaf, Tensor))
        self.count, self.size = int(first.shape[0]), int(first.shape[1])
        self.dim, self.dtype, self.device = (
            self.objective.dim, self.objective.weights_dtype, self.objective.device
        )  # fmt: skip
        part = self._part(slice(0, 1), 0)
        self.objective.check(part)
        self.objective.check_mean(part)
        self.chunk = chunk or max(1, 1024 // self.size)
        self._kept = list(self._build()) if keep else None

    def __call__(self, vectors: Tensor) -> Tensor:
        """Products (count, dim) with a vector for each batch, or (dim,) for all of them."""
        if vectors.shape not in ((self.count, self.dim), (self.dim,)):
            raise ValueError(
                f"vectors must be ({self.count}, {self.dim}), one for each batch, or ({self.dim},), not "
                f"{tuple(vectors.shape)}"
            )
        each = vectors.detach().to(self.device, self.dtype).expand(self.count, -1)
        return torch.cat([product(part) for part, product in
                          zip(each.split(self.chunk), self._kept or self._build(), strict=True)])  # fmt: skip

    def _part(self, rows: slice, squeeze: int | None = None) -> Any:
        return tree_map(lambda leaf: leaf[rows] if squeeze is None else leaf[rows][squeeze], self._batches)

    def _build(self) -> Iterator[Product]:
        for start in range(0, self.count, self.chunk):
            rows = slice(start, min(start + self.chunk, self.count))
            params = {
                name: one.expand(rows.stop - start, *one.shape).requires_grad_()
                for name, one in self.objective.params.items()
            }
            yield product_on(self.objective, self.operator, params, self._part(rows), True)


def draw_batches(data: Any, batch: int, count: int, generator: torch.Generator | None = None) -> Any:
    """Batches drawn from a data set, each without replacement.

    Parameters
    ----------
    data : tensors (N, ...) in any nesting
        Such as (inputs, targets).
    batch, count : int
    generator : torch.Generator, optional
        Without it one seeded with 0, never the global state.

    Returns
    -------
    as ``data``
        Tensors (count, batch, ...).

    Raises
    ------
    ValueError
        A batch larger than the data.

    Examples
    --------
    >>> inputs, targets = draw_batches((torch.arange(6.0), torch.arange(6)), 4, 3)
    >>> inputs.shape, len(set(inputs[0].tolist()))
    (torch.Size([3, 4]), 4)
    """
    size = samples_in(data)
    if not 1 <= batch <= size:
        raise ValueError(f"a batch must have from 1 to the {size} samples that there are, not {batch}")
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    data, generator = plain(data), generator or torch.Generator().manual_seed(0)
    order = torch.rand(count, size, generator=generator, device=generator.device).argsort(1)[:, :batch]
    return tree_map(lambda leaf: leaf[order.to(leaf.device)], data)


def product_on(
    one: Objective, operator: str, params: Mapping[str, Tensor], batch: Any, stacked: bool, once: bool = False
) -> Product:
    """The product with the curvature on a batch, (k, dim) -> (k, dim).

    Unstacked, the k vectors meet one matrix. Stacked, parameters and batch have an axis of k in front, and
    each vector meets the matrix of its place. What is called ``once`` may be taken apart on the way.
    """

    def over(function: Callable[..., Tensor], *given: Any) -> Tensor:
        return each_of(function, *given) if stacked else function(*given)

    leaves = list(params.values())
    if operator == "hessian":
        loss = over(one.loss, params, batch).sum()
        if not loss.requires_grad:  # no weight matters
            return torch.zeros_like
        first = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
        return _linear(one, leaves, first, stacked, once)
    if operator == "ggn":
        output = over(one.output, params, batch)
        apart = output.detach().requires_grad_()
        bent = torch.autograd.grad(over(one.of_output, apart, batch).sum(), apart, create_graph=True)[0]
    else:
        output = over(one.each, params, batch)
    if not output.requires_grad:
        return torch.zeros_like
    u = torch.zeros_like(output, requires_grad=True)
    pulled = torch.autograd.grad(output, leaves, u, create_graph=True, allow_unused=True)
    used = [(k, value) for k, value in enumerate(pulled) if value is not None]

    def product(v: Tensor) -> Tensor:  # the vectors of one call: (dim,), or stacked (k, dim)
        parts = list(one.split(v).values())
        (push,) = torch.autograd.grad(
            [value for _, value in used], [u], [parts[k] for k, _ in used], retain_graph=True
        )
        if operator == "ggn":
            if bent.requires_grad:
                (push,) = torch.autograd.grad(bent, apart, push, retain_graph=True)
            else:  # a loss that is straight in the output
                push = torch.zeros_like(push)
        else:
            push = (push - push.mean(-1, keepdim=True) if stacked else push) / push.shape[-1]
        found = torch.autograd.grad(output, leaves, push, retain_graph=True, allow_unused=True)
        return _joined(found, leaves, 1 if stacked else 0)

    return product if stacked else lambda flat: torch.stack([product(v) for v in flat])


def _ggn_once(one: Objective, params: Mapping[str, Tensor], batch: Any) -> Product:
    """The Gauss-Newton product, nothing kept: ``J v`` comes with the forward pass that ``J'`` needs."""
    leaves = list(params.values())

    def product(v: Tensor) -> Tensor:
        with forward_ad.dual_level():
            parts = one.split(v)
            moving = {name: forward_ad.make_dual(value, parts[name]) for name, value in params.items()}
            output, push = forward_ad.unpack_dual(one.output(moving, batch))
        apart = output.detach().requires_grad_()
        (bent,) = torch.autograd.grad(one.of_output(apart, batch), apart, create_graph=True)
        if push is None or not bent.requires_grad:  # no weight matters, or a loss straight in the output
            return torch.zeros_like(v)
        (push,) = torch.autograd.grad(bent, apart, push.detach())
        return _joined(torch.autograd.grad(output, leaves, push, allow_unused=True), leaves, 0)

    def several(flat: Tensor) -> Tensor:
        try:
            return torch.stack([product(v) for v in flat])
        except NotImplementedError:  # a function that has no forward derivative
            return product_on(one, "ggn", params, batch, False)(flat)

    return several


def _linear(one: Objective, leaves: list[Tensor], first: Sequence[Any], stacked: bool, once: bool) -> Product:
    """The derivative of gradients along vectors."""
    bent = [(k, value) for k, value in enumerate(first) if value is not None and value.requires_grad]

    def product(flat: Tensor) -> Tensor:
        if not bent:  # a loss that is straight in the parameters
            return torch.zeros_like(flat)
        parts = list(one.split(flat).values())
        several = not stacked and len(flat) > 1
        given = [parts[k] if stacked or several else parts[k][0] for k, _ in bent]
        found = torch.autograd.grad(
            [value for _, value in bent], leaves, given, retain_graph=not once, allow_unused=True,
            is_grads_batched=several,
        )  # fmt: skip
        if stacked or several:
            return _joined(found, leaves, 1, (len(flat),) if several else ())
        return _joined(found, leaves, 0)[None]

    return product


def _joined(
    found: Iterable[Tensor | None], leaves: Sequence[Tensor], lead: int, extra: tuple[int, ...] = ()
) -> Tensor:
    """Gradients as one vector, or rows of one matrix; zeros (extra, ...) where there is none."""
    rows = []
    for value, leaf in zip(found, leaves, strict=True):
        if value is None:
            value = leaf.new_zeros(*extra, *leaf.shape)
        rows.append(value.flatten(lead) if value.ndim > lead else value.unsqueeze(-1))
    return torch.cat(rows, -1)


def _stacked(batches: Any) -> Any:
    if isinstance(batches, list):
        sizes = sorted({samples_in(batch) for batch in batches})
        if len(sizes) != 1:
            raise ValueError(f"batches to be stacked must be of one size, not {sizes or 'none'}")
        return tree_map(lambda *leaves: torch.stack(leaves), *map(plain, batches))
    samples_in(batches)
    return plain(batches)


def _known(operator: str) -> str:
    if operator not in OPERATORS:
        raise ValueError(f"operator must be one of {', '.join(OPERATORS)}, not {operator!r}")
    return operator
