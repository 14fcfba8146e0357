"""ResNets of 2015 with a recipe of 2021: what training gives, what changes give, which dimension to scale.

Bello and others, "Revisiting ResNets: Improved Training and Scaling Strategies", 2021. arXiv:2103.07579

The family's sizes are exact; its published errors are re-read.  What is trained here has less than three
million multiply-adds and sees Fashion-MNIST at 14 pixels, where the paper has billions and ImageNet: long is
24 passes over a thousand images, short one pass over 24 thousand, with equally many updates.
"""

from __future__ import annotations

import functools
import hashlib
import math
from typing import Any

from allometry.papers import Paper
from allometry.study import Claim, Estimate, Outcome, Profile, Result, Study, Test, axis, undecided


# --- depth or width -----------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=4)
def _images(count: int, test: int) -> Any:
    """Training and test images, and the digest of the former."""
    from allometry.data import fashion_mnist

    known, unseen = fashion_mnist("train", count, size=14), fashion_mnist("test", test, size=14)
    return known, (unseen.images, unseen.labels), known.digest


def _train(
    model: Any, seed: int, profile: Profile, *, images: int, epochs: int, averaged: bool, augmented: bool,
    **recipe: Any,
) -> dict[str, Any]:  # fmt: skip
    """Train by ResNet-RS's recipe with its regularizers on or off, and judge on test images."""
    import torch

    from allometry import data, train

    known, test, digest = _images(images, profile.test)
    plan = train.resnet_rs_recipe_(
        model, train_size=images, batch=profile.batch, epochs=epochs, rate_per_256=profile.rate,
        average=0.9999 if averaged else None, **recipe,
    )  # fmt: skip
    draws = train.Seeds(seed).generator("augment")

    def objective(one: Any, inputs: Any, targets: Any) -> Any:
        """All arms are given the same images; to augment them is the recipe's doing."""
        return plan.objective(one, plan.augment(inputs, draws) if augmented else inputs, targets)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout draws from the global state
        log = train.fit(
            model, data.ImageBatches(known.images, known.labels, profile.batch, seed),
            horizons=plan.steps, log_every=max(1, plan.steps // 10),
            validate=lambda one: train.evaluate_classifier(one, test, batch=500),
            **{**plan.settings, "objective": objective},
        )  # fmt: skip
    record = {"error": math.nan, "loss": math.nan, "data": digest, "training loss": math.nan}
    if log.horizons:
        prefix = "averaged_" if averaged else ""
        told = {name: float(log.horizons[-1][f"{prefix}{name}"]) for name in ("error", "loss")}
        record |= {**told, "training loss": float(log.steps[-1]["loss"])}
    if log.status == "diverged":
        record["diverged"] = next(iter(log.diverged.values()), 0)
    return record


def _depth_less_width(part: Any, regime: str) -> float:
    """Points of test error that width has more than depth."""
    rows = part[part["regime"] == regime].set_index("arm")["error"]
    return float(100 * (rows["width"] - rows["depth"]))


def _depends(result: Result) -> Test:
    apart = result.each_seed(
        lambda part: _depth_less_width(part, "long") - _depth_less_width(part, "short"),
        what="points by which depth's lead over width is larger in long training", level=0.9,
    )  # fmt: skip
    return apart > 0


def _mispredicts(result: Result) -> Test:
    long, short = (
        result.each_seed(
            functools.partial(_depth_less_width, regime=regime), level=0.9,
            what=f"points by which depth leads width, {regime} training",
        )
        for regime in ("long", "short")
    )  # fmt: skip
    return (long > 0) & (short < 0)


regimes = Study(
    "resnet-rs",
    question="Does it depend on how long, and on how little, one trains whether depth or width should grow?",
    # asked for so that 4 times the multiply-adds are reached after rounding
    arms={"width": {"rule": "w", "asked": 1.0}, "depth": {"rule": "d", "asked": 1.4}},
    axes=[axis("factor", 4), axis("regime", "long", "short", log=False)],
    measures=("error", "loss"),
    data_by_arm=False,
    profiles={
        "tiny": {"seeds": 1, "few": 100, "epochs": 1, "test": 100, "batch": 50},
        "quick": {"seeds": 2, "few": 500, "epochs": 4, "test": 1000},
        "full": {"seeds": 3, "few": 1000, "epochs": 24, "test": 5000},
    },
    settings={"batch": 100, "rate": 0.25, "base_width": 8},
    version=2,  # 1 stopped after 120 updates, where long training had not begun to overfit either
    claims=[
        Claim(
            "Depth gains on width where training is long and data are few.",
            _depends,
            where="section 6.1, figure on depth and width by epochs",
            threshold="width's test error less depth's is larger in long training than in short, at equal "
                      "multiply-adds (90 %)",
        ),
        Claim(
            "What is best after short training is not what is best after long.",
            _mispredicts,
            where="section 6.2",
            threshold="depth has the lower test error in long training and width in short (90 %)",
        ),
    ],
)  # fmt: skip


@regimes.trial
def _by_regime(arm: Any, factor: float, regime: str, seed: int, profile: Profile) -> dict[str, Any]:
    import warnings

    from allometry import train
    from allometry.grow import compound_scale
    from allometry.models import ResNetRSConfig

    base = ResNetRSConfig(
        (1, 1), profile.base_width, "deep_tiny", dropout=0.0, resolution=14, channels=1, classes=10
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what is reached is recorded
        found = compound_scale(base, arm["rule"], arm["asked"] * factor)
    images, epochs = (profile.few, profile.epochs) if regime == "long" else (profile.few * profile.epochs, 1)
    record = _train(
        found.config.build(train.Seeds(seed).generator("init")), seed, profile,
        images=images, epochs=epochs, averaged=False, augmented=False, label_smoothing=0.0,
    )  # fmt: skip
    return {**record, "flops": found.flops, "parameters": found.parameters}


# --- training or architecture -------------------------------------------------------------------------------
def _gains(part: Any, share: float) -> float:
    """Points that the recipe gains less a multiple of those that the changes of architecture then gain."""
    error = 100 * part.set_index("arm")["error"]
    return float(
        (error["neither"] - error["training"]) - share * (error["training"] - error["training and changes"])
    )


def _training_first(result: Result) -> Test:
    more = result.each_seed(
        lambda part: _gains(part, 1.5), what="points of the recipe's gain less 1.5 times the changes'"
    )
    equal = result.each_seed(
        lambda part: _gains(part, 1.0), what="points of the recipe's gain less the changes'"
    )
    holds, contradicted = more > 0, equal > 0
    if holds.outcome is Outcome.HOLDS or contradicted.outcome is not Outcome.CONTRADICTED:
        return holds if holds.outcome is Outcome.HOLDS else undecided("neither bound is passed", more, equal)
    return contradicted


def _each_helps(result: Result) -> Test:
    return (
        result.ratio("training", "neither", "error") < 1.0
    ) & (result.ratio("training and changes", "training", "error") < 1.0)  # fmt: skip


recipe = Study(
    "resnet-rs/recipe",
    question="How much of the gain is training, and how much architecture?",
    arms={
        "neither": {"training": False, "changes": False, "augmented": False},
        "training": {"training": True, "changes": False, "augmented": True},
        "changes": {"training": False, "changes": True, "augmented": False},
        "training and changes": {"training": True, "changes": True, "augmented": True},
        # no claim is about it: what the recipe is without the part that a network of this size can least bear
        "training, not augmented": {"training": True, "changes": False, "augmented": False},
    },
    axis=axis("images", 1000, tiny=(100,)),
    measures=("error", "loss"),
    profiles={
        "tiny": {"seeds": 1, "epochs": 1, "test": 100, "batch": 50},
        "quick": {"seeds": 2, "epochs": 4, "test": 1000},
        "full": {"seeds": 3, "epochs": 120, "test": 5000},
    },
    settings={"batch": 100, "rate": 0.25, "base_width": 8, "dropout": 0.25},
    version=3,  # 1 stopped before anything overfitted and left augmentation out; 2 lacked the last arm
    claims=[
        Claim(
            "Training gives at least one and a half times what changes of architecture give.",
            _training_first,
            where="table of additive changes",
            threshold="the gain of augmentation, smoothed labels, averaged weights, dropout and smaller "
                      "decay is above 1.5 times what squeeze-and-excitation and ResNet-D then add (95 %); "
                      "contradicted where it is smaller than that",
        ),
        Claim(
            "Both lower the error.",
            _each_helps,
            where="table of additive changes",
            threshold="the recipe lowers test error, and the changes lower it further (95 %)",
        ),
    ],
)  # fmt: skip


@recipe.trial
def _with_recipe(arm: Any, images: int, seed: int, profile: Profile) -> dict[str, Any]:
    from allometry import train
    from allometry.grow import configuration_counts
    from allometry.models import ResNetRSConfig

    changes: dict[str, Any] = (
        {} if arm["changes"] else {"stem": "plain_tiny", "pooled_shortcut": False, "squeeze": 0.0}
    )
    config = ResNetRSConfig(
        (1, 1), profile.base_width, resolution=14, channels=1, classes=10,
        dropout=profile.dropout if arm["training"] else 0.0, **{"stem": "deep_tiny", **changes},
    )  # fmt: skip
    how: dict[str, Any] = {} if arm["training"] else {"label_smoothing": 0.0, "weight_decay": 1e-4}
    record = _train(
        config.build(train.Seeds(seed).generator("init")), seed, profile,
        images=images, epochs=profile.epochs, averaged=arm["training"], augmented=arm["augmented"], **how,
    )  # fmt: skip
    return {**record, "flops": configuration_counts(config).flops}


# --- the family as it was published -------------------------------------------------------------------------
# layers, pixels a side, top-1 accuracy in per cent on ImageNet; README of the release
# (github.com/tensorflow/tpu, models/official/resnet/resnet_rs)
_RELEASED = (
    (50, 160, 78.8), (101, 160, 80.3), (101, 192, 81.2), (152, 192, 82.0), (152, 224, 82.2), (152, 256, 83.0),
    (200, 256, 83.4), (270, 256, 83.8), (350, 256, 84.0), (350, 320, 84.2), (420, 320, 84.4),
)  # fmt: skip
_MEMBERS = tuple(f"{layers}@{side}" for layers, side, _ in _RELEASED)


@functools.lru_cache(maxsize=16)
def _counts(layers: int, side: int) -> Any:
    from allometry.grow import configuration_counts
    from allometry.models import resnet_rs_config

    return configuration_counts(resnet_rs_config(layers, side))


def _fits(result: Result) -> Test:
    import numpy as np

    missed = result.rows("flops")["residual"].to_numpy(float)
    root = float(np.sqrt((missed**2).mean()))
    return Estimate.closed_form(root, what="points left by a power of multiply-adds over a floor") < 0.2


def _side_exponent(flops: Any, sides: Any) -> float:
    import numpy as np

    return float(np.polyfit(np.log(np.asarray(flops, float)), np.log(np.asarray(sides, float)), 1)[0])


def _slowly(result: Result) -> Test:
    """Exponents of resolution in multiply-adds: this family's, and that of EfficientNet-B0 to B5."""
    rows = result.rows("flops")
    ours = _side_exponent(rows["count"], [int(name.split("@")[1]) for name in rows["member"]])
    theirs = _side_exponent(
        [385825092, 686817992, 993578282, 1827162472, 4393801064, 10266426072],  # pycls' published counts
        [224, 240, 260, 300, 380, 456],
    )
    less = Estimate.closed_form(
        ours - theirs, what=f"exponent of resolution less EfficientNet's {theirs:.3f}"
    )
    return less.judge(holds=(-math.inf, -0.02), contradicted=(0.0, math.inf))


family = Study(
    "resnet-rs/family",
    question="Do the published errors of the family follow its arithmetic?",
    arms=("flops", "activations", "parameters"),
    axis=axis("member", *_MEMBERS, tiny=_MEMBERS[:5], log=False, recorded=True),
    measures=("residual",),
    seeds=1,
    version=2,  # version 1 had no margin for the exponent of resolution, and held by 0.003
    lower_is_better=None,
    claims=[
        Claim(
            "The family's error is a power of its multiply-adds over a floor.",
            _fits,
            where="table of released models",
            threshold="the root mean square of what is left of eleven top-1 errors is below 0.2 points",
        ),
        Claim(
            "Resolution grows more slowly in multiply-adds than compound scaling has it grow.",
            _slowly,
            where="section 6.3",
            threshold="the exponent of resolution over the released members is 0.02 or more below that over "
                      "EfficientNet-B0 to B5; contradicted where it is not below",
        ),
    ],
)  # fmt: skip


@family.trial
def _published(arm: str, seed: int, profile: Profile) -> list[dict[str, Any]]:
    from allometry import laws

    members = _RELEASED[: len(family.axes[0].values(profile.name))]
    counts = [float(getattr(_counts(layers, side), arm)) for layers, side, _ in members]
    errors = [100 - accuracy for *_, accuracy in members]
    found = laws.fit("power-offset", counts, errors, loss="squared", resamples=0)
    digest = hashlib.sha256(repr(_RELEASED).encode()).hexdigest()[:12]
    return [
        {
            "member": f"{layers}@{side}", "residual": error - float(foretold), "count": count, "error": error,
            "data": digest, "floor": found.params["E"], "exponent": found.params["alpha"],
        }
        for (layers, side, _), count, error, foretold in zip(
            members, counts, errors, found.predict(counts), strict=True
        )
    ]  # fmt: skip


paper = Paper(
    slug="resnet-rs",
    title="Revisiting ResNets: Improved Training and Scaling Strategies",
    authors=(
        "Irwan Bello, William Fedus, Xianzhi Du, Ekin D. Cubuk, Aravind Srinivas, Tsung-Yi Lin, "
        "Jonathon Shlens, Barret Zoph"
    ),
    year=2021,
    arxiv="2103.07579",
    summary=(
        "Most of what looked like progress of architectures on ImageNet is training and scaling: a ResNet of "
        "2015 with a long cosine schedule, averaged weights, smoothed labels, dropout, left-out branches and "
        "a smaller weight decay, and with squeeze-and-excitation and ResNet-D's stem and shortcut, matches "
        "EfficientNet in a fraction of the time. Scale depth where overfitting threatens, width otherwise, "
        "resolution slowly; and do not carry rules from short training to long."
    ),
    studies=(regimes, recipe, family),
    parts=(
        "allometry.models.resnet_rs", "allometry.models.resnet_rs_config",
        "allometry.train.resnet_rs_recipe_", "allometry.data.RandAugment",
        "allometry.grow.resnet_rs_rule", "allometry.grow.scaling_regime",
    ),
)  # fmt: skip
