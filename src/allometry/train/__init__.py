"""One small training loop: trunk and branches, exact resume, stacked replicas, one process or many."""

import importlib
from typing import Any

_PUBLIC = {
    "Checkpointer": "checkpoint",
    "DivergenceRule": "divergence",
    "Meter": "meter",
    "Seeds": "seeds",
    "Stack": "stack",
    "TrainLog": "loop",
    "best_learning_rate": "learning_rates",
    "bits_per_byte": "language",
    "evaluate": "language",
    "fit": "loop",
    "fit_stack": "stack",
    "launch": "parallel",
    "learning_rate_sweep": "learning_rates",
    "load": "checkpoint",
    "max_stable_learning_rate": "learning_rates",
    "next_token_loss": "language",
    "shard": "parallel",
    "train_language_model": "language",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        from allometry.extras import need

        need("torch", extra="train", purpose="allometry.train")
        return getattr(importlib.import_module(f"allometry.train.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'allometry.train' has no attribute {name!r}")
