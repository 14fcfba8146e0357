"""Augmented images are the same images, moved."""

import pytest
import torch

from allometry.data.augment import Augment, AugmentedBatches


def test_every_shift_is_a_window_of_the_padded_image_and_all_occur():
    image = torch.arange(1.0, 13.0).reshape(1, 1, 3, 4)
    moved = Augment(shift=1)(image.expand(2000, 1, 3, 4), torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))[0, 0]
    windows = torch.stack([padded[y : y + 3, x : x + 4] for y in range(3) for x in range(3)])
    equal = (moved[:, 0, None] == windows).all(-1).all(-1)
    assert (equal.sum(1) == 1).all()
    assert equal.sum(0).min() > 2000 / 9 * 0.75  # nine shifts, equally likely


def test_half_of_the_images_are_mirrored():
    images = torch.rand(1000, 2, 3, 5)
    moved = Augment(flip=True)(images, torch.Generator().manual_seed(1))
    same = (moved == images).flatten(1).all(1)
    mirrored = (moved == images.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert abs(int(mirrored.sum()) - 500) < 50


def test_noise_has_its_size_and_nothing_is_changed_without_it():
    images = torch.zeros(100, 1, 10, 10)
    assert Augment(noise=0.3)(images, torch.Generator().manual_seed(0)).std().item() == pytest.approx(
        0.3, rel=0.03
    )
    assert Augment()(images, torch.Generator()) is images


def test_a_step_is_the_same_again_and_another_step_another():
    class Same:
        def batch(self, step):
            return torch.arange(160.0).reshape(10, 1, 4, 4), torch.zeros(10)

    source = AugmentedBatches(Same(), Augment(shift=2), seed=3)
    assert torch.equal(source.batch(5)[0], source.batch(5)[0])
    assert not torch.equal(source.batch(5)[0], source.batch(6)[0])
    with pytest.raises(ValueError, match="at least 0"):
        Augment(shift=-1)
