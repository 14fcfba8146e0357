"""What a technique is worth, in scale: by how much the base would have to grow to match it.

``w(x) = f_base^-1(L_arm(x)) / x`` with x the total cost in one declared unit (training, technique and search
overhead included).  It is one thing under many names: efficiency gain, level shift, budget equivalence,
speed-up to equal loss, break-even.

- *A set, not a ratio with error bars.*  Reported are all w that a test does not reject
  (`allometry.laws.horizontal`): an interval, a half-line ("at least 3.1 times") or everything.
- *Undetermined is an answer*, and comes with its reason: a base that is flat or not monotone within its
  noise, too few scales or seeds, a loss that the base's floor may never let through, a place beyond the
  measured base.
- *The smallest worth that the design could have seen* stands beside every result.
- *Diverged runs* are worse than any finite loss: the worth there is "at most", never that of the survivors.

How often 90 % sets hold the truth is simulated by `allometry.laws.worth_calibration` (``evidence/worth``,
2000 data sets a row).  Where base and arm are power laws with or without a floor: 89 to 92 times of 100 at
the largest scale, with three to six scales, three to five seeds, noise of 0.5 or 2 % and also where noise
changes fourfold with scale; trends 91 to 93 times.  A worth of 1 is rejected 10 times of 100.  The promise is
not kept where three scales leave a break in the base's law unseen and it is read beyond them: 75 times of
100, so measure five scales.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from allometry.laws.curve import Curve
from allometry.laws.horizontal import Distances, Options, distances
from allometry.laws.matched import FEWEST, Usable, check_pairing, match, usable
from allometry.laws.monotone import FORMS

if TYPE_CHECKING:
    import pandas

__all__ = ["Worth", "worth", "worths"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Worth:
    """What one arm is worth at one scale; made by `worth`.

    Attributes
    ----------
    factor : float
        Factor of scale at which the base's curve equals the arm's loss.  Infinite, or zero, where the base is
        not trusted to get there; not a number where nothing could be computed.
    low, high : float
        Ends of the set, 0 or infinity where it is open.
    kind : {"interval", "at least", "at most", "undetermined"}
    reasons : list of str
        Why the set is open, or what else limits the answer, in sentences.
    trend : {"grows", "holds", "fades", "crosses", "undetermined"}
        Of the worth over the arm's measured scales.  It *holds* if the interval of the slope lies within the
        margin; it *crosses* if it is surely on one side of 1 at the smallest scale and on the other at the
        largest.
    trend_slope, trend_interval : float, (float, float)
        Slope of ln w in ln x.  A slope of 0.1 is a factor 1.26 a tenfold of scale.
    table : pandas.DataFrame
        One row a measured scale: ``x, factor, low, high, kind, extrapolated, reason``.
    minimum_detectable : float
        Smallest worth above 1 that this design, at this noise, would have told from 1 four times of five;
        infinite if none within the cap.  In simulations: 72 times of 100 with three seeds, whose noise is
        itself ill known, and 82 with five.
    extrapolated : bool
        Whether the factor or an end of the set lies outside the base's measured scales.
    p_value : float
        Two-sided, of w = 1.
    at, unit, level
        The scale, its unit, the level of the set.
    """

    factor: float
    low: float
    high: float
    kind: str
    reasons: list[str]
    trend: str
    trend_slope: float
    trend_interval: tuple[float, float]
    table: pandas.DataFrame = field(repr=False)
    minimum_detectable: float
    extrapolated: bool
    p_value: float
    at: float
    unit: str
    level: float

    def __str__(self) -> str:
        where = f"of the base's {self.unit} at {self.at:.2g}"
        if self.kind == "undetermined":
            return f"undetermined at {self.at:.2g}: {'; '.join(self.reasons)}"
        trend = "trend undetermined" if self.trend == "undetermined" else self.trend
        beyond = ", extrapolated" if self.extrapolated else ""
        if self.kind == "interval":
            size = f"{self.factor:.3g}× ({self.low:.3g}–{self.high:.3g})"
        else:
            size = f"≥ {self.low:.3g}×" if self.kind == "at least" else f"≤ {self.high:.3g}×"
        unseen = ""
        if self.p_value > 1 - self.level:  # 1 is not excluded: say what else might have been missed
            least = self.minimum_detectable
            what = f"below {least:.3g}×" if np.isfinite(least) else "that the base can be read to"
            unseen = f"; a worth {what} would likely not have been seen"
        return f"{size} {where}, {trend}{beyond}{unseen}"


def worth(
    base: Curve,
    arm: Curve,
    *,
    at: float | None = None,
    level: float = 0.9,
    paired: bool = True,
    form: str = "auto",
    cap: float = 4.0,
    margin: float = 0.1,
    resamples: int = 1000,
    random_state: int = 0,
    unit: str = "flops",
) -> Worth:
    """What an arm is worth, as a factor of the base's scale.

    Parameters
    ----------
    base, arm : Curve
        Losses by scale and seed; scales are total costs in one unit.
    at : float, optional
        Scale of the arm at which it is judged, inside its measured range; its largest by default.
    level : float
        Of the set and of the trend's interval.
    paired : bool
        Whether runs with one seed label share their randomness, so that resamples keep them together.  Arms
        whose costs differ from the base's are paired in order of scale.
    form : {"auto", "power-offset", "power", "interpolation"}
        The base's curve, and the arm's.  ``"auto"`` is the power law with a floor unless the means lie off it
        by more than the scatter of seeds (at five per cent), and then the interpolation, which does not
        extrapolate.  An arm that lies off it is read at its means.
    cap : float
        How far beyond the base's measured scales its curve is trusted, as a factor; the set is cut there.
    margin : float
        Slopes of ln w in ln x smaller than this are a worth that holds.
    resamples, random_state : int
        Number of resamples behind the standard errors, and the seed of their drawing.
    unit : str
        What the scales are, for the sentences.

    Raises
    ------
    ValueError
        ``at`` lies outside the arm's scales, the arms cannot be paired, or an option is out of range.

    Notes
    -----
    Scales at which an arm or the base has fewer than three runs are left out, and said so.

    Examples
    --------
    >>> x = [1e6, 4e6, 16e6, 64e6]
    >>> base = Curve(x, [[3.0 * c**-0.1 * s for s in (0.999, 1.0, 1.001)] for c in x])
    >>> arm = Curve(x, [[3.0 * (2 * c)**-0.1 * s for s in (0.999, 1.0, 1.001)] for c in x])
    >>> print(worth(base, arm, resamples=100))
    2× (1.99–2.01) of the base's flops at 6.4e+07, holds, extrapolated
    """
    options = Options(level, paired, form, cap, resamples, margin, random_state)
    _check(options)
    return _measure(base, [arm], at, options, unit)[0]


def worths(
    base: Curve,
    arms: Mapping[str, Curve],
    *,
    at: float | None = None,
    level: float = 0.9,
    paired: bool = True,
    form: str = "auto",
    cap: float = 4.0,
    margin: float = 0.1,
    resamples: int = 1000,
    random_state: int = 0,
    unit: str = "flops",
) -> pandas.DataFrame:
    """What several arms are worth, with Holm's correction for having looked at all of them.

    Parameters are those of `worth`; ``arms`` maps names to curves.  All resamples of all arms are one batch.

    Returns
    -------
    pandas.DataFrame
        One row an arm: ``at, factor, low, high, kind, trend, slope, slope_low, slope_high,
        minimum_detectable, p_value, adjusted_p, different, reason``.  Sets are at ``level`` each;
        ``different`` says whether the adjusted p-value of w = 1 is below 1 - level.

    Examples
    --------
    >>> x = [1e6, 4e6, 16e6, 64e6]
    >>> def curve(gain):
    ...     return Curve(x, [[(gain * c)**-0.1 * s for s in (0.999, 1.0, 1.002)] for c in x])
    >>> table = worths(curve(1.0), {"same": curve(1.0), "better": curve(1.5)}, resamples=100)
    >>> table["factor"].round(3).to_dict(), table["different"].to_dict()
    ({'same': 1.0, 'better': 1.5}, {'same': False, 'better': True})
    """
    import pandas

    from allometry.laws.contrast import holm

    if not arms:
        raise ValueError("worths needs at least one arm; the mapping given is empty")
    options = Options(level, paired, form, cap, resamples, margin, random_state)
    _check(options)
    found = _measure(base, list(arms.values()), at, options, unit)
    adjusted = holm([one.p_value for one in found])
    rows = [
        {
            "at": one.at, "factor": one.factor, "low": one.low, "high": one.high, "kind": one.kind,
            "trend": one.trend, "slope": one.trend_slope, "slope_low": one.trend_interval[0],
            "slope_high": one.trend_interval[1], "minimum_detectable": one.minimum_detectable,
            "p_value": one.p_value, "adjusted_p": float(p), "different": bool(p <= 1 - level),
            "reason": "; ".join(one.reasons),
        }
        for one, p in zip(found, adjusted, strict=True)
    ]  # fmt: skip
    return pandas.DataFrame(rows, index=pandas.Index(list(arms), name="arm"))


def _check(options: Options) -> None:
    if options.form not in FORMS:
        also = "; Kaplan's law in one scale is 'power'" if "kaplan" in str(options.form) else ""
        raise ValueError(f"form must be one of {', '.join(FORMS)}, not {options.form!r}{also}")
    if not 0.5 <= options.level < 1:
        raise ValueError(f"level must lie in [0.5, 1), such as 0.9; it is {options.level}")
    if not (np.isfinite(options.cap) and options.cap >= 1):
        raise ValueError(f"cap must be a factor of at least 1, such as 4; it is {options.cap}")
    if not options.margin > 0:
        raise ValueError(f"margin must be a positive slope, such as 0.1; it is {options.margin}")
    if options.resamples < 50:
        raise ValueError(f"resamples must be at least 50 for a standard error; it is {options.resamples}")


def _measure(
    base: Curve, arms: Sequence[Curve], at: float | None, options: Options, unit: str
) -> list[Worth]:
    """Worths of all arms; those that can be computed are one batch."""
    ground, taken = usable(base, "base"), [usable(arm, "arm") for arm in arms]
    wanted = []
    for arm in arms:
        low, high = float(arm.scales[0]), float(arm.scales[-1])
        if at is not None and not low * (1 - 1e-6) <= at <= high * (1 + 1e-6):
            raise ValueError(
                f"at={at:g} lies outside the arm's measured scales, {low:g} to {high:g}; its curve is not "
                "extrapolated"
            )
        place = high if at is None else float(at)
        equal = np.abs(arm.scales / place - 1) < 1e-6
        wanted.append(arm.scales if equal.any() else np.append(arm.scales, place))
        if options.paired:
            check_pairing(base, arm)
    able = [i for i, one in enumerate(taken) if one.keep.any() and ground.keep.sum() >= FEWEST]
    found: Distances | None = None
    if able:
        # Where the arm has no usable loss it is asked for at the nearest scale that has one; `_tell` knows.
        inside = [np.clip(np.log(wanted[i]), taken[i].log_x[0], taken[i].log_x[-1]) for i in able]
        found = distances(match(ground, [taken[i] for i in able], inside, paired=options.paired), options)
    out = []
    for i, one in enumerate(taken):
        place = float(one.curve.scales[-1]) if at is None else float(at)
        pair = able.index(i) if i in able else None
        out.append(_tell(ground, one, wanted[i], place, found, pair, options, unit))
    return out


def _tell(
    base: Usable, arm: Usable, wanted: Array, at: float, found: Distances | None, pair: int | None,
    options: Options, unit: str,
) -> Worth:  # fmt: skip
    """Put what was found for one pair into words."""
    import pandas

    general = _general(base, found, pair)
    rows = [_row(base, arm, float(x), i, found, pair, options, general) for i, x in enumerate(wanted)]
    here = int(np.abs(wanted / at - 1).argmin())
    slope, words = [np.nan, np.nan, np.nan], "undetermined"
    diverged = arm.curve.scales[arm.diverged > 0]
    if found is not None and pair is not None and not general and not len(diverged):
        slope, words = [float(v) for v in found.slope[pair]], found.trend[pair]
    p_value, least = np.nan, np.nan
    row = rows[here]
    if found is not None and pair is not None and row["measured"]:
        least = float(np.exp(found.minimum_detectable[pair, here]))
        p_value = float(found.p_value[pair, here])
        if row["lost"] and found.log_factor[pair, here] > 0:
            p_value = np.nan  # the survivors were better, which says nothing of those that diverged
    reasons = list(general) if general else [*row["sentences"]]
    reasons += [said for said in (*base.reasons, *arm.reasons) if said not in reasons]
    if len(diverged) and not general:
        places = ", ".join(f"{x:.3g}" for x in diverged)
        reasons.append(f"runs of the arm diverged at {places}: a trend of the others would say nothing")
    table = pandas.DataFrame(rows[: len(arm.curve)]).drop(columns=["lost", "measured"])
    table["reason"] = ["; ".join(said) for said in table.pop("sentences")]
    return Worth(
        factor=row["factor"], low=row["low"], high=row["high"], kind=row["kind"], reasons=reasons,
        trend=words, trend_slope=slope[0], trend_interval=(slope[1], slope[2]), table=table,
        minimum_detectable=least, extrapolated=row["extrapolated"], p_value=p_value, at=at, unit=unit,
        level=options.level,
    )  # fmt: skip


def _general(base: Usable, found: Distances | None, pair: int | None) -> list[str]:
    """Why nothing at all can be said, if so."""
    scales = int(base.keep.sum())
    if scales < FEWEST:
        count = ("no scale", "one scale", "two scales")[scales]
        return [f"the base has {count} with three runs or more; three are needed for its curve"]
    if base.wholly.any():
        return [
            f"every run of the base diverged at {base.curve.scales[base.wholly][0]:.3g}: it is not monotone"
        ]
    if found is None or pair is None:
        return []
    if found.rising[pair]:
        return ["the base's loss rises with scale by more than its noise: no factor of scale answers"]
    if found.flat[pair]:
        return ["the base is flat within its noise: any factor of scale would do"]
    return []


def _row(
    base: Usable, arm: Usable, x: float, i: int, found: Distances | None, pair: int | None, options: Options,
    general: list[str],
) -> dict[str, Any]:  # fmt: skip
    """Worth at one scale ``x`` of the arm, the ``i``-th asked for."""
    scales = arm.curve.scales
    nearest = [int(j) for j in np.flatnonzero(np.abs(scales / x - 1) < 1e-6)]
    if not nearest:  # between two scales
        above = int(np.searchsorted(scales, x))
        nearest = [above - 1, above]
    factor, low, high, extrapolated, measured = np.nan, 0.0, np.inf, False, False
    said: list[str] = list(general)
    short = [j for j in nearest if not (arm.keep[j] or arm.wholly[j])]
    broken = sum(int(arm.diverged[j]) for j in nearest)
    if not general and short:
        said.append(f"fewer than three runs of the arm at {scales[short[0]]:.3g}")
    elif not general and arm.wholly[nearest].any():
        # Worse than any finite loss, so worse than the base's smallest scale.
        factor, high = 0.0, float(np.exp(base.log_x[0])) / x
        said.append(f"every run of the arm diverged at {scales[nearest[0]]:.3g}")
    elif not general and found is not None and pair is not None:
        measured = True
        with np.errstate(over="ignore"):
            factor, low, high = (float(np.exp(v[pair, i])) for v in (found.log_factor, found.low, found.high))
        extrapolated = bool(found.extrapolated[pair, i])
        said += _limits(found, pair, i, low, high, options)
        if broken:
            low = 0.0
            said.append(
                f"{broken} run{'s' if broken > 1 else ''} of the arm diverged, worse than any finite loss: "
                "its worth is at most that of the others"
            )
        if base.diverged.any():
            high = np.inf
            said.append(
                f"{int(base.diverged.sum())} runs of the base diverged, worse than any finite loss: the "
                "worth is at least what the others say"
            )
    if low > 0:
        kind = "interval" if np.isfinite(high) else "at least"
    else:
        kind = "at most" if np.isfinite(high) else "undetermined"
    return {
        "x": x, "factor": factor, "low": low, "high": high, "kind": kind, "extrapolated": extrapolated,
        "sentences": said, "lost": bool(broken), "measured": measured,
    }  # fmt: skip


def _limits(found: Distances, pair: int, i: int, low: float, high: float, options: Options) -> list[str]:
    """Why a set is open, or wider than it might be."""
    said = []
    if found.below_floor[pair, i]:
        said.append(
            f"the arm's loss lies below {found.floor[pair]:.4g}, the upper end of the interval of the base's "
            "floor: no amount of scale is known to bring the base there"
        )
    if found.interpolated[pair]:
        why = "" if options.form == "interpolation" else ", since a power law with a floor misses its means"
        said.append(f"the base's curve is interpolated{why}: it says nothing outside its scales")
    elif np.isinf(high) and not found.below_floor[pair, i]:
        said.append(f"above, the set passes {options.cap:g} times the base's largest scale and is cut there")
    if low == 0 and not found.interpolated[pair]:
        said.append(f"below, the set passes 1/{options.cap:g} of the base's smallest scale and is cut there")
    return said
