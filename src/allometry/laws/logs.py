"""Logs as trainers and trackers leave them: where they lie, what each is, and its rows in pieces.

Tables (CSV, TSV, JSON lines, JSON, Parquet; all but the last also gzipped) and folders: TensorBoard event
files, Weights & Biases exports and offline runs, MLflow's file store, ``trainer_state.json`` of Hugging Face
Trainer, ``metrics.csv`` of Lightning with the ``hparams.yaml`` beside it.

- A `Source` is what becomes one run, unless a column names the runs: a file, or the folder of a tracker.
- A `Part` is a piece of it: raw cells by column, with row numbers for what must be left out.
- Whatever cannot be read goes to a `Reject`, row by row; only what makes a whole file unreadable raises.
"""

from __future__ import annotations

import glob
import gzip
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from allometry.laws import documents, tables, trackers
from allometry.laws.pieces import Part, Reject, batches, opening

__all__ = ["Part", "Source", "find", "parts"]

_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".csv.gz", ".tsv.gz", ".jsonl.gz",
           ".json.gz")  # fmt: skip
_NOT_LOGS = re.compile(
    r"config\.json|.*_config\.json|tokenizer.*\.json|vocab\.json|special_tokens_map\.json|.*\.index\.json"
    r"|wandb-.*\.json|(all|train|eval|test)_results\.json|package(-lock)?\.json|added_tokens\.json"
)


@dataclass(frozen=True)
class Source:
    """One file or folder: what it is, where it lies, and the name of the run that it is."""

    kind: str
    path: Path
    run: str


# --- finding -----------------------------------------------------------------------------------------------
def find(paths: Sequence[str | Path], skip: Callable[[Path, str], None]) -> list[Source]:
    """Every source under files, folders and patterns, in order; ``skip`` hears what is passed over and why.

    Raises
    ------
    FileNotFoundError
        A path or pattern matches nothing, or a folder holds no log.
    """
    found: list[tuple[str, Path, Path]] = []
    for given in paths:
        text = os.path.expanduser(str(given))
        if os.path.exists(text):
            matches = [text]
        else:
            matches = sorted(glob.glob(text, recursive=True))
            if not matches:
                raise FileNotFoundError(f"no file or folder matches {str(given)!r}")
        before = len(found)
        for match in matches:
            path = Path(match)
            found += _walk(path, skip) if path.is_dir() else [_file(path)]
        if len(found) == before:
            raise FileNotFoundError(
                f"{str(given)!r} holds no log that is known: {', '.join(_TABLES[:6])}, TensorBoard events, "
                "trainer_state.json, MLflow or W&B runs"
            )
    unique = list({(kind, path.resolve()): (kind, path, anchor) for kind, path, anchor in found}.values())
    anchors = [anchor.absolute() for _, _, anchor in unique]
    home = os.path.commonpath([anchor.parent for anchor in anchors]) if anchors else ""
    return [
        Source(kind, path, anchor.relative_to(home).as_posix())
        for (kind, path, _), anchor in zip(unique, anchors, strict=True)
    ]


def _file(path: Path) -> tuple[str, Path, Path]:
    """Kind, path and the path that names the run."""
    name = path.name.lower()
    if "tfevents" in name:
        return "tensorboard", path, path.parent if path.parent.name else path
    if name.endswith(".wandb"):
        return "wandb", path, path.parent.absolute()
    if name == "trainer_state.json":
        folder = path.absolute().parent
        return "table", path, folder.parent if folder.name.startswith("checkpoint-") else folder
    if name == "metrics.csv":
        return "table", path, path.absolute().parent
    stem = re.sub(r"(\.(csv|tsv|jsonl|ndjson|json|parquet|txt|log))?(\.gz)?$", "", path.name, flags=re.I)
    return "table", path, path.with_name(stem or path.name)


def _walk(top: Path, skip: Callable[[Path, str], None]) -> Iterator[tuple[str, Path, Path]]:
    for here, folders, files in os.walk(top):
        folder = Path(here)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if "metrics" in folders and ({"params", "tags"} & set(folders) or "meta.yaml" in files):
            folders[:] = [name for name in folders if name not in ("metrics", "params", "tags", "artifacts")]
            yield "mlflow", folder, folder.absolute()
            continue
        checkpoints = [f for f in folders if re.fullmatch(r"checkpoint-\d+", f)]
        checkpoints = [f for f in checkpoints if (folder / f / "trainer_state.json").is_file()]
        checkpoints.sort(key=lambda f: int(f.split("-")[1]))
        own = "trainer_state.json" in files
        for name in checkpoints if own else checkpoints[:-1]:  # a later state holds the whole history
            skip(folder / name / "trainer_state.json", "a later state of the same run holds these records")
            folders.remove(name)
        events = sorted(name for name in files if "tfevents" in name and not name.startswith("."))
        if events:
            yield "tensorboard", folder, folder.absolute()
        for name in sorted(files):
            path = folder / name
            if name.startswith(".") or name in events:
                continue
            if name.endswith(".wandb"):
                yield _file(path)
            elif name.lower().endswith(_TABLES):
                states = "trainer_state.json" in files and name != "trainer_state.json"
                if name.lower().endswith(".json") and (states or _NOT_LOGS.fullmatch(name)):
                    continue
                yield _file(path)


# --- reading -----------------------------------------------------------------------------------------------
def parts(source: Source, reject: Reject) -> Iterator[Part]:
    """The rows of a source, piece by piece, in their order.

    Raises
    ------
    ValueError
        The file as a whole is not what its name says, or cannot be read.
    """
    name = source.path.name
    try:
        yield from _parts(source, reject)
    except UnicodeError:
        raise ValueError(f"{name} is not text in UTF-8 or UTF-16") from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise ValueError(f"{name} is not a gzip file, or is cut short") from None
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror or error}") from None


def _parts(source: Source, reject: Reject) -> Iterator[Part]:
    path = source.path
    if source.kind == "tensorboard":
        settings = trackers.settings_beside(path if path.is_dir() else path.parent)
        yield from batches(trackers.events(path), settings)
        return
    if source.kind == "wandb":
        yield from batches(*trackers.offline(path))
        return
    if source.kind == "mlflow":
        yield from trackers.mlflow(path, reject)
        return
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".parquet"):
        yield from tables.parquet(path)
    elif name.endswith((".jsonl", ".ndjson")):
        yield from batches(documents.lines(path, reject))
    elif name.endswith(".json"):
        yield from documents.document(path, reject)
    elif not name.endswith((".csv", ".tsv")) and opening(path)[:1] == "{":
        yield from batches(documents.lines(path, reject))
    else:
        settings = trackers.settings_beside(path.parent) if name == "metrics.csv" else {}
        for part in tables.separated(path, reject):
            for key, value in settings.items():
                part.columns.setdefault(key, [value] * len(part.rows))
            yield part
