"""Real data: text of known origin as tokens, and windows of it in a known order.

Names load their file when first used, so that importing the room costs nothing.
"""

from typing import TYPE_CHECKING

from allometry.rooms import open_room

if TYPE_CHECKING:
    from allometry.data.augment import Augment, AugmentedBatches
    from allometry.data.boolean import BooleanPrograms, BooleanTasks
    from allometry.data.corpus import Corpus
    from allometry.data.corrupt import ColoredImages, FlippedLabels, add_noise, colored, flip_labels
    from allometry.data.images import ImageBatches, Images, digits, fashion_mnist
    from allometry.data.lcdb import learning_curves
    from allometry.data.long_range import (
        band_limited_noise,
        copy_task,
        delay_task,
        pixel_sequences,
    )
    from allometry.data.pools import PoolBatches, PoolSampler, score_pools
    from allometry.data.rand_augment import RandAugment
    from allometry.data.source_code import CompletionTask, Function, completion_tasks, docstrings, functions
    from allometry.data.synthetic_series import SyntheticSeries
    from allometry.data.text import StandardLibrary, read_text
    from allometry.data.timeseries import SeriesSet, WindowSampler, real_series
    from allometry.data.tokenizer import TextTokenizer, load_tokenizer
    from allometry.data.windows import StackedWindows, Windows, validation_windows

open_room(
    __name__,
    {
        "augment": ["Augment", "AugmentedBatches"],
        "boolean": ["BooleanPrograms", "BooleanTasks"],
        "corpus": ["Corpus"],
        "corrupt": ["ColoredImages", "FlippedLabels", "add_noise", "colored", "flip_labels"],
        "images": ["ImageBatches", "Images", "digits", "fashion_mnist"],
        "lcdb": ["learning_curves"],
        "long_range": ["band_limited_noise", "copy_task", "delay_task", "pixel_sequences"],
        "pools": ["PoolBatches", "PoolSampler", "score_pools"],
        "rand_augment": ["RandAugment"],
        "source_code": ["CompletionTask", "Function", "completion_tasks", "docstrings", "functions"],
        "synthetic_series": ["SyntheticSeries"],
        "text": ["StandardLibrary", "read_text"],
        "timeseries": ["SeriesSet", "WindowSampler", "real_series"],
        "tokenizer": ["TextTokenizer", "load_tokenizer"],
        "windows": ["StackedWindows", "Windows", "validation_windows"],
    },
)

__all__ = [
    "Augment", "AugmentedBatches", "BooleanPrograms", "BooleanTasks", "ColoredImages", "CompletionTask",
    "Corpus", "FlippedLabels", "Function", "ImageBatches", "Images", "PoolBatches", "PoolSampler",
    "RandAugment", "SeriesSet", "StackedWindows", "StandardLibrary", "SyntheticSeries", "TextTokenizer",
    "WindowSampler", "Windows", "add_noise", "band_limited_noise", "colored", "completion_tasks", "copy_task",
    "delay_task", "digits", "docstrings", "fashion_mnist", "flip_labels", "functions", "learning_curves",
    "load_tokenizer", "pixel_sequences", "read_text", "real_series", "score_pools", "validation_windows",
]  # fmt: skip
