"""Two results side by side: Welch's interval, and what it says of reruns."""

import numpy as np
import pandas
import pytest
from scipy import stats

from allometry.study.agreement import compare, welch
from allometry.study.result import Result
from allometry.study.study import Study, axis


def test_the_interval_is_scipys():
    draw = np.random.default_rng(0)
    a, b = draw.normal(1.0, 0.3, 4), draw.normal(0.5, 1.2, 7)
    ours = welch(a, b, level=0.9)
    theirs = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.9)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-12)


def test_it_holds_the_true_difference_as_often_as_it_says():
    draw = np.random.default_rng(1)
    held = [welch(one, other, level=0.9) for one, other in zip(
        draw.normal(0.0, 1.0, (2000, 4)), draw.normal(0.0, 3.0, (2000, 5)), strict=True)]  # fmt: skip
    assert np.mean([one.low <= 0 <= one.high for one in held]) == pytest.approx(0.9, abs=0.02)


def made(values, profile="full"):
    study = Study("made", question="?", arms=("a",), axis=axis("n", *values), measure="loss")
    rows = [
        {
            "arm": "a",
            "n": n,
            "seed": seed,
            "run": f"{n}/{seed}",
            "status": "done",
            "diverged": None,
            "loss": loss,
        }
        for n, losses in values.items()
        for seed, loss in enumerate(losses)
    ]
    return Result(study, profile, pandas.DataFrame(rows))


def test_points_that_both_have_are_compared_and_no_interval_is_no_verdict():
    one = made({1: [1.0, 1.1, 0.9], 2: [0.5, 0.5, 0.6], 4: [0.1]})
    other = made({1: [1.1, 1.0, 1.0], 2: [0.9, 0.8, 0.9], 8: [0.1], 4: [0.2]}, "quick")
    table = compare(one, other)
    assert table["n"].tolist() == [1, 2, 4]
    assert table["agree"].tolist() == [True, False, None]
    assert table["difference"].tolist() == pytest.approx([1 / 30, 1 / 3, 0.1])
    assert table["same_data"].isna().all()
    with pytest.raises(ValueError, match="share no point"):
        compare(made({1: [1.0]}), made({2: [1.0]}))


def test_numbers_on_different_data_are_not_compared():
    one, other = (made({1: [1.0, 1.1, 0.9], 2: [0.5, 0.5, 0.6]}) for _ in range(2))
    one.table["data"], other.table["data"] = "3.11", ["3.11"] * 3 + ["3.12"] * 3
    table = compare(one, other)
    assert table["agree"].tolist() == [True, None]
    assert table["same_data"].tolist() == [True, False]
