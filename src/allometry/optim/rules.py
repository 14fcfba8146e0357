"""Rules that carry a setting from the width at which it was tuned to another.

"Rethinking Conventional Wisdom in Machine Learning: From Generalization to Scaling", Lechao Xiao, 2024.
arXiv:2409.15156.  Its first case: one learning rate for all widths against a rate that falls as one over
width; the two agree where they were tuned, and cross.

* A rule is a power of width, times a value at a base width; a function of one's own serves as well.
* Which weights it concerns is said, not guessed: all of them, or the hidden matrices alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

__all__ = ["WidthRule", "batch_rule", "decay_rule", "learning_rate_rule"]

_POWERS = {"constant": 0.0, "1/width": -1.0, "1/sqrt(width)": -0.5, "sqrt(width)": 0.5, "width": 1.0}


@dataclass(frozen=True)
class WidthRule:
    """A setting as a function of width; called with a width, it gives the setting.

    Attributes
    ----------
    base_width : int
        Where the setting was tuned.
    base_value : float
        Its value there.
    power : float or callable
        Exponent of width over base width, or a function of width that gives the multiplier (1 at the base).
    whole : bool
        Whether the setting is a whole number (a batch size).

    Examples
    --------
    >>> rule = learning_rate_rule("1/width", base_width=32, base_rate=0.01)
    >>> rule(32), rule(128)
    (0.01, 0.0025)
    """

    base_width: int
    base_value: float
    power: float | Callable[[int], float] = 0.0
    whole: bool = field(default=False)

    def __post_init__(self) -> None:
        if self.base_width < 1 or not (math.isfinite(self.base_value) and self.base_value >= 0):
            raise ValueError(
                f"a rule needs a base width of at least 1 and a value from 0 up, not {self.base_width} and "
                f"{self.base_value}"
            )

    def __call__(self, width: int) -> float:
        if width < 1:
            raise ValueError(f"width must be at least 1, not {width}")
        factor = self.power(width) if callable(self.power) else (width / self.base_width) ** self.power
        value = self.base_value * factor
        return max(1, round(value)) if self.whole else value

    def groups(
        self, model: nn.Module, width: int, *, scope: Literal["all", "hidden"] = "all", **settings: Any
    ) -> list[dict[str, Any]]:
        """Parameter groups for any ``torch.optim`` optimizer, with this rule's value as ``lr``.

        Parameters
        ----------
        model : nn.Module
        width : int
        scope : {"all", "hidden"}
            ``"hidden"``: the rule concerns matrices with ``width`` or more on both sides; all else (input and
            output weights, embeddings with a smaller table, gains, biases) keeps the base value.
        **settings
            Put into every group (``weight_decay=…``).

        Raises
        ------
        ValueError
            ``scope="hidden"`` finds no hidden matrix.
        """
        if scope == "all":
            return [{"params": list(model.parameters()), "lr": self(width), **settings}]
        if scope != "hidden":
            raise ValueError(f"scope must be 'all' or 'hidden', not {scope!r}")
        hidden = [parameter for _, parameter in _hidden(model, width)]
        if not hidden:
            raise ValueError(
                f"the model has no matrix with {width} or more on both sides; is its width {width}?"
            )
        known = set(map(id, hidden))
        rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
        groups = [{"params": hidden, "lr": self(width), **settings}]
        return groups + ([{"params": rest, "lr": self.base_value, **settings}] if rest else [])


def _hidden(model: nn.Module, width: int) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and min(parameter.shape[0], parameter.shape[1:].numel()) >= width:
            yield name, parameter


def learning_rate_rule(kind: str | Callable[[int], float], *, base_width: int, base_rate: float) -> WidthRule:
    """The learning rate as a function of width.

    Parameters
    ----------
    kind : {"constant", "1/width", "1/sqrt(width)"} or callable
        A callable gives the multiplier of the base rate at a width.
    base_width, base_rate
        Where the rate was tuned, and what it is there.

    Examples
    --------
    >>> learning_rate_rule("1/sqrt(width)", base_width=16, base_rate=0.4)(64)
    0.2
    """
    return WidthRule(base_width, base_rate, _power(kind))


def decay_rule(kind: str | Callable[[int], float], *, base_width: int, base_decay: float) -> WidthRule:
    """Weight decay as a function of width; as `learning_rate_rule`.

    Torch's AdamW multiplies decay by the rate: a rule for the rate is then a rule for decay too.  Use
    `AdamWIndependent`, or give decay the inverse rule.

    Examples
    --------
    >>> decay_rule("width", base_width=32, base_decay=0.1)(64)
    0.2
    """
    return WidthRule(base_width, base_decay, _power(kind))


def batch_rule(kind: str | Callable[[int], float], *, base_width: int, base_batch: int) -> WidthRule:
    """Sequences or samples a step as a function of width, a whole number of at least one.

    Examples
    --------
    >>> batch_rule("sqrt(width)", base_width=32, base_batch=16)(512)
    64
    """
    return WidthRule(base_width, base_batch, _power(kind), whole=True)


def _power(kind: str | Callable[[int], float]) -> float | Callable[[int], float]:
    if callable(kind):
        return kind
    if kind not in _POWERS:
        raise ValueError(f"a rule is one of {', '.join(_POWERS)}, or a function of width; not {kind!r}")
    return _POWERS[kind]
