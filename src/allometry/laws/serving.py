"""How to split compute between parameters and tokens when the model will also be used.

Sardana, Portes, Doubov and Frankle, 2023, arXiv:2401.00448 (equation 3): a model of N parameters that trains
on D tokens and serves T costs 6 N D + 2 N T FLOPs over its life.  Two problems have one family of answers:

- the least loss for a given total (`optimal_with_serving`), and
- the least total for a given loss (`least_total`), which is the one that the paper states.

The best loss falls strictly as the total grows, so the answer to either is the answer to the other.

Both are ordinary compute-optimal problems in disguise: 6 N D + 2 N T = 6 N (D + T/3), so with D' = D + T/3
*billed* tokens the constraint is 6 N D' again, and only the law changes, to L(N, D' - T/3).  That is
`Served`, a form around a form; everything else is `allocate`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from allometry.laws.allocate import Allocation, compute_optimal
from allometry.laws.fit import Fit
from allometry.laws.forms import Array, Form
from allometry.laws.published import PublishedLaw
from allometry.laws.uncertainty import Interval

__all__ = ["Served", "least_total", "optimal_with_serving"]


class Served(Form):
    """``inner`` as a law of *billed* tokens D + T/3, T being the tokens that the model will serve.

    Where the billed tokens do not even pay for serving, the loss is infinite.

    >>> from allometry.laws.forms import Chinchilla
    >>> Served(Chinchilla(), 3e9).names
    ('E', 'A', 'B', 'alpha', 'beta')
    """

    def __init__(self, inner: Form, tokens_served: float) -> None:
        self.inner = inner
        self.tokens_served = float(tokens_served)
        self.name = f"{inner.name}, serving {tokens_served:g} tokens"
        self.inputs = inner.inputs
        self.parameters = inner.parameters
        self.scales_target = inner.scales_target

    def shifts(self, features: Array) -> Array:
        return np.zeros(features.shape[1])  # the tokens served are counted in the caller's unit

    def units(self, shift: Array, target_shift: float) -> tuple[Array, Array]:
        return self.inner.units(shift, target_shift)

    def _trained(self, features: Array) -> tuple[Array, NDArray[np.bool_]]:
        """Log inputs ``(n, k)`` with the tokens left for training, and where any are left ``(n,)``."""
        column = self.inputs.index("tokens")
        left = np.exp(features[:, column]) - self.tokens_served / 3.0
        out = np.array(features)
        out[:, column] = np.log(np.where(left > 0, left, 1.0))
        return out, left > 0

    def log_prediction(self, theta: Array, features: Array) -> Array:
        trained, paid = self._trained(features)
        return np.where(paid, self.inner.log_prediction(theta, trained), np.inf)

    def jacobian(self, theta: Array, features: Array) -> tuple[Array, Array]:
        trained, paid = self._trained(features)
        value, slope = self.inner.jacobian(theta, trained)
        return np.where(paid, value, np.inf), np.where(paid, slope, 0.0)

    def starts(self, features: Array, log_y: Array, weights: Array) -> Array:
        return self.inner.starts(self._trained(features)[0], log_y, weights)


def optimal_with_serving(
    law: Fit | PublishedLaw, flops: float, tokens_served: float, *, level: float = 0.9, **fixed: float
) -> Allocation:
    """Parameters and tokens of least loss where ``flops`` pay for training and for serving: 6 N D + 2 N T.

    Parameters
    ----------
    law : Fit or PublishedLaw
        A law of parameters and tokens.
    flops : float
        Total compute, for training and serving together.
    tokens_served : float
        T, the tokens that the model will read and write over its life.
    level : float
        Level of the intervals, which a fit with draws has.
    **fixed : float
        Further inputs of the form, such as ``unique_tokens``.

    Returns
    -------
    Allocation
        Its ``flops`` are those of training, 6 N D.

    Raises
    ------
    ValueError
        The budget could not serve so many tokens with a single parameter, or a number makes no sense.

    Examples
    --------
    >>> from allometry.laws.published import published
    >>> law = published("chinchilla-replicated")
    >>> f"{law.optimal(1e21).params:.2e} {optimal_with_serving(law, 1e21, 1e11).params:.2e}"
    '2.78e+09 1.45e+09'
    """
    if not (math.isfinite(tokens_served) and tokens_served >= 0):
        raise ValueError(f"tokens_served must be a number of tokens, 0 or more, not {tokens_served}")
    if tokens_served == 0:
        return (
            law.optimal(flops, level=level, **fixed) if isinstance(law, Fit) else law.optimal(flops, **fixed)
        )
    if not flops / 2.0 > tokens_served:
        raise ValueError(
            f"{flops:.3g} FLOPs cannot serve {tokens_served:.3g} tokens, however small the model: "
            "give a larger budget or fewer tokens"
        )
    form = Served(law.form, tokens_served)
    if isinstance(law, PublishedLaw):
        return _less_served(
            compute_optimal(form, dict(law.params), flops, method="auto", **fixed), tokens_served
        )
    # The point by itself: the search goes further for one law than it does for each of many draws.
    point = replace(law, form=form, theta_draws=law.theta_draws[:0]).optimal(flops, **fixed)
    if not len(law.theta_draws):
        return _less_served(point, tokens_served)
    spread = replace(law, form=form).optimal(flops, level=level, **fixed)
    return _less_served(
        replace(
            point,
            params_interval=spread.params_interval,
            tokens_interval=spread.tokens_interval,
            loss_interval=spread.loss_interval,
        ),
        tokens_served,
    )


def _less_served(billed: Allocation, tokens_served: float) -> Allocation:
    """An allocation of billed tokens as one of training tokens."""
    served = tokens_served / 3.0
    tokens = billed.flops / (6.0 * billed.params) - served
    interval = billed.tokens_interval
    if interval is not None:
        interval = Interval(tokens, interval.low - served, interval.high - served, interval.level)
    return replace(billed, tokens=tokens, flops=6.0 * billed.params * tokens, tokens_interval=interval)


def least_total(law: Fit | PublishedLaw, loss: float, tokens_served: float, **fixed: float) -> Allocation:
    """Parameters and tokens that reach ``loss`` at the least 6 N D + 2 N T (Sardana et al., equation 3).

    Raises
    ------
    ValueError
        The law never reaches that loss.

    Examples
    --------
    A model as good as a compute-optimal one of 10^21 FLOPs, to serve 10^12 tokens, is smaller:

    >>> from allometry.laws.published import published
    >>> law = published("chinchilla-replicated")
    >>> usual = law.optimal(1e21)
    >>> served = least_total(law, usual.loss, 1e12)
    >>> f"{served.params / usual.params:.2f} of the size, {served.tokens / usual.tokens:.1f} times the tokens"
    '0.39 of the size, 4.2 times the tokens'
    """

    from scipy.optimize import brentq

    def best(log_flops: float) -> Allocation:
        if isinstance(law, Fit):
            single = replace(law, theta_draws=law.theta_draws[:0])
            return optimal_with_serving(single, math.exp(log_flops), tokens_served, **fixed)
        return optimal_with_serving(law, math.exp(log_flops), tokens_served, **fixed)

    low, high = math.log(max(2.0 * tokens_served, 6.0)) + 1e-6, 110.0
    if not best(high).loss < loss:
        raise ValueError(
            f"the {law.form.name} law never reaches a loss of {loss}: its lowest is {best(high).loss:.6g}"
        )
    return best(brentq(lambda log_flops: math.log(best(log_flops).loss / loss), low, high, xtol=1e-12))
