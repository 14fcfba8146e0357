"""The model that suffices: planted growth comes back, with intervals that hold it."""

import numpy as np
import pytest

from allometry.laws import model_size_curve

SAMPLES, SIZES = 200 * 2.0 ** np.arange(7), 2.0 ** np.arange(3, 15)


def grid(p=0.6, noise=0.0, seeds=1, generator=None):
    """error = m^-0.3 (1 + 0.1 m^p / s): within a share w of the infinite model from s = 0.1 m^p / w."""
    out = {}
    for m in SAMPLES:
        for s in SIZES:
            jitter = noise * generator.standard_normal(seeds) if noise else np.zeros(seeds)
            out[m, s] = m**-0.3 * (1 + 0.1 * m**p / s) * np.exp(jitter)
    return out


def test_planted_growth_comes_back():
    found = model_size_curve(grid(), within=0.05)
    # the grid's largest model lacks a little itself, 0.1 m^0.6 / 16384 of its error
    exact = 0.1 * SAMPLES**0.6 / 0.05
    np.testing.assert_allclose(found.sufficient_size / exact, 1.0, atol=0.12)
    assert found.exponent.value == pytest.approx(0.6, abs=0.02)
    assert found.inside.all()
    curve = found.curve.fit(form="power", resamples=0)
    assert curve.params_["alpha"] == pytest.approx(0.3, abs=0.01)
    assert found.table.shape == (7, 5)


def test_a_sufficient_model_is_a_bound_at_the_edges_of_the_grid():
    few = {key: one for key, one in grid().items() if key[1] <= 512}
    found = model_size_curve(few, within=0.02)
    # where the last doubling still gains more than the tolerance nothing is known but a bound
    gain = 0.1 * SAMPLES**0.6 * (1 / 256 - 1 / 512)
    assert found.inside.tolist() == (gain / (1 + 0.1 * SAMPLES**0.6 / 512) < 0.02).tolist()
    assert 0 < found.inside.sum() < 7
    none = {key: one for key, one in grid().items() if key[1] <= 16}
    assert np.isnan(model_size_curve(none).exponent.value)


def test_intervals_hold_the_exponent():
    generator = np.random.default_rng(0)
    held = [0.6 in model_size_curve(grid(0.6, 0.02, 3, generator), within=0.1).exponent for _ in range(100)]
    assert np.mean(held) >= 0.8


def test_more_noise_does_not_make_smaller_models_sufficient():
    generator = np.random.default_rng(1)
    exact = 0.1 * SAMPLES**0.6 / 0.1
    ratio = [
        np.median([
            np.log(model_size_curve(grid(0.6, noise, 3, generator), within=0.1).sufficient_size / exact)
            for _ in range(30)
        ])
        for noise in (0.005, 0.02)
    ]  # fmt: skip
    assert ratio[1] > ratio[0] - 0.15


def test_choosing_by_another_split_takes_the_bias_away():
    generator = np.random.default_rng(2)

    def flat():
        return {(m, s): np.exp(0.1 * generator.standard_normal(1)) for m in SAMPLES for s in SIZES}

    least, chosen = [], []
    for _ in range(40):
        one, other = flat(), flat()
        least.append(np.log(model_size_curve(one).curve.errors).mean())
        chosen.append(np.log(model_size_curve(one, selection=other).curve.errors).mean())
    assert np.mean(least) < -0.12  # the least of twelve normal draws lies 1.6 sd below their mean
    assert abs(np.mean(chosen)) < 0.02


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: g.clear(), "empty"),
        (lambda g: g.pop((200.0, 8.0)), "no error for samples 200 and size 8"),
        (lambda g: g.update({(200.0, 8.0): [0.1, 0.2]}), "other seeds"),
        (lambda g: g.update({(200.0, 8.0): [0.0]}), "must be positive; one is 0.0"),
    ],
)
def test_grids_with_holes_are_refused(change, words):
    given = grid()
    change(given)
    with pytest.raises(ValueError, match=words):
        model_size_curve(given)


def test_a_tolerance_is_needed():
    with pytest.raises(ValueError, match="within must be positive"):
        model_size_curve(grid(), within=0.0)
