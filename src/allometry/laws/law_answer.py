"""A law of its own table, fitted and asked: what `answer` is for laws of loss, for any `Estimator`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from allometry.laws.held_out import HeldOut
from allometry.laws.law import Estimator, get_law

if TYPE_CHECKING:
    import pandas

__all__ = ["LawAnswer", "law_answer", "parse_law"]

_RUN_END = "last third of the run that ends lowest"
# What laws with a way of their own hold out; all others the rows of the largest value of a column.
_HELD_OUT = {
    **dict.fromkeys(("schedule", "annealing", "multi-power", "effective-rate"), _RUN_END),
    "resampling": "half of the tasks",
    "task-chain": "ends of the largest models' runs",
}


@dataclass
class LawAnswer:
    """A fitted law with what stands beside it.  Made by `law_answer`.

    Attributes
    ----------
    law : Estimator
    forecasts : DataFrame
        The places asked for, with ``value``, ``low``, ``high`` (of the law) and ``new_low``, ``new_high`` (of
        one new measurement).
    backtest : HeldOut or None
        What the law said of rows when fitted without them; ``reason`` where that is not possible.
    held_out : str
        Which rows those are, in words.
    """

    law: Estimator
    forecasts: pandas.DataFrame
    level: float
    rows: int
    backtest: HeldOut | None = None
    reason: str = ""
    held_out: str = ""
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain lists and numbers."""
        test = self.backtest
        return {
            "law": self.law.name, "target": self.law.target, "level": self.level, "rows": self.rows,
            "parameters": self.law.table(self.level).to_dict("index"),
            "forecasts": self.forecasts.to_dict("records"),
            "backtest": {"reason": self.reason} if test is None else {
                "held_out": self.held_out, "rows": len(test.observed), "error": test.error,
                "bias": test.bias, "inside": test.inside, "score": test.score},
            "tables": {title: one.reset_index().to_dict("records")
                       for title, one in self.law.report().items()},
            "warnings": self.warnings,
        }  # fmt: skip


def parse_law(text: str) -> Estimator:
    """``NAME[:OPTION=VALUE,...]`` as a law that is not fitted.

    Raises
    ------
    ValueError
        There is no such law, or option.

    Examples
    --------
    >>> parse_law("task-chain:skip=0.5").skip
    0.5
    """
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, mark, value = part.partition("=")
        if not mark or not key.strip() or not value.strip():
            raise ValueError(f"options of a law are given as NAME:OPTION=VALUE,..., not {text!r}")
        options[key.strip()] = _value(value.strip())
    return get_law(name.strip(), **options)


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def law_answer(
    law: str | Estimator,
    table: Any,
    *,
    predict: Sequence[Mapping[str, Any] | Any] = (),
    level: float = 0.9,
    resamples: int = 1000,
    random_state: int = 0,
) -> LawAnswer:
    """Fit a law to a table of its columns, and say what it foretells and how far to trust it.

    Parameters
    ----------
    law : str or Estimator
        ``NAME[:OPTION=VALUE,...]``.
    table : DataFrame or mapping of columns (n,)
    predict : sequence of mappings or DataFrames
        Places to foretell.
    level, resamples, random_state
        Share of the intervals; see `allometry.laws.fit`.

    Raises
    ------
    ValueError
        What the law refuses.

    Examples
    --------
    >>> n = np.array([1e6, 3e6, 1e7, 3e7, 1e8, 3e8])
    >>> from allometry.laws import ScalingLaw
    >>> told = law_answer(ScalingLaw("power", "params"), {"params": n, "loss": 9 * n**-0.1},
    ...                   predict=[{"params": 1e9}], resamples=100)
    >>> float(told.forecasts["value"][0].round(3)), told.backtest.error < 1e-6
    (1.133, True)
    """
    import pandas

    if not (np.isfinite(level) and 0 < level < 1):
        raise ValueError(f"the level of an interval lies between 0 and 1, not at {level}")
    one = parse_law(law) if isinstance(law, str) else law
    frame = pandas.DataFrame(getattr(table, "table", table))
    columns = one.read(frame)
    which = _HELD_OUT.get(one.name) or f"largest {one.held_out_by or next(iter(one.columns))}"
    test, reason = None, ""
    try:
        test = one.hold_out(frame, level=level, resamples=min(resamples, 300), random_state=random_state)
    except ValueError as refusal:
        reason = str(refusal)
    one.fit(frame, resamples=resamples, random_state=random_state)
    told = LawAnswer(one, pandas.DataFrame(), level, len(next(iter(columns.values()))), test, reason, which)
    told.warnings = list(one.warnings_)
    parts = [_forecast(one, place, level, resamples) for place in predict]
    if parts:
        told.forecasts = pandas.concat(parts, ignore_index=True)
    return told


def _forecast(law: Estimator, place: Any, level: float, resamples: int) -> pandas.DataFrame:
    import pandas

    given = (
        {name: np.atleast_1d(value) for name, value in place.items()} if isinstance(place, Mapping) else place
    )
    frame = pandas.DataFrame(given).reset_index(drop=True)
    out = frame.assign(value=law.predict(frame))
    if resamples:
        for kind, names in (("mean", ("low", "high")), ("prediction", ("new_low", "new_high"))):
            told = law.interval(frame, level, kind)
            out[names[0]], out[names[1]] = np.atleast_1d(told.low), np.atleast_1d(told.high)
    return out
