"""Real data: text of known origin as tokens, and windows of it in a known order.

Names load their file when first used, so that importing the room costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from allometry.data.corpus import Corpus
    from allometry.data.text import StandardLibrary, read_text
    from allometry.data.tokenizer import TextTokenizer, load_tokenizer
    from allometry.data.windows import StackedWindows, Windows, validation_windows

_HOMES = {
    "Corpus": "corpus",
    "StandardLibrary": "text",
    "read_text": "text",
    "TextTokenizer": "tokenizer",
    "load_tokenizer": "tokenizer",
    "StackedWindows": "windows",
    "Windows": "windows",
    "validation_windows": "windows",
}

__all__ = [
    "Corpus", "StackedWindows", "StandardLibrary", "TextTokenizer", "Windows", "load_tokenizer", "read_text",
    "validation_windows",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"allometry.data.{_HOMES[name]}"), name)
    raise AttributeError(f"allometry.data has no {name!r}; it has {', '.join(sorted(_HOMES))}")


def __dir__() -> list[str]:
    return sorted(_HOMES)
