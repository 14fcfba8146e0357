"""Losses of language models: means that do not depend on how they are taken, and a model that learns."""

import math

import pytest
import torch
from torch import nn

from allometry.models.gpt import GPT, GPTConfig
from allometry.train.language import bits_per_byte, evaluate, next_token_loss, train_language_model

TINY = GPTConfig(width=32, depth=2, context=32)


def awake(config=TINY):
    model = GPT(config)
    with torch.no_grad():
        model.head.weight.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(1))
    return model


def windows(count, length=32, seed=0):
    tokens = torch.randint(256, (count, length + 1), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


def test_the_loss_is_the_mean_negative_log_probability():
    model, (inputs, targets) = awake().double(), windows(3)
    probabilities = model(inputs).softmax(-1)
    picked = probabilities.gather(-1, targets[..., None])
    assert next_token_loss(model, inputs, targets).item() == pytest.approx(
        -picked.log().mean().item(), rel=1e-12
    )


def test_a_transformers_model_gives_the_loss_that_it_reports_itself():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, num_attention_heads=2, num_hidden_layers=1, intermediate_size=32, vocab_size=256,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config).eval()
    tokens = windows(2)[0]
    theirs = model(tokens, labels=tokens).loss  # it shifts by itself
    ours = next_token_loss(model, tokens[:, :-1], tokens[:, 1:])
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert evaluate(model, (tokens[:, :-1], tokens[:, 1:])).item() == pytest.approx(theirs.item(), rel=1e-5)


def test_half_precision_logits_give_a_single_precision_loss():
    model, (inputs, targets) = awake().to(torch.bfloat16), windows(4)
    loss = next_token_loss(model, inputs, targets)
    assert loss.dtype == torch.float32
    exact = nn.functional.cross_entropy(model(inputs).double().flatten(0, 1), targets.flatten())
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)  # bfloat16 would be off by up to 4e-3


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 10, 11, 64])
def test_evaluation_is_a_plain_mean_over_windows(batch):
    """Also where the last batch is smaller than the others."""
    model, (inputs, targets) = awake().double(), windows(11)
    each = [next_token_loss(model, x[None], y[None]).item() for x, y in zip(inputs, targets, strict=True)]
    found = evaluate(model, (inputs, targets), batch=batch)
    assert found.shape == ()
    assert found.item() == pytest.approx(math.fsum(each) / 11, rel=1e-12)


def test_evaluation_leaves_no_trace():
    """Dropout is off while it looks, modes come back, nothing is drawn and no gradient is left."""
    model = nn.Sequential(nn.Embedding(256, 8), nn.Dropout(0.5), nn.Linear(8, 256)).train()
    model[0].eval()
    before = torch.get_rng_state()
    first, second = evaluate(model, windows(5)), evaluate(model, windows(5))
    assert first == second
    assert [module.training for module in model] == [False, True, True]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())
    assert not first.requires_grad


def test_nothing_to_evaluate_is_refused():
    with pytest.raises(ValueError, match="at least one window"):
        evaluate(awake(), windows(0))
    with pytest.raises(ValueError, match="a batch of one are needed, got 2 and 0"):
        evaluate(awake(), windows(2), batch=0)


def test_bits_per_byte():
    """A uniform guess among 256 bytes costs 8 bits; a token of four bytes at four times the nats no more."""
    assert bits_per_byte(math.log(256)) == pytest.approx(8.0, rel=1e-15)
    assert bits_per_byte(4 * math.log(256), 4.0) == pytest.approx(8.0, rel=1e-15)
    assert bits_per_byte(math.log(2)) == pytest.approx(1.0, rel=1e-15)


# ---------------------------------------------------------------- training


@pytest.fixture(scope="module")
def corpus():
    from allometry.data import Corpus

    generator = torch.Generator().manual_seed(0)
    words = ["one fish", "two fish", "red fish", "blue fish", "old fish", "new fish"]
    lines = [words[i] for i in torch.randint(6, (6000,), generator=generator).tolist()]
    return Corpus([("fish.txt", "\n".join(lines))])


def train(corpus, **settings):
    wanted = {"tokens": 40 * 8 * 32, "warmup": 5, "validation_windows": 40, **settings}
    return train_language_model(TINY, corpus, **wanted)


def test_a_small_model_learns_a_small_language(corpus):
    """Six words at random, about nine bytes each: no model can do better than ln 6 nats a word."""
    model, log = train(corpus, tokens=[40 * 8 * 32, 120 * 8 * 32], log_every=1)
    assert log.status == "done"
    assert log.steps[0]["loss"] == pytest.approx(math.log(256), rel=1e-6)
    short, long = (record["loss"] for record in log.horizons)
    floor = math.log(6) / 9.2
    assert floor < long < short < 2.5
    assert long < 0.5
    assert [record["tokens"] for record in log.horizons] == [40 * 256, 120 * 256]
    assert log.meter["flops"] == log.meter["tokens"] * 6 * TINY.macs_per_token()
    from allometry.data import validation_windows

    held_out = validation_windows(corpus.tokens("validation"), 32, 40)
    assert evaluate(model, held_out).item() == long


def test_a_seed_is_a_run(corpus):
    first, again, other = (train(corpus, seed=seed) for seed in (1, 1, 2))
    assert first[1].steps == again[1].steps
    assert all(torch.equal(p, q) for p, q in zip(first[0].parameters(), again[0].parameters(), strict=True))
    assert first[1].steps != other[1].steps
    assert not torch.equal(first[0].embedding.weight, other[0].embedding.weight)


def test_the_callers_optimizer_sees_the_new_model(corpus):
    seen = []

    def make(model):
        seen.append(model)
        return torch.optim.SGD(model.parameters(), lr=0.0)

    model, log = train(corpus, make_optimizer=make, log_every=1)
    assert seen == [model]
    assert all(row["loss"] == pytest.approx(math.log(256), rel=1e-6) for row in log.steps)


def test_resuming_a_language_model_is_not_having_stopped(corpus, tmp_path):
    from allometry.train.checkpoint import Checkpointer

    horizons = [20 * 256, 40 * 256]
    model, log = train(corpus, tokens=horizons)
    left = iter(range(27))
    stopped = train(
        corpus,
        tokens=horizons,
        checkpointer=Checkpointer(tmp_path),
        should_stop=lambda: next(left, None) is None,
    )
    assert stopped[1].status == "stopped"
    resumed, again = train(corpus, tokens=horizons, checkpointer=Checkpointer(tmp_path))
    assert (again.steps, again.horizons) == (log.steps, log.horizons)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), resumed.parameters(), strict=True))
