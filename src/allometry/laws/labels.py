"""Cells that name something, as codes and the few names behind them: runs, seeds, learning rates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from allometry.laws.columns import BLANK, GOOD, number

__all__ = ["Labels", "labels"]


@dataclass(frozen=True)
class Labels:
    """A label a row.

    Attributes
    ----------
    codes : array (n,) of int
    names : list of str
        What each code stands for; ``""`` is a blank.
    """

    codes: NDArray[np.int64]
    names: list[str]

    @classmethod
    def same(cls, name: str, count: int) -> Labels:
        """One label for all of ``count`` rows."""
        return cls(np.zeros(count, dtype=np.int64), [name])

    def or_else(self, name: str) -> Labels:
        """The same with a name for blanks."""
        return Labels(self.codes, [label or name for label in self.names])

    def among(self, wanted: set[str]) -> NDArray[np.bool_]:
        """The rows (n,) whose label is one of those wanted."""
        return np.array([name in wanted for name in self.names], dtype=bool)[self.codes]


def labels(cells: Any, *, numeric: bool = False) -> Labels:
    """Cells as labels.

    Parameters
    ----------
    cells : sequence, array of float (NaN for a blank) or pandas' categories
    numeric : bool
        Whether numbers are brought to one spelling: ``1e-3`` and ``0.001`` are one label.

    Examples
    --------
    >>> found = labels(["1e-3", "0.001", None], numeric=True)
    >>> found.codes.tolist(), found.names
    ([0, 0, 1], ['0.001', ''])
    """
    if hasattr(cells, "categories"):
        codes, distinct = np.asarray(cells.codes, dtype=np.int64), [*cells.categories, None]
        codes = np.where(codes < 0, len(distinct) - 1, codes)
    elif isinstance(cells, np.ndarray):
        found, codes = np.unique(cells, return_inverse=True)
        distinct = found.tolist()
    else:
        known: dict[Any, int] = {}
        codes = np.empty(len(cells), dtype=np.int64)
        for i, cell in enumerate(cells):
            if cell.__hash__ is None:
                cell = str(cell)
            codes[i] = known.setdefault(cell, len(known))
        distinct = list(known)
    spelled = [_label(cell, numeric) for cell in distinct]
    places = {name: i for i, name in enumerate(dict.fromkeys(spelled))}
    return Labels(np.array([places[name] for name in spelled], dtype=np.int64)[codes], list(places))


def _label(cell: Any, numeric: bool) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    text = str(cell).strip()
    if numeric and not isinstance(cell, bool):
        value, state = number(text, suffixes=False)
        if state == GOOD:
            cell = value
        elif state == BLANK:
            return ""
    if isinstance(cell, float):
        return str(int(cell)) if cell.is_integer() and abs(cell) < 2**53 else repr(float(cell))
    return text
