"""Resampling curves beside random orders of the samples, and resampled tasks beside a loop of means.

Orders are what the authors' notebook draws, in a pandas frame; here the peer has NumPy's fastest form of it:
all orders of a task in one call.  Its answer has noise, ours none.
"""

from __future__ import annotations

import numpy as np

from allometry import laws
from benchmarks import Case

_TASKS, _SAMPLES, _ORDERS, _RESAMPLES = 200, 200, 10_000, 10_000
_DRAWN, _LOOPED = 200, 100  # orders and resamples of a peer's call, scaled up


def cases() -> list[Case]:
    """Curves at K = 1 to 200 of 200 tasks, and 10 000 resamples of them."""
    generator = np.random.default_rng(0)
    correct = generator.random((_TASKS, _SAMPLES)) < generator.beta(0.5, 0.8, (_TASKS, 1))
    accepted = correct | (generator.random((_TASKS, _SAMPLES)) < generator.beta(1, 6, (_TASKS, 1)))
    table = laws.AcceptanceTable(accepted, correct)
    k = np.arange(1, _SAMPLES + 1)
    kinds = np.where(accepted, np.where(correct, 1, 2), 0).astype(np.int8)

    def orders() -> np.ndarray:
        right = np.zeros(len(k))
        rows = np.arange(_DRAWN)
        for line in kinds:
            shuffled = generator.permuted(np.broadcast_to(line, (_DRAWN, _SAMPLES)), axis=1)
            first = (shuffled > 0).argmax(axis=1)
            good = shuffled[rows, first] == 1
            right += np.searchsorted(np.sort(first[good]), k, side="left") / _DRAWN
        return right / _TASKS

    told = laws.resampling_curve(table, k)
    if np.abs(orders() - told.accuracy).max() > 0.02:
        raise RuntimeError("the peer's curve is another one")
    j = np.arange(_SAMPLES)
    left = (_SAMPLES - accepted.sum(axis=1, keepdims=True) - j).clip(0) / (_SAMPLES - j)
    answered = 1.0 - np.cumprod(left, axis=1)
    share = (accepted & correct).sum(1) / np.maximum(accepted.sum(1), 1)
    by_task = share[:, None] * answered

    def loop() -> np.ndarray:
        means = [by_task[generator.integers(0, _TASKS, _TASKS)].mean(axis=0) for _ in range(_LOOPED)]
        return np.quantile(means, [0.05, 0.95], axis=0)

    return [
        Case(
            "resampling: curve, 200 tasks x 200 samples", lambda: laws.resampling_curve(table, k), orders,
            f"NumPy, {_ORDERS} random orders", 1000.0, peer_scale=_ORDERS / _DRAWN,
            note=f"the peer's time is that of {_DRAWN} orders, scaled; ours is exact and has four curves.",
        ),
        Case(
            "resampling: 10 000 resamples of tasks",
            lambda: told.interval("accuracy", resamples=_RESAMPLES), loop,
            "NumPy, a loop of means", 2.0, peer_scale=_RESAMPLES / _LOOPED,
            note=f"the peer's time is that of {_LOOPED} resamples, scaled, with the curve by task given.",
        ),
    ]  # fmt: skip
