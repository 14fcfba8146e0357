"""From a task's loss to its accuracy: a sigmoid between chance and the best that can be had.

Gadre et al., 2024 (arXiv:2403.08540) and Bhagia et al., 2024 (arXiv:2412.04403, equation 3) foretell a task's
accuracy in two steps: a law for the loss on the right answers, then a link from that loss to accuracy,

    Acc(L) = b + a / (1 + exp(-k (L - L0))),   a <= 0 <= b,

which falls from ``b`` at little loss to ``b + a`` at much.
"""

from __future__ import annotations

import itertools

import numpy as np

from allometry.laws.forms import Array, Form, Parameter

__all__ = ["SigmoidLink"]


class SigmoidLink(Form):
    """``Acc = b + a / (1 + exp(-k (L - L0)))`` of the loss ``L`` itself, not of its logarithm.

    Examples
    --------
    >>> from allometry.laws import fit
    >>> loss = np.linspace(0.4, 2.0, 9)
    >>> accuracy = 0.95 - 0.7 / (1 + np.exp(-3 * (loss - 0.9)))
    >>> found = fit(SigmoidLink(), loss, accuracy, space="linear", loss="squared", resamples=0)
    >>> {name: round(value, 4) for name, value in found.params.items()}
    {'a': -0.7, 'L0': 0.9, 'k': 3.0, 'b': 0.95}
    """

    name = "sigmoid-link"
    inputs = ("task_loss",)
    parameters = (
        Parameter("a", -1.0, 0.0),
        Parameter("L0", 0.0, 50.0),
        Parameter("k", 1e-2, 1e3, log=True),
        Parameter("b", 0.0, 1.0),
    )
    scales_target = False

    def features(self, x: object) -> Array:
        return np.exp(super().features(x))

    def shifts(self, features: Array) -> Array:
        return np.zeros(features.shape[1])

    def units(self, shift: Array, target_shift: float) -> tuple[Array, Array]:
        return np.eye(4), np.zeros(4)

    def log_prediction(self, theta: Array, features: Array) -> Array:
        return np.log(self._accuracy(theta, features)[0])

    def jacobian(self, theta: Array, features: Array) -> tuple[Array, Array]:
        accuracy, share, position = self._accuracy(theta, features)
        drop, steepness = theta[:, 0, None], np.exp(theta[:, 2, None])
        slope = drop * share * (1.0 - share)
        out = np.stack([share, -steepness * slope, slope * position, np.ones_like(share)], axis=1)
        return np.log(accuracy), out / accuracy[:, None]

    def starts(self, features: Array, log_y: Array, weights: Array) -> Array:
        # Given where and how steep, a and b solve a linear problem; b is kept within what an accuracy can be.
        from scipy.special import expit

        x, y = features[:, 0], np.exp(log_y)
        spread = max(float(np.ptp(x)), 1e-6)
        rows = []
        for place, steep in itertools.product(np.linspace(x.min() - spread, x.max(), 7), (1.0, 3.0, 9.0)):
            k, centre = steep / spread * 2.0, max(float(place), 1e-3)
            share = expit(k * (x - centre))
            total = weights.sum(axis=1, keepdims=True)
            mean, level = (weights @ share)[:, None] / total, (weights * y).sum(axis=1, keepdims=True) / total
            across = share - mean
            drop = (weights * across * (y - level)).sum(axis=1) / np.maximum(
                (weights * across**2).sum(axis=1), 1e-12
            )
            drop = np.clip(drop, -1.0, -1e-3)
            best = np.clip(level[:, 0] - drop * mean[:, 0], 0.01, 1.0)
            rows.append(
                np.stack([drop, np.full_like(drop, centre), np.full_like(drop, np.log(k)), best], axis=1)
            )
        return np.stack(rows, axis=1)

    def _accuracy(self, theta: Array, features: Array) -> tuple[Array, Array, Array]:
        from scipy.special import expit

        position = np.exp(theta[:, 2, None]) * (features[None, :, 0] - theta[:, 1, None])
        share = expit(position)
        return np.maximum(theta[:, 3, None] + theta[:, 0, None] * share, 1e-9), share, position
