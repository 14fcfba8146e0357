"""Learning curves beside SciPy: 1,774 curves in one call against a loop, ten thousand refits of one curve.

The curves are those of LCDB where its archive is on this machine, or as many made alike.  SciPy is given its
best: closed-form lines, and for laws with a floor starts near the answer.
"""

from __future__ import annotations

import itertools

import numpy as np
import scipy
from scipy.optimize import curve_fit, least_squares
from scipy.stats import linregress

from allometry import laws
from benchmarks import Case

_LOOPED = 60  # curves with a floor that the peer fits a call; all are wanted
_REFITS = 40  # refits of one curve that the peer makes a call; 10,000 are wanted
_RESAMPLES = 10_000


def _curves() -> tuple[np.ndarray, np.ndarray, str]:
    """Sizes (n,), errors (1774, n) with NaN for none, and where they are from."""
    from allometry.data import learning_curves

    try:
        table = learning_curves()
    except FileNotFoundError:
        generator = np.random.default_rng(0)
        sizes = 16 * np.sqrt(2.0) ** np.arange(30)
        alpha, floor = generator.uniform(0.05, 0.7, 1774), generator.uniform(0, 0.3, 1774)
        errors = (floor[:, None] + sizes ** -alpha[:, None]) * np.exp(
            0.03 * generator.standard_normal((1774, 30))
        )
        errors[np.arange(30) >= generator.integers(17, 31, (1774, 1))] = np.nan
        return sizes, errors, "made"
    mean = table.groupby(["data_set", "learner", "samples"], observed=True)["error"].mean().unstack("samples")
    mean = mean.where(mean > 2e-3)
    sizes = mean.columns.to_numpy(float)
    long = (mean.notna().sum(axis=1) >= 9) & (mean.notna() * sizes).max(axis=1).ge(4096)
    return sizes, mean[long].to_numpy(), "LCDB"


def _with_floor(m: np.ndarray, floor: float, size: float, alpha: float) -> np.ndarray:
    return floor + size * m**-alpha


def cases() -> list[Case]:
    """Lines and laws with a floor of many curves; one curve with intervals."""
    sizes, errors, source = _curves()
    apart = [(sizes[kept], row[kept]) for row, kept in zip(errors, np.isfinite(errors), strict=True)]
    logs = [(np.log(m), np.log(y)) for m, y in apart]
    start = itertools.cycle(range(0, len(apart) - _LOOPED, _LOOPED))

    def lines() -> None:
        for u, v in logs:
            linregress(u, v)

    def floors() -> None:
        first = next(start)
        for m, y in apart[first : first + _LOOPED]:
            guess = (0.5 * y.min(), 0.5 * y.max() * m[0] ** 0.4, 0.4)
            curve_fit(
                _with_floor, m, y, p0=guess, sigma=y, bounds=([0, 0, 1e-3], [np.inf, np.inf, 2.0]),
                max_nfev=5000,
            )  # fmt: skip

    generator = np.random.default_rng(1)
    m = 125 * 2.0 ** np.arange(9)
    measured = (0.05 + 3 * m**-0.4)[:, None] * np.exp(0.02 * generator.standard_normal((9, 5)))
    curve = laws.LearningCurve(m, measured)
    best = np.array(list(curve.fit(form="power-offset", resamples=0).params_.values()))
    clean = np.log(np.repeat(_with_floor(m, *best), 5))
    each = np.repeat(m, 5)
    draws = clean + 0.02 * generator.standard_normal((400, 45))
    which = itertools.cycle(range(0, 400, _REFITS))
    near = np.array([best[0], np.log(best[1]), best[2]])

    def residual(theta: np.ndarray, log_y: np.ndarray) -> np.ndarray:
        return np.log(theta[0] + np.exp(theta[1] - theta[2] * np.log(each))) - log_y

    def refits() -> None:
        first = next(which)
        for row in draws[first : first + _REFITS]:
            least_squares(residual, near, args=(row,), bounds=([0, -np.inf, 1e-3], [np.inf, np.inf, 2.0]))

    peer = f"SciPy {scipy.__version__}"
    return [
        Case(
            "learning curves: 1774 power laws",
            lambda: laws.fit_curves(sizes, errors),
            lines,
            f"{peer} loop of linregress",
            20.0,
            rounds=7,
            note=f"curves of {source}; answers agree to 1e-12 in the tests.",
        ),
        Case(
            "learning curves: 1774 laws with floor",
            lambda: laws.fit_curves(sizes, errors, form="power-offset"),
            floors,
            f"{peer} loop of curve_fit",
            20.0,
            peer_scale=len(apart) / _LOOPED,
            rounds=7,
            note=f"curves of {source}; the peer's time is that of {_LOOPED} curves, others in every round, "
            f"scaled to {len(apart)}, its tolerances the default ones.",
        ),
        Case(
            "learning curves: interval of 10000 refits",
            lambda: curve.fit(form="power-offset", resamples=_RESAMPLES),
            refits,
            f"{peer} loop of least_squares",
            10.0,
            peer_scale=_RESAMPLES / _REFITS,
            rounds=5,
            note=f"nine sizes, five seeds, a floor; the peer's time is that of {_REFITS} refits from the "
            "optimum scaled to as many; ours includes the regions and the search for the optimum.",
        ),
    ]
