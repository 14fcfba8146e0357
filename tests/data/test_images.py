"""Images are the published ones, pooling keeps their means, and a batch is a function of its step."""

import gzip

import pytest
import torch

from allometry.data import images
from allometry.data.images import ImageBatches, digits, fashion_mnist


@pytest.fixture(scope="module")
def clothes():
    """Fashion-MNIST, where it is installed."""
    try:
        return fashion_mnist("train")
    except FileNotFoundError as error:
        pytest.skip(str(error)[:80])


def test_digits_are_those_of_scikit_learn():
    found = digits()
    assert found.images.shape == (1797, 1, 8, 8)
    assert (found.images.min(), found.images.max()) == (0, 1)
    assert found.labels[:10].tolist() == list(range(10))
    assert found.images.mean() == pytest.approx(4.884165 / 16, rel=1e-6)  # as scikit-learn documents them


@pytest.mark.parametrize("size", [1, 2, 4, 7])
def test_pooling_keeps_the_mean_where_areas_are_equal(size):
    small = digits(size=size, pad=2).images
    assert small.shape[-1] == size + 4
    assert small[:, :, :2].abs().max() == 0
    if 8 % size == 0:
        inside = small[:, :, 2:-2, 2:-2]
        torch.testing.assert_close(inside.mean((1, 2, 3)), digits().images.mean((1, 2, 3)))


def test_classes_are_counted_anew():
    every, some = digits(), digits().of([7, 2])
    assert len(some.labels) == sum((every.labels == 7) | (every.labels == 2))
    torch.testing.assert_close(some.images[some.labels == 0], every.images[every.labels == 7])
    assert every.digest == digits().digest != some.digest


def test_clothes_are_the_published_ones(clothes):
    assert clothes.images.shape == (60_000, 1, 28, 28)
    assert torch.bincount(clothes.labels).tolist() == [6000] * 10
    assert clothes.images.mean() == pytest.approx(0.2860, abs=5e-5)  # the value that everybody normalises by
    test = fashion_mnist("test", 500, size=14)
    assert test.images.shape == (500, 1, 14, 14)
    assert test.labels[:5].tolist() == [9, 2, 1, 1, 6]
    whole = fashion_mnist("test", 500)
    torch.testing.assert_close(test.images.mean((1, 2, 3)), whole.images.mean((1, 2, 3)))


def test_files_that_are_absent_or_damaged_are_said_to_be(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_places", lambda: iter([tmp_path]))
    with pytest.raises(FileNotFoundError, match="ALLOMETRY_DATA; looked in"):
        fashion_mnist()
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(b"\0" * 100)
    with pytest.raises(FileNotFoundError, match=r"has no train-images-idx3-ubyte\.gz"):
        fashion_mnist()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0" * 100))
    with pytest.raises(ValueError, match="is not the published file"):
        fashion_mnist()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0" * 100)[:-9])
    with pytest.raises(ValueError, match="cannot be read"):
        fashion_mnist()


def test_an_epoch_reads_every_image_once_in_an_order_of_its_own():
    numbers = torch.arange(10)
    batches = ImageBatches(numbers, numbers, batch=4, seed=1)
    read = torch.cat([batches.batch(step)[0] for step in range(10)])
    epochs = read.view(4, 10)
    assert (epochs.sort(1).values == numbers).all()
    assert len({tuple(row) for row in epochs.tolist()}) == 4
    assert (batches.batch(3)[1] == read[12:16]).all()  # asked for again, out of turn
    larger = ImageBatches(numbers, numbers, batch=8, seed=1)
    assert (torch.cat([larger.batch(step)[0] for step in range(5)]) == read).all()
    other = ImageBatches(numbers, numbers, batch=4, seed=torch.Generator().manual_seed(2))
    assert (torch.cat([other.batch(step)[0] for step in range(10)]) != read).any()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: digits(0), "n must be between 1 and 1797; got 0"),
        (lambda: digits(size=9), "size must be between 1 and 8 pixels; got 9"),
        (lambda: digits(pad=-1), "pad must be at least 0; got -1"),
        (lambda: digits().of([1, 1]), "name one twice"),
        (lambda: digits().of([10]), "no image is of class 10"),
        (lambda: ImageBatches(torch.ones(5), torch.ones(5), 6, 0), "between 1 and the 5 images; got 6"),
        (lambda: ImageBatches(torch.ones(5), torch.ones(4), 2, 0), "5 images and 4 labels"),
        (lambda: ImageBatches(torch.ones(5), torch.ones(5), 2, 0).batch(-1), "steps count from 0"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_at_the_door(make, told):
    with pytest.raises(ValueError, match=told):
        make()
