"""A forecast from a ladder of somebody's own training command, and its check.

The order of events is that of `allometry.forecast`: the plan is stored before anything runs, the forecast
before the target trains, and what was told stands.  A forecast made after its target had trained says so.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from allometry.forecast.check import Check, check, naive_forecasts
from allometry.forecast.collect import Collected, collect, params_at, record_of
from allometry.forecast.commands import CommandLadder, CommandRun
from allometry.forecast.result import ForecastError

if TYPE_CHECKING:
    import pandas

    from allometry.laws.answers import Answer
    from allometry.study.execute import Report
    from allometry.study.store import Plan, Store

__all__ = ["CommandForecast", "Goal", "forecast_commands"]


@dataclass(frozen=True)
class Goal:
    """What is to be foretold; whatever is not given follows.

    Attributes
    ----------
    width, tokens, params : optional
        With a width the target is a run of the command and can be checked.
    multiple : float
        Its compute over that of the ladder's largest run, where tokens or size are not given.

    Raises
    ------
    ValueError
        For numbers that cannot be.
    """

    width: int | None = None
    tokens: float | None = None
    params: float | None = None
    multiple: float = 8.0

    def __post_init__(self) -> None:
        for name in ("width", "tokens", "params", "multiple"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"the target's {name} must be positive and finite, not {value}")


@dataclass(repr=False)
class CommandForecast:
    """What a ladder of commands says about a larger run, and what that run said.

    Attributes
    ----------
    answer : Answer
        The law, with the forecast among its ``forecasts``.
    target : dict
        ``width`` and ``command`` (None where no width was given), ``params``, ``tokens``, ``flops``.
    value, low, high : float
        Forecast and prediction interval at ``level``: of one new run, its own luck included.
    naive : DataFrame or None
        The naive forecasts, where the ladder has two sizes.
    check : Check or None
    missing : dict
        Runs without a record, with the reason.
    digest : str
        Of the stored forecast.
    """

    answer: Answer
    target: dict[str, Any]
    value: float
    low: float
    high: float
    level: float
    naive: pandas.DataFrame | None
    digest: str
    missing: dict[str, str] = field(default_factory=dict)
    check: Check | None = None
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The answer's dictionary, and the target's beside it."""
        return {
            **self.answer.to_dict(),
            "target": self.target,
            "forecast": {"loss": self.value, "low": self.low, "high": self.high, "level": self.level},
            "naive": None if self.naive is None else self.naive.to_dict(orient="index"),
            "check": None if self.check is None else self.check.to_dict(),
            "missing": self.missing,
            "digest": self.digest,
        }

    def sentence(self) -> str:
        """The forecast in one line."""
        size = "" if self.target["width"] is None else f"width {self.target['width']}, "
        return (
            f"Forecast: {size}{self.target['params']:,.0f} parameters at "
            f"{self.target['tokens'] / 1e6:.4g} million tokens will reach {self.value:.4f} "
            f"({self.low:.4f} to {self.high:.4f}, {self.level:.0%})"
        )

    def __str__(self) -> str:
        from allometry.forecast.told import summary

        return "\n".join([summary(self.answer), "", *self.lines()])

    __repr__ = __str__

    def report(self, directory: str | Path) -> Path:
        """Write what `allometry fit` writes (page, figures, ``runs.csv``, ``law.json``), and ``target.json``.

        What the target said stands among the page's notes.
        """
        from dataclasses import replace

        from allometry.forecast.report import to_json
        from allometry.forecast.told import write
        from allometry.show.drawing import write_atomically

        page = write(replace(self.answer, warnings=[*self.lines(), *self.answer.warnings]), directory)
        write_atomically(
            Path(directory) / "target.json", (to_json(self.to_dict(), null=False) + "\n").encode()
        )
        return page

    def lines(self) -> list[str]:
        """Forecast and measurement, and the naive forecasts beside them."""
        rows = [self.sentence()]
        if self.check is not None:
            side = "inside" if self.check.inside else "outside"
            rows.append(
                f"Measured: {self.check.measured:.4f}; the forecast is {100 * self.check.error:+.2f} % off, "
                f"the measured loss {side} its interval"
            )
        for name, row in self.naive.iterrows() if self.naive is not None else ():
            off = "" if self.check is None else f", {100 * self.check.naive_errors[str(name)]:+.2f} % off"
            ends = f" ({row['low']:.4f} to {row['high']:.4f})" if math.isfinite(row["low"]) else ""
            rows.append(f"Naive, {name}: {row['value']:.4f}{ends}{off}")
        return rows


def forecast_commands(
    ladder: CommandLadder,
    goal: Goal | None = None,
    *,
    store: str | Path | Store = Path(".allometry") / "store.db",
    run: bool = True,
    check: bool = False,
    level: float = 0.9,
    workers: int | None = None,
    threads: int = 1,
    timeout: float | None = None,
    display: Literal["auto", "terminal", "plain"] | None = "auto",
    tell: Callable[[str], None] | None = None,
) -> CommandForecast:
    """Run a ladder of commands, fit the law, store the forecast, and train the target.

    Parameters
    ----------
    ladder : CommandLadder
    goal : Goal, optional
        By default the law's optimum at eight times the compute of the largest run.
    store : path, URL or Store
    run : bool
        Run what is missing; otherwise only the logs that there are are read, and nothing is run.
    check : bool
        Train the target, after its forecast was stored (with ``run``); its log is read if there is one.
    level, workers, threads, timeout, display, tell
        See `allometry.laws.answers.answer` and `CommandLadder.run`.

    Raises
    ------
    ValueError
        For what cannot be used or foretold, in one sentence.
    ForecastError
        If runs failed; what is done is stored, and the same call repeats only those.

    Examples
    --------
    >>> ladder = CommandLadder("python train.py --width {width} --tokens {tokens} --seed {seed} --out {out}",
    ...                        widths=[16, 32, 64], tokens=[5e5, 1e6, 2e6])
    >>> forecast_commands(ladder, Goal(width=128, tokens=8e6), check=True)  # doctest: +SKIP
    """
    from allometry.study.store import Store

    goal = goal or Goal()
    if check and goal.width is None:
        raise ValueError("a target can only be checked where its width is known; add --target-width")
    if check and isinstance(ladder.lr, Mapping) and goal.width not in ladder.lr:
        raise ValueError(f"--lr gives rates by width, but none for the target's, {goal.width}")
    if not isinstance(store, Store):
        with Store(store) as opened:
            return forecast_commands(
                ladder, goal, store=opened, run=run, check=check, level=level, workers=workers,
                threads=threads, timeout=timeout, display=display, tell=tell,
            )  # fmt: skip
    say = tell or (lambda sentence: None)
    settings: dict[str, Any] = {
        "workers": workers,
        "threads": threads,
        "timeout": timeout,
        "display": display,
    }
    if run:
        _all_ended(ladder.run(store, tell=tell, **settings))
    settled = ladder.settled(store)
    if settled is None:
        raise ValueError(
            "the sweep over learning rates has yet to be run; without --collect its commands are shown"
        )
    plan = settled.plan(store, settled.runs())
    collected = collect(settled, settled.runs())
    if collected.missing:
        say(_missing_line(collected.missing, len(settled.runs())))
    result, told = _predicted(settled, collected, goal, level, store, plan)
    _say_rate(ladder, settled, ladder.swept(store) if ladder.rates else {}, result)
    say(result.sentence())
    if goal.width is not None:
        target = (
            settled.target_run(goal.width, int(result.target["tokens"])) if _has_rate(settled, goal) else None
        )
        if run and check and target is not None:
            _all_ended(settled.carry_out([target], told, store, **settings))
        if target is not None:
            _checked(settled, target, told, result, level, say, expected=check)
    result.answer.warnings += result.notes
    return result


def _has_rate(ladder: CommandLadder, goal: Goal) -> bool:
    return not isinstance(ladder.lr, Mapping) or goal.width in ladder.lr


def _all_ended(report: Report) -> None:
    if report.failed:
        key, reason = next(iter(report.failed.items()))
        raise ForecastError(
            f"{len(report.failed)} of the runs failed; the first, {key}: {reason} (its output.log has the "
            "rest; the same command repeats only what failed, and --collect '{out}' without --run fits what "
            "there is)"
        )


def _missing_line(missing: Mapping[str, str], count: int) -> str:
    key, reason = next(iter(missing.items()))
    names = ", ".join(missing)
    more = (
        f": {names}" if len(names) < 300 else f": {', '.join(list(missing)[:4])} and {len(missing) - 4} more"
    )
    return f"{len(missing)} of {count} runs have no result{more} ({key}: {reason})"


def _predicted(
    ladder: CommandLadder, collected: Collected, goal: Goal, level: float, store: Store, plan: Plan
) -> tuple[CommandForecast, Plan]:
    """Fit, choose the target, and put the forecast into the store; what was told before stands."""
    from allometry.laws.answers import answer
    from allometry.study.canonical import digest

    table = collected.runs.table
    target = _target(ladder, collected, goal)
    if target is None:  # the law's own optimum: two numbers, for which no interval is needed
        flops = goal.multiple * float(table["flops"].max())
        first = answer(collected.runs, level=level, resamples=100)
        if first.fit.form.inputs == ("params", "tokens"):
            best = first.fit.optimal(flops)
            target = {
                "width": None,
                "params": float(round(best.params)),
                "tokens": float(round(best.tokens)),
                "flops": flops,
            }
        else:
            raise ValueError(
                f"these runs allow a law of {' and '.join(first.fit.form.inputs)} only, which has no best "
                "split of a budget; say what to foretell: --target-width (or --target-params) and "
                "--target-tokens"
            )
    fitted = answer(
        collected.runs, predict=[{name: target[name] for name in ("params", "tokens")}], level=level
    )
    one = fitted.forecasts[0]
    naive, notes = None, []
    try:
        naive = naive_forecasts(table, target["flops"], level)
    except ValueError as error:
        notes.append(f"no naive forecasts: {error}")
    value, (low, high) = one["value"], one["prediction"]
    if isinstance(ladder.lr, float):
        notes.append(
            f"one learning rate, {ladder.lr:g}, for all widths: right where the parametrization carries "
            "rates over width (muP); otherwise give them by width (--lr 16:8e-3,32:6e-3)"
        )
    records = table.sort_values("run")[["run", "params", "tokens", "loss"]].to_dict("list")
    request = {"plan": plan.digest, "target": target, "level": level, "records": digest(records)}
    content = {"plan": plan.digest, "target": target, "forecast": {"loss": value, "low": low, "high": high,
               "level": level}, "laws": {fit.form.name: fit.params for fit in fitted.fits},
               "naive": None if naive is None else naive.to_dict(orient="index")}  # fmt: skip
    told = store.plan(store.put_plan("commands/target", request, content))
    before = told.content["forecast"]
    if not math.isclose(before["loss"], value, rel_tol=1e-6):
        notes.append(
            f"told before: {before['loss']:.4f}; today's code would say {value:.4f} ({low:.4f} to {high:.4f})"
        )
    result = CommandForecast(
        fitted, target, before["loss"], before["low"], before["high"], level, naive, told.digest,
        collected.missing, notes=notes,
    )  # fmt: skip
    return result, told


def _target(ladder: CommandLadder, collected: Collected, goal: Goal) -> dict[str, Any] | None:
    """Width, parameters and tokens of the target; None where only its compute is known."""
    if goal.width is None and goal.params is None and goal.tokens is None:
        return None
    flops = goal.multiple * float(collected.runs.table["flops"].max())
    known = {**collected.params, **{width: float(n) for width, n in (ladder.params or {}).items()}}
    params = goal.params
    if params is None and goal.width is not None:
        params = params_at(goal.width, known)
    elif params is None:
        assert goal.tokens is not None
        params = flops / 6.0 / goal.tokens
    tokens = float(round(goal.tokens if goal.tokens is not None else flops / 6.0 / params))
    return {"width": goal.width, "params": float(params), "tokens": tokens, "flops": 6.0 * params * tokens}


def _say_rate(
    ladder: CommandLadder, settled: CommandLadder, losses: Mapping[str, float], result: CommandForecast
) -> None:
    """How the rate was chosen, and whether the sweep was wide enough."""
    if not ladder.rates or not isinstance(settled.lr, float):
        return
    each = ", ".join(f"{rate} {loss:.4f}" for rate, loss in losses.items())
    result.notes.append(
        f"the learning rate {settled.lr:g} was chosen at width {min(ladder.widths)} and "
        f"{min(ladder.tokens):,} tokens, by one run each: {each}"
    )
    if settled.lr in (min(ladder.rates), max(ladder.rates)):
        end = "smallest" if settled.lr == min(ladder.rates) else "largest"
        result.notes.append(
            f"the best learning rate, {settled.lr:g}, is the {end} tried; the best may lie beyond"
        )


def _checked(
    ladder: CommandLadder, target: CommandRun, told: Plan, result: CommandForecast, level: float,
    say: Callable[[str], None], expected: bool,
) -> None:  # fmt: skip
    """Put the measured loss beside the forecast, if the target has one."""
    result.target["command"] = target.command
    if not ladder.done(target):
        if expected:
            say(f"The target has yet to be run: {target.command}")
        return
    record = record_of(target, ladder)
    measured = float(record.values["loss"])
    naive = result.naive if result.naive is not None else _no_naive()
    result.check = check(result.value, result.low, result.high, naive, measured, math.nan, level)
    counted = record.values.get("params")
    if counted is not None and abs(counted / result.target["params"] - 1.0) > 1e-3:
        result.notes.append(
            f"the target counts {counted:,.0f} parameters; the forecast was for "
            f"{result.target['params']:,.0f}"
        )
    told_tokens = record.values.get("tokens")
    if told_tokens is not None and abs(told_tokens / result.target["tokens"] - 1.0) > 0.01:
        result.notes.append(
            f"the target's log counts {told_tokens:,.0f} tokens; the forecast was for "
            f"{result.target['tokens']:,.0f}"
        )
    if record.time < told.created:
        when = datetime.datetime.fromtimestamp(record.time).strftime("%Y-%m-%d %H:%M")
        result.notes.append(
            f"this forecast was made after its target had been trained ({when}): a fit, not a forecast"
        )


def _no_naive() -> Any:
    import pandas

    return pandas.DataFrame(columns=["value", "low", "high"])
