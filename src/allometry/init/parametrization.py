"""The space of width parametrizations: three exponents a layer, and what becomes of training as width grows.

Greg Yang and Edward J. Hu, "Feature Learning in Infinite-Width Neural Networks", 2020. arXiv:2011.14522.

A multilayer perceptron with L hidden layers of width n has L + 1 weights W_l = n^(-a_l) · w_l, with w_l the
trainable tensor, drawn with standard deviation n^(-b_l) and trained by SGD at the rate η · n^(-c). Most of
these choices blow up or stand still; nearly all others become regression with a fixed kernel; one corner
goes on learning features at any width. `ABC.analyze` says which, before anything is trained.

- (a + θ, b − θ, c − 2θ) is the same network under SGD, at every step: multipliers and rates can be traded
  (`ABC.shift`; c − θ under Adam, whose step ignores the gradient's scale).
- r is the power with which the movement of the last features vanishes, |Δx| ~ n^(-r).
- The theorems hold for SGD on perceptrons at fixed depth and a fixed number of steps. With Adam, momentum or
  normalization they are a guide, and `allometry.measure.coordinate_check` is the test.

`ntk_parametrize_` is the neural-tangent form of any network, after Arthur Jacot, Franck Gabriel and Clément
Hongler, 2018, arXiv:1806.07572.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from torch import nn

from allometry.init.multiplier import DivideInput, MultiplyOutput
from allometry.init.widths import input_side, is_affine
from allometry.optim.groups import Role

__all__ = ["ABC", "ABCReport", "LayerScale", "ntk_parametrize_"]

Preset = Literal["sp", "ntp", "mfp", "mup"]
Regime = Literal["unstable", "trivial", "kernel", "feature learning"]

_TOLERANCE = 1e-9  # exponents are halves in practice; this is for sums of floats


class LayerScale(NamedTuple):
    """A layer's scales relative to the base width: forward multiplier, initial deviation, learning rate."""

    multiplier: float
    initial_std: float
    learning_rate: float


@dataclass(frozen=True)
class ABCReport:
    """What the theory says of a parametrization.

    Attributes
    ----------
    stable : bool
        Whether activations and logits stay bounded as width grows (Theorem 3.3).
    nontrivial : bool
        Whether the function changes during training at all.
    r : float
        The movement of the last features falls like width^(-r); below 0 it blows up.
    regime : str
        ``"unstable"``, ``"trivial"``, ``"kernel"`` (r > 0) or ``"feature learning"`` (r = 0), of which no
        parametrization is two (Corollary 3.9).
    reasons : tuple of str
        The conditions that failed, or what decided the regime.
    """

    stable: bool
    nontrivial: bool
    r: float
    regime: Regime
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class ABC:
    """The exponents of a parametrization, first layer to readout.

    Parameters
    ----------
    a : sequence of float, length L + 1
        Forward multipliers n^(-a).
    b : sequence of float, length L + 1
        Initial standard deviations n^(-b).
    c : float or sequence of float
        Learning rates n^(-c), one for all layers or one a layer.

    Raises
    ------
    ValueError
        If lengths differ, or if there is no hidden layer.

    Examples
    --------
    >>> ABC.preset("mup", hidden_layers=2).analyze().regime
    'feature learning'
    >>> ABC.preset("ntp", hidden_layers=2).analyze().r
    0.5
    """

    a: Sequence[float]
    b: Sequence[float]
    c: float | Sequence[float] = 0.0

    def __post_init__(self) -> None:
        for field in ("a", "b"):
            object.__setattr__(self, field, tuple(float(value) for value in getattr(self, field)))
        if not isinstance(self.c, int | float):
            object.__setattr__(self, "c", tuple(float(value) for value in self.c))
        lengths = {len(self.a), len(self.b), len(self.rates)}
        if len(lengths) > 1:
            raise ValueError(
                "a, b and c must have one exponent a layer; "
                f"got {len(self.a)}, {len(self.b)} and {len(self.rates)}"
            )
        if len(self.a) < 2:
            raise ValueError(
                "a parametrization needs at least one hidden layer and a readout, so two exponents"
            )

    @property
    def rates(self) -> tuple[float, ...]:
        """The exponent c of each layer."""
        return (float(self.c),) * len(self.a) if isinstance(self.c, int | float) else tuple(self.c)

    @property
    def hidden_layers(self) -> int:
        """L, one less than the number of weights."""
        return len(self.a) - 1

    @classmethod
    def preset(cls, name: Preset, hidden_layers: int, *, c: float | None = None) -> "ABC":
        """A parametrization by name.

        Parameters
        ----------
        name : "sp", "ntp", "mfp" or "mup"
            Standard (torch's own), neural tangent, mean field (one hidden layer only), maximal update.
        hidden_layers : int
            L, at least 1.
        c : float, optional
            Another exponent of the learning rate: standard parametrization is unstable at its c = 0 and
            stable from c = 1.

        Examples
        --------
        >>> ABC.preset("sp", 3, c=1).a
        (0.0, 0.0, 0.0, 0.0)
        """
        if hidden_layers < 1:
            raise ValueError(f"hidden_layers must be at least 1; got {hidden_layers}")
        inner = hidden_layers - 1
        if name == "sp":
            made = cls((0, *[0] * inner, 0), (0, *[0.5] * inner, 0.5), 0.0)
        elif name == "ntp":
            made = cls((0, *[0.5] * inner, 0.5), (0, *[0] * inner, 0), 0.0)
        elif name == "mup":
            made = cls((-0.5, *[0] * inner, 0.5), (0.5, *[0.5] * inner, 0.5), 0.0)
        elif name == "mfp":
            if hidden_layers != 1:
                raise ValueError(
                    f"the mean-field preset has one hidden layer; got {hidden_layers}: use 'mup'"
                )
            made = cls((0, 1), (0, 0), -1.0)
        else:
            raise ValueError(f"the presets are 'sp', 'ntp', 'mfp' and 'mup'; got {name!r}")
        return made if c is None else cls(made.a, made.b, c)

    def shift(self, theta: float | Sequence[float], *, optimizer: Literal["sgd", "adam"] = "sgd") -> "ABC":
        """The same training, written otherwise: (a + θ, b − θ, c − 2θ), or c − θ for Adam.

        Parameters
        ----------
        theta : float or sequence of float
            For all layers, or one a layer, in which case c becomes one a layer too.
        optimizer : "sgd" or "adam"

        Examples
        --------
        >>> ABC.preset("mup", 1).shift(0.5) == ABC.preset("mfp", 1)
        True
        """
        if optimizer not in ("sgd", "adam"):
            raise ValueError(f"optimizer must be 'sgd' or 'adam'; got {optimizer!r}")
        factor = 2.0 if optimizer == "sgd" else 1.0
        same = isinstance(theta, int | float)
        thetas = (float(cast(float, theta)),) * len(self.a) if same else tuple(cast(Sequence[float], theta))
        if len(thetas) != len(self.a):
            raise ValueError(f"theta must be one number or {len(self.a)}, one a layer; got {len(thetas)}")
        rates = tuple(rate - factor * step for rate, step in zip(self.rates, thetas, strict=True))
        return ABC(
            tuple(value + step for value, step in zip(self.a, thetas, strict=True)),
            tuple(value - step for value, step in zip(self.b, thetas, strict=True)),
            rates[0] if same and isinstance(self.c, int | float) else rates,
        )

    def analyze(self) -> ABCReport:
        """Stable or not, moving or not, kernel or features: Theorem 3.3 and Corollary 3.9.

        Rates of one exponent a layer are first brought to a common one by the symmetry.
        """
        common = self.rates[-1]
        level = self.shift([(rate - common) / 2 for rate in self.rates])
        a, b, c, last = level.a, level.b, common, self.hidden_layers
        r = (
            min(b[last], a[last] + c)
            + a[last]
            + c
            + min(2 * a[layer] - (layer != 0) for layer in range(last))
        )
        broken = []
        if abs(a[0] + b[0]) > _TOLERANCE:
            broken.append(
                f"a + b of the first layer is {a[0] + b[0]:g}, not 0: its activations scale with width"
            )
        for layer in range(1, last):
            if abs(a[layer] + b[layer] - 0.5) > _TOLERANCE:
                broken.append(
                    f"a + b of layer {layer + 1} is {a[layer] + b[layer]:g}, not 1/2: "
                    "its activations scale with width"
                )
        if a[last] + b[last] < 0.5 - _TOLERANCE:
            broken.append(
                f"a + b of the readout is {a[last] + b[last]:g}, below 1/2: the first logits blow up"
            )
        if r < -_TOLERANCE:
            broken.append(f"r is {r:g}, below 0: features blow up during training")
        from_readout, from_features = 2 * a[last] + c, a[last] + b[last] + r
        if from_readout < 1 - _TOLERANCE:
            broken.append(
                f"2a + c of the readout is {from_readout:g}, below 1: its updates blow the logits up"
            )
        if from_features < 1 - _TOLERANCE:
            broken.append(
                f"a + b + r of the readout is {from_features:g}, below 1: feature updates blow the logits up"
            )
        stable = not broken
        nontrivial = stable and min(from_readout, from_features) <= 1 + _TOLERANCE
        regime: Regime
        if not stable:
            regime = "unstable"
        elif not nontrivial:
            regime = "trivial"
            broken.append("the learning rate shrinks so fast that the function stands still in the limit")
        elif r > _TOLERANCE:
            regime = "kernel"
            broken.append(
                f"r is {r:g}, above 0: features stand still in the limit and a fixed kernel is left"
            )
        else:
            regime = "feature learning"
            broken.append("r is 0: features move as much at every width")
        return ABCReport(stable, nontrivial, r + 0.0, regime, tuple(broken))

    def multipliers(self, width: float, base_width: float = 1) -> list[LayerScale]:
        """Each layer's scales at a width, relative to those at the base width.

        Examples
        --------
        >>> ABC.preset("mup", 1).multipliers(256, 64)[1]
        LayerScale(multiplier=0.5, initial_std=0.5, learning_rate=1.0)
        """
        if not (width > 0 and base_width > 0):
            raise ValueError(f"widths must be above 0; got {width!r} and {base_width!r}")
        grown = width / base_width
        return [
            LayerScale(grown**-a, grown**-b, grown**-c)
            for a, b, c in zip(self.a, self.b, self.rates, strict=True)
        ]

    @torch.no_grad()
    def parametrize_(
        self,
        model: nn.Module,
        base_width: int,
        *,
        gain: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> dict[str, Role]:
        """Draw a perceptron's weights and install its multipliers; all parametrizations agree at the base.

        Parameters
        ----------
        model : nn.Module
            Its ``nn.Linear`` layers, in order of registration, are the layers; without biases, and with all
            hidden layers of one width.
        base_width : int
            n₀, where every layer has multiplier 1, deviation gain/√fan_in and rate multiplier 1.
        gain : float
        generator : torch.Generator, optional
            Without it a generator seeded with 0.

        Returns
        -------
        dict from parameter name to Role
            The rates n^(-c), for `allometry.optim.param_groups`.

        Raises
        ------
        ValueError
            If the number of layers is not that of the exponents, a layer has a bias, or widths differ.

        Examples
        --------
        >>> model = nn.Sequential(nn.Linear(3, 64, bias=False), nn.Tanh(), nn.Linear(64, 1, bias=False))
        >>> ABC.preset("sp", 1, c=1).parametrize_(model, base_width=16)["2.weight"].learning_rate
        0.25
        """
        layers = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
        if len(layers) != len(self.a):
            raise ValueError(f"{len(self.a)} exponents, and the model has {len(layers)} linear layers")
        biased = [name for name, layer in layers if layer.bias is not None]
        if biased:
            raise ValueError(f"{biased[0]} has a bias; build the model with bias=False")
        widths = {layer.out_features for _, layer in layers[:-1]} | {
            layer.in_features for _, layer in layers[1:]
        }
        if len(widths) != 1:
            raise ValueError(f"all hidden layers must have one width; got {sorted(widths)}")
        width = widths.pop()
        generator = generator or torch.Generator().manual_seed(0)
        found = {}
        for index, ((name, layer), scale) in enumerate(
            zip(layers, self.multipliers(width, base_width), strict=True)
        ):
            fan_in = base_width if index else layer.in_features
            drawn = torch.empty(layer.weight.shape, dtype=layer.weight.dtype)
            drawn.normal_(0, gain * scale.initial_std / math.sqrt(fan_in), generator=generator)
            layer.weight.copy_(drawn)
            if scale.multiplier != 1:
                DivideInput(1 / scale.multiplier).attach(layer)
            found[f"{name}.weight"] = Role(scale.learning_rate, 1.0, f"layer {index + 1}")
        return found


@torch.no_grad()
def ntk_parametrize_(model: nn.Module, *, gain: float = 1.0, beta: float | None = None) -> nn.Module:
    """Write a network in the neural-tangent form, in place, without changing its function.

    Every linear and convolutional weight is multiplied by √fan_in / gain and its layer's input by
    gain / √fan_in. At first the network is the same one; under SGD each weight now moves as if its learning
    rate were gain² / fan_in times as large. Biases stay as they are, or become β b with a β of their own.

    Parameters
    ----------
    model : nn.Module
        Freshly built.
    gain : float
        The standard deviation of the weights as built, times √fan_in, so that they come out with unit
        variance: 1/√3 for torch's default, √2 for He's, 1 for 1/√fan_in.
    beta : float, optional
        The paper's β, there 0.1: biases are divided by it and enter multiplied by it, so that under SGD they
        move as if their learning rate were β² times as large. By default 1.

    Returns
    -------
    nn.Module
        The same model.

    Examples
    --------
    >>> layer = ntk_parametrize_(nn.Linear(400, 300), gain=3**-0.5)
    >>> bool(abs(layer.weight.std() - 1) < 0.01)
    True
    """
    if not gain > 0:
        raise ValueError(f"gain must be above 0; got {gain!r}")
    if beta is not None and not beta > 0:
        raise ValueError(f"beta must be above 0; got {beta!r}")
    seen: set[int] = set()
    for name, module in model.named_modules():
        if not is_affine(module):
            continue
        weight = cast(torch.Tensor, module.weight)
        if id(weight) in seen:
            raise ValueError(f"{name} shares its weight with another layer, so it cannot be rescaled alone")
        seen.add(id(weight))
        fan_in = weight.shape[input_side(module)] * math.prod(weight.shape[2:])
        weight.mul_(math.sqrt(fan_in) / gain)
        own = 1.0 if beta is None or module.bias is None else beta
        # W x gain / √fan_in + β b, written as β (W x gain / (β √fan_in) + b).
        DivideInput(own * math.sqrt(fan_in) / gain).attach(module)
        if own != 1.0:
            cast(torch.Tensor, module.bias).div_(own)
            MultiplyOutput(own).attach(module)
    return model
