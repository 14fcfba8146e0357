"""Studies for tests: no torch, milliseconds, and answers that are known."""

import random

from allometry.study.claim import Claim
from allometry.study.study import Study, axis
from allometry.study.tune import Tune

means = Study(
    "means",
    question="How fast does an average approach its limit?",
    arms={"mean": {"power": 1.0}, "slow": {"power": 0.5}},
    axis=axis("draws", 10, 100, 1000, tiny=(10, 100)),
    measure="error",
    seeds=4,
    profiles={"tiny": {"seeds": 1}, "quick": {}, "full": {"seeds": 8}},
    claims=[
        Claim("The error falls as one over n.", lambda result: result.slope("mean").within(-1.1, -0.9)),
        Claim("The slow one falls faster.", lambda result: result.slope("slow") < -1),
    ],
)


@means.trial
def trial(arm, draws, seed, profile):
    noise = random.Random(f"{arm}/{draws}/{seed}").gauss(0, 0.01)
    return {
        "error": draws ** -arm["power"] * (1 + noise),
        "note": f"{arm} {draws}",
        "seconds": random.random(),
    }


together = Study(
    "together",
    question="?",
    arms=("a", "b"),
    axes=[axis("width", 2, 4), axis("steps", 1, 2, recorded=True)],
    measures=("loss", "again"),
    together=("seed", "width"),
    seeds=3,
)


@together.trial
def stacked(arm, width, seed, profile):
    for step in (1, 2):
        yield [
            {"steps": step, "loss": w + s / 10 + step / 100, "again": 0.0}
            for w, s in zip(width, seed, strict=True)
        ]


diverging = Study(
    "diverging", question="?", arms=("a",), axis=axis("rate", 1.0, 10.0), measure="loss", seeds=3
)


@diverging.trial
def unstable(arm, rate, seed, profile):
    if rate > 5:
        return {"diverged": 7}
    return {"loss": 1.0}


tuned = Study(
    "tuned", question="?", arms=("a", "b"), axis=axis("width", 2, 4), measure="loss", seeds=3,
    tune=Tune("learning rate", (1, 2, 3, 4), on="validation loss", seeds=2),
)  # fmt: skip


@tuned.trial
def with_rate(arm, width, seed, profile):
    best = 2 if arm == "a" else 3
    loss = abs(profile.learning_rate - best) + (10 if profile.tuning != (seed >= 1_000_000) else 0)
    return {"loss": float(loss), "validation loss": loss + 0.0, "rate": profile.learning_rate}


failing = Study("failing", question="?", arms=("a",), axis=axis("width", 2, 4), measure="loss", seeds=3)


@failing.trial
def half(arm, width, seed, profile):
    if width == 4:
        raise RuntimeError("no room")
    return {"loss": 1.0}
