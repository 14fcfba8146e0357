"""From one batch size to another: rate, length of the schedule, and a small batch's noise.

Hoffer, Hubara and Soudry, "Train longer, generalize better", 2017. arXiv:1705.08741.  At equal epochs a
large batch makes fewer updates, and by them covers less ground. Their remedies:

- *the square-root rule* (section 4.1): the covariance of an update is about ``rate^2 / batch`` times a
  constant, so the rate goes with the square root of the batch. (The linear rule of Goyal and others, 2017,
  arXiv:1706.02677, keeps the expected motion of an epoch instead.)
- *regime adaptation* (section 5): epochs and milestones are stretched until updates are as many as before.
  That is equal updates, not equal work: it costs as many more epochs, and this file says so.
- *noise* (section 4.1): sample gradients multiplied by ``z ~ N(1, sigma^2)``; weighting the samples' losses
  is the same.

Here are the numbers; :mod:`allometry.optim.batch_regime` puts them into optimizers, schedulers and the
arguments of transformers' ``Trainer``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BatchAdaptation", "GradientNoise", "adapt_to_batch"]

RULES = ("sqrt", "linear", "none")


@dataclass(frozen=True)
class BatchAdaptation:
    """A recipe at another batch size.  Made by `adapt_to_batch`.

    Attributes
    ----------
    batch : int
    learning_rate, clip : float
        ``clip`` is the largest global gradient norm, which the larger rate needs at the start (section
        4.1); None for none.
    epochs : float
    milestones : tuple of float
        In epochs.
    warmup : float
        In epochs.
    updates : int
    cost : float
        Samples seen, over those of the recipe that was adapted.
    """

    batch: int
    learning_rate: float
    epochs: float
    milestones: tuple[float, ...]
    warmup: float
    updates: int
    clip: float | None
    cost: float

    def __str__(self) -> str:
        return (
            f"batch {self.batch}: rate {self.learning_rate:.4g}, {self.epochs:g} epochs "
            f"({self.updates} updates, {self.cost:.3g} times the samples)"
        )


def adapt_to_batch(
    *, batch: int, to: int, learning_rate: float, epochs: float, samples: int, rule: str,
    milestones: Sequence[float] = (), warmup: float = 0.0, updates: str = "epochs", clip: float | None = 5.0,
    drop_last: bool = False,
) -> BatchAdaptation:  # fmt: skip
    """A recipe for another batch size.

    Parameters
    ----------
    batch, to : int
        The batch size of the recipe, and the one wanted.
    learning_rate, epochs : float
    samples : int
        Of the data.
    rule : {"sqrt", "linear", "none"}
        How the rate follows the batch. There is no default: for SGD both are in use, and which is right
        depends on whether noise or curvature limits the rate (see `allometry.papers`: train-longer,
        lr-batch-random-matrix).
    milestones : sequence of float
        Epochs at which the rate falls.
    warmup : float
        Epochs.
    updates : {"epochs", "regime"}
        Keep the epochs, or stretch epochs, milestones and warm-up so that there are as many updates as
        before.
    clip : float, optional
    drop_last : bool
        Whether the loader leaves out a last batch that is not full.

    Returns
    -------
    BatchAdaptation

    Raises
    ------
    ValueError
        A number is not positive, a rule is not known, or no batch is full.

    Examples
    --------
    >>> print(adapt_to_batch(batch=64, to=1024, learning_rate=0.1, epochs=10, samples=8192, rule="sqrt",
    ...                      updates="regime"))
    batch 1024: rate 0.4, 160 epochs (1280 updates, 16 times the samples)
    """
    for name, value in (("batch", batch), ("to", to), ("samples", samples), ("learning_rate", learning_rate),
                        ("epochs", epochs)):  # fmt: skip
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be positive, not {value}")
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, not {rule!r}")
    if updates not in ("epochs", "regime"):
        raise ValueError(f"updates must be 'epochs' or 'regime', not {updates!r}")
    if drop_last and max(batch, to) > samples:
        raise ValueError(f"no batch of {max(batch, to)} is full with {samples} samples: take drop_last=False")
    ratio = to / batch
    factor = {"sqrt": math.sqrt(ratio), "linear": ratio, "none": 1.0}[rule]
    each = [samples // size if drop_last else math.ceil(samples / size) for size in (batch, to)]
    stretch = 1.0
    if updates == "regime":  # to the update: partial batches make it differ a little from the ratio
        stretch = round(epochs * each[0]) / each[1] / epochs
    longer = epochs * stretch
    return BatchAdaptation(
        batch=to, learning_rate=learning_rate * factor, epochs=longer,
        milestones=tuple(one * stretch for one in milestones), warmup=warmup * stretch,
        updates=round(longer * each[1]), clip=clip, cost=longer / epochs,
    )  # fmt: skip


class GradientNoise:
    """Weights of samples' losses whose gradient has the noise of a smaller batch.

    With ``z ~ N(1, sigma^2)`` the gradient ``1/B sum z_n g_n`` has the variance ``sigma^2 / B^2 sum g_n^2``
    beside its sampling noise; ``sigma^2 = B_L / B_S - 1`` gives a batch of B_L the covariance of one of
    B_S.

    Parameters
    ----------
    variance : float
        ``sigma^2``.
    generator : torch.Generator, optional
        Without it one seeded with 0, never the global state.

    Examples
    --------
    >>> noise = GradientNoise.between(1024, 64)
    >>> noise.variance
    15.0
    >>> losses = torch.ones(4)
    >>> GradientNoise(0.0)(losses)
    tensor(1.)
    """

    def __init__(self, variance: float, generator: torch.Generator | None = None) -> None:
        if not (variance >= 0 and math.isfinite(variance)):
            raise ValueError(f"variance must not be negative, not {variance}")
        self.variance = float(variance)
        self.generator = generator or torch.Generator().manual_seed(0)

    @classmethod
    def between(cls, batch: int, small: int, generator: torch.Generator | None = None) -> GradientNoise:
        """The noise that a batch lacks beside a smaller one."""
        if not 0 < small <= batch:
            raise ValueError(f"the small batch must be from 1 to {batch}, not {small}")
        return cls(batch / small - 1.0, generator)

    def __call__(self, losses: Tensor) -> Tensor:
        """The weighted mean of samples' losses ``(..., B)``: ``(...)``."""
        if self.variance == 0:
            return losses.mean(-1)
        draw = torch.randn(losses.shape, generator=self.generator, device=self.generator.device).to(losses)
        return (losses * (1.0 + math.sqrt(self.variance) * draw)).mean(-1)
