"""The patch forecaster: counts of the paper, invariances, masks, packing."""

import pytest

torch = pytest.importorskip("torch")

from allometry.models import PatchForecaster, stack_parameters  # noqa: E402
from allometry.models.timeseries import standardise  # noqa: E402

KINDS = ("encoder", "decoder")


def forecaster(kind="encoder", **options):
    options = {"patch": 8, "d_model": 24, "layers": 2, "epsilon": 0.0} | options
    model = PatchForecaster(kind=kind, generator=torch.Generator().manual_seed(1), **options)
    with torch.no_grad():  # logits and locations that differ, as after training
        for index, weight in enumerate(model.parameters()):
            weight.mul_(1.5).add_(
                0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(index))
            )
    return model.eval()


def windows(batch=3, patches=9, patch=8, seed=0):
    return 5.0 + 3.0 * torch.randn(batch, patches, patch, generator=torch.Generator().manual_seed(seed))


def last(x, count=3):
    return (torch.arange(x.shape[1]) >= x.shape[1] - count).expand(len(x), -1)


def everywhere(x):
    return torch.ones_like(x, dtype=torch.bool)


def numbers(told):
    """All that a mixture consists of."""
    mixture, component = told.mixture_distribution, told.component_distribution
    return torch.stack([mixture.logits, component.df, component.loc, component.scale])


# Read off the authors' repository; its "10K" counts one of the two layers that its configuration has.
COUNTS = [
    ((8, 1), 872), ((24, 2), 14_040), ((24, 1), 7_032), ((64, 2), 100_928), ((64, 6), 302_656),
    ((192, 4), 1_771_712), ((256, 6), 4_747_264),
]  # fmt: skip
ROUNDED = [
    ((384, 8), 1.41e7), ((512, 12), 3.78e7), ((768, 18), 1.27e8), ((1024, 24), 3.02e8), ((1536, 36), 1.016e9)
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "count"), COUNTS)
def test_the_stack_has_the_paper_s_number_of_parameters(kind, size, count):
    with torch.device("meta"):
        model = PatchForecaster(32, *size, kind=kind)
    named = model.named_parameters()
    assert sum(p.numel() for name, p in named if name.startswith(("layers.", "norm."))) == count
    assert stack_parameters(*size) == count


@pytest.mark.parametrize(("size", "count"), ROUNDED)
def test_large_sizes_agree_with_the_rounded_counts(size, count):
    assert stack_parameters(*size) == pytest.approx(count, rel=5e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["student_t_mixture", "gaussian"])
def test_a_forecast_is_equivariant_to_units(kind, head):
    model, x = forecaster(kind, head=head).double(), windows().double()
    told = model(x, everywhere(x), last(x))
    moved = model(-40.0 + 7.0 * x, everywhere(x), last(x))
    assert torch.allclose(moved.mean, -40.0 + 7.0 * told.mean, rtol=1e-9)
    nats = told.log_prob(x) - moved.log_prob(-40.0 + 7.0 * x)
    assert torch.allclose(nats, torch.log(torch.tensor(7.0)).double().expand_as(nats), atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_gaps_do_not_break_the_equivariance_nor_show_their_filling(kind):
    model, x = forecaster(kind).double(), windows().double()
    seen = torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) > 0.3
    holes = torch.where(seen, x, torch.nan)
    told = model(holes, seen, last(x))
    assert torch.equal(numbers(told), numbers(model(torch.where(seen, x, 1e6), seen, last(x))))
    assert torch.allclose(model(2.0 * holes + 9.0, seen, last(x)).mean, 2.0 * told.mean + 9.0, rtol=1e-9)


def test_an_encoder_sees_nothing_of_what_it_foretells():
    model, x = forecaster("encoder"), windows()
    other = torch.where(last(x)[..., None], 100.0 * windows(seed=9), x)
    assert torch.equal(
        numbers(model(x, everywhere(x), last(x))), numbers(model(other, everywhere(x), last(x)))
    )
    visible = torch.where(last(x, 4)[..., None], 100.0 * windows(seed=9), x)
    assert not torch.allclose(
        numbers(model(x, everywhere(x), last(x))), numbers(model(visible, everywhere(x), last(x)))
    )


@pytest.mark.parametrize("changed", [6, 7, 8])
def test_a_decoder_sees_nothing_of_what_comes(changed):
    model, x = forecaster("decoder"), windows()
    other = x.clone()
    other[:, changed] = windows(seed=9)[:, changed]  # among the last three, which no statistic reads
    before, after = (numbers(model(one, everywhere(x), last(x))) for one in (x, other))
    assert torch.equal(before[:, :, :changed], after[:, :, :changed])
    assert not torch.allclose(before[:, :, changed], after[:, :, changed])


@pytest.mark.parametrize("kind", KINDS)
def test_packed_is_unpacked(kind):
    model = forecaster(kind).double()
    one, two = windows(1, 5).double(), 50.0 * windows(1, 4, seed=2).double()
    packed = torch.cat([one, two], 1)
    number = torch.tensor([[1] * 5 + [2] * 4])
    hidden = torch.cat([last(one, 2), last(two, 1)], 1)
    together = numbers(model(packed, everywhere(packed), hidden, number))
    alone = torch.cat([numbers(model(x, everywhere(x), last(x, k))) for x, k in ((one, 2), (two, 1))], 2)
    # the table of angles is float32, so equal distances are equal to its rounding
    assert torch.allclose(together, alone, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together, numbers(model(packed, everywhere(packed), hidden)))


def test_statistics_are_those_of_numpy_over_what_is_known():
    x = windows(2, 4).double()
    known = torch.rand(x.shape, generator=torch.Generator().manual_seed(5)) > 0.5
    shift, scale = standardise(x, known, epsilon=0.0)
    for row in range(2):
        values = x[row][known[row]].numpy()
        assert shift[row].item() == pytest.approx(values.mean(), rel=1e-12)
        assert scale[row].item() == pytest.approx(values.std(ddof=1), rel=1e-12)


def test_nothing_known_leaves_the_unit_alone():
    x = torch.full((1, 2, 4), torch.nan)
    shift, scale = standardise(x, ~x.isnan())
    assert (shift.item(), scale.item()) == (0.0, 1.0)


def test_half_of_each_head_is_rotated():
    model = PatchForecaster(8, 16, 1)
    turning = (model.sine.abs() > 0).any(0)
    assert int(turning.sum()) == 8
    assert torch.allclose(model.cosine**2 + model.sine**2, torch.ones(512, 16), atol=1e-6)


def test_only_distance_counts_in_attention():
    """Two equal series packed one behind the other are told the same, wherever they stand."""
    model = forecaster("encoder").double()
    x = windows(1, 4).double()
    told = numbers(model(torch.cat([x, x], 1), everywhere(torch.cat([x, x], 1)), last(x, 1).repeat(1, 2),
                         torch.tensor([[0] * 4 + [1] * 4])))  # fmt: skip
    assert torch.allclose(told[:, :, :4], told[:, :, 4:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"d_model": 30}, "multiple of"),
        ({"d_model": 96}, "multiple of 64"),
        ({"kind": "both"}, "'encoder' or 'decoder'"),
        ({"head": "quantile"}, "no head 'quantile'"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"epsilon": -1.0}, "epsilon"),
    ],
)
def test_sizes_that_cannot_be_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        PatchForecaster(**options)


def test_inputs_that_do_not_fit_are_refused():
    model, x = PatchForecaster(8, 8, 1, max_patches=9), windows()
    with pytest.raises(ValueError, match="target must be"):
        model(x[..., :4], everywhere(x), last(x))
    with pytest.raises(ValueError, match="observed must be boolean"):
        model(x, everywhere(x).float(), last(x))
    with pytest.raises(ValueError, match="pred_mask"):
        model(x, everywhere(x), last(x)[:, 1:])
    longer = windows(1, 10)
    with pytest.raises(ValueError, match="max_patches"):
        model(longer, everywhere(longer), last(longer))
