"""Best of n at run time does what the curves say."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from allometry.infer import Abstain, best_of, budget_from, measure_acceptance  # noqa: E402
from allometry.laws import AcceptanceTable, optimal_k, resampling_curve  # noqa: E402

RATES = {"easy": (0.5, 0.1), "hard": (0.03, 0.06), "none": (0.0, 0.0)}  # accepted and right, and wrong


def sampler(instance, n, generator):
    chance = torch.rand(n, generator=generator)
    right, wrong = RATES[instance]
    return ["right" if c < right else "wrong" if c < right + wrong else "no" for c in chance.tolist()]


def accepts(instance, completions):
    return [one != "no" for one in completions]


def truth(instance, completions):
    return [one == "right" for one in completions]


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_the_first_that_passes_is_right_as_often_as_the_curve_says(batch):
    generator, n, runs = torch.Generator().manual_seed(0), 12, 4000
    for name in ("easy", "hard"):
        told = [best_of(sampler, accepts, name, n, generator=generator, batch=batch) for _ in range(runs)]
        share = [
            np.mean([bool(one) and one.completion == word for one in told]) for word in ("right", "wrong")
        ]
        curve = resampling_curve(AcceptanceTable.from_rates(*([rate] for rate in RATES[name])), [n])
        for found, expected in zip(share, (curve.accuracy[0], curve.false_rate[0]), strict=True):
            assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / runs)
        if batch == 1:
            drawn = [one.drawn for one in told]
            assert abs(np.mean(drawn) - curve.draws[0]) < 4 * np.std(drawn) / np.sqrt(runs)
            assert all(one.attempt == one.drawn for one in told if one)


def test_nothing_that_is_rejected_is_an_answer():
    generator = torch.Generator().manual_seed(1)
    for select in ("first", "argmax", "weighted"):
        assert best_of(sampler, accepts, "none", 9, generator=generator, select=select) == Abstain(9)
    assert best_of(sampler, accepts, "easy", 0, generator=generator) == Abstain(0)


def test_the_best_and_the_most_voted_for():
    scores = {"a": 0.9, "b": 0.4, "c": -1.0}
    score = lambda instance, completions: [scores[one] for one in completions]  # noqa: E731
    drawn = lambda instance, n, generator: list("cbabbc")[:n]  # noqa: E731
    generator = torch.Generator()
    best = best_of(drawn, score, None, 6, generator=generator, select="argmax")
    assert (best.completion, best.attempt, best.drawn) == ("a", 3, 6)
    voted = best_of(drawn, score, None, 6, generator=generator, select="weighted")
    assert (voted.completion, voted.attempt) == ("b", 2)
    assert voted.score == pytest.approx(1.2)
    merged = best_of(
        drawn, score, None, 6, generator=generator, select="weighted", key=lambda one: one in "ab"
    )
    assert merged.score == pytest.approx(2.1)


def test_what_is_measured_leads_to_a_budget():
    generator = torch.Generator().manual_seed(2)
    names = ["easy"] * 30 + ["hard"] * 30
    table = measure_acceptance(sampler, accepts, truth, names, 400, generator=generator)
    expected = np.array([RATES[name] for name in names])
    for measured, rate in ((table.right, expected[:, 0]), (table.wrong, expected[:, 1])):
        assert (np.abs(measured - rate) < 5 * np.sqrt(rate * (1 - rate) / 400)).all()
    exact = optimal_k(AcceptanceTable.from_rates(*expected.T), cost_false=1.0, resamples=0)
    assert budget_from(table, cost_false=1.0) == pytest.approx(exact.k, abs=1)
    assert budget_from(table, cost_false=100.0) == 0
    free = budget_from(table)
    curve = resampling_curve(table, [free - 1, free, 10**6], exact=False)
    assert curve.accuracy[0] < 0.99 * curve.accuracy[2] <= curve.accuracy[1]
    assert budget_from(table, most=3) == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n": -1}, "n must not"),
        ({"n": 1, "batch": 0}, "batch at least"),
        ({"n": 1, "select": "last"}, "one of"),
    ],
)
def test_what_cannot_be_is_refused(options, said):
    n = options.pop("n")
    with pytest.raises(ValueError, match=said):
        best_of(sampler, accepts, "easy", n, generator=torch.Generator(), **options)
    with pytest.raises(ValueError, match="asked for 2 completions"):
        best_of(lambda i, n, g: ["x"], accepts, "easy", 2, generator=torch.Generator())
    with pytest.raises(ValueError, match="one instance"):
        measure_acceptance(sampler, accepts, truth, [], 2, generator=torch.Generator())
