"""Each intervention changes what it says and nothing else; the statistics are those of known numbers."""

import pandas as pd
import pytest
import torch

from allometry import papers, train
from allometry.papers import small_scale_interventions as interventions


def test_the_study_is_one_of_its_paper() -> None:
    assert papers.study("small-scale-proxies/interventions") is interventions.interventions


@pytest.mark.parametrize(
    ("arm", "kind", "group"),
    [
        ("base", "AdamWIndependent", {"eps": 1e-8, "weight_decay": 1e-3}),
        ("decay times rate", "AdamW", {"eps": 1e-8, "weight_decay": 0.1}),
        ("ε 1e-6", "AdamWIndependent", {"eps": 1e-6, "weight_decay": 1e-3}),
        ("ε 1e-15", "AdamWIndependent", {"eps": 1e-15, "weight_decay": 1e-3}),
    ],
)
def test_an_arm_is_its_optimizer_and_warm_up(
    arm: str, kind: str, group: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def optimizer(self, make, rates):  # type: ignore[no-untyped-def]
        seen.append(make(torch.nn.Linear(2, 2), 0.1))
        raise InterruptedError

    monkeypatch.setattr(train.Stack, "optimizer", optimizer)
    study = interventions.interventions
    one = study.arms[arm]
    with pytest.raises(InterruptedError):
        interventions._train(one, 16, [0.1], [0], study.profile("tiny"))
    assert type(seen[0]).__name__ == kind
    for name, value in group.items():
        assert seen[0].param_groups[0][name] == pytest.approx(value)


def test_the_ratio_is_of_mean_excess_losses() -> None:
    losses = {"base": [3.0, 2.0, 4.0], "long warm-up": [2.5, 2.0, 3.0]}  # excess 1 and 1/2
    rows = [
        {"arm": arm, "width": 32, "rate": rate, "loss": loss, "status": "done", "initial loss": 6.0}
        for arm, line in losses.items()
        for rate, loss in zip((0.01, 0.1, 1.0), line, strict=True)
    ]

    class Result:
        study, profile = interventions.interventions, "quick"

        def each_seed(self, statistic, what):  # type: ignore[no-untyped-def]
            return statistic(pd.DataFrame(rows))

    assert interventions._log_ratio(Result(), "long warm-up") == pytest.approx(-0.6931, abs=1e-4)  # type: ignore[arg-type]
