"""Scales at which runs diverged: judged by signs, since no average can hold a run that is worse than any.

At such a scale each pair says which arm is better: one whose partner diverged is better, two that diverged
are a tie.  The probability that the arm is the better one in most pairs is, under a uniform prior, that of a
beta distribution; it is one minus the mid-p value of the sign test.  Neighbouring scales are judged together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from allometry.laws.pairing import Pairs

__all__ = ["Stretch", "stretches"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Stretch:
    """Neighbouring scales with diverged runs.

    Attributes
    ----------
    first, last : float
        Log of its smallest and largest scale.
    low, high : float
        Where it speaks instead of the fitted laws: out to infinity if no larger or smaller scale is whole.
    better, worse : int
        Pairs in which the arm is better, and worse.
    decisive : bool
        Whether a run diverged whose partner did not.
    """

    first: float
    last: float
    low: float
    high: float
    better: int
    worse: int
    decisive: bool

    @property
    def probability(self) -> float:
        """That the arm is better in most pairs."""
        from scipy.special import betainc

        return float(betainc(1 + self.worse, 1 + self.better, 0.5))


def stretches(both: Pairs, notes: list[str]) -> tuple[Stretch, ...]:
    """All stretches of two arms, in order of scale; each leaves a sentence in ``notes``."""
    scales, signs, decisive, broken = _paired(both) if both.paired else _alone(both)
    found = []
    edges = np.nonzero(np.diff(np.concatenate([[0], broken.astype(int), [0]])))[0].reshape(-1, 2)
    whole = np.nonzero(~broken)[0]
    for begin, end in edges:
        first, last = scales[begin], scales[end - 1]
        low = -np.inf if len(whole) and begin < whole[0] else first
        high = np.inf if not len(whole) or end > whole[-1] else last
        low = -np.inf if not len(whole) else low
        inside = np.concatenate(signs[begin:end])
        stretch = Stretch(
            float(first), float(last), float(low), float(high), int((inside > 0).sum()),
            int((inside < 0).sum()), bool(decisive[begin:end].any()),
        )  # fmt: skip
        found.append(stretch)
        notes.append(_describe(both, np.exp(first), np.exp(last)))
    return tuple(found)


def _paired(both: Pairs) -> tuple[Array, list[Array], Mask, Mask]:
    base, arm = both.curves
    broken = np.asarray((base.censored | arm.censored).any(axis=1))
    # inf - inf is a tie; a partner that was never made is taken to be as good as any finite run
    with np.errstate(invalid="ignore"):
        sign = np.sign(np.where(base.censored & arm.censored, 0.0, base.log_y - arm.log_y))
    sign = np.where(base.missing & arm.censored, -1.0, np.where(arm.missing & base.censored, 1.0, sign))
    sign = np.nan_to_num(sign)
    decisive = np.asarray((base.censored != arm.censored).any(axis=1))
    return np.log(base.scales), list(sign), decisive, broken


def _alone(both: Pairs) -> tuple[Array, list[Array], Mask, Mask]:
    """Without pairs a run is held against the mean curve of the other arm."""
    scales = np.log(both.scales)
    signs, decisive, broken = [], [], []
    for u in scales:
        here: list[Array] = [np.empty(0)]
        shares = []
        for which, sense in ((0, 1.0), (1, -1.0)):
            curve, other = both.curves[which], 1 - which
            row = np.nonzero(np.abs(np.log(curve.scales) - u) < 1e-6)[0]
            if not len(row) or not curve.censored[row[0]].any():
                shares.append(0.0)
                continue
            made = ~curve.missing[row[0]]
            against = (
                np.interp(u, both.u[other].mean(axis=1), both.means[other]) if len(both.u[other]) else np.nan
            )
            here.append(sense * np.nan_to_num(np.sign(curve.log_y[row[0]][made] - against)))
            shares.append(float(curve.censored[row[0]][made].mean()))
        signs.append(np.concatenate(here))
        broken.append(len(here) > 1)
        decisive.append(shares[0] != shares[1])
    return scales, signs, np.array(decisive), np.array(broken)


def _describe(both: Pairs, first: float, last: float) -> str:
    counts = []
    for curve, role in zip(both.curves, ("base", "arm"), strict=True):
        row = (curve.scales >= first * (1 - 1e-9)) & (curve.scales <= last * (1 + 1e-9))
        counts.append(
            f"{int(curve.censored[row].sum())} of {int((~curve.missing[row]).sum())} runs of "
            f"{curve.name or 'the ' + role}"
        )
    where = f"at {first:.3g}" if np.isclose(first, last) else f"from {first:.3g} to {last:.3g}"
    return f"{where}, {counts[1]} and {counts[0]} diverged: judged by signs and left out of the laws"
