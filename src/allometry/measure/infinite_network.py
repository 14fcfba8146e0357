"""The finite networks whose width `analytic_kernels` takes to infinity."""

import math

import torch
from torch import Tensor, nn

from allometry.measure.infinite_width import Architecture

__all__ = ["TangentNetwork"]


class TangentNetwork(nn.Module):
    """A network of finite width in the neural-tangent parametrization, weights and biases standard normal.

    Parameters
    ----------
    architecture : Architecture
    inputs : tuple of int
        The shape of a sample: (n0,), (C, T) or (C, H, W).
    outputs, width : int
    generator : torch.Generator, optional
        Without it one seeded with 0.

    Examples
    --------
    >>> TangentNetwork(Architecture(depth=2), (3,), 1, 64)(torch.ones(5, 3)).shape
    torch.Size([5, 1])
    """

    def __init__(
        self, architecture: Architecture, inputs: tuple[int, ...], outputs: int, width: int,
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.architecture = a = architecture
        self.activation = a.dual().activation
        generator = generator or torch.Generator().manual_seed(0)
        biased = a.bias_std > 0
        hidden = a.depth - 1
        places = math.prod(inputs[1:])
        layers: list[nn.Module] = []
        for index in range(hidden):
            fan = inputs[0] if index == 0 else width
            if a.kernel_size is None:
                layers.append(nn.Linear(fan, width, bias=biased))
            else:
                kind = nn.Conv1d if len(inputs) == 2 else nn.Conv2d
                layers.append(kind(fan, width, a.kernel_size, padding=a.kernel_size // 2, bias=biased))
        fan = inputs[0] if hidden == 0 else width * (places if a.pooling == "flatten" else 1)
        layers.append(nn.Linear(fan, outputs, bias=biased and a.readout_bias))
        self.layers = nn.ModuleList(layers)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.empty(parameter.shape).normal_(generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """(N, *inputs) to (N, outputs)."""
        a = self.architecture
        for index, layer in enumerate(self.layers):
            last = index == a.depth - 1
            h = x if index == 0 else self.activation(x)
            if last and h.ndim > 2:
                h = h.flatten(2).mean(2) if a.pooling == "average" else h.flatten(1)
            fan_in = math.prod(layer.weight.shape[1:])  # type: ignore[index]
            scale = a.weight_std / math.sqrt(fan_in)
            # The bias's factor is taken out of the sum: W (s/β) h + b, times β.
            beta = a.bias_std if layer.bias is not None else 1.0
            new = beta * layer(h * (scale / beta))
            x = x + new if a.residual and index > 0 and not last else new
        return x
