"""Number formats of a few bits: small floating-point grids and integers, bit-exact on any device.

A format is three numbers. Below ``lowest``, the smallest normal power of two, values are evenly spaced;
above it the spacing doubles with every power of two; ``largest`` ends the grid. Integers are the case in
which the spacing never doubles, so one function rounds to all of them.

* Sun et al., 2025 (arXiv:2501.02423) train with formats of one sign bit, E exponent bits and M mantissa bits
  that keep subnormals and give no code to infinity or NaN: ``FloatFormat(E, M)``. Hardware does reserve some:
  ``reserve="nan"`` ends E4M3 at 448, ``reserve="ieee"`` at 240, as IEEE 754 would.
* One exponent bit gives an even grid, so E1M(b-2) is the symmetric b-bit integer. Without exponent bits a
  format is an integer of sign and magnitude, which is how we read the E0 of that paper.
* What is not finite comes out as NaN: a saturated infinity would hide what went wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["FloatFormat", "Format", "IntFormat", "get_format", "round_to"]

Ties = Literal["even", "away", "stochastic"]
TIES = ("even", "away", "stochastic")


@dataclass(frozen=True)
class FloatFormat:
    """A floating-point format of 1 + ``exponent`` + ``mantissa`` bits with subnormals.

    Parameters
    ----------
    exponent : int
        0 to 8 bits; none makes the format an integer of sign and magnitude.
    mantissa : int
        0 to 23 bits; at least one where there is no exponent.
    reserve : {"none", "nan", "ieee"}
        Codes that are not numbers: none, the last one, or all of the largest exponent.

    Raises
    ------
    ValueError
        Bits out of range, or nothing but zero is left.

    Examples
    --------
    >>> FloatFormat(2, 1).grid().tolist()[7:]
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    >>> FloatFormat(4, 3).max, FloatFormat(4, 3, "nan").max, FloatFormat(4, 3, "ieee").max
    (480.0, 448.0, 240.0)
    """

    exponent: int
    mantissa: int
    reserve: Literal["none", "nan", "ieee"] = "none"

    def __post_init__(self) -> None:
        if not (0 <= self.exponent <= 8 and 0 <= self.mantissa <= 23):
            raise ValueError(
                f"a format has 0 to 8 exponent and 0 to 23 mantissa bits, not {self.exponent} and "
                f"{self.mantissa}: it must fit float32"
            )
        if self.reserve not in ("none", "nan", "ieee"):
            raise ValueError(f"reserve must be 'none', 'nan' or 'ieee', not {self.reserve!r}")
        if self.exponent == 0 and self.reserve != "none":
            raise ValueError("without exponent bits a format is an integer and reserves no code")
        if self.max <= 0:
            raise ValueError(f"{self.name} has no number but zero")

    @property
    def name(self) -> str:
        """As the paper writes it: ``E4M3``, with ``FN`` or ``IEEE`` where codes are reserved."""
        return f"E{self.exponent}M{self.mantissa}" + {"none": "", "nan": "FN", "ieee": "IEEE"}[self.reserve]

    @property
    def bits(self) -> int:
        """Bits of one number, its sign included."""
        return 1 + self.exponent + self.mantissa

    @property
    def lowest(self) -> float:
        """Smallest normal number; for integers the power of two in which the largest lies."""
        if self.exponent == 0:
            return 2.0 ** (self.mantissa - 1)
        return 2.0 ** (2 - 2 ** (self.exponent - 1))

    @property
    def fraction(self) -> float:
        """Spacing of the numbers in [1, 2), extended to all: 2^-mantissa."""
        return 2.0 ** (1 - self.mantissa) if self.exponent == 0 else 2.0**-self.mantissa

    @property
    def max(self) -> float:
        """Largest number."""
        step = 2.0**-self.mantissa
        if self.exponent == 0:
            return 2.0**self.mantissa - 1
        top = 2 ** (self.exponent - 1)
        if self.reserve == "none":
            return 2.0**top * (2 - step)
        below = 2.0 ** (top - 1) * (2 - step)  # the largest of the exponent below
        if self.exponent == 1:
            below = self.lowest * (1 - step)
        if self.reserve == "ieee" or self.mantissa == 0:
            return below
        return 2.0**top * (2 - 2 * step)

    @property
    def min(self) -> float:
        """Smallest number: ``-max``."""
        return -self.max

    def grid(self) -> Tensor:
        """All numbers in rising order, zero once, float64.

        Raises
        ------
        ValueError
            The format has more than 16 bits.
        """
        if self.bits > 16:
            raise ValueError(f"a grid of 2^{self.bits} numbers is too long to list; round(x) needs none")
        codes = torch.arange(2 ** (self.bits - 1), dtype=torch.float64)
        normal = 2.0**self.mantissa
        power = (codes / normal).floor().clamp(min=1)  # the exponent field, subnormals as the first
        significand = codes - (power - 1) * normal
        positive = significand * self.lowest * self.fraction * 2.0 ** (power - 1)
        if self.exponent == 0:
            positive = codes
        positive = positive[(positive > 0) & (positive <= self.max)]
        return torch.cat([-positive.flip(0), torch.zeros(1, dtype=torch.float64), positive])

    def round(self, x: Tensor, ties: Ties = "even", *, generator: torch.Generator | None = None) -> Tensor:
        """The nearest number for each of x (...), of x's dtype; beyond the largest, the largest.

        Parameters
        ----------
        x : Tensor (...)
            Floating point. NaN and infinities come out as NaN.
        ties : {"even", "away", "stochastic"}
            Halfway: to the even code, away from zero, or up with the probability of the distance.
        generator : torch.Generator, optional
            Needed by ``"stochastic"``.

        Examples
        --------
        >>> FloatFormat(2, 1).round(torch.tensor([0.7, 2.5, 5.0, -100.0])).tolist()
        [0.5, 2.0, 4.0, -6.0]
        >>> FloatFormat(2, 1).round(torch.tensor([2.5, 5.0]), ties="away").tolist()
        [3.0, 6.0]
        """
        return round_to(x, self.lowest, self.fraction, self.min, self.max, ties, generator)


@dataclass(frozen=True)
class IntFormat:
    """Integers of some bits.

    Parameters
    ----------
    bits : int
        2 to 16.
    symmetric : {"restricted", "full", "zero_point"}
        -(2^(b-1) - 1) to 2^(b-1) - 1; one more below; or 0 to 2^b - 1, to be used with a zero point.

    Raises
    ------
    ValueError
        Bits out of range, or no such range.

    Examples
    --------
    >>> IntFormat(4).max, IntFormat(4, "full").min, IntFormat(4, "zero_point").max
    (7.0, -8.0, 15.0)
    >>> IntFormat(4).round(torch.tensor([0.5, 1.5, -9.0])).tolist()
    [0.0, 2.0, -7.0]
    """

    bits: int
    symmetric: Literal["restricted", "full", "zero_point"] = "restricted"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise ValueError(f"an integer format has 2 to 16 bits, not {self.bits}")
        if self.symmetric not in ("restricted", "full", "zero_point"):
            raise ValueError(
                f"symmetric must be 'restricted', 'full' or 'zero_point', not {self.symmetric!r}"
            )

    @property
    def name(self) -> str:
        """``INT4``, with ``F`` for the full range and ``Z`` for a zero point."""
        return f"INT{self.bits}" + {"restricted": "", "full": "F", "zero_point": "Z"}[self.symmetric]

    @property
    def max(self) -> float:
        """Largest integer."""
        return 2.0**self.bits - 1 if self.symmetric == "zero_point" else 2.0 ** (self.bits - 1) - 1

    @property
    def min(self) -> float:
        """Smallest integer."""
        return {"restricted": -self.max, "full": -self.max - 1, "zero_point": 0.0}[self.symmetric]

    @property
    def lowest(self) -> float:
        """The power of two in which the largest integer lies: up to there the spacing is one."""
        return 2.0**self.bits

    @property
    def fraction(self) -> float:
        """One over `lowest`."""
        return 1.0 / self.lowest

    def grid(self) -> Tensor:
        """All integers in rising order, float64."""
        return torch.arange(self.min, self.max + 1, dtype=torch.float64)

    def round(self, x: Tensor, ties: Ties = "even", *, generator: torch.Generator | None = None) -> Tensor:
        """As `FloatFormat.round`."""
        return round_to(x, self.lowest, self.fraction, self.min, self.max, ties, generator)


Format = FloatFormat | IntFormat

_FLOAT = re.compile(r"E(\d+)M(\d+)(FN|IEEE)?")
_INT = re.compile(r"INT(\d+)([FZ])?")


def get_format(name: str | Format) -> Format:
    """A format by its name: ``E4M3``, ``E4M3FN``, ``E5M2IEEE``, ``INT4``, ``INT4F``, ``INT4Z``, ``BF16``.

    Raises
    ------
    ValueError
        No format is called that.

    Examples
    --------
    >>> get_format("E4M3FN"), get_format("BF16").name
    (FloatFormat(exponent=4, mantissa=3, reserve='nan'), 'E8M7')
    """
    if isinstance(name, FloatFormat | IntFormat):
        return name
    known = {"BF16": "E8M7", "FP16": "E5M10IEEE"}.get(str(name).upper(), str(name).upper())
    if found := _FLOAT.fullmatch(known):
        kind = {None: "none", "FN": "nan", "IEEE": "ieee"}[found[3]]
        return FloatFormat(int(found[1]), int(found[2]), kind)  # type: ignore[arg-type]
    if found := _INT.fullmatch(known):
        kind = {None: "restricted", "F": "full", "Z": "zero_point"}[found[2]]
        return IntFormat(int(found[1]), kind)  # type: ignore[arg-type]
    raise ValueError(
        f"no format {name!r}; write E4M3, E4M3FN, E5M2IEEE, INT4, INT4F (full range), INT4Z (zero point), "
        "BF16 or FP16"
    )


def round_to(
    x: Tensor,
    lowest: float | Tensor,
    fraction: float | Tensor,
    low: float | Tensor,
    high: float | Tensor,
    ties: Ties = "even",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Round x (...) to a grid given by its numbers, each a float or a tensor that broadcasts over x.

    Spacing is ``max(2^floor(log2 |x|), lowest) * fraction``; see `FloatFormat`. All steps but the rounding
    itself are exact: the spacing is a power of two.
    """
    if not x.is_floating_point():
        raise ValueError(f"only floating-point numbers are rounded to a format, not {x.dtype}")
    if x.dtype not in (torch.float32, torch.float64):
        return round_to(x.float(), lowest, fraction, low, high, ties, generator).to(x.dtype)
    power = _power_of_two(x)
    step = _at_least(power, lowest) * fraction
    if not isinstance(high, Tensor) and high > torch.finfo(x.dtype).max:
        # E8 reaches one power of two beyond float32: there its largest number is the last that float32 holds
        high = 2.0**127 * (2 - float(fraction))
        low = -high
    scaled = x / step
    if ties == "away":
        # the number before one half: adding one half itself would carry that number up
        half = 0.5 - 2.0 ** (-25 if x.dtype == torch.float32 else -54)
        whole = torch.copysign((scaled.abs() + half).floor(), scaled)
    elif ties == "even":
        whole = scaled.round()
        if isinstance(fraction, Tensor) or fraction == 1.0:
            whole = _even_codes(whole, scaled, power / lowest, fraction)
    elif ties == "stochastic":
        if generator is None:
            raise ValueError("stochastic rounding draws from a generator; pass generator=torch.Generator()")
        whole = (scaled + torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)).floor()
    else:
        raise ValueError(f"ties must be one of {', '.join(TIES)}, not {ties!r}")
    return _between(whole * step, low, high)


def _even_codes(whole: Tensor, scaled: Tensor, power: Tensor, fraction: float | Tensor) -> Tensor:
    """Without mantissa bits the last bit of the code is that of the exponent, not of the significand."""
    odd = _exponent_bits(power) % 2 == 0  # the bias of float32 and float64 is odd
    stay = (scaled.abs() == 1.5) & odd & (torch.as_tensor(fraction, device=whole.device) == 1.0)
    return torch.where(stay, torch.copysign(torch.ones_like(whole), scaled), whole)


_BITS = {torch.float32: (torch.int32, 0x7F800000, 23), torch.float64: (torch.int64, 0x7FF0000000000000, 52)}


def _power_of_two(x: Tensor) -> Tensor:
    """2^floor(log2 |x|): the exponent's bits alone; zero for zeros and subnormals, infinity for what is not
    finite, so that dividing by it leaves NaN."""
    integer, mask, _ = _BITS[x.dtype]
    return (x.view(integer) & mask).view(x.dtype)


def _exponent_bits(power: Tensor) -> Tensor:
    integer, _, shift = _BITS[power.dtype]
    return power.view(integer) >> shift


def _at_least(x: Tensor, low: float | Tensor) -> Tensor:
    return torch.maximum(x, low) if isinstance(low, Tensor) else x.clamp(min=low)


def _between(x: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return torch.clamp(x, torch.as_tensor(low), torch.as_tensor(high))
    return x.clamp(low, high)
