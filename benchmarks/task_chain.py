"""A task's accuracy in two steps, and a law linear in logarithms, with resampled runs, beside loops.

The peer of the first is what the authors of the OLMo ladder do (Bhagia and others, 2024, arXiv:2412.04403): a
Chinchilla law, then a sigmoid, here again for every resample of runs, from the optimum.  Finding that optimum
from 32 starts is not counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from scipy.optimize import curve_fit, least_squares
from scipy.special import expit

from allometry.laws import get_law
from benchmarks import Case

_RESAMPLES, _LOOPED = 1000, 20
Array = np.ndarray


def _ladder() -> dict[str, Array]:
    """Nine runs of three sizes, forty records along each."""
    generator = np.random.default_rng(0)
    sizes, ratios = np.repeat([2e8, 4e8, 8e8], 3), np.tile([20.0, 40.0, 100.0], 3)
    seen = np.linspace(0.05, 1.0, 40)
    params, tokens = np.repeat(sizes, 40), (sizes * ratios)[:, None] * seen
    loss = 0.45 + 9 * params**-0.2 + 40 * tokens.ravel() ** -0.2
    loss *= np.exp(0.004 * generator.standard_normal(360))
    accuracy = 1 - 0.75 * expit(6 * (loss - 0.85)) + 0.005 * generator.standard_normal(360)
    run = np.repeat([f"run {place}" for place in range(9)], 40)
    return {"params": params, "tokens": tokens.ravel(), "task_loss": loss, "accuracy": accuracy, "run": run}


def _two_steps(table: dict[str, Array]) -> Callable[[], Array]:
    ends = slice(39, None, 40)
    n, d, loss = (table[name][ends] for name in ("params", "tokens", "task_loss"))

    def off(theta: Array, rows: Array) -> Array:
        e, a, b, alpha, beta = theta
        told = np.exp(e) + np.exp(a) * n[rows] ** -alpha + np.exp(b) * d[rows] ** -beta
        return np.log(told) - np.log(loss[rows])

    def link(x: Array, low: float, slope: float, middle: float) -> Array:
        return 1.0 - (1.0 - low) * expit(slope * (x - middle))

    tries = [least_squares(off, start, args=(np.arange(9),)) for start in itertools.product(
        (-1.0, 0.0), (2.0, 5.0), (2.0, 5.0), (0.2, 0.5), (0.2, 0.5))]  # fmt: skip
    best = min(tries, key=lambda one: one.cost).x
    first = curve_fit(link, table["task_loss"], table["accuracy"], (0.25, 5.0, 0.9))[0]

    def run() -> Array:
        generator, found = np.random.default_rng(0), []
        for _ in range(_LOOPED):
            rows = generator.integers(0, 9, 9)
            theta = least_squares(off, best, args=(rows,)).x
            places = (rows[:, None] * 40 + np.arange(40)).ravel()
            x, y = table["task_loss"][places], table["accuracy"][places]
            line, _ = curve_fit(link, x, y, first, maxfev=5000)
            found.append([*theta, *line])
        return np.array(found)

    return run


def _lines(table: dict[str, Array]) -> Callable[[], Array]:
    rows = np.stack([np.ones(360), -np.log(table["params"]), -np.log(table["tokens"])], axis=1)
    y = np.log(table["task_loss"])

    def run() -> Array:
        generator = np.random.default_rng(0)
        found = [np.linalg.lstsq(rows, y, rcond=None)[0]]
        for _ in range(_LOOPED * 5):
            drawn = generator.integers(0, 9, 9)
            places = (drawn[:, None] * 40 + np.arange(40)).ravel()
            found.append(np.linalg.lstsq(rows[places], y[places], rcond=None)[0])
        return np.array(found)

    return run


def cases() -> list[Case]:
    """Resamples of nine runs."""
    table = _ladder()
    scales = {name: table[name] for name in ("params", "tokens", "run")} | {"loss": table["task_loss"]}
    return [
        Case(
            "laws: task in two steps, 1 000 resamples",
            lambda: get_law("task-chain", window=1).fit(table, resamples=_RESAMPLES), _two_steps(table),
            "SciPy in a loop", 2.0, peer_scale=_RESAMPLES / _LOOPED, rounds=3,
            note=f"the peer's time is that of {_LOOPED} resamples, scaled, from a known optimum; ours finds "
                 "it, and fits and compares three forms of the first step.",
        ),
        Case(
            "laws: log-linear, 10 000 resamples",
            lambda: get_law("log-linear").fit(scales, resamples=10 * _RESAMPLES), _lines(table),
            "NumPy least squares in a loop", 1.0, peer_scale=10 * _RESAMPLES / (_LOOPED * 5), rounds=5,
            note=f"the peer's time is that of {_LOOPED * 5} resamples, scaled.",
        ),
    ]  # fmt: skip
