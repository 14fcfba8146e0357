"""Under a tokenizer the same text has fewer tokens and exactly as many bytes."""

import json
import math
import os

import numpy as np
import pytest
import torch

from allometry.data import Corpus, load_tokenizer, read_text
from allometry.data.tokenizer import default_cache_dir

tokenizers = pytest.importorskip("tokenizers")

TEXTS = [f"Der {n}. Bär fraß 🍯 für {n * n} €, und niemand <|endoftext|> sah es.\n" * 6 for n in range(150)]
DOCUMENTS = {f"{number:03d}": text for number, text in enumerate(TEXTS)}


def _byte_level(special: tuple[str, ...] = (), **options):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(special),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def _words():
    """Whole words after lower-casing, with much of the text unknown or dropped."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.Sequence(
        [
            tokenizers.normalizers.NFD(),
            tokenizers.normalizers.Lowercase(),
            tokenizers.normalizers.StripAccents(),
        ]
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        TEXTS[:3], tokenizers.trainers.WordLevelTrainer(special_tokens=["[UNK]"], show_progress=False)
    )
    return tokenizer


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.mark.parametrize("make", [_byte_level, _words])
def test_bytes_per_token_is_total_bytes_over_total_tokens(make, cache):
    corpus = Corpus(DOCUMENTS, tokenizer=make(), cache_dir=cache)
    for split in ("train", "validation"):
        tokens, lengths = corpus.tokens(split), corpus.byte_lengths(split)
        texts = [text for _, text in corpus.documents(split)]
        total = sum(len(text.encode()) for text in texts) + len(texts)
        assert tokens.dtype == torch.int32
        assert tokens.shape == lengths.shape
        assert int(lengths.min()) >= 0
        assert int(lengths.sum()) == total
        assert corpus.bytes_per_token(split) == total / len(tokens)
        assert int(tokens.max()) < corpus.vocab_size
        assert int((tokens == corpus.separator).sum()) == len(texts)


def test_byte_level_tokens_spell_the_text_and_their_own_lengths(cache):
    tokenizer = _byte_level()
    corpus = Corpus(DOCUMENTS, tokenizer=tokenizer, cache_dir=cache)
    tokens, lengths = corpus.tokens("validation"), corpus.byte_lengths("validation")
    ends = (tokens == corpus.separator).nonzero().flatten().tolist()
    spelled = [
        tokenizer.decode(tokens[start:end].tolist(), skip_special_tokens=False)
        for start, end in zip([0, *(end + 1 for end in ends)], ends, strict=False)
    ]
    assert spelled == [text for _, text in corpus.documents("validation")]
    # In a byte-level vocabulary each character of a token's spelling is one byte. Within a character that is
    # cut into tokens the library gives no finer position, so compare where every token is whole characters.
    for token, length in zip(tokens.tolist(), lengths.tolist(), strict=True):
        if token != corpus.separator and tokenizer.decode([token]).isascii():
            assert length == len(tokenizer.id_to_token(token))


def test_bits_per_byte_agree_between_tokenizers_for_the_same_coding_cost(cache):
    """A tokenizer of single bytes must give a uniform model the same bits per byte as bytes themselves."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer.model = tokenizers.models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[])
    corpus = Corpus(DOCUMENTS, tokenizer=tokenizer, cache_dir=cache)
    assert corpus.vocab_size == 257  # 256 bytes, and a separator of its own
    assert corpus.bytes_per_token("train") == 1.0
    bits = math.log2(corpus.vocab_size) / corpus.bytes_per_token("train")
    assert bits == pytest.approx(8, rel=1e-3)
    assert len(corpus.tokens("train")) == len(Corpus(DOCUMENTS).tokens("train"))


def test_long_documents_are_encoded_in_pieces_without_loss(cache, monkeypatch):
    monkeypatch.setattr("allometry.data.tokenizer._PIECE", 1000)
    monkeypatch.setattr("allometry.data.tokenizer._TOGETHER", 7000)
    tokenizer = _byte_level()
    text = "".join(f"Zeile {n}: Bär 🍯 für {n} €\n" for n in range(4000))
    corpus = Corpus({"long": text}, tokenizer=tokenizer, cache_dir=cache)
    head, tail = corpus.tokens("train"), corpus.tokens("validation")
    assert tokenizer.decode(head[:-1].tolist()) + tokenizer.decode(tail[:-1].tolist()) == text
    assert int(corpus.byte_lengths("train").sum() + corpus.byte_lengths("validation").sum()) == (
        len(text.encode()) + 2
    )


def test_special_tokens_in_a_document_are_ordinary_text(cache):
    corpus = Corpus(DOCUMENTS, tokenizer=_byte_level(("<|endoftext|>",)), cache_dir=cache)
    assert corpus.separator == 0
    assert corpus.vocab_size == 400
    assert int((corpus.tokens("train") == 0).sum()) == len(list(corpus.documents("train")))


def test_truncation_and_padding_of_the_given_tokenizer_are_ignored_and_left_alone(cache):
    tokenizer = _byte_level()
    plain = Corpus(DOCUMENTS, tokenizer=tokenizer, cache_dir=cache).tokens("train")
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=64)
    assert torch.equal(Corpus(DOCUMENTS, tokenizer=tokenizer, cache_dir=cache).tokens("train"), plain)
    assert tokenizer.truncation["max_length"] == 8
    assert tokenizer.padding["length"] == 64


def test_tokens_come_from_the_cache_the_second_time(cache, monkeypatch):
    tokenizer = _byte_level()
    first = Corpus(DOCUMENTS, tokenizer=tokenizer, cache_dir=cache).tokens("train").clone()
    assert [path.suffix for path in (cache / "tokens").iterdir()] == [".npy"]
    monkeypatch.setattr("allometry.data.tokenizer.TextTokenizer.encode", None)  # encoding would fail
    again = Corpus(DOCUMENTS, tokenizer=tokenizer, cache_dir=cache)
    assert torch.equal(again.tokens("train"), first)
    with pytest.raises(TypeError):
        Corpus({**DOCUMENTS, "more": "text"}, tokenizer=tokenizer, cache_dir=cache).tokens("train")


def test_other_tokenizers_and_damaged_files_are_not_mistaken(cache):
    byte_level = Corpus(DOCUMENTS, tokenizer=_byte_level(), cache_dir=cache)
    words = byte_level.with_tokenizer(_words())
    assert not torch.equal(byte_level.tokens()[:50], words.tokens()[:50])
    assert torch.equal(byte_level.with_tokenizer(None).tokens(), Corpus(DOCUMENTS).tokens())
    expected = byte_level.tokens().clone()
    for path in (cache / "tokens").iterdir():
        os.truncate(path, 100)
    assert torch.equal(Corpus(DOCUMENTS, tokenizer=_byte_level(), cache_dir=cache).tokens(), expected)


def test_a_cache_that_cannot_be_written_costs_a_warning_only(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.warns(UserWarning, match="tokens are not cached"):
        tokens = Corpus(DOCUMENTS, tokenizer=_byte_level(), cache_dir=blocked).tokens()
    assert len(tokens) > 0


def test_default_cache_honours_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "allometry"
    Corpus(DOCUMENTS, tokenizer=_byte_level()).tokens()
    assert len(list((tmp_path / "allometry" / "tokens").iterdir())) == 1


def test_paths_folders_and_transformers_objects_lead_to_the_same_tokens(tmp_path, cache):
    tokenizer = _byte_level(("<stop>",))
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<stop>"}}))
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    from_folder = read_text(tmp_path / "rows.jsonl", tokenizer=folder, cache_dir=cache)
    from_file = read_text(tmp_path / "rows.jsonl", tokenizer=str(folder / "tokenizer.json"), cache_dir=cache)
    assert from_folder.separator == from_file.separator == tokenizer.token_to_id("<stop>")
    assert torch.equal(from_folder.tokens(), from_file.tokens())
    transformers = pytest.importorskip("transformers")
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<stop>")
    assert torch.equal(from_folder.with_tokenizer(wrapped).tokens(), from_folder.tokens())


def test_bad_tokenizers_get_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is not a tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"there is no tokenizer\.json"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(TypeError, match="not backed by the tokenizers library"):
        load_tokenizer(object())
    with pytest.raises(ValueError, match="has no vocabulary"):
        load_tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()))
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="nothing is downloaded"):
        load_tokenizer("no-such/tokenizer-anywhere")


def test_encodings_of_nothing_are_empty():
    encoded = load_tokenizer(_byte_level()).encode([])
    assert encoded.shape == (2, 0)
    assert encoded.dtype == np.int32
