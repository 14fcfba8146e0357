"""Compound scaling: exact exponents before rounding, the published scaler's networks after it."""

import dataclasses
import itertools
import math
import warnings

import pytest
import torch

from allometry.grow import choose_scaling, compound_scale, configuration_counts, scaling_factors
from allometry.models import EfficientNetConfig, RegNetConfig, ResNetRSConfig, regnet_config, resnet_config

Y4 = regnet_config("Y-4.0GF")
RULES = ("d", "w", "r", "dw", "dr", "wr", "dwr", "fast", "d1_w8_g8_r1", {"d": 2, "w": 0.5})


@pytest.mark.parametrize(("rule", "factor"), list(itertools.product(RULES, (0.25, 1.0, 3.0, 16.0))))
def test_arithmetic_grows_by_what_is_asked(rule, factor):
    found = scaling_factors(rule, factor)
    assert math.isclose(found.depth * found.width**2 * found.resolution**2, factor, rel_tol=1e-12)
    assert math.isclose(found.flops, factor, rel_tol=1e-12)


@pytest.mark.parametrize(
    ("rule", "parameters", "activations"),
    [("d", 1, 1), ("w", 1, 1 / 2), ("r", 0, 1), ("dw", 1, 3 / 4), ("dwr", 2 / 3, 5 / 6), ("fast", 0.9, 0.6)],
)
def test_exponents_are_those_of_the_paper(rule, parameters, activations):
    """Table of rules: powers of s by which parameters and activations grow."""
    found = scaling_factors(rule, 7.0)
    assert math.log(found.parameters, 7) == pytest.approx(parameters, abs=1e-12)
    assert math.log(found.activations, 7) == pytest.approx(activations, abs=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 1 / 3, 0.5, 0.8, 1.0])
def test_alpha_is_the_share_of_the_width(alpha):
    """dWr: parameters grow as s^((1 + alpha) / 2), activations as s^(1 - alpha / 2); a third is uniform."""
    found = scaling_factors("fast", 5.0, alpha=alpha)
    assert math.log(found.parameters, 5) == pytest.approx((1 + alpha) / 2, abs=1e-12)
    assert math.log(found.activations, 5) == pytest.approx(1 - alpha / 2, abs=1e-12)
    assert found.group == found.width
    if alpha == 1 / 3:
        assert found.depth == pytest.approx(scaling_factors("dwr", 5.0).depth)


def test_fast_is_the_published_string():
    assert scaling_factors("fast", 9.0).width == pytest.approx(scaling_factors("d1_w8_g8_r1", 9.0).width)


@pytest.mark.parametrize(
    ("rule", "factor", "widths", "depths", "group", "resolution", "flops", "activations"),
    [
        ("d1", 4, (128, 192, 512, 1088), (8, 24, 48, 8), 64, 224, 3.84, 3.21),
        ("w1_g1", 4, (256, 384, 1024, 2176), (2, 6, 12, 2), 128, 224, 3.96, 1.97),
        ("r1", 4, (128, 192, 512, 1088), (2, 6, 12, 2), 64, 448, 4.00, 4.00),
        ("d1_w1_g1_r1", 4, (160, 240, 640, 1360), (3, 10, 19, 3), 80, 284, 3.97, 2.91),
        ("d1_w8_g8_r1", 4, (224, 336, 896, 1904), (2, 7, 14, 2), 112, 240, 3.93, 2.16),
        ("d1_w8_g8_r1", 16, (384, 576, 1536, 3264), (3, 8, 16, 3), 192, 256, 15.78, 4.94),
    ],
)
def test_a_regnet_scales_as_the_published_scaler_does(
    rule, factor, widths, depths, group, resolution, flops, activations
):
    """RegNetY-4.0GF through pycls' scaler (``pycls/models/scaler.py``), counts to two decimals."""
    found = compound_scale(Y4, rule, factor)
    assert (found.config.widths, found.config.depths) == (widths, depths)
    assert set(found.config.group_widths) == {group}
    assert found.config.resolution == resolution
    assert (round(found.flops, 2), round(found.activations, 2)) == (flops, activations)


def test_widths_alone_leave_groups_behind_and_that_is_said():
    """With groups of 64 channels a quadrupling by width gives 3.08 times."""
    with pytest.warns(UserWarning, match=r"gives 3\.08 times, because of group widths"):
        compound_scale(Y4, "w", 4)


def test_depth_cannot_be_scaled_below_one_block_and_that_is_said():
    small = RegNetConfig((16, 32), (1, 1), resolution=32)
    with pytest.warns(UserWarning, match="asked for 0.25 times"):
        found = compound_scale(small, "d", 0.25)
    assert found.config.depths == (1, 1)
    assert found.flops == 1.0


def test_scaling_by_one_changes_nothing():
    for config in (Y4, EfficientNetConfig(), resnet_config(50)):
        assert compound_scale(config, "dwr", 1.0).config == config


def test_dense_networks_stay_dense():
    """ResNet-50 has no groups, so widths alone quadruple its arithmetic."""
    found = compound_scale(resnet_config(50), "w", 4)
    assert found.config.group_widths is None
    assert found.flops == pytest.approx(4, rel=0.1)


def test_efficientnets_own_series_is_uniform():
    """From B0 to B5 activations grow as about flops to the 0.82 (published counts); theory says 5/6."""
    flops, activations = 10266426072 / 385825092, 98857400 / 6748036
    assert math.log(activations) / math.log(flops) == pytest.approx(5 / 6, abs=0.02)
    found = compound_scale(EfficientNetConfig(), "dwr", flops)
    assert found.activations == pytest.approx(activations, rel=0.1)


def test_rules_are_compared_at_what_they_give():
    """Brought to three times the multiply-adds after rounding, the fast rule writes least."""
    choice = choose_scaling(regnet_config("Y-800MF"), 3)
    assert choice.best.rule == "fast"
    assert (choice.table["flops"] / 3).between(0.93, 1.07).all()
    assert choice.table["seconds"].isna().all()
    assert choice.best.activations == choice.table["activations"].min()


def test_a_budget_of_activations_buys_most_arithmetic_by_width():
    choice = choose_scaling(regnet_config("Y-800MF"), 2, budget="activations")
    assert choice.best.rule == "fast"
    assert (choice.table["activations"] / 2).between(0.9, 1.1).all()
    assert choice.best.flops == choice.table["flops"].max()


def test_a_budget_of_time_is_kept():
    """Times are noisy: only that larger networks were chosen, and timed."""
    small = RegNetConfig((32, 64), (1, 2), (16, 16), resolution=64, classes=10)
    choice = choose_scaling(small, 6, budget="time", candidates=("w1_g1", "fast"), repeats=5, batch=16)
    assert (choice.table["flops"] > 1.5).all()
    assert choice.table["slower"].between(0.1, 60).all()


TINY = RegNetConfig(
    (16, 32, 64), (1, 1, 4), (8, 8, 8), stem="small", stem_width=8, resolution=16, classes=10
)  # fmt: skip


@pytest.mark.parametrize("config", [TINY, ResNetRSConfig((1, 1), 8, "deep_tiny", resolution=14)])
def test_more_is_never_less(config):
    """What a rule reaches grows with the budget, and what is recommended is within a tenth, or it is said."""
    reached = []
    for factor in (0.5, 1.3, 1.7, 4.0):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            choice = choose_scaling(config, factor, candidates="fast")
        off = abs(math.log(choice.best.flops / factor))
        assert (off > math.log(1.1)) == any("more than a tenth off" in str(one.message) for one in said)
        reached.append(choice.best.flops)
    assert reached == sorted(reached)


def test_a_rule_that_falls_short_is_not_recommended_for_being_cheap():
    """At 1.7 times, rounding leaves uniform compounding at 0.7 of the budget, with the fewest activations."""
    choice = choose_scaling(TINY, 1.7, candidates=("dwr", "fast", "w1_g1", "d1_w4_g4"))
    missed = (choice.table["flops"] / 1.7).map(math.log).abs()
    assert missed[choice.best.rule] <= math.log(1.1) < missed.max()


def test_the_nearest_size_is_found():
    """Against factors asked for in steps of four hundredths."""
    base = configuration_counts(TINY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        asked = [math.exp(k / 25) * 1.7 for k in range(-10, 11)]
        every = {compound_scale(TINY, "fast", one, base=base).flops for one in asked}
        found = choose_scaling(TINY, 1.7, candidates=["fast"]).best.flops
    best = min(abs(math.log(one / 1.7)) for one in every)
    assert abs(math.log(found / 1.7)) <= max(best, 0.02) + 1e-9


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A family of one's own, over tokens and not images."""

    width: int = 32
    layers: int = 2
    length: int = 16

    def example(self, batch):
        return torch.zeros(batch, self.length, dtype=torch.long)

    def scaled(self, *, depth, width, group, resolution):
        return Encoder(
            4 * round(self.width * width / 4), round(self.layers * depth), round(self.length * resolution**2)
        )

    def build(self):
        layer = torch.nn.TransformerEncoderLayer(self.width, 4, 4 * self.width, batch_first=True)
        return torch.nn.Sequential(
            torch.nn.Embedding(50, self.width), torch.nn.TransformerEncoder(layer, self.layers)
        )


def test_a_family_of_ones_own_is_scaled():
    base = configuration_counts(Encoder()).flops
    dense = 16 * 2 * (12 * 32**2 + 9 * 32)  # multiply-adds and biases of the four, and of the two
    assert base == dense + 2 * 2 * 16 * 16 * 32
    choice = choose_scaling(Encoder(), 4, candidates=("w", "dw", "d"), mode="infer", batch=2, repeats=1)
    assert choice.best.flops == pytest.approx(4, rel=0.1)
    assert choice.table["seconds"].gt(0).all()
    assert choice.scaled["w"].config.layers == 2 == choice.scaled["d"].config.layers // 4


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"factor": 0}, ValueError, "factor must be finite and above 0; got 0"),
        ({"factor": "4"}, ValueError, "factor must be finite and above 0; got '4'"),
        ({"budget": "params"}, ValueError, "budget is"), ({"candidates": ()}, ValueError, "a candidate"),
        ({"batch": 0}, ValueError, "a batch"),
        ({"config": torch.nn.Linear(2, 2)}, TypeError, "Linear has not"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused(settings, error, match):
    with pytest.raises(error, match=match):
        choose_scaling(**{"config": TINY, "factor": 2, **settings})


def test_a_scaled_network_runs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        config = compound_scale(RegNetConfig((8, 16), (1, 1), (8, 8), resolution=16), "fast", 3).config
    assert config.build()(torch.zeros(2, *config.input_shape)).shape == (2, 1000)
    first, second = (config.build(torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    ("rule", "factor", "match"),
    [
        ("g", 2, "names? one|no weight"), ("d", 0, "above 0"), ("d", -1.0, "above 0"), ("x1", 2, "a rule is"),
        ("d1_w", 2, "a rule is"), ("", 2, "a rule is"), ({"q": 1.0}, 2, "weights of d"),
        ({"d": -1.0}, 2, "weights of d"), ("d", math.inf, "finite"),
    ],
)  # fmt: skip
def test_bad_rules_are_refused(rule, factor, match):
    with pytest.raises(ValueError, match=match):
        scaling_factors(rule, factor)


def test_counting_takes_no_memory_for_the_network():
    """A network of two hundred million parameters is counted as quickly as a small one."""
    assert configuration_counts(regnet_config("Y-32GF")).parameters == 145_046_770
