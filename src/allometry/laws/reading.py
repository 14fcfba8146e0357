"""Pieces of logs as clean records: which column is what, which cells are numbers, which rows are left out."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from allometry.laws.columns import (
    BLANK,
    CANONICAL,
    GOOD,
    NOT_FINITE,
    SCALES,
    TEXT,
    UNCLEAR,
    Choice,
    candidates,
    normalise,
    number,
    numbers,
    read_as,
    shown,
)
from allometry.laws.holding import Holding, Refused
from allometry.laws.joining import Told, runs_of
from allometry.laws.labels import Labels, labels
from allometry.laws.logs import Source, parts
from allometry.laws.lost import Lost
from allometry.laws.pieces import Part

if TYPE_CHECKING:
    import pandas

__all__ = ["Reader"]

_NUMBERS = (*SCALES, "unique_tokens", "loss", "learning_rate", "step", "tokens_per_step")
_SUFFIXED = (*SCALES, "unique_tokens", "step", "tokens_per_step")  # 70M, 300k
_PLAUSIBLE = {"loss": (1e-9, 1e9)}  # beyond these a number is a slip, and squares of it overflow
_SIZES = (1e-9, 1e36)


class Reader:
    """Absorbs sources one after another and gives the table of their runs.

    Attributes
    ----------
    lost : Lost
    notes : dict of str
        Choices that a reader may want to see, in order.
    used : dict
        What each quantity was read from or derived from.
    """

    def __init__(self, columns: Mapping[str, str], values: Mapping[str, Mapping[str, float | str]]) -> None:
        unknown = sorted(set(columns) - set(CANONICAL))
        if unknown:
            raise ValueError(f"columns name {', '.join(unknown)}; known are {', '.join(CANONICAL)}")
        self.wanted = dict(columns)
        self.values = {pattern: _checked(pattern, given) for pattern, given in values.items()}
        self.matched: set[str] = set()
        self.lost = Lost()
        self.notes: dict[str, None] = {}
        self.used: Told = {}
        self.others: Told = {}
        self.seen: dict[str, None] = {}  # every column of every file, for the error that names them
        self.held = Holding(self.lost, self.notes)

    # --- one source --------------------------------------------------------------------------------------
    def read(self, source: Source) -> None:
        """Read a source by its preferred loss; by the next where that column holds no number."""
        names: dict[str, None] = {}
        attempt = 0
        while True:
            mark = self.held.mark()
            found = self._pass(source, names, attempt)
            if found is not None:
                usable, choices, more = found
                if usable or not more:
                    break
                attempt += 1
            self.held.back(mark)
        for quantity, choice in choices.items():
            self.used.setdefault(quantity, {})[str(choice)] = None

    def _pass(
        self, source: Source, names: dict[str, None], attempt: int
    ) -> tuple[int, dict[str, Choice], bool] | None:
        """Usable losses, what was read as what, and whether another loss could be tried.

        ``names`` are the source's columns as far as they are known.  Those that turn up are added; None says
        that one of them is preferred to what had been read, so that the source has to be read once more.
        """
        file = source.path.as_posix()
        usable, more, begun = 0, False, False
        choices: dict[str, Choice] = {}
        self.held.files.append(file)

        def reject(row: int, reason: str, example: str) -> None:
            self.lost.add(file, row, reason, example)

        try:
            for part in parts(source, reject):
                fresh = [name for name in part.columns if name not in names]
                names |= dict.fromkeys(fresh)
                if fresh or not begun:
                    chosen, more = self._choose(list(names), attempt)
                    if begun and chosen != choices:
                        return None
                    choices = chosen
                begun = True
                self.notes.update(dict.fromkeys(part.told))
                if "loss" in choices:
                    usable += self._absorb(part, choices, source, file)
                elif part.fixed:
                    break
        except Refused:
            raise
        except ValueError as error:  # the file as a whole; others may do
            self.lost.add(file, None, " ".join(str(error).split()))
            if not begun:
                return 0, {}, False
        self.seen.update(names)
        if not begun:
            self.lost.add(file, None, "no records")
        elif "loss" not in choices:
            self.lost.add(file, None, f"no loss column; its columns are {shown(names, 12)}")
            return 0, {}, False
        for quantity, name in self.wanted.items():
            if begun and quantity not in choices:
                self.lost.add(file, None, f"no column {name!r}, asked for as {quantity}")
        return usable, choices, more

    def _choose(self, names: list[str], attempt: int) -> tuple[dict[str, Choice], bool]:
        """What each quantity is read from, and whether there is a further loss."""
        found = candidates(names)
        choices = {quantity: ranked[0] for quantity, ranked in found.items()}
        losses = found.get("loss", [])
        if losses and "loss" not in self.wanted:
            choices["loss"] = losses[min(attempt, len(losses) - 1)]
        for quantity, name in self.wanted.items():
            exact = [n for n in names if n == name] or [n for n in names if normalise(n) == normalise(name)]
            if exact:
                choices = {q: choice for q, choice in choices.items() if choice.source != exact[0]}
                choices[quantity] = read_as(exact[0], quantity)
            else:
                choices.pop(quantity, None)
        for quantity in ("loss", *SCALES, "run"):
            rest = [c.source for c in found.get(quantity, []) if c != choices.get(quantity)]
            if quantity in choices and quantity not in self.wanted and rest:
                self.others.setdefault(quantity, {}).update(dict.fromkeys(rest))
        return choices, "loss" not in self.wanted and attempt + 1 < len(losses)

    # --- one piece ---------------------------------------------------------------------------------------
    def _absorb(self, part: Part, choices: dict[str, Choice], source: Source, file: str) -> int:
        """Clean one piece and keep it; the number of finite positive losses in it."""
        import pandas

        count = len(part.rows)
        stand = part.rows
        rows = np.arange(stand.start, stand.stop) if isinstance(stand, range) else np.array(stand, dtype=int)
        frame = pandas.DataFrame({"row": rows, "order": np.arange(self.held.order, self.held.order + count)})
        self.held.order += count
        frame["file"] = len(self.held.files) - 1
        is_log = "step" in choices
        labelled = ["run", "seed", "diverged", *([] if is_log else ["learning_rate"])]
        have = {
            quantity: choice.source for quantity, choice in choices.items() if choice.source in part.columns
        }
        raw = part.take([have[q] for q in _NUMBERS if q in have], [have[q] for q in labelled if q in have])
        cells = {quantity: raw[source] for quantity, source in have.items() if source in raw}
        state = self._numbers(part, choices, cells, frame)
        if "run" in cells:
            names = labels(cells["run"]).or_else(source.run)
        else:
            names = Labels.same(source.run, count)
        self._give(frame, names, state)
        out = self._faults(frame, cells, state, file)
        endless = (state["loss"] == NOT_FINITE) & ~out
        blank = (state["loss"] == BLANK) & ~out
        without = "no loss in this row (its other numbers are used by step)" if is_log else "loss is missing"
        for bad, reason in ((endless, "loss is not finite"), (blank, without)):
            self._leave(bad, reason, rows, cells.get("loss") if bad is endless else None, file)
        frame["loss"] = np.where(endless | blank, math.nan, frame["loss"].to_numpy())
        frame["event"] = np.where(endless, 2.0, np.where(blank, math.nan, 1.0))
        usable = int((~out & ~blank & ~endless).sum())
        keep = ~out if is_log else ~out & ~blank & ~endless
        if keep.any():
            seed, rate = (
                labels(cells[name], numeric=True) if name in cells and not skip else Labels.same("", count)
                for name, skip in (("seed", False), ("learning_rate", is_log))
            )
            frame["seed"] = self.held.seed_codes(seed)
            size = frame["params"].to_numpy() if "params" in frame else None
            column = choices["run"].source if "run" in choices else None
            frame["run"] = self.held.number(size, names, seed, rate, is_log, keep, column)
            self.held.keep(frame if keep.all() else frame[keep])
        return usable

    def _numbers(
        self, part: Part, choices: dict[str, Choice], cells: dict[str, Any], frame: pandas.DataFrame
    ) -> dict[str, Any]:
        """Fill the quantities into ``frame``; what each cell was (GOOD, BLANK, ...)."""
        state = {}
        for quantity in _NUMBERS:
            if quantity in cells:
                scale = choices[quantity].scale
                # 20B under "tokens (B)" is 2e10 or 2e19: a suffix and a unit together are no number
                suffixes = quantity in _SUFFIXED and scale == 1.0
                value, state[quantity] = numbers(cells[quantity], suffixes=suffixes, comma=part.comma)
                with np.errstate(over="ignore"):
                    frame[quantity] = value * scale
        if "loss" not in frame:
            frame["loss"], state["loss"] = math.nan, np.full(len(frame), BLANK, dtype=np.int8)
        return state

    def _faults(
        self, frame: pandas.DataFrame, cells: dict[str, Any], state: dict[str, Any], file: str
    ) -> Any:
        """Rows with a number that cannot be meant, entered in the ledger each under its first fault."""
        rows = frame["row"].to_numpy()
        out = np.zeros(len(frame), dtype=bool)

        def leave(bad: Any, reason: str, of: str | None) -> None:
            bad = bad & ~out
            self._leave(bad, reason, rows, None if of is None else cells.get(of), file)
            out[bad] = True

        checked = [name for name in (*SCALES, "unique_tokens", "step", "loss") if name in state]
        for name in checked:
            told = state[name]
            if not told.any():  # all of them GOOD: nearly always
                if name != "step":
                    leave(~(frame[name].to_numpy() > 0), f"{name} is not positive", name)
                continue
            leave(told == UNCLEAR, f"{name}: a comma or point that may be a decimal or a thousand", name)
            leave(told == TEXT, f"{name} is not a number", name)
            if name != "loss":
                leave(told == NOT_FINITE, f"{name} is not finite", name)
            if name != "step":
                leave((told == GOOD) & ~(frame[name].to_numpy() > 0), f"{name} is not positive", name)
        for name in checked:
            if name != "step":
                low, high = _PLAUSIBLE.get(name, _SIZES)
                value = frame[name].to_numpy()
                odd = (state[name] == GOOD) & ~((value >= low) & (value <= high))
                leave(odd, f"{name} is not between {low:g} and {high:g}", name)
        if "diverged" in cells:
            marked = labels(cells["diverged"])
            said = {name for name in marked.names if name.lower() in ("true", "1", "1.0", "yes", "diverged")}
            leave(marked.among(said), "the run is marked as diverged", None)
        return out

    def _leave(self, bad: Any, reason: str, rows: Any, cells: Any, file: str) -> None:
        if bad.any():
            first = int(np.argmax(bad))
            text = "" if cells is None else str(cells[first])[:40]
            self.lost.add(file, int(rows[first]), reason, text, int(bad.sum()))

    def _give(self, frame: pandas.DataFrame, names: Labels, state: dict[str, Any]) -> None:
        """Numbers that the caller gives for runs whose logs do not hold them."""
        for pattern, given in self.values.items():
            those = {name for name in names.names if fnmatch.fnmatchcase(name, pattern)}
            if not those:
                continue
            self.matched.add(pattern)
            here = names.among(those)
            for quantity, value in given.items():
                if quantity not in frame:
                    frame[quantity], state[quantity] = math.nan, np.full(len(frame), BLANK, dtype=np.int8)
                frame.loc[here, quantity] = value
                state[quantity][here] = GOOD
                self.used.setdefault(quantity, {})[f"given for {pattern}"] = None

    # --- the end -----------------------------------------------------------------------------------------
    def finish(self) -> tuple[pandas.DataFrame, frozenset[str]]:
        """The table of records, and the names of the runs that are logs.

        Raises
        ------
        ValueError
            Nothing is left, or something that was asked for by name is not there; says what was found.
        """
        kept = self.held.table()
        if kept is not None:
            unmatched = sorted(set(self.values) - self.matched)
            if unmatched:
                names = list(dict.fromkeys(key[0].rstrip("\0") for key in self.held.keys))
                raise ValueError(f"no run matches {unmatched[0]!r}; runs are {shown(names, 8)}")
            if (kept["event"] == 1.0).any():
                table, logs = runs_of(self.held, self.used)
                if len(table):
                    self._say()
                    return table, logs
        raise ValueError(self._complaint())

    def _complaint(self) -> str:
        names = list(self.seen)
        known = {normalise(name) for name in names}
        missing = [name for name in self.wanted.values() if normalise(name) not in known]
        if missing and names:
            return f"no file has a column {missing[0]!r}; the columns found are: {shown(names, 20)}"
        if "loss" not in self.used and names:
            return (
                f"no loss column was recognised among: {shown(names, 20)}; name it with columns loss=NAME "
                "(--columns)"
            )
        why = "; ".join(
            f"{Path(file).name[:80]}: {reason}" + (f" ({count} rows)" if row is not None else "")
            for (file, reason), (row, count, _) in list(self.lost.seen.items())[:4]
        )
        return f"no usable record is left: {why or 'the files are empty'}"

    def _say(self) -> None:
        for quantity, rest in self.others.items():
            taken = list(self.used.get(quantity, {}))
            others = [name for name in rest if name not in taken]
            if not others or not taken:
                continue
            more = f" and {len(others) - 4} more" if len(others) > 4 else ""
            named = shown(map(repr, others[:4]), 4) + more
            told = f"{quantity} is {taken[0]!r}; it might also be {named} (--columns {quantity}=NAME)."
            self.notes[told] = None
        losses = list(self.used.get("loss", {}))
        if len(losses) > 1:
            told = f"Files hold different losses, {shown(map(repr, losses), 8)}: are they the same quantity?"
            self.notes[told] = None


def _checked(pattern: str, given: Mapping[str, float | str]) -> dict[str, float]:
    out = {}
    for name, value in given.items():
        if name not in (*SCALES, "unique_tokens", "tokens_per_step"):
            raise ValueError(f"a value can be given for params, tokens, flops ..., not for {name!r}")
        out[name], state = number(str(value))
        if state != GOOD or out[name] <= 0:
            raise ValueError(f"{name} for {pattern!r} must be a positive number, not {value!r}")
    return out
