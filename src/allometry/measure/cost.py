"""How long a call takes, and which count of a network's work tells it.

Dollár, Singh and Girshick, "Fast and Accurate Model Scaling", 2021. arXiv:2103.06877, section 3: running time
follows what layers write, not what they multiply, where memory is what a machine waits for.

* Calls are timed in turn, round after round, so that a machine that slows down slows all of them.
* The median and quartiles are told, never the mean: what else runs only ever adds.
* The law is a line in logarithms, with Student's intervals; whoever has networks of few families should read
  them as too narrow.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import numpy as np
    import pandas

__all__ = ["RuntimeLaw", "model_call", "runtime", "runtime_law"]


def runtime(
    calls: Mapping[str, Callable[[], Any]], *, repeats: int = 10, warmup: int = 3
) -> pandas.DataFrame:
    """Seconds that each of several calls takes, measured in turn.

    Parameters
    ----------
    calls : mapping of name to callable without arguments
    repeats : int
        Rounds that count.
    warmup : int
        Rounds before, that do not.

    Returns
    -------
    pandas.DataFrame
        One row a call, by name: ``seconds`` (median), ``low`` and ``high`` (quartiles), ``fastest``.

    Raises
    ------
    ValueError
        Nothing to time, or no rounds.

    Examples
    --------
    >>> times = runtime({"short": lambda: sum(range(10)), "long": lambda: sum(range(100_000))})
    >>> bool(times.loc["short", "seconds"] < times.loc["long", "seconds"])
    True
    """
    import numpy as np
    import pandas

    if not calls:
        raise ValueError("runtime needs at least one call to time")
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats must be at least 1 and warmup at least 0; got {repeats} and {warmup}")
    seconds = np.empty((repeats, len(calls)))
    collecting = gc.isenabled()
    gc.disable()  # a collection would fall upon whichever call is being timed
    try:
        for turn in range(-warmup, repeats):
            for place, call in enumerate(calls.values()):
                _settle()
                start = time.perf_counter()
                call()
                _settle()
                if turn >= 0:
                    seconds[turn, place] = time.perf_counter() - start
    finally:
        if collecting:
            gc.enable()
    low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75), axis=0)
    return pandas.DataFrame(
        {"seconds": median, "low": low, "high": high, "fastest": seconds.min(0)},
        index=pandas.Index(list(calls), name="call"),
    )


def _settle() -> None:
    """Wait for an accelerator that works by itself."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def model_call(
    model: nn.Module, inputs: Tensor, mode: Literal["infer", "train"] = "infer"
) -> Callable[[], Any]:
    """A forward pass without gradients, or a forward and backward pass, as a call for `runtime`.

    Parameters
    ----------
    model : nn.Module
        Put into evaluation or training mode; gradients are taken of the sum of its outputs.
    inputs : Tensor
    mode : "infer" or "train"

    Examples
    --------
    >>> model_call(nn.Linear(3, 2), torch.ones(1, 3))().shape
    torch.Size([1, 2])
    """
    if mode not in ("infer", "train"):
        raise ValueError(f"mode is 'infer' or 'train'; got {mode!r}")

    def infer() -> Any:
        model.eval()
        with torch.inference_mode():
            return model(inputs)

    def train() -> None:
        model.train()
        model.zero_grad(set_to_none=True)
        model(inputs).sum().backward()

    return infer if mode == "infer" else train


@dataclass(frozen=True)
class RuntimeLaw:
    """Time as a power of counts.

    Attributes
    ----------
    alone : pandas.DataFrame
        One row a count, each fitted by itself: ``exponent``, ``low``, ``high``, ``residual`` (standard
        deviation in natural logarithms), ``correlation`` of the logarithms.
    together : pandas.DataFrame
        All counts in one fit: ``exponent``, ``low``, ``high``.
    left_out : pandas.DataFrame
        One row a network, one column a count: log time less what the count alone says of it, fitted to all
        other networks.
    residual : float
        Of the fit of all counts.
    constant : float
        Logarithm of seconds where all counts are one.
    """

    alone: pandas.DataFrame
    together: pandas.DataFrame
    left_out: pandas.DataFrame
    residual: float
    constant: float

    @property
    def explains(self) -> str:
        """The count that tells the time best by itself."""
        return str(self.alone["residual"].idxmin())

    def predict(self, table: pandas.DataFrame) -> np.ndarray[Any, Any]:
        """Seconds, from a table with the columns of the counts."""
        import numpy as np

        exponents = self.together["exponent"]
        counts = table[list(exponents.index)].to_numpy(float)
        return np.asarray(np.exp(self.constant + np.log(counts) @ exponents.to_numpy()))


def runtime_law(
    table: pandas.DataFrame, *, seconds: str = "seconds", counts: Sequence[str] = ("flops", "activations"),
    level: float = 0.95,
) -> RuntimeLaw:  # fmt: skip
    """Fit log time on the logarithms of counts, each alone and all together.

    Parameters
    ----------
    table : pandas.DataFrame
        One row a network, with columns ``seconds`` and those of ``counts``, all positive.
    level : float
        Of the intervals (Student's).

    Returns
    -------
    RuntimeLaw

    Raises
    ------
    ValueError
        Too few networks, values without a logarithm, or counts that are in proportion, so that no data can
        tell them apart.

    Examples
    --------
    >>> import pandas
    >>> table = pandas.DataFrame({"flops": [1, 4, 9, 30, 50], "activations": [1, 3, 2, 9, 5]})
    >>> law = runtime_law(table.assign(seconds=2 * table["activations"] ** 0.5))
    >>> law.explains, round(float(law.together.loc["activations", "exponent"]), 6)
    ('activations', 0.5)
    """
    import numpy as np
    import pandas

    absent = [name for name in (seconds, *counts) if name not in table]
    if absent:
        raise ValueError(f"the table has no column {absent[0]!r}; it has {', '.join(map(str, table))}")
    values = table[[seconds, *counts]].to_numpy(float)
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError("times and counts must be finite and above 0")
    if len(values) < len(counts) + 3:
        raise ValueError(f"{len(counts)} counts need at least {len(counts) + 3} networks; got {len(values)}")
    logs = np.log(values)
    spread = (logs[:, 1:] - logs[:, 1:].mean(0)) / np.maximum(logs[:, 1:].std(0), 1e-12)
    if np.linalg.svd(spread, compute_uv=False)[-1] < 1e-6 * np.sqrt(len(values)):
        raise ValueError(
            f"{' and '.join(counts)} are in proportion over these networks; add networks that differ in shape"
        )
    rows = [_line(logs[:, [k]], logs[:, 0], level) for k in range(1, len(counts) + 1)]
    alone = pandas.DataFrame(
        {name: (*row[0][0], row[1], np.corrcoef(logs[:, 0], logs[:, k])[0, 1])
         for k, (name, row) in enumerate(zip(counts, rows, strict=True), start=1)},
        index=["exponent", "low", "high", "residual", "correlation"],
    ).T  # fmt: skip
    left_out = pandas.DataFrame(
        {name: _left_out(logs[:, k], logs[:, 0]) for k, name in enumerate(counts, start=1)}, index=table.index
    )
    joint, residual, constant = _line(logs[:, 1:], logs[:, 0], level)
    together = pandas.DataFrame(joint, columns=["exponent", "low", "high"], index=list(counts))
    return RuntimeLaw(alone, together, left_out, residual, constant)


def _line(
    x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], level: float
) -> tuple[np.ndarray[Any, Any], float, float]:
    """Least squares with a constant: rows of (slope, low, high), residual deviation, the constant."""
    import numpy as np
    from scipy import stats

    design = np.column_stack([np.ones(len(x)), x])
    found, *_ = np.linalg.lstsq(design, y, rcond=None)
    freedom = len(y) - design.shape[1]
    residual = float(np.sqrt(((y - design @ found) ** 2).sum() / freedom))
    errors = residual * np.sqrt(np.diag(np.linalg.inv(design.T @ design)))
    half = stats.t.ppf(0.5 + level / 2, freedom) * errors
    return np.column_stack([found, found - half, found + half])[1:], residual, float(found[0])


def _left_out(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Residuals of lines fitted without the point itself: residual / (1 - leverage)."""
    import numpy as np

    design = np.column_stack([np.ones(len(x)), x])
    hat = design @ np.linalg.pinv(design)
    return np.asarray((y - hat @ y) / (1 - np.diag(hat)))
