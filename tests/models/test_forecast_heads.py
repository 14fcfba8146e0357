"""Densities against SciPy, samples against their distribution."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from scipy import special, stats  # noqa: E402

from allometry.models.forecast_heads import GaussianHead, StudentTMixtureHead, get_head  # noqa: E402


def raw_of(head, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randn(*shape, head.width, generator=generator, dtype=torch.float64)


def softplus(x):
    return np.logaddexp(0.0, x)


def scipy_mixture(raw, value):
    weights, degrees, location, scale = np.moveaxis(raw.numpy().reshape(*raw.shape[:-1], 4, -1), -2, 0)
    each = stats.t.logpdf(
        value.numpy()[..., None], 2 + softplus(degrees), location, np.maximum(softplus(scale), 1e-4)
    )
    return special.logsumexp(each + special.log_softmax(weights, axis=-1), axis=-1)


def test_the_mixture_s_density_is_scipy_s():
    head = StudentTMixtureHead()
    raw = raw_of(head, 50, 8)
    value = 3.0 * torch.randn(50, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert np.allclose(head.log_prob(raw, value).numpy(), scipy_mixture(raw, value), rtol=0, atol=1e-10)
    single = head.log_prob(raw.float(), value.float()).double()
    assert np.allclose(single.numpy(), scipy_mixture(raw, value), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", [StudentTMixtureHead(), StudentTMixtureHead(1), GaussianHead()])
def test_the_distribution_is_the_density_moved(head):
    raw, value = raw_of(head, 20), torch.linspace(-3, 3, 20, dtype=torch.float64)
    shift, scale = torch.full((20,), -7.0).double(), torch.full((20,), 2.5).double()
    told = head.distribution(raw, shift, scale).log_prob(shift + scale * value)
    assert torch.allclose(told, head.log_prob(raw, value) - np.log(2.5), atol=1e-10)


def test_a_density_sums_to_one():
    head = StudentTMixtureHead()
    grid = torch.linspace(-4000, 4000, 4_000_001, dtype=torch.float64)
    density = head.log_prob(raw_of(head, 1).expand(len(grid), -1), grid).exp()
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1.0, abs=1e-4)


def test_samples_follow_the_mixture():
    head = StudentTMixtureHead()
    raw = raw_of(head, 3, seed=4)
    drawn = head.sample(raw, 20_000, torch.Generator().manual_seed(0)).numpy()
    assert drawn.shape == (20_000, 3)
    weights, degrees, location, scale = np.moveaxis(raw.numpy().reshape(3, 4, -1), -2, 0)
    for index in range(3):

        def cdf(x, i=index):
            each = stats.t.cdf(np.asarray(x)[..., None], 2 + softplus(degrees[i]), location[i],
                               softplus(scale[i]))  # fmt: skip
            return each @ special.softmax(weights[i])

        assert stats.kstest(drawn[:, index], cdf).pvalue > 1e-3


def test_a_generator_decides_the_samples():
    head, before = StudentTMixtureHead(), torch.random.get_rng_state()
    raw = raw_of(head, 5)
    one, two = (head.sample(raw, 7, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(before, torch.random.get_rng_state())


def test_unknown_heads_are_refused():
    with pytest.raises(ValueError, match="there are student_t_mixture, gaussian"):
        get_head("normal")
    with pytest.raises(ValueError, match="at least one component"):
        StudentTMixtureHead(0)
