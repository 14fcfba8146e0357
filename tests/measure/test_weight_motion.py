"""Distances are what a subtraction says; laws are recognised where they are planted."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

from allometry.measure import WeightDistance, distance_law


def test_distances_are_those_of_the_weights_now_and_then():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    start = [one.detach().clone() for one in model.parameters()]
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    with WeightDistance(model, optimizer, every=5) as watch:
        for _ in range(12):
            optimizer.zero_grad()
            model(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()
            if watch.steps == 10:
                moved = [one.detach() - old for one, old in zip(model.parameters(), start, strict=True)]
    table = watch.table()
    assert table["step"].tolist() == [5, 10]
    assert table["total"].iloc[1] == pytest.approx(
        float(torch.cat([m.flatten() for m in moved]).norm()), rel=1e-6
    )
    assert table["0.weight"].iloc[1] == pytest.approx(float(moved[0].norm()), rel=1e-6)


def test_a_run_that_goes_on_keeps_its_start():
    def steps(layer, optimizer, count):
        for _ in range(count):
            layer.weight.grad = torch.ones(1, 3)
            optimizer.step()

    torch.manual_seed(0)
    whole = nn.Linear(3, 1, bias=False)
    part = copy.deepcopy(whole)
    one, other = (torch.optim.SGD(layer.parameters(), 0.1) for layer in (whole, part))
    with WeightDistance(whole, one) as watch:
        steps(whole, one, 40)
    with WeightDistance(part, other) as first:
        steps(part, other, 17)
    stored = io.BytesIO()
    torch.save(first.state_dict(), stored)
    stored.seek(0)
    with WeightDistance(part, other) as second:  # made anew, where weights have moved already
        second.load_state_dict(torch.load(stored, weights_only=True))
        steps(part, other, 23)
    assert second.table().equals(watch.table())
    with pytest.raises(ValueError, match="with other weights"):
        WeightDistance(nn.Linear(2, 1)).load_state_dict(first.state_dict())


def test_small_distances_show_in_half_precision_and_dtypes_may_differ():
    model = nn.ParameterList([nn.Parameter(torch.ones(1000).bfloat16()), nn.Parameter(torch.ones(2))])
    watch = WeightDistance(model)
    with torch.no_grad():
        model[0].add_(0.0078125)  # one step of bfloat16 at 1
    watch.record(1)
    assert watch.table()["0"].item() == pytest.approx(0.0078125 * 1000**0.5, rel=1e-5)
    assert watch.table()["1"].item() == 0.0


def test_steps_are_recorded_evenly_on_a_log_axis():
    layer = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    with WeightDistance(layer, optimizer) as watch:
        for _ in range(300):
            layer.weight.grad = torch.ones(1, 1)
            optimizer.step()
    steps = watch.table()["step"].to_numpy()
    assert steps[:4].tolist() == [1, 2, 3, 4]
    assert (np.diff(np.log2(steps[steps > 30])) < 0.16).all()
    assert len(steps) < 60


@pytest.mark.parametrize(("name", "law"), [
    ("log", lambda t: 0.3 + 0.7 * np.log(t)), ("sqrt", lambda t: 0.1 + 0.5 * np.sqrt(t)),
    ("linear", lambda t: 0.2 + 0.01 * t), ("power", lambda t: 0.4 * t**0.3),
])  # fmt: skip
def test_a_planted_law_is_recognised_with_its_constants(name, law):
    t = np.unique(np.geomspace(10, 3000, 40).round())
    noise = np.random.default_rng(0).normal(0, 0.002, len(t))
    table = distance_law(t, law(t) * (1 + noise))
    assert table["chosen"].idxmax() == name
    assert table.loc[name, "r2"] > 0.999


def test_what_cannot_be_fitted_or_watched_is_refused():
    with pytest.raises(ValueError, match="six or more records"):
        distance_law([1, 2, 3], [1, 2, 3])
    with pytest.raises(ValueError, match="positive and finite"):
        distance_law(range(6), range(6))
    with pytest.raises(ValueError, match="every must be"):
        WeightDistance(nn.Linear(1, 1), every=0)
    with pytest.raises(ValueError, match="no trainable parameter"):
        WeightDistance(nn.Linear(1, 1).requires_grad_(False))
