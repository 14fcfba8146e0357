"""Weights that only have a direction: which they are, and how far each step turns them.

A loss with ``L(c w) = L(w)`` has ``w' grad L = 0`` and a gradient that falls as ``1 / c``, so what moves the
model is the angle of a step and not its length (Hoffer and others, 2018, arXiv:1803.01814).  Momentum
lengthens such a weight, and its angle shrinks (Heo and others, 2020, arXiv:2006.08217, section 2).

- `scale_invariance` tells such weights in two ways: by the cosine test that AdamP makes on one gradient,
  which a weight may pass by chance, and by scaling the weight and looking at the loss, which it may not.
- `EffectiveStep` watches an optimizer: lengths, steps, angles, and the radial share of every step.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import pandas

__all__ = ["EffectiveStep", "scale_invariance"]

_VIEWS = ("channel", "layer")


def scale_invariance(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    batch: Any,
    *,
    delta: float = 0.1,
    factor: float = 1.1,
    tolerance: float = 1e-3,
) -> pandas.DataFrame:
    """Which weights only have a direction, by a gradient's test and by scaling them.

    Parameters
    ----------
    model : nn.Module
        Left as it is, buffers included, as are the random streams; in the mode in which it is trained.
        Dropout draws the same masks at every look.
    loss_fn : (model, batch) -> Tensor ()
    batch
    delta : float
        Of the test: ``max |cos(g_r, w_r)| sqrt(d) < delta``.
    factor : float
        By which weights are multiplied: all rows alike (layer), and rows by this and its inverse in turn
        (channel).
    tolerance : float
        A weight is invariant if scaling changes the loss by less than this share of what moving it by the
        same distance across its own direction does.

    Returns
    -------
    DataFrame
        One row a parameter of two or more dimensions, ``channel`` and ``layer`` (the test's ``max |cos|
        sqrt(d)``), ``tested`` and ``scaled`` (the finest view in which it is invariant by each, or
        ``"none"``), ``agree``.

    Warns
    -----
    RuntimeWarning
        Weights of which scaling changes the loss no more than rounding does, where that is not yet little
        beside what a step across them does: double precision would tell.

    Raises
    ------
    ValueError
        The loss is not a finite number, or no parameter has two dimensions.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.LayerNorm(3, eps=0.0), nn.Linear(3, 2))
    >>> _ = torch.manual_seed(0)
    >>> inputs = torch.randn(8, 4)
    >>> table = scale_invariance(model, lambda m, x: m(x).square().mean(), inputs)
    >>> table["scaled"].tolist()
    ['layer', 'none']
    """
    import pandas

    named = [(name, one) for name, one in model.named_parameters() if one.dim() > 1 and one.requires_grad]
    if not named:
        raise ValueError("no parameter of the model has two dimensions")
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    devices = {one.device for one in model.parameters() if one.device.type == "cuda"}
    rows, unseen = [], []
    with torch.random.fork_rng(sorted({device.index or 0 for device in devices})):
        seed = torch.random.initial_seed()

        def look() -> Tensor:
            torch.manual_seed(seed)  # the same masks every time, so that what differs is the weight
            loss = loss_fn(model, batch)
            if loss.dim() != 0 or not bool(torch.isfinite(loss)):
                told = loss.detach().flatten()[:3].tolist()
                raise ValueError(f"loss_fn must return one finite number, not {told}")
            return loss

        found = look()
        rounding = 4 * torch.finfo(found.dtype).eps * abs(float(found.detach()))
        slopes = torch.autograd.grad(found, [one for _, one in named], allow_unused=True)
        with torch.no_grad():
            start = float(look())
            generator = torch.Generator().manual_seed(0)
            for (name, weight), slope in zip(named, slopes, strict=True):
                row: dict[str, Any] = {"parameter": name, "shape": tuple(weight.shape)}
                if slope is None:
                    continue
                for view in _VIEWS:
                    row[view] = _cosine(weight, slope, view) * math.sqrt(_matrix(weight, view).shape[1])
                row["tested"] = next((view for view in _VIEWS if row[view] < delta), "none")
                changes = _changes(look, weight, start, factor, generator)
                allowed = tolerance * max(changes["across"], 1e-30)
                row["scaled"] = next((view for view in _VIEWS if changes[view] < allowed), "none")
                if 0 < allowed < rounding and min(changes[view] for view in _VIEWS) < rounding:
                    unseen.append(name)
                rows.append(row)
            for name, value in model.named_buffers():
                value.copy_(buffers[name])
    if unseen:
        warnings.warn(
            f"rounding hides whether {', '.join(unseen)} are scale-invariant: take the model and the "
            "batch in double precision", RuntimeWarning, stacklevel=2,
        )  # fmt: skip
    table = pandas.DataFrame(rows).set_index("parameter")
    table["agree"] = (table["tested"] == "none") == (table["scaled"] == "none")
    return table


def _matrix(tensor: Tensor, view: str) -> Tensor:
    return tensor.reshape(tensor.shape[0], -1) if view == "channel" else tensor.reshape(1, -1)


def _cosine(weight: Tensor, slope: Tensor, view: str) -> float:
    cosine = nn.functional.cosine_similarity(_matrix(slope, view), _matrix(weight, view), dim=1, eps=1e-8)
    return float(cosine.abs().max())


def _changes(
    look: Callable[[], Tensor], weight: Tensor, start: float, factor: float, generator: torch.Generator
) -> dict[str, float]:
    """How much scaling a weight changes the loss, and how much an equal step across it does."""
    kept = weight.clone()
    noise = torch.randn(weight.shape, generator=generator).to(weight)
    noise -= kept * (noise * kept).sum() / kept.square().sum().clamp(min=1e-30)
    size = abs(factor - 1.0) * kept.norm() / noise.norm().clamp(min=1e-30)
    turn = torch.full((weight.shape[0],), factor, dtype=weight.dtype, device=weight.device)
    turn[1::2] = 1.0 / factor
    moved = {
        "channel": kept * turn.view(-1, *(1 for _ in weight.shape[1:])),
        "layer": kept * factor,
        "across": kept + size * noise,
    }
    found = {}
    for name, value in moved.items():
        weight.copy_(value)
        found[name] = abs(float(look()) - start)
    weight.copy_(kept)
    return found


class EffectiveStep:
    """Lengths and angles of weights, step by step; watches an optimizer until it is closed.

    Parameters
    ----------
    model : nn.Module
    optimizer : torch.optim.Optimizer
    every : int
        Steps between records.
    include : callable, optional
        ``(name, parameter) -> bool``; parameters of two or more dimensions by default.

    Attributes
    ----------
    records : list of dict
        ``step`` and ``parameter``; ``length`` and ``before`` (after and before the step), ``move`` (the
        step's length), ``angle`` in radians, ``radial`` (the step's part along the weight, signed).

    Examples
    --------
    >>> layer = nn.Linear(2, 1, bias=False)
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    >>> with EffectiveStep(layer, optimizer) as watch:
    ...     _ = layer(torch.ones(1, 2)).sum().backward()
    ...     optimizer.step()
    >>> float(watch.table()["move"].iloc[0].round(4))
    0.7071
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, every: int = 1,
        include: Callable[[str, nn.Parameter], bool] | None = None,
    ) -> None:  # fmt: skip
        if every < 1:
            raise ValueError(f"every must be at least one step, not {every}")
        chosen = include or (lambda name, parameter: parameter.dim() > 1)
        self.watched = {name: one for name, one in model.named_parameters() if chosen(name, one)}
        if not self.watched:
            raise ValueError("no parameter was chosen to be watched")
        self.every, self.steps = every, 0
        self._told: list[Tensor] = []
        self._at: list[int] = []
        self._before: list[Tensor] = []
        self._handles = [
            optimizer.register_step_pre_hook(self._remember), optimizer.register_step_post_hook(self._record),
        ]  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Watch no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _remember(self, *_: Any) -> None:
        if self.steps % self.every == 0:
            self._before = [one.detach().clone() for one in self.watched.values()]

    def _record(self, *_: Any) -> None:
        if self.steps % self.every == 0:
            rows = []
            for before, weight in zip(self._before, self.watched.values(), strict=True):
                after = weight.detach()
                move = (after - before).double().flatten()
                old = before.double().flatten()
                rows.append(torch.stack([after.double().norm(), old.norm(), move.norm(), move @ old]))
            self._told.append(torch.stack(rows).cpu())  # one transfer a record
            self._at.append(self.steps)
        self.steps += 1

    @property
    def records(self) -> list[dict[str, Any]]:
        found = []
        for step, rows in zip(self._at, self._told, strict=True):
            for name, (length, before, move, along) in zip(self.watched, rows.tolist(), strict=True):
                radial = along / before if before > 0 else 0.0
                across = math.sqrt(max(move * move - radial * radial, 0.0))
                found.append({
                    "step": step, "parameter": name, "length": length, "before": before, "move": move,
                    "angle": math.atan2(across, before + radial), "radial": radial,
                })  # fmt: skip
        return found

    def table(self) -> pandas.DataFrame:
        """`records` as a table."""
        import pandas

        return pandas.DataFrame(self.records)

    def growth(self) -> pandas.DataFrame:
        """How squared lengths grew: one row a parameter.

        Returns
        -------
        DataFrame
            ``start`` and ``end`` (squared lengths), ``balance``: growth over the sum of squared steps, one
            where no step had a radial part, ``1 + 2 beta / (1 - beta)`` for momentum whose steps keep their
            size (Heo and others, 2020, section 2).
        """
        if self.every != 1:
            raise ValueError("growth needs every step; watch with every=1")
        rows = self.table().groupby("parameter", sort=False)
        first, last = rows["before"].first() ** 2, rows["length"].last() ** 2
        squares = rows["move"].apply(lambda move: float((move**2).sum()))
        return first.to_frame("start").assign(end=last, balance=(last - first) / squares)
