"""A small perturbation makes HiPPO's eigenvectors usable; dropping its low-rank part leaves spikes instead.

Yu, Nigmetov, Morozov, Mahoney and Erichson, 2023. arXiv:2310.01698

Four questions: how far each diagonal start is from HiPPO at its worst frequency, what a perturbation's size
buys (beside random ones of that size, which the paper leaves out), whether readouts are misled by sinusoids
at the spikes, and whether trained classifiers are.  The last is small: two layers, sequences of 196 pixels.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

from allometry.papers import Paper
from allometry.study import Claim, Estimate, Profile, Result, Study, Test, axis

if TYPE_CHECKING:
    from torch import Tensor

_EPS = 0.45  # below one half, which certifies stable poles


@functools.lru_cache(maxsize=16)
def _start(arm: str, states: int, seed: int, steps: int) -> Any:
    """The diagonal that an arm begins with."""
    from allometry import init, models

    if arm in ("legs", "clipped"):
        return models.legs(states, clip=2.0 if arm == "clipped" else None, half=arm == "legs")
    matrix, inputs, _ = models.hippo_legs(states)
    method = "ginibre" if arm == "random" else "optimise"
    return init.ptd(matrix, inputs, eps=_EPS, steps=steps, method=method, seed=seed).diagonal()


# --- how far from HiPPO -------------------------------------------------------------------------------------
def _largest(result: Result) -> int:
    return int(max(result.study.axes[0].values(result.profile)))


def _near(result: Result) -> Test:
    found = result.mean("ptd", at={"states": _largest(result)})
    return found.judge(holds=(-math.inf, 0.02))


response = Study(
    "s4-ptd/response",
    question="How far is each diagonal start from HiPPO at its worst frequency?",
    arms=("legs", "clipped", "ptd", "random"),
    axis=axis("states", 16, 32, 64, 128, tiny=(8, 16), quick=(16, 32, 64)),
    measures=("gap", "fixed"),
    lower_is_better=None,
    profiles={"tiny": {"seeds": 1, "steps": 5}, "quick": {"seeds": 1}, "full": {"seeds": 3}},
    settings={"steps": 300},
    weight=lambda arm, states: float(states) ** 3 if arm == "ptd" else 1.0,
    claims=[
        Claim(
            "Without the low-rank part the worst gap does not vanish, and grows with the states.",
            lambda result: result.slope("legs").judge(holds=(0.3, math.inf), contradicted=(-math.inf, 0.0)),
            where="theorem 2",
            threshold="exponent of the worst gap in states of 0.3 or more; contradicted below zero",
        ),
        Claim(
            "Perturbed by 0.45 the system is within two per cent of HiPPO at every frequency.",
            _near,
            where="theorem 3, whose bound of (2 ln n + 4) 0.45 tests nothing here",
            threshold="worst gap over the largest response below 0.02 at the most states",
        ),
        Claim(
            "Its worst gap is a tenth or less of the one that dropping the low-rank part leaves.",
            lambda result: result.ratio("ptd", "legs", at={"states": _largest(result)}).judge(
                holds=(0.0, 0.1), contradicted=(1.0, math.inf)
            ),
            where="theorems 2 and 3, figure 2",
            threshold="ratio of 0.1 or less at the most states; contradicted above one",
        ),
    ],
)


@response.trial
def _response(arm: str, states: int, seed: int, profile: Profile) -> dict[str, Any]:
    import torch

    from allometry import measure, models

    spikes = models.legs(states).poles.imag
    between = torch.logspace(-2, math.log10(2 * float(spikes.max())), 400, dtype=torch.float64)
    omega = torch.cat([spikes, between, torch.tensor([0.5, 2.0, 5.0], dtype=torch.float64)])
    one = _start(arm, states, seed, profile.steps)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(16, states, dtype=torch.float64, generator=generator).to(torch.complex128)
    ours = measure.transfer(one.poles, one.inputs, rows @ one.basis, omega, one.weight)
    exact = rows @ models.legs_transfer(states, omega).mT
    size = exact.abs().amax(1, keepdim=True)
    found = measure.response_gap(ours / size, exact / size, omega)
    # The first state alone at fixed frequencies: other states lag behind by their own degree.
    first = measure.transfer(one.poles, one.inputs, one.basis[:1], omega[-3:], one.weight)[0]
    fixed = measure.response_gap(first, models.legs_transfer(states, omega[-3:])[:, 0], omega[-3:])
    return {"gap": found.sup, "fixed": fixed.sup, "at": found.argmax}


# --- what a perturbation's size buys ------------------------------------------------------------------------
def _trade(result: Result) -> Test:
    import numpy as np

    def slope(part: Any) -> float:
        rows = part[(part["arm"] == "optimised") & (part["size"] <= 1.001e-2)]
        sizes, kappas = rows["size"].astype(float), rows["kappa"].astype(float)
        return float(np.polyfit(np.log(sizes), np.log(kappas), 1)[0])

    found = result.each_seed(slope, what="exponent of the condition in the perturbation's size, up to 1e-2")
    return found.within(-1.3, -0.7)


condition = Study(
    "s4-ptd/condition",
    question="How does the eigenvectors' condition fall with the size of the perturbation?",
    arms=("optimised", "random"),
    axis=axis("size", 1e-4, 1e-3, 1e-2, 1e-1, 1.0, tiny=(1e-3, 1e-2), quick=(1e-4, 1e-3, 1e-2)),
    measures=("kappa", "rightmost"),
    lower_is_better=None,
    profiles={"tiny": {"seeds": 1, "steps": 5, "states": 8}, "quick": {"seeds": 2}, "full": {"seeds": 5}},
    settings={"steps": 300, "states": 32},
    claims=[
        Claim(
            "The condition falls as one over the size of the perturbation.",
            _trade,
            where="section 4 and the ablation of its size",
            threshold="exponent within -1.3 and -0.7 from 1e-4 to 1e-2 of the matrix's norm (95 %)",
        ),
        Claim(
            "An optimised perturbation is better conditioned than a random one of its size.",
            lambda result: result.ratio("optimised", "random") < 1.0,
            where="section 4 (the random ones are our control)",
            threshold="ratio of conditions, averaged over sizes, below one (95 %)",
        ),
    ],
)


@condition.trial
def _condition(arm: str, size: float, seed: int, profile: Profile) -> dict[str, Any]:
    from allometry import init, models

    matrix, inputs, _ = models.hippo_legs(profile.states)
    method = "ginibre" if arm == "random" else "optimise"
    found = init.ptd(matrix, inputs, rel=size, steps=profile.steps, method=method, seed=seed)
    return {"kappa": found.kappa, "rightmost": float(found.poles.real.max()), "norm": found.size}


# --- whether readouts are misled ----------------------------------------------------------------------------
sinusoid = Study(
    "s4-ptd/sinusoid",
    question="How wrong is the amplitude that a readout tells for sinusoids at the spike frequencies?",
    arms=("legs", "clipped", "ptd", "random"),
    axis=axis("states", 32, 64, tiny=(8,), quick=(32,)),
    measures=("worst", "typical"),
    profiles={
        "tiny": {"seeds": 1, "steps": 5, "count": 40, "length": 64},
        "quick": {"seeds": 3},
        "full": {"seeds": 16},
    },
    settings={"steps": 300, "count": 400, "length": 512, "channels": 16, "step": 0.02},
    claims=[
        Claim(
            "At spike frequencies S4D's largest error is several times that after perturbing.",
            lambda result: result.ratio("legs", "ptd", at={"states": _largest(result)}).judge(
                holds=(3.0, math.inf), contradicted=(0.0, 1.5)
            ),
            where="section 5.1, the regression of amplitudes",
            threshold="three times or more at the most states; contradicted below 1.5",
        ),
    ],
)


@sinusoid.trial
def _sinusoid(arm: str, states: int, seed: int, profile: Profile) -> dict[str, Any]:
    import hashlib

    import torch

    from allometry import models

    generator = torch.Generator().manual_seed(1000 + seed)
    spikes = models.legs(states).poles.imag.float()
    spikes = spikes[spikes < 130]

    def waves(omega: Tensor) -> tuple[Tensor, Tensor]:
        amplitude = 0.5 + torch.rand(len(omega), generator=generator)
        phase = 2 * math.pi * torch.rand(len(omega), 1, generator=generator)
        time = profile.step * torch.arange(profile.length)
        noise = 0.05 * torch.randn(len(omega), profile.length, generator=generator)
        return amplitude[:, None] * torch.sin(omega[:, None] * time + phase) + noise, amplitude

    known, wanted = waves(50 * torch.rand(profile.count, generator=generator))
    near = spikes.repeat(10) * (0.99 + 0.02 * torch.rand(10 * len(spikes), generator=generator))
    tested, truth = waves(near)
    layer = models.S4D(
        profile.channels, init=_start(arm, states, seed, profile.steps), dt=(profile.step, profile.step),
        bandlimit=True, generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip

    def features(signal: Tensor) -> Tensor:
        """Root mean square of each channel once the start has faded, and a constant."""
        with torch.no_grad():
            layer.skip.zero_()  # a feed-through would tell the amplitude by itself
            out = layer(signal[..., None].expand(-1, -1, profile.channels))
        size = out[:, profile.length // 2 :].square().mean(1).sqrt().double()
        return torch.cat([size, torch.ones(len(size), 1, dtype=size.dtype)], 1)

    x = features(known)
    scale = x.square().mean(0).sqrt()
    x = x / scale
    gram = x.mT @ x + 1e-4 * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    readout = torch.linalg.solve(gram, x.mT @ wanted.double())
    error = ((features(tested) / scale) @ readout - truth).abs()
    digest = hashlib.sha256(known.numpy().tobytes() + tested.numpy().tobytes()).hexdigest()[:12]
    return {"worst": float(error.max()), "typical": float(error.median()), "data": digest}


# --- whether trained classifiers are ------------------------------------------------------------------------
@functools.lru_cache(maxsize=2)
def _pixels(size: int, count: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    from allometry import data

    train = data.fashion_mnist("train", count, size=size)
    test = data.fashion_mnist("test", count // 4, size=size)
    return ((data.pixel_sequences(train.images), train.labels),
            (data.pixel_sequences(test.images), test.labels))  # fmt: skip


def _points(result: Result, arm: str, base: str, column: str, what: str) -> Estimate:
    """A column of an arm less the base's at the smallest amplitude, in points."""
    least = min(result.study.axes[0].values(result.profile))

    def gap(part: Any) -> float:
        rows = part[part["amplitude"] == least].set_index("arm")[column]
        return 100 * float(rows[arm] - rows[base])

    return result.each_seed(gap, what=what)


attack = Study(
    "s4-ptd/attack",
    question="How much accuracy does a sinusoid at the first layer's trained spike frequencies cost?",
    arms=("legs", "clipped", "ptd"),
    axis=axis("amplitude", 0.1, 0.5, recorded=True),
    measures=("drop", "clean", "initial drop"),
    profiles={
        "tiny": {"seeds": 1, "train": 2, "steps": 5, "images": 80, "size": 4, "states": 8},
        "quick": {"seeds": 1, "train": 40},
        "full": {"seeds": 4, "train": 600},
    },
    settings={"width": 16, "states": 32, "batch": 32, "images": 4000, "rate": 1e-2, "size": 14,
              "steps": 300, "candidates": 4},
    version=2,  # 1 stopped after 80 steps at a constant rate, with most of the answers wrong
    claims=[
        Claim(
            "Perturbing costs no accuracy on clean sequences.",
            lambda result: _points(result, "ptd", "legs", "clean", "clean error of ptd less legs, in points")
            .judge(holds=(-math.inf, 1.0), contradicted=(2.0, math.inf)),
            where="table 2",
            threshold="within a point of legs; contradicted above two",
        ),
        Claim(
            "Attacked at its spikes S4D loses more than a network that began perturbed.",
            lambda result: _points(result, "legs", "ptd", "drop", "drop of legs less ptd's, in points")
            .judge(holds=(5.0, math.inf), contradicted=(-math.inf, 0.0)),
            where="section 5.2, noise at Fourier modes",
            threshold="five points or more at a tenth of each signal's spread; contradicted below zero",
        ),
    ],
)  # fmt: skip


@attack.trial
def _attack(arm: str, seed: int, profile: Profile) -> list[dict[str, Any]]:
    import torch

    from allometry import data, init, measure, models, optim, train

    known, test = _pixels(profile.size, profile.images)
    model = models.SSMClassifier(
        1, 10, d_model=profile.width, init=_start(arm, profile.states, 0, profile.steps),
        generator=train.Seeds(seed).generator("init"), bandlimit=True,
    )  # fmt: skip

    def candidates() -> list[float]:
        """Frequencies spread evenly over the first layer's list of spikes."""
        found = measure.spike_frequencies(model.blocks[0].system)
        places = torch.linspace(0, len(found) - 1, profile.candidates).long()
        return [float(one) for one in found[places]]

    def worst(frequencies: list[float], amplitude: float) -> float:
        attacked = [measure.fourier_attack(test[0], one, amplitude) for one in frequencies]
        return max(float(train.evaluate_classifier(model, (x, test[1]))["error"]) for x in attacked)

    before = candidates()
    groups = optim.param_groups(model, profile.rate, init.state_roles(model), weight_decay=0.01)
    train.fit(
        model, data.ImageBatches(*known, profile.batch, seed), optimizer=torch.optim.AdamW(groups),
        horizons=profile.train, schedule=optim.cosine, objective=train.classification_loss,
        log_every=profile.train,
    )  # fmt: skip
    clean = float(train.evaluate_classifier(model, test)["error"])
    after = candidates()
    return [
        {"amplitude": one, "clean": clean, "drop": worst(after, one) - clean,
         "initial drop": worst(before, one) - clean}
        for one in (0.1, 0.5)
    ]  # fmt: skip


paper = Paper(
    slug="s4-ptd",
    title="Robustifying State-space Models for Long Sequences via Approximate Diagonalization",
    authors="Annan Yu, Arnur Nigmetov, Dmitriy Morozov, Michael W. Mahoney, N. Benjamin Erichson",
    year=2023,
    arxiv="2310.01698",
    venue="ICLR 2024",
    summary=(
        "HiPPO's eigenvectors are too ill-conditioned to diagonalise it, so S4D drops its low-rank part. The "
        "result agrees with HiPPO at every fixed frequency and not uniformly: tall spikes stay at its "
        "eigenfrequencies however many states there are. Adding a small matrix chosen for well-conditioned "
        "eigenvectors, and diagonalising that, keeps the response near HiPPO's everywhere."
    ),
    studies=(response, condition, sinusoid, attack),
    parts=(
        "allometry.init.ptd", "allometry.init.robustify_", "allometry.measure.response_gap",
        "allometry.measure.spike_frequencies", "allometry.measure.fourier_attack",
    ),
)  # fmt: skip
