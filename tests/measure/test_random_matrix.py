"""Closed forms of noisy spectra against matrices that were drawn."""

import numpy as np
import pytest

from allometry.measure import (
    marchenko_pastur_density,
    semicircle_density,
    wigner_outlier,
    wishart_outlier,
)

SPIKES = np.array([6.0, 3.0, 1.5, 0.4])


@pytest.mark.parametrize(
    ("batch", "told"), [(8, [6.188, 3.375, 2.250, 2.121]), (128, [6.012, 3.023, 1.547, 0.576])]
)
def test_symmetric_noise_moves_eigenvalues_as_drawn_matrices_show(batch, told):
    """The noise of a batch is 9 / batch; ``told`` is the table that the formulas were checked with."""
    law = wigner_outlier(SPIKES, 9.0 / batch)
    assert np.allclose(law, told, atol=1e-3)
    rng, size, tops = np.random.default_rng(0), 700, []
    for _ in range(4):
        noise = rng.normal(size=(size, size)) * np.sqrt(9.0 / batch / size / 2)
        matrix = noise + noise.T
        matrix[np.arange(4), np.arange(4)] += SPIKES
        tops.append(np.linalg.eigvalsh(matrix)[::-1][:4])
    assert np.allclose(np.mean(tops, 0), law, rtol=0.04)


def test_sampling_moves_the_spikes_of_a_covariance():
    rng, size, samples = np.random.default_rng(1), 400, 800
    spikes = np.array([8.0, 3.0, 0.2])  # the last below the threshold of √½
    scale = np.ones(size)
    scale[:3] += spikes
    tops = []
    for _ in range(12):
        x = rng.normal(size=(samples, size)) * np.sqrt(scale)
        tops.append(np.linalg.eigvalsh(x.T @ x / samples)[::-1][:3])
    law = wishart_outlier(spikes, 1.0, size / samples)
    assert np.allclose(np.mean(tops, 0), law, rtol=0.04)


def test_outliers_leave_the_bulk_continuously():
    v = 2.0
    assert wigner_outlier(np.sqrt(v) * (1 + 1e-9), v) == pytest.approx(2 * np.sqrt(v))
    threshold = 0.5 * np.sqrt(3.0)
    edge = 0.5 * (1 + np.sqrt(3.0)) ** 2
    assert wishart_outlier(threshold * (1 + 1e-9), 0.5, 3.0) == pytest.approx(edge)
    assert wishart_outlier(threshold * (1 - 1e-9), 0.5, 3.0) == pytest.approx(edge)
    assert wigner_outlier(-3.0, 1.0) == -wigner_outlier(3.0, 1.0)
    assert wigner_outlier(SPIKES, 0.0).tolist() == SPIKES.tolist()


def test_densities_are_those_of_drawn_matrices():
    rng = np.random.default_rng(2)
    noise = rng.normal(size=(600, 600)) / np.sqrt(2 * 600)
    values = np.linalg.eigvalsh(noise + noise.T)
    grid = np.linspace(-2, 2, 4001)
    share = np.cumsum(semicircle_density(grid, 1.0)) * (grid[1] - grid[0])
    assert np.abs(np.searchsorted(values, grid) / 600 - share).max() < 0.01
    x = rng.normal(size=(1200, 600))
    values = np.linalg.eigvalsh(x.T @ x / 1200)
    grid = np.linspace(0.01, 3, 6001)
    share = np.cumsum(marchenko_pastur_density(grid, 1.0, 0.5)) * (grid[1] - grid[0])
    assert np.abs(np.searchsorted(values, grid) / 600 - share).max() < 0.01


def test_negative_numbers_are_refused():
    with pytest.raises(ValueError, match="variance must not be negative"):
        wigner_outlier(1.0, -1.0)
    with pytest.raises(ValueError, match="ratio must not be negative"):
        wishart_outlier(1.0, 1.0, -0.5)
    with pytest.raises(ValueError, match="variance must be positive"):
        semicircle_density(0.0, 0.0)
    with pytest.raises(ValueError, match="noise must be positive"):
        marchenko_pastur_density(0.0, -1.0, 0.5)
