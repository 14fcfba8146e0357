"""Draw several completions and keep one: the first that passes, the best, or the one with most votes.

Benedikt Stroebl, Sayash Kapoor, Arvind Narayanan, 2024. arXiv:2411.17501 (the first that passes, or none).

How many draws pay is a question to `allometry.laws.optimal_k`, which needs to know how often the verifier
errs: `measure_acceptance` makes its table from a sampler, the verifier and a reference, and `budget_from`
reads the number off it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from allometry.infer.verifier import Verifier, scores_of

if TYPE_CHECKING:
    import torch

    from allometry.infer.sampling import Sampler
    from allometry.laws.acceptance import AcceptanceTable

__all__ = ["Abstain", "Answer", "best_of", "budget_from", "measure_acceptance"]

_SELECT = ("first", "argmax", "weighted")


@dataclass(frozen=True)
class Answer:
    """What was kept.

    Attributes
    ----------
    completion : object
    score : float
        The verifier's; with ``select="weighted"`` the sum over equal completions.
    attempt : int
        Which draw it was, from 1.
    drawn : int
        Draws made, those of the last batch beyond it included.
    """

    completion: Any
    score: float
    attempt: int
    drawn: int


@dataclass(frozen=True)
class Abstain:
    """No completion passed; false in a condition.

    Attributes
    ----------
    drawn : int
    """

    drawn: int

    def __bool__(self) -> bool:
        return False


def best_of(
    sampler: Sampler,
    verifier: Verifier,
    instance: Any,
    n: int,
    *,
    generator: torch.Generator,
    select: str = "first",
    batch: int = 8,
    key: Callable[[Any], Hashable] | None = None,
) -> Answer | Abstain:
    """One completion out of up to ``n``, or none.

    Parameters
    ----------
    sampler : callable
        ``sampler(instance, n, generator)`` gives n independent completions.
    verifier : callable
        ``verifier(instance, completions)`` gives scores ``(n,)``; positive is accepted.
    instance : object
        The prompt.
    n : int
        Draws at most; 0 abstains at once.
    generator : torch.Generator
    select : {"first", "argmax", "weighted"}
        The first that is accepted, and drawing ends there; the highest score of all n; or the completion
        whose equals, by ``key``, have the largest sum of positive scores. None is chosen that is not
        accepted.
    batch : int
        Draws at once for ``"first"``: 1 draws no more than it needs, more keeps a model busy.
    key : callable, optional
        What makes completions equal for ``"weighted"``, an answer read out of a text for example; themselves
        by default.

    Raises
    ------
    ValueError
        ``n`` is negative, ``batch`` not positive, or ``select`` unknown.

    Examples
    --------
    >>> import torch
    >>> dice = lambda sides, n, generator: torch.randint(1, sides + 1, (n,), generator=generator).tolist()
    >>> six = lambda sides, rolled: [one == 6 for one in rolled]
    >>> best_of(dice, six, 6, 100, generator=torch.Generator().manual_seed(0)).completion
    6
    >>> bool(best_of(dice, six, 5, 100, generator=torch.Generator().manual_seed(0)))
    False
    """
    if n < 0 or batch < 1:
        raise ValueError(f"n must not be negative and batch at least 1, got {n} and {batch}")
    if select not in _SELECT:
        raise ValueError(f"select must be one of {', '.join(_SELECT)}, not {select!r}")
    completions: list[Any] = []
    scores: list[float] = []
    while len(completions) < n:
        count = n - len(completions)
        if select == "first":
            count = min(count, batch)
        drawn = list(sampler(instance, count, generator))
        if len(drawn) != count:
            raise ValueError(f"the sampler was asked for {count} completions and gave {len(drawn)}")
        completions += drawn
        scores += scores_of(verifier, instance, drawn).tolist()
        if select == "first" and any(score > 0 for score in scores[-count:]):
            break
    if not any(score > 0 for score in scores):
        return Abstain(len(completions))
    if select == "first":
        place = next(i for i, score in enumerate(scores) if score > 0)
        return Answer(completions[place], scores[place], place + 1, len(completions))
    if select == "argmax":
        place = int(np.nanargmax(scores))
        return Answer(completions[place], scores[place], place + 1, len(completions))
    votes: dict[Hashable, float] = {}
    first: dict[Hashable, int] = {}
    for i, (completion, score) in enumerate(zip(completions, scores, strict=True)):
        if score > 0:
            name = completion if key is None else key(completion)
            votes[name] = votes.get(name, 0.0) + score
            first.setdefault(name, i)
    best = max(votes, key=votes.__getitem__)
    return Answer(completions[first[best]], votes[best], first[best] + 1, len(completions))


def measure_acceptance(
    sampler: Sampler,
    verifier: Verifier,
    reference: Verifier,
    instances: Sequence[Any],
    n: int,
    *,
    generator: torch.Generator,
) -> AcceptanceTable:
    """Draw n completions for each instance and let both judge: the table that `allometry.laws` works on.

    Parameters
    ----------
    sampler, verifier, generator
        As in `best_of`.
    reference : callable
        A better verifier: a fuller set of tests, or the truth.
    instances : sequence of T prompts
    n : int
        Draws an instance; at least 20 to know anything of a second draw, 200 in the paper.

    Raises
    ------
    ValueError
        There is no instance, or n is not positive.

    Examples
    --------
    >>> import torch
    >>> dice = lambda sides, n, generator: torch.randint(1, sides + 1, (n,), generator=generator).tolist()
    >>> high, six = (lambda s, r: [o >= 5 for o in r]), (lambda s, r: [o == 6 for o in r])
    >>> table = measure_acceptance(dice, high, six, [6, 8], 1000, generator=torch.Generator().manual_seed(0))
    >>> (table.right + table.wrong).round(1).tolist(), table.completeness
    ([0.3, 0.5], 1.0)
    """
    from allometry.infer.sampling import draw_many
    from allometry.laws.acceptance import AcceptanceTable

    if not len(instances) or n < 1:
        raise ValueError(f"one instance and one draw at least, got {len(instances)} and {n}")
    drawn = draw_many(sampler, instances, [n] * len(instances), generator)
    judged = [
        np.array([scores_of(judge, one, some) > 0 for one, some in zip(instances, drawn, strict=True)])
        for judge in (verifier, reference)
    ]
    return AcceptanceTable(judged[0], judged[1])


def budget_from(
    table: AcceptanceTable, *, cost_false: float = 0.0, cost_sample: float = 0.0, most: int = 1000
) -> int:
    """The ``n`` for `best_of`: the best number of draws, or where it has no end as many as give 99 % of it.

    0 says that answering costs more than it brings. Never above ``most``.

    >>> from allometry.laws import AcceptanceTable
    >>> table = AcceptanceTable.from_rates([0.9, 0.1], [0.05, 0.3])
    >>> [budget_from(table, cost_false=cost) for cost in (0.0, 1.0, 30.0)]
    [6, 1, 0]
    """
    from allometry.laws.best_k import optimal_k

    best = optimal_k(table, cost_false=cost_false, cost_sample=cost_sample, resamples=0)
    return min(most, best.enough if best.is_infinite else int(best.k))
