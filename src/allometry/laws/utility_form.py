"""What a sample is worth, and how that halves as it is seen again: the curve of a pool, and of a mixture.

Goyal, Maini, Lipton, Raghunathan and Kolter, 2024, arXiv:2404.07177.  A pool of P samples has a utility b,
the exponent of its error's power law while its samples are fresh, and a half-life tau, in epochs.  In epoch k
the exponent is b 2^(-k/tau), so that after n samples

    error(n) = (a n_0)^-b  prod_k (n_k / n_(k-1))^(-b 2^(-k/tau)),      n_k = min(P (k + 1), n).

- *Two kinds.*  ``"utility"`` damps the exponent as above; ``"effective_data"`` damps the samples, in the
  manner of Muennighoff et al., 2023, arXiv:2305.16264: ``error = (a sum_k (n_k - n_(k-1)) 2^(-k/tau))^-b``.
- *Mixtures* (theorem 1).  A pool that is a share w of the samples seen has epochs of P / w samples and a
  half-life of tau / w of them, and it adds w times its logarithm.  Of p equal pools, w is 1/p and the
  half-life p tau.
- *The floor E* is added to the whole, or (``"official"``, as the authors' program does) to the first epoch
  alone, so that later epochs shrink it too.  These are different laws.
- *Units.*  As in the authors' program ``a`` multiplies n in units of 100 000 samples; utilities are written
  positive, b = -their exponent.

The sums over epochs are matrix products: design (rows, epochs) times powers of two (batch, epochs).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from allometry.laws.forms import Array, Form, Parameter

__all__ = ["LONGEST", "MOST_EPOCHS", "UNIT", "PoolCurves"]

UNIT = 1e5
LONGEST = 1e3  # the longest half-life that is looked for, in epochs
MOST_EPOCHS = 10_000
_OFFSETS = (-8.0, -3.0, -1.0, 0.3, 1.0, 2.0, 3.5, 5.5, 8.0, 12.0, 20.0)  # starts of log a n at the first n
_FLOORS = (0.0, 0.3, 0.6, 0.85, 0.97)  # starts of E, as shares of the lowest error
_HALF_LIVES = np.geomspace(0.1, 100.0, 24)


@dataclass(frozen=True)
class _Part:
    """Rows of a design in which one pool has one weight: ``design (rows, epochs)``, ``first (rows,)``."""

    pool: int
    weight: float
    rows: Any
    design: Array
    first: Array


@dataclass(frozen=True)
class _Derivatives:
    """Log-prediction ``(b, n)``, its ``slopes (b, p, n)``, those of the log without floor (``whole``) and of
    the part of it that the floor is added to (``base``), and that part's share of its sum with the floor."""

    value: Array
    slopes: Array
    whole: Array
    base: Array
    share: Array


class PoolCurves(Form):
    """Error of runs on pools or unions of them, after any number of samples.

    Parameters
    ----------
    pools : sequence of str
    sizes : sequence of float
        Samples in each pool.
    kind : {"utility", "effective_data"}
    floor : {"outside", "official"}

    Examples
    --------
    >>> form = PoolCurves(["A"], [1e5])
    >>> form.names
    ('E', 'a', 'utility[A]', 'half_life[A]')
    >>> theta = form.to_coordinates([0.0, 1.0, 0.5, 1e3])
    >>> np.exp(form.log_prediction(theta[None], form.features({"samples": [1e4], "weights": [[1.0]]})))
    array([[3.16227766]])
    """

    name = "utility"
    inputs = ("samples",)
    scales_target = False

    def __init__(
        self, pools: Sequence[str], sizes: Sequence[float], kind: str = "utility", floor: str = "outside"
    ) -> None:
        if kind not in ("utility", "effective_data") or floor not in ("outside", "official"):
            raise ValueError(
                "kind must be 'utility' or 'effective_data' and floor 'outside' or 'official', "
                f"not {kind!r}, {floor!r}"
            )
        self.pools, self.sizes = tuple(pools), tuple(float(size) for size in sizes)
        self.damped = "samples" if kind == "effective_data" else "exponent"
        self.inside = floor == "official" and kind == "utility"  # the other kind adds it once in any case
        self.parameters = (
            Parameter("E", 0.0, np.inf),
            Parameter("a", np.exp(-60.0), np.exp(60.0), log=True),
            *(Parameter(f"utility[{pool}]", 1e-4, 5.0, log=True) for pool in self.pools),
            *(Parameter(f"half_life[{pool}]", 2e-2, LONGEST, log=True) for pool in self.pools),
        )

    @property
    def exponents(self) -> tuple[int, ...]:
        return tuple(range(2, 2 + len(self.pools)))

    # --- inputs ------------------------------------------------------------------------------------------
    def features(self, x: Any) -> Array:
        """Log samples and weights ``(n, 1 + pools)`` from ``samples (n,)`` and ``weights (n, pools)``.

        Raises
        ------
        ValueError
            Samples are not positive, weights are not shares, or a pool would be seen too often to tell.
        """
        samples = np.atleast_1d(np.asarray(x["samples"], dtype=float))
        weights = np.asarray(x["weights"], dtype=float).reshape(len(samples), len(self.pools))
        bad = ~(np.isfinite(samples) & (samples > 0))
        if bad.any():
            raise ValueError(f"samples must be positive and finite, not {samples[bad][0]}")
        if not (np.isfinite(weights).all() and (weights >= 0).all()) or np.any(
            np.abs(weights.sum(axis=1) - 1) > 1e-9
        ):
            raise ValueError("weights must be shares of the samples that sum to one")
        epochs = samples[:, None] * weights / np.array(self.sizes)
        if (epochs > MOST_EPOCHS).any():
            raise ValueError(f"{epochs.max():.3g} epochs of a pool; the law is reckoned to {MOST_EPOCHS}")
        return np.concatenate([np.log(samples)[:, None], weights], axis=1)

    def shifts(self, features: Array) -> Array:
        return np.zeros(features.shape[1])  # sizes of pools are absolute

    def units(self, shift: Array, target_shift: float) -> tuple[Array, Array]:
        size = len(self.parameters)
        return np.eye(size), np.zeros(size)

    def _parts(self, features: Array) -> tuple[_Part, ...]:
        return _parts(features.tobytes(), features.shape, self.sizes, self.damped)

    def _mixes(self, features: Array) -> bool:
        return bool(((features[:, 1:] > 0).sum(axis=1) > 1).any())

    # --- the law -----------------------------------------------------------------------------------------
    def log_prediction(self, theta: Array, features: Array) -> Array:
        if self.damped == "samples" and self._mixes(features):
            return self._mixed_samples(theta, features)
        whole, base = self._logs(theta, features)
        return np.asarray(np.log(np.exp(base) + theta[:, 0, None]) + (whole - base))

    def _logs(self, theta: Array, features: Array) -> tuple[Array, Array]:
        """Log error without floor, and that part of it that the floor is added to; ``(batch, n)``."""
        count = len(self.pools)
        whole = np.zeros((len(theta), len(features)))
        base = np.zeros_like(whole) if self.inside else whole
        for part in self._parts(features):
            slope = -part.weight * np.exp(theta[:, 2 + part.pool, None])
            seen = self._seen(theta[:, 2 + count + part.pool], part)[0]
            whole[:, part.rows] += slope * (theta[:, 1, None] + seen)
            if self.inside:
                base[:, part.rows] += slope * (theta[:, 1, None] + part.first)
        return whole, base

    def gain(self, theta: Array, pool: int, share: float, samples: Array) -> Array:
        """What a pool that is a share of ``samples (n,)`` takes from the log of the error without floor."""
        part = _part(pool, share, slice(None), samples, self.sizes[pool], self.damped)
        seen = self._seen(theta[2 + len(self.pools) + pool, None], part)[0][0]
        return np.asarray(share * np.exp(theta[2 + pool]) * (theta[1] + seen))

    def _seen(self, log_half_life: Array, part: _Part, derivatives: int = 0) -> tuple[Array, ...]:
        """Log of what was seen, damped, ``(batch, rows)``, and derivatives by the log of the half-life."""
        epochs = np.arange(part.design.shape[1])
        rate = np.outer(np.log(2.0) * part.weight * np.exp(-log_half_life), epochs)
        powers = np.exp(-rate)
        found = [powers @ part.design.T]
        if derivatives > 0:
            found.append((powers * rate) @ part.design.T)
        if derivatives > 1:
            found.append((powers * (rate * rate - rate)) @ part.design.T)
        if self.damped == "exponent":
            return tuple(found)
        relative = [one / found[0] for one in found[1:]]
        if derivatives > 1:
            relative[1] = relative[1] - relative[0] ** 2
        return (np.log(found[0]), *relative)

    def _mixed_samples(self, theta: Array, features: Array) -> Array:
        """Unions where samples are damped: b of epoch k is the mean of b over what the pools still give."""
        out = np.empty((len(theta), len(features)))
        sizes, count = np.array(self.sizes), len(self.pools)
        unions, which = np.unique(features[:, 1:], axis=0, return_inverse=True)
        for index, weights in enumerate(unions):
            has = np.flatnonzero(weights)
            epoch = sizes[has] / weights[has]
            if np.ptp(epoch) > 1e-9 * epoch[0]:
                raise ValueError(
                    "the effective-data law mixes pools in proportion to their sizes alone; take "
                    "kind='utility' for other weights"
                )
            rows = np.flatnonzero(which.ravel() == index)
            fresh = _fresh(np.exp(features[rows, 0]), float(epoch[0]))  # (rows, epochs)
            rate = np.log(2.0) * weights[has] * np.exp(-theta[:, 2 + count + has])
            left = weights[has] * np.exp(-rate[..., None] * np.arange(fresh.shape[1])).transpose(0, 2, 1)
            total = np.maximum(left.sum(axis=2), 1e-300)  # (batch, epochs); nothing may be left of any
            utility = np.einsum("bke,be->bk", left, np.exp(theta[:, 2 + has])) / total
            seen = np.log(np.cumsum(fresh[None] * total[:, None], axis=2))
            unseen = np.broadcast_to(-theta[:, 1, None, None], (len(theta), len(rows), 1))
            steps = np.diff(seen, axis=2, prepend=unseen)
            bare = -np.einsum("bk,brk->br", utility, steps)
            out[:, rows] = np.log(np.exp(bare) + theta[:, 0, None])
        return out

    def jacobian(self, theta: Array, features: Array) -> tuple[Array, Array]:
        if self.damped == "samples" and self._mixes(features):
            raise ValueError("the effective-data law is fitted to runs on single pools; leave unions out")
        places, which = _distinct(features.tobytes(), features.shape)
        found = self._derivatives(theta, places)
        self._last = theta.copy(), features, found  # a solver's next question is the curvature here
        return found.value[:, which], found.slopes[:, :, which]

    def _derivatives(self, theta: Array, features: Array) -> _Derivatives:
        count = len(self.pools)
        whole = np.zeros((len(theta), len(features)))
        slopes = np.zeros((len(theta), len(self.parameters), len(features)))
        base, base_slopes = (np.zeros_like(whole), np.zeros_like(slopes)) if self.inside else (whole, slopes)
        for part in self._parts(features):
            i, j = 2 + part.pool, 2 + count + part.pool
            utility = part.weight * np.exp(theta[:, i, None])
            seen, by_half_life = self._seen(theta[:, j], part, 1)
            gain = utility * (theta[:, 1, None] + seen)
            whole[:, part.rows] -= gain
            slopes[:, 1, part.rows] -= utility
            slopes[:, i, part.rows] = -gain
            slopes[:, j, part.rows] = -utility * by_half_life
            if self.inside:
                gain = utility * (theta[:, 1, None] + part.first)
                base[:, part.rows] -= gain
                base_slopes[:, 1, part.rows] -= utility
                base_slopes[:, i, part.rows] = -gain
        bare = np.exp(base)
        inverse = 1.0 / (bare + theta[:, 0, None])
        share = bare * inverse
        out = share[:, None] * base_slopes
        if self.inside:
            out += slopes - base_slopes
        out[:, 0] = inverse
        return _Derivatives(whole - base - np.log(inverse), out, slopes, base_slopes, share)

    def curvature(self, theta: Array, features: Array, cotangent: Array) -> Array:
        places, which = _distinct(features.tobytes(), features.shape)
        last = getattr(self, "_last", None)
        if last is None or last[1] is not features or not np.array_equal(last[0], theta):
            self.jacobian(theta, features)
        found = self._last[2]
        # rows measured alike have one curvature: their cotangents add up
        cotangent = cotangent @ (which[:, None] == np.arange(len(places))).astype(float)
        count = len(self.pools)
        base, share, inverse = found.base, found.share, found.slopes[:, 0]
        out = np.matmul(base * (cotangent * share * (1 - share))[:, None], base.transpose(0, 2, 1))
        cross = -np.matmul(base, (cotangent * share * inverse)[..., None])[..., 0]
        out[:, 0], out[:, :, 0] = cross, cross
        out[:, 0, 0] = -(cotangent * inverse * inverse).sum(axis=1)
        # second derivatives of the logs themselves: of the part with the floor, then of what follows it
        floored = cotangent * share
        rest = cotangent if self.inside else floored
        direct = np.matmul(base, floored[..., None])[..., 0]
        if self.inside:
            direct += np.matmul(found.whole - base, cotangent[..., None])[..., 0]
        for part in self._parts(places):
            i, j = 2 + part.pool, 2 + count + part.pool
            utility = part.weight * np.exp(theta[:, i])
            _, first, second = self._seen(theta[:, j], part, 2)
            here = rest[:, part.rows]
            by_a = -utility * floored[:, part.rows].sum(axis=1)
            by_life = -utility * (here * first).sum(axis=1)
            out[:, 1, i] += by_a
            out[:, i, 1] += by_a
            out[:, i, j] += by_life
            out[:, j, i] += by_life
            out[:, j, j] -= utility * (here * second).sum(axis=1)
        pools = np.arange(2, 2 + count)
        out[:, pools, pools] += direct[:, pools]
        return out

    # --- where to start ----------------------------------------------------------------------------------
    def starts(self, features: Array, log_y: Array, weights: Array) -> Array:
        """Given E, a and a half-life, log(error - E) is linear in the utility: a grid of closed forms."""
        parts = [part for part in self._parts(features) if part.weight == 1.0]
        smallest = min(float(self._seen(np.log(_HALF_LIVES), part)[0].min()) for part in parts)
        log_a = np.array(_OFFSETS) - smallest
        share = np.array(_FLOORS)
        out = np.zeros((len(log_y), len(share), len(log_a), len(self.parameters)))
        lowest = np.exp(log_y.min(axis=1))
        out[..., 0] = (lowest[:, None] * share)[..., None]
        out[..., 1] = log_a
        out[..., 2 : 2 + len(self.pools)] = np.log(0.1)
        for part in parts:
            y = log_y[:, None, part.rows] + np.log1p(
                -lowest[:, None, None] * share[:, None] * np.exp(-log_y[:, None, part.rows])
            )  # log(y - E), (curves, floors, rows)
            places = log_a[:, None, None] + self._seen(np.log(_HALF_LIVES), part)[0]  # (a, half-lives, rows)
            along = np.einsum("cfr,cr,ahr->cfah", y, weights[:, part.rows], places)
            square = np.einsum("cr,ahr->cah", weights[:, part.rows], places**2)[:, None]
            square = np.maximum(square, 1e-12)
            utility = -along / square
            gain = np.where(utility > 0, along**2 / square, -1.0)
            best = gain.argmax(axis=3)
            found = np.take_along_axis(utility, best[..., None], axis=3)[..., 0]
            out[..., 2 + part.pool] = np.log(np.maximum(found, 1e-3))
            out[..., 2 + len(self.pools) + part.pool] = np.log(_HALF_LIVES[best])
        return out.reshape(len(log_y), -1, len(self.parameters))


def _fresh(samples: Array, epoch: float) -> Array:
    """Samples ``(rows, epochs)`` of each epoch, in `UNIT`s."""
    most = max(1, int(np.ceil(samples.max() / epoch * (1 - 1e-12))))
    return np.clip(samples[:, None] - epoch * np.arange(most), 0.0, epoch) / UNIT


@lru_cache(maxsize=16)
def _distinct(content: bytes, shape: tuple[int, int]) -> tuple[Array, Any]:
    """Rows of a design that differ, and which of them each row is."""
    rows, which = np.unique(np.frombuffer(content).reshape(shape), axis=0, return_inverse=True)
    return rows, which.ravel()


@lru_cache(maxsize=16)
def _parts(
    content: bytes, shape: tuple[int, int], sizes: tuple[float, ...], damped: str
) -> tuple[_Part, ...]:
    """The design of `PoolCurves`, kept because a solver asks for it at every step."""
    features = np.frombuffer(content).reshape(shape)
    found = []
    for pool, size in enumerate(sizes):
        for weight in np.unique(features[:, 1 + pool]):
            if weight == 0:
                continue
            rows = np.flatnonzero(features[:, 1 + pool] == weight)
            found.append(_part(pool, float(weight), rows, np.exp(features[rows, 0]), size, damped))
    return tuple(found)


def _part(pool: int, weight: float, rows: Any, samples: Array, size: float, damped: str) -> _Part:
    fresh = _fresh(samples, size / weight)
    ends = np.log(np.cumsum(fresh, axis=1))
    design = np.diff(ends, axis=1, prepend=0.0) if damped == "exponent" else fresh
    return _Part(pool, weight, rows, design, ends[:, 0])
