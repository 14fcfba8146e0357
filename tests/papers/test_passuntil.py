"""The rules of passuntil's claims on worlds where it is known what they should say."""

import numpy as np
import pandas
import pytest

from allometry.papers.passuntil import functions, unique
from allometry.study import Result

WIDTHS = unique.axes[0].values("full")


def told(p, r, cap, rng):
    k = rng.negative_binomial(r, p) + r
    over = k > cap
    q = np.where(over, np.minimum(rng.binomial(cap, p), r - 1), r)
    k = np.minimum(k, cap)
    rate = np.where(over, q / cap, (r - 1) / (k - 1))
    return {
        "counts": " ".join(f"{a}/{b}/{c:d}" for a, b, c in zip(q, k, over, strict=True)),
        "pass rate": rate.mean(), "unseen": (q == 0).mean(),
    }  # fmt: skip


def world(study, bend=0.0, jump=0.0, seeds=3):
    """A full result in which log(-log p) is a line in log size, bent, or jumping at the largest width."""
    rng = np.random.default_rng(0)
    rows = []
    a = 1.6 + 0.3 * rng.standard_normal(64)
    for seed in range(seeds):
        for width in WIDTHS:
            x = 2 * np.log(width / 40)
            luck = 0.03 * rng.standard_normal()
            p = np.exp(-np.exp(a - 0.15 * x + bend * x**2 + luck - jump * (width == WIDTHS[-1])))
            common = {"width": width, "seed": seed, "run": f"{width}/{seed}", "status": "done"}
            common |= {"params": 24 * width**2, "diverged": np.nan}
            rows.append({"arm": "100 samples", **told(p, 100, 100, rng), **common})
            rows.append({"arm": "pass until", **told(p, 4, 4000, rng), **common})
            if study is unique:
                rows.append({"arm": "exact", "counts": "", "pass rate": p.mean(), "unseen": 0.0, **common})
    return Result(study, "full", pandas.DataFrame(rows))


def outcomes(result):
    return [str(one.outcome) for one in result.verdicts]


@pytest.mark.parametrize("study", [unique, functions], ids=lambda study: study.name)
def test_where_the_law_holds_the_claims_do(study):
    found = outcomes(world(study))
    assert found[0] == "holds"
    assert found[-2:] == ["holds", "holds"]


def test_growth_that_bends_is_called_so():
    assert outcomes(world(unique, bend=-0.05))[-1] == "contradicted"
    assert outcomes(world(unique, bend=0.05))[-1] == "contradicted"


def test_a_jump_at_the_largest_width_is_not_foretold():
    found = outcomes(world(unique, jump=0.7))
    assert found[1:3] == ["contradicted", "contradicted"]


def test_two_seeds_decide_nothing():
    assert set(outcomes(world(unique, seeds=2))) == {"undecided"}
