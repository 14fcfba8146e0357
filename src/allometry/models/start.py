"""Initial values as torch draws them by default, from a generator that one can name.

``nn.Linear`` and kin draw from the global generator when they are built. The reference families are built on
the meta device, where nothing is drawn, and started here: weights and biases uniform on ±1/√fan_in, norms at
one and zero. One seed means one model on every device.
"""

import math

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

__all__ = ["start_"]


@torch.no_grad()
def start_(model: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Give a model that was built on the meta device its place and its initial values.

    Parameters
    ----------
    model : nn.Module
        Of linear layers, convolutions and norms.
    generator : torch.Generator, optional
        On the CPU; without it a generator seeded with 0, never the global state.

    Returns
    -------
    nn.Module
        The same model, on torch's default device; on the meta device still, where that is the default.

    Examples
    --------
    >>> with torch.device("meta"):
    ...     layer = nn.Linear(4, 1000)
    >>> bool(start_(layer).weight.abs().max() <= 1 / 2)
    True
    """
    where = torch.get_default_device()
    if where.type == "meta":
        return model
    model.to_empty(device=where)
    generator = generator or torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Linear | _ConvNd):
            bound = 1 / math.sqrt(module.weight[0].numel())
            for parameter in (module.weight, module.bias):
                if parameter is not None:
                    drawn = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                    parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))
        elif isinstance(module, _NormBase | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
            module.reset_parameters()
        elif any(True for _ in module.parameters(recurse=False)):
            raise TypeError(f"no initial values are known for a {type(module).__name__}")
    return model
