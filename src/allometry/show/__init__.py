"""How results are shown: plain-text tables, pages that need no network, figures in one style."""

from typing import TYPE_CHECKING

from allometry.rooms import open_room

if TYPE_CHECKING:
    from allometry.show.drawing import save, style, write_atomically
    from allometry.show.markup import document
    from allometry.show.text import aligned, columns

open_room(
    __name__,
    {
        "drawing": ["save", "style", "write_atomically"],
        "markup": ["document"],
        "text": ["aligned", "columns"],
    },
)

__all__ = ["aligned", "columns", "document", "save", "style", "write_atomically"]
