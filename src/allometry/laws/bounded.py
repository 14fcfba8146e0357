"""A power law between two levels: from the best guess, which needs no data, to the floor that no data lower.

Ibrahim Alabdulmohsin, Behnam Neyshabur and Xiaohua Zhai, "Revisiting neural scaling laws in language and
vision", 2022. arXiv:2209.06640 (the estimator called M4 there):

    (y - E) / (E0 - y)^kappa = A x^-alpha.

Between the levels it is the power law of Hestness et al., 2017 (arXiv:1712.00409); its two ends are the
small-data and the irreducible region of the learning curves there.  The equation gives y only implicitly.
"""

from __future__ import annotations

import itertools

import numpy as np

from allometry.laws.forms import Array, Form, Parameter

__all__ = ["BoundedPowerLaw"]


class BoundedPowerLaw(Form):
    """``(y - E) / (E0 - y)^kappa = A x^-alpha``: all three regions of a learning curve.

    ``E0`` is the error of the best guess; where it is known, as 0.9 for ten classes alike, hold it there by
    ``bounds={"E0": (0.9, 0.9)}``.

    >>> form = BoundedPowerLaw()
    >>> theta = form.to_coordinates(np.array([[0.1, 0.9, 2.0, 0.5, 1.0]]))
    >>> np.exp(form.log_prediction(theta, np.log([[1e-9], [1.0], [1e9]]))).round(3).tolist()
    [[0.9, 0.633, 0.1]]
    """

    name = "bounded-power"
    parameters = (
        Parameter("E", 0.0, np.inf),
        Parameter("E0", 1e-9, 1e9, log=True),
        Parameter("A", 1e-9, 1e9, log=True),
        Parameter("alpha", 1e-3, 2.0),
        Parameter("kappa", 0.05, 5.0),
    )

    def __init__(self, input: str = "x") -> None:
        self.inputs = (input,)

    def units(self, shift: Array, target_shift: float) -> tuple[Array, Array]:
        matrix, offset = np.eye(5), np.zeros(5)
        matrix[0, 0] = np.exp(target_shift)
        matrix[2, 3] = shift[0]
        matrix[2, 4] = -target_shift  # y in units of c: both sides of the equation lose a power of c
        offset[1] = offset[2] = target_shift
        return matrix, offset

    def log_prediction(self, theta: Array, features: Array) -> Array:
        return self._solve(theta, features)[0]

    def jacobian(self, theta: Array, features: Array) -> tuple[Array, Array]:
        log_y, above, below = self._solve(theta, features)
        # F = log(y - E) - kappa log(E0 - y) - a + alpha x = 0, and its derivatives by each unknown
        kappa = theta[:, 4, None]
        by_y = 1.0 / above + kappa / below
        by = np.stack(
            [
                1.0 / above,
                kappa / below * np.exp(theta[:, 1, None]),
                np.ones_like(above),
                -np.broadcast_to(features[None, :, 0], above.shape),
                np.log(below),
            ],
            axis=1,
        )
        return log_y, by / (by_y * np.exp(log_y))[:, None]

    def _solve(self, theta: Array, features: Array) -> tuple[Array, Array, Array]:
        """Log of y, y - E and E0 - y, each ``(batch, n)``; not numbers where E0 is not above E."""
        floor, log_guess, a, alpha, kappa = (theta[:, i, None] for i in range(5))
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            span = np.where(np.exp(log_guess) > floor, np.exp(log_guess) - floor, np.nan)
            wanted = a - alpha * features[None, :, 0] - (1.0 - kappa) * np.log(span)
            # y = E + span * logistic(z) makes it  log logistic(z) - kappa log logistic(-z) = wanted: as z
            # goes from minus to plus infinity the slope goes from 1 to kappa monotonically, so that Newton's
            # steps do not turn back after the first
            z = np.where(wanted < (kappa - 1.0) * np.log(2.0), wanted, wanted / kappa)
            for _ in range(60):
                low, high = -np.logaddexp(0.0, -z), -np.logaddexp(0.0, z)
                step = (low - kappa * high - wanted) / (np.exp(high) + kappa * np.exp(low))
                z = z - step
                if not np.nanmax(np.abs(step), initial=0.0) > 1e-13 * max(
                    1.0, np.nanmax(np.abs(z), initial=0.0)
                ):
                    break
            low, high = -np.logaddexp(0.0, -z), -np.logaddexp(0.0, z)
            above, below = span * np.exp(low), span * np.exp(high)
            return np.log(floor + above), above, below

    def starts(self, features: Array, log_y: Array, weights: Array) -> Array:
        y, x = np.exp(log_y), features[:, 0]
        least, most = y.min(axis=1, keepdims=True), y.max(axis=1, keepdims=True)
        rows = []
        for share, over, alpha, kappa in itertools.product(
            (0.0, 0.5, 0.9), (1.02, 1.3, 2.5), (0.15, 0.4, 0.8, 1.3), (0.4, 1.0)
        ):
            floor, guess = share * least, over * most
            level = np.log(y - floor) - kappa * np.log(guess - y) + alpha * x
            a = (weights * level).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
            rest = np.broadcast_to([alpha, kappa], (len(y), 2))
            rows.append(np.concatenate([floor, np.log(guess), a, rest], axis=1))
        return np.stack(rows, axis=1)
