"""How figures look here: colours, styles, files, ticks, and labels that find a free place.

* Drawn with matplotlib's object interface: no pyplot, no window, and the reader's settings stay as they are.
* Sizes are coloured along viridis (van der Walt and Smith, 2015), an order that the eye sees, in print too:
  the larger, the stronger. Light and dark pages take different stretches of it, so that all are legible.
* What stands in a figure is named where it stands, not in a legend.
* An SVG is the same bytes for the same numbers: no date, no random names, letters as outlines.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

Array = NDArray[np.float64]

LIGHT = {"paper": "#ffffff", "ink": "#1b1f24", "muted": "#5b6470", "grid": "#dfe3e8", "accent": "#b3440a"}
DARK = {"paper": "#14171a", "ink": "#e8eaed", "muted": "#a3abb5", "grid": "#343a42", "accent": "#ff9a52"}
_STRETCH = {False: (0.43, 0.0), True: (0.55, 0.98)}  # of viridis, from the smallest size to the largest
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def size_colors(count: int, dark: bool = False) -> list[str]:
    """One colour a size, from the smallest to the largest, for a light or a dark page.

    >>> size_colors(2)
    ['#27808e', '#440154']
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    low, high = _STRETCH[dark]
    return [to_hex(color) for color in colormaps["viridis"](np.linspace(low, high, max(count, 1)))]


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Matplotlib as it comes, whatever the reader's settings, and ours on top; both end with the block."""
    import matplotlib

    ours = {
        "font.family": "DejaVu Sans",  # comes with matplotlib, so a figure is the same everywhere
        "font.size": 9.5,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "text.color": LIGHT["ink"],
        "axes.labelcolor": LIGHT["muted"],
        "axes.titlecolor": LIGHT["ink"],
        "axes.edgecolor": LIGHT["muted"],
        "xtick.color": LIGHT["muted"],
        "ytick.color": LIGHT["muted"],
        "grid.color": LIGHT["grid"],
        "grid.linewidth": 0.7,
        "figure.facecolor": LIGHT["paper"],
        "axes.facecolor": LIGHT["paper"],
        "savefig.facecolor": LIGHT["paper"],
        "svg.fonttype": "path",
        "svg.hashsalt": "allometry",
    }
    plain = {
        key: value
        for key, value in matplotlib.rcParamsDefault.items()
        if not key.startswith(("backend", "interactive", "toolbar", "webagg", "tk."))
    }
    settings: Any = {**plain, **ours}
    with matplotlib.rc_context(settings):
        yield


def write_atomically(path: Path, content: bytes) -> Path:
    """Write beside, then rename: a reader finds the old file or the new one, never half of one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def save(figure: Figure, stem: str | Path) -> str:
    """Write ``stem``.png and ``stem``.svg; returns the SVG's text."""
    stem = Path(stem)
    raster, vector = io.BytesIO(), io.StringIO()
    with style():
        figure.savefig(raster, format="png", dpi=200, metadata={"Software": None})
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # no block of metadata at all
        figure.savefig(vector, format="svg", metadata=nothing)
    write_atomically(stem.with_name(stem.name + ".png"), raster.getvalue())
    write_atomically(stem.with_name(stem.name + ".svg"), vector.getvalue().encode())
    return vector.getvalue()


def inline_svg(svg: str, label: str, prefix: str, sizes: int) -> str:
    """An SVG for the inside of a page: scalable, named for screen readers, its colours left to the page.

    The page defines ``--paper``, ``--ink``, ``--muted``, ``--grid``, ``--accent`` and ``--size-0`` and so on.
    """
    from html import escape

    body = svg[svg.index("<svg") :]
    opening = body[: body.index(">") + 1]
    view = re.search(r'viewBox="([^"]+)"', opening)
    assert view is not None
    body = body[len(opening) :]
    body = re.sub(r'\bid="', f'id="{prefix}-', body)  # two figures in one page share no names
    body = re.sub(r'xlink:href="#', f'href="#{prefix}-', body).replace("url(#", f"url(#{prefix}-")
    names = {color: name for name, color in LIGHT.items()}
    names |= {color: f"size-{index}" for index, color in enumerate(size_colors(sizes))}
    body = re.sub("|".join(names), lambda found: f"var(--{names[found.group()]})", body)
    return f'<svg viewBox="{view.group(1)}" role="img" aria-label="{escape(label)}">{body.strip()}'


# --- ticks and labels --------------------------------------------------------------------------------------
def readable_ticks(axis: Any, *, powers: bool = False, count: bool = False) -> None:
    """Round numbers on a log axis, four to nine of them, however many or few decades it spans."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = sorted(axis.get_view_interval())
    write: Callable[[float, Any], str] = lambda value, _: f"{value:.4g}"  # noqa: E731
    if powers:
        write = lambda value, _: _power(value)  # noqa: E731
    elif count:
        write = lambda value, _: quantity(value)  # noqa: E731
    axis.set_major_locator(FixedLocator(round_ticks(low, high)))
    axis.set_major_formatter(FuncFormatter(write))
    axis.set_minor_locator(NullLocator())


def round_ticks(low: float, high: float) -> list[float]:
    """Round numbers from ``low`` to ``high`` for a log axis.

    >>> round_ticks(1.31, 1.68)
    [1.35, 1.4, 1.45, 1.5, 1.55, 1.6, 1.65]
    >>> round_ticks(3e9, 2e13)
    [10000000000.0, 100000000000.0, 1000000000000.0, 10000000000000.0]
    """
    if not 0 < low < high < math.inf:
        raise ValueError(f"a log axis needs 0 < low < high, got {low}, {high}")
    decades = math.log10(high / low)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if decades >= 0.7:
        every = max(1, math.ceil(decades / 8))
        for digits in ((1,), (1, 3), (1, 2, 5)):
            ticks = [digit * 10.0**power for power in range(first, last + 1, every) for digit in digits]
            inside = [float(f"{tick:.12g}") for tick in ticks if low <= tick <= high]
            if len(inside) >= 4:
                break
        return inside
    for step in (digit * 10.0**power for power in range(first - 6, last + 1) for digit in (1, 2, 5)):
        if (high - low) / step <= 9:
            break
    return [float(f"{step * k:.12g}") for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _power(value: float) -> str:
    """``10¹²``, ``3×10¹¹``."""
    power = math.floor(math.log10(value) + 1e-9)
    digit = round(value / 10.0**power)
    return ("" if digit == 1 else f"{digit}×") + "10" + str(power).translate(_SUPERSCRIPTS)


def quantity(value: float) -> str:
    """A number of things in three digits: ``9,216`` as ``9.22k``."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def label_margin(axes: Axes, x: float, labels: Sequence[tuple[str, float, str]]) -> None:
    """Names in the right margin, in the order of their values, none over another, each with a line."""
    if not labels:
        return
    axes.get_xlim(), axes.get_ylim()  # limits that matplotlib has put off are settled by asking
    to_points = 72.0 / axes.figure.dpi
    height = axes.get_window_extent().height * to_points
    bottom = axes.get_window_extent().y0 * to_points
    heights = np.array(
        [axes.transData.transform((x, value))[1] * to_points - bottom for _, value, _ in labels]
    )
    placed = spread_apart(heights, 13.0, 0.0, height)
    for (name, value, color), at in zip(labels, placed, strict=True):
        axes.annotate(
            name,
            (x, value),
            (1.035, at / height),
            xycoords="data",
            textcoords="axes fraction",
            va="center",
            color=color,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.6,
                "alpha": 0.6,
                "shrinkA": 1,
                "shrinkB": 6,
            },
        )


def spread_apart(places: Array, gap: float, low: float, high: float) -> Array:
    """Move places as little as needed until neighbours are ``gap`` apart, between ``low`` and ``high``.

    The least-squares answer: with the gaps taken out it is a monotone regression, by pooling adjacent
    violators. Where they do not all fit, they go on beyond ``high``.

    >>> spread_apart(np.array([5.0, 5.0, 20.0]), 2.0, 0.0, 30.0).tolist()
    [4.0, 6.0, 20.0]
    """
    order = np.argsort(places, kind="stable")
    steps = gap * np.arange(len(places))
    blocks: list[list[float]] = []  # mean and size of each run of touching labels
    for value in np.asarray(places, dtype=float)[order] - steps:
        blocks.append([float(value), 1.0])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, size = blocks.pop()
            blocks[-1] = [
                (blocks[-1][0] * blocks[-1][1] + mean * size) / (blocks[-1][1] + size),
                blocks[-1][1] + size,
            ]
    level = np.concatenate([np.full(int(size), mean) for mean, size in blocks])
    out = np.empty(len(places))
    out[order] = np.clip(level, low, max(low, high - steps[-1])) + steps
    return out


def placer(axes: Axes, crowd: Array) -> Callable[[str, Array, str], Annotation]:
    """A function that puts a label near one of some points, where it covers least of what is drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.patheffects import withStroke

    figure: Any = axes.figure
    renderer: Any = FigureCanvasAgg(figure).get_renderer()
    drawn = axes.transData.transform(crowd)
    frame = axes.get_window_extent()
    taken: list[Any] = []

    def place(text: str, anchors: Array, color: str) -> Annotation:
        best, least = None, math.inf
        for rank, anchor in enumerate(anchors):
            for far in (7, 13, 20):
                for dx, dy in ((0, 1), (0, -1), (1, 0.6), (-1, 0.6), (1, -0.6), (-1, -0.6)):
                    label = axes.annotate(
                        text,
                        anchor,
                        (far * dx, far * dy),
                        textcoords="offset points",
                        color=color,
                        fontsize=9,
                        ha=("right", "center", "left")[int(dx) + 1],
                        va="bottom" if dy > 0 else "top",
                        path_effects=[withStroke(linewidth=2.5, foreground=LIGHT["paper"])],
                        zorder=8,
                    )
                    box = label.get_window_extent(renderer).padded(2)
                    covered = (
                        (drawn[:, 0] > box.x0)
                        & (drawn[:, 0] < box.x1)
                        & (drawn[:, 1] > box.y0)
                        & (drawn[:, 1] < box.y1)
                    ).sum()
                    cost = covered + 50 * sum(box.overlaps(other) for other in taken) + 0.3 * rank + 0.1 * far
                    cost += 100 * (
                        box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
                    )
                    if cost < least:
                        if best is not None:
                            best.remove()
                        best, least, held = label, cost, box
                    else:
                        label.remove()
        assert best is not None
        taken.append(held)
        return best

    return place
