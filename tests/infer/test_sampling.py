"""Samplers draw from the model's own distribution, whatever shares their batch."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from scipy import stats  # noqa: E402
from torch import nn  # noqa: E402

from allometry.infer import HFSampler, TokenSampler, draw_many  # noqa: E402
from allometry.models import GPT, GPTConfig  # noqa: E402


@pytest.fixture(scope="module")
def model():
    """A random model over a small alphabet, sharp enough that its tokens are not uniform."""
    config = GPTConfig(width=32, depth=2, context=40, vocab_size=7, zero_init_outputs=False)
    model = GPT(config, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        model.head.weight.mul_(2.0)
    return model


def sampler_of(model, **settings):
    settings = {"max_new_tokens": 3, **settings}
    return TokenSampler(model, encode=list, decode=tuple, **settings)


class Uncached(nn.Module):
    """The same model without what tells of a cache."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, tokens):
        return self.inner(tokens)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_prompts_of_all_lengths_in_one_batch_are_continued_as_alone(model):
    prompts = [[1], [2, 3, 4], [5, 1, 2, 6, 3], [4, 4], [0] * 12]
    greedy = sampler_of(model, max_new_tokens=6, temperature=0)
    together = greedy.many(prompts, [2, 1, 3, 0, 1], generator())
    for prompt, found, count in zip(prompts, together, [2, 1, 3, 0, 1], strict=True):
        alone = model.generate(torch.tensor([prompt]), 6, temperature=0)[0, len(prompt) :].tolist()
        assert found == [tuple(alone)] * count


def test_a_model_without_a_cache_says_the_same(model):
    prompts = [[1, 5], [2, 3, 4]]
    cached = sampler_of(model, temperature=0).many(prompts, [1, 1], generator())
    assert sampler_of(Uncached(model), temperature=0).many(prompts, [1, 1], generator()) == cached


@pytest.mark.parametrize("wrap", [lambda m: m, Uncached], ids=["cached", "recomputed"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_frequencies_are_those_of_the_model(model, wrap, temperature):
    """Two tokens after each of two prompts, of different length, against the 49 exact probabilities."""
    sampler = sampler_of(wrap(model), max_new_tokens=2, temperature=temperature)
    prompts, n = [[1, 2, 3], [6]], 6000
    drawn = sampler.many(prompts, [n, n], generator(1))
    answers = [(a, b) for a in range(7) for b in range(7)]
    for prompt, found in zip(prompts, drawn, strict=True):
        log_p = sampler.log_probability([prompt] * 49, [list(one) for one in answers])
        expected = log_p.exp().numpy()
        assert expected.sum() == pytest.approx(1.0, abs=1e-5)
        counts = np.array([found.count(one) for one in answers])
        common = expected * n >= 5
        observed = np.append(counts[common], counts[~common].sum())
        wanted = np.append(expected[common], expected[~common].sum())
        assert stats.chisquare(observed, n * wanted / wanted.sum()).pvalue > 1e-3


def test_a_stop_ends_a_completion_and_is_left_out(model):
    plain = sampler_of(model, max_new_tokens=12)
    found = sampler_of(model, max_new_tokens=12, stop=(3,)).many([[3, 3], [1]], [400, 400], generator())
    lengths = np.array([len(one) for part in found for one in part])
    assert all(3 not in one for part in found for one in part)
    assert lengths.min() < 3
    assert lengths.max() == 12
    # the share that stops at once is the probability of the token
    for prompt, part in zip([[3, 3], [1]], found, strict=True):
        p = math.exp(plain.log_probability([prompt], [[3]])[0])
        at_once = sum(len(one) == 0 for one in part)
        assert stats.binomtest(at_once, 400, p).pvalue > 1e-3


def test_a_stop_of_two_tokens_must_lie_within_the_completion(model):
    found = sampler_of(model, max_new_tokens=12, stop=(3, 3)).many([[3]], [300], generator())[0]
    assert any(one[:1] == (3,) for one in found)  # not ended by the prompt's last token
    assert not any(one[i : i + 2] == (3, 3) for one in found for i in range(len(one)))


def test_one_seed_gives_one_answer_and_the_global_state_is_left_alone(model):
    sampler = sampler_of(model)
    before = torch.random.get_rng_state()
    assert sampler([1], 5, generator(7)) == sampler([1], 5, generator(7))
    assert sampler([1], 50, generator(7)) != sampler([1], 50, generator(8))
    assert torch.equal(before, torch.random.get_rng_state())


def test_bytes_are_returned_as_they_were_sampled():
    model = GPT(GPTConfig(width=32, depth=1, context=32))  # uniform over all bytes at its start
    found = TokenSampler(model, max_new_tokens=8)("é", 20, generator())
    assert all(isinstance(one, bytes) and len(one) == 8 for one in found)
    assert any(byte > 127 for one in found for byte in one)


def test_what_cannot_be_sampled_is_refused(model):
    with pytest.raises(ValueError, match="no token"):
        sampler_of(model)([], 1, generator())
    with pytest.raises(ValueError, match="context of 40"):
        sampler_of(model, max_new_tokens=39)([1, 2], 1, generator())
    with pytest.raises(ValueError, match="temperature"):
        sampler_of(model, temperature=-1)
    assert sampler_of(model, temperature=0).truncated
    assert not sampler_of(model).truncated


def test_a_plain_function_is_a_sampler():
    assert draw_many(lambda one, n, generator: one * n, ["a", "b"], [2, 0], generator()) == ["aa", ""]


@pytest.fixture(scope="module")
def hub():
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", *"abcdefgh"])}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>"
    )
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=10, n_embd=16, n_layer=2, n_head=2, n_positions=32, eos_token_id=1, bos_token_id=1,
        initializer_range=0.5,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval(), tokenizer


def test_transformers_models_with_shared_prompts_continue_as_generate_does(hub):
    model, tokenizer = hub
    sampler = HFSampler(model, tokenizer, max_new_tokens=5, do_sample=False)
    found = sampler.many(["abc", "d", "hgfedc"], [2, 1, 1], generator())
    for prompt, part in zip(["abc", "d", "hgfedc"], found, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        made = model.generate(**ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
        text = tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert set(part) == {text}


def test_transformers_models_are_sampled_as_they_say(hub):
    model, tokenizer = hub
    sampler = HFSampler(model, tokenizer, max_new_tokens=1)
    before = torch.random.get_rng_state()
    found = sampler.many(["ab", "hgfe"], [3000, 3000], generator(2))
    assert torch.equal(before, torch.random.get_rng_state())
    for prompt, part in zip(["ab", "hgfe"], found, strict=True):
        p = sampler.log_probability([prompt] * 8, list("abcdefgh")).exp().numpy()
        counts = np.array([sum(one == letter for one in part) for letter in "abcdefgh"])
        rest = np.append(counts, 3000 - counts.sum())
        assert stats.chisquare(rest, 3000 * np.append(p, 1 - p.sum())).pvalue > 1e-3
    assert sampler("ab", 6, generator(5)) == sampler("ab", 6, generator(5))


def test_what_cuts_the_distribution_is_told(hub):
    model, tokenizer = hub
    assert not HFSampler(model, tokenizer).truncated
    assert HFSampler(model, tokenizer, top_p=0.9).truncated
    assert HFSampler(model, tokenizer, do_sample=False).truncated
