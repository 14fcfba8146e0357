"""What image networks are built of: convolutions with a norm, squeeze-and-excitation, first values.

He and others, "Delving Deep into Rectifiers", 2015. arXiv:1502.01852
Hu and others, "Squeeze-and-Excitation Networks", 2018. arXiv:1709.01507
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from allometry.models.start import start_

__all__ = ["SqueezeExcite", "convolution", "norm_convolution", "rounded_side", "start_images_"]


def convolution(channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded so that n pixels at stride s become ceil(n / s).

    >>> convolution(3, 8, 3, stride=2)(torch.zeros(1, 3, 7, 7)).shape
    torch.Size([1, 8, 4, 4])
    """
    return nn.Conv2d(channels, width, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)


def norm_convolution(
    channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1, *,
    activation: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:  # fmt: skip
    """Convolution, batch norm and, unless it is None, an activation.

    >>> len(norm_convolution(3, 8, 3, activation=None))
    2
    """
    layers: list[nn.Module] = [convolution(channels, width, kernel, stride, groups), nn.BatchNorm2d(width)]
    if activation is not None:
        layers.append(activation())
    return nn.Sequential(*layers)


class SqueezeExcite(nn.Module):
    """Scale every channel by a gate that has seen the mean over all places, (B, C, H, W) -> the same.

    Parameters
    ----------
    channels : int
    inner : int
        Channels between the two dense layers.
    activation : type of module
        After the first of them.

    Examples
    --------
    >>> SqueezeExcite(8, 2)(torch.ones(1, 8, 4, 4)).shape
    torch.Size([1, 8, 4, 4])
    """

    def __init__(self, channels: int, inner: int, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, inner, 1)
        self.activation = activation()
        self.excite = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.excite(self.activation(self.squeeze(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


@torch.no_grad()
def start_images_(
    model: nn.Module, generator: torch.Generator | None = None, *, fan: Literal["out", "in"] = "out"
) -> nn.Module:
    """Give a network that was built on the meta device its place and first values.

    Convolutions are normal: of variance 2 / fan-out (He and others), or 1 / fan-in, cut at two standard
    deviations.  Dense layers are normal with deviation 0.01, biases zero, norms one and zero.

    Parameters
    ----------
    model : nn.Module
    generator : torch.Generator, optional
        On the CPU; without it a generator seeded with 0, never the global state.
    fan : "out" or "in"

    Examples
    --------
    >>> with torch.device("meta"):
    ...     layer = nn.Conv2d(64, 64, 3)
    >>> 0.05 < start_images_(layer).weight.std() < 0.07
    tensor(True)
    """
    if torch.get_default_device().type == "meta":
        return model
    generator = generator or torch.Generator().manual_seed(0)
    start_(model, torch.Generator().manual_seed(0))  # places everything and starts the norms
    for module in model.modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        drawn = torch.empty(module.weight.shape, dtype=module.weight.dtype, device="cpu")
        if isinstance(module, nn.Linear):
            drawn.normal_(0.0, 0.01, generator=generator)
        elif fan == "out":
            fan_out = module.out_channels * math.prod(module.kernel_size) // module.groups
            drawn.normal_(0.0, math.sqrt(2 / fan_out), generator=generator)
        else:
            # 0.8796 is the deviation of a standard normal cut at two, so that the variance is 1 / fan-in
            deviation = math.sqrt(1 / module.weight[0].numel()) / 0.87962566
            nn.init.trunc_normal_(drawn, 0.0, deviation, -2 * deviation, 2 * deviation, generator=generator)
        module.weight.copy_(drawn)
        if module.bias is not None:
            module.bias.zero_()
    return model


def rounded_side(side: int, factor: float) -> int:
    """A side of an image multiplied, to a multiple of 4; as it is where it is not scaled.

    >>> rounded_side(14, 1.0), rounded_side(14, 1.5)
    (14, 20)
    """
    return side if factor == 1 else max(4, round(side * factor / 4) * 4)
