"""Products with second derivatives against dense matrices; samples' gradients against a loop."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, hessian, jacrev

from allometry import measure, models


def small(dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 3)).to(dtype)
    return model, torch.randn(9, 5, dtype=dtype), torch.randint(0, 3, (9,))


def flat(tree):
    return torch.cat([one.reshape(-1) for one in tree.values()])


def dense(model, x, y):
    params = {name: p.detach() for name, p in model.named_parameters()}
    found = hessian(lambda q: F.cross_entropy(functional_call(model, q, (x,)), y))(params)
    rows = [torch.cat([found[a][b].reshape(params[a].numel(), -1) for b in params], 1) for a in params]
    return params, torch.cat(rows)


def random_like(params, *lead):
    return {name: torch.randn(*lead, *p.shape, dtype=p.dtype) for name, p in params.items()}


def test_hessian_products_are_those_of_the_dense_matrix():
    model, x, y = small()
    params, matrix = dense(model, x, y)
    v = random_like(params)
    found = measure.hvp(lambda q: F.cross_entropy(functional_call(model, q, (x,)), y), params, v)
    assert torch.allclose(flat(found), matrix @ flat(v), atol=1e-12)


def test_several_vectors_are_each_as_alone():
    model, x, y = small()
    params, _ = dense(model, x, y)
    loss = lambda q: F.cross_entropy(functional_call(model, q, (x,)), y)  # noqa: E731
    many = random_like(params, 4)
    found = measure.hvp(loss, params, many)
    for k in range(4):
        alone = measure.hvp(loss, params, {name: v[k] for name, v in many.items()})
        assert all(torch.allclose(found[name][k], alone[name], atol=1e-12) for name in params)


def test_gauss_newton_is_the_jacobian_on_both_sides_of_the_output_s_hessian():
    model, x, y = small()
    params = {name: p.detach() for name, p in model.named_parameters()}
    function = lambda q: functional_call(model, q, (x,))  # noqa: E731
    jacobian = jacrev(function)(params)
    j = torch.cat([one.flatten(2) for one in jacobian.values()], 2)
    output = function(params)
    h = hessian(lambda z: F.cross_entropy(z, y))(output)  # (9, 3, 9, 3)
    matrix = torch.einsum("nci,ncmd,mdj->ij", j, h, j)
    v = random_like(params)
    found = measure.ggn_vp(function, lambda z: F.cross_entropy(z, y), params, v)
    assert torch.allclose(flat(found), matrix @ flat(v), atol=1e-12)


def test_gauss_newton_is_the_hessian_of_a_model_that_is_linear_in_its_weights():
    x, w = torch.randn(7, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    v = torch.randn(3, 4, dtype=torch.float64)
    ours = measure.ggn_vp(lambda w: x @ w, lambda z: z.exp().sum(), w, v)
    assert torch.allclose(ours, measure.hvp(lambda w: (x @ w).exp().sum(), w, v), atol=1e-10)


def test_attention_has_second_derivatives():
    torch.manual_seed(1)
    model = models.GPT(
        models.GPTConfig(vocab_size=17, context=6, width=16, depth=1, head_size=8, zero_init_outputs=False)
    ).double()
    tokens = torch.randint(0, 17, (3, 6))
    batch = tokens, tokens.roll(-1, 1)
    loss = lambda z, t: F.cross_entropy(z.flatten(0, 1), t.flatten())  # noqa: E731
    curvature = measure.CurvatureOperator(model, loss, batch)
    v = torch.randn(curvature.dim, dtype=torch.float64)
    one, step = curvature.objective, 1e-5

    def gradient(at):
        params = {name: p.detach().requires_grad_() for name, p in one.split(at).items()}
        return one.join(
            dict(zip(params, torch.autograd.grad(one.loss(params, batch), params.values()), strict=True))
        )

    at = one.join(one.params).detach()
    numerical = (gradient(at + step * v) - gradient(at - step * v)) / (2 * step)
    assert torch.allclose(curvature(v), numerical, atol=1e-6 * float(numerical.abs().max()))


def test_samples_gradients_are_those_of_a_loop_and_their_mean_is_the_batch_s():
    model, x, y = small()
    found = measure.per_example_gradients(model, F.cross_entropy, (x, y), chunk=4)
    for k in range(len(x)):
        model.zero_grad()
        F.cross_entropy(model(x[k : k + 1]), y[k : k + 1]).backward()
        for name, p in model.named_parameters():
            assert torch.allclose(found[name][k], p.grad, atol=1e-12)
    squares = measure.squared_gradients(model, F.cross_entropy, [(x[:6], y[:6]), (x[6:], y[6:])], chunk=4)
    assert all(torch.allclose(squares[name], found[name].square().mean(0), atol=1e-12) for name in found)


def test_an_objective_may_be_anything_that_calls_the_model():
    model, x, y = small()
    batch = {"inputs": x, "labels": y}
    found = measure.per_example_gradients(
        model, None, batch, objective=lambda m, b: F.cross_entropy(m(b["inputs"]), b["labels"])
    )
    plain = measure.per_example_gradients(model, F.cross_entropy, (x, y))
    assert all(torch.allclose(found[name], plain[name]) for name in plain)
    some = measure.per_example_gradients(model, F.cross_entropy, (x, y), include=["2.*"])
    assert list(some) == ["2.weight", "2.bias"]


def test_named_arguments_reach_a_transformers_model():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=11, n_positions=5, n_embd=8, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config).eval()
    tokens = torch.randint(0, 11, (4, 5))
    objective = lambda m, b: m(input_ids=b["input_ids"], labels=b["input_ids"]).loss  # noqa: E731
    curvature = measure.CurvatureOperator(
        model, None, {"input_ids": tokens}, objective=objective, dtype=torch.float64
    )
    u, v = torch.randn(2, curvature.dim, dtype=torch.float64)
    assert float(u @ curvature(v)) == pytest.approx(float(v @ curvature(u)), rel=1e-9)
    each = measure.per_example_gradients(model, None, {"input_ids": tokens}, objective=objective)
    model.zero_grad()
    objective(model, {"input_ids": tokens}).backward()
    for name, p in model.named_parameters():
        assert torch.allclose(each[name].mean(0), p.grad, atol=1e-6), name


REFUSED = {
    "no loss": (lambda m: (m, None), {}, "give loss_fn"),
    "batch norm": (lambda m: (nn.Sequential(m, nn.BatchNorm1d(3)), F.cross_entropy), {}, "norms in training"),
    "dropout": (lambda m: (nn.Sequential(m, nn.Dropout(0.5)), F.cross_entropy), {}, r"dropout.*model\.eval"),
    "frozen": (lambda m: (m.requires_grad_(False), F.cross_entropy), {}, "no parameter that requires"),
    "no such name": (lambda m: (m, F.cross_entropy), {"include": ["9.*"]}, r"matches 9\.\*"),
    "not a mean": (
        lambda m: (m, lambda z, t: F.cross_entropy(z, t, reduction="none")), {}, r"one number, its mean",
    ),
    "not finite": (lambda m: (m, lambda z, t: z.sum() / 0.0), {}, "loss of a batch is"),
    "several kinds": (
        lambda m: (nn.Sequential(m, nn.Linear(3, 3).float()), F.cross_entropy), {}, "of several kinds",
    ),
    "unit": (lambda m: (m, F.cross_entropy), {"unit": "epoch"}, "unit is 'sample' or 'batch'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused_in_a_sentence(case):
    make, options, words = REFUSED[case]
    model, x, y = small()
    with pytest.raises(ValueError, match=words):
        measure.per_example_gradients(*make(model), (x, y), **options)


def test_vectors_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="shapes of the parameters"):
        measure.hvp(lambda w: w.sum(), torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match="shapes of the parameters"):
        measure.hvp(
            lambda w: w[0].sum() + w[1],
            (torch.zeros(3), torch.zeros(())),
            (torch.zeros(2, 3), torch.zeros(())),
        )
