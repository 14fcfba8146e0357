"""Runs that were made already: any trainer's logs as one table of params, tokens, flops and loss.

Nobody's log is clean, so three things are said aloud beside the table: which column was taken for what, what
was derived from what, and every row that was left out, with its reason.

- *A run* is what the run column names.  Without one it is a file's rows of the same parameters and seed, and
  of the same learning rate where the table has no step column (where it has one, the rate is a schedule).
  Laws are resampled by run, so this is what the width of an interval rests on.
- *A log or a table.*  Rows with a step are a log of training: on the way the learning rate had not decayed,
  so `Runs.final` takes the last one of each run.  Without a step every row is a result of its own.
- *Sparse logs* (validation now and then, tokens in other rows) are brought together by step; tokens and flops
  between and beyond their records go in proportion to steps.
- *One of N, D, C* that is missing follows from C = 6 N D (Kaplan et al., 2020, arXiv:2001.08361).
- *Bounded memory.*  Files are read in pieces, and 300,000 records are held.  Where there are more, runs with
  over 512 (fewer, where runs are many) lose every second one, never the last nor the one of least loss.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from allometry.laws.columns import (
    BLANK,
    CANONICAL,
    GOOD,
    NOT_FINITE,
    UNCLEAR,
    Choice,
    candidates,
    normalise,
    number,
    numbers,
)
from allometry.laws.logs import Part, Source, find, parts

if TYPE_CHECKING:
    import pandas

__all__ = ["Runs", "read_runs"]

SCALES = ("params", "tokens", "flops")
_NUMBERS = (*SCALES, "unique_tokens", "loss", "learning_rate", "step", "tokens_per_step")
_RECORDS = 300_000  # kept while reading
_OF_A_RUN = 512
_RUNS = 100_000
_PLAUSIBLE = {"loss": (1e-9, 1e9)}  # beyond these a number is a slip, and squares of it overflow
_SIZES = (1e-9, 1e36)
_RISE = 1.5  # a run that ends so many times above its own least loss has diverged


@dataclass
class Runs:
    """What logs hold.  Made by `read_runs`.

    Attributes
    ----------
    table : DataFrame
        One record a row: ``run``, those of ``params``, ``tokens``, ``flops``, ``unique_tokens``, ``loss``,
        ``seed``, ``learning_rate``, ``step`` that were found or derived, and ``file``, ``row``.
    left_out : DataFrame
        ``file``, ``row`` (the first), ``count``, ``reason``, ``example``.
    columns : dict
        What each quantity was read from or derived from.
    notes : list of str
        Choices that a reader may want to see, one sentence each.
    logs : frozenset of str
        Runs whose rows are steps of training, of which only the last counts.
    """

    table: pandas.DataFrame
    left_out: pandas.DataFrame
    columns: dict[str, str]
    notes: list[str] = field(default_factory=list)
    logs: frozenset[str] = frozenset()

    def final(self, pick: str = "last") -> pandas.DataFrame:
        """One record a run and horizon: of a log its last (or best) record, of a table every row.

        Parameters
        ----------
        pick : {"last", "best", "all"}
            Of a log the last record, the least loss, or all records: the last is what a law is about, unless
            the learning rate is constant.
        """
        if pick not in ("last", "best", "all"):
            raise ValueError(f"pick must be 'last', 'best' or 'all', not {pick!r}")
        logged = self.table["run"].isin(self.logs).to_numpy()
        if pick == "all" or not logged.any():
            return self.table.reset_index(drop=True)
        mine = self.table[logged]
        grouped = mine.groupby("run", sort=False)
        chosen = grouped["loss"].idxmin() if pick == "best" else grouped["step"].idxmax()
        kept = self.table.index.isin(chosen) | ~logged
        return self.table[kept].reset_index(drop=True)

    def __repr__(self) -> str:
        lost = int(self.left_out["count"].sum())
        return (
            f"Runs({len(self.table)} records of {self.table['run'].nunique()} runs, {lost} left out; "
            f"columns {', '.join(self.table.columns)})"
        )


def read_runs(
    paths: str | Path | Iterable[str | Path],
    *,
    columns: Mapping[str, str] | None = None,
    values: Mapping[str, Mapping[str, float | str]] | None = None,
) -> Runs:
    """Read logs of runs into one table.

    Parameters
    ----------
    paths : path, or several
        Files, folders (walked) or patterns.  CSV, TSV, JSON lines, JSON, Parquet; TensorBoard, W&B, MLflow,
        Hugging Face and Lightning: see `allometry.laws.logs`.
    columns : mapping of quantity to column, optional
        Overrides what would be recognised: ``{"loss": "val/loss", "tokens": "step"}``.
    values : mapping of run pattern to numbers, optional
        What the logs do not say: ``{"190M-*": {"params": 190354176}}``.

    Raises
    ------
    ValueError
        No file has a loss column, no usable record is left, or a column or pattern given by name is not
        there.  The columns that were found are named.
    FileNotFoundError
        A path matches nothing.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "runs.csv"
    >>> _ = path.write_text("N,D,val loss\\n70M,2B,3.1\\n160M,2B,nan\\n")
    >>> runs = read_runs(path)
    >>> float(runs.table["flops"].iloc[0]), runs.left_out["reason"].tolist()
    (8.4e+17, ['loss is not finite'])
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise ValueError("no path was given")
    reader = _Reader(dict(columns or {}), {k: dict(v) for k, v in (values or {}).items()})
    for source in find(given, lambda path, reason: reader.lost.add(path.as_posix(), None, reason)):
        reader.read(source)
    return reader.finish()


class _Refused(ValueError):
    """What ends the reading, not just the reading of one file."""


class _Lost:
    """Rows left out, counted by file and reason."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, str], list[Any]] = {}

    def add(self, file: str, row: int | None, reason: str, example: str = "", count: int = 1) -> None:
        entry = self.seen.setdefault((file, reason), [row, 0, example])
        entry[1] += count

    def table(self) -> pandas.DataFrame:
        import pandas

        rows = [(file, row, count, reason, example)
                for (file, reason), (row, count, example) in self.seen.items()]  # fmt: skip
        frame = pandas.DataFrame(rows, columns=["file", "row", "count", "reason", "example"])
        return frame.astype({"row": "Int64", "count": int})


class _Reader:
    """Absorbs pieces of files into a bounded table of records."""

    def __init__(self, columns: dict[str, str], values: dict[str, dict[str, float | str]]) -> None:
        unknown = sorted(set(columns) - set(CANONICAL))
        if unknown:
            raise ValueError(f"columns name {', '.join(unknown)}; known are {', '.join(CANONICAL)}")
        self.wanted = columns
        self.values = {pattern: _checked(pattern, numbers) for pattern, numbers in values.items()}
        self.matched: set[str] = set()
        self.lost = _Lost()
        self.notes: dict[str, None] = {}
        self.used: dict[str, dict[str, None]] = {}
        self.others: dict[str, dict[str, None]] = {}
        self.seen: dict[str, None] = {}  # every column of every file, for the error that names them
        self.files: list[str] = []
        self.keys: dict[tuple[Any, ...], int] = {}  # (base, params, seed, learning rate) -> number of the run
        self.log: list[bool] = []
        self.settings: dict[tuple[str, str], Any] = {}  # of logs: parameters and seed last seen
        self.kept: Any = None
        self.of_a_run = _OF_A_RUN
        self.order = 0

    # --- one source --------------------------------------------------------------------------------------
    def read(self, source: Source) -> None:
        """Read a source by its preferred loss; by the next where that column holds no number."""
        file = source.path.as_posix()
        attempt = 0
        while True:
            kept, order, keys, log = self.kept, self.order, dict(self.keys), list(self.log)
            lost = {key: list(value) for key, value in self.lost.seen.items()}
            usable, choices, more = self._pass(source, file, attempt)
            if usable or not more:
                break
            attempt += 1
            self.kept, self.order, self.keys, self.log, self.lost.seen = kept, order, keys, log, lost
        for quantity, choice in choices.items():
            self.used.setdefault(quantity, {})[str(choice)] = None

    def _pass(self, source: Source, file: str, attempt: int) -> tuple[int, dict[str, Choice], bool]:
        usable, more, first = 0, False, True
        choices: dict[str, Choice] = {}
        self.files.append(file)

        def reject(row: int, reason: str, example: str) -> None:
            self.lost.add(file, row, reason, example)

        try:
            for part in parts(source, reject):
                if first:
                    first = False
                    self.seen |= dict.fromkeys(part.columns)
                    self.notes |= dict.fromkeys(part.told)
                    choices, more = self._choose(list(part.columns), attempt, file)
                    if "loss" not in choices:
                        names = ", ".join(list(part.columns)[:12])
                        self.lost.add(file, None, f"no loss column; its columns are {names}")
                        return 0, {}, False
                usable += self._absorb(part, choices, source, file)
        except _Refused:
            raise
        except ValueError as error:  # the file as a whole; others may do
            self.lost.add(file, None, " ".join(str(error).split()))
            first = False
        if first:
            self.lost.add(file, None, "no records")
        return usable, choices, more

    def _choose(self, names: list[str], attempt: int, file: str) -> tuple[dict[str, Choice], bool]:
        found = candidates(names)
        choices = {quantity: ranked[0] for quantity, ranked in found.items()}
        losses = found.get("loss", [])
        if losses and "loss" not in self.wanted:
            choices["loss"] = losses[min(attempt, len(losses) - 1)]
        for quantity, name in self.wanted.items():
            exact = [n for n in names if n == name] or [n for n in names if normalise(n) == normalise(name)]
            if exact:
                choices = {q: choice for q, choice in choices.items() if choice.source != exact[0]}
                choices[quantity] = Choice(exact[0])
            else:
                choices.pop(quantity, None)
                reason = f"no column {name!r}, asked for as {quantity}"
                self.lost.add(file, None, reason)
        for quantity in ("loss", *SCALES, "run"):
            rest = [c.source for c in found.get(quantity, []) if c != choices.get(quantity)]
            if quantity in choices and quantity not in self.wanted and rest:
                self.others.setdefault(quantity, {}).update(dict.fromkeys(rest))
        return choices, "loss" not in self.wanted and attempt + 1 < len(losses)

    def _absorb(self, part: Part, choices: dict[str, Choice], source: Source, file: str) -> int:
        """Clean one piece and keep it; the number of finite positive losses in it."""
        import pandas

        count = len(part.rows)
        rows = np.asarray(part.rows, dtype=np.int64)
        frame = pandas.DataFrame({"row": rows, "order": np.arange(self.order, self.order + count)})
        self.order += count
        frame["file"] = len(self.files) - 1
        state = {}
        cells = {}
        for quantity in _NUMBERS:
            if quantity in choices and choices[quantity].source in part.columns:
                cells[quantity] = part.columns[choices[quantity].source]
                value, state[quantity] = numbers(
                    cells[quantity], suffixes=quantity not in ("loss", "learning_rate"), comma=part.comma
                )
                frame[quantity] = value * choices[quantity].scale
        if "loss" not in frame:
            frame["loss"], state["loss"] = math.nan, np.full(count, BLANK, dtype=np.int8)
        is_log = "step" in choices
        base = self._labels(part, choices, "run", count)
        base = (
            np.where(base == "", source.run, base) if base is not None else np.full(count, source.run, object)
        )
        self._give(frame, base, state)

        out = np.zeros(count, dtype=bool)

        def leave(bad: Any, reason: str, of: str | None = None) -> None:
            bad = bad & ~out
            if bad.any():
                first = int(np.argmax(bad))
                text = str(cells[of][first])[:40] if of in cells else ""
                self.lost.add(file, int(rows[first]), reason, text, int(bad.sum()))
                out[bad] = True

        for quantity in (*SCALES, "unique_tokens", "step", "loss"):
            if quantity not in state:
                continue
            leave(state[quantity] == UNCLEAR,
                  f"{quantity}: a comma or point that may be a decimal or a thousand", quantity)  # fmt: skip
            leave(
                ~np.isin(state[quantity], (GOOD, BLANK, NOT_FINITE)), f"{quantity} is not a number", quantity
            )
            if quantity != "loss":
                leave(state[quantity] == NOT_FINITE, f"{quantity} is not finite", quantity)
            if quantity != "step":
                leave((state[quantity] == GOOD) & ~(frame[quantity].to_numpy() > 0),
                      f"{quantity} is not positive", quantity)  # fmt: skip
        for quantity in (*SCALES, "unique_tokens", "loss"):
            if quantity in state:
                low, high = _PLAUSIBLE.get(quantity, _SIZES)
                value = frame[quantity].to_numpy()
                told = f"{quantity} is not between {low:g} and {high:g}"
                leave((state[quantity] == GOOD) & ~((value >= low) & (value <= high)), told, quantity)
        diverged = self._labels(part, choices, "diverged", count)
        if diverged is not None:
            marked = np.isin(np.char.lower(diverged.astype(str)), ("true", "1", "1.0", "yes", "diverged"))
            leave(marked, "the run is marked as diverged", None)
        endless = (state["loss"] == NOT_FINITE) & ~out
        if endless.any():
            first = int(np.argmax(endless))
            self.lost.add(file, int(rows[first]), "loss is not finite", str(cells["loss"][first])[:40],
                          int(endless.sum()))  # fmt: skip
        blank = (state["loss"] == BLANK) & ~out
        if blank.any():
            reason = (
                "no loss in this row (its other numbers are used by step)" if is_log else "loss is missing"
            )
            self.lost.add(file, int(rows[np.argmax(blank)]), reason, "", int(blank.sum()))
        frame.loc[endless | blank, "loss"] = math.nan
        frame["event"] = np.where(endless, 2.0, np.where(blank, math.nan, 1.0))
        usable = int((~out & ~blank & ~endless).sum())
        keep = ~out & (np.ones(count, dtype=bool) if is_log else ~blank & ~endless)
        if not keep.any():
            return usable
        seed = self._labels(part, choices, "seed", count)
        frame["seed"] = "" if seed is None else seed
        rate = None if is_log else self._labels(part, choices, "learning_rate", count)
        frame["run"] = self._number(frame, base, "" if rate is None else rate, is_log,
                                    "run" in choices, keep)  # fmt: skip
        self._keep(frame[keep], file)
        return usable

    def _labels(self, part: Part, choices: dict[str, Choice], quantity: str, count: int) -> Any:
        """Cells as labels, ``""`` where blank; None without the column."""
        if quantity not in choices or choices[quantity].source not in part.columns:
            return None
        cells = part.columns[choices[quantity].source]
        known: dict[Any, str] = {}
        out = np.empty(count, dtype=object)
        for i, cell in enumerate(cells):
            if cell.__hash__ is None:
                cell = str(cell)
            if cell not in known:
                known[cell] = _label(cell)
            out[i] = known[cell]
        return out

    def _give(self, frame: Any, base: Any, state: dict[str, Any]) -> None:
        """Numbers that the caller gives for runs whose logs do not hold them."""
        for pattern, given in self.values.items():
            names = [name for name in dict.fromkeys(base.tolist()) if fnmatch.fnmatchcase(name, pattern)]
            if not names:
                continue
            self.matched.add(pattern)
            here = np.isin(base.astype(str), names)
            for quantity, value in given.items():
                if quantity not in frame:
                    frame[quantity], state[quantity] = math.nan, np.full(len(frame), BLANK, dtype=np.int8)
                frame.loc[here, quantity] = value
                state[quantity][here] = GOOD
                self.used.setdefault(quantity, {})[f"given for {pattern}"] = None

    def _number(self, frame: Any, base: Any, rate: Any, is_log: bool, named: bool, keep: Any) -> Any:
        """The number of each row's run."""
        import pandas

        split = not named or is_log
        count = len(frame)
        size = frame["params"] if "params" in frame and split else pandas.Series(np.full(count, math.nan))
        seed = frame["seed"] if split else pandas.Series(np.full(count, "", dtype=object))
        owner, owners = pandas.factorize(base)
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
            unique = (bases[owner[place]], float(sizes[size_code[place]]), str(seeds[seed_code[place]]),
                      str(rates[rate_code[place]]))  # fmt: skip
            if unique not in self.keys:
                if len(self.keys) >= _RUNS:
                    raise _Refused(
                        f"more than {_RUNS:,} runs: is {', '.join(self.used.get('run', ['the run column']))} "
                        "the run of each row?"
                    )
                self.keys[unique] = len(self.log)
                self.log.append(is_log)
            ids[i] = self.keys[unique]
        out = np.full(count, -1, dtype=np.int64)
        out[places] = ids[code]
        return out

    def _hold(self, values: Any, blank: Any, owner: Any, bases: list[str], name: str, none: Any) -> Any:
        """Fill a run's blank settings from its own rows, or from what its earlier pieces said."""
        if blank.any() and not blank.all():
            told = values.where(~blank).groupby(owner)
            values = told.ffill().fillna(told.bfill())
            blank = values.isna()
        before = [self.settings.get((base, name), none) for base in bases]
        if blank.any():
            values = values.where(~blank, np.array(before, dtype=object)[owner])
            if name == "params":
                values = values.astype(float)
        ends = dict(zip(owner.tolist(), values.tolist(), strict=True))  # the last of each run
        for code, value in ends.items():
            self.settings[bases[code], name] = value
        return values

    def _keep(self, frame: Any, file: str) -> None:
        """Add rows to what is kept; drop the same row twice; thin where there is too much."""
        import pandas

        whole = frame if self.kept is None else pandas.concat([self.kept, frame], ignore_index=True)
        what = [name for name in whole if name not in ("row", "order", "file")]
        again = whole.duplicated(what) & (whole["event"] == 1.0)
        if again.any():
            for number_, mine in whole[again].groupby("file"):
                self.lost.add(self.files[int(number_)], int(mine["row"].iloc[0]), "the same row again", "",
                              len(mine))  # fmt: skip
            whole = whole[~again]
        whole = whole.reset_index(drop=True)
        while len(whole) > _RECORDS:
            groups = whole.groupby(["run", "event"], sort=False, dropna=False)
            rank, size = groups.cumcount(), groups["order"].transform("size")
            best = groups["loss"].transform("min") == whole["loss"]
            drop = (size > self.of_a_run) & (rank % 2 == 1) & (rank != size - 1) & ~best
            if drop.any():
                results = drop & ~np.array(self.log)[whole["run"].to_numpy()]
                for number_, mine in whole[results].groupby("file"):
                    self.lost.add(self.files[int(number_)], int(mine["row"].iloc[0]),
                                  "more rows than are kept in memory", "", len(mine))  # fmt: skip
                self.notes["Long runs were thinned while reading; their last and least losses are kept."] = (
                    None
                )
                whole = whole[~drop].reset_index(drop=True)
            elif self.of_a_run > 4:
                self.of_a_run //= 2
            else:
                break
        self.kept = whole

    # --- the end -----------------------------------------------------------------------------------------
    def finish(self) -> Runs:
        """Join what was logged apart, judge each run's end, derive what is missing."""
        self._complain()
        table = self.kept
        for name in ("params", "unique_tokens", "seed", "learning_rate"):
            if name in table:
                table[name] = table[name].astype(object if name == "seed" else float)
        log = np.array(self.log)[table["run"].to_numpy()]
        table = table.sort_values(
            ["run", "step", "order"] if "step" in table else ["run", "order"], kind="stable"
        )
        log = np.array(self.log)[table["run"].to_numpy()]
        if log.any():
            import pandas

            joined = _join(table[log])
            table = pandas.concat([table[~log], joined], ignore_index=True) if (~log).any() else joined
        table = self._diverged(table)
        table = table[table["event"] == 1.0].sort_values("order", kind="stable").reset_index(drop=True)
        if table.empty:
            self._complain(nothing=True)
        self._derive(table)
        table = self._whole(table)
        table, names = self._name(table)
        logs = frozenset(names[i] for i in table["run_number"].unique() if self.log[i])
        order = ["run", *SCALES, "unique_tokens", "loss", "seed", "learning_rate", "step", "file", "row"]
        table["file"] = [self.files[i] for i in table["file"]]
        table = table[[name for name in order if name in table]]
        self._say()
        described = {quantity: ", ".join(sources) for quantity, sources in self.used.items()}
        return Runs(table, self.lost.table(), described, list(self.notes), logs)

    def _complain(self, nothing: bool = False) -> None:
        unmatched = sorted(set(self.values) - self.matched)
        if unmatched and self.kept is not None:
            names = list(dict.fromkeys(str(key[0]).rstrip("\0") for key in self.keys))
            raise ValueError(f"no run matches {unmatched[0]!r}; runs are {', '.join(names[:8])}")
        if self.kept is not None and not nothing and (self.kept["event"] == 1.0).any():
            return
        names = list(self.seen)
        shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        missing = [
            name for name in self.wanted.values() if not any(normalise(n) == normalise(name) for n in names)
        ]
        if missing and names:
            raise ValueError(f"no file has a column {missing[0]!r}; the columns found are: {shown}")
        if "loss" not in self.used and names:
            raise ValueError(
                f"no loss column was recognised among: {shown}; name it with columns loss=NAME (--columns)"
            )
        why = "; ".join(
            f"{Path(file).name}: {reason}" + (f" ({count} rows)" if row is not None else "")
            for (file, reason), (row, count, _) in list(self.lost.seen.items())[:4]
        )
        raise ValueError(f"no usable record is left: {why or 'the files are empty'}")

    def _diverged(self, table: Any) -> Any:
        """Leave out logs whose last loss is not finite, or far above what they had reached."""
        told = table[table["event"].notna()]
        told = told[np.array(self.log)[told["run"].to_numpy()]]
        if told.empty:
            return table
        last = told.groupby("run", sort=False).tail(1).set_index("run")
        least = told.groupby("run", sort=False)["loss"].min()
        bad = set()
        for run, end in last.iterrows():
            reason = None
            if end["event"] == 2.0:
                reason = "the run ends with a loss that is not finite: diverged"
            elif end["loss"] > _RISE * least[run]:
                reason = f"the run ends more than {_RISE:g} times above its own least loss: diverged"
            if reason:
                bad.add(run)
                mine = told[(told["run"] == run) & (told["event"] == 1.0)]
                first = mine["row"].iloc[0] if len(mine) else end["row"]
                self.lost.add(self.files[int(end["file"])], int(first), reason, "", max(len(mine), 1))
        return table[~table["run"].isin(bad)]

    def _derive(self, table: Any) -> None:
        """Tokens from steps; then the one of N, D, C that is missing from C = 6 N D, row by row."""
        if "tokens_per_step" in table and "step" in table:
            self._fill(table, "tokens", table["step"] * table["tokens_per_step"], "steps × tokens a step")
        have = [name for name in SCALES if name in table]
        if {"params", "tokens"} <= set(have):
            self._fill(table, "flops", 6.0 * table["params"] * table["tokens"], "6 × params × tokens")
        if {"params", "flops"} <= set(have):
            self._fill(table, "tokens", table["flops"] / (6.0 * table["params"]), "flops / (6 × params)")
        if {"tokens", "flops"} <= set(have):
            self._fill(table, "params", table["flops"] / (6.0 * table["tokens"]), "flops / (6 × tokens)")
        if set(have) == set(SCALES):
            ratio = (table["flops"] / (6.0 * table["params"] * table["tokens"])).median()
            if not 0.4 < ratio < 2.5:
                self.notes[
                    f"flops are {ratio:.3g} times 6 × params × tokens: check the units of the three columns."
                ] = None

    def _fill(self, table: Any, name: str, value: Any, told: str) -> None:
        if name not in table:
            table[name] = math.nan
        blank = table[name].isna() & np.isfinite(value) & (value > 0)
        if blank.any():
            table.loc[blank, name] = value[blank]
            self.used.setdefault(name, {})[told] = None
            rows = "" if blank.all() else f" in {int(blank.sum())} rows"
            self.notes[f"{name} = {told}{rows}."] = None
        elif table[name].isna().all():
            del table[name]

    def _whole(self, table: Any) -> Any:
        """Leave out rows that lack a scale which others have."""
        for name in SCALES:
            if name in table and table[name].isna().all():
                del table[name]
            if name in table:
                lacking = table[name].isna()
                for number_, mine in table[lacking].groupby("file"):
                    first = int(mine["row"].iloc[0])
                    self.lost.add(self.files[int(number_)], first, f"{name} is missing", "", len(mine))
                table = table[~lacking]
        return table.reset_index(drop=True)

    def _name(self, table: Any) -> tuple[Any, dict[int, str]]:
        """Names of runs: the file's or the run column's, and what tells apart runs that share it."""
        keys = {number_: key for key, number_ in self.keys.items()}
        present = [int(i) for i in table["run"].unique()]
        shared: dict[str, list[int]] = {}
        for i in present:
            shared.setdefault(keys[i][0], []).append(i)
        names: dict[int, str] = {}
        for base, members in shared.items():
            plain = base.rstrip("\0")
            for i in members:
                _, params, seed, rate = keys[i]
                told = []
                for label, position, shown in (("params", 1, f"{params:.12g}"), ("seed", 2, seed),
                                               ("learning rate", 3, rate)):  # fmt: skip
                    if len({keys[m][position] for m in members}) > 1:
                        told.append(f"{label} {shown}")
                names[i] = f"{plain} ({', '.join(told)})" if told else plain
        table["run_number"] = table["run"]
        table["run"] = [names[int(i)] for i in table["run"]]
        if "seed" in table:
            seeds = numbers(table["seed"].tolist())
            if (table["seed"] == "").all():
                table = table.drop(columns="seed")
            elif (seeds[1] == GOOD).all():
                whole = (seeds[0] == np.floor(seeds[0])).all() and np.abs(seeds[0]).max() < 2**53
                table["seed"] = seeds[0].astype(np.int64) if whole else seeds[0]
        for name in ("unique_tokens", "learning_rate", "step"):
            if name in table and table[name].isna().all():
                table = table.drop(columns=name)
        return table, names

    def _say(self) -> None:
        for quantity, rest in self.others.items():
            taken = list(self.used.get(quantity, {}))
            rest = {name: None for name in rest if name not in taken}
            if not rest or not taken:
                continue
            shown = ", ".join(map(repr, list(rest)[:4])) + (
                f" and {len(rest) - 4} more" if len(rest) > 4 else ""
            )
            self.notes[
                f"{quantity} is {taken[0]!r}; it might also be {shown} (--columns {quantity}=NAME)."
            ] = None
        losses = list(self.used.get("loss", {}))
        if len(losses) > 1:
            self.notes[
                f"Files hold different losses, {', '.join(map(repr, losses))}: are they the same quantity?"
            ] = None


def _checked(pattern: str, given: Mapping[str, float | str]) -> dict[str, float]:
    out = {}
    for name, value in given.items():
        if name not in (*SCALES, "unique_tokens", "tokens_per_step"):
            raise ValueError(f"a value can be given for params, tokens, flops ..., not for {name!r}")
        out[name], state = number(str(value))
        if state != GOOD or out[name] <= 0:
            raise ValueError(f"{name} for {pattern!r} must be a positive number, not {value!r}")
    return out


def _label(cell: Any) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip()


def _join(table: Any) -> Any:
    """Rows of one step as one, settings throughout their run, tokens and flops in proportion to steps."""
    told = table["event"].notna()
    if table["step"].isna().any():
        table = table.copy()
        table["step"] = table["step"].fillna(table.groupby("run")["order"].rank(method="first"))
    grouped = table.groupby(["run", "step"], sort=False)
    out = grouped.last().reset_index()
    if told.any():  # file and row of the record that holds the loss
        where = table[told].groupby(["run", "step"], sort=False)[["file", "row", "order"]].last()
        at = out.set_index(["run", "step"]).index
        found = where.reindex(at)
        for name in ("file", "row", "order"):
            out[name] = np.where(found[name].notna(), found[name].fillna(0), out[name]).astype(np.int64)
    # the last record of a step decides: its loss, or that it is none
    ends = table[told].groupby(["run", "step"], sort=False)["event"].last()
    out["event"] = ends.reindex(out.set_index(["run", "step"]).index).to_numpy()
    out.loc[out["event"] == 2.0, "loss"] = math.nan
    for name in ("params", "unique_tokens", "learning_rate", "tokens_per_step"):
        if name in out and out[name].isna().any():
            filled = out.groupby("run", sort=False)[name].ffill()
            out[name] = filled if name == "learning_rate" else filled.groupby(out["run"]).bfill()
    for name in ("tokens", "flops"):
        if name in out and out[name].isna().any():
            out[name] = _proportional(out, name)
    return out


def _proportional(out: Any, name: str) -> Any:
    """Blank tokens or flops of each run, linear in steps from zero; beyond the last record by its rate."""
    filled = out[name].to_numpy(float).copy()
    steps = out["step"].to_numpy(float)
    members = out.groupby("run", sort=False).indices
    for run in out.loc[out[name].isna(), "run"].unique():
        places = members[run]
        x, y = steps[places], filled[places]
        known = np.isfinite(y)
        if not known.any():
            continue
        x_known, y_known = x[known], y[known]
        if x_known[0] > 0:
            x_known, y_known = np.r_[0.0, x_known], np.r_[0.0, y_known]
        value = np.interp(x, x_known, y_known)
        beyond = x > x_known[-1]
        if x_known[-1] > 0:
            value[beyond] = y_known[-1] * x[beyond] / x_known[-1]
        filled[places] = np.where(known, y, value)
    return filled
