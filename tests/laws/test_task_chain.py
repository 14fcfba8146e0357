"""Accuracy in two steps: against the procedure of the data's authors, and the coverage of its intervals."""

import numpy as np
import pandas
import pytest
from scipy.optimize import curve_fit, minimize

from allometry.laws.raw import read_table
from allometry.laws.task_chain import TaskChain
from allometry.laws.task_columns import Task, task_table

PARAMS = {"190M": 190_354_176, "370M": 371_262_464, "760M": 758_220_288, "1B": 1_279_395_840}
TASKS = [
    "mmlu=mmlu_stem_test:0.215+mmlu_humanities_test:0.335+mmlu_social_sciences_test:0.219"
    "+mmlu_other_test:0.231",
    "hellaswag_val", "arc_challenge_test", "arc_easy_test", "piqa_val", "csqa_val", "socialiqa_val",
    "openbookqa_test",
]  # fmt: skip
CHANCE = {"piqa_val": 0.5, "socialiqa_val": 1 / 3, "csqa_val": 0.2}


# --- the procedure of Bhagia et al., 2024 (arXiv:2412.04403), re-made ---------------------------------------
def smoothed(values, count=5):
    """The mean of up to ``count`` values ending at each."""
    return pandas.Series(values).rolling(count, min_periods=1).mean().to_numpy()


def published(runs: list[pandas.DataFrame], chance: float):
    """Chinchilla by Huber's loss and L-BFGS-B on the ends, then a sigmoid by least squares on all records but
    the first tenth of each run, with a point at no loss and full accuracy; and the sigmoid's own standard
    error, which is the interval that they draw."""
    n = np.array([run["params"].iloc[-1] for run in runs])
    d = np.array([run["tokens"].iloc[-1] for run in runs])
    y = np.log([run["task_loss"].iloc[-5:].mean() for run in runs])

    def objective(p):
        size, data = np.exp(p[0] - p[2] * np.log(n)), np.exp(p[1] - p[3] * np.log(d))
        total = size + data + p[4]
        off = np.log(total) - y
        slope = np.clip(off, -1e-3, 1e-3)
        by = slope / total
        gradient = [by @ size, by @ data, -by @ (size * np.log(n)), -by @ (data * np.log(d)), by.sum()]
        return (slope * (off - slope / 2)).sum(), np.array(gradient)

    start, options = [3.0, 6.0, 0.1, 0.2, 1.0], {"ftol": 0.0, "gtol": 1e-10, "maxiter": 10**6}
    found = minimize(objective, start, jac=True, bounds=[(0, None)] * 5, method="L-BFGS-B", options=options).x

    def sigmoid(x, a, middle, k, b):
        return a / (1 + np.exp(-k * (x - middle))) + b

    late = [run.iloc[int(np.ceil(0.1 * len(run))) :] for run in runs]
    x = np.concatenate([*(smoothed(run["task_loss"]) for run in late), [0.0]])
    acc = np.concatenate([*(smoothed(run["accuracy"]) for run in late), [1.0]])
    link, covariance = curve_fit(sigmoid, x, acc, p0=[chance - 1, 0.9, 3.0, 1.0], maxfev=500_000,
                                 bounds=([-1, 0, 0, 0], [0, np.inf, np.inf, 1]))  # fmt: skip

    def foretell(params, tokens):
        loss = np.exp(found[0]) * params ** -found[2] + np.exp(found[1]) * tokens ** -found[3] + found[4]
        value = sigmoid(loss, *link)
        steps = 1e-6 * np.eye(4)
        jacobian = np.stack([(sigmoid(loss, *(link + step)) - value) / 1e-6 for step in steps], axis=-1)
        return value, np.sqrt(np.einsum("mi,ij,mj->m", jacobian, covariance, jacobian))

    return foretell


@pytest.fixture(scope="module")
def ladder(reference_data):
    values = {f"{size}-*": {"params": float(count)} for size, count in PARAMS.items()}
    table = read_table(sorted((reference_data / "olmo-ladder").glob("*.csv")), values=values)
    return {Task.parse(text).label: task_table(table, text) for text in TASKS}


def winkler(low, high, truth, level):
    missed = np.maximum(low - truth, 0) + np.maximum(truth - high, 0)
    return ((high - low + 2 / (1 - level) * missed) / truth).mean()


def judged(ladder, target: str, sizes: list[str]) -> pandas.DataFrame:
    """Mean relative errors and interval scores at 80 % over the tasks and the target's runs."""
    rows = []
    for label, table in ladder.items():
        size = table["run"].str.partition("-")[0]
        known, away = table[size.isin(sizes)], table[size == target]
        ends = pandas.DataFrame([
            {"params": run["params"].iloc[-1], "tokens": run["tokens"].iloc[-1],
             "accuracy": run["accuracy"].iloc[-5:].mean()} for _, run in away.groupby("run")
        ])  # fmt: skip
        truth = ends["accuracy"].to_numpy()
        ours = TaskChain().fit(known, resamples=500)
        told = ours.interval(ends, 0.8, "prediction")
        theirs, error = published([run for _, run in known.groupby("run")], CHANCE.get(label, 0.25))(
            ends["params"].to_numpy(), ends["tokens"].to_numpy()
        )
        half = 1.2816 * error
        rows.append({
            "task": label, "ours": np.abs(ours.predict(ends) / truth - 1).mean(),
            "theirs": np.abs(theirs / truth - 1).mean(),
            "our score": winkler(told.low, told.high, truth, 0.8),
            "their score": winkler(theirs - half, theirs + half, truth, 0.8),
            "inside": ((told.low <= truth) & (truth <= told.high)).mean(),
        })  # fmt: skip
    return pandas.DataFrame(rows).set_index("task")


@pytest.mark.slow
def test_eight_tasks_at_a_billion_are_foretold_better_than_by_the_authors_procedure(ladder):
    found = judged(ladder, "1B", ["190M", "370M", "760M"])
    mean = found.mean()
    assert mean["theirs"] == pytest.approx(0.0206, abs=2e-4)  # the re-made procedure is what it was
    assert mean["ours"] < 0.016 < mean["theirs"]
    assert mean["our score"] < 0.09 < mean["their score"]
    assert mean["inside"] >= 0.8


def test_a_ladder_that_obeys_both_steps_is_foretold_exactly():
    n, seen = np.repeat(np.geomspace(1e7, 1e9, 5), 8), np.tile(np.geomspace(0.1, 10, 8), 5)
    d = 20 * n * seen
    loss = 0.3 + 400 * n**-0.4 + 300 * d**-0.35
    accuracy = 0.9 - 0.65 / (1 + np.exp(-5 * (loss - 0.9)))
    table = pandas.DataFrame({"run": [f"{a:.0f}-{b:.3f}" for a, b in zip(n, seen, strict=True)], "params": n,
                              "tokens": d, "task_loss": loss, "accuracy": accuracy})  # fmt: skip
    chain = TaskChain(best=0.9, window=1, skip=0.0).fit(table, resamples=0)
    at = {"params": 1e10, "tokens": 2e11}
    expected = 0.9 - 0.65 / (1 + np.exp(-5 * (0.3 + 400 * 1e10**-0.4 + 300 * 2e11**-0.35 - 0.9)))
    assert chain.predict(at)[0] == pytest.approx(expected, rel=3e-3)


def simulated(generator, sizes=4, horizons=4, records=12, run=0.006, record=0.004):
    """Logs of a ladder: noise of the loss between runs and records, of the accuracy likewise."""

    def noise():
        return np.exp(run * generator.standard_normal() + record * generator.standard_normal(records))

    rows = []
    part = np.linspace(0.3, 1.0, records)
    for i, params in enumerate(np.geomspace(1e7, 2e8, sizes)):
        for j, multiple in enumerate(np.geomspace(0.5, 8, horizons)):
            tokens = 20 * params * multiple * part
            # along a run the loss is above the law until its end, as before a rate has decayed
            loss = (0.4 + 60 * params**-0.3 + 60 * tokens**-0.25) * (1.2 - 0.2 * part) * noise()
            rows.append(pandas.DataFrame({"run": f"{i}-{j}", "params": params, "tokens": tokens,
                                          "task_loss": loss, "accuracy": truth(loss) * noise()}))  # fmt: skip
    return pandas.concat(rows, ignore_index=True)


def truth(loss):
    return 1.0 - 0.7 / (1 + np.exp(-4 * (loss - 0.9)))


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "horizons"), [(4, 4), (3, 3)], ids=["sixteen runs", "nine runs"])
def test_intervals_of_the_chain_cover(sizes, horizons):
    generator = np.random.default_rng(7)
    at = {"params": 6e8, "tokens": 20 * 6e8 * 2}
    exact = truth(0.4 + 60 * at["params"] ** -0.3 + 60 * at["tokens"] ** -0.25)
    inside, wide = [], []
    for _ in range(20):
        chain = TaskChain(window=1, skip=0.0).fit(simulated(generator, sizes, horizons), resamples=150)
        told = chain.interval(at, 0.8)
        inside.append(bool(told.low[0] <= exact <= told.high[0]))
        wide.append(float(told.width[0]))
    assert np.mean(inside) >= 0.55  # 80 % less 2.8 standard errors of twenty draws
    assert 0.004 < np.median(wide) < 0.08


def test_what_a_chain_cannot_know_it_refuses():
    generator = np.random.default_rng(0)
    table = simulated(generator, 3, 3)
    with pytest.raises(ValueError, match="accuracies lie between 0 and 1; 55"):
        TaskChain().fit(table.assign(accuracy=55.0))
    with pytest.raises(ValueError, match="a task's loss must be positive"):
        TaskChain().fit(table.assign(task_loss=-1.0))
    one_size = TaskChain(window=1).fit(table[table["params"] == table["params"].min()], resamples=0)
    with pytest.raises(ValueError, match=r"all runs have params = 1e\+07"):
        one_size.predict({"params": 1e9, "tokens": 1e9})
    with pytest.raises(ValueError, match="records along its training"):
        TaskChain().fit(table.groupby("run").tail(1).head(7))
    with pytest.raises(ValueError, match="needs params"):
        TaskChain(window=1).fit(table, resamples=0).predict({"tokens": 1e9})
    with pytest.raises(ValueError, match="best must be"):
        TaskChain(best=1.5)
