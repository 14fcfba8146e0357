"""How far weights have moved from where they began, and by which law.

Hoffer, Hubara and Soudry, 2017. arXiv:1705.08741 (section 3): while the rate is high, the distance from the
start grows as the logarithm of the number of updates, as a particle's does in a random potential whose
depth grows with distance. A walk without a potential would go with the square root, one that is pulled
straight with the number itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import pandas

__all__ = ["WeightDistance", "distance_law"]


class WeightDistance:
    """Distance of a model's weights from where they were when it was made, at chosen steps.

    Parameters
    ----------
    model : nn.Module
    optimizer : torch.optim.Optimizer, optional
        Watched: its steps are counted and recorded. Without it call `record` yourself.
    every : int or "log"
        Steps between records, or steps at about equal distances on a log axis (eight an octave).

    Examples
    --------
    >>> layer = nn.Linear(2, 1, bias=False)
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    >>> with WeightDistance(layer, optimizer) as watch:
    ...     for _ in range(2):
    ...         optimizer.zero_grad()
    ...         _ = layer(torch.ones(1, 2)).sum().backward()
    ...         optimizer.step()
    >>> watch.table()["total"].round(3).tolist()
    [0.707, 1.414]
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, *, every: int | str = "log"
    ) -> None:
        if every != "log" and not (isinstance(every, int) and every >= 1):
            raise ValueError(f"every must be 'log' or a number of steps, not {every!r}")
        self.named = {name: one for name, one in model.named_parameters() if one.requires_grad}
        if not self.named:
            raise ValueError("the model has no trainable parameter")
        self.every = every
        self._start = [one.detach().clone() for one in self.named.values()]
        self._told: list[tuple[int, Tensor]] = []
        self.steps = 0
        self._next = 1
        self._handle = None if optimizer is None else optimizer.register_step_post_hook(self._stepped)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Watch no longer."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _stepped(self, *_: Any) -> None:
        self.steps += 1
        if self.every == "log":
            if self.steps < self._next:
                return
            self._next = max(self.steps + 1, round(self.steps * 2**0.125))
        elif self.steps % int(self.every):
            return
        self.record(self.steps)

    @torch.no_grad()
    def record(self, step: int) -> None:
        """Record the distances now, under the number of this step."""
        lengths = torch._foreach_norm(torch._foreach_sub([_fine(one) for one in self.named.values()],
                                                         [_fine(one) for one in self._start]))  # fmt: skip
        self._told.append((step, torch.stack([one.double().cpu() for one in lengths])))

    def state_dict(self) -> dict[str, Any]:
        """Where weights began, and what was recorded: a run that goes on keeps its start."""
        return {
            "start": dict(zip(self.named, self._start, strict=True)), "steps": self.steps, "next": self._next,
            "records": [(step, each.tolist()) for step, each in self._told],
        }  # fmt: skip

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises
        ------
        ValueError
            It is of a model with other weights.
        """
        start = state["start"]
        if {name: tuple(one.shape) for name, one in start.items()} != {
            name: tuple(one.shape) for name, one in self.named.items()
        }:
            raise ValueError("the state is of a model with other weights than the one that is watched")
        self._start = [start[name].detach().to(one).clone() for name, one in self.named.items()]
        self.steps, self._next = int(state["steps"]), int(state["next"])
        self._told = [(int(step), torch.tensor(each, dtype=torch.float64)) for step, each in state["records"]]

    def table(self) -> pandas.DataFrame:
        """One row a record: ``step``, ``total``, and the distance of each parameter."""
        import pandas

        rows = [
            {"step": step, "total": float(each.norm()), **dict(zip(self.named, each.tolist(), strict=True))}
            for step, each in self._told
        ]
        return pandas.DataFrame(rows, columns=["step", "total", *self.named])

    def fit(self, first: int = 10) -> pandas.DataFrame:
        """`distance_law` of the total distance, from step ``first`` on."""
        table = self.table()
        late = table[table["step"] >= first]
        return distance_law(late["step"], late["total"])


def distance_law(steps: Any, distance: Any) -> pandas.DataFrame:
    """Logarithm, square root or power: which describes a distance from the start.

    Parameters
    ----------
    steps, distance : arrays (n,)
        Positive.

    Returns
    -------
    DataFrame
        For ``log`` (a + b log t), ``sqrt`` (a + b sqrt t), ``linear`` (a + b t) and ``power`` (b t^c): ``a``,
        ``b``, ``c``, ``r2``, ``aicc`` (smaller is better), and which is ``chosen``.

    Raises
    ------
    ValueError
        Fewer than six records, or one that is not positive.

    Examples
    --------
    >>> t = np.arange(1, 40)
    >>> distance_law(t, 1 + 0.5 * np.log(t))["chosen"].idxmax()
    'log'
    """
    import pandas

    from allometry.laws.compare import aicc

    t, d = np.asarray(steps, dtype=float), np.asarray(distance, dtype=float)
    if t.shape != d.shape or t.ndim != 1 or len(t) < 6:
        raise ValueError(f"a law of distance needs six or more records, not {t.shape} and {d.shape}")
    if not (np.isfinite(t) & np.isfinite(d) & (t > 0) & (d > 0)).all():
        raise ValueError("steps and distances must be positive and finite")
    rows = {}
    for name, column in (("log", np.log(t)), ("sqrt", np.sqrt(t)), ("linear", t)):
        design = np.stack([np.ones_like(t), column], axis=1)
        (a, b), *_ = np.linalg.lstsq(design, d, rcond=None)
        rows[name] = {"a": a, "b": b, "c": np.nan, **_judged(d - design @ [a, b], d)}
    from scipy.optimize import curve_fit

    slope, level = np.polyfit(np.log(t), np.log(d), 1)
    (b, c), _ = curve_fit(lambda x, b, c: b * x**c, t, d, p0=[np.exp(level), slope])
    rows["power"] = {"a": 0.0, "b": b, "c": c, **_judged(d - b * t**c, d)}
    table = pandas.DataFrame(rows).T
    table["aicc"] = [aicc(row.pop("residuals"), 2) for row in rows.values()]
    table = table.drop(columns="residuals").astype(float)
    table["chosen"] = table["aicc"] == table["aicc"].min()
    table.index.name = "law"
    return table


def _fine(one: Tensor) -> Tensor:
    """Weights in a precision in which small distances show."""
    return one.detach().float() if one.dtype in (torch.bfloat16, torch.float16) else one.detach()


def _judged(residuals: Any, values: Any) -> dict[str, Any]:
    spread = np.sum((values - values.mean()) ** 2)
    return {
        "r2": 1.0 - float(np.sum(residuals**2) / spread) if spread > 0 else np.nan,
        "residuals": residuals,
    }
