"""Conditional on single-sample accuracy over models: the paper's printed table, SciPy, simulation."""

import numpy as np
import pytest

from allometry.laws import AcceptanceTable, ceiling, weak_to_strong

# pass@1 and P(correct | passes) of 17 models on HumanEval+, as the paper's table prints them
PRINTED = {
    "GPT-4o": (0.855, 0.929), "Llama-405B": (0.781, 0.893), "Llama-70B": (0.712, 0.870),
    "Phi-3 medium": (0.608, 0.859), "Phi-3 mini": (0.579, 0.856), "Llama-8B": (0.550, 0.825),
    "Command-R": (0.368, 0.842), "CodeLlama-13B": (0.339, 0.779), "CodeLlama-7B": (0.286, 0.765),
    "CodeT5+": (0.230, 0.766), "Command": (0.224, 0.774), "StarCoder": (0.215, 0.762),
    "Mistral-7B": (0.200, 0.759), "CodeGen": (0.179, 0.782), "CodeGen2": (0.112, 0.789),
    "Vicuna": (0.092, 0.752), "Command-Light": (0.064, 0.715),
}  # fmt: skip


def test_the_papers_line():
    fit = weak_to_strong(PRINTED)
    assert fit.slope.value == pytest.approx(0.218, abs=6e-4)
    assert fit.intercept.value == pytest.approx(0.725, abs=5e-4)
    assert fit.r2 == pytest.approx(0.892, abs=1.2e-3)
    assert 0.9e-8 < fit.p < 1.3e-8


def test_who_can_reach_the_strongest():
    reach = weak_to_strong(PRINTED).can_reach["GPT-4o"]
    assert set(reach.index[reach]) == {"GPT-4o", "Llama-405B", "Llama-70B", "Phi-3 medium", "Phi-3 mini"}


def test_the_line_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    x, y = np.array(list(PRINTED.values())).T
    peer, fit = stats.linregress(x, y), weak_to_strong(PRINTED, level=0.95)
    assert fit.slope.value == pytest.approx(peer.slope, rel=1e-12)
    assert fit.intercept.value == pytest.approx(peer.intercept, rel=1e-12)
    assert fit.p == pytest.approx(peer.pvalue, rel=1e-9)
    half = stats.t.ppf(0.975, 15)
    assert fit.slope.high - fit.slope.value == pytest.approx(half * peer.stderr, rel=1e-9)
    assert fit.intercept.value - fit.intercept.low == pytest.approx(half * peer.intercept_stderr, rel=1e-9)
    fisher = stats.pearsonr(x, y).confidence_interval(0.95)
    assert (fit.correlation.low, fit.correlation.high) == pytest.approx(tuple(fisher), rel=1e-9)


def models(tasks, skills, seed, samples=100):
    """Tables of several models over the same tasks: hard tasks are hard for all."""
    generator = np.random.default_rng(seed)
    hard, loose = generator.normal(size=tasks), generator.beta(1, 4, tasks)
    tables = {}
    for skill in skills:
        right = 1 / (1 + np.exp(-(skill - 2 * hard)))
        kinds = generator.multinomial(
            samples, np.stack([right, (1 - right) * loose, (1 - right) * (1 - loose)], -1)
        )
        tables[f"skill {skill}"] = AcceptanceTable.from_counts(
            np.full(tasks, samples), kinds[:, 0] + kinds[:, 1], kinds[:, 0]
        )
    return tables


def test_averages_are_what_they_say():
    tables = models(80, [-3, -1, 1, 3], 0, samples=10)
    found = list(tables.values())
    accepted = [one.right + one.wrong for one in found]
    common = np.all([one > 0 for one in accepted], axis=0)
    assert 0 < common.sum() < 80
    by = {name: weak_to_strong(tables, average=name, resamples=50).models for name in
          ("pooled", "common", "ceiling")}  # fmt: skip
    for i, one in enumerate(found):
        assert by["pooled"]["conditional"].iloc[i] == pytest.approx(one.right.sum() / accepted[i].sum())
        assert by["common"]["conditional"].iloc[i] == pytest.approx(
            (one.right[common] / accepted[i][common]).mean()
        )
        top = ceiling(one).accuracy.value
        assert by["ceiling"]["conditional"].iloc[i] == pytest.approx(top)
        assert by["pooled"]["ceiling"].iloc[i] == pytest.approx(top)
        assert by["pooled"]["single"].iloc[i] == pytest.approx(one.pass_at_1)


def test_gaps_are_ceilings_less_single_samples():
    tables = models(80, [-3, -1, 1, 3], 1)
    fit = weak_to_strong(tables, resamples=500)
    weak, strong = "skill -1", "skill 3"
    expected = ceiling(tables[weak]).accuracy.value - tables[strong].pass_at_1
    assert fit.gap.loc[weak, strong] == pytest.approx(expected)
    assert (fit.gap_low <= fit.gap).all(axis=None)
    assert (fit.gap <= fit.gap_high).all(axis=None)
    assert fit.can_reach.equals(fit.gap >= 0)
    assert np.diag(fit.gap).min() >= 0  # with all that is correct accepted, resampling never harms


def test_the_intervals_from_tasks_cover():
    skills = [-3, -2, -1, 0, 1, 2]
    truth = weak_to_strong(models(20_000, skills, 2, 200), resamples=2)
    hits = []
    for seed in range(150):
        fit = weak_to_strong(models(60, skills, 1000 + seed), resamples=300, random_state=seed)
        hits.append([
            fit.slope.low <= truth.slope.value <= fit.slope.high,
            fit.gap_low.iloc[0, 5] <= truth.gap.iloc[0, 5] <= fit.gap_high.iloc[0, 5],
        ])  # fmt: skip
    share = np.mean(hits, axis=0)
    assert (share > 0.83).all(), share
    assert (share < 0.97).all(), share


@pytest.mark.parametrize(
    ("tables", "options", "said"),
    [
        ({"a": (0.1, 0.2), "b": (0.3, 0.4)}, {}, "three or more"),
        ({"a": (0.1, 0.2), "b": (0.1, 0.4), "c": (0.1, 0.4)}, {}, "no line"),
        ({"a": (0.1, 0.2), "b": (0.1, 1.4), "c": (0.2, 0.4)}, {}, "from 0 to 1"),
        (PRINTED, {"average": "mean"}, "average must be"),
        ({"a": (0.1, 0.2), "b": (0.1, 0.4), "c": AcceptanceTable.from_rates([0], [1])}, {}, "every model"),
        ({name: AcceptanceTable.from_rates([0.1] * n, [0.2] * n) for n, name in enumerate("abc", 2)}, {},
         "different tasks"),
        ({name: AcceptanceTable.from_rates(c, [0, 0]) for name, c in
          {"a": [0, 0.5], "b": [0.5, 0], "c": [0.1, 0.2]}.items()}, {"average": "common"},
         "no task of which"),
        ({name: AcceptanceTable.from_rates(c, [0, 0]) for name, c in
          {"a": [0, 0.0], "b": [0.5, 0], "c": [0.1, 0.2]}.items()}, {}, "nothing of a"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(tables, options, said):
    with pytest.raises(ValueError, match=said):
        weak_to_strong(tables, **options)
