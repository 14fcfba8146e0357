"""AdamWIndependent against its equation written by hand, and the freedom of decay from the rate."""

import math

import pytest
import torch

from allometry.optim.adamw import AdamWIndependent
from allometry.optim.groups import Role, param_groups


def by_hand(theta, gradients, schedule, rate, decay, betas, eps):
    first = second = torch.zeros_like(theta)
    for step, (gradient, s) in enumerate(zip(gradients, schedule, strict=True), 1):
        first = betas[0] * first + (1 - betas[0]) * gradient
        second = betas[1] * second + (1 - betas[1]) * gradient**2
        unbiased = first / (1 - betas[0] ** step), second / (1 - betas[1] ** step)
        theta = theta - s * (rate * unbiased[0] / (unbiased[1].sqrt() + eps) + decay * theta)
    return theta


def run(optimizer, parameters, gradients, schedule):
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: schedule[min(step, len(schedule) - 1)]
    )
    for gradient in gradients:
        for parameter in parameters:
            parameter.grad = gradient.clone()
        optimizer.step()
        scheduler.step()


SCHEDULE = [0.0, 0.25, 0.5, 1.0, 1.0, 0.7, 0.4, 0.1, 0.05, 0.0]


@pytest.mark.parametrize("settings", [{"foreach": False}, {"foreach": True}, {"fused": True}])
@pytest.mark.parametrize("rate", [1e-4, 0.3])
@pytest.mark.parametrize("decay", [0.0, 1e-3, 0.2])
def test_equation(settings, rate, decay):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    gradients = torch.randn(len(SCHEDULE), 5, 3, dtype=torch.float64, generator=generator)
    weight = torch.nn.Parameter(start.clone())
    optimizer = AdamWIndependent([weight], lr=rate, weight_decay=decay, **settings)
    run(optimizer, [weight], gradients, SCHEDULE)
    expected = by_hand(start, gradients, SCHEDULE, rate, decay, (0.9, 0.95), 1e-8)
    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-12)


def test_decay_does_not_know_the_peak_rate():
    remaining = []
    for rate in (1e-6, 1e-3, 1.0):
        weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        run(
            AdamWIndependent([weight], lr=rate, weight_decay=0.1),
            [weight],
            torch.zeros(10, 1, dtype=torch.float64),
            SCHEDULE,
        )
        remaining.append(weight.item())
    assert remaining == pytest.approx([math.prod(1 - 0.1 * s for s in SCHEDULE)] * 3, rel=1e-12)


def test_coupled_decay_does():
    # the reason why the class exists: with torch's own, a rate that falls with width takes the decay along
    remaining = []
    for rate in (1e-3, 1.0):
        weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        run(
            torch.optim.AdamW([weight], lr=rate, weight_decay=0.1),
            [weight],
            torch.zeros(10, 1, dtype=torch.float64),
            SCHEDULE,
        )
        remaining.append(weight.item())
    assert remaining[1] < 0.7 < 0.999 < remaining[0]


def test_groups_with_rates_of_their_own_decay_alike():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    groups = param_groups(model, 0.1, {"1.weight": Role(0.01)}, weight_decay=0.25, no_decay=["bias"])
    optimizer = AdamWIndependent(groups)
    before = [model[i].weight.detach().clone() for i in (0, 1)]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for layer, start in zip(model, before, strict=True):
        torch.testing.assert_close(layer.weight.detach(), 0.75 * start)


def test_a_group_at_rate_zero_is_frozen():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = AdamWIndependent([{"params": [weight], "lr": 0.0}], lr=0.1, weight_decay=0.5)
    weight.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(weight.detach(), torch.ones(2))
    assert optimizer.param_groups[0]["independent_weight_decay"] == 0.5


def test_resuming_goes_on_exactly():
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(10, 4, generator=generator)
    whole, first = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
    run(AdamWIndependent([whole], lr=0.1, weight_decay=0.01), [whole], gradients, [1.0])
    before = AdamWIndependent([first], lr=0.1, weight_decay=0.01)
    run(before, [first], gradients[:4], [1.0])
    second = torch.nn.Parameter(first.detach().clone())
    after = AdamWIndependent([second], lr=0.5)  # other settings, overruled by what is loaded
    after.load_state_dict(before.state_dict())
    for gradient in gradients[4:]:
        second.grad = gradient.clone()
        after.step()
    assert torch.equal(second.detach(), whole.detach())


def test_bad_input():
    weight = torch.nn.Parameter(torch.ones(2))
    for decay in (-0.1, 1.0, 10.0):
        with pytest.raises(ValueError, match="weight_decay"):
            AdamWIndependent([weight], lr=0.1, weight_decay=decay)
