"""Ghost batch norm: one ghost is torch's batch norm, many are as many small batches in a row."""

import copy

import pytest
import torch
from torch import nn

from allometry.models import GhostBatchNorm, GhostBatchNorm1d, GhostBatchNorm2d, convert_ghost_bn_


def norms(dims, channels=5, **options):
    torch.manual_seed(0)
    plain = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d}[dims](channels, **options).double()
    if plain.affine:
        nn.init.normal_(plain.weight)
        nn.init.normal_(plain.bias)
    return plain, convert_ghost_bn_(copy.deepcopy(plain), 4)


def inputs(dims, batch, channels=5):
    generator = torch.Generator().manual_seed(1)
    shape = (batch, channels, 3, 2)[:dims]
    return (torch.randn(shape, generator=generator).double() * 3 + 1).requires_grad_()


@pytest.mark.parametrize("dims", [2, 4])
@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
def test_ghosts_are_small_batches_in_a_row(dims, momentum):
    plain, ghost = norms(dims, momentum=momentum)
    x = inputs(dims, 12)
    theirs = torch.cat([plain(part) for part in x.split(4)])
    (slope,) = torch.autograd.grad(theirs.pow(3).sum(), x)
    ours = ghost(x)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    assert torch.allclose(torch.autograd.grad(ours.pow(3).sum(), x)[0], slope, rtol=0, atol=1e-10)
    assert torch.allclose(ghost.running_mean, plain.running_mean, rtol=0, atol=1e-13)
    assert torch.allclose(ghost.running_var, plain.running_var, rtol=0, atol=1e-13)
    assert ghost.num_batches_tracked == plain.num_batches_tracked == 3


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.1}])
def test_a_ghost_as_large_as_the_batch_is_batch_norm(options):
    plain, ghost = norms(4, **options)
    ghost.ghost_batch_size = 6
    x = inputs(4, 6)
    assert torch.equal(ghost(x), plain(x))
    assert torch.equal(ghost.eval()(x), plain.eval()(x))


def test_a_rest_is_a_ghost_or_joins_its_neighbour():
    plain, ghost = norms(2)
    x = inputs(2, 10)  # 4 + 4 + 2: half a ghost stands alone
    assert torch.allclose(ghost(x), torch.cat([plain(part) for part in x.split([4, 4, 2])]), atol=1e-12)
    plain, ghost = norms(2)
    x = inputs(2, 9)  # 4 + 5
    assert torch.allclose(ghost(x), torch.cat([plain(part) for part in x.split([4, 5])]), atol=1e-12)
    assert torch.allclose(ghost.running_var, plain.running_var, atol=1e-12)
    plain, ghost = norms(2)
    x = inputs(2, 5)  # 5: a single one is no batch of its own
    assert torch.equal(ghost(x), plain(x))
    assert ghost.num_batches_tracked == 1


@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16])
def test_half_precision_comes_out_as_it_went_in(own):
    x = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    plain, ghost = nn.BatchNorm2d(3).to(own), GhostBatchNorm2d(3, 4).to(own)
    theirs = torch.cat([plain(part) for part in x.split(4)])
    assert ghost(x).dtype == theirs.dtype == torch.bfloat16
    assert torch.allclose(ghost.running_var, plain.running_var, rtol=2e-2)


def test_tabnets_ghosts_are_ours():
    peer = pytest.importorskip("pytorch_tabnet.tab_network")
    theirs, ours = peer.GBN(5, virtual_batch_size=4, momentum=0.1), GhostBatchNorm1d(5, 4)
    x = inputs(2, 12).float()
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    assert torch.allclose(ours.running_var, theirs.bn.running_var, atol=1e-6)


def test_a_whole_model_is_converted_and_keeps_its_parameters():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Flatten(), nn.LazyBatchNorm1d())
    )
    model(torch.randn(3, 1, 4, 4))
    before = dict(model.named_parameters())
    assert convert_ghost_bn_(model, 8) is model
    assert isinstance(model[1], GhostBatchNorm2d)
    assert isinstance(model[2][1], GhostBatchNorm1d)
    assert all(one is before[name] for name, one in model.named_parameters())
    assert set(model.state_dict()) >= {"1.running_mean", "2.1.running_var"}


def test_a_norm_that_stands_in_several_places_stays_one_norm():
    norm = nn.BatchNorm1d(3)

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.second = norm
            self.inner = nn.Sequential(nn.Linear(3, 3), norm)

    model = convert_ghost_bn_(Shared(), 2)
    assert isinstance(model.first, GhostBatchNorm1d)
    assert model.first is model.second is model.inner[1]


def test_converting_again_changes_the_size():
    model = convert_ghost_bn_(convert_ghost_bn_(nn.Sequential(nn.BatchNorm1d(3)), 8), 4)
    assert model[0].ghost_batch_size == 4


def test_what_is_not_converted_is_told():
    class Own(nn.BatchNorm2d):
        pass

    with pytest.warns(
        RuntimeWarning, match=r"stay as they are: 1 \(Own\), 2 \(SyncBatchNorm\) in Sequential"
    ):
        convert_ghost_bn_(nn.Sequential(nn.BatchNorm2d(3), Own(3), nn.SyncBatchNorm(3)), 4)
    with pytest.warns(RuntimeWarning, match="there is no batch norm in Linear"):
        convert_ghost_bn_(nn.Linear(3, 3), 4)
    with pytest.raises(ValueError, match="at least one sample"):
        convert_ghost_bn_(nn.Linear(3, 3), 0)


def test_bad_sizes_and_shapes_are_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        GhostBatchNorm(3, 0)
    with pytest.raises(ValueError, match="one value a channel"):
        GhostBatchNorm1d(3, 1)(torch.ones(4, 3))
    with pytest.raises(ValueError, match="expected an input of 4 dimensions"):
        GhostBatchNorm2d(3)(torch.ones(4, 3))
    GhostBatchNorm2d(3, 1)(torch.randn(4, 3, 2, 2))  # one sample has four values here
