"""Curves: order, gaps, divergence, and every refusal in one sentence."""

import numpy as np
import pytest

from allometry.laws.crossover import Curve


def test_rows_come_in_order_of_scale_whatever_the_order_given():
    given = Curve([1e8, 1e6, 1e7], [[1.0, 1.1], [3.0, 3.1], [2.0, 2.1]])
    assert given.scales.tolist() == [1e6, 1e7, 1e8]
    assert given.y.tolist() == [[3.0, 3.1], [2.0, 2.1], [1.0, 1.1]]


def test_a_scale_is_the_geometric_mean_of_its_runs():
    curve = Curve([[1.0, 4.0], [9.0, 81.0]], np.ones((2, 2)))
    np.testing.assert_allclose(curve.scales, [2.0, 27.0], rtol=1e-15)


def test_a_diverged_run_makes_the_mean_infinite_and_a_missing_one_does_not():
    curve = Curve(
        [1.0, 2.0, 3.0], [[2.0, np.inf], [2.0, np.nan], [2.0, np.nan]],
        censored=[[False, False], [False, True], [False, False]],
        missing=[[False, False], [False, False], [False, True]],
    )  # fmt: skip
    assert curve.mean_log.tolist() == [np.inf, np.inf, np.log(2.0)]
    assert curve.censored.sum() == 2
    assert curve.observed.sum() == 3


def test_a_marked_run_is_censored_even_if_its_loss_is_finite():
    curve = Curve([1.0, 2.0], [[2.0], [1.0]], censored=[[False], [True]])
    assert np.isnan(curve.y[1, 0])
    assert curve.log_y[1, 0] == np.inf


def test_tables_pair_by_label_and_keep_diverged_runs():
    import pandas

    frame = pandas.DataFrame(
        {
            "width": [64, 16, 16, 64, 16],
            "loss": [2.0, 3.0, 3.2, np.nan, 9.0],
            "seed": [7, 7, 3, 3, 7],
            "arm": ["a", "a", "a", "a", "b"],
            "diverged": [False, False, True, False, False],
        }
    )
    curve = Curve.from_table(frame, x="width", arm="a")
    assert curve.seeds == (3, 7)
    assert curve.censored.tolist() == [[True, False], [True, False]]
    assert curve.y[:, 1].tolist() == [3.0, 2.0]
    assert curve.name == "a"
    with pytest.raises(ValueError, match="arms a, b; choose one"):
        Curve.from_table(frame, x="width")
    with pytest.raises(ValueError, match="no column 'params'"):
        Curve.from_table(frame)
    with pytest.raises(ValueError, match="2 rows at width = 16"):
        Curve.from_table(frame.drop(columns="arm"), x="width")
    unlabelled = Curve.from_table(frame[frame.arm == "a"], x="width", seed=None)
    assert unlabelled.seeds == (0, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": [1, 2], "y": [[1.0], [np.nan]]}, "mark runs that diverged by censored="),
        ({"x": [1, 2], "y": [[1.0], [-1.0]]}, "y is -1.0 in row 1"),
        ({"x": [1, 0], "y": [[1.0], [1.0]]}, "x is 0.0 in row 1"),
        ({"x": [1, 2, 3], "y": [[1.0], [1.0]]}, r"shape \(2,\) or \(2, 1\)"),
        ({"x": [1, 1], "y": [[1.0], [1.0]]}, "two rows have the scale 1"),
        ({"x": [1, 2], "y": [[np.inf], [np.inf]]}, "at least one finite loss"),
        ({"x": [1, 2], "y": np.ones((2, 2)), "seeds": [1, 1]}, "2 different labels"),
        ({"x": [1, 2], "y": np.ones((2, 2)), "censored": [True, False]}, "booleans of shape"),
        ({"x": [1, 2], "y": [[1.0, 2.0], [1.0]]}, "rectangle of numbers"),
        ({"x": [1, 2], "y": np.ones((2, 2, 2))}, r"shape \(scales, seeds\)"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        Curve(**arguments)


def test_a_curve_cannot_be_changed():
    curve = Curve([1.0, 2.0], np.ones((2, 2)))
    with pytest.raises(ValueError, match="read-only"):
        curve.y[0, 0] = 5.0
    with pytest.raises(AttributeError):
        curve.name = "other"
