"""What a run has cost: steps, tokens, FLOPs, seconds."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class Meter:
    """Running totals; branches count as what they cost, shared trunks once.

    >>> meter = Meter(tokens_per_step=1024, flops_per_token=6.0); meter.add(seconds=0.5)
    >>> meter.totals()["flops"]
    6144.0
    """

    tokens_per_step: int = 0
    flops_per_token: float = 0.0
    steps: int = 0
    seconds: float = 0.0

    def add(self, *, seconds: float, steps: int = 1) -> None:
        """Count finished steps."""
        self.steps += steps
        self.seconds += seconds

    @property
    def tokens(self) -> int:
        """Tokens read."""
        return self.steps * self.tokens_per_step

    def totals(self) -> dict[str, float]:
        """Steps, tokens, training FLOPs and seconds so far."""
        return {
            "steps": self.steps,
            "tokens": self.tokens,
            "flops": self.tokens * self.flops_per_token,
            "seconds": self.seconds,
        }

    def state_dict(self) -> dict[str, float]:
        """All fields, JSON-ready."""
        return asdict(self)
