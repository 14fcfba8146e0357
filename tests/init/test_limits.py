"""Exact limits: members with orthogonal mixing are the limit, random ones approach it like n^(-1/2)."""

import math

import pytest
import torch
import torch.nn.functional as F

from allometry.init.limits import LinearMuP, LinearNetwork, word2vec_mup
from allometry.init.parametrization import ABC
from allometry.models.mlp import MLP

STEPS = 50


def orthogonal(n, seed=0):
    """√n times a random orthogonal matrix (n, n)."""
    drawn = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return math.sqrt(n) * torch.linalg.qr(drawn).Q


def images(seed=0, d=12, k=4):
    """Batches of a classification task, one a step, and a probe."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(STEPS, 16, d, dtype=torch.float64, generator=generator)
    y = torch.randint(k, (STEPS, 16), generator=generator)
    return x, y, torch.randn(32, d, dtype=torch.float64, generator=generator)


def trained(model, x, y, probe, **settings):
    """Outputs on the probe after every step of SGD, (steps + 1, 32, k)."""
    optimizer = torch.optim.SGD(model.parameters(), **{"lr": 0.3, **settings})
    outputs = [model(probe).detach()]
    for inputs, targets in zip(x, y, strict=True):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        outputs.append(model(probe).detach())
    return torch.stack(outputs)


@pytest.mark.parametrize("bias", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "lr": 0.05}, {"weight_decay": 0.01}])
def test_a_member_with_orthogonal_mixing_is_the_limit(bias, settings):
    data = images()
    limit = LinearMuP(12, 4, 0.7, 1.3, bias=bias).double()
    member = limit.mixed(orthogonal(16))
    ours, theirs = trained(limit, *data, **settings), trained(member, *data, **settings)
    assert ours[0].abs().max() == 0 < ours[-1].abs().max() > 0.5
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_a_member_drawn_after_training_is_the_one_that_was_trained():
    x, y, probe = images()
    limit = LinearMuP(12, 4).double()
    mixing = torch.randn(64, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    early = limit.mixed(orthogonal(16))
    trained(early, x, y, probe)
    trained(limit, x, y, probe)
    late = limit.mixed(orthogonal(16))
    for ours, theirs in zip(early.parameters(), late.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert limit.mixed(mixing).hidden.shape == (64, 12)


@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_members_approach_the_limit_like_one_over_the_root_of_width(bias):
    data, widths = images(), (64, 256, 1024, 4096)
    limit = LinearMuP(12, 4, bias=bias).double()
    members = [[limit.sample(n, torch.Generator().manual_seed(seed)) for seed in range(6)] for n in widths]
    goal = trained(limit, *data)[-1]
    errors = torch.tensor(
        [[(trained(one, *data)[-1] - goal).square().mean().sqrt() for one in row] for row in members]
    )
    means = errors.log().mean(1)
    slope = torch.diff(means).sum() / math.log(widths[-1] / widths[0])
    assert abs(slope + 0.5) < 0.08
    assert errors[-1].max() < 0.1 * goal.square().mean().sqrt()


def test_it_is_the_maximal_update_parametrization():
    """The wide member is the perceptron that the exponents of µP describe, at the same rate."""
    data, n = images(), 32
    member = LinearMuP(12, 4, 0.7, 1.3).double().sample(n)
    perceptron = MLP(12, 4, width=n, depth=1, activation="identity", bias=False).double()
    roles = ABC.preset("mup", 1).parametrize_(perceptron, base_width=1)
    assert {role.learning_rate for role in roles.values()} == {1.0}
    with torch.no_grad():
        perceptron.hidden[0].weight.copy_(member.hidden)
        perceptron.readout.weight.copy_(member.readout)
    torch.testing.assert_close(trained(member, *data), trained(perceptron, *data), rtol=0, atol=1e-12)


def tangent_kernel(model, x, z):
    """Trace of the neural tangent kernel between single inputs, from gradients."""

    def gradients(point):
        parts = model(point)[0].split(1)
        rows = [torch.autograd.grad(f, list(model.parameters()), retain_graph=True) for f in parts]
        return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])

    return (gradients(x) * gradients(z)).sum()


def test_first_tangent_kernel_by_monte_carlo():
    """E of the wide network's kernel is the limit's, k (σ_u² + σ_v²) x·z: a million entries of Ω say so."""
    x, z = torch.randn(2, 1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    limit = LinearMuP(6, 2, 0.5, 1.5).double()
    exact = 2 * (0.5**2 + 1.5**2) * (x @ z.T).sum()
    torch.testing.assert_close(tangent_kernel(limit, x, z), exact, rtol=1e-12, atol=0)
    generator, n = torch.Generator().manual_seed(4), 200_000
    drawn = torch.stack([tangent_kernel(limit.sample(n, generator), x, z) for _ in range(5)])
    assert abs(drawn.mean() / exact - 1) < 5e-3  # the standard error is about 2e-3


def contexts(seed=0, vocabulary=9):
    generator = torch.Generator().manual_seed(seed)
    context = torch.randint(-1, vocabulary, (STEPS, 8, 5), generator=generator)
    context[..., 0] = context[..., 0].clamp(min=0)
    target = torch.randint(vocabulary, (STEPS, 8), generator=generator)
    return context, target, torch.randint(vocabulary, (STEPS, 8, 6), generator=generator)


def read(model, context, target, negatives, rate=0.5):
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, weight_decay=0.001)
    for batch in zip(context, target, negatives, strict=True):
        optimizer.zero_grad()
        model.loss(*batch).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("output_std", [0.0, 0.4])
def test_words_with_orthogonal_mixing_are_the_limit(output_std):
    limit = word2vec_mup(9, output_std=output_std).double()
    member = limit.mixed(orthogonal(18))
    words = torch.arange(9)
    for model in (limit, member):
        read(model, *contexts())
    torch.testing.assert_close(limit.similarity(words), member.similarity(words), rtol=0, atol=1e-12)
    everything = words.expand(9, 9)
    torch.testing.assert_close(
        limit(words[:, None], everything), member(words[:, None], everything), rtol=0, atol=1e-12
    )
    assert limit(words[:, None], everything).abs().max() > 0.1


def test_with_zero_outputs_half_the_coordinates_are_enough():
    whole, half = (read(word2vec_mup(9, coordinates=size).double(), *contexts()) for size in (18, 9))
    assert whole.inputs[:, 9:].abs().max() == whole.outputs[:, 9:].abs().max() == 0
    torch.testing.assert_close(whole.inputs[:, :9], half.inputs, rtol=0, atol=1e-14)


def test_words_of_finite_width_approach_the_limit():
    words = torch.arange(9)
    limit = word2vec_mup(9).double()
    members = {n: limit.sample(n, torch.Generator().manual_seed(n)) for n in (256, 4096)}
    for n, member in members.items():
        assert member.outputs.abs().max() == 0
        assert abs(member.inputs.std() * math.sqrt(n) - 1) < 0.05
    goal = read(limit, *contexts()).similarity(words)
    near, far = (
        (read(members[n], *contexts()).similarity(words) - goal).square().mean().sqrt() for n in (4096, 256)
    )
    assert near < 0.03
    assert 2 < far / near < 8  # 4, and noise


def test_a_context_is_averaged_in_the_gradient_too():
    """One step by hand: each of C context words moves by the error over C."""
    model = word2vec_mup(4, coordinates=4).double()
    with torch.no_grad():
        model.outputs.copy_(torch.eye(4))
    model.loss(torch.tensor([[0, 1, -1]]), torch.tensor([2]), torch.tensor([[3, 2]])).backward()
    expected = torch.zeros(4, 4, dtype=torch.float64)
    expected[:2, 2], expected[:2, 3] = -0.5 / 2, 0.5 / 2  # σ(0) = ½; the negative that is the answer is none
    torch.testing.assert_close(model.inputs.grad, expected)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: LinearMuP(0, 3), "d must be at least 1; got 0"),
        (lambda: LinearMuP(3, 3, -1.0), "sigma_u must be finite and at least 0; got -1.0"),
        (lambda: LinearMuP(3, 3).sample(0), "width must be at least 1; got 0"),
        (lambda: LinearMuP(3, 3).mixed(torch.ones(5, 5)), r"Ω has shape \(n, 6\); got \(5, 5\)"),
        (lambda: LinearNetwork(torch.ones(3, 2), torch.ones(2, 4)), r"hidden is \(n, d\)"),
        (lambda: word2vec_mup(5, output_std=0.1, coordinates=5), "needs at least 10 coordinates; got 5"),
        (lambda: word2vec_mup(3).features(torch.tensor([[1], [-1]])), "context 1 has no word"),
    ],
)
def test_bad_input_is_refused_at_the_door(make, told):
    with pytest.raises(ValueError, match=told):
        make()
