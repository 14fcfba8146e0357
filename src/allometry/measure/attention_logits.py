"""How large attention logits are and how sharp attention is, of a running model and at little memory.

When queries and keys grow, softmax becomes one-hot and training fails: in Wortsman and others, 2023
(arXiv:2309.14322), once the largest logit of a layer reaches about 1e4.

* A logit is z = scale x qᵀk *before* the mask and before softmax subtracts its maximum; the largest |z| is
  over all pairs of positions, those that the mask hides included. The entropy of attention, in nats, is over
  what each query sees.
* Both are computed over blocks of keys in one sweep, so that (heads, T, S) never exists.
* What the fused kernel is given (``F.scaled_dot_product_attention``) is read off its call: rotated,
  normalised, scaled and masked as the model does it, of any architecture.
* Where attention is written out or runs in another kernel, queries and keys are computed again from what
  ``q_proj`` and ``k_proj`` (or ``q_norm`` and ``k_norm``, or ``c_attn``) gave, turned by the rotary angles
  that the module was called with. There the mask is taken to be causal, within the module's sliding window;
  padding counts as text.
* A module that looks like attention and can be read neither way is named with the reason, never a zero.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

KEY_BLOCK = 128
_BLOCK_NUMBERS = 1 << 22  # logits held at once, 16 MiB of float32; sequences take turns beyond that
_LOOKS_LIKE_ATTENTION = re.compile(r"attention|attn", re.IGNORECASE)


@dataclass(frozen=True)
class LogitStatistics:
    """Of one call of attention; scalars (), on the device of the queries.

    Attributes
    ----------
    largest : Tensor
        max |z| over sequences, heads and all pairs of positions.
    entropy : Tensor
        Of attention in nats, the mean over sequences, heads and queries that see anything.
    """

    largest: Tensor
    entropy: Tensor


@torch.no_grad()
def attention_logit_statistics(
    query: Tensor,
    key: Tensor,
    *,
    scale: float | None = None,
    is_causal: bool = True,
    window: int | None = None,
    mask: Tensor | None = None,
    block: int = KEY_BLOCK,
) -> LogitStatistics:
    """The largest |logit| and the mean entropy of attention, in blocks of keys.

    Parameters
    ----------
    query : Tensor, shape (B, H, T, D) or (..., T, D)
    key : Tensor, shape (B, G, S, D), with H a multiple of G
        Fewer heads of keys than of queries are shared by neighbouring queries, as in grouped attention.
    scale : float, optional
        Multiplies qᵀk; 1 / sqrt(D) by default.
    is_causal : bool
        Query t sees keys up to t + S - T.
    window : int, optional
        And of those the last ``window`` only.
    mask : Tensor, broadcasts to (B, H, T, S), optional
        True where a key is seen, or numbers that are added to the logits.
    block : int
        Keys at once.

    >>> q = torch.eye(4)[None, None] * 8.0
    >>> round(float(attention_logit_statistics(q, q, scale=1.0).largest), 3)
    64.0
    """
    if query.ndim < 2 or query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"queries (B, H, T, D) and keys (B, G, S, D) share their last size, got {tuple(query.shape)} "
            f"and {tuple(key.shape)}"
        )
    if block < 1:
        raise ValueError(f"a block holds at least one key, got {block}")
    query, key = _four(query), _four(key)
    if query.shape[1] != key.shape[1]:
        if query.shape[1] % key.shape[1]:
            raise ValueError(f"{query.shape[1]} heads of queries cannot share {key.shape[1]} heads of keys")
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    batch, heads, length, size = query.shape
    scale = size**-0.5 if scale is None else scale
    if mask is not None:
        mask = mask.expand(torch.broadcast_shapes(mask.shape, (batch, heads, length, key.shape[2])))
    together = max(1, _BLOCK_NUMBERS // max(1, heads * length * min(block, key.shape[2])))
    largest, total, count = [], [], []
    with torch.autocast(query.device.type, enabled=False):
        for start in range(0, batch, together):
            rows = slice(start, start + together)
            part = _sweep(
                _wide(query[rows]) * scale, _wide(key[rows]), is_causal, window,
                None if mask is None else mask[rows], block,
            )  # fmt: skip
            largest.append(part[0])
            total.append(part[1])
            count.append(part[2])
    return LogitStatistics(torch.stack(largest).amax(), torch.stack(total).sum() / torch.stack(count).sum())


def _sweep(
    query: Tensor, key: Tensor, is_causal: bool, window: int | None, mask: Tensor | None, block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Largest |z|, sum of entropies, number of queries that see anything."""
    length, seen = query.shape[2], key.shape[2]
    offset = seen - length  # query t stands at position t + offset
    lowest = torch.finfo(query.dtype).min
    # softmax's sums so far: of e = exp(z - top), and of e x (z - top), from which the entropy follows
    # without subtracting large numbers
    top = query.new_full(query.shape[:3], lowest)
    weight, moment = torch.zeros_like(top), torch.zeros_like(top)
    largest = query.new_zeros(())
    at = torch.arange(length, device=query.device)[:, None] + offset
    for start in range(0, seen, block):
        end = min(seen, start + block)
        logits = query @ key[:, :, start:end].transpose(-1, -2)
        least, most = torch.aminmax(logits)
        largest = torch.maximum(largest, torch.maximum(most, -least))
        first = max(0, start - offset) if is_causal else 0  # queries before see none of this block
        if first >= length:
            continue
        logits = logits[:, :, first:]
        past = torch.arange(start, end, device=query.device)
        hidden = None
        if is_causal and end - 1 > first + offset:
            hidden = past > at[first:]
        if window is not None:
            outside = past <= at[first:] - window
            hidden = outside if hidden is None else hidden | outside
        if mask is not None:
            part = mask[:, :, first:, start:end]
            if part.dtype == torch.bool:
                hidden = ~part if hidden is None else hidden | ~part
            else:
                logits.add_(part.to(logits.dtype))
                # minus infinity or the type's lowest number is how such masks hide
                below = logits <= lowest / 2
                hidden = below if hidden is None else hidden | below
        if hidden is not None:
            logits.masked_fill_(hidden, lowest)
        rows = (slice(None), slice(None), slice(first, None))
        before = top[rows]
        now = torch.maximum(before, logits.amax(-1))
        apart = logits.sub_(
            now.unsqueeze(-1)
        )  # in place: every pass over a block costs as much as its product
        share = apart.exp()
        if hidden is not None:
            # a query that has seen nothing yet has now = lowest, and what is hidden must not count as equal
            share.masked_fill_(hidden, 0.0)
            apart.masked_fill_(hidden, 0.0)
        fading = (before - now).clamp_(min=lowest)
        kept = fading.exp()
        moment[rows] = kept * (moment[rows] + weight[rows] * fading) + torch.linalg.vecdot(share, apart)
        weight[rows] = kept * weight[rows] + share.sum(-1)
        top[rows] = now
    sees = weight > 0
    entropy = weight.log() - moment / weight
    return largest, torch.where(sees, entropy, 0.0).sum(), sees.sum().to(largest.dtype)


def _four(x: Tensor) -> Tensor:
    if x.ndim == 4:
        return x
    return x.unsqueeze(-3).reshape(-1, 1, *x.shape[-2:]) if x.ndim < 4 else x.flatten(0, -4)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


# -- reading a running model ---------------------------------------------------------------------------


Take = Callable[[str, LogitStatistics], None]


@dataclass
class _Site:
    """One module that looks like attention, during one call of the model."""

    name: str
    module: nn.Module
    query: Tensor | None = None
    key: Tensor | None = None
    angles: tuple[Tensor, Tensor] | None = None
    read: bool = False  # off a call of the fused kernel


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
                site.query = site.key = site.angles = None
                site.read = False
                self._missing[site.name] = "it was not called"
            self._mode = ExitStack()
            self._mode.enter_context(_FusedCalls(self))

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
                site.query = site.key = None
                site.read = False
                site.angles = _angles(args, kwargs)

        return hook

    def _leave(self, name: str) -> Callable[..., None]:
        site = self._sites.get(name)

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._mode is None or not self._running:
                return
            self._running.pop()
            if site is not None and not site.read:
                self._recompute(site)

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
        name = next((name for name in reversed(self._running) if name in self._sites), None)
        if name is None:
            name = self._running[-1] if self._running else ""
        else:
            self._sites[name].read = True
        self._measure(name, query, key, **settings)

    def _recompute(self, site: _Site) -> None:
        module = site.module
        size = getattr(module, "head_dim", None)
        reason = _unreadable(site, size)
        if reason is not None:
            self._missing[site.name] = reason
            return
        assert site.query is not None
        assert site.key is not None
        assert size is not None
        query, key = (_heads(x, size) for x in (site.query, site.key))
        if site.angles is not None:
            query, key = (_rotate(x, *site.angles) for x in (query, key))
        self._measure(
            site.name, query, key, scale=getattr(module, "scaling", None),
            is_causal=bool(getattr(module, "is_causal", True)),
            window=getattr(module, "sliding_window", None),
        )  # fmt: skip

    def _measure(self, name: str, query: Tensor, key: Tensor, **settings: Any) -> None:
        if self._sequences is not None and query.ndim > 3:
            query, key = query[: self._sequences], key[: self._sequences]
            mask = settings.get("mask")
            if mask is not None and mask.ndim == 4:
                settings["mask"] = mask[: self._sequences]
        self._missing.pop(name, None)
        self._take(name, attention_logit_statistics(query.detach(), key.detach(), **settings))


class _FusedCalls(TorchFunctionMode):
    """Tells a reader of every call of the fused kernel, and changes none."""

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


def _unreadable(site: _Site, size: Any) -> str | None:
    if not _sources(site.module):
        return (
            f"{type(site.module).__name__} calls no fused kernel that torch shows and has neither q_proj and "
            "k_proj nor c_attn"
        )
    if not isinstance(size, int):
        return f"{type(site.module).__name__} has no head_dim to cut its projections into heads by"
    if site.query is None or site.key is None:
        return (
            f"its {'queries' if site.query is None else 'keys'} did not pass through a projection this time"
        )
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
