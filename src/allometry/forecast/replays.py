"""Replays: the whole job again and again with other seeds, to see how good its forecasts and intervals are.

Nothing is shared between two replays but the text and the recipe: initial weights and data order differ for
every rung and for the target. What is judged is what users get: the median absolute error, how often the
measured loss falls into the interval, how wide the interval is, and its score against the naive forecasts'
(Winkler, 1972).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allometry.forecast.forecast import forecast
from allometry.forecast.result import Forecast

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Replays:
    """Several forecasts with different seeds, judged together.

    Attributes
    ----------
    table : DataFrame
        One row a replay: seed, width, tokens, forms, value, low, high, measured, error, inside, half_width,
        last_rung, ruler (the naive forecasts), score_forecast, score_last_rung, score_ruler.
    """

    table: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """Summary and table, JSON-ready."""
        return {"summary": self.summary(), "replays": self.table.to_dict(orient="records")}

    def summary(self) -> dict[str, float]:
        """The figures by which a forecaster is judged; errors and widths as shares of the loss."""
        table = self.table
        naive = {
            name: (table[name] / table["measured"] - 1.0).abs().median() for name in ("last_rung", "ruler")
        }
        return {
            "replays": len(table),
            "median_absolute_error": float(table["error"].abs().median()),
            "bias": float(table["error"].mean()),
            "error_sd": float(table["error"].std()),
            "inside": int(table["inside"].sum()),
            "median_half_width": float(table["half_width"].median()),
            "largest_half_width": float(table["half_width"].max()),
            "score_forecast": float(table["score_forecast"].mean()),
            "score_last_rung": float(table["score_last_rung"].mean()),
            "score_ruler": float(table["score_ruler"].mean()),
            "last_rung_median_absolute_error": float(naive["last_rung"]),
            "ruler_median_absolute_error": float(naive["ruler"]),
        }

    def __str__(self) -> str:
        s = self.summary()
        return (
            f"{s['replays']} replays, all seeds different\n"
            f"median absolute error {s['median_absolute_error']:.2%}, "
            f"bias {s['bias']:+.2%} (sd {s['error_sd']:.2%})\n"
            f"measured loss inside the 90% interval in {s['inside']} of {s['replays']}; "
            f"half-width {s['median_half_width']:.2%} (median), {s['largest_half_width']:.2%} (largest)\n"
            f"mean interval score {s['score_forecast']:.4f}; ruler {s['score_ruler']:.4f}, "
            f"last rung {s['score_last_rung']:.4f} (lower is better)\n"
            f"median absolute error of the naive forecasts: ruler {s['ruler_median_absolute_error']:.2%}, "
            f"last rung {s['last_rung_median_absolute_error']:.2%}"
        )

    def write(self, directory: str | Path) -> Path:
        """Write replays.csv, replays.json, replays.txt and the figure."""
        from allometry.forecast.figures import replay_figure
        from allometry.forecast.report import to_json
        from allometry.show.drawing import write_atomically

        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.table.to_csv(folder / "replays.csv", index=False)
        write_atomically(folder / "replays.json", to_json(self.to_dict(), null=False).encode())
        write_atomically(folder / "replays.txt", f"{self}\n".encode())
        replay_figure(self.table, folder / "replays")
        return folder


def replay(
    sources: str | Path | Sequence[str | Path] | None = None,
    count: int = 10,
    *,
    seed: int = 0,
    report: str | Path | None = None,
    tell: Callable[[str], None] | None = None,
    **settings: Any,
) -> Replays:
    """Do the whole job ``count`` times with seeds ``seed``, ``seed + 1`` ..., and judge the forecasts.

    Each replay is stored as a job of its own, so a replay cut short goes on where it was. Other settings go
    to :func:`allometry.forecast.forecast.forecast`. All replays use the first one's kind of plan.

    Raises
    ------
    ValueError
        With fewer than two replays.
    """
    if count < 2:
        raise ValueError(f"a judgement needs at least two replays, got {count}")
    import pandas as pd

    rows = []
    for index in range(count):
        result = forecast(sources, seed=seed + index, check=True, tell=tell, **settings)
        settings["plan"] = result.plan["plan"]
        rows.append(row_of(result, seed + index))
        if tell is not None:
            how = "inside" if rows[-1]["inside"] else "outside"
            tell(f"Replay {index + 1} of {count}: error {rows[-1]['error']:+.2%}, {how}")
    judged = Replays(pd.DataFrame(rows))
    if report is not None:
        judged.write(report)
    return judged


def row_of(result: Forecast, seed: int) -> dict[str, Any]:
    """One replay as a row of the table."""
    if result.check is None:
        raise ValueError("a replay needs its target trained")
    return {
        "seed": seed,
        "width": result.target["width"],
        "params": result.target["params"],
        "tokens": result.target["tokens"],
        "forms": " ".join(result.choice.index[result.choice["chosen"]]),
        "value": result.value,
        "low": result.low,
        "high": result.high,
        "measured": result.check.measured,
        "error": result.check.error,
        "inside": result.check.inside,
        "half_width": result.half_width,
        "last_rung": float(result.naive.loc["last rung", "value"]),
        "ruler": float(result.naive.loc["ruler", "value"]),
        "score_forecast": result.check.scores["forecast"],
        "score_last_rung": result.check.scores["last rung"],
        "score_ruler": result.check.scores["ruler"],
        "digest": result.digest,
    }
