"""A stack of models trains each of them as if it were alone."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allometry.models import GPT, GPTConfig
from allometry.optim import WSD
from allometry.optim.adamw import AdamWIndependent
from allometry.train import Checkpointer, DivergenceRule, fit
from allometry.train.stack import Stack, cross_entropy, fit_stack, stack_speedup


class Network(nn.Module):
    """A perceptron whose batch norm has running statistics, and a tied pair of matrices."""

    def __init__(self, seed: int, *, norm: bool = True) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Linear(6, 8, bias=False)  # its gradient before a batch norm is rounding noise
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()
        self.second = nn.Linear(8, 8)
        self.last = nn.Linear(8, 5)
        for parameter in self.parameters():
            parameter.data.normal_(0.0, 0.4, generator=generator)
        self.second.bias = None

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.norm(self.first(x)).tanh()).relu())


def gpt(seed: int, width: int = 16, **settings: object) -> GPT:
    config = GPTConfig(width=width, depth=1, context=40, vocab_size=32, **settings)
    model = GPT(config, generator=torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(100 + seed)
    with torch.no_grad():  # zeros would hide errors in what stands before them
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0.0, 0.05, generator=generator)
    return model


def tokens(replicas: int, steps: int, seed: int = 0) -> Tensor:
    return torch.randint(32, (steps, replicas, 2, 41), generator=torch.Generator().manual_seed(seed))


def parameters_differ(stack: Stack, models: list[nn.Module]) -> float:
    return max(
        float((mine - theirs).abs().max())
        for replica, model in enumerate(models)
        for mine, theirs in zip(
            stack.unstack(replica).state_dict().values(), model.state_dict().values(), strict=True
        )
    )


def train_alone(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: list, clip: float = 1.0
) -> list[float]:
    losses = []
    for inputs, targets in data:
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def train_stacked(stack: Stack, optimizer: torch.optim.Optimizer, data: list, clip: float = 1.0) -> Tensor:
    losses = []
    for inputs, targets in data:
        loss = stack.losses(inputs, targets)
        loss.sum().backward()
        stack.clip_grad_norm(clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


OPTIMIZERS = {
    "sgd": lambda model, rate: torch.optim.SGD(
        model.parameters(), 10 * rate, momentum=0.9, weight_decay=0.01
    ),
    "adamw": lambda model, rate: torch.optim.AdamW(model.parameters(), rate, weight_decay=0.1),
    "independent": lambda model, rate: AdamWIndependent(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.01},
            {"params": [p for p in model.parameters() if p.ndim < 2], "lr": rate / 2},
        ],
        rate,
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    ("rates", "chunk"), [([1e-3] * 3, 1), ([1e-3, 3e-3, 5e-4], 3)], ids=["one rate", "own rates"]
)
def test_twenty_steps_of_a_gpt_equal_single_runs(name: str, rates: list[float], chunk: int) -> None:
    models = [gpt(seed) for seed in range(3)]
    stack = Stack(models, chunk=chunk)
    data = tokens(3, 20)
    losses = train_stacked(
        stack, stack.optimizer(OPTIMIZERS[name], rates), [(d[..., :-1], d[..., 1:]) for d in data]
    )
    for replica, model in enumerate(models):
        alone = train_alone(
            model,
            OPTIMIZERS[name](model, rates[replica]),
            [(d[replica, :, :-1], d[replica, :, 1:]) for d in data],
        )
        assert torch.allclose(losses[:, replica], torch.tensor(alone), atol=1e-5, rtol=0)
    assert stack.untraced is None


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_perceptron_with_batch_norm_equals_single_runs(name: str) -> None:
    models: list[nn.Module] = [Network(seed) for seed in range(4)]
    stack = Stack(models, chunk=2)
    generator = torch.Generator().manual_seed(0)
    data = [
        (torch.randn(4, 16, 6, generator=generator), torch.randint(5, (4, 16), generator=generator))
        for _ in range(20)
    ]
    train_stacked(stack, stack.optimizer(lambda model: OPTIMIZERS[name](model, 1e-2)), data)
    for replica, model in enumerate(models):
        train_alone(model, OPTIMIZERS[name](model, 1e-2), [(x[replica], y[replica]) for x, y in data])
    assert stack.untraced is None
    assert parameters_differ(stack, models) < 1e-5  # running statistics and their counts included
    assert stack.state_dict()["norm.num_batches_tracked"].tolist() == [20] * 4
    stack.eval()
    inputs, targets = data[0]
    with torch.no_grad():
        expected = [cross_entropy(m.eval()(x), y) for m, x, y in zip(models, inputs, targets, strict=True)]
        assert torch.allclose(stack.losses(inputs, targets), torch.stack(expected), atol=1e-5)


@pytest.mark.parametrize(
    "settings", [{"window": 7}, {"bias": True, "activation": "gelu"}, {"tie_embeddings": True}]
)
def test_gradients_equal_autograd(settings: dict) -> None:
    models = [gpt(seed, width=32, **settings) for seed in range(3)]
    stack = Stack(models)
    data = tokens(3, 1)[0]
    inputs, targets = data[..., :-1], data[..., 1:]
    for road in ("program", "vmap"):
        stack.weights.grad = None
        if road == "program":
            losses = stack.losses(inputs, targets)
        else:
            losses = torch.stack([cross_entropy(o, t) for o, t in zip(stack(inputs), targets, strict=True)])
        losses.sum().backward()
        for replica, model in enumerate(models):
            model.zero_grad()
            cross_entropy(model(inputs[replica]), targets[replica]).backward()
            for parameter_name, parameter in model.named_parameters():
                start, end, shape = stack.columns[parameter_name]
                mine = stack.weights.grad[replica, start:end].view(shape)
                assert torch.allclose(mine, parameter.grad, atol=1e-6, rtol=1e-4), (road, parameter_name)


def test_gradients_accumulate_and_scale() -> None:
    stack = Stack([Network(seed, norm=False) for seed in range(2)])
    inputs, targets = torch.randn(2, 8, 6), torch.randint(5, (2, 8))
    stack.losses(inputs, targets).sum().backward()
    whole = stack.weights.grad.clone()
    stack.weights.grad = None
    for part in (slice(0, 4), slice(4, 8)):
        (stack.losses(inputs[:, part], targets[:, part]) / 2).sum().backward()
    assert torch.allclose(stack.weights.grad, whole, atol=1e-6)


def test_an_optimizer_that_is_not_element_wise_sees_shapes() -> None:
    class PerTensor(torch.optim.Optimizer):
        """A step of given length for each tensor, and by its number of rows."""

        def __init__(self, params: object, lr: float) -> None:
            super().__init__(params, {"lr": lr})

        @torch.no_grad()
        def step(self, closure: None = None) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.sub_(p.grad / p.grad.norm(), alpha=group["lr"] * p.shape[0] ** 0.5)

    models: list[nn.Module] = [Network(seed, norm=False) for seed in range(2)]
    stack = Stack(models)
    data = [(torch.randn(2, 16, 6), torch.randint(5, (2, 16))) for _ in range(5)]
    train_stacked(stack, stack.optimizer(lambda m: PerTensor(m.parameters(), 0.01)), data, clip=math.inf)
    for replica, model in enumerate(models):
        train_alone(
            model, PerTensor(model.parameters(), 0.01), [(x[replica], y[replica]) for x, y in data], math.inf
        )
    assert parameters_differ(stack, models) < 1e-5


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_replica_without_finite_loss_stays_and_poisons_none(chunk: int) -> None:
    models: list[nn.Module] = [Network(seed, norm=False) for seed in range(3)]
    stack, clean = Stack(models, chunk=chunk), Stack(models, chunk=chunk)
    data = [(torch.randn(3, 16, 6), torch.randint(5, (3, 16))) for _ in range(6)]
    spoilt = [(x.clone(), y) for x, y in data]
    spoilt[2][0][1] = torch.inf
    make = OPTIMIZERS["adamw"]
    losses = train_stacked(stack, stack.optimizer(make, 1e-2), spoilt)
    train_stacked(clean, clean.optimizer(make, 1e-2), data)
    assert not losses[2, 1].isfinite()
    assert losses[:, [0, 2]].isfinite().all()
    assert torch.equal(stack.weights[[0, 2]], clean.weights[[0, 2]])
    # the spoilt step never happened, neither to the weights nor to the optimizer's count of steps
    train_alone(models[1], make(models[1], 1e-2), [(x[1], y[1]) for i, (x, y) in enumerate(data) if i != 2])
    assert parameters_differ(stack, [stack.unstack(0), models[1]]) < 1e-5


def test_a_frozen_replica_does_not_move_and_the_state_remembers_it() -> None:
    stack = Stack([Network(seed, norm=False) for seed in range(3)])
    optimizer = stack.optimizer(OPTIMIZERS["adamw"], 1e-2)
    data = [(torch.randn(3, 16, 6), torch.randint(5, (3, 16))) for _ in range(4)]
    train_stacked(stack, optimizer, data[:2])
    before = stack.weights.detach().clone()
    stack.freeze(2, step=2)
    losses = train_stacked(stack, optimizer, data[2:])
    assert losses[:, 2].isnan().all()
    assert torch.equal(stack.weights[2], before[2])
    assert not torch.equal(stack.weights[0], before[0])
    other = Stack([Network(seed, norm=False) for seed in range(3)])
    other.load_state_dict(stack.state_dict())
    assert other.frozen == {2: 2}
    with torch.no_grad():
        assert stack.losses(*data[0]).isfinite().all()  # evaluation still tells how good it was


def test_clipping_is_each_replicas_own() -> None:
    models: list[nn.Module] = [Network(seed, norm=False) for seed in range(3)]
    models[1].last.weight.data.mul_(50)
    stack = Stack(models)
    inputs, targets = torch.randn(3, 16, 6), torch.randint(5, (3, 16))
    stack.losses(inputs, targets).sum().backward()
    norms = stack.clip_grad_norm(0.5)
    for replica, model in enumerate(models):
        cross_entropy(model(inputs[replica]), targets[replica]).backward()
        expected = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        assert float(norms[replica]) == pytest.approx(float(expected), rel=1e-5)
    assert torch.allclose(stack.weights.grad.norm(dim=1), norms.clamp(max=0.5), rtol=1e-4)


def test_shared_and_own_buffers_and_frozen_parameters() -> None:
    models = [gpt(seed) for seed in range(2)]
    for model in models:
        model.embedding.weight.requires_grad_(False)
    stack = Stack(models)
    assert "embedding.weight" not in stack.columns
    assert parameters_differ(stack, models) == 0.0
    data = tokens(2, 2)
    train_stacked(stack, stack.optimizer(OPTIMIZERS["sgd"], 1e-2), [(d[..., :-1], d[..., 1:]) for d in data])
    for replica, model in enumerate(models):
        assert torch.equal(stack.unstack(replica).embedding.weight, model.embedding.weight)
        assert not torch.equal(stack.unstack(replica).head.weight, model.head.weight)


def test_bfloat16_autocast_equals_single_runs() -> None:
    models = [gpt(seed) for seed in range(2)]
    stack = Stack(models)
    data = tokens(2, 1)[0]
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        stacked = stack.losses(data[..., :-1], data[..., 1:])
        alone = [cross_entropy(m(d[:, :-1]), d[:, 1:]) for m, d in zip(models, data, strict=True)]
    assert torch.allclose(stacked, torch.stack(alone).float(), rtol=2e-2)
    stacked.sum().backward()
    assert stack.weights.grad.isfinite().all()


def test_what_cannot_be_stacked_is_said() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Stack([])
    with pytest.raises(ValueError, match="only equal shapes"):
        Stack([nn.Linear(2, 3), nn.Linear(2, 4)])
    with pytest.raises(ValueError, match=r"drops with p=0\.1"):
        Stack([nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))])
    with pytest.raises(ValueError, match=r"inputs of shape \(1, batch"):
        Stack([nn.Linear(2, 2)])(torch.ones(5, 2))
    stack = Stack([nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="2 learning rates for a stack of 1"):
        stack.optimizer(OPTIMIZERS["sgd"], [1.0, 2.0])
    with pytest.raises(ValueError, match="does not fit"):
        stack.load_state_dict({})


class Noise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + torch.rand_like(x)


def test_random_draws_are_refused_by_name() -> None:
    stack = Stack([Noise()], chunk=1)
    stack.losses(torch.ones(1, 3, 4), torch.zeros(1, 3, dtype=torch.long))
    assert stack.untraced is not None
    assert "random" in stack.untraced


class Tokens:
    def __init__(self, seed: int) -> None:
        self.seed = seed

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        window = torch.randint(32, (2, 41), generator=torch.Generator().manual_seed(1000 * self.seed + step))
        return window[:, :-1], window[:, 1:]


def test_fit_stack_gives_the_logs_of_single_runs() -> None:
    rates = [1e-3, 4e-3]
    settings = {"horizons": [10, 20], "schedule": WSD(warmup=2, decay=0.5), "log_every": 1, "clip": 0.5}

    def value(stack: Stack) -> dict:
        inputs, targets = Tokens(9).batch(0)
        return {"loss": stack.losses(inputs.expand(2, -1, -1), targets.expand(2, -1, -1))}

    logs = fit_stack(
        lambda generator: GPT(GPTConfig(width=16, depth=1, context=40, vocab_size=32), generator=generator),
        2,
        [Tokens(0), Tokens(1)],
        generators=[torch.Generator().manual_seed(seed) for seed in range(2)],
        learning_rates=rates,
        validate=value,
        **settings,
    )
    for seed, (log, rate) in enumerate(zip(logs, rates, strict=True)):
        model = GPT(
            GPTConfig(width=16, depth=1, context=40, vocab_size=32),
            generator=torch.Generator().manual_seed(seed),
        )
        alone = fit(
            model,
            Tokens(seed),
            optimizer=AdamWIndependent(model.parameters(), rate),
            validate=lambda m: {
                "loss": float(cross_entropy(m(Tokens(9).batch(0)[0]), Tokens(9).batch(0)[1]))
            },
            **settings,
        )
        assert [row["step"] for row in log.steps] == [row["step"] for row in alone.steps]
        for column in ("loss", "gradient_norm"):
            assert list(log.table[column]) == pytest.approx(list(alone.table[column]), abs=1e-5)
        assert [row["loss"] for row in log.horizons] == pytest.approx(
            [row["loss"] for row in alone.horizons], abs=1e-5
        )
        assert log.status == "done"


def test_a_stack_resumes_where_it_was_cut(tmp_path) -> None:
    def run(folder, stop: int | None) -> Tensor:
        stack = Stack([Network(seed, norm=False) for seed in range(2)])
        steps = iter(range(100))
        fit(
            stack,
            TwoSides(),
            optimizer=stack.optimizer(OPTIMIZERS["independent"], [1e-3, 2e-3]),
            horizons=8,
            schedule=WSD(warmup=1),
            checkpointer=Checkpointer(folder, every=0.0),
            should_stop=None if stop is None else lambda: next(steps) >= stop,
        )
        return stack.weights.detach().clone()

    whole = run(tmp_path / "whole", None)
    run(tmp_path / "cut", 3)
    assert torch.equal(run(tmp_path / "cut", None), whole)


class TwoSides:
    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step)
        return torch.randn(2, 16, 6, generator=generator), torch.randint(5, (2, 16), generator=generator)


def test_a_diverged_replica_is_a_status_and_the_other_goes_on() -> None:
    logs = fit_stack(
        lambda generator: Network(int(generator.initial_seed()), norm=False),
        2,
        [((torch.randn(16, 6), torch.randint(5, (16,))) for _ in range(40)) for _ in range(2)],
        generators=[torch.Generator().manual_seed(seed) for seed in range(2)],
        learning_rates=[1e-3, 1e4],
        make_optimizer=lambda model, rate: torch.optim.SGD(model.parameters(), rate),
        horizons=30,
        clip=None,
        log_every=1,
        divergence=DivergenceRule(factor=2.0, patience=2),
    )
    assert [log.status for log in logs] == ["done", "diverged"]
    step = logs[1].diverged[0]
    assert 1 < step < 29
    assert logs[1].steps[-1]["step"] == step
    assert len(logs[0].steps) == 30
    assert all(math.isfinite(row["loss"]) for row in logs[0].steps)


def test_speed_is_measured_on_whole_steps() -> None:
    ratio = stack_speedup(
        lambda generator: gpt(int(generator.initial_seed())), 4, (1, 40), classes=32, repeats=5
    )
    assert ratio > 1.5  # 4 and more on a quiet machine


def test_nothing_of_the_models_or_of_the_random_state_is_touched() -> None:
    model = gpt(0)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    stack = Stack([model])
    data = tokens(1, 2)
    train_stacked(
        stack, stack.optimizer(OPTIMIZERS["adamw"], 1e-2), [(d[..., :-1], d[..., 1:]) for d in data]
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert F.scaled_dot_product_attention is torch.nn.functional.scaled_dot_product_attention
