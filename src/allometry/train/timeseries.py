"""Forecasters of time series: their batches, several seeds trained as one program, and how they are scored.

The recipe of Yao and others, 2024, arXiv:2410.12360: the last 15 to 50 % of a window's patches are foretold,
by encoder and decoder alike, and the rest gives mean and deviation; AdamW with betas 0.9 and 0.98 and decay
on the linear maps alone; a linear warm-up over a tenth of the steps, then a cosine to zero; gradients clipped
at one.

* Mean and deviation of a window hold no parameters, so windows are standardised once, outside of the traced
  program; the loss is the negative log likelihood of standardised values. It differs from that of the data by
  the log of the deviation, which no gradient sees.
* Numbers for the head are computed for the part of a window that may be foretold, at most its last half.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from allometry.models.forecast_heads import Head
from allometry.models.series_forecast import forecast_horizon
from allometry.models.timeseries import PatchForecaster, standardise
from allometry.train.divergence import DivergenceRule
from allometry.train.loop import TrainLog, fit
from allometry.train.replicas import Stack
from allometry.train.stack import replica_logs

if TYPE_CHECKING:
    import pandas

__all__ = ["ForecastBatches", "crps", "score_forecaster", "train_forecasters"]

SHARE = (0.15, 0.5)  # of a window's patches that are foretold


class ForecastBatches:
    """Standardised windows for a stack of forecasters, addressed by step.

    Parameters
    ----------
    samplers : sequence of objects with ``batch(step) -> (B, T * patch)``
        One a replica, such as `allometry.data.WindowSampler`.
    model : PatchForecaster
        Of which patch and epsilon are read.
    seeds : sequence of int
        One a replica, for how much of each window is foretold.
    """

    def __init__(self, samplers: Sequence[Any], model: PatchForecaster, seeds: Sequence[int]) -> None:
        if len(samplers) != len(seeds):
            raise ValueError(f"{len(samplers)} samplers for {len(seeds)} seeds")
        self.samplers, self.model, self.seeds = list(samplers), model, list(seeds)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs (R, B, T, P + 1), whose last column is one where a patch is hidden, and targets
        (R, B, half, 2 P): values of the last patches, then one where they count. The same for both kinds."""
        windows = torch.stack([sampler.batch(step) for sampler in self.samplers])
        values = windows.unflatten(-1, (-1, self.model.patch))  # (R, B, T, P)
        count, length = values.shape[1:3]
        low, high = (max(1, round(share * length)) for share in SHARE)
        shares = torch.stack([torch.rand(count, generator=_generator(s, step)) for s in self.seeds])
        ahead = low + (shares * (high - low + 1)).long()  # (R, B), each number of patches alike
        hidden = torch.arange(length) >= (length - ahead)[..., None]  # (R, B, T)
        observed = ~values.isnan()
        known = observed & ~hidden[..., None]
        shift, scale = standardise(values.flatten(0, 1), known.flatten(0, 1), epsilon=self.model.epsilon)
        scaled = (values - shift.unflatten(0, (-1, count))) / scale.unflatten(0, (-1, count))
        scaled = torch.where(observed, scaled, 0.0)
        counts = (observed & hidden[..., None]).to(scaled.dtype)
        inputs = torch.cat([scaled, hidden[..., None].to(scaled.dtype)], -1)
        return inputs, torch.cat([scaled, counts], -1)[:, :, length - high :]


class _Trained(nn.Module):
    """A forecaster as a map of one tensor, of standardised values and what is hidden, to what it says of the
    last patches."""

    def __init__(self, model: PatchForecaster, last: int) -> None:
        super().__init__()
        self.model, self.last = model, last

    def forward(self, inputs: Tensor) -> Tensor:
        scaled, hidden = inputs[..., :-1], inputs[..., -1] > 0.5
        if self.model.kind == "encoder":
            return self.model.network(scaled, hidden, last=self.last)
        return self.model.network(scaled, hidden, last=self.last + 1)[:, :-1]  # position t tells of t + 1


def _loss(head: Head) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(raw: Tensor, targets: Tensor) -> Tensor:
        value, counts = targets.chunk(2, -1)
        return -(head.log_prob(raw, value) * counts).sum() / counts.sum().clamp_min(1.0)

    return loss


def warmed_cosine(step: int, total: int) -> float:
    """Multiplier of the rate: linear over the first tenth, then half a cosine to zero.

    >>> [round(warmed_cosine(step, 100), 3) for step in (0, 9, 10, 55, 100)]
    [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    warm = max(1, total // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def train_forecasters(
    make_model: Callable[[torch.Generator], PatchForecaster],
    samplers: Sequence[Any],
    *,
    seeds: Sequence[int],
    generators: Sequence[torch.Generator],
    steps: int,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.1,
    log_every: int = 100,
) -> tuple[list[PatchForecaster], list[TrainLog]]:
    """Train forecasters of one shape as one program.

    Parameters
    ----------
    make_model : generator -> PatchForecaster
    samplers : sequence of samplers
        One a replica, as for `ForecastBatches`.
    seeds : sequence of int
        For the share of each window that is foretold.
    generators : sequence of torch.Generator
        For the initial values.
    steps : int
    learning_rate, weight_decay : float
        Of AdamW; decay acts on matrices alone.
    log_every : int

    Returns
    -------
    models, logs
        One each a replica.

    Examples
    --------
    >>> from allometry.data import SyntheticSeries, WindowSampler
    >>> corpus = SyntheticSeries(("seasonal",), length=64).take(640)
    >>> models, logs = train_forecasters(
    ...     lambda generator: PatchForecaster(4, 8, 1, generator=generator),
    ...     [WindowSampler(corpus, 32, 8, seed=0)], seeds=[0], generators=[torch.Generator()], steps=2)
    >>> logs[0].status
    'done'
    """
    models = [make_model(generator) for generator in generators]
    batches = ForecastBatches(samplers, models[0], seeds)
    last = batches.batch(0)[1].shape[2]
    stack = Stack([_Trained(model, last) for model in models])
    loss = _loss(models[0].head)

    def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
        matrices = [weight for weight in model.parameters() if weight.ndim > 1]
        vectors = [weight for weight in model.parameters() if weight.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "weight_decay": weight_decay},
            {"params": vectors},
        ]
        return torch.optim.AdamW(groups, learning_rate, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0)

    log = fit(
        stack, batches, optimizer=stack.optimizer(make_optimizer), horizons=steps, schedule=warmed_cosine,
        objective=lambda model, inputs, targets: model.losses(inputs, targets, loss),  # type: ignore[operator]
        divergence=DivergenceRule(factor=10.0), log_every=log_every,
    )  # fmt: skip
    trained = [stack.unstack(replica).model for replica in range(len(models))]
    return trained, replica_logs(log, len(models))  # type: ignore[return-value]


def crps(samples: Tensor, value: Tensor) -> Tensor:
    """Continuous ranked probability score of samples (S, ...) for values (...): E|X - y| - E|X - X'| / 2.

    The second mean is over pairs of different samples, without bias (Gneiting and Raftery, 2007, equation 20)
    and is taken from the order statistics, without a table of pairs.

    >>> crps(torch.tensor([0.0, 1.0]), torch.tensor(0.5)).item()
    0.0
    """
    count = len(samples)
    if count < 2:
        raise ValueError(f"the score needs at least two samples, got {count}")
    ordered = samples.sort(0).values
    weight = 2.0 * torch.arange(count, dtype=samples.dtype, device=samples.device) - (count - 1)
    spread = torch.tensordot(weight, ordered, ([0], [0])) / (count * (count - 1))
    return (samples - value).abs().mean(0) - spread


@torch.no_grad()
def score_forecaster(
    model: PatchForecaster,
    windows: Tensor,
    context: int,
    *,
    protocol: str | None = None,
    block: int = 1,
    samples: int = 100,
    seed: int = 0,
    batch: int = 512,
) -> pandas.DataFrame:
    """Scores of each window's horizon.

    Parameters
    ----------
    model : PatchForecaster
    windows : Tensor, shape (W, T * patch)
        NaN where not observed, as from `allometry.data.SeriesSet.windows`.
    context : int
        Patches.
    protocol, block
        See `allometry.models.forecast_horizon`.
    samples, seed : int
        Of a rollout's medians, and of the samples that are scored.
    batch : int
        Windows a pass.

    Returns
    -------
    DataFrame
        A row a window: ``nll``, nats a value in units of the data; ``nll_norm``, in units of the context's
        standard deviation; ``crps``, in the same; ``mase``, the absolute error of the median over the mean
        absolute step in the context, which is the error of the naive forecast one step ahead.
    """
    import pandas

    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[Tensor]] = {"nll": [], "nll_norm": [], "crps": [], "mase": []}
    for part in windows.split(batch):
        values = part.unflatten(-1, (-1, model.patch))
        told = forecast_horizon(
            model, values, context, protocol=protocol, block=block, samples=samples, generator=generator
        )
        truth = values[:, context:]
        known = ~truth.isnan()
        truth = torch.where(known, truth, told.shift)
        drawn = told.sample(samples, generator)

        def mean(each: Tensor, known: Tensor = known) -> Tensor:
            return torch.where(known, each, 0.0).sum((1, 2)) / known.sum((1, 2))

        nats = mean(-told.log_prob(truth))
        steps = values[:, :context].flatten(1).diff(dim=1).abs()
        scale = told.scale[:, 0, 0]
        found["nll_norm"].append(nats)
        found["nll"].append(nats + scale.log())
        found["crps"].append(mean(crps(drawn, truth)) / scale)
        found["mase"].append(mean((drawn.median(0).values - truth).abs()) / steps.nanmean(1))
    return pandas.DataFrame({name: torch.cat(parts).double().numpy() for name, parts in found.items()})


def _generator(seed: int, step: int) -> torch.Generator:
    digest = hashlib.sha256(f"foretold share {seed} {step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
