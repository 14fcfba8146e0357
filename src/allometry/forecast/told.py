"""An answer told: the law of runs that were made already, as text, figure, page and folder.

What is said is gathered once, for the terminal and for the page alike; `allometry.laws.answer` finds it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allometry.forecast.report import FORMULAS, to_json
from allometry.show.text import aligned, columns, cut, percent, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from allometry.laws.allocate import Allocation
    from allometry.laws.answers import Answer
    from allometry.laws.fit import Fit

_FORMULAS = FORMULAS | {
    "power": "L(x) = A / x^alpha",
    "power-offset": "L(x) = E + A / x^alpha",
    "broken-power": "L(x) = E + A / x^alpha (1 + (x / x0)^(1/f))^(-c f)",
    "data-constrained": "L(N, D, U) = E + A / N'^alpha + B / D'^beta, repeated tokens worth less",
}

_PLACES = ["forecast", "loss", "law from", "to", "a run from", "to"]
_CHOICE = ["", "held-out error", "AICc", "parameters", ""]
_PARAMETERS = ["", "value", "low", "high"]
_NAMES = {"flops": "FLOPs", "params": "parameters"}
_LEFT_OUT = ["file", "from row", "rows", "reason"]


# --- the terminal ------------------------------------------------------------------------------------------
def summary(told: Answer) -> str:
    """The answer as plain text of at most a hundred columns."""
    parts: list[str] = []

    def section(title: str, lines: Sequence[str]) -> None:
        if lines:
            parts.extend(["", title, *(f"  {line}" for line in lines)])

    if len(told.fits) > 1:
        parts.append(f"The average of {forms(told)}, which these runs cannot tell apart")
    for one in told.fits:
        parts.append(f"Law: {one.form.name}, {formula(one)}")
        rows = parameter_rows(one, told.level)
        parts += [f"  {line}" for line in columns(_PARAMETERS, rows)]
    if told.forecasts:
        parts += ["", *columns(_PLACES, forecast_rows(told))]
    for name, best in told.optima.items():
        section(f"Optimum for {best.flops:.4g} FLOPs by {name}",
                columns(_PARAMETERS, optimum_rows(best)))  # fmt: skip
    section("How far to trust it", aligned(trust_facts(told)))
    if told.choice is not None:
        section("Forms compared", columns(_CHOICE, choice_rows(told)))
    if told.warnings:
        parts += ["", "Notes", *(line for note in told.warnings for line in wrapped(note))]
    section("Read as", aligned(list(told.runs.columns.items())))
    if len(told.runs.left_out):
        section("Left out", columns(_LEFT_OUT, left_rows(told)))
    return "\n".join(line.rstrip() for part in parts for line in cut(part))


# --- what is said, for terminal and page alike -------------------------------------------------------------
def forms(told: Answer) -> str:
    """Names of the forms in a sentence."""
    *others, last = (one.form.name for one in told.fits)
    return f"{', '.join(others)} and {last}" if others else last


def formula(one: Fit) -> str:
    """The law's formula, with the name of its input."""
    text = _FORMULAS.get(one.form.name, "")
    name = one.form.inputs[0]
    return text.replace("(x)", f"({name})").replace("/ x^", f"/ {name}^").replace("(x /", f"({name} /")


def parameter_rows(one: Fit, level: float) -> list[list[str]]:
    return [[str(name), *(f"{value:.4g}" for value in row)] for name, *row in one.table(level).itertuples()]


def forecast_rows(told: Answer) -> list[list[str]]:
    return [
        [
            _place(one["given"]),
            *(f"{value:.4f}" for value in (one["value"], *one["mean"], *one["prediction"])),
        ]
        for one in told.forecasts
    ]


def _place(given: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in given.items())


def optimum_rows(best: Allocation) -> list[list[str]]:
    rows = []
    for name, interval in (("params", best.params_interval), ("tokens", best.tokens_interval),
                           ("loss", best.loss_interval)):  # fmt: skip
        ends = ["", ""] if interval is None else [f"{interval.low:.4g}", f"{interval.high:.4g}"]
        rows.append([name, f"{getattr(best, name):.4g}", *ends])
    return [*rows, ["tokens a parameter", f"{best.tokens_per_param:.3g}", "", ""]]


def trust_facts(told: Answer) -> list[tuple[str, str]]:
    left = told.residuals()
    noise = told.fit.noise
    rows = [
        ("data", f"{left['points']} records of {left['runs']} runs"),
        ("intervals", f"{100 * told.level:g} %, of the law and of one new run"),
        ("residuals", f"{100 * left['root_mean_square']:.2f} % root mean square; largest "
                      f"{percent(left['largest'])} ({left['largest_run']})"),
        ("noise", f"{100 * noise.between:.2f} % between runs, {100 * noise.within:.2f} % within"),
    ]  # fmt: skip
    test = told.backtest
    if "reason" in test:
        return [*rows, ("backtest", f"not possible: {test['reason']}")]
    rows.append(("backtest", f"{test['points']} records from {test['scale']} = {test['from']:.4g} up, "
                             f"foretold without them: error {100 * test['error']:.2f} % (root mean square), "
                             f"bias {percent(test['bias'])}, {100 * test['inside']:.0f} % inside the "
                             f"{100 * test['level']:g} % interval"))  # fmt: skip
    rows.append(("ruler", ruler_told(test)))
    for one in told.forecasts:
        if len(one["each"]) > 1:
            each = ", ".join(f"{name} {value:.4f}" for name, value in one["each"].items())
            rows.append(("each form", f"{each} at {_place(one['given'])}"))
    return rows


def ruler_told(test: Mapping[str, Any]) -> str:
    """What a straight line did on the records of the backtest, beside the law."""
    line = test["ruler"]
    if not math.isfinite(line["error"]):
        return "none: there are no two scales to draw a line through"
    along = _NAMES.get(line["scale"], line["scale"])
    nearer = "nearer than the law" if line["error"] < test["error"] else "farther off than the law"
    return (
        f"a line through the two largest runs of the rest, log loss against log {along}: error "
        f"{100 * line['error']:.2f} % on the same records, bias {percent(line['bias'])}, {nearer}"
    )


def choice_rows(told: Answer) -> list[list[str]]:
    assert told.choice is not None
    rows = []
    for name, row in told.choice.iterrows():
        error = f"{100 * row['held_out_error']:.2f} %" if math.isfinite(row["held_out_error"]) else "unknown"
        used = "used" if row["chosen"] else ""
        rows.append([str(name), error, f"{row['aicc']:.1f}", f"{row['parameters']}", used])
    return rows


def left_rows(told: Answer) -> list[list[str]]:
    rows = []
    for file, row, count, reason, example in told.runs.left_out.itertuples(index=False):
        whole = not isinstance(row, int)
        shown = f"{reason}: {example!r}" if example else reason
        rows.append([Path(file).name, "" if whole else f"{row}", "" if whole else f"{count}", shown])
    return rows


# --- figures and the folder --------------------------------------------------------------------------------
def figure(told: Answer) -> Figure:
    """The law over its first input with the records, and the forecasts beside it, in the house's style."""
    import matplotlib
    import numpy as np
    from cycler import cycler
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure

    from allometry.show.drawing import LIGHT, label_margin, readable_ticks, size_colors, style

    first = told.fit.form.inputs[0]
    with style(), matplotlib.rc_context({"axes.prop_cycle": cycler(color=size_colors(4))}):
        drawn = Figure(figsize=(5.8, 4.0))  # inches: letters stay legible on a telephone's screen
        FigureCanvasAgg(drawn)
        axes = drawn.add_axes((0.1, 0.125, 0.68, 0.785))
        told.fit.plot(axes, level=told.level)
        labels, end = [], 1.0
        for line in axes.lines:  # colours by number, before the cycle is gone
            color: Any = line.get_color()
            line.set_color(to_hex(color))
            name = str(line.get_label())
            if not name.startswith("_"):  # what stands in a figure is named where it stands
                end, height = np.asarray(line.get_xydata(), dtype=float)[-1].tolist()
                labels.append((_named(name), height, to_hex(color)))
        for band in axes.collections:
            filled: Any = band.get_facecolor()
            band.set_facecolor(to_hex(filled[0]))
        legend = axes.get_legend()
        if legend is not None:
            legend.remove()
        for one in told.forecasts:
            low, high = one["prediction"]
            bar = [[one["value"] - low], [high - one["value"]]]
            axes.errorbar(one["at"][first], one["value"], bar, fmt="D", markersize=4, color=LIGHT["accent"],
                          elinewidth=1.4, zorder=5)  # fmt: skip
        axes.set_title(f"{told.fit.form.name}: law and {100 * told.level:g} % interval, records as points")
        axes.autoscale_view()
        readable_ticks(axes.yaxis)
        readable_ticks(axes.xaxis, powers=True)
        if labels:
            label_margin(axes, end, labels)
    return drawn


def _named(label: str) -> str:
    """``tokens = 1.5e+06`` as ``1.5M tokens``."""
    from allometry.show.drawing import quantity

    parts = [part.partition(" = ") for part in label.split(", ")]
    return ", ".join(f"{quantity(float(value))} {name}" for name, _, value in parts)


def draw(told: Answer, path: str | Path) -> Path:
    """Write the figure alone: .png, .svg or .pdf.

    Raises
    ------
    ValueError
        Another ending.
    """
    from allometry.show.drawing import style

    path = Path(path)
    refuse_ending(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = figure(told)
    with style():
        drawn.savefig(path, dpi=200)
    return path


def refuse_ending(path: Path) -> None:
    """Raise where a figure cannot be written into a file of this name."""
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"a figure's file ends in .png, .svg or .pdf; {str(path)!r} does not")


def write(told: Answer, directory: str | Path) -> Path:
    """Write the report: ``report.html``, ``law`` as .png and .svg, ``law.json`` and ``runs.csv``.

    ``law.json`` holds the answer, and under ``"fits"`` all that `Fit.from_dict` needs; ``runs.csv`` the
    records that the law was fitted to, with their residuals.
    """
    from allometry.show.drawing import save, write_atomically

    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    svg = save(figure(told), folder / "law")
    write_atomically(folder / "runs.csv", told.points.to_csv(index=False).encode())
    everything = told.to_dict() | {"fits": [one.to_dict() for one in told.fits]}
    write_atomically(folder / "law.json", (to_json(everything, null=False) + "\n").encode())
    return write_atomically(folder / "report.html", page(told, svg).encode())


def page(told: Answer, svg: str) -> str:
    """The page's HTML around the figure's ``svg``."""
    from allometry import __version__
    from allometry.show.drawing import inline_svg
    from allometry.show.markup import bullets, document, listing, section, shown, table

    left = told.residuals()
    first = told.fit.form.inputs[0]
    inside = inline_svg(svg, f"Loss against {first}: records, law and interval", "law", 4)
    marks = "; the marks beside them are the forecasts with their intervals for a new run"
    sections = [
        section("Forecasts", table(_PLACES, forecast_rows(told))) if told.forecasts else "",
        f"<figure>{inside}<figcaption>Points are records, lines the fitted law with its "
        f"{100 * told.level:g} % band{marks if told.forecasts else ''}.</figcaption></figure>",
        section("How far to trust it", listing(trust_facts(told), shown)),
        section("Notes", bullets(told.warnings)) if told.warnings else "",
    ]
    for one in told.fits:
        rows = table(_PARAMETERS, parameter_rows(one, told.level))
        formal = f"<p><code>{escape(formula(one))}</code></p>"
        sections.append(section(f"The law: {one.form.name}", formal + rows))
    for form, best in told.optima.items():
        rows = table(_PARAMETERS, optimum_rows(best))
        sections.append(section(f"Optimum for {best.flops:.4g} FLOPs by {form}", rows))
    if told.choice is not None:
        sections.append(section("Forms compared", table(_CHOICE, choice_rows(told))))
    sections.append(section("Read as", listing(list(told.runs.columns.items()))))
    if len(told.runs.left_out):
        sections.append(section("Left out", table(_LEFT_OUT, left_rows(told))))
    links = 'Records in <a href="runs.csv">runs.csv</a>, all else in <a href="law.json">law.json</a>.'
    sections.append(section("The numbers", f"<p>{links}</p>"))
    title = f"A law of {' and '.join(told.fit.form.inputs)} from {left['runs']} runs"
    how = "the average of " if len(told.fits) > 1 else ""
    lead = f"{left['points']} records; the forecast is {how}{escape(forms(told))}."
    return document(title, lead, sections, f"allometry {__version__}", 4)
