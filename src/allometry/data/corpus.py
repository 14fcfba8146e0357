"""A body of text that can be named again: which documents, which split, which digest.

A loss means something only beside the text it was measured on. A `Corpus` therefore holds documents under
names, divides them into training and validation by a rule that depends on nothing but those names, and
carries a digest of names, split and contents: two numbers are compared only if their digests are equal.

* Nothing depends on the order in which a folder was listed: documents are sorted by name.
* Documents with the same content are kept once. A copy in the other split would be a leak.
* One separator follows each document. Among bytes it is byte 0, which no text document contains here.
* Bits per byte need the UTF-8 bytes behind the predicted tokens, and these are counted, not estimated:
  `Corpus.byte_lengths` says for each token how many bytes it stands for, and the lengths of a split add up
  to its text plus one byte for every separator. Losses under different tokenizers can so be compared.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

if TYPE_CHECKING:
    import pandas
    from numpy.typing import NDArray
    from torch import Tensor

Split = Literal["train", "validation"]

SPLITS: tuple[Split, Split] = ("train", "validation")
VALIDATION_SHARE = 0.05
SEPARATOR = b"\0"
# Below this many documents, or with a share outside these bounds, a hash of the names divides the text too
# unevenly to be of use, and the end of every document is held out instead.
_FEWEST_HASHED = 100
_SHARE_BOUNDS = (0.01, 0.2)


@dataclass(frozen=True)
class _Part:
    """A document, or the part of one that belongs to a single split."""

    name: str
    split: Split
    content: bytes
    sha256: str
    replaced: int  # invalid byte sequences and NUL characters replaced by U+FFFD


class Corpus:
    """Named documents, divided into training and validation text, as tokens.

    Parameters
    ----------
    documents : mapping or iterable of (name, text)
        Text is `str` or UTF-8 `bytes`; invalid bytes and NUL characters become U+FFFD and are counted in the
        column ``replaced`` of `files`.
    validation : mapping or iterable of (name, text), optional
        Held-out documents. Without them 5 % is held out, see `split_rule`.
    tokenizer : optional
        Nothing for bytes (vocabulary 256), or what `load_tokenizer` accepts.
    split : "train" or "validation"
        What `tokens` and its kin mean when no split is named.
    skipped : iterable of (name, reason)
        What the reader left out; shown in `skipped`.
    cache_dir : path, optional
        Where text under a tokenizer is kept between runs; default the user's cache folder. Bytes need none.

    Raises
    ------
    ValueError
        If no text is left, two documents share a name, or a split is unknown.

    Examples
    --------
    >>> corpus = Corpus({"a": "to be " * 50, "b": "or not " * 50})
    >>> corpus.split_rule, corpus.vocab_size, corpus.bytes
    ('last 5% of each document', 256, 650)
    """

    def __init__(
        self,
        documents: Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]],
        *,
        validation: Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]] | None = None,
        tokenizer: Any = None,
        split: Split = "train",
        skipped: Iterable[tuple[str, str]] = (),
        cache_dir: str | Path | None = None,
    ) -> None:
        self.split: Split = _known(split)
        self._skipped = list(skipped)
        held_out = [] if validation is None else self._unique(_prepared(validation, "validation"), {})
        taken = {part.sha256: part.name for part in held_out}
        parts = self._unique(_prepared(documents, "train"), taken)
        if validation is None:
            parts, self.split_rule = _divide(parts)
        else:
            parts, self.split_rule = parts + held_out, "as given"
        parts.sort(key=lambda part: (part.name, part.split))
        if not parts:
            reasons = [
                f" ({len(self._skipped)} left out, the first: {reason})" for _, reason in self._skipped
            ]
            raise ValueError(
                f"the corpus holds no text{''.join(reasons[:1])}; give a document that is not empty"
            )
        for name in SPLITS:
            if not any(part.split == name for part in parts):
                raise ValueError(
                    f"the corpus holds no {name} text: {sum(len(part.content) for part in parts)} bytes in "
                    f"{len(parts)} documents are too few to divide; give more text"
                )
        self._names = [part.name for part in parts]
        self._splits = [part.split for part in parts]
        self._lengths = [len(part.content) for part in parts]
        self._hashes = [part.sha256 for part in parts]
        self._replaced = [part.replaced for part in parts]
        # One buffer a split, separators included: what the byte tokens are, and all that is kept of the text.
        self._buffers: dict[Split, NDArray[np.uint8]] = {
            name: np.frombuffer(
                bytearray().join(part.content + SEPARATOR for part in parts if part.split == name),
                dtype=np.uint8,
            )
            for name in SPLITS
        }
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        self._tokenizer = None
        if tokenizer is not None:
            from allometry.data.tokenizer import load_tokenizer

            self._tokenizer = load_tokenizer(tokenizer)
        self._encoded: dict[Split, NDArray[np.int32]] = {}

    def _unique(self, parts: Sequence[_Part], taken: dict[str, str]) -> list[_Part]:
        """Sort by name, refuse equal names, and keep equal contents once."""
        kept: list[_Part] = []
        previous = None
        first = dict(taken)
        for part in sorted(parts, key=lambda part: part.name):
            if part.name == previous:
                raise ValueError(f"two documents are named {part.name!r}; names must differ")
            previous = part.name
            if not part.content:
                self._skipped.append((part.name, "empty"))
            elif part.sha256 in first:
                self._skipped.append((part.name, f"same content as {first[part.sha256]}"))
            else:
                first[part.sha256] = part.name
                kept.append(part)
        return kept

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(self._buffers[name]):,} bytes {name}" for name in SPLITS)
        return f"<{type(self).__name__} {len(self._names)} documents, {sizes}, digest {self.digest[:12]}>"

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the sorted names, splits and content hashes, in hexadecimal."""
        sha = hashlib.sha256()
        for name, split, content in zip(self._names, self._splits, self._hashes, strict=True):
            sha.update(f"{name}\0{split}\0{content}\n".encode())
        return sha.hexdigest()

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of text in both splits, separators not counted."""
        return sum(self._lengths)

    @property
    def files(self) -> "pandas.DataFrame":
        """One row a document (or part of one): name, bytes, split, sha256, replaced."""
        import pandas

        columns = {
            "name": self._names,
            "bytes": self._lengths,
            "split": self._splits,
            "sha256": self._hashes,
            "replaced": self._replaced,
        }
        return pandas.DataFrame(columns)

    @property
    def skipped(self) -> "pandas.DataFrame":
        """What was left out, and why: name, reason."""
        import pandas

        return pandas.DataFrame(self._skipped, columns=["name", "reason"])

    @property
    def vocab_size(self) -> int:
        """How many different tokens there can be, the separator included."""
        return 256 if self._tokenizer is None else self._tokenizer.vocab_size

    @property
    def separator(self) -> int:
        """The token that follows each document."""
        return 0 if self._tokenizer is None else self._tokenizer.separator

    def documents(self, split: Split | None = None) -> Iterator[tuple[str, str]]:
        """Names and texts of one split, in the order in which `tokens` holds them."""
        chosen = self._chosen(split)
        start = 0
        for name, home, length in zip(self._names, self._splits, self._lengths, strict=True):
            if home == chosen:
                yield name, self._buffers[chosen][start : start + length].tobytes().decode()
                start += length + len(SEPARATOR)

    def tokens(self, split: Split | None = None) -> "Tensor":
        """All tokens of a split, documents in order of name, each followed by the separator.

        Returns
        -------
        Tensor, shape (N,)
            On the CPU; uint8 for bytes, int32 under a tokenizer. The text is shared, not copied: do not
            write to it.
        """
        import torch

        chosen = self._chosen(split)
        if self._tokenizer is None:
            return torch.from_numpy(self._buffers[chosen])
        return torch.from_numpy(self._encoding(chosen)[0])

    def byte_lengths(self, split: Split | None = None) -> "Tensor":
        """UTF-8 bytes behind each token of `tokens`; a separator counts as one byte.

        Returns
        -------
        Tensor of int32, shape (N,)
            Its sum is the text of the split plus one byte a document, whatever the tokenizer.
        """
        import torch

        chosen = self._chosen(split)
        if self._tokenizer is None:
            return torch.ones(len(self._buffers[chosen]), dtype=torch.int32)
        return torch.from_numpy(self._encoding(chosen)[1])

    def bytes_per_token(self, split: Split | None = None) -> float:
        """UTF-8 bytes (separators as one byte) over tokens of a split: 1 for bytes.

        A loss in nats per token over a whole split is ``loss / (ln 2 · bytes_per_token)`` bits per byte; for
        chosen windows, sum `byte_lengths` over the same windows instead.
        """
        chosen = self._chosen(split)
        if self._tokenizer is None:
            return 1.0
        return len(self._buffers[chosen]) / self._encoding(chosen).shape[1]

    def _chosen(self, split: Split | None) -> Split:
        return self.split if split is None else _known(split)

    def _encoding(self, split: Split) -> "NDArray[np.int32]":
        """Tokens and byte lengths of a split, shape (2, N), from the cache where it has them."""
        if split not in self._encoded:
            from allometry.data.tokenizer import cached_encoding

            assert self._tokenizer is not None
            texts = (text for _, text in self.documents(split))
            self._encoded[split] = cached_encoding(
                self._tokenizer, texts, name=f"{self.digest}/{split}", cache_dir=self.cache_dir
            )
        return self._encoded[split]

    def with_tokenizer(self, tokenizer: Any) -> Self:
        """The same documents and split, as tokens of another tokenizer (None: bytes)."""
        from allometry.data.tokenizer import load_tokenizer

        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._tokenizer = None if tokenizer is None else load_tokenizer(tokenizer)
        twin._encoded = {}
        return twin


def _known(split: str) -> Split:
    for name in SPLITS:
        if split == name:
            return name
    raise ValueError(f"split is {split!r}; choose 'train' or 'validation'")


def _prepared(
    documents: Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]], split: Split
) -> list[_Part]:
    """Valid UTF-8 without NUL, and its hash."""
    pairs = documents.items() if isinstance(documents, Mapping) else documents
    parts = []
    for name, text in pairs:
        content, replaced = _valid(name, text)
        parts.append(_Part(name, split, content, hashlib.sha256(content).hexdigest(), replaced))
    return parts


def _valid(name: str, text: str | bytes) -> tuple[bytes, int]:
    if isinstance(text, str):
        # Lone surrogates, which JSON can spell, have no UTF-8; they pass through as invalid bytes.
        text = text.encode("utf-8", "surrogatepass")
    elif not isinstance(text, (bytes, bytearray)):
        raise TypeError(f"document {name!r} is a {type(text).__name__}; give str or UTF-8 bytes")
    content = bytes(text)
    replaced = 0
    try:
        content.decode()
    except UnicodeDecodeError:
        repaired = content.decode(errors="replace").encode()
        mark = "\ufffd".encode()
        replaced = repaired.count(mark) - content.count(mark)
        content = repaired
    if SEPARATOR in content:
        replaced += content.count(SEPARATOR)
        content = content.replace(SEPARATOR, "\ufffd".encode())
    return content, replaced


def _divide(parts: list[_Part]) -> tuple[list[_Part], str]:
    """Hold out about 5 %: whole documents by a hash of their names, else the end of each."""
    hashed = [
        _Part(part.name, "validation", part.content, part.sha256, part.replaced)
        if _unit_hash(part.name) < VALIDATION_SHARE
        else part
        for part in parts
    ]
    total = sum(len(part.content) for part in hashed)
    share = sum(len(part.content) for part in hashed if part.split == "validation") / max(total, 1)
    if len(hashed) >= _FEWEST_HASHED and _SHARE_BOUNDS[0] <= share <= _SHARE_BOUNDS[1]:
        return hashed, f"{VALIDATION_SHARE:.0%} of the documents, by a hash of the name"
    halves = [half for part in parts for half in _head_and_tail(part)]
    return halves, f"last {VALIDATION_SHARE:.0%} of each document"


def _unit_hash(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


def _head_and_tail(part: _Part) -> Iterator[_Part]:
    """Cut at the line end nearest before the last 5 %, or, in text without lines, between two characters."""
    content = part.content
    cut = len(content) - round(VALIDATION_SHARE * len(content))
    line = content.rfind(b"\n", 0, cut) + 1
    # A line end farther away than the tail is long would hold out twice the share.
    if line >= 2 * cut - len(content) and line > 0:
        cut = line
    else:
        while cut < len(content) and content[cut] & 0xC0 == 0x80:  # inside a UTF-8 sequence
            cut += 1
    mark = "\ufffd".encode()
    replaced = part.replaced
    for split, piece in zip(SPLITS, (content[:cut], content[cut:]), strict=True):
        here = min(piece.count(mark), replaced)
        replaced -= here
        if piece:
            yield _Part(part.name, split, piece, hashlib.sha256(piece).hexdigest(), here)
