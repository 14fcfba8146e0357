"""What holds for every law that `get_law` reaches: what it refuses, and that its intervals have a width."""

import warnings

import numpy as np
import pytest

from allometry.forecast.law_told import trust
from allometry.laws import coverage, get_form, get_law, law_names
from allometry.laws.law_answer import law_answer

VALUES = {  # laws of a ladder, all terms of which show on it
    "power": (8.0, 0.12),
    "power-offset": (1.6, 300.0, 0.4),
    "kaplan": (1e7, 7e7, 0.12, 0.2),
    "kaplan-offset": (0.8, 1e7, 7e7, 0.15, 0.25),
    "chinchilla": (0.8, 30.0, 300.0, 0.4, 0.45),
    "broken-power": (0.3, 30.0, 0.15, 0.35, 1e5, 0.5),
    "bounded-power": (0.05, 0.9, 30.0, 0.5, 1.0),
    "data-constrained": (1.7, 60.0, 700.0, 0.30, 0.42, 8.0, 12.0),
}


def truth(name):
    form = get_form(name)
    theta = form.to_coordinates(np.array([VALUES[name]]))
    return lambda x: np.exp(form.log_prediction(theta, form.features(x))[0])


def ladder(name, few=False):
    """Columns, the run of each row, and a place beyond."""
    if len(get_form(name).inputs) == 1:
        along = np.repeat(np.geomspace(1e3, 1e7, 12), 2)
        return {"x": along}, np.tile(np.arange(4 if few else 8), 6 if few else 3), {"x": 1e8}
    sizes = np.geomspace(1e4, 3e5, 5)
    if few:
        sizes = sizes[[0, 1, 3, 4]]
    grids = np.meshgrid(sizes, np.geomspace(1e6, 8e6, 4), np.arange(1 if few else 2), indexing="ij")
    params, tokens, seed = (grid.ravel() for grid in grids)
    run = np.unique(np.stack([params, seed]), axis=1, return_inverse=True)[1].ravel()
    columns, place = {"params": params, "tokens": tokens}, {"params": 1e6, "tokens": 3e7}
    if name == "data-constrained":
        columns = {key: np.tile(values, 2) for key, values in columns.items()}
        columns["unique_tokens"] = np.repeat([1.0, 0.08], len(run)) * columns["tokens"]
        run, place["unique_tokens"] = np.r_[run, run if few else run + run.max() + 1], 1e7
    return columns, run, place


# --- one table a law ----------------------------------------------------------------------------------------
def _form(name, generator):
    columns, _, place = ladder(name)
    clean = truth(name)(columns)
    return columns | {"loss": clean * np.exp(0.01 * generator.standard_normal(len(clean)))}, place


def _log_linear(generator):
    n = np.repeat(np.geomspace(1e4, 1e7, 8), 3)
    return {"params": n, "loss": n**-0.1 * np.exp(0.01 * generator.standard_normal(24))}, {"params": 1e8}


def _precision(generator):
    rows = np.array([(n, d, e, m, b) for n in (1e6, 1e7, 1e8) for d in (1e9, 1e10)
                     for e, m in ((1, 1), (2, 1), (2, 3)) for b in (1, 32)], dtype=float).T  # fmt: skip
    columns = dict(zip(("params", "tokens", "exponent_bits", "mantissa_bits", "block"), rows, strict=True))
    clean = get_law("precision", constants="paper").predict(columns)
    noisy = clean * np.exp(0.01 * generator.standard_normal(len(clean)))
    return columns | {"loss": noisy}, {key: values[-1:] for key, values in columns.items()}


def _learning_curve(generator):
    samples = np.geomspace(1e3, 1e7, 24)
    error = 0.1 + 20 * samples**-0.4
    return {"samples": samples, "error": error * np.exp(0.01 * generator.standard_normal(24))}, {
        "samples": 3e7
    }


def _utility(generator):
    samples, pool = np.tile(np.geomspace(1e3, 64e3, 7), 2), np.repeat(["A", "B"], 7)
    table = {"samples": samples, "pool": pool, "pool_size": np.full(14, 4e3)}
    law = get_law("utility").known({"A": 0.25, "B": 0.2}, {"A": 3.0, "B": 5.0}, {"A": 4e3, "B": 4e3}, a=900.0)
    error = law.predict(table) * np.exp(0.01 * generator.standard_normal(14))
    return table | {"error": error}, {"samples": [1e5], "pool": ["A"]}


def _shift(generator):
    n = np.tile(np.geomspace(1e4, 1e7, 6), 2)
    table = {"params": n, "collection": np.repeat(["in", "out"], 6)}
    return table | {"loss": n**-0.1 * np.exp(0.01 * generator.standard_normal(12))}, {
        "params": [1e8], "collection": ["out"],
    }  # fmt: skip


def _task(generator):
    n = np.repeat(np.geomspace(1e5, 1e7, 5), 6)
    rate = np.exp(-np.tile(np.geomspace(20, 60, 6), 5) * n**-0.2)
    return {
        "params": n, "instance": np.tile(np.arange(6), 5), "trials": np.full(30, 1000),
        "successes": generator.binomial(1000, rate),
    }, {"params": 1e8}  # fmt: skip


def _chain(generator):
    n, seen = np.repeat([1e7, 3e7, 1e8, 3e8], 8), np.tile(np.linspace(0.3, 1.0, 8), 4)
    loss = 0.3 + 9 * n**-0.2 + 40 * (20 * n * seen) ** -0.2
    loss = loss * np.exp(0.005 * generator.standard_normal(32))
    accuracy = 1 - 0.75 / (1 + np.exp(-4 * (loss - 0.9)))
    return {"params": n, "tokens": 20 * n * seen, "task_loss": loss, "accuracy": accuracy}, {
        "params": 1e9, "tokens": 2e10,
    }  # fmt: skip


def _samples(generator):
    task = np.repeat(np.arange(12), 20)
    skill = np.repeat(generator.uniform(0.1, 0.7, 12), 20)
    right = generator.random(240) < skill
    accepted = right | (generator.random(240) < 0.2)
    return {"task": task, "accepted": accepted * 1.0, "correct": right * 1.0}, {"samples": 8}


def _schedule(generator):
    step = np.arange(100, 3000, 20)
    rate = 1e-3 * np.minimum(1, (3000 - step) / 900)
    clean = 2.5 + 0.3 * np.cumsum(np.full(len(step), 0.02)) ** -0.4 - 60 * (1e-3 - rate)
    loss = clean * np.exp(0.003 * generator.standard_normal(len(step)))
    return {"step": step, "learning_rate": rate, "loss": loss}, {
        "step": step[:3], "learning_rate": np.full(3, 1e-3),
    }  # fmt: skip


TABLES = {
    **{name: lambda generator, name=name: _form(name, generator) for name in VALUES},
    **dict.fromkeys(("schedule", "annealing", "multi-power", "effective-rate"), _schedule),
    "log-linear": _log_linear, "precision": _precision, "learning-curve": _learning_curve,
    "utility": _utility, "shift": _shift, "task": _task, "task-chain": _chain, "resampling": _samples,
}  # fmt: skip
SLOW = {"schedule", "multi-power", "effective-rate"}


def every(names):
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in names]


def table_of(name, seed=0):
    return TABLES[name](np.random.default_rng(seed))


def test_there_is_a_table_for_every_law():
    assert set(TABLES) == set(law_names())


@pytest.mark.parametrize("name", every(TABLES))
def test_a_table_from_one_file_has_no_interval_without_a_width(name):
    """Of one run nothing is known of how runs differ: refused, or rows stand for themselves."""
    table, place = table_of(name)
    table |= {"run": np.full(len(next(iter(table.values()))), "results")}
    law = get_law(name)
    if name in ("shift", "task-chain"):
        with pytest.raises(ValueError, match=r"fewer than three runs|needs three or more") as error:
            law.fit(table, resamples=100)
        assert refused(error)
        return
    law.fit(table, resamples=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of places far beyond
        for kind in ("mean", "prediction"):
            told = law.interval(place, kind=kind)
            assert (np.asarray(told.high) - np.asarray(told.low) > 1e-4 * np.abs(told.value)).all(), kind


@pytest.mark.parametrize("groups", [2, 3, 5])
def test_few_runs_that_the_law_takes_up_leave_a_width(groups):
    """Runs as many as the law's parameters: what runs have in common is in the law, and rows are left."""
    generator = np.random.default_rng(groups)
    x = np.repeat(np.geomspace(1e3, 1e7, groups), 30 // groups)
    run = np.repeat(np.arange(groups), 30 // groups)
    loss = 3 * x**-0.1 * np.exp(0.01 * generator.standard_normal(30))
    law = get_law("power").fit({"x": x, "loss": loss, "run": run}, resamples=200)
    assert 0.003 < float(law.interval({"x": 1e8}).width[0]) / float(law.predict({"x": 1e8})[0]) < 0.5
    assert any("cannot be told apart" in one for one in law.warnings_) == (groups == 2)


def test_one_file_is_named_and_covers_as_independent_rows_do():
    hits = []
    for seed in range(120):
        generator = np.random.default_rng(seed)
        x = np.geomspace(1e3, 1e6, 12)
        table = {
            "x": x,
            "loss": 3 * x**-0.1 * np.exp(0.01 * generator.standard_normal(12)),
            "run": ["a"] * 12,
        }
        law = get_law("power").fit(table, resamples=100)
        hits.append(3 * 1e7**-0.1 in law.interval({"x": 1e7}))
    assert any("All rows are named one run" in one for one in law.warnings_)
    assert 0.82 <= np.mean(hits) <= 0.98  # nominal 0.90, standard error 0.027


# --- refusals -----------------------------------------------------------------------------------------------
def refused(error):
    """Whether a refusal is one sentence for a person: short, no trace, no internal name."""
    text = str(error.value)
    return 10 < len(text) < 320 and "\n" not in text and "NoneType" not in text


@pytest.mark.parametrize("bad", ["nan", "infinite", "word", "missing", "empty", "two rows"])
@pytest.mark.parametrize("name", TABLES)
def test_what_cannot_be_fitted_is_refused_in_a_sentence(name, bad):
    table, _ = table_of(name)
    law = get_law(name)
    scale = next(one for one in law.columns if one not in law.labels)
    target = law.target if law.target in table else "successes"
    if bad in ("nan", "infinite"):
        values = np.array(table[target], dtype=float)
        values[3] = np.nan if bad == "nan" else np.inf
        table = table | {target: values}
    elif bad == "word":
        table = table | {target: np.array(["much"] * len(table[target]))}
    elif bad == "missing":
        table = {key: values for key, values in table.items() if key != scale}
    else:
        table = {key: np.asarray(values)[: 2 * (bad == "two rows")] for key, values in table.items()}
    with pytest.raises(ValueError, match=r"\w") as error:
        law.fit(table, resamples=20)
    assert refused(error)


ONE_SCALE = [name for name in TABLES if name not in ("resampling", "schedule", "annealing", "multi-power",
                                                     "effective-rate")]  # fmt: skip


@pytest.mark.parametrize("name", ONE_SCALE)
def test_one_size_is_refused(name):
    table, _ = table_of(name)
    scale = next(one for one in get_law(name).columns if one not in get_law(name).labels)
    with pytest.raises(ValueError, match=r"one|three|fewer|all rows have|numbers of samples") as error:
        get_law(name).fit(table | {scale: np.full(len(table[scale]), table[scale][0])}, resamples=20)
    assert refused(error)


@pytest.mark.parametrize("name", [one for one in TABLES if one not in ("task", "resampling")])
def test_losses_of_zero_and_less_are_refused(name):
    table, _ = table_of(name)
    target = "task_loss" if name == "task-chain" else get_law(name).target
    for lowest in (0.0, -1.0):
        values = np.array(table[target], dtype=float)
        values[-1] = lowest
        with pytest.raises(ValueError, match=r"positive") as error:
            get_law(name).fit(table | {target: values}, resamples=20)
        assert refused(error)


@pytest.mark.parametrize("name", [name for name in VALUES if "E" in get_form(name).names])
def test_losses_below_a_floor_that_is_held_are_refused(name):
    table, _ = table_of(name)
    floor = float(table["loss"].min()) + 0.01
    with pytest.raises(ValueError, match="not above it"):
        get_law(name).fit(table, bounds={"E": (floor, floor)}, resamples=0)


@pytest.mark.parametrize("name", TABLES)
def test_a_law_that_was_not_fitted_says_so(name):
    _, place = table_of(name)
    with pytest.raises(ValueError, match="not been fitted"):
        get_law(name).predict(place)


# --- coverage -----------------------------------------------------------------------------------------------
NOISE = {"independent": (0.01, 0.0), "by run": (0.01, 0.004), "few runs": (0.008, 0.004)}
# Least coverage asked of the mean and of a new run, nominal 0.90 (standard error 0.04).
# Five parameters and more at a handful of sizes are no linear law: their intervals promise too much, by about
# ten points where each row is a run of its own, and the figures say so.
LEAST = {"kaplan": 0.74, "kaplan-offset": 0.70, "data-constrained": 0.64}
CASES = [
    pytest.param(name, kind, widest, marks=[pytest.mark.slow] if name in LEAST or "broken" in name else [])
    for name, widest in (("power", 0.03), ("power-offset", 0.05), ("kaplan", 0.12), ("broken-power", 0.4),
                         ("kaplan-offset", 0.2), ("data-constrained", 0.25))
    for kind in NOISE
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "widest"), CASES)
def test_intervals_cover_the_truth_at_ten_times_the_scale(name, kind, widest):
    columns, run, place = ladder(name, few=kind == "few runs")
    between, within = NOISE[kind]
    found = coverage(
        truth(name), name, columns, place, run=np.arange(len(run)) if kind == "independent" else run,
        between=between, within=within, simulations=40 if name in LEAST else 60, resamples=80, random_state=3,
        loss="squared",
    )  # fmt: skip
    assert found["mean coverage"] >= LEAST.get(name, 0.79), found
    assert found["prediction coverage"] >= LEAST.get(name, 0.79), found
    assert found["mean width"] <= min(widest, found["prediction width"]), found


# --- what is held out ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "which"),
    [("annealing", "last third of the run that ends lowest"), ("resampling", "half of the tasks"),
     ("task-chain", "ends of the largest models' runs"), ("chinchilla", "largest params"),
     ("shift", "largest params")],
)  # fmt: skip
def test_an_answer_says_which_rows_were_held_out(name, which):
    told = law_answer(name, table_of(name)[0], resamples=20)
    assert told.held_out == which
    assert any(fact == f"{which} held out" for fact, _ in trust(told))
    if told.backtest is not None and name == "annealing":
        assert len(told.backtest.observed) == pytest.approx(145 / 3, abs=1)
