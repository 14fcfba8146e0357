"""AdamP and SGDP: against the authors' package, against torch where nothing is projected, and on a toy whose
growth is known exactly."""

import copy

import pytest
import torch
from torch import nn

from allometry.optim import SGDP, AdamP


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3),
    ).to(dtype)  # fmt: skip


def train(model, optimizer, steps=50, scale=1.0):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        dtype = next(model.parameters()).dtype
        x = torch.randn(16, 1, 8, 8, generator=generator).to(dtype)
        y = torch.randint(3, (16,), generator=generator)
        optimizer.zero_grad()
        (scale * nn.functional.cross_entropy(model(x), y)).backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def assert_equal(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=tolerance, atol=tolerance)


ADAM = [
    {}, {"weight_decay": 0.1}, {"nesterov": True, "weight_decay": 0.01}, {"delta": 0.5, "wd_ratio": 0.3,
    "weight_decay": 0.1}, {"betas": (0.5, 0.9), "eps": 1e-3},
]  # fmt: skip
SGD = [
    {}, {"momentum": 0.9}, {"momentum": 0.9, "weight_decay": 1e-2}, {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.8, "dampening": 0.2, "delta": 1.0, "weight_decay": 1e-2, "wd_ratio": 0.5},
]  # fmt: skip


@pytest.mark.parametrize("options", ADAM, ids=str)
def test_fifty_steps_of_adamp_are_those_of_the_authors_package(options):
    peer = pytest.importorskip("adamp")
    ours, theirs = network(), network()
    mine = train(ours, AdamP(ours.parameters(), lr=3e-3, **options))
    assert_equal(mine, train(theirs, peer.AdamP(theirs.parameters(), lr=3e-3, **options)), 1e-11)


@pytest.mark.parametrize("options", SGD, ids=str)
def test_fifty_steps_of_sgdp_are_those_of_the_authors_package(options):
    peer = pytest.importorskip("adamp")
    ours, theirs = network(), network()

    class Peer(peer.SGDP):  # theirs projects the buffer itself where it is the step: algorithm 1 keeps it
        def _projection(self, p, grad, perturb, *settings):
            return super()._projection(p, grad, perturb.clone(), *settings)

    mine = train(ours, SGDP(ours.parameters(), lr=3e-2, **options))
    assert_equal(mine, train(theirs, Peer(theirs.parameters(), lr=3e-2, **options)), 1e-11)


def adamp(parameters, **options):
    return AdamP(parameters, lr=3e-3, weight_decay=0.1, **options)


def sgdp(parameters, **options):
    return SGDP(parameters, lr=3e-2, momentum=0.9, **options)


@pytest.mark.parametrize("make", [adamp, sgdp])
def test_tensors_stepped_together_are_those_stepped_alone(make):
    one, other = network(), network()
    assert_equal(
        train(one, make(one.parameters())), train(other, make(other.parameters(), foreach=False)), 1e-13
    )


def test_without_projection_they_are_torchs_own():
    ours, theirs = network(), network()
    mine = train(ours, AdamP(ours.parameters(), lr=3e-3, weight_decay=0.1, projection="off"))
    assert_equal(
        mine, train(theirs, torch.optim.AdamW(theirs.parameters(), lr=3e-3, weight_decay=0.1)), 1e-11
    )
    ours, theirs = network(), network()
    mine = train(ours, SGDP(ours.parameters(), lr=3e-2, momentum=0.9, nesterov=True, delta=0.0))
    plain = torch.optim.SGD(theirs.parameters(), lr=3e-2, momentum=0.9, nesterov=True)
    assert_equal(mine, train(theirs, plain), 1e-11)


# --- a weight whose length does not matter ------------------------------------------------------------------
def toy(optimizer_of, steps=60):
    """Squared lengths and steps on ``w' T w / |w|^2``, which depends on the direction of ``w`` alone."""
    torch.manual_seed(2)
    matrix = torch.randn(12, 12, dtype=torch.float64)
    matrix = matrix @ matrix.T
    weight = nn.Parameter(torch.randn(1, 12, dtype=torch.float64))
    optimizer = optimizer_of([weight])
    lengths, pushes = [float((weight.detach() ** 2).sum())], []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (weight @ matrix @ weight.T).sum() / (weight**2).sum()
        loss.backward()
        before = weight.detach().clone()
        optimizer.step()
        pushes.append((weight.detach() - before).flatten())
        lengths.append(float((weight.detach() ** 2).sum()))
    return torch.tensor(lengths, dtype=torch.float64), torch.stack(pushes)


def test_projected_steps_lengthen_a_weight_by_their_own_square():
    lengths, pushes = toy(lambda p: SGDP(p, lr=0.05, momentum=0.9, projection="layer", eps=0.0))
    grown = lengths[0] + (pushes**2).sum(dim=1).cumsum(0)
    assert torch.allclose(lengths[1:], grown, rtol=1e-12)


def test_plain_momentum_lengthens_it_by_its_old_steps_too():
    rate, beta = 0.05, 0.9
    lengths, pushes = toy(lambda p: SGDP(p, lr=rate, momentum=beta, projection="off"))
    square = (pushes**2).sum(dim=1)  # eta^2 |p_t|^2
    old = torch.zeros(())
    for t in range(len(square)):  # the paper's lemma: 2 eta^2 sum of beta^(t-k) |p_k|^2
        assert float(lengths[t + 1] - lengths[t]) == pytest.approx(float(square[t] + 2 * old), rel=1e-9)
        old = beta * (old + square[t])


def test_a_step_points_the_same_way_with_and_without_projection():
    matrix = torch.diag(torch.arange(1.0, 5.0, dtype=torch.float64))
    ends = []
    for projection in ("layer", "off"):
        weight = nn.Parameter(torch.tensor([[3.0, 1.0, 2.0, 1.0]], dtype=torch.float64))
        optimizer = AdamP([weight], lr=1e-5, projection=projection)
        ((weight @ matrix @ weight.T).sum() / (weight**2).sum()).backward()
        optimizer.step()
        ends.append(nn.functional.normalize(weight.detach()))
    assert torch.allclose(*ends, atol=1e-9)
    assert not torch.equal(*ends)


def test_scaling_a_weight_by_c_and_its_rate_by_c_squared_leaves_its_direction():
    def run(scale):
        torch.manual_seed(3)
        matrix = torch.randn(6, 6, dtype=torch.float64)
        weight = nn.Parameter(scale * torch.randn(1, 6, dtype=torch.float64))
        optimizer = SGDP([weight], lr=0.02 * scale**2, momentum=0.9, eps=0.0)
        for _ in range(20):
            optimizer.zero_grad()
            ((weight @ matrix @ weight.T).sum() / (weight**2).sum()).backward()
            optimizer.step()
        return nn.functional.normalize(weight.detach())

    assert torch.allclose(run(1.0), run(7.0), atol=1e-12)


# --- shapes, states, the door -------------------------------------------------------------------------------
def test_channels_of_a_transposed_convolution_are_its_second_dimension():
    torch.manual_seed(4)
    plain = nn.Parameter(torch.randn(5, 3, 2, 2, dtype=torch.float64))
    turned = nn.Parameter(plain.detach().transpose(0, 1).contiguous())
    slope = torch.randn_like(plain)
    plain.grad, turned.grad = slope, slope.transpose(0, 1).contiguous()
    AdamP([plain], lr=0.1, projection="channel", weight_decay=0.1).step()
    AdamP([turned], lr=0.1, projection="channel", weight_decay=0.1, channel_dim=1).step()
    assert torch.allclose(plain.detach(), turned.detach().transpose(0, 1), atol=1e-15)


def test_channels_last_memory_and_maximising_change_nothing():
    one, other = network(), network().to(memory_format=torch.channels_last)
    start = train(one, AdamP(one.parameters(), lr=3e-3))
    assert_equal(start, train(other, AdamP(other.parameters(), lr=3e-3)), 1e-12)
    other = network()
    upwards = AdamP(other.parameters(), lr=3e-3, maximize=True)
    assert_equal(start, train(other, upwards, scale=-1.0), 1e-13)


def test_vectors_are_never_projected():
    vector = nn.Parameter(torch.tensor([3.0, 4.0]))
    vector.grad = torch.tensor([-4.0, 3.0])
    optimizer = AdamP([vector], lr=0.1)
    optimizer.step()
    assert torch.allclose(vector.detach(), torch.tensor([3.1, 3.9]), atol=1e-5)


def test_a_run_goes_on_from_its_state():
    whole, part = network(), network()
    end = train(whole, AdamP(whole.parameters(), lr=3e-3, weight_decay=0.1), steps=20)
    optimizer = AdamP(part.parameters(), lr=3e-3, weight_decay=0.1)
    generator = torch.Generator().manual_seed(1)
    for step in range(20):
        if step == 10:
            stored = copy.deepcopy(optimizer.state_dict())
            optimizer = AdamP(part.parameters(), lr=1.0)
            optimizer.load_state_dict(stored)
        x = torch.randn(16, 1, 8, 8, generator=generator).double()
        y = torch.randint(3, (16,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(part(x), y).backward()
        optimizer.step()
    assert_equal(end, [parameter.detach() for parameter in part.parameters()], 1e-13)


@pytest.mark.parametrize(("ours", "theirs"), [
    (AdamP, lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.1)),
    (SGDP, lambda p: torch.optim.SGD(p, lr=3e-3, momentum=0.9)),
])  # fmt: skip
def test_a_run_begun_with_torchs_optimizer_goes_on(ours, theirs):
    whole, part = network(), network()
    stays, left = theirs(whole.parameters()), theirs(part.parameters())
    train(whole, stays, steps=10)
    train(part, left, steps=10)
    goes_on = ours(part.parameters(), lr=1.0, projection="off")  # all else comes with the state
    goes_on.load_state_dict(left.state_dict())
    assert_equal(train(whole, stays, steps=5), train(part, goes_on, steps=5), 1e-12)


def test_a_copy_of_an_optimizer_steps_as_it_does():
    model = network()
    optimizer = AdamP(model.parameters(), lr=3e-3)
    train(model, optimizer, steps=3)
    same, its_optimizer = copy.deepcopy((model, optimizer))
    assert_equal(train(model, optimizer, steps=3), train(same, its_optimizer, steps=3), 1e-15)


@pytest.mark.parametrize("make", [adamp, sgdp])
@pytest.mark.parametrize("layout", [
    lambda w: w, lambda w: w.contiguous(memory_format=torch.channels_last), lambda w: w[:1].expand_as(w),
    lambda w: w.transpose(0, 1).contiguous().transpose(0, 1),
], ids=["rows", "channels last", "expanded", "turned"])  # fmt: skip
@pytest.mark.parametrize("own", [torch.contiguous_format, torch.channels_last])
def test_how_gradients_lie_in_memory_changes_nothing(make, layout, own):
    torch.manual_seed(6)
    start = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    plain, other = nn.Parameter(start.clone()), nn.Parameter(start.clone(memory_format=own))
    one, two = make([plain]), make([other])
    for step in range(4):
        slope = torch.randn_like(start)
        other.grad = layout(slope) if step % 2 else slope  # and it may change on the way
        plain.grad = other.grad.contiguous()
        one.step(), two.step()
    assert torch.equal(plain.detach(), other.detach())
    assert torch.equal(*(next(iter(each.state.values()))[each._buffers[0]] for each in (one, two)))


def test_weights_without_numbers_are_passed_over():
    empty, full = nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.ones(2, 3))
    empty.grad, full.grad = torch.zeros(0, 3), torch.ones(2, 3)
    AdamP([empty, full], lr=0.1).step()
    assert (full < 1).all()


def test_zero_weights_and_zero_gradients_stay_finite():
    zero = nn.Parameter(torch.zeros(4, 3))
    dead = nn.Parameter(torch.ones(4, 3))
    zero.grad, dead.grad = torch.ones(4, 3), torch.zeros(4, 3)
    AdamP([zero, dead], lr=0.1).step()
    assert torch.isfinite(zero).all()
    assert (zero < 0).all()
    assert torch.equal(dead.detach(), torch.ones(4, 3))


def test_complex_weights_are_stepped_as_pairs_of_numbers():
    weight = nn.Parameter(torch.tensor([[1.0 + 2.0j, -1.0j]]))
    pairs = nn.Parameter(torch.view_as_real(weight.detach()).flatten(1).clone())
    weight.grad = torch.tensor([[0.5 - 1.0j, 1.0 + 0.2j]])
    pairs.grad = torch.view_as_real(weight.grad).flatten(1)
    for one in (weight, pairs):
        AdamP([one], lr=0.1, projection="layer").step()
    assert torch.allclose(torch.view_as_real(weight.detach()).flatten(1), pairs.detach())


@pytest.mark.parametrize("start", [
    torch.randn(4, 6, dtype=torch.complex128).t(), torch.randn((), dtype=torch.complex128),
], ids=["turned", "scalar"])  # fmt: skip
def test_complex_weights_of_any_layout_are_stepped_as_torch_does(start):
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    one, other = AdamP([ours], projection="off"), torch.optim.AdamW([theirs], weight_decay=0.0)
    for _ in range(3):
        slope = torch.randn_like(start)
        ours.grad, theirs.grad = slope.conj().resolve_conj().conj(), slope  # the first is conjugated lazily
        one.step(), other.step()
    assert torch.allclose(ours, theirs, atol=1e-14)


@pytest.mark.parametrize(("options", "said"), [
    ({"lr": -1.0}, "lr must not be negative"), ({"betas": (1.0, 0.9)}, "betas must be"),
    ({"projection": "row"}, "projection must be one of"),
    ({"weight_decay": float("nan")}, "weight_decay must"), ({"eps": -1e-8}, "eps must"),
    ({"betas": (0.9,)}, "betas must be two"), ({"delta": float("nan")}, "delta must be a number"),
])  # fmt: skip
def test_bad_settings_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        AdamP([nn.Parameter(torch.ones(2, 2))], **options)


def test_a_threshold_that_all_rows_pass_is_pointed_out():
    with pytest.warns(RuntimeWarning, match="every one of them passes"):
        AdamP([nn.Parameter(torch.ones(8, 4))], delta=2.0)


def test_shards_are_refused():
    flat = nn.Parameter(torch.ones(8))
    flat._is_flat_param = True
    with pytest.raises(ValueError, match="whole tensors"):
        AdamP([flat])


def test_a_dimension_that_is_not_there_and_sparse_gradients_are_refused():
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.ones(2, 2)
    with pytest.raises(ValueError, match="channel_dim 5 is not a dimension"):
        AdamP([weight], channel_dim=5).step()
    weight.grad = torch.ones(2, 2).to_sparse()
    with pytest.raises(RuntimeError, match="dense gradients"):
        AdamP([weight]).step()
