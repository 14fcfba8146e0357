"""Losses of one arm against scale, run by run, with the runs that diverged kept.

The data behind every comparison of two arms: one row a scale, one column a seed.  Two arms are paired through
the labels of their seeds, never through the order of columns.

A run that diverged is *censored*: known only to be worse than any finite loss.  Leaving it out would hide
exactly what is looked for, an arm that wins on small models and breaks on large ones (Xiao, 2024,
arXiv:2409.15156).  A run that was never made is *missing*, and says nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Curve"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Curve:
    """Losses of one arm at several scales, several seeds each; rows are put in order of scale.

    Parameters
    ----------
    x : array (m,) or (m, S)
        Positive scales in any one unit: parameters, FLOPs, width.  Two dimensions give each run its own cost.
    y : array (m, S) or (m,)
        Losses, positive, lower is better.  One dimension is one seed.
    name : str
        What the arm is called in sentences and tables.
    censored : boolean array (m, S), optional
        Runs that diverged; their ``y`` is not looked at.  An infinite loss counts as diverged without being
        marked; one that is not a number must be marked here or in ``missing``.
    missing : boolean array (m, S), optional
        Runs that were never made; their ``y`` is not looked at.
    seeds : sequence (S,), optional
        Labels of the columns, through which two arms are paired; 0, 1, ... by default.

    Raises
    ------
    ValueError
        Lengths differ, a scale or loss is not positive and finite, two rows have one scale, two seeds one
        label, or no loss is finite.

    Examples
    --------
    >>> curve = Curve([1e6, 1e7], [[3.0, 3.1], [2.5, float("inf")]], name="base")
    >>> curve.scales, curve.censored.sum(axis=1)
    (array([ 1000000., 10000000.]), array([0, 1]))
    """

    x: Array
    y: Array
    name: str = ""
    censored: Mask = None  # type: ignore[assignment]
    missing: Mask = None  # type: ignore[assignment]
    seeds: tuple[Hashable, ...] = None  # type: ignore[assignment]

    def __init__(
        self,
        x: ArrayLike,
        y: ArrayLike,
        *,
        name: str = "",
        censored: ArrayLike | None = None,
        missing: ArrayLike | None = None,
        seeds: Sequence[Hashable] | None = None,
    ) -> None:
        losses = _numbers(y, "y")
        losses = losses[:, None] if losses.ndim == 1 else losses
        if losses.ndim != 2 or 0 in losses.shape:
            raise ValueError(f"y must hold losses of shape (scales, seeds); its shape is {np.shape(y)}")
        scales = _numbers(x, "x")
        if scales.shape not in (losses.shape[:1], losses.shape):
            raise ValueError(
                f"x must have shape {losses.shape[:1]} or {losses.shape} to match y; its shape is "
                f"{scales.shape}"
            )
        absent = _mask(missing, losses.shape, "missing")
        diverged = (_mask(censored, losses.shape, "censored") | np.isposinf(losses)) & ~absent
        observed = ~(diverged | absent)
        costs = np.broadcast_to(scales.reshape(len(scales), -1), losses.shape)
        _check_scales(costs, absent)
        _check_losses(losses, observed)
        labels = tuple(range(losses.shape[1])) if seeds is None else tuple(seeds)
        if len(labels) != losses.shape[1] or len(set(labels)) != len(labels):
            raise ValueError(
                f"seeds must be {losses.shape[1]} different labels, one a column of y; given were {labels}"
            )
        order = np.argsort(_row_scales(costs, absent), kind="stable")
        for field, value in {
            "x": scales[order], "y": np.where(observed, losses, np.nan)[order], "name": str(name),
            "censored": diverged[order], "missing": absent[order], "seeds": labels,
        }.items():  # fmt: skip
            if isinstance(value, np.ndarray):
                value.setflags(write=False)
            object.__setattr__(self, field, value)
        if (np.diff(self.scales) == 0).any():
            twice = self.scales[:-1][np.diff(self.scales) == 0][0]
            raise ValueError(f"two rows have the scale {twice:g}; put the runs of one scale in one row")

    @classmethod
    def from_table(
        cls,
        frame: Any,
        x: str = "params",
        y: str = "loss",
        seed: str | None = "seed",
        *,
        arm: str | None = None,
        diverged: str | None = None,
        name: str | None = None,
    ) -> Curve:
        """A curve from a table with one row a run: a pandas DataFrame, or a mapping of columns.

        Parameters
        ----------
        frame : pandas.DataFrame or mapping of str to sequence
        x, y, seed : str
            Names of the columns of scale, loss and seed.  ``seed=None`` numbers the runs of a scale in the
            order of their rows; pairs of two arms then mean nothing, so compare with ``paired=False``.
        arm : str, optional
            Take the rows whose column ``arm`` has this value.
        diverged : str, optional
            Column that is true for runs that diverged; by default ``"diverged"`` where there is one.  A run
            without a finite loss counts as diverged too.
        name : str, optional
            Name of the curve; by default that of the arm.

        Raises
        ------
        ValueError
            A column is absent, the table holds several arms and none is chosen, or a run has two rows.

        Examples
        --------
        >>> table = {"params": [1e6, 1e7, 1e6], "loss": [3.0, 2.5, 3.1], "seed": [0, 0, 1]}
        >>> Curve.from_table(table).missing.tolist()
        [[False, False], [False, True]]
        """
        names = [str(column) for column in (frame.columns if hasattr(frame, "columns") else frame)]
        for wanted in (x, y, seed, diverged):
            if wanted is not None and wanted not in names:
                raise ValueError(f"the table has no column {wanted!r}; its columns are {', '.join(names)}")
        rows = np.ones(len(frame[x]), dtype=bool)
        if "arm" in names:
            arms = [str(value) for value in np.asarray(frame["arm"])]
            if arm is None and len(set(arms)) > 1:
                raise ValueError(
                    f"the table holds the arms {', '.join(sorted(set(arms)))}; choose one by arm="
                )
            if arm is not None:
                rows = np.array([value == arm for value in arms])
        elif arm is not None:
            raise ValueError(f"the table has no column 'arm' from which to take {arm!r}")
        if not rows.any():
            raise ValueError("the table has no rows" + (f" of arm {arm!r}" if arm is not None else ""))
        scales = _numbers(np.asarray(frame[x])[rows], x)
        losses = _numbers(np.asarray(frame[y])[rows], y)
        distinct, row = np.unique(scales, return_inverse=True)
        if seed is None:
            labels: list[Any] = [int((row[:i] == row[i]).sum()) for i in range(len(row))]
        else:
            labels = np.asarray(frame[seed])[rows].tolist()
        seeds = sorted(set(labels), key=lambda label: (isinstance(label, str), label))
        column_of = {label: i for i, label in enumerate(seeds)}
        column = np.array([column_of[label] for label in labels])
        count = np.zeros((len(distinct), len(seeds)), dtype=int)
        np.add.at(count, (row, column), 1)
        if (count > 1).any():
            r, c = np.argwhere(count > 1)[0]
            raise ValueError(
                f"seed {seeds[c]} has {count[r, c]} rows at {x} = {distinct[r]:g}; keep one row a run, such "
                "as its last"
            )
        flag = diverged if diverged is not None else ("diverged" if "diverged" in names else None)
        broken = ~np.isfinite(losses)
        if flag is not None:
            broken |= _flags(np.asarray(frame[flag])[rows], flag)
        table = np.full(count.shape, np.nan)
        table[row, column] = losses
        censored = np.zeros(count.shape, dtype=bool)
        censored[row, column] = broken
        title = name if name is not None else (arm or "")
        return cls(distinct, table, name=title, censored=censored, missing=count == 0, seeds=seeds)

    @cached_property
    def scales(self) -> Array:
        """Geometric mean of each row's scales, shape (m,), ascending."""
        costs = np.broadcast_to(self.x.reshape(len(self.x), -1), self.y.shape)
        return _row_scales(costs, self.missing)

    @property
    def observed(self) -> Mask:
        """Runs with a finite loss, shape (m, S)."""
        return ~(self.censored | self.missing)

    @cached_property
    def log_y(self) -> Array:
        """Log losses (m, S): ``inf`` where a run diverged, ``nan`` where none was made."""
        out = np.log(self.y)
        out[self.censored] = np.inf
        return out

    @cached_property
    def mean_log(self) -> Array:
        """Mean log loss of each scale (m,): infinite where a run diverged, since it is worse than any value.

        Not a number where no run was made.
        """
        made = (~self.missing).sum(axis=1)
        total = np.where(self.missing, 0.0, self.log_y).sum(axis=1)
        return np.where(made > 0, total / np.maximum(made, 1), np.nan)

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        span = f"{self.scales[0]:.3g} to {self.scales[-1]:.3g}"
        broken = f", {int(self.censored.sum())} diverged" if self.censored.any() else ""
        title = f"{self.name!r}: " if self.name else ""
        return f"Curve({title}{len(self)} scales from {span}, {len(self.seeds)} seeds{broken})"


def _row_scales(costs: Array, missing: Mask) -> Array:
    use = ~missing | missing.all(axis=1, keepdims=True)
    # Equal scales give themselves back exactly, which exponentials of logarithms would not.
    first = np.take_along_axis(costs, use.argmax(axis=1)[:, None], axis=1)
    ratio = np.where(use, np.where(use, costs, 1.0) / first, 1.0)
    return first[:, 0] * np.exp(np.log(ratio).sum(axis=1) / use.sum(axis=1))


def _numbers(values: Any, what: str) -> Array:
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{what} must be a rectangle of numbers; given was {values!r:.80}") from None


def _mask(values: ArrayLike | None, shape: tuple[int, ...], what: str) -> Mask:
    if values is None:
        return np.zeros(shape, dtype=bool)
    mask = np.asarray(values)
    if mask.ndim == 1 and shape[1] == 1:
        mask = mask[:, None]
    if mask.dtype != bool or mask.shape != shape:
        raise ValueError(
            f"{what} must be booleans of shape {shape}, like y; given was {mask.dtype} of shape {mask.shape}"
        )
    return mask.copy()


def _flags(values: NDArray[Any], what: str) -> Mask:
    known = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False, "": False,
             "nan": False, "none": False}  # fmt: skip
    words = [str(value).strip().lower() for value in values]
    for word in words:
        if word not in known:
            raise ValueError(f"column {what!r} must be true or false for each run; it holds {word!r}")
    return np.array([known[word] for word in words], dtype=bool)


def _check_scales(costs: Array, missing: Mask) -> None:
    bad = ~(np.isfinite(costs) & (costs > 0)) & ~missing
    bad |= missing.all(axis=1, keepdims=True) & ~(np.isfinite(costs) & (costs > 0))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(f"scales must be positive and finite; x is {costs[row, column]} in row {row}")


def _check_losses(losses: Array, observed: Mask) -> None:
    if not observed.any():
        raise ValueError("a curve needs at least one finite loss; every run diverged or is missing")
    bad = observed & ~(np.isfinite(losses) & (losses > 0))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        value = losses[row, column]
        cure = (
            "mark runs that diverged by censored=, runs never made by missing="
            if not np.isfinite(value)
            else "a crossing is looked for in log loss; add a constant or give another measure"
        )
        raise ValueError(
            f"losses must be positive and finite; y is {value} in row {row}, column {column}; {cure}"
        )
