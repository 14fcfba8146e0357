"""Pools hold what their scores say, and repetitions are what the sampler counts."""

import numpy as np
import pytest
import torch

from allometry.data import PoolBatches, PoolSampler, score_pools


def test_pools_are_cut_at_quantiles_of_the_score():
    scores = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    pools = score_pools(scores, (0.1, 0.3, 0.6))
    assert [len(pool) for pool in pools] == [100, 200, 300]
    assert scores[pools[0]].min() > scores[pools[1]].max()
    assert scores[pools[1]].min() > scores[pools[2]].max()
    lowest = score_pools(scores, (0.1,), largest_is_best=False)[0]
    assert set(lowest.tolist()) == set(scores.argsort()[:100].tolist())
    assert [pool.tolist() for pool in score_pools(torch.ones(4), (0.5, 1.0))] == [[0, 1], [2, 3]]


@pytest.mark.parametrize("weights", [None, (0.7, 0.2, 0.1), (1, 1, 1)])
def test_counted_repetitions_are_those_that_happen(weights):
    pools = [torch.arange(40), torch.arange(40, 100), torch.arange(100, 350)]
    sampler = PoolSampler(pools, 3001, weights, seed=5)
    order = torch.tensor(list(sampler))
    assert len(order) == len(sampler) == 3001
    shares = sampler.weights
    for place, pool in enumerate(pools):
        seen = torch.bincount(order, minlength=350)[pool]
        rows = sampler.epochs[sampler.epochs["pool"] == place]
        told = dict(zip(rows["times"], rows["samples"], strict=True))
        values, counts = seen.unique(return_counts=True)
        assert told == dict(zip(values.tolist(), counts.tolist(), strict=True))
        assert abs(int(seen.sum()) - shares[place] * 3001) <= 2
        assert int(seen.max() - seen.min()) <= 1  # without replacement


def test_shares_hold_all_along_and_a_longer_run_begins_alike():
    pools = [range(30), range(30, 50)]
    order = PoolSampler(pools, 200_000, (0.8, 0.2), seed=1).order
    first = np.cumsum((order < 30).numpy())
    assert np.abs(first - 0.8 * np.arange(1, 200_001)).max() <= 2
    short = PoolSampler(pools, 70_000, (0.8, 0.2), seed=1)
    assert torch.equal(short.order, order[:70_000])
    assert sum(short.drawn) == 70_000


def test_every_epoch_has_its_own_order_and_every_seed_too():
    one = PoolSampler([range(100)], 200, seed=0).order
    assert sorted(one[:100].tolist()) == sorted(one[100:].tolist()) == list(range(100))
    assert not torch.equal(one[:100], one[100:])
    assert not torch.equal(one, PoolSampler([range(100)], 200, seed=1).order)


def test_pools_of_a_union_do_not_come_in_a_fixed_pattern_of_samples():
    order = PoolSampler([range(50), range(50, 100)], 10_000, seed=0).order.reshape(100, 100)
    place = torch.stack([(row == 7).nonzero()[0, 0] for row in order])
    assert place.double().std() > 20  # sample 7 comes anywhere in an epoch


def test_batches_are_the_sampler_s_order():
    sampler = PoolSampler([range(10)], 20, seed=2)
    batches = PoolBatches(torch.arange(10.0), torch.arange(10), sampler, batch=8)
    assert torch.equal(batches.batch(1)[1], sampler.order[8:16])
    with pytest.raises(ValueError, match="beyond the 20 samples"):
        batches.batch(2)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: score_pools([1.0, float("nan")], (1.0,)), "finite"),
        (lambda: score_pools([1.0, 2.0], (0.5, 0.5)), "must rise"),
        (lambda: score_pools([1.0, 2.0], (0.1, 1.0)), "too few"),
        (lambda: PoolSampler([[]], 5), "at least one index"),
        (lambda: PoolSampler([[0, 1], [1]], 5), "in two pools"),
        (lambda: PoolSampler([[0]], 0), "at least 1"),
        (lambda: PoolSampler([[0], [1]], 5, (1.0, 0.0)), "one positive number"),
    ],
)
def test_bad_pools_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
