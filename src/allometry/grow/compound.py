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
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import nn

from allometry.measure.convolution_counts import ConvolutionCounts, convolution_counts

if TYPE_CHECKING:
    import pandas

__all__ = [
    "Choice", "Factors", "ScaledConfig", "choose_scaling", "compound_scale", "configuration_counts",
    "scaling_factors",
]  # fmt: skip

Rule = str | Mapping[str, float]
_LETTERS = {"d": "depth", "w": "width", "g": "group", "r": "resolution"}
_ACCURATE = ("d1_w1_g1_r1", "d1_w1_g1", "fast")


class Scalable(Protocol):
    """What can be scaled: `RegNetConfig`, `EfficientNetConfig`, `ResNetRSConfig`, or one's own."""

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


@dataclass(frozen=True)
class Choice:
    """What `choose_scaling` recommends.

    Attributes
    ----------
    best : ScaledConfig
    table : pandas.DataFrame
        One row a rule: factor asked for, factors of ``flops``, ``parameters``, ``activations``, ``seconds``
        (of one pass; NaN where nothing was timed), and ``slower``, the factor of time.
    scaled : dict of rule to ScaledConfig
    """

    best: ScaledConfig
    table: pandas.DataFrame
    scaled: dict[str, ScaledConfig]


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
    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"factor must be finite and above 0; got {factor!r}")
    weights = _weights(rule, alpha)
    total = weights["d"] + weights["w"] + weights["r"]
    if not total > 0:
        raise ValueError(f"rule {rule!r} gives no weight to depth (d), width (w) or resolution (r); name one")
    # resolution and width enter arithmetic by their squares
    shares = {"d": 1.0, "w": 0.5, "g": 0.5, "r": 0.5}
    return Factors(**{_LETTERS[k]: factor ** (share * weights[k] / total) for k, share in shares.items()})


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
    with torch.device("meta"):
        return convolution_counts(config.build(), torch.empty(1, *config.input_shape))


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
    return reach(config, scaling_factors(rule, factor, alpha=alpha), _name(rule), factor, base)


def reach(
    config: Scalable, factors: Factors, rule: str, factor: float, base: ConvolutionCounts | None = None
) -> ScaledConfig:
    """Scale a configuration by given factors, count what that gives, and warn where it is far off.

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
    reached = counts.flops / base.flops
    if abs(math.log(reached / factor)) > math.log(1.1):
        reason = "rounding"
        if getattr(config, "group_widths", None) is not None and factors.width != factors.group:
            reason = "group widths that do not grow with widths (give g the weight of w), or rounding"
        warnings.warn(
            f"rule {rule!r} was asked for {factor:g} times the multiply-adds and gives {reached:.3g} times, "
            f"because of {reason}", stacklevel=3,
        )  # fmt: skip
    return ScaledConfig(
        larger, rule, factor, factors, reached, counts.parameters / base.parameters,
        counts.activations / base.activations, counts,
    )  # fmt: skip


def _name(rule: Rule) -> str:
    return rule if isinstance(rule, str) else "_".join(f"{key}{value:g}" for key, value in rule.items())


def choose_scaling(
    config: Scalable, factor: float, *, budget: Literal["flops", "activations", "time"] = "flops",
    candidates: Sequence[Rule] = _ACCURATE, mode: Literal["infer", "train"] | None = None, batch: int = 8,
    device: str | torch.device = "cpu", repeats: int = 10, alpha: float = 0.8,
) -> Choice:  # fmt: skip
    """From a budget to a configuration: scale by each rule to the budget, and recommend one.

    Rules are brought to the same budget *after* rounding. At equal multiply-adds the one that costs least is
    recommended: least time where something is timed, else fewest activations. At equal activations or time
    it is the one with the most multiply-adds. Accuracy is not measured: among the default candidates the
    paper finds it alike, which does not go for scaling one dimension alone.

    Parameters
    ----------
    config : RegNetConfig, EfficientNetConfig, ResNetRSConfig, or whatever has ``scaled`` and ``build``
    factor : float
        How many times the base's budget.
    budget : "flops", "activations" or "time"
    candidates : sequence of rules
    mode : "infer" or "train", optional
        Times one pass of that kind; "infer" where the budget is time, otherwise nothing is timed.
    batch, device, repeats
        Of what is timed: images a pass, where, and rounds.
    alpha : float
        As in `scaling_factors`.

    Returns
    -------
    Choice

    Raises
    ------
    ValueError
        An unknown budget, no candidates, or a rule that does not reach the budget.

    Examples
    --------
    >>> from allometry.models import RegNetConfig
    >>> small = RegNetConfig((32, 64), (1, 2), (8, 8), resolution=32)
    >>> choose_scaling(small, 4, candidates=("d", "w1_g1")).best.rule
    'w1_g1'
    """
    if budget not in ("flops", "activations", "time"):
        raise ValueError(f"budget is 'flops', 'activations' or 'time'; got {budget!r}")
    if not candidates:
        raise ValueError("choose_scaling needs at least one candidate")
    mode = mode or ("infer" if budget == "time" else None)
    base = configuration_counts(config)

    def scale(rule: Rule, asked: float) -> ScaledConfig:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the table tells what was reached
            return compound_scale(config, rule, asked, alpha=alpha, base=base)

    def clock(some: Mapping[str, Any]) -> dict[str, float]:
        return _seconds({"": config, **some}, mode, batch, device, repeats)

    found: dict[str, ScaledConfig] = {}
    if budget == "time":
        found = _to_time(scale, clock, candidates, factor)
    else:
        for rule in candidates:
            found[_name(rule)] = _to_count(scale, rule, factor, budget)
    seconds = clock({name: one.config for name, one in found.items()}) if mode else {}
    table = _table(found, seconds)
    if budget != "flops":
        best = table["flops"].idxmax()
    else:
        best = table["seconds" if mode else "activations"].idxmin()
    return Choice(found[str(best)], table, found)


def _table(found: Mapping[str, ScaledConfig], seconds: Mapping[str, float]) -> pandas.DataFrame:
    import pandas

    rows = {
        name: (one.requested, one.flops, one.parameters, one.activations, seconds.get(name, math.nan))
        for name, one in found.items()
    }
    columns = ["requested", "flops", "parameters", "activations", "seconds"]
    table = pandas.DataFrame.from_dict(rows, orient="index", columns=columns)
    return table.assign(slower=table["seconds"] / seconds.get("", math.nan))


def _to_count(scale: Any, rule: Rule, factor: float, budget: str) -> ScaledConfig:
    """Search, in logarithms, the factor to ask for; rounding makes steps, and the nearest is kept."""
    goal, tried = math.log(factor), []
    asked = goal
    for _ in range(8):
        one = scale(rule, math.exp(asked))
        miss = math.log(getattr(one, budget)) - goal
        tried.append((abs(miss), asked, miss, one))
        if abs(miss) < 0.02:
            break
        slope = 1.0 if budget == "flops" else math.log(one.factors.activations) / asked if asked else 1.0
        asked -= miss / max(slope, 0.25)
    return min(tried, key=lambda entry: entry[0])[-1]


def _to_time(scale: Any, clock: Any, candidates: Sequence[Rule], factor: float) -> dict[str, ScaledConfig]:
    """Time each rule at three sizes and read off, in logarithms, which takes ``factor`` times as long."""
    import numpy as np

    asked = [factor**power for power in (0.5, 1.0, 1.5)]
    trial = {(_name(rule), size): scale(rule, size) for rule in candidates for size in asked}
    taken = clock({f"{name} {size!r}": one.config for (name, size), one in trial.items()})
    found = {}
    for rule in candidates:
        name = _name(rule)
        times = np.log([taken[""], *(taken[f"{name} {size!r}"] for size in asked)]) - math.log(taken[""])
        sizes = np.log([1.0, *(trial[name, size].flops for size in asked)])
        slope = float(sizes @ times / (sizes @ sizes))  # through the base itself
        if not slope > 0.1:
            raise ValueError(f"rule {name!r} takes no longer when it grows; time larger networks or batches")
        found[name] = scale(rule, math.exp(math.log(factor) / slope))
    return found


def _seconds(
    configs: Mapping[str, Any], mode: Any, batch: int, device: str | torch.device, repeats: int
) -> dict[str, float]:
    from allometry.measure.cost import model_call, runtime

    calls = {}
    for name, config in configs.items():
        model = config.build().to(device).to(memory_format=torch.channels_last)
        images = torch.zeros(batch, *config.input_shape, device=device)
        calls[name] = model_call(model, images.to(memory_format=torch.channels_last), mode)
    return {str(name): float(value) for name, value in runtime(calls, repeats=repeats)["seconds"].items()}
