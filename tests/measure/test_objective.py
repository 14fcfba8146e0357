"""A model's loss as a function of its weights: batches of many kinds, odd models, and what is refused."""

from collections import UserDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from allometry import measure
from allometry.measure.objective import batches_of, each_of, samples_in


class Odd(nn.Module):
    """Tied weights, a number for a weight, a buffer, no biases, named inputs."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(2, 3, 3, bias=False)
        self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
        self.other.weight = self.one.weight
        self.scale = nn.Parameter(torch.tensor(1.3))
        self.register_buffer("shift", torch.tensor(0.1))

    def forward(self, x):
        h = torch.tanh(self.first(x)).mean(-1)
        return self.other(torch.tanh(self.one(h) + self.shift)) * self.scale


def odd(seed=0):
    torch.manual_seed(seed)
    batch = torch.randn(7, 2, 5, dtype=torch.float64), torch.randint(0, 3, (7,))
    return Odd().double(), batch


def dense(model, loss):
    named = dict(model.named_parameters())
    shapes = [one.shape for one in named.values()]

    def along(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        moved = {name: part.view(shape) for name, part, shape in zip(named, parts, shapes, strict=True)}
        return loss(lambda *given: torch.func.functional_call(model, moved, given, tie_weights=True))

    start = torch.cat([one.detach().flatten() for one in named.values()])
    return torch.autograd.functional.hessian(along, start)


@pytest.mark.parametrize("keep", [True, False])
def test_vector_by_vector_and_all_at_once_an_odd_model_has_its_dense_hessian(keep):
    model, (x, y) = odd()
    matrix = dense(model, lambda call: F.cross_entropy(call(x), y))
    curvature = measure.CurvatureOperator(model, F.cross_entropy, (x, y), keep=keep)
    eye = torch.eye(curvature.dim, dtype=torch.float64)
    assert torch.allclose(curvature(eye), matrix, atol=1e-12)
    assert torch.allclose(torch.stack([curvature(v) for v in eye]), matrix, atol=1e-12)


@pytest.mark.parametrize("operator", ["ggn", "gradient covariance"])
def test_a_weight_that_is_one_number_is_no_obstacle(operator):
    model, (x, y) = odd()
    curvature = measure.CurvatureOperator(model, F.cross_entropy, (x, y), operator=operator)
    found = curvature(torch.eye(curvature.dim, dtype=torch.float64))
    assert torch.allclose(found, found.T, atol=1e-12)
    if operator == "gradient covariance":
        each = measure.per_example_gradients(model, F.cross_entropy, (x, y))
        rows = torch.cat([each[name].reshape(7, -1) for name in dict(model.named_parameters())], 1)
        assert torch.allclose(found, torch.cov(rows.T, correction=0), atol=1e-12)
    else:
        assert torch.linalg.eigvalsh(found).min() > -1e-12


def test_mappings_of_any_kind_are_batches():
    model, (x, y) = odd()

    def loss(one, batch):
        return F.cross_entropy(one(batch["x"]), batch["y"])

    wanted = measure.CurvatureOperator(model, F.cross_entropy, (x, y))
    v = torch.randn(wanted.dim, dtype=torch.float64)
    kind = UserDict(x=x, y=y)  # as transformers' BatchEncoding, which torch's trees do not know
    for data in (kind, [kind], {"x": x, "y": y}):
        assert torch.allclose(measure.CurvatureOperator(model, None, data, objective=loss)(v), wanted(v))
    named = measure.CurvatureOperator(model, F.cross_entropy, ({"x": x}, y))
    assert torch.allclose(named(v), wanted(v))
    noise = [
        measure.hessian_noise(model, None, data, objective=loss, k=3) for data in (kind, {"x": x, "y": y})
    ]
    assert noise[0].excess == noise[1].excess
    assert samples_in(kind) == 7
    assert batches_of(kind) == [kind]


def test_recurrent_layers_are_taken_sample_by_sample():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.cell(x)[0][:, -1])

    torch.manual_seed(0)
    model = Last().double()
    x, y = torch.randn(5, 6, 3, dtype=torch.float64), torch.randint(0, 2, (5,))
    found = measure.per_example_gradients(model, F.cross_entropy, (x, y))
    for row in range(5):
        model.zero_grad()
        F.cross_entropy(model(x[row : row + 1]), y[row : row + 1]).backward()
        assert torch.allclose(found["cell.weight_hh_l0"][row], model.cell.weight_hh_l0.grad, atol=1e-12)
    stacked = measure.StackedCurvature(model, F.cross_entropy, (x.view(5, 1, 6, 3), y.view(5, 1)))
    alone = measure.CurvatureOperator(model, F.cross_entropy, (x[2:3], y[2:3]))
    v = torch.randn(stacked.dim, dtype=torch.float64)
    assert torch.allclose(stacked(v)[2], alone(v), atol=1e-12)


def test_rows_are_functions_of_their_own():
    found = each_of(lambda x: {"twice": 2 * x}, torch.arange(3.0), chunk=2)
    assert found["twice"].tolist() == [0.0, 2.0, 4.0]
    with pytest.raises(RuntimeError, match=r"size|shape"):
        each_of(lambda x: x @ torch.ones(3), torch.ones(2, 4))


def test_a_cast_reaches_the_check_too():
    model, (x, y) = odd()
    found = measure.per_example_gradients(model, F.cross_entropy, (x.float(), y), dtype=torch.float64)
    assert found["first.weight"].dtype == torch.float64


def test_dropout_of_a_part_is_found_out():
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2)).eval()
    model[1].train()
    with pytest.raises(ValueError, match="dropout"):
        measure.CurvatureOperator(model, F.cross_entropy, (torch.randn(5, 4), torch.randint(0, 2, (5,))))


def test_what_is_no_mean_over_samples_is_refused():
    model, (x, y) = odd()
    with pytest.raises(ValueError, match="the mean over a batch's samples"):
        measure.CurvatureOperator(model, lambda o, t: F.cross_entropy(o, t, reduction="sum"), (x, y))
    # a mean over tokens, of which samples have different numbers, may stay
    ignoring = y.clone()
    ignoring[3:] = -100
    measure.CurvatureOperator(model, F.cross_entropy, (x, ignoring))


def test_pairs_in_a_list_are_not_taken_for_two_batches():
    square = nn.Linear(5, 5)
    x = torch.randn(7, 5)
    with pytest.raises(ValueError, match="one batch are a tuple, not a list"):
        measure.CurvatureOperator(square, F.mse_loss, [x, 2 * x])


def test_models_without_values_and_losses_that_are_no_number_are_refused():
    model, (x, y) = odd()

    class Told:
        loss = torch.zeros(())

    with pytest.raises(ValueError, match=r"not a Told \(its .loss is\)"):
        measure.CurvatureOperator(model, None, (x, y), objective=lambda one, batch: Told())
    with pytest.raises(ValueError, match="meta device"):
        measure.CurvatureOperator(model.to("meta"), F.cross_entropy, (x, y))
