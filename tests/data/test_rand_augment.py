"""RandAugment's operations beside Pillow's, and what is drawn."""

import numpy as np
import pytest
import torch

from allometry.data import AugmentedBatches, ImageBatches, RandAugment, digits, rand_augment

pillow = pytest.importorskip("PIL.Image")
enhance = pytest.importorskip("PIL.ImageEnhance")
operations = pytest.importorskip("PIL.ImageOps")


def _images(count=6, channels=3, side=20):
    """Bytes, some channels narrow so that stretching them does something."""
    generator = torch.Generator().manual_seed(0)
    found = torch.randint(30, 200, (count, channels, side, side), generator=generator)
    found[0, 0] = 77  # a flat channel
    return found.float() / 255


def _by_pillow(x, call):
    kind = "L" if x.shape[1] == 1 else "RGB"
    found = []
    for one in (x * 255).round().byte():
        array = one[0].numpy() if kind == "L" else one.permute(1, 2, 0).numpy()
        out = torch.from_numpy(np.asarray(call(pillow.fromarray(array, kind))).copy())
        found.append(out[None] if kind == "L" else out.permute(2, 0, 1))
    return torch.stack(found)


CASES = {
    "_auto_contrast": lambda image, share: operations.autocontrast(image),
    "_equalize": lambda image, share: operations.equalize(image),
    "_invert": lambda image, share: operations.invert(image),
    "_posterize": lambda image, share: operations.posterize(image, int(4 * share)),
    "_solarize": lambda image, share: operations.solarize(image, int(256 * share)),
    "_colour": lambda image, share: enhance.Color(image).enhance(1.8 * share + 0.1),
    "_contrast": lambda image, share: enhance.Contrast(image).enhance(1.8 * share + 0.1),
    "_brightness": lambda image, share: enhance.Brightness(image).enhance(1.8 * share + 0.1),
    "_sharpness": lambda image, share: enhance.Sharpness(image).enhance(1.8 * share + 0.1),
    "_shear_across": lambda image, share: image.transform(
        image.size, 0, (1, 0.3 * share, -0.3 * share * image.size[1] / 2, 0, 1, 0),
        fillcolor=128 if image.mode == "L" else (128,) * 3,
    ),
    "_move_across": lambda image, share: image.transform(
        image.size, 0, (1, 0, round(share * image.size[0] * 100 / 224), 0, 1, 0),
        fillcolor=128 if image.mode == "L" else (128,) * 3,
    ),
    "_rotate": lambda image, share: image.rotate(
        30 * share, fillcolor=128 if image.mode == "L" else (128,) * 3
    ),
}  # fmt: skip


@pytest.mark.parametrize("share", [0.3, 1.0, 1.5])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_operations_are_pillows(name, channels, share):
    """To two of 255, since Pillow rounds in between; where pixels move, ties may be read from a neighbour."""
    x = _images(channels=channels)
    ours = getattr(rand_augment, name)(x, share, torch.ones(len(x)), torch.zeros(len(x), 2))
    theirs = _by_pillow(x, lambda image: CASES[name](image, share)).float()
    apart = (255 * ours - theirs).abs() > 2
    assert apart.float().mean() <= (0.05 if name in ("_rotate", "_shear_across") else 0.0)


def test_a_hole_has_its_size_and_dark_values_are_lifted():
    x = torch.zeros(1, 1, 28, 28)
    hole = rand_augment._hole(x, 1.0, torch.ones(1), torch.full((1, 2), 0.5))
    assert (hole > 0).sum() == (2 * int(28 * 40 / 224)) ** 2
    lifted = rand_augment._solarize_add(torch.tensor([[[[0.1, 0.9]]]]), 1.0, torch.ones(1), torch.zeros(1, 2))
    assert lifted.flatten().tolist() == pytest.approx([0.1 + 110 / 255, 0.9])


def test_a_shear_down_is_one_across_of_the_mirrored_image():
    x = _images()
    sign = torch.ones(len(x))
    down = rand_augment._shear_down(x, 0.7, sign, None)
    assert torch.equal(down.mT, rand_augment._shear_across(x.mT, 0.7, sign, None))
    moved = rand_augment._move_down(x, 0.7, sign, None)
    assert torch.equal(moved.mT, rand_augment._move_across(x.mT, 0.7, sign, None))


def test_images_stay_images_and_one_seed_is_one_batch():
    x, augment = _images(200, side=14), RandAugment(2, 15)
    first, again, other = (augment(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(x, _images(200, side=14))
    changed = (first - x).abs().flatten(1).amax(1) > 0.02
    assert 0.8 < changed.float().mean() < 1.0  # a few meet operations that leave them alone


def test_it_augments_batches():
    source = AugmentedBatches(ImageBatches(*digits(), batch=16, seed=0), RandAugment(), seed=0)
    assert torch.equal(source.batch(3)[0], source.batch(3)[0])


def test_what_is_no_image_is_refused():
    with pytest.raises(ValueError, match="a layer or more"):
        RandAugment(0)
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="1 or 3"):
        RandAugment()(torch.zeros(2, 5, 8, 8), generator)
    with pytest.raises(ValueError, match="Normalise after"):
        RandAugment()(torch.full((2, 1, 8, 8), -1.0), generator)
