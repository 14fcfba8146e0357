"""The noise of batches' curvature: least squares, where Wishart's law is exact, and dense matrices."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from allometry import measure

DIM, SPIKE = 30, 5.0


@pytest.fixture(scope="module")
def squares():
    """Least squares on Gaussian inputs: half the Hessian of a batch is their covariance."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40_000, DIM, generator=generator, dtype=torch.float64)
    x[:, 0] *= (1 + SPIKE) ** 0.5
    model = nn.Linear(DIM, 1, bias=False).double()
    return model, (x, torch.zeros(len(x), 1, dtype=torch.float64))


def half(z, t):
    return (z - t).square().mean() / 2


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 3)).double()
    for p in model.parameters():
        p.data *= 2.0
    return model, (torch.randn(60, 5, dtype=torch.float64), torch.randint(0, 3, (60,)))


def dense(model, data):
    """Each sample's Hessian (n, P, P)."""
    one = measure.Objective(model, F.cross_entropy)
    flat = one.join(one.params)
    return torch.func.vmap(
        lambda x, t: torch.func.hessian(lambda w: one.loss(one.split(w), (x[None], t[None])))(flat)
    )(*data)


def test_perturbation_is_wishart_s_law_for_least_squares(squares):
    """``λ + Σ_j s_j s_1 / (s_1 - s_j) / b`` and ``(θ + σ²)(1 + γ σ² / θ)`` are the same for one spike."""
    noise = measure.hessian_noise(squares[0], half, squares[1], 8000, k=DIM)
    assert noise.excess == pytest.approx((DIM - 1) * (1 + SPIKE) / SPIKE, rel=0.05)
    law = measure.batch_eigenvalue_law(noise, [200, 800])
    exact = measure.wishart_outlier(SPIKE, 1.0, DIM / np.array([200, 800]))
    assert np.allclose(law, exact, rtol=0.02)


def test_batches_have_the_eigenvalues_of_wishart_s_law(squares):
    for size in (200, 800):
        found = measure.batch_eigenvalues(squares[0], half, squares[1], size, 200)
        exact = measure.wishart_outlier(SPIKE, 1.0, (DIM - 1) / size)  # the spike is no dimension of noise
        mean, error = found.excess()
        assert mean == pytest.approx(exact - 1 - SPIKE, rel=0.08)
        assert error < 0.05 * mean
        assert (found.values >= found.along - 1e-9).all()
        drawn = torch.linalg.eigvalsh(  # the same, by other means
            torch.stack([x.mT @ x / size for x in measure.draw_batches(squares[1], size, 200)[0]])
        )[:, -1]
        assert found.values.mean() == pytest.approx(float(drawn.mean()), rel=0.02)


def test_the_whole_data_as_a_batch_have_no_noise(squares):
    model, data = network()
    found = measure.batch_eigenvalues(model, F.cross_entropy, data, 60, 3, tolerance=1e-8)
    assert found.excess()[0] == pytest.approx(0.0, abs=1e-9)
    for mode in ("directional", "isotropic", "subspace"):
        noise = measure.hessian_noise(model, F.cross_entropy, data, mode=mode)
        law = measure.batch_eigenvalue_law(noise, [60, 6], 60)
        assert law[0] == pytest.approx(noise.eigenvalue, rel=1e-9)
        assert law[1] > noise.eigenvalue


def test_every_mode_is_what_dense_matrices_say():
    model, data = network()
    each = dense(model, data)
    values, vectors = torch.linalg.eigh(each.mean(0))
    values, vectors = values.flip(0), vectors.flip(1)
    dim = len(values)
    along = torch.einsum("pj,npq,q->nj", vectors, each, vectors[:, 0])
    exact = float((along.var(0, correction=0)[1:] / (values[0] - values[1:])).sum())
    full = measure.hessian_noise(model, F.cross_entropy, data, k=dim, chunk=7)
    assert full.eigenvalue == pytest.approx(float(values[0]), rel=1e-9)
    assert full.excess == pytest.approx(exact, rel=1e-6)
    few = measure.hessian_noise(model, F.cross_entropy, data, k=4)  # the rest as if at zero
    known = along.var(0, correction=0)
    assert few.excess == pytest.approx(
        float((known[1:4] / (values[0] - values[1:4])).sum() + known[4:].sum() / values[0]), rel=1e-3
    )
    spread = each.square().sum((1, 2)).mean() / dim - each.mean(0).square().sum() / dim
    isotropic = measure.hessian_noise(model, F.cross_entropy, data, mode="isotropic", probes=400)
    assert isotropic.excess * isotropic.eigenvalue == pytest.approx(float(spread), rel=0.1)
    assert measure.batch_eigenvalue_law(isotropic, 4.0) == pytest.approx(
        measure.wigner_outlier(isotropic.eigenvalue, isotropic.excess * isotropic.eigenvalue / 4)
    )


def test_the_subspace_of_everything_is_the_batches_themselves():
    """With all directions resolved only the sampling of batches is left."""
    model, data = network()
    dim = sum(p.numel() for p in model.parameters())
    noise = measure.hessian_noise(model, F.cross_entropy, data, mode="subspace", k=dim)
    law = measure.batch_eigenvalue_law(noise, [6, 20], 60, draws=2000)
    for size, told in zip((6, 20), law, strict=True):
        mean, error = measure.batch_eigenvalues(model, F.cross_entropy, data, size, 2000).excess()
        assert told - noise.eigenvalue == pytest.approx(mean, abs=4 * error + 0.1 * mean)


def test_two_equal_eigenvalues_need_a_subspace():
    """Isotropic inputs: the top direction is none, and perturbation says what no batch shows."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20_000, 2, generator=generator, dtype=torch.float64)
    model, data = nn.Linear(2, 1, bias=False).double(), (x, torch.zeros(len(x), 1, dtype=torch.float64))
    with pytest.warns(RuntimeWarning, match="too close for one direction"):
        alone = measure.hessian_noise(model, half, data)
    both = measure.hessian_noise(model, half, data, mode="subspace")
    found = measure.batch_eigenvalues(model, half, data, 100, 400)
    seen = found.values.mean()
    assert measure.batch_eigenvalue_law(both, 100.0) == pytest.approx(seen, rel=0.02)
    assert abs(measure.batch_eigenvalue_law(alone, 100.0) - seen) > 0.1 * seen


def test_some_samples_tell_what_all_do_within_their_error():
    model, data = network()
    data = tuple(torch.cat([one, one.flip(0)]) for one in data)
    whole = measure.hessian_noise(model, F.cross_entropy, data)
    some = [
        measure.hessian_noise(
            model, F.cross_entropy, [(data[0][:70], data[1][:70]), (data[0][70:], data[1][70:])], 40,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in range(30)
    ]  # fmt: skip
    assert all(one.samples == 40 for one in some)
    scores = np.array([(one.excess - whole.excess) / one.standard_error for one in some])
    assert abs(scores.mean()) < 1.0
    assert np.abs(scores).max() < 5
    assert (np.abs(scores) < 2).mean() > 0.8


def test_batches_as_observations_tell_of_samples():
    model, (x, y) = network()
    torch.manual_seed(3)
    order = torch.cat([torch.randperm(60) for _ in range(30)])
    batches = [(x[part], y[part]) for part in order.split(6)]
    by_batch = measure.hessian_noise(model, F.cross_entropy, batches, unit="batch")
    by_sample = measure.hessian_noise(model, F.cross_entropy, (x, y))
    assert by_batch.samples == 300
    # 6 of 60 without replacement: 9 / 10 of the noise is left
    assert by_batch.excess == pytest.approx(0.91 * by_sample.excess, abs=4 * by_batch.standard_error)


def test_what_makes_no_sense_is_refused_in_a_sentence():
    model, (x, y) = network()
    run = measure.hessian_noise
    with pytest.raises(ValueError, match="mode is 'directional'"):
        run(model, F.cross_entropy, (x, y), mode="random")
    with pytest.raises(ValueError, match="no rate is limited by it"):
        run(nn.Linear(5, 1).double(), lambda z, t: -z.square().mean(), (x, y))
    with pytest.raises(ValueError, match="from 2 to the 60 observations"):
        run(model, F.cross_entropy, (x, y), 61)
    with pytest.raises(ValueError, match="1 is too few"):
        run(model, F.cross_entropy, (x, y), unit="batch")
    with pytest.raises(ValueError, match=r"one size, not \[10, 50\]"):
        run(model, F.cross_entropy, [(x[:10], y[:10]), (x[10:], y[10:])], unit="batch")
    noise = run(model, F.cross_entropy, (x, y))
    with pytest.raises(ValueError, match="batch sizes must be positive"):
        measure.batch_eigenvalue_law(noise, [0, 1])
    with pytest.raises(ValueError, match="larger than the 60 samples"):
        measure.batch_eigenvalue_law(noise, 61, 60)
    with pytest.raises(ValueError, match="from 1 to the 60 samples"):
        measure.batch_eigenvalues(model, F.cross_entropy, (x, y), 61)
    assert "critical batch" in str(noise)
