"""What a schedule that measures curvature is worth beside the best fixed rate.

Granziol, Zohren and Roberts, 2020. arXiv:2006.09092, the learner that they call preliminary; a further study
of the entry :mod:`allometry.papers.lr_batch_random_matrix`, whose convolutional network this is.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from allometry.papers.lr_batch_random_matrix import _network
from allometry.study import Claim, Profile, Result, Study, Test, Tune, axis


def _as_good(arm: str) -> Any:
    def rule(result: Result) -> Test:
        longest = max(result.study.axes[0].values(result.profile))
        found = result.ratio(arm, at={"steps": longest})
        return found.judge(holds=(0.0, 1.1), contradicted=(1.5, math.inf))

    rule.__name__ = f"_as_good_{arm.replace(' ', '_')}"
    return rule


_LEARNERS = {
    "heavy ball": ("heavy_ball", 0), "two over lambda": ("two_over_lambda", 0),
    "heavy ball later": ("heavy_ball", 125), "two over lambda later": ("two_over_lambda", 125),
}  # fmt: skip

learner = Study(
    "lr-batch-random-matrix/learner",
    question="What is a schedule that measures curvature worth beside the best fixed rate?",
    arms={"fixed rate": {}}
    | {arm: {"rule": rule, "first": first} for arm, (rule, first) in _LEARNERS.items()},
    axis=axis("steps", 250, 750, tiny=(4,)),
    measures=("loss", "error"),
    profiles={
        "tiny": {"seeds": 1, "images": 200, "lanczos": 3},
        "quick": {"seeds": 1},
        "full": {"seeds": 4},
    },
    settings={"images": 8000, "batch": 64, "lanczos": 15, "every": 125},
    tune=Tune("rate", {"tiny": (0.05,), "quick": (0.05, 0.2), "full": (0.025, 0.05, 0.1, 0.2, 0.4)},
              on="loss"),
    claims=[
        Claim(
            f"Set by curvature once an epoch ({rule.replace('_', ' ')}, from the "
            f"{'second on' if first else 'first on'}), rates train as well as the best fixed one.",
            _as_good(arm),
            where="section on the learner, which the paper calls preliminary; exploratory",
            threshold="test loss within 1.1 of that of the tuned fixed rate; contradicted beyond 1.5",
        )
        for arm, (rule, first) in _LEARNERS.items()
    ],
)  # fmt: skip


@functools.lru_cache(maxsize=2)
def _clothes(count: int) -> Any:
    """Training, validation (for tuning) and test images."""
    from allometry.data import fashion_mnist

    train = fashion_mnist("train", count + count // 4, size=14)
    test = fashion_mnist("test", 10_000 if count > 2000 else 500, size=14)
    known = train.images[:count], train.labels[:count]
    return known, (train.images[count:], train.labels[count:]), (test.images, test.labels)


@learner.trial
def _learner(arm: str, steps: int, seed: int, profile: Profile) -> dict[str, Any]:
    import torch
    import torch.nn.functional as F

    from allometry import data, optim, train

    known, validation, test = _clothes(profile.images)
    model = _network("clothes", seed)
    batches = data.ImageBatches(known[0], known[1], profile.batch, seed)
    rule, first = _LEARNERS.get(arm, (None, 0))
    plain = rule == "two_over_lambda"  # the bound of steps without momentum
    optimizer = torch.optim.SGD(model.parameters(), lr=profile.rate, momentum=0.0 if plain else 0.9)
    schedule = None
    if rule is not None:  # tuned is no more than the rate of a first epoch without measurements
        schedule = optim.CurvatureSchedule(
            optimizer, model, F.cross_entropy, every=profile.every, first=first, steps=profile.lanczos,
            rule=rule, generator=train.Seeds(seed).generator("lanczos"),  # type: ignore[arg-type]
        )  # fmt: skip
    for step in range(steps):
        batch = batches.batch(step)
        loss = F.cross_entropy(model(batch[0]), batch[1])
        if not math.isfinite(float(loss.detach())):
            return {"loss": math.nan, "error": math.nan, "diverged": step}
        if schedule is not None:
            schedule.step(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = train.evaluate_classifier(model, validation if profile.tuning else test)
    return {"loss": float(found["loss"]), "error": float(found["error"]),
            "last rate": float(optimizer.param_groups[0]["lr"])}  # fmt: skip


extends = "lr-batch-random-matrix"
studies = (learner,)
