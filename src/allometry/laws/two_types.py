"""Easy and hard tasks: the smallest mixture in which resampling first helps and then harms.

Benedikt Stroebl, Sayash Kapoor, Arvind Narayanan, 2024. arXiv:2411.17501

Tasks are of type j with probability p; a sample for one of them is correct with probability r.  The verifier
accepts a correct sample with probability `completeness` and rejects a wrong one with probability `soundness`.
Whoever has seen k - 1 rejections believes in type j in proportion to p β^(k-1): in the harder one, more and
more.

Two things in the notebook published with the paper are not so in the model, and `published_reward` repeats
them so that its numbers can be found again:

- the gain of the k-th draw is weighted by the survival that the *beliefs* of that draw expect, Σ belief
  β^(k-1), where the priors belong, Σ p β^(k-1); survival is counted twice.  With the paper's rates for
  Llama-3.1-8B the plateaus of the reward are then too high, 0.818 for 0.685 at λ = 0.1;
- the best number of samples is where the rounded cumulative sum is largest.  Where every sample pays that is
  where double precision ends, and 82 stands for infinity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from allometry.laws.acceptance import AcceptanceTable
from allometry.laws.resampling import costs

__all__ = ["TwoTypeModel", "two_type_model"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class TwoTypeModel:
    """Types of tasks before a verifier that errs; made by `two_type_model` or `TwoTypeModel.of`.

    Attributes
    ----------
    rates : tuple of float
        Probability that a sample is correct, of each type.
    prior : tuple of float
        How common each type is; adds up to one.
    soundness, completeness : float
    """

    rates: tuple[float, ...]
    prior: tuple[float, ...]
    soundness: float
    completeness: float = 1.0

    @classmethod
    def of(cls, table: AcceptanceTable, threshold: float = 0.5) -> TwoTypeModel:
        """The model of a table: tasks are easy where more than ``threshold`` of their samples are correct.

        Raises
        ------
        ValueError
            All tasks are of one type.

        Examples
        --------
        >>> table = AcceptanceTable.from_counts([10, 10, 10], [9, 4, 3], [8, 1, 3])
        >>> TwoTypeModel.of(table).prior
        (0.3333333333333333, 0.6666666666666666)
        """
        easy = table.single > threshold
        if easy.all() or not easy.any():
            raise ValueError(
                f"all {len(table)} tasks are {'easy' if easy.all() else 'hard'} at the threshold {threshold}:"
                " choose another"
            )
        share = [float(table.weights[kind].sum()) for kind in (easy, ~easy)]
        rates = [
            float(table.weights[kind] @ table.single[kind]) / part
            for kind, part in zip((easy, ~easy), share, strict=True)
        ]
        return two_type_model(rates, share, table.soundness, table.completeness)

    @property
    def table(self) -> AcceptanceTable:
        """The types as rows: `resampling_curve`, `optimal_k` and `ceiling` apply, without intervals."""
        r = np.array(self.rates)
        right, wrong = self.completeness * r, (1.0 - self.soundness) * (1.0 - r)
        return AcceptanceTable.from_rates(right, wrong, r, weights=self.prior)

    def belief(self, k: ArrayLike) -> Array:
        """Probability of each type before the k-th draw, the earlier ones rejected: ``(m, types)``.

        >>> two_type_model([0.9, 0.1], [0.5, 0.5], 0.8).belief([1, 3]).round(3).tolist()
        [[0.5, 0.5], [0.012, 0.988]]
        """
        attempts = np.atleast_1d(np.asarray(k, dtype=float))
        if (attempts < 1).any():
            raise ValueError(f"attempts count from 1; the least given is {attempts.min():g}")
        with np.errstate(divide="ignore", invalid="ignore"):
            log = np.log(self.table.rejected)
            powers = np.where(attempts[:, None] == 1, 0.0, (attempts[:, None] - 1) * log) + np.log(self.prior)
            scaled = np.exp(powers - powers.max(axis=1, keepdims=True))
        return scaled / scaled.sum(axis=1, keepdims=True)

    def published_reward(self, k: ArrayLike, cost_false: float = 0.0) -> Array:
        """Reward after K draws ``(m,)`` as the authors' notebook has it, with its doubled survival.

        For comparison with their figures only; `resampling_curve` of `table` is right.
        """
        cost_false, _ = costs(cost_false, 0.0)
        wanted = np.atleast_1d(np.asarray(k, dtype=np.int64))
        attempts = np.arange(1, int(wanted.max()) + 1)
        table, belief = self.table, self.belief(attempts)
        gain = belief @ (table.right - cost_false * table.wrong)
        survival = (belief * table.rejected ** (attempts[:, None] - 1.0)).sum(axis=1)
        return np.concatenate([[0.0], np.cumsum(gain * survival)])[wanted]


def two_type_model(
    rates: Sequence[float], prior: Sequence[float], soundness: float, completeness: float = 1.0
) -> TwoTypeModel:
    """A mixture of types of tasks before one verifier.

    Parameters
    ----------
    rates : sequence of probabilities
        Of a correct sample, for each type; two in the paper, any number here.
    prior : sequence of as many
        How common the types are; they are scaled to add up to one.
    soundness : float
        Probability that a wrong sample is rejected.
    completeness : float
        Probability that a correct sample is accepted.

    Raises
    ------
    ValueError
        A probability is none, or there are not as many priors as rates.

    Examples
    --------
    >>> from allometry.laws import optimal_k
    >>> model = two_type_model([0.8738, 0.1382], [0.56, 0.44], soundness=0.7517)
    >>> optimal_k(model.table, cost_false=0.6).k, optimal_k(model.table, cost_false=0.7).k
    (inf, 3.0)
    """
    r, p = np.asarray(rates, dtype=float), np.asarray(prior, dtype=float)
    if r.shape != p.shape or r.ndim != 1 or not r.size:
        raise ValueError(f"each type needs a rate and a prior; there are {r.size} and {p.size}")
    for name, value in (("rates", r), ("soundness", soundness), ("completeness", completeness)):
        if not ((np.asarray(value) >= 0) & (np.asarray(value) <= 1)).all():
            raise ValueError(f"{name} must lie between 0 and 1, not {value}")
    if not (np.isfinite(p) & (p >= 0)).all() or p.sum() <= 0:
        raise ValueError(f"prior must hold shares, none of them negative, not {p}")
    shares = tuple((p / p.sum()).tolist())
    return TwoTypeModel(tuple(r.tolist()), shares, float(soundness), float(completeness))
