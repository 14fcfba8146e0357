"""The published worked value, what a lost run counts as, and crossings that are known exactly."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from allometry.measure.sensitivity import forecast_onset, learning_rate_sensitivity
from allometry.train import learning_rate_sweep

RATES = [1e-3, 1e-2, 1e-1]


def test_worked_values() -> None:
    """Losses 4.5, 4.0, 9.0 that began at 7: (4.5 + 4 + 7) / 3 - 4; and 4.2, 4.0, 4.3."""
    found = learning_rate_sensitivity([4.5, 4.0, 9.0], 7.0, learning_rates=RATES)
    assert found.value == pytest.approx(15.5 / 3 - 4.0, abs=1e-12)
    assert round(found.value, 2) == 1.17
    assert (found.best_rate, found.best_loss, found.diverged, found.interior) == (1e-2, 4.0, (1e-1,), True)
    assert math.isnan(found.low)
    calm = learning_rate_sensitivity([4.2, 4.0, 4.3], 7.0, learning_rates=RATES)
    assert calm.value == pytest.approx(0.5 / 3, abs=1e-12)
    assert calm.diverged == ()


@pytest.mark.parametrize("lost", [math.nan, math.inf, 7.0001, 1e9])
def test_a_lost_run_counts_as_the_initial_loss_however_it_was_lost(lost: float) -> None:
    found = learning_rate_sensitivity({1e-3: 4.5, 1e-2: 4.0, 1e-1: lost}, 7.0)
    assert found.value == pytest.approx(15.5 / 3 - 4.0, abs=1e-12)
    assert found.diverged == (1e-1,)
    assert found.curve["lost"].tolist() == [0.0, 0.0, 1.0]


def test_forms_of_input_agree_and_order_does_not_matter() -> None:
    runs = {1e-1: [9.0, math.nan, 6.0], 1e-3: [4.5, 4.4, 4.6], 1e-2: [4.0, 4.1, 3.9]}
    table = learning_rate_sweep(lambda rate: runs[rate], list(runs))
    by_table = learning_rate_sensitivity(table.sample(frac=1.0, random_state=0), 7.0)
    by_mapping = learning_rate_sensitivity(runs, 7.0)
    by_array = learning_rate_sensitivity(list(runs.values()), 7.0, learning_rates=list(runs))
    expected = (np.mean([7, 7, 6]) + 4.5 + 4.0) / 3 - 4.0
    for found in (by_table, by_mapping, by_array):
        assert found.value == pytest.approx(expected, abs=1e-12)
        assert found.curve["learning_rate"].tolist() == RATES
        assert (found.low, found.high) == (by_mapping.low, by_mapping.high)
    assert by_mapping.low < by_mapping.value < by_mapping.high
    assert math.isnan(learning_rate_sensitivity(runs, 7.0, resamples=0).low)


def test_a_run_that_its_table_calls_diverged_is_lost_whatever_its_loss() -> None:
    table = pd.DataFrame(
        {"learning_rate": RATES, "loss": [4.5, 4.0, 5.0], "status": ["done", "done", "diverged"]}
    )
    assert learning_rate_sensitivity(table, 7.0).diverged == (1e-1,)


def test_the_mean_is_uniform_in_the_logarithm_however_the_grid_is_spaced() -> None:
    """A loss that is a function of log rate has one mean over the range, on a coarse or a crowded grid."""

    def loss(rate: np.ndarray) -> np.ndarray:
        return 3.0 + 0.5 * np.abs(np.log10(rate) + 2.0)

    uniform = np.geomspace(1e-4, 1.0, 401)
    crowded = np.unique(np.concatenate([uniform[::4], np.geomspace(1e-4, 1e-3, 300)]))
    for rates in (uniform, crowded):
        found = learning_rate_sensitivity(loss(rates), 9.0, learning_rates=rates)
        assert found.value == pytest.approx(0.5, rel=0.02)  # the mean of 0.5 |u| over (-2, 2)
    plain = loss(crowded).mean() - 3.0
    assert abs(plain - 0.5) > 0.1  # what the average over the points would say
    weight = learning_rate_sensitivity(loss(uniform), 9.0, learning_rates=uniform).curve["weight"]
    assert weight.to_numpy() == pytest.approx(1 / 401)


def test_range_edges_and_too_few_rates() -> None:
    losses = {1e-4: 6.0, 1e-3: 5.0, 1e-2: 4.0, 1e-1: 5.0, 1.0: math.nan}
    inner = learning_rate_sensitivity(losses, 7.0, range=(1e-3, 1e-1))
    assert inner.value == pytest.approx(14 / 3 - 4)
    assert inner.interior
    edge = learning_rate_sensitivity(losses, 7.0, range=(1e-4, 1e-2))
    assert not edge.interior
    assert "lower bound" in str(edge)
    assert not learning_rate_sensitivity({1e-3: math.nan, 1e-2: 4.0, 1e-1: math.nan}, 7.0).interior
    with pytest.raises(ValueError, match="no learning rate lies in the range"):
        learning_rate_sensitivity(losses, 7.0, range=(2.0, 3.0))


def test_shifting_and_scaling_losses() -> None:
    losses = np.array([4.5, 4.0, 9.0, 5.0])
    rates = [1e-3, 1e-2, 1e-1, 1.0]
    base = learning_rate_sensitivity(losses, 7.0, learning_rates=rates).value
    moved = learning_rate_sensitivity(3 * losses + 1, 22.0, learning_rates=rates).value
    assert moved == pytest.approx(3 * base, rel=1e-12)


def test_intervals_cover_the_sensitivity_of_many_seeds() -> None:
    generator = np.random.default_rng(0)
    clean = np.array([4.6, 4.2, 4.0, 4.3, 5.5])
    rates = np.geomspace(1e-3, 1e-1, 5)
    truth = clean.mean() - clean.min()
    hits = 0
    for trial in range(100):
        runs = clean[:, None] + 0.03 * generator.standard_normal((5, 8)) + 0.2 * generator.standard_normal(8)
        found = learning_rate_sensitivity(runs, 7.0, learning_rates=rates, resamples=300, random_state=trial)
        assert found.high - found.low < 0.06  # a seed's luck is shared by its rates and cancels
        hits += found.low <= truth <= found.high
    assert hits >= 75  # of 100 at 90 %; percentiles of eight seeds are a little narrow


def test_bad_sweeps_are_told() -> None:
    with pytest.raises(ValueError, match="must be finite, got nan"):
        learning_rate_sensitivity({1e-3: 1.0}, math.nan)
    with pytest.raises(ValueError, match="need learning_rates"):
        learning_rate_sensitivity([1.0, 2.0], 7.0)
    with pytest.raises(ValueError, match="every rate needs a loss for every seed"):
        learning_rate_sensitivity({1e-3: [1.0, 2.0], 1e-2: [1.0]}, 7.0)
    with pytest.raises(ValueError, match="positive, finite and different"):
        learning_rate_sensitivity([1.0, 2.0], 7.0, learning_rates=[1e-3, 1e-3])
    table = pd.DataFrame({"learning_rate": [0.1, 0.1, 0.01], "seed": [0, 1, 0], "loss": [1.0, 1.0, 1.0]})
    with pytest.raises(ValueError, match=r"no run at learning rate 0\.01 with seed 1"):
        learning_rate_sensitivity(table, 7.0)
    with pytest.raises(ValueError, match="lacks learning_rate"):
        learning_rate_sensitivity(pd.DataFrame({"loss": [1.0]}), 7.0)


# -- onset ---------------------------------------------------------------------------------------------

SCALE = np.array([1e6, 3e6, 1e7, 3e7, 1e8])


@pytest.mark.parametrize("form", ["power", "quadratic"])
@pytest.mark.parametrize(("exponent", "threshold"), [(0.5, 1e4), (-0.4, 1e-8)])
def test_exact_power_laws_cross_where_they_must(form: str, exponent: float, threshold: float) -> None:
    values = threshold * (SCALE / 1e10) ** exponent
    onset = forecast_onset(SCALE, values, threshold, form)
    assert onset.scale == pytest.approx(1e10, rel=1e-4)
    assert onset.low == pytest.approx(1e10, rel=1e-3)
    assert onset.high == pytest.approx(1e10, rel=1e-3)
    assert onset.rises == (exponent > 0)
    assert onset.extrapolated == pytest.approx(100, rel=1e-3)


def test_a_parabola_that_turns_back_is_not_a_power_law() -> None:
    u = np.log(SCALE / 1e8)
    values = np.exp(5.0 + 0.2 * u - 0.05 * u**2)  # its top is e^5.2 at u = 2
    assert forecast_onset(SCALE, values, math.exp(5.3), "quadratic").scale == math.inf
    crossing = forecast_onset(SCALE, values, math.exp(5.15), "quadratic")
    assert math.log(crossing.scale / 1e8) == pytest.approx(1.0, abs=1e-4)


def test_the_quadratic_interval_is_students_and_the_powers_nearly() -> None:
    generator = np.random.default_rng(3)
    y = 2.0 * SCALE**0.5 * np.exp(0.05 * generator.standard_normal(5))
    at = 1e9
    for form, degree, tolerance in (("quadratic", 2, 1e-9), ("power", 1, 0.15)):
        design = np.vander(np.log(SCALE), degree + 1)
        point = np.vander([math.log(at)], degree + 1)[0]
        solution, *_ = np.linalg.lstsq(design, np.log(y), rcond=None)
        left = np.log(y) - design @ solution
        freedom = 5 - degree - 1
        error = math.sqrt(left @ left / freedom * (1 + point @ np.linalg.inv(design.T @ design) @ point))
        half = stats.t.ppf(0.95, freedom) * error
        found = forecast_onset(SCALE, y, 1e9, form).predict([at])
        assert math.log(found.value[0]) == pytest.approx(float(point @ solution), abs=1e-6)
        assert math.log(found.high[0] / found.value[0]) == pytest.approx(half, rel=max(tolerance, 1e-5))
        assert math.log(found.value[0] / found.low[0]) == pytest.approx(half, rel=max(tolerance, 1e-5))


def test_intervals_of_the_onset_cover() -> None:
    """The interval is a new run's, so the law's own crossing lies in it at least 9 times in 10."""
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        y = 1e4 * (SCALE / 1e9) ** 0.5 * np.exp(0.05 * generator.standard_normal(5))
        onset = forecast_onset(SCALE, y, 1e4, "quadratic")
        hits += onset.low <= 1e9 <= onset.high
        assert onset.low <= onset.scale <= onset.high
    assert hits >= 261  # 270 expected at least, 5.2 its standard deviation


def test_tables_of_a_monitor_give_their_last_step_and_worst_module() -> None:
    tables = []
    for scale in SCALE:
        top = 1e4 * (scale / 1e10) ** 0.5
        rows = [(0, "max attention logit", "a", 1e9), (9, "max attention logit", "a", top)]
        rows += [(9, "max attention logit", "b", top / 3), (9, "log z", "", 1.0)]
        rows += [(9, "gradient rms", "a", 1.0), (9, "gradient rms", "b", 1e-8 * (scale / 1e10) ** -0.5)]
        tables.append(pd.DataFrame(rows, columns=["step", "quantity", "module", "value"]))
    logits = forecast_onset(SCALE, tables, 1e4, quantity="max attention logit")
    assert logits.scale == pytest.approx(1e10, rel=1e-4)
    gradients = forecast_onset(SCALE, tables, 1e-8, quantity="gradient rms")
    assert not gradients.rises
    assert gradients.scale == pytest.approx(1e10, rel=1e-4)
    with pytest.raises(ValueError, match="name one by quantity"):
        forecast_onset(SCALE, tables, 1e4)
    with pytest.raises(ValueError, match="no 'speed'"):
        forecast_onset(SCALE, tables, 1e4, quantity="speed")


def test_crossed_already_and_never() -> None:
    values = 1e4 * (SCALE / 1e10) ** 0.5
    assert forecast_onset(SCALE, values, values[0] / 2, rises=True).scale == SCALE[0]
    assert forecast_onset(SCALE, values, values[0] / 2).scale == math.inf  # a rising law never falls below
    within = forecast_onset(SCALE, values, float(np.sqrt(values[1] * values[2])))
    assert within.scale == pytest.approx(math.sqrt(3e13), rel=1e-3)
    assert within.extrapolated == 1.0


def test_bad_onsets_are_told() -> None:
    with pytest.raises(ValueError, match="'power' or 'quadratic'"):
        forecast_onset(SCALE, SCALE, 1.0, "cubic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 3 scales and 3 runs"):
        forecast_onset(SCALE[:3], SCALE[:3], 1e12, "quadratic")
    with pytest.raises(ValueError, match="positive and finite"):
        forecast_onset(SCALE, [1.0, 2.0, math.nan, 3.0, 4.0], 1e4)
    with pytest.raises(ValueError, match="positive number for each of the 2 values"):
        forecast_onset(SCALE, [1.0, 2.0], 1e4)
    with pytest.raises(ValueError, match="leave it out"):
        forecast_onset(SCALE, SCALE, 1e12, quantity="log z")
