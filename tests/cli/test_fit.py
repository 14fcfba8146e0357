"""``allometry fit``: what it prints is what the library says; what cannot be known exits 2 in one line."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from allometry import laws
from allometry.cli import main as command

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
