"""Sequences that ask for memory are what they say."""

import pytest
import torch

from allometry.data import band_limited_noise, copy_task, delay_task, pixel_sequences


def seeded():
    return torch.Generator().manual_seed(0)


def test_noise_has_unit_variance_and_nothing_above_its_band():
    noise = band_limited_noise(2000, 200, 8.0, seeded())
    assert noise.square().mean().item() == pytest.approx(1.0, abs=0.03)
    power = torch.fft.rfft(noise).abs().square().mean(0)
    assert power[9:].max() < 1e-6 * power[1:9].min()


def test_targets_are_the_past():
    u, y = delay_task(3, 100, 30, 5.0, seeded())
    assert torch.equal(y[:, 30:], u[:, :70])
    assert not y[:, :30].any()


def test_copying_asks_for_what_was_shown():
    x, y = copy_task(4, 50, symbols=5, remembered=6, generator=seeded())
    assert x.shape == (4, 62, 7)
    assert torch.equal(x[:, :6].argmax(-1), y)
    assert (x[:, 6:-6].argmax(-1) == 5).all()


def test_pixels_are_read_row_by_row():
    image = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert pixel_sequences(image)[0, :, 0].diff().gt(0).all()


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="delay"):
        delay_task(1, 10, 10, 2.0, seeded())
    with pytest.raises(ValueError, match="height"):
        pixel_sequences(torch.zeros(3, 4))
