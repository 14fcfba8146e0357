"""A stream depends on its seed and name and on nothing else."""

import hashlib

import torch

from allometry.train.seeds import Seeds


def draws(seeds, name, count=4096):
    return torch.rand(count, generator=seeds.generator(name), dtype=torch.float64)


def test_equal_seeds_and_names_are_equal_streams_whatever_was_drawn_between():
    seeds = Seeds(7)
    first = draws(seeds, "data")
    torch.rand(100)
    draws(seeds, "init")
    assert torch.equal(draws(seeds, "data"), first)
    assert torch.equal(draws(Seeds(7), "data"), first)


def test_numbers_are_a_digest_and_so_the_same_in_every_process():
    """Python's own ``hash`` of text is not; half of the first eight bytes of a SHA-256 is."""
    assert Seeds(7).integer("data") == int(hashlib.sha256(b"7/data").hexdigest()[:16], 16) // 2


def test_streams_are_unlike_each_other():
    """Ten thousand names and seeds: no number twice, and no correlation beyond chance between neighbours."""
    numbers = {Seeds(root).integer(name) for root in range(100) for name in map(str, range(100))}
    assert len(numbers) == 10_000
    assert all(0 <= number < 2**63 for number in numbers)
    streams = torch.stack([draws(Seeds(root), name) for root in range(6) for name in ("init", "data", "x")])
    correlation = torch.corrcoef(streams) - torch.eye(len(streams), dtype=torch.float64)
    assert correlation.abs().max() < 5 / 4096**0.5


def test_a_child_is_a_family_of_its_own():
    parent = Seeds(3)
    child = parent.child("replica 1")
    assert child == Seeds(3).child("replica 1") != parent.child("replica 2")
    assert child.integer("data") != parent.integer("data")


def test_the_global_state_is_never_touched():
    before = torch.get_rng_state()
    draws(Seeds(1).child("a"), "b")
    assert torch.equal(torch.get_rng_state(), before)
