"""The coordinate check: do activations and their updates keep their size as a network gets wider?

Greg Yang and others, "Tensor Programs V", 2022, arXiv:2203.03466, appendix D.1; the theory is "Feature
Learning in Infinite-Width Neural Networks", 2020, arXiv:2011.14522.

One model is built at several widths and trained for a few steps. After each step every module's output on one
fixed probe batch is compared with what it was before training. In a correct parametrization neither the size
of the outputs nor the size of their change depends on width: both slopes in log width are zero. Under
standard parametrization at one rate they grow, which is why its best rate falls with width; under the
neural-tangent parametrization the change of hidden features vanishes.

Three steps suffice and convergence means nothing here. Widths below 64 bend the slopes.
"""

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

__all__ = ["CoordinateCheck", "coordinate_check"]

LOGITS = "(output)"
"""What the whole model's output is called in the tables."""


@dataclass(frozen=True)
class CoordinateCheck:
    """Sizes of outputs and of their changes, their slopes in log width, and the verdict.

    Attributes
    ----------
    table : pandas.DataFrame
        ``width, seed, step, module, rms, rms_delta``: the root mean square of the module's output on the
        probe batch after ``step`` steps, and of its difference from step 0. A module's further calls within
        a pass have names of their own, ``layer (2)``.
    slopes : pandas.DataFrame
        ``step, module, grows, rms, rms_delta``: least-squares slopes of log size in log width over all widths
        and seeds, and whether the module's output itself grows with width (a hidden feature). Not a number
        where a size was exactly zero, or the module is not in every model, as when depth is the width.
    passed : bool
    reasons : tuple of str
        Why it failed: one sentence a module.
    """

    table: "pandas.DataFrame"
    slopes: "pandas.DataFrame"
    passed: bool
    reasons: tuple[str, ...]

    def plot(self, ax: "Axes | str | None" = None, *, column: str = "rms_delta") -> "Axes":
        """Draw the sizes after the last step against width, a line a module.

        Parameters
        ----------
        ax : matplotlib Axes or path, optional
            Where to draw; with a path the figure is saved there.
        column : "rms" or "rms_delta"
        """
        from matplotlib.axes import Axes
        from matplotlib.figure import Figure

        if column not in ("rms", "rms_delta"):
            raise ValueError(f"column is 'rms' or 'rms_delta'; got {column!r}")
        axes = ax if isinstance(ax, Axes) else Figure(figsize=(6, 4), layout="constrained").add_subplot()
        last = self.table[self.table["step"] == self.table["step"].max()]
        for module, rows in last.groupby("module", sort=False):
            line = rows.groupby("width")[column].mean()
            axes.loglog(line.index, line.to_numpy(), marker="o", label=str(module), linewidth=1)
        axes.set_xlabel("width")
        axes.set_ylabel("size of the output" if column == "rms" else "size of its change since step 0")
        axes.legend(fontsize="xx-small", ncols=2)
        if ax is not None and not isinstance(ax, Axes):
            axes.get_figure().savefig(ax)  # type: ignore[union-attr]
        return axes


def coordinate_check(
    make_model: Callable[..., nn.Module],
    widths: Sequence[int],
    batches: Iterable[tuple[Any, Any]],
    *,
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    steps: int = 3,
    seeds: int = 3,
    loss: Callable[[Tensor, Any], Tensor] | None = None,
    include: str | Iterable[str] | None = None,
    tolerance: float = 0.2,
) -> CoordinateCheck:
    """Train one model at several widths for a few steps and watch how its activations move.

    Parameters
    ----------
    make_model : callable
        ``make_model(width)``, called with torch's global generator seeded (and restored afterwards), or
        ``make_model(width, generator)`` for a model that draws from a generator of its own.
    widths : sequence of int
        At least two; or depths, for a model that is told its depth. Modules are compared by name, and only
        those that every model has.
    batches : iterable of (inputs, targets)
        Inputs are a tensor, a tuple of arguments or a mapping of keyword arguments. No more are drawn than
        there are steps; fewer repeat. The first is the probe too.
    make_optimizer : callable
        The optimizer for a model, at one learning rate for all widths.
    steps, seeds : int
    loss : callable, optional
        ``loss(logits, targets)``. Default: cross-entropy over the last dimension for integer targets, mean
        squared error otherwise. Outputs that are not tensors are looked up for ``logits``.
    include : regular expression or several, optional
        Which modules to judge, searched in their names; all that return a floating tensor by default.
    tolerance : float
        The check fails if, after any step, a module's size or its change grows faster than this power of
        width; and if, after the last step, the change of a hidden feature or of the model's output shrinks
        faster than its inverse. Sizes themselves may shrink: the first logits of a feature-learning limit
        must.

    Returns
    -------
    CoordinateCheck

    Raises
    ------
    ValueError
        For fewer than two widths, no batch, no module, or a ``make_model`` that ignores the seed.

    Notes
    -----
    The exponents of the theory are multiples of one half; a slope beyond a quarter is nearer to a wrong one.
    Take a rate at which a step is small beside the initial weights. At widths from 64 to 512, with 3 seeds
    and 3 steps of Adam, the slopes of µP stayed within 0.1 at a rate of 0.003, for perceptrons and GPT-2
    alike, while those of standard parametrization reached 1 to 2; at 0.01, half of GPT-2's initial standard
    deviation, they bent to -0.2.

    Examples
    --------
    >>> def build(width):
    ...     return nn.Sequential(nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 2))
    >>> batch = (torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2)
    >>> check = coordinate_check(
    ...     build,
    ...     widths=[64, 128, 256],
    ...     batches=[batch],
    ...     make_optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=1e-2),
    ... )
    >>> check.passed
    False
    """
    import pandas as pd

    widths = [int(width) for width in widths]
    if len(set(widths)) < 2:
        raise ValueError(f"a slope needs at least two widths; got {widths}")
    if steps < 1 or seeds < 1:
        raise ValueError(f"steps and seeds must be at least 1; got {steps} and {seeds}")
    batches = list(islice(batches, steps))  # a stream may have no end
    if not batches:
        raise ValueError("coordinate_check needs at least one batch of (inputs, targets)")
    patterns = None
    if include is not None:
        patterns = [re.compile(p) for p in ([include] if isinstance(include, str) else include)]
    loss = loss or _default_loss

    rows: list[tuple[int, int, int, str, float, float]] = []
    sizes: dict[str, set[tuple[int, ...]]] = {}
    for width in widths:
        for seed in range(seeds):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model = _build(make_model, width, seed)
                for step, name, rms, delta, shape in _run(
                    model, batches, make_optimizer, steps, loss, patterns
                ):
                    rows.append((width, seed, step, name, rms, delta))
                    sizes.setdefault(name, set()).add(shape)
    table = pd.DataFrame(rows, columns=["width", "seed", "step", "module", "rms", "rms_delta"])
    if table.empty:
        raise ValueError(f"no module with a floating tensor as output matches include={include!r}")
    start = table[(table["step"] == 0) & (table["width"] == widths[0])]
    if seeds > 1 and (start.groupby("module")["rms"].nunique() <= 1).all():
        raise ValueError(
            "make_model builds the same weights for every seed; let it take a generator as its second "
            "argument, or pass seeds=1"
        )
    slopes = _slopes(table, len(widths), {name for name, shapes in sizes.items() if len(shapes) > 1})
    reasons = tuple(_reasons(slopes, steps, tolerance))
    return CoordinateCheck(table, slopes, not reasons, reasons)


def _build(make_model: Callable[..., nn.Module], width: int, seed: int) -> nn.Module:
    parameters = inspect.signature(make_model).parameters.values()
    needed = [
        p
        for p in parameters
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is inspect.Parameter.empty
    ]
    if len(needed) == 2:
        return make_model(width, torch.Generator().manual_seed(seed))
    return make_model(width)


def _run(
    model: nn.Module,
    batches: Sequence[tuple[Any, Any]],
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    steps: int,
    loss: Callable[[Tensor, Any], Tensor],
    patterns: Sequence[re.Pattern[str]] | None,
) -> Iterator[tuple[int, str, float, float, tuple[int, ...]]]:
    """Train; after each step yield every module's (step, name, rms, rms of the change, shape)."""
    optimizer = make_optimizer(model)
    first: dict[str, Tensor] = {}
    for step in range(steps + 1):
        if step:
            inputs, targets = batches[(step - 1) % len(batches)]
            optimizer.zero_grad()
            loss(_logits(_call(model, inputs)), targets).backward()
            optimizer.step()
        for name, measured in _probe(model, batches[0][0], patterns, first).items():
            yield step, name, *measured


@torch.no_grad()
def _probe(
    model: nn.Module, inputs: Any, patterns: Sequence[re.Pattern[str]] | None, first: dict[str, Tensor]
) -> dict[str, tuple[float, float, tuple[int, ...]]]:
    """Each module's (rms, rms of the change, shape) on the probe batch; ``first`` fills at the first call.

    Dropout draws the same mask every time. Sizes are taken while the model runs, before anything downstream
    can write into an output.
    """
    found: dict[str, tuple[float, float, tuple[int, ...]]] = {}

    calls: Counter[str] = Counter()

    def take(name: str, output: Tensor) -> None:
        calls[name] += 1
        if calls[name] > 1:  # a module that the model calls again is compared call by call
            name = f"{name} ({calls[name]})"
        start = first.get(name)
        if start is None:
            start = first[name] = output.detach().clone()
        found[name] = (_rms(output), _rms(output - start), tuple(output.shape))

    handles = []
    for name, module in model.named_modules():
        if not name or (patterns is not None and not any(pattern.search(name) for pattern in patterns)):
            continue

        def keep(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
            output = output[0] if isinstance(output, tuple) and output else output
            if isinstance(output, Tensor) and output.is_floating_point():
                take(name, output)

        handles.append(module.register_forward_hook(keep))
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            output = _logits(_call(model, inputs))
    finally:
        for handle in handles:
            handle.remove()
    if patterns is None or any(pattern.search(LOGITS) for pattern in patterns):
        take(LOGITS, output)
    return found


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _logits(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if isinstance(getattr(output, "logits", None), Tensor):
        return output.logits
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        return output[0]
    raise TypeError(f"the model must return a tensor or an output with logits; got {type(output).__name__}")


def _default_loss(logits: Tensor, targets: Tensor) -> Tensor:
    if targets.is_floating_point():
        return F.mse_loss(logits, targets)
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def _rms(x: Tensor) -> float:
    return torch.linalg.vector_norm(x, dtype=torch.float64).item() / max(x.numel(), 1) ** 0.5


def _slopes(table: "pandas.DataFrame", widths: int, hidden: set[str]) -> "pandas.DataFrame":
    import numpy as np
    import pandas as pd

    def slope(rows: "pandas.DataFrame", column: str) -> float:
        size = rows[column].to_numpy()
        if not np.isfinite(size).all():
            return float("inf")
        if (size <= 0).any() or rows["width"].nunique() < widths:
            return float("nan")
        return float(np.polyfit(np.log(rows["width"].to_numpy()), np.log(size), 1)[0])

    rows = [
        (step, module, module in hidden, slope(cell, "rms"), slope(cell, "rms_delta"))
        for (step, module), cell in table.groupby(["step", "module"], sort=False)
    ]
    return pd.DataFrame(rows, columns=["step", "module", "grows", "rms", "rms_delta"])


def _reasons(slopes: "pandas.DataFrame", steps: int, tolerance: float) -> Iterator[str]:
    trained = slopes[slopes["step"] > 0]
    for module, rows in trained.groupby("module", sort=False):
        grown, moved = rows["rms"].max(), rows["rms_delta"].max()
        if grown > tolerance:
            yield f"{module}: its size grows like width^{grown:.2f}, above {tolerance:g}"
        elif moved > tolerance:
            yield f"{module}: its change grows like width^{moved:.2f}, above {tolerance:g}"
        else:
            last = rows[rows["step"] == steps].iloc[0]
            if (last["grows"] or module == LOGITS) and last["rms_delta"] < -tolerance:
                moved = last["rms_delta"]
                yield f"{module}: its change vanishes like width^{moved:.2f}, below {-tolerance:g}"
