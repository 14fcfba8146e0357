"""Tangent kernels too large to hold: products with vectors, and sketches with a standard error.

The kernel of Jacot, Gabriel and Hongler (2018, arXiv:1806.07572) is J Jᵀ. `kernel_operator` multiplies by it
with one backward and one forward derivative, for SciPy's iterative solvers. `sketched_kernel` estimates it
from random directions: J v, with v of independent signs in parameter space, has E[(J v)(J v)ᵀ] = J Jᵀ; and
random weights u of the outputs have E[u uᵀ] = I, so that the kernel of uᵀf has the trace as its mean.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

from allometry.measure.capture import first_tensor
from allometry.measure.per_sample import AsFunction, sample_count
from allometry.measure.tangent_kernel import empirical_kernel, look, refuse_large

__all__ = ["SketchedKernel", "kernel_operator", "sketched_kernel"]


def kernel_operator(
    model: nn.Module,
    x: Any,
    *,
    params: str | Iterable[str] | None = None,
    outputs: Callable[[Any], Tensor] | None = None,
) -> LinearOperator:
    """Products with Θ(x, x) over all samples and outputs, never forming it.

    Parameters
    ----------
    model, x, params, outputs
        As for `empirical_kernel`; one product takes the memory of one training step on all of x.

    Returns
    -------
    scipy.sparse.linalg.LinearOperator, shape (N k, N k)
        Outputs run faster than samples, as in ``kernel.permute(0, 2, 1, 3).reshape(N * k, N * k)``.

    Raises
    ------
    ValueError
        As `empirical_kernel`.

    Examples
    --------
    >>> model = nn.Linear(2, 1)
    >>> kernel_operator(model, torch.tensor([[1.0, 2.0], [0.0, 1.0]])) @ np.array([1.0, 0.0])
    array([6., 3.])
    """
    function = AsFunction(model, params, outputs)
    plan = look(function, x)
    shape = (sample_count(x), plan.outputs)
    dtype = next(iter(function.values.values())).dtype

    def product(vector: Any) -> Any:
        weights = torch.as_tensor(np.asarray(vector).reshape(shape), dtype=dtype, device=plan.device)
        pull = torch.func.vjp(lambda values: function(values, x), function.values)[1]
        (direction,) = pull(weights)
        return _push(function, x, direction).double().cpu().numpy().reshape(-1)

    size = shape[0] * shape[1]
    return LinearOperator((size, size), matvec=product, rmatvec=product, dtype=np.float64)


def _push(function: AsFunction, x: Any, direction: dict[str, Tensor]) -> Tensor:
    """J v, one row of outputs a sample."""
    with torch.no_grad():
        return torch.func.jvp(lambda values: function(values, x), (function.values,), (direction,))[1]


class SketchedKernel(NamedTuple):
    """An unbiased estimate of a kernel and the standard error of each entry, both float64."""

    kernel: Tensor
    standard_error: Tensor


def sketched_kernel(
    model: nn.Module,
    x: Any,
    z: Any = None,
    *,
    probes: int = 64,
    over: Literal["parameters", "outputs"] = "parameters",
    params: str | Iterable[str] | None = None,
    reduce: Literal["full", "trace"] = "full",
    outputs: Callable[[Any], Tensor] | None = None,
    memory: float = 2.0,
    generator: torch.Generator | None = None,
) -> SketchedKernel:
    """Θ estimated from random signs; the error falls as one over the root of the number of probes.

    Parameters
    ----------
    model, x, z, params, reduce, outputs, memory
        As for `empirical_kernel`.
    probes : int
        At least 2.
    over : "parameters" or "outputs"
        Over parameters, each probe costs one forward derivative of the model and works for any model. Over
        outputs each probe is an exact kernel of one random sum of the outputs, which suits models with very
        many of them (language models): for the trace alone.
    generator : torch.Generator, optional
        Without it one seeded with 0.

    Returns
    -------
    SketchedKernel
        ``kernel`` and ``standard_error`` have the shape that `empirical_kernel` gives.

    Raises
    ------
    ValueError
        Too few probes, outputs for a full kernel, or as `empirical_kernel`.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    >>> found = sketched_kernel(nn.Linear(2, 1), x, probes=4000, reduce="trace")
    >>> bool((found.kernel - torch.tensor([[6, 3], [3, 2]])).abs().max() < 5 * found.standard_error.max())
    True
    """
    if probes < 2:
        raise ValueError(f"a standard error needs at least 2 probes; got {probes}")
    if over not in ("parameters", "outputs"):
        raise ValueError(f"probes are over 'parameters' or 'outputs'; got {over!r}")
    if over == "outputs" and reduce != "trace":
        raise ValueError("probes over outputs estimate the trace: pass reduce='trace'")
    generator = generator or torch.Generator().manual_seed(0)
    function = AsFunction(model, params, outputs)
    plan = look(function, x)
    k, n, m = plan.outputs, sample_count(x), sample_count(x if z is None else z)
    refuse_large(n * m * (1 if reduce == "trace" else k * k), memory, f"a kernel of {n} x {m} samples")

    def signs(like: Tensor) -> Tensor:
        drawn = torch.randint(0, 2, like.shape, generator=generator)
        return (2 * drawn - 1).to(like)

    def from_direction() -> Tensor:
        direction = {name: signs(one) for name, one in function.values.items()}
        ours = _push(function, x, direction).double()
        theirs = ours if z is None else _push(function, z, direction).double()
        if reduce == "trace":
            return ours @ theirs.mT / k
        return torch.einsum("nk,ml->nmkl", ours, theirs)

    def from_weights() -> Tensor:
        weights = signs(torch.empty(k, device=plan.device))

        def weighted(answer: Any) -> Tensor:
            found = answer if outputs is None else outputs(answer)
            flat = first_tensor(found)
            assert flat is not None
            return flat.reshape(len(flat), -1) @ weights.to(flat)

        found = empirical_kernel(model, x, z, params=params, reduce="trace", outputs=weighted, memory=memory)
        return found / k

    draw = from_direction if over == "parameters" else from_weights
    mean = square = torch.zeros((), dtype=torch.float64)
    for count in range(1, probes + 1):  # running moments: one kernel at a time in memory
        one = draw()
        step = one - mean
        mean = mean + step / count
        square = square + step * (one - mean)
    return SketchedKernel(mean, (square / (probes - 1) / probes).sqrt())
