"""Output logits that drift from log-probabilities at high learning rates, and the z-loss that holds them.

Mitchell Wortsman and others, 2023. arXiv:2309.14322, section 3.1.2; a further study of the entry
:mod:`allometry.papers.small_scale_proxies`, whose models and data these are.

Cross-entropy does not see a constant added to all logits of a position, so log Z is free to move. It starts
near ln 256, where all 256 logits are zero; how far it went is how much larger it has become.
"""

from __future__ import annotations

import math
from typing import Any

from allometry.papers.small_scale_proxies import _HIGH, _largest, _of, _trial
from allometry.study import Claim, Profile, Result, Study, Test, axis

_START = math.log(256)  # log Z of bytes where all logits are zero, which is near where training starts


def _log_drift(part: Any, arm: str, width: int) -> Any:
    """ln |log Z| at rates from 0.1 up, of one seed."""
    import numpy as np

    line = _of(part, arm, width)
    line = line[line["rate"] >= _HIGH]
    return np.log(np.abs(line["log z"].to_numpy(float)))


def _drifts(result: Result) -> Test:
    width = _largest(result)
    found = result.each_seed(
        lambda part: float(_log_drift(part, "base", width).mean()) - math.log(_START),
        what=f"log of |log Z| at high rates over its ln 256 at the start, without a z-loss, width {width}",
    )
    return found > 0


def _drift_rises(result: Result) -> Test:
    width = _largest(result)

    def statistic(part: Any) -> float:
        import numpy as np

        line = _of(part, "base", width)
        drift = np.log(np.abs(line["log z"].to_numpy(float)))
        return float(np.polyfit(np.log(line["rate"].to_numpy(float)), drift, 1)[0])

    return result.each_seed(statistic, what=f"exponent of |log Z| in the rate, no z-loss, width {width}") > 0


def _drift_cured(result: Result) -> Test:
    width = _largest(result)
    found = result.each_seed(
        lambda part: float((_log_drift(part, "base", width) - _log_drift(part, "z-loss", width)).mean()),
        what=f"log of |log Z| at high rates without over with a z-loss, width {width}",
    )
    return found.judge(holds=(math.log(3), math.inf), contradicted=(-math.inf, 0.0))


def _cure_is_free(result: Result) -> Test:
    width = _largest(result)
    found = result.each_seed(
        lambda part: float(_of(part, "z-loss", width)["loss"].min() - _of(part, "base", width)["loss"].min()),
        what=f"best loss with a z-loss less the best without, width {width}",
    )
    return found.judge(holds=(-0.05, 0.05), contradicted=(0.1, math.inf))


drift = Study(
    "small-scale-proxies/output-drift",
    question="Do output logits drift from log-probabilities at high rates, and does a z-loss hold them?",
    arms={"base": {"qk_norm": True, "z": 0.0}, "z-loss": {"qk_norm": True, "z": 1e-4}},
    axes=[
        axis("width", tiny=(16,), quick=(32,), full=(32, 64)),
        axis("rate", 1e-2, 3e-2, 1e-1, 3e-1, tiny=(1e-2, 1e-1), quick=(1e-2, 1e-1)),
    ],
    measures=("log z", "loss", "max attention logit"),
    profiles={
        "tiny": {"seeds": 1, "steps": 2, "windows": 8, "depth": 1},
        "quick": {"seeds": 2, "steps": 150},
        "full": {"seeds": 3, "steps": 500},
    },
    # queries and keys are normalised in both arms and nothing decays, so that only output logits may drift
    settings={
        "batch": 16, "context": 64, "depth": 2, "decay": 0.0, "clip": 1.0, "warmup": 0.05,
        "windows": 256,
    },
    together=("seed", "rate"),
    over="rate",
    lower_is_better=None,
    weight=lambda arm, width, rate: float(width) ** 1.5,
    claims=[
        Claim(
            "At high rates output logits drift away from log-probabilities.",
            _drifts,
            where="section 3.1.2",
            threshold="from a rate of 0.1 up |log Z| ends above ln 256, where it starts (95 %), at the "
                      "largest width",
        ),
        Claim(
            "They drift farther the higher the rate.",
            _drift_rises,
            where="section 3.1.2",
            threshold="|log Z| rises with the rate at the largest width (95 %)",
        ),
        Claim(
            "A z-loss holds output logits near log-probabilities.",
            _drift_cured,
            where="section 3.1.2",
            threshold="from a rate of 0.1 up |log Z| is three times as large without; contradicted below one",
        ),
        Claim(
            "At its best rate the model is as good without a z-loss.",
            _cure_is_free,
            where="section 3.1.2",
            threshold="within 0.05 nats at the largest width; contradicted where it costs over 0.1",
        ),
    ],
)  # fmt: skip


@drift.trial
def _drift_trial(
    arm: Any, width: int, rate: list[float], seed: list[int], profile: Profile
) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = _trial(arm, width, rate, seed, profile)
    return told


extends = "small-scale-proxies"
studies = (drift,)
