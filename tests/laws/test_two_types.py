"""Easy and hard tasks: what the paper's notebook prints, and what the model says.

Rates of Llama-3.1-8B on HumanEval, as printed: correct .8738 and .1382, false and accepted .03134 and .21406,
rejected .09483 and .64770, types .56 and .44; so a wrong program is rejected with probability .7517.
"""

import numpy as np
import pytest

from allometry.laws import AcceptanceTable, TwoTypeModel, ceiling, optimal_k, resampling_curve, two_type_model

COSTS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 2.0, 4.0, 8.0]
PRINTED_K = [82, 81, 81, 80, 79, 76, 3, 2, 2, 2, 1, 1, 0]
OFFICIAL = {0.1: 0.8177, 0.2: 0.7711, 0.6: 0.5848, 0.7: 0.5382}  # plateaus
CORRECT = {0.1: 0.6846, 0.2: 0.6559, 0.6: 0.5412, 0.7: 0.5125}


@pytest.fixture(scope="module")
def llama():
    return two_type_model([0.8738, 0.1382], [0.56, 0.44], soundness=1 - 0.03134 / (1 - 0.8738))


def test_the_rates_are_those_printed(llama):
    np.testing.assert_allclose(llama.table.wrong, [0.03134, 0.21406], atol=1e-4)
    np.testing.assert_allclose(llama.table.rejected, [0.09483, 0.64770], atol=1e-4)


def test_official_the_printed_row_of_best_k_is_where_double_precision_ends(llama):
    ks = np.arange(1, 1001)
    found = []
    for cost in COSTS:
        reward = llama.published_reward(ks, cost)
        found.append(int(ks[np.argmax(reward)]) if reward.max() > 0 else 0)
    assert found == PRINTED_K


def test_correct_six_of_its_entries_are_infinite_and_the_others_stand(llama):
    found = [optimal_k(llama.table, cost_false=cost).k for cost in COSTS]
    assert found == [np.inf] * 6 + PRINTED_K[6:]
    for cost, k in zip(COSTS, found, strict=True):  # each further draw adds, by the closed form
        margin = 0.1382 - cost * llama.table.wrong[1]
        assert (margin > 0) == np.isinf(k)


@pytest.mark.parametrize("cost", OFFICIAL)
def test_plateaus_official_and_correct(llama, cost):
    assert llama.published_reward([2000], cost)[0] == pytest.approx(OFFICIAL[cost], abs=6e-5)
    curve = resampling_curve(llama.table, [2000], cost_false=cost)
    assert curve.reward[0] == pytest.approx(CORRECT[cost], abs=6e-5)


def test_a_simulation_of_whole_searches_sides_with_the_prior(llama):
    generator = np.random.default_rng(0)
    count, cost = 200_000, 0.7
    kind = (generator.random(count) > 0.56).astype(int)
    reward, going = np.zeros(count), np.ones(count, dtype=bool)
    for _ in range(60):
        good = generator.random(count) < np.array(llama.rates)[kind]
        passed = good | (generator.random(count) > llama.soundness)
        reward += np.where(going & passed, np.where(good, 1.0, -cost), 0.0)
        going &= ~passed
    error = reward.std() / np.sqrt(count)
    ours = resampling_curve(llama.table, [60], cost_false=cost).reward[0]
    assert abs(reward.mean() - ours) < 4 * error
    assert abs(reward.mean() - llama.published_reward([60], cost)[0]) > 10 * error


def test_belief_is_bayes(llama):
    table = llama.table
    ks = np.array([1, 2, 10])
    joint = np.array([0.56, 0.44]) * table.rejected ** (ks[:, None] - 1.0)
    np.testing.assert_allclose(llama.belief(ks), joint / joint.sum(1, keepdims=True), rtol=1e-12)
    np.testing.assert_allclose(llama.belief([5000])[0], [0.0, 1.0], atol=1e-12)
    with pytest.raises(ValueError, match="count from 1"):
        llama.belief([0])


def test_any_number_of_types_and_a_verifier_that_misses():
    model = two_type_model([0.9, 0.5, 0.1], [1, 1, 2], soundness=0.8, completeness=0.5)
    assert model.prior == (0.25, 0.25, 0.5)
    np.testing.assert_allclose(model.table.right, [0.45, 0.25, 0.05])
    np.testing.assert_allclose(model.table.single, [0.9, 0.5, 0.1])
    assert np.isnan(ceiling(model.table).accuracy.low)


def test_types_are_read_off_a_table():
    generator = np.random.default_rng(1)
    easy = generator.random(500) < 0.6
    rate = np.where(easy, 0.9, 0.2)[:, None]
    correct = generator.random((500, 200)) < rate
    accepted = correct | (generator.random((500, 200)) < 0.25)
    model = TwoTypeModel.of(AcceptanceTable(accepted, correct))
    np.testing.assert_allclose(model.rates, [0.9, 0.2], atol=0.01)
    assert model.prior[0] == pytest.approx(easy.mean(), abs=1e-12)
    assert model.soundness == pytest.approx(0.75, abs=0.01)
    assert model.completeness == 1.0
    with pytest.raises(ValueError, match="are easy"):
        TwoTypeModel.of(AcceptanceTable(accepted, correct).select(easy))


def test_what_is_no_probability_is_refused():
    for rates, prior, soundness, said in (
        ([1.2, 0.1], [1, 1], 0.5, "rates"),
        ([0.2, 0.1], [1], 0.5, "a rate and a prior"),
        ([0.2, 0.1], [1, -1], 0.5, "prior"),
        ([0.2, 0.1], [1, 1], 1.5, "soundness"),
    ):
        with pytest.raises(ValueError, match=said):
            two_type_model(rates, prior, soundness)
