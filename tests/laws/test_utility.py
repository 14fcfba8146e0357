"""The law of pools: the authors' own numbers, a plain loop beside it, identities, intervals that cover."""

import json

import numpy as np
import pandas as pd
import pytest

from allometry import laws
from allometry.laws.forms import Form
from allometry.laws.utility_form import PoolCurves

BEST = ("top 10", "10-20", "20-30", "30-40")
POOL = 12.8e6  # samples of a tenth of DataComp-medium
UTILITY = {"b": (0.160, 0.125, 0.100, 0.085), "half": (6.72727272, 8.54545454, 5.27272727, 2.27272727),
           "a": 0.025, "kind": "utility"}  # fmt: skip
EFFECTIVE = {"b": (0.18227273, 0.14484848, 0.13530303, 0.09757576), "half": (4.0, 4.36363636, 2.90909091,
             1.45454545), "a": 0.022, "kind": "effective_data"}  # fmt: skip
# accuracies in % that the authors' functions give for the union of the best 1, 2, 3, 4 tenths
PUBLISHED = {
    "utility": {
        32e6: (18.25, 15.84, 13.42, 11.68), 64e6: (24.62, 23.30, 20.40, 17.99),
        128e6: (28.73, 29.60, 26.77, 24.13), 640e6: (31.18, 38.55, 37.56, 35.14),
        1280e6: (31.19, 39.78, 40.04, 38.10),
    },
    "effective_data": {
        32e6: (18.25, 17.14, 15.98, 13.91), 64e6: (24.58, 24.42, 23.23, 20.83),
        128e6: (28.63, 30.53, 29.55, 26.94), 640e6: (30.77, 39.02, 40.09, 37.92),
        1280e6: (30.77, 39.99, 42.43, 40.97),
    },
}  # fmt: skip


def published(found, **options):
    return laws.UtilityLaw.known(
        dict(zip(BEST, found["b"], strict=True)), dict(zip(BEST, found["half"], strict=True)),
        dict.fromkeys(BEST, POOL), a=found["a"], E=0.1, kind=found["kind"],
        **{"floor": "official", **options},
    )  # fmt: skip


def by_hand(n, size, b, half_life, a, kind="utility", E=0.0, official=False):
    """One pool, epoch by epoch, straight from the formulas."""
    ends, k = [min(size, n)], 1
    while ends[-1] < n * (1 - 1e-12):
        ends.append(min(size * (k + 1), n))
        k += 1
    if kind == "effective_data":
        fresh = np.diff([0.0, *ends])
        return (a * sum(f * 0.5 ** (k / half_life) for k, f in enumerate(fresh)) / 1e5) ** -b + E
    y = (a * ends[0] / 1e5) ** -b + (E if official else 0.0)
    for k in range(1, len(ends)):
        y *= (ends[k] / ends[k - 1]) ** (-b * 0.5 ** (k / half_life))
    return y + (0.0 if official else E)


# --- the authors' numbers -----------------------------------------------------------------------------------
@pytest.mark.parametrize("found", [UTILITY, EFFECTIVE], ids=["utility", "effective data"])
def test_unions_are_foretold_as_by_the_authors_program_to_a_hundredth_of_a_percent(found):
    law = published(found)
    for budget, accuracies in PUBLISHED[found["kind"]].items():
        told = [100 * (1 - law.mixture_curve(budget, BEST[:m]).value[0]) for m in (1, 2, 3, 4)]
        assert told == pytest.approx(accuracies, abs=0.0051)
        assert laws.plan_pools(law, [budget]).errors[0].argmin() == np.argmax(accuracies)


@pytest.mark.parametrize(
    ("found", "pool", "errors"),
    [
        (UTILITY, BEST[0], (0.9302, 0.8416, 0.7718, 0.7408, 0.7234, 0.7127)),
        (UTILITY, BEST[3], (1.0059, 0.9631, 0.9360, 0.9277, 0.9245, 0.9231)),
        (EFFECTIVE, BEST[0], (0.928, 0.8409, 0.7721, 0.7413, 0.7242, 0.7137)),
    ],
)
def test_single_pools_are_those_of_the_authors_program(found, pool, errors):
    told = published(found).mixture_curve(POOL * np.array([1, 2, 4, 6, 8, 10]), [pool]).value
    assert told == pytest.approx(errors, abs=0.00006)


def test_the_published_parameters_are_those_of_the_authors_file(reference_data):
    path = reference_data / "data-filtering" / "parameter_values.jsonl"
    if not path.is_file():
        pytest.skip(f"no {path}")
    for line, found in zip(path.read_text().splitlines(), (EFFECTIVE, UTILITY), strict=True):
        known = json.loads(line)
        assert known["best_a"] == found["a"]
        assert [-b for b in known["b_values"][:4]] == pytest.approx(found["b"], abs=1e-8)
        assert known["c_values"][:4] == pytest.approx(found["half"], abs=1e-8)


def test_a_floor_added_once_is_another_law():
    inside, outside = (published(UTILITY, floor=one) for one in ("official", "outside"))
    accuracy = [100 * (1 - law.mixture_curve(640e6, BEST[:2]).value[0]) for law in (inside, outside)]
    assert accuracy == pytest.approx([38.55, 35.64], abs=0.0051)


@pytest.mark.parametrize("found", [UTILITY, EFFECTIVE], ids=["utility", "effective data"])
def test_the_published_parameters_come_back_from_their_own_curves(found):
    law = published(found)
    samples = np.tile(POOL * np.array([2.0, 4, 6, 8, 10]), 4)
    table = {"samples": samples, "pool": np.repeat(BEST, 5), "pool_size": POOL}
    again = laws.UtilityLaw(found["kind"], "official").fit(
        {**table, "error": law.predict(table)}, resamples=0
    )
    assert list(again.utility.values()) == pytest.approx(found["b"], rel=1e-4)
    assert list(again.half_life.values()) == pytest.approx(found["half"], rel=1e-4)
    assert again.params_["a"] == pytest.approx(found["a"], rel=1e-3)


# --- identities and limits ----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["utility", "effective_data"])
@pytest.mark.parametrize("official", [False, True])
def test_one_pool_is_the_plain_loop(kind, official):
    if kind == "effective_data" and official:
        official = False  # its floor is added once in any case
    generator = np.random.default_rng(0)
    for _ in range(20):
        size, b, half, a, E = np.exp(generator.normal([7, -1.5, 1, 4, -2], [1, 0.5, 1, 1, 0.5]))
        law = laws.UtilityLaw.known({"A": b}, {"A": half}, {"A": size}, a=a, E=E, kind=kind,
                                    floor="official" if official else "outside")  # fmt: skip
        n = size * np.exp(generator.uniform(-2, 4, 8))
        expected = [by_hand(one, size, b, half, a, kind, E, official) for one in n]
        assert law.mixture_curve(n, ["A"]).value == pytest.approx(expected, rel=1e-12)


def test_a_union_is_the_mean_of_logarithms_over_longer_epochs_with_longer_half_lives():
    sizes, b, half = {"A": 700.0, "B": 2100.0}, {"A": 0.3, "B": 0.2}, {"A": 2.0, "B": 5.0}
    law = laws.UtilityLaw.known(b, half, sizes, a=3e3)
    n = np.geomspace(100, 2e5, 30)
    for weights, shares in ((None, (0.25, 0.75)), ((3, 2), (0.6, 0.4))):
        expected = np.zeros(30)
        for pool, share in zip("AB", shares, strict=True):
            alone = [by_hand(one, sizes[pool] / share, b[pool], half[pool] / share, 3e3) for one in n]
            expected += share * np.log(alone)
        assert np.log(law.mixture_curve(n, ["A", "B"], weights).value) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", ["utility", "effective_data"])
def test_identical_pools_are_one_pool_of_their_size_and_half_life(kind):
    n = np.geomspace(500, 1e6, 40)
    for count in (2, 3, 7):
        names = [f"pool {i}" for i in range(count)]
        many = laws.UtilityLaw.known(dict.fromkeys(names, 0.2), dict.fromkeys(names, 4.0),
                                     dict.fromkeys(names, 1e4), a=40.0, E=0.05, kind=kind)  # fmt: skip
        one = laws.UtilityLaw.known({"A": 0.2}, {"A": 4.0 * count}, {"A": 1e4 * count}, a=40.0, E=0.05,
                                    kind=kind)  # fmt: skip
        assert many.mixture_curve(n, names).value == pytest.approx(one.mixture_curve(n, "A").value, rel=1e-12)


@pytest.mark.parametrize("kind", ["utility", "effective_data"])
def test_fresh_samples_follow_a_power_law_and_so_do_all_where_nothing_wears_out(kind):
    n = np.geomspace(10, 1e4, 25)
    mortal = laws.UtilityLaw.known({"A": 0.2}, {"A": 3.0}, {"A": 1e4}, a=40.0, kind=kind)
    ageless = laws.UtilityLaw.known({"A": 0.2}, {"A": 1e12}, {"A": 100.0}, a=40.0, kind=kind)
    expected = (40.0 * n / 1e5) ** -0.2
    assert mortal.mixture_curve(n, "A").value == pytest.approx(expected, rel=1e-13)
    assert ageless.mixture_curve(n, "A").value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", ["utility", "effective_data"])
def test_the_error_is_continuous_at_the_borders_of_epochs_and_falls(kind):
    law = laws.UtilityLaw.known({"A": 0.3, "B": 0.2}, {"A": 2.0, "B": 6.0}, {"A": 1e3, "B": 1e3}, a=500.0,
                                E=0.02, kind=kind, floor="official")  # fmt: skip
    for union, epoch in ((["A"], 1e3), (["A", "B"], 2e3)):
        borders = epoch * np.arange(1, 20)
        below, above = (law.mixture_curve(borders * (1 + e), union).value for e in (-1e-9, 1e-9))
        assert below == pytest.approx(above, rel=1e-8)
        curve = law.mixture_curve(np.linspace(10, 3e4, 4000), union).value
        assert (np.diff(curve) < 0).all()


@pytest.mark.parametrize("kind", ["utility", "effective_data"])
def test_what_has_worn_out_gains_nothing_more(kind):
    pools = {"A": 0.3, "B": 0.2}
    law = laws.UtilityLaw.known(
        pools, dict.fromkeys(pools, 0.02), dict.fromkeys(pools, 1e3), a=500.0, kind=kind
    )
    told = law.mixture_curve([2e3, 2e5], ["A", "B"]).value
    assert told[0] == pytest.approx(told[1], rel=1e-6)


def test_damped_samples_are_those_of_the_data_constrained_law_for_long_half_lives():
    # Muennighoff's exp(-R / R*) loses its worth continuously, 2^(-k / tau) epoch by epoch: 1 / (2 R*) apart
    from allometry.laws.repetition import _effective

    long = 15.4
    for repeats in (1, 4, 16, 40):
        law = laws.UtilityLaw.known({"A": 1.0}, {"A": long * np.log(2)}, {"A": 1e5}, a=1.0,
                                    kind="effective_data")  # fmt: skip
        seen = 1e5 * (repeats + 1)
        effective = 1e5 / law.mixture_curve(seen, "A").value[0]
        theirs = np.exp(_effective(np.log(seen), np.log(1e5), np.array(long))[0])
        assert effective == pytest.approx(theirs, rel=0.5 / long + 1e-3)
        assert effective < theirs


@pytest.mark.parametrize(
    ("kind", "floor"), [("utility", "outside"), ("utility", "official"), ("effective_data", "outside")]
)
def test_derivatives_are_those_of_finite_differences(kind, floor):
    form = PoolCurves("AB", (700.0, 900.0), kind, floor)
    weights = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [0, 1], [0.3, 0.7]])[: 6 if kind == "utility" else 5]
    samples = np.array([300.0, 5e3, 5e3, 650.0, 2e4, 3e4])[: len(weights)]  # one row twice
    features = form.features({"samples": samples, "weights": weights})
    theta = form.to_coordinates(np.array([[0.05, 900, 0.3, 0.2, 3, 8], [0.01, 2e3, 0.1, 0.4, 1, 2]]))
    value, slopes = form.jacobian(theta, features)
    assert value == pytest.approx(form.log_prediction(theta, features), abs=1e-13)
    for i in range(6):
        step = 1e-6 * np.eye(6)[i]
        apart = form.log_prediction(theta + step, features) - form.log_prediction(theta - step, features)
        assert slopes[:, i] == pytest.approx(apart / 2e-6, abs=1e-7)
    cotangent = np.random.default_rng(0).normal(size=value.shape)
    exact, numeric = (
        form.curvature(theta, features, cotangent),
        Form.curvature(form, theta, features, cotangent),
    )
    assert exact == pytest.approx(numeric, abs=1e-6)


# --- intervals ----------------------------------------------------------------------------------------------
TRUTH = np.array([0.08, 3e4, 0.30, 0.22, 4.0, 6.0])
EPOCHS = (1, 2, 4, 8, 16, 32)


def simulated(runs, between, within, simulations, seed, told=True):
    """Fits to as many noisy copies of one table, and the form that made them: one call of the solver."""
    form = PoolCurves("AB", (1500.0, 1500.0))
    pool = np.repeat([0, 1], runs * len(EPOCHS))
    design = {"samples": 1500.0 * np.tile(EPOCHS, 2 * runs), "weights": np.eye(2)[pool]}
    run = np.repeat(np.arange(2 * runs), len(EPOCHS))
    generator = np.random.default_rng(seed)
    clean = form.log_prediction(form.to_coordinates(TRUTH)[None], form.features(design))
    luck = between * generator.normal(size=(simulations, 2 * runs))[:, run]
    noise = within * generator.normal(size=(simulations, len(run)))
    noisy, known = np.exp(clean + luck + noise), run if told else None
    return form, laws.fit(form, design, noisy, run=known, loss="squared", resamples=150, random_state=seed)


@pytest.mark.parametrize(
    ("runs", "between", "within", "told", "widest"),
    [(4, 0.0, 0.01, False, 0.06), (4, 0.012, 0.004, True, 0.04), (1, 0.0, 0.01, True, np.inf)],
    ids=["independent noise", "noise by run", "one run a pool"],
)
def test_intervals_cover_utility_half_life_and_a_union_never_trained_on(runs, between, within, told, widest):
    form, fits = simulated(runs, between, within, simulations=120, seed=3, told=told)
    union = {"samples": np.array([1500.0 * 48]), "weights": np.array([[0.5, 0.5]])}
    true = np.exp(form.log_prediction(form.to_coordinates(TRUTH)[None], form.features(union)))[0, 0]
    ends = [fit.interval(union) for fit in fits]
    inside = np.mean([one.low[0] <= true <= one.high[0] for one in ends])
    limits = [np.quantile(fit.draws, [0.05, 0.95], axis=0) for fit in fits]
    covered = np.mean([(low <= TRUTH) & (high >= TRUTH) for low, high in limits], axis=0)
    # nominal 0.90, standard error over 120 simulations 0.027; two runs can only say that they are few
    assert 0.84 <= inside <= (0.98 if np.isfinite(widest) else 1.0)
    assert (covered[2:] >= 0.84).all()  # utilities and half-lives
    assert np.median([one.width[0] / true for one in ends]) < widest
    assert any("2 runs for 6 parameters" in said for said in fits[0].warnings) == (runs == 1)


# --- refusals -----------------------------------------------------------------------------------------------
def table_of(epochs=(1, 2, 4, 8, 16), pools="AB", **more):
    n = 1000.0 * np.array(epochs)
    law = laws.UtilityLaw.known(dict(zip(pools, (0.3, 0.2), strict=True)), dict.fromkeys(pools, 3.0),
                                dict.fromkeys(pools, 1000.0), a=3e4, E=0.05)  # fmt: skip
    columns = {"samples": np.tile(n, len(pools)), "pool": np.repeat(list(pools), len(n)), "pool_size": 1000.0}
    return pd.DataFrame({**columns, "error": law.predict(columns), **more})


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (table_of((1, 2)), "measured after 2 numbers of samples"),
        (table_of((0.25, 0.5, 1)), "was never repeated"),
        (table_of().assign(error=lambda t: 100 * t["error"]), "divide percentages by 100"),
        (table_of(schedule=["cosine", "constant"] * 5), "runs of different schedule do not compare"),
        (table_of().drop(columns="pool_size"), "needs a column 'pool_size'"),
        (table_of().assign(pool=["A+B"] * 10), "pool A was trained on in unions alone"),
        (table_of().assign(pool_size=[1.0, 2.0] * 5), "has two sizes"),
        (table_of().assign(error=np.nan), "'error' is nan in row 0"),
        (table_of().assign(samples=-1.0), "samples must be positive"),
    ],
)
def test_what_cannot_be_known_is_refused_in_a_sentence(table, said):
    with pytest.raises(ValueError, match=said):
        laws.UtilityLaw().fit(table, resamples=0)


def test_an_error_that_rises_with_repetition_is_refused_with_its_curve():
    table = table_of()
    table.loc[table.index[-1], "error"] = table["error"].iloc[-2] * 1.1
    with pytest.raises(ValueError, match=r"error on pool B rises with repetition \(.* at 16000\)"):
        laws.UtilityLaw().fit(table)
    laws.UtilityLaw(rise=0.2).fit(table, resamples=0)
    noisy = pd.concat([table_of().assign(run=f"{i}") for i in range(6)])
    shaken = np.exp(0.05 * np.random.default_rng(0).normal(size=len(noisy)))
    laws.UtilityLaw().fit(noisy.assign(error=noisy["error"] * shaken), resamples=0)  # noise is no rise


def test_what_is_not_yet_visible_is_said():
    n = 1000.0 * np.array([1, 2, 4, 8])
    table = {"samples": n, "pool": ["A"] * 4, "pool_size": 1000.0, "error": (3 * n / 1e2) ** -0.2}
    law = laws.UtilityLaw().fit(table, resamples=50)
    assert law.table().loc["half_life[A]", "high"] == np.inf
    assert any("lies above the 8 epochs measured" in one for one in law.warnings_)


def test_unknown_pools_kinds_and_weights_are_refused():
    law = published(UTILITY)
    with pytest.raises(ValueError, match="there is no pool 'X'"):
        law.mixture_curve(1e6, ["X"])
    with pytest.raises(ValueError, match="was not learned"):
        law.predict({"samples": [1e6], "pool": ["top 10+X"]})
    with pytest.raises(ValueError, match="one positive number for each"):
        law.mixture_curve(1e6, BEST[:2], weights=(1, 0))
    with pytest.raises(ValueError, match="kind must be"):
        laws.UtilityLaw("other")
    with pytest.raises(ValueError, match="epochs of a pool"):
        law.mixture_curve(1e15, BEST[:1])
    with pytest.raises(ValueError, match="in proportion to their sizes"):
        published(EFFECTIVE).mixture_curve(1e8, BEST[:2], weights=(1, 2))


# --- as any law ---------------------------------------------------------------------------------------------
def test_it_is_a_law_like_others():
    table = table_of()
    law = laws.get_law("utility", kind="effective_data")
    assert law.fit(table, resamples=0).kind == "effective_data"
    union = {"samples": [4000.0], "pool": ["A+B"], "pool_size": [2000.0], "error": [0.3]}
    both = pd.concat([table, pd.DataFrame(union)], ignore_index=True)
    told = laws.held_out(laws.UtilityLaw(), both, both["pool"] == "A+B", resamples=20)
    assert len(told.observed) == 1
    fitted = laws.UtilityLaw().fit(both, resamples=20)  # runs on unions count too
    assert set(fitted.report()) == {"best union", "frontier", "regret"}
    assert len(fitted.plot().lines) == 6


def test_pools_may_come_in_any_order():
    table = table_of()
    one = laws.UtilityLaw().fit(table, resamples=0)
    other = laws.UtilityLaw().fit(table.iloc[::-1], resamples=0)
    assert one.utility == pytest.approx(other.utility, rel=1e-5)
