"""With branches at 1/L the stream moves as far at every depth; without, the deeper the farther."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from allometry.init.depth import depth_scale_
from allometry.models.convnet import ConvNet
from allometry.models.gpt import GPT, GPTConfig
from allometry.models.mlp import MLP

DEPTHS = (2, 4, 8, 16, 32)
WIDTH = 64


class Stream(nn.Module):
    """Branches of two layers behind a norm, as in transformers; the stream itself is what is watched."""

    def __init__(self, depth: int, generator: torch.Generator) -> None:
        super().__init__()
        self.start = nn.Linear(8, WIDTH, bias=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
            for _ in range(depth)
        )
        self.head = nn.Linear(WIDTH, 1, bias=False)
        # the ends first, so that one seed means the same ends at every depth
        for parameter in (self.start.weight, self.head.weight, *self.blocks.parameters()):
            if parameter.ndim == 2:
                bound = (3 / parameter.shape[1]) ** 0.5
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        self.start.requires_grad_(False)  # so that what moves the stream is its branches

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.start(x)
        for block in self.blocks:
            x = x + block(x)
        return x


def movement(depth: int, scaled: bool, kind: str = "adam") -> float:
    """Root mean square of how far the stream moved in three steps, over seeds."""
    squares = []
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.randn(32, 8, generator=generator), torch.randn(32, 1, generator=generator)
        model = Stream(depth, generator)
        if scaled:
            depth_scale_(model, r"blocks\.\d+$")
        if kind == "adam":
            optimizer = torch.optim.Adam(model.blocks.parameters(), 1e-3)
        else:
            optimizer = torch.optim.SGD(model.blocks.parameters(), 0.01 * (depth if scaled else 1))
        with torch.no_grad():
            before = model(x)
        for _ in range(3):
            optimizer.zero_grad()
            (model.head(model(x)) - y).square().mean().backward()
            optimizer.step()
        with torch.no_grad():
            squares.append((model(x) - before).square().mean().item())
    return float(np.sqrt(np.mean(squares)))


def slope(values):
    return np.polyfit(np.log(DEPTHS), np.log(values), 1)[0]


def test_movement_is_free_of_depth():
    assert slope([movement(depth, scaled=True) for depth in DEPTHS]) == pytest.approx(0.0, abs=0.15)


def test_movement_grows_without_the_rule():
    assert slope([movement(depth, scaled=False) for depth in DEPTHS]) > 0.5


def test_movement_under_sgd_with_rates_times_depth():
    assert slope([movement(depth, scaled=True, kind="sgd") for depth in DEPTHS]) == pytest.approx(
        0.0, abs=0.15
    )


def test_blocks_that_have_a_scale_of_their_own():
    tokens = torch.arange(8)[None]
    config = {"width": 32, "context": 8, "zero_init_outputs": False, "head_size": 16}
    model = depth_scale_(GPT(GPTConfig(depth=6, **config)), base_depth=2)
    expected = GPT(GPTConfig(depth=6, residual_scale=2 / 6, **config))
    torch.testing.assert_close(model(tokens), expected(tokens), rtol=1e-6, atol=1e-6)
    images = torch.randn(2, 3, 8, 8)
    model = depth_scale_(ConvNet(3, 5, width=8, depth=2).eval())
    assert torch.equal(model(images), ConvNet(3, 5, width=8, depth=2, residual_scale=1 / 4).eval()(images))


def test_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_embd=32, n_layer=4, n_head=2, vocab_size=16, n_positions=8, bos_token_id=0, eos_token_id=0
    )
    plain = transformers.GPT2LMHeadModel(config).eval()
    ours = depth_scale_(copy.deepcopy(plain), r"c_proj$")
    assert list(ours.state_dict()) == list(plain.state_dict())
    with torch.no_grad():  # the same by hand: the last matrix of a branch and its bias, over four blocks
        for name, parameter in plain.named_parameters():
            if "c_proj" in name:
                parameter /= 4
    tokens = torch.arange(8)[None]
    torch.testing.assert_close(ours(tokens).logits, plain(tokens).logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(copy.deepcopy(ours)(tokens).logits, ours(tokens).logits)


def test_nothing_changes_at_the_base_depth():
    x = torch.randn(3, 4)
    model = MLP(4, 2, width=16, depth=3, residual=True)
    before = model(x)
    depth_scale_(model, r"hidden\.[12]$", base_depth=2)
    assert torch.equal(model(x), before)


def test_bad_input():
    model = MLP(4, 2, width=16, depth=3, residual=True)
    with pytest.raises(ValueError, match="residual_scale"):
        depth_scale_(model)
    with pytest.raises(ValueError, match="no module's name matches"):
        depth_scale_(model, "blocks")
    with pytest.raises(ValueError, match="at least 1"):
        depth_scale_(model, "hidden", base_depth=0)
    depth_scale_(model, r"hidden\.[12]$")
    with pytest.raises(ValueError, match="already"):
        depth_scale_(model, r"hidden\.[12]$")
