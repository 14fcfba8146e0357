"""Instabilities of large training runs, produced in small models by raising the learning rate.

Mitchell Wortsman and others, 2023. arXiv:2309.14322

Byte-level GPTs on the standard library's source, two layers, widths 32 to 128; the paper's smallest models
have ten million parameters and train for 100 000 steps. Ours differ in rotary positions and
root-mean-square norms. All rates and seeds of one size are one stacked program.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from allometry.papers import Paper
from allometry.study import Claim, Profile, Result, Study, Test, axis

_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
_HIGH = 0.1  # from here up attention logits are expected to grow without their norm


@functools.lru_cache(maxsize=1)
def _corpus() -> Any:
    from allometry.data import StandardLibrary

    return StandardLibrary()


def _config(arm: Any, width: int, profile: Profile) -> Any:
    from allometry.models import GPTConfig

    return GPTConfig(
        width=width, depth=profile.depth, head_size=min(32, width), context=profile.context,
        activation="gelu", qk_norm="learned" if arm["qk_norm"] else None, qk_gain=1.0,
        zero_init_outputs=False,
    )  # fmt: skip


# --- statistics of the claims -------------------------------------------------------------------------------
def _sensitivity(line: Any) -> Any:
    """Sensitivity of one seed's losses over the rates, of one arm and width."""
    from allometry.measure import learning_rate_sensitivity

    losses = dict(zip(line["rate"], line["loss"].where(line["status"] == "done", math.nan), strict=True))
    return learning_rate_sensitivity(losses, float(line["initial loss"].iloc[0]), resamples=0)


def _largest(result: Result) -> int:
    return int(max(result.study.axes[0].values(result.profile)))


def _of(part: Any, arm: str, width: int) -> Any:
    return part[(part["arm"] == arm) & (part["width"] == width)].sort_values("rate")


def _ratio_of_sensitivities(result: Result) -> Test:
    width = _largest(result)

    def statistic(part: Any) -> float:
        cured, base = (_sensitivity(_of(part, arm, width)).value for arm in ("both", "base"))
        return math.log(cured / base)

    found = result.each_seed(
        statistic, what=f"log of sensitivity with both cures over the base's, width {width}"
    )
    return found.judge(holds=(-math.inf, math.log(0.7)), contradicted=(math.log(0.9), math.inf))


def _growth_of_sensitivity(result: Result) -> Test:
    widths = [int(width) for width in result.study.axes[0].values(result.profile)]

    def statistic(part: Any) -> float:
        import numpy as np

        lines = [_of(part, "base", width) for width in widths]
        n = np.log([float(line["params"].iloc[0]) for line in lines])
        s = np.array([_sensitivity(line).value for line in lines])
        n = n - n.mean()
        return float(n @ s / (n @ n)) if len(n) > 1 else math.nan

    return result.each_seed(statistic, what="slope of the base's sensitivity (nats) in log parameters") > 0


def _best_losses(result: Result) -> Test:
    width = _largest(result)

    def statistic(part: Any) -> float:
        cured, base = (_of(part, arm, width) for arm in ("both", "base"))
        return float(cured["loss"].min() - base["loss"].min())

    found = result.each_seed(statistic, what=f"best loss with both cures less the base's, width {width}")
    return found.judge(holds=(-0.05, 0.05), contradicted=(0.1, math.inf))


def _logit_ratio(result: Result) -> Test:
    width = _largest(result)

    def statistic(part: Any) -> float:
        import numpy as np

        pair = [_of(part, arm, width) for arm in ("base", "qk-norm")]
        high = [
            np.log10(line.loc[line["rate"] >= _HIGH, "max attention logit"].to_numpy(float)) for line in pair
        ]
        return float(np.mean(high[0] - high[1]))

    found = result.each_seed(
        statistic, what=f"log10 of the base's largest logit over qk-norm's, width {width}"
    )
    return found.judge(holds=(1.0, math.inf), contradicted=(-math.inf, 0.0))


def _foretold_logits(result: Result) -> Test:
    widths = sorted(int(width) for width in result.study.axes[0].values(result.profile))

    def statistic(part: Any) -> float:
        import numpy as np

        lines = [_of(part, "base", width) for width in widths[-3:]]
        n = np.log([float(line["params"].iloc[0]) for line in lines])
        logits = np.log10(np.stack([line["max attention logit"].to_numpy(float) for line in lines]))
        slope = (logits[1] - logits[0]) / (n[1] - n[0])
        return float(np.mean(np.abs(logits[1] + slope * (n[2] - n[1]) - logits[2])))

    if len(widths) < 3:
        from allometry.study import undecided

        return undecided("a forecast needs two sizes and a third to check it")
    found = result.each_seed(
        statistic, what="error of the largest size's log10 logit, foretold from two smaller"
    )
    return found < 0.5


proxies = Study(
    "small-scale-proxies",
    question="Do instabilities of large runs show in small ones at high rates, and do the cures work?",
    arms={
        "base": {"qk_norm": False, "z": 0.0},
        "qk-norm": {"qk_norm": True, "z": 0.0},
        "both": {"qk_norm": True, "z": 1e-4},
    },
    axes=[
        axis("width", tiny=(16,), quick=(32, 64), full=(32, 64, 128), large=(64, 128, 256, 512)),
        axis("rate", *_RATES, tiny=(1e-3, 1e-1), quick=_RATES[1::2]),
    ],
    measures=("loss", "max attention logit", "log z"),
    profiles={
        "tiny": {"seeds": 1, "steps": 2, "windows": 8, "depth": 1},
        "quick": {"seeds": 2, "steps": 80},
        "full": {"seeds": 3, "steps": 250},
        "large": {"seeds": 3, "steps": 2000},
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
            "Normalised queries and keys with a z-loss make the loss depend far less on the learning rate.",
            _ratio_of_sensitivities,
            where="sections 3.1 and 3.2",
            threshold="at the largest width sensitivity is at most 0.7 of the base's; contradicted above 0.9",
        ),
        Claim(
            "Sensitivity to the learning rate grows with size.",
            _growth_of_sensitivity,
            where="section 3.1",
            threshold="the base's sensitivity rises with log parameters (95 %)",
        ),
        Claim(
            "At its best rate the model is as good without the cures.",
            _best_losses,
            where="section 3.1",
            threshold="within 0.05 nats at the largest width; contradicted where the cures cost over 0.1",
        ),
        Claim(
            "At high rates attention logits grow without the norm of queries and keys.",
            _logit_ratio,
            where="section 3.1.1",
            threshold="from a rate of 0.1 up ten times the largest logit; contradicted below one",
        ),
        Claim(
            "How large attention logits get is foretold from smaller models.",
            _foretold_logits,
            where="section 3.3",
            threshold="a power law through the two smaller sizes is off by less than 0.5 in log10 at the "
                      "largest, the rates' mean",
        ),
    ],
)  # fmt: skip


@proxies.trial
def _trial(
    arm: Any, width: int, rate: list[float], seed: list[int], profile: Profile
) -> list[dict[str, Any]]:
    return _train(arm, width, rate, seed, profile)[0]


def _train(
    arm: Any, width: int, rate: list[float], seed: list[int], profile: Profile
) -> tuple[list[dict[str, Any]], Any, Any]:
    """A record a replica, the trained stack, and the windows that it was judged on."""
    import torch

    from allometry import data, measure, models, optim, train

    corpus, config = _corpus(), _config(arm, width, profile)
    seeds = [train.Seeds(one) for one in seed]
    stack = train.Stack([models.GPT(config, generator=one.generator("init")) for one in seeds])
    windows = data.validation_windows(corpus.tokens("validation"), config.context, profile.windows)
    sources = [
        data.Windows(corpus.tokens("train"), config.context, profile.batch, seed=one.integer("data"))
        for one in seeds
    ]
    loss = optim.CrossEntropyWithZ(arm["z"])
    warmup = arm.settings.get("warmup", profile.warmup)

    def optimizer(model: Any, peak: float) -> Any:
        settings = {"lr": peak, "betas": (0.9, 0.95), "eps": arm.settings.get("epsilon", 1e-8)}
        if "coupled" in arm.settings:
            return torch.optim.AdamW(model.parameters(), weight_decay=arm["coupled"], **settings)
        return optim.AdamWIndependent(model.parameters(), weight_decay=profile.decay, **settings)

    start = train.evaluate(stack, windows).tolist()
    log = train.fit(
        stack, data.StackedWindows(sources), horizons=profile.steps, clip=profile.clip,
        optimizer=stack.optimizer(optimizer, rate),
        schedule=lambda step, total: optim.cosine(
            step, total, warmup=max(1, round(warmup * total)), floor=0.01
        ),
        objective=lambda _, x, y: stack.losses(x, y, loss),
        validate=lambda model: {"loss": train.evaluate(model, windows)}, log_every=profile.steps,
    )  # fmt: skip
    final = log.horizons[-1]["loss"] if log.horizons else [math.nan] * len(seed)
    told = []
    for replica in range(len(seed)):
        lost = log.diverged.get(replica)
        monitor = measure.Monitor(stack.unstack(replica), probes=("attention", "output"))
        with torch.no_grad():
            monitor.measure(windows[0][:32])
        table = monitor.table().groupby("quantity")["value"]
        record = {
            "loss": math.nan if lost is not None else float(final[replica]),
            "max attention logit": float(table.get_group("max attention logit").max()),
            "log z": float(table.get_group("log z").mean()),
            "initial loss": float(start[replica]), "params": config.parameters()["non_embedding"],
            "data": corpus.digest[:12],
        }  # fmt: skip
        told.append(record if lost is None else record | {"diverged": lost})
    return told, stack, windows


paper = Paper(
    slug="small-scale-proxies",
    title="Small-scale proxies for large-scale Transformer training instabilities",
    authors="Mitchell Wortsman, Peter J. Liu, Lechao Xiao, Katie Everett, Alex Alemi, Ben Adlam, "
            "John D. Co-Reyes, Izzeddin Gur, Abhishek Kumar, Roman Novak, Jeffrey Pennington, "
            "Jascha Sohl-dickstein, Kelvin Xu, Jaehoon Lee, Justin Gilmer, Simon Kornblith",
    year=2023,
    arxiv="2309.14322",
    summary=(
        "Attention logits that grow and output logits that drift end large runs; both can be produced in "
        "small models by raising the learning rate, and the cures used at scale work there as well. So "
        "stability can be studied cheaply: sweep the rate over decades at several sizes, and look at the "
        "whole curve of loss against rate. One number sums it up, the mean excess loss over the rates; and "
        "logits and gradient sizes of small models foretell at which size a run will fail."
    ),
    studies=(proxies,),
    parts=(
        "allometry.measure.Monitor", "allometry.measure.learning_rate_sensitivity",
        "allometry.measure.forecast_onset", "allometry.optim.z_loss", "allometry.models.add_qk_norm_",
        "allometry.optim.AdamWIndependent",
    ),
)  # fmt: skip
