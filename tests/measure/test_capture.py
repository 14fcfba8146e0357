"""Capturing tells what modules saw, and leaves a model as if it had not been there."""

import re

import pytest
import torch
from torch import Tensor, nn

from allometry.measure.capture import Capture, matching_modules
from allometry.models import GPT, GPTConfig


def model() -> GPT:
    return GPT(GPTConfig(width=32, depth=2, context=12, zero_init_outputs=False))


def tokens() -> Tensor:
    return torch.randint(256, (3, 12), generator=torch.Generator().manual_seed(0))


def hooks_of(network: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
        for module in network.modules()
    )


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ("blocks.*.attention.qkv", (), ["blocks.0.attention.qkv", "blocks.1.attention.qkv"]),
        (re.compile(r"1\..*\.(up|down)$"), "*.up", ["blocks.1.feed_forward.down"]),
        (nn.Embedding, (), ["embedding"]),
        (["head", nn.Embedding], (), ["embedding", "head"]),
        ("", (), [""]),
    ],
)  # fmt: skip
def test_modules_are_named_by_glob_expression_and_class(include, exclude, expected) -> None:
    assert list(matching_modules(model(), include, exclude)) == expected


def test_captured_inputs_and_outputs_obey_the_layer_between_them() -> None:
    network = model()
    with Capture(network, "*.up", outputs=True) as seen:
        network(tokens())
        network(tokens().flip(0))
    for name, layer in seen.modules.items():
        assert len(seen.inputs[name]) == len(seen.outputs[name]) == 2
        for given, came in zip(seen.inputs[name], seen.outputs[name], strict=True):
            assert torch.equal(nn.functional.linear(given, layer.weight), came)
    first, second = seen.inputs["blocks.0.feed_forward.up"]
    assert torch.allclose(first, second.flip(0), atol=1e-6)  # the same sequences in another order


def test_outputs_and_gradients_are_bit_identical_and_hooks_are_gone() -> None:
    plain, watched = model(), model()
    x = tokens()
    expected = plain(x)
    expected.square().mean().backward()
    with Capture(watched, "*", outputs=True, reduce=lambda t: float(t.abs().max())) as seen:
        found = watched(x)
        found.square().mean().backward()
    assert torch.equal(found, expected)
    for mine, theirs in zip(watched.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)
    assert hooks_of(watched) == 0
    watched(x)
    assert len(seen.outputs["head"]) == 1  # nothing is taken outside the context


def test_an_error_inside_restores_too_and_other_hooks_stay() -> None:
    network = model()
    network.head.register_forward_hook(lambda module, args, output: None)
    with pytest.raises(ValueError, match="12 positions"), Capture(network, "*"):
        network(torch.zeros(1, 13, dtype=torch.long))
    assert hooks_of(network) == 1


def test_what_a_later_layer_overwrites_is_kept_as_it_was() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    with Capture(network, "0", inputs=False, outputs=True) as seen, torch.no_grad():
        out = network(x)
    assert bool((seen.outputs["0"][0] < 0).any())
    assert torch.equal(seen.outputs["0"][0].relu(), out)
    assert not seen.inputs


def test_keyword_inputs_and_structured_outputs() -> None:
    class Layer(nn.Module):
        def forward(self, *, hidden: Tensor, scale: float) -> dict:
            return {"aux": None, "states": (hidden * scale,)}

    layer = nn.ModuleDict({"inner": Layer()})
    with Capture(layer, "inner", outputs=True) as seen:
        layer["inner"](scale=2.0, hidden=torch.ones(2, requires_grad=True))
    assert seen.inputs["inner"][0].tolist() == [1.0, 1.0]
    assert seen.outputs["inner"][0].tolist() == [2.0, 2.0]
    assert not seen.inputs["inner"][0].requires_grad


def test_bad_requests_are_told() -> None:
    with pytest.raises(ValueError, match=r"no module matches 'blocks.*\.atention'; names are such as"):
        Capture(model(), "blocks.*.atention")
    with pytest.raises(ValueError, match=r"the class Conv1d; the model holds .*Linear"):
        Capture(model(), nn.Conv1d)
    with pytest.raises(ValueError, match="leaves no module"):
        Capture(model(), "head", exclude=nn.Linear)
    with pytest.raises(ValueError, match="nothing to capture"):
        Capture(model(), "head", inputs=False)
    with pytest.raises(TypeError, match="not 3"):
        Capture(model(), 3)  # type: ignore[arg-type]
    seen = Capture(model(), "head")
    with seen, pytest.raises(RuntimeError, match="already running"), seen:
        pass
