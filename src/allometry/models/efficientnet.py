"""EfficientNet as a configuration that can be scaled and built.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", 2019. arXiv:1905.11946

Inverted bottlenecks: 1 × 1 to a multiple of the width, a convolution channel by channel,
squeeze-and-excitation reduced from the block's *input* width, 1 × 1 back without an activation.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from allometry.models.image_blocks import (
    SqueezeExcite,
    norm_convolution,
    rounded_side,
    start_images_,
)

__all__ = ["EfficientNetConfig", "efficientnet"]


@dataclass(frozen=True)
class EfficientNetConfig:
    """A network of inverted bottlenecks; the defaults are EfficientNet-B0.

    Attributes
    ----------
    widths, depths, strides, kernels, expansions : tuple of int
        For each stage; an expansion is inner width over that of the block's input.
    stem_width, head_width : int
    squeeze : float
        Width of the squeeze over that of the block's input.
    resolution : int
        Pixels a side.
    channels, classes : int
    """

    widths: tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)
    depths: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    kernels: tuple[int, ...] = (3, 3, 5, 3, 5, 5, 3)
    expansions: tuple[int, ...] = (1, 6, 6, 6, 6, 6, 6)
    stem_width: int = 32
    head_width: int = 1280
    squeeze: float = 0.25
    resolution: int = 224
    channels: int = 3
    classes: int = 1000

    def __post_init__(self) -> None:
        for name in ("widths", "depths", "strides", "kernels", "expansions"):
            found = tuple(int(one) for one in getattr(self, name))
            object.__setattr__(self, name, found)
            if len(found) != len(self.widths) or not found or min(found) < 1:
                raise ValueError(f"{name} must be a number of at least 1 for each stage; got {found}")
        for name in ("stem_width", "head_width", "resolution", "channels", "classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if not 0 < self.squeeze <= 1:
            raise ValueError(f"squeeze must lie in (0, 1]; got {self.squeeze}")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Of one image: channels, height, width."""
        return (self.channels, self.resolution, self.resolution)

    def scaled(
        self, *, depth: float = 1.0, width: float = 1.0, group: float = 1.0, resolution: float = 1.0
    ) -> EfficientNetConfig:
        """Multiply depth, width (stem and head too) and side of the image, rounded to what can be built.

        ``group`` is taken and does nothing: a convolution channel by channel has groups of one.

        Examples
        --------
        >>> EfficientNetConfig().scaled(width=1.2).head_width
        1536
        """

        def wider(channels: int) -> int:
            return max(1, round(channels * width / 8)) * 8

        return dataclasses.replace(
            self, widths=tuple(map(wider, self.widths)), stem_width=wider(self.stem_width),
            head_width=wider(self.head_width),
            depths=tuple(max(1, round(one * depth)) for one in self.depths),
            resolution=rounded_side(self.resolution, resolution),
        )  # fmt: skip

    def build(self, generator: torch.Generator | None = None) -> nn.Module:
        """The network; see `efficientnet`."""
        return efficientnet(self, generator=generator)


class _Inverted(nn.Module):
    def __init__(self, channels: int, width: int, stride: int, kernel: int, expansion: int, squeeze: float):
        super().__init__()
        inner = channels * expansion
        expand = norm_convolution(channels, inner, 1, activation=nn.SiLU) if expansion > 1 else nn.Identity()
        self.branch = nn.Sequential(
            expand,
            norm_convolution(inner, inner, kernel, stride, groups=inner, activation=nn.SiLU),
            SqueezeExcite(inner, max(1, int(channels * squeeze)), nn.SiLU),
            norm_convolution(inner, width, 1, activation=None),
        )
        self.residual = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.branch(x)
        return x + branch if self.residual else branch


class _EfficientNet(nn.Module):
    def __init__(self, config: EfficientNetConfig, generator: torch.Generator | None) -> None:
        super().__init__()
        with torch.device("meta"):
            self.stem = norm_convolution(config.channels, config.stem_width, 3, 2, activation=nn.SiLU)
            blocks, before = [], config.stem_width
            shapes = (config.widths, config.depths, config.strides, config.kernels, config.expansions)
            for width, depth, stride, kernel, expansion in zip(*shapes, strict=True):
                for block in range(depth):
                    step = 1 if block else stride
                    blocks.append(_Inverted(before, width, step, kernel, expansion, config.squeeze))
                    before = width
            self.blocks = nn.Sequential(*blocks)
            self.last = norm_convolution(before, config.head_width, 1, activation=nn.SiLU)
            self.head = nn.Linear(config.head_width, config.classes)
        start_images_(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, channels, H, W) to logits (B, classes)."""
        return self.head(self.last(self.blocks(self.stem(x))).mean((2, 3)))


def efficientnet(config: EfficientNetConfig, *, generator: torch.Generator | None = None) -> nn.Module:
    """Build an EfficientNet: images (B, channels, H, W) to logits (B, classes).

    Parameters
    ----------
    config : EfficientNetConfig
    generator : torch.Generator, optional
        Where first values come from; without it a generator seeded with 0, never the global state.

    Examples
    --------
    >>> small = EfficientNetConfig(widths=(8,), depths=(1,), strides=(2,), kernels=(3,), expansions=(2,))
    >>> efficientnet(small)(torch.zeros(1, 3, 16, 16)).shape
    torch.Size([1, 1000])
    """
    return _EfficientNet(config, generator)
