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
    from allometry.measure.curvature import CurvatureOperator, StackedCurvature, draw_batches
    from allometry.measure.derivatives import ggn_vp, hvp, per_example_gradients, squared_gradients
    from allometry.measure.dual_activation import dual_activation
    from allometry.measure.gradient_noise import GradientNoiseScale, NoiseScale, gradient_noise_scale
    from allometry.measure.hessian_noise import (
        BatchEigenvalues,
        HessianNoise,
        batch_eigenvalue_law,
        batch_eigenvalues,
        hessian_noise,
    )
    from allometry.measure.infinite_network import TangentNetwork
    from allometry.measure.infinite_width import Architecture, InfiniteKernels, analytic_kernels
    from allometry.measure.kernel_dynamics import (
        KernelDrift,
        KernelDynamics,
        Spread,
        follow_training,
        kernel_drift,
    )
    from allometry.measure.kernel_estimators import NTKClassifier, NTKRegressor
    from allometry.measure.lanczos import (
        Eigenpairs,
        Lanczos,
        SpectralDensity,
        lanczos,
        spectral_density,
        top_eigenvalues,
    )
    from allometry.measure.linearized import linearize
    from allometry.measure.monitor import Monitor, Probe
    from allometry.measure.objective import Objective
    from allometry.measure.pass_rate import PassCounts, pass_at_k
    from allometry.measure.random_matrix import (
        marchenko_pastur_density,
        semicircle_density,
        wigner_outlier,
        wishart_outlier,
    )
    from allometry.measure.scale_invariance import EffectiveStep, scale_invariance
    from allometry.measure.sensitivity import (
        Onset,
        Sensitivity,
        forecast_onset,
        learning_rate_sensitivity,
    )
    from allometry.measure.spikes import spikes
    from allometry.measure.stability import plot_stability, stability_forecast, summarise
    from allometry.measure.state_space import (
        ResponseGap,
        fourier_attack,
        memory_curve,
        response_gap,
        spike_frequencies,
        transfer,
    )
    from allometry.measure.tangent_kernel import empirical_kernel
    from allometry.measure.tangent_products import SketchedKernel, kernel_operator, sketched_kernel
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
        "curvature": ["CurvatureOperator", "StackedCurvature", "draw_batches"],
        "derivatives": ["ggn_vp", "hvp", "per_example_gradients", "squared_gradients"],
        "gradient_noise": ["GradientNoiseScale", "NoiseScale", "gradient_noise_scale"],
        "hessian_noise": ["BatchEigenvalues", "HessianNoise", "batch_eigenvalue_law", "batch_eigenvalues",
            "hessian_noise"],
        "lanczos": ["Eigenpairs", "Lanczos", "SpectralDensity", "lanczos", "spectral_density",
            "top_eigenvalues"],
        "dual_activation": ["dual_activation"],
        "infinite_network": ["TangentNetwork"],
        "infinite_width": ["Architecture", "InfiniteKernels", "analytic_kernels"],
        "kernel_dynamics": ["KernelDrift", "KernelDynamics", "Spread", "follow_training", "kernel_drift"],
        "kernel_estimators": ["NTKClassifier", "NTKRegressor"],
        "linearized": ["linearize"],
        "monitor": ["Monitor", "Probe"],
        "objective": ["Objective"],
        "pass_rate": ["PassCounts", "pass_at_k"],
        "random_matrix": ["marchenko_pastur_density", "semicircle_density", "wigner_outlier",
            "wishart_outlier"],
        "scale_invariance": ["EffectiveStep", "scale_invariance"],
        "sensitivity": ["Onset", "Sensitivity", "forecast_onset", "learning_rate_sensitivity"],
        "spikes": ["spikes"],
        "stability": ["plot_stability", "stability_forecast", "summarise"],
        "state_space": ["ResponseGap", "fourier_attack", "memory_curve",
            "response_gap", "spike_frequencies", "transfer"],
        "tangent_kernel": ["empirical_kernel"],
        "tangent_products": ["SketchedKernel", "kernel_operator", "sketched_kernel"],
        "weight_motion": ["WeightDistance", "distance_law"],
    },
)  # fmt: skip

__all__ = [
    "Architecture", "BatchEigenvalues", "Capture", "Complexity", "ConvolutionCounts", "CoordinateCheck",
    "CurvatureOperator", "EffectiveStep", "Eigenpairs", "GradientNoiseScale", "HessianNoise",
    "InfiniteKernels", "KernelDrift", "KernelDynamics", "Lanczos", "LogitStatistics", "Monitor",
    "NTKClassifier", "NTKRegressor", "NoiseScale", "Objective", "Onset", "Parameters", "PassCounts", "Probe",
    "ResponseGap", "RuntimeLaw", "Sensitivity", "SketchedKernel", "SpectralDensity", "Spread",
    "StackedCurvature", "TangentNetwork", "WeightDistance", "analytic_kernels", "attention_logit_statistics",
    "batch_eigenvalue_law", "batch_eigenvalues", "complexity", "convolution_counts", "coordinate_check",
    "count_parameters", "distance_law", "draw_batches", "dual_activation", "empirical_kernel",
    "flops_per_token", "follow_training", "forecast_onset", "fourier_attack", "ggn_vp",
    "gradient_noise_scale", "hessian_noise", "hvp", "kernel_drift", "kernel_operator", "lanczos",
    "learning_rate_sensitivity", "linearize", "marchenko_pastur_density", "memory_curve", "mfu",
    "model_call", "pass_at_k", "per_example_gradients", "plot_stability", "response_gap", "runtime",
    "runtime_law", "scale_invariance", "semicircle_density", "sketched_kernel", "spectral_density",
    "spike_frequencies", "spikes", "squared_gradients", "stability_forecast", "summarise", "top_eigenvalues",
    "transfer", "wigner_outlier", "wishart_outlier",
]  # fmt: skip
