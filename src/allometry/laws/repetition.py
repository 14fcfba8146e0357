"""Loss when data repeats: tokens seen again, and parameters beyond what the data can use, are worth less.

Muennighoff et al., 2023, arXiv:2305.16264 (equations 5 to 7 there): the Chinchilla law holds for *effective*
parameters and tokens.  With U_D unique tokens seen R_D + 1 times,

    D' = U_D + U_D R*_D (1 - exp(-R_D / R*_D)),

and likewise for parameters, whose unique part U_N is what would be compute-optimal for U_D tokens (or N, if
that is less).  A first repetition is worth almost a fresh token; after R*_D repetitions, 1 - 1/e of one is
all there is to gain.
"""

from __future__ import annotations

import itertools

import numpy as np

from allometry.laws.forms import Array, Chinchilla, Form, Parameter

__all__ = ["DataConstrained"]


class DataConstrained(Form):
    """``L = E + A N'^-alpha + B D'^-beta`` with effective N' and D' (Muennighoff et al., 2023).

    The optimum U_N(U_D) is that of the law being fitted: alpha A U_N^-alpha = beta B U_D^-beta.  The paper
    first fits E, A, B, alpha, beta on runs without repetition and then the two half-lives; do the same by
    passing ``bounds={"alpha": (0.35, 0.35), ...}``.

    >>> DataConstrained().names
    ('E', 'A', 'B', 'alpha', 'beta', 'R_N', 'R_D')
    """

    name = "data-constrained"
    inputs = ("params", "tokens", "unique_tokens")
    parameters = (
        *Chinchilla.parameters,
        Parameter("R_N", 1e-2, 1e4, log=True),
        Parameter("R_D", 1e-2, 1e4, log=True),
    )

    def shifts(self, features: Array) -> Array:
        mean = features.mean(axis=0)
        return np.array([mean[0], mean[1], mean[1]])  # both token counts share one unit

    def units(self, shift: Array, target_shift: float) -> tuple[Array, Array]:
        matrix, offset = np.eye(7), np.zeros(7)
        matrix[0, 0] = np.exp(target_shift)
        matrix[1, 3], matrix[2, 4] = shift[0], shift[1]
        offset[1] = offset[2] = target_shift
        return matrix, offset

    def log_prediction(self, theta: Array, features: Array) -> Array:
        return self.jacobian(theta, features)[0]

    def jacobian(self, theta: Array, features: Array) -> tuple[Array, Array]:
        floor, a, b, alpha, beta, log_rn, log_rd = (theta[:, i, None] for i in range(7))
        params, tokens, unique = (features[None, :, i] for i in range(3))
        # log U_N: the optimum for U_D unique tokens, and its derivatives, which vanish where N is smaller
        optimum = (np.log(alpha) + a - np.log(beta) - b + beta * unique) / alpha
        spare = params > optimum
        used = np.where(spare, optimum, params)
        by_a = spare / alpha
        by_alpha = spare * (1 / alpha**2 - optimum / alpha)
        by_beta = spare * (unique - 1 / beta) / alpha
        log_n, n_by_used, n_by_r = _effective(params, used, np.exp(log_rn))
        log_d, _, d_by_r = _effective(tokens, np.minimum(unique, tokens), np.exp(log_rd))
        size_term, data_term = np.exp(a - alpha * log_n), np.exp(b - beta * log_d)
        total = floor + size_term + data_term
        chain = -alpha * n_by_used * size_term
        out = np.stack(
            [
                np.ones_like(total),
                size_term + chain * by_a,
                data_term - chain * by_a,
                -log_n * size_term + chain * by_alpha,
                -log_d * data_term + chain * by_beta,
                -alpha * n_by_r * size_term,
                -beta * d_by_r * data_term,
            ],
            axis=1,
        )
        return np.log(total), out / total[:, None]

    def starts(self, features: Array, log_y: Array, weights: Array) -> Array:
        plain = Chinchilla().starts(features[:, :2], log_y, weights)[:, ::2]
        rates = np.log(np.array(list(itertools.product((3.0, 15.0), repeat=2))))
        return np.concatenate(
            [np.concatenate([plain, np.broadcast_to(rate, (*plain.shape[:2], 2))], axis=2) for rate in rates],
            axis=1,
        )


def _effective(log_total: Array, log_unique: Array, rate: Array) -> tuple[Array, Array, Array]:
    """Log of the effective amount, and its derivatives by the logs of the unique part and of ``rate``."""
    ratio = np.exp(log_total - log_unique)  # R + 1
    repeats = np.maximum(ratio - 1.0, 0.0)
    decay = np.exp(-repeats / rate)
    value = 1.0 + rate * (1.0 - decay)
    return (
        log_unique + np.log(value),
        1.0 - decay * ratio / value,
        (rate * (1.0 - decay) - repeats * decay) / value,
    )
