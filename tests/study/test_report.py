"""Reports: terminal, page and folder tell what the table says."""

import html
import itertools
import json
import math
import random
import re
from html.parser import HTMLParser

import pandas
import pytest

from allometry.study import report, told
from allometry.study.cells import load
from allometry.study.claim import Claim
from allometry.study.evidence import find, read
from allometry.study.figure import averaged, panels
from allometry.study.result import Result
from allometry.study.study import Study, axis
from allometry.study.tune import Tune

VOID = {"meta", "br", "path", "use", "rect", "line", "circle", "img", "link", "hr"}
STEEP = {"plain": 0.5, "warm-up and then some more words": 0.6, "<b>third</b>": 0.7}


def make(axes, *, seeds=3, lost=(), noise=0.01, claims=(), profile="full", arms=STEEP, **more):
    """A result of a study in which each arm's loss falls as a power of the first axis."""
    study = Study(
        "made", question="Does <it> work & last?", arms=tuple(arms), axes=axes, measure="loss",
        claims=claims, seeds=seeds, **more,
    )  # fmt: skip
    rows = []
    for cell in study.cells(profile):
        size = cell.point[0] if isinstance(cell.point[0], int) else 1 + len(str(cell.point[0]))
        gone = (cell.arm, cell.point[0], cell.seed) in lost
        value = size ** -arms[cell.arm] * math.exp(random.Random(repr(cell)).gauss(0, noise))
        row = {"arm": cell.arm, **dict(zip([one.name for one in axes], cell.point, strict=True))}
        row |= {"seed": cell.seed, "run": cell.key([one.name for one in axes])}
        row |= {"status": "diverged" if gone else "done", "diverged": 7 if gone else None}
        rows.append(row | {"loss": math.nan if gone else value})
    return Result(
        study, profile, pandas.DataFrame(rows), digest="0123456789abcdef", modules={"made": "f" * 64}
    )


WIDTHS = [axis("width", 8, 16, 32, 64)]


def well_formed(text):
    """All elements close in order, and nothing is fetched."""

    class Parser(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open, self.wrong = [], []

        def handle_starttag(self, tag, attributes):
            for name, value in attributes:
                if name in ("src", "href", "xlink:href") and value.startswith(("http", "//")):
                    self.wrong.append(value)
            if tag not in VOID:
                self.open.append(tag)

        def handle_endtag(self, tag):
            if tag in VOID:
                return
            if not self.open or self.open.pop() != tag:
                self.wrong.append(tag)

    parser = Parser()
    parser.feed(text)
    parser.close()
    return not parser.open and not parser.wrong


def test_verdicts_come_first_with_signs_words_and_numbers():
    claims = [
        Claim("It falls.", lambda result: result.slope("plain") < 0),
        Claim("It rises.", lambda result: result.slope("plain") > 0),
        Claim("It falls fast.", lambda result: result.slope("plain").judge((-9, -1), (0, 9))),
        Claim("It is half.", lambda result: result.slope("plain") < -0.5),
    ]
    result = make(WIDTHS, claims=claims, noise=0.05)
    lines = told.summary(result).splitlines()
    assert [line.split("  ")[0] for line in lines if line[:1] in "✓✗◐?" and line] == [
        "✓ holds", "✗ contradicted", "◐ falls short", "? undecided",
    ]  # fmt: skip
    assert lines[0] == "made, full profile, 3 seeds"
    assert max(map(len, lines)) <= 100
    value = result.slope("plain").value
    assert any(f"{value:.4g}" in line for line in lines)


@pytest.mark.parametrize("wide", [3, 8, 20])
def test_no_line_is_wider_than_a_hundred_columns(wide):
    arms = {f"an arm with a rather long name {index}": 0.5 for index in range(wide)}
    result = make([axis("width", *(2**k for k in range(9)))], arms=arms, seeds=1)
    assert max(map(len, told.summary(result).splitlines())) <= 100


def test_means_are_the_tables_own_and_divergence_is_told():
    result = make(WIDTHS, lost={("plain", 64, 1), *(("<b>third</b>", 64, seed) for seed in range(3))})
    head, rows = told.means_table(result)
    assert head == ["loss by width", *STEEP]
    cells = {(row[0], arm): cell for row in rows for arm, cell in zip(head[1:], row[1:], strict=True)}
    assert cells["64", "plain"] == "1 of 3 diverged"
    assert cells["64", "<b>third</b>"] == "diverged"
    values = result.rows("plain", {"width": 8})["loss"]
    mean, half = map(float, cells["8", "plain"].split(" ± "))
    assert mean == pytest.approx(values.mean(), abs=10 ** -len(cells["8", "plain"].split(" ")[0]) * 50)
    assert half == pytest.approx(values.std(ddof=1) / math.sqrt(3) * 4.302653, rel=0.06)  # Student, 2 degrees
    assert any("4 of 36 runs diverged: 3 of <b>third</b>, 1 of plain" in note for note in told.notes(result))


def test_worth_is_the_factor_by_which_the_base_would_have_to_grow():
    result = make(WIDTHS, arms={"plain": 0.5, "twice": 0.5}, noise=0.003, seeds=5)
    table = result.table
    table.loc[table["arm"] == "twice", "loss"] *= 2**-0.5  # the base's loss at twice the width
    ((title, rows, _),) = told.worth_tables(result)[0]
    assert title.startswith("Worth in width")
    factor, low, high = map(float, re.findall(r"[\d.]+", rows[0][1]))
    assert low <= 2.0 <= high
    assert factor == pytest.approx(2.0, rel=0.03)


def test_an_undetermined_worth_says_why():
    flat = make(WIDTHS, arms={"plain": 0.0, "twice": 0.0}, seeds=4)
    (found,) = told.worth_tables(flat)[0]
    assert "undetermined" in found.rows[0]
    (reason,) = found.reasons
    assert reason.startswith("twice: ")
    assert reason in " ".join(told.summary(flat).split())
    assert reason in html.unescape(report.page(flat, '<svg viewBox="0 0 1 1"></svg>'))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seeds": 2}, "3 seeds"),
        ({"axes": [axis("width", 8, 16)]}, "3 values of width"),
        ({"axes": [axis("format", "a", "b", "c", log=False)]}, "not a scale in numbers"),
        ({"lower_is_better": False}, "losses, and more loss is better"),
        ({"lower_is_better": None}, "losses, and loss is neither good nor bad"),
        ({"arms": {"plain": 0.5}}, "one arm"),
    ],
)
def test_worth_is_left_out_with_its_reason(change, reason):
    found, said = told.worth_tables(make(**{"axes": WIDTHS, **change}))
    assert found == []
    assert reason in said


@pytest.mark.parametrize("better", [False, None])
def test_worth_and_crossings_are_refused_of_what_is_no_loss(better):
    result = make(WIDTHS, measures=("loss", "error"), lower_is_better=better, seeds=4, noise=0.01)
    result.table["error"] = result.table["loss"]
    for ask in (result.worth, result.crossover):
        with pytest.raises(ValueError, match=r"is read from losses, and .*loss.*give measure="):
            ask("<b>third</b>")
        assert ask("<b>third</b>", measure="error") is not None


def test_what_diverged_lies_where_worse_runs_lie():
    heights = {}
    for better in (True, None, False):
        result = make(WIDTHS, lower_is_better=better, lost={("plain", 64, 1)})
        crosses = [line for line in result.plot().axes[0].lines if line.get_marker() == "x"]
        heights[better] = crosses[0].get_ydata()[0]
    assert heights[True] == heights[None] > 0.9
    assert heights[False] < 0.1


def test_figure_and_means_run_over_the_axis_that_the_study_says():
    axes = [*WIDTHS, axis("rate", 0.1, 0.2, 0.4, 0.8, 1.6)]
    result = make(axes, over="rate")
    assert averaged(make(axes)) == ["rate"]
    assert averaged(result) == []
    assert panels(result) == [{"width": width} for width in (8, 16, 32, 64)]
    head, rows = told.means_table(result)
    assert head[0] == "loss by rate"
    assert len(rows) == 20
    values = result.rows("plain", {"width": 16, "rate": 0.4})["loss"]
    assert float(rows[7][1].split(" ± ")[0]) == pytest.approx(values.mean(), abs=1e-3)
    drawn = [axes for axes in result.plot().axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in drawn] == [f"width {w}" for w in (8, 16, 32, 64)]
    assert drawn[-1].get_xlabel() == "rate"
    assert "more places on rate" in told.worth_tables(result)[1]  # worth stays with the first axis


def test_further_axes_are_panels_up_to_four_and_then_averaged():
    four = make([*WIDTHS, axis("depth", 1, 2), axis("rate", 0.1, 0.2)], seeds=1)
    assert len(panels(four)) == 4
    assert len([axes for axes in four.plot().axes if axes.get_visible()]) == 4
    more = make([*WIDTHS, axis("depth", 1, 2, 3, 4, 5)], seeds=1)
    assert panels(more) == [{}]
    assert averaged(more) == ["depth"]
    assert "Mean over depth." in report.page(more, "<svg viewBox='0 0 1 1'></svg>".replace("'", '"'))


@pytest.mark.parametrize("widths", [(8,), (8, 16), (8, 16, 32)])
def test_nothing_written_is_cut_off_or_over_another(widths):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    swept = [axis("width", *widths), axis("rate", *(2.5e-4 * 2 ** (k / 2) for k in range(23)))]
    result = make(swept, over="rate", arms={"plain": 0.0}, lower_is_better=False)
    result.table["loss"] = result.table["loss"] * 1e-3 - 0.0301  # ticks of seven letters
    figure = result.plot()
    renderer = FigureCanvasAgg(figure).get_renderer()
    drawn = [one for one in figure.axes if one.get_visible()]
    assert len(drawn) == len(widths)
    for index, one in enumerate(drawn):
        assert index % 2 or one.yaxis.get_tightbbox(renderer).x0 >= 0
        boxes = [label.get_window_extent(renderer) for label in one.get_xticklabels() if label.get_text()]
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    assert len([label for label in drawn[-1].get_xticklabels() if label.get_text()]) >= 3


def test_what_a_diverged_run_told_is_neither_drawn_nor_averaged():
    result = make(WIDTHS, lost={("plain", 64, 1)})
    result.table.loc[result.table["status"] == "diverged", "loss"] = 1e6
    axes = result.plot().axes[0]
    assert axes.get_ylim()[1] < 10
    (means,) = [line for line in axes.lines if line.get_linestyle() == "-" and line.get_color() == "#5b6470"]
    assert list(map(math.isnan, means.get_ydata())) == [False, False, False, True]


def test_many_names_are_named_and_not_numbered():
    names = [f"{layers}@{side}" for layers in (50, 101, 152, 200) for side in (160, 224, 320)]
    axes = make([axis("member", *names, log=False)], arms={"plain": 0.0}).plot().axes[0]
    shown = [label.get_text() for label in axes.get_xticklabels() if label.get_text()]
    assert set(shown) <= set(names)
    assert len(shown) >= 3


def test_names_of_one_panel_do_not_run_into_the_next():
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    names = [f"A long name, {place}" for place in range(20)]
    axes = [axis("network", *names, log=False), axis("pass", "train", "infer", log=False)]
    figure = make(axes, arms={"plain": 0.0}, seeds=1).plot()
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [
        label.get_window_extent(renderer)
        for one in figure.axes if one.get_visible()
        for label in one.get_xticklabels() if label.get_text() and label.get_visible()
    ]  # fmt: skip
    assert len(boxes) >= 3
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_arms_at_one_place_stand_side_by_side_whatever_its_number():
    figure = make([axis("images", 1000)], arms={"plain": 0.5, "other": 0.5}).plot()
    axes = figure.axes[0]
    means = [line.get_xdata() for line in axes.lines if line.get_markersize() == 6]
    width = axes.get_xlim()[1] - axes.get_xlim()[0]
    assert abs(means[0][0] - means[1][0]) > 0.1 * width
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1000"]


def test_a_run_that_exploded_does_not_flatten_the_others():
    result = make(WIDTHS, arms={"plain": 0.5, "other": 0.6})
    result.table.loc[result.table.index[-1], "loss"] = 1e20
    low, high = result.plot().axes[0].get_ylim()
    others = result.table["loss"].iloc[:-1]
    assert low < others.min() < others.max() < high < 2 * others.max()


def test_zero_and_then_powers_stand_step_by_step():
    axes = make([axis("decay", 0.0, 1e-4, 1e-3, 1e-2, log=False)], arms={"plain": 0.0}).plot().axes[0]
    assert axes.get_xticks().tolist() == [0, 1, 2, 3]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.0", "0.0001", "0.001", "0.01"]


def test_the_figure_shows_each_run_and_each_divergence():
    result = make(WIDTHS, lost={("plain", 64, 1)})
    axes = result.plot().axes[0]
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert [tuple(line.get_xdata()) for line in crosses] == [(64.0,)]
    faint = [line for line in axes.lines if line.get_alpha() == 0.35]
    shown = sorted(itertools.chain.from_iterable(line.get_ydata() for line in faint))
    assert shown == pytest.approx(sorted(result.table["loss"].dropna()), abs=0)
    means = [line for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 4]
    assert math.isnan(means[0].get_ydata()[-1])  # the survivors' mean is not drawn
    assert means[1].get_ydata()[0] == pytest.approx(
        result.rows("warm-up and then some more words", {"width": 8})["loss"].mean(), rel=1e-12
    )


@pytest.mark.parametrize(
    "result",
    [
        make([axis("width", 8)]),
        make([axis("format", "fp4", "integer", log=False)]),
        make([axis("width", *range(1, 13), log=False)], seeds=1, profile="tiny"),
        make(WIDTHS, lost={(arm, width, s) for arm in STEEP for width in (8, 16, 32, 64) for s in range(3)}),
    ],
    ids=["one value", "words", "many values", "all diverged"],
)
def test_a_page_is_whole_and_fetches_nothing(result, tmp_path):
    page = result.report(tmp_path).read_text()
    assert well_formed(page)
    assert "Does &lt;it&gt; work &amp; last?" in page
    assert "<b>third</b>" not in page
    assert {one.name for one in tmp_path.iterdir()} == {
        "report.html", "figure.svg", "figure.png", "table.csv", "result.json",
    }  # fmt: skip


def test_a_study_draws_itself_if_it_likes():
    result = make(WIDTHS)

    @result.study.figure
    def own(result, figure):
        figure.subplots().set_title("by hand")

    assert result.plot().axes[0].get_title(loc="left") == "by hand"


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        make(WIDTHS).report(tmp_path / name)
    for file in ("report.html", "figure.svg", "table.csv"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_folder_holds_the_numbers_exactly_and_only_whole_runs_are_evidence(tmp_path):
    result = make(WIDTHS, lost={("plain", 64, 1)})
    result.report(tmp_path / "whole")
    back = pandas.read_csv(tmp_path / "whole" / "table.csv")
    assert back["loss"].equals(result.table["loss"])
    evidence = read(tmp_path / "whole")
    assert evidence.result(result.study).table["loss"].tolist()[:5] == result.table["loss"].tolist()[:5]
    lines = (tmp_path / "whole" / "result.json").read_text().splitlines()
    assert sum(line.startswith('   ["') for line in lines) == len(result.table)  # one record, one line
    result.table.loc[0, "status"] = "missing"
    page = result.report(tmp_path / "part").read_text()
    assert not (tmp_path / "part" / "result.json").exists()
    assert "1 of 36 runs have not run" in page


def test_what_tuning_saw_is_shown_with_its_choice():
    result = make(WIDTHS, tune=Tune("rate", (0.1, 0.2), on="loss"))
    result.tuned = {"plain": {"rate": 0.2}}
    result.tuning = {"plain": [[0.1, 0.5, 0.7], [0.2, 0.3, 0.4]]}
    assert told.tuning_table(result) == (["loss by rate", "0.1", "0.2"], [["plain", "0.6", "0.35 ←"]])
    assert "rate 0.2" in told.summary(result)


def test_programs_get_the_same(tmp_path):
    result = make(WIDTHS, claims=[Claim("It falls.", lambda result: result.slope("plain") < 0)])
    facts = told.to_dict(result)
    assert json.loads(json.dumps(facts))["verdict"] == "holds"
    assert len(facts["means"]) == 12
    assert facts["means"][0]["mean"] == pytest.approx(result.mean("plain", at={"width": 8}).value)


def test_evidence_is_found_here_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find("made") is None
    make(WIDTHS).report(tmp_path / "evidence" / "made")
    assert find("made").content["study"] == "made"


def test_what_only_loads_modules_makes_no_evidence_stale(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from allometry.study import Study, axis\n"
        "from allometry.extras import need\n"
        "from allometry.laws import fit\n"
        "mine = Study('mine', question='?', arms=['a'], axis=axis('n', 1, 2), measure='loss')\n"
        "mine.trial(lambda arm, n, seed, profile: {'loss': 1.0 / n})\n"
    )
    study = load(file).mine
    study.run("tiny", store=tmp_path / "store.db", workers=0, display=None).report(tmp_path / "kept")
    evidence = read(tmp_path / "kept")
    assert evidence.stale(study) == []
    for kind in ("definitions", "modules"):  # older evidence knows modules alone
        evidence.content[kind]["allometry.extras"] = "another"
        assert evidence.stale(study) == []
        evidence.content[kind]["allometry.laws.fit"] = "another"
        assert evidence.stale(study) == ["code changed since: allometry.laws.fit"]
        del evidence.content["definitions" if kind == "definitions" else "modules"]
