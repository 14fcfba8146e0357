"""When a run is lost: a loss that is not finite, or one that has climbed far above where it was.

A lost run is a result with its step, never a missing row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DivergenceRule:
    """Lost when a loss is not finite, or exceeds ``factor`` x reference + ``margin``.

    A negative reference (of a log-density) is left by (factor - 1) x its size, upwards.

    Parameters
    ----------
    factor : float
        Multiple of the reference that is still tolerated.
    over : "start" or "running minimum"
        The reference: the first loss, or the lowest so far.
    margin : float
        Added to the threshold, in the loss's unit.
    patience : int
        How many steps in a row must be above the threshold. Non-finite losses count the same way, because
        the loop skips their updates and the run may recover.

    >>> watch = DivergenceRule(factor=2.0, patience=1).watch()
    >>> [watch.lost(loss) for loss in (5.0, 9.0, 11.0)]
    [False, False, True]
    """

    factor: float = 2.0
    over: Literal["start", "running minimum"] = "start"
    margin: float = 0.0
    patience: int = 3

    def __post_init__(self) -> None:
        if self.over not in ("start", "running minimum"):
            raise ValueError(f"over must be 'start' or 'running minimum', got {self.over!r}")
        if self.patience < 1:
            raise ValueError(f"patience must be at least one step, got {self.patience}")

    def watch(self) -> Watch:
        """The rule, applied to one run."""
        return Watch(self)


@dataclass
class Watch:
    """The state of one run under a rule; JSON-ready through ``vars``."""

    rule: DivergenceRule
    reference: float | None = None
    bad: int = 0

    def lost(self, loss: float) -> bool:
        """Tell the next loss; True once the run is lost."""
        finite = math.isfinite(loss)
        if finite and (
            self.reference is None or (self.rule.over == "running minimum" and loss < self.reference)
        ):
            self.reference = loss
        threshold = math.inf
        if self.reference is not None:
            factor = self.rule.factor if self.reference >= 0 else 2.0 - self.rule.factor
            threshold = factor * self.reference + self.rule.margin
        self.bad = 0 if finite and loss <= threshold else self.bad + 1
        return self.bad >= self.rule.patience
