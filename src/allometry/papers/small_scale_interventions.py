"""What else makes training less sensitive to its learning rate: warm-up, how weights decay, and AdamW's ε.

Mitchell Wortsman and others, 2023. arXiv:2309.14322, sections 3.2 and 3.4; a further study of the entry
:mod:`allometry.papers.small_scale_proxies`, whose models and data these are. As in the paper, queries and
keys are normalised and a z-loss is added in every arm.

The paper's decay that is multiplied by the rate is torch's default, 0.1; its independent one is 1e-4, which
is as much at a rate of 1e-3. Its ε of 1e-6 hurts where gradients have become as small as that, in models of a
thousand times as many parameters as ours: whether it does here is told as a number, and that gradients shrink
with size is judged.
"""

from __future__ import annotations

import math
from typing import Any

from allometry.papers.small_scale_proxies import _largest, _of, _sensitivity, _train
from allometry.study import Claim, Profile, Result, Study, Test, axis

_BOTH = {"qk_norm": True, "z": 1e-4}


def _log_ratio(result: Result, arm: str) -> Any:
    width = _largest(result)

    def statistic(part: Any) -> float:
        changed, base = (_sensitivity(_of(part, one, width)).value for one in (arm, "base"))
        return math.log(changed / base)

    return result.each_seed(statistic, what=f"log of sensitivity with {arm} over the base's, width {width}")


def _long_warmup(result: Result) -> Test:
    return _log_ratio(result, "long warm-up").judge(holds=(-math.inf, 0.0), contradicted=(0.0, math.inf))


def _coupled_decay(result: Result) -> Test:
    return _log_ratio(result, "decay times rate").judge(holds=(0.0, math.inf), contradicted=(-math.inf, 0.0))


def _large_epsilon(result: Result) -> Test:
    return _log_ratio(result, "ε 1e-6").judge(holds=(0.0, math.inf), contradicted=(-math.inf, 0.0))


def _gradients_shrink(result: Result) -> Test:
    widths = [int(width) for width in result.study.axes[0].values(result.profile)]

    def statistic(part: Any) -> float:
        import numpy as np

        lines = [_of(part, "base", width) for width in widths]
        n = np.log([float(line["params"].iloc[0]) for line in lines])
        sizes = np.array([np.log(line["gradient rms"].to_numpy(float)).mean() for line in lines])
        n = n - n.mean()
        return float(n @ sizes / (n @ n)) if len(n) > 1 else math.nan

    return result.each_seed(statistic, what="exponent of the embedding's gradient in parameters") < 0


interventions = Study(
    "small-scale-proxies/interventions",
    question="Do warm-up, the way weights decay, and ε change how much a wrong learning rate costs?",
    arms={
        "base": _BOTH,
        "long warm-up": _BOTH | {"warmup": 0.25},
        "decay times rate": _BOTH | {"coupled": 0.1},
        "ε 1e-6": _BOTH | {"epsilon": 1e-6},
        "ε 1e-15": _BOTH | {"epsilon": 1e-15},
    },
    axes=[
        axis("width", tiny=(16,), quick=(32,), full=(32, 64)),
        axis("rate", 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, tiny=(1e-3, 1e-1), quick=(3e-3, 3e-2, 3e-1)),
    ],
    measures=("loss", "gradient rms", "max attention logit"),
    profiles={
        "tiny": {"seeds": 1, "steps": 2, "windows": 8, "depth": 1},
        "quick": {"seeds": 2, "steps": 40},
        "full": {"seeds": 3, "steps": 150},
    },
    settings={
        "batch": 16, "context": 64, "depth": 2, "decay": 1e-4, "clip": 1.0, "warmup": 0.05,
        "windows": 256,
    },
    together=("seed", "rate"),
    over="rate",
    weight=lambda arm, width, rate: float(width) ** 1.5,
    claims=[
        Claim(
            "A longer warm-up makes the loss depend less on the learning rate.",
            _long_warmup,
            where="section 3.2.1",
            threshold="at the largest width sensitivity is below the base's (95 %); contradicted above it",
        ),
        Claim(
            "Decay that is multiplied by the rate makes the loss depend more on the learning rate.",
            _coupled_decay,
            where="section 3.2.2",
            threshold="at the largest width sensitivity is above the base's (95 %); contradicted below it",
        ),
        Claim(
            "An ε of 1e-6 makes the loss depend more on the learning rate.",
            _large_epsilon,
            where="section 3.4, of models of 5e9 parameters",
            threshold="at the largest width sensitivity is above the base's (95 %); contradicted below it",
        ),
        Claim(
            "Gradients of the embedding shrink as models grow.",
            _gradients_shrink,
            where="section 3.4",
            threshold="root mean square after training falls with log parameters, the rates' mean (95 %)",
        ),
    ],
)  # fmt: skip


@interventions.trial
def _intervention(
    arm: Any, width: int, rate: list[float], seed: list[int], profile: Profile
) -> list[dict[str, Any]]:
    import torch.nn.functional as F

    from allometry import measure

    records, stack, (inputs, targets) = _train(arm, width, rate, seed, profile)
    for replica, record in enumerate(records):
        model = stack.unstack(replica)
        with measure.Monitor(model, probes=("gradients",)) as monitor:
            F.cross_entropy(model(inputs[:32]).flatten(0, 1), targets[:32].flatten()).backward()
            monitor.step(0)
        table = monitor.table()
        record["gradient rms"] = float(table.loc[table["module"] == "embedding.weight", "value"].iloc[0])
    return records


extends = "small-scale-proxies"
studies = (interventions,)
