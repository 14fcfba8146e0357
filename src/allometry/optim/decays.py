"""More schedules as scalar functions of (step, total), and any scheduler as an array of rates.

Exponential and one-minus-root decays: Hägele and others, 2024, arXiv:2405.18392; Hu and others, 2024,
arXiv:2404.06395.  Re-warming: Ibrahim and others, 2024, arXiv:2403.08763.  Conventions are those of
`allometry.optim.schedules`.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from allometry.optim.schedules import decay_start, wsd

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["rewarmed", "schedule_rates", "wsd_decay"]

_LEAST = 1e-3  # where an exponential that should end at zero ends


def wsd_decay(
    step: int,
    total: int,
    *,
    warmup: int = 0,
    decay: float = 0.2,
    floor: float = 0.0,
    shape: Literal["linear", "sqrt", "cosine", "exponential"] = "exponential",
) -> float:
    """Warm-up, stable, decay over the last share ``decay``; the shapes of `wsd` and an exponential.

    An exponential falls by equal factors to ``floor``, or to a thousandth where the floor is lower.

    >>> [round(wsd_decay(step, 4, decay=0.5, floor=0.01), 3) for step in range(4)]
    [1.0, 1.0, 1.0, 0.1]
    """
    if shape != "exponential":
        return wsd(step, total, warmup=warmup, decay=decay, floor=floor, shape=shape)
    start = decay_start(total, decay)
    way = min(max((step - start) / max(1, total - start), 0.0), 1.0)
    return wsd(step, total, warmup=warmup, decay=0.0) * max(floor, _LEAST) ** way


def rewarmed(
    step: int,
    total: int,
    *,
    at: float = 0.5,
    warmup: int = 0,
    again: int | None = None,
    floor: float = 0.1,
) -> float:
    """A cosine to ``floor`` over the share ``at`` of the run, then a second rise to 1 and a second cosine.

    Parameters
    ----------
    again : int, optional
        Steps of the second rise; as many as the first (at least one) by default.

    >>> [round(rewarmed(step, 8, at=0.5, again=2), 2) for step in (0, 3, 4, 5, 6)]
    [1.0, 0.23, 0.55, 1.0, 1.0]
    """
    if not 0.0 < at < 1.0:
        raise ValueError(f"at is a share of the run between 0 and 1, got {at}")
    turn = round(at * total)
    rise = max(warmup, 1) if again is None else again
    if step < turn:
        return _cosine(step, turn, warmup, floor)
    if step < turn + rise:
        return floor + (1.0 - floor) * (step - turn + 1) / rise
    return floor + (1.0 - floor) * _left((step - turn - rise) / max(1, total - turn - rise))


def _cosine(step: int, total: int, warmup: int, floor: float) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return floor + (1.0 - floor) * _left((step - warmup) / max(1, total - warmup))


def _left(way: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * min(max(way, 0.0), 1.0)))


def schedule_rates(source: Any, steps: int, *, peak: float = 1.0, group: int = 0) -> NDArray[np.float64]:
    """Learning rates ``(steps,)`` of any schedule, without training; what `allometry.laws` reads.

    Parameters
    ----------
    source : Schedule, torch scheduler, or function from an optimizer to a scheduler
        A function of (step, total) gives multipliers of ``peak``. A scheduler is copied, so that yours stays
        where it is; it is read from the step at which it stands. Of ``transformers``:
        ``lambda optimizer: get_scheduler("cosine", optimizer, 100, 1000)``.
    steps : int
    peak : float
        The optimizer's rate, where there is none yet.
    group : int
        Which parameter group's rate.

    Raises
    ------
    ValueError
        There are no steps, or the scheduler needs losses (ReduceLROnPlateau): its rates are no schedule.

    Examples
    --------
    >>> from allometry.optim import cosine
    >>> schedule_rates(cosine, 4, peak=2.0).round(3).tolist()
    [2.0, 1.707, 1.0, 0.293]
    """
    import numpy as np

    if steps < 1:
        raise ValueError(f"a schedule has at least one step, not {steps}")
    if hasattr(source, "step") and hasattr(source, "optimizer"):
        return np.array(_dry(_copied(source), steps, group))
    if _takes_two(source):
        return peak * np.array([float(source(step, steps)) for step in range(steps)])
    import torch

    weight = torch.nn.Parameter(torch.zeros(()))
    return np.array(_dry(source(torch.optim.SGD([weight], lr=peak)), steps, group))


def _takes_two(source: Callable[..., Any]) -> bool:
    import inspect

    if not callable(source):
        raise ValueError(
            "a schedule is a function of (step, total), a torch scheduler, or a function from an optimizer "
            f"to one; got {type(source).__name__}"
        )
    found = inspect.signature(source).parameters.values()
    plain = [one for one in found if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return sum(one.default is one.empty for one in plain) == 2


def _copied(scheduler: Any) -> Any:
    """The scheduler over an optimizer of its own, whose weights are not copied."""
    import torch

    own = copy.copy(scheduler)
    kept = copy.copy(scheduler.optimizer)
    weight = torch.nn.Parameter(torch.zeros(()))
    kept.param_groups = [
        {**{k: copy.copy(v) for k, v in one.items() if k != "params"}, "params": [weight]}
        for one in scheduler.optimizer.param_groups
    ]
    own.__dict__ = {name: _deep(value) for name, value in scheduler.__dict__.items()}
    own.optimizer = kept
    for member in getattr(own, "_schedulers", ()):
        member.optimizer = kept
    return own


def _deep(value: Any) -> Any:
    if isinstance(value, list) and value and hasattr(value[0], "optimizer"):  # SequentialLR, ChainedScheduler
        copies = [copy.copy(one) for one in value]
        for one, of in zip(copies, value, strict=True):
            one.__dict__ = dict(of.__dict__)
        return copies
    return copy.copy(value) if isinstance(value, list | dict) else value


def _dry(scheduler: Any, steps: int, group: int) -> Sequence[float]:
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    if isinstance(scheduler, ReduceLROnPlateau):
        raise ValueError("ReduceLROnPlateau decides by losses: its rates are known only once the run is made")
    groups = scheduler.optimizer.param_groups
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer has not stepped is the point
        for step in range(steps):
            found.append(float(groups[group]["lr"]))
            if step + 1 < steps:
                scheduler.step()
    return found
