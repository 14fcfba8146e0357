"""Lanczos' method: eigenvalues, and the density of all of them, from products with vectors alone.

Lanczos, 1950; stochastic quadrature: Golub and Meurant, 1994, and Ubaru, Chen and Saad, 2017; on networks:
Granziol, Zohren and Roberts, 2020, arXiv:2006.09092, and Ghorbani, Krishnan and Xiao, 2019, arXiv:1901.10159.

* Every call may work on many matrices at once: vectors have leading axes, and ``matvec`` maps ``(..., dim)``
  to ``(..., dim)``. A hundred small matrices cost a hundredth of the calls.
* Orthogonalised in full, so no eigenvalue shows up a second time as a ghost of its own. A density bears
  ghosts, which share one weight, and may do without (``keep=False``), with three vectors held in all.
* Where a Krylov space is exhausted it goes on from a fresh direction at right angles: eigenvalues with
  several vectors are found as often as there are vectors. Those have weight zero, and no density changes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Eigenpairs", "Lanczos", "SpectralDensity", "lanczos", "spectral_density", "top_eigenvalues"]

MatVec = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Lanczos:
    """What some steps of Lanczos found.

    Attributes
    ----------
    diagonal : Tensor, float64, shape (..., m)
    off_diagonal : Tensor, float64, shape (..., m - 1)
        Of the tridiagonal matrix.
    basis : Tensor, shape (..., m, dim)
        Orthonormal rows; none (..., 0, dim) where they were not kept.
    last : Tensor, float64, shape (...)
        Length of what the next step would begin with: residuals are this times a vector's last entry.
    """

    diagonal: Tensor
    off_diagonal: Tensor
    basis: Tensor
    last: Tensor

    def eigen(self) -> tuple[Tensor, Tensor]:
        """Ritz values (..., m), ascending, and their vectors in the basis, as columns (..., m, m)."""
        matrix = torch.diag_embed(self.diagonal)
        if self.off_diagonal.shape[-1]:
            matrix = matrix + torch.diag_embed(self.off_diagonal, 1) + torch.diag_embed(self.off_diagonal, -1)
        values, vectors = torch.linalg.eigh(matrix)
        return values, vectors

    def quadrature(self) -> tuple[Tensor, Tensor]:
        """Nodes and weights (..., m): the start vector's spectral measure, exact to degree 2 m - 1."""
        values, vectors = self.eigen()
        return values, vectors[..., 0, :].square()


@dataclass(frozen=True)
class Eigenpairs:
    """Some eigenvalues and their vectors.

    Attributes
    ----------
    values : Tensor, float64, shape (..., k)
        Largest first (smallest first for ``"smallest"``, largest magnitude first for ``"magnitude"``).
    vectors : Tensor, shape (..., k, dim)
        Rows of length 1.
    residuals : Tensor, float64, shape (..., k)
        Length of ``A u - value u``; the value is at most this far from an eigenvalue.
    steps : int
        Products made.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    steps: int


@dataclass(frozen=True)
class SpectralDensity:
    """The density of a matrix' eigenvalues, a mean of quadratures over random starts.

    Attributes
    ----------
    nodes, weights : Tensor, float64, shape (probes, m)
        Weights of a probe add up to 1.
    dim : int
    """

    nodes: Tensor
    weights: Tensor
    dim: int

    def density(self, grid: Tensor, width: float) -> Tensor:
        """Density (n,) at points (n,), every node smeared to a Gaussian of standard deviation ``width``."""
        if not width > 0:
            raise ValueError(f"width must be positive, not {width}")
        at = (grid.to(self.nodes).reshape(-1, 1, 1) - self.nodes) / width
        bells = torch.exp(-0.5 * at.square()) / (width * math.sqrt(2.0 * math.pi))
        return (bells * self.weights).sum((1, 2)) / len(self.nodes)

    def moment(self, order: int) -> tuple[float, float]:
        """``trace(A^order) / dim`` and its standard error over probes (nan for a single one)."""
        each = (self.weights * self.nodes**order).sum(1)
        spread = float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else math.nan
        return float(each.mean()), spread

    def count(self, low: float, high: float = math.inf) -> float:
        """About how many eigenvalues lie from ``low`` to ``high``."""
        inside = (self.nodes >= low) & (self.nodes <= high)
        return float((self.weights * inside).sum() / len(self.nodes) * self.dim)


def lanczos(
    matvec: MatVec, dim: int, steps: int, generator: torch.Generator | None = None, *,
    start: Tensor | None = None, dtype: torch.dtype | None = None, device: torch.device | str | None = None,
    keep: bool = True,
) -> Lanczos:  # fmt: skip
    """The symmetric matrix behind a product, in a basis in which it is tridiagonal.

    Parameters
    ----------
    matvec : Tensor (..., dim) -> Tensor (..., dim)
        Product with a symmetric matrix, or with one for each place of the leading axes.
    dim : int
    steps : int
        Products to make, from 1 to ``dim``.
    generator : torch.Generator, optional
        Draws the start, and fresh directions; without it one seeded with 0, never the global state.
    start : Tensor, shape (..., dim), optional
        A standard normal vector by default.
    dtype, device : optional
        Of the vectors; those of ``start``, or of the operator where it tells them (``matvec.dtype``,
        ``matvec.device``), or float64 on the CPU.
    keep : bool
        Keep all vectors and orthogonalise against them; the memory is that of as many as there are steps.
        Without, found eigenvalues come back as ghosts after some dozens of steps: take weights, not counts.

    Returns
    -------
    Lanczos

    Raises
    ------
    ValueError
        Numbers out of range, a start of another length or of length zero, products that are not finite.

    Examples
    --------
    >>> matrix = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    >>> values, weights = lanczos(lambda x: x @ matrix, 3, 3).quadrature()
    >>> [round(one, 6) for one in values.tolist()], round(float(weights.sum()), 6)
    ([1.0, 2.0, 4.0], 1.0)
    """
    if not 1 <= steps <= dim:
        raise ValueError(f"steps must be from 1 to the dimension {dim}, not {steps}")
    space = _Krylov(matvec, dim, generator, start, dtype, device)
    if not keep:
        return _three_terms(space, steps)
    space.grow(steps)
    return space.told()


def top_eigenvalues(
    matvec: MatVec, dim: int, k: int = 1, generator: torch.Generator | None = None, *,
    which: Literal["largest", "smallest", "magnitude"] = "largest", tolerance: float = 1e-4,
    max_steps: int = 300, start: Tensor | None = None, dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Eigenpairs:  # fmt: skip
    """The k largest eigenvalues, or smallest, or those of largest magnitude.

    Parameters
    ----------
    matvec, dim, generator, start, dtype, device
        As in `lanczos`; a start close to what is sought saves steps.
    k : int
    which : {"largest", "smallest", "magnitude"}
    tolerance : float
        Of residuals, relative to the largest magnitude found. An eigenvalue that lies apart is known to the
        square of it.
    max_steps : int

    Returns
    -------
    Eigenpairs

    Warns
    -----
    RuntimeWarning
        Residuals are still larger after ``max_steps``.

    Raises
    ------
    ValueError
        As `lanczos`; k out of range.

    Examples
    --------
    >>> found = top_eigenvalues(lambda x: x * torch.arange(50.0), 50, 2)
    >>> [round(one, 4) for one in found.values.tolist()]
    [49.0, 48.0]
    """
    if not 1 <= k <= dim:
        raise ValueError(f"k must be from 1 to the dimension {dim}, not {k}")
    if which not in ("largest", "smallest", "magnitude"):
        raise ValueError(f"which is 'largest', 'smallest' or 'magnitude', not {which!r}")
    space = _Krylov(matvec, dim, generator, start, dtype, device)
    most = min(dim, max(max_steps, k))
    step = min(most, k + 3)
    while True:
        space.grow(step)
        found = space.told()
        values, vectors = found.eigen()
        residuals = found.last[..., None] * vectors[..., -1, :].abs()
        score = {"largest": values, "smallest": -values, "magnitude": values.abs()}[which]
        order = score.argsort(-1, descending=True)[..., :k]
        size = values.abs().amax(-1, keepdim=True)
        missing = residuals.gather(-1, order) > tolerance * size
        if space.steps >= most or not bool(missing.any()):
            break
        step = min(most, space.steps + max(3, space.steps // 4))
    if bool(missing.any()) and space.steps < dim:
        worst = float((residuals.gather(-1, order) / size.clamp_min(1e-300)).max())
        warnings.warn(
            f"after {space.steps} steps a relative residual is still {worst:.1e}, above {tolerance:g}: "
            "raise max_steps", RuntimeWarning, stacklevel=2,
        )  # fmt: skip
    mixing = vectors.gather(-1, order[..., None, :].expand(*order.shape[:-1], vectors.shape[-2], k))
    return Eigenpairs(
        values.gather(-1, order), mixing.mT.to(found.basis) @ found.basis, residuals.gather(-1, order),
        space.steps,
    )  # fmt: skip


def spectral_density(
    matvec: MatVec, dim: int, steps: int = 50, probes: int = 1, generator: torch.Generator | None = None, *,
    dtype: torch.dtype | None = None, device: torch.device | str | None = None, keep: bool = True,
) -> SpectralDensity:  # fmt: skip
    """The density of all eigenvalues by stochastic Lanczos quadrature.

    Parameters
    ----------
    matvec, dim, steps, generator, dtype, device, keep
        As in `lanczos`; all probes are carried in one product, ``(probes, dim)``.
    probes : int
        Random starts. A large matrix needs few: its density is a mean over all directions already.

    Returns
    -------
    SpectralDensity

    Examples
    --------
    >>> found = spectral_density(lambda x: x * torch.arange(400.0), 400, 40, 8)
    >>> abs(found.count(100.0) - 300) < 40
    True
    """
    if probes < 1:
        raise ValueError(f"probes must be at least 1, not {probes}")
    kind, place = _kind(matvec, None, dtype, device)
    start = torch.randn(probes, dim, generator=generator or _seeded(), dtype=torch.float64).to(place, kind)
    nodes, weights = lanczos(matvec, dim, steps, generator, start=start, keep=keep).quadrature()
    return SpectralDensity(nodes, weights, dim)


class _Krylov:
    """A Krylov space that grows."""

    def __init__(
        self, matvec: MatVec, dim: int, generator: torch.Generator | None, start: Tensor | None,
        dtype: torch.dtype | None, device: torch.device | str | None,
    ) -> None:  # fmt: skip
        self.matvec, self.dim, self.generator = matvec, dim, generator or _seeded()
        self.dtype, self.device = _kind(matvec, start, dtype, device)
        if start is None:
            start = self._draw(())
        if start.shape[-1:] != (dim,):
            raise ValueError(f"the start must end in an axis of {dim}, not in {tuple(start.shape)}")
        start = start.to(self.device, self.dtype)
        length = torch.linalg.vector_norm(start, dim=-1, keepdim=True)
        if not bool(((length > 0) & torch.isfinite(length)).all()):
            raise ValueError("the start must be finite and not zero")
        self.steps = 0
        self.basis = (start / length).unsqueeze(-2)  # (..., room, dim): one row more than steps done
        self.diagonal: list[Tensor] = []
        self.lengths: list[Tensor] = []

    def grow(self, steps: int) -> None:
        """Go on until as many products have been made."""
        room = self.basis.shape[-2]
        if steps + 1 > room:
            more = max(steps + 1, min(2 * room, self.dim + 1))
            wider = self.basis.new_empty(*self.basis.shape[:-2], more, self.dim)
            wider[..., :room, :] = self.basis
            self.basis = wider
        while self.steps < steps:
            self._step()

    def _step(self) -> None:
        j = self.steps
        known = self.basis[..., : j + 1, :]
        w = self.matvec(known[..., j, :])
        alpha = (w * known[..., j, :]).sum(-1, keepdim=True)
        w = w - alpha * known[..., j, :]
        if j:
            w -= self.lengths[-1].to(w).unsqueeze(-1) * known[..., j - 1, :]
        length = torch.linalg.vector_norm(w, dim=-1)
        for _ in range(2):
            before = length
            share = (known @ w.unsqueeze(-1)).squeeze(-1)
            w -= (share.unsqueeze(-2) @ known).squeeze(-2)
            alpha = alpha + share[..., j:]
            length = torch.linalg.vector_norm(w, dim=-1)
            if not bool((length < 0.5 * before).any()):  # once is enough unless little was left
                break
        if not bool(torch.isfinite(length).all()):
            raise ValueError("a product with the matrix is not finite")
        self.diagonal.append(alpha[..., 0].double())
        scale = torch.stack([one.abs() for one in self.diagonal] + self.lengths, -1).amax(-1)
        done = length.double() <= 10 * self.dim**0.5 * torch.finfo(self.dtype).eps * scale
        self.lengths.append(torch.where(done, 0.0, length.double()))
        following = w / length.clamp_min(torch.finfo(self.dtype).tiny).unsqueeze(-1)
        if bool(done.any()) and j + 1 < self.dim:
            fresh = self._draw(length.shape)
            for _ in range(2):
                fresh = fresh - ((known @ fresh.unsqueeze(-1)).mT @ known).squeeze(-2)
                fresh = fresh / torch.linalg.vector_norm(fresh, dim=-1, keepdim=True)
            following = torch.where(done.unsqueeze(-1), fresh, following)
        self.basis[..., j + 1, :] = following
        self.steps += 1

    def told(self) -> Lanczos:
        m = self.steps
        off = self.lengths[: m - 1]
        diagonal = torch.stack(self.diagonal, -1)
        return Lanczos(
            diagonal, torch.stack(off, -1) if off else diagonal[..., :0], self.basis[..., :m, :],
            self.lengths[m - 1] if m < self.dim else torch.zeros_like(self.lengths[m - 1]),
        )  # fmt: skip

    def _draw(self, lead: tuple[int, ...] | torch.Size) -> Tensor:
        place = self.generator.device
        drawn = torch.randn(*lead, self.dim, generator=self.generator, device=place, dtype=torch.float64)
        return drawn.to(self.device, self.dtype)


def _three_terms(space: _Krylov, steps: int) -> Lanczos:
    """Lanczos' recurrence with the last two vectors alone."""
    now = space.basis[..., 0, :]
    before, length = torch.zeros_like(now), torch.zeros_like(now[..., 0])
    diagonal: list[Tensor] = []
    lengths: list[Tensor] = []
    for _ in range(steps):
        w = space.matvec(now) - length.unsqueeze(-1) * before
        alpha = (w * now).sum(-1)
        w = w - alpha.unsqueeze(-1) * now
        length = torch.linalg.vector_norm(w, dim=-1)
        if not bool(torch.isfinite(length).all()):
            raise ValueError("a product with the matrix is not finite")
        diagonal.append(alpha.double())
        scale = torch.stack([one.abs() for one in diagonal] + lengths, -1).amax(-1)
        done = length.double() <= 10 * space.dim**0.5 * torch.finfo(space.dtype).eps * scale
        length = torch.where(done, 0.0, length)  # nothing is left, and what follows has no weight
        lengths.append(length.double())
        fresh = w / length.clamp_min(torch.finfo(space.dtype).tiny).unsqueeze(-1)
        before, now = now, torch.where(done.unsqueeze(-1), 0.0, fresh)
    off = lengths[:-1]
    whole = torch.stack(diagonal, -1)
    return Lanczos(
        whole, torch.stack(off, -1) if off else whole[..., :0], space.basis[..., :0, :], lengths[-1]
    )


def _kind(
    matvec: MatVec, start: Tensor | None, dtype: torch.dtype | None, device: torch.device | str | None
) -> tuple[torch.dtype, torch.device]:
    told: object = start if start is not None else matvec
    kind = dtype or getattr(told, "dtype", None) or torch.float64
    place = device or getattr(told, "device", None) or "cpu"
    return kind, torch.device(place)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
