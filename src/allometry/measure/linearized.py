"""A network replaced by its first-order expansion in the parameters: what the lazy regime would make of it.

f(x; θ₀) + ∂f/∂θ (x; θ₀) · (θ − θ₀), after Jacot, Gabriel and Hongler (2018, arXiv:1806.07572) and Lee et al.
(2019, arXiv:1902.06720). Gradient flow on it is exactly kernel gradient descent with the kernel at θ₀.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from allometry.measure.per_sample import AsFunction

__all__ = ["linearize"]


def linearize(
    model: nn.Module,
    params0: Mapping[str, Tensor] | None = None,
    *,
    outputs: Callable[[Any], Tensor] | None = None,
) -> nn.Module:
    """The first-order model around ``params0``, with parameters of its own that begin where the model is.

    Parameters
    ----------
    model : nn.Module
        Is left as it is. Only parameters that require gradients move.
    params0 : mapping of str to Tensor, optional
        The place of expansion, by parameter name; by default where the model is.
    outputs : callable, optional
        As for `empirical_kernel`.

    Returns
    -------
    nn.Module
        Called as the model is; gives (samples, outputs). Its parameters are those of the model, with dots in
        their names replaced by ``/``.

    Raises
    ------
    ValueError
        ``params0`` lacks a parameter or has it in another shape.

    Examples
    --------
    >>> model, x = nn.Sequential(nn.Linear(2, 3), nn.Tanh()), torch.ones(1, 2)
    >>> bool(torch.allclose(linearize(model)(x), model(x)))
    True
    """
    return _Linearized(copy.deepcopy(model), params0, outputs)


class _Linearized(nn.Module):
    def __init__(
        self, model: nn.Module, start: Mapping[str, Tensor] | None, outputs: Callable[[Any], Tensor] | None
    ) -> None:
        super().__init__()
        self._function = AsFunction(model, None, outputs)
        now = self._function.values
        for name, one in now.items():
            if start is not None and (name not in start or start[name].shape != one.shape):
                raise ValueError(f"params0 needs {name} of shape {tuple(one.shape)}")
        self.moved = nn.ParameterDict(
            {name.replace(".", "/"): nn.Parameter(one.clone()) for name, one in now.items()}
        )
        for name, one in now.items():
            place = one if start is None else start[name].detach()
            self.register_buffer(name.replace(".", "/"), place.clone())

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        x = kwargs or (args[0] if len(args) == 1 else args)
        names = {name.replace(".", "/"): name for name in self._function.values}
        start = {name: self.get_buffer(key) for key, name in names.items()}
        step = {name: self.moved[key] - start[name] for key, name in names.items()}
        found = torch.func.jvp(lambda values: self._function(values, x), (start,), (step,))
        return found[0] + found[1]

    def _apply(self, fn: Any, recurse: bool = True) -> "_Linearized":
        super()._apply(fn, recurse)
        old = self._function
        self._function = AsFunction(old.model._apply(fn), None, old.outputs)
        return self
