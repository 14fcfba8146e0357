"""Scale mostly width: running time follows what layers write, and width adds least to that.

Dollár, Singh and Girshick, "Fast and Accurate Model Scaling", 2021. arXiv:2103.06877

Counts are exact and of the paper's own families.  Times are of two kinds: those that its authors published
for 36 networks on a GPU, and those of the machine at hand, one thread of a processor, for a small RegNet.
Accuracy is of a network of half a million multiply-adds on Fashion-MNIST, where the paper has ImageNet.
"""

from __future__ import annotations

import functools
import hashlib
import math
import warnings
from typing import Any, Literal

from allometry.papers import Paper
from allometry.study import Claim, Estimate, Profile, Result, Study, Test, axis

# "uniform" is EfficientNet's compounding with equal shares; group widths grow as widths do wherever they grow
_RULES = {
    "uniform": {"rule": "d1_w1_g1_r1"}, "fast": {"rule": "fast"}, "width": {"rule": "w1_g1"},
    "depth": {"rule": "d"}, "resolution": {"rule": "r"},
}  # fmt: skip


def _network(name: str) -> Any:
    from allometry.models import EfficientNetConfig, RegNetConfig, regnet_config, resnet_config

    if name == "small RegNetY":
        return RegNetConfig.generate(
            10, 24, 12, 2.2, 8, stem_width=16, squeeze=0.25, resolution=64, classes=10
        )
    if name.startswith("RegNet"):
        return regnet_config(name.removeprefix("RegNet"))
    if name.startswith("ResNeXt"):
        return resnet_config(int(name.split("-")[1]), groups=32, group_width=4)
    if name.startswith("ResNet"):
        return resnet_config(int(name.split("-")[1]))
    return EfficientNetConfig(**_EFFICIENTNETS[name])


@functools.lru_cache(maxsize=64)
def _counts(name: str) -> Any:
    from allometry.grow import configuration_counts

    return configuration_counts(_network(name))


def _scaled(name: str, rule: str, factor: float) -> Any:
    from allometry.grow import compound_scale

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what is reached is recorded
        return compound_scale(_network(name), rule, factor, base=_counts(name))


@functools.lru_cache(maxsize=64)
def _brought(name: str, rule: str, factor: float) -> Any:
    """Scaled so that rounding leaves the arithmetic as near to the factor as the rule can come."""
    from allometry.grow import choose_scaling

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what is reached is recorded
        return choose_scaling(_network(name), factor, candidates=(rule,)).best


# --- what is written ----------------------------------------------------------------------------------------
def _exponent(result: Result, arm: str, network: str) -> float:
    """Least-squares exponent of activations in the multiply-adds that were reached."""
    import numpy as np

    rows = result.rows(arm, {"network": network})
    slope = np.polyfit(np.log(rows["flops"].to_numpy(float)), np.log(rows["activations"].to_numpy(float)), 1)
    return float(slope[0])


def _near_a_root(result: Result) -> Test:
    tests = []
    for network in result.study.axes[1].values(result.profile):
        fast, uniform = (_exponent(result, arm, network) for arm in ("fast", "uniform"))
        one = Estimate.closed_form(fast, what=f"exponent of activations, fast, {network}")
        less = Estimate.closed_form(uniform - fast, what=f"uniform's exponent less fast's, {network}")
        tests.append((one < 0.65) & (less > 0.12))
    return functools.reduce(lambda a, b: a & b, tests)


counts = Study(
    "fast-compound-scaling/counts",
    question="How do activations grow when multiply-adds do, under each rule, after rounding?",
    arms=_RULES,
    axes=[
        axis("factor", 1, 2, 4, 8, 16, tiny=(1, 4)),
        axis(
            "network", "small RegNetY", "RegNetY-800MF", "EfficientNet-B0",
            tiny=("small RegNetY",), log=False,
        ),
    ],
    measures=("activations", "flops", "parameters"),
    seeds=1,
    lower_is_better=None,
    claims=[
        Claim(
            "Under the fast rule activations grow nearly as the square root of multiply-adds, under uniform "
            "compounding nearly in proportion.",
            _near_a_root,
            where="table of scaling rules, section 4",
            threshold="fast's exponent is below 0.65, and uniform's at least 0.12 above it, on every network",
        )
    ],
)  # fmt: skip


@counts.trial
def _count(arm: Any, factor: float, network: str, seed: int, profile: Profile) -> dict[str, Any]:
    found = _scaled(network, arm["rule"], factor)
    return {"activations": found.activations, "flops": found.flops, "parameters": found.parameters}


# --- times that were published ------------------------------------------------------------------------------
# Depths, widths, stem, head and resolution of EfficientNet-B0 to B5
_EFFICIENTNETS: dict[str, dict[str, Any]] = {
    f"EfficientNet-B{place}": {
        "depths": depths, "widths": widths, "stem_width": stem, "head_width": head, "resolution": side,
    }
    for place, (depths, widths, stem, head, side) in enumerate([
        ((1, 2, 2, 3, 3, 4, 1), (16, 24, 40, 80, 112, 192, 320), 32, 1280, 224),
        ((2, 3, 3, 4, 4, 5, 2), (16, 24, 40, 80, 112, 192, 320), 32, 1280, 240),
        ((2, 3, 3, 4, 4, 5, 2), (16, 24, 48, 88, 120, 208, 352), 32, 1408, 260),
        ((2, 3, 3, 5, 5, 6, 2), (24, 32, 48, 96, 136, 232, 384), 40, 1536, 300),
        ((2, 4, 4, 6, 6, 8, 2), (24, 32, 56, 112, 160, 272, 448), 48, 1792, 380),
        ((3, 5, 5, 7, 7, 9, 3), (24, 40, 64, 128, 176, 304, 512), 48, 2048, 456),
    ])
}  # fmt: skip

# Milliseconds a batch on one V100, forward and backward, and forward alone; images in the batch of each.
# github.com/facebookresearch/pycls, dev/model_timing.json (28 September 2020) and the configs' batch sizes
_PUBLISHED = {
    "EfficientNet-B0": (63.3, 12.1, 32, 25), "EfficientNet-B1": (95.2, 18.3, 32, 25),
    "EfficientNet-B2": (117.8, 22.6, 32, 25), "EfficientNet-B3": (190.0, 36.1, 32, 25),
    "EfficientNet-B4": (205.3, 40.9, 16, 12), "EfficientNet-B5": (220.4, 41.8, 8, 6),
    "RegNetX-200MF": (85.9, 16.5, 128, 100), "RegNetX-400MF": (120.6, 24.1, 128, 100),
    "RegNetX-600MF": (130.7, 27.6, 128, 100), "RegNetX-800MF": (169.8, 35.9, 128, 100),
    "RegNetX-1.6GF": (256.5, 54.3, 128, 100), "RegNetX-3.2GF": (216.7, 46.3, 64, 50),
    "RegNetX-4.0GF": (257.0, 57.7, 64, 50), "RegNetX-6.4GF": (348.9, 74.3, 64, 50),
    "RegNetX-8.0GF": (341.4, 75.4, 64, 50), "RegNetX-12GF": (498.5, 110.7, 64, 50),
    "RegNetX-16GF": (594.7, 133.3, 64, 50), "RegNetX-32GF": (588.3, 131.6, 32, 25),
    "RegNetY-200MF": (94.3, 19.4, 128, 100), "RegNetY-400MF": (152.4, 30.1, 128, 100),
    "RegNetY-600MF": (151.9, 31.5, 128, 100), "RegNetY-800MF": (176.3, 36.5, 128, 100),
    "RegNetY-1.6GF": (296.3, 64.1, 128, 100), "RegNetY-3.2GF": (244.3, 53.9, 64, 50),
    "RegNetY-4.0GF": (251.5, 53.8, 64, 50), "RegNetY-6.4GF": (391.5, 84.5, 64, 50),
    "RegNetY-8.0GF": (421.6, 89.7, 64, 50), "RegNetY-12GF": (531.1, 118.6, 64, 50),
    "RegNetY-16GF": (365.2, 81.4, 32, 25), "RegNetY-32GF": (571.5, 129.3, 32, 25),
    "ResNet-50": (106.6, 22.3, 32, 25), "ResNet-101": (172.4, 37.8, 32, 25),
    "ResNet-152": (242.6, 54.8, 32, 25), "ResNeXt-50": (159.2, 33.1, 32, 25),
    "ResNeXt-101": (286.7, 59.0, 32, 25), "ResNeXt-152": (414.3, 90.1, 32, 25),
}  # fmt: skip
_FEW = ("EfficientNet-B0", "RegNetX-200MF", "RegNetX-600MF", "RegNetY-800MF", "ResNet-50", "ResNeXt-50")


def _tells_better(result: Result, base: str) -> Test:
    """Whether activations foretell a network's time from the others' better than a count does."""
    tests = []
    for kind in result.study.axes[1].values(result.profile):
        table = result.table[result.table["pass"] == kind].set_index("network")
        missed = {arm: table.loc[table["arm"] == arm, "error"] for arm in ("activations", base)}
        less = (missed["activations"] - missed[base]).dropna()
        tests.append(Estimate.of(less, what=f"activations' error less that of {base}, {kind}") < 0)
    return functools.reduce(lambda a, b: a & b, tests)


published = Study(
    "fast-compound-scaling/published",
    question="Which count of a network's work tells how long a GPU takes for it?",
    arms=("flops", "activations", "parameters"),
    axes=[
        axis("network", *_PUBLISHED, tiny=_FEW, log=False, recorded=True),
        axis("pass", "train", "infer", log=False),
    ],
    measures=("error",),
    seeds=1,
    claims=[
        Claim(
            "Activations tell a network's running time better than multiply-adds do.",
            lambda result: _tells_better(result, "flops"),
            where="figure on runtime against flops, parameters and activations",
            threshold="mean error of log time of networks left out is lower, over networks, in training and "
                      "in inference (95 %)",
        ),
        Claim(
            "Activations tell a network's running time better than parameters do.",
            lambda result: _tells_better(result, "parameters"),
            where="figure on runtime against flops, parameters and activations",
            threshold="mean error of log time of networks left out is lower, over networks, in training and "
                      "in inference (95 %)",
        ),
    ],
)  # fmt: skip


@published.trial
def _foretold(arm: str, kind: str, seed: int, profile: Profile) -> list[dict[str, Any]]:
    import pandas

    from allometry.measure import runtime_law

    names = published.axes[0].values(profile.name)
    place = ("train", "infer").index(kind)
    told = {
        name: {
            "seconds": _PUBLISHED[name][place] / 1000 / _PUBLISHED[name][2 + place],
            "flops": _counts(name).flops, "activations": _counts(name).activations,
            "parameters": _counts(name).parameters,
        }
        for name in names
    }  # fmt: skip
    table = pandas.DataFrame.from_dict(told, orient="index")
    law = runtime_law(table, counts=(arm,))
    digest = hashlib.sha256(repr(sorted(_PUBLISHED.items())).encode()).hexdigest()[:12]
    return [
        {
            "network": name, "error": abs(float(law.left_out.loc[name, arm])), "data": digest,
            "milliseconds an image": 1000 * told[name]["seconds"], "count": told[name][arm],
            "exponent": float(law.alone.loc[arm, "exponent"]),
            "residual": float(law.alone.loc[arm, "residual"]),
            "correlation": float(law.alone.loc[arm, "correlation"]),
        }
        for name in names
    ]  # fmt: skip


# --- times of this machine ----------------------------------------------------------------------------------
def _law(result: Result, kind: str) -> Any:
    """Time on both counts over the networks that were timed, each by its mean over seeds."""
    import numpy as np

    from allometry.measure import runtime_law

    rows = result.table[result.table["pass"] == kind]
    columns = ["slowdown", "flops", "activations"]
    table = rows.groupby(["arm", "factor"])[columns].agg(lambda some: float(np.exp(np.log(some).mean())))
    return runtime_law(table, seconds="slowdown")


def _activations_count(result: Result) -> Test:
    tests = []
    for kind in result.study.axes[1].values(result.profile):
        law = _law(result, kind)
        row = law.together.loc["activations"]
        exponent = Estimate(
            row["exponent"], row["low"], row["high"], n=len(law.left_out),
            what=f"exponent of activations beside multiply-adds, {kind}",
        )  # fmt: skip
        tests.append(exponent > 0)
    return functools.reduce(lambda a, b: a & b, tests)


def _activations_tell(result: Result) -> Test:
    tests = []
    for kind in result.study.axes[1].values(result.profile):
        missed = _law(result, kind).left_out.abs()
        less = Estimate.of(
            missed["activations"] - missed["flops"], what=f"activations' error less multiply-adds', {kind}"
        )
        tests.append(less < 0)
    return functools.reduce(lambda a, b: a & b, tests)


def _fast_is_faster(result: Result) -> Test:
    factor = max(result.study.axes[0].values(result.profile))
    tests = [
        result.ratio("uniform", "fast", "time a flop", at={"factor": factor, "pass": kind}).judge(
            holds=(1.1, math.inf), contradicted=(-math.inf, 1.0)
        )
        for kind in result.study.axes[1].values(result.profile)
    ]
    return functools.reduce(lambda a, b: a & b, tests)


times = Study(
    "fast-compound-scaling",
    question="Does this machine's time follow activations, and is the fast rule faster here?",
    arms=_RULES,
    axes=[
        axis("factor", 2, 4, 8, 16, tiny=(2,), quick=(4, 16)),
        axis("pass", "infer", "train", log=False),
    ],
    measures=("slowdown", "time a flop"),
    profiles={
        "tiny": {"seeds": 1, "repeats": 1, "warmup": 0, "batch": 1},
        "quick": {"seeds": 2, "repeats": 3},
        "full": {"seeds": 4, "repeats": 9},
    },
    settings={"batch": 8, "warmup": 2},
    version=2,  # 1 asked every rule for the same; rounding gave uniform a fifth more arithmetic than fast
    lower_is_better=None,
    exclusive=True,
    claims=[
        Claim(
            "At equal multiply-adds a network that writes more takes longer.",
            _activations_count,
            where="section 3, figure on runtime",
            threshold="the exponent of activations, beside that of multiply-adds, is above 0 over the "
                      "networks timed, in inference and in training (95 %)",
        ),
        Claim(
            "Activations tell running time better than multiply-adds do.",
            _activations_tell,
            where="section 3, figure on runtime",
            threshold="mean error of log time of networks left out is lower, over networks, in inference and "
                      "in training (95 %)",
        ),
        Claim(
            "Fast compounding is faster than uniform compounding.",
            _fast_is_faster,
            where="section 5, table of scaled networks",
            threshold="at the largest factor uniform takes 1.1 times as long a multiply-add, or more, in "
                      "inference and in training; contradicted where it takes no longer",
        ),
    ],
)  # fmt: skip


@times.trial
def _timed(
    arm: Any, factor: float, kind: Literal["infer", "train"], seed: int, profile: Profile
) -> dict[str, Any]:
    """A scaled network beside the base, in turn, so that a machine that slows down slows both."""
    import torch

    from allometry import measure, train

    found = _brought("small RegNetY", arm["rule"], factor)
    generator = train.Seeds(seed).generator("images")
    calls = {}
    for name, config in (("base", _network("small RegNetY")), ("scaled", found.config)):
        images = torch.randn(profile.batch, *config.input_shape, generator=generator)
        model = config.build(generator).to(memory_format=torch.channels_last)
        calls[name] = measure.model_call(model, images.to(memory_format=torch.channels_last), kind)
    told = measure.runtime(calls, repeats=profile.repeats, warmup=profile.warmup)["seconds"]
    slowdown = float(told["scaled"] / told["base"])
    return {
        "slowdown": slowdown, "time a flop": slowdown / found.flops, "seconds": float(told["scaled"]),
        "flops": found.flops, "activations": found.activations,
    }  # fmt: skip


# --- accuracy -----------------------------------------------------------------------------------------------
def _no_worse(result: Result) -> Test:
    tests = []
    for arm in ("uniform", "width", "depth"):
        lost = 100 * (result.values("fast", "error") - result.values(arm, "error"))
        told = Estimate.of(lost, what=f"points that fast loses beside {arm}")
        tests.append(told.judge(holds=(-math.inf, 1.0), contradicted=(1.0, math.inf)))
    return functools.reduce(lambda a, b: a & b, tests)


def _alike(result: Result) -> Test:
    tests = []
    for arm in ("uniform", "width", "depth"):
        apart = 100 * (result.values(arm, "error") - result.values("fast", "error"))
        tests.append(Estimate.of(apart, what=f"points between {arm} and fast").within(-1.0, 1.0))
    return functools.reduce(lambda a, b: a & b, tests)


accuracy = Study(
    "fast-compound-scaling/accuracy",
    question="Does it matter to accuracy which dimension takes the growth?",
    # what is asked for differs so that what is reached does not: 3.65 to 3.77 times the base
    arms={
        name: {**_RULES[name], "asked": asked}
        for name, asked in (("uniform", 0.9), ("fast", 1.0), ("width", 1.0), ("depth", 1.1))
    },
    axis=axis("factor", 4),
    measures=("error", "loss"),
    profiles={
        "tiny": {"seeds": 1, "images": 128, "epochs": 1, "test": 100},
        "quick": {"seeds": 1, "images": 2000, "epochs": 1, "test": 2000},
        "full": {"seeds": 3, "images": 16_000, "epochs": 4, "test": 10_000},
    },
    settings={"batch": 64, "rate": 0.1, "decay": 5e-5},
    version=2,  # 1 stopped after 250 steps, where the deep network still erred in a third of its answers
    claims=[
        Claim(
            "At equal multiply-adds the fast rule loses no accuracy.",
            _no_worse,
            where="section 5, figure on accuracy of scaled networks",
            threshold="its test error is at most a point above that of uniform compounding, of width alone "
                      "and of depth alone (95 %); contradicted above a point",
        ),
        Claim(
            "At equal multiply-adds accuracy hardly cares which dimension has grown.",
            _alike,
            where="section 4, figure on scaling one dimension",
            threshold="test errors of uniform compounding, width alone and depth alone are within a point of "
                      "the fast rule's (95 %)",
        ),
    ],
)  # fmt: skip


@functools.lru_cache(maxsize=4)
def _images(count: int, test: int) -> Any:
    """Training and test images, and their digest."""
    from allometry.data import fashion_mnist

    known = fashion_mnist("train", count)
    return known, fashion_mnist("test", test), known.digest


@accuracy.trial
def _trained(arm: Any, factor: float, seed: int, profile: Profile) -> dict[str, Any]:
    import torch

    from allometry import data, optim, train
    from allometry.grow import compound_scale
    from allometry.models import RegNetConfig

    base = RegNetConfig(
        (16, 32, 64), (1, 1, 4), (8, 8, 8), stem="small", stem_width=8, squeeze=0.25, resolution=16,
        channels=1, classes=10,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what is reached is recorded
        found = compound_scale(base, arm["rule"], arm["asked"] * factor)
    known, test, digest = _images(profile.images, profile.test)
    # all arms are given the same images, of 28 pixels, and see them at their own resolution
    model = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(found.config.resolution),
        found.config.build(train.Seeds(seed).generator("init")),
    )
    steps = max(1, profile.epochs * profile.images // profile.batch)
    log = train.fit(
        model, data.ImageBatches(known.images, known.labels, profile.batch, seed),
        optimizer=torch.optim.SGD(
            model.parameters(), profile.rate, momentum=0.9, weight_decay=profile.decay
        ),
        horizons=steps, schedule=functools.partial(optim.cosine, warmup=steps // 20),
        objective=train.classification_loss, log_every=max(1, steps // 10),
        validate=lambda one: train.evaluate_classifier(one, (test.images, test.labels), batch=500),
    )  # fmt: skip
    record = {
        "error": math.nan, "loss": math.nan, "flops": found.flops, "activations": found.activations,
        "data": digest,
    }  # fmt: skip
    if log.horizons:
        record |= {"error": float(log.horizons[-1]["error"]), "loss": float(log.horizons[-1]["loss"])}
    if log.status == "diverged":
        record["diverged"] = next(iter(log.diverged.values()), 0)
    return record


paper = Paper(
    slug="fast-compound-scaling",
    title="Fast and Accurate Model Scaling",
    authors="Piotr Dollár, Mannat Singh, Ross Girshick",
    year=2021,
    arxiv="2103.06877",
    summary=(
        "A convolutional network can be made s times larger in depth, in width or in resolution. Accuracy "
        "hardly cares, running time does: it follows the elements that layers write, which grow as s with "
        "depth and resolution, and only as its square root with width. So give width eight tenths of the "
        "growth. This entry counts to the last digit of the published tables, re-reads the published times "
        "of 36 networks, times the machine at hand, and compares accuracy at small size."
    ),
    studies=(times, counts, published, accuracy),
    parts=(
        "allometry.grow.compound_scale", "allometry.grow.scaling_factors", "allometry.grow.choose_scaling",
        "allometry.measure.convolution_counts", "allometry.measure.runtime", "allometry.measure.runtime_law",
        "allometry.models.regnet", "allometry.models.efficientnet",
    ),
)  # fmt: skip
