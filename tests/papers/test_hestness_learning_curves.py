"""The rules of the entry on learning curves, on tables whose answer is planted."""

import itertools

import numpy as np
import pandas as pd
import pytest

from allometry.papers.hestness_learning_curves import curves, perceptrons
from allometry.study import Result


def trained(noise=0.003, tilt=0.0, bend=0.0, growth=0.5, seeds=4):
    """Losses m^-0.2 (1 + 0.2 m^growth / parameters), one arm's exponent tilted, all bent by ``bend``."""
    rows = []
    generator = np.random.default_rng(0)
    sizes, widths = (axis.values("full") for axis in perceptrons.axes)
    for arm, m, width, seed in itertools.product(perceptrons.arms, sizes, widths, range(seeds)):
        parameters = 210.0 * width
        u = np.log(m / 2000)
        alpha = 0.2 + tilt * (arm == "AdamW")
        lack = 30.0 * (m / 2000) ** growth / parameters
        loss = 0.6 * np.exp(-alpha * u + bend * u**2) * (1 + lack + noise * generator.standard_normal())
        chosen = loss * (1 + noise * generator.standard_normal())
        rows.append({"arm": arm, "samples": m, "width": width, "seed": seed, "status": "done", "loss": loss,
                     "error": loss / 2, "chosen by": chosen, "parameters": parameters})  # fmt: skip
    return Result(perceptrons, "full", pd.DataFrame(rows))


def outcomes(result):
    return [str(one.outcome) for one in result.verdicts]


def test_planted_power_laws_hold():
    assert outcomes(trained()) == ["holds"] * 4


def test_a_planted_tilt_contradicts_its_claim_alone():
    assert outcomes(trained(tilt=0.15)) == ["holds", "contradicted", "holds", "holds"]


def test_a_curve_that_bends_is_not_foretold():
    assert outcomes(trained(bend=0.08))[0] == "contradicted"


def test_a_sufficient_model_that_shrinks_as_data_grow_contradicts():
    assert outcomes(trained(growth=-0.5, noise=1e-4))[3] == "contradicted"


def test_what_is_measured_is_never_taken_for_exact():
    for verdict in trained().verdicts:
        assert not any(one.exact for one in verdict.test.estimates)
    assert outcomes(trained(seeds=2))[0] == "undecided"


@pytest.mark.parametrize(("own", "other", "expected"), [(0.01, 0.2, "holds"), (0.2, 0.01, "contradicted")])
def test_shares_within_and_between_families(own, other, expected):
    rows = []
    generator = np.random.default_rng(1)
    for arm, seed in itertools.product(curves.arms, range(40)):
        family = curves.arms[arm]["family"]
        r = 0.95 if curves.arms[arm]["learners"][0] == "RandomForest" else 0.5
        rows.append({"arm": arm, "smallest size": 16, "seed": seed, "status": "done",
                     "difference": (own if family else other) * generator.uniform(0.9, 1.1),
                     "family": float(family), "r_first": r, "r_second": 0.5})  # fmt: skip
    result = Result(curves, "full", pd.DataFrame(rows))
    # random forests stand in six of the pairs, but are one of the eleven learners: not half of the curves
    assert outcomes(result) == [expected, expected, "contradicted"]
