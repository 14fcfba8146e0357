"""The table of laws against runs that were not fitted, from logs on disk."""

import numpy as np
import pandas
import pytest

from allometry.laws import schedule_areas, wsd_rates
from allometry.laws.schedule_table import main, schedule_table

PEAK = 1e-3


def runs():
    parts = []
    for name, settings in {
        "constant": {"decay": 0.0}, "cosine": {"decay": 1.0, "shape": "cosine", "end": 1e-4},
        "short": {"decay": 0.1}, "long": {"decay": 0.4},
    }.items():  # fmt: skip
        rates = wsd_rates(3000, PEAK, **settings)
        first, second = schedule_areas(rates, 0.99)
        at = np.arange(100, 3000, 25)
        loss = (2.0 + 0.8 * first**-0.5 - 0.6 * second)[at]
        parts.append(pandas.DataFrame({"run": name, "step": at, "learning_rate": rates[at], "loss": loss}))
    return pandas.concat(parts, ignore_index=True)


def test_the_law_that_made_the_runs_is_the_best_and_what_is_missing_is_said():
    told = schedule_table(runs(), ["constant", "cosine"], resamples=50)
    assert told["error"].idxmin() in ("annealing", "schedule (chosen)")
    assert told.loc["annealing", "error"] < 2e-3
    assert told.loc["annealing", "error"] == pytest.approx(told.loc["annealing", ["short", "long"]].mean())
    with pytest.raises(ValueError, match="no run 'linear'"):
        schedule_table(runs(), ["linear"])
    with pytest.raises(ValueError, match="every run would be fitted"):
        schedule_table(runs(), ["constant", "cosine", "short", "long"])


def test_folders_of_logs_become_a_table(tmp_path, capsys):
    folder = tmp_path / "small"
    folder.mkdir()
    for name, one in runs().groupby("run"):
        one.drop(columns="run").rename(columns={"learning_rate": "lr"}).to_csv(
            folder / f"{name}.csv", index=False
        )
    main([str(folder), "--fitted", "constant,cosine", "--out", str(tmp_path / "out")])
    kept = pandas.read_csv(tmp_path / "out" / "schedules.csv")
    assert len(kept) == 5
    assert set(kept["model"]) == {"small"}
    assert "| small | annealing |" in capsys.readouterr().out
