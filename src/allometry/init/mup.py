"""Maximal-update parametrization (µP) for any ``nn.Module``: what is tuned narrow keeps its meaning wide.

Greg Yang and Edward J. Hu, "Feature Learning in Infinite-Width Neural Networks", 2020, arXiv:2011.14522,
in the base-width form of Greg Yang and others, "Tensor Programs V", 2022, arXiv:2203.03466.

- **Width is found, not declared.** Two or three instances of one model, built at different widths, are
  compared by the shapes of their parameters; the narrow ones may live on the meta device. A parameter with
  two width dimensions is *matrix-like*, with one *vector-like* (input weights, biases, gains, readouts),
  with none *fixed*.
- **Nothing is wrapped or subclassed.** Weights are rescaled once; the readout divides its input by the
  width multiplier in a forward pre-hook, so that ``state_dict`` keys, ``deepcopy``, pickling,
  ``torch.func.functional_call`` and ``vmap`` go on as before. The learning rates are `Role`s for
  `allometry.optim.param_groups`.
- **At the base width nothing changes**, bit for bit. With m the width multiplier (width over base width):

  ============  =====================================  ==============  ===================
  parameter     initial scale                          SGD rate        Adam's rate
  ============  =====================================  ==============  ===================
  matrix-like   1/√fan_in                              m_out / m_in    1 / m_in
  input, gains  free of width                          m               1
  readout       as at the base; forward divided by m   m               1
  fixed         as it is                               1               1
  ============  =====================================  ==============  ===================

What the theory does not say: it is about the *stable* rate of SGD on multilayer perceptrons as width goes to
infinity at fixed depth and fixed number of steps. That the *best* rate stays put, with Adam, normalization
and attention, is an observation that holds approximately and is worth checking with
`allometry.measure.coordinate_check`. Keep the base width at 64 or more. Depth has its own rule, in
`allometry.init.depth`.
"""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from allometry.init.multiplier import DivideInput
from allometry.init.widths import WidthInfo, is_affine, width_dims
from allometry.optim.groups import Role

__all__ = ["WidthInfo", "apply_", "roles", "width_dims"]

_RECORD = "_maximal_update"  # a plain attribute, so that copies carry it and state_dict does not


@dataclass(frozen=True)
class _Record:
    """What `apply_` leaves on a model: the widths, so that `roles` need not be told them again."""

    widths: Mapping[str, WidthInfo]


def apply_(
    model: nn.Module,
    base: nn.Module | Mapping[str, Sequence[int]],
    delta: nn.Module | Mapping[str, Sequence[int]] | None = None,
    *,
    readout: Literal["auto"] | Iterable[str] = "auto",
    attention: Literal["head_size"] | None = None,
    rescale: bool = True,
    initial: Literal["auto", "fan_in", "constant"] = "auto",
) -> nn.Module:
    """Put a freshly built model into maximal-update parametrization, in place.

    Use `roles` for the learning rates afterwards: the parametrization is both or neither.

    Parameters
    ----------
    model : nn.Module
        As its own code initialised it, before ``torch.compile`` or a parallel wrapper renames its parameters;
        make the optimizer's groups from it then, too.
    base, delta : nn.Module or mapping from parameter name to shape
        As in `width_dims`.
    readout : "auto" or iterable of module names
        The layers that lead from width to a fixed size. ``"auto"`` takes what
        ``model.get_output_embeddings()`` names, where a model has it, or else the one such layer there is.
        A readout that is tied to an embedding keeps the embedding's initial values. A readout must be
        *called* as a module: a model that multiplies by its weight directly cannot be given the multiplier.
    attention : "head_size", optional
        Only where the size of a head grows with width: attention logits are then divided by the head size
        instead of its square root, with the constant that changes nothing at the base. Works on attention
        modules with a float ``scaling`` and an integer ``head_dim`` (transformers' Llama, GPT-2 and kin).
    rescale : bool
        False leaves the values alone and installs the multiplier only: for a model whose trained weights
        are about to be, or already were, loaded.
    initial : "auto", "fan_in" or "constant"
        How the model's own code lets initial scales depend on width. ``"fan_in"``: weights *and biases* of
        linear and convolutional layers like 1/√fan_in, torch's default; readouts, biases and the input
        weights of recurrent layers are then multiplied by √m. ``"constant"``: one standard deviation at all
        widths; hidden matrices are then divided by √m. ``"auto"``: constant where the model's ``config`` has
        an ``initializer_range`` (transformers), fan-in otherwise. What starts at zero stays at zero.

    Returns
    -------
    nn.Module
        The same model.

    Raises
    ------
    ValueError
        On a second call, on a layer from width to a fixed size that is no readout, on a readout that is not
        there, and wherever `width_dims` raises.

    Warns
    -----
    UserWarning
        If no parameter differs in width, or if heads grow with width and ``attention`` leaves them alone.

    Examples
    --------
    >>> def build(width):
    ...     return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))
    >>> model = apply_(build(64), build(16))
    >>> roles(model, optimizer="sgd")["0.weight"].learning_rate
    4.0
    """
    if any(hasattr(module, _RECORD) for module in model.modules()):
        raise ValueError(
            "this model is in maximal-update parametrization already, and a second rescaling would undo the "
            "first; build the model afresh"
        )
    if initial not in ("auto", "fan_in", "constant"):
        raise ValueError(f"initial must be 'auto', 'fan_in' or 'constant'; got {initial!r}")
    if attention not in (None, "head_size"):
        raise ValueError(f"attention must be None or 'head_size'; got {attention!r}")
    widths = width_dims(model, base, delta)
    if all(info.kind == "fixed" for info in widths.values()):
        warnings.warn(
            "no parameter differs in width between the model and its base, so everything counts as fixed and "
            "standard parametrization is left as it is; pass `delta` if the model may have the base's width",
            stacklevel=2,
        )
    layers = _layers(model, widths)
    readouts = _readouts(model, layers, readout)
    scalings = _attention_scalings(model, base, attention)

    if rescale:
        if initial == "constant" or (initial == "auto" and _has_constant_scale(model)):
            _divide_matrices(model, widths)
        else:
            _undo_shrinking(layers, readouts)
            _undo_recurrent_shrinking(model, widths)
    for name, module in readouts.items():
        divisor = _input_growth(layers[name][1])
        if divisor != 1:  # at the base width even a division by one is left out
            DivideInput(divisor).attach(module)
    for module, scaling in scalings:
        setattr(module, "scaling", scaling)  # noqa: B010 (a Module's attributes are untyped)
    setattr(model, _RECORD, _Record(widths))
    return model


def roles(
    model: nn.Module,
    base: nn.Module | Mapping[str, Sequence[int]] | None = None,
    delta: nn.Module | Mapping[str, Sequence[int]] | None = None,
    optimizer: Literal["sgd", "adam"] = "adam",
    *,
    decay: Literal["coupled", "independent"] = "coupled",
) -> dict[str, Role]:
    """Each parameter's multiples of the learning rate and of the weight decay.

    Parameters
    ----------
    model : nn.Module
    base, delta : nn.Module or mapping from parameter name to shape, optional
        As in `width_dims`; not needed after `apply_`, which left its findings on the model.
    optimizer : "sgd" or "adam"
        ``"sgd"`` for steps in proportion to the gradient (with or without momentum), ``"adam"`` for steps
        that ignore its scale (Adam, AdamW, Lion, RMSprop ...).
    decay : "coupled" or "independent"
        ``"coupled"``: the optimizer multiplies the decay by the rate (all of ``torch.optim``), and the decay
        gets the inverse multiple, so that their product stays what it is at the base. ``"independent"``: it
        does not (`allometry.optim.AdamWIndependent`), and the decay is left alone.

    Returns
    -------
    dict from parameter name to Role
        For `allometry.optim.param_groups`.

    Examples
    --------
    >>> def build(width):
    ...     return nn.Sequential(nn.Linear(3, width), nn.Linear(width, width), nn.Linear(width, 2))
    >>> roles(build(64), build(16))["1.weight"]
    Role(learning_rate=0.25, weight_decay=4.0, name='hidden')
    """
    if optimizer not in ("sgd", "adam"):
        raise ValueError(f"optimizer must be 'sgd' or 'adam'; got {optimizer!r}")
    if decay not in ("coupled", "independent"):
        raise ValueError(f"decay must be 'coupled' or 'independent'; got {decay!r}")
    if base is not None:
        widths: Mapping[str, WidthInfo] = width_dims(model, base, delta)
    elif hasattr(model, _RECORD):
        widths = getattr(model, _RECORD).widths
    else:
        raise ValueError("roles needs the base model, or a model that went through allometry.init.apply_")
    found = {}
    for name, info in widths.items():
        rate = 1.0
        if optimizer == "adam" and info.kind == "matrix":
            rate = 1 / info.fan_in
        elif optimizer == "sgd" and info.kind == "matrix":
            rate = info.fan_out / info.fan_in
        elif optimizer == "sgd" and info.kind == "vector":
            rate = info.multiplier
        found[name] = Role(rate, 1 / rate if decay == "coupled" else 1.0, info.layer)
    return found


# ---------------------------------------------------------------- readouts, scales, heads


def _layers(model: nn.Module, widths: Mapping[str, WidthInfo]) -> dict[str, tuple[nn.Module, WidthInfo]]:
    """Every linear and convolutional layer by name, with what is known of its weight."""
    known = {id(p): widths[name] for name, p in model.named_parameters(remove_duplicate=False)}
    return {
        name: (module, known[id(module.weight)])
        for name, module in model.named_modules()
        if is_affine(module) and id(module.weight) in known
    }


def _input_growth(info: WidthInfo) -> float:
    """How much a layer's input grew; for a shared table, the width is the readout's fan-in."""
    return info.multiplier if info.layer == "shared" else info.fan_in


def _readouts(
    model: nn.Module,
    layers: Mapping[str, tuple[nn.Module, WidthInfo]],
    readout: Literal["auto"] | Iterable[str],
) -> dict[str, nn.Module]:
    """The readouts by name; refuses a layer from width to a fixed size that is none."""
    candidates = {
        name: module for name, (module, info) in layers.items() if info.layer in ("readout", "shared")
    }
    chosen: dict[str, nn.Module] = {}
    if readout == "auto":
        find = getattr(model, "get_output_embeddings", None)
        head = find() if callable(find) else None
        chosen = {name: module for name, module in candidates.items() if module is head}
        if not chosen and len(candidates) == 1:
            chosen = dict(candidates)
    elif isinstance(readout, str):
        raise ValueError(f"readout is 'auto' or a list of module names; got the string {readout!r}")
    else:
        for name in readout:
            if name not in layers:
                raise ValueError(f"readout {name!r} is no linear or convolutional layer of the model")
            module, info = layers[name]
            if info.kind == "matrix":
                raise ValueError(f"{name!r} leads from width to width: a hidden layer and no readout")
            chosen[name] = module
    missed = [name for name in candidates if name not in chosen]
    if missed:
        raise ValueError(
            f"{', '.join(missed)}: from width to a fixed size, as only readouts are; name the readouts with "
            f"readout=[...] (found: {', '.join(chosen) or 'none'}), or let the layer's output grow with width"
        )
    return chosen


def _has_constant_scale(model: nn.Module) -> bool:
    return any(hasattr(getattr(module, "config", None), "initializer_range") for module in model.modules())


@torch.no_grad()
def _divide_matrices(model: nn.Module, widths: Mapping[str, WidthInfo]) -> None:
    """From one standard deviation at all widths to 1/√fan_in in hidden matrices."""
    for name, parameter in model.named_parameters():
        if widths[name].kind == "matrix" and widths[name].fan_in != 1:
            parameter.mul_(widths[name].fan_in ** -0.5)


@torch.no_grad()
def _undo_shrinking(
    layers: Mapping[str, tuple[nn.Module, WidthInfo]], readouts: Mapping[str, nn.Module]
) -> None:
    """From 1/√fan_in everywhere to scales free of width in readouts and biases."""
    done: set[int] = set()
    for name, (module, info) in layers.items():
        scaled = [module.bias]
        if name in readouts and info.layer != "shared":  # a shared table keeps the embedding's values
            scaled.append(module.weight)
        for parameter in scaled:
            if isinstance(parameter, Tensor) and id(parameter) not in done and _input_growth(info) != 1:
                parameter.mul_(math.sqrt(_input_growth(info)))
                done.add(id(parameter))


@torch.no_grad()
def _undo_recurrent_shrinking(model: nn.Module, widths: Mapping[str, WidthInfo]) -> None:
    """The same of torch's recurrent layers, which draw everything, input weights too, like 1/√width."""
    known = {id(p): widths[name] for name, p in model.named_parameters(remove_duplicate=False)}
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            for parameter in module.parameters():
                info = known[id(parameter)]
                if info.kind == "vector":
                    parameter.mul_(math.sqrt(info.multiplier))


def _attention_scalings(
    model: nn.Module, base: nn.Module | Mapping[str, Sequence[int]], attention: str | None
) -> list[tuple[nn.Module, float]]:
    """Attention modules whose heads grew, with their new logit scale √d₀ / d."""
    start = dict(base.named_modules()) if isinstance(base, nn.Module) else {}
    scalable, grown = 0, []
    for name, module in model.named_modules():
        size, scaling = getattr(module, "head_dim", None), getattr(module, "scaling", None)
        if not (isinstance(size, int) and isinstance(scaling, float)):
            continue
        scalable += 1
        old = getattr(start.get(name), "head_dim", size)
        if old != size:
            grown.append((module, scaling * math.sqrt(old / size)))
    if attention is None:
        if grown:
            warnings.warn(
                f"the size of a head grows with width in {len(grown)} attention layers; µP then wants "
                "attention='head_size' (or build wider models with more heads of one size)",
                stacklevel=3,
            )
        return []
    if not scalable or not isinstance(base, nn.Module):
        raise ValueError(
            "attention='head_size' needs attention modules with a float `scaling` and an integer `head_dim`, "
            "and the base as a module; in other models set the logit scale to √(base head size) / head size"
        )
    return grown
