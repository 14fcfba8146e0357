"""Counts against closed forms derived by hand, for our own models and for other people's."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import flex_attention

from allometry.measure.complexity import complexity, count_parameters, flops_per_token, mfu
from allometry.models.convnet import ConvNet
from allometry.models.gpt import GPT, GPTConfig
from allometry.models.mlp import MLP


@pytest.mark.parametrize(("width", "depth", "batch"), [(8, 1, 1), (32, 3, 7)])
def test_perceptron(width, depth, batch):
    cost = complexity(MLP(20, 5, width=width, depth=depth), torch.zeros(batch, 20))
    weights = 20 * width + (depth - 1) * width**2 + 5 * width
    assert cost.macs == batch * weights
    assert cost.flops == 2 * cost.macs
    assert cost.training_flops == 6 * cost.macs
    assert cost.activations == batch * (depth * width + 5)
    assert cost.parameters.total == weights + depth * width + 5
    assert cost.table["macs"].sum() == cost.macs


def test_convolutional_network():
    width, side, batch = 8, 12, 3
    cost = complexity(ConvNet(3, 10, width=width, depth=1), torch.zeros(batch, 3, side, side))
    wide, half = 2 * width, side // 2
    macs = side**2 * 9 * (3 * width + 2 * width**2)  # the stem and the first block
    macs += half**2 * (9 * width * wide + 9 * wide**2 + width * wide)  # the second, with its shortcut
    macs += wide * 10
    assert cost.macs == batch * macs
    assert cost.activations == batch * (3 * width * side**2 + 3 * wide * half**2 + 10)
    assert cost.parameters.head == 0
    assert (
        cost.parameters.non_embedding
        == cost.parameters.total
        == sum(p.numel() for p in ConvNet(3, 10, width=width, depth=1).parameters())
    )


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(6, 4, 3, groups=2, stride=2), (2, 6, 9, 9), 2 * 4 * 16 * 9 * 3),
        (nn.Conv1d(8, 8, 5, groups=8), (1, 8, 20), 8 * 16 * 5),
        (nn.Conv2d(3, 4, 3, dilation=2), (1, 3, 9, 9), 4 * 25 * 9 * 3),
        (nn.ConvTranspose2d(3, 5, 3, stride=2), (2, 3, 4, 4), 2 * 16 * 3 * 5 * 9),
        (nn.LSTM(4, 8, batch_first=True), (2, 5, 4), 10 * (4 * 8 * 4 + 4 * 8 * 8)),
        (
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            (2, 5, 8),
            10 * (4 * 64 + 2 * 5 * 8 + 2 * 8 * 16),
        ),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_layers(layer, shape, macs, training):
    assert complexity(layer.train(training), torch.zeros(shape)).macs == macs


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("window", [None, 4])
def test_our_language_model_agrees_with_its_own_closed_form(tied, window):
    config = GPTConfig(width=48, depth=2, context=16, tie_embeddings=tied, window=window)
    model, tokens = GPT(config), torch.zeros(3, 16, dtype=torch.long)
    cost = complexity(model, tokens)
    assert cost.macs == 3 * 16 * config.macs_per_token()
    assert vars(cost.parameters) == config.parameters()
    assert flops_per_token(model, tokens) == 6 * config.macs_per_token()
    assert flops_per_token(model, tokens, training=False) == 2 * config.macs_per_token()
    with torch.device("meta"):
        on_meta = GPT(config)
    assert complexity(on_meta, tokens.to("meta")).macs == complexity(on_meta, tokens).macs == cost.macs


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_gpt2(implementation):
    transformers = pytest.importorskip("transformers")
    width, depth, vocabulary, length, batch = 64, 2, 100, 32, 3
    config = transformers.GPT2Config(
        n_embd=width, n_layer=depth, n_head=4, vocab_size=vocabulary, n_positions=length,
        attn_implementation=implementation, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    cost = complexity(
        transformers.GPT2LMHeadModel(config), {"input_ids": torch.zeros(batch, length, dtype=torch.long)}
    )
    # 12 W^2 in matrices, scores and mixtures over all positions, and the head
    a_token = depth * (12 * width**2 + 2 * length * width) + vocabulary * width
    assert cost.macs == batch * length * a_token
    assert cost.parameters.head == vocabulary * width
    assert cost.parameters.non_embedding == depth * (12 * width**2 + 13 * width) + 2 * width
    assert cost.parameters.total == cost.parameters.non_embedding + (vocabulary + length) * width


def test_llama_with_shared_keys():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=100,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    length = 24
    cost = complexity(model, torch.zeros(1, length, dtype=torch.long))
    a_token = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96 + 2 * length * 64) + 100 * 64
    assert cost.macs == length * a_token
    assert cost.parameters.non_embedding == 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96 + 2 * 64) + 64
    assert cost.parameters.total - cost.parameters.non_embedding == 2 * 100 * 64


def test_attention_counts_alike_by_hand_and_fused():
    def by_hand(q, k, v):
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v

    class Attend(nn.Module):
        def __init__(self, how):
            super().__init__()
            self.how = how

        def forward(self, q, k, v):
            return self.how(q, k, v)

    q, k, v = torch.zeros(2, 4, 6, 8), torch.zeros(2, 4, 10, 8), torch.zeros(2, 4, 10, 12)
    expected = 2 * 4 * 6 * 10 * (8 + 12)
    for how in (by_hand, F.scaled_dot_product_attention, lambda q, k, v: torch.einsum(
        "bhts,bhsd->bhtd", torch.einsum("bhtd,bhsd->bhts", q, k), v
    )):  # fmt: skip
        assert complexity(Attend(how), (q, k, v)).macs == expected


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_mixture_of_experts_counts_its_experts(kind, device):
    """Every token meets two of four experts; torch's own counter sees none, and on shapes alone fails."""
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=40, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    with torch.device(device):
        model = transformers.MixtralForCausalLM(config).to(kind)
    length = 8
    a_token = 4 * 16 * 16 + 2 * length * 16 + 16 * 4 + 2 * 3 * 16 * 24 + 40 * 16
    assert complexity(model, torch.zeros(3, length, dtype=torch.long)).macs == 3 * length * a_token


@pytest.mark.parametrize(
    ("call", "shapes", "macs"),
    [
        (torch.addbmm, [(4, 6), (3, 4, 5), (3, 5, 6)], 3 * 4 * 5 * 6),
        (F.bilinear, [(7, 4), (7, 5), (6, 4, 5)], 7 * 6 * 4 * 5),
        (lambda a, w: torch.einsum("bij,oij->bo", a, w), [(7, 4, 5), (6, 4, 5)], 7 * 6 * 4 * 5),
        (flex_attention, [(2, 2, 128, 8)] * 3, 4 * 128 * 128 * 16),
    ],
)
def test_functions(call, shapes, macs):
    class Call(nn.Module):
        def forward(self, *tensors):
            return call(*tensors)

    assert complexity(Call(), tuple(torch.zeros(shape) for shape in shapes)).macs == macs


def test_what_is_out_of_sight_is_said():
    @torch.library.custom_op("allometry_test::product", mutates_args=())
    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a @ b

    class Call(nn.Module):
        def forward(self, x):
            return product(x, x) @ x

    with pytest.warns(UserWarning, match="allometry_test::product may multiply is out of sight"):
        assert complexity(Call(), torch.zeros(4, 4)).macs == 64


def test_wrappers_are_looked_through_and_what_cannot_be_counted_is_refused():
    layer, x = nn.Linear(8, 4), torch.zeros(3, 8)
    for wrapped in (nn.DataParallel(layer), torch.compile(layer, backend="eager")):
        assert complexity(wrapped, x).macs == 96
    with pytest.raises(ValueError, match="scripted"):
        complexity(torch.jit.script(layer), x)
    with pytest.raises(ValueError, match="run the model on one batch"):
        complexity(nn.LazyLinear(4), x)
    with pytest.raises(TypeError, match=r"nn\.Module; got function"):
        complexity(lambda one: one, x)


def test_a_pass_through_numpy_runs_once_for_real():
    class Through(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x):
            return self.layer(torch.from_numpy(x.numpy() + 1))

    assert complexity(Through(), torch.zeros(3, 4)).macs == 24


def test_the_model_is_left_as_it_was():
    model = ConvNet(3, 10, width=8)
    before = {name: (id(t), t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    state = torch.get_rng_state()
    complexity(model, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert id(tensor) == before[name][0]
        assert torch.equal(tensor, before[name][1])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


class Choosy(nn.Module):
    """Looks at values, as routers do."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.layer = nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 6)

    def forward(self, x):
        x = self.drop(self.norm(x))
        return self.layer(x) if x.sum().item() < 1e9 else x


def test_a_model_that_looks_at_values_runs_once_for_real():
    model, state = Choosy(), torch.get_rng_state()
    assert complexity(model, torch.ones(3, 4)).macs == 72
    assert not model.norm.running_mean.any()
    assert model.norm.num_batches_tracked == 0
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="meta"):
        complexity(model.to("meta"), torch.ones(3, 4))


def test_a_router_sends_each_example_to_one_expert():
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(4, 6) for _ in range(3))

        def forward(self, x):
            choice, out = x[:, :3].argmax(dim=1), x.new_zeros(len(x), 6)
            for index, expert in enumerate(self.experts):
                (rows,) = torch.where(choice == index)
                out[rows] = expert(x[rows])
            return out

    assert complexity(Routed(), torch.randn(10, 4)).macs == 10 * 24


def test_which_parameters_are_the_head():
    body = nn.Sequential(nn.Embedding(10, 10), nn.Linear(10, 10, bias=False), nn.Linear(10, 12, bias=False))
    assert count_parameters(body).head == 0
    assert count_parameters(body, head="1").head == 100
    assert count_parameters(body, head="1").non_embedding == 120
    with pytest.raises(ValueError, match="no module"):
        count_parameters(body, head="lm_head")
    tied = nn.Sequential(nn.Embedding(10, 10), nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))
    tied[1].weight = tied[0].weight
    assert vars(count_parameters(tied)) == {"total": 200, "non_embedding": 100, "head": 100}


def test_positions_count_as_embeddings():
    model = nn.Module()
    model.pos_embed, model.gain, model.position = (nn.Parameter(torch.zeros(1, 7)) for _ in range(3))
    assert count_parameters(model).non_embedding == 14


def test_utilization():
    assert mfu(6e15, 2.0, 1e15, devices=4) == 0.75
    with pytest.raises(ValueError, match="seconds"):
        mfu(1.0, 0.0, 1.0)
    with pytest.raises(TypeError, match="list"):
        complexity(nn.Linear(2, 2), [torch.zeros(2)])
    with pytest.raises(ValueError, match="at least one token"):
        flops_per_token(nn.Linear(2, 2), torch.zeros(0))


def test_function_and_file_of_one_name():
    program = (
        "import allometry.measure.complexity\nfrom allometry import measure\n"
        "assert callable(measure.complexity) and callable(measure.count_parameters)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
