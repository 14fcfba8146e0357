"""Momentum lengthens weights that only have a direction, so their effective steps decay too early.

Heo, Chun, Oh, Han, Yun, Kim, Uh and Ha, 2020. arXiv:2006.08217

Three questions on convolutional networks with batch norms and Fashion-MNIST: how much faster momentum
lengthens such weights, whether taking the radial part off the step costs or gains test error once both are
tuned, under a decaying and a constant rate, and whether the cosine test finds the weights that it is meant
to find.  The paper trains ImageNet networks; what is exact there (the balance of lengths) is exact here,
and what is small there (the gain in error) may drown here.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

from allometry.papers import Paper
from allometry.study import Claim, Profile, Result, Study, Test, Tune, axis

if TYPE_CHECKING:
    from torch import Tensor, nn

_BETAS = (0.0, 0.5, 0.8, 0.9, 0.95)


@functools.lru_cache(maxsize=2)
def _images(count: int, size: int) -> Any:
    """Training, validation (for tuning) and test images, and the digest of the first two."""
    from allometry.data import fashion_mnist

    train = fashion_mnist("train", count + 2000, size=size)
    test = fashion_mnist("test", 10_000 if count > 2000 else 500, size=size)
    known = train.images[:count], train.labels[:count]
    return known, (train.images[count:], train.labels[count:]), (test.images, test.labels), train.digest


def _network(width: int, seed: int) -> nn.Sequential:
    """Three convolutions, each followed by a batch norm (whose eps is too small to matter), and a head."""
    import torch
    from torch import nn

    from allometry import train
    from allometry.models.start import start_

    with torch.device("meta"):
        layers: list[nn.Module] = []
        for depth in range(3):
            stride = 1 if depth == 0 else 2
            layers += [
                nn.Conv2d(width if depth else 1, width, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(width, eps=1e-8), nn.ReLU(),
            ]  # fmt: skip
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
    return start_(model, train.Seeds(seed).generator("init"))  # type: ignore[return-value]


def _optimizer(arm: str, parameters: Any, rate: float, beta: float, decay: float) -> Any:
    import torch

    from allometry import optim

    kind = arm.removesuffix(" constant")
    if kind in ("sgd", "sgdp"):
        return optim.SGDP(parameters, lr=rate, momentum=beta, weight_decay=decay,
                          projection="auto" if kind == "sgdp" else "off")  # fmt: skip
    if kind == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    return optim.AdamP(parameters, lr=rate, weight_decay=decay)


# --- lengths ------------------------------------------------------------------------------------------------
def _of(part: Any, arm: str, beta: float, column: str) -> float:
    rows = part[(part["arm"] == arm) & (part["beta"] == beta)]
    return float(rows[column].mean())


def _balance(result: Result) -> Test:
    """The worst relative error of the squared length that the projected steps foretell."""
    found = result.each_seed(
        lambda part: max(abs(_of(part, "sgdp", beta, "balance") - 1.0) for beta in _betas(result)),
        what="largest error of growth over the sum of squared projected steps",
    )
    return found.judge(holds=(0.0, 1e-3), contradicted=(1e-2, math.inf))


def _betas(result: Result) -> list[float]:
    return [float(beta) for beta in result.study.axes[0].values(result.profile)]


def _growth(result: Result) -> Test:
    """Squared length gained without projection over with it, at momentum 0.9."""
    found = result.each_seed(
        lambda part: _of(part, "sgd", 0.9, "growth") / _of(part, "sgdp", 0.9, "growth"),
        what="growth of squared lengths, SGD over SGDP, at momentum 0.9",
    )
    return found.judge(holds=(4.0, math.inf), contradicted=(0.0, 2.0))


def _rising(result: Result) -> Test:
    """Whether that ratio rises with momentum: its slope in 1 + 2 beta / (1 - beta), on log scales."""
    import numpy as np

    betas = _betas(result)

    def slope(part: Any) -> float:
        ratio = [_of(part, "sgd", beta, "growth") / _of(part, "sgdp", beta, "growth") for beta in betas]
        ideal = [1 + 2 * beta / (1 - beta) for beta in betas]
        return float(np.polyfit(np.log(ideal), np.log(ratio), 1)[0])

    return result.each_seed(slope, what="exponent of the growth's ratio in 1 + 2 beta / (1 - beta)") > 0


def _effective(result: Result) -> Test:
    found = result.each_seed(
        lambda part: _of(part, "sgdp", 0.9, "angle") / _of(part, "sgd", 0.9, "angle"),
        what="angle of a step in the last tenth, SGDP over SGD, at momentum 0.9",
    )
    return found.judge(holds=(1.5, math.inf), contradicted=(0.0, 1.0))


lengths = Study(
    "adamp/lengths",
    question="How much faster does momentum lengthen weights that only have a direction?",
    arms=("sgd", "sgdp"),
    axis=axis("beta", *_BETAS, tiny=(0.0, 0.9), quick=(0.0, 0.5, 0.9), log=False),
    measures=("growth", "angle", "balance", "loss"),
    lower_is_better=None,
    profiles={
        "tiny": {"seeds": 1, "steps": 6, "images": 500},
        "quick": {"seeds": 2, "steps": 150},
        "full": {"seeds": 5, "steps": 600},
    },
    settings={"width": 16, "batch": 64, "size": 14, "images": 10_000, "rate": 0.1},
    claims=[
        Claim(
            "With projected steps a weight's squared length grows by its squared steps alone.",
            _balance,
            where="equation 10 and lemma 2.1",
            threshold="growth over the sum of squared steps is one within 1e-3 at every momentum; "
                      "contradicted beyond 1e-2",
        ),
        Claim(
            "Momentum makes such weights grow several times faster.",
            _growth,
            where="section 2.3 (19 times where steps keep their size; lengths feed back on steps)",
            threshold="four times or more at momentum 0.9; contradicted below two",
        ),
        Claim(
            "The more momentum, the faster.",
            _rising,
            where="section 2.3",
            threshold="the ratio rises with 1 + 2 beta / (1 - beta) (95 %)",
        ),
        Claim(
            "Without the radial part the effective step stays larger.",
            _effective,
            where="section 2.4",
            threshold="the angle of a step in the last tenth is 1.5 times or more; contradicted below one",
        ),
    ],
)  # fmt: skip


@lengths.trial
def _lengths(arm: str, beta: float, seed: int, profile: Profile) -> dict[str, Any]:
    from allometry import data, measure, optim, train

    known, _, _, digest = _images(profile.images, profile.size)
    model = _network(profile.width, seed)
    optimizer = _optimizer(arm, model.parameters(), profile.rate, beta, 0.0)
    # The first layer's inputs, and so its gradients, differ in kind; all three are followed by a norm.
    with measure.EffectiveStep(model, optimizer, include=lambda name, one: one.dim() == 4) as watch:
        log = train.fit(
            model, data.ImageBatches(known[0], known[1], profile.batch, seed), optimizer=optimizer,
            horizons=profile.steps, schedule=optim.constant, objective=train.classification_loss, clip=None,
            log_every=max(1, profile.steps // 10),
        )  # fmt: skip
    table, growth = watch.table(), watch.growth()
    late = table[table["step"] >= 0.9 * profile.steps]
    return {
        "growth": float((growth["end"] - growth["start"]).mean()), "angle": float(late["angle"].mean()),
        "balance": float(growth["balance"].mean()), "loss": float(log.steps[-1]["loss"]), "data": digest,
    }  # fmt: skip


# --- errors -------------------------------------------------------------------------------------------------
def _no_worse(arm: str, base: str) -> Any:
    def rule(result: Result) -> Test:
        width = max(result.study.axes[0].values(result.profile))

        def points(part: Any) -> float:
            rows = part[part["width"] == width].set_index("arm")["error"]
            return float(100 * (rows[arm] - rows[base]))

        found = result.each_seed(points, what=f"test error of {arm} less that of {base}, in points")
        return found.judge(holds=(-math.inf, 0.2), contradicted=(0.5, math.inf))

    rule.__name__ = f"_no_worse_{arm}_{base}".replace(" ", "_")
    return rule


errors = Study(
    "adamp/error",
    question="Does taking the radial part off the step cost or gain test error, each at its best rate?",
    arms=("sgd", "sgdp", "adamw", "adamp", "sgd constant", "sgdp constant"),
    axis=axis("width", 8, 16, 32, tiny=(8,), quick=(8, 16)),
    measures=("error", "loss"),
    profiles={
        "tiny": {"seeds": 1, "steps": 3, "images": 500},
        "quick": {"seeds": 2, "steps": 100},
        "full": {"seeds": 12, "steps": 400},
    },
    settings={"batch": 64, "size": 14, "images": 10_000},
    tune=Tune(
        "learning rate",
        {"tiny": (0.1,), "quick": (0.1, 0.3, 1.0), "full": (0.03, 0.1, 0.3, 1.0, 3.0)},
        on="loss", seeds=1,
    ),
    version=2,  # 1 ended its grid at 0.3, which four arms chose, and four seeds left 1.7 points open
    weight=lambda arm, width: float(width),
    claims=[
        Claim(
            "SGDP errs no more than SGD, each at its best rate.",
            _no_worse("sgdp", "sgd"),
            where="table 3",
            threshold="within 0.2 points of the base at the largest width; contradicted above 0.5",
        ),
        Claim(
            "AdamP errs no more than AdamW, each at its best rate.",
            _no_worse("adamp", "adamw"),
            where="table 3",
            threshold="within 0.2 points of the base at the largest width; contradicted above 0.5",
        ),
    ],
)  # fmt: skip


@errors.trial
def _errors(arm: str, width: int, seed: int, profile: Profile) -> dict[str, Any]:
    from allometry import data, optim, train

    known, validation, test, digest = _images(profile.images, profile.size)
    model = _network(width, seed)
    adaptive = arm.startswith("adam")
    rate = profile.learning_rate * (0.1 if adaptive else 1.0)
    optimizer = _optimizer(arm, model.parameters(), rate, 0.9, 1e-2 if adaptive else 1e-4)
    log = train.fit(
        model, data.ImageBatches(known[0], known[1], profile.batch, seed), optimizer=optimizer,
        horizons=profile.steps, schedule=optim.constant if arm.endswith("constant") else optim.cosine,
        objective=train.classification_loss, clip=None, log_every=max(1, profile.steps // 10),
        validate=lambda one: train.evaluate_classifier(one, validation if profile.tuning else test),
    )  # fmt: skip
    record = {"error": math.nan, "loss": math.nan, "rate": rate, "data": digest}
    if log.horizons:
        record |= {"error": float(log.horizons[-1]["error"]), "loss": float(log.horizons[-1]["loss"])}
    if log.status == "diverged":
        record["diverged"] = next(iter(log.diverged.values()), 0)
    return record


# --- the test -----------------------------------------------------------------------------------------------
def _finds(of: str, what: str) -> Any:
    """Weights that pass the test and are invariant, as a share of those that are one of the two."""

    def rule(result: Result) -> Test:
        found = result.each_seed(
            lambda part: float(part["both"].sum() / part[of].sum()) if part[of].sum() else math.nan,
            what=f"{what} of the cosine test, all networks and widths",
        )
        return found.judge(holds=(0.95, 1.0), contradicted=(0.0, 0.8))

    rule.__name__ = f"_finds_{of}"
    return rule


detector = Study(
    "adamp/test",
    question="Does the cosine test find the weights that only have a direction, and no others?",
    arms=("convolutions", "perceptron", "transformer"),
    axis=axis("width", 16, 32, 64, tiny=(16,), quick=(16, 32)),
    measures=("agreement",),
    lower_is_better=None,
    profiles={
        "tiny": {"seeds": 1, "steps": 2, "images": 500},
        "quick": {"seeds": 2, "steps": 20},
        "full": {"seeds": 5, "steps": 60},
    },
    settings={"batch": 64, "size": 14, "images": 2000, "rate": 1e-3},
    claims=[
        Claim(
            "What the test takes for invariant is so when it is scaled.",
            _finds("tested", "precision"),
            where="section 3.2",
            threshold="precision 0.95 or more over networks and widths; contradicted below 0.8",
        ),
        Claim(
            "What is invariant when it is scaled passes the test.",
            _finds("invariant", "recall"),
            where="section 3.2",
            threshold="recall 0.95 or more; contradicted below 0.8",
        ),
    ],
)  # fmt: skip


def _subject(arm: str, width: int, size: int, seed: int) -> nn.Module:
    import torch
    from torch import nn

    from allometry import models, train
    from allometry.models.start import start_

    if arm == "convolutions":
        return _network(width, seed)
    generator = train.Seeds(seed).generator("init")
    if arm == "transformer":
        return models.GPT(models.GPTConfig(width=width, depth=2, context=32), generator=generator)
    with torch.device("meta"):
        layers: list[nn.Module] = [nn.Flatten()]
        for depth in range(3):
            linear = nn.Linear(width if depth else size * size, width, bias=False)
            layers += [linear, nn.LayerNorm(width, eps=1e-8), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Linear(width, 10))
    return start_(model, generator)


def _pixels(model: nn.Module, images: Tensor, _: Tensor) -> Tensor:
    """Next-pixel loss of a transformer on the middle rows of images, as bytes."""
    from allometry import train

    low, high = images.min(), images.max()
    tokens = ((images - low) / (high - low) * 255).round().long().flatten(1)[:, 70:103]
    return train.next_token_loss(model, tokens[:, :-1], tokens[:, 1:])


@detector.trial
def _detected(arm: str, width: int, seed: int, profile: Profile) -> dict[str, Any]:
    import torch

    from allometry import data, measure, optim, train

    known, _, _, digest = _images(profile.images, profile.size)
    batches = data.ImageBatches(known[0], known[1], profile.batch, seed)
    model = _subject(arm, width, profile.size, seed)
    objective = _pixels if arm == "transformer" else train.classification_loss
    train.fit(
        model, batches, optimizer=torch.optim.AdamW(model.parameters(), profile.rate), horizons=profile.steps,
        schedule=optim.constant, objective=objective, log_every=profile.steps,
    )  # fmt: skip
    inputs, targets = batches.batch(profile.steps)
    table = measure.scale_invariance(
        model.double(), lambda one, pair: objective(one, *pair), (inputs.double(), targets)
    )
    tested, truth = table["tested"] != "none", table["scaled"] != "none"
    return {
        "agreement": float((tested == truth).mean()), "both": int((tested & truth).sum()),
        "tested": int(tested.sum()), "invariant": int(truth.sum()), "weights": len(table), "data": digest,
    }  # fmt: skip


paper = Paper(
    slug="adamp",
    title="AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights",
    authors="Byeongho Heo, Sanghyuk Chun, Seong Joon Oh, Dongyoon Han, Sangdoo Yun, Gyuwan Kim, "
            "Youngjung Uh, Jung-Woo Ha",
    year=2020,
    arxiv="2006.08217",
    venue="ICLR 2021",
    summary=(
        "A weight followed by a normalization has a direction alone: what a step does to the model is the "
        "angle by which it turns the weight. Momentum adds old steps that are no longer orthogonal, the "
        "weight grows, and the angle shrinks long before the rate does. Taking the radial part off the step, "
        "where a cosine test finds that a weight is such a one, keeps the steps effective."
    ),
    studies=(lengths, errors, detector),
    parts=(
        "allometry.optim.AdamP", "allometry.optim.SGDP", "allometry.measure.scale_invariance",
        "allometry.measure.EffectiveStep",
    ),
)  # fmt: skip
