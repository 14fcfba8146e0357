"""Scales: which numbers share one, how it is found, and quantization with a straight-through gradient.

A `Quantizer` divides the values that share a scale by it, rounds them to its format, and multiplies back. The
scale takes the largest magnitude to the largest number of the format, so nothing saturates and the gradient
passes unmasked (the scheme of Sun et al., 2025, arXiv:2501.02423, whose blocks lie along input channels).

* ``granularity`` an integer B: B consecutive values along ``dim`` share a scale. Where B does not divide the
  dimension the last block is padded with zeros, which changes no maximum.
* Scales are kept in float32 unless told otherwise: powers of two (Rouhani et al., 2023, arXiv:2310.10537:
  block scales of eight exponent bits), or the largest of a row over a power of two (Wu, Yao and He, 2023,
  arXiv:2307.09782), which lets products be converted by a shift.
* Formats that reach beyond 2^64 are scaled to there: the true target would take the scale out of float32, and
  what lies 2^190 below the largest value of its block is zero in float32 as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from allometry.quant.formats import TIES, FloatFormat, Format, IntFormat, Ties, get_format, round_to

__all__ = ["Quantizer", "Scales"]

_WIDEST = 64  # exponent of the largest scaled value
_SHRINK = torch.linspace(1.0, 0.35, 32).tolist()  # clips tried for the least squared error
Rounding = Literal["up", "nearest", "down"]


@dataclass(frozen=True)
class Scales:
    """What blocks of values are divided by and, for integers with a zero point, shifted by.

    Attributes
    ----------
    scale : Tensor, shape (..., blocks, 1)
        Of blocks along the last dimension; (1, ..., 1) where all values share one.
    zero : Tensor or None
        Integers of the shape of ``scale``.
    """

    scale: Tensor
    zero: Tensor | None = None


@dataclass(frozen=True)
class Quantizer:
    """Rounds tensors to a format, with scales shared by blocks, channels or all.

    Parameters
    ----------
    format : FloatFormat, IntFormat or str
        As `get_format` reads it.
    granularity : int, "channel" or "tensor"
        Values that share a scale: so many along ``dim``, all along it, or all there are.
    scale : {"free", "power_of_two", "ratio"}
        Any scale; powers of two; or, within a row (of all rows where ``granularity`` is "channel"), the
        largest scale over powers of two.
    scale_rounding : {"up", "nearest", "down"}
        How a scale comes to its power of two. Only "up" never clips.
    clip : {"max", "mse"}
        Whether the scale covers the largest value, or is the one of 32 with the least squared error.
    ties : {"even", "away"}
        See `FloatFormat.round`; the paper's kernels round away from zero.
    dim : int
        The dimension along which blocks lie: the one that the product sums over.

    Raises
    ------
    ValueError
        A choice that there is not.

    Examples
    --------
    >>> quantizer = Quantizer("E2M1", granularity=2)
    >>> quantizer(torch.tensor([[0.30, 0.60, 12.0, 5.0]])).tolist()[0]
    [0.30000001192092896, 0.6000000238418579, 12.0, 4.0]
    >>> quantizer.bits_per_value
    20.0
    """

    format: Any  # a name until __post_init__, then a Format
    granularity: int | Literal["channel", "tensor"] = "channel"
    scale: Literal["free", "power_of_two", "ratio"] = "free"
    scale_rounding: Rounding = "up"
    clip: Literal["max", "mse"] = "max"
    ties: Ties = "even"
    dim: int = -1

    def __post_init__(self) -> None:
        object.__setattr__(self, "format", get_format(self.format))
        whole = isinstance(self.granularity, int) and not isinstance(self.granularity, bool)
        if not (self.granularity in ("channel", "tensor") or (whole and int(self.granularity) > 0)):
            raise ValueError(
                "granularity must be a positive number of values, 'channel' or 'tensor', not "
                f"{self.granularity!r}"
            )
        for what, known in (
            ("scale", ("free", "power_of_two", "ratio")), ("scale_rounding", ("up", "nearest", "down")),
            ("clip", ("max", "mse")), ("ties", TIES[:2]),
        ):  # fmt: skip
            if getattr(self, what) not in known:
                raise ValueError(f"{what} must be one of {', '.join(known)}, not {getattr(self, what)!r}")

    @property
    def target(self) -> float:
        """What the largest magnitude of a block is scaled to."""
        return scaled_top(self.format)

    @property
    def bits_per_value(self) -> float:
        """Bits stored a value, a block's share of its scale included (32 bits, 8 as a power of two); without
        the scale where its share depends on the tensor."""
        if not isinstance(self.granularity, int):
            return float(self.format.bits)
        return self.format.bits + (32.0 if self.scale == "free" else 8.0) / self.granularity

    def __call__(self, x: Tensor) -> Tensor:
        """x (...) rounded, of its dtype; the gradient passes as if nothing had happened."""
        return x + (self.apply(x.detach(), self.measure(x.detach())) - x.detach())

    @torch.no_grad()
    def measure(self, x: Tensor) -> Scales:
        """The scales that x (...) asks for."""
        blocks = self._blocks(x)
        over = tuple(range(blocks.ndim)) if self.granularity == "tensor" else (-1,)
        if isinstance(self.format, IntFormat) and self.format.symmetric == "zero_point":
            low = blocks.amin(over, keepdim=True).clamp(max=0)
            high = blocks.amax(over, keepdim=True).clamp(min=0)
        else:
            low, high = None, blocks.abs().amax(over, keepdim=True)
        found = self._scales(low, high)
        if self.clip == "max":
            return found
        least = torch.full_like(high, torch.inf)
        best = found
        for share in _SHRINK:
            tried = self._scales(None if low is None else low * share, high * share)
            error = (self._round(blocks, tried) - blocks).square().sum(over, keepdim=True)
            better = error < least
            least = torch.where(better, error, least)
            best = Scales(
                torch.where(better, tried.scale, best.scale),
                None
                if tried.zero is None or best.zero is None
                else torch.where(better, tried.zero, best.zero),
            )
        return best

    @torch.no_grad()
    def apply(self, x: Tensor, scales: Scales) -> Tensor:
        """x (...) rounded with scales that are known, of its dtype; what they do not reach is clipped."""
        moved = x.movedim(self.dim, -1) if x.ndim else x.reshape(1)
        rounded = self._round(self._blocks(x), scales).flatten(-2)[..., : moved.shape[-1]]
        return rounded.to(x.dtype).movedim(-1, self.dim).reshape(x.shape) if x.ndim else rounded.reshape(())

    def _blocks(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            raise ValueError(f"only floating-point tensors are quantized, not {x.dtype}")
        if x.numel() == 0:
            raise ValueError(f"there is nothing to quantize in a tensor of shape {tuple(x.shape)}")
        x = x if x.dtype in (torch.float32, torch.float64) else x.float()
        size = self.granularity if isinstance(self.granularity, int) else None
        return in_blocks(x.movedim(self.dim, -1) if x.ndim else x.reshape(1), size)

    def _scales(self, low: Tensor | None, high: Tensor) -> Scales:
        span, zero = high, None
        if low is not None:
            span = high - low
        scale = nonzero(span / self.target)
        if self.scale == "power_of_two":
            scale = _to_power(scale, self.scale_rounding)
        elif self.scale == "ratio":
            # rows have a scope of their own; where a row has one block, the scope is the tensor
            every = tuple(range(scale.ndim)) if scale.shape[-2] == 1 else (-2, -1)
            largest = scale.amax(every, keepdim=True)
            scale = largest * _to_power(scale / largest, self.scale_rounding)
        if low is not None:
            zero = (-low / scale).round()
        return Scales(scale, zero)

    def _round(self, blocks: Tensor, scales: Scales) -> Tensor:
        form, scaled = self.format, blocks / scales.scale
        if scales.zero is None:
            return form.round(scaled, self.ties) * scales.scale
        return (form.round(scaled + scales.zero, self.ties) - scales.zero) * scales.scale


def scaled_top(form: Format) -> float:
    """What the largest magnitude is scaled to: the format's largest number where float32 can bear it."""
    if isinstance(form, IntFormat):
        # the full range has one more number below than above: its middle takes the magnitude
        return (form.max - form.min) / 2 if form.symmetric == "full" else form.max
    return min(form.max, 2.0**_WIDEST * (2 - 2.0**-form.mantissa))


def levels(form: str | Format) -> Tensor:
    """A format as four numbers ``(4,)``, float32: ``lowest``, ``fraction``, largest, and where to scale to.

    So the replicas of a stack may each have a format of their own.

    Raises
    ------
    ValueError
        The format is not symmetric about zero.
    """
    form = get_format(form)
    if form.min != -form.max:
        raise ValueError(f"{form.name} is not symmetric about zero, as fake-quantized products need it")
    top = scaled_top(form)
    lowest = form.lowest * top / form.max if isinstance(form, FloatFormat) and top < form.max else form.lowest
    return torch.tensor([max(lowest, 2.0**-126), form.fraction, top, top])


def in_blocks(x: Tensor, size: int | None) -> Tensor:
    """x (..., n) as (..., blocks, size), the last block padded with zeros; one block without a size."""
    n = x.shape[-1]
    if size is None or size >= n:
        return x.unsqueeze(-2)
    if n % size:
        x = F.pad(x, (0, size - n % size))
    return x.reshape(*x.shape[:-1], -1, size)


def nonzero(scale: Tensor) -> Tensor:
    """Scales, one where all values are zero or too small to scale."""
    return torch.where(scale == 0, 1.0, scale)


def quantize_rows(x: Tensor, level: Tensor, size: int | None, tensor: bool, ties: Ties) -> Tensor:
    """Round x (R, n, i) with the formats of R replicas, as rows of `levels` (R, 4), in blocks along i.

    With ``tensor`` one scale serves all of a replica. Only operators that a fixed program can plan.
    """
    lowest, fraction, high, target = (level[:, k, None, None, None] for k in range(4))
    blocks = in_blocks(x if x.dtype in (torch.float32, torch.float64) else x.float(), size)
    most = blocks.abs().amax((1, 2, 3) if tensor else (3,), keepdim=True)
    scale = nonzero(most / target)
    rounded = round_to(blocks / scale, lowest, fraction, -high, high, ties) * scale
    return rounded.flatten(2)[..., : x.shape[-1]].to(x.dtype)


def _to_power(x: Tensor, rounding: Rounding) -> Tensor:
    log = x.log2()
    whole: Any = {"up": torch.ceil, "nearest": torch.round, "down": torch.floor}[rounding](log)
    return torch.exp2(whole)
