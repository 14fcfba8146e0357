"""The report: what the terminal prints at the end, and a folder with the page, its figures and its numbers.

What is said is gathered here once, for the terminal and for the page (:mod:`allometry.forecast.page`) alike.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allometry.show.text import aligned, columns, cut, percent, wrapped

if TYPE_CHECKING:
    from allometry.forecast.result import Forecast
    from allometry.laws import Fit

FORMULAS = {
    "chinchilla": "L(N, D) = E + A / N^alpha + B / D^beta",
    "kaplan-offset": "L(N, D) = E + ((Nc / N)^(alpha_N / alpha_D) + Dc / D)^alpha_D",
    "kaplan": "L(N, D) = ((Nc / N)^(alpha_N / alpha_D) + Dc / D)^alpha_D",
}


# --- the terminal ------------------------------------------------------------------------------------------
def summary(result: Forecast) -> str:
    """All that matters in at most a hundred columns of plain text."""
    parts = [verdict(result), "", *aligned(facts(result))]
    parts += ["", *columns(["at the target", "loss", "low", "high", "error"], contest(result))]
    if result.backtest:
        parts += ["", "Backtest, the ladder's largest size foretold from the smaller ones"]
        parts += [f"  {line}" for line in aligned(backtest(result))]
    for fit in result.fits:
        parts += ["", f"Law: {fit.form.name}, {FORMULAS.get(fit.form.name, 'see law.json')}"]
        table = law_table(fit, result.level)
        parts += [f"  {line}" for line in columns(["", "value", "low", "high"], table)]
    if result.notes:
        parts += ["", "Notes", *(line for note in result.notes for line in wrapped(note))]
    return "\n".join(line.rstrip() for part in parts for line in cut(part))


def verdict(result: Forecast) -> str:
    """Whether the forecast held, in one sentence."""
    if result.check is None:
        return "Not checked: the target was not trained."
    word, where = ("held", "inside") if result.check.inside else ("was refuted", "outside")
    return (
        f"The forecast {word}: the measured loss lies {where} the {level(result)} prediction interval, "
        f"error {percent(result.check.error)}."
    )


def command(result: Forecast) -> str:
    """The command line that asks the same again."""
    plan = result.plan
    text = plan.get("corpus", {})
    words = ["allometry", "forecast", *map(str, text.get("paths") or ())]
    name = plan.get("plan")
    words += ["--tiny"] if name == "tiny" else ["--plan", str(name)] if name else []
    if "target" in plan:
        words += ["--target", f"{plan['target']:g}x"]
    if plan.get("target_tokens") is not None:
        words += ["--tokens", f"{plan['target_tokens']:.0f}"]
    if plan.get("seeds"):
        words += ["--seeds", str(len(plan["seeds"])), "--seed", str(int(plan["seeds"][0]) // 1_000)]
    if plan.get("device"):
        words += ["--device", str(plan["device"])]
    if text.get("tokenizer"):
        words += ["--tokenizer", str(text["tokenizer"])]
    if text.get("text_field", "text") != "text":
        words += ["--text-field", str(text["text_field"])]
    words += ["--no-check"] if result.check is None else []
    return shlex.join(words)


# --- the folder --------------------------------------------------------------------------------------------
def write(result: Forecast, directory: str | Path) -> Path:
    """Write the report into a folder, each file whole or not at all; returns ``report.html`` in it.

    Beside the page: ``forecast`` and ``residuals`` as .png and .svg, ``runs.csv`` (every record, floats
    exact) and ``law.json`` (all else; floats exact, what JSON has no number for as "NaN" or "Infinity").
    """
    from allometry.forecast.figures import loss_figure, residual_figure
    from allometry.forecast.page import page
    from allometry.show.drawing import save, write_atomically

    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {
        "forecast": save(loss_figure(result), folder / "forecast"),
        "residuals": save(residual_figure(result), folder / "residuals"),
    }
    # pandas writes the shortest digits that read back as the same float
    write_atomically(folder / "runs.csv", result.runs.to_csv(index=False).encode())
    write_atomically(folder / "law.json", (to_json(result.to_dict(), null=False) + "\n").encode())
    return write_atomically(folder / "report.html", page(result, drawn).encode())


def to_json(values: Any, *, null: bool = True) -> str:
    """Valid JSON whose floats read back exactly.

    What JSON has no number for becomes null, since a program that reads a command's output expects a number
    or none; without ``null`` a string that ``float`` understands, so that a file keeps all.

    >>> to_json({"a": float("nan"), "b": 0.1, "c": (1, None)})
    '{\\n "a": null,\\n "b": 0.1,\\n "c": [\\n  1,\\n  null\\n ]\\n}'
    >>> to_json([float("inf"), 2], null=False)
    '[\\n "Infinity",\\n 2\\n]'
    """
    return json.dumps(_plain(values, null), indent=1, allow_nan=False, ensure_ascii=False)


def _plain(value: Any, null: bool) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item, null) for key, item in value.items()}
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays
        return _plain(value.tolist(), null)
    if isinstance(value, (str, bool, int, type(None))):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        if null:
            return None
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Iterable):
        return [_plain(item, null) for item in value]
    return str(value)


# --- what is said, for terminal and page alike -------------------------------------------------------------
def facts(result: Forecast) -> list[tuple[str, str]]:
    goal, check = result.target, result.check
    per_byte = _bits_per_byte(result)
    facts = [
        (
            "forecast",
            f"{result.value:.4f} nats a token, {result.low:.4f} to {result.high:.4f} "
            f"({level(result)} prediction interval, half-width {100 * result.half_width:.2f} %)",
        ),
        ("measured", "the target was not trained" if check is None else f"{check.measured:.4f} nats a token"),
    ]
    if check is not None:
        where = "inside" if check.inside else "outside"
        facts.append(("error", f"{percent(check.error)}, {where} the interval"))
    if per_byte is not None:
        told = f"{per_byte:.4f} forecast" + ("" if check is None else f", {check.bits_per_byte:.4f} measured")
        facts.append(("bits per byte", told))
    target = f"width {goal['width']}, {goal['params']:,.0f} parameters without embeddings"
    target += f", {goal['tokens']:,.0f} tokens"
    if goal.get("epochs") is not None:
        target += f", {goal['epochs']:.2f} epochs"
    facts += [("target", target), *_cost(result)]
    return facts


def _cost(result: Forecast) -> list[tuple[str, str]]:
    ladder, target = result.cost.get("ladder_flops"), result.cost.get("target_flops")
    facts = []
    if ladder and target:
        ratio = ladder / target
        facts.append(
            (
                "cost",
                f"ladder {ladder:.3g} FLOPs, target {target:.3g} FLOPs: "
                f"the ladder costs {ratio:.2f} times the target",
            )
        )
    noise = result.cost.get("seed_noise")
    if noise is not None and math.isfinite(noise):
        facts.append(("seed noise", f"{100 * noise:.2f} % of the loss between seeds"))
    return facts


def contest(result: Forecast) -> list[list[str]]:
    """Forecast, measurement and naive forecasts as rows of name, loss, low, high, error."""
    check = result.check
    rows: list[list[Any]] = [
        ["forecast", result.value, result.low, result.high, None if check is None else check.error]
    ]
    if check is not None:
        rows.append(["measured", check.measured, None, None, None])
    for name, row in result.naive.iterrows():
        error = None if check is None else check.naive_errors.get(str(name))
        rows.append([f"naive: {name}", row["value"], row["low"], row["high"], error])
    return [
        [str(name), *map(_loss, numbers), "" if error is None else percent(error)]
        for name, *numbers, error in rows
    ]


def backtest(result: Forecast) -> list[tuple[str, str]]:
    back = result.backtest
    word = "held" if back["inside"] else "was refuted"
    return [
        ("asked", f"width {back['width']} at {back['tokens']:,.0f} tokens"),
        ("forecast", f"{back['value']:.4f}, {back['low']:.4f} to {back['high']:.4f}"),
        ("measured", f"{back['measured']:.4f}, error {percent(back['error'])}: it {word}"),
    ]


def law_table(fit: Fit, level: float) -> list[list[str]]:
    table = fit.table(level)
    return [[str(name), *(f"{value:.4g}" for value in row)] for name, *row in table.itertuples()]


def choice_table(result: Forecast) -> tuple[list[str], list[list[str]]]:
    table = result.choice
    if table.index.name or table.index.dtype == object:
        table = table.reset_index()
    shares = [
        str(name).endswith(("error", "bias")) for name in table.columns
    ]  # of log loss, so shares of the loss
    return [str(name).replace("_", " ") for name in table.columns], [
        [
            percent(value) if share and math.isfinite(value) else _cell(value)
            for value, share in zip(row, shares, strict=True)
        ]
        for row in table.itertuples(index=False)
    ]


def ladder_table(result: Forecast) -> tuple[list[str], list[list[str]]]:
    """Mean loss over seeds, and their spread, a row a size and a column a horizon."""
    from allometry.forecast.figures import finite_runs
    from allometry.show.drawing import quantity

    runs = finite_runs(result.runs)
    cells = runs.groupby(["width", "tokens"])["loss"].agg(["mean", "std", "count"])
    horizons = sorted(runs["tokens"].unique())
    rows = []
    for width, mine in runs.groupby("width"):
        row = [f"{width}", f"{mine['params'].iloc[0]:,.0f}", f"{mine['run'].nunique()}"]
        for tokens in horizons:
            if (width, tokens) not in cells.index:
                row.append("")
                continue
            cell = cells.loc[(width, tokens)]
            row.append(f"{cell['mean']:.4f}" + (f" ± {cell['std']:.4f}" if cell["count"] > 1 else ""))
        rows.append(row)
    return ["width", "parameters", "seeds", *(f"{quantity(tokens)} tokens" for tokens in horizons)], rows


def plan_facts(result: Forecast) -> list[tuple[str, str]]:
    plan = result.plan
    text, ladder = plan.get("corpus", {}), plan.get("ladder", {})
    paths = ", ".join(map(str, text.get("paths") or ())) or "the standard library's own source"
    counts = [
        f"{text[key]:,} {unit}" for key, unit in (("files", "files"), ("bytes", "bytes")) if key in text
    ]
    if "training_tokens" in text:
        counts.append(f"{text['training_tokens']:,} training tokens")
    rows = [("plan", str(plan.get("plan", ""))), ("plan hash", result.digest), ("text", paths)]
    rows += [("text size", ", ".join(counts)), ("text digest", str(text.get("digest", "")))]
    rows.append(("tokenizer", str(text.get("tokenizer") or "bytes")))
    rows.append(
        ("recipe", "; ".join(f"{key.replace('_', ' ')} {_cell(value)}" for key, value in ladder.items()))
    )
    law = plan.get("law", {})
    rows.append(("law", "; ".join(f"{key} {_cell(value)}" for key, value in law.items())))
    for key in (
        "seeds",
        "target_seed",
        "dtype",
        "device",
        "workers",
        "threads",
        "target_threads",
        "stacked_widths",
    ):
        if key in plan:
            rows.append((key.replace("_", " "), _cell(plan[key])))
    return [(name, value) for name, value in rows if value]


def _bits_per_byte(result: Forecast) -> float | None:
    """The forecast in bits per byte: the ratio to nats a token is the text's, the same in every record."""
    if "bits_per_byte" not in result.runs or result.runs.empty:
        return None
    return float(result.value * (result.runs["bits_per_byte"] / result.runs["loss"]).median())


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_cell(item)}" for key, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(_cell(item) for item in value) or "none"
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if math.isfinite(value) else "none"


def level(result: Forecast) -> str:
    return f"{100.0 * result.level:g} %"
