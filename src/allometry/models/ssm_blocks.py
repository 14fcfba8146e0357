"""Networks of state-space layers: the block that the papers stack, and a classifier of sequences.

Gu, Gupta, Goel and Ré, "On the Parameterization and Initialization of Diagonal State Space Models" (2022,
arXiv:2206.11893).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allometry.models.ssm import S4D, S5
from allometry.models.start import start_

__all__ = ["SSMBlock", "SSMClassifier"]


class SSMBlock(nn.Module):
    """Norm, system, GELU, dropout shared along the length, gated mixing of channels, and the residual.

    Examples
    --------
    >>> SSMBlock(S4D(4, 8))(torch.zeros(2, 30, 4)).shape
    torch.Size([2, 30, 4])
    """

    def __init__(self, system: S4D | S5, dropout: float = 0.0, generator: torch.Generator | None = None):
        super().__init__()
        generator = generator or torch.Generator().manual_seed(0)
        self.norm = nn.LayerNorm(system.d_model)
        self.system = system
        self.dropout = dropout
        self.mix = _linear(system.d_model, 2 * system.d_model, generator)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, H) -> (B, L, H)."""
        y = F.gelu(self.system(self.norm(x)))
        if self.training and self.dropout:
            y = F.dropout1d(y.mT, self.dropout).mT
        return x + F.glu(self.mix(y), -1)

    def initial_state(self, batch: int) -> Tensor:
        """The system's."""
        return self.system.initial_state(batch)

    def recurrence(self, rate: float = 1.0) -> tuple[Tensor, ...]:
        """The system's."""
        return self.system.recurrence(rate)

    def step(
        self, u: Tensor, state: Tensor, recurrence: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
        """One sample (B, H) and the system's state to an output and the next state, without dropout."""
        y, state = self.system.step(self.norm(u), state, recurrence)
        return u + F.glu(self.mix(F.gelu(y)), -1), state


class SSMClassifier(nn.Module):
    """Linear encoder, ``layers`` blocks, mean over the length, linear head: (B, L, D) -> (B, classes).

    Parameters
    ----------
    in_features, classes, d_model, d_state, layers : int
    kind : "s4d" or "s5"
    dropout : float
    generator : torch.Generator, optional
    **settings
        For `S4D` or `S5`.

    Examples
    --------
    >>> SSMClassifier(1, 10, d_model=8, d_state=8)(torch.zeros(2, 64, 1)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, in_features: int, classes: int, *, d_model: int = 32, d_state: int = 32, layers: int = 2,
        kind: str = "s4d", dropout: float = 0.0, generator: torch.Generator | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        if kind not in ("s4d", "s5"):
            raise ValueError(f"kind is 's4d' or 's5'; got {kind!r}")
        generator = generator or torch.Generator().manual_seed(0)
        make = S4D if kind == "s4d" else S5
        self.encoder = _linear(in_features, d_model, generator)
        self.blocks = nn.ModuleList(
            SSMBlock(make(d_model, d_state, generator=generator, **settings), dropout, generator)
            for _ in range(layers)
        )
        self.head = _linear(d_model, classes, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes)."""
        x = self.encoder(x)
        for block in self.blocks:
            x = block(x)
        found: Tensor = self.head(x.mean(1))
        return found


def _linear(fan_in: int, fan_out: int, generator: torch.Generator) -> nn.Linear:
    with torch.device("meta"):
        layer = nn.Linear(fan_in, fan_out)
    return start_(layer, generator)  # type: ignore[return-value]
