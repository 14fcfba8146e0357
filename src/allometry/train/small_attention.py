"""Causal attention for short contexts and small heads on a CPU: query blocks, plain matrix products.

The fused kernel is made for long contexts: at 128 positions and heads of 16 it takes half as long again as
the plain formula in blocks of 32 queries, in which most keys of the future are never multiplied. It also has
no batching rule under ``torch.func.vmap``, which then runs it once a replica; this one folds the replicas
into the batch. Probabilities are kept for the backward pass, which is written by hand, so memory grows with
the square of the context: beyond :data:`LONGEST_CONTEXT` the fused kernel stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

QUERY_BLOCK = 32  # of 16, 32, 64 and 128 the fastest at context 128 and head size 16
LONGEST_CONTEXT = 256


class _CausalAttention(torch.autograd.Function):
    """softmax(scale q k^T + causal mask) v for q, k, v of shape (N, T, D), and each block's probabilities."""

    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, ...]:
        length = query.shape[1]
        outputs, kept = [], []
        for start in range(0, length, QUERY_BLOCK):
            end = min(length, start + QUERY_BLOCK)
            scores = torch.bmm(query[:, start:end], key[:, :end].transpose(1, 2))
            if scale != 1.0:
                scores = scores.mul_(scale)
            # only the block on the diagonal has a future to hide
            future = torch.ones(end - start, end - start, dtype=torch.bool, device=query.device).triu(1)
            scores[:, :, start:].masked_fill_(future, -math.inf)
            weights = torch.softmax(scores, -1)
            outputs.append(torch.bmm(weights, value[:, :end]))
            kept.append(weights)
        return torch.cat(outputs, 1), *kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        query, key, value, ctx.scale = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(query, key, value, *output[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        length = query.shape[1]
        for_query: list[Tensor] = []
        for_key: Tensor | None = None
        for_value: Tensor | None = None
        # from the last block, which sees every key, so that its products are the accumulators
        for index in reversed(range(len(kept))):
            start, end = index * QUERY_BLOCK, min(length, (index + 1) * QUERY_BLOCK)
            weights, upstream = kept[index], gradient[:, start:end]
            for_weights = torch.bmm(upstream, value[:, :end].transpose(1, 2))
            for_scores = torch._softmax_backward_data(for_weights, weights, -1, weights.dtype)
            if ctx.scale != 1.0:
                for_scores = for_scores * ctx.scale
            for_query.append(torch.bmm(for_scores, key[:, :end]))
            key_part = torch.bmm(for_scores.transpose(1, 2), query[:, start:end])
            value_part = torch.bmm(weights.transpose(1, 2), upstream)
            if for_key is None or for_value is None:
                for_key, for_value = key_part, value_part
            else:
                for_key[:, :end].add_(key_part)
                for_value[:, :end].add_(value_part)
        return torch.cat(for_query[::-1], 1), for_key, for_value, None

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], Any]:
        size = info.batch_size
        stacked = [
            x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip(inputs[:3], dims[:3], strict=True)
        ]
        outputs = _CausalAttention.apply(*(x.flatten(0, 1) for x in stacked), inputs[3])
        return tuple(x.unflatten(0, (size, -1)) for x in outputs), (0,) * len(outputs)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, *, scale: float | None = None) -> Tensor:
    """Causal attention in query blocks, once differentiable.

    Parameters
    ----------
    query, key, value : Tensor, shape (..., T, D)
    scale : float, optional
        Multiplies the logits; 1 / sqrt(D) by default.

    Returns
    -------
    Tensor, shape (..., T, D)

    >>> q = torch.randn(2, 3, 40, 8)
    >>> expected = F.scaled_dot_product_attention(q, q, q, is_causal=True)
    >>> bool(torch.allclose(causal_attention(q, q, q), expected, atol=1e-5))
    True
    """
    if not query.shape == key.shape == value.shape or query.ndim < 2:
        raise ValueError(
            "query, key and value must have one shape (..., T, D), got "
            f"{tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
        )
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    folded = (x.reshape(-1, *query.shape[-2:]) for x in (query, key, value))
    return _CausalAttention.apply(*folded, scale)[0].view(query.shape)


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, scale: float | None = None
) -> Tensor:
    """Attention by the plain formula, (..., T, D) over (..., S, D), with a mask as in torch's own.

    >>> q, mask = torch.randn(2, 5, 8), torch.ones(5, 5, dtype=torch.bool).tril()
    >>> expected = F.scaled_dot_product_attention(q, q, q, attn_mask=mask)
    >>> bool(torch.allclose(masked_attention(q, q, q, mask), expected, atol=1e-5))
    True
    """
    scores = (query @ key.transpose(-2, -1)) * (1.0 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1) @ value


class SmallAttention(TorchFunctionMode):
    """While active, ``F.scaled_dot_product_attention`` runs by this file's functions where they are faster.

    That is: on a CPU, without dropout, at most :data:`LONGEST_CONTEXT` positions.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            found = _small(*args, **kwargs)
            if found is not None:
                return found
        return function(*args, **kwargs)


def _small(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    lengths = query.shape[-2], key.shape[-2]
    if (
        query.device.type != "cpu"
        or dropout_p
        or enable_gqa
        or max(lengths) > LONGEST_CONTEXT
        or query.ndim < 3
    ):
        return None
    if not is_causal:
        return masked_attention(query, key, value, attn_mask, scale=scale)
    if attn_mask is None and query.shape == key.shape == value.shape:
        return causal_attention(query, key, value, scale=scale)
    return None
