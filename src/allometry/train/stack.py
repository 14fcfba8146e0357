"""Train a stack in the training loop, read its log as those of single runs, and measure what it gains.

The stack itself is :class:`allometry.train.replicas.Stack`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from allometry.train.replicas import Stack, cross_entropy

if TYPE_CHECKING:
    from allometry.train.loop import TrainLog

__all__ = ["Stack", "cross_entropy", "fit_stack", "replica_logs", "stack_speedup"]


def fit_stack(
    make_model: Callable[[torch.Generator], nn.Module],
    n: int,
    batches: Any,
    *,
    generators: Sequence[torch.Generator],
    horizons: int | Sequence[int],
    learning_rates: float | Sequence[float] | None = None,
    make_optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    schedule: Callable[[int, int], float] | None = None,
    validate: Callable[[Stack], Mapping[str, Any]] | None = None,
    chunk: int | None = None,
    on_optimizer: Callable[[torch.optim.Optimizer], Any] | None = None,
    **settings: Any,
) -> list[TrainLog]:
    """Train n models of one shape as one program; each one's log is that of a run of its own.

    Parameters
    ----------
    make_model : generator -> nn.Module
        Called with each of ``generators``.
    n : int
    batches : sequence of n sources, or one source for all
        As in :func:`allometry.train.fit`: objects with ``batch(step) -> (inputs, targets)``, or iterables.
    generators : sequence of n torch.Generator
    horizons : int or sequence of int
        In steps.
    learning_rates : float or sequence of n floats, optional
        5e-3 by default, where ``make_optimizer`` is not given either.
    make_optimizer : (model, learning_rate) -> Optimizer, optional
        Without ``learning_rates``: (model) -> Optimizer. By default AdamW with independent decay.
    schedule : (step, total) -> multiplier, optional
        Constant by default.
    validate : Stack -> dict, optional
        Values of shape (n,), tensors or lists, are given out to the logs; others go into all.
    chunk : int, optional
        See :class:`Stack`.
    on_optimizer : callable, optional
        Called with the stack's optimizer before training, to register hooks on it.
    **settings
        For :func:`allometry.train.fit`.

    Returns
    -------
    list of TrainLog
        Each with its own losses, norms and status. ``meter`` counts one replica's steps and tokens, and an
        n-th of the seconds. To keep the models, build the :class:`Stack` yourself and call ``train.fit``.

    Raises
    ------
    ValueError
        If a sequence does not have n entries.
    """
    from allometry.optim.adamw import AdamWIndependent
    from allometry.optim.schedules import constant
    from allometry.train.loop import fit

    if n < 1 or len(generators) != n:
        raise ValueError(f"fit_stack trains n={n} models and was given {len(generators)} generators")
    if learning_rates is None and make_optimizer is None:
        learning_rates = 5e-3
    stack = Stack([make_model(generator) for generator in generators], chunk=chunk)
    optimizer = stack.optimizer(
        make_optimizer or (lambda model, rate: AdamWIndependent(model.parameters(), rate)), learning_rates
    )
    if on_optimizer is not None:
        on_optimizer(optimizer)
    told = None if validate is None else lambda model: {k: _plain(v) for k, v in validate(model).items()}
    log = fit(
        stack,
        _side_by_side(batches, n),
        optimizer=optimizer,
        horizons=horizons,
        schedule=schedule or constant,
        validate=told,
        **settings,
    )
    return replica_logs(log, n)


def replica_logs(log: TrainLog, n: int) -> list[TrainLog]:
    """The log of a stack of n, as the logs of n runs."""
    from allometry.train.loop import TrainLog

    def own(row: Mapping[str, Any], replica: int) -> dict[str, Any]:
        return {
            key: value[replica] if isinstance(value, list) and len(value) == n else value
            for key, value in row.items()
            if key != "lost"
        }

    logs = []
    for replica in range(n):
        lost = log.diverged.get(replica)
        last = float("inf") if lost is None else lost
        meter = {k: v / n if k == "seconds" else v for k, v in log.meter.items()}
        logs.append(
            TrainLog(
                steps=[own(row, replica) for row in log.steps if row["step"] <= last],
                horizons=[
                    own(row, replica) | {"lost": [0] if replica in row.get("lost", ()) else []}
                    for row in log.horizons
                ],
                status=log.status if lost is None else "diverged",
                diverged={} if lost is None else {0: lost},
                skipped=log.skipped,
                meter=meter,
            )
        )
    return logs


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value


class _SideBySide:
    """Sources with ``batch(step)``, one a replica."""

    def __init__(self, sources: Sequence[Any]) -> None:
        self.sources = sources

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        inputs, targets = zip(*(source.batch(step) for source in self.sources), strict=True)
        return torch.stack(inputs), torch.stack(targets)


def _side_by_side(batches: Any, n: int) -> Any:
    if hasattr(batches, "batch"):
        return _SideBySide([batches] * n)
    if not isinstance(batches, Sequence):
        return ((x.expand(n, *x.shape), y.expand(n, *y.shape)) for x, y in batches)
    if len(batches) != n:
        raise ValueError(f"{len(batches)} sources of batches for n={n} models; give n, or one for all")
    if all(hasattr(source, "batch") for source in batches):
        return _SideBySide(batches)
    pairs = zip(*batches, strict=False)
    return (tuple(torch.stack(side) for side in zip(*pair, strict=True)) for pair in pairs)


def stack_speedup(
    make_model: Callable[[torch.Generator], nn.Module],
    n: int,
    batch_shape: Sequence[int],
    *,
    classes: int = 256,
    repeats: int = 5,
    chunk: int | None = None,
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
) -> float:
    """How many times faster n models train stacked than one after another, measured here and now.

    Whole steps on random tokens: loss, gradient, clipping, update; both warm, timed in turns in this process,
    in processor time where threads are one, so that other programs disturb little.

    Parameters
    ----------
    make_model : generator -> nn.Module
        A model of integers (B, T) -> (B, T, classes).
    n : int
    batch_shape : (B, T)
    classes : int
        Size of the vocabulary.
    repeats : int
        Rounds; the median of their ratios is returned.

    Returns
    -------
    float
        Above 1, stacking pays.
    """
    generator = torch.Generator().manual_seed(0)
    models = [make_model(torch.Generator().manual_seed(seed)) for seed in range(n)]
    make = make_optimizer or (lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True))
    stack = Stack(models, chunk=chunk)
    together, alone = stack.optimizer(make), [make(model) for model in models]
    inputs, targets = (torch.randint(classes, (n, *batch_shape), generator=generator) for _ in range(2))

    def stacked() -> None:
        stack.losses(inputs, targets).sum().backward()
        stack.clip_grad_norm(1.0)
        together.step()
        together.zero_grad()

    def single() -> None:
        for model, optimizer, x, y in zip(models, alone, inputs, targets, strict=True):
            cross_entropy(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def seconds(step: Callable[[], None]) -> float:
        begin = clock()
        step()
        return clock() - begin

    for _ in range(2):
        stacked()
        single()
    return median(seconds(single) / seconds(stacked) for _ in range(max(1, repeats)))
