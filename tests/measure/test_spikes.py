"""Jumps of the loss are found, and nothing else."""

import math

import numpy as np
import pytest

from allometry.measure import spikes


def test_spikes_stand_out_of_noise_and_trend() -> None:
    generator = np.random.default_rng(0)
    steps = np.arange(400)
    losses = 2.0 + 3.0 * np.exp(-steps / 100) + 0.02 * generator.standard_normal(400)
    clean = set(spikes(losses, k=6).tolist())
    losses[[150, 300]] += 1.0
    losses[350] = math.inf
    assert set(spikes(losses, k=6).tolist()) - clean == {150, 300, 350}
    assert not clean
    assert spikes(losses, "ratio").tolist() == [350]
    assert spikes(losses, "ratio", 1.25).tolist() == [150, 300, 350]


def test_spike_rules_at_their_edge() -> None:
    """Median 10, MAD 1: 15 is not above 10 + 5 x 1, the next number is; 15 is not above 1.5 x 10."""
    past = [9.0, 10.0, 11.0] * 6
    assert spikes([*past, 15.0]).tolist() == []
    assert spikes([*past, 15.001]).tolist() == [18]
    assert spikes([*past, 15.0], "ratio").tolist() == []
    assert spikes([*past, 15.001], "ratio").tolist() == [18]
    assert spikes([5.0] * 50).tolist() == []
    assert spikes([1.0] * 5 + [100.0]).tolist() == []  # five losses are no past to judge by
    with pytest.raises(ValueError, match="rule must be"):
        spikes([1.0], "sigma")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positive"):
        spikes([1.0], k=0)
    with pytest.raises(ValueError, match="room"):
        spikes([1.0], window=5)
