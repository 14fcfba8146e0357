"""The entry's trials say what theory says, where theory says it exactly or nearly so."""

import numpy as np
import pandas
import pytest
import torch

from allometry.data.images import Images, digits
from allometry.init import ABC
from allometry.optim import Role
from allometry.papers import entry
from allometry.papers import mup_feature_learning as mup
from allometry.study import Arm, Result
from allometry.train import Seeds

WIDTHS = (128, 360, 1024)


def test_the_entry_is_found_and_its_thresholds_are_written_down():
    found = entry("mup-feature-learning")
    assert found is mup.paper
    assert [one.name.partition("/")[2] for one in found.studies] == ["movement", "ceiling", "probe", "limit"]
    for study in found.studies:
        assert set(study.profiles) == {"tiny", "quick", "full"}
        for claim in study.claims:
            assert claim.where
            assert claim.threshold


def moved(name, c, width, seed, only=None, steps=3):
    """Movement of the last features, in float64, of all layers or of one that trains alone."""
    images = Images(digits().images.double(), digits().labels)
    arm = Arm(name, {"preset": name, "c": c})
    model, roles, _ = mup._network(arm, width, 64, images, "tanh", seed)
    if only is not None:
        roles = {key: role if key == only else Role(0.0) for key, role in roles.items()}
    model, probe = model.double(), images.images[:256]
    with torch.no_grad():
        before = model.features(probe)
    mup._trained(model, images, rate=0.1, steps=steps, batch=64, seed=seed, roles=roles)
    with torch.no_grad():
        return mup._size(model.features(probe) - before)


def exponent(name, c=None, **settings):
    sizes = [[moved(name, c, width, seed, **settings) for seed in (7, 8, 9)] for width in WIDTHS]
    return float(np.polyfit(np.log(WIDTHS), np.log(sizes).mean(1), 1)[0])


@pytest.mark.parametrize(("name", "c"), [("ntp", None), ("mup", None)])
def test_features_move_by_the_exponent_that_was_computed_before(name, c):
    # not in the first few steps, whose errors hold the first logits, which shrink like width^(-1/2)
    assert exponent(name, c, steps=20) == pytest.approx(-ABC.preset(name, 2, c=c).analyze().r, abs=0.1)


@pytest.mark.parametrize(("only", "power"), [("hidden.0.weight", -1.5), ("hidden.1.weight", -0.5)])
def test_each_layer_moves_them_by_its_own(only, power):
    """r is the least of these; the first layer's part is what bends the slope of standard parametrization."""
    assert ABC.preset("sp", 2, c=1).analyze().r == 0.5
    assert exponent("sp", 1.0, only=only) == pytest.approx(power, abs=0.1)


def test_arms_are_one_network_at_the_narrowest_width():
    told = [
        mup.movement.call(arm, (64, "tanh"), 3, mup.movement.profile("quick")) for arm in mup.movement.arms
    ]
    assert len({one["movement"] for one in told}) == len({one["loss"] for one in told}) == 1


def test_a_member_of_the_limit_strays_less_when_wider():
    profile = mup.limit.profile("quick")
    near, far = (mup.limit.call("biases", (width,), 1, profile)["distance"] for width in (4096, 256))
    assert 2 < far / near < 8  # 4, and noise
    assert mup.limit.call("biases", (256,), 1, profile)["distance"] == far


def test_a_perceptron_has_a_ceiling_and_two_steps_below_it_do_not_diverge():
    profile = mup.ceiling.profile("quick")
    told = mup.ceiling.call("maximal update", (128,), 0, profile)
    below, above = told["largest stable rate"], told["lowest unstable rate"]
    assert 1 < above / below <= profile.factor
    for rate, lost in ((below, False), (above, True)):
        model, roles, _ = mup._network(mup.ceiling.arms["maximal update"], 128, 128, digits(), "tanh", 0)
        settings = {"steps": profile.steps, "batch": profile.batch, "seed": 0, "roles": roles}
        assert (mup._trained(model, digits(), rate=rate, **settings)[1] is not None) == lost


def test_few_shots_are_judged_on_other_images_and_separable_ones_are_told_apart():
    labels = torch.arange(5).repeat(40)
    noise = torch.randn(200, 30, generator=Seeds(0).generator("noise"))
    clusters = noise * 0.1 + torch.eye(5, 30)[labels] * 3
    assert mup._few_shot(clusters, labels, torch.arange(25), torch.arange(25, 200)) == 1.0
    assert abs(mup._few_shot(noise, labels, torch.arange(25), torch.arange(25, 200)) - 0.2) < 0.12


def gains(values):
    """A result whose gains are given as {(arm, width): gain}, the same for three seeds but for a hair."""
    rows = [
        {"arm": arm, "width": width, "images": "digits", "seed": seed, "gain": gain + 1e-4 * seed,
         "run": f"{arm}{width}{seed}", "status": "done"}
        for (arm, width), gain in values.items() for seed in range(3)
    ]  # fmt: skip
    return Result(mup.probe, "quick", pandas.DataFrame(rows))


@pytest.mark.parametrize(
    ("tangent", "maximal", "outcomes"),
    [
        ((0.1, 0.02), (0.1, 0.09), ["holds", "holds", "holds"]),
        ((0.1, 0.12), (0.1, 0.03), ["contradicted", "contradicted", "contradicted"]),
        ((-0.1, -0.01), (-0.1, -0.1), ["undecided", "undecided", "holds"]),
    ],
)
def test_gains_are_judged_as_was_promised(tangent, maximal, outcomes):
    found = gains({
        ("neural tangent", 128): tangent[0], ("neural tangent", 512): tangent[1],
        ("maximal update", 128): maximal[0], ("maximal update", 512): maximal[1],
    })  # fmt: skip
    assert [str(one.outcome) for one in found.verdicts] == [*outcomes, *["undecided"] * 3]
