"""From the poles of a linear system to its convolution kernel, without the matrix of all powers.

The Vandermonde product of Gu, Gupta, Goel and Ré (2022, arXiv:2206.11893, equation 5): K_l = Re Σ w e^{z l}.
Writing l = c q + r splits the powers into two small sets and a product of real matrices, in the gradient too.
No more than 2 · 128 powers a state are held at a time, so memory is O(states + length), and exponentials,
which the direct sum spends its time on, are fewer by two orders of magnitude.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["discretize", "powers", "vandermonde"]

_CHUNK = 128  # powers held at a time for each state, twice


class _Vandermonde(torch.autograd.Function):
    """K (H, L) = Re Σ_n w e^{z l}; forward and backward hold 2 · _CHUNK powers a state."""

    @staticmethod
    def forward(ctx: Any, logs: Tensor, weights: Tensor, length: int) -> Tensor:
        ctx.save_for_backward(logs, weights)
        ctx.length = length
        chunk = min(_CHUNK, max(1, math.isqrt(length)))
        fine = powers(logs, torch.arange(chunk, device=logs.device))  # (H, N, c)
        right = torch.cat([fine.real, -fine.imag], 1)  # the real part of a product is one real product
        out = right.new_empty(logs.shape[0], -(-length // chunk), chunk)
        for start in range(0, out.shape[1], _CHUNK):
            places = torch.arange(start, min(start + _CHUNK, out.shape[1]), device=logs.device)
            coarse = weights[..., None] * powers(logs, places * chunk)  # (H, N, Q)
            left = torch.cat([coarse.real, coarse.imag], 1).mT
            out[:, start : start + len(places)] = left @ right
        return out.flatten(1)[:, :length]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        logs, weights = ctx.saved_tensors
        chunk = min(_CHUNK, max(1, math.isqrt(ctx.length)))
        groups = -(-ctx.length // chunk)
        gradient = F.pad(gradients[0], (0, groups * chunk - ctx.length)).unflatten(1, (groups, chunk))
        inner = torch.arange(chunk, device=logs.device)
        fine = powers(logs, inner)
        both = torch.cat([fine, fine * inner], 1)  # for Σ g e^{zl} and Σ g r e^{zl}
        plain, timed = torch.zeros_like(weights), torch.zeros_like(weights)
        for start in range(0, groups, _CHUNK):
            places = torch.arange(start, min(start + _CHUNK, groups), device=logs.device)
            part = gradient[:, start : start + len(places)].mT  # (H, c, Q)
            sums = torch.complex(both.real @ part, both.imag @ part)  # (H, 2N, Q)
            first, second = sums.chunk(2, 1)
            coarse = powers(logs, places * chunk)
            plain += (coarse * first).sum(-1)
            timed += (coarse * (second + first * (places * chunk))).sum(-1)
        return (weights * timed).conj(), plain.conj(), None


def powers(logs: Tensor, exponents: Tensor) -> Tensor:
    """e^{logs · exponents} as (..., L), in the type of ``logs``.

    Phases are reduced in float64, since they reach thousands of turns.

    Examples
    --------
    >>> powers(torch.tensor([0.5 + 0j]).log(), torch.arange(3)).real
    tensor([[1.0000, 0.5000, 0.2500]])
    """
    exact = logs.to(torch.complex128)[..., None] * exponents
    return torch.exp(exact).to(logs.dtype)


def vandermonde(logs: Tensor, weights: Tensor, length: int) -> Tensor:
    """K_l = Re Σ_n weights_n e^{logs_n l} for l = 0 … length − 1, without the (N, length) matrix.

    Parameters
    ----------
    logs, weights : complex Tensor, shape (H, N)
        Logarithms of the poles of the discrete system, and their residues.
    length : int
        At least 1.

    Returns
    -------
    Tensor, shape (H, length)
        Real; differentiable once in both.

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
    if length < 1:
        raise ValueError(f"length is at least 1; got {length}")
    result: Tensor = _Vandermonde.apply(logs, weights, length)
    return result


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
        small = log.abs() < 1e-3  # (e^x − 1)/x loses its digits there
        safe = torch.where(small, torch.ones_like(log), log)
        factor = torch.where(small, 1 + log / 2 + log * log / 6, (torch.exp(safe) - 1) / safe)
        return log, step * inputs * factor
    if method == "bilinear":
        ratio = (1 + step * poles / 2) / (1 - step * poles / 2)
        log = torch.log(torch.where(ratio == 0, torch.full_like(ratio, 1e-30), ratio))
        return log, step * inputs / (1 - step * poles / 2)
    raise ValueError(f"a discretisation is 'zoh' or 'bilinear'; got {method!r}")
