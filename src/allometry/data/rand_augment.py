"""RandAugment: a few operations on each image, drawn alike, all at one strength; torch alone, whole batches.

Cubuk, Zoph, Shlens and Le, "RandAugment: Practical automated data augmentation with a reduced search space",
2019. arXiv:1909.13719.  As ResNet-RS was trained with it (arXiv:2103.07579, and the release):

* Sixteen operations; at a strength of 10 rotations turn by 30 degrees, shears are 0.3, contrast and its kin
  1.9, and four bits are left.  Strengths above 10 go on along the same lines.
* Distances were 100 pixels of translation and holes of 80 a side in images of 224; here they are those shares
  of the side, so that images of any size are changed alike.
* What moves is read from the nearest pixel, and what comes in is grey.  In images of one channel colour has
  nothing to change.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["RandAugment"]

_TRANSLATION, _HOLE = 100 / 224, 80 / 224  # of the side, at a strength of 10
_GREY = 128 / 255


@dataclass(frozen=True)
class RandAugment:
    """Random changes of images (B, C, H, W) with values in [0, 1], each image its own.

    Parameters
    ----------
    layers : int
        Operations on each image, one after the other.
    magnitude : float
        Their strength; 10 is where the tables of operations end, ResNet-RS takes 10 and 15.

    Raises
    ------
    ValueError
        No layer or a negative strength; at a call, images that are not of one or three channels, or have
        values outside [0, 1].

    Examples
    --------
    >>> images = torch.rand(8, 3, 6, 6)
    >>> RandAugment(2, 10)(images, torch.Generator().manual_seed(0)).shape
    torch.Size([8, 3, 6, 6])
    """

    layers: int = 2
    magnitude: float = 10.0

    def __post_init__(self) -> None:
        if self.layers < 1 or not 0 <= self.magnitude < math.inf:
            raise ValueError(
                f"RandAugment takes a layer or more and a finite strength from 0; got {self.layers} and "
                f"{self.magnitude}"
            )

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
            raise ValueError(
                f"images are floating and (B, 1 or 3, H, W); got {images.dtype} of {tuple(images.shape)}"
            )
        if images.numel() and not (images.min() >= 0 and images.max() <= 1):
            raise ValueError(
                f"images have values from 0 to 1; got {images.min():.3g} to {images.max():.3g}. Normalise "
                "after augmenting"
            )
        images = images.clone()
        for _ in range(self.layers):
            drawn = torch.randint(len(_OPERATIONS), (len(images),), generator=generator)
            signs = 2.0 * torch.randint(2, (len(images),), generator=generator) - 1
            places = torch.rand(len(images), 2, generator=generator)
            for number, operation in enumerate(_OPERATIONS):
                which = (drawn == number).nonzero()[:, 0]
                if len(which):
                    there = which.to(images.device)
                    images[there] = operation(
                        images[there], self.magnitude / 10, signs[which].to(images), places[which].to(images)
                    )
        return images


_Operation = Callable[[Tensor, float, Tensor, Tensor], Tensor]


def _bytes(x: Tensor) -> Tensor:
    """Values from 0 to 255 as whole numbers."""
    return (x * 255).round().long()


def _blend(low: Tensor, x: Tensor, factor: float) -> Tensor:
    """From ``low`` towards ``x``, and beyond it where the factor is above one."""
    return torch.lerp(low, x, factor).clamp(0, 1)


def _strength(share: float) -> float:
    return 1.8 * share + 0.1


def _grey_of(x: Tensor) -> Tensor:
    """Luma of ITU-R 601, (B, 1, H, W)."""
    if x.shape[1] == 1:
        return x
    weights = x.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    return (x * weights).sum(1, keepdim=True)


def _auto_contrast(x: Tensor, share: float, sign: Tensor, place: Tensor) -> Tensor:
    """Stretch each channel over all values."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    flat = high <= low
    return torch.where(flat, x, (x - low) / torch.where(flat, torch.ones_like(high), high - low))


def _equalize(x: Tensor, share: float, sign: Tensor, place: Tensor) -> Tensor:
    """Give each channel a histogram that is flat."""
    values = _bytes(x).flatten(2)
    counts = torch.zeros(*x.shape[:2], 256, dtype=torch.long, device=x.device)
    counts.scatter_add_(2, values, torch.ones_like(values))
    last = counts.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - last) // 255
    before = counts.cumsum(2) - counts
    table = ((before + step // 2) // step.clamp_min(1)).clamp(0, 255)
    found = table.gather(2, values).unflatten(2, x.shape[2:]).to(x) / 255
    return torch.where(step[..., None] == 0, x, found)


def _invert(x: Tensor, share: float, sign: Tensor, place: Tensor) -> Tensor:
    return 1 - x


def _posterize(x: Tensor, share: float, sign: Tensor, place: Tensor) -> Tensor:
    """Keep the highest bits; none are kept at a strength near 0, as in the release."""
    unit = 2 ** max(0, 8 - int(share * 4))
    return (_bytes(x) // unit * unit).to(x) / 255


def _solarize(x: Tensor, share: float, sign: Tensor, place: Tensor) -> Tensor:
    """Invert what is bright: from 256 up at a strength of 10, which is nothing, as in the release."""
    return torch.where(_bytes(x) < int(share * 256), x, 1 - x)


def _solarize_add(x: Tensor, share: float, sign: Tensor, place: Tensor) -> Tensor:
    """Lighten what is dark."""
    return torch.where(_bytes(x) < 128, (x + int(share * 110) / 255).clamp(0, 1), x)


def _colour(x: Tensor, share: float, sign: Tensor, place: Tensor) -> Tensor:
    return _blend(_grey_of(x).expand_as(x), x, _strength(share))


def _contrast(x: Tensor, share: float, sign: Tensor, place: Tensor) -> Tensor:
    return _blend(_grey_of(x).mean((1, 2, 3), keepdim=True).expand_as(x), x, _strength(share))


def _brightness(x: Tensor, share: float, sign: Tensor, place: Tensor) -> Tensor:
    return _blend(torch.zeros_like(x), x, _strength(share))


def _sharpness(x: Tensor, share: float, sign: Tensor, place: Tensor) -> Tensor:
    """Away from a smoothed image, whose border is the image's own."""
    if min(x.shape[2:]) < 3:
        return x
    kernel = x.new_ones(3, 3)
    kernel[1, 1] = 5
    smooth = x.clone()
    kernels = (kernel / 13).expand(x.shape[1], 1, 3, 3)
    smooth[:, :, 1:-1, 1:-1] = F.conv2d(x, kernels, groups=x.shape[1])
    return _blend(smooth, x, _strength(share))


def _hole(x: Tensor, share: float, sign: Tensor, place: Tensor) -> Tensor:
    """A grey square, cut where it passes the border."""
    height, width = x.shape[2:]
    inside = []
    for axis, side in enumerate((height, width)):
        centre = (place[:, axis] * side).floor()[:, None]
        half = int(share * _HOLE / 2 * side)
        at = torch.arange(side, device=x.device)
        inside.append((at >= centre - half) & (at < centre + half))
    return torch.where((inside[0][:, :, None] & inside[1][:, None, :])[:, None], _GREY, x)


def _moved(x: Tensor, rows: Tensor) -> Tensor:
    """Read each pixel from where an affine map (B, 2, 3) sends it, in half sides from the centre."""
    grid = F.affine_grid(rows, list(x.shape), align_corners=False)
    return F.grid_sample(x - _GREY, grid, mode="nearest", align_corners=False) + _GREY


def _affine(x: Tensor, **entries: Tensor) -> Tensor:
    """Where a pixel (x, y) is read: (a x + b y + c, d x + e y + f), from the centre; else identity."""
    height, width = x.shape[2:]
    rows = torch.zeros(len(x), 2, 3, dtype=x.dtype, device=x.device)
    rows[:, 0, 0] = entries.get("a", 1.0)
    rows[:, 1, 1] = entries.get("e", 1.0)
    rows[:, 0, 1] = entries.get("b", 0.0) * (height / width)
    rows[:, 1, 0] = entries.get("d", 0.0) * (width / height)
    rows[:, 0, 2] = entries.get("c", 0.0) * (2 / width)
    rows[:, 1, 2] = entries.get("f", 0.0) * (2 / height)
    return _moved(x, rows)


def _rotate(x: Tensor, share: float, sign: Tensor, place: Tensor) -> Tensor:
    angle = sign * math.radians(30 * share)
    return _affine(x, a=angle.cos(), b=-angle.sin(), d=angle.sin(), e=angle.cos())


def _shear_across(x: Tensor, share: float, sign: Tensor, place: Tensor) -> Tensor:
    return _affine(x, b=sign * (0.3 * share))


def _shear_down(x: Tensor, share: float, sign: Tensor, place: Tensor) -> Tensor:
    return _affine(x, d=sign * (0.3 * share))


def _move_across(x: Tensor, share: float, sign: Tensor, place: Tensor) -> Tensor:
    return _affine(x, c=(sign * (share * _TRANSLATION * x.shape[3])).round())


def _move_down(x: Tensor, share: float, sign: Tensor, place: Tensor) -> Tensor:
    return _affine(x, f=(sign * (share * _TRANSLATION * x.shape[2])).round())


_OPERATIONS: tuple[_Operation, ...] = (
    _auto_contrast, _equalize, _invert, _posterize, _solarize, _solarize_add, _colour, _contrast, _brightness,
    _sharpness, _hole, _rotate, _shear_across, _shear_down, _move_across, _move_down,
)  # fmt: skip
