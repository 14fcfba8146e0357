"""Worth by equal steps and by equal total cost, from one table."""

import numpy as np
import pandas
import pytest

from allometry.laws import worth_table

NOISE = (0.999, 1.0, 1.002)


def frame(measure=lambda loss: loss) -> pandas.DataFrame:
    """An arm worth 1.5 in steps whose step costs twice as much."""
    rows = []
    for arm, gain, price in (("base", 1.0, 10.0), ("arm", 1.5, 20.0), ("same", 1.0, 10.0)):
        for steps in (100, 400, 1600, 6400):
            for seed, noise in enumerate(NOISE):
                loss = 0.5 * (gain * steps / 100) ** -0.2 * noise
                rows.append(
                    {"arm": arm, "seed": seed, "steps": steps, "flops": steps * price * (1 + 0.001 * seed),
                     "score": measure(loss)}
                )  # fmt: skip
    return pandas.DataFrame(rows)


def test_a_dear_step_halves_the_worth_by_cost() -> None:
    table = worth_table(frame(), base="base", measure="score", form="power", resamples=100)
    assert table.index.tolist() == [(a, c) for a in ("arm", "same") for c in ("steps", "flops")]
    assert table.loc[("arm", "steps"), "factor"] == pytest.approx(1.5, rel=1e-9)
    assert table.loc[("arm", "flops"), "factor"] == pytest.approx(0.75, rel=1e-9)
    assert table.loc[("same", "steps"), "factor"] == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize(
    ("transform", "inverse"),
    [("error", lambda loss: 1 - loss), ("odds", lambda odds: 1 / (1 + odds)), (np.exp, np.log)],
)
def test_a_measure_of_which_more_is_better_is_turned(transform, inverse) -> None:
    table = worth_table(
        frame(inverse), base="base", measure="score", transform=transform, form="power", resamples=100
    )
    assert table.loc[("arm", "steps"), "factor"] == pytest.approx(1.5, rel=1e-9)


def test_diverged_runs_are_not_dropped() -> None:
    rows = frame()
    lost = (rows["arm"] == "arm") & (rows["steps"] == 6400) & (rows["seed"] == 1)
    for broken in (rows.assign(broken=lost), rows.assign(score=rows["score"].where(~lost, np.nan))):
        options = {"diverged": "broken"} if "broken" in broken else {}
        table = worth_table(broken, base="base", measure="score", resamples=100, **options)
        assert table.loc[("arm", "steps"), "kind"] == "at most"


def test_p_values_are_adjusted_over_arms_and_not_over_costs() -> None:
    rows = frame()
    generator = np.random.default_rng(0)
    rows["score"] *= np.exp(0.005 * generator.standard_normal(len(rows)))
    table = worth_table(rows, base="base", measure="score", resamples=100)
    for cost in ("steps", "flops"):
        part = table.xs(cost, level="cost")
        assert part["adjusted_p"].min() == pytest.approx(min(1.0, 2 * part["p_value"].min()))


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({}, {"base": "nobody"}, "nobody"),
        ({}, {"costs": ("seconds",)}, "seconds"),
        ({}, {"transform": "log"}, "transform"),
        ({"score": 1.0}, {"transform": "error"}, "not positive"),
        ({"seed": 0}, {}, "two rows"),
        ({"arm": "base"}, {"by": "steps"}, "two rows|alone"),
    ],
)
def test_bad_tables_are_refused_in_a_sentence(change: dict, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        worth_table(frame().assign(**change), **({"base": "base", "measure": "score"} | options))
