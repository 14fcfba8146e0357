"""Real data: text of known origin as tokens, and windows of it in a known order.

Names load their file when first used, so that importing the room costs nothing.
"""

from typing import TYPE_CHECKING

from allometry.rooms import open_room

if TYPE_CHECKING:
    from allometry.data.corpus import Corpus
    from allometry.data.text import StandardLibrary, read_text
    from allometry.data.tokenizer import TextTokenizer, load_tokenizer
    from allometry.data.windows import StackedWindows, Windows, validation_windows

open_room(
    __name__,
    {
        "corpus": ["Corpus"],
        "text": ["StandardLibrary", "read_text"],
        "tokenizer": ["TextTokenizer", "load_tokenizer"],
        "windows": ["StackedWindows", "Windows", "validation_windows"],
    },
)

__all__ = [
    "Corpus", "StackedWindows", "StandardLibrary", "TextTokenizer", "Windows", "load_tokenizer", "read_text",
    "validation_windows",
]  # fmt: skip
