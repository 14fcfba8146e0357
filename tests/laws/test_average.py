"""Averages of forms: what they are of one form and of two, and whether their intervals hold."""

import numpy as np
import pytest

from allometry import laws

PARAMS, TOKENS = (
    a.ravel() for a in np.meshgrid([9e3, 3.7e4, 8.3e4, 1.5e5], [0.75e6, 1e6, 1.5e6, 2e6], indexing="ij")
)
COLUMNS = {"params": np.tile(PARAMS, 2), "tokens": np.tile(TOKENS, 2)}
RUN = np.repeat(np.arange(8), 4)
TARGET = {"params": 3.3e5, "tokens": 7e6}


def chinchilla(n, d):
    return 0.85 + 10.0 * n**-0.29 + 35_000.0 * d**-0.83


def noisy(loss, generator, simulations):
    between = 0.006 * generator.standard_normal((simulations, 8))[:, RUN]
    return loss * np.exp(between + 0.004 * generator.standard_normal((simulations, len(RUN))))


@pytest.fixture(scope="module")
def fits():
    losses = noisy(chinchilla(COLUMNS["params"], COLUMNS["tokens"]), np.random.default_rng(0), 1)[0]
    return [
        laws.fit(form, COLUMNS, losses, run=RUN, resamples=300) for form in ("kaplan-offset", "chinchilla")
    ]


def test_average_of_one_is_that_one(fits):
    alone = laws.Average(fits[:1])
    for kind in ("mean", "prediction"):
        assert tuple(alone.interval(TARGET, kind=kind)) == pytest.approx(
            tuple(fits[0].interval(TARGET, kind=kind))
        )
    assert alone.predict(TARGET) == pytest.approx(fits[0].predict(TARGET))


def test_average_lies_between_and_does_not_care_for_order(fits):
    one, other = (fit.predict(TARGET)[0] for fit in fits)
    both = laws.Average(fits)
    assert both.predict(TARGET)[0] == pytest.approx(np.sqrt(one * other), rel=1e-12)
    assert tuple(both.interval(TARGET)) == pytest.approx(
        tuple(laws.Average(fits[::-1]).interval(TARGET)), rel=1e-12
    )


def test_interval_spans_the_disagreement(fits):
    # each form's own middle half lies inside the pooled 90 %: an eighth of all draws lies beyond a quartile
    pooled = laws.Average(fits).interval(TARGET, level=0.9)
    for fit in fits:
        own = fit.interval(TARGET, level=0.5)
        assert pooled.low < own.low
        assert own.high < pooled.high


def test_shapes_follow_the_question(fits):
    both = laws.Average(fits)
    assert isinstance(both.interval(TARGET).value, float)
    many = both.interval({"params": [1e5, 3e5], "tokens": [2e6, 7e6]})
    assert many.value.shape == many.low.shape == many.high.shape == (2,)
    with pytest.raises(ValueError, match="at least one"):
        laws.Average([])


def test_coverage_whichever_form_is_true():
    """90 % intervals of the mean at eight times the compute, sixty ladders each, for two true forms."""
    sharp = {"E": 0.84, "Nc": 6.0e3, "Dc": 4.5e5, "alpha_N": 0.29, "alpha_D": 0.6}
    law = laws.get_form("kaplan-offset")
    theta = law.to_coordinates(np.array([[sharp[name] for name in law.names]]))

    def kaplan_offset(n, d):
        return np.exp(
            law.log_prediction(theta, np.log(np.stack([np.atleast_1d(n), np.atleast_1d(d)], axis=-1)))
        )[0]

    for truth in (chinchilla, kaplan_offset):
        at = float(np.ravel(truth(TARGET["params"], TARGET["tokens"]))[0])
        losses = noisy(truth(COLUMNS["params"], COLUMNS["tokens"]), np.random.default_rng(1), 60)
        forms = [
            laws.fit(form, COLUMNS, losses, run=RUN, resamples=100)
            for form in ("kaplan-offset", "chinchilla")
        ]
        inside = [at in laws.Average(pair).interval(TARGET) for pair in zip(*forms, strict=True)]
        assert np.mean(inside) >= 0.85


def test_noise_that_is_known_sets_the_width(fits):
    losses = np.exp(fits[0].log_y)
    known = laws.Noise(between=0.004, within=0.002, degrees=1e6, runs=8)
    twice = laws.Noise(between=0.008, within=0.004, degrees=1e6, runs=8)
    one, two = (
        laws.fit("kaplan-offset", COLUMNS, losses, run=RUN, noise=noise, loss="squared", resamples=2000)
        for noise in (known, twice)
    )
    assert (one.noise.between, one.noise.within) == pytest.approx((0.004, 0.002), rel=1e-12)
    assert one.params == two.params  # noise moves intervals, not the law
    inside = {"params": 4e4, "tokens": 1.2e6}  # where the law is nearly linear in its parameters
    widths = [np.log(fit.interval(inside).high / fit.interval(inside).low) for fit in (one, two)]
    assert widths[1] / widths[0] == pytest.approx(2.0, rel=0.1)
