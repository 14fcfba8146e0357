"""The first lines of a study of one's own: a file that runs as it is, with one place to change.

Three beginnings, for a technique that is an optimizer, an initialization, or anything else in the training.
Data are the handwritten digits that come with scikit-learn, so nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Mapping

_WHOLE = '''\
"""What is ${subject} of my own worth?

allometry study run ${file} --profile tiny    seconds: shows that it runs
allometry study run ${file} --profile quick   a minute: the direction shows
allometry study run ${file} --profile full --report report
"""

import torch
import torch.nn.functional as F

from allometry import data, models, train
from allometry.study import Claim, Study, Tune, axis

${mine}

study = Study(
    "${name}",
    question="Is my ${kind} better than the usual one, and does the gain last as networks widen?",
    arms=("${base}", "mine"),  # the base first
    axis=axis("width", 16, 32, 64, 128, tiny=(8, 16)),  # what is scaled, by profile
    measure="test loss",
    profiles={"tiny": {"seeds": 1, "steps": 5}, "quick": {"seeds": 3, "steps": 100},
              "full": {"seeds": 5, "steps": 600}},
    tune=Tune("learning rate", ${rates}, on="validation loss"),  # each arm gets its own best
    claim=Claim("Mine is better at the largest width.",  # written down before the run
                lambda result: result.gap("mine", at={"width": result.table["width"].max()}) < 0,
                threshold="test loss less the base's, 95 % interval below zero"),
)  # fmt: skip


@study.trial
def trial(arm, width, seed, profile):
    seeds = train.Seeds(seed)  # a stream depends on seed and name, so arms share data and first values
    x, y = data.digits()
    x = x.flatten(1)
    model = models.MLP(64, 10, width=width, depth=2, generator=seeds.generator("init"))
${setup}
    order = seeds.generator("data")
    for step in range(profile.steps):
        rows = torch.randint(0, 1200, (64,), generator=order)
        loss = ${loss}
        if not loss.isfinite():
            return {"diverged": step}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        validation, test = (F.cross_entropy(model(x[part]), y[part]).item()
                            for part in (slice(1200, 1500), slice(1500, None)))  # fmt: skip
    return {"test loss": test, "validation loss": validation}
'''

_PLAIN_LOSS = "F.cross_entropy(model(x[rows]), y[rows])"
_ADAMW = "    optimizer = torch.optim.AdamW(model.parameters(), lr=profile.learning_rate)"

_PIECES: Mapping[str, Mapping[str, str]] = {
    "optimizer": {
        "subject": "an optimizer",
        "base": "adamw",
        "rates": "(3e-4, 1e-3, 3e-3, 1e-2, 3e-2)",
        "loss": _PLAIN_LOSS,
        "mine": '''
class Mine(torch.optim.Optimizer):
    """Change this. Now: the sign of a running mean of gradients (Bernstein and others, 2018)."""

    def __init__(self, params, lr=1e-3, momentum=0.9):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
                mean.lerp_(weight.grad, 1 - group["momentum"])
                weight.sub_(mean.sign(), alpha=group["lr"])
''',
        "setup": "    kind = Mine if arm == \"mine\" else torch.optim.AdamW\n"
                 "    optimizer = kind(model.parameters(), lr=profile.learning_rate)",
    },
    "init": {
        "subject": "an initialization",
        "base": "torch's default",
        "rates": "(1e-3, 3e-3, 1e-2, 3e-2)",
        "loss": _PLAIN_LOSS,
        "mine": '''
def mine_(model, generator):
    """Change this. Now: orthogonal weights and no biases (Saxe and others, 2014)."""
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            torch.nn.init.orthogonal_(weight, gain=2**0.5, generator=generator)
        else:
            torch.nn.init.zeros_(weight)
''',
        "setup": "    if arm == \"mine\":\n"
                 "        mine_(model, seeds.generator(\"mine\"))\n" + _ADAMW,
    },
    "technique": {
        "subject": "a technique",
        "base": "plain",
        "rates": "(1e-3, 3e-3, 1e-2, 3e-2)",
        "loss": "mine(model, x[rows], y[rows]) if arm == \"mine\" else " + _PLAIN_LOSS,
        "mine": '''
def mine(model, x, y):
    """Change this. Now: targets smoothed by a tenth (Szegedy and others, 2015)."""
    return F.cross_entropy(model(x), y, label_smoothing=0.1)
''',
        "setup": _ADAMW,
    },
}  # fmt: skip
KINDS = tuple(_PIECES)


def first_file(kind: str, file: str) -> str:
    """The text of a study of one's own.

    Parameters
    ----------
    kind : {"optimizer", "init", "technique"}
    file : str
        Its file's name, for the commands at its head.

    Raises
    ------
    ValueError
        Another kind.

    Examples
    --------
    >>> first_file("init", "mine.py").splitlines()[0]
    '\"\"\"What is an initialization of my own worth?'
    """
    from string import Template

    if kind not in _PIECES:
        raise ValueError(f"--kind is one of {', '.join(KINDS)}, not {kind!r}")
    words = {"optimizer": "optimizer", "init": "initialization", "technique": "technique"}
    pieces = {**_PIECES[kind], "file": file, "kind": words[kind], "name": f"my-{words[kind]}"}
    return Template(_WHOLE).substitute(pieces)
