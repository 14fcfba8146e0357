"""Logs in trackers' own formats: TensorBoard's events, MLflow's file store, W&B's offline runs.

Nothing is unpickled and no YAML tag is obeyed; each format's package is asked for where its files are met.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from allometry.extras import need
from allometry.laws.pieces import Part, Reject, batches, flat, open_text

__all__ = ["events", "frames", "mlflow", "offline", "settings_beside"]


def events(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
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


def settings_beside(folder: Path) -> dict[str, Any]:
    """The plain ``name: value`` lines of a ``hparams.yaml``, if there is one; no tags, no nesting."""
    path = folder / "hparams.yaml"
    if not path.is_file():
        return {}
    text = path.read_text("utf-8", errors="replace")
    lines = re.findall(r"^([A-Za-z_][\w.-]*):[ \t]+([^\s#&*!|>{\[][^#\n]*)", text, re.MULTILINE)
    return {name: value.strip().strip("'\"") for name, value in lines}


def mlflow(folder: Path, reject: Reject) -> Iterator[Part]:
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
            with open_text(path) as lines:
                for row, line in enumerate(lines, 1):
                    words = line.split()
                    if len(words) not in (2, 3):
                        if words:
                            reject(row, f"metric {name}: a line is not 'time value step'", line[:40].strip())
                        continue
                    yield row, {"step": words[2] if len(words) > 2 else "0", name: words[1]}

    for part in batches(records(), constants):
        for name in names:
            part.columns.setdefault(name, [None] * len(part.rows))
        yield part


def offline(path: Path) -> tuple[Iterator[tuple[int, dict[str, Any]]], dict[str, Any]]:
    """History and settings of a W&B offline run (``run-ID.wandb``)."""
    message = need("wandb.proto.wandb_internal_pb2", extra="wandb", purpose="reading a W&B offline run")
    settings: dict[str, Any] = {}

    def parsed(data: bytes) -> Any:
        try:
            return message.Record.FromString(data)
        except Exception as error:  # protobuf's own kind, which is no ValueError
            raise ValueError(f"{path.name} holds a message that W&B would not have written") from error

    def read(item: Any) -> Any:
        try:
            return json.loads(item.value_json)
        except ValueError:
            return None

    def learn(items: Any) -> None:
        for item in items:
            key = ".".join(item.nested_key) or item.key
            if not key.startswith("_"):
                value = read(item)
                settings.update(flat({key: value}) if isinstance(value, dict) else {key: value})

    for data in frames(path):  # settings may come after the first records
        record = parsed(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            learn(record.run.config.update)
        elif kind == "config":
            learn(record.config.update)

    def history() -> Iterator[tuple[int, dict[str, Any]]]:
        row = 0
        for data in frames(path):
            record = parsed(data)
            if record.WhichOneof("record_type") == "history":
                row += 1
                items = record.history.item
                values = {".".join(i.nested_key) or i.key: read(i) for i in items}
                yield row, {k: _special(v) for k, v in values.items() if not isinstance(v, (dict, list))}

    return history(), settings


def _special(value: Any) -> Any:
    """W&B writes what JSON has no number for as words."""
    return {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}.get(value, value) if (
        isinstance(value, str)) else value  # fmt: skip


def frames(path: Path) -> Iterator[bytes]:
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
