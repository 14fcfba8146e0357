"""Do the intervals keep their promise?  ``python -m allometry.laws.calibration --out evidence/laws``.

Losses are simulated on the default ladder (four sizes, two seeds, four horizons read off each run) and the
law is asked for a model of four times the largest size and twice the longest horizon.  A table says how often
its 90 % intervals hold the truth (mean) or a new run (prediction), and how wide they are, also where the
promise must fail: when the truth has another form than the one that is fitted.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from allometry.laws.forms import Chinchilla, Kaplan
from allometry.laws.uncertainty import coverage

if TYPE_CHECKING:
    import pandas

__all__ = ["Scenario", "calibration_table", "scenarios"]

Array = NDArray[np.float64]
SIZES = np.array([9e3, 2e4, 4e4, 8e4])
HORIZONS = np.array([1e6, 1.5e6, 2e6, 3e6])
TARGET = {"params": 3.2e5, "tokens": 6e6}
CENTRE = np.log([3e4, 1.7e6])  # where the terms' sizes below are given


@dataclass(frozen=True)
class Scenario:
    """One way the world might be: a true law, how many seeds, and the noise between and within runs."""

    name: str
    truth: Callable[[Any], Array]
    seeds: int
    between: float
    within: float


def chinchilla_truth(
    floor: float, size: float, data: float, alpha: float, beta: float
) -> Callable[[Any], Array]:
    """A Chinchilla law whose two terms have the given sizes in the middle of the ladder."""
    form = Chinchilla()
    a, b = np.log(size) + alpha * CENTRE[0], np.log(data) + beta * CENTRE[1]
    theta = np.array([[floor, a, b, alpha, beta]])
    return lambda x: np.exp(form.log_prediction(theta, form.features(x))[0])


def kaplan_truth(x: Any) -> Array:
    """Kaplan's law, whose terms interact and which has no floor."""
    form = Kaplan()
    theta = np.array([[CENTRE[0] + 5.0, CENTRE[1] - 1.5, 0.2, 0.25]])
    return np.exp(form.log_prediction(theta, form.features(x))[0])


def broken_truth(x: Any) -> Array:
    """A size term whose slope changes from 0.4 to 0.65 at 120 thousand parameters, beyond the ladder."""
    n, d = Chinchilla().features(x).T
    size = 0.35 * np.exp(-0.4 * (n - CENTRE[0]) - 0.125 * np.logaddexp(0.0, (n - np.log(1.2e5)) / 0.5))
    return 0.8 + size + 0.2 * np.exp(-0.45 * (d - CENTRE[1]))


def scenarios() -> list[Scenario]:
    """The rows of the table."""
    middle = chinchilla_truth(0.8, 0.35, 0.2, 0.45, 0.45)
    slow = chinchilla_truth(0.65, 0.55, 0.3, 0.3, 0.3)
    steep = chinchilla_truth(0.9, 0.3, 0.2, 0.6, 0.5)
    return [
        Scenario("independent noise", middle, 2, 0.0, 0.01),
        Scenario("noise by run", middle, 2, 0.0092, 0.0039),
        Scenario("noise by run, exponents 0.3", slow, 2, 0.0092, 0.0039),
        Scenario("noise by run, exponents 0.6 and 0.5", steep, 2, 0.0092, 0.0039),
        Scenario("noise by run, a third as large", middle, 2, 0.0031, 0.0013),
        Scenario("four runs only", middle, 1, 0.0092, 0.0039),
        Scenario("truth: broken power law", broken_truth, 2, 0.0092, 0.0039),
        Scenario("truth: Kaplan's law", kaplan_truth, 2, 0.0092, 0.0039),
    ]


def ladder(seeds: int) -> tuple[dict[str, Array], NDArray[np.intp]]:
    """Columns of the default ladder and the run of each point."""
    runs = len(SIZES) * seeds
    columns = {"params": np.repeat(SIZES, seeds * len(HORIZONS)), "tokens": np.tile(HORIZONS, runs)}
    return columns, np.repeat(np.arange(runs), len(HORIZONS))


def calibration_table(
    *,
    simulations: int = 200,
    resamples: int = 300,
    random_state: int = 0,
    losses: tuple[str, ...] = ("huber", "squared"),
) -> pandas.DataFrame:
    """Coverage and median relative width of 90 % intervals at the target, by scenario and loss."""
    import pandas

    rows = []
    for scenario in scenarios():
        design, run = ladder(scenario.seeds)
        for loss in losses:
            found = coverage(
                scenario.truth, "chinchilla", design, TARGET,
                run=run, between=scenario.between, within=scenario.within,
                simulations=simulations, resamples=resamples, random_state=random_state, loss=loss,
            )  # fmt: skip
            rows.append({"scenario": scenario.name, "loss": loss} | found)
    return pandas.DataFrame(rows)


def main(arguments: list[str] | None = None) -> None:
    """Write ``coverage.csv`` and ``coverage.md``."""
    parser = argparse.ArgumentParser(prog="python -m allometry.laws.calibration", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("evidence/laws"))
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    table = calibration_table(
        simulations=chosen.simulations, resamples=chosen.resamples, random_state=chosen.seed
    )
    chosen.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(chosen.out / "coverage.csv", index=False, float_format="%.5g")
    error = np.sqrt(0.09 / chosen.simulations)
    lines = [
        "# Do the intervals of a fitted law keep their promise?",
        "",
        f"Made by `python -m allometry.laws.calibration --simulations {chosen.simulations} --resamples "
        f"{chosen.resamples} --seed {chosen.seed}`. Ladder: {len(SIZES)} sizes "
        f"({SIZES[0]:.0f} to {SIZES[-1]:.0f} parameters), {len(HORIZONS)} horizons ({HORIZONS[0]:.2g} to "
        f"{HORIZONS[-1]:.2g} tokens) read off each run, two seeds a size unless said. "
        f"Target: {TARGET['params']:.2g} parameters, {TARGET['tokens']:.2g} tokens. Fitted: chinchilla. "
        f"Nominal coverage 0.90; its standard error over these simulations is {error:.3f}. "
        "Widths are medians, relative to the true loss.",
        "",
        "| truth and noise | loss | mean: coverage | width | prediction: coverage | width | median error |",
        "|---|---|---|---|---|---|---|",
    ]
    for _, row in table.iterrows():
        names = ("mean coverage", "mean width", "prediction coverage", "prediction width", "median error")
        figures = " | ".join(f"{row[name]:.3f}" for name in names)
        lines.append(f"| {row['scenario']} | {row['loss']} | {figures} |")
    lines += [
        "",
        "Intervals resample noise, not forms: where the truth is another law, nothing in the resamples says "
        "so and coverage falls as far as the last rows show. `laws.compare_forms` and `laws.backtest` are "
        "the guard.",
    ]
    (chosen.out / "coverage.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
