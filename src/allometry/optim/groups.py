"""Parameter groups by role: the one door through which a rule of scale reaches an optimizer.

Maximal-update parametrization, per-layer rates, fine-tuning rates and decay exemptions all say the same
thing: *this parameter trains with that multiple of the learning rate and of the weight decay*. Such a
saying is a `Role`, a mapping from parameter names to roles is a rule, and `param_groups` turns a rule
into ordinary ``torch.optim`` groups, which any optimizer and any learning-rate scheduler understands.

- Groups are few: parameters with equal settings share one, whatever their roles are called.
- A tied parameter is one parameter and stands in one group, under whichever of its names the rule knows.
- Vectors (biases, norm gains), embeddings and heads tied to them do not decay unless asked to; the habit
  is as old as GPT-2 (Radford et al., 2019) and keeps decay away from what has no direction to lose.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["Role", "param_groups"]

_DEFAULT = "default"


@dataclass(frozen=True)
class Role:
    """What one kind of parameter does with the learning rate and the weight decay.

    Parameters
    ----------
    learning_rate : float
        Multiplier of the learning rate, at least 0.
    weight_decay : float
        Multiplier of the weight decay, at least 0.
    name : str
        What the role is called in the optimizer's groups.

    Raises
    ------
    ValueError
        If a multiplier is negative or not finite.

    Examples
    --------
    >>> Role(learning_rate=0.25)
    Role(learning_rate=0.25, weight_decay=1.0, name='hidden')
    """

    learning_rate: float = 1.0
    weight_decay: float = 1.0
    name: str = "hidden"

    def __post_init__(self) -> None:
        for field in ("learning_rate", "weight_decay"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"Role's {field} multiplier must be finite and at least 0; got {value!r}")


def param_groups(
    model: nn.Module,
    learning_rate: float,
    roles: Mapping[str, Role] | None = None,
    *,
    weight_decay: float = 0.0,
    no_decay: str | Iterable[str] = _DEFAULT,
) -> list[dict[str, Any]]:
    """Ordinary optimizer groups in which every parameter has the rate and the decay of its role.

    Parameters
    ----------
    model : nn.Module
        Parameters that do not require gradients are left out.
    learning_rate : float
        The rate that a role's multiplier of 1 stands for.
    roles : mapping from parameter name to Role, optional
        Names as in ``model.named_parameters()``; any of a tied parameter's names will do. Parameters not
        named get ``Role(1, 1)``.
    weight_decay : float
        The decay that a role's multiplier of 1 stands for, in the optimizer's own convention.
    no_decay : "default" or iterable of regular expressions
        Which parameters do not decay at all. ``"default"``: vectors and scalars, whatever a normalization
        layer owns, and embeddings (with heads tied to them). Expressions are searched in parameter names;
        an empty iterable lets everything decay.

    Returns
    -------
    list of dict
        Each with ``params``, ``lr``, ``weight_decay`` and ``name``, in order of first appearance.

    Raises
    ------
    ValueError
        If a role names no parameter, if two names of one tied parameter have different roles, if the rate
        or decay is negative, or if nothing in the model can be trained.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    >>> groups = param_groups(model, 0.1, {"1.weight": Role(0.5)}, weight_decay=0.01)
    >>> [(group["lr"], group["weight_decay"], len(group["params"])) for group in groups]
    [(0.1, 0.01, 1), (0.1, 0.0, 2), (0.05, 0.01, 1)]
    """
    for what, value in (("learning_rate", learning_rate), ("weight_decay", weight_decay)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{what} must be finite and at least 0; got {value!r}")
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    rule = dict(roles or {})
    unknown = sorted(set(rule) - {name for aliases in names.values() for name in aliases})
    if unknown:
        raise ValueError(
            f"roles name parameters that the model does not have: {', '.join(unknown[:5])}"
            + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
            + "; make the roles from this very model"
        )

    exempt = _exempt(model, no_decay)
    members: dict[tuple[float, float], list[nn.Parameter]] = {}
    titles: dict[tuple[float, float], list[str]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        role = _role_of(names[id(parameter)], rule)
        decay = 0.0 if id(parameter) in exempt else weight_decay * role.weight_decay
        key = (learning_rate * role.learning_rate, decay)
        members.setdefault(key, []).append(parameter)
        title = role.name if decay or not weight_decay else f"{role.name} (no decay)"
        if title not in titles.setdefault(key, []):
            titles[key].append(title)
    if not members:
        raise ValueError("no parameter of the model requires gradients, so there is nothing to optimize")
    return [
        {"params": parameters, "lr": key[0], "weight_decay": key[1], "name": ", ".join(titles[key])}
        for key, parameters in members.items()
    ]


def _role_of(aliases: list[str], rule: Mapping[str, Role]) -> Role:
    named = {alias: rule[alias] for alias in aliases if alias in rule}
    found = set(named.values())
    if len(found) > 1:
        raise ValueError(f"one tied parameter has several roles: {named}; give all its names the same role")
    return found.pop() if found else Role()


def _exempt(model: nn.Module, no_decay: str | Iterable[str]) -> set[int]:
    """The ids of the parameters that do not decay."""
    if isinstance(no_decay, str):
        if no_decay != _DEFAULT:
            raise ValueError(f"no_decay is 'default' or a list of regular expressions; got {no_decay!r}")
        exempt = set()
        for module in model.modules():
            whole = isinstance(module, nn.Embedding | nn.EmbeddingBag) or "Norm" in type(module).__name__
            for parameter in module.parameters(recurse=False):
                if whole or parameter.ndim <= 1:
                    exempt.add(id(parameter))
        return exempt
    patterns = [re.compile(pattern) for pattern in no_decay]
    return {
        id(parameter)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if any(pattern.search(name) for pattern in patterns)
    }
