"""Larger networks from smaller ones: rules that spend a budget on depth, width and resolution."""

from typing import TYPE_CHECKING

from allometry.rooms import open_room

if TYPE_CHECKING:
    from allometry.grow.choice import Choice, choose_scaling
    from allometry.grow.compound import (
        Factors,
        ScaledConfig,
        compound_scale,
        configuration_counts,
        scaling_factors,
    )
    from allometry.grow.resnet_rs import regularized, resnet_rs_rule, scaling_regime

open_room(
    __name__,
    {
        "choice": ["Choice", "choose_scaling"],
        "compound": ["Factors", "ScaledConfig", "compound_scale", "configuration_counts", "scaling_factors"],
        "resnet_rs": ["regularized", "resnet_rs_rule", "scaling_regime"],
    },
)  # fmt: skip

__all__ = [
    "Choice", "Factors", "ScaledConfig", "choose_scaling", "compound_scale", "configuration_counts",
    "regularized", "resnet_rs_rule", "scaling_factors", "scaling_regime",
]  # fmt: skip
