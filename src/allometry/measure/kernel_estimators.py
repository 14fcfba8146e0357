"""Regression and classification with the kernel of an infinitely wide network, as scikit-learn estimators.

What an ensemble of infinitely wide networks learns from squared loss, after Jacot, Gabriel and Hongler (2018,
arXiv:1806.07572): kernel ridge regression with the tangent kernel, or where training stops early, what
gradient flow has learnt by then. A strong baseline on small data. Features should be of one scale, as for a
network.
"""

import math
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from allometry.measure.infinite_width import Architecture, analytic_kernels
from allometry.measure.kernel_dynamics import KernelDynamics

__all__ = ["NTKClassifier", "NTKRegressor"]


class _TangentKernel(BaseEstimator):
    """What both share: an infinitely wide dense network, trained for a time."""

    def __init__(
        self, depth: int = 3, activation: Any = "relu", weight_std: float = 1.0, bias_std: float = 0.1,
        kernel: str = "ntk", ridge: float = 1e-6, time: float = math.inf,
    ) -> None:  # fmt: skip
        self.depth = depth
        self.activation = activation
        self.weight_std = weight_std
        self.bias_std = bias_std
        self.kernel = kernel
        self.ridge = ridge
        self.time = time

    def _kernel(self, x: Any, z: Any = None) -> torch.Tensor:
        if self.kernel not in ("ntk", "nngp"):
            raise ValueError(f"kernel is 'ntk' or 'nngp'; got {self.kernel!r}")
        if not self.ridge >= 0:
            raise ValueError(f"ridge is at least 0; got {self.ridge!r}")
        if not self.time > 0:
            raise ValueError(f"time is above 0, inf for the end; got {self.time!r}")
        architecture = Architecture(self.depth, self.activation, self.weight_std, self.bias_std)
        other = None if z is None else torch.tensor(np.asarray(z))
        found = analytic_kernels(torch.tensor(np.asarray(x)), other, architecture)
        return getattr(found, self.kernel)

    def _learn(self, x: Any, y: Any) -> None:
        kernel = self._kernel(x)
        targets = torch.tensor(np.asarray(y, dtype=np.float64))
        self.offset_ = targets.mean(0)
        scale = float(kernel.diagonal().mean())
        self.dynamics_ = KernelDynamics(
            kernel, targets - self.offset_, ridge=self.ridge * scale, learning_rate=len(x)
        )
        self.X_fit_ = x

    def _outputs(self, x: Any) -> Any:
        check_is_fitted(self)
        x = validate_data(self, x, dtype=np.float64, reset=False)
        found = self.dynamics_.predict(self.time, self._kernel(x, self.X_fit_))
        return (found + self.offset_).numpy()


class NTKRegressor(RegressorMixin, _TangentKernel):
    """Regression with the kernel of an infinitely wide dense network.

    Parameters
    ----------
    depth, activation, weight_std, bias_std
        See `Architecture`.
    kernel : "ntk" or "nngp"
        ``"nngp"`` is the network of which only the readout is trained.
    ridge : float
        In units of the kernel's mean diagonal.
    time : float
        Of gradient flow on ½ · sum ‖f − y‖²; ``inf`` is the end.

    Attributes
    ----------
    dynamics_ : KernelDynamics
        With its eigenvalues and rank, of targets less their mean.
    X_fit_ : ndarray

    Examples
    --------
    >>> x = np.linspace(-1, 1, 20)[:, None]
    >>> bool(NTKRegressor().fit(x, x[:, 0] ** 2).score(x, x[:, 0] ** 2) > 0.99)
    True
    """

    def fit(self, X: Any, y: Any) -> "NTKRegressor":
        """X is (N, features), y (N,) or (N, k)."""
        X, y = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True)
        self._flat_ = np.ndim(y) == 1
        self._learn(X, y.reshape(len(y), -1))
        return self

    def predict(self, X: Any) -> Any:
        """(N,) or (N, k), as the targets were."""
        found = self._outputs(X)
        return found[:, 0] if self._flat_ else found

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class NTKClassifier(ClassifierMixin, _TangentKernel):
    """Classification by regression to one column a class, 1 for its own and 0 for others.

    Parameters are those of `NTKRegressor`. ``decision_function`` gives the regression's outputs, which are no
    probabilities.

    Examples
    --------
    >>> x = np.array([[0.0], [0.1], [1.0], [1.1]])
    >>> NTKClassifier().fit(x, ["a", "a", "b", "b"]).predict([[0.05], [1.05]]).tolist()
    ['a', 'b']
    """

    def fit(self, X: Any, y: Any) -> "NTKClassifier":
        """X is (N, features), y (N,)."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, places = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"there must be two classes or more; got one class, {self.classes_.tolist()}")
        self._learn(X, np.eye(len(self.classes_))[places])
        return self

    def decision_function(self, X: Any) -> Any:
        """(N, classes), or (N,) with two: the second's output less the first's."""
        found = self._outputs(X)
        return found[:, 1] - found[:, 0] if len(self.classes_) == 2 else found

    def predict(self, X: Any) -> Any:
        """The class with the largest output."""
        chosen = self._outputs(X).argmax(1)
        return self.classes_[chosen]
