"""ResNet-RS's recipe: its numbers, what decays, and that averaged statistics follow averaged weights."""

import pytest
import torch
from torch import nn

from allometry import train
from allometry.models import resnet_rs, resnet_rs_config
from allometry.train import resnet_rs_recipe_


def _model():
    return resnet_rs((1, 1), base_width=8, stem="deep_tiny", resolution=8, classes=3, dropout=0.0)


def test_the_released_run_has_its_steps_and_rate():
    """350 epochs of ImageNet in batches of 4096 are 109,475 steps, at a rate of 1.6."""
    recipe = resnet_rs_recipe_(nn.Linear(2, 2), train_size=1_281_167, batch=4096, epochs=350)
    assert (recipe.steps, recipe.learning_rate) == (109_475, 1.6)
    assert recipe.schedule(1564, recipe.steps) == pytest.approx(1.0, abs=1e-5)  # five epochs of warm-up
    assert recipe.schedule(782, recipe.steps) == pytest.approx(0.5, abs=0.01)
    assert recipe.schedule(recipe.steps, recipe.steps) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("depth", "resolution", "magnitude"), [(50, 160, 10), (101, 160, 10), (101, 192, 15), (420, 320, 15)]
)
def test_augmentation_grows_with_the_images(depth, resolution, magnitude):
    """As the eleven released configurations have it."""
    with torch.device("meta"):
        model = resnet_rs_config(depth, resolution).build()
    recipe = resnet_rs_recipe_(model, train_size=100, batch=10, epochs=2, average=None)
    assert (recipe.augment.layers, recipe.augment.magnitude) == (2, magnitude)
    assert resnet_rs_recipe_(
        nn.Linear(2, 2), train_size=100, batch=10, epochs=2, resolution=resolution
    ).augment == (recipe.augment)


def test_norms_alone_do_not_decay():
    model = _model()
    recipe = resnet_rs_recipe_(model, train_size=100, batch=10, epochs=2)
    decay = {id(p): group["weight_decay"] for group in recipe.optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            assert decay[id(parameter)] == (0.0 if isinstance(module, nn.BatchNorm2d) else 4e-5)


def test_a_step_of_decay_is_an_l2_term_with_a_half():
    """TensorFlow's l2_loss is half of the squared norm, so SGD with the same number does the same."""
    layer = nn.Linear(3, 2)
    recipe = resnet_rs_recipe_(layer, train_size=256, batch=256, epochs=1, weight_decay=0.5, average=None)
    before = layer.weight.detach().clone()
    (0.0 * layer.weight.sum() + 0.0 * layer.bias.sum()).backward()
    recipe.optimizer.step()
    expected = before - 0.1 * 1.9 * 0.5 * before  # Nesterov's first step is 1 + 0.9 times the gradient
    torch.testing.assert_close(layer.weight.detach(), expected)


def test_statistics_are_smoothed_once():
    """Each step replaces the running mean; only the average remembers."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(1)
    resnet_rs_recipe_(norm, train_size=4, batch=4, epochs=1)
    for value in (1.0, 5.0):
        norm(torch.full((4, 1), value))
        assert norm.running_mean.item() == value
    kept = nn.BatchNorm1d(1)
    resnet_rs_recipe_(kept, train_size=4, batch=4, epochs=1, average=None)
    assert kept.momentum == 0.1


def test_it_trains():
    """Three classes told apart by one pixel: averaged weights make no error in 40 steps."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (64,), generator=generator)
    images = torch.randn(64, 3, 8, 8, generator=generator) * 0.1
    images[torch.arange(64), labels] += 1.0
    model = _model()
    recipe = resnet_rs_recipe_(model, train_size=64, batch=64, epochs=40, rate_per_256=1.0)

    class Source:
        def batch(self, step):
            return images, labels

    log = train.fit(
        model, Source(), horizons=recipe.steps, **recipe.settings,
        validate=lambda one: train.evaluate_classifier(one, (images, labels)),
    )  # fmt: skip
    assert log.horizons[-1]["averaged_error"] == 0.0


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="between 1 and the 10 images"):
        resnet_rs_recipe_(nn.Linear(2, 2), train_size=10, batch=11, epochs=1)
    with pytest.raises(ValueError, match="epochs must be"):
        resnet_rs_recipe_(nn.Linear(2, 2), train_size=10, batch=5, epochs=0)
