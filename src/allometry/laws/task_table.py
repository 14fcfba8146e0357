"""Counts of passes as a table: one column a trained model, one row an instance, and how to count anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from allometry.laws.law import Estimator
from allometry.laws.pass_likelihood import expected_information

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

__all__ = ["Cells", "PassColumns", "draw", "from_counts", "pass_rates"]

Array = NDArray[np.float64]
_TRUTH = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}


class PassColumns(Estimator):
    """What all laws of pass rates read: sizes and counts; the target is the mean pass rate of a size."""

    columns: ClassVar[Mapping[str, str]] = {"params": "non-embedding parameters of the model"}
    optional: ClassVar[Mapping[str, str]] = {  # the first two are what the target is made of
        "successes": "draws that passed",
        "trials": "draws made",
        "instance": "which question",
        "censored": "1 where the number of draws ended the sampling, 0 where the r-th pass did",
        "chance": "probability with which a random guess passes",
    }
    target: ClassVar[str] = "pass rate"
    synonyms: ClassVar[Mapping[str, Sequence[str]]] = {
        "successes": ("passes", "passed", "correct", "num_correct"),
        "trials": ("samples", "draws", "num_samples", "k"),
        "instance": ("task_id", "question", "item", "problem"),
    }
    labels: ClassVar[Sequence[str]] = ("instance",)

    def read(self, table: Any, *, target: bool = True) -> dict[str, Any]:
        """The law's columns; the target is the mean pass rate over the rows of one size."""
        found = super().read(table, target=False)
        if target:
            for name in ("successes", "trials"):
                if name not in found:
                    held = getattr(table, "table", table)
                    raise ValueError(
                        f"the {self.name} law needs a column {name!r} ({self.optional[name]}); the columns "
                        f"given are {', '.join(map(str, held))}"
                    )
            found[self.target] = pass_rates(found)
        return found

    def _numbers(self, column: str, values: NDArray[Any]) -> Array:
        """As every law's; a table's True and False, also as text, are 1 and 0."""
        if column == "censored":
            values = np.array([_TRUTH.get(str(one).strip().lower(), one) for one in values])
        return super()._numbers(column, values)


@dataclass(frozen=True)
class Cells:
    """Counts of S instances on M models.

    Attributes
    ----------
    x : array (M,)
        Log sizes less ``centre``, their mean.
    centre : float
    instances : array (S,)
        Names, sorted.
    passes, failures : arrays (S, M)
        Zero in both where an instance was not measured.
    r : int
        Passes that end the sampling of a cell; 0 where the number of draws does.
    cap : float
        Draws at which sampling until r passes gives up.
    """

    x: Array
    centre: float
    instances: NDArray[Any]
    passes: Array
    failures: Array
    r: int
    cap: float
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, columns: Mapping[str, Any]) -> Self:
        """From columns (n,); rows of one instance on one model are counted together.

        Raises
        ------
        ValueError
            Sizes that are not positive or fewer than three, counts that cannot be, nothing that passed, or a
            pass rate that chance explains.
        """
        params, s, k = columns["params"], columns["successes"], columns["trials"]
        if (params <= 0).any():
            raise ValueError(f"params must be positive, not {params[params <= 0][0]:g}")
        if ((s < 0) | (s > k) | (k <= 0)).any():
            bad = int(np.flatnonzero((s < 0) | (s > k) | (k <= 0))[0])
            raise ValueError(f"row {bad} has {s[bad]:g} successes in {k[bad]:g} trials")
        names = np.asarray(columns.get("instance", np.zeros(len(params), dtype=int)))
        instances, row = np.unique(names, return_inverse=True)
        runs = np.unique(columns["run"].astype(str), return_inverse=True)[1] if "run" in columns else 0 * row
        models, column = np.unique(np.stack([params, runs], axis=1), axis=0, return_inverse=True)
        sizes = models[:, 0]
        if len(np.unique(sizes)) < 3:
            raise ValueError(
                f"a law needs at least three sizes; there are {len(np.unique(sizes))}: measure more models"
            )
        if not s.any():
            raise ValueError("no draw passed at any size: draw more, or measure larger models")
        place = row * len(sizes) + column.ravel()
        shape = (len(instances), len(sizes))
        cells = len(instances) * len(sizes)
        passes, trials = (np.bincount(place, one, cells).reshape(shape).astype(float) for one in (s, k))
        r, cap = 0, np.inf
        if "censored" in columns and np.bincount(place).max() == 1:
            censored = columns["censored"] > 0
            r = int(s[~censored].max(initial=0))
            cap = float(k[censored].max(initial=0.0)) or np.inf
        if len(np.unique(sizes[passes.sum(axis=0) > 0])) < 2:
            raise ValueError("draws passed at one size only, which fixes no slope: draw more at the others")
        log = np.log(sizes)
        warnings = [
            f"nothing passed at {size:g} parameters: an upper bound there, not a zero"
            for size in sizes[passes.sum(axis=0) == 0]
        ]
        if "chance" in columns and (columns["chance"] > 0).any():
            warnings.append(_above_chance(columns))
        return cls(
            log - log.mean(), float(log.mean()), instances, passes, trials - passes, r, cap, tuple(warnings)
        )

    @property
    def trials(self) -> Array:
        """Draws ``(S, M)``."""
        return self.passes + self.failures

    @property
    def measured(self) -> Array:
        """1 where an instance was measured ``(S, M)``."""
        return (self.trials > 0).astype(float)

    def information(self, f: Array) -> Array:
        """Fisher's information on F that each cell's rule of counting has, ``(..., S, M)``.

        Where the r-th pass ends the sampling it is that of the draws to be expected: to weigh a cell by the
        draws that it took would favour those that happened to pass late.
        """
        if not self.r:
            return expected_information(f, self.trials)
        with np.errstate(over="ignore"):
            draws = np.minimum(self.r * np.exp(np.exp(np.clip(f, -40.0, 6.0))), self.cap)
        return expected_information(f, draws * self.measured)

    def log_c(self, theta: Array) -> Array:
        """log c of F = log c - alpha log N, from lines ``(..., 2)`` in centred log sizes."""
        return theta[..., 0] + theta[..., 1] * self.centre

    def redraw(self, f: Array, generator: np.random.Generator) -> tuple[Array, Array]:
        """New passes and failures ``(B, S, M)``, counted by the same rule, for F of that shape."""
        p = np.exp(-np.exp(np.clip(f, -40.0, 6.0)))
        if self.r == 0:
            draws = np.rint(self.trials).astype(np.int64)
            passes = generator.binomial(draws, p).astype(float)
            return passes, draws - passes
        passes, trials = self._until(p, generator)
        return passes * self.measured, (trials - passes) * self.measured

    def recount(self, f: Array, generator: np.random.Generator) -> Array:
        """Estimated pass rates ``(B, S, k)`` of new models, counted by the same rule."""
        p = np.exp(-np.exp(np.clip(f, -40.0, 6.0)))
        if self.r:
            passes, trials = self._until(p, generator)
            return _estimate(passes, trials, passes >= self.r)
        usual = np.nanmedian(np.where(self.trials > 0, self.trials, np.nan), axis=1)
        draws = np.rint(usual).astype(np.int64)[:, None]
        return generator.binomial(draws, p) / draws

    def _until(self, p: Array, generator: np.random.Generator) -> tuple[Array, Array]:
        """Passes and draws of sampling until r have passed or the cap is reached."""
        r, p = float(self.r), np.clip(p, 1e-300, 1.0)
        # failures before the r-th pass are a Poisson of a gamma: no limit on how rare a pass is
        mean = np.minimum(generator.gamma(r, size=p.shape) * (1 - p) / p, 1e15)
        trials = generator.poisson(mean) + r
        over = trials > self.cap
        passes = np.full(p.shape, r)
        if over.any():
            passes[over] = _fewer_than(self.r, self.cap, p[over], generator)
            trials[over] = self.cap
        return np.asarray(passes), np.asarray(trials)

    def by_size(self, level: float = 0.95) -> pandas.DataFrame:
        """What was measured at each model: ``params``, ``pass_rate``, limits, and whether it is only a bound.

        The limits are those of the mean over instances by the normal approximation of its counts; where
        nothing passed, the exact upper limit.
        """
        import pandas
        from scipy.stats import norm

        rows = []
        half = float(norm.ppf(0.5 + level / 2))
        for m, x in enumerate(self.x):
            here = self.trials[:, m] > 0
            s, k = self.passes[here, m], self.trials[here, m]
            p = _estimate(s, k, (s >= self.r) & (self.r > 0))
            bound = not s.any()
            # no pass in K draws each: (1 - p_1)^K ... >= 1 - level bounds the sum of the p
            error = half * float(np.sqrt((p * (1 - p) / k).sum())) / len(p)
            high = -np.log(1 - level) / (k.min() * len(p)) if bound else min(1.0, p.mean() + error)
            rows.append({"params": np.exp(x + self.centre), "pass_rate": p.mean(),
                         "low": max(0.0, p.mean() - error), "high": high, "only_bounded": bound,
                         "instances": len(p), "never_passed": int((s == 0).sum())})  # fmt: skip
        return pandas.DataFrame(rows)


def from_counts(sizes: Any, counts: Sequence[Any]) -> dict[str, Array]:
    """Columns of `PassCounts` of the same instances at M sizes."""
    params = np.atleast_1d(np.asarray(sizes, dtype=float))
    if len(params) != len(counts):
        raise ValueError(f"there are {len(params)} sizes and counts of {len(counts)}; give one each")
    if len({len(one.trials) for one in counts}) != 1:
        raise ValueError("all counts must be of the same instances, in the same order")
    s = len(counts[0].trials)
    return {
        "params": np.repeat(params, s),
        "run": np.repeat(np.arange(len(params)), s),
        "instance": np.tile(np.arange(s), len(params)),
        **{name: np.concatenate([np.asarray(getattr(one, name), dtype=float) for one in counts])
           for name in ("successes", "trials", "censored")},
        "chance": np.repeat([float(getattr(one, "chance", 0.0)) for one in counts], s),
    }  # fmt: skip


def pass_rates(columns: Mapping[str, Any]) -> Array:
    """For each row the mean pass rate over the rows of its size ``(n,)``, without bias where r >= 2 ended the
    sampling."""
    s, k = columns["successes"], columns["trials"]
    ended = columns["censored"] == 0 if "censored" in columns else np.zeros(len(s), dtype=bool)
    p = _estimate(s, k, ended)
    _, group = np.unique(columns["params"], return_inverse=True)
    return (np.bincount(group, p) / np.bincount(group))[group]


def _above_chance(columns: Mapping[str, Any]) -> str:
    from scipy.stats import beta

    chance = columns["chance"]
    sizes, group = np.unique(columns["params"], return_inverse=True)
    s, k, total = (np.bincount(group, columns[one]) for one in ("successes", "trials", "chance"))
    g = total / np.bincount(group)
    low = beta.ppf(0.025, np.maximum(s, 1e-9), k - s + 1)
    lost = low <= g
    if lost.any():
        raise ValueError(
            f"at {sizes[lost][0]:g} parameters the pass rate {s[lost][0] / k[lost][0]:.3g} cannot be told "
            f"from chance ({g[lost][0]:.3g}): the law has no floor; leave such sizes out"
        )
    return (
        f"a random guess passes with probability up to {chance.max():g}; the law, which has no floor, takes "
        "pass rates as they are"
    )


def _estimate(passes: Array, trials: Array, ended: NDArray[np.bool_]) -> Array:
    """Pass rates, unbiased where the r-th pass ended the sampling and r >= 2."""
    return np.where(
        ended & (passes >= 2), (passes - 1) / np.maximum(trials - 1, 1), passes / np.maximum(trials, 1)
    )


def _fewer_than(r: int, draws: float, p: Array, generator: np.random.Generator) -> Array:
    """Passes in so many draws ``(n,)``, given that they are fewer than r: binomial weights, summed up."""
    j = np.arange(r)
    steps = np.log(np.maximum(draws - j[:-1], 1e-300)) - np.log(j[1:])
    log = (
        np.concatenate([[0.0], np.cumsum(steps)])
        + j * (np.log(p) - np.log1p(-np.minimum(p, 1 - 1e-12)))[:, None]
    )
    weights = np.exp(log - log.max(axis=1, keepdims=True)).cumsum(axis=1)
    return (weights < generator.random((len(p), 1)) * weights[:, -1:]).sum(axis=1).astype(float)


def draw(law: Any, ax: Axes | None, level: float) -> Axes:
    """-log of mean pass rates over size with the law and its interval."""
    from matplotlib import pyplot

    axes = ax or pyplot.subplots()[1]
    seen = law.cells_.by_size(level)
    known = seen[~seen["only_bounded"]]
    value, low, high = (-np.log(known[name].clip(1e-300, 1.0)) for name in ("pass_rate", "low", "high"))
    bars = np.maximum([value - high, np.minimum(low, 3 * value) - value], 0.0)
    axes.errorbar(known["params"], value, yerr=bars, fmt="o", label="measured")
    bound = seen[seen["only_bounded"]]
    axes.plot(bound["params"], -np.log(bound["high"]), "^", label="nothing passed: at least this")
    n = np.geomspace(seen["params"].min(), seen["params"].max() * 2, 50)
    axes.plot(n, -np.log(law.predict({"params": n})), label="law")
    try:
        told = law.interval({"params": n}, level)
        axes.fill_between(n, -np.log(told.high), -np.log(np.maximum(told.low, 1e-300)), alpha=0.2)
    except ValueError:  # fitted without resamples
        pass
    axes.set(
        xscale="log", yscale="log", xlabel="non-embedding parameters", ylabel="-log of the mean pass rate"
    )
    axes.legend()
    return axes
