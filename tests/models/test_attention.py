"""Rotary positions are relative, attention is a masked softmax, and a cache changes no number."""

import math

import pytest
import torch

from allometry.models.attention import KVCache, attention, rotary, rotation_table


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def exact_table(positions, head_size, base=10_000.0):
    """The table in float64 from the definition: angles position / base^(2i / D), the first sines negative."""
    angle = torch.tensor(
        [
            [p / base ** (2 * i / head_size) for i in range(head_size // 2)]
            for p in range(positions)
        ],
        dtype=torch.float64,
    )  # fmt: skip
    return torch.cat((angle.cos(), angle.cos()), -1), torch.cat((-angle.sin(), angle.sin()), -1)


def by_hand(query, key, value, window=None):
    """One dot product at a time, in Python's own floats."""
    batch, heads, length, size = query.shape
    seen = key.shape[2]
    out = torch.zeros_like(query)
    for b in range(batch):
        for h in range(heads):
            for t in range(length):
                at = seen - length + t
                first = 0 if window is None else max(0, at - window + 1)
                logits = [
                    float(query[b, h, t] @ key[b, h, s]) / math.sqrt(size) for s in range(first, at + 1)
                ]
                weights = [math.exp(logit - max(logits)) for logit in logits]
                for s, weight in zip(range(first, at + 1), weights, strict=True):
                    out[b, h, t] += weight / sum(weights) * value[b, h, s]
    return out


@pytest.mark.parametrize(("head_size", "base"), [(8, 10_000.0), (16, 500_000.0), (64, 10_000.0)])
def test_the_table_is_the_definition_rounded_once(head_size, base):
    cosine, sine = rotation_table(300, head_size, base)
    exact_cosine, exact_sine = exact_table(300, head_size, base)
    assert cosine.dtype == sine.dtype == torch.float32
    assert (cosine - exact_cosine).abs().max() < 2**-24 * 1.01
    assert (sine - exact_sine).abs().max() < 2**-24 * 1.01


def test_dot_products_depend_on_the_distance_alone():
    query, key = normal(16), normal(16, seed=1)
    cosine, sine = exact_table(200, 16)

    def product(at, other):
        turned_query = rotary(query[None], cosine[at : at + 1], sine[at : at + 1])
        return float(turned_query @ rotary(key[None], cosine[other : other + 1], sine[other : other + 1]).T)

    for distance in (0, 1, 7, 60):
        products = [product(p + distance, p) for p in (0, 3, 50, 139)]
        assert max(products) - min(products) < 1e-12
    assert abs(product(10, 9) - product(9, 10)) > 1e-3  # and it tells before from behind


def test_turning_keeps_lengths_and_position_zero_turns_nothing():
    x = normal(2, 3, 50, 16)
    turned = rotary(x, *exact_table(50, 16))
    assert torch.equal(turned[:, :, 0], x[:, :, 0])
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-14)


def test_turns_add_up():
    """Turned by p and then by q is turned by p + q, so the inverse is the turn by the negative angle."""
    x = normal(5, 12)
    cosine, sine = exact_table(40, 12)
    twice = rotary(rotary(x, cosine[11], sine[11]), cosine[23], sine[23])
    assert torch.allclose(twice, rotary(x, cosine[34], sine[34]), atol=1e-13)
    back = rotary(rotary(x, cosine[11], sine[11]), cosine[11], -sine[11])
    assert torch.allclose(back, x, atol=1e-14)


def test_rotary_agrees_with_transformers():
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=1,
        intermediate_size=64, vocab_size=32, max_position_embeddings=128,
    )  # fmt: skip
    query, key = (
        normal(2, 4, 100, 16, dtype=torch.float32),
        normal(2, 4, 100, 16, seed=1, dtype=torch.float32),
    )
    cos, sin = LlamaRotaryEmbedding(config)(query, torch.arange(100)[None])
    theirs = apply_rotary_pos_emb(query, key, cos, sin)
    table = rotation_table(100, 16)
    # their angles are float32 products, off by up to 100 * 2^-24 = 6e-6; ours come from float64
    assert torch.allclose(rotary(query, *table), theirs[0], atol=5e-5)
    assert torch.allclose(rotary(key, *table), theirs[1], atol=5e-5)
    their_table = cos[0], torch.cat((-sin[0, :, :8], sin[0, :, 8:]), dim=-1)
    assert torch.allclose(rotary(query, *their_table), theirs[0], atol=1e-6)
    assert torch.allclose(rotary(key, *their_table), theirs[1], atol=1e-6)


def test_odd_heads_are_refused():
    with pytest.raises(ValueError, match="even, got 7"):
        rotation_table(4, 7)


@pytest.mark.parametrize("window", [None, 1, 2, 5, 9, 100])
@pytest.mark.parametrize("length", [1, 4, 9])
def test_attention_is_a_masked_softmax(window, length):
    query, key, value = normal(2, 3, length, 4), normal(2, 3, 9, 4, seed=1), normal(2, 3, 9, 4, seed=2)
    found = attention(query, key, value, window=window)
    assert (found - by_hand(query, key, value, window)).abs().max() < 1e-12


def test_a_window_of_one_sees_itself_alone():
    query, key, value = (normal(1, 2, 6, 4, seed=seed) for seed in range(3))
    assert torch.allclose(attention(query, key, value, window=1), value, atol=1e-15)


def test_equal_keys_give_the_running_mean():
    query, value = normal(1, 1, 8, 4), normal(1, 1, 8, 4, seed=1)
    mean = value.cumsum(2) / torch.arange(1, 9, dtype=torch.float64)[:, None]
    assert torch.allclose(attention(query, torch.ones_like(query), value), mean, atol=1e-14)


@pytest.mark.parametrize("window", [None, 3])
def test_gradients_flow_only_from_what_was_seen(window):
    query, key, value = (normal(1, 1, 7, 4, seed=seed).requires_grad_() for seed in range(3))
    attention(query, key, value, window=window)[0, 0, 4].sum().backward()
    moved = (value.grad[0, 0].abs().sum(-1) > 0).tolist()
    first = 0 if window is None else 2
    assert moved == [first <= s <= 4 for s in range(7)]
    assert key.grad[0, 0, 5:].abs().max() == 0


@pytest.mark.parametrize("window", [0, -3])
def test_a_window_of_nothing_is_refused(window):
    x = normal(1, 1, 4, 2)
    with pytest.raises(ValueError, match=f"at least 1 position.*{window}"):
        attention(x, x, x, window=window)


def test_more_queries_than_keys_are_refused():
    with pytest.raises(ValueError, match="4 queries cannot look back on 3 keys"):
        attention(normal(1, 1, 4, 2), normal(1, 1, 3, 2), normal(1, 1, 3, 2))


def test_a_cache_gives_back_what_was_put_in():
    cache = KVCache(2, 3, 2, 10, 4, dtype=torch.float64)
    keys, values = normal(2, 3, 2, 10, 4), normal(2, 3, 2, 10, 4, seed=1)
    at = 0
    for size in (3, 1, 4, 2):
        for layer in range(2):
            got_keys, got_values = cache.append(
                layer, keys[layer, :, :, at : at + size], values[layer, :, :, at : at + size]
            )
            assert torch.equal(got_keys, keys[layer, :, :, : at + size])
            assert torch.equal(got_values, values[layer, :, :, : at + size])
        cache.advance(size)
        at += size
    assert cache.length == cache.context == 10
    with pytest.raises(ValueError, match="holds 10 positions and was asked for 11"):
        cache.append(0, keys[0, :, :, :1], values[0, :, :, :1])


@pytest.mark.parametrize("shape", [(1, 2, 1, 4), (3, 1, 1, 4)])
def test_a_cache_for_another_batch_is_refused(shape):
    """Broadcast into the cache, one sequence would silently become three."""
    cache = KVCache(1, 3, 2, 10, 4)
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        cache.append(0, torch.zeros(shape), torch.zeros(shape))
