"""Probes of a model: what it costs, how its activations grow with width, what grows before a run is lost."""

from typing import TYPE_CHECKING

from allometry.rooms import open_room

if TYPE_CHECKING:
    from allometry.measure.attention_logits import LogitStatistics, attention_logit_statistics
    from allometry.measure.capture import Capture
    from allometry.measure.complexity import (
        Complexity,
        Parameters,
        complexity,
        count_parameters,
        flops_per_token,
        mfu,
    )
    from allometry.measure.coordinates import CoordinateCheck, coordinate_check
    from allometry.measure.monitor import Monitor, Probe, spikes
    from allometry.measure.pass_rate import PassCounts, pass_at_k
    from allometry.measure.scale_invariance import EffectiveStep, scale_invariance
    from allometry.measure.sensitivity import (
        Onset,
        Sensitivity,
        forecast_onset,
        learning_rate_sensitivity,
    )
    from allometry.measure.weight_motion import WeightDistance, distance_law

open_room(
    __name__,
    {
        "attention_logits": ["LogitStatistics", "attention_logit_statistics"],
        "capture": ["Capture"],
        "complexity": ["Complexity", "Parameters", "complexity", "count_parameters", "flops_per_token",
            "mfu"],
        "coordinates": ["CoordinateCheck", "coordinate_check"],
        "monitor": ["Monitor", "Probe", "spikes"],
        "pass_rate": ["PassCounts", "pass_at_k"],
        "scale_invariance": ["EffectiveStep", "scale_invariance"],
        "sensitivity": ["Onset", "Sensitivity", "forecast_onset", "learning_rate_sensitivity"],
        "weight_motion": ["WeightDistance", "distance_law"],
    },
)  # fmt: skip

__all__ = [
    "Capture", "Complexity", "CoordinateCheck", "EffectiveStep", "LogitStatistics", "Monitor", "Onset",
    "Parameters", "PassCounts", "Probe", "Sensitivity", "WeightDistance", "attention_logit_statistics",
    "complexity", "coordinate_check", "count_parameters", "distance_law", "flops_per_token",
    "forecast_onset", "learning_rate_sensitivity", "mfu", "pass_at_k", "scale_invariance", "spikes",
]  # fmt: skip
