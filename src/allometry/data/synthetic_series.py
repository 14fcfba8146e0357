"""Families of synthetic series, each of its own kind of law, to train on some and be tested on others.

For the corpora of Yao and others, 2024, arXiv:2410.12360, whose own are too large to be at hand.

* Stationary families (autoregression, Gaussian processes) are drawn through their spectrum: white noise times
  the root of the spectral density, one inverse Fourier transform for all series at once and no recursion.
  Periods are four times the series, so that the ends do not meet.
* A corpus is made in blocks of series that depend on seed, stream, family and number alone: a smaller corpus
  is the beginning of a larger one, and no stream shares a series with another.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from allometry.data.timeseries import SeriesSet

__all__ = ["SERIES_KINDS", "SyntheticSeries"]

_BLOCK = 64  # series made at a time
_LONGER = 4  # how often the period of a spectral draw holds the series


def _uniform(shape: Sequence[int], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=generator)


def _log_uniform(shape: Sequence[int], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.exp(_uniform(shape, math.log(low), math.log(high), generator))


def _noise(like: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """White noise whose deviation is some share of the series' own, one share a series."""
    share = _uniform((len(like), 1), low, high, generator)
    white = torch.randn(like.shape, generator=generator)
    return like / like.std(1, keepdim=True).clamp_min(1e-6) + share * white


def _stationary(density: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """Gaussian series (n, length) of spectral densities (n, frequencies), of variance about one."""
    period = 2 * (density.shape[1] - 1)
    white = torch.fft.rfft(torch.randn(len(density), period, generator=generator))
    drawn = torch.fft.irfft(white * density.clamp_min(0).sqrt(), n=period)[:, :length]
    return drawn / drawn.std(1, keepdim=True).clamp_min(1e-6)


def _frequencies(length: int) -> Tensor:
    return torch.linspace(0.0, math.pi, _LONGER * length // 2 + 1)


def autoregressive(n: int, length: int, generator: torch.Generator) -> Tensor:
    """Second-order autoregression with a pair of complex roots, and a season in half of the series."""
    radius = _uniform((n, 1), 0.3, 0.97, generator)
    angle = _uniform((n, 1), 0.0, 2.5, generator)
    omega = _frequencies(length)
    one, two = torch.exp(-1j * omega), torch.exp(-2j * omega)
    density = (1 - 2 * radius * torch.cos(angle) * one + radius**2 * two).abs() ** -2
    drawn = _stationary(density, length, generator)
    season = seasonal(n, length, generator) * _uniform((n, 1), 0.5, 3.0, generator)
    return drawn + season * (torch.rand(n, 1, generator=generator) < 0.5)


def seasonal(n: int, length: int, generator: torch.Generator) -> Tensor:
    """A pattern of four harmonics that repeats every 4 to 48 points, with white noise."""
    period = _log_uniform((n, 1, 1), 4.0, 48.0, generator)
    order = torch.arange(1, 5)[:, None]
    size = torch.randn(n, 4, 1, generator=generator) / order
    phase = _uniform((n, 4, 1), 0.0, 2 * math.pi, generator)
    waves = size * torch.sin(2 * math.pi * order * torch.arange(length) / period + phase)
    return _noise(waves.sum(1), 0.05, 0.5, generator)


def gaussian_process(n: int, length: int, generator: torch.Generator) -> Tensor:
    """Smooth (squared exponential), rough (exponential) or nearly periodic processes, with white noise."""
    lag = torch.arange(_LONGER * length // 2 + 1).float()
    scale = _log_uniform((n, 1), 3.0, 60.0, generator)
    period = _log_uniform((n, 1), 6.0, 60.0, generator)
    smooth = torch.exp(-0.5 * (lag / scale) ** 2)
    rough = torch.exp(-lag / scale)
    repeated = torch.exp(-2 * torch.sin(math.pi * lag / period) ** 2) * torch.exp(-0.5 * (lag / 200.0) ** 2)
    kind = torch.randint(3, (n, 1), generator=generator)
    covariance = torch.where(kind == 0, smooth, torch.where(kind == 1, rough, repeated))
    around = torch.cat([covariance, covariance[:, 1:-1].flip(1)], 1)  # the covariance on a circle
    density = torch.fft.rfft(around).real
    return _noise(_stationary(density, length, generator), 0.02, 0.4, generator)


def trend(n: int, length: int, generator: torch.Generator) -> Tensor:
    """Straight pieces whose slope changes every 25 to 200 points, with white noise."""
    every = _log_uniform((n, 1), 25.0, 200.0, generator)
    turns = torch.rand(n, length, generator=generator) < 1.0 / every
    piece = turns.long().cumsum(1)
    slopes = torch.randn(n, length + 1, generator=generator)
    return _noise(slopes.gather(1, piece).cumsum(1), 0.02, 0.4, generator)


def regime(n: int, length: int, generator: torch.Generator) -> Tensor:
    """Two levels with noise of their own size, changed every 15 to 100 points."""
    every = _log_uniform((n, 1), 15.0, 100.0, generator)
    state = (torch.rand(n, length, generator=generator) < 1.0 / every).long().cumsum(1) % 2
    level = torch.randn(n, 2, generator=generator)
    size = _log_uniform((n, 2), 0.1, 1.0, generator)
    return level.gather(1, state) + size.gather(1, state) * torch.randn(n, length, generator=generator)


def chaos(n: int, length: int, generator: torch.Generator) -> Tensor:
    """The logistic map or Hénon's, observed through a short moving average: no randomness but the start."""
    rate = _uniform((n,), 3.6, 4.0, generator)
    bend = _uniform((n,), 1.2, 1.4, generator)
    x = _uniform((n,), 0.2, 0.8, generator)
    u, v = _uniform((n,), -0.1, 0.1, generator), torch.zeros(n)
    kept = []
    for _ in range(length + 50):  # a map has no closed form
        x = rate * x * (1 - x)
        u, v = 1 - bend * u * u + v, 0.3 * u
        kept.append(torch.stack([x, u]))
    both = torch.stack(kept, -1)  # (2, n, length + 50)
    kind = torch.randint(2, (n, 1), generator=generator)
    drawn = torch.where(kind == 0, both[0], both[1])
    lags = torch.randint(1, 4, (n, 1), generator=generator)
    shifted = torch.stack([drawn.roll(k, 1) for k in range(3)])[..., 50:]  # what wraps is cut away
    keep = (torch.arange(3)[:, None, None] < lags).float()
    return (shifted * keep).sum(0) / lags


def jumps(n: int, length: int, generator: torch.Generator) -> Tensor:
    """Heavy-tailed shocks (Pareto, index 1.5 to 3) that fade, over small noise."""
    every = _log_uniform((n, 1), 8.0, 60.0, generator)
    index = _uniform((n, 1), 1.5, 3.0, generator)
    hit = torch.rand(n, length, generator=generator) < 1.0 / every
    size = torch.rand(n, length, generator=generator).clamp_min(1e-4) ** (-1.0 / index)
    sign = torch.where(torch.rand(n, length, generator=generator) < 0.7, 1.0, -1.0)
    fade = _uniform((n, 1), 0.6, 0.97, generator) ** torch.arange(length)
    shocks = torch.where(hit, size * sign, 0.0)
    together = torch.fft.rfft(shocks, n=2 * length) * torch.fft.rfft(fade, n=2 * length)
    return _noise(torch.fft.irfft(together, n=2 * length)[:, :length], 0.05, 0.3, generator)


SERIES_KINDS: dict[str, Callable[[int, int, torch.Generator], Tensor]] = {
    "autoregressive": autoregressive, "seasonal": seasonal, "gaussian process": gaussian_process,
    "trend": trend, "regime": regime, "chaos": chaos, "jumps": jumps,
}  # fmt: skip


@dataclass(frozen=True)
class SyntheticSeries:
    """A source of series without end, of some families in equal numbers.

    Parameters
    ----------
    kinds : sequence of str
        Among autoregressive, seasonal, gaussian process, trend, regime, chaos, jumps.
    length : int
        Points of each series.
    seed : int

    Raises
    ------
    ValueError
        An unknown family, or series shorter than sixteen points.

    Examples
    --------
    >>> source = SyntheticSeries(("trend", "jumps"), length=64)
    >>> few, more = source.take(128), source.take(640)
    >>> len(more.names), bool(torch.equal(more.values[:128], few.values))
    (10, True)
    """

    kinds: Sequence[str]
    length: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in SERIES_KINDS]
        if unknown or not self.kinds:
            raise ValueError(f"no family {(unknown or ['at all'])[0]!r}; there are {', '.join(SERIES_KINDS)}")
        if self.length < 16:
            raise ValueError(f"series of {self.length} points are too short; give at least 16")

    def take(self, points: int, stream: str = "train") -> SeriesSet:
        """The first series of a stream, so many that they hold ``points`` or a little more.

        Parameters
        ----------
        points : int
        stream : str
            Such as ``"train"`` or ``"held out"``: series of one stream are in no other.
        """
        count = math.ceil(points / self.length)
        if count < 1:
            raise ValueError(f"points must be positive, got {points}")
        each = math.ceil(count / len(self.kinds))
        made = [self._family(kind, each, stream) for kind in self.kinds]
        values = torch.stack(made, 1).flatten(0, 1)[:count]  # families take turns
        scales = values.std(1)
        values = values / scales[:, None]
        names = tuple(f"{self.kinds[i % len(self.kinds)]} {i // len(self.kinds)}" for i in range(count))
        sources = tuple(self.kinds[i % len(self.kinds)] for i in range(count))
        starts = torch.arange(count + 1) * self.length
        return SeriesSet(values.flatten().contiguous(), starts, scales, names, sources, {})

    def _family(self, kind: str, count: int, stream: str) -> Tensor:
        blocks = []
        for block in range(math.ceil(count / _BLOCK)):
            told = f"{self.seed}/{stream}/{kind}/{self.length}/{block}".encode()
            number = int.from_bytes(hashlib.sha256(told).digest()[:8], "big") >> 1
            generator = torch.Generator().manual_seed(number)
            blocks.append(SERIES_KINDS[kind](_BLOCK, self.length, generator))
        return torch.cat(blocks)[:count]
