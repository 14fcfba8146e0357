"""Each peer beside us in one process, alternately, as ratios: ``python -m benchmarks --help``.

A file here offers ``cases()``, which returns `Case` objects.  Absolute times depend on the machine and on who
else uses it; ratios of medians, measured in turn, do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Case"]


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes
    ----------
    name : str
        What is compared, as ``room: what``.
    ours, peer : callable
        Called without arguments, in turn.
    peer_name : str
        Library and version or method of the peer.
    target_ratio : float
        Stated ahead: how many times faster than the peer we mean to be.
    ours_scale, peer_scale : float
        One call's time is multiplied by this, where a call is a known share of the work compared.
    rounds : int
        How often each is called after the warm-up.
    note : str
        How the figures are to be read, printed under the table.
    """

    name: str
    ours: Callable[[], Any]
    peer: Callable[[], Any]
    peer_name: str
    target_ratio: float
    ours_scale: float = 1.0
    peer_scale: float = 1.0
    rounds: int = 7
    note: str = ""
