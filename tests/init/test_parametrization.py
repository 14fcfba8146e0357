"""The exponent calculus: its symmetry, its presets, and the movement of features that it foretells."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from allometry.init.parametrization import ABC, LayerScale, ntk_parametrize_
from allometry.measure import Architecture, analytic_kernels, empirical_kernel
from allometry.models.mlp import MLP
from allometry.optim.groups import param_groups

exponents = st.lists(st.floats(-1, 1), min_size=3, max_size=3)


@pytest.mark.parametrize(
    ("name", "layers", "c", "r", "regime"),
    [
        ("sp", 1, None, 0.0, "unstable"),
        ("sp", 2, None, -1.0, "unstable"),
        ("sp", 5, None, -1.0, "unstable"),
        ("sp", 1, 1, 1.5, "kernel"),
        ("sp", 2, 1, 0.5, "kernel"),
        ("sp", 5, 1, 0.5, "kernel"),
        ("sp", 2, 2, 1.5, "trivial"),
        ("ntp", 1, None, 0.5, "kernel"),
        ("ntp", 4, None, 0.5, "kernel"),
        ("mfp", 1, None, 0.0, "feature learning"),
        ("mup", 1, None, 0.0, "feature learning"),
        ("mup", 4, None, 0.0, "feature learning"),
        ("mup", 4, -1, -2.0, "unstable"),
    ],
)
def test_presets(name, layers, c, r, regime):
    report = ABC.preset(name, layers, c=c).analyze()
    assert (report.r, report.regime) == (pytest.approx(r), regime)
    assert report.stable == (regime != "unstable")
    assert report.nontrivial == (regime in ("kernel", "feature learning"))
    assert report.reasons


def test_mean_field_is_maximal_update_with_one_hidden_layer():
    assert ABC.preset("mup", 1).shift(0.5) == ABC.preset("mfp", 1)


@given(a=exponents, b=exponents, c=st.floats(-1, 1), theta=exponents)
def test_analysis_does_not_see_the_symmetry(a, b, c, theta):
    plain = ABC(a, b, c)
    for step in (theta[0], theta):
        shifted = plain.shift(step)
        assert shifted.analyze().r == pytest.approx(plain.analyze().r, abs=1e-9)
        assert shifted.shift([-t for t in theta] if step is theta else -theta[0]).a == pytest.approx(plain.a)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("theta", [0.3, (0.5, -0.25, 0.1)])
def test_trajectories_do_not_see_it_either(optimizer, theta):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 8, dtype=torch.float64, generator=generator)
    y = torch.randn(16, 3, dtype=torch.float64, generator=generator)

    def train(parametrization):
        model = MLP(8, 3, width=64, depth=2, activation="tanh", bias=False).double()
        rule = parametrization.parametrize_(model, base_width=16, generator=torch.Generator().manual_seed(1))
        groups = param_groups(model, 0.05, rule)
        # Adam ignores the gradient's scale only as far as its eps does, so there is none
        make = torch.optim.SGD(groups) if optimizer == "sgd" else torch.optim.Adam(groups, eps=0.0)
        outputs = []
        for _ in range(20):
            outputs.append(model(x))
            make.zero_grad()
            F.mse_loss(outputs[-1], y).backward()
            make.step()
        return torch.stack(outputs).detach()

    plain = ABC.preset("mup", 2)
    one, other = train(plain), train(plain.shift(theta, optimizer=optimizer))
    assert (one[-1] - one[0]).abs().max() > 0.1
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_all_parametrizations_agree_at_the_base_width():
    x, outputs = torch.randn(4, 8), []
    for name in ("sp", "ntp", "mup"):
        model = MLP(8, 3, width=32, depth=2, bias=False)
        rule = ABC.preset(name, 2).parametrize_(model, base_width=32)
        assert {role.learning_rate for role in rule.values()} == {1.0}
        outputs.append(model(x))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_multipliers():
    assert ABC.preset("ntp", 2).multipliers(64, 16) == [
        LayerScale(1.0, 1.0, 1.0), LayerScale(0.5, 1.0, 1.0), LayerScale(0.5, 1.0, 1.0),
    ]  # fmt: skip
    assert ABC.preset("mup", 2).multipliers(64, 16) == [
        LayerScale(2.0, 0.5, 1.0), LayerScale(1.0, 0.5, 1.0), LayerScale(0.5, 0.5, 1.0),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "c"), [("sp", 1), ("ntp", None), ("mup", None)])
def test_features_move_as_foretold(name, c):
    """The slope of the last features' movement in log width is -r, within 0.2."""
    import numpy as np

    parametrization = ABC.preset(name, 2, c=c)
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(32, 16, generator=generator), dim=1) * 4
    y = torch.randint(5, (32,), generator=generator)
    widths, movements = [], []
    for width in (128, 256, 512, 1024):
        for seed in range(3):
            model = MLP(16, 5, width=width, depth=2, activation="tanh", bias=False)
            rule = parametrization.parametrize_(
                model, base_width=128, generator=torch.Generator().manual_seed(seed)
            )
            optimizer = torch.optim.SGD(param_groups(model, 0.5, rule))
            with torch.no_grad():
                before = model.features(x)
            for _ in range(10):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
            with torch.no_grad():
                movements.append((model.features(x) - before).square().mean().sqrt().item())
            widths.append(width)
    slope = np.polyfit(np.log(widths), np.log(movements), 1)[0]
    assert slope == pytest.approx(-parametrization.analyze().r, abs=0.2)


class TestTangentForm:
    def build(self):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv1d(3, 16, 5), nn.ReLU(), nn.ConvTranspose1d(16, 8, 3), nn.Flatten(), nn.Linear(8 * 10, 4)
        )

    def test_the_function_stays(self):
        plain, ours = self.build().double(), ntk_parametrize_(self.build().double(), gain=3**-0.5)
        x = torch.randn(6, 3, 12, dtype=torch.float64)
        torch.testing.assert_close(ours(x), plain(x), rtol=1e-12, atol=1e-12)
        for layer in (0, 4):
            assert ours[layer].weight.std().item() == pytest.approx(1.0, abs=0.15)

    def test_a_step_is_one_at_a_rate_over_fan_in(self):
        plain, ours = self.build().double(), ntk_parametrize_(self.build().double(), gain=2.0)
        fan_in = {"0.weight": 15, "2.weight": 16 * 3, "4.weight": 80}
        x = torch.randn(6, 3, 12, dtype=torch.float64)
        for model, rates in ((plain, fan_in), (ours, {})):
            model(x).square().mean().backward()
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter -= 0.1 * parameter.grad * (4.0 / rates[name] if name in rates else 1.0)
        torch.testing.assert_close(ours(x), plain(x), rtol=1e-10, atol=1e-10)

    def test_shared_weights_are_refused(self):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        with pytest.raises(ValueError, match="shares its weight"):
            ntk_parametrize_(model)
        with pytest.raises(ValueError, match="gain"):
            ntk_parametrize_(self.build(), gain=0.0)


def test_bad_input():
    with pytest.raises(ValueError, match="one exponent a layer"):
        ABC((0, 0), (0, 0, 0))
    with pytest.raises(ValueError, match="hidden layer"):
        ABC((0,), (0,))
    with pytest.raises(ValueError, match="one hidden layer"):
        ABC.preset("mfp", 2)
    with pytest.raises(ValueError, match="presets"):
        ABC.preset("he", 2)
    with pytest.raises(ValueError, match="theta"):
        ABC.preset("sp", 2).shift([0.1, 0.2])
    with pytest.raises(ValueError, match="2 linear layers"):
        ABC.preset("sp", 2).parametrize_(MLP(3, 2, width=8, depth=1, bias=False), 8)
    with pytest.raises(ValueError, match="bias=False"):
        ABC.preset("sp", 1).parametrize_(MLP(3, 2, width=8, depth=1), 8)
    uneven = nn.Sequential(
        nn.Linear(3, 8, bias=False), nn.Linear(8, 9, bias=False), nn.Linear(9, 2, bias=False)
    )
    with pytest.raises(ValueError, match="one width"):
        ABC.preset("sp", 2).parametrize_(uneven, 8)
    with pytest.raises(ValueError, match="widths"):
        ABC.preset("sp", 2).multipliers(0)


def test_a_beta_keeps_the_function_and_is_the_paper_s_kernel():
    """Weights and biases of unit variance with β = 0.1: the kernel is the infinite-width one's, nearly."""
    torch.manual_seed(0)
    width = 4096
    model = torch.nn.Sequential(
        torch.nn.Linear(4, width), torch.nn.ReLU(), torch.nn.Linear(width, 2)
    ).double()  # fmt: skip
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.normal_(std=layer.in_features**-0.5)
            layer.bias.normal_(std=0.1)
    x = torch.randn(6, 4, dtype=torch.float64)
    before = model(x).detach()
    ntk_parametrize_(model, beta=0.1)
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)
    drawn = (model[0].weight, model[0].bias, model[2].weight)
    assert all(abs(float(one.detach().std()) - 1) < 0.1 for one in drawn)
    found = empirical_kernel(model, x, reduce="trace")
    exact = analytic_kernels(x, None, Architecture(2, bias_std=0.1)).ntk
    assert float((found - exact).norm() / exact.norm()) < 0.05
    exact_without = analytic_kernels(x, None, Architecture(2, bias_std=0.0)).ntk
    assert float((found - exact_without).norm()) > float((found - exact).norm())
    with pytest.raises(ValueError, match="beta must be above 0"):
        ntk_parametrize_(model, beta=0.0)
