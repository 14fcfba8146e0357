"""From one batch size to another: equal updates, composed rules, the noise's variance in closed form."""

import pytest
import torch

from allometry.optim import GradientNoise, adapt_to_batch

RECIPE = {"learning_rate": 0.1, "epochs": 40, "samples": 8000, "milestones": (20, 30), "warmup": 2.0}


@pytest.mark.parametrize("to", [64, 100, 256, 1000, 4096, 8000])
def test_regime_adaptation_keeps_the_number_of_updates(to):
    before = adapt_to_batch(batch=64, to=64, rule="none", **RECIPE).updates
    after = adapt_to_batch(batch=64, to=to, rule="sqrt", updates="regime", **RECIPE)
    assert abs(after.updates - before) <= 1
    assert after.milestones[0] / after.epochs == pytest.approx(0.5)
    assert after.warmup / after.epochs == pytest.approx(0.05)
    assert after.cost == pytest.approx(after.epochs / 40)


@pytest.mark.parametrize(("rule", "factor"), [("sqrt", 4.0), ("linear", 16.0), ("none", 1.0)])
def test_rates_follow_their_rule_and_rules_compose(rule, factor):
    once = adapt_to_batch(batch=64, to=1024, rule=rule, **RECIPE)
    assert once.learning_rate == pytest.approx(0.1 * factor)
    half = adapt_to_batch(batch=64, to=256, rule=rule, **RECIPE)
    again = adapt_to_batch(batch=256, to=1024, rule=rule, **{**RECIPE, "learning_rate": half.learning_rate})
    assert again.learning_rate == pytest.approx(once.learning_rate)
    assert once.epochs == 40
    assert once.updates == 40 * 8


def test_batches_that_are_not_full_may_be_left_out():
    kept = adapt_to_batch(batch=64, to=1000, rule="none", **{**RECIPE, "samples": 8999})
    left = adapt_to_batch(batch=64, to=1000, rule="none", drop_last=True, **{**RECIPE, "samples": 8999})
    assert (kept.updates, left.updates) == (40 * 9, 40 * 8)
    regime = adapt_to_batch(
        batch=64, to=1000, rule="none", updates="regime", drop_last=True, **{**RECIPE, "samples": 8999}
    )
    assert regime.updates == 40 * (8999 // 64)
    with pytest.raises(ValueError, match="no batch of 9000 is full"):
        adapt_to_batch(batch=64, to=9000, rule="none", drop_last=True, **RECIPE)


def test_noise_leaves_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    first, second = (GradientNoise(1.0)(torch.arange(5.0)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_noise_has_the_variance_that_it_is_said_to_have():
    x = torch.linspace(-1, 2, 16, dtype=torch.float64)  # the gradients of w x at any w
    noise = GradientNoise(3.0, torch.Generator().manual_seed(0))
    w = torch.zeros((), dtype=torch.float64, requires_grad=True)
    slopes = torch.stack([torch.autograd.grad(noise(w * x), w)[0] for _ in range(20_000)])
    assert slopes.mean() == pytest.approx(float(x.mean()), abs=4 * float(slopes.std()) / 20_000**0.5)
    assert slopes.var() == pytest.approx(float(3 / 16**2 * (x**2).sum()), rel=0.04)
    assert GradientNoise.between(64, 64)(x) == x.mean()


@pytest.mark.parametrize(("options", "said"), [
    ({"to": 0}, "to must be positive"), ({"rule": "cube"}, "rule must be one of"),
    ({"updates": "steps"}, "updates must be"), ({"epochs": float("inf")}, "epochs must be positive"),
])  # fmt: skip
def test_bad_recipes_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        adapt_to_batch(**{"batch": 64, "to": 128, "rule": "sqrt", **RECIPE, **options})


def test_bad_noise_is_refused():
    with pytest.raises(ValueError, match="variance must not be negative"):
        GradientNoise(-1.0)
    with pytest.raises(ValueError, match="from 1 to 64"):
        GradientNoise.between(64, 128)
