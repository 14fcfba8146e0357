"""A meter counts what was spent."""

import json

import pytest

from allometry.train.meter import Meter


def test_totals_are_products():
    meter = Meter(tokens_per_step=512, flops_per_token=1e9)
    for _ in range(7):
        meter.add(seconds=0.25)
    meter.add(seconds=1.0, steps=3)
    assert meter.tokens == 10 * 512
    assert meter.totals() == {"steps": 10, "tokens": 5120, "flops": 5120e9, "seconds": 2.75}


def test_counts_stay_exact_where_floats_would_not():
    meter = Meter(tokens_per_step=2**40 + 1)
    meter.add(seconds=0.0, steps=2**20 + 1)
    assert meter.tokens == (2**40 + 1) * (2**20 + 1)


def test_a_state_goes_through_json():
    meter = Meter(512, 1.5)
    meter.add(seconds=0.1, steps=3)
    assert Meter(**json.loads(json.dumps(meter.state_dict()))) == meter


def test_a_new_meter_has_counted_nothing():
    assert set(Meter(tokens_per_step=8, flops_per_token=2.0).totals().values()) == {0}
    assert Meter().totals()["flops"] == pytest.approx(0.0)
