"""Multipliers as hooks: exact, removable, and invisible to everything but the forward pass."""

import pytest
import torch
from torch import nn

from allometry.init.multiplier import DivideInput, MultiplyOutput


def test_input_is_divided_however_it_is_given():
    layer, x = nn.Linear(4, 3), torch.randn(2, 4)
    expected = nn.functional.linear(x / 8, layer.weight, layer.bias)
    handle = DivideInput(8.0).attach(layer)
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer(input=x), expected)
    assert torch.equal(torch.compile(layer, backend="eager")(x), expected)
    handle.remove()
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_output_is_multiplied_and_the_rest_of_it_left():
    class Attention(nn.Module):
        def forward(self, x):
            return x, "weights"

    x = torch.randn(2, 4)
    attention, layer = Attention(), nn.Identity()
    MultiplyOutput(0.5).attach(attention)
    MultiplyOutput(0.5).attach(layer)
    assert torch.equal(attention(x)[0], x / 2)
    assert attention(x)[1] == "weights"
    assert torch.equal(layer(x), x / 2)


def test_gradients_of_the_weight_are_divided_too():
    x = torch.randn(5, 4, dtype=torch.float64)
    layer = nn.Linear(4, 3).double()
    layer(x).sum().backward()
    plain = layer.weight.grad.clone(), layer.bias.grad.clone()
    layer.zero_grad()
    DivideInput(8.0).attach(layer)
    layer(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, plain[0] / 8)
    torch.testing.assert_close(layer.bias.grad, plain[1])


def test_what_is_no_branch():
    class Dictionary(nn.Module):
        def forward(self, x):
            return {"x": x}

    model = Dictionary()
    MultiplyOutput(0.5).attach(model)
    with pytest.raises(TypeError, match="Dictionary returned dict"):
        model(torch.zeros(1))
