"""Resampling until the tests pass does not make a weak model strong: incomplete tests set a ceiling.

Benedikt Stroebl, Sayash Kapoor, Arvind Narayanan, 2024. arXiv:2411.17501

The paper's models write Python for HumanEval and MBPP; here a ladder of small transformers, each at several
lengths of training, reads six rows of a hidden truth table and writes a Boolean program.  The six rows are
the tests, all sixteen the truth, so what passes wrongly is counted without error.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from allometry.papers import Paper
from allometry.study import Claim, Estimate, Profile, Result, Study, Test, axis

if TYPE_CHECKING:
    import torch

_TESTS = (4, 6, 8, 12, 16)  # rows that a verifier looks at; sixteen are all
_MOST = 1000  # stands for a best K that is infinite or larger


def _judged(
    model: torch.nn.Module, source: Any, tasks: Any, profile: Profile, generator: torch.Generator
) -> torch.Tensor:
    """Programs of the model, ``(tasks, samples, longest + 1)``, a few tasks at a time."""
    import torch

    from allometry.infer import TokenSampler

    length = source.longest + 1
    sampler = TokenSampler(
        model, encode=list, decode=lambda tokens: tokens + [source.end] * (length - len(tokens)),
        max_new_tokens=length, temperature=profile.temperature, stop=source.end,
    )  # fmt: skip
    prompts = source.prompts(tasks).tolist()
    together = max(1, 4000 // profile.samples)
    drawn: list[Any] = []
    for first in range(0, len(prompts), together):
        part = prompts[first : first + together]
        drawn += sampler.many(part, [profile.samples] * len(part), generator)
    return torch.tensor(drawn)


def _told(source: Any, tasks: Any, programs: torch.Tensor, profile: Profile) -> dict[str, float]:
    """What the tests and the truth say of programs."""
    from allometry.laws import AcceptanceTable, ceiling, optimal_k, resampling_curve

    correct = source.passes(tasks, programs).numpy()
    record: dict[str, float] = {"coverage": float(correct.any(axis=1).mean())}
    for rows in _TESTS:
        table = AcceptanceTable(source.passes(tasks, programs, rows).numpy(), correct)
        top = ceiling(table, resamples=0)
        record[f"ceiling, {rows} rows"] = top.accuracy.value
        if rows != source.rows:
            continue
        best = optimal_k(table, cost_false=profile.cost_false, resamples=0)
        record |= {
            "single": table.pass_at_1, "conditional": top.pooled.value, "ceiling": top.accuracy.value,
            "ceiling at best": top.best.value, "conditional, solved tasks": top.seen.value,
            "best K": min(best.k, _MOST), "reward": best.reward.value, "soundness": table.soundness,
            "accuracy at all samples": float(resampling_curve(table, [profile.samples]).accuracy[0]),
        }  # fmt: skip
    return record


# --- rules --------------------------------------------------------------------------------------------------
def _correlation(part: Any) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(part["single"], part["conditional"])[0, 1]) if len(part) > 2 else math.nan


def _slope(part: Any) -> float:
    x = part["single"].to_numpy(float) - part["single"].mean()
    return float(x @ part["conditional"].to_numpy(float) / (x @ x)) if x.any() else math.nan


def _weakest(part: Any) -> Any:
    return part.nsmallest(max(1, len(part) // 3), "single")


def _strongest(part: Any) -> Any:
    return part.loc[part["single"].idxmax()]


def _related(result: Result) -> Test:
    r = result.each_seed(_correlation, what="correlation over models")
    slope = result.each_seed(_slope, what="slope over models")
    return r.judge(holds=(0.7, 1.0), contradicted=(-1.0, 0.0)) & (slope > 0)


def _below(result: Result) -> Test:
    gap: Estimate = result.each_seed(
        lambda part: float(_weakest(part)["ceiling"].mean() - _strongest(part)["single"]),
        what="ceiling of the weakest third less one sample of the strongest",
    )
    return gap < 0


def _few(result: Result) -> Test:
    weak = result.each_seed(lambda part: float(_weakest(part)["best K"].max()), what="best K, weakest third")
    gap = result.each_seed(
        lambda part: float(_strongest(part)["best K"] - _weakest(part)["best K"].mean()),
        what="best K of the strongest less that of the weakest third",
    )
    return (weak < 20) & gap.judge(holds=(0.0, math.inf))


def _more_tests(result: Result) -> Test:
    def gain(low: int, high: int) -> Estimate:
        return result.each_seed(
            lambda part: float((part[f"ceiling, {high} rows"] - part[f"ceiling, {low} rows"]).mean()),
            what=f"ceiling with {high} rows less with {low}",
        )

    return (gain(4, 6) > 0.02) & (gain(6, 8) > 0.02) & (gain(8, 12) > 0.02)


study = Study(
    "resampling-limits",
    question="Can a weak model that draws until its tests pass do as well as one sample of a strong model?",
    arms=("transformer",),
    axes=[
        axis("width", tiny=(16,), quick=(16, 32), full=(16, 32, 64)),
        axis("steps", tiny=(2, 4), quick=(100, 400), full=(150, 500, 1500), recorded=True),
    ],
    measures=("ceiling", "single", "conditional", "best K"),
    lower_is_better=False,
    profiles={
        "tiny": {"seeds": 1, "tasks": 12, "samples": 20, "batch": 16, "warmup": 1, "horizons": [2, 4]},
        "quick": {"seeds": 1, "tasks": 100, "samples": 50, "horizons": [100, 400]},
        "full": {"seeds": 3, "tasks": 200, "samples": 200, "horizons": [150, 500, 1500]},
    },
    settings={"batch": 64, "warmup": 50, "rate": 4e-3, "temperature": 0.8, "cost_false": 2.0},
    weight=lambda arm, width: float(width),
    claims=[
        Claim(
            "The share of correct among passing samples is strongly related to the share of correct samples.",
            _related,
            where="figure 1: R² 0.89 on HumanEval+, slope 0.22",
            threshold="over the models of a seed the correlation is at least 0.7, and not such that its 95 % "
                      "interval includes 0, and the slope is positive",
        ),
        Claim(
            "No amount of resampling lets the weakest models reach one sample of the strongest.",
            _below,
            where="section 3",
            threshold="the weakest third's mean ceiling lies below the strongest's single-sample accuracy",
        ),
        Claim(
            "Where a wrong answer costs twice what a right one brings, few samples pay for weak models, and "
            "no fewer for the strongest.",
            _few,
            where="section 4, λ = 2",
            threshold="best K of each of the weakest third below 20, the strongest's at least their mean",
        ),
        Claim(
            "More tests raise the ceiling.",
            _more_tests,
            where="section 6",
            threshold="each of 4 to 6, 6 to 8 and 8 to 12 rows raises the mean ceiling by more than 0.02",
        ),
    ],
)  # fmt: skip


@study.trial
def _trial(arm: str, width: int, seed: int, profile: Profile) -> list[dict[str, Any]]:
    from allometry import models, optim, train
    from allometry.data import BooleanPrograms

    seeds = train.Seeds(seed)
    source = BooleanPrograms(batch=profile.batch, seed=seeds.integer("data"))
    tasks = source.tasks(profile.tasks, seeds.generator("tasks"))
    digest = hashlib.sha256(tasks.tables.numpy().tobytes() + source.batch(0)[0].numpy().tobytes()).hexdigest()
    config = models.GPTConfig(
        width=width, depth=2, vocab_size=len(source.vocabulary), context=source.context
    )  # fmt: skip
    random = source.programs(profile.tasks * profile.samples, seeds.generator("random programs"))
    blind = _told(source, tasks, random.view(profile.tasks, profile.samples, -1), profile)
    found: list[dict[str, float]] = []

    def validate(stack: Any) -> dict[str, float]:
        programs = _judged(stack.unstack(0), source, tasks, profile, seeds.generator("samples"))
        found.append(_told(source, tasks, programs, profile))
        return {}

    (log,) = train.fit_stack(
        lambda generator: models.GPT(config, generator=generator), 1, [source],
        generators=[seeds.generator("init")], horizons=list(profile.horizons),
        learning_rates=profile.rate * math.sqrt(32 / width), validate=validate,
        schedule=optim.WSD(warmup=profile.warmup, decay=0.3), log_every=max(profile.horizons),
    )  # fmt: skip
    lost = next(iter(log.diverged.values()), None)
    known = {
        "random conditional": blind["conditional"], "random single": blind["single"],
        "random ceiling": blind["ceiling"], "data_digest": digest[:16], **config.parameters(),
    }  # fmt: skip
    return [
        {"steps": steps, **told, **known, **({} if lost is None else {"diverged": lost})}
        for steps, told in zip(sorted(profile.horizons), found, strict=True)
    ]


@study.figure
def _figure(result: Result, figure: Any) -> None:
    axes = figure.subplots()
    rows = result.table.sort_values("single")
    axes.plot(rows["single"], rows["conditional"], "o", label="correct among passing samples")
    axes.plot(rows["single"], rows["ceiling"], "s", label="ceiling of resampling")
    top = float(rows["single"].max())
    axes.axhline(top, color="gray", linestyle=":", label="one sample of the strongest")
    axes.plot([0, top], [0, top], color="gray", linewidth=0.8)
    axes.set(xlabel="share of correct samples (pass@1)", ylabel="share", ylim=(0, 1))
    axes.legend()


paper = Paper(
    slug="resampling-limits",
    title="Inference Scaling fLaws: The Limits of LLM Resampling with Imperfect Verifiers",
    authors="Benedikt Stroebl, Sayash Kapoor, Arvind Narayanan",
    year=2024,
    arxiv="2411.17501",
    summary=(
        "Drawing samples until one passes improves without limit only if what passes is right. Tests that "
        "miss errors set a ceiling, the share of correct among passing samples, and that share is lower for "
        "weaker models; where a wrong answer costs something the best number of samples is small. The parts "
        "say for your own samples where the ceiling is and how many pay; the study finds both on Boolean "
        "programs, where every truth is known."
    ),
    studies=(study,),
    parts=(
        "allometry.laws.AcceptanceTable", "allometry.laws.resampling_curve", "allometry.laws.optimal_k",
        "allometry.laws.ceiling", "allometry.laws.two_type_model", "allometry.laws.weak_to_strong",
        "allometry.infer.best_of", "allometry.infer.UnitTests", "allometry.data.BooleanPrograms",
    ),
)  # fmt: skip
