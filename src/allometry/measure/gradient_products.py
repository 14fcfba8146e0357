"""Products of single samples' gradients, from the factors that layers give.

For the tangent kernel of Jacot, Gabriel and Hongler (2018, arXiv:1806.07572). A gradient is a sum of outer
products over positions, Σ_t delta_t ⊗ alpha_t, so the product of two can be had in three ways, of which the
cheapest is taken (the structure is that of Roman Novak, Jascha Sohl-Dickstein and Samuel Schoenholz, 2022,
arXiv:2206.08720):

- by positions: Σ_ts (delta_t · delta'_s) (alpha_t · alpha'_s);
- by halves: Σ_t delta_t · (Σ_s (alpha_t · alpha'_s) delta'_s), whose inner sum does not know delta's output,
  so that a pair of samples costs k T D (S + k) multiplications for its k² products;
- by gradients: of the gradients themselves, a few rows of the weight at a time, k² D E a pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Part", "contract", "gradient_products", "matrix_shape", "summed_gradient"]

_AT_A_TIME = 2**24  # bytes of gradients: larger blocks are handed back to the system and cleared each time
_IN_CACHE = 2**21  # bytes of inner sums


@dataclass(eq=False)
class Part:
    """The factors of one use for a block of samples; see `Use`."""

    delta: Tensor  # (k, n, g, T, D)
    alpha: Tensor  # (1, n, g, T, E), or integers (n, 1, T)
    first: bool
    key: Any  # of deltas that uses share

    @property
    def rows(self) -> Tensor:
        return self.delta if self.first else self.alpha

    @property
    def columns(self) -> Tensor:
        return self.alpha if self.first else self.delta


def contract(
    ours: list[Part], theirs: list[Part], trace: bool, size: int, budget: float, shared: dict[Any, Tensor]
) -> Tensor:
    """A parameter's share of two blocks' kernel: (k, k, n, m), or (n, m) summed over outputs.

    Parameters
    ----------
    ours, theirs : list of Part
        All uses of the parameter; the same list where a block meets itself.
    trace : bool
    size : int
        Entries of the parameter.
    budget : float
        Bytes for intermediate values.
    shared : dict
        Products of deltas that uses have in common; filled here, one for each pair of blocks.
    """
    way = _cheapest(ours, theirs, trace, budget)
    if way == "positions":
        return _over_positions(ours, theirs, trace, shared)
    if way == "halves":
        return _over_halves(ours, theirs)
    return _over_gradients(ours, theirs, trace, size, budget)


def matrix_shape(part: Part, size: int) -> tuple[int, int]:
    """Rows and columns of the parameter as a use sees it, within each group."""
    other = part.alpha.shape[-1] if part.alpha.is_floating_point() else size // part.delta.shape[-1]
    return (part.delta.shape[-1], other) if part.first else (other, part.delta.shape[-1])


def summed_gradient(part: Part, size: int) -> Tensor:
    """The gradient summed over outputs and samples, in one product."""
    delta = part.delta.permute(2, 0, 1, 3, 4).flatten(1, 3)  # (g, k n T, D)
    if not part.alpha.is_floating_point():
        height, width = matrix_shape(part, size)
        table = delta.new_zeros(height, width)
        return table.index_add(0, part.alpha.flatten().repeat(len(part.delta)), delta[0])
    alpha = part.alpha.expand(len(part.delta), *part.alpha.shape[1:]).permute(2, 0, 1, 3, 4).flatten(1, 3)
    return delta.mT @ alpha if part.first else alpha.mT @ delta


def gradient_products(a: Tensor, b: Tensor, trace: bool) -> Tensor:
    """Products of gradients (n, k, size): (n, m) summed over outputs, or (k, k, n, m)."""
    left = a.flatten(1) if trace else a.flatten(0, 1)
    if a is b:
        found = left.new_zeros(len(left), len(left))
        _add_with_itself(found, left)
        _mirror(found)
    else:
        found = left @ (b.flatten(1) if trace else b.flatten(0, 1)).mT
    if trace:
        return found
    return found.reshape(len(a), a.shape[1], len(b), b.shape[1]).permute(1, 3, 0, 2)


def _add_with_itself(found: Tensor, rows: Tensor) -> None:
    """Adds rows rowsᵀ, of which only blocks on and below the diagonal: little more than half the work."""
    step = max(16, -(-len(rows) // 8))
    for low in range(0, len(rows), step):
        found[low:, low : low + step].addmm_(rows[low:], rows[low : low + step].mT)


def _mirror(found: Tensor) -> None:
    """What lies below the diagonal, put above it too."""
    found.tril_()
    found += found.tril(-1).mT


def _cheapest(ours: list[Part], theirs: list[Part], trace: bool, budget: float) -> str:
    """The way that costs least, in multiplications as large matrix products make them."""
    k, n, g, _, d = ours[0].delta.shape
    m = theirs[0].delta.shape[1]
    both = (*ours, *theirs)
    if len({part.delta.shape[2] for part in both}) > 1:
        return "gradients"
    ends = [sum(part.delta.shape[3] for part in some) for some in (ours, theirs)]
    e = ours[0].alpha.shape[-1] if ours[0].alpha.is_floating_point() else 1
    pairs, blocks = float(n * ends[0]) * (m * ends[1]) * g, (k if trace else k * k)
    mirrored = 0.6 if ours is theirs else 1.0
    costs = {}
    costs["gradients"] = float(k) * g * d * e * (n * ends[0] + (0 if ours is theirs else m * ends[1]))
    costs["gradients"] += mirrored * blocks * n * m * g * d * e
    if pairs * blocks * 3 * ours[0].delta.element_size() <= budget:
        # With many positions the two's product is as dear as two hundred multiplications: it fills memory.
        costs["positions"] = pairs * (blocks * (d + (1 if max(ends) == 1 else 200)) + e)
    if (
        not trace
        and max(ends) > 1
        and all(part.alpha.is_floating_point() and part.first == ours[0].first for part in both)
    ):
        costs["halves"] = 1.5 * mirrored * (pairs * (k * d + e) + float(n * m) * ends[0] * g * k * k * d)
    return min(costs, key=lambda way: costs[way])


def _over_positions(ours: list[Part], theirs: list[Part], trace: bool, shared: dict[Any, Tensor]) -> Tensor:
    total: Tensor | float = 0.0
    for a in ours:
        for b in theirs:
            n, m = a.delta.shape[1], b.delta.shape[1]
            if a.first == b.first:
                key = (a.key, b.key) if a.key is not None and b.key is not None else None
                left = shared.get(key) if key is not None else None
                if left is None:
                    left = _gram(a.delta, b.delta, trace)
                    if key is not None:
                        shared[key] = left
                right = _gram(a.alpha, b.alpha, trace)
            else:
                left, right = _gram(a.rows, b.rows, trace), _gram(a.columns, b.columns, trace)
            found = left * right  # (k, k, g, nT, mS), or (k, g, nT, mS)
            found = found.sum((0, 1)) if trace else found[:, :, 0] if found.shape[2] == 1 else found.sum(2)
            found = found.reshape(*found.shape[:-2], n, -1, m, found.shape[-1] // m)
            total = total + (
                found[..., 0, :, 0] if found.shape[-3] == found.shape[-1] == 1 else found.sum((-3, -1))
            )
    assert isinstance(total, Tensor)
    return total


def _over_halves(ours: list[Part], theirs: list[Part]) -> Tensor:
    """(k, k, n, m), a block of pairs of samples at a time, so that inner sums stay in the cache."""
    same = ours is theirs
    k, n, groups = ours[0].delta.shape[:3]
    m = theirs[0].delta.shape[1]
    found = ours[0].delta.new_zeros(n, k, m, k)
    wholes = [part.delta.permute(2, 1, 0, 3, 4).contiguous() for part in ours]  # (g, n, k, T, D)
    others = wholes if same else [part.delta.permute(2, 1, 0, 3, 4).contiguous() for part in theirs]
    for ours_at, whole in zip(ours, wholes, strict=True):
        t, d = whole.shape[3:]
        fit = max(1, _IN_CACHE // (whole.element_size() * k * t * d))
        wide, high = min(m, fit), max(1, fit // m)
        for theirs_at, other in zip(theirs, others, strict=True):
            for group in range(groups):
                left, right = whole[group].flatten(2), other[group]
                rows, columns = ours_at.alpha[0, :, group], theirs_at.alpha[0, :, group]
                for i in range(0, n, high):
                    some = rows[i : i + high].flatten(0, 1)
                    for j in range(i if same else 0, m, wide):
                        met = columns[j : j + wide]
                        near = (met.flatten(0, 1) @ some.T).view(len(met), -1, len(some))
                        inner = near.mT[:, None] @ right[j : j + wide]  # (m, k, nT, D)
                        inner = inner.view(len(met) * k, -1, t * d)
                        block = left[i : i + high] @ inner.permute(1, 2, 0)  # (n, k, m k)
                        found[i : i + high, :, j : j + wide] += block.view(*block.shape[:2], len(met), k)
    if same:
        low, up = torch.tril_indices(n, n, -1, device=found.device)
        found[low, :, up] = found[up, :, low].mT
    return found.permute(1, 3, 0, 2)


def _gram(a: Tensor, b: Tensor, trace: bool) -> Tensor:
    """Inner products of factors at all pairs of positions.

    Factors are (C, n, g, T, D), or integers (n, 1, T) for one-hot rows; C is k, or 1 where outputs share
    them. The answer is (C, C', g, nT, mS), or (C, g, nT, mS) for the trace.
    """
    if not a.is_floating_point() and not b.is_floating_point():
        found = (a.flatten()[:, None] == b.flatten()).to(torch.get_default_dtype())[None, None]
        return found if trace else found[None]
    if not a.is_floating_point():
        return _gram(b, a, trace).mT if trace else _gram(b, a, trace).mT.transpose(0, 1)
    if not b.is_floating_point():
        picked = a[:, :, 0].flatten(1, 2)[:, :, b.flatten()]  # (C, nT, mS)
        return picked[:, None] if trace else picked[:, None, None]
    left, right = (one.transpose(1, 2).flatten(2, 3) for one in (a, b))  # (C, g, nT, D)
    if trace:
        return left @ right.mT
    if left.shape[1] == 1:  # one matrix product for all pairs of outputs
        found = left[:, 0].flatten(0, 1) @ right[:, 0].flatten(0, 1).mT
        found = found.reshape(len(left), left.shape[2], len(right), right.shape[2])
        return found.transpose(1, 2)[:, :, None]
    return left[:, None] @ right[None].mT


def _rows_of(parts: list[Part], low: int, high: int) -> Tensor:
    """Gradients of single samples by some rows of a parameter: (n, k, groups * rows * columns).

    Where all uses have delta along columns, rows and columns change places; products do not mind.
    """
    turn = len({part.first for part in parts}) > 1
    total: Tensor | None = None
    for part in parts:
        k, n, g, t = part.delta.shape[:4]
        delta, alpha = part.delta, part.alpha
        if alpha.is_floating_point():
            alpha = alpha[0] if part.first else alpha[0, ..., low:high]
        else:
            lookup = alpha[..., None] == torch.arange(low, high, device=alpha.device)
            alpha = lookup.to(delta.dtype)
        if part.first:
            delta = delta[..., low:high]
        # All outputs of a sample in one product: (n, g, k D, T) with (n, g, T, E).
        found = delta.permute(1, 2, 0, 4, 3).reshape(n, g, -1, t) @ alpha
        found = found.reshape(n, g, k, -1, alpha.shape[-1]).transpose(1, 2)  # (n, k, g, D, E)
        found = (found.mT if turn and not part.first else found).flatten(2)
        total = found if total is None else total + found
    assert total is not None
    return total


def _over_gradients(ours: list[Part], theirs: list[Part], trace: bool, size: int, budget: float) -> Tensor:
    same = ours is theirs
    if all(not part.alpha.is_floating_point() for part in (*ours, *theirs)):
        ours, theirs, size = _compact(ours, theirs)
    height = matrix_shape(ours[0], size)[0]
    k, n = ours[0].delta.shape[:2]
    a_row = ours[0].delta.element_size() * k * (n + (0 if same else theirs[0].delta.shape[1])) * size / height
    step = max(1, min(height, int(min(budget / 2, _AT_A_TIME) / a_row)))
    m, lead = theirs[0].delta.shape[1], (1 if trace else k)
    found = ours[0].delta.new_zeros(n * lead, m * lead)
    for low in range(0, height, step):
        high = min(low + step, height)
        left = _rows_of(ours, low, high).reshape(n * lead, -1)
        if same:
            _add_with_itself(found, left)
        else:
            found.addmm_(left, _rows_of(theirs, low, high).reshape(m * lead, -1).mT)
    if same:
        _mirror(found)
    return found if trace else found.view(n, k, m, k).permute(1, 3, 0, 2)


def _compact(ours: list[Part], theirs: list[Part]) -> tuple[list[Part], list[Part], int]:
    """Only the rows of a table that are looked up."""
    both = [*ours, *theirs]
    seen, places = torch.unique(torch.cat([part.alpha.flatten() for part in both]), return_inverse=True)
    split = places.split([part.alpha.numel() for part in both])
    made = [
        Part(part.delta, place.reshape(part.alpha.shape), part.first, part.key)
        for part, place in zip(both, split, strict=True)
    ]
    return made[: len(ours)], made[len(ours) :], len(seen) * ours[0].delta.shape[-1]
