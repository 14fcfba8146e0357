"""Protocols: what each may read, and where they must agree."""

import pytest

torch = pytest.importorskip("torch")

from allometry.models import PatchForecaster, forecast_horizon, forecast_series  # noqa: E402

BOTH = [("encoder", "one_shot"), ("encoder", "rollout"), ("decoder", "rollout")]


def forecaster(kind, **options):
    return PatchForecaster(
        8, 16, 2, kind=kind, generator=torch.Generator().manual_seed(2), **options
    ).double()


def windows(seed=0, patches=8):
    generator = torch.Generator().manual_seed(seed)
    return 3.0 + torch.randn(4, patches, 8, generator=generator, dtype=torch.float64).cumsum(1)


@pytest.mark.parametrize(("kind", "protocol"), BOTH)
def test_a_forecast_reads_its_context_alone(kind, protocol):
    model, x = forecaster(kind), windows()
    blind = x.clone()
    blind[:, 5:] = torch.nan
    told, same = (forecast_horizon(model, one, 5, protocol=protocol).raw for one in (x, blind))
    assert torch.equal(told, same)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_teacher_forcing_reads_the_patches_before_and_none_after(kind):
    model, x = forecaster(kind), windows()
    raw = forecast_horizon(model, x, 5, protocol="teacher_forced").raw
    other = x.clone()
    other[:, 6] += 5.0  # the second patch of the horizon
    changed = forecast_horizon(model, other, 5, protocol="teacher_forced").raw
    assert torch.equal(raw[:, :2], changed[:, :2])
    assert not torch.allclose(raw[:, 2], changed[:, 2])


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_protocols_agree_on_the_first_patch(kind):
    """It is the next one under all of them, up to what an encoder sees as hidden behind it."""
    model, x = forecaster(kind), windows(patches=6)
    names = ["teacher_forced", "rollout", *(["one_shot"] if kind == "encoder" else [])]
    found = [forecast_horizon(model, x, 5, protocol=name).raw for name in names]
    assert all(torch.allclose(found[0], one, atol=1e-12) for one in found[1:])


def test_teacher_forcing_is_a_decoder_s_own_pass():
    model, x = forecaster("decoder", epsilon=0.0), windows()
    hidden = (torch.arange(8) >= 5).expand(4, -1)
    whole = model(x, torch.ones_like(x, dtype=torch.bool), hidden).log_prob(x.roll(-1, 1))[:, 4:-1]
    told = forecast_horizon(model, x, 5, protocol="teacher_forced")
    assert torch.allclose(told.distribution.log_prob(x[:, 5:]), whole, atol=1e-10)
    assert torch.allclose(told.log_prob(x[:, 5:]) - told.scale.log(), whole, atol=1e-10)


def test_an_encoder_in_one_shot_is_its_own_pass():
    model, x = forecaster("encoder"), windows()
    hidden = (torch.arange(8) >= 5).expand(4, -1)
    whole = model(x, torch.ones_like(x, dtype=torch.bool), hidden).log_prob(x)[:, 5:]
    assert torch.allclose(forecast_horizon(model, x, 5).distribution.log_prob(x[:, 5:]), whole, atol=1e-10)


def test_an_encoder_s_next_patches_are_those_of_shorter_windows():
    model, x = forecaster("encoder", epsilon=0.0), windows()
    raw = forecast_horizon(model, x, 5, protocol="teacher_forced").raw
    scaled = (x - x[:, :5].mean((1, 2), keepdim=True)) / x[:, :5].std((1, 2), keepdim=True)
    for ahead in range(3):
        hidden = (torch.arange(6 + ahead) == 5 + ahead).expand(4, -1)
        alone = model.network(scaled[:, : 6 + ahead], hidden, last=1)[:, 0]
        assert torch.allclose(raw[:, ahead], alone, atol=1e-10)


def test_an_encoder_asked_for_more_at_a_time_says_of_the_first_what_it_says_in_one_shot():
    model, x = forecaster("encoder"), windows()
    shot = forecast_horizon(model, x, 5).raw
    for protocol in ("rollout", "teacher_forced"):
        told = forecast_horizon(model, x, 5, protocol=protocol, block=3).raw
        assert torch.allclose(told[:, 0], shot[:, 0], atol=1e-12)
        assert not torch.allclose(told[:, 1], shot[:, 1])


@pytest.mark.parametrize(("kind", "protocol"), BOTH)
def test_a_series_forecast_moves_with_the_series(kind, protocol):
    model = forecaster(kind, epsilon=0.0)
    series = torch.sin(torch.arange(75.0).double())
    told, moved = (
        forecast_series(model, one, 13, samples=50, protocol=protocol) for one in (series, 9 - 2 * series)
    )
    assert told.shape == (50, 13)
    if protocol == "one_shot":  # a flip turns the samples of a mixture over, so only the shape is the same
        stretched = forecast_series(model, 9 + 2 * series, 13, samples=50, protocol=protocol)
        assert torch.allclose(stretched, 9 + 2 * told, rtol=1e-9)
    assert moved.isfinite().all()


def test_gaps_and_odd_lengths_are_taken():
    series = torch.sin(torch.arange(75.0))
    series[10:20] = torch.nan
    model = PatchForecaster(8, 16, 1, kind="decoder")
    assert forecast_series(model, series, 3).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"series": [1.0, 2.0] * 4, "horizon": 2}, "two patches"),
        ({"series": [[1.0]], "horizon": 2}, "one series"),
        ({"series": [float("nan")] * 40, "horizon": 2}, "fewer than two values"),
        ({"series": [1.0, 2.0] * 40, "horizon": 2, "protocol": "teacher_forced"}, "needs the future"),
        ({"series": [1.0, 2.0] * 40, "horizon": 0}, "horizon of at least one"),
        ({"series": [1.0, 2.0] * 40, "horizon": 9, "context": 81}, "context of 81"),
    ],
)
def test_bad_input_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        forecast_series(PatchForecaster(8, 8, 1), **arguments)


def test_protocols_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="one patch at a time"):
        forecast_horizon(forecaster("decoder"), windows(), 5, protocol="one_shot")
    with pytest.raises(ValueError, match="no protocol 'blind'"):
        forecast_horizon(forecaster("decoder"), windows(), 5, protocol="blind")
    with pytest.raises(ValueError, match="context must be"):
        forecast_horizon(forecaster("decoder"), windows(), 8)
