"""The best number of samples, against sums in sixty digits and simulation."""

import time
from decimal import Decimal, localcontext

import numpy as np
import pytest

from allometry.laws import AcceptanceTable, optimal_k, resampling_curve


def population(tasks, seed=0):
    generator = np.random.default_rng(seed)
    right = generator.beta(0.5, 0.8, tasks)
    return right, (1 - right) * generator.beta(0.6, 3.0, tasks)


def in_sixty_digits(right, wrong, cost, price, most):
    """First K <= most with the largest reward, and whether the last draw still adds."""
    with localcontext() as context:
        context.prec = 60
        c, f = ([Decimal(repr(float(x))) for x in part] for part in (right, wrong))
        margin = [a - Decimal(repr(cost)) * b - Decimal(repr(price)) for a, b in zip(c, f, strict=True)]
        left = [1 - a - b for a, b in zip(c, f, strict=True)]
        total, best, at, powers = Decimal(0), Decimal(0), 0, [Decimal(1)] * len(c)
        for k in range(1, most + 1):
            added = sum(m * p for m, p in zip(margin, powers, strict=True))
            total += added
            if total > best:
                best, at = total, k
            powers = [p * b for p, b in zip(powers, left, strict=True)]
        return at, added > 0


@pytest.mark.parametrize("seed", range(25))
def test_the_best_k_is_that_of_exact_arithmetic(seed):
    generator = np.random.default_rng(100 + seed)
    right, wrong = (np.round(part, 6) for part in population(6, seed))
    cost, price = float(generator.choice([0.5, 1.0, 2.0, 4.0])), float(generator.choice([0.0, 0.003]))
    told = optimal_k(
        AcceptanceTable.from_rates(right, wrong), cost_false=cost, cost_sample=price, resamples=0
    )
    at, rising = in_sixty_digits(right, wrong, cost, price, 600)
    if told.is_infinite:
        assert rising
        beta = 1 - right - wrong
        slowest = np.argmax(beta)
        assert right[slowest] > cost * wrong[slowest] + price
    elif told.k <= 600:
        assert told.k == at
        curve = resampling_curve(AcceptanceTable.from_rates(right, wrong), np.arange(601),
                                 cost_false=cost, cost_sample=price)  # fmt: skip
        assert told.reward.value == pytest.approx(curve.reward.max(), abs=1e-13)


def test_both_kinds_of_answers_occur():
    kinds = {
        optimal_k(AcceptanceTable.from_rates(*population(6, seed)), cost_false=1.0, resamples=0).is_infinite
        for seed in range(25)
    }
    assert kinds == {True, False}


def test_a_late_turn_is_found_where_rounded_sums_are_flat():
    """Two slow speeds close together: the reward turns at K = 4159, where each draw adds 1e-21 of it."""
    right, wrong = np.array([0.0105, 0.0]), np.array([0.0, 0.0100])
    table = AcceptanceTable.from_rates(right, wrong, weights=[0.96, 0.04])
    told = optimal_k(table, cost_false=3.0)
    share = 0.96 * right[0] / (0.04 * 3.0 * wrong[1])
    turn = 1 + np.log(share) / np.log((1 - wrong[1]) / (1 - right[0]))
    assert turn > 4000
    assert told.k == np.floor(turn)
    assert told.interval.low != told.interval.low  # kinds of tasks are not resampled


def test_every_sample_pays_where_the_slowest_tasks_have_a_margin():
    right, wrong = np.array([0.9, 0.10]), np.array([0.05, 0.0999])
    for cost, infinite in ((1.0, True), (1.002, False)):
        told = optimal_k(AcceptanceTable.from_rates(right, wrong), cost_false=cost, resamples=0)
        assert told.is_infinite is infinite
    rising = optimal_k(AcceptanceTable.from_rates(right, wrong), cost_false=1.0, resamples=0)
    curve = resampling_curve(AcceptanceTable.from_rates(right, wrong), np.arange(1, 400), cost_false=1.0)
    assert rising.reward.value == pytest.approx(curve.reward[-1], rel=1e-12)
    assert rising.enough == 1 + np.argmax(curve.reward >= 0.99 * rising.reward.value)


def test_a_cost_of_samples_ends_it():
    right, wrong = population(50)
    table = AcceptanceTable.from_rates(right, wrong)
    slowest = right[np.argmax(1 - right - wrong)]  # as long as a sample costs less than this, each one pays
    assert optimal_k(table, cost_sample=0.9 * slowest, resamples=0).is_infinite
    paid = [optimal_k(table, cost_sample=times * slowest, resamples=0).k for times in (1.5, 5, 20)]
    assert np.inf > paid[0] > paid[1] > paid[2] > 0
    never = AcceptanceTable.from_rates([0.5, 0.0], [0.0, 0.0])  # half of the tasks are never answered
    price = 1e-3
    told = optimal_k(never, cost_sample=price, resamples=0)
    worth = [0.5 * (0.5 - price) * (1 - 0.5**k) / 0.5 - 0.5 * price * k for k in range(40)]
    assert told.k == int(np.argmax(worth))


def test_edges():
    sure = AcceptanceTable.from_rates([1.0, 1.0], [0.0, 0.0])
    assert optimal_k(sure, resamples=0).k == 1
    assert optimal_k(AcceptanceTable.from_rates([0.0], [0.4]), cost_false=1.0).k == 0
    nothing = optimal_k(AcceptanceTable.from_rates([0.0], [0.0]))
    assert (nothing.k, nothing.reward.value, nothing.enough) == (0, 0.0, 0)
    even = optimal_k(AcceptanceTable.from_rates([0.2], [0.1]), cost_false=2.0)  # no margin at all
    assert even.k == 0
    with pytest.raises(ValueError, match="cost_false is -1"):
        optimal_k(sure, cost_false=-1)


def judged(right, wrong, samples, generator):
    kinds = generator.multinomial(samples, np.stack([right, wrong, 1 - right - wrong], axis=-1))
    return AcceptanceTable.from_counts(np.full(len(right), samples), kinds[:, 0] + kinds[:, 1], kinds[:, 0])


def test_the_interval_of_k_covers():
    """Tasks and samples drawn anew: 90 % intervals of K, a whole number, hold the truth at least 85 times."""
    right, wrong = population(3000, seed=1)
    truth = optimal_k(AcceptanceTable.from_rates(right, wrong), cost_false=2.0, resamples=0)
    assert 1 < truth.k < 20
    generator = np.random.default_rng(2)
    inside, widths = [], []
    for seed in range(200):
        pick = generator.integers(0, 3000, 100)
        told = optimal_k(judged(right[pick], wrong[pick], 200, generator), cost_false=2.0,
                         resamples=300, random_state=seed)  # fmt: skip
        inside.append(told.interval.low <= truth.k <= told.interval.high)
        widths.append(told.interval.width)
    assert np.mean(inside) > 0.85, np.mean(inside)
    assert np.median(widths) <= 2 * truth.k, np.median(widths)


def test_the_reward_of_the_samples_that_chose_flatters_and_that_of_others_does_not():
    """Few samples: K fits their luck."""
    right, wrong = population(15, seed=3)
    generator = np.random.default_rng(4)
    held_out, fitted = [], []
    for seed in range(300):
        table = judged(right, wrong, 12, generator)
        told = optimal_k(table, cost_false=2.0, resamples=0, random_state=seed)
        k = np.array([min(told.k, 10**6)])
        real = resampling_curve(AcceptanceTable.from_rates(right, wrong), k, cost_false=2.0).reward[0]
        fitted.append(told.reward.value - real)
        held_out.append(told.held_out - real)
    assert np.mean(fitted) > 3 * np.std(fitted) / np.sqrt(300)
    assert -0.02 < np.mean(held_out) < 2 * np.std(held_out) / np.sqrt(300)
    assert np.isnan(optimal_k(AcceptanceTable.from_rates(right, wrong), resamples=0).held_out)


def test_tasks_never_accepted_are_told_of():
    told = optimal_k(AcceptanceTable.from_counts([50] * 3, [50, 10, 0], [50, 5, 0]), cost_false=0.5)
    assert "1 of 3 tasks" in told.warnings[-1]


def test_ten_thousand_resamples_take_seconds_at_most():
    table = judged(*population(200), 200, np.random.default_rng(0))
    begin = time.process_time()
    told = optimal_k(table, cost_false=1.0, resamples=10_000)
    assert time.process_time() - begin < 6.0  # 1 s where nothing else runs
    assert 0 <= told.share_infinite <= 1
