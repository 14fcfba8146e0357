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
    """Cosines and signed sines of the rotary angles, each of shape (positions, head_size), float32.

    Dimension i is paired with i + head_size / 2. The sines of the first half carry the minus sign of the
    rotation, so that :func:`rotary` is two products over contiguous memory.

    >>> cosine, sine = rotation_table(4, 8)
    >>> tuple(cosine.shape), bool(((cosine**2 + sine**2) - 1).abs().max() < 1e-6)
    ((4, 8), True)
    """
    if head_size % 2:
        raise ValueError(f"rotary positions turn pairs of numbers: head_size must be even, got {head_size}")
    frequency = base ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * frequency
    cosine, sine = angle.cos(), angle.sin()
    return torch.cat((cosine, cosine), dim=-1).float(), torch.cat((-sine, sine), dim=-1).float()


def rotary(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) by its position's angle.

    Parameters
    ----------
    x : Tensor, shape (..., T, D)
    cosine, sine : Tensor, shape (T, D)
        From :func:`rotation_table`.

    >>> x = torch.ones(1, 2, 4)
    >>> bool(torch.allclose(rotary(x, *rotation_table(2, 4)).norm(dim=-1), x.norm(dim=-1)))
    True
    """
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((second, first), dim=-1) * sine


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
        if key.shape[:2] != self._memory.shape[2:4] or key.shape != value.shape:
            raise ValueError(
                f"the cache holds (batch, heads) {tuple(self._memory.shape[2:4])} and was given keys "
                f"{tuple(key.shape)} and values {tuple(value.shape)}"
            )
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
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1 position, the query's own, got {window}")
    if window is not None and window >= seen:
        window = None  # it hides nothing, and without a mask the fast kernels apply
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
