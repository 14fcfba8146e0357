"""Error against the number of training samples: its power law, what it foretells, what a target needs.

Joel Hestness et al., "Deep Learning Scaling is Predictable, Empirically", 2017. arXiv:1712.00409.  One model
of fixed size follows error = E + A m^-alpha, the best over model sizes error = A m^-alpha (the paper writes
beta = -alpha); both only between two other regions, which are cut off before anything is fitted.

- Seeds that share nested samples are resampled whole: the luck of a seed moves its curve at all sizes.
- Small samples scatter more; where that is clear, points count and are drawn by their own noise.
- Of the two forms the one that foretells the largest sizes better is kept, never the one with the better R².
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from allometry.laws.curve_regions import FLOOR, POWER, SMALL, Regions, noise_trend, regions
from allometry.laws.forms import Form, PowerLaw, PowerLawOffset, get_form
from allometry.laws.law import Law
from allometry.laws.uncertainty import Interval

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

__all__ = ["LearningCurve"]

Array = NDArray[np.float64]
_FORMS = ("auto", "power", "power-offset", "bounded-power")
_FEW = 4  # sizes below which a floor cannot be told from a slope
_FAR = 10.0  # times the largest size; beyond it every prediction comes with a warning


@dataclass(frozen=True)
class CurveData:
    """A learning curve as it was measured: errors ``(sizes, seeds)``, NaN where a seed was not run.

    ``seeds`` is empty where rows of one size have no pairs.
    """

    sizes: Array
    errors: Array
    seeds: tuple[Any, ...]
    regions: Regions


class LearningCurve(Law):
    """The law of a learning curve.

    Parameters
    ----------
    sizes : array (n,), optional
        Training samples (or tokens, or hours), ascending; without them `fit` takes a table.
    errors : array (n,) or (n, seeds), optional
        Error, loss or any positive measure that is about linear in it; columns are seeds that share samples.
    best_guess : float, optional
        Error of the best constant prediction: sizes within two standard errors of it are left out.
    form : {"auto", "power", "power-offset", "bounded-power"}
        ``"power"`` for the best over model sizes, ``"power-offset"`` for one model; ``"auto"`` takes the one
        that foretells the largest sizes better.  ``"bounded-power"`` covers all three regions.
    test_samples : int, optional
        Size of the test set.  An error of zero then becomes its 95 % upper limit of Clopper and Pearson.
    reach : float
        Predictions further than so many times the largest size are refused.

    Attributes
    ----------
    regions_ : Regions
    used_ : boolean array
        Points that were fitted.

    Raises
    ------
    ValueError
        In `fit`: errors are not positive, a size has one seed twice, or the curve shows no power law yet.

    Examples
    --------
    >>> m = 1000 * 2.0 ** np.arange(8)
    >>> curve = LearningCurve(m, 3 * m**-0.3).fit(resamples=0)
    >>> curve.params_["alpha"].__round__(4), round(curve.required_data(0.1).value)
    (0.3, 83895)
    """

    name = "learning-curve"
    columns: ClassVar[Mapping[str, str]] = {"samples": "training samples, tokens or hours, positive"}
    optional: ClassVar[Mapping[str, str]] = {
        "seed": "which seed; its samples are nested and resampled together"
    }
    labels = ("seed",)
    target = "error"
    synonyms: ClassVar = {
        "samples": ("m", "size", "sizes", "n_samples", "train_size", "size_train", "training_samples",
                    "examples", "seen_examples", "tokens", "hours", "shard"),
        "error": ("loss", "test_error", "test_loss", "validation_error", "valid_loss", "err"),
    }  # fmt: skip
    scale = "samples"
    # curves have a dozen points: a nearly absolute loss would run the law through three of them
    fit_options: ClassVar[Mapping[str, Any]] = {"loss": "squared"}

    def __init__(
        self,
        sizes: ArrayLike | None = None,
        errors: ArrayLike | None = None,
        *,
        best_guess: float | None = None,
        form: str = "auto",
        test_samples: int | None = None,
        reach: float = 100.0,
    ) -> None:
        if form not in _FORMS:
            raise ValueError(f"form must be one of {', '.join(_FORMS)}, not {form!r}")
        self.sizes, self.errors, self.best_guess = sizes, errors, best_guess
        self.wanted, self.test_samples, self.reach = form, test_samples, float(reach)

    def fit(
        self, table: Any = None, *, form: str | None = None, resamples: int = 1000, random_state: int = 0,
        **options: Any,
    ) -> Self:  # fmt: skip
        """Find the power-law region and fit it.

        Parameters
        ----------
        table : mapping or DataFrame of columns, optional
            ``samples``, ``error`` and, if it likes, ``seed``; by default what the constructor was given.
        form : str, optional
            In place of the constructor's.
        resamples, random_state, **options
            As in `allometry.laws.fit`.
        """
        said: list[str] = []
        columns = self._columns(table, said)
        sizes, matrix, row, seed, _ = _matrix(columns)
        found = regions(sizes, matrix, best_guess=self.best_guess)
        wanted = form or self.wanted
        chosen = self._form(wanted, found, matrix, said)
        kept = np.ones(len(sizes), dtype=bool)
        if chosen.name != "bounded-power":
            kept[: found.start] = False
            self._check_region(found, matrix)
            if chosen.name == "power":
                kept[found.stop :] = False
        self.used_, self.regions_, self.measured_ = kept[row], found, columns
        self.form, u = chosen, np.log(sizes)
        self._trend = noise_trend(u[kept], np.log(matrix[kept])) if np.isfinite(matrix).all() else 0.0
        self._centre = float(np.log(columns["samples"][self.used_]).mean())
        options = {**self.fit_options, "run": seed[self.used_], **options}
        if self.best_guess is not None and chosen.name == "bounded-power":
            options.setdefault("bounds", {"E0": (self.best_guess, self.best_guess)})
        from allometry.laws.fit import fit

        self.fit_ = fit(
            chosen, {"samples": columns["samples"][self.used_]}, columns[self.target][self.used_],
            spread=self._noise_at(columns["samples"][self.used_]), resamples=resamples,
            random_state=random_state, **options,
        )  # fmt: skip
        self.warnings_ = [*said, *self._told(chosen, found), *self.fit_.warnings]
        return self

    def read(self, table: Any, *, target: bool = True) -> dict[str, Any]:
        """As `Estimator.read`; a number or an array stands for a column ``samples``."""
        if not (hasattr(table, "columns") or hasattr(table, "table") or isinstance(table, Mapping)):
            table = {"samples": np.asarray(table, dtype=float)}
        return super().read(table, target=target)

    def data(self) -> CurveData:
        """What was measured, by size and seed, with its regions: what was fitted, or given at first."""
        columns = getattr(self, "measured_", None) or self._columns(None, [])
        sizes, matrix, _, _, seeds = _matrix(columns)
        found = regions(sizes, matrix, best_guess=self.best_guess)
        return CurveData(sizes, matrix, seeds, found)

    # --- what it foretells -------------------------------------------------------------------------------
    def predict(self, table: Any) -> Array:
        """Error ``(m,)`` at sizes, given as an array or as a table with a column ``samples``."""
        return super().predict(self._within_reach(table))

    def interval(self, table: Any, level: float = 0.9, kind: str = "mean") -> Interval:
        """As `predict`, with limits; ``kind="prediction"`` for one new seed, with the noise of its size."""
        places = self._within_reach(table)
        if kind != "prediction" or self._trend == 0.0:
            return super().interval(places, level, kind)
        mean = np.tile(self._fitted().spread(places, "mean"), (8, 1))
        noisy = self._fitted().spread(places, "prediction")
        draws = mean + (noisy - mean)[-len(mean) :] * self._noise_at(places["samples"])
        low, high = np.exp(np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0))
        return Interval(super().predict(places), low, high, level)

    def required_data(self, error: float, level: float = 0.9) -> Interval:
        """Samples at which the law reaches an error; infinite where its floor lies above.

        Raises
        ------
        ValueError
            The error is not positive.
        """
        if not (np.isfinite(error) and error > 0):
            raise ValueError(f"the error to reach must be positive, not {error}")
        return self._fitted().required(error, level)

    def report(self) -> dict[str, pandas.DataFrame]:
        """The regions, a row a size."""
        self._fitted()
        return {"regions": self.regions_.table.set_index("samples")}

    def plot(self, ax: Axes | None = None, level: float = 0.9) -> Axes:
        """Points by region, the law with its interval, the best guess."""
        import matplotlib.pyplot as plt

        axes = plt.subplots()[1] if ax is None else ax
        held = np.asarray(self._fitted().log_x)[:, 0]
        at = np.exp(np.linspace(held.min(), held.max() + np.log(4.0), 60))
        axes.plot(at, super().predict(at), color="C0", label=self.form.name)
        if len(self.fit_.theta_draws):
            band = super().interval(at, level)
            axes.fill_between(at, band.low, band.high, color="C0", alpha=0.2, linewidth=0)
        region = np.asarray(self.regions_.names)[
            np.searchsorted(self.regions_.sizes, self.measured_["samples"])
        ]
        for name, mark in ((SMALL, "x"), (POWER, "o"), (FLOOR, "s")):
            here = region == name
            if here.any():
                axes.plot(
                    self.measured_["samples"][here], self.measured_[self.target][here], mark, color="C1",
                    markersize=4, label=name,
                )  # fmt: skip
        if self.best_guess is not None:
            axes.axhline(self.best_guess, color="grey", linestyle=":", label="best guess")
        axes.set(xscale="log", yscale="log", xlabel="training samples", ylabel="error")
        axes.legend()
        return axes

    # --- steps -------------------------------------------------------------------------------------------
    def _columns(self, table: Any, said: list[str]) -> dict[str, Any]:
        columns = self.read(self._own_table() if table is None else table)
        columns[self.target] = self._without_zeros(columns[self.target], said)
        return columns

    def _own_table(self) -> dict[str, Any]:
        if self.sizes is None or self.errors is None:
            raise ValueError("a learning curve needs sizes and errors, or a table given to fit")
        sizes, errors = np.asarray(self.sizes, dtype=float), np.asarray(self.errors, dtype=float)
        errors = errors[:, None] if errors.ndim == 1 else errors
        if sizes.ndim != 1 or errors.ndim != 2 or len(errors) != len(sizes):
            raise ValueError(
                f"sizes must be (n,) and errors (n,) or (n, seeds); they are {sizes.shape} and "
                f"{np.shape(self.errors)}"
            )
        seeds = errors.shape[1]
        kept = ~np.isnan(errors.ravel())
        return {
            "samples": np.repeat(sizes, seeds)[kept], "error": errors.ravel()[kept],
            "seed": np.tile(np.arange(seeds), len(sizes))[kept],
        }  # fmt: skip

    def _without_zeros(self, errors: Array, said: list[str]) -> Array:
        zero = errors == 0
        if not zero.any() or self.test_samples is None:
            return errors  # `regions` refuses them
        limit = 1.0 - 0.05 ** (1.0 / self.test_samples)
        said.append(
            f"{int(zero.sum())} errors of zero stand at {limit:.3g}, the upper limit that no mistake among "
            f"{self.test_samples} test samples leaves."
        )
        return np.where(zero, limit, errors)

    def _form(self, wanted: str, found: Regions, matrix: Array, said: list[str]) -> Form:
        after = len(found.sizes) - found.start
        if wanted == "bounded-power":
            return _with_input(wanted)
        if after < _FEW and wanted != "power":
            said.append(f"With {after} sizes a floor cannot be told from a slope: the law has none.")
            return PowerLaw("samples")
        if wanted != "auto":
            return _with_input(wanted)
        if found.stop < len(found.sizes):
            return PowerLawOffset("samples")  # a floor was seen
        from allometry.laws.compare import compare_forms

        rest = slice(found.start, None)
        mean = np.exp(np.nanmean(np.log(matrix[rest]), axis=1))
        forms = [PowerLaw("samples"), PowerLawOffset("samples")]
        table = compare_forms(
            forms, {"samples": found.sizes[rest]}, mean, hold_out=2 if after >= 7 else 1, loss="squared"
        )
        exact = table["held_out_error"].iloc[0] < 1e-8  # rounding decides nothing
        return forms[0] if exact or table["chosen"].iloc[0] else forms[1]

    def _check_region(self, found: Regions, matrix: Array) -> None:
        """Refuse an exponent where the curve does not yet fall as a power law."""
        inside = slice(found.start, found.stop)
        u = np.log(found.sizes[inside])
        steepest = "no two sizes"
        if len(found.slopes):
            place = int(np.nanargmin(found.slopes))
            error = found.slope_errors[place]
            steepest = f"{found.slopes[place]:.3g}" + ("" if np.isnan(error) else f" ± {error:.2g}")
        refusal = f"the curve is not yet in its power-law region (steepest local slope {steepest})"
        if len(u) < 3:
            raise ValueError(
                f"{refusal}: {len(u)} sizes are left of it, three are needed; measure larger ones"
            )
        mean = np.nanmean(np.log(matrix[inside]), axis=1)
        centred = u - u.mean()
        slope = centred @ mean / (centred @ centred)
        residual = mean - mean.mean() - slope * centred
        error = np.sqrt(residual @ residual / (len(u) - 2) / (centred @ centred))
        from scipy.special import stdtrit

        if slope + stdtrit(len(u) - 2, 0.95) * error >= 0:
            raise ValueError(
                f"{refusal}: over all of it the slope is {slope:.3g} ± {error:.2g}, which may be none; "
                "measure larger samples or more seeds"
            )

    def _told(self, chosen: Form, found: Regions) -> list[str]:
        said = []
        if chosen.name != "bounded-power":
            for name, count in ((SMALL, found.start), (FLOOR, len(found.sizes) - found.stop)):
                if count and (name == SMALL or chosen.name == "power"):
                    said.append(f"{count} sizes of the {name} region were left out.")
        if self._trend:
            said.append(f"Noise changes with size as m^{self._trend:.2g}; points were weighted by their own.")
        return said

    def _noise_at(self, samples: Array) -> Array:
        """Noise of a size relative to that of the fitted points' geometric mean."""
        return np.asarray(np.exp(self._trend * (np.log(samples) - self._centre)))

    def _within_reach(self, table: Any) -> dict[str, Any]:
        places = self.read(table, target=False)
        largest = float(self._fitted_sizes().max())
        far = float(np.max(places["samples"])) / largest
        if far > self.reach:
            raise ValueError(
                f"{np.max(places['samples']):.3g} samples are {far:.3g} times the largest size measured, "
                f"more than reach={self.reach:g} allows; give a larger reach to extrapolate so far"
            )
        if far > _FAR:
            warnings.warn(
                f"{far:.3g} times the largest size measured: the interval holds only if the law does so far",
                stacklevel=3,
            )
        return {"samples": places["samples"]}

    def _fitted_sizes(self) -> Array:
        self._fitted()
        return self.regions_.sizes


def _with_input(name: str) -> Form:
    form = get_form(name)
    form.inputs = ("samples",)
    return form


def _matrix(
    columns: Mapping[str, Any],
) -> tuple[Array, Array, NDArray[np.intp], NDArray[np.intp], tuple[Any, ...]]:
    """Sizes (n,), errors (n, seeds), each point's row and unit of resampling, and the seeds by column.

    Where runs are named they are seeds; else rows of one size are replicates without pairs.
    """
    sizes, row = np.unique(columns["samples"], return_inverse=True)
    label = columns.get("seed", columns.get("run"))
    seeds: tuple[Any, ...] = ()
    if label is None or len(np.unique(label)) == len(label):
        order = np.argsort(row, kind="stable")
        column = np.empty(len(row), dtype=np.intp)
        column[order] = np.arange(len(row)) - np.searchsorted(row[order], row[order])
        points = np.arange(len(row))
    else:
        names, column = np.unique(label, return_inverse=True)
        points, seeds = column, tuple(names.tolist())
    matrix = np.full((len(sizes), int(column.max()) + 1), np.nan)
    if len(np.unique(row * matrix.shape[1] + column)) < len(row):
        twice = np.bincount(row * matrix.shape[1] + column).argmax() // matrix.shape[1]
        raise ValueError(f"one seed has two errors at size {sizes[twice]:g}; keep one of them")
    matrix[row, column] = columns["error"]
    if matrix.shape[1] == 1:
        points = np.arange(len(row))
    return sizes, matrix, row, points, seeds
