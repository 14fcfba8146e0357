"""Sampling until it passes: the counts have the distribution that they should, whatever the batch."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from scipy import stats  # noqa: E402

from allometry.infer import TokenSampler, pass_until  # noqa: E402
from allometry.models import GPT, GPTConfig  # noqa: E402


def uniform(instance, n, generator):
    """Completions in [0, 1); an instance is its own pass rate."""
    return torch.rand(n, generator=generator, dtype=torch.float64).tolist()


def below(p, u):
    return u < p


@pytest.mark.parametrize("batch_size", [1, 7, 256])
@pytest.mark.parametrize("r", [1, 3])
def test_draws_to_the_r_th_pass_are_negative_binomial_whatever_the_batch(batch_size, r):
    rates = np.repeat([0.6, 0.2, 0.05], 300)
    counts = pass_until(uniform, below, rates.tolist(), r=r, batch_size=batch_size, seed=batch_size)
    assert not counts.censored.any()
    for p in (0.6, 0.2, 0.05):
        k = counts.trials[rates == p]
        law = stats.nbinom(r, p)
        cuts = np.unique(np.maximum(law.ppf([0.0, 0.2, 0.4, 0.6, 0.8]), 0))
        seen = np.histogram(k - r, np.append(cuts, 1e9))[0]
        wanted = np.diff(np.append(law.cdf(cuts - 1), 1.0))
        assert stats.chisquare(seen, 300 * wanted).pvalue > 1e-3


def test_estimates_are_those_of_the_rates():
    rates = [0.3, 0.01, 0.002]
    counts = [pass_until(uniform, below, rates, r=4, seed=seed) for seed in range(60)]
    found = np.array([one.estimate() for one in counts])
    errors = found.std(axis=0) / math.sqrt(60)
    assert (np.abs(found.mean(axis=0) - rates) < 4 * errors).all()


def test_what_reaches_the_cap_is_censored_with_its_passes():
    counts = pass_until(uniform, below, [0.0, 0.5, 0.01], r=2, max_samples=50, batch_size=64, seed=3)
    assert counts.censored.tolist()[:2] == [True, False]
    assert counts.trials[0] == 50
    assert counts.successes[0] == 0
    assert (counts.trials <= 50).all()
    assert (counts.sampled <= 50).all()
    assert (counts.censored == (counts.successes < 2)).all()


def test_every_batch_is_full_while_there_is_work():
    sizes = []

    def count(instance, n, generator):
        raise AssertionError("the batched form is used where there is one")

    def many(instances, counts, generator):
        sizes.append(sum(counts))
        return [uniform(one, n, generator) for one, n in zip(instances, counts, strict=True)]

    count.many = many
    rates = [0.5, 0.1, 0.03, 0.003, 0.0, 0.0]
    pass_until(count, below, rates, r=2, max_samples=1000, batch_size=64)
    assert set(sizes[:-1]) == {64}  # only the last, when all caps are near, may be less
    assert sum(sizes) < 2 * 1000 + 10 * 64 + 2 / 0.003 * 4


def test_the_verifier_sees_each_completion_of_an_instance_once():
    asked = []

    def verifier(instance, completion):
        asked.append((instance, completion))
        return instance == "b" and completion == 3

    def dice(instance, n, generator):
        return torch.randint(6, (n,), generator=generator).tolist()

    counts = pass_until(dice, verifier, ["a", "b"], r=5, max_samples=400)
    assert len(asked) == len(set(asked)) <= 12
    assert counts.successes.tolist() == [0, 5]


def test_completions_that_cannot_be_hashed_are_judged_too():
    counts = pass_until(lambda i, n, g: [[1]] * n, lambda i, one: one == [1], ["a"], r=3)
    assert counts.trials.tolist() == [3]


def test_a_verifier_that_fails_is_counted_and_warned_of():
    def verifier(instance, completion):
        if completion < 0.5:
            raise TimeoutError("too slow")
        return completion > 0.9

    with pytest.warns(UserWarning, match=r"failed on .*TimeoutError: too slow"):
        counts = pass_until(uniform, verifier, [0, 1], r=20, batch_size=50)
    assert counts.successes.tolist() == [20, 20]
    assert (counts.errors > 0).all()
    assert (counts.errors + counts.successes <= counts.trials).all()


def test_one_seed_one_answer():
    first, again, other = (pass_until(uniform, below, [0.02] * 5, seed=seed) for seed in (4, 4, 5))
    assert (first.trials == again.trials).all()
    assert (first.trials != other.trials).any()


def test_chance_is_warned_of():
    class Choice:
        chance = 0.25

        def __call__(self, instance, completion):
            return completion < 0.3

    with pytest.warns(UserWarning, match="random guess"):
        assert pass_until(uniform, Choice(), [0]).chance == 0.25


def test_a_model_passes_as_often_as_its_exact_probability_says():
    config = GPTConfig(width=32, depth=1, context=16, vocab_size=5, zero_init_outputs=False)
    model = GPT(config, generator=torch.Generator().manual_seed(1))
    sampler = TokenSampler(model, encode=list, decode=tuple, max_new_tokens=3)
    prompts = [(1, 2), (3,), (4, 4, 0, 1)]
    answers = {(1, 2): (0, 1, 2), (3,): (3, 3, 3), (4, 4, 0, 1): (2, 0, 4)}
    counts = pass_until(sampler, lambda one, said: said == answers[one], prompts, r=60, batch_size=512)
    exact = sampler.log_probability(prompts, [answers[one] for one in prompts]).numpy()
    assert (np.abs(counts.log_pu() - exact) < 4 * counts.se()).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"r": 0}, "r must be"),
        ({"batch_size": 0.5}, "batch_size must be"),
        ({"r": 5, "max_samples": 4}, "cannot be had"),
    ],
)
def test_what_cannot_be_asked_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        pass_until(uniform, below, [0.5], **options)


def test_truncated_decoding_is_refused_unless_allowed():
    model = GPT(GPTConfig(width=32, depth=1, context=16))
    greedy = TokenSampler(model, max_new_tokens=2, temperature=0)
    with pytest.raises(ValueError, match="exactly 0 under truncated decoding"):
        pass_until(greedy, lambda i, one: True, ["a"])
    counts = pass_until(greedy, lambda i, one: False, ["a"], max_samples=9, allow_truncated=True)
    assert counts.trials.tolist() == [9]
    with pytest.raises(ValueError, match="no instances"):
        pass_until(uniform, below, [])
