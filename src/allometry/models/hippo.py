"""State matrices of sequence layers: HiPPO's, and diagonals that behave like it.

Gu, Gupta, Goel and Ré, "On the Parameterization and Initialization of Diagonal State Space Models" (2022,
arXiv:2206.11893), after Gu, Dao, Ermon, Rudra and Ré (2020, arXiv:2008.07669).

- HiPPO-LegS, x' = A x + B u, keeps the Legendre coefficients of the exponentially warped past. Its own
  eigenvectors are too ill-conditioned to use; A is a normal matrix less p pᵀ, and `legs` keeps the normal
  part.
- A real diagonal system's poles are real or come in conjugate pairs. `Diagonal` stores one of each pair and
  says by ``weight`` how often its real part counts: y = Σ weight · Re(C x).
- Everything is float64: in float32 the eigenvectors of 64 states are already lost.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Diagonal", "hippo_legs", "inv", "legs", "legs_transfer", "lin", "random_poles", "real_poles"]


class Diagonal(NamedTuple):
    """A diagonal system x' = poles · x + inputs · u, y = Σ weight · Re(C x), with K stored states.

    Attributes
    ----------
    poles : Tensor, shape (K,), complex128
        Per unit of time.
    inputs : Tensor, shape (K,), complex128
        B in the eigenbasis.
    weight : Tensor, shape (K,)
        2 for a pole that stands for a conjugate pair, 1 for a real one.
    basis : Tensor or None, shape (n, K), complex128
        Eigenvectors: a readout c of the full state (n,) is ``c @ basis`` here.
    """

    poles: Tensor
    inputs: Tensor
    weight: Tensor
    basis: Tensor | None = None


def hippo_legs(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """HiPPO-LegS: A (n, n), B (n,) and the p (n,) that makes A + p pᵀ normal, in float64.

    Raises
    ------
    ValueError
        ``n`` is below 1.

    Examples
    --------
    >>> hippo_legs(2)[0].diag().tolist(), hippo_legs(2)[1].square().round().tolist()
    ([-1.0, -2.0], [1.0, 3.0])
    """
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"a state has at least 1 number, and a whole number of them; got {n!r}")
    root = torch.sqrt(2 * torch.arange(n, dtype=torch.float64) + 1)
    matrix = -torch.tril(root[:, None] * root[None, :], -1)
    matrix -= torch.diag(torch.arange(1, n + 1, dtype=torch.float64))
    return matrix, root, root / math.sqrt(2)


def legs_transfer(n: int, omega: Tensor) -> Tensor:
    """The exact response of HiPPO-LegS, (iω − A)⁻¹ B, for each ω (W,) and state (n,), as (W, n).

    G_k(s) = √(2k+1) Π_{j<k} (s − j) / Π_{j≤k} (s + j + 1), the Laplace transform of shifted Legendre
    polynomials of e⁻ᵗ; every factor is at most one on the imaginary axis, so nothing cancels.

    Examples
    --------
    >>> legs_transfer(1, torch.tensor([1.0])).real.item()
    0.5
    """
    s = 1j * omega.to(torch.complex128)[:, None]
    k = torch.arange(n, dtype=torch.float64)
    ratio = torch.ones(len(omega), n, dtype=torch.complex128)
    ratio[:, 1:] = (s - k[:-1]) / (s + k[:-1] + 1)
    return torch.sqrt(2 * k + 1) * ratio.cumprod(1) / (s + k + 1)


def _even(n: int) -> int:
    if not isinstance(n, int) or n < 2 or n % 2:
        raise ValueError(f"states come in conjugate pairs, so their number is even and at least 2; got {n!r}")
    return n // 2


def _with_ones(imaginary: Tensor) -> Diagonal:
    poles = torch.complex(torch.full_like(imaginary, -0.5), imaginary)
    return Diagonal(poles, torch.ones_like(poles), torch.full_like(imaginary, 2.0))


def legs(n: int, *, clip: float | None = None, half: bool = True) -> Diagonal:
    """S4D-LegS: the normal part of HiPPO-LegS, with half its input vector (theorem 3).

    Parameters
    ----------
    n : int
        Real states, even; n/2 poles are kept.
    clip : float, optional
        Bound on the imaginary part of B, as the authors' code has it (2). It depends on the eigenvectors'
        phases, which are made definite here by a real, non-negative first entry.
    half : bool
        Whether B is halved, as theory has it and the authors' code has not.

    Examples
    --------
    >>> round(legs(16).poles.imag.max().item(), 1)
    81.0
    """
    kept = _even(n)
    matrix, inputs, p = hippo_legs(n)
    skew = matrix + p[:, None] * p[None, :] + 0.5 * torch.eye(n, dtype=torch.float64)
    values, basis = torch.linalg.eigh(-1j * skew.to(torch.complex128))
    values, basis = values[kept:], basis[:, kept:]  # ascending: the upper half is the positive one
    basis = basis * (basis[0].abs() / basis[0])
    b = basis.mH @ inputs.to(torch.complex128)
    if clip is not None:
        # The authors' eigenvectors leave B almost imaginary; the same turn makes their clip reproducible.
        turn = torch.exp(1j * (math.pi / 2 - b.angle()))
        basis, b = basis / turn, b * turn
        b = torch.complex(b.real, b.imag.clamp(-clip, clip))
    poles = torch.complex(torch.full_like(values, -0.5), values)
    return Diagonal(poles, b / 2 if half else b, torch.full_like(values, 2.0), basis)


def inv(n: int) -> Diagonal:
    """S4D-Inv: poles −½ + i (n/π)(n/(2k+1) − 1) with B = 1 (equation 8).

    Examples
    --------
    >>> [round(one, 3) for one in inv(4).poles.imag.tolist()]
    [3.82, 0.424]
    """
    k = torch.arange(_even(n), dtype=torch.float64)
    return _with_ones(n / math.pi * (n / (2 * k + 1) - 1))


def lin(n: int) -> Diagonal:
    """S4D-Lin: poles −½ + iπk with B = 1 (equation 9).

    Examples
    --------
    >>> lin(4).poles.imag.tolist()
    [0.0, 3.141592653589793]
    """
    return _with_ones(math.pi * torch.arange(_even(n), dtype=torch.float64))


def real_poles(n: int) -> Diagonal:
    """S4D-Real: poles −1, −2, …, one for each pair of others, so that sizes and parameters agree.

    Examples
    --------
    >>> real_poles(4).poles.real.tolist()
    [-1.0, -2.0]
    """
    poles = -torch.arange(1, _even(n) + 1, dtype=torch.float64).to(torch.complex128)
    return Diagonal(poles, torch.ones_like(poles), torch.full((n // 2,), 2.0, dtype=torch.float64))


def random_poles(n: int, generator: torch.Generator | None = None) -> Diagonal:
    """Poles −½ + i exp(z) with z standard normal: the control without structure (section 5.2).

    Examples
    --------
    >>> random_poles(4).poles.real.tolist()
    [-0.5, -0.5]
    """
    generator = generator or torch.Generator().manual_seed(0)
    return _with_ones(torch.randn(_even(n), dtype=torch.float64, generator=generator).exp())
