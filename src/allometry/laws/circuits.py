"""Curves of a whole set's pass rate against size: the task law, many steps, the best of several circuits.

One curve through the means over instances. With x the logarithm of size and F = log(-log pass rate):

- `SetCurve`, the task law: F = log c - alpha x, a line;
- `MultiStep`: all of several steps must succeed, each by the law. The pass rate is their product, so -log of
  it is a sum of powers and F their log-sum-exp: convex;
- `BestCircuit`: the best of two circuits answers, so F is the lower of two lines: concave;
- `SoftVote`: circuits vote with weights exp(P_i) by their own pass rates P_i: a smooth turn from one to the
  other, concave there, a little convex beside it.

Hu and others, 2023. arXiv:2310.03262 (sections on emergence). Each is a `Form` for -log of the pass rate, so
fit, intervals and comparison are those of every law.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from allometry.laws.compare import aicc
from allometry.laws.forms import Form, Parameter, PowerLaw, SumOfPowers
from allometry.laws.law import Law
from allometry.laws.shape import Shape, shape
from allometry.laws.task_table import Cells, PassColumns, draw
from allometry.laws.uncertainty import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["BestCircuit", "MultiStep", "SetCurve", "SoftVote"]

Array = NDArray[np.float64]

_C = (np.exp(-30.0), np.exp(30.0))
_ALPHA = (1e-3, 4.0)
_PAIR = (
    Parameter("c1", *_C, log=True), Parameter("alpha1", *_ALPHA),
    Parameter("c2", *_C, log=True), Parameter("alpha2", *_ALPHA),
)  # fmt: skip


class TwoPowers(SumOfPowers):
    """-log pass rate of two steps: the sum of two powers."""

    name = "multi-step"
    inputs = ("params",)
    parameters = _PAIR
    terms = ((0, 1, 0), (2, 3, 0))


class _TwoLines(Form):
    """What two lines F_i = log c_i - alpha_i x make together; derived classes say how."""

    inputs = ("params",)
    parameters = _PAIR
    scales_target = False

    def units(self, shift: Array, target_shift: float) -> tuple[Array, Array]:
        matrix = np.eye(4)
        matrix[0, 1] = matrix[2, 3] = shift[0]
        return matrix, np.zeros(4)

    def lines(self, theta: Array, features: Array) -> Array:
        """Both lines (2, batch, n)."""
        x = features[None, :, 0]
        return np.stack([theta[:, i, None] - theta[:, i + 1, None] * x for i in (0, 2)])

    def spread(self, by_line: Array, features: Array) -> Array:
        """Derivatives (batch, 4, n) in the parameters from those in the lines (2, batch, n)."""
        x = features[None, :, 0]
        return np.stack([by_line[0], -x * by_line[0], by_line[1], -x * by_line[1]], axis=1)

    def starts(self, features: Array, log_y: Array, weights: Array) -> Array:
        """Lines through the two ends, broken at several places."""
        x = features[:, 0]
        order = np.argsort(x)
        found = []
        for cut in (0.3, 0.5, 0.7):
            turn = np.quantile(x, cut)
            pair = []
            for part in (order[x[order] <= turn], order[x[order] >= turn]):
                part = part if len(np.unique(x[part])) > 1 else order
                z = x[part] - x[part].mean()
                slope = np.clip(-(log_y[:, part] @ z) / (z @ z), 2e-3, 3.9)
                pair += [log_y[:, part].mean(axis=1) + slope * x[part].mean(), slope]
            found.append(np.stack(pair, axis=1))
        return np.stack(found, axis=1)


class LowerLine(_TwoLines):
    """-log pass rate of the better of two circuits: the lower of two powers."""

    name = "best-circuit"

    def log_prediction(self, theta: Array, features: Array) -> Array:
        return self.lines(theta, features).min(axis=0)

    def jacobian(self, theta: Array, features: Array) -> tuple[Array, Array]:
        lines = self.lines(theta, features)
        first = (lines[0] <= lines[1]).astype(float)
        return lines.min(axis=0), self.spread(np.stack([first, 1.0 - first]), features)


class Vote(_TwoLines):
    """-log pass rate of two circuits that vote by exp of their own pass rates."""

    name = "soft-vote"

    def _shares(self, theta: Array, features: Array) -> tuple[Array, Array, Array]:
        minus_log = np.exp(np.clip(self.lines(theta, features), -60.0, 6.0))  # -log P_i
        p = np.exp(-minus_log)
        weight = np.exp(p) / np.exp(p).sum(axis=0)
        return minus_log, p, weight

    def log_prediction(self, theta: Array, features: Array) -> Array:
        minus_log, _, weight = self._shares(theta, features)
        # log sum w_i P_i without underflow, from the larger P; near 1 by what is missing
        missing = (weight * -np.expm1(-minus_log)).sum(axis=0)
        least = minus_log.min(axis=0)
        total = least - np.log((weight * np.exp(least - minus_log)).sum(axis=0))
        return np.log(
            np.maximum(np.where(missing < 0.5, -np.log1p(-np.minimum(missing, 0.5)), total), 1e-300)
        )

    def jacobian(self, theta: Array, features: Array) -> tuple[Array, Array]:
        minus_log, p, weight = self._shares(theta, features)
        value = self.log_prediction(theta, features)
        pu = (weight * p).sum(axis=0)
        # d PU / d P_i = w_i (1 + P_i - PU); d P_i / d F_i = -P_i (-log P_i)
        ratio = p / np.maximum(pu, 1e-300)
        by_line = weight * (1.0 + p - pu) * ratio * minus_log / np.exp(value)
        return value, self.spread(by_line, features)


class SetCurve(PassColumns, Law):
    """The task law for the mean pass rate of a set: log(-log mean) is a line in log size.

    A is c. The columns are those of `TaskLaw`; sizes at which nothing passed are left out, with a warning,
    since a mean of zero has no such logarithm (`TaskLaw` at level "instance" uses them).

    Examples
    --------
    >>> n = np.array([1e5, 1e6, 1e7, 1e8])
    >>> table = {"params": n, "successes": np.round(1e6 * np.exp(-40 * n**-0.2)), "trials": np.full(4, 1e6)}
    >>> law = SetCurve().fit(table, resamples=0)
    >>> round(law.params_["alpha"], 2), float(law.predict({"params": 1e9})[0].round(2))
    (0.2, 0.53)
    """

    name: ClassVar[str] = "task-set"
    shape_of: ClassVar[type[Form]] = PowerLaw

    def __init__(self) -> None:
        self.form = self.shape_of()
        self.form.inputs = ("params",)

    def fit(self, table: Any, *, resamples: int = 1000, random_state: int = 0, **options: Any) -> Self:
        """As `Law.fit`, to -log of the mean pass rate of each model.

        Raises
        ------
        ValueError
            As `TaskLaw.fit`; or fewer sizes with a pass than the curve has parameters and one more.
        """
        from allometry.laws.fit import fit

        columns = self.read(table)
        self.cells_ = Cells.of(columns)
        seen = self.cells_.by_size()
        kept = seen[~seen["only_bounded"] & (seen["pass_rate"] < 1.0)]
        needed = len(self.form.parameters) + 1
        if len(kept) < needed:
            raise ValueError(
                f"the {self.name} curve has {needed - 1} parameters and needs {needed} models with a mean "
                f"pass rate between 0 and 1; there are {len(kept)}"
            )
        self.seen_ = kept
        y = -np.log(kept["pass_rate"].to_numpy())
        self.fit_ = fit(
            self.form, {"params": kept["params"].to_numpy()}, y, resamples=resamples,
            random_state=random_state, **options,
        )  # fmt: skip
        self.measured_ = columns
        self.warnings_ = [*self.cells_.warnings, *self.fit_.warnings]
        return self

    @property
    def aicc(self) -> float:
        """Akaike's criterion, corrected for few models (Hurvich and Tsai, 1989), of log(-log mean)."""
        return aicc(self._fitted().residuals, len(self.form.parameters))

    def predict(self, table: Any) -> Array:
        """Mean pass rates ``(m,)`` at ``params``."""
        return np.exp(-self._fitted().predict({"params": self.read(table, target=False)["params"]}))

    def interval(self, table: Any, level: float = 0.9, kind: str = "mean") -> Interval:
        places = {"params": self.read(table, target=False)["params"]}
        told = self._fitted().interval(places, level, kind)
        value, low, high = (np.exp(-np.atleast_1d(one)) for one in told)
        return Interval(value, high, low, level)

    def growth_shape(self, level: float = 0.95) -> Shape:
        """Whether log(-log mean pass rate) bends."""
        self._fitted()
        rate = self.seen_["pass_rate"].to_numpy()
        # half of a 95 % interval, by the delta method d F = d p / (p log p)
        error = (self.seen_["high"] - self.seen_["low"]).to_numpy() / (2 * 1.96)
        return shape(self.seen_["params"], np.log(-np.log(rate)), error / (rate * -np.log(rate)), level=level)

    def plot(self, ax: Axes | None = None, level: float = 0.9) -> Axes:
        self._fitted()
        return draw(self, ax, level)


class MultiStep(SetCurve):
    """Two steps that must both succeed: log(-log mean) is convex.

    >>> MultiStep().form.names
    ('c1', 'alpha1', 'c2', 'alpha2')
    """

    name: ClassVar[str] = "multi-step"
    shape_of: ClassVar[type[Form]] = TwoPowers


class BestCircuit(SetCurve):
    """The better of two circuits answers: log(-log mean) is concave.

    >>> BestCircuit().name
    'best-circuit'
    """

    name: ClassVar[str] = "best-circuit"
    shape_of: ClassVar[type[Form]] = LowerLine


class SoftVote(SetCurve):
    """Two circuits vote with weights exp of their own pass rates.

    >>> SoftVote().form.name
    'soft-vote'
    """

    name: ClassVar[str] = "soft-vote"
    shape_of: ClassVar[type[Form]] = Vote
