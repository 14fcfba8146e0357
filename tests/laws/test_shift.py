"""Slopes in and out of distribution: polyfit's line, Student's intervals, Fieller's ratio; their coverage."""

import time

import numpy as np
import pandas
import pytest
from scipy import stats

from allometry.laws import ShiftLaw, compare_laws, get_law, held_out, loglog_fit
from allometry.laws.quotient import paired_ratio

SCALES = np.geomspace(1e3, 1e5, 6)


def measured(rng, *, falls=(0.10, 0.06), seeds=3, shared=0.02, own=0.02, form="log-linear", drop=0.0):
    """Runs at six scales, scored on two collections, with noise of the run and of the score."""
    n = np.repeat(SCALES, seeds)
    run = np.arange(len(n))
    luck = shared * rng.normal(size=len(n))
    rows = []
    for name, fall in zip(("ID", "OOD"), falls, strict=True):
        level = 1.5 - fall * np.log10(n) + luck + own * rng.normal(size=len(n))
        rows.append(pandas.DataFrame({"params": n, "run": run, "collection": name, "loss": level}))
    table = pandas.concat(rows, ignore_index=True)
    if form == "power":
        table["loss"] = 10 ** table["loss"]
    return table if not drop else table[rng.random(len(table)) > drop].reset_index(drop=True)


def test_the_line_is_numpy_s_and_x0_is_where_it_reaches_one():
    rng = np.random.default_rng(0)
    x = np.geomspace(1e3, 1e9, 9)
    y = 3.0 * x**-0.05 * np.exp(0.01 * rng.normal(size=9))
    slope, level = np.polyfit(np.log10(x), np.log10(y), 1)
    alpha, x0 = loglog_fit(x, y)
    assert (alpha, x0) == (-slope, 10 ** (-level / slope))
    law = ShiftLaw().fit({"params": x, "loss": y, "collection": ["ID"] * 9})
    assert law.params_["alpha[ID]"] == pytest.approx(alpha, rel=1e-12)
    assert law.params_["log10 x0[ID]"] == pytest.approx(np.log10(x0), rel=1e-12)


def test_a_power_law_is_found_exactly():
    alpha, x0 = loglog_fit(SCALES, (1e31 / SCALES) ** 0.026)
    assert alpha == pytest.approx(0.026, rel=1e-9)
    assert np.log10(x0) == pytest.approx(31.0, rel=1e-9)


@pytest.mark.parametrize("form", ["power", "log-linear"])
def test_errors_are_those_of_scipy_s_regression(form):
    table = measured(np.random.default_rng(1), form=form)
    law = ShiftLaw(form=form).fit(table)
    for name, row in law.slopes(0.9).iterrows():
        mine = table[table["collection"] == name]
        y = np.log10(mine["loss"]) if form == "power" else mine["loss"]
        line = stats.linregress(np.log10(mine["params"]), y)
        half = stats.t.ppf(0.95, len(mine) - 2) * line.stderr
        assert row["value"] == pytest.approx(-line.slope, rel=1e-9)
        assert row["high"] - row["low"] == pytest.approx(2 * half, rel=1e-9)
        assert row["degrees"] == len(mine) - 2


def test_the_ratio_of_equal_curves_is_one_without_doubt():
    """A collection twice as far down shares all its noise, so nothing is left to doubt."""
    table = measured(np.random.default_rng(2))
    own = table[table["collection"] == "ID"]
    double = own.assign(collection="twice", loss=2 * own["loss"])
    found = ShiftLaw(form="log-linear").fit(pandas.concat([own, double])).ratio("twice")
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0), rel=1e-6)


def test_falls_per_decade_do_not_know_the_unit_and_exponents_do():
    table = measured(np.random.default_rng(3))
    moved = table.assign(loss=table["loss"] + np.log(50.0) * (table["collection"] == "OOD"))
    falls = [ShiftLaw(form="log-linear").fit(one).ratio("OOD").value for one in (table, moved)]
    exponents = [ShiftLaw().fit(one).ratio("OOD").value for one in (table, moved)]
    assert falls[0] == pytest.approx(falls[1], rel=1e-9)
    assert abs(exponents[0] / exponents[1] - 1) > 0.5


CASES = {
    "independent": {"shared": 0.0, "own": 0.03},
    "shared by the run": {"shared": 0.03, "own": 0.01},
    "six runs": {"seeds": 1},
    "scores missing": {"drop": 0.25},
}
RATIO_WIDTH = {"independent": 0.6, "shared by the run": 0.3, "six runs": 1.2, "scores missing": 0.8}


@pytest.mark.parametrize("case", CASES)
def test_intervals_cover(case):
    rng = np.random.default_rng(4)
    trials, inside, ratio_inside, predicted, width = 400, 0, 0, 0, []
    for _ in range(trials):
        law = ShiftLaw(form="log-linear").fit(measured(rng, **CASES[case]))
        slopes, ratio = law.slopes(0.9), law.ratio("OOD", level=0.9)
        inside += slopes.loc["OOD", "low"] <= 0.06 <= slopes.loc["OOD", "high"]
        ratio_inside += ratio.low <= 0.6 <= ratio.high
        width.append(ratio.high - ratio.low)
        told = law.interval({"params": 1e6, "collection": "OOD"}, 0.9, "prediction")
        noise = np.hypot(CASES[case].get("shared", 0.02), CASES[case].get("own", 0.02))
        predicted += told.low[0] <= 1.5 - 0.06 * 6 + noise * rng.normal() <= told.high[0]
    error = 3.5 * np.sqrt(0.09 / trials)
    assert abs(inside / trials - 0.9) < error
    assert ratio_inside / trials > 0.9 - error
    assert abs(predicted / trials - 0.9) < error
    assert np.median(width) < RATIO_WIDTH[case]


def test_intervals_cover_where_runs_have_many_rows():
    """Twelve runs logged at six scales each: the noise is the run's, and rows are far more than runs."""
    rng = np.random.default_rng(5)
    trials, inside, naive = 300, 0, 0
    for _ in range(trials):
        x = np.tile(SCALES, 12)
        run = np.repeat(np.arange(12), 6)
        wander = np.repeat(0.02 * rng.normal(size=12), 6) * (np.log10(x) - 4)
        loss = 1.5 - 0.1 * np.log10(x) + wander + 0.005 * rng.normal(size=72)
        table = {"flops": x, "run": run, "collection": ["ID"] * 72, "loss": loss}
        row = ShiftLaw("flops", "log-linear").fit(table).slopes(0.9).loc["ID"]
        inside += row["low"] <= 0.1 <= row["high"]
        line = stats.linregress(np.log10(x), loss)
        naive += abs(line.slope + 0.1) <= stats.t.ppf(0.95, 70) * line.stderr
    assert 0.85 < inside / trials < 0.96
    assert naive / trials < 0.75  # what pretending that rows are runs would give


def test_a_ladder_of_seeds_has_the_ratio_of_its_seeds_slopes():
    """The jackknife over seeds that each have every scale is Student's interval of one slope a seed."""
    table = measured(np.random.default_rng(11), seeds=5)
    table["run"] = table["run"] % 5
    slopes = [
        [-np.polyfit(np.log10(part["params"]), part["loss"], 1)[0] for _, part in rows.groupby("run")]
        for _, rows in table.groupby("collection")
    ]
    wanted = paired_ratio(slopes[1], slopes[0])
    found = ShiftLaw(form="log-linear").fit(table).ratio("OOD")
    assert (found.value, found.low, found.high) == pytest.approx(
        (wanted.value, wanted.low, wanted.high), rel=1e-9
    )
    assert wanted.low < 0.6 < wanted.high


def test_a_flat_base_leaves_the_ratio_open():
    table = measured(np.random.default_rng(6), falls=(0.0, 0.05), seeds=2)
    found = ShiftLaw(form="log-linear").fit(table).ratio("OOD")
    assert np.isinf([found.low, found.high]).all()


def test_it_is_reached_by_name_and_judged_like_other_laws():
    table = measured(np.random.default_rng(7))
    law = get_law("shift", form="log-linear", base="OOD").fit(table)
    assert list(law.report()) == ["slopes", "ratios"]
    assert law.report()["ratios"].index.tolist() == ["ID"]
    told = held_out(ShiftLaw(form="log-linear"), table, "params")
    assert told.error < 0.05
    assert 0.6 < told.inside <= 1.0
    frame = compare_laws([ShiftLaw(), ShiftLaw(form="log-linear")], table, "params")
    assert len(frame) == 2


def test_without_runs_independence_is_assumed_and_said():
    table = measured(np.random.default_rng(8)).drop(columns="run")
    law = ShiftLaw(form="log-linear").fit(table)
    assert "independent" in law.warnings_[0]
    assert law.covariance_[0, 1] == 0.0


def test_synonyms_and_plot():
    table = measured(np.random.default_rng(9), form="power").rename(columns={"collection": "dataset"})
    law = ShiftLaw().fit(table)
    assert (
        law.table().loc["alpha[ID]", "low"] < law.params_["alpha[ID]"] < law.table().loc["alpha[ID]", "high"]
    )
    assert len(law.plot().get_legend().get_texts()) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loss": [-1.0] * 6}, "form='log-linear'"),
        ({"params": [1e3] * 6}, "one params"),
        ({"params": [-1.0] * 6}, "positive"),
        ({"run": [0, 0, 0, 1, 1, 1]}, "fewer than three runs"),
        ({"loss": [float("nan")] + [1.0] * 5}, "nan in row 0"),
    ],
)
def test_what_cannot_be_known_is_refused(change, words):
    table = {"params": SCALES, "collection": ["ID"] * 6, "loss": [2, 1.8, 1.7, 1.6, 1.5, 1.4]} | change
    with pytest.raises(ValueError, match=words):
        ShiftLaw().fit(table)


def test_options_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="'power', 'log-linear', 'power-offset'"):
        ShiftLaw(form="offset")
    with pytest.raises(ValueError, match="no collection 'LSF'"):
        ShiftLaw(base="LSF").fit(measured(np.random.default_rng(0), form="power"))
    with pytest.raises(ValueError, match="two scales"):
        loglog_fit([1.0, 1.0], [2.0, 3.0])


def test_thousands_of_rows_take_no_time():
    rng = np.random.default_rng(10)
    table = measured(rng, seeds=200)
    law = ShiftLaw(form="log-linear")
    begin = time.process_time()
    law.fit(table)
    assert time.process_time() - begin < 2.0


# --- above a floor ------------------------------------------------------------------------------------------
WIDE = np.geomspace(1e3, 1e6, 7)
FLOORS = {"ID": (1.0, 20.0, 0.4), "OOD": (2.0, 30.0, 0.3)}


def above_floors(rng, seeds=3, luck=0.0, own=0.0):
    n = np.repeat(WIDE, seeds)
    shared = luck * rng.normal(size=len(n))
    rows = [
        pandas.DataFrame({"params": n, "run": np.arange(len(n)), "collection": name,
                          "loss": (e + a * n**-alpha) * np.exp(shared + own * rng.normal(size=len(n)))})
        for name, (e, a, alpha) in FLOORS.items()
    ]  # fmt: skip
    return pandas.concat(rows, ignore_index=True)


def test_floors_and_exponents_are_found_exactly_and_survive_a_change_of_unit():
    table = above_floors(np.random.default_rng(0))
    law = get_law("shift", form="power-offset").fit(table, resamples=50)
    for name, (floor, size, alpha) in FLOORS.items():
        found = [law.params_[f"{one}[{name}]"] for one in ("E", "A", "alpha")]
        assert found == pytest.approx([floor, size, alpha], rel=1e-5)
    assert law.ratio("OOD").value == pytest.approx(0.75, rel=1e-5)
    # a likelihood of data in another unit is higher by a constant: exponents stay, where a line's change
    higher = table.assign(loss=table["loss"] + 3.0)
    assert law.fit(higher, resamples=0).params_["alpha[OOD]"] == pytest.approx(0.3, rel=1e-4)
    lines = [ShiftLaw().fit(one).params_["alpha[OOD]"] for one in (table, higher)]
    assert lines[1] < 0.7 * lines[0]
    ends = 30 * 10 ** (-0.3 * (4.5 + np.array([-0.5, 0.5])))  # the middle of the scales is 10^4.5
    falls = ShiftLaw(form="power-offset").fit(table, resamples=20).slopes()["per_decade"]
    assert falls["OOD"] == pytest.approx(ends[0] - ends[1], rel=1e-4)


@pytest.mark.parametrize(
    ("seeds", "luck", "own", "widest"),
    [(3, 0.0, 0.01, 0.15), (3, 0.01, 0.004, 0.08), (1, 0.01, 0.004, 0.3)],
    ids=["independent", "shared by the run", "seven runs"],
)
def test_intervals_above_floors_cover(seeds, luck, own, widest):
    rng, trials = np.random.default_rng(0), 150
    hits, width = np.zeros((trials, 4), dtype=bool), np.zeros(trials)
    for i in range(trials):
        law = ShiftLaw(form="power-offset").fit(above_floors(rng, seeds, luck, own), resamples=300)
        slope, ratio = law.slopes(0.9).loc["OOD"], law.ratio("OOD", level=0.9)
        place, truth = {"params": 1e7, "collection": "OOD"}, 2 + 30 * 1e7**-0.3
        mean, new = law.interval(place, 0.9), law.interval(place, 0.9, "prediction")
        run = truth * np.exp(np.hypot(luck, own) * rng.normal())
        hits[i] = [slope["low"] <= 0.3 <= slope["high"], ratio.low <= 0.75 <= ratio.high,
                   mean.low[0] <= truth <= mean.high[0], new.low[0] <= run <= new.high[0]]  # fmt: skip
        width[i] = ratio.width
    assert (hits.mean(axis=0) >= 0.83).all(), hits.mean(axis=0)
    assert np.median(width) < widest


def test_ten_thousand_resamples_above_floors_are_practical():
    table = above_floors(np.random.default_rng(0), 3, 0.01, 0.004)
    begin = time.perf_counter()
    law = ShiftLaw(form="power-offset").fit(table, resamples=10_000)
    assert time.perf_counter() - begin < 5.0
    assert law.draws_.shape == (10_000, 2)


def test_draws_of_lines_are_those_of_their_intervals():
    law = ShiftLaw(form="log-linear").fit(measured(np.random.default_rng(3)), resamples=40_000)
    low, high = np.quantile(law.draws_, [0.05, 0.95], axis=0)
    told = law.slopes(0.9)
    np.testing.assert_allclose(low, told["low"], atol=0.03 * (told["high"] - told["low"]).min())
    np.testing.assert_allclose(high, told["high"], atol=0.03 * (told["high"] - told["low"]).min())
    together = np.corrcoef(law.draws_.T)[0, 1]
    covariance = law.covariance_
    assert together == pytest.approx(covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]), abs=0.1)
    assert ShiftLaw().fit(measured(np.random.default_rng(3), form="power"), resamples=0).draws_.shape == (
        0,
        2,
    )


def test_what_a_floor_needs():
    table = above_floors(np.random.default_rng(0), 3, 0.0, 0.01)
    with pytest.raises(ValueError, match="a floor needs four"):
        ShiftLaw(form="power-offset").fit(table[table["params"] < 3e4])
    law = ShiftLaw(form="power-offset").fit(table, resamples=0)
    with pytest.raises(ValueError, match="resamples=1000"):
        law.interval({"params": 1e7, "collection": "OOD"})
    assert law.report() == {}
