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
    from allometry.measure.convolution_counts import ConvolutionCounts, convolution_counts
    from allometry.measure.coordinates import CoordinateCheck, coordinate_check
    from allometry.measure.cost import RuntimeLaw, model_call, runtime, runtime_law
    from allometry.measure.monitor import Monitor, Probe, spikes
    from allometry.measure.pass_rate import PassCounts, pass_at_k
    from allometry.measure.scale_invariance import EffectiveStep, scale_invariance
    from allometry.measure.sensitivity import (
        Onset,
        Sensitivity,
        forecast_onset,
        learning_rate_sensitivity,
    )
    from allometry.measure.state_space import (
        ResponseGap,
        fourier_attack,
        memory_curve,
        response_gap,
        spike_frequencies,
        transfer,
    )
    from allometry.measure.weight_motion import WeightDistance, distance_law

open_room(
    __name__,
    {
        "attention_logits": ["LogitStatistics", "attention_logit_statistics"],
        "capture": ["Capture"],
        "complexity": ["Complexity", "Parameters", "complexity", "count_parameters", "flops_per_token",
            "mfu"],
        "convolution_counts": ["ConvolutionCounts", "convolution_counts"],
        "coordinates": ["CoordinateCheck", "coordinate_check"],
        "cost": ["RuntimeLaw", "model_call", "runtime", "runtime_law"],
        "monitor": ["Monitor", "Probe", "spikes"],
        "pass_rate": ["PassCounts", "pass_at_k"],
        "scale_invariance": ["EffectiveStep", "scale_invariance"],
        "sensitivity": ["Onset", "Sensitivity", "forecast_onset", "learning_rate_sensitivity"],
        "state_space": ["ResponseGap", "fourier_attack", "memory_curve",
            "response_gap", "spike_frequencies", "transfer"],
        "weight_motion": ["WeightDistance", "distance_law"],
    },
)  # fmt: skip

__all__ = [
    "Capture", "Complexity", "ConvolutionCounts", "CoordinateCheck", "EffectiveStep", "LogitStatistics",
    "Monitor", "Onset", "Parameters", "PassCounts", "Probe", "ResponseGap", "RuntimeLaw", "Sensitivity",
    "WeightDistance", "attention_logit_statistics", "complexity", "convolution_counts",
    "coordinate_check", "count_parameters", "distance_law", "flops_per_token", "forecast_onset",
    "fourier_attack", "learning_rate_sensitivity", "memory_curve", "mfu", "model_call", "pass_at_k",
    "response_gap", "runtime", "runtime_law", "scale_invariance", "spike_frequencies", "spikes",
    "transfer",
]  # fmt: skip
