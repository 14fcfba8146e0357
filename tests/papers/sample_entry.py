"""An entry like those of the library, of no paper: averages of draws, without torch, in milliseconds.

So that the conformance suite is never empty, and each of its checks has something to look at.
"""

import hashlib
import math

from allometry.papers import Paper
from allometry.study import Claim, Study, axis, undecided


def _falls(result):
    return result.slope("mean").within(-1.5, -0.5)


def _bias(result):
    if result.table["seed"].nunique() < 2:
        return undecided("one seed has no scatter")
    return result.gap("median") > -1.0


averages = Study(
    "sample-entry/averages",
    question="How fast does an average approach its limit?",
    arms=("mean", "median"),
    axes=[axis("draws", 10, 100, 1000, tiny=(10, 100)), axis("part", 1, 2, recorded=True)],
    measure="squared error",
    profiles={"tiny": {"seeds": 2}, "quick": {"seeds": 3}, "full": {"seeds": 20}},
    together=("seed", "draws"),
    claims=[
        Claim(
            "It falls as one over n.", _falls, where="theorem 1", threshold="exponent within -1.5 and -0.5"
        ),
        Claim("The median is no worse by one.", _bias, where="section 2", threshold="difference above -1"),
    ],
)


@averages.trial
def _average(arm, draws, seed, profile):
    import numpy as np

    for part in (1, 2):
        told = []
        for n, one in zip(draws, seed, strict=True):
            x = np.random.default_rng([one, part]).normal(size=n)
            centre = float(x.mean()) if arm == "mean" else float(np.median(x))
            told.append(
                {"part": part, "squared error": max(centre**2, math.ulp(1.0)), "seconds": 0.0,
                 "data_digest": hashlib.sha256(x.tobytes()).hexdigest()[:16]}
            )  # fmt: skip
        yield told


paper = Paper(
    slug="sample-entry",
    title="On averages",
    authors="Nobody in particular",
    year=2024,
    arxiv="0000.00000",
    summary=(
        "The mean of n independent draws is off by about one over the square root of n, whatever is drawn, "
        "as long as it has a variance; the median does as well up to a constant that depends on the density "
        "at the centre. This entry says so with as few lines as an entry can have."
    ),
    studies=(averages,),
    parts=("allometry.study.Study", "allometry.laws.Curve"),
)
