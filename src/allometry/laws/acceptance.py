"""What a generator and a verifier do together, task by task: the ground on which resampling is judged.

Benedikt Stroebl, Sayash Kapoor, Arvind Narayanan, 2024. arXiv:2411.17501

One sample for a task is correct and accepted with probability c, wrong and accepted with probability f, and
otherwise rejected, with probability β = 1 - c - f.  "Correct" is what a reference says, a fuller set of tests
for example: it errs too, only less often than the verifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["AcceptanceTable"]

Array = NDArray[np.float64]
_FEW = 20  # samples of a task below which its rare acceptances are mostly unseen


class AcceptanceTable:
    """Samples of T tasks, each accepted or not by a verifier and correct or not by a reference.

    Parameters
    ----------
    accepted, correct : array (T, n) of bool
        One row a task, one column a sample; samples of a task are independent.
    tasks : sequence of T names, optional

    Attributes
    ----------
    right, wrong : array (T,)
        c and f: probabilities that one sample is accepted and correct, accepted and wrong.
    single : array (T,)
        Probability that one sample is correct, accepted or not.
    samples : integer array (T,), or None
        Samples behind each row; None where the rates are given.
    weights : array (T,)
        Share of each row; equal for tasks.
    tasks : list of T names
    warnings : list of str

    Raises
    ------
    ValueError
        Shapes differ, there is no task or no sample, or values are not 0 or 1.

    Examples
    --------
    >>> table = AcceptanceTable([[1, 1, 0, 0], [0, 1, 0, 0]], [[1, 0, 0, 0], [0, 0, 0, 0]])
    >>> table.right.tolist(), table.wrong.tolist(), table.rejected.tolist()
    ([0.25, 0.0], [0.25, 0.25], [0.5, 0.75])
    """

    right: Array
    wrong: Array
    single: Array
    samples: NDArray[np.int64] | None
    weights: Array
    tasks: list[Any]
    warnings: list[str]

    def __init__(
        self, accepted: ArrayLike, correct: ArrayLike, *, tasks: Sequence[Any] | None = None
    ) -> None:
        passed, good = _marks(accepted, "accepted"), _marks(correct, "correct")
        if passed.shape != good.shape or passed.ndim != 2 or not passed.size:
            raise ValueError(
                f"accepted and correct must be of one shape (tasks, samples); they are {passed.shape} and "
                f"{good.shape}"
            )
        n = np.full(len(passed), passed.shape[1])
        self._count(n, passed.sum(axis=1), (passed & good).sum(axis=1), good.sum(axis=1), tasks)

    # --- other ways to make one ---

    @classmethod
    def from_samples(cls, task: ArrayLike, accepted: ArrayLike, correct: ArrayLike) -> Self:
        """From one row a sample: which task ``(n,)``, accepted or not ``(n,)``, correct or not ``(n,)``.

        >>> AcceptanceTable.from_samples(["a", "b", "a"], [1, 0, 1], [1, 0, 0]).right.tolist()
        [0.5, 0.0]
        """
        names, place = np.unique(np.asarray(task), return_inverse=True)
        passed, good = _marks(accepted, "accepted"), _marks(correct, "correct")
        if not len(names) or not passed.shape == good.shape == place.shape:
            raise ValueError(
                f"task, accepted and correct must be of one length; they hold {place.size}, {passed.size} "
                f"and {good.size} values"
            )

        def total(marks: NDArray[np.bool_]) -> NDArray[np.int64]:
            return np.bincount(place, marks, len(names)).round().astype(np.int64)

        counts = (total(np.ones(place.shape, dtype=bool)), total(passed), total(passed & good), total(good))
        return cls.from_counts(*counts, tasks=names.tolist())

    @classmethod
    def from_counts(
        cls,
        samples: ArrayLike,
        accepted: ArrayLike,
        accepted_correct: ArrayLike,
        correct: ArrayLike | None = None,
        *,
        tasks: Sequence[Any] | None = None,
    ) -> Self:
        """From counts of each task, ``(T,)``: samples, those accepted, accepted and correct, and all correct.

        Without ``correct`` the verifier is taken to accept whatever is correct.

        >>> AcceptanceTable.from_counts([10], [4], [3]).wrong.tolist()
        [0.1]
        """
        made = cls.__new__(cls)
        n, m, g = (np.atleast_1d(np.asarray(one)) for one in (samples, accepted, accepted_correct))
        made._count(n, m, g, g if correct is None else np.atleast_1d(np.asarray(correct)), tasks)
        return made

    @classmethod
    def from_rates(
        cls,
        right: ArrayLike,
        wrong: ArrayLike,
        single: ArrayLike | None = None,
        *,
        weights: ArrayLike | None = None,
        tasks: Sequence[Any] | None = None,
    ) -> Self:
        """From probabilities ``(T,)`` that are known: c, f, and of being correct at all (c by default).

        ``weights`` says how common each row is, where rows are kinds of tasks.

        >>> AcceptanceTable.from_rates([0.5, 0.1], [0.0, 0.2]).rejected.round(3).tolist()
        [0.5, 0.7]
        """
        made = cls.__new__(cls)
        rates = [np.atleast_1d(np.asarray(one, dtype=float)) for one in (right, wrong)]
        rates.append(rates[0] if single is None else np.atleast_1d(np.asarray(single, dtype=float)))
        made._set(rates[0], rates[1], rates[2], None, weights, tasks)
        return made

    def _count(self, n: Array, m: Array, g: Array, good: Array, tasks: Sequence[Any] | None) -> None:
        if not n.shape == m.shape == g.shape == good.shape or n.ndim != 1 or not n.size:
            raise ValueError(
                f"counts must be of one length; they have {n.size}, {m.size}, {g.size}, {good.size}"
            )
        for name, values in (("samples", n), ("accepted", m), ("accepted_correct", g), ("correct", good)):
            if not (np.isfinite(values) & (values == np.round(values)) & (values >= 0)).all():
                raise ValueError(f"{name} must hold counts, whole and not negative; it is {values}")
        if (n < 1).any():
            raise ValueError(f"task {int(np.argmin(n))} has no samples; leave it out")
        if ((g > m) | (g > good) | (m + good - g > n)).any():
            bad = int(np.argmax((g > m) | (g > good) | (m + good - g > n)))
            raise ValueError(
                f"counts of task {bad} contradict each other: {n[bad]} samples, {m[bad]} accepted, {g[bad]} "
                f"accepted and correct, {good[bad]} correct"
            )
        self._set(g / n, (m - g) / n, good / n, n.astype(np.int64), None, tasks)
        if int(n.min()) < _FEW:
            self.warnings.append(
                f"some tasks have {int(n.min())} samples: what happens after as many draws rests on tasks "
                "whose rare acceptances were not seen"
            )

    def _set(
        self, right: Array, wrong: Array, single: Array, samples: NDArray[np.int64] | None,
        weights: ArrayLike | None, tasks: Sequence[Any] | None,
    ) -> None:  # fmt: skip
        if not right.shape == wrong.shape == single.shape or right.ndim != 1 or not right.size:
            raise ValueError(
                f"rates must be of one length; they have {right.size}, {wrong.size}, {single.size}"
            )
        whole = right + wrong
        if not (np.isfinite(whole) & (right >= 0) & (wrong >= 0) & (whole <= 1 + 1e-12)).all():
            bad = int(np.argmin(np.isfinite(whole) & (right >= 0) & (wrong >= 0) & (whole <= 1 + 1e-12)))
            raise ValueError(
                f"rates must be at least 0 and add up to at most 1; those of task {bad} are {right[bad]:g} "
                f"(accepted, correct) and {wrong[bad]:g} (accepted, wrong)"
            )
        if not ((single >= right - 1e-12) & (single <= 1 - wrong + 1e-12)).all():
            raise ValueError("the rate of correct samples must lie between c and 1 - f for every task")
        share = np.ones(len(right)) if weights is None else np.asarray(weights, dtype=float)
        if share.shape != right.shape or not (np.isfinite(share) & (share >= 0)).all() or share.sum() <= 0:
            raise ValueError(f"weights must be one for each of the {len(right)} rows, none of them negative")
        if tasks is not None and len(tasks) != len(right):
            raise ValueError(f"{len(tasks)} names were given for {len(right)} tasks")
        self.right, self.wrong, self.single, self.samples = right, wrong, single, samples
        self.weights, self.weighted = share / share.sum(), weights is not None
        self.tasks = list(range(len(right))) if tasks is None else list(tasks)
        self.warnings = []

    # --- what it says ---

    def __len__(self) -> int:
        return len(self.right)

    def __repr__(self) -> str:
        behind = "rates" if self.samples is None else f"{int(self.samples.sum())} samples"
        return (
            f"AcceptanceTable({len(self)} tasks, {behind}: {self.pass_at_1:.3f} correct at once, "
            f"{self.completeness:.3f} of the correct and {1 - self.soundness:.3f} of the wrong accepted)"
        )

    @property
    def rejected(self) -> Array:
        """β of each task ``(T,)``; what is 1 to within rounding is 1."""
        left = 1.0 - (self.right + self.wrong)
        return np.where(left < 1e-15, 0.0, left)

    @property
    def pass_at_1(self) -> float:
        """Share of correct samples, mean over tasks: what the generator does alone."""
        return float(self.weights @ self.single)

    @property
    def completeness(self) -> float:
        """Share of correct samples that the verifier accepts, over all samples."""
        return _share(self.weights @ self.right, self.weights @ self.single)

    @property
    def soundness(self) -> float:
        """Share of wrong samples that the verifier rejects, over all samples.

        In the authors' notebook (1 - b - a + P(a | b) b) / (1 - a), with a the share of correct and b that
        of accepted samples: the same number.
        """
        return 1.0 - _share(self.weights @ self.wrong, self.weights @ (1.0 - self.single), otherwise=0.0)

    @property
    def unseen(self) -> int:
        """Tasks of which no sample was ever accepted."""
        return int((self.right + self.wrong == 0).sum())

    def select(self, tasks: ArrayLike) -> AcceptanceTable:
        """The table of some tasks, by boolean mask ``(T,)`` or positions."""
        index = np.asarray(tasks)
        index = np.flatnonzero(index) if index.dtype == bool else index
        if not len(index):
            raise ValueError("no task is left")
        made = AcceptanceTable.__new__(AcceptanceTable)
        made._set(
            self.right[index], self.wrong[index], self.single[index],
            None if self.samples is None else self.samples[index],
            self.weights[index] if self.weighted else None, [self.tasks[i] for i in index],
        )  # fmt: skip
        made.warnings = list(self.warnings)
        return made

    def counts(self) -> tuple[Array, Array, Array]:
        """Samples, accepted, accepted and correct, each ``(T,)`` of whole numbers.

        Raises
        ------
        ValueError
            The table holds rates.
        """
        if self.samples is None:
            raise ValueError("the table holds rates, not samples; give samples to count them")
        n = self.samples.astype(float)
        return n, np.round((self.right + self.wrong) * n), np.round(self.right * n)


def _marks(values: ArrayLike, name: str) -> NDArray[np.bool_]:
    given = np.asarray(values)
    if given.dtype == bool:
        return given
    try:
        numbers = given.astype(float)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must hold 0 or 1, not {given.ravel()[0]!r}") from None
    other = numbers[~np.isin(numbers, (0.0, 1.0))]
    if other.size:
        raise ValueError(f"{name} must hold 0 or 1 for each sample, not {other[0]}")
    return numbers == 1.0


def _share(part: Any, whole: Any, otherwise: float = 1.0) -> float:
    return float(part / whole) if whole > 0 else otherwise
