"""From the poles of a linear system to its convolution kernel, without the matrix of all powers.

The Vandermonde product of Gu, Gupta, Goel and Ré (2022, arXiv:2206.11893, equation 5): K_l = Re Σ w e^{z l}.
Writing l = c q + r splits the powers into two small sets and a product of real matrices, in the gradient too.
No more than 2 · 128 powers a state are held at a time, so memory is O(states + length), and exponentials,
which the direct sum spends its time on, are fewer by two orders of magnitude.
"""

import contextlib
import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["discretize", "powers", "vandermonde"]

_CHUNK = 128  # powers held at a time for each state, twice


class _Vandermonde(torch.autograd.Function):
    """K (H, groups · chunk) = Re Σ_n w e^{z l}; forward and backward hold 2 · _CHUNK powers a state."""

    @staticmethod
    def forward(logs: Tensor, weights: Tensor, chunk: int, groups: int) -> Tensor:
        fine = powers(logs, torch.arange(chunk, device=logs.device), weights.dtype)  # (H, N, c)
        right = torch.cat([fine.real, -fine.imag], 1)  # the real part of a product is one real product
        parts = []
        with _full_precision(logs):
            for places in _places(groups, logs.device):
                coarse = weights[..., None] * powers(logs, places * chunk, weights.dtype)  # (H, N, Q)
                parts.append(torch.cat([coarse.real, coarse.imag], 1).mT @ right)
        return torch.cat(parts, 1).flatten(1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        logs, weights, ctx.chunk, ctx.groups = inputs
        ctx.save_for_backward(logs, weights)
        ctx.save_for_forward(logs, weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        logs, weights = ctx.saved_tensors
        chunk = ctx.chunk
        gradient = gradients[0].unflatten(1, (ctx.groups, chunk))
        inner = torch.arange(chunk, device=logs.device)
        fine = powers(logs, inner, weights.dtype)
        both = torch.cat([fine, fine * inner], 1)  # for Σ g e^{zl} and Σ g r e^{zl}
        plain, timed = torch.zeros_like(weights), torch.zeros_like(weights)
        with _full_precision(logs):
            for places in _places(ctx.groups, logs.device):
                part = gradient[:, int(places[0]) : int(places[-1]) + 1].mT  # (H, c, Q)
                sums = torch.complex(both.real @ part, both.imag @ part)  # (H, 2N, Q)
                first, second = sums.chunk(2, 1)
                coarse = powers(logs, places * chunk, weights.dtype)
                plain = plain + (coarse * first).sum(-1)
                timed = timed + (coarse * (second + first * (places * chunk))).sum(-1)
        return (weights * timed).conj().to(logs.dtype), plain.conj(), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        logs, weights = ctx.saved_tensors
        length = ctx.chunk * ctx.groups
        times = torch.arange(length, device=logs.device)
        moved = torch.zeros(len(logs), length, dtype=weights.real.dtype, device=logs.device)
        if tangents[0] is not None:
            turned = (weights * tangents[0]).to(weights.dtype)
            moved = moved + times * vandermonde(logs, turned, length)
        if tangents[1] is not None:
            moved = moved + vandermonde(logs, tangents[1], length)
        return moved

    @staticmethod
    def vmap(info: Any, dims: Any, logs: Tensor, weights: Tensor, chunk: int, groups: int) -> Any:
        """Rows are independent: what is mapped over becomes rows."""
        both = [
            one.expand(info.batch_size, *one.shape) if dim is None else one.movedim(dim, 0)
            for one, dim in zip((logs, weights), dims, strict=False)
        ]
        found = _Vandermonde.apply(*(one.flatten(0, 1) for one in both), chunk, groups)
        return found.unflatten(0, (info.batch_size, -1)), 0


def _places(groups: int, device: torch.device) -> list[Tensor]:
    """Numbers of the chunks of a kernel, _CHUNK at a time."""
    return [
        torch.arange(start, min(start + _CHUNK, groups), device=device) for start in range(0, groups, _CHUNK)
    ]


def _full_precision(like: Tensor) -> contextlib.AbstractContextManager[Any]:
    """No autocast: products of powers in half precision lose a kernel's digits."""
    if torch.amp.is_autocast_available(like.device.type):
        return torch.autocast(like.device.type, enabled=False)
    return contextlib.nullcontext()


def powers(logs: Tensor, exponents: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """e^{logs · exponents} as (..., L), in a ``dtype``, by default that of ``logs``.

    Phases are reduced in float64, since they reach thousands of turns.

    Examples
    --------
    >>> powers(torch.tensor([0.5 + 0j]).log(), torch.arange(3)).real
    tensor([[1.0000, 0.5000, 0.2500]])
    """
    exact = logs.to(torch.complex128)[..., None] * exponents
    return torch.exp(exact).to(dtype or logs.dtype)


def vandermonde(logs: Tensor, weights: Tensor, length: int) -> Tensor:
    """K_l = Re Σ_n weights_n e^{logs_n l} for l = 0 … length − 1, without the (N, length) matrix.

    Parameters
    ----------
    logs, weights : complex Tensor, shape (H, N)
        Logarithms of the poles of the discrete system, and their residues. Long kernels ask for complex128
        logarithms, whatever the weights are: an error in a phase is multiplied by the length.
    length : int
        At least 1.

    Returns
    -------
    Tensor, shape (H, length)
        Real, as precise as the weights; differentiable in both, forward and backward, and under `torch.func`.

    Raises
    ------
    ValueError
        Shapes differ, numbers are not complex, or the length is below 1.

    Examples
    --------
    >>> half = torch.tensor([[0.5 + 0j]])
    >>> vandermonde(half.log(), torch.ones_like(half), 3)
    tensor([[1.0000, 0.5000, 0.2500]])
    """
    if logs.shape != weights.shape or logs.ndim != 2:
        raise ValueError(f"logs and weights have one shape (H, N); got {logs.shape} and {weights.shape}")
    if not (logs.is_complex() and weights.is_complex()):
        raise ValueError(f"logs and weights are complex; got {logs.dtype} and {weights.dtype}")
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ValueError(f"length is a whole number of at least 1; got {length!r}")
    chunk = min(_CHUNK, math.isqrt(length))
    result: Tensor = _Vandermonde.apply(logs, weights, chunk, -(-length // chunk))
    return result[:, :length]


def discretize(poles: Tensor, inputs: Tensor, step: Tensor, method: str = "zoh") -> tuple[Tensor, Tensor]:
    """log ā and b̄ of the discrete system, shapes of ``poles``; ``step`` broadcasts against it.

    ``"zoh"`` holds the input over a step, ā = e^{Δa}, b̄ = (ā − 1) b / a; ``"bilinear"`` is the trapezoid,
    ā = (1 + Δa/2) / (1 − Δa/2), b̄ = Δ b / (1 − Δa/2).

    Examples
    --------
    >>> log, b = discretize(torch.tensor([-1 + 0j]), torch.tensor([1 + 0j]), torch.tensor(0.5))
    >>> torch.allclose(b, 1 - log.exp())
    True
    """
    if method == "zoh":
        log = step * poles
        small = log.abs() < 0.1  # (e^x − 1)/x and its derivative lose their digits there: Σ x^k / (k + 1)!
        near = torch.where(small, log, torch.zeros_like(log))
        series = torch.ones_like(log)
        for k in range(9, 1, -1):
            series = 1 + near * series / k
        far = torch.where(small, torch.ones_like(log), log)
        return log, step * inputs * torch.where(small, series, torch.expm1(far) / far)
    if method == "bilinear":
        ratio = (1 + step * poles / 2) / (1 - step * poles / 2)
        log = torch.log(torch.where(ratio == 0, torch.full_like(ratio, 1e-30), ratio))
        return log, step * inputs / (1 - step * poles / 2)
    raise ValueError(f"a discretisation is 'zoh' or 'bilinear'; got {method!r}")
