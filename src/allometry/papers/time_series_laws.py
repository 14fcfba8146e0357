"""Forecasters of time series follow scaling laws, inside of what they were trained on and outside.

Qingren Yao, Chao-Han Huck Yang, Renhe Jiang, Yuxuan Liang, Ming Jin and Shirui Pan, 2024. arXiv:2410.12360

The paper trains on up to 16 billion points of real series; here corpora are synthetic, from families whose
laws are known, so that what lies outside of them is known too: other families, and series that were measured.
Sizes are the paper's rule at 872 to 100 928 parameters, its three smallest among them.

Losses are nats a value in units of the context's deviation. A likelihood has no zero of its own, so what is
compared is by how much it falls per decade of scale, not the paper's exponents, which a change of unit moves.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from allometry.papers import Paper
from allometry.study import Claim, Estimate, Profile, Result, Study, Test, axis, undecided

_SIZES = {
    872: (8, 1), 3_408: (16, 1), 14_040: (24, 2), 25_376: (32, 2), 55_728: (48, 2), 100_928: (64, 2)
}  # fmt: skip
_TRAINED_ON = ("autoregressive", "gaussian process", "trend")
_UNSEEN = ("chaos", "jumps")
_COLLECTIONS = ("ID", "unseen families", "measured")
_OUTSIDE = _COLLECTIONS[1:]
_MEASURED = ("sunspots", "nile", "co2", "elnino", "interest_inflation", "macrodata")
_ARMS = ("encoder", "decoder")
_PATCH, _CONTEXT, _HORIZON = 8, 9, 3  # the paper's ratio of context to horizon, 36 to 12
_LENGTH = 512
_LEAST_HIDDEN = 2  # of sixteen patches; an encoder is trained on no fewer, so it is asked for no fewer
_ALIKE = 3.0  # factor within which two slopes count as alike


# --- trials -------------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=16)
def _corpus(points: int, seed: int) -> Any:
    from allometry.data import SyntheticSeries

    return SyntheticSeries(_TRAINED_ON, _LENGTH, seed).take(points)


@functools.lru_cache(maxsize=2)
def _held_out(series: int, stride: int) -> dict[str, tuple[Any, list[str], list[str]]]:
    """Windows of each collection, with the series and the source of each window."""
    from allometry.data import SyntheticSeries, real_series

    sets = {
        name: SyntheticSeries(kinds, _LENGTH).take(series * _LENGTH, "held out")
        for name, kinds in (("ID", _TRAINED_ON), ("unseen families", _UNSEEN))
    }
    sets["measured"] = real_series()
    length = (_CONTEXT + _HORIZON) * _PATCH
    found = {}
    for name, one in sets.items():
        windows, which, _ = one.windows(length, stride, context=_CONTEXT * _PATCH)
        found[name] = (windows, [one.names[i] for i in which], [one.sources[i] for i in which])
    return found


def _scores(model: Any, profile: Profile) -> list[dict[str, Any]]:
    """A record for each collection: the mean over its sources of the mean over a source's series."""
    from allometry.train import score_forecaster

    records = []
    for name, (windows, series, sources) in _held_out(profile.held_series, profile.stride).items():
        own = score_forecaster(model, windows, _CONTEXT)
        table = own.rename(columns={"nll_norm": "loss", "crps": "CRPS", "mase": "MASE"}).drop(columns="nll")
        for protocol, column in (("teacher_forced", "next-patch loss"), ("rollout", "rollout loss")):
            if protocol == "rollout" and model.kind == "decoder":
                table[column] = table["loss"]  # its own protocol
                continue
            table[column] = score_forecaster(
                model, windows, _CONTEXT, protocol=protocol, block=_LEAST_HIDDEN
            )["nll_norm"]
        table = table.assign(source=sources).groupby([series, "source"]).mean().groupby("source").mean()
        record = {"collection": name, **{key: float(value) for key, value in table.mean().items()}}
        if name == "measured":
            record |= {f"loss on {source}": float(table.loc[source, "loss"]) for source in _MEASURED}
        records.append(record)
    return records


def _train(
    kind: str, parameters: int, points: Sequence[int], seeds: Sequence[int], profile: Profile
) -> list[list[dict[str, Any]]]:
    """Records of each replica, one a collection; replicas of one seed share windows and initial values."""
    import torch

    from allometry import data, models, train

    width, layers = _SIZES[parameters]

    def make(generator: torch.Generator) -> models.PatchForecaster:
        return models.PatchForecaster(
            _PATCH, width, layers, kind=kind, max_patches=profile.patches, generator=generator
        )

    numbers = [train.Seeds(seed).integer("data") for seed in seeds]
    samplers = [
        data.WindowSampler(_corpus(count, seed), profile.patches * _PATCH, profile.batch, number)
        for count, seed, number in zip(points, seeds, numbers, strict=True)
    ]
    trained, logs = train.train_forecasters(
        make, samplers, seeds=numbers, generators=[train.Seeds(seed).generator("init") for seed in seeds],
        steps=profile.steps, learning_rate=profile.rate,
    )  # fmt: skip
    found = []
    for model, log in zip(trained, logs, strict=True):
        told = {
            "total": sum(weight.numel() for weight in model.parameters()), "non_embedding": parameters,
            "points seen": profile.steps * profile.batch * profile.patches * _PATCH,
        }  # fmt: skip
        if log.status == "diverged":
            lost = dict.fromkeys(_MEASURES, math.nan) | {"diverged": next(iter(log.diverged.values()), 0)}
            found.append([{"collection": name, **told, **lost} for name in _COLLECTIONS])
        else:
            found.append([told | record for record in _scores(model, profile)])
    return found


_MEASURES = ("loss", "next-patch loss", "rollout loss", "CRPS", "MASE")


# --- rules --------------------------------------------------------------------------------------------------
def _fall(rows: Any, scale: str, column: str = "loss") -> float:
    """By how much a loss falls per decade of scale: the slope of a straight line, turned over."""
    import numpy as np

    line = rows.groupby(scale)[column].agg(lambda some: some.mean(skipna=False))
    x = np.log10(line.index.to_numpy(float))
    x = x - x.mean()
    return -float(x @ line.to_numpy(float) / (x @ x))


def _of(part: Any, arm: str, collection: str) -> Any:
    return part[(part["arm"] == arm) & (part["collection"] == collection)]


def _falls(result: Result, arm: str, collection: str, scale: str) -> Estimate:
    """Fall per decade, an observation a seed; of the measured series an observation a data set."""
    what = f"nats per decade of {scale}, {arm}, {collection}"
    if collection != "measured":
        return result.each_seed(lambda part: _fall(_of(part, arm, collection), scale), what=what)
    rows = _of(result.table, arm, collection)
    return Estimate.of([_fall(rows, scale, f"loss on {one}") for one in _MEASURED], what=what)


def _all_fall(result: Result, collection: str, scale: str) -> Test:
    judged = [_falls(result, arm, collection, scale) > 0 for arm in _ARMS]
    return judged[0] & judged[1]


def _ratio(result: Result, arm: str, collection: str, scale: str) -> Estimate | None:
    """Fall per decade outside over inside, an observation of both a seed, as `laws.ShiftLaw` has it."""
    from allometry.laws.quotient import paired_ratio

    seeds = [part for _, part in result.table.groupby("seed")]
    outside, inside = ([_fall(_of(part, arm, name), scale) for part in seeds] for name in (collection, "ID"))
    if len(seeds) < 3 or not all(map(math.isfinite, outside + inside)):
        return None
    return Estimate.from_interval(
        paired_ratio(outside, inside), n=len(seeds), what=f"fall on {collection} over that on ID, {arm}"
    )


def _ratios(result: Result, scale: str, low: float, high: float) -> Test:
    found = [_ratio(result, arm, collection, scale) for arm in _ARMS for collection in _OUTSIDE]
    if any(one is None for one in found):
        return undecided("fewer than three seeds, or a run diverged")
    judged = [one.within(low, high) for one in found if one is not None]
    return functools.reduce(lambda a, b: a & b, judged)


def _encoder_steeper(result: Result, column: str) -> Test:
    def excess(collection: str) -> Estimate:
        def statistic(part: Any) -> float:
            encoder, decoder = (_fall(_of(part, arm, collection), "parameters", column) for arm in _ARMS)
            return encoder - decoder

        return result.each_seed(statistic, what=f"encoder's fall less decoder's, {column}, {collection}")

    return (excess("ID") > 0) & (excess("unseen families") > 0)


# --- parameters ---------------------------------------------------------------------------------------------
parameters = Study(
    "time-series-laws/parameters",
    question="Does the loss fall with the size of a forecaster outside of its training families as inside?",
    arms=_ARMS,
    axes=[
        axis("parameters", *_SIZES, tiny=(872, 3_408), quick=(872, 3_408, 14_040, 55_728)),
        axis("collection", *_COLLECTIONS, recorded=True, log=False),
    ],
    measures=_MEASURES,
    profiles={
        "tiny": {"seeds": 1, "steps": 2, "points": 5_000, "batch": 4, "held_series": 4, "stride": 2_000},
        "quick": {"seeds": 1, "steps": 300, "points": 100_000, "held_series": 24, "stride": 96},
        "full": {"seeds": 5, "steps": 1_500, "points": 1_000_000, "held_series": 96, "stride": 96},
    },
    settings={"batch": 32, "patches": 16, "rate": 3e-3},
    together=("seed",),
    requires=("data",),
    weight=lambda arm, count: float(count) ** 0.5,
    claims=[
        Claim(
            "In distribution the loss falls with the number of parameters.",
            lambda result: _all_fall(result, "ID", "parameters"),
            where="section on parameter scaling, in distribution",
            threshold="nats per decade of parameters are above zero (95 %) for encoder and decoder",
        ),
        Claim(
            "On families never trained on the loss falls with the number of parameters.",
            lambda result: _all_fall(result, "unseen families", "parameters"),
            where="section on parameter scaling, out of distribution",
            threshold="nats per decade of parameters are above zero (95 %) for encoder and decoder",
        ),
        Claim(
            "On measured series the loss falls with the number of parameters.",
            lambda result: _all_fall(result, "measured", "parameters"),
            where="section on parameter scaling, out of distribution",
            threshold="nats per decade are above zero for both kinds (95 % over six data sets)",
        ),
        Claim(
            "Slopes in parameters are alike in and out of distribution.",
            lambda result: _ratios(result, "parameters", 1 / _ALIKE, _ALIKE),
            where="section on parameter scaling",
            threshold="fall per decade outside over inside lies within a factor of three (95 %), for both "
            "kinds and both collections",
        ),
        Claim(
            "An encoder's loss falls more steeply than a decoder's, each by its own protocol.",
            lambda result: _encoder_steeper(result, "loss"),
            where="section on architectures",
            threshold="encoder's nats per decade exceed the decoder's (95 %) on ID and on unseen families",
        ),
        Claim(
            "An encoder's loss falls more steeply than a decoder's, both told the truth patch by patch.",
            lambda result: _encoder_steeper(result, "next-patch loss"),
            where="section on architectures, under one protocol for both",
            threshold="the same of next-patch losses; contradicted where the sign turns",
        ),
    ],
)


@parameters.trial
def _at_size(arm: str, count: int, seed: list[int], profile: Profile) -> list[list[dict[str, Any]]]:
    return _train(arm, count, [profile.points] * len(seed), seed, profile)


# --- data ---------------------------------------------------------------------------------------------------
points = Study(
    "time-series-laws/data",
    question="Is more training data worth less outside of the families that it is from?",
    arms=_ARMS,
    axes=[
        axis("points", 20_000, 100_000, 500_000, 2_000_000, tiny=(5_000, 10_000), quick=(20_000, 200_000)),
        axis("collection", *_COLLECTIONS, recorded=True, log=False),
    ],
    measures=_MEASURES,
    profiles={
        "tiny": {"seeds": 1, "steps": 2, "parameters": 872, "batch": 4, "held_series": 4, "stride": 2_000},
        "quick": {"seeds": 1, "steps": 250, "parameters": 14_040, "held_series": 24, "stride": 96},
        "full": {"seeds": 5, "steps": 1_500, "parameters": 55_728, "held_series": 96, "stride": 96},
    },
    settings={"batch": 32, "patches": 16, "rate": 3e-3},
    together=("points", "seed"),
    requires=("data",),
    claims=[
        Claim(
            "In distribution the loss falls with the number of training points.",
            lambda result: _all_fall(result, "ID", "points"),
            where="section on data scaling, in distribution",
            threshold="nats per decade of points are above zero (95 %) for encoder and decoder",
        ),
        Claim(
            "Out of distribution the loss falls with data too, and less steeply than in distribution.",
            lambda result: _ratios(result, "points", 0.0, 1.0),
            where="section on data scaling",
            threshold="fall per decade outside over inside lies between zero and one (95 %), for both kinds "
            "and both collections",
        ),
    ],
)


@points.trial
def _at_points(arm: str, count: list[int], seed: list[int], profile: Profile) -> list[list[dict[str, Any]]]:
    return _train(arm, profile.parameters, count, seed, profile)


paper = Paper(
    slug="time-series-laws",
    title="Towards Neural Scaling Laws for Time Series Foundation Models",
    authors="Qingren Yao, Chao-Han Huck Yang, Renhe Jiang, Yuxuan Liang, Ming Jin, Shirui Pan",
    year=2024,
    arxiv="2410.12360",
    venue="ICLR 2025",
    summary=(
        "Forecasters of time series improve with parameters, data and compute by power laws, and so they do "
        "on collections that they never saw: a ladder of small models tells how far the next size will reach "
        "even out of distribution. Encoders are reported to gain more from size than decoders, though both "
        "were scored by different protocols. This entry measures both slopes inside and outside of known "
        "families, under the paper's protocols and under one that is the same for both."
    ),
    studies=(parameters, points),
    parts=(
        "allometry.models.PatchForecaster", "allometry.models.forecast_series",
        "allometry.data.WindowSampler", "allometry.train.train_forecasters", "allometry.laws.ShiftLaw",
    ),
)  # fmt: skip
