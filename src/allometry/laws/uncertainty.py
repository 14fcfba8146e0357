"""How sure a fitted law is: noise between and within runs, resampling by run, bootstrap intervals.

Losses read off one training run at several horizons share that run's luck, so the unit of resampling is the
run.

- *Many runs* (30 or more): pairs bootstrap.  Runs are drawn with replacement; counts become weights, the
  design stays (Efron, 1979; for clusters Cameron, Gelbach and Miller, 2008).
- *Few runs* (a ladder of four sizes and two seeds has eight): drawing runs with replacement loses whole sizes
  and understates the spread.  Instead new losses are drawn from the fitted law plus a two-level noise, one
  value a run and one a point, and refitted.  The two variances come from the residuals by the method of
  moments with exact traces, so what the fit absorbed is given back, and each resample draws its own scale
  from the chi-squared distribution with the degrees of freedom that are left: its intervals widen as
  Student's t does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Interval", "Noise", "bootstrap", "coverage", "estimate_noise"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with the limits of its interval; floats, or arrays of one shape."""

    value: Any
    low: Any
    high: Any
    level: float = 0.9

    @property
    def width(self) -> Any:
        """``high - low``."""
        return self.high - self.low

    def __contains__(self, truth: float) -> bool:
        return bool(np.all((self.low <= truth) & (truth <= self.high)))

    def __iter__(self) -> Any:
        return iter((self.value, self.low, self.high))

    def __str__(self) -> str:
        if np.ndim(self.value):
            return f"Interval of {np.size(self.value)} values at {self.level:.0%}"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class Noise:
    """Standard deviations of log residuals: of one run about the law, and of points about their run.

    ``degrees`` are the degrees of freedom left for the between-run value once the law's parameters are paid
    for.
    """

    between: float
    within: float
    degrees: float
    runs: int

    @property
    def total(self) -> float:
        """Standard deviation of a single new measurement of a new run, on the log scale."""
        return float(np.hypot(self.between, self.within))


def estimate_noise(residuals: Array, jacobian: Array, run: NDArray[np.intp]) -> tuple[Array, Array, Array]:
    """Between-run variance, within-run variance and degrees of freedom, each ``(curves,)``.

    With P the projector that the fit leaves over and B the one onto run means, E[r' B r] and E[r' (1 - B) r]
    are linear in the two variances; the two equations are solved and negative answers set to zero.

    Parameters
    ----------
    residuals : array (curves, n)
    jacobian : array (curves, p, n)
        Derivatives of the log-prediction for parameters that are free (zero rows for those at a bound).
    run : integer array (n,)
        Run of each point, 0 to runs - 1.
    """
    runs = int(run.max()) + 1
    n = residuals.shape[1]
    norms = np.sqrt(np.einsum("cpn,cpn->cp", jacobian, jacobian))
    unit = jacobian / np.where(norms > 0, norms, 1.0)[..., None]
    if runs == n:  # one point a run: between is all there is
        values = np.linalg.svd(unit, compute_uv=False)
        degrees = np.maximum(n - (values > 1e-7 * values[:, :1]).sum(axis=1), 1.0)
        variance = np.einsum("cn,cn->c", residuals, residuals) / degrees
        return variance, np.zeros_like(variance), degrees
    member = np.zeros((n, runs))
    member[np.arange(n), run] = 1.0
    average = member / np.sqrt(member.sum(axis=0))  # B = average @ average.T
    # An orthonormal basis (c, n, k) of what the fit can absorb; directions that the data cannot tell apart
    # drop out.
    left, values, _ = np.linalg.svd(unit.transpose(0, 2, 1), full_matrices=False)
    basis = np.where((values > 1e-7 * values[:, :1])[:, None], left, 0.0)

    def spread(vectors: Array) -> Array:  # (1 - H) v for columns v: (c, n, k)
        return vectors - basis @ (basis.transpose(0, 2, 1) @ vectors)

    left_over = spread(np.broadcast_to(np.eye(n), (len(residuals), n, n)))
    between_left = average.T @ left_over  # (c, runs, n)
    run_left = left_over @ member  # (c, n, runs)
    run_between = average.T @ run_left
    between_e = np.einsum("cgn,cgn->c", between_left, between_left)
    between_u = np.einsum("cgk,cgk->c", run_between, run_between)
    within_e = np.einsum("cnm,cnm->c", left_over, left_over) - between_e
    within_u = np.einsum("cnk,cnk->c", run_left, run_left) - between_u
    means = residuals @ average
    sum_between = (means**2).sum(axis=1)
    sum_within = (residuals**2).sum(axis=1) - sum_between
    determinant = between_e * within_u - between_u * within_e
    safe = np.where(np.abs(determinant) > 1e-12, determinant, np.inf)
    e = (sum_between * within_u - between_u * sum_within) / safe
    u = (between_e * sum_within - sum_between * within_e) / safe
    total = between_e + within_e
    pooled = (sum_between + sum_within) / np.maximum(total, 1.0)
    alone_e = np.where(u < 0, pooled, e)
    alone_u = np.where(e < 0, (sum_between + sum_within) / np.maximum(between_u + within_u, 1e-12), u)
    variance_e = np.where(u < 0, alone_e, np.maximum(e, 0.0))
    variance_u = np.where(u < 0, 0.0, np.maximum(alone_u, 0.0))
    return variance_u, variance_e, np.maximum(between_e, 1.0)


def resample_weights(run: NDArray[np.intp], count: int, generator: np.random.Generator) -> Array:
    """Multiplicities ``(count, n)`` of every point when whole runs are drawn with replacement."""
    runs = int(run.max()) + 1
    picks = generator.integers(0, runs, size=(count, runs))
    picks += runs * np.arange(count)[:, None]
    counts = np.bincount(picks.ravel(), minlength=count * runs).reshape(count, runs)
    return counts[:, run].astype(float)


def resample_noise(
    run: NDArray[np.intp],
    count: int,
    between: Array,
    within: Array,
    degrees: Array,
    generator: np.random.Generator,
) -> Array:
    """Two-level noise ``(curves, count, n)`` on the log scale, each resample with a scale of its own."""
    runs = int(run.max()) + 1
    shape = (len(between), count)
    scale = np.sqrt(degrees[:, None] / generator.chisquare(degrees[:, None], size=shape))
    luck = generator.standard_normal((*shape, runs)) * np.sqrt(between)[:, None, None]
    noise = generator.standard_normal((*shape, len(run))) * np.sqrt(within)[:, None, None]
    return scale[..., None] * (luck[..., run] + noise)


def bootstrap(
    statistic: Callable[..., Any],
    *columns: Any,
    unit: str = "seed",
    paired: bool = True,
    resamples: int = 2000,
    level: float = 0.9,
    random_state: int = 0,
) -> Interval:
    """Percentile bootstrap of a statistic of one or more columns.

    Parameters
    ----------
    statistic : callable
        Takes as many arrays as there are columns and reduces their last axis (as ``np.mean(a, axis=-1)``
        does), so that all resamples are one call.  A statistic without an ``axis`` is called once a resample.
    *columns : array (n,) or (n, ...)
        The first axis is the unit that is resampled: seeds, or items.
    unit : {"seed", "item"}
        What the first axis holds.  Seeds are few: fewer than three are refused.
    paired : bool
        One draw of indices for all columns (they share seeds or items), or one for each.
    resamples, level, random_state
        Number of resamples, level of the interval, seed of the generator.

    Raises
    ------
    ValueError
        Columns are empty or not finite, paired columns differ in length, or there are fewer than three seeds.

    Examples
    --------
    >>> import numpy as np
    >>> gap = bootstrap(lambda a, b: np.mean(a - b, axis=-1), [1.2, 1.3, 1.1, 1.2], [1.0, 1.1, 1.0, 0.9])
    >>> bool(gap.low > 0.1), round(gap.value, 3)
    (True, 0.2)
    """
    if unit not in ("seed", "item"):
        raise ValueError(f"unit must be 'seed' or 'item', not {unit!r}")
    if not columns:
        raise ValueError("bootstrap needs at least one column to resample")
    arrays = [np.asarray(column, dtype=float) for column in columns]
    lengths = [len(array) if array.ndim else 0 for array in arrays]
    if min(lengths) < (3 if unit == "seed" else 2):
        raise ValueError(
            f"columns hold {lengths} {unit}s; an interval needs at least {3 if unit == 'seed' else 2}"
        )
    if paired and len(set(lengths)) > 1:
        raise ValueError(f"paired columns must be of one length, not {lengths}; pass paired=False otherwise")
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("columns hold values that are not finite; drop those units or count them apart")
    generator = np.random.default_rng(random_state)
    draws: list[NDArray[np.intp]] = []
    for length in lengths:
        if not draws or not paired:
            draws.append(generator.integers(0, length, size=(resamples, length)))
        else:
            draws.append(draws[0])
    value = statistic(*[np.moveaxis(array, 0, -1) for array in arrays])
    taken = [np.moveaxis(array[index], 1, -1) for array, index in zip(arrays, draws, strict=True)]
    answers = np.asarray(statistic(*taken))
    if answers.shape[:1] != (resamples,):  # the statistic reduced everything: call it a resample at a time
        answers = np.array([statistic(*[part[i] for part in taken]) for i in range(resamples)])
    low, high = np.quantile(answers, [(1 - level) / 2, (1 + level) / 2], axis=0)
    if np.ndim(value) == 0:
        return Interval(float(value), float(low), float(high), level)
    return Interval(np.asarray(value), low, high, level)


def coverage(
    truth: Callable[[Array], Array] | Any,
    form: Any,
    design: Any,
    target: Any,
    *,
    run: Sequence[Any] | NDArray[Any],
    between: float = 0.01,
    within: float = 0.004,
    simulations: int = 200,
    resamples: int = 300,
    level: float = 0.9,
    random_state: int = 0,
    **options: Any,
) -> dict[str, float]:
    """Simulate how often intervals at ``target`` cover, and how wide they are.

    Parameters
    ----------
    truth : callable
        Noise-free loss at a mapping of columns (as ``Fit.predict`` is).
    form : str or Form
        The form that is fitted, the true one or not.
    design, target : mapping of columns
        Where losses are measured, and the one place where they are foretold.
    run : sequence (n,)
        Run of each point of the design.
    between, within : float
        Standard deviations of log losses, of a run and of a point within its run.
    simulations, resamples, level, random_state, **options
        Passed on to `fit` where it knows them.

    Returns
    -------
    dict
        ``mean`` and ``prediction`` coverage, median widths relative to the true loss, and the median relative
        error.
    """
    from allometry.laws.fit import fit

    generator = np.random.default_rng(random_state)
    labels = np.unique(np.asarray(run), return_inverse=True)[1]
    clean = np.log(np.asarray(truth(design), dtype=float))
    goal = float(np.ravel(truth(target))[0])
    luck = generator.standard_normal((simulations, labels.max() + 1))[:, labels] * between
    y = np.exp(clean + luck + generator.standard_normal((simulations, len(clean))) * within)
    fits = fit(form, design, y, run=run, resamples=resamples, random_state=random_state, **options)
    new_run = goal * np.exp(generator.standard_normal(simulations) * np.hypot(between, within))
    hits = np.zeros((simulations, 2), dtype=bool)
    widths = np.zeros((simulations, 2))
    errors = np.zeros(simulations)
    for i, one in enumerate(fits):
        mean = one.interval(target, level=level)
        wide = one.interval(target, level=level, kind="prediction")
        hits[i] = [np.ravel(mean.low)[0] <= goal <= np.ravel(mean.high)[0],
                   np.ravel(wide.low)[0] <= new_run[i] <= np.ravel(wide.high)[0]]  # fmt: skip
        widths[i] = np.ravel(mean.width)[0] / goal, np.ravel(wide.width)[0] / goal
        errors[i] = abs(np.ravel(mean.value)[0] / goal - 1)
    return {
        "simulations": simulations,
        "mean coverage": float(hits[:, 0].mean()),
        "mean width": float(np.median(widths[:, 0])),
        "prediction coverage": float(hits[:, 1].mean()),
        "prediction width": float(np.median(widths[:, 1])),
        "median error": float(np.median(errors)),
    }
