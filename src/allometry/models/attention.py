"""Causal self-attention: rotary positions, normalised queries and keys, sliding windows, a key-value cache.

Rotary positions: Su and others, 2021. arXiv:2104.09864. Normalised queries and keys: Henry and others, 2020.
arXiv:2010.04245; Dehghani and others, 2023. arXiv:2302.05442.

* Queries and keys are normalised over the head dimension *before* they are rotated, which commutes with the
  rotation and bounds every logit by ``gain * sqrt(head_size)``.
* The bound is what small heads pay for: with head size 16 and no gain, no logit can pass 4 and attention
  stays blurred. A gain, learned or fixed, gives the sharpness back.
* Shapes are written ``B`` batch, ``T`` positions, ``H`` heads, ``D`` head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rotation_table(positions: int, head_size: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, each of shape (positions, head_size / 2), float32.

    >>> cosine, sine = rotation_table(4, 8)
    >>> tuple(cosine.shape), bool(((cosine**2 + sine**2) - 1).abs().max() < 1e-6)
    ((4, 4), True)
    """
    if head_size % 2:
        raise ValueError(f"rotary positions turn pairs of numbers, so head_size must be even, got {head_size}")
    frequency = base ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * frequency
    return angle.cos().float(), angle.sin().float()


def rotary(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) by its position's angle.

    Parameters
    ----------
    x : Tensor, shape (..., T, D)
    cosine, sine : Tensor, shape (T, D / 2), or any shape that broadcasts against (..., T, D / 2)

    >>> x = torch.ones(1, 2, 4)
    >>> bool(torch.allclose(rotary(x, *rotation_table(2, 4)).norm(dim=-1), x.norm(dim=-1)))
    True
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


class KVCache:
    """Keys and values of the positions already read, one pair of tensors (B, H, context, D) a layer.

    Parameters
    ----------
    layers, batch, heads, context, head_size : int
        Room is taken once, for ``context`` positions; :meth:`append` raises when it is full.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int,
        context: int,
        head_size: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = (layers, 2, batch, heads, context, head_size)
        self._memory = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    @property
    def context(self) -> int:
        """How many positions fit."""
        return self._memory.shape[-2]

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, H, T, D) behind ``length`` and return all that this layer has seen.

        ``length`` moves on only by :meth:`advance`, once every layer has written.
        """
        end = self.length + key.shape[-2]
        if end > self.context:
            raise ValueError(f"the cache holds {self.context} positions and was asked for {end}")
        self._memory[layer, 0, :, :, self.length : end] = key
        self._memory[layer, 1, :, :, self.length : end] = value
        return self._memory[layer, 0, :, :, :end], self._memory[layer, 1, :, :, :end]

    def advance(self, positions: int) -> None:
        """Count ``positions`` more as read."""
        self.length += positions


def attention(query: Tensor, key: Tensor, value: Tensor, *, window: int | None = None) -> Tensor:
    """Causal attention of the last T positions over all S seen so far, logits divided by sqrt(D).

    Parameters
    ----------
    query : Tensor, shape (B, H, T, D)
    key, value : Tensor, shape (B, H, S, D), S >= T
        The queries stand at positions S - T ... S - 1.
    window : int, optional
        See only the last ``window`` positions, one's own included.

    Returns
    -------
    Tensor, shape (B, H, T, D)

    >>> q = torch.randn(1, 2, 5, 4)
    >>> bool(torch.allclose(attention(q, q, q)[:, :, 0], q[:, :, 0]))  # the first sees only itself
    True
    """
    length, seen = query.shape[-2], key.shape[-2]
    if length > seen:
        raise ValueError(f"{length} queries cannot look back on {seen} keys")
    if window is None and length == seen:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    if window is None and length == 1:
        return F.scaled_dot_product_attention(query, key, value)
    at = torch.arange(seen - length, seen, device=query.device)[:, None]
    past = torch.arange(seen, device=query.device)[None, :]
    visible = past <= at
    if window is not None:
        visible &= past > at - window
    return F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
