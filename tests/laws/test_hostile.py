"""Whatever people have is read as a simple reader would read it, or refused in a sentence.

By default a few hundred tables; ``ALLOMETRY_EXAMPLES=5000`` asks for so many of each kind.
"""

import csv
import gzip
import io
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allometry import laws
from allometry.laws import documents, pieces
from allometry.laws import tables as separated

EXAMPLES = int(os.environ.get("ALLOMETRY_EXAMPLES", "0"))


def examples(usual):
    """So many tables, or more where they are asked for: in proportion, as some cost a fit each."""
    return settings(max_examples=max(usual, EXAMPLES * usual // 100), deadline=None, database=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module", params=[0, 500], ids=["in stretches", "cell by cell"])
def way(request):
    """Tables are read in one of two ways, as they are plain and long or not; both are tried with each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(separated, "PLAIN", request.param)
        yield request.param


# --- a simple reader, to compare with ----------------------------------------------------------------------
BLANKS = ("", "na", "n/a", "none", "null", "-")
FACTORS = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
RANGES = {"N": (1e-9, 1e36), "D": (1e-9, 1e36), "loss": (1e-9, 1e9)}
BAD = object()


def cell_value(text, size):
    """A number, None for a blank, BAD for anything else."""
    text = text.strip()
    if text.lower() in BLANKS:
        return None
    factor = 1.0
    if size and text[-1].lower() in FACTORS and text[0] in "+-.0123456789":
        factor, text = FACTORS[text[-1].lower()], text[:-1].strip()
    if "," in text:
        whole, _, rest = text.partition(".")
        groups = whole.lstrip("+-").split(",")
        if (
            not 1 <= len(groups[0]) <= 3
            or any(len(group) != 3 for group in groups[1:])
            or groups[0][0] == "0"
        ):
            return BAD
        if not all(group.isascii() and group.isdigit() for group in groups):
            return BAD
        text = whole.replace(",", "") + ("." + rest if rest else "")
    try:
        return float(text) * factor
    except ValueError:
        return BAD


def simple_reader(data, delimiter):
    """Rows of N, D, loss that a person would keep, by line; and how many rows there were."""
    lines = csv.reader(
        io.StringIO(data.decode("utf-8-sig", errors="replace"), newline=""), delimiter=delimiter,
        skipinitialspace=True,
    )  # fmt: skip
    head = [name.strip() for name in next(lines)]
    count, good = 0, []
    for cells in lines:
        if not any(cell.strip() for cell in cells):
            continue
        count += 1
        while len(cells) > len(head) and not cells[-1].strip():
            cells = cells[:-1]
        if len(cells) != len(head):
            continue
        row = {}
        for name, cell in zip(head, cells, strict=True):
            if name in RANGES and name not in row:
                row[name] = cell_value(cell, name != "loss")
        if any(value is BAD for value in row.values()):
            continue
        inside = all(v is None or RANGES[name][0] <= v <= RANGES[name][1] for name, v in row.items())
        if inside and row["loss"] is not None and row not in [other for _, other in good]:
            good.append((lines.line_num, row))
    for name in ("N", "D"):
        if any(row.get(name) is not None for _, row in good):
            good = [(line, row) for line, row in good if row[name] is not None]
    return good, count


# --- tables ------------------------------------------------------------------------------------------------
plain = st.one_of(
    st.floats(0.5, 12.0).map(repr), st.integers(1, 10**12).map(str), st.floats(1e5, 1e11).map("{:.3e}".format)
)
odd = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True).map(repr),
    st.sampled_from([
        "", " ", "nan", "NaN", "-nan", "inf", "-inf", "Infinity", "0", "-0.0", "-1", "1e400", "-1e400",
        "5e-324", "1e308", "9" * 400, "70M", "1.5 b", "3T", "1,234", "12,345,678", "1,23", "0,123", ",5",
        "1_000", "1__0", "0x10", "oops", "None", "N/A", "null", "-", "--", "True", "1e", "e5", "+", ".",
        "1.2.3", "=1+1", "3;4", "5|6", "\u0663", "\u22125", "\u00bd", "\ufffd", "1\u00a0000", "$3", "3%",
        "1 2", "0b1", "1e5k", "M", " 7 ", "007", "+5", "1d5", "18446744073709551616", "9007199254740993",
        "0.1000000000000000055511151231257827",
    ]),
)  # fmt: skip
usual = st.one_of(plain, plain, plain, odd)
heads = st.sampled_from([
    ["N", "D", "loss"], ["loss", "D", "N"], ["N", "loss"], ["D", "loss"], ["N", "comment", "loss"],
    ["N", "N", "loss"], ["loss", "N", "loss"], ["", "N", "D", "loss"], ["N", "D", "loss", ""], ["loss"],
    [" N ", " D", "loss "],
])  # fmt: skip


@st.composite
def tables(draw, cells=usual, ragged=True):
    """A table's bytes in some dialect, with its delimiter and header."""
    head = draw(heads)
    rows = draw(st.lists(st.lists(cells, min_size=len(head), max_size=len(head)), max_size=7))
    for _ in range(draw(st.integers(0, 2))):
        if rows:
            rows.insert(draw(st.integers(0, len(rows))), draw(st.sampled_from(rows)))
    if ragged and rows and draw(st.booleans()):
        which = draw(st.integers(0, len(rows) - 1))
        rows[which] = rows[which][: draw(st.integers(0, len(head)))] + draw(st.lists(cells, max_size=2))
    delimiter = draw(st.sampled_from(",\t;|")) if len(head) > 1 else ","
    if delimiter == ";":  # there a comma may be a decimal point: see the tests of columns
        rows = [[cell.replace(",", "") for cell in row] for row in rows]
    out = io.StringIO(newline="")
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    writer = csv.writer(out, delimiter=delimiter, quoting=quoting,
                        lineterminator=draw(st.sampled_from(["\n", "\r\n"])))  # fmt: skip
    writer.writerows([head, *rows])
    data = out.getvalue().encode(draw(st.sampled_from(["utf-8", "utf-8-sig"])))
    if draw(st.booleans()) and data.count(b"\n") > 1:  # bytes that are no UTF-8, in the last row
        at = data[:-1].rindex(b"\n") + 1
        data = data[:at] + draw(st.binary(min_size=1, max_size=2).filter(lambda b: min(b) > 127)) + data[at:]
    return data, delimiter


def rows_left_out(found):
    """Rows of the ledger, without entries on files as a whole."""
    return int(found.left_out.loc[found.left_out["row"].notna(), "count"].sum())


@examples(150)
@given(tables())
def test_what_is_kept_is_what_a_simple_reader_keeps(folder, way, made):
    data, delimiter = made
    path = folder / "table.csv"
    path.write_bytes(data)
    good, count = simple_reader(data, delimiter)
    try:
        found = laws.read_runs(path)
    except ValueError:
        assert not good
        return
    table = found.table
    assert table["row"].tolist() == [line for line, _ in good]
    for name, column in (("N", "params"), ("D", "tokens"), ("loss", "loss")):
        wanted = [row[name] for _, row in good if row.get(name) is not None]
        assert table.get(column, np.empty(0)).tolist() == wanted
    assert len(table) + rows_left_out(found) == count


# --- never a trace, always a sentence ----------------------------------------------------------------------
def refusal_of(call):
    """The sentence of a refusal, None where there is none; anything but a refusal fails the test."""
    refusal = None
    try:
        call()
    except (ValueError, ImportError) as error:
        refusal = error
    if refusal is None:
        return None
    assert type(refusal).__module__.startswith(("builtins", "allometry"))  # not what a library let slip
    assert "\n" not in str(refusal)
    assert 20 < len(str(refusal)) < 1500
    return str(refusal)


ROWS = [
    {"step": i, "run": f"r{i % 2}", "params": 10.0**6 * (1 + i % 2), "val_loss": 3 - i / 9} for i in range(6)
]
TEXTS = {
    "a.csv": "run,step,params,val_loss\n"
    + "".join(f'"{r["run"]}",{r["step"]},1e6,{r["val_loss"]}\n' for r in ROWS),
    "b.tsv": "N\tD\tloss\n1e6\t1e9\t3.0\n2e6\t1e9\t2.5\n",
    "c.csv": "N;D;loss\n1000;1e9;3,25\n2000;1e9;2,5\n",
    "d.jsonl": "\n".join(map(json.dumps, ROWS)),
    "e.json": json.dumps(ROWS),
    "f.json": json.dumps({"config": {"params": 1e6}, "history": ROWS}),
    "trainer_state.json": json.dumps({"log_history": ROWS, "global_step": 5, "total_flos": 1e15}),
    "g.json": json.dumps({name: {str(i): r[name] for i, r in enumerate(ROWS)} for name in ROWS[0]}),
    "h.log": "\n".join(map(json.dumps, ROWS)),
    "i.csv": "Step,a - loss,a - loss__MIN,a - loss__MAX\n1,3,3,3\n2,2,2,2\n",
}


scraps = st.sampled_from([
    b'"', b'""', b",", b"\n", b"\r", b"{", b"}", b"[", b"]", b"null", b"NaN", b"\xff\xfe", b"\x00", b":",
    b"1e999", b"-", b"#", b";;", b"\\", b"[" * 3000,
])  # fmt: skip


def damaged(draw, data):
    """Bytes of a file after something went wrong."""
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.integers(0, 3))
        if kind == 0:
            data = data[:at]
        elif kind == 1:
            data = data[:at] + data[at + draw(st.integers(1, 20)) :]
        else:
            data = data[:at] + draw(st.one_of(st.binary(min_size=1, max_size=4), scraps)) + data[at:]
    return data


@st.composite
def files(draw):
    """Name and bytes of a log, more or less damaged."""
    name = draw(st.sampled_from(sorted(TEXTS)))
    data = damaged(draw, TEXTS[name].encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))))
    if draw(st.integers(0, 4)) == 0:
        name, data = name + ".gz", damaged(draw, gzip.compress(data))
    return name, data


@examples(150)
@given(files())
def test_a_damaged_file_is_read_or_refused_in_a_sentence(folder, way, made):
    name, data = made
    path = folder / "damaged" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)

    def read():
        found = laws.read_runs(path)
        assert len(found.table)
        for quantity in set(found.table) & {"params", "tokens", "flops", "loss"}:
            values = found.table[quantity].to_numpy(float)
            assert (np.isfinite(values) & (values > 0)).all()
        assert (found.left_out["count"] > 0).all()
        assert len(found.final())

    refusal_of(read)
    path.unlink()


@pytest.mark.parametrize("name", ["run-x.wandb", "events.out.tfevents.1", "a.parquet"])
@examples(20)
@given(data=st.binary(max_size=200), whole=st.booleans())
def test_formats_of_others_full_of_noise_are_refused_in_a_sentence(folder, name, data, whole):
    headers = {"run-x.wandb": b":W&B\xe1\xbe\x00", "a.parquet": b"PAR1"}
    path = folder / "binary" / name
    path.parent.mkdir(exist_ok=True)
    body = headers.get(name, b"") + data
    if whole and name.endswith("wandb"):  # a frame that is one, around what is no message
        body = headers[name] + bytes(4) + len(data).to_bytes(2, "little") + b"\x01" + data
    path.write_bytes(body)
    assert refusal_of(lambda: laws.read_runs(path)) is not None
    path.unlink()


def test_a_quote_that_is_never_closed_costs_its_own_row(tmp_path):
    path = tmp_path / "t.csv"
    rows = [f"r{i},{10**6 + i},{3 - i / 100}" for i in range(50)]
    for bad in ('"r7,1000007,2.93', '"r7"x,1000007,2.93'):
        rows[7] = bad
        path.write_text("run,N,loss\n" + "\n".join(rows) + "\n")
        found = laws.read_runs(path)
        assert found.table["params"].tolist() == [10**6 + i for i in range(50) if i != 7]
        assert found.left_out[["row", "count"]].to_numpy().tolist() == [[9, 1]]


def test_an_array_cut_short_keeps_what_came_before(tmp_path):
    text = json.dumps(ROWS)
    (tmp_path / "t.json").write_text(text[: text.rindex("{") + 9])
    found = laws.read_runs(tmp_path / "t.json")
    assert len(found.table) == len(ROWS) - 1
    assert "breaks off" in found.left_out["reason"].iloc[0]


def test_names_and_cells_of_any_length_make_a_short_sentence(tmp_path):
    long = "x" * 100_000
    (tmp_path / "t.csv").write_text(f"{long},{long}y\n1,2\n")
    assert len(refusal_of(lambda: laws.read_runs(tmp_path / "t.csv"))) < 1000
    (tmp_path / "u.csv").write_text(f"{long},N,loss\n1,1e6,{long}\n")
    assert len(refusal_of(lambda: laws.read_runs(tmp_path / "u.csv"))) < 1000


# --- what may not matter does not --------------------------------------------------------------------------
def law_table(seed=0, head="N,D,val_loss", unit=1.0):
    """Rows of twelve runs along a known law."""
    generator = np.random.default_rng(seed)
    rows = []
    for n in (1e7, 3e7, 1e8, 3e8):
        for ratio in (10, 20, 40):
            loss = 1.8 + 400 * n**-0.35 + 2000 * (ratio * n) ** -0.37
            loss *= np.exp(0.002 * generator.normal())
            rows.append(f"{n:.0f},{ratio * n / unit:.12g},{loss:.9f}")
    return head, rows


def told(folder, head, rows):
    path = folder / "law.csv"
    path.write_text("\n".join([head, *rows]) + "\n")
    found = laws.read_runs(path)
    answer = laws.answer(found, law="chinchilla", predict=[{"params": 1e9, "tokens": 2e10}], resamples=40)
    return found, answer.forecasts[0]


def assert_same(one, other):
    """The same forecast with the same intervals."""
    assert one["value"] == pytest.approx(other["value"], rel=1e-7)
    np.testing.assert_allclose(one["mean"], other["mean"], rtol=1e-6)
    np.testing.assert_allclose(one["prediction"], other["prediction"], rtol=1e-6)


@pytest.fixture(scope="module")
def reference(folder):
    return told(folder, *law_table())


BAD_ROWS = [
    "1e8,1e9,nan", "1e8,1e9,inf", "1e8,1e9,-2.5", "1e8,1e9,0", "1e8,1e9,", "1e8,1e9,oops", "1e8,,2.5",
    "abc,1e9,2.5", "1e8,-1e9,2.5", "1e8,1e9", "1e8,1e9,2.5,7", "inf,1e9,2.5", "1e8,1e9,1e300",
    "1e-300,1e9,2.5", "1e8,1e9,5e-324", "0,1e9,2.5", '"1e8,1e9,2.5', '"1e8"x,1e9,2.5', "1e8,1e9,3%",
    "1e8,1e99,2.5",
]  # fmt: skip


@examples(20)
@given(bad=st.sampled_from(BAD_ROWS), at=st.integers(0, 12))
def test_a_bad_row_is_told_and_changes_nothing(folder, way, reference, bad, at):
    head, rows = law_table()
    path = folder / "law.csv"
    path.write_text("\n".join([head, *rows[:at], bad, *rows[at:]]) + "\n")
    found = laws.read_runs(path)
    assert rows_left_out(found) == 1
    assert found.left_out["row"].tolist() == [2 + at]
    good = reference[0].table
    assert found.table.drop(columns="row").equals(good.drop(columns="row"))  # hence the same fit, to the bit


@examples(4)
@given(order=st.permutations(range(12)))
def test_the_order_of_rows_does_not_matter(folder, reference, order):
    head, rows = law_table()
    assert_same(told(folder, head, [rows[i] for i in order])[1], reference[1])


@examples(4)
@given(again=st.lists(st.integers(0, 11), min_size=1, max_size=30))
def test_a_row_given_again_does_not_narrow_the_interval(folder, reference, again):
    head, rows = law_table()
    found, one = told(folder, head, rows + [rows[i] for i in again])
    assert_same(one, reference[1])
    assert rows_left_out(found) == len(again)


@pytest.mark.parametrize(
    "head",
    ["params,tokens,loss", "Model Size,num_tokens,eval/CrossEntropyLoss", "n_params,train tokens,Val Loss"],
)
def test_columns_go_by_many_names(folder, reference, head):
    assert_same(told(folder, head, law_table()[1])[1], reference[1])


@pytest.mark.parametrize(
    "name", ["tokens_B", "Tokens (B)", "tokens_in_billions", "train_tokens [billion]", "D (b)"]
)
def test_a_unit_in_the_name_counts(folder, reference, name):
    head, rows = law_table(head=f"N,{name},val_loss", unit=1e9)
    assert_same(told(folder, head, rows)[1], reference[1])
    path = folder / "asked.csv"
    path.write_text(f"N,{name},val_loss\n1e6,2.5,3\n")
    assert laws.read_runs(path, columns={"tokens": name}).table["tokens"].tolist() == [2.5e9]
    path.write_text(f"N,{name},val_loss\n1e6,20B,3\n1e6,20,3.1\n")  # 2e10, or 2e19?
    assert laws.read_runs(path).table["tokens"].tolist() == [2e10]


@pytest.mark.parametrize("factor", [1e-3, 1e6])
def test_counting_in_another_unit_gives_the_same_forecast(folder, reference, factor):
    head, rows = law_table(unit=1 / factor)
    path = folder / "scaled.csv"
    path.write_text("\n".join([head, *rows]) + "\n")
    place = {"params": 1e9, "tokens": 2e10 * factor}
    one = laws.answer(laws.read_runs(path), law="chinchilla", predict=[place], resamples=40).forecasts[0]
    assert_same(one, reference[1])


def test_one_learning_rate_in_two_spellings_is_one_run(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("N,D,lr,seed,loss\n1e6,1e8,0.001,1,3\n1e6,2e8,1e-3,1.0,2.9\n1e6,4e8,.001,01,2.8\n")
    assert laws.read_runs(path).table["run"].nunique() == 1


# --- logs --------------------------------------------------------------------------------------------------
def test_a_step_logged_twice_counts_once_and_is_told(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("step,N,loss\n1,1e6,4\n2,1e6,3.5\n2,1e6,3.4\n3,1e6,3\n")
    found = laws.read_runs(path)
    assert found.final("all")["loss"].tolist() == [4, 3.4, 3]
    assert found.left_out[["row", "count"]].to_numpy().tolist() == [[3, 1]]


steps = st.tuples(
    st.sampled_from(["0", "1", "2", "3", "", "x", "inf"]),
    st.sampled_from(["1e6", "1e6", "2e6", "", "-1"]),
    st.sampled_from(["4", "3.5", "3", "2.5", "9", "nan", "", "oops", "0"]),
)


@examples(60)
@given(st.lists(steps, max_size=14))
def test_every_row_of_a_log_is_kept_or_left_out(folder, way, rows):
    path = folder / "steps.csv"
    path.write_text("step,N,loss\n" + "".join(",".join(row) + "\n" for row in rows))
    try:
        found = laws.read_runs(path)
    except ValueError:
        return
    assert len(found.table) + rows_left_out(found) == sum(any(row) for row in rows)
    for _, mine in found.table.groupby("run"):
        assert mine["step"].is_unique
        assert mine["loss"][mine["step"].idxmax()] <= 1.5 * mine["loss"].min()  # or it has diverged


def test_a_loss_that_comes_late_is_preferred_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "CELLS", 9)
    early = [{"step": i, "N": 1e6, "loss": 3 - i / 100} for i in range(9)]
    late = [{"step": 8, "val_loss": 2.5}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, early + late)))
    found = laws.read_runs(tmp_path / "t.jsonl")
    assert found.columns["loss"] == "val_loss"
    assert found.final()["loss"].tolist() == [2.5]
    assert found.final()["params"].tolist() == [1e6]


def test_formats_agree(tmp_path, way):
    head, rows = law_table()
    cells = [row.split(",") for row in rows]
    records = [{"N": float(n), "D": float(d), "val_loss": float(loss)} for n, d, loss in cells]
    (tmp_path / "a.csv").write_text("\n".join([head, *rows]))
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "c.json").write_text(json.dumps(records, indent=2))
    (tmp_path / "d.json.gz").write_bytes(gzip.compress(json.dumps({"runs": records}).encode()))
    (tmp_path / "e.json").write_text(json.dumps({name: [r[name] for r in records] for name in records[0]}))
    (tmp_path / "f.csv").write_text("\r\n".join([head, *rows]).replace(",", "|"), encoding="utf-16")
    tables_ = [laws.read_runs(path).table for path in sorted(tmp_path.iterdir())]
    for table in tables_[1:]:
        for name in ("params", "tokens", "flops", "loss"):
            assert table[name].tolist() == tables_[0][name].tolist()


def test_a_document_too_long_to_hold_is_refused_but_an_array_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "DOCUMENT", 1000)
    monkeypatch.setattr(documents, "_CHUNK", 64)
    records = [{"N": 1e6 + i, "loss": 3 - i / 100} for i in range(100)]
    (tmp_path / "a.json").write_text(json.dumps(records))
    assert len(laws.read_runs(tmp_path / "a.json").table) == 100
    (tmp_path / "b.json").write_text(json.dumps({"history": records}))
    assert "held whole" in refusal_of(lambda: laws.read_runs(tmp_path / "b.json"))
    (tmp_path / "c.json").write_text(json.dumps([{"N": 1e6, "loss": 3, "note": "x" * 5000}]))
    assert "cannot be read" in refusal_of(lambda: laws.read_runs(tmp_path / "c.json"))


def test_a_row_without_a_step_tells_its_settings_but_not_its_loss(tmp_path):
    rows = [{"params": 1e6}, {"step": 10, "loss": 4}, {"step": 20, "loss": 3}, {"loss": 3.9}, {"tokens": 5e6}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = laws.read_runs(tmp_path / "t.jsonl")
    assert found.final()[["step", "params", "tokens", "loss"]].to_numpy().tolist() == [[20, 1e6, 5e6, 3]]
    assert found.left_out.set_index("reason")["count"]["step is missing"] == 1
    (tmp_path / "u.csv").write_text("step,N,loss\n,1e6,4\n,1e6,3\n")  # no steps at all: in their order
    assert laws.read_runs(tmp_path / "u.csv").final()["loss"].tolist() == [3]
