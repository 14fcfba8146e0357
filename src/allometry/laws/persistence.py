"""Noise that lasts: residuals along one run are alike, so that a thousand logged points are worth a few
dozen.

The residuals of a run are taken for white noise plus an Ornstein-Uhlenbeck process, whose memory may be as
long as the run (a run's luck).  Few runs do not tell share and memory of the lasting part: every pair on a
grid is kept with its restricted likelihood (Patterson and Thompson, 1971), which gives back what the fit
absorbed, and noise is drawn from all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Persistence", "estimate_persistence"]

Array = NDArray[np.float64]
_KNOTS = 120  # points a run that the likelihood looks at; noise between them is interpolated
_MEMORIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0)  # in lengths of the longest run
_SHARES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)  # of the variance that lasts


@dataclass(frozen=True)
class Part:
    """One pair of the grid: the ``share`` of the variance that lasts, the ``memory`` in steps after which 1/e
    of it is left, the standard deviation ``total`` of one measurement with its ``degrees`` of freedom, and
    the ``weight`` of the pair."""

    share: float
    memory: float
    total: float
    degrees: float
    weight: float


@dataclass(frozen=True)
class Persistence:
    """What is known of the noise of log losses: pairs of share and memory, the likeliest first."""

    parts: tuple[Part, ...]

    @property
    def total(self) -> float:
        """Standard deviation of one measurement."""
        return float(np.sqrt(sum(one.weight * one.total**2 for one in self.parts)))

    @property
    def share(self) -> float:
        """Of the variance, what lasts."""
        return sum(one.weight * one.share for one in self.parts)

    def draw(self, steps: Sequence[Array], count: int, generator: np.random.Generator) -> Array:
        """Noise ``(count, n)`` for runs measured at ``steps``, one array a run, in no order of the pairs."""
        counts = generator.multinomial(count, [one.weight for one in self.parts])
        blocks = [
            _draw(part, steps, int(many), generator)
            for part, many in zip(self.parts, counts, strict=True)
            if many
        ]
        return generator.permutation(np.concatenate(blocks))


def _draw(part: Part, steps: Sequence[Array], count: int, generator: np.random.Generator) -> Array:
    scale = part.total * np.sqrt(part.degrees / generator.chisquare(part.degrees, size=(count, 1)))
    columns = []
    for at in steps:
        knots = _knots(at)[0]
        root = np.linalg.cholesky(_correlation(knots, part.memory) + 1e-9 * np.eye(len(knots)))
        slow = generator.standard_normal((count, len(knots))) @ root.T
        if len(knots) == 1:
            slow = np.repeat(slow, len(at), axis=1)
        else:
            upper = np.clip(np.searchsorted(knots, at), 1, len(knots) - 1)
            way = (at - knots[upper - 1]) / (knots[upper] - knots[upper - 1])
            slow = slow[:, upper - 1] * (1 - way) + slow[:, upper] * way
        white = generator.standard_normal((count, len(at)))
        columns.append(np.sqrt(part.share) * slow + np.sqrt(1 - part.share) * white)
    return scale * np.concatenate(columns, axis=1)


def _knots(at: Array) -> tuple[Array, NDArray[np.intp]]:
    """At most `_KNOTS` different steps, and where they stand."""
    places, first = np.unique(at, return_index=True)
    if len(places) <= _KNOTS:
        return places.astype(float), first
    chosen = np.unique(np.linspace(0, len(places) - 1, _KNOTS).round().astype(int))
    return places[chosen].astype(float), first[chosen]


def _correlation(steps: Array, memory: float) -> Array:
    return np.exp(-np.abs(steps[:, None] - steps[None]) / memory)


def estimate_persistence(
    steps: Sequence[Array], residuals: Sequence[Array], jacobian: Sequence[Array]
) -> Persistence:
    """How much of the noise of some runs lasts, and how long, from what a fit left over.

    Parameters
    ----------
    steps, residuals : sequences of arrays (n_run,), one a run
    jacobian : sequence of arrays (n_run, p)
        Derivatives of the log prediction by the free parameters.

    Examples
    --------
    >>> generator = np.random.default_rng(0)
    >>> at = [np.arange(100.0)] * 3
    >>> white = [generator.normal(0, 0.01, 100) for _ in at]
    >>> found = estimate_persistence(at, white, [np.ones((100, 1))] * 3)
    >>> found.parts[0].share < 0.2, round(found.total, 3)
    (True, 0.01)
    """
    kept = [_knots(at)[1] for at in steps]
    at = [one[index].astype(float) for one, index in zip(steps, kept, strict=True)]
    # Points that the robust fit passed by (the first after a warm-up, spikes) are no lasting noise.
    edge = 5.0 * 1.4826 * float(np.median(np.abs(np.concatenate(list(residuals)))))
    left = [np.clip(one[index], -edge, edge) for one, index in zip(residuals, kept, strict=True)]
    slopes = [one[index] for one, index in zip(jacobian, kept, strict=True)]
    n = sum(map(len, at))
    scale = np.sqrt(sum((one**2).sum(axis=0) for one in slopes))
    slopes = [one / np.where(scale > 0, scale, 1.0) for one in slopes]
    longest = max(float(np.ptp(one)) for one in at) or 1.0
    found: list[tuple[float, float, float, float, float]] = []
    for memory in _MEMORIES:
        shapes = [_correlation(one, memory * longest) for one in at]
        for share in _SHARES:
            if share == 0.0 and memory != _MEMORIES[0]:
                continue  # without a lasting part its memory is nothing
            value, variance, degrees = _likelihood(shapes, share, left, slopes, n)
            found.append((value, share, memory * longest, float(np.sqrt(variance)), degrees))
    best = max(value for value, *_ in found)
    likely = [(np.exp(value - best), *rest) for value, *rest in found if value > best - 6.0]
    every = sum(weight for weight, *_ in likely)
    parts = [Part(share, memory, total, degrees, float(weight / every))
             for weight, share, memory, total, degrees in likely]  # fmt: skip
    return Persistence(tuple(sorted(parts, key=lambda one: -one.weight)))


def _likelihood(
    shapes: list[Array], share: float, left: list[Array], slopes: list[Array], n: int
) -> tuple[float, float, float]:
    """Restricted log-likelihood, variance, and its degrees of freedom."""
    size = slopes[0].shape[1]
    gram, cross, square, logs = np.zeros((size, size)), np.zeros(size), 0.0, 0.0
    for shape, residual, slope in zip(shapes, left, slopes, strict=True):
        matrix = share * shape + (1 - share + 1e-6) * np.eye(len(residual))
        root = np.linalg.cholesky(matrix)
        white = np.linalg.solve(root, np.column_stack([residual, slope]))
        square += float(white[:, 0] @ white[:, 0])
        cross += white[:, 1:].T @ white[:, 0]
        gram += white[:, 1:].T @ white[:, 1:]
        logs += 2.0 * float(np.log(np.diag(root)).sum())
    values = np.linalg.eigvalsh(gram)
    values = values[values > 1e-9 * values[-1]]
    degrees = max(n - len(values), 1)
    # The fit was robust, not that of this likelihood: what a fit by it would still gain is taken off.
    square -= float(cross @ np.linalg.pinv(gram, rcond=1e-9, hermitian=True) @ cross)
    variance = max(square / degrees, 1e-300)
    value = -0.5 * (logs + float(np.log(values).sum()) + degrees * np.log(variance))
    return value, variance, float(degrees)
