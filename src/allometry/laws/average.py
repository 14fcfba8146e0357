"""Several forms at once: what laws say together that the data cannot tell apart.

Resampling a fit shows what noise does to one form. Beyond the data the choice of form matters more, and
nothing in the resamples says so. `Average` gives each form the same say: its prediction is the geometric mean
of theirs, its interval is drawn from all of their draws, so that where they disagree it grows.  Equal
weights, because information criteria count points, and the points of a few runs are not independent (Draper,
1995, on form as a part of uncertainty; Claeskens et al., 2016, on why equal weights are hard to beat).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from allometry.laws.fit import Fit
from allometry.laws.uncertainty import Interval

__all__ = ["Average"]


class Average:
    """Fits of different forms to the same data, as one law.

    Parameters
    ----------
    fits : sequence of Fit
        At least one; each with draws, where intervals are wanted.

    Examples
    --------
    >>> from allometry.laws import fit
    >>> x = [1e6, 3e6, 1e7, 3e7, 1e8, 3e8]
    >>> y = [1 + (n / 1e6) ** -0.5 for n in x]
    >>> both = Average([fit(form, x, y, resamples=100) for form in ("power", "power-offset")])
    >>> bool(both.fits[0].predict([1e10])[0] < both.predict([1e10])[0] < both.fits[1].predict([1e10])[0])
    True
    """

    def __init__(self, fits: Sequence[Fit]) -> None:
        self.fits = list(fits)
        if not self.fits:
            raise ValueError("an average needs at least one fit")

    def predict(self, x: Any) -> NDArray[np.float64]:
        """Geometric mean of the forms' predictions, shape (m,)."""
        return np.exp(np.mean([np.log(one.predict(x)) for one in self.fits], axis=0))

    def interval(self, x: Any, level: float = 0.9, kind: str = "mean") -> Interval:
        """As `Fit.interval`, from the draws of all forms, each form's as many."""
        spreads = [one.spread(x, kind) for one in self.fits]
        count = min(len(spread) for spread in spreads)
        # draws are exchangeable, so the first of each are as good as any
        pooled = np.concatenate([spread[:count] for spread in spreads])
        low, high = np.exp(np.quantile(pooled, [(1 - level) / 2, (1 + level) / 2], axis=0))
        value = self.predict(x)
        if all(np.ndim(one) == 0 for one in (x.values() if isinstance(x, dict) else [x])) and len(value) == 1:
            return Interval(float(value[0]), float(low[0]), float(high[0]), level)
        return Interval(value, low, high, level)

    def __repr__(self) -> str:
        return f"Average({', '.join(one.form.name for one in self.fits)})"
