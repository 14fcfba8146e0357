"""Optimizers, schedules, parameter groups, averages of weights."""

from typing import TYPE_CHECKING

from allometry.rooms import open_room

if TYPE_CHECKING:
    from allometry.optim.adamp import SGDP, AdamP
    from allometry.optim.adamw import AdamWIndependent
    from allometry.optim.add_z_loss import add_z_loss_
    from allometry.optim.batch_regime import adapt_arguments_to_batch, adapt_loop_to_batch_
    from allometry.optim.batch_scaling import CurvatureSchedule, max_learning_rate, rescale
    from allometry.optim.decays import rewarmed, schedule_rates, wsd_decay
    from allometry.optim.ema import AveragedWeights
    from allometry.optim.gradient_norm import GradientRMSNorm
    from allometry.optim.groups import Role, param_groups
    from allometry.optim.large_batch import BatchAdaptation, GradientNoise, adapt_to_batch
    from allometry.optim.rules import WidthRule, batch_rule, decay_rule, learning_rate_rule
    from allometry.optim.schedules import (
        WSD,
        Schedule,
        as_scheduler,
        constant,
        cosine,
        cyclic,
        linear,
        two_step,
        wsd,
    )
    from allometry.optim.z_loss import CrossEntropyWithZ, cross_entropy_with_z, z_loss

open_room(
    __name__,
    {
        "adamp": ["AdamP", "SGDP"],
        "adamw": ["AdamWIndependent"],
        "add_z_loss": ["add_z_loss_"],
        "batch_regime": ["adapt_arguments_to_batch", "adapt_loop_to_batch_"],
        "batch_scaling": ["CurvatureSchedule", "max_learning_rate", "rescale"],
        "decays": ["rewarmed", "schedule_rates", "wsd_decay"],
        "ema": ["AveragedWeights"],
        "gradient_norm": ["GradientRMSNorm"],
        "groups": ["Role", "param_groups"],
        "large_batch": ["BatchAdaptation", "GradientNoise", "adapt_to_batch"],
        "rules": ["WidthRule", "batch_rule", "decay_rule", "learning_rate_rule"],
        "schedules": ["Schedule", "WSD", "as_scheduler", "constant", "cosine", "cyclic", "linear",
            "two_step", "wsd"],
        "z_loss": ["CrossEntropyWithZ", "cross_entropy_with_z", "z_loss"],
    },
)  # fmt: skip

__all__ = [
    "SGDP", "WSD", "AdamP", "AdamWIndependent", "AveragedWeights", "BatchAdaptation", "CrossEntropyWithZ",
    "CurvatureSchedule", "GradientNoise", "GradientRMSNorm", "Role", "Schedule", "WidthRule",
    "adapt_arguments_to_batch", "adapt_loop_to_batch_", "adapt_to_batch", "add_z_loss_", "as_scheduler",
    "batch_rule", "constant", "cosine", "cross_entropy_with_z", "cyclic", "decay_rule",
    "learning_rate_rule", "linear", "max_learning_rate", "param_groups", "rescale", "rewarmed",
    "schedule_rates", "two_step", "wsd", "wsd_decay", "z_loss",
]  # fmt: skip
