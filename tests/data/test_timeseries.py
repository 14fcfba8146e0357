"""Corpora and windows: nothing is lost, nothing is shared, sources are drawn as told."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from allometry.data import SeriesSet, SyntheticSeries, WindowSampler, real_series  # noqa: E402
from allometry.data.synthetic_series import SERIES_KINDS  # noqa: E402


def three():
    rng = np.random.default_rng(0)
    return SeriesSet.of(
        {"a": rng.normal(size=400), "b": 5 * rng.normal(size=100), "c": rng.normal(size=60), "d": [1, 2, 3]},
        {"a": "long", "b": "short", "c": "short"},
    )


def test_series_keep_their_values_up_to_their_scale():
    given = np.random.default_rng(1).normal(3.0, 7.0, size=50)
    found = SeriesSet.of({"one": given})
    assert found.scales[0].item() == pytest.approx(given.std(ddof=1))
    assert np.allclose(found.values.numpy() * found.scales[0].item(), given, rtol=1e-5)


def test_what_is_left_out_is_told():
    found = SeriesSet.of({"good": range(30), "short": [1.0, 2.0], "flat": [4.0] * 30})
    assert set(found.skipped) == {"short", "flat"}
    assert found.names == ("good",)


def test_windows_lie_within_one_series_and_end_with_it():
    series = SeriesSet.of({"a": range(50), "b": range(1000, 1023)})
    values, which, _ = series.windows(10, 7)
    assert which.tolist() == [0] * 6 + [1] * 2
    assert torch.allclose(values.diff(dim=1), values.diff(dim=1)[:, :1].expand(-1, 9), rtol=1e-3)
    ends = (values[:, -1] * series.scales[which]).round().long()
    assert ends.tolist() == [14, 21, 28, 35, 42, 49, 1015, 1022]


def test_windows_without_a_context_to_standardise_by_are_dropped_and_counted():
    flat = np.r_[np.ones(20), np.random.default_rng(0).normal(size=60)]
    flat[50:60] = np.nan
    series = SeriesSet.of({"a": flat})
    values, _, dropped = series.windows(20, 10, context=10)
    assert dropped == 4  # two constant contexts, one without a known value, one without a known future
    assert len(values) + dropped == len(series.windows(20, 10)[0])


def test_a_sampler_never_reaches_over_the_end_of_a_series():
    series = SeriesSet.of({"a": range(100, 140), "b": range(9000, 9017)})
    sampler = WindowSampler(series, 16, 64, seed=0)
    steps = torch.cat([sampler.batch(k) for k in range(20)]).diff(dim=1)
    assert float((steps.amax(1) / steps.amin(1) - 1).abs().max()) < 0.05


def test_every_window_of_a_source_is_drawn_alike():
    series = three()
    sampler = WindowSampler(series, 50, 4096, seed=1)
    drawn = torch.cat([sampler.batch(k)[:, 0] for k in range(8)])
    starts = {name: series.values[at] for name, at in zip(series.names, series.starts[:-1], strict=True)}
    counts = {"a": 351, "b": 51, "c": 11}  # windows of 50 points
    share = {"a": 0.5 / 351, "b": 0.5 / 62, "c": 0.5 / 62}
    for name, first in starts.items():
        seen = int((drawn == first).sum())
        wanted = len(drawn) * share[name]
        assert abs(seen - wanted) < 4 * wanted**0.5, (name, counts[name])


def test_sources_are_drawn_as_their_weights_say():
    sampler = WindowSampler(three(), 50, 4096, seed=1, weights={"long": 3.0, "short": 1.0})
    assert {name: drawn for name, (_, drawn) in sampler.shares.items()} == {"long": 0.75, "short": 0.25}
    assert sampler.shares["long"][0] == pytest.approx(400 / 560)
    assert WindowSampler(three(), 80, 4, seed=0).skipped == 1


def test_seeds_and_steps_draw_differently_and_again_the_same():
    one, same, other = (WindowSampler(three(), 20, 8, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.batch(3), same.batch(3))
    assert not torch.equal(one.batch(3), one.batch(4))
    assert not torch.equal(one.batch(3), other.batch(3))


@pytest.mark.parametrize("kind", SERIES_KINDS)
def test_families_are_finite_and_vary(kind):
    found = SyntheticSeries((kind,), 128, seed=3).take(128 * 100)
    values = found.values.reshape(-1, 128)
    assert values.isfinite().all()
    assert torch.allclose(values.std(1), torch.ones(len(values)), atol=1e-3)
    assert len(values.unique(dim=0)) == len(values)


def test_a_smaller_corpus_is_the_beginning_of_a_larger_one_and_streams_are_apart():
    source = SyntheticSeries(("trend", "regime"), 64)
    few, many, held = source.take(640), source.take(64 * 300), source.take(640, "held out")
    assert torch.equal(many.values[: len(few.values)], few.values)
    assert many.names[: len(few.names)] == few.names
    assert not set(few.values.tolist()) & set(held.values.tolist())
    assert few.digest != SyntheticSeries(("trend", "regime"), 64, seed=1).take(640).digest


def test_autoregression_has_the_spectrum_it_was_drawn_by():
    """White noise through a spectral density has its autocovariance: here that of a first-order process."""
    from allometry.data.synthetic_series import _stationary

    omega = torch.linspace(0, np.pi, 4 * 256 // 2 + 1)
    density = (1 - 0.8 * torch.exp(-1j * omega)).abs() ** -2
    drawn = _stationary(density.expand(4000, -1), 256, torch.Generator().manual_seed(0))
    for lag in (1, 2, 5):
        found = float((drawn[:, lag:] * drawn[:, :-lag]).mean())
        assert found == pytest.approx(0.8**lag, abs=0.03)  # each is divided by its own deviation


def test_measured_series_are_those_of_statsmodels():
    datasets = pytest.importorskip("statsmodels.datasets")
    found = real_series()
    table = datasets.sunspots.load_pandas().data
    at = found.names.index("sunspots")
    own = found.values[found.starts[at] : found.starts[at + 1]] * found.scales[at]
    assert np.allclose(own.numpy(), table["SUNACTIVITY"], atol=1e-3)
    assert len(found.names) == 18
    assert len(set(found.sources)) == 6
    assert found.values.isnan().any()  # weeks without a measurement of carbon dioxide stay gaps


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SeriesSet.of({"a": [[1.0]]}), "one row"),
        (lambda: SeriesSet.of({"a": [1.0, float("inf")] * 10}), "infinite"),
        (lambda: SeriesSet.of({"a": [1.0]}), "no series is left"),
        (lambda: WindowSampler(three(), 1000, 4, seed=0), "1000 points of a window"),
        (lambda: WindowSampler(three(), 10, 4, seed=0, weights={"none": 1.0}), "leave no source"),
        (lambda: WindowSampler(three(), 10, 4, seed=0, weights={"long": -1.0}), "non-negative"),
        (lambda: three().windows(1000, 10), "no series has"),
        (lambda: SyntheticSeries(("tides",)), "no family 'tides'"),
        (lambda: SyntheticSeries(("trend",), 4), "too short"),
    ],
)
def test_bad_input_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
