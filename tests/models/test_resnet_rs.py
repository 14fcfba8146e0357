"""ResNet-RS: the family's published sizes, and what each of its changes is."""

import math

import pytest
import torch

from allometry.grow import configuration_counts
from allometry.models import ResNetRSConfig, resnet_rs, resnet_rs_config
from allometry.models.resnet_rs import _DropPath

# layers, pixels, parameters, billions of operations (multiply and add): the README of the released family
RELEASED = [
    (50, 160, 35_691_912, 4.6), (101, 160, 63_618_696, 8.4), (101, 192, 63_618_696, 12.0),
    (152, 192, 86_621_576, 17.5), (152, 224, 86_621_576, 23.8), (152, 256, 86_621_576, 31.1),
    (200, 256, 93_209_992, 40.2), (270, 256, 129_861_448, 53.9), (350, 256, 163_956_168, 68.8),
    (350, 320, 163_956_168, 107.4), (420, 320, 191_891_656, 127.9),
]  # fmt: skip
TINY = ResNetRSConfig(
    (1, 2, 1), 8, "deep_tiny", resolution=14, channels=1, classes=10, dropout=0.0
)  # fmt: skip


@pytest.mark.parametrize(("depth", "resolution", "parameters", "operations"), RELEASED)
def test_the_family_has_its_published_sizes(depth, resolution, parameters, operations):
    """Parameters to the digit; a multiply-add is two operations, to the printed tenth."""
    counts = configuration_counts(resnet_rs_config(depth, resolution))
    assert counts.parameters == parameters
    assert round(2 * counts.flops / 1e9, 1) == operations


def test_without_its_changes_it_is_the_resnet_that_everyone_counts():
    """ResNet-50: pycls' published integers, from another construction than `resnet_config`'s."""
    plain = ResNetRSConfig(
        (3, 4, 6, 3), stem="plain", pooled_shortcut=False, squeeze=0.0, resolution=224, dropout=0.0
    )
    counts = configuration_counts(plain)
    assert (counts.flops, counts.activations, counts.parameters) == (4_089_185_256, 11_315_688, 25_557_032)


def test_a_block_starts_as_its_shortcut():
    model = resnet_rs(TINY).eval()
    x = torch.randn(3, 32, 14, 14, generator=torch.Generator().manual_seed(0))
    second = model.blocks[2]  # of the second stage: nothing changes shape
    inside = torch.randn(3, 64, 7, 7, generator=torch.Generator().manual_seed(1))
    assert torch.equal(second(inside), inside.relu())
    first = model.blocks[1]
    assert torch.equal(first(x), first.shortcut(x).relu())


def test_first_values_have_the_variance_of_fan_in():
    """Truncated normal of variance 1 / fan-in, none further out than two of its own deviations."""
    model = resnet_rs((1,), base_width=64, stem="deep_tiny", resolution=8)
    weight = model.blocks[0].branch[1][0].weight
    fan_in = weight[0].numel()
    assert weight.var().item() == pytest.approx(1 / fan_in, rel=0.03)
    assert weight.abs().max() <= 2 / 0.8796 / math.sqrt(fan_in) * 1.0001
    assert model.head.weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_an_odd_side_is_rounded_up_on_both_ways():
    model = resnet_rs(TINY).eval()
    sides = [14]
    x = model.stem(torch.zeros(1, 1, 14, 14))
    for block in model.blocks:
        x = block(x)
        if x.shape[-1] != sides[-1]:
            sides.append(x.shape[-1])
    assert sides == [14, 7, 4]


def test_the_pooled_shortcut_loses_no_pixel():
    """ResNet's strided 1 × 1 never sees three pixels of four; the pooled one sees them all alike."""
    for pooled, share in ((True, 1.0), (False, 0.25)):
        model = resnet_rs((1, 1), base_width=8, stem="deep_tiny", resolution=8, pooled_shortcut=pooled)
        x = torch.zeros(1, 32, 8, 8, requires_grad=True)
        model.eval().blocks[1].shortcut(x).sum().backward()
        assert (x.grad[0].abs().sum(0) > 0).float().mean() == share


def test_stages_drop_at_the_released_rates():
    """Of four stages: 2/5, 3/5, 4/5 and all of the largest rate."""
    config = ResNetRSConfig((1, 1, 1, 2), drop_path=0.5)
    assert config.drop_rates == ((0.2,), (0.3,), (0.4,), pytest.approx((0.5, 0.5)))
    by_block = ResNetRSConfig((1, 1, 1, 2), drop_path=0.4, drop_path_rule="block").drop_rates
    assert [rate for stage in by_block for rate in stage] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_branches_left_out_leave_the_mean_as_it_is():
    """20,000 images at a rate of 0.3: the mean within five standard errors, all or nothing for an image."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = _DropPath(0.3)
        out = layer(torch.ones(20_000, 2, 1, 1))
    assert torch.equal(out[:, 0], out[:, 1])
    assert out.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]
    assert out[:, 0].mean().item() == pytest.approx(1.0, abs=5 * math.sqrt(0.3 / 0.7 / 20_000))
    x = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(layer.eval()(x), x)


def test_what_regularizes_grows_with_size():
    assert resnet_rs_config(152).drop_path == 0.0
    assert resnet_rs_config(270).drop_path == 0.1
    assert (resnet_rs_config(350, 256).dropout, resnet_rs_config(350, 320).dropout) == (0.25, 0.4)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"drop_path": 1.0}, "drop_path is a rate"), ({"squeeze": 1.5}, "squeeze must lie"),
        ({"resolution": 28}, "at least 32 pixels a side; for small images take stem='deep_tiny'"),
        ({"stem": "shallow"}, "stem is one of"), ({"depths": ()}, "depths must be"),
        ({"drop_path_rule": "layer"}, "drop_path_rule"), ({"base_width": 0}, "base_width"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        ResNetRSConfig(**settings)


def test_unknown_depths_and_small_images_are_refused():
    with pytest.raises(ValueError, match="layers; got 51"):
        resnet_rs(51)
    with pytest.raises(ValueError, match="smaller than the total stride"):
        resnet_rs(TINY)(torch.zeros(1, 1, 3, 3))


def test_one_seed_is_one_network():
    one, two, other = (resnet_rs(TINY, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one.head.weight, two.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)
