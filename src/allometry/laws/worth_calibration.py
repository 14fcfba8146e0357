"""Do sets of worth keep their promise, and what can a design see?

``python -m allometry.laws.worth_calibration --out evidence/worth`` simulates worlds with a known worth,
measures it in each, and counts how often the 90 % set holds the truth, how often the answer is that there is
none, and whether the trend is told rightly.

`worth_coverage` does the same for one design: before paying for a ladder of runs one may ask what the
smallest worth is that it will tell from 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from allometry.laws.horizontal import Distances, Options, distances
from allometry.laws.resampled import Batch

if TYPE_CHECKING:
    import pandas

__all__ = ["World", "calibration_table", "worlds", "worth_coverage"]

Array = NDArray[np.float64]
_BLOCK = 100  # simulations at a time, which keeps arrays below a hundred megabytes


def _offset(log_x: Array) -> Array:
    """A power law with a floor: half of the loss at the smallest scale can be had, with exponent 0.3."""
    return np.log(0.5 + 0.5 * np.exp(-0.3 * log_x))


def _power(log_x: Array) -> Array:
    return -0.1 * log_x


def _broken(log_x: Array) -> Array:
    """A power law whose exponent doubles about a scale of 55."""
    return -0.08 * log_x - 0.08 * 0.5 * np.logaddexp(0.0, (log_x - 4.0) / 0.5)


def _sigmoid(log_x: Array) -> Array:
    return np.log(0.4 + 0.6 / (1.0 + np.exp((log_x - 4.0) / 1.2)))


def _flat(log_x: Array) -> Array:
    return 0.0 * log_x


def _valley(log_x: Array) -> Array:
    """Falls, then rises by 8 % a fourfold of scale: overfitting."""
    return 0.03 * (log_x - 2.8) ** 2


@dataclass(frozen=True)
class World:
    """One way the world might be.

    Attributes
    ----------
    name : str
    base : callable
        Log loss at log scale, the smallest scale being 0.
    log_worth : callable, optional
        True log worth at the arm's log scale; the arm is then the base at ``w x``.
    arm : callable, optional
        Log loss of an arm that no factor of scale explains (``log_worth`` gives infinity).
    scales, seeds, step : int, int, float
        Scales a factor ``step`` apart.
    noise, correlation : float
        Standard deviation of one run's log loss, and its correlation between twins.
    noise_ratio : float
        Noise at the largest scale over that at the smallest.
    form, paired
        Passed on to `allometry.laws.worth`.
    """

    name: str
    base: Callable[[Array], Array]
    log_worth: Callable[[Array], Array]
    arm: Callable[[Array], Array] | None = None
    scales: int = 5
    seeds: int = 3
    step: float = 4.0
    noise: float = 0.005
    correlation: float = 0.8
    noise_ratio: float = 1.0
    form: str = "auto"
    paired: bool = True
    log_x: Array = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "log_x", np.log(self.step) * np.arange(self.scales))

    def draw(self, count: int, generator: np.random.Generator) -> Batch:
        """Data sets, all at once."""
        x = self.log_x
        shape = (count, self.scales, self.seeds)
        shared, own, other = generator.standard_normal((3, *shape))
        size = self.noise * self.noise_ratio ** np.linspace(-0.5, 0.5, self.scales)[:, None]
        shared *= np.sqrt(self.correlation)
        rest = np.sqrt(1 - self.correlation)
        curve = self.base(x + self.log_worth(x)) if self.arm is None else self.arm(x)
        base = self.base(x)[:, None] + size * (shared + rest * own)
        arm = curve[:, None] + size * (shared + rest * other)
        same = np.broadcast_to(x, (count, self.scales))
        return Batch(x, same, base, arm, np.ones(count, dtype=bool), same, np.ones(same.shape, dtype=bool))


def _always(factor: float) -> Callable[[Array], Array]:
    return lambda x: np.log(factor) + 0.0 * x


def _changes(first: float, slope: float) -> Callable[[Array], Array]:
    return lambda x: np.log(first) + slope * x


def worlds() -> list[World]:
    """The rows of the table."""
    half = _always(1.5)
    return [
        World("worth 1.5", _offset, half),
        World("worth 1.5, 4 scales", _offset, half, scales=4),
        World("worth 1.5, 3 scales", _offset, half, scales=3),
        World("worth 1.5, 6 scales, 5 seeds", _offset, half, scales=6, seeds=5),
        World("worth 1.5, scales a factor 2 apart", _offset, half, step=2.0),
        World("worth 1.5, noise 2 %", _offset, half, noise=0.02),
        World("worth 1.5, runs not paired", _offset, half, paired=False, correlation=0.0),
        World("worth 1.5, noise falls fourfold with scale", _offset, half, noise_ratio=0.25, seeds=5),
        World("worth 1.5, noise grows fourfold with scale", _offset, half, noise_ratio=4.0, seeds=5),
        World("fades, 2 to 1.15", _offset, _changes(2.0, -0.1)),
        World("grows, 1.1 to 1.91", _offset, _changes(1.1, 0.1), scales=5),
        World("crosses, 1.5 to 0.65", _offset, _changes(1.5, -0.15)),
        World("no effect: worth 1", _offset, _always(1.0)),
        World("no effect, noise 2 %", _offset, _always(1.0), noise=0.02),
        World("worth 3: read beyond the largest scale", _offset, _always(3.0)),
        World("worth 8: beyond the cap", _offset, _always(8.0)),
        World("arm below the base's floor", _offset, _always(np.inf), arm=lambda x: _offset(x) - 0.6),
        World("base flat", _flat, _always(1.5), arm=lambda x: _flat(x) - 0.01),
        World("base falls, then rises", _valley, _always(1.5), arm=lambda x: _valley(x) - 0.02),
        World("truth: power law without a floor", _power, half),
        World("truth: broken power law", _broken, half),
        World("truth: broken power law, noise 2 %", _broken, half, noise=0.02),
        World("truth: broken power law, 3 scales", _broken, half, scales=3),
        World("truth: sigmoid", _sigmoid, half),
        World("truth: sigmoid, 3 scales", _sigmoid, half, scales=3),
        World("interpolation, truth a power law with a floor", _offset, half, form="interpolation"),
    ]


def _measure(
    world: World, simulations: int, resamples: int, level: float, random_state: int
) -> dict[str, float]:
    generator = np.random.default_rng(random_state)
    parts: list[Distances] = []
    for begin in range(0, simulations, _BLOCK):
        batch = world.draw(min(_BLOCK, simulations - begin), generator)
        options = Options(
            level=level, paired=world.paired, form=world.form, resamples=resamples, random_state=begin + 1
        )
        parts.append(distances(batch, options, fine=False))
    flat, rising = (np.concatenate([getattr(part, name) for part in parts]) for name in ("flat", "rising"))
    nothing = (flat | rising)[:, None]
    low, high = (np.concatenate([getattr(part, name) for part in parts]) for name in ("low", "high"))
    low, high = np.where(nothing, -np.inf, low), np.where(nothing, np.inf, high)
    truth = world.log_worth(world.log_x)
    holds = (low <= truth) & (truth <= high)
    closed = np.isfinite(low) & np.isfinite(high)
    open_ = ~np.isfinite(low) & ~np.isfinite(high)
    excludes = ~nothing[:, 0] & (np.concatenate([part.p_value for part in parts])[:, -1] < 1 - level)
    slope = np.concatenate([part.slope for part in parts])
    words = np.array([word for part in parts for word in part.trend])
    words[flat | rising] = "undetermined"
    told = np.isfinite(slope[:, 0]) & ~(flat | rising)
    true_slope = np.polyfit(world.log_x, truth, 1)[0] if np.isfinite(truth).all() else np.nan
    held = (slope[told, 1] <= true_slope) & (true_slope <= slope[told, 2])
    least = np.concatenate([part.minimum_detectable for part in parts])[~(flat | rising), -1]
    width = (high - low)[closed[:, -1], -1]
    return {
        "coverage, largest scale": float(holds[:, -1].mean()),
        "coverage, all scales": float(holds.mean()),
        "coverage, worst scale": float(holds.mean(axis=0).min()),
        "excludes 1": float(excludes.mean()),
        "interval": float(closed[:, -1].mean()),
        "half-line": float((~closed & ~open_)[:, -1].mean()),
        "undetermined": float(open_[:, -1].mean()),
        "width": float(np.exp(np.median(width))) if len(width) else np.nan,
        "minimum detectable": float(np.exp(np.median(least))) if len(least) else np.nan,
        "trend coverage": float(held.mean()) if told.any() and np.isfinite(true_slope) else np.nan,
        **{word: float((words == word).mean()) for word in ("holds", "grows", "fades", "crosses")},
        "no trend": float((words == "undetermined").mean()),
    }


def worth_coverage(
    scales: Sequence[float],
    *,
    seeds: int = 3,
    worth: float = 1.5,
    slope: float = 0.0,
    noise: float = 0.005,
    correlation: float = 0.8,
    floor: float = 0.5,
    exponent: float = 0.3,
    level: float = 0.9,
    simulations: int = 200,
    resamples: int = 200,
    random_state: int = 0,
) -> dict[str, float]:
    """What a planned design will see, by simulation; the base is a power law with a floor.

    Parameters
    ----------
    scales : sequence (m,)
        At which base and arm will be run, evenly spaced on a log axis.
    seeds : int
        Runs a scale and an arm, paired.
    worth, slope : float
        The truth: worth at the smallest scale, and the slope of ln w in ln x.
    noise, correlation : float
        Standard deviation of one run's log loss, and its correlation between twins.
    floor, exponent : float
        Share of the loss at the smallest scale that no scale removes, and the exponent of the rest.
    level, simulations, resamples, random_state
        Of the sets; how many data sets; refits of each; the seed.

    Returns
    -------
    dict of str to float
        Among others ``"coverage, largest scale"``, ``"excludes 1"`` (the power, or for worth 1 the share of
        false alarms), ``"minimum detectable"`` (median) and shares of each trend.

    Raises
    ------
    ValueError
        Fewer than three scales or seeds, or scales that are not evenly spaced.

    Examples
    --------
    >>> found = worth_coverage([1e6, 4e6, 16e6, 64e6], worth=1.5, simulations=20, resamples=60)
    >>> found["excludes 1"]
    1.0
    """
    x = np.sort(np.asarray(scales, dtype=float))
    if len(x) < 3 or seeds < 3:
        raise ValueError(f"a worth needs three scales and three seeds; the design has {len(x)} and {seeds}")
    step = np.diff(np.log(x))
    if not (np.isfinite(step).all() and np.allclose(step, step.mean(), rtol=0.05)):
        raise ValueError(f"scales must be evenly spaced on a log axis; given were {list(map(float, x))}")
    if not (0 <= floor < 1 and exponent > 0 and 0 <= correlation <= 1 and noise > 0 and worth > 0):
        raise ValueError(
            f"floor must lie in [0, 1), correlation in [0, 1], exponent, noise and worth above 0; given were "
            f"{floor}, {correlation}, {exponent}, {noise}, {worth}"
        )
    world = World(
        "design",
        lambda u: np.log(floor + (1 - floor) * np.exp(-exponent * u)),
        _changes(worth, slope),
        scales=len(x), seeds=seeds, step=float(np.exp(step.mean())), noise=noise, correlation=correlation,
    )  # fmt: skip
    return _measure(world, simulations, resamples, level, random_state)


def calibration_table(
    *, simulations: int = 2000, resamples: int = 200, level: float = 0.9, random_state: int = 0
) -> pandas.DataFrame:
    """One row a world; last, whether a minimum detectable worth is detected four times of five."""
    import pandas

    rows = []
    for world in worlds():
        found = _measure(world, simulations, resamples, level, random_state)
        rows.append({"world": world.name} | found)
        if world.name == "no effect: worth 1":
            least = found["minimum detectable"]
    world = World(f"worth {least:.3g}: the smallest detectable", _offset, _always(least))
    rows.append({"world": world.name} | _measure(world, simulations, resamples, level, random_state))
    return pandas.DataFrame(rows)


_SHOWN = (
    "coverage, largest scale", "coverage, all scales", "coverage, worst scale", "excludes 1", "interval",
    "half-line", "undetermined", "width", "trend coverage", "holds", "grows", "fades", "crosses", "no trend",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Write ``coverage.csv`` and ``coverage.md``."""
    parser = argparse.ArgumentParser(prog="python -m allometry.laws.worth_calibration", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("evidence/worth"))
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    table = calibration_table(
        simulations=chosen.simulations, resamples=chosen.resamples, random_state=chosen.seed
    )
    chosen.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(chosen.out / "coverage.csv", index=False, float_format="%.5g")
    error = np.sqrt(0.09 / chosen.simulations)
    lines = [
        "# Do sets of worth keep their promise?",
        "",
        f"Made by `python -m allometry.laws.worth_calibration --simulations {chosen.simulations} "
        f"--resamples {chosen.resamples} --seed {chosen.seed}`. Unless said: 5 scales a factor 4 apart, "
        "3 seeds, noise of a run 0.5 %, correlation of twins 0.8, base `0.5 + 0.5 x^-0.3` (x counted from "
        "the smallest), form `auto`. Nominal coverage 0.90; the standard error of a coverage of 0.90 over "
        f"the simulations is {error:.3f}. Sets that are half-lines or everything hold what lies in them. "
        "`excludes 1` (the test of w = 1), `interval`, `half-line`, `undetermined` and `width` (high over "
        "low, median of intervals) are at the largest scale; trends are shares of all simulations.",
        "",
        "| world | " + " | ".join(_SHOWN) + " |",
        "|---" * (1 + len(_SHOWN)) + "|",
    ]
    for _, row in table.iterrows():
        cells = ["–" if np.isnan(row[name]) else f"{row[name]:.3f}" for name in _SHOWN]
        lines.append(f"| {row['world']} | " + " | ".join(cells) + " |")
    (chosen.out / "coverage.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
