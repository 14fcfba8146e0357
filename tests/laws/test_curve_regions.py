"""Where learning curves are power laws: planted regions are found, straight curves are left whole."""

import numpy as np
import pytest

from allometry.laws import get_form, regions
from allometry.laws.curve_regions import noise_of_means, noise_trend

FORM = get_form("bounded-power")
SIZES = 16 * 2.0 ** np.arange(20)


def bounded():
    theta = FORM.to_coordinates(np.array([[0.06, 0.9, 40.0, 0.55, 0.7]]))
    return np.exp(FORM.log_prediction(theta, np.log(SIZES)[:, None]))[0]


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("sizes", [6, 10, 16])
def test_a_straight_curve_is_power_law_from_end_to_end(seeds, sizes):
    generator = np.random.default_rng(0)
    m = SIZES[:sizes]
    cut = 0
    for _ in range(200):
        noise = 0.03 * generator.standard_normal((sizes, seeds))
        found = regions(m, m[:, None] ** -0.3 * np.exp(noise))
        cut += found.start > 0 or found.stop < sizes
    assert cut <= 8  # one per cent is promised a window, and bends below one per cent are none


@pytest.mark.parametrize("best_guess", [None, 0.9])
@pytest.mark.parametrize("seeds", [1, 5])
def test_the_straight_part_of_a_sigmoid_curve_is_found(best_guess, seeds):
    generator, y = np.random.default_rng(1), bounded()
    slopes = np.diff(np.log(y)) / np.diff(np.log(SIZES))
    for _ in range(20):
        noise = 0.02 * generator.standard_normal((20, seeds)) + 0.02 * generator.standard_normal(seeds)
        found = regions(SIZES, y[:, None] * np.exp(noise), best_guess=best_guess)
        inside = slopes[found.start : found.stop - 1]
        # the curve's steepest place lies within, and nowhere in it is the curve flatter than a quarter of it
        assert found.start <= slopes.argmin() < found.stop
        assert inside.max() < slopes.min() / 4
        assert found.names[0] == "small data"
        assert found.names[-1] == "floor"


def test_sizes_at_the_best_guess_are_small_data_however_straight_they_are():
    m = SIZES[:10]
    y = np.where(m < 200, 0.9, 0.9 * (m / 200) ** -0.3)
    noise = 0.01 * np.random.default_rng(2).standard_normal((10, 4))
    assert regions(m, y[:, None] * np.exp(noise), best_guess=0.9).start == 4


def test_a_curve_that_never_leaves_its_guess_has_no_region():
    found = regions(SIZES[:6], np.full(6, 0.9), best_guess=0.9)
    assert found.start == 6
    assert set(found.names) == {"small data"}


def test_local_slopes_and_their_errors():
    generator = np.random.default_rng(3)
    noise = 0.05 * generator.standard_normal((20, 400)) + 0.2 * generator.standard_normal(400)
    found = regions(SIZES, SIZES[:, None] ** -0.4 * np.exp(noise))
    # sqrt(2 / 400) of the noise within a seed, over log 2; the seed's own luck is in none of it
    expected = 0.05 * np.sqrt(2 / 400) / np.log(2)
    np.testing.assert_allclose(found.slope_errors, expected, rtol=0.03)
    assert np.abs((found.slopes + 0.4) / expected).max() < 4
    assert list(found.table.columns) == ["samples", "error", "region", "slope", "slope error"]


def test_noise_between_seeds_has_the_degrees_that_two_ways_leave():
    generator = np.random.default_rng(4)
    y = 0.1 * generator.standard_normal((300, 5)) + generator.standard_normal(5)
    sd, degrees = noise_of_means(y)
    assert degrees == 299 * 4
    np.testing.assert_allclose(sd, 0.1 / np.sqrt(5), rtol=0.06)
    y[0, 0] = np.nan
    assert noise_of_means(y)[1] == 300 * 4 - 1


@pytest.mark.parametrize("trend", [0.0, -0.4])
def test_a_trend_of_noise_is_told_from_luck(trend):
    generator, u = np.random.default_rng(5), np.log(SIZES[:8])
    found = np.array(
        [noise_trend(u, np.exp(trend * u)[:, None] * generator.standard_normal((8, 6))) for _ in range(200)]
    )
    if trend:
        assert np.mean(found != 0) > 0.9
        assert found[found != 0].mean() == pytest.approx(trend, abs=0.06)
    else:
        assert np.mean(found != 0) < 0.08  # 2.5 standard errors


@pytest.mark.parametrize(
    ("sizes", "errors", "words"),
    [
        ([2.0, 1.0], [0.1, 0.2], "ascend"),
        ([1.0, 1.0], [0.1, 0.2], "ascend"),
        ([1.0, 2.0], [0.1, 0.0], "at size 2 one is 0.0"),
        ([1.0, 2.0], [0.1], "the shapes are"),
        ([1.0, 2.0], [[0.1, 0.1], [np.nan, np.nan]], "size 2 has no error"),
    ],
)
def test_what_is_no_curve_is_refused(sizes, errors, words):
    with pytest.raises(ValueError, match=words):
        regions(sizes, errors)
