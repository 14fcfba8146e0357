"""Schedules: closed forms, limits, torch's own schedulers, and trunks that longer runs share."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allometry.optim.schedules import (
    WSD,
    as_scheduler,
    constant,
    cosine,
    cyclic,
    decay_start,
    linear,
    two_step,
    wsd,
)

ALL = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "wsd": wsd,
    "two_step": two_step,
    "cyclic": cyclic,
}
each_schedule = pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)


def rates(scheduler, optimizer, steps):
    """The learning rates that torch would use for each update."""
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def sgd(rate=1.0):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)


# ---------------------------------------------------------------- against torch


def test_cosine_is_torchs_cosine_annealing():
    optimizer = sgd(0.3)
    theirs = rates(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50, eta_min=0.03), optimizer, 50)
    ours = [0.3 * cosine(step, 50, floor=0.1) for step in range(50)]
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_linear_is_torchs_linear():
    optimizer = sgd()
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.2, total_iters=40)
    assert [linear(step, 40, floor=0.2) for step in range(40)] == pytest.approx(
        rates(falling, optimizer, 40), rel=1e-12
    )


def test_warm_up_is_torchs_linear_upwards():
    optimizer = sgd()
    rising = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 8, 1.0, total_iters=7)
    ours = [constant(step, 30, warmup=8) for step in range(30)]
    assert ours == pytest.approx(rates(rising, optimizer, 30), rel=1e-12)


def test_warm_up_then_cosine_is_torchs_sequence():
    optimizer = sgd()
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 6, 1.0, total_iters=5)
    down = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 34)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, down], milestones=[6])
    ours = [cosine(step, 40, warmup=6) for step in range(40)]
    assert ours == pytest.approx(rates(both, optimizer, 40), rel=1e-9, abs=1e-12)


def test_cyclic_is_torchs_warm_restarts():
    optimizer = sgd()
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=12, eta_min=0.25)
    ours = [cyclic(step, 48, cycles=4, floor=0.25) for step in range(48)]
    assert ours == pytest.approx(rates(theirs, optimizer, 48), rel=1e-12)


def test_two_steps_are_torchs_multi_step():
    optimizer = sgd()
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [30], gamma=0.1)
    ours = [two_step(step, 40, at=0.75) for step in range(40)]
    assert ours == pytest.approx(rates(theirs, optimizer, 40), rel=1e-12)


@each_schedule
def test_as_scheduler_follows_the_schedule(schedule):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.7)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.1})
    scheduler = as_scheduler(optimizer, schedule, 30, warmup=4)
    for step in range(30):
        wanted = schedule(step, 30, warmup=4)
        assert [group["lr"] for group in optimizer.param_groups] == [0.7 * wanted, 0.1 * wanted]
        optimizer.step()
        scheduler.step()


# ---------------------------------------------------------------- closed forms


@each_schedule
@given(total=st.integers(1, 3000), warmup=st.integers(0, 200), share=st.floats(0, 1))
def test_multipliers_lie_between_zero_and_one(schedule, total, warmup, share):
    step = min(total - 1, int(share * total))
    assert 0.0 <= schedule(step, total, warmup=warmup) <= 1.0


@pytest.mark.parametrize("schedule", [constant, linear, cosine, wsd, two_step])
def test_warm_up_rises_in_equal_steps_and_ends_at_one(schedule):
    found = [schedule(step, 1000, warmup=10) for step in range(11)]
    assert found == pytest.approx([(step + 1) / 10 for step in range(10)] + [1.0], rel=1e-12)


def test_cycles_go_on_underneath_the_warm_up():
    found = [cyclic(step, 1000, warmup=10) / cyclic(step, 1000) for step in range(10)]
    assert found == pytest.approx([(step + 1) / 10 for step in range(10)], rel=1e-12)


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_sums_in_closed_form(floor):
    """total (1 + floor) / 2, and half a step more: the first rate is 1 and the last is not yet the floor."""
    expected = 200 * (1 + floor) / 2 + (1 - floor) / 2
    assert math.fsum(linear(s, 200, floor=floor) for s in range(200)) == pytest.approx(expected, rel=1e-12)
    assert math.fsum(cosine(s, 200, floor=floor) for s in range(200)) == pytest.approx(expected, rel=1e-12)
    stable = 150 + 50 * (1 + floor) / 2 + (1 - floor) / 2
    assert math.fsum(wsd(s, 200, floor=floor) for s in range(200)) == pytest.approx(stable, rel=1e-12)
    warm = (1 + 2 + 3 + 4 + 5) / 5 + 145 + 50 * (1 + floor) / 2 + (1 - floor) / 2
    total = math.fsum(wsd(s, 200, floor=floor, warmup=5) for s in range(200))
    assert total == pytest.approx(warm, rel=1e-12)


@pytest.mark.parametrize("shape", ["linear", "cosine", "sqrt"])
def test_a_decay_reaches_its_floor_one_step_after_the_last(shape):
    assert wsd(100, 100, floor=0.05, shape=shape) == pytest.approx(0.05, abs=1e-15)
    assert wsd(99, 100, floor=0.05, shape=shape) > 0.05
    assert wsd(75, 100, floor=0.05, shape=shape) == 1.0  # the decay's first step still has the peak's rate
    assert wsd(76, 100, floor=0.05, shape=shape) < 1.0


def test_shapes_halfway():
    halfway = {shape: wsd(90, 100, decay=0.2, shape=shape) for shape in ("linear", "cosine", "sqrt")}
    assert halfway == pytest.approx({"linear": 0.5, "cosine": 0.5, "sqrt": 1 - math.sqrt(0.5)}, rel=1e-12)
    quarter = wsd(85, 100, decay=0.2, shape="cosine")
    assert quarter == pytest.approx((1 + math.cos(math.pi / 4)) / 2, rel=1e-12)


@given(total=st.integers(1, 500), floor=st.floats(0, 1))
def test_limits_of_the_share_of_decay(total, floor):
    """All decay is the linear schedule, none is the constant one."""
    for step in range(total):
        assert wsd(step, total, decay=1.0, floor=floor) == linear(step, total, floor=floor)
        assert wsd(step, total, decay=0.0, floor=floor) == 1.0


@given(total=st.integers(1, 2000), floor=st.floats(0, 1), warmup=st.integers(0, 50))
def test_a_floor_of_one_is_constant(total, floor, warmup):
    for step in range(0, total, 7):
        assert cosine(step, total, warmup=warmup, floor=1.0) == constant(step, total, warmup=warmup)
        assert cosine(step, total, warmup=warmup, floor=floor) >= min(
            floor, constant(step, total, warmup=warmup) * floor
        )


@pytest.mark.parametrize("schedule", [linear, cosine, wsd, two_step])
def test_after_the_warm_up_rates_never_rise(schedule):
    found = [schedule(step, 777, warmup=31) for step in range(31, 790)]
    assert all(later <= earlier for earlier, later in pairwise(found))


# ---------------------------------------------------------------- trunks and branches


@given(
    totals=st.lists(st.integers(1, 4000), min_size=2, max_size=2),
    decay=st.floats(0, 1),
    warmup=st.integers(0, 60),
)
def test_runs_share_every_rate_up_to_the_shorter_ones_branch(totals, decay, warmup):
    """What makes one trunk serve all horizons: up to its branch a run cannot tell how long it will be."""
    schedule = WSD(warmup=warmup, decay=decay)
    short, long = sorted(totals)
    start = decay_start(short, decay)
    assert start <= decay_start(long, decay)
    if start < warmup:
        with pytest.raises(ValueError, match=f"a run of {short} steps starts to decay at {start}"):
            schedule.branch(short)
        return
    assert schedule.branch(short) == start
    steps = {*range(min(start, 70)), *range(max(0, start - 5), start)}
    assert all(schedule(step, short) == schedule(step, long) for step in steps)
    if start < short:
        assert schedule(start, short) == 1.0
    if start + 1 < short:
        assert schedule(start + 1, short) < 1.0


@given(total=st.integers(0, 10_000), decay=st.floats(0, 1))
def test_the_decay_takes_its_share_to_half_a_step(total, decay):
    start = decay_start(total, decay)
    assert 0 <= start <= total
    assert abs((total - start) - decay * total) <= 0.5


def test_settings_reach_the_function():
    schedule = WSD(warmup=3, decay=0.4, floor=0.2, shape="sqrt")
    for step in range(60):
        assert schedule(step, 50) == wsd(step, 50, warmup=3, decay=0.4, floor=0.2, shape="sqrt")


@pytest.mark.parametrize("decay", [-0.1, 1.1, math.nan])
def test_a_share_outside_the_run_is_refused(decay):
    with pytest.raises(ValueError, match=r"lies in \[0, 1\]"):
        WSD(decay=decay).branch(10)


def test_an_unknown_shape_is_refused():
    with pytest.raises(ValueError, match="'linear', 'cosine' or 'sqrt', got 'cubic'"):
        wsd(9, 10, shape="cubic")
