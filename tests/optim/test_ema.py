"""Averaged weights: closed forms, torch's own average, and a model that comes back bit for bit."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from allometry.optim.ema import AveragedWeights


def network(seed=0):
    """Weights, floating-point buffers and an integer buffer."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return model


def drift(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.randn(value.shape, generator=generator, dtype=value.dtype))
            else:
                value.add_(1)


def test_a_steady_drift_is_followed_at_a_fixed_distance():
    """Weights n v: the average is n v - v d (1 - d^n) / (1 - d), a lag of d / (1 - d) steps in the end."""
    model = nn.Linear(1, 1, bias=False).double()
    decay = 0.9
    with torch.no_grad():
        model.weight.zero_()
        average = AveragedWeights(model, decay=decay, ramp=False)
        for n in range(1, 200):
            model.weight.add_(2.0)
            average.update(model)
            lag = decay * (1 - decay**n) / (1 - decay)
            assert average.state["weight"].item() == pytest.approx(2.0 * (n - lag), rel=1e-12)
    assert 2.0 * n - average.state["weight"].item() == pytest.approx(2.0 * 9, rel=1e-6)


def test_the_ramp_forgets_the_start():
    """After k updates the start weighs the product of (1 + i) / (10 + i): 9! k! / (9 + k)!."""
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1.0)
        average = AveragedWeights(model, decay=0.999)
        model.weight.zero_()
        left = 1.0
        for k in range(40):
            average.update(model)
            left *= (1 + k) / (10 + k)
            assert average.state["weight"].item() == pytest.approx(left, rel=1e-12)
    binomial = 1.0
    for i in range(1, 10):
        binomial *= i / (40 + i)
    assert left == pytest.approx(binomial, rel=1e-12)


def test_the_ramp_ends_at_the_decay():
    """(1 + k) / (10 + k) passes 0.5 at k = 8; from there on the average is a plain one."""
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1.0)
        average = AveragedWeights(model, decay=0.5)
        model.weight.zero_()
        values = []
        for _ in range(20):
            before = average.state["weight"].item()
            average.update(model)
            values.append(average.state["weight"].item() / before)
    assert values[:8] == pytest.approx([(1 + k) / (10 + k) for k in range(8)], rel=1e-12)
    assert values[8:] == pytest.approx([0.5] * 12, rel=1e-12)


def test_constant_weights_are_their_own_average():
    model = network()
    average = AveragedWeights(model)
    for _ in range(50):
        average.update(model)
    assert all(torch.equal(average.state[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("decay", [0.0, 0.6, 0.99])
def test_agrees_with_torchs_averaged_model(decay):
    """Torch takes the first update as the start, so it is told the first weights first."""
    model = network()
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    theirs.update_parameters(model)
    ours = AveragedWeights(model, decay=decay, ramp=False)
    for seed in range(1, 15):
        drift(model, seed)
        ours.update(model)
        theirs.update_parameters(model)
    for name, value in theirs.module.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(ours.state[name], value), name


def test_integer_buffers_are_copied():
    model = network()
    average = AveragedWeights(model, decay=0.9)
    for seed in range(4):
        drift(model, seed)
        average.update(model)
    assert average.state["1.num_batches_tracked"].item() == 4


def test_a_model_without_numbers_to_average():
    model = nn.Module()
    model.register_buffer("count", torch.tensor(0))
    average = AveragedWeights(model)
    model.count += 3
    average.update(model)
    assert average.state["count"].item() == 3


def test_updates_neither_touch_nor_hold_on_to_the_model():
    model = network()
    before = copy.deepcopy(model.state_dict())
    average = AveragedWeights(model)
    model(torch.ones(5, 3, dtype=torch.float64)).sum().backward()
    model.load_state_dict(before)  # batch norm has moved its buffers
    gradients = [p.grad.clone() for p in model.parameters()]
    average.update(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    own = {value.data_ptr() for value in model.state_dict().values()}
    assert not own & {value.data_ptr() for value in average.state.values()}
    assert not any(value.requires_grad for value in average.state.values())


@pytest.mark.parametrize("fails", [False, True])
def test_applied_brings_the_models_own_weights_back_bit_for_bit(fails):
    model = network()
    average = AveragedWeights(model, decay=0.9)
    drift(model, 1)
    average.update(model)
    before, pointers = copy.deepcopy(model.state_dict()), [p.data_ptr() for p in model.parameters()]
    averages = copy.deepcopy(average.state)

    def use():
        with average.applied(model) as same:
            assert same is model
            assert all(torch.equal(averages[name], value) for name, value in model.state_dict().items())
            drift(model, 2)  # whatever happens inside
            if fails:
                raise RuntimeError("inside")

    if fails:
        with pytest.raises(RuntimeError, match="inside"):
            use()
    else:
        use()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert all(torch.equal(averages[name], value) for name, value in average.state.items())


def test_applied_to_tied_weights():
    model = nn.ModuleDict({"table": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["table"].weight
    average = AveragedWeights(model, decay=0.5, ramp=False)
    with torch.no_grad():
        start = model["table"].weight.clone()
        model["table"].weight.add_(1.0)
    average.update(model)
    with average.applied(model):
        assert model["head"].weight is model["table"].weight
        assert torch.allclose(model["head"].weight, start + 0.5)
    assert torch.equal(model["head"].weight, start + 1.0)


def test_going_on_from_a_state_is_not_having_stopped():
    model = network()
    whole, first = AveragedWeights(model, decay=0.95), AveragedWeights(model, decay=0.95)
    for seed in range(10):
        drift(model, seed)
        whole.update(model)
        first.update(model)
    second = AveragedWeights(network(seed=5), decay=0.95)
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    for seed in range(10, 20):
        drift(model, seed)
        whole.update(model)
        second.update(model)
    assert second.updates == whole.updates == 20
    assert all(torch.equal(whole.state[name], value) for name, value in second.state.items())


def test_bfloat16_weights_are_averaged_finely():
    """A step of a thousandth is lost in bfloat16, whose neighbours lie 1/256 apart."""
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        model.weight.fill_(1.0)
        average = AveragedWeights(model, decay=0.999, ramp=False)
        model.weight.fill_(2.0)
        for _ in range(1000):
            average.update(model)
    assert average.state["weight"].item() == pytest.approx(2 - 0.999**1000, rel=1e-3)
    with average.applied(model):
        assert model.weight.dtype == torch.bfloat16
        assert model.weight.item() == pytest.approx(2 - 0.999**1000, rel=2**-8)


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\)"):
        AveragedWeights(nn.Linear(1, 1), decay=decay)
