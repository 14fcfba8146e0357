"""Which law of annealing foretells a folder of runs: fitted to some of its logs, judged on the others.

    python -m allometry.laws.schedule_table logs/25M logs/100M --fitted constant,cosine --out told

Every folder holds one log a run (CSV with step, learning rate and loss) of one model under several schedules.
The measure is that of Luo and others, 2025 (arXiv:2503.12811): the relative error, averaged over the points
of a run and then over runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from allometry.laws.annealing import AnnealingLaw
from allometry.laws.multi_power import EffectiveRateLaw, MultiPowerLaw
from allometry.laws.schedule import ResponseLaw
from allometry.laws.schedule_choice import ScheduleLaw

if TYPE_CHECKING:
    import pandas

__all__ = ["schedule_table"]


def schedule_table(
    table: pandas.DataFrame, fitted: Sequence[str], *, warmup: int = 0, resamples: int = 1000
) -> pandas.DataFrame:
    """Every law, fitted to the runs named, against all the others.

    Parameters
    ----------
    table : DataFrame
        ``run``, ``step``, ``learning_rate`` and ``loss`` of all runs.
    fitted : sequence of str
        Runs that the laws may see.

    Returns
    -------
    DataFrame
        One row a law: ``error`` and ``worst`` (relative, mean over runs and the largest point), ``mae``,
        ``inside`` (share of points within 90 % prediction intervals), ``seconds`` of the fit, an error for
        each run.

    Raises
    ------
    ValueError
        A run to be fitted is not there, or none is left to be foretold.
    """
    import pandas

    lacking = set(fitted) - set(table["run"])
    if lacking:
        raise ValueError(f"no run {sorted(lacking)[0]!r}; there are {', '.join(sorted(set(table['run'])))}")
    seen = table["run"].isin(list(fitted))
    if seen.all():
        raise ValueError("every run would be fitted; leave some to be foretold")
    new = table[~seen]
    laws: dict[str, ResponseLaw | ScheduleLaw] = {
        "annealing, lam 0.999": AnnealingLaw(0.999, warmup=warmup, ramp=True),
        "annealing": AnnealingLaw(warmup=warmup, ramp=True),
        "multi-power": MultiPowerLaw(warmup=warmup),
        "effective-rate": EffectiveRateLaw(warmup=warmup),
        "schedule (chosen)": ScheduleLaw(warmup=warmup),
    }
    rows = {}
    for name, law in laws.items():
        start = time.process_time()
        law.fit(table[seen], resamples=resamples)
        seconds = time.process_time() - start
        told = law.interval(new, kind="prediction")
        observed = new["loss"].to_numpy()
        relative = pandas.Series(np.abs(told.value / observed - 1), index=new.index)
        by_run = relative.groupby(new["run"]).mean()
        inside = (told.low <= observed) & (observed <= told.high)
        apart = pandas.Series(np.abs(told.value - observed), index=new.index).groupby(new["run"]).mean()
        rows[name] = {
            "error": by_run.mean(), "worst": relative.max(), "mae": apart.mean(), "inside": inside.mean(),
            "seconds": seconds, **by_run.to_dict(),
        }  # fmt: skip
    return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("law")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write ``schedules.csv`` and ``schedules.md``."""
    import pandas

    from allometry.laws.raw import read_table

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--fitted", required=True, help="names of the logs that are fitted, joined by commas")
    parser.add_argument("--warmup", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args(arguments)
    parts = []
    for folder in asked.folders:
        table = read_table(folder).rename(columns={"lr": "learning_rate"})
        table["run"] = table["run"].astype(str).map(lambda run: Path(run).stem)
        told = schedule_table(table, asked.fitted.split(","), warmup=asked.warmup)
        parts.append(pandas.concat({folder.name: told}, names=["model"]))
    every = pandas.concat(parts)
    asked.out.mkdir(parents=True, exist_ok=True)
    every.drop(columns="seconds").to_csv(asked.out / "schedules.csv", float_format="%.6g")
    lines = [
        f"Fitted to {asked.fitted}; relative errors on the other runs, in percent.", "",
        "| model | law | mean | worst point | MAE | within 90 % | fit, s of one core |", "|" + "---|" * 7,
    ]  # fmt: skip
    for (model, law), row in every.iterrows():
        told = f"{100 * row['error']:.4f} | {100 * row['worst']:.2f} | {row['mae']:.5f} | {row['inside']:.2f}"
        lines.append(f"| {model} | {law} | {told} | {row['seconds']:.1f} |")
    (asked.out / "schedules.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
