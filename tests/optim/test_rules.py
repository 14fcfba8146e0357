"""Rules agree where they were tuned and differ by a power elsewhere."""

import pytest
import torch

from allometry.optim.rules import batch_rule, decay_rule, learning_rate_rule


def test_rules_agree_at_the_base_and_differ_by_a_power():
    rules = {kind: learning_rate_rule(kind, base_width=32, base_rate=0.01)
             for kind in ("constant", "1/width", "1/sqrt(width)")}  # fmt: skip
    assert {rule(32) for rule in rules.values()} == {0.01}
    assert rules["constant"](512) == 0.01
    assert rules["1/width"](512) == pytest.approx(0.01 / 16, rel=1e-15)
    assert rules["1/sqrt(width)"](512) == pytest.approx(0.01 / 4, rel=1e-15)
    assert learning_rate_rule(lambda width: 2.0, base_width=32, base_rate=0.01)(64) == 0.02
    assert decay_rule("width", base_width=32, base_decay=1e-4)(320) == pytest.approx(1e-3, rel=1e-15)
    assert batch_rule("1/width", base_width=32, base_batch=4)(512) == 1


def test_hidden_matrices_alone_follow_the_rule():
    model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Linear(64, 64), torch.nn.Linear(64, 10))
    rule = learning_rate_rule("1/width", base_width=16, base_rate=0.1)
    hidden, rest = rule.groups(model, 64, scope="hidden", weight_decay=0.0)
    assert [tuple(p.shape) for p in hidden["params"]] == [(64, 64)]
    assert hidden["lr"] == 0.025
    assert rest["lr"] == 0.1
    assert len(rest["params"]) == 5
    (everything,) = rule.groups(model, 64)
    assert everything["lr"] == 0.025
    torch.optim.AdamW([hidden, rest])


def test_one_over_width_on_hidden_matrices_is_mups_rule_for_adam():
    from allometry import init, models, optim

    base, wide = (models.MLP(8, 10, width=w, depth=3) for w in (16, 64))
    roles = init.roles(init.apply_(wide, base))
    theirs = {
        id(p): group["lr"] for group in optim.param_groups(wide, 0.1, roles=roles) for p in group["params"]
    }
    ours = learning_rate_rule("1/width", base_width=16, base_rate=0.1).groups(wide, 64, scope="hidden")[0]
    assert len(ours["params"]) == 2
    assert all(theirs[id(p)] == pytest.approx(ours["lr"], rel=1e-12) for p in ours["params"])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: learning_rate_rule("1/depth", base_width=1, base_rate=1.0), "a rule is one of"),
        (lambda: learning_rate_rule("constant", base_width=0, base_rate=1.0), "base width"),
        (lambda: learning_rate_rule("constant", base_width=1, base_rate=1.0)(0), "at least 1"),
        (lambda: learning_rate_rule("constant", base_width=1, base_rate=1.0).groups(
            torch.nn.Linear(2, 2), 64, scope="hidden"), "no matrix"),
    ],
)  # fmt: skip
def test_rules_refuse(call, says):
    with pytest.raises(ValueError, match=says):
        call()
