"""Loops for another batch size: schedulers take their time, rates their rule, and Trainer its numbers."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as sched

from allometry.optim import (
    AdamWIndependent,
    adapt_arguments_to_batch,
    adapt_loop_to_batch_,
    as_scheduler,
    cosine,
)

SIZES = {"batch": 64, "to": 256, "epochs": 24, "samples": 6400}  # 100 updates an epoch, then 25


def made(kind, rate=0.1):
    """An optimizer with two groups, and a scheduler that is done after 24 of its steps."""
    one, other = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [one]}, {"params": [other], "lr": 2 * rate}], rate, momentum=0.9)
    return optimizer, (KINDS | ONLY_RATES)[kind](optimizer)


KINDS = {
    "milestones": lambda o: sched.MultiStepLR(o, [12, 18]),
    "steps": lambda o: sched.StepLR(o, 8),
    "cosine": lambda o: sched.CosineAnnealingLR(o, 24, eta_min=0.0),
    "restarts": lambda o: sched.CosineAnnealingWarmRestarts(o, 8, T_mult=2),
    "exponential": lambda o: sched.ExponentialLR(o, 0.8),
    "polynomial": lambda o: sched.PolynomialLR(o, 24, power=1.5),
    "linear": lambda o: sched.LinearLR(o, 0.2, 1.0, 10),
    "constant": lambda o: sched.ConstantLR(o, 0.3, 6),
    "lambda": lambda o: sched.LambdaLR(o, lambda t: 1 / (1 + t)),
    "ours": lambda o: as_scheduler(o, cosine, 24),
    "sequence": lambda o: sched.SequentialLR(
        o, [sched.ConstantLR(o, 0.1, 100), sched.CosineAnnealingLR(o, 20)], [4]
    ),
    "chain": lambda o: sched.ChainedScheduler([sched.ConstantLR(o, 0.5, 6), sched.StepLR(o, 8)]),
}  # fmt: skip


ONLY_RATES = {
    "cycles": lambda o: sched.CyclicLR(o, 0.01, 0.1, step_size_up=5),
    "average": lambda o: torch.optim.swa_utils.SWALR(o, 0.05, anneal_epochs=4),
}  # fmt: skip


def rates(optimizer, scheduler, steps):
    """Of both groups, before each step of the scheduler."""
    found = []
    for _ in range(steps):
        found.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_schedulers_of_epochs_reach_the_same_shares_of_higher_rates_four_times_later(kind):
    plain = rates(*made(kind), 24)
    optimizer, scheduler = made(kind)
    told = adapt_loop_to_batch_(optimizer, scheduler, rule="sqrt", updates="regime", **SIZES)
    assert (told.epochs, told.updates, told.cost) == (96, 2400, 4)
    assert told.learning_rate == pytest.approx(0.2)
    slow = rates(optimizer, scheduler, 96)
    assert torch.allclose(slow[::4], 2 * plain, rtol=1e-9)


@pytest.mark.parametrize("kind", [*KINDS, "cycles", "average"])
def test_schedulers_of_updates_are_as_they_were_where_updates_are(kind):
    plain = rates(*made(kind), 24)
    optimizer, scheduler = made(kind)
    adapt_loop_to_batch_(optimizer, scheduler, rule="linear", updates="regime", stepped="update", **SIZES)
    assert torch.allclose(rates(optimizer, scheduler, 24), 4 * plain, rtol=1e-9)


def test_schedulers_of_updates_are_shortened_where_epochs_stay():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)
    scheduler = sched.CosineAnnealingLR(optimizer, 2400)
    told = adapt_loop_to_batch_(optimizer, scheduler, rule="none", stepped="update", **SIZES)
    assert scheduler.T_max == told.updates == 600
    scheduler = sched.MultiStepLR(optimizer, [12])
    adapt_loop_to_batch_(optimizer, scheduler, rule="none", **SIZES)
    assert list(scheduler.milestones) == [12]  # of epochs, which stay


def test_one_cycle_keeps_its_shape():
    def cycle(adapted):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1, momentum=0.9)
        scheduler = sched.OneCycleLR(optimizer, 0.5, total_steps=240)
        if adapted:
            adapt_loop_to_batch_(optimizer, scheduler, rule="sqrt", stepped="update",
                                 batch=64, to=256, epochs=2.4, samples=6400)  # fmt: skip
        return [float(rate) for rate in rates(optimizer, scheduler, 60 if adapted else 240)[:, 0]]

    long, short = cycle(False), cycle(True)
    assert max(short) == pytest.approx(2 * max(long), rel=1e-3)
    assert abs(4 * short.index(max(short)) - long.index(max(long))) <= 4
    assert short[-1] == pytest.approx(2 * long[-1], rel=1e-6)


def test_patience_is_stretched_and_floors_rise():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)
    scheduler = sched.ReduceLROnPlateau(optimizer, patience=3, cooldown=0, min_lr=0.01)
    adapt_loop_to_batch_(optimizer, scheduler, rule="sqrt", updates="regime", **SIZES)
    assert (scheduler.patience, scheduler.cooldown, scheduler.min_lrs) == (12, 0, [0.02])


@pytest.mark.parametrize("kind", ["milestones", "cosine", "sequence", "ours"])
def test_a_run_goes_on_from_its_state(kind):
    whole = made(kind)
    adapt_loop_to_batch_(*whole, rule="sqrt", updates="regime", **SIZES)
    wanted = rates(*whole, 96)
    part = made(kind)
    adapt_loop_to_batch_(*part, rule="sqrt", updates="regime", **SIZES)
    rates(*part, 40)
    states = [copy.deepcopy(one.state_dict()) for one in part]
    again = made(kind)
    adapt_loop_to_batch_(*again, rule="sqrt", updates="regime", **SIZES)
    for one, state in zip(again, states, strict=True):
        one.load_state_dict(state)
    assert torch.allclose(rates(*again, 56), wanted[40:])


def test_independent_decay_and_tensor_rates_stay_what_they_are():
    weight = nn.Parameter(torch.ones(1))
    optimizer = AdamWIndependent([weight], lr=0.1, weight_decay=0.25)
    adapt_loop_to_batch_(optimizer, rule="sqrt", **SIZES)
    weight.grad = torch.zeros(1)
    optimizer.step()
    assert weight.item() == pytest.approx(0.75)
    plain = torch.optim.Adam([weight], lr=torch.tensor(0.1), foreach=False)
    adapt_loop_to_batch_(plain, rule="sqrt", **SIZES)
    assert torch.equal(plain.param_groups[0]["lr"], torch.tensor(0.2))


def test_what_cannot_be_stretched_is_refused_and_nothing_is_changed():
    optimizer, scheduler = made("cosine")
    optimizer.step()
    scheduler.step()
    with pytest.raises(ValueError, match="was stepped already"):
        adapt_loop_to_batch_(optimizer, scheduler, rule="sqrt", updates="regime", **SIZES)
    assert scheduler.base_lrs == [0.1, 0.2]
    factors = sched.MultiplicativeLR(optimizer, lambda t: 0.9)
    with pytest.raises(ValueError, match="MultiplicativeLR cannot be stretched"):
        adapt_loop_to_batch_(optimizer, factors, rule="sqrt", updates="regime", **SIZES)
    with pytest.raises(ValueError, match="is not of this optimizer"):
        adapt_loop_to_batch_(optimizer, made("cosine")[1], rule="sqrt", **SIZES)
    with pytest.raises(ValueError, match="stepped is"):
        adapt_loop_to_batch_(optimizer, rule="sqrt", stepped="batch", **SIZES)
    with pytest.raises(ValueError, match="rule must be one of"):
        adapt_loop_to_batch_(optimizer, rule="cube", **SIZES)


# --- transformers -------------------------------------------------------------------------------------------
def test_arguments_keep_the_number_of_updates_or_of_epochs():
    given = {
        "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "learning_rate": 1e-3,
        "num_train_epochs": 4, "warmup_steps": 100, "weight_decay": 0.1,
    }  # fmt: skip
    adapted, told = adapt_arguments_to_batch(given, to=256, samples=8192, rule="sqrt", processes=4)
    assert adapted["per_device_train_batch_size"] == 32  # 4 processes, 2 accumulated steps
    assert adapted["learning_rate"] == pytest.approx(2e-3)
    assert (adapted["num_train_epochs"], adapted["warmup_steps"], told.updates) == (4, 25, 128)
    assert adapted["weight_decay"] == 0.1
    assert given["learning_rate"] == 1e-3
    adapted, told = adapt_arguments_to_batch(
        given, to=256, samples=8192, rule="sqrt", updates="regime", processes=4, clip=5.0
    )
    assert (adapted["num_train_epochs"], adapted["warmup_steps"], told.updates) == (16, 100, 512)
    assert adapted["max_grad_norm"] == told.clip == 5.0
    adapted, _ = adapt_arguments_to_batch({"max_steps": 1000}, to=32, samples=8000, rule="none")
    assert adapted["max_steps"] == 250
    assert "num_train_epochs" not in adapted
    with pytest.raises(ValueError, match="cannot be shared by 8"):
        adapt_arguments_to_batch(given, to=100, samples=8192, rule="sqrt", processes=4)


def test_trainer_makes_as_many_updates_as_before(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 1)

        def forward(self, x, labels):
            output = self.inner(x)
            return {"loss": nn.functional.mse_loss(output, labels), "logits": output}

    data = [{"x": torch.randn(3), "labels": torch.randn(1)} for _ in range(48)]

    def run(arguments):
        trainer = transformers.Trainer(Line(), arguments, train_dataset=data)
        trainer.train()
        peak = max(arguments.learning_rate, *trainer.lr_scheduler.get_last_lr())
        return trainer.state.global_step, peak

    plain = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, num_train_epochs=2, learning_rate=0.01, warmup_steps=3,
        lr_scheduler_type="cosine", report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    adapted, told = adapt_arguments_to_batch(plain, to=16, samples=48, rule="sqrt", updates="regime")
    assert type(adapted) is type(plain)
    assert plain.per_device_train_batch_size == 4
    steps, _ = run(plain)
    again, peak = run(adapted)
    assert steps == again == told.updates == 24
    assert peak == pytest.approx(0.02)
    assert math.isclose(told.cost, 4.0)
    assert told.clip == plain.max_grad_norm
