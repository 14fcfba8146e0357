"""The gradient's noise scale: up to which batch more samples still buy shorter training.

McCandlish, Kaplan, Amodei and the OpenAI Dota team, "An Empirical Model of Large-Batch Training", 2018.
arXiv:1812.06162.  With gradients of samples of mean ``G`` and covariance ``Σ``, the squared length of a
batch's gradient is ``|G|² + tr Σ / B`` on average (appendix A.1), so two batch sizes tell both terms, without
bias, and ``B_simple = tr Σ / |G|²`` (equation 2.9).

* The ratio is one of means over steps, never a mean of ratios; its error is by the jackknife over steps.
* Where the noise is so large that the interval of ``|G|²`` reaches zero, the scale has no upper end, and
  says so.
* `GradientNoiseScale` listens to a loop that adds up gradients of micro-batches, whatever the loop is;
  `gradient_noise_scale` measures a model at rest.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from allometry.measure.derivatives import gradients_of_samples
from allometry.measure.objective import Objective, batches_of, samples_in

__all__ = ["GradientNoiseScale", "NoiseScale", "gradient_noise_scale"]


@dataclass(frozen=True)
class NoiseScale:
    """A noise scale with its parts.

    Attributes
    ----------
    value : float
        ``B_simple``, in samples; infinite or negative where the gradient is not seen through its noise.
    standard_error : float
    low, high : float
        95 % interval, by Fieller's method: the ratios that the two means do not exclude, from 0 up. ``high``
        is infinite where ``|G|²`` may be zero.
    trace : float
        ``tr Σ``, of single samples.
    squared_gradient : float
        ``|G|²``.
    steps : int
    """

    value: float
    standard_error: float
    low: float
    high: float
    trace: float
    squared_gradient: float
    steps: int

    def __str__(self) -> str:
        return f"noise scale {self.value:.3g} [{self.low:.3g}, {self.high:.3g}] samples, {self.steps} steps"


class GradientNoiseScale:
    """Collects squared lengths of small and large batches' gradients, step by step.

    Parameters
    ----------
    parameters : iterable of Parameter, or nn.Module
        Whose gradients are looked at by `micro` and `step`; not needed for `add`.
    micro_batch : int
        Samples in a micro-batch.
    window : int, optional
        Only the last so many steps count; all by default.

    Raises
    ------
    ValueError
        A micro-batch or a window that is not positive.

    Examples
    --------
    In a loop that adds up gradients. Where it divides each loss by the number of micro-batches, or scales it,
    ``trace`` and ``squared_gradient`` are smaller or larger by the square of that, and the scale is the same:

    >>> weight = nn.Parameter(torch.zeros(1))
    >>> scale = GradientNoiseScale([weight], micro_batch=1)
    >>> for step in range(2):
    ...     weight.grad = None
    ...     for sample in (1.0, 3.0):
    ...         (weight * sample).sum().backward()
    ...         scale.micro()
    ...     scale.step()
    >>> found = scale.estimate()
    >>> found.trace, found.squared_gradient  # of 1 and 3: variance 2 about the mean, 4 - 2 / 2
    (2.0, 3.0)
    """

    def __init__(
        self, parameters: nn.Module | Iterable[Tensor], micro_batch: int, *, window: int | None = None
    ) -> None:
        for name, value in (("micro_batch", micro_batch), ("window", window)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        given = parameters.parameters() if isinstance(parameters, nn.Module) else parameters
        self.parameters, self.micro_batch = [one for one in given if one.requires_grad], int(micro_batch)
        self._before: list[Tensor] | None = None
        self._lengths: list[Tensor] = []
        self._steps: deque[tuple[float, float, float, float]] = deque(maxlen=window)

    def add(self, small: float, large: float, *, batch: int, micro_batch: int | None = None) -> None:
        """Tell of one step: mean squared lengths of gradients of small batches and of the large one.

        Parameters
        ----------
        small, large : float
        batch : int
            Samples of the large batch.
        micro_batch : int, optional
            Of the small ones, where it is not the one named at first.
        """
        few = micro_batch or self.micro_batch
        if not 0 < few < batch:
            raise ValueError(f"the large batch must be larger than the small one of {few}, not {batch}")
        if not (small >= 0 and large >= 0 and math.isfinite(small + large)):
            raise ValueError(f"squared lengths must be finite and not negative, got {small} and {large}")
        self._steps.append((float(small), float(large), float(few), float(batch)))

    @torch.no_grad()
    def micro(self) -> None:
        """After each micro-batch's backward pass: gradients are added up in ``.grad``."""
        now = [torch.zeros_like(one) if one.grad is None else one.grad.detach().clone()
               for one in self.parameters]  # fmt: skip
        grown = now if self._before is None else torch._foreach_sub(now, self._before)
        self._lengths.append(_squared(list(grown)))
        self._before = now

    @torch.no_grad()
    def step(self) -> None:
        """After the last micro-batch, before gradients are clipped, used or cleared."""
        count = len(self._lengths)
        if count < 2 or self._before is None:
            raise ValueError(
                f"call micro() after each of two or more micro-batches before step(), not {count}"
            )
        # Of sums here; of means, where the loop divides, all lengths are smaller by one factor, which leaves
        # the scale as it is.
        small, large = float(torch.stack(self._lengths).mean()), float(_squared(self._before))
        self._before, self._lengths = None, []
        self.add(small, large / count**2, batch=count * self.micro_batch)

    def reset(self) -> None:
        """Forget what was collected."""
        self._steps.clear()
        self._before, self._lengths = None, []

    def estimate(self) -> NoiseScale:
        """The noise scale of what was collected.

        Raises
        ------
        ValueError
            Nothing was collected.
        """
        if not self._steps:
            raise ValueError("no step has been told of yet")
        small, large, few, batch = np.array(self._steps).T
        traces = (small - large) / (1.0 / few - 1.0 / batch)
        squares = (batch * large - few * small) / (batch - few)
        return _ratio(traces, squares)

    def state_dict(self) -> dict[str, Any]:
        """What was collected, as JSON could hold it."""
        return {"steps": [list(one) for one in self._steps]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.reset()
        self._steps.extend((small, large, few, batch) for small, large, few, batch in state["steps"])


def gradient_noise_scale(
    model: nn.Module, loss_fn: Any, data: Any, *, chunk: int = 256, **options: Any
) -> NoiseScale:
    """The noise scale of a model at rest, from the gradients of single samples.

    Parameters
    ----------
    model : nn.Module
    loss_fn, **options
        As in `allometry.measure.per_example_gradients`.
    data : a batch, or an iterable of batches
        Each batch counts as a step: for an interval give several.
    chunk : int
        Samples at a time.

    Returns
    -------
    NoiseScale

    Raises
    ------
    ValueError
        A batch of one sample, no batches, or as `per_example_gradients`.

    Examples
    --------
    >>> model, x = nn.Linear(1, 1, bias=False), torch.tensor([[1.0], [3.0]])
    >>> found = gradient_noise_scale(model, lambda y, t: (y * t).mean(), (torch.ones(2, 1), x))
    >>> round(found.trace, 4), round(found.squared_gradient, 4)
    (2.0, 3.0)
    """
    one = Objective(model, loss_fn, **options)
    told = GradientNoiseScale([], micro_batch=1)
    for batch in batches_of(data):
        size = samples_in(batch)
        if not told._steps:
            one.check(one.cast(batch))
        lengths, total = 0.0, torch.zeros(one.dim, dtype=torch.float64, device=one.device)
        for part in gradients_of_samples(one, batch, chunk):
            rows = one.join(part).double()
            lengths += float(rows.square().sum())
            total += rows.sum(0)
        told.add(lengths / size, float((total / size).square().sum()), batch=size)
    return told.estimate()


def _squared(tensors: list[Tensor]) -> Tensor:
    return torch.stack([one.square() for one in torch._foreach_norm(tensors)]).sum().double()


def _ratio(traces: np.ndarray[Any, Any], squares: np.ndarray[Any, Any]) -> NoiseScale:
    """The ratio of two means over the same steps, its jackknife error and Fieller's interval."""
    from scipy import stats

    from allometry.laws import fieller

    n = len(traces)
    above, below = float(traces.mean()), float(squares.mean())
    value = above / below if below != 0 else math.inf
    if n < 2:
        return NoiseScale(value, math.nan, 0.0, math.inf, above, below, n)
    rest = n * below - squares
    left = np.divide(n * above - traces, rest, out=np.full(n, np.inf), where=rest != 0)
    error = math.inf
    if np.isfinite(left).all():
        error = math.sqrt((n - 1) / n * float(np.square(left - left.mean()).sum()))
    t = float(stats.t.ppf(0.975, n - 1))
    pieces = fieller(above, -below, np.cov(traces, -squares) / n, t).pieces()
    low, high = pieces[-1] if pieces and pieces[-1][1] > 0 else (0.0, math.inf)  # negative scales are none
    return NoiseScale(value, error, max(low, 0.0), high, above, below, n)
