"""Best and largest stable learning rates, on losses whose best rate is known."""

import math

import numpy as np
import pandas as pd
import pytest

from allometry.train.learning_rates import best_learning_rate, learning_rate_sweep, max_stable_learning_rate

GRID = [2.0**k for k in range(-10, 1)]


def bowl(best: float, curvature: float = 0.2):
    return lambda rate: 2.0 + curvature / 2 * (math.log2(rate) - best) ** 2


@pytest.mark.parametrize("best", [-6.3, -5.0, -3.75])
def test_a_parabola_gives_back_its_vertex_exactly(best: float) -> None:
    found = best_learning_rate(learning_rate_sweep(bowl(best), GRID))
    assert math.log2(found.rate) == pytest.approx(best, abs=1e-9)
    assert found.loss == pytest.approx(2.0, abs=1e-9)
    assert found.curvature == pytest.approx(0.2, abs=1e-9)
    assert found.edge is None


def test_the_interval_by_seeds_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        noise = generator.normal(0.0, 0.02, size=(len(GRID), 5))
        sweep = learning_rate_sweep(
            lambda rates, noise=noise: [bowl(-5.4)(r) + n for r, n in zip(rates, noise, strict=True)],
            GRID,
            together=True,
        )
        found = best_learning_rate(sweep)
        assert found.by == "seeds"
        covered += found.low <= 2**-5.4 <= found.high
    assert covered / 200 >= 0.90


def test_the_interval_by_misfit_covers_the_truth() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        found = best_learning_rate(
            learning_rate_sweep(lambda r: bowl(-5.2)(r) + generator.normal(0, 0.02), GRID)
        )
        assert found.by == "misfit"
        covered += found.low <= 2**-5.2 <= found.high
    assert covered / 200 >= 0.90


@pytest.mark.parametrize(("best", "edge"), [(-12.0, "low"), (3.0, "high")])
def test_the_edge_of_the_grid_is_a_bound_and_no_minimum(best: float, edge: str) -> None:
    found = best_learning_rate(learning_rate_sweep(bowl(best), GRID))
    assert found.edge == edge
    assert found.by == "edge"
    assert math.isnan(found.curvature)
    assert (found.low == 0.0) if edge == "low" else math.isinf(found.high)
    assert found.rate == (GRID[0] if edge == "low" else GRID[-1])


def test_lost_runs_keep_their_row_and_are_an_edge() -> None:
    sweep = learning_rate_sweep(lambda rate: math.inf if rate > 2**-5 else bowl(-3.0)(rate), GRID)
    assert list(sweep["learning_rate"]) == GRID
    assert list(sweep["status"]) == ["done"] * 6 + ["diverged"] * 5
    assert sweep["loss"].isna().sum() == 5
    found = best_learning_rate(sweep)
    assert (found.rate, found.edge) == (2**-5, "high")
    with pytest.raises(ValueError, match="every run of the sweep was lost"):
        best_learning_rate(sweep[sweep["status"] == "diverged"])


def test_a_rate_at_which_one_seed_is_lost_is_not_usable() -> None:
    def run(rate: float) -> list[float]:
        return [bowl(-3.0)(rate), math.nan if rate >= 2**-3 else bowl(-3.0)(rate)]

    assert best_learning_rate(learning_rate_sweep(run, GRID)).rate == 2**-4


def test_a_run_may_know_its_own_status() -> None:
    sweep = learning_rate_sweep(
        lambda rate: {"loss": 1.0, "status": "stopped" if rate > 1 else "done"}, [1.0, 2.0]
    )
    assert list(sweep["status"]) == ["done", "stopped"]


@pytest.mark.parametrize("limit", [0.011, 0.3, 7.0])
def test_bisection_encloses_the_limit(limit: float) -> None:
    found = max_stable_learning_rate(lambda rate: math.nan if rate > limit else 1.0, 0.01, 10.0, factor=1.05)
    assert found.rate <= limit < found.unstable <= 1.05 * found.rate
    assert set(found.runs["status"]) == {"done", "diverged"}
    assert len(found.runs) < 16


def test_gradient_descent_on_a_quadratic_is_stable_up_to_two_over_the_curvature() -> None:
    def run(rate: float) -> float:
        x = 1.0
        for _ in range(400):
            x -= rate * 4.0 * x
        return x * x

    found = max_stable_learning_rate(run, 1e-3, 10.0, rule=lambda loss: loss <= 1.0, factor=1.01)
    assert found.rate <= 0.5 <= found.unstable * 1.0001


def test_ends_that_enclose_nothing_are_said() -> None:
    assert math.isinf(max_stable_learning_rate(lambda rate: 1.0, 0.1, 1.0).unstable)
    low = max_stable_learning_rate(lambda rate: math.nan, 0.1, 1.0)
    assert math.isnan(low.rate)
    assert low.unstable == 0.1


def test_bad_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        learning_rate_sweep(bowl(0), [0.0, 1.0])
    with pytest.raises(ValueError, match="once"):
        learning_rate_sweep(bowl(0), [1.0, 1.0])
    with pytest.raises(ValueError, match="1 losses for 2"):
        learning_rate_sweep(lambda rates: [1.0], [1.0, 2.0], together=True)
    with pytest.raises(ValueError, match="columns"):
        best_learning_rate(pd.DataFrame({"lr": [1.0]}))
    with pytest.raises(ValueError, match="low=2"):
        max_stable_learning_rate(bowl(0), 2.0, 1.0)
