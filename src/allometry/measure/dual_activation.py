"""Expectations of products of an activation, and of its derivative, over two correlated Gaussians.

E[σ(g) σ(g')] and E[σ'(g) σ'(g')] are all that an infinitely wide layer does to a kernel. ReLU's are the
arc-cosine kernels of Cho and Saul (2009), erf's those of Williams (1997); the recursion that they enter is
that of Jacot, Gabriel and Hongler (2018, arXiv:1806.07572). Others are integrated by Gauss–Hermite
quadrature. There is no factor √2 in front of the ReLU.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Dual", "dual_activation", "gauss_hermite"]


class Dual(NamedTuple):
    """An activation and its expectations.

    Attributes
    ----------
    activation : callable
        Of a tensor, element by element.
    pair : callable
        Variances k11, k22 and covariance k12 to (E[σσ], E[σ'σ']).
    same : callable
        A variance to the two expectations at g = g'.
    """

    activation: Callable[[Tensor], Tensor]
    pair: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    same: Callable[[Tensor], tuple[Tensor, Tensor]]


def dual_activation(
    activation: str | Callable[[Tensor], Tensor], *, slope: float = 0.01, nodes: int = 60
) -> Dual:
    """The expectations of an activation.

    Parameters
    ----------
    activation : str or callable
        ``"relu"``, ``"leaky_relu"``, ``"erf"`` or ``"identity"`` in closed form; ``"tanh"``, ``"gelu"``,
        ``"silu"``, ``"sigmoid"``, or any function of a tensor that acts element by element and that autograd
        can derive, by quadrature.
    slope : float
        Of the leaky ReLU on the negative side.
    nodes : int
        Of the quadrature, along each of two dimensions.

    Raises
    ------
    ValueError
        An unknown name.

    Examples
    --------
    >>> one = torch.ones((), dtype=torch.float64)
    >>> [round(float(e), 4) for e in dual_activation("relu").pair(one, one, 0 * one)]
    [0.1592, 0.25]
    """
    if callable(activation):
        return gauss_hermite(activation, nodes)
    if activation == "identity":
        return Dual(lambda x: x, lambda a, b, c: (c, torch.ones_like(c)), lambda k: (k, torch.ones_like(k)))
    if activation == "relu":
        return Dual(torch.relu, functools.partial(_leaky, 0.0), functools.partial(_leaky_same, 0.0))
    if activation == "leaky_relu":
        return Dual(functools.partial(F.leaky_relu, negative_slope=slope),
                    functools.partial(_leaky, slope), functools.partial(_leaky_same, slope))  # fmt: skip
    if activation == "erf":
        return Dual(torch.erf, _erf, lambda k: _erf(k, k, k))
    if activation in _INTEGRATED:
        return gauss_hermite(_INTEGRATED[activation], nodes)
    known = ("relu", "leaky_relu", "erf", "identity", *_INTEGRATED)
    raise ValueError(f"activations are {', '.join(known)} or a function; got {activation!r}")


_INTEGRATED: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
}


def _leaky(slope: float, k11: Tensor, k22: Tensor, k12: Tensor) -> tuple[Tensor, Tensor]:
    """slope · z + (1 − slope) · relu(z), whose mixed terms are E[z relu(z')] = k12 / 2."""
    scale = (k11 * k22).sqrt()
    cosine = (k12 / scale.clamp_min(torch.finfo(scale.dtype).tiny)).clamp(-1, 1)
    angle = cosine.arccos()
    rest = (1 - slope) ** 2
    relu = scale * (angle.sin() + (math.pi - angle) * cosine) / (2 * math.pi)
    derivative = (math.pi - angle) / (2 * math.pi)
    return (slope**2 + slope * (1 - slope)) * k12 + rest * relu, slope + rest * derivative


def _leaky_same(slope: float, k: Tensor) -> tuple[Tensor, Tensor]:
    half = (1 + slope**2) / 2
    return half * k, torch.full_like(k, half)


def _erf(k11: Tensor, k22: Tensor, k12: Tensor) -> tuple[Tensor, Tensor]:
    wide = (1 + 2 * k11) * (1 + 2 * k22)
    value = 2 / math.pi * (2 * k12 / wide.sqrt()).arcsin()
    return value, 4 / math.pi / (wide - 4 * k12**2).sqrt()


def gauss_hermite(activation: Callable[[Tensor], Tensor], nodes: int = 60) -> Dual:
    """Expectations by quadrature over whitened pairs: to rounding for smooth functions, 1e-3 at a kink.

    Examples
    --------
    >>> one = torch.ones(1, dtype=torch.float64)
    >>> found, _ = gauss_hermite(torch.erf).pair(one, one, one / 2)
    >>> bool(torch.allclose(found, 2 / math.pi * torch.asin(one / 3)))
    True
    """
    places, weights = (torch.as_tensor(one) for one in np.polynomial.hermite_e.hermegauss(nodes))
    weights = weights / math.sqrt(2 * math.pi)

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            value = activation(leaf)
            (slope,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), slope

    def same(k: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = both(k.sqrt()[..., None] * places)
        return (value**2) @ weights, (slope**2) @ weights

    def pair(k11: Tensor, k22: Tensor, k12: Tensor) -> tuple[Tensor, Tensor]:
        k11, k22, k12 = torch.broadcast_tensors(k11, k22, k12)
        found = [torch.empty(k12.numel(), dtype=k12.dtype) for _ in range(2)]
        flat = [one.reshape(-1) for one in (k11, k22, k12)]
        step = max(1, 4_000_000 // nodes**2)
        for low in range(0, k12.numel(), step):
            a, b, c = (one[low : low + step] for one in flat)
            left = both(a.sqrt()[:, None] * places)  # (pairs, u)
            cosine = (c / (a * b).sqrt().clamp_min(torch.finfo(c.dtype).tiny)).clamp(-1, 1)[:, None, None]
            mixed = cosine * places[:, None] + (1 - cosine**2).sqrt() * places  # (pairs, u, v)
            right = both(b.sqrt()[:, None, None] * mixed)
            for out, ours, theirs in zip(found, left, right, strict=True):
                out[low : low + step] = ((theirs @ weights) * ours) @ weights
        return found[0].reshape(k12.shape), found[1].reshape(k12.shape)

    return Dual(activation, pair, same)
