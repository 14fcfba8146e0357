"""A study's figure: the first measure over one axis, a line an arm, every run to be seen.

* The base is grey, the others have colours and marks of their own, and each is named where it ends.
* Faint dots are runs, lines the means over seeds, bands Student's intervals of these means.
* A run that diverged is a cross at the edge where worse runs lie, and breaks its arm's line: a mean over the
  survivors would hide it.
* Further axes are small multiples, or, where these would be more than four, averaged over; the caption says
  so.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from allometry.show.drawing import LIGHT, label_margin, quantity, readable_ticks, size_colors, style
from allometry.study.claim import Estimate
from allometry.study.study import Axis, finite

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from allometry.study.result import Result

PANELS = 4  # the most small multiples that can still be read on a telephone
_MARKERS = "osD^vP<>"
_EXPLODED = 1e6  # times the median
_LETTERS = 24  # of an arm's name beside its line


def palette(arms: int) -> list[str]:
    """One colour an arm, the base first; all of them have a counterpart on a dark page.

    >>> palette(3)
    ['#5b6470', '#b3440a', '#27808e']
    """
    return [LIGHT["muted"], LIGHT["accent"], *size_colors(max(arms - 2, 0))][:arms]


def panels(result: Result, over: Axis | None = None) -> list[dict[str, Any]]:
    """Places on the axes other than the one shown, one for each panel: all of them, or one for their mean.

    An axis of one value is no panel's subject.
    """
    further = [(one.name, one.values(result.profile)) for one in _others(result, over)]
    further = [(name, values) for name, values in further if len(values) > 1]
    names = [name for name, _ in further]
    if not further or math.prod(len(values) for _, values in further) > PANELS:
        return [{}]
    return [dict(zip(names, place, strict=True)) for place in itertools.product(*(v for _, v in further))]


def averaged(result: Result, over: Axis | None = None) -> list[str]:
    """Names of the other axes that the figure averages over."""
    if panels(result, over) != [{}]:
        return []
    return [one.name for one in _others(result, over) if len(one.values(result.profile)) > 1]


def _others(result: Result, over: Axis | None) -> list[Axis]:
    shown = over or result.study.shown
    return [one for one in result.study.axes if one is not shown]


def place_name(at: Mapping[str, Any]) -> str:
    """A place on the axes in words.

    >>> place_name({"depth": 4, "rate": 0.1})
    'depth 4, rate 0.1'
    """
    return ", ".join(f"{name} {value}" for name, value in at.items())


def caption(result: Result) -> str:
    """What the marks of the usual figure mean, in one sentence each."""
    seeds = result.table["seed"].nunique()
    if result.study._figure is not None:
        return f"{seeds} seeds, {result.profile} profile."
    parts = ["Each faint dot is a run"]
    if seeds > 1:
        parts.append(f"lines join the means over {seeds} seeds, with 95 % intervals of the mean")
        if _limits(result)[2]:
            parts[-1] += " (left out where they reach zero)"
    text = "; ".join(parts) + "."
    if (result.table["status"] == "diverged").any():
        edge = "lower" if result.study.lower_is_better is False else "upper"
        text += f" Crosses at the {edge} edge are runs that diverged; a line is broken where one did."
    over = averaged(result)
    return text + (f" Mean over {' and '.join(over)}." if over else "")


def draw(result: Result, figure: Any = None) -> Figure:
    """The study's own figure if it has one, else the usual one.

    Parameters
    ----------
    result : Result
    figure : matplotlib Figure, optional
        Drawn into; a new one by default.

    Returns
    -------
    matplotlib Figure
    """
    from matplotlib.figure import Figure

    with style():
        if result.study._figure is not None:
            own = Figure(figsize=(7.0, 4.4), layout="constrained") if figure is None else figure
            drawn = result.study._figure(result, own)
            return drawn if isinstance(drawn, Figure) else own
        places = panels(result)
        wide, high = (min(len(places), 2), math.ceil(len(places) / 2))
        letters = max(len(_short(name)) for name in result.study.arms)
        margin = 0.3 + 0.085 * letters  # inches for the names
        width, height = 0.8 + (3.8 if wide == 1 else 5.6) + margin, (3.6 if high == 1 else 5.6)
        own = Figure(figsize=(width, height)) if figure is None else figure
        grid = own.subplots(high, wide, squeeze=False, sharex=True, sharey=True)
        own.subplots_adjust(
            left=0.75 / width, right=1 - margin / width, bottom=0.62 / height, top=1 - 0.38 / height,
            wspace=0.08, hspace=0.28 if high > 1 else 0.2,
        )  # fmt: skip
        flat = list(grid.flat)
        limits = _limits(result)
        for index, axes in enumerate(flat):
            if index >= len(places):
                axes.set_visible(False)
                continue
            last = index % wide == wide - 1 or index == len(places) - 1
            _panel(axes, result, places[index], limits, named=last)
            if index + wide >= len(places):
                axes.set_xlabel(_axis_name(result))
                axes.tick_params(labelbottom=True)
            if len(places) > 1 and index % wide == 0:
                axes.set_ylabel(result.study.measures[0])
        _fit(own, flat[: len(places)])
    return own


def _fit(figure: Figure, panels: Sequence[Axes]) -> None:
    """Room on the left for what is written there, and no tick's label over the next one's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    written = [(axes.get_window_extent().x0, axes.yaxis.get_tightbbox(renderer)) for axes in panels[::2]]
    room = max((start - box.x0 for start, box in written if box is not None), default=0.0)
    figure.subplots_adjust(left=(room + 0.06 * figure.dpi) / figure.bbox.width)
    for axes in panels:
        while len(shown := [one for one in axes.get_xticklabels() if one.get_text()]) > 2:
            boxes = [label.get_window_extent(renderer) for label in shown]
            if all(one.x1 + 4 < other.x0 for one, other in itertools.pairwise(boxes)):
                break
            places = [label.get_position()[0] for label in shown]
            axes.set_xticks(places[::2], [label.get_text() for label in shown][::2])
    for left, right in itertools.pairwise(panels):  # nor one panel's last over the next one's first
        last, first = (
            [one for one in axes.get_xticklabels() if one.get_text() and one.get_visible()]
            for axes in (left, right)
        )
        if last and first[1:] and last[-1].get_window_extent(renderer).overlaps(
            first[0].get_window_extent(renderer).padded(2)
        ):  # fmt: skip
            right.set_xticks(
                [label.get_position()[0] for label in first[1:]], [label.get_text() for label in first[1:]]
            )


def _short(name: str) -> str:
    return textwrap.shorten(name, _LETTERS, placeholder=" …") if " " in name else name[:_LETTERS]


def _axis_name(result: Result) -> str:
    shown = result.study.shown
    return shown.name + (f", {shown.unit}" if shown.unit else "")


def _limits(result: Result) -> tuple[float, float, bool]:
    """Ends of the measure's axis, from runs that lasted and not from intervals; whether it is logarithmic.

    Two seeds have an interval twelve times their distance: fitted to it, an axis would show nothing else.
    """
    measure = result.study.measures[0]
    values = result.table.loc[~lost(result.table, measure), measure].to_numpy(float)
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0, False
    # A run that exploded and ended finite would press all others onto one line; it leaves the panel instead.
    middle = float(np.median(np.abs(values)))
    values = values[np.abs(values) <= _EXPLODED * middle] if middle > 0 else values
    low, high = float(values.min()), float(values.max())
    logarithmic = (
        result.study.shown.log and result.study.lower_is_better is not False and low > 0 and high > 2.0 * low
    )  # within a factor of two a logarithm is straight to the eye
    if logarithmic:
        room = 0.09 * math.log(high / low)
        return low * math.exp(-room), high * math.exp(room), True
    room = 0.09 * (high - low) or 0.05 * abs(high) or 0.5
    return low - room, high + room, False


def _panel(
    axes: Axes, result: Result, at: Mapping[str, Any], limits: tuple[float, float, bool], *, named: bool
) -> None:
    first, measure = result.study.shown, result.study.measures[0]
    values = list(first.values(result.profile))
    numbers = all(finite(value) for value in values)
    values = sorted(values) if numbers else values
    placed = numbers and len(values) > 1 and not _steps_from_zero(values)
    spots = dict(zip(values, map(float, values) if placed else range(len(values)), strict=True))
    low, high, logarithmic = limits
    if placed and first.log:
        axes.set_xscale("log")
    if logarithmic:
        axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.set_title(place_name(at) or measure)
    labels, lines = [], numbers and len(values) > 1
    colors = palette(len(result.study.arms))
    for index, (arm, color) in enumerate(zip(result.study.arms, colors, strict=True)):
        shift = 0.0 if lines else 0.16 * (index - (len(colors) - 1) / 2)  # arms beside, not over each other
        line = _arm(axes, result, arm, at, spots, shift, index, color, lines)
        end = line[-1] if len(line) else math.nan
        worse = low if result.study.lower_is_better is False else high
        labels.append((_short(arm), min(max(end if math.isfinite(end) else worse, low), high), color))
    _ends(axes, first, spots, placed)
    if logarithmic:
        _upright(axes)
    if not np.isfinite(result.rows(at=at)[measure].to_numpy(float)).any():
        axes.text(0.5, 0.5, "no run has a finite value", transform=axes.transAxes, ha="center")
        axes.set_yticks([])
    if named:
        label_margin(axes, max(spots.values()) + (0.0 if lines else 0.08 * (len(colors) - 1)), labels)


def _steps_from_zero(values: Sequence[Any]) -> bool:
    """Zero and then powers: on a line in proportion all but the last would lie on one another.

    >>> _steps_from_zero([0, 1e-4, 1e-3, 1e-2]), _steps_from_zero([0, 1, 2])
    (True, False)
    """
    return len(values) > 2 and values[0] == 0 and values[-1] >= 30 * values[1]


def _upright(axes: Axes) -> None:
    """Ticks of a logarithmic measure; over less than a decade more of them than one, two, five."""
    low, high = axes.get_ylim()
    readable_ticks(axes.yaxis, powers=low < 1e-4 or high > 1e5)
    low, high = axes.get_ylim()
    if len(axes.get_yticks()) < 4:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [float(f"{digit}e{power}") for power in powers for digit in (1, 1.5, 2, 3, 4, 5, 7)]
        ticks = [tick for tick in ticks if low <= tick <= high]
        axes.set_yticks(ticks, [f"{tick:.4g}" for tick in ticks])


def _ends(axes: Axes, first: Any, spots: Mapping[Any, float], numbers: bool) -> None:
    """The first axis: its limits, and a tick at each value where there are few."""
    from matplotlib.ticker import NullLocator

    low, high = min(spots.values()), max(spots.values())
    if not numbers or low == high or not first.log:
        room = 0.07 * (high - low) if numbers and low < high else 0.6
        axes.set_xlim(low - room, high + room)
    else:
        room = 0.06 * math.log(high / low)
        axes.set_xlim(low * math.exp(-room), high * math.exp(room))
    if len(spots) <= 8:
        told = [quantity(value) if numbers and value >= 1e4 else f"{value}" for value in spots]
        axes.set_xticks(list(spots.values()), told)
        axes.xaxis.set_minor_locator(NullLocator())
    elif numbers and first.log:
        readable_ticks(axes.xaxis, count=low >= 1)
    elif not numbers:  # names, and not their places; those that do not fit are left out afterwards
        axes.set_xticks(list(spots.values()), [str(value) for value in spots])


def _arm(
    axes: Axes, result: Result, arm: str, at: Mapping[str, Any], spots: Mapping[Any, float], shift: float,
    index: int, color: str, lines: bool,
) -> list[float]:  # fmt: skip
    """Runs, means and intervals of one arm in one panel; returns the means."""
    first, measure = result.study.shown.name, result.study.measures[0]
    rows, marker = result.rows(arm, at), _MARKERS[index % len(_MARKERS)]
    xs, means, lows, highs = [], [], [], []
    for value, spot in spots.items():
        part = rows[rows[first] == value]
        if not len(part):
            continue
        gone = lost(part, measure)
        runs = _by_seed(part.assign(**{measure: part[measure].astype(float).where(~gone)}), measure)
        seen = runs[np.isfinite(runs)]
        axes.plot(
            np.full(len(seen), spot + shift), seen, marker, color=color, alpha=0.35, markersize=3.5,
            markeredgewidth=0,
        )  # fmt: skip
        if gone.any():
            edge = 0.015 + 0.035 * index  # each arm's crosses in a row of their own
            edge = edge if result.study.lower_is_better is False else 1.0 - edge
            axes.plot(
                [spot + shift], [edge], "x", color=color, markersize=7, markeredgewidth=1.6, clip_on=False,
                transform=axes.get_xaxis_transform(), zorder=6,
            )  # fmt: skip
        found = Estimate.of(runs)
        xs.append(spot + shift)
        means.append(found.value)
        lows.append(found.low if math.isfinite(found.low) else math.nan)
        highs.append(found.high if math.isfinite(found.high) else math.nan)
        if axes.get_yscale() == "log" and not lows[-1] > 0:  # no logarithm has room for it
            lows[-1] = highs[-1] = math.nan
    if lines:
        axes.fill_between(xs, lows, highs, color=color, alpha=0.15, linewidth=0)
        axes.plot(xs, means, marker, linestyle="-", color=color, linewidth=1.5, markersize=4.5, zorder=4)
    else:
        axes.vlines(xs, lows, highs, color=color, linewidth=3, alpha=0.35)
        axes.plot(xs, means, marker, color=color, markersize=6, zorder=4)
    return means


def lost(rows: pandas.DataFrame, measure: str) -> pandas.Series:
    """Which records are of runs that had diverged by then; earlier records of such a run stand."""
    values = rows[measure].astype(float)
    return rows["diverged"].notna() | ((rows["status"] == "diverged") & ~np.isfinite(values))


def _by_seed(part: pandas.DataFrame, measure: str) -> np.ndarray[Any, Any]:
    """A measure's mean over each seed's rows; one value that is not finite makes it so."""
    grouped = part.groupby("seed")[measure].agg(lambda some: some.astype(float).mean(skipna=False))
    return grouped.to_numpy(float)
