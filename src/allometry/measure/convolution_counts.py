"""What image networks are compared by: multiply-adds, parameters, and elements that layers write.

Dollár, Singh and Girshick, "Fast and Accurate Model Scaling", 2021. arXiv:2103.06877, section 3.

The conventions are those of their published tables, so that numbers agree to the last digit:

* A multiply-add is one flop here, not two as in `complexity`; a bias is one more for each element.
* Activations are what convolutions, dense layers, attention products and pools with a window write.  Pools
  over the whole image, norms, activation functions and sums count nothing, for any of the three.
* Nothing is computed: the network runs on the meta device, where tensors are shapes, unless it looks at
  values; then it runs for real, once.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from allometry.measure.complexity import count_parameters
from allometry.measure.counting import (
    Counter,
    countable,
    counted,
    module_names,
    operation_name,
    plain_kernels,
)

if TYPE_CHECKING:
    import pandas

__all__ = ["ConvolutionCounts", "convolution_counts"]

_BATCH_NORMS = ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training")
_POOLS = ("max_pool", "avg_pool", "mkldnn_max_pool")


@dataclass(frozen=True)
class ConvolutionCounts:
    """The counts of one forward pass over the given inputs, the whole batch.

    Attributes
    ----------
    flops : int
        Multiply-adds and additions of biases.
    parameters : int
    activations : int
        Elements written by convolutions, dense layers, attention products and pools.
    table : pandas.DataFrame
        One row for each module and operation: ``module``, ``operation``, ``calls``, ``flops``,
        ``activations``.
    """

    flops: int
    parameters: int
    activations: int
    table: pandas.DataFrame


def convolution_counts(model: nn.Module, inputs: Any) -> ConvolutionCounts:
    """Count as tables of image networks do, for any module.

    Parameters
    ----------
    model : nn.Module
        On any device, the meta device included; counted in evaluation mode and left as it is.
    inputs : Tensor, tuple or mapping
        One argument, positional arguments, or keyword arguments of ``model``; only shapes and dtypes matter,
        unless the forward pass looks at values.

    Returns
    -------
    ConvolutionCounts

    Raises
    ------
    ValueError
        As `complexity`.

    Warns
    -----
    UserWarning
        As `complexity`.

    Examples
    --------
    >>> layer = nn.Conv2d(3, 8, 3, padding=1)
    >>> counts = convolution_counts(nn.Sequential(layer, nn.MaxPool2d(2)), torch.zeros(1, 3, 4, 4))
    >>> counts.flops, counts.activations, counts.parameters  # 8 · 16 · (27 + 1); 8 · 16 + 8 · 4
    (3584, 160, 224)
    """
    import pandas

    model, args, kwargs = countable(model, inputs)
    counter = counted(lambda fake: _count(model, args, kwargs, fake=fake), model)
    rows = [(*key, *counts) for key, counts in counter.rows.items()]
    table = pandas.DataFrame(rows, columns=["module", "operation", "calls", "flops", "activations"])
    return ConvolutionCounts(
        int(table["flops"].sum()), count_parameters(model).total, int(table["activations"].sum()), table
    )


def _shape_of(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _count(model: nn.Module, args: Any, kwargs: Any, *, fake: bool) -> _Counter:
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors |= dict(model.named_buffers(remove_duplicate=False))
    if fake:
        alike: dict[int, Tensor] = {}
        replaced = {name: alike.setdefault(id(one), _shape_of(one)) for name, one in tensors.items()}
        args, kwargs = tree_map(_shape_of, args), tree_map(_shape_of, kwargs)
    else:
        buffers = {name: one.clone() for name, one in model.named_buffers(remove_duplicate=False)}
        replaced = tensors | buffers
    biases = {
        id(replaced[f"{name}.bias" if name else "bias"])
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and isinstance(module.bias, Tensor)
    }
    modes = {module: module.training for module in model.modules()}
    counter = _Counter(biases)
    try:
        model.eval()
        with contextlib.ExitStack() as stack:
            for one in (
                torch.no_grad(), torch.random.fork_rng([]), plain_kernels(),
                module_names(model, counter.running), counter,
            ):  # fmt: skip
                stack.enter_context(one)
            torch.func.functional_call(model, replaced, args, kwargs)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return counter


class _Counter(Counter):
    """Counts biases and pools too."""

    def __init__(self, biases: set[int]) -> None:
        super().__init__()
        self.biases = biases

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation_name(func) in _BATCH_NORMS and args[0].is_meta:
            # shapes go through; on the meta device it is decomposed, and takes longest
            return tuple(torch.empty_like(args[0]) if k == 0 else args[0].new_empty(0) for k in range(3))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def see(self, name: str, args: tuple[Any, ...], written: Any, macs: int | None) -> None:
        """As in `complexity`, and an addition for each element that a bias is added to."""
        if macs is not None:
            biased = name in ("addmm", "addmv", "_addmm_activation")
            biased |= "convolution" in name and args[2] is not None
            self.note(name, int(macs) + biased * int(written.numel()), int(written.numel()))
        elif name.startswith(_POOLS):
            self.note(name, 0, int(written.numel()))
        elif name in ("add", "add_") and any(id(one) in self.biases for one in args):
            # a dense layer over inputs that are no matrix may add its bias by itself
            self.note(name, int(written.numel()), 0)
