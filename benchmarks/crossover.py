"""The joint bootstrap of two curves with floors, beside a loop of SciPy's `curve_fit` and `brentq`.

Both resample the seeds of both arms together, refit both laws and find the crossing of each resample.  The
peer is given its best form: exact derivatives, the point optimum as its start, no bounds (so that it uses
MINPACK), and the bracket of the point's crossing.
"""

from __future__ import annotations

import itertools

import numpy as np
import scipy
from scipy.optimize import brentq, curve_fit

from allometry import laws
from benchmarks import Case

_SCALES = np.geomspace(1e6, 3.2e7, 6)
_SEEDS = 5
_RESAMPLES = 2000
_REFITS = 20  # resamples of the peer in one call; 2 000 are wanted
_CALLS = 4  # of ours in one round


def _law(u: np.ndarray, floor: float, log_a: float, alpha: float) -> np.ndarray:
    return floor + np.exp(log_a - alpha * u)


def _slopes(u: np.ndarray, floor: float, log_a: float, alpha: float) -> np.ndarray:
    term = np.exp(log_a - alpha * u)
    return np.stack([np.ones_like(u), term, -u * term], axis=1)


def _curves() -> tuple[laws.Curve, laws.Curve]:
    generator = np.random.default_rng(0)
    out = []
    for alpha in (0.25, 0.40):
        clean = 1.0 + 2.0 * (_SCALES / 6e6)[:, None] ** -alpha
        out.append(laws.Curve(_SCALES, clean * np.exp(0.01 * generator.normal(size=(6, _SEEDS)))))
    return out[0], out[1]


def cases() -> list[Case]:
    """2 000 resamples of both arms: refits, crossings, the confidence set and its probabilities."""
    base, arm = _curves()
    u = np.log(_SCALES)
    u = u - u.mean()
    losses = [np.exp(curve.log_y) for curve in (base, arm)]
    starts = [
        curve_fit(_law, u, y.mean(axis=1), (1.0, 0.5, 0.3), sigma=y.mean(axis=1), jac=_slopes)[0]
        for y in losses
    ]
    generator = np.random.default_rng(1)
    picks = generator.integers(_SEEDS, size=(_RESAMPLES, len(u), _SEEDS))
    rounds = itertools.cycle(range(0, _RESAMPLES, _REFITS))

    def peer() -> None:
        first = next(rounds)
        for pick in picks[first : first + _REFITS]:
            fitted = []
            for y, start in zip(losses, starts, strict=True):
                mean = np.exp(np.take_along_axis(np.log(y), pick, axis=1).mean(axis=1))
                fitted.append(curve_fit(_law, u, mean, start, sigma=mean, jac=_slopes, maxfev=5000)[0])
            ends = [float(_law(e, *fitted[0]) - _law(e, *fitted[1])) for e in (u[0] - 1, u[-1] + 1)]
            if ends[0] * ends[1] < 0:
                brentq(lambda at, f=fitted: float(_law(at, *f[0]) - _law(at, *f[1])), u[0] - 1, u[-1] + 1)

    def ours() -> None:
        for _ in range(_CALLS):
            laws.crossover(base, arm, method="bootstrap", forms="power-offset", resamples=_RESAMPLES)

    exact = laws.crossover(base, arm, method="bootstrap", forms="power-offset", resamples=_RESAMPLES)
    theirs = brentq(lambda at: float(_law(at, *starts[0]) - _law(at, *starts[1])), u[0], u[-1])
    both = np.exp(theirs + np.log(_SCALES).mean())
    if abs(np.log(exact.x / both)) > 0.02:  # means of logs against logs of means: not quite the same fit
        raise RuntimeError(f"we find the crossing at {exact.x:.6g}, the peer at {both:.6g}")
    return [
        Case(
            "laws: 2000 joint refits of two arms and their crossings",
            ours,
            peer,
            f"SciPy {scipy.__version__} loop of curve_fit and brentq",
            50.0,
            ours_scale=1 / _CALLS,
            peer_scale=_RESAMPLES / _REFITS,
            rounds=9,
            note=f"the peer's time is that of {_REFITS} resamples, scaled to {_RESAMPLES}, and holds no "
            "confidence set; ours holds everything that `laws.crossover` returns.",
        )
    ]
