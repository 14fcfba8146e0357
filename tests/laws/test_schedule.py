"""The laws of annealing against closed forms, brute force, published constants and published runs."""

import os
from pathlib import Path

import numpy as np
import pytest

from allometry.laws import (
    AnnealingLaw,
    EffectiveRateLaw,
    MultiPowerLaw,
    ScheduleLaw,
    compare_laws,
    forecast_schedule,
    get_law,
    schedule_areas,
    wsd_rates,
)
from allometry.laws.traces import final_lags, lags, traces

PEAK = 3e-4
DATA = Path(os.environ.get("ALLOMETRY_REFERENCE_DATA", "nowhere"))
FITTED = ("constant_24000", "cosine_24000", "wsdcon_9")
NEW = ("constant_72000", "cosine_72000", "wsd_20000_24000", "wsdld_20000_24000", "wsdcon_3", "wsdcon_18")

published_runs = pytest.mark.skipif(not (DATA / "lr-schedules").is_dir(), reason="no reference data")


def curves(total=4000, end=0.1):
    step = np.arange(total)
    return {
        "constant": np.full(total, PEAK),
        "cosine": wsd_rates(total, PEAK, decay=1.0, shape="cosine", end=end * PEAK),
        "drop": np.where(step < total // 2, PEAK, 0.3 * PEAK),
    }


def true_loss(rates, lam=0.99, level=(2.8, 0.35, 0.45, 2.0)):
    first, second = schedule_areas(rates, lam)
    return level[0] + level[1] * first ** -level[2] - level[3] * second


def log_of(schedules, loss=true_loss, every=40, noise=None, start=200):
    parts = {"run": [], "step": [], "learning_rate": [], "loss": []}
    for name, rates in schedules.items():
        at = np.arange(start, len(rates), every)
        value = loss(rates)[at]
        value = value if noise is None else value * np.exp(noise(at))
        for key, one in zip(parts, ([name] * len(at), at, rates[at], value), strict=True):
            parts[key].extend(one)
    return {key: np.array(one) for key, one in parts.items()}


# --- areas --------------------------------------------------------------------------------------------------
def test_annealing_area_has_its_closed_form():
    rates = np.abs(np.cumsum(np.random.default_rng(0).standard_normal(300)))
    lam = 0.97
    fall = rates[:-1] - rates[1:]
    direct = [
        sum(fall[k - 1] * (1 - lam ** (s - k + 1)) / (1 - lam) for k in range(1, s + 1)) for s in range(300)
    ]
    assert schedule_areas(rates, lam)[1] == pytest.approx(direct, abs=1e-9 * np.abs(direct).max())


def test_limits_of_the_annealing_area():
    rates = curves()["cosine"]
    assert not schedule_areas(np.full(100, 0.1))[1].any()
    assert schedule_areas(rates, 0.0)[1] == pytest.approx(rates[0] - rates, abs=1e-15)
    nearly = schedule_areas(rates, 1 - 1e-12)[1]
    assert nearly == pytest.approx(np.cumsum(np.cumsum(np.append(0.0, rates[:-1] - rates[1:]))), rel=1e-6)
    drop = np.where(np.arange(2000) < 100, 1.0, 0.25)
    assert schedule_areas(drop, 0.98)[1][-1] == pytest.approx(0.75 / 0.02, rel=1e-12)


def test_warm_up_counts_as_if_at_full_rate():
    rates = wsd_rates(500, 1.0, warmup=100, decay=0.5)
    flat = wsd_rates(500, 1.0, decay=0.5)
    for with_ramp, without in zip(
        schedule_areas(rates, 0.9, warmup=100), schedule_areas(flat, 0.9), strict=True
    ):
        assert with_ramp == pytest.approx(without)
    assert schedule_areas(rates, 0.9)[1][99] < 0  # a rise counts against annealing where it is not excluded


@pytest.mark.parametrize("shape", ["cosine", "linear", "sqrt"])
def test_lags_give_any_response_close_to_its_sum(shape):
    rates = wsd_rates(3000, PEAK, decay=0.9, shape=shape, end=0.05 * PEAK)
    steps = np.arange(400, 3000, 130)
    found = lags(rates, steps, 0)
    passed = np.concatenate([[0.0], np.cumsum(rates)])
    for beta, scale in ((0.5, 300.0), (1.5, 20.0)):
        told = np.bincount(
            found.point, found.weight * (1 - (1 + scale * found.area) ** -beta), minlength=len(steps)
        )
        exact = []
        for s in steps:
            k = np.arange(1, s + 1)
            area = passed[s + 1] - passed[k]
            exact.append(((rates[k - 1] - rates[k]) * (1 - (1 + scale * area) ** -beta)).sum())
        assert told == pytest.approx(exact, rel=1e-3)


def test_many_schedules_at_their_ends_are_each_alone():
    every = np.stack(list(curves(1500).values()))
    last = np.array([1499])
    told = final_lags(every)
    for i, rates in enumerate(every):
        alone = lags(rates, last, 0)
        for response in (lambda one: 1 - 0.99**one.lag, lambda one: np.sqrt(one.area)):
            mine = told.point == i
            assert (told.weight * response(told))[mine].sum() == pytest.approx(
                (alone.weight * response(alone)).sum(), rel=1e-9, abs=1e-18
            )
        assert told.forward[i] == pytest.approx(alone.forward[0])


def test_a_warm_up_in_the_log_is_seen_and_its_points_left_out():
    rates = wsd_rates(2000, PEAK, warmup=200, decay=0.3)
    table = log_of({"a": rates}, start=0, every=20, loss=lambda r: true_loss(np.maximum(r, 1e-9)))
    found = traces(table)[0]
    assert found.warmup == 200
    law = AnnealingLaw(0.99).fit(table, resamples=0)
    assert law.dropped_ == 10
    assert "10 points within a warm-up" in law.warnings_[0]


# --- fits ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("lam", [0.99, "fit"])
def test_the_law_that_made_the_losses_is_found(lam):
    schedules = curves()
    law = AnnealingLaw(lam).fit(log_of(schedules), schedules=schedules, resamples=0)
    wanted = {"L0": 2.8, "A": 0.35, "alpha": 0.45, "C": 2.0, "lam": 0.99}
    assert law.params_ == pytest.approx(wanted, rel=1e-6 if lam == 0.99 else 2e-2)
    new = {"wsd": wsd_rates(9000, PEAK, decay=0.2)}
    told = law.predict(log_of(new, every=1, start=1))
    assert told[200:] == pytest.approx(true_loss(new["wsd"])[201:], abs=1e-8 if lam == 0.99 else 3e-4)


@pytest.mark.parametrize("kind", [AnnealingLaw, MultiPowerLaw, EffectiveRateLaw])
def test_derivatives_are_those_of_differences(kind):
    schedules = curves(1500)
    law = kind().fit(log_of(schedules), schedules=schedules, resamples=0)
    theta = law.theta_.copy()
    theta[4:] = [one.starts[0] + 0.1 for one in law._shapes] + ([0.8] if law.effective else [])
    exact = law._evaluate(theta, law.traces_)[1]
    for i in range(len(theta)):
        step = np.zeros(len(theta))
        step[i] = 1e-5
        above, below = (law._evaluate(theta + sign * step, law.traces_)[0] for sign in (1, -1))
        assert exact[:, i] == pytest.approx((above - below) / 2e-5, rel=1e-4, abs=1e-7)


def test_the_fit_is_scipys_optimum_of_the_published_script():
    from scipy.optimize import minimize

    generator = np.random.default_rng(3)
    schedules = curves()
    table = log_of(schedules, noise=lambda at: generator.normal(0, 2e-3, len(at)))
    law = AnnealingLaw(0.99).fit(table, schedules=schedules, resamples=0)
    areas = {name: schedule_areas(one, 0.99) for name, one in schedules.items()}
    first, second = (
        np.array([areas[run][i][step] for run, step in zip(table["run"], table["step"], strict=True)])
        for i in (0, 1)
    )

    def objective(x):
        residual = np.log(table["loss"]) - np.log(
            np.maximum(x[0] + x[1] * first ** -x[3] - x[2] * second, 1e-3)
        )
        size = np.abs(residual)
        return 1e3 * np.where(size < 1e-3, 0.5 * size**2, 1e-3 * (size - 5e-4)).sum()

    bounds, options = [(0, None)] * 4, {"maxiter": 5000, "ftol": 1e-15}
    peer = min(
        (minimize(objective, start, bounds=bounds, method="L-BFGS-B", options=options)
         for start in ([2.5, 0.5, 1.0, 0.4], [2.8, 0.3, 3.0, 0.5])),
        key=lambda one: one.fun,
    )  # fmt: skip
    assert law.objective_ * 1e3 <= peer.fun * (1 + 1e-6)
    assert [law.params_[k] for k in ("L0", "A", "C", "alpha")] == pytest.approx(peer.x, rel=2e-2)


def test_rows_may_come_in_any_order():
    table = log_of(curves(1500))
    mixed = np.random.default_rng(0).permutation(len(table["step"]))
    one = AnnealingLaw(0.99).fit(table, resamples=0)
    two = AnnealingLaw(0.99).fit({key: value[mixed] for key, value in table.items()}, resamples=0)
    assert two.params_ == pytest.approx(one.params_, rel=1e-5)
    assert two.predict({k: v[mixed] for k, v in table.items()}) == pytest.approx(
        one.predict(table)[mixed], rel=1e-6
    )


# --- what is refused ----------------------------------------------------------------------------------------
def test_a_constant_run_alone_does_not_tell_what_annealing_gains():
    table = log_of({"constant": curves()["constant"]})
    with pytest.raises(ValueError, match="no run lowers its learning rate"):
        AnnealingLaw().fit(table)
    law = AnnealingLaw(0.99, C=2.0).fit(table, resamples=0)  # a borrowed gain answers for it
    cosine = curves()["cosine"]
    told = law.predict(log_of({"cosine": cosine}, every=1, start=0))
    assert told[200:] == pytest.approx(true_loss(cosine)[200:], abs=1e-4)
    with pytest.raises(ValueError, match="belongs to the lam"):
        AnnealingLaw(C=0.4)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"loss": lambda x: x * np.nan}, "is nan in row 0"),
        ({"loss": lambda x: -x}, "losses must be positive"),
        ({"step": lambda x: x + 0.5}, "whole numbers"),
        ({"step": lambda x: x * 10**7}, "are these tokens"),
        ({"learning_rate": lambda x: -x}, "not negative"),
        ({"run": lambda x: np.full(len(x), "one")}, "two learning rates at step"),
    ],
)
def test_bad_logs_are_refused_in_a_sentence(change, sentence):
    table = log_of(curves(1500))
    table |= {key: of(table[key]) for key, of in change.items()}
    with pytest.raises(ValueError, match=sentence):
        AnnealingLaw().fit(table)


def test_steps_beyond_a_schedule_are_refused():
    schedules = curves(1500)
    with pytest.raises(ValueError, match="step 1480, but its schedule ends after 1000 steps"):
        AnnealingLaw().fit(log_of(schedules), schedules={name: one[:1000] for name, one in schedules.items()})


def test_a_cosine_alone_is_said_to_tell_little_and_a_decay_off_a_trunk_is_not():
    said = "No run keeps its learning rate"
    cosine = AnnealingLaw().fit(log_of({"cosine": curves()["cosine"]}), resamples=0)
    assert any(one.startswith(said) for one in cosine.warnings_)
    trunk = AnnealingLaw().fit(log_of({"wsd": wsd_rates(4000, PEAK, decay=0.2)}), resamples=0)
    assert not any(one.startswith(said) for one in trunk.warnings_)


# --- the best schedule --------------------------------------------------------------------------------------
def test_the_bound_is_the_minimum_over_all_places_of_a_drop_to_zero():
    schedules = curves()
    law = AnnealingLaw(0.99).fit(log_of(schedules), schedules=schedules, resamples=0)
    total = 5000
    bound = law.bound(total, PEAK)
    drops = np.tile(np.full(total, PEAK), (400, 1))
    for n in range(400):
        drops[n, total - n :] = 0.0
    tried = np.array([true_loss(one)[-1] for one in drops])
    assert abs(bound["steps"] - tried.argmin()) <= 2  # the formula takes ln lam for lam - 1
    assert bound["loss"] == pytest.approx(tried.min(), abs=1e-6)
    found = law.final(drops)
    assert found == pytest.approx(tried, abs=5e-5)  # lags a tenth apart, of a response with a delay
    assert law.best(total, PEAK)[2]["loss"].iloc[0] >= bound["loss"]


def test_ranking_puts_schedules_in_the_order_of_the_truth():
    schedules = curves()
    law = AnnealingLaw(0.99).fit(log_of(schedules), schedules=schedules, resamples=200)
    family = {
        f"{shape} {part}": wsd_rates(6000, PEAK, decay=part, shape=shape)
        for shape in ("linear", "sqrt", "exponential") for part in (0.02, 0.1, 0.3, 0.8)
    }  # fmt: skip
    ranked = law.rank(family)
    truth = [true_loss(family[name])[-1] for name in ranked.index]
    assert np.argsort(truth).tolist() == list(range(len(truth)))
    assert (ranked["low"] <= ranked["high"]).all()


def test_horizons_are_the_runs_themselves():
    schedules = curves()
    law = AnnealingLaw(0.99).fit(log_of(schedules), schedules=schedules, resamples=0)
    told = law.horizons([2000, 8000, 5000], PEAK, decay=0.2)
    wanted = [true_loss(wsd_rates(total, PEAK, decay=0.2))[-1] for total in (2000, 8000, 5000)]
    assert told["loss"].tolist() == pytest.approx(wanted, abs=5e-5)


def test_a_forecast_from_a_log_in_one_call():
    table = log_of({"cosine": curves()["cosine"], "drop": curves()["drop"]}, every=10)
    other = wsd_rates(6000, PEAK, decay=0.2)
    told = forecast_schedule(table, other, law="annealing", resamples=200)
    truth = true_loss(other)[told["step"]]
    assert told["loss"].to_numpy()[20:] == pytest.approx(truth[20:], abs=2e-3)
    coarse = np.arange(0, 6000, 50)
    again = forecast_schedule(
        table, {"step": coarse, "lr": other[coarse]}, law="annealing", steps=[3000, 5900], resamples=0
    )
    assert again["loss"].tolist() == pytest.approx(true_loss(other)[[3000, 5900]], abs=2e-3)
    with pytest.raises(ValueError, match="the schedule ends at 5999"):
        forecast_schedule(table, other, law="annealing", steps=[6000])


# --- the choice among laws ----------------------------------------------------------------------------------
def test_the_law_that_made_the_losses_gets_the_weight():
    generator = np.random.default_rng(1)
    schedules = curves()
    noise = lambda at: generator.normal(0, 3e-4, len(at))  # noqa: E731
    chosen = ScheduleLaw().fit(log_of(schedules, noise=noise), schedules=schedules, resamples=100)
    assert sum(chosen.weights_.values()) == pytest.approx(1.0)
    assert chosen.weights_["annealing"] > 0.5
    new = log_of({"wsd": wsd_rates(8000, PEAK, decay=0.2)})
    truth = true_loss(wsd_rates(8000, PEAK, decay=0.2))[200::40]
    assert np.abs(chosen.predict(new) / truth - 1).mean() < 1e-3
    assert set(chosen.report()) >= {"laws", "annealing law"}
    told = chosen.interval(new)
    assert (told.low <= told.value).all()
    assert (told.value <= told.high).all()


def test_laws_are_reached_by_name_and_compared():
    table = log_of(curves(1500))
    away = np.array(table["run"]) == "drop"
    found = compare_laws([get_law("annealing", lam=0.99), get_law("annealing")], table, away, resamples=0)
    assert (found["error"] < 0.01).all()
    with pytest.raises(ValueError, match="lam must be 'fit'"):
        get_law("annealing", lam=2.0)


# --- intervals ----------------------------------------------------------------------------------------------
def luck(kind, generator, spread=1.5e-3):
    def noise(at):
        if kind == "white":
            return generator.normal(0, spread, len(at))
        if kind == "run":
            return generator.normal(0, spread) + generator.normal(0, spread / 3, len(at))
        kept = np.exp(-(at[1] - at[0]) / 400) if len(at) > 1 else 0.0
        fresh = generator.normal(0, spread, len(at))
        from scipy.signal import lfilter

        fresh[1:] *= np.sqrt(1 - kept**2)
        return lfilter([1.0], [1.0, -kept], fresh)

    return noise


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "run_noise"), [("white", 0.0), ("lasting", 0.0), ("run", 1.5e-3)])
def test_intervals_cover_the_truth_as_often_as_they_say(kind, run_noise):
    """Of 90 % intervals for the end of an unseen schedule, 80 % or more cover; they are no wider than 1 %."""
    generator = np.random.default_rng(7)
    schedules, goal = curves(), wsd_rates(8000, PEAK, decay=0.2)
    truth = true_loss(goal)[-1]
    hits, widths = [], []
    for seed in range(120):
        table = log_of(schedules, noise=luck(kind, generator), every=60)
        law = AnnealingLaw(0.99, run_noise=run_noise)
        law.fit(table, schedules=schedules, resamples=300, random_state=seed)
        low, high = np.quantile(law.final(goal, draws=True)[:, 0], [0.05, 0.95])
        hits.append(low <= truth <= high)
        widths.append((high - low) / truth)
    assert np.mean(hits) >= 0.8
    assert np.median(widths) < 0.01


def test_ten_thousand_draws_take_no_longer_than_a_blink():
    import time

    schedules = curves()
    generator = np.random.default_rng(0)
    table = log_of(schedules, noise=luck("white", generator))
    start = time.process_time()
    law = AnnealingLaw(0.99).fit(table, schedules=schedules, resamples=10_000)
    assert time.process_time() - start < 20.0
    assert law.theta_draws_.shape == (10_000, 4)


# --- published measurements ---------------------------------------------------------------------------------
@pytest.mark.skipif(not (DATA / "lr-annealing").is_dir(), reason="no reference data")
def test_the_authors_constants_from_their_forty_losses():
    import pandas

    table = pandas.read_csv(DATA / "lr-annealing" / "authors_losses.csv").rename(columns={"schedule": "run"})
    step = np.arange(20_001)
    cosine = 1e-4 * (1 + np.cos(np.pi * np.clip((step - 500) / 19_500, 0, 1)))
    schedules = {"cosine": cosine, "constant": np.full(20_001, 2e-4)}
    law = AnnealingLaw(0.999).fit(table, schedules=schedules, resamples=0)
    assert law.objective_ == pytest.approx(1.629e-5, abs=1e-8)
    told = {name: round(value, 3) for name, value in law.params_.items()}
    assert told == {"L0": 2.628, "A": 0.43, "alpha": 0.55, "C": 0.411, "lam": 0.999}
    # The bang-bang minimum by the paper's constants, found beforehand by projected gradient.
    bound = law.bound(20_000, 2e-4)
    assert bound["steps"] == pytest.approx(2490, abs=25)
    assert bound["loss"] == pytest.approx(2.7681, abs=2e-4)


def read(size, names):
    import pandas

    files = [pandas.read_csv(DATA / "lr-schedules" / size / f"{name}.csv").assign(run=name) for name in names]
    return pandas.concat(files, ignore_index=True)


def errors(law, size):
    new = read(size, NEW)
    told = law.predict(new)
    relative = np.abs(told / new["loss"] - 1).groupby(new["run"]).mean().mean()
    return 100 * relative, np.abs(told - new["loss"]).groupby(new["run"]).mean().mean()


@published_runs
@pytest.mark.parametrize(("size", "constants", "error"), [
    ("25M", (3.1640, 0.5094, 0.5239, 0.4062), 0.00534),
    ("100M", (2.7899, 0.5915, 0.4560, 0.4801), 0.00462),
])  # fmt: skip
def test_two_published_runs_tell_six_others(size, constants, error):
    law = AnnealingLaw(0.999, warmup=2160, ramp=True).fit(read(size, FITTED[:2]), resamples=0)
    assert [law.params_[k] for k in ("L0", "A", "alpha", "C")] == pytest.approx(constants, rel=5e-3)
    assert errors(law, size)[1] == pytest.approx(error, abs=2e-4)


@published_runs
@pytest.mark.parametrize(("size", "theirs"), [("25M", 0.110), ("100M", 0.142)])
def test_the_law_chosen_on_three_published_runs_tells_the_other_six_as_well_as_its_authors_did(size, theirs):
    import time

    start = time.process_time()
    law = ScheduleLaw(warmup=2160).fit(read(size, FITTED))
    seconds = time.process_time() - start
    assert errors(law, size)[0] <= theirs
    assert seconds < 30.0  # 6 s where nothing else runs
    alone = EffectiveRateLaw(warmup=2160).fit(read(size, FITTED), resamples=0)
    assert errors(alone, size)[0] < 0.9 * theirs


@published_runs
@pytest.mark.parametrize("size", ["25M", "100M"])
def test_one_published_run_with_a_decay_tells_all_others(size):
    law = AnnealingLaw(warmup=2160, ramp=True).fit(read(size, ["wsd_20000_24000"]), resamples=0)
    new = read(size, sorted({*FITTED, *NEW} - {"wsd_20000_24000"}))
    error = 100 * np.abs(law.predict(new) / new["loss"] - 1).groupby(new["run"]).mean()
    assert error.max() < 0.5
