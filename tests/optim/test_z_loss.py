"""The z-loss is its closed form, in value and gradient, and masks as the cross-entropy does."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from allometry.optim.z_loss import CrossEntropyWithZ, cross_entropy_with_z, z_loss


def random_logits(*shape: int, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).requires_grad_()


def test_gradient_is_two_c_log_z_softmax() -> None:
    logits = random_logits(5, 7, 11)
    z_loss(logits, 0.3).backward()
    log_z = torch.logsumexp(logits.detach(), -1, keepdim=True)
    expected = 2 * 0.3 * log_z * logits.detach().softmax(-1) / 35
    assert torch.allclose(logits.grad, expected, rtol=0, atol=1e-10)
    assert torch.autograd.gradcheck(lambda x: z_loss(x, 0.3), random_logits(2, 4))


@pytest.mark.parametrize("ignored", [0, 3])
def test_both_terms_and_gradients_equal_those_computed_apart(ignored: int) -> None:
    ours, theirs = random_logits(4, 6, 9), random_logits(4, 6, 9)
    targets = torch.randint(9, (4, 6), generator=torch.Generator().manual_seed(1))
    targets.view(-1)[:ignored] = -100
    loss, nats = cross_entropy_with_z(ours, targets, 0.02)
    expected = F.cross_entropy(theirs.flatten(0, 1), targets.flatten())
    assert nats.item() == pytest.approx(expected.item(), abs=1e-12)
    whole = expected + z_loss(theirs, 0.02, mask=targets != -100)
    assert loss.item() == pytest.approx(whole.item(), abs=1e-12)
    loss.backward()
    whole.backward()
    assert torch.allclose(ours.grad, theirs.grad, rtol=0, atol=1e-12)
    assert not ours.grad.view(-1, 9)[:ignored].any()


def test_the_penalty_is_blind_to_nothing_that_cross_entropy_is_blind_to() -> None:
    """A constant on all logits leaves the cross-entropy and moves the penalty by (log Z + c)² - log² Z."""
    logits = random_logits(3, 8).detach()
    targets = torch.tensor([1, 0, 5])
    one, other = (cross_entropy_with_z(logits + shift, targets, 1.0) for shift in (0.0, 2.5))
    assert float(other[1] - one[1]) == pytest.approx(0.0, abs=1e-12)
    moved = (5.0 * torch.logsumexp(logits, -1) + 6.25).mean()
    assert float(other[0] - one[0]) == pytest.approx(float(moved), abs=1e-11)


def test_descent_on_the_penalty_alone_brings_the_normaliser_to_one() -> None:
    logits = random_logits(6, 10)
    optimizer = torch.optim.SGD([logits], lr=1.0)
    for _ in range(300):
        optimizer.zero_grad()
        z_loss(logits, 1.0).backward()
        optimizer.step()
    assert float(torch.logsumexp(logits.detach(), -1).abs().max()) < 1e-3


def test_half_precision_is_widened_and_extreme_logits_stay_finite() -> None:
    logits = random_logits(4, 6).detach()
    targets = torch.tensor([0, 1, 2, 3])
    half = cross_entropy_with_z(logits.bfloat16(), targets)
    assert half[0].dtype == torch.float32
    assert float(half[1]) == pytest.approx(
        float(cross_entropy_with_z(logits.bfloat16().double(), targets)[1]), rel=1e-6
    )
    loss, nats = cross_entropy_with_z(torch.full((1, 3), 1e4), torch.tensor([0]))
    assert float(nats) == pytest.approx(math.log(3), abs=2e-3)  # float32 holds 1e4 to within 1e-3
    assert float(loss - nats) == pytest.approx(1e4, rel=1e-3)


def test_the_loss_object_is_found_again_by_its_settings() -> None:
    assert CrossEntropyWithZ(1e-3) == CrossEntropyWithZ(1e-3)
    assert hash(CrossEntropyWithZ(1e-3)) == hash(CrossEntropyWithZ(1e-3))
    assert CrossEntropyWithZ(1e-3) != CrossEntropyWithZ(1e-4)
    logits, targets = random_logits(3, 4).detach(), torch.tensor([0, 1, 2])
    assert float(CrossEntropyWithZ(0.1)(logits, targets)) == float(
        cross_entropy_with_z(logits, targets, 0.1)[0]
    )


def test_bad_input_is_told() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        z_loss(torch.zeros(2, 3), -1.0)
    with pytest.raises(ValueError, match=r"mask must have the shape .* \(2,\), got \(3,\)"):
        z_loss(torch.zeros(2, 3), mask=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"targets must have the shape .* \(2,\), got \(2, 3\)"):
        cross_entropy_with_z(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long))
