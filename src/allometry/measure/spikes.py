"""Jumps of the loss: what stands out of the steps before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray


def spikes(
    losses: Sequence[float] | NDArray[np.float64],
    rule: Literal["mad", "ratio"] = "mad",
    k: float | None = None,
    *,
    window: int = 50,
    least: int = 10,
) -> NDArray[np.intp]:
    """Steps at which the loss jumps above what the steps before it lead one to expect.

    Parameters
    ----------
    losses : sequence (n,)
        One a step. What is not finite is a spike, and enters no median.
    rule : "mad" or "ratio"
        Above median + k x median absolute deviation, or above k x median, of the ``window`` losses before.
    k : float, optional
        5 for "mad", 1.5 for "ratio".
    window : int
        Losses fall, so the past that is compared with is short. A steep fall inside a window widens its
        deviation; shorten it there.
    least : int
        Finite losses that must lie in the window before one can be judged.

    Returns
    -------
    array of int
        Indices into ``losses``, ascending.

    Raises
    ------
    ValueError
        For another rule, a k that is not positive, or windows without room.

    >>> spikes([2.0 + 0.01 * (i % 3) for i in range(20)] + [2.6, 2.0, float("nan")]).tolist()
    [20, 22]
    """
    if rule not in ("mad", "ratio"):
        raise ValueError(f"rule must be 'mad' or 'ratio', got {rule!r}")
    if k is None:
        k = 5.0 if rule == "mad" else 1.5
    if not k > 0:
        raise ValueError(f"k must be positive, got {k}")
    if not 1 <= least <= window:
        raise ValueError(f"a window of {window} losses must have room for least={least}, at least 1")
    values = np.asarray(losses, dtype=float)
    if values.ndim != 1:
        raise ValueError(f"losses must be one sequence, got shape {values.shape}")
    found = []
    for i, loss in enumerate(values):
        past = values[max(0, i - window) : i]
        past = past[np.isfinite(past)]
        if not np.isfinite(loss):
            found.append(i)
        elif len(past) >= least:
            median = float(np.median(past))
            allowed = median + k * float(np.median(np.abs(past - median))) if rule == "mad" else k * median
            if loss > allowed + 1e-12 * abs(median):
                found.append(i)
    return np.array(found, dtype=np.intp)
