"""Training with floating-point numbers of few bits: what each exponent bit, mantissa bit and block costs.

Sun and others, 2025. arXiv:2501.02423

Byte-level GPTs on the standard library's source, two layers; the paper trains 41 to 679 million parameters
on 10 to 100 billion tokens. Every format has the initial values and the data of its seed in common with full
precision, so that what is measured is the gap, and all formats and seeds of a width are one stacked program.
Even so a run of few bits soon takes a path of its own: one gap scatters by about 0.015 nats. A format of two
bits is added to the paper's, whose cost is seen at any of our sizes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from allometry.papers import Paper
from allometry.study import Claim, Estimate, Profile, Result, Study, Test, axis, undecided

_FORMATS = ("E1M0", "E1M1", "E1M2", "E2M1", "E3M0", "E2M2", "E4M3")
_COARSE = ("E1M0", "E1M1")  # the formats whose gap is large enough to be followed along an axis
_PAPER = ("P2", "P4", "P6")
_BATCH, _CONTEXT = 8, 64


@functools.lru_cache(maxsize=1)
def _corpus() -> Any:
    from allometry.data import StandardLibrary

    return StandardLibrary()


def _train(
    width: int, made: Sequence[tuple[int, Any]], profile: Profile, products: Sequence[str] = _PAPER
) -> list[list[dict[str, Any]]]:
    """Records at each horizon for each (seed, quantizer or None) of ``made``, all of one program."""
    from allometry import data, models, optim, quant, train

    corpus = _corpus()
    config = models.GPTConfig(width=width, depth=profile.depth, head_size=16, context=_CONTEXT)
    seeds = [train.Seeds(seed) for seed, _ in made]
    replicas = [models.GPT(config, generator=one.generator("init")) for one in seeds]
    for model, (_, quantizer) in zip(replicas, made, strict=True):
        if quantizer is not None:
            quant.qat(model, quantizer, products=products)
    stack = train.Stack(replicas)
    text = corpus.tokens("train")
    windows = data.validation_windows(corpus.tokens("validation"), _CONTEXT, profile.windows)
    sources = [data.Windows(text, _CONTEXT, _BATCH, seed=one.integer("data")) for one in seeds]
    steps = [round(tokens / (_BATCH * _CONTEXT)) for tokens in profile.horizons]
    log = train.fit(
        stack, data.StackedWindows(sources), horizons=steps, log_every=steps[-1],
        optimizer=stack.optimizer(
            lambda model, rate: optim.AdamWIndependent(model.parameters(), rate), profile.rate
        ),
        schedule=optim.WSD(warmup=steps[0] // 4, decay=0.25),
        validate=lambda model: {"loss": train.evaluate(model, windows).tolist()},
    )  # fmt: skip
    told = []
    for replica, (seed, _) in enumerate(made):
        lost = log.diverged.get(replica)
        rows = []
        for place, tokens in enumerate(profile.horizons):
            loss = log.horizons[place]["loss"][replica] if place < len(log.horizons) else math.nan
            row = {
                "loss": math.nan if lost is not None else float(loss), "tokens": tokens,
                "params": config.parameters()["non_embedding"],
                "data_digest": f"{corpus.digest[:12]}/{seed}",
            }  # fmt: skip
            rows.append(row if lost is None else row | {"diverged": lost})
        told.append(rows)
    return told


def _horizons(tiny: Sequence[int], quick: Sequence[int], full: Sequence[int]) -> dict[str, Any]:
    return {"tiny": tuple(tiny), "quick": tuple(quick), "full": tuple(full)}


# --- S1: formats, sizes and tokens --------------------------------------------------------------------------
def _gaps(part: Any) -> Any:
    """Rows of rounded training with the loss of their twin of full precision in ``baseline``."""
    keys = ["width", "format", "tokens", "seed"]
    base = part[part["arm"] == "float32"].set_index(keys)["loss"]
    rounded = part[part["arm"] == "rounded"].set_index(keys)
    rounded["baseline"] = base.reindex(rounded.index)
    rounded["gap"] = rounded["loss"] - rounded["baseline"]
    return rounded.reset_index()


def _mean_gap(part: Any, form: str, widths: Sequence[int]) -> float:
    rows = _gaps(part)
    rows = rows[(rows["format"] == form) & rows["width"].isin(widths)]
    return float(rows.loc[rows["tokens"] == rows["tokens"].max(), "gap"].mean(skipna=False))


def _best_of_four_bits(result: Result) -> Test:
    widths = result.study.axes[0].values(result.profile)[-2:]

    def less(other: str) -> Estimate:
        return result.each_seed(
            lambda part: _mean_gap(part, "E2M1", widths) - _mean_gap(part, other, widths),
            what=f"gap of E2M1 less that of {other}", level=0.975,
        )  # fmt: skip

    return (less("E1M2") < 0) & (less("E3M0") < 0)


def _law(result: Result) -> Any:
    """The law of the gap, or None where too little varies; rows that share a twin are one run, one luck."""
    from allometry.laws import PrecisionLaw

    if any(len(one.values(result.profile)) < 2 for one in result.study.axes):
        return None
    rows = _gaps(result.table).dropna(subset=["loss", "baseline"])
    table = {
        "params": rows["params"], "tokens": rows["tokens"], "loss": rows["loss"],
        "baseline": rows["baseline"], "block": [result.study.profile(result.profile).block] * len(rows),
        "exponent_bits": [int(name[1]) for name in rows["format"]],
        "mantissa_bits": [int(name[3]) for name in rows["format"]],
        "run": rows["width"].astype(str) + "/" + rows["seed"].astype(str),
    }  # fmt: skip
    return PrecisionLaw(gap=True).fit(table)


def _bits_count(result: Result) -> Test:
    law = _law(result)
    if law is None:
        return undecided("the law needs two widths, formats and amounts of data")
    told, seeds = law.table(0.95), result.table["seed"].nunique()

    def exponent(name: str) -> Estimate:
        row = told.loc[name].astype(float)
        return Estimate(row["value"], row["low"], row["high"], n=seeds, what=name)

    delta, nu = exponent("delta"), exponent("nu")
    return (delta > 0) & (nu > 0)


def _exponent_counts_more(result: Result) -> Test:
    import numpy as np

    law = _law(result)
    if law is None:
        return undecided("the law needs two widths, formats and amounts of data")
    fitted = law.fit_
    places = [fitted.form.names.index(name) for name in ("delta", "nu")]
    draws = fitted.draws[:, places[0]] - fitted.draws[:, places[1]]
    value = fitted.params["delta"] - fitted.params["nu"]
    low, high = np.quantile(draws, [0.025, 0.975])
    return (
        Estimate(value, float(low), float(high), n=result.table["seed"].nunique(), what="delta less nu") > 0
    )


def _slope(result: Result, of: str) -> Estimate:
    """Mean over the coarse formats of the slope of the gap in the log of a column, for each seed."""
    import numpy as np

    def statistic(part: Any) -> float:
        rows = _gaps(part)
        rows = rows[rows["format"].isin(_COARSE)]
        if of == "params":
            rows = rows[rows["tokens"] == rows["tokens"].max()]
        line = rows.groupby(of)["gap"].agg(lambda some: some.mean(skipna=False))
        x = np.log(line.index.to_numpy(float))
        x = x - x.mean()
        return float((x * line.to_numpy(float)).sum() / (x * x).sum()) if len(x) > 1 else math.nan

    return result.each_seed(statistic, what=f"slope of the gap in log {of}")


_TOKENS = _horizons((1024, 2048), (76_800, 153_600), (81_920, 163_840, 327_680))

formats = Study(
    "fp-quantization-law/formats",
    question="What does each format of few bits cost as models and data grow?",
    arms=("float32", "rounded"),
    axes=[
        axis("width", tiny=(16,), quick=(32,), full=(16, 32, 64)),
        axis("format", *_FORMATS, tiny=("E1M1",), quick=("E1M1", "E1M2", "E2M1", "E3M0", "E4M3"),
             log=False),
        axis("tokens", recorded=True, **_TOKENS),
    ],
    measures=("loss",),
    profiles={
        "tiny": {"seeds": 1, "windows": 8, "depth": 1, "horizons": _TOKENS["tiny"]},
        "quick": {"seeds": 2, "windows": 128, "horizons": _TOKENS["quick"]},
        "full": {"seeds": 4, "horizons": _TOKENS["full"]},
    },
    settings={"depth": 2, "windows": 256, "rate": 2e-3, "block": 16},
    together=("format", "seed"),
    weight=lambda arm, width, form: float(width) ** 1.5,
    claims=[
        Claim(
            "Of four bits two are best given to the exponent and one to the mantissa.",
            _best_of_four_bits,
            where="section 4.3 and the table of optimal layouts",
            threshold="at the most tokens and the two largest widths E2M1 has a smaller gap than E1M2 and "
                      "than E3M0 (95 % together)",
        ),
        Claim(
            "The gap falls as powers of exponent and of mantissa bits.",
            _bits_count,
            where="section 3.2 and 3.3",
            threshold="delta and nu of the law fitted to the gaps are above zero (95 % each)",
        ),
        Claim(
            "An exponent bit is worth more than a mantissa bit.",
            _exponent_counts_more,
            where="section 4.3",
            threshold="delta less nu is above zero (95 %)",
        ),
        Claim(
            "The gap grows with the data.",
            lambda result: _slope(result, "tokens") > 0,
            where="the law, and section 4.2 on critical data",
            threshold="its slope in log tokens, formats of two and three bits, is above zero (95 %)",
        ),
        Claim(
            "The gap falls with the size of the model.",
            lambda result: _slope(result, "params") < 0,
            where="the law",
            threshold="its slope in log parameters at the most tokens is below zero (95 %)",
        ),
    ],
)  # fmt: skip


@formats.trial
def _format_trial(
    arm: str, width: int, form: list[str], seed: list[int], profile: Profile
) -> list[list[dict[str, Any]]]:
    from allometry.quant import Quantizer

    if arm == "rounded":
        made = [
            (one, Quantizer(name, profile.block, ties="away")) for name, one in zip(form, seed, strict=True)
        ]
        return _train(width, made, profile)
    # full precision knows no format: trained once a seed, and told beside each
    once = sorted(set(seed))
    found = dict(zip(once, _train(width, [(one, None) for one in once], profile), strict=True))
    return [found[one] for one in seed]


@formats.figure
def _draw(result: Result, figure: Any) -> None:
    """Gaps at the most tokens by format, a mark a width, one dot a seed."""
    rows = _gaps(result.table)
    rows = rows[rows["tokens"] == rows["tokens"].max()]
    names = list(result.study.axes[1].values(result.profile))
    axes = figure.subplots()
    axes.axhline(0, color="grey", linewidth=0.8)
    for place, (width, part) in enumerate(rows.groupby("width")):
        shift = 0.2 * (place - 1)
        x = [names.index(one) + shift for one in part["format"]]
        axes.plot(x, part["gap"], ".", color=f"C{place}", alpha=0.5)
        mean = part.groupby("format")["gap"].mean().reindex(names)
        axes.plot([i + shift for i in range(len(names))], mean, "_", markersize=12, color=f"C{place}",
                  label=f"width {width}")  # fmt: skip
    axes.set_xticks(range(len(names)), names)
    axes.set(xlabel="format", ylabel="loss above full precision (nats)")
    axes.legend()


# --- S2: how many values share a scale ----------------------------------------------------------------------
_SHARED = _horizons((1024,), (102_400,), (327_680,))


def _block_slope(result: Result) -> Test:
    if len(result.study.axes[0].values(result.profile)) < 2:
        return undecided("one block was measured")
    return result.slope("rounded", log=False) > 0


blocks = Study(
    "fp-quantization-law/blocks",
    question="How does the loss grow with the number of values that share a scale?",
    arms=("rounded",),
    axes=[axis("block", tiny=(32,), quick=(4, 32), full=(4, 8, 16, 32))],
    measures=("loss",),
    profiles={
        "tiny": {"seeds": 1, "windows": 8, "depth": 1, "horizons": _SHARED["tiny"], "width": 32},
        "quick": {"seeds": 2, "windows": 128, "horizons": _SHARED["quick"]},
        "full": {"seeds": 4, "horizons": _SHARED["full"]},
    },
    settings={"depth": 2, "windows": 256, "rate": 2e-3, "width": 32, "format": "E1M1"},
    together=("seed",),
    claims=[
        Claim(
            "The loss grows with the logarithm of the block.",
            _block_slope,
            where="section 3.4",
            threshold="the slope of the loss in log block, three-bit E1M1, is above zero (95 %)",
        )
    ],
)


@blocks.trial
def _block_trial(arm: str, block: int, seed: list[int], profile: Profile) -> list[dict[str, Any]]:
    from allometry.quant import Quantizer

    quantizer = Quantizer(profile.format, block, ties="away")
    return [rows[-1] for rows in _train(profile.width, [(one, quantizer) for one in seed], profile)]


# --- S3: which of the six inputs ----------------------------------------------------------------------------
def _twice(result: Result) -> Test:
    def statistic(part: Any) -> float:
        loss = part.set_index("arm")["loss"]
        return float((loss["P5"] - loss["float32"]) - 2 * (loss["P4"] - loss["float32"]))

    return result.each_seed(statistic, what="gap of P5 less twice that of P4") > 0


def _harmless(result: Result) -> Test:
    """The products of the law cost less than rounding activations of the forward pass alone."""

    def statistic(part: Any) -> float:
        loss = part.set_index("arm")["loss"]
        return float(loss["P2+P4+P6"] - loss["P1"])

    return result.each_seed(statistic, what="loss of P2, P4 and P6 rounded less that of P1 alone") < 0


products = Study(
    "fp-quantization-law/products",
    question="Which of the six inputs of a layer's matrix products may be rounded?",
    arms={
        "float32": {"products": ()},
        **{name: {"products": (name,)} for name in ("P1", "P2", "P3", "P4", "P5", "P6")},
        "P2+P4+P6": {"products": _PAPER},
    },
    axes=[axis("width", tiny=(16,), quick=(32,), full=(32,))],
    measures=("loss",),
    profiles={
        "tiny": {"seeds": 1, "windows": 8, "depth": 1, "horizons": _SHARED["tiny"]},
        "quick": {"seeds": 1, "windows": 128, "horizons": (51_200,)},
        "full": {"seeds": 4, "horizons": _SHARED["full"]},
    },
    settings={"depth": 2, "windows": 256, "rate": 2e-3, "block": 16, "format": "E1M1"},
    together=("seed",),
    claims=[
        Claim(
            "The output's gradient, where it makes the weights' gradient, may least be rounded.",
            _twice,
            where="section 3.1 and its figure of the six targets",
            threshold="rounding P5 alone costs more than twice what P4 alone does (95 %)",
        ),
        Claim(
            "Weights, and activations for the weights' gradient, cost less than activations of the output.",
            _harmless,
            where="section 3.1: why P2, P4 and P6 are the law's",
            threshold="P2, P4 and P6 rounded together have a lower loss than P1 alone (95 %)",
        ),
    ],
)


@products.trial
def _product_trial(arm: Any, width: int, seed: list[int], profile: Profile) -> list[dict[str, Any]]:
    from allometry.quant import Quantizer

    quantizer = Quantizer(profile.format, profile.block, ties="away") if arm["products"] else None
    found = _train(width, [(one, quantizer) for one in seed], profile, arm["products"])
    return [rows[-1] for rows in found]


paper = Paper(
    slug="fp-quantization-law",
    title="Scaling Laws for Floating Point Quantization Training",
    authors="Xingwu Sun, Shuaipeng Li, Ruobing Xie, Weidong Han, Kan Wu, Zhen Yang, Yixing Li, An Wang, "
            "Shuai Li, Jinbao Xue, Yu Cheng, Yangyu Tao, Zhanhui Kang, Chengzhong Xu, Di Wang, Jie Jiang",
    year=2025,
    arxiv="2501.02423",
    summary=(
        "How much does it cost to train with numbers of few bits? The loss of Hoffmann et al. plus one term, "
        "a power of exponent bits times a power of mantissa bits, times the logarithm of how many values "
        "share a scale, times how long the model is trained for its size. So there is a best layout for any "
        "number of bits, a best number of bits for any budget, and a critical amount of data beyond which "
        "more of it hurts. `PrecisionLaw` answers all three; `quant` trains any model so."
    ),
    studies=(formats, blocks, products),
    parts=(
        "allometry.laws.PrecisionLaw", "allometry.quant.qat", "allometry.quant.Quantizer",
        "allometry.quant.FloatFormat",
    ),
)  # fmt: skip
