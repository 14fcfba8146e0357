"""The whole training curve of a network whose tangent kernel stands still, in closed form.

Arthur Jacot, Franck Gabriel and Clément Hongler, 2018, arXiv:1806.07572, section 5; the spread over
initializations after Lee et al. (2019, arXiv:1902.06720).

The cost is ½ · mean over the N samples of ‖f(x_i) − y_i‖², so that eigenvalues act as λ/N: with PyTorch's
mean squared error of k outputs, which has no ½ and a 1/k, multiply the learning rate by 2/k.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from allometry.measure.per_sample import AsFunction, sample_count
from allometry.measure.tangent_kernel import empirical_kernel

__all__ = ["KernelDrift", "KernelDynamics", "Spread", "follow_training", "kernel_drift"]


class Spread(NamedTuple):
    """Mean (M, k) of predictions over initializations, and the covariance (M, M) that every output has."""

    mean: Tensor
    covariance: Tensor


class KernelDynamics:
    """Gradient descent in function space with a kernel that stays as it is.

    Parameters
    ----------
    kernel : Tensor, shape (N, N) or (N, N, k, k)
        Θ on the training samples: one for all outputs, or output by output.
    targets : Tensor, shape (N,) or (N, k)
    initial : Tensor, like targets, optional
        f₀ on the training samples; by default 0.
    learning_rate : float
        η of the gradient of ½ · mean ‖f − y‖².
    ridge : float
        Added to the kernel: decay of the parameters to where they began, ridge/N times the rate a step.
    tolerance : float
        Eigenvalues below this share of the largest count as 0: nothing is learnt along them.

    Attributes
    ----------
    eigenvalues : Tensor
        Of the kernel, largest first, without the 1/N.
    eigenvectors : Tensor
        In columns, in that order; output by output kernels have rows (sample, output).
    rank : int
        How many eigenvalues are above the tolerance.
    largest_rate : float
        2N / (λ_max + ridge): steps of this size and more diverge.

    Raises
    ------
    ValueError
        Shapes that do not fit, a kernel that is not symmetric, a negative ridge, values that are not finite.

    Examples
    --------
    >>> dynamics = KernelDynamics(torch.eye(2), torch.tensor([1.0, 2.0]), learning_rate=2.0)
    >>> dynamics.predict(math.log(2)).squeeze()
    tensor([0.5000, 1.0000], dtype=torch.float64)
    """

    def __init__(
        self,
        kernel: Tensor,
        targets: Tensor,
        *,
        initial: Tensor | None = None,
        learning_rate: float = 1.0,
        ridge: float = 0.0,
        tolerance: float = 1e-12,
    ) -> None:
        kernel = kernel.detach().double()
        y = targets.detach().double()
        y = y[:, None] if y.ndim == 1 else y
        self._full = kernel.ndim == 4
        n = len(y)
        shape = (n, n, y.shape[1], y.shape[1]) if self._full else (n, n)
        if y.ndim != 2 or tuple(kernel.shape) != shape:
            raise ValueError(
                "targets are (N,) or (N, k) and the kernel (N, N) or (N, N, k, k); got "
                f"{tuple(targets.shape)} and {tuple(kernel.shape)}"
            )
        start = torch.zeros_like(y) if initial is None else initial.detach().double().reshape(y.shape)
        for what, one in (("kernel", kernel), ("targets", y), ("initial outputs", start)):
            if not bool(torch.isfinite(one).all()):
                raise ValueError(f"the {what} hold values that are not finite")
        if not ridge >= 0 or not learning_rate > 0:
            raise ValueError(
                f"ridge is at least 0 and learning_rate above 0; got {ridge!r}, {learning_rate!r}"
            )
        matrix = self._flat(kernel)
        if float((matrix - matrix.mT).abs().max()) > 1e-4 * float(matrix.abs().max()):
            raise ValueError("a kernel of samples with themselves is symmetric; this one is not")
        values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
        self.eigenvalues, self.eigenvectors = values.flip(0), vectors.flip(1)
        largest = float(self.eigenvalues[0])
        if not largest > 0:
            raise ValueError("the kernel is zero, so nothing is learnt")
        if float(self.eigenvalues[-1]) < -1e-4 * largest:
            raise ValueError(
                f"a kernel has no negative eigenvalues; one is {float(self.eigenvalues[-1]):.3g}"
            )
        self._learnt = self.eigenvalues > tolerance * largest
        self.rank = int(self._learnt.sum())
        self.learning_rate, self.ridge, self.samples = float(learning_rate), float(ridge), n
        self.largest_rate = 2 * n / (largest + self.ridge)
        self.targets, self.initial = y, start
        self._gap = self.eigenvectors.mT @ self._columns(y - start)

    @classmethod
    def of(
        cls, model: nn.Module, x: Any, targets: Tensor, *, learning_rate: float = 1.0, ridge: float = 0.0,
        params: str | Iterable[str] | None = None, reduce: Literal["full", "trace"] = "full",
        outputs: Callable[[Any], Tensor] | None = None,
    ) -> KernelDynamics:  # fmt: skip
        """The dynamics of a model from where it is, by its empirical kernel.

        >>> KernelDynamics.of(nn.Linear(3, 1), torch.randn(4, 3), torch.zeros(4)).rank
        4
        """
        function = AsFunction(model, params, outputs)
        with torch.no_grad():
            start = function(function.values, x)
        kernel = empirical_kernel(model, x, params=params, reduce=reduce, outputs=outputs)
        return cls(kernel, targets, initial=start, learning_rate=learning_rate, ridge=ridge)

    def _flat(self, kernel: Tensor) -> Tensor:
        if kernel.ndim == 2:
            return kernel
        n, m, k, _ = kernel.shape
        return kernel.permute(0, 2, 1, 3).reshape(n * k, m * k)

    def _columns(self, values: Tensor) -> Tensor:
        return values.reshape(-1, 1) if self._full else values

    def _gain(self, times: Tensor, steps: bool) -> Tensor:
        """(1 − e^{−η(λ+ρ)t/N}) / (λ + ρ), or (1 − (1 − η(λ+ρ)/N)^t) / (λ + ρ): (times, eigenvalues)."""
        values = self.eigenvalues + self.ridge
        speed = self.learning_rate * values / self.samples
        if steps:
            if bool((speed[self._learnt] >= 2).any()):
                raise ValueError(
                    f"steps of learning_rate {self.learning_rate:g} diverge: it must be below "
                    f"largest_rate = {self.largest_rate:g}"
                )
            left = torch.where(times[:, None] == 0, 1.0, (1 - speed) ** times[:, None])
        else:
            left = torch.where(times[:, None] == 0, 1.0, torch.exp(-speed * times[:, None]))
        gain = torch.where(self._learnt, (1 - left) / values, 0.0)
        return torch.where(self._learnt & (times[:, None] == math.inf), 1 / values, gain)

    def predict(
        self, time: float | Sequence[float] | Tensor = math.inf, kernel: Tensor | None = None, *,
        initial: Tensor | None = None, steps: bool = False,
    ) -> Tensor:  # fmt: skip
        """Outputs after some training.

        Parameters
        ----------
        time : float or sequence of float
            In units in which a step of gradient descent takes 1; ``inf`` is the end.
        kernel : Tensor, shape (M, N) or (M, N, k, k), optional
            Θ of other samples with the training samples; by default the training samples themselves.
        initial : Tensor, shape (M,) or (M, k), optional
            f₀ there; by default 0 (on the training samples: what the dynamics were given).
        steps : bool
            Of gradient descent, instead of its flow.

        Returns
        -------
        Tensor, shape (M, k), or (times, M, k) for several times

        Raises
        ------
        ValueError
            Negative times, a kernel of another shape, or steps that diverge.
        """
        one = not isinstance(time, Tensor | Sequence) or (isinstance(time, Tensor) and time.ndim == 0)
        times = torch.as_tensor(time, dtype=torch.float64).reshape(-1)
        if not bool((times >= 0).all()):
            raise ValueError(f"times are 0 or more; got {time!r}")
        gain = self._gain(times, steps)
        if kernel is None:
            carried = self.eigenvectors * self.eigenvalues
            start = self.initial
        else:
            carried = self._other(kernel) @ self.eigenvectors
            m, k = len(kernel), self.targets.shape[1]
            start = torch.zeros(m, k).double() if initial is None else initial.double().reshape(m, k)
        moved = torch.einsum("mr,tr,rc->tmc", carried, gain, self._gap)
        found = start + moved.reshape(len(times), *start.shape)
        return found[0] if one else found

    def _other(self, kernel: Tensor) -> Tensor:
        wanted = (self.samples, *(self.targets.shape[1],) * 2) if self._full else (self.samples,)
        if tuple(kernel.shape[1:]) != wanted:
            raise ValueError(f"the kernel to the training samples is (M, {', '.join(map(str, wanted))}); got "
                             f"{tuple(kernel.shape)}")  # fmt: skip
        return self._flat(kernel.double())

    def loss(self, time: Sequence[float] | Tensor, *, steps: bool = False) -> Tensor:
        """½ · mean ‖f − y‖² on the training samples at each time.

        >>> KernelDynamics(torch.eye(2), torch.ones(2)).loss([0.0, math.inf])
        tensor([0.5000, 0.0000], dtype=torch.float64)
        """
        found = self.predict(torch.as_tensor(time, dtype=torch.float64).reshape(-1), steps=steps)
        return ((found - self.targets) ** 2).sum((1, 2)) / (2 * self.samples)

    def spread(
        self, time: float, kernel: Tensor, *, nngp: Tensor, nngp_cross: Tensor, nngp_other: Tensor,
        steps: bool = False,
    ) -> Spread:  # fmt: skip
        """Predictions over random initializations of zero mean, whose covariance is the NNGP kernel.

        Parameters
        ----------
        time : float
        kernel : Tensor, shape (M, N)
            Θ of other samples with the training samples.
        nngp, nngp_cross, nngp_other : Tensor, shapes (N, N), (M, N) and (M, M)
            Σ on the training samples, across, and on the others.
        steps : bool

        Raises
        ------
        ValueError
            For a kernel that differs between outputs.

        Examples
        --------
        >>> one = torch.ones(1, 1)
        >>> told = KernelDynamics(one, torch.ones(1)).spread(
        ...     math.inf, one, nngp=one, nngp_cross=one, nngp_other=one)
        >>> float(told.covariance)
        0.0
        """
        if self._full:
            raise ValueError("the spread is that of one kernel for all outputs, (N, N)")
        gain = self._gain(torch.tensor([time], dtype=torch.float64), steps)[0]
        pull = (self._other(kernel) @ self.eigenvectors * gain) @ self.eigenvectors.mT
        cross = pull @ nngp_cross.double().mT
        covariance = nngp_other.double() - cross - cross.mT + pull @ nngp.double() @ pull.mT
        return Spread(pull @ self.targets, covariance)


class KernelDrift(NamedTuple):
    """How far a kernel moved, and how well it fits the targets before and after.

    Attributes
    ----------
    change : float
        ‖Θ_T − Θ_0‖ / ‖Θ_0‖ in Frobenius norm.
    similarity : float
        Their cosine, which growth alone leaves at 1.
    target_before, target_after : float
        yᵀ Θ y / (‖Θ‖ ‖y yᵀ‖), NaN without targets.
    """

    change: float
    similarity: float
    target_before: float
    target_after: float


def kernel_drift(before: Tensor, after: Tensor, targets: Tensor | None = None) -> KernelDrift:
    """Compare the kernels (N, N) of the same samples at two times.

    Parameters
    ----------
    before, after : Tensor, shape (N, N)
        Such as ``empirical_kernel(..., reduce="trace")``.
    targets : Tensor, shape (N,) or (N, k), optional

    Raises
    ------
    ValueError
        Shapes that differ.

    Examples
    --------
    >>> kernel_drift(torch.eye(4), 2 * torch.eye(4))[:2]
    (1.0, 1.0)
    """
    if before.ndim != 2 or before.shape != after.shape:
        raise ValueError(
            f"kernels are (N, N), before and after; got {tuple(before.shape)}, {tuple(after.shape)}"
        )
    a, b = before.double(), after.double()

    def fit(kernel: Tensor) -> float:
        if targets is None:
            return math.nan
        y = targets.double().reshape(len(kernel), -1)
        return float((kernel * (y @ y.mT)).sum() / (kernel.norm() * (y @ y.mT).norm()))

    return KernelDrift(
        float((b - a).norm() / a.norm()), float((a * b).sum() / (a.norm() * b.norm())), fit(a), fit(b)
    )


def follow_training(
    model: nn.Module,
    x: Any,
    targets: Tensor,
    *,
    steps: int | Sequence[int],
    learning_rate: float | None = None,
    reduce: Literal["full", "trace"] = "full",
    outputs: Callable[[Any], Tensor] | None = None,
) -> pd.DataFrame:
    """Train a copy of a model by full-batch gradient descent beside what its first kernel foretells.

    Parameters
    ----------
    model : nn.Module
        Is left as it is.
    x : inputs of N samples
    targets : Tensor, shape (N,) or (N, k)
    steps : increasing sequence of int, or int
        When to look; a number stands for 0 and a dozen places up to it, evenly in the logarithm.
    learning_rate : float, optional
        Of ½ · mean ‖f − y‖²; by default half of the largest that the first kernel allows.
    reduce, outputs
        As for `empirical_kernel`; ``"trace"`` foretells as if outputs had one kernel.

    Returns
    -------
    DataFrame
        One row a step: ``loss`` as trained, ``predicted`` by the first kernel, ``distance`` of their outputs
        (root mean square), ``change`` of the kernel, ``similarity`` and ``target`` alignment. A network is
        lazy where distance and change stay small; `learning_rate` is in ``attrs``.

    Raises
    ------
    ValueError
        As `empirical_kernel`; steps that do not increase from 0 or more.

    Examples
    --------
    >>> found = follow_training(nn.Linear(3, 1), torch.eye(3), torch.ones(3), steps=[0, 10])
    >>> bool((found["loss"] - found["predicted"]).abs().max() < 1e-6)  # a linear model is lazy
    True
    """
    if isinstance(steps, int):
        steps = sorted({0, *(round(steps ** (place / 11)) for place in range(12))}) if steps > 0 else [steps]
    marks = [int(one) for one in steps]
    if not marks or marks[0] < 0 or marks != sorted(set(marks)):
        raise ValueError(f"steps increase, from 0 or more; got {list(steps)}")
    dynamics = KernelDynamics.of(model, x, targets, reduce=reduce, outputs=outputs)
    dynamics.learning_rate = dynamics.largest_rate / 2 if learning_rate is None else float(learning_rate)
    y = dynamics.targets.to(next(model.parameters()))
    learner = copy.deepcopy(model)
    function = AsFunction(learner, None, outputs)
    values = {name: one.clone() for name, one in function.values.items()}
    first = empirical_kernel(learner, x, reduce="trace", outputs=outputs)
    found = dynamics.predict(torch.tensor(marks, dtype=torch.float64), steps=True)
    rows, done = [], 0
    own = dict(learner.named_parameters())
    for mark, foretold in zip(marks, found, strict=True):
        for _ in range(mark - done):
            values = _descend(function, values, x, y, dynamics.learning_rate)
        done = mark
        with torch.no_grad():
            out = function(values, x).double()
            for name, one in values.items():
                own[name].copy_(one)
        moved = kernel_drift(first, empirical_kernel(learner, x, reduce="trace", outputs=outputs), targets)
        rows.append({
            "step": mark, "loss": float(((out - dynamics.targets) ** 2).sum()) / (2 * sample_count(x)),
            "predicted": float(((foretold - dynamics.targets) ** 2).sum()) / (2 * sample_count(x)),
            "distance": float((out - foretold).square().mean().sqrt()),
            "change": moved.change, "similarity": moved.similarity, "target": moved.target_after,
        })  # fmt: skip
    table = pd.DataFrame(rows)
    table.attrs["learning_rate"] = dynamics.learning_rate
    return table


def _descend(
    function: AsFunction, values: dict[str, Tensor], x: Any, y: Tensor, learning_rate: float
) -> dict[str, Tensor]:
    """One step on ½ · mean ‖f − y‖²."""
    leaves = {name: one.detach().requires_grad_() for name, one in values.items()}
    with torch.enable_grad():
        cost = (function(leaves, x) - y).square().sum() / (2 * len(y))
    slopes = torch.autograd.grad(cost, list(leaves.values()), allow_unused=True)
    return {
        name: one if slope is None else one.detach() - learning_rate * slope
        for (name, one), slope in zip(values.items(), slopes, strict=True)
    }
