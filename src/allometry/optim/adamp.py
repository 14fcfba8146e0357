"""AdamP and SGDP: momentum without the part that only lengthens a weight whose length does not matter.

Heo, Chun, Oh, Han, Yun, Kim, Uh, Ha, "AdamP: Slowing Down the Slowdown for Momentum Optimizers on
Scale-invariant Weights", 2020, arXiv:2006.08217.  A weight that is followed by a normalization has a
direction alone, so its effective step is the step over its squared length.  Gradients are orthogonal to
such a weight and lengthen it slowly; momentum, whose old steps are not orthogonal any more, lengthens it up
to ``1 + 2 beta / (1 - beta)`` times faster (section 2), and the effective step decays too early.  The
remedy takes the radial part off the step (equation 10), where a cosine test finds that the weight is
scale-invariant (equation 11):

    |cos(g_r, w_r)| < delta / sqrt(d)   for all rows r, of the channel view or else of the whole tensor.

- The test reads the raw gradient and the weight before the step; the buffers of momentum stay as they are
  (algorithm 1).  The authors' code of SGDP without Nesterov projects the buffer too, where it steps in place.
- Decay is decoupled, and ``wd_ratio`` of it is left where a step was projected.  SGDP's is divided by
  ``1 - momentum``, as in the authors' code, so that it matches what coupled decay comes to.
- Tensors of one shape are stacked and stepped as one, decisions stay masks: no loop over rows, no wait for
  a device.
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["PROJECTIONS", "SGDP", "AdamP"]

PROJECTIONS = ("auto", "channel", "layer", "off")
_FUSED = ("cpu", "cuda")  # where torch has Adam's step in one kernel
_TOGETHER = 1 << 17  # numbers stepped as one: beyond, copies and fresh memory cost more than calls do


def radial_part(
    step: Tensor, weight: Tensor, gradient: Tensor, *, projection: str, delta: float, eps: float
) -> tuple[Tensor, Tensor]:
    """How much of ``weight`` is in ``step``, where the weight is scale-invariant; 0 where it is not.

    Parameters
    ----------
    step, weight, gradient : Tensor (k, r, ...)
        Of k tensors of r rows.
    projection : str
        One of `PROJECTIONS`: test, or take the view for granted.
    delta, eps : float

    Returns
    -------
    share : Tensor (k, r)
        ``step - share * weight`` has no radial part left.
    projected : Tensor of bool (k, 1)
        Which of the k are found scale-invariant.
    """
    k, rows = weight.shape[:2]
    size = weight[0, 0].numel()
    inner = tuple(range(2, weight.dim()))
    length = torch.linalg.vector_norm(weight, dim=inner)  # (k, r)
    total = torch.linalg.vector_norm(length, dim=-1, keepdim=True)
    if projection == "auto":
        slope = torch.linalg.vector_norm(gradient, dim=inner)
        along = _dot(gradient, weight, inner)
        cosine = along.abs().div_(slope.clamp(min=eps).mul_(length.clamp(min=eps)))
        channel = cosine.amax(dim=-1, keepdim=True) < delta / math.sqrt(size)
        whole = torch.linalg.vector_norm(slope, dim=-1, keepdim=True)
        cosine = along.sum(dim=-1, keepdim=True).abs_().div_(whole.clamp_(min=eps).mul_(total.clamp(min=eps)))
        projected = (cosine < delta / math.sqrt(rows * size)).logical_or_(channel)
    else:
        channel = torch.full((k, 1), projection == "channel", dtype=torch.bool, device=weight.device)
        projected = torch.ones_like(channel)
    radial = _dot(weight, step, inner)
    by_layer = radial.sum(dim=-1, keepdim=True).div_(total.add_(eps).square_())
    share = torch.where(channel, radial.div_(length.add_(eps).square_()), by_layer)
    return share.mul_(projected), projected


def _dot(a: Tensor, b: Tensor, inner: tuple[int, ...]) -> Tensor:
    return torch.linalg.vecdot(a, b) if len(inner) == 1 else (a * b).sum(dim=inner)


Member = tuple[Tensor, Tensor, dict[str, Any]]  # a parameter, its gradient and its state


class _Projected(torch.optim.Optimizer):
    """What AdamP and SGDP share: tensors of one shape as one, the test, and the door."""

    _buffers: tuple[str, ...]  # names of the state that has the parameter's shape

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        for name in ("lr", "weight_decay", "wd_ratio", "eps"):
            if not 0.0 <= defaults[name] < math.inf:
                raise ValueError(f"{name} must not be negative, and finite; got {defaults[name]!r}")
        if math.isnan(defaults["delta"]):
            raise ValueError("delta must be a number; got nan")
        self._places: dict[Any, Tensor] = {}
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """From a copy, or from a state that may be ``torch.optim``'s: what is not told is as it was made."""
        super().__setstate__(state)
        self._places = {}
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; ``projection`` and ``channel_dim`` may differ between groups."""
        projection = param_group.get("projection", self.defaults["projection"])
        if projection not in PROJECTIONS:
            raise ValueError(f"projection must be one of {', '.join(PROJECTIONS)}; got {projection!r}")
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for parameter in group["params"]:
            if hasattr(parameter, "placements") or getattr(parameter, "_is_flat_param", False):
                raise ValueError(
                    "projection needs whole tensors, and these are shards (FSDP); take torch.optim's there"
                )
        wide = (one[0].numel() for one in group["params"] if one.dim() > 1 and one.numel())
        if projection == "auto" and group["delta"] >= math.sqrt(min(wide, default=math.inf)):
            warnings.warn(
                f"delta={group['delta']} is no threshold for rows this short: every one of them passes the "
                "test, and is projected", RuntimeWarning, stacklevel=3,
            )  # fmt: skip

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; ``closure`` re-evaluates the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for members in self._alike(group):
                self._step_alike(group, members)
        return loss

    def _alike(self, group: dict[str, Any]) -> Iterator[list[Member]]:
        """Parameters that can be stepped as one: of one shape, type, place and age."""
        buckets: dict[Any, list[Member]] = {}
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None or not parameter.numel():
                continue
            if gradient.layout is not torch.strided:
                raise RuntimeError(f"{type(self).__name__} takes dense gradients; use torch.optim.SparseAdam")
            state = self.state[parameter]
            state["step"] = age = int(state.get("step", 0)) + 1
            kind = (parameter.shape, parameter.dtype, parameter.device, age)
            member = (parameter, gradient, state)
            if kind in buckets:
                buckets[kind].append(member)
            else:
                buckets[kind] = [member]
        for members in buckets.values():
            count = 1 if group["foreach"] is False else max(1, _TOGETHER // max(1, members[0][0].numel()))
            for start in range(0, len(members), count):
                yield members[start : start + count]

    def _step_alike(self, group: dict[str, Any], members: list[Member]) -> None:
        place = group["channel_dim"]
        parameters = [parameter for parameter, _, _ in members]
        weights = self._together("weight", parameters)
        gradients = self._together("gradient", [gradient for _, gradient, _ in members])
        weight, gradient = _rows_first(weights, place), _rows_first(gradients, place)
        buffers = {name: _rows_first(self._buffer(name, members), place) for name in self._buffers}
        if group["maximize"]:
            gradient = -gradient
        step, rate = self._direction(group, gradient, buffers, members[0][2]["step"])
        decay = self._decay(group) / rate if rate else 0.0  # as a share of the weight in the step
        if group["projection"] != "off" and parameters[0].dim() > 1 and group["delta"] > 0:
            share, projected = radial_part(
                step, weight, gradient, projection=group["projection"], delta=group["delta"], eps=group["eps"]
            )
            less = projected.to(weight.dtype).mul_(decay * (1.0 - group["wd_ratio"])) if decay else 0.0
            change = (decay - less - share).view(*share.shape, *(1 for _ in weight.shape[2:]))
            step = torch.addcmul(step, weight, change, out=self._place("step", step))
        elif decay:
            step = torch.add(step, weight, alpha=decay)
        if len(members) == 1 and parameters[0].is_contiguous():  # the weight is the parameter itself
            weight.add_(step, alpha=-rate)
            return
        step = _as_stacked(step, weights, place)
        places = parameters
        if parameters[0].is_complex():
            places, step = [torch.view_as_real(one) for one in parameters], step.unflatten(-1, (-1, 2))
            step = step.view(len(places), *places[0].shape)
        torch._foreach_add_(places, list(step.unbind()), alpha=-rate)

    def _together(self, name: str, tensors: list[Tensor]) -> Tensor:
        """Tensors of one shape as one (k, ...), contiguous: torch's kernel for Adam walks memory, not places.

        Of a single one it is its own memory if that is contiguous, else a place kept for it.
        """
        real = [_real(one) for one in tensors] if tensors[0].is_complex() else tensors
        if len(real) == 1 and real[0].is_contiguous():
            return real[0].unsqueeze(0)
        return torch.stack(real, out=self._place(name, real[0], len(real)))

    def _place(self, name: str, like: Tensor, *lead: int) -> Tensor:
        """Memory (*lead, ...) kept from step to step: fresh memory costs as much as a pass over it."""
        shape = torch.Size((*lead, *like.shape))
        key = (name, like.dtype, like.device)
        if key not in self._places or self._places[key].numel() < shape.numel():
            self._places[key] = like.new_empty(shape.numel())
        return self._places[key][: shape.numel()].view(shape)

    def _buffer(self, name: str, members: list[Member]) -> Tensor:
        """State of parameters as one (k, ...) of which theirs are slices, so that it is never copied."""
        held = [state.get(name) for _, _, state in members]
        whole = _whole(held)
        if whole is None:  # at the first step, and after a state was loaded
            whole = torch.stack([
                torch.zeros_like(parameter) if old is None else old
                for (parameter, _, _), old in zip(members, held, strict=True)
            ]).contiguous()  # fmt: skip
            for (_, _, state), part in zip(members, whole.unbind(), strict=True):
                state[name] = part
        return _real(whole)

    @abstractmethod
    def _direction(
        self, group: dict[str, Any], gradient: Tensor, buffers: dict[str, Tensor], age: int
    ) -> tuple[Tensor, float]:
        """The step (k, r, d), which may be a buffer, and its multiplier; buffers change in place."""

    @abstractmethod
    def _decay(self, group: dict[str, Any]) -> float:
        """Share of a weight that decays in one step where nothing is projected."""


class AdamP(_Projected):
    """AdamW whose steps lose their radial part where weights are scale-invariant.

    Parameters
    ----------
    params : iterable of Tensor or of groups
    lr, betas, eps, weight_decay : float
        As in ``torch.optim.AdamW``.
    delta : float
        Threshold of the test; 0 and below never project.
    wd_ratio : float
        Share of the decay that is left to projected weights.
    nesterov : bool
    projection : {"auto", "channel", "layer", "off"}
        The test, or a view that is declared: weights known to be invariant by row, or as a whole, or not.
    channel_dim : int
        Dimension of a tensor that holds its output channels; 1 for transposed convolutions, and for the
        ``Conv1D`` of transformers' GPT-2, whose weights are (in, out).
    foreach : bool, optional
        False steps tensor by tensor; by default small tensors of one shape are stepped as one.
    maximize : bool

    Raises
    ------
    ValueError
        A rate, decay or threshold is out of range, or parameters are shards.

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    >>> optimizer = AdamP([weight], lr=0.1, projection="layer")
    >>> weight.grad = torch.tensor([[-4.0, 3.0]])  # orthogonal, and Adam's step is (-1, 1): partly radial
    >>> optimizer.step()
    >>> (weight - torch.tensor([[3.0, 4.0]])).flatten() @ torch.tensor([3.0, 4.0]) < 1e-6
    tensor(True)
    """

    _buffers = ("exp_avg", "exp_avg_sq")

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float
        = 1e-8, weight_decay: float = 0.0, delta: float = 0.1, wd_ratio: float = 0.1, nesterov: bool =
        False, *, projection: str = "auto", channel_dim: int = 0, foreach: bool | None = None, maximize:
        bool = False,
    ) -> None:  # fmt: skip
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be two, from 0 to below 1; got {betas!r}")
        super().__init__(params, {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "delta": delta,
            "wd_ratio": wd_ratio, "nesterov": nesterov, "projection": projection,
            "channel_dim": channel_dim, "foreach": foreach, "maximize": maximize,
        })  # fmt: skip

    def _direction(
        self, group: dict[str, Any], gradient: Tensor, buffers: dict[str, Tensor], age: int
    ) -> tuple[Tensor, float]:
        first, second = group["betas"]
        mean, square = buffers["exp_avg"], buffers["exp_avg_sq"]
        if not group["nesterov"] and gradient.device.type in _FUSED:
            held = gradient.is_contiguous()
            step = self._place("step", gradient).zero_() if held else torch.zeros_like(gradient)
            # less Adam's step of rate one, in a single pass over memory
            torch._fused_adam_(
                [step], [gradient], [mean], [square], [], [torch.full((), age, dtype=torch.float32,
                device=step.device)], lr=1.0, beta1=first, beta2=second, weight_decay=0.0, eps=group["eps"],
                amsgrad=False, maximize=False,
            )  # fmt: skip
            return step, -group["lr"]
        mean.lerp_(gradient, 1.0 - first)
        square.mul_(second).addcmul_(gradient, gradient, value=1.0 - second)
        scale = square.sqrt().div_(math.sqrt(1.0 - second**age)).add_(group["eps"])
        ahead = mean.lerp(gradient, 1.0 - first) if group["nesterov"] else mean
        return torch.div(ahead, scale, out=scale), group["lr"] / (1.0 - first**age)

    def _decay(self, group: dict[str, Any]) -> float:
        return float(group["lr"] * group["weight_decay"])


class SGDP(_Projected):
    """SGD with momentum whose steps lose their radial part where weights are scale-invariant.

    Parameters
    ----------
    params : iterable of Tensor or of groups
    lr, momentum, dampening, nesterov
        As in ``torch.optim.SGD``.
    weight_decay : float
        Decoupled: a step takes ``lr * weight_decay / (1 - momentum)`` off a weight.
    eps : float
        Added to norms.
    delta, wd_ratio, projection, channel_dim, foreach, maximize
        As in `AdamP`.

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    >>> optimizer = SGDP([weight], lr=0.1, momentum=0.9, projection="layer")
    >>> weight.grad = torch.tensor([[3.0, 4.0]])  # all radial: nothing is left
    >>> optimizer.step()
    >>> weight.tolist()
    [[3.0, 4.0]]
    """

    _buffers = ("momentum_buffer",)

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, momentum: float = 0.0, dampening: float = 0.0,
        weight_decay: float = 0.0, nesterov: bool = False, eps: float = 1e-8, delta: float = 0.1,
        wd_ratio: float = 0.1, *, projection: str = "auto", channel_dim: int = 0, foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:  # fmt: skip
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be from 0 to below 1; got {momentum!r}")
        super().__init__(params, {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay, "eps": eps,
            "nesterov": nesterov, "delta": delta, "wd_ratio": wd_ratio, "projection": projection,
            "channel_dim": channel_dim, "foreach": foreach, "maximize": maximize,
        })  # fmt: skip

    def _direction(
        self, group: dict[str, Any], gradient: Tensor, buffers: dict[str, Tensor], age: int
    ) -> tuple[Tensor, float]:
        buffer = buffers["momentum_buffer"]
        if group["dampening"]:
            buffer.mul_(group["momentum"]).add_(gradient, alpha=1.0 - group["dampening"])
        else:
            torch.add(gradient, buffer, alpha=group["momentum"], out=buffer)
        step = torch.add(gradient, buffer, alpha=group["momentum"]) if group["nesterov"] else buffer
        return step, group["lr"]

    def _decay(self, group: dict[str, Any]) -> float:
        return float(group["lr"] * group["weight_decay"] / (1.0 - group["momentum"]))


# --- shapes -------------------------------------------------------------------------------------------------
def _rows_first(tensors: Tensor, channel_dim: int) -> Tensor:
    """(k, ...) as a view (k, rows, ...) that is flat inside wherever memory allows; one row for a vector."""
    if tensors.dim() < 3:
        return tensors.view(tensors.shape[0], 1, -1)
    if not -tensors.dim() < channel_dim < tensors.dim() - 1:
        shape = tuple(tensors.shape[1:])
        raise ValueError(f"channel_dim {channel_dim} is not a dimension of a tensor of shape {shape}")
    if channel_dim != 0:
        tensors = tensors.movedim(1 + channel_dim % (tensors.dim() - 1), 1)
    if tensors.dim() > 3 and tensors.is_contiguous():
        return tensors.flatten(2)
    return tensors


def _as_stacked(step: Tensor, weights: Tensor, channel_dim: int) -> Tensor:
    """Back from `_rows_first` to the shape of ``weights`` (k, ...)."""
    if weights.dim() > 2 and channel_dim != 0:
        step = step.movedim(1, 1 + channel_dim % (weights.dim() - 1))
    return step.reshape(weights.shape)


def _whole(slices: list[Any]) -> Tensor | None:
    """The tensor (k, ...) of which these are the slices in order; None if they are not."""
    first = slices[0]
    if first is None or not first.is_contiguous():
        return None
    if len(slices) == 1:
        return first.unsqueeze(0)
    stride, start = first.numel(), first.data_ptr()
    size = stride * first.element_size()
    if any(
        one is None or one.data_ptr() != place
        for one, place in zip(slices, range(start, start + len(slices) * size, size), strict=True)
    ):
        return None
    end = (first.storage_offset() + len(slices) * stride) * first.element_size()
    if end > first.untyped_storage().nbytes():  # neighbours by chance, of memories of their own
        return None
    return first.as_strided((len(slices), *first.shape), (stride, *first.stride()))


def _real(tensor: Tensor) -> Tensor:
    """Complex numbers (..., n) as pairs of real ones (..., 2 n)."""
    if not tensor.is_complex():
        return tensor
    pairs = torch.view_as_real(tensor.resolve_conj())
    return pairs.flatten(-2) if pairs.dim() > 1 else pairs
