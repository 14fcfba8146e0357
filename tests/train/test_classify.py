"""Classifiers learn, and a stack's numbers are those of single models."""

import pytest
import torch
from torch import nn

from allometry.train.classify import classification_loss, evaluate_classifier, train_classifier
from allometry.train.replicas import Stack


class Blobs:
    """Two classes, far apart."""

    def __init__(self, seed):
        self.seed = seed

    def batch(self, step):
        generator = torch.Generator().manual_seed(1000 * self.seed + step)
        labels = torch.randint(0, 2, (32,), generator=generator)
        return torch.randn(32, 4, generator=generator) + 3.0 * labels[:, None], labels


def make(generator):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def generators(n=2):
    return [torch.Generator().manual_seed(seed) for seed in range(n)]


def test_a_stack_is_evaluated_as_its_members():
    models = [make(generator) for generator in generators()]
    images = Blobs(0).batch(0)
    told = evaluate_classifier(Stack(models), images, batch=10)
    for replica, model in enumerate(models):
        alone = evaluate_classifier(model, images)
        assert told["loss"][replica].item() == pytest.approx(alone["loss"].item(), rel=1e-6)
        assert told["error"][replica].item() == alone["error"].item()
        logits = model(images[0])
        assert alone["loss"].item() == pytest.approx(
            nn.functional.cross_entropy(logits, images[1]).item(), rel=1e-6
        )
        assert alone["error"].item() == (logits.argmax(1) != images[1]).float().mean().item()
        assert classification_loss(model, *images).item() == pytest.approx(alone["loss"].item(), rel=1e-6)


def test_training_finds_the_classes_for_every_seed():
    logs = train_classifier(
        make, [Blobs(1), Blobs(2)], validation=Blobs(9).batch(0), generators=generators(), horizons=60,
        learning_rates=0.02,
    )  # fmt: skip
    assert len(logs) == 2
    for log in logs:
        assert log.horizons[-1]["error"] < 0.05
        assert log.horizons[-1]["loss"] < 0.2


def test_labels_must_fit():
    with pytest.raises(ValueError, match="as many labels"):
        evaluate_classifier(nn.Linear(2, 2), (torch.zeros(3, 2), torch.zeros(2, dtype=torch.long)))
