"""Falls of the learning rate pay off as a power of the area under the schedule since: two laws.

*Multi-power law.* Kairong Luo and others, 2025. arXiv:2503.12811 (equation 2):
``L = L0 + A S1^-alpha - B sum_k (eta_{k-1} - eta_k) (1 - (1 + C eta_k^-gamma S_k)^-beta)``, S_k the area
since k.

*Effective rates*, ours: the same with gamma = 0 and every rate replaced by ``u = peak (eta / peak)^kappa``.
What a step moves is not proportional to its rate under Adam, so both the ground covered (S1, S_k) and the
noise that a rate leaves (the falls) are counted in a power of it, one for all three. With kappa = 1 and gamma
= 0 both laws are the forgetting of noise in intrinsic time. As many parameters as the multi-power law.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from allometry.laws.schedule import Array, ResponseLaw, Shape
from allometry.laws.traces import Lags

__all__ = ["EffectiveRateLaw", "MultiPowerLaw"]


class _PowerResponse(ResponseLaw):
    """``1 - (1 + C x)^-beta`` with x the area since the fall, scaled by the rate fallen to where ``gamma``
    is."""

    scaled = False

    def shapes(self, peak: float, steps: int) -> tuple[Shape, ...]:
        delays = tuple(float(-np.log(peak * max(2.0, steps * part))) for part in (0.0005, 0.004, 0.03))
        far = float(-np.log(peak))
        shapes = (
            Shape("log C", far - float(np.log(100.0 * steps)), far + 3.0, delays),
            Shape(
                "log beta", float(np.log(0.02)), float(np.log(20.0)), (float(np.log(0.5)), float(np.log(1.5)))
            ),
        )
        return (*shapes, Shape("gamma", -1.0, 3.0, (0.0, 0.7))) if self.scaled else shapes

    def response(self, shape: Array, place: Lags) -> tuple[Array, Array]:
        beta = np.exp(shape[1])
        height = np.log(np.maximum(place.rate / self.peak_, 1e-6)) if self.scaled else np.zeros(1)
        gamma = shape[2] if self.scaled else 0.0
        reach = np.exp(shape[0] - gamma * height) * place.area
        left = np.log1p(reach)
        kept = np.exp(-beta * left)
        slope = beta * kept * reach / (1.0 + reach)  # by log C
        columns = [slope, beta * left * kept]
        if self.scaled:
            columns.append(-height * slope)
        return 1.0 - kept, np.stack(columns, axis=1)


class MultiPowerLaw(_PowerResponse):
    """``L = L0 + A S1^-alpha - B sum_k (fall of the rate at k) (1 - (1 + C eta_k^-gamma S_k)^-beta)``.

    Examples
    --------
    >>> rates = np.concatenate([np.full(300, 1e-3), np.full(300, 2e-4)])
    >>> law = MultiPowerLaw()
    >>> law.params_
    Traceback (most recent call last):
    ValueError: the multi-power law has not been fitted; call fit(table) first
    """

    name = "multi-power"
    scaled = True
    gain: ClassVar[str] = "B"

    def natural(self, theta: Array) -> dict[str, Array]:
        return {
            "L0": theta[..., 0], "A": np.exp(theta[..., 1]), "alpha": theta[..., 2], "B": np.exp(theta[...,
            3]), "C": np.exp(theta[..., 4] + theta[..., 6] * np.log(self.peak_)), "beta": np.exp(theta[...,
            5]), "gamma": theta[..., 6],
        }  # fmt: skip


class EffectiveRateLaw(_PowerResponse):
    """``L = L0 + A U1^-alpha - B sum_k (fall of u at k) (1 - (1 + C U_k)^-beta)``, areas of ``u ~
    eta^kappa``.

    Examples
    --------
    >>> EffectiveRateLaw().effective
    True
    """

    name = "effective-rate"
    effective = True
    gain: ClassVar[str] = "B"

    def natural(self, theta: Array) -> dict[str, Array]:
        return {
            "L0": theta[..., 0], "A": np.exp(theta[..., 1]), "alpha": theta[..., 2], "B": np.exp(theta[...,
            3]), "C": np.exp(theta[..., 4]), "beta": np.exp(theta[..., 5]), "kappa": theta[..., 6],
        }  # fmt: skip
