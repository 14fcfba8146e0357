"""Groups: few, complete, each parameter once, and the settings that its role says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from allometry.optim.groups import Role, param_groups


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.places = nn.Parameter(torch.zeros(5, 4))
        self.norm = nn.LayerNorm(4)
        self.layer = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.table.weight


def settings(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_vectors_norms_embeddings_and_tied_heads_do_not_decay():
    model = Network()
    found = settings(model, param_groups(model, 0.1, weight_decay=0.01))
    assert {name for name, (_, decay) in found.items() if decay} == {"places", "layer.weight"}
    assert {decay for _, decay in found.values()} == {0.0, 0.01}


def test_exemptions_of_ones_own():
    model = Network()
    everything = settings(model, param_groups(model, 0.1, weight_decay=0.01, no_decay=()))
    assert {decay for _, decay in everything.values()} == {0.01}
    found = settings(model, param_groups(model, 0.1, weight_decay=0.01, no_decay=[r"^places$", "head"]))
    assert {name for name, (_, decay) in found.items() if not decay} == {"places", "table.weight"}


@given(
    rates=st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), min_size=6, max_size=6),
    decay=st.sampled_from([0, 0.5]),
)
def test_every_parameter_once_and_equal_settings_together(rates, decay):
    model = Network()
    names = [name for name, _ in model.named_parameters()]
    rule = {name: Role(rate, 2.0, name) for name, rate in zip(names, rates, strict=True)}
    groups = param_groups(model, 0.1, rule, weight_decay=decay)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(map(id, model.parameters()))
    pairs = [(group["lr"], group["weight_decay"]) for group in groups]
    assert len(set(pairs)) == len(pairs)
    for name, (rate, _) in settings(model, groups).items():
        assert rate == 0.1 * rule[name].learning_rate


def test_any_name_of_a_tied_parameter_will_do():
    model = Network()
    found = settings(model, param_groups(model, 0.1, {"head.weight": Role(0.5)}))
    assert found["table.weight"] == (0.05, 0.0)
    with pytest.raises(ValueError, match="several roles"):
        param_groups(model, 0.1, {"head.weight": Role(0.5), "table.weight": Role(2.0)})


def test_frozen_parameters_stay_out():
    model = Network()
    model.layer.requires_grad_(False)
    assert not any(name.startswith("layer") for name in settings(model, param_groups(model, 0.1)))
    with pytest.raises(ValueError, match="nothing to optimize"):
        param_groups(model.requires_grad_(False), 0.1)


def test_optimizers_and_schedulers_take_them():
    model = Network()
    groups = param_groups(model, 0.1, {"layer.weight": Role(0.5, name="hidden")}, weight_decay=0.01)
    assert [group["name"] for group in groups if group["lr"] == 0.05] == ["hidden"]
    optimizer = torch.optim.AdamW(groups)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    model.layer(torch.ones(4)).sum().backward()
    optimizer.step()
    scheduler.step()
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [0.025, 0.05]
    again = torch.optim.AdamW(param_groups(Network(), 0.2, {"layer.weight": Role(0.5)}, weight_decay=0.01))
    again.load_state_dict(optimizer.state_dict())
    assert sorted({group["lr"] for group in again.param_groups}) == [0.025, 0.05]


def test_bad_input():
    model = Network()
    with pytest.raises(ValueError, match="does not have: layers"):
        param_groups(model, 0.1, {"layers.weight": Role()})
    with pytest.raises(ValueError, match="learning_rate"):
        param_groups(model, -0.1)
    with pytest.raises(ValueError, match="weight_decay"):
        param_groups(model, 0.1, weight_decay=float("nan"))
    with pytest.raises(ValueError, match="no_decay"):
        param_groups(model, 0.1, no_decay="norm")
    with pytest.raises(ValueError, match="finite"):
        Role(float("inf"))
