"""Quantization: number formats, scales shared by blocks, and layers that compute with few bits."""

from typing import TYPE_CHECKING

from allometry.rooms import open_room

if TYPE_CHECKING:
    from allometry.quant.formats import FloatFormat, IntFormat, get_format
    from allometry.quant.layers import QuantLinear, dequantize, qat
    from allometry.quant.quantizer import Quantizer, Scales

open_room(
    __name__,
    {
        "formats": ["FloatFormat", "IntFormat", "get_format"],
        "layers": ["QuantLinear", "dequantize", "qat"],
        "quantizer": ["Quantizer", "Scales"],
    },
)

__all__ = [
    "FloatFormat", "IntFormat", "QuantLinear", "Quantizer", "Scales", "dequantize", "get_format", "qat",
]  # fmt: skip
