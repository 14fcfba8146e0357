"""Stacks train every form of attention, with and without the z-loss, as single runs do."""

import pytest
import torch
from torch import Tensor, nn

from allometry.models import GPT, GPTConfig
from allometry.models.qk_norm import add_qk_norm_
from allometry.optim import AdamWIndependent, constant
from allometry.optim.z_loss import CrossEntropyWithZ
from allometry.train import Stack, fit
from allometry.train.stack import cross_entropy

PENALTY = CrossEntropyWithZ(0.01)
FORMS = {
    "none": {"qk_norm": None},
    "learned": {"qk_norm": "learned"},
    "fixed": {"qk_norm": "fixed"},
    "rmsnorm": {"qk_norm": None},
    "layernorm": {"qk_norm": None},
}


def gpt(form: str, seed: int) -> nn.Module:
    config = GPTConfig(
        width=32, depth=1, context=24, vocab_size=32, zero_init_outputs=False, activation="gelu",
        **FORMS[form],
    )  # fmt: skip
    model = GPT(config, generator=torch.Generator().manual_seed(seed))
    return add_qk_norm_(model, form) if form in ("rmsnorm", "layernorm") else model  # type: ignore[arg-type]


def data(replicas: int, steps: int) -> list[tuple[Tensor, Tensor]]:
    windows = torch.randint(32, (steps, replicas, 2, 25), generator=torch.Generator().manual_seed(0))
    return [(window[..., :-1], window[..., 1:]) for window in windows]


def optimizer(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    return AdamWIndependent(model.parameters(), rate, weight_decay=1e-4)


@pytest.mark.parametrize(
    ("form", "loss"),
    [(form, PENALTY) for form in FORMS] + [("none", cross_entropy), ("layernorm", cross_entropy)],
)
def test_five_steps_equal_single_runs(form: str, loss: object) -> None:
    """In float64, where the order of sums cannot hide an error behind Adam's first steps."""
    rates = [1e-3, 5e-3]
    models = [gpt(form, seed).double() for seed in range(2)]
    stack = Stack(models, chunk=2)
    together = stack.optimizer(optimizer, rates)
    alone = [optimizer(model, rate) for model, rate in zip(models, rates, strict=True)]
    for inputs, targets in data(2, 5):
        losses = stack.losses(inputs, targets, loss)
        losses.sum().backward()
        stack.clip_grad_norm(1.0)
        together.step()
        together.zero_grad()
        for replica, (model, own) in enumerate(zip(models, alone, strict=True)):
            single = loss(model(inputs[replica]), targets[replica])
            single.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            own.step()
            own.zero_grad()
            # a stack tells its losses in float32
            assert losses[replica].item() == pytest.approx(single.item(), rel=1e-6)
    assert stack.untraced is None
    for replica, model in enumerate(models):
        for name, parameter in model.named_parameters():
            assert torch.allclose(stack.stacked[name][replica], parameter, rtol=0, atol=1e-8), name


@pytest.mark.parametrize("form", ["none", "layernorm"])
def test_gradients_with_the_penalty_equal_autograd(form: str) -> None:
    models = [gpt(form, seed) for seed in range(2)]
    stack = Stack(models, chunk=1)
    (inputs, targets), *_ = data(2, 1)
    stack.losses(inputs, targets, PENALTY).sum().backward()
    for replica, model in enumerate(models):
        PENALTY(model(inputs[replica]), targets[replica]).backward()
        for name, parameter in model.named_parameters():
            start, end, shape = stack.columns[name]
            mine = stack.weights.grad[replica, start:end].view(shape)
            assert torch.allclose(mine, parameter.grad, atol=1e-6, rtol=1e-4), name


def test_the_loop_takes_the_penalty_as_its_objective_and_traces_it_once() -> None:
    class Source:
        def batch(self, step: int) -> tuple[Tensor, Tensor]:
            return data(2, 1)[0]

    stack = Stack([gpt("layernorm", seed) for seed in range(2)])
    log = fit(
        stack, Source(), optimizer=stack.optimizer(optimizer, 1e-3), horizons=4, schedule=constant,
        log_every=1,
        objective=lambda model, x, y: model.losses(x, y, CrossEntropyWithZ(0.01)),
        validate=lambda model: {"loss": model.losses(*data(2, 1)[0])},
    )  # fmt: skip
    assert log.status == "done"
    first, last = log.steps[0]["loss"], log.steps[-1]["loss"]
    assert all(after < before for before, after in zip(first, last, strict=True))
    assert all(plain < penalised for plain, penalised in zip(log.horizons[0]["loss"], last, strict=True))
    assert len(stack._programs) == 2  # one to train, one to validate
