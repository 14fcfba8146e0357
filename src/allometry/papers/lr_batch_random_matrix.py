"""Noise pushes a batch's largest curvature outward by one over the batch, and the largest rate follows.

Granziol, Zohren and Roberts, 2020. arXiv:2006.09092

Four questions: whether the laws for noisy matrices hold at finite size; whether the largest stable rates of
SGD and Adam follow; whether the largest curvature of a network's batches falls as they say, and which
measurement of noise foretells by how much (`allometry.papers.lr_batch_curvature`); and what a schedule that
measures curvature is worth beside the best fixed rate (`allometry.papers.lr_batch_learner`).  The paper's
networks are VGGs and wide residual networks on CIFAR-100 and ImageNet; here they are a perceptron on digits
and a small convolutional network on Fashion-MNIST.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from allometry.papers import Paper
from allometry.study import Claim, Estimate, Profile, Result, Study, Test, axis

if TYPE_CHECKING:
    from torch import Tensor, nn

_SPIKES = (6.0, 3.0, 1.5, 0.4)
_NOISE = 9.0  # of one sample: an entry's variance times the dimension


# --- random matrices ----------------------------------------------------------------------------------------
def _worst(arm: str, most: float, refuted: float) -> Any:
    """The largest relative error over batches, judged against what is allowed and what refutes."""

    def rule(result: Result) -> Test:
        found = result.each_seed(
            lambda part: float(part.loc[part["arm"] == arm, "error"].max()),
            what=f"largest relative error over batches, {arm}",
        )
        return found.judge(holds=(0.0, most), contradicted=(refuted, math.inf))

    rule.__name__ = f"_worst_{arm.split()[0]}"
    return rule


matrices = Study(
    "lr-batch-random-matrix/matrices",
    question="Do the laws of noisy matrices tell the eigenvalues of matrices of finite size?",
    arms=("symmetric noise", "positive noise"),
    axis=axis("batch", 8, 32, 128, 512, tiny=(32, 128), quick=(8, 32, 128)),
    measure="error",
    lower_is_better=None,  # an error of the law, which no scale of ours is worth anything to
    data_by_arm=True,  # an arm is a kind of matrix
    profiles={
        "tiny": {"seeds": 1, "size": 150, "matrices": 2},
        "quick": {"seeds": 3, "size": 400},
        "full": {"seeds": 5},
    },
    settings={"size": 800, "matrices": 8},
    claims=[
        Claim(
            "Symmetric noise of variance v moves an eigenvalue to λ + v/λ, or to the edge of the bulk.",
            _worst("symmetric noise", 0.03, 0.06),
            where="theorem on the batch Hessian (section 3)",
            threshold="mean eigenvalues within 3 % at every batch; contradicted beyond 6 %",
        ),
        Claim(
            "Sampling moves the spikes of a covariance to (θ + σ²)(1 + γσ²/θ), or to the edge.",
            _worst("positive noise", 0.1, 0.2),
            where="extension to the generalised Gauss-Newton matrix (section 3)",
            threshold="within 10 % for those that stand out and the first that does not; contradicted beyond "
                      "20 %",
        ),
    ],
)  # fmt: skip


@matrices.trial
def _matrices(arm: str, batch: int, seed: int, profile: Profile) -> dict[str, Any]:
    import numpy as np
    from scipy.linalg import eigvalsh

    from allometry import measure

    rng, size, spikes = np.random.default_rng([seed, batch]), profile.size, np.array(_SPIKES)
    tops = []
    for _ in range(profile.matrices):
        if arm == "symmetric noise":
            half = rng.normal(size=(size, size)) * math.sqrt(_NOISE / batch / size / 2)
            matrix = half + half.T
            matrix[range(4), range(4)] += spikes
        else:
            x = rng.normal(size=(batch, size))
            x[:, :4] *= np.sqrt(1.0 + spikes)
            matrix = (x @ x.T if batch < size else x.T @ x) / batch  # their eigenvalues are the same
        last = len(matrix)
        tops.append(eigvalsh(matrix, subset_by_index=[last - 4, last - 1])[::-1])
    if arm == "symmetric noise":
        law = measure.wigner_outlier(spikes, _NOISE / batch)
        told = 4  # the last of them drowns at small batches, and is then the bulk's first
    else:
        law = measure.wishart_outlier(spikes, 1.0, size / batch)
        told = min(4, 1 + int((spikes > math.sqrt(size / batch)).sum()))
    errors = np.abs(np.mean(tops, 0) / law - 1.0)[:told]
    return {"error": float(errors.max()), "largest": float(np.mean(tops, 0)[0]), "law": float(law[0])}


# --- networks -----------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=4)
def _images(task: str, count: int) -> tuple[Tensor, Tensor, str]:
    """Images, labels, and the digest of both."""
    from allometry import data

    found = data.digits(count) if task == "digits" else data.fashion_mnist("train", count, size=14)
    return found.images, found.labels, found.digest


def _network(task: str, seed: int) -> nn.Module:
    """A perceptron of two hidden layers for digits; two convolutions and two dense layers for clothes."""
    import torch
    from torch import nn

    from allometry import models, train
    from allometry.models.start import start_

    generator = train.Seeds(seed).generator("init")
    if task == "digits":
        return models.MLP(64, 10, width=48, depth=2, activation="gelu", generator=generator)
    with torch.device("meta"):
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.GELU(),
            nn.Flatten(), nn.Linear(256, 32), nn.GELU(), nn.Linear(32, 10),
        )  # fmt: skip
    return start_(model, generator)


def _trained(task: str, count: int, epochs: int, seed: int) -> nn.Module:
    """The network after some epochs of SGD in batches of 64, with momentum."""
    import torch

    from allometry import data, optim, train

    images, labels, _ = _images(task, count)
    model, steps = _network(task, seed), epochs * math.ceil(count / 64)
    if steps:
        train.fit(
            model, data.ImageBatches(images, labels, min(64, count), seed),
            optimizer=torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), horizons=steps,
            schedule=optim.constant, objective=train.classification_loss, log_every=steps,
        )  # fmt: skip
    return model


_EPOCHS = {"start": 0, "one epoch": 1, "late": 10}


def _factor(result: Result, told: str, seen: str, what: str, pick: Any = None) -> Estimate:
    """The largest factor between two columns: in each seed, then the mean over seeds of its logarithm."""
    import numpy as np

    def logarithm(part: Any) -> float:
        rows = part if pick is None else pick(part)
        return float(np.abs(np.log(rows[told] / rows[seen])).max())

    log = result.each_seed(logarithm)
    value, low, high = (math.exp(min(one, 700.0)) for one in (log.value, log.low, log.high))
    return Estimate(value, low, high, n=log.n, what=f"largest factor {what}")


# --- rates --------------------------------------------------------------------------------------------------
def _exponent(result: Result, arm: str, moment: str, low: float, high: float, where: str) -> Estimate:
    """Of the largest stable rate in the batch, where batch over critical batch is in a range."""
    import numpy as np

    def statistic(part: Any) -> float:
        rows = part[(part["arm"] == arm) & (part["moment"] == moment)]
        share = rows["batch"] / rows["critical batch"]
        rows = rows[(share > low) & (share < high)]
        x, y = np.log(rows[["batch", "rate"]].to_numpy(float)).T
        return float(np.polyfit(x, y, 1)[0]) if len(x) > 1 else math.nan

    return result.each_seed(statistic, what=f"exponent of {arm}'s rate {where}")


def _linear_then_flat(moment: str) -> Any:
    def rule(result: Result) -> Test:
        few = _exponent(result, "sgd", moment, 0, 0.5, "below half of b*")
        many = _exponent(result, "sgd", moment, 2, math.inf, "above twice b*")
        return (
            few.judge(holds=(0.6, math.inf), contradicted=(-math.inf, 0.4))
            & few.judge(holds=(-math.inf, 1.1), contradicted=(1.1, math.inf))
            & many.judge(holds=(-math.inf, 0.3), contradicted=(0.6, math.inf))
        )

    rule.__name__ = f"_linear_then_flat_{moment.split()[-1]}"
    return rule


def _square_root(moment: str) -> Any:
    def rule(result: Result) -> Test:
        found = _exponent(result, "adam", moment, 0, 1, "below b*")
        return found.judge(holds=(0.3, math.inf), contradicted=(-math.inf, 0.0)) & found.judge(
            holds=(-math.inf, 0.7), contradicted=(0.75, math.inf)
        )

    rule.__name__ = f"_square_root_{moment.split()[-1]}"
    return rule


def _foretold(moment: str) -> Any:
    def rule(result: Result) -> Test:
        found = _factor(
            result, "law", "rate", "between SGD's rate and 2 / (λ + c / b)",
            lambda part: part[(part["arm"] == "sgd") & (part["moment"] == moment)],
        )  # fmt: skip
        return found.judge(holds=(1.0, 2.0), contradicted=(4.0, math.inf))

    rule.__name__ = f"_foretold_{moment.split()[-1]}"
    return rule


_WHEN = {"one epoch": "early in training, where curvature still rises", "late": "late in training"}

rates = Study(
    "lr-batch-random-matrix",
    question="How does the largest stable learning rate follow the batch?",
    arms=("sgd", "adam"),
    axes=(
        axis("batch", 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, tiny=(2, 8), quick=(1, 4, 16, 128, 512),
             recorded=True),
        axis("moment", *_WHEN, tiny=("one epoch",), quick=("late",), log=False),
    ),
    measures=("rate", "law"),
    lower_is_better=None,
    profiles={
        "tiny": {"seeds": 1, "samples": 64, "steps": 5, "warm": 5, "octaves": 1},
        "quick": {"seeds": 1},
        "full": {"seeds": 8},
    },
    settings={"samples": 1536, "steps": 60, "warm": 100, "octaves": 14},
    version=2,  # 1 had five seeds, which left five of its six claims open; nothing else is different
    claims=[
        claim
        for moment, words in _WHEN.items()
        for claim in (
            Claim(
                f"SGD's largest stable rate grows linearly with the batch and saturates ({words}).",
                _linear_then_flat(moment),
                where="abstract and section 4",
                threshold="exponent from 0.6 to 1.1 below half of the critical batch (contradicted below "
                          "0.4) and below 0.3 above twice of it",
            ),
            Claim(
                f"Adam's grows as the square root of the batch ({words}).",
                _square_root(moment),
                where="abstract and section 5",
                threshold="exponent from 0.3 to 0.7 below the critical batch; contradicted above 0.75 or "
                          "where it falls",
            ),
            Claim(
                f"SGD's is 2 / (λ + c / b), with c measured once ({words}).",
                _foretold(moment),
                where="section 4, with noise as the top direction sees it",
                threshold="within a factor of 2 at every batch; contradicted beyond 4",
            ),
        )
    ],
)  # fmt: skip


@rates.trial
def _rates(arm: str, moment: str, seed: int, profile: Profile) -> Iterator[dict[str, Any]]:
    """From one checkpoint: 60 steps in which the loss of the data stays below twice what it was."""
    import copy

    import torch
    import torch.nn.functional as F

    from allometry import measure, optim, train

    images, labels, digest = _images("digits", profile.samples)
    model, seeds = _trained("digits", profile.samples, _EPOCHS[moment], seed), train.Seeds(seed)
    noise = measure.hessian_noise(
        model, F.cross_entropy, (images, labels), generator=seeds.generator("noise")
    )
    scale = measure.gradient_noise_scale(model, F.cross_entropy, (images, labels))
    parameters = sum(one.numel() for one in model.parameters())
    with torch.no_grad():
        start = float(F.cross_entropy(model(images), labels))

    for batch in rates.axes[0].values(profile.name):
        generator = seeds.generator(f"batches {batch}")
        order = [torch.randperm(profile.samples, generator=generator)[:batch]
                 for _ in range(profile.warm + profile.steps)]  # fmt: skip

        # Adam's averages are those of the checkpoint: its first steps do not move
        still = copy.deepcopy(model)
        warm = torch.optim.Adam(still.parameters(), lr=0.0, eps=1e-8)
        for rows in order[: profile.warm] if arm == "adam" else ():
            warm.zero_grad()
            F.cross_entropy(still(images[rows]), labels[rows]).backward()
            warm.step()

        def walk(rate: float, order: list[Any] = order, warm: Any = warm) -> float:
            moved = copy.deepcopy(model)
            kind: Any = torch.optim.SGD if arm == "sgd" else torch.optim.Adam
            optimizer = kind(moved.parameters(), lr=rate)
            if arm == "adam":
                optimizer.load_state_dict(copy.deepcopy(warm.state_dict()))
                optimizer.param_groups[0]["lr"] = rate
            for step, rows in enumerate(order[profile.warm :], 1):
                optimizer.zero_grad()
                F.cross_entropy(moved(images[rows]), labels[rows]).backward()
                optimizer.step()
                if step % 5 == 0:
                    with torch.no_grad():
                        if not float(F.cross_entropy(moved(images), labels)) < 2 * start:
                            return math.inf
            return 0.0

        centre = 2.0 ** (-3 if arm == "sgd" else -9)
        reach = 2.0 ** (profile.octaves / 2)
        found = train.max_stable_learning_rate(walk, centre / reach, centre * reach, factor=2**0.1)
        law = optim.max_learning_rate(
            noise, batch, dataset_size=profile.samples, optimizer=arm,  # type: ignore[arg-type]
            momentum=0.0 if arm == "sgd" else 0.9, gradient=scale, parameters=parameters,
        )  # fmt: skip
        yield {
            "batch": batch, "rate": found.rate, "law": float(law), "start": start,
            "critical batch": noise.critical_batch, "eigenvalue": noise.eigenvalue,
            "noise scale": scale.value, "data": digest,
        }  # fmt: skip


paper = Paper(
    slug="lr-batch-random-matrix",
    title="Learning Rates as a Function of Batch Size: A Random Matrix Theory Approach to Neural Network "
          "Training",
    authors="Diego Granziol, Stefan Zohren, Stephen Roberts",
    year=2020,
    arxiv="2006.09092",
    venue="JMLR 23 (2022)",
    summary=(
        "The Hessian of a batch is that of the data and noise that falls as one over the batch; noise pushes "
        "the largest eigenvalues outward, and the largest stable step is two over the largest. So SGD's rate "
        "may grow linearly with the batch until noise no longer matters, and Adam's, whose denominator "
        "shrinks too, with its square root. One measurement at one batch foretells the whole curve, if it "
        "looks at noise where the curvature is."
    ),
    studies=(rates, matrices),
    parts=(
        "allometry.measure.hessian_noise", "allometry.measure.batch_eigenvalue_law",
        "allometry.measure.CurvatureOperator", "allometry.measure.spectral_density",
        "allometry.measure.GradientNoiseScale", "allometry.optim.max_learning_rate",
        "allometry.optim.rescale", "allometry.optim.CurvatureSchedule",
    ),
)  # fmt: skip
