"""Depth where a network overfits, width where it does not, and resolution slowly: ResNet-RS's rules.

Bello and others, "Revisiting ResNets: Improved Training and Scaling Strategies", 2021. arXiv:2103.07579,
section 6.

* Long training on little data: more parameters for the same arithmetic overfit, so scale depth.  Short
  training, or plenty of data: scale width.
* Resolution grows more slowly than compound scaling would have it, and stops at some size.  The paper gives
  no exponent; here resolution takes a fifth of the growth of arithmetic until it is at its largest, half of
  EfficientNet's share (two fifths).
* The paper's warning: which dimension is best, judged on small models or after few epochs, does not hold for
  large ones trained long.  So the regime is asked for, or read off losses, never assumed.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from allometry.grow.compound import (
    Factors,
    Scalable,
    ScaledConfig,
    check_factor,
    configuration_counts,
    nearest,
    reach,
    warn_of_a_miss,
)
from allometry.models.resnet_rs import ResNetRSConfig

__all__ = ["regularized", "resnet_rs_rule", "scaling_regime"]

Regime = Literal["overfit", "underfit"]


def scaling_regime(training_loss: float, validation_loss: float, *, gap: float = 0.1) -> Regime:
    """Whether a network overfits, read off its own losses at the end of training.

    Parameters
    ----------
    training_loss, validation_loss : float
        In one unit, without what only training adds (augmentation, label smoothing, dropout).
    gap : float
        "overfit" where the validation loss is above the training loss by more than this share of it.

    Raises
    ------
    ValueError
        Losses that are not finite and positive, or a gap below 0.

    Examples
    --------
    >>> scaling_regime(0.1, 0.5), scaling_regime(0.48, 0.5)
    ('overfit', 'underfit')
    """
    if not all(math.isfinite(one) and one > 0 for one in (training_loss, validation_loss)) or not gap >= 0:
        raise ValueError(
            "losses must be finite and above 0, and gap at least 0; got "
            f"{training_loss!r}, {validation_loss!r} and {gap!r}"
        )
    return "overfit" if validation_loss - training_loss > gap * validation_loss else "underfit"


def regularized(config: ResNetRSConfig) -> ResNetRSConfig:
    """What the release regularizes a network of that size with, where the configuration has less.

    Branches are left out at 0.1 from 200 layers on, and dropout is 0.4 from 320 pixels on, 0.25 below. How
    strong augmentation is, `allometry.train.resnet_rs_recipe_` reads off the resolution.

    Examples
    --------
    >>> regularized(ResNetRSConfig((3, 24, 36, 3), resolution=320)).drop_path
    0.1
    """
    layers = 3 * sum(config.depths) + 2  # three convolutions a block, a stem and a classifier
    return dataclasses.replace(
        config, drop_path=max(config.drop_path, 0.1 if layers >= 200 else 0.0),
        dropout=max(config.dropout, 0.4 if config.resolution >= 320 else 0.25),
    )  # fmt: skip


def resnet_rs_rule(
    config: Scalable, factor: float, regime: Regime, *, max_resolution: int = 320,
    resolution_share: float = 0.2,
) -> ScaledConfig:  # fmt: skip
    """Scale a configuration to ``factor`` times its multiply-adds.

    Parameters
    ----------
    config : ResNetRSConfig, RegNetConfig, EfficientNetConfig, or whatever has ``scaled`` and ``build``
    factor : float
        Of multiply-adds.
    regime : "overfit" or "underfit"
        Depth takes the growth, or width does; `scaling_regime` reads it off losses.
    max_resolution : int
        Pixels a side above which resolution does not grow.
    resolution_share : float
        Of the growth of arithmetic, in logarithms, that goes into resolution until then.

    Returns
    -------
    ScaledConfig
        The nearest to the budget that was found; ``flops`` says what it reaches. A `ResNetRSConfig` that
        grows is `regularized` for its new size, unless nothing regularized it before.

    Raises
    ------
    ValueError
        An unknown regime, a factor that is not positive, or a share outside [0, 1].

    Warns
    -----
    UserWarning
        What is reached is more than a tenth off what was asked for.

    Examples
    --------
    >>> from allometry.models import resnet_rs_config
    >>> resnet_rs_rule(resnet_rs_config(50), 4, "overfit").config.depths
    (10, 14, 20, 10)
    """
    if regime not in ("overfit", "underfit"):
        raise ValueError(f"regime is 'overfit' or 'underfit'; got {regime!r}")
    check_factor(factor)
    if not 0 <= resolution_share <= 1:
        raise ValueError(f"resolution_share is a share, from 0 to 1; got {resolution_share!r}")
    base = configuration_counts(config)
    side = config.input_shape[-1]
    resolution = factor ** (resolution_share / 2)
    if factor > 1:
        resolution = min(resolution, max(1.0, max_resolution / side))

    def scale(asked: float) -> ScaledConfig:
        rest = asked / resolution**2
        if regime == "overfit":
            factors = Factors(depth=rest, width=1.0, group=1.0, resolution=resolution)
        else:
            factors = Factors(depth=1.0, width=math.sqrt(rest), group=math.sqrt(rest), resolution=resolution)
        return reach(config, factors, f"ResNet-RS, {regime}", factor, base)

    # stem and classifier do not grow, and sizes are rounded: what is asked for differs from what is reached
    found = nearest(scale, lambda one: one.flops, factor)
    warn_of_a_miss(config, found)
    larger = found.config
    if factor > 1 and isinstance(larger, ResNetRSConfig) and larger.dropout + larger.drop_path > 0:
        return dataclasses.replace(found, config=regularized(larger))
    return found
