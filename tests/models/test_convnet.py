"""The residual network: shapes, invariances, and that it can fit what only position-free features tell."""

import pytest
import torch
import torch.nn.functional as F

from allometry.models.convnet import ConvNet


@pytest.mark.parametrize("norm", ["batch", "group", None])
@pytest.mark.parametrize(("dims", "shape"), [(1, (40,)), (2, (12, 9))])
def test_shapes(norm, dims, shape):
    model = ConvNet(3, 10, width=16, depth=2, stages=3, dims=dims, norm=norm)
    assert model(torch.randn(4, 3, *shape)).shape == (4, 10)
    assert model.features(torch.randn(4, 3, *shape)).shape == (4, 64)
    assert len(model.blocks) == 6


def test_branches_off_leave_the_shortcuts():
    model = ConvNet(3, 5, width=8, stages=2, norm=None, residual_scale=0.0)
    x = torch.randn(2, 3, 8, 8)
    stream = F.relu(model.blocks[1].shortcut(model.stem(x))).mean(dim=(2, 3))
    torch.testing.assert_close(model(x), model.readout(stream))


def test_blind_to_where_things_are():
    # one stage has no stride, circular shifts of a signal with empty borders shift every activation
    model = ConvNet(1, 4, width=8, stages=1, norm=None, dims=1)
    x = torch.zeros(2, 1, 40)
    x[..., 15:20] = torch.randn(2, 1, 5)
    torch.testing.assert_close(model(x), model(x.roll(7, dims=-1)), rtol=1e-5, atol=1e-6)


def test_examples_do_not_see_each_other_without_batch_norm():
    x = torch.randn(6, 3, 8, 8)
    grouped = ConvNet(3, 5, width=8, norm="group")
    torch.testing.assert_close(grouped(x)[:2], grouped(x[:2]), rtol=1e-5, atol=1e-6)
    batched = ConvNet(3, 5, width=8)
    assert not torch.allclose(batched(x)[:2], batched(x[:2]), atol=1e-3)


def test_learns_texture():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(32) % 2
    rows = torch.randn(32, 1, 8, 1, generator=generator).expand(-1, -1, -1, 8)
    images = torch.where(labels[:, None, None, None] == 1, rows, rows.transpose(2, 3))
    model = ConvNet(1, 2, width=8, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    assert (model(images).argmax(1) == labels).float().mean() > 0.95


def test_one_seed_is_one_model():
    state = torch.get_rng_state()
    models = [ConvNet(1, 2, width=8, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in models), strict=True))


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"width": 0}, "width"),
        ({"dims": 3}, "dims"),
        ({"norm": "layer"}, "norm"),
        ({"norm": "group", "width": 12}, "8"),
    ],
)
def test_bad_input(bad, match):
    with pytest.raises(ValueError, match=match):
        ConvNet(3, 2, **bad)
