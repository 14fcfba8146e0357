"""Corpora of time series, and windows of them, drawn by index from one tensor.

For Yao and others, 2024, arXiv:2410.12360, who ask whether forecasters of series follow scaling laws inside
and outside of what they were trained on.

* A corpus is one contiguous float32 tensor with the places where series begin; NaN says not observed. A batch
  of windows is one gather: no loader, no worker, no copy of a series.
* Every series is divided by its own standard deviation as it enters, so that a small number added to a
  variance means the same in each; means stay, and forecasters standardise windows by themselves.
* Sources are drawn with equal probability unless told otherwise, within one every window alike. Mixing by
  length would let the source with the longest series decide everything: `WindowSampler.shares` tells both.
* Training and evaluation windows never share a series: they come from streams of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["SeriesSet", "WindowSampler", "real_series"]

_TOGETHER = 64  # steps whose windows are drawn at once


@dataclass(frozen=True)
class SeriesSet:
    """Series in one tensor; made by `SeriesSet.of`.

    Attributes
    ----------
    values : Tensor, shape (points,), float32
        One series after another, each of standard deviation one; NaN where not observed.
    starts : Tensor, shape (series + 1,), int64
        Where each begins, and the end.
    scales : Tensor, shape (series,)
        What each was divided by.
    names, sources : tuple of str
        Of each series, and the source that it belongs to.
    skipped : mapping of name to reason
        Series that were given and left out.
    """

    values: Tensor
    starts: Tensor
    scales: Tensor
    names: tuple[str, ...]
    sources: tuple[str, ...]
    skipped: Mapping[str, str]

    @classmethod
    def of(
        cls, series: Mapping[str, Any], sources: Mapping[str, str] | None = None, *, least: int = 16
    ) -> SeriesSet:
        """Series by name, each a sequence of numbers with NaN for gaps.

        Parameters
        ----------
        series : mapping of name to sequence (n,)
        sources : mapping of name to source, optional
            By default each series is a source of its own.
        least : int
            Shorter series are left out, and so are constant ones: their deviation is nothing to divide by.

        Raises
        ------
        ValueError
            A series is not one row of numbers, holds infinities, or none is left.

        Examples
        --------
        >>> SeriesSet.of({"a": range(20), "b": [1.0] * 20}).skipped
        {'b': 'constant'}
        """
        kept: list[tuple[str, Tensor, float]] = []
        skipped: dict[str, str] = {}
        for name, given in series.items():
            values = torch.tensor(list(given) if isinstance(given, range) else given, dtype=torch.float64)
            if values.ndim != 1:
                raise ValueError(f"series {name!r} must be one row of numbers; its shape is {values.shape}")
            if values.isinf().any():
                raise ValueError(f"series {name!r} holds an infinite value; put NaN where nothing is known")
            known = values[~values.isnan()]
            scale = float(known.std()) if len(known) > 1 else 0.0
            if len(values) < least:
                skipped[name] = f"{len(values)} of the {least} points that are needed"
            elif not scale > 1e-12 * float(known.abs().max()):
                skipped[name] = "constant"
            else:
                kept.append((name, (values / scale).float(), scale))
        if not kept:
            raise ValueError(f"no series is left of {len(skipped)}: {dict(list(skipped.items())[:3])}")
        lengths = torch.tensor([0, *(len(values) for _, values, _ in kept)])
        names = tuple(name for name, _, _ in kept)
        return cls(
            torch.cat([values for _, values, _ in kept]), lengths.cumsum(0),
            torch.tensor([scale for *_, scale in kept]), names,
            tuple((sources or {}).get(name, name) for name in names), skipped,
        )  # fmt: skip

    @property
    def lengths(self) -> Tensor:
        """Points of each series, shape (series,)."""
        return self.starts.diff()

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that name these very values in this order."""
        content = hashlib.sha256(self.values.numpy().tobytes())
        content.update(self.starts.numpy().tobytes())
        return content.hexdigest()[:12]

    def windows(self, length: int, stride: int, *, context: int | None = None) -> tuple[Tensor, Tensor, int]:
        """All windows at fixed places, for evaluation.

        Parameters
        ----------
        length, stride : int
            In points; a series' last window ends with it.
        context : int, optional
            Windows whose first ``context`` points are constant, or hold fewer than two values, or of which
            nothing behind them is observed, are left out: the likelihood of what follows would be a matter
            of the number that is added to a variance of zero.

        Returns
        -------
        values : Tensor, shape (windows, length)
        which : Tensor, shape (windows,)
            The series of each.
        dropped : int
            How many were left out.
        """
        if length < 1 or stride < 1:
            raise ValueError(f"length and stride must be at least 1, got {length} and {stride}")
        spare = self.lengths - length
        counts = torch.where(spare >= 0, spare.div(stride, rounding_mode="floor") + 1, 0)
        which = torch.repeat_interleave(torch.arange(len(counts)), counts)
        if not len(which):
            raise ValueError(f"no series has the {length} points of one window")
        rank = torch.arange(len(which)) - (counts.cumsum(0) - counts)[which]
        first = self.starts[which] + spare[which] % stride + rank * stride
        values = self.values[first[:, None] + torch.arange(length)]
        if context is None:
            return values, which, 0
        known = ~values.isnan()
        before = values[:, :context]
        low = torch.where(known[:, :context], before, torch.inf).amin(1)
        high = torch.where(known[:, :context], before, -torch.inf).amax(1)
        fine = (high > low) & known[:, context:].any(1)
        return values[fine], which[fine], int((~fine).sum())


class WindowSampler:
    """Random windows of a corpus without end, addressed by step.

    Parameters
    ----------
    series : SeriesSet
        Series shorter than a window are never drawn; see ``skipped``.
    length : int
        Points of a window.
    batch : int
        Windows a batch, B.
    seed : int
    weights : mapping of source to weight, optional
        How often each source is drawn; equally by default, whatever its size.

    Attributes
    ----------
    skipped : int
        Series that are shorter than a window.

    Raises
    ------
    ValueError
        No series has a window, or the weights name no source that has one.

    Examples
    --------
    >>> sampler = WindowSampler(SeriesSet.of({"a": range(100)}), length=16, batch=4, seed=0)
    >>> sampler.batch(7).shape, bool(torch.equal(sampler.batch(7), sampler.batch(7)))
    (torch.Size([4, 16]), True)
    """

    def __init__(
        self,
        series: SeriesSet,
        length: int,
        batch: int,
        seed: int,
        *,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        if length < 1 or batch < 1:
            raise ValueError(f"length and batch must be at least 1, got {length} and {batch}")
        self.series, self.length, self.batch_size, self.seed = series, int(length), int(batch), int(seed)
        counts = (series.lengths - length + 1).clamp_min(0)
        self.skipped = int((counts == 0).sum())
        self.source_names = tuple(dict.fromkeys(series.sources))
        number = {name: index for index, name in enumerate(self.source_names)}
        source = torch.tensor([number[name] for name in series.sources])
        # Series in the order of their sources, so that a source's windows are one range of numbers.
        order = torch.argsort(source, stable=True)
        self._first = series.starts[:-1][order]
        self._ends = counts[order].cumsum(0)
        windows = torch.zeros(len(number), dtype=torch.int64).index_add_(0, source, counts)
        self._source_end, self._source_count = windows.cumsum(0), windows
        points = torch.zeros(len(number), dtype=torch.int64).index_add_(0, source, series.lengths)
        self._points = points
        wanted = torch.tensor([1.0 if weights is None else float(weights.get(n, 0.0)) for n in number])
        if (wanted < 0).any() or not wanted.isfinite().all():
            raise ValueError(f"weights must be non-negative and finite, got {weights}")
        wanted = torch.where(windows > 0, wanted, 0.0)
        if not wanted.sum() > 0:
            raise ValueError(
                f"no series has the {length} points of a window" if weights is None
                else f"weights {dict(weights)} leave no source; sources are {', '.join(number)}"
            )  # fmt: skip
        self._chance = wanted / wanted.sum()
        self._windows = series.values.unfold(0, self.length, 1)  # a view; those across two series never drawn
        self._drawn: tuple[int, Tensor] | None = None

    def batch(self, step: int) -> Tensor:
        """Windows (B, length) of one step, NaN where not observed: a function of seed and step alone."""
        if step < 0:
            raise ValueError(f"step is {step}; steps count from 0")
        block, place = divmod(step, _TOGETHER)
        if self._drawn is None or self._drawn[0] != block:
            self._drawn = block, self._places(block)
        return self._windows.index_select(0, self._drawn[1][place])

    def _places(self, block: int) -> Tensor:
        """Where the windows of many steps begin, (steps, B): a draw is a dozen calls for however many."""
        digest = hashlib.sha256(f"series windows {self.seed} {block}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        many = _TOGETHER * self.batch_size
        source = torch.multinomial(self._chance, many, replacement=True, generator=generator)
        share = torch.rand(many, generator=generator, dtype=torch.float64)
        count = self._source_count[source]
        window = self._source_end[source] - count + (share * count).long()
        which = torch.searchsorted(self._ends, window, right=True)
        # ``_ends`` counts the windows up to and with a series: what is left from the end is the place in it.
        before = torch.where(which > 0, self._ends[which - 1], 0)
        return (self._first[which] + window - before).view(_TOGETHER, self.batch_size)

    @property
    def shares(self) -> dict[str, tuple[float, float]]:
        """For each source its share of the corpus' points and its share of what is drawn.

        >>> corpus = SeriesSet.of({"long": range(90), "short": range(30)})
        >>> WindowSampler(corpus, length=16, batch=4, seed=0).shares
        {'long': (0.75, 0.5), 'short': (0.25, 0.5)}
        """
        points = self._points / self._points.sum()
        return {name: (float(points[i]), float(self._chance[i])) for i, name in enumerate(self.source_names)}


# Which columns of which of statsmodels' data sets are series in time, with enough points to foretell some.
_REAL: dict[str, tuple[str, ...]] = {
    "sunspots": ("SUNACTIVITY",),
    "nile": ("volume",),
    "co2": ("co2",),
    "elnino": (),  # years by months
    "interest_inflation": ("Dp", "R"),
    "macrodata": (
        "realgdp", "realcons", "realinv", "realgovt", "realdpi", "cpi", "m1", "tbilrate", "unemp", "pop",
        "infl", "realint",
    ),
}  # fmt: skip


def real_series(names: Sequence[str] | None = None, *, least: int = 16) -> SeriesSet:
    """Measured series that statsmodels brings: sunspots, the Nile, carbon dioxide, El Niño, economies.

    Parameters
    ----------
    names : sequence of str, optional
        Only these data sets; by default all six.
    least : int
        Series with fewer points are left out.

    Returns
    -------
    SeriesSet
        Up to eighteen series; a data set is a source.

    Raises
    ------
    ValueError
        An unknown data set.
    MissingExtra
        statsmodels is not installed.

    Examples
    --------
    >>> real_series(["rainfall"])
    Traceback (most recent call last):
    ValueError: no data set 'rainfall'; there are sunspots, nile, co2, elnino, interest_inflation, macrodata
    """
    from allometry.extras import need

    wanted = list(_REAL) if names is None else list(names)
    for name in wanted:
        if name not in _REAL:
            raise ValueError(f"no data set {name!r}; there are {', '.join(_REAL)}")
    library = need("statsmodels.datasets", extra="data", purpose="allometry.data.real_series")
    series: dict[str, np.ndarray] = {}
    sources: dict[str, str] = {}
    for name in wanted:
        table = getattr(library, name).load_pandas().data
        if name == "elnino":
            series[name] = table.drop(columns="YEAR").to_numpy(float).ravel()
            sources[name] = name
        for column in _REAL[name]:
            full = name if len(_REAL[name]) == 1 else f"{name}/{column}"
            series[full], sources[full] = table[column].to_numpy(float), name
    return SeriesSet.of(series, sources, least=least)
