"""The rules of the claims on worlds where it is known what they should say."""

import numpy as np
import pandas
import pytest

from allometry.papers.lr_batch_curvature import curvature
from allometry.papers.lr_batch_random_matrix import rates
from allometry.study import Result

BATCHES = np.array(curvature.axes[0].values("full"), float)


def spectra(power=1.0, isotropic=0.01, directional=1.0, subspace=1.0, seeds=3, odd=None):
    """Excesses that fall as a power of the batch, and what the three estimates say of them, as factors."""
    rng, rows = np.random.default_rng(0), []
    for arm, samples in (("digits perceptron", 1536), ("clothes convolutions", 2048)):
        for moment in curvature.axes[1].values("full"):
            for seed in range(seeds):
                effective = 1 / (1 / BATCHES - 1 / samples)
                excess = 5.0 * effective**-power * np.exp(0.02 * rng.standard_normal(len(BATCHES)))
                if odd == moment:
                    excess = excess * effective**0.8
                for k, batch in enumerate(BATCHES):
                    rows.append({
                        "arm": arm, "batch": batch, "moment": moment, "seed": seed, "samples": samples,
                        "effective": effective[k], "excess": excess[k], "isotropic": isotropic * excess[k],
                        "directional": directional * excess[k], "subspace": subspace * excess[k],
                        "run": f"{arm}/{moment}/{seed}", "status": "done", "diverged": np.nan,
                    })  # fmt: skip
    return Result(curvature, "full", pandas.DataFrame(rows))


def walks(sgd=1.0, flat=0.0, adam=0.5, miss=1.0, critical=20.0, seeds=5):
    """Largest rates with these exponents below and above the critical batch."""
    rng, rows = np.random.default_rng(1), []
    for moment in rates.axes[1].values("full"):
        for seed in range(seeds):
            for batch in rates.axes[0].values("full"):
                below, above = min(batch / critical, 1.0), max(batch / critical, 1.0)
                luck = np.exp(0.03 * rng.standard_normal())
                for arm, power in (("sgd", sgd), ("adam", adam)):
                    rate = below**power * above**flat * luck
                    rows.append({
                        "arm": arm, "batch": batch, "moment": moment, "seed": seed, "rate": rate,
                        "law": rate * miss, "critical batch": critical,
                        "run": f"{arm}/{moment}/{seed}", "status": "done", "diverged": np.nan,
                    })  # fmt: skip
    return Result(rates, "full", pandas.DataFrame(rows))


def outcomes(result):
    return [str(one.outcome) for one in result.verdicts]


def test_where_the_excess_is_one_over_the_batch_the_claim_holds_and_isotropic_noise_does_not():
    assert outcomes(spectra()) == ["holds", "contradicted", "holds", "holds"]


@pytest.mark.parametrize(("power", "outcome"), [
    (0.5, "contradicted"), (1.5, "contradicted"), (0.67, "falls short"), (1.32, "falls short"),
    (0.9, "holds"),
])  # fmt: skip
def test_other_powers_are_called_what_they_are(power, outcome):
    assert outcomes(spectra(power=power))[0] == outcome


def test_one_moment_at_which_it_is_not_so_is_enough():
    assert outcomes(spectra(odd="late"))[0] == "contradicted"


def test_estimates_are_judged_by_their_largest_factor_on_either_side():
    found = outcomes(spectra(isotropic=0.2, directional=0.3, subspace=5.0))
    assert found[1:] == ["falls short", "falls short", "contradicted"]


def test_rates_that_follow_the_rules_are_called_so_at_both_moments():
    assert outcomes(walks()) == ["holds"] * 6
    assert outcomes(walks(miss=0.2)) == ["holds", "holds", "contradicted"] * 2
    assert outcomes(walks(miss=2.8)) == ["holds", "holds", "falls short"] * 2


def test_a_root_for_sgd_falls_short_and_a_line_for_adam_is_refuted():
    assert outcomes(walks(sgd=0.5))[0] == "falls short"
    assert outcomes(walks(sgd=0.2))[0] == "contradicted"
    assert outcomes(walks(flat=0.8))[0] == "contradicted"
    assert outcomes(walks(adam=1.0))[1] == "contradicted"
    assert outcomes(walks(adam=0.15))[1] == "falls short"


def test_where_no_batch_is_small_enough_nothing_is_said():
    assert outcomes(walks(critical=1.5))[:2] == ["undecided", "undecided"]


def test_two_seeds_decide_nothing():
    assert set(outcomes(spectra(seeds=2)) + outcomes(walks(seeds=2))) == {"undecided"}
