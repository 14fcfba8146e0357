"""What a corpus promises: a digest of its content alone, clean splits, and counted bytes."""

import hashlib
import math
import random

import pytest
import torch

from allometry.data import Corpus, StandardLibrary


def _library(n: int = 400) -> dict[str, str]:
    draw = random.Random(0)
    return {f"folder/{i}.txt": f"document {i} " + "word " * draw.randint(5, 60) for i in range(n)}


def test_digest_does_not_depend_on_listing_order():
    documents = _library()
    shuffled = list(documents.items())
    random.Random(1).shuffle(shuffled)
    one, other = Corpus(documents), Corpus(shuffled)
    assert one.digest == other.digest
    assert torch.equal(one.tokens(), other.tokens())


def test_digest_is_sha256_of_names_splits_and_contents():
    corpus = Corpus(_library())
    expected = hashlib.sha256()
    for row in sorted(corpus.files.itertuples(), key=lambda row: row.name):
        expected.update(f"{row.name}\0{row.split}\0{row.sha256}\n".encode())
    assert corpus.digest == expected.hexdigest()
    contents = dict(_library())
    for row in corpus.files.itertuples():
        assert row.sha256 == hashlib.sha256(contents[row.name].encode()).hexdigest()


@pytest.mark.parametrize("change", ["name", "content", "removed"])
def test_any_change_changes_the_digest(change):
    documents = _library()
    before = Corpus(documents).digest
    content = documents.pop("folder/7.txt")
    if change == "name":
        documents["folder/7b.txt"] = content
    elif change == "content":
        documents["folder/7.txt"] = content + "."
    assert Corpus(documents).digest != before


def test_many_documents_are_divided_whole_and_by_name_alone():
    documents = _library(2000)
    corpus = Corpus(documents)
    train = {name for name, _ in corpus.documents("train")}
    held_out = {name for name, _ in corpus.documents("validation")}
    assert not train & held_out
    assert train | held_out == set(documents)
    # 2000 fair draws at 5 %: within four standard deviations of 100.
    assert abs(len(held_out) - 100) < 4 * math.sqrt(2000 * 0.05 * 0.95)
    # Another corpus with the same names, other contents and some documents fewer divides them alike.
    fewer = Corpus({name: text.upper() for name, text in list(documents.items())[:1500]})
    assert {name for name, _ in fewer.documents("validation")} == held_out & set(list(documents)[:1500])


def test_few_documents_lose_their_ends():
    text = "".join(f"line {i}\n" for i in range(4000))
    corpus = Corpus({"book": text, "poem": text.upper()})
    assert corpus.split_rule == "last 5% of each document"
    head = dict(corpus.documents("train"))
    tail = dict(corpus.documents("validation"))
    assert head["book"] + tail["book"] == text
    assert head["book"].endswith("\n")
    assert len(tail["book"]) / len(text) == pytest.approx(0.05, abs=0.001)


def test_a_cut_in_text_without_lines_never_splits_a_character():
    for length in range(20, 60):
        corpus = Corpus({"a": "x" + "€" * length})
        joined = "".join(text for split in ("train", "validation") for _, text in corpus.documents(split))
        assert joined == "x" + "€" * length
        assert corpus.files.replaced.sum() == 0


def test_equal_contents_are_kept_once_and_listed():
    documents = _library(400)
    documents["zzz.txt"] = documents["folder/3.txt"]
    corpus = Corpus(documents)
    assert "zzz.txt" not in set(corpus.files.name)
    assert corpus.skipped.to_dict("records") == [
        {"name": "zzz.txt", "reason": "same content as folder/3.txt"}
    ]


def test_training_text_that_is_also_held_out_is_dropped():
    corpus = Corpus({"a": "alpha", "b": "beta"}, validation={"held": "beta"})
    assert [name for name, _ in corpus.documents("train")] == ["a"]
    assert corpus.split_rule == "as given"


def test_invalid_bytes_and_nul_are_replaced_and_counted():
    corpus = Corpus({"bad": b"a\xffb\x00c\xff" + b"ok " * 40, "mark": "\ufffd is a character " * 9})
    assert corpus.files[corpus.files.name == "bad"].replaced.sum() == 3
    assert corpus.files[corpus.files.name == "mark"].replaced.sum() == 0
    text = "".join(text for _, text in corpus.documents("train"))
    assert "a\ufffdb\ufffdc\ufffd" in text


def test_byte_tokens_are_the_text_and_one_separator_a_document():
    corpus = Corpus(_library())
    tokens = corpus.tokens("train")
    assert tokens.dtype == torch.uint8
    pieces = bytes(tokens.tolist()).split(b"\0")
    assert [piece.decode() for piece in pieces[:-1]] == [text for _, text in corpus.documents("train")]
    assert pieces[-1] == b""
    both = len(corpus.tokens("train")) + len(corpus.tokens("validation"))
    assert both == corpus.bytes + len(corpus.files)


def test_uniform_model_over_bytes_costs_eight_bits_a_byte():
    corpus = Corpus(_library())
    for split in ("train", "validation"):
        targets = corpus.tokens(split).long()
        nats = torch.nn.functional.cross_entropy(
            torch.zeros(len(targets), corpus.vocab_size, dtype=torch.float64), targets, reduction="sum"
        )
        bits_per_byte = float(nats) / (math.log(2) * float(corpus.byte_lengths(split).sum()))
        assert bits_per_byte == pytest.approx(8.0, rel=1e-12)
        assert corpus.bytes_per_token(split) == 1.0


def test_default_split_is_the_one_named_at_construction():
    documents = _library()
    held_out = Corpus(documents, split="validation")
    assert torch.equal(held_out.tokens(), Corpus(documents).tokens("validation"))


@pytest.mark.parametrize(
    ("documents", "sentence"),
    [
        ({}, "holds no text"),
        ({"a": ""}, "1 left out, the first: empty"),
        ({"a": "x"}, "too few to divide"),
        ([("a", "one"), ("a", "two")], "two documents are named 'a'"),
    ],
)
def test_corpora_without_use_are_refused(documents, sentence):
    with pytest.raises(ValueError, match=sentence):
        Corpus(documents)


def test_wrong_kinds_are_refused():
    with pytest.raises(TypeError, match="document 'a' is a int"):
        Corpus({"a": 3})
    with pytest.raises(ValueError, match="split is 'test'"):
        Corpus({"a": "word " * 50}, split="test")
    with pytest.raises(ValueError, match="split is 'dev'"):
        Corpus({"a": "word " * 50}).tokens("dev")


def test_standard_library_divides_by_file_and_leaves_tables_and_tests_out():
    library = StandardLibrary()
    names = library.files.name
    assert names.is_unique
    assert set(library.files.split) == {"train", "validation"}
    assert library.bytes > 5_000_000
    assert 0.01 < library.files[library.files.split == "validation"].bytes.sum() / library.bytes < 0.2
    for forbidden in ("encodings/", "site-packages/", "test/", "idlelib/idle_test/", "pydoc_data/topics"):
        assert not names.str.startswith(forbidden).any(), forbidden
    assert not names.str.contains(r"(?:^|/)tests?/").any()
    text = dict(library.documents("train")) | dict(library.documents("validation"))
    with open(random.__file__, encoding="utf-8") as source:
        assert text["random.py"] == source.read()


def test_standard_library_keeps_the_split_of_a_file_when_others_are_excluded():
    whole = StandardLibrary().files.set_index("name").split
    partial = StandardLibrary(exclude=["asyncio", "typing.py", "idlelib/*"]).files.set_index("name").split
    assert not any(name.startswith(("asyncio/", "idlelib/")) or name == "typing.py" for name in partial.index)
    assert set(whole.index) - set(partial.index) == {
        name for name in whole.index if name.startswith(("asyncio/", "idlelib/")) or name == "typing.py"
    }
    assert (whole[partial.index] == partial).all()
    with pytest.raises(ValueError, match="all of it excluded"):
        StandardLibrary(exclude=["*"])
