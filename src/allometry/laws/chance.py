"""Pass rates above what guessing gives: ``p = (passed - g) / (1 - g)``, g the chance of a guess.

A question with four choices is passed by a quarter of all guesses, and a rate that no guess explains is what
the task law is about (Hu and others, 2023, arXiv:2310.03262, whose tasks have no chance level). The law
takes counts as they are and says so; this is the corrected rate, with an interval of its own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from allometry.laws.uncertainty import Interval

__all__ = ["above_chance"]


def above_chance(successes: ArrayLike, trials: ArrayLike, chance: ArrayLike, level: float = 0.95) -> Interval:
    """Rate at which a question is passed other than by a guess.

    Parameters
    ----------
    successes, trials, chance : arrays that broadcast
        Draws that passed and draws made; probability that a guess passes, such as one over the choices.
    level : float
        Of the interval: the exact limits of Clopper and Pearson (1934), corrected as the rate is and cut off
        at zero. A rate below chance is told as it is found, below zero.

    Returns
    -------
    Interval
        Arrays of the common shape.

    Raises
    ------
    ValueError
        Counts that cannot be, or a chance outside [0, 1).

    Examples
    --------
    >>> told = above_chance(400, 1000, 0.25)
    >>> round(float(told.value), 3), round(float(told.low), 3), round(float(told.high), 3)
    (0.2, 0.159, 0.241)
    """
    from scipy.stats import beta

    s, k, g = np.broadcast_arrays(*(np.asarray(one, dtype=float) for one in (successes, trials, chance)))
    if not ((s >= 0) & (s <= k) & (k > 0) & np.isfinite(k)).all():
        raise ValueError("successes must lie between 0 and the trials, of which there is at least one")
    if not ((g >= 0) & (g < 1)).all():
        raise ValueError(
            f"chance must be a probability below 1, such as 0.25 of four choices, not {g.max():g}"
        )
    if not 0 < level < 1:
        raise ValueError(f"level is a share between 0 and 1, not {level}")
    tail = (1 - level) / 2
    low = np.where(s > 0, beta.ppf(tail, np.maximum(s, 1), k - s + 1), 0.0)
    high = np.where(s < k, beta.ppf(1 - tail, s + 1, np.maximum(k - s, 1)), 1.0)
    value, low, high = ((one - g) / (1 - g) for one in (s / k, low, high))
    return Interval(value, np.maximum(low, 0.0), np.maximum(high, 0.0), level)
