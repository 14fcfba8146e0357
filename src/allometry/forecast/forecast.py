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
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from allometry.forecast.ladder import PLANS, Ladder, ladder_tasks, run_key, target_task
from allometry.forecast.predict import checked, choose_target, ladder_table, predicted, scalar
from allometry.forecast.result import LEVEL, Forecast, ForecastError

if TYPE_CHECKING:
    from allometry.study.execute import Event
    from allometry.study.store import Plan, Store


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
                float(scalar(part)) for part in fit.interval(at, level=LEVEL, kind="prediction")
            )
        except ValueError:
            return  # too few points yet for this law
        total = len(ladder.widths) * len(content["seeds"])
        self.say(
            f"With {self.told} of {total} runs: {value:.4f} nats ({low:.4f} to {high:.4f}) "
            f"at width {goal['width']}"
        )


__all__ = ["Forecast", "ForecastError", "forecast", "predicted", "run_key"]
