"""ResNet-RS: a ResNet of 2015 with squeeze-and-excitation and ResNet-D's stem and shortcut, in all its sizes.

Bello and others, "Revisiting ResNets: Improved Training and Scaling Strategies", 2021. arXiv:2103.07579
He and others, "Bag of Tricks", 2019. arXiv:1812.01187 (ResNet-D)
Huang and others, "Deep Networks with Stochastic Depth", 2016. arXiv:1603.09382

* The stride is on the 3 × 3, the shortcut pools before its 1 × 1, and a fourth convolution stands in the stem
  where ResNet has a max pool.
* Squeeze-and-excitation follows the last norm, on 4f channels, reduced to a quarter of these 4f.
* The last norm of a branch starts at zero, so every block starts as its shortcut.
* The released code drops a branch at one rate a stage, (i + 1) / (n + 1) of the largest for the i-th of n
  stages; the rule by block, from zero to the largest, is that of other libraries.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from allometry.models.image_blocks import (
    SqueezeExcite,
    norm_convolution,
    rounded_side,
    start_images_,
)

__all__ = ["ResNetRSConfig", "resnet_rs", "resnet_rs_config"]

_DEPTHS = {
    26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3),
    270: (4, 29, 53, 4), 350: (4, 36, 72, 4), 420: (4, 44, 87, 4),
}  # fmt: skip
_RELEASED_AT = {26: 160, 50: 160, 101: 160, 152: 192, 200: 256, 270: 256, 350: 256, 420: 320}
_STRIDE = {"deep": 4, "deep_tiny": 1, "plain": 4, "plain_tiny": 1}


@dataclass(frozen=True)
class ResNetRSConfig:
    """A ResNet in bottleneck blocks.

    Attributes
    ----------
    depths : tuple of int
        Blocks of each stage; a stage halves the resolution, but for the first, and doubles the width.
    base_width : int
        Inner channels of the first stage; a block puts out four times its inner channels.
    stem : str
        ``"deep"``, four 3 × 3 convolutions at stride 4 in all; ``"deep_tiny"``, the first three of them at
        stride 1, for images of 8 to 32 pixels; ``"plain"``, ResNet's own 7 × 7 and max pool;
        ``"plain_tiny"``, one 3 × 3 at stride 1.
    pooled_shortcut : bool
        ResNet-D's shortcut; False strides the 1 × 1 as ResNet does.
    squeeze : float
        Width of the squeeze over a block's 4f channels; 0 for none.
    drop_path : float
        Largest rate at which a branch is left out, for each image by itself, in training.
    drop_path_rule : "stage" or "block"
    dropout : float
        Before the classifier.
    resolution : int
        Pixels a side.
    channels, classes : int
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    base_width: int = 64
    stem: Literal["deep", "deep_tiny", "plain", "plain_tiny"] = "deep"
    pooled_shortcut: bool = True
    squeeze: float = 0.25
    drop_path: float = 0.0
    drop_path_rule: Literal["stage", "block"] = "stage"
    dropout: float = 0.25
    resolution: int = 160
    channels: int = 3
    classes: int = 1000

    def __post_init__(self) -> None:
        object.__setattr__(self, "depths", tuple(int(one) for one in self.depths))
        if not self.depths or min(self.depths) < 1:
            raise ValueError(f"depths must be at least 1 for each stage; got {self.depths}")
        if self.stem not in _STRIDE:
            raise ValueError(f"stem is one of {', '.join(map(repr, _STRIDE))}; got {self.stem!r}")
        if self.drop_path_rule not in ("stage", "block"):
            raise ValueError(f"drop_path_rule is 'stage' or 'block'; got {self.drop_path_rule!r}")
        for name, low, high in (("drop_path", 0, 1), ("dropout", 0, 1)):
            if not low <= getattr(self, name) < high:
                raise ValueError(f"{name} is a rate from 0 to below 1; got {getattr(self, name)}")
        if not 0 <= self.squeeze <= 1:
            raise ValueError(f"squeeze must lie in (0, 1], or be 0 for none; got {self.squeeze}")
        for name in ("base_width", "channels", "classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        self.check_size(self.resolution, self.resolution)

    @property
    def total_stride(self) -> int:
        """Pixels of the image to a pixel of the last stage, each way."""
        return int(_STRIDE[self.stem] * 2 ** (len(self.depths) - 1))

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Of one image: channels, height, width."""
        return (self.channels, self.resolution, self.resolution)

    @property
    def drop_rates(self) -> tuple[tuple[float, ...], ...]:
        """Rates at which the branches of each stage are left out."""
        stages = len(self.depths)
        if self.drop_path_rule == "stage":
            return tuple(
                (self.drop_path * (stage + 2) / (stages + 1),) * depth
                for stage, depth in enumerate(self.depths)
            )
        last = max(1, sum(self.depths) - 1)
        starts = [sum(self.depths[:stage]) for stage in range(stages)]
        return tuple(
            tuple(self.drop_path * (start + block) / last for block in range(depth))
            for start, depth in zip(starts, self.depths, strict=True)
        )

    def check_size(self, height: int, width: int) -> None:
        """Refuse images of fewer pixels than the stages halve away.

        Raises
        ------
        ValueError
        """
        if min(height, width) < self.total_stride:
            tiny = "" if self.stem.endswith("tiny") else "; for small images take stem='deep_tiny'"
            raise ValueError(
                f"images of {height} × {width} are smaller than the total stride; give at least "
                f"{self.total_stride} pixels a side{tiny}"
            )

    def scaled(
        self, *, depth: float = 1.0, width: float = 1.0, group: float = 1.0, resolution: float = 1.0
    ) -> ResNetRSConfig:
        """Multiply depth, width and side of the image, rounded to whole blocks and multiples of 8 and 4.

        ``group`` is taken and does nothing: there are no groups.

        Examples
        --------
        >>> ResNetRSConfig().scaled(depth=2).depths
        (6, 8, 12, 6)
        """
        return dataclasses.replace(
            self, depths=tuple(max(1, round(one * depth)) for one in self.depths),
            base_width=max(1, round(self.base_width * width / 8)) * 8,
            resolution=rounded_side(self.resolution, resolution),
        )  # fmt: skip

    def build(self, generator: torch.Generator | None = None) -> nn.Module:
        """The network; see `resnet_rs`."""
        return resnet_rs(self, generator=generator)


def resnet_rs_config(depth: int = 50, resolution: int | None = None, **rest: Any) -> ResNetRSConfig:
    """A member of the family with what regularizes it as released.

    Dropout is 0.25, and 0.4 at 320 pixels; branches are left out at 0.1 from 200 layers on.

    Parameters
    ----------
    depth : int
        Layers: 26, 50, 101, 152, 200, 270, 350 or 420.
    resolution : int, optional
        By default one at which that depth was released.
    **rest
        Further fields.

    Examples
    --------
    >>> resnet_rs_config(420).dropout, resnet_rs_config(200, 224).drop_path
    (0.4, 0.1)
    """
    if depth not in _DEPTHS:
        raise ValueError(f"ResNet-RS has {', '.join(map(str, _DEPTHS))} layers; got {depth}")
    resolution = resolution or _RELEASED_AT[depth]
    settings = {
        "dropout": 0.4 if resolution >= 320 else 0.25, "drop_path": 0.1 if depth >= 200 else 0.0, **rest,
    }  # fmt: skip
    return ResNetRSConfig(_DEPTHS[depth], resolution=resolution, **settings)


def resnet_rs(
    depth: int | tuple[int, ...] | ResNetRSConfig = 50, *, generator: torch.Generator | None = None,
    **rest: Any,
) -> nn.Module:  # fmt: skip
    """Build a ResNet-RS: images (B, channels, H, W) to logits (B, classes).

    Parameters
    ----------
    depth : int, tuple of int, or ResNetRSConfig
        Layers of a member of the family, blocks of each stage, or everything.
    generator : torch.Generator, optional
        Where first values come from; without it a generator seeded with 0, never the global state.
    **rest
        Fields of `ResNetRSConfig`.

    Raises
    ------
    ValueError
        An unknown depth, a rate outside its range, or images smaller than the total stride.

    Examples
    --------
    >>> small = resnet_rs((1, 1), base_width=8, stem="deep_tiny", resolution=14, channels=1, classes=10)
    >>> small(torch.zeros(2, 1, 14, 14)).shape
    torch.Size([2, 10])
    """
    if isinstance(depth, ResNetRSConfig):
        config = dataclasses.replace(depth, **rest)
    elif isinstance(depth, tuple):
        config = ResNetRSConfig(depth, **rest)
    else:
        config = resnet_rs_config(depth, **rest)
    return _ResNetRS(config, generator)


class _DropPath(nn.Module):
    """Leave whole images' branches out in training, and divide those kept by the share kept."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = torch.empty(len(x), *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device)
        return x * kept.bernoulli_(1 - self.rate) / (1 - self.rate)


class _Bottleneck(nn.Module):
    def __init__(self, config: ResNetRSConfig, channels: int, width: int, stride: int, rate: float) -> None:
        super().__init__()
        outside = 4 * width
        squeezed = max(1, int(outside * config.squeeze)) if config.squeeze else 0
        self.branch = nn.Sequential(
            norm_convolution(channels, width, 1),
            norm_convolution(width, width, 3, stride),
            norm_convolution(width, outside, 1, activation=None),
            SqueezeExcite(outside, squeezed) if squeezed else nn.Identity(),
            _DropPath(rate),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != outside:
            pooled = stride > 1 and config.pooled_shortcut
            self.shortcut = norm_convolution(channels, outside, 1, 1 if pooled else stride, activation=None)
            if pooled:  # an odd side is rounded up, as the branch's convolution does
                pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
                self.shortcut.insert(0, pool)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """Starts with a gain of zero, so that a block starts as its shortcut."""
        return self.branch[2][1]  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        summed: Tensor = self.branch(x) + self.shortcut(x)
        return summed.relu()


class _ResNetRS(nn.Module):
    def __init__(self, config: ResNetRSConfig, generator: torch.Generator | None) -> None:
        super().__init__()
        self.config = config
        width = config.base_width
        with torch.device("meta"):
            self.stem = _stem(config)
            blocks, before = [], width
            for stage, (depth, rates) in enumerate(zip(config.depths, config.drop_rates, strict=True)):
                inner = width * 2**stage
                for block in range(depth):
                    stride = 2 if stage and not block else 1
                    blocks.append(_Bottleneck(config, before, inner, stride, rates[block]))
                    before = 4 * inner
            self.blocks = nn.Sequential(*blocks)
            self.dropout = nn.Dropout(config.dropout)
            self.head = nn.Linear(before, config.classes)
        start_images_(self, generator, fan="in")
        for one in blocks:
            nn.init.zeros_(one.last_norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, channels, H, W) to logits (B, classes)."""
        self.config.check_size(x.shape[-2], x.shape[-1])
        return self.head(self.dropout(self.blocks(self.stem(x)).mean((2, 3))))


def _stem(config: ResNetRSConfig) -> nn.Sequential:
    width, half = config.base_width, math.ceil(config.base_width / 2)
    if config.stem == "plain":
        plain = norm_convolution(config.channels, width, 7, 2)
        return plain.append(nn.MaxPool2d(3, stride=2, padding=1))
    if config.stem == "plain_tiny":
        return norm_convolution(config.channels, width, 3)
    first = 2 if config.stem == "deep" else 1
    layers = nn.Sequential(
        norm_convolution(config.channels, half, 3, first),
        norm_convolution(half, half, 3),
        norm_convolution(half, width, 3),
    )
    if config.stem == "deep":
        layers.append(norm_convolution(width, width, 3, 2))
    return layers
