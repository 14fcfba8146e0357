"""Where the law is the truth, the entry's rules say so; where it is not, they do not."""

import numpy as np
import pandas as pd
import pytest

from allometry.laws import UtilityLaw
from allometry.papers import data_filtering_laws as entry
from allometry.study import Outcome
from allometry.study.result import Result

UTILITY = {"A": 0.30, "B": 0.24, "C": 0.20, "D": 0.15}


def result_of(study, rows):
    table = pd.DataFrame(rows)
    table["run"], table["status"], table["diverged"] = (
        table["arm"] + table["seed"].astype(str),
        "done",
        np.nan,
    )
    return Result(study, "full", table)


def mixtures(half_life, *, noise=0.002, credit=1.0):
    """Rows of errors that follow the law exactly, but for noise and for a share of the unions' credit."""
    size, budgets = 1500.0, [1500 * n for n in entry._EPOCHS]
    law = UtilityLaw.known(
        UTILITY, dict.fromkeys(UTILITY, half_life), dict.fromkeys(UTILITY, size), a=3e4, E=0.05
    )
    generator = np.random.default_rng(0)
    rows = []
    for arm in entry._ARMS:
        pools = arm.split("+")
        told = law.mixture_curve(budgets, pools).value
        means = np.mean([law.mixture_curve(budgets, [pool]).value for pool in pools], axis=0)
        for seed in range(6):
            for n, error, mean in zip(budgets, told, means, strict=True):
                drawn = np.exp(noise * generator.normal(size=2)) * (credit * error + (1 - credit) * mean)
                rows.append(
                    {"arm": arm, "samples": n, "seed": seed, "error": drawn[0], "validation error": drawn[1]}
                )
    return result_of(entry.mixtures, rows)


def test_all_rules_hold_where_the_law_does():
    result = mixtures(half_life=2.0)
    outcomes = {one.claim.sentence[:40]: one.outcome for one in result.verdicts}
    damping = outcomes.pop("Damping the exponent foretells unions be")
    assert set(outcomes.values()) == {Outcome.HOLDS}, [str(one) for one in result.verdicts]
    assert damping is not Outcome.CONTRADICTED  # the two kinds of damping foretell nearly the same here


def test_unions_worth_no_more_than_the_mean_of_their_pools_contradict_it():
    verdicts = {one.claim.sentence[:40]: one for one in mixtures(half_life=2.0, credit=0.0).verdicts}
    assert verdicts["The law foretells unions better than the"].outcome is Outcome.CONTRADICTED
    assert verdicts["The error of a union follows from runs o"].outcome is not Outcome.HOLDS
    assert verdicts["The best filter depends on the budget: t"].outcome is not Outcome.HOLDS


@pytest.mark.parametrize(("power", "outcome"), [(1.0, Outcome.HOLDS), (0.0, Outcome.CONTRADICTED)])
def test_the_half_life_s_exponent_is_found(power, outcome):
    generator = np.random.default_rng(1)
    sizes = {str(size): float(size) for size in entry._SIZES}
    lives = {pool: 4.0 * (size / 500) ** power for pool, size in sizes.items()}
    law = UtilityLaw.known(dict.fromkeys(sizes, 0.3), lives, sizes, a=3e4, E=0.05)
    rows = []
    for seed in range(6):
        for pool, size in sizes.items():
            for epochs in entry._EPOCHS:
                clean = law.mixture_curve(size * epochs, [pool]).value[0]
                error = clean * np.exp(0.001 * generator.normal(size=2))
                place = {"arm": "clean", "pool size": int(size), "epochs": epochs, "samples": size * epochs}
                rows.append({**place, "seed": seed, "error": error[0], "validation error": error[1]})
    result = result_of(entry.half_life, rows)
    assert [one.outcome for one in result.verdicts] == [outcome, outcome], [
        str(one) for one in result.verdicts
    ]
