"""Text as tokens of a Hugging Face tokenizer, with the bytes behind each token, cached on disk.

Nothing is ever fetched: a tokenizer is an object, a ``tokenizer.json``, a folder that holds one, or a name
that the local Hugging Face cache already knows.

* Special tokens are not added, and their spelling inside a document is ordinary text.
* A token stands for the bytes from where it begins to where the next one begins. Added over a document these
  are its bytes exactly, also where a character is cut into several tokens or a normaliser drops some.
* Documents beyond a megabyte are encoded in pieces, cut after a line end.
* Encodings are kept as memory-mapped ``.npy`` files, named by a hash of corpus and tokenizer and put in place
  by a rename, so that an interrupted write leaves nothing behind that could be read.
"""

import hashlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from allometry.extras import need

_PIECE = 1 << 20  # characters
_TOGETHER = 8 << 20  # characters encoded in one call, which bounds the memory for offsets
_FORMAT = "1"  # raise it when encodings of the same text would differ
# How tokenizers spell the end of a document when nothing beside them says so.
_END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")


class TextTokenizer:
    """A ``tokenizers.Tokenizer`` that also counts bytes and knows its document separator.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
        Copied; the copy neither truncates nor pads.
    end_of_text : str, optional
        The token that separates documents. Without it, or where the vocabulary lacks it, a common spelling is
        looked for, and failing that one more id is added.
    """

    def __init__(self, tokenizer: Any, end_of_text: str | None = None) -> None:
        self._tokenizer = type(tokenizer).from_str(tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise ValueError("the tokenizer has no vocabulary; train it first")
        self.vocab_size: int = max(vocabulary.values()) + 1
        spelled = [name for name in (end_of_text, *_END_OF_TEXT) if name in vocabulary]
        if spelled:
            self.separator: int = vocabulary[spelled[0]]
        else:
            self.separator = self.vocab_size
            self.vocab_size += 1
        identity = f"{_FORMAT} {self.separator} {self._tokenizer.to_str()}"
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()

    def encode(self, texts: Iterable[str]) -> NDArray[np.int32]:
        """Encode documents, each followed by the separator.

        Returns
        -------
        array of int32, shape (2, N)
            Tokens, and the UTF-8 bytes behind each; a separator stands for one byte.
        """
        blocks = [self._encode_together(pieces) for pieces in _gathered(texts)]
        return np.concatenate([np.zeros((2, 0), np.int32), *blocks], axis=1)

    def _encode_together(self, pieces: list[tuple[str, bool]]) -> NDArray[np.int32]:
        encodings = self._tokenizer.encode_batch([text for text, _ in pieces], add_special_tokens=False)
        columns = []
        for (text, ends), encoding in zip(pieces, encodings, strict=True):
            tokens = np.array(encoding.ids, dtype=np.int32)
            starts = np.array([start for start, _ in encoding.offsets], dtype=np.int64)
            lengths, unclaimed = _byte_lengths(text, starts)
            if ends:
                tokens = np.append(tokens, np.int32(self.separator))
                lengths = np.append(lengths, 1 + unclaimed)
            columns.append(np.stack([tokens, lengths.astype(np.int32)]))
        return np.concatenate(columns, axis=1)


def load_tokenizer(tokenizer: Any) -> TextTokenizer:
    """Make a `TextTokenizer` of a path, a name in the local cache, or an object.

    Parameters
    ----------
    tokenizer : str, Path, tokenizers.Tokenizer, transformers tokenizer or TextTokenizer

    Raises
    ------
    ValueError
        If a path or name leads to no tokenizer on this machine.
    TypeError
        If an object is not backed by the ``tokenizers`` library, which alone tells where tokens begin.
    MissingExtra
        If ``tokenizers`` (or, for a name, ``transformers``) is not installed.
    """
    if isinstance(tokenizer, TextTokenizer):
        return tokenizer
    if isinstance(tokenizer, (str, Path)):
        return _from_path(tokenizer)
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str") or not hasattr(backend, "encode_batch"):
        raise TypeError(
            f"a tokenizer of type {type(tokenizer).__name__} is not backed by the tokenizers library; give a "
            "tokenizers.Tokenizer, a fast transformers tokenizer, or the path of a tokenizer.json"
        )
    return TextTokenizer(backend, getattr(tokenizer, "eos_token", None))


def _from_path(source: str | Path) -> TextTokenizer:
    path = Path(source).expanduser()
    file = path / "tokenizer.json" if path.is_dir() else path
    if file.is_file():
        library = need("tokenizers", extra="hub", purpose=f"the tokenizer {source}")
        try:
            loaded = library.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception for what it cannot parse
            raise ValueError(f"{file} is not a tokenizer.json ({error})") from None
        return TextTokenizer(loaded, _configured_end(file.with_name("tokenizer_config.json")))
    if path.exists() or isinstance(source, Path):
        raise ValueError(f"there is no tokenizer.json at {source}; give the file or the folder that holds it")
    transformers = need("transformers", extra="hub", purpose=f"the tokenizer {source!r}")
    try:
        found = transformers.AutoTokenizer.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError):
        raise ValueError(
            f"no tokenizer {source!r} on this machine, and nothing is downloaded; give a folder or a "
            "tokenizer.json"
        ) from None
    return load_tokenizer(found)


def _configured_end(file: Path) -> str | None:
    """The end-of-text token named in a ``tokenizer_config.json``, where there is one."""
    if not file.is_file():
        return None
    named = json.loads(file.read_text(encoding="utf-8")).get("eos_token")
    return named.get("content") if isinstance(named, dict) else named


def _gathered(texts: Iterable[str]) -> Iterator[list[tuple[str, bool]]]:
    """Lists of pieces to encode together; each piece says whether a document ends with it."""
    together: list[tuple[str, bool]] = []
    size = 0
    for text in texts:
        start = 0
        while True:
            end = len(text)
            if end - start > _PIECE:
                line = text.rfind("\n", start, start + _PIECE) + 1
                end = line if line > start else start + _PIECE
            together.append((text[start:end], end == len(text)))
            size += end - start
            start = end
            if size >= _TOGETHER:
                yield together
                together, size = [], 0
            if start == len(text):
                break
    if together:
        yield together


def _byte_lengths(text: str, starts: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Bytes from each token's first character to the next token's, and the bytes that no token claims."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)
    positions = np.concatenate([[0], np.cumsum(widths)])  # byte position of each character, and the end
    if len(starts) == 0:
        return np.zeros(0, np.int64), int(positions[-1])
    begins = positions[np.maximum.accumulate(starts)]
    begins[0] = 0  # what a normaliser dropped before the first token
    return np.diff(np.append(begins, positions[-1])), 0


def default_cache_dir() -> Path:
    """The user's cache folder for this library: XDG_CACHE_HOME first, else the platform's custom."""
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / "allometry"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "allometry"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "allometry"
    return Path.home() / ".cache" / "allometry"


def cached_encoding(
    tokenizer: TextTokenizer, texts: Iterable[str], *, name: str, cache_dir: Path | None = None
) -> NDArray[np.int32]:
    """`TextTokenizer.encode`, read from the cache where ``name`` was encoded by the same tokenizer before.

    Parameters
    ----------
    name : str
        Says which texts these are; anything that identifies them.
    cache_dir : path, optional
        Default `default_cache_dir`.

    Returns
    -------
    array of int32, shape (2, N)
        Memory-mapped copy-on-write, or in memory (with a warning) if the cache cannot be written.
    """
    folder = (default_cache_dir() if cache_dir is None else cache_dir) / "tokens"
    key = hashlib.sha256(f"{name} {tokenizer.fingerprint}".encode()).hexdigest()[:32]
    path = folder / f"{key}.npy"
    kept = _mapped(path)
    if kept is not None:
        return kept
    encoded = tokenizer.encode(texts)
    try:
        _write_atomically(path, encoded)
    except OSError as error:
        warnings.warn(
            f"tokens are not cached under {folder} ({error}); name another cache_dir=", stacklevel=2
        )
        return encoded
    kept = _mapped(path)
    return encoded if kept is None else kept


def _mapped(path: Path) -> NDArray[np.int32] | None:
    try:
        # Copy-on-write, not read-only: torch warns about arrays that cannot be written.
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return array if array.dtype == np.int32 and array.ndim == 2 and len(array) == 2 else None


def _write_atomically(path: Path, array: NDArray[np.int32]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
