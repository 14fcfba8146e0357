"""Published laws: the numbers that their papers print come out of them."""

import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from allometry import laws
from allometry.laws.published import (
    DEFAULT_LAW,
    PublishedLaw,
    published,
    published_laws,
    published_recipe,
)

NAMES = list(published_laws().index)


def test_there_are_the_laws_that_planning_rests_on():
    assert {"chinchilla", "chinchilla-replicated", "kaplan", "data-constrained"} <= set(NAMES)
    assert DEFAULT_LAW == "chinchilla-replicated"


def test_the_room_offers_them_without_loading_pandas_or_scipy():
    asks = """
import sys
from allometry import laws
print(laws.published("kaplan").year, laws.published_recipe().year, {"pandas", "scipy"} & set(sys.modules))
"""
    told = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, check=True).stdout
    assert told.split(maxsplit=2) == ["2020", "2024", "set()\n"]


@pytest.mark.parametrize("name", NAMES)
def test_each_says_where_it_is_from_and_on_what_it_was_fitted(name):
    law = published(name)
    assert set(law.params) == set(law.form.names)
    assert law.arxiv.count(".") == 1
    assert law.year == 2000 + int(law.arxiv[:2])
    assert law.where
    assert law.params_counted
    assert set(law.domain) == {"params", "tokens"}
    assert all(0 < low < high for low, high in law.domain.values())
    assert json.loads(json.dumps(law.to_dict()))["params"] == dict(law.params)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        ValueError, match="no published law is called 'gopher'; there are chinchilla-replicated"
    ):
        published("gopher")
    with pytest.raises(ValueError, match="there is deepseek"):
        published_recipe("folklore")


def test_replication_agrees_with_its_paper():
    # Besiroglu et al., 2024: N grows as C^0.5126, and Chinchilla's 20 tokens per parameter lie near the
    # optimum.
    law = published("chinchilla-replicated")
    growth = math.log(law.optimal(1e24).params / law.optimal(1e20).params) / math.log(1e4)
    assert growth == pytest.approx(0.5126, abs=5e-5)
    chinchilla = law.optimal(5.76e23)
    assert chinchilla.tokens_per_param == pytest.approx(20, rel=0.15)
    assert chinchilla.params == pytest.approx(70e9, rel=0.1)
    assert chinchilla.tokens == pytest.approx(1.4e12, rel=0.1)


def test_replication_was_fitted_to_the_domain_that_it_names(reference_data):
    import pandas

    runs = pandas.read_csv(reference_data / "chinchilla" / "svg_extracted_data.csv")
    params = runs["Model Size"].to_numpy()
    tokens = runs["Training FLOP"].to_numpy() / (6 * params)
    kept = np.argsort(tokens / params)[5:]  # the paper leaves out the five with the fewest tokens a parameter
    law = published("chinchilla-replicated")
    for name, values in (("params", params[kept]), ("tokens", tokens[kept])):
        assert law.domain[name] == pytest.approx((values.min(), values.max()), rel=0.01)
    error = np.log(runs["loss"][kept] / law.predict({"params": params[kept], "tokens": tokens[kept]}))
    assert np.median(np.abs(error)) < 0.005


def tokens_for(law, params):
    """Tokens at which a chinchilla law calls ``params`` optimal: alpha A N^-alpha = beta B D^-beta."""
    p = law.params
    return (p["beta"] * p["B"] / (p["alpha"] * p["A"]) * params ** p["alpha"]) ** (1 / p["beta"])


@pytest.mark.parametrize(
    ("params", "tokens"),  # Hoffmann et al., 2022, table A3, approach 3
    [(400e6, 9.2e9), (1e9, 27.1e9), (10e9, 410.1e9), (67e9, 4.1e12), (280e9, 20.1e12), (1e12, 94.1e12)],
)
def test_chinchilla_gives_its_own_table_and_its_rounding_does_not(params, tokens):
    exact, rounded = published("chinchilla"), published("chinchilla-rounded")
    assert tokens_for(exact, params) == pytest.approx(tokens, rel=0.2)
    assert tokens_for(rounded, params) > 1.5 * tokens


@pytest.mark.parametrize("name", ["chinchilla", "chinchilla-replicated", "chinchilla-rounded"])
def test_the_table_is_that_of_the_optimum(name):
    law = published(name)
    best = law.optimal(1e22)
    assert tokens_for(law, best.params) == pytest.approx(best.tokens, rel=1e-9)


def test_kaplan_asks_for_data_as_its_paper_does():
    # Kaplan et al., 2020, equation 4.4: D > 5e3 N^0.74 keeps L(N, D) / L(N, inf) - 1 below 0.02.
    law = published("kaplan")
    params = np.array([1e7, 1e8, 1e9])
    loss = law.predict({"params": params, "tokens": 5e3 * params**0.74})
    ample = law.predict({"params": params, "tokens": np.full(3, 1e30)})
    assert loss / ample - 1 == pytest.approx(np.full(3, 0.02), rel=0.15)
    p = law.params
    assert p["alpha_N"] / p["alpha_D"] == pytest.approx(0.74, abs=0.005)


def test_kaplan_limits_are_power_laws():
    law = published("kaplan")
    p = law.params
    many, few = law.predict({"params": [1e6, 1e8], "tokens": [1e40, 1e40]}), (p["Nc"] / np.array([1e6, 1e8]))
    assert many == pytest.approx(few ** p["alpha_N"], rel=1e-9)


def test_data_constrained_agrees_with_its_paper():
    # Muennighoff et al., 2023, equation 17: 521, 1488, 1.87, 0.35, 15.4, 5.3 and U_N = 0.051 U_D.
    law = published("data-constrained")
    p = law.params
    printed = {"A": 521, "B": 1488, "E": 1.87, "alpha": 0.35, "beta": 0.35, "R_D": 15.4, "R_N": 5.3}
    for name, value in printed.items():
        assert p[name] == pytest.approx(value, rel=0.01)
    assert (p["A"] / p["B"]) ** (1 / p["alpha"]) == pytest.approx(0.051, abs=5e-4)


def test_repetition_is_worth_what_the_paper_says():
    # Muennighoff et al., section 3.1: no number of epochs is worth more than U (1 + R_D) fresh tokens; and up
    # to four epochs are almost as good as fresh data.
    law = published("data-constrained")
    unique = 1e9

    def loss(tokens, unique):
        return float(law.predict({"params": 1e7, "tokens": tokens, "unique_tokens": unique})[0])

    worth = unique * (1 + law.params["R_D"])
    assert loss(1e6 * unique, unique) == pytest.approx(loss(worth, worth), rel=1e-9)
    assert loss(1e6 * unique, unique) < loss(1e2 * unique, unique) < loss(4 * unique, unique)
    assert loss(4 * unique, unique) == pytest.approx(loss(4 * unique, 4 * unique), rel=0.005)


def test_extrapolation_counts_orders_of_magnitude_from_the_domain():
    law = published("chinchilla")
    far = law.extrapolation({"params": [70e6, 160e9, 7e6], "tokens": [5e9, 50e9, 5e12]})
    assert far["params"] == pytest.approx([0, 1, -1])
    assert far["tokens"] == pytest.approx([0, 0, 1])


def test_recipe_gives_the_settings_of_the_models_that_were_trained_with_it():
    # Bi et al., 2024, table 2: batches of 2304 and 4608 sequences of 4096 tokens, 4.2e-4 and 3.2e-4, on 2e12
    # tokens.
    recipe = published_recipe()
    for params, sequences, rate in ((7e9, 2304, 4.2e-4), (67e9, 4608, 3.2e-4)):
        flops = 6 * params * 2e12
        assert recipe.batch_tokens(flops) == pytest.approx(sequences * 4096, rel=0.05)
        assert recipe.learning_rate(flops) == pytest.approx(rate, rel=0.02)
    assert recipe.extrapolation(1e18) == 0
    assert recipe.extrapolation(2e21) == pytest.approx(2)
    assert recipe.extrapolation(1e15) == pytest.approx(-2)


# --- serving -----------------------------------------------------------------------------------------------
def brute(law, flops, served):
    """Least loss of 6 N D + 2 N T = flops over a fine grid of log N around the coarse best, and its N."""
    low, high = 0.0, math.log(flops / (2 * served)) if served else math.log(flops / 6)
    for _ in range(12):
        grid = np.linspace(low, high, 2001)
        tokens = flops / (6 * np.exp(grid)) - served / 3
        fine = tokens > 0
        losses = np.full(len(grid), np.inf)
        losses[fine] = law.predict({"params": np.exp(grid[fine]), "tokens": tokens[fine]})
        best = int(np.argmin(losses))
        low, high = grid[max(best - 2, 0)], grid[min(best + 2, len(grid) - 1)]
        if high - low < 1e-5:
            break
    return float(losses[best]), math.exp(grid[best])


@pytest.mark.parametrize("name", ["chinchilla", "chinchilla-replicated", "kaplan"])
@pytest.mark.parametrize("flops", [1e19, 1e22, 1e25])
@pytest.mark.parametrize("share", [0.0, 0.1, 10.0, 1000.0])
def test_optimum_with_serving_is_that_of_a_grid(name, flops, share):
    law = published(name)
    served = share * law.optimal(flops).tokens
    best = laws.optimal_with_serving(law, flops, served)
    loss, params = brute(law, flops, served)
    assert best.loss == pytest.approx(loss, rel=1e-6)
    assert best.params == pytest.approx(params, rel=1e-4)
    assert best.flops + 2 * best.params * served == pytest.approx(flops, rel=1e-12)
    assert float(law.predict({"params": best.params, "tokens": best.tokens})[0]) == pytest.approx(best.loss)


def test_optimum_with_serving_is_stationary():
    # alpha A N^-alpha = beta B D^-beta (1 + T / 3 D), from 6 N D + 2 N T held fixed.
    law = published("chinchilla-replicated")
    p, served = law.params, 3e12
    best = laws.optimal_with_serving(law, 1e24, served)
    size = p["alpha"] * p["A"] * best.params ** -p["alpha"]
    data = p["beta"] * p["B"] * best.tokens ** -p["beta"]
    assert size == pytest.approx(data * (1 + served / (3 * best.tokens)), rel=1e-5)


def test_serving_nothing_is_the_usual_optimum_and_serving_much_wants_a_small_model():
    law = published("chinchilla-replicated")
    usual = law.optimal(1e22)
    assert laws.optimal_with_serving(law, 1e22, 0) == usual
    assert laws.optimal_with_serving(law, 1e22, 1.0).params == pytest.approx(usual.params, rel=1e-6)
    sizes = [laws.optimal_with_serving(law, 1e22, served).params for served in 10.0 ** np.arange(9, 18)]
    assert all(later < earlier for earlier, later in itertools.pairwise(sizes))
    assert sizes[-1] < 1e-4 * usual.params


@pytest.mark.parametrize(
    ("params", "served", "smaller", "longer", "saved"),  # Sardana et al., 2023, section 2 and figure 1
    [(13e9, 2e12, 7e9, None, 0.17), (7e9, 1e11, 6e9, 1.18, None), (30e9, 1e13, 13.6e9, 2.84, 0.28)],
)
def test_least_total_gives_the_examples_of_the_paper(params, served, smaller, longer, saved):
    # their coefficients; A, B as Hoffmann et al., exponents after De Vries
    law = PublishedLaw(
        "test", "chinchilla", {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.336, "beta": 0.283},
        "", 2023, "2401.00448", "", "", {},
    )  # fmt: skip
    tokens = tokens_for(law, params)
    loss = float(law.predict({"params": params, "tokens": tokens})[0])
    best = laws.least_total(law, loss, served)
    assert best.params == pytest.approx(smaller, rel=0.01)
    assert best.loss == pytest.approx(loss, rel=1e-9)
    if longer:
        assert best.tokens / tokens == pytest.approx(longer, rel=0.005)
    if saved:
        before = 6 * params * tokens + 2 * params * served
        assert 1 - (best.flops + 2 * best.params * served) / before == pytest.approx(saved, abs=0.005)


def test_least_total_and_least_loss_are_one_family():
    law = published("chinchilla-replicated")
    best = laws.optimal_with_serving(law, 3e23, 5e12)
    again = laws.least_total(law, best.loss, 5e12)
    assert again.params == pytest.approx(best.params, rel=1e-4)
    assert again.flops + 2 * again.params * 5e12 == pytest.approx(3e23, rel=1e-6)


def test_a_fit_carries_its_intervals_into_serving():
    n, d = (a.ravel() for a in np.meshgrid([1e7, 1e8, 1e9], [1e9, 1e10, 1e11]))
    noise = np.exp(0.003 * np.random.default_rng(0).normal(size=9))
    fit = laws.fit(
        "chinchilla", {"N": n, "D": d}, (1.8 + 482 * n**-0.35 + 2085 * d**-0.36) * noise, resamples=100
    )
    best = laws.optimal_with_serving(fit, 1e21, 1e11)
    assert best.params_interval.low < best.params < best.params_interval.high
    assert best.tokens_interval.low < best.tokens < best.tokens_interval.high
    assert best.params < fit.optimal(1e21).params
    assert fit.form.name == "chinchilla"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda law: laws.optimal_with_serving(law, 1e20, 1e20), "cannot serve 1e\\+20 tokens"),
        (lambda law: laws.optimal_with_serving(law, 1e20, -1), "0 or more, not -1"),
        (lambda law: laws.optimal_with_serving(law, 0.0, 0), "flops must be positive"),
        (lambda law: laws.least_total(law, 1.5, 1e9), "never reaches a loss of 1.5"),
    ],
)
def test_what_cannot_be_is_said(call, words):
    with pytest.raises(ValueError, match=words):
        call(published())
