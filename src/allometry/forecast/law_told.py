"""What a law of its own table, or a set of tasks, says: on the terminal, as a figure, as a folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allometry.show.text import aligned, columns, cut, wrapped

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from allometry.laws.law_answer import LawAnswer

__all__ = ["draw", "summary", "tables", "write"]

_ROWS = 24  # of a table on the terminal; the folder holds all


def tables(told: LawAnswer) -> dict[str, pandas.DataFrame]:
    """What is shown, by title: forecasts, parameters, and what the law has to say of its own."""
    found = {"Forecasts": told.forecasts} if len(told.forecasts) else {}
    return found | {f"Law: {told.law.name}": told.law.table(told.level)} | told.law.report()


def trust(told: LawAnswer) -> list[tuple[str, str]]:
    """How far to trust it: facts by name."""
    facts = [("fitted to", f"{told.rows} rows")]
    test = told.backtest
    if test is None:
        return [*facts, (f"{told.held_out} held out", f"not possible: {told.reason}")]
    said = f"{len(test.observed)} rows, mean error {100 * test.error:.2f} % (bias {100 * test.bias:+.2f} %)"
    if not math.isnan(test.inside):
        said += f", {100 * test.inside:.0f} % inside the {100 * test.level:g} %"
    return [*facts, (f"{told.held_out} held out", said)]


def summary(answers: Mapping[str, LawAnswer]) -> str:
    """The answers as plain text of at most a hundred columns; of several tasks one table of all."""
    parts: list[str] = []
    several = len(answers) > 1
    if several:
        parts += ["Tasks", *(f"  {line}" for line in _lines(overview(answers)))]
    else:
        told = next(iter(answers.values()))
        for title, frame in tables(told).items():
            parts += [*([""] if parts else []), title, *(f"  {line}" for line in _lines(frame))]
        parts += ["", "How far to trust it", *(f"  {line}" for line in aligned(trust(told)))]
    notes = [
        f"{label}: {note}" if several else note
        for label, told in answers.items() for note in dict.fromkeys(told.warnings)
    ]  # fmt: skip
    if notes:
        parts += ["", "Notes", *(line for note in notes for line in wrapped(note))]
    return "\n".join(line.rstrip() for part in parts for line in cut(part))


def overview(answers: Mapping[str, LawAnswer]) -> pandas.DataFrame:
    """One row a task and place: what is foretold, and what holding rows out showed."""
    import pandas

    rows = []
    for label, told in answers.items():
        test = told.backtest
        error = "" if test is None else f"{100 * test.error:.1f} % ({100 * test.bias:+.1f} %)"
        places: list[dict[str, Any]] = told.forecasts.to_dict("records") or [{}]
        rows += [{"task": label, **place, f"{told.held_out} held out": error} for place in places]
    return pandas.DataFrame(rows).set_index("task")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return str(value)


def _rows(frame: pandas.DataFrame) -> tuple[list[str], list[list[str]]]:
    named = frame.index.name is not None or frame.index.dtype == object
    whole = frame.reset_index() if named else frame
    head = ["" if str(name) in ("index", "parameter") else str(name).replace("_", " ") for name in whole]
    return head, [[_cell(value) for value in row] for row in whole.itertuples(index=False)]


def _lines(frame: pandas.DataFrame) -> list[str]:
    head, rows = _rows(frame)
    shown = columns(head, rows[:_ROWS])
    return [*shown, f"... and {len(rows) - _ROWS} more rows"] if len(rows) > _ROWS else shown


# --- figures and the folder --------------------------------------------------------------------------------
def figure(told: LawAnswer, title: str = "") -> Figure:
    """The law's own drawing in the house's style."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from allometry.show.drawing import style

    with style():
        drawn = Figure(figsize=(5.8, 4.0))  # inches: letters stay legible on a telephone's screen
        FigureCanvasAgg(drawn)
        axes = drawn.add_axes((0.12, 0.13, 0.84, 0.78))
        told.law.plot(axes, told.level)
        axes.set_title(title or f"{told.law.name}: law and records")
    return drawn


def draw(answers: Mapping[str, LawAnswer], path: str | Path) -> list[Path]:
    """Write the figure; where there are several tasks, one file each, with the task in its name."""
    from allometry.show.drawing import style

    path, paths = Path(path), []
    path.parent.mkdir(parents=True, exist_ok=True)
    for label, told in answers.items():
        mine = path if len(answers) == 1 else path.with_name(f"{path.stem}-{_file(label)}{path.suffix}")
        drawn = figure(told, label if len(answers) > 1 else "")
        with style():
            drawn.savefig(mine, dpi=200)
        paths.append(mine)
    return paths


def write(answers: Mapping[str, LawAnswer], directory: str | Path) -> Path:
    """Write the report: ``report.html``, a figure each (.png, .svg), ``law.json``, ``forecasts.csv``."""
    import pandas

    from allometry import __version__
    from allometry.forecast.report import to_json
    from allometry.show.drawing import inline_svg, save, write_atomically
    from allometry.show.markup import bullets, document, listing, section, shown, table

    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    sections = [section("Tasks", table(*_rows(overview(answers))))] if len(answers) > 1 else []
    for number, (label, told) in enumerate(answers.items()):
        several = len(answers) > 1
        svg = save(
            figure(told, label if several else ""), folder / (f"law-{_file(label)}" if several else "law")
        )
        inside = inline_svg(svg, f"{told.law.name} of {label}: law and records", f"law{number}", 4)
        parts = [f"<h3>{escape(name)}</h3>{table(*_rows(one))}" for name, one in tables(told).items()]
        notes = f"<h3>Notes</h3>{bullets(told.warnings)}" if told.warnings else ""
        trusted = f"<h3>How far to trust it</h3>{listing(trust(told), shown)}"
        sections.append(section(label, f"<figure>{inside}</figure>{trusted}{''.join(parts)}{notes}"))
    found = [told.forecasts.assign(of=label) for label, told in answers.items() if len(told.forecasts)]
    links = 'Everything in <a href="law.json">law.json</a>'
    if found:
        rows = pandas.concat(found, ignore_index=True).to_csv(index=False)
        write_atomically(folder / "forecasts.csv", rows.encode())
        links += ', forecasts in <a href="forecasts.csv">forecasts.csv</a>'
    everything = {label: told.to_dict() for label, told in answers.items()}
    write_atomically(folder / "law.json", (to_json(everything) + "\n").encode())
    sections.append(section("The numbers", f"<p>{links}.</p>"))
    first = next(iter(answers.values()))
    title = f"{len(answers)} tasks" if len(answers) > 1 else f"The {first.law.name} law"
    lead = f"Fitted to {first.rows} rows; intervals hold {100 * first.level:g} %."
    page = document(title, lead, sections, f"allometry {__version__}", 4)
    return write_atomically(folder / "report.html", page.encode())


def _file(label: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in label)
