"""Reference model families with one size dial, and ways to choose and replace modules of any model."""

import importlib
from typing import Any

_PUBLIC = {
    "GPT": "gpt",
    "GPTConfig": "gpt",
    "KVCache": "attention",
    "MLP": "mlp",
    "ConvNet": "convnet",
    "attention": "attention",
    "rotary": "attention",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"allometry.models.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'allometry.models' has no attribute {name!r}")
