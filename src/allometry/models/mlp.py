"""The multilayer perceptron: the network that theories of width are about.

- One width dial, one depth dial; the readout is the one layer from width to a fixed size.
- Pre-activations h are what is stored between layers: h₁ = W₁ξ, h = W φ(h) (or h + W φ(h) as a residual
  stream), logits = V φ(h), as in "Feature Learning in Infinite-Width Neural Networks" (2011.14522).
- Initial values are torch's default, from a generator that one can name.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allometry.models.start import start_

__all__ = ["MLP"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "identity": lambda x: x,
}


class MLP(nn.Module):
    """A perceptron of ``depth`` hidden layers of ``width`` units, (B, ...) -> (B, ``out_features``).

    Parameters
    ----------
    in_features : int
        Inputs with more than two dimensions are flattened to it.
    out_features : int
    width : int
    depth : int
        Hidden layers, at least 1.
    activation : "relu", "tanh", "gelu" or "identity"
    bias : bool
    residual : bool
        Hidden layers after the first add to a stream instead of replacing it.
    generator : torch.Generator, optional
        Where initial values come from; without it a generator seeded with 0, never the global state.

    Examples
    --------
    >>> MLP(64, 10, width=32, depth=2)(torch.zeros(5, 8, 8)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        width: int = 128,
        depth: int = 2,
        activation: str = "relu",
        bias: bool = True,
        residual: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = {"in_features": in_features, "out_features": out_features, "width": width, "depth": depth}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value!r}")
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation is one of {', '.join(_ACTIVATIONS)}; got {activation!r}")
        self.activation, self.residual = activation, residual
        with torch.device("meta"):
            self.hidden = nn.ModuleList(
                nn.Linear(width if layer else in_features, width, bias=bias) for layer in range(depth)
            )
            self.readout = nn.Linear(width, out_features, bias=bias)
        start_(self, generator)

    def features(self, x: Tensor) -> Tensor:
        """The last hidden activations φ(h), (B, ...) -> (B, width)."""
        activation = _ACTIVATIONS[self.activation]
        if x.ndim > 2:
            x = x.flatten(1)
        first, *others = self.hidden
        h = first(x)
        for layer in others:
            step = layer(activation(h))
            h = h + step if self.residual else step
        return activation(h)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, out_features)."""
        return self.readout(self.features(x))
