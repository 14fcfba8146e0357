"""Worth beside what a notebook does: two ``curve_fit`` calls a resample in a loop, percentiles of a ratio.

The peer is given the same resamples (runs drawn within their cell, twins together), good starts (the point
fits) and bounds, and reads the base's curve backwards in closed form.  It gets no inverted test, no trend and
no smallest detectable worth; we do all of that.
"""

from __future__ import annotations

import numpy as np
import scipy
from scipy.optimize import curve_fit

from allometry.laws.curve import Curve
from allometry.laws.worth import worth, worths
from benchmarks import Case

_RESAMPLES = 1000
_PEER = 20  # resamples in one call of the peer, whose time is scaled to all of them
_ARMS = 8


def _law(x: np.ndarray, floor: float, height: float, alpha: float) -> np.ndarray:
    return np.log(floor + np.exp(height - alpha * x))


def _fit(x: np.ndarray, log_y: np.ndarray, start: np.ndarray) -> np.ndarray:
    bounds = ([0.0, -20.0, 1e-3], [20.0, 20.0, 2.0])
    return curve_fit(_law, x, log_y, p0=start, bounds=bounds, maxfev=5000)[0]


def cases() -> list[Case]:
    """One arm, and eight arms, at five scales and three seeds, with a thousand resamples."""
    generator = np.random.default_rng(0)
    x = 1e12 * 4.0 ** np.arange(5)
    log_x = np.log(x / x[0])

    def losses(factor: float, shared: np.ndarray) -> np.ndarray:
        clean = 1.5 + 1.5 * (factor * x / x[0]) ** -0.3
        return clean[:, None] * np.exp(0.0045 * shared + 0.002 * generator.standard_normal(shared.shape))

    shared = generator.standard_normal((5, 3))
    base = losses(1.0, shared)
    arms = [losses(1.1 + 0.1 * i, shared) for i in range(_ARMS)]
    ground = Curve(x, base)
    curves = {f"arm {i}": Curve(x, arm) for i, arm in enumerate(arms)}
    first = np.array([1.5, 0.4, 0.3])
    points = {i: _fit(log_x, np.log(y).mean(axis=1), first) for i, y in enumerate([base, *arms])}
    widen = np.sqrt(3 / 2)

    def notebook(which: int) -> tuple[float, float]:
        ratios = []
        logs = [np.log(base), np.log(arms[which])]
        for _ in range(_PEER):
            pick = generator.integers(0, 3, size=(5, 3))
            drawn = []
            for y, start in zip(logs, (points[0], points[which + 1]), strict=True):
                mean = y.mean(axis=1)
                away = widen * np.take_along_axis(y - mean[:, None], pick, axis=1).mean(axis=1)
                drawn.append(_fit(log_x, mean + away, start))
            target = np.exp(_law(log_x[-1:], *drawn[1]))[0] - drawn[0][0]
            if target > 0:
                ratios.append(np.exp((drawn[0][1] - np.log(target)) / drawn[0][2] - log_x[-1]))
        low, high = np.quantile(ratios, [0.05, 0.95])
        return float(low), float(high)

    note = (
        f"the peer's time is that of {_PEER} resamples an arm, scaled to {_RESAMPLES}; ours has the set by "
        "an inverted test at all five scales, the trend and the smallest detectable worth as well."
    )
    return [
        Case(
            "worth: one arm, 1000 resamples",
            lambda: worth(ground, curves["arm 4"], resamples=_RESAMPLES),
            lambda: notebook(4),
            f"SciPy {scipy.__version__} loop of curve_fit",
            20.0,
            peer_scale=_RESAMPLES / _PEER,
            rounds=5,
            note=note,
        ),
        Case(
            "worth: eight arms, 1000 resamples",
            lambda: worths(ground, curves, resamples=_RESAMPLES),
            lambda: [notebook(i) for i in range(_ARMS)],
            f"SciPy {scipy.__version__} loop of curve_fit",
            20.0,
            peer_scale=_RESAMPLES / _PEER,
            rounds=5,
            note=note,
        ),
    ]
