"""Time: calls in turn, and the law that tells it from counts."""

import numpy as np
import pandas
import pytest
import torch
from torch import nn

from allometry.measure import model_call, runtime, runtime_law


def test_calls_are_timed_in_turn():
    order = []
    table = runtime({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3, warmup=2)
    assert order == ["a", "b"] * 5
    assert list(table.index) == ["a", "b"]
    assert (table["fastest"] <= table["low"]).all()
    assert (table["low"] <= table["seconds"]).all()
    assert (table["seconds"] <= table["high"]).all()


def test_a_call_of_a_model():
    layer = nn.Linear(4, 2)
    assert not model_call(layer, torch.ones(3, 4))().requires_grad
    assert not layer.training
    model_call(layer, torch.ones(3, 4), "train")()
    assert layer.training
    assert torch.equal(layer.weight.grad, torch.full((2, 4), 3.0))
    with pytest.raises(ValueError, match="'infer' or 'train'"):
        model_call(layer, torch.ones(3, 4), "test")


def _networks(rng, count):
    flops = np.exp(rng.uniform(0, 4, count))
    activations = flops**0.6 * np.exp(rng.normal(0, 0.4, count))
    return pandas.DataFrame({"flops": flops, "activations": activations})


def test_the_law_finds_exponents_and_covers_them():
    """500 made laws with noise of a tenth: 95 % intervals hold the truth in 92 to 98 % of them."""
    rng = np.random.default_rng(0)
    truth = {"flops": 0.2, "activations": 0.8}
    inside = dict.fromkeys(truth, 0)
    for _ in range(500):
        table = _networks(rng, 20)
        clean = 3e-3 * table["flops"] ** 0.2 * table["activations"] ** 0.8
        law = runtime_law(table.assign(seconds=clean * np.exp(rng.normal(0, 0.1, len(table)))))
        for name, value in truth.items():
            row = law.together.loc[name]
            inside[name] += row["low"] <= value <= row["high"]
    assert all(460 <= count <= 490 for count in inside.values()), inside


def test_an_exact_law_comes_back():
    table = _networks(np.random.default_rng(1), 12)
    table["seconds"] = 5 * table["flops"] ** 0.3 * table["activations"] ** 0.5
    law = runtime_law(table)
    np.testing.assert_allclose(law.together["exponent"], [0.3, 0.5], rtol=1e-9)
    np.testing.assert_allclose(law.predict(table), table["seconds"], rtol=1e-9)
    assert law.residual < 1e-9 < law.alone["residual"].min()


def test_what_cannot_be_fitted_is_refused():
    table = _networks(np.random.default_rng(2), 12).assign(seconds=1.0)
    with pytest.raises(ValueError, match="in proportion"):
        runtime_law(table.assign(activations=3 * table["flops"]))
    with pytest.raises(ValueError, match="above 0"):
        runtime_law(table.assign(seconds=-1.0))
    with pytest.raises(ValueError, match="at least 5 networks"):
        runtime_law(table[:4])
    with pytest.raises(ValueError, match="no column 'parameters'"):
        runtime_law(table, counts=("parameters",))
    with pytest.raises(ValueError, match="at least one call"):
        runtime({})


def test_a_network_left_out_is_foretold_by_the_others():
    """The closed form agrees with fits that really leave each network out, to 1e-10."""
    table = _networks(np.random.default_rng(3), 9)
    table["seconds"] = table["activations"] * np.exp(np.random.default_rng(4).normal(0, 0.3, len(table)))
    logs = np.log(table)
    found = runtime_law(table).left_out
    for name in ("flops", "activations"):
        for place in range(len(table)):
            rest = logs.drop(index=place)
            slope, constant = np.polyfit(rest[name], rest["seconds"], 1)
            miss = logs.loc[place, "seconds"] - constant - slope * logs.loc[place, name]
            assert found.loc[place, name] == pytest.approx(miss, abs=1e-10)
