"""JSON in the shapes that trainers and trackers leave it: lines, an array of records, one document.

Lines and arrays are read record by record, whatever their length.  Any other document has to be held whole,
so one of more than `DOCUMENT` characters is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from allometry.laws.pieces import Part, Reject, batches, flat, open_text

__all__ = ["DOCUMENT", "document", "lines"]

DOCUMENT = 64 * 2**20  # characters; parsed, one takes several times its size
_CHUNK = 2**20


def lines(path: Path, reject: Reject) -> Iterator[tuple[int, dict[str, Any]]]:
    """Records of JSON lines with the line each stands in."""
    with open_text(path) as file:
        for row, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                reject(row, "the line is not JSON", line[:40].strip())
                continue
            if isinstance(record, dict):
                yield row, flat(record)
            else:
                reject(row, "the line is JSON but no object", line[:40].strip())


def document(path: Path, reject: Reject) -> Iterator[Part]:
    """A ``.json`` file: an array of records, a document that holds one, or lines after all.

    Raises
    ------
    ValueError
        It is not JSON, holds no records, or is a document too long to be held whole.
    """
    with open_text(path) as file:
        start = _skip(file)
        if start == "[":
            yield from batches(_objects(_array(file, path.name, reject), reject))
            return
        text = start + file.read(DOCUMENT)
    first, _, rest = text.partition("\n")
    if rest.lstrip()[:1] == "{" and _is_object(first):
        yield from batches(lines(path, reject))
        return
    if len(text) > DOCUMENT:
        raise ValueError(
            f"{path.name} is one JSON document of more than {DOCUMENT // 2**20} MiB, which would have to be "
            "held whole: write an array of records, or one record a line (.jsonl), and any length is read"
        )
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not JSON: {' '.join(str(error).split())}") from None
    records, constants = _unpacked(found)
    if records is None:
        raise ValueError(f"{path.name} holds {type(found).__name__}, not records")
    yield from batches(_objects(enumerate(records, 1), reject), constants)


def _skip(file: IO[str]) -> str:
    """The first character that is no blank."""
    while (mark := file.read(1)).isspace():
        pass
    return mark


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _objects(found: Iterable[tuple[int, Any]], reject: Reject) -> Iterator[tuple[int, dict[str, Any]]]:
    for row, record in found:
        if isinstance(record, dict):
            yield row, flat(record)
        else:
            reject(row, "the entry is JSON but no object", str(record)[:40])


def _array(file: IO[str], name: str, reject: Reject) -> Iterator[tuple[int, Any]]:
    """Entries of an array whose bracket has been read; one that breaks off keeps what came before."""
    decode = json.JSONDecoder().raw_decode
    text, at, row, more = "", 0, 0, _CHUNK
    ended = False
    while True:
        while at < len(text) and text[at] in " \t\r\n":
            at += 1
        if text[at : at + 1] == "]" or (row and text[at : at + 1] not in (",", "")):
            break
        begin = at + bool(row)
        while begin < len(text) and text[begin] in " \t\r\n":
            begin += 1
        try:
            entry, end = decode(text, begin)
        except (ValueError, RecursionError):
            end = len(text)
        if end < len(text):  # what ends with the text at hand may go on beyond it
            row, at, more = row + 1, end, _CHUNK
            yield row, entry
            continue
        if ended or len(text) - at > DOCUMENT:
            break
        fresh = file.read(more)
        ended = len(fresh) < more
        text, at = text[at:] + fresh, 0
        more = 2 * more  # an entry that is long is not parsed again for each piece of it
    if text[at : at + 1] == "]":
        return
    if not row:
        raise ValueError(f"{name} is not JSON: it begins as an array whose first entry cannot be read")
    reject(
        row + 1,
        "the array breaks off or is not JSON: nothing after it can be read",
        text[at : at + 40].strip(),
    )


def _unpacked(found: Any) -> tuple[list[Any] | None, dict[str, Any]]:
    """A document's records, and what it says of all of them."""
    constants: dict[str, Any] = {}
    if not isinstance(found, dict):
        return None, constants
    inside = next((k for k in ("log_history", "history", "runs", "records", "data", "rows")
                   if isinstance(found.get(k), list)), None)  # fmt: skip
    if inside is not None:
        records = list(found[inside])
        if inside == "log_history":  # the totals are those of the last step
            totals = {k: found[k] for k in ("total_flos", "num_input_tokens_seen") if found.get(k)}
            if totals and found.get("global_step"):
                records.append({"step": found["global_step"], **totals})
        else:
            constants = {k: v for k, v in flat(found).items() if not isinstance(v, str)}
        return records, constants
    if found and all(isinstance(value, list) for value in found.values()):
        length = max(map(len, found.values()))
        return [{k: v[i] for k, v in found.items() if i < len(v)} for i in range(length)], constants
    if found and all(isinstance(v, dict) and _numbered(v) for v in found.values()):  # pandas' to_json
        rows = list(dict.fromkeys(k for column in found.values() for k in column))
        return [{name: column.get(k) for name, column in found.items()} for k in rows], constants
    return [found], constants


def _numbered(column: dict[str, Any]) -> bool:
    return bool(column) and all(key.isdigit() for key in column)
