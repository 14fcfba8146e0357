"""Corruption comes in the amount that was asked for, and in no other way."""

import pytest
import torch

from allometry.data import add_noise, colored, flip_labels


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("mode", ["uniform", "pair"])
def test_labels_flip_as_the_transition_matrix_says(mode):
    labels = torch.arange(5).repeat(20_000)
    flipped = flip_labels(labels, 0.3, mode=mode, generator=generator())
    counts = torch.zeros(5, 5, dtype=torch.float64).index_put_(
        (labels, flipped.labels), torch.ones(len(labels), dtype=torch.float64), accumulate=True
    )
    assert (counts / 20_000 - flipped.transition).abs().max() < 0.013  # four standard errors
    assert flipped.transition.diagonal().tolist() == pytest.approx([0.7] * 5)
    assert flipped.transition.sum(1).tolist() == pytest.approx([1.0] * 5)


def test_the_posterior_of_flipped_labels_is_that_of_their_frequencies():
    clean = torch.tensor([[0.9, 0.1, 0.0]])
    found = flip_labels(torch.tensor([0, 1, 2]), 0.2, generator=generator()).posterior(clean)
    assert found.tolist()[0] == pytest.approx([0.8 * 0.9 + 0.1 * 0.1, 0.8 * 0.1 + 0.1 * 0.9, 0.1])


def test_a_higher_rate_flips_the_same_labels_and_more():
    labels = torch.arange(10).repeat(100)
    few, many = (flip_labels(labels, rate, generator=generator(3)).labels for rate in (0.1, 0.4))
    flipped = few != labels
    assert (many[flipped] == few[flipped]).all()
    assert int((many != labels).sum()) > 3 * int(flipped.sum())
    assert torch.equal(flip_labels(labels, 0.0, generator=generator()).labels, labels)


def test_noise_and_lost_pixels_have_their_size():
    images = torch.full((400, 2, 10, 10), 3.0)
    bad = add_noise(images, noise=0.5, dropped=0.2, generator=generator())
    lost = bad == 0
    assert (lost[:, 0] == lost[:, 1]).all()  # in all channels
    assert lost.float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert bad[~lost].std().item() == pytest.approx(0.5, rel=0.02)
    assert bad[~lost].mean().item() == pytest.approx(3.0, abs=0.01)
    twice = add_noise(images, noise=1.0, generator=generator()) - images
    once = add_noise(images, noise=0.5, generator=generator()) - images
    assert torch.allclose(twice, 2 * once, atol=1e-5)


def test_colour_agrees_with_the_label_as_often_as_it_should():
    n = 40_000
    images, labels = torch.rand(n, 1, 4, 6) + 0.1, torch.arange(n) % 10
    flips = (0.1, 0.2, 0.9)
    for place, (one, flip) in enumerate(
        zip(colored(images, labels, flips, generator=generator()), flips, strict=True)
    ):
        own = labels[place::3]
        assert torch.equal(one.clean, (own < 5).long())
        right = (one.labels.long() == one.clean).double().mean().item()
        agree = (one.colors == one.labels.long()).double().mean().item()
        assert right == pytest.approx(0.75, abs=0.015)  # four standard errors
        assert agree == pytest.approx(1 - flip, abs=0.015)
        shown = images[place::3, 0, ::2, ::2]
        chosen = one.images[torch.arange(len(own)), one.colors]
        assert torch.equal(chosen, shown)
        assert one.images.sum(1).equal(shown)  # the other channel is empty


def tiny(channels, flip):
    return colored(torch.zeros(2, channels, 4, 4), torch.arange(2), (flip,), generator=generator())


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: flip_labels(torch.arange(3), 1.5, generator=generator()), "rate is a probability"),
        (lambda: flip_labels(torch.arange(3), 0.5, mode="odd", generator=generator()), "mode must be"),
        (lambda: flip_labels(torch.zeros(3), 0.5, generator=generator()), "labels must be classes"),
        (lambda: flip_labels(torch.arange(3), 0.5, classes=2, generator=generator()), "too few"),
        (lambda: add_noise(torch.zeros(1, 1, 2, 2), noise=-1.0, generator=generator()), "at least 0"),
        (lambda: tiny(3, 0.1), "images must be"),
        (lambda: tiny(1, 2.0), "must be probabilities"),
    ],
)
def test_bad_amounts_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
