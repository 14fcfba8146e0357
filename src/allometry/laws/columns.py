"""Which column of somebody's log is what, and which number its cells hold.

Every trainer has names of its own for the same dozen quantities.  They are recognised by lists, in a fixed
order of preference, and nothing is guessed from the values:

- Case and separators do not matter (``Model Size``, ``model_size``, ``modelSize``); a folder before the name
  (``throughput/total_tokens``) or a place where trackers put it (``config.lr``, ``metrics.loss``) does not
  either, except for losses.
- Losses: validation before plain before training before "best so far"; within each the usual names first,
  then whatever ends in ``loss``, in the order of the file.  Auxiliary losses (router, z, KL ...) never.
- Parameters: without embeddings before the rest, as laws of language models count them.
- A unit in the name counts: ``total_training_Gflops``, ``Tokens (B)``, ``tokens_B``, ``pf_days``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SCALES", "Choice", "candidates", "normalise", "number", "numbers", "read_as", "shown"]

GOOD, BLANK, TEXT, NOT_FINITE, UNCLEAR = range(5)
SCALES = ("params", "tokens", "flops")

_NAMES: dict[str, tuple[str, ...]] = {
    "params": (
        "non_embedding_params", "non_embedding_parameters", "num_non_embedding_params",
        "n_params_non_embedding", "params_non_embedding", "non_embedding", "nonembedding_params",
        "params", "n_params", "num_params", "parameters", "n_parameters", "num_parameters", "model_size",
        "model_params", "model_parameters", "param_count", "parameter_count", "total_params",
        "total_parameters", "trainable_params", "n",
    ),
    "tokens": (
        "tokens", "n_tokens", "num_tokens", "train_tokens", "training_tokens", "total_tokens", "tokens_seen",
        "num_tokens_seen", "num_input_tokens_seen", "tokens_trained", "consumed_tokens", "token_count",
        "total_train_tokens", "num_train_tokens", "dataset_size", "d",
    ),
    "flops": (
        "flops", "flop", "total_flops", "total_flop", "training_flops", "training_flop", "train_flops",
        "total_training_flops", "total_train_flops", "total_flos", "compute", "train_compute",
        "training_compute", "total_compute", "pf_days", "petaflop_days", "petaflops_days", "c",
    ),
    "unique_tokens": ("unique_tokens", "n_unique_tokens", "num_unique_tokens", "unique"),
    "seed": ("seed", "random_seed", "rng_seed", "model_seed", "init_seed"),
    "learning_rate": (
        "learning_rate_peak", "peak_learning_rate", "peak_lr", "lr_peak", "max_learning_rate", "max_lr",
        "learning_rate", "lr", "base_lr", "init_lr",
    ),
    "run": ("run", "run_id", "run_name", "runname", "id", "name", "experiment", "exp_name"),
    "step": ("step", "global_step", "train_step", "training_step", "trainer_global_step", "iteration",
             "iter", "iters", "update", "num_updates"),
    "tokens_per_step": ("tokens_per_step", "batch_size_in_tokens", "batch_size_tokens", "tokens_per_batch",
                        "global_batch_size_tokens", "global_batch_tokens"),
    "diverged": ("diverged", "is_diverged", "has_diverged"),
}  # fmt: skip
CANONICAL = ("run", "params", "tokens", "flops", "unique_tokens", "loss", "seed", "learning_rate", "step",
             "tokens_per_step", "diverged")  # fmt: skip

_LOSSES = (
    ("val_loss", "validation_loss", "valid_loss", "eval_loss", "loss_val", "loss_validation", "loss_valid",
     "loss_eval", "dev_loss", "heldout_loss", "held_out_loss", "test_loss", "loss_test"),
    ("loss", "final_loss", "cross_entropy_loss", "cross_entropy", "crossentropy", "ce_loss", "lm_loss", "nll",
     "nll_loss", "bits_per_byte", "bpb"),
    ("train_loss", "training_loss", "loss_train", "loss_training"),
)  # fmt: skip
_AUXILIARY = {
    "z", "aux", "auxiliary", "balance", "balancing", "router", "kl", "reg", "regularization", "distillation",
    "commitment", "std", "stderr", "sem", "var", "delta", "scale", "spike", "max",
}  # fmt: skip
_HELD_OUT = {"val", "valid", "validation", "eval", "evaluation", "dev", "test", "heldout"}
_PLACES = ("config_", "summary_", "hparams_", "hyperparameters_", "params_", "metrics_", "tags_mlflow_",
           "param_", "metric_")  # fmt: skip
_SUFFIX = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_COUNTS = ("params", "tokens", "unique_tokens")
_AT_END = re.compile(r"(\w{2,}?)_(?:in_)?([kmbgt]|thousands?|millions?|billions?|trillions?)")
_BLANKS = {"", "na", "n/a", "null", "none", "-"}


@dataclass(frozen=True)
class Choice:
    """A source column, and what its numbers are multiplied by."""

    source: str
    scale: float = 1.0

    def __str__(self) -> str:
        return self.source if self.scale == 1.0 else f"{self.source} × {self.scale:g}"


def normalise(name: str) -> str:
    """Lower case words joined by underscores.

    >>> normalise("Model Size"), normalise("val/CrossEntropyLoss"), normalise("non-embedding")
    ('model_size', 'val_cross_entropy_loss', 'non_embedding')
    """
    spread = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", str(name))
    return re.sub(r"[^0-9a-z]+", "_", spread.lower()).strip("_")


def shown(names: Iterable[str], most: int) -> str:
    """Names for a sentence: no more than ``most``, none longer than 60 characters.

    >>> shown(["loss", "x" * 100], 1)
    'loss, ...'
    """
    short = [name if len(name) <= 60 else f"{name[:57]}..." for name in names]
    return ", ".join(short[:most]) + (", ..." if len(short) > most else "")


def candidates(names: Iterable[str]) -> dict[str, list[Choice]]:
    """For each quantity the columns that may hold it, the preferred one first.

    >>> candidates(["Step", "N", "val loss", "train_loss"])["loss"]
    [Choice(source='val loss', scale=1.0), Choice(source='train_loss', scale=1.0)]
    """
    found: dict[str, list[tuple[tuple[int, ...], Choice]]] = {}
    seen: set[str] = set()
    for column, name in enumerate(names):
        if name in seen:
            continue
        seen.add(name)
        plain, unit = _unit(str(name))
        whole = normalise(plain)
        rank = _loss_rank(whole)
        if rank is not None:
            found.setdefault("loss", []).append(((*rank, column), Choice(name)))
            continue
        options = [whole, *(whole.removeprefix(place) for place in _PLACES if whole.startswith(place))]
        options.append(normalise(re.split(r"[/.]", plain)[-1]))
        best = None
        for how, option in enumerate(options):
            for quantity, known in _NAMES.items():
                scale, bare = _within(option, quantity)
                scale *= unit
                if bare in known:
                    rank_here = (known.index(bare), how, column)
                    if best is None or rank_here < best[1]:
                        best = quantity, rank_here, scale
        if best is not None:
            found.setdefault(best[0], []).append((best[1], Choice(name, best[2])))
    return {quantity: [choice for _, choice in sorted(ranked, key=lambda pair: pair[0])]
            for quantity, ranked in found.items()}  # fmt: skip


def read_as(name: str, quantity: str) -> Choice:
    """A column that the caller names for a quantity; a unit in its name counts.

    >>> read_as("seen [B]", "tokens"), read_as("B", "tokens").scale
    (Choice(source='seen [B]', scale=1000000000.0), 1.0)
    """
    plain, scale = _unit(name)
    scale *= _within(normalise(plain), quantity)[0]
    return Choice(name, scale if quantity in (*SCALES, *_COUNTS, "tokens_per_step") else 1.0)


def _loss_rank(name: str) -> tuple[int, int] | None:
    """Class and place of a loss among losses, or None for what is not one."""
    for places in ("", *_PLACES):
        bare = name.removeprefix(places)
        for kind, known in enumerate(_LOSSES):
            if bare in known:
                return kind, known.index(bare)
    words = name.split("_")
    if words[-1] not in ("loss", "nll", "crossentropyloss") and words[-2:] != ["cross", "entropy"]:
        return None
    if _AUXILIARY & set(words):
        return None
    if {"best", "min", "lowest"} & set(words):
        return 3, 0
    if _HELD_OUT & set(words):
        return 0, 99
    return (2, 99) if {"train", "training"} & set(words) else (1, 99)


def _unit(name: str) -> tuple[str, float]:
    """``Tokens (B)`` as its name and 1e9."""
    found = re.fullmatch(r"(.*?)[\s_]*[(\[]\s*([kmbgt]|thousands?|millions?|billions?|trillions?)\s*[)\]]\s*",
                         name, re.IGNORECASE)  # fmt: skip
    return (name, 1.0) if found is None else (found.group(1), _SUFFIX[found.group(2)[0].lower()])


def _within(name: str, quantity: str) -> tuple[float, str]:
    """A unit within the name: ``tokens_b`` as 1e9 and ``tokens``, ``gflops`` as 1e9 and ``flops``."""
    if quantity == "flops":
        return _flops_unit(name)
    found = _AT_END.fullmatch(name)
    if found is None or quantity not in _COUNTS or found.group(1) not in _NAMES[quantity]:
        return 1.0, name
    return _SUFFIX[found.group(2)[0]], found.group(1)


def _flops_unit(name: str) -> tuple[float, str]:
    """``total_training_gflops`` as 1e9 and ``total_training_flops``."""
    if name in ("pf_days", "petaflop_days", "petaflops_days"):
        return 1e15 * 86_400.0, name
    found = re.fullmatch(r"(.*_)?([kmgtpez])(flops?)", name)
    if found is None:
        return 1.0, name
    return 1000.0 ** ("kmgtpez".index(found.group(2)) + 1), (found.group(1) or "") + found.group(3)


def number(text: str, *, suffixes: bool = True, comma: str = "thousands") -> tuple[float, int]:
    """The number that a cell's text holds, and GOOD, BLANK, TEXT, NOT_FINITE or UNCLEAR.

    Parameters
    ----------
    text : str
    suffixes : bool
        Whether ``70M``, ``2.1B`` and ``300 k`` are numbers.
    comma : {"thousands", "decimal", "unclear"}
        What a comma may be.  Unclear: where it could be either, the cell is refused.

    Examples
    --------
    >>> number("70M")[0], number("1,234")[0], number("3,21", comma="decimal")[0], number("2e9")[0]
    (70000000.0, 1234.0, 3.21, 2000000000.0)
    """
    bare = text.strip().replace("\u2212", "-")
    if bare.lower() in _BLANKS:
        return math.nan, BLANK
    factor = 1.0
    if suffixes and bare[-1].lower() in _SUFFIX and bare[:1] in "+-.0123456789":
        factor, bare = _SUFFIX[bare[-1].lower()], bare[:-1].rstrip()
    if comma == "decimal" and re.fullmatch(r"[+-]?[1-9]\d{0,2}(\.\d{3})+", bare):
        if bare.count(".") == 1:  # 1.234 beside 3,21: a thousand, or one and a bit?
            return math.nan, UNCLEAR
        bare = bare.replace(".", "")
    if "," in bare:
        if comma == "decimal":
            bare = bare.replace(".", "").replace(",", ".") if bare.count(",") == 1 else "x"
        elif not re.fullmatch(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?([eE][+-]?\d+)?", bare):
            return math.nan, TEXT
        elif comma == "unclear":
            return math.nan, UNCLEAR
        else:
            bare = bare.replace(",", "")
    try:
        value = float(bare) * factor
    except ValueError:
        return math.nan, TEXT
    return (value, GOOD) if math.isfinite(value) else (value, NOT_FINITE)


def numbers(
    values: Sequence[Any] | NDArray[np.float64], *, suffixes: bool = True, comma: str = "thousands"
) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    """Cells as numbers ``(n,)`` (NaN where there is none) and what each was (GOOD, BLANK, ...).

    In an array of floats, of a table that was parsed already, NaN is a blank.
    """
    if isinstance(values, np.ndarray):
        finite = np.isfinite(values)
        return values, np.where(finite, GOOD, np.where(np.isnan(values), BLANK, NOT_FINITE)).astype(np.int8)
    kinds = {type(value) for value in values}
    if kinds <= {str, float, int} and comma != "decimal":
        try:  # all of them plain numbers: nearly every file
            out = np.array(values, dtype=object).astype(float)
            return out, np.where(np.isfinite(out), GOOD, NOT_FINITE).astype(np.int8)
        except (ValueError, OverflowError):
            pass
    out = np.full(len(values), math.nan)
    state = np.full(len(values), BLANK, dtype=np.int8)
    known: dict[str, tuple[float, int]] = {}
    for i, value in enumerate(values):
        if value is None:
            continue
        if isinstance(value, str):
            if value not in known:
                if len(known) > 100_000:  # all different: remembering them costs more than it saves
                    known.clear()
                known[value] = number(value, suffixes=suffixes, comma=comma)
            out[i], state[i] = known[value]
        elif isinstance(value, (bool, np.bool_)):
            state[i] = TEXT
        else:
            try:
                out[i] = float(value)
                state[i] = GOOD if math.isfinite(out[i]) else NOT_FINITE
            except OverflowError:
                state[i] = NOT_FINITE
            except (TypeError, ValueError):
                state[i] = TEXT
    return out, state
