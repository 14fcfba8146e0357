"""What goes into named modules and comes out of them, while a model runs as it always does.

* Modules are named by glob (``"blocks.*.attention.qkv"``), regular expression or class.
* Only forward hooks are used, and only between entering and leaving: nothing is patched, nothing is global,
  and outputs and gradients stay the same bit for bit.
* ``reduce`` turns each tensor into what is wanted of it at once, so that activations need not be kept.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

Selector = str | re.Pattern[str] | type[nn.Module]
"""A glob over the whole dotted name, a regular expression searched in it, or a class of modules."""


def matching_modules(
    model: nn.Module, include: Selector | Iterable[Selector], exclude: Selector | Iterable[Selector] = ()
) -> dict[str, nn.Module]:
    """The modules of ``model`` that ``include`` names and ``exclude`` does not, in the model's order.

    Parameters
    ----------
    include, exclude : glob, compiled regular expression, class, or several of them
        In a glob ``*`` stands for any text, dots included; a plain name is a glob too, and ``""`` is the
        model itself.

    Raises
    ------
    TypeError
        For a selector of another kind.
    ValueError
        If a selector of ``include`` matches no module, or nothing is left after ``exclude``.

    >>> list(matching_modules(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)), nn.Linear))
    ['0', '2']
    """
    wanted, unwanted = _selectors(include, "include"), _selectors(exclude, "exclude")
    modules = dict(model.named_modules())
    for selector in wanted:
        if not any(_matches(selector, name, module) for name, module in modules.items()):
            raise ValueError(f"no module matches {_told(selector)}; {_nearest(selector, modules)}")
    found = {
        name: module
        for name, module in modules.items()
        if any(_matches(selector, name, module) for selector in wanted)
        and not any(_matches(selector, name, module) for selector in unwanted)
    }
    if not found:
        raise ValueError(
            f"include={include!r} without exclude={exclude!r} leaves no module; name at least one to include"
        )
    return found


class Capture:
    """Inputs and outputs of named modules, one entry a call, for as long as the context lasts.

    Parameters
    ----------
    model : nn.Module
        Stays as it is: afterwards it has the hooks that it had before, also when an error leaves the context.
    include, exclude : glob, compiled regular expression, class, or several of them
        See :func:`matching_modules`.
    inputs, outputs : bool
        What to take. Of a module with several, the first tensor: of positional arguments, then of keyword
        arguments; of a tuple, a mapping or a model output.
    reduce : Tensor -> anything, optional
        Called at once with each detached tensor, without gradients; its answer is kept instead. By default
        tensors are copied, because a later layer may write into what an earlier one gave.

    Attributes
    ----------
    modules : dict of str to nn.Module
        What was chosen.
    inputs, outputs : dict of str to list
        One entry for each call of the module since :meth:`clear`, oldest first. Under activation
        checkpointing a module is called again in the backward pass, and counted again.

    Raises
    ------
    ValueError
        If neither inputs nor outputs are wanted, or no module matches.
    RuntimeError
        If a context is entered twice at the same time.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> with Capture(model, "2", reduce=lambda x: tuple(x.shape)) as seen:
    ...     _ = model(torch.ones(5, 3))
    >>> seen.inputs["2"]
    [(5, 4)]
    """

    def __init__(
        self,
        model: nn.Module,
        include: Selector | Iterable[Selector],
        *,
        exclude: Selector | Iterable[Selector] = (),
        inputs: bool = True,
        outputs: bool = False,
        reduce: Callable[[Tensor], Any] | None = None,
    ) -> None:
        if not inputs and not outputs:
            raise ValueError("there is nothing to capture: pass inputs=True, outputs=True or both")
        self.modules = matching_modules(model, include, exclude)
        self._want_inputs, self._want_outputs = inputs, outputs
        self._reduce = reduce
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self.inputs: dict[str, list[Any]] = {}
        self.outputs: dict[str, list[Any]] = {}
        self.clear()

    def clear(self) -> None:
        """Forget what was captured so far."""
        self.inputs = {name: [] for name in self.modules} if self._want_inputs else {}
        self.outputs = {name: [] for name in self.modules} if self._want_outputs else {}

    def __enter__(self) -> Self:
        if self._handles:
            raise RuntimeError("this capture is already running; leave its context before entering it again")
        for name, module in self.modules.items():
            if self._want_inputs:
                hook = self._on_inputs(name)
                self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            if self._want_outputs:
                self._handles.append(module.register_forward_hook(self._on_outputs(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _on_inputs(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._keep(self.inputs[name], (*args, *kwargs.values()), name, "input")

        return hook

    def _on_outputs(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._keep(self.outputs[name], output, name, "output")

        return hook

    def _keep(self, kept: list[Any], value: Any, name: str, kind: str) -> None:
        tensor = first_tensor(value)
        if tensor is None:
            raise TypeError(
                f"the {kind} of {name or 'the model'} holds no tensor (it is {type(value).__name__}): "
                "exclude that module"
            )
        with torch.no_grad():
            tensor = tensor.detach()
            kept.append(tensor.clone() if self._reduce is None else self._reduce(tensor))


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor in a tensor, a sequence or a mapping; None where there is none.

    >>> first_tensor((None, {"hidden": torch.ones(2)})).tolist()
    [1.0, 1.0]
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return None
    return next((found for found in map(first_tensor, value) if found is not None), None)


def _selectors(given: Selector | Iterable[Selector], argument: str) -> list[Selector]:
    several = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    for selector in several:
        if not isinstance(selector, str | re.Pattern) and not (
            isinstance(selector, type) and issubclass(selector, nn.Module)
        ):
            raise TypeError(
                f"{argument} takes globs, compiled regular expressions and classes of modules, not "
                f"{selector!r}"
            )
    return several


def _matches(selector: Selector, name: str, module: nn.Module) -> bool:
    if isinstance(selector, str):
        return fnmatch.fnmatchcase(name, selector)
    if isinstance(selector, re.Pattern):
        return selector.search(name) is not None
    return isinstance(module, selector)


def _told(selector: Selector) -> str:
    if isinstance(selector, re.Pattern):
        return f"the regular expression {selector.pattern!r}"
    return repr(selector) if isinstance(selector, str) else f"the class {selector.__name__}"


def _nearest(selector: Selector, modules: Mapping[str, nn.Module]) -> str:
    if isinstance(selector, type):
        return f"the model holds {', '.join(sorted({type(module).__name__ for module in modules.values()}))}"
    text = selector if isinstance(selector, str) else selector.pattern
    names = [name for name in modules if name]
    near = difflib.get_close_matches(text, names, n=5, cutoff=0.3) or names[:5]
    return f"names are such as {', '.join(map(repr, near))}" if near else "the model has no submodules"
