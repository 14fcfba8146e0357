"""How many more runs settle a comparison: against simulation of the verdict itself, and a closed form."""

import numpy as np
import pytest

from allometry.laws.crossover import crossover
from allometry.laws.curve import Curve
from allometry.laws.further_runs import further_runs

X = np.geomspace(1e6, 1e8, 5)


def arms(generator, seeds, gain=0.0, slope=0.0, noise=0.02):
    """Base and arm with paired differences ``gain + slope * log x`` (centred) and noise of standard deviation
    ``noise`` in each."""
    u = np.log(X) - np.log(X).mean()
    base = 20 * X[:, None] ** -0.1 * np.ones(seeds)
    apart = gain + slope * u[:, None] + noise * generator.standard_normal((len(X), seeds))
    return Curve(X, base, name="base"), Curve(X, base * np.exp(-apart), name="arm")


def exactly(seeds, gain, slope, noise):
    """Arms whose estimates are exactly these: residuals that a line does not see, of the right size."""
    u = np.log(X) - np.log(X).mean()
    signs = np.where(np.arange(seeds) % 2, 1.0, -1.0)[None] * np.ones((len(X), 1))
    scale = noise * np.sqrt((len(X) * seeds - 2) / (len(X) * seeds))
    base = 20 * X[:, None] ** -0.1 * np.ones(seeds)
    return Curve(X, base), Curve(X, base * np.exp(-(gain + slope * u[:, None] + scale * signs)))


@pytest.mark.parametrize(("gain", "slope"), [(0.02, 0.0), (0.004, 0.009), (-0.03, 0.0)])
def test_the_chance_is_how_often_crossover_decides(gain, slope):
    told = further_runs(*exactly(2, gain, slope, 0.02), margin=0.0).chances["chance"]
    generator = np.random.default_rng(1)
    for further in (1, 4):
        verdicts = [
            crossover(*arms(generator, 2 + further, gain, slope), margin=0.0).verdict for _ in range(300)
        ]
        decided = np.mean([one != "undecided" for one in verdicts])
        assert decided == pytest.approx(told.loc[further], abs=0.09)  # three standard errors of 300 draws


def test_arms_that_are_level_are_settled_by_the_margin_alone():
    level = exactly(4, 0.0, 0.0, 0.004)
    assert further_runs(*level, margin=0.005).seeds is not None
    assert further_runs(*level, margin=0.0, most=16).chance < 0.15  # false signs at both ends only


def test_the_next_run_shrinks_the_crossing_as_a_refit_does():
    base, arm = arms(np.random.default_rng(2), 3, gain=0.01, slope=0.02)
    told = further_runs(base, arm, candidates=[1e9, *X]).scales["variance falls by"]
    u, d = np.log(np.repeat(X, 3)), (np.log(base.y) - np.log(arm.y)).ravel()

    def variance(at):
        design = np.stack([np.ones_like(at), at], axis=1)
        return np.linalg.inv(design.T @ design)

    slope, level = np.polyfit(u, d, 1)
    w = np.array([1.0, -level / slope])
    before, after = (w @ variance(one) @ w for one in (u, np.append(u, np.log(1e9))))
    assert told.loc[1e9] == pytest.approx(1 - after / before, rel=1e-6)


def test_dear_scales_are_chosen_only_for_what_they_tell():
    base, arm = arms(np.random.default_rng(3), 3, gain=0.01, slope=0.02)
    cheap = further_runs(base, arm, cost=lambda x: np.ones_like(x))
    dear = further_runs(base, arm, cost=lambda x: x**2)
    assert dear.next_scale <= cheap.next_scale


def test_what_cannot_be_planned_is_refused():
    base, arm = arms(np.random.default_rng(4), 3)
    with pytest.raises(ValueError, match="seeds in common"):
        further_runs(base, Curve(X, arm.y, seeds=("a", "b", "c")))
    with pytest.raises(ValueError, match="power is a share"):
        further_runs(base, arm, power=1.0)
    with pytest.raises(ValueError, match="candidates must be positive"):
        further_runs(base, arm, candidates=[-1.0])
    one = Curve(X, base.y[:, :1]), Curve(X, arm.y[:, :1])
    with pytest.raises(ValueError, match="three or more scales"):
        further_runs(*one)
