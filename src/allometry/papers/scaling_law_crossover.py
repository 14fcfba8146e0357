"""Two scaling curves cross: what wins on small models, or little data, may lose on large ones, or a stream.

Lechao Xiao, 2024. arXiv:2409.15156

Four cases on Fashion-MNIST, single-pass where the paper's setting is (a stream of images, each moved at
random), with residual perceptrons in torch's default initialization.  The paper trains transformers on C4;
its widths begin where ours end, so a crossing here is one of the same two rules, not of the same two curves.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from allometry.papers import Paper
from allometry.study import Claim, Estimate, Profile, Result, Study, Test, Tune, axis, undecided

if TYPE_CHECKING:
    from allometry.train import TrainLog

_BASE = 32  # the width at which rates are tuned, and where all rules agree by construction
_RATES = (3e-4, 6e-4, 1.2e-3, 2.4e-3, 4.8e-3, 9.6e-3, 1.92e-2)
_DECAYS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2)
_EDGE = tuple(1e-3 * 2.0 ** (k / 2) for k in range(-4, 19))  # 2.5e-4 to 0.5, by factors of √2


# --- trials -------------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=4)
def _images(few: int | None, size: int, count: int) -> tuple[Any, Any, Any, str]:
    """Training images, validation images for tuning (a twelfth), test images for what is reported, digest."""
    from allometry.data import fashion_mnist

    train = fashion_mnist("train", count, size=size)
    test = fashion_mnist("test", min(count, 10_000), size=size)
    kept = count - count // 12
    first = few or kept
    known = train.images[:first], train.labels[:first]
    unseen = (train.images[kept:], train.labels[kept:]), (test.images, test.labels)
    return known, *unseen, train.digest


def _train(
    width: int, seeds: Sequence[int], rates: float | Sequence[float], profile: Profile, *,
    few: int | None = None, decay: float = 0.0, normalise: bool = False,
) -> list[TrainLog]:  # fmt: skip
    """One log a seed: stacked models, paired by seed across whatever else is chosen."""
    import torch

    from allometry import models, optim, train
    from allometry.data import Augment, AugmentedBatches, ImageBatches

    (images, labels), validation, test, _ = _images(few, profile.size, profile.images)
    sources: list[Any] = [ImageBatches(images, labels, profile.batch, seed) for seed in seeds]
    if few is None:
        moved = Augment(shift=1)
        sources = [AugmentedBatches(one, moved, seed) for one, seed in zip(sources, seeds, strict=True)]
    steps = profile.steps if few is None else profile.epochs * math.ceil(few / profile.batch)

    def make(generator: torch.Generator) -> torch.nn.Module:
        return models.MLP(profile.size**2, 10, width=width, depth=3, residual=True, generator=generator)

    return train.train_classifier(
        make, sources, validation=validation if profile.tuning else test, horizons=steps,
        generators=[train.Seeds(seed).generator("init") for seed in seeds], learning_rates=rates,
        make_optimizer=lambda model, rate: torch.optim.Adam(model.parameters(), rate, weight_decay=decay),
        on_optimizer=optim.GradientRMSNorm if normalise else None,
        schedule=optim.constant, clip=None, log_every=max(1, steps // 20),
    )  # fmt: skip


def _told(log: TrainLog, profile: Profile, **more: Any) -> dict[str, Any]:
    digest = _images(None, profile.size, profile.images)[-1]
    record = {"loss": math.nan, "error": math.nan, "data": digest, **more}
    if log.horizons:
        record |= {"loss": log.horizons[-1]["loss"], "error": log.horizons[-1]["error"]}
    if log.status == "diverged":
        record["diverged"] = next(iter(log.diverged.values()), 0)
    return record


# --- S1: one rate for all widths, or one that falls with width ---------------------------------------------
def _crossing(result: Result) -> Test:
    """Whether the curves cross within the widths measured, above the width at which they agree."""
    told = result.crossover("1/width", least=2 * _BASE)
    largest = max(result.study.axes[0].values(result.profile))
    gain = result.gap("1/width", at={"width": largest})
    if told.verdict == "helps above x":
        ends = Estimate(
            float(told.x),
            float(told.interval.low),
            float(told.interval.high),
            n=gain.n,
            what="width at which they cross",
        )
        return (gain < 0) & ends.judge(holds=(2 * _BASE, largest), contradicted=(10 * largest, math.inf))
    return (gain < 0) & undecided(f"the verdict over widths is: {told.verdict}", gain)


rules = Study(
    "scaling-law-crossover/rate-rule",
    question="Does a learning rate that falls as one over width overtake a constant one as networks widen?",
    arms=("constant", "1/width", "1/sqrt(width)"),
    axis=axis("width", tiny=(32, 64), quick=(32, 64, 128, 256, 512), full=(32, 64, 128, 256, 512, 1024)),
    measures=("loss", "error"),
    profiles={
        "tiny": {"seeds": 1, "steps": 4, "images": 1000},
        "quick": {"seeds": 2, "steps": 200},
        "full": {"seeds": 4, "steps": 800},
    },
    settings={"batch": 64, "size": 14, "images": 60_000},
    together=("seed",),
    tune=Tune(
        "learning rate", {"tiny": _RATES[3:5], "quick": _RATES[1:6], "full": _RATES}, on="loss", seeds=2
    ),
    weight=lambda arm, width: float(width) ** 1.5,
    claims=[
        Claim(
            "At large width a rate that falls as one over width is better than a constant one; at small "
            "width they are level: the curves cross.",
            _crossing,
            where="the first worked case (η = 2/1024 against 2/D)",
            threshold="1/width has the lower loss at the largest width, and the interval for the crossing "
                      "lies within the widths measured above the base; contradicted beyond ten times that",
        )
    ],
)  # fmt: skip


@rules.trial
def _rule(arm: str, width: int, seed: list[int], profile: Profile) -> list[dict[str, Any]]:
    from allometry.optim import learning_rate_rule

    rate = learning_rate_rule(arm, base_width=_BASE, base_rate=profile.learning_rate)(width)
    return [_told(log, profile, rate=rate) for log in _train(width, seed, rate, profile)]


# --- S2: the best rate and the largest stable one ----------------------------------------------------------
def _edge_ratio(result: Result, arm: str) -> Estimate:
    """Best over largest stable rate, in log2, averaged over widths, for each seed."""

    def statistic(part: Any) -> float:
        found = []
        for _, line in part[part["arm"] == arm].groupby("width"):
            line = line.sort_values("rate")
            stable = line[line["status"] == "done"]
            first_lost = line.loc[line["status"] == "diverged", "rate"].min()
            stable = stable if math.isnan(first_lost) else stable[stable["rate"] < first_lost]
            best = stable.loc[stable["loss"].idxmin(), "rate"]
            found.append(math.log2(best / stable["rate"].max()))
        return sum(found) / len(found)

    return result.each_seed(statistic, what=f"log2 of best over largest stable rate, {arm}")


def _below_the_edge(result: Result) -> Test:
    return _edge_ratio(result, "stream").judge(
        holds=(-math.inf, -1.0), contradicted=(math.log2(0.8), math.inf)
    )


edge = Study(
    "scaling-law-crossover/edge",
    question="How far below the largest stable learning rate does the best one lie?",
    arms=("stream", "small data"),
    axes=[
        axis("width", tiny=(16,), quick=(64,), full=(32, 128, 512)),
        axis("rate", tiny=_EDGE[::8], quick=_EDGE[::2], full=_EDGE),
    ],
    measures=("loss", "error"),
    profiles={
        "tiny": {"seeds": 1, "steps": 4, "epochs": 1, "few": 64, "images": 1000},
        "quick": {"seeds": 2, "steps": 150, "epochs": 10, "few": 1000},
        "full": {"seeds": 3, "steps": 400, "epochs": 40, "few": 1000},
    },
    settings={"batch": 64, "size": 14, "images": 60_000},
    together=("seed", "rate"),
    over="rate",
    data_by_arm=True,
    weight=lambda arm, width, rate: float(width) ** 1.5,
    claims=[
        Claim(
            "On a stream the best learning rate is well below the largest stable one.",
            _below_the_edge,
            where="section on learning rates",
            threshold="the ratio is at most one half at 95 %; contradicted above 0.8",
        )
    ],
)


@edge.trial
def _at_rate(
    arm: str, width: int, rate: list[float], seed: list[int], profile: Profile
) -> list[dict[str, Any]]:
    logs = _train(width, seed, rate, profile, few=profile.few if arm == "small data" else None)
    return [_told(log, profile) for log in logs]


# --- S3: L2 regularization ---------------------------------------------------------------------------------
def _best_gain(result: Result, arm: str) -> list[Estimate]:
    """Relative gain of each positive decay over none, at a level that allows for there being several."""
    axis_ = result.study.axes[0]
    positive = [one for one in axis_.values(result.profile) if one > 0]
    level = 1 - 0.05 / len(positive)
    none = result.values(arm, at={"decay": 0.0})
    return [
        Estimate.of(
            1 - result.values(arm, at={"decay": one}) / none,
            level=level,
            what=f"gain of decay {one:g}, {arm}",
        )
        for one in positive
    ]


def _no_gain(result: Result) -> Test:
    """On a stream no decay gains half a percent."""
    judged = [gain < 0.005 for gain in _best_gain(result, "stream")]
    return functools.reduce(lambda a, b: a & b, judged)


def _gain(result: Result) -> Test:
    """With little data the best decay gains."""
    best = max(_best_gain(result, "small data"), key=lambda one: one.low)
    return best > 0


decay = Study(
    "scaling-law-crossover/decay",
    question="Does an L2 penalty help where every sample is fresh, as it does where few are seen again?",
    arms=("stream", "small data"),
    axis=axis("decay", *_DECAYS, tiny=_DECAYS[:4:3], log=False),
    measures=("loss", "error"),
    profiles={
        "tiny": {"seeds": 1, "steps": 4, "epochs": 1, "few": 64, "width": 16, "images": 1000},
        "quick": {"seeds": 2, "steps": 200, "epochs": 15, "few": 1000, "width": 128},
        "full": {"seeds": 4, "steps": 1200, "epochs": 60, "few": 1000, "width": 256},
    },
    settings={"batch": 64, "size": 14, "images": 60_000, "rate": 1e-3},
    together=("seed",),
    data_by_arm=True,
    claims=[
        Claim(
            "L2 does not help on a stream.",
            _no_gain,
            where="section on regularization",
            threshold="no positive penalty lowers the test loss by 0.5 % or more (95 %, all together)",
        ),
        Claim(
            "L2 helps where data are few.",
            _gain,
            where="section on regularization",
            threshold="the best positive penalty lowers the test loss (95 %, all together)",
        ),
    ],
)


@decay.trial
def _with_decay(arm: str, penalty: float, seed: list[int], profile: Profile) -> list[dict[str, Any]]:
    few = profile.few if arm == "small data" else None
    return [
        _told(log, profile)
        for log in _train(profile.width, seed, profile.rate, profile, few=few, decay=penalty)
    ]


# --- S4: normalised gradients ------------------------------------------------------------------------------
def _fades(result: Result) -> Test:
    slope = result.slope_of_gap("normalised")
    verdict = result.crossover("normalised").verdict
    if verdict in ("no difference", "undecided"):
        return undecided(f"the verdict over widths is: {verdict}", slope)
    return slope > 0


gradients = Study(
    "scaling-law-crossover/gradient-norm",
    question="Does dividing gradients by their root mean square help small networks and fail large ones?",
    arms=("none", "normalised"),
    axis=axis("width", tiny=(32, 64), quick=(32, 64, 128), full=(32, 64, 128, 256, 512)),
    measures=("loss", "error"),
    profiles={
        "tiny": {"seeds": 1, "steps": 4, "images": 1000},
        "quick": {"seeds": 2, "steps": 150},
        "full": {"seeds": 4, "steps": 600},
    },
    settings={"batch": 64, "size": 14, "images": 60_000, "rate": 2.4e-3},
    together=("seed",),
    weight=lambda arm, width: float(width) ** 1.5,
    claims=[
        Claim(
            "The gain of normalised gradients fades and turns as models grow, under one rate for all widths.",
            _fades,
            where="figure on techniques under a constant rate; the paper leaves it unexplained",
            threshold="exploratory: they differ, and the gap in log loss rises with log width (95 %)",
        )
    ],
)  # fmt: skip


@gradients.trial
def _normalised(arm: str, width: int, seed: list[int], profile: Profile) -> list[dict[str, Any]]:
    logs = _train(width, seed, profile.rate, profile, normalise=arm == "normalised")
    return [_told(log, profile) for log in logs]


paper = Paper(
    slug="scaling-law-crossover",
    title="Rethinking Conventional Wisdom in Machine Learning: From Generalization to Scaling",
    authors="Lechao Xiao",
    year=2024,
    arxiv="2409.15156",
    summary=(
        "With a stream of fresh data the habits of small data fail: an L2 penalty does not help, the best "
        "learning rate is well below the largest stable one, and two recipes that look alike on small models "
        "may cross further up. So a comparison on small models must say up to which scale it holds; this "
        "entry brings the estimator that does (`laws.crossover`), and re-measures four of the cases."
    ),
    studies=(rules, edge, decay, gradients),
    parts=(
        "allometry.laws.crossover", "allometry.optim.learning_rate_rule", "allometry.optim.GradientRMSNorm",
        "allometry.data.Augment",
    ),
)  # fmt: skip
