"""Data in pools of falling quality, and a sampler that knows how often it has shown every sample.

Pools are what Goyal, Maini, Lipton, Raghunathan and Kolter, 2024 (arXiv:2404.07177) choose among: the best
tenth by some score, the next, and so on (`allometry.laws.UtilityLaw` says how many of them to use).

- A pool is read epoch by epoch, each in an order of its own; nothing is drawn with replacement.
- Pools are interleaved evenly: after n samples each has given its share of n, to within two.
- The sequence does not depend on its length: a longer run begins as a shorter one does.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

if TYPE_CHECKING:
    import pandas

__all__ = ["PoolBatches", "PoolSampler", "score_pools"]

_BLOCK = 65_536  # samples that are put in order together


def score_pools(
    scores: Tensor | Sequence[float], quantiles: Sequence[float], *, largest_is_best: bool = True
) -> list[Tensor]:
    """Divide samples by their score: pools of indices, the best first.

    Parameters
    ----------
    scores : Tensor (N,)
        Of any kind: a loss, a similarity, a count of forgetting.  Equal scores are taken in order.
    quantiles : sequence of float
        Where pools end, as shares of all samples, rising: ``(0.1, 0.2, 1.0)`` is the best tenth, the next,
        and the rest.  What lies beyond the last is in no pool.
    largest_is_best : bool

    Returns
    -------
    list of int64 Tensors
        Indices, each sorted.

    Raises
    ------
    ValueError
        Scores are not numbers, shares do not rise in (0, 1], or a pool would be empty.

    Examples
    --------
    >>> [pool.tolist() for pool in score_pools([0.1, 0.9, 0.5, 0.7], (0.25, 1.0))]
    [[1], [0, 2, 3]]
    """
    values = torch.as_tensor(scores, dtype=torch.float64)
    if values.ndim != 1 or not bool(torch.isfinite(values).all()):
        raise ValueError("scores must be finite numbers of shape (N,)")
    cuts = [0.0, *map(float, quantiles)]
    if len(cuts) < 2 or any(not a < b <= 1 for a, b in itertools.pairwise(cuts)):
        raise ValueError(f"quantiles must rise in (0, 1], not {list(quantiles)}")
    order = torch.argsort(-values if largest_is_best else values, stable=True)
    ends = [round(cut * len(values)) for cut in cuts]
    pools = [order[a:b].sort().values for a, b in itertools.pairwise(ends)]
    if min(map(len, pools)) == 0:
        raise ValueError(f"{len(values)} samples are too few for pools that end at {list(quantiles)}")
    return pools


class PoolSampler(Sampler[int]):
    """Indices of a data set, pool by pool in given shares, with every repetition counted.

    Parameters
    ----------
    pools : sequence of integer Tensors or sequences
        Indices into the data set, none of them twice.
    samples : int
        How many indices are given in all.
    weights : sequence of float, optional
        Shares of the pools; by default in proportion to their sizes, so that all samples are seen alike.
    seed : int or torch.Generator
        Of a generator only its initial seed is used.

    Raises
    ------
    ValueError
        A pool is empty or shares an index with another, or a weight is not positive.

    Examples
    --------
    >>> sampler = PoolSampler([range(4), range(4, 10)], samples=15)
    >>> sorted(list(sampler)[:10]) == list(range(10)), sampler.epochs["samples"].tolist()
    (True, [2, 2, 3, 3])
    >>> loader = torch.utils.data.DataLoader(torch.arange(10), batch_size=5, sampler=sampler)
    >>> len(list(loader))
    3
    """

    def __init__(
        self,
        pools: Sequence[Tensor | Sequence[int]],
        samples: int,
        weights: Sequence[float] | None = None,
        seed: int | torch.Generator = 0,
    ) -> None:
        self.pools = [torch.as_tensor(pool, dtype=torch.int64) for pool in map(_listed, pools)]
        if not self.pools or min(map(len, self.pools)) == 0:
            raise ValueError("every pool needs at least one index")
        every = torch.cat(self.pools)
        if len(every.unique()) < len(every):
            raise ValueError("an index is in two pools, or twice in one")
        if samples < 1:
            raise ValueError(f"samples must be at least 1, not {samples}")
        sizes = np.array([len(pool) for pool in self.pools], dtype=float)
        shares = sizes if weights is None else np.asarray(weights, dtype=float)
        if shares.shape != sizes.shape or not (np.isfinite(shares) & (shares > 0)).all():
            raise ValueError(f"weights must be one positive number for each of {len(sizes)} pools")
        self.samples, self.weights = int(samples), shares / shares.sum()
        self.seed = seed.initial_seed() if isinstance(seed, torch.Generator) else int(seed)
        offsets = torch.rand(len(sizes), generator=self._generator("offsets"), dtype=torch.float64)
        self._offsets = offsets.numpy()

    def __len__(self) -> int:
        return self.samples

    def __iter__(self) -> Iterator[int]:
        for block in self._blocks():
            yield from block.tolist()

    @property
    def order(self) -> Tensor:
        """All indices ``(samples,)``, in order."""
        return torch.cat(list(self._blocks()))

    @property
    def drawn(self) -> list[int]:
        """Samples taken from each pool."""
        before = 0
        for start in range(0, self.samples + len(self.pools) + _BLOCK, _BLOCK):
            first, last = self._count(start), self._count(start + _BLOCK)
            if before + int((last - first).sum()) >= self.samples:
                which = self._which(first, last)[: self.samples - before]
                return [int(one) for one in first + np.bincount(which, minlength=len(self.pools))]
            before += int((last - first).sum())
        raise AssertionError("blocks end before the samples do")

    @property
    def epochs(self) -> pandas.DataFrame:
        """How often samples are seen: columns ``pool`` (its place), ``times``, ``samples`` seen so often."""
        import pandas

        rows = []
        for place, (pool, drawn) in enumerate(zip(self.pools, self.drawn, strict=True)):
            times, more = divmod(drawn, len(pool))
            for often, count in ((times, len(pool) - more), (times + 1, more)):
                if count:
                    rows.append({"pool": place, "times": often, "samples": count})
        return pandas.DataFrame(rows)

    def _count(self, time: float) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Samples of each pool before a time; draw j of pool i is at time (j + offset_i) / weight_i."""
        return np.maximum(np.ceil(self.weights * time - self._offsets), 0).astype(np.int64)

    def _which(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """The pool of each draw between two counts, in order of time."""
        counts = last - first
        pool = np.repeat(np.arange(len(counts)), counts)
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts - first, counts)
        time = (number + self._offsets[pool]) / self.weights[pool]
        return np.asarray(pool[np.lexsort((pool, time))])

    def _blocks(self) -> Iterator[Tensor]:
        given, start = 0, 0
        while given < self.samples:
            first, last = self._count(start), self._count(start + _BLOCK)
            which = torch.from_numpy(self._which(first, last))
            block = torch.empty(len(which), dtype=torch.int64)
            for place in range(len(self.pools)):
                block[which == place] = self._draws(place, int(first[place]), int(last[place]))
            block = block[: self.samples - given]
            given, start = given + len(block), start + _BLOCK
            yield block

    def _draws(self, place: int, first: int, last: int) -> Tensor:
        """Draws ``first`` to ``last`` of a pool, each epoch in its own order."""
        pool = self.pools[place]
        size = len(pool)
        parts = [torch.empty(0, dtype=torch.int64)]
        for epoch in range(first // size, -(-last // size)):
            order = torch.randperm(size, generator=self._generator(f"pool {place} epoch {epoch}"))
            parts.append(pool[order[max(first - epoch * size, 0) : last - epoch * size]])
        return torch.cat(parts)

    def _generator(self, name: str) -> torch.Generator:
        digest = hashlib.sha256(f"pools {self.seed} {name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class PoolBatches:
    """Training batches addressed by step, in the order of a sampler.

    Parameters
    ----------
    images, labels : Tensors (N, ...), (N,)
    sampler : PoolSampler
    batch : int

    Examples
    --------
    >>> sampler = PoolSampler([range(6)], samples=12)
    >>> PoolBatches(torch.arange(6.0), torch.arange(6), sampler, batch=4).batch(2)[1].shape
    torch.Size([4])
    """

    def __init__(self, images: Tensor, labels: Tensor, sampler: PoolSampler, batch: int) -> None:
        self.images, self.labels, self.batch_size, self.order = images, labels, int(batch), sampler.order

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images (B, ...) and labels (B,) of one step.

        Raises
        ------
        ValueError
            The sampler gives too few samples for the step.
        """
        chosen = self.order[step * self.batch_size : (step + 1) * self.batch_size]
        if step < 0 or len(chosen) < self.batch_size:
            raise ValueError(f"step {step} lies beyond the {len(self.order)} samples of the sampler")
        return self.images[chosen], self.labels[chosen]


def _listed(pool: Tensor | Sequence[int]) -> Tensor | list[int]:
    return pool if isinstance(pool, Tensor) else list(pool)
