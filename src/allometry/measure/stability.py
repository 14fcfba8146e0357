"""At which size will a run become unstable, at the learning rate that is meant for it?

Wortsman and others, "Small-scale proxies for large-scale Transformer training instabilities", 2023,
arXiv:2309.14322, section 3.3: attention logits grow and gradients shrink like powers of size, and both depend
on the rate. Small runs at several sizes *and* rates tell both exponents; where the line at one's own rate
reaches the threshold, there it bites. `forecast_onset` is for one quantity at one rate and has other forms.

* ln y = a + b ln size + c ln rate, by least squares, a row a run. Limits of a size are those of a new run
  (Student's prediction interval), so that curvature that the small runs show as scatter widens them.
* A quantity whose exponent in size is not told from zero, or points away from its threshold, is said not to
  be seen, whatever a line through it would cross at some size.
* A lost run has no numbers. It is counted and left out, and it is where it bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from allometry.measure.sensitivity import _crossing

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["stability_forecast"]

Array = NDArray[np.float64]

THRESHOLDS = {
    "max attention logit": 1e4,  # where the paper sees training fail
    "log z": 128.0,  # from here on bfloat16 numbers are one apart, and differences of logits are lost
    "gradient rms": 1e-8,  # AdamW's epsilon, by torch's default
}


def stability_forecast(
    runs: Any,
    learning_rate: float,
    *,
    thresholds: Mapping[str, float] | None = None,
    by_module: bool = False,
    level: float = 0.9,
    reach: float = 1e6,
) -> pd.DataFrame:
    """How each quantity of small runs grows with size and learning rate, and at which size it bites.

    Parameters
    ----------
    runs : sequence of (size, learning rate, monitor), or DataFrame
        A monitor is an `allometry.measure.Monitor` after a run, or its table; its last step counts. A
        DataFrame has columns ``size``, ``learning_rate``, ``quantity``, ``value``, and may have ``module``
        and, to tell seeds apart, ``seed``. Sizes are parameters, widths or depths: whatever one scales.
    learning_rate : float
        The rate for which sizes are foretold.
    thresholds : mapping of quantity to threshold, optional
        By default largest attention logits of 1e4, an absolute log Z of 128, and gradients of 1e-8, which is
        AdamW's epsilon by default; those that were measured. It is crossed upwards where it lies above what
        the smallest runs have, downwards otherwise.
    by_module : bool
        A row for each module or parameter that all runs have, instead of the worst of each run.
    level : float
        Of all intervals.
    reach : float
        How many times beyond the largest size to look.

    Returns
    -------
    DataFrame
        Indexed by quantity (and module): ``size_exponent`` and ``rate_exponent`` with ``_low`` and ``_high``,
        ``threshold``, ``size`` at which it bites with ``low`` and ``high`` (infinite: not within reach),
        ``scatter`` (residual standard deviation in log10), ``runs``, ``lost``, and ``verdict``: "at this
        size", "already", "beyond reach" or "not seen".

    Raises
    ------
    ValueError
        For a quantity that was not measured, or fewer than two sizes, two rates, or four runs with numbers.

    Examples
    --------
    >>> runs = [(n, r, "max attention logit", n * r**0.5) for n in (64, 128, 256) for r in (0.01, 0.04, 0.16)]
    >>> columns = zip(("size", "learning_rate", "quantity", "value"), zip(*runs))
    >>> import pandas; found = stability_forecast(pandas.DataFrame(dict(columns)), 0.01)
    >>> found[["size_exponent", "rate_exponent", "size"]].round(1).loc["max attention logit"].tolist()
    [1.0, 0.5, 100000.0]
    """
    if not 0 < learning_rate < math.inf or not 0 < level < 1 or not reach > 1:
        raise ValueError(
            f"the rate is positive, level lies between 0 and 1 and reach above 1; got "
            f"{learning_rate}, {level}, {reach}"
        )
    frame = _frame(runs)
    measured = list(dict.fromkeys(frame["quantity"]))
    wanted = (
        dict(thresholds) if thresholds is not None else {k: v for k, v in THRESHOLDS.items() if k in measured}
    )
    unknown = [name for name in wanted if name not in measured]
    if unknown or not wanted:
        raise ValueError(
            f"{unknown[0] if unknown else 'nothing that has a threshold'} was not measured; measured were "
            f"{', '.join(map(str, measured)) or 'no quantities'}"
        )
    rows: dict[Any, dict[str, Any]] = {}
    for quantity, threshold in wanted.items():
        if not 0 < threshold < math.inf:
            raise ValueError(f"the threshold of {quantity!r} must be positive and finite, got {threshold}")
        part = frame[frame["quantity"] == quantity]
        for module, one in part.groupby("module", sort=False) if by_module else [("", part)]:
            if by_module and one["run"].nunique() < frame["run"].nunique():
                continue  # a layer that smaller models do not have
            key = (quantity, module) if by_module else quantity
            rows[key] = _row(one, str(quantity), float(threshold), learning_rate, level, reach)
    import pandas as pd

    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = (
        pd.MultiIndex.from_tuples(list(rows), names=["quantity", "module"])
        if by_module
        else pd.Index(list(rows), name="quantity")
    )
    return table


def _frame(runs: Any) -> pd.DataFrame:
    """size, learning_rate, quantity, module, value, run; absolute values, a row a module and run."""
    import pandas as pd

    if not isinstance(runs, pd.DataFrame):
        parts = []
        for number, (size, rate, told) in enumerate(runs):
            table = told.table() if hasattr(told, "table") else told
            table = table[table["step"] == table["step"].max()]
            parts.append(table.assign(size=size, learning_rate=rate, seed=number))
        if not parts:
            raise ValueError("there are no runs to forecast from")
        runs = pd.concat(parts, ignore_index=True)
    missing = [name for name in ("size", "learning_rate", "quantity", "value") if name not in runs]
    if missing:
        raise ValueError(
            f"the table of runs lacks {', '.join(missing)}; it has {', '.join(map(str, runs.columns))}"
        )
    frame = runs.copy()
    if "module" not in frame:
        frame["module"] = ""
    for name in ("size", "learning_rate"):
        values = frame[name].to_numpy(dtype=float)
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"{name} must be positive and finite in every row")
    keys = ["size", "learning_rate", *(["seed"] if "seed" in frame else [])]
    if "seed" in frame or _told_apart(frame):
        frame["run"] = frame.groupby(keys).ngroup()
    else:  # repeats of one module are runs that nothing tells apart
        frame["run"] = np.arange(len(frame))
    frame["value"] = frame["value"].abs()
    return frame


def _told_apart(frame: pd.DataFrame) -> bool:
    """Whether size and rate tell runs apart: no quantity of a module stands twice."""
    return not frame.duplicated(["size", "learning_rate", "quantity", "module"]).any()


def _row(
    part: pd.DataFrame, quantity: str, threshold: float, rate: float, level: float, reach: float
) -> dict[str, Any]:
    from scipy.stats import t

    # exactly 0 says that nothing flows there, as in a branch that starts at zero
    part = part[part["value"] != 0]
    smallest = part.loc[part["size"] == part["size"].min(), "value"]
    rises = bool(threshold > np.nanmedian(smallest.to_numpy(dtype=float)))
    runs = part.groupby("run").agg({
        "size": "first", "learning_rate": "first",
        "value": lambda one: one.max(skipna=False) if rises else one.min(skipna=False),
    })  # fmt: skip
    values = runs["value"].to_numpy(dtype=float)
    good = np.isfinite(values)
    size, eta = (runs[name].to_numpy(dtype=float)[good] for name in ("size", "learning_rate"))
    count = len(size)
    if len(np.unique(size)) < 2 or len(np.unique(eta)) < 2 or count < 4:
        raise ValueError(
            f"{quantity!r} needs two sizes, two rates and four runs that were not lost; it has "
            f"{len(np.unique(size))}, {len(np.unique(eta))} and {count}"
        )
    y = np.log(values[good])
    design = np.stack([np.ones(count), np.log(size), np.log(eta)], axis=1)
    if np.linalg.matrix_rank(design - [0, design[:, 1].mean(), design[:, 2].mean()]) < 3:
        raise ValueError(
            f"{quantity!r}: rates go with sizes, so that their parts cannot be told; run a full grid"
        )
    theta, *_ = np.linalg.lstsq(design, y, rcond=None)
    residual = y - design @ theta
    spread = math.sqrt(float(residual @ residual) / (count - 3))
    inverse = np.linalg.inv(design.T @ design)
    student = float(t.ppf((1 + level) / 2, count - 3))
    half = student * spread * np.sqrt(np.diag(inverse))

    grid = np.geomspace(size.min(), size.max() * reach, 4001)
    at = np.stack([np.ones_like(grid), np.log(grid), np.full_like(grid, math.log(rate))], axis=1)
    middle = at @ theta
    band = student * spread * np.sqrt(1 + np.einsum("ij,jk,ik->i", at, inverse, at))
    early, late = (middle + band, middle - band) if rises else (middle - band, middle + band)
    with np.errstate(over="ignore"):
        found, first, last = (
            _crossing(grid, np.exp(edge), threshold, rises) for edge in (middle, early, late)
        )
    towards = float(theta[1] - half[1]) > 0 if rises else float(theta[1] + half[1]) < 0
    if found <= size.min():
        verdict = "already"
    elif not towards:
        verdict, found, last = "not seen", math.inf, math.inf
    else:
        verdict = "at this size" if math.isfinite(found) else "beyond reach"
    return {
        "size_exponent": float(theta[1]), "size_low": float(theta[1] - half[1]),
        "size_high": float(theta[1] + half[1]), "rate_exponent": float(theta[2]),
        "rate_low": float(theta[2] - half[2]), "rate_high": float(theta[2] + half[2]),
        "threshold": threshold, "size": found, "low": first, "high": last,
        "scatter": spread / math.log(10), "runs": count, "lost": int((~good).sum()), "verdict": verdict,
    }  # fmt: skip
