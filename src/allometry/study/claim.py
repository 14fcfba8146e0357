"""What a paper says, the rule that decides whether it is so here, and what came out.

A claim is written down, and hashed, before anything runs.  Its rule compares an estimate that has an interval
with thresholds, so there are four outcomes, not two:

- *holds*: the interval lies on the claimed side;
- *contradicted*: it lies on the other;
- *falls short*: the effect is there and is smaller than claimed;
- *undecided*: the interval allows both, or fewer than three paired seeds stand behind it.  "Not seen at this
  scale" is a result, and is reported with its numbers.
"""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from allometry.study.canonical import digest

if TYPE_CHECKING:
    from allometry.study.result import Result

SEEDS = 3  # the fewest pairs that decide anything


class Outcome(StrEnum):
    """How a claim fared; printed as its words."""

    HOLDS = "holds"
    FALLS_SHORT = "falls short"
    CONTRADICTED = "contradicted"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Estimate:
    """A number with its interval and what stands behind it; comparisons with thresholds give a `Test`.

    Attributes
    ----------
    value, low, high : float
    level : float
        Share of the interval.
    n : int or None
        Independent pairs, seeds or items behind it; None where nothing is random (``exact``).
    exact : bool
        A closed form: no seeds are needed.
    what : str
        What it measures, in words.

    Examples
    --------
    >>> gain = Estimate.of([0.9, 1.0, 1.1, 1.05], what="gain")
    >>> str((gain > 0.5).outcome), str((gain > 1.0).outcome), str((gain < 0.5).outcome)
    ('holds', 'undecided', 'contradicted')
    """

    value: float
    low: float
    high: float
    level: float = 0.95
    n: int | None = None
    exact: bool = False
    what: str = ""

    @classmethod
    def of(cls, values: Sequence[float] | Any, *, level: float = 0.95, what: str = "") -> Estimate:
        """The mean of independent values (one a seed or item) with Student's interval.

        Values that are not finite, such as those of diverged runs, leave the mean undefined: they are not
        dropped, since dropping them would hide what they say.
        """
        from scipy import stats

        numbers = np.asarray(values, dtype=float)
        n = len(numbers)
        if n == 0:
            return cls(math.nan, -math.inf, math.inf, level, 0, what=what)
        mean = float(numbers.mean())
        if n == 1 or not np.isfinite(numbers).all():
            return cls(mean, -math.inf, math.inf, level, n, what=what)
        half = float(stats.t.ppf(0.5 + level / 2.0, n - 1) * numbers.std(ddof=1) / math.sqrt(n))
        return cls(mean, mean - half, mean + half, level, n, what=what)

    @classmethod
    def closed_form(cls, value: float, *, what: str = "") -> Estimate:
        """A number without noise, known up to rounding."""
        return cls(float(value), float(value), float(value), n=None, exact=True, what=what)

    @classmethod
    def from_interval(cls, interval: Any, *, n: int | None, what: str = "") -> Estimate:
        """From anything with ``value``, ``low`` and ``high``, such as an interval of a law."""
        return cls(float(interval.value), float(interval.low), float(interval.high),
                   float(getattr(interval, "level", 0.95)), n, what=what)  # fmt: skip

    def judge(
        self,
        holds: tuple[float, float] = (-math.inf, math.inf),
        contradicted: tuple[float, float] | None = None,
    ) -> Test:
        """Compare with the range in which the claim holds and the range that contradicts it.

        Parameters
        ----------
        holds : (low, high)
        contradicted : (low, high), optional
            By default all that is outside ``holds``.  What lies between the two falls short.

        Returns
        -------
        Test
            *holds* where the value is in its range and the interval keeps out of the contradicting one
            (and, where there is nothing between the two, wholly in range); *contradicted* where the value is
            in that range and the interval keeps out of the other; *falls short* where the value lies between
            and the interval keeps out of both; otherwise *undecided*.
        """
        if math.isnan(self.value):
            return Test(Outcome.UNDECIDED, (self,), f"{self.what or 'the estimate'} is undefined")
        if not self.exact and self.n is not None and self.n < SEEDS:
            return Test(
                Outcome.UNDECIDED,
                (self,),
                f"{self.n} of the {SEEDS} seeds that decide anything stand behind it",
            )
        good = holds[0] <= self.value <= holds[1]
        touches_good = self.high >= holds[0] and self.low <= holds[1]
        if contradicted is None:
            inside = holds[0] <= self.low and self.high <= holds[1]
            outcome = Outcome.HOLDS if inside else Outcome.UNDECIDED if touches_good else Outcome.CONTRADICTED
        else:
            bad = contradicted[0] <= self.value <= contradicted[1]
            touches_bad = self.high >= contradicted[0] and self.low <= contradicted[1]
            if good and not touches_bad:
                outcome = Outcome.HOLDS
            elif bad and not touches_good:
                outcome = Outcome.CONTRADICTED
            elif not (good or bad or touches_good or touches_bad):
                outcome = Outcome.FALLS_SHORT
            else:
                outcome = Outcome.UNDECIDED
        reason = "" if outcome is not Outcome.UNDECIDED else f"the interval {self._ends()} allows both"
        return Test(outcome, (self,), reason)

    def __gt__(self, threshold: float) -> Test:
        return self.judge(holds=(threshold, math.inf))

    def __lt__(self, threshold: float) -> Test:
        return self.judge(holds=(-math.inf, threshold))

    def within(self, low: float, high: float) -> Test:
        """Whether the whole interval lies between two numbers: an equivalence test."""
        return self.judge(holds=(low, high))

    def _ends(self) -> str:
        return f"[{self.low:.4g}, {self.high:.4g}]"

    def __str__(self) -> str:
        name = f"{self.what} " if self.what else ""
        if self.exact:
            return f"{name}{self.value:.6g} (closed form)"
        seeds = "" if self.n is None else f", n = {self.n}"
        return f"{name}{self.value:.4g} {self._ends()} at {100 * self.level:g} %{seeds}"


@dataclass(frozen=True)
class Test:
    """An outcome with the estimates behind it; ``&`` asks that all hold."""

    outcome: Outcome
    estimates: tuple[Estimate, ...] = ()
    reason: str = ""

    __test__ = False  # its name begins like those that pytest collects

    def __and__(self, other: Test) -> Test:
        order = (Outcome.CONTRADICTED, Outcome.UNDECIDED, Outcome.FALLS_SHORT, Outcome.HOLDS)
        worst = min(self, other, key=lambda test: order.index(test.outcome))
        return Test(worst.outcome, (*self.estimates, *other.estimates), worst.reason)

    def __bool__(self) -> bool:
        raise TypeError("a test has four outcomes; join tests by & and read .outcome")


def undecided(reason: str, *estimates: Estimate) -> Test:
    """The outcome where a rule cannot be applied, with the reason."""
    return Test(Outcome.UNDECIDED, estimates, reason)


@dataclass(frozen=True)
class Claim:
    """One sentence from a paper and the rule that judges it.

    Attributes
    ----------
    sentence : str
        What the paper says, in words of our own.
    rule : callable
        Takes the study's `Result` and returns a `Test`: an `Estimate` compared with thresholds, several
        joined by ``&``, or `undecided`.
    where : str
        Section, figure or theorem.
    threshold : str
        The rule in words, for readers.

    Examples
    --------
    >>> Claim("Wider is better.", lambda result: result.slope("base") < 0).digest[:4].isalnum()
    True
    """

    sentence: str
    rule: Callable[[Result], Test]
    where: str = ""
    threshold: str = ""

    @property
    def digest(self) -> str:
        """Hash of the sentence and of the rule's code: what was promised before the run."""
        return digest({"sentence": self.sentence, "threshold": self.threshold, "rule": _code(self.rule)})

    def judge(self, result: Result) -> Verdict:
        """Apply the rule; a rule that fails leaves the claim undecided, and says why."""
        try:
            test = self.rule(result)
        except Exception as error:
            test = undecided(f"{type(error).__name__}: {error}")
        if not isinstance(test, Test):
            raise TypeError(
                f"the rule of {self.sentence!r} gave {type(test).__name__}; compare an estimate with a "
                "threshold (such as result.gap(arm) > 0) or return undecided(reason)"
            )
        return Verdict(self, test)


@dataclass(frozen=True)
class Verdict:
    """A claim and what came of it."""

    claim: Claim
    test: Test

    @property
    def outcome(self) -> Outcome:
        return self.test.outcome

    @property
    def words(self) -> str:
        """The outcome for readers."""
        if self.outcome is Outcome.UNDECIDED:
            return (
                f"not seen at this scale ({self.test.reason})"
                if self.test.reason
                else "not seen at this scale"
            )
        return str(self.outcome)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: sentence, rule's digest, outcome, reason, estimates."""
        return {
            "claim": self.claim.sentence, "where": self.claim.where, "threshold": self.claim.threshold,
            "rule": self.claim.digest, "outcome": str(self.outcome), "reason": self.test.reason,
            "estimates": [
                {"what": one.what, "value": one.value, "low": one.low, "high": one.high, "level": one.level,
                 "n": one.n, "exact": one.exact}
                for one in self.test.estimates
            ],
        }  # fmt: skip

    def __str__(self) -> str:
        facts = "; ".join(str(one) for one in self.test.estimates)
        return f"{self.words}: {self.claim.sentence}" + (f" [{facts}]" if facts else "")


def _code(function: Callable[..., Any]) -> str:
    """A function's code without its layout, so that only a changed rule changes the hash."""
    code = function.__code__
    # Compiled constants tell a renamed rule, but not where it holds functions: their text has addresses.
    nested = any(inspect.iscode(one) for one in code.co_consts)
    name = code.co_name if nested else function.__name__
    places = [(line, column) for line, _, column, _ in code.co_positions() if line and column is not None]
    try:
        lines, _ = inspect.findsource(function)
        nodes = ast.walk(ast.parse("".join(lines)))
    except (OSError, SyntaxError):  # typed at a prompt
        return digest({"code": code.co_code.hex(), "constants": repr(code.co_consts), "names": code.co_names})
    around: list[tuple[int, ast.AST]] = []
    for node in nodes:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            if first == code.co_firstlineno:
                around.append((0, node))
        elif isinstance(node, ast.Lambda) and name == "<lambda>":
            body = node.body
            start, end = (body.lineno, body.col_offset), (body.end_lineno or 0, body.end_col_offset or 0)
            if places and start <= places[-1] <= end:
                around.append((len(ast.dump(node)), node))
    if not around:
        return digest({"code": code.co_code.hex(), "constants": repr(code.co_consts), "names": code.co_names})
    return ast.dump(min(around, key=lambda pair: pair[0])[1])
