"""One law for the loss at every step of every learning-rate schedule, learned from two runs.

Howe Tissue, Venus Wang, Lu Wang, 2024. arXiv:2408.11029

Byte-level GPTs of two layers on the standard library's source, under seven schedules of one length and peak.
The law sees the constant and the cosine run; the other five it foretells. The paper's runs are ten times as
long and its models a thousand times as large, so that its delay of a thousand steps is half a run here: the
delay is fitted, and that it must be is one of the claims that are judged.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from allometry.papers import Paper
from allometry.study import Claim, Profile, Result, Study, Test, axis

if TYPE_CHECKING:
    import numpy as np
    import pandas

_PEAK = 5e-3
_FITTED = ("constant", "cosine")
_SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {"kind": "constant"},
    "cosine": {"kind": "cosine"},
    "linear": {"kind": "linear"},
    "wsd 10 %": {"kind": "wsd", "decay": 0.1},
    "wsd 20 %": {"kind": "wsd", "decay": 0.2},
    "two-step": {"kind": "two_step", "at": 0.6, "factor": 0.2},
    "cyclic": {"kind": "cyclic", "cycles": 3, "floor": 0.1},
}


def _schedule(settings: Any, warmup: int) -> Callable[[int, int], float]:
    from allometry.optim import schedules

    rest = {name: value for name, value in settings.items() if name != "kind"}
    return functools.partial(getattr(schedules, settings["kind"]), warmup=warmup, **rest)


def _rates(arm: str, total: int, warmup: int) -> np.ndarray[Any, Any]:
    import numpy as np

    one = _schedule(_SCHEDULES[arm], warmup)
    return _PEAK * np.array([one(step, total) for step in range(total)])


@functools.lru_cache(maxsize=1)
def _corpus() -> Any:
    from allometry.data import StandardLibrary

    return StandardLibrary()


# --- statistics of the claims -------------------------------------------------------------------------------
def _foretold(part: pandas.DataFrame, profile: Profile, kind: str) -> dict[str, np.ndarray[Any, Any]]:
    """Losses of one seed's schedules at their logged steps, by a law of the fitted two; {} if none fits."""
    import numpy as np
    import pandas

    from allometry.laws import AnnealingLaw, EffectiveRateLaw, fit, schedule_areas

    # Weights after s updates have the loss of update s - 1.
    table = pandas.DataFrame({"run": part["arm"].astype(str), "step": part["step"] - 1, "loss": part["loss"]})
    total = int(part["step"].max())
    schedules = {arm: _rates(arm, total, profile.warmup) for arm in _SCHEDULES}
    fitted = table[table["run"].isin(_FITTED)]
    late = fitted[fitted["step"] >= profile.warmup]
    try:
        if kind == "area alone":

            def area(rows: pandas.DataFrame) -> np.ndarray[Any, Any]:
                first = {arm: schedule_areas(one, warmup=profile.warmup)[0] for arm, one in schedules.items()}
                return np.array([first[a][s] for a, s in zip(rows["run"], rows["step"], strict=True)])

            law = fit("power-offset", {"area": area(late)}, late["loss"].to_numpy(), resamples=0)
            return {arm: law.predict({"area": area(rows)}) for arm, rows in table.groupby("run")}
        one = (
            EffectiveRateLaw(warmup=profile.warmup) if kind == "effective rates"
            else AnnealingLaw("fit" if kind == "annealing" else 0.999, warmup=profile.warmup)
        )  # fmt: skip
        one.fit(fitted, schedules={arm: schedules[arm] for arm in _FITTED}, resamples=0)
        for arm, rates in schedules.items():
            one.remember(arm, rates)
        told = {str(arm): one.predict(rows[["run", "step"]]) for arm, rows in table.groupby("run")}
        if kind == "annealing":
            told["delay"] = np.array([1.0 / (1.0 - one.params_["lam"])])
        return told
    except (ValueError, np.linalg.LinAlgError):
        return {}


def _error(part: pandas.DataFrame, profile: Profile, kind: str) -> float:
    """Mean relative error over the last half of every schedule that was not fitted."""
    told = _foretold(part, profile, kind)
    found = []
    for arm, rows in part.groupby("arm"):
        if arm in _FITTED or not told:
            continue
        late = (rows["step"] > rows["step"].max() / 2).to_numpy()
        found.append(abs(told[str(arm)] / rows["loss"].to_numpy() - 1.0)[late].mean())
    return float(sum(found) / len(found)) if found else math.nan


def _profile(result: Result) -> Profile:
    return result.study.profile(result.profile)


def _small_error(result: Result) -> Test:
    profile = _profile(result)
    error = result.each_seed(
        lambda part: _error(part, profile, "annealing"), what="relative error on schedules not fitted"
    )
    return error.judge(holds=(-math.inf, 0.01), contradicted=(0.02, math.inf))


def _beats_area(result: Result) -> Test:
    profile = _profile(result)
    gain = result.each_seed(
        lambda part: math.log(_error(part, profile, "area alone") / _error(part, profile, "annealing")),
        what="log of the error without S2 over the law's",
    )
    return gain.judge(holds=(math.log(3.0), math.inf), contradicted=(-math.inf, math.log(1.5)))


def _same_delay(result: Result) -> Test:
    profile = _profile(result)
    loss = result.each_seed(
        lambda part: math.log(_error(part, profile, "lam 0.999") / _error(part, profile, "annealing")),
        what="log of the error at lam 0.999 over that at the lam fitted",
    )
    return loss.judge(holds=(-math.inf, math.log(1.1)), contradicted=(math.log(1.5), math.inf))


def _ranks(result: Result) -> Test:
    profile = _profile(result)

    def statistic(part: pandas.DataFrame) -> float:
        from scipy.stats import spearmanr

        told = _foretold(part, profile, "annealing")
        ends = part[part["step"] == part["step"].max()].set_index("arm")["loss"]
        new = [arm for arm in ends.index if told]
        if not new:
            return math.nan
        return float(spearmanr([told[arm][-1] for arm in new], [ends[arm] for arm in new])[0])

    rank = result.each_seed(statistic, what="rank correlation of foretold and measured final losses")
    return rank.judge(holds=(0.8, 1.0), contradicted=(-1.0, 0.5))


def _effective_rates(result: Result) -> Test:
    profile = _profile(result)
    gain = result.each_seed(
        lambda part: math.log(_error(part, profile, "annealing") / _error(part, profile, "effective rates")),
        what="log of the annealing law's error over that of effective rates",
    )
    return gain.judge(holds=(0.0, math.inf))


def _steps(last: int, every: int) -> tuple[int, ...]:
    return tuple(range(every, last + 1, every))


annealing = Study(
    "lr-annealing-law",
    question="Do two runs foretell the loss curves of schedules that were never run?",
    arms=_SCHEDULES,
    axis=axis("step", tiny=_steps(16, 1), quick=_steps(400, 20), full=_steps(2000, 40), recorded=True),
    measures=("loss",),
    profiles={
        "tiny": {"seeds": 1, "width": 16, "windows": 8, "batch": 2, "warmup": 2},
        "quick": {"seeds": 2, "width": 32, "windows": 64, "warmup": 25},
        "full": {"seeds": 3},
    },
    settings={"width": 48, "batch": 16, "context": 64, "windows": 256, "warmup": 100},
    together=("seed",),
    claims=[
        Claim(
            "Fitted to a constant and a cosine run, the law foretells the curves of schedules never run.",
            _small_error,
            where="section 3 and the figures of predicted schedules",
            threshold="mean relative error over the last half of five other schedules at most 1 %; "
                      "contradicted above 2 %",
        ),
        Claim(
            "It is the annealing area that does it: without it the schedules are told far worse.",
            _beats_area,
            where="section 3, ablation of S2",
            threshold="the error of a power of S1 alone is at least three times as large; "
                      "contradicted below 1.5",
        ),
        Claim(
            "The law ranks schedules as training does.",
            _ranks,
            where="section 4",
            threshold="rank correlation of final losses, seven schedules, at least 0.8; "
                      "contradicted below 0.5",
        ),
        Claim(
            "The delay of 0.999 that serves long runs serves short ones.",
            _same_delay,
            where="section 3, the choice of the decay factor",
            threshold="the error at 0.999 is at most 1.1 times that at the delay fitted; "
                      "contradicted above 1.5",
        ),
        Claim(
            "Counting in a power of the learning rate foretells better than counting in the rate.",
            _effective_rates,
            where="not in the paper: the law of effective rates of this library",
            threshold="the error of the annealing law is larger (95 %)",
        ),
    ],
)  # fmt: skip


@annealing.trial
def _trial(arm: Any, seed: list[int], profile: Profile) -> list[list[dict[str, Any]]]:
    import torch

    from allometry import data, models, optim, train

    corpus = _corpus()
    steps = annealing.axes[0].values(profile.name)
    config = models.GPTConfig(width=profile.width, depth=2, head_size=16, context=profile.context)
    seeds = [train.Seeds(one) for one in seed]
    stack = train.Stack([models.GPT(config, generator=one.generator("init")) for one in seeds])
    windows = data.validation_windows(corpus.tokens("validation"), config.context, profile.windows)
    sources = [
        data.Windows(corpus.tokens("train"), config.context, profile.batch, seed=one.integer("data"))
        for one in seeds
    ]
    curves: list[torch.Tensor] = []

    def watch(done: int, total: int, **_: Any) -> None:
        if done in steps:
            curves.append(train.evaluate(stack, windows))

    log = train.fit(
        stack, data.StackedWindows(sources), horizons=max(steps), clip=1.0,
        optimizer=stack.optimizer(
            lambda model, peak: optim.AdamWIndependent(model.parameters(), peak, betas=(0.9, 0.95)), _PEAK
        ),
        schedule=_schedule(arm.settings, profile.warmup),
        log_every=max(steps), progress=watch,
    )  # fmt: skip
    told = []
    for replica in range(len(seed)):
        lost = log.diverged.get(replica)
        rows: list[dict[str, Any]] = []
        for step, curve in zip(steps, curves, strict=False):
            loss = float(curve[replica])
            rows.append({"step": step, "loss": loss, "bits per byte": train.bits_per_byte(loss)})
        told.append(rows if lost is None else [row | {"diverged": lost} for row in rows])
    return told


paper = Paper(
    slug="lr-annealing-law",
    title="Scaling Law with Learning Rate Annealing",
    authors="Howe Tissue, Venus Wang, Lu Wang",
    year=2024,
    arxiv="2408.11029",
    summary=(
        "The loss at any step of any learning-rate schedule is a power of the area under the schedule so far "
        "less a term for how far the rate has come down, each fall with a delay. Four constants, fitted to "
        "the logged points of one or two runs, then give the curves of schedules that were never run: a "
        "cosine from a constant and one decay, all horizons from one trunk. Beside it stand the multi-power "
        "law and a law of effective rates; `laws.ScheduleLaw` weights them by what they foretell within the "
        "runs at hand."
    ),
    studies=(annealing,),
    parts=(
        "allometry.laws.AnnealingLaw", "allometry.laws.MultiPowerLaw", "allometry.laws.EffectiveRateLaw",
        "allometry.laws.ScheduleLaw", "allometry.laws.forecast_schedule", "allometry.laws.schedule_areas",
        "allometry.laws.rank_schedules", "allometry.laws.best_schedule", "allometry.laws.horizon_losses",
        "allometry.optim.schedule_rates", "allometry.optim.wsd_decay", "allometry.optim.rewarmed",
    ),
)  # fmt: skip
