"""From a budget to a configuration: rules of scaling brought to it, and the one that costs least.

Dollár, Singh and Girshick, "Fast and Accurate Model Scaling", 2021. arXiv:2103.06877, sections 4 and 5: at
equal arithmetic compound rules are alike in accuracy and differ in time.
"""

from __future__ import annotations

import functools
import math
import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from allometry.grow.compound import (
    TENTH,
    Rule,
    Scalable,
    ScaledConfig,
    check_factor,
    check_scalable,
    configuration_counts,
    example_inputs,
    nearest,
    reach,
    rule_name,
    scaling_factors,
)

if TYPE_CHECKING:
    import pandas

__all__ = ["Choice", "choose_scaling"]

_ACCURATE = ("d1_w1_g1_r1", "d1_w1_g1", "fast")


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


def choose_scaling(
    config: Scalable, factor: float, *, budget: Literal["flops", "activations", "time"] = "flops",
    candidates: Sequence[Rule] = _ACCURATE, mode: Literal["infer", "train"] | None = None, batch: int = 8,
    device: str | torch.device = "cpu", repeats: int = 10, alpha: float = 0.8,
) -> Choice:  # fmt: skip
    """From a budget to a configuration: scale by each rule to the budget, and recommend one.

    Rules are brought to the same budget *after* rounding. At equal multiply-adds the one that costs least is
    recommended: least time a multiply-add where something is timed, else fewest activations. At equal
    activations or time it is the one with the most multiply-adds. A rule that rounding leaves more than a
    tenth off is in the table and is not recommended. Accuracy is not measured: among the default candidates
    the paper finds it alike, which does not go for scaling one dimension alone.

    Parameters
    ----------
    config : RegNetConfig, EfficientNetConfig, ResNetRSConfig, or whatever has ``scaled`` and ``build``
    factor : float
        How many times the base's budget.
    budget : "flops", "activations" or "time"
    candidates : sequence of rules, or one rule
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
        An unknown budget, a factor that is not positive, no candidates, an empty batch, or a rule that takes
        no longer when it grows.
    TypeError
        What is no configuration.

    Warns
    -----
    UserWarning
        Rounding leaves every rule more than a tenth off the budget: the nearest is recommended.

    Examples
    --------
    >>> from allometry.models import RegNetConfig
    >>> small = RegNetConfig((32, 64), (1, 2), (8, 8), resolution=32)
    >>> choose_scaling(small, 4, candidates=("d", "w1_g1")).best.rule
    'w1_g1'
    """
    if budget not in ("flops", "activations", "time"):
        raise ValueError(f"budget is 'flops', 'activations' or 'time'; got {budget!r}")
    check_factor(factor)
    check_scalable(config)
    candidates = (candidates,) if isinstance(candidates, str | Mapping) else candidates
    if not candidates or batch < 1:
        raise ValueError(f"choose_scaling needs a candidate and a batch; got {candidates!r} and {batch}")
    mode = mode or ("infer" if budget == "time" else None)
    base = configuration_counts(config)

    def scale(rule: Rule, asked: float) -> ScaledConfig:
        return reach(config, scaling_factors(rule, asked, alpha=alpha), rule_name(rule), asked, base)

    def clock(some: Mapping[str, Any]) -> dict[str, float]:
        return _seconds({"": config, **some}, mode, batch, device, repeats)

    found: dict[str, ScaledConfig] = {}
    if budget == "time":
        found = _to_time(scale, clock, candidates, factor)
    else:
        for rule in candidates:
            found[rule_name(rule)] = nearest(
                functools.partial(scale, rule), operator.attrgetter(budget), factor
            )
    seconds = clock({name: one.config for name, one in found.items()}) if mode else {}
    table = _table(found, seconds)
    return Choice(found[_best(table, factor, budget, bool(mode))], table, found)


def _best(table: pandas.DataFrame, factor: float, budget: str, timed: bool) -> str:
    import numpy as np

    if budget == "time":
        return str(table["flops"].idxmax())
    missed = np.log(table[budget] / factor).abs()
    if missed.min() > TENTH:
        near = str(missed.idxmin())
        warnings.warn(
            f"rounding leaves every rule more than a tenth off {factor:g} times the {budget}; the nearest, "
            f"{near!r}, gives {table.loc[near, budget]:.3g} times", stacklevel=3,
        )  # fmt: skip
        return near
    cost = table["seconds" if timed and budget == "flops" else "activations"] / table["flops"]
    return str(cost[missed <= TENTH].idxmin())


def _table(found: Mapping[str, ScaledConfig], seconds: Mapping[str, float]) -> pandas.DataFrame:
    import pandas

    rows = {
        name: (one.requested, one.flops, one.parameters, one.activations, seconds.get(name, math.nan))
        for name, one in found.items()
    }
    columns = ["requested", "flops", "parameters", "activations", "seconds"]
    table = pandas.DataFrame.from_dict(rows, orient="index", columns=columns)
    return table.assign(slower=table["seconds"] / seconds.get("", math.nan))


def _to_time(scale: Any, clock: Any, candidates: Sequence[Rule], factor: float) -> dict[str, ScaledConfig]:
    """Time each rule at three sizes and read off, in logarithms, which takes ``factor`` times as long."""
    import numpy as np

    asked = [factor**power for power in (0.5, 1.0, 1.5)]
    trial = {(rule_name(rule), size): scale(rule, size) for rule in candidates for size in asked}
    taken = clock({f"{name} {size!r}": one.config for (name, size), one in trial.items()})
    found = {}
    for rule in candidates:
        name = rule_name(rule)
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
        model = config.build().to(device, memory_format=torch.channels_last)
        calls[name] = model_call(model, _placed(example_inputs(config, batch), device), mode)
    return {str(name): float(value) for name, value in runtime(calls, repeats=repeats)["seconds"].items()}


def _placed(inputs: Any, device: str | torch.device) -> Any:
    if inputs.ndim == 4:
        return inputs.to(device, memory_format=torch.channels_last)
    return inputs.to(device)
