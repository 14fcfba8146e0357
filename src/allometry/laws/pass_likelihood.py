"""Many lines of log(-log p) fitted to counts at once: Newton steps on the likelihood, and an empirical prior.

An instance s passes at size m with probability p = exp(-exp(F)), F = a_s - alpha_s x_m, x the centred log
size (Hu and others, 2023. arXiv:2310.03262). Its counts give the log-likelihood r log p + (K - r) log(1 - p),
whether r passes or K draws ended the sampling. Both terms are concave in F, so Newton's method finds the only
maximum, and instances of which nothing is seen at small sizes take part with what that says.

Lines are drawn from a normal distribution whose mean and covariance are estimated from all instances
(empirical Bayes: EM with the Laplace approximation; Laird and Ware, 1982), so that instances with little to
say are held by the others.

Arrays end in (S, M): instances and columns, one column a trained model; what stands before is a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Lines", "expected_information", "fit_lines", "mean_pass_rate", "score"]

Array = NDArray[np.float64]

_FEWEST = 4  # instances from which a prior can be learned
_FLAT = 1e-6  # precision of the prior where there are fewer
_LONGEST = 2.0  # step of F in one Newton iteration: beyond, its quadratic says nothing
_LIMIT = 40.0  # |F| at which p is 0 or 1 in every respect
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(9)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


@dataclass(frozen=True)
class Lines:
    """Lines F = a - alpha x of all instances, and the normal distribution that they come from.

    Attributes
    ----------
    theta : array (..., S, 2)
        (a, alpha) of each instance: the most probable.
    covariance : array (..., S, 2, 2)
        Of each, given its counts.
    centre : array (..., 2)
    spread : array (..., 2, 2)
        Mean and covariance over instances; infinite spread where there are too few to tell.
    absorbed : array (...,)
        Degrees of freedom that the lines take from the data.
    """

    theta: Array
    covariance: Array
    centre: Array
    spread: Array
    absorbed: Array

    def values(self, x: Array) -> tuple[Array, Array]:
        """F and its variance ``(..., S, k)`` at centred log sizes ``x (k,)``."""
        return values_of(self.theta, x), variance_of(self.covariance, x)


def values_of(theta: Array, x: Array) -> Array:
    """F ``(..., S, k)`` of lines ``theta (..., S, 2)`` at ``x (k,)``."""
    return theta[..., :1] - theta[..., 1:] * x


def variance_of(covariance: Array, x: Array) -> Array:
    """Variance ``(..., S, k)`` of F at ``x (k,)``."""
    first, both, second = covariance[..., 0, 0], covariance[..., 0, 1], covariance[..., 1, 1]
    return first[..., None] - 2 * both[..., None] * x + second[..., None] * x**2


def score(f: Array, passes: Array, failures: Array) -> tuple[Array, Array]:
    """First derivative of the log-likelihood in F, and minus the second; both ``(..., S, M)``."""
    rate = np.exp(np.clip(f, -_LIMIT, 6.0))  # -log p
    odds = rate / np.expm1(rate)
    first = failures * odds - passes * rate
    # 1 - rate / (1 - exp(-rate)) loses its digits where the rate is small; there it is -rate / 2
    bent = np.where(rate < 1e-4, -rate / 2, 1.0 - rate / -np.expm1(-rate))
    return first, passes * rate - failures * odds * bent


def expected_information(f: Array, trials: Array) -> Array:
    """Fisher's information on F in so many draws, ``trials (log p)^2 p / (1 - p)``."""
    rate = np.exp(np.clip(f, -_LIMIT, 6.0))
    return trials * rate**2 / np.expm1(rate)


def mean_pass_rate(f: Array, variance: Array | float) -> Array:
    """The mean of exp(-exp(F)) for a normal F, by Gauss-Hermite quadrature."""
    spread = np.sqrt(variance)
    total = np.zeros(np.broadcast(f, spread).shape)
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        total += weight * np.exp(-np.exp(np.clip(f + node * spread, -_LIMIT, 6.0)))
    return total


def fit_lines(
    x: Array,
    passes: Array,
    failures: Array,
    *,
    weights: Array | float = 1.0,
    offset: Array | float = 0.0,
    start: Lines | None = None,
    rounds: int = 60,
) -> Lines:
    """Most probable lines, and the distribution over instances.

    Parameters
    ----------
    x : array (M,)
        Centred log sizes.
    passes, failures : arrays (..., S, M)
        Zero in both: not measured.
    weights : array (..., S, M)
        Less than one where a model's instances scatter about their lines by more than their counts say.
    offset : array (M,)
        What all lines' F differ by at each model.
    start : Lines, optional
    rounds : int
        Steps of EM, each with one Newton step.

    Returns
    -------
    Lines
    """
    design = np.stack([np.ones_like(x), -x], axis=-1)  # (M, 2)
    learns = passes.shape[-2] >= _FEWEST
    if start is None:
        theta, centre, spread = _start(design, passes, failures)
    else:
        shape = (*passes.shape[:-1], 2)
        theta = np.broadcast_to(start.theta, shape).copy()
        centre = np.broadcast_to(start.centre, (*shape[:-2], 2)).copy()
        spread = np.broadcast_to(start.spread, (*shape[:-2], 2, 2)).copy()
    for _ in range(rounds):
        precision = _inverse(spread) if learns else _FLAT * np.eye(2)
        prior = np.broadcast_to(precision, (*theta.shape[:-2], 2, 2))[..., None, :, :]
        first, second = score(values_of(theta, x) + offset, passes, failures)
        gram = _gram(weights * second, design)
        slope = (weights * first) @ design
        covariance = _inverse(gram + prior)
        if learns:
            centre = _centre(theta, slope, gram, precision, covariance)
        slope = slope - np.matmul(prior, (theta - centre[..., None, :])[..., None])[..., 0]
        move = np.matmul(covariance, slope[..., None])[..., 0]
        reach = np.abs(values_of(move, x)).max(axis=-1, keepdims=True)
        move *= np.minimum(1.0, _LONGEST / np.maximum(reach, 1e-300))
        theta = theta + move
        if learns:
            away = theta - centre[..., None, :]
            spread = (covariance + away[..., :, None] * away[..., None, :]).mean(axis=-3)
            spread = spread + 1e-8 * np.eye(2)
        elif np.abs(move).max() < 1e-10:
            break
        else:
            centre = theta.mean(axis=-2)
    absorbed = np.matmul(covariance, gram).trace(axis1=-2, axis2=-1).sum(axis=-1)
    return Lines(theta, covariance, centre, spread, absorbed)


def _centre(theta: Array, slope: Array, gram: Array, precision: Array, covariance: Array) -> Array:
    """The mean over instances (..., 2) by generalised least squares on their quadratic likelihoods.

    An EM step would move it by the share that the prior leaves to the data, which is little where instances
    are alike; this is the limit of such steps. The weight of an instance is (V + Sigma)^-1 = P - P C P.
    """
    spread = precision[..., None, :, :]
    total = (spread - spread @ covariance @ spread).sum(axis=-3)
    told = np.matmul(gram, theta[..., None])[..., 0] + slope
    right = np.matmul(spread @ covariance, told[..., None])[..., 0].sum(axis=-2)
    return np.matmul(_inverse(total), right[..., None])[..., 0]


def _start(design: Array, passes: Array, failures: Array) -> tuple[Array, Array, Array]:
    """One line through all instances' counts together, for each; from a flat line at the mean pass rate."""
    passed, failed = passes.sum(axis=-2), failures.sum(axis=-2)
    rate = (passed + 0.5) / (passed + failed + 1.0)
    f = np.log(-np.log(rate))
    weight = (passed + failed > 0).astype(float)
    gram = _gram(weight, design) + 1e-9 * np.eye(2)
    one = np.linalg.solve(gram, ((weight * f) @ design)[..., None])[..., 0]
    theta = np.broadcast_to(one[..., None, :], (*passes.shape[:-1], 2)).copy()
    spread = np.broadcast_to(np.diag([1.0, 0.1]), (*passes.shape[:-2], 2, 2)).copy()
    return theta, one, spread


def _gram(weights: Array, design: Array) -> Array:
    """``design' diag(weights) design`` (..., 2, 2) for weights (..., M)."""
    products = (design[:, :, None] * design[:, None, :]).reshape(len(design), 4)
    return (weights @ products).reshape(*weights.shape[:-1], 2, 2)


def _inverse(matrix: Array) -> Array:
    """Inverses of matrices (..., 2, 2)."""
    a, b, c, d = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 1, 0], matrix[..., 1, 1]
    adjugate = np.stack([np.stack([d, -b], axis=-1), np.stack([-c, a], axis=-1)], axis=-2)
    return adjugate / (a * d - b * c)[..., None, None]
