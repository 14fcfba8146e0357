"""Does the best learning rate carry over width, and over depth? A residual perceptron, bare and by rule.

python examples/carry_a_learning_rate.py report/     some minutes on one core; --quick for a fifth of it

The rules are maximal update parametrization over width (Yang and Hu, 2020, arXiv:2011.14522), and branches
divided by the number of layers over depth (Dey and others, 2025, arXiv:2505.01618). All seeds of a size and
rate run as one program.
"""

import argparse
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import nn

from allometry import data, init, optim, train

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("report", type=Path, nargs="?", default=Path("report-transfer"))
parser.add_argument("--quick", action="store_true", help="two seeds and fewer steps")
asked = parser.parse_args()
seeds, steps, grid = (2, 100, 1.0) if asked.quick else (4, 200, 0.5)  # grid: step in log2 of the rate
known, unseen = data.fashion_mnist("train", 20_000, size=14), data.fashion_mnist("test", 5_000, size=14)


class Perceptron(nn.Module):
    """Any module would do: a first layer, residual layers, a readout."""

    def __init__(self, width, depth):
        super().__init__()
        self.first = nn.Linear(196, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.readout = nn.Linear(width, 10)

    def forward(self, x):
        x = self.first(x.flatten(1))
        for layer in self.layers:
            x = x + layer(torch.relu(x))
        return self.readout(x)


def losses(width, depth, rates, by_rule):
    """Test loss of every rate and seed, [rates][seeds]."""

    def build(generator):
        torch.manual_seed(
            int(torch.randint(2**31, (1,), generator=generator))
        )  # torch's layers know no other
        model = Perceptron(width, depth)
        if by_rule and width > 64:
            init.apply_(model, Perceptron(64, depth))
        if by_rule:
            init.depth_scale_(model, r"^layers\.\d+$", base_depth=2)
        return model

    def optimizer(model, learning_rate):
        roles = init.roles(model) if by_rule and width > 64 else None
        return torch.optim.Adam(optim.param_groups(model, learning_rate, roles))

    found = []
    for rate in rates:
        logs = train.train_classifier(
            build, [data.ImageBatches(known.images, known.labels, 64, seed) for seed in range(seeds)],
            validation=(unseen.images, unseen.labels), horizons=steps, schedule=optim.cosine,
            generators=[train.Seeds(seed).generator("init") for seed in range(seeds)],
            learning_rates=rate, make_optimizer=optimizer, log_every=steps,
            objective=train.classification_loss,
        )  # fmt: skip
        found.append([log.horizons[-1]["loss"] if log.horizons else float("nan") for log in logs])
    return found


asked.report.mkdir(parents=True, exist_ok=True)
figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
for row, (size, sizes) in enumerate((("width", (64, 128, 256, 512)), ("depth", (2, 4, 8, 16)))):
    for column, by_rule in enumerate((False, True)):

        def run(value, rates, size=size, by_rule=by_rule):
            width, depth = (value, 2) if size == "width" else (64, value)
            return losses(int(width), int(depth), rates, by_rule)

        name = f"{size}, {'by rule' if by_rule else 'as it comes'}"
        table = train.transfer_sweep(
            run, sizes, [2.0 ** (-12 + grid * k) for k in range(int(8 / grid) + 1)], size=size, together=True
        )
        told = train.learning_rate_transfer(
            table, size, lost_above=math.log(10)
        )  # where untrained ones stand
        print(f"\n{name}\n{told}")
        table.to_csv(asked.report / f"{name.replace(', ', '-').replace(' ', '-')}.csv", index=False)
        told.plot(axes[row, column]).set_title(name)
figure.savefig(asked.report / "transfer.png", dpi=120)
figure.savefig(asked.report / "transfer.svg")
