"""The curvature operator against dense matrices, loops, and two packages that do the same."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from allometry import measure
from allometry.measure.curvature import OPERATORS


def small(dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4)).to(dtype)
    return model, torch.randn(40, 6, dtype=dtype), torch.randint(0, 4, (40,))


def matrix(curvature):
    return curvature(torch.eye(curvature.dim, dtype=curvature.dtype))


every_operator = pytest.mark.parametrize("operator", OPERATORS)


def dense(model, x, y, operator):
    """The matrix, from per-sample pieces of torch.func."""
    one = measure.Objective(model, F.cross_entropy)
    flat = one.join(one.params)
    if operator == "hessian":
        return torch.func.hessian(lambda w: one.loss(one.split(w), (x, y)))(flat)
    if operator == "ggn":
        j = torch.func.jacrev(lambda w: one.output(one.split(w), (x, y)))(flat)
        p = one.output(one.params, (x, y)).softmax(-1)
        return torch.einsum("nci,ncd,ndj->ij", j, torch.diag_embed(p) - p[:, :, None] * p[:, None], j) / len(
            x
        )
    g = torch.func.jacrev(lambda w: one.each(one.split(w), (x, y)))(flat)
    return torch.from_numpy(np.cov(g.T.numpy(), bias=True))


@every_operator
@pytest.mark.parametrize("keep", [True, False])
def test_it_is_the_dense_matrix_over_batches_of_several_sizes(operator, keep):
    model, x, y = small()
    batches = [(x[:25], y[:25]), (x[25:], y[25:])]
    found = matrix(measure.CurvatureOperator(model, F.cross_entropy, batches, operator=operator, keep=keep))
    assert torch.allclose(found, dense(model, x, y, operator), atol=1e-13)


@every_operator
def test_many_batches_at_once_are_each_as_alone(operator):
    model, x, y = small()
    drawn = measure.draw_batches((x, y), 10, 7)
    stacked = measure.StackedCurvature(model, F.cross_entropy, drawn, operator=operator, chunk=3)
    v = torch.randn(7, stacked.dim, dtype=torch.float64)
    assert (stacked.count, stacked.size) == (7, 10)
    for found in (stacked(v), stacked(v)):  # and a second time, from what was kept
        for k in range(7):
            batch = drawn[0][k], drawn[1][k]
            alone = measure.CurvatureOperator(model, F.cross_entropy, batch, operator=operator)(v[k])
            assert torch.allclose(found[k], alone, atol=1e-13)
    again = measure.StackedCurvature(
        model, F.cross_entropy, [(drawn[0][k], drawn[1][k]) for k in range(7)], operator=operator, keep=False
    )
    assert torch.allclose(again(v[0]), stacked(v[:1].expand(7, -1)), atol=1e-13)


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_convolutions_stack_too(operator):
    """Alone their Gauss-Newton products go forward, stacked they go in reverse twice."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2), nn.GELU(), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(27, 4)
    ).double()
    drawn = torch.randn(5, 6, 1, 8, 8, dtype=torch.float64), torch.randint(0, 4, (5, 6))
    stacked = measure.StackedCurvature(model, F.cross_entropy, drawn, operator=operator)
    v = torch.randn(5, stacked.dim, dtype=torch.float64)
    for k in range(5):
        batch = drawn[0][k], drawn[1][k]
        alone = measure.CurvatureOperator(model, F.cross_entropy, batch, operator=operator)
        assert torch.allclose(stacked(v)[k], alone(v[k]), atol=1e-12)


class _Cube(torch.autograd.Function):
    """A function that knows its derivative, and not how to go forward."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
@pytest.mark.parametrize("keep", [True, False])
def test_a_function_without_a_forward_derivative_is_no_obstacle(keep, operator):
    class Cubed(nn.Linear):
        def forward(self, x):
            return _Cube.apply(super().forward(x))

    class Plain(nn.Linear):
        def forward(self, x):
            return super().forward(x) ** 3

    torch.manual_seed(0)
    one, other = Cubed(3, 2).double(), Plain(3, 2).double()
    other.load_state_dict(one.state_dict())
    batch = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    pair = [
        measure.CurvatureOperator(model, F.mse_loss, batch, operator=operator, keep=keep)
        for model in (one, other)
    ]
    assert torch.allclose(*(matrix(curvature) for curvature in pair), atol=1e-12)
    v = torch.randn(pair[0].dim, dtype=torch.float64)
    assert torch.allclose(*(curvature(v) for curvature in pair), atol=1e-12)


@pytest.mark.parametrize(("operator", "theirs"), [("hessian", "Hessian"), ("ggn", "GGN")])
def test_curvlinops_finds_the_same_products(operator, theirs):
    curvlinops = pytest.importorskip("curvlinops")
    model, x, y = small(torch.float32)
    batches = [(x[:30], y[:30]), (x[30:], y[30:])]
    ours = measure.CurvatureOperator(model, F.cross_entropy, batches, operator=operator)
    kind = getattr(curvlinops, f"{theirs}LinearOperator")
    v = torch.randn(ours.dim)
    other = (kind(model, nn.CrossEntropyLoss(), list(model.parameters()), batches) @ v).detach()
    assert float((ours(v) - other).abs().max()) < 1e-3 * float(other.abs().max())


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_hessian_eigenthings_finds_the_same_products_and_eigenvalues(operator):
    theirs = pytest.importorskip("hessian_eigenthings")
    model, x, y = small(torch.float32)
    ours = measure.CurvatureOperator(model, F.cross_entropy, [(x, y)], operator=operator)
    if operator == "hessian":
        other = theirs.HessianOperator(model, [(x, y)], theirs.supervised_loss(F.cross_entropy))
    else:
        output = theirs.supervised_loss_of_output(F.cross_entropy)
        other = theirs.GGNOperator(model, [(x, y)], theirs.supervised_forward, output)
    v = torch.randn(ours.dim)
    found = other.matvec(v).detach()
    assert float((ours(v) - found).abs().max()) < 1e-3 * float(found.abs().max())
    found = theirs.lanczos(other, k=3, which="LA", max_iter=60, reorthogonalize=True, seed=0)
    top = found.eigenvalues
    assert torch.allclose(
        measure.top_eigenvalues(ours, ours.dim, 3).values.float(),
        torch.as_tensor(top).float().sort(descending=True).values, rtol=1e-3,
    )  # fmt: skip


def test_eigenvalues_of_a_small_network_are_those_of_its_dense_hessian():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 8)).double()  # 312 parameters
    x, y = torch.randn(100, 10, dtype=torch.float64), torch.randint(0, 8, (100,))
    curvature = measure.CurvatureOperator(model, F.cross_entropy, (x, y))
    exact = torch.linalg.eigvalsh(dense(model, x, y, "hessian")).flip(0)
    found = measure.top_eigenvalues(curvature, curvature.dim, 5)
    assert torch.allclose(found.values, exact[:5], rtol=1e-4)
    low = measure.top_eigenvalues(curvature, curvature.dim, 2, which="smallest")
    assert torch.allclose(low.values, exact.flip(0)[:2], rtol=1e-4)
    density = measure.spectral_density(curvature, curvature.dim, 60, 16)
    mean, error = density.moment(1)
    assert abs(mean - float(exact.mean())) < 4 * error
    assert abs(density.moment(0)[0] - 1) < 1e-10


def test_weights_may_change_afterwards_and_nothing_of_the_model_does():
    model, x, y = small()
    before = copy.deepcopy(model.state_dict())
    curvature = measure.CurvatureOperator(model, F.cross_entropy, (x, y))
    v = torch.randn(curvature.dim, dtype=torch.float64)
    found = curvature(v)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3.0)
    assert torch.equal(curvature(v), found)


def test_batch_norms_in_training_mode_make_a_batch_one_observation():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randint(0, 3, (20,))
    running = model[1].running_mean.clone()
    batches = [(x[:15], y[:15]), (x[15:], y[15:])]
    curvature = measure.CurvatureOperator(model, F.cross_entropy, batches, unit="batch")
    v = torch.randn(curvature.dim, dtype=torch.float64)
    alone = [measure.CurvatureOperator(model, F.cross_entropy, one, unit="batch")(v) for one in batches]
    assert torch.allclose(curvature(v), (alone[0] + alone[1]) / 2)
    assert torch.equal(model[1].running_mean, running)
    assert model[1].track_running_stats
    assert int(model[1].num_batches_tracked) == 0


def test_part_of_the_weights_is_a_block_of_the_matrix():
    model, x, y = small()
    whole = matrix(measure.CurvatureOperator(model, F.cross_entropy, (x, y)))
    part = matrix(measure.CurvatureOperator(model, F.cross_entropy, (x, y), include=["2.*"]))
    assert torch.allclose(part, whole[-len(part) :, -len(part) :], atol=1e-14)


def test_double_precision_of_a_single_precision_model():
    model, x, y = small(torch.float32)
    wide = measure.CurvatureOperator(model, F.cross_entropy, (x, y), dtype=torch.float64)
    found = matrix(wide)
    assert found.dtype == torch.float64
    assert float((found - found.mT).abs().max()) < 1e-15
    assert next(model.parameters()).dtype == torch.float32


def test_a_loss_without_curvature_has_none():
    model, x, y = nn.Linear(6, 1), torch.randn(5, 6), torch.zeros(5, 1)
    for operator in ("hessian", "ggn"):
        curvature = measure.CurvatureOperator(model, lambda z, t: z.mean(), (x, y), operator=operator)
        assert not matrix(curvature).any()


@pytest.mark.parametrize("keep", [True, False])
@every_operator
def test_weights_that_do_not_matter_have_none(operator, keep):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x):
            return self.used(x)

    batch = torch.randn(4, 3), torch.randint(0, 2, (4,))
    whole = matrix(measure.CurvatureOperator(Half(), F.cross_entropy, batch, operator=operator, keep=keep))
    assert whole[:8, :8].any()
    assert not whole[8:].any()
    assert not whole[:, 8:].any()
    if operator != "gradient covariance":
        part = measure.CurvatureOperator(
            Half(), F.cross_entropy, batch, operator=operator, keep=keep, include=["unused.*"]
        )
        assert not matrix(part).any()


def test_parts_and_vectors_are_each_other_s_inverse():
    model, x, y = small()
    curvature = measure.CurvatureOperator(model, F.cross_entropy, (x, y))
    v = torch.randn(3, curvature.dim, dtype=torch.float64)
    parts = curvature.split(v)
    assert parts["0.weight"].shape == (3, 8, 6)
    assert torch.equal(curvature.join(parts), v)


def test_what_makes_no_sense_is_refused_in_a_sentence():
    model, x, y = small()
    make = measure.CurvatureOperator
    with pytest.raises(ValueError, match="operator must be one of hessian"):
        make(model, F.cross_entropy, (x, y), operator="fisher")
    with pytest.raises(ValueError, match="read more than once"):
        make(model, F.cross_entropy, iter([(x, y)]))
    with pytest.raises(ValueError, match="there are no batches"):
        make(model, F.cross_entropy, [])
    with pytest.raises(ValueError, match="over samples"):
        make(model, F.cross_entropy, (x, y), operator="gradient covariance", unit="batch")
    with pytest.raises(ValueError, match="an axis of 92 parameters"):
        make(model, F.cross_entropy, (x, y))(torch.zeros(91))
    with pytest.raises(ValueError, match="told apart by loss_fn"):
        make(model, None, (x, y), objective=lambda m, b: m(b[0]).mean(), operator="ggn")
    with pytest.raises(ValueError, match="at least one sample"):
        make(model, F.cross_entropy, (x[:0], y[:0]))
    with pytest.raises(ValueError, match=r"of one size, not \[10, 30\]"):
        measure.StackedCurvature(model, F.cross_entropy, [(x[:10], y[:10]), (x[10:], y[10:])])
    with pytest.raises(ValueError, match="one for each batch"):
        measure.StackedCurvature(model, F.cross_entropy, (x[None], y[None]))(torch.zeros(2, 92))
    with pytest.raises(ValueError, match="from 1 to the 40 samples"):
        measure.draw_batches((x, y), 41, 2)
