"""Logs as trainers and trackers leave them, read in pieces of bounded size.

Tables (CSV, TSV, JSON lines, JSON, Parquet; the first three also gzipped) and folders: TensorBoard event
files, Weights & Biases exports and offline runs, MLflow's file store, ``trainer_state.json`` of Hugging Face
Trainer, ``metrics.csv`` of Lightning with the ``hparams.yaml`` beside it.

- A `Source` is what becomes one run, unless a column names the runs: a file, or the folder of a tracker.
- A `Part` is a piece of it: raw cells by column, with row numbers for what must be left out.
- Whatever cannot be read goes to a `Reject`, row by row; only what makes a whole file unreadable raises.
- Nothing is unpickled and no YAML tag is obeyed.
"""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from allometry.extras import need

__all__ = ["Part", "Source", "find", "parts"]

Reject = Callable[[int, str, str], None]  # row, reason, the text itself
_CELLS = 1_000_000  # of a piece; bounds the memory of a file of any length and width
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".csv.gz", ".tsv.gz", ".jsonl.gz")
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


@dataclass
class Part:
    """Some rows of a source: cells by column name, with the row each stands in."""

    columns: dict[str, Sequence[Any]]
    rows: Sequence[int]
    comma: str = "thousands"
    told: list[str] = field(default_factory=list)


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
        The file as a whole is not what its name says.
    """
    path = source.path
    if source.kind == "tensorboard":
        yield from _records(_events(path), _yaml(path if path.is_dir() else path.parent))
    elif source.kind == "wandb":
        yield from _records(*_offline(path))
    elif source.kind == "mlflow":
        yield from _mlflow(path, reject)
    elif path.name.lower().endswith(".parquet"):
        yield from _parquet(path)
    else:
        start = _opening(path)
        name = path.name.lower()
        if name.endswith((".jsonl", ".ndjson", ".jsonl.gz")):
            yield from _records(_lines(path, reject))
        elif name.endswith(".json"):
            yield from _json(path, reject)
        elif start[:1] == "{" and not name.endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz")):
            yield from _records(_lines(path, reject))
        else:
            settings = _yaml(path.parent) if name == "metrics.csv" else {}
            for part in _table(path, reject):
                for key, value in settings.items():
                    part.columns.setdefault(key, [value] * len(part.rows))
                yield part


def _open(path: Path) -> IO[str]:
    opener: Any = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rb") as raw:
        head = raw.read(4)
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return opener(path, "rt", encoding=encoding, errors="replace", newline="")


def _opening(path: Path) -> str:
    try:
        with _open(path) as lines:
            return lines.read(4096).lstrip()
    except (gzip.BadGzipFile, EOFError):
        raise ValueError(f"{path.name} is not a gzip file, or is cut short") from None
    except UnicodeError:
        return ""


# Rows as dictionaries: JSON, trackers.
def _records(
    records: Iterator[tuple[int, dict[str, Any]]], constants: dict[str, Any] | None = None
) -> Iterator[Part]:
    held: list[tuple[int, dict[str, Any]]] = []
    cells = 0
    for row, record in records:
        held.append((row, record))
        cells += len(record)
        if cells >= _CELLS or len(held) >= 100_000:
            yield _part(held, constants)
            held, cells = [], 0
    if held:
        yield _part(held, constants)


def _part(held: list[tuple[int, dict[str, Any]]], constants: dict[str, Any] | None) -> Part:
    names = list({name: None for _, record in held for name in record})
    columns: dict[str, Sequence[Any]] = {name: [record.get(name) for _, record in held] for name in names}
    for name, value in (constants or {}).items():
        columns.setdefault(name, [value] * len(held))
    return Part(columns, [row for row, _ in held])


def _flat(record: Any, before: str = "", depth: int = 0) -> dict[str, Any]:
    """Nested settings by dotted names; lists are no numbers and stay out."""
    out: dict[str, Any] = {}
    for key, value in record.items():
        name = f"{before}{key}"
        if isinstance(value, dict):
            if set(value) >= {"value"} and set(value) <= {"value", "desc"}:  # W&B's settings
                out[name] = value["value"] if not isinstance(value["value"], (dict, list)) else None
            elif depth < 4:
                out |= _flat(value, f"{name}.", depth + 1)
        elif not isinstance(value, list):
            out[name] = value
    return out


def _lines(path: Path, reject: Reject) -> Iterator[tuple[int, dict[str, Any]]]:
    with _open(path) as lines:
        for row, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                reject(row, "the line is not JSON", line[:40].strip())
                continue
            if isinstance(record, dict):
                yield row, _flat(record)
            else:
                reject(row, "the line is JSON but no object", line[:40].strip())


def _json(path: Path, reject: Reject) -> Iterator[Part]:
    with _open(path) as file:
        text = file.read()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) > 1 and lines[0].lstrip().startswith("{") and lines[0].rstrip().endswith("}"):
            yield from _records(_lines(path, reject))
            return
        raise ValueError(f"{path.name} is not JSON: {' '.join(str(error).split())}") from None
    constants: dict[str, Any] = {}
    if isinstance(found, dict):
        inside = next((k for k in ("log_history", "history", "runs", "records", "data", "rows")
                       if isinstance(found.get(k), list)), None)  # fmt: skip
        if inside is not None:
            rest, found = found, list(found[inside])
            if inside == "log_history":  # the totals are those of the last step
                totals = {k: rest[k] for k in ("total_flos", "num_input_tokens_seen") if rest.get(k)}
                if totals and rest.get("global_step"):
                    found.append({"step": rest["global_step"], **totals})
            else:
                constants = {k: v for k, v in _flat(rest).items() if not isinstance(v, str)}
        elif found and all(isinstance(value, list) for value in found.values()):
            length = max(map(len, found.values()))
            found = [{k: v[i] for k, v in found.items() if i < len(v)} for i in range(length)]
        elif found and all(isinstance(v, dict) and _numbered(v) for v in found.values()):  # pandas' to_json
            rows = list(dict.fromkeys(k for column in found.values() for k in column))
            found = [{name: column.get(k) for name, column in found.items()} for k in rows]
        else:
            found = [found]
    if not isinstance(found, list):
        raise ValueError(f"{path.name} holds {type(found).__name__}, not records")

    def records() -> Iterator[tuple[int, dict[str, Any]]]:
        for row, record in enumerate(found, 1):
            if isinstance(record, dict):
                yield row, _flat(record)
            else:
                reject(row, "the entry is JSON but no object", str(record)[:40])

    yield from _records(records(), constants)


def _numbered(column: dict[str, Any]) -> bool:
    return bool(column) and all(key.isdigit() for key in column)


# Rows of separated values.
def _table(path: Path, reject: Reject) -> Iterator[Part]:
    try:
        with _open(path) as file:
            yield from _rows(file, path, reject)
    except UnicodeError:
        raise ValueError(f"{path.name} is not text in UTF-8 or UTF-16") from None
    except (EOFError, gzip.BadGzipFile):
        raise ValueError(f"{path.name} is cut short") from None


def _rows(file: IO[str], path: Path, reject: Reject) -> Iterator[Part]:
    comments, head = 0, ""
    for head in file:
        comments += 1
        if head.strip() and not head.startswith("#"):
            break
    else:
        raise ValueError(f"{path.name} is empty")
    bare = re.sub(r'"[^"]*"', "", head)
    delimiter = max("\t;,|", key=lambda mark: (bare.count(mark), mark == ","))
    if path.name.lower().endswith((".tsv", ".tsv.gz")):
        delimiter = "\t"

    def again() -> Iterator[str]:
        yield head
        yield from file

    reader = csv.reader(again(), delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        names = [name.strip() for name in next(reader)]
    except (csv.Error, StopIteration):
        raise ValueError(f"the header of {path.name} cannot be read: {head[:60].strip()!r}") from None
    told = []
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        told.append(f"{path.name} has {', '.join(map(repr, twice))} more than once; the first counts.")
    width = len(names)
    chart = _chart(names)
    comma = "thousands"
    limit = max(_CELLS // max(width, 1), 1000)
    rows: list[list[str]] = []
    numbers: list[int] = []
    first = True

    def flush() -> Part:
        nonlocal comma, first
        if first and delimiter == ";":
            comma = _comma(rows)
            if comma == "decimal":
                told.append(f"In {path.name} a comma is taken for the decimal point.")
        columns: dict[str, Sequence[Any]] = {}
        for i in range(width - 1, -1, -1):  # so that of two columns of one name the first stays
            columns[names[i]] = [row[i] for row in rows]
        ordered = {name: columns[name] for name in names}
        part = Part(ordered, list(numbers), comma, told if first else [])
        first = False
        return _melt(part, chart) if chart else part

    while True:
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            said = str(error)
            reason = "a quote stands in the middle of a cell"
            if "unexpected end" in said:
                reason = "a quote is opened and never closed: nothing after it can be read"
            elif "limit" in said:
                reason = "a cell of more than 131,072 characters (a quote that is never closed?)"
            reject(reader.line_num + comments - 1, reason, "")
            continue
        line = reader.line_num + comments - 1
        if len(row) > width and not any(cell.strip() for cell in row[width:]):
            row = row[:width]
        if len(row) != width:
            if not row or not any(cell.strip() for cell in row):
                continue
            reject(line, f"{len(row)} cells where the header has {width}", delimiter.join(row)[:40])
            continue
        if width > 1 and not row[0] and not any(row):
            continue
        rows.append(row)
        numbers.append(line)
        if len(rows) >= limit:
            yield flush()
            rows, numbers = [], []
    if rows:
        yield flush()
    elif first:
        yield Part({name: [] for name in names}, [], comma, told)


def _comma(rows: list[list[str]]) -> str:
    """What a comma means in a file that separates by semicolons."""
    cells = {cell.strip() for row in rows for cell in row if "," in cell}
    cells = {cell for cell in cells if re.fullmatch(r"[+-]?[\d.]*\d,\d+([eE][+-]?\d+)?", cell)}
    if any(not re.search(r",\d{3}$", cell) or re.match(r"[+-]?0,", cell) or "." in cell for cell in cells):
        return "decimal"
    return "unclear" if cells else "thousands"


def _chart(names: list[str]) -> dict[str, tuple[str, str]]:
    """Columns ``run - metric`` of a W&B chart's export, told by the ``__MIN`` and ``__MAX`` beside them."""
    held = set(names)
    found = {}
    for name in names:
        if f"{name}__MIN" in held and f"{name}__MAX" in held and " - " in name:
            run, metric = name.rsplit(" - ", 1)
            found[name] = run, metric
    return found


def _melt(part: Part, chart: dict[str, tuple[str, str]]) -> Part:
    others = [name for name in part.columns if name not in chart and not name.endswith(("__MIN", "__MAX"))
              and " - " not in name]  # fmt: skip
    metrics = list(dict.fromkeys(metric for _, metric in chart.values()))
    columns: dict[str, list[Any]] = {name: [] for name in [*others, "run", *metrics]}
    rows: list[int] = []
    for run in dict.fromkeys(run for run, _ in chart.values()):
        mine = {metric: name for name, (owner, metric) in chart.items() if owner == run}
        rows += part.rows
        for name in others:
            columns[name] += part.columns[name]
        columns["run"] += [run] * len(part.rows)
        for metric in metrics:
            columns[metric] += part.columns[mine[metric]] if metric in mine else [None] * len(part.rows)
    return Part(dict(columns), rows, part.comma, part.told)


def _parquet(path: Path) -> Iterator[Part]:
    parquet = need("pyarrow.parquet", extra="logs", purpose="reading Parquet")
    arrow = need("pyarrow", extra="logs", purpose="reading Parquet")
    try:
        file = parquet.ParquetFile(path)
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"{path.name} is not Parquet: {' '.join(str(error).split())[:80]}") from None
    width = max(len(file.schema_arrow.names), 1)
    row = 1
    with file:
        for batch in file.iter_batches(batch_size=max(_CELLS // width, 1000)):
            count = batch.num_rows
            yield Part(
                {name: batch.column(i).to_pylist() for i, name in enumerate(batch.schema.names)},
                range(row, row + count),
            )
            row += count
        if row == 1:
            yield Part({name: [] for name in file.schema_arrow.names}, [])


# Trackers' folders.
def _events(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """TensorBoard's scalars, those of one step in one row; a folder's files one after another."""
    purpose = "reading TensorBoard events"
    loader = need("tensorboard.backend.event_processing.event_file_loader", extra="logs", purpose=purpose)
    tensors = need("tensorboard.util.tensor_util", extra="logs", purpose=purpose)
    files = sorted(p for p in path.iterdir() if "tfevents" in p.name) if path.is_dir() else [path]
    row, step = 0, None
    record: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for file in files:
        for event in loader.EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "hparams":
                    settings |= _hparams(value.metadata.plugin_data.content)
                    continue
                if value.HasField("simple_value"):
                    scalar = value.simple_value
                elif value.HasField("tensor"):
                    array = tensors.make_ndarray(value.tensor)
                    if array.size != 1 or array.dtype.kind not in "fiu":
                        continue
                    scalar = float(array.reshape(()))
                else:
                    continue
                if event.step != step and record:
                    row += 1
                    yield row, {"step": step, **settings, **record}
                    record = {}
                step = event.step
                record[value.tag] = scalar
    if record:
        yield row + 1, {"step": step, **settings, **record}


def _hparams(content: bytes) -> dict[str, Any]:
    plugin = need("tensorboard.plugins.hparams.plugin_data_pb2", extra="logs", purpose="reading settings")
    found = {}
    for name, value in plugin.HParamsPluginData.FromString(content).session_start_info.hparams.items():
        kind = value.WhichOneof("kind")
        if kind in ("number_value", "string_value"):
            found[name] = getattr(value, kind)
    return found


def _yaml(folder: Path) -> dict[str, Any]:
    """The plain ``name: value`` lines of a ``hparams.yaml``, if there is one; no tags, no nesting."""
    path = folder / "hparams.yaml"
    if not path.is_file():
        return {}
    text = path.read_text("utf-8", errors="replace")
    lines = re.findall(r"^([A-Za-z_][\w.-]*):[ \t]+([^\s#&*!|>{\[][^#\n]*)", text, re.MULTILINE)
    return {name: value.strip().strip("'\"") for name, value in lines}


def _mlflow(folder: Path, reject: Reject) -> Iterator[Part]:
    """A run of MLflow's file store: a file a parameter, a file a metric with lines ``time value step``."""
    constants: dict[str, Any] = {}
    for path in sorted((folder / "params").rglob("*")):
        if path.is_file():
            name = path.relative_to(folder / "params").as_posix()
            constants[name] = path.read_text("utf-8", errors="replace").strip()
    title = folder / "tags" / "mlflow.runName"
    if title.is_file():
        constants["run"] = f"{title.read_text('utf-8', errors='replace').strip()}-{folder.name[:8]}"
    metrics = sorted(path for path in (folder / "metrics").rglob("*") if path.is_file())
    names = [path.relative_to(folder / "metrics").as_posix() for path in metrics]

    def records() -> Iterator[tuple[int, dict[str, Any]]]:
        for path, name in zip(metrics, names, strict=True):
            with _open(path) as lines:
                for row, line in enumerate(lines, 1):
                    words = line.split()
                    if len(words) not in (2, 3):
                        if words:
                            reject(row, f"metric {name}: a line is not 'time value step'", line[:40].strip())
                        continue
                    yield row, {"step": words[2] if len(words) > 2 else "0", name: words[1]}

    for part in _records(records(), constants):
        for name in names:
            part.columns.setdefault(name, [None] * len(part.rows))
        yield part


def _offline(path: Path) -> tuple[Iterator[tuple[int, dict[str, Any]]], dict[str, Any]]:
    """History and settings of a W&B offline run (``run-ID.wandb``)."""
    message = need("wandb.proto.wandb_internal_pb2", extra="wandb", purpose="reading a W&B offline run")
    settings: dict[str, Any] = {}

    def learn(items: Any) -> None:
        for item in items:
            key = ".".join(item.nested_key) or item.key
            if not key.startswith("_"):
                value = json.loads(item.value_json)
                settings.update(_flat({key: value}) if isinstance(value, dict) else {key: value})

    for data in _frames(path):  # settings may come after the first records
        record = message.Record.FromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            learn(record.run.config.update)
        elif kind == "config":
            learn(record.config.update)

    def history() -> Iterator[tuple[int, dict[str, Any]]]:
        row = 0
        for data in _frames(path):
            record = message.Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                row += 1
                items = record.history.item
                values = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
                yield row, {k: _special(v) for k, v in values.items() if not isinstance(v, (dict, list))}

    return history(), settings


def _special(value: Any) -> Any:
    """W&B writes what JSON has no number for as words."""
    return {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}.get(value, value) if (
        isinstance(value, str)) else value  # fmt: skip


def _frames(path: Path) -> Iterator[bytes]:
    """Messages of a W&B transaction log: LevelDB's log format behind a header of seven bytes.

    Blocks of 32 KiB; in each, frames of checksum (4 bytes), length (2) and kind (1): whole, first, middle,
    last.  A file cut short ends with its last whole message, as after a crash.
    """
    with open(path, "rb") as file:
        if file.read(7)[:4] != b":W&B":
            raise ValueError(f"{path.name} is not a W&B offline run")
        position, held = 7, io.BytesIO()
        while True:
            left = 32768 - position % 32768
            if left < 7:
                file.read(left)
                position += left
            head = file.read(7)
            if len(head) < 7:
                return
            length, kind = int.from_bytes(head[4:6], "little"), head[6]
            data = file.read(length)
            position += 7 + length
            if len(data) < length or not 1 <= kind <= 4:
                return
            if kind in (1, 2):
                held = io.BytesIO()
            held.write(data)
            if kind in (1, 4):
                yield held.getvalue()
