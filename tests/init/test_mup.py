"""µP: the same network at the base width, the reference package's network at any other."""

import copy
import pickle
import warnings
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from allometry.init.mup import apply_, roles
from allometry.init.widths import width_dims
from allometry.models.gpt import GPT, GPTConfig
from allometry.optim.adamw import AdamWIndependent
from allometry.optim.groups import Role, param_groups

BASE, WIDTH = 16, 128


def mlp(width: int, last: type[nn.Linear] = nn.Linear) -> nn.Module:
    return nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), last(width, 3))


class Residual(nn.Module):
    """Convolutions with norms and a skip; ``last`` is what the package wants to be told, and we do not."""

    def __init__(self, width: int, last: type[nn.Linear] = nn.Linear) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.body = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.back = nn.Conv2d(2 * width, width, 1, bias=False)
        self.head = last(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x))
        x = x + self.back(F.relu(self.body(x)))
        return self.head(x.mean(dim=(2, 3)))


class TinyGPT(nn.Module):
    def __init__(self, width: int, last: type[nn.Linear] = nn.Linear) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, width)
        self.places = nn.Parameter(torch.randn(6, width) * 0.1)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.head = last(width, 11, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.places[: tokens.shape[1]]
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, -1, 8)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return self.head(x + self.down(F.gelu(self.up(self.norm(x)))))


FAMILIES = {
    "mlp": (mlp, lambda: torch.randn(4, 10)),
    "conv": (Residual, lambda: torch.randn(4, 3, 6, 6)),
    "gpt": (TinyGPT, lambda: torch.randint(11, (4, 6))),
}
GIVEN = pytest.mark.parametrize("family", sorted(FAMILIES))


def seeded(build, *arguments):
    torch.manual_seed(0)
    return build(*arguments)


@GIVEN
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_agrees_with_the_reference_package(family, kind):
    mup = pytest.importorskip("mup")
    build, draw = FAMILIES[family]
    peer = seeded(build, WIDTH, mup.MuReadout)
    mup.set_base_shapes(peer, build(BASE, mup.MuReadout), delta=build(2 * BASE, mup.MuReadout))
    ours = apply_(seeded(build, WIDTH), build(BASE))

    theirs = dict(peer.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, theirs[name], rtol=0, atol=0)
    inputs = draw()
    torch.testing.assert_close(ours(inputs), peer(inputs), rtol=0, atol=0)

    make = mup.MuSGD if kind == "sgd" else mup.MuAdamW
    groups = make(peer.parameters(), lr=0.1, weight_decay=0.01).param_groups
    names = {id(parameter): name for name, parameter in peer.named_parameters()}
    expected = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    groups = param_groups(ours, 0.1, roles(ours, optimizer=kind), weight_decay=0.01, no_decay=())
    names = {id(parameter): name for name, parameter in ours.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found.keys() == expected.keys()
    for name, settings in expected.items():
        assert found[name] == pytest.approx(settings, rel=1e-12), name


@GIVEN
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_trains_like_the_reference_package(family, kind):
    mup = pytest.importorskip("mup")
    build, draw = FAMILIES[family]
    peer = seeded(build, WIDTH, mup.MuReadout)
    mup.set_base_shapes(peer, build(BASE, mup.MuReadout), delta=build(2 * BASE, mup.MuReadout))
    ours = apply_(seeded(build, WIDTH), build(BASE))
    if kind == "sgd":
        theirs = mup.MuSGD(peer.parameters(), lr=0.01)
        mine = torch.optim.SGD(param_groups(ours, 0.01, roles(ours, optimizer="sgd")))
    else:
        theirs = mup.MuAdam(peer.parameters(), lr=0.01)
        mine = torch.optim.Adam(param_groups(ours, 0.01, roles(ours, optimizer="adam")))
    inputs = draw()
    for _ in range(3):
        for model, optimizer in ((peer, theirs), (ours, mine)):
            optimizer.zero_grad()
            F.cross_entropy(
                model(inputs).flatten(0, -2), torch.zeros(model(inputs)[..., 0].numel()).long()
            ).backward()
            optimizer.step()
    torch.testing.assert_close(ours(inputs), peer(inputs), rtol=1e-5, atol=1e-6)


@GIVEN
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_nothing_changes_at_the_base_width(family, kind):
    build, draw = FAMILIES[family]
    plain, ours = seeded(build, BASE), seeded(build, BASE)
    apply_(ours, build(BASE), build(2 * BASE))
    rule = roles(ours, optimizer=kind)
    assert set(rule.values()) <= {
        Role(1.0, 1.0, name) for name in ("hidden", "input", "readout", "vector", "fixed")
    }
    make = torch.optim.SGD if kind == "sgd" else torch.optim.AdamW
    optimizers = [
        make(plain.parameters(), lr=0.01, weight_decay=0.1),
        make(param_groups(ours, 0.01, rule, weight_decay=0.1, no_decay=())),
    ]
    inputs = draw()
    for _ in range(10):
        outputs = []
        for model, optimizer in zip((plain, ours), optimizers, strict=True):
            optimizer.zero_grad()
            outputs.append(model(inputs))
            outputs[-1].square().mean().backward()
            optimizer.step()
        assert torch.equal(*outputs)
        assert all(
            torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), ours.parameters(), strict=True)
        )
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), ours.parameters(), strict=True))


def test_width_is_found_on_the_meta_device():
    with torch.device("meta"):
        models = [TinyGPT(width) for width in (BASE, WIDTH, 2 * BASE)]
    widths = width_dims(models[1], models[0], models[2])
    layers = {name: info.layer for name, info in widths.items()}
    assert layers == {
        "tokens.weight": "input", "places": "input", "norm.weight": "vector", "norm.bias": "vector",
        "qkv.weight": "hidden", "qkv.bias": "vector", "out.weight": "hidden", "out.bias": "vector",
        "up.weight": "hidden", "up.bias": "vector", "down.weight": "hidden", "down.bias": "vector",
        "head.weight": "readout",
    }  # fmt: skip
    assert {info.multiplier for info in widths.values()} == {WIDTH / BASE}
    shapes = {name: tuple(p.shape) for name, p in models[0].named_parameters()}
    assert width_dims(models[1], shapes) == widths


def test_sides_that_grow_differently():
    def build(width):
        return nn.Sequential(nn.Linear(4, width), nn.Linear(width, width**2), nn.Linear(width**2, 2))

    rule = roles(build(32), build(16), optimizer="sgd")
    assert rule["1.weight"].learning_rate == 4 / 2
    assert rule["1.bias"].learning_rate == 4
    assert roles(build(32), build(16), optimizer="adam")["1.weight"].learning_rate == 1 / 2


def test_transposed_layouts():
    pytest.importorskip("transformers")
    from transformers.pytorch_utils import Conv1D

    def build(width):
        return nn.ModuleList([Conv1D(width, 4), Conv1D(3 * width, width), nn.ConvTranspose1d(width, 5, 3)])

    widths = width_dims(build(32), build(8))
    assert [(widths[f"{i}.weight"].layer, widths[f"{i}.weight"].fan_in) for i in range(3)] == [
        ("input", 1.0), ("hidden", 4.0), ("readout", 4.0),
    ]  # fmt: skip


def test_tied_table_keeps_its_values_and_divides_once():
    class Tied(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.table, self.head = nn.Embedding(7, width), nn.Linear(width, 7, bias=False)
            self.head.weight = self.table.weight

        def forward(self, tokens):
            return self.head(self.table(tokens))

    plain = seeded(Tied, WIDTH)
    ours = apply_(seeded(Tied, WIDTH), Tied(BASE))
    tokens = torch.arange(7)
    assert torch.equal(ours.table.weight, plain.table.weight)
    torch.testing.assert_close(ours(tokens), plain(tokens) * BASE / WIDTH)
    rule = roles(ours, optimizer="sgd")
    assert rule["table.weight"] == rule["head.weight"] == Role(8.0, 1 / 8, "shared")
    assert len(param_groups(ours, 0.1, rule)[0]["params"]) == 1
    shapes = {name: tuple(parameter.shape) for name, parameter in Tied(BASE).named_parameters()}
    assert list(shapes) == ["table.weight"]
    assert width_dims(Tied(WIDTH), shapes) == width_dims(Tied(WIDTH), Tied(BASE))


def test_copies_keys_and_functional_calls():
    inputs = torch.randn(4, 10)
    ours = apply_(seeded(mlp, WIDTH), mlp(BASE))
    expected = ours(inputs)
    assert list(ours.state_dict()) == list(mlp(WIDTH).state_dict())
    assert torch.equal(copy.deepcopy(ours)(inputs), expected)
    assert torch.equal(pickle.loads(pickle.dumps(ours))(inputs), expected)
    assert roles(copy.deepcopy(ours)) == roles(ours, mlp(BASE))
    assert torch.equal(torch.func.functional_call(ours, dict(ours.named_parameters()), (inputs,)), expected)
    models = [apply_(mlp(WIDTH), mlp(BASE)) for _ in range(3)]
    stacked, buffers = torch.func.stack_module_state(models)
    outputs = torch.vmap(lambda p: torch.func.functional_call(models[0], (p, buffers), (inputs,)))(stacked)
    torch.testing.assert_close(
        outputs, torch.stack([model(inputs) for model in models]), rtol=1e-5, atol=1e-6
    )


def test_loaded_weights_are_left_alone():
    trained = apply_(seeded(mlp, WIDTH), mlp(BASE))
    again = mlp(WIDTH)
    again.load_state_dict(trained.state_dict())
    apply_(again, mlp(BASE), rescale=False)
    inputs = torch.randn(4, 10)
    assert torch.equal(again(inputs), trained(inputs))


@pytest.mark.parametrize("tied", [False, True])
def test_the_reference_language_model(tied):
    """How a ladder builds one of its members: base on the meta device, independent decay."""

    def build(width):
        return GPT(GPTConfig(width=width, depth=2, context=8, vocab_size=32, tie_embeddings=tied))

    with torch.device("meta"):
        base, delta = build(64), build(128)
    model = apply_(build(256), base, delta)
    rule = roles(model, optimizer="adam", decay="independent")
    groups = param_groups(model, 0.01, rule, weight_decay=0.001)
    optimizer = AdamWIndependent(groups)
    assert {group["lr"] for group in groups} == {0.01, 0.01 / 4}
    assert {group["independent_weight_decay"] for group in optimizer.param_groups} == {0.0, 0.001}
    names = {id(p): name for name, p in model.named_parameters()}
    decaying = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    slower = {names[id(p)] for group in groups if group["lr"] < 0.01 for p in group["params"]}
    matrices = {
        f"blocks.{i}.{name}.weight"
        for i in (0, 1)
        for name in ("attention.qkv", "attention.out", "feed_forward.up", "feed_forward.down")
    }
    assert slower == matrices
    assert decaying == matrices | (set() if tied else {"head.weight"})
    tokens = torch.randint(32, (4, 9))
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers_read_their_input_at_one_scale(kind):
    class Reader(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.recurrent = kind(8, width, num_layers=2, batch_first=True)
            self.readout = nn.Linear(width, 3)

        def forward(self, x):
            return self.readout(self.recurrent(x)[0][:, -1])

    torch.manual_seed(0)
    narrow, wide = Reader(64), Reader(1024)
    apply_(wide, narrow)
    for name in ("weight_ih_l0", "bias_ih_l0", "bias_hh_l1"):
        one, other = (getattr(model.recurrent, name).std().item() for model in (narrow, wide))
        assert other == pytest.approx(one, rel=0.15)
    for name in ("weight_hh_l0", "weight_ih_l1"):
        one, other = (getattr(model.recurrent, name).std().item() for model in (narrow, wide))
        assert other == pytest.approx(one / 4, rel=0.05)
    assert roles(wide)["recurrent.weight_ih_l1"].learning_rate == 1 / 16
    x = torch.randn(32, 12, 8)
    sizes = [model.recurrent(x)[0].std().item() for model in (narrow, wide)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)


def test_zero_stays_zero():
    model = mlp(WIDTH)
    nn.init.zeros_(model[4].weight)
    nn.init.zeros_(model[4].bias)
    apply_(model, mlp(BASE))
    assert not model[4].weight.any()
    assert not model(torch.randn(2, 10)).any()


@pytest.mark.parametrize("initial", ["fan_in", "constant"])
def test_logits_shrink_as_the_theory_says(initial):
    # Corollary 3.10: at initialization the logits of a feature-learning limit vanish like 1/sqrt(width)
    def build(width):
        model = nn.Sequential(nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, 200))
        if initial == "constant":
            for layer in model:
                nn.init.normal_(layer.weight, std=0.1)
                nn.init.zeros_(layer.bias)
        return model

    torch.manual_seed(0)
    inputs, sizes = torch.randn(64, 8), []
    for width in (64, 256, 1024):
        model = build(width)
        nn.init.zeros_(model[2].bias)
        apply_(model, build(64), build(128), initial=initial)
        hidden = model[:2](inputs).std()
        sizes.append((model(inputs).std() / hidden).item())
    assert [b / a for a, b in pairwise(sizes)] == pytest.approx([0.5, 0.5], abs=0.06)


def test_head_size_that_grows():
    transformers = pytest.importorskip("transformers")

    def build(width):
        config = transformers.LlamaConfig(
            hidden_size=width, intermediate_size=width, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, vocab_size=16,
        )  # fmt: skip
        return transformers.LlamaForCausalLM(config)

    model = apply_(build(64), build(16), attention="head_size")
    assert model.model.layers[0].self_attn.scaling == pytest.approx(8**0.5 / 32)
    with pytest.warns(UserWarning, match="head grows with width"):
        apply_(build(64), build(16))
    with pytest.raises(ValueError, match="scaling"):
        apply_(mlp(WIDTH), mlp(BASE), attention="head_size")


class TestBadInput:
    def test_second_call(self):
        model = apply_(mlp(WIDTH), mlp(BASE))
        with pytest.raises(ValueError, match="already"):
            apply_(model, mlp(BASE))
        with pytest.raises(ValueError, match="already"):
            apply_(nn.Sequential(model), nn.Sequential(mlp(BASE)))

    def test_no_width(self):
        with pytest.warns(UserWarning, match="no parameter differs in width"):
            apply_(mlp(BASE), mlp(BASE))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            apply_(mlp(BASE), mlp(BASE), mlp(WIDTH))

    def test_undeclared_readouts(self):
        def build(width):
            return nn.ModuleDict(
                {"body": nn.Linear(3, width), "one": nn.Linear(width, 4), "two": nn.Linear(width, 5)}
            )

        with pytest.raises(ValueError, match="one, two: from width to a fixed size"):
            apply_(build(64), build(16))
        with pytest.raises(ValueError, match="two: from width"):
            apply_(build(64), build(16), readout=["one"])
        apply_(build(64), build(16), readout=["one", "two"])
        with pytest.raises(ValueError, match="no linear"):
            apply_(build(64), build(16), readout=["three"])
        with pytest.raises(ValueError, match="string"):
            apply_(build(64), build(16), readout="one")

    def test_three_widths(self):
        def build(width):
            model = nn.Module()
            model.experts = nn.Parameter(torch.zeros(width, width, width))
            return model

        with pytest.raises(ValueError, match="3 width dimensions"):
            width_dims(build(8), build(4))

    def test_other_depth(self):
        with pytest.raises(ValueError, match="same depth"):
            width_dims(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 4)), nn.Sequential(nn.Linear(2, 4)))

    def test_what_is_no_width_changed(self):
        def build(width, classes):
            return nn.Sequential(nn.Linear(3, width), nn.Linear(width, classes))

        with pytest.raises(ValueError, match="no width"):
            width_dims(build(32, 5), build(8, 4), build(16, 4))

    def test_roles_without_a_base(self):
        with pytest.raises(ValueError, match="base model"):
            roles(mlp(BASE))
