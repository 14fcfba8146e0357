"""Seeing every product that a forward pass asks for, whoever asks and whatever it is called.

What reaches torch's dispatcher is counted by the shapes that it is given, on tensors that have nothing but
shapes, or on real ones where a model looks at values.  Two conventions are built on it: `complexity` and
`convolution_counts`.
"""

import contextlib
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Counter", "countable", "counted", "module_names", "operation_name", "plain_kernels"]


def _product(a: Tensor, b: Tensor) -> int:
    return a.numel() * b.shape[-1]


def _attention(query: Tensor, key: Tensor, value: Tensor) -> int:
    """Scores and mixtures, (B, H, T, D) · (B, H', S, D) · (B, H', S, E); a shared key serves H / H' heads."""
    pairs = math.prod(query.shape[:-1]) * key.shape[-2]
    return pairs * (query.shape[-1] + value.shape[-1])


def _convolution(out: Tensor, args: tuple[Any, ...]) -> int:
    inputs, weight, transposed = args[0], args[1], args[6]
    # each output (or, transposed, each input) meets one kernel of (channels / groups) x kernel size
    return (inputs if transposed else out).numel() * math.prod(weight.shape[1:])


def _macs(name: str, args: tuple[Any, ...], out: Any) -> int | None:
    """The multiply-accumulates of one dispatched operation; None where it does not count."""
    if name in ("mm", "bmm", "mv", "dot", "vdot", "_int_mm", "_scaled_mm"):
        return _product(args[0], args[1]) if args[1].ndim > 1 else args[0].numel()
    if name in ("addmm", "baddbmm", "addbmm", "_addmm_activation"):
        return _product(args[1], args[2])
    if name in ("_grouped_mm", "_scaled_grouped_mm"):  # rows, sorted by expert, each meet one expert's matrix
        return _product(args[0][0] if args[0].ndim > args[1].ndim else args[0], args[1])
    if name == "_trilinear":  # rows of two inputs, every pair of their entries with a weight for each output
        return args[0].shape[0] * args[1].numel()
    if name == "addmv":
        return args[1].numel()
    if name in ("convolution", "_convolution", "convolution_overrideable"):
        return _convolution(out, args)
    if name.startswith(("_scaled_dot_product", "scaled_dot_product", "flex_attention")):
        return _attention(*args[:3])
    return None


_OPEN = ("prim::", "prims::", "rngprims::", "profiler::", "c10d", "_c10d")  # nothing is multiplied in these


def operation_name(func: Any) -> str:
    """What the dispatcher is asked for, without torch's own name space."""
    if isinstance(func, HigherOrderOperator):
        return str(func.name())
    return str(func._schema.name.removeprefix("aten::"))


class Counter(TorchDispatchMode):
    """Counts what passes through the dispatcher, under the name of the module that is running.

    Attributes
    ----------
    rows : dict of (module, operation) to (calls, work, elements written)
    running : list of str
        The modules that are running, the innermost last.
    hidden : set of str
        Operations that ran and may multiply out of sight.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[tuple[str, str], tuple[int, int, int]] = {}
        self.running = [""]
        self.hidden: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, higher = operation_name(func), isinstance(func, HigherOrderOperator)
        shapes = _grouped(args) if name in ("_grouped_mm", "_scaled_grouped_mm") else None
        out = func(*args, **(kwargs or {})) if shapes is None else shapes
        written = out[0] if isinstance(out, tuple | list) and out else out
        macs = _macs(name, args, written)
        self.see(name, args, written, macs)
        if macs is None and (
            higher or name.startswith("_sparse") or ("::" in name and not name.startswith(_OPEN))
        ):
            self.hidden.add(name)
        return out

    def see(self, name: str, args: tuple[Any, ...], written: Any, macs: int | None) -> None:
        """Take note of an operation, of what it wrote, and of its products (None where it has none)."""
        if macs is not None:
            self.note(name, int(macs), int(written.numel()))

    def note(self, name: str, work: int, activations: int) -> None:
        """Add to the innermost module's row."""
        key = (self.running[-1], name)
        calls, before, written = self.rows.get(key, (0, 0, 0))
        self.rows[key] = (calls + 1, before + work, written + activations)


def _grouped(args: tuple[Any, ...]) -> Tensor | None:
    """What products by experts write, where only shapes are known: torch knows that for bfloat16 alone."""
    a, b = args[:2]
    if not (a.is_meta or isinstance(a, FakeTensor)):
        return None
    if a.ndim == b.ndim == 2:  # groups lie along the inner dimension
        return a.new_empty(len(args[2]), len(a), b.shape[-1])
    return a.new_empty(*(a.shape[1:] if b.ndim == 2 else a.shape)[:-1], b.shape[-1])


@contextlib.contextmanager
def module_names(model: nn.Module, running: list[str]) -> Iterator[None]:
    """Keep the name of the innermost running module on a stack, by hooks that are taken away again."""

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        running.pop()

    handles = []
    for name, module in model.named_modules():

        def enter(module: nn.Module, args: Any, name: str = name) -> None:
            running.append(name)

        handles.append(module.register_forward_pre_hook(enter, prepend=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """Keep fused kernels, which hide their products, from being chosen; restored at the end."""
    from torch.nn.attention import flex_attention as flex

    fast, onednn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    compiled = flex._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    flex._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True  # it would be traced, and its trace never seen here
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.mkldnn.enabled = onednn
        flex._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = compiled


def countable(model: nn.Module, inputs: Any) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """The model without what spreads it over devices, and the arguments of its forward pass.

    Raises
    ------
    ValueError
        What cannot be counted: scripted modules, parameters that have no shape yet.
    TypeError
        Inputs that are neither tensor nor tuple nor mapping.
    """
    while isinstance(model, DataParallel | DistributedDataParallel):
        model = model.module
    if not isinstance(model, nn.Module):
        raise TypeError(f"what is counted is an nn.Module; got {type(model).__name__}")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ValueError("a scripted module hides what it runs; count the module that it was made from")
    shapeless = UninitializedParameter | UninitializedBuffer
    if any(isinstance(one, shapeless) for one in (*model.parameters(), *model.buffers())):
        raise ValueError("lazy layers have no shapes yet; run the model on one batch first")
    return model, *_arguments(inputs)


def counted(replay: Callable[[bool], Any], model: nn.Module) -> Any:
    """A replay on shapes alone or, where that fails, for real; with a warning of what is out of sight.

    Parameters
    ----------
    replay : fake -> Counter
    model : nn.Module
        A replay for real needs it to hold values.
    """
    try:
        counter = replay(True)
    except Exception as error:  # what needs values fails in many ways, and a wrong input fails again below
        if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
            if not _NEEDS_VALUES.search(f"{type(error).__name__} {error}"):
                raise
            raise ValueError(
                "the forward pass looks at values, and on the meta device there are none; build the model on "
                "the CPU"
            ) from None
        counter = None
    if counter is None:
        counter = replay(False)
    if counter.hidden:
        warnings.warn(
            f"what {', '.join(sorted(counter.hidden))} may multiply is out of sight and not counted",
            stacklevel=3,
        )
    return counter


_NEEDS_VALUES = re.compile("DataDependent|DynamicOutput|Unsupported|meta|[Ff]ake|tensor subclass")


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple):
        return inputs, {}
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    raise TypeError(
        f"inputs must be a tensor, a tuple of arguments or a mapping of them; got {type(inputs).__name__}"
    )
