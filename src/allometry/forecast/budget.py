"""What a budget buys: so many accelerators for so many days as a model, its data, its loss, its settings.

Compute is peak FLOP/s x utilisation x seconds x count; training costs 6 N D (Kaplan et al., 2020,
arXiv:2001.08361).  The split between N and D is the one of least loss under a law, the user's own or a
published one (`allometry.laws.published`).

- *A model that will be used*: where tokens are to be served, the budget pays for both, 6 N D + 2 N T, and the
  split is the one of least loss under that constraint (Sardana et al., 2023, arXiv:2401.00448;
  `allometry.laws.serving`).  A FLOP of serving costs as much as one of training here, though generating one
  token at a time gets far less out of a chip: raise T by the ratio of utilisations where that matters.
- *Data that run out*: with so many unique tokens, repetition is counted by the law of Muennighoff et al.,
  2023, arXiv:2305.16264.  Its two half-lives are lent to any other law that is a sum of powers.
- *Batch and learning rate* are those of a published recipe, and no more than a start.

Nothing is trained here, and nothing is known of memory, of networks or of interruptions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from allometry.forecast.accelerators import accelerator, parse_gpus
from allometry.forecast.law_source import Law, counting_repetition, load_law
from allometry.laws.average import Average
from allometry.laws.fit import Fit
from allometry.laws.published import DEFAULT_LAW, PublishedLaw, Recipe, published_recipe
from allometry.laws.serving import least_total, optimal_with_serving

__all__ = ["BudgetPlan", "plan_budget"]


@dataclass(frozen=True)
class BudgetPlan:
    """What a budget buys.  Made by `plan_budget`; `str` of it is a page of text.

    Attributes
    ----------
    gpus, precision, peak_flops, mfu, days
        The budget: what is there, FLOP/s of one accelerator, utilisation, days.
    total_flops, training_flops, serving_flops : float
        The budget's FLOPs, and what of them goes into 6 N D and 2 N T.
    law, law_source : str
        The law behind the answer, and where it is from.
    params, tokens, tokens_per_param, loss : float
        The model, its training tokens (repeated ones included), and the loss in nats a token.
    params_range, tokens_range : (float, float) or None
        Where the optimum may lie, at ``level``.
    loss_range : (float, float) or None
        Prediction interval at ``level`` for one run of this model.
    params_counted : str
        Which parameters N counts.
    batch_tokens, learning_rate, steps : float, float, int
        Tokens a step, peak learning rate, and steps; from ``recipe``.
    training_days, gpu_hours, cost : float, float, float or None
        Days of training; hours of all accelerators, serving included, and their price.
    tokens_served, unique_tokens, epochs
        What was asked; passes over the unique tokens.
    serving_saving : float or None
        Share of all compute that is saved against a model of the same loss, split for training alone.
    extrapolation : dict
        Orders of magnitude by which each input lies outside the runs behind the law, and ``training_flops``
        outside those behind the recipe; negative is below.
    notes : tuple of str
        What to bear in mind.
    """

    gpus: str
    precision: str
    peak_flops: float
    mfu: float
    days: float
    total_flops: float
    training_flops: float
    serving_flops: float
    law: str
    law_source: str
    params: float
    tokens: float
    tokens_per_param: float
    loss: float
    level: float
    params_range: tuple[float, float] | None
    tokens_range: tuple[float, float] | None
    loss_range: tuple[float, float] | None
    params_counted: str
    recipe: str
    batch_tokens: float
    learning_rate: float
    steps: int
    training_days: float
    gpu_hours: float
    price: float | None
    cost: float | None
    tokens_served: float
    unique_tokens: float | None
    epochs: float | None
    serving_saving: float | None
    extrapolation: dict[str, float]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain numbers, strings and lists that JSON can hold."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> BudgetPlan:
        """The plan that `to_dict` described."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        return cls(**values)

    def __str__(self) -> str:
        from allometry.show.text import aligned, cut, wrapped

        lines = [piece for line in aligned(_facts(self)) for piece in cut(line)]
        if self.notes:
            lines += ["", "Notes", *(line for note in self.notes for line in wrapped(note))]
        return "\n".join(line.rstrip() for line in lines)


def plan_budget(
    gpus: str,
    days: float,
    *,
    law: str | Path | Law | Average | None = None,
    mfu: float = 0.4,
    precision: str = "bf16",
    flops_per_gpu: float | None = None,
    tokens_served: float = 0.0,
    unique_tokens: float | None = None,
    price: float | None = None,
    recipe: Recipe | None = None,
    level: float = 0.9,
) -> BudgetPlan:
    """The model, data, loss and first settings that a budget buys.

    Parameters
    ----------
    gpus : str
        Count and name, such as ``"8xH100"``; see `allometry.forecast.accelerators`.
    days : float
    law : str, path, Fit, PublishedLaw or Average, optional
        A published law's name, a ``law.json`` of ``allometry forecast`` or ``allometry fit``, or the law
        itself.  By default ``"chinchilla-replicated"``, and ``"data-constrained"`` with ``unique_tokens``.
    mfu : float
        Share of the peak that training reaches, in (0, 1].
    precision : str
        Which peak: bf16, fp16, fp8, tf32 ...
    flops_per_gpu : float, optional
        Dense peak FLOP/s of one accelerator, for any that has no entry.
    tokens_served : float
        Tokens to be served from the same budget.
    unique_tokens : float, optional
        Tokens that there are; beyond them data repeat.
    price : float, optional
        Of one accelerator for one hour.
    recipe : Recipe, optional
        Rule for batch and learning rate; DeepSeek's by default.
    level : float
        Level of the intervals, where the law has any.

    Raises
    ------
    ValueError
        A number makes no sense, a name is unknown, or the law cannot answer.

    Examples
    --------
    >>> plan = plan_budget("8xH100", days=10)
    >>> f"{plan.total_flops:.3g} {plan.params:.3g} {plan.tokens_per_param:.1f}"
    '2.74e+21 4.65e+09 21.0'
    """
    count, name = parse_gpus(gpus)
    days = _positive("days", days)
    if not 0 < mfu <= 1:
        raise ValueError(f"mfu must be a share of the peak, over 0 and up to 1, not {mfu}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    price = None if price is None else _positive("price", price)
    unique_tokens = None if unique_tokens is None else _positive("unique_tokens", unique_tokens)
    if flops_per_gpu is None:
        chip = accelerator(name)
        name, peak = chip.name, chip.peak(precision)
    else:
        peak = _positive("flops_per_gpu", flops_per_gpu)
    flops = peak * mfu * days * 86_400.0 * count
    if law is None:
        law = DEFAULT_LAW if unique_tokens is None else "data-constrained"
    chosen, label, source = load_law(law)
    notes: list[str] = []
    if unique_tokens is not None:
        able = counting_repetition(chosen, notes)
        label = label if len(able) == len(chosen) else "the part of the average that counts repetition"
        chosen = able
    fixed: dict[str, float] = {}
    if "unique_tokens" in chosen[0].form.inputs:
        # without a limit there are more tokens than the whole budget could train one parameter on
        fixed = {"unique_tokens": flops / 6.0 if unique_tokens is None else unique_tokens}
    best = optimal_with_serving(chosen[0], flops, tokens_served, **_levelled(chosen[0], level), **fixed)
    at = {"params": best.params, "tokens": best.tokens} | fixed
    loss, loss_range = _foretold(chosen, at, best.loss, level)
    rule = published_recipe() if recipe is None else recipe
    batch = min(rule.batch_tokens(best.flops), best.tokens)
    hours = count * days * 24.0
    saving = None
    if tokens_served:
        usual = least_total(chosen[0], best.loss, 0.0, **fixed)
        saving = 1.0 - flops / (usual.flops + 2.0 * usual.params * tokens_served)
        notes.append(
            "The budget pays for training and serving: least loss at 6 N D + 2 N T = C (Sardana et al., "
            "2023, arXiv:2401.00448). A model of the same loss split for training alone has "
            f"{usual.params:.3g} parameters and {usual.tokens:.3g} tokens, and costs {usual.flops:.3g} FLOPs "
            "to train."
        )
    far = _distance(chosen[0], at) | {"training_flops": rule.extrapolation(best.flops)}
    plan = BudgetPlan(
        gpus=f"{count}x{name}",
        precision=precision,
        peak_flops=peak,
        mfu=float(mfu),
        days=days,
        total_flops=flops,
        training_flops=best.flops,
        serving_flops=2.0 * best.params * tokens_served,
        law=label,
        law_source=source,
        params=best.params,
        tokens=best.tokens,
        tokens_per_param=best.tokens_per_param,
        loss=loss,
        level=level,
        params_range=_ends(best.params_interval),
        tokens_range=_ends(best.tokens_interval),
        loss_range=loss_range,
        params_counted=chosen[0].params_counted
        if isinstance(chosen[0], PublishedLaw)
        else "parameters as in the runs behind the law",
        recipe=f"{rule.name}, {rule.source}, {rule.where}",
        batch_tokens=batch,
        learning_rate=rule.learning_rate(best.flops),
        steps=math.ceil(best.tokens / batch),
        training_days=days * best.flops / flops,
        gpu_hours=hours,
        price=price,
        cost=None if price is None else hours * price,
        tokens_served=float(tokens_served),
        unique_tokens=unique_tokens,
        epochs=None if unique_tokens is None else max(best.tokens / unique_tokens, 1.0),
        serving_saving=saving,
        extrapolation=far,
    )
    return replace(
        plan, notes=tuple(_reach(plan, chosen, rule) + notes + _cautions(chosen, rule, plan, fixed))
    )


def _levelled(law: Law, level: float) -> dict[str, float]:
    return {"level": level} if isinstance(law, Fit) else {}


def _foretold(
    laws: Sequence[Law], at: Mapping[str, float], loss: float, level: float
) -> tuple[float, tuple[float, float] | None]:
    """Loss at the plan, and its prediction interval where every law has draws."""
    fits = [law for law in laws if isinstance(law, Fit)]
    if not fits:
        return loss, None
    together = Average(fits)
    value = float(together.predict(dict(at))[0])
    if not all(len(fit.theta_draws) for fit in fits):
        return value, None
    return value, _ends(together.interval(dict(at), level=level, kind="prediction"))


def _distance(law: Law, at: Mapping[str, float]) -> dict[str, float]:
    far = law.extrapolation(dict(at))
    return {name: float(np.ravel(far[name])[0]) for name in ("params", "tokens")}


def _ends(interval: Any) -> tuple[float, float] | None:
    return None if interval is None else (float(interval.low), float(interval.high))


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a number over 0, not {value:g}")
    return float(value)


# --- what is said ------------------------------------------------------------------------------------------
def _facts(plan: BudgetPlan) -> list[tuple[str, str]]:
    from allometry.show.drawing import quantity

    def span(limits: tuple[float, float] | None, form: str) -> str:
        if limits is None:
            return ""
        return f", {limits[0]:{form}} to {limits[1]:{form}} ({plan.level:.0%})".replace("%", " %")

    count, name = plan.gpus.split("x", 1)
    facts = [
        (
            "budget",
            f"{count} x {name}, {plan.peak_flops / 1e12:.4g} TFLOP/s each (dense {plan.precision}), "
            f"{100 * plan.mfu:g} % MFU, {plan.days:g} days: {plan.total_flops:.3g} FLOPs",
        ),
        ("law", f"{plan.law}: {plan.law_source}"),
        ("parameters", f"{quantity(plan.params)}{span(plan.params_range, '.3g')}; {plan.params_counted}"),
        ("tokens", f"{quantity(plan.tokens)}{span(plan.tokens_range, '.3g')}"),
        ("per parameter", f"{plan.tokens_per_param:.1f} tokens"),
    ]
    if plan.epochs is not None and plan.unique_tokens is not None:
        facts.append(("epochs", f"{plan.epochs:.2f} over {quantity(plan.unique_tokens)} unique tokens"))
    facts += [
        ("loss", f"{plan.loss:.4f} nats a token{span(plan.loss_range, '.4f')}"),
        ("batch", f"{quantity(plan.batch_tokens)} tokens a step"),
        ("learning rate", f"{plan.learning_rate:.2e} at its peak"),
        ("steps", f"{plan.steps:,}"),
        ("training", f"{plan.training_flops:.3g} FLOPs, {plan.training_days:.4g} days"),
    ]
    if plan.tokens_served:
        saved = f", {100 * (plan.serving_saving or 0.0):.1f} % of all compute saved at this loss"
        facts.append(
            ("serving", f"{quantity(plan.tokens_served)} tokens, {plan.serving_flops:.3g} FLOPs{saved}")
        )
    money = "" if plan.cost is None else f", {plan.cost:,.2f} at {plan.price:g} an hour"
    facts.append(("GPU hours", f"{plan.gpu_hours:,.{0 if plan.gpu_hours >= 100 else 2}f}{money}"))
    return facts


def _reach(plan: BudgetPlan, laws: Sequence[Law], rule: Recipe) -> list[str]:
    """How far the plan lies outside the runs behind it, in orders of magnitude."""
    from allometry.show.drawing import quantity

    law = laws[0]
    if isinstance(law, PublishedLaw):
        domain = dict(law.domain)
    else:
        ends = np.exp([law.log_x.min(axis=0), law.log_x.max(axis=0)])
        domain = {name: (ends[0, i], ends[1, i]) for i, name in enumerate(law.form.inputs)}
    said = []
    for name, what in (("params", "parameters"), ("tokens", "tokens")):
        far = plan.extrapolation[name]
        if far:
            low, high = domain[name]
            where = "above" if far > 0 else "below"
            said.append(
                f"Extrapolation: the {what} lie {abs(far):.1f} orders of magnitude {where} those of the runs "
                f"behind the law ({quantity(low)} to {quantity(high)})."
            )
    far = plan.extrapolation["training_flops"]
    start = f"Batch and learning rate are a starting point from compute alone ({plan.recipe}), fitted on "
    start += f"{rule.domain[0]:.0e} to {rule.domain[1]:.0e} FLOPs"
    if far:
        start += f"; this lies {abs(far):.1f} orders of magnitude {'above' if far > 0 else 'below'}"
    return [*said, start + "."]


def _cautions(laws: Sequence[Law], rule: Recipe, plan: BudgetPlan, fixed: Mapping[str, float]) -> list[str]:
    said = [law.note for law in laws if isinstance(law, PublishedLaw) and law.note]
    if isinstance(laws[0], PublishedLaw):
        said.append("The law was published without the means for an interval.")
    elif plan.loss_range is None:
        said.append("The law has no draws, so there is no interval: fit with resamples to get one.")
    for other in laws[1:]:
        split = optimal_with_serving(other, plan.total_flops, plan.tokens_served, **fixed)
        said.append(
            f"The split is that of {laws[0].form.name}; {other.form.name} would take {split.params:.3g} "
            f"parameters and {split.tokens:.3g} tokens."
        )
    if rule.note:
        said.append(f"Of the recipe: {rule.note}")
    if plan.precision in ("fp8", "fp4"):
        said.append(f"Training in {plan.precision} is taken to lose nothing: no law here says what it costs.")
    return said
