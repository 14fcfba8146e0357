"""Images moved about, so that a stream of them never repeats: shifts, mirrors, noise; torch alone, no loops.

What a batch looks like is a function of the seed and the step, as the batch itself is.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Augment", "AugmentedBatches"]


@dataclass(frozen=True)
class Augment:
    """Random changes of images (B, C, H, W), each image its own.

    Parameters
    ----------
    shift : int
        Most pixels that an image moves along each side; what comes in is 0.
    flip : bool
        Whether half of the images are mirrored left to right.
    noise : float
        Standard deviation of Gaussian noise.

    Raises
    ------
    ValueError
        A negative shift or noise.

    Examples
    --------
    >>> images = torch.rand(8, 1, 6, 6)
    >>> Augment(shift=2, flip=True)(images, torch.Generator().manual_seed(0)).shape
    torch.Size([8, 1, 6, 6])
    """

    shift: int = 0
    flip: bool = False
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.shift < 0 or not self.noise >= 0:
            raise ValueError(f"shift and noise must be at least 0; got {self.shift} and {self.noise}")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        count, _, height, width = images.shape
        if self.flip:
            mirrored = torch.rand(count, generator=generator) < 0.5
            images = torch.where(mirrored[:, None, None, None].to(images.device), images.flip(-1), images)
        if self.shift:
            moves = torch.randint(0, 2 * self.shift + 1, (2, count, 1), generator=generator).to(images.device)
            rows = moves[0] + torch.arange(height, device=images.device)
            columns = moves[1] + torch.arange(width, device=images.device)
            padded = F.pad(images, (self.shift,) * 4)
            which = torch.arange(count, device=images.device)[:, None, None]
            images = padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        if self.noise:
            images = images + self.noise * torch.randn(images.shape, generator=generator).to(images)
        return images


class AugmentedBatches:
    """Batches with ``batch(step)``, augmented anew at every step.

    Parameters
    ----------
    batches : object with ``batch(step) -> (images (B, C, H, W), labels)``
    augment : (images, generator) -> images
        Such as `Augment` or `RandAugment`.
    seed : int

    Examples
    --------
    >>> from allometry.data.images import ImageBatches, digits
    >>> source = AugmentedBatches(ImageBatches(*digits(), batch=4, seed=0), Augment(shift=1), seed=0)
    >>> torch.equal(source.batch(3)[0], source.batch(3)[0])
    True
    """

    def __init__(self, batches: Any, augment: Callable[[Tensor, torch.Generator], Tensor], seed: int) -> None:
        self.batches, self.augment, self.seed = batches, augment, int(seed)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """One step's images and labels."""
        images, labels = self.batches.batch(step)
        digest = hashlib.sha256(f"augment {self.seed} {step}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return self.augment(images, generator), labels
