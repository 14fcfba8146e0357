"""Two results of one study side by side: a rerun beside its evidence, one profile beside another.

Means are compared where both have been, by Welch's interval for a difference, which does not ask that the two
scatter alike. Numbers on different data are not compared: the standard library's text differs by version, and
trials tell the digest of what they read as ``"data"``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from allometry.study.claim import Estimate

if TYPE_CHECKING:
    import pandas

    from allometry.study.result import Result


def welch(ours: Any, theirs: Any, *, level: float = 0.95, what: str = "") -> Estimate:
    """Mean of independent values less that of others, with Welch's interval.

    Parameters
    ----------
    ours, theirs : array-like of float
        One value a seed; one that is not finite leaves the difference undefined.

    Examples
    --------
    >>> one = welch([1.0, 1.1, 0.9], [2.0, 2.3, 1.7])
    >>> f"{one.value:.2f} {one.low:.2f} {one.high:.2f}"
    '-1.00 -1.66 -0.34'
    """
    from scipy import stats

    a, b = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    n = min(len(a), len(b))
    value = float(a.mean() - b.mean()) if n else math.nan
    if n < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Estimate(value, -math.inf, math.inf, level, n, what=what)
    parts = [float(one.var(ddof=1)) / len(one) for one in (a, b)]
    spread = math.sqrt(sum(parts))
    if spread == 0.0:
        return Estimate(value, value, value, level, n, what=what)
    degrees = sum(parts) ** 2 / sum(part**2 / (len(one) - 1) for part, one in zip(parts, (a, b), strict=True))
    half = float(stats.t.ppf(0.5 + level / 2.0, degrees)) * spread
    return Estimate(value, value - half, value + half, level, n, what=what)


def compare(one: Result, other: Result, *, level: float = 0.95) -> pandas.DataFrame:
    """The first measure of both, arm by arm and point by point, where both have runs.

    Returns
    -------
    DataFrame
        ``arm``, the axes, ``first``, ``second`` (means over seeds), ``difference``, ``low``, ``high`` (of the
        second less the first), ``agree``: whether the interval holds zero; None where no interval can be had
        or the data differ, and ``same_data``; None where a trial does not tell its data.

    Raises
    ------
    ValueError
        There is no point at which both have been.
    """
    import pandas

    study = one.study
    names, measure = [axis.name for axis in study.axes], study.measures[0]
    groups = [dict(iter(result.table.groupby(["arm", *names], sort=False))) for result in (one, other)]
    rows = []
    for key, part in groups[0].items():
        if key not in groups[1]:
            continue
        values = [
            some.groupby("seed")[measure]
            .agg(lambda few: few.astype(float).mean(skipna=False))
            .to_numpy(float)
            for some in (part, groups[1][key])
        ]
        gap = welch(values[1], values[0], level=level)
        same = _same_data(part, groups[1][key])
        known = math.isfinite(gap.low) and math.isfinite(gap.high) and same is not False
        rows.append(
            dict(zip(["arm", *names], key, strict=True))
            | {
                "first": float(values[0].mean()), "second": float(values[1].mean()),
                "difference": gap.value, "low": gap.low, "high": gap.high,
                "agree": bool(gap.low <= 0.0 <= gap.high) if known else None, "same_data": same,
            }
        )  # fmt: skip
    if not rows:
        raise ValueError(
            f"the two results of {study.name} ({one.profile} and {other.profile}) share no point of "
            f"{', '.join(names)}; there is nothing to compare"
        )
    return pandas.DataFrame(rows)


def _same_data(one: pandas.DataFrame, other: pandas.DataFrame) -> bool | None:
    if "data" not in one or "data" not in other:
        return None
    found = [set(part["data"].dropna()) for part in (one, other)]
    return found[0] == found[1] if all(found) else None
