"""Normalised gradients: what each optimizer then does is known in closed form."""

import pytest
import torch

from allometry.optim.gradient_norm import GradientRMSNorm


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = [
        torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        for shape in ((3, 4), (5,))
    ]
    for parameter in made:
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 7
    return made


def test_under_sgd_it_is_a_step_of_one_root_mean_square():
    made = parameters()
    before = torch.cat([p.detach().flatten() for p in made])
    gradient = torch.cat([p.grad.flatten() for p in made])
    optimizer = torch.optim.SGD(made, lr=0.1)
    GradientRMSNorm(optimizer, eps=1e-300)
    optimizer.step()
    after = torch.cat([p.detach().flatten() for p in made])
    torch.testing.assert_close(
        after, before - 0.1 * gradient / gradient.square().mean().sqrt(), rtol=1e-12, atol=1e-12
    )


def test_each_tensor_may_have_its_own():
    made = parameters()
    before = [p.detach().clone() for p in made]
    optimizer = torch.optim.SGD(made, lr=1.0)
    GradientRMSNorm(optimizer, "tensor", eps=1e-300)
    optimizer.step()
    for parameter, was in zip(made, before, strict=True):
        assert (parameter - was).square().mean().sqrt().item() == pytest.approx(1.0, rel=1e-12)


def test_adam_without_memory_does_not_see_it():
    plain, normed = parameters(), parameters()
    settings = {"lr": 0.1, "betas": (0.0, 0.0), "eps": 1e-300}
    one, two = torch.optim.Adam(plain, **settings), torch.optim.Adam(normed, **settings)
    GradientRMSNorm(two, eps=1e-300)
    one.step()
    two.step()
    for a, b in zip(plain, normed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_replicas_are_normalised_alone():
    stacked = torch.nn.Parameter(torch.zeros(2, 6, dtype=torch.float64))
    stacked.grad = torch.stack([torch.full((6,), 3.0), torch.full((6,), -50.0)]).double()
    optimizer = torch.optim.SGD([stacked], lr=1.0)
    GradientRMSNorm(optimizer, replicas=True, eps=1e-300)
    optimizer.step()
    torch.testing.assert_close(stacked.detach(), torch.tensor([[-1.0] * 6, [1.0] * 6], dtype=torch.float64))


def test_removed_it_leaves_no_trace_and_closures_are_refused():
    made = parameters()
    optimizer = torch.optim.SGD(made, lr=1.0)
    norm = GradientRMSNorm(optimizer)
    with pytest.raises(ValueError, match="closure"):
        optimizer.step(lambda: torch.tensor(0.0))
    norm.remove()
    before, gradient = made[0].detach().clone(), made[0].grad.clone()
    optimizer.step()
    torch.testing.assert_close(made[0].detach(), before - gradient)
    with pytest.raises(ValueError, match="mode"):
        GradientRMSNorm(optimizer, "layer")
