"""``allometry fit``: laws from runs that were made already; no training, seconds."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from allometry.laws.allocate import Allocation
    from allometry.laws.answers import Answer
    from allometry.laws.fit import Fit

_FORMULAS = {
    "power": "L(x) = A / x^alpha",
    "power-offset": "L(x) = E + A / x^alpha",
    "broken-power": "L(x) = E + A / x^alpha (1 + (x / x0)^(1/f))^(-c f)",
    "kaplan-offset": "L(N, D) = E + ((Nc / N)^(alpha_N / alpha_D) + Dc / D)^alpha_D",
    "data-constrained": "L(N, D, U) = E + A / N'^alpha + B / D'^beta, repeated tokens worth less",
}

_FORECAST = ["forecast", "loss", "law low", "high", "new run low", "high"]
_CHOICE = ["", "held-out error", "AICc", "parameters", ""]


# --- what is asked -----------------------------------------------------------------------------------------
def named_numbers(text: str) -> dict[str, float]:
    """``params=7B,tokens=2e12`` as numbers by name.

    >>> named_numbers("params=7B,tokens=2e12")
    {'params': 7000000000.0, 'tokens': 2000000000000.0}
    """
    from allometry.laws.columns import GOOD, number

    found = {}
    for name, value in _pairs(text, "params=7e9,tokens=2e12"):
        found[name], state = number(value)
        if state != GOOD:
            raise ValueError(f"{name} must be a number such as 7e9 or 7B, not {value!r}")
    return found


def _pairs(text: str, example: str) -> list[tuple[str, str]]:
    pairs = []
    for part in text.split(","):
        name, mark, value = part.partition("=")
        if not mark or not name.strip() or not value.strip():
            raise ValueError(f"give NAME=VALUE, as in {example}, not {part!r}")
        pairs.append((name.strip(), value.strip()))
    return pairs


def _given(texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """``190M-*:params=190354176``, several times, by pattern."""
    found: dict[str, dict[str, float]] = {}
    for text in texts:
        pattern, mark, rest = text.rpartition(":")
        found.setdefault(pattern if mark else "*", {}).update(named_numbers(rest))
    return found


def fit(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="CSV, TSV, JSON(L), Parquet, TensorBoard, W&B, MLflow, trainer_state.json; folders, globs."
        ),
    ] = None,
    law: Annotated[
        str,
        typer.Option(help="auto, chinchilla, kaplan, kaplan-offset, power, power-offset, broken-power ..."),
    ] = "auto",
    predict: Annotated[
        list[str] | None, typer.Option(help="Where to foretell: params=7e9,tokens=2e12. May be repeated.")
    ] = None,
    optimal_for: Annotated[
        str | None, typer.Option(help="Training FLOPs to divide between parameters and tokens.")
    ] = None,
    columns: Annotated[
        list[str] | None, typer.Option(help="Which column is what: loss=val/loss,params=N.")
    ] = None,
    values: Annotated[
        list[str] | None,
        typer.Option("--set", help="What the logs do not say, by run: '190M-*:params=190354176'."),
    ] = None,
    records: Annotated[
        str, typer.Option(help="Of each log the last record, the best, or all: last, best, all.")
    ] = "last",
    level: Annotated[float, typer.Option(help="Share of the intervals.")] = 0.9,
    plot: Annotated[Path | None, typer.Option(help="Draw the law into this file (.png, .svg, .pdf).")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder for report.html, figures, law.json and runs.csv.")
    ] = None,
    example: Annotated[
        bool, typer.Option("--example", help="Use the small measured table that comes with the package.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Fit a scaling law to RUNS made already: forecasts with intervals, the best split of a budget."""
    if example == bool(runs):
        raise ValueError("give logs of runs (files, folders, patterns), or --example, not both or neither")
    places = [named_numbers(text) for text in predict or []]
    budget = None if optimal_for is None else named_numbers(f"flops={optimal_for}")["flops"]
    wanted = dict(pair for text in columns or [] for pair in _pairs(text, "loss=val/loss,params=N"))
    given = _given(values or [])
    if plot is not None and plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"a figure's file ends in .png, .svg or .pdf; {str(plot)!r} does not")
    from allometry.forecast.report import to_json
    from allometry.laws.answers import answer
    from allometry.laws.runs import read_runs

    paths = list(runs or [])
    if example:
        import allometry.laws

        paths = [str(Path(allometry.laws.__file__).with_name("example_runs.csv"))]
        if not places and budget is None:
            places, budget = [{"params": 331_000.0, "tokens": 6e6}], 1e13
    found = read_runs(paths, columns=wanted, values=given)
    told = answer(found, law=law, predict=places, optimal_for=budget, pick=records, level=level)
    if plot is not None:
        _draw(told, plot)
    if report is not None:
        write(told, report)
    print(to_json(told.to_dict()) if as_json else summary(told))
    for path in [plot, *([report / "report.html"] if report is not None else [])]:
        if path is not None:
            print(f"Written: {path}", file=sys.stderr)


# --- what is said ------------------------------------------------------------------------------------------
def summary(told: Answer) -> str:
    """The answer as plain text of at most a hundred columns."""
    from allometry.forecast.report import _aligned, _columns, _cut, _wrapped

    parts: list[str] = []

    def section(title: str, lines: Sequence[str]) -> None:
        if lines:
            parts.extend(["", title, *(f"  {line}" for line in lines)])

    if len(told.fits) > 1:
        names = " and ".join(one.form.name for one in told.fits)
        parts.append(f"The average of {names}, which these runs cannot tell apart")
    for one in told.fits:
        parts.append(f"Law: {one.form.name}, {formula(one)}")
        rows = parameter_rows(one, told.level)
        parts += [f"  {line}" for line in _columns(["", "value", "low", "high"], rows)]
    if told.forecasts:
        parts += ["", *_columns(_FORECAST, forecast_rows(told))]
    for name, best in told.optima.items():
        section(f"Optimum for {best.flops:.4g} FLOPs by {name}",
                _columns(["", "value", "low", "high"], optimum_rows(best)))  # fmt: skip
    section("How far to trust it", _aligned(trust_facts(told)))
    if told.choice is not None:
        section("Forms compared", _columns(_CHOICE, choice_rows(told)))
    if told.warnings:
        parts += ["", "Notes", *(line for note in told.warnings for line in _wrapped(note))]
    section("Read as", _aligned(list(told.runs.columns.items())))
    if len(told.runs.left_out):
        section("Left out", _columns(["file", "from row", "rows", "reason"], left_rows(told)))
    return "\n".join(line.rstrip() for part in parts for line in _cut(part))


def formula(one: Fit) -> str:
    """The law's formula, with the name of its input."""
    from allometry.forecast.report import FORMULAS

    text = (_FORMULAS | FORMULAS).get(one.form.name, "")
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
    from allometry.forecast.report import percent

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
    for one in told.forecasts:
        if len(one["each"]) > 1:
            each = ", ".join(f"{name} {value:.4f}" for name, value in one["each"].items())
            rows.append(("each form", f"{each} at {_place(one['given'])}"))
    return rows


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
def _figure(told: Answer) -> Any:
    """The law over its first input, in the house's style."""
    import matplotlib
    from cycler import cycler
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure

    from allometry.forecast.drawing import readable_ticks, size_colors, style

    with style(), matplotlib.rc_context({"axes.prop_cycle": cycler(color=size_colors(4))}):
        figure = Figure(figsize=(7.0, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        told.fit.plot(axes, level=told.level)
        for line in axes.lines:  # colours by number, before the cycle is gone
            color: Any = line.get_color()
            line.set_color(to_hex(color))
        for band in axes.collections:
            filled: Any = band.get_facecolor()
            band.set_facecolor(to_hex(filled[0]))
        if axes.get_legend() is not None:
            axes.legend()
        axes.set_title(f"{told.fit.form.name}: law and {100 * told.level:g} % interval, records as points")
        axes.autoscale_view()
        readable_ticks(axes.yaxis)
        readable_ticks(axes.xaxis, powers=True)
    return figure


def _draw(told: Answer, path: Path) -> None:
    from allometry.forecast.drawing import style

    path.parent.mkdir(parents=True, exist_ok=True)
    figure = _figure(told)
    with style():
        figure.savefig(path, dpi=200)


def write(told: Answer, directory: str | Path) -> Path:
    """Write the report: ``report.html``, ``law`` as .png and .svg, ``law.json`` and ``runs.csv``.

    ``law.json`` holds the answer, and under ``"fits"`` all that `Fit.from_dict` needs; ``runs.csv`` the
    records that the law was fitted to, with their residuals.
    """
    from allometry.forecast.drawing import save, write_atomically
    from allometry.forecast.report import to_json

    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    svg = save(_figure(told), folder / "law")
    write_atomically(folder / "runs.csv", told.points.to_csv(index=False).encode())
    everything = told.to_dict() | {"fits": [one.to_dict() for one in told.fits]}
    write_atomically(folder / "law.json", (to_json(everything) + "\n").encode())
    return write_atomically(folder / "report.html", _page(told, svg).encode())


def _page(told: Answer, svg: str) -> str:
    from html import escape

    from allometry import __version__
    from allometry.forecast.drawing import inline_svg
    from allometry.forecast.page import _css, _list, _section, _shown, _table
    from allometry.forecast.report import sentence

    left = told.residuals()
    forms = " and ".join(one.form.name for one in told.fits)
    title = f"A law of {' and '.join(told.fit.form.inputs)} from {left['runs']} runs"
    name = f"Loss against {told.fit.form.inputs[0]}: records, law and interval"
    sections = [
        _section("Forecasts", _table(_FORECAST, forecast_rows(told))) if told.forecasts else "",
        f"<figure>{inline_svg(svg, name, 'law', 4)}<figcaption>Points are records, lines the fitted law with "
        f"its {100 * told.level:g} % band.</figcaption></figure>",
        _section("How far to trust it", _list(trust_facts(told), _shown)),
        _section("Notes", "<ul>" + "".join(f"<li>{escape(sentence(note))}</li>" for note in told.warnings)
                 + "</ul>") if told.warnings else "",
        *(_section(f"The law: {one.form.name}", f"<p><code>{escape(formula(one))}</code></p>"
                   + _table(["", "value", "low", "high"], parameter_rows(one, told.level)))
          for one in told.fits),
        *(_section(f"Optimum for {best.flops:.4g} FLOPs by {form}",
                   _table(["", "value", "low", "high"], optimum_rows(best)))
          for form, best in told.optima.items()),
        _section("Forms compared", _table(_CHOICE, choice_rows(told)))
        if told.choice is not None else "",
        _section("Read as", _list(list(told.runs.columns.items()))),
        _section("Left out", _table(["file", "from row", "rows", "reason"], left_rows(told)))
        if len(told.runs.left_out) else "",
        _section("The numbers", '<p>Records in <a href="runs.csv">runs.csv</a>, all else in '
                                '<a href="law.json">law.json</a>.</p>'),
    ]  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)}</title>\n'
        f"<style>{_css(4)}</style>\n</head>\n<body>\n<main>\n<header><h1>{escape(title)}</h1>\n"
        f"<p>{left['points']} records, {escape(forms)}.</p></header>\n"
        + "\n".join(section for section in sections if section)
        + f"\n</main>\n<footer>allometry {escape(__version__)}</footer>\n</body>\n</html>\n"
    )
