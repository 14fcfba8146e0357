"""Worth: exact where there is no noise, honest where there is, silent where it must be."""

import numpy as np
import pytest

from allometry.laws import worth, worths
from allometry.laws.curve import Curve

X = 1e12 * 4.0 ** np.arange(5)
FEW = {"resamples": 200}


def power(x: np.ndarray) -> np.ndarray:
    return 3.0 * (x / 1e12) ** -0.1


def offset(x: np.ndarray) -> np.ndarray:
    return 1.5 + 1.5 * (x / 1e12) ** -0.3


def clean(law, factor=1.0, x: np.ndarray = X, seeds: int = 3) -> Curve:
    return Curve(x, np.repeat(law(factor * x)[:, None], seeds, axis=1))


class Twins:
    """Noise of runs, most of it shared by the runs of one seed."""

    def __init__(self, seed: int, scales: int = 5, seeds: int = 3, size: float = 0.005) -> None:
        self.generator = np.random.default_rng(seed)
        self.shape, self.size = (scales, seeds), size
        self.shared = self.generator.standard_normal(self.shape)

    def __call__(self, law, factor=1.0, x: np.ndarray = X, **options) -> Curve:
        own = self.generator.standard_normal(self.shape)
        noise = self.size * (np.sqrt(0.8) * self.shared + np.sqrt(0.2) * own)
        return Curve(x, law(factor * x)[:, None] * np.exp(noise), **options)


# --- without noise ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("law", "form"), [(power, "power"), (power, "auto"), (offset, "auto")])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.42, 3.0])
def test_the_factor_is_exact_without_noise(law, form: str, factor: float) -> None:
    found = worth(clean(law), clean(law, factor), form=form, **FEW)
    tolerance = 1e-9 if form == "power" or law is offset else 1e-6
    np.testing.assert_allclose(found.table["factor"], factor, rtol=tolerance)
    assert found.kind == "interval"
    assert found.low == pytest.approx(factor, rel=1e-4) == pytest.approx(found.high, rel=1e-4)
    assert found.trend == "holds"
    assert found.minimum_detectable == pytest.approx(1.0, abs=1e-5)


def test_swapping_base_and_arm_inverts_the_factor() -> None:
    for factor in (0.6, 1.7):
        there = worth(clean(power), clean(power, factor), form="power", **FEW)
        back = worth(clean(power, factor), clean(power), form="power", **FEW)
        assert there.factor * back.factor == pytest.approx(1.0, abs=1e-9)


def test_units_of_scale_and_of_loss_change_nothing() -> None:
    twins = Twins(0)
    base, arm = twins(power), twins(power, 1.5)
    found = worth(base, arm, form="power", **FEW)
    for scale, loss in ((1e-9, 1.0), (1.0, 17.0)):
        other = worth(Curve(X * scale, base.y * loss), Curve(X * scale, arm.y * loss), form="power", **FEW)
        for name in ("factor", "low", "high", "minimum_detectable", "p_value"):
            assert getattr(other, name) == pytest.approx(getattr(found, name), rel=1e-9)
        assert other.at == pytest.approx(scale * found.at)


def test_with_a_floor_units_change_nothing_either() -> None:
    twins = Twins(1)
    base, arm = twins(offset), twins(offset, 1.5)
    found = worth(base, arm, **FEW)
    other = worth(Curve(1e-6 * X, 7 * base.y), Curve(1e-6 * X, 7 * arm.y), **FEW)
    assert other.factor == pytest.approx(found.factor, rel=1e-6)
    assert other.high == pytest.approx(found.high, rel=1e-4)


def test_interpolation_reads_a_knot_exactly() -> None:
    """An arm that reaches at x what the base reaches at 4 x is worth 4, whatever lies between the knots."""
    steps = lambda x: 3.0 - 0.2 * np.log(x / 1e12) - 0.05 * np.sin(np.log(x / 1e12))  # noqa: E731
    found = worth(clean(steps), clean(steps, 4.0), form="interpolation", at=X[2], **FEW)
    assert found.factor == pytest.approx(4.0, rel=1e-6)


def test_worth_falls_with_the_price_of_a_step() -> None:
    arm = clean(power, 1.5)
    dear = Curve(2 * X, arm.y)
    assert worth(clean(power), dear, form="power", **FEW).factor == pytest.approx(0.75, abs=1e-9)


# --- the set ----------------------------------------------------------------------------------------------
def test_the_set_inverts_the_test_of_one() -> None:
    """p < 0.1 exactly where the 90 % set excludes 1."""
    for seed in range(12):
        twins = Twins(seed, size=0.02)
        found = worth(twins(offset), twins(offset, 1.1), at=X[2], **FEW)
        # The degrees of freedom of the set are those at its factor, of the test those at 1.
        if abs(found.p_value - 0.1) > 0.01:
            assert (found.p_value < 0.1) == (not found.low <= 1 <= found.high)


def test_a_higher_level_gives_a_wider_set() -> None:
    twins = Twins(3)
    base, arm = twins(offset), twins(offset, 1.5)
    narrow, wide = (worth(base, arm, level=level, **FEW) for level in (0.8, 0.95))
    assert wide.low < narrow.low < narrow.factor < narrow.high < wide.high


def test_pairs_make_the_set_narrower() -> None:
    twins = Twins(4, seeds=5)
    base, arm = twins(offset), twins(offset, 1.5)
    paired, alone = (worth(base, arm, at=X[2], paired=paired, **FEW) for paired in (True, False))
    assert np.log(paired.high / paired.low) < 0.7 * np.log(alone.high / alone.low)


def test_pairs_are_found_by_label_not_by_column() -> None:
    twins = Twins(5, seeds=4)
    base, arm = twins(offset), twins(offset, 1.5)
    mixed = Curve(X, arm.y[:, ::-1], seeds=[3, 2, 1, 0])
    assert worth(base, mixed, **FEW).low == pytest.approx(worth(base, arm, **FEW).low, rel=1e-3)


def test_costs_that_differ_leave_pairs_by_rank() -> None:
    twins = Twins(6, seeds=5)
    base, arm = twins(offset), twins(offset, 1.5)
    dear = Curve(1.2 * X, arm.y)
    options = {"at": 1.2 * X[2], "form": "power-offset"} | FEW
    found = worth(base, dear, **options)
    alone = worth(base, dear, paired=False, **options)
    assert found.factor == pytest.approx(1.25, rel=0.05)
    assert np.log(found.high / found.low) < 0.7 * np.log(alone.high / alone.low)


def test_the_same_seed_gives_the_same_numbers() -> None:
    twins = Twins(7)
    base, arm = twins(offset), twins(offset, 1.5)
    one, two = (worth(base, arm, random_state=3, **FEW) for _ in range(2))
    assert (one.low, one.high, one.trend_interval) == (two.low, two.high, two.trend_interval)


# --- half-lines, and nothing ------------------------------------------------------------------------------
def test_below_the_floor_the_set_is_a_half_line() -> None:
    twins = Twins(8)
    found = worth(twins(offset), twins(lambda x: 0.6 * offset(x)), **FEW)
    assert found.kind == "at least"
    assert np.isinf(found.high)
    assert found.low >= 1
    assert "floor" in found.reasons[0]
    assert str(found).startswith("≥ ")


def test_beyond_the_cap_the_set_is_cut() -> None:
    twins = Twins(9)
    found = worth(twins(power), twins(power, 20.0), form="power", **FEW)
    assert found.kind == "at least"
    assert found.low == pytest.approx(4.0, rel=1e-6)
    assert "4 times the base's largest scale" in found.reasons[0]
    slow = worth(twins(power), twins(power, 1 / 20.0), at=X[0], form="power", **FEW)
    assert slow.kind == "at most"
    assert slow.high == pytest.approx(1 / 4, rel=1e-6)


def test_what_is_read_beyond_the_base_is_marked() -> None:
    twins = Twins(10)
    table = worth(twins(power), twins(power, 2.0), form="power", **FEW).table
    assert table["extrapolated"].tolist() == [False, False, False, False, True]


def test_a_flat_base_tells_nothing() -> None:
    twins = Twins(11)
    found = worth(twins(lambda x: 0 * x + 2.0), twins(lambda x: 0 * x + 1.9), **FEW)
    assert found.kind == "undetermined"
    assert (found.low, found.high, found.trend) == (0.0, np.inf, "undetermined")
    assert "flat" in str(found)


def test_a_base_that_rises_tells_nothing() -> None:
    twins = Twins(12)
    found = worth(twins(lambda x: 2.0 + 0.05 * np.log(x / 2e13) ** 2), twins(offset), **FEW)
    assert found.kind == "undetermined"
    assert "rises" in found.reasons[0]


@pytest.mark.parametrize(("scales", "seeds"), [(2, 3), (5, 2), (5, 1)])
def test_too_few_scales_or_runs_tell_nothing(scales: int, seeds: int) -> None:
    base = clean(power, x=X[:scales], seeds=seeds)
    found = worth(base, clean(power, 1.5, x=X[:scales]), **FEW)
    assert found.kind == "undetermined"
    assert np.isnan(found.factor)
    assert "three" in found.reasons[0]


def test_an_arm_with_few_runs_at_one_scale_tells_nothing_there_and_all_elsewhere() -> None:
    missing = np.zeros((5, 3), dtype=bool)
    missing[-1, 1:] = True
    arm = Curve(X, clean(power, 1.5).y, missing=missing)
    table = worth(clean(power), arm, form="power", **FEW).table
    assert table["kind"].tolist() == ["interval"] * 4 + ["undetermined"]
    np.testing.assert_allclose(table["factor"][:4], 1.5, rtol=1e-9)


def test_a_trend_counts_every_measured_scale_once() -> None:
    """Neither a place asked for between two scales nor a scale with too few runs changes it."""
    twins = Twins(20)
    base, arm = twins(offset), twins(offset, 2.0 * (X / 1e12) ** -0.1)
    found = worth(base, arm, **FEW)
    between = worth(base, arm, at=1e14, **FEW)
    assert between.trend_slope == pytest.approx(found.trend_slope, abs=1e-9)
    missing = np.zeros((5, 3), dtype=bool)
    missing[-1, 1:] = True
    short = worth(base, Curve(X, arm.y, missing=missing), **FEW)
    first = worth(base, Curve(X[:4], arm.y[:4]), **FEW)
    assert short.trend_slope == pytest.approx(first.trend_slope, abs=1e-3)


# --- diverged runs ----------------------------------------------------------------------------------------
def test_a_diverged_run_leaves_at_most() -> None:
    """However good its survivors are, an arm that may diverge is not worth what they are worth."""
    twins = Twins(13)
    base, arm = twins(offset), twins(offset, 1.5)
    lost = np.zeros((5, 3), dtype=bool)
    lost[-1, 0] = True
    found = worth(base, Curve(X, arm.y, censored=lost), **FEW)
    assert found.kind == "at most"
    assert found.low == 0
    assert 1.2 < found.high < 2.5
    assert any("diverged" in reason for reason in found.reasons)
    assert found.trend == "undetermined"
    assert found.table["kind"].tolist()[:4] == ["interval"] * 4
    assert np.isnan(found.p_value)  # better survivors are no evidence that the arm is better


def test_where_every_run_diverged_the_arm_is_worse_than_the_smallest_base() -> None:
    losses = np.array(clean(power, 1.5).y)
    losses[-1] = np.inf
    found = worth(clean(power), Curve(X, losses), **FEW)
    assert (found.kind, found.factor) == ("at most", 0.0)
    assert found.high == pytest.approx(X[0] / X[-1])


def test_a_base_that_diverges_leaves_at_least() -> None:
    twins = Twins(14)
    lost = np.zeros((5, 3), dtype=bool)
    lost[-1, 0] = True
    found = worth(Curve(X, twins(offset).y, censored=lost), twins(offset, 1.5), at=X[2], **FEW)
    assert found.kind == "at least"
    assert 1.2 < found.low < 1.6


# --- trends -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("first", "slope", "word"),
    [(1.5, 0.0, "holds"), (2.0, -0.1, "fades"), (1.1, 0.15, "grows"), (1.6, -0.2, "crosses"),
     (0.7, 0.2, "crosses")],
)  # fmt: skip
def test_trends_are_told(first: float, slope: float, word: str) -> None:
    twins = Twins(15)
    found = worth(twins(offset), twins(offset, first * (X / 1e12) ** slope), **FEW)
    assert found.trend == word
    low, high = found.trend_interval
    assert low - 0.02 < slope < high + 0.02
    assert found.trend_slope == pytest.approx(slope, abs=0.03)


def test_noise_leaves_a_trend_undetermined() -> None:
    twins = Twins(16, size=0.05)
    assert worth(twins(offset), twins(offset, 1.5), **FEW).trend == "undetermined"


# --- what could have been seen ----------------------------------------------------------------------------
def test_the_smallest_detectable_worth_grows_with_noise() -> None:
    found = []
    for size in (0.002, 0.02):
        twins = Twins(17, size=size)
        found.append(worth(twins(offset), twins(offset), at=X[2], **FEW).minimum_detectable)
    small, large = np.log(found)
    assert 5 < large / small < 16  # ten, but for the curvature


# --- several arms -----------------------------------------------------------------------------------------
def test_several_arms_are_those_alone_with_holms_correction() -> None:
    twins = Twins(18)
    base = twins(offset)
    arms = {
        "none": twins(offset),
        "some": twins(offset, 1.5),
        "short": Curve(X[:4], twins(offset, 2.0).y[:4]),
    }
    table = worths(base, arms, **FEW)
    for name, arm in arms.items():
        alone = worth(base, arm, **FEW)
        row = table.loc[name]
        assert row["factor"] == pytest.approx(alone.factor, rel=1e-6)
        assert row["at"] == alone.at
        assert np.log(row["high"] / row["low"]) == pytest.approx(np.log(alone.high / alone.low), rel=0.3)
        assert row["adjusted_p"] >= row["p_value"]
    assert table["different"].to_dict()["some"]
    order = table.sort_values("p_value")
    assert order["adjusted_p"].iloc[0] == pytest.approx(min(1.0, 3 * order["p_value"].iloc[0]))


def test_between_scales_a_smooth_arm_is_read_from_its_curve() -> None:
    found = worth(clean(offset), clean(offset, 1.5), at=3e13, **FEW)
    assert found.factor == pytest.approx(1.5, rel=1e-6)
    assert len(found.table) == 5


def test_sentences() -> None:
    twins = Twins(19)
    found = worth(twins(offset), twins(offset, 1.5), at=X[2], unit="tokens", **FEW)
    text = str(found)
    assert text.startswith("1.")
    assert text.endswith("of the base's tokens at 1.6e+13, holds")
    nothing = worth(twins(offset), twins(offset), at=X[2], **FEW)
    assert nothing.p_value > 0.1
    assert f"a worth below {nothing.minimum_detectable:.3g}× would likely not have been seen" in str(nothing)


# --- bad input --------------------------------------------------------------------------------------------
def test_bad_input_is_refused_in_a_sentence() -> None:
    base, arm = clean(power), clean(power, 1.5)
    for options, words in [
        ({"form": "kaplan"}, "'power'"),
        ({"level": 1.2}, "level"),
        ({"cap": 0.5}, "cap"),
        ({"margin": 0.0}, "margin"),
        ({"resamples": 3}, "resamples"),
        ({"at": 1e18}, "outside"),
    ]:
        with pytest.raises(ValueError, match=words):
            worth(base, arm, **options)
    with pytest.raises(ValueError, match="paired=False"):
        worth(base, Curve(X, arm.y, seeds=["a", "b", "c"]))
    with pytest.raises(ValueError, match="at least one arm"):
        worths(base, {})
