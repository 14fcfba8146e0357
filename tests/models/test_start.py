"""Initial values: torch's distribution, one seed one model, and nothing left without a value."""

import pytest
import torch
from torch import nn

from allometry.models.start import start_


def build():
    with torch.device("meta"):
        return nn.Sequential(
            nn.Conv2d(6, 40, 3, groups=2), nn.BatchNorm2d(40), nn.Flatten(), nn.Linear(40, 30)
        )


def test_bounds_are_one_over_the_root_of_fan_in():
    model = start_(build())
    for layer, fan_in in ((model[0], 27), (model[3], 40)):
        for parameter in (layer.weight, layer.bias):
            assert parameter.abs().max() <= fan_in**-0.5
        assert layer.weight.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.1)
    assert torch.equal(model[1].weight, torch.ones(40))
    assert torch.equal(model[1].running_mean, torch.zeros(40))


def test_one_seed_is_one_model():
    one, same, other = (start_(build(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one[3].weight, same[3].weight)
    assert not torch.equal(one[3].weight, other[3].weight)


def test_layers_without_a_rule_are_refused():
    with torch.device("meta"):
        model = nn.Sequential(nn.Bilinear(2, 2, 2))
    with pytest.raises(TypeError, match="Bilinear"):
        start_(model)
