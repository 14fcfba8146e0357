"""Where a model uses its parameters, and what each use contributes to the gradient of a single sample.

A linear map, a convolution or an embedding gives each sample n and output c a gradient that is a short sum
of outer products, Σ_t delta[c, n, t] ⊗ alpha[n, t], with t the positions (tokens, patches) at which it meets
the weight. `Recorder` watches one forward pass and keeps those factors, which are far smaller than the
gradient itself.

- It watches torch's functions, not modules, so a weight that two layers share, or that a model uses by hand,
  is seen at each use; a tied weight merely has more positions.
- What has no rule here is told apart (`Recorder.strange`), never guessed.
- Gradients are asked for at edges of the graph, which later in-place operations do not move.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["Recorder", "Use", "watch_norms"]


@dataclass(eq=False, frozen=True)
class Use:
    """One place where a parameter enters the graph.

    Attributes
    ----------
    edge : GradientEdge
        Of the operation's output, in the graph.
    shape : torch.Size
        Of that output.
    delta : callable
        Takes gradients (k, *shape), the number n of samples and the dimension, 0 or 1, along which they lie;
        gives delta (k, n, groups, T, D).
    partner : callable
        Takes n and that dimension; gives alpha (n, groups, T, E), or integers (n, 1, T) that stand for
        one-hot rows.
    delta_first : bool
        Whether delta runs along the parameter's first dimension, and alpha along the second.
    plain : bool
        Whether delta is the output's gradient as it is, so that uses of one edge share its products.
    matrix : bool
        Whether the parameter enters as rows and columns, rather than element by element.
    axes : tuple of int
        The dimensions along which samples may lie.
    """

    edge: Any
    shape: torch.Size
    delta: Callable[[Tensor, int, int], Tensor]
    partner: Callable[[int, int], Tensor]
    delta_first: bool = True
    plain: bool = False
    matrix: bool = True
    axes: tuple[int, ...] = (0,)


class Recorder(TorchFunctionMode):
    """Watches a forward pass; afterwards ``uses`` has a list of `Use` for each parameter.

    Parameters
    ----------
    parameters : mapping of str to Tensor
        Leaves that require gradients.
    samples : int
        In the batch.
    spread : bool
        Whether lookups that all samples share (positions) are given one row a sample.

    Attributes
    ----------
    uses : dict of str to list of Use
    strange : list of (str, str, GradientEdge)
        Uses that have no rule here: the parameter, the operation, its output.
    """

    def __init__(self, parameters: Mapping[str, Tensor], samples: int, spread: bool = True) -> None:
        super().__init__()
        # Of each parameter and each view of it: its name, and whether rows and columns have changed places.
        self._names = {id(one): (name, False) for name, one in parameters.items()}
        self._views: list[Tensor] = []
        self.samples, self.spread = samples, spread
        self.leaves = dict(parameters)
        self.uses: dict[str, list[Use]] = {name: [] for name in parameters}
        self.strange: list[tuple[str, str, Any]] = []

    def unknown(self, flat: Tensor) -> dict[str, str]:
        """Parameters with such a use that the outputs depend on, and the operation."""
        if not self.strange:
            return {}
        edges = [edge for _, _, edge in self.strange]
        found = torch.autograd.grad(flat, edges, torch.ones_like(flat), retain_graph=True, allow_unused=True)
        return {
            name: told for (name, told, _), one in zip(self.strange, found, strict=True) if one is not None
        }

    def names_of(self, module: nn.Module) -> list[str]:
        """The watched parameters of one module."""
        return [self._names[id(one)][0] for one in module.parameters(recurse=False) if id(one) in self._names]

    def add(self, seen: list[tuple[Any, Use]]) -> set[str]:
        """Keep uses; which parameters they are of."""
        added: set[str] = set()
        for parameter, use in seen:
            if id(parameter) not in self._names:
                continue
            name, turned = self._names[id(parameter)]
            if turned and not use.matrix:  # its entries are in another order
                continue
            self.uses[name].append(replace(use, delta_first=use.delta_first != turned))
            added.add(name)
        return added

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        _refuse_chance(func, args, kwargs)
        given = [one for one in _tensors((*args, *kwargs.values())) if id(one) in self._names]
        mine = {self._names[id(one)][0] for one in given}
        found = func(*args, **kwargs)
        if not mine or not (isinstance(found, Tensor | tuple | list) and _differentiable(found)):
            return found
        if isinstance(found, Tensor) and len(given) == 1 and _rearranges(func, args, given[0], found):
            name, turned = self._names[id(given[0])]
            self._views.append(found)  # so that no other tensor gets its id
            self._names[id(found)] = name, turned != (func in _TURNS)
            return found
        rule, seen = _RULES.get(func), []
        if rule is not None and isinstance(found, Tensor):
            if self.spread and rule is _embedding and found.shape[0] == 1 < self.samples:
                found = found.expand(self.samples, *found.shape[1:])
            try:
                seen = rule(found, *args, **kwargs)
            except (TypeError, ValueError):  # called in a way that the rule does not know
                seen = []
        mine -= self.add(seen)
        told = getattr(func, "__name__", str(func))
        for name in sorted(mine):
            self.strange += [(name, told, _edge(one)) for one in _tensors([found]) if one.requires_grad]
        return found


_TURNS = {Tensor.T.__get__, Tensor.mT.__get__, Tensor.t, torch.t}  # type: ignore[attr-defined]
_RESHAPES = {Tensor.view, Tensor.reshape, torch.reshape, Tensor.unsqueeze, torch.unsqueeze}


def _rearranges(func: Any, args: Any, whole: Tensor, found: Tensor) -> bool:
    """Whether the answer is all of a parameter, in its order or with rows and columns changed."""
    if func in _TURNS:
        return whole.ndim == 2
    if func is Tensor.__getitem__:
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return found.numel() == whole.numel() and all(
            one is None or one is Ellipsis or (isinstance(one, slice) and one == slice(None)) for one in index
        )
    return func in _RESHAPES


def watch_norms(recorder: Recorder, model: nn.Module) -> list[Any]:
    """Hooks for normalization layers that work by kernels of their own, which torch's functions do not show.

    A gain is taken to be what the class says; whoever uses the factors checks that they add up.
    """
    before: dict[int, int] = {}

    def count(module: nn.Module) -> int:
        return sum(len(recorder.uses[name]) for name in recorder.names_of(module))

    def begin(module: Any, args: Any) -> None:
        before[id(module)] = count(module)

    def end(module: Any, args: Any, out: Any) -> None:
        if count(module) > before[id(module)] or not args or module.eps is None or not _differentiable([out]):
            return
        if isinstance(module, nn.RMSNorm):
            seen = _rms_norm(out, args[0], module.normalized_shape, module.weight, module.eps)
        else:
            seen = _layer_norm(out, args[0], module.normalized_shape, module.weight, module.bias, module.eps)
        recorder.add(seen)

    handles = []
    for module in model.modules():
        if isinstance(module, nn.RMSNorm | nn.LayerNorm):
            handles += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    return handles


def _tensors(given: Iterable[Any]) -> Iterable[Tensor]:
    for one in given:
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, tuple | list):
            yield from _tensors(one)


def _differentiable(found: Any) -> bool:
    return any(one.requires_grad for one in _tensors([found]))


_DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
             torch.dropout}  # fmt: skip


def _refuse_chance(func: Any, args: Any, kwargs: Any) -> None:
    """Dropout and batch statistics make an output depend on chance or on the other samples."""
    if func in _DROPOUTS:
        p = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
        training = args[2] if len(args) > 2 else kwargs.get("training", True)
        active = bool(training) and float(p) > 0
        what = "dropout is active"
    elif func is F.scaled_dot_product_attention:
        p = args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0)
        active, what = float(p) > 0, "dropout is active in attention"
    elif func is F.batch_norm:
        active = bool(args[5] if len(args) > 5 else kwargs.get("training", False))
        what = "batch normalization uses the statistics of the batch"
    else:
        return
    if active:
        raise ValueError(f"{what}, so the model has no kernel of its own: call model.eval() first")


# --- the rules: each gives (parameter, use) pairs of one operation ------------------------------------------
Found = list[tuple[Any, Use]]


def _by_sample(x: Tensor, n: int, axis: int) -> Tensor:
    """Samples first, the rest of their dimension second: (n, m, ...)."""
    return x.movedim(1, 0) if axis else x.reshape(n, len(x) // n, *x.shape[1:])


def _each_by_sample(x: Tensor, n: int, axis: int) -> Tensor:
    """The same behind a first dimension of outputs: (k, n, m, ...)."""
    return x.movedim(2, 1) if axis else x.reshape(len(x), n, x.shape[1] // n, *x.shape[2:])


def _edge(out: Tensor) -> Any:
    return torch.autograd.graph.get_gradient_edge(out)


def _axes(out: Tensor) -> tuple[int, ...]:
    return (0, 1) if out.ndim > 2 else (0,)


def _kept(x: Tensor) -> Callable[[], Tensor]:
    """An operation's input, to be read after the forward pass."""
    x = x.detach()
    version = x._version

    def read() -> Tensor:
        if x._version != version:
            raise RuntimeError("the model overwrites an input of a layer in place, so it has no gradient")
        return x

    return read


def _elementwise(
    out: Tensor, edge: Any, parameter: Any, factor: Callable[[], Tensor] | None, shape: Any = None
) -> tuple[Any, Use]:
    """The parameter, of ``shape`` next to ``out``, is multiplied by ``factor``, or added."""
    wide = [1] * (out.ndim - len(shape or parameter.shape)) + list(shape or parameter.shape)

    def delta(gradient: Tensor, n: int, axis: int) -> Tensor:
        if factor is not None:
            gradient = gradient * factor().expand(out.shape)
        each = _each_by_sample(gradient, n, axis)
        held = [1, wide[0], *wide[2:]] if axis else [1, 1, *wide[1:]]
        over = [place + 1 for place in range(1, len(held)) if held[place] == 1]
        each = each.sum(over) if over else each
        return each.reshape(len(gradient), n, 1, 1, -1)

    def ones(n: int, axis: int) -> Tensor:
        return out.new_ones(()).detach().expand(n, 1, 1, 1)

    sample = tuple(one for one in _axes(out) if wide[one] == 1)
    return parameter, Use(edge, out.shape, delta, ones, plain=factor is None, matrix=False, axes=sample)


def _product(out: Tensor, edge: Any, x: Tensor, weight: Any, first: bool) -> tuple[Any, Use]:
    """out = x W^T where ``first`` (delta along the weight's first dimension), or x W."""
    read = _kept(x)

    def delta(gradient: Tensor, n: int, axis: int) -> Tensor:
        return _each_by_sample(gradient, n, axis).reshape(len(gradient), n, 1, -1, out.shape[-1])

    def partner(n: int, axis: int) -> Tensor:
        return _by_sample(read(), n, axis).reshape(n, 1, -1, x.shape[-1])

    return weight, Use(edge, out.shape, delta, partner, first, True, axes=_axes(out))


def _linear(out: Tensor, input: Tensor, weight: Any, bias: Any = None) -> Found:
    edge = _edge(out)
    found = [_product(out, edge, input, weight, True)]
    return found if bias is None else [*found, _elementwise(out, edge, bias, None)]


def _matmul(out: Tensor, input: Tensor, other: Any) -> Found:
    if other.ndim != 2 or input.ndim < 2:
        raise ValueError("only products with a matrix on the right have a rule")
    return [_product(out, _edge(out), input, other, False)]


def _addmm(out: Tensor, input: Any, mat1: Tensor, mat2: Any, *, beta: float = 1, alpha: float = 1) -> Found:
    if beta != 1 or alpha != 1:
        raise ValueError("scaled sums have no rule")
    edge = _edge(out)
    return [_product(out, edge, mat1, mat2, False), _elementwise(out, edge, input, None)]


def _embedding(
    out: Tensor, input: Tensor, weight: Any, padding_idx: int | None = None, max_norm: float | None = None,
    norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Found:  # fmt: skip
    if max_norm is not None or scale_grad_by_freq:
        raise ValueError("renormalised lookups have no rule")
    rows, wide = len(weight), out.shape[:-1]

    def delta(gradient: Tensor, n: int, axis: int) -> Tensor:
        if padding_idx is not None:
            gradient = gradient * (input != padding_idx % rows).expand(wide)[..., None]
        return _each_by_sample(gradient, n, axis).reshape(len(gradient), n, 1, -1, out.shape[-1])

    def partner(n: int, axis: int) -> Tensor:
        return _by_sample(input.expand(wide), n, axis).reshape(n, 1, -1)

    return [(weight, Use(_edge(out), out.shape, delta, partner, False, axes=_axes(out)))]


def _convolution(
    out: Tensor, input: Tensor, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Found:  # fmt: skip
    edge, dims = _edge(out), weight.ndim - 2
    if input.ndim != dims + 2:
        raise ValueError("a convolution's input has samples and channels first")
    sizes = weight.shape[2:]
    steps, holes = (tuple(one) if isinstance(one, Iterable) else (one,) * dims for one in (stride, dilation))
    steps, holes = steps * dims if len(steps) < dims else steps, holes * dims if len(holes) < dims else holes
    read = _kept(input)

    def patches() -> Tensor:
        """(samples, groups, places, channels of a group times the kernel's size)."""
        x = read()
        if isinstance(padding, str):
            spans = [h * (s - 1) if padding == "same" else 0 for s, h in zip(sizes, holes, strict=True)]
            sides = [(span // 2, span - span // 2) for span in spans]
        else:
            given = tuple(padding) if isinstance(padding, Iterable) else (padding,)
            sides = [(one, one) for one in (given * dims if len(given) < dims else given)]
        x = F.pad(x, [side for pair in reversed(sides) for side in pair])
        for place, (size, step, hole) in enumerate(zip(sizes, steps, holes, strict=True)):
            x = x.unfold(2 + place, hole * (size - 1) + 1, step)[..., ::hole]
        x = x.reshape(len(x), groups, -1, *x.shape[2:])  # (S, g, C/g, places..., kernel...)
        x = x.movedim(2, 2 + dims)
        return x.reshape(len(x), groups, math.prod(x.shape[2 : 2 + dims]), -1)

    def delta(gradient: Tensor, n: int, axis: int) -> Tensor:
        k, each = len(gradient), gradient.shape[1] // n
        wide = gradient.reshape(k, n, each, groups, -1, math.prod(out.shape[2:]))
        return wide.permute(0, 1, 3, 2, 5, 4).flatten(3, 4)

    def partner(n: int, axis: int) -> Tensor:
        found = patches()
        return found.reshape(n, -1, *found.shape[1:]).movedim(2, 1).flatten(2, 3)

    found = [(weight, Use(edge, out.shape, delta, partner))]
    if bias is not None:
        found.append(_elementwise(out, edge, bias, None, (len(bias), *(1,) * dims)))
    return found


def _scaled(out: Tensor, plain: Callable[[], Tensor], weight: Any, bias: Any, shape: Any = None) -> Found:
    """Normalization: a weight on what ``plain`` gives, and a bias."""
    edge = _edge(out)
    found = []
    if weight is not None:
        found.append(_elementwise(out, edge, weight, plain, shape))
    if bias is not None:
        found.append(_elementwise(out, edge, bias, None, shape))
    return found


def _channels(out: Tensor) -> tuple[int, ...]:
    return (out.shape[1], *(1,) * (out.ndim - 2))


def _layer_norm(
    out: Tensor, input: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Found:
    read = _kept(input)
    return _scaled(out, lambda: F.layer_norm(read(), normalized_shape, eps=eps), weight, bias)


def _rms_norm(
    out: Tensor, input: Tensor, normalized_shape: Any, weight: Any = None, eps: float | None = None
) -> Found:
    read = _kept(input)
    return _scaled(out, lambda: F.rms_norm(read(), normalized_shape, eps=eps), weight, None)


def _group_norm(
    out: Tensor, input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Found:
    read = _kept(input)
    return _scaled(out, lambda: F.group_norm(read(), num_groups, eps=eps), weight, bias, _channels(out))


def _batch_norm(
    out: Tensor, input: Tensor, running_mean: Tensor, running_var: Tensor, weight: Any = None,
    bias: Any = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Found:  # fmt: skip
    read = _kept(input)
    return _scaled(
        out, lambda: F.batch_norm(read(), running_mean, running_var, eps=eps), weight, bias, _channels(out)
    )


def _multiplied(out: Tensor, input: Any, other: Any) -> Found:
    if not (isinstance(input, Tensor) and isinstance(other, Tensor)):
        raise ValueError("a parameter times a number has no rule")
    edge = _edge(out)
    return [
        _elementwise(out, edge, parameter, _kept(factor))
        for parameter, factor in ((input, other), (other, input))
    ]


def _added(out: Tensor, input: Any, other: Any, *, alpha: float = 1) -> Found:
    if alpha != 1:
        raise ValueError("scaled sums have no rule")
    edge = _edge(out)
    return [_elementwise(out, edge, one, None) for one in (input, other) if isinstance(one, Tensor)]


def _expanded(out: Tensor, input: Any, *sizes: Any) -> Found:
    return [_elementwise(out, _edge(out), input, None)]


_RULES: dict[Any, Callable[..., Found]] = {
    F.linear: _linear, torch.addmm: _addmm, F.embedding: _embedding,
    F.conv1d: _convolution, F.conv2d: _convolution, F.conv3d: _convolution,
    F.layer_norm: _layer_norm, F.group_norm: _group_norm, F.batch_norm: _batch_norm, F.rms_norm: _rms_norm,
    Tensor.expand: _expanded,
    **dict.fromkeys((torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__), _matmul),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _multiplied),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _added),
}  # fmt: skip
