"""Normalised queries and keys, added to a model that has none.

Henry and others, 2020. arXiv:2010.04245; Dehghani and others, 2023. arXiv:2302.05442; as a cure for growing
attention logits at small scale, Wortsman and others, 2023. arXiv:2309.14322.

* The norm is over the head dimension, after the projection and before positions turn queries and keys. A
  normalised vector of D numbers has length at most √D, so a logit of qᵀk / √D is at most √D |γ_q| |γ_k|, with
  γ the largest learned scale, whatever the projections grow to.
* Attention no longer depends on the size of the projections: c W_q for any c > 0 is the same model.
* The norm's own scale is learned and can grow in their stead: watch it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from allometry.models.gpt import GPT, Attention
from allometry.models.kernels import RMSNorm
from allometry.models.multihead import OpenMultiheadAttention, open_attention_

Norm = Literal["layernorm", "rmsnorm"]
_EPSILON = 1e-6


class NormalizedHeads(nn.Module):
    """A projection whose output is cut into parts and heads, some of them normalised.

    Parameters
    ----------
    projection : nn.Module
        From (..., W) to (..., parts x H x D), the parts one after another.
    norms : sequence of nn.Module or None
        Over D, one a part; None leaves a part as it is.
    head_size : int
        D.

    >>> heads = NormalizedHeads(nn.Linear(6, 8), [RMSNorm(4)], 4)
    >>> heads(torch.randn(2, 6)).unflatten(-1, (2, 4)).square().mean(-1).round(decimals=3).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """

    def __init__(self, projection: nn.Module, norms: list[nn.Module | None], head_size: int) -> None:
        super().__init__()
        self.projection, self.head_size = projection, head_size
        self.norms = nn.ModuleList(nn.Identity() if norm is None else norm for norm in norms)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.projection(x).chunk(len(self.norms), -1)
        done = [
            part
            if isinstance(norm, nn.Identity)
            else norm(part.unflatten(-1, (-1, self.head_size))).flatten(-2)
            for part, norm in zip(parts, self.norms, strict=True)
        ]
        return done[0] if len(done) == 1 else torch.cat(done, -1)


def add_qk_norm_(model: nn.Module, norm: Norm = "layernorm") -> nn.Module:
    """Normalise queries and keys of every attention module over the head, in place.

    Call it on a new model, before its optimizer is made: the norms bring parameters, and a model that was
    trained without them computes another function with them. Whether it was trained cannot be seen from
    here, so nothing warns.

    Parameters
    ----------
    model : nn.Module
        :class:`allometry.models.GPT` without ``qk_norm``; or a model with modules that have ``q_proj``,
        ``k_proj`` and ``head_dim`` (Llama and its kin in ``transformers``), a ``c_attn`` of queries, keys
        and values side by side (GPT-2), or torch's ``nn.MultiheadAttention``, which is opened for it
        (:func:`open_attention_`).
    norm : "layernorm" or "rmsnorm"
        With a learned scale that starts at 1, shared by the heads, and no bias. On a ``GPT``, "rmsnorm" turns
        its own switch on, ``qk_norm="learned"`` with a gain a head that starts at 1, and says so in its
        config; with "layernorm" the config cannot say it, nor count its 2 x D parameters a layer.

    Returns
    -------
    nn.Module
        The model. Wrapped projections are found one name deeper, ``q_proj.projection``.

    Raises
    ------
    ValueError
        If there is nothing to normalise, it is normalised already, or for another norm.

    Examples
    --------
    >>> from allometry.models import GPTConfig
    >>> model = add_qk_norm_(GPT(GPTConfig(width=32, depth=1, qk_norm=None)))
    >>> model.blocks[0].attention.qkv.norms[0].weight.shape
    torch.Size([16])
    """
    if norm not in ("layernorm", "rmsnorm"):
        raise ValueError(f"norm must be 'layernorm' or 'rmsnorm', got {norm!r}")
    sites = [(name, module) for name, module in model.named_modules() if _is_attention(module)]
    if not sites:
        raise ValueError(
            f"{type(model).__name__} has no module with q_proj, k_proj and head_dim, with a c_attn of "
            "queries, keys and values, or nn.MultiheadAttention, to put norms into"
        )
    for name, module in sites:
        if _is_normalized(module):
            raise ValueError(f"queries and keys of {name or 'the model'} are normalised already")
    for _, module in sites:
        _normalize(module, norm)
    for module in model.modules():
        if isinstance(module, GPT) and norm == "rmsnorm":
            module.config = replace(module.config, qk_norm="learned", qk_gain=1.0)
    return model


def _is_attention(module: nn.Module) -> bool:
    if isinstance(module, Attention | nn.MultiheadAttention):
        return True
    if not isinstance(getattr(module, "head_dim", None), int):
        return False
    projections = all(isinstance(getattr(module, name, None), nn.Module) for name in ("q_proj", "k_proj"))
    fused = isinstance(getattr(module, "c_attn", None), nn.Module)
    return projections or (fused and not getattr(module, "is_cross_attention", False))


def _is_normalized(module: nn.Module) -> bool:
    if isinstance(module, Attention) and module.qk_norm is not None:
        return True
    if isinstance(module, OpenMultiheadAttention) and module.query_norm is not None:
        return True
    wrapped = any(
        isinstance(getattr(module, name, None), NormalizedHeads) for name in ("qkv", "q_proj", "c_attn")
    )
    return wrapped or isinstance(getattr(module, "q_norm", None), nn.Module)


def _normalize(module: nn.Module, norm: Norm) -> None:
    if isinstance(module, Attention):
        if norm == "rmsnorm":
            module.gain = nn.Parameter(module.qkv.weight.new_ones(module.heads))
            module.qk_norm = "learned"
        else:
            _wrap(module, "qkv", norm, module.head_size, parts=3)
    elif isinstance(module, nn.MultiheadAttention):
        open_attention_(module)
        assert isinstance(module, OpenMultiheadAttention)
        weight, size = module.out_proj.weight, int(module.head_dim)
        module.query_norm, module.key_norm = (_fresh(norm, size, weight) for _ in range(2))
    elif hasattr(module, "q_proj"):
        for name in ("q_proj", "k_proj"):
            _wrap(module, name, norm, int(module.head_dim), parts=1)  # type: ignore[arg-type]
    else:
        _wrap(module, "c_attn", norm, int(module.head_dim), parts=3)  # type: ignore[arg-type]


def _wrap(module: nn.Module, name: str, norm: Norm, size: int, *, parts: int) -> None:
    projection = getattr(module, name)
    weight = next(projection.parameters())
    norms: list[nn.Module | None] = [_fresh(norm, size, weight) for _ in range(min(parts, 2))]
    setattr(module, name, NormalizedHeads(projection, norms + [None] * (parts - len(norms)), size))


def _fresh(norm: Norm, size: int, weight: Tensor) -> nn.Module:
    """A norm with the place and kind of a projection's weight."""
    with torch.device(weight.device):
        made: nn.Module = (
            nn.LayerNorm(size, eps=_EPSILON, bias=False)
            if norm == "layernorm"
            else RMSNorm(size, eps=_EPSILON)
        )
    return made.to(weight.dtype if weight.is_floating_point() else torch.float32)
