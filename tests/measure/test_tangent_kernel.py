"""The layerwise kernel against the Jacobian's product and a peer's; what has no rule; what is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from allometry.measure import empirical_kernel


def by_jacobian(model, x, z=None, outputs=None):
    """Θ by torch.func: the whole Jacobian, then the product."""
    values = {name: one.detach() for name, one in model.named_parameters()}

    def of_one(values, *one):
        answer = torch.func.functional_call(model, values, tuple(part[None] for part in one))
        return (answer if outputs is None else outputs(answer)).reshape(-1)

    def jacobian(given):
        given = given if isinstance(given, tuple) else (given,)
        found = torch.func.vmap(torch.func.jacrev(of_one), in_dims=(None, *[0] * len(given)))(values, *given)
        return torch.cat([one.flatten(2) for one in found.values()], 2)

    left = jacobian(x)
    return torch.einsum("nkp,mlp->nmkl", left, left if z is None else jacobian(z))


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.second = nn.Conv2d(4, 6, (3, 2), dilation=(1, 2), groups=2, bias=False)
        self.batch = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)), inplace=True)
        return self.head(torch.tanh(self.batch(self.second(x))).mean((2, 3)))


class Tied(nn.Module):
    """A language model with one table for lookups and logits, positions, attention and a scale of its own."""

    def __init__(self, vocabulary=7, width=6, length=5):
        super().__init__()
        self.table = nn.Embedding(vocabulary, width, padding_idx=0)
        self.places = nn.Embedding(length, width)
        self.norm = nn.LayerNorm(width)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, width))
        self.start = nn.Parameter(torch.linspace(-1, 1, width).reshape(1, 1, width))
        self.query, self.value = nn.Linear(width, width), nn.Linear(width, width, bias=False)

    def forward(self, tokens):
        h = self.table(tokens) + self.places(torch.arange(tokens.shape[1])[None])
        h = self.norm(torch.cat([self.start.expand(len(tokens), -1, -1), h], 1))
        q, v = self.query(h), self.value(h)
        h = h + self.scale * F.scaled_dot_product_attention(q, h, v)
        return F.linear(h[:, -1], self.table.weight)


class Sequence(nn.Module):
    """Time first, samples second, as recurrent and older attention layers have it."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x):
        h = torch.tanh(self.inner(x.transpose(0, 1)))
        return self.head(h)[-1]


def made(kind):
    torch.manual_seed(0)
    if kind == "dense":
        return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)), (
            torch.randn(6, 5)
        )
    if kind == "shared":
        layer = nn.Linear(5, 5)
        return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(5, 2)), torch.randn(6, 5)
    if kind == "convolutional":
        return Convolutional().eval(), torch.randn(6, 3, 9, 8)
    if kind == "tied":
        return Tied(), torch.randint(7, (6, 5))
    if kind == "sequence":
        return Sequence(), torch.randn(6, 6, 3)
    if kind == "attention":
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        return nn.Sequential(layer, nn.Flatten(), nn.Linear(32, 2)), torch.randn(6, 4, 8)
    if kind == "weight norm":
        inner = nn.utils.parametrizations.weight_norm(nn.Linear(5, 7))
        return nn.Sequential(inner, nn.Tanh(), nn.Linear(7, 2)), torch.randn(6, 5)
    raise AssertionError(kind)


KINDS = ("dense", "shared", "convolutional", "tied", "sequence", "attention", "weight norm")


@pytest.mark.parametrize("kind", KINDS)
def test_the_layerwise_kernel_is_the_jacobians(kind):
    model, x = made(kind)
    model, x = model.double(), x.double() if x.is_floating_point() else x
    exact = by_jacobian(model, x)
    found = empirical_kernel(model, x)
    assert torch.allclose(found, exact, rtol=1e-10, atol=1e-12 * float(exact.abs().max()))
    across = empirical_kernel(model, x[:2], x[1:])
    assert torch.allclose(across, exact[:2, 1:], rtol=1e-10, atol=1e-12 * float(exact.abs().max()))
    trace = empirical_kernel(model, x, reduce="trace")
    mean = exact.diagonal(dim1=2, dim2=3).mean(-1)
    assert torch.allclose(trace, mean, rtol=1e-10, atol=1e-12 * float(exact.abs().max()))
