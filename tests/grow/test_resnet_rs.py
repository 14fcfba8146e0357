"""ResNet-RS's rules: what is scaled in which regime, and that resolution stops."""

import dataclasses

import pytest

from allometry.grow import configuration_counts, regularized, resnet_rs_rule, scaling_regime
from allometry.models import EfficientNetConfig, resnet_rs_config

RS50 = resnet_rs_config(50)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_depth_or_width_takes_the_growth(factor):
    """Both reach the budget within a tenth; width has more parameters for the same arithmetic."""
    deep, wide = (resnet_rs_rule(RS50, factor, regime) for regime in ("overfit", "underfit"))
    for found in (deep, wide):
        assert found.flops == pytest.approx(factor, rel=0.1)
    assert deep.config.base_width == RS50.base_width
    assert wide.config.depths == RS50.depths
    assert deep.config.resolution == wide.config.resolution
    assert wide.activations < deep.activations


def test_resolution_grows_slowly_and_stops():
    sides = [resnet_rs_rule(RS50, 2.0**k, "underfit").config.resolution for k in range(0, 12, 3)]
    assert sides == sorted(sides)
    assert sides[0] == 160
    assert pytest.approx(sides[3], abs=4) == 2.0 ** (9 * 0.1) * 160
    assert resnet_rs_rule(RS50, 2.0**9, "underfit", max_resolution=224).config.resolution == 224
    assert resnet_rs_rule(RS50, 4, "overfit", max_resolution=100).config.resolution == 160
    assert resnet_rs_rule(RS50, 4, "overfit", resolution_share=0).config.resolution == 160


def test_any_configuration_can_be_scaled():
    found = resnet_rs_rule(EfficientNetConfig(), 4, "underfit")
    assert found.counts.flops == configuration_counts(found.config).flops
    assert found.flops == pytest.approx(4, rel=0.1)


def test_the_regime_is_read_off_losses():
    assert scaling_regime(1e-3, 0.4) == "overfit"
    assert scaling_regime(0.41, 0.4) == "underfit"
    assert scaling_regime(0.3, 0.4, gap=0.5) == "underfit"


@pytest.mark.parametrize("layers", [50, 101, 152, 200, 270, 350, 420])
@pytest.mark.parametrize("resolution", [160, 256, 320])
def test_a_network_is_regularized_as_the_release_has_it_at_its_size(layers, resolution):
    released = resnet_rs_config(layers, resolution)
    bare = dataclasses.replace(released, dropout=0.0, drop_path=0.0)
    assert regularized(bare) == released
    strong = dataclasses.replace(released, dropout=0.6, drop_path=0.3)
    assert regularized(strong) == strong


def test_what_regularizes_grows_with_what_is_scaled():
    deep = resnet_rs_rule(RS50, 6, "overfit").config
    assert 3 * sum(deep.depths) + 2 >= 200
    assert deep.drop_path == 0.1
    bare = dataclasses.replace(RS50, dropout=0.0)
    assert resnet_rs_rule(bare, 6, "overfit").config.drop_path == 0.0


def test_what_depth_cannot_reach_is_said():
    """A quarter of ResNet-RS-50 would need less than one block in a stage."""
    with pytest.warns(UserWarning, match="asked for 0.25 times"):
        found = resnet_rs_rule(RS50, 0.25, "overfit")
    assert found.config.depths == (1, 1, 1, 1)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="regime is"):
        resnet_rs_rule(RS50, 2, "both")
    with pytest.raises(ValueError, match="above 0"):
        resnet_rs_rule(RS50, -1, "overfit")
    with pytest.raises(ValueError, match="a share"):
        resnet_rs_rule(RS50, 2, "overfit", resolution_share=2)
    with pytest.raises(ValueError, match="losses must be"):
        scaling_regime(float("nan"), 1.0)
