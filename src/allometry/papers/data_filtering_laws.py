"""How much to filter depends on how long one trains: pools of data, their utility, how fast they wear out.

Sachin Goyal, Pratyush Maini, Zachary C. Lipton, Aditi Raghunathan and J. Zico Kolter, 2024. arXiv:2404.07177

The paper's pools are tenths of web images ordered by a filter; its network is CLIP.  Here four pools of equal
size come from Fashion-MNIST, ever worse by noise and lost pixels (or, in a second study, by wrong labels,
where the law is expected to fail), and a perceptron learns from them.  The law is fitted to single pools, by
errors on a validation split, and asked about unions that it has not seen, by errors on the test split.  Every
point is the end of a run of its own length: a trunk at a constant rate with a decay for each budget.

The theorem for unions implies that of identical data a larger pool lasts proportionally more epochs; laws of
repetition in the manner of Muennighoff et al. (2023) say equally many.  A third study asks which.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from allometry.papers import Paper
from allometry.study import Claim, Estimate, Profile, Result, Study, Test, axis, undecided

if TYPE_CHECKING:
    import pandas
    from torch import Tensor

    from allometry.laws import UtilityLaw

_UNIONS = ("A", "A+B", "A+B+C", "A+B+C+D")
_ARMS = (*_UNIONS, "B", "C", "D")
_NOISE = {
    "A": (0.0, 0.0),
    "B": (0.25, 0.2),
    "C": (0.5, 0.4),
    "D": (0.8, 0.6),
}  # deviation, share of pixels lost
_WRONG = {"A": 0.0, "B": 0.05, "C": 0.15, "D": 0.3}  # share of labels
_EPOCHS = (1, 2, 4, 8, 16, 32, 64)
_RISE = 0.1  # the worst pools rise by some 3 % once learned by heart; the law, which cannot, is still asked


# --- trials -------------------------------------------------------------------------------------------------
def _images(seed: int, count: int, profile: Profile) -> tuple[Any, Any, Any, str]:
    """Training images ``count``, validation images, test images, and a digest of what the seed chose."""
    import torch

    from allometry.data import Images
    from allometry.train import Seeds

    train, test = _whole(profile.size)
    order = torch.randperm(len(train.labels), generator=Seeds(seed).generator("images"))
    chosen, held = order[:count], order[count : count + profile.validation]
    kept = Images(train.images[chosen], train.labels[chosen])
    few = Images(test.images[: profile.test], test.labels[: profile.test])
    return kept, Images(train.images[held], train.labels[held]), few, kept.digest


@functools.lru_cache(maxsize=1)
def _whole(size: int) -> tuple[Any, Any]:
    from allometry.data import fashion_mnist

    return fashion_mnist("train", size=size), fashion_mnist("test", size=size)


def _train(
    sources: Sequence[Any], held: Sequence[Any], test: Any, samples: Sequence[int], seeds: Sequence[int],
    profile: Profile,
) -> list[list[dict[str, Any]]]:  # fmt: skip
    """Stacked perceptrons; for each seed a record for each number of samples."""
    import torch

    from allometry import models, optim, train

    def make(generator: torch.Generator) -> torch.nn.Module:
        return models.MLP(profile.size**2, 10, width=profile.width, depth=1, generator=generator)

    def validate(stack: Any) -> dict[str, Tensor]:
        told = train.evaluate_classifier(stack, test)
        own = torch.stack([images for images, _ in held]), torch.stack([labels for _, labels in held])
        with torch.no_grad():
            wrong = (stack(own[0]).argmax(-1) != own[1]).double().mean(-1)
        return {"error": told["error"], "loss": told["loss"], "validation error": wrong}

    steps = [count // profile.batch for count in samples]
    logs = train.fit_stack(
        make, len(seeds), list(sources), horizons=steps, validate=validate,
        generators=[train.Seeds(seed).generator("init") for seed in seeds], learning_rates=profile.rate,
        make_optimizer=lambda model, rate: torch.optim.AdamW(model.parameters(), rate),
        schedule=optim.WSD(decay=0.2), objective=train.classification_loss, log_every=max(steps),
    )  # fmt: skip
    told = []
    for log in logs:
        rows = [
            {name: row[name] for name in ("error", "validation error", "loss")}
            | {"samples": row["horizon"] * profile.batch}
            for row in log.horizons
        ]
        lost = next(iter(log.diverged.values()), None)
        told.append([row | ({} if lost is None else {"diverged": lost}) for row in rows])
    return told


def _spoil(images: Any, pool: str, how: str, seed: int) -> Any:
    from allometry.data import Images, add_noise, flip_labels
    from allometry.train import Seeds

    generator = Seeds(seed).generator(f"{how} of {pool}")
    if how == "noise":
        deviation, dropped = _NOISE[pool]
        return Images(
            add_noise(images.images, noise=deviation, dropped=dropped, generator=generator), images.labels
        )
    flipped = flip_labels(images.labels, _WRONG[pool], classes=10, generator=generator)
    return Images(images.images, flipped.labels)


def _union(how: str) -> Callable[..., list[list[dict[str, Any]]]]:
    """The trial of a study on unions of four pools that differ in one way."""

    def trial(arm: str, seed: list[int], profile: Profile) -> list[list[dict[str, Any]]]:
        import torch

        from allometry.data import PoolBatches, PoolSampler
        from allometry.train import Seeds

        size, samples = profile.pool, profile.budgets
        sources, held, digests = [], [], []
        for one in seed:
            clean, validation, test, digest = _images(one, 4 * size, profile)
            parts = {pool: slice(i * size, (i + 1) * size) for i, pool in enumerate("ABCD")}
            chosen = arm.split("+")
            spoiled = [
                _spoil(type(clean)(clean.images[parts[p]], clean.labels[parts[p]]), p, how, one)
                for p in chosen
            ]
            images, labels = (torch.cat([part[i] for part in spoiled]) for i in (0, 1))
            pools = [range(i * size, (i + 1) * size) for i in range(len(chosen))]
            sampler = PoolSampler(pools, max(samples), seed=Seeds(one).integer("order"))
            sources.append(PoolBatches(images, labels, sampler, profile.batch))
            held.append(validation)
            digests.append(digest)
        told = _train(sources, held, test, samples, seed, profile)
        return [
            [row | {"data_digest": digest} for row in rows]
            for rows, digest in zip(told, digests, strict=True)
        ]

    return trial


# --- what is made of the table ------------------------------------------------------------------------------
def _law(part: pandas.DataFrame, result: Result, kind: str = "utility") -> UtilityLaw:
    """The law of one seed's single pools, from validation errors, of two epochs and more."""
    from allometry.laws import UtilityLaw

    size = result.study.profile(result.profile).pool
    alone = part[part["arm"].isin(list("ABCD")) & (part["samples"] > size)]
    law = UtilityLaw(kind, rise=_RISE)
    law.fit(
        {"samples": alone["samples"].to_numpy(), "pool": alone["arm"].to_numpy(), "pool_size": size,
         "error": alone["validation error"].to_numpy()},
        resamples=0,
    )  # fmt: skip
    return law


def _unions(part: pandas.DataFrame, result: Result) -> pandas.DataFrame:
    size = result.study.profile(result.profile).pool
    return part[part["arm"].str.contains("+", regex=False) & (part["samples"] > size)]


def _missed(part: pandas.DataFrame, result: Result, kind: str = "utility") -> float:
    """Mean absolute relative error of what the law says of unions."""
    unions = _unions(part, result)
    told = _law(part, result, kind).predict({"samples": unions["samples"], "pool": unions["arm"]})
    return float(abs(told / unions["error"].to_numpy() - 1).mean())


def _missed_by_means(part: pandas.DataFrame, result: Result) -> float:
    """The same of the mean over a union's pools of their errors after as many samples."""
    alone = part.set_index(["arm", "samples"])["validation error"]
    unions = _unions(part, result)
    told = [
        sum(alone[pool, samples] for pool in arm.split("+")) / len(arm.split("+"))
        for arm, samples in zip(unions["arm"], unions["samples"], strict=True)
    ]
    return float(abs(told / unions["error"] - 1).mean())


def _measured(part: pandas.DataFrame) -> pandas.DataFrame:
    """Test errors: a row for each budget, a column for each union, the best pool first."""
    return part.pivot(index="samples", columns="arm", values="error")[list(_UNIONS)]


def _switches(part: pandas.DataFrame, result: Result) -> float:
    """log2 of the budget at which the best pool alone stops being the best choice, foretold over measured."""
    import numpy as np

    from allometry.laws import plan_pools

    errors = _measured(part)
    gap = np.log(errors[list(_UNIONS[1:])].min(axis=1) / errors["A"]).to_numpy()
    samples = errors.index.to_numpy(float)
    if gap[-1] >= 0 or (gap < 0).all():
        return math.nan
    last = int(np.flatnonzero(gap >= 0)[-1])
    share = gap[last] / (gap[last] - gap[last + 1])
    measured = np.log2(samples[last]) + share * np.log2(samples[last + 1] / samples[last])
    plan = plan_pools(_law(part, result), [samples[0] / 8, samples[-1] * 64], order=list("ABCD"))
    if len(plan.frontier) < 2 or plan.frontier["union"][0] != "A":
        return math.nan
    return float(np.log2(plan.frontier["from"][1]) - measured)


def _regrets(result: Result) -> tuple[list[float], list[float]]:
    """For each seed: the planner's mean relative regret, and that of the better fixed choice.

    The best union of a budget is that of the other seeds' mean, so that a lucky run sets no standard.
    """
    import numpy as np

    from allometry.laws import plan_pools

    tables = {seed: _measured(part) for seed, part in result.table.groupby("seed")}
    planner, fixed = [], []
    for seed, part in result.table.groupby("seed"):
        mine = tables[seed]
        others = sum(table for other, table in tables.items() if other != seed)
        best = others.idxmin(axis=1)
        least = [mine.loc[n, best[n]] for n in mine.index]
        plan = plan_pools(_law(part, result), mine.index.to_numpy(float), order=list("ABCD"))
        taken = [mine.loc[n, union] for n, union in zip(mine.index, plan.best["union"], strict=True)]
        planner.append(float(np.mean(np.divide(taken, least)) - 1))
        fixed.append(min(float(np.mean(mine[union] / least) - 1) for union in (_UNIONS[0], _UNIONS[-1])))
    return planner, fixed


# --- claims -------------------------------------------------------------------------------------------------
def _careful(rule: Callable[[Result], Test]) -> Callable[[Result], Test]:
    """A law that refuses its data decides nothing, and says why."""

    @functools.wraps(rule)
    def judged(result: Result) -> Test:
        if result.table["seed"].nunique() < 2:
            return undecided("one seed")
        try:
            return rule(result)
        except ValueError as refusal:
            return undecided(str(refusal))

    return judged


def _depends_on_budget(result: Result) -> Test:
    budgets = sorted(result.table["samples"].unique())
    level = 1 - 0.05 / 3
    late = [result.gap(one, "A", at={"samples": budgets[-1]}, level=level) for one in _UNIONS[1:]]
    early = [
        result.gap(one, "A", at={"samples": n}, level=level) for n in budgets[1:3] for one in _UNIONS[1:]
    ]
    best = min(late, key=lambda gap: gap.value)
    worst = min(early, key=lambda gap: gap.low)
    return (best < 0) & (worst > 0)


@_careful
def _foretold(result: Result) -> Test:
    missed = result.each_seed(
        lambda part: _missed(part, result), what="mean relative error of foretold unions"
    )
    return missed.judge(holds=(0.0, 0.05), contradicted=(0.10, math.inf))


@_careful
def _better_than_means(result: Result) -> Test:
    less = result.each_seed(
        lambda part: _missed(part, result) - _missed_by_means(part, result),
        what="relative error of the law less that of the mean over pools",
    )
    return less < 0


@_careful
def _better_than_effective_data(result: Result) -> Test:
    less = result.each_seed(
        lambda part: _missed(part, result) - _missed(part, result, "effective_data"),
        what="relative error of the utility law less that of the effective-data law",
    )
    return less < 0


@_careful
def _switch_foretold(result: Result) -> Test:
    ratio = result.each_seed(
        lambda part: _switches(part, result), what="log2 of the switch budget, foretold over measured"
    )
    if math.isnan(ratio.value):
        return undecided(
            "in some seed the best pool alone is never, or always, the best or foretold to be", ratio
        )
    return ratio.judge(holds=(-2.0, 2.0))


@_careful
def _regret_is_small(result: Result) -> Test:
    planner, fixed = _regrets(result)
    told = Estimate.of([a - b / 3 for a, b in zip(planner, fixed, strict=True)],
                       what="regret of the plan less a third of the better fixed choice's")  # fmt: skip
    facts = (Estimate.of(planner, what="regret of the plan"), Estimate.of(fixed, what="of the fixed choice"))
    test = told < 0
    return Test(test.outcome, (*test.estimates, *facts), test.reason)


def _rises(result: Result) -> Test:
    """On the pool with most wrong labels, from an eighth of the largest budget to all of it."""
    budgets = sorted(result.table["samples"].unique())
    early, late = (result.values("D", at={"samples": n}) for n in (budgets[-1] // 8, budgets[-1]))
    seeds = early.index.intersection(late.index)
    ratio = [math.log(late[seed] / early[seed]) for seed in seeds]
    return Estimate.of(ratio, what="log of the error of D at the largest budget over that at an eighth") > 0


_MODEL = {"batch": 50, "size": 14, "width": 128, "rate": 2e-3, "validation": 5000, "test": 10_000}
_PROFILES: dict[str, dict[str, Any]] = {
    "tiny": {
        "seeds": 1,
        "pool": 50,
        "budgets": (50, 100, 200, 400),
        "width": 8,
        "validation": 50,
        "test": 100,
    },
    "quick": {"seeds": 2, "pool": 1000, "budgets": tuple(1000 * e for e in _EPOCHS[:6])},
    "full": {"seeds": 12, "pool": 1500, "budgets": tuple(1500 * e for e in _EPOCHS)},
}


def _samples_axis() -> Any:
    return axis(
        "samples", recorded=True, unit="samples", **{name: own["budgets"] for name, own in _PROFILES.items()}
    )


mixtures = Study(
    "data-filtering-laws",
    question="Does the best amount of filtering follow, for every budget, from runs on single pools of data?",
    arms=_ARMS,
    axis=_samples_axis(),
    measures=("error", "validation error"),
    profiles=_PROFILES,
    settings=_MODEL,
    together=("seed",),
    data_by_arm=True,
    version=2,
    claims=[
        Claim(
            "The best filter depends on the budget: the best pool alone for a small one, a union for a large "
            "one.",
            _depends_on_budget,
            where="section 1 and figure 1",
            threshold="at the largest budget some union has the lower test error than the best pool, after "
                      "two and four epochs of it none does (95 %, all unions together)",
        ),
        Claim(
            "The error of a union follows from runs on its pools alone.",
            _foretold,
            where="theorem 1 and the section on mixtures",
            threshold="mean absolute relative error over unions and budgets of at most 5 %, over seeds at "
                      "95 %; contradicted above 10 %",
        ),
        Claim(
            "The law foretells unions better than the mean of their pools' errors.",
            _better_than_means,
            where="implied by theorem 1",
            threshold="its mean absolute relative error is smaller (95 %)",
        ),
        Claim(
            "Damping the exponent foretells unions better than damping the number of samples.",
            _better_than_effective_data,
            where="the authors' two programs",
            threshold="its mean absolute relative error is smaller (95 %)",
        ),
        Claim(
            "The budget at which a union becomes better than the best pool follows from the law.",
            _switch_foretold,
            where="figure on the best pool by budget",
            threshold="foretold within a factor of 4 of the measured (95 %)",
        ),
        Claim(
            "Choosing by the law costs far less than any fixed filter.",
            _regret_is_small,
            where="section on compute-agnostic filtering",
            threshold="its mean relative regret over budgets is at most a third of that of always the best "
                      "pool, or always everything, whichever is the better (95 %)",
        ),
    ],
)  # fmt: skip
mixtures.trial(_union("noise"))

labels = Study(
    "data-filtering-laws/wrong-labels",
    question="Does the law fail where repetition makes the error rise, as wrong labels learned by heart do?",
    arms=_ARMS,
    axis=_samples_axis(),
    measures=("error", "validation error"),
    profiles={**_PROFILES, "full": {**_PROFILES["full"], "seeds": 6}},
    settings=_MODEL,
    together=("seed",),
    data_by_arm=True,
    claims=[
        Claim(
            "With wrong labels the error rises as samples are repeated, so that a law that only falls cannot "
            "hold.",
            _rises,
            where="a limit of the law; the paper does not claim it",
            threshold="the test error of the pool with 30 % wrong labels is higher at the largest budget "
                      "than at an eighth of it (95 %)",
        ),
    ],
)  # fmt: skip
labels.trial(_union("labels"))


# --- half-life and size -------------------------------------------------------------------------------------
_SIZES = (500, 1000, 2000)


def _one_pool(part: pandas.DataFrame, sizes: Sequence[int]) -> UtilityLaw:
    from allometry.laws import UtilityLaw

    rows = part[part["pool size"].isin(sizes) & (part["epochs"] > 1)]
    return UtilityLaw(rise=_RISE).fit(
        {"samples": rows["samples"], "pool": rows["pool size"].astype(str), "pool_size": rows["pool size"],
         "error": rows["validation error"]},
        resamples=0,
    )  # fmt: skip


@_careful
def _half_life_grows(result: Result) -> Test:
    import numpy as np

    def slope(part: pandas.DataFrame) -> float:
        sizes = sorted(part["pool size"].unique())
        lives = _one_pool(part, sizes).half_life
        return float(np.polyfit(np.log(sizes), [math.log(lives[str(size)]) for size in sizes], 1)[0])

    told = result.each_seed(slope, what="exponent of the half-life in epochs against the size of the pool")
    return told.judge(holds=(0.5, math.inf), contradicted=(-math.inf, 0.5))


@_careful
def _theorem_beats_constant(result: Result) -> Test:
    """Fit the smallest pool; foretell the larger ones by either rule."""
    from allometry.laws import UtilityLaw

    def less(part: pandas.DataFrame) -> float:
        small, *larger = sorted(part["pool size"].unique())
        law = _one_pool(part, [small])
        rows = part[part["pool size"].isin(larger) & (part["epochs"] > 1)]
        missed = []
        for power in (1, 0):
            factor = {str(size): (size / small) ** power for size in larger}
            rule = UtilityLaw.known(
                dict.fromkeys(factor, law.utility[str(small)]),
                {pool: law.half_life[str(small)] * by for pool, by in factor.items()},
                {pool: float(pool) for pool in factor}, a=law.params_["a"], E=law.params_["E"],
            )  # fmt: skip
            told = rule.predict({"samples": rows["samples"], "pool": rows["pool size"].astype(str)})
            missed.append(float(abs(told / rows["error"].to_numpy() - 1).mean()))
        return missed[0] - missed[1]

    return result.each_seed(less, what="relative error, half-life proportional to size less constant") < 0


half_life = Study(
    "data-filtering-laws/half-life",
    question="Of identical data, does a larger pool last proportionally more epochs?",
    arms=("clean",),
    axes=[
        axis("pool size", *_SIZES, tiny=(50, 100)),
        axis("epochs", *_EPOCHS, tiny=_EPOCHS[:4], quick=_EPOCHS[:6], recorded=True, unit="epochs"),
    ],
    measures=("error", "validation error"),
    profiles={
        "tiny": {"seeds": 1, "epochs": _EPOCHS[:4], "width": 8, "validation": 50, "test": 100},
        "quick": {"seeds": 2, "epochs": _EPOCHS[:6]},
        "full": {"seeds": 8, "epochs": _EPOCHS},
    },
    settings=_MODEL,
    together=("seed",),
    version=2,
    weight=lambda arm, size: float(size),
    claims=[
        Claim(
            "The half-life in epochs grows in proportion to the size of a pool of identical data.",
            _half_life_grows,
            where="implied by theorem 1: identical pools united",
            threshold="exponent above 0.5 (95 %; 1 by the theorem, 0 if the half-life is constant in "
                      "epochs); contradicted below",
        ),
        Claim(
            "What a pool of 500 tells of larger ones is better with a half-life proportional to size than "
            "with a constant one.",
            _theorem_beats_constant,
            where="implied by theorem 1: identical pools united",
            threshold="its mean absolute relative error on the larger pools is smaller (95 %)",
        ),
    ],
)  # fmt: skip


@half_life.trial
def _repeated(arm: str, size: int, seed: list[int], profile: Profile) -> list[list[dict[str, Any]]]:
    from allometry.data import PoolBatches, PoolSampler
    from allometry.train import Seeds

    samples = [size * epochs for epochs in profile.epochs]
    sources, held, digests = [], [], []
    for one in seed:
        clean, validation, test, _ = _images(one, max(_SIZES), profile)
        images = clean.images[:size], clean.labels[:size]
        sampler = PoolSampler([range(size)], max(samples), seed=Seeds(one).integer("order"))
        sources.append(PoolBatches(*images, sampler, profile.batch))
        held.append(validation)
        digests.append(clean.digest)
    told = _train(sources, held, test, samples, seed, profile)
    return [
        [row | {"epochs": row["samples"] // size, "data_digest": digest} for row in rows]
        for rows, digest in zip(told, digests, strict=True)
    ]


# --- figures ------------------------------------------------------------------------------------------------
@mixtures.figure
def _draw(result: Result, figure: Any) -> None:
    """Single pools with their law, and unions: measured (points) against foretold (lines)."""
    import numpy as np

    table = result.table[result.table["status"] == "done"]
    mean = table.groupby(["arm", "samples"])[["error", "validation error"]].mean().reset_index()
    left, right = figure.subplots(1, 2, sharey=True)
    try:
        law = _law(mean, result)
    except ValueError:
        law = None
    grid = np.geomspace(table["samples"].min(), table["samples"].max(), 60)
    for axes, arms, measure, title in (
        (left, list("ABCD"), "validation error", "single pools, fitted"),
        (right, _UNIONS, "error", "unions, foretold"),
    ):
        for i, arm in enumerate(arms):
            rows = mean[mean["arm"] == arm]
            axes.plot(rows["samples"], rows[measure], "o", color=f"C{i}", label=arm)
            if law is not None:
                axes.plot(grid, law.mixture_curve(grid, arm.split("+")).value, color=f"C{i}")
        axes.set(xscale="log", yscale="log", xlabel="samples seen", title=title)
        axes.legend()
    left.set_ylabel("error")


paper = Paper(
    slug="data-filtering-laws",
    title="Scaling Laws for Data Filtering -- Data Curation cannot be Compute Agnostic",
    authors="Sachin Goyal, Pratyush Maini, Zachary C. Lipton, Aditi Raghunathan, J. Zico Kolter",
    year=2024,
    arxiv="2404.07177",
    summary=(
        "Good data are few: a strict filter wins while a model sees few samples, and loses once its samples "
        "have been repeated too often. The paper gives each pool of data a utility and a half-life, measured "
        "on that pool alone, and a rule for unions, from which the best filter for every budget follows. The "
        "library has the law, the planner and a sampler that counts repetitions; this entry asks, with "
        "perceptrons on pools of falling quality, whether unions and switches are foretold, where the law "
        "fails, and what the rule for unions says of pools of one kind."
    ),
    studies=(mixtures, labels, half_life),
    parts=(
        "allometry.laws.UtilityLaw", "allometry.laws.plan_pools", "allometry.data.score_pools",
        "allometry.data.PoolSampler", "allometry.data.add_noise", "allometry.data.flip_labels",
    ),
)  # fmt: skip
