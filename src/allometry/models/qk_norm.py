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

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from allometry.models.gpt import GPT, Attention
from allometry.models.kernels import RMSNorm
from allometry.models.multihead import OpenMultiheadAttention, open_attention_

Norm = Literal["layernorm", "rmsnorm"]
_EPSILON = 1e-6
_PAIRS = (("q_proj", "k_proj"), ("query", "key"), ("q", "k"), ("to_q", "to_k"), ("q_lin", "k_lin"))
_FUSED = ("c_attn", "qkv")  # queries, keys and values one after another
_SIZES = ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size")
_COUNTS = ("num_heads", "n_head", "n_heads", "num_attention_heads", "heads")


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


def add_qk_norm_(
    model: nn.Module,
    norm: Norm = "layernorm",
    *,
    projections: Sequence[str] | None = None,
    head_size: int | None = None,
) -> nn.Module:
    """Normalise queries and keys of every attention module over the head, in place.

    Call it on a new model, before its optimizer is made: the norms bring parameters, and a model that was
    trained without them computes another function with them. Whether it was trained cannot be seen from
    here, so nothing warns.

    Parameters
    ----------
    model : nn.Module
        :class:`allometry.models.GPT` without ``qk_norm``; torch's ``nn.MultiheadAttention``, which is opened
        for it (:func:`open_attention_`); or modules with projections of queries and of keys as Llama,
        BERT, T5 and ``diffusers`` name them (``q_proj`` and ``k_proj``, ``query`` and ``key``, ``q`` and
        ``k``, ``to_q`` and ``to_k``, ``q_lin`` and ``k_lin``), or with one of queries, keys and values one
        after another (``c_attn``, ``qkv``), that say how large a head is or how many there are.
    norm : "layernorm" or "rmsnorm"
        With a learned scale that starts at 1, shared by the heads, and no bias. On a ``GPT``, "rmsnorm" turns
        its own switch on, ``qk_norm="learned"`` with a gain a head that starts at 1, and says so in its
        config; with "layernorm" the config cannot say it, nor count its 2 x D parameters a layer.
    projections : sequence of str, optional
        In modules that name them otherwise: the two names of the projections of queries and of keys, or one
        of a projection of queries, keys and values side by side.
    head_size : int, optional
        D, where a module does not tell it.

    Returns
    -------
    nn.Module
        The model. Wrapped projections are found one name deeper, ``q_proj.projection``.

    Raises
    ------
    ValueError
        If there is nothing to normalise, it is normalised already, a projection's output is no multiple of
        the head's size, or for another norm.

    Examples
    --------
    >>> from allometry.models import GPTConfig
    >>> model = add_qk_norm_(GPT(GPTConfig(width=32, depth=1, qk_norm=None)))
    >>> model.blocks[0].attention.qkv.norms[0].weight.shape
    torch.Size([16])
    """
    if norm not in ("layernorm", "rmsnorm"):
        raise ValueError(f"norm must be 'layernorm' or 'rmsnorm', got {norm!r}")
    if projections is not None and (isinstance(projections, str) or len(projections) not in (1, 2)):
        raise ValueError(
            f"projections are the names of queries' and keys', or of one that holds both; got {projections!r}"
        )
    sites = {
        name: (module, found)
        for name, module in model.named_modules()
        if (found := _projections(module, projections, head_size)) is not None
    }
    if not sites:
        raise ValueError(
            f"{type(model).__name__} has no module with "
            + (" and ".join(projections) if projections else "q_proj, k_proj or their like")
            + " and a known size of heads to put norms into; name its projections= and head_size="
        )
    for name, (module, (names, size)) in sites.items():
        if _is_normalized(module, names):
            raise ValueError(f"queries and keys of {name or 'the model'} are normalised already")
        for one in names:
            width, parts = _width(getattr(module, one)), 3 if len(names) == 1 else 1
            if width is not None and width % (parts * size):
                raise ValueError(
                    f"{one} of {name or 'the model'} gives {width} numbers, no {parts} x heads of {size}"
                )
    for module, (names, size) in sites.values():
        _normalize(module, norm, names, size)
    for module in model.modules():
        if isinstance(module, GPT) and norm == "rmsnorm":
            module.config = replace(module.config, qk_norm="learned", qk_gain=1.0)
    return model


def _projections(
    module: nn.Module, projections: Sequence[str] | None, head_size: int | None
) -> tuple[tuple[str, ...], int] | None:
    """Names of a module's projections and the size of a head; no names where it has a way of its own."""
    if projections is None and isinstance(module, Attention):
        return (), module.head_size
    if projections is None and isinstance(module, nn.MultiheadAttention):
        return (), int(module.head_dim)
    known = [tuple(projections)] if projections is not None else [*_PAIRS, *((one,) for one in _FUSED)]
    for names in known:
        parts = [getattr(module, name, None) for name in names]
        if not all(isinstance(part, nn.Module) for part in parts):
            continue
        if len(names) == 1 and getattr(module, "is_cross_attention", False):
            continue
        size = head_size or _head_size(module, _width(parts[0]), 3 if len(names) == 1 else 1)
        if size is not None:
            return names, size
    return None


def _width(projection: Any) -> int | None:
    """How many numbers a linear layer gives, or transformers' Conv1D."""
    inner = projection.projection if isinstance(projection, NormalizedHeads) else projection
    found = getattr(inner, "out_features", getattr(inner, "nf", None))
    return found if isinstance(found, int) else None


def _head_size(module: nn.Module, width: int | None, parts: int) -> int | None:
    for name in _SIZES:
        if isinstance(getattr(module, name, None), int):
            return int(getattr(module, name))
    for name in _COUNTS:
        count = getattr(module, name, None)
        if isinstance(count, int) and width is not None and width % (parts * count) == 0:
            return width // parts // count
    return None


def _is_normalized(module: nn.Module, names: tuple[str, ...]) -> bool:
    if isinstance(module, Attention) and module.qk_norm is not None:
        return True
    if isinstance(module, OpenMultiheadAttention) and module.query_norm is not None:
        return True
    wrapped = any(isinstance(getattr(module, name, None), NormalizedHeads) for name in (*names, "qkv"))
    return wrapped or any(isinstance(getattr(module, name, None), nn.Module) for name in ("q_norm", "norm_q"))


def _normalize(module: nn.Module, norm: Norm, names: tuple[str, ...], size: int) -> None:
    if isinstance(module, Attention) and not names:
        if norm == "rmsnorm":
            module.gain = nn.Parameter(module.qkv.weight.new_ones(module.heads))
            module.qk_norm = "learned"
        else:
            _wrap(module, "qkv", norm, size, parts=3)
    elif isinstance(module, nn.MultiheadAttention) and not names:
        open_attention_(module)
        assert isinstance(module, OpenMultiheadAttention)
        weight = module.out_proj.weight
        module.query_norm, module.key_norm = (_fresh(norm, size, weight) for _ in range(2))
    else:
        for name in names:
            _wrap(module, name, norm, size, parts=3 if len(names) == 1 else 1)


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
