"""Which weights only have a direction: known networks, and lengths that grow as they must."""

import pytest
import torch
from torch import nn

from allometry.measure import EffectiveStep, scale_invariance
from allometry.optim import SGDP


def network(eps=1e-8):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6, eps=eps), nn.ReLU(),
        nn.Conv2d(6, 6, 3, bias=False), nn.BatchNorm2d(6, eps=eps), nn.ReLU(),
        nn.Flatten(), nn.Linear(96, 8, bias=False), nn.LayerNorm(8, eps=eps), nn.Linear(8, 3),
    ).double()  # fmt: skip


def batch(seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(32, 1, 8, 8, generator=generator).double()
    return x, torch.randint(3, (32,), generator=generator)


def loss(model, pair):
    return nn.functional.cross_entropy(model(pair[0]), pair[1])


def test_what_a_norm_follows_has_a_direction_only():
    table = scale_invariance(network(), loss, batch())
    assert table["scaled"].tolist() == ["channel", "channel", "layer", "none"]
    assert table["tested"].tolist() == ["channel", "channel", "layer", "none"]
    assert table["agree"].all()
    assert (table["channel"].iloc[:2] < 1e-5).all()  # orthogonal up to the norm's eps


def test_the_model_is_left_as_it_was():
    model = network()
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    scale_invariance(model, loss, batch())
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_gradient_may_pass_by_chance_and_scaling_does_not():
    torch.manual_seed(5)
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0]]))
    inputs = torch.tensor([[0.0, 1.0], [0.03, 2.0]])  # the gradient happens to be nearly orthogonal
    table = scale_invariance(model, lambda m, x: m(x).sum(), inputs)
    assert table["channel"].item() == pytest.approx(0.01 * 2**0.5, rel=1e-3)
    assert table["tested"].item() == "channel"
    assert table["scaled"].item() == "none"


def test_dropout_hides_nothing_and_no_random_stream_is_moved():
    model = nn.Sequential(*network()[:-1], nn.Dropout(0.5), nn.Linear(8, 3)).double()
    before = torch.random.get_rng_state()
    table = scale_invariance(model, loss, batch())
    assert table["scaled"].tolist() == ["channel", "channel", "layer", "none"]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_where_rounding_hides_the_answer_it_says_so():
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.LayerNorm(3, eps=1e-8)).bfloat16()
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    with pytest.warns(RuntimeWarning, match="rounding hides whether 0.weight"):
        scale_invariance(model, lambda m, x: m(x)[:, 0].float().exp().mean().bfloat16(), x)


def trained(optimizer_of, steps=40):
    model = network()
    optimizer = optimizer_of(model.parameters())
    with EffectiveStep(model, optimizer) as watch:
        for step in range(steps):
            optimizer.zero_grad()
            loss(model, batch(step)).backward()
            optimizer.step()
    return watch


def test_without_momentum_squared_lengths_grow_by_squared_steps():
    growth = trained(lambda p: torch.optim.SGD(p, lr=0.05)).growth()
    assert growth["balance"].iloc[:3].to_numpy() == pytest.approx(1.0, abs=1e-4)
    assert abs(growth["balance"].iloc[3] - 1) > 0.01  # the head is no direction


def test_momentum_lengthens_faster_and_projection_does_not():
    plain = trained(lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)).growth()
    free = trained(lambda p: SGDP(p, lr=0.05, momentum=0.9)).growth()
    assert (plain["balance"].iloc[:2] > 3).all()
    assert free["balance"].iloc[:2].to_numpy() == pytest.approx(1.0, abs=1e-4)


def test_angles_are_those_between_before_and_after():
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 4.0]]))
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    with EffectiveStep(layer, optimizer, every=2) as watch:
        for _ in range(3):
            optimizer.zero_grad()
            layer(torch.tensor([[-1.0, 0.0]])).sum().backward()
            optimizer.step()
    table = watch.table()
    assert table["step"].tolist() == [0, 2]
    angle = torch.atan2(torch.tensor(4.0), torch.tensor(3.0)) - torch.atan2(
        torch.tensor(4.0), torch.tensor(4.0)
    )
    assert table["angle"].iloc[0] == pytest.approx(float(angle), rel=1e-6)
    assert table["radial"].iloc[0] == pytest.approx(3 / 5, rel=1e-6)
    with pytest.raises(ValueError, match="growth needs every step"):
        watch.growth()


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="no parameter of the model has two dimensions"):
        scale_invariance(nn.LayerNorm(3), lambda m, x: m(x).sum(), torch.ones(1, 3))
    with pytest.raises(ValueError, match="one finite number"):
        scale_invariance(nn.Linear(2, 2), lambda m, x: m(x), torch.ones(1, 2))
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    with pytest.raises(ValueError, match="every must be"):
        EffectiveStep(layer, optimizer, every=0)
    with pytest.raises(ValueError, match="no parameter was chosen"):
        EffectiveStep(layer, optimizer, include=lambda name, parameter: False)
