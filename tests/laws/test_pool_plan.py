"""Plans: against trying everything, against a general optimizer, with intervals that cover the switch."""

import numpy as np
import pytest
from scipy.optimize import minimize

from allometry import laws

POOLS = {"A": 0.30, "B": 0.22, "C": 0.18}
SIZE = 1500.0


def known(**options):
    half = {"A": 2.0, "B": 4.0, "C": 8.0}
    return laws.UtilityLaw.known(POOLS, half, dict.fromkeys(POOLS, SIZE), a=3e4, E=0.05, **options)


def fitted(seed, noise=0.004):
    law, epochs = known(), np.array([1.0, 2, 4, 8, 16, 32, 64])
    table = {"samples": SIZE * np.tile(epochs, 6), "pool": np.repeat(list("ABC"), 14), "pool_size": SIZE}
    shaken = np.exp(noise * np.random.default_rng(seed).normal(size=42))
    return laws.UtilityLaw().fit({**table, "error": law.predict(table) * shaken}, resamples=100)


@pytest.mark.parametrize("options", [{}, {"floor": "official"}, {"kind": "effective_data"}])
def test_the_plan_is_what_trying_every_union_finds(options):
    law, budgets = known(**options), np.geomspace(SIZE, 1e6, 12)
    plan = laws.plan_pools(law, budgets)
    each = np.stack([law.mixture_curve(budgets, list("ABC"[:m])).value for m in (1, 2, 3)], axis=1)
    assert plan.errors == pytest.approx(each, rel=1e-12)
    assert plan.best["union"].tolist() == [("A", "A+B", "A+B+C")[i] for i in each.argmin(axis=1)]
    excess = each / each.min(axis=1, keepdims=True) - 1
    assert plan.regret["worst"].to_numpy() == pytest.approx(excess.max(axis=0), abs=1e-12)


def test_a_switch_is_where_two_unions_are_level():
    law = known()
    frontier = laws.plan_pools(law, [SIZE, 1e6]).frontier
    assert frontier["union"].tolist() == ["A", "A+B", "A+B+C"]
    assert frontier["to"].tolist()[:-1] == frontier["from"].tolist()[1:]
    for row in (1, 2):
        at = frontier["from"][row]
        before, after = (law.mixture_curve(at, list("ABC"[:m])).value[0] for m in (row, row + 1))
        assert before == pytest.approx(after, rel=1e-5)
        early = law.mixture_curve(at * 0.97, list("ABC"[:row])).value[0]
        assert early < law.mixture_curve(at * 0.97, list("ABC"[: row + 1])).value[0]


def test_free_weights_are_as_good_as_a_general_optimizer_finds():
    law, budgets = known(), np.array([2e3, 4e4, 3e5])
    plan = laws.plan_pools(law, budgets, weights="free")
    equal = laws.plan_pools(law, budgets)
    assert (plan.best["error"] <= equal.best["error"] * (1 + 1e-9)).all()
    for row, budget in enumerate(budgets):

        def error(logits, budget=budget):
            return law.mixture_curve(budget, list("ABC"), np.exp(logits - logits.max()) + 1e-12).value[0]

        starts = np.log(np.array([[0.98, 0.01, 0.01], [0.6, 0.3, 0.1], [0.3, 0.3, 0.3]]))
        found = min(minimize(error, start, method="Nelder-Mead").fun for start in starts)
        assert plan.best["error"][row] <= found * 1.0005  # shares are multiples of 1/120
        assert plan.best.loc[row, list("ABC")].sum() == pytest.approx(1.0)


@pytest.mark.slow
def test_the_interval_of_a_switch_covers_it():
    budgets = [SIZE, 1e6]
    true = laws.plan_pools(known(), budgets).frontier["from"][1]
    inside, width = [], []
    for seed in range(60):
        frontier = laws.plan_pools(fitted(seed), budgets).frontier
        row = frontier[frontier["union"] == "A+B"].iloc[0]
        inside.append(row["low"] <= true <= row["high"])
        width.append(np.log(row["high"] / row["low"]))
    assert 0.80 <= np.mean(inside) <= 1.0  # nominal 0.90, standard error 0.04
    assert np.median(width) < 1.0


def test_sure_is_a_share_that_falls_at_the_switch():
    law = fitted(0)
    frontier = laws.plan_pools(law, [SIZE, 1e6]).frontier
    at = frontier["from"][1]
    sure = laws.plan_pools(law, [SIZE, at, 8 * at]).best["sure"]
    assert sure[0] == 1.0
    assert 0.2 < sure[1] < 0.8


def test_bad_plans_are_refused():
    law = known()
    for arguments, said in (
        (([],), "budgets must be positive"), (([-1.0],), "budgets must be positive"),
        (([1e4], 4), "max_pools must be from 1 to 3"), (([1e4], None, "some"), "weights must be"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            laws.plan_pools(law, *arguments)
    with pytest.raises(ValueError, match="there is no pool 'Z'"):
        laws.plan_pools(law, [1e4], order=["A", "Z"])
    with pytest.raises(ValueError, match="free weights need"):
        laws.plan_pools(known(kind="effective_data"), [1e4], weights="free")
    assert laws.plan_pools(law, [1e6], max_pools=1).unions == ["A"]
