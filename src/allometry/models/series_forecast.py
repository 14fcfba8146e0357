"""Forecasts by a `PatchForecaster`, under three protocols, of windows or of one's own series.

Yao and others, 2024, arXiv:2410.12360, score an encoder in one shot and a decoder by feeding back the median
of its own samples: two protocols, so a gap between the two is not one of architecture alone. Here either kind
can be asked under every protocol that it has:

* ``"one_shot"``: the whole horizon from the context (encoder only).
* ``"rollout"``: patch by patch, the median of samples fed back as if it had been observed. The distributions
  are those of the last pass, whose inputs are medians: a horizon's later patches are told as if what lies
  before them were certain.
* ``"teacher_forced"``: patch by patch, the truth fed back: every patch is the next one. What is known is the
  same for both kinds.

Under each the sequence is standardised by its context alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution

from allometry.models.timeseries import PatchForecaster, standardise

__all__ = ["PROTOCOLS", "HorizonForecast", "forecast_horizon", "forecast_series"]

PROTOCOLS = ("one_shot", "rollout", "teacher_forced")


@dataclass(frozen=True)
class HorizonForecast:
    """What a model says of the H patches behind a context.

    Attributes
    ----------
    raw : Tensor, shape (B, H, P, K)
        The head's numbers.
    shift, scale : Tensor, shape (B, 1, 1)
        Of the context.
    """

    model: PatchForecaster
    raw: Tensor
    shift: Tensor
    scale: Tensor

    @property
    def distribution(self) -> Distribution:
        """In units of the data; batch shape (B, H, P)."""
        return self.model.head.distribution(self.raw, self.shift, self.scale)

    def log_prob(self, target: Tensor) -> Tensor:
        """Log density of values (B, H, P) in units of the context's standard deviation; that in units of the
        data is less by the log of ``scale``."""
        return self.model.head.log_prob(self.raw, (target - self.shift) / self.scale)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Samples (count, B, H, P) in units of the data."""
        return self.shift + self.scale * self.model.head.sample(self.raw, count, generator)


@torch.no_grad()
def forecast_horizon(
    model: PatchForecaster,
    windows: Tensor,
    context: int,
    *,
    protocol: str | None = None,
    block: int = 1,
    samples: int = 100,
    generator: torch.Generator | None = None,
) -> HorizonForecast:
    """Foretell the patches of windows behind their context.

    Parameters
    ----------
    model : PatchForecaster
    windows : Tensor, shape (B, T, P)
        NaN where not observed. Only ``"teacher_forced"`` reads what lies behind the context.
    context : int
        Patches, C; H = T - C are foretold.
    protocol : str, optional
        As the module says; by default the paper's, one shot for an encoder and rollout for a decoder.
    block : int
        Patches that an encoder is asked for at a time where it goes patch by patch; the first is read. One
        that was trained on windows of which at least two are hidden has never been asked for one alone.
    samples : int
        Whose median a rollout feeds back.
    generator : torch.Generator, optional
        For a rollout; by default one of seed 0.

    Returns
    -------
    HorizonForecast

    Raises
    ------
    ValueError
        An unknown protocol, one that a decoder does not have, or no context or horizon.

    Examples
    --------
    >>> model = PatchForecaster(patch=4, d_model=8, layers=1, kind="decoder")
    >>> forecast_horizon(model, torch.randn(3, 6, 4), context=4).distribution.batch_shape
    torch.Size([3, 2, 4])
    """
    encoder = model.kind == "encoder"
    protocol = protocol or ("one_shot" if encoder else "rollout")
    if protocol not in PROTOCOLS:
        raise ValueError(f"no protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")
    if protocol == "one_shot" and not encoder:
        raise ValueError("a decoder foretells one patch at a time: choose rollout or teacher_forced")
    if windows.ndim != 3 or windows.shape[-1] != model.patch:
        raise ValueError(f"windows must be (B, T, {model.patch}); the shape is {tuple(windows.shape)}")
    batch, length, _ = windows.shape
    if not 1 <= context < length:
        raise ValueError(f"context must be between 1 and {length - 1} of {length} patches, got {context}")
    if block < 1:
        raise ValueError(f"block must be at least one patch, got {block}")
    future = torch.arange(length, device=windows.device) >= context  # (T,)
    observed = ~windows.isnan()
    shift, scale = standardise(windows, observed & ~future[:, None], epsilon=model.epsilon)
    scaled = torch.where(observed, (windows - shift) / scale, 0.0)
    if protocol == "one_shot":
        raw = model.network(scaled, future.expand(batch, -1), last=length - context)
    elif protocol == "rollout":
        generator = generator or torch.Generator(windows.device).manual_seed(0)
        raw = _rolled_out(model, scaled, context, block, samples, generator)
    elif encoder:
        raw = _one_at_a_time(model, scaled, context, block)
    else:
        raw = model.network(scaled, future.expand(batch, -1), last=length - context + 1)[:, :-1]
    return HorizonForecast(model, raw, shift, scale)


def _rolled_out(
    model: PatchForecaster,
    scaled: Tensor,
    context: int,
    block: int,
    samples: int,
    generator: torch.Generator,
) -> Tensor:
    """Feed medians back; the numbers of each patch given those before it, (B, H, P, K)."""
    fed = F.pad(scaled, (0, 0, 0, block))  # room for what an encoder hides
    found = []
    for at in range(context, scaled.shape[1]):
        if model.kind == "encoder":
            hidden = torch.arange(at + block, device=scaled.device) >= at
            raw = model.network(fed[:, : at + block], hidden.expand(len(fed), -1), last=block)[:, :1]
        else:
            raw = model.network(fed[:, :at], fed.new_zeros((len(fed), at), dtype=torch.bool), last=1)
        # A causal network says of patch t the same in this pass as in the last one, so none is done again.
        found.append(raw)
        fed[:, at] = model.head.sample(raw[:, 0], samples, generator).median(0).values
    return torch.cat(found, 1)


def _one_at_a_time(model: PatchForecaster, scaled: Tensor, context: int, block: int) -> Tensor:
    """An encoder's next patch after each true past: one pass, a row for each horizon."""
    batch, length = scaled.shape[:2]
    ends = torch.arange(context, length, device=scaled.device)  # the patch that is foretold
    at = torch.arange(length + block - 1, device=scaled.device)
    rows = F.pad(scaled, (0, 0, 0, block - 1)).repeat(len(ends), 1, 1)
    hidden = (at >= ends[:, None]).repeat_interleave(batch, 0)
    later = (
        (at >= ends[:, None] + block).long().repeat_interleave(batch, 0)
    )  # another sample, which is not seen
    raw = model.network(rows, hidden, later)
    told = raw.unflatten(0, (len(ends), batch))[torch.arange(len(ends)), :, ends]
    return told.transpose(0, 1)


def forecast_series(
    model: PatchForecaster,
    series: Any,
    horizon: int,
    *,
    context: int | None = None,
    samples: int = 100,
    protocol: str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Samples of the next ``horizon`` values of one series.

    Parameters
    ----------
    model : PatchForecaster
    series : sequence (n,)
        NaN where not observed.
    horizon : int
        In points.
    context : int, optional
        Points at the end of the series that the model sees; by default all that fit.
    samples : int
    protocol : str, optional
        ``"one_shot"`` or ``"rollout"``; by default the model's own.
    generator : torch.Generator, optional
        By default one of seed 0.

    Returns
    -------
    Tensor, shape (samples, horizon)
        Each value's own distribution is sampled; values of one row do not move together.

    Raises
    ------
    ValueError
        Fewer than two patches of context, nothing observed in it, or a sequence that is too long.

    Examples
    --------
    >>> model = PatchForecaster(patch=4, d_model=8, layers=1)
    >>> forecast_series(model, [0.0, 1.0] * 20, horizon=6).shape
    torch.Size([100, 6])
    """
    if protocol == "teacher_forced":
        raise ValueError("teacher_forced needs the future: choose one_shot or rollout")
    weights = model.norm.weight
    values = torch.as_tensor(series, dtype=weights.dtype, device=weights.device)
    if values.ndim != 1 or horizon < 1:
        raise ValueError(
            f"give one series (n,) and a horizon of at least one; got shape {tuple(values.shape)}, {horizon}"
        )
    patch = model.patch
    ahead = -(-horizon // patch)
    most = (model.max_patches - ahead) * patch
    seen = min(len(values), most) if context is None else context
    if not 2 * patch <= seen <= min(len(values), most):
        raise ValueError(
            f"a context of {seen} points will not do: the model takes two patches of {patch} at least, and "
            f"the series and max_patches allow {min(len(values), most)}"
        )
    values = values[len(values) - seen :]
    if int((~values.isnan()).sum()) < 2:
        raise ValueError("fewer than two values of the context are observed")
    gap = (-seen) % patch  # at the beginning, where it is farthest from what is foretold
    missing = values.new_full((gap,), torch.nan), values.new_full((ahead * patch,), torch.nan)
    window = torch.cat([missing[0], values, missing[1]]).reshape(1, -1, patch)
    generator = generator or torch.Generator(weights.device).manual_seed(0)
    told = forecast_horizon(
        model, window, window.shape[1] - ahead, protocol=protocol, samples=samples, generator=generator
    )
    return told.sample(samples, generator)[:, 0].flatten(1)[:, :horizon]
