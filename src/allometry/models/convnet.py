"""A small residual convolutional network for signals and images, with a width dial and a depth dial.

- Pre-activation residual blocks (He and others, 2016. arXiv:1603.05027), two convolutions each.
- Stages halve the resolution and double the width, so that one dial widens all of them alike.
- Norms by batch or by group, or none; 1-D for signals, 2-D for images.
- Initial values are torch's default, from a generator that one can name.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allometry.models.start import start_

__all__ = ["ConvNet"]

_CONVOLUTION: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d}
_BATCH_NORM: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}


class _Block(nn.Module):
    """Norm, activation, convolution, twice, added to a stream that is projected where its shape changes."""

    def __init__(
        self, channels: int, width: int, stride: int, dims: int, norm: str | None, scale: float
    ) -> None:
        super().__init__()
        convolution = _CONVOLUTION[dims]
        self.norm1, self.norm2 = _norm(norm, channels, dims), _norm(norm, width, dims)
        self.conv1 = convolution(channels, width, 3, stride=stride, padding=1, bias=norm is None)
        self.conv2 = convolution(width, width, 3, padding=1, bias=norm is None)
        self.shortcut = None
        if stride != 1 or channels != width:
            self.shortcut = convolution(channels, width, 1, stride=stride, bias=False)
        self.residual_scale = scale

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        stream = x if self.shortcut is None else self.shortcut(x)
        return stream + (branch if self.residual_scale == 1.0 else self.residual_scale * branch)


class ConvNet(nn.Module):
    """A residual network of ``stages`` × ``depth`` blocks, (B, channels, ...) -> (B, ``classes``).

    Parameters
    ----------
    channels : int
        Of the input.
    classes : int
    width : int
        Channels of the first stage; each further stage has twice as many.
    depth : int
        Blocks a stage, at least 1.
    stages : int
    dims : 1 or 2
        Signals (B, channels, length) or images (B, channels, height, width).
    norm : "batch", "group" or None
        ``"group"`` has groups of 8 channels, whose size does not depend on width, and needs widths that are
        multiples of 8. With None the convolutions have biases.
    residual_scale : float
        Multiplies every branch; see `allometry.init.depth_scale_`.
    generator : torch.Generator, optional
        Where initial values come from; without it a generator seeded with 0, never the global state.

    Examples
    --------
    >>> ConvNet(3, 10, width=8, depth=1)(torch.zeros(2, 3, 16, 16)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        width: int = 32,
        depth: int = 1,
        stages: int = 2,
        dims: Literal[1, 2] = 2,
        norm: Literal["batch", "group"] | None = "batch",
        residual_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = {"channels": channels, "classes": classes, "width": width, "depth": depth, "stages": stages}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value!r}")
        if dims not in _CONVOLUTION:
            raise ValueError(f"dims is 1 for signals or 2 for images; got {dims!r}")
        if norm not in ("batch", "group", None):
            raise ValueError(f"norm is 'batch', 'group' or None; got {norm!r}")
        if norm == "group" and width % 8:
            raise ValueError(
                f"group norm has groups of 8 channels, so width must be a multiple of 8; got {width}"
            )
        with torch.device("meta"):
            self.stem = _CONVOLUTION[dims](channels, width, 3, padding=1, bias=norm is None)
            self.blocks = nn.ModuleList()
            before = width
            for stage in range(stages):
                after = width * 2**stage
                for block in range(depth):
                    stride = 2 if stage and not block else 1
                    self.blocks.append(_Block(before, after, stride, dims, norm, float(residual_scale)))
                    before = after
            self.norm = _norm(norm, before, dims)
            self.readout = nn.Linear(before, classes)
        start_(self, generator)

    def features(self, x: Tensor) -> Tensor:
        """The activations before the readout, averaged over positions, (B, width of the last stage)."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return F.relu(self.norm(x)).flatten(2).mean(dim=2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return self.readout(self.features(x))


def _norm(norm: str | None, width: int, dims: int) -> nn.Module:
    if norm == "batch":
        return _BATCH_NORM[dims](width)
    return nn.GroupNorm(width // 8, width) if norm == "group" else nn.Identity()
