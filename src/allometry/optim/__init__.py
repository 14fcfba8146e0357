"""Optimizers, schedules, parameter groups, averages of weights."""

from typing import TYPE_CHECKING

from allometry.rooms import open_room

if TYPE_CHECKING:
    from allometry.optim.adamw import AdamWIndependent
    from allometry.optim.ema import AveragedWeights
    from allometry.optim.groups import Role, param_groups
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

open_room(
    __name__,
    {
        "adamw": ["AdamWIndependent"],
        "ema": ["AveragedWeights"],
        "groups": ["Role", "param_groups"],
        "schedules": ["Schedule", "WSD", "as_scheduler", "constant", "cosine", "cyclic", "linear",
            "two_step", "wsd"],
    },
)  # fmt: skip

__all__ = [
    "WSD", "AdamWIndependent", "AveragedWeights", "Role", "Schedule", "as_scheduler", "constant", "cosine",
    "cyclic", "linear", "param_groups", "two_step", "wsd",
]  # fmt: skip
