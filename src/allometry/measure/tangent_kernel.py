"""The empirical tangent kernel of any network, layer by layer, without its Jacobian.

Θ(x, x') = Σ_p ∂f(x)/∂θ_p ⊗ ∂f(x')/∂θ_p decides how gradient descent moves the outputs. Arthur Jacot, Franck
Gabriel and Clément Hongler, 2018, arXiv:1806.07572.

- The gradient of one sample with respect to a weight is a sum of outer products over positions, so a layer's
  share is either (delta · delta') (alpha · alpha') summed over pairs of positions, or the product of the
  gradients themselves, a few rows of the weight at a time; whichever costs less.
- Weights that are used more than once have their gradients added before the product: cross terms count.
- Everything is checked on a few samples first: which dimension the samples lie along, that they do not
  influence one another, and that the factors add up to autograd's gradient. A parameter that is used in
  another way (recurrent weights, parametrized ones) gets its Jacobian, in blocks of samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from allometry.measure.gradient_products import (
    Part,
    contract,
    gradient_products,
    matrix_shape,
    summed_gradient,
)
from allometry.measure.parameter_uses import Recorder, Use, watch_norms
from allometry.measure.per_sample import AsFunction, sample_count, some_samples

__all__ = ["empirical_kernel"]

_PROBED = 4  # samples on which a model is looked at first


def empirical_kernel(
    model: nn.Module,
    x: Any,
    z: Any = None,
    *,
    params: str | Iterable[str] | None = None,
    reduce: Literal["full", "trace"] = "full",
    outputs: Callable[[Any], Tensor] | None = None,
    memory: float = 2.0,
) -> Tensor:
    """Θ between samples of x and of z.

    Parameters
    ----------
    model : nn.Module
        Without active dropout or batch statistics; its samples do not influence one another. Of float16 or
        bfloat16 models the products are taken in float32, else in the model's own precision.
    x, z : Tensor, tuple or mapping of Tensor
        N and M samples along first dimensions; a mapping holds keyword arguments. By default z is x.
    params : glob, or several of them, optional
        By default all parameters that require gradients.
    reduce : "full" or "trace"
        ``"trace"`` is the trace over outputs divided by k, for which only the k diagonal blocks are computed.
        In the infinite-width limit it is the kernel that all outputs share.
    outputs : callable, optional
        Takes the model's answer and gives a tensor (N, ...), whose entries are the k outputs of a sample; by
        default the first tensor of the answer.
    memory : float
        GiB that the result, and apart from it the work, may take.

    Returns
    -------
    Tensor, shape (N, M, k, k) or (N, M), float64

    Raises
    ------
    ValueError
        A model that depends on chance or on the other samples, a result that is too large, gradients that
        are not finite, or a parameter that is not there.

    Examples
    --------
    >>> model = nn.Linear(2, 1)
    >>> empirical_kernel(model, torch.tensor([[1.0, 2.0], [0.0, 1.0]]))[..., 0, 0]
    tensor([[6., 3.],
            [3., 2.]], dtype=torch.float64)
    """
    if reduce not in ("full", "trace"):
        raise ValueError(f"reduce is 'full' or 'trace'; got {reduce!r}")
    function = AsFunction(model, params, outputs)
    plan = look(function, x)
    n, m = sample_count(x), sample_count(x if z is None else z)
    trace, k = reduce == "trace", plan.outputs
    refuse_large(n * m * (1 if trace else k * k), memory, f"a kernel of {n} x {m} samples and {k} outputs")
    budget = memory * 2**30
    step = max(1, min(max(n, m), int(budget / 3 / plan.bytes_per_sample)))
    kernel = torch.zeros((n, m) if trace else (n, m, k, k), dtype=torch.float64, device=plan.device)
    for i in range(0, n, step):
        rows = plan.block(some_samples(x, slice(i, i + step)))
        for j in range(i if z is None else 0, m, step):
            other = x if z is None else z
            columns = rows if z is None and j == i else plan.block(some_samples(other, slice(j, j + step)))
            part = _product(plan, rows, columns, trace, budget / 3)
            kernel[i : i + step, j : j + step] = part
            if z is None and j > i:
                kernel[j : j + step, i : i + step] = part.mT.transpose(0, 1) if not trace else part.mT
    if not bool(kernel.isfinite().all()):
        raise ValueError("some samples give outputs or gradients that are not finite, so they have no kernel")
    return kernel


def refuse_large(entries: float, memory: float, what: str) -> None:
    """A sentence for a result that does not fit."""
    size = 8 * entries / 2**30
    if size > memory:
        raise ValueError(
            f"{what} takes {size:.1f} GiB, more than memory={memory:g}: raise it, take fewer samples or "
            "reduce='trace', or use kernel_operator or sketched_kernel"
        )


# --- looking at a model -------------------------------------------------------------------------------------
@dataclass(eq=False)
class Block:
    """Factors of each parameter that is understood, and Jacobians (n, k, size) of the rest."""

    parts: dict[str, list[Part]]
    jacobian: Tensor | None


@dataclass(eq=False)
class Plan:
    """How a model uses its parameters: sample axes of each use, and what needs a Jacobian."""

    function: AsFunction
    axes: dict[str, list[int]]
    idle: dict[str, list[bool]]  # whether some positions of the use move no output, in the samples looked at
    unknown: dict[str, str]
    spread: bool
    batched: bool
    outputs: int
    bytes_per_sample: float
    device: torch.device

    def block(self, x: Any) -> Block:
        """The factors of a block of samples."""
        known = {name: self.function.values[name] for name in self.axes}
        parts: dict[str, list[Part]] = {}
        if known:
            flat, recorder, uses = _recorded(self.function, known, x, self.spread)
            eye = torch.eye(self.outputs, dtype=flat.dtype, device=flat.device)
            cotangents = eye[:, None].expand(-1, len(flat), -1)
            if {name: len(recorder.uses[name]) for name in known} != {
                n: len(a) for n, a in self.axes.items()
            }:
                raise ValueError("the model does other things with other samples, so it has no one kernel")
            found = _gradients(flat, uses, cotangents, self.batched)
            parts = {
                name: [
                    _part(use, found, len(flat), axis, idle)
                    for use, axis, idle in zip(recorder.uses[name], axes, self.idle[name], strict=True)
                ]
                for name, axes in self.axes.items()
            }
        return Block(parts, _jacobian(self.function, self.unknown, x) if self.unknown else None)


def look(function: AsFunction, x: Any) -> Plan:
    """Watch a model on its first samples, and check all that the contraction relies on.

    Raises
    ------
    ValueError
        Outputs depend on chance or on the other samples of the batch.
    """
    few = some_samples(x, slice(0, _PROBED))
    try:
        flat, recorder, uses = _recorded(function, function.values, few, True)
        spread = True
    except RuntimeError:  # shapes that a lookup of one row a sample does not fit
        flat, recorder, uses = _recorded(function, function.values, few, False)
        spread = False
    n, k = flat.shape
    with torch.no_grad():
        alone = function(function.values, some_samples(few, slice(n - 1, n)))
    room = math.sqrt(torch.finfo(flat.dtype).eps) * max(float(flat.detach().abs().max()), 1e-30)
    if float((alone[0] - flat[-1]).detach().abs().max()) > room:
        raise ValueError(
            "the model's outputs depend on chance or on the other samples of the batch, so it has no kernel: "
            "call model.eval(), or take out what mixes samples"
        )
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(flat.shape, generator=generator, dtype=torch.float64).to(flat)
    half = torch.arange(n, device=flat.device) < (n + 1) // 2
    both = torch.stack([drawn * half[:, None], drawn * ~half[:, None]])
    batched = True
    try:
        found = _gradients(flat, uses, both, True)
    except RuntimeError:
        found, batched = _gradients(flat, uses, both, False), False
    unknown = recorder.unknown(flat)
    exact = torch.autograd.grad(flat, list(recorder.leaves.values()), drawn, allow_unused=True)
    largest = max(float(one.norm()) for one in exact if one is not None)
    axes: dict[str, list[int]] = {}
    idle: dict[str, list[bool]] = {}
    for (name, value), gradient in zip(recorder.leaves.items(), exact, strict=True):
        if name in unknown or (gradient is None and not recorder.uses[name]):
            continue
        chosen = [_axis(use, found, n, half) for use in recorder.uses[name]]
        if (
            not chosen
            or None in chosen
            or not _adds_up(recorder.uses[name], found, n, chosen, gradient, value, largest)
        ):
            unknown[name] = "a use that has no rule"
        else:
            axes[name] = [one for one in chosen if one is not None]
            idle[name] = [
                not bool(_moved(use.delta(found[id(use.edge)], n, axis)).all())
                for use, axis in zip(recorder.uses[name], axes[name], strict=True)
            ]
    size = flat.element_size()
    floats = sum(math.prod(one.shape) for one in {id(u.edge): u for u in uses}.values()) / n
    held = sum(function.values[name].numel() for name in unknown)
    # Outputs' gradients and inputs of every layer, and the graph that holds them; Jacobians of the rest.
    room = size * (k * floats + 4 * floats + 2 * k * held) + 1
    return Plan(function, axes, idle, unknown, spread, batched, k, room, flat.device)


def _recorded(
    function: AsFunction, values: Mapping[str, Tensor], x: Any, spread: bool
) -> tuple[Tensor, Recorder, list[Use]]:
    leaves = {name: one.detach().requires_grad_() for name, one in values.items()}
    recorder = Recorder(leaves, sample_count(x), spread)
    handles = watch_norms(recorder, function.model)
    try:
        with torch.enable_grad(), recorder:
            flat = function({**function.values, **leaves}, x)
    finally:
        for handle in handles:
            handle.remove()
    if not flat.requires_grad:
        raise ValueError("the model's outputs do not depend on the chosen parameters")
    return flat, recorder, [use for some in recorder.uses.values() for use in some]


def _gradients(flat: Tensor, uses: list[Use], cotangents: Tensor, batched: bool) -> dict[int, Tensor]:
    """Of weighted sums of the outputs (k, n, outputs), at each edge: (k, *shape), by the edge's id.

    Raises RuntimeError where an operation's backward pass cannot be batched.
    """
    edges = {id(use.edge): use for use in uses}
    wanted = [use.edge for use in edges.values()]
    options: dict[str, Any] = {"retain_graph": True, "allow_unused": True}
    found: Sequence[Tensor | None] = []
    if wanted and batched:
        found = torch.autograd.grad(flat, wanted, cotangents, is_grads_batched=True, **options)
    elif wanted:
        singly = [list(torch.autograd.grad(flat, wanted, one, **options)) for one in cotangents]
        found = [_stacked([some.pop() for some in singly]) for _ in wanted][::-1]
    count = len(cotangents)
    return {
        key: flat.new_zeros((count, *use.shape)) if one is None else one
        for (key, use), one in zip(edges.items(), found, strict=True)
    }


def _stacked(given: list[Tensor | None]) -> Tensor | None:
    """One edge's gradients; the single ones are let go as each edge is done."""
    some = [one for one in given if one is not None]
    return torch.stack(some) if some else None


def _moved(delta: Tensor) -> Tensor:
    """Which positions of delta (k, n, g, T, D) some output depends on."""
    return torch.linalg.vector_norm(delta, 1, (0, 1, 2, 4)).ne(0)


def _part(use: Use, found: Mapping[int, Tensor], n: int, axis: int, idle: bool = False) -> Part:
    delta, alpha = use.delta(found[id(use.edge)], n, axis), use.partner(n, axis)
    wide = torch.promote_types(delta.dtype, torch.float32)
    if idle:  # positions that no output depends on, such as all tokens but the last
        met = _moved(delta)
        if not bool(met.all()):
            met[0] |= not bool(met.any())
            delta = delta[:, :, :, met]
            alpha = alpha[:, :, met]
    key = (id(use.edge), delta.shape) if use.plain and delta.shape[3] == 1 else None
    return Part(delta.to(wide), alpha.to(wide)[None] if alpha.is_floating_point() else alpha,
                use.delta_first, key)  # fmt: skip


def _axis(use: Use, found: Mapping[int, Tensor], n: int, half: Tensor) -> int | None:
    """The dimension along which samples lie: where gradients of one half leave the other at zero."""
    for axis in use.axes:
        if (use.shape[axis] != n) if axis else use.shape[0] % n:
            continue
        if n == 1:
            return axis
        each = found[id(use.edge)]
        each = each.movedim(2, 1) if axis else each.reshape(2, n, -1)
        if not bool(each[0, ~half].any() or each[1, half].any()):
            return axis
    return None


def _adds_up(
    uses: list[Use], found: Mapping[int, Tensor], n: int, axes: list[int | None], exact: Tensor | None,
    value: Tensor, largest: float,
) -> bool:  # fmt: skip
    """Whether the factors give autograd's gradient."""
    if exact is None:
        exact = torch.zeros_like(value)
    parts = [_part(use, found, n, axis or 0) for use, axis in zip(uses, axes, strict=True)]
    if (
        len({matrix_shape(part, value.numel()) for part in parts}) > 1
    ):  # as a matrix here and element by element there
        return False
    total = sum(
        (summed_gradient(part, value.numel()).reshape(value.shape).to(exact) for part in parts),
        torch.zeros_like(exact),
    )
    eps = torch.finfo(exact.dtype).eps
    # Against the model's largest too: the gradient of an attention's key bias is zero but for rounding.
    room = 10 * (math.sqrt(eps) * float(exact.norm()) + eps * largest)
    return float((total - exact).norm()) <= room


def _jacobian(function: AsFunction, unknown: Iterable[str], x: Any) -> Tensor:
    """∂f/∂θ of the parameters that have no rule, flattened: (n, k, size)."""
    names = list(unknown)

    def of_one(values: dict[str, Tensor], one: Any) -> Tensor:
        return function({**function.values, **values}, some(one))[0]

    count = sample_count(x)
    some: Callable[[Any], Any]
    mapped: Any
    if isinstance(x, Tensor):
        mapped, dims, some = x, 0, lambda one: one[None]
    else:
        items = dict(x) if isinstance(x, Mapping) else dict(enumerate(x))
        mapped = {k: v for k, v in items.items() if isinstance(v, Tensor) and v.ndim and len(v) == count}
        rest, dims = {k: v for k, v in items.items() if k not in mapped}, 0

        def some(one: Any) -> Any:
            whole = {k: one[k][None] if k in one else rest[k] for k in items}
            return whole if isinstance(x, Mapping) else tuple(whole.values())

    values = {name: function.values[name] for name in names}
    try:
        found = torch.func.vmap(torch.func.jacrev(of_one), in_dims=(None, dims))(values, mapped)
        flat = torch.cat([found[name].flatten(2) for name in names], 2)
    except RuntimeError:  # an operation that cannot be batched, such as a fused recurrent layer
        leaves = {name: one.detach().requires_grad_() for name, one in values.items()}
        rows = []
        for index in range(count):
            with torch.enable_grad():
                out = function({**function.values, **leaves}, some_samples(x, slice(index, index + 1)))[0]
            slopes = [
                torch.autograd.grad(one, list(leaves.values()), retain_graph=True, materialize_grads=True)
                for one in out
            ]
            rows.append(torch.stack([torch.cat([g.flatten() for g in some]) for some in slopes]))
        flat = torch.stack(rows)
    return flat.detach().to(torch.promote_types(flat.dtype, torch.float32))


# --- products -----------------------------------------------------------------------------------------------
def _product(plan: Plan, x: Block, z: Block, trace: bool, budget: float) -> Tensor:
    """Θ of two blocks: (n, m) or (n, m, k, k)."""
    shared: dict[Any, Tensor] = {}
    total: Tensor | float = 0.0
    for name in plan.axes:
        ours, theirs = x.parts[name], z.parts[name]
        size = plan.function.values[name].numel()
        part = contract(ours, theirs, trace, size, budget, shared)
        total = total + part.double()
    if x.jacobian is not None and z.jacobian is not None:
        total = total + gradient_products(x.jacobian, z.jacobian, trace).double()
    assert isinstance(total, Tensor)
    return total / plan.outputs if trace else total.permute(2, 3, 0, 1)
