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


def test_a_stack_normalises_each_replica_as_a_single_run_does():
    from torch import nn

    from allometry.train import Stack

    def make(seed):
        generator = torch.Generator().manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        return model

    models = [make(0), make(1)]
    start = [[p.detach().clone() for p in model.parameters()] for model in models]
    stack = Stack(models)
    together = stack.optimizer(lambda model, rate: torch.optim.SGD(model.parameters(), rate), [0.1, 0.2])
    GradientRMSNorm(together, eps=1e-300)
    alone = [
        torch.optim.SGD(model.parameters(), rate) for model, rate in zip(models, [0.1, 0.2], strict=True)
    ]
    for optimizer in alone:
        GradientRMSNorm(optimizer, eps=1e-300)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 8, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (2, 8), generator=generator)
    for _ in range(3):
        together.zero_grad()
        stack.losses(x, y).sum().backward()
        together.step()
        for replica, (model, optimizer) in enumerate(zip(models, alone, strict=True)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[replica]), y[replica]).backward()
            optimizer.step()
    for replica, model in enumerate(models):
        for ours, theirs, was in zip(
            stack.unstack(replica).parameters(), model.parameters(), start[replica], strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
            assert not torch.equal(ours, was)
    with pytest.raises(ValueError, match="one row"):
        GradientRMSNorm(together, "tensor")


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
