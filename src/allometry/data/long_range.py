"""Sequences that ask for memory: delayed noise, symbols to be copied, images read pixel by pixel."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["band_limited_noise", "copy_task", "delay_task", "pixel_sequences"]


def band_limited_noise(count: int, length: int, cycles: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise of unit variance without frequencies above ``cycles`` a length: (count, length).

    Examples
    --------
    >>> noise = band_limited_noise(8, 256, 4.0, torch.Generator().manual_seed(0))
    >>> bool(torch.fft.rfft(noise).abs()[:, 5:].max() < 1e-3)
    True
    """
    kept = min(int(cycles), (length - 1) // 2)
    if count < 1 or kept < 1:
        raise ValueError(f"noise needs a sequence and a cycle within {length} samples; got {count}, {cycles}")
    parts = torch.randn(count, kept, 2, generator=generator)
    spectrum = torch.zeros(count, length // 2 + 1, dtype=torch.complex64)
    spectrum[:, 1 : kept + 1] = torch.view_as_complex(parts)
    return torch.fft.irfft(spectrum, length) * (length / (2 * math.sqrt(kept)))


def delay_task(
    count: int, length: int, delay: int, cycles: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Noise and itself ``delay`` samples earlier, both (count, length, 1); targets begin as zeros.

    Examples
    --------
    >>> u, y = delay_task(2, 64, 10, 4.0, torch.Generator().manual_seed(0))
    >>> torch.equal(u[:, :-10], y[:, 10:])
    True
    """
    if not 0 <= delay < length:
        raise ValueError(f"a delay lies between 0 and the length {length}; got {delay}")
    u = band_limited_noise(count, length, cycles, generator)
    return u[..., None], F.pad(u, (delay, 0))[:, :length, None]


def copy_task(
    count: int, length: int, *, symbols: int = 8, remembered: int = 10, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Symbols, ``length`` blanks, a sign at which to repeat them: inputs (count, T, symbols + 2), one-hot.

    T = length + 2 · remembered; targets (count, remembered) are due in the last ``remembered`` places.

    Examples
    --------
    >>> x, y = copy_task(2, 20, remembered=3, generator=torch.Generator().manual_seed(0))
    >>> x.shape, torch.equal(x[:, :3].argmax(-1), y)
    (torch.Size([2, 26, 10]), True)
    """
    if count < 1 or length < 1 or symbols < 2 or remembered < 1:
        raise ValueError(f"copying needs sequences, blanks, two symbols; got {count}, {length}, {symbols}")
    wanted = torch.randint(symbols, (count, remembered), generator=generator)
    told = torch.full((count, length + 2 * remembered), symbols)
    told[:, :remembered] = wanted
    told[:, -remembered:] = symbols + 1
    return F.one_hot(told, symbols + 2).float(), wanted


def pixel_sequences(images: Tensor) -> Tensor:
    """Images (N, C, H, W) read row by row: (N, H · W, C), each channel centred and scaled over all of them.

    Examples
    --------
    >>> pixel_sequences(torch.randn(5, 1, 4, 4)).shape
    torch.Size([5, 16, 1])
    """
    if images.ndim != 4:
        raise ValueError(f"images are (N, channels, height, width); got {tuple(images.shape)}")
    flat = images.flatten(2).mT.float()
    return (flat - flat.mean((0, 1))) / flat.std((0, 1)).clamp_min(1e-6)
