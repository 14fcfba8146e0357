"""Data made worse on purpose, by a known amount: labels flipped, images drowned, labels hinted at by colour.

What is drawn for an example depends on the generator and the example's place alone, never on the amount: a
higher rate flips the same labels and more, more noise is the same noise, larger.

Coloured environments: Arjovsky, Bottou, Gulrajani and Lopez-Paz, 2019, arXiv:1907.02893.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ColoredImages", "FlippedLabels", "add_noise", "colored", "flip_labels"]


class FlippedLabels(NamedTuple):
    """Labels of which some are wrong.

    Attributes
    ----------
    labels : int64 Tensor (N,)
    transition : float64 Tensor (C, C)
        Probability of the label given (column) where another is true (row).
    """

    labels: Tensor
    transition: Tensor

    def posterior(self, clean: Tensor) -> Tensor:
        """Probabilities ``(..., C)`` of flipped labels, from those of the true ones ``(..., C)``."""
        return clean @ self.transition.to(clean)


def flip_labels(
    labels: Tensor,
    rate: float,
    *,
    generator: torch.Generator,
    mode: str = "uniform",
    classes: int | None = None,
) -> FlippedLabels:
    """Give a share of the examples a wrong label.

    Parameters
    ----------
    labels : integer Tensor (N,)
    rate : float
        Probability that a label is wrong, in [0, 1].
    generator : torch.Generator
    mode : {"uniform", "pair"}
        Whether a wrong label is any other class, equally likely, or always the next one.
    classes : int, optional
        C; by default one more than the largest label.

    Raises
    ------
    ValueError
        Rate, mode, or labels out of range.

    Examples
    --------
    >>> flipped = flip_labels(torch.arange(10), 1.0, mode="pair", generator=torch.Generator())
    >>> flipped.labels.tolist()
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate is a probability, not {rate}")
    if mode not in ("uniform", "pair"):
        raise ValueError(f"mode must be 'uniform' or 'pair', not {mode!r}")
    if labels.ndim != 1 or labels.is_floating_point() or (len(labels) and int(labels.min()) < 0):
        raise ValueError(
            f"labels must be classes 0, 1, ... of shape (N,), not {labels.dtype} {tuple(labels.shape)}"
        )
    found = int(labels.max()) + 1 if len(labels) else 0
    count = found if classes is None else int(classes)
    if count < max(found, 2):
        raise ValueError(f"{count} classes are too few for labels up to {found - 1}; two are the fewest")
    wrong = torch.rand(len(labels), generator=generator) < rate
    away = torch.randint(1, count, (len(labels),), generator=generator)
    if mode == "pair":
        away = torch.ones_like(away)
    moved = (labels + away.to(labels.device)) % count
    transition = torch.eye(count, dtype=torch.float64)
    others = 1 - transition if mode == "uniform" else transition.roll(1, dims=1)
    transition = (1 - rate) * transition + rate * others / others.sum(1, keepdim=True)
    return FlippedLabels(torch.where(wrong.to(labels.device), moved, labels), transition)


def add_noise(
    images: Tensor, *, generator: torch.Generator, noise: float = 0.0, dropped: float = 0.0
) -> Tensor:
    """Images with Gaussian noise, and then a share of their pixels at 0; nothing is clipped.

    Parameters
    ----------
    images : Tensor (N, C, H, W)
    generator : torch.Generator
    noise : float
        Standard deviation.
    dropped : float
        Probability that a pixel is lost, in all of its channels.

    Raises
    ------
    ValueError
        Negative noise, or a share outside [0, 1].

    Examples
    --------
    >>> bad = add_noise(torch.ones(2, 1, 4, 4), dropped=0.5, generator=torch.Generator().manual_seed(0))
    >>> bad.unique().tolist()
    [0.0, 1.0]
    """
    if not noise >= 0 or not 0 <= dropped <= 1:
        raise ValueError(f"noise must be at least 0 and dropped a share; got {noise} and {dropped}")
    count, _, height, width = images.shape
    drawn = torch.randn(images.shape, generator=generator).to(images)
    lost = torch.rand(count, 1, height, width, generator=generator) < dropped
    return (images + noise * drawn).masked_fill(lost.to(images.device), 0.0)


class ColoredImages(NamedTuple):
    """An environment: images ``(n, 2, h, w)`` that are red or green, and what they should be called.

    Attributes
    ----------
    images : Tensor (n, 2, h, w)
        The channel of the colour holds the image, the other is 0.
    labels : float32 Tensor (n,)
        0 or 1, after label noise.
    colors, clean : int64 Tensors (n,)
        The colour, and the label before noise.
    """

    images: Tensor
    labels: Tensor
    colors: Tensor
    clean: Tensor


def colored(
    images: Tensor,
    labels: Tensor,
    flip_probabilities: Sequence[float],
    *,
    generator: torch.Generator,
    label_noise: float = 0.25,
    rule: Callable[[Tensor], Tensor] = lambda labels: labels < 5,
    stride: int = 2,
) -> list[ColoredImages]:
    """Binary problems in which a colour hints at the label, more reliably than the shape, but not everywhere.

    Image i goes to environment i modulo their number.  Its label is the rule's, flipped with probability
    ``label_noise``; its colour is that label, flipped with the environment's own probability.

    Parameters
    ----------
    images : Tensor (N, 1, H, W)
    labels : integer Tensor (N,)
    flip_probabilities : sequence of float
        One an environment: how often the colour is not the label.
    generator : torch.Generator
    label_noise : float
    rule : labels (N,) -> bool (N,)
        Which classes are called 1; those below 5 by default.
    stride : int
        Every so many pixels are kept along each side.

    Raises
    ------
    ValueError
        A probability is none, or images have more than one channel.

    Examples
    --------
    >>> images, labels = torch.rand(8, 1, 4, 4), torch.arange(8)
    >>> first, second = colored(images, labels, (0.1, 0.2), generator=torch.Generator().manual_seed(0))
    >>> first.images.shape, second.clean.tolist()
    (torch.Size([4, 2, 2, 2]), [1, 1, 0, 0])
    """
    if images.ndim != 4 or images.shape[1] != 1 or len(images) != len(labels):
        raise ValueError(f"images must be (N, 1, H, W), one a label, not {tuple(images.shape)}")
    if not flip_probabilities or any(not 0 <= one <= 1 for one in (*flip_probabilities, label_noise)):
        raise ValueError(f"{list(flip_probabilities)} and {label_noise} must be probabilities")
    small = images[:, 0, ::stride, ::stride]
    clean = rule(labels).to(torch.int64)
    chances = torch.rand(2, len(labels), generator=generator).to(images.device)
    noisy = clean ^ (chances[0] < label_noise).to(torch.int64)
    found = []
    for place, flip in enumerate(flip_probabilities):
        own = slice(place, None, len(flip_probabilities))
        color = noisy[own] ^ (chances[1, own] < flip).to(torch.int64)
        pair = torch.stack([small[own] * (color == c)[:, None, None] for c in (0, 1)], dim=1)
        found.append(ColoredImages(pair, noisy[own].to(torch.float32), color, clean[own]))
    return found
