"""The reference GPT: its counts are exact, it looks only back, its cache, norms and dials do as they say."""

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from allometry.measure.complexity import complexity, count_parameters
from allometry.models.gpt import GPT, GPTConfig

SMALL = GPTConfig(width=32, depth=2, head_size=8, vocab_size=61, context=24)
VARIANTS = {
    "default": SMALL,
    "bias": dataclasses.replace(SMALL, bias=True),
    "tied": dataclasses.replace(SMALL, tie_embeddings=True),
    "tied with bias": dataclasses.replace(SMALL, tie_embeddings=True, bias=True),
    "plain queries": dataclasses.replace(SMALL, qk_norm=None),
    "fixed gain": dataclasses.replace(SMALL, qk_norm="fixed"),
    "gelu": dataclasses.replace(SMALL, activation="gelu"),
    "window": dataclasses.replace(SMALL, window=5),
    "wide head": dataclasses.replace(SMALL, head_size=32),
    "thin": dataclasses.replace(SMALL, mlp_ratio=1, depth=5, width=8),
    "scaled": dataclasses.replace(SMALL, residual_scale=0.5),
}
each_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)


def awake(config, dtype=torch.float64, seed=0):
    """A model in which every weight matters: nothing at zero, biases and gains drawn."""
    model = GPT(dataclasses.replace(config, zero_init_outputs=False)).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return model


def read(batch, length, vocab=61, seed=1):
    return torch.randint(vocab, (batch, length), generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- counts


@each_variant
def test_counts_in_closed_form_are_the_real_ones(config):
    model = GPT(config)
    measured = count_parameters(model)
    assert config.parameters() == dataclasses.asdict(measured)
    assert config.parameters()["total"] == sum(p.numel() for p in model.parameters())


@each_variant
def test_multiply_accumulates_in_closed_form_are_the_counted_ones(config):
    tokens = torch.zeros(3, config.context, dtype=torch.long)
    assert complexity(GPT(config), tokens).macs == 3 * config.context * config.macs_per_token()


def test_counts_need_no_memory():
    config = GPTConfig.of(48)
    with torch.device("meta"):
        model = GPT(config)
    assert sum(p.numel() for p in model.parameters()) == config.parameters()["total"] > 5e9


@pytest.mark.parametrize("depth", [1, 2, 5, 12])
@pytest.mark.parametrize("head_size", [16, 64, 128])
def test_one_dial_gives_whole_heads_near_64_a_layer(depth, head_size):
    config = GPTConfig.of(depth, head_size=head_size)
    assert config.depth == depth
    assert config.heads * config.head_size == config.width
    assert abs(config.width - 64 * depth) <= head_size / 2


# ---------------------------------------------------------------- the start


@pytest.mark.parametrize("width", [16, 32, 48, 128])
@pytest.mark.parametrize("bias", [False, True])
def test_the_first_loss_is_that_of_knowing_nothing(width, bias):
    model = GPT(GPTConfig(width=width, depth=2, context=16, bias=bias))
    tokens = read(4, 17, 256)
    logits = model(tokens[:, :-1])
    assert torch.equal(logits, torch.zeros_like(logits))
    loss = F.cross_entropy(logits.flatten(0, 1).double(), tokens[:, 1:].flatten())
    assert abs(loss.item() - math.log(256)) < 1e-14


def test_the_residual_stream_starts_as_the_embedding():
    model = GPT(SMALL)
    streams = []
    model.norm.register_forward_pre_hook(lambda module, args: streams.append(args[0]))
    tokens = read(2, 20)
    model(tokens)
    assert torch.equal(streams[0], model.embedding(tokens))


def test_the_global_random_state_is_never_touched():
    before = torch.get_rng_state()
    model = GPT(SMALL)
    model.generate(read(2, 3), 30)
    with torch.device("meta"):
        GPT(SMALL)
    copy.deepcopy(model)(read(1, 4))
    assert torch.equal(torch.get_rng_state(), before)


def test_equal_generators_give_equal_models():
    def start(seed):
        return GPT(SMALL, generator=torch.Generator().manual_seed(seed)).state_dict()

    one, same, other = start(3), start(3), start(4)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["embedding.weight"], other["embedding.weight"])
    torch.manual_seed(99)  # and the global seed has no say
    again = start(3)
    assert all(torch.equal(one[name], again[name]) for name in one)


def test_wider_precision_holds_the_same_start():
    torch.set_default_dtype(torch.float64)
    try:
        wide = GPT(SMALL).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    for name, value in GPT(SMALL).state_dict().items():
        assert wide[name].dtype == torch.float64
        assert torch.equal(wide[name].float(), value)


@pytest.mark.parametrize("tied", [False, True])
def test_initial_scales_are_the_stated_ones(tied):
    config = GPTConfig(width=256, depth=1, zero_init_outputs=False, tie_embeddings=tied, embedding_std=0.3)
    model = GPT(config)
    block = model.blocks[0]
    assert model.embedding.weight.std().item() == pytest.approx(0.3, rel=0.02)
    for layer in (block.attention.qkv, block.attention.out, block.feed_forward.up, block.feed_forward.down):
        assert layer.weight.std().item() == pytest.approx(layer.in_features**-0.5, rel=0.02)
    assert (model.head.weight is model.embedding.weight) == tied
    if not tied:
        assert model.head.weight.std().item() == pytest.approx(1 / 16, rel=0.02)


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_born_on_meta_becomes_the_same_model(tied):
    """Rotary tables stand in no state dict, and ``to_empty`` cuts ties: both must come back."""
    config = dataclasses.replace(SMALL, tie_embeddings=tied)
    generator = torch.Generator().manual_seed(5)
    before = generator.get_state()
    with torch.device("meta"):
        model = GPT(config, generator=generator)
    assert {p.device.type for p in (*model.parameters(), *model.buffers())} == {"meta"}
    assert torch.equal(generator.get_state(), before)
    original = awake(config, torch.float32)
    model.to_empty(device="cpu").load_state_dict(original.state_dict())
    assert (model.head.weight is model.embedding.weight) == tied
    assert torch.equal(model(read(2, 24)), original(read(2, 24)))


# ---------------------------------------------------------------- looking back


@each_variant
def test_a_later_token_changes_no_earlier_logit(config):
    model, tokens = awake(config), read(2, 24)
    plain = model(tokens)
    for at in (1, 11, 23):
        changed = tokens.clone()
        changed[:, at] = (changed[:, at] + 7) % 61
        now = model(changed)
        assert torch.equal(now[:, :at], plain[:, :at])
        assert (now[:, at] - plain[:, at]).abs().amin(0).max() > 1e-6


def test_a_window_forgets():
    """L layers of window w see L(w - 1) positions back, and not one more."""
    model, tokens = awake(dataclasses.replace(SMALL, window=5)), read(1, 24)
    changed = tokens.clone()
    changed[:, 3] = (changed[:, 3] + 7) % 61
    moved = (model(changed) != model(tokens)).any(-1)[0].tolist()
    assert moved == [3 <= t <= 3 + 2 * 4 for t in range(24)]


@pytest.mark.parametrize("chunks", [[1] * 24, [24], [5, 1, 1, 10, 7], [23, 1], [2, 22]], ids=str)
@pytest.mark.parametrize("variant", ["default", "window", "bias", "plain queries", "fixed gain"])
def test_reading_in_pieces_is_reading_at_once(variant, chunks):
    model, tokens = awake(VARIANTS[variant]), read(3, 24)
    cache = model.new_cache(3)
    with torch.no_grad():
        pieces = torch.cat([model(piece, cache) for piece in tokens.split(chunks, dim=1)], dim=1)
        assert (pieces - model(tokens)).abs().max() < 1e-12
    assert cache.length == 24


def test_too_much_at_once_is_refused():
    model = GPT(SMALL)
    with pytest.raises(ValueError, match="24 positions at once and was given 25"):
        model(read(1, 25))
    cache = model.new_cache(1)
    model(read(1, 20), cache)
    with pytest.raises(ValueError, match="was given 26"):
        model(read(1, 6), cache)


def test_logits_against_a_transformer_written_with_loops_of_torch_alone():
    """Norm, attention, feed-forward and head once more, from the formulas, with no shared code."""
    config = dataclasses.replace(SMALL, bias=True, residual_scale=0.7)
    model, tokens = awake(config), read(1, 13)
    state = model.state_dict()

    def norm(x, gain=None):
        x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6)
        return x if gain is None else x * gain

    def turn(x):  # as complex numbers (first half real, second half imaginary)
        frequency = 10_000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
        angle = torch.arange(x.shape[0], dtype=torch.float64)[:, None] * frequency
        z = torch.complex(x[:, :4], x[:, 4:]) * torch.exp(1j * angle)
        return torch.cat((z.real, z.imag), -1)

    x = state["embedding.weight"][tokens[0]]
    for layer in range(2):
        own = {k.removeprefix(f"blocks.{layer}."): v for k, v in state.items() if f"blocks.{layer}." in k}
        y = norm(x, own["norm1.weight"])
        q, k, v = (y @ own["attention.qkv.weight"].T + own["attention.qkv.bias"]).split(32, -1)
        heads = []
        for head in range(4):
            part = slice(8 * head, 8 * head + 8)
            logits = own["attention.gain"][head] * turn(norm(q[:, part])) @ turn(norm(k[:, part])).T / 8**0.5
            logits = logits.masked_fill(torch.ones(13, 13).triu(1).bool(), -math.inf)
            heads.append(logits.softmax(-1) @ v[:, part])
        out = torch.cat(heads, -1) @ own["attention.out.weight"].T + own["attention.out.bias"]
        x = x + 0.7 * out
        y = norm(x, own["norm2.weight"]) @ own["feed_forward.up.weight"].T + own["feed_forward.up.bias"]
        y = torch.where(y > 0, y * y, 0.0) @ own["feed_forward.down.weight"].T + own["feed_forward.down.bias"]
        x = x + 0.7 * y
    expected = norm(x, state["norm.weight"]) @ state["head.weight"].T + state["head.bias"]
    # the model's angles are rounded to float32 once
    assert torch.allclose(model(tokens)[0], expected, atol=2e-6, rtol=0)


# ---------------------------------------------------------------- normalised queries and keys


def test_logits_do_not_see_the_size_of_query_weights():
    model, tokens = awake(SMALL), read(2, 24)
    plain = model(tokens)
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight[:32] *= 1000.0  # queries
            block.attention.qkv.weight[32:64] *= 0.1  # keys
    # exact but for the norms' epsilon of 1e-6
    assert (model(tokens) - plain).abs().max() < 1e-3
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight[32:64] *= 1e4
    large = model(tokens)
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight[:64] *= 64.0
    assert (model(tokens) - large).abs().max() < 1e-8


def test_without_norms_the_size_matters():
    model, tokens = awake(dataclasses.replace(SMALL, qk_norm=None)), read(2, 24)
    plain = model(tokens)
    with torch.no_grad():
        model.blocks[0].attention.qkv.weight[:32] *= 10.0
    assert (model(tokens) - plain).abs().max() > 1e-2


@pytest.mark.parametrize(("norm", "gain"), [("learned", 2.0), ("fixed", 3.0)])
def test_no_logit_passes_gain_times_root_of_the_head_size(norm, gain, monkeypatch):
    from allometry.models import gpt

    seen = []

    def spy(query, key, value, *, window=None):
        seen.append(query @ key.mT / math.sqrt(query.shape[-1]))
        return value

    monkeypatch.setattr(gpt, "attention", spy)
    config = dataclasses.replace(SMALL, qk_norm=norm, qk_gain=gain, zero_init_outputs=False)
    model = GPT(config).double()
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight[:64] *= 1e6
            block.attention.qkv.weight[32:64] = block.attention.qkv.weight[:32]  # each key its own query
    model(read(2, 24))
    logits = torch.stack(seen)
    bound = gain * math.sqrt(8)
    assert logits.abs().max() <= bound * (1 + 1e-6)  # tables of cosines are rounded to float32
    assert torch.allclose(
        logits.diagonal(dim1=-2, dim2=-1), torch.tensor(bound, dtype=torch.float64), rtol=1e-6
    )


# ---------------------------------------------------------------- dials


def test_residual_scale_multiplies_every_branch():
    scaled = awake(dataclasses.replace(SMALL, residual_scale=0.25))
    plain = awake(SMALL)
    plain.load_state_dict(scaled.state_dict())
    with torch.no_grad():
        for block in plain.blocks:
            block.attention.out.weight *= 0.25
            block.feed_forward.down.weight *= 0.25
    assert (plain(read(2, 24)) - scaled(read(2, 24))).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 40}, "width 40 is not a multiple of head_size 16"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"width": 15, "head_size": 15}, "even for rotary positions, got 15"),
        ({"activation": "relu"}, "'relu2' or 'gelu', got 'relu'"),
        ({"qk_norm": "l2"}, "got 'l2'"),
        ({"window": 0}, "window must be at least 1"),
    ],
)
def test_what_cannot_be_built_is_refused_at_the_door(settings, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**settings)


# ---------------------------------------------------------------- precision


@each_variant
def test_bfloat16_autocast_stays_close(config):
    model, tokens = awake(config, torch.float32), read(2, 24)
    plain = model(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(tokens)
    assert low.dtype == torch.bfloat16
    assert (low.float() - plain).norm() < 0.03 * plain.norm()


@each_variant
def test_gradients_of_float32_are_those_of_float64(config):
    gradients = []
    for dtype in (torch.float32, torch.float64):
        model, tokens = awake(config, dtype), read(2, 25)
        F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
        assert all(p.grad is not None for p in model.parameters())
        gradients.append(torch.cat([p.grad.flatten().double() for p in model.parameters()]))
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[1].norm()


def test_a_derivative_agrees_with_a_difference():
    model, tokens = awake(SMALL), read(2, 20)

    def loss():
        return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    loss().backward()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            direction = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            direction /= direction.norm()
            weight.add_(direction, alpha=1e-5)
            above = loss()
            weight.sub_(direction, alpha=2e-5)
            below = loss()
            weight.add_(direction, alpha=1e-5)
            assert (weight.grad * direction).sum().item() == pytest.approx(
                float(above - below) / 2e-5, abs=1e-7
            )


# ---------------------------------------------------------------- generation


def greedy_by_rereading(model, tokens, new):
    for _ in range(new):
        tokens = torch.cat((tokens, model(tokens)[:, -1].argmax(-1, keepdim=True)), 1)
    return tokens


@each_variant
def test_greedy_with_a_cache_is_greedy_without(config):
    model, prompt = awake(config), read(3, 4)
    expected = greedy_by_rereading(model, prompt, 20)
    assert torch.equal(model.generate(prompt, 20, temperature=0), expected)
    assert len(expected.unique()) > 3


def test_generation_goes_on_beyond_the_context():
    model = awake(SMALL)
    prompt = read(2, 40)  # longer than the context of 24
    tokens, held = prompt, prompt[:, -24:]
    for _ in range(50):  # once the context is full the last half of it is read again
        if held.shape[1] > 24:
            held = tokens[:, -12:]
        best = model(held)[:, -1].argmax(-1, keepdim=True)
        tokens, held = torch.cat((tokens, best), 1), torch.cat((held, best), 1)
    assert torch.equal(model.generate(prompt, 50, temperature=0), tokens)


def test_a_context_of_one_still_generates():
    model = awake(dataclasses.replace(SMALL, context=1))
    assert torch.equal(
        model.generate(read(2, 1), 5, temperature=0)[:, 2:3],
        model(model.generate(read(2, 1), 5, temperature=0)[:, 1:2])[:, -1].argmax(-1, keepdim=True),
    )


def test_one_candidate_is_greedy_and_cold_is_nearly_so():
    model, prompt = awake(SMALL), read(3, 4)
    greedy = model.generate(prompt, 15, temperature=0)
    assert torch.equal(model.generate(prompt, 15, top_k=1), greedy)
    assert torch.equal(model.generate(prompt, 15, temperature=1e-4), greedy)


def test_samples_follow_the_model():
    model = awake(SMALL, torch.float32)
    prompt = read(1, 6).expand(20_000, 6)
    generator = torch.Generator().manual_seed(0)
    for temperature, top_k in ((1.0, None), (0.5, None), (2.0, 7)):
        logits = model(prompt[:1])[0, -1] / temperature
        if top_k is not None:
            logits[logits < logits.topk(top_k).values[-1]] = -math.inf
        expected = logits.softmax(-1) * 20_000
        drawn = model.generate(prompt, 1, temperature=temperature, top_k=top_k, generator=generator)[:, -1]
        counts = drawn.bincount(minlength=61).double()
        assert counts[expected == 0].sum() == 0
        large = expected > 5
        statistic = ((counts - expected)[large] ** 2 / expected[large]).sum().item()
        degrees = int(large.sum())
        assert statistic < degrees + 6 * math.sqrt(2 * degrees)


def test_equal_generators_sample_equal_texts():
    model, prompt = awake(SMALL), read(2, 4)

    def sample(seed):
        return model.generate(prompt, 30, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))
    assert torch.equal(sample(1)[:, :4], prompt)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1.0}, "temperature must not be negative, got -1.0"),
        ({"top_k": 0}, "at least one token, got 0"),
        ({"new_tokens": -1}, "new_tokens must not be negative, got -1"),
        ({"prompt": torch.zeros(3, dtype=torch.long)}, r"got \(3,\)"),
        ({"prompt": torch.zeros(3, 0, dtype=torch.long)}, r"got \(3, 0\)"),
    ],
)
def test_generation_refuses_nonsense(arguments, message):
    with pytest.raises(ValueError, match=message):
        GPT(SMALL).generate(**({"prompt": read(1, 2), "new_tokens": 3} | arguments))
