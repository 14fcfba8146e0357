"""What a budget buys: against brute force, published models, limits, and what must not get worse."""

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allometry import laws
from allometry.forecast.accelerators import ACCELERATORS, accelerator, parse_gpus
from allometry.forecast.budget import BudgetPlan, plan_budget
from allometry.forecast.law_source import counting_repetition, load_law
from allometry.forecast.report import to_json
from allometry.laws.published import published

DAY = 86_400.0


def buy(flops, **options):
    """The plan of a budget in FLOPs: one chip that does them in a day."""
    return plan_budget("1xchip", 1, mfu=1, flops_per_gpu=flops / DAY, **options)


@pytest.fixture(scope="module")
def fitted():
    n, d = (a.ravel() for a in np.meshgrid([1e7, 1e8, 1e9], [1e9, 1e10, 1e11]))
    noise = np.exp(0.003 * np.random.default_rng(0).normal(size=9))
    return [
        laws.fit(form, {"N": n, "D": d}, (1.8 + 482 * n**-0.35 + 2085 * d**-0.36) * noise, resamples=60)
        for form in ("chinchilla", "kaplan-offset")
    ]


# --- arithmetic --------------------------------------------------------------------------------------------
def test_compute_time_and_money_add_up():
    plan = plan_budget("8xH100", 10, mfu=0.4, price=2.5)
    assert plan.total_flops == pytest.approx(8 * 989.4e12 * 0.4 * 10 * DAY)
    assert 6 * plan.params * plan.tokens == pytest.approx(plan.total_flops)
    assert plan.training_flops == pytest.approx(plan.total_flops)
    assert plan.training_days == pytest.approx(10)
    assert plan.gpu_hours == 8 * 10 * 24
    assert plan.cost == pytest.approx(2.5 * 1920)
    assert plan.steps == math.ceil(plan.tokens / plan.batch_tokens)
    assert plan_budget("8xH100", 10).cost is None


def test_serving_shares_the_budget_with_training():
    plan = plan_budget("8xH100", 10, tokens_served=1e12)
    assert plan.training_flops + plan.serving_flops == pytest.approx(plan.total_flops, rel=1e-9)
    assert plan.serving_flops == pytest.approx(2e12 * plan.params)
    assert plan.training_days == pytest.approx(10 * plan.training_flops / plan.total_flops)


def test_peaks_are_dense_and_halving_precision_doubles_them():
    for chip in ACCELERATORS:
        assert accelerator(chip.name) is chip
        assert chip.peak("bf16") == chip.flops.get("fp16", chip.peak("bf16"))
        if "fp8" in chip.flops:
            assert chip.peak("fp8") == pytest.approx(2 * chip.peak("bf16"), rel=0.015)
        if "tf32" in chip.flops:
            assert chip.peak("tf32") == pytest.approx(chip.peak("bf16") / 2, rel=0.025)
    # tensor cores x FLOPs a clock x boost clock: 528 x 1024 x 1.83 GHz, and 432 x 512 x 1.41 GHz
    assert accelerator("H100").peak("bf16") == pytest.approx(528 * 1024 * 1.83e9, rel=0.001)
    assert accelerator("A100").peak("bf16") == pytest.approx(432 * 512 * 1.41e9, rel=0.001)
    # 304 compute units x 2048 x 2.1 GHz
    assert accelerator("MI300X").peak("bf16") == pytest.approx(304 * 2048 * 2.1e9, rel=0.001)
    assert accelerator("RTX 4090").peak("bf16") == pytest.approx(512 * 128 * 2.52e9, rel=0.001)


def test_names_of_accelerators_are_forgiving():
    assert accelerator("nvidia h100 sxm").name == "H100"
    assert accelerator("4090").name == "RTX-4090"
    assert accelerator("v5p").name == "TPU-v5p"
    assert parse_gpus("64 × mi300x") == (64, "mi300x")
    assert parse_gpus("2xRTX 4090") == (2, "RTX 4090")


# --- published anchors -------------------------------------------------------------------------------------
def test_chinchilla_s_budget_buys_chinchilla():
    # Hoffmann et al., 2022: 70 billion parameters on 1.4e12 tokens at 5.76e23 FLOPs
    plan = buy(5.76e23)
    assert plan.law == "chinchilla-replicated"
    assert plan.params == pytest.approx(70e9, rel=0.1)
    assert plan.tokens == pytest.approx(1.4e12, rel=0.1)
    assert plan.tokens_per_param == pytest.approx(20, rel=0.15)
    assert plan.loss == pytest.approx(1.97, abs=0.02)


@pytest.mark.parametrize("served", [0.0, 1e10, 1e12, 1e14])
def test_split_is_the_best_of_a_grid(served):
    law, flops = published(), 1e22
    plan = buy(flops, tokens_served=served)
    params = np.exp(np.linspace(math.log(plan.params) - 1, math.log(plan.params) + 1, 20_001))
    tokens = (flops - 2 * params * served) / (6 * params)
    allowed = tokens > 0
    losses = law.predict({"params": params[allowed], "tokens": tokens[allowed]})
    assert plan.loss <= losses.min() * (1 + 1e-12)
    assert plan.loss == pytest.approx(losses.min(), rel=1e-6)
    assert plan.params == pytest.approx(params[allowed][np.argmin(losses)], rel=5e-4)


def test_saving_is_that_of_the_paper():
    # Sardana et al., 2023, section 2: 30B quality for 1e13 tokens is 13.6B on 2.84 times the data, 28 % less
    # compute
    coefficients = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.336, "beta": 0.283}
    law = laws.PublishedLaw(
        "sardana", "chinchilla", coefficients, "Sardana et al.", 2023, "2401.00448", "equation 1", "all",
        {"params": (1e6, 1e13), "tokens": (1e6, 1e15)},
    )  # fmt: skip
    ratio = 0.283 * 410.7 / (0.336 * 406.4)
    tokens = (ratio * 30e9**0.336) ** (1 / 0.283)
    loss = float(law.predict({"params": 30e9, "tokens": tokens})[0])
    best = laws.least_total(law, loss, 1e13)
    plan = buy(best.flops + 2 * best.params * 1e13, tokens_served=1e13, law=law)
    assert plan.params == pytest.approx(13.6e9, rel=0.005)
    assert plan.tokens / tokens == pytest.approx(2.84, rel=0.005)
    assert plan.serving_saving == pytest.approx(0.28, abs=0.005)
    assert plan.loss == pytest.approx(loss, rel=1e-6)


# --- data that run out -------------------------------------------------------------------------------------
def test_data_that_suffice_change_nothing():
    plenty = buy(1e21, unique_tokens=1e14)
    assert plenty.law == "data-constrained"
    assert plenty.epochs == 1
    free = buy(1e21, law="data-constrained")
    assert free.params == pytest.approx(plenty.params, rel=1e-5)
    assert free.loss == pytest.approx(plenty.loss, rel=1e-9)
    # without repetition it is a chinchilla law
    plain = laws.compute_optimal(
        "chinchilla", {k: v for k, v in published("data-constrained").params.items() if k[:2] != "R_"}, 1e21
    )
    assert plain.params == pytest.approx(free.params, rel=1e-5)
    assert plain.loss == pytest.approx(free.loss, rel=1e-9)


def test_scarce_data_are_repeated_and_cost_loss():
    free, scarce = buy(1e21, unique_tokens=1e14), buy(1e21, unique_tokens=2e9)
    assert scarce.epochs == pytest.approx(scarce.tokens / 2e9)
    assert scarce.epochs > 5
    assert scarce.loss > free.loss
    assert scarce.params < free.params  # Muennighoff et al., section 5: epochs before parameters
    grid = np.exp(np.linspace(math.log(scarce.params) - 1, math.log(scarce.params) + 1, 4001))
    losses = published("data-constrained").predict(
        {"params": grid, "tokens": 1e21 / 6 / grid, "unique_tokens": np.full(4001, 2e9)}
    )
    assert scarce.loss == pytest.approx(losses.min(), rel=1e-6)


def test_half_lives_are_lent_to_other_sums_of_powers(fitted):
    plan = buy(1e21, law="chinchilla-replicated", unique_tokens=5e9)
    assert plan.epochs > 1
    assert plan.loss > buy(1e21, law="chinchilla-replicated").loss
    assert any("Muennighoff" in note for note in plan.notes)
    own = buy(1e21, law=fitted[0], unique_tokens=5e9)
    assert own.loss_range[0] < own.loss < own.loss_range[1]
    assert own.loss > buy(1e21, law=fitted[0]).loss
    (law,) = counting_repetition([fitted[0]], [])
    ample = {"params": 1e9, "tokens": 1e10, "unique_tokens": 1e11}
    assert law.predict(ample) == pytest.approx(fitted[0].predict(ample), rel=1e-9)


# --- one's own laws ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("key", [None, "law", "laws", "fits"])
def test_a_fitted_law_is_read_from_what_the_commands_write(fitted, tmp_path, key):
    stored = fitted[0].to_dict()
    content = {None: stored, "law": {"law": stored}, "laws": {"laws": {"chinchilla": stored}},
               "fits": {"law": "chinchilla", "fits": [stored]}}[key]  # fmt: skip
    (tmp_path / "law.json").write_text(to_json(content, null=False))
    plan = buy(1e21, law=tmp_path / "law.json")
    direct = fitted[0].optimal(1e21)
    assert plan.params == pytest.approx(direct.params)
    assert plan.params_range == pytest.approx((direct.params_interval.low, direct.params_interval.high))
    here = {"params": plan.params, "tokens": plan.tokens}
    told = fitted[0].interval(here, kind="prediction")
    assert (plan.loss, *plan.loss_range) == pytest.approx(tuple(told))
    assert plan.extrapolation["params"] == pytest.approx(math.log10(plan.params / 1e9))


def test_an_average_of_laws_is_split_by_the_first_and_foretold_by_all(fitted):
    both = laws.Average(fitted)
    plan = buy(1e21, law=both)
    assert plan.law == "average of chinchilla and kaplan-offset"
    assert plan.params == pytest.approx(fitted[0].optimal(1e21).params)
    here = {"params": plan.params, "tokens": plan.tokens}
    assert plan.loss == pytest.approx(float(both.predict(here)[0]))
    assert plan.loss_range[0] < plan.loss < plan.loss_range[1]
    assert any("kaplan-offset would take" in note for note in plan.notes)
    scarce = buy(1e21, law=both, unique_tokens=1e9)
    assert scarce.epochs > 1
    assert scarce.loss == buy(1e21, law=fitted[0], unique_tokens=1e9).loss
    assert any("Only the chinchilla law" in note for note in scarce.notes)


# --- what must hold ----------------------------------------------------------------------------------------
budgets = st.floats(17, 27).map(lambda power: 10.0**power)
names = st.sampled_from(
    ["chinchilla", "chinchilla-replicated", "chinchilla-rounded", "kaplan", "data-constrained"]
)


@settings(max_examples=25, deadline=None)
@given(budgets, st.floats(1.001, 100), names, st.sampled_from([0.0, 1e9, 1e12]))
def test_more_budget_never_raises_the_loss(flops, more, law, served):
    served = min(served, flops / 1e6)
    less, larger = (buy(budget, law=law, tokens_served=served) for budget in (flops, flops * more))
    assert larger.loss <= less.loss * (1 + 1e-9)


@settings(max_examples=20, deadline=None)
@given(budgets, st.floats(0, 1e3), st.floats(1.001, 100), names)
def test_more_tokens_served_never_raise_the_size(flops, share, more, law):
    served = (
        share * published(law).optimal(flops, **({"unique_tokens": 1e30} if law[0] == "d" else {})).tokens
    )
    few, many = (buy(flops, law=law, tokens_served=t) for t in (served, served * more + 1.0))
    assert many.params <= few.params * (1 + 1e-6)
    assert many.loss >= few.loss * (1 - 1e-9)
    assert (many.serving_saving or 0) >= -1e-9


@settings(max_examples=30, deadline=None)
@given(budgets, st.floats(8, 13).map(lambda power: 10.0**power), st.floats(1.001, 100))
def test_more_data_never_raise_the_loss(flops, unique, more):
    assert buy(flops, unique_tokens=unique * more).loss <= buy(flops, unique_tokens=unique).loss * (1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(budgets, st.floats(1.001, 100))
def test_the_recipe_follows_compute(flops, more):
    less, larger = buy(flops), buy(flops * more)
    assert larger.learning_rate < less.learning_rate
    assert larger.batch_tokens >= less.batch_tokens


# --- what is said ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tokens_served": 1e12, "price": 2.0},
        {"unique_tokens": 1e10},
        {"law": "kaplan", "precision": "fp8"},
    ],
)
def test_a_plan_survives_json_and_its_text_is_narrow(options):
    plan = plan_budget("64xH100", 30, **options)
    assert BudgetPlan.from_dict(json.loads(to_json(plan.to_dict()))) == plan
    text = str(plan)
    assert all(len(line) <= 100 for line in text.splitlines())
    assert f"{plan.loss:.4f}" in text
    assert "starting point" in text


def test_a_fitted_plan_survives_json(fitted):
    plan = buy(1e21, law=fitted[0], tokens_served=1e9)
    assert BudgetPlan.from_dict(json.loads(to_json(plan.to_dict()))) == plan
    assert re.search(r"loss +\d\.\d{4} nats a token, \d\.\d{4} to \d\.\d{4} \(90 %\)", str(plan))


def test_extrapolation_is_said_in_orders_of_magnitude():
    near, far = buy(1e20), buy(1e27)
    assert near.extrapolation["params"] == near.extrapolation["tokens"] == 0
    assert "Extrapolation" not in str(near)
    assert far.extrapolation["params"] == pytest.approx(math.log10(far.params / 16.2e9))
    told = re.sub(r"\s+", " ", str(far))
    assert f"the parameters lie {far.extrapolation['params']:.1f} orders of magnitude above" in told
    assert "(57.3M to 16.2G)" in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"gpus": "8"}, "count and a name such as 8xH100, not '8'"),
        ({"gpus": "xH100"}, "not 'xH100'"),
        ({"gpus": "0xH100"}, "not '0xH100'"),
        ({"gpus": "-8xH100"}, "not '-8xH100'"),
        ({"gpus": "1.5xH100"}, "not '1.5xH100'"),
        ({"gpus": "8xabacus"}, "no accelerator is called 'abacus'; there are H100, .*flops_per_gpu"),
        (
            {"gpus": "8xA100", "precision": "fp8"},
            "no peak of the A100 is known in 'fp8'; there is bf16, fp16, tf32",
        ),
        ({"days": -1}, "days must be a number over 0, not -1"),
        ({"days": math.nan}, "days must be"),
        ({"mfu": 1.5}, "mfu must be a share of the peak, over 0 and up to 1, not 1.5"),
        ({"mfu": 0}, "mfu must be"),
        ({"price": 0}, "price must be a number over 0, not 0"),
        ({"level": 90}, "level must lie between 0 and 1, not 90"),
        ({"flops_per_gpu": math.inf}, "flops_per_gpu must be"),
        ({"tokens_served": -1.0}, "tokens_served must be a number of tokens, 0 or more, not -1"),
        ({"tokens_served": 1e30}, "cannot serve 1e\\+30 tokens"),
        ({"unique_tokens": 0}, "unique_tokens must be"),
        ({"law": "gopher"}, "no published law is called 'gopher'.*and there is no file of that name"),
        ({"law": "kaplan", "unique_tokens": 1e9}, "the kaplan form cannot count repeated tokens"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(arguments, words):
    with pytest.raises(ValueError, match=words):
        plan_budget(**{"gpus": "8xH100", "days": 10, **arguments})


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"law": 3}', '{"laws": {"a": {"form": "b"}}}', "\x00"])
def test_a_file_without_a_law_is_said(tmp_path, content):
    (tmp_path / "law.json").write_text(content)
    with pytest.raises(ValueError, match=r"law\.json holds no law"):
        load_law(tmp_path / "law.json")


def test_a_law_of_something_else_is_refused():
    power = laws.fit("power", {"flops": [1e18, 1e19, 1e20]}, [3.0, 2.7, 2.4], resamples=0)
    with pytest.raises(ValueError, match="a plan needs a law of params and tokens"):
        load_law(power)
    with pytest.raises(TypeError, match="law must be a name"):
        load_law(3)
