"""Bottoms of noisy valleys that are no parabolas, against worlds whose best rate is known."""

import numpy as np
import pytest

from allometry.train.valley import Valley

SHAPES = {
    "parabola": lambda off: 0.02 * off**2,
    "steep above": lambda off: 0.16 * (np.exp(off / 2) - 1 - off / 2),
    "steeper above": lambda off: 0.04 * (np.exp(off) - 1 - off),
    "steep below": lambda off: 0.16 * (np.exp(-off / 2) - 1 + off / 2),
    "pointed": lambda off: 0.02 * (np.sqrt(1 + 4 * off**2) - 1),
    "wall": lambda off: 0.02 * off**2 + 20 * np.maximum(off - 1.5, 0) ** 2,
}


def runs(shape, step, seeds, noise, generator):
    """Rates whose grid lies anyhow about the best, 0; each seed has its own level and a shift of its own."""
    x = (np.arange(13) - 6 + generator.uniform(-0.5, 0.5)) * step
    off = x[:, None] - 0.1 * generator.standard_normal(seeds)
    level = 0.02 * generator.standard_normal(seeds)
    return x, 1 + SHAPES[shape](off) + level + noise * generator.standard_normal(off.shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("step", [0.5, 1.0])
@pytest.mark.parametrize(("seeds", "noise"), [(6, 0.01), (4, 0.002), (1, 0.01)])
def test_intervals_hold_the_best_rate_whatever_the_shape(shape, step, seeds, noise):
    generator = np.random.default_rng(0)
    inside, widths = [], []
    for _ in range(100):
        found = Valley.of(*runs(shape, step, seeds, noise, generator), 0.95)
        if not found.edge:
            inside.append(found.low <= 0 <= found.high)
            widths.append(found.high - found.low)
    assert len(inside) > 70
    assert np.mean(inside) >= 0.9
    if seeds > 1:  # and are no wider than the noise demands: less than two octaves of thirteen rates
        assert np.median(widths) < 1.0


def test_the_bottom_of_a_skewed_valley_is_nearer_than_a_parabolas():
    x = np.arange(-6.0, 7.0) - 0.2
    losses = 1 + SHAPES["steeper above"](x)
    found = Valley.of(x, np.stack([losses, losses], axis=1), 0.95)
    lowest = int(np.argmin(losses))
    near = slice(lowest - 2, lowest + 3)
    two, one, _ = np.polyfit(x[near], losses[near], 2)
    assert abs(found.best[0]) < 0.4 * abs(one / (2 * two))
    assert found.bottom[0] == pytest.approx(1.0, abs=0.002)


@pytest.mark.parametrize("height", [1.0, 1e3, 1e6])
def test_a_wall_bounds_and_does_not_bend(height):
    x = np.arange(-6.0, 7.0)
    clean = 1 + 0.02 * (x - 0.3) ** 2
    walled = np.where(x > 0, clean + height, clean)
    found = Valley.of(x, np.stack([walled, walled], axis=1), 0.95)
    assert found.best[0] == pytest.approx(0.3, abs=0.15)
    assert found.low < 0.3 < found.high <= 1.0
    assert found.bottom[0] == pytest.approx(1.0, abs=0.01)
    # from the bottom to the wall a straight line, and the wall's own losses beyond
    at = [float(found.at(np.full(3, one))[0]) for one in (found.best[0], 0.7, 1.0, 2.0)]
    assert at[0] == pytest.approx(found.bottom[0], abs=1e-12)
    assert at[0] < at[1] < at[2] == pytest.approx(walled[7], rel=1e-9)
    assert at[3] == pytest.approx(walled[8], rel=1e-9)
    assert np.isinf(found.at(np.full(3, 7.0))).all()


def test_a_flat_curve_has_its_lowest_point_and_a_wide_interval():
    x = np.arange(-3.0, 4.0)
    losses = 1 + 1e-3 * np.random.default_rng(1).standard_normal((7, 4))
    found = Valley.of(x, losses, 0.95)
    assert found.edge or found.high - found.low > 1.0
    level = Valley.of(x, np.ones((7, 2)), 0.95)
    assert np.isfinite(level.best).all()
    assert level.edge == "low"
