"""From a finished ladder to a forecast: which laws, which target, what interval, what was then measured.

The law for loss against parameters and tokens: Hoffmann and others, 2022. arXiv:2203.15556 (equation 2);
Kaplan and others, 2020. arXiv:2001.08361 (equation 1.5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from allometry.forecast.check import check as compare
from allometry.forecast.check import naive_forecasts, seed_noise
from allometry.forecast.ladder import Ladder, non_embedding
from allometry.forecast.result import LEVEL, Forecast, ForecastError

if TYPE_CHECKING:
    import pandas as pd

    from allometry.laws import Average, Fit
    from allometry.study.store import Plan, Store


def ladder_table(store: Store, plan: Plan) -> pd.DataFrame:
    """Finished records of the ladder; runs that diverged are not in it."""
    table = store.records(plan)
    columns = [
        "run", "width", "seed", "params", "total_params", "tokens", "flops", "model_flops", "epochs", "loss",
        "bits_per_byte", "status",
    ]  # fmt: skip
    if table.empty:
        return table
    table = table.rename(columns={"value.seed": "seed_value"})
    table["seed"] = table.get("seed_value", table["seed"])
    table = table[[column for column in columns if column in table]]
    return table.sort_values(["width", "seed", "tokens"], ignore_index=True)


def predicted(store: Store, plan: Plan) -> Forecast:
    """Fit the law to a finished ladder, choose the target, forecast it."""
    from allometry import laws

    content = plan.content
    ladder = Ladder.from_dict(content["ladder"])
    table = ladder_table(store, plan)
    diverged = store.runs(plan, status="diverged")
    notes = [f"{row.run} diverged at step {row.step} and is left out" for row in diverged.itertuples()]
    used = table[table["tokens"] >= 0.99 * content["smallest_tokens"]]
    if used["width"].nunique() < 3:
        raise ForecastError(
            f"only {used['width'].nunique()} of {len(ladder.widths)} sizes finished, and a law needs three; "
            "lower the learning rate or choose another plan"
        )
    x, y, run = used[["params", "tokens"]], used["loss"].to_numpy(), used["run"].to_numpy()
    rule = content["law"]
    settings = {"run": run, "loss": rule["loss"]}
    choice = laws.compare_forms(rule["candidates"], x, y, **settings)
    forms = choose_forms(choice, rule)
    law = average_of(forms, x, y, settings)
    fit = law.fits[0]
    told = store.find_plan("forecast/target", {"plan": plan.digest})
    if told is None:
        goal, remark = choose_target(fit, content, ladder)
        notes += remark
    else:
        goal = told.content["target"]
    at = {"params": [goal["params"]], "tokens": [goal["tokens"]]}
    value, low, high = (float(scalar(part)) for part in law.interval(at, level=LEVEL, kind="prediction"))
    if told is not None:  # what was told before the target trained stands, whatever the code has become since
        before = told.content["forecast"]
        if not math.isclose(before["loss"], value, rel_tol=1e-6):
            notes.append(
                f"told before the target trained: {before['loss']:.4f}; today's code would say {value:.4f} "
                f"({low:.4f} to {high:.4f})"
            )
        value, low, high = before["loss"], before["low"], before["high"]
    reach = {name: float(scalar(far)) for name, far in fit.extrapolation(at).items()}
    if len(forms) > 1:
        each = ", ".join(f"{one.form.name} {float(scalar(one.predict(at))):.4f}" for one in law.fits)
        notes.append(f"the forecast is the average of laws that the ladder cannot tell apart: {each}")
    notes += list(fit.warnings)
    far = ", ".join(f"{10**value:.1f} times in {name}" for name, value in reach.items() if value > 0)
    if far:
        notes.append(f"the target lies beyond the ladder by {far}")
    ladder_flops = float(table.groupby("run")["model_flops"].max().sum())
    trained = ladder.trained_tokens() / max(ladder.tokens)
    return Forecast(
        value, low, high, LEVEL, goal, content, plan.digest, table, law.fits, choice,
        naive_forecasts(used, goal["flops"], LEVEL),
        _backtest(forms, x, y, settings, used),
        notes=notes,
        cost={
            "ladder_flops": ladder_flops * trained,
            "target_flops": goal["model_flops"],
            "seed_noise": seed_noise(used)[0],
        },
    )  # fmt: skip


def average_of(forms: Sequence[str], x: Any, y: Any, settings: Mapping[str, Any]) -> Average:
    """The average of the laws, all with the noise of the one that leaves least."""
    from allometry import laws

    bare = [laws.fit(form, x, y, resamples=0, **settings) for form in forms]
    noise = min((fit.noise for fit in bare), key=lambda noise: noise.total)
    return laws.Average([laws.fit(form, x, y, noise=noise, **settings) for form in forms])


def choose_forms(choice: pd.DataFrame, rule: Mapping[str, Any]) -> list[str]:
    """The plan's candidates, less those whose held-out error is over ``margin`` times the least.

    ``choice`` is the table of :func:`allometry.laws.compare_forms`; its column ``chosen`` is set accordingly.
    A form that could not be held out (too few points) stays: nothing speaks against it.
    """
    errors = choice["held_out_error"]
    choice["chosen"] = ~(errors > rule["margin"] * errors.min())
    return [form for form in rule["candidates"] if choice.loc[form, "chosen"]]


def scalar(value: Any) -> Any:
    import numpy as np

    return np.ravel(value)[0]


def _backtest(
    forms: list[str], x: Any, y: Any, settings: Mapping[str, Any], used: pd.DataFrame
) -> dict[str, Any]:
    """The same laws without the largest size, asked for the largest size at its longest horizon."""
    from allometry import laws

    largest, longest = used["width"].max(), used["tokens"].max()
    kept = (used["width"] < largest).to_numpy()
    if used.loc[kept, "width"].nunique() < 2 or kept.sum() <= max(len(laws.get_form(f).names) for f in forms):
        return {}
    rest = {**settings, "run": settings["run"][kept]}
    law = average_of(forms, x[kept], y[kept], rest)
    asked = used[(used["width"] == largest) & (used["tokens"] == longest)]
    at = {"params": [asked["params"].iloc[0]], "tokens": [longest]}
    value, low, high = (float(scalar(part)) for part in law.interval(at, level=LEVEL, kind="prediction"))
    measured = float(asked["loss"].mean())
    return {
        "width": int(largest), "tokens": int(longest), "value": value, "low": low, "high": high,
        "measured": measured, "error": value / measured - 1.0, "inside": bool(low <= measured <= high),
    }  # fmt: skip


def choose_target(fit: Fit, plan: Mapping[str, Any], ladder: Ladder) -> tuple[dict[str, Any], list[str]]:
    """Width and tokens of the target: its compute is given, its split is the law's, within what makes sense.

    The split is held to sizes and horizons no smaller than the ladder's own largest, and to one pass over the
    text where the compute allows it.
    """
    vocab_size = plan["vocab_size"]
    largest = non_embedding(ladder, ladder.widths[-1], vocab_size)
    flops = plan["target"] * 6.0 * largest * ladder.tokens[-1]
    notes: list[str] = []
    if plan["target_tokens"] is not None:
        wanted = flops / 6.0 / plan["target_tokens"]
    else:
        wanted = float(fit.optimal(flops).params)
        least, most = float(largest), flops / 6.0 / ladder.tokens[-1]
        text = plan["corpus"]["training_tokens"]
        least = min(max(least, flops / 6.0 / text), most)
        held = min(max(wanted, least), most)
        if held != wanted:
            notes.append(
                f"the fitted optimum for this compute is {wanted:,.0f} parameters; the target is held to "
                f"{held:,.0f}, so that it is no smaller than the ladder and reads the text at most once"
            )
        wanted = held
    step = ladder.head_size
    widths = range(step, 64 * ladder.widths[-1] + 1, step)
    width = min(widths, key=lambda w: abs(math.log(non_embedding(ladder, w, vocab_size) / wanted)))
    params = non_embedding(ladder, width, vocab_size)
    tokens = plan["target_tokens"] or flops / 6.0 / params
    steps = ladder.steps(tokens)
    tokens = steps * ladder.tokens_per_step
    config = ladder.config(width, vocab_size)
    return {
        "width": width,
        "params": params,
        "total_params": config.parameters()["total"],
        "tokens": tokens,
        "flops": 6.0 * params * tokens,
        "model_flops": 6.0 * config.macs_per_token() * tokens,
        "epochs": tokens / plan["corpus"]["training_tokens"],
    }, notes


def checked(store: Store, plan: Plan | str, result: Forecast) -> None:
    """Put the measured loss beside the forecast."""
    table = store.records(plan)
    if table.empty:
        reason = store.runs(plan)["reason"].iloc[0]
        result.notes.append(f"the target run gave no loss: {reason}")
        return
    row = table.iloc[-1]
    result.check = compare(
        result.value,
        result.low,
        result.high,
        result.naive,
        float(row["loss"]),
        float(row["bits_per_byte"]),
        result.level,
    )
