"""The records held while logs are read: runs told apart, repeats dropped, memory bounded.

At most 300,000 records stay.  Where there are more, runs with over 512 (fewer, where runs are many) lose
every second one, never the last nor the one of least loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from allometry.laws.lost import Lost

__all__ = ["Holding", "Refused"]

RECORDS = 300_000  # kept while reading
OF_A_RUN = 512
RUNS = 100_000

Key = tuple[str, float, str, str]  # of a run: its name, parameters, seed, learning rate


class Refused(ValueError):
    """What ends the reading, not just the reading of one file."""


class Holding:
    """A bounded table of records.

    Attributes
    ----------
    keys : dict
        Number of each run by its name, parameters, seed and learning rate.
    log : list of bool
        For each run whether its rows are steps of training.
    files : list of str
    """

    def __init__(self, lost: Lost, notes: dict[str, None]) -> None:
        self.lost = lost
        self.notes = notes
        self.keys: dict[Key, int] = {}
        self.log: list[bool] = []
        self.files: list[str] = []
        self.order = 0  # rows seen so far
        self._kept: Any = None
        self._waiting: list[Any] = []
        self._rows = 0  # of what waits
        self._settings: dict[tuple[str, str], Any] = {}  # of logs: parameters and seed last seen
        self._of_a_run = OF_A_RUN

    # --- one file may be read twice ----------------------------------------------------------------------
    def mark(self) -> tuple[Any, ...]:
        """Where we are, for `back`."""
        self.lost.mark()
        return self._kept, list(self._waiting), self._rows, len(self.keys), self.order, self._of_a_run

    def back(self, mark: tuple[Any, ...]) -> None:
        """Forget all records since `mark`."""
        self.lost.back()
        self._kept, self._waiting, self._rows, keys, self.order, self._of_a_run = mark
        while len(self.keys) > keys:
            self.keys.popitem()
        del self.log[keys:]

    # --- runs --------------------------------------------------------------------------------------------
    def number(
        self, frame: Any, names: Any, rate: Any, is_log: bool, named: bool, keep: Any, column: str
    ) -> Any:
        """The number of each row's run, -1 where ``keep`` is false.

        Parameters
        ----------
        frame : DataFrame
            With ``params`` (if known) and ``seed``.
        names : array (n,) of str
            From the run column, or the source's.
        rate : array (n,) of str, or ``""``
            Learning rates, where they tell runs apart.
        is_log, named : bool
            Whether rows are steps, and whether a column names the runs.
        keep : array (n,) of bool
        column : str
            Where the names are from, for the complaint that there are too many.
        """
        import pandas

        split = not named or is_log
        count = len(frame)
        size = frame["params"] if "params" in frame and split else pandas.Series(np.full(count, math.nan))
        seed = frame["seed"] if split else pandas.Series(np.full(count, "", dtype=object))
        owner, owners = pandas.factorize(names)
        # a file's name is no name that a run column could hold
        bases = [str(name) if named else f"{name}\0" for name in owners]
        if is_log:  # a setting that is logged once holds for its run
            size = self._hold(size, size.isna(), owner, bases, "params", math.nan)
            seed = self._hold(seed, seed == "", owner, bases, "seed", "")
        size_code, sizes = pandas.factorize(size.fillna(-1.0))
        seed_code, seeds = pandas.factorize(seed)
        rates = np.full(count, "", dtype=object) if named or isinstance(rate, str) else rate
        rate_code, rates = pandas.factorize(rates)
        code = owner.astype(np.int64)
        for more in (size_code, seed_code, rate_code):
            code = pandas.factorize(code * (int(more.max()) + 1) + more)[0].astype(np.int64)
        code, places = pandas.factorize(code[np.asarray(keep)])[0], np.flatnonzero(keep)
        first = places[np.unique(code, return_index=True)[1]]
        ids = np.empty(len(first), dtype=np.int64)
        for i, place in enumerate(first):
            key = (bases[owner[place]], float(sizes[size_code[place]]), str(seeds[seed_code[place]]),
                   str(rates[rate_code[place]]))  # fmt: skip
            if key not in self.keys:
                if len(self.keys) >= RUNS:
                    raise Refused(f"more than {RUNS:,} runs: is {column} the run of each row?")
                self.keys[key] = len(self.log)
                self.log.append(is_log)
            ids[i] = self.keys[key]
        out = np.full(count, -1, dtype=np.int64)
        out[places] = ids[code]
        return out

    def _hold(
        self, values: Any, blank: Any, owner: Any, bases: Sequence[str], name: str, none: float | str
    ) -> Any:
        """Fill a run's blank settings from its own rows, or from what its earlier pieces said."""
        if blank.any() and not blank.all():
            told = values.where(~blank).groupby(owner)
            values = told.ffill().fillna(told.bfill())
            blank = values.isna()
        before = [self._settings.get((base, name), none) for base in bases]
        if blank.any():
            values = values.where(~blank, np.array(before, dtype=object)[owner])
            if name == "params":
                values = values.astype(float)
        ends = dict(zip(owner.tolist(), values.tolist(), strict=True))  # the last of each run
        for code, value in ends.items():
            self._settings[bases[code], name] = value
        return values

    # --- records -----------------------------------------------------------------------------------------
    def keep(self, frame: Any) -> None:
        """Add rows: run, event (1 a loss, 2 a loss not finite, NaN none), order, file, row, quantities."""
        self._waiting.append(frame)
        self._rows += len(frame)
        if self._rows >= RECORDS // 6:  # a comparison with all that is kept is worth its while
            self._gather()

    def table(self) -> Any:
        """All records kept, None where there are none."""
        self._gather()
        return self._kept

    def _gather(self) -> None:
        """Add what waits to what is kept; drop the same row twice; thin where there is too much."""
        import pandas

        if not self._waiting:
            return
        frames = self._waiting if self._kept is None else [self._kept, *self._waiting]
        whole = pandas.concat(frames, ignore_index=True)
        self._waiting, self._rows = [], 0
        what = [name for name in whole if name not in ("row", "order", "file")]
        again = whole.duplicated(what) & (whole["event"] == 1.0)
        if again.any():
            self.lost.rows(self.files, whole[again], "the same row again")
            whole = whole[~again].reset_index(drop=True)
        while len(whole) > RECORDS:
            groups = whole.groupby(["run", "event"], sort=False, dropna=False)
            rank, size = groups.cumcount(), groups["order"].transform("size")
            best = groups["loss"].transform("min") == whole["loss"]
            drop = (size > self._of_a_run) & (rank % 2 == 1) & (rank != size - 1) & ~best
            if drop.any():
                self.lost.rows(
                    self.files, whole[drop & whole["event"].eq(1.0)], "more rows than are kept in memory"
                )
                told = "Long runs were thinned while reading; their last and least losses are kept."
                self.notes[told] = None
                whole = whole[~drop].reset_index(drop=True)
            elif self._of_a_run > 4:
                self._of_a_run //= 2
            else:
                break
        self._kept = whole
