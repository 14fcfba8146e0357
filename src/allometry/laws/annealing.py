"""Scaling law with learning-rate annealing: each fall of the rate pays off with an exponential delay in
steps.

Howe Tissue, Venus Wang, Lu Wang, 2024. arXiv:2408.11029

``L(s) = L0 + A S1^-alpha - C S2`` (equation 1).  The delay is measured in steps: 1 / (1 - lam), a thousand
for long runs; short ones need it fitted, which is the default here.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from allometry.laws.schedule import Array, ResponseLaw, Shape
from allometry.laws.traces import Lags, schedule_areas

__all__ = ["AnnealingLaw"]


class AnnealingLaw(ResponseLaw):
    """``L = L0 + A S1^-alpha - C S2``: learned from one or two runs, it foretells the whole curve of others.

    Parameters
    ----------
    lam : "fit" or float
        Share of the momentum of annealing that a step keeps; the paper has 0.999.
    C : float, optional
        A gain borrowed from a model alike, where no run of yours lowers its rate (0.41 to 0.57 at lam 0.999
        for 25M to 400M parameters).
    warmup, ramp, delta, run_noise
        As in `ResponseLaw`. By default the warm-up counts as if at full rate, as in the paper.

    Examples
    --------
    >>> step = np.arange(2000)
    >>> rates = np.where(step < 1500, 1e-3, 1e-4)
    >>> first, second = schedule_areas(rates, 0.99)
    >>> log = {"step": step[50::10], "learning_rate": rates[50::10],
    ...        "loss": (2.5 + 0.5 * first**-0.5 - 0.4 * second)[50::10]}
    >>> law = AnnealingLaw(lam=0.99).fit(log, schedules={"run": rates}, resamples=0)
    >>> {name: round(value, 4) for name, value in law.params_.items()}
    {'L0': 2.5, 'A': 0.5, 'alpha': 0.5, 'C': 0.4, 'lam': 0.99}
    """

    name = "annealing"
    gain: ClassVar[str] = "C"

    def __init__(
        self,
        lam: float | str = "fit",
        *,
        C: float | None = None,
        warmup: int = 0,
        ramp: bool = False,
        delta: float = 1e-3,
        run_noise: float = 0.0,
    ) -> None:
        super().__init__(warmup=warmup, ramp=ramp, delta=delta, run_noise=run_noise)
        if lam != "fit" and not (isinstance(lam, int | float) and 0 <= lam < 1):
            raise ValueError(f"lam must be 'fit' or lie in [0, 1), not {lam!r}")
        if C is not None and not C > 0:
            raise ValueError(f"the gain C must be positive, not {C}")
        if C is not None and lam == "fit":
            raise ValueError(
                "a borrowed gain C belongs to the lam it was found with: give lam too, such as 0.999"
            )
        self.lam, self.C = lam, C

    def shapes(self, peak: float, steps: int) -> tuple[Shape, ...]:
        if self.lam != "fit":
            return ()
        starts = tuple(float(np.log(max(2.0, steps * part))) for part in (0.004, 0.012, 0.04, 0.12))
        return (Shape("log delay", float(np.log(1.01)), float(np.log(max(20.0, 2.0 * steps))), starts),)

    def _held(self) -> dict[str, float]:
        return {} if self.C is None else {"log B": float(np.log(self.C / (1.0 - float(self.lam))))}

    def _lags(self, rates: Array, steps: NDArray[np.intp], warmup: int) -> Lags:
        if self.lam == "fit":
            return super()._lags(rates, steps, warmup)
        return self._exact(rates[None], steps, warmup)

    def _exact(self, rates: Array, steps: NDArray[np.intp], warmup: int) -> Lags:
        """With a delay that is known the annealing area itself is the one entry of each step."""
        forward = np.cumsum(rates[0])
        second = schedule_areas(rates[0], float(self.lam), warmup)[1][steps] * (1.0 - float(self.lam))
        if not second.any():
            nothing = np.empty(0)
            return Lags(np.empty(0, dtype=np.intp), nothing, nothing, nothing, nothing, forward[steps])
        everywhere = np.arange(len(steps))
        return Lags(
            everywhere, second, np.zeros(len(steps)), np.zeros(len(steps)), rates[0][steps], forward[steps]
        )

    def response(self, shape: Array, place: Lags) -> tuple[Array, Array]:
        if not len(shape):
            if place.lag.any():  # lags of a schedule that is only asked for at its end
                return 1.0 - float(self.lam) ** place.lag, np.empty((len(place.lag), 0))
            return np.ones(len(place.weight)), np.empty((len(place.weight), 0))
        delay = np.exp(shape[0])
        lam = 1.0 - 1.0 / delay
        kept = lam**place.lag
        slope = -place.lag * kept / max(lam, 1e-300) / delay  # d lam / d log delay = 1 / delay
        return 1.0 - kept, slope[:, None]

    def natural(self, theta: Array) -> dict[str, Array]:
        lam: Any = 1.0 - np.exp(-theta[..., 4]) if self.lam == "fit" else np.full(theta.shape[:-1], self.lam)
        return {
            "L0": theta[..., 0], "A": np.exp(theta[..., 1]), "alpha": theta[..., 2],
            "C": np.exp(theta[..., 3]) * (1.0 - lam), "lam": lam,
        }  # fmt: skip

    def bound(self, total_steps: int, peak: float, *, warmup: int = 0) -> dict[str, float]:
        """The least loss that the law allows with rates between 0 and ``peak``, and the schedule that has it.

        Both areas are linear in the rates and the loss is convex in them, so the best schedule is ``peak``,
        then zero for the last n steps, where ``lam^n = alpha A S1^(-alpha-1) / C``. Real losses do not like a
        step to zero, and no run behind the law had one: a bound, not advice (for advice see `best`).

        Returns
        -------
        dict
            ``loss``, and ``steps`` at zero.
        """
        from scipy.optimize import brentq

        if total_steps <= warmup + 1 or not peak > 0:
            raise ValueError(
                f"a bound needs more steps than its warm-up and a peak above zero, got {total_steps}, {peak}"
            )
        told = {name: float(value) for name, value in self.natural(self._fitted()).items()}
        lost = 0.5 * peak * warmup if self.ramp else 0.0

        def gain(n: float) -> float:
            area = peak * (total_steps - n) - lost
            return told["C"] * told["lam"] ** n - told["alpha"] * told["A"] * area ** (-told["alpha"] - 1)

        longest = total_steps - warmup - 1.0
        n = 0.0 if gain(0.0) <= 0 else longest if gain(longest) >= 0 else float(brentq(gain, 0.0, longest))
        n = float(round(n))
        area = peak * (total_steps - n) - lost
        keep, lam = told["lam"] ** n, told["lam"]
        landed = peak * (1 - keep) / (1 - lam)  # S2 of one fall by peak, n steps ago
        loss = told["L0"] + told["A"] * area ** -told["alpha"] - told["C"] * landed
        return {"loss": loss, "steps": n}
