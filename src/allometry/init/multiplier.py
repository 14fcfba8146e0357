"""Forward multipliers as hooks: a layer's input or output is scaled and nothing else about the model changes.

A multiplier that is a hook leaves the module's type, its ``state_dict`` keys and its parameters alone, is
carried along by ``copy.deepcopy`` and pickle, and works under ``torch.func.functional_call`` and ``vmap``.
"""

from typing import Any

from torch import Tensor, nn

__all__ = ["DivideInput", "MultiplyOutput"]


class DivideInput:
    """Divides the first argument of a module's call; the bias of a linear layer is not touched.

    Examples
    --------
    >>> import torch
    >>> layer = nn.Linear(1, 1)
    >>> handle = DivideInput(4.0).attach(layer)
    >>> bool(torch.allclose(layer(torch.ones(1)), layer.weight[0] / 4 + layer.bias))
    True
    """

    def __init__(self, divisor: float) -> None:
        self.divisor = divisor

    def attach(self, module: nn.Module) -> Any:
        """Hook the multiplier to the module; returns the handle whose ``remove()`` takes it off."""
        return module.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args:
            return (args[0] / self.divisor, *args[1:]), kwargs
        name, value = next(iter(kwargs.items()))
        return args, {**kwargs, name: value / self.divisor}


class MultiplyOutput:
    """Multiplies what a module returns, or the first tensor of it where it returns several things."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def attach(self, module: nn.Module) -> Any:
        """Hook the multiplier to the module; returns the handle whose ``remove()`` takes it off."""
        return module.register_forward_hook(self)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, Tensor):
            return output * self.factor
        if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
            return (output[0] * self.factor, *output[1:])
        raise TypeError(
            f"a residual branch must return a tensor or a tuple that begins with one; "
            f"{type(module).__name__} returned {type(output).__name__}"
        )
