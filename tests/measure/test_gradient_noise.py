"""The gradient's noise scale where it is known, in a loop and at rest."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from allometry import measure

MEAN, SPREAD = torch.tensor([3.0, 0.0, 4.0]), torch.tensor([10.0, 5.0, 1.0])
TRACE, SQUARE = 126.0, 25.0  # so that the scale is 5.04


def draw(count, generator):
    """Samples' gradients of `mean(model(x))` are the x themselves."""
    return MEAN + SPREAD * torch.randn(count, 3, generator=generator)


def linear(z, t):
    return (z * t).mean()


def test_it_is_the_known_scale():
    generator, model = torch.Generator().manual_seed(0), nn.Linear(3, 1, bias=False)
    batches = [(draw(64, generator), torch.ones(64, 1)) for _ in range(400)]
    found = measure.gradient_noise_scale(model, linear, batches)
    assert found.steps == 400
    assert found.trace == pytest.approx(TRACE, rel=0.02)
    assert found.squared_gradient == pytest.approx(SQUARE, rel=0.05)
    assert found.low < TRACE / SQUARE < found.high
    assert found.value == pytest.approx(TRACE / SQUARE, abs=4 * found.standard_error)


def test_the_two_parts_are_unbiased_and_the_interval_covers():
    """Each repetition is a few noisy steps: ratios of their own would be biased."""
    generator = torch.Generator().manual_seed(1)
    x = draw(500 * 12 * 32, generator).reshape(500, 12, 8, 4, 3)
    small = x.mean(3).square().sum(-1).mean(2).double()  # micro-batches of 4
    large = x.mean((2, 3)).square().sum(-1).double()  # batches of 32
    told, covered, errors = [], 0, []
    for k in range(500):
        scale = measure.GradientNoiseScale([], micro_batch=4)
        for step in range(12):
            scale.add(float(small[k, step]), float(large[k, step]), batch=32)
        found = scale.estimate()
        told.append((found.trace, found.squared_gradient, found.value))
        covered += found.low <= TRACE / SQUARE <= found.high
        errors.append(found.standard_error)
    trace, square, value = np.array(told).T
    assert trace.mean() == pytest.approx(TRACE, abs=4 * trace.std() / 500**0.5)
    assert square.mean() == pytest.approx(SQUARE, abs=4 * square.std() / 500**0.5)
    assert 0.92 <= covered / 500 <= 0.98
    assert np.median(errors) == pytest.approx(value.std(), rel=0.2)


@pytest.mark.parametrize("divided", [False, True])
def test_a_loop_over_micro_batches_tells_what_its_gradients_are(divided):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(3, 6, 8, 4), torch.randint(0, 3, (3, 6, 8))
    scale = measure.GradientNoiseScale(model, micro_batch=8)
    expected = measure.GradientNoiseScale([], micro_batch=8)
    for step in range(3):
        model.zero_grad()
        for k in range(6):
            (F.cross_entropy(model(x[step, k]), y[step, k]) / (6 if divided else 1)).backward()
            scale.micro()
        scale.step()
        grads = [
            torch.cat([g.flatten() for g in torch.autograd.grad(
                F.cross_entropy(model(x[step, k]), y[step, k]), list(model.parameters()))])
            for k in range(6)
        ]  # fmt: skip
        rows = torch.stack(grads).double()
        expected.add(float(rows.square().sum(1).mean()), float(rows.mean(0).square().sum()), batch=48)
    ours, theirs = scale.estimate(), expected.estimate()
    assert ours.value == pytest.approx(theirs.value, rel=1e-4)
    assert ours.standard_error == pytest.approx(theirs.standard_error, rel=1e-3)
    assert ours.trace == pytest.approx(theirs.trace / (36 if divided else 1), rel=1e-4)


def test_samples_gradients_and_micro_batches_agree():
    generator, model = torch.Generator().manual_seed(2), nn.Linear(3, 1, bias=False)
    x = draw(60 * 32, generator).reshape(60, 32, 3)
    at_rest = measure.gradient_noise_scale(model, linear, [(one, torch.ones(32, 1)) for one in x], chunk=10)
    whole = x.double()
    scale = measure.GradientNoiseScale([], micro_batch=1)
    for one in whole:
        scale.add(float(one.square().sum(1).mean()), float(one.mean(0).square().sum()), batch=32)
    assert at_rest.value == pytest.approx(scale.estimate().value, rel=1e-5)


def test_where_noise_hides_the_gradient_there_is_no_upper_end():
    generator, model = torch.Generator().manual_seed(3), nn.Linear(3, 1, bias=False)
    batches = [(torch.randn(16, 3, generator=generator), torch.ones(16, 1)) for _ in range(20)]
    found = measure.gradient_noise_scale(model, linear, batches)
    assert found.high == math.inf
    assert found.low > 5
    alone = measure.gradient_noise_scale(model, linear, batches[:1])
    assert (alone.low, alone.high) == (0.0, math.inf)
    assert math.isnan(alone.standard_error)


def test_a_gradient_that_is_surely_hidden_has_no_upper_end_either():
    scale = measure.GradientNoiseScale([], micro_batch=1)
    for small in (4.0, 4.0, 4.1):  # the estimate of |G|^2 is negative in every step
        scale.add(small, 0.9, batch=4)
    found = scale.estimate()
    assert found.squared_gradient < 0
    assert (found.low, found.high) == (0.0, float("inf"))


def test_a_window_forgets_and_a_state_goes_on():
    scale = measure.GradientNoiseScale([], micro_batch=2, window=3)
    for k in range(5):
        scale.add(3.0 + k, 1.0, batch=8)
    last = measure.GradientNoiseScale([], micro_batch=2)
    for k in range(2, 5):
        last.add(3.0 + k, 1.0, batch=8)
    assert scale.estimate() == last.estimate()
    other = measure.GradientNoiseScale([], micro_batch=2)
    other.load_state_dict(scale.state_dict())
    assert other.estimate() == scale.estimate()
    other.reset()
    with pytest.raises(ValueError, match="no step has been told"):
        other.estimate()


def test_what_makes_no_sense_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="micro_batch must be at least 1"):
        measure.GradientNoiseScale([], micro_batch=0)
    scale = measure.GradientNoiseScale(nn.Linear(2, 1), micro_batch=4)
    with pytest.raises(ValueError, match="larger than the small one of 4"):
        scale.add(1.0, 1.0, batch=4)
    with pytest.raises(ValueError, match="finite and not negative"):
        scale.add(math.nan, 1.0, batch=8)
    scale.micro()
    with pytest.raises(ValueError, match="two or more micro-batches"):
        scale.step()
    with pytest.raises(ValueError, match="larger than the small one of 1"):
        measure.gradient_noise_scale(nn.Linear(3, 1), linear, (torch.zeros(1, 3), torch.zeros(1, 1)))
