"""The training loop: one trunk, a decay branch for every horizon, resumed exactly where it was cut.

Branches off one trunk: Hägele and others, 2024. arXiv:2405.18392

* A run of several horizons trains the constant-rate trunk once. At ``schedule.branch(H)`` the state is kept,
  the decay of the run of H steps is trained to its end and recorded, and the trunk goes on from the kept
  state. The record of a horizon is bit for bit what a run of that horizon alone would have given.
* Everything that decides the next step is in the checkpoint: weights, optimizer, averaged weights,
  generators, step, and which segment it belongs to. Batches are a function of the step, so the data need no
  state.
* The model may be one model or a :class:`~allometry.train.stack.Stack` of R; then losses have shape (R,).
* An update whose loss or gradient is not finite is skipped, and counted; enough of them end the run.
* Gradients are the loop's own: what lay there before is cleared, and so are those of parameters that the
  optimizer does not train.
"""

from __future__ import annotations

import json
import math
import operator
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from allometry.optim.ema import AveragedWeights
from allometry.train.checkpoint import (
    Checkpointer,
    CheckpointError,
    flatten_optimizer,
    unflatten_optimizer,
)
from allometry.train.divergence import DivergenceRule, Watch
from allometry.train.meter import Meter
from allometry.train.parallel import Crew, local

if TYPE_CHECKING:
    import pandas as pd

Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]
Validate = Callable[[nn.Module], Mapping[str, Any]]


class Batches(Protocol):
    """Batches as a function of the step; what :class:`allometry.data.Windows` is."""

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one step."""
        ...


@dataclass
class TrainLog:
    """What a run did.

    Attributes
    ----------
    steps : list of dict
        step, tokens, loss, rate multiplier, gradient norm, horizon; one row every ``log_every`` steps.
    horizons : list of dict
        One row a finished horizon: ``horizon`` (steps), ``tokens``, and what ``validate`` returned.
    status : str
        "done", "diverged", or "stopped" (by ``should_stop``).
    """

    steps: list[dict[str, Any]] = field(default_factory=list)
    horizons: list[dict[str, Any]] = field(default_factory=list)
    status: str = "done"
    diverged: dict[int, int] = field(default_factory=dict)  # replica -> step
    skipped: int = 0
    meter: dict[str, float] = field(default_factory=dict)

    @property
    def table(self) -> pd.DataFrame:
        """``steps`` as a DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.steps)


@dataclass(frozen=True)
class Segment:
    """Steps [start, end) under the schedule of a run of ``total`` steps; a branch ends in a record."""

    start: int
    end: int
    total: int
    branch: bool


def segments(horizons: Sequence[int], schedule: Callable[[int, int], float]) -> list[Segment]:
    """The order in which a trunk and its branches are trained.

    >>> from allometry.optim import WSD
    >>> [(s.start, s.end, s.branch) for s in segments([4, 8], WSD(decay=0.5))]
    [(0, 2, False), (2, 4, True), (2, 4, False), (4, 8, True)]
    """
    ends = sorted({operator.index(horizon) for horizon in horizons})
    if not ends or ends[0] < 1:
        raise ValueError(f"horizons must be at least one step each, got {list(horizons)}")
    branch = getattr(schedule, "branch", None)
    if branch is None:
        if len(ends) > 1:
            raise ValueError(
                f"{len(ends)} horizons need a schedule with a constant trunk, such as optim.WSD; "
                "with any other schedule train each horizon by itself"
            )
        return [Segment(0, ends[0], ends[0], True)]
    plan, at = [], 0
    for end in ends:
        start = branch(end)
        if start > at:
            plan.append(Segment(at, start, ends[-1], False))
        plan.append(Segment(start, end, end, True))
        at = start
    return plan


class _Run:
    """The state of a run: captured, restored, stepped."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: AveragedWeights | None,
        generators: Mapping[str, torch.Generator],
        rule: DivergenceRule,
    ) -> None:
        self.model, self.optimizer, self.average, self.generators = (
            model,
            optimizer,
            average,
            dict(generators),
        )
        self.rule, self.watches, self.skipped = rule, [rule.watch()], 0
        self.lost: dict[int, int] = {}
        self.trained = [weight for group in optimizer.param_groups for weight in group["params"]]
        every = {id(weight): weight for weight in (*model.parameters(), *self.trained)}
        self.weights = list(every.values())
        self.sharded = any(hasattr(weight, "to_local") for weight in self.weights)
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def capture(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that decides the next step, as copies."""
        optimizer, note = flatten_optimizer(self.optimizer)
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"optimizer/{name}": value for name, value in optimizer.items()}
        tensors |= {f"generator/{name}": value.get_state() for name, value in self.generators.items()}
        if self.average is not None:
            tensors |= {f"average/{name}": value for name, value in self.average.state_dict().items()}
        watches = [{"reference": watch.reference, "bad": watch.bad} for watch in self.watches]
        lost = {str(replica): step for replica, step in self.lost.items()}
        own = {"optimizer": note, "watches": watches, "skipped": self.skipped, "lost": lost}
        return {name: local(value.detach()).clone() for name, value in tensors.items()}, own

    def restore(self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
        """Go back to a captured state."""

        def part(kind: str) -> dict[str, Tensor]:
            return {
                name[len(kind) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{kind}/")
            }

        weights = part("model")
        if self.sharded:
            for name, value in self.model.state_dict().items():
                local(value).copy_(weights[name])
        else:
            self.model.load_state_dict(weights)
        unflatten_optimizer(self.optimizer, part("optimizer"), note["optimizer"])
        for name, state in part("generator").items():
            self.generators[name].set_state(state)
        if self.average is not None:
            self.average.load_state_dict(part("average"))
        self.watches = [Watch(self.rule, watch["reference"], watch["bad"]) for watch in note["watches"]]
        self.skipped = note["skipped"]
        self.lost = {int(replica): step for replica, step in note["lost"].items()}

    def clear_gradients(self) -> None:
        """Of every parameter, trained or not: what is left would add up and count in the norm."""
        for weight in self.weights:
            weight.grad = None

    def watch(self, losses: Sequence[float], step: int) -> None:
        """Look for replicas that are lost."""
        while len(self.watches) < len(losses):
            self.watches.append(self.rule.watch())
        for replica, loss in enumerate(losses):
            if replica not in self.lost and self.watches[replica].lost(loss):
                self.lost[replica] = step
                freeze = getattr(self.model, "freeze", None)
                if freeze is not None:
                    freeze(replica, step)


def _source(batches: Batches | Iterable[tuple[Tensor, Tensor]], plan: Sequence[Segment], skip: int) -> Any:
    """``step -> (inputs, targets)``."""
    at = getattr(batches, "batch", None)
    if at is not None:
        return at
    if sum(segment.branch for segment in plan) > 1:
        raise ValueError("several horizons read some steps twice: give batches with a method batch(step)")
    stream = iter(batches)  # type: ignore[arg-type]
    for _ in range(skip):
        next(stream, None)

    def following(step: int) -> tuple[Tensor, Tensor]:
        try:
            return next(stream)
        except StopIteration:
            end = plan[-1].end
            raise ValueError(
                f"the batches ended at step {step}, before the horizon of {end} steps; give more, or "
                "a shorter horizon"
            ) from None

    return following


def fit(
    model: nn.Module,
    batches: Batches | Iterable[tuple[Tensor, Tensor]],
    *,
    optimizer: torch.optim.Optimizer,
    horizons: int | Sequence[int],
    schedule: Callable[[int, int], float],
    objective: Objective | None = None,
    clip: float | None = 1.0,
    accumulate: int = 1,
    validate: Validate | None = None,
    average: AveragedWeights | None = None,
    dtype: torch.dtype | None = None,
    generators: Mapping[str, torch.Generator] | None = None,
    divergence: DivergenceRule | None = None,
    checkpointer: Checkpointer | None = None,
    meter: Meter | None = None,
    log_every: int = 10,
    on_horizon: Callable[[dict[str, Any]], None] | None = None,
    progress: Callable[..., None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainLog:
    """Train ``model`` in place to each horizon, and log it.

    Parameters
    ----------
    model : nn.Module or Stack
        Stays where it is and in its dtype; the batches are moved to it.
    batches : object with ``batch(step) -> (inputs, targets)``, or an iterable of pairs
        A function of the step can be resumed and branched; an iterable serves one horizon.
    optimizer : torch.optim.Optimizer
        Each group's ``lr`` is its peak; the schedule multiplies it.
    horizons : int or sequence of int
        Lengths in steps. More than one needs a schedule with ``branch`` (:class:`allometry.optim.WSD`).
    schedule : (step, total) -> multiplier
    objective : (model, inputs, targets) -> loss (), or (R,) for a stack
        Next-token cross-entropy in nats by default.
    clip : float, optional
        Largest global gradient norm (a replica's own, for a stack).
    accumulate : int
        Split each batch into so many parts along its batch dimension, weighted by their sizes.
    validate : model -> dict, optional
        Called at each horizon, in evaluation mode and without gradients; goes into the record, tensors and
        arrays as numbers and lists. With ``average`` the record also holds the averaged weights' values, as
        ``averaged_<name>``.
    dtype : torch.dtype, optional
        Autocast to this type (bfloat16); weights stay as they are.
    generators : dict of torch.Generator, optional
        Streams that the model or the objective draws from; saved and restored with the run. The global
        stream, which ``nn.Dropout`` draws from, is not.
    checkpointer : Checkpointer, optional
        Where to resume from and to write to. The finished run leaves its last state there as ``final``.
        Its horizons, schedule and optimizer settings are checked against the run's.

    Returns
    -------
    TrainLog

    Raises
    ------
    ValueError
        For horizons that the schedule or the batches cannot serve, or another run's folder.
    CheckpointError
        If the folder's checkpoints cannot be read.
    """
    from allometry.train.language import next_token_loss

    loss_of: Objective = next_token_loss if objective is None else objective
    if accumulate < 1 or log_every < 1:
        raise ValueError(f"accumulate and log_every must be at least 1, got {accumulate} and {log_every}")
    plan = segments(list(horizons) if isinstance(horizons, Iterable) else [horizons], schedule)
    meter = meter or Meter()
    log = TrainLog()
    run = _Run(model, optimizer, average, generators or {}, divergence or DivergenceRule())
    settings = _settings(plan, schedule, optimizer)
    device = next(iter(model.parameters())).device
    precision: AbstractContextManager[Any] = (
        nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype, cache_enabled=False)
    )
    total_steps, before = sum(s.end - s.start for s in plan), 0
    first, step = 0, 0
    trunk: tuple[dict[str, Tensor], dict[str, Any]] | None = None
    resumed = None
    crew = Crew(model)
    if checkpointer is not None and crew.size > 1:
        checkpointer = checkpointer.of_process(crew.rank, crew.size)
        resumed = _together(checkpointer, crew)
    elif checkpointer is not None:
        resumed = checkpointer.load("final") or checkpointer.load("current")
    if resumed is not None:
        tensors, note = resumed
        other = [name for name, value in settings.items() if note["settings"].get(name) != value]
        folder = checkpointer.directory if checkpointer is not None else None
        if other:
            raise ValueError(
                f"{folder} holds a run of other {' and '.join(other)}; give this run a folder of its own"
            )
        try:
            run.restore(tensors, note)
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{folder} holds a run of another model, optimizer or average ({reason}); give this run a "
                "folder of its own"
            ) from None
        first, step = note["segment"], note["step"]
        log = TrainLog(**note["log"], diverged=dict(run.lost))
        meter.steps, meter.seconds = note["meter"]["steps"], note["meter"]["seconds"]
        before = sum(s.end - s.start for s in plan[:first])
        if on_horizon is not None:  # told again, in case the listener died before it could write them down
            for told in log.horizons:
                on_horizon(told)
    source = _source(batches, plan, step if first < len(plan) else 0)  # a finished run reads nothing
    run.clear_gradients()
    model.train()

    def keep(segment: int, at: int, name: str = "current") -> None:
        if checkpointer is None:
            return
        tensors, note = run.capture()
        log.skipped = run.skipped
        saved = {key: value for key, value in vars(log).items() if key != "diverged"}
        note |= {"segment": segment, "step": at, "settings": settings, "meter": meter.state_dict()}
        checkpointer.save(name, tensors, note | {"log": saved})

    def stopped() -> TrainLog:
        log.status, log.diverged, log.skipped = "stopped", dict(run.lost), run.skipped
        log.meter = meter.totals()
        return log

    def advance(at: int, segment: Segment) -> None:
        """One update."""
        begin = time.perf_counter()
        inputs, targets = source(at)
        rate = schedule(at, segment.total)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
        inputs, targets = crew.share(inputs), crew.share(targets)
        inputs, targets = inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        total: Tensor | None = None
        axis = 1 if hasattr(model, "freeze") else 0  # a stack's batches carry the replica first
        parts = zip(inputs.chunk(accumulate, axis), targets.chunk(accumulate, axis), strict=True)
        for part_in, part_out in parts:
            with precision:
                losses = loss_of(model, part_in, part_out)
            if part_in.shape[axis] != inputs.shape[axis]:  # parts may differ in size by one
                losses = losses * (part_in.shape[axis] / inputs.shape[axis])
            losses.sum().backward()
            total = losses.detach() if total is None else total + losses.detach()
        assert total is not None
        norm = _clip(model, run.trained, clip)
        values, _ = crew.agree(total.flatten().tolist())
        norms = norm.flatten().tolist()
        finite = math.isfinite(sum(values) + sum(norms))
        if finite or hasattr(model, "freeze"):  # a stack keeps bad replicas from moving by itself
            optimizer.step()
            if average is not None:
                average.update(model)
        else:
            run.skipped += 1
        run.clear_gradients()
        if len(norms) == len(values):  # a gradient that is not finite counts like such a loss
            pairs = zip(values, norms, strict=True)
            run.watch([value if math.isfinite(norm) else math.nan for value, norm in pairs], at)
        else:
            run.watch(values, at)
        meter.add(seconds=time.perf_counter() - begin)
        if at % log_every == 0 or at + 1 == segment.end:
            log.steps.append(
                {
                    "step": at,
                    "tokens": (at + 1) * meter.tokens_per_step,
                    "loss": values if total.ndim else values[0],
                    "rate": rate,
                    "gradient_norm": norm.tolist(),
                    "horizon": segment.total if segment.branch else None,
                }
            )
        if progress is not None:
            progress(before + at + 1 - segment.start, total_steps, loss=sum(values) / len(values))

    for index in range(first, len(plan)):
        segment = plan[index]
        last = index == len(plan) - 1
        if index > first or resumed is None:
            step = segment.start
        if segment.branch and not last:
            if step == segment.start:
                trunk = run.capture()
                if checkpointer is not None:
                    checkpointer.save("trunk", trunk[0], trunk[1] | {"step": step})
            elif checkpointer is not None:  # resumed inside the branch
                trunk = _trunk(checkpointer, segment.start)
        while step < segment.end:
            advance(step, segment)
            step += 1
            if len(run.lost) >= len(run.watches):
                log.status, log.diverged, log.skipped = "diverged", dict(run.lost), run.skipped
                log.meter = meter.totals()
                return log
            if step < segment.end:
                due = checkpointer is not None and checkpointer.due()
                _, (due, stop) = crew.agree([], due, should_stop is not None and should_stop())
                if due or stop:
                    keep(index, step)
                if stop:
                    return stopped()
        before += segment.end - segment.start
        record: dict[str, Any] | None = None
        if segment.branch:
            record = {"horizon": segment.end, "tokens": segment.end * meter.tokens_per_step}
            record |= _validated(model, validate, average) | {"lost": sorted(run.lost)}
            log.horizons.append(record)
        if segment.branch and not last:
            assert trunk is not None
            run.restore(*trunk)
            trunk = None
        # the state is on disk before the record is told, so that what was told is never trained again
        if last:
            keep(len(plan), segment.end, "final")
        else:
            keep(index + 1, plan[index + 1].start)
        if record is not None and on_horizon is not None:
            on_horizon(record)
        if not last and crew.agree([], should_stop is not None and should_stop())[1][0]:
            return stopped()
    crew.wait()  # until every process has its last state on disk
    if checkpointer is not None:
        checkpointer.remove("current")
        checkpointer.remove("trunk")
    log.diverged, log.skipped, log.meter = dict(run.lost), run.skipped, meter.totals()
    return log


def _settings(
    plan: Sequence[Segment], schedule: Callable[[int, int], float], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """What makes it this run and no other, as JSON gives it back; kernels and present rates may differ."""
    ways = ("params", "lr", "foreach", "fused", "capturable", "differentiable")
    rates = [
        schedule(segment.start + (segment.end - 1 - segment.start) * eighth // 8, segment.total)
        for segment in plan
        if segment.end > segment.start
        for eighth in range(9)
    ]
    groups = [
        {name: value for name, value in group.items() if name not in ways} | {"members": len(group["params"])}
        for group in optimizer.param_groups
    ]
    told = {"horizons": [vars(segment) for segment in plan], "schedule": rates, "optimizer settings": groups}
    return json.loads(json.dumps(told, default=_numbers))


def _numbers(value: Any) -> Any:
    """Tensors and arrays for JSON."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(
        f"records hold numbers, text, lists and dicts of them, not a {type(value).__name__}: {value!r:.60}"
    )


def _trunk(checkpointer: Checkpointer, start: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    every = checkpointer.every_note("trunk")  # the one before is an earlier branch's, or a later one's here
    kept = next((found for found in every if found[1]["step"] == start), None)
    if kept is None:
        raise CheckpointError(
            f"the trunk's state at step {start} is not to be found in {checkpointer.directory}; delete that "
            "folder to train this run again"
        )
    return kept


def _together(checkpointer: Checkpointer, crew: Crew) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest state that every process has: a crash may have caught some before they wrote theirs."""
    kept: dict[tuple[int, ...], tuple[dict[str, Tensor], dict[str, Any]]] = {
        (found[1]["segment"], found[1]["step"]): found
        for name in ("current", "final")
        for found in reversed(checkpointer.every_note(name))
    }
    chosen = crew.common(kept)
    return None if chosen is None else kept[chosen]


def _clip(model: nn.Module, trained: Sequence[Tensor], clip: float | None) -> Tensor:
    own = getattr(model, "clip_grad_norm", None)
    if own is not None:
        return own(math.inf if clip is None else clip)
    norm = nn.utils.clip_grad_norm_(trained, math.inf if clip is None else clip)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # over all shards


@torch.no_grad()
def _validated(
    model: nn.Module, validate: Validate | None, average: AveragedWeights | None
) -> dict[str, Any]:
    if validate is None:
        return {}
    model.eval()
    try:
        values = dict(validate(model))
        if average is not None:
            with average.applied(model):
                values |= {f"averaged_{name}": value for name, value in validate(model).items()}
    finally:
        model.train()
    return json.loads(json.dumps(values, default=_numbers))  # what a resumed run reads back, from the start
