"""The figures of a forecast: loss against compute, residuals, and replays."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from allometry.show.drawing import (
    LIGHT,
    Array,
    label_margin,
    placer,
    quantity,
    readable_ticks,
    save,
    size_colors,
    style,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from allometry.forecast.result import Forecast

_MARKERS = "os^Dv<>p"
_WIDTH = 5.8  # inches: letters stay legible where a telephone shrinks the figure to its screen


def finite_runs(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[np.isfinite(runs["loss"]) & (runs["loss"] > 0)]


def _percent(share: float) -> str:
    """A signed percentage with a true minus."""
    return f"{100.0 * share:+.2f} %".replace("-", "−")


# --- the main figure ---------------------------------------------------------------------------------------
def loss_figure(result: Forecast) -> Figure:
    """Loss against training compute with all that was foretold, and the target seen from near."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(_WIDTH, 6.9))
        far = figure.add_axes((0.125, 0.42, 0.63, 0.54))
        near = figure.add_axes((0.165, 0.075, 0.59, 0.19))
        _draw_ladder(far, result)
        _draw_target(near, result)
    return figure


def _draw_ladder(axes: Axes, result: Forecast) -> None:
    runs = finite_runs(result.runs)
    goal = result.target
    widths = sorted(runs["width"].unique())
    colors = size_colors(len(widths))
    shown = _shown(result)
    crowd: list[Array] = []  # places in data units that labels keep clear of
    axes.set(xscale="log", yscale="log", xlabel="training compute 6 N D, FLOPs", ylabel="loss, nats a token")
    axes.set_title("Loss against training compute")
    frontier = _frontier(result, runs["flops"].min(), goal["flops"])
    if frontier is not None:
        flops, loss, low, high = frontier
        axes.fill_between(flops, low, high, color=LIGHT["muted"], alpha=0.2, linewidth=0)
        axes.plot(flops, loss, color=LIGHT["ink"], linewidth=1.2, dashes=(5, 2))
        crowd += [np.column_stack([flops, edge]) for edge in (loss, low, high)]
    starts = []
    for index, width in enumerate(widths):
        mine = runs[runs["width"] == width]
        tokens = np.geomspace(mine["tokens"].min() / 1.15, mine["tokens"].max() * 1.15, 50)
        params = float(mine["params"].iloc[0])
        curve = result.law.predict({"params": np.full(len(tokens), params), "tokens": tokens})
        axes.plot(6.0 * params * tokens, curve, color=colors[index], linewidth=1.1, alpha=0.75)
        axes.plot(
            mine["flops"], mine["loss"], _MARKERS[index % len(_MARKERS)], color=colors[index], markersize=4.5,
            markeredgecolor=LIGHT["paper"], markeredgewidth=0.5,
        )  # fmt: skip
        crowd += [np.column_stack([6.0 * params * tokens, curve]), mine[["flops", "loss"]].to_numpy(float)]
        starts.append(np.column_stack([6.0 * params * tokens, curve]))
    crowd += _draw_naive(axes, result)
    _draw_goal(axes, result)
    values = np.concatenate([runs["loss"], [value for _, value, *_ in shown], [result.low, result.high]])
    if frontier is not None:  # the band too, unless it is so wide that nothing else could be seen
        values = np.append(values, [loss[-1], max(low[-1], 0.93 * loss[-1])])
    values = values[np.isfinite(values) & (values > 0)]
    spread = math.log(values.max() / values.min()) or 0.1
    axes.set_ylim(values.min() * math.exp(-0.07 * spread), values.max() * math.exp(0.09 * spread))
    reach = math.log(goal["flops"] / runs["flops"].min())
    axes.set_xlim(runs["flops"].min() * math.exp(-0.06 * reach), goal["flops"] * math.exp(0.05 * reach))
    readable_ticks(axes.xaxis, powers=True)
    readable_ticks(axes.yaxis)
    label_margin(
        axes, goal["flops"], [(f"{name} {value:.3f}", value, color) for name, value, color, *_ in shown]
    )
    place = placer(axes, np.concatenate(crowd))
    for index, (width, curve) in enumerate(zip(widths, starts, strict=True)):
        place(f"width {width}" if index == 0 else f"{width}", curve[[0, 8, 49, 25]], colors[index])
    if frontier is not None:
        middle = np.column_stack([flops, loss])[[45, 50, 40, 55, 35, 30, 58, 20]]
        place("compute-optimal", middle, LIGHT["ink"])


def _draw_naive(axes: Axes, result: Forecast) -> list[Array]:
    """The naive forecasts' own lines: level from the last rung, and straight through the two last ones."""
    runs = finite_runs(result.runs)
    longest = runs[runs["tokens"] == runs.groupby("width")["tokens"].transform("max")]
    rungs = longest.groupby("width").agg(
        flops=("flops", "first"), loss=("loss", lambda x: np.exp(np.log(x).mean()))
    )
    goal, drawn = result.target["flops"], []
    for name, start, marker in (("last rung", -1, "s"), ("ruler", -2, "^")):
        if name not in result.naive.index or len(rungs) < -start:
            continue
        value = float(result.naive.loc[name, "value"])
        begin = rungs.iloc[start]
        axes.plot(
            [begin["flops"], goal], [begin["loss"], value], color=LIGHT["muted"], linewidth=1.0, linestyle=":"
        )
        axes.plot(
            goal,
            value,
            marker,
            color=LIGHT["muted"],
            markersize=6,
            markerfacecolor=LIGHT["paper"],
            clip_on=False,
            zorder=4,
        )
        drawn.append(
            np.column_stack([np.geomspace(begin["flops"], goal, 40), np.geomspace(begin["loss"], value, 40)])
        )
    return drawn


def _draw_goal(axes: Axes, result: Forecast) -> None:
    flops = result.target["flops"]
    bar = np.array([[max(0.0, result.value - result.low)], [max(0.0, result.high - result.value)]])
    axes.errorbar(
        [flops], [result.value], yerr=bar if np.isfinite(bar).all() else None, fmt="D", color=LIGHT["accent"],
        markersize=5.5, elinewidth=2.0, capsize=4.0, capthick=1.5, zorder=5, clip_on=False,
    )  # fmt: skip
    if result.check is not None:
        axes.plot(
            flops, result.check.measured, "o", color=LIGHT["ink"], markersize=12, markerfacecolor="none",
            markeredgewidth=1.5, zorder=6, clip_on=False,
        )  # fmt: skip


def _draw_target(axes: Axes, result: Forecast) -> None:
    """Each forecast with its interval, and the measured loss as a line through all of them."""
    from matplotlib.ticker import MaxNLocator

    goal = result.target
    rows = [row for row in _shown(result) if row[0] != "measured"]
    axes.set_title(
        f"The target: width {goal['width']}, N = {quantity(goal['params'])}, D = {quantity(goal['tokens'])}",
        pad=20 if result.check is not None else 8,
    )
    for place, (name, value, color, low, high, marker) in enumerate(rows):
        if math.isfinite(low) and math.isfinite(high):
            axes.plot([low, high], [place, place], color=color, linewidth=6, alpha=0.3, solid_capstyle="butt")
        face = color if name == "forecast" else LIGHT["paper"]
        axes.plot(value, place, marker, color=color, markersize=6.5, markerfacecolor=face, zorder=4)
        told = f"{value:.4f}"
        if result.check is not None:
            told = _percent(value / result.check.measured - 1.0)
        axes.text(1.03, place, told, transform=axes.get_yaxis_transform(), va="center", color=color)
    axes.margins(x=0.06)
    if result.check is not None:
        axes.axvline(result.check.measured, color=LIGHT["ink"], linewidth=1.5, zorder=3)
        left, right = axes.get_xlim()
        beside = (result.check.measured - left) / (
            right - left
        )  # far right, the name stays clear of the errors
        axes.annotate(
            f"measured {result.check.measured:.4f}",
            (result.check.measured, 1.0),
            (0, 3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center" if beside < 0.75 else "right",
            va="bottom",
            annotation_clip=False,
        )
        axes.text(1.03, 1.03, "error", transform=axes.transAxes, va="bottom", color=LIGHT["muted"])
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0, labelcolor=LIGHT["ink"])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_xlabel(f"loss, nats a token; bars are {100 * result.level:g} % prediction intervals")


def _shown(result: Forecast) -> list[tuple[str, float, str, float, float, str]]:
    """Name, value, colour, interval and marker of all that is said of the target."""
    out = [("forecast", result.value, LIGHT["accent"], result.low, result.high, "D")]
    if result.check is not None:
        measured = result.check.measured
        out.append(("measured", measured, LIGHT["ink"], math.nan, math.nan, "o"))
    for name, marker in (("ruler", "^"), ("last rung", "s")):
        if name in result.naive.index:
            row = result.naive.loc[name]
            out.append(
                (name, float(row["value"]), LIGHT["muted"], float(row["low"]), float(row["high"]), marker)
            )
    return out


def _frontier(result: Forecast, low: float, high: float) -> tuple[Array, Array, Array, Array] | None:
    """What the laws say of the optimal split at each compute, with a band; None where no split is known."""
    if not {"params", "tokens"} <= set(result.fit.form.inputs):
        return None
    flops = np.geomspace(low, high, 60)
    best = [result.fit.optimal(float(budget)) for budget in flops]
    split = {"params": [one.params for one in best], "tokens": [one.tokens for one in best]}
    if not all(len(one.theta_draws) for one in result.fits):
        unknown = np.full(len(flops), math.nan)
        return flops, result.law.predict(split), unknown, unknown
    band = result.law.interval(split, level=result.level)
    return flops, np.asarray(band.value), np.asarray(band.low), np.asarray(band.high)


# --- residuals ---------------------------------------------------------------------------------------------
def residual_figure(result: Forecast) -> Figure:
    """How far each measured loss lies from the law, in per cent, against tokens."""
    from matplotlib.figure import Figure

    runs = finite_runs(result.runs)
    widths = sorted(runs["width"].unique())
    colors = size_colors(len(widths))
    off = 100.0 * np.log(runs["loss"].to_numpy() / result.law.predict(runs[["params", "tokens"]]))
    runs = runs.assign(off=off)
    with style():
        figure = Figure(figsize=(_WIDTH, 3.3))
        axes = figure.add_axes((0.125, 0.16, 0.705, 0.73))
        axes.set_title("Residuals of the law")
        axes.set(xscale="log", xlabel="tokens", ylabel="measured over law, %")
        noise = 100.0 * result.fit.noise.total
        if math.isfinite(noise):
            axes.axhspan(-noise, noise, color=LIGHT["muted"], alpha=0.16, linewidth=0)
        axes.axhline(0.0, color=LIGHT["ink"], linewidth=1.0)
        labels = []
        for index, width in enumerate(widths):
            mine = runs[runs["width"] == width]
            beside = 1.012 ** (
                index - (len(widths) - 1) / 2
            )  # so that sizes at one horizon do not hide each other
            mean = mine.groupby("tokens")["off"].mean()
            axes.plot(mean.index * beside, mean, color=colors[index], linewidth=1.1, alpha=0.75)
            axes.plot(
                mine["tokens"] * beside,
                mine["off"],
                _MARKERS[index % len(_MARKERS)],
                color=colors[index],
                markersize=5,
                markeredgecolor=LIGHT["paper"],
                markeredgewidth=0.5,
            )
            labels.append(
                (f"width {width}", float(mean.iloc[-1]), colors[index], float(mean.index[-1]) * beside)
            )
        most = max(float(np.abs(off).max()), noise if math.isfinite(noise) else 0.0, 1e-3)
        axes.set_ylim(-1.15 * most, 1.15 * most)
        axes.margins(x=0.05)
        readable_ticks(axes.xaxis, count=True)
        end = float(runs["tokens"].max())
        label_margin(axes, end, [(name, value, color) for name, value, color, _ in labels])
        if math.isfinite(noise):
            axes.annotate(
                f"band: ±{noise:.2g} %, one s.d. of a run", (1.0, 1.0), (0, 6), xycoords="axes fraction",
                textcoords="offset points", ha="right", va="bottom", color=LIGHT["muted"], fontsize=8.5,
            )  # fmt: skip
    return figure


# --- replays -----------------------------------------------------------------------------------------------
def replay_figure(table: pd.DataFrame, path: str | Path) -> Path:
    """Every replay's interval about its measured loss, the naive forecasts beside it, and mean scores.

    Parameters
    ----------
    table : DataFrame
        One row a replay: value, low, high, measured, inside, last_rung, ruler, score_forecast,
        score_last_rung, score_ruler.
    path : str or Path
        Where to write, with or without .png or .svg: both are written.

    Returns
    -------
    Path
        The PNG.

    Raises
    ------
    ValueError
        If the table is empty or lacks a column.
    """
    needed = [
        "value",
        "low",
        "high",
        "measured",
        "inside",
        "last_rung",
        "ruler",
        "score_forecast",
        "score_last_rung",
        "score_ruler",
    ]
    missing = [column for column in needed if column not in table]
    if missing or not len(table):
        raise ValueError(
            f"a figure of replays needs at least one row and the columns {needed}; missing: {missing}"
        )
    from matplotlib.figure import Figure

    stem = Path(path)
    stem = stem.with_suffix("") if stem.suffix in (".png", ".svg") else stem
    with style():
        figure = Figure(figsize=(_WIDTH, 5.6))
        _draw_replays(figure.add_axes((0.125, 0.42, 0.69, 0.52)), table)
        _draw_scores(figure.add_axes((0.165, 0.09, 0.65, 0.18)), table)
    save(figure, stem)
    return stem.with_name(stem.name + ".png")


def _draw_replays(axes: Axes, table: pd.DataFrame) -> None:
    from matplotlib.ticker import MaxNLocator

    measured = table["measured"].to_numpy(float)
    off = {
        name: 100.0 * (table[name].to_numpy(float) / measured - 1.0)
        for name in ("value", "low", "high", "last_rung", "ruler")
    }
    place = np.arange(1, len(table) + 1)
    inside = table["inside"].to_numpy(bool)
    axes.axhline(0.0, color=LIGHT["ink"], linewidth=1.2)
    axes.plot(
        place, off["last_rung"], "s", color=LIGHT["muted"], markersize=5, markerfacecolor=LIGHT["paper"]
    )
    axes.plot(place, off["ruler"], "^", color=LIGHT["muted"], markersize=5.5, markerfacecolor=LIGHT["paper"])
    axes.vlines(place, off["low"], off["high"], color=LIGHT["accent"], linewidth=5, alpha=0.35)
    axes.plot(place[inside], off["value"][inside], "D", color=LIGHT["accent"], markersize=5.5)
    axes.plot(
        place[~inside],
        off["value"][~inside],
        "X",
        color=LIGHT["accent"],
        markersize=8,
        markeredgecolor=LIGHT["ink"],
    )
    axes.set_title(f"Measured loss inside the interval in {int(inside.sum())} of {len(table)} replays")
    axes.set(xlabel="replay", ylabel="forecast over measured, %")
    axes.set_xlim(0.4, len(table) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(min(len(table), 12), integer=True, min_n_ticks=1))
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.1)
    last = len(table)
    labels = [
        ("forecast", float(off["value"][-1]), LIGHT["accent"]),
        ("ruler", float(off["ruler"][-1]), LIGHT["muted"]),
        ("last rung", float(off["last_rung"][-1]), LIGHT["muted"]),
        ("measured", 0.0, LIGHT["ink"]),
    ]
    label_margin(axes, last, labels)
    if not inside.all():
        axes.annotate(
            "crosses: outside",
            (0.0, 1.0),
            (4, -3),
            xycoords="axes fraction",
            textcoords="offset points",
            va="top",
            color=LIGHT["muted"],
            fontsize=8.5,
        )


def _draw_scores(axes: Axes, table: pd.DataFrame) -> None:
    names = {"forecast": "score_forecast", "ruler": "score_ruler", "last rung": "score_last_rung"}
    scores = [100.0 * float(table[column].mean()) for column in names.values()]
    colors = [LIGHT["accent"], LIGHT["muted"], LIGHT["muted"]]
    axes.set_title("Mean interval score, % of the loss: lower is better")
    for place, (score, color) in enumerate(zip(scores, colors, strict=True)):
        if math.isfinite(score):
            axes.barh(place, score, color=color, height=0.62)
        told = f"{score:.3g}" if math.isfinite(score) else "no interval: one seed a size"
        axes.annotate(
            told,
            (score if math.isfinite(score) else 0.0, place),
            (4, 0),
            textcoords="offset points",
            va="center",
            color=color,
        )
    axes.set_yticks(range(len(names)), list(names))
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.set_xlim(0.0, 1.12 * max([score for score in scores if math.isfinite(score)], default=1.0))
    axes.tick_params(axis="y", length=0, labelcolor=LIGHT["ink"])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)
