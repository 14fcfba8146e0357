"""Small images that a study can rely on: Fashion-MNIST, and the digits that come with scikit-learn.

Han Xiao, Kashif Rasul and Roland Vollgraf, "Fashion-MNIST", 2017. arXiv:1708.07747
E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", 1998 (the part that scikit-learn has).

* Values lie in [0, 1], one channel, and nothing is normalised: what a study subtracts or divides is its own.
* Smaller images are made by pooling over areas, so that every pixel of the original counts alike; padding
  comes after it.
* Fashion-MNIST is read from where it lies (see `fashion_mnist`) and compared with the published bytes.
* A batch is a function of the seed and the step, as it is for text.
"""

import gzip
import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ImageBatches", "Images", "digits", "fashion_mnist"]

SIZE = 28
_FILES = {"train": ("train", 60_000), "test": ("t10k", 10_000)}
# of the uncompressed files, images and labels, since the same bytes are packed in several ways
_SHA256 = {
    "train": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "test": (
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}


class Images(NamedTuple):
    """Images and what they show.

    Attributes
    ----------
    images : Tensor, float32, shape (N, 1, H, W)
        In [0, 1].
    labels : Tensor, int64, shape (N,)

    Examples
    --------
    >>> few = digits().of([3, 8])
    >>> few.images.shape, few.labels.unique().tolist()
    (torch.Size([357, 1, 8, 8]), [0, 1])
    """

    images: Tensor
    labels: Tensor

    def of(self, classes: Sequence[int]) -> "Images":
        """The images of some classes, which are counted anew from 0 in the order given.

        Raises
        ------
        ValueError
            A class is named twice, or no image has it.
        """
        wanted = [int(one) for one in classes]
        absent = sorted(set(wanted) - set(self.labels.unique().tolist()))
        if absent or len(set(wanted)) < len(wanted):
            raise ValueError(
                f"classes {wanted} name one twice" if not absent else f"no image is of class {absent[0]}"
            )
        renamed = torch.full((max([*wanted, int(self.labels.max())]) + 1,), -1, dtype=torch.int64)
        renamed[wanted] = torch.arange(len(wanted))
        labels = renamed[self.labels]
        return Images(self.images[labels >= 0], labels[labels >= 0])

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that name these very images in this order."""
        content = hashlib.sha256(self.images.numpy().tobytes())
        content.update(self.labels.numpy().tobytes())
        return content.hexdigest()[:12]


def digits(n: int | None = None, *, size: int = 8, pad: int = 0) -> Images:
    """The 1,797 handwritten digits of scikit-learn, 8 × 8, sixteen greys.

    Neighbours in the data are by one writer: choose test images by number, not at random, where that matters.

    Parameters
    ----------
    n : int, optional
        Only the first n.
    size : int
        Pixels a side, at most 8.
    pad : int
        Zeros on each side, after pooling.

    Examples
    --------
    >>> digits(100, size=4, pad=1).images.shape
    torch.Size([100, 1, 6, 6])
    """
    from allometry.extras import need

    found = need("sklearn.datasets", extra="train", purpose="allometry.data.digits").load_digits()
    pixels = torch.from_numpy(found.images).to(torch.float32)[:, None] / 16
    return _shaped(pixels, torch.from_numpy(found.target).to(torch.int64), n, size, pad)


def fashion_mnist(
    split: Literal["train", "test"] = "train", n: int | None = None, *, size: int = SIZE, pad: int = 0
) -> Images:
    """Clothes in ten classes: 60,000 training and 10,000 test images, 28 × 28.

    Looked for, as the four published files, compressed or not, in the folder that ``ALLOMETRY_DATA`` names or
    ``fashion-mnist`` in it, where Debian's package ``dataset-fashion-mnist`` puts it, in
    ``~/.cache/allometry/fashion-mnist``, and where torchvision keeps it under ``./data``.

    Parameters
    ----------
    split : "train" or "test"
    n : int, optional
        Only the first n; the published order is a shuffled one, and smaller sets lie within larger ones.
    size : int
        Pixels a side, at most 28; smaller by pooling over areas.
    pad : int
        Zeros on each side, after pooling.

    Raises
    ------
    FileNotFoundError
        It is not on this machine; the sentence says how to get it.
    ValueError
        The files are not the published ones, or an argument is out of range.

    Examples
    --------
    >>> fashion_mnist("validation")
    Traceback (most recent call last):
        ...
    ValueError: split is 'train' or 'test'; got 'validation'
    """
    if split not in _FILES:
        raise ValueError(f"split is 'train' or 'test'; got {split!r}")
    pixels, labels = _published(split, _home())
    few = pixels if n is None else pixels[: max(int(n), 0)]  # before they become floats
    return _shaped(few[:, None].to(torch.float32) / 255, labels[: len(few)], n, size, pad, len(pixels))


def _shaped(
    pixels: Tensor, labels: Tensor, n: int | None, size: int, pad: int, most: int | None = None
) -> Images:
    most = len(labels) if most is None else most
    if n is not None and not 1 <= n <= most:
        raise ValueError(f"n must be between 1 and {most}; got {n}")
    full = pixels.shape[-1]
    if not 1 <= size <= full:
        raise ValueError(f"size must be between 1 and {full} pixels; got {size}")
    if pad < 0:
        raise ValueError(f"pad must be at least 0; got {pad}")
    pixels, labels = pixels[:n], labels[:n]
    if size < full:
        pixels = F.adaptive_avg_pool2d(pixels, size)
    if pad:
        pixels = F.pad(pixels, (pad, pad, pad, pad))
    return Images(pixels.contiguous(), labels)


def _places() -> Iterator[Path]:
    named = os.environ.get("ALLOMETRY_DATA")
    if named:
        yield Path(named)
        yield Path(named) / "fashion-mnist"
    yield Path("/usr/share/datasets/fashion-mnist")
    cache = os.environ.get("XDG_CACHE_HOME")
    yield (Path(cache) if cache else Path.home() / ".cache") / "allometry" / "fashion-mnist"
    yield Path("data") / "FashionMNIST" / "raw"


def _home() -> Path:
    places = list(_places())
    for place in places:
        if all(_file(place, f"{part}-labels-idx1-ubyte") for part, _ in _FILES.values()):
            return place
    raise FileNotFoundError(
        "Fashion-MNIST is not on this machine: install Debian's package dataset-fashion-mnist, or put the "
        "four files of github.com/zalandoresearch/fashion-mnist (data/fashion) into a folder and name it in "
        f"ALLOMETRY_DATA; looked in {', '.join(map(str, places))}"
    )


def _file(place: Path, name: str) -> Path | None:
    return next((p for p in (place / f"{name}.gz", place / name) if p.is_file()), None)


@lru_cache(maxsize=2)
def _published(split: str, place: Path) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 28, 28) and labels int64 (N,) of a split, as published."""
    part, count = _FILES[split]
    contents = []
    for kind, expected in zip(("images-idx3", "labels-idx1"), _SHA256[split], strict=True):
        path = _file(place, f"{part}-{kind}-ubyte")
        if path is None:
            raise FileNotFoundError(f"{place} has no {part}-{kind}-ubyte.gz beside its labels; put it there")
        try:
            raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        except (OSError, EOFError) as error:
            raise ValueError(f"{path} cannot be read ({error}); fetch it again") from None
        if hashlib.sha256(raw).hexdigest() != expected:
            raise ValueError(f"{path} is not the published file of Fashion-MNIST; fetch it again")
        contents.append(np.frombuffer(raw, dtype=np.uint8))
    # headers of the idx format: 4 bytes of magic, then 4 bytes for each dimension
    pixels = torch.from_numpy(contents[0][16:].reshape(count, SIZE, SIZE).copy())
    return pixels, torch.from_numpy(contents[1][8:].astype(np.int64))


class ImageBatches:
    """Training batches without end, addressed by step: every epoch reads all images in an order of its own.

    Parameters
    ----------
    images : Tensor, shape (N, ...)
    labels : Tensor, shape (N,)
    batch : int
        Images in a batch, B. The order does not depend on it: a larger batch takes more of the same sequence.
    seed : int or torch.Generator
        Of a generator only its initial seed is used.

    Raises
    ------
    ValueError
        A batch is larger than the data, or images and labels differ in number.

    Examples
    --------
    >>> batches = ImageBatches(*digits(), batch=64, seed=0)
    >>> batches.batch(1000)[0].shape
    torch.Size([64, 1, 8, 8])
    """

    def __init__(self, images: Tensor, labels: Tensor, batch: int, seed: int | torch.Generator) -> None:
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images and {len(labels)} labels; give one label for each image")
        if not 1 <= batch <= len(images):
            raise ValueError(f"batch must be between 1 and the {len(images)} images; got {batch}")
        self.images, self.labels, self.batch_size = images, labels, int(batch)
        self.seed = seed.initial_seed() if isinstance(seed, torch.Generator) else int(seed)
        self._orders: dict[int, Tensor] = {}

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images (B, ...) and labels (B,) of one step."""
        if step < 0:
            raise ValueError(f"step is {step}; steps count from 0")
        count = len(self.images)
        places = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        chosen = torch.cat(
            [self._order(epoch)[places[places // count == epoch] % count]
             for epoch in range(int(places[0]) // count, int(places[-1]) // count + 1)]
        )  # fmt: skip
        return self.images[chosen], self.labels[chosen]

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            while len(self._orders) > 1:  # a batch may straddle two epochs; more are never needed together
                self._orders.pop(next(iter(self._orders)))
            digest = hashlib.sha256(f"images {self.seed} {epoch}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            self._orders[epoch] = torch.randperm(len(self.images), generator=generator)
        return self._orders[epoch]
