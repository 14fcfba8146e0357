"""Attention's logits, read off a running model of any architecture.

Three ways, of which a module's own code decides:

* What a kernel of torch is given (``F.scaled_dot_product_attention``, ``nn.MultiheadAttention``) is read off
  its call: rotated, normalised, scaled and masked as the model does it.
* Where a module writes attention out, what its softmax is given tells what each query sees. The largest logit
  of all pairs, hidden ones included, is computed again from what ``q_proj`` and ``k_proj`` (or ``q_norm`` and
  ``k_norm``, or ``c_attn``) gave, turned by the rotary angles that the module was called with, if that agrees
  with what softmax was given; if not, the largest is that of the pairs that are seen.
* Where attention runs in a kernel that torch does not show, only the projections are left, and nothing checks
  them: the mask is taken to be causal, within the module's sliding window; padding counts as text.

A module that looks like attention and can be read in none of them is named with the reason, never a zero.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from allometry.measure.attention_logits import (
    LogitStatistics,
    attention_logit_statistics,
    merged_mask,
    softmax_statistics,
)

__all__ = ["AttentionReader"]

_LOOKS_LIKE_ATTENTION = re.compile(r"attention|attn", re.IGNORECASE)
_TURNS = re.compile(r"rotary|rope", re.IGNORECASE)
_SOFTMAX = (F.softmax, torch.softmax, torch.special.softmax, Tensor.softmax)
_AGREE = 0.02  # of the largest logit; half precision keeps two or three digits

Take = Callable[[str, LogitStatistics], None]


@dataclass
class _Site:
    """One module that looks like attention, during one call of the model."""

    name: str
    module: nn.Module
    query: Tensor | None = None
    key: Tensor | None = None
    angles: tuple[Tensor, Tensor] | None = None
    read: bool = False  # off a kernel's call
    softmax: list[LogitStatistics] = field(default_factory=list)
    sample: Tensor | None = None  # (T, S) of what softmax was given: the first sequence's first head

    def forget(self) -> None:
        self.query = self.key = self.angles = self.sample = None
        self.read, self.softmax = False, []


class AttentionReader:
    """Hooks that give every call of attention to ``take`` while they are attached.

    Parameters
    ----------
    model : nn.Module
    take : (name of the module, LogitStatistics) -> None
    sequences : int, optional
        Only the first so many sequences of a batch are measured.
    active : () -> bool, optional
        Asked at each call of the model.

    Attributes
    ----------
    sites : tuple of str
        Names of the innermost modules that look like attention.
    missing : mapping of str to str
        Those that could not be read, with the reason, as of the last call that was measured.
    """

    def __init__(
        self,
        model: nn.Module,
        take: Take,
        *,
        sequences: int | None = None,
        active: Callable[[], bool] = lambda: True,
    ) -> None:
        if sequences is not None and sequences < 1:
            raise ValueError(f"sequences must be at least 1, or None for all of a batch, got {sequences}")
        self.model, self._take, self._sequences, self._active = model, take, sequences, active
        self._sites = {name: _Site(name, module) for name, module in _attention_modules(model).items()}
        self._missing: dict[str, str] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._running: list[str] = []  # names of the modules that are being called, outermost first
        self._mode: ExitStack | None = None

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self._sites)

    @property
    def missing(self) -> MappingProxyType[str, str]:
        return MappingProxyType(self._missing)

    def attach(self) -> None:
        """Begin; does nothing if begun."""
        if self._handles:
            return
        keep = self._handles.append
        keep(self.model.register_forward_pre_hook(self._begin))
        for name, module in self.model.named_modules():
            if name in self._sites or next(module.children(), None) is not None:
                keep(module.register_forward_pre_hook(self._enter(name), with_kwargs=True))
                keep(module.register_forward_hook(self._leave(name), always_call=True))
        for site in self._sites.values():
            for part, source in _sources(site.module).items():
                keep(source.register_forward_hook(self._source(site, part)))
        keep(self.model.register_forward_hook(self._end, always_call=True))

    def detach(self) -> None:
        """Remove every hook."""
        self._stop()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _begin(self, module: nn.Module, args: Any) -> None:
        self._stop()
        if self._active():
            self._missing = {}
            for site in self._sites.values():
                site.forget()
                self._missing[site.name] = "it was not called"
            self._mode = ExitStack()
            self._mode.enter_context(_Calls(self))

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._stop()

    def _stop(self) -> None:
        self._running.clear()
        if self._mode is not None:
            self._mode.close()
            self._mode = None

    def _enter(self, name: str) -> Callable[..., None]:
        site = self._sites.get(name)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._mode is None:
                return
            self._running.append(name)
            if site is not None:
                site.forget()
                site.angles = _angles(args, kwargs)

        return hook

    def _leave(self, name: str) -> Callable[..., None]:
        site = self._sites.get(name)

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._mode is None or not self._running:
                return
            self._running.pop()
            if site is not None and not site.read:
                self._written_out(site)

        return hook

    def _source(self, site: _Site, part: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._mode is None or site.name not in self._running or not isinstance(output, Tensor):
                return
            output = output.detach()
            if part == "query, key, value":
                site.query, site.key, _ = output.chunk(3, -1)
            elif part == "query":
                site.query = output
            else:
                site.key = output

        return hook

    def fused(self, query: Tensor, key: Tensor, **settings: Any) -> None:
        """The fused kernel was called with these."""
        site = self._innermost()
        if site is not None:
            site.read = True
        self._measure(
            site.name if site else self._running[-1] if self._running else "", query, key, **settings
        )

    def softmax(self, logits: Tensor) -> None:
        """A softmax over the last dimension was given these."""
        site = self._innermost()
        if site is None or site.read or logits.ndim < 3:
            return
        if self._sequences is not None and logits.ndim > 3:
            logits = logits[: self._sequences]
        site.softmax.append(softmax_statistics(logits.detach()))
        # a copy, because softmax may be asked to write into its input
        site.sample = logits.detach().flatten(0, -3)[0].clone() if site.sample is None else site.sample

    def _innermost(self) -> _Site | None:
        name = next((name for name in reversed(self._running) if name in self._sites), None)
        return None if name is None else self._sites[name]

    def _written_out(self, site: _Site) -> None:
        """A module without a call of a kernel: by its softmax, by its projections, or by both."""
        reason = _unreadable(site)
        if reason is not None and not site.softmax:
            self._missing[site.name] = reason
            return
        if reason is not None:
            self._tell(site.name, _merged(site.softmax))
            return
        module = site.module
        query, key = (_heads(x, module.head_dim) for x in (site.query, site.key))  # type: ignore[arg-type]
        if site.angles is not None:
            query, key = (_rotate(x, *site.angles) for x in (query, key))
        scale = getattr(module, "scaling", None)
        if site.sample is not None and not _agree(query, key, scale, site.sample):
            self._tell(site.name, _merged(site.softmax))
            return
        self._measure(
            site.name, query, key, scale=scale, is_causal=bool(getattr(module, "is_causal", True)),
            window=getattr(module, "sliding_window", None), seen=site.softmax,
        )  # fmt: skip

    def _measure(
        self,
        name: str,
        query: Tensor,
        key: Tensor,
        seen: list[LogitStatistics] | None = None,
        **settings: Any,
    ) -> None:
        if self._sequences is not None and query.ndim > 3:
            query, key = query[: self._sequences], key[: self._sequences]
            mask = settings.get("mask")
            if mask is not None and mask.ndim == 4:
                settings["mask"] = mask[: self._sequences]
        found = attention_logit_statistics(query.detach(), key.detach(), **settings)
        self._tell(name, LogitStatistics(found.largest, _merged(seen).entropy) if seen else found)

    def _tell(self, name: str, found: LogitStatistics) -> None:
        self._missing.pop(name, None)
        self._take(name, found)


def _merged(several: list[LogitStatistics]) -> LogitStatistics:
    return LogitStatistics(
        torch.stack([one.largest for one in several]).amax(),
        torch.stack([one.entropy for one in several]).mean(),
    )


def _agree(query: Tensor, key: Tensor, scale: float | None, sample: Tensor) -> bool:
    """Whether logits from queries and keys are what softmax was given, where the mask lets one see."""
    query, key = query[0, 0].detach().float(), key[0, 0].detach().float()
    if sample.shape != (query.shape[0], key.shape[0]):
        return False  # keys of earlier calls, from a cache
    with torch.autocast(query.device.type, enabled=False):
        logits = query @ key.T * (query.shape[-1] ** -0.5 if scale is None else scale)
    seen, sample = sample > -9e3, sample.float()
    apart = (logits - sample).abs().masked_fill(~seen, 0.0).amax()
    return bool(apart <= _AGREE * sample.abs().masked_fill(~seen, 0.0).amax() + 1e-5)


class _Calls(TorchFunctionMode):
    """Tells a reader of every call of a kernel and of softmax, and changes none."""

    def __init__(self, reader: AttentionReader) -> None:
        super().__init__()
        self.reader = reader

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            inputs, settings = _called(*args, **kwargs)
            self.reader.fused(*inputs, **settings)
        elif function is F.multi_head_attention_forward:
            called = _multihead(*args, **kwargs)
            if called is not None:
                self.reader.fused(*called[0], **called[1])
        elif function in _SOFTMAX and _last_dimension(args, kwargs):
            self.reader.softmax(args[0] if args else kwargs["input"])
        return function(*args, **kwargs)


def _called(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
    if is_causal and query.shape[-2] != key.shape[-2]:  # the kernel's triangle begins at the first key
        attn_mask, is_causal = (
            torch.ones(query.shape[-2], key.shape[-2]).tril().bool().to(query.device),
            False,
        )
    return (query, key), {"mask": attn_mask, "is_causal": is_causal, "scale": scale}


@torch.no_grad()
def _multihead(*args: Any, **kwargs: Any) -> tuple[tuple[Tensor, Tensor], dict[str, Any]] | None:
    """Queries and keys of torch's own module, projected once more; None where keys are added to them."""
    given = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs)
    given.apply_defaults()
    of = given.arguments
    if of["bias_k"] is not None or of["add_zero_attn"] or of["static_k"] is not None:
        return None
    bias = of["in_proj_bias"]
    biases = (None, None) if bias is None else bias.chunk(3)[:2]
    if of["use_separate_proj_weight"]:
        weights = (of["q_proj_weight"], of["k_proj_weight"])
    else:
        weights = of["in_proj_weight"].chunk(3)[:2]
    query, key = (
        F.linear(x if x.ndim == 3 else x.unsqueeze(1), weight, one)
        .unflatten(-1, (of["num_heads"], -1))
        .permute(1, 2, 0, 3)  # (T, B, H, D) to (B, H, T, D)
        for x, weight, one in zip((of["query"], of["key"]), weights, biases, strict=True)
    )
    padding = of["key_padding_mask"]
    if padding is not None and padding.ndim == 1:
        padding = padding.unsqueeze(0)
    mask = merged_mask(of["attn_mask"], padding, query)
    return (query, key), {"mask": mask, "is_causal": bool(of["is_causal"]) and mask is None}


def _last_dimension(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    logits = args[0] if args else kwargs.get("input")
    where = args[1] if len(args) > 1 else kwargs.get("dim")
    return isinstance(logits, Tensor) and isinstance(where, int) and where in (-1, logits.ndim - 1)


def _attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The innermost modules whose class is named after attention."""
    found = {
        name: module
        for name, module in model.named_modules()
        if _LOOKS_LIKE_ATTENTION.search(type(module).__name__)
    }
    return {
        name: module
        for name, module in found.items()
        if not any(other is not module and other in set(module.modules()) for other in found.values())
    }


def _sources(module: nn.Module) -> dict[str, nn.Module]:
    """Where a module's queries and keys come out last before positions turn them."""
    found = {}
    for part, short in (("query", "q"), ("key", "k")):
        for name in (f"{short}_norm", f"{short}_proj"):
            source = getattr(module, name, None)
            if isinstance(source, nn.Module):
                found[part] = source
                break
    fused = getattr(module, "c_attn", None)
    if not found and isinstance(fused, nn.Module) and not getattr(module, "is_cross_attention", False):
        found["query, key, value"] = fused
    return found


def _unreadable(site: _Site) -> str | None:
    """Why a module's projections do not tell its logits."""
    kind = type(site.module).__name__
    if isinstance(site.module, nn.MultiheadAttention):
        return f"{kind} adds keys of its own (bias_k or add_zero_attn)"
    if not _sources(site.module):
        return f"{kind} shows neither kernel nor softmax, and has neither q_proj and k_proj nor c_attn"
    if not isinstance(getattr(site.module, "head_dim", None), int):
        return f"{kind} has no head_dim to cut its projections into heads by"
    if site.query is None or site.key is None:
        return (
            f"its {'queries' if site.query is None else 'keys'} did not pass through a projection this time"
        )
    if site.angles is None and any(_TURNS.search(name) for name in dir(site.module)) and not site.softmax:
        return f"{kind} turns queries and keys by positions itself, and no softmax shows the outcome"
    return None


def _heads(x: Tensor, size: int) -> Tensor:
    """(B, T, H * D) or (B, T, H, D) to (B, H, T, D)."""
    return (x if x.ndim == 4 else x.unflatten(-1, (-1, size))).transpose(1, 2)


def _angles(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Cosines and sines (B, T, R), as transformers hands them to its attention modules."""
    for value in (kwargs.get("position_embeddings"), *args):
        if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(x, Tensor) for x in value):
            return value[0], value[1]
    return None


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn pairs (i, i + R/2) of the first R numbers of each head; (B, H, T, D) by (B, T, R)."""
    turned = cosine.shape[-1]
    head, rest = x[..., :turned], x[..., turned:]
    first, second = head.chunk(2, -1)
    cosine, sine = cosine.unsqueeze(-3), sine.unsqueeze(-3)
    return torch.cat((head * cosine + torch.cat((-second, first), -1) * sine, rest), -1)
