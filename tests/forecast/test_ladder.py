"""The ladder: exact sizes, one data order, one recipe, and tasks that cover every run once."""

import json

import pytest
import torch

from allometry.data import StandardLibrary, Windows
from allometry.forecast.ladder import (
    PLANS,
    Ladder,
    ladder_tasks,
    new_model,
    new_optimizer,
    non_embedding,
    target_task,
)
from allometry.train.seeds import Seeds


def plan(**changes):
    return {
        "ladder": PLANS["tiny"].to_dict(), "corpus": {"paths": [], "digest": None}, "vocab_size": 256,
        "seeds": [0, 1], "target_seed": 2, "dtype": "float32", "device": "cpu", "threads": 1, "workers": 2,
        "target_threads": 2, "target_stacked": False, "stacked_widths": [], **changes,
    }  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_ladder_survives_json(name):
    ladder = PLANS[name]
    assert Ladder.from_dict(json.loads(json.dumps(ladder.to_dict()))) == ladder


@pytest.mark.parametrize("name", PLANS)
def test_trunk_is_shared_by_every_horizon(name):
    # a run of its own for each horizon would read their sum; the trunk is read once, each decay once
    ladder = PLANS[name]
    steps = ladder.horizons()
    decays = [round(ladder.decay * step) for step in steps]
    trunk = steps[-1] - decays[-1]
    assert ladder.trained_tokens() == ladder.tokens_per_step * (trunk + sum(decays))
    assert ladder.trained_tokens() < sum(ladder.tokens)


@pytest.mark.parametrize("width", [16, 48, 64, 112])
def test_sizes_are_those_of_the_model(width):
    model = new_model(PLANS["default"], width, 256, 0)
    outside = {id(model.embedding.weight), id(model.head.weight)}
    counted = sum(p.numel() for p in model.parameters() if id(p) not in outside)
    assert counted == non_embedding(PLANS["default"], width, 256)


def test_rate_is_carried_over_width_only():
    # hidden matrices step by base_width / width of the peak rate; everything else by the peak rate itself
    ladder = PLANS["default"]
    for width in (16, 64, 128):
        model = new_model(ladder, width, 256, 0)
        rates = {
            id(p): group["lr"] for group in new_optimizer(ladder, model).param_groups for p in group["params"]
        }
        for name, parameter in model.named_parameters():
            hidden = parameter.ndim == 2 and name.startswith("blocks.")
            expected = ladder.learning_rate * (ladder.base_width / width if hidden else 1.0)
            assert rates[id(parameter)] == pytest.approx(expected, rel=1e-12)


def test_every_size_reads_the_same_text_in_the_same_order():
    tokens = StandardLibrary().tokens("train")[:200_000]
    orders = [Windows(tokens, 64, 4, Seeds(7).integer("data")) for _ in range(2)]
    other = Windows(tokens, 64, 4, Seeds(8).integer("data"))
    assert all(torch.equal(orders[0].batch(s)[0], orders[1].batch(s)[0]) for s in (0, 5, 100))
    assert not torch.equal(orders[0].batch(0)[0], other.batch(0)[0])


@pytest.mark.parametrize("stacked", [[], [16], [16, 32, 48]])
def test_tasks_train_every_run_once(stacked):
    tasks = ladder_tasks(plan(stacked_widths=stacked))
    runs = [run for task in tasks for run in task.runs]
    assert sorted(runs) == sorted(f"width-{w}/seed-{s}" for w in (16, 32, 48) for s in (0, 1))
    assert len(tasks) == 6 - len(stacked)


def test_target_has_the_machine_for_itself():
    task = target_task(plan(), 64, 100_000, 2)
    assert task.exclusive
    assert task.threads == 2
    assert task.arguments["seeds"] == [2]
