"""How large attention logits are and how sharp attention is, at little memory.

When queries and keys grow, softmax becomes one-hot and training fails: in Wortsman and others, 2023
(arXiv:2309.14322), once the largest logit of a layer reaches about 1e4.

* A logit is z = scale x qᵀk *before* the mask and before softmax subtracts its maximum; the largest |z| is
  over all pairs of positions, those that the mask hides included. The entropy of attention, in nats, is over
  what each query sees.
* Both are computed over blocks of keys in one sweep, so that (heads, T, S) never exists.
* Where only what softmax was given is at hand, the mask is in it, and the largest is over what is seen.
* :mod:`allometry.measure.attention_reader` finds them in a running model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

KEY_BLOCK = 128
_BLOCK_NUMBERS = 1 << 22  # logits held at once, 16 MiB of float32; sequences take turns beyond that
_HIDDEN = -9e3  # masks that are added hide by -1e4, -1e9 or the type's lowest number


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


@torch.no_grad()
def softmax_statistics(logits: Tensor) -> LogitStatistics:
    """The same of what a softmax over the last dimension was given, mask and all.

    Parameters
    ----------
    logits : Tensor, shape (..., S)
        What lies below -9000 is taken to be hidden by a mask; the largest is over the rest.

    >>> found = softmax_statistics(torch.tensor([[0.0, 0.0, -torch.inf], [3.0, -1e9, -5.0]]))
    >>> float(found.largest), round(float(found.entropy), 3)
    (5.0, 0.348)
    """
    logits = _wide(logits)
    seen = logits > _HIDDEN
    share = torch.softmax(logits.masked_fill(~seen, -torch.inf), -1)
    sees = seen.any(-1)
    entropy = torch.where(sees, -torch.xlogy(share, share).nan_to_num(0.0).sum(-1), 0.0)
    return LogitStatistics(logits.abs().masked_fill(~seen, 0.0).amax(), entropy.sum() / sees.sum())


def added_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask whose true entries hide, as numbers that are added; numbers stay.

    >>> added_mask(torch.tensor([True, False]), torch.float32).tolist()
    [-inf, 0.0]
    """
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf)


def merged_mask(attention: Tensor | None, padding: Tensor | None, query: Tensor) -> Tensor | None:
    """``nn.MultiheadAttention``'s masks as one that is added to logits (B, H, T, S).

    Parameters
    ----------
    attention : Tensor, shape (T, S) or (B * H, T, S), optional
    padding : Tensor, shape (B, S), optional
        Of both, true entries hide.
    query : Tensor, shape (B, H, T, D)
    """
    parts = []
    if attention is not None:
        four = attention.unflatten(0, query.shape[:2]) if attention.ndim == 3 else attention[None, None]
        parts.append(added_mask(four, query.dtype))
    if padding is not None:
        parts.append(added_mask(padding[:, None, None, :], query.dtype))
    return sum(parts[1:], parts[0]) if parts else None


def _four(x: Tensor) -> Tensor:
    if x.ndim == 4:
        return x
    return x.unsqueeze(-3).reshape(-1, 1, *x.shape[-2:]) if x.ndim < 4 else x.flatten(0, -4)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
