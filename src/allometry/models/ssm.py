"""Diagonal state-space layers: a long convolution in training, a short recurrence in use.

S4D of Gu, Gupta, Goel and Ré (2022, arXiv:2206.11893): one system a channel. S5 of Smith, Warrington and
Linderman (2022, arXiv:2208.04933): one system with many inputs and outputs.

- The kernel is a Vandermonde product (`allometry.models.kernel_of_poles`) of O(states + length) memory.
- Convolution and recurrence share one discretisation, x_k = ā x_{k−1} + b̄ u_k: the new input is seen at once.
- Parameters are real; complex ones confuse optimizers and checkpoints. In half precision they are read as
  float32, since there are no complex numbers of half precision; discretisation is in float64 throughout.
- Layout is (batch, length, channels) everywhere.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allometry.models import hippo
from allometry.models.hippo import Diagonal
from allometry.models.kernel_of_poles import discretize, powers, vandermonde

__all__ = ["S4D", "S5"]


def _start(init: Any, d_state: int, generator: torch.Generator) -> Diagonal:
    if isinstance(init, Tensor):
        if init.ndim != 1 or not init.is_complex():
            raise ValueError(f"poles are complex, of shape (K,); got {init.dtype} of {tuple(init.shape)}")
        poles = init.detach().to("cpu", torch.complex128)
        return Diagonal(poles, torch.ones_like(poles), 1.0 + (poles.imag != 0).double())
    if isinstance(init, tuple) and len(init) in (3, 4):
        return Diagonal(*init)
    known = {"legs": hippo.legs, "inv": hippo.inv, "lin": hippo.lin, "real": hippo.real_poles}
    if init == "random":
        return hippo.random_poles(d_state, generator)
    if init not in known:
        raise ValueError(f"init is one of {', '.join(known)}, random, poles or a Diagonal; got {init!r}")
    return known[init](d_state)


_REAL_PARTS = ("exp", "softplus", "relu", "none")


class _Poles(nn.Module):
    """Poles with a bounded real part, steps, inputs: what S4D (a row a channel) and S5 (one row) share."""

    def __init__(
        self, rows: int, state: Diagonal, *, dt: tuple[float, float], steps: tuple[int, ...],
        real_transform: str, disc: str, generator: torch.Generator,
    ) -> None:  # fmt: skip
        super().__init__()
        if real_transform not in _REAL_PARTS:
            raise ValueError(f"real_transform is one of {', '.join(_REAL_PARTS)}; got {real_transform!r}")
        if disc not in ("zoh", "bilinear"):
            raise ValueError(f"disc is 'zoh' or 'bilinear'; got {disc!r}")
        if not (isinstance(dt, Sequence) and len(dt) == 2 and 0 < dt[0] <= dt[1] < math.inf):
            raise ValueError(f"dt is (least, most), both positive; got {dt!r}")
        poles = state.poles.to(torch.complex128)
        if not bool((poles.real < 0).all()):
            raise ValueError(f"poles need negative real parts; the largest is {poles.real.max():.3g}")
        self.real_transform, self.disc = real_transform, disc
        minus = -poles.real
        if real_transform == "exp":
            minus = minus.log()
        elif real_transform == "softplus":
            minus = minus + torch.log(-torch.expm1(-minus))
        span = torch.rand(steps, generator=generator) * math.log(dt[1] / dt[0]) + math.log(dt[0])
        self.log_step = nn.Parameter(span)
        self.real = nn.Parameter(minus.float().expand(rows, -1).clone())
        self.imaginary = nn.Parameter(poles.imag.float().expand(rows, -1).clone())
        self.weight: Tensor
        self.register_buffer("weight", state.weight.float().clone())

    def poles(self) -> Tensor:
        """Poles (rows, K), complex, per unit of time."""
        p: Tensor = fine(self.real)
        if self.real_transform == "exp":
            p = p.exp()
        elif self.real_transform == "softplus":
            p = F.softplus(p)
        elif self.real_transform == "relu":
            p = F.relu(p)
        return torch.complex(-p, fine(self.imaginary))

    def steps(self) -> Tensor:
        """Time between samples, Δ."""
        return fine(self.log_step).exp()

    def discrete(self, inputs: Tensor, rate: float = 1.0) -> tuple[Tensor, Tensor]:
        """log ā and b̄ for inputs B, complex128: an error in a phase is multiplied by the length."""
        poles, step = self.poles().to(torch.complex128), self.steps().double() * rate
        if len(poles) == len(step):  # a step a row
            step = step[:, None]
        return discretize(poles, inputs.to(torch.complex128), step, self.disc)


def fine(value: Tensor) -> Tensor:
    """Half precision as float32, the rest as it is."""
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value


def _complex(value: Tensor) -> Tensor:
    """A parameter (..., 2) as complex numbers (...)."""
    return torch.view_as_complex(fine(value))


def _parameter(value: Tensor) -> nn.Parameter:
    """Complex numbers (...) as float32 (..., 2), laid out in order, as compilers and safetensors ask."""
    return nn.Parameter(torch.view_as_real(value.to(torch.complex64).contiguous()).clone())


class S4D(nn.Module):
    """A diagonal state-space system for each channel, (B, L, H) -> (B, L, H).

    Parameters
    ----------
    d_model : int
        Channels, H.
    d_state : int
        Real states a channel, even: N/2 conjugate pairs. Ignored where ``init`` gives the poles.
    init : "legs", "inv", "lin", "real", "random", Tensor or Diagonal
        Where the poles start: by name; complex poles (K,), one of each conjugate pair; or a `Diagonal`, as
        from `allometry.init.ptd`. Where it has a basis, readouts are real Gaussian rows of the full state
        (scaled by 1/√n), otherwise complex Gaussian.
    disc : "zoh" or "bilinear"
    dt : (least, most)
        Steps are drawn between them, uniformly in the logarithm.
    real_transform : "exp", "softplus", "relu" or "none"
        What keeps real parts negative. ``"none"`` keeps nothing: where training moves a pole over, its kernel
        grows.
    train_inputs : bool
        Whether B is trained.
    bidirectional : bool
        A second kernel runs on the reversed sequence; there is then no `step`.
    bandlimit : bool
        Silence poles that turn by more than π a sample, which alias.
    generator : torch.Generator, optional
        Of initial values; without it one seeded with 0.

    Raises
    ------
    ValueError
        An odd state, an unknown choice, poles that do not decay; inputs of another shape, or not floating.

    Examples
    --------
    >>> layer = S4D(4, 16, init="lin")
    >>> layer(torch.zeros(2, 100, 4)).shape, layer.kernel(100).shape
    (torch.Size([2, 100, 4]), torch.Size([4, 100]))
    """

    def __init__(
        self, d_model: int, d_state: int = 64, *, init: str | Diagonal = "legs", disc: str = "zoh",
        dt: tuple[float, float] = (1e-3, 1e-1), real_transform: str = "exp", train_inputs: bool = True,
        bidirectional: bool = False, bandlimit: bool = False, generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if d_model < 1:
            raise ValueError(f"d_model is at least 1; got {d_model}")
        self.d_model, self.bidirectional, self.bandlimit = d_model, bidirectional, bandlimit
        generator = generator or torch.Generator().manual_seed(0)
        with torch.device("cpu"):  # where the generator and the eigenvectors are
            state = _start(init, d_state, generator)
            self.system = _Poles(d_model, state, dt=dt, steps=(d_model,), real_transform=real_transform,
                                 disc=disc, generator=generator)  # fmt: skip
            self.inputs = _parameter(state.inputs.expand(d_model, -1))
            self.inputs.requires_grad_(train_inputs)
            self.readout = _parameter(_readout(state, (2 if bidirectional else 1, d_model), generator))
            self.skip = nn.Parameter(torch.randn(d_model, generator=generator))
            if not bandlimit:
                self._warn_of_aliases()
        self.to(torch.get_default_device())

    def _warn_of_aliases(self) -> None:
        turns = (self.system.steps()[:, None] * self.system.imaginary.abs()).detach()
        share = float((turns > math.pi).float().mean())
        if share > 0.25:
            warnings.warn(f"{share:.0%} of the poles turn by more than π a sample and alias; shorten dt "
                          "or pass bandlimit=True", stacklevel=3)  # fmt: skip

    def _discrete(self, rate: float = 1.0) -> tuple[Tensor, Tensor]:
        """log ā (H, K), complex128, and weight · C b̄ (directions, H, K), as precise as the parameters."""
        if not 0 < rate < math.inf:
            raise ValueError(f"rate is positive and finite; got {rate}")
        log, b = self.system.discrete(_complex(self.inputs), rate)
        c = _complex(self.readout)
        weights = c * fine(self.system.weight) * b
        if self.bandlimit:
            turns = self.system.steps()[:, None] * rate * fine(self.system.imaginary).abs()
            weights = weights * (turns <= math.pi)
        return log, weights.to(c.dtype)

    def kernel(self, length: int, rate: float = 1.0) -> Tensor:
        """The convolution's kernel: (H, length), or (2, H, length) where bidirectional.

        ``rate`` multiplies every step Δ: 2 for a signal sampled half as often.
        """
        log, weights = self._discrete(rate)
        directions = weights.shape[0]
        found = vandermonde(log.repeat(directions, 1), weights.flatten(0, 1), length)
        return found.unflatten(0, (directions, -1)) if self.bidirectional else found

    def forward(self, x: Tensor, rate: float = 1.0) -> Tensor:
        """(B, L, H) -> (B, L, H)."""
        _refuse(x, self.d_model)
        signal = fine(x).mT
        kernel = self.kernel(x.shape[1], rate)
        if self.bidirectional:
            forward, backward = kernel
            y = _convolve(signal, forward) + _convolve(signal.flip(-1), backward).flip(-1)
        else:
            y = _convolve(signal, kernel)
        return (y + fine(self.skip)[:, None] * signal).mT.to(x.dtype)

    def initial_state(self, batch: int) -> Tensor:
        """Zeros (B, H, K), complex."""
        return _zeros(self.inputs, (batch, *self.system.real.shape))

    def recurrence(self, rate: float = 1.0) -> tuple[Tensor, ...]:
        """What `step` multiplies by: made once, it saves steps with the same parameters most work."""
        if self.bidirectional:
            raise ValueError("a bidirectional layer reads the future, so it has no step")
        log, weights = self._discrete(rate)
        return torch.exp(log).to(weights.dtype), weights[0]  # b̄ is in the weights

    def step(
        self, u: Tensor, state: Tensor, recurrence: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
        """One sample (B, H) and a state (B, H, K) to an output (B, H) and the next state.

        ``recurrence`` is this layer's, where it was made before.
        """
        _refuse_step(u, state, (self.d_model,), tuple(self.system.real.shape))
        decay, weights = recurrence or self.recurrence()
        state = decay * state + fine(u)[..., None]
        return ((weights * state).sum(-1).real + fine(self.skip) * fine(u)).to(u.dtype), state


class S5(nn.Module):
    """One diagonal system with H inputs and H outputs, (B, L, H) -> (B, L, H).

    Parameters
    ----------
    d_model : int
    d_state : int
        Real states of a block, even.
    blocks : int
        Copies of the diagonal, whose inputs and readouts differ.
    init, disc, dt, real_transform, generator
        As for `S4D`; steps belong to states here. B and C start as real Gaussian matrices on the full state
        where the diagonal has a basis, else as complex ones.

    Examples
    --------
    >>> S5(4, 16)(torch.zeros(2, 50, 4)).shape
    torch.Size([2, 50, 4])
    """

    def __init__(
        self, d_model: int, d_state: int = 64, *, blocks: int = 1, init: str | Diagonal = "legs",
        disc: str = "zoh", dt: tuple[float, float] = (1e-3, 1e-1), real_transform: str = "exp",
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if d_model < 1 or blocks < 1:
            raise ValueError(f"d_model and blocks are at least 1; got {d_model} and {blocks}")
        self.d_model = d_model
        generator = generator or torch.Generator().manual_seed(0)
        with torch.device("cpu"):  # where the generator and the eigenvectors are
            one = _start(init, d_state, generator)
            state = Diagonal(one.poles.repeat(blocks), one.inputs.repeat(blocks), one.weight.repeat(blocks))
            self.system = _Poles(1, state, dt=dt, steps=(len(state.poles),), real_transform=real_transform,
                                 disc=disc, generator=generator)  # fmt: skip
            b, c = _ends(one, d_model, blocks, generator)
            self.inputs, self.readout = _parameter(b), _parameter(c)
            self.skip = nn.Parameter(torch.randn(d_model, generator=generator))
        self.to(torch.get_default_device())

    def _discrete(self, rate: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """log ā (P,), complex128; b̄ (P, H) and weight · C (H, P), as precise as the parameters."""
        if not 0 < rate < math.inf:
            raise ValueError(f"rate is positive and finite; got {rate}")
        inputs = _complex(self.inputs)
        log, gain = self.system.discrete(torch.ones_like(self.system.poles()), rate)
        b = (gain[0, :, None] * inputs).to(inputs.dtype)
        return log[0], b, _complex(self.readout) * fine(self.system.weight)

    def forward(self, x: Tensor, rate: float = 1.0) -> Tensor:
        """(B, L, H) -> (B, L, H); ``rate`` multiplies every step."""
        _refuse(x, self.d_model)
        length, signal = x.shape[1], fine(x)
        log, b, c = self._discrete(rate)
        driven = signal.to(b.dtype) @ b.mT  # (B, L, P)
        decay = powers(log, torch.arange(length, device=x.device), b.dtype)
        size = _fast(2 * length - 1)
        spectrum = torch.fft.fft(driven.mT, size) * torch.fft.fft(decay, size)
        states = torch.fft.ifft(spectrum)[..., :length].mT  # (B, L, P)
        return ((states @ c.mT).real + fine(self.skip) * signal).to(x.dtype)

    def initial_state(self, batch: int) -> Tensor:
        """Zeros (B, P), complex."""
        return _zeros(self.inputs, (batch, len(self.inputs)))

    def recurrence(self, rate: float = 1.0) -> tuple[Tensor, ...]:
        """As in `S4D`."""
        log, b, c = self._discrete(rate)
        return torch.exp(log).to(b.dtype), b, c

    def step(
        self, u: Tensor, state: Tensor, recurrence: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
        """One sample (B, H) and a state (B, P) to an output (B, H) and the next state; as in `S4D`."""
        _refuse_step(u, state, (self.d_model,), (len(self.inputs),))
        decay, b, c = recurrence or self.recurrence()
        state = decay * state + fine(u).to(b.dtype) @ b.mT
        return ((state @ c.mT).real + fine(self.skip) * fine(u)).to(u.dtype), state


def _readout(state: Diagonal, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """C (*shape, K), complex64."""
    if state.basis is None:
        return torch.randn((*shape, len(state.poles)), dtype=torch.complex64, generator=generator)
    n = state.basis.shape[0]
    rows = torch.randn(*shape, n, dtype=torch.float64, generator=generator)
    return ((rows / math.sqrt(n)).to(torch.complex128) @ state.basis).to(torch.complex64)


def _ends(one: Diagonal, d_model: int, blocks: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """B (P, H) and C (H, P) of S5 for ``blocks`` copies of a diagonal."""
    k = len(one.poles)
    if one.basis is None:
        b = torch.randn(blocks * k, d_model, dtype=torch.complex64, generator=generator)
        c = torch.randn(d_model, blocks * k, dtype=torch.complex64, generator=generator)
        return b / math.sqrt(d_model), c / math.sqrt(blocks * k)
    n, full = one.basis.shape[0], _whole(one)
    rows = torch.randn(blocks, n, d_model, dtype=torch.float64, generator=generator)
    b = torch.linalg.solve(full, (rows / math.sqrt(d_model)).to(full.dtype))[:, :k].flatten(0, 1)
    rows = torch.randn(blocks, d_model, n, dtype=torch.float64, generator=generator)
    c = ((rows / math.sqrt(blocks * n)).to(full.dtype) @ one.basis).permute(1, 0, 2).flatten(1)
    return b, c


def _whole(state: Diagonal) -> Tensor:
    """All eigenvectors (n, n), the kept ones first: conjugates of paired ones are put back."""
    assert state.basis is not None
    return torch.cat([state.basis, state.basis[:, state.weight > 1.5].conj()], 1)


def _zeros(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Complex zeros beside a real parameter, float32 of half precision."""
    dtype = torch.complex128 if like.dtype == torch.float64 else torch.complex64
    return torch.zeros(shape, dtype=dtype, device=like.device)


def _refuse(x: Tensor, d_model: int) -> None:
    if x.ndim != 3 or x.shape[-1] != d_model or not x.numel() or not x.is_floating_point():
        raise ValueError(
            f"inputs are floating and (batch, length, {d_model}), neither of them 0; got {x.dtype} of "
            f"{tuple(x.shape)}"
        )


def _refuse_step(u: Tensor, state: Tensor, sample: tuple[int, ...], states: tuple[int, ...]) -> None:
    if tuple(u.shape[1:]) != sample or tuple(state.shape) != (len(u), *states) or not u.is_floating_point():
        raise ValueError(
            f"a step takes floating samples {('batch', *sample)} and a state {('batch', *states)}; got "
            f"{tuple(u.shape)} and {tuple(state.shape)}"
        )


def _fast(size: int) -> int:
    """The least number from ``size`` up whose only factors are 2, 3 and 5: its Fourier transform is quick."""
    best = 1 << (size - 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            found = three << max(0, (-(-size // three) - 1).bit_length())
            best, three = min(best, found), three * 3
        five *= 5
    return best


def _convolve(signal: Tensor, kernel: Tensor) -> Tensor:
    """Causal convolution of (B, H, L) with (H, L), linear and not circular."""
    length = signal.shape[-1]
    size = _fast(2 * length - 1)
    spectrum = torch.fft.rfft(signal, size) * torch.fft.rfft(kernel, size)
    return torch.fft.irfft(spectrum, size)[..., :length]
