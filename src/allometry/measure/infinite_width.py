"""Kernels of infinitely wide networks in closed form: at initialization, and under gradient descent.

Arthur Jacot, Franck Gabriel and Clément Hongler, 2018, arXiv:1806.07572; convolutions after Arora et al.
(2019, arXiv:1904.11955). A layer is f = σ_w W α / √fan_in + β b with all entries of W and b standard normal.

- Σ (nngp) is the covariance of the outputs over initializations, Θ (ntk) the tangent kernel:
  Σ' = σ_w² E[σσ] + β² and Θ' = σ_w² Θ E[σ'σ'] + Σ', with the expectations under Σ, not under Σ'.
- Every pair of samples stands alone, given each sample's own variances; pairs run in blocks, half of them
  where x is compared with itself. Variances are propagated apart, so that c = 1 on the diagonal exactly.
- Convolutions keep a covariance for each pair of places if they end in an average over places, and for each
  place if they do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from allometry.measure.dual_activation import Dual, dual_activation

__all__ = ["Architecture", "InfiniteKernels", "analytic_kernels"]


@dataclass(frozen=True)
class Architecture:
    """A stack of layers in the neural-tangent parametrization.

    Parameters
    ----------
    depth : int
        Weight layers L, the readout among them; so L − 1 activations.
    activation : str or callable
        See `dual_activation`. There is no √2: pass ``weight_std=2**0.5`` for He's scale.
    weight_std, bias_std : float
        σ_w and β, the paper's 0.1.
    slope : float
        Of ``"leaky_relu"``.
    residual : bool
        Whether each hidden layer from the second on adds what it was given before its activation.
    kernel_size : odd int, optional
        Makes the hidden layers convolutions over one or two dimensions, zero-padded to the same size.
    pooling : "flatten" or "average"
        How a convolutional stack ends before its readout.
    readout_bias : bool

    Raises
    ------
    ValueError
        Values that make no network.

    Examples
    --------
    >>> Architecture(depth=4, activation="erf").bias_std
    0.1
    """

    depth: int = 3
    activation: str | Callable[[Tensor], Tensor] = "relu"
    weight_std: float = 1.0
    bias_std: float = 0.1
    slope: float = 0.01
    residual: bool = False
    kernel_size: int | None = None
    pooling: Literal["flatten", "average"] = "flatten"
    readout_bias: bool = True

    def __post_init__(self) -> None:
        if self.depth < 1 or (self.kernel_size is not None and self.depth < 2):
            raise ValueError(f"depth counts weight layers, 1 or more (2 with convolutions); got {self.depth}")
        if not self.weight_std > 0 or not self.bias_std >= 0:
            raise ValueError(
                "weight_std must be above 0 and bias_std at least 0; "
                f"got {self.weight_std!r} and {self.bias_std!r}"
            )
        if self.kernel_size is not None and (self.kernel_size < 1 or self.kernel_size % 2 == 0):
            raise ValueError(f"kernel_size must be odd; got {self.kernel_size}")
        if self.pooling not in ("flatten", "average"):
            raise ValueError(f"pooling is 'flatten' or 'average'; got {self.pooling!r}")
        self.dual()

    def dual(self) -> Dual:
        """The activation and its expectations."""
        return dual_activation(self.activation, slope=self.slope)


class InfiniteKernels(NamedTuple):
    """Covariance of outputs at initialization and tangent kernel, each (N, M) in float64."""

    nngp: Tensor
    ntk: Tensor


def analytic_kernels(
    x: Tensor, z: Tensor | None = None, architecture: Architecture | None = None
) -> InfiniteKernels:
    """Σ and Θ of an infinitely wide network, equal for all its outputs.

    Parameters
    ----------
    x, z : Tensor, shape (N, n0), or (N, C, T) or (N, C, H, W) with ``kernel_size``
        By default z is x.
    architecture : Architecture
        By default ``Architecture()``.

    Returns
    -------
    InfiniteKernels
        ``nngp`` and ``ntk``, (N, M), float64.

    Raises
    ------
    ValueError
        Shapes that do not fit each other or the architecture, or values that are not finite.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> analytic_kernels(x, architecture=Architecture(depth=1, bias_std=0.0)).ntk
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]], dtype=torch.float64)
    """
    architecture = architecture or Architecture()
    _refuse(x, z, architecture)
    x = x.detach().double()
    other = x if z is None else z.detach().double()
    n, m = len(x), len(other)
    device = x.device
    if z is None:
        rows, columns = torch.triu_indices(n, n, device=device)
    else:
        rows, columns = torch.cartesian_prod(torch.arange(n), torch.arange(m)).to(device).unbind(1)
    geometry = _Geometry(architecture, x)
    ours = geometry.variances(x)
    theirs = ours if z is None else geometry.variances(other)
    found = torch.empty(2, n, m, dtype=torch.float64, device=device)
    step = max(1, int(2**22 // geometry.entries))
    for i, j in zip(rows.split(step), columns.split(step), strict=True):
        pair = geometry.pairs(
            x, other, i, j, ours, theirs, (i == j) if z is None else torch.zeros_like(i == j)
        )
        found[:, i, j] = pair
        if z is None:
            found[:, j, i] = pair
    return InfiniteKernels(found[0], found[1])


def _refuse(x: Tensor, z: Tensor | None, architecture: Architecture) -> None:
    dims = (2,) if architecture.kernel_size is None else (3, 4)
    for one in (x,) if z is None else (x, z):
        if one.ndim not in dims or not all(one.shape):
            raise ValueError(
                f"inputs are (samples, features), or (samples, channels, places...) with kernel_size; got "
                f"{tuple(one.shape)} for kernel_size={architecture.kernel_size}"
            )
        if not bool(torch.isfinite(one).all()):
            raise ValueError("inputs hold values that are not finite")
        if one.shape[1:] != x.shape[1:]:
            raise ValueError(f"samples of x and z differ in shape: {tuple(x.shape)} and {tuple(one.shape)}")


class _Geometry:
    """What a layer averages over: nothing in dense stacks, neighbouring places in convolutional ones."""

    def __init__(self, architecture: Architecture, x: Tensor) -> None:
        self.architecture, self.dual = architecture, architecture.dual()
        self.places = tuple(x.shape[2:])
        self.joint = bool(self.places) and architecture.pooling == "average"
        self.entries = math.prod(self.places) ** (2 if self.joint else 1)

    def variances(self, x: Tensor) -> list[Tensor]:
        """Before each activation, of each sample and place: (N, P)."""
        a, found = self.architecture, []
        own = (x**2).mean(1).reshape(len(x), -1)
        before = torch.zeros_like(own)
        for layer in range(1, a.depth):
            if layer > 1:
                own = self.dual.same(before)[0]
            new = a.weight_std**2 * self.mixed(own, False) + a.bias_std**2
            before = before + new if a.residual and layer > 1 else new
            found.append(before)
        return found

    def pairs(
        self,
        x: Tensor,
        z: Tensor,
        i: Tensor,
        j: Tensor,
        ours: list[Tensor],
        theirs: list[Tensor],
        same: Tensor,
    ) -> Tensor:
        """Both kernels of a block of pairs, (2, pairs)."""
        a = self.architecture
        left, right = x[i].reshape(len(i), x.shape[1], -1), z[j].reshape(len(j), x.shape[1], -1)
        if self.joint:
            cross = (torch.einsum("ncp,ncq->npq", left, right) / left.shape[1]).flatten(1)
        else:
            cross = (left * right).mean(1)
        weight, bias = a.weight_std**2, a.bias_std**2
        last_bias = bias if a.readout_bias else 0.0
        sigma = weight * self.mixed(cross, self.joint) + (last_bias if a.depth == 1 else bias)
        theta = sigma
        for layer in range(1, a.depth):
            value, slope = self.expectations(sigma, ours[layer - 1][i], theirs[layer - 1][j], same)
            last = layer == a.depth - 1
            if last:
                new = weight * value.mean(1, keepdim=True) + last_bias
                theta = weight * (theta * slope).mean(1, keepdim=True) + new
                sigma = new
            else:
                new = weight * self.mixed(value, self.joint) + bias
                moved = weight * self.mixed(theta * slope, self.joint) + new
                sigma, theta = (sigma + new, theta + moved) if a.residual else (new, moved)
        return torch.stack([sigma[:, 0], theta[:, 0]])

    def expectations(self, sigma: Tensor, own: Tensor, other: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
        """E[σσ] and E[σ'σ'] of pairs (pairs, P) or (pairs, P P); a sample with itself is told exactly."""
        exact = self.dual.same(own[same])
        if self.joint:
            own = own[:, :, None].expand(-1, -1, other.shape[1]).flatten(1)
            other = other[:, None].expand(-1, math.isqrt(self.entries), -1).flatten(1)
        found = self.dual.pair(own, other, sigma)
        if bool(same.any()):
            step = math.isqrt(self.entries) + 1 if self.joint else 1
            for one, right in zip(found, exact, strict=True):
                one[torch.nonzero(same), torch.arange(0, one.shape[1], step, device=one.device)] = right
        return found

    def mixed(self, values: Tensor, joint: bool) -> Tensor:
        """What a convolution makes of covariances: their mean over the kernel's shifts, zero outside."""
        size = self.architecture.kernel_size
        if size is None or size == 1:
            return values
        dims, half = len(self.places), size // 2
        if not joint:
            pool = F.avg_pool1d if dims == 1 else F.avg_pool2d
            wide = pool(values.reshape(-1, 1, *self.places), size, 1, half, count_include_pad=True)
            return wide.reshape(values.shape)
        wide = values.reshape(-1, *self.places, *self.places)
        for first in range(1, dims + 1):  # both members of a pair are shifted together
            second, length = first + dims, self.places[first - 1]
            total = torch.zeros_like(wide)
            for shift in range(-half, half + 1):
                if abs(shift) >= length:
                    continue
                low, count = max(0, -shift), length - abs(shift)
                source = wide.narrow(first, low + shift, count).narrow(second, low + shift, count)
                total.narrow(first, low, count).narrow(second, low, count).add_(source)
            wide = total / size
        return wide.reshape(values.shape)
