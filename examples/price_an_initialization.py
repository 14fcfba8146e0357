"""How many training steps is an initialization worth? Unit variance layer by layer, on a module of your own.

allometry study run examples/price_an_initialization.py --profile quick --report report
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from allometry import data, train
from allometry.study import Claim, Study, Tune, axis


def network(width, depth):
    """Any module: here a plain stack, without skip connections or norms."""
    sizes = [64, *[width] * depth]
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 10))


@torch.no_grad()
def unit_variance_(model, x, generator):
    """Layer by layer orthogonal weights, scaled to outputs of variance one (Mishkin and Matas, 2015)."""
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
            layer.weight /= layer(x).std()
        x = layer(x)


study = Study(
    "price-an-initialization",
    question="How many training steps is unit variance, layer by layer, worth beside torch's default?",
    arms=("default", "unit variance"),
    axis=axis("steps", 20, 40, 80, 160, tiny=(2, 4), recorded=True),
    measure="loss",
    profiles={"tiny": {"seeds": 1}, "quick": {"seeds": 6}, "full": {"seeds": 20}},
    settings={"width": 64, "depth": 4, "batch": 64},
    tune=Tune("learning rate", {"tiny": (3e-3,), "quick": (1e-3, 3e-3, 1e-2, 3e-2),
                                "full": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)}, on="validation loss", seeds=2),
    claim=Claim("Unit variance reaches a lower loss within as many steps.",
                lambda result: result.gap("unit variance") < 0,
                threshold="loss less the default's, mean over steps: 95 % interval below zero"),
)  # fmt: skip


@study.trial
def trial(arm, seed, profile):
    seeds, (x, y) = train.Seeds(seed), data.digits()
    x = x.flatten(1)
    with torch.random.fork_rng():  # torch's own initialization draws from the global stream
        torch.manual_seed(seeds.integer("init"))
        model = network(profile.width, profile.depth)
    if arm == "unit variance":
        unit_variance_(model, x[:256], seeds.generator("orthogonal"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=profile.learning_rate)
    order, told = seeds.generator("data"), study.axis.values(profile.name)
    for step in range(1, max(told) + 1):
        rows = torch.randint(0, 1000, (profile.batch,), generator=order)
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        if step in told:
            with torch.no_grad():
                validation, test = (F.cross_entropy(model(x[part]), y[part]).item()
                                    for part in (slice(1000, 1300), slice(1300, None)))  # fmt: skip
            yield {"steps": step, "loss": test, "validation loss": validation}
