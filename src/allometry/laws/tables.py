"""Tables: separated values in whatever dialect, and Parquet.

- The delimiter is the one that stands most often in the header; a comma may be the decimal point where a
  semicolon separates; lines before the header that begin with ``#`` are comments.
- A quote that is never closed costs the row in which it stands, not all that follow.
- Where a stretch of the file is plain (no quotes, as many cells in each row as in the header) it is parsed by
  pandas, and only in the columns that are asked for; all else cell by cell.  Both give the same numbers.
- The export of a W&B chart (a column a run) is turned into rows.
"""

from __future__ import annotations

import csv
import io
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from allometry.extras import need
from allometry.laws import pieces
from allometry.laws.columns import shown
from allometry.laws.pieces import Part, Reject, open_text

if TYPE_CHECKING:
    import pandas

__all__ = ["parquet", "separated"]

PLAIN = 500  # rows from which a plain stretch is worth handing to pandas
_RECOVERIES = 1000  # of broken quotes, each of which may cost reading 128 KiB again


def separated(path: Path, reject: Reject) -> Iterator[Part]:
    """Rows of separated values: comma, semicolon, tab or bar, told by the header.

    Raises
    ------
    ValueError
        There is no header, or none that can be read.
    """
    with open_text(path) as file:
        yield from _Table(file, path, reject).parts()


class _Lines:
    """Lines of a file, of which those just taken can be put back."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file
        self.back: deque[str] = deque()
        self.taken: list[str] = []
        self.number = 0  # of the last line taken

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.back.popleft() if self.back else next(self.file)
        self.taken.append(line)
        self.number += 1
        return line

    def put_back(self, count: int) -> None:
        """The last ``count`` lines taken are to be read again."""
        self.back.extendleft(reversed(self.taken[len(self.taken) - count :]))
        self.number -= count


class _Table:
    """One file of separated values."""

    def __init__(self, file: IO[str], path: Path, reject: Reject) -> None:
        self.name = path.name
        self.reject = reject
        self.lines = _Lines(file)
        for head in self.lines:
            if head.strip() and not head.startswith("#"):
                break
        else:
            raise ValueError(f"{path.name} is empty")
        bare = re.sub(r'"[^"]*"', "", head)
        self.delimiter = max("\t;,|", key=lambda mark: (bare.count(mark), mark == ","))
        if path.name.lower().endswith((".tsv", ".tsv.gz")):
            self.delimiter = "\t"
        self.lines.put_back(1)
        self.reader = csv.reader(self.lines, delimiter=self.delimiter, strict=True, skipinitialspace=True)
        try:
            self.names = [name.strip() for name in next(self.reader)]
        except (csv.Error, StopIteration):
            raise ValueError(f"the header of {path.name} cannot be read: {head[:60].strip()!r}") from None
        self.width = len(self.names)
        self.chart = _chart(self.names)
        self.comma: str | None = None if self.delimiter == ";" else "thousands"
        self.told: list[str] = []
        twice = sorted({name for name in self.names if name and self.names.count(name) > 1})
        if twice:
            named = shown(map(repr, twice), 8)
            self.told.append(f"{path.name} has {named} more than once; the first counts.")
        self.recoveries = 0
        self.rows: list[list[str]] = []
        self.numbers: list[int] = []

    def parts(self) -> Iterator[Part]:
        """The table in pieces."""
        limit = max(pieces.CELLS // self.width, 1000)
        empty = True
        while stretch := self.lines.file.read(8 * pieces.CELLS):
            stretch += self.lines.file.readline()
            block = self._plain(stretch)
            if block is not None:
                if self.rows:
                    yield self._flush()
                yield block
                empty = False
                continue
            self.lines.back.extend(io.StringIO(stretch, newline=""))
            while self.lines.back:
                self._row()
                if len(self.rows) >= limit:
                    yield self._flush()
                    empty = False
        if self.rows or empty:
            yield self._flush()

    # --- cell by cell ------------------------------------------------------------------------------------
    def _row(self) -> None:
        """Take the next row, or reject it."""
        lines, width = self.lines, self.width
        lines.taken.clear()
        try:
            row = next(self.reader)
        except StopIteration:
            return
        except csv.Error as error:
            self._broken(str(error))
            return
        if len(row) > width and not any(cell.strip() for cell in row[width:]):
            row = row[:width]
        if not any(cell.strip() for cell in row):
            return
        if len(row) != width:
            told = f"{len(row)} cells where the header has {width}"
            self.reject(lines.number, told, self.delimiter.join(row)[:40])
            return
        self.rows.append(row)
        self.numbers.append(lines.number)

    def _broken(self, said: str) -> None:
        """Reject the line in which a quote went wrong, and read on behind it."""
        lines = self.lines
        reason = "a quote stands in the middle of a cell"
        if "unexpected end" in said:
            reason = "a quote is opened and never closed"
        elif "limit" in said:
            reason = "a cell of more than 131,072 characters, or a quote that is never closed"
        rest = len(lines.taken) - 1
        begin = lines.number - rest
        self.recoveries += 1
        if self.recoveries <= _RECOVERIES:
            lines.put_back(rest)
            rest = 0
        for line in range(rest + 1):
            self.reject(begin + line, reason, lines.taken[line][:40].strip())

    def _flush(self) -> Part:
        if self.comma is None:
            self.comma = _comma(self.rows)
            if self.comma == "decimal":
                self.told.append(f"In {self.name} a comma is taken for the decimal point.")
        columns: dict[str, Sequence[Any]] = {}
        for i in range(self.width - 1, -1, -1):  # so that of two columns of one name the first stays
            columns[self.names[i]] = [row[i] for row in self.rows]
        ordered = {name: columns[name] for name in self.names}
        part = Part(ordered, self.numbers, self.comma or "thousands", self.told, fixed=True)
        self.rows, self.numbers, self.told = [], [], []
        return _melt(part, self.chart) if self.chart else part

    # --- in stretches ------------------------------------------------------------------------------------
    def _plain(self, stretch: str) -> _Block | None:
        """The stretch as a piece, if each of its lines is a row and every cell stands for itself."""
        if self.width < 2 or self.chart or '"' in stretch or "\0" in stretch:
            return None
        if self.delimiter != "," and "," in stretch:
            return None
        text = stretch.replace("\r\n", "\n") if "\r" in stretch else stretch
        if not text.endswith("\n"):
            text += "\n"
        if "\r" in text:
            return None
        data = text.encode()
        raw = np.frombuffer(data, dtype=np.uint8)
        ends = np.flatnonzero(raw == ord("\n"))
        marks = np.flatnonzero(raw == ord(self.delimiter))
        if len(ends) < PLAIN or len(marks) != (self.width - 1) * len(ends):
            return None
        own = marks.reshape(len(ends), self.width - 1)  # of each line, if it has as many as the header
        if (own[:, -1] > ends).any() or (own[1:, 0] < ends[:-1]).any():
            return None
        mark = re.escape(self.delimiter)
        if (np.diff(ends, prepend=-1) == self.width).any():  # a line of nothing but delimiters
            return None
        if (" " in text or "\t" in text) and re.search(rf"(?m)^[\s{mark}]*$", text):
            return None
        rows = range(self.lines.number + 1, self.lines.number + 1 + len(ends))
        self.lines.number += len(ends)
        columns: dict[str, Sequence[Any]] = dict.fromkeys(self.names, ())
        told, self.told = self.told, []
        return _Block(columns, rows, "thousands", told, True, data, self.delimiter, self.names)


@dataclass
class _Block(Part):
    """A plain stretch of a table, parsed when it is known what is wanted of it."""

    data: bytes = b""
    delimiter: str = ","
    header: Sequence[str] = ()

    def take(self, numeric: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
        place = {name: self.header.index(name) for name in (*numeric, *labels) if name in self.header}
        words = {place[name]: "category" for name in labels if name in place and name not in numeric}
        frame = self._parsed(sorted(set(place.values())), words)
        unsure = [i for i in frame if frame[i].dtype.kind == "f" and frame[i].isna().any()]
        if unsure and b"nan" in self.data.lower():  # NaN stands for a blank and for a cell that says so
            frame[unsure] = self._parsed(unsure, dict.fromkeys(unsure, "str")).astype(object)
        found: dict[str, Any] = {
            name: self.columns[name] for name in (*numeric, *labels) if name not in place
        }
        for name, i in place.items():
            column = frame[i]
            if i in words:
                found[name] = column.array
            elif column.dtype.kind in "iuf":
                found[name] = column.to_numpy(dtype=float)
            else:
                found[name] = column.astype(object).where(column.notna(), None).tolist()
        return found

    def _parsed(self, columns: list[int], types: dict[int, Any]) -> pandas.DataFrame:
        import pandas

        return pandas.read_csv(
            io.BytesIO(self.data), sep=self.delimiter, header=None, names=range(len(self.header)),
            usecols=columns, index_col=False, dtype=types, na_values=[""], keep_default_na=False,
            low_memory=False, quoting=csv.QUOTE_NONE, skipinitialspace=True, skip_blank_lines=False,
            **_exact(pandas.__version__),
        )  # fmt: skip


def _exact(version: str) -> dict[str, Any]:
    """What makes pandas read the nearest float: from 3.1 on it does so anyhow, and warns if asked."""
    major, minor = (int(number) for number in version.split(".")[:2])
    return {} if (major, minor) >= (3, 1) else {"float_precision": "round_trip"}


def _comma(rows: list[list[str]]) -> str:
    """What a comma means in a file that separates by semicolons."""
    cells = {cell.strip() for row in rows for cell in row if "," in cell}
    cells = {cell for cell in cells if re.fullmatch(r"[+-]?[\d.]*\d,\d+([eE][+-]?\d+)?", cell)}
    if any(not re.search(r",\d{3}$", cell) or re.match(r"[+-]?0,", cell) or "." in cell for cell in cells):
        return "decimal"
    return "unclear" if cells else "thousands"


def _chart(names: list[str]) -> dict[str, tuple[str, str]]:
    """Columns ``run - metric`` of a W&B chart's export, told by the ``__MIN`` and ``__MAX`` beside them."""
    held = set(names)
    found = {}
    for name in names:
        if f"{name}__MIN" in held and f"{name}__MAX" in held and " - " in name:
            run, metric = name.rsplit(" - ", 1)
            found[name] = run, metric
    return found


def _melt(part: Part, chart: dict[str, tuple[str, str]]) -> Part:
    others = [name for name in part.columns if name not in chart and not name.endswith(("__MIN", "__MAX"))
              and " - " not in name]  # fmt: skip
    metrics = list(dict.fromkeys(metric for _, metric in chart.values()))
    columns: dict[str, list[Any]] = {name: [] for name in [*others, "run", *metrics]}
    rows: list[int] = []
    for run in dict.fromkeys(run for run, _ in chart.values()):
        mine = {metric: name for name, (owner, metric) in chart.items() if owner == run}
        rows += part.rows
        for name in others:
            columns[name] += part.columns[name]
        columns["run"] += [run] * len(part.rows)
        for metric in metrics:
            columns[metric] += part.columns[mine[metric]] if metric in mine else [None] * len(part.rows)
    return Part(dict(columns), rows, part.comma, part.told, fixed=True)


def parquet(path: Path) -> Iterator[Part]:
    """Rows of Parquet, which needs pyarrow.

    Raises
    ------
    ValueError
        It is not Parquet, or damaged.
    """
    library = need("pyarrow.parquet", extra="logs", purpose="reading Parquet")
    arrow = need("pyarrow", extra="logs", purpose="reading Parquet")
    try:
        with library.ParquetFile(path) as file:
            width = max(len(file.schema_arrow.names), 1)
            row = 1
            for batch in file.iter_batches(batch_size=max(pieces.CELLS // width, 1000)):
                count = batch.num_rows
                yield Part(
                    {name: batch.column(i).to_pylist() for i, name in enumerate(batch.schema.names)},
                    range(row, row + count),
                    fixed=True,
                )
                row += count
            if row == 1:
                yield Part({name: [] for name in file.schema_arrow.names}, [], fixed=True)
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"{path.name} is not Parquet: {' '.join(str(error).split())[:80]}") from None
