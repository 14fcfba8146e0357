"""What the entry's measures say where the answer is known."""

import math

import pandas as pd
import pytest
import torch

from allometry import measure
from allometry.papers import neural_tangent_kernel as entry
from allometry.study.result import Result


def test_samples_to_learn_and_to_foretell_are_apart_and_the_seed_s():
    for name, width in (("diabetes", 10), ("digits", 64), ("digits 0 and 1", 64)):
        one, two = entry._drawn(name, 20, 10, 0), entry._drawn(name, 20, 10, 1)
        assert one.x.shape == (20, width)
        assert torch.allclose(one.x.square().mean(1), torch.ones(20))  # the first covariance is 1 + β²
        assert float(torch.cdist(one.x, one.other_x).min()) > 0
        assert one.digest != two.digest


def test_a_linear_network_is_foretold_to_rounding():
    found = entry._drawn("diabetes", 20, 10, 0)
    architecture = measure.Architecture(1, "identity")
    network = measure.TangentNetwork(architecture, (10,), 1, 1).double()
    x, y, other = found.x.double(), found.y.double(), found.other_x.double()
    with torch.no_grad():
        start, start_other = network(x), network(other)
    kernel = measure.analytic_kernels(x, None, architecture).ntk
    rate = measure.KernelDynamics(kernel, y).largest_rate / 2
    dynamics = measure.KernelDynamics(kernel, y, initial=start, learning_rate=rate)
    assert entry._descended(network, x, y, rate, 50)
    foretold = dynamics.predict(
        50, measure.analytic_kernels(other, x, architecture).ntk, initial=start_other, steps=True
    )
    assert torch.allclose(network(other).detach(), foretold, atol=1e-12)


def test_a_very_wide_network_decays_along_its_line_at_its_rate():
    profile = entry.component.profile("tiny")
    narrow, wide = (
        entry.component.call(
            "beta 0.1", (width,), 0, profile.__class__("tiny", 1, {"samples": 16, "steps": 20})
        )
        for width in (32, 4096)
    )
    assert wide["rate"] == pytest.approx(1, abs=0.1)
    assert wide["off line"] < 0.1 < narrow["off line"]


def test_rates_beyond_the_limit_diverge_and_say_so():
    found = entry._drawn("diabetes", 20, 10, 0)
    network = measure.TangentNetwork(measure.Architecture(1, "identity"), (10,), 1, 1)
    assert not entry._descended(network, found.x, found.y, 1e3, 200)


def made(study, measure_name, exponent, scatter=0.01):
    """A result whose measure is a power of the width."""
    rows = [
        {"arm": arm, "width": width, "seed": seed, "status": "done",
         measure_name: width**exponent * math.exp(scatter * math.sin(7 * seed + index))}
        for arm in study.arms for index, width in enumerate(study.axes[0].values("full")) for seed in range(6)
    ]  # fmt: skip
    return Result(study, "full", pd.DataFrame(rows))


@pytest.mark.parametrize(
    ("exponent", "outcome"), [(-0.5, "holds"), (-0.2, "contradicted"), (-1.0, "falls short")]
)
def test_the_rule_for_the_kernel_at_initialization(exponent, outcome):
    verdict = entry.initialization.claims[0].judge(made(entry.initialization, "deviation", exponent))
    assert str(verdict.outcome) == outcome


@pytest.mark.parametrize(
    ("exponent", "outcome"), [(-0.7, "holds"), (-0.1, "contradicted"), (-0.32, "falls short")]
)
def test_the_rule_for_the_kernel_in_training(exponent, outcome):
    verdict = entry.training.claims[0].judge(made(entry.training, "change", exponent))
    assert str(verdict.outcome) == outcome
