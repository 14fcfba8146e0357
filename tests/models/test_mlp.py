"""The perceptron: torch's own initial distribution, from named generators only."""

import pytest
import torch
from torch import nn

from allometry.models.mlp import MLP


def test_equations():
    model = MLP(6, 3, width=5, depth=2, activation="tanh")
    x = torch.randn(4, 6)
    first, second, out = model.hidden[0], model.hidden[1], model.readout
    h = torch.tanh(x @ first.weight.T + first.bias)
    torch.testing.assert_close(
        model(x), torch.tanh(h @ second.weight.T + second.bias) @ out.weight.T + out.bias
    )
    stream = MLP(6, 3, width=5, depth=2, activation="tanh", residual=True)
    h = stream.hidden[0](x)
    torch.testing.assert_close(stream.features(x), torch.tanh(h + stream.hidden[1](torch.tanh(h))))


def test_initial_values_are_distributed_as_torch_has_them():
    from scipy.stats import ks_2samp

    torch.manual_seed(0)
    ours, torchs = MLP(64, 10, width=128, depth=2).hidden[1], nn.Linear(128, 128)
    for name in ("weight", "bias"):
        pair = [getattr(layer, name).detach().flatten().numpy() for layer in (ours, torchs)]
        assert ks_2samp(*pair).pvalue > 0.001
        assert abs(pair[0]).max() <= 128**-0.5


def test_generators():
    state = torch.get_rng_state()
    one = MLP(6, 3, width=5, generator=torch.Generator().manual_seed(1))
    same = MLP(6, 3, width=5, generator=torch.Generator().manual_seed(1))
    other = MLP(6, 3, width=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.hidden[0].weight, other.hidden[0].weight)
    with torch.device("meta"):
        assert all(parameter.is_meta for parameter in MLP(6, 3).parameters())


def test_images_are_flattened_and_types_are_kept():
    assert MLP(12, 3)(torch.zeros(5, 1, 3, 4)).shape == (5, 3)
    assert MLP(12, 3).bfloat16()(torch.zeros(5, 12, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("bad", [{"width": 0}, {"depth": 0}, {"activation": "swish"}])
def test_bad_input(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        MLP(4, 2, **bad)
