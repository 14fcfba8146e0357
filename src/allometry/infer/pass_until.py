"""Sampling until it passes: how a pass rate of 1e-5 is measured where a hundred samples see nothing.

PassUntil: Hu and others, 2023. arXiv:2310.03262; the idea of inverse sampling is Haldane's, 1945.

* One queue: every batch is filled with draws for all instances that are not yet done, and those that are
  done leave it. A batch is less than full only when all that is left may not take as many draws.
* An instance's K is the place of its r-th pass *in the order in which its draws were made*, not the end of
  the batch that holds it: stopping at the batch's end would make every estimate too low. What a batch holds
  behind the r-th pass is made and not counted.
* How many draws an instance gets in a batch depends only on draws before it, so K is negative binomial
  whatever the schedule, and the batch size changes no estimate's distribution.
* One stream of random numbers for the whole call: to seed anew for each batch would draw the same failures
  again.
* The verifier judges each distinct completion of an instance once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from allometry.infer.sampling import Sampler, draw_many
from allometry.measure.pass_rate import PassCounts
from allometry.train.seeds import Seeds

__all__ = ["pass_until"]

_REMEMBERED = 1 << 20  # verdicts kept; beyond, memory is worth more than the calls that they spare
_TOLERATED = 0.01  # share of draws on which a verifier may fail before the user is warned


def pass_until(
    sampler: Sampler,
    verifier: Callable[[Any, Any], bool],
    instances: Sequence[Any],
    *,
    r: int = 2,
    max_samples: int = 100_000,
    batch_size: int = 256,
    seed: int = 0,
    allow_truncated: bool = False,
    on_batch: Callable[[int, int, int], None] | None = None,
) -> PassCounts:
    """Draw completions of each instance until ``r`` have passed, or ``max_samples`` were drawn.

    Parameters
    ----------
    sampler : callable
        ``sampler(instance, n, generator)``: see `allometry.infer.sampling`.
    verifier : callable
        ``verifier(instance, completion) -> bool``. One that raises has not let the completion pass; how
        often is counted, and more than 1 % is warned of. A verifier may tell by an attribute ``chance`` how
        often a random guess passes.
    instances : sequence of S
    r : int
        Passes wanted. One gives log p without bias, two also p; more, less noise: the standard deviation of
        the estimated log p is near 1/sqrt(r).
    max_samples : int
        Cap of draws an instance; those that reach it are censored, and their likelihood says so.
    batch_size : int
        Draws a batch.
    seed : int
    allow_truncated : bool
        Whether the sampler may cut its distribution (greedy, top-k, top-p).
    on_batch : callable, optional
        Called after each batch with the instances that are done, all instances, and the draws made.

    Returns
    -------
    PassCounts
        In the order of the instances.

    Raises
    ------
    ValueError
        There is nothing to do, or the sampler cuts its distribution: p may then be exactly 0.

    Examples
    --------
    >>> import torch
    >>> def coin(instance, n, generator):
    ...     return torch.rand(n, generator=generator).tolist()
    >>> counts = pass_until(coin, lambda p, u: u < p, [0.5, 0.01], r=2)
    >>> counts.successes.tolist(), bool(counts.trials[1] > counts.trials[0])
    ([2, 2], True)
    """
    for name, value in (("r", r), ("max_samples", max_samples), ("batch_size", batch_size)):
        if value != int(value) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {value}")
    if r > max_samples:
        raise ValueError(f"{r} passes cannot be had in {max_samples} draws; raise max_samples or lower r")
    if not len(instances):
        raise ValueError("there are no instances to sample")
    if getattr(sampler, "truncated", False) and not allow_truncated:
        raise ValueError(
            "p may be exactly 0 under truncated decoding (greedy, top-k, top-p …), and sampling until it "
            "passes would never end; sample the whole distribution, or pass allow_truncated=True"
        )
    generator = Seeds(seed).generator("pass until", getattr(sampler, "device", "cpu"))
    queue = _Queue(len(instances), int(r), int(max_samples))
    judge = _Judge(verifier)
    while len(queue.open):
        active, counts = queue.next_batch(int(batch_size))
        drawn = draw_many(sampler, [instances[s] for s in active], counts.tolist(), generator)
        verdicts = [judge(int(s), instances[s], draws) for s, draws in zip(active, drawn, strict=True)]
        judge.forget(queue.count(active, counts, np.concatenate(verdicts)))
        if on_batch is not None:
            on_batch(len(instances) - len(queue.open), len(instances), int(queue.sampled.sum()))
    return _told(queue, judge)


class _Queue:
    """Which instances still need draws, and what was counted of each; arrays (S,)."""

    def __init__(self, instances: int, r: int, cap: int) -> None:
        self.r, self.cap = r, cap
        self.passes, self.trials, self.sampled, self.errors = np.zeros((4, instances), dtype=np.int64)
        self.open = np.arange(instances)

    def next_batch(self, size: int) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
        """Instances and how many draws each gets: the same for all as far as their caps allow, those first
        that had the fewest."""
        order = self.open[np.argsort(self.trials[self.open], kind="stable")]
        room = self.cap - self.trials[order]
        counts = np.zeros_like(room)
        left = min(size, int(room.sum()))
        while left:
            free = np.flatnonzero(counts < room)[:left]
            more = np.minimum(room[free] - counts[free], left // len(free))
            counts[free] += more
            left -= int(more.sum())
        used = counts > 0
        return order[used], counts[used]

    def count(
        self, active: NDArray[np.intp], counts: NDArray[np.int64], verdicts: NDArray[np.int8]
    ) -> NDArray[np.intp]:
        """Count a batch, its verdicts (1 passed, 0 not, -1 the verifier failed) in the order of the draws;
        the instances that are done by it."""
        ends = np.cumsum(counts)
        starts, group = ends - counts, np.repeat(np.arange(len(active)), counts)
        passed = verdicts == 1
        total = np.concatenate([[0], np.cumsum(passed)])
        so_far = self.passes[active][group] + total[1:] - total[starts][group]
        last = passed & (so_far == self.r)  # at most one draw an instance
        used = counts.copy()
        places = np.flatnonzero(last)
        used[group[places]] = places - starts[group[places]] + 1
        failed = np.concatenate([[0], np.cumsum(verdicts < 0)])
        self.passes[active] += total[starts + used] - total[starts]
        self.errors[active] += failed[starts + used] - failed[starts]
        self.trials[active] += used
        self.sampled[active] += counts
        done = active[(self.passes[active] >= self.r) | (self.trials[active] >= self.cap)]
        self.open = np.setdiff1d(self.open, done, assume_unique=True)
        return done


class _Judge:
    """The verifier with a memory."""

    def __init__(self, verifier: Callable[[Any, Any], bool]) -> None:
        self.verifier = verifier
        self.known: dict[int, dict[Hashable, int]] = {}
        self.first_error: Exception | None = None
        self.kept = 0

    def __call__(self, place: int, instance: Any, completions: Sequence[Any]) -> NDArray[np.int8]:
        known = self.known.setdefault(place, {})
        found = np.empty(len(completions), dtype=np.int8)
        for i, one in enumerate(completions):
            verdict = known.get(one) if isinstance(one, Hashable) else None
            if verdict is None:
                verdict = self._ask(instance, one)
                if isinstance(one, Hashable):
                    known[one] = verdict
                    self.kept += 1
            found[i] = verdict
        if self.kept > _REMEMBERED:
            self.known.clear()
            self.kept = 0
        return found

    def _ask(self, instance: Any, completion: Any) -> int:
        try:
            return int(bool(self.verifier(instance, completion)))
        except Exception as error:
            self.first_error = self.first_error or error
            return -1

    def forget(self, places: NDArray[np.intp]) -> None:
        """Verdicts on instances that are done."""
        for place in places.tolist():
            self.kept -= len(self.known.pop(place, ()))


def _told(queue: _Queue, judge: _Judge) -> PassCounts:
    share = queue.errors.sum() / queue.trials.sum()
    if share > _TOLERATED:
        warnings.warn(
            f"the verifier failed on {share:.1%} of the draws, which count as not passed; the first time: "
            f"{type(judge.first_error).__name__}: {judge.first_error}",
            stacklevel=3,
        )
    chance = float(getattr(judge.verifier, "chance", 0.0))
    if chance > 0:
        warnings.warn(
            f"a random guess passes with probability {chance:g}: the law of pass rates does not reach below "
            "it; see PassCounts.corrected",
            stacklevel=3,
        )
    return PassCounts(
        queue.passes, queue.trials, queue.passes < queue.r, queue.errors, queue.sampled, chance=chance
    )
