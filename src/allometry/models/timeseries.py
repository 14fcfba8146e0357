"""A patch transformer that forecasts time series: encoder with masked patches, or decoder of the next patch.

Yao, Yang, Jiang, Liang, Jin and Pan, 2024, arXiv:2410.12360. Shapes are ``B`` sequences, ``T`` patches,
``P`` values a patch, ``D`` width.

* A linear map of each patch to D; pre-norm layers of attention (queries and keys normalised a head, half of
  each head rotated) and SwiGLU; a linear map to a distribution for each value.
* *Encoder*: patches to be foretold are replaced by one learned vector, and all see all; position t tells of
  patch t. *Decoder*: each patch sees those before it; position t tells of patch t + 1.
* Every sequence is standardised by the values that are observed and not to be foretold, so the forecast of
  ``a x + b`` is ``a * forecast + b`` and its negative log likelihood moves by log a. A gap is filled after
  this, with the mean, so that it counts as nothing known; the paper's code fills it with zero before, which
  would make the forecast depend on where zero lies.
* Several series may be packed in one sequence, told apart by ``sample_id``.
* Sizes count the transformer's stack alone: at the smallest sizes the maps in and out hold more.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution

from allometry.models.attention import rotary, rotation_table
from allometry.models.forecast_heads import get_head
from allometry.models.start import start_

__all__ = ["PatchForecaster", "feed_forward_width", "stack_parameters", "standardise"]

HEAD_SIZE = 64


def feed_forward_width(d_model: int) -> int:
    """Hidden width of the SwiGLU: two thirds of 4 D, up to a multiple of eight.

    >>> feed_forward_width(8), feed_forward_width(192)
    (24, 512)
    """
    return 8 * math.ceil((8 * d_model // 3) / 8)


def stack_parameters(d_model: int, layers: int) -> int:
    """Parameters of the layers and the last norm: what the paper calls N, the same for both kinds.

    >>> stack_parameters(8, 1), stack_parameters(64, 2), stack_parameters(192, 4)
    (872, 100928, 1771712)
    """
    head = _head_size(d_model)
    layer = 4 * d_model**2 + 3 * d_model * feed_forward_width(d_model) + 2 * d_model + 2 * head
    return layers * layer + d_model


def standardise(
    target: Tensor, known: Tensor, sample_id: Tensor | None = None, *, epsilon: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the known values of each sample.

    Parameters
    ----------
    target : Tensor, shape (B, T, P)
        May hold anything where it is not known.
    known : bool Tensor, shape (B, T, P)
    sample_id : integer Tensor, shape (B, T), optional
        Which series a patch belongs to; by default a row is one series.
    epsilon : float
        Added to the variance, in squared units of the data.

    Returns
    -------
    shift, scale : Tensor, shape (B, 1, 1), or (B, T, 1) with ``sample_id``
        The variance divides by one less than the number known. With fewer than two values known the scale is
        one, with none the shift is zero.

    Examples
    --------
    >>> x = torch.tensor([[[1.0, 2.0], [3.0, float("nan")]]])
    >>> shift, scale = standardise(x, ~x.isnan(), epsilon=0.0)
    >>> shift.item(), scale.item()
    (2.0, 1.0)
    """
    x = torch.where(known, target, 0.0)
    weight = known.to(x.dtype)

    def total(value: Tensor) -> Tensor:
        each = value.sum(-1, keepdim=True)  # (B, T, 1)
        if sample_id is None:
            return each.sum(1, keepdim=True)
        same = (sample_id[:, :, None] == sample_id[:, None, :]).to(each.dtype)
        return same @ each

    count = total(weight)
    shift = total(x) / count.clamp_min(1.0)
    square = total(weight * (x - shift) ** 2)
    scale = torch.sqrt(square / (count - 1.0).clamp_min(1.0) + epsilon)
    return shift, torch.where(count < 2.0, 1.0, scale)


class _Layer(nn.Module):
    """Attention and SwiGLU, each behind a norm and added to what came in."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        size, hidden = _head_size(d_model), feed_forward_width(d_model)
        self.head_size = size
        self.attention_norm = nn.RMSNorm(d_model, eps=1e-6)
        self.query_key_value = nn.Linear(d_model, 3 * d_model, bias=False)
        self.query_norm = nn.RMSNorm(size, eps=1e-6)
        self.key_norm = nn.RMSNorm(size, eps=1e-6)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.feed_norm = nn.RMSNorm(d_model, eps=1e-6)
        self.gate_up = nn.Linear(d_model, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, d_model, bias=False)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], causal: bool, seen: Tensor | None) -> Tensor:
        heads = self.query_key_value(self.attention_norm(x)).unflatten(-1, (3, -1, self.head_size))
        query, key, value = heads.transpose(1, 3).unbind(2)  # each (B, H, T, head size)
        query, key = rotary(self.query_norm(query), *turn), rotary(self.key_norm(key), *turn)
        if seen is None:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.feed_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class PatchForecaster(nn.Module):
    """A forecaster of patches of P values.

    Parameters
    ----------
    patch : int
        P.
    d_model : int
        D: a multiple of 64, or below 64 a multiple of four, which then is one head.
    layers : int
    kind : {"encoder", "decoder"}
    head : {"student_t_mixture", "gaussian"}
    max_patches : int
        Longest sequence, packed series together.
    epsilon : float
        Added to the variance by which a sequence is standardised, in squared units of the data; it keeps
        constant sequences from being divided by zero, and is the one thing that knows the data's unit.
    generator : torch.Generator, optional
        For the initial values; see `allometry.models.start`.

    Raises
    ------
    ValueError
        A size that has no such network, or an unknown kind or head.

    Examples
    --------
    >>> model = PatchForecaster(patch=8, d_model=16, layers=1)
    >>> x, hidden = torch.randn(2, 5, 8), torch.tensor([[False] * 4 + [True]] * 2)
    >>> model(x, torch.ones_like(x, dtype=torch.bool), hidden).batch_shape
    torch.Size([2, 5, 8])
    """

    cosine: Tensor
    sine: Tensor

    def __init__(
        self,
        patch: int = 32,
        d_model: int = 64,
        layers: int = 2,
        *,
        kind: str = "encoder",
        head: str = "student_t_mixture",
        max_patches: int = 512,
        epsilon: float = 1e-5,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if kind not in ("encoder", "decoder"):
            raise ValueError(f"kind is 'encoder' or 'decoder', not {kind!r}")
        for name, number in (("patch", patch), ("layers", layers), ("max_patches", max_patches)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if not epsilon >= 0:
            raise ValueError(f"epsilon must not be negative, got {epsilon}")
        size = _head_size(d_model)
        self.patch, self.kind, self.max_patches, self.epsilon = patch, kind, max_patches, float(epsilon)
        self.head = get_head(head)
        with torch.device("meta"):
            self.embed = nn.Linear(patch, d_model)
            if (
                kind == "encoder"
            ):  # the learned vector, as a map of one number, so that it starts as others do
                self.hidden = nn.Linear(1, d_model, bias=False)
            self.layers = nn.ModuleList(_Layer(d_model) for _ in range(layers))
            self.norm = nn.RMSNorm(d_model, eps=1e-6)
            self.out = nn.Linear(d_model, patch * self.head.width)
        start_(self, generator)
        # Pair (i, i + size/2) turns for i below size/4 and stands still above: half of each head is rotated,
        # and which half is a matter of the order of the learned maps' rows.
        cosine, sine = (part.chunk(2, -1)[1] for part in rotation_table(max_patches, size // 2))
        still = torch.zeros_like(sine)
        self.register_buffer("cosine", torch.cat((cosine, still + 1, cosine, still + 1), -1), False)
        self.register_buffer("sine", torch.cat((-sine, still, sine, still), -1), False)
        self.to(self.norm.weight.device)

    def forward(
        self, target: Tensor, observed: Tensor, pred_mask: Tensor, sample_id: Tensor | None = None
    ) -> Distribution:
        """The distribution of every value, in the units of the data.

        Parameters
        ----------
        target : Tensor, shape (B, T, P)
            Anything, such as NaN, where not observed.
        observed : bool Tensor, shape (B, T, P)
        pred_mask : bool Tensor, shape (B, T)
            Patches to be foretold: kept out of the statistics and, in an encoder, out of sight.
        sample_id : integer Tensor, shape (B, T), optional
            Patches see, and are standardised by, those of one number.

        Returns
        -------
        torch.distributions.Distribution
            Batch shape (B, T, P). In a decoder position t tells of patch t + 1.
        """
        self._check(target, observed, pred_mask, sample_id)
        known = observed & ~pred_mask[..., None]
        shift, scale = standardise(target, known, sample_id, epsilon=self.epsilon)
        scaled = torch.where(observed, (target - shift) / scale, 0.0)
        return self.head.distribution(self.network(scaled, pred_mask, sample_id), shift, scale)

    def network(
        self, scaled: Tensor, hidden: Tensor, sample_id: Tensor | None = None, *, last: int | None = None
    ) -> Tensor:
        """Numbers for the head.

        Parameters
        ----------
        scaled : Tensor, shape (B, T, P)
            Standardised values without gaps.
        hidden : bool Tensor, shape (B, T)
            Patches that an encoder does not see; a decoder has no use for it.
        sample_id : integer Tensor, shape (B, T), optional
        last : int, optional
            Only for the last positions; by default for all.

        Returns
        -------
        Tensor, shape (B, last, P, K)
        """
        length, causal = scaled.shape[1], self.kind == "decoder"
        x = self.embed(scaled)
        if not causal:
            x = torch.where(hidden[..., None], self.hidden.weight[:, 0], x)
        seen = None
        if sample_id is not None:
            seen = sample_id[:, None, :, None] == sample_id[:, None, None, :]  # (B, 1, T, T)
            if causal:
                seen = seen & torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        turn = self.cosine[:length], self.sine[:length]
        for layer in self.layers:
            x = layer(x, turn, causal, seen)
        if last is not None:
            x = x[:, length - last :]
        return self.out(self.norm(x)).unflatten(-1, (self.patch, self.head.width))

    def _check(self, target: Tensor, observed: Tensor, pred_mask: Tensor, sample_id: Tensor | None) -> None:
        if target.ndim != 3 or target.shape[-1] != self.patch:
            raise ValueError(
                f"target must be (batch, patches, {self.patch}); its shape is {tuple(target.shape)}"
            )
        if target.shape[1] > self.max_patches:
            raise ValueError(f"{target.shape[1]} patches are more than the {self.max_patches} of max_patches")
        if observed.shape != target.shape or observed.dtype != torch.bool:
            raise ValueError(
                f"observed must be boolean of the target's shape {tuple(target.shape)}, not "
                f"{observed.dtype} of {tuple(observed.shape)}"
            )
        if pred_mask.shape != target.shape[:2] or pred_mask.dtype != torch.bool:
            raise ValueError(
                f"pred_mask must be boolean of shape {tuple(target.shape[:2])}, not "
                f"{pred_mask.dtype} of {tuple(pred_mask.shape)}"
            )
        if sample_id is not None and sample_id.shape != target.shape[:2]:
            raise ValueError(
                f"sample_id must have the shape {tuple(target.shape[:2])}, not {tuple(sample_id.shape)}"
            )


def _head_size(d_model: int) -> int:
    if d_model < 4 or d_model % (HEAD_SIZE if d_model > HEAD_SIZE else 4):
        raise ValueError(
            f"d_model is a multiple of {HEAD_SIZE}, or below it a multiple of 4; got {d_model}: "
            "heads are rotated in quarters"
        )
    return min(d_model, HEAD_SIZE)
