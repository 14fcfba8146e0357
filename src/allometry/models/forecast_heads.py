"""Heads of a forecaster: from numbers a network gives to a distribution of each future value.

The mixture of four Student's t is that of Yao and others, 2024, arXiv:2410.12360 (after Moirai, Woo and
others, 2024, arXiv:2402.02592, which mixes unlike families): degrees of freedom 2 + softplus, so that every
component has a variance; location free; scale by softplus; weights by softmax.

* A head is a layout of numbers and a density, without parameters of its own: the network's last layer is one
  linear map to all that it needs.
* The log density is written out, in one logsumexp, because training spends most of its time there and
  ``torch.distributions`` checks its arguments anew at every call; `Head.distribution` gives the
  ``torch.distributions`` object, which answers the same.
* Samples are drawn from a generator that one names; torch's distributions know only the global one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily, Normal, StudentT

__all__ = ["GaussianHead", "Head", "StudentTMixtureHead", "get_head"]

_LEAST_SCALE = 1e-4  # of a component, in units of the context's standard deviation


class Head(ABC):
    """A density of one value from ``width`` numbers.

    Attributes
    ----------
    width : int
        Numbers a value, K.
    """

    width: int

    @abstractmethod
    def log_prob(self, raw: Tensor, value: Tensor) -> Tensor:
        """Log density (...) of standardised values (...) under numbers (..., K)."""

    @abstractmethod
    def distribution(self, raw: Tensor, shift: Tensor, scale: Tensor) -> Distribution:
        """The distribution of ``shift + scale * standardised value``, of batch shape (...).

        Parameters
        ----------
        raw : Tensor, shape (..., K)
        shift, scale : Tensor
            Of a shape that broadcasts to (...).
        """

    @abstractmethod
    def sample(self, raw: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Standardised samples (count, ...) from a generator."""


class StudentTMixtureHead(Head):
    """A mixture of Student's t.

    Parameters
    ----------
    components : int

    Examples
    --------
    >>> head = StudentTMixtureHead(2)
    >>> told = head.distribution(torch.zeros(5, head.width), torch.zeros(5), torch.ones(5))
    >>> bool(torch.allclose(told.log_prob(torch.ones(5)), head.log_prob(torch.zeros(5, 8), torch.ones(5))))
    True
    """

    def __init__(self, components: int = 4) -> None:
        if components < 1:
            raise ValueError(f"a mixture needs at least one component, got {components}")
        self.components, self.width = components, 4 * components

    def _parameters(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log weights, not normalised, degrees of freedom, locations and scales, each (..., components)."""
        weights, degrees, location, scale = raw.unflatten(-1, (4, self.components)).unbind(-2)
        return weights, 2.0 + F.softplus(degrees), location, F.softplus(scale).clamp_min(_LEAST_SCALE)

    def log_prob(self, raw: Tensor, value: Tensor) -> Tensor:
        weights, degrees, location, scale = self._parameters(raw)
        half = 0.5 * degrees
        z = (value[..., None] - location) / scale
        each = (
            torch.lgamma(half + 0.5) - torch.lgamma(half) - 0.5 * torch.log(math.pi * degrees)
            - torch.log(scale) - (half + 0.5) * torch.log1p(z * z / degrees)
        )  # fmt: skip
        return torch.logsumexp(weights + each, -1) - torch.logsumexp(weights, -1)

    def distribution(self, raw: Tensor, shift: Tensor, scale: Tensor) -> Distribution:
        weights, degrees, location, spread = self._parameters(raw)
        shift, scale = shift[..., None], scale[..., None]  # a t moved and stretched is a t
        return MixtureSameFamily(
            Categorical(logits=weights), StudentT(degrees, shift + scale * location, scale * spread)
        )

    def sample(self, raw: Tensor, count: int, generator: torch.Generator) -> Tensor:
        weights, degrees, location, scale = self._parameters(raw)
        flat = weights.reshape(-1, self.components).softmax(-1)
        chosen = torch.multinomial(flat, count, replacement=True, generator=generator)  # (values, count)
        degrees, location, scale = (
            part.reshape(-1, self.components).gather(1, chosen) for part in (degrees, location, scale)
        )
        normal = torch.randn(location.shape, generator=generator, dtype=raw.dtype, device=raw.device)
        chi2 = 2.0 * torch._standard_gamma(0.5 * degrees, generator=generator)
        drawn = location + scale * normal * torch.sqrt(degrees / chi2)
        return drawn.T.reshape(count, *raw.shape[:-1])


class GaussianHead(Head):
    """One normal distribution: location, and scale by softplus.

    >>> GaussianHead().distribution(torch.zeros(3, 2), torch.zeros(3), torch.ones(3)).batch_shape
    torch.Size([3])
    """

    width = 2

    def _parameters(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        location, scale = raw.unbind(-1)
        return location, F.softplus(scale).clamp_min(_LEAST_SCALE)

    def log_prob(self, raw: Tensor, value: Tensor) -> Tensor:
        location, scale = self._parameters(raw)
        z = (value - location) / scale
        return -0.5 * z * z - torch.log(scale) - 0.5 * math.log(2.0 * math.pi)

    def distribution(self, raw: Tensor, shift: Tensor, scale: Tensor) -> Distribution:
        location, spread = self._parameters(raw)
        return Normal(shift + scale * location, scale * spread)

    def sample(self, raw: Tensor, count: int, generator: torch.Generator) -> Tensor:
        location, scale = self._parameters(raw)
        shape = (count, *location.shape)
        normal = torch.randn(shape, generator=generator, dtype=raw.dtype, device=raw.device)
        return location + scale * normal


def get_head(name: str) -> Head:
    """A head by its name, ``"student_t_mixture"`` or ``"gaussian"``.

    >>> get_head("gaussian").width
    2
    """
    known = {"student_t_mixture": StudentTMixtureHead, "gaussian": GaussianHead}
    if name not in known:
        raise ValueError(f"no head {name!r}; there are {', '.join(known)}")
    return known[name]()
