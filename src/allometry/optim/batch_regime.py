"""Another batch size in a loop that is written already: optimizers, schedulers, transformers' arguments.

Hoffer, Hubara and Soudry, "Train longer, generalize better", 2017. arXiv:1705.08741.  The numbers are those
of :func:`allometry.optim.large_batch.adapt_to_batch`; here they are put where a loop reads them.

- `adapt_loop_to_batch_` is for loops of one's own: rates are changed in the optimizer's groups, and what
  torch's schedulers count (milestones, periods, patience, lambdas) is stretched, so that the loop's text
  stays as it is but for the number of epochs.
- `adapt_arguments_to_batch` is for transformers' ``Trainer``, which makes its scheduler from the number of
  updates and so needs numbers alone.
- :func:`allometry.train.fit` asks for a number of updates, `BatchAdaptation.updates`, and for schedules that
  are functions of the share of the run: nothing else has to be changed there.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar

import torch
from torch.optim import lr_scheduler

from allometry.optim.large_batch import BatchAdaptation, adapt_to_batch

__all__ = ["adapt_arguments_to_batch", "adapt_loop_to_batch_"]

Arguments = TypeVar("Arguments")
_RATES = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")  # what groups hold; the last are schedulers'
_COUNTS = {  # what a scheduler counts, by kind
    lr_scheduler.StepLR: ("step_size",), lr_scheduler.CosineAnnealingLR: ("T_max",),
    lr_scheduler.CosineAnnealingWarmRestarts: ("T_0", "T_i"), lr_scheduler.ConstantLR: ("total_iters",),
    lr_scheduler.LinearLR: ("total_iters",), lr_scheduler.PolynomialLR: ("total_iters",),
    lr_scheduler.ReduceLROnPlateau: ("patience", "cooldown"), lr_scheduler.OneCycleLR: ("total_steps",),
}  # fmt: skip
_KINDS = (
    *_COUNTS, lr_scheduler.MultiStepLR, lr_scheduler.ExponentialLR, lr_scheduler.LambdaLR,
    lr_scheduler.SequentialLR, lr_scheduler.ChainedScheduler,
)  # fmt: skip


def adapt_loop_to_batch_(
    optimizer: torch.optim.Optimizer, schedulers: Any = (), *, batch: int, to: int, epochs: float,
    samples: int, rule: str, updates: str = "epochs", stepped: Literal["epoch", "update"] = "epoch",
    clip: float | None = 5.0, drop_last: bool = False,
) -> BatchAdaptation:  # fmt: skip
    """Change an optimizer and its schedulers, which were made for one batch size, for another, in place.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Rates of all groups are multiplied; a decay that is independent of them
        (`allometry.optim.AdamWIndependent`) stays.
    schedulers : LRScheduler, ReduceLROnPlateau, or several
        Of this optimizer, and not stepped yet. Those that schedulers are made of are changed with them.
    batch, to, epochs, samples, rule, updates, clip, drop_last
        As in `allometry.optim.adapt_to_batch`.
    stepped : {"epoch", "update"}
        What the schedulers are stepped after. With ``updates="regime"`` those of epochs are stretched, and
        those of updates stay; with ``"epochs"`` it is the other way around, and they are shortened.

    Returns
    -------
    BatchAdaptation
        Of the first group's rate; the loop needs ``epochs``, rounded up, or ``updates``, and ``clip``.

    Raises
    ------
    ValueError
        As `adapt_to_batch`; a scheduler that was stepped, whose time cannot be stretched, or of another
        optimizer.

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.zeros(1))
    >>> optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    >>> scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [81, 122])
    >>> print(adapt_loop_to_batch_(optimizer, scheduler, batch=128, to=2048, epochs=164, samples=51_200,
    ...                            rule="sqrt", updates="regime"))
    batch 2048: rate 0.4, 2624 epochs (65600 updates, 16 times the samples)
    >>> sorted(scheduler.milestones), scheduler.get_last_lr()
    ([1296, 1952], [0.4])
    """
    if stepped not in ("epoch", "update"):
        raise ValueError(f"stepped is 'epoch' or 'update', not {stepped!r}")
    given = [schedulers] if hasattr(schedulers, "step") else list(schedulers)
    first = optimizer.param_groups[0]
    numbers: dict[str, Any] = {"learning_rate": float(first.get("initial_lr", first["lr"])), "epochs": epochs,
                               "samples": samples, "clip": clip, "drop_last": drop_last}  # fmt: skip
    before = adapt_to_batch(batch=batch, to=batch, rule="none", **numbers)
    after = adapt_to_batch(batch=batch, to=to, rule=rule, updates=updates, **numbers)
    stretch = after.epochs / epochs if stepped == "epoch" else after.updates / before.updates
    every = list(_with_parts(given))
    for one in every:  # before anything is changed
        _check(one, optimizer, stretch)
    factor = after.learning_rate / before.learning_rate
    for group in optimizer.param_groups:
        for name in _RATES:
            if group.get(name) is not None:
                group[name] = group[name] * factor  # a tensor stays one
        if "independent_weight_decay" in group and factor > 0:
            group["weight_decay"] = group["weight_decay"] / factor
    for one in every:
        _scale(one, factor)
        if stretch != 1:
            _stretch(one, stretch)
    return after


def adapt_arguments_to_batch(
    arguments: Arguments, *, to: int, samples: int, rule: str, updates: str = "epochs",
    clip: float | None = None, processes: int | None = None,
) -> tuple[Arguments, BatchAdaptation]:  # fmt: skip
    """The arguments of transformers' ``Trainer`` for another batch size.

    Parameters
    ----------
    arguments : transformers.TrainingArguments, or a mapping of its arguments
        Its batch is ``per_device_train_batch_size`` times ``gradient_accumulation_steps`` times processes;
        what it does not tell is as in `TrainingArguments`. It is left as it is.
    to : int
        The batch wanted, over all processes and accumulated steps; samples on a device are what is changed.
    samples : int
        Of the training data.
    rule, updates
        As in `allometry.optim.adapt_to_batch`.
    clip : float, optional
        The largest gradient norm; what is there by default (1.0, smaller than the paper's 5).
    processes : int, optional
        Devices that train; those of ``TrainingArguments``, or 1.

    Returns
    -------
    arguments : as given
        With another ``per_device_train_batch_size``, ``learning_rate``, ``num_train_epochs`` (or
        ``max_steps``) and ``warmup_steps``. A warm-up that is a share of the run, and a ``lr_scheduler_type``
        that ends with it, follow by themselves; ``logging_steps``, ``eval_steps``, ``save_steps`` are left.
    adaptation : BatchAdaptation

    Raises
    ------
    ValueError
        As `adapt_to_batch`; a batch that devices and accumulated steps do not divide.

    Examples
    --------
    >>> given = {"per_device_train_batch_size": 64, "learning_rate": 0.001, "warmup_steps": 40}
    >>> arguments, adaptation = adapt_arguments_to_batch(given, to=1024, samples=8192, rule="sqrt")
    >>> arguments["per_device_train_batch_size"], arguments["learning_rate"], arguments["warmup_steps"]
    (1024, 0.004, 2)
    """
    held = arguments if isinstance(arguments, Mapping) else vars(arguments)
    if processes is None:
        told = 1 if isinstance(arguments, Mapping) else getattr(arguments, "world_size", 1)
        processes = max(1, int(told)) * max(1, int(held.get("_n_gpu") or 1))
    here = int(held.get("per_device_train_batch_size", 8))
    shared = int(held.get("gradient_accumulation_steps", 1)) * processes
    if to % shared:
        raise ValueError(
            f"a batch of {to} cannot be shared by {shared} (devices times gradient_accumulation_steps): take "
            "a multiple, or accumulate fewer steps"
        )
    last = bool(held.get("dataloader_drop_last", False))
    limit = int(held.get("max_steps", -1) or -1)
    each = samples // (here * shared) if last else math.ceil(samples / (here * shared))
    epochs = limit / max(1, each) if limit > 0 else float(held.get("num_train_epochs", 3.0))
    rate = float(held.get("learning_rate", 5e-5))
    numbers: dict[str, Any] = {"batch": here * shared, "learning_rate": rate, "epochs": epochs,
                               "samples": samples, "drop_last": last}  # fmt: skip
    before = adapt_to_batch(to=here * shared, rule="none", **numbers)
    after = adapt_to_batch(to=to, rule=rule, updates=updates, clip=clip, **numbers)
    changes: dict[str, Any] = {
        "per_device_train_batch_size": to // shared,
        "learning_rate": after.learning_rate,
    }
    if limit > 0:
        changes["max_steps"] = after.updates
    else:
        changes["num_train_epochs"] = after.epochs
    warm = held.get("warmup_steps") or 0
    if warm >= 1:  # below it is a share
        changes["warmup_steps"] = max(1, math.floor(warm * after.updates / before.updates))
    if clip is not None:
        changes["max_grad_norm"] = clip
    else:
        after = dataclasses.replace(after, clip=held.get("max_grad_norm", 1.0))
    if isinstance(arguments, Mapping):
        return {**arguments, **changes}, after  # type: ignore[return-value]
    adapted = copy.copy(arguments)
    for name, value in changes.items():
        setattr(adapted, name, value)
    return adapted, after


# --- schedulers ---------------------------------------------------------------------------------------------
def _with_parts(schedulers: Iterable[Any]) -> Iterable[Any]:
    """Schedulers, and those that they are made of."""
    for one in schedulers:
        yield one
        yield from _with_parts(getattr(one, "_schedulers", ()))


def _check(one: Any, optimizer: torch.optim.Optimizer, stretch: float) -> None:
    name = type(one).__name__
    if getattr(one, "optimizer", optimizer) is not optimizer:
        raise ValueError(f"the {name} is not of this optimizer")
    if stretch == 1:
        return
    if not isinstance(one, _KINDS):
        raise ValueError(f"the time of a {name} cannot be stretched: make it with adapt_to_batch's numbers")
    if getattr(one, "last_epoch", 0) > 0:
        raise ValueError(f"the {name} was stepped already: change it before training begins")


def _scale(one: Any, factor: float) -> None:
    """Rates that a scheduler remembers, or stops at."""
    for name in ("base_lrs", "max_lrs", "min_lrs", "_last_lr"):
        if hasattr(one, name):
            setattr(one, name, [rate * factor for rate in getattr(one, name)])
    if hasattr(one, "eta_min"):
        one.eta_min = one.eta_min * factor


def _stretch(one: Any, stretch: float) -> None:
    """Let a scheduler take so many times as long."""
    for kind, names in _COUNTS.items():
        if isinstance(one, kind):
            for name in names:
                count = getattr(one, name)
                setattr(one, name, max(min(1, count), round(count * stretch)))
    if isinstance(one, lr_scheduler.MultiStepLR):
        milestones: Counter[int] = Counter()
        for at, times in one.milestones.items():
            milestones[round(at * stretch)] += times
        one.milestones = milestones
    elif isinstance(one, lr_scheduler.ExponentialLR):
        one.gamma = one.gamma ** (1 / stretch)
    elif isinstance(one, lr_scheduler.LambdaLR):
        one.lr_lambdas = [_Slower(function, stretch) for function in one.lr_lambdas]
    elif isinstance(one, lr_scheduler.SequentialLR):
        one._milestones = [round(at * stretch) for at in one._milestones]
    elif isinstance(one, lr_scheduler.OneCycleLR):
        for phase in one._schedule_phases:
            phase["end_step"] = (phase["end_step"] + 1) * stretch - 1
        one._schedule_phases[-1]["end_step"] = one.total_steps - 1


@dataclasses.dataclass(frozen=True)
class _Slower:
    """A function of time, as it was so many times earlier; of whole numbers where they are."""

    function: Callable[[Any], float]
    stretch: float

    def __call__(self, step: int) -> float:
        at = step / self.stretch
        return self.function(int(at) if at.is_integer() else at)
