"""How many more runs would settle a comparison, and at which scale the next one tells most for its cost.

A verdict of "undecided" is a question of money: this file prices the answer.  It takes the paired
differences' straight line and noise at their estimates, adds seeds at every scale in thought, and asks how
often the verdict of `allometry.laws.crossover` would then be decided; and, for one more pair of runs at a
scale of choice, by how much the uncertainty of the crossing shrinks for a unit of cost, as D-optimal
designs ask of parameters (Kiefer and Wolfowitz, 1959).

What is planned on estimates inherits their luck: a difference that is in truth nil is never settled by a
sign, only by an interval within the margin, and that may take very many runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from allometry.laws.curve import Curve
from allometry.laws.fieller import Line, line
from allometry.laws.pairing import pair

if TYPE_CHECKING:
    import pandas

__all__ = ["FurtherRuns", "further_runs"]

Array = NDArray[np.float64]
_DRAWS = 4000  # results drawn for each number of seeds: a chance of 0.8 to within 0.006


@dataclass(frozen=True)
class FurtherRuns:
    """What would settle a comparison.  Made by `further_runs`.

    Attributes
    ----------
    seeds : int or None
        Further pairs of runs at every scale; None where ``most`` would not do.
    runs : int or None
        Runs of both arms that these are.
    chance : float
        How often the verdict is then decided, if line and noise are as estimated; with ``most`` where not.
    chances : DataFrame
        The chance by further seeds.
    next_scale : float
        Of the candidates, that at which one more pair of runs narrows the crossing most for its cost.
    scales : DataFrame
        For each candidate the ``cost`` of a run, the share by which the crossing's ``variance`` shrinks, and
        that share per cost, the best being one.
    """

    seeds: int | None
    runs: int | None
    chance: float
    chances: pandas.DataFrame
    next_scale: float
    scales: pandas.DataFrame
    power: float

    def __str__(self) -> str:
        most = int(self.chances.index[-1])
        if self.seeds is None:
            return f"{most} further seeds at every scale would settle it in {self.chance:.0%} of cases only"
        if self.seeds == 0:
            return f"settled: repeated as it is, it would be decided in {self.chance:.0%} of cases"
        more = "one more seed" if self.seeds == 1 else f"{self.seeds} more seeds"
        return (
            f"{more} at every scale ({self.runs} runs) would settle it in {self.chance:.0%} of cases; the "
            f"next pair of runs tells most for its cost at {self.next_scale:.3g}"
        )


def further_runs(
    base: Curve,
    arm: Curve,
    *,
    power: float = 0.8,
    level: float = 0.95,
    margin: float = 0.005,
    most: int = 64,
    candidates: Sequence[float] | Array | None = None,
    cost: Callable[[Array], Array] | None = None,
    random_state: int = 0,
) -> FurtherRuns:
    """How many more paired runs would decide between two arms.

    Parameters
    ----------
    base, arm : Curve
        With the same scales and at least two seeds in common.
    power : float
        Share of cases that shall be decided.
    level, margin : float
        Of the verdict; as in `crossover`.
    most : int
        Further seeds at every scale that are looked at.
    candidates : sequence of float, optional
        Scales for the next pair; those measured, and two steps beyond the largest, by default.
    cost : callable, optional
        Cost of runs ``(k,)`` at scales ``(k,)``; the scale itself by default.
    random_state : int

    Raises
    ------
    ValueError
        Fewer than three scales or two common seeds were measured in full, or an option is out of range.

    Examples
    --------
    >>> generator = np.random.default_rng(0)
    >>> x = np.geomspace(1e6, 1e8, 4)
    >>> noise = generator.normal(0, 0.02, (2, 4, 3))
    >>> base, arm = (Curve(x, 30 * x[:, None] ** -a * np.exp(e)) for a, e in zip((0.1, 0.101), noise))
    >>> bool(further_runs(base, arm, most=8).chances["chance"].between(0, 1).all())
    True
    """
    import pandas

    if not 0 < power < 1:
        raise ValueError(f"power is a share between 0 and 1, not {power}")
    if not (0 < level < 1 and 0 <= margin < 1):
        raise ValueError(f"level lies between 0 and 1 and margin from 0 to 1, not {level} and {margin}")
    if most < 1:
        raise ValueError(f"most must be at least one further seed, not {most}")
    notes: list[str] = []
    both = pair(base, arm, True, notes)
    if not both.paired or both.full < 3 or not both.repeated:
        raise ValueError(
            "what would settle it can be said of arms measured in full at three or more scales, with two or "
            f"more seeds in common; here: {'; '.join(notes) or f'{both.full} scales'}"
        )
    u = both.u[0].mean(axis=1)
    fitted = line(both.u[0], both.log_y[0] - both.log_y[1], both.observed[0])
    counts = both.observed[0].sum(axis=1)
    steps = np.unique(np.concatenate([[0], np.geomspace(1, most, 40).round().astype(int)]))
    chance = _decided(fitted, u, counts, steps, level, margin, np.random.default_rng(random_state))
    enough = np.flatnonzero(chance >= power)
    seeds = int(steps[enough[0]]) if len(enough) else None
    table = pandas.DataFrame({"runs": 2 * len(u) * steps, "chance": chance}, index=steps)
    table.index.name = "further seeds"
    places = _candidates(candidates, np.exp(u))
    told = _next(fitted, places, places if cost is None else np.asarray(cost(places), dtype=float))
    at = len(steps) - 1 if seeds is None else int(enough[0])
    return FurtherRuns(
        seeds, None if seeds is None else 2 * len(u) * seeds, float(chance[at]), table,
        float(told["gain per cost"].idxmax()), told, power,
    )  # fmt: skip


def _decided(
    fitted: Line, u: Array, counts: Array, steps: Array, level: float, margin: float, generator: Any
) -> Array:
    """Chance ``(k,)`` of a verdict for each number of further seeds, all drawn at once."""
    from scipy.special import stdtrit

    variance = float(fitted.covariance[0, 0]) * counts.sum()  # of one difference
    weights = counts + steps[:, None]  # (k, m)
    n = weights.sum(axis=1)
    centre = (weights @ u) / n
    spread = (weights * (u - centre[:, None]) ** 2).sum(axis=1)
    degrees = n - 2.0
    p = float(fitted.p) + float(fitted.q) * (centre - float(fitted.centre))
    drawn = variance * generator.chisquare(degrees[:, None], (len(steps), _DRAWS)) / degrees[:, None]
    common = generator.standard_normal((2, _DRAWS))  # the same for every number of seeds: a smooth curve
    value = p[:, None] + np.sqrt(variance / n)[:, None] * common[0]
    slope = float(fitted.q) + np.sqrt(variance / spread)[:, None] * common[1]
    quantile = stdtrit(degrees, 0.5 + 0.5 * level)[:, None]
    signs, within = [], np.ones((len(steps), _DRAWS), dtype=bool)
    least = np.log1p(margin)
    for end in (u.min(), u.max()):  # where `crossover` looks for a verdict on the range
        away = (end - centre)[:, None]
        mean = value + slope * away
        half = quantile * np.sqrt(drawn / n[:, None] + drawn * away**2 / spread[:, None])
        signs.append(np.abs(mean) > half)
        within &= (mean + half <= least) & (mean - half >= -least)
    return np.asarray(((signs[0] & signs[1]) | within).mean(axis=1))


def _candidates(given: Any, scales: Array) -> Array:
    if given is None:
        step = scales[-1] / scales[-2]
        return np.concatenate([scales, scales[-1] * step ** np.arange(1, 3)])
    places = np.asarray(given, dtype=float).ravel()
    if not len(places) or not (np.isfinite(places) & (places > 0)).all():
        raise ValueError("candidates must be positive scales")
    return np.unique(places)


def _next(fitted: Line, places: Array, cost: Array) -> pandas.DataFrame:
    """Relative fall of the crossing's variance by one more pair at each place, and per cost.

    One more difference at ``v = (1, u)`` takes ``V v v' V / (s^2 + v' V v)`` off the covariance V; the
    crossing's variance is ``w' V w / q^2`` with ``w = (1, u*)``.
    """
    import pandas

    if cost.shape != places.shape or not (np.isfinite(cost) & (cost > 0)).all():
        raise ValueError("cost must give one positive number for each candidate")
    covariance = np.asarray(fitted.covariance, dtype=float)
    count = float(fitted.degrees) + 2.0
    noise = covariance[0, 0] * count
    crossing = 0.0 if fitted.q == 0 else -float(fitted.p) / float(fitted.q)
    at = np.log(places) - float(fitted.centre)
    reach = max(np.abs(at).max(), np.sqrt(noise / max(covariance[1, 1], 1e-300)))
    w = np.array([1.0, np.clip(crossing, -10 * reach, 10 * reach)])
    v = np.stack([np.ones_like(at), at])  # (2, k)
    before = float(w @ covariance @ w)
    if before > 0:
        taken = (w @ covariance @ v) ** 2 / (noise + np.einsum("ik,ij,jk->k", v, covariance, v))
        gain = taken / before
    else:
        gain = np.zeros_like(at)
    worth = gain / cost
    best = worth.max()
    frame = pandas.DataFrame(
        {"cost": cost, "variance falls by": gain, "gain per cost": worth / best if best > 0 else worth},
        index=places,
    )
    frame.index.name = "scale"
    return frame
