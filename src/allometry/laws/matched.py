"""A base and several arms laid out as one array: which scales can be used, and which run is whose twin.

A run that diverged is given the worst finite loss of its cell, a bound from below that the caller must treat
as one; a scale with fewer than three runs is left out, with a sentence that says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from allometry.laws.curve import Curve
from allometry.laws.resampled import Batch

__all__ = ["FEWEST", "Usable", "check_pairing", "match", "usable"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
FEWEST = 3  # runs a scale, and scales a curve
_SAME = 1e-6  # relative difference below which two scales are one


@dataclass(frozen=True)
class Usable:
    """What of a curve can be compared.

    Attributes
    ----------
    curve : Curve
    keep : bool array (m,)
        Scales with three runs or more, at least one of them finite.
    log_y : array (m, S)
        Log losses; a diverged run has the worst finite one of its scale, other absences are not a number.
    diverged : int array (m,)
        How many runs of a scale diverged.
    wholly : bool array (m,)
        Scales with three runs or more, all of which diverged.
    reasons : list of str
    """

    curve: Curve
    keep: Mask
    log_y: Array
    diverged: NDArray[np.intp]
    wholly: Mask
    reasons: list[str]

    @property
    def log_x(self) -> Array:
        """Log scales that are kept."""
        return np.log(self.curve.scales[self.keep])


def usable(curve: Curve, what: str) -> Usable:
    """Sort the scales of a curve; ``what`` it is called in sentences."""
    made = (~curve.missing).sum(axis=1)
    finite = curve.observed.sum(axis=1)
    short = made < FEWEST
    reasons = []
    if short.any():
        places = ", ".join(f"{x:.3g}" for x in curve.scales[short])
        most = int(made[short].max())
        number = "no run" if most == 0 else "one run" if most == 1 else "two runs"
        fewer = "at most " if short.sum() > 1 and most else ""
        reasons.append(
            f"the {what} has {fewer}{number} at scale {places}, left out: three a scale are needed"
        )
    keep = ~short & (finite > 0)
    log_y = np.where(curve.observed, curve.log_y, np.nan)
    worst = np.where(curve.observed, curve.log_y, -np.inf).max(axis=1, keepdims=True)
    log_y = np.where(curve.censored & (finite > 0)[:, None], worst, log_y)
    diverged = curve.censored.sum(axis=1)
    return Usable(curve, keep, log_y, diverged, ~short & (finite == 0), reasons)


def check_pairing(base: Curve, arm: Curve) -> None:
    """Refuse arms whose runs have no twins.

    Raises
    ------
    ValueError
        Fewer than two seeds in common.
    """
    common = set(base.seeds) & set(arm.seeds)
    if len(common) < 2 <= min(len(base.seeds), len(arm.seeds)):
        raise ValueError(
            f"base and arm have {len(common)} seed labels in common ({base.seeds} and {arm.seeds}); pass "
            "paired=False to compare runs that share nothing"
        )


def _twins(base: Usable, arm: Usable) -> NDArray[np.intp]:
    """Which kept row of the base an arm's row (k,) belongs to, or -1: of equal scale, or equal rank."""
    near = np.abs(base.curve.scales[None] / arm.curve.scales[:, None] - 1)
    if len(arm.curve) == len(base.curve) and not (near < _SAME).any():
        row = np.arange(len(arm.curve))  # a step has another price; the runs are the same ones
    else:
        row = np.where(near.min(axis=1) < _SAME, near.argmin(axis=1), -1)
    kept = np.where(base.keep, np.cumsum(base.keep) - 1, -1)
    return np.asarray(np.where(row >= 0, kept[row], -1))


def match(base: Usable, arms: Sequence[Usable], at: Sequence[Array], *, paired: bool) -> Batch:
    """One pair for every arm.

    Parameters
    ----------
    base : Usable
    arms : sequence of Usable
        Each with at least one scale that can be used.
    at : sequence of array (q,)
        Log scales of each arm at which it is wanted, those of its curve first; shorter ones are filled with
        their last.
    paired : bool
        Rows and columns of an arm become those of its twins in the base; rows without a twin come after them.
    """
    m, count = int(base.keep.sum()), len(arms)
    twins = [_twins(base, arm)[arm.keep] if paired else np.full(arm.keep.sum(), -1) for arm in arms]
    labels = list(base.curve.seeds) if paired else []
    for arm in arms:
        seeds = arm.curve.seeds if paired else range(arm.log_y.shape[1])
        labels += [label for label in seeds if label not in labels]
    rows = m + max(int((twin < 0).sum()) for twin in twins)
    own = base.log_y[base.keep]
    ground = np.full((m, max(len(labels), own.shape[1])), np.nan)
    ground[:, : own.shape[1]] = own
    losses = np.full((count, rows, len(labels)), np.nan)
    places = np.empty((count, rows))
    for i, (arm, twin) in enumerate(zip(arms, twins, strict=True)):
        beyond = max(float(base.log_x[-1]), float(arm.log_x[-1]))
        places[i] = beyond + 1.0 + np.arange(rows)  # of empty rows: anywhere, but each its own
        index = np.where(twin >= 0, twin, m + np.cumsum(twin < 0) - 1)
        seeds = arm.curve.seeds if paired else range(arm.log_y.shape[1])
        column = np.array([labels.index(label) for label in seeds], dtype=np.intp)
        losses[i][np.ix_(index, column)] = arm.log_y[arm.keep]
        places[i, index] = arm.log_x
    longest = max(map(len, at))
    wanted = np.stack([np.pad(one, (0, longest - len(one)), mode="edge") for one in at])
    measured = np.stack([np.pad(arm.keep, (0, longest - len(arm.keep))) for arm in arms])
    smooth = np.array([not arm.diverged[arm.keep].any() for arm in arms])
    return Batch(
        base.log_x, places, np.broadcast_to(ground, (count, *ground.shape)), losses, smooth, wanted, measured
    )
