"""Reference model families with one size dial, and ways to choose and replace modules of any model."""

from typing import TYPE_CHECKING

from allometry.rooms import open_room

if TYPE_CHECKING:
    from allometry.models.attention import KVCache, attention, rotary
    from allometry.models.convnet import ConvNet
    from allometry.models.efficientnet import EfficientNetConfig, efficientnet
    from allometry.models.gpt import GPT, GPTConfig
    from allometry.models.hippo import (
        Diagonal,
        hippo_legs,
        inv,
        legs,
        legs_transfer,
        lin,
        random_poles,
        real_poles,
    )
    from allometry.models.kernel_of_poles import discretize, vandermonde
    from allometry.models.mlp import MLP
    from allometry.models.multihead import OpenMultiheadAttention, open_attention_
    from allometry.models.normalization import (
        GhostBatchNorm,
        GhostBatchNorm1d,
        GhostBatchNorm2d,
        GhostBatchNorm3d,
        convert_ghost_bn_,
    )
    from allometry.models.qk_norm import NormalizedHeads, add_qk_norm_
    from allometry.models.regnet import RegNetConfig, regnet, regnet_config, resnet_config
    from allometry.models.resnet_rs import ResNetRSConfig, resnet_rs, resnet_rs_config
    from allometry.models.series_forecast import forecast_horizon, forecast_series
    from allometry.models.ssm import S4D, S5
    from allometry.models.ssm_blocks import SSMBlock, SSMClassifier
    from allometry.models.timeseries import PatchForecaster, stack_parameters

open_room(
    __name__,
    {
        "attention": ["KVCache", "attention", "rotary"],
        "convnet": ["ConvNet"],
        "efficientnet": ["EfficientNetConfig", "efficientnet"],
        "gpt": ["GPT", "GPTConfig"],
        "hippo": ["Diagonal", "hippo_legs", "inv", "legs", "legs_transfer", "lin", "random_poles",
            "real_poles"],
        "kernel_of_poles": ["discretize", "vandermonde"],
        "mlp": ["MLP"],
        "multihead": ["OpenMultiheadAttention", "open_attention_"],
        "normalization": ["GhostBatchNorm", "GhostBatchNorm1d", "GhostBatchNorm2d", "GhostBatchNorm3d",
            "convert_ghost_bn_"],
        "qk_norm": ["NormalizedHeads", "add_qk_norm_"],
        "regnet": ["RegNetConfig", "regnet", "regnet_config", "resnet_config"],
        "resnet_rs": ["ResNetRSConfig", "resnet_rs", "resnet_rs_config"],
        "series_forecast": ["forecast_horizon", "forecast_series"],
        "ssm": ["S4D", "S5"], "ssm_blocks": ["SSMBlock", "SSMClassifier"],
        "timeseries": ["PatchForecaster", "stack_parameters"],
    },
)  # fmt: skip

__all__ = [
    "GPT", "MLP", "S4D", "S5", "ConvNet", "Diagonal", "EfficientNetConfig", "GPTConfig",
    "GhostBatchNorm", "GhostBatchNorm1d", "GhostBatchNorm2d", "GhostBatchNorm3d", "KVCache",
    "NormalizedHeads", "OpenMultiheadAttention", "PatchForecaster", "RegNetConfig", "ResNetRSConfig",
    "SSMBlock", "SSMClassifier", "add_qk_norm_", "attention", "convert_ghost_bn_", "discretize",
    "efficientnet", "forecast_horizon", "forecast_series", "hippo_legs", "inv", "legs", "legs_transfer",
    "lin", "open_attention_", "random_poles", "real_poles", "regnet", "regnet_config", "resnet_config",
    "resnet_rs", "resnet_rs_config", "rotary", "stack_parameters", "vandermonde",
]  # fmt: skip
