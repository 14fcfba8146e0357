"""A piece of a log in memory: cells by column, and what turns text and records into one.

A log of any length is read as a row of pieces, each of at most a million cells, so that memory depends on the
piece and not on the file.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

__all__ = ["Part", "Reject", "batches", "flat", "open_text", "opening"]

Reject = Callable[[int, str, str], None]  # row, reason, the text itself
CELLS = 1_000_000  # of a piece; bounds the memory of a file of any length and width
_RECORDS = 100_000


@dataclass
class Part:
    """Some rows of a source.

    Attributes
    ----------
    columns : dict
        Raw cells by column name.
    rows : sequence of int
        The row of the source in which each stands.
    comma : {"thousands", "decimal", "unclear"}
        What a comma in a number may be; see `allometry.laws.columns.number`.
    told : list of str
        Choices made in reading, one sentence each.
    fixed : bool
        Whether later pieces have the same columns.
    """

    columns: dict[str, Sequence[Any]]
    rows: Sequence[int]
    comma: str = "thousands"
    told: list[str] = field(default_factory=list)
    fixed: bool = False

    def take(self, numeric: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
        """Cells of the columns named: those that are to be numbers, and those that are to be labels.

        Raw cells; or, of a plain stretch of a table, numbers as an array, NaN for a blank, and labels as
        pandas' categories.
        """
        return {name: self.columns[name] for name in (*numeric, *labels)}


def open_text(path: Path) -> IO[str]:
    """A text file, gzipped or not, in UTF-8 or (with its mark) UTF-16; what is neither becomes U+FFFD."""
    opener: Any = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rb") as raw:
        head = raw.read(4)
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return opener(path, "rt", encoding=encoding, errors="replace", newline="")


def opening(path: Path) -> str:
    """The first 4,096 characters without the blanks before them; ``""`` for what is no text.

    Raises
    ------
    ValueError
        A ``.gz`` that is none.
    """
    try:
        with open_text(path) as lines:
            return lines.read(4096).lstrip()
    except (gzip.BadGzipFile, EOFError):
        raise ValueError(f"{path.name} is not a gzip file, or is cut short") from None
    except UnicodeError:
        return ""


def batches(
    records: Iterable[tuple[int, dict[str, Any]]], constants: dict[str, Any] | None = None
) -> Iterator[Part]:
    """Records with their rows as pieces; ``constants`` are columns of one value, where no record has them.

    >>> next(batches([(1, {"a": 2}), (3, {"b": 4})])).columns
    {'a': [2, None], 'b': [None, 4]}
    """
    held: list[tuple[int, dict[str, Any]]] = []
    cells = 0
    for row, record in records:
        held.append((row, record))
        cells += len(record)
        if cells >= CELLS or len(held) >= _RECORDS:
            yield _part(held, constants)
            held, cells = [], 0
    if held:
        yield _part(held, constants)


def _part(held: list[tuple[int, dict[str, Any]]], constants: dict[str, Any] | None) -> Part:
    names = list({name: None for _, record in held for name in record})
    columns: dict[str, Sequence[Any]] = {name: [record.get(name) for _, record in held] for name in names}
    for name, value in (constants or {}).items():
        columns.setdefault(name, [value] * len(held))
    return Part(columns, [row for row, _ in held])


def flat(record: dict[str, Any], before: str = "", depth: int = 0) -> dict[str, Any]:
    """Nested settings by dotted names; lists are no numbers and stay out.

    >>> flat({"model": {"params": {"value": 7e9, "desc": None}, "heads": [1, 2]}})
    {'model.params': 7000000000.0}
    """
    out: dict[str, Any] = {}
    for key, value in record.items():
        name = f"{before}{key}"
        if isinstance(value, dict):
            if set(value) >= {"value"} and set(value) <= {"value", "desc"}:  # W&B's settings
                out[name] = value["value"] if not isinstance(value["value"], (dict, list)) else None
            elif depth < 4:
                out |= flat(value, f"{name}.", depth + 1)
        elif not isinstance(value, list):
            out[name] = value
    return out
