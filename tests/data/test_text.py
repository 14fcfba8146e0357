"""Files of every kind become the same documents, whatever they are wrapped in."""

import gzip
import json

import pytest
import torch

from allometry.data import read_text

ROWS = [f"row {number} says " + "so " * (number % 7 + 3) for number in range(300)]


def _jsonl(field: str = "text") -> str:
    return "".join(json.dumps({"id": number, field: row}) + "\n" for number, row in enumerate(ROWS))


def test_json_lines_parquet_and_gzip_hold_the_same_documents(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "rows.jsonl").write_text(_jsonl())
    (tmp_path / "a" / "rows.jsonl.gz").write_bytes(gzip.compress(_jsonl().encode()))
    pandas.DataFrame({"text": ROWS}).to_parquet(tmp_path / "a" / "rows.parquet", row_group_size=64)
    kinds = {
        name: read_text(tmp_path / "a" / name) for name in ("rows.jsonl", "rows.jsonl.gz", "rows.parquet")
    }
    for name, corpus in kinds.items():
        texts = {text for split in ("train", "validation") for _, text in corpus.documents(split)}
        assert texts == set(ROWS), name
        assert corpus.split_rule.startswith("5% of the documents"), name
        assert list(corpus.files.name)[:2] == [f"{name}:000000001", f"{name}:000000002"]


def test_rows_keep_their_split_when_rows_are_added(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(_jsonl())
    before = read_text(file).files.set_index("name").split
    file.write_text(_jsonl() + json.dumps({"text": "one more"}) + "\n")
    after = read_text(file).files.set_index("name").split
    assert (after[before.index] == before).all()
    assert len(after) == len(before) + 1


def test_folder_is_read_by_extension_and_lists_what_it_skips(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "secret.txt").write_text("hidden " * 30)
    (tmp_path / "one.txt").write_text("first " * 50)
    (tmp_path / "deep" / "two.md").write_text("second " * 50)
    (tmp_path / "deep" / "er" / "three.txt.gz").write_bytes(gzip.compress(b"third " * 50))
    (tmp_path / "rows.ndjson").write_text('{"text": "fourth fourth fourth fourth fourth"}\n\n')
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    (tmp_path / "odd.txt").write_bytes(b"text\x00then not")
    corpus = read_text(tmp_path)
    assert set(corpus.files.name) == {
        "one.txt", "deep/two.md", "deep/er/three.txt.gz", "rows.ndjson:000000001"
    }  # fmt: skip
    assert dict(corpus.skipped.itertuples(index=False)) == {
        "photo.png": "extension .png: not known as text",
        "odd.txt": "binary (holds NUL bytes)",
    }
    assert read_text(tmp_path).digest == corpus.digest
    assert "deep/two.md" not in set(read_text(tmp_path, exclude=["deep"]).files.name)
    assert "deep/two.md" not in set(read_text(tmp_path, exclude="*.md").files.name)


def test_digest_does_not_depend_on_where_the_folder_lies(tmp_path):
    for place in ("here", "else/where"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "a.txt").write_text("alpha " * 60)
        (tmp_path / place / "b.txt").write_text("beta " * 60)
    assert read_text(tmp_path / "here").digest == read_text(tmp_path / "else/where").digest


def test_patterns_and_lists(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "part.dat").write_text(f"{folder} " * 60)
        (tmp_path / folder / "other.txt").write_text(f"{folder}{folder} " * 60)
    by_pattern = read_text(str(tmp_path / "*" / "part.dat"))
    assert set(by_pattern.files.name) == {"x/part.dat", "y/part.dat"}
    recursive = read_text(str(tmp_path / "**" / "*"))
    assert set(recursive.files.name) == {"x/part.dat", "y/part.dat", "x/other.txt", "y/other.txt"}
    # Equal base names stay apart, and a file named twice is read once.
    files = [tmp_path / "x" / "part.dat", tmp_path / "y" / "part.dat", tmp_path / "x" / "part.dat"]
    assert read_text(files).digest == by_pattern.digest


def test_a_single_plain_file_is_divided_at_its_end(tmp_path):
    text = "".join(f"verse {number}\n" for number in range(3000))
    (tmp_path / "poem").write_text(text)  # named outright, so no extension is asked for
    corpus = read_text(tmp_path / "poem")
    train = bytes(corpus.tokens("train").tolist())[:-1].decode()
    held_out = bytes(corpus.tokens("validation").tolist())[:-1].decode()
    assert train + held_out == text
    assert len(held_out) / len(text) == pytest.approx(0.05, abs=0.001)


def test_validation_of_the_user_is_kept_as_given(tmp_path):
    (tmp_path / "train.txt").write_text("learn this")
    (tmp_path / "held.txt").write_text("ask that")
    corpus = read_text(tmp_path / "train.txt", validation=tmp_path / "held.txt")
    assert list(corpus.documents("train")) == [("train.txt", "learn this")]
    assert list(corpus.documents("validation")) == [("held.txt", "ask that")]


def test_null_rows_are_skipped_and_invalid_text_is_counted(tmp_path):
    rows = [{"text": None}, {"text": "fine " * 30}, {"text": "lone \ud800 surrogate " * 2}]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    corpus = read_text(tmp_path / "rows.jsonl")
    assert corpus.skipped.values.tolist() == [["rows.jsonl:000000001", "no text (null)"]]
    assert corpus.files.replaced.sum() > 0
    assert torch.equal(corpus.tokens(), read_text(tmp_path / "rows.jsonl").tokens())


def test_bad_sources_get_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="there is no file or folder"):
        read_text(tmp_path / "missing")
    with pytest.raises(ValueError, match="no file matches the pattern"):
        read_text(str(tmp_path / "*.txt"))
    with pytest.raises(ValueError, match="no sources given"):
        read_text([])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="the corpus holds no text"):
        read_text(tmp_path / "empty")
    (tmp_path / "image.bin").write_bytes(b"\0\1\2")
    with pytest.raises(ValueError, match="holds NUL bytes"):
        read_text(tmp_path / "image.bin")
    (tmp_path / "broken.gz").write_bytes(gzip.compress(b"text " * 1000)[:40])
    with pytest.raises(ValueError, match="not a whole gzip file"):
        read_text(tmp_path / "broken.gz")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{oops", "line 2, is not JSON"),
        ('{"body": "x"}', r"line 2, has no 'text' \(its keys are body\)"),
        ("[1]", r"has no 'text' \(it is a list\)"),
        ('{"text": 5}', "the text is a int, not a string: 5"),
    ],
)
def test_bad_rows_are_named_by_line(tmp_path, line, sentence):
    (tmp_path / "rows.jsonl").write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(ValueError, match=sentence):
        read_text(tmp_path / "rows.jsonl")


def test_a_missing_column_is_named(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    pandas.DataFrame({"body": ROWS}).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"no column 'text' \(it has body\)"):
        read_text(tmp_path / "rows.parquet")
    assert read_text(tmp_path / "rows.parquet", text_field="body").bytes == sum(map(len, ROWS))
