"""Allocation: closed forms against the numeric optimum, published figures, whole shares."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allometry import laws

LAWS = {
    "chinchilla": {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
    "kaplan": {"Nc": 6.4e13, "Dc": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},
}


@pytest.mark.parametrize("form", LAWS)
@pytest.mark.parametrize("flops", [1e15, 1e20, 1e25])
def test_closed_form_is_the_minimum_on_the_line(form, flops):
    closed = laws.compute_optimal(form, LAWS[form], flops)
    numeric = laws.compute_optimal(form, LAWS[form], flops, method="numeric")
    assert closed.params == pytest.approx(numeric.params, rel=1e-5)
    assert closed.loss == pytest.approx(numeric.loss, rel=1e-12)
    assert 6 * closed.params * closed.tokens == pytest.approx(flops, rel=1e-12)


def test_published_law_asks_for_about_twenty_tokens_a_parameter():
    # Besiroglu et al., 2024: their refit agrees with the 20 tokens per parameter that Chinchilla was trained
    # with.
    best = laws.compute_optimal("chinchilla", LAWS["chinchilla"], 5.76e23)
    assert 15 < best.tokens_per_param < 25


def test_repeating_scarce_data_moves_the_optimum_to_fewer_parameters():
    # Muennighoff et al., 2023, section 5: with data scarce, spend on epochs before parameters.
    values = {"E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.353, "beta": 0.353, "R_N": 5.31, "R_D": 15.39}
    plenty = laws.compute_optimal("data-constrained", values, 1e22, unique_tokens=1e13)
    scarce = laws.compute_optimal("data-constrained", values, 1e22, unique_tokens=4e9)
    assert scarce.params < plenty.params
    assert scarce.loss > plenty.loss


def test_optimal_carries_intervals_from_the_draws():
    n, d = (a.ravel() for a in np.meshgrid([1e7, 1e8, 1e9], [1e9, 1e10, 1e11]))
    generator = np.random.default_rng(0)
    y = (1.8 + 482 * n**-0.35 + 2085 * d**-0.36) * np.exp(0.003 * generator.normal(size=9))
    best = laws.fit("chinchilla", {"N": n, "D": d}, y, resamples=200).optimal(1e21)
    for value, interval in (
        (best.params, best.params_interval), (best.tokens, best.tokens_interval),
        (best.loss, best.loss_interval),
    ):  # fmt: skip
        assert interval.low < value < interval.high


@given(st.integers(0, 500), st.lists(st.floats(0.01, 10), min_size=1, max_size=9))
def test_shares_are_whole_sum_to_the_total_and_miss_by_less_than_one(total, weights):
    shares = laws.apportion(total, weights)
    assert sum(shares) == total
    exact = total * np.array(weights) / sum(weights)
    assert (np.abs(np.array(shares) - exact) < 1 + 1e-9).all()


def test_greedy_allocation_is_the_best_where_gains_fall():
    import itertools

    gains = np.sort(np.random.default_rng(0).uniform(size=(3, 4)), axis=1)[:, ::-1]
    found = laws.allocate(gains, 1.0, 5)
    value = sum(gains[i, : found[i]].sum() for i in range(3))
    best = max(
        sum(gains[i, :k].sum() for i, k in enumerate(units))
        for units in itertools.product(range(5), repeat=3) if sum(units) <= 5
    )  # fmt: skip
    assert value == pytest.approx(best)


def test_budgets_and_inputs_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="positive and finite"):
        laws.compute_optimal("chinchilla", LAWS["chinchilla"], -1.0)
    with pytest.raises(ValueError, match="needs params and tokens"):
        laws.compute_optimal("power", {"A": 1.0, "alpha": 0.3}, 1e20)
    with pytest.raises(ValueError, match="also needs"):
        laws.compute_optimal("chinchilla", {"E": 1.0}, 1e20)
