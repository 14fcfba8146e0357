"""Two sets of logs, base and technique: do their curves cross, where, and what would settle it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allometry.show.text import aligned, cut, wrapped

if TYPE_CHECKING:
    from allometry.laws.crossover import Crossover
    from allometry.laws.curve import Curve
    from allometry.laws.further_runs import FurtherRuns
    from allometry.laws.runs import Runs

__all__ = ["against", "draw", "summary", "to_dict"]

_SCALES = ("params", "tokens", "flops")


def against(base: Runs, arm: Runs, level: float = 0.95) -> tuple[Crossover, FurtherRuns | None, str, str]:
    """The crossing, what would settle it (or why that cannot be said), and the scale that was taken.

    Parameters
    ----------
    base, arm : Runs
        From `read_runs`; of each run the last record counts.
    level : float

    Returns
    -------
    Crossover, FurtherRuns or None, reason, scale

    Raises
    ------
    ValueError
        The runs have no scale in common that varies, or cannot be compared.
    """
    from allometry.laws.crossover import crossover
    from allometry.laws.further_runs import further_runs

    scale = _scale(base, arm)
    curves = _curve(base, scale, "base"), _curve(arm, scale, "technique")
    paired = all("seed" in one.table for one in (base, arm))
    found = crossover(*curves, paired=paired, level=level)
    try:
        return found, further_runs(*curves, level=level), "", scale
    except ValueError as refusal:
        return found, None, str(refusal), scale


def _scale(base: Runs, arm: Runs) -> str:
    """The scale that both vary: parameters before tokens before FLOPs."""
    for name in _SCALES:
        columns = [one.final()[name] for one in (base, arm) if name in one.table]
        if len(columns) == 2 and all(column.notna().all() and column.nunique() > 1 for column in columns):
            return name
    raise ValueError("the two sets of runs vary no scale in common: neither params, tokens nor flops")


def _curve(runs: Runs, scale: str, name: str) -> Curve:
    from allometry.laws.curve import Curve

    table = runs.final()
    others = [
        one for one in ("params", "tokens") if one != scale and one in table and table[one].nunique() > 1
    ]
    if scale == "params" and others:
        ratio = table["tokens"] / table["params"]
        if ratio.max() / ratio.min() > 1.02:
            raise ValueError(
                f"the runs of the {name} vary params and tokens apart; give those of one horizon or ratio"
            )
    return Curve.from_table(table, scale, "loss", "seed" if "seed" in table else None, name=name)


def summary(found: Crossover, further: FurtherRuns | None, reason: str, scale: str) -> str:
    """The comparison as plain text of at most a hundred columns."""
    facts = [("scale", scale), ("verdict", found.verdict), ("in words", str(found))]
    for at in (float(found.scales[0]), float(found.scales[-1])):
        told = found.gain(at)
        limits = f"[{100 * told.low:+.2f}, {100 * told.high:+.2f}]"
        better = f"better with probability {found.p_better(at):.2f}"
        facts.append(
            (f"saved at {at:.4g}", f"{100 * told.value:+.2f} % of the base's loss {limits}; {better}")
        )
    chances = [f"{name} {value:.0%}" for name, value in found.places.items() if value >= 0.005]
    facts.append(("they cross", ", ".join(chances) or "unknown"))
    facts.append(("to settle it", str(further) if further is not None else f"cannot be said: {reason}"))
    lines = [part for line in aligned(facts) for part in cut(line)]
    notes = [line for note in found.notes for line in wrapped(note)]
    return "\n".join([*lines, *(["", "Notes", *notes] if notes else [])])


def to_dict(found: Crossover, further: FurtherRuns | None, reason: str, scale: str) -> dict[str, Any]:
    """The comparison as plain numbers and words."""
    told: dict[str, Any] = {"reason": reason}
    if further is not None:
        told = {
            "seeds": further.seeds, "runs": further.runs, "chance": further.chance, "power": further.power,
            "next_scale": further.next_scale, "chances": further.chances.reset_index().to_dict("records"),
            "scales": further.scales.reset_index().to_dict("records"),
        }  # fmt: skip
    return {"scale": scale, "crossover": found.to_dict(), "further": told}


def draw(found: Crossover, curves: Sequence[Runs], scale: str, path: str | Path) -> Path:
    """Both arms' runs, and the share that the technique saves with its interval."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from allometry.show.drawing import LIGHT, readable_ticks, style

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with style():
        drawn = Figure(figsize=(5.8, 5.2), layout="constrained")
        FigureCanvasAgg(drawn)
        above, below = drawn.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        for runs, name, color in zip(
            curves, ("base", "technique"), (LIGHT["muted"], LIGHT["accent"]), strict=True
        ):
            table = runs.final().sort_values(scale)
            mean = table.groupby(scale)["loss"].mean()
            above.plot(table[scale], table["loss"], ".", color=color)
            above.plot(mean.index, mean, color=color, label=name)
        above.set(xscale="log", yscale="log", ylabel="loss")
        above.legend()
        grid = np.geomspace(found.scales[0], found.scales[-1], 60)
        told = found.gain(grid)
        below.fill_between(
            grid, 100 * told.low, 100 * told.high, color=LIGHT["accent"], alpha=0.2, linewidth=0
        )
        below.plot(grid, 100 * told.value, color=LIGHT["accent"])
        below.axhline(0.0, color=LIGHT["muted"], linewidth=1)
        if found.scales[0] < found.x < found.scales[-1]:
            below.axvline(found.x, color=LIGHT["muted"], linewidth=1, linestyle=":")
        below.set(xlabel=scale, ylabel="saved, % of loss")
        above.set_title(f"The technique: {found.verdict}")
        readable_ticks(above.yaxis)
        drawn.savefig(path, dpi=200)
    return path
