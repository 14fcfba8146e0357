"""Normalised heads bound attention logits and make attention blind to the size of its projections."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from allometry.measure.attention_reader import AttentionReader
from allometry.models import GPT, GPTConfig
from allometry.models.qk_norm import NormalizedHeads, add_qk_norm_


def gpt(**settings: object) -> GPT:
    config = GPTConfig(width=32, depth=2, context=20, vocab_size=64, zero_init_outputs=False, **settings)
    return GPT(config)


def hub(family: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    common = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family == "gpt2":
            config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=32, **common)
            return transformers.GPT2LMHeadModel(config).eval()
        config = transformers.LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, **common,
        )  # fmt: skip
        return transformers.LlamaForCausalLM(config).eval()


MODELS = {
    "gpt": lambda: gpt(qk_norm=None),
    "gpt2": lambda: hub("gpt2"),
    "llama": lambda: hub("llama"),
}


def tokens() -> Tensor:
    return torch.randint(64, (3, 20), generator=torch.Generator().manual_seed(3))


def logits(model: nn.Module) -> Tensor:
    output = model(tokens())
    return getattr(output, "logits", output)


def projections(model: nn.Module) -> list[NormalizedHeads]:
    return [module for module in model.modules() if isinstance(module, NormalizedHeads)]


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("family", MODELS)
def test_logits_are_bounded_whatever_the_projections_grow_to(family: str, norm: str) -> None:
    model = MODELS[family]()
    assert add_qk_norm_(model, norm) is model
    size = 16 if family == "gpt" else 8
    scale_q, scale_k = 1.7, 2.3
    own_switch = family == "gpt" and norm == "rmsnorm"
    with torch.no_grad():
        if own_switch:
            scale_k = 1.0
            for block in model.blocks:
                block.attention.gain.fill_(scale_q)
                block.attention.qkv.weight.mul_(100.0)
        for heads in projections(model):
            next(heads.projection.parameters()).mul_(100.0)
            norms = [module for module in heads.norms if not isinstance(module, nn.Identity)]
            for module in norms:
                module.weight.fill_(scale_q)
            if len(norms) == 2:
                norms[1].weight.fill_(scale_k)
        if family == "llama":
            scale_k = scale_q
    found: dict[str, float] = {}
    reader = AttentionReader(
        model, lambda name, statistics: found.__setitem__(name, float(statistics.largest))
    )
    reader.attach()
    with torch.no_grad():
        logits(model)
    bound = math.sqrt(size) * scale_q * scale_k
    assert len(found) == 2
    assert all(
        0.3 * bound < largest <= bound * (1 + 1e-5) for largest in found.values()
    )  # and nearly reached


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("family", MODELS)
def test_the_size_of_queries_does_not_matter(family: str, norm: str) -> None:
    model = add_qk_norm_(MODELS[family](), norm).double()
    before = logits(model)
    with torch.no_grad():
        for module in model.modules():
            if family == "gpt" and hasattr(module, "qkv"):
                inner = module.qkv.projection if norm == "layernorm" else module.qkv
                inner.weight[:32].mul_(7.0)
            elif hasattr(module, "c_attn"):
                module.c_attn.projection.weight[:, :32].mul_(7.0)
                module.c_attn.projection.bias[:32].mul_(7.0)
            elif hasattr(module, "q_proj"):
                module.q_proj.projection.weight.mul_(7.0)
    assert torch.allclose(logits(model), before, rtol=0, atol=1e-4)  # ε = 1e-6 beside the smallest of queries
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    assert not torch.allclose(logits(model), before, rtol=0, atol=1e-3)


@pytest.mark.parametrize("family", MODELS)
def test_attention_equals_its_formula(family: str) -> None:
    """Queries and keys have mean 0 and variance 1 over each head; values are as projected."""
    model = add_qk_norm_(MODELS[family]())
    heads = projections(model)[0]
    x = torch.randn(4, 5, 32, generator=torch.Generator().manual_seed(0))
    inside, outside = heads.projection(x), heads(x)
    parts = len(heads.norms)
    for index, (plain, normed) in enumerate(
        zip(inside.chunk(parts, -1), outside.chunk(parts, -1), strict=True)
    ):
        if index == 2:
            assert torch.equal(plain, normed)
        else:
            by_head = plain.unflatten(-1, (-1, heads.head_size))
            centred = by_head - by_head.mean(-1, keepdim=True)
            expected = centred / (by_head.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
            assert torch.allclose(normed, expected.flatten(-2), atol=1e-4)


def test_our_own_switch_is_the_model_built_with_it() -> None:
    changed = add_qk_norm_(gpt(qk_norm=None), "rmsnorm")
    built = gpt(qk_norm="learned", qk_gain=1.0)
    assert changed.config == built.config
    assert changed.state_dict().keys() == built.state_dict().keys()
    built.load_state_dict(changed.state_dict())
    assert torch.equal(logits(changed), logits(built))
    assert changed.config.parameters()["total"] == sum(weight.numel() for weight in changed.parameters())


@pytest.mark.parametrize("family", MODELS)
def test_gradients_reach_the_new_scales_and_types_follow(family: str) -> None:
    model = add_qk_norm_(MODELS[family]().double())
    logits(model).square().mean().backward()
    for heads in projections(model):
        for module in heads.norms:
            if not isinstance(module, nn.Identity):
                assert module.weight.dtype == torch.float64
                assert module.weight.grad.abs().sum() > 0


class HandMade(nn.Module):
    """Attention that names and cuts its projections as nobody else does."""

    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part(x).unflatten(-1, (4, 8)).transpose(1, 2) for part in (self.wq, self.wk, self.wv)
        )
        return ((query @ key.mT / 8**0.5).softmax(-1) @ value).transpose(1, 2).flatten(2)


class NanoAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.n_head = nn.Linear(32, 96), 4

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (4, 8)).transpose(1, 2) for part in self.c_attn(x).chunk(3, -1)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return mixed.transpose(1, 2).flatten(2)


def hub_of(family: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    size = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48}
    if family == "bert":
        return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=64, **size))
    if family == "distilbert":
        config = transformers.DistilBertConfig(vocab_size=64, dim=32, hidden_dim=48, n_layers=2, n_heads=4)
        return transformers.DistilBertForMaskedLM(config)
    if family == "t5":
        config = transformers.T5Config(
            vocab_size=64, d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=8, is_encoder_decoder=False,
            use_cache=False,
        )  # fmt: skip
        return transformers.T5EncoderModel(config)
    config = transformers.Phi3Config(vocab_size=64, pad_token_id=0, **size)
    return transformers.Phi3ForCausalLM(config)


@pytest.mark.parametrize(
    ("make", "settings", "count"),
    [
        (HandMade, {"projections": ("wq", "wk"), "head_size": 8}, 1), (NanoAttention, {}, 1),
        (lambda: hub_of("bert"), {}, 2), (lambda: hub_of("distilbert"), {}, 2), (lambda: hub_of("t5"), {}, 2),
    ],
)  # fmt: skip
def test_attention_of_other_names_is_normalised_too(make: Callable, settings: dict, count: int) -> None:
    torch.manual_seed(0)
    model = add_qk_norm_(make(), **settings).eval()
    names = projections(model)
    assert len(names) in (count, 2 * count)
    with torch.no_grad():
        for heads in names:
            next(heads.projection.parameters()).mul_(100.0)
    found: dict[str, float] = {}
    reader = AttentionReader(
        model, lambda name, statistics: found.__setitem__(name, float(statistics.largest))
    )
    reader.attach()
    with torch.no_grad():
        model(tokens() if hasattr(model, "config") else torch.randn(3, 20, 32))
    reader.detach()
    if make is HandMade:  # no class name to be known by, and no kernel
        found[""] = 0.0
        query, key = (heads(torch.randn(3, 20, 32)).unflatten(-1, (4, 8)) for heads in names)
        found[""] = float((query.transpose(1, 2) @ key.transpose(1, 2).mT).abs().max()) / 8**0.5
    # T5 has no 1 / root of the head's size, and adds a bias of relative positions
    bound = 8.0 + 3.0 if "T5" in type(model).__name__ else 8**0.5
    assert len(found) == count
    assert all(largest <= bound * 1.001 for largest in found.values())
    with pytest.raises(ValueError, match="already"):
        add_qk_norm_(model, **settings)


def test_projections_that_mix_the_heads_are_left_to_their_owner() -> None:
    with pytest.raises(ValueError, match="name its projections="):
        add_qk_norm_(hub_of("phi3"))


def test_what_cannot_be_normalised_is_told() -> None:
    with pytest.raises(ValueError, match="normalised already"):
        add_qk_norm_(gpt())
    with pytest.raises(ValueError, match="normalised already"):
        add_qk_norm_(add_qk_norm_(gpt(qk_norm=None)))
    with pytest.raises(ValueError, match="no module with q_proj"):
        add_qk_norm_(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no module with wq and wk"):
        add_qk_norm_(nn.Linear(2, 2), projections=("wq", "wk"))
    with pytest.raises(ValueError, match="got 'wq'"):
        add_qk_norm_(nn.Linear(2, 2), projections="wq")
    with pytest.raises(ValueError, match="heads of 5"):
        add_qk_norm_(HandMade(), projections=("wq", "wk"), head_size=5)
    with pytest.raises(ValueError, match="'layernorm' or 'rmsnorm', got 'batchnorm'"):
        add_qk_norm_(gpt(qk_norm=None), "batchnorm")  # type: ignore[arg-type]
