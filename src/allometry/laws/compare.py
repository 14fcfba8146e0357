"""Which form?  The one that foretells the largest runs best when fitted without them.

A law is wanted for scales beyond the data, so forms are judged by extrapolation: leave out the largest rung,
fit the rest, predict it.  Fit within the data (AICc: Hurvich and Tsai, 1989) stands beside it and breaks
ties.  Forms are also judged within scatter: a form is not preferred for an error that differs by less than
the data's own noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from allometry.laws.fit import Fit, fit
from allometry.laws.forms import Form, get_form

if TYPE_CHECKING:
    import pandas

__all__ = ["Backtest", "aicc", "backtest", "compare_forms"]

Array = NDArray[np.float64]


def aicc(residuals: Any, parameters: int, *, points: float | None = None) -> float:
    """Akaike's criterion with its small-sample correction, for normal log residuals of unknown scale.

    Parameters
    ----------
    residuals : array (n,)
    parameters : int
        Parameters of the law; the scale is counted besides.
    points : float, optional
        Effective number of independent residuals where it is not n (runs, when points of a run move
        together).

    Returns
    -------
    float
        Infinite where there are too few points for the correction.

    Examples
    --------
    >>> aicc([0.1, -0.1, 0.1, -0.1, 0.1, -0.1], 1) < aicc([0.2, -0.2, 0.2, -0.2, 0.2, -0.2], 1)
    True
    """
    values = np.asarray(residuals, dtype=float)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError("residuals must be a finite, non-empty sequence")
    n = float(len(values) if points is None else points)
    count = parameters + 1
    if n - count - 1 <= 0:
        return float("inf")
    mean_square = max(float(np.mean(values**2)), 1e-300)
    return float(n * np.log(mean_square) + 2 * count + 2 * count * (count + 1) / (n - count - 1))


@dataclass(frozen=True)
class Backtest:
    """What a law fitted without the largest scales said of them.

    Attributes
    ----------
    error : float
        Root mean square of the log error over the points held out.
    bias : float
        Mean of log predicted minus log observed.
    inside : float
        Share of held-out points within their 90 % prediction interval (NaN without resamples).
    observed, predicted, low, high : arrays
        Losses held out, what was foretold, and the limits of the interval.
    held_out : boolean array (n,)
    fit : Fit
        The fit to the rest.
    """

    error: float
    bias: float
    inside: float
    observed: Array
    predicted: Array
    low: Array
    high: Array
    held_out: NDArray[np.bool_]
    fit: Fit


def backtest(
    form: str | Form,
    x: Any,
    y: Any,
    *,
    run: Sequence[Any] | Array | None = None,
    hold_out: str | int | Sequence[bool] = "largest",
    scale: str | None = None,
    resamples: int = 0,
    **options: Any,
) -> Backtest:
    """Fit without the largest scales, foretell them, and say how far off it was.

    Parameters
    ----------
    form, x, y, run
        As in `fit`.
    hold_out : {"largest"}, int or boolean sequence
        The largest value of ``scale``, the so many largest, or the points themselves.
    scale : str, optional
        The input that orders the rungs; by default the form's first.
    resamples, **options
        Passed on to `fit`.

    Raises
    ------
    ValueError
        Nothing, or too much, would be held out.

    Examples
    --------
    >>> x = [1e6, 1e7, 1e8, 1e9, 1e10]
    >>> backtest("power", x, [n**-0.3 for n in x]).error < 1e-9
    True
    """
    law = get_form(form)
    features = law.features(x)
    losses = np.asarray(y, dtype=float)
    held = _held_out(law, features, hold_out, scale)
    kept = ~held
    labels = None if run is None else np.asarray(run)[kept]
    one = fit(
        law, np.exp(features[kept]), losses[kept], run=labels, resamples=resamples,
        **{name: _part(value, kept) for name, value in options.items()},
    )  # fmt: skip
    away = np.exp(features[held])
    predicted = one.predict(away)
    log_error = np.log(predicted) - np.log(losses[held])
    low = high = np.full(len(predicted), np.nan)
    inside = float("nan")
    if resamples:
        interval = one.interval(away, kind="prediction")
        low, high = interval.low, interval.high
        inside = float(np.mean((low <= losses[held]) & (losses[held] <= high)))
    return Backtest(
        float(np.sqrt(np.mean(log_error**2))), float(log_error.mean()), inside,
        losses[held], predicted, low, high, held, one,
    )  # fmt: skip


def compare_forms(
    forms: Sequence[str | Form],
    x: Any,
    y: Any,
    *,
    run: Sequence[Any] | Array | None = None,
    hold_out: str | int | Sequence[bool] = "largest",
    scale: str | None = None,
    **options: Any,
) -> pandas.DataFrame:
    """Forms beside each other: error on the largest rung when fitted without it, and AICc on all of it.

    The form chosen has the least held-out error; among those within one standard deviation of a held-out
    point's noise from the least, the one with the lowest AICc.

    Parameters
    ----------
    forms : sequence of str or Form
    x, y, run, hold_out, scale, **options
        As in `backtest` and `fit`.  All forms must take their inputs from ``x``.

    Returns
    -------
    DataFrame
        One row a form: ``held_out_error`` and ``held_out_bias`` (log units), ``aicc``, ``objective``,
        ``parameters``, ``chosen``; NaN errors where too few points are left for a form.

    Examples
    --------
    >>> x = [1e6, 3e6, 1e7, 3e7, 1e8, 3e8]
    >>> table = compare_forms(["power", "power-offset"], x, [1 + (n / 1e6) ** -0.5 for n in x])
    >>> table.index[table["chosen"]].tolist()
    ['power-offset']
    """
    import pandas

    rows = []
    runs = None if run is None else len(np.unique(np.asarray(run)))
    noise = []
    for form in forms:
        law = get_form(form)
        whole = fit(law, x, y, run=run, resamples=0, **options)
        criterion = aicc(whole.residuals, len(law.names))
        try:
            test = backtest(law, x, y, run=run, hold_out=hold_out, scale=scale, **options)
            error, bias = test.error, test.bias
        except ValueError:  # too few points are left for this form: it cannot be judged this way
            error = bias = float("nan")
        noise.append(whole.noise.total)
        rows.append(
            {"form": law.name, "held_out_error": error, "held_out_bias": bias, "aicc": criterion,
             "objective": whole.objective, "parameters": len(law.names), "runs": runs or len(whole.log_y)}
        )  # fmt: skip
    table = pandas.DataFrame(rows).set_index("form")
    table["chosen"] = False
    errors = table["held_out_error"].to_numpy(float)
    if np.isfinite(errors).any():
        near = errors <= np.nanmin(errors) + min(noise)
        candidates = table.index[near]
    else:
        candidates = table.index
    table.loc[table.loc[candidates, "aicc"].idxmin(), "chosen"] = True
    return table


def _held_out(
    law: Form, features: Array, hold_out: str | int | Sequence[bool], scale: str | None
) -> NDArray[np.bool_]:
    if not isinstance(hold_out, str | int):
        held = np.asarray(hold_out, dtype=bool)
        if held.shape != (len(features),):
            raise ValueError(
                f"hold_out must mark each of the {len(features)} points; its shape is {held.shape}"
            )
    else:
        name = law.inputs[0] if scale is None else scale
        if name not in law.inputs:
            raise ValueError(f"scale must be one of {law.inputs}, not {name!r}")
        column = features[:, law.inputs.index(name)].round(9)
        rungs = np.unique(column)
        count = 1 if hold_out == "largest" else hold_out
        if not isinstance(count, int) or not 1 <= count < len(rungs):
            raise ValueError(
                f"hold_out must be 'largest' or 1 to {len(rungs) - 1} rungs of {name}, not {hold_out!r}"
            )
        held = column >= rungs[-count]
    if not held.any() or held.all():
        raise ValueError("hold_out must leave some points out and keep some")
    return held


def _part(value: Any, kept: NDArray[np.bool_]) -> Any:
    """The kept entries of an option given for each point; other options as they are."""
    if isinstance(value, str | Mapping) or np.ndim(value) == 0:
        return value
    return np.asarray(value)[..., kept]
