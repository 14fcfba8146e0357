"""Which dimensions of a model's parameters are widths: found by comparing instances, never declared.

The comparison of shapes is the idea of Greg Yang and Edward J. Hu's package for "Tensor Programs V" (2022,
arXiv:2203.03466). Here it also knows how each layer lays out its weight (linear and convolutional layers,
their transposes, transformers' ``Conv1D``, embeddings and tables tied to a head), so that fan-in and fan-out
are never guessed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

__all__ = ["WidthInfo", "width_dims"]

Kind = Literal["matrix", "vector", "fixed"]
Layer = Literal["hidden", "input", "readout", "shared", "vector", "fixed"]


@dataclass(frozen=True)
class WidthInfo:
    """What two widths of one model tell about a parameter.

    Attributes
    ----------
    shape, base_shape : tuple of int
        In the model and in its base.
    width_dimensions : tuple of int
        The dimensions that grow with width.
    fan_in, fan_out : float
        How much each side grew over the base; 1 where it does not grow.
    kind : "matrix", "vector" or "fixed"
        Two, one or no width dimensions.
    layer : str
        ``"hidden"`` (width to width), ``"input"`` (fixed to width), ``"readout"`` (width to fixed),
        ``"shared"`` (one table that is both input and readout), ``"vector"`` (biases and gains), ``"fixed"``.
    """

    shape: tuple[int, ...]
    base_shape: tuple[int, ...]
    width_dimensions: tuple[int, ...]
    fan_in: float
    fan_out: float
    kind: Kind
    layer: Layer

    @property
    def multiplier(self) -> float:
        """The width multiplier m: of the fan-in where it is a width, else of the fan-out."""
        return self.fan_in if self.fan_in != 1 else self.fan_out


def width_dims(
    model: nn.Module,
    base: nn.Module | Mapping[str, Sequence[int]],
    delta: nn.Module | Mapping[str, Sequence[int]] | None = None,
) -> dict[str, WidthInfo]:
    """Find each parameter's width dimensions by comparing shapes.

    Parameters
    ----------
    model : nn.Module
        The model to be parametrized.
    base : nn.Module or mapping from parameter name to shape
        The same model at its base width, on any device (the meta device costs nothing).
    delta : nn.Module or mapping, optional
        The same model at a third width, wanted only where ``model`` may have the base's own width: width
        dimensions are those that differ between ``base`` and ``delta``. Without it, those that differ
        between ``base`` and ``model``.

    Returns
    -------
    dict from parameter name to WidthInfo
        Under every name that a parameter has; tied names share one entry.

    Raises
    ------
    ValueError
        If the models' parameters differ in name or rank, if a parameter has more than two width dimensions,
        or if a dimension changed that ``delta`` says is not a width.

    Examples
    --------
    >>> def build(width):
    ...     return nn.Sequential(nn.Linear(3, width), nn.Linear(width, width), nn.Linear(width, 2))
    >>> widths = width_dims(build(32), build(8))
    >>> [(name, info.layer, info.multiplier) for name, info in widths.items() if "weight" in name]
    [('0.weight', 'input', 4.0), ('1.weight', 'hidden', 4.0), ('2.weight', 'readout', 4.0)]
    """
    names: dict[int, list[str]] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        names.setdefault(id(parameter), []).append(name)
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    ties = [aliases for aliases in names.values() if len(aliases) > 1]
    base_shapes = _shapes(base, shapes, ties, "base")
    other_shapes = shapes if delta is None else _shapes(delta, shapes, ties, "delta")
    sides = _sides(model)

    found: dict[str, WidthInfo] = {}
    for identity, aliases in names.items():
        name = aliases[0]
        shape, start, other = shapes[name], base_shapes[name], other_shapes[name]
        widths = tuple(i for i, (old, new) in enumerate(zip(start, other, strict=True)) if old != new)
        if len(widths) > 2:
            raise ValueError(
                f"{name} has {len(widths)} width dimensions ({start} became {other}), and µP knows two, the "
                "fan-in and the fan-out; split it into matrices, or keep one of its dimensions fixed"
            )
        for i, (old, new) in enumerate(zip(start, shape, strict=True)):
            if old != new and i not in widths:
                raise ValueError(
                    f"dimension {i} of {name} is {old} in the base and {new} in the model but equal in base "
                    "and delta, so it is no width; build all three alike but for the width"
                )
        info = _info(name, shape, start, widths, sides.get(identity, ()))
        for alias in aliases:
            found[alias] = info
    return {name: found[name] for name in shapes}


def _shapes(
    other: nn.Module | Mapping[str, Sequence[int]],
    shapes: Mapping[str, tuple[int, ...]],
    ties: Sequence[Sequence[str]],
    what: str,
) -> dict[str, tuple[int, ...]]:
    if isinstance(other, nn.Module):
        found = {name: tuple(p.shape) for name, p in other.named_parameters(remove_duplicate=False)}
    else:
        found = {name: tuple(shape) for name, shape in other.items()}
        for aliases in ties:  # a mapping made from named_parameters() has one of a tied parameter's names
            known = [found[alias] for alias in aliases if alias in found]
            found |= {alias: known[0] for alias in aliases if known and alias not in found}
    if set(found) != set(shapes):
        odd = sorted(set(found) ^ set(shapes))
        raise ValueError(
            f"model and {what} must have the same parameters and differ in width alone (same depth too); "
            f"only one of them has {', '.join(odd[:4])}"
            + (f" and {len(odd) - 4} more" if len(odd) > 4 else "")
        )
    for name, shape in shapes.items():
        if len(found[name]) != len(shape):
            raise ValueError(f"{name} has shape {shape} in the model and {found[name]} in the {what}")
    return found


def _is_conv1d(module: nn.Module) -> bool:
    """transformers' Conv1D: a linear layer that stores its weight as (in, out)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_affine(module: nn.Module) -> bool:
    """Whether the module multiplies by a matrix or a kernel: linear, convolutional or ``Conv1D``."""
    return isinstance(module, nn.Linear | _ConvNd) or _is_conv1d(module)


def input_side(module: nn.Module) -> int:
    """The dimension of an affine module's weight that is its fan-in."""
    return 0 if _is_conv1d(module) or isinstance(module, _ConvTransposeNd) else 1


def _sides(model: nn.Module) -> dict[int, list[tuple[str, int, int]]]:
    """For each weight whose layout is known, by id: (owner's kind, dimension of fan-out, of fan-in)."""
    sides: dict[int, list[tuple[str, int, int]]] = {}
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            entry = ("table", 1, 0)
        elif is_affine(module):
            entry = ("affine", 1 - input_side(module), input_side(module))
        else:
            continue
        if isinstance(module.weight, Tensor):
            sides.setdefault(id(module.weight), []).append(entry)
    return sides


def _info(
    name: str,
    shape: tuple[int, ...],
    base_shape: tuple[int, ...],
    widths: tuple[int, ...],
    sides: Sequence[tuple[str, int, int]],
) -> WidthInfo:
    grown = {i: shape[i] / base_shape[i] for i in widths}
    kind: Kind = ("fixed", "vector", "matrix")[len(widths)]
    if sides:
        owner, out_side, in_side = sides[0]
        stray = [i for i in widths if i not in (out_side, in_side)]
        if stray:
            raise ValueError(f"dimension {stray[0]} of {name} grows with width but is no fan-in or fan-out")
    else:
        owner, out_side, in_side = "parameter", 0, 1
        if len(shape) > 2:  # a learned table such as (1, positions, width): the last width is what it feeds
            out_side = widths[-1] if widths else 0
            in_side = widths[0] if len(widths) == 2 else -1
            if len(widths) == 2 and grown[widths[0]] != grown[widths[1]]:
                raise ValueError(
                    f"{name} {base_shape} -> {shape} has two width dimensions that grow differently, and its "
                    "module is not known to allometry, so fan-in and fan-out cannot be told apart"
                )
        elif len(widths) == 1:  # (positions, width) or (width,): a table or a vector, never a readout
            out_side, in_side = widths[0], -1
    fan_in, fan_out = grown.get(in_side, 1.0), grown.get(out_side, 1.0)
    layer: Layer
    if kind == "fixed":
        layer = "fixed"
    elif kind == "matrix":
        layer = "hidden"
    elif owner == "parameter":
        layer = "vector" if len(shape) == 1 else "input"
    elif len({side[0] for side in sides}) > 1:
        layer = "shared"
    else:
        layer = "readout" if in_side in widths else "input"
    return WidthInfo(shape, base_shape, widths, fan_in, fan_out, kind, layer)
