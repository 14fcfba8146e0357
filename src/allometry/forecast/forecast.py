"""The main job: train a ladder of small models, fit the law, forecast the large model, check it.

The order of events is the promise. The plan is stored before anything trains. When the ladder is done the
law is fitted, the target is chosen by the law's optimum, and the forecast with its interval is stored, under
a hash, before the target trains. Then the target trains, and the two numbers stand side by side.

The law for loss against parameters and tokens: Hoffmann and others, 2022. arXiv:2203.15556 (equation 2);
Kaplan and others, 2020. arXiv:2001.08361 (equation 1.5).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from allometry.forecast.check import Check, naive_forecasts, seed_noise
from allometry.forecast.check import check as compare
from allometry.forecast.ladder import PLANS, Ladder, ladder_tasks, non_embedding, run_key, target_task

if TYPE_CHECKING:
    import pandas as pd

    from allometry.laws import Average, Fit
    from allometry.study.execute import Event
    from allometry.study.store import Plan, Store

LEVEL = 0.9


class ForecastError(RuntimeError):
    """The job could not be done; the message says why and what to do."""


@dataclass
class Forecast:
    """What the ladder says about the target, and what the target said.

    Attributes
    ----------
    value, low, high : float
        Forecast of the target's loss in nats a token, and its prediction interval at ``level``: the interval
        for one new run, its own seed noise included.
    target : dict
        width, params (N, non-embedding), tokens (D), flops (6 N D), epochs.
    runs : DataFrame
        One row a record of the ladder.
    fits : list of Fit
        The laws that the forecast averages.
    choice : DataFrame
        The candidate laws and how far off each was on the largest size when fitted without it.
    naive : DataFrame
        The naive forecasts with their intervals.
    check : Check or None
        The comparison with the measured loss, where the target was trained.
    """

    value: float
    low: float
    high: float
    level: float
    target: dict[str, Any]
    plan: dict[str, Any]
    digest: str
    runs: pd.DataFrame
    fits: list[Fit]
    choice: pd.DataFrame
    naive: pd.DataFrame
    backtest: dict[str, Any]
    check: Check | None = None
    notes: list[str] = field(default_factory=list)
    cost: dict[str, float] = field(default_factory=dict)
    directory: Path | None = None

    @property
    def law(self) -> Average:
        """The laws as one."""
        from allometry.laws import Average

        return Average(self.fits)

    @property
    def fit(self) -> Fit:
        """The plan's first law, whose optimum chose the target."""
        return self.fits[0]

    @property
    def half_width(self) -> float:
        """Half the interval's width, as a share of the forecast."""
        return (self.high - self.low) / (2.0 * self.value)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the runs, JSON-ready."""
        return {
            "forecast": {"loss": self.value, "low": self.low, "high": self.high, "level": self.level},
            "target": self.target,
            "check": None if self.check is None else self.check.to_dict(),
            "naive": self.naive.to_dict(orient="index"),
            "backtest": self.backtest,
            "choice": self.choice.reset_index().to_dict(orient="records"),
            "law": self.fit.to_dict(),
            "laws": {fit.form.name: fit.to_dict() for fit in self.fits},
            "notes": self.notes,
            "cost": self.cost,
            "plan": self.plan,
            "digest": self.digest,
        }

    def report(self, directory: str | Path) -> Path:
        """Write report.html, the figures, runs.csv and law.json into ``directory``; returns the page."""
        from allometry.forecast.report import write

        self.directory = Path(directory)
        return write(self, self.directory)

    def __str__(self) -> str:
        from allometry.forecast.report import summary

        return summary(self)

    __repr__ = __str__


def forecast(
    sources: str | Path | Sequence[str | Path] | None = None,
    *,
    plan: str | None = None,
    target: float = 8.0,
    tokens: float | None = None,
    check: bool = True,
    seeds: int = 3,
    seed: int = 0,
    device: str = "auto",
    store: str | Path | None = None,
    report: str | Path | None = None,
    tokenizer: str | None = None,
    text_field: str = "text",
    workers: int | None = None,
    executor: Literal["local", "ray"] = "local",
    address: str | None = None,
    target_processes: int = 1,
    display: Literal["auto", "terminal", "plain"] | None = "auto",
    tell: Callable[[str], None] | None = None,
) -> Forecast:
    """Train a ladder on some text, forecast a larger model's loss, and check the forecast.

    Parameters
    ----------
    sources : path, pattern or list of them, optional
        Text, JSON lines, Parquet, folders; the standard library's own source by default.
    plan : "tiny", "small", "default" or "large", optional
        Which ladder; without it a probe of this machine chooses.
    target : float
        The target's training compute (6 N D, N without embeddings) over that of the ladder's largest run.
    tokens : float, optional
        The target's tokens; its size then follows from ``target``. By default the fitted optimum decides.
    check : bool
        Train the target too.
    seeds, seed : int
        Seeds a size, and which family of seeds.
    device : str
        "auto", "cpu", "cuda" ...
    store : path or URL
        Where records go; ``.allometry/store.db`` by default. A job that was cut short goes on from there.
    report : path, optional
        Folder for the page, figures and tables.
    tokenizer : str, optional
        A Hugging Face tokenizer's file or folder; bytes by default.
    workers : int, optional
        Worker processes of one thread each; by default as many as there are cores.
    executor : "local" or "ray"
        Processes of this machine, or a Ray cluster; the numbers are the same.
    address : str, optional
        The Ray cluster's ``host:port``; by default the one that this machine belongs to.
    target_processes : int
        Processes that share the target's weights and batches out among them (FSDP2); with a GPU, one each.
        A target that was begun with another number goes on with that.
    display : "auto", "terminal", "plain" or None
    tell : callable, optional
        Gets the sentences that are worth saying while the job runs.

    Raises
    ------
    ValueError
        For input that cannot be used, in one sentence.
    ForecastError
        If runs failed, so that no law can be fitted.

    Examples
    --------
    >>> import allometry
    >>> result = allometry.forecast(plan="small")  # doctest: +SKIP
    >>> result.low < result.check.measured < result.high  # doctest: +SKIP
    True
    """
    from allometry.extras import need
    from allometry.forecast.ladder import read_corpus
    from allometry.forecast.plan import make_plan, request_of, resolve_device
    from allometry.forecast.target import refuse_processes
    from allometry.study.execute import execute, refuse_executor
    from allometry.study.store import Store

    device_count = need("torch", extra="train", purpose="training a ladder").cuda.device_count
    _refuse(plan, target, tokens, seeds)
    refuse_executor(executor, address)
    resolve_device(device)  # a device that is not here is refused before anything is read
    say = tell or (lambda sentence: None)
    asked = workers  # on a cluster nothing limits them but the cluster
    workers = workers or max(
        1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    paths = [sources] if isinstance(sources, (str, Path)) else list(sources or [])
    paths = [str(Path(path).resolve()) for path in paths]
    corpus = read_corpus({"paths": paths, "tokenizer": tokenizer, "text_field": text_field})
    request = request_of(
        paths, corpus.digest, plan=plan, target=target, tokens=None if tokens is None else int(tokens),
        seeds=seeds, seed=seed, device=device, tokenizer=tokenizer, text_field=text_field,
    )  # fmt: skip
    with Store(store if store is not None else Path(".allometry") / "store.db") as database:
        found = database.find_plan("forecast", request)
        if found is None:
            say("Measuring this machine, to choose a plan ...")
            database.put_plan("forecast", request, make_plan(request, corpus, workers=workers))
            found = database.find_plan("forecast", request)
            assert found is not None
        content = found.content
        one_each = executor == "local" and target_processes > 1 and content["device"].startswith("cuda")
        devices = device_count() if one_each else None
        refuse_processes(Ladder.from_dict(content["ladder"]), target_processes, devices=devices)
        say(_described(content, found.digest))
        live = _Live(database, found, say)
        ladder_report = execute(
            ladder_tasks(content), database, found,
            workers=asked if executor == "ray" else min(workers, content["workers"]),
            threads=content["threads"], on_event=live.on_event, display=display,
            executor=executor, address=address,
        )  # fmt: skip
        if ladder_report.failed:
            key, reason = next(iter(ladder_report.failed.items()))
            raise ForecastError(
                f"{len(ladder_report.failed)} of the ladder's tasks failed; the first, {key}: {reason}"
            )
        result = predicted(database, found)
        say(result_line(result))
        # the forecast is on record, under a hash, before the target trains
        stored = database.put_plan(
            "forecast/target",
            {"plan": found.digest},
            {key: value for key, value in result.to_dict().items() if key not in ("check", "plan")},
        )
        if check:
            begun = database.run(stored, "target/" + run_key(result.target["width"], content["target_seed"]))
            task = target_task(
                content, result.target["width"], result.target["tokens"], content["target_seed"],
                processes=target_processes if begun is None else begun.spec.get("processes", 1),
            )  # fmt: skip
            target_report = execute(
                [task], database, stored, workers=None if executor == "ray" else 1,
                threads=task.threads or 1, display=display, executor=executor, address=address,
            )  # fmt: skip
            if target_report.failed:
                raise ForecastError(
                    f"the target's training failed: {next(iter(target_report.failed.values()))}"
                )
            checked(database, stored, result)
    if report is not None:
        result.report(report)
    return result


def _refuse(plan: str | None, target: float, tokens: float | None, seeds: int) -> None:
    if plan is not None and plan not in PLANS:
        raise ValueError(f"plan must be one of {', '.join(PLANS)}, got {plan!r}")
    if not (math.isfinite(target) and 1.0 <= target <= 1000.0):
        raise ValueError(
            f"target is a multiple of the largest rung's compute between 1 and 1000, got {target}"
        )
    if tokens is not None and not (math.isfinite(tokens) and tokens >= 1):
        raise ValueError(f"tokens must be a positive number, got {tokens}")
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")


def _described(plan: Mapping[str, Any], digest: str) -> str:
    ladder = Ladder.from_dict(plan["ladder"])
    text, widths = plan["corpus"], ", ".join(map(str, ladder.widths))
    horizons = ", ".join(f"{tokens / 1e6:g}" for tokens in ladder.tokens)
    return (
        f"Plan {digest[:12]} ({plan['plan']}): widths {widths} x {len(plan['seeds'])} seeds "
        f"at {horizons} million tokens; "
        f"{text['files']} files, {text['bytes'] / 1e6:.1f} MB, digest {text['digest'][:12]}; "
        f"{plan['dtype']} on {plan['device']}"
    )


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
    value, low, high = (float(_first(part)) for part in law.interval(at, level=LEVEL, kind="prediction"))
    if told is not None:  # what was told before the target trained stands, whatever the code has become since
        before = told.content["forecast"]
        if not math.isclose(before["loss"], value, rel_tol=1e-6):
            notes.append(
                f"told before the target trained: {before['loss']:.4f}; today's code would say {value:.4f} "
                f"({low:.4f} to {high:.4f})"
            )
        value, low, high = before["loss"], before["low"], before["high"]
    reach = {name: float(_first(far)) for name, far in fit.extrapolation(at).items()}
    if len(forms) > 1:
        each = ", ".join(f"{one.form.name} {float(_first(one.predict(at))):.4f}" for one in law.fits)
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


def _first(value: Any) -> Any:
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
    value, low, high = (float(_first(part)) for part in law.interval(at, level=LEVEL, kind="prediction"))
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


def result_line(result: Forecast) -> str:
    """The forecast in one sentence."""
    goal = result.target
    return (
        f"Forecast: width {goal['width']} ({goal['params']:,} parameters) "
        f"at {goal['tokens'] / 1e6:.2f} million tokens will reach {result.value:.4f} nats "
        f"({result.low:.4f} to {result.high:.4f}, {result.level:.0%})"
    )


class _Live:
    """A first forecast as soon as three sizes have finished, and a better one with every further run."""

    def __init__(self, store: Store, plan: Plan, say: Callable[[str], None]) -> None:
        self.store, self.plan, self.say, self.told = store, plan, say, 0

    def on_event(self, event: Event) -> None:
        if event.kind != "finished":
            return
        from allometry import laws

        content = self.plan.content
        ladder = Ladder.from_dict(content["ladder"])
        table = ladder_table(self.store, self.plan)
        done = table[table["status"] == "done"] if len(table) else table
        if len(done) == 0 or done["width"].nunique() < 3 or done["run"].nunique() == self.told:
            return
        self.told = done["run"].nunique()
        try:
            fit = laws.fit(
                content["law"]["candidates"][0], done[["params", "tokens"]], done["loss"].to_numpy(),
                run=done["run"].to_numpy(), loss=content["law"]["loss"], resamples=200,
            )  # fmt: skip
            goal, _ = choose_target(fit, content, ladder)
            at = {"params": [goal["params"]], "tokens": [goal["tokens"]]}
            value, low, high = (
                float(_first(part)) for part in fit.interval(at, level=LEVEL, kind="prediction")
            )
        except ValueError:
            return  # too few points yet for this law
        total = len(ladder.widths) * len(content["seeds"])
        self.say(
            f"With {self.told} of {total} runs: {value:.4f} nats ({low:.4f} to {high:.4f}) "
            f"at width {goal['width']}"
        )


__all__ = ["Forecast", "ForecastError", "forecast", "predicted", "run_key"]
