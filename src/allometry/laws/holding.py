"""The records held while logs are read: runs told apart, repeats dropped, memory bounded.

At most 300,000 records stay.  Where there are more, runs with over 512 (fewer, where runs are many) keep
every second one, then every fourth and so on, and always the last and the one of least loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from allometry.laws.labels import Labels
from allometry.laws.lost import Lost

__all__ = ["Holding", "Refused"]

RECORDS = 300_000  # kept while reading
OF_A_RUN = 512
RUNS = 100_000
_OWN = ("row", "order", "file", "place", "mark")  # ours, beside the quantities

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
        self._seeds: dict[str, int] = {"": 0}
        self._kept: Any = None
        self._waiting: list[Any] = []
        self._rows = 0  # of what waits
        self._settings: dict[tuple[str, str], Any] = {}  # of logs: parameters and seed last seen
        self._of_a_run = OF_A_RUN
        # Of each run three series: rows without a loss, with one, with one that is not finite.
        self._seen = np.zeros(0, dtype=np.int64)  # how many rows there have been
        self._stride = np.ones(0, dtype=np.int64)  # of how many one stays

    # --- one file may be read twice ----------------------------------------------------------------------
    def mark(self) -> tuple[Any, ...]:
        """Where we are, for `back`."""
        self.lost.mark()
        series = self._seen.copy(), self._stride.copy()
        return self._kept, list(self._waiting), self._rows, len(self.keys), self.order, self._of_a_run, series

    def back(self, mark: tuple[Any, ...]) -> None:
        """Forget all records since `mark`."""
        self.lost.back()
        self._kept, self._waiting, self._rows, keys, self.order, self._of_a_run, series = mark
        self._seen, self._stride = series
        while len(self.keys) > keys:
            self.keys.popitem()
        del self.log[keys:]

    # --- runs --------------------------------------------------------------------------------------------
    def number(
        self, size: Any, names: Labels, seed: Labels, rate: Labels, is_log: bool, keep: NDArray[np.bool_],
        column: str | None,
    ) -> NDArray[np.int64]:  # fmt: skip
        """The number of each row's run, -1 where ``keep`` is false.

        Parameters
        ----------
        size : array (n,) or None
            Parameters, NaN where blank.
        names : Labels
            From the run column, or the source's.
        seed, rate : Labels
            Where a column names the runs of a table these do not tell them apart.
        is_log : bool
            Whether rows are steps.
        keep : array (n,)
        column : str or None
            The run column, if there is one.

        Raises
        ------
        Refused
            Runs are too many for their column to be one of runs.
        """
        import pandas

        count, named = len(names.codes), column is not None
        # a file's name is no name that a run column could hold
        bases = [name if named else f"{name}\0" for name in names.names]
        if named and not is_log:
            size, seed, rate = None, Labels.same("", count), Labels.same("", count)
        size = np.full(count, math.nan) if size is None else size
        if is_log:  # a setting that is logged once holds for its run
            size = self._hold_sizes(size, names.codes, bases)
            seed = self._hold_seeds(seed, names.codes, bases)
        size_code, sizes = pandas.factorize(np.where(np.isnan(size), -1.0, size))
        code = names.codes
        for more, many in (
            (size_code, len(sizes)),
            (seed.codes, len(seed.names)),
            (rate.codes, len(rate.names)),
        ):
            if many > 1:
                code = pandas.factorize(code * many + more)[0].astype(np.int64)
        code, first = pandas.factorize(code[keep])[0], np.flatnonzero(keep)
        first = first[np.unique(code, return_index=True)[1]]
        ids = np.empty(len(first), dtype=np.int64)
        for i, place in enumerate(first):
            key = (bases[names.codes[place]], float(sizes[size_code[place]]), seed.names[seed.codes[place]],
                   rate.names[rate.codes[place]])  # fmt: skip
            if key not in self.keys:
                if len(self.keys) >= RUNS:
                    raise Refused(f"more than {RUNS:,} runs: is {column or 'its file'} the run of each row?")
                self.keys[key] = len(self.log)
                self.log.append(is_log)
            ids[i] = self.keys[key]
        out = np.full(count, -1, dtype=np.int64)
        out[keep] = ids[code]
        return out

    def seed_codes(self, seed: Labels) -> NDArray[np.int64]:
        """Seeds as numbers that mean the same in every piece."""
        ours = [self._seeds.setdefault(name, len(self._seeds)) for name in seed.names]
        return np.array(ours, dtype=np.int64)[seed.codes]

    def _hold_sizes(self, size: Any, owner: Any, bases: Sequence[str]) -> Any:
        """Fill a run's blank parameters from its own rows, or from what its earlier pieces said."""
        import pandas

        if np.isnan(size).any():
            told = pandas.Series(size).groupby(owner)
            filled = told.ffill().fillna(told.bfill()).to_numpy()
            before = np.array([self._settings.get((base, "params"), math.nan) for base in bases])
            size = np.where(np.isnan(filled), before[owner], filled)
        for code, place in _last(owner):
            self._settings[bases[code], "params"] = float(size[place])
        return size

    def _hold_seeds(self, seed: Labels, owner: Any, bases: Sequence[str]) -> Labels:
        """The same for seeds."""
        import pandas

        names = list(seed.names)
        codes = seed.codes
        if names == [""] and not any(self._settings.get((base, "seed")) for base in bases):
            return seed
        blank = np.array([not name for name in names])[codes]
        if blank.any():
            told = pandas.Series(np.where(blank, math.nan, codes)).groupby(owner)
            filled = told.ffill().fillna(told.bfill()).to_numpy()
            before = [self._settings.get((base, "seed"), "") for base in bases]
            names += [name for name in dict.fromkeys(before) if name not in names]
            place = {name: i for i, name in enumerate(names)}
            earlier = np.array([place[name] for name in before], dtype=float)
            codes = np.where(np.isnan(filled), earlier[owner], filled).astype(np.int64)
        for code, at in _last(owner):
            self._settings[bases[code], "seed"] = names[codes[at]]
        return Labels(codes, names)

    # --- records -----------------------------------------------------------------------------------------
    def keep(self, frame: Any) -> None:
        """Add rows: run, event (1 a loss, 2 a loss not finite, NaN none), order, file, row, quantities."""
        grown = 3 * len(self.log) - len(self._seen)
        self._seen = np.concatenate([self._seen, np.zeros(grown, dtype=np.int64)])
        self._stride = np.concatenate([self._stride, np.ones(grown, dtype=np.int64)])
        series = _series(frame)
        groups = _Groups(series)
        place = groups.rank + self._seen[series]
        self._seen += np.bincount(series, minlength=len(self._seen))
        frame = frame.assign(
            place=place, mark=np.uint64(0) if self.log[frame["run"].iloc[0]] else _mark(frame)
        )
        if (self._stride[series] > 1).any():
            stay = (place % self._stride[series] == 0) | groups.ends(frame["loss"].to_numpy())
            self._drop(frame[~stay])
            frame = frame[stay]
        self._waiting.append(frame)
        self._rows += len(frame)
        if self._rows >= RECORDS // 2:  # a comparison with all that is kept is worth its while
            self._gather()

    def table(self) -> Any:
        """All records kept, None where there are none; their ``seed`` is a number of `seeds`."""
        self._gather()
        return None if self._kept is None else self._kept.drop(columns=["place", "mark"])

    @property
    def seeds(self) -> list[str]:
        """Seeds as they were written, ``""`` for a blank."""
        return list(self._seeds)

    def _gather(self) -> None:
        """Add what waits to what is kept; drop the same row twice; thin where there is too much."""
        import pandas

        if not self._waiting:
            return
        frames = self._waiting if self._kept is None else [self._kept, *self._waiting]
        whole = pandas.concat(frames, ignore_index=True)
        self._waiting, self._rows = [], 0
        # Steps of a log that stand there twice are told apart when they are joined.
        marked = whole.loc[whole["mark"] != 0, "mark"]
        alike = marked.index[marked.duplicated(keep=False)]
        if len(alike):
            some = whole.loc[alike]
            again = some.duplicated([name for name in whole if name not in _OWN])
            if again.any():
                self.lost.rows(self.files, some[again], "the same row again")
                whole = whole.drop(index=some.index[again]).reset_index(drop=True)
        while len(whole) > RECORDS:
            series = _series(whole)
            long = np.bincount(series, minlength=len(self._stride)) > self._of_a_run
            if not long.any():
                if self._of_a_run <= 4:
                    break
                self._of_a_run //= 2
                continue
            self._stride[long] *= 2
            stay = whole["place"].to_numpy() % self._stride[series] == 0
            stay |= _Groups(series).ends(whole["loss"].to_numpy())
            self._drop(whole[~stay])
            whole = whole[stay].reset_index(drop=True)
        self._kept = whole

    def _drop(self, rows: Any) -> None:
        self.lost.rows(self.files, rows[rows["event"].to_numpy() == 1.0], "more rows than are kept in memory")
        self.notes["Long runs were thinned while reading; their last and least losses are kept."] = None


def _last(owner: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Each code with the last place where it stands."""
    last = np.full(int(owner.max()) + 1, -1, dtype=np.int64)
    last[owner] = np.arange(len(owner))  # of entries for one place the last stays
    return [(code, place) for code, place in enumerate(last.tolist()) if place >= 0]


def _series(frame: Any) -> NDArray[np.int64]:
    """Number of each row's series: three times its run's, and 0, 1 or 2 for its event."""
    return 3 * frame["run"].to_numpy() + np.nan_to_num(frame["event"].to_numpy()).astype(np.int64)


class _Groups:
    """Rows of each series in the order in which they stand."""

    def __init__(self, series: NDArray[np.int64]) -> None:
        count = len(series)
        self.sorted = np.argsort(series, kind="stable")
        ordered = series[self.sorted]
        self.begins = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if count else np.zeros(0, int)
        sizes = np.diff(np.r_[self.begins, count])
        self.rank = np.empty(count, dtype=np.int64)
        self.rank[self.sorted] = np.arange(count) - np.repeat(self.begins, sizes)
        self.last = self.sorted[self.begins + sizes - 1]
        self.sizes = sizes

    def ends(self, loss: Any) -> NDArray[np.bool_]:
        """The last row of each series and the first of its least loss."""
        out = np.zeros(len(loss), dtype=bool)
        out[self.last] = True
        ordered = np.where(np.isnan(loss), math.inf, loss)[self.sorted]
        least = ordered == np.repeat(np.minimum.reduceat(ordered, self.begins), self.sizes)
        places = np.flatnonzero(least)
        group = np.repeat(np.arange(len(self.begins)), self.sizes)[places]
        out[self.sorted[places[np.unique(group, return_index=True)[1]]]] = True
        return out


def _mark(frame: Any) -> NDArray[np.uint64]:
    """A number that rows of the same cells share, and others hardly ever; never zero."""
    out = np.full(len(frame), 0x9E3779B97F4A7C15, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for name in sorted(set(frame) - set(_OWN)):
            values = frame[name].to_numpy(float)
            mixed = (out ^ (values + 0.0).view(np.uint64)) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(2 * sum(name.encode()) + 1)
            out = np.where(np.isnan(values), out, mixed)  # a blank is as good as no column
    return out | np.uint64(1)
