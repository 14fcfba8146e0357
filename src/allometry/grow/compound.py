"""How to spend a larger budget on depth, width and resolution: compound rules, the fast one among them.

Dollár, Singh and Girshick, "Fast and Accurate Model Scaling", 2021. arXiv:2103.06877
Tan and Le, "EfficientNet", 2019. arXiv:1905.11946 (compound scaling itself)

* Arithmetic grows as depth · width² · resolution²; what layers write grows as depth · width · resolution².
  So width is what makes a network larger and least slows it down where memory is the limit.
* The fast rule gives width eight tenths of the growth and depth and resolution one tenth each; activations
  then grow as s^0.6 (uniform compounding: s^0.83), and group widths grow as widths do.
* What is reached is counted after rounding, by building the network on the meta device: a rule that asks for
  four times may give 3.8, and rules should be compared at what they give.
"""

from __future__ import annotations

import math
import numbers
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from allometry.measure.convolution_counts import ConvolutionCounts, convolution_counts

__all__ = [
    "Factors", "ScaledConfig", "compound_scale", "configuration_counts",
    "scaling_factors",
]  # fmt: skip

Rule = str | Mapping[str, float]
_LETTERS = {"d": "depth", "w": "width", "g": "group", "r": "resolution"}
TENTH = math.log(1.1)


class Scalable(Protocol):
    """What can be scaled: `RegNetConfig`, `EfficientNetConfig`, `ResNetRSConfig`, or one's own.

    A family that does not take images has ``example(batch)`` instead of ``input_shape``: what its networks'
    forward pass is given, as `convolution_counts` takes it.
    """

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Of one image: channels, height, width."""
        ...

    def scaled(self, *, depth: float, width: float, group: float, resolution: float) -> Any:
        """Multiplied, and rounded to what can be built."""
        ...

    def build(self) -> nn.Module:
        """The network."""
        ...


@dataclass(frozen=True)
class Factors:
    """What each dimension is multiplied by.

    Attributes
    ----------
    depth, width, group, resolution : float
        Of blocks, channels, channels a group, and pixels a side.
    """

    depth: float
    width: float
    group: float
    resolution: float

    @property
    def flops(self) -> float:
        """Factor of the arithmetic before rounding, where groups grow as widths do."""
        return self.depth * self.width**2 * self.resolution**2

    @property
    def parameters(self) -> float:
        """Factor of the parameters before rounding."""
        return self.depth * self.width**2

    @property
    def activations(self) -> float:
        """Factor of what layers write, before rounding."""
        return self.depth * self.width * self.resolution**2


@dataclass(frozen=True)
class ScaledConfig:
    """A scaled configuration, and what came of what was asked for.

    Attributes
    ----------
    config
        Of the base's kind.
    rule : str
    requested : float
        Factor of arithmetic that was asked for.
    factors : Factors
        Before rounding.
    flops, parameters, activations : float
        Factors that were reached, after rounding.
    counts : ConvolutionCounts
        Of one image.
    """

    config: Any
    rule: str
    requested: float
    factors: Factors
    flops: float
    parameters: float
    activations: float
    counts: ConvolutionCounts


def scaling_factors(rule: Rule, factor: float, *, alpha: float = 0.8) -> Factors:
    """Factors of depth, width, group width and resolution that multiply arithmetic by ``factor``.

    Parameters
    ----------
    rule : str or mapping
        Letters share the growth alike: ``"d"``, ``"w"``, ``"r"``, ``"dw"``, ``"dwr"``…, with ``"g"`` for
        group widths, which take no share of their own. Weights stand behind letters, ``"d1_w8_g8_r1"``, or in
        a mapping, ``{"d": 1, "w": 8, "g": 8, "r": 1}``. ``"fast"`` is the paper's rule for an ``alpha``.
    factor : float
        Of multiply-adds; below 1 scales down.
    alpha : float
        Share of the width in ``"fast"``; the rest is halved between depth and resolution.

    Returns
    -------
    Factors

    Raises
    ------
    ValueError
        A factor that is not positive, a rule that cannot be read, or one that scales groups alone.

    Examples
    --------
    >>> fast = scaling_factors("fast", 16)
    >>> round(fast.width, 3), round(math.log(fast.activations, 16), 3)
    (3.031, 0.6)
    """
    check_factor(factor)
    weights = _weights(rule, alpha)
    total = weights["d"] + weights["w"] + weights["r"]
    if not total > 0:
        raise ValueError(f"rule {rule!r} gives no weight to depth (d), width (w) or resolution (r); name one")
    # resolution and width enter arithmetic by their squares
    shares = {"d": 1.0, "w": 0.5, "g": 0.5, "r": 0.5}
    return Factors(**{_LETTERS[k]: factor ** (share * weights[k] / total) for k, share in shares.items()})


def check_factor(factor: float) -> None:
    """Refuse what is no factor of growth."""
    if not (isinstance(factor, numbers.Real) and math.isfinite(factor) and factor > 0):
        raise ValueError(f"factor must be finite and above 0; got {factor!r}")


def _weights(rule: Rule, alpha: float) -> dict[str, float]:
    if isinstance(rule, Mapping):
        found = {str(key): float(value) for key, value in rule.items()}
    elif rule == "fast":
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is a share, from 0 to 1; got {alpha!r}")
        found = {"d": (1 - alpha) / 2, "w": alpha, "g": alpha, "r": (1 - alpha) / 2}
    elif re.fullmatch("[dwgr]+", rule):
        found = dict.fromkeys(rule, 1.0)
    else:
        parts = [re.fullmatch(r"([dwgr])(\d+(?:\.\d+)?)", part) for part in rule.split("_")]
        if not all(parts):
            raise ValueError(
                f"a rule is 'fast', letters such as 'dwr', or weights such as 'd1_w8_g8_r1'; got {rule!r}"
            )
        found = {part[1]: float(part[2]) for part in parts if part is not None}
    if set(found) - set(_LETTERS) or not all(math.isfinite(v) and v >= 0 for v in found.values()):
        raise ValueError(f"weights of d, w, g and r must be finite and at least 0; got {found}")
    return {**dict.fromkeys(_LETTERS, 0.0), **found}


def configuration_counts(config: Scalable) -> ConvolutionCounts:
    """Multiply-adds, parameters and activations of one image, without memory for the network.

    Examples
    --------
    >>> from allometry.models import regnet_config
    >>> configuration_counts(regnet_config("Y-200MF")).flops
    199519076
    """
    check_scalable(config)
    with torch.device("meta"):
        return convolution_counts(config.build(), example_inputs(config, 1))


def check_scalable(config: Any) -> None:
    """Refuse what is no configuration that can be scaled and built."""
    shaped = hasattr(config, "input_shape") or hasattr(config, "example")
    if not (
        shaped and callable(getattr(config, "scaled", None)) and callable(getattr(config, "build", None))
    ):
        raise TypeError(
            "a configuration has scaled(depth=, width=, group=, resolution=), build() and input_shape or "
            f"example(batch); {type(config).__name__} has not"
        )


def example_inputs(config: Any, batch: int) -> Any:
    """What the configuration's network is given."""
    if hasattr(config, "example"):
        return config.example(batch)
    return torch.zeros(batch, *config.input_shape)


def compound_scale(
    config: Scalable, rule: Rule = "fast", factor: float = 2.0, *, alpha: float = 0.8,
    base: ConvolutionCounts | None = None,
) -> ScaledConfig:  # fmt: skip
    """Scale a configuration by a rule, and count what that gives.

    Parameters
    ----------
    config : RegNetConfig, EfficientNetConfig, ResNetRSConfig, or whatever has ``scaled`` and ``build``
    rule, factor, alpha
        As in `scaling_factors`.
    base : ConvolutionCounts, optional
        Of ``config``, where they are known already.

    Returns
    -------
    ScaledConfig

    Raises
    ------
    ValueError
        As in `scaling_factors`.

    Warns
    -----
    UserWarning
        What is reached is more than a tenth off what was asked for.

    Examples
    --------
    >>> from allometry.models import regnet_config
    >>> larger = compound_scale(regnet_config("Y-200MF"), "fast", 4)
    >>> larger.config.depths, round(larger.flops, 2), round(larger.activations, 2)
    ((1, 1, 5, 8), 3.9, 1.89)
    """
    check_scalable(config)
    found = reach(config, scaling_factors(rule, factor, alpha=alpha), rule_name(rule), factor, base)
    warn_of_a_miss(config, found)
    return found


def reach(
    config: Scalable, factors: Factors, rule: str, factor: float, base: ConvolutionCounts | None = None
) -> ScaledConfig:
    """Scale a configuration by given factors, and count what that gives.

    Parameters
    ----------
    config
        As in `compound_scale`.
    factors : Factors
    rule : str
        A name for them.
    factor : float
        Of multiply-adds that was asked for.
    base : ConvolutionCounts, optional
        Of ``config``.
    """
    base = base or configuration_counts(config)
    larger = config.scaled(
        depth=factors.depth, width=factors.width, group=factors.group, resolution=factors.resolution
    )
    counts = configuration_counts(larger)
    return ScaledConfig(
        larger, rule, factor, factors, counts.flops / base.flops, counts.parameters / base.parameters,
        counts.activations / base.activations, counts,
    )  # fmt: skip


def warn_of_a_miss(config: Scalable, found: ScaledConfig) -> None:
    """Say, for whoever called the caller, that more than a tenth is missing or too much."""
    if abs(math.log(found.flops / found.requested)) <= TENTH:
        return
    reason, factors = "rounding", found.factors
    if getattr(config, "group_widths", None) is not None and factors.width != factors.group:
        reason = "group widths that do not grow with widths (give g the weight of w), or rounding"
    warnings.warn(
        f"rule {found.rule!r} was asked for {found.requested:g} times the multiply-adds and gives "
        f"{found.flops:.3g} times, because of {reason}", stacklevel=3,
    )  # fmt: skip


def nearest(
    scale: Callable[[float], ScaledConfig], reached: Callable[[ScaledConfig], float], factor: float
) -> ScaledConfig:
    """The configuration that comes nearest to a factor after rounding.

    Parameters
    ----------
    scale : factor to ask for -> ScaledConfig
        What is reached grows with what is asked for, in steps.
    reached : ScaledConfig -> factor
    factor : float
    """
    goal = asked = math.log(factor)
    low, high, best = -math.inf, math.inf, None
    for _ in range(14):
        try:
            one = scale(math.exp(asked))
        except ValueError:  # too small to be built
            if best is None:
                raise
            miss = -math.inf
        else:
            miss = math.log(reached(one)) - goal
            if best is None or abs(miss) < best[0]:
                best = (abs(miss), one)
        if abs(miss) < 0.02:
            break
        low, high = (asked, high) if miss < 0 else (low, asked)
        if high - low < 1e-3:
            break
        # a bracket is halved, since steps mislead slopes; until there is one, the miss is asked for as well
        bracketed = math.isfinite(high - low)
        asked = (low + high) / 2 if bracketed else asked - math.copysign(max(abs(miss), 0.02), miss)
    assert best is not None
    return best[1]


def rule_name(rule: Rule) -> str:
    """A rule as it is written."""
    return rule if isinstance(rule, str) else "_".join(f"{key}{value:g}" for key, value in rule.items())
