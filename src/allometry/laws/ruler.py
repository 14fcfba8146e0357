"""The ruler: a straight line through the two largest runs, log loss against log scale.

It is what anybody does who has no law, it has nothing to choose and nothing to fit, and near the data it is
hard to beat: the curvature that a law adds takes decades to show.  So a law's error is worth knowing only
beside the ruler's on the same records.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import pandas

__all__ = ["Ruled", "reach", "ruled", "ruler"]

Array = NDArray[np.float64]
_SAME = 1.1  # factor within which two ratios, or the compute of two runs of one rung, are the same
_APART = 1.5  # factor of scale from which two rungs can hold a line


def reach(at: ArrayLike, below: float, last: float) -> Array:
    """How many times the distance between two rungs, in log scale, a place lies beyond the last.

    >>> float(reach(8e9, 2e9, 4e9).round(12))
    1.0
    """
    return np.asarray(np.log(np.asarray(at, dtype=float) / last) / np.log(last / below))


def ruler(
    scale: ArrayLike,
    loss: ArrayLike,
    at: ArrayLike,
    *,
    ratio: ArrayLike | None = None,
    at_ratio: ArrayLike | None = None,
) -> Array:
    """Losses by the line through two rungs, one line for each place.

    Runs of one scale (within 10 %) and one ratio are a rung: their log losses are averaged.  The line of a
    place goes through the two rungs of largest scale among those of the place's own tokens-per-parameter
    ratio (within 10 %).  Where there are not two of these that lie a factor of 1.5 apart in scale, as with
    runs at unequal token multiples, it goes through the two of largest scale whatever their ratios: the
    largest, and the largest of those at most two thirds of it.  Of several rungs of one scale that of least
    loss counts.

    Parameters
    ----------
    scale, loss : array (n,)
        Compute of each run, or whatever its loss falls with, and the loss.
    at : array (m,)
        Scales of the places.
    ratio, at_ratio : array (n,) and (m,), optional
        Tokens a parameter.  Without them all runs are of one ratio.

    Returns
    -------
    array (m,)
        NaN where there are no two rungs.

    Examples
    --------
    >>> ruler([1e9, 1e10, 1e11], [4.0, 3.0, 2.0], [1e12]).round(6).tolist()
    [1.333333]
    """
    log_x, log_y = np.log(np.asarray(scale, dtype=float)), np.log(np.asarray(loss, dtype=float))
    places = np.atleast_1d(np.asarray(at, dtype=float))
    mine = np.zeros_like(log_x) if ratio is None else np.log(np.asarray(ratio, dtype=float))
    theirs = np.zeros_like(places)
    if ratio is not None and at_ratio is not None:
        theirs = np.log(np.atleast_1d(np.asarray(at_ratio, dtype=float)))
    out = np.full(len(places), np.nan)
    for i, (place, wanted) in enumerate(zip(places, theirs, strict=True)):
        near = np.abs(mine - wanted) <= np.log(_SAME)
        line = _two(log_x[near], log_y[near], mine[near]) or _two(log_x, log_y, mine)
        if line is not None:
            (below, above), (last, least) = line
            out[i] = np.exp(least + reach(place, np.exp(below), np.exp(last)) * (least - above))
    return out


def _two(x: Array, y: Array, ratio: Array) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """The lower and the upper of the two rungs, each as log scale and mean log loss."""
    if not len(x):
        return None
    last = _rung(x, y, ratio)
    below = x <= last[0] - np.log(_APART)
    return (_rung(x[below], y[below], ratio[below]), last) if below.any() else None


def _rung(x: Array, y: Array, ratio: Array) -> tuple[float, float]:
    """The largest scale's rung: of runs within a tenth of it those of the ratio with the least mean loss."""
    top = x >= x.max() - np.log(_SAME)
    x, y, ratio = x[top], y[top], ratio[top]
    groups = [np.abs(ratio - one) <= np.log(_SAME) for one in np.unique(ratio)]
    best = min(groups, key=lambda group: float(y[group].mean()))
    return float(x[best].mean()), float(y[best].mean())


@dataclass(frozen=True)
class Ruled:
    """What a ruler laid through the other records said of those held out.

    Attributes
    ----------
    scale : str
        The column along which it lay.
    values : array (held,)
        Losses, NaN where there were no two rungs.
    error, bias : float
        Root mean square and mean of log predicted minus log observed.
    """

    scale: str
    values: Array
    error: float
    bias: float


def ruled(points: pandas.DataFrame, held: NDArray[np.bool_], scale: str) -> Ruled:
    """The ruler in a backtest: along compute where it is known, else along ``scale``.

    Parameters
    ----------
    points : DataFrame
        Records with ``loss`` and the scales that are known.
    held : array (n,) of bool
        The records to foretell from the others.
    scale : str

    Examples
    --------
    >>> import pandas
    >>> table = pandas.DataFrame({"flops": [1e9, 1e10, 1e11, 1e12], "loss": [4.0, 3.0, 2.0, 1.5]})
    >>> ruled(table, table["flops"].to_numpy() > 5e11, "flops").values.round(6).tolist()
    [1.333333]
    """
    by = "flops" if "flops" in points else scale
    along, loss = points[by].to_numpy(float), points["loss"].to_numpy(float)
    ratio = np.ones(len(points))
    if "params" in points and "tokens" in points:
        ratio = (points["tokens"] / points["params"]).to_numpy(float)
    values = ruler(along[~held], loss[~held], along[held], ratio=ratio[~held], at_ratio=ratio[held])
    miss = np.log(values / loss[held])
    return Ruled(by, values, float(np.sqrt(np.mean(miss**2))), float(miss.mean()))
