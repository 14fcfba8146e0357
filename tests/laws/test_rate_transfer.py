"""Transfer of learning rates across size, on curves whose optima and errors are known."""

import numpy as np
import pandas as pd
import pytest

from allometry.laws import rate_transfer

SIZES = np.array([64.0, 128.0, 256.0])
GRID = np.arange(-10.0, 1.0)


def bowl(distance):
    return 0.04 * distance**2


def steep(distance):
    """Far steeper above the best rate than below."""
    return 0.25 * (np.exp(0.5 * distance) - 0.5 * distance - 1)


def runs(drift, *, shape=bowl, noise=0.0, seeds=1, generator=None, name="width", best=-5.3):
    """A table whose best rate moves by ``drift`` octaves with each doubling, and its true errors."""
    optima = best + drift * np.log2(SIZES / SIZES[0])
    clean = 2.0 + shape(GRID[None, :] - optima[:, None])
    losses = np.repeat(clean[:, :, None], seeds, axis=2)
    if noise:
        losses = losses + noise * generator.standard_normal(losses.shape)
    size, rate, seed = np.meshgrid(SIZES, 2.0**GRID, np.arange(seeds), indexing="ij")
    table = {name: size.ravel(), "learning_rate": rate.ravel(), "seed": seed.ravel(), "loss": losses.ravel()}
    return pd.DataFrame(table), shape(optima[0] - optima), optima


@pytest.mark.parametrize("drift", [0.0, -1.0, 0.4])
@pytest.mark.parametrize("points", [3, 5])
@pytest.mark.parametrize("name", ["width", "depth"])
def test_parabolas_give_back_rates_slope_and_errors_exactly(drift, points, name):
    table, errors, optima = runs(drift, name=name)
    found = rate_transfer(table, name, points=points)
    assert np.log2(found.best["best_rate"]).to_numpy() == pytest.approx(optima, abs=1e-9)
    assert found.slope.value == pytest.approx(drift, abs=1e-9)
    assert found.best["transfer_error"].to_numpy() == pytest.approx(errors, abs=1e-9)
    assert found.best.index.name == name


@pytest.mark.parametrize(
    ("shape", "drift", "spacing_error"),
    [(bowl, 0.0, 0.0), (bowl, -0.5, 0.0), (bowl, -1.0, 0.0), (steep, -0.5, 0.004)],
)
def test_errors_are_unbiased_and_intervals_cover(shape, drift, spacing_error):
    generator = np.random.default_rng(3)
    found, inside, slopes, naive = [], [], [], []
    for _ in range(300):
        table, errors, _ = runs(drift, shape=shape, noise=0.02, seeds=4, generator=generator)
        told = rate_transfer(table)
        row = told.best.loc[256.0]
        found.append(row["transfer_error"])
        inside.append(row["error_low"] <= errors[2] <= row["error_high"])
        slopes.append(drift in told.slope)
        mean = told.losses.mean(axis=2)
        naive.append(mean[2, mean[0].argmin()] - mean[2].min())
    standard_error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - errors[2]) < 3 * standard_error + spacing_error
    assert np.mean(naive) - errors[2] > 0.002  # the difference of a lucky minimum is not
    assert np.mean(inside) >= 0.91
    assert 0.90 <= np.mean(slopes) <= 0.985


def test_the_interval_of_a_best_rate_covers():
    generator = np.random.default_rng(4)
    inside = []
    for _ in range(300):
        table, _, optima = runs(0.0, shape=steep, noise=0.02, seeds=4, generator=generator)
        row = rate_transfer(table).best.loc[128.0]
        inside.append(row["low"] <= 2 ** optima[1] <= row["high"])
    assert 0.88 <= np.mean(inside) <= 0.985


def test_an_optimum_at_the_end_of_the_grid_is_a_bound():
    table, _, _ = runs(-2.5)
    found = rate_transfer(table)
    row = found.best.loc[256.0]
    assert row["edge"] == "low"
    assert row["low"] == 0.0
    assert row["high"] == 2.0**-9
    assert any("bound" in note for note in found.notes)
    assert found.slope.value == pytest.approx(-2.5, abs=1e-9)  # of the two that are within


def test_a_rate_at_which_one_seed_is_lost_is_no_optimum_and_costs_infinitely():
    table, _, _ = runs(-2.0, seeds=3)
    table.loc[(table["width"] == 256) & (table["learning_rate"] > 2**-7.5) & (table["seed"] == 1), "loss"] = (
        np.nan
    )
    found = rate_transfer(table)
    row = found.best.loc[256.0]
    assert row["transfer_error"] == np.inf
    assert row["lost"] == 8
    assert any("lost" in note for note in found.notes)


def test_a_lost_run_is_told_by_its_status_as_well():
    table, _, _ = runs(0.0, seeds=2)
    table["status"] = "done"
    table.loc[table["learning_rate"] > 2**-4.5, "status"] = "diverged"
    found = rate_transfer(table)
    assert (found.best["edge"] == "high").all()
    assert np.isnan(found.slope.value)


def test_one_seed_has_no_intervals():
    found = rate_transfer(runs(-1.0)[0])
    assert found.best[["low", "high", "error_low", "error_high"]].loc[256.0].isna().all()
    assert any("one seed" in note for note in found.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="loss"), "no column 'loss'"),
        (lambda t: t[t["width"] == 64], "needs two values of width"),
        (lambda t: t.iloc[1:], "has 0 runs of width 64"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "has 2 runs of width 64"),
        (lambda t: t.assign(width=-t["width"]), "positive numbers"),
        (lambda t: t.assign(loss=np.nan), "every rate lost a run"),
    ],
)
def test_what_cannot_be_read_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        rate_transfer(change(runs(0.0)[0]))


def test_the_picture_has_a_curve_and_an_optimum_a_size():
    axes = rate_transfer(runs(-1.0, seeds=2)[0]).plot()
    assert len(axes.get_lines()) == 2 * len(SIZES) + 1
