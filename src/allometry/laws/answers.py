"""From a table of runs to an answer: which law the runs allow, what it foretells, and how far to trust it.

Runs decide what can be asked.  Where parameters and tokens both vary, a law of both; where only one of them
does, a law of that one; where they move together (every model at twenty tokens a parameter, say) their parts
cannot be told apart (Hoffmann et al., 2022, arXiv:2203.15556, vary them separately for that reason), and only
a law of compute is honest.  What the runs cannot tell is refused in a sentence, not guessed.

Several forms may pass through the same points and part beyond them, so the forecast is the `Average` of all
that foretell the largest runs from the rest within a factor of the best; each form's own is shown beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from allometry.laws.average import Average
from allometry.laws.compare import Backtest, backtest, compare_forms
from allometry.laws.fit import Fit, fit
from allometry.laws.forms import Form, get_form
from allometry.laws.ruler import ruled
from allometry.laws.runs import SCALES, Runs

if TYPE_CHECKING:
    import pandas

    from allometry.laws.allocate import Allocation

__all__ = ["Answer", "answer"]

_ONE_INPUT = ("power", "power-offset", "broken-power")
_SHORT = {"n": "params", "d": "tokens", "c": "flops", "u": "unique_tokens", "compute": "flops",
          "parameters": "params"}  # fmt: skip
_SPARE = 5  # records a parameter from which on robustness is worth its price in efficiency
_MARGIN = 3.0  # forms whose held-out error is over so many times the least are dropped
_POINTS = 2000  # beyond this many a law gains nothing and its resamples take minutes


@dataclass
class Answer:
    """A law fitted to runs, with what stands beside every forecast.  Made by `answer`.

    Attributes
    ----------
    fits : list of Fit
        The forms that the forecast averages, the preferred one first.
    points : DataFrame
        The records that the law was fitted to, with ``predicted`` and ``residual`` (log of observed over
        predicted).
    forecasts : list of dict
        ``given``, ``at``, ``value``, ``mean`` and ``prediction`` (low, high), ``beyond`` (orders of magnitude
        outside the data, by input), ``each`` (the forms one by one).
    optima : dict of Allocation
        The best split of the budget by each form; empty where none was asked for.
    backtest : dict
        What the law fitted without the largest runs said of them, and under ``ruler`` what a straight line
        did (`allometry.laws.ruler`); ``reason`` where that is not possible.
    choice : DataFrame or None
        The forms compared, where the law was not given.
    warnings : list of str
    """

    runs: Runs
    points: pandas.DataFrame
    fits: list[Fit]
    level: float
    forecasts: list[dict[str, Any]] = field(default_factory=list)
    optima: dict[str, Allocation] = field(default_factory=dict)
    backtest: dict[str, Any] = field(default_factory=dict)
    choice: pandas.DataFrame | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def fit(self) -> Fit:
        """The preferred form's fit."""
        return self.fits[0]

    @property
    def law(self) -> Average:
        """What foretells: the average of the forms."""
        return Average(self.fits)

    def residuals(self) -> dict[str, Any]:
        """Root mean square and largest log residual, and the run it belongs to."""
        values = self.points["residual"].to_numpy()
        worst = int(np.argmax(np.abs(values)))
        return {
            "points": len(values), "runs": int(self.points["run"].nunique()),
            "root_mean_square": float(np.sqrt(np.mean(values**2))), "largest": float(values[worst]),
            "largest_run": str(self.points["run"].iloc[worst]),
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Everything but the resamples, as plain lists and numbers."""
        optima = {
            name: {
                "flops": best.flops, "params": best.params, "tokens": best.tokens, "loss": best.loss,
                "tokens_per_param": best.tokens_per_param,
                **{part: None if interval is None else [interval.low, interval.high] for part, interval in (
                    ("params_interval", best.params_interval), ("tokens_interval", best.tokens_interval),
                    ("loss_interval", best.loss_interval))},
            }
            for name, best in self.optima.items()
        }  # fmt: skip
        return {
            "laws": [one.form.name for one in self.fits],
            "inputs": list(self.fit.form.inputs),
            "level": self.level,
            "parameters": {one.form.name: one.table(self.level).to_dict("index") for one in self.fits},
            "forecasts": self.forecasts,
            "optima": optima,
            "residuals": self.residuals(),
            "noise": {"between": self.fit.noise.between, "within": self.fit.noise.within},
            "backtest": self.backtest,
            "choice": None if self.choice is None else self.choice.reset_index().to_dict("records"),
            "warnings": self.warnings,
            "columns": self.runs.columns,
            "notes": self.runs.notes,
            "left_out": self.runs.left_out.astype(object).where(self.runs.left_out.notna(), None).to_dict(
                "records"),
        }  # fmt: skip


def answer(
    runs: Runs,
    *,
    law: str = "auto",
    predict: Sequence[Mapping[str, float]] = (),
    optimal_for: float | None = None,
    pick: str = "last",
    level: float = 0.9,
    resamples: int = 1000,
    random_state: int = 0,
) -> Answer:
    """Fit the law that runs allow and say what it foretells.

    Parameters
    ----------
    runs : Runs
        From `read_runs`.
    law : str
        The name of a form, or ``"auto"``: of the forms that the columns allow, the one that foretells the
        largest runs best (`compare_forms`).
    predict : sequence of mappings
        Places to foretell, ``{"params": 7e9, "tokens": 2e12}``; flops may stand for one of the two.
    optimal_for : float, optional
        Training FLOPs to divide between parameters and tokens.
    pick : {"last", "best", "all"}
        See `Runs.final`.
    level : float
        Share of the intervals.
    resamples, random_state
        See `fit`.

    Raises
    ------
    ValueError
        The runs cannot tell what is asked: too few, one size only, no scale, or a place along an axis that
        was not varied.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from allometry.laws.runs import read_runs
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "runs.csv"
    >>> rows = [f"{10**k},{1 + 9 * 10 ** (-0.1 * k)}" for k in range(5, 11)]
    >>> _ = path.write_text("\\n".join(["N,loss", *rows]))
    >>> answer(read_runs(path), predict=[{"params": 1e11}], resamples=50).forecasts[0]["value"].__round__(4)
    1.7149
    """
    if not (math.isfinite(level) and 0 < level < 1):
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    # Trial points of a fit to odd data may overflow and are dropped by the solver; what comes out is checked.
    with np.errstate(all="ignore"):
        return _answer(runs, law, predict, optimal_for, pick, level, resamples, random_state)


def _answer(
    runs: Runs,
    law: str,
    predict: Sequence[Mapping[str, float]],
    optimal_for: float | None,
    pick: str,
    level: float,
    resamples: int,
    random_state: int,
) -> Answer:
    # A table's order means nothing, so it may not choose which draw of the noise falls on which point.
    by = [name for name in (*SCALES, "unique_tokens", "loss", "run") if name in runs.table]
    points = runs.final(pick).sort_values(by, kind="stable")
    said = list(runs.notes)
    if pick == "all" and runs.logs:
        said.append("All records of each log are used: on the way the learning rate had not decayed.")
    if len(points) > _POINTS:
        said.append(f"Of {len(points):,} records the law uses {_POINTS:,}, evenly by loss.")
        order = np.argsort(points["loss"].to_numpy(), kind="stable")
        points = points.iloc[np.sort(order[np.linspace(0, len(points) - 1, _POINTS).astype(int)])]
    inputs = _inputs(points, said)
    forms = _forms(law, inputs, points)
    inputs = forms[0].inputs
    x = {name: points[name].to_numpy(float) for name in sorted({n for f in forms for n in f.inputs})}
    y, run = points["loss"].to_numpy(float), points["run"].to_numpy()
    choice = None
    if len(forms) > 1:
        count = _rungs(forms[0], points, forms)
        choice = compare_forms(forms, x, y, run=run, hold_out=count, loss=_loss(forms, points))
        for form in forms:
            if not _enough(form, points[~_largest(forms[0], points, count)]):
                choice.loc[form.name, ["held_out_error", "held_out_bias"]] = np.nan
        forms = _kept(forms, choice)
    loss = _loss(forms, points)
    fits = [fit(form, {name: x[name] for name in form.inputs}, y, run=run, resamples=resamples, loss=loss,
                random_state=random_state) for form in forms]  # fmt: skip
    predicted = Average(fits).predict(x)
    points = points.assign(predicted=predicted, residual=np.log(y / predicted))
    in_order = points.sort_index().reset_index(drop=True)
    out = Answer(runs, in_order, fits, level, choice=choice, warnings=[*fits[0].warnings, *said])
    for place in predict:
        out.forecasts.append(_forecast(out, place))
    if optimal_for is not None:
        out.optima = _optima(out, optimal_for)
    out.backtest = _backtest(out, points, x, y, random_state)
    return out


def _kept(forms: list[Form], choice: pandas.DataFrame) -> list[Form]:
    """The forms to average, the preferred one first; the table's column ``chosen`` is set accordingly.

    A form that the smaller runs could not identify was not judged, and stays: nothing speaks against it.
    """
    errors = choice["held_out_error"]
    preferred = choice.index[choice["chosen"]][0]
    stay = (errors <= _MARGIN * errors.min()) | errors.isna() | (choice.index == preferred)
    choice["chosen"] = stay
    return sorted((form for form in forms if stay[form.name]), key=lambda form: form.name != preferred)


def _loss(forms: Sequence[Form], points: pandas.DataFrame) -> str:
    """Robust where records abound, least squares where each is needed.

    The Huber loss with its usual 1e-3 is nearly an absolute one: a law of five parameters then runs through
    five of its records, which is a poor use of fifteen.
    """
    parameters = max(len(form.names) for form in forms)
    return "huber" if len(points) >= _SPARE * parameters else "squared"


def _inputs(points: pandas.DataFrame, said: list[str]) -> tuple[str, ...]:
    """The scales that the runs vary, hence what a law may be about."""
    have = [name for name in SCALES if name in points]
    if not have:
        found = [name for name in points if name not in ("file", "row")]
        raise ValueError(
            "no column of parameters, tokens or FLOPs was recognised beside the loss; found were "
            f"{', '.join(found)}. Name one (--columns tokens=step) or give it (--set 'RUN-*:params=70M')"
        )
    distinct = {name: len(np.unique(np.log(points[name].to_numpy(float)).round(6))) for name in have}
    varied = [name for name in have if distinct[name] > 1]
    if len(points) < 3:
        raise ValueError(f"{len(points)} usable record{'s' * (len(points) != 1)}: a law needs three or more")
    if not varied:
        values = ", ".join(f"{name} = {points[name].iloc[0]:.4g}" for name in have)
        raise ValueError(f"all {len(points)} records have one size ({values}): a law needs several")
    if "params" in varied and "tokens" in varied:
        log_n, log_d = np.log(points["params"].to_numpy(float)), np.log(points["tokens"].to_numpy(float))
        slope, level = np.polyfit(log_n, log_d, 1)
        if np.std(log_d - slope * log_n - level) < 0.02:
            ratio = np.exp(np.mean(log_d - log_n))
            told = (
                f"tokens = {ratio:.3g} × params" if abs(slope - 1) < 0.05 else f"tokens ~ params^{slope:.2g}"
            )
            said.append(
                f"Parameters and tokens move together ({told}): their parts cannot be told apart, so the law "
                "is one of compute along that line."
            )
            return ("flops",)
        return ("params", "tokens")
    one = next((name for name in ("params", "tokens") if name in varied), "flops")
    other = {"params": "tokens", "tokens": "params"}.get(one)
    if other is not None:
        held = f"{other} = {points[other].iloc[0]:.4g} in all" if other in have else f"no {other} are known"
        said.append(f"Only {one} vary ({held}): the law is one of {one} alone.")
    return (one,)


def _forms(law: str, inputs: tuple[str, ...], points: pandas.DataFrame) -> list[Form]:
    """The forms to choose from, each with more points than parameters."""
    repeated = {"tokens", "unique_tokens"} <= set(points) and bool(
        points["unique_tokens"].notna().all() and (points["tokens"] > 1.05 * points["unique_tokens"]).any()
    )
    if law == "auto":
        if len(inputs) == 2:
            names = ["chinchilla", "kaplan-offset", "kaplan", *(["data-constrained"] if repeated else [])]
        else:
            names = ["power", "power-offset"]
        forms = [_with_input(name, inputs) for name in names]
        enough = [form for form in forms if _enough(form, points)]
        if not enough:
            least = min(len(form.names) for form in forms)
            raise ValueError(
                f"{len(points)} records for a law of {' and '.join(inputs)}: at least {least + 1} are needed"
            )
        return enough
    form = _with_input(law, inputs)
    if law in _ONE_INPUT and len(inputs) == 2:
        form = _with_input(law, ("flops",))
    missing = [name for name in form.inputs if name not in points]
    if missing:
        raise ValueError(f"the {law} law needs {' and '.join(missing)}, which the runs do not tell")
    if len(form.inputs) > 1 and len(inputs) == 1:
        raise ValueError(
            f"the {law} law needs params and tokens that vary apart; these runs allow a law of {inputs[0]} "
            "only (power, power-offset)"
        )
    if len(points) <= len(form.names):
        raise ValueError(
            f"{len(points)} records for the {len(form.names)} parameters of the {law} law: "
            "more are needed than parameters"
        )
    return [form]


def _with_input(name: str, inputs: tuple[str, ...]) -> Form:
    form = get_form(name)
    if name in _ONE_INPUT:
        form.inputs = (inputs[0],)
    return form


def _enough(form: Form, points: pandas.DataFrame) -> bool:
    if len(points) <= len(form.names):
        return False
    needed = {"power-offset": 4, "power": 2, "kaplan": 2}.get(form.name, 3)  # two values show no curvature
    return all(len(np.unique(np.log(points[name]).round(6))) >= needed for name in form.inputs)


def _largest(form: Form, points: pandas.DataFrame, count: int) -> Any:
    """Which records are of the so many largest sizes."""
    sizes = np.log(points[form.inputs[0]].to_numpy(float)).round(9)
    return sizes >= np.unique(sizes)[-count]


def _rungs(form: Form, points: pandas.DataFrame, forms: Sequence[Form]) -> int:
    """How many of the largest sizes to hold out: a tenth of the points, and never more than can be spared."""
    sizes = np.log(points[form.inputs[0]].to_numpy(float)).round(9)
    rungs = np.unique(sizes)
    needed = max(len(one.names) for one in forms) + 1
    count = 1
    while count + 2 < len(rungs) and np.sum(sizes >= rungs[-count]) < 0.1 * len(sizes):
        if np.sum(sizes < rungs[-count - 1]) < needed:
            break
        count += 1
    return count


def _backtest(
    out: Answer, points: pandas.DataFrame, x: Mapping[str, Any], y: Any, random_state: int
) -> dict[str, Any]:
    """The same laws without the largest sizes, asked for them; and a ruler on the same records."""
    forms = [one.form for one in out.fits]
    scale = forms[0].inputs[0]
    sizes = np.unique(np.log(x[scale]).round(9))
    if len(sizes) < 3:
        return {"reason": f"only {len(sizes)} values of {scale}: without the largest nothing is left to fit"}
    count = _rungs(forms[0], points, forms)
    tests: list[Backtest] = []
    reason = ""
    rest = points[~_largest(forms[0], points, count)]
    for form in [form for form in forms if _enough(form, rest)] or forms:
        try:
            mine = {name: x[name] for name in form.inputs}
            tests.append(backtest(form, mine, y, run=points["run"].to_numpy(), hold_out=count, scale=scale,
                                  resamples=300, random_state=random_state))  # fmt: skip
        except ValueError as refusal:
            reason = str(refusal)
    if not tests:
        return {"reason": reason}
    held = np.flatnonzero(tests[0].held_out)
    law = Average([test.fit for test in tests])
    away = {name: values[held] for name, values in x.items()}
    told = law.interval(away, out.level, "prediction")
    observed, value = y[held], np.atleast_1d(told.value)
    low, high = np.atleast_1d(told.low), np.atleast_1d(told.high)
    error = np.log(value / observed)
    line = ruled(points, tests[0].held_out, scale)
    return {
        "scale": scale, "sizes": count, "points": len(held), "from": float(x[scale][held].min()),
        "error": float(np.sqrt(np.mean(error**2))), "bias": float(error.mean()), "level": out.level,
        "ruler": {"scale": line.scale, "error": line.error, "bias": line.bias},
        "inside": float(np.mean((low <= observed) & (observed <= high))),
        "records": [
            {"run": str(points["run"].iloc[i]), **{name: float(x[name][i]) for name in forms[0].inputs},
             "observed": float(o), "predicted": float(p), "low": float(bottom), "high": float(top),
             "ruler": float(ruler)}
            for i, o, p, bottom, top, ruler in zip(held, observed, value, low, high, line.values, strict=True)
        ],
    }  # fmt: skip


def _forecast(out: Answer, place: Mapping[str, float]) -> dict[str, Any]:
    given = _place(place)
    x = _at(out, given)
    mean = out.law.interval(x, out.level)
    wide = out.law.interval(x, out.level, kind="prediction")
    if not all(map(math.isfinite, (mean.value, mean.low, mean.high, wide.low, wide.high))):
        raise ValueError(
            f"the runs do not determine the loss at {', '.join(f'{n} = {v:.4g}' for n, v in x.items())}: "
            "the law has no finite interval there"
        )
    beyond = {name: float(np.ravel(value)[0]) for name, value in out.fit.extrapolation(x).items()}
    for name, far in beyond.items():
        if abs(far) > 1.5:
            side = "above the largest" if far > 0 else "below the smallest"
            out.warnings.append(
                f"{name} = {x[name]:.3g} lies {abs(far):.1f} orders of magnitude {side} measured."
            )
    return {"given": given, "at": x, "value": mean.value, "mean": [mean.low, mean.high],
            "prediction": [wide.low, wide.high], "beyond": beyond,
            "each": {one.form.name: float(one.predict(x)[0]) for one in out.fits}}  # fmt: skip


def _place(place: Mapping[str, float]) -> dict[str, float]:
    given = {}
    for name, value in place.items():
        known = _SHORT.get(name.lower(), name.lower())
        if known not in (*SCALES, "unique_tokens"):
            raise ValueError(f"a forecast is asked for at params, tokens or flops, not at {name!r}")
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{known} must be positive and finite, not {value}")
        given[known] = float(value)
    return given


def _at(out: Answer, given: dict[str, float]) -> dict[str, float]:
    """The law's inputs at a place, derived from each other where C = 6 N D allows."""
    inputs, points = out.fit.form.inputs, out.points
    full = dict(given)
    if {"params", "tokens"} <= set(full) and "flops" not in full:
        full["flops"] = 6.0 * full["params"] * full["tokens"]
    elif {"params", "flops"} <= set(full) and "tokens" not in full:
        full["tokens"] = full["flops"] / (6.0 * full["params"])
    elif {"tokens", "flops"} <= set(full) and "params" not in full:
        full["params"] = full["flops"] / (6.0 * full["tokens"])
    if (
        set(SCALES) <= set(given)
        and abs(math.log(full["flops"] / (6 * full["params"] * full["tokens"]))) > 0.05
    ):
        raise ValueError("params, tokens and flops contradict flops = 6 × params × tokens; give two of them")
    missing = [name for name in inputs if name not in full]
    if missing:
        raise ValueError(
            f"the law is one of {' and '.join(inputs)}; a forecast also needs {' and '.join(missing)}="
        )
    if inputs[0] != "flops":
        for name in given:
            if name in inputs or (name == "flops" and len(inputs) > 1) or name == "unique_tokens":
                continue
            if name not in points:
                raise ValueError(
                    f"the runs do not tell their {name}, so a forecast at {name} = {given[name]:.4g} cannot "
                    "be made; leave it away"
                )
            low, high = points[name].min(), points[name].max()
            if not 0.99 * low <= given[name] <= 1.01 * high:
                raise ValueError(
                    f"all runs have {name} = {low:.4g}, so what the loss is at {name} = {given[name]:.4g} "
                    "cannot be known"
                )
    elif {"params", "tokens"} <= set(full) and {"params", "tokens"} <= set(points):
        slope, level = np.polyfit(np.log(points["params"]), np.log(points["tokens"]), 1)
        off = math.log(full["tokens"]) - slope * math.log(full["params"]) - level
        if abs(off) > math.log(2.0):
            out.warnings.append(
                f"At {full['params']:.3g} parameters the runs' own split would have "
                f"{math.exp(slope * math.log(full['params']) + level):.3g} tokens, not {full['tokens']:.3g}: "
                "a law of compute cannot tell what another split does."
            )
    return {name: full[name] for name in inputs}


def _optima(out: Answer, flops: float) -> dict[str, Allocation]:
    if not (math.isfinite(flops) and flops > 0):
        raise ValueError(f"the budget must be a positive number of FLOPs, not {flops}")
    inputs = out.fit.form.inputs
    if "params" not in inputs or "tokens" not in inputs:
        raise ValueError(
            f"these runs allow a law of {inputs[0]} only; the best split of a budget needs runs whose "
            "parameters and tokens vary apart"
        )
    found = {}
    for one in out.fits:
        fixed = {}
        if "unique_tokens" in one.form.inputs:
            fixed["unique_tokens"] = float(out.points["unique_tokens"].max())
            out.warnings.append(
                f"The optimum is for {fixed['unique_tokens']:.3g} unique tokens, the runs' most."
            )
        found[one.form.name] = best = one.optimal(flops, out.level, **fixed)
        far = max(math.log10(getattr(best, name) / out.points[name].max()) for name in ("params", "tokens"))
        if far > 1.5:
            out.warnings.append(
                f"The optimum by {one.form.name} lies {far:.1f} orders of magnitude beyond the runs."
            )
    return found
