"""A model as a function of its parameters, one row of outputs a sample; and samples of its inputs.

Inputs are what the model is called with: a tensor, a tuple of tensors (positional arguments), or a mapping
(keyword arguments, as tokenizers give). Samples lie along the first dimension of every tensor with as many
rows as the first tensor; anything else is passed on as it is.
"""

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from allometry.measure.capture import first_tensor

__all__ = ["AsFunction", "sample_count", "some_samples"]


def sample_count(x: Any) -> int:
    """How many samples the inputs hold.

    Raises
    ------
    ValueError
        There is no tensor, or it has no samples.

    >>> sample_count({"tokens": torch.zeros(5, 3)})
    5
    """
    found = first_tensor(x)
    if found is None or found.ndim == 0 or not len(found):
        raise ValueError(
            "inputs are a tensor, a tuple or a mapping of tensors with at least one sample, along the first "
            f"dimension; got {type(x).__name__}"
            + ("" if found is None else f" of shape {tuple(found.shape)}")
        )
    return len(found)


def some_samples(x: Any, chosen: slice | Tensor) -> Any:
    """The inputs of some samples.

    >>> some_samples((torch.arange(4), 0.5), slice(1, 3))
    (tensor([1, 2]), 0.5)
    """
    count = sample_count(x)

    def pick(one: Any) -> Any:
        return one[chosen] if isinstance(one, Tensor) and one.ndim and len(one) == count else one

    if isinstance(x, Tensor):
        return pick(x)
    return {k: pick(v) for k, v in x.items()} if isinstance(x, Mapping) else tuple(pick(one) for one in x)


class AsFunction:
    """A model's outputs as a function of some of its parameters; the model itself is left alone.

    Parameters
    ----------
    model : nn.Module
    params : glob, or several of them, optional
        Names of parameters; by default all that require gradients. Tied ones count once.
    outputs : callable, optional
        Takes the model's answer and gives a tensor (samples, ...); by default the first tensor of it.

    Attributes
    ----------
    values : dict of str to Tensor
        The chosen parameters as they are now, detached.
    held : dict of str to Tensor
        All other parameters, and copies of the buffers.

    Raises
    ------
    ValueError
        No parameter is chosen, a glob matches none, or torch's inference mode keeps no gradients.

    Examples
    --------
    >>> f = AsFunction(nn.Linear(2, 3), "weight")
    >>> list(f.values), f(f.values, torch.ones(4, 2)).shape
    (['weight'], torch.Size([4, 3]))
    """

    def __init__(
        self, model: nn.Module, params: str | Iterable[str] | None = None,
        outputs: Callable[[Any], Tensor] | None = None,
    ) -> None:  # fmt: skip
        if not isinstance(model, nn.Module):
            raise ValueError(f"the model is a torch.nn.Module; got {type(model).__name__}")
        if torch.is_inference_mode_enabled():
            raise ValueError(
                "gradients are needed, which torch.inference_mode() does not keep: call this outside"
            )
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        named = dict(model.named_parameters())
        if params is None:
            names = [name for name, one in named.items() if one.requires_grad]
        else:
            globs = [params] if isinstance(params, str) else list(params)
            for glob in globs:
                if not fnmatch.filter(named, glob):
                    raise ValueError(f"no parameter matches {glob!r}; names are such as {list(named)[:5]}")
            names = [name for name in named if any(fnmatch.fnmatchcase(name, glob) for glob in globs)]
        if not names:
            raise ValueError("no parameter of the model requires gradients; name some with params=")
        self.model, self.outputs = model, outputs
        self.values = {name: named[name].detach() for name in names}
        self.held = {name: one.detach() for name, one in named.items() if name not in self.values}
        self.held |= {name: one.detach().clone() for name, one in model.named_buffers()}

    def __call__(self, values: Mapping[str, Tensor], x: Any) -> Tensor:
        """Outputs (samples, k) at values of the chosen parameters.

        Raises
        ------
        ValueError
            The answer holds no tensor with one row a sample.
        """
        state = {**self.held, **values}

        def called(*args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(self.model, state, args, kwargs)

        with sdpa_kernel(SDPBackend.MATH):  # the fused ones have no forward-mode or batched derivatives
            if isinstance(x, Tensor):
                answer = called(x)
            else:
                answer = called(**x) if isinstance(x, Mapping) else called(*x)
        found = first_tensor(answer) if self.outputs is None else self.outputs(answer)
        count = sample_count(x)
        if not isinstance(found, Tensor) or found.ndim == 0 or len(found) != count:
            told = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"the model must answer with one row for each of the {count} samples; got {told}: pass "
                "outputs= to choose a tensor from its answer"
            )
        return found.reshape(count, -1)
