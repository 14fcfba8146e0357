"""Accelerators by name, and the FLOP/s that their makers promise for dense matrix products.

Makers like to print the figures of 2:4 sparsity, which are twice these; no dense model reaches them.  What a
training run gets of the figures below is its utilisation (MFU).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["ACCELERATORS", "Accelerator", "accelerator", "parse_gpus"]


@dataclass(frozen=True)
class Accelerator:
    """One chip: its name, its dense peak FLOP/s by precision, and other names that it goes by."""

    name: str
    flops: Mapping[str, float]
    aliases: tuple[str, ...] = ()

    def peak(self, precision: str) -> float:
        """Dense peak FLOP/s.

        Raises
        ------
        ValueError
            No figure is known for that precision.

        Examples
        --------
        >>> accelerator("H100").peak("bf16")
        989400000000000.0
        """
        if precision not in self.flops:
            raise ValueError(
                f"no peak of the {self.name} is known in {precision!r}; there is "
                f"{', '.join(self.flops)} (or give flops_per_gpu)"
            )
        return self.flops[precision]


def _half(dense: float) -> dict[str, float]:
    return {"bf16": dense, "fp16": dense}


ACCELERATORS = (
    # NVIDIA H100 Tensor Core GPU architecture white paper, "H100 SXM5", without sparsity
    Accelerator("H100", {**_half(989.4e12), "fp8": 1978.9e12, "tf32": 494.7e12}, ("H100-SXM", "H100-SXM5")),
    # NVIDIA H100 data sheet: 1513 TFLOP/s in bf16, 3026 in fp8 and 756 in tf32 with sparsity
    Accelerator("H100-PCIe", {**_half(756.5e12), "fp8": 1513e12, "tf32": 378e12}),
    # NVIDIA H200 data sheet: the compute of the H100 SXM with more memory
    Accelerator("H200", {**_half(989.4e12), "fp8": 1978.9e12, "tf32": 494.7e12}, ("H200-SXM",)),
    # NVIDIA Blackwell data sheet, HGX B200, per GPU: 4.5, 9, 18 and 2.2 PFLOP/s with sparsity
    Accelerator("B200", {**_half(2250e12), "fp8": 4500e12, "fp4": 9000e12, "tf32": 1100e12}),
    # NVIDIA A100 data sheet; SXM and PCIe alike
    Accelerator(
        "A100", {**_half(312e12), "tf32": 156e12}, ("A100-SXM", "A100-PCIe", "A100-80GB", "A100-40GB")
    ),
    # NVIDIA L40S data sheet
    Accelerator("L40S", {**_half(362.05e12), "fp8": 733e12, "tf32": 183e12}),
    # 512 tensor cores at a boost of 2.52 GHz, with float32 accumulation, as in NVIDIA's Ada white paper
    Accelerator("RTX-4090", {**_half(165.2e12), "fp8": 330.3e12, "tf32": 82.6e12}, ("4090",)),
    # AMD Instinct MI300X data sheet
    Accelerator("MI300X", {**_half(1307.4e12), "fp8": 2614.9e12}),
    # Google Cloud TPU documentation, peak compute per chip
    Accelerator("TPU-v5e", {"bf16": 197e12}, ("v5e", "v5litepod")),
    Accelerator("TPU-v5p", {"bf16": 459e12}, ("v5p",)),
)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().removeprefix("nvidia").removeprefix("amd"))


def accelerator(name: str) -> Accelerator:
    """An accelerator by its name; case, spaces and dashes do not matter.

    Raises
    ------
    ValueError
        The name is unknown; the sentence lists the known ones.

    Examples
    --------
    >>> accelerator("rtx 4090").name
    'RTX-4090'
    """
    for one in ACCELERATORS:
        if _plain(name) in map(_plain, (one.name, *one.aliases)):
            return one
    raise ValueError(
        f"no accelerator is called {name!r}; there are {', '.join(one.name for one in ACCELERATORS)} "
        "(or give flops_per_gpu)"
    )


def parse_gpus(text: str) -> tuple[int, str]:
    """``8xH100`` as a count and a name.

    Raises
    ------
    ValueError
        There is no whole positive count, or no name.

    Examples
    --------
    >>> parse_gpus("8xH100"), parse_gpus("16 x TPU v5e")
    ((8, 'H100'), (16, 'TPU v5e'))
    """
    found = re.fullmatch(r"\s*(\d+)\s*[x×*]\s*(\S.*?)\s*", str(text), re.IGNORECASE)
    if found is None or not int(found.group(1)):
        raise ValueError(f"gpus must be a count and a name such as 8xH100, not {text!r}")
    return int(found.group(1)), found.group(2)
