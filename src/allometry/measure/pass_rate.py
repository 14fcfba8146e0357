"""How often a model passes, from counts: estimators and exact intervals for probabilities down to 1e-5.

Two ways of counting, which may be mixed:

- *until r have passed* (inverse binomial sampling; Hu and others, 2023. arXiv:2310.03262): K draws were
  needed;
- *a fixed number*: q of K passed. An item that reached the cap before r passes is of this kind: **censored**.

Which number to take (checked in the tests by summing the distribution of K):

- ``"umvu"``, (r - 1)/(K - 1), or q/K where censored, is exactly unbiased for p, the cap included (Haldane,
  1945; Girshick, Mosteller and Savage, 1946). It is the default;
- ``"mle"``, r/K, is the paper's. As p falls its mean exceeds p by r/(r - 1), for r = 1 by ln(1/p);
- ``"log"``, ψ(r) - ψ(K), is exactly unbiased for log p; its variance is estimated without bias by
  ψ'(r) - ψ'(K). For r = 1 it is the estimator of van Opheusden, Acerbi and Ma, 2020. arXiv:2001.03985.

The likelihood, p^r (1 - p)^(K - r), is the same for both kinds of counting.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from allometry.laws.uncertainty import Interval

if TYPE_CHECKING:
    import pandas

__all__ = ["PassCounts", "pass_at_k"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PassCounts:
    """What was counted for S instances.

    Attributes
    ----------
    successes : integer array (S,)
        Draws that passed; r where the sampling ended at the r-th pass.
    trials : integer array (S,)
        Draws up to and with the last that counts.
    censored : boolean array (S,)
        Whether the number of draws, rather than that of passes, ended the sampling.
    errors : integer array (S,)
        Draws, among the trials, for which the verifier failed; they count as not passed.
    sampled : integer array (S,)
        Draws made in all, with those of the last batch behind the r-th pass, which do not count.
    chance : float
        Probability with which a random guess passes.

    Raises
    ------
    ValueError
        Counts that cannot be.

    Examples
    --------
    >>> counts = PassCounts([2, 2, 0], [2, 41, 500], [False, False, True])
    >>> counts.estimate().tolist()
    [1.0, 0.025, 0.0]
    """

    successes: Any
    trials: Any
    censored: Any
    errors: Any = None
    sampled: Any = None
    chance: float = 0.0
    _: Any = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        trials = _whole("trials", self.trials)
        made = {
            "successes": _whole("successes", self.successes),
            "trials": trials,
            "censored": np.asarray(self.censored, dtype=bool),
            "errors": np.zeros_like(trials) if self.errors is None else _whole("errors", self.errors),
            "sampled": trials.copy() if self.sampled is None else _whole("sampled", self.sampled),
        }
        for name, values in made.items():
            if values.shape != trials.shape or trials.ndim != 1:
                raise ValueError(f"{name} has shape {values.shape}; it must hold one value an instance, (S,)")
            object.__setattr__(self, name, values)
        if (made["successes"] > trials).any() or (trials < 1).any():
            raise ValueError("every instance needs at least one trial, and no more successes than trials")
        if (~made["censored"] & (made["successes"] < 1)).any():
            raise ValueError("an instance without a pass did not end at one: mark it censored")
        if not 0.0 <= self.chance < 1.0:
            raise ValueError(f"chance is a probability below 1, not {self.chance}")

    @classmethod
    def fixed(cls, successes: Any, trials: Any, *, chance: float = 0.0) -> Self:
        """Counts of a fixed number of draws an instance, as benchmarks report them.

        >>> PassCounts.fixed([3, 0], [10, 10]).estimate().tolist()
        [0.3, 0.0]
        """
        counted = np.atleast_1d(np.asarray(successes))
        total = np.broadcast_to(np.asarray(trials), counted.shape)
        return cls(counted, total, np.ones(counted.shape, dtype=bool), chance=chance)

    def __len__(self) -> int:
        return len(self.trials)

    # --- estimates ---------------------------------------------------------------------------------------
    def estimate(self, kind: Literal["umvu", "mle", "log"] = "umvu") -> Array:
        """Pass rates ``(S,)``, or their logarithms for ``"log"``; see the module for which to take.

        NaN where there is no such estimate: ``"umvu"`` of an instance that ended at its first pass (r = 1),
        ``"log"`` of a censored one, for which no unbiased estimate exists (fit the likelihood instead).
        """
        s, k = self.successes.astype(float), self.trials.astype(float)
        if kind == "mle":
            return s / k
        if kind == "umvu":
            ended = np.where(s >= 2, (s - 1) / np.maximum(k - 1, 1), np.nan)
            return np.where(self.censored, s / k, ended)
        if kind == "log":
            from scipy.special import digamma

            return np.where(self.censored, np.nan, digamma(np.maximum(s, 1)) - digamma(k))
        raise ValueError(f"kind must be 'umvu', 'mle' or 'log', not {kind!r}")

    def log_pu(self) -> Array:
        """Unbiased estimates of log p ``(S,)``; NaN where censored."""
        return self.estimate("log")

    def se(self) -> Array:
        """Standard errors of `log_pu` ``(S,)``; NaN where censored."""
        from scipy.special import polygamma

        s, k = self.successes.astype(float), self.trials.astype(float)
        variance = polygamma(1, np.maximum(s, 1)) - polygamma(1, k)
        return np.where(self.censored, np.nan, np.sqrt(np.maximum(variance, 0.0)))

    def interval(self, level: float = 0.95, kind: Literal["umvu", "mle"] = "umvu") -> Interval:
        """Pass rates with exact limits ``(S,)``, from the beta distribution, valid also with a cap.

        The two tests that are inverted (Clopper and Pearson, 1934) order outcomes from "r passed at once" to
        "none passed before the cap".
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, not {level}")
        from scipy.stats import beta

        s, k = self.successes.astype(float), self.trials.astype(float)
        tail = (1 - level) / 2
        with np.errstate(invalid="ignore"):
            low = beta.ppf(tail, s, k - s + 1)
            # of an instance that ended at its r-th pass: at least K draws were needed
            high = np.where(self.censored, beta.ppf(1 - tail, s + 1, k - s), beta.ppf(1 - tail, s, k - s))
        low, high = np.where(s == 0, 0.0, low), np.where(s == k, 1.0, high)
        return Interval(self.estimate(kind), low, high, level)

    def corrected(self, level: float = 0.95) -> Interval:
        """Pass rates beyond chance g, (p - g)/(1 - g), with their limits ``(S,)``; below zero where a rate is
        under chance."""
        told = self.interval(level)
        value, low, high = ((one - self.chance) / (1 - self.chance) for one in told)
        return Interval(value, low, high, level)

    def pass_at_k(self, k: int) -> Array:
        """As the function `pass_at_k`."""
        return pass_at_k(self, k)

    # --- as tables ---------------------------------------------------------------------------------------
    def to_frame(self, **columns: Any) -> pandas.DataFrame:
        """A row an instance, with columns such as ``params``: what ``allometry fit --law task``
        reads."""
        import pandas

        return pandas.DataFrame(
            {**columns, "instance": np.arange(len(self)), "successes": self.successes, "trials": self.trials,
             "censored": self.censored, "errors": self.errors, "sampled": self.sampled}
        )  # fmt: skip

    @classmethod
    def from_frame(cls, frame: Any, *, chance: float = 0.0) -> Self:
        """From a table with ``successes`` and ``trials``; without a column ``censored`` the number of draws
        is taken to have been fixed."""
        for name in ("successes", "trials"):
            if name not in frame:
                raise ValueError(f"counts need a column {name!r}; there are {', '.join(map(str, frame))}")
        if "censored" not in frame:
            return cls.fixed(frame["successes"], frame["trials"], chance=chance)
        more = {name: frame[name] for name in ("errors", "sampled") if name in frame}
        return cls(frame["successes"], frame["trials"], frame["censored"], chance=chance, **more)


def pass_at_k(counts: PassCounts, k: int) -> Array:
    """Unbiased estimates ``(S,)`` of 1 - (1 - p)^k, the probability that one of k draws passes.

    The share of those orders in which the counted draws could have come that do not begin with k failures.
    For a fixed number of draws it is the usual 1 - C(n - c, k)/C(n, k) (Chen and others, 2021.
    arXiv:2107.03374); where the r-th pass ended the sampling, 1 - C(K - 1 - k, r - 1)/C(K - 1, r - 1).

    Parameters
    ----------
    counts : PassCounts
    k : int
        At most the draws of every censored instance.

    Raises
    ------
    ValueError
        Fewer than k draws were made where their number was fixed.

    Examples
    --------
    >>> pass_at_k(PassCounts.fixed([1, 0], [10, 10]), 5).round(12).tolist()
    [0.5, 0.0]
    """
    if k != int(k) or k < 1:
        raise ValueError(f"k must be a whole number of at least 1, not {k}")
    short = counts.censored & (counts.trials < k)
    if short.any():
        raise ValueError(
            f"pass@{k} needs at least {k} draws; instance {int(np.flatnonzero(short)[0])} has "
            f"{int(counts.trials[short][0])}"
        )
    # the last draw of an instance that ended at a pass is that pass: its place in the order is fixed
    fixed = counts.censored.astype(float)
    places = counts.trials - (1.0 - fixed)
    passes = counts.successes - (1.0 - fixed)
    # C(n - c, k)/C(n, k) as a product over the smaller of c and k; a factor of zero: it cannot be
    few, many = passes, np.full_like(places, k)
    if passes.max(initial=0) > k:
        few, many = many, few
    steps = np.arange(int(few.max(initial=0)))[:, None]
    left = np.maximum(places - steps, 1.0)
    factors = np.where(steps < few, np.maximum(1.0 - many / left, 0.0), 1.0)
    # few + many > n: some of the k draws must pass
    none = np.where(passes + k > places, 0.0, factors.prod(axis=0))
    return 1.0 - none


def _whole(name: str, values: Any) -> NDArray[np.int64]:
    array = np.atleast_1d(np.asarray(values))
    if array.dtype == bool or not np.issubdtype(array.dtype, np.number) or not np.isfinite(array).all():
        raise ValueError(f"{name} must be whole numbers")
    whole = array.astype(np.int64)
    if (whole != array).any() or (whole < 0).any():
        raise ValueError(f"{name} must be whole numbers, not {array[(whole != array) | (whole < 0)][0]}")
    return whole
