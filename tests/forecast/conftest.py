"""A finished forecast without any training: losses from a known law with noise, fitted in earnest."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from allometry import laws
from allometry.forecast.check import check, naive_forecasts, seed_noise
from allometry.forecast.ladder import PLANS, non_embedding
from allometry.forecast.result import Forecast

TRUTH = {"E": 0.9, "A": 7.0, "B": 300.0, "alpha": 0.25, "beta": 0.42}
BITS_PER_NAT = 1.0 / math.log(2.0)


def true_loss(params: Any, tokens: Any) -> Any:
    """The law that the fixture's losses come from (Chinchilla's shape)."""
    return TRUTH["E"] + TRUTH["A"] * params ** -TRUTH["alpha"] + TRUTH["B"] * tokens ** -TRUTH["beta"]


def ladder_runs(noise: float = 0.01, seeds: int = 2, root: int = 7) -> pd.DataFrame:
    """Records as a finished default ladder leaves them: noise is one draw a run, and a small one a record."""
    generator = np.random.default_rng(root)
    ladder, rows = PLANS["default"], []
    for width in ladder.widths:
        params = non_embedding(ladder, width, 256)
        for seed in range(seeds):
            luck = noise * generator.standard_normal()
            for tokens in ladder.tokens:
                loss = true_loss(params, tokens) * math.exp(luck + 0.2 * noise * generator.standard_normal())
                rows.append(
                    {
                        "run": f"width-{width}/seed-{seed}",
                        "width": width,
                        "seed": seed,
                        "params": params,
                        "total_params": params + 512 * width,
                        "tokens": tokens,
                        "flops": 6.0 * params * tokens,
                        "model_flops": 6.0 * (params + 300 * width) * tokens,
                        "epochs": tokens / 27e6,
                        "loss": loss,
                        "bits_per_byte": loss * BITS_PER_NAT,
                        "status": "done",
                    }
                )
    return pd.DataFrame(rows)


def make_forecast(
    *, checked: bool = True, seeds: int = 2, measured: float | None = None, **plan: Any
) -> Forecast:
    """A forecast of width 80 at eight times the compute; ``plan`` replaces parts of the plan."""
    runs = ladder_runs(seeds=seeds)
    fit = laws.fit(
        "chinchilla",
        runs[["params", "tokens"]],
        runs["loss"].to_numpy(),
        run=runs["run"].to_numpy(),
        resamples=200,
    )
    ladder = PLANS["default"]
    params = non_embedding(ladder, 80, 256)
    flops = 8.0 * runs["flops"].max()
    tokens = flops / 6.0 / params
    interval = fit.interval({"params": params, "tokens": tokens}, kind="prediction")
    naive = naive_forecasts(runs, flops)
    choice = pd.DataFrame(
        {"held_out_error": [0.0021, 0.0094], "aicc": [-251.3, -240.8], "chosen": [True, False]},
        index=pd.Index(["chinchilla", "kaplan"], name="form"),
    )
    content = {
        "plan": "default",
        "ladder": ladder.to_dict(),
        "corpus": {
            "paths": [],
            "digest": "1f" * 32,
            "bytes": 31_500_000,
            "files": 1412,
            "training_tokens": 27_000_000,
            "tokenizer": None,
            "text_field": "text",
        },
        "vocab_size": 256,
        "seeds": list(range(seeds)),
        "target_seed": seeds,
        "target": 8.0,
        "target_tokens": None,
        "device": "cpu",
        "dtype": "float32",
        "workers": 2,
        "threads": 1,
        "target_threads": 2,
        "stacked_widths": [16],
        "target_stacked": False,
        "law": {"candidates": ["chinchilla", "kaplan"], "choice": "leave the largest size out"},
        "smallest_tokens": 1_000_000,
    } | plan
    result = Forecast(
        value=interval.value, low=interval.low, high=interval.high, level=0.9,
        target={
            "width": 80, "params": params, "total_params": params + 40_960, "tokens": tokens, "flops": flops,
            "model_flops": 1.2 * flops, "epochs": tokens / 27e6,
        },
        plan=content, digest="ab" * 32, runs=runs, fits=[fit], choice=choice, naive=naive,
        backtest={
            "width": 48, "tokens": 3_000_000, "value": 1.9, "low": 1.8, "high": 2.0, "measured": 1.92,
            "error": 1.9 / 1.92 - 1.0, "inside": True,
        },
        notes=[*fit.warnings, "the target lies beyond the ladder by 2.8 times in params"],
        cost={"ladder_flops": 9.0e12, "target_flops": 1.2 * flops, "seed_noise": seed_noise(runs)[0]},
    )  # fmt: skip
    if checked:
        truth = float(true_loss(params, tokens)) if measured is None else measured
        result.check = check(result.value, result.low, result.high, naive, truth, truth * BITS_PER_NAT)
    return result


@pytest.fixture(scope="session")
def result() -> Forecast:
    """A forecast that was checked."""
    return make_forecast()


@pytest.fixture(scope="session")
def unchecked() -> Forecast:
    """A forecast whose target was not trained, with one seed a size, so that naive intervals are missing."""
    return make_forecast(checked=False, seeds=1)


@pytest.fixture(scope="session")
def make() -> Any:
    """The function that makes forecasts, for tests that need one of their own."""
    return make_forecast
