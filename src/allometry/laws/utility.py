"""Utility and half-life of pools of data, learned from runs on each, and the error of any union foretold.

Goyal, Maini, Lipton, Raghunathan and Kolter, 2024, arXiv:2404.07177.  A fixed filter ("keep the best tenth")
wins while few samples are seen and loses once its samples have been seen too often.  Runs on single pools
tell each pool's utility and how fast it wears out; what a mixture does follows without training on it, and
with it the best filter for every budget (`allometry.laws.plan_pools`).

    law = laws.UtilityLaw().fit(table)            # columns samples, pool, pool_size, error; run if there is
    law.mixture_curve(1e6, ["A", "B"])            # error on the union after a million samples
    laws.plan_pools(law, [1e5, 1e6, 1e7]).frontier

The law falls forever towards its floor. Where the error rises again with repetition (wrong labels learned by
heart, say) it does not hold, and the fit is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from allometry.laws.law import Array, Law
from allometry.laws.uncertainty import Interval, Noise
from allometry.laws.utility_form import LONGEST, PoolCurves

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

__all__ = ["UtilityLaw"]

_SURE = 4.0  # standard errors


class UtilityLaw(Law):
    """Error of runs on pools of data against samples seen.

    Parameters
    ----------
    kind : {"utility", "effective_data"}
        Whether repetition damps the exponent or the number of samples.
    floor : {"outside", "official"}
        Whether the irreducible error is added to the whole law, or, as in the authors' program, to its first
        epoch, after which later epochs shrink it too.
    target : str
        ``"error"``, a share; or any other measure that falls, such as ``"loss"``.
    rise : float
        A rise of the target with repetition, over its lowest mean and relative to it, from which a pool is
        refused, unless noise between runs explains it.

    Notes
    -----
    Columns of a table: ``samples`` (seen in all), ``pool`` (a name; ``"A+B"`` is the union of A and B, read
    in proportion to their sizes), ``pool_size`` (samples in the pool) and the target; ``run`` where several
    rows come from one run.  Parameters: ``E`` (the paper's d), ``a`` (which multiplies samples in units of
    100 000; shared by all pools, which start alike), ``utility[pool]`` (the paper's -b) and
    ``half_life[pool]`` in epochs of that pool.

    Predictions may exceed 1 for a very small number of samples, as the paper's do; nothing is clipped.

    Examples
    --------
    >>> n = np.array([1e3, 2e3, 4e3, 8e3, 16e3, 32e3])
    >>> table = {"samples": n, "pool": ["A"] * 6, "pool_size": 4e3, "error": (n / 100) ** -0.2}
    >>> law = UtilityLaw().fit(table, resamples=0)  # nothing wears out here
    >>> round(law.utility["A"], 3), law.half_life["A"] > 500, law.warnings_[-1][:30]
    (0.2, True, 'The half-life of pool A lies a')
    """

    name = "utility"
    columns: ClassVar[Mapping[str, str]] = {
        "samples": "samples seen in all, counting repetitions",
        "pool": "name of the pool, or A+B for a union",
    }
    optional: ClassVar[Mapping[str, str]] = {
        "pool_size": "samples in the pool",
        "schedule": "learning-rate schedule",
        "batch": "samples a step",
        "learning_rate": "peak rate",
    }
    synonyms: ClassVar[Mapping[str, Sequence[str]]] = {
        "samples": ("samples_seen", "examples", "examples_seen", "images_seen"),
        "pool": ("bucket", "subset", "data_pool"),
        "pool_size": ("unique_samples", "unique_examples", "epoch_size", "bucket_size"),
        "error": ("test_error", "validation_error", "val_error", "error_rate", "top1_error"),
    }
    labels: ClassVar[Sequence[str]] = ("pool", "schedule")
    fit_options: ClassVar[Mapping[str, Any]] = {"loss": "squared"}  # as the paper, on the log scale

    def __init__(
        self, kind: str = "utility", floor: str = "outside", target: str = "error", rise: float = 0.03
    ) -> None:
        PoolCurves((), (), kind, floor)  # refuses what there is not
        self.kind, self.floor, self.rise = kind, floor, float(rise)
        self.target = target  # type: ignore[misc]

    @classmethod
    def known(
        cls,
        utility: Mapping[str, float],
        half_life: Mapping[str, float],
        pool_size: Mapping[str, float],
        *,
        a: float,
        E: float = 0.0,
        **options: Any,
    ) -> Self:
        """A law whose parameters are known, such as published ones; it has no intervals.

        Parameters
        ----------
        utility, half_life, pool_size : mapping of pool to number
            Utility positive (the paper's -b), half-life in epochs, size in samples.
        a : float
            Per 100 000 samples.
        E : float
        **options
            For the constructor.

        Examples
        --------
        >>> law = UtilityLaw.known({"top 10 %": 0.16}, {"top 10 %": 6.727}, {"top 10 %": 12.8e6}, a=0.025,
        ...                        E=0.1, floor="official")
        >>> law.mixture_curve([12.8e6, 25.6e6], ["top 10 %"]).value.round(4)
        array([0.9302, 0.8416])
        """
        from allometry.laws.fit import Fit

        law = cls(**options)
        pools = list(utility)
        if not set(pools) == set(half_life) == set(pool_size):
            raise ValueError("utility, half_life and pool_size must name the same pools")
        values = np.array([E, a, *utility.values(), *(half_life[pool] for pool in pools)], dtype=float)
        if not (np.isfinite(values).all() and E >= 0 and (values[1:] > 0).all()):
            raise ValueError("utilities, half-lives and a must be positive and finite, and E at least 0")
        law.form = PoolCurves(pools, [pool_size[pool] for pool in pools], law.kind, law.floor)
        law.fit_ = Fit(
            law.form, law.form.to_coordinates(values), float("nan"), [], np.empty((0, len(values))),
            Noise(0.0, 0.0, 1.0, 0), np.empty((0, 1 + len(pools))), np.empty(0), np.empty(0, dtype=np.intp),
        )  # fmt: skip
        law.measured_, law.warnings_ = {}, []
        return law

    # --- learning ----------------------------------------------------------------------------------------
    def fit(self, table: Any, *, resamples: int = 1000, random_state: int = 0, **options: Any) -> Self:
        """Learn from runs on pools; see the class for the columns, `Estimator.fit` for the rest.

        Raises
        ------
        ValueError
            A pool has fewer than three numbers of samples or was never repeated, its error rises with
            repetition, runs were trained in different ways, or the columns are not what they should be.
        """
        columns = self.read(table)
        sizes = self._sizes(columns)
        self._check(columns, sizes, options.get("bounds") or {})
        self.form = PoolCurves(list(sizes), list(sizes.values()), self.kind, self.floor)
        super().fit(table, resamples=resamples, random_state=random_state, **options)
        self.warnings_ += self._unsure(columns, sizes)
        return self

    def _sizes(self, columns: Mapping[str, Any]) -> dict[str, float]:
        """Samples in each pool that was trained on alone, in the order of the table."""
        if "pool_size" not in columns:
            raise ValueError("the utility law needs a column 'pool_size' (samples in the pool) to be fitted")
        sizes: dict[str, float] = {}
        unions = []
        for label, size in zip(map(str, columns["pool"]), columns["pool_size"], strict=True):
            if "+" in label:
                unions.append(label)
            elif sizes.setdefault(label, float(size)) != size:
                raise ValueError(f"pool {label} has two sizes, {sizes[label]:g} and {size:g}")
            if not size > 0:
                raise ValueError(f"pool_size must be positive; that of {label} is {size:g}")
        lacking = sorted({pool for union in unions for pool in union.split("+")} - set(sizes))
        if lacking or not sizes:
            raise ValueError(
                f"pool {lacking[0] if lacking else ''} was trained on in unions alone; what each pool is "
                "worth shows in runs on it alone"
            )
        return sizes

    def _check(
        self, columns: Mapping[str, Any], sizes: Mapping[str, float], bounds: Mapping[str, Any]
    ) -> None:
        for name in ("schedule", "batch", "learning_rate"):
            if name in columns and len(set(columns[name].tolist())) > 1:
                raise ValueError(
                    f"runs of different {name} do not compare: a pool could look better for how it was "
                    "trained; fit each by itself"
                )
        error = columns[self.target]
        if self.target == "error" and (error > 1).any():
            raise ValueError(f"error is a share of 1, and {error.max():g} is not; divide percentages by 100")
        if not (columns["samples"] > 0).all():
            raise ValueError(f"samples must be positive, not {columns['samples'].min():g}")
        label = columns["pool"].astype(str)
        for pool, size in sizes.items():
            here = label == pool
            seen = np.unique(columns["samples"][here])
            low, high = bounds.get(f"half_life[{pool}]", (0, 1))
            held = low == high
            if len(seen) < 3 - held:
                raise ValueError(
                    f"pool {pool} was measured after {len(seen)} numbers of samples; utility and half-life "
                    "need three"
                )
            if seen[-1] <= size and not held:
                raise ValueError(
                    f"pool {pool} was never repeated ({seen[-1] / size:.2g} epochs at most), so that its "
                    "half-life cannot be learned; measure several epochs, or fix it by "
                    f"bounds={{'half_life[{pool}]': (5, 5)}}"
                )
            _refuse_rise(pool, columns["samples"][here], error[here], self.rise)

    def _unsure(self, columns: Mapping[str, Any], sizes: Mapping[str, float]) -> list[str]:
        said = []
        label = columns["pool"].astype(str)
        for pool, size in sizes.items():
            epochs = columns["samples"][label == pool].max() / size
            if self.half_life[pool] > epochs:
                said.append(
                    f"The half-life of pool {pool} lies above the {epochs:.3g} epochs measured: repetition "
                    "is hardly visible yet."
                )
        if len(sizes) > 1 and max(sizes.values()) > 2 * min(sizes.values()):
            said.append("Pools differ in size by more than two; the theorem for unions is for equal pools.")
        return said

    # --- what was learned --------------------------------------------------------------------------------
    @property
    def pools(self) -> tuple[str, ...]:
        """Pools, in the order of the table."""
        self._fitted()
        return self._curves.pools

    @property
    def utility(self) -> dict[str, float]:
        """Utility of each pool: the paper's -b."""
        return {pool: self.params_[f"utility[{pool}]"] for pool in self.pools}

    @property
    def half_life(self) -> dict[str, float]:
        """Half-life of each pool, in its epochs."""
        return {pool: self.params_[f"half_life[{pool}]"] for pool in self.pools}

    @property
    def _curves(self) -> PoolCurves:
        assert isinstance(self.form, PoolCurves)
        return self.form

    def table(self, level: float = 0.9) -> pandas.DataFrame:
        """Parameters with intervals; the upper limit of a half-life is infinite where the data allow it."""
        frame = super().table(level)
        if "high" in frame:
            lives = frame.index.str.startswith("half_life")
            frame.loc[lives & (frame["high"] > 0.99 * LONGEST), "high"] = np.inf
        return frame

    def mixture_curve(
        self,
        samples: float | Sequence[float] | Array,
        pools: Sequence[str],
        weights: Sequence[float] | None = None,
        level: float = 0.9,
    ) -> Interval:
        """Error on a union of pools, as foretold from each pool alone (theorem 1).

        Parameters
        ----------
        samples : float or array (m,)
        pools : sequence of str
        weights : sequence of float, optional
            Share of the samples drawn from each pool; by default in proportion to their sizes.
        level : float

        Returns
        -------
        Interval
            Arrays (m,); limits are NaN where there are no resamples.
        """
        amounts = np.atleast_1d(np.asarray(samples, dtype=float))
        shares = self.shares(pools, weights)
        x = {"samples": amounts, "weights": np.broadcast_to(shares, (len(amounts), len(shares)))}
        fit = self._fitted()
        if len(fit.theta_draws):
            return fit.interval(x, level)
        nothing = np.full(len(amounts), np.nan)
        return Interval(fit.predict(x), nothing, nothing, level)

    def shares(self, pools: Sequence[str], weights: Sequence[float] | None = None) -> Array:
        """Shares ``(all pools,)`` of the samples: in proportion to sizes, or ``weights`` made to sum to one.

        Raises
        ------
        ValueError
            A pool is unknown or named twice, or weights are not positive.
        """
        names = [pools] if isinstance(pools, str) else [str(pool) for pool in pools]
        places = dict(zip(self.pools, range(len(self.pools)), strict=True))
        strange = [pool for pool in names if pool not in places]
        if strange or not names or len(set(names)) < len(names):
            raise ValueError(
                f"there is no pool {strange[0]!r}; there are {', '.join(places)}" if strange
                else f"name each pool of the union once, not {names}"
            )  # fmt: skip
        sizes = self._curves.sizes
        parts = np.asarray([sizes[places[p]] for p in names] if weights is None else weights, dtype=float)
        if parts.shape != (len(names),) or not (np.isfinite(parts) & (parts > 0)).all():
            raise ValueError(f"weights must be one positive number for each of {', '.join(names)}")
        out = np.zeros(len(places))
        out[[places[pool] for pool in names]] = parts / parts.sum()
        return out

    def design(self, columns: Mapping[str, Any]) -> Any:
        named, which = np.unique(columns["pool"].astype(str), return_inverse=True)
        each = np.stack([self._shares_of(label) for label in named])
        return {"samples": columns["samples"], "weights": each[which.ravel()]}

    def _shares_of(self, label: str) -> Array:
        names = [label] if label in self._curves.pools else label.split("+")
        places = [self._curves.pools.index(one) if one in self._curves.pools else -1 for one in names]
        if -1 in places:
            raise ValueError(
                f"pool {names[places.index(-1)]!r} was not learned; there are {', '.join(self._curves.pools)}"
            )
        out = np.zeros(len(self._curves.pools))
        out[places] = np.array(self._curves.sizes)[places]
        return np.asarray(out / out.sum())

    # --- showing -----------------------------------------------------------------------------------------
    def report(self) -> dict[str, pandas.DataFrame]:
        """What follows: the best union by budget, and what a fixed filter costs, over the measured range."""
        from allometry.laws.pool_plan import plan_pools

        if len(self.pools) < 2 or "samples" not in self.measured_:
            return {}
        seen = self.measured_["samples"]
        plan = plan_pools(self, np.geomspace(seen.min(), seen.max() * len(self.pools), 9))
        return {"best union": plan.best, "frontier": plan.frontier, "regret": plan.regret}

    def plot(self, ax: Axes | None = None, level: float = 0.9) -> Axes:
        """Errors against samples, pool by pool, and the law through them."""
        import matplotlib.pyplot as plt

        axes = plt.subplots()[1] if ax is None else ax
        fit = self._fitted()
        seen = self.measured_.get("samples", np.array(self._curves.sizes) * 0.5)
        grid = np.geomspace(seen.min(), seen.max() * 2, 80)
        labels = self.measured_["pool"].astype(str) if self.measured_ else np.array(self.pools)
        for i, label in enumerate(dict.fromkeys(labels.tolist())):
            x = {"samples": grid, "weights": np.broadcast_to(self._shares_of(label), (80, len(self.pools)))}
            axes.plot(grid, fit.predict(x), color=f"C{i}", label=label)
            if len(fit.theta_draws):
                band = fit.interval(x, level)
                axes.fill_between(grid, band.low, band.high, color=f"C{i}", alpha=0.2, linewidth=0)
            if self.measured_:
                here = labels == label
                axes.plot(seen[here], self.measured_[self.target][here], ".", color=f"C{i}")
        axes.set(xscale="log", yscale="log", xlabel="samples seen", ylabel=self.target)
        axes.legend()
        return axes


def _refuse_rise(pool: str, samples: Array, error: Array, most: float) -> None:
    """Stop where the error rises with repetition by more than its noise: no falling law can follow."""
    seen, which = np.unique(samples, return_inverse=True)
    count = np.bincount(which)
    logs = np.log(np.maximum(error, 1e-300))
    mean = np.bincount(which, logs) / count
    spread = ((logs - mean[which]) ** 2).sum() / max(len(logs) - len(seen), 1)
    lowest = int(mean.argmin())
    rise = mean[-1] - mean[lowest]
    noise = np.sqrt(spread * (1 / count[-1] + 1 / count[lowest]))
    if rise > max(most, _SURE * noise):
        curve = ", ".join(f"{np.exp(value):.3g} at {n:g}" for n, value in zip(seen, mean, strict=True))
        raise ValueError(
            f"the error on pool {pool} rises with repetition ({curve}): a law that only falls does not "
            "apply; stop earlier, clean the pool, or allow for it by rise="
        )
