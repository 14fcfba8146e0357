"""Named recipes: what a paper trains with, as objects for `allometry.train.fit` or for a loop of one's own.

Bello and others, "Revisiting ResNets", 2021. arXiv:2103.07579 (section 3, and the release)

* Weight decay is small, 4e-5, because the other regularizers are on; it leaves norms alone, and reaches every
  other weight and bias.
* Weights are averaged at 0.9999, from a ramp that lets short runs forget their start.  Running statistics of
  batch norms are averaged with them, and therefore are those of the last batch alone: smoothing them twice
  would let them lag behind the weights that they belong to.
* Augmentation is RandAugment, two operations an image, of strength 10 up to 160 pixels and 15 above; dropout
  and left-out branches, which grow with the network too, are the model's own.
* The learning rate grows with the batch, 0.1 for 256 images, after five epochs of warm-up, and falls as a
  cosine (the paper's; the released code has steps).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allometry.data.rand_augment import RandAugment
from allometry.optim.ema import AveragedWeights
from allometry.optim.groups import param_groups
from allometry.optim.schedules import cosine

__all__ = ["Recipe", "resnet_rs_recipe_"]


@dataclass(frozen=True)
class Recipe:
    """What a run is trained with; ``fit(model, batches, horizons=recipe.steps, **recipe.settings)``.

    Attributes
    ----------
    steps : int
    learning_rate : float
        At its peak.
    optimizer : torch.optim.Optimizer
    schedule : (step, total) -> multiplier
    objective : (model, inputs, targets) -> loss
    average : AveragedWeights or None
    augment : (images, generator) -> images
        For `allometry.data.AugmentedBatches`, or a loop of one's own.
    """

    steps: int
    learning_rate: float
    optimizer: torch.optim.Optimizer
    schedule: Callable[[int, int], float]
    objective: Callable[[nn.Module, Tensor, Tensor], Tensor]
    average: AveragedWeights | None
    augment: Callable[[Tensor, torch.Generator], Tensor]

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of `allometry.train.fit`."""
        return {
            "optimizer": self.optimizer, "schedule": self.schedule, "objective": self.objective,
            "average": self.average,
        }  # fmt: skip


def resnet_rs_recipe_(
    model: nn.Module, *, train_size: int, batch: int, epochs: float, rate_per_256: float = 0.1,
    weight_decay: float = 4e-5, label_smoothing: float = 0.1, average: float | None = 0.9999,
    warmup_epochs: float = 5.0, resolution: int | None = None,
) -> Recipe:  # fmt: skip
    """ResNet-RS's recipe for a classifier of images; dropout and left-out branches are the model's own.

    Images are to be in [0, 1] when they are augmented; normalise after it.

    Parameters
    ----------
    model : nn.Module
        Where weights are averaged its batch norms are told to keep the last batch's statistics alone, in
        place; judge the averaged weights then.
    train_size, batch : int
        Images in all, and in a batch.
    epochs : float
    rate_per_256 : float
        Learning rate for a batch of 256.
    weight_decay : float
        An L2 term in the loss; 1e-4 is ResNet's own.
    label_smoothing : float
        0 for none.
    average : float, optional
        Decay of the moving average; None keeps none.
    warmup_epochs : float
        At most a tenth of the run.
    resolution : int, optional
        Pixels a side, which augmentation's strength goes by; ``model.config.resolution`` where there is one,
        otherwise 160.

    Returns
    -------
    Recipe

    Raises
    ------
    ValueError
        A batch larger than the data, or no epochs.

    Examples
    --------
    >>> recipe = resnet_rs_recipe_(nn.Linear(2, 2), train_size=1_281_167, batch=4096, epochs=350)
    >>> recipe.learning_rate, recipe.steps
    (1.6, 109475)
    """
    if not 1 <= batch <= train_size:
        raise ValueError(f"batch must be between 1 and the {train_size} images; got {batch}")
    if not (math.isfinite(epochs) and epochs > 0):
        raise ValueError(f"epochs must be finite and above 0; got {epochs!r}")
    steps = max(1, round(epochs * train_size / batch))
    rate = rate_per_256 * batch / 256
    norms = [
        f"^{re.escape(f'{name}.{own}' if name else own)}$"
        for name, module in model.named_modules()
        if "Norm" in type(module).__name__
        for own, _ in module.named_parameters(recurse=False)
    ]
    if average is not None:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 1.0
    optimizer = torch.optim.SGD(
        param_groups(model, rate, weight_decay=weight_decay, no_decay=norms),
        rate,
        momentum=0.9,
        nesterov=True,
    )
    if resolution is None:
        resolution = getattr(getattr(model, "config", None), "resolution", 160)
    warmup = round(min(warmup_epochs * train_size / batch, steps / 10))
    return Recipe(
        steps, rate, optimizer, functools.partial(cosine, warmup=warmup),
        functools.partial(_smoothed, label_smoothing),
        None if average is None else AveragedWeights(model, decay=average),
        RandAugment(2, 10.0 if resolution <= 160 else 15.0),
    )  # fmt: skip


def _smoothed(smoothing: float, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model(inputs), targets, label_smoothing=smoothing)
