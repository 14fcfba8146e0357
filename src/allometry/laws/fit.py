"""Fitting a law: one call from columns of scales and losses to parameters, predictions and their intervals.

The objective is that of Besiroglu et al., 2024 (arXiv:2404.10102) and Hoffmann et al., 2022: the *sum* over
points of Huber losses, ``r^2/2`` where ``|r| <= delta`` and ``delta (|r| - delta/2)`` beyond, of log
residuals r.

- Starts come from closed-form sub-problems, go down in ``delta`` together, and are pruned and merged on the
  way; what remains at the end is reported in `Fit.optima`.
- Resamples are further rows of the same batched solver, started at the optimum.
- What the data cannot tell is said in `Fit.warnings`, in sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from allometry.laws.allocate import Allocation, optimal_coordinates
from allometry.laws.forms import Form, get_form
from allometry.laws.search import invert, redraw, search
from allometry.laws.solver import Problem, solve
from allometry.laws.uncertainty import Interval, Noise, estimate_noise

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

__all__ = ["Fit", "Noise", "fit"]

Array = NDArray[np.float64]
_MANY_RUNS = 30  # from here on runs are drawn with replacement; below, new noise is drawn


@dataclass
class Fit:
    """A fitted law.  Made by `fit` or `Fit.from_dict`, not by hand.

    Attributes
    ----------
    form : Form
    theta : array (p,)
        Coordinates at the optimum (logarithms of coefficients; see `Form.from_coordinates`).
    objective : float
        Sum over points of weight times Huber loss at the optimum.
    optima : list of dict
        Every distinct optimum found whose objective is within 1 % of the best, best first: its parameters
        under ``"params"`` and its ``"objective"``.
    theta_draws : array (resamples, p)
        Coordinates refitted on resampled data.
    noise : Noise
        Between-run and within-run standard deviations of log residuals.
    warnings : list of str
        What the data cannot tell, one sentence each.
    """

    form: Form
    theta: Array
    objective: float
    optima: list[dict[str, Any]]
    theta_draws: Array
    noise: Noise
    log_x: Array
    log_y: Array
    run: NDArray[np.intp]
    warnings: list[str] = field(default_factory=list)
    resampling: str = "noise"
    random_state: int = 0

    # --- what was learned --------------------------------------------------------------------------------
    @property
    def params(self) -> dict[str, float]:
        """Parameters by name, in the caller's units."""
        values = self.form.from_coordinates(self.theta)
        return {name: float(value) for name, value in zip(self.form.names, values, strict=True)}

    @property
    def draws(self) -> Array:
        """Refitted parameters ``(resamples, p)``, in the order of ``form.names``."""
        return self.form.from_coordinates(self.theta_draws)

    @property
    def covariance(self) -> Array:
        """Covariance ``(p, p)`` of the draws in *coordinates*: logarithms of coefficients, others as is."""
        if len(self.theta_draws) < 2:
            return np.full((len(self.theta), len(self.theta)), np.nan)
        return np.atleast_2d(np.cov(self.theta_draws.T))

    @property
    def residuals(self) -> Array:
        """Log of observed over predicted loss ``(n,)``."""
        return self.log_y - self.form.log_prediction(self.theta[None], self.log_x)[0]

    # --- what it foretells -------------------------------------------------------------------------------
    def predict(self, x: Any) -> Array:
        """Predicted loss ``(n,)`` at columns of scales (a scalar column gives one value)."""
        return np.exp(self.form.log_prediction(self.theta[None], self.form.features(x))[0])

    def interval(self, x: Any, level: float = 0.9, kind: str = "mean") -> Interval:
        """Prediction with an interval, from the draws.

        Parameters
        ----------
        x : mapping or table of columns, or array (m, k)
        level : float
            Share of the interval, 0.9 by default.
        kind : {"mean", "prediction"}
            Of the law itself, or of one measurement of one new run: the latter adds the noise between and
            within runs, itself uncertain where runs are few.

        Returns
        -------
        Interval
            Floats where ``x`` is one point of scalars, else arrays (m,).
        """
        spread = self.spread(x, kind)
        value = self.form.log_prediction(self.theta[None], self.form.features(x))[0]
        low, high = np.exp(np.quantile(spread, [(1 - level) / 2, (1 + level) / 2], axis=0))
        if len(value) == 1 and _is_scalar(x):
            return Interval(float(np.exp(value[0])), float(low[0]), float(high[0]), level)
        return Interval(np.exp(value), low, high, level)

    def spread(self, x: Any, kind: str = "mean") -> Array:
        """Draws ``(many, m)`` of the log prediction, of which `interval` takes the quantiles."""
        if kind not in ("mean", "prediction"):
            raise ValueError(f"kind must be 'mean' or 'prediction', not {kind!r}")
        self._need_draws()
        draws = self.form.log_prediction(self.theta_draws, self.form.features(x))
        return self._add_noise(draws) if kind == "prediction" else draws

    def optimal(self, flops: float, level: float = 0.9, **fixed: float) -> Allocation:
        """Parameters and tokens that minimise the loss at ``flops`` = 6 N D, with intervals from the draws.

        ``fixed`` names further inputs of the form, such as ``unique_tokens``.
        """
        thetas = np.concatenate([self.theta[None], self.theta_draws])
        with np.errstate(over="ignore"):  # a draw with a vanishing term may want all parameters or none
            answers = np.exp(optimal_coordinates(self.form, thetas, flops, fixed=fixed))
        point = [float(value) for value in answers[:, 0]]
        intervals: list[Interval | None] = [None, None, None]
        if len(self.theta_draws):
            tails = [(1 - level) / 2, (1 + level) / 2]
            low, high = np.quantile(answers[:, 1:], tails, axis=1)
            intervals = [Interval(point[i], float(low[i]), float(high[i]), level) for i in range(3)]
        return Allocation(point[0], point[1], point[2], float(flops), *intervals)

    def required(self, loss: float, level: float = 0.9, **fixed: float) -> Interval:
        """The scale at which the law reaches ``loss``; infinite where it never does.

        All inputs of the form but one are given by name; the answer is the remaining one.

        Raises
        ------
        ValueError
            Not exactly one input is left open.
        """
        open_inputs = [name for name in self.form.inputs if name not in fixed]
        if len(open_inputs) != 1 or len(open_inputs) + len(fixed) != len(self.form.inputs):
            raise ValueError(
                f"give all but one of the inputs {self.form.inputs} by name; given were {sorted(fixed)}"
            )
        thetas = np.concatenate([self.theta[None], self.theta_draws])
        with np.errstate(over="ignore"):
            scale = np.exp(invert(self.form, thetas, np.log(loss), open_inputs[0], fixed, self.log_x))
        if not len(self.theta_draws):
            return Interval(float(scale[0]), float("nan"), float("nan"), level)
        low, high = np.quantile(scale[1:], [(1 - level) / 2, (1 + level) / 2], method="nearest")
        return Interval(float(scale[0]), float(low), float(high), level)

    def extrapolation(self, x: Any) -> dict[str, Array]:
        """Orders of magnitude ``(m,)`` by which each input lies outside the data; negative is below."""
        features = self.form.features(x)
        low, high = self.log_x.min(axis=0), self.log_x.max(axis=0)
        beyond = np.maximum(features - high, 0.0) + np.minimum(features - low, 0.0)
        beyond[np.abs(beyond) < 1e-12] = 0.0
        return {name: beyond[:, i] / np.log(10.0) for i, name in enumerate(self.form.inputs)}

    # --- tables, files, figures --------------------------------------------------------------------------
    def table(self, level: float = 0.9) -> pandas.DataFrame:
        """Parameters with intervals, one row each."""
        import pandas

        frame = pandas.DataFrame({"value": self.params})
        if len(self.theta_draws):
            low, high = np.quantile(self.draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
            frame["low"], frame["high"] = low, high
        frame.index.name = "parameter"
        return frame

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain lists and numbers that JSON can hold."""
        return {
            "form": self.form.name,
            "inputs": list(self.form.inputs),
            "params": self.params,
            "theta": self.theta.tolist(),
            "objective": self.objective,
            "optima": self.optima,
            "draws": self.theta_draws.tolist(),
            "noise": vars(self.noise) | {},
            "log_x": self.log_x.tolist(),
            "log_y": self.log_y.tolist(),
            "run": self.run.tolist(),
            "warnings": list(self.warnings),
            "resampling": self.resampling,
            "random_state": self.random_state,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Fit:
        """The fit that `to_dict` described."""
        form = get_form(stored["form"])
        form.inputs = tuple(stored["inputs"])
        theta = np.asarray(stored["theta"], dtype=float)
        return cls(
            form=form,
            theta=theta,
            objective=float(stored["objective"]),
            optima=[dict(optimum) for optimum in stored["optima"]],
            theta_draws=np.asarray(stored["draws"], dtype=float).reshape(-1, len(theta)),
            noise=Noise(**stored["noise"]),
            log_x=np.asarray(stored["log_x"], dtype=float).reshape(-1, len(form.inputs)),
            log_y=np.asarray(stored["log_y"], dtype=float),
            run=np.asarray(stored["run"], dtype=np.intp),
            warnings=list(stored["warnings"]),
            resampling=stored["resampling"],
            random_state=int(stored["random_state"]),
        )

    def plot(self, ax: Axes | None = None, level: float = 0.9) -> Axes:
        """Observed losses, and the law with its interval against its first input, others as observed."""
        import matplotlib.pyplot as plt

        axes = plt.subplots()[1] if ax is None else ax
        others, group = np.unique(self.log_x[:, 1:].round(9), axis=0, return_inverse=True)
        first = self.log_x[:, 0]
        grid = np.linspace(first.min() - 0.2, first.max() + 1.4, 60)
        shown = np.unique(np.linspace(0, len(others) - 1, min(len(others), 4)).astype(int))
        for i, which in enumerate(shown):
            rest = np.broadcast_to(others[which], (len(grid), others.shape[1]))
            columns = np.exp(np.concatenate([grid[:, None], rest], axis=1))
            names = [
                f"{n} = {np.exp(v):.3g}" for n, v in zip(self.form.inputs[1:], others[which], strict=True)
            ]
            axes.plot(columns[:, 0], self.predict(columns), color=f"C{i}", label=", ".join(names) or None)
            if len(self.theta_draws):
                band = self.interval(columns, level=level)
                axes.fill_between(columns[:, 0], band.low, band.high, color=f"C{i}", alpha=0.2, linewidth=0)
            here = group.ravel() == which
            axes.plot(np.exp(first[here]), np.exp(self.log_y[here]), ".", color=f"C{i}")
        axes.set(xscale="log", yscale="log", xlabel=self.form.inputs[0], ylabel="loss")
        if others.shape[1]:
            axes.legend()
        return axes

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value:.5g}" for name, value in self.params.items())
        return f"Fit({self.form.name}: {values}; objective {self.objective:.6g}, {len(self.log_y)} points)"

    def _need_draws(self) -> None:
        if not len(self.theta_draws):
            raise ValueError("this fit has no draws; fit with resamples > 0 to get intervals")

    def _add_noise(self, spread: Array) -> Array:
        generator = np.random.default_rng([self.random_state, 1])
        spread = np.tile(spread, (8, 1))  # the noise is cheap, so its own sampling error is made small
        if self.resampling == "pairs":
            residuals = self.residuals - np.median(self.residuals)
            grow = np.sqrt(len(residuals) / max(len(residuals) - len(self.theta), 1))
            return spread + grow * generator.choice(residuals, size=spread.shape)
        scale = np.sqrt(self.noise.degrees / generator.chisquare(self.noise.degrees, size=(len(spread), 1)))
        return spread + scale * self.noise.total * generator.standard_normal(spread.shape)


def fit(
    form: str | Form,
    x: Any,
    y: Any,
    *,
    run: Sequence[Any] | Array | None = None,
    weights: Sequence[float] | Array | None = None,
    spread: Sequence[float] | Array | None = None,
    loss: str = "huber",
    delta: float = 1e-3,
    space: str = "log",
    censored: Sequence[bool] | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    resamples: int = 1000,
    resampling: str = "auto",
    noise: Noise | None = None,
    random_state: int = 0,
) -> Any:
    """Fit a law to measured losses.

    Parameters
    ----------
    form : str or Form
        ``"power"``, ``"power-offset"``, ``"kaplan"``, ``"chinchilla"``, ``"data-constrained"``,
        ``"broken-power"``.
    x : mapping or table of columns (n,), or array (n, k)
        Scales, positive.  Columns are found by the names in ``form.inputs`` or their usual synonyms (N, D, C,
        U).
    y : array (n,) or (curves, n)
        Losses, positive.  A batch of curves shares ``x`` and is fitted at once; a list of fits comes back.
    run : sequence (n,), optional
        Which training run each point came from; resampling is by run.  By default each point is a run of its
        own.
    weights : array (n,), optional
        Weight of each point in the objective; a weight of 2 is the point given twice.
    spread : array (n,), optional
        Standard deviations of the points' noise relative to each other, such as larger ones for fewer
        samples: weights are divided by their squares, and noise is estimated and drawn in their proportion.
        Only their ratios matter; `Fit.noise` is that of a point of their geometric mean.
    loss, delta : {"huber", "squared"}, float
        Loss of a residual, and where Huber's turns from square to absolute.
    space : {"log", "linear"}
        Whether residuals are differences of log losses or of losses.
    censored : boolean sequence (n,), optional
        Points whose true loss is only known to be at least ``y``: predictions above cost nothing.
    bounds : mapping of name to (low, high), optional
        Bounds on natural parameters; equal ends hold a parameter fixed.
    resamples : int
        Number of refits behind the intervals (0 for none).
    resampling : {"auto", "pairs", "noise"}
        See `allometry.laws.uncertainty`.
    noise : Noise, optional
        Noise that is known, such as that of a law that fits better: a law that fits worse takes its own
        misfit for noise. By default it is estimated from this law's residuals.
    random_state : int
        Seed of the resampling; the same seed gives the same numbers.

    Returns
    -------
    Fit, or a list of them for a batch of curves

    Raises
    ------
    ValueError
        Losses or scales are not positive and finite, columns are wrong, or points are fewer than parameters.

    Examples
    --------
    >>> x = [1e6, 1e7, 1e8, 1e9]
    >>> fit("power-offset", x, [1.5 + 400 * n**-0.4 for n in x], resamples=0).params["alpha"].__round__(6)
    0.4
    """
    law = get_form(form)
    if isinstance(x, Mapping) and len(law.inputs) == 1 and len(x) == 1:
        law.inputs = (str(next(iter(x))),)
    features = law.features(x)
    log_y, single = _targets(y, features, law)
    labels = _runs(run, len(features))
    scatter = _scatter(spread, len(features))
    weight = _weights(weights, log_y) / scatter**2
    if loss not in ("huber", "squared") or space not in ("log", "linear"):
        raise ValueError(
            f"loss must be 'huber' or 'squared' and space 'log' or 'linear', not {loss!r}, {space!r}"
        )
    if not (np.isfinite(delta) and delta > 0):
        raise ValueError(f"delta must be positive, not {delta}")
    if resampling not in ("auto", "pairs", "noise"):
        raise ValueError(f"resampling must be 'auto', 'pairs' or 'noise', not {resampling!r}")
    mask = None
    if censored is not None:
        mask = np.asarray(censored, dtype=bool)
        if mask.shape != (len(features),):
            raise ValueError(f"censored must have one entry a point, {len(features)}, not shape {mask.shape}")
        if mask.all():
            raise ValueError(
                "every point is censored: a law needs losses that were measured, not only bounds"
            )
    lower, upper, matrix, offset, shift, target = _units(law, features, log_y, bounds, space)
    problem = Problem(
        law, features - shift, log_y - target, weight, lower, upper, loss, float(delta), space, mask
    )
    scaled = np.exp(2 * target) if space == "linear" else 1.0  # the objective in the caller's units
    if space == "linear" and target:
        problem = Problem(law, features - shift, log_y - target, weight, lower, upper, loss,
                          float(delta * np.exp(-target)), space, mask)  # fmt: skip
    best, optima = search(problem)
    curves = len(log_y)
    runs = int(labels.max()) + 1
    chosen = resampling if resampling != "auto" else ("pairs" if runs >= _MANY_RUNS else "noise")
    # Noise is taken from a least-squares companion: the traces in estimate_noise are those of its residuals,
    # while a nearly absolute loss leaves larger ones.
    companion = best
    if loss == "huber" and chosen == "noise":
        squared = replace(problem, loss="squared")
        companion = solve(squared, best.theta, np.arange(curves), iterations=30, tolerance=1e-8)
    jacobian = law.jacobian(companion.theta, problem.features)[1]
    held = (companion.theta <= lower) | (companion.theta >= upper)
    jacobian = np.where(held[..., None], 0.0, jacobian)
    residuals = problem.log_y - law.log_prediction(companion.theta, problem.features)
    held = (best.theta <= lower) | (best.theta >= upper)
    informative = weight.max(axis=0) > 0
    if mask is not None:
        informative = informative & ~mask
    between, within, degrees = estimate_noise(
        (residuals / scatter)[:, informative],
        (jacobian / scatter)[..., informative],
        np.unique(labels[informative], return_inverse=True)[1],
    )
    if noise is not None:
        between, within = (np.full(curves, value**2) for value in (noise.between, noise.within))
        degrees = np.full(curves, noise.degrees)
    drawn = redraw(
        problem, best.theta, labels, resamples, chosen, between, within, degrees, random_state, scatter
    )
    fits = []
    for c in range(curves):
        found = Noise(float(np.sqrt(between[c])), float(np.sqrt(within[c])), float(degrees[c]), runs)
        one = Fit(
            form=law,
            theta=matrix @ best.theta[c] + offset,
            objective=float(best.objective[c] * scaled),
            optima=[],
            theta_draws=drawn[c] @ matrix.T + offset,
            noise=found,
            log_x=features,
            log_y=log_y[c],
            run=labels,
            resampling=chosen,
            random_state=int(random_state),
        )
        for theta, objective in optima[c]:
            values = law.from_coordinates(matrix @ theta + offset)
            named = {name: float(value) for name, value in zip(law.names, values, strict=True)}
            one.optima.append({"params": named, "objective": float(objective * scaled)})
        one.warnings = _warnings(one, held[c], bounds)
        fits.append(one)
    return fits[0] if single else fits


def _is_scalar(x: Any) -> bool:
    if hasattr(x, "columns"):
        return False
    if isinstance(x, Mapping):
        return all(np.ndim(value) == 0 for value in x.values())
    return np.ndim(x) == 0


def _targets(y: Any, features: Array, form: Form) -> tuple[Array, bool]:
    values = np.asarray(y, dtype=float)
    single = values.ndim == 1
    values = np.atleast_2d(values)
    n, size = len(features), len(form.parameters)
    if values.ndim != 2 or values.shape[1] != n:
        raise ValueError(f"y has shape {np.shape(y)} but the scales have {n} points")
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        raise ValueError(
            f"losses must be positive and finite; found {values[bad][0]} "
            "(leave out, or censor, runs that diverged)"
        )
    if n < size:
        raise ValueError(
            f"the {form.name} form has {size} parameters and only {n} points were given; measure more"
        )
    return np.log(values), single


def _runs(run: Any, n: int) -> NDArray[np.intp]:
    if run is None:
        return np.arange(n)
    labels = np.asarray(run)
    if labels.shape != (n,):
        raise ValueError(f"run must name one run for each of the {n} points; its shape is {labels.shape}")
    return np.unique(labels, return_inverse=True)[1].astype(np.intp)


def _weights(weights: Any, log_y: Array) -> Array:
    if weights is None:
        return np.ones_like(log_y)
    values = np.asarray(weights, dtype=float)
    if (
        values.shape[-1:] != log_y.shape[-1:]
        or not (np.isfinite(values) & (values >= 0)).all()
        or not values.any()
    ):
        raise ValueError(f"weights must be one non-negative number for each of the {log_y.shape[1]} points")
    return np.array(np.broadcast_to(values, log_y.shape))


def _scatter(spread: Any, n: int) -> Array:
    if spread is None:
        return np.ones(n)
    values = np.asarray(spread, dtype=float)
    if values.shape != (n,) or not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"spread must be one positive number for each of the {n} points")
    return np.asarray(values / np.exp(np.log(values).mean()))


def _units(
    form: Form, features: Array, log_y: Array, bounds: Mapping[str, tuple[float, float]] | None, space: str
) -> tuple[Array, Array, Array, Array, Array, float]:
    """Bounds in scaled coordinates, the map back, and the units themselves."""
    lower, upper = form.bounds()
    shift = form.shifts(features)
    target = float(log_y.mean()) if form.scales_target else 0.0
    matrix, offset = form.units(shift, target)
    if bounds:
        wanted_low, wanted_high = np.full_like(lower, -np.inf), np.full_like(upper, np.inf)
        natural = np.array([[p.lower, p.upper] for p in form.parameters])
        mixed = False
        for name, (low, high) in bounds.items():
            if name not in form.names:
                raise ValueError(
                    f"bounds name {name!r}, which the {form.name} form lacks; it has {form.names}"
                )
            if not low <= high:
                raise ValueError(f"bounds of {name} must be (low, high) with low <= high, not {(low, high)}")
            i = form.names.index(name)
            natural[i] = low, high
            mixed |= bool((np.delete(matrix[i], i) != 0).any() or offset[i] != 0 or matrix[i, i] != 1)
        limits = form.to_coordinates(natural.T)
        changed = [form.names.index(name) for name in bounds]
        if (
            mixed
        ):  # a box on A is no box once A is measured at the centre of the data: stay in the caller's units
            extent = np.abs(features).max()
            shift, target = np.zeros_like(shift), 0.0
            matrix, offset = form.units(shift, 0.0)
            for i, parameter in enumerate(form.parameters):
                if parameter.log:
                    lower[i], upper[i] = lower[i] - 2 * extent, upper[i] + 2 * extent
        wanted_low[changed], wanted_high[changed] = limits[0, changed], limits[1, changed]
        lower = np.where(np.isin(np.arange(len(lower)), changed), wanted_low, lower)
        upper = np.where(np.isin(np.arange(len(upper)), changed), wanted_high, upper)
    return lower, upper, matrix, offset, shift, target


def _apart(one: Fit, other: Mapping[str, float]) -> bool:
    """Whether another optimum foretells something else: 2 % at ten times the largest scales measured."""
    far = one.log_x.max(axis=0, keepdims=True) + np.log(10.0)
    theta = one.form.to_coordinates(np.array([list(one.params.values()), list(other.values())]))
    here, there = one.form.log_prediction(theta, far)[:, 0]
    return bool(abs(here - there) > 0.02)


def _warnings(
    one: Fit, held: NDArray[np.bool_], bounds: Mapping[str, tuple[float, float]] | None
) -> list[str]:
    said: list[str] = []
    names = one.form.names
    for i, name in enumerate(one.form.inputs):
        values = len(np.unique(one.log_x[:, i].round(9)))
        if values == 1:
            said.append(f"All points have one value of {name}: how the loss depends on it cannot be learned.")
        elif values < 3:
            said.append(
                f"Only {values} values of {name} were measured; the curvature in it is not determined."
            )
    size = len(names)
    if one.noise.runs < size:
        said.append(f"{one.noise.runs} runs for {size} parameters: intervals rest on the shape of each run.")
    fixed = {name for name, (low, high) in (bounds or {}).items() if low == high}
    for i in one.form.exponents:
        if held[i] and names[i] not in fixed:
            said.append(f"The exponent {names[i]} = {one.params[names[i]]:.3g} lies at its bound.")
    floor = one.form.floor
    if floor is not None and names[floor] not in fixed:
        scale = float(np.exp(one.log_y.min()))
        low = np.quantile(one.draws[:, floor], 0.05) if len(one.theta_draws) else one.params[names[floor]]
        if low <= 1e-6 * scale:
            said.append("The interval of the floor E reaches zero: the data do not show where the loss ends.")
    apart = [o for o in one.optima[1:] if _apart(one, o["params"])]
    if apart:
        said.append(
            f"{1 + len(apart)} clearly different optima lie within 1 % of the best objective (see optima)."
        )
    return said
