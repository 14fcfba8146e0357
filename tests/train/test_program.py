"""A planned program computes what the function computes, call after call."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from allometry.train.program import NotTraceable, Program
from allometry.train.small_attention import SmallAttention, causal_attention


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_memory_is_shared_without_harm() -> None:
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        a = x @ y
        b = a.t().relu()
        c = (b * 2 + 1).exp().sum(0, keepdim=True)
        d = b - c  # b is read here after it could have been written over
        e = torch.cat((d[:1], a[1:]), 0)
        return e.softmax(-1), (e * e).log1p().mean(), a.clone().add_(1.0)

    program = Program(function, [random(6, 6), random(6, 6)])
    for seed in range(3):
        inputs = random(6, 6, seed=seed), random(6, 6, seed=10 + seed)
        for found, expected in zip(program(*inputs), function(*inputs), strict=True):
            assert torch.equal(found, expected)
    assert program.planned_bytes < 12 * 6 * 6 * 8  # fewer places than intermediates


KINDS = ("add", "mul", "relu", "transpose", "slice", "cat", "norm", "write")
steps = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 9)), min_size=1, max_size=14)


@settings(max_examples=40, deadline=None)
@given(steps)
def test_random_programs_with_views_and_writes(plan: list[tuple[str, int]]) -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        made = [x]
        for kind, at in plan:
            value = made[at % len(made)]
            other = made[-1]
            if kind == "add":
                made.append(value + other)
            elif kind == "mul":
                made.append(value * other)
            elif kind == "relu":
                made.append(value.relu())
            elif kind == "transpose":
                made.append(value.t())
            elif kind == "slice":
                made.append(torch.cat((value[:2], other[2:]), 0))
            elif kind == "cat":
                made.append(torch.cat((value[:, 3:], value[:, :3]), 1))
            elif kind == "norm":
                made.append(value / (1 + value.norm(dim=1, keepdim=True)))
            else:
                copy = value.clone()
                copy[:, 1:2].mul_(0.5)
                made.append(copy)
        return tuple(made[-3:])

    program = Program(function, [random(5, 5)])
    for seed in (1, 2):
        for found, expected in zip(
            program(random(5, 5, seed=seed)), function(random(5, 5, seed=seed)), strict=True
        ):
            assert torch.allclose(found, expected, rtol=1e-12, atol=0, equal_nan=True)


def test_inputs_that_the_function_writes_are_written() -> None:
    def function(count: Tensor, x: Tensor) -> Tensor:
        count.add_(1)
        return x * count

    program = Program(function, [torch.zeros(()), torch.ones(3)])
    assert program(torch.tensor(4.0), torch.ones(3))[0].tolist() == [5.0] * 3
    assert float(program.inputs[0]) == 5.0


def test_fixed_inputs_are_read_where_they_lie() -> None:
    table = torch.ones(3)
    program = Program(lambda x, y: x + y, [torch.zeros(3), table], fixed=[1])
    table.fill_(5.0)
    assert program(torch.zeros(3), table)[0].tolist() == [5.0] * 3


def test_forward_and_backward_of_a_network() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)).double()
    names = [name for name, _ in model.named_parameters()]

    def function(x: Tensor, y: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        def loss(named: dict[str, Tensor]) -> Tensor:
            return F.cross_entropy(functional_call(model, named, (x,)), y)

        gradients, value = grad_and_value(loss)(dict(zip(names, values, strict=True)))
        return value, *gradients.values()

    values = [p.detach() for p in model.parameters()]
    x, y = random(7, 4), torch.arange(7) % 3
    program = Program(function, [x, y, *values])
    loss, *gradients = program(x * 2, y, *values)
    expected = F.cross_entropy(model(x * 2), y)
    expected.backward()
    assert torch.allclose(loss, expected.detach())
    for mine, parameter in zip(gradients, model.parameters(), strict=True):
        assert torch.allclose(mine, parameter.grad, rtol=1e-10, atol=1e-12)


def test_random_operators_are_refused() -> None:
    with pytest.raises(NotTraceable, match="random"):
        Program(lambda x: x + torch.rand_like(x), [torch.zeros(3)])


@pytest.mark.parametrize("length", [1, 31, 32, 33, 128])
def test_attention_and_its_gradient_equal_the_fused_kernel(length: int) -> None:
    inputs = [random(2, 3, length, 8, seed=seed).requires_grad_() for seed in range(3)]
    upstream = random(2, 3, length, 8, seed=7)
    mine = causal_attention(*inputs, scale=0.7)
    theirs = F.scaled_dot_product_attention(*inputs, is_causal=True, scale=0.7)
    assert torch.allclose(mine, theirs, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(mine, inputs, upstream),
        torch.autograd.grad(theirs, inputs, upstream),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-12)


def test_attention_under_vmap_folds_the_replicas() -> None:
    inputs = [random(4, 2, 3, 40, 8, seed=seed) for seed in range(3)]
    mapped = torch.vmap(causal_attention, in_dims=(0, 0, None))(inputs[0], inputs[1], inputs[2][0])
    for replica in range(4):
        alone = causal_attention(inputs[0][replica], inputs[1][replica], inputs[2][0])
        assert torch.allclose(mapped[replica], alone, atol=1e-12)


def test_calls_that_small_attention_does_not_know_are_left_alone() -> None:
    q = random(1, 2, 6, 4)
    long = random(1, 1, 300, 4)
    mask = random(6, 6)
    with SmallAttention():
        found = [
            F.scaled_dot_product_attention(long, long, long, is_causal=True),
            F.scaled_dot_product_attention(q, q, q, attn_mask=mask),
            F.scaled_dot_product_attention(q[:, :, :3], q, q),
            F.scaled_dot_product_attention(q[:, :, :3], q, q, is_causal=True),
        ]
    expected = [
        F.scaled_dot_product_attention(long, long, long, is_causal=True),
        F.scaled_dot_product_attention(q, q, q, attn_mask=mask),
        F.scaled_dot_product_attention(q[:, :, :3], q, q),
        F.scaled_dot_product_attention(q[:, :, :3], q, q, is_causal=True),
    ]
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
