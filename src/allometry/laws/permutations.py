"""p-values that hold for any noise: all sign flips of pairs, all ways to deal runs out to two arms.

With few seeds they can be tried one and all (Fisher, 1935); with many, Student's t needs no help.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["relabellings", "share_above", "sign_flips"]

Array = NDArray[np.float64]
_FLIPS = 12  # pairs up to which every sign flip is tried
_RELABELLINGS = 20_000
_BLOCK = 1 << 22  # statistics held at once


def share_above(statistics: Array, observed: Array) -> Array:
    """Share (...) of statistics (..., many) at least as large as the observed, equal up to rounding."""
    bar = observed - 1e-10 * np.maximum(np.abs(observed), np.abs(statistics).max(axis=-1))
    return np.asarray((statistics >= bar[..., None]).mean(axis=-1))


def _blocks(count: int, many: int) -> list[slice]:
    step = max(1, _BLOCK // many)
    return [slice(begin, begin + step) for begin in range(0, count, step)]


def sign_flips(difference: Array) -> Array:
    """Two-sided p-value (...) of all sign flips of paired differences (..., n)."""
    n = difference.shape[-1]
    if not 1 <= n <= _FLIPS:
        return np.full(difference.shape[:-1], np.nan)
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=n - 1)))
    signs = np.concatenate([np.ones((len(signs), 1)), signs], axis=1)  # the other half mirrors this one
    flat = difference.reshape(-1, n)
    out = np.empty(len(flat))
    for part in _blocks(len(flat), len(signs)):
        sums = np.abs(flat[part] @ signs.T)
        out[part] = share_above(sums, sums[:, 0])
    return out.reshape(difference.shape[:-1])


def relabellings(ours: Array, theirs: Array) -> Array:
    """Two-sided p-value (...) of all ways to deal the runs out to two arms."""
    n_a, n_b = ours.shape[-1], theirs.shape[-1]
    many = math.comb(n_a + n_b, n_a)
    lead = np.broadcast_shapes(ours.shape[:-1], theirs.shape[:-1])
    if many > _RELABELLINGS:
        return np.full(lead, np.nan)
    picks = np.array(list(itertools.combinations(range(n_a + n_b), n_a)))
    weight = np.full((many, n_a + n_b), -1.0 / n_b)
    np.put_along_axis(weight, picks, 1.0 / n_a, axis=1)
    pooled = np.concatenate(
        [np.broadcast_to(ours, (*lead, n_a)), np.broadcast_to(theirs, (*lead, n_b))], axis=-1
    ).reshape(-1, n_a + n_b)
    pooled = pooled - pooled.mean(axis=1, keepdims=True)
    out = np.empty(len(pooled))
    for part in _blocks(len(pooled), many):
        differences = np.abs(pooled[part] @ weight.T)
        out[part] = share_above(differences, differences[:, 0])
    return out.reshape(lead)
