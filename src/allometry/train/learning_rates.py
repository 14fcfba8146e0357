"""The best learning rate, and the largest that still trains, from short runs.

* The best rate is the bottom of a valley that may be skewed and end at a wall
  (:mod:`allometry.train.valley`). Where each rate was run with several seeds, the jackknife over seeds gives
  the interval's noise; with one run a rate it comes from the misfit.
* A lowest point at the edge of the grid, or beside a lost run, is a bound and no minimum, and is said to be.
* A lost run is a row with its status, never a missing row.
* The largest stable rate is found by bisection in the logarithm (learning-rate sensitivity in the manner of
  Wortsman and others, 2023. arXiv:2309.14322).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from allometry.train.valley import Valley, unbroken

Edge = Literal["low", "high"]


def learning_rate_sweep(
    run: Callable[[float], Any] | Callable[[list[float]], Sequence[Any]],
    grid: Sequence[float],
    *,
    together: bool = False,
) -> pd.DataFrame:
    """Run each rate of a grid.

    Parameters
    ----------
    run : rate -> loss, or with ``together`` list of rates -> list of losses
        ``together`` is for stacked runs. A loss may be a float, a sequence of floats (one a seed), or a
        mapping with ``loss`` and, where the run knows, ``status``.
    grid : sequence of float
        Positive and different; sorted before anything runs.
    together : bool

    Returns
    -------
    DataFrame
        learning_rate, seed, loss, status ("done" or "diverged"); a row a rate and seed. A loss that is not
        finite is stored as nan, with status "diverged".

    Raises
    ------
    ValueError
        For a grid that is empty, not positive or with repeats, or a wrong number of losses.

    >>> table = learning_rate_sweep(lambda rate: float("nan") if rate > 1 else rate, [0.1, 10.0])
    >>> table["status"].tolist()
    ['done', 'diverged']
    """
    rates = sorted(float(rate) for rate in grid)
    if not rates or rates[0] <= 0 or not all(map(math.isfinite, rates)):
        raise ValueError(f"a grid of learning rates holds positive numbers, got {list(grid)}")
    if len(set(rates)) != len(rates):
        raise ValueError(f"each learning rate belongs in the grid once, got {list(grid)}")
    results: Sequence[Any] = run(rates) if together else [run(rate) for rate in rates]  # type: ignore
    if len(results) != len(rates):
        raise ValueError(f"run gave {len(results)} losses for {len(rates)} learning rates")
    rows = []
    for rate, result in zip(rates, results, strict=True):
        for seed, (loss, status) in enumerate(_outcomes(result)):
            rows.append({"learning_rate": rate, "seed": seed, "loss": loss, "status": status})
    return pd.DataFrame(rows, columns=["learning_rate", "seed", "loss", "status"])


def _outcomes(result: Any) -> list[tuple[float, str]]:
    if isinstance(result, Mapping):
        values, status = result["loss"], str(result.get("status", "done"))
    else:
        values, status = result, "done"
    losses = np.atleast_1d(np.asarray(values, dtype=float)).tolist()
    return [
        (loss, status) if math.isfinite(loss) else (math.nan, "diverged" if status == "done" else status)
        for loss in losses
    ]


@dataclass(frozen=True)
class BestRate:
    """An estimate of the best learning rate.

    Attributes
    ----------
    rate : float
        Where the fitted loss is lowest; at an edge, the lowest point itself.
    low, high : float
        95 % interval; at an edge it is open on that side (0 or infinity).
    loss : float
        Fitted loss there.
    curvature : float
        Second derivative of the loss in log2 of the rate; nan at an edge. Off by a factor of two, a run
        loses half of it.
    edge : "low", "high" or None
        The end of the usable grid at which the lowest point lies. A neighbour that diverged counts as an end.
    by : "seeds", "misfit" or "edge"
        What the interval's noise comes from. With three rates and one seed a parabola has no misfit: the
        interval is then the spacing of the grid.
    """

    rate: float
    low: float
    high: float
    loss: float
    curvature: float
    edge: Edge | None
    by: Literal["seeds", "misfit", "spacing", "edge"]


def best_learning_rate(curve: pd.DataFrame) -> BestRate:
    """The best rate of a sweep, with its interval.

    Parameters
    ----------
    curve : DataFrame
        ``learning_rate``, ``loss`` and, where known, ``status`` and ``seed``, as from
        :func:`learning_rate_sweep`.

    Raises
    ------
    ValueError
        If no run ended well, or columns are missing.

    >>> rates = [2.0**k for k in range(-4, 4)]
    >>> curve = learning_rate_sweep(lambda rate: (math.log2(rate) + 0.5) ** 2, rates)
    >>> round(math.log2(best_learning_rate(curve).rate), 6)
    -0.5
    """
    if not {"learning_rate", "loss"} <= set(curve.columns):
        raise ValueError(f"the curve needs columns learning_rate and loss, got {list(curve.columns)}")
    values = curve["loss"].to_numpy(dtype=float)
    good = np.isfinite(values)
    if "status" in curve:
        good &= curve["status"].to_numpy() == "done"
    rates, row = np.unique(curve["learning_rate"].to_numpy(dtype=float), return_inverse=True)
    fine = np.bincount(row, weights=~good) == 0  # a rate at which any seed was lost is not usable
    if not fine.any():
        raise ValueError("every run of the sweep was lost; try lower learning rates")
    means = np.bincount(row, weights=np.where(good, values, 0.0)) / np.bincount(row)
    usable = unbroken(means, fine)
    runs = means[usable, None]
    if "seed" in curve:
        names, column = np.unique(curve["seed"].to_numpy(), return_inverse=True)
        seeds = np.full((len(rates), len(names)), np.nan)
        seeds[row, column] = values
        if np.isfinite(seeds[usable]).all():
            runs = seeds[usable]
    found = Valley.of(np.log2(rates[usable]), runs, 0.95)
    return BestRate(
        float(2.0 ** found.best[0]), 2.0**found.low, 2.0**found.high, float(found.bottom[0]), found.curvature,
        found.edge or None, found.by,
    )  # fmt: skip


@dataclass(frozen=True)
class StableRate:
    """The largest stable learning rate lies between two runs.

    Attributes
    ----------
    rate : float
        The largest rate that was run and stayed stable; nan where even ``low`` did not.
    unstable : float
        The smallest larger rate that was run and failed; infinity where even ``high`` was stable.
    runs : DataFrame
        learning_rate, loss, status of every run, in the order in which they were made.
    """

    rate: float
    unstable: float
    runs: pd.DataFrame


def max_stable_learning_rate(
    run: Callable[[float], Any],
    low: float,
    high: float,
    rule: Callable[[float], bool] | None = None,
    *,
    factor: float = 1.1,
) -> StableRate:
    """Bisect, in the logarithm, for the largest learning rate whose run is stable.

    Parameters
    ----------
    run : rate -> loss
        Or a mapping with ``loss`` and ``status``, as in :func:`learning_rate_sweep`.
    low, high : float
        Ends of the search, 0 < low < high. Both are run first.
    rule : loss -> bool, optional
        Whether a finite loss counts as stable; by default every finite loss of a run that is "done" does.
    factor : float
        Stop once the two rates are within this factor, above 1.

    Raises
    ------
    ValueError
        For ends that are not positive and in order, or a factor of 1 or less.

    >>> found = max_stable_learning_rate(lambda rate: math.inf if rate > 0.3 else 1.0, 0.01, 10.0)
    >>> found.rate <= 0.3 < found.unstable < 1.1 * found.rate
    True
    """
    if not 0 < low < high < math.inf:
        raise ValueError(f"the search needs 0 < low < high, got low={low} and high={high}")
    if not factor > 1:
        raise ValueError(f"factor must be above 1, got {factor}")
    rows: list[dict[str, Any]] = []

    def stable(rate: float) -> bool:
        outcomes = _outcomes(run(rate))
        loss = float(np.mean([loss for loss, _ in outcomes]))
        good = all(status == "done" for _, status in outcomes) and (rule is None or rule(loss))
        status = "done" if good else next((status for _, status in outcomes if status != "done"), "unstable")
        rows.append({"learning_rate": rate, "loss": loss, "status": status})
        return good

    below, above = float(low), float(high)
    if not stable(below):
        return StableRate(math.nan, below, pd.DataFrame(rows))
    if stable(above):
        return StableRate(above, math.inf, pd.DataFrame(rows))
    while above / below > factor:
        middle = math.sqrt(below * above)
        if stable(middle):
            below = middle
        else:
            above = middle
    return StableRate(below, above, pd.DataFrame(rows))
