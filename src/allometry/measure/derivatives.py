"""Products with second derivatives, and gradients sample by sample.

The Hessian times a vector is the derivative of the gradient along it (Pearlmutter, 1994); the generalised
Gauss-Newton matrix ``J' H_out J`` keeps of it what the loss bends and leaves out what the model bends
(Schraudolph, 2002).

Both products go twice in reverse: that was never slower here than forward over reverse, and more of torch's
functions have it. ``J v`` is the derivative of ``J' u`` in ``u``, where it is linear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vjp, vmap
from torch.utils._pytree import tree_leaves, tree_map

from allometry.measure.objective import Objective, batches_of, each_of, plain, samples_in

__all__ = ["ggn_vp", "hvp", "per_example_gradients", "squared_gradients"]


def hvp(loss: Callable[[Any], Tensor], params: Any, v: Any) -> Any:
    """The Hessian of a loss times one vector, or several.

    Parameters
    ----------
    loss : params -> Tensor ()
    params : tensors in any nesting
        Where the Hessian is taken.
    v : as ``params``
        Each tensor of the shape of its parameter, or with one more axis in front: several vectors at the
        price of one gradient and a product each.

    Returns
    -------
    as ``v``

    Raises
    ------
    ValueError
        ``v`` does not fit ``params``.

    Examples
    --------
    >>> hvp(lambda x: (x**3).sum(), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0])).tolist()
    [6.0, 12.0]
    """
    several = _several(params, v)
    product = vjp(grad(loss), params)[1]
    (found,) = vmap(product)(v) if several else product(v)
    return found


def ggn_vp(function: Callable[[Any], Tensor], loss: Callable[[Tensor], Tensor], params: Any, v: Any) -> Any:
    """The generalised Gauss-Newton matrix of ``loss(function(params))`` times one vector, or several.

    Parameters
    ----------
    function : params -> Tensor
        The model's output.
    loss : Tensor -> Tensor ()
        Of the output.
    params, v
        As in `hvp`.

    Examples
    --------
    >>> ggn_vp(lambda x: x**2, lambda y: (y**2).sum() / 2, torch.tensor([1.0, 2.0]), torch.ones(2)).tolist()
    [4.0, 16.0]
    """
    several = _several(params, v)
    output, pull = vjp(function, params)[:2]
    push = vjp(lambda u: pull(u)[0], torch.zeros_like(output))[1]
    bend = vjp(grad(loss), output)[1]

    def product(one: Any) -> Any:
        return pull(bend(push(one)[0])[0])[0]

    return vmap(product)(v) if several else product(v)


def per_example_gradients(
    model: nn.Module, loss: Any, batch: Any, *, chunk: int | None = None, **options: Any
) -> dict[str, Tensor]:
    """The gradient of every sample's own loss.

    Parameters
    ----------
    model : nn.Module
    loss : (output, target) -> Tensor (), or None
        None with ``objective=``; see `Objective` for this and the other options.
    batch : (inputs, targets), or whatever ``objective`` takes
    chunk : int, optional
        Samples at a time: the memory is that of as many gradients, beside what is returned.

    Returns
    -------
    dict of name to Tensor (B, *shape)

    Raises
    ------
    ValueError
        As `Objective`; no samples.

    Examples
    --------
    >>> model = nn.Linear(2, 1, bias=False)
    >>> found = per_example_gradients(model, lambda y, t: (y - t).sum(), (torch.eye(2), torch.zeros(2, 1)))
    >>> found["weight"].tolist()
    [[[1.0, 0.0]], [[0.0, 1.0]]]
    """
    one = Objective(model, loss, **options)
    samples_in(batch)
    batch = one.cast(batch)
    one.check(batch)
    return _each_gradient(one, batch, chunk)


def squared_gradients(
    model: nn.Module, loss: Any, data: Any, *, chunk: int = 256, **options: Any
) -> dict[str, Tensor]:
    """The mean over samples of squared gradients: the diagonal of their second moment.

    With labels drawn from the model it is the Fisher information's diagonal; with the data's own labels it
    is what is called the empirical one.

    Parameters
    ----------
    model, loss, **options
        As in `per_example_gradients`.
    data : a batch, or an iterable of batches
    chunk : int
        Samples at a time.

    Returns
    -------
    dict of name to Tensor (*shape)

    Examples
    --------
    >>> model = nn.Linear(2, 1, bias=False)
    >>> data = (torch.eye(2), torch.zeros(2, 1))
    >>> squared_gradients(model, lambda y, t: (y - t).sum(), data)["weight"].tolist()
    [[0.5, 0.5]]
    """
    one = Objective(model, loss, **options)
    total, count = {name: torch.zeros_like(value) for name, value in one.params.items()}, 0
    for batch in batches_of(data):
        if count == 0:
            one.check(one.cast(batch))
        for part in gradients_of_samples(one, batch, chunk):
            for name, found in part.items():
                total[name] += found.square().sum(0)
        count += samples_in(batch)
    if count == 0:
        raise ValueError("there are no batches")
    return {name: value / count for name, value in total.items()}


def gradients_of_samples(one: Objective, batch: Any, chunk: int) -> Iterator[dict[str, Tensor]]:
    """Samples' gradients, some at a time: tensors (n, *shape) by parameter."""
    batch = plain(batch)
    for start in range(0, samples_in(batch), chunk):
        yield _each_gradient(
            one, one.cast(tree_map(lambda leaf, at=start: leaf[at : at + chunk], batch)), None
        )


def _each_gradient(one: Objective, batch: Any, chunk: int | None) -> dict[str, Tensor]:
    def alone(sample: Any) -> dict[str, Tensor]:
        lone = tree_map(lambda leaf: leaf[None], sample)
        return grad(lambda params: one.loss(params, lone))(one.params)

    return each_of(alone, batch, chunk=chunk)


def _several(params: Any, v: Any) -> bool:
    places: Sequence[Tensor] = tree_leaves(params)
    given: Sequence[Tensor] = tree_leaves(v)
    extra = {many.ndim - one.ndim for one, many in zip(places, given, strict=False)}
    fits = len(places) == len(given) and all(
        many.shape[many.ndim - one.ndim :] == one.shape for one, many in zip(places, given, strict=False)
    )
    if not fits or extra not in ({0}, {1}):
        raise ValueError(
            "v must have the shapes of the parameters, or one more axis in front of each; got "
            f"{[tuple(many.shape) for many in given]} for {[tuple(one.shape) for one in places]}"
        )
    return extra == {1}
