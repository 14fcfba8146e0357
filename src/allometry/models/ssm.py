"""Diagonal state-space layers: a long convolution in training, a short recurrence in use.

S4D of Gu, Gupta, Goel and Ré (2022, arXiv:2206.11893): one system a channel. S5 of Smith, Warrington and
Linderman (2022, arXiv:2208.04933): one system with many inputs and outputs.

- The kernel is a Vandermonde product (`allometry.models.kernel_of_poles`) of O(states + length) memory.
- Convolution and recurrence share one discretisation, x_k = ā x_{k−1} + b̄ u_k: the new input is seen at once.
- Parameters are real; complex ones confuse optimizers and checkpoints.
- Layout is (batch, length, channels) everywhere.
"""

import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allometry.models import hippo
from allometry.models.hippo import Diagonal
from allometry.models.kernel_of_poles import discretize, powers, vandermonde

__all__ = ["S4D", "S5", "SSMBlock", "SSMClassifier"]


def _start(init: str | Diagonal, d_state: int, generator: torch.Generator) -> Diagonal:
    if not isinstance(init, str):
        return init if isinstance(init, Diagonal) else Diagonal(*init)
    known = {"legs": hippo.legs, "inv": hippo.inv, "lin": hippo.lin, "real": hippo.real_poles}
    if init == "random":
        return hippo.random_poles(d_state, generator)
    if init not in known:
        raise ValueError(f"init is one of {', '.join(known)}, random, or a Diagonal; got {init!r}")
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
        if not 0 < dt[0] <= dt[1]:
            raise ValueError(f"dt is (least, most), both positive; got {dt}")
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
        """Poles (rows, K), complex64, per unit of time."""
        p: Tensor = self.real
        if self.real_transform == "exp":
            p = p.exp()
        elif self.real_transform == "softplus":
            p = F.softplus(p)
        elif self.real_transform == "relu":
            p = F.relu(p)
        return torch.complex(-p, self.imaginary)

    def steps(self) -> Tensor:
        """Time between samples, Δ."""
        return self.log_step.exp()


class S4D(nn.Module):
    """A diagonal state-space system for each channel, (B, L, H) -> (B, L, H).

    Parameters
    ----------
    d_model : int
        Channels, H.
    d_state : int
        Real states a channel, even: N/2 conjugate pairs. Ignored where ``init`` is a `Diagonal`.
    init : "legs", "inv", "lin", "real", "random" or Diagonal
        Where the poles start; a `Diagonal` may come from `allometry.init.ptd`. Where it has a basis, readouts
        are real Gaussian rows of the full state (scaled by 1/√n), otherwise complex Gaussian.
    disc : "zoh" or "bilinear"
    dt : (least, most)
        Steps are drawn between them, uniformly in the logarithm.
    real_transform : "exp", "softplus", "relu" or "none"
        What keeps real parts negative. ``"none"`` keeps nothing.
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
        An odd state, an unknown choice, poles that do not decay.

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
        generator = generator or torch.Generator().manual_seed(0)
        state = _start(init, d_state, generator)
        self.d_model, self.bidirectional, self.bandlimit = d_model, bidirectional, bandlimit
        self.system = _Poles(d_model, state, dt=dt, steps=(d_model,), real_transform=real_transform,
                             disc=disc, generator=generator)  # fmt: skip
        k, directions = len(state.poles), 2 if bidirectional else 1
        inputs = torch.view_as_real(state.inputs.to(torch.complex64)).expand(d_model, -1, -1).clone()
        self.inputs = nn.Parameter(inputs, requires_grad=train_inputs)
        if state.basis is None:
            shape = (directions, d_model, k)
            readout = torch.randn(shape, dtype=torch.complex64, generator=generator)
        else:
            n = state.basis.shape[0]
            rows = torch.randn(directions, d_model, n, dtype=torch.float64, generator=generator)
            readout = ((rows / math.sqrt(n)).to(torch.complex128) @ state.basis).to(torch.complex64)
        self.readout = nn.Parameter(torch.view_as_real(readout).clone())
        self.skip = nn.Parameter(torch.randn(d_model, generator=generator))
        turns = (self.system.steps()[:, None] * self.system.imaginary.abs()).detach()
        if not bandlimit and bool((turns > math.pi).any()):
            share = float((turns > math.pi).float().mean())
            if share > 0.25:
                warnings.warn(f"{share:.0%} of the poles turn by more than π a sample and alias; shorten dt "
                              "or pass bandlimit=True", stacklevel=2)  # fmt: skip

    def _discrete(self, rate: float = 1.0) -> tuple[Tensor, Tensor]:
        """log ā (H, K) and weight · C b̄ (directions, H, K)."""
        if rate <= 0:
            raise ValueError(f"rate is positive; got {rate}")
        poles, step = self.system.poles(), self.system.steps()[:, None] * rate
        log, b = discretize(poles, torch.view_as_complex(self.inputs), step, self.system.disc)
        c = torch.view_as_complex(self.readout) * self.system.weight
        if self.bandlimit:
            c = c * ((step * poles.imag).abs() <= math.pi)
        return log, c * b

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
        length = x.shape[1]
        signal = x.mT.float()  # complex numbers have no half precision
        kernel = self.kernel(length, rate)
        if self.bidirectional:
            forward, backward = kernel
            y = _convolve(signal, forward) + _convolve(signal.flip(-1), backward).flip(-1)
        else:
            y = _convolve(signal, kernel)
        return (y + self.skip[:, None] * signal).mT.to(x.dtype)

    def initial_state(self, batch: int) -> Tensor:
        """Zeros (B, H, K), complex64."""
        return torch.zeros(batch, *self.system.real.shape, dtype=torch.complex64, device=self.skip.device)

    def step(self, u: Tensor, state: Tensor, rate: float = 1.0) -> tuple[Tensor, Tensor]:
        """One sample (B, H) and a state (B, H, K) to an output (B, H) and the next state."""
        if self.bidirectional:
            raise ValueError("a bidirectional layer reads the future, so it has no step")
        log, weights = self._discrete(rate)
        state = torch.exp(log) * state + u.float()[..., None]  # b̄ is in the weights
        return ((weights[0] * state).sum(-1).real + self.skip * u.float()).to(u.dtype), state


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
        where the diagonal has a basis (its inverse is taken by least squares), else as complex ones.

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
        generator = generator or torch.Generator().manual_seed(0)
        one = _start(init, d_state, generator)
        k, self.d_model = len(one.poles), d_model
        state = Diagonal(one.poles.repeat(blocks), one.inputs.repeat(blocks), one.weight.repeat(blocks))
        self.system = _Poles(1, state, dt=dt, steps=(k * blocks,), real_transform=real_transform, disc=disc,
                             generator=generator)  # fmt: skip
        if one.basis is None:
            b = torch.randn(blocks * k, d_model, dtype=torch.complex64, generator=generator)
            c = torch.randn(d_model, blocks * k, dtype=torch.complex64, generator=generator)
            b, c = b / math.sqrt(d_model), c / math.sqrt(blocks * k)
        else:
            n, full = one.basis.shape[0], _whole(one)
            rows = torch.randn(blocks, n, d_model, dtype=torch.float64, generator=generator)
            b = torch.linalg.solve(full, (rows / math.sqrt(d_model)).to(full.dtype))[:, :k].flatten(0, 1)
            rows = torch.randn(blocks, d_model, n, dtype=torch.float64, generator=generator)
            c = ((rows / math.sqrt(blocks * n)).to(full.dtype) @ one.basis).permute(1, 0, 2).flatten(1)
        self.inputs = nn.Parameter(torch.view_as_real(b.to(torch.complex64)).clone())
        self.readout = nn.Parameter(torch.view_as_real(c.to(torch.complex64)).clone())
        self.skip = nn.Parameter(torch.randn(d_model, generator=generator))

    def _discrete(self) -> tuple[Tensor, Tensor, Tensor]:
        ones = torch.ones_like(self.system.poles()[0])
        log, gain = discretize(self.system.poles()[0], ones, self.system.steps(), self.system.disc)
        b = gain[:, None] * torch.view_as_complex(self.inputs)
        return log, b, torch.view_as_complex(self.readout) * self.system.weight

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, H) -> (B, L, H)."""
        _refuse(x, self.d_model)
        length, signal = x.shape[1], x.float()
        log, b, c = self._discrete()
        driven = signal.to(b.dtype) @ b.mT  # (B, L, P)
        decay = powers(log, torch.arange(length, device=x.device))
        size = _fast(2 * length - 1)
        spectrum = torch.fft.fft(driven.mT, size) * torch.fft.fft(decay, size)
        states = torch.fft.ifft(spectrum)[..., :length].mT  # (B, L, P)
        return ((states @ c.mT).real + self.skip * signal).to(x.dtype)

    def initial_state(self, batch: int) -> Tensor:
        """Zeros (B, P), complex64."""
        return torch.zeros(batch, len(self.inputs), dtype=torch.complex64, device=self.skip.device)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One sample (B, H) and a state (B, P) to an output (B, H) and the next state."""
        log, b, c = self._discrete()
        state = torch.exp(log) * state + u.to(b.dtype) @ b.mT
        return ((state @ c.mT).real + self.skip * u).to(u.dtype), state


def _whole(state: Diagonal) -> Tensor:
    """All eigenvectors (n, n), the kept ones first: conjugates of paired ones are put back."""
    assert state.basis is not None
    return torch.cat([state.basis, state.basis[:, state.weight > 1.5].conj()], 1)


class SSMBlock(nn.Module):
    """Norm, system, GELU, dropout shared along the length, gated mixing of channels, and the residual.

    Examples
    --------
    >>> SSMBlock(S4D(4, 8))(torch.zeros(2, 30, 4)).shape
    torch.Size([2, 30, 4])
    """

    def __init__(self, system: S4D | S5, dropout: float = 0.0, generator: torch.Generator | None = None):
        super().__init__()
        generator = generator or torch.Generator().manual_seed(0)
        self.norm = nn.LayerNorm(system.d_model)
        self.system = system
        self.dropout = dropout
        self.mix = _linear(system.d_model, 2 * system.d_model, generator)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, H) -> (B, L, H)."""
        y = F.gelu(self.system(self.norm(x)))
        if self.training and self.dropout:
            y = F.dropout1d(y.mT, self.dropout).mT
        return x + F.glu(self.mix(y), -1)


class SSMClassifier(nn.Module):
    """Linear encoder, ``layers`` blocks, mean over the length, linear head: (B, L, D) -> (B, classes).

    Parameters
    ----------
    in_features, classes, d_model, d_state, layers : int
    kind : "s4d" or "s5"
    dropout : float
    generator : torch.Generator, optional
    **settings
        For `S4D` or `S5`.

    Examples
    --------
    >>> SSMClassifier(1, 10, d_model=8, d_state=8)(torch.zeros(2, 64, 1)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, in_features: int, classes: int, *, d_model: int = 32, d_state: int = 32, layers: int = 2,
        kind: str = "s4d", dropout: float = 0.0, generator: torch.Generator | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        if kind not in ("s4d", "s5"):
            raise ValueError(f"kind is 's4d' or 's5'; got {kind!r}")
        generator = generator or torch.Generator().manual_seed(0)
        make = S4D if kind == "s4d" else S5
        self.encoder = _linear(in_features, d_model, generator)
        self.blocks = nn.ModuleList(
            SSMBlock(make(d_model, d_state, generator=generator, **settings), dropout, generator)
            for _ in range(layers)
        )
        self.head = _linear(d_model, classes, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes)."""
        x = self.encoder(x)
        for block in self.blocks:
            x = block(x)
        found: Tensor = self.head(x.mean(1))
        return found


def _linear(fan_in: int, fan_out: int, generator: torch.Generator) -> nn.Linear:
    from allometry.models.start import start_

    with torch.device("meta"):
        layer = nn.Linear(fan_in, fan_out)
    return start_(layer, generator)  # type: ignore[return-value]


def _refuse(x: Tensor, d_model: int) -> None:
    if x.ndim != 3 or x.shape[-1] != d_model or not x.shape[1]:
        raise ValueError(
            f"inputs are (batch, length, {d_model}) with a length of 1 or more; got {tuple(x.shape)}"
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
