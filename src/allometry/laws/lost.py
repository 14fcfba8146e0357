"""The ledger of rows that are left out: which, from which file, and why.

What is dropped in silence is believed to have been read, so nothing is dropped without an entry here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

__all__ = ["Lost"]


class Lost:
    """Rows left out, counted by file and reason."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, str], list[Any]] = {}
        self._since: dict[tuple[str, str], int] = {}

    def add(self, file: str, row: int | None, reason: str, example: str = "", count: int = 1) -> None:
        """Enter rows of a file, of which ``row`` is the first (None: the file as a whole)."""
        entry = self.seen.setdefault((file, reason), [row, 0, example])
        entry[1] += count
        self._since[file, reason] = self._since.get((file, reason), 0) + count

    def mark(self) -> None:
        """Remember this state for `back`."""
        self._since = {}

    def back(self) -> None:
        """Strike out what was entered since `mark`."""
        for key, count in self._since.items():
            self.seen[key][1] -= count
            if not self.seen[key][1]:
                del self.seen[key]
        self._since = {}

    def rows(self, files: Sequence[str], rows: pandas.DataFrame, reason: str) -> None:
        """Enter all ``rows`` of a table of records, whose ``file`` is a number of ``files``."""
        for number, mine in rows.groupby("file"):
            self.add(files[int(number)], int(mine["row"].iloc[0]), reason, "", len(mine))

    def table(self) -> pandas.DataFrame:
        """``file``, ``row`` (the first), ``count``, ``reason``, ``example``."""
        import pandas

        rows = [(file, row, count, reason, example)
                for (file, reason), (row, count, example) in self.seen.items()]  # fmt: skip
        frame = pandas.DataFrame(rows, columns=["file", "row", "count", "reason", "example"])
        return frame.astype({"row": "Int64", "count": int})
