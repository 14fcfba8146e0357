"""Training of forecasters: a stack is its single runs, what can be learned is, scores are right."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from allometry.data import SyntheticSeries, WindowSampler  # noqa: E402
from allometry.models import PatchForecaster  # noqa: E402
from allometry.train import score_forecaster, train_forecasters  # noqa: E402
from allometry.train.timeseries import ForecastBatches, crps  # noqa: E402

CORPUS = SyntheticSeries(("seasonal",), 128).take(128 * 40)


def train(seeds, kind="encoder", steps=6, rate=1e-2, width=8):
    return train_forecasters(
        lambda generator: PatchForecaster(8, width, 1, kind=kind, generator=generator, max_patches=16),
        [WindowSampler(CORPUS, 64, 16, seed) for seed in seeds], seeds=seeds,
        generators=[torch.Generator().manual_seed(seed) for seed in seeds], steps=steps, learning_rate=rate,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_stack_is_its_runs(kind):
    together, logs = train([0, 1, 2], kind)
    for index, seed in enumerate([0, 1, 2]):
        (alone,), (log,) = train([seed], kind)
        for name, value in alone.state_dict().items():
            assert torch.allclose(together[index].state_dict()[name], value, atol=2e-5), name
        assert logs[index].steps[-1]["loss"] == pytest.approx(log.steps[-1]["loss"], rel=1e-5)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_the_trained_loss_is_the_distribution_s(kind):
    """What training minimises is the mean negative log density of the hidden values, less log scale."""
    model = PatchForecaster(8, 8, 1, kind=kind, max_patches=16)
    sampler = WindowSampler(CORPUS, 64, 16, 5)
    inputs, targets = ForecastBatches([sampler], model, [5]).batch(0)
    windows = sampler.batch(0).unflatten(-1, (-1, 8))
    hidden = inputs[0, ..., -1] > 0.5
    told = model(windows, torch.ones_like(windows, dtype=torch.bool), hidden)
    scale = torch.stack([one[~gone].std() for one, gone in zip(windows, hidden, strict=True)])
    truth = windows if kind == "encoder" else windows.roll(-1, 1)
    nats = -told.log_prob(truth) - scale.log()[:, None, None]
    if kind == "decoder":
        nats = nats.roll(1, 1)
    (_,), (log,) = train_forecasters(
        lambda generator: model, [sampler], seeds=[5], generators=[torch.Generator()], steps=1
    )
    assert log.steps[0]["loss"] == pytest.approx(float(nats.detach()[hidden].mean()), rel=1e-4)
    assert targets.shape == (1, 16, 4, 16)


def test_between_fifteen_and_fifty_percent_are_foretold():
    model = PatchForecaster(8, 8, 1)
    batches = ForecastBatches([WindowSampler(CORPUS, 128, 64, 0)], model, [0])
    hidden = torch.cat([batches.batch(step)[0][0, ..., -1] for step in range(20)])
    counts = hidden.sum(1).long()
    assert set(counts.tolist()) == set(range(2, 9))
    assert (hidden.cummax(1).values == hidden).all()  # only last ones
    share = torch.bincount(counts)[2:] / len(counts)
    assert float((share - 1 / 7).abs().max()) < 4 * (1 / 7 / len(counts)) ** 0.5


def test_batches_do_not_depend_on_the_kind():
    found = [
        ForecastBatches([WindowSampler(CORPUS, 64, 4, 0)], PatchForecaster(8, 8, 1, kind=kind), [0]).batch(3)
        for kind in ("encoder", "decoder")
    ]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_seasons_are_learned(kind):
    held = SyntheticSeries(("seasonal",), 128).take(128 * 20, "held out").windows(64, 64, context=48)[0]
    (before,), _ = train([0], kind, steps=1, rate=1e-9, width=16)
    (after,), _ = train([0], kind, steps=150, width=16)
    protocol = "teacher_forced"
    first, last = (
        score_forecaster(m, held, 6, protocol=protocol)["nll_norm"].mean() for m in (before, after)
    )
    assert last < first - 0.1


def test_the_ranked_probability_score_is_the_mean_over_pairs():
    generator = torch.Generator().manual_seed(0)
    samples, value = torch.randn(40, 6, generator=generator), torch.randn(6, generator=generator)
    x, y = samples.numpy().astype(float), value.numpy().astype(float)
    pairs = np.abs(x[:, None] - x[None]).sum((0, 1)) / (40 * 39)
    assert np.allclose(crps(samples, value).numpy(), np.abs(x - y).mean(0) - pairs / 2, atol=1e-6)


def test_the_score_of_a_normal_is_its_closed_form():
    """Of a standard normal at y: y (2 F(y) - 1) + 2 f(y) - 1 / sqrt(pi) (Gneiting and Raftery, 2007)."""
    from scipy.stats import norm

    samples = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for y in (-1.0, 0.3, 2.0):
        wanted = y * (2 * norm.cdf(y) - 1) + 2 * norm.pdf(y) - np.pi**-0.5
        assert float(crps(samples, torch.tensor([y]).double())) == pytest.approx(wanted, abs=5e-3)


def test_scores_move_with_the_unit_as_they_should():
    model = PatchForecaster(8, 8, 1, epsilon=0.0)
    windows = CORPUS.windows(64, 64, context=48)[0]
    one, other = (score_forecaster(model, unit * windows, 6) for unit in (1.0, 10.0))
    assert np.allclose(other["nll"] - one["nll"], np.log(10.0), atol=1e-4)
    for name in ("nll_norm", "crps", "mase"):
        assert np.allclose(one[name], other[name], rtol=1e-3, atol=1e-4), name


def test_gaps_are_no_part_of_a_score():
    model = PatchForecaster(8, 8, 1)
    windows = CORPUS.windows(64, 64, context=48)[0][:6].clone()
    windows[:, 50] = torch.nan
    told = score_forecaster(model, windows, 6)
    assert np.isfinite(told.to_numpy()).all()
    with pytest.raises(ValueError, match="at least two samples"):
        crps(torch.zeros(1, 3), torch.zeros(3))
