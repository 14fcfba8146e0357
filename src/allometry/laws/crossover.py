"""Up to which scale does it hold?  Where the loss curves of two arms cross, and how far the evidence reaches.

Choices that win on small models can lose on large ones (Xiao, 2024, arXiv:2409.15156).  A comparison at small
scale is therefore worth a sentence with a scale in it, and this file writes that sentence:

- the *crossing* with a confidence set that may be a half-line or everything, since it is a ratio: Fieller's
  set for power laws, exactly; for laws with a floor or a break the same test inverted over joint refits;
- the *verdict*, one of a fixed vocabulary, which speaks of the measured range, never of the extrapolation;
- the probability that the arm is better at any scale, and that a crossing lies inside the data, beyond, or
  nowhere within a factor of 100;
- *diverged runs stay*.  Their scale is left out of the fitted laws as a whole, because the runs that survived
  it are a selection, and is judged by signs instead: a pair whose arm diverged counts as worse than any
  finite loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from allometry.laws.curve import Curve
from allometry.laws.difference import (
    REACH,
    Difference,
    LawDifference,
    MeasuredDifference,
    StraightDifference,
)
from allometry.laws.divergence import Stretch, stretches
from allometry.laws.fieller import FiellerSet, Line, fieller, line
from allometry.laws.forms import Form, get_form
from allometry.laws.pairing import Pairs, pair, resample, resample_alone
from allometry.laws.refit import refit
from allometry.laws.uncertainty import Interval

__all__ = ["VERDICTS", "Crossover", "Curve", "FiellerSet", "crossover", "fieller"]

Array = NDArray[np.float64]
VERDICTS = ("helps", "helps below x", "helps above x", "hurts", "no difference", "undecided")


@dataclass(frozen=True, eq=False)
class Crossover:
    """What is known of the crossing of two arms.  Made by `crossover`.

    Attributes
    ----------
    x : float
        Where the curves cross; not a number if they do not within a factor of 100 of the data.  Of several
        crossings, the one nearest to the middle of the data.
    interval : Interval
        ``x`` with the hull of ``pieces``.
    kind : str
        Shape of the confidence set: ``"bounded"``, ``"half-line"``, ``"complement"`` (anywhere but in a gap),
        ``"whole line"`` (no information), ``"several"``, ``"none"`` (the curves do not cross), ``"unknown"``
        (fewer than two seeds or three scales), or ``"divergence"`` (between the last scale at which the runs
        of both arms lasted and the first at which those of one did not).
    pieces : tuple of (float, float)
        The confidence set as disjoint intervals of scale, from 0 to infinity.
    n_roots : int
        Crossings of the fitted laws within a factor of 100 of the data.
    verdict : str
        One of `VERDICTS`: about the scales measured, or up to ``target`` where one is given.
    p_value : float
        Two-sided, of the verdict's weakest part: what Holm's procedure over several arms takes.
    places : dict
        Probability that the curves cross ``"inside"`` the data, beyond the largest scale ``"up to 10x"`` or
        ``"up to 100x"``, ``"below"`` the smallest, or ``"never"`` within these.
    notes : tuple of str
        What a reader should know, one sentence each.
    """

    x: float
    interval: Interval
    kind: str
    pieces: tuple[tuple[float, float], ...]
    n_roots: int
    verdict: str
    p_value: float
    places: dict[str, float]
    base: str
    arm: str
    scales: Array
    margin: float
    level: float
    method: str
    paired: bool
    target: float | None
    notes: tuple[str, ...]
    _difference: Difference = field(repr=False)
    _stretches: tuple[Stretch, ...] = field(repr=False)

    def p_better(self, x: ArrayLike) -> Any:
        """Probability that the arm is better than the base at scale ``x``, a float or an array (n,).

        It is that of Student's t, or the share of joint refits; where runs diverged it is that of the signs,
        which are taken to persist beyond the largest or smallest scale.  Not a number where nothing can be
        said, such as with one seed.
        """
        u = self._log(x)
        out = self._difference.probability(u)
        for stretch in self._stretches:
            out = np.where((u >= stretch.low) & (u <= stretch.high), stretch.probability, out)
        return float(out[0]) if np.ndim(x) == 0 else out

    def gain(self, x: ArrayLike) -> Interval:
        """Share of the base's loss that the arm saves at scale ``x``, with its pointwise interval.

        Of runs that did not diverge: at scales where some did, the law of the others is carried on.
        """
        u = self._log(x)
        low, high = self._difference.bounds(u, self.level)
        value, low, high = (-np.expm1(-d) for d in (self._difference.mean(u), low, high))
        if np.ndim(x) == 0:
            return Interval(float(value[0]), float(low[0]), float(high[0]), self.level)
        return Interval(value, low, high, self.level)

    @property
    def outside(self) -> str:
        """Where the crossing lies: ``"inside the data"``, how far beyond, or ``"beyond evidence"``."""
        if np.isnan(self.x):
            return "beyond evidence" if self.kind not in ("none", "unknown") else "no crossing"
        if self.x > self.scales[-1]:
            return f"{self.x / self.scales[-1]:.3g}x beyond the largest scale"
        if self.x < self.scales[0]:
            return f"{self.scales[0] / self.x:.3g}x below the smallest scale"
        return "inside the data"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and words that JSON can hold; what is infinite or unknown is None."""
        number = _or_none
        return {
            "base": self.base, "arm": self.arm, "verdict": self.verdict, "x": number(self.x),
            "low": number(self.interval.low), "high": number(self.interval.high), "kind": self.kind,
            "pieces": [[number(a), number(b)] for a, b in self.pieces], "n_roots": self.n_roots,
            "p_value": number(self.p_value), "places": {k: number(v) for k, v in self.places.items()},
            "outside": self.outside, "scales": self.scales.tolist(), "margin": self.margin,
            "level": self.level, "method": self.method, "paired": self.paired, "target": self.target,
            "notes": list(self.notes),
        }  # fmt: skip

    def __str__(self) -> str:
        words = self.verdict
        if words.endswith(" x"):
            words = words[:-1] + (f"{self.x:.3g}" if np.isfinite(self.x) else "some scale")
        span = f"{self.scales[0]:.3g} to {self.scales[-1]:.3g}"
        text = f"{self.arm or 'the arm'} {_sentence(words)} (measured from {span})"
        if self.kind == "whole line":
            text += "; where the curves cross is not known"
        elif self.pieces:
            sets = " or ".join(f"{a:.3g} to {b:.3g}" for a, b in self.pieces)
            text += f"; crossing at {self.x:.3g}, {self.level:.0%} set {sets}"
            text += "" if self.outside == "inside the data" else f" ({self.outside})"
        return text

    def _log(self, x: ArrayLike) -> Array:
        values = np.atleast_1d(np.asarray(x, dtype=float))
        if not (values > 0).all():
            raise ValueError(f"scales must be positive; p_better was asked at {np.min(values)}")
        return np.log(values)


def crossover(
    base: Curve,
    arm: Curve,
    *,
    paired: bool = True,
    method: str = "fieller",
    margin: float = 0.005,
    level: float = 0.95,
    target: float | None = None,
    forms: str | Form | Sequence[str | Form] | None = None,
    resamples: int = 2000,
    random_state: int = 0,
) -> Crossover:
    """Where the arm's curve crosses the base's, and whether the arm helps.

    Parameters
    ----------
    base, arm : Curve
    paired : bool
        Whether runs with one seed share their data order.  Arms measured at different scales, or with fewer
        than two seeds in common, are compared through their fitted laws alone, and a note says so.
    method : {"fieller", "bootstrap"}
        Power laws, exactly; or any laws, by joint refits to resampled seeds.
    margin : float
        Relative differences below it are no difference, 0.5 % by default.
    level : float
        Of the intervals, 0.95 by default.  A verdict needs both ends of its range decided at this level.
    target : float, optional
        A scale up to which the verdict shall speak, where that is beyond the data: then it rests on the laws.
    forms : str or Form, or a pair of them, optional
        Laws of ``"bootstrap"``, of base and arm: ``"power-offset"`` where four scales were measured in full,
        else ``"power"``.
    resamples, random_state : int
        Of the bootstrap.

    Returns
    -------
    Crossover

    Raises
    ------
    TypeError
        An arm is not a `Curve`.
    ValueError
        An option is unknown or out of range, or no scale is left to compare.

    Examples
    --------
    Two files of runs, a header ``params,seed,loss`` and one line a run:

    >>> import pathlib, pandas, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> a, b, runs = folder / "base.csv", folder / "arm.csv", "params,seed,loss\\n1e6,0,{}\\n1e6,1,{}\\n"
    >>> runs += "1e7,0,{}\\n1e7,1,{}\\n1e8,0,{}\\n1e8,1,{}\\n"
    >>> _ = a.write_text(runs.format(3.00, 3.01, 2.70, 2.69, 2.43, 2.44))
    >>> _ = b.write_text(runs.format(3.20, 3.21, 2.70, 2.70, 2.28, 2.28))
    >>> found = crossover(Curve.from_table(pandas.read_csv(a)), Curve.from_table(pandas.read_csv(b)))
    >>> found.verdict, f"{found.x:.4g}"
    ('helps above x', '1.006e+07')

    Notes
    -----
    With the paired differences d = log base - log arm of all runs, the straight line's noise is taken to be
    independent between runs.  A line that misses the means of the scales by more than their noise is reported
    in the notes; then use ``method="bootstrap"``.  The bootstrap draws seeds with replacement at each scale,
    the same for both arms, and widens each draw by sqrt(S / (S - 1)) and by the chi-squared distribution of
    its degrees of freedom, so that few seeds cost what they cost Student's t.
    """
    _check(base, arm, method, margin, level, target, resamples)
    if forms is not None and method == "fieller":
        raise ValueError("forms are for method='bootstrap'; Fieller's set is that of two power laws")
    notes: list[str] = []
    both = pair(base, arm, paired, notes)
    difference: Difference
    if both.full < 3:
        notes.append(
            f"{both.full} scales were measured in full: the verdict is about these alone, without a law"
        )
        difference = _measured(both)
    elif method == "fieller":
        difference = _straight(both, notes)
    else:
        difference = _laws(both, forms, resamples, random_state)
    if not both.repeated:
        notes.append("fewer than two seeds at every scale: there is no interval, and nothing is decided")
    broken = stretches(both, notes)
    stop = None if target is None else float(np.log(target))
    verdict, p_value, switch = _verdict(difference, broken, level, margin, stop)
    if stop is not None and stop > difference.high + REACH:
        verdict, p_value, switch = "undecided", float("nan"), None
        notes.append(f"the target {target:g} is more than 100x the largest scale: beyond evidence")
    x, kind, pieces, roots = _crossing(difference, level, notes)
    places = difference.places()
    if switch is not None:  # the arms change places where the runs of one begin to diverge
        x, kind, pieces = float(np.exp(0.5 * (switch[0] + switch[1]))), "divergence", (_scales(switch),)
        places = dict.fromkeys(places, 0.0) | {"inside": 1 - p_value / 2, "never": p_value / 2}
    hull = (pieces[0][0], pieces[-1][1]) if pieces else (float("nan"), float("nan"))
    return Crossover(
        x=x, interval=Interval(x, *hull, level), kind=kind, pieces=pieces, n_roots=roots, verdict=verdict,
        p_value=p_value, places=places, base=base.name, arm=arm.name, scales=both.scales, margin=margin,
        level=level, method=method, paired=both.paired, target=target, notes=tuple(notes),
        _difference=difference, _stretches=broken,
    )  # fmt: skip


# --- the three ways ---------------------------------------------------------------------------------------
def _straight(both: Pairs, notes: list[str]) -> StraightDifference:
    low, high = both.range
    if both.paired:
        fitted = line(both.u[0], both.log_y[0] - both.log_y[1], both.observed[0])
        lack = float(fitted.lack_of_fit)
    else:
        lines = [line(*arguments) for arguments in zip(both.u, both.log_y, both.observed, strict=True)]
        fitted, lack = _minus(*lines), min(float(one.lack_of_fit) for one in lines)
    if lack < 0.01:
        notes.append(
            f"a straight line in log scale does not describe the differences (p = {lack:.1g}); "
            "method='bootstrap' fits laws with a floor"
        )
    return StraightDifference(fitted, low, high, known=both.repeated)


def _minus(base: Line, arm: Line) -> Line:
    """The difference of two independent lines about the base's centre, degrees by Welch and Satterthwaite."""
    move = np.array([[1.0, float(base.centre - arm.centre)], [0.0, 1.0]])
    other = move @ arm.covariance @ move.T
    ours, theirs = base.covariance[0, 0], other[0, 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        degrees = (ours + theirs) ** 2 / (ours**2 / base.degrees + theirs**2 / arm.degrees)
    degrees = np.where(np.isfinite(degrees), degrees, base.degrees + arm.degrees)
    p = base.p - (arm.p + arm.q * (base.centre - arm.centre))
    return Line(p, base.q - arm.q, base.covariance + other, degrees, base.centre, base.lack_of_fit)


def _laws(
    both: Pairs, forms: str | Form | Sequence[str | Form] | None, resamples: int, random_state: int
) -> LawDifference:
    if forms is None:
        forms = "power-offset" if min(len(u) for u in both.u) >= 4 else "power"
    chosen = [forms, forms] if isinstance(forms, str | Form) else list(forms)
    if len(chosen) != 2:
        raise ValueError(f"forms must be one law or two, of base and arm; given were {len(chosen)}")
    laws = get_form(chosen[0]), get_form(chosen[1])
    generator = np.random.default_rng(random_state)
    means = both.means
    if not both.repeated:
        drawn = tuple(np.empty((0, len(mean))) for mean in means)
    elif both.paired:
        drawn = resample(both, resamples, generator)
    else:
        drawn = tuple(resample_alone(both, arm, resamples, generator) for arm in (0, 1))
    centre = float(np.concatenate([u.mean(axis=1) for u in both.u]).mean())
    unit = float(np.mean(np.concatenate(means)))
    points, draws = [], []
    for form, u, mean, sample in zip(laws, both.u, means, drawn, strict=True):
        at = u.mean(axis=1) - centre
        points.append(refit(form, at, mean[None] - unit)[0])
        none = np.empty((0, len(form.parameters)))
        draws.append(refit(form, at, sample - unit, tolerance=1e-4) if len(sample) else none)
    return LawDifference(laws, (points[0], points[1]), (draws[0], draws[1]), centre, *both.range)


def _measured(both: Pairs) -> MeasuredDifference:
    found = both.by_scale()
    if len(found[0]):
        return MeasuredDifference(*found)
    nothing = np.full(len(both.scales), np.nan)  # runs diverged at every scale: only signs can speak
    return MeasuredDifference(np.log(both.scales), nothing, nothing, nothing)


# --- the verdict ------------------------------------------------------------------------------------------
def _verdict(
    difference: Difference, broken: tuple[Stretch, ...], level: float, margin: float, stop: float | None
) -> tuple[str, float, tuple[float, float] | None]:
    """The word, the p-value of its weakest part, and where divergence makes the arms change places."""
    where = difference.stations(stop)
    ahead = [stretch.low for stretch in broken if np.isinf(stretch.high)]
    if ahead and len(where):  # laws are not carried past a scale at which runs diverged
        where = where[where <= max(*ahead, difference.high)]
    judged = [stretch for stretch in broken if stretch.decisive]
    probability = difference.probability(where)
    if np.isnan(probability).any() or not (len(where) or judged):
        return "undecided", float("nan"), None
    tail = 0.5 - 0.5 * level
    least = np.log1p(margin)
    if not judged and (np.abs(difference.mean(where)) <= least).all():
        low, high = difference.bounds(where, level)
        if (low >= -least).all() and (high <= least).all():
            return "no difference", float((2 * np.minimum(probability, 1 - probability)).max()), None
    places = np.concatenate([where, [stretch.first for stretch in judged]])
    probability = np.concatenate([probability, [stretch.probability for stretch in judged]])
    by_law = np.arange(len(places)) < len(where)
    order = np.argsort(places, kind="stable")
    places, probability, by_law = places[order], probability[order], by_law[order]
    two_sided = 2 * np.minimum(probability, 1 - probability)
    sign = np.where(two_sided <= 2 * tail, np.sign(probability - 0.5), 0.0)
    decided = np.nonzero(sign)[0]
    changes = np.nonzero(np.diff(sign[decided]))[0]
    if len(decided) == len(sign) and not len(changes):
        return ("helps" if sign[0] > 0 else "hurts"), float(two_sided.max()), None
    if len(changes) == 1:
        before, after = decided[changes[0]], decided[changes[0] + 1]
        # Around a crossing nothing is ever decided: the two sides count.
        sides = np.concatenate([np.arange(before + 1), np.arange(after, len(sign))])
        if sign[sides].all():
            word = "helps below x" if sign[0] > 0 else "helps above x"
            by_laws = by_law[before : after + 1].all()
            switch = None if by_laws else (float(places[before]), float(places[after]))
            return word, float(two_sided[sides].max()), switch
    return "undecided", float(two_sided[[0, -1]].max()), None


def _crossing(
    difference: Difference, level: float, notes: list[str]
) -> tuple[float, str, tuple[tuple[float, float], ...], int]:
    roots = difference.roots()
    middle = 0.5 * (difference.low + difference.high)
    x = float(np.exp(roots[np.abs(roots - middle).argmin()])) if len(roots) else float("nan")
    found = difference.pieces(level)
    if len(roots) > 1:
        notes.append(
            f"the fitted laws cross {len(roots)} times: {', '.join(f'{np.exp(r):.3g}' for r in roots)}"
        )
    if found is None:
        return x, "unknown", (), len(roots)
    if not len(roots) and found and not (np.isinf(found[0]).all()):
        notes.append(
            "no crossing within a factor of 100 of the data: whatever lies further is beyond evidence"
        )
    open_low, open_high = bool(found) and np.isinf(found[0][0]), bool(found) and np.isinf(found[-1][1])
    if not found:
        kind = "none"
    elif len(found) == 1:
        kind = {0: "bounded", 1: "half-line", 2: "whole line"}[int(open_low) + int(open_high)]
    else:
        kind = "complement" if len(found) == 2 and open_low and open_high else "several"
    return x, kind, tuple(_scales(piece) for piece in found), len(roots)


# --- small things -----------------------------------------------------------------------------------------
def _scales(piece: tuple[float, float]) -> tuple[float, float]:
    with np.errstate(over="ignore"):
        return float(np.exp(piece[0])), float(np.exp(piece[1]))


def _or_none(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _sentence(verdict: str) -> str:
    return {"no difference": "makes no difference", "undecided": "is undecided"}.get(verdict, verdict)


def _check(
    base: Any, arm: Any, method: str, margin: float, level: float, target: float | None, resamples: int
) -> None:
    for value, what in ((base, "base"), (arm, "arm")):
        if not isinstance(value, Curve):
            raise TypeError(f"{what} must be a Curve, not {type(value).__name__}; see Curve.from_table")
    if method not in ("fieller", "bootstrap"):
        raise ValueError(f"method must be 'fieller' or 'bootstrap', not {method!r}")
    if not (0 <= margin < 1):
        raise ValueError(f"margin is a relative difference from 0 to below 1, not {margin}")
    if not (0 < level < 1):
        raise ValueError(f"level is a share between 0 and 1, not {level}")
    if target is not None and not (np.isfinite(target) and target > 0):
        raise ValueError(f"target must be a positive scale, not {target}")
    if method == "bootstrap" and resamples < 100:
        raise ValueError(f"resamples must be at least 100 for an interval, not {resamples}")
