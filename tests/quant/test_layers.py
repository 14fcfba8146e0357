"""Six switches against the matrix products written out; swapping in models; replicas of other formats."""

import itertools

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from allometry import models, train  # noqa: E402
from allometry.quant import Quantizer, QuantLinear, dequantize, qat  # noqa: E402

PRODUCTS = ("P1", "P2", "P3", "P4", "P5", "P6")
BLOCKS = {
    "weight": Quantizer("E2M1", 8),
    "activation": Quantizer("E4M3", 4),
    "gradient": Quantizer("E1M1", "tensor"),
}


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(products, bias=True, dtype=None):
    linear = nn.Linear(20, 12, bias=bias)
    with torch.no_grad():
        linear.weight.copy_(normals(12, 20, seed=5))
    made = QuantLinear.from_linear(
        linear.to(dtype), weight_quantizer=BLOCKS["weight"], activation=BLOCKS["activation"],
        gradient=BLOCKS["gradient"], products=products,
    )  # fmt: skip
    assert made.weight is linear.weight
    return made


@pytest.mark.parametrize("products", [(), *((one,) for one in PRODUCTS), ("P2", "P4", "P6"), PRODUCTS])
def test_each_switch_rounds_its_own_input_and_no_other(products):
    made, x, upstream = layer(products), normals(3, 7, 20).requires_grad_(), normals(3, 7, 12, seed=1)
    weight, rows, dy = made.weight.detach(), x.detach().reshape(-1, 20), upstream.reshape(-1, 12)
    rounded = {
        "P1": BLOCKS["activation"](rows), "P2": BLOCKS["weight"](weight), "P3": BLOCKS["gradient"](dy),
        "P4": BLOCKS["weight"](weight), "P5": BLOCKS["gradient"](dy), "P6": BLOCKS["activation"](rows),
    }  # fmt: skip
    plain = {"P1": rows, "P2": weight, "P3": dy, "P4": weight, "P5": dy, "P6": rows}
    p = {name: rounded[name] if name in products else plain[name] for name in PRODUCTS}
    y = made(x)
    y.backward(upstream)
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(y.detach().reshape(-1, 12), p["P1"] @ p["P2"].T + made.bias.detach(), **close)
    torch.testing.assert_close(x.grad.reshape(-1, 20), p["P3"] @ p["P4"], **close)
    torch.testing.assert_close(made.weight.grad, p["P5"].T @ p["P6"], **close)
    torch.testing.assert_close(made.bias.grad, dy.sum(0), **close)


def test_without_products_and_with_a_format_as_wide_as_float32_it_is_the_linear_layer():
    x = normals(5, 20)
    made = layer(())
    linear = made.to_linear()
    torch.testing.assert_close(made(x), linear(x), rtol=1e-5, atol=1e-6)
    wide = QuantLinear.from_linear(linear, weight_quantizer="E8M22", products=PRODUCTS)
    torch.testing.assert_close(wide(x), linear(x), rtol=1e-5, atol=1e-6)


def test_the_weight_gradient_passes_through_the_rounding_of_quantization_aware_training():
    """P1, P2, P4 and P6 are what autograd makes of a linear layer on straight-through tensors."""
    made, x = layer(("P1", "P2", "P4", "P6")), normals(9, 20).requires_grad_()
    made(x).square().sum().backward()
    found = x.grad.clone(), made.weight.grad.clone()
    x.grad = made.weight.grad = None
    y = nn.functional.linear(BLOCKS["activation"](x), BLOCKS["weight"](made.weight), made.bias)
    y.square().sum().backward()
    torch.testing.assert_close(found[0], x.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], made.weight.grad, rtol=1e-4, atol=1e-4)


def byte_model(form, seed=0, products=("P2", "P4", "P6")):
    config = models.GPTConfig(width=32, depth=1, context=16, zero_init_outputs=False)
    made = models.GPT(config, generator=torch.Generator().manual_seed(seed))
    return made if form is None else qat(made, Quantizer(form, 16, ties="away"), products=products)


def test_a_language_model_keeps_its_head_its_names_and_its_parameters():
    plain, made = byte_model(None), byte_model("E2M1")
    assert list(plain.state_dict()) == list(made.state_dict())
    changed = {name for name, one in made.named_modules() if isinstance(one, QuantLinear)}
    inside = ("attention.qkv", "attention.out", "feed_forward.up", "feed_forward.down")
    assert changed == {f"blocks.0.{one}" for one in inside}
    tokens = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(0))
    assert (plain(tokens) - made(tokens)).abs().max() > 1e-3
    kept = dict(made.named_parameters())
    assert torch.equal(dequantize(made)(tokens), plain(tokens))
    assert all(one is kept[name] for name, one in made.named_parameters())
    assert not any(isinstance(one, QuantLinear) for one in made.modules())


@pytest.mark.parametrize("products", [("P2", "P4", "P6"), PRODUCTS])
def test_replicas_of_different_formats_train_as_each_would_alone(products):
    formats = ("E1M1", "E2M1", "E3M0", "E4M3")
    inputs = torch.randint(256, (4, 2, 16), generator=torch.Generator().manual_seed(1))

    def trained(model, x, loss):
        rate = 0.5
        for _ in range(3):
            found = loss(model, x)
            model.zero_grad()
            found.sum().backward()
            with torch.no_grad():
                for one in model.parameters():
                    one -= rate * one.grad
        return loss(model, x).detach()

    together = train.Stack([byte_model(form, products=products) for form in formats])
    stacked = trained(together, inputs, lambda model, x: model.losses(x, x))
    assert together.untraced is None
    alone = [
        trained(byte_model(form, products=products), x, lambda model, x: train.next_token_loss(model, x, x))
        for form, x in zip(formats, inputs, strict=True)
    ]
    torch.testing.assert_close(stacked, torch.stack(alone), rtol=2e-5, atol=0)
    assert min((a - b).abs() for a, b in itertools.combinations(stacked, 2)) > 1e-4
    lone = together.unstack(2)
    assert "another replica" in repr(lone)
    torch.testing.assert_close(
        train.next_token_loss(lone.double().float(), inputs[2], inputs[2]), stacked[2], rtol=1e-5, atol=0
    )


def test_a_stack_of_forward_only_agrees_too():
    stack = train.Stack([byte_model("E1M1", 0), byte_model("E4M3", 1)])
    tokens = torch.randint(256, (2, 3, 16), generator=torch.Generator().manual_seed(2))
    for replica in range(2):
        torch.testing.assert_close(
            stack(tokens)[replica], stack.unstack(replica)(tokens[replica]), rtol=1e-4, atol=1e-5
        )


def test_layers_used_twice_stay_one_and_attention_of_torch_is_left_alone():
    shared = nn.Linear(8, 8)
    model = qat(nn.Sequential(shared, nn.ReLU(), shared), "E2M1")
    assert model[0] is model[2]
    assert isinstance(model[0], QuantLinear)
    block = nn.TransformerEncoderLayer(8, 2, 16)
    qat(block, "E2M1")
    assert isinstance(block.linear1, QuantLinear)
    assert not isinstance(block.self_attn.out_proj, QuantLinear)


def test_other_dtypes_and_autocast():
    made = layer(("P2", "P4", "P6"), dtype=torch.bfloat16)
    assert made.numbers.dtype == torch.float32
    x = normals(5, 20).bfloat16().requires_grad_()
    y = made(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == made.weight.grad.dtype == torch.bfloat16
    made = layer(("P2",))
    with torch.autocast("cpu", torch.bfloat16):
        assert made(normals(5, 20)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("make", "sentence"),
    [(lambda: layer(("P7",)), "P7"), (lambda: qat(nn.ReLU(), "E2M1"), "no nn.Linear"),
     (lambda: qat(nn.Sequential(nn.Linear(2, 2)), "E2M1", skip=["0"]), "left alone"),
     (lambda: qat(nn.Sequential(nn.Linear(2, 2)), "INT4Z"), "symmetric"),
     (lambda: qat(nn.Sequential(nn.Linear(2, 2)), Quantizer("E2M1", dim=0)), "last dimension"),
     (lambda: qat(nn.Sequential(nn.Linear(2, 2)), Quantizer("E2M1", clip="mse")), "cover the largest"),
     (lambda: layer(())(torch.ones(3, 19)), "takes 20 features")],
)  # fmt: skip
def test_bad_input_is_refused_in_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
