"""Utility and half-life of pools beside a grid search in Python, which is what the authors' program does.

The peer is that procedure written plainly: for each pool a loop over utilities, half-lives and scales, each
of which walks through the epochs of every point.  The authors try up to 100 000 of a million combinations a
pool, shuffled; here some of them are timed and scaled.  A second case refits resamples, beside SciPy's
`least_squares` with the same vectorised law.
"""

from __future__ import annotations

import itertools

import numpy as np
import scipy
from scipy.optimize import least_squares

from allometry import laws
from benchmarks import Case

_SIZE = 12.8e6
_POOLS = {"top 10": (0.16, 6.73), "10-20": (0.125, 8.55), "20-30": (0.1, 5.27), "30-40": (0.085, 2.27)}
_EPOCHS = (2, 4, 6, 8, 10)
_TRIED = 2000  # combinations the peer tries in a call
_WANTED = 100_000  # and those that the authors' program tries for each pool
_REFITS = 10


def _curve(b: float, half_life: float, a: float, epochs: int) -> float:
    """Error after whole epochs, one by one."""
    y = (a * _SIZE / 1e5) ** -b
    for k in range(1, epochs):
        y *= ((k + 1) / k) ** (-b * 0.5 ** (k / half_life))
    return y + 0.1


def cases() -> list[Case]:
    """One fit of four pools, and 1 000 refits."""
    utility = {pool: b for pool, (b, _) in _POOLS.items()}
    lives = {pool: half for pool, (_, half) in _POOLS.items()}
    truth = laws.UtilityLaw.known(utility, lives, dict.fromkeys(_POOLS, _SIZE), a=0.025, E=0.1)
    table = {
        "samples": _SIZE * np.tile(np.array(_EPOCHS, dtype=float), len(_POOLS)),
        "pool": np.repeat(list(_POOLS), len(_EPOCHS)),
        "pool_size": _SIZE,
    }
    generator = np.random.default_rng(0)
    error = truth.predict(table) * np.exp(0.003 * generator.normal(size=len(table["pool"])))
    grid = list(
        itertools.product(np.linspace(0.005, 0.5, 100), np.linspace(1, 10, 100), np.linspace(1e-3, 0.05, 100))
    )
    picked = [grid[i] for i in generator.choice(len(grid), _TRIED, replace=False)]

    def peer_grid() -> float:
        return min(
            sum((_curve(b, half, a, k) - y) ** 2 for k, y in zip(_EPOCHS, error[:5], strict=True))
            for b, half, a in picked
        )

    fitted = laws.UtilityLaw().fit({**table, "error": error}, resamples=0)
    form, theta = fitted.fit_.form, fitted.fit_.theta
    features = fitted.fit_.log_x
    lower, upper = form.bounds()
    clean = form.log_prediction(theta[None], features)[0]

    def peer_refits() -> None:
        draw = np.random.default_rng(1)
        for _ in range(_REFITS):
            target = clean + 0.003 * draw.normal(size=len(clean))
            least_squares(
                lambda place, target=target: form.log_prediction(place[None], features)[0] - target,
                theta, jac=lambda place: form.jacobian(place[None], features)[1][0].T,
                bounds=(lower - 1e-9, upper), x_scale="jac",
            )  # fmt: skip

    return [
        Case(
            "utility: four pools fitted",
            lambda: laws.UtilityLaw().fit({**table, "error": error}, resamples=0),
            peer_grid,
            "loop over a grid, as the authors'",
            50.0,
            peer_scale=4 * _WANTED / _TRIED,
            rounds=5,
            note=f"the peer's time is that of {_TRIED} combinations for one pool, scaled to {_WANTED} each "
            "for four; its floor is known and its answer as coarse as the grid, ours fits the floor as well.",
        ),
        Case(
            "utility: 1000 refits",
            lambda: laws.UtilityLaw().fit({**table, "error": error}, resamples=1000),
            peer_refits,
            f"SciPy {scipy.__version__} loop of least_squares",
            5.0,
            peer_scale=1000 / _REFITS,
            rounds=5,
            note="the peer refits the same law with the same derivatives, from the optimum.",
        ),
    ]
