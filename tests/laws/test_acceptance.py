"""Judged samples as rates by task."""

import numpy as np
import pytest

from allometry.laws import AcceptanceTable


def samples(tasks=30, draws=40, seed=0):
    generator = np.random.default_rng(seed)
    correct = generator.random((tasks, draws)) < generator.beta(0.6, 1.0, (tasks, 1))
    accepted = np.where(
        correct, generator.random((tasks, draws)) < 0.9, generator.random((tasks, draws)) < 0.2
    )
    return accepted, correct


def test_rates_are_shares_of_samples():
    accepted, correct = samples()
    table = AcceptanceTable(accepted, correct)
    np.testing.assert_allclose(table.right, (accepted & correct).mean(1), rtol=0, atol=1e-15)
    np.testing.assert_allclose(table.wrong, (accepted & ~correct).mean(1), rtol=0, atol=1e-15)
    np.testing.assert_allclose(table.rejected, (~accepted).mean(1), rtol=0, atol=1e-15)
    assert table.pass_at_1 == pytest.approx(correct.mean(), abs=1e-15)
    assert table.completeness == pytest.approx(accepted[correct].mean(), abs=1e-14)
    assert table.soundness == pytest.approx(1 - accepted[~correct].mean(), abs=1e-14)


def test_soundness_is_the_notebooks_where_all_that_is_correct_passes():
    accepted, correct = samples()
    accepted |= correct
    table = AcceptanceTable(accepted, correct)
    base, plus = accepted.mean(), correct.mean()
    given = (accepted & correct).sum() / accepted.sum()
    assert table.soundness == pytest.approx((1 - base - plus + given * base) / (1 - plus), abs=1e-14)


def test_all_ways_of_making_one_agree():
    accepted, correct = samples()
    table = AcceptanceTable(accepted, correct)
    names = np.repeat(np.arange(30), 40)
    order = np.random.default_rng(1).permutation(names.size)
    rows = AcceptanceTable.from_samples(names[order], accepted.ravel()[order], correct.ravel()[order])
    counts = AcceptanceTable.from_counts(
        np.full(30, 40), accepted.sum(1), (accepted & correct).sum(1), correct.sum(1)
    )
    rates = AcceptanceTable.from_rates(table.right, table.wrong, table.single)
    for other in (rows, counts, rates):
        for name in ("right", "wrong", "single", "weights"):
            np.testing.assert_array_equal(getattr(other, name), getattr(table, name))
    for one, two in zip(rows.counts(), table.counts(), strict=True):
        np.testing.assert_array_equal(one, two)
    with pytest.raises(ValueError, match="rates, not samples"):
        rates.counts()


def test_some_tasks_are_a_table():
    table = AcceptanceTable(*samples())
    part = table.select(table.single > 0.5)
    assert len(part) == (table.single > 0.5).sum()
    assert part.tasks == [i for i in range(30) if table.single[i] > 0.5]
    np.testing.assert_array_equal(part.right, table.right[table.single > 0.5])
    with pytest.raises(ValueError, match="no task is left"):
        table.select(table.single > 2)


def test_few_samples_are_warned_of():
    assert "10 samples" in AcceptanceTable(*samples(draws=10)).warnings[0]
    assert not AcceptanceTable(*samples(draws=20)).warnings


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: AcceptanceTable([[1, 0]], [[1, 0, 0]]), "one shape"),
        (lambda: AcceptanceTable([1, 0], [1, 0]), "one shape"),
        (lambda: AcceptanceTable(np.zeros((0, 3)), np.zeros((0, 3))), "one shape"),
        (lambda: AcceptanceTable([[2, 0]], [[1, 0]]), "0 or 1"),
        (lambda: AcceptanceTable([[np.nan, 0]], [[1, 0]]), "0 or 1"),
        (lambda: AcceptanceTable([["yes", "no"]], [[1, 0]]), "0 or 1"),
        (lambda: AcceptanceTable.from_samples([], [], []), "one length"),
        (lambda: AcceptanceTable.from_samples([1, 2], [1], [1]), "one length"),
        (lambda: AcceptanceTable.from_counts([10], [4], [5]), "contradict"),
        (lambda: AcceptanceTable.from_counts([10], [4], [3], [2]), "contradict"),
        (lambda: AcceptanceTable.from_counts([10], [8], [1], [9]), "contradict"),
        (lambda: AcceptanceTable.from_counts([0], [0], [0]), "no samples"),
        (lambda: AcceptanceTable.from_counts([10], [4.5], [3]), "whole"),
        (lambda: AcceptanceTable.from_counts([10, 10], [4], [3]), "one length"),
        (lambda: AcceptanceTable.from_rates([0.7], [0.4]), "at most 1"),
        (lambda: AcceptanceTable.from_rates([-0.1], [0.4]), "at least 0"),
        (lambda: AcceptanceTable.from_rates([np.nan], [0.4]), "at least 0"),
        (lambda: AcceptanceTable.from_rates([0.5], [0.1], [0.3]), "between c and 1 - f"),
        (lambda: AcceptanceTable.from_rates([0.5], [0.1], weights=[-1]), "weights"),
        (lambda: AcceptanceTable.from_rates([0.5], [0.1], tasks=["a", "b"]), "names"),
    ],
)
def test_what_cannot_be_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
