"""Batch norms over ghost batches: a large batch is normalised as the small batches that it is made of.

Hoffer, Hubara and Soudry, 2017. arXiv:1705.08741 (algorithm 1).  Statistics of a few dozen samples are
noisy, and that noise regularizes; a batch of thousands has none.  Here the batch is cut into ghosts of
``ghost_batch_size`` samples, each normalised by its own mean and variance, and the running statistics take
in all ghosts, one after the other, as so many small batches would have been:

    r <- (1 - m)^k r + sum_i (1 - m)^(k - i) m s_i        (k ghosts, momentum m, statistic s_i of ghost i).

- All ghosts are normalised at once, by one call of the fused batch norm with ghosts as further channels.
- A last ghost that is smaller than half the size joins its neighbour; else it is one of its own. So a
  batch of less than one and a half ghosts is one, and meets ``nn.BatchNorm``.
- In evaluation it is ``nn.BatchNorm``, with the same state, so models convert in both directions.
"""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["GhostBatchNorm", "GhostBatchNorm1d", "GhostBatchNorm2d", "GhostBatchNorm3d", "convert_ghost_bn_"]


class GhostBatchNorm(_BatchNorm):
    """Batch norm over ghost batches of any inputs (B, C, ...).

    Parameters
    ----------
    num_features : int
        C.
    ghost_batch_size : int
        Samples a ghost.
    eps, momentum, affine, track_running_stats
        As in ``nn.BatchNorm1d``; ``momentum=None`` is a cumulative average over ghosts.

    Raises
    ------
    ValueError
        A ghost would hold one value a channel, in training.

    Examples
    --------
    >>> norm = GhostBatchNorm(3, ghost_batch_size=2)
    >>> x = torch.arange(12.0).view(4, 3)
    >>> norm(x)[:, 0].detach().round(decimals=3).tolist()
    [-1.0, 1.0, -1.0, 1.0]
    """

    _dims: tuple[int, ...] | None = None

    def __init__(
        self, num_features: int, ghost_batch_size: int = 128, eps: float = 1e-5, momentum: float | None = 0.1,
        affine: bool = True, track_running_stats: bool = True, device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        if ghost_batch_size < 1:
            raise ValueError(f"ghost_batch_size must be at least one sample, not {ghost_batch_size}")
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.ghost_batch_size = int(ghost_batch_size)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ghost_batch_size={self.ghost_batch_size}"

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2 or (self._dims is not None and input.dim() not in self._dims):
            wanted = "2 or more" if self._dims is None else " or ".join(map(str, self._dims))
            raise ValueError(
                f"expected an input of {wanted} dimensions, got one of shape {tuple(input.shape)}"
            )

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        size = self.ghost_batch_size
        whole, rest = divmod(len(input), size)
        if whole and 0 < 2 * rest < size:  # too small for statistics of its own: it joins its neighbour
            whole, rest = whole - 1, rest + size
        if not self.training or whole + bool(rest) == 1:
            return super().forward(input)
        parts = [(input[: whole * size], whole)] + ([(input[whole * size :], 1)] if rest else [])
        return torch.cat([self._ghosts(part, ghosts) for part, ghosts in parts])

    def _ghosts(self, input: Tensor, ghosts: int) -> Tensor:
        """Ghosts of one size (k * n, C, ...), each by its own statistics."""
        samples, channels = len(input) // ghosts, input.shape[1]
        if samples * input[0, 0].numel() < 2:
            raise ValueError(
                f"a ghost of {samples} sample has one value a channel, of which there is no variance; use "
                "larger ghosts"
            )
        # ghosts become channels, (n, k * C, ...): one fused call then normalises each by itself
        split = input.view(ghosts, samples, *input.shape[1:]).transpose(0, 1)
        split = split.reshape(samples, ghosts * channels, *input.shape[2:])
        mean = variance = weight = bias = None
        if self.affine:
            weight, bias = self.weight.repeat(ghosts), self.bias.repeat(ghosts)
        if self.track_running_stats:  # with a momentum of one, what the call leaves behind are the statistics
            like = cast(Tensor, self.running_mean)
            mean, variance = (like.new_zeros(ghosts * channels) for _ in range(2))
        out = F.batch_norm(split, mean, variance, weight, bias, True, 1.0, self.eps)
        if mean is not None and variance is not None:
            self._take_in(mean.view(ghosts, channels), variance.view(ghosts, channels))
        return out.reshape(samples, ghosts, *input.shape[1:]).transpose(0, 1).reshape(input.shape)

    @torch.no_grad()
    def _take_in(self, mean: Tensor, variance: Tensor) -> None:
        """Let the running statistics take in those of ghosts (k, C), in their order."""
        ghosts = len(mean)
        seen = cast(Tensor, self.num_batches_tracked)
        if self.momentum is None:  # the cumulative average
            before = float(seen)
            kept, shares = before / (before + ghosts), mean.new_full((ghosts,), 1.0 / (before + ghosts))
        else:
            ages = torch.arange(ghosts - 1, -1, -1, device=mean.device, dtype=torch.float64)
            shares = (self.momentum * (1.0 - self.momentum) ** ages).to(mean.dtype)
            kept = (1.0 - self.momentum) ** ghosts
        seen.add_(ghosts)
        for running, found in ((self.running_mean, mean), (self.running_var, variance)):
            cast(Tensor, running).mul_(kept).add_((shares @ found).to(cast(Tensor, running).dtype))


class GhostBatchNorm1d(GhostBatchNorm):
    """`GhostBatchNorm` of (B, C) or (B, C, L)."""

    _dims = (2, 3)


class GhostBatchNorm2d(GhostBatchNorm):
    """`GhostBatchNorm` of (B, C, H, W)."""

    _dims = (4,)


class GhostBatchNorm3d(GhostBatchNorm):
    """`GhostBatchNorm` of (B, C, D, H, W)."""

    _dims = (5,)


_GHOSTS: dict[type[nn.Module], type[GhostBatchNorm]] = {
    nn.BatchNorm1d: GhostBatchNorm1d, nn.BatchNorm2d: GhostBatchNorm2d, nn.BatchNorm3d: GhostBatchNorm3d,
}  # fmt: skip


def convert_ghost_bn_(model: nn.Module, ghost_batch_size: int = 128) -> nn.Module:
    """Make every batch norm of a model one over ghosts, in place; weights and running statistics stay.

    Norms that are over ghosts already take the new size. The running statistics of a model that was trained
    with large batches are those of large batches: let a few batches through in training mode before it is
    used.

    Parameters
    ----------
    model : nn.Module
    ghost_batch_size : int

    Returns
    -------
    nn.Module
        The model; a new norm where the model itself is a batch norm.

    Warns
    -----
    RuntimeWarning
        Nothing was converted, or batch norms of another kind stay as they are: ``SyncBatchNorm``, which is
        over all processes by intent (with plain ones instead, every process is a ghost), and others' own.

    Raises
    ------
    ValueError
        A size that is not positive.

    Examples
    --------
    >>> model = convert_ghost_bn_(nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)), 16)
    >>> model[1].ghost_batch_size
    16
    """
    if ghost_batch_size < 1:
        raise ValueError(f"ghost_batch_size must be at least one sample, not {ghost_batch_size}")
    made: dict[nn.Module, nn.Module] = {}  # a norm that stands in several places stays one

    def changed(one: nn.Module) -> nn.Module:
        if isinstance(one, GhostBatchNorm):
            one.ghost_batch_size = int(ghost_batch_size)
        elif type(one) in _GHOSTS and one not in made:
            made[one] = _converted(cast(_BatchNorm, one), _GHOSTS[type(one)], ghost_batch_size)
        return made.get(one, one)

    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # with the names of one module, all of them
            if child is not None:
                setattr(parent, name, changed(child))
    model = changed(model)
    norms = {name: one for name, one in model.named_modules() if isinstance(one, _BatchNorm)}
    left = [
        f"{name} ({type(one).__name__})" for name, one in norms.items() if not isinstance(one, GhostBatchNorm)
    ]
    if left or not norms:
        told = f"these batch norms stay as they are: {', '.join(left)}" if left else "there is no batch norm"
        warnings.warn(f"{told} in {type(model).__name__}", RuntimeWarning, stacklevel=2)
    return model


def _converted(norm: _BatchNorm, kind: type[GhostBatchNorm], size: int) -> GhostBatchNorm:
    where = next(
        (value for value in (*norm.parameters(), *norm.buffers()) if value.is_floating_point()), None
    )
    made = kind(
        norm.num_features, size, norm.eps, norm.momentum, norm.affine, norm.track_running_stats,
        device=None if where is None else where.device, dtype=None if where is None else where.dtype,
    )  # fmt: skip
    if norm.affine:
        made.weight, made.bias = norm.weight, norm.bias  # the same parameters: optimizers keep theirs
    for name, value in norm.named_buffers(recurse=False):
        setattr(made, name, value)
    return made.train(norm.training)
