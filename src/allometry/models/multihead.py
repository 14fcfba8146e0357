"""``nn.MultiheadAttention`` opened: the same weights and answers, in the open, with norms if wanted.

Torch's own module hands everything to one function, in which neither queries nor keys can be normalised.
Opened, it calls ``scaled_dot_product_attention`` itself, as other models do, so that
:func:`allometry.models.add_qk_norm_` can reach them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allometry.measure.attention_logits import merged_mask

__all__ = ["OpenMultiheadAttention", "open_attention_"]


def open_attention_(model: nn.Module) -> nn.Module:
    """Open every ``nn.MultiheadAttention`` of a model, in place; nothing that it computes changes.

    Parameters
    ----------
    model : nn.Module
        Names, weights and ``state_dict`` stay. Torch's fused path of ``nn.TransformerEncoderLayer`` in
        evaluation, which would go around the module, is no longer taken.

    Returns
    -------
    nn.Module
        The same model.

    Raises
    ------
    ValueError
        If there is none, or one has ``bias_k``, ``bias_v`` or ``add_zero_attn``.

    Examples
    --------
    >>> layer = open_attention_(nn.TransformerEncoderLayer(8, 2, dropout=0.0, batch_first=True))
    >>> type(layer.self_attn).__name__, layer(torch.ones(1, 3, 8)).shape
    ('OpenMultiheadAttention', torch.Size([1, 3, 8]))
    """
    found = [one for one in model.modules() if type(one) is nn.MultiheadAttention]
    if not found and not any(isinstance(one, OpenMultiheadAttention) for one in model.modules()):
        raise ValueError(f"{type(model).__name__} has no nn.MultiheadAttention to open")
    for one in found:
        if one.bias_k is not None or one.bias_v is not None or one.add_zero_attn:
            raise ValueError("nn.MultiheadAttention with bias_k, bias_v or add_zero_attn cannot be opened")
    for one in found:
        one.__class__ = OpenMultiheadAttention
        one._qkv_same_embed_dim = False  # what torch's fused path of a whole layer asks for
        for name in ("query_norm", "key_norm"):
            one.register_module(name, None)
    return model


class OpenMultiheadAttention(nn.MultiheadAttention):
    """Made by :func:`open_attention_`.

    Attributes
    ----------
    query_norm, key_norm : nn.Module or None
        Over the head dimension, between projection and kernel.
    """

    query_norm: nn.Module | None
    key_norm: nn.Module | None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention``; weights are those before dropout."""
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is a hint about attn_mask, which is missing; give both")
        single = query.ndim == 2
        if single:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), *self._projections(), strict=True)
        )
        if self.query_norm is not None:
            q = self.query_norm(q)
        if self.key_norm is not None:
            k = self.key_norm(k)
        mask = merged_mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        out = self.out_proj(mixed.transpose(1, 2).flatten(-2))
        weights: Tensor | None = None
        if need_weights:
            logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
            weights = torch.softmax(logits if mask is None else logits + mask, -1)
            weights = weights.mean(1) if average_attn_weights else weights
        if single:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _projections(self) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        if self.in_proj_weight is not None:
            return self.in_proj_weight.chunk(3), biases
        return (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight), biases
