"""The smallest model that is large enough for its data, and how it grows.

Joel Hestness et al., 2017 (arXiv:1712.00409): train a grid of model sizes on every size of sample; the least
error over models follows a power law in the samples, and so does the smallest model that reaches it,
s(m) = c m^p with p about 0.5 to 0.7.

- *Large enough* is an error within ``within`` of the least, not within noise of it: a noisier grid must not
  make smaller models look sufficient.  Between two sizes of the grid the place is interpolated, the
  excess over the least being about a power of the size.
- A sample whose sufficient model is the grid's smallest or largest only bounds it, and is left out of the
  exponent.
- Where the grid's largest model lacks something itself, the least is too high and the exponent too low: a
  grid to four times the sufficient size is worth its cost.
- The least of noisy errors is too low, most where the grid is large; ``selection`` chooses by other errors
  (those of a validation split) than are reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from allometry.laws.contrast import slope
from allometry.laws.learning_curve import LearningCurve
from allometry.laws.uncertainty import Interval

if TYPE_CHECKING:
    import pandas

__all__ = ["ModelSizeCurve", "model_size_curve"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ModelSizeCurve:
    """Best errors over model sizes, and the models that suffice.

    Attributes
    ----------
    samples : array (m,)
    best_size : array (m,)
        Model size with the least mean error.
    sufficient_size : array (m,)
        Smallest size within the tolerance of it, interpolated.
    inside : boolean array (m,)
        Where it lies inside the grid.
    exponent : Interval
        p of sufficient_size = c m^p; NaN with fewer than three samples inside.
    curve : LearningCurve
        Of the best errors over model sizes; not fitted.
    """

    samples: Array
    best_size: Array
    sufficient_size: Array
    inside: NDArray[np.bool_]
    exponent: Interval
    curve: LearningCurve

    @property
    def table(self) -> pandas.DataFrame:
        """One row a sample size."""
        import pandas

        return pandas.DataFrame(
            {"samples": self.samples, "error": self.curve.data().regions.errors, "best size": self.best_size,
             "sufficient size": self.sufficient_size, "inside": self.inside}
        )  # fmt: skip


def model_size_curve(
    grid: Mapping[tuple[float, float], ArrayLike],
    *,
    selection: Mapping[tuple[float, float], ArrayLike] | None = None,
    within: float = 0.02,
    level: float = 0.9,
    **options: Any,
) -> ModelSizeCurve:
    """From a grid of (samples, model size) to the composite learning curve and the sufficient model.

    Parameters
    ----------
    grid : mapping of (samples, model size) to an error, or to errors (seeds,)
        Every combination, with the same seeds.
    selection : mapping, optional
        Errors by which the best model is chosen, such as those on a validation split; by default the same.
    within : float
        A model is sufficient whose mean error is at most so much above the least, as a share.
    level : float
        Of the exponent's interval: Student's over samples, which holds the noise of the interpolation too.
    **options
        For the `LearningCurve`, such as ``best_guess``.

    Raises
    ------
    ValueError
        The grid has holes, fewer than two model sizes, or errors that are not positive.

    Examples
    --------
    >>> sizes, samples = 2.0 ** np.arange(20), 100 * 4.0 ** np.arange(5)
    >>> grid = {(m, s): m**-0.3 + m**0.3 / s for m in samples for s in sizes}
    >>> found = model_size_curve(grid, within=0.5)
    >>> round(found.exponent.value, 2), (found.sufficient_size / (2 * samples**0.6)).round(2).tolist()
    (0.6, [1.0, 1.0, 1.0, 1.0, 1.0])
    """
    samples, sizes, errors = _table(grid)
    chooser = errors if selection is None else _table(selection)[2]
    if chooser.shape[:2] != errors.shape[:2]:
        raise ValueError(f"selection has shape {chooser.shape[:2]}, the grid {errors.shape[:2]}")
    if not within > 0:
        raise ValueError(f"within must be positive, not {within}: no model is exactly as good as the best")
    mean = np.log(chooser).mean(axis=2)  # (samples, sizes)
    best = mean.argmin(axis=1)
    least = np.exp(mean.min(axis=1, keepdims=True))
    excess = np.exp(mean) / least - 1.0  # zero at the best
    first = (excess <= within).argmax(axis=1)
    rows = np.arange(len(samples))
    before = np.maximum(first - 1, 0)
    # capacity's part of the error is a power of the model's size: straight on log axes, where it is not zero
    high, low = excess[rows, before], np.maximum(excess[rows, first], within / 20)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(first > 0, np.log(high / within) / np.log(high / low), 1.0)
    sufficient = sizes[before] * (sizes[first] / sizes[before]) ** share
    # where the grid's last step still gains more than the tolerance, the errors fall on beyond it
    inside = (first > 0) & (first < len(sizes) - 1)
    exponent = Interval(float("nan"), float("nan"), float("nan"), level)
    if inside.sum() >= 3:
        found = slope(np.log(samples[inside]), np.log(sufficient[inside]), level=level)
        exponent = Interval(found.value, found.low, found.high, level)
    curve = LearningCurve(samples, errors[rows, best], **options)
    return ModelSizeCurve(samples, sizes[best], sufficient, inside, exponent, curve)


def _table(grid: Mapping[tuple[float, float], ArrayLike]) -> tuple[Array, Array, Array]:
    """Samples (m,), model sizes (s,) and errors (m, s, seeds)."""
    if not grid:
        raise ValueError("the grid is empty; give errors by (samples, model size)")
    samples, sizes = (np.unique(np.array([key[i] for key in grid], dtype=float)) for i in range(2))
    if len(sizes) < 2 or (samples <= 0).any() or (sizes <= 0).any():
        raise ValueError(f"a grid has two model sizes or more, all positive; given were {sizes.tolist()}")
    values = {(float(m), float(s)): np.atleast_1d(np.asarray(one, float)) for (m, s), one in grid.items()}
    seeds = {one.shape for one in values.values()}
    holes = [(m, s) for m in samples for s in sizes if (m, s) not in values]
    if holes or len(seeds) > 1:
        what = f"no error for samples {holes[0][0]:g} and size {holes[0][1]:g}" if holes else "other seeds"
        raise ValueError(f"the grid must hold every combination with the same seeds; it has {what}")
    out = np.array([[values[m, s] for s in sizes] for m in samples])
    if not (np.isfinite(out) & (out > 0)).all():
        raise ValueError(f"errors must be positive; one is {out[~(np.isfinite(out) & (out > 0))][0]}")
    return samples, sizes, out
