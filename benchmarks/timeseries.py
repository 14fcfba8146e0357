"""Forecasters of series beside what they are usually made of: torch's distributions, its data loader and
single runs; and the ratio of two slopes beside SciPy's regression, resampled.

Each comparison begins by checking that both sides agree.
"""

from __future__ import annotations

import math

import numpy as np
import scipy
import torch
from scipy.stats import linregress
from torch.distributions import Categorical, MixtureSameFamily, StudentT
from torch.utils.data import DataLoader, Dataset, RandomSampler

from allometry.data import SyntheticSeries, WindowSampler
from allometry.laws import ShiftLaw
from allometry.models import PatchForecaster
from allometry.models.forecast_heads import StudentTMixtureHead
from allometry.train import train_forecasters
from benchmarks import Case

_LENGTH, _BATCH = 128, 32
_RESAMPLES, _TIMED = 10_000, 40


def _density() -> Case:
    """Log density of a mixture of four t, forward and backward, of one training batch's targets."""
    head = StudentTMixtureHead()
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(_BATCH, 8, 8, head.width, generator=generator).requires_grad_()
    value = torch.randn(_BATCH, 8, 8, generator=generator)

    def peer() -> torch.Tensor:
        weights, degrees, location, scale = raw.unflatten(-1, (4, 4)).unbind(-2)
        soft = torch.nn.functional.softplus
        told = MixtureSameFamily(
            Categorical(logits=weights), StudentT(2 + soft(degrees), location, soft(scale).clamp_min(1e-4))
        )
        loss = -told.log_prob(value).mean()
        (gradient,) = torch.autograd.grad(loss, raw)
        return gradient

    def ours() -> torch.Tensor:
        (gradient,) = torch.autograd.grad(-head.log_prob(raw, value).mean(), raw)
        return gradient

    assert torch.allclose(ours(), peer(), atol=1e-7)
    return Case(
        "models: density of a t mixture and its gradient", ours, peer,
        f"torch {torch.__version__} MixtureSameFamily", 1.0, rounds=15,
        note="the time of both is lgamma and digamma; ours is written for what it can be traced into.",
    )  # fmt: skip


class _Windows(Dataset):
    """Windows by number, as a data set of torch has them."""

    def __init__(self, series: np.ndarray) -> None:
        self.series = series
        self.each = series.shape[1] - _LENGTH + 1

    def __len__(self) -> int:
        return len(self.series) * self.each

    def __getitem__(self, index: int) -> torch.Tensor:
        which, at = divmod(index, self.each)
        return torch.from_numpy(self.series[which, at : at + _LENGTH])


def _batches() -> Case:
    """A hundred batches of random windows."""
    corpus = SyntheticSeries(("trend", "seasonal"), 512).take(512 * 400)
    sampler = WindowSampler(corpus, _LENGTH, _BATCH, seed=0)
    windows = _Windows(corpus.values.reshape(-1, 512).numpy())
    drawn = RandomSampler(windows, replacement=True, num_samples=100 * _BATCH)
    loader = DataLoader(windows, batch_size=_BATCH, sampler=drawn)
    assert next(iter(loader)).shape == sampler.batch(0).shape
    return Case(
        "data: 100 batches of 32 random windows",
        lambda: [sampler.batch(step) for step in range(100)],
        lambda: list(loader),
        f"torch {torch.__version__} DataLoader in this process", 3.0, rounds=9,
        note="uniform windows in both; ours also balances sources and is a function of the step.",
    )  # fmt: skip


def _seeds() -> Case:
    """Eight seeds of the smallest size: 150 steps as one program, and one run after another."""
    corpus = SyntheticSeries(("trend", "seasonal"), 512).take(512 * 100)

    def make(generator: torch.Generator) -> PatchForecaster:
        return PatchForecaster(8, 8, 1, max_patches=16, generator=generator)

    def train(seeds: list[int]) -> list[float]:
        samplers = [WindowSampler(corpus, _LENGTH, _BATCH, seed) for seed in seeds]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        _, logs = train_forecasters(make, samplers, seeds=seeds, generators=generators, steps=150)
        return [log.steps[-1]["loss"] for log in logs]

    def alone(seeds: list[int]) -> list[float]:
        losses = []
        for seed in seeds:
            model = make(torch.Generator().manual_seed(seed))
            losses.append(_plain(model, WindowSampler(corpus, _LENGTH, _BATCH, seed), seed))
        return losses

    seeds = list(range(8))
    assert np.allclose(train(seeds[:2]), alone(seeds[:2]), rtol=1e-3)
    return Case(
        "train: eight seeds of a forecaster, 150 steps", lambda: train(seeds), lambda: alone(seeds),
        f"torch {torch.__version__}, a run after another", 1.5, rounds=3,
        note="the peer is an ordinary loop over the same batches: autograd and a fused AdamW. Ours includes "
             "the tracing, about half a second.",
    )  # fmt: skip


def _plain(model: PatchForecaster, sampler: WindowSampler, seed: int, steps: int = 150) -> float:
    """The same training, written as one would by hand."""
    from allometry.train.timeseries import ForecastBatches, warmed_cosine

    batches = ForecastBatches([sampler], model, [seed])
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, 1e-3, betas=(0.9, 0.98), eps=1e-6, fused=True)
    loss = torch.tensor(math.nan)
    for step in range(steps):
        inputs, targets = (part[0] for part in batches.batch(step))
        raw = model.network(inputs[..., :-1], inputs[..., -1] > 0.5, last=targets.shape[1])
        value, counts = targets.chunk(2, -1)
        loss = -(model.head.log_prob(raw, value) * counts).sum() / counts.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * warmed_cosine(step, steps)
        optimizer.step()
    return loss.item()


def _ratio() -> Case:
    """The ratio of two slopes of 60 runs with its interval: closed form, and 10 000 resamples of runs."""
    rng = np.random.default_rng(0)
    x = np.repeat(np.geomspace(1e3, 1e5, 6), 10)
    luck = 0.02 * rng.normal(size=60)
    inside, outside = (2.0 - fall * np.log10(x) + luck + 0.01 * rng.normal(size=60) for fall in (0.10, 0.06))
    table = {
        "params": np.r_[x, x], "run": np.r_[np.arange(60), np.arange(60)],
        "collection": ["ID"] * 60 + ["OOD"] * 60, "loss": np.r_[inside, outside],
    }  # fmt: skip
    log = np.log10(x)

    def ours() -> tuple[float, float]:
        told = ShiftLaw(form="log-linear").fit(table).ratio("OOD")
        return told.low, told.high

    def peer(resamples: int = _TIMED) -> tuple[float, float]:
        found = []
        for rows in rng.integers(60, size=(resamples, 60)):
            slopes = [linregress(log[rows], y[rows]).slope for y in (inside, outside)]
            found.append(slopes[1] / slopes[0])
        return tuple(np.quantile(found, [0.025, 0.975]))

    assert np.allclose(ours(), peer(2000), atol=0.03)
    return Case(
        "laws: ratio of two slopes with its interval", ours, peer,
        f"SciPy {scipy.__version__} linregress, 10 000 resamples", 500.0, peer_scale=_RESAMPLES / _TIMED,
        note=f"the peer's time is that of {_TIMED} resamples, scaled to {_RESAMPLES}; the intervals agree "
             "within 0.03.",
    )  # fmt: skip


def cases() -> list[Case]:
    """Density, windows, stacked seeds, and the law."""
    return [_density(), _batches(), _seeds(), _ratio()]
