"""Largest logits and entropies by blocks equal those of the explicit matrix; models are read as they run."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allometry.measure import attention_logits
from allometry.measure.attention_logits import LogitStatistics, attention_logit_statistics
from allometry.measure.attention_reader import AttentionReader
from allometry.models import GPT, GPTConfig
from allometry.models.attention import rotary


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def explicit(query: Tensor, key: Tensor, scale: float, visible: Tensor) -> tuple[float, float]:
    logits = (query @ key.transpose(-1, -2)) * scale
    weights = logits.masked_fill(~visible, -math.inf).softmax(-1)
    entropy = -(weights * weights.clamp_min(1e-300).log()).sum(-1)
    return float(logits.detach().abs().max()), float(entropy.detach().mean())


@pytest.mark.parametrize("block", [1, 3, 128])
@pytest.mark.parametrize(
    ("length", "seen", "window"), [(7, 7, None), (4, 9, None), (300, 300, None), (9, 9, 3)]
)
def test_blocks_equal_the_explicit_matrix(block: int, length: int, seen: int, window: int | None) -> None:
    query, key = 3 * random(2, 3, length, 8), 3 * random(2, 3, seen, 8, seed=1)
    at, past = torch.arange(seen - length, seen)[:, None], torch.arange(seen)
    visible = past <= at
    if window is not None:
        visible &= past > at - window
    found = attention_logit_statistics(query, key, scale=0.7, window=window, block=block)
    largest, entropy = explicit(query, key, 0.7, visible)
    assert float(found.largest) == pytest.approx(largest, rel=1e-12)
    assert float(found.entropy) == pytest.approx(entropy, rel=1e-10)


def test_batches_that_take_turns_and_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = random(5, 2, 6, 4), random(5, 2, 6, 4, seed=1)
    visible = random(5, 1, 6, 6, seed=2) > 0
    visible |= torch.eye(6, dtype=torch.bool)
    largest, entropy = explicit(query, key, 0.5, visible)
    added = torch.zeros(5, 1, 6, 6).masked_fill(~visible, torch.finfo(torch.float32).min).double()
    for limit in (1, 1 << 22):
        monkeypatch.setattr(attention_logits, "_BLOCK_NUMBERS", limit)
        for mask in (visible, added):
            found = attention_logit_statistics(query, key, is_causal=False, mask=mask, block=4)
            assert float(found.largest) == pytest.approx(largest, rel=1e-12)
            assert float(found.entropy) == pytest.approx(entropy, rel=1e-10)


def test_queries_that_see_nothing_have_no_entropy() -> None:
    query, key = random(1, 1, 3, 4), random(1, 1, 3, 4, seed=1)
    visible = torch.tensor([[True, True, False], [False, False, False], [True, True, True]])
    found = attention_logit_statistics(query, key, is_causal=False, mask=visible)
    rows = visible.any(-1)
    entropy = explicit(query[:, :, rows], key, 0.5, visible[rows])[1]
    assert float(found.entropy) == pytest.approx(entropy, rel=1e-10)


def test_limits_of_the_entropy() -> None:
    """Equal logits give the mean of ln(1) ... ln(T); enormous ones give zero, without losing digits."""
    ones = torch.ones(1, 1, 50, 4)
    found = attention_logit_statistics(ones, ones)
    assert float(found.entropy) == pytest.approx(math.lgamma(51) / 50, rel=1e-6)
    sharp = 1e4 * torch.eye(50)[None, None]
    found = attention_logit_statistics(sharp, sharp, scale=1e-3)
    assert float(found.entropy) == 0.0
    assert float(found.largest) == pytest.approx(1e5)


def test_shared_heads_of_keys_and_half_precision() -> None:
    query, key = random(2, 6, 5, 8), random(2, 2, 5, 8, seed=1)
    found = attention_logit_statistics(query, key)
    alone = attention_logit_statistics(query, key.repeat_interleave(3, 1))
    assert float(found.entropy) == float(alone.entropy)
    half = attention_logit_statistics(query.bfloat16(), key.bfloat16())
    wide = attention_logit_statistics(query.bfloat16().float(), key.bfloat16().float())
    assert half.largest.dtype == torch.float32
    assert float(half.largest) == float(wide.largest)


# -- reading models ------------------------------------------------------------------------------------


def read(
    model: nn.Module, *inputs: Tensor, **settings: object
) -> tuple[dict[str, LogitStatistics], dict[str, str]]:
    found: dict[str, LogitStatistics] = {}
    reader = AttentionReader(model, found.__setitem__, **settings)
    reader.attach()
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        reader.detach()
    return found, dict(reader.missing)


def tokens(vocabulary: int = 64) -> Tensor:
    return torch.randint(vocabulary, (3, 20), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("settings", [{}, {"qk_norm": None}, {"qk_norm": "fixed"}, {"window": 5}])
def test_our_model_equals_its_formula(settings: dict) -> None:
    model = GPT(GPTConfig(width=32, depth=2, context=20, zero_init_outputs=False, **settings)).double()
    found, missing = read(model, tokens())
    assert not missing
    x, cosine, sine = model.embedding(tokens()), model.cosine[:20], model.sine[:20]
    for layer, block in enumerate(model.blocks):
        attention = block.attention
        query, key, _ = (
            part.unflatten(-1, (attention.heads, 16)).transpose(1, 2)
            for part in F.linear(block.norm1(x), attention.qkv.weight).chunk(3, -1)
        )
        if attention.qk_norm is not None:
            query, key = (F.rms_norm(part, (16,), eps=1e-6) for part in (query, key))
            query = query * (attention.gain[:, None, None] if attention.qk_norm == "learned" else 2.0)
        query, key = (rotary(part, cosine, sine) for part in (query, key))
        visible = torch.ones(20, 20, dtype=torch.bool).tril()
        if attention.window is not None:
            visible &= ~visible.tril(-attention.window)
        largest, entropy = explicit(query, key, 0.25, visible)
        mine = found[f"blocks.{layer}.attention"]
        assert float(mine.largest) == pytest.approx(largest, rel=1e-10)
        assert float(mine.entropy) == pytest.approx(entropy, rel=1e-8)
        x = block(x, cosine, sine)


def build(family: str, implementation: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    common = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0}
    if family == "gpt2":
        config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=32, **common)
        kind = transformers.GPT2LMHeadModel
    else:
        prefix = {"llama": "Llama", "qwen3": "Qwen3", "olmo2": "Olmo2"}[family]
        more = {"head_dim": 16} if family == "qwen3" else {}
        config = getattr(transformers, f"{prefix}Config")(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, pad_token_id=0, initializer_range=0.4, **more, **common,
        )  # fmt: skip
        kind = getattr(transformers, f"{prefix}ForCausalLM")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config._attn_implementation = implementation
        return kind(config).eval().double()


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "olmo2"])
def test_transformers_models_equal_their_explicit_attention(family: str) -> None:
    """Read by projection, by the fused call, and from the weights that the model itself gives out."""
    eager, fused = build(family, "eager"), build(family, "sdpa")
    fused.load_state_dict(eager.state_dict())
    by_projection, missing = read(eager, tokens())
    by_call, none = read(fused, tokens())
    assert not missing
    assert not none
    assert by_projection.keys() == by_call.keys()
    assert len(by_call) == 2
    with torch.no_grad():
        attentions = eager(tokens(), output_attentions=True).attentions
    for (name, one), weights in zip(by_projection.items(), attentions, strict=True):
        # the second layer's input carries the rounding of eager's softmax, which is always float32
        assert float(one.largest) == pytest.approx(float(by_call[name].largest), rel=1e-6)
        assert float(one.entropy) == pytest.approx(float(by_call[name].entropy), rel=1e-6)
        own = -(weights.double() * weights.double().clamp_min(1e-300).log()).sum(-1).mean()
        assert float(one.entropy) == pytest.approx(float(own), rel=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_largest_logit_equals_the_explicit_matrix(family: str) -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    model = build(family, "sdpa")
    found, _ = read(model, tokens())
    with torch.no_grad():
        hidden = model(tokens(), output_hidden_states=True).hidden_states
        for layer, mine in enumerate(found.values()):
            if family == "gpt2":
                block = model.transformer.h[layer]
                query, key, _ = block.attn.c_attn(block.ln_1(hidden[layer])).chunk(3, -1)
                query, key = (x.unflatten(-1, (4, 8)).transpose(1, 2) for x in (query, key))
            else:
                block = model.model.layers[layer]
                x = block.input_layernorm(hidden[layer])
                query = block.self_attn.q_proj(x).unflatten(-1, (4, 8)).transpose(1, 2)
                key = block.self_attn.k_proj(x).unflatten(-1, (2, 8)).transpose(1, 2)
                cosine, sine = model.model.rotary_emb(x, torch.arange(20)[None])
                query, key = apply_rotary_pos_emb(query, key, cosine, sine)
                key = key.repeat_interleave(2, 1)
            largest = float(((query @ key.transpose(-1, -2)) / 8**0.5).abs().max())
            assert float(mine.largest) == pytest.approx(largest, rel=1e-9)


def test_a_fused_call_outside_attention_modules_is_named_by_its_module() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.inner(x)
            return F.scaled_dot_product_attention(x, x, x)

    mixer = nn.Sequential(Mixer()).double()
    x = random(2, 5, 8)
    found, missing = read(mixer, x)
    inner = mixer[0].inner(x).detach()
    largest = float((inner @ inner.transpose(1, 2)).abs().max()) / 8**0.5
    assert float(found["0"].largest) == pytest.approx(largest, rel=1e-12)
    assert not missing


def test_attention_that_cannot_be_read_is_named() -> None:
    class HomeMadeAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            share = (x @ self.mix(x).transpose(1, 2)).exp()
            return share / share.sum(-1, keepdim=True) @ x

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = HomeMadeAttention(), HomeMadeAttention()

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    found, missing = read(Model().double(), random(2, 5, 8))
    assert not found
    assert "neither q_proj and k_proj nor c_attn" in missing["used"]
    assert missing["idle"] == "it was not called"


@pytest.mark.parametrize("hide", [-torch.inf, torch.finfo(torch.float64).min, -1e9, -1e4])
@pytest.mark.parametrize("how", ["function", "method", "module", "torch"])
def test_attention_written_out_is_read_off_its_softmax(hide: float, how: str) -> None:
    softmax = {
        "function": lambda z: F.softmax(z, dim=-1), "method": lambda z: z.softmax(-1),
        "module": nn.Softmax(-1), "torch": lambda z: torch.softmax(z, 3),
    }[how]  # fmt: skip

    class CausalSelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(8, 24)

        def logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
            query, key, value = self.mix(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            return 3.0 * query @ key.mT, value

        def forward(self, x: Tensor) -> Tensor:
            z, value = self.logits(x)
            masked = z + torch.zeros(z.shape[-2:], dtype=z.dtype).masked_fill(hidden, hide)
            return (softmax(masked) @ value).transpose(1, 2).flatten(2)

    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    model, x = nn.Sequential(CausalSelfAttention()).double(), random(2, 5, 8)
    found, missing = read(model, x)
    assert not missing
    z = model[0].logits(x)[0].detach()
    assert float(found["0"].largest) == pytest.approx(float(z.masked_fill(hidden, 0).abs().max()), rel=1e-12)
    _, entropy = explicit_of(z.masked_fill(hidden, -torch.inf))
    assert float(found["0"].entropy) == pytest.approx(entropy, rel=1e-9)


def explicit_of(z: Tensor) -> tuple[float, float]:
    share = z.softmax(-1)
    return float(z.abs().max()), float(-(share * share.clamp_min(1e-300).log()).sum(-1).mean())


def test_positions_that_a_module_turns_itself_do_not_mislead() -> None:
    """GPT-J turns queries and keys between projection and product, so that projections alone mislead."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPTJConfig(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=8, n_positions=32, bos_token_id=0,
        eos_token_id=0, initializer_range=0.4, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model, given = transformers.GPTJForCausalLM(config).eval(), []

    def watched(logits: Tensor, *args: object, **settings: object) -> Tensor:
        given.append(logits[logits > -1e30].abs().max().item())
        return plain(logits, *args, **settings)

    plain = Tensor.softmax
    try:
        Tensor.softmax = watched  # what the model's own call comes to
        found, missing = read(model, tokens())
    finally:
        Tensor.softmax = plain
    assert not missing
    own = [given[i] for i in range(len(given)) if given[i] > 0]
    assert [float(one.largest) for one in found.values()] == pytest.approx(own, rel=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_padding_counts_as_the_model_counts_it(family: str) -> None:
    # in float32, for eager's softmax takes the lowest float64 for minus infinity
    eager, fused = build(family, "eager").float(), build(family, "sdpa").float()
    fused.load_state_dict(eager.state_dict())
    text = torch.ones(3, 20, dtype=torch.long)
    text[1, :7] = 0
    found = []
    for model in (eager, fused):
        told: dict[str, LogitStatistics] = {}
        reader = AttentionReader(model, told.__setitem__)
        reader.attach()
        with torch.no_grad():
            model(tokens(), attention_mask=text)
        reader.detach()
        found.append(told)
    for name, one in found[0].items():
        visible = float(found[1][name].largest)
        assert float(one.largest) == pytest.approx(visible, rel=1e-5)
        # fully hidden queries are spread evenly by one kernel and seen by none of ours
        assert float(one.entropy) == pytest.approx(float(found[1][name].entropy), rel=0.05)


def test_keys_of_earlier_calls_are_seen_where_attention_is_written_out() -> None:
    eager, fused = build("llama", "eager"), build("llama", "sdpa")
    fused.load_state_dict(eager.state_dict())
    entropies = []
    for model in (eager, fused):
        with torch.no_grad():
            cache = model(tokens()[:, :19], use_cache=True).past_key_values
        told: dict[str, LogitStatistics] = {}
        reader = AttentionReader(model, told.__setitem__)
        reader.attach()
        with torch.no_grad():
            model(tokens()[:, 19:], past_key_values=cache)
        reader.detach()
        assert not reader.missing
        entropies.append([(float(one.largest), float(one.entropy)) for one in told.values()])
    np.testing.assert_allclose(entropies[0], entropies[1], rtol=1e-5)


@pytest.mark.parametrize("mask", [None, "causal", "numbers", "heads", "padding"])
@pytest.mark.parametrize("settings", [{}, {"batch_first": True}, {"kdim": 6, "vdim": 6}, {"bias": False}])
def test_torchs_own_module_is_read_as_it_is(mask: str | None, settings: dict) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, **settings).double()
    first = settings.get("batch_first", False)
    x, y = random(3, 5, 8), random(3, 7, settings.get("kdim", 8), seed=1)
    hidden = torch.ones(5, 7, dtype=torch.bool).triu(2)
    keywords = {
        None: {}, "causal": {"attn_mask": hidden},
        "numbers": {"attn_mask": torch.zeros(5, 7).double().masked_fill(hidden, -torch.inf)},
        "heads": {"attn_mask": hidden.expand(6, 5, 7)},
        "padding": {"key_padding_mask": torch.arange(7)[None] >= torch.tensor([[4], [7], [2]])},
    }[mask]  # fmt: skip
    given = (x, y, y) if first else (x.transpose(0, 1), y.transpose(0, 1), y.transpose(0, 1))
    for training in (True, False):
        found: dict[str, LogitStatistics] = {}
        reader = AttentionReader(module.train(training), found.__setitem__)
        reader.attach()
        with torch.no_grad():
            _, weights = module(*given, average_attn_weights=False, **keywords)
        reader.detach()
        assert not reader.missing
        entropy = float(-(weights * weights.clamp_min(1e-300).log()).sum(-1).mean())
        assert float(found[""].entropy) == pytest.approx(entropy, rel=1e-9)
        wq, wk = (
            (module.q_proj_weight, module.k_proj_weight)
            if module.in_proj_weight is None
            else module.in_proj_weight.chunk(3)[:2]
        )
        bq, bk = (0, 0) if module.in_proj_bias is None else module.in_proj_bias.chunk(3)[:2]
        query, key = (
            (z @ w.T + b).unflatten(-1, (2, 4)).transpose(1, 2) for z, w, b in ((x, wq, bq), (y, wk, bk))
        )
        largest = float((query @ key.mT).detach().abs().max()) / 2
        assert float(found[""].largest) == pytest.approx(largest, rel=1e-9)


def test_torchs_module_with_keys_of_its_own_is_named() -> None:
    module = nn.MultiheadAttention(8, 2, add_zero_attn=True)
    _, missing = read(module, *[torch.randn(3, 2, 8)] * 3)
    assert "adds keys of its own" in missing[""]


def test_first_sequences_only_and_errors_leave_no_mode_behind() -> None:
    model = GPT(GPTConfig(width=32, depth=1, context=20)).double()
    few, _ = read(model, tokens(), sequences=1)
    alone, _ = read(model, tokens()[:1])
    assert float(few["blocks.0.attention"].largest) == float(alone["blocks.0.attention"].largest)
    found: dict[str, LogitStatistics] = {}
    reader = AttentionReader(model, found.__setitem__)
    reader.attach()
    with pytest.raises(ValueError, match="20 positions"):
        model(torch.zeros(1, 21, dtype=torch.long))
    reader.detach()
    F.scaled_dot_product_attention(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    assert not found
    assert not torch.overrides._get_current_function_mode_stack()


def test_bad_shapes_are_told() -> None:
    with pytest.raises(ValueError, match="share their last size"):
        attention_logit_statistics(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 3))
    with pytest.raises(ValueError, match="cannot share"):
        attention_logit_statistics(torch.zeros(1, 3, 2, 4), torch.zeros(1, 2, 2, 4))
    with pytest.raises(ValueError, match="at least 1"):
        AttentionReader(nn.Linear(2, 2), lambda name, found: None, sequences=0)
