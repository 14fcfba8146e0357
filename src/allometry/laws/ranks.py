"""Rank correlations as inner products: Spearman's of centred ranks, Kendall's of the signs of all pairs.

Both are then correlations of vectors, so a partial one comes from the inverse of their matrix, and a batch is
one product.  Kendall's vectors have n (n - 1) / 2 entries: a few thousand points are the limit.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from allometry.laws.permutations import share_above

__all__ = ["ORDERS", "all_orders", "kendall_p", "partial_correlation", "rank_features"]

Array = NDArray[np.float64]
ORDERS = 7  # points up to which every order is tried


def all_orders(a: Array, b: Array, kind: str, value: Array) -> Array:
    """Two-sided p-value (...) of all orders of y against x."""
    n = a.shape[-1]
    orders = np.array(list(itertools.permutations(range(n))))
    flat_a, flat_b = a.reshape(-1, n), b.reshape(-1, n)
    out = np.empty(len(flat_a))
    for i, (one, other) in enumerate(zip(flat_a, flat_b, strict=True)):
        features = [rank_features(one, kind), rank_features(other[orders], kind)]
        found = np.abs(partial_correlation(features))
        out[i] = share_above(found, np.abs(value.reshape(-1)[i]))
    return np.where(np.isnan(value), np.nan, out.reshape(value.shape))


def rank_features(x: Array, kind: str) -> Array:
    """A unit vector for each row, whose inner products are the rank correlations."""
    if kind == "spearman":
        from scipy.stats import rankdata

        ranks = rankdata(x, axis=-1)
        vectors = ranks - ranks.mean(axis=-1, keepdims=True)
    else:
        i, j = np.triu_indices(x.shape[-1], 1)
        vectors = np.sign(x[..., i] - x[..., j])
    with np.errstate(invalid="ignore", divide="ignore"):  # a variable that is constant has no correlation
        return vectors / np.sqrt((vectors**2).sum(axis=-1, keepdims=True))


def partial_correlation(features: list[Array]) -> Array:
    """Correlation of the first two given the others, from the inverse of their correlation matrix."""
    size = len(features)
    first = (features[0] * features[1]).sum(axis=-1)
    if size == 2:
        return np.clip(first, -1.0, 1.0)
    matrix = np.empty((*first.shape, size, size))
    for i in range(size):
        for j in range(size):
            matrix[..., i, j] = (features[i] * features[j]).sum(axis=-1)
    bad = np.asarray(~np.isfinite(matrix).all(axis=(-1, -2)))
    inverse = np.linalg.pinv(np.where(bad[..., None, None], np.eye(size), matrix), hermitian=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = -inverse[..., 0, 1] / np.sqrt(inverse[..., 0, 0] * inverse[..., 1, 1])
    return np.where(bad, np.nan, np.clip(value, -1.0, 1.0))


def kendall_p(a: Array, b: Array, value: Array, k: int) -> Array:
    """Two-sided p-value of Kendall's tau by its normal approximation, given k other variables."""
    from scipy.special import ndtr

    n = a.shape[-1]
    if k:  # as without the given variables, for so many fewer points
        m = n - k
        return np.asarray(2 * ndtr(-np.abs(value) / np.sqrt(2 * (2 * m + 5) / (9 * m * (m - 1)))))
    i, j = np.triu_indices(n, 1)
    score = (np.sign(a[..., i] - a[..., j]) * np.sign(b[..., i] - b[..., j])).sum(axis=-1)
    sums = []
    for one in (
        a,
        b,
    ):  # sums over groups of t tied values of t - 1, (t - 1)(t - 2), (t - 1)(2 t + 5), each t times
        ties = (one[..., :, None] == one[..., None, :]).sum(axis=-1).astype(float)
        sums.append(
            [(ties - 1).sum(-1), ((ties - 1) * (ties - 2)).sum(-1), ((ties - 1) * (2 * ties + 5)).sum(-1)]
        )
    (a1, a2, a3), (b1, b2, b3) = sums
    variance = (n * (n - 1) * (2 * n + 5) - a3 - b3) / 18 + a1 * b1 / (2 * n * (n - 1))
    if n > 2:
        variance = variance + a2 * b2 / (9 * n * (n - 1) * (n - 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(2 * ndtr(-np.abs(score) / np.sqrt(variance)))
