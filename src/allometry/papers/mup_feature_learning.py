"""Features that go on moving at any width: maximal update, its exponents, and a limit that can be trained.

Greg Yang and Edward J. Hu, "Feature Learning in Infinite-Width Neural Networks", 2020. arXiv:2011.14522.

Four questions, each on perceptrons with two hidden layers (the last on one that is linear):

- *movement*: is the exponent r, computed before training, the power with which feature movement vanishes?
- *ceiling*: does the largest stable rate of SGD stay where it is as width grows?
- *probe*: is pretraining worth nothing where features stand still?
- *limit*: does a finite network follow the exact infinite one, up to one over the root of width?

All parametrizations are one network at the narrowest width of a study, with torch's scales, and differ in how
it is widened. Seeds share data order and the random numbers behind initial values. The theorems are about SGD
at fixed depth and a fixed number of steps: no other optimizer is tried here.

Exponents are asymptotic. Under standard parametrization every layer has one rate, and the movement that the
first layer adds falls faster, like width^(-3/2). Its share against the second's is about |x|² / |x¹|², some
70/width for digits in [0, 1], so slopes fitted from width 128 up come out steeper than -1/2 until networks
are much wider than that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from allometry.papers import Paper
from allometry.study import Claim, Study, Tune, axis, undecided

if TYPE_CHECKING:
    import pandas
    from torch import Tensor, nn

    from allometry.data.images import Images
    from allometry.models import MLP
    from allometry.optim import Role
    from allometry.study import Estimate, Result, Test

STANDARD = {"preset": "sp"}
STANDARD_SLOWED = {"preset": "sp", "c": 1.0}  # stable, and the rate that tuning at each width would come to
TANGENT = {"preset": "ntp"}
MAXIMAL = {"preset": "mup"}
ASYMPTOTIC = 128  # narrower networks bend the slopes


# What trials share


def _network(
    arm: Any, width: int, base: int, images: Images, activation: str, seed: int
) -> tuple[MLP, dict[str, Role], float]:
    """A perceptron with two hidden layers in the arm's parametrization, its rates, and r."""
    from allometry.init import ABC
    from allometry.models import MLP
    from allometry.train import Seeds

    exponents = ABC.preset(arm["preset"], hidden_layers=2, c=arm.settings.get("c"))
    inputs, classes = images.images[0].numel(), int(images.labels.max()) + 1
    model = MLP(inputs, classes, width=width, depth=2, activation=activation, bias=False)
    roles = exponents.parametrize_(model, base, generator=Seeds(seed).generator("initial weights"))
    return model, roles, exponents.analyze().r


def _trained(
    model: nn.Module, images: Images, *, rate: float, steps: int, batch: int, seed: int, roles: Any = None
) -> tuple[float, int | None]:
    """Train by plain SGD; the last loss, and the step at which it was lost, if it was.

    Lost means: a batch's loss is not finite, or above twice the first.
    """
    import torch

    from allometry.data.images import ImageBatches
    from allometry.optim import constant, param_groups
    from allometry.train import DivergenceRule, Seeds, fit

    log = fit(
        model,
        ImageBatches(*images, batch, Seeds(seed).generator("data")),
        optimizer=torch.optim.SGD(param_groups(model, rate, roles)),
        horizons=steps,
        schedule=constant,
        objective=_cross_entropy,
        clip=None,
        divergence=DivergenceRule(factor=2.0, patience=1),
        log_every=steps,
    )
    return float(log.steps[-1]["loss"]) if log.steps else math.nan, log.diverged.get(0)


def _cross_entropy(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    from torch.nn.functional import cross_entropy

    return cross_entropy(model(inputs), targets)


def _size(values: Tensor) -> float:
    """Root mean square."""
    return float(values.double().square().mean().sqrt())


# Movement

movement = Study(
    "mup-feature-learning/movement",
    question="How does the movement of the last hidden features depend on width?",
    arms={
        "standard, rate 1/width": STANDARD_SLOWED,
        "neural tangent": TANGENT,
        "maximal update": MAXIMAL,
    },
    axes=[
        axis(
            "width", 64, 128, 256, 512, 1024, 2048, tiny=(8, 16), full=(64, 128, 256, 512, 1024, 2048, 4096)
        ),
        axis("activation", "tanh", log=False, full=("tanh", "relu")),
    ],
    measures=("movement", "first logits", "loss"),
    seeds=5,
    profiles={"tiny": {"seeds": 1, "steps": 2, "base width": 8}, "quick": {}, "full": {}},
    settings={"steps": 20, "learning rate": 0.1, "batch": 64, "probe": 256, "base width": 64},
    lower_is_better=None,
    weight=lambda arm, width, activation: width**2 + 64 * width,
    claims=[],
)


@movement.trial
def moved(arm: Any, width: int, activation: str, seed: int, profile: Any) -> dict[str, Any]:
    """Train for a few steps and compare the last hidden features with what they were."""
    import torch

    from allometry.data.images import digits

    images = digits()
    model, roles, r = _network(arm, width, profile.base_width, images, activation, seed)
    probe = images.images[: profile.probe]
    with torch.no_grad():
        before, logits = model.features(probe), model(probe)
    loss, lost = _trained(
        model, images, rate=profile.learning_rate, steps=profile.steps, batch=profile.batch, seed=seed,
        roles=roles,
    )  # fmt: skip
    with torch.no_grad():
        after = model.features(probe)
    record = {
        "movement": _size(after - before), "features": _size(after), "first logits": _size(logits),
        "loss": loss, "r": r, "data": images.digest,
    }  # fmt: skip
    return record if lost is None else {**record, "diverged": lost}


def _moves_like(arm: str, activation: str, low: float) -> Callable[[Result], Test]:
    def rule(result: Result) -> Test:
        if activation not in result.study.axes[1].values(result.profile):
            return undecided(f"{activation} is not in the {result.profile} profile")
        exponent = -float(result.rows(arm)["r"].dropna().iloc[0])
        slope = result.slope(arm, "movement", least=ASYMPTOTIC, at={"activation": activation})
        return slope.within(exponent - low, exponent + 0.2)

    return rule


def _logits_shrink(result: Result) -> Test:
    slope = result.slope("maximal update", "first logits", least=ASYMPTOTIC, at={"activation": "tanh"})
    return slope.within(-0.7, -0.3)


_WITHIN = "the 95 % interval of the exponent, fitted from width 128 up, lies within 0.2 of -r"
for _activation, _where in (("tanh", "Corollary 3.9"), ("relu", "Corollary 3.9, beyond its assumptions")):
    movement.claims = (
        *movement.claims,
        Claim(
            f"With {_activation}, standard parametrization at a rate of 1/width moves its features like "
            "width^(-1/2).",
            _moves_like("standard, rate 1/width", _activation, 0.2), _where, f"{_WITHIN}, -1/2",
        ),
        Claim(
            f"With {_activation}, the neural-tangent parametrization moves its features like width^(-1/2).",
            _moves_like("neural tangent", _activation, 0.2), _where, f"{_WITHIN}, -1/2",
        ),
        Claim(
            f"With {_activation}, maximal update moves its features as much at any width.",
            _moves_like("maximal update", _activation, 0.1), _where,
            "the 95 % interval of the exponent, fitted from width 128 up, lies between -0.1 and 0.2",
        ),
    )  # fmt: skip
movement.claims = (
    *movement.claims,
    Claim(
        "Under maximal update the first logits vanish like width^(-1/2).",
        _logits_shrink, "Corollary 3.10",
        "the 95 % interval of their exponent, with tanh and from width 128 up, lies within 0.2 of -1/2",
    ),
)  # fmt: skip


# Ceiling

ceiling = Study(
    "mup-feature-learning/ceiling",
    question="How does the largest stable learning rate of SGD depend on width?",
    arms={"standard": STANDARD, "neural tangent": TANGENT, "maximal update": MAXIMAL},
    axis=axis("width", 128, 256, 512, tiny=(8, 16), full=(128, 256, 512, 1024, 2048)),
    measure="largest stable rate",
    seeds=3,
    profiles={
        "tiny": {"seeds": 1, "steps": 2, "factor": 100.0, "base width": 8},
        "quick": {},
        "full": {
            "seeds": 5,
            "factor": 1.1,
        },  # a coarser search puts all runs in one bin, whose error is not 0
    },
    settings={"steps": 100, "batch": 64, "lowest": 0.01, "highest": 10.0, "factor": 1.25, "base width": 128},
    lower_is_better=False,
    weight=lambda arm, width: width**2 + 256 * width,
    claims=[
        Claim(
            "Under standard parametrization the largest stable rate falls like one over width.",
            lambda result: result.slope("standard", least=ASYMPTOTIC) < -0.6,
            "Theorem 3.3",
            "the 95 % interval of the exponent lies below -0.6; -1 is expected",
        ),
        Claim(
            "Under maximal update the largest stable rate does not fall with width.",
            lambda result: result.slope("maximal update", least=ASYMPTOTIC) > -0.25,
            "Theorem 3.3",
            "the 95 % interval of the exponent lies above -0.25; 0 is expected",
        ),
    ],
)


@ceiling.trial
def highest(arm: Any, width: int, seed: int, profile: Any) -> dict[str, Any]:
    """Bisect for the rate beyond which a run of so many steps is lost."""
    from allometry.data.images import digits
    from allometry.train import max_stable_learning_rate

    images = digits()

    def run(rate: float) -> dict[str, Any]:
        model, roles, _ = _network(arm, width, profile.base_width, images, "tanh", seed)
        loss, lost = _trained(
            model, images, rate=rate, steps=profile.steps, batch=profile.batch, seed=seed, roles=roles
        )
        return {"loss": loss, "status": "done" if lost is None else "diverged"}

    found = max_stable_learning_rate(run, profile.lowest, profile.highest, factor=profile.factor)
    inside = math.isfinite(found.unstable)  # where the highest rate is stable too, the ceiling is unknown
    return {
        "largest stable rate": found.rate if inside else math.nan,
        "lowest unstable rate": found.unstable if inside else math.nan,
        "runs made": len(found.runs), "data": images.digest,
    }  # fmt: skip


# Probe

probe = Study(
    "mup-feature-learning/probe",
    question="What do features pretrained on five classes gain a linear probe on five others?",
    arms={"neural tangent": TANGENT, "maximal update": MAXIMAL},
    axes=[
        axis("width", 128, 512, tiny=(8, 16), full=(256, 1024, 4096)),
        axis("images", "digits", log=False, full=("digits", "Fashion-MNIST")),
    ],
    measures=("gain", "accuracy", "accuracy of random features", "movement"),
    seeds=5,
    profiles={
        "tiny": {"seeds": 1, "steps": 2, "draws": 1, "judged": 100, "base width": 8},
        "quick": {"base width": 128},
        "full": {"base width": 256},
    },
    settings={"steps": 100, "batch": 64, "shots": 5, "draws": 20, "judged": 1000, "number": 5000, "size": 14},
    lower_is_better=False,
    tune=Tune(
        "learning rate",
        {"tiny": (0.1,), "quick": (0.03, 0.1, 0.3, 1.0), "full": (0.03, 0.1, 0.3, 1.0)},
        on="validation loss",
        seeds=2,
    ),
    weight=lambda arm, width, images: width**2 + 512 * width,
    claims=[],
)


@probe.trial
def transferred(arm: Any, width: int, images: str, seed: int, profile: Any) -> dict[str, Any]:
    """Pretrain on classes 0 to 4; with few labels, tell 5 to 9 apart by the features before and after."""
    import torch

    from allometry.data.images import Images, digits, fashion_mnist
    from allometry.train import Seeds

    every = digits() if images == "digits" else fashion_mnist("train", profile.number, size=profile.size)
    known, novel = every.of(range(5)), every.of(range(5, 10))
    order = torch.randperm(len(known.labels), generator=Seeds(seed).generator("validation"))
    held, rest = order[: len(order) // 5], order[len(order) // 5 :]
    model, roles, _ = _network(arm, width, profile.base_width, known, "tanh", seed)

    draws = []  # of labelled and judged images; the same for all arms and widths
    stream = Seeds(seed).generator("labels")
    for _ in range(profile.draws):
        mixed = torch.randperm(len(novel.labels), generator=stream)
        by_class = [mixed[novel.labels[mixed] == one] for one in range(5)]
        labelled = torch.cat([some[: profile.shots] for some in by_class])
        draws.append((labelled, torch.cat([some[profile.shots :] for some in by_class])))
    shown = torch.randperm(len(novel.labels), generator=stream)[: profile.judged]
    judged = torch.zeros(len(novel.labels), dtype=torch.bool)
    judged[shown] = True

    def probed() -> tuple[Tensor, float]:
        with torch.no_grad():
            features = model.features(novel.images)
        scores = [
            _few_shot(features, novel.labels, labelled, other[judged[other]]) for labelled, other in draws
        ]
        return features, sum(scores) / len(scores)

    before, random = probed()
    training = Images(known.images[rest], known.labels[rest])
    loss, lost = _trained(
        model, training, rate=profile.learning_rate, steps=profile.steps, batch=profile.batch, seed=seed,
        roles=roles,
    )  # fmt: skip
    if lost is not None:
        return {"diverged": lost, "accuracy of random features": random, "validation loss": math.nan}
    with torch.no_grad():
        validation = float(_cross_entropy(model, known.images[held], known.labels[held]))
    after, pretrained = probed()
    return {
        "gain": pretrained - random, "accuracy": pretrained, "accuracy of random features": random,
        "movement": _size(after - before) / _size(before),
        "loss": loss, "validation loss": validation, "rate": profile.learning_rate, "data": every.digest,
    }  # fmt: skip


def _few_shot(features: Tensor, labels: Tensor, labelled: Tensor, judged: Tensor) -> float:
    """Accuracy of ridge regression on a few labelled rows, its strength chosen by leaving one out."""
    from sklearn.linear_model import RidgeClassifierCV

    rows = features[labelled].double().numpy()
    scale = math.sqrt(float((rows - rows.mean(0)).var(0).sum())) or 1.0  # so that strengths mean one thing
    model = RidgeClassifierCV(alphas=[10.0**power for power in range(-4, 3)])
    model.fit(rows / scale, labels[labelled].numpy())
    return float(model.score(features[judged].double().numpy() / scale, labels[judged].numpy()))


def _gain(part: pandas.DataFrame, arm: str, width: int, images: str) -> float:
    found = part[(part["arm"] == arm) & (part["width"] == width) & (part["images"] == images)]
    return float(found["gain"].mean(skipna=False))


def _ends(result: Result) -> tuple[int, int]:
    widths = result.study.axes[0].values(result.profile)
    return min(widths), max(widths)


def _against_narrow(
    arm: str, images: str, share: float, judge: Callable[[Estimate], Test]
) -> Callable[[Result], Test]:
    """Judge the widest network's gain less a share of the narrowest one's, if that one gains anything."""

    def rule(result: Result) -> Test:
        if images not in result.study.axes[1].values(result.profile):
            return undecided(f"{images} is not in the {result.profile} profile")
        narrow, wide = _ends(result)
        first = result.mean(arm, "gain", at={"width": narrow, "images": images})
        if not first.low > 0:
            return undecided(f"pretraining gains nothing at width {narrow}", first)
        found = result.each_seed(
            lambda part: _gain(part, arm, wide, images) - share * _gain(part, arm, narrow, images),
            what=f"gain of {arm} at width {wide} less {share:g} times that at {narrow}, {images}",
        )
        return judge(found)

    return rule


def _changes_more(images: str) -> Callable[[Result], Test]:
    def rule(result: Result) -> Test:
        if images not in result.study.axes[1].values(result.profile):
            return undecided(f"{images} is not in the {result.profile} profile")
        _, wide = _ends(result)
        found = result.each_seed(
            lambda part: (
                abs(_gain(part, "maximal update", wide, images))
                - abs(_gain(part, "neural tangent", wide, images))
            ),
            what=f"|gain| of maximal update less that of neural tangent at width {wide}, {images}",
        )
        return found > 0

    return rule


for _images in ("digits", "Fashion-MNIST"):
    probe.claims = (
        *probe.claims,
        Claim(
            f"On {_images}, what pretraining gains in the neural-tangent parametrization shrinks with width.",
            _against_narrow("neural tangent", _images, 1.0, lambda found: found < 0), "Abstract",
            "gain at the widest less gain at the narrowest, paired by seed: 95 % interval below 0; undecided "
            "where the narrowest gains nothing",
        ),
        Claim(
            f"On {_images}, what pretraining gains under maximal update does not.",
            _against_narrow("maximal update", _images, 0.5, lambda found: found > 0), "Abstract",
            "gain at the widest less half the gain at the narrowest, paired by seed: 95 % interval above 0; "
            "undecided where the narrowest gains nothing",
        ),
        Claim(
            f"On {_images}, for better or worse, pretraining changes a wide probe more under maximal update.",
            _changes_more(_images), "Corollary 3.9",
            "size of the gain under maximal update less that in the neural-tangent parametrization, at the "
            "widest and paired by seed: 95 % interval above 0",
        ),
    )  # fmt: skip


# Limit

limit = Study(
    "mup-feature-learning/limit",
    question="How far is a finite linear network from its infinite-width limit after training?",
    arms={"no biases": {"bias": 0.0}, "biases": {"bias": 1.0}},
    axis=axis("width", 128, 256, 512, 1024, 2048, tiny=(8, 16), full=(128, 256, 512, 1024, 2048, 4096, 8192)),
    measure="distance",
    seeds=5,
    profiles={"tiny": {"seeds": 1, "steps": 2}, "quick": {}, "full": {"seeds": 10}},
    settings={"steps": 50, "learning rate": 0.1, "batch": 64, "probe": 256},
    weight=lambda arm, width: width + 256,
    claims=[
        Claim(
            "A finite network differs from the limit by width^(-1/2).",
            lambda result: result.slope("no biases", least=ASYMPTOTIC).within(-0.65, -0.35),
            "The linear limit of the MAML experiment",
            "the 95 % interval of the exponent, from width 128 up, lies between -0.65 and -0.35",
        ),
        Claim(
            "So does one with biases.",
            lambda result: result.slope("biases", least=ASYMPTOTIC).within(-0.65, -0.35),
            "The linear limit of the MAML experiment",
            "the 95 % interval of the exponent, from width 128 up, lies between -0.65 and -0.35",
        ),
    ],
)


@limit.trial
def strayed(arm: Any, width: int, seed: int, profile: Any) -> dict[str, Any]:
    """Train a member and the limit on the same batches and compare what they say."""
    import torch

    from allometry.data.images import Images, digits
    from allometry.init import LinearMuP
    from allometry.train import Seeds

    images = digits()
    images = Images(images.images.double(), images.labels)
    infinite = LinearMuP(64, 10, bias=arm["bias"]).double()
    finite = infinite.sample(width, Seeds(seed).generator("mixing"))
    told = {}
    for name, model in (("infinite", infinite), ("finite", finite)):
        loss, lost = _trained(
            model, images, rate=profile.learning_rate, steps=profile.steps, batch=profile.batch, seed=seed
        )
        if lost is not None:
            return {"diverged": lost}
        with torch.no_grad():
            told[name] = model(images.images[: profile.probe])
        told[name + " loss"] = loss
    return {
        "distance": _size(told["finite"] - told["infinite"]) / _size(told["infinite"]),
        "loss of the limit": told["infinite loss"], "loss": told["finite loss"], "data": images.digest,
    }  # fmt: skip


paper = Paper(
    slug="mup-feature-learning",
    title="Feature Learning in Infinite-Width Neural Networks",
    authors="Greg Yang, Edward J. Hu",
    year=2020,
    arxiv="2011.14522",
    venue="ICML 2021",
    summary=(
        "Three exponents a layer (multiplier, initial deviation, learning rate) decide what becomes of a "
        "network as it gets wider: it blows up, stands still, turns into regression with a fixed kernel, or "
        "goes on learning features. Torch's own scales with a rate that stays stable are in the third class, "
        "as is the neural-tangent parametrization. Maximal update is in the last: what is tuned at width 128 "
        "keeps its meaning at 4096, and the largest stable rate stays where it is. The exponents say "
        "beforehand how far features will move at a width that nobody has trained yet."
    ),
    studies=(movement, ceiling, probe, limit),
    parts=(
        "allometry.init.ABC",
        "allometry.init.apply_",
        "allometry.init.roles",
        "allometry.init.LinearMuP",
        "allometry.init.word2vec_mup",
        "allometry.measure.coordinate_check",
    ),
)
