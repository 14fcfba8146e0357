"""Designs: counts, known fractions, analysis of variance by hand, the next scale against brute force."""

import itertools
import math

import numpy as np
import pytest

from allometry.laws.crossover import Curve
from allometry.laws.fieller import line
from allometry.study.design import eta_squared, factorial, grid, next_scale, one_at_a_time


# --- points -----------------------------------------------------------------------------------------------
def test_a_grid_has_every_combination_once():
    points = grid({"learning rate": [0.1, 0.2]}, width=(16, 32, 64))
    assert len(points) == 6
    assert len({tuple(p.items()) for p in points}) == 6
    assert [p["width"] for p in points[:3]] == [16, 32, 64]
    with pytest.raises(ValueError, match="'width' has no values"):
        grid(width=[])
    with pytest.raises(TypeError, match="must be a sequence, not 'adam'"):
        grid(optimizer="adam")


def test_one_at_a_time_differs_from_the_base_in_one_place():
    base = {"a": 1, "b": 2, "c": 3}
    points = one_at_a_time(base, a=[1, 5, 6], c=[7])
    assert points[0] == base
    assert [sum(p[k] != base[k] for k in base) for p in points[1:]] == [1, 1, 1]
    with pytest.raises(ValueError, match="'d' is not set in the base"):
        one_at_a_time(base, d=[1])


# --- factorials -------------------------------------------------------------------------------------------
def factors(k: int) -> dict[str, tuple[int, int]]:
    return dict.fromkeys("abcdefghij"[:k], (0, 1))


@pytest.mark.parametrize(
    ("k", "runs", "resolution"),
    # Box, Hunter and Hunter's table of fractions
    [(3, 4, 3), (4, 8, 4), (5, 8, 3), (5, 16, 5), (6, 8, 3), (6, 16, 4), (7, 8, 3), (7, 16, 4), (8, 16, 4),
     (6, 32, 6), (7, 32, 4), (8, 32, 4)],
)  # fmt: skip
def test_fractions_have_the_best_resolution_known(k, runs, resolution):
    design = factorial(factors(k), runs=runs)
    assert design.coded.shape == (runs, k)
    assert design.resolution == resolution
    assert len({tuple(row) for row in design.coded}) == runs
    np.testing.assert_array_equal(design.coded.T @ design.coded, runs * np.eye(k))
    for word in design.words:
        product = design.coded[:, ["abcdefghij".index(name) for name in word]].prod(axis=1)
        assert abs(product.sum()) == runs  # the same in every run
    assert len(design.words) == 2 ** (k - int(math.log2(runs))) - 1


def test_aliased_columns_are_equal_and_others_orthogonal():
    design = factorial(factors(5), runs=8)
    column = {
        names: design.coded[:, ["abcde".index(n) for n in names]].prod(axis=1)
        for size in (1, 2) for names in itertools.combinations("abcde", size)
    }  # fmt: skip
    for one, other in itertools.combinations(column, 2):
        agree = abs(column[one] @ column[other]) == 8
        assert agree == (other in design.aliases(*one))


def test_effects_of_a_full_design_are_those_put_in():
    design = factorial({"x": ("lo", "hi"), "y": (1, 2), "z": (False, True)})
    assert design.resolution == math.inf
    s = design.coded
    y = 10 + 1.5 * s[:, 0] - 0.25 * s[:, 2] + 0.75 * s[:, 0] * s[:, 1]
    found = design.effects(np.stack([y, 2 * y]))
    expected = {("x",): 3.0, ("z",): -0.5, ("x", "y"): 1.5}
    for names, value in found.items():
        np.testing.assert_allclose(value, np.array([1, 2]) * expected.get(names, 0.0), atol=1e-12)
    assert design.points[0] == {"x": "lo", "y": 1, "z": False}
    assert len(found) == 6


def test_a_fraction_names_an_effect_once():
    found = factorial(factors(3), runs=4).effects([1.0, 2.0, 3.0, 4.0])
    assert list(found) == [("a",), ("b",), ("c",)]


def test_own_generators_and_refusals():
    design = factorial(factors(4), generators={"d": ("a", "b")})
    np.testing.assert_array_equal(design.coded[:, 3], design.coded[:, 0] * design.coded[:, 1])
    for arguments, message in (
        ({"runs": 6}, "power of two from 8 to 16 for 4 factors, not 6"),
        ({"runs": 4}, "power of two from 8"),
        ({"runs": 8, "generators": {"d": "abc"}}, "not both"),
        ({"generators": {"d": ("a", "d")}}, "product of free factors"),
        ({"generators": {"q": ("a",)}}, "product of free factors"),
    ):
        with pytest.raises(ValueError, match=message):
            factorial(factors(4), **arguments)
    with pytest.raises(ValueError, match="two different levels"):
        factorial({"a": (1, 2, 3)})
    with pytest.raises(ValueError, match="4 results"):
        factorial(factors(2)).effects([1.0, 2.0])


# --- analysis of variance -----------------------------------------------------------------------------------
def test_shares_are_those_of_the_group_means():
    points = grid(a=["p", "q", "r"], b=[1, 2]) * 4
    y = np.random.default_rng(0).normal(size=24) + np.array([3.0 * (p["a"] == "p") + p["b"] for p in points])
    found = eta_squared(points, y, interactions=True)
    total = ((y - y.mean()) ** 2).sum()
    means = {}
    for key in ("a", "b", ("a", "b")):
        keys = key if isinstance(key, tuple) else (key,)
        cells: dict = {}
        for p, value in zip(points, y, strict=True):
            cells.setdefault(tuple(p[k] for k in keys), []).append(value)
        means[key] = sum(len(v) * (np.mean(v) - y.mean()) ** 2 for v in cells.values())
    assert found["a"] == pytest.approx(means["a"] / total, rel=1e-10)
    assert found["b"] == pytest.approx(means["b"] / total, rel=1e-10)
    joint = (means["a", "b"] - means["a"] - means["b"]) / total
    assert found["a", "b"] == pytest.approx(joint, rel=1e-9)
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-12)


def test_in_a_two_level_design_shares_are_squared_effects():
    design = factorial(factors(5), runs=16)
    y = np.random.default_rng(1).normal(size=(7, 16))
    shares, effects = eta_squared(design.points, y), design.effects(y)
    total = ((y - y.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    for name in "abcde":
        np.testing.assert_allclose(shares[name], 4 * effects[name,] ** 2 / total, rtol=1e-10)


def test_partial_shares_and_batches():
    points = grid(a=[0, 1], b=[0, 1]) * 3
    y = np.random.default_rng(2).normal(size=(5, 12))
    plain, part = eta_squared(points, y), eta_squared(points, y, partial=True)
    np.testing.assert_allclose(part["a"], plain["a"] / (plain["a"] + plain["residual"]), rtol=1e-12)
    assert eta_squared(points, y[3])["b"] == pytest.approx(plain["b"][3], rel=1e-12)


def test_confused_factors_are_refused():
    with pytest.raises(ValueError, match="a and b share a part"):
        eta_squared(one_at_a_time({"a": 0, "b": 0}, a=[1], b=[1]), [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="share a part"):
        eta_squared(factorial(factors(3), runs=4).points, np.arange(4.0), interactions=True)
    with pytest.raises(ValueError, match="every point must set"):
        eta_squared([{"a": 0}, {"b": 1}], [1.0, 2.0])
    with pytest.raises(ValueError, match="2 results"):
        eta_squared([{"a": 0}, {"a": 1}], [1.0])


# --- the next scale -----------------------------------------------------------------------------------------
X = np.geomspace(1e6, 3.2e7, 6)
CROSSING = 6e6


def curves(sd: float = 0.01, seeds: int = 4, seed: int = 0) -> tuple[Curve, Curve]:
    generator = np.random.default_rng(seed)
    return tuple(  # type: ignore[return-value]
        Curve(X, 3 * (X / CROSSING)[:, None] ** -b * np.exp(sd * generator.normal(size=(6, seeds))))
        for b in (0.05, 0.10)
    )


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("runs", [1, 3])
def test_the_closed_form_is_a_refit_with_the_run_added(paired, runs):
    base, arm = curves()
    candidates = np.array([5e5, 6e6, 1e8])
    found = next_scale(base, arm, candidates, paired=paired, runs=runs)
    logs = [np.log(c.y).ravel() for c in (base, arm)]
    data = [logs[0] - logs[1]] if paired else logs
    u = np.repeat(np.log(X), 4)
    root = None
    for candidate, half in zip(candidates, found.half_width, strict=True):
        fits = [np.polyfit(u, d, 1) for d in data]
        q, p = fits[0] - (0 if paired else fits[1])
        root = -p / q
        variance, degrees = 0.0, 0
        for fit, d in zip(fits, data, strict=True):
            noise = ((d - np.polyval(fit, u)) ** 2).sum() / (len(u) - 2)
            design = np.concatenate([u, np.full(runs, np.log(candidate))])
            design = np.stack([np.ones_like(design), design - root], axis=1)
            variance += noise * np.linalg.inv(design.T @ design)[0, 0]
            degrees += len(u) - 2 + runs
        from scipy.stats import t

        assert half == pytest.approx(t.ppf(0.975, degrees) * np.sqrt(variance) / abs(q), rel=1e-8)
    assert found.now > found.half_width.max()


def test_the_expected_widths_are_those_of_simulated_experiments():
    sd, count = 0.01, 20_000
    candidates = np.array([1e6, 6e6, 3.2e7, 2e8])
    generator = np.random.default_rng(1)
    simulated = []
    for candidate in candidates:  # the whole experiment again, with one pair more at the candidate
        u = np.log(np.concatenate([np.repeat(X, 4), [candidate]]))
        noise = sd * np.sqrt(2) * generator.normal(size=(count, len(u), 1))
        fitted = line(u, 0.05 * (u - np.log(CROSSING))[:, None] + noise)
        simulated.append((fitted.centre - fitted.p / fitted.q).std())
    # the closed form at the true values: curves whose residuals have exactly that noise
    d = np.array([1.0, -1.0, 1.0, -1.0]) * sd / np.sqrt(2) * np.sqrt(22 / 24)
    base = Curve(X, 3 * (X / CROSSING)[:, None] ** -0.05 * np.exp(d))
    arm = Curve(X, 3 * (X / CROSSING)[:, None] ** -0.10 * np.exp(-d))
    found = next_scale(base, arm, candidates)
    from scipy.stats import t

    np.testing.assert_allclose(found.half_width / t.ppf(0.975, 23), simulated, rtol=0.03)
    assert np.argmin(simulated) == np.argmin(found.half_width)


def test_without_costs_the_extremes_win_and_with_them_the_cheap():
    base, arm = curves()
    candidates = np.geomspace(1e6, 3.2e7, 6)
    assert next_scale(base, arm, candidates).scale == pytest.approx(
        3.2e7
    )  # the crossing lies in the upper half
    cheap = next_scale(base, arm, candidates, cost=lambda x: x**2)
    assert cheap.scale == pytest.approx(1e6)
    np.testing.assert_allclose(cheap.cost, candidates**2)


def test_units_of_scale_do_not_matter():
    base, arm = curves()
    small = [Curve(1e-6 * c.x, c.y) for c in (base, arm)]
    one, other = next_scale(base, arm, [1e6, 1e8]), next_scale(*small, [1.0, 100.0])
    np.testing.assert_allclose(one.half_width, other.half_width, rtol=1e-9)


def test_what_cannot_be_planned_is_refused():
    base, arm = curves()
    with pytest.raises(ValueError, match="three scales"):
        next_scale(Curve(X[:2], base.y[:2]), Curve(X[:2], arm.y[:2]), [1e6])
    exact = [Curve(X, 3 * X[:, None] ** -b) for b in (0.05, 0.1)]
    with pytest.raises(ValueError, match="noise is not known"):
        next_scale(*exact, [1e6])
    with pytest.raises(ValueError, match="positive scales"):
        next_scale(base, arm, [-1.0])
    with pytest.raises(ValueError, match="one for each of the 2 candidates"):
        next_scale(base, arm, [1e6, 1e7], cost=[1.0])
    with pytest.raises(ValueError, match="at least 1, not 0"):
        next_scale(base, arm, [1e6], runs=0)
