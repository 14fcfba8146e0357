"""Fieller's set against an independent solution, its three kinds, and its coverage in simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from allometry.laws.fieller import fieller, line

U = np.log(np.geomspace(1.0, 32.0, 6))


def simulate(slope: float, count: int = 2000, sd: float = 0.02, seeds: int = 5, seed: int = 0) -> np.ndarray:
    """Paired differences (count, 6, seeds) of two arms with independent noise, crossing at u = 1.7."""
    noise = np.random.default_rng(seed).normal(size=(2, count, len(U), seeds))
    return slope * (U[:, None] - 1.7) + sd * (noise[0] - noise[1])


@settings(max_examples=200, deadline=None)
@given(
    p=st.floats(-3, 3), q=st.floats(-3, 3), a=st.floats(0.01, 2), b=st.floats(0.01, 2),
    rho=st.floats(-0.95, 0.95), t=st.floats(0.5, 4), probe=st.floats(-50, 50),
)  # fmt: skip
def test_the_set_is_where_the_line_is_not_told_apart_from_zero(p, q, a, b, rho, t, probe):
    covariance = np.array([[a * a, rho * a * b], [rho * a * b, b * b]])
    found = fieller(p, q, covariance, t)
    gap = abs(p + q * probe) - t * np.sqrt(a * a + 2 * probe * rho * a * b + (probe * b) ** 2)
    if abs(gap) > 1e-9:
        assert (probe in found) == (gap < 0)
    if found.kind in (
        "bounded",
        "complement",
    ):  # at its ends the ratio is exactly t, to rounding of their size
        for end in (found.low, found.high):
            size = abs(p) + abs(q * end) + t * (a + abs(end) * b)
            error = np.sqrt(a * a + 2 * end * rho * a * b + (end * b) ** 2)
            assert abs(abs(p + q * end) - t * error) < 1e-9 * size


def test_ends_agree_with_the_textbook_formula_for_a_bounded_set():
    # Fieller in the form with g = t^2 V_qq / q^2, as in bioassay texts, of the ratio r = p / q
    p, q, t = -1.3, 0.7, 2.1
    v = np.array([[0.02, 0.004], [0.004, 0.006]])
    g = t * t * v[1, 1] / q**2
    r = p / q
    middle = r - g * v[0, 1] / v[1, 1]
    half = (
        t / q * np.sqrt(v[0, 0] - 2 * r * v[0, 1] + r**2 * v[1, 1] - g * (v[0, 0] - v[0, 1] ** 2 / v[1, 1]))
    )
    low, high = (middle - half) / (1 - g), (middle + half) / (1 - g)
    found = fieller(p, q, v, t)
    np.testing.assert_allclose([-found.high, -found.low], [low, high], rtol=1e-13)


def test_tight_data_do_not_lose_the_interval_to_cancellation():
    v = np.diag([1e-24, 1e-26])
    found = fieller(-2.0, 1.0, v, 2.0)
    expected = 2.0 * np.sqrt(1e-24 + 4e-26)
    assert found.high - found.low == pytest.approx(2 * expected, rel=1e-3)


def test_the_kinds():
    eye = np.eye(2)
    assert fieller(0.0, 5.0, eye, 2.0).kind == "bounded"
    assert fieller(5.0, 0.0, eye, 2.0).kind == "complement"
    assert fieller(1.0, 1.0, eye, 2.0).kind == "whole line"
    half = fieller(3.0, 2.0, eye, 2.0)
    assert half.kind == "half-line"
    assert half.pieces() == ((-np.inf, pytest.approx(-5 / 12)),)
    assert fieller(1.0, 0.0, 0 * eye, 2.0).kind == "empty"
    assert fieller(1.0, 0.0, 0 * eye, 2.0).pieces() == ()
    assert fieller(1.0, -2.0, 0 * eye, 2.0).pieces() == ((0.5, 0.5),)
    assert fieller(0.0, 0.0, 0 * eye, 2.0).kind == "whole line"
    gap = fieller(5.0, 0.1, eye, 2.0)
    assert gap.pieces() == ((-np.inf, gap.low), (gap.high, np.inf))
    with pytest.raises(ValueError, match=r"\(\.\.\., 2, 2\)"):
        fieller(1.0, 1.0, np.eye(3), 2.0)
    with pytest.raises(ValueError, match="negative"):
        fieller(1.0, 1.0, eye, -2.0)


def test_the_line_is_ordinary_least_squares():
    d = np.random.default_rng(1).normal(size=(len(U), 4))
    found = line(U, d)
    peer = stats.linregress(np.repeat(U, 4), d.ravel())
    np.testing.assert_allclose(found.q, peer.slope, rtol=1e-12)
    np.testing.assert_allclose(found.p - found.q * found.centre, peer.intercept, rtol=1e-12)
    np.testing.assert_allclose(np.sqrt(found.covariance[1, 1]), peer.stderr, rtol=1e-12)
    at_zero = np.hypot(np.sqrt(found.covariance[0, 0]), found.centre * peer.stderr)
    np.testing.assert_allclose(at_zero, peer.intercept_stderr, rtol=1e-12)
    # lack of fit: F test of nested models, by hand from their residual sums
    free = ((d - d.mean(axis=1, keepdims=True)) ** 2).sum()
    straight = ((d - (peer.intercept + peer.slope * U[:, None])) ** 2).sum()
    ratio = (straight - free) / 4 / (free / 18)
    np.testing.assert_allclose(found.lack_of_fit, stats.f.sf(ratio, 4, 18), rtol=1e-10)


def test_gaps_count_as_absent_runs():
    d = np.random.default_rng(2).normal(size=(len(U), 3))
    observed = np.ones_like(d, dtype=bool)
    observed[2, 1] = observed[5, 0] = False
    found = line(U, np.where(observed, d, np.nan), observed)
    peer = stats.linregress(np.repeat(U, 3)[observed.ravel()], d[observed])
    np.testing.assert_allclose(
        [found.q, found.covariance[1, 1] ** 0.5], [peer.slope, peer.stderr], rtol=1e-12
    )
    assert found.degrees == observed.sum() - 2


def test_coverage_of_the_crossing_is_the_level():
    found = line(U, simulate(0.05, 4000))
    sets = fieller(found.p, found.q, found.covariance, stats.t.ppf(0.975, found.degrees))
    covered = sets.contains(1.7 - found.centre).mean()
    assert 0.93 < covered < 0.96
    assert (sets.kind == "bounded").mean() > 0.99


def test_nearly_parallel_laws_are_said_to_hold_no_information():
    found = line(U, simulate(0.002, 4000))
    sets = fieller(found.p, found.q, found.covariance, stats.t.ppf(0.975, found.degrees))
    assert 0.93 < sets.contains(1.7 - found.centre).mean() < 0.965
    assert (sets.kind == "whole line").mean() > 0.75
    assert (sets.kind == "bounded").mean() < 0.1


def test_the_lack_of_fit_test_has_its_size_and_sees_a_bend():
    size = (line(U, simulate(0.05, 4000)).lack_of_fit < 0.05).mean()
    assert 0.04 < size < 0.06
    bend = 0.02 * (U - U.mean()) ** 2
    power = (line(U, simulate(0.05, 4000) + bend[:, None]).lack_of_fit < 0.01).mean()
    left = bend - bend.mean()  # of a parabola on symmetric abscissas the line takes the mean alone
    expected = stats.ncf.sf(stats.f.isf(0.01, 4, 24), 4, 24, 5 * (left**2).sum() / (2 * 0.02**2))
    assert power == pytest.approx(expected, abs=0.025)
    exact = np.repeat((U**2)[:, None], 2, axis=1)
    assert line(U, exact).lack_of_fit == 0.0
    assert line(U, np.repeat(U[:, None], 2, axis=1)).lack_of_fit == 1.0


def test_ends_are_found_by_a_root_finder_too():
    found = line(U, simulate(0.05, 1, seed=5)[0])
    t = stats.t.ppf(0.975, found.degrees)
    v = found.covariance

    def excess(u: float) -> float:
        return (found.p + found.q * u) ** 2 - t**2 * (v[0, 0] + 2 * u * v[0, 1] + u * u * v[1, 1])

    sets = fieller(found.p, found.q, v, t)
    middle = -found.p / found.q
    low = optimize.brentq(excess, middle - 3, middle, xtol=1e-14)
    high = optimize.brentq(excess, middle, middle + 3, xtol=1e-14)
    np.testing.assert_allclose([sets.low, sets.high], [low, high], atol=1e-11)
