"""One small training loop: trunk and branches, exact resume, stacked replicas, one process or many."""

from typing import TYPE_CHECKING

from allometry.rooms import open_room

if TYPE_CHECKING:
    from allometry.train.checkpoint import Checkpointer, load
    from allometry.train.classify import classification_loss, evaluate_classifier, train_classifier
    from allometry.train.divergence import DivergenceRule
    from allometry.train.language import bits_per_byte, evaluate, next_token_loss, train_language_model
    from allometry.train.learning_rates import (
        best_learning_rate,
        learning_rate_sweep,
        max_stable_learning_rate,
    )
    from allometry.train.loop import TrainLog, fit
    from allometry.train.meter import Meter
    from allometry.train.parallel import launch, shard
    from allometry.train.recipes import Recipe, resnet_rs_recipe_
    from allometry.train.seeds import Seeds
    from allometry.train.stack import Stack, fit_stack
    from allometry.train.timeseries import score_forecaster, train_forecasters
    from allometry.train.transfer import RateTransfer, learning_rate_transfer, transfer_sweep

open_room(
    __name__,
    {
        "checkpoint": ["Checkpointer", "load"],
        "classify": ["classification_loss", "evaluate_classifier", "train_classifier"],
        "divergence": ["DivergenceRule"],
        "language": ["bits_per_byte", "evaluate", "next_token_loss", "train_language_model"],
        "learning_rates": ["best_learning_rate", "learning_rate_sweep", "max_stable_learning_rate"],
        "loop": ["TrainLog", "fit"],
        "meter": ["Meter"],
        "parallel": ["launch", "shard"],
        "recipes": ["Recipe", "resnet_rs_recipe_"],
        "seeds": ["Seeds"],
        "stack": ["Stack", "fit_stack"],
        "timeseries": ["score_forecaster", "train_forecasters"],
        "transfer": ["RateTransfer", "learning_rate_transfer", "transfer_sweep"],
    },
)

__all__ = [
    "Checkpointer", "DivergenceRule", "Meter", "RateTransfer", "Recipe", "Seeds", "Stack", "TrainLog",
    "best_learning_rate", "bits_per_byte", "classification_loss", "evaluate", "evaluate_classifier",
    "fit", "fit_stack", "launch", "learning_rate_sweep", "learning_rate_transfer", "load",
    "max_stable_learning_rate", "next_token_loss", "resnet_rs_recipe_", "score_forecaster", "shard",
    "train_classifier", "train_forecasters", "train_language_model", "transfer_sweep",
]  # fmt: skip
