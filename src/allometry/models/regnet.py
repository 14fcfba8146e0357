"""Image networks in stages: RegNet, and as the same few numbers ResNet, ResNeXt and plain stacks.

Radosavovic and others, "Designing Network Design Spaces", 2020. arXiv:2003.13678

* A configuration is data: widths, depths and group widths of the stages, a stem, a resolution.  What scales a
  network (`allometry.grow`) maps a configuration to another.
* RegNet draws stage widths from a line, u_j = w_0 + w_a j, rounded to powers of w_m (equations 2 to 4).
* Squeeze-and-excitation is reduced from the width of the block's *input*, and stands before the last 1 × 1.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
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

__all__ = ["RegNetConfig", "regnet", "regnet_config", "resnet_config"]

# depth, w_0, w_a, w_m, group width of the published networks (appendix; X has no squeeze-and-excitation)
_PUBLISHED = {
    "X-200MF": (13, 24, 36.44, 2.49, 8), "X-400MF": (22, 24, 24.48, 2.54, 16),
    "X-600MF": (16, 48, 36.97, 2.24, 24), "X-800MF": (16, 56, 35.73, 2.28, 16),
    "X-1.6GF": (18, 80, 34.01, 2.25, 24), "X-3.2GF": (25, 88, 26.31, 2.25, 48),
    "X-4.0GF": (23, 96, 38.65, 2.43, 40), "X-6.4GF": (17, 184, 60.83, 2.07, 56),
    "X-8.0GF": (23, 80, 49.56, 2.88, 120), "X-12GF": (19, 168, 73.36, 2.37, 112),
    "X-16GF": (22, 216, 55.59, 2.1, 128), "X-32GF": (23, 320, 69.86, 2.0, 168),
    "Y-200MF": (13, 24, 36.44, 2.49, 8), "Y-400MF": (16, 48, 27.89, 2.09, 8),
    "Y-600MF": (15, 48, 32.54, 2.32, 16), "Y-800MF": (14, 56, 38.84, 2.4, 16),
    "Y-1.6GF": (27, 48, 20.71, 2.65, 24), "Y-3.2GF": (21, 80, 42.63, 2.66, 24),
    "Y-4.0GF": (22, 96, 31.41, 2.24, 64), "Y-6.4GF": (25, 112, 33.22, 2.27, 72),
    "Y-8.0GF": (17, 192, 76.82, 2.19, 56), "Y-12GF": (19, 168, 73.36, 2.37, 112),
    "Y-16GF": (18, 200, 106.23, 2.48, 112), "Y-32GF": (20, 232, 115.89, 2.53, 232),
}  # fmt: skip
_RESNET_DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@dataclass(frozen=True)
class RegNetConfig:
    """A network in stages.

    Attributes
    ----------
    widths, depths : tuple of int
        Channels that each stage puts out, and its blocks.
    group_widths : tuple of int, or None
        Channels of one group of the 3 × 3 convolutions in bottleneck blocks; None has one group.
    bottleneck : float
        Inner over outer width of a bottleneck block.
    squeeze : float
        Width of the squeeze over that of the block's input; 0 for none.
    strides : tuple of int, or None
        Of each stage's first block; None is 2 everywhere.
    stem : str
        ``"simple"``, 3 × 3 at stride 2; ``"pooled"``, 7 × 7 at stride 2 and a 3 × 3 max pool at stride 2;
        ``"small"``, 3 × 3 at stride 1, for images of a few dozen pixels.
    stem_width : int
    block : str
        ``"bottleneck"``, ``"basic"`` (two 3 × 3, residual) or ``"plain"`` (the same, not residual).
    resolution : int
        Pixels a side.
    channels, classes : int
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    group_widths: tuple[int, ...] | None = None
    bottleneck: float = 1.0
    squeeze: float = 0.0
    strides: tuple[int, ...] | None = None
    stem: Literal["simple", "pooled", "small"] = "simple"
    stem_width: int = 32
    block: Literal["bottleneck", "basic", "plain"] = "bottleneck"
    resolution: int = 224
    channels: int = 3
    classes: int = 1000

    def __post_init__(self) -> None:
        stages = len(self.widths)
        for name in ("widths", "depths", "group_widths", "strides"):
            found = getattr(self, name)
            if found is None:
                continue
            object.__setattr__(self, name, tuple(int(one) for one in found))
            if len(found) != stages or not stages or min(found) < 1:
                raise ValueError(f"{name} must be a number of at least 1 for each stage; got {found}")
        if self.stem not in ("simple", "pooled", "small"):
            raise ValueError(f"stem is 'simple', 'pooled' or 'small'; got {self.stem!r}")
        if self.block not in ("bottleneck", "basic", "plain"):
            raise ValueError(f"block is 'bottleneck', 'basic' or 'plain'; got {self.block!r}")
        if not self.bottleneck > 0 or not 0 <= self.squeeze <= 1:
            raise ValueError(
                f"bottleneck must be above 0 and squeeze in [0, 1]; got {self.bottleneck}, {self.squeeze}"
            )
        for name in ("stem_width", "resolution", "channels", "classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        for width, group in zip(self.inner_widths, self.group_widths or (), strict=False):
            if width % group:
                raise ValueError(
                    f"an inner width of {width} has no groups of {group} channels; choose a divisor, or use "
                    "RegNetConfig.compatible"
                )

    @property
    def inner_widths(self) -> tuple[int, ...]:
        """Channels inside of the bottleneck blocks of each stage."""
        return tuple(round(width * self.bottleneck) for width in self.widths)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Of one image: channels, height, width."""
        return (self.channels, self.resolution, self.resolution)

    @classmethod
    def compatible(
        cls, widths: Sequence[int], depths: Sequence[int], group_widths: Sequence[int] | None, **rest: object
    ) -> RegNetConfig:
        """Widths moved to the nearest that whole groups fill.

        Examples
        --------
        >>> RegNetConfig.compatible((100,), (1,), (48,)).widths
        (96,)
        """
        if group_widths is None or rest.get("block", "bottleneck") != "bottleneck":
            return cls(tuple(widths), tuple(depths), None, **rest)  # type: ignore[arg-type]
        ratio = float(rest.get("bottleneck", 1.0))  # type: ignore[arg-type]
        new_widths, new_groups = [], []
        for width, group in zip(widths, group_widths, strict=True):
            inner = int(max(1, width * ratio))
            group = min(group, inner)
            unit = math.lcm(group, int(ratio)) if ratio > 1 else group
            inner = max(unit, round(inner / unit) * unit)
            new_widths.append(int(inner / ratio))
            new_groups.append(group)
        return cls(tuple(new_widths), tuple(depths), tuple(new_groups), **rest)  # type: ignore[arg-type]

    @classmethod
    def generate(
        cls, depth: int, initial_width: int, slope: float, multiplier: float, group_width: int,
        **rest: object,
    ) -> RegNetConfig:  # fmt: skip
        """Stages from RegNet's four numbers (equations 2 to 4).

        Parameters
        ----------
        depth : int
            Blocks in all.
        initial_width, slope, multiplier
            w_0 (a multiple of 8), w_a and w_m of the paper.
        group_width : int
        **rest
            Further fields.

        Raises
        ------
        ValueError
            Numbers that give no widths.

        Examples
        --------
        >>> RegNetConfig.generate(22, 96, 31.41, 2.24, 64, squeeze=0.25).widths
        (128, 192, 512, 1088)
        """
        if depth < 1 or initial_width < 8 or initial_width % 8 or slope < 0 or multiplier <= 1:
            raise ValueError(
                "RegNet takes a depth from 1, an initial width that is a multiple of 8, a slope from 0 and a "
                f"multiplier above 1; got {depth}, {initial_width}, {slope}, {multiplier}"
            )
        widths = []
        for block in range(depth):
            line = initial_width + slope * block  # equation 2
            step = round(math.log(line / initial_width) / math.log(multiplier))  # equation 3
            widths.append(round(initial_width * multiplier**step / 8) * 8)  # equation 4
        stages = [(width, len(list(same))) for width, same in itertools.groupby(widths)]
        found = [width for width, _ in stages]
        return cls.compatible(found, [count for _, count in stages], [group_width] * len(found), **rest)

    @classmethod
    def from_transformers(cls, config: Any, **rest: Any) -> RegNetConfig:
        """The configuration of a RegNet of ``transformers`` (a ``transformers.RegNetConfig``).

        Parameters
        ----------
        config : transformers.RegNetConfig
        **rest
            Further fields; ``resolution`` above all, which is 224 otherwise.

        Raises
        ------
        ValueError
            An activation other than ReLU, which is all there is here.

        Examples
        --------
        >>> from types import SimpleNamespace
        >>> theirs = SimpleNamespace(hidden_sizes=[32, 64], depths=[1, 2], groups_width=16, layer_type="y",
        ...     embedding_size=32, downsample_in_first_stage=True, hidden_act="relu", num_channels=3,
        ...     num_labels=10)
        >>> RegNetConfig.from_transformers(theirs, resolution=64).squeeze
        0.25
        """
        if config.hidden_act != "relu":
            raise ValueError(f"RegNet has ReLU here; got hidden_act={config.hidden_act!r}")
        stages = len(config.hidden_sizes)
        groups = [min(config.groups_width, width) for width in config.hidden_sizes]
        settings = {
            "squeeze": 0.25 if config.layer_type == "y" else 0.0, "stem_width": config.embedding_size,
            "strides": None if config.downsample_in_first_stage else (1, *[2] * (stages - 1)),
            "channels": config.num_channels, "classes": config.num_labels, **rest,
        }  # fmt: skip
        return cls(tuple(config.hidden_sizes), tuple(config.depths), tuple(groups), **settings)

    def scaled(
        self, *, depth: float = 1.0, width: float = 1.0, group: float = 1.0, resolution: float = 1.0
    ) -> RegNetConfig:
        """Multiply depth, width, group width and side of the image, each rounded to what can be built.

        Depths to whole blocks, at least one; widths to multiples of 8; group widths to 1, 2, 4 and multiples
        of 8; the side to a multiple of 4.  The stem keeps its width.

        Examples
        --------
        >>> RegNetConfig((64,), (2,), (8,)).scaled(width=1.5, group=1.5).widths
        (96,)
        """
        groups = None
        if self.group_widths is not None:
            rough = [max(1, round(one * group)) for one in self.group_widths]
            groups = [one if one <= 2 else 4 if one <= 5 else round(one / 8) * 8 for one in rough]
        rest = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)[3:]}
        rest["resolution"] = rounded_side(self.resolution, resolution)
        return RegNetConfig.compatible(
            [max(1, round(one * width / 8)) * 8 for one in self.widths],
            [max(1, round(one * depth)) for one in self.depths], groups, **rest,
        )  # fmt: skip

    def build(self, generator: torch.Generator | None = None) -> nn.Module:
        """The network; see `regnet`."""
        return regnet(self, generator=generator)


def regnet_config(name: str, **rest: object) -> RegNetConfig:
    """A published RegNet by its name, such as ``"Y-4.0GF"``.

    Raises
    ------
    ValueError
        There is none of that name.

    Examples
    --------
    >>> regnet_config("Y-200MF").depths
    (1, 1, 4, 7)
    """
    if name not in _PUBLISHED:
        raise ValueError(f"no RegNet is called {name!r}; there are {', '.join(_PUBLISHED)}")
    settings: dict[str, Any] = {"squeeze": 0.25 if name.startswith("Y") else 0.0, **rest}
    return RegNetConfig.generate(*_PUBLISHED[name], **settings)


def resnet_config(depth: int = 50, *, groups: int = 1, group_width: int = 64, **rest: object) -> RegNetConfig:
    """ResNet (He and others, 2016. arXiv:1512.03385), or ResNeXt with 32 groups of width 4, for ImageNet.

    Examples
    --------
    >>> resnet_config(50, groups=32, group_width=4).group_widths
    (4, 8, 16, 32)
    """
    if depth not in _RESNET_DEPTHS:
        raise ValueError(f"there is a ResNet of {', '.join(map(str, _RESNET_DEPTHS))} layers, not of {depth}")
    inner = [groups * group_width * 2**stage for stage in range(4)]
    widths = tuple(256 * 2**stage for stage in range(4))
    settings: dict[str, object] = {"strides": (1, 2, 2, 2), "stem": "pooled", "stem_width": 64, **rest}
    return RegNetConfig(
        widths, _RESNET_DEPTHS[depth], None if groups == 1 else tuple(one // groups for one in inner),
        inner[0] / widths[0], **settings,  # type: ignore[arg-type]
    )  # fmt: skip


class _Block(nn.Module):
    """A residual block, or a plain one."""

    def __init__(self, config: RegNetConfig, stage: int, channels: int, stride: int) -> None:
        super().__init__()
        width = config.widths[stage]
        self.residual = config.block != "plain"
        if config.block == "bottleneck":
            inner = config.inner_widths[stage]
            groups = 1 if config.group_widths is None else inner // config.group_widths[stage]
            squeezed = round(channels * config.squeeze)
            self.branch = nn.Sequential(
                norm_convolution(channels, inner, 1),
                norm_convolution(inner, inner, 3, stride, groups),
                SqueezeExcite(inner, squeezed) if squeezed else nn.Identity(),
                norm_convolution(inner, width, 1, activation=None),
            )
        else:
            self.branch = nn.Sequential(
                norm_convolution(channels, width, 3, stride),
                norm_convolution(width, width, 3, activation=None),
            )
        self.shortcut: nn.Module | None = None
        if self.residual and (channels != width or stride != 1):
            self.shortcut = norm_convolution(channels, width, 1, stride, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.branch(x)
        if self.residual:
            branch = branch + (x if self.shortcut is None else self.shortcut(x))
        return branch.relu()


class _Staged(nn.Module):
    def __init__(self, config: RegNetConfig, generator: torch.Generator | None) -> None:
        super().__init__()
        with torch.device("meta"):
            kernel, stride = {"simple": (3, 2), "pooled": (7, 2), "small": (3, 1)}[config.stem]
            self.stem = norm_convolution(config.channels, config.stem_width, kernel, stride)
            if config.stem == "pooled":
                self.stem.append(nn.MaxPool2d(3, stride=2, padding=1))
            self.stages = nn.Sequential()
            before = config.stem_width
            strides = config.strides or (2,) * len(config.widths)
            for stage, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
                blocks = []
                for block in range(depth):
                    blocks.append(_Block(config, stage, before, 1 if block else strides[stage]))
                    before = width
                self.stages.append(nn.Sequential(*blocks))
            self.head = nn.Linear(before, config.classes)
        start_images_(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, channels, H, W) to logits (B, classes)."""
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


def regnet(config: RegNetConfig, *, generator: torch.Generator | None = None) -> nn.Module:
    """Build a network in stages: images (B, channels, H, W) to logits (B, classes).

    Parameters
    ----------
    config : RegNetConfig
    generator : torch.Generator, optional
        Where first values come from; without it a generator seeded with 0, never the global state.  Under
        ``torch.device("meta")`` nothing is drawn and nothing takes memory.

    Examples
    --------
    >>> model = regnet(RegNetConfig((16, 32), (1, 1), resolution=32, classes=10))
    >>> model(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    return _Staged(config, generator)
