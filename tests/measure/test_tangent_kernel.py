"""The layerwise kernel against the Jacobian's product and a peer's; what has no rule; what is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from allometry.measure import empirical_kernel
from allometry.measure import gradient_products as products
from allometry.measure.per_sample import AsFunction
from allometry.measure.tangent_kernel import look


def by_jacobian(model, x, z=None, outputs=None):
    """Θ by torch.func: the whole Jacobian, then the product."""
    values = {name: one.detach() for name, one in model.named_parameters()}

    def of_one(values, *one):
        answer = torch.func.functional_call(model, values, tuple(part[None] for part in one))
        return (answer if outputs is None else outputs(answer)).reshape(-1)

    def jacobian(given):
        given = given if isinstance(given, tuple) else (given,)
        found = torch.func.vmap(torch.func.jacrev(of_one), in_dims=(None, *[0] * len(given)))(values, *given)
        return torch.cat([one.flatten(2) for one in found.values()], 2)

    left = jacobian(x)
    return torch.einsum("nkp,mlp->nmkl", left, left if z is None else jacobian(z))


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.second = nn.Conv2d(4, 6, (3, 2), dilation=(1, 2), groups=2, bias=False)
        self.batch = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)), inplace=True)
        return self.head(torch.tanh(self.batch(self.second(x))).mean((2, 3)))


class Tied(nn.Module):
    """A language model with one table for lookups and logits, positions, attention and a scale of its own."""

    def __init__(self, vocabulary=7, width=6, length=5):
        super().__init__()
        self.table = nn.Embedding(vocabulary, width, padding_idx=0)
        self.places = nn.Embedding(length, width)
        self.norm = nn.LayerNorm(width)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, width))
        self.start = nn.Parameter(torch.linspace(-1, 1, width).reshape(1, 1, width))
        self.query, self.value = nn.Linear(width, width), nn.Linear(width, width, bias=False)

    def forward(self, tokens):
        h = self.table(tokens) + self.places(torch.arange(tokens.shape[1])[None])
        h = self.norm(torch.cat([self.start.expand(len(tokens), -1, -1), h], 1))
        q, v = self.query(h), self.value(h)
        h = h + self.scale * F.scaled_dot_product_attention(q, h, v)
        return F.linear(h[:, -1], self.table.weight)


class Sequence(nn.Module):
    """Time first, samples second, as recurrent and older attention layers have it."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x):
        h = torch.tanh(self.inner(x.transpose(0, 1)))
        return self.head(h)[-1]


def made(kind):
    torch.manual_seed(0)
    if kind == "dense":
        return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)), (
            torch.randn(6, 5)
        )
    if kind == "shared":
        layer = nn.Linear(5, 5)
        return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(5, 2)), torch.randn(6, 5)
    if kind == "convolutional":
        return Convolutional().eval(), torch.randn(6, 3, 9, 8)
    if kind == "tied":
        return Tied(), torch.randint(7, (6, 5))
    if kind == "sequence":
        return Sequence(), torch.randn(6, 6, 3)
    if kind == "attention":
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        return nn.Sequential(layer, nn.Flatten(), nn.Linear(32, 2)), torch.randn(6, 4, 8)
    if kind == "weight norm":
        inner = nn.utils.parametrizations.weight_norm(nn.Linear(5, 7))
        return nn.Sequential(inner, nn.Tanh(), nn.Linear(7, 2)), torch.randn(6, 5)
    raise AssertionError(kind)


KINDS = ("dense", "shared", "convolutional", "tied", "sequence", "attention", "weight norm")


@pytest.mark.parametrize("kind", KINDS)
def test_the_layerwise_kernel_is_the_jacobians(kind):
    model, x = made(kind)
    model, x = model.double(), x.double() if x.is_floating_point() else x
    exact = by_jacobian(model, x)
    found = empirical_kernel(model, x)
    assert torch.allclose(found, exact, rtol=1e-10, atol=1e-12 * float(exact.abs().max()))
    across = empirical_kernel(model, x[:2], x[1:])
    assert torch.allclose(across, exact[:2, 1:], rtol=1e-10, atol=1e-12 * float(exact.abs().max()))
    trace = empirical_kernel(model, x, reduce="trace")
    mean = exact.diagonal(dim1=2, dim2=3).mean(-1)
    assert torch.allclose(trace, mean, rtol=1e-10, atol=1e-12 * float(exact.abs().max()))


@pytest.mark.parametrize("kind", [*KINDS, "recurrent"])
def test_blocks_of_samples_and_rows_change_nothing(kind):
    if kind == "recurrent":
        model, x = Recurrent().double(), torch.randn(6, 4, 3).double()
    else:
        model, x = made(kind)
        model, x = model.double(), x.double() if x.is_floating_point() else x
    whole = empirical_kernel(model, x, reduce="trace")
    parts = empirical_kernel(model, x, reduce="trace", memory=1e-6)
    assert torch.allclose(parts, whole, rtol=1e-11, atol=1e-12 * float(whole.abs().max()))
    assert torch.allclose(whole, whole.mT)


@pytest.mark.parametrize("way", ["positions", "halves", "gradients"])
@pytest.mark.parametrize("kind", ["dense", "shared", "convolutional", "sequence", "attention"])
def test_all_ways_to_multiply_gradients_agree(kind, way, monkeypatch):
    cheapest, taken = products._cheapest, []

    def chosen(ours, theirs, trace, budget):
        taken.append(cheapest(ours, theirs, trace, budget))
        return taken[-1] if trace and way == "halves" else way

    model, x = made(kind)
    model, x = model.double(), x.double()
    exact = by_jacobian(model, x)
    monkeypatch.setattr(products, "_cheapest", chosen)
    monkeypatch.setattr(products, "_IN_CACHE", 2**9)  # several blocks each way
    room = 1e-12 * float(exact.abs().max())
    assert torch.allclose(empirical_kernel(model, x), exact, rtol=1e-10, atol=room)
    assert torch.allclose(empirical_kernel(model, x[:2], x[1:]), exact[:2, 1:], rtol=1e-10, atol=room)
    mean = exact.diagonal(dim1=2, dim2=3).mean(-1)
    assert torch.allclose(empirical_kernel(model, x, reduce="trace"), mean, rtol=1e-10, atol=room)
    assert taken


def test_few_places_and_many_channels_are_multiplied_by_halves(monkeypatch):
    taken, halves = [], products._over_halves

    def noted(ours, theirs):
        taken.append((ours[0].delta.shape[3], ours[0].delta.shape[4], ours[0].alpha.shape[4]))
        return halves(ours, theirs)

    monkeypatch.setattr(products, "_over_halves", noted)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten())
    model = nn.Sequential(model, nn.Linear(256, 6))
    x = torch.randn(8, 8, 4, 4)
    found = empirical_kernel(model, x)
    assert (4, 64, 576) in taken  # the second convolution's weight: places, rows, columns
    exact = by_jacobian(model.double(), x.double())
    assert torch.allclose(found, exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.inner(x)[0][:, -1])


def test_recurrent_weights_have_no_rule_and_get_their_jacobian():
    model, x = Recurrent().double(), torch.randn(3, 4, 3).double()
    plan = look(AsFunction(model), x)
    assert {name.split(".")[0] for name in plan.unknown} == {"inner"}
    rows = []
    for one in x:
        for out in model(one[None])[0]:
            grads = torch.autograd.grad(out, list(model.parameters()), retain_graph=True)
            rows.append(torch.cat([g.flatten() for g in grads]))
    jacobian = torch.stack(rows).reshape(3, 2, -1)
    exact = torch.einsum("nkp,mlp->nmkl", jacobian, jacobian)
    assert torch.allclose(empirical_kernel(model, x), exact, rtol=1e-10)


@pytest.mark.parametrize("kind", ["dense", "shared", "convolutional", "tied", "sequence"])
def test_usual_layers_need_no_jacobian(kind):
    model, x = made(kind)
    assert look(AsFunction(model), x).unknown == {}


class Looking(nn.Module):
    """Reads a weight for a number that no output depends on, and uses another in a way that has no rule."""

    def __init__(self):
        super().__init__()
        self.seen, self.used = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        size = self.seen.weight[0].numel()
        return torch.tanh(self.seen(x) / size) @ self.used.weight[:2].T


class ByHand(nn.Module):
    """Weights turned and reshaped by hand, and a norm whose kernel torch's functions do not show."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(6, 3) / 3)
        self.gain = nn.Parameter(torch.rand(2))
        self.norm = OwnNorm(6, eps=1e-3)

    def forward(self, x):
        h = self.norm(x @ self.first.T).reshape(len(x), -1, 2, 3) * self.gain[:, None]
        return torch.tanh(torch.tanh(h.flatten(2)) @ self.first).sum(1)


class OwnNorm(nn.LayerNorm):
    def forward(self, x):
        return Hidden.apply(x, self.weight, self.bias, self.eps)


class Hidden(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, bias, eps):
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:3])
        ctx.eps = inputs[3]

    @staticmethod
    def backward(ctx, gradient):
        with torch.enable_grad():
            leaves = [one.detach().requires_grad_() for one in ctx.saved_tensors]
            out = F.layer_norm(leaves[0], leaves[1].shape, leaves[1], leaves[2], ctx.eps)
        return (*torch.autograd.grad(out, leaves, gradient), None)


class WrongNorm(nn.LayerNorm):
    """Looks like a norm and is none."""

    def forward(self, x):
        return Twice.apply(x, self.weight)


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(x, weight):
        return 2 * x * weight

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return 2 * gradient * weight, (2 * gradient * x).flatten(0, -2).sum(0)


def by_samples(model, x):
    rows = []
    for one in x:
        for out in model(one[None]).flatten():
            grads = torch.autograd.grad(out, list(model.parameters()), retain_graph=True)
            rows.append(torch.cat([g.flatten() for g in grads]))
    jacobian = torch.stack(rows).reshape(len(x), -1, rows[0].numel())
    return torch.einsum("nkp,mlp->nmkl", jacobian, jacobian)


def test_weights_turned_by_hand_and_hidden_norms_are_understood():
    torch.manual_seed(0)
    model, x = ByHand().double(), torch.randn(5, 4, 3).double()
    assert look(AsFunction(model), x).unknown == {}
    assert torch.allclose(empirical_kernel(model, x), by_samples(model, x), rtol=1e-10, atol=1e-12)
    parts = empirical_kernel(model, x, memory=1e-5)
    assert torch.allclose(parts, by_samples(model, x), rtol=1e-10, atol=1e-12)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_layer_that_is_not_what_its_class_says_is_found_out():
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(3, 4), WrongNorm(4, bias=False), nn.Linear(4, 2)).double(),
        torch.randn(5, 3).double(),
    )
    assert set(look(AsFunction(model), x).unknown) == {"1.weight"}
    assert torch.allclose(empirical_kernel(model, x), by_samples(model, x), rtol=1e-10)


def test_only_uses_that_outputs_depend_on_count():
    torch.manual_seed(0)
    model, x = Looking().double(), torch.randn(5, 3).double()
    assert set(look(AsFunction(model), x).unknown) == {"used.weight"}
    assert torch.allclose(empirical_kernel(model, x), by_jacobian(model, x), rtol=1e-10)


def test_language_models_of_transformers_need_no_jacobian():
    transformers = pytest.importorskip("transformers")
    small = {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(0)
    gpt = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_positions=8, n_embd=8, n_layer=1, n_head=2, **small)
    )
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(hidden_size=8, intermediate_size=12, num_hidden_layers=1,
                                 num_attention_heads=2, **small)
    )  # fmt: skip
    tokens = torch.randint(20, (4, 6))
    for model in (gpt.eval().double(), llama.eval().double()):
        last = lambda answer: answer.logits[:, -1, :3]  # noqa: E731
        assert look(AsFunction(model, outputs=last), {"input_ids": tokens}).unknown == {}
        exact = by_jacobian(model, tokens, outputs=last)
        found = empirical_kernel(model, {"input_ids": tokens}, outputs=last)
        assert torch.allclose(found, exact, rtol=1e-8, atol=1e-10 * float(exact.abs().max()))


def test_a_peer_agrees():
    nngeometry = pytest.importorskip("nngeometry")
    model, x = made("dense")
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(len(x))), batch_size=3)
    gram = nngeometry.GramMatrix(model, data, lambda *one: model(one[0])).data  # (k, N, k, N)
    found = empirical_kernel(model, x)
    assert torch.allclose(gram.permute(1, 3, 0, 2).double(), found, rtol=1e-5, atol=1e-5 * float(found.max()))


def test_a_kernel_is_positive_and_blind_to_the_order_of_units():
    model, x = made("dense")
    model, x = model.double(), x.double()
    kernel = empirical_kernel(model, x).permute(0, 2, 1, 3).reshape(18, 18)
    values = torch.linalg.eigvalsh(kernel)
    assert values[0] >= -1e-10 * values[-1]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight[order])
        model[0].bias.copy_(model[0].bias[order])
        model[2].weight.copy_(model[2].weight[:, order])
    again = empirical_kernel(model, x).permute(0, 2, 1, 3).reshape(18, 18)
    assert torch.allclose(again, kernel, rtol=1e-11, atol=1e-12)


def test_chosen_parameters_alone_and_the_user_s_model_untouched():
    model, x = made("dense")
    model.double()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    last = empirical_kernel(model, x.double(), params="4.*", reduce="trace")
    with torch.no_grad():
        features = model[:4](x.double())
    assert torch.allclose(last, features @ features.T + 1, rtol=1e-12)  # random features and a bias
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert all(one.grad is None and one.requires_grad for one in model.parameters())
    for name, one in model.named_parameters():
        one.requires_grad_(name.startswith("4."))
    assert torch.allclose(empirical_kernel(model, x.double(), reduce="trace"), last)


def test_single_precision_is_as_good_as_the_jacobian_s():
    model, x = made("dense")
    exact = by_jacobian(model.double(), x.double())
    ours, theirs = empirical_kernel(model.float(), x), by_jacobian(model.float(), x)
    scale = float(exact.abs().max())
    assert float((ours - exact).abs().max()) < 2 * float((theirs - exact).abs().max()) + 1e-7 * scale


def test_memory_does_not_hold_the_jacobian():
    """A width at which the Jacobian of 64 samples would take 1 GB runs within 100 MB."""
    model, x = nn.Sequential(nn.Linear(8, 2000), nn.ReLU(), nn.Linear(2000, 2000), nn.ReLU(),
                             nn.Linear(2000, 1)), torch.randn(64, 8)  # fmt: skip
    with torch.profiler.profile(profile_memory=True) as seen:
        empirical_kernel(model, x)
    grown = [event.cpu_memory_usage for event in seen.events()]
    assert max(grown) < 20e6


# --- what is refused ----------------------------------------------------------------------------------------
class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x):
        return self.inner(x - x.mean(0))


def test_models_without_a_kernel_are_refused():
    x = torch.randn(5, 3)
    with pytest.raises(ValueError, match=r"batch normalization .* model\.eval\(\)"):
        empirical_kernel(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), x)
    with pytest.raises(ValueError, match=r"dropout is active.*model\.eval\(\)"):
        empirical_kernel(nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)), x)
    with pytest.raises(ValueError, match="other samples of the batch"):
        empirical_kernel(Centred(), x)
    with pytest.raises(ValueError, match=r"takes 7\.4 GiB.*kernel_operator"):
        empirical_kernel(nn.Linear(3, 10), torch.randn(3162, 3))
    with pytest.raises(ValueError, match="no parameter matches 'head'"):
        empirical_kernel(nn.Linear(3, 1), x, params="head")
    with pytest.raises(ValueError, match="reduce is 'full' or 'trace'"):
        empirical_kernel(nn.Linear(3, 1), x, reduce="sum")
    with pytest.raises(ValueError, match="outputs= to choose"):
        empirical_kernel(nn.Sequential(nn.Linear(3, 2), nn.Flatten(0)), x)
    with pytest.raises(ValueError, match="not finite"):
        empirical_kernel(nn.Linear(3, 1), torch.cat([x, x.new_full((1, 3), float("nan"))]))
    with pytest.raises(ValueError, match=r"a torch\.nn\.Module; got function"):
        empirical_kernel(lambda x: x, x)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        empirical_kernel(nn.Linear(3, 1), x)


def test_wrapped_models_are_looked_into():
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    assert torch.equal(empirical_kernel(nn.DataParallel(model), x), empirical_kernel(model, x))
