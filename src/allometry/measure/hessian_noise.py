"""How much of a batch's curvature is the batch's own: one measurement, and the law of its largest eigenvalue.

Granziol, Zohren and Roberts, "Learning Rates as a Function of Batch Size", 2020. arXiv:2006.09092.  The
Hessian of a batch is the Hessian of the data and noise that falls as one over the batch; noise pushes the
largest eigenvalue outward, and with it falls the largest stable learning rate. With ``b`` samples drawn from
``N`` without replacement everything depends on ``b / (1 - b / N)`` alone, written *b* here.

Three ways from one measurement to the law:

- ``"isotropic"``, the paper's: noise is alike in all directions. What random unit vectors see of it is ``v``,
  and the eigenvalue moves to ``λ + v / (b λ)``, or to the edge ``2 √(v / b)``.
- ``"directional"``: noise as the top eigenvector ``u`` sees it, by second-order perturbation, ``λ + c / b``
  with ``c = Σ_j Var(u_j' H_i u) / (λ - λ_j)``. On networks noise lives where the curvature does, and the
  isotropic estimate is too small by one or two orders of magnitude.
- ``"subspace"``: the top k directions, whose noise may mix them at first order; what is left is added at
  second order. For eigenvalues that stand close together, where the sum above has small denominators.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from allometry.measure.curvature import CurvatureOperator, StackedCurvature, draw_batches, product_on
from allometry.measure.lanczos import Eigenpairs, top_eigenvalues
from allometry.measure.objective import LossFunction, Objective, batches_of, samples_in
from allometry.measure.random_matrix import wigner_outlier

__all__ = ["BatchEigenvalues", "HessianNoise", "batch_eigenvalue_law", "batch_eigenvalues", "hessian_noise"]

Mode = Literal["directional", "isotropic", "subspace"]
_CLOSE = 0.05  # of the largest eigenvalue: below such a gap its direction is not one


@dataclass(frozen=True)
class HessianNoise:
    """What was measured; `batch_eigenvalue_law` and `allometry.optim.max_learning_rate` read it.

    Attributes
    ----------
    mode : {"directional", "isotropic", "subspace"}
    eigenvalue : float
        λ, the largest of the curvature of all of the data.
    excess : float
        c: a batch's largest eigenvalue exceeds λ by about ``c / b``.
    standard_error : float
        Of ``excess``, from the spread over samples, and over directions where they are random.
    gap : float
        From the largest eigenvalue to the next.
    samples : int
        Observations that it was measured on.
    blocks, leak : Tensor or None
        For ``"subspace"``: samples' curvatures within the top k directions (n, k, k) less their mean, and
        (k, k) what noise out of them adds, times the batch.
    eigenvalues : Tensor, shape (k,)
    """

    mode: Mode
    eigenvalue: float
    excess: float
    standard_error: float
    gap: float
    samples: int
    eigenvalues: Tensor = field(repr=False)
    blocks: Tensor | None = field(default=None, repr=False)
    leak: Tensor | None = field(default=None, repr=False)

    @property
    def critical_batch(self) -> float:
        """Where noise adds as much as there is, ``c / λ``: rates hardly grow with batches beyond it."""
        return self.excess / self.eigenvalue

    def __str__(self) -> str:
        return (
            f"largest eigenvalue {self.eigenvalue:.4g}, in a batch of b more by "
            f"{self.excess:.3g} ± {self.standard_error:.2g} / b ({self.mode}); critical batch "
            f"{self.critical_batch:.3g}"
        )


def hessian_noise(
    model: nn.Module, loss_fn: LossFunction | None, data: Any, samples: int | None = None, *,
    mode: Mode = "directional", k: int = 10, operator: str = "hessian", probes: int = 8,
    top: Eigenpairs | None = None, generator: torch.Generator | None = None,
    objective: Callable[[nn.Module, Any], Tensor] | None = None, include: Sequence[str] = ("*",),
    dtype: torch.dtype | None = None, unit: str = "sample", chunk: int | None = None, keep: bool = True,
) -> HessianNoise:  # fmt: skip
    """Measure the noise of a batch's curvature.

    Parameters
    ----------
    model, loss_fn, data, operator, objective, include, dtype, unit, keep
        As in `allometry.measure.CurvatureOperator`. With ``unit="batch"`` the batches of ``data``, all of
        one size, are the observations, and their noise is told as that of a sample.
    samples : int, optional
        Observations to measure the noise on, drawn at random; all by default. The eigenvalues are those of
        all of the data.
    mode : {"directional", "isotropic", "subspace"}
        See the module.
    k : int
        Top directions that are resolved; for classifiers as many as classes.
    probes : int
        Random directions of the isotropic estimate.
    top : Eigenpairs, optional
        The top ``k`` or more of the curvature of all of the data, where they are known.
    generator : torch.Generator, optional
    chunk : int, optional
        Observations that are one program; the memory is that of as many gradients.

    Returns
    -------
    HessianNoise

    Warns
    -----
    RuntimeWarning
        ``"directional"`` where the two largest eigenvalues are within 5 % of each other.

    Raises
    ------
    ValueError
        A largest eigenvalue that is not positive, fewer than two observations, batches of several sizes as
        observations, or as `CurvatureOperator`.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> x = torch.randn(400, 3, generator=generator) * torch.tensor([2.0, 1.0, 0.5])
    >>> line = nn.Linear(3, 1, bias=False)
    >>> noise = hessian_noise(line, nn.functional.mse_loss, (x, torch.zeros(400, 1)), k=3)
    >>> 6 < noise.eigenvalue < 10, 1 < noise.excess < 5
    (True, True)
    """
    if mode not in ("directional", "isotropic", "subspace"):
        raise ValueError(f"mode is 'directional', 'isotropic' or 'subspace', not {mode!r}")
    options: dict[str, Any] = {"objective": objective, "include": include, "dtype": dtype, "unit": unit}
    generator = generator or torch.Generator().manual_seed(0)
    whole = CurvatureOperator(model, loss_fn, data, operator=operator, keep=keep, **options)
    many = min(max(k, 2), whole.dim)
    if top is None:
        top = top_eigenvalues(whole, whole.dim, many, generator)
    if top.vectors.shape[-2] < many or top.vectors.shape[-1] != whole.dim:
        raise ValueError(
            f"top holds {tuple(top.vectors.shape)}, not the {many} first of {whole.dim} parameters"
        )
    values, directions = top.values[:many], top.vectors[:many].to(whole.device, whole.dtype)
    largest, gap = float(values[0]), float(values[0] - values[1]) if len(values) > 1 else math.inf
    if not largest > 0:
        raise ValueError(
            f"the largest eigenvalue is {largest:.3g}: no rate is limited by it (is the loss bent upward "
            "anywhere? operator='ggn' is, for convex losses)"
        )
    if mode == "directional" and gap < _CLOSE * largest:
        warnings.warn(
            f"the two largest eigenvalues, {largest:.4g} and {float(values[1]):.4g}, are too close for one "
            "direction: mode='subspace' resolves them", RuntimeWarning, stacklevel=2,
        )  # fmt: skip
    if mode == "isotropic":
        z = torch.randn(probes, whole.dim, generator=generator, dtype=torch.float64)
        vectors = (z / z.norm(dim=1, keepdim=True)).to(whole.device, whole.dtype)
    else:
        vectors = directions[: None if mode == "subspace" else 1]
    one = Objective(model, loss_fn, **options)
    observed = _observations(one, operator, batches_of(data), vectors, directions, samples, chunk, generator)
    grams, blocks, size = observed
    count = len(grams)
    if count < 2:
        raise ValueError(f"noise is a spread over observations: {count} is too few")
    extra: dict[str, Any] = {}
    few = 0.0  # squared error by how few directions were looked in
    if mode == "isotropic":
        seen = (grams.diagonal(dim1=1, dim2=2) - whole(vectors).square().sum(1).double()) / largest
        each, few = seen.mean(1), float(seen.mean(0).var()) / probes if probes > 1 else 0.0
    else:
        first = blocks[:, 0].square()  # (n, k): of u_j' H_i u_1
        beyond = (grams[:, 0, 0] - first.sum(1)).clamp_min(0.0) / largest
        each = (first[:, 1:] / (values[0] - values[1:]).clamp_min(1e-12 * largest)).sum(1) + beyond
        if mode == "subspace":
            leak = (grams - blocks @ blocks.mT).mean(0) / largest
            # observations of B samples each: their noise is smaller by √B, and what they leak by B
            extra = {"blocks": (blocks - blocks.mean(0)) * math.sqrt(size), "leak": leak * size}
    error = math.sqrt(float(each.var()) / count + few)
    return HessianNoise(mode, largest, size * float(each.mean()), size * error, gap, count, values, **extra)


def batch_eigenvalue_law(
    noise: HessianNoise, batch_sizes: Any, dataset_size: float | None = None, *, draws: int = 512,
    generator: torch.Generator | None = None,
) -> np.ndarray[Any, Any]:  # fmt: skip
    """The largest eigenvalue that batches are expected to have.

    Parameters
    ----------
    noise : HessianNoise
    batch_sizes : array_like
    dataset_size : int, optional
        Samples that batches are drawn from without replacement; None for a stream. With all of them in the
        batch there is no noise.
    draws : int
        Batches that ``"subspace"`` averages over, made from what was measured.
    generator : torch.Generator, optional

    Returns
    -------
    ndarray, of the shape of ``batch_sizes``

    Raises
    ------
    ValueError
        A batch that is not positive, or larger than the data.

    Examples
    --------
    >>> noise = HessianNoise("directional", 2.0, 8.0, 0.1, 1.0, 100, torch.tensor([2.0, 1.0]))
    >>> batch_eigenvalue_law(noise, [4, 8, 100], 100).round(3).tolist()
    [3.92, 2.92, 2.0]
    """
    sizes = np.asarray(batch_sizes, float)
    if np.any(~(sizes > 0)):
        raise ValueError(f"batch sizes must be positive, got {float(sizes.min())}")
    if dataset_size is not None and np.any(sizes > dataset_size):
        raise ValueError(
            f"a batch of {sizes.max():g} is larger than the {dataset_size:g} samples of the data"
        )
    part = 1.0 / sizes - (0.0 if dataset_size is None else 1.0 / dataset_size)  # 1 / b
    if noise.mode == "isotropic":
        return wigner_outlier(noise.eigenvalue, noise.excess * noise.eigenvalue * part)
    if noise.mode == "directional":
        return noise.eigenvalue + noise.excess * part
    assert noise.blocks is not None
    assert noise.leak is not None
    generator = generator or torch.Generator().manual_seed(0)
    found = []
    base = torch.diag(noise.eigenvalues).to(noise.blocks)
    for size, share in zip(sizes.ravel().tolist(), part.ravel().tolist(), strict=True):
        drawn = max(1, round(size))
        picks = torch.randint(len(noise.blocks), (draws, drawn), generator=generator)
        counts = torch.zeros(draws, len(noise.blocks), dtype=noise.blocks.dtype).scatter_add_(
            1, picks, torch.ones(draws, drawn, dtype=noise.blocks.dtype)
        )
        mean = (counts.to(noise.blocks) @ noise.blocks.flatten(1) / drawn).reshape(draws, *base.shape)
        # drawn with replacement: the spread is scaled to that of the batch without
        moved = base + mean * math.sqrt(share * drawn) + noise.leak * share
        found.append(float(torch.linalg.eigvalsh(moved)[:, -1].mean()))
    return np.array(found).reshape(sizes.shape)


@dataclass(frozen=True)
class BatchEigenvalues:
    """Largest eigenvalues of batches that were drawn.

    Attributes
    ----------
    values : ndarray (count,)
    along : ndarray (count,)
        ``u' H_b u`` along the data's top eigenvector: its mean over batches is known to be ``eigenvalue``.
    eigenvalue : float
        The data's largest.
    """

    values: np.ndarray[Any, Any]
    along: np.ndarray[Any, Any]
    eigenvalue: float

    def excess(self) -> tuple[float, float]:
        """By how much a batch's largest exceeds the data's, and its standard error.

        Of each batch ``u' H_b u`` is subtracted instead of its known mean: no batch's excess is then
        negative, and most of the scatter is gone.
        """
        each = self.values - self.along
        spread = float(each.std(ddof=1)) / math.sqrt(len(each)) if len(each) > 1 else math.nan
        return float(each.mean()), spread


def batch_eigenvalues(
    model: nn.Module, loss_fn: LossFunction | None, data: Any, batch: int, count: int = 64,
    generator: torch.Generator | None = None, *, operator: str = "hessian", top: Eigenpairs | None = None,
    tolerance: float = 1e-3, chunk: int | None = None,
    objective: Callable[[nn.Module, Any], Tensor] | None = None, include: Sequence[str] = ("*",),
    dtype: torch.dtype | None = None,
) -> BatchEigenvalues:  # fmt: skip
    """Draw batches and measure the largest eigenvalue of each, all at once.

    Parameters
    ----------
    model, loss_fn, operator, chunk, objective, include, dtype
        As in `allometry.measure.StackedCurvature`.
    data : tensors (N, ...) in any nesting
        Such as (inputs, targets).
    batch, count : int
        Samples in a batch, drawn without replacement, and batches.
    generator : torch.Generator, optional
    top : Eigenpairs, optional
        Of the curvature of all of the data, where it is known.
    tolerance : float
        Of residuals; see `top_eigenvalues`.

    Returns
    -------
    BatchEigenvalues

    Raises
    ------
    ValueError
        A batch larger than the data, or as `StackedCurvature`.

    Examples
    --------
    >>> line, x = nn.Linear(2, 1, bias=False), torch.eye(2).repeat(10, 1)
    >>> found = batch_eigenvalues(line, nn.functional.mse_loss, (x, torch.zeros(20, 1)), 20, 4)
    >>> found.values.round(4).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    options: dict[str, Any] = {"operator": operator, "objective": objective, "include": include,
                               "dtype": dtype}  # fmt: skip
    generator = generator or torch.Generator().manual_seed(0)
    if top is None:
        whole = CurvatureOperator(model, loss_fn, data, **options)
        top = top_eigenvalues(whole, whole.dim, 1, generator)
    drawn = draw_batches(data, batch, count, generator)
    rows, found = chunk or max(1, 1024 // batch), []
    for start in range(0, count, rows):  # so that a few batches that need many steps do not hold up all
        part = tree_map(lambda leaf, at=start: leaf[at : at + rows], drawn)
        stacked = StackedCurvature(model, loss_fn, part, chunk=rows, **options)
        u = top.vectors[..., 0, :].to(stacked.device, stacked.dtype)
        along = stacked(u).double() @ u.double()
        # close to where the eigenvector is sought, and blind to no direction
        fresh = torch.randn(stacked.count, stacked.dim, generator=generator, dtype=torch.float64).to(u)
        near = u + 0.3 * fresh / fresh.norm(dim=1, keepdim=True)
        pairs = top_eigenvalues(stacked, stacked.dim, 1, generator, start=near, tolerance=tolerance)
        found.append(torch.stack([pairs.values[:, 0], along]).cpu())
    values, seen = torch.cat(found, 1).numpy()
    return BatchEigenvalues(values, seen, float(top.values[..., 0]))


def _observations(
    one: Objective, operator: str, batches: Any, vectors: Tensor, top: Tensor, samples: int | None,
    chunk: int | None, generator: torch.Generator,
) -> tuple[Tensor, Tensor, int]:  # fmt: skip
    """Of each observation's products ``H_i v_j``: their Gram matrices (n, j, j), and what they are along the
    top directions, ``v_j' H_i u_l`` (n, j, l); and the samples in an observation."""
    grams, blocks, sizes = [], [], set()
    for batch, count in _pieces(
        one, batches, samples, chunk or max(1, min(256, 20_000_000 // one.dim)), generator
    ):
        sizes.add(count)
        if one.unit == "sample":
            rows = samples_in(batch)
            params = {name: p.expand(rows, *p.shape).requires_grad_() for name, p in one.params.items()}
            product = product_on(one, operator, params, tree_map(lambda leaf: leaf[:, None], batch), True)
            found = torch.stack([product(v.expand(rows, -1)) for v in vectors], 1)  # (n, j, dim)
        else:
            params = {name: p.requires_grad_() for name, p in one.params.items()}
            found = product_on(one, operator, params, batch, False)(vectors)[None]
        grams.append((found @ found.mT).double())
        blocks.append((found @ top.mT).double())
    if len(sizes) > 1:
        raise ValueError(f"as observations batches must be of one size, not {sorted(sizes)}")
    return torch.cat(grams), torch.cat(blocks), sizes.pop()


def _pieces(
    one: Objective, batches: Any, samples: int | None, chunk: int, generator: torch.Generator
) -> Iterator[tuple[Any, int]]:
    """Batches to work on, only with what was chosen of them, and the samples in an observation."""
    sizes = [samples_in(batch) for batch in batches]
    total = sum(sizes) if one.unit == "sample" else len(sizes)
    if samples is not None and not 2 <= samples <= total:
        raise ValueError(f"samples must be from 2 to the {total} observations that there are, not {samples}")
    chosen = torch.ones(total, dtype=torch.bool)
    if samples is not None:
        chosen[torch.randperm(total, generator=generator)[samples:]] = False
    start = 0
    for place, batch in enumerate(batches):
        if one.unit == "batch":
            if chosen[place]:
                yield one.cast(batch), sizes[place]
            continue
        rows = chosen[start : start + sizes[place]].nonzero()[:, 0]
        start += sizes[place]
        for part in rows.split(chunk) if len(rows) else ():
            yield tree_map(lambda leaf, at=part: leaf[at.to(leaf.device)], one.cast(batch)), 1
