"""How many training tokens is an optimizer worth? Sign momentum beside AdamW, each at its own best rate.

allometry study run examples/price_an_optimizer.py --profile quick --report report
"""

import torch

from allometry import data, models, optim, train
from allometry.study import Claim, Study, Tune, axis


class SignMomentum(torch.optim.Optimizer):
    """The sign of a running mean of gradients (Bernstein and others, 2018); put yours in its place."""

    elementwise = True  # each number by itself: several seeds may be one long vector

    def __init__(self, params, lr=1e-3, momentum=0.9):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in (one for one in group["params"] if one.grad is not None):
                mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
                mean.lerp_(weight.grad, 1 - group["momentum"])
                weight.sub_(mean.sign(), alpha=group["lr"])


rates = (1e-3, 3e-3, 1e-2, 3e-2)
study = Study(
    "price-an-optimizer",
    question="How many training tokens is sign momentum worth, beside AdamW?",
    arms=("adamw", "sign momentum"),
    axis=axis("tokens", 20_480, 40_960, 81_920, 163_840, tiny=(512, 1024), recorded=True),
    measure="loss",
    profiles={"tiny": {"seeds": 1, "windows": 8}, "quick": {"seeds": 5}, "full": {"seeds": 8, "width": 64}},
    settings={"width": 32, "batch": 8, "context": 32, "windows": 512},
    together=("seed",),  # all seeds of an arm are one program
    tune=Tune("learning rate", {"tiny": rates[:1], "quick": rates, "full": (3e-4, *rates)}, on="loss"),
    claim=Claim("Sign momentum reaches a lower loss than AdamW.",
                lambda result: result.gap("sign momentum") < 0,
                threshold="loss less AdamW's, mean over horizons: 95 % interval below zero"),
)  # fmt: skip


@study.trial
def trial(arm, seed, profile):
    text, seeds = data.StandardLibrary(), [train.Seeds(one) for one in seed]
    config = models.GPTConfig(width=profile.width, depth=2, context=profile.context)
    windows = data.validation_windows(text.tokens("validation"), profile.context, profile.windows)
    windows = tuple(part[int(profile.tuning) :: 2] for part in windows)  # tuning looks at the other half
    make = SignMomentum if arm == "sign momentum" else torch.optim.AdamW
    steps = {count // (profile.batch * profile.context): count for count in study.axis.values(profile.name)}
    logs = train.fit_stack(
        lambda generator: models.GPT(config, generator=generator), len(seed),
        [data.Windows(text.tokens("train"), profile.context, profile.batch, seed=one.integer("data"))
         for one in seeds],
        generators=[one.generator("init") for one in seeds], learning_rates=profile.learning_rate,
        make_optimizer=lambda model, rate: make(model.parameters(), lr=rate), schedule=optim.WSD(),
        horizons=list(steps), validate=lambda stack: {"loss": train.evaluate(stack, windows)},
    )  # fmt: skip
    told = [{steps[row["horizon"]]: row["loss"] for row in log.horizons} for log in logs]
    return [
        [{"tokens": count, "loss": kept[count]} if count in kept
         else {"tokens": count, "diverged": next(iter(log.diverged.values()))} for count in steps.values()]
        for log, kept in zip(logs, told, strict=True)
    ]  # fmt: skip
