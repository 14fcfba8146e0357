"""Two curves side by side: which runs are pairs, which scales are measured in full, and how to resample them.

Runs with one seed label share their data order, so their difference is less noisy than either; every
comparison keeps them together.  Where arms have different scales, or no two seeds in common, there are no
pairs, and only laws fitted to each arm can be compared.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from allometry.laws.curve import Curve

__all__ = ["Pairs", "pair", "resample", "resample_alone"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
_SAME = 1e-6  # relative difference below which two scales are one


@dataclass(frozen=True)
class Pairs:
    """Base and arm, index 0 and 1, made ready for comparison.

    Attributes
    ----------
    curves : (Curve, Curve)
        All runs that take part, diverged ones among them; with common seeds in one order if ``paired``.
    paired : bool
    u, log_y : pair of array (m, S)
        Log scale and log loss at the scales measured in full: without a diverged run.
    observed : pair of boolean array (m, S)
        Which of them count: with pairs, those that both arms have.
    """

    curves: tuple[Curve, Curve]
    paired: bool
    u: tuple[Array, Array]
    log_y: tuple[Array, Array]
    observed: tuple[Mask, Mask]

    @property
    def full(self) -> int:
        """Number of scales measured in full, by the arm that has fewer."""
        return min(len(u) for u in self.u)

    @property
    def repeated(self) -> bool:
        """Whether some scale has two seeds, in each arm, so that the noise is known."""
        return all(bool((mask.sum(axis=1) > 1).any()) for mask in self.observed)

    @property
    def means(self) -> tuple[Array, Array]:
        """Mean log loss (m,) of each arm."""
        base, arm = (_mean(y, mask) for y, mask in zip(self.log_y, self.observed, strict=True))
        return base, arm

    @property
    def range(self) -> tuple[float, float]:
        """Log of the smallest and largest scale at which both arms were measured in full."""
        return max(float(u.mean(axis=1)[0]) for u in self.u), min(float(u.mean(axis=1)[-1]) for u in self.u)

    @property
    def scales(self) -> Array:
        """Scales of the comparison: all of them, or the stretch that both arms cover."""
        base, arm = (curve.scales for curve in self.curves)
        if self.paired:
            return base
        both = np.union1d(base, arm)
        return both[
            (both >= max(base[0], arm[0]) * (1 - _SAME)) & (both <= min(base[-1], arm[-1]) * (1 + _SAME))
        ]

    def by_scale(self) -> tuple[Array, Array, Array, Array]:
        """Log scale, mean difference, its standard error and degrees of freedom, each (m,)."""
        if self.paired:
            difference = self.log_y[0] - self.log_y[1]
            count, mean, variance = _moments(difference, self.observed[0])
            return self.u[0].mean(axis=1), mean, np.sqrt(variance / count), count - 1.0
        u, v = (one.mean(axis=1) for one in self.u)
        i, j = np.nonzero(np.abs(u[:, None] - v) < _SAME)
        base, arm = (_moments(y, mask) for y, mask in zip(self.log_y, self.observed, strict=True))
        ours, theirs = base[2][i] / base[0][i], arm[2][j] / arm[0][j]
        with np.errstate(invalid="ignore", divide="ignore"):
            degrees = (ours + theirs) ** 2 / (ours**2 / (base[0][i] - 1) + theirs**2 / (arm[0][j] - 1))
        return u[i], base[1][i] - arm[1][j], np.sqrt(ours + theirs), np.nan_to_num(degrees, nan=1.0)


def pair(base: Curve, arm: Curve, paired: bool, notes: list[str]) -> Pairs:
    """Bring two curves together; what had to be left out or could not be paired is said in ``notes``.

    Raises
    ------
    ValueError
        The arms have no range of scales in common.
    """
    same = len(base) == len(arm) and np.allclose(base.scales, arm.scales, rtol=_SAME, atol=0)
    common = [label for label in base.seeds if label in set(arm.seeds)]
    most = max(len(base.seeds), len(arm.seeds))
    if paired and not same:
        notes.append("the arms were measured at different scales: unpaired, through their fitted laws only")
    elif paired and (not common or (len(common) < 2 <= most)):
        notes.append(f"the arms have {len(common)} seeds in common: unpaired, through their fitted laws only")
    elif paired:
        left = (set(base.seeds) | set(arm.seeds)) - set(common)
        if left:
            notes.append(f"seeds that only one arm has are left out: {', '.join(sorted(map(str, left)))}")
        return _paired(_take(base, common), _take(arm, common))
    low, high = max(base.scales[0], arm.scales[0]), min(base.scales[-1], arm.scales[-1])
    if low > high * (1 + _SAME):
        raise ValueError(
            f"the arms share no range of scales: {base.scales[0]:g} to {base.scales[-1]:g} and "
            f"{arm.scales[0]:g} to {arm.scales[-1]:g}; measure both at the same scales"
        )
    rows = [_full(curve.censored, curve.observed) for curve in (base, arm)]
    u, y, observed = zip(
        *((_logs(c)[row], c.log_y[row], c.observed[row]) for c, row in zip((base, arm), rows, strict=True)),
        strict=True,
    )  # fmt: skip
    return Pairs((base, arm), False, u, y, observed)


def _paired(base: Curve, arm: Curve) -> Pairs:
    # A run whose partner was never made has nothing to be compared with, unless it diverged.
    observed = base.observed & arm.observed
    row = _full(base.censored | arm.censored, observed)
    u = 0.5 * (_logs(base) + _logs(arm))[row]
    return Pairs(
        (base, arm), True, (u, u), (base.log_y[row], arm.log_y[row]), (observed[row], observed[row])
    )  # fmt: skip


def _full(censored: Mask, observed: Mask) -> Mask:
    return np.asarray(~censored.any(axis=1) & observed.any(axis=1))


def _logs(curve: Curve) -> Array:
    """Log scales (m, S); where a run was not made, that of its row."""
    costs = np.broadcast_to(curve.x.reshape(len(curve.x), -1), curve.y.shape)
    return np.log(np.where(curve.missing, curve.scales[:, None], costs))


def _take(curve: Curve, labels: list[Hashable]) -> Curve:
    if list(curve.seeds) == labels:
        return curve
    columns = [curve.seeds.index(label) for label in labels]
    x = curve.x if curve.x.ndim == 1 else curve.x[:, columns]
    return Curve(
        x, curve.y[:, columns], name=curve.name, censored=curve.censored[:, columns],
        missing=curve.missing[:, columns], seeds=labels,
    )  # fmt: skip


def _mean(values: Array, mask: Mask) -> Array:
    return np.where(mask, values, 0.0).sum(axis=1) / mask.sum(axis=1)


def _moments(values: Array, mask: Mask) -> tuple[Array, Array, Array]:
    count, mean = mask.sum(axis=1).astype(float), _mean(values, mask)
    squares = (np.where(mask, values - mean[:, None], 0.0) ** 2).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = squares / (count - 1)
    return count, mean, np.where(squares <= count * 1e-28, np.where(count > 1, 0.0, np.nan), variance)


# --- resampling -------------------------------------------------------------------------------------------
def resample(both: Pairs, resamples: int, generator: np.random.Generator) -> tuple[Array, Array]:
    """Mean log losses (resamples, m) of both arms, pairs drawn with replacement at each scale."""
    index, degrees = _draw(both.observed[0], resamples, generator)
    wide = np.sqrt(degrees / generator.chisquare(degrees, size=(resamples, 1)))
    base, arm = (
        mean + wide * _average(_deviations(y, mask), index, mask)
        for y, mask, mean in zip(both.log_y, both.observed, both.means, strict=True)
    )
    return base, arm


def resample_alone(both: Pairs, which: int, resamples: int, generator: np.random.Generator) -> Array:
    """Mean log losses (resamples, m) of one arm, its own runs drawn with replacement at each scale."""
    mask = both.observed[which]
    index, degrees = _draw(mask, resamples, generator)
    wide = np.sqrt(degrees / generator.chisquare(degrees, size=(resamples, 1)))
    return both.means[which] + wide * _average(_deviations(both.log_y[which], mask), index, mask)


def _deviations(values: Array, mask: Mask) -> Array:
    """Deviations of the runs (m S,) from the mean of their scale, made as large as those of new runs."""
    count = mask.sum(axis=1, keepdims=True)
    grow = np.sqrt(count / np.maximum(count - 1, 1))
    return np.where(mask, grow * (values - _mean(values, mask)[:, None]), 0.0).ravel()


def _draw(mask: Mask, resamples: int, generator: np.random.Generator) -> tuple[NDArray[np.intp], int]:
    """Which run (resamples, m, S) stands for which, as flat indices, and the degrees of freedom of the noise.

    A scale with a single run has no noise of its own: it takes that of runs at the other scales.
    """
    count = mask.sum(axis=1)
    flat = np.arange(mask.size).reshape(mask.shape)
    pool = flat[(count > 1)[:, None] & mask]
    choices = np.zeros((len(mask), max(len(pool), mask.shape[1])), dtype=np.intp)
    sizes = np.where(count > 1, count, len(pool))
    for row, (own, single) in enumerate(zip(mask, count == 1, strict=True)):
        chosen = pool if single else flat[row][own]
        choices[row, : len(chosen)] = chosen
    place = (generator.random((resamples, *mask.shape)) * sizes[:, None]).astype(np.intp)
    index = choices.ravel()[place + (np.arange(len(mask)) * choices.shape[1])[:, None]]
    return index, int((count - 1).sum())


def _average(deviations: Array, index: NDArray[np.intp], mask: Mask) -> Array:
    drawn = deviations[index]
    count = mask.sum(axis=1)
    if (count == mask.shape[1]).all():
        return drawn.mean(axis=2)
    return (drawn * (np.arange(mask.shape[1]) < count[:, None])).sum(axis=2) / count
