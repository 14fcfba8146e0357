"""Schedules beside torch's own, and any scheduler as an array without moving it."""

import functools

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from allometry.laws import wsd_rates
from allometry.optim import as_scheduler, rewarmed, schedule_rates, wsd, wsd_decay

MAKERS = {
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=30),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 30),
    "restarts": lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 7),
    "warm-up, then cosine": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 5), lr_scheduler.CosineAnnealingLR(optimizer, 25)],
        [5],
    ),
    "chained": lambda optimizer: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 5), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    ),
    "ours": lambda optimizer: as_scheduler(optimizer, wsd_decay, 30, warmup=3, floor=0.05),
}


def optimizer(rate=0.1):
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))], lr=rate)


@pytest.mark.parametrize("name", MAKERS)
def test_a_dry_run_gives_the_rates_of_a_real_one_and_moves_nothing(name):
    one = optimizer()
    scheduler = MAKERS[name](one)
    dry, again = schedule_rates(scheduler, 30), schedule_rates(scheduler, 30)
    fresh = schedule_rates(MAKERS[name], 30, peak=0.1)
    real = []
    for step in range(30):
        real.append(one.param_groups[0]["lr"])
        one.step()
        if step < 29:
            scheduler.step()
    assert dry == pytest.approx(real, abs=0)
    assert again == pytest.approx(real, abs=0)
    assert fresh == pytest.approx(real, abs=1e-15)


def test_a_scheduler_is_read_from_where_it_stands():
    one = optimizer()
    scheduler = lr_scheduler.ExponentialLR(one, 0.5)
    one.step()
    scheduler.step()
    assert schedule_rates(scheduler, 2).tolist() == [0.05, 0.025]
    assert one.param_groups[0]["lr"] == 0.05


def test_what_has_no_schedule_is_refused():
    with pytest.raises(ValueError, match="decides by losses"):
        schedule_rates(lr_scheduler.ReduceLROnPlateau(optimizer()), 5)
    with pytest.raises(ValueError, match="at least one step"):
        schedule_rates(wsd, 0)
    with pytest.raises(ValueError, match="a schedule is a function"):
        schedule_rates("cosine", 5)


@pytest.mark.parametrize("shape", ["linear", "sqrt", "cosine", "exponential"])
def test_the_rates_that_laws_search_are_those_that_training_takes(shape):
    told = wsd_rates(200, 2.0, warmup=20, decay=0.3, shape=shape, end=0.02)
    one = functools.partial(wsd_decay, warmup=20, decay=0.3, floor=0.01, shape=shape)
    trained = schedule_rates(lambda step, total: one(step, total), 200, peak=2.0)
    assert told == pytest.approx(trained, rel=1e-12)


def test_an_exponential_falls_by_equal_factors_and_a_second_rise_reaches_the_peak():
    rates = schedule_rates(lambda step, total: wsd_decay(step, total, decay=0.5, floor=1e-4), 100)
    ratios = rates[51:] / rates[50:-1]
    assert ratios == pytest.approx(np.full(49, 1e-3 ** (1 / 50)), rel=1e-12)
    again = schedule_rates(lambda step, total: rewarmed(step, total, warmup=5, at=0.4), 100)
    assert again[:5] == pytest.approx(np.arange(1, 6) / 5)
    assert again[39] < 0.11
    assert again[44] == pytest.approx(1.0)
    assert (np.diff(again[45:]) <= 0).all()
    with pytest.raises(ValueError, match="between 0 and 1"):
        rewarmed(0, 10, at=1.0)


def test_schedules_of_transformers_are_read():
    transformers = pytest.importorskip("transformers")
    rates = schedule_rates(
        lambda one: transformers.get_scheduler("cosine", one, num_warmup_steps=10, num_training_steps=50), 50
    )
    assert rates[10] == 1.0
    assert rates[30] == pytest.approx(0.5)
