"""Number formats against the hardware's own types and two independent packages, bit for bit."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from allometry.quant import FloatFormat, IntFormat, get_format  # noqa: E402


def normals(n=1_000_000, scale=1.0, seed=0):
    return scale * torch.randn(n, generator=torch.Generator().manual_seed(seed))


def all_values(dtype):
    codes = torch.arange(256, dtype=torch.uint8).view(dtype).double()
    return codes[codes.isfinite()].unique()


@pytest.mark.parametrize(
    ("exponent", "mantissa", "name"),
    [(2, 1, "float4_e2m1fn"), (2, 3, "float6_e2m3fn"), (3, 2, "float6_e3m2fn")],
)
def test_grids_are_those_of_the_open_compute_element_formats(exponent, mantissa, name):
    dtypes = pytest.importorskip("ml_dtypes")
    codes = np.arange(2 ** (1 + exponent + mantissa), dtype=np.uint8).view(getattr(dtypes, name))
    assert np.array_equal(np.unique(codes.astype(float)), FloatFormat(exponent, mantissa).grid().numpy())


def test_grids_beside_torchs_eight_bit_floats():
    assert torch.equal(all_values(torch.float8_e4m3fn), FloatFormat(4, 3, "nan").grid())
    assert torch.equal(all_values(torch.float8_e5m2), FloatFormat(5, 2, "ieee").grid())
    more = set(FloatFormat(4, 3).grid().tolist()) - set(all_values(torch.float8_e4m3fn).tolist())
    assert more == {-480.0, 480.0}
    more = set(FloatFormat(5, 2).grid().tolist()) - set(all_values(torch.float8_e5m2).tolist())
    assert {one for one in more if one > 0} == {65536.0, 81920.0, 98304.0, 114688.0}


@pytest.mark.parametrize(
    ("name", "positive"),
    [("E2M1", [0.5, 1, 1.5, 2, 3, 4, 6]), ("E1M1", [1, 2, 3]), ("E1M2", [0.5, 1, 1.5, 2, 2.5, 3, 3.5]),
     ("E3M0", [0.25, 0.5, 1, 2, 4, 8, 16]), ("E0M2", [1, 2, 3]), ("E1M0", [2])],
)  # fmt: skip
def test_small_grids_are_the_papers(name, positive):
    assert get_format(name).grid()[get_format(name).grid() > 0].tolist() == positive


@pytest.mark.parametrize(
    "name", ["E2M1", "E4M3FN", "E3M0", "E8M0", "E0M5", "E5M2IEEE", "INT5", "INT3F", "INT4Z"]
)
def test_numbers_of_a_format_stay_and_all_others_go_to_a_nearest_one(name):
    form = get_format(name)
    grid = form.grid()
    grid = grid[grid.abs() < 1e38]
    assert torch.equal(form.round(grid), grid)
    x = normals(20_000, scale=min(form.max, 1e4) / 2, seed=1).double()
    rounded = form.round(x)
    assert torch.isin(rounded, grid).all()
    best = (x[:, None] - grid).abs().amin(1)
    assert torch.equal((rounded - x).abs(), best)
    if len(grid) <= 256:
        assert form.max == grid.max()
        assert form.min == grid.min()


@pytest.mark.parametrize(("mode", "ties"), [("TiesToEven", "even"), ("TiesToAway", "away")])
@pytest.mark.parametrize("name", ["E2M1", "E2M3", "E3M2", "E4M3FN"])
def test_rounding_agrees_with_gfloat_also_at_ties(mode, ties, name):
    gfloat = pytest.importorskip("gfloat")
    formats = pytest.importorskip("gfloat.formats")
    known = getattr(formats, f"format_info_ocp_{name.removesuffix('FN').lower()}")
    form = get_format(name)
    steps = torch.arange(-4000, 4001) * (
        form.lowest * form.fraction / 4
    )  # among them every tie at small numbers
    x = torch.cat(
        [normals(scale=form.max / 3), steps, form.grid().float(), torch.tensor([0.49999997, -0.49999997])]
    )
    middle = 0.5 * (form.grid()[1:] + form.grid()[:-1]).float()
    x = torch.cat([x, middle])
    theirs = gfloat.round_ndarray(known, x.numpy(), getattr(gfloat.RoundMode, mode), sat=True)
    assert np.array_equal(form.round(x, ties).numpy(), theirs)


def test_without_mantissa_bits_ties_go_to_the_even_exponent():
    gfloat = pytest.importorskip("gfloat")
    known = gfloat.FormatInfo(
        "e3m0", k=4, precision=1, bias=3, is_signed=True, domain=gfloat.Domain.Finite, has_nz=True,
        num_high_nans=0, has_subnormals=True, is_twos_complement=False,
    )  # fmt: skip
    x = torch.cat([torch.arange(-20, 20, 0.0625), normals(10_000, 5.0)])
    theirs = gfloat.round_ndarray(known, x.numpy(), gfloat.RoundMode.TiesToEven, sat=True)
    assert np.array_equal(FloatFormat(3, 0).round(x).numpy(), theirs)


def test_rounding_is_torchs_own_cast_where_there_is_one():
    x = normals(scale=100.0).clamp(-448, 448)
    assert torch.equal(x.to(torch.float8_e4m3fn).float(), FloatFormat(4, 3, "nan").round(x))
    x = normals(scale=1e4).clamp(-57344, 57344)
    assert torch.equal(x.to(torch.float8_e5m2).float(), FloatFormat(5, 2, "ieee").round(x))
    spread = 10 ** torch.empty(1_000_000).uniform_(-44, 37, generator=torch.Generator().manual_seed(2))
    x = normals() * spread
    assert torch.equal(x.bfloat16().float(), FloatFormat(8, 7).round(x))
    x = x[x.abs() < 65504]
    assert torch.equal(x.half().float(), get_format("FP16").round(x))
    assert torch.equal(x, FloatFormat(8, 23).round(x))


def test_integers_are_torchs_fake_quantization():
    x = normals(100_000, 4.0)
    for form in (IntFormat(4), IntFormat(8), IntFormat(4, "full")):
        theirs = torch.fake_quantize_per_tensor_affine(x, 1.0, 0, int(form.min), int(form.max))
        assert torch.equal(form.round(x), theirs)


def test_one_exponent_bit_is_an_integer():
    x = normals(100_000, 3.0)
    assert torch.equal(FloatFormat(1, 2).round(x) * 2, IntFormat(4).round(x * 2))
    assert torch.equal(FloatFormat(0, 3).round(x), IntFormat(4).round(x))


def test_stochastic_rounding_is_right_on_average_and_repeats():
    x = torch.full((200_000,), 2.2)

    def draw(seed):
        return FloatFormat(2, 1).round(x, "stochastic", generator=torch.Generator().manual_seed(seed))

    found = draw(0)
    assert set(found.tolist()) == {2.0, 3.0}
    assert abs(float(found.double().mean()) - 2.2) < 4 * 0.4 / math.sqrt(len(x))
    assert torch.equal(found, draw(0))
    assert not torch.equal(found, draw(1))
    with pytest.raises(ValueError, match="generator"):
        FloatFormat(2, 1).round(x, "stochastic")


def test_what_is_not_finite_is_never_saturated():
    x = torch.tensor([math.inf, -math.inf, math.nan, 1e30])
    for form in (FloatFormat(4, 3), IntFormat(8), FloatFormat(3, 0)):
        assert form.round(x).isnan().tolist() == [True, True, True, False]


def test_half_precision_keeps_its_type():
    x = normals(1000).bfloat16()
    assert FloatFormat(2, 1).round(x).dtype == torch.bfloat16
    assert torch.equal(FloatFormat(2, 1).round(x).float(), FloatFormat(2, 1).round(x.float()))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [(lambda: FloatFormat(9, 3), "0 to 8"), (lambda: FloatFormat(4, 24), "0 to 23"),
     (lambda: FloatFormat(0, 0), "zero"),
     (lambda: FloatFormat(4, 3, "inf"), "reserve"), (lambda: FloatFormat(0, 3, "nan"), "reserves no code"),
     (lambda: IntFormat(1), "2 to 16"), (lambda: IntFormat(4, "odd"), "symmetric"),
     (lambda: get_format("FP4"), "E4M3"),
     (lambda: FloatFormat(2, 1).round(torch.arange(3)), "floating"),
     (lambda: FloatFormat(2, 1).round(torch.ones(3), "up"), "ties"),
     (lambda: FloatFormat(8, 23).grid(), "too long")],
)  # fmt: skip
def test_bad_input_is_refused_in_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
