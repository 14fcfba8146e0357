"""A law that is linear in logarithms, of as many scales as there are: ``y = A * prod x_i ^ -alpha_i``.

Of one scale it is the power law without a floor, which is what Yao and others, 2024, arXiv:2410.12360, draw
through every curve. Of several it says that scales act independently, each by its own exponent, such as the
error against training set and sharpness of a data set (Konz and Mazurowski, 2024, arXiv:2401.08865).

It has no floor, so it must not be trusted far beyond the data: where a floor can be seen, compare it by
`allometry.laws.compare_laws` with a law that has one.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from allometry.laws.forms import Array, Form, Parameter
from allometry.laws.law import RunLaw

__all__ = ["LogLinear", "LogLinearLaw"]


class LogLinear(Form):
    """``log y = log A - sum_i alpha_i log x_i``.

    Parameters
    ----------
    *inputs : str
        Names of the scales.

    Raises
    ------
    ValueError
        No scale, or one named twice.

    Examples
    --------
    >>> from allometry.laws.fit import fit
    >>> n, d = np.array([1e3, 1e4, 1e3, 1e4]), np.array([1e5, 1e5, 1e6, 1e7])
    >>> found = fit(LogLinear("n", "d"), {"n": n, "d": d}, 7 * n**-0.1 * d**0.2, resamples=0).params
    >>> {name: round(value, 6) for name, value in found.items()}
    {'A': 7.0, 'alpha_n': 0.1, 'alpha_d': -0.2}
    """

    name = "log-linear"

    def __init__(self, *inputs: str) -> None:
        if not inputs or len(set(inputs)) < len(inputs):
            raise ValueError(f"a log-linear law needs the names of its scales, each once; got {inputs}")
        self.inputs = inputs
        self.parameters = (
            Parameter("A", 1e-300, 1e300, log=True),
            *(Parameter(f"alpha_{name}", -20.0, 20.0) for name in inputs),
        )

    def units(self, shift: Array, target_shift: float) -> tuple[Array, Array]:
        matrix, offset = np.eye(1 + len(shift)), np.zeros(1 + len(shift))
        matrix[0, 1:] = shift
        offset[0] = target_shift
        return matrix, offset

    def log_prediction(self, theta: Array, features: Array) -> Array:
        return theta[:, :1] - theta[:, 1:] @ features.T

    def jacobian(self, theta: Array, features: Array) -> tuple[Array, Array]:
        rows = np.concatenate([np.ones((1, len(features))), -features.T])  # (p, n), whatever the parameters
        return self.log_prediction(theta, features), np.broadcast_to(rows, (len(theta), *rows.shape)).copy()

    def curvature(self, theta: Array, features: Array, cotangent: Array) -> Array:
        return np.zeros((len(theta), theta.shape[1], theta.shape[1]))

    def starts(self, features: Array, log_y: Array, weights: Array) -> Array:
        """Weighted least squares, which is the solution but for the robust loss."""
        rows = np.concatenate([np.ones((len(features), 1)), -features], axis=1)
        root = np.sqrt(weights)
        inverse = np.linalg.pinv(root[..., None] * rows)  # (curves, p, n); scales that move together share
        return (inverse @ (root * log_y)[..., None])[:, None, :, 0]


class LogLinearLaw(RunLaw):
    """`LogLinear` as a law over columns of a table, by least squares unless ``fit`` is told otherwise.

    Parameters
    ----------
    inputs : str or sequence of str
        Columns of the scales; in a string, joined by ``+``.
    target : str
        What is foretold.

    Examples
    --------
    >>> table = {"params": [1e3, 1e4, 1e5, 1e6], "loss": [4.0, 2.0, 1.0, 0.5]}
    >>> round(LogLinearLaw("params").fit(table, resamples=0).params_["alpha_params"], 6)
    0.30103
    """

    name = "log-linear"
    fit_options: ClassVar = {"loss": "squared"}  # as published, and with one optimum

    def __init__(self, inputs: str | tuple[str, ...] = ("params",), target: str = "loss") -> None:
        names = tuple(inputs.split("+")) if isinstance(inputs, str) else tuple(inputs)
        self.form = LogLinear(*names)
        self.target = target  # type: ignore[misc]
        self.columns = dict.fromkeys(names, "a scale, positive")  # type: ignore[misc]
