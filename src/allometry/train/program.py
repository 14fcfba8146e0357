"""A traced tensor function, run as a fixed list of operators on memory that is planned once.

A small model's training step is some hundred operators of a few microseconds each, so what it costs is
dispatch, autograd's bookkeeping, views, and pages that the allocator gives back and faults in again. The
function is traced once to ATen operators (``make_fx``), forward and backward together, and then

* operators with the same inputs are merged, and constants computed, once;
* gradients of slices that tile a tensor become one concatenation, instead of zeros, copies and sums;
* views are made once, because every intermediate has its place for good;
* places are shared between intermediates that do not live at the same time, the last freed first, which is
  the one still in the cache; element-wise operators write over an operand that nobody reads again;
* each operator runs by its ``out=`` form.

Shapes, dtypes and control flow are those of the traced call. Random operators are refused: they would be
correct here, but not reproducible from an explicit generator.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten

# operators that may write over an operand of the very same layout
_ELEMENTWISE = {
    aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.div.Tensor, aten.neg.default, aten.relu.default,
    aten.rsqrt.default, aten.exp.default, aten.tanh.default, aten.sigmoid.default, aten.addcmul.default,
    aten.threshold_backward.default, aten.gelu.default, aten.gelu_backward.default, aten.pow.Tensor_Scalar,
}  # fmt: skip


class NotTraceable(RuntimeError):
    """A function that cannot be run as a fixed program, with the reason."""


class Program:
    """``function(*inputs)`` as a fixed program.

    Parameters
    ----------
    function : callable
        From tensors to a tensor or a flat tuple of tensors; may mutate its inputs.
    inputs : sequence of Tensor
        Examples. Their values do not matter beyond being valid (indices in range).
    fixed : sequence of int
        Positions of contiguous inputs that are read where they lie: the caller keeps them in place.

    Raises
    ------
    NotTraceable
        If it draws random numbers, or has an operator without a known effect.

    >>> double = Program(lambda x: (x * 2).sin(), [torch.zeros(3)])
    >>> bool(torch.equal(double(torch.arange(3.0))[0], (torch.arange(3.0) * 2).sin()))
    True
    """

    def __init__(
        self, function: Callable[..., Any], inputs: Sequence[Tensor], *, fixed: Sequence[int] = ()
    ) -> None:
        with torch.no_grad():
            # make_fx notes the shape of each result in a fake tensor's mode; without one that is in force it
            # makes a new mode for each, which takes 40 % of tracing
            with tracing(TracingContext(FakeTensorMode())):
                graph = make_fx(function)(*(_copy(x) for x in inputs)).graph
            graph.eliminate_dead_code()
            _join_slices(graph)
            self.inputs = [x if i in set(fixed) else _copy(x) for i, x in enumerate(inputs)]
            _Planner(self, graph)
        self._fixed = frozenset(fixed)

    calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]
    outputs: tuple[Tensor, ...]
    planned_bytes: int

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Outputs for these inputs. The same tensors every time, overwritten by the next call."""
        with torch.no_grad():
            for index, (mine, given) in enumerate(zip(self.inputs, inputs, strict=True)):
                if index not in self._fixed:
                    mine.copy_(given)
            for function, arguments, keywords in self.calls:
                function(*arguments, **keywords)
        return self.outputs


class _Planner:
    """Runs a graph once on copies to learn what shares memory with what, then lays it out."""

    def __init__(self, program: Program, graph: fx.Graph) -> None:
        self.graph = graph
        self.sample: dict[fx.Node, Any] = {}
        self.memory: dict[fx.Node, frozenset[int]] = {}  # the storages that a node's value lies in
        self.written: set[int] = set()  # storages that some operator mutates
        self._run_once([_copy(x) for x in program.inputs])
        self._merge_equal()
        program.calls, program.outputs, program.planned_bytes = self._lay_out(program.inputs)

    def _run_once(self, inputs: list[Tensor]) -> None:
        remaining = iter(inputs)
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self.sample[node] = next(remaining)
            elif node.op == "get_attr":
                self.sample[node] = _attribute(self.graph, node)
            elif node.op == "call_function":
                target = node.target
                if target is not operator.getitem:
                    if not isinstance(target, torch._ops.OpOverload):
                        raise NotTraceable(f"{target} is not an ATen operator")
                    if torch.Tag.nondeterministic_seeded in target.tags:
                        raise NotTraceable(f"{target} draws from the global random state")
                arguments, keywords = fx.map_arg((node.args, node.kwargs), self.sample.__getitem__)
                self.sample[node] = target(*arguments, **keywords)
                if target is not operator.getitem:
                    for position, argument in enumerate(target._schema.arguments):
                        if argument.alias_info is not None and argument.alias_info.is_write:
                            value = (
                                arguments[position] if position < len(arguments) else keywords[argument.name]
                            )
                            self.written |= _storages(value)
            elif node.op != "output":
                raise NotTraceable(f"a node of kind {node.op}")
            if node.op != "output":
                self.memory[node] = _storages(self.sample[node])

    def _merge_equal(self) -> None:
        """Common subexpressions, where no memory involved is ever written."""
        seen: dict[Hashable, fx.Node] = {}
        for node in list(self.graph.nodes):
            if node.op != "call_function":
                continue
            involved = self.memory[node].union(*(self.memory[a] for a in node.all_input_nodes))
            if involved & self.written or _mutates(node):
                continue
            key = (node.target, _frozen(node.args), _frozen(node.kwargs))
            first = seen.setdefault(key, node)
            if first is not node:
                node.replace_all_uses_with(first)
        self.graph.eliminate_dead_code()

    def _lay_out(self, inputs: list[Tensor]) -> tuple[list[Any], tuple[Tensor, ...], int]:
        nodes = list(self.graph.nodes)
        dies = self._last_uses(nodes)
        places: dict[fx.Node, Any] = {}
        owned: dict[int, Tensor] = {}  # storage of the sample -> its place
        pool: dict[int, list[Tensor]] = {}  # places nobody uses now, by size
        constants: set[fx.Node] = set()
        calls: list[Any] = []
        total = 0
        remaining = iter(inputs)
        outputs: tuple[Tensor, ...] = ()

        def place(sample: Tensor) -> Tensor:
            nonlocal total
            wanted = _dense_elements(sample) * sample.element_size()
            free = pool.get(wanted)
            if free:
                base = free.pop()
            else:
                base = torch.empty(wanted, dtype=torch.uint8, device=sample.device)
                total += wanted
            for storage in _storages(sample):
                owned[storage] = base
            return base.view(sample.dtype).as_strided(sample.shape, sample.stride())

        for index, node in enumerate(nodes):
            if node.op == "placeholder":
                places[node] = next(remaining)
                continue
            if node.op == "get_attr":
                places[node] = self.sample[node]
                constants.add(node)
                continue
            if node.op == "output":
                found = fx.map_arg(node.args[0], places.__getitem__)
                outputs = tuple(found) if isinstance(found, tuple | list) else (found,)
                continue
            arguments, keywords = fx.map_arg((node.args, node.kwargs), places.__getitem__)
            target, sample = node.target, self.sample[node]
            from_inputs = frozenset().union(*(self.memory[a] for a in node.all_input_nodes))
            if target is operator.getitem:
                places[node] = arguments[0][arguments[1]]
                constants |= {node} if node.args[0] in constants else set()
            elif _mutates(node):
                places[node] = target(*arguments, **keywords)
                calls.append((target, arguments, dict(keywords)))
            elif not isinstance(sample, Tensor | tuple | list) or (
                not self.memory[node] & self.written and all(a in constants for a in node.all_input_nodes)
            ):
                places[node] = sample
                constants.add(node)
            elif self.memory[node] and self.memory[node] <= from_inputs:
                places[node] = _view(target, arguments, keywords)
            elif isinstance(sample, Tensor):
                into = self._inherit(node, index, dies, owned, places)
                if into is None:
                    into = place(sample)
                places[node] = into
                calls.append(_into(target, arguments, keywords, into))
            else:
                several = tuple(place(x) if isinstance(x, Tensor) else x for x in sample)
                places[node] = several
                calls.append(_into_several(target, arguments, keywords, several))
            for storage in dies.get(index, ()):
                if storage in owned:
                    base = owned.pop(storage)
                    pool.setdefault(base.numel(), []).append(base)
        return calls, outputs, total

    def _last_uses(self, nodes: list[fx.Node]) -> dict[int, list[int]]:
        last: dict[int, int] = {}
        for index, node in enumerate(nodes):
            used = set(node.all_input_nodes) | ({node} if node in self.memory else set())
            for storage in frozenset().union(*(self.memory[a] for a in used)) if used else ():
                last[storage] = index
        for given in nodes[-1].all_input_nodes:
            for storage in self.memory[given]:
                last.pop(storage, None)  # outputs live for ever
        dies: dict[int, list[int]] = {}
        for storage, index in last.items():
            dies.setdefault(index, []).append(storage)
        return dies

    def _inherit(
        self,
        node: fx.Node,
        index: int,
        dies: dict[int, list[int]],
        owned: dict[int, Tensor],
        places: dict[fx.Node, Any],
    ) -> Tensor | None:
        """The place of an operand of the result's own layout that is read here for the last time."""
        sample = self.sample[node]
        if node.target not in _ELEMENTWISE:
            return None
        for operand in dict.fromkeys(a for a in node.args if isinstance(a, fx.Node)):
            value = self.sample[operand]
            memory = self.memory[operand]
            if (
                isinstance(value, Tensor)
                and memory <= set(dies.get(index, ()))
                and all(storage in owned for storage in memory)
                and (value.shape, value.stride()) == (sample.shape, sample.stride())
                and value.dtype == sample.dtype
                and value.storage_offset() == 0
                and all(a is operand or not self.memory[a] & memory for a in node.all_input_nodes)
            ):
                bases = [owned.pop(storage) for storage in memory]
                owned.update(dict.fromkeys(self.memory[node], bases[0]))
                return places[operand]
        return None


def _attribute(graph: fx.Graph, node: fx.Node) -> Any:
    value: Any = graph.owning_module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value


def _copy(x: Tensor) -> Tensor:
    return x.detach().clone(memory_format=torch.contiguous_format)


def _storages(value: Any) -> frozenset[int]:
    if isinstance(value, Tensor):
        return frozenset((value.untyped_storage()._cdata,)) if value.numel() else frozenset()
    if isinstance(value, tuple | list):
        return frozenset().union(*(_storages(x) for x in value))
    return frozenset()


def _dense_elements(x: Tensor) -> int:
    """Elements from the first to the last that ``x`` touches."""
    if x.numel() == 0:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _frozen(value: Any) -> Hashable:
    if isinstance(value, tuple | list):
        return tuple(_frozen(x) for x in value)
    if isinstance(value, dict):
        return tuple((key, _frozen(x)) for key, x in value.items())
    return (type(value), value) if isinstance(value, bool | int | float) else value


def _view(target: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    if target is aten._unsafe_view.default:
        return arguments[0].view(arguments[1])
    return target(*arguments, **keywords)


@cache
def _out_form(target: torch._ops.OpOverload) -> tuple[torch._ops.OpOverload, tuple[str, ...]] | None:
    """The overload that writes into given tensors, and their argument names."""
    wanted = [(a.name, str(a.type)) for a in target._schema.arguments]
    packet = target.overloadpacket
    for name in packet.overloads():
        candidate = getattr(packet, name)
        outs = tuple(a.name for a in candidate._schema.arguments if a.is_out)
        rest = [(a.name, str(a.type)) for a in candidate._schema.arguments if not a.is_out]
        if len(outs) == len(target._schema.returns) and rest == wanted:
            return candidate, outs
    return None


def _into(target: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], place: Tensor) -> Any:
    if target in (aten.clone.default, aten._to_copy.default):
        return aten.copy_.default, (place, arguments[0]), {}
    if target in (aten.zeros.default, aten.new_zeros.default, aten.zeros_like.default):
        return aten.zero_.default, (place,), {}
    if target is aten.relu.default:  # whose own out form computes first and copies then
        return aten.clamp_min.out, (arguments[0], 0), {"out": place}
    form = _out_form(target)
    if form is not None:
        return form[0], arguments, {**keywords, form[1][0]: place}

    def run() -> None:
        place.copy_(target(*arguments, **keywords))

    return run, (), {}


def _into_several(
    target: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], places: tuple[Any, ...]
) -> Any:
    form = _out_form(target)
    if form is not None and all(isinstance(x, Tensor) for x in places):
        return form[0], arguments, {**keywords, **dict(zip(form[1], places, strict=True))}

    def run() -> None:
        for mine, made in zip(places, target(*arguments, **keywords), strict=True):
            if isinstance(mine, Tensor):
                mine.copy_(made)

    return run, (), {}


def _join_slices(graph: fx.Graph) -> None:
    """add(slice_backward(a, first half), slice_backward(b, second half)) is cat(a, b)."""
    for node in list(graph.nodes):
        pieces = _pieces(node) if node.target is aten.add.Tensor else None
        if pieces is None or len(pieces) < 2:
            continue
        sizes, dim = pieces[0][2], pieces[0][3]
        pieces.sort(key=lambda piece: piece[0])
        ends = [0, *(piece[1] for piece in pieces)]
        tiles = (
            all(piece[0] == end for piece, end in zip(pieces, ends, strict=False)) and ends[-1] == sizes[dim]
        )
        if not tiles or any((piece[2], piece[3]) != (sizes, dim) for piece in pieces):
            continue
        with graph.inserting_before(node):
            parts = [
                graph.call_function(aten.unsqueeze.default, (piece[4], dim)) if piece[5] else piece[4]
                for piece in pieces
            ]
            joined = graph.call_function(aten.cat.default, (parts, dim))
        node.replace_all_uses_with(joined)
    graph.eliminate_dead_code()


def _pieces(node: Any) -> list[tuple[int, int, tuple[int, ...], int, fx.Node, bool]] | None:
    """(start, end, sizes, dimension, gradient, whether without the dimension) of a sum of slices."""
    if not isinstance(node, fx.Node) or node.kwargs:
        return None
    if node.target is aten.add.Tensor:
        if len(node.args) != 2:
            return None
        left, right = (
            _pieces(a) if isinstance(a, fx.Node) and len(a.users) == 1 else None for a in node.args
        )
        return None if left is None or right is None else left + right
    if node.target is aten.slice_backward.default:
        gradient, sizes, dim, start, end, step = node.args
        size = sizes[dim]  # type: ignore[index]
        start, end = (min(max(x + size if x < 0 else x, 0), size) for x in (start, end))  # type: ignore
        return [(start, end, tuple(sizes), dim % len(sizes), gradient, False)] if step == 1 else None  # type: ignore
    if node.target is aten.select_backward.default:
        gradient, sizes, dim, at = node.args
        at = at % sizes[dim]  # type: ignore
        return [(at, at + 1, tuple(sizes), dim % len(sizes), gradient, True)]  # type: ignore
    return None
