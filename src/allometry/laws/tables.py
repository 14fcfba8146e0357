"""Tables: separated values in whatever dialect, and Parquet.

The delimiter is the one that stands most often in the header, a comma may be the decimal point where a
semicolon separates, lines before the header that begin with ``#`` are comments, and the export of a W&B chart
(a column a run) is turned into rows.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from allometry.extras import need
from allometry.laws import pieces
from allometry.laws.pieces import Part, Reject, open_text

__all__ = ["parquet", "separated"]


def separated(path: Path, reject: Reject) -> Iterator[Part]:
    """Rows of separated values: comma, semicolon, tab or bar, told by the header."""
    with open_text(path) as file:
        yield from _rows(file, path, reject)


def _rows(file: IO[str], path: Path, reject: Reject) -> Iterator[Part]:
    comments, head = 0, ""
    for head in file:
        comments += 1
        if head.strip() and not head.startswith("#"):
            break
    else:
        raise ValueError(f"{path.name} is empty")
    bare = re.sub(r'"[^"]*"', "", head)
    delimiter = max("\t;,|", key=lambda mark: (bare.count(mark), mark == ","))
    if path.name.lower().endswith((".tsv", ".tsv.gz")):
        delimiter = "\t"

    def again() -> Iterator[str]:
        yield head
        yield from file

    reader = csv.reader(again(), delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        names = [name.strip() for name in next(reader)]
    except (csv.Error, StopIteration):
        raise ValueError(f"the header of {path.name} cannot be read: {head[:60].strip()!r}") from None
    told = []
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        told.append(f"{path.name} has {', '.join(map(repr, twice))} more than once; the first counts.")
    width = len(names)
    chart = _chart(names)
    comma = "thousands"
    limit = max(pieces.CELLS // max(width, 1), 1000)
    rows: list[list[str]] = []
    numbers: list[int] = []
    first = True

    def flush() -> Part:
        nonlocal comma, first
        if first and delimiter == ";":
            comma = _comma(rows)
            if comma == "decimal":
                told.append(f"In {path.name} a comma is taken for the decimal point.")
        columns: dict[str, Sequence[Any]] = {}
        for i in range(width - 1, -1, -1):  # so that of two columns of one name the first stays
            columns[names[i]] = [row[i] for row in rows]
        ordered = {name: columns[name] for name in names}
        part = Part(ordered, list(numbers), comma, told if first else [], fixed=True)
        first = False
        return _melt(part, chart) if chart else part

    while True:
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            said = str(error)
            reason = "a quote stands in the middle of a cell"
            if "unexpected end" in said:
                reason = "a quote is opened and never closed: nothing after it can be read"
            elif "limit" in said:
                reason = "a cell of more than 131,072 characters (a quote that is never closed?)"
            reject(reader.line_num + comments - 1, reason, "")
            continue
        line = reader.line_num + comments - 1
        if len(row) > width and not any(cell.strip() for cell in row[width:]):
            row = row[:width]
        if len(row) != width:
            if not row or not any(cell.strip() for cell in row):
                continue
            reject(line, f"{len(row)} cells where the header has {width}", delimiter.join(row)[:40])
            continue
        if width > 1 and not row[0] and not any(row):
            continue
        rows.append(row)
        numbers.append(line)
        if len(rows) >= limit:
            yield flush()
            rows, numbers = [], []
    if rows:
        yield flush()
    elif first:
        yield Part({name: [] for name in names}, [], comma, told, fixed=True)


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
