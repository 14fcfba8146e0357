"""Plain text for a terminal: tables, facts, notes, none of it wider than a hundred columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

WIDE = 100


def aligned(facts: Sequence[tuple[str, str]]) -> list[str]:
    """Names and what is told of each, one a line, in two columns.

    >>> aligned([("error", "+0.1 %"), ("cost", "2 s")])
    ['error  +0.1 %', 'cost   2 s']
    """
    wide = max((len(name) for name, _ in facts), default=0)
    return [f"{name:<{wide}}  {told}" for name, told in facts]


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table's lines: the first column to the left, the others to the right; short rows are filled up.

    >>> columns(["", "low", "high"], [["E", "1.69", "1.8"]])
    ['    low  high', 'E  1.69   1.8']
    """
    table = [list(head)] + [[*row] + [""] * (len(head) - len(row)) for row in rows]
    wide = [max(len(row[i]) for row in table) for i in range(len(head))]
    return [
        "  ".join(
            f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}"
            for i, (cell, w) in enumerate(zip(row, wide, strict=True))
        )
        for row in table
    ]


def wrapped(note: str) -> list[str]:
    """A note as an item of a list.

    >>> wrapped("two seeds only")
    ['- Two seeds only.']
    """
    return textwrap.wrap(
        sentence(note), WIDE, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False
    )


def sentence(note: str) -> str:
    """With a capital, unless it begins with a name, and a full stop.

    >>> sentence("params = flops / 6"), sentence("tokens_b is odd")
    ('Params = flops / 6.', 'tokens_b is odd.')
    """
    first = note.split(" ", 1)[0]
    begun = note[:1].upper() + note[1:] if first.isalpha() else note
    return begun if begun.endswith((".", "!", "?")) else begun + "."


def cut(line: str) -> list[str]:
    """A line that is too long goes on in the next, further in."""
    if len(line) <= WIDE:
        return [line]
    return textwrap.wrap(line, WIDE, subsequent_indent=" " * 15, break_on_hyphens=False)


def percent(share: float) -> str:
    """A signed share.

    >>> percent(0.0123)
    '+1.23 %'
    """
    return f"{100.0 * share:+.2f} %"
