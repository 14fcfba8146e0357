"""What a model costs, counted exactly and without running it: multiply-accumulates, parameters, activations.

The forward pass is replayed on fake tensors, which have shapes and no data, and every matrix product,
convolution and attention that reaches the dispatcher is counted by the shapes it is given. So nothing is
estimated from layer types, functional calls count like modules, and a model on the meta device costs nothing.

- One multiply-accumulate is one MAC; ``flops`` = 2 · MACs; a training step is three forward passes.
- Attention counts in full: a causal mask saves nothing here. Element-wise work, norms, softmax, pooling,
  biases, look-ups and Fourier transforms do not count.
- What another library's kernel multiplies is out of sight, and that is said in a warning, never passed over.
- ``activations`` are the elements written by the counted operations, which follow running time on
  memory-limited hardware better than flops do (Dollár, Singh and Girshick, 2021. arXiv:2103.06877).
- The user's model is neither moved nor changed; its parameters are replaced for the length of one call.
"""

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map

from allometry.measure.counting import Counter, countable, counted, module_names, plain_kernels

if TYPE_CHECKING:
    import pandas

__all__ = ["Complexity", "Parameters", "complexity", "count_parameters", "flops_per_token", "mfu"]


@dataclass(frozen=True)
class Parameters:
    """How many parameters a model has; a tied parameter counts once.

    Attributes
    ----------
    total : int
        All of them, trainable or not.
    non_embedding : int
        Without token and position tables and without an untied head: what laws of language models are about.
    head : int
        Of the layer that yields the logits over the tokens, tied or not; 0 for a model without embeddings.
    """

    total: int
    non_embedding: int
    head: int


@dataclass(frozen=True)
class Complexity:
    """The cost of one forward pass over the given inputs, the whole batch.

    Attributes
    ----------
    macs : int
        Multiply-accumulates of matrix products, convolutions and attention.
    flops : int
        Twice the MACs.
    parameters : Parameters
    activations : int
        Elements written by the counted operations.
    table : pandas.DataFrame
        One row for each module and operation: ``module`` (the innermost one that ran the operation; empty
        for the model's own code), ``operation``, ``calls``, ``macs``, ``activations``.
    """

    macs: int
    flops: int
    parameters: Parameters
    activations: int
    table: "pandas.DataFrame"

    @property
    def training_flops(self) -> int:
        """Forward and backward: three times the forward pass."""
        return 3 * self.flops


def complexity(model: nn.Module, inputs: Any) -> Complexity:
    """Count what one forward pass costs.

    Parameters
    ----------
    model : nn.Module
        On any device, the meta device included; it is left as it is. What wraps it for several devices is
        looked through.
    inputs : Tensor, tuple or mapping
        One argument, positional arguments, or keyword arguments of ``model``; tensors on any device.
        Only their shapes and dtypes matter, unless the forward pass looks at values, in which case it is
        run for real, once, without gradients and without touching buffers or random state.

    Returns
    -------
    Complexity

    Raises
    ------
    ValueError
        A scripted module, parameters without a shape yet, or a model on the meta device that looks at values.

    Warns
    -----
    UserWarning
        Operations ran that may multiply out of sight, such as another library's kernels.

    Examples
    --------
    >>> cost = complexity(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(5, 3))
    >>> cost.macs, cost.flops, cost.activations, cost.parameters.total
    (200, 400, 50, 50)
    """
    import pandas as pd

    model, args, kwargs = countable(model, inputs)
    counter = counted(lambda fake: _count(model, args, kwargs, fake=fake), model)
    rows = [(*key, *counts) for key, counts in counter.rows.items()]
    table = pd.DataFrame(rows, columns=["module", "operation", "calls", "macs", "activations"])
    macs = int(table["macs"].sum())
    return Complexity(macs, 2 * macs, count_parameters(model), int(table["activations"].sum()), table)


def count_parameters(model: nn.Module, *, head: str | None = None) -> Parameters:
    """Count parameters, with and without those that look up tokens and positions or name them.

    Parameters
    ----------
    model : nn.Module
    head : str, optional
        Name of the layer that yields the logits. Without it: what ``model.get_output_embeddings()`` says,
        where there is such a method; else a linear layer whose weight is also an embedding's; else, in a
        model with embeddings, its last linear layer, if that has as many outputs as the first embedding
        has rows.

    Returns
    -------
    Parameters

    Raises
    ------
    ValueError
        If ``head`` names no module.

    Examples
    --------
    >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 10, bias=False))
    >>> count_parameters(model)
    Parameters(total=96, non_embedding=16, head=40)
    """
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)]
    left_out = {id(table.weight) for table in tables}
    left_out |= {id(p) for name, p in model.named_parameters() if _POSITIONS.search(name)}
    output = _head(model, tables, head)
    head_parameters = list(output.parameters()) if output is not None else []
    left_out |= {id(parameter) for parameter in head_parameters}
    sizes = {id(parameter): parameter.numel() for parameter in model.parameters()}
    return Parameters(
        total=sum(sizes.values()),
        non_embedding=sum(size for key, size in sizes.items() if key not in left_out),
        head=sum(parameter.numel() for parameter in head_parameters),
    )


def flops_per_token(model: nn.Module, tokens: Any, *, training: bool = True) -> float:
    """Floating-point operations a token, attention included in full at the given length.

    Parameters
    ----------
    model : nn.Module
    tokens : Tensor of integers, shape (batch, length)
        Only its shape matters; it may lie on the meta device.
    training : bool
        Three times the forward pass, or once.

    Examples
    --------
    >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False))
    >>> flops_per_token(model, torch.zeros(2, 6, dtype=torch.long))
    240.0
    """
    if not isinstance(tokens, Tensor) or tokens.numel() == 0:
        raise ValueError("tokens must be a tensor of at least one token, of shape (batch, length)")
    return complexity(model, tokens).flops * (3 if training else 1) / tokens.numel()


def mfu(flops: float, seconds: float, peak: float, *, devices: int = 1) -> float:
    """Model FLOPs utilization: the share of the hardware's peak that the model's own arithmetic used.

    Chowdhery and others, 2022 (PaLM). arXiv:2204.02311. Recomputation is no work of the model's.

    Parameters
    ----------
    flops : float
        Done in ``seconds`` by all devices together, such as ``flops_per_token(...) * tokens``.
    seconds : float
    peak : float
        Of one device, in flops a second, in the number format that was used.
    devices : int

    Examples
    --------
    >>> mfu(3e14, 1.0, 1e15)
    0.3
    """
    for what, value in (("seconds", seconds), ("peak", peak), ("devices", devices)):
        if not value > 0:
            raise ValueError(f"{what} must be above 0; got {value!r}")
    return flops / seconds / peak / devices


def _count(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, fake: bool) -> Counter:
    counter = Counter()
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors |= dict(model.named_buffers(remove_duplicate=False))
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(plain_kernels())
        if fake:
            mode = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))

            def imitate(value: Any) -> Any:
                # everything on one imaginary CPU, so that a model on the meta device takes any inputs
                if not isinstance(value, Tensor):
                    return value
                with mode:
                    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu")

            alike: dict[int, Tensor] = {}
            replaced = {name: alike.setdefault(id(t), imitate(t)) for name, t in tensors.items()}
            args, kwargs = tree_map(imitate, args), tree_map(imitate, kwargs)
        else:
            devices = {t.device for t in (*tensors.values(), *tree_leaves((args, kwargs))) if _is_cuda(t)}
            stack.enter_context(torch.random.fork_rng(devices=devices))
            buffers = {name: b.clone() for name, b in model.named_buffers(remove_duplicate=False)}
            replaced = tensors | buffers
        stack.enter_context(module_names(model, counter.running))
        stack.enter_context(counter)
        torch.func.functional_call(model, replaced, args, kwargs)
    return counter


def _is_cuda(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_cuda


# ---------------------------------------------------------------- which parameters are which

_POSITIONS = re.compile(
    r"(^|[._])pos(ition)?(al|s)?_?(emb|embed|embeds|embedding|embeddings|table|encoding)$"
)


def _head(model: nn.Module, tables: list[Any], named: str | None) -> nn.Module | None:
    if named is not None:
        modules = dict(model.named_modules())
        if named not in modules:
            raise ValueError(f"head {named!r} is no module of the model")
        return modules[named]
    find = getattr(model, "get_output_embeddings", None)
    if callable(find):
        return find()
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    rows = {id(table.weight) for table in tables}
    tied = [linear for linear in linears if id(linear.weight) in rows]
    if tied:
        return tied[-1]
    if tables and linears and linears[-1].out_features == tables[0].num_embeddings:
        return linears[-1]
    return None
