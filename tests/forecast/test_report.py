"""The report: what it says is what was found, and the page needs nothing but itself."""

import hashlib
import json
import math
import re
import shlex
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest

from allometry.forecast.figures import loss_figure, replay_figure
from allometry.forecast.report import command, summary, to_json, write
from allometry.forecast.result import Forecast
from allometry.laws import Fit
from allometry.show.drawing import DARK, LIGHT, round_ticks, save, size_colors, spread_apart

Maker = Callable[..., Forecast]


@pytest.fixture(scope="session")
def folder(result: Forecast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A written report."""
    return write(result, tmp_path_factory.mktemp("report") / "new" / "folder").parent


class Outline(HTMLParser):
    """Checks that tags nest, and keeps what a reader would see."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "svg"} & set(self.open):
            self.seen.append(data)

    @property
    def text(self) -> str:
        """All visible words, one space between."""
        return " ".join(" ".join(self.seen).split())


# --- the terminal ------------------------------------------------------------------------------------------
def test_the_summary_says_all_that_was_found(result: Forecast) -> None:
    said = summary(result)
    check = result.check
    assert check is not None
    for number in (
        result.value,
        result.low,
        result.high,
        check.measured,
        check.bits_per_byte,
        *result.naive["value"],
    ):
        assert f"{number:.4f}" in said
    for error in (check.error, *check.naive_errors.values(), result.backtest["error"]):
        assert f"{100 * error:+.2f} %" in said
    for name, value in result.fit.params.items():
        assert re.search(rf"^ *{name} +{re.escape(f'{value:.4g}')}\b", said, re.MULTILINE)
    for note in result.notes:
        assert note[1:] in " ".join(said.split())
    assert f"{result.cost['ladder_flops']:.3g} FLOPs" in said
    ratio = result.cost["ladder_flops"] / result.cost["target_flops"]
    assert f"{ratio:.2f} times the target" in said
    # what the text's ratio of bits a byte to nats a token makes of the forecast
    assert f"{result.value * check.bits_per_byte / check.measured:.4f} forecast" in said


def test_the_summary_fits_a_log(result: Forecast, unchecked: Forecast) -> None:
    long = replace(
        result, notes=["a remark that goes on " * 20, "x" * 90], target=result.target | {"params": 10**12}
    )
    for said in (summary(result), summary(unchecked), summary(long)):
        assert max(len(line) for line in said.splitlines()) <= 100
        assert said.isascii()
        assert said == str(said).rstrip()
        assert not any(line.endswith(" ") for line in said.splitlines())


def test_the_verdict_follows_the_interval(unchecked: Forecast, make: Maker) -> None:
    held = make()
    assert summary(held).startswith("The forecast held")
    far = 1.2 * held.high
    refuted = make(measured=far)
    assert summary(refuted).startswith("The forecast was refuted")
    assert f"{100 * (held.value / far - 1):+.2f} %, outside the interval" in summary(refuted)
    assert summary(unchecked).startswith("Not checked: the target was not trained")
    assert "held" not in summary(unchecked).split("Backtest")[0]


def test_the_command_asks_the_same_again(make: Maker) -> None:
    asked = make(
        plan="tiny", seeds=2, target_tokens=123_456, target=2.5,
        corpus={"paths": ["/a b/<x>&.txt"], "tokenizer": "t o", "text_field": "body"},
    )  # fmt: skip
    asked.plan["seeds"] = [7000, 7001, 7002]
    assert shlex.split(command(asked)) == [
        "allometry",
        "forecast",
        "/a b/<x>&.txt",
        "--tiny",
        "--target",
        "2.5x",
        "--tokens",
        "123456",
        "--seeds",
        "3",
        "--seed",
        "7",
        "--device",
        "cpu",
        "--tokenizer",
        "t o",
        "--text-field",
        "body",
    ]


# --- the page ----------------------------------------------------------------------------------------------
def test_the_page_needs_nothing_but_itself(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    assert not re.search(r"https?:|//[a-z]|@import|<script|javascript:", text)
    tags = Outline(text).tags
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in tags}
    targets = {attrs.get("href") for tag, attrs in tags if tag == "a"}
    assert targets == {"runs.csv", "law.json"}
    assert all((folder / str(target)).is_file() for target in targets)
    for url in re.findall(r'(?:url\(|href=")#([^")]+)', text):
        assert f'id="{url}"' in text  # every inner reference is answered
    names = re.findall(r'\bid="([^"]+)"', text)
    assert len(names) == len(set(names))


def test_the_page_says_first_what_matters_most(folder: Path, result: Forecast) -> None:
    said = Outline((folder / "report.html").read_text()).text
    check = result.check
    assert check is not None
    order = [
        said.index(part)
        for part in (f"{result.value:.4f}", "The forecast held", "naive: ruler", "Backtest", "To do it again")
    ]
    assert order == sorted(order)
    for part in (
        result.digest,
        result.plan["corpus"]["digest"],
        "float32",
        "chinchilla",
        "kaplan",
        f"{check.measured:.4f}",
    ):
        assert part in said
    for _, mine in result.runs.groupby(["width", "tokens"])["loss"]:
        assert f"{mine.mean():.4f} ± {mine.std():.4f}" in said
    assert f"{100 * check.error:+.2f} %".replace("-", "−") in said


def test_what_comes_from_outside_is_escaped(tmp_path: Path, make: Maker) -> None:
    evil = "</style><script>alert(1)</script>&amp;\"'"
    hostile = make()
    hostile.plan["corpus"] |= {"paths": [evil], "digest": evil, "tokenizer": evil}
    hostile.plan["dtype"] = evil
    hostile.notes = [evil]
    hostile.digest = evil
    hostile.choice = hostile.choice.rename(index={"kaplan": evil})
    page = Outline(write(hostile, tmp_path).read_text())
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(evil) >= 6


def test_a_forecast_without_a_check_is_reported_as_one(unchecked: Forecast, tmp_path: Path) -> None:
    said = Outline(write(unchecked, tmp_path).read_text()).text
    assert "not checked" in said
    assert "The forecast held" not in said
    assert "refuted" not in said
    assert "--no-check" in said


def test_text_and_figures_stand_out_from_the_page_in_both_themes() -> None:
    def luminance(color: str) -> float:  # WCAG 2.1
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    for palette, dark in ((LIGHT, False), (DARK, True)):
        paper = luminance(palette["paper"])
        for count in (1, 3, 7):
            sizes = [luminance(color) for color in size_colors(count, dark)]
            contrasts = [(max(one, paper) + 0.05) / (min(one, paper) + 0.05) for one in sizes]
            assert min(contrasts) >= 4.5
            assert contrasts == sorted(contrasts)  # the larger the size, the stronger its colour
        for name in ("ink", "muted", "accent"):
            one = luminance(palette[name])
            assert (max(one, paper) + 0.05) / (min(one, paper) + 0.05) >= 4.5


# --- the numbers -------------------------------------------------------------------------------------------
def test_tables_read_back_exactly(folder: Path, result: Forecast) -> None:
    runs = pd.read_csv(folder / "runs.csv", dtype=str).astype(result.runs.dtypes)  # Python's own float, exact
    pd.testing.assert_frame_equal(runs, result.runs, check_exact=True)
    stored = json.loads((folder / "law.json").read_text())
    again = Fit.from_dict(stored["law"])
    assert again.params == result.fit.params
    at = {"params": result.target["params"], "tokens": result.target["tokens"]}
    assert tuple(again.interval(at, kind="prediction")) == tuple(result.fit.interval(at, kind="prediction"))
    assert stored["forecast"] == {"loss": result.value, "low": result.low, "high": result.high, "level": 0.9}
    assert stored["plan"]["ladder"] == result.plan["ladder"]


def test_json_is_valid_whatever_the_numbers(unchecked: Forecast, tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    write(unchecked, tmp_path)
    stored = json.loads((tmp_path / "law.json").read_text(), parse_constant=refuse)
    assert math.isnan(float(stored["naive"]["ruler"]["low"]))  # one seed a size: no interval
    odd = {
        "a": np.float32(0.1),
        "b": np.array([1, 2]),
        "c": -math.inf,
        3: np.bool_(True),
        "p": Path("x"),
        "t": (None,),
    }
    back = json.loads(to_json(odd, null=False), parse_constant=refuse)
    assert back == {
        "a": float(np.float32(0.1)),
        "b": [1, 2],
        "c": "-Infinity",
        "3": True,
        "p": "x",
        "t": [None],
    }
    assert float(back["c"]) == -math.inf
    told = json.loads(to_json({**unchecked.to_dict(), **odd}), parse_constant=refuse)
    assert told["naive"]["ruler"]["low"] is told["c"] is None  # what commands print: a number or none


def test_writing_again_gives_the_same_bytes_and_leaves_no_rests(folder: Path, result: Forecast) -> None:
    def digests() -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}

    before, settings = digests(), dict(matplotlib.rcParams)
    assert set(before) == {
        "report.html",
        "forecast.png",
        "forecast.svg",
        "residuals.png",
        "residuals.svg",
        "runs.csv",
        "law.json",
    }
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "none"}):
        write(result, folder)  # the reader's own settings change nothing
    assert digests() == before
    assert dict(matplotlib.rcParams) == settings


# --- the figures -------------------------------------------------------------------------------------------
def test_an_svg_has_letters_as_outlines_and_no_date(folder: Path) -> None:
    for name in ("forecast.svg", "residuals.svg"):
        root = ElementTree.fromstring((folder / name).read_text())
        kinds = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert not {"text", "metadata", "image"} & kinds
        assert {"path", "use"} <= kinds


def test_the_figure_shows_every_record_the_forecast_and_the_measurement(result: Forecast) -> None:
    far = loss_figure(result).axes[0]
    points = {
        (x, y)
        for line in far.lines
        if line.get_marker() not in (None, "", " ", "None", "none")
        for x, y in zip(*line.get_data(), strict=True)
    }
    check = result.check
    assert check is not None
    assert set(zip(result.runs["flops"], result.runs["loss"], strict=True)) <= points
    assert (result.target["flops"], check.measured) in points
    bars = [part.get_segments()[0] for part in far.containers[0].lines[2]]
    assert bars[0][:, 1].tolist() == pytest.approx([result.low, result.high], rel=1e-12)
    assert far.get_xscale() == far.get_yscale() == "log"
    low, high = far.get_ylim()
    assert low < min(result.low, check.measured)
    assert max(result.high, result.runs["loss"].max()) < high


def test_the_law_drawn_for_a_size_is_the_law(result: Forecast) -> None:
    far = loss_figure(result).axes[0]
    solid = [line for line in far.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 50]
    assert len(solid) == result.runs["width"].nunique()
    for line, (_, mine) in zip(solid, result.runs.groupby("width"), strict=True):
        params = mine["params"].iloc[0]
        flops, loss = (np.asarray(part, dtype=float) for part in line.get_data())
        law = result.fit.params
        exact = (
            law["E"] + law["A"] * params ** -law["alpha"] + law["B"] * (flops / 6 / params) ** -law["beta"]
        )
        np.testing.assert_allclose(loss, exact, rtol=1e-10)


def test_a_law_without_an_interval_can_be_drawn(result: Forecast, tmp_path: Path) -> None:
    without = replace(result.fit, theta_draws=np.empty((0, 5)))
    bare = replace(result, fits=[without], low=math.nan, high=math.nan)
    save(loss_figure(bare), tmp_path / "bare")
    assert (tmp_path / "bare.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("low", "high"), [(1.31, 1.34), (1.1, 2.9), (2e10, 9e10), (5e10, 3e13), (1e3, 1e30)])
def test_ticks_are_round_and_neither_few_nor_many(low: float, high: float) -> None:
    ticks = round_ticks(low, high)
    assert 3 <= len(ticks) <= 10
    assert all(low <= tick <= high for tick in ticks)
    assert all(len(f"{tick:.10g}".rstrip("0").replace("e+", "").replace(".", "")) <= 5 for tick in ticks)


def test_ticks_of_no_axis_are_refused() -> None:
    with pytest.raises(ValueError, match="0 < low < high"):
        round_ticks(2.0, 1.0)


def test_labels_move_apart_as_little_as_they_can() -> None:
    from scipy.optimize import minimize

    places = np.array([3.0, 2.5, 9.0, 2.6, 8.8])
    moved = spread_apart(places, 1.0, 0.0, 20.0)
    order = np.argsort(places)
    assert (np.diff(moved[order]) >= 1.0 - 1e-12).all()
    gaps = [{"type": "ineq", "fun": lambda z, i=i: z[order[i + 1]] - z[order[i]] - 1.0} for i in range(4)]
    least = minimize(
        lambda z: ((z - places) ** 2).sum(), np.arange(5.0), constraints=gaps, method="SLSQP", tol=1e-12
    )
    np.testing.assert_allclose(moved, least.x, atol=1e-4)
    assert spread_apart(np.array([0.0, 10.0]), 2.0, 1.0, 9.0).tolist() == [1.0, 9.0]


# --- replays -----------------------------------------------------------------------------------------------
def replays(count: int) -> pd.DataFrame:
    """Forecasts about a known loss, in the layout of a table of replays."""
    generator = np.random.default_rng(2)
    measured = 1.6 * np.exp(0.01 * generator.standard_normal(count))
    value = 1.6 * np.exp(0.01 * generator.standard_normal(count))
    return pd.DataFrame(
        {
            "value": value,
            "low": 0.98 * value,
            "high": 1.02 * value,
            "measured": measured,
            "error": value / measured - 1,
            "inside": (0.98 * value <= measured) & (measured <= 1.02 * value),
            "last_rung": 1.15 * measured,
            "ruler": 1.05 * measured,
            "score_forecast": 0.05,
            "score_last_rung": np.nan,
            "score_ruler": 0.5,
        }
    )


@pytest.mark.parametrize("count", [1, 12])
def test_replays_are_drawn(count: int, tmp_path: Path) -> None:
    picture = replay_figure(replays(count), tmp_path / "v1.replays")
    assert picture == tmp_path / "v1.replays.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    again = replay_figure(replays(count), tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == (tmp_path / "v1.replays.svg").read_bytes()
    assert again.read_bytes() == picture.read_bytes()


def test_replays_need_their_columns(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ruler"):
        replay_figure(replays(3).drop(columns="ruler"), tmp_path / "x")
    with pytest.raises(ValueError, match="at least one row"):
        replay_figure(replays(3).iloc[:0], tmp_path / "x")
