"""Linear layers whose matrix products see numbers of few bits, each of the six inputs by its own switch.

Training a linear layer takes three products: the output Y = X Wᵀ and the gradients dX = dY W and
dW = dYᵀ X. Their six inputs are numbered as Sun et al., 2025 (arXiv:2501.02423) do:

    P1  X in the output          P3  dY in dX      P5  dY in dW
    P2  W in the output          P4  W in dX       P6  X in dW

* The paper's law holds for P2, P4 and P6. Quantization-aware training as usually meant is P1, P2, P4 and P6.
* Blocks lie along the channels (the last dimension) in all products, as in the paper; hence W is rounded once
  for P2 and P4, and X once for P1 and P6.
* Products and sums are those of the layer's dtype; master weights keep theirs, and so does the state dict.
* The formats' numbers are tensors, so that replicas of a `train.Stack` may each have another format and still
  be one program.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from allometry.quant.formats import Format, Ties
from allometry.quant.quantizer import Quantizer, levels, quantize_rows

__all__ = ["QuantLinear", "dequantize", "qat"]

PRODUCTS = ("P1", "P2", "P3", "P4", "P5", "P6")
PAPER = ("P2", "P4", "P6")
_CLASSIFIERS = ("head", "lm_head", "classifier", "score")


class _Plan(NamedTuple):
    """What does not differ between replicas."""

    products: frozenset[str]
    weight: tuple[int | None, bool, Ties]  # block (None: all of a row), one scale for all, ties
    activation: tuple[int | None, bool, Ties]
    gradient: tuple[int | None, bool, Ties]


class QuantLinear(nn.Linear):
    """A linear layer with fake-quantized products.

    Parameters
    ----------
    in_features, out_features, bias, device, dtype
        As in ``nn.Linear``.
    weight_quantizer, activation, gradient : Quantizer or str
        For W, X and dY; the name of a format stands for one scale a row. ``activation`` and ``gradient`` are
        as ``weight_quantizer`` by default.
    products : sequence of {"P1", ..., "P6"}
        The inputs that are rounded.

    Raises
    ------
    ValueError
        An unknown product, or a quantizer that blocks along another dimension, clips, or has scales that are
        not free: those are for finished weights.

    Examples
    --------
    >>> layer = QuantLinear(8, 4, weight_quantizer=Quantizer("E2M1", 4))
    >>> layer(torch.ones(3, 8)).shape, sorted(layer.state_dict())
    (torch.Size([3, 4]), ['bias', 'weight'])
    """

    numbers: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        weight_quantizer: Quantizer | str | Format,
        activation: Quantizer | str | Format | None = None,
        gradient: Quantizer | str | Format | None = None,
        products: Iterable[str] = PAPER,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self._choose(weight_quantizer, activation, gradient, products)

    def _choose(self, weight: Any, activation: Any, gradient: Any, products: Iterable[str]) -> None:
        wanted = frozenset([products] if isinstance(products, str) else products)
        if stray := sorted(wanted - set(PRODUCTS)):
            raise ValueError(f"products are {', '.join(PRODUCTS)}, not {stray[0]!r}")
        chosen = [_quantizer(one, weight) for one in (weight, activation, gradient)]
        self.quantizers = dict(zip(("weight", "activation", "gradient"), chosen, strict=True))
        self.plan = _Plan(wanted, *(_laid_out(one) for one in chosen))
        self.register_buffer("numbers", self._numbers(), persistent=False)

    def _chosen(self) -> tuple[Quantizer, Quantizer, Quantizer]:
        weight, activation, gradient = self.quantizers.values()
        return weight, activation, gradient

    def _numbers(self) -> Tensor:
        rows = [levels(one.format) for one in self._chosen()]
        return torch.stack(rows).to(self.weight.device)

    def _apply(self, function: Any, recurse: bool = True) -> QuantLinear:
        before = self.numbers
        super()._apply(function, recurse)
        # in float32 still, whatever the weights became
        self.numbers = self._numbers() if before.is_meta else before.to(self.weight.device)
        return self

    @classmethod
    def from_linear(cls, linear: nn.Linear, **settings: Any) -> QuantLinear:
        """A layer with the parameters of ``linear``: the same objects, so that ties and optimizers hold."""
        with torch.device("meta"):
            made = cls(linear.in_features, linear.out_features, bias=False, **settings)
        made.weight, made.bias = linear.weight, linear.bias
        made._choose(*made._chosen(), made.plan.products)
        made.train(linear.training)
        return made

    def to_linear(self) -> nn.Linear:
        """An ordinary layer with the same parameters: full precision again."""
        with torch.device("meta"):
            made = nn.Linear(self.in_features, self.out_features, bias=False)
        made.weight, made.bias = self.weight, self.bias
        made.train(self.training)
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (..., out_features) of x (..., in_features)."""
        if x.shape[-1] != self.in_features:
            raise ValueError(f"the layer takes {self.in_features} features and was given {tuple(x.shape)}")
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            x, weight = x.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        rows = x.reshape(1, -1, self.in_features)
        y = _Products.apply(rows, weight[None], self.numbers[None], self.plan)[0]
        y = y.view(*x.shape[:-1], self.out_features)
        return y if bias is None else y + bias

    def extra_repr(self) -> str:
        formats = ", ".join(f"{k}={one.format.name}" for k, one in self.quantizers.items())
        if not torch.equal(self.numbers.cpu(), self._numbers().cpu()):
            formats = "another replica's formats"  # taken out of a stack of several formats
        return f"{super().extra_repr()}, {formats}, products={'+'.join(sorted(self.plan.products))}"


def qat(
    model: nn.Module,
    weight: Quantizer | str | Format,
    activation: Quantizer | str | Format | None = None,
    gradient: Quantizer | str | Format | None = None,
    *,
    products: Iterable[str] = PAPER,
    skip: Iterable[str] = _CLASSIFIERS,
) -> nn.Module:
    """Let a model's linear layers compute with few bits while it trains; changed in place and returned.

    Parameters
    ----------
    model : nn.Module
        Every ``nn.Linear`` in it is replaced; parameters stay the same objects. Subclasses, and the output
        projection of ``nn.MultiheadAttention``, which torch reads without calling it, are left alone.
    weight, activation, gradient, products
        As in `QuantLinear`.
    skip : sequence of str
        Names (whole, or the last part) of layers to leave alone: by default the usual names of classifiers,
        which the paper does not quantize.

    Raises
    ------
    ValueError
        There is no layer to replace.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> type(qat(model, Quantizer("E4M3", 4), skip=["2"])[0]).__name__, type(model[2]).__name__
    ('QuantLinear', 'Linear')
    """
    left = set([skip] if isinstance(skip, str) else skip)
    settings = {"activation": activation, "gradient": gradient, "products": tuple(products)}
    made: dict[int, QuantLinear] = {}  # a layer used twice stays one layer

    def replace(name: str, linear: nn.Linear) -> nn.Module:
        if type(linear) is not nn.Linear or name in left or name.rpartition(".")[2] in left:
            return linear
        if id(linear) not in made:
            made[id(linear)] = QuantLinear.from_linear(linear, weight_quantizer=weight, **settings)
        return made[id(linear)]

    _swap(model, nn.Linear, replace)
    if not made:
        raise ValueError(
            "there is no nn.Linear to quantize below this model"
            + (f", apart from those left alone ({', '.join(sorted(left))})" if left else "")
        )
    return model


def dequantize(model: nn.Module) -> nn.Module:
    """Undo `qat`: ordinary linear layers with the same parameters, in place; the model is returned.

    >>> model = qat(nn.Sequential(nn.Linear(8, 8)), "E2M1")
    >>> type(dequantize(model)[0]).__name__
    'Linear'
    """
    made: dict[int, nn.Linear] = {}

    def restore(name: str, layer: QuantLinear) -> nn.Module:
        if id(layer) not in made:
            made[id(layer)] = layer.to_linear()
        return made[id(layer)]

    _swap(model, QuantLinear, restore)
    return model


def _swap(model: nn.Module, kind: type[nn.Module], make: Any) -> None:
    # every place of a layer, also those that named_modules passes over as seen before
    for prefix, parent in list(model.named_modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, kind):
                setattr(parent, name, make(f"{prefix}.{name}" if prefix else name, child))


def _quantizer(given: Any, otherwise: Any) -> Quantizer:
    given = otherwise if given is None else given
    return given if isinstance(given, Quantizer) else Quantizer(given, ties="away")


def _laid_out(quantizer: Quantizer) -> tuple[int | None, bool, Ties]:
    if quantizer.dim != -1 or quantizer.scale != "free" or quantizer.clip != "max":
        raise ValueError(
            "a layer in training blocks along its last dimension, with free scales that cover the largest "
            f"value; not {quantizer}"
        )
    size = quantizer.granularity if isinstance(quantizer.granularity, int) else None
    return size, quantizer.granularity == "tensor", quantizer.ties


class _Products(torch.autograd.Function):
    """Y = X Wᵀ of X (R, n, i) and W (R, o, i) with formats (R, 3, 4), and its two gradients."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, numbers: Tensor, plan: _Plan) -> tuple[Tensor, ...]:
        rounded_x, rounded_w = x, weight
        if plan.products & {"P1", "P6"}:
            rounded_x = quantize_rows(x, numbers[:, 1], *plan.activation)
        if plan.products & {"P2", "P4"}:
            rounded_w = quantize_rows(weight, numbers[:, 0], *plan.weight)
        left = rounded_x if "P1" in plan.products else x
        right = rounded_w if "P2" in plan.products else weight
        # what the gradients need and the inputs are not
        kept = [rounded_x] * ("P6" in plan.products) + [rounded_w] * ("P4" in plan.products)
        return torch.bmm(left, right.transpose(1, 2)), *kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, numbers, ctx.plan = inputs
        kept = list(output[1:])
        ctx.mark_non_differentiable(*kept)
        if "P6" in ctx.plan.products:
            x = kept.pop(0)
        if "P4" in ctx.plan.products:
            weight = kept.pop(0)
        ctx.save_for_backward(x, weight, numbers)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, numbers = ctx.saved_tensors
        plan, rounded = ctx.plan, gradient
        if plan.products & {"P3", "P5"}:
            rounded = quantize_rows(gradient, numbers[:, 2], *plan.gradient)
        for_x = for_weight = None
        if ctx.needs_input_grad[0]:
            for_x = torch.bmm(rounded if "P3" in plan.products else gradient, weight)
        if ctx.needs_input_grad[1]:
            left = rounded if "P5" in plan.products else gradient
            for_weight = torch.bmm(left.transpose(1, 2), x)
        return for_x, for_weight, None, None

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], Any]:
        size = info.batch_size
        folded = [
            (one.expand(size, *one.shape) if dim is None else one.movedim(dim, 0)).flatten(0, 1)
            for one, dim in zip(inputs[:3], dims[:3], strict=True)
        ]
        outputs = _Products.apply(*folded, inputs[3])
        return tuple(one.unflatten(0, (size, -1)) for one in outputs), (0,) * len(outputs)
