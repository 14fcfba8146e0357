"""Telemetry of a training run: what grows or vanishes before a run is lost.

Wortsman and others, "Small-scale proxies for large-scale Transformer training instabilities", 2023.
arXiv:2309.14322. Attention logits that grow, output logits that drift away from log-probabilities, and
gradients that shrink below AdamW's ε are seen in these numbers long before the loss shows them.

* Measured every k-th step; in between, no hook is there at all. Outputs, gradients and random streams stay
  the same bit for bit.
* Gradients are measured as they are accumulated, that is before any clipping, which would hide their size.
* Attention is measured also where a fused kernel computes it (:mod:`allometry.measure.attention_reader`).
* What could not be measured is named in :attr:`Monitor.missing`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from allometry.measure.attention_logits import LogitStatistics
from allometry.measure.attention_reader import AttentionReader
from allometry.measure.capture import Selector, first_tensor, matching_modules
from allometry.measure.telemetry import (
    COARSE_LOG_Z,
    ENTROPY,
    FAILING_LOGIT,
    GRADIENT,
    LOG_Z,
    MAX_LOGIT,
    NORM,
    RESIDUAL,
    UPDATE,
    Threshold,
    flowing,
)

if TYPE_CHECKING:
    import pandas as pd

PROBES = ("attention", "output", "residual", "gradients", "updates", "parameters")
_ROWS = 1024  # positions whose logits are normalised at once


@dataclass(frozen=True)
class Probe:
    """A quantity of one's own, taken from named modules as the model runs.

    Attributes
    ----------
    quantity : str
        Its name in the table.
    include : glob, compiled regular expression, class, or several of them
        See :func:`allometry.measure.capture.matching_modules`.
    reduce : Tensor -> number or Tensor ()
        Of the module's detached output, or input, without gradients. Several calls in a step are averaged.
    of : "output" or "input"

    >>> dead = Probe("share of dead units", nn.ReLU, lambda x: (x == 0).float().mean())
    """

    quantity: str
    include: Selector | Iterable[Selector]
    reduce: Callable[[Tensor], Tensor | float]
    of: Literal["output", "input"] = "output"


class Monitor:
    """Telemetry of a model and its optimizer, as a table of (step, quantity, module, value).

    Call :meth:`step` once after every optimizer step. With :func:`allometry.train.fit`:
    ``progress=lambda done, total, **_: monitor.step(done - 1)``. Quantities:

    ==================== =================================================================================
    max attention logit  largest abs(qᵀk x scale) of each attention module, before the mask
    attention entropy    of attention in nats, mean over heads and queries; 0 is one-hot
    log z                mean logsumexp of the model's output logits; log-probabilities have 0
    residual rms         root mean square of each block's output
    gradient rms         of each parameter, before clipping
    update rms           root mean square of m̂ / (√v̂ + ε), Adam's step without its rate; healthy is 0.2 to 1
    parameter norm       Euclidean, of each parameter
    ==================== =================================================================================

    Parameters
    ----------
    model : nn.Module
        ``allometry.models.GPT``, a ``transformers`` model, or any other. Its output, that output's
        ``logits``, or its first member that is a floating tensor of two dimensions or more, is taken for
        logits over the last dimension.
    optimizer : torch.optim.Optimizer, optional
        For "update rms"; one that keeps ``exp_avg`` and ``exp_avg_sq``, as Adam and its kin do.
    every : int
        Measure steps that are multiples of this, and the first one seen.
    probes : names out of ``PROBES``, and :class:`Probe` objects
    sequences : int, optional
        Measure attention on the first so many sequences of a batch only.

    Attributes
    ----------
    missing : dict of str to str
        What could not be measured at the last measured step, with the reason: names of modules, or of a
        probe.

    Notes
    -----
    Only forward passes that record gradients count, so that an evaluation between two steps does not; use
    :meth:`measure` for a batch of your own. Several passes in a step (accumulation) give the largest logit
    and the mean of the rest. A stack of replicas runs as one traced program, in which no module is called:
    measure ``stack.unstack(replica)`` on a batch instead. A model that ``torch.compile`` made
    is traced anew for the steps that are measured, so that they take long: let ``every`` be large.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    >>> with Monitor(model, optimizer, every=2) as monitor:
    ...     for step in range(3):
    ...         optimizer.zero_grad()
    ...         model(torch.ones(5, 4)).square().mean().backward()
    ...         optimizer.step()
    ...         monitor.step(step)
    >>> sorted(monitor.table()["step"].unique().tolist())
    [0, 2]
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        every: int = 1,
        probes: Iterable[str | Probe] = PROBES,
        sequences: int | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every is a number of steps, at least 1, got {every}")
        wanted = [probes] if isinstance(probes, str | Probe) else list(probes)
        unknown = [probe for probe in wanted if not isinstance(probe, Probe) and probe not in PROBES]
        if unknown:
            raise ValueError(f"unknown probe {unknown[0]!r}; choose from {', '.join(PROBES)} or give a Probe")
        self.model, self.optimizer, self.every = model, optimizer, every
        self._probes = {probe for probe in wanted if isinstance(probe, str)}
        self._own = [probe for probe in wanted if isinstance(probe, Probe)]
        self._modules = [matching_modules(model, probe.include) for probe in self._own]
        self._names = {id(weight): name for name, weight in model.named_parameters()}
        self._attention = AttentionReader(
            model, self._take_attention, sequences=sequences, active=self._listening
        )
        self._blocks = _blocks(model, self._attention.sites)
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._pending: dict[tuple[str, str], list[Tensor]] = {}
        self._rows: list[tuple[int, str, str, float]] = []
        self._armed = False  # whether hooks are there, for the step to come
        self._always = False  # measure also what records no gradients
        self.missing: dict[str, str] = {}
        self._arm()

    # -- when ------------------------------------------------------------------------------------------

    def step(self, step: int) -> None:
        """Say that optimizer step ``step`` (from 0) is done: write down what was measured, arm the next."""
        if self._armed:
            self._after_step()
            self._write(step)
        if (step + 1) % self.every == 0:
            self._arm()
        else:
            self._disarm()

    def before_clip(self) -> None:
        """Measure gradients as they are now, in place of what backward gave.

        Needed only where backward's gradients are not yet those meant, as with a loss scaler: after
        unscaling, before clipping. Does nothing at steps that are not measured.
        """
        if self._armed and "gradients" in self._probes:
            for name, weight in self.model.named_parameters():
                if weight.grad is not None:
                    self._pending[GRADIENT, name] = [_rms(weight.grad)]

    @torch.no_grad()
    def measure(self, *inputs: Any, step: int = 0, **keywords: Any) -> Any:
        """Run the model on a batch without gradients, measure the pass, and return the model's output.

        For a model at rest, or a fixed batch beside training: "attention", "output", "residual" and your own
        probes, in rows of ``step``.
        """
        armed, kept, self._pending, self._always = self._armed, self._pending, {}, True
        self._arm()
        try:
            output = self.model(*inputs, **keywords)
            self._write(step)
        finally:
            self._pending, self._always = kept, False
            if not armed:
                self._disarm()
        return output

    def close(self) -> None:
        """Remove every hook; what was measured stays."""
        self._disarm()
        self._pending.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- what was found --------------------------------------------------------------------------------

    def table(self) -> pd.DataFrame:
        """Everything so far, a row a number: ``step``, ``quantity``, ``module`` (or parameter), ``value``."""
        import pandas as pd

        return pd.DataFrame(self._rows, columns=["step", "quantity", "module", "value"])

    def alerts(self, thresholds: Mapping[str, Threshold] | None = None) -> pd.DataFrame:
        """Rows of the table outside their limits, or not finite.

        Gradients that are rounding errors of zero, as those of keys' biases, are left out.

        Parameters
        ----------
        thresholds : mapping of quantity to upper limit, or to (lower, upper) with None for none, optional
            By default a largest logit of 1e4; an absolute log Z of 128, from which on logits in bfloat16 are
            whole numbers; and for gradients the optimizer's ε, below which Adam's updates shrink.

        Returns
        -------
        DataFrame
            step, quantity, module, value, low, high.

        Raises
        ------
        ValueError
            For a quantity that was never measured.
        """
        import pandas as pd

        table = flowing(self.table()).reset_index(drop=True)
        limits = self._default_thresholds() if thresholds is None else dict(thresholds)
        known = set(table["quantity"])
        for quantity in limits:
            if thresholds is not None and quantity not in known:
                raise ValueError(
                    f"{quantity!r} was not measured; measured were {', '.join(sorted(known)) or 'no steps'}"
                )
        bounds = {
            name: limit if isinstance(limit, tuple) else (None, limit) for name, limit in limits.items()
        }
        low = np.array([_or(bounds.get(name, (None, None))[0], -np.inf) for name in table["quantity"]])
        high = np.array([_or(bounds.get(name, (None, None))[1], np.inf) for name in table["quantity"]])
        value = table["value"].to_numpy(dtype=float)
        beyond = ~np.isfinite(value) | (value < low) | (value > high)
        found = pd.DataFrame({**table, "low": low, "high": high})[beyond]
        return found.reset_index(drop=True)

    def _default_thresholds(self) -> dict[str, Threshold]:
        limits: dict[str, Threshold] = {MAX_LOGIT: FAILING_LOGIT, LOG_Z: (-COARSE_LOG_Z, COARSE_LOG_Z)}
        epsilon = [group["eps"] for group in getattr(self.optimizer, "param_groups", ()) if "eps" in group]
        if epsilon:
            limits[GRADIENT] = (max(epsilon), None)
        return limits

    # -- how -------------------------------------------------------------------------------------------

    def _listening(self) -> bool:
        return self._always or torch.is_grad_enabled()

    def _arm(self) -> None:
        if self._armed:
            return
        self._armed = True
        keep = self._handles.append
        if "attention" in self._probes:
            self._attention.attach()
        if "output" in self._probes:
            keep(self.model.register_forward_hook(self._on_output))
        if "residual" in self._probes:
            for name, block in self._blocks.items():
                keep(block.register_forward_hook(self._hook(RESIDUAL, name, _rms)))
        for probe, modules in zip(self._own, self._modules, strict=True):
            for name, module in modules.items():
                keep(module.register_forward_hook(self._hook(probe.quantity, name, probe.reduce, probe.of)))
        if "gradients" in self._probes:
            for name, weight in self.model.named_parameters():
                if weight.requires_grad and weight.is_leaf:
                    keep(weight.register_post_accumulate_grad_hook(self._on_gradient(name)))

    def _disarm(self) -> None:
        self._armed = False
        self._attention.detach()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _add(self, quantity: str, name: str, value: Tensor | float) -> None:
        value = value if isinstance(value, Tensor) else torch.tensor(float(value))
        self._pending.setdefault((quantity, name), []).append(value.detach())

    def _take_attention(self, name: str, found: LogitStatistics) -> None:
        self._add(MAX_LOGIT, name, found.largest)
        self._add(ENTROPY, name, found.entropy)

    def _hook(
        self, quantity: str, name: str, reduce: Callable[[Tensor], Tensor | float], of: str = "output"
    ) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._listening():
                tensor = first_tensor(output if of == "output" else args)
                if tensor is not None:
                    with torch.no_grad():
                        self._add(quantity, name, reduce(tensor.detach()))

        return hook

    def _on_output(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._listening():
            logits = _logits(output)
            if logits is not None:
                self._add(LOG_Z, "", _mean_log_z(logits.detach()))

    def _on_gradient(self, name: str) -> Callable[[Tensor], None]:
        def hook(weight: Tensor) -> None:
            if weight.grad is not None:  # under accumulation the last is the sum
                self._pending[GRADIENT, name] = [_rms(weight.grad)]

        return hook

    @torch.no_grad()
    def _after_step(self) -> None:
        if "parameters" in self._probes:
            for name, weight in self.model.named_parameters():
                self._add(NORM, name, torch.linalg.vector_norm(weight.detach(), dtype=_at_least_32(weight)))
        if "updates" in self._probes and self.optimizer is not None:
            for group in self.optimizer.param_groups:
                for weight in group["params"]:
                    ratio = _update(group, self.optimizer.state.get(weight, {}))
                    if ratio is not None:
                        self._add(UPDATE, self._names.get(id(weight), "(not of the model)"), ratio)

    def _write(self, step: int) -> None:
        if not self._pending:
            return
        merged = {key: _merged(key[0], values) for key, values in self._pending.items()}
        # one wait for the device, not one a number
        device = next(iter(merged.values())).device
        numbers = torch.stack([value.to(device, torch.float64) for value in merged.values()]).tolist()
        self._rows += [(step, *key, number) for key, number in zip(merged, numbers, strict=True)]
        self._name_missing({key[0] for key in merged})
        self._pending.clear()

    def _name_missing(self, found: set[str]) -> None:
        self.missing = {}
        if "attention" in self._probes:
            self.missing |= dict(self._attention.missing)
            if MAX_LOGIT not in found and not self._attention.missing:
                self.missing["attention"] = (
                    "no module is named after attention, and no kernel of torch was called"
                )
        if "output" in self._probes and LOG_Z not in found:
            self.missing["output"] = (
                "the model gave no tensor of logits, alone, by that name or first of several"
            )
        if "residual" in self._probes and not self._blocks:
            self.missing["residual"] = "no list of blocks with attention in it was found"
        if "updates" in self._probes and not self._always and UPDATE not in found:
            kind = "no optimizer was given" if self.optimizer is None else type(self.optimizer).__name__
            self.missing["updates"] = f"{kind}: there is no exp_avg and exp_avg_sq to read"


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)


def _blocks(model: nn.Module, sites: Sequence[str]) -> dict[str, nn.Module]:
    """The members of module lists in which attention is found, innermost lists first."""
    modules = dict(model.named_modules())
    found = {}
    for site in sites:
        path = site.split(".")
        for depth in range(len(path), 0, -1):
            parent = modules[".".join(path[: depth - 1])]
            if isinstance(parent, nn.ModuleList | nn.Sequential):
                name = ".".join(path[:depth])
                found[name] = modules[name]
                break
    return found


def _at_least_32(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def _rms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dtype=_at_least_32(x)) / max(1, x.numel()) ** 0.5


def _logits(output: Any) -> Tensor | None:
    if isinstance(output, Mapping):
        output = output.get("logits")
    members = output if isinstance(output, tuple | list) else [getattr(output, "logits", output)]
    return next(
        (one for one in members if isinstance(one, Tensor) and one.is_floating_point() and one.ndim > 1), None
    )


def _mean_log_z(logits: Tensor) -> Tensor:
    """Mean logsumexp of (..., V), a block of positions at a time."""
    rows = logits.reshape(-1, logits.shape[-1])
    with torch.no_grad():
        parts = [torch.logsumexp(part.to(_at_least_32(part)), -1) for part in rows.split(_ROWS)]
        return torch.cat(parts).mean()


def _update(group: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor | None:
    """RMS of m̂ / (√v̂ + ε), with v̂ the largest so far under amsgrad."""
    if not {"exp_avg", "exp_avg_sq", "step"} <= set(state) or "betas" not in group:
        return None
    first, second = state["exp_avg"], state.get("max_exp_avg_sq", state["exp_avg_sq"])
    wide = _at_least_32(first)
    count = float(state["step"])
    beta1, beta2 = (float(beta) for beta in group["betas"])
    mean = first.to(wide) / (1.0 - beta1**count)
    root = (second.to(wide) / (1.0 - beta2**count)).sqrt_()
    return _rms(mean.div_(root.add_(group["eps"])))


def _merged(quantity: str, values: Sequence[Tensor]) -> Tensor:
    if len(values) == 1:
        return values[0]
    stacked = torch.stack([value.to(values[0].device, torch.float64) for value in values])
    return stacked.amax() if quantity == MAX_LOGIT else stacked.mean()
