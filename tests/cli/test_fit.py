"""``allometry fit``: what it prints is what the library says; what cannot be known exits 2 in one line."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allometry import laws
from allometry.cli import main as command
from allometry.laws import answers

LAW = {"E": 1.8, "A": 400.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37}


@pytest.fixture
def call(monkeypatch, capsys):
    """Run ``allometry fit ...`` in this process: exit code, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["allometry", "fit", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            command.main()
        out = capsys.readouterr()
        return int(end.value.code or 0), out.out, out.err

    return run


def table(path, sizes=(1e7, 3e7, 1e8, 3e8), ratios=(10, 20, 40), noise=0.002, head="N,D,val_loss"):
    generator = np.random.default_rng(0)
    rows = [head]
    for n in sizes:
        for ratio in ratios:
            loss = LAW["E"] + LAW["A"] * n ** -LAW["alpha"] + LAW["B"] * (ratio * n) ** -LAW["beta"]
            rows.append(f"{n:.0f},{ratio * n:.0f},{loss * np.exp(noise * generator.normal()):.6f}")
    path.write_text("\n".join(rows) + "\n")
    return path


def truth(n, d):
    return LAW["E"] + LAW["A"] * n ** -LAW["alpha"] + LAW["B"] * d ** -LAW["beta"]


def test_a_known_law_is_foretold_within_its_interval(call, tmp_path):
    code, out, _ = call(table(tmp_path / "runs.csv"), "--predict", "N=1B,tokens=20B", "--optimal-for", "1e21",
                        "--law", "chinchilla", "--json")  # fmt: skip
    told = json.loads(out)
    one = told["forecasts"][0]
    assert code == 0
    assert one["at"] == {"params": 1e9, "tokens": 2e10}
    assert one["prediction"][0] <= one["mean"][0] <= one["value"] <= one["mean"][1] <= one["prediction"][1]
    assert one["mean"][0] <= truth(1e9, 2e10) <= one["mean"][1]
    best = laws.compute_optimal("chinchilla", LAW, 1e21)
    assert told["optima"]["chinchilla"]["loss_interval"][0] <= best.loss
    assert best.loss <= told["optima"]["chinchilla"]["loss_interval"][1]
    assert told["backtest"]["points"] == 3
    assert told["backtest"]["error"] < 0.02


def test_text_says_law_forecast_trust_and_what_was_left_out(call, tmp_path):
    path = table(tmp_path / "runs.csv")
    path.write_text(path.read_text() + "1e7,1e9,nan\n1e7,1e9,text\n")
    code, out, _ = call(path, "--predict", "params=1e9,tokens=2e10")
    assert code == 0
    for words in ("chinchilla", "params 1e+09, tokens 2e+10", "backtest", "residuals", "loss is not finite",
                  "loss is not a number: 'text'", "6 × params × tokens", "val_loss"):  # fmt: skip
        assert words in out
    assert max(map(len, out.splitlines())) <= 100


def test_level_widens_the_interval(call, tmp_path):
    path = table(tmp_path / "runs.csv")
    widths = []
    for level in ("0.5", "0.9"):
        _, out, _ = call(path, "--law", "chinchilla", "--predict", "params=1e9,tokens=2e10", "--level", level,
                         "--json")  # fmt: skip
        low, high = json.loads(out)["forecasts"][0]["prediction"]
        widths.append(high - low)
    assert widths[0] < 0.6 * widths[1]


def test_one_ratio_gives_a_law_of_compute_and_says_so(call, tmp_path):
    path = table(tmp_path / "runs.csv", sizes=(1e7, 2e7, 5e7, 1e8, 3e8), ratios=(20,), noise=0.0)
    code, out, _ = call(path, "--predict", "params=1e9,tokens=1e11", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["inputs"] == ["flops"]
    assert told["forecasts"][0]["at"] == {"flops": 6e20}
    assert any("move together" in note for note in told["warnings"])
    assert any("another split" in note for note in told["warnings"])
    code, _, error = call(path, "--optimal-for", "1e21")
    assert code == 2
    assert "vary apart" in error


def test_only_one_of_two_varies(call, tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(
        "N,D,loss\n" + "".join(f"{n},1e9,{1.5 + 30 * n**-0.3:.6f}\n" for n in (1e6, 3e6, 1e7, 3e7, 1e8))
    )
    code, out, _ = call(path, "--predict", "params=1e9", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["inputs"] == ["params"]
    assert abs(told["forecasts"][0]["value"] / (1.5 + 30 * 1e9**-0.3) - 1) < 1e-3
    code, _, error = call(path, "--predict", "params=1e9,tokens=1e12")
    assert code == 2
    assert "cannot be known" in error


def test_columns_and_values_given_by_hand(call, tmp_path):
    for name, params in (("small", 1e6), ("middle", 1e7), ("large", 1e8)):
        rows = [
            f"{s},{9 + 30 * params**-0.3 + 50 * s**-0.5:.6f},{3 + 20 * params**-0.2:.6f}" for s in (10, 20)
        ]
        (tmp_path / f"{name}.csv").write_text("step,loss,other\n" + "\n".join(rows) + "\n")
    sizes = ["--set", "small:params=1M", "--set", "middle:params=10M", "--set", "large:params=100M"]
    code, out, _ = call(tmp_path, "--columns", "loss=other", *sizes, "--law", "power", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["columns"]["loss"] == "other"
    assert told["residuals"]["points"] == 3


@pytest.mark.parametrize(
    ("text", "more", "words"),
    [
        ("N,loss\n1e6,3\n", (), "1 usable record"),
        ("N,loss\n1e6,3\n1e6,3.1\n1e6,3.2\n", (), "one size"),
        ("size_of_shoe,height\n1,2\n", (), "size_of_shoe, height"),
        ("step,loss\n1,3\n2,2\n3,1.9\n", (), "tokens=step"),
        ("N,loss\n1e6,3\n2e6,2.5\n4e6,2\n", ("--law", "chinchilla"), "vary apart|does not tell|do not tell"),
        ("N,loss\n1e6,3\n2e6,2.5\n4e6,2\n", ("--law", "astrology"), "unknown law"),
        ("N,loss\n1e6,3\n2e6,2.5\n4e6,2\n", ("--predict", "params=big"), "must be a number"),
        ("N,loss\n1e6,3\n2e6,2.5\n4e6,2\n", ("--predict", "params"), "NAME=VALUE"),
        ("N,loss\n1e6,3\n2e6,2.5\n4e6,2\n", ("--predict", "width=3"), "not at 'width'"),
        ("N,loss\n1e6,3\n2e6,2.5\n4e6,2\n", ("--predict", "params=-1"), "positive"),
        ("N,loss\n1e6,3\n2e6,2.5\n4e6,2\n", ("--level", "90"), "between 0 and 1"),
        ("N,loss\n1e6,3\n2e6,2.5\n4e6,2\n", ("--plot", "a.gif"), "png"),
        ("N,loss\n1e6,3\n2e6,2.5\n4e6,2\n", ("--records", "first"), "'last', 'best' or 'all'"),
        ("N,loss\n1e6,3\n2e6,2.5\n4e6,2\n", ("--columns", "loss=nll"), "no file has a column 'nll'"),
        ("N,loss\n1e6,3\n2e6,2.5\n4e6,2\n", ("--example",), "not both"),
    ],
)
def test_what_cannot_be_known_exits_2_in_one_line(call, tmp_path, text, more, words):
    (tmp_path / "t.csv").write_text(text)
    code, out, error = call(tmp_path / "t.csv", *more)
    assert code == 2
    assert out == ""
    assert len(error.strip().splitlines()) == 1
    assert error.startswith("allometry: ")
    assert any(word in error for word in words.split("|"))


def test_nothing_given_and_nothing_there(call):
    assert call()[0] == 2
    code, _, error = call("no-such-folder/*.csv")
    assert code == 2
    assert "no-such-folder" in error


def test_example_report_and_plot(call, tmp_path):
    code, out, error = call("--example", "--report", tmp_path / "out", "--plot", tmp_path / "law.png")
    assert code == 0
    assert "report.html" in error
    table = laws.read_runs(Path(laws.__file__).with_name("example_runs.csv")).final()
    assert f"{len(table)} records of {table['run'].nunique()} runs" in out
    assert (tmp_path / "law.png").read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") == 1
    assert "http" not in page.split("</style>")[1].replace("http://www.w3.org", "")
    assert "var(--size-0)" in page
    stored = json.loads((tmp_path / "out" / "law.json").read_text())
    again = laws.Average([laws.Fit.from_dict(one) for one in stored["fits"]])
    one = stored["forecasts"][0]
    np.testing.assert_allclose(again.predict(one["at"])[0], one["value"])
    kept = laws.read_runs(tmp_path / "out" / "runs.csv").final()  # the report's own table reads back
    assert len(kept) == len(table)


def test_the_example_foretells_a_size_that_is_not_in_it(call):
    """The same models at width 96, six million tokens, two seeds: 1.1876 and 1.1830, measured, not fitted."""
    _, out, _ = call("--example", "--predict", "params=332466,tokens=5999616", "--json")
    low, high = json.loads(out)["forecasts"][0]["prediction"]
    assert low < 1.1830
    assert high > 1.1876


# --- JSON for programs, one line for people ----------------------------------------------------------------
def refuse(name):
    raise AssertionError(f"{name} is no JSON")


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ("N,loss\n1e6,3\n2e6,2.5\n4e6,2.2\n", ()),  # too few for AICc: it is infinite
        ("N,loss\n1e6,3\n2e6,2.5\n4e6,2.2\n", ("--law", "power", "--predict", "params=8e6")),
        ("N,D,loss\n1e6,1e9,nan\n1e6,1e9,3\n2e6,2e9,2.5\n4e6,4e9,2.2\n8e6,8e9,2\n", ()),
        ("run,step,N,loss\na,1,1e6,3\nb,1,2e6,2.5\nc,1,4e6,2.2\nd,1,8e6,2\n", ("--records", "all")),
        (None, ("--example", "--optimal-for", "1e13")),
        (None, ("--example", "--law", "chinchilla")),
    ],
)
def test_json_has_a_number_or_null_for_every_kind_of_answer(call, tmp_path, text, more):
    where = []
    if text is not None:
        where = [tmp_path / "t.csv"]
        where[0].write_text(text)
    code, out, _ = call(*where, *more, "--json")
    told = json.loads(out, parse_constant=refuse)
    assert code == 0
    assert isinstance(told["residuals"]["root_mean_square"], float)

    def words(value):
        if isinstance(value, dict):
            return {word for item in value.values() for word in words(item)}
        if isinstance(value, list):
            return {word for item in value for word in words(item)}
        return {value} if isinstance(value, str) else set()

    assert not {"NaN", "Infinity", "-Infinity"} & words(told)
    if text is not None and len(text.splitlines()) == 4:
        assert all(row["aicc"] is None for row in told["choice"] or [])
    assert ("reason" in told["backtest"]) != ("ruler" in told["backtest"])


def test_the_ruler_stands_beside_the_backtest(call, tmp_path):
    path = table(tmp_path / "runs.csv")
    _, out, _ = call(path, "--json")
    test = json.loads(out)["backtest"]
    assert test["ruler"]["scale"] == "flops"
    assert len({len(test["records"]), test["points"]}) == 1
    _, out, _ = call(path)
    said = " ".join(out.split())
    assert "ruler a line through the two largest runs of the rest" in said
    assert f"error {100 * test['ruler']['error']:.2f} % on the same records" in said
    nearer = test["ruler"]["error"] < test["error"]
    assert ("nearer than the law" in said) == nearer
    assert ("farther off than the law" in said) != nearer


sizes = st.one_of(
    st.floats(5, 10).map(lambda power: f"{10**power:.4g}"),
    st.sampled_from(["1e6", "1e6", "2e6", "70M", "1e-9", "1e36", "0", "nan", "", "x", "1e300", "-1e6"]),
)
losses = st.one_of(
    st.floats(1.5, 5).map(repr),
    st.floats(1.5, 5).map(repr),
    st.sampled_from(["3", "3", "1e-9", "1e9", "nan", "inf", "0", "-1", "", "x", "1e-300"]),
)
heads = st.sampled_from([
    ("N", "D", "loss"), ("N", "loss"), ("C", "loss"), ("N", "D", "C", "loss"),
    ("N", "D", "unique_tokens", "loss"),
])  # fmt: skip
options = st.lists(
    st.sampled_from([
        ("--predict", "params=1e9,tokens=2e10"), ("--predict", "params=1e9"), ("--predict", "flops=1e21"),
        ("--predict", "params=1e30,tokens=1e35"), ("--predict", "params=1e-300"), ("--predict", "tokens=nan"),
        ("--predict", "N=1e9,D=1e9,C=1"), ("--optimal-for", "1e21"), ("--optimal-for", "1e300"),
        ("--optimal-for", "0"), ("--level", "0.5"), ("--level", "1"), ("--level", "nan"), ("--law", "power"),
        ("--law", "chinchilla"), ("--law", "broken-power"), ("--law", "data-constrained"), ("--law", "x"),
        ("--records", "all"), ("--columns", "loss=N"), ("--columns", "loss"), ("--set", "*:tokens=1B"),
        ("--set", "z:tokens=1B"),
    ]), max_size=2,
)  # fmt: skip
EXAMPLES = int(os.environ.get("ALLOMETRY_EXAMPLES", "0"))


@st.composite
def questions(draw):
    """A table's text and the options of a command."""
    head = draw(heads)
    row = st.tuples(*[sizes] * (len(head) - 1), losses)
    rows = draw(st.one_of(st.lists(row, max_size=3), st.lists(row, min_size=4, max_size=24)))
    more = [word for pair in draw(options) for word in pair]
    return "\n".join(",".join(cells) for cells in [head, *rows]) + "\n", more


@settings(max_examples=max(25, EXAMPLES // 4), deadline=None, database=None)
@given(questions(), st.booleans())
def test_any_question_has_an_answer_or_a_line_that_says_why_not(tmp_path_factory, question, as_json):
    text, more = question
    path = tmp_path_factory.getbasetemp() / "question.csv"
    path.write_text(text)
    words = ["allometry", "fit", str(path), *more, *(["--json"] if as_json else [])]
    out, error = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", words),
        mock.patch.dict(answers.answer.__kwdefaults__, {"resamples": 20}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
        pytest.raises(SystemExit) as end,
    ):
        command.main()
    if end.value.code == 2:
        assert out.getvalue() == ""
        assert len(error.getvalue().splitlines()) == 1
        assert 30 < len(error.getvalue()) < 1500
        return
    assert not end.value.code
    assert error.getvalue() == ""
    if not as_json:
        assert max(map(len, out.getvalue().splitlines())) <= 100
        return
    told = json.loads(out.getvalue(), parse_constant=refuse)
    for one in told["forecasts"]:
        assert 0 < one["prediction"][0] <= one["mean"][0] <= one["mean"][1] <= one["prediction"][1]


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["--example", "--json"], 0, ""),
        (["no-such-file.csv"], 2, "allometry: no file or folder matches 'no-such-file.csv'"),
        (["--example", "--optimal"], 2, "allometry: No such option"),
        (["--example", "--level", "x"], 2, "allometry: Invalid value for '--level'"),
    ],
)
def test_as_a_process(words, code, line, tmp_path):
    command_line = [sys.executable, "-m", "allometry.cli.main", "fit", *words]
    done = subprocess.run(command_line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code
    assert done.stderr.startswith(line)
    assert len(done.stderr.splitlines()) == (code != 0)
    if code == 0:
        assert json.loads(done.stdout, parse_constant=refuse)["forecasts"]
    else:
        assert done.stdout == ""


# --- laws of columns of their own, and tasks ----------------------------------------------------------------
def ladder_with_a_task(path):
    """Logs of nine runs with a task's loss and accuracy beside the scales."""
    lines = ["run,N,D,eval/quiz_bpb,eval/quiz_acc"]
    for size in (1e7, 4e7, 1.6e8):
        for multiple in (1, 3, 9):
            for part in (0.4, 0.6, 0.8, 1.0):
                tokens = 20 * size * multiple * part
                loss = 0.4 + 60 * size**-0.3 + 60 * tokens**-0.25
                accuracy = 1 - 0.7 / (1 + 2.718281828 ** (-4 * (loss - 0.9)))
                lines.append(f"{size:.0f}-{multiple},{size},{tokens},{loss},{accuracy}")
    path.write_text("\n".join(lines))
    return path


def test_a_task_is_foretold_from_its_columns(tmp_path, call):
    logs = ladder_with_a_task(tmp_path / "logs.csv")
    asked = ["--task", "quiz", "--law", "task-chain:window=1", "--predict", "params=6e8,tokens=2.4e10"]
    code, out, _ = call(logs, *asked, "--json", "--report", tmp_path / "report")
    answer = json.loads(out)["quiz"]
    assert code == 0
    loss = 0.4 + 60 * 6e8**-0.3 + 60 * 2.4e10**-0.25
    expected = 1 - 0.7 / (1 + np.exp(-4 * (loss - 0.9)))
    assert answer["forecasts"][0]["value"] == pytest.approx(expected, rel=0.02)
    assert answer["backtest"]["error"] < 0.05  # two sizes are left, and two show no floor
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "report.html", "law.json", "law.png", "law.svg", "forecasts.csv"}  # fmt: skip


def test_bad_asking_of_a_law_of_its_own_ends_in_one_line(tmp_path, call):
    logs = ladder_with_a_task(tmp_path / "logs.csv")
    for asked, said in [
        (["--task", "riddle"], "no column holds 'riddle'"),
        (["--task", "quiz:0"], "weights positive"),
        (["--task", "quiz", "--task", "quiz"], "same label"),
        (["--law", "task-chain:speed=9"], "the task-chain law"),
        (["--law", "task-chain"], "needs a column 'task_loss'"),
        (["--task", "quiz", "--optimal-for", "1e20"], "do not go with"),
    ]:
        code, _, error = call(logs, *asked)
        assert code == 2
        assert said in error
        assert len(error.strip().splitlines()) == 1


def test_the_laws_are_listed_with_their_columns(call):
    lines = call("--laws")[1].splitlines()
    assert any(line.startswith("chinchilla") and "params, tokens" in line for line in lines)
    assert any(line.startswith("task-chain") and "task_loss" in line for line in lines)


# --- a base and a technique --------------------------------------------------------------------------------
def test_two_files_of_runs_are_compared_and_what_would_settle_it_is_said(tmp_path, call):
    generator = np.random.default_rng(0)
    paths = []
    for name, slope, scale in (("base", 0.100, 10.0), ("arm", 0.130, 15.8)):
        lines = ["params,seed,loss"]
        for n in np.geomspace(1e5, 1e8, 5):
            losses = scale * n**-slope * np.exp(0.002 * generator.standard_normal(3))
            lines += [f"{n},{seed},{loss}" for seed, loss in enumerate(losses)]
        paths.append(tmp_path / f"{name}.csv")
        paths[-1].write_text("\n".join(lines))
    code, out, _ = call(paths[0], "--against", paths[1], "--json", "--plot", tmp_path / "both.png")
    told = json.loads(out)
    assert code == 0
    assert told["crossover"]["verdict"] == "helps above x"
    assert told["crossover"]["x"] == pytest.approx(1.58 ** (1 / 0.03), rel=0.2)
    assert told["further"]["seeds"] == 0
    assert (tmp_path / "both.png").stat().st_size > 10_000
    code, out, _ = call(paths[0], "--against", paths[1])
    assert "helps above" in out
    assert "to settle it" in out


def test_runs_that_cannot_be_compared_end_in_one_line(tmp_path, call):
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    one.write_text("params,loss\n1e6,3\n1e7,2.5\n")
    other.write_text("tokens,loss\n1e6,3\n1e7,2.5\n")
    code, _, error = call(one, "--against", other)
    assert code == 2
    assert "vary no scale in common" in error
    code, _, error = call(one, "--against", one, "--task", "quiz")
    assert code == 2
    assert "goes with" in error
