"""How the best learning rate moves with horizon and width: what the ladder holds fixed, measured.

The ladder carries one peak rate over all widths and horizons. Maximal update parametrization answers for
the width; nothing answers for the horizon, and the best rate is known to fall with it (Bjorck and others,
2024. arXiv:2409.19913). This measures by how much: each rate of a grid trains one trunk with a decay at
every horizon, all rates and seeds of a width as one stack, and a parabola in log rate gives the best one
with its interval.

``python -m allometry.forecast.drift --out evidence/learning-rate`` makes the table and the figure.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from allometry.forecast.ladder import PLANS, Ladder, new_model, new_optimizer

if TYPE_CHECKING:
    import pandas as pd

    from allometry.data.corpus import Corpus


def rate_losses(
    ladder: Ladder, width: int, rates: Sequence[float], seeds: Sequence[int], corpus: Corpus
) -> pd.DataFrame:
    """Validation loss of every rate and seed at every horizon of the ladder.

    Parameters
    ----------
    ladder : Ladder
        Its ``tokens`` are the horizons; its own rate is not used.
    rates : sequence of float
        Peak rates at the base width.

    Returns
    -------
    DataFrame
        Columns width, tokens, seed, learning_rate, loss, status; lost runs keep their row, with NaN.
    """
    import pandas as pd

    from allometry.data.windows import StackedWindows, Windows, validation_windows
    from allometry.optim.schedules import WSD
    from allometry.train.language import evaluate
    from allometry.train.loop import fit
    from allometry.train.meter import Meter
    from allometry.train.seeds import Seeds
    from allometry.train.stack import Stack

    grid = [(rate, seed) for rate in rates for seed in seeds]
    stack = Stack([new_model(ladder, width, corpus.vocab_size, seed) for _, seed in grid])
    tokens = corpus.tokens("train")
    orders = {s: Windows(tokens, ladder.context, ladder.batch, Seeds(s).integer("data")) for s in seeds}
    held_out = validation_windows(corpus.tokens("validation"), ladder.context, ladder.validation_windows)
    log = fit(
        stack,
        StackedWindows([orders[seed] for _, seed in grid]),
        optimizer=stack.optimizer(
            lambda model, rate: new_optimizer(replace(ladder, learning_rate=rate), model),
            [rate for rate, _ in grid],
        ),
        horizons=ladder.horizons(),
        schedule=WSD(ladder.warmup, ladder.decay),
        clip=ladder.clip,
        validate=lambda network: {"loss": evaluate(network, held_out).tolist()},
        meter=Meter(ladder.tokens_per_step),
    )
    rows = []
    for record in log.horizons:
        for replica, (rate, seed) in enumerate(grid):
            lost = replica in record["lost"]
            rows.append(
                {
                    "width": width, "tokens": record["tokens"], "seed": seed, "learning_rate": rate,
                    "loss": math.nan if lost else record["loss"][replica],
                    "status": "diverged" if lost else "done",
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def best_rates(losses: pd.DataFrame) -> pd.DataFrame:
    """The best rate at each width and horizon, its interval, and the cost of the ladder's own rate.

    ``best_loss`` is the lowest mean on the grid, and ``cost_nats`` what the grid's rate nearest to the
    ladder's loses against it.
    """
    import numpy as np
    import pandas as pd

    from allometry.train.learning_rates import best_learning_rate

    own = PLANS["default"].learning_rate
    rows = []
    for (width, tokens), curve in losses.groupby(["width", "tokens"]):
        best = best_learning_rate(curve)
        mean = curve.groupby("learning_rate")["loss"].mean()
        nearest = mean.index[np.argmin(np.abs(np.log(mean.index.to_numpy() / own)))]
        rows.append(
            {
                "width": width, "tokens": tokens, "best_rate": best.rate, "low": best.low, "high": best.high,
                "best_loss": mean.min(), "loss_at_ladder_rate": mean[nearest],
                "cost_nats": mean[nearest] - mean.min(),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def draw(losses: pd.DataFrame, best: pd.DataFrame, stem: Path) -> None:
    """Loss against rate at each horizon, and the best rate against the horizon."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    widths = sorted(losses["width"].unique())
    width = widths[len(widths) // 2]
    horizons = sorted(losses["tokens"].unique())
    colors = matplotlib.colormaps["viridis"]([i / max(1, len(horizons)) for i in range(len(horizons))])
    for color, tokens in zip(colors, horizons, strict=True):
        curve = losses[(losses["width"] == width) & (losses["tokens"] == tokens)]
        mean = curve.groupby("learning_rate")["loss"].mean()
        left.plot(mean.index, mean, "o-", color=color, label=f"{tokens / 1e6:.2g} million tokens")
    left.set(xscale="log", xlabel="peak learning rate", ylabel="loss, nats a token", title=f"width {width}")
    rates = sorted(losses["learning_rate"].unique())
    left.set_xticks(rates, labels=[f"{rate:g}" for rate in rates])
    left.legend(frameon=False, fontsize=8, loc="upper right", bbox_to_anchor=(1.0, 0.98))
    left.margins(y=0.3)
    for width in widths:
        line = best[best["width"] == width]
        finite = line[(line["low"] > 0) & (line["high"] < math.inf)]
        (drawn,) = right.plot(line["tokens"], line["best_rate"], "o-", label=f"width {width}")
        right.fill_between(
            finite["tokens"], finite["low"], finite["high"], color=drawn.get_color(), alpha=0.15, lw=0
        )
    right.axhline(PLANS["default"].learning_rate, color="0.5", ls="--", lw=1)
    right.set(
        xscale="log",
        yscale="log",
        xlabel="tokens",
        ylabel="best peak rate",
        title="the ladder's rate is dashed",
    )
    right.set_xticks(horizons, labels=[f"{tokens / 1e6:.2g} M" for tokens in horizons])
    right.set_yticks(rates, labels=[f"{rate:g}" for rate in rates])
    for axis in (left.xaxis, right.xaxis, right.yaxis):
        axis.set_minor_locator(NullLocator())
    right.legend(frameon=False, fontsize=8)
    for kind in ("png", "svg"):
        figure.savefig(stem.with_suffix(f".{kind}"), dpi=150)


def main() -> None:
    """Measure, and write rates.csv, best.csv and the figure."""
    import pandas as pd
    import torch

    from allometry.data import StandardLibrary

    parser = argparse.ArgumentParser(description="How the best learning rate moves with horizon and width.")
    parser.add_argument("--out", type=Path, default=Path("evidence/learning-rate"))
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--rates", type=float, nargs="+", default=[1.25e-3, 2.5e-3, 5e-3, 1e-2, 2e-2])
    parser.add_argument("--tokens", type=float, nargs="+", default=[0.25e6, 0.5e6, 1e6, 2e6])
    parser.add_argument("--seeds", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    corpus = StandardLibrary()
    ladder = replace(PLANS["default"], tokens=tuple(int(t) for t in asked.tokens))
    parts = []
    asked.out.mkdir(parents=True, exist_ok=True)
    for width in asked.widths:
        parts.append(rate_losses(ladder, width, asked.rates, range(900, 900 + asked.seeds), corpus))
        losses = pd.concat(parts).assign(corpus=corpus.digest[:12])
        losses.to_csv(asked.out / "rates.csv", index=False)
        print(best_rates(losses).to_string(index=False), flush=True)
    best = best_rates(losses)
    best.to_csv(asked.out / "best.csv", index=False)
    draw(losses, best, asked.out / "drift")


if __name__ == "__main__":
    main()
