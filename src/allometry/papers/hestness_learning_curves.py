"""Errors fall as a power of the training samples; better techniques shift the line and hardly tilt it.

Joel Hestness, Sharan Narang, Newsha Ardalani, Gregory Diamos, Heewoo Jun, Hassan Kianinejad,
Md. Mostofa Ali Patwary, Yang Yang and Yanqi Zhou, "Deep Learning Scaling is Predictable, Empirically", 2017.
arXiv:1712.00409.

- *real-curves*: pairs of learners on the tabular data sets of LCDB, nothing trained. Families were named
  before the run; four of its pairs had been looked at before (random forests with extra trees, with boosting,
  with perceptrons and with logistic regression), the others had not, and neither had any pooled share.
- *fashion-mnist*: perceptrons trained here, the best of several widths and lengths of training for every size
  of sample. Rates are the best of four at 4,000 samples (geometric mean over widths 8 and 64), on the images
  that are kept for choices. Samples end where the longest training still sees them 16 times.

The paper's data are a hundred to a thousand times larger, and its techniques are those of deep networks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from allometry.papers import Paper
from allometry.study import Claim, Estimate, Profile, Result, Study, Test, axis, undecided

if TYPE_CHECKING:
    import numpy as np
    import pandas

    from allometry.laws import LearningCurve, ModelSizeCurve

# --- real curves --------------------------------------------------------------------------------------------
_EQUAL = 0.05  # exponents closer than this are one
_LONG, _POINTS, _LEAST = 4096, 9, 2e-3  # a curve reaches so far, with so many sizes of such errors

_WITHIN = {
    "random forest, extra trees": ("RandomForest", "ExtraTrees"),
    "random forest, boosting": ("RandomForest", "GradientBoosting"),
    "logistic, linear SVM": ("LogisticRegression", "SVC_linear"),
    "logistic, LDA": ("LogisticRegression", "LDA"),
    "tree, random tree": ("DecisionTree", "ExtraTree"),
    "RBF SVM, polynomial SVM": ("SVC_rbf", "SVC_poly"),
}
_BETWEEN = {
    "random forest, logistic": ("RandomForest", "LogisticRegression"),
    "random forest, perceptron": ("RandomForest", "MLP"),
    "random forest, neighbours": ("RandomForest", "KNeighbors"),
    "random forest, RBF SVM": ("RandomForest", "SVC_rbf"),
    "logistic, neighbours": ("LogisticRegression", "KNeighbors"),
    "RBF SVM, tree": ("SVC_rbf", "DecisionTree"),
}
_PAIRS = {
    **{name: {"learners": pair, "family": True} for name, pair in _WITHIN.items()},
    **{name: {"learners": pair, "family": False} for name, pair in _BETWEEN.items()},
}


@functools.lru_cache(maxsize=1)
def _mean_errors() -> pandas.DataFrame:
    """Mean error by (data set, learner) and size, of curves that are long enough; NaN where there is none."""
    from allometry.data import learning_curves

    table = learning_curves()
    mean = table.groupby(["data_set", "learner", "samples"], observed=True)["error"].mean().unstack("samples")
    mean = mean.where(mean > _LEAST)
    sizes = mean.columns.to_numpy(float)
    long = (mean.notna().sum(axis=1) >= _POINTS) & (mean.notna() * sizes).max(axis=1).ge(_LONG)
    return mean[long]


def _planted(seeds: Sequence[int], family: bool) -> tuple[np.ndarray, list[np.ndarray]]:
    """Sizes and errors of two learners whose exponents agree or not: a trial run needs no archive."""
    import numpy as np

    sizes, curves = 16 * 2 ** np.arange(10) * 1.0, []
    for member in range(2):
        rows = []
        for seed in seeds:
            generator = np.random.default_rng([seed, member])
            alpha = 0.3 + (0.0 if family else 0.1 * member)
            rows.append(0.8 * sizes**-alpha * np.exp(0.02 * generator.standard_normal(10)))
        curves.append(np.array(rows))
    return sizes, curves


def _share(part: pandas.DataFrame, family: bool | None = None) -> float:
    """Share of a data set's pairs whose exponents are one; NaN without any."""
    if family is not None:
        part = part[part["family"] == float(family)]
    found = part["difference"].dropna()
    return float((found < _EQUAL).mean()) if len(found) else math.nan


def _over_data_sets(result: Result, statistic: Callable[[Any], float], what: str, first: int) -> Estimate:
    """Mean over data sets of a number of each, with Student's interval; those that lack it are left out."""
    rows = result.rows(at={"smallest size": first})
    found = [statistic(part) for _, part in rows.groupby("seed")]
    return Estimate.of([one for one in found if math.isfinite(one)], what=what)


def _first(result: Result) -> int:
    return int(min(result.study.axes[0].values(result.profile)))


def _one_family(result: Result) -> Test:
    share = _over_data_sets(
        result, lambda part: _share(part, True), "share of pairs within a family with one exponent",
        _first(result),
    )  # fmt: skip
    return share.judge(holds=(0.8, 1.0), contradicted=(-math.inf, 0.5))


def _between_families(result: Result) -> Test:
    gap = _over_data_sets(
        result, lambda part: _share(part, True) - _share(part, False),
        "share within a family less share between families", _first(result),
    )  # fmt: skip
    return gap > 0.2


def _straight_share(result: Result, part: pandas.DataFrame) -> float:
    """Share of a data set's learners, each counted once, whose R² exceeds 0.9."""
    found: dict[str, float] = {}
    for row in part.to_dict("records"):
        learners = result.study.arms[row["arm"]]["learners"]
        found |= dict(zip(learners, (row["r_first"], row["r_second"]), strict=True))
    told = [one > 0.9 for one in found.values() if math.isfinite(one)]
    return sum(told) / len(told) if told else math.nan


def _straight(result: Result) -> Test:
    share = _over_data_sets(
        result, functools.partial(_straight_share, result),
        "share of curves that a power law explains to nine tenths", _first(result),
    )  # fmt: skip
    return share > 0.5


curves = Study(
    "hestness-learning-curves/real-curves",
    question="Do learners of one family share the exponent of their learning curves, and others not?",
    arms=_PAIRS,
    axis=axis("smallest size", 16, 128, tiny=(16,), unit="samples"),
    measure="difference",
    profiles={
        "tiny": {"seeds": 3, "planted": True},
        "quick": {"seeds": 40},
        "full": {"seeds": 108},
    },
    settings={"planted": False},
    together=("seed",),
    claims=[
        Claim(
            "Learners of one family have one exponent: the better one is shifted.",
            _one_family,
            where="section 5 and the figures of two models on one data set (deep networks there)",
            threshold="exponents of pairs named beforehand differ by less than 0.05 in four of five cases "
                      "(95 % over data sets); contradicted below one half",
        ),
        Claim(
            "Across families exponents differ more often, by a fifth of all cases at least.",
            _between_families,
            where="ours, as the limit of the claim: the paper stays within deep networks",
            threshold="the share of pairs with one exponent is more than 0.2 higher within families (95 %)",
        ),
        Claim(
            "A learning curve is a power law from the smallest size on.",
            _straight,
            where="section 3, for sizes beyond the small-data region",
            threshold="R² above 0.9 on log axes in more than half of the curves (95 % over data sets); "
                      "that it is 38 % over all 1,774 curves had been seen before",
        ),
    ],
)  # fmt: skip


@curves.trial
def _pair(arm: Any, smallest: int, seed: list[int], profile: Profile) -> list[dict[str, Any]]:
    import numpy as np

    from allometry.laws import fit_curves

    if profile.planted:
        names = list(seed)
        sizes, errors = _planted(seed, arm["family"])
    else:
        table = _mean_errors()
        known = sorted(set(table.index.get_level_values(0)))
        if max(seed) >= len(known):
            raise ValueError(f"seeds number the {len(known)} data sets with long curves; {max(seed)} is none")
        names = [known[one] for one in seed]
        sizes = table.columns.to_numpy(float)
        errors = [table.reindex([(name, one) for name in names]).to_numpy() for one in arm["learners"]]
    both = np.isfinite(errors[0]) & np.isfinite(errors[1]) & (sizes >= smallest)
    both &= both.sum(axis=1, keepdims=True) >= 5
    one, other = (fit_curves(sizes, np.where(both, part, np.nan)) for part in errors)
    ratio = np.where(both, np.log(errors[1] / errors[0]), 0.0).sum(axis=1)
    with np.errstate(invalid="ignore"):
        shift = ratio / both.sum(axis=1)
    return [
        {
            "difference": float(abs(other.alpha[i] - one.alpha[i])), "data set": int(names[i]),
            "family": float(arm["family"]), "alpha_first": float(one.alpha[i]),
            "alpha_second": float(other.alpha[i]), "shift": float(shift[i]),
            "r_first": float(one.r_squared[i]), "r_second": float(other.r_squared[i]),
            "points": int(one.points[i]),
        }
        for i in range(len(seed))
    ]  # fmt: skip


@curves.figure
def _exponents(result: Result, figure: Any) -> None:
    """Exponents of the two learners of each pair against each other, a panel a kind of pair."""
    table = result.rows(at={"smallest size": _first(result)})
    for place, (family, name) in enumerate(((1.0, "one family"), (0.0, "two families")), start=1):
        axes = figure.add_subplot(1, 2, place)
        part = table[table["family"] == family]
        for index, (arm, rows) in enumerate(part.groupby("arm", sort=False)):
            axes.plot(rows["alpha_first"], rows["alpha_second"], ".", color=f"C{index}", label=arm, alpha=0.7)
        axes.axline((0, 0), slope=1, color="grey", linewidth=0.8)
        axes.set(title=name, xlabel="exponent of the first", ylabel="exponent of the second")
        axes.legend(fontsize=6)


# --- trained here -------------------------------------------------------------------------------------------
_KEPT_FOR_CHOICE = 5000  # of the training images: horizons and widths are chosen on them, errors told on test


@functools.lru_cache(maxsize=1)
def _images(count: int, size: int) -> tuple[Any, Any, Any]:
    """Images to draw samples from, images for choices, test images."""
    from allometry.data import fashion_mnist

    train = fashion_mnist("train", count, size=size)
    test = fashion_mnist("test", min(count, 10_000), size=size)
    kept = count - count // 12 if count < 60_000 else count - _KEPT_FOR_CHOICE
    return (
        (train.images[:kept], train.labels[:kept]), (train.images[kept:], train.labels[kept:]),
        (test.images, test.labels),
    )  # fmt: skip


def _grid(result: Result, arm: str, seeds: Sequence[int] | None = None) -> ModelSizeCurve:
    """Test losses by samples and width, the width chosen on other images, and what follows from them."""
    from allometry.laws import model_size_curve

    rows = result.rows(arm)
    if seeds is not None:
        rows = rows[rows["seed"].isin(seeds)]
    tables: list[dict[tuple[float, float], list[float]]] = [{}, {}]
    for (samples, _), part in rows.sort_values("seed").groupby(["samples", "width"]):
        place = float(samples), float(part["parameters"].iloc[0])
        for table, column in zip(tables, ("loss", "chosen by"), strict=True):
            table[place] = part[column].tolist()
    return model_size_curve(tables[0], selection=tables[1], best_guess=math.log(10))


def _best(result: Result, arm: str, least: int = 500) -> LearningCurve:
    """The least loss over widths for each seed, from ``least`` samples on."""
    import numpy as np

    from allometry.laws import LearningCurve

    curve = _grid(result, arm).curve
    assert curve.sizes is not None
    assert curve.errors is not None
    kept = np.asarray(curve.sizes) >= least
    return LearningCurve(np.asarray(curve.sizes)[kept], np.asarray(curve.errors)[kept])


def _refused(rule: Callable[[Result], Test]) -> Callable[[Result], Test]:
    """A curve on which no law can be fitted leaves its claim undecided."""

    @functools.wraps(rule)
    def judged(result: Result) -> Test:
        try:
            return rule(result)
        except ValueError as refusal:
            return undecided(str(refusal))

    return judged


@_refused
def _foretold(result: Result) -> Test:
    """Error of the two largest samples' losses, foretold from the rest by a power law, for each seed."""
    import numpy as np

    from allometry.laws import fit_curves

    curve = _best(result, result.study.base)
    sizes, losses = np.asarray(curve.sizes), np.asarray(curve.errors)
    if len(sizes) < 5:
        return undecided(f"{len(sizes)} sizes from 500 on; five are needed to hold two out")
    law = fit_curves(sizes[:-2], losses[:-2].T)
    said = law.coefficient[:, None] * sizes[-2:] ** -law.alpha[:, None]
    missed = np.abs(said / losses[-2:].T - 1).mean(axis=1)
    straight = fit_curves(sizes, losses.T).r_squared
    error = Estimate.of(missed, what="relative error at the two largest sizes")
    fit = Estimate.of(straight, what="R² on log axes from 500 samples on, of each seed")
    return error.judge(holds=(0.0, 0.1), contradicted=(0.2, math.inf)) & (fit > 0.97)


def _no_tilt(result: Result, arm: str) -> Test:
    from allometry.laws import compare_slopes

    found = compare_slopes(_best(result, result.study.base), _best(result, arm), margin=_EQUAL)
    seeds = len(result.table["seed"].unique())
    tilt = Estimate.from_interval(found.alpha, n=seeds, what=f"exponent of {arm} less the base's")
    return tilt.within(-_EQUAL, _EQUAL)


@_refused
def _optimizer(result: Result) -> Test:
    """Exponents under the two optimizers are equal within the margin."""
    return _no_tilt(result, "AdamW")


@_refused
def _skips(result: Result) -> Test:
    """Exponents with and without a residual stream are equal within the margin."""
    return _no_tilt(result, "residual")


@_refused
def _sublinear(result: Result) -> Test:
    """The sufficient model's parameters grow, and more slowly than the samples."""
    found = _grid(result, result.study.base)
    if not math.isfinite(found.exponent.value):
        return undecided(f"{int(found.inside.sum())} samples have their sufficient model inside the grid")
    growth = Estimate.from_interval(
        found.exponent, n=int(found.inside.sum()), what="growth of parameters in samples"
    )
    return growth.within(0.0, 1.0)


perceptrons = Study(
    "hestness-learning-curves/fashion-mnist",
    question="Is the best loss over model sizes a power law of the samples, which techniques only shift?",
    arms={
        "SGD": {"optimizer": "sgd", "residual": False, "rate": 0.05},
        "AdamW": {"optimizer": "adamw", "residual": False, "rate": 6e-3},
        "residual": {"optimizer": "sgd", "residual": True, "rate": 0.05},
    },
    axes=[
        axis("samples", tiny=(125, 250, 500), quick=(250, 500, 1000, 2000, 4000),
             full=(125, 250, 500, 1000, 2000, 4000, 8000, 16000)),
        axis("width", tiny=(2, 4), quick=(4, 16, 64), full=(4, 8, 16, 32, 64, 128)),
    ],
    measures=("loss", "error"),
    profiles={
        "tiny": {"seeds": 1, "horizons": (4, 8), "images": 1000},
        "quick": {"seeds": 2, "horizons": (75, 200, 500)},
        "full": {"seeds": 4, "horizons": (100, 250, 600, 1600, 4000)},
    },
    settings={"batch": 64, "size": 14, "images": 60_000, "depth": 2},
    together=("seed", "samples"),
    version=2,  # 1 took an R² of four seeds for exact, and trained large samples too shortly
    weight=lambda arm, samples, width: float(width),
    claims=[
        Claim(
            "The best error over model sizes is a power law of the samples beyond the smallest ones.",
            _foretold,
            where="section 3 and the composite curves of each domain",
            threshold="from 500 samples on, the two largest sizes are foretold from the others within 10 % "
                      "(contradicted beyond 20 %), and R² exceeds 0.97, both at 95 % over seeds",
        ),
        Claim(
            "Another optimizer shifts the curve and leaves its exponent.",
            _optimizer,
            where="section 5 (better techniques move the intercept)",
            threshold="the 90 % interval of the difference lies within 0.05; contradicted where beyond",
        ),
        Claim(
            "A residual stream shifts the curve and leaves its exponent.",
            _skips,
            where="section 5 (better architectures move the intercept)",
            threshold="the 90 % interval of the difference lies within 0.05; contradicted where beyond",
        ),
        Claim(
            "The smallest sufficient model grows with the samples, and more slowly than they do.",
            _sublinear,
            where="sections 3 and 4, exponents of model size",
            threshold="parameters of the model within 2 % of the best loss: the 90 % interval of the "
                      "exponent lies between 0 and 1",
        ),
    ],
)  # fmt: skip


@perceptrons.trial
def _train(
    arm: Any, samples: list[int], width: int, seed: list[int], profile: Profile
) -> list[dict[str, Any]]:
    """Stops at the horizon that is best on the images kept for choices, and tells the loss on test images."""
    import torch

    from allometry import models, optim, train
    from allometry.data import ImageBatches

    (images, labels), choice, test = _images(profile.images, profile.size)
    orders = {
        one: torch.randperm(len(images), generator=train.Seeds(one).generator("samples")) for one in set(seed)
    }
    drawn = {one: (images[order], labels[order]) for one, order in orders.items()}
    sources = [
        ImageBatches(drawn[one][0][:m], drawn[one][1][:m], profile.batch, one)  # smaller within larger
        for m, one in zip(samples, seed, strict=True)
    ]

    def make(generator: torch.Generator) -> torch.nn.Module:
        return models.MLP(
            profile.size**2, 10, width=width, depth=profile.depth, residual=arm["residual"],
            generator=generator,
        )  # fmt: skip

    def optimizer(model: torch.nn.Module, rate: float) -> torch.optim.Optimizer:
        if arm["optimizer"] == "adamw":
            return torch.optim.AdamW(model.parameters(), rate)
        return torch.optim.SGD(model.parameters(), rate, momentum=0.9)

    def validate(stack: Any) -> dict[str, Any]:
        chosen = train.evaluate_classifier(stack, choice)["loss"]
        return {**train.evaluate_classifier(stack, test), "chosen by": chosen}

    logs = train.fit_stack(
        make, len(seed), sources, generators=[train.Seeds(one).generator("init") for one in seed],
        horizons=profile.horizons, learning_rates=arm["rate"], make_optimizer=optimizer,
        schedule=optim.WSD(decay=0.25), validate=validate, log_every=profile.horizons[-1],
    )  # fmt: skip
    parameters = sum(one.numel() for one in make(torch.Generator()).parameters())
    records = []
    for log in logs:
        record: dict[str, Any] = {"loss": math.nan, "error": math.nan, "parameters": parameters}
        finite = [row for row in log.horizons if math.isfinite(row["chosen by"])]
        if finite:
            best = min(finite, key=lambda row: row["chosen by"])
            record |= {name: best[name] for name in ("loss", "error", "chosen by", "horizon")}
        if log.status == "diverged":
            record["diverged"] = next(iter(log.diverged.values()), 0)
        records.append(record)
    return records


@perceptrons.figure
def _composite(result: Result, figure: Any) -> None:
    """Losses of every width of the base, the best of each arm, and the sufficient model."""
    from allometry.show.drawing import readable_ticks

    left, right = figure.subplots(1, 2)
    base = result.rows(result.study.base)
    for width, part in base.groupby("width"):
        mean = part.groupby("samples")["loss"].mean()
        left.plot(mean.index, mean, color="grey", linewidth=0.8)
        left.annotate(str(width), (mean.index[-1], mean.iloc[-1]), fontsize=6)
    for index, arm in enumerate(result.study.arms):
        grid = _grid(result, arm)
        left.plot(grid.samples, grid.table["error"], "o-", color=f"C{index}", markersize=3, label=arm)
        right.plot(grid.samples, grid.sufficient_size, "o-", color=f"C{index}", markersize=3, label=arm)
    left.set(xscale="log", yscale="log", xlabel="training samples", ylabel="test loss, nats; grey: widths")
    right.set(xscale="log", yscale="log", xlabel="training samples", ylabel="parameters that suffice")
    left.legend()
    for one in (left.xaxis, left.yaxis, right.xaxis, right.yaxis):
        readable_ticks(one, count=one is not left.yaxis)


paper = Paper(
    slug="hestness-learning-curves",
    title="Deep Learning Scaling is Predictable, Empirically",
    authors="Joel Hestness, Sharan Narang, Newsha Ardalani, Gregory Diamos, Heewoo Jun, Hassan Kianinejad, "
    "Md. Mostofa Ali Patwary, Yang Yang, Yanqi Zhou",
    year=2017,
    arxiv="1712.00409",
    summary=(
        "Between the smallest samples, where a model does no better than guessing, and the floor that no "
        "data lower, error falls as a power of the training samples, with an exponent that belongs to "
        "the problem: better models and optimizers move the line and hardly tilt it. The model that suffices "
        "grows more slowly than its data. This entry brings the law with its regions and intervals, the test "
        "of shift against slope, the data that a target error needs, and asks the claims of real curves."
    ),
    studies=(curves, perceptrons),
    parts=(
        "allometry.laws.LearningCurve", "allometry.laws.regions", "allometry.laws.compare_slopes",
        "allometry.laws.model_size_curve", "allometry.laws.fit_curves", "allometry.laws.BoundedPowerLaw",
        "allometry.data.learning_curves",
    ),
)  # fmt: skip
