"""Lanczos' method against dense eigenvalues and SciPy, and quadrature against exact moments."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh

from allometry import measure


def symmetric(values, seed=0):
    """A matrix of given eigenvalues in random directions."""
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return (q * torch.as_tensor(values, dtype=torch.float64)) @ q.mT


def product(matrix):
    return lambda x: x @ matrix.mT


def test_all_eigenvalues_in_as_many_steps_as_dimensions():
    values = torch.linspace(-3, 5, 40, dtype=torch.float64)
    found = measure.lanczos(product(symmetric(values)), 40, 40)
    assert torch.allclose(found.eigen()[0], values, atol=1e-10)
    assert torch.allclose(found.basis @ found.basis.mT, torch.eye(40, dtype=torch.float64), atol=1e-12)


def test_no_ghosts_where_an_eigenvalue_converged_long_ago():
    """Without full orthogonalisation the largest eigenvalue shows up several times."""
    values = torch.cat([torch.linspace(0, 1, 300), torch.tensor([50.0, 100.0])])
    found, _ = measure.lanczos(product(symmetric(values).float()), 302, 120, dtype=torch.float32).eigen()
    assert int((found > 10).sum()) == 2


def test_eigenvalues_with_several_vectors_are_found_as_often():
    matrix = torch.diag(torch.tensor([5.0, 5.0, 5.0, 2.0, 2.0, 1.0], dtype=torch.float64))
    found = measure.lanczos(product(matrix), 6, 6)
    assert torch.allclose(found.eigen()[0], matrix.diagonal().sort().values, atol=1e-12)
    nodes, weights = found.quadrature()
    start = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    share = start.square() / start.square().sum()
    assert float((weights * (nodes > 4)).sum()) == pytest.approx(float(share[:3].sum()), abs=1e-12)


def test_quadrature_is_exact_for_polynomials():
    matrix = symmetric(torch.linspace(-1, 2, 60))
    start = torch.randn(60, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    nodes, weights = measure.lanczos(product(matrix), 60, 5, start=start).quadrature()
    u, power = start / start.norm(), start / start.norm()
    for degree in range(10):  # up to 2 m - 1
        assert float((weights * nodes**degree).sum()) == pytest.approx(float(u @ power), abs=1e-12)
        power = matrix @ power


@pytest.mark.parametrize(("which", "theirs"), [("largest", "LA"), ("smallest", "SA"), ("magnitude", "LM")])
def test_top_eigenvalues_are_scipy_s(which, theirs):
    matrix = symmetric(
        torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).pow(3)
    )
    exact = eigsh(
        LinearOperator((200, 200), matvec=lambda x: matrix.numpy() @ x, dtype=float), 4, which=theirs
    )[0]
    found = measure.top_eigenvalues(product(matrix), 200, 4, which=which, tolerance=1e-6)
    assert np.allclose(np.sort(found.values.numpy()), np.sort(exact), rtol=1e-9)
    true = (matrix @ found.vectors.mT).mT - found.values[:, None] * found.vectors
    assert torch.allclose(true.norm(dim=1), found.residuals, atol=1e-9)


def test_many_matrices_at_once_are_each_as_alone():
    matrices = torch.stack([symmetric(torch.linspace(0, 1 + seed, 80) ** 3, seed) for seed in range(6)])
    found = measure.top_eigenvalues(
        lambda x: (matrices @ x.unsqueeze(-1)).squeeze(-1),
        80,
        2,
        start=torch.ones(6, 80, dtype=torch.float64),
    )
    assert found.vectors.shape == (6, 2, 80)
    assert torch.allclose(found.values, torch.linalg.eigvalsh(matrices).flip(1)[:, :2], rtol=1e-7)


def test_some_of_many_may_be_exhausted_earlier():
    """A start that is an eigenvector ends its Krylov space at once."""
    matrices = torch.stack(
        [torch.diag(torch.arange(1.0, 9.0)), symmetric(torch.arange(1.0, 9.0)).float()]
    ).double()
    start = torch.ones(2, 8, dtype=torch.float64)
    start[0] = torch.eye(8)[2]
    found = measure.lanczos(lambda x: (matrices @ x.unsqueeze(-1)).squeeze(-1), 8, 8, start=start)
    assert torch.allclose(found.eigen()[0], torch.arange(1.0, 9.0).double().expand(2, 8), atol=1e-5)
    nodes, weights = found.quadrature()
    assert float((weights * nodes).sum(1)[0]) == pytest.approx(3.0)


def test_the_semicircle_is_seen():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1200, 1200, generator=generator, dtype=torch.float64)
    noise = (noise + noise.mT) / np.sqrt(2 * 1200)
    found = measure.spectral_density(product(noise), 1200, 60, 40, generator)
    x = torch.linspace(-2.5, 2.5, 251, dtype=torch.float64)
    smeared = np.convolve(  # the law, blurred alike
        measure.semicircle_density(x.numpy(), 1.0),
        np.exp(-np.square(x.numpy() / 0.1) / 2) * 0.02 / 0.2507,
        "same",
    )
    assert np.abs(found.density(x, 0.1).numpy() - smeared).max() < 0.02
    assert float(torch.trapezoid(found.density(x, 0.05), x)) == pytest.approx(1.0, abs=1e-4)
    mean, error = found.moment(2)
    assert abs(mean - float(noise.square().sum() / 1200)) < 4 * error
    assert found.count(-3, 3) == pytest.approx(1200)


def test_without_keeping_vectors_the_density_is_the_same():
    matrix = torch.diag(torch.linspace(-1, 3, 200, dtype=torch.float64) ** 3)
    kept, left = (
        measure.spectral_density(lambda x: x @ matrix, 200, 80, 6, keep=keep) for keep in (True, False)
    )
    for order in range(1, 5):
        assert left.moment(order)[0] == pytest.approx(kept.moment(order)[0], rel=1e-9)
    assert left.count(1.0) == pytest.approx(kept.count(1.0), rel=0.02)
    assert torch.allclose(left.weights.sum(1), torch.ones(6, dtype=torch.float64))


def test_without_keeping_vectors_an_exhausted_space_ends():
    matrices = torch.stack([torch.eye(5), torch.diag(torch.tensor([1.0, 1, 2, 2, 3]))]).double()
    start = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = measure.lanczos(lambda x: (matrices @ x.unsqueeze(-1)).squeeze(-1), 5, 5, start=start, keep=False)
    assert found.basis.shape == (2, 0, 5)
    values, weights = found.quadrature()
    square = start.square() / start.square().sum(1, keepdim=True)
    for row, matrix in enumerate(matrices):
        for power in range(4):
            wanted = (square[row] * matrix.diagonal() ** power).sum()
            assert (weights[row] * values[row] ** power).sum() == pytest.approx(float(wanted), rel=1e-10)


def test_random_streams_are_the_generator_s_alone():
    matrix = symmetric(torch.linspace(0, 1, 30))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = measure.lanczos(product(matrix), 30, 5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.basis, measure.lanczos(product(matrix), 30, 5).basis)
    other = measure.lanczos(product(matrix), 30, 5, torch.Generator().manual_seed(1))
    assert not torch.allclose(one.basis[0], other.basis[0])


def test_what_makes_no_sense_is_refused_in_a_sentence():
    run = product(torch.eye(4, dtype=torch.float64))
    with pytest.raises(ValueError, match="steps must be from 1 to the dimension 4, not 5"):
        measure.lanczos(run, 4, 5)
    with pytest.raises(ValueError, match="end in an axis of 4"):
        measure.lanczos(run, 4, 2, start=torch.ones(3))
    with pytest.raises(ValueError, match="finite and not zero"):
        measure.lanczos(run, 4, 2, start=torch.zeros(4))
    with pytest.raises(ValueError, match="product with the matrix is not finite"):
        measure.lanczos(lambda x: x * float("nan"), 4, 2)
    with pytest.raises(ValueError, match="k must be from 1 to"):
        measure.top_eigenvalues(run, 4, 5)
    with pytest.raises(ValueError, match="which is 'largest'"):
        measure.top_eigenvalues(run, 4, 1, which="biggest")
    with pytest.raises(ValueError, match="probes must be at least 1"):
        measure.spectral_density(run, 4, 2, 0)
    with pytest.raises(ValueError, match="width must be positive"):
        measure.spectral_density(run, 4, 2).density(torch.zeros(1), 0.0)
    with pytest.warns(RuntimeWarning, match="raise max_steps"):
        measure.top_eigenvalues(product(symmetric(torch.linspace(0, 1, 300))), 300, 3, max_steps=6)
