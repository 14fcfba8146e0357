"""Text from the machine at hand: the standard library's own source, or files of the user's.

`StandardLibrary` is the corpus that every installation of Python already has: some ten megabytes of clean
program text, enough for the small end of a scaling ladder, without a download. `read_text` reads anything
else: text files, JSON lines, Parquet, folders, patterns.

What is left out of the standard library, and why:

* tests (on request they are kept): generated tables and deliberately broken files make up much of them;
* installed packages: they differ from machine to machine;
* ``encodings`` and ``html/entities.py``: a hundred near-identical character tables, which a model learns by
  heart and which would reach from the training text into the validation text;
* ``pydoc_data/topics.py``: prose in a string literal, a domain of its own, better kept as a target for
  transfer than mixed into program text;
* files written by the build or the distributor (``_sysconfigdata*``, ``config-*``, ``sitecustomize.py``):
  they hold paths of the build machine.

The text differs between versions of Python; the digest says which one was read.
"""

import fnmatch
import glob as globbing
import gzip
import json
import os
import re
import sysconfig
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from allometry.data.corpus import Corpus, Split
from allometry.extras import need

_TEST_FOLDERS = ("test", "tests", "idle_test")
_INSTALLED = ("site-packages", "dist-packages")
_TABLES_AND_BUILD = (
    "encodings", "html/entities.py", "pydoc_data/topics.py", "_sysconfigdata*", "config-*",
    "sitecustomize.py", "usercustomize.py",
)  # fmt: skip

_ROWS = (".jsonl", ".ndjson")
_PLAIN = frozenset((
    ".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".bib", ".org", ".adoc", ".log", ".csv", ".tsv",
    ".json", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".conf", ".xml", ".html", ".htm", ".css", ".scss",
    ".svg", ".sql", ".py", ".pyi", ".pyx", ".ipynb", ".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".cu",
    ".cuh", ".java", ".kt", ".scala", ".js", ".jsx", ".mjs", ".ts", ".tsx", ".go", ".rs", ".rb", ".php",
    ".pl", ".pm", ".lua", ".r", ".jl", ".m", ".f", ".f90", ".hs", ".ml", ".mli", ".ex", ".exs", ".erl",
    ".clj", ".lisp", ".el", ".scm", ".swift", ".cs", ".fs", ".vb", ".dart", ".zig", ".nim", ".sh", ".bash",
    ".zsh", ".ps1", ".bat", ".cmake", ".make", ".mk", ".proto", ".srt", ".vtt",
))  # fmt: skip
_SNIFFED_BYTES = 8192

# By what a file was named decides how much is taken on trust: all of a single file, the extension of those
# that match a pattern, nothing of those in a folder.
_Named = Literal["file", "pattern", "folder"]


class StandardLibrary(Corpus):
    """The source text of the running interpreter's standard library, divided by file.

    Parameters
    ----------
    split : "train" or "validation"
        What `tokens` means when no split is named; the corpus holds both.
    exclude : sequence of str
        Further files to leave out: names relative to the library such as ``"typing.py"``, folders such as
        ``"asyncio"``, or patterns such as ``"idlelib/*"``.
    tests : bool
        Keep the library's tests (about three times the text).
    tokenizer, cache_dir
        As in `Corpus`.

    Raises
    ------
    ValueError
        If this installation has no source files, or all are excluded.

    Examples
    --------
    >>> library = StandardLibrary()
    >>> library.vocab_size, "asyncio/tasks.py" in set(library.files.name)
    (256, True)
    """

    def __init__(
        self,
        split: Split = "train",
        exclude: Sequence[str] = (),
        tests: bool = False,
        *,
        tokenizer: Any = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        root = Path(sysconfig.get_path("stdlib"))
        excluded = (*_INSTALLED, *_TABLES_AND_BUILD, *_patterns(exclude))
        if not tests:
            excluded = (*excluded, *(f"*/{folder}" for folder in _TEST_FOLDERS), *_TEST_FOLDERS)
        walk = _walk(root, _matcher(excluded))
        files = [(name, path.read_bytes()) for name, path in walk if name.endswith(".py")]
        if not files:
            raise ValueError(
                f"no source of the standard library under {root} (or all of it excluded); install Python's "
                "source files, or read other text with allometry.data.read_text"
            )
        super().__init__(files, split=split, tokenizer=tokenizer, cache_dir=cache_dir)


def read_text(
    sources: str | Path | Sequence[str | Path],
    *,
    text_field: str = "text",
    tokenizer: Any = None,
    exclude: Sequence[str] = (),
    validation: str | Path | Sequence[str | Path] | None = None,
    split: Split = "train",
    cache_dir: str | Path | None = None,
) -> Corpus:
    """Read text files, JSON lines, Parquet, whole folders or patterns into one corpus.

    A plain file is one document. Of ``.jsonl``, ``.ndjson`` and ``.parquet`` each row is one. Plain and JSON
    files may be gzipped (``.gz``). Folders are read recursively, hidden entries left out; files whose
    extension does not promise text are skipped there, and binary files in folders and patterns; both are
    listed in `Corpus.skipped`.

    About 5 % is held out: whole documents, chosen by a hash of their names (a row's name is its file's and
    its number). With fewer than a hundred documents the last 5 % of each is held out instead, in one piece,
    cut at the end of a line; a single text file is therefore divided into its beginning and its end.

    Parameters
    ----------
    sources : path, pattern, or sequence of them
        For example ``"books/"``, ``"logs/*.jsonl.gz"``, ``["a.txt", "b.parquet"]``.
    text_field : str
        Key of a JSON row, or column of a Parquet file, that holds the text.
    tokenizer : optional
        Nothing for bytes; else what `load_tokenizer` accepts.
    exclude : sequence of str
        Names or patterns, relative to the sources' common folder, to leave out.
    validation : path, pattern, or sequence of them, optional
        Text held out by the user; ``sources`` are then all trained on.
    split : "train" or "validation"
        What `Corpus.tokens` means when no split is named.
    cache_dir : path, optional
        As in `Corpus`.

    Returns
    -------
    Corpus

    Raises
    ------
    ValueError
        If a source does not exist, a named file is binary, a row has no such field, or no text is left.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "verse.txt").write_text("Tyger Tyger, burning bright\\n" * 40)
    >>> read_text(folder).split_rule
    'last 5% of each document'
    """
    skipped: list[tuple[str, str]] = []
    excluded = _patterns(exclude)
    documents = list(_documents(sources, text_field, excluded, skipped))
    held_out = None if validation is None else list(_documents(validation, text_field, excluded, skipped))
    return Corpus(
        documents, validation=held_out, tokenizer=tokenizer, split=split, skipped=skipped, cache_dir=cache_dir
    )


def _patterns(exclude: Sequence[str]) -> tuple[str, ...]:
    # A bare string is a sequence of one-letter patterns, which is never what was meant.
    return (exclude,) if isinstance(exclude, str) else tuple(exclude)


def _matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a pattern matches a name or one of the folders that it lies in."""
    if not patterns:
        return lambda name: False
    expression = re.compile("|".join(fnmatch.translate(pattern.rstrip("/")) for pattern in patterns))

    def matches(name: str) -> bool:
        parts = name.split("/")
        return any(expression.match("/".join(parts[: end + 1])) for end in range(len(parts)))

    return matches


def _walk(root: Path, left_out: Callable[[str], bool]) -> Iterator[tuple[str, Path]]:
    """Files below a folder with their relative names, hidden entries and byte code left out."""
    for folder, subfolders, names in os.walk(root):
        inside = "" if folder == str(root) else Path(folder).relative_to(root).as_posix() + "/"
        subfolders[:] = sorted(
            name
            for name in subfolders
            if name[0] != "." and name != "__pycache__" and not left_out(inside + name)
        )
        for name in sorted(names):
            path = Path(folder, name)
            if name[0] != "." and not left_out(inside + name) and path.is_file():
                yield inside + name, path


def _documents(
    sources: str | Path | Sequence[str | Path],
    text_field: str,
    excluded: Sequence[str],
    skipped: list[tuple[str, str]],
) -> Iterator[tuple[str, bytes | str]]:
    """Names relative to the sources' common folder, and texts."""
    listed = [sources] if isinstance(sources, (str, Path)) else list(sources)
    if not listed:
        raise ValueError("no sources given; name at least one text file, folder or pattern")
    found: dict[Path, tuple[Path, _Named]] = {}  # by real path, so that a file named twice is read once
    bases = []
    for source in listed:
        base, paths, named = _resolve(source)
        bases.append(base)
        for path in paths:
            found.setdefault(path.resolve(), (path, named))
    common = Path(os.path.commonpath(bases))
    left_out = _matcher(excluded)
    for path, named in sorted(found.values()):
        name = path.relative_to(common).as_posix()
        if not left_out(name):
            yield from _read(path, name, text_field, named, skipped)


def _resolve(source: str | Path) -> tuple[Path, list[Path], _Named]:
    """The folder that names are relative to, the files, and by what they were named."""
    path = Path(os.path.abspath(Path(source).expanduser()))
    if path.is_dir():
        return path, [file for _, file in _walk(path, lambda name: False)], "folder"
    if path.is_file():
        return path.parent, [path], "file"
    if globbing.has_magic(str(source)):
        matches = [Path(match) for match in globbing.glob(str(path), recursive=True)]
        files = [match for match in matches if match.is_file()]
        if files:
            fixed = path
            while globbing.has_magic(str(fixed)):
                fixed = fixed.parent
            return fixed, files, "pattern"
        raise ValueError(f"no file matches the pattern {str(source)!r}")
    raise ValueError(f"there is no file or folder {str(source)!r}; check the path")


def _read(
    path: Path, name: str, text_field: str, named: _Named, skipped: list[tuple[str, str]]
) -> Iterator[tuple[str, bytes | str]]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    zipped = suffixes[-1:] == [".gz"]
    kind = next(reversed(suffixes[:-1] if zipped else suffixes), "")
    if kind == ".parquet" and not zipped:
        yield from _parquet_rows(path, name, text_field, skipped)
        return
    if named == "folder" and kind not in _ROWS and kind not in _PLAIN:
        skipped.append((name, f"extension {kind or 'missing'}: not known as text"))
        return
    try:
        content = gzip.decompress(path.read_bytes()) if zipped else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file ({error}); fetch or compress it again") from None
    if b"\0" in content[:_SNIFFED_BYTES]:
        if named == "file":
            raise ValueError(f"{path} holds NUL bytes: binary, or not UTF-8; give UTF-8 text")
        skipped.append((name, "binary (holds NUL bytes)"))
    elif kind in _ROWS:
        yield from _json_rows(content, path, name, text_field, skipped)
    else:
        yield name, content


def _json_rows(
    content: bytes, path: Path, name: str, text_field: str, skipped: list[tuple[str, str]]
) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode(errors="replace"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}, is not JSON: {error}") from None
        if not isinstance(row, dict) or text_field not in row:
            has = (
                f"its keys are {', '.join(row)}" if isinstance(row, dict) else f"it is a {type(row).__name__}"
            )
            raise ValueError(
                f"{path}, line {number}, has no {text_field!r} ({has}); name the key by text_field="
            )
        yield from _row(row[text_field], path, name, number, skipped)


def _parquet_rows(
    path: Path, name: str, text_field: str, skipped: list[tuple[str, str]]
) -> Iterator[tuple[str, str]]:
    parquet = need("pyarrow.parquet", extra="logs", purpose=f"reading {path.name}")
    with parquet.ParquetFile(path) as file:
        columns = file.schema_arrow.names
        if text_field not in columns:
            raise ValueError(
                f"{path} has no column {text_field!r} (it has {', '.join(columns)}); name it by text_field="
            )
        number = 0
        for batch in file.iter_batches(columns=[text_field]):
            for text in batch.column(0).to_pylist():
                number += 1
                yield from _row(text, path, name, number, skipped)


def _row(
    text: object, path: Path, name: str, number: int, skipped: list[tuple[str, str]]
) -> Iterator[tuple[str, str]]:
    # Numbers are padded so that the order of names is the order of rows.
    label = f"{name}:{number:09d}"
    if text is None:
        skipped.append((label, "no text (null)"))
    elif not isinstance(text, str):
        raise ValueError(
            f"{path}, row {number}: the text is a {type(text).__name__}, not a string: {text!r:.60}"
        )
    else:
        yield label, text
