"""Rates from curvature: on quadratics, where the largest stable one is known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from allometry import measure, optim, train


def noise(eigenvalue=2.0, excess=32.0):
    return measure.HessianNoise("directional", eigenvalue, excess, 0.1, 1.0, 100, torch.tensor([eigenvalue]))


def largest(curvatures, **options):
    """The largest stable rate of torch's SGD on a quadratic, by bisection."""
    at = torch.tensor(curvatures, dtype=torch.float64)

    def run(rate):
        weight = nn.Parameter(torch.ones(len(at), dtype=torch.float64))
        optimizer = torch.optim.SGD([weight], lr=rate, **options)
        for _ in range(3000):
            weight.grad = at * weight.detach()
            optimizer.step()
        return float(weight.detach().abs().max())

    return train.max_stable_learning_rate(run, 0.01, 100.0, lambda size: size < 1.0, factor=1.003).rate


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_largest_rate_is_what_a_quadratic_bears(momentum):
    told = optim.max_learning_rate(noise(4.0, 0.0), 64, momentum=momentum)
    assert largest([4.0, 1.0, 0.1], momentum=momentum) == pytest.approx(float(told), rel=0.005)


@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_adam_s_average_of_gradients_bears_more(beta):
    """With its denominator frozen Adam is SGD whose momentum is damped by its own beta."""
    scale = measure.NoiseScale(1.0, 0.1, 0.5, 2.0, trace=0.0, squared_gradient=10.0, steps=5)
    told = optim.max_learning_rate(
        noise(4.0, 0.0), 64, optimizer="adam", momentum=beta, gradient=scale, parameters=10
    )  # a denominator of 1
    assert largest([4.0, 1.0], momentum=beta, dampening=beta) == pytest.approx(float(told), rel=0.01)


def test_sgd_s_rate_is_linear_and_then_flat_and_adam_s_a_root():
    one = noise()
    few, many = np.array([0.01, 0.02]), np.array([1e5, 2e5])
    sgd = lambda b: optim.max_learning_rate(one, b)  # noqa: E731
    assert sgd(few)[1] / sgd(few)[0] == pytest.approx(2.0, rel=1e-3)
    assert sgd(many)[1] / sgd(many)[0] == pytest.approx(1.0, rel=1e-3)
    assert sgd(one.critical_batch) == pytest.approx(1.0 / one.eigenvalue)  # half of the most
    scale = measure.NoiseScale(1e9, 0.1, 0.5, math.inf, trace=1e9, squared_gradient=1.0, steps=5)
    adam = optim.max_learning_rate(one, few, optimizer="adam", gradient=scale, parameters=100)
    assert adam[1] / adam[0] == pytest.approx(2**0.5, rel=1e-3)
    assert optim.max_learning_rate(one, 100, dataset_size=100) == pytest.approx(1.0)
    assert optim.max_learning_rate(one, 100, dataset_size=100, weight_decay=2.0) == pytest.approx(0.5)


@pytest.mark.parametrize("rule", ["linear", "sqrt", "saturating"])
def test_there_and_back_is_where_one_was(rule):
    options = {"noise": noise(), "dataset_size": 4096}
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([{"params": [weight], "lr": 0.3, "initial_lr": 0.6}], betas=(0.9, 0.999))
    optim.rescale(optimizer, 64, 1000, rule, adam_betas=True, **options)
    group = optimizer.param_groups[0]
    there = optim.rescale(0.3, 64, 1000, rule, **options)
    assert group["lr"] == pytest.approx(there)
    assert group["initial_lr"] == pytest.approx(2 * there)
    assert there != pytest.approx(0.3)
    assert group["betas"] == pytest.approx((0.9 ** (1000 / 64), 0.999 ** (1000 / 64)))
    assert optim.rescale(optimizer, 1000, 64, rule, adam_betas=True, **options) is optimizer
    assert group["lr"] == pytest.approx(0.3, rel=1e-12)
    assert group["betas"] == pytest.approx((0.9, 0.999), rel=1e-9)


def test_rules_are_their_factors():
    assert optim.rescale(0.1, 32, 128, "linear") == pytest.approx(0.4)
    assert optim.rescale(0.1, 32, 128, "sqrt") == pytest.approx(0.2)
    found = optim.rescale(0.1, 8, 1024, "saturating", noise=noise())
    assert found == pytest.approx(0.1 * (2 + 32 / 8) / (2 + 32 / 1024))
    tensor = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=torch.tensor(0.1))
    assert float(optim.rescale(tensor, 1, 4, "sqrt").param_groups[0]["lr"]) == pytest.approx(0.2)


def test_a_decay_that_is_independent_of_the_rate_stays():
    weight = nn.Parameter(torch.ones(1))
    optimizer = optim.rescale(optim.AdamWIndependent([weight], lr=0.1, weight_decay=0.25), 64, 256, "linear")
    weight.grad = torch.zeros(1)
    optimizer.step()
    assert weight.item() == pytest.approx(0.75)


def test_what_makes_no_sense_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="rule must be one of linear"):
        optim.rescale(0.1, 1, 2, "cubic")
    with pytest.raises(ValueError, match="needs noise="):
        optim.rescale(0.1, 1, 2, "saturating")
    with pytest.raises(ValueError, match="batch must be positive"):
        optim.rescale(0.1, 0, 2, "sqrt")
    with pytest.raises(ValueError, match="a rate has no betas"):
        optim.rescale(0.1, 1, 2, "sqrt", adam_betas=True)
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ValueError, match="SGD has no betas"):
        optim.rescale(sgd, 1, 2, "sqrt", adam_betas=True)
    with pytest.raises(ValueError, match="momentum must be from 0"):
        optim.max_learning_rate(noise(), 1, momentum=1.0)
    with pytest.raises(ValueError, match="give gradient= and parameters="):
        optim.max_learning_rate(noise(), 1, optimizer="adam")
    adam, model = torch.optim.Adam([nn.Parameter(torch.zeros(1))]), nn.Linear(1, 1)
    with pytest.raises(ValueError, match="Adam has no momentum to set"):
        optim.CurvatureSchedule(adam, model, nn.functional.mse_loss, every=1)
    with pytest.raises(ValueError, match="safety must be above 0"):
        optim.CurvatureSchedule(sgd, model, nn.functional.mse_loss, every=1, safety=2.0)
    with pytest.raises(ValueError, match="most must be a positive rate"):
        optim.CurvatureSchedule(sgd, model, nn.functional.mse_loss, every=1, most=0.0)
    with pytest.raises(ValueError, match="first must not be negative"):
        optim.CurvatureSchedule(sgd, model, nn.functional.mse_loss, every=1, first=-1)
    with pytest.raises(ValueError, match="every must be at least 1"):
        optim.CurvatureSchedule(sgd, model, nn.functional.mse_loss, every=0)
    with pytest.raises(ValueError, match="rule is 'heavy_ball'"):
        optim.CurvatureSchedule(sgd, model, nn.functional.mse_loss, every=1, rule="newton")


# --- the schedule -------------------------------------------------------------------------------------------
def least_squares(values):
    """A linear fit whose Hessian has these eigenvalues."""
    x = torch.diag(torch.tensor(values, dtype=torch.float64).mul(len(values) / 2).sqrt())
    model = nn.Linear(len(values), 1, bias=False).double()
    nn.init.ones_(model.weight)
    return model, (x, torch.zeros(len(values), 1, dtype=torch.float64))


def steps_to(model, batch, optimizer, schedule=None, goal=1e-6, most=5000):
    for step in range(most):
        if schedule is not None:
            schedule.step(batch)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(batch[0]), batch[1])
        if float(loss.detach()) < goal:
            return step
        loss.backward()
        optimizer.step()
    return most


def test_polyak_s_rate_and_momentum_are_found_and_pay():
    model, batch = least_squares([9.0, 4.0, 1.0, 0.04])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    schedule = optim.CurvatureSchedule(
        optimizer, model, nn.functional.mse_loss, every=1000, steps=4, safety=1.0
    )
    quick = steps_to(model, batch, optimizer, schedule)
    group = optimizer.param_groups[0]
    assert group["lr"] == pytest.approx((2 / (3 + 0.2)) ** 2, rel=1e-6)
    assert group["momentum"] == pytest.approx((2.8 / 3.2) ** 2, rel=1e-6)
    plain, _ = least_squares([9.0, 4.0, 1.0, 0.04])
    slow = steps_to(plain, batch, torch.optim.SGD(plain.parameters(), lr=2 / 9.04))  # the best without
    assert quick < 0.4 * slow


def test_two_over_the_largest_is_the_edge_and_safety_keeps_off_it():
    model, batch = least_squares([8.0, 1.0, 0.5])
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=2.0)
    optim.CurvatureSchedule(
        optimizer, model, nn.functional.mse_loss, every=1, steps=3, rule="two_over_lambda", safety=0.25
    ).step(batch)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.25 * 2 / 10.0)
    optim.CurvatureSchedule(
        optimizer, model, nn.functional.mse_loss, every=1, steps=3, rule="two_over_lambda", most=0.01
    ).step(batch)
    assert optimizer.param_groups[0]["lr"] == 0.01


def test_it_measures_every_so_often_and_goes_on_from_its_state():
    model, batch = least_squares([8.0, 1.0, 0.5])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    make = lambda: optim.CurvatureSchedule(optimizer, model, nn.functional.mse_loss, every=5, steps=2)  # noqa: E731
    schedule, seen = make(), []
    for _ in range(11):
        schedule.step(batch)
        seen.append(schedule.last["step"])
    assert seen == [0] * 5 + [5] * 5 + [10]
    late = optim.CurvatureSchedule(optimizer, model, nn.functional.mse_loss, every=5, first=3, steps=2)
    for _ in range(3):
        late.step(batch)
    assert late.last is None
    for _ in range(6):
        late.step(batch)
    assert late.last["step"] == 8
    other = make()
    other.load_state_dict(schedule.state_dict())
    for _ in range(10):
        schedule.step(batch)
        rate = optimizer.param_groups[0]["lr"]
        other.step(batch)
        assert (other.last, optimizer.param_groups[0]["lr"]) == (schedule.last, rate)


def test_dropout_and_batch_norms_are_off_while_it_looks_and_on_again():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    model[2].eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = optim.CurvatureSchedule(optimizer, model, nn.functional.mse_loss, every=1, operator="ggn")
    schedule.step((torch.randn(8, 3), torch.randn(8, 1)))
    assert [one.training for one in model.modules()] == [True, True, True, False, True]
    assert math.isfinite(optimizer.param_groups[0]["lr"])
    assert optimizer.param_groups[0]["lr"] != 0.1
    assert 0 <= optimizer.param_groups[0]["momentum"] <= 0.95


def test_where_the_loss_bends_nowhere_upward_the_rate_stays():
    model, batch = least_squares([1.0, 1.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = optim.CurvatureSchedule(
        optimizer, model, lambda z, t: -(z - t).square().mean(), every=1, steps=2
    )
    schedule.step(batch)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert schedule.last is None


def test_a_run_that_is_being_lost_is_not_stopped_by_it():
    model, batch = least_squares([1.0, 1.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = optim.CurvatureSchedule(
        optimizer, model, lambda z, t: (z - t).abs().pow(1.5).mean(), every=1, steps=2
    )
    nn.init.zeros_(model.weight)  # where that loss is zero and its curvature infinite
    with pytest.warns(RuntimeWarning, match="rate is left as it is"):
        schedule.step(batch)
    assert optimizer.param_groups[0]["lr"] == 0.1
    nn.init.constant_(model.weight, math.nan)
    with pytest.raises(ValueError, match="the loss of a batch is nan"):
        optim.CurvatureSchedule(optimizer, model, nn.functional.mse_loss, every=1, steps=2).step(batch)
