"""Telemetry tells what is so, and changes nothing."""

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allometry.measure import summarise
from allometry.measure.monitor import PROBES, Monitor, Probe
from allometry.models import GPT, GPTConfig
from allometry.optim import AdamWIndependent, constant
from allometry.train import Stack, fit


def model(**settings: object) -> GPT:
    return GPT(GPTConfig(width=32, depth=2, context=16, vocab_size=32, zero_init_outputs=False, **settings))


def batch(step: int) -> tuple[Tensor, Tensor]:
    window = torch.randint(32, (4, 17), generator=torch.Generator().manual_seed(step))
    return window[:, :-1], window[:, 1:]


def train(
    network: nn.Module, optimizer: torch.optim.Optimizer, steps: int, monitor: Monitor | None = None
) -> list[Tensor]:
    outputs = []
    for step in range(steps):
        inputs, targets = batch(step)
        logits = network(inputs)
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        outputs.append(logits.detach())
        outputs += [weight.grad.clone() for weight in network.parameters()]
        nn.utils.clip_grad_norm_(network.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        if monitor is not None:
            monitor.step(step)
    return outputs


def value(monitor: Monitor, quantity: str, module: str, step: int = 0) -> float:
    rows = monitor.table().set_index(["step", "quantity", "module"])["value"]
    return float(rows[step, quantity, module])


def test_outputs_gradients_and_random_streams_are_bit_identical() -> None:
    plain, watched = model(), model()
    torch.manual_seed(7)
    expected = train(plain, torch.optim.AdamW(plain.parameters(), 1e-2), 4)
    state = torch.get_rng_state()
    torch.manual_seed(7)
    optimizer = torch.optim.AdamW(watched.parameters(), 1e-2)
    with Monitor(watched, optimizer, every=2) as monitor:
        found = train(watched, optimizer, 4, monitor)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(
        hooks
        for module in watched.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    )
    assert not any(weight._post_accumulate_grad_hooks for weight in watched.parameters())
    assert monitor.table()["step"].unique().tolist() == [0, 2]
    assert monitor.missing == {}


def test_each_quantity_equals_its_definition() -> None:
    network = model().double()
    optimizer = AdamWIndependent(network.parameters(), 1e-2)
    monitor = Monitor(network, optimizer)
    inputs, targets = batch(0)
    blocks: dict[int, Tensor] = {}
    handles = [
        block.register_forward_hook(lambda block, args, out: blocks.__setitem__(len(blocks), out.detach()))
        for block in network.blocks
    ]
    logits = network(inputs)
    F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    gradients = {name: weight.grad.clone() for name, weight in network.named_parameters()}
    nn.utils.clip_grad_norm_(network.parameters(), 1e-3)
    optimizer.step()
    monitor.step(0)
    for handle in handles:
        handle.remove()
    log_z = torch.logsumexp(logits.detach(), -1).mean()
    assert value(monitor, "log z", "") == pytest.approx(float(log_z), rel=1e-12)
    for layer, out in blocks.items():
        assert value(monitor, "residual rms", f"blocks.{layer}") == pytest.approx(
            float(out.square().mean()) ** 0.5
        )
    for name, weight in network.named_parameters():
        rms = float(gradients[name].square().mean()) ** 0.5
        assert value(monitor, "gradient rms", name) == pytest.approx(rms, rel=1e-12)  # before clipping
        assert value(monitor, "parameter norm", name) == pytest.approx(
            float(weight.detach().norm()), rel=1e-12
        )
        assert 0 < value(monitor, "update rms", name) < 1  # the first step is g / (|g| + ε), number by number
    assert set(monitor.table()["quantity"]) == {
        "max attention logit", "attention entropy", "log z", "residual rms", "gradient rms", "update rms",
        "parameter norm",
    }  # fmt: skip


@pytest.mark.parametrize("size", [1e-3, 1e-8, 1e-11])
@pytest.mark.parametrize("steps", [1, 5])
def test_constant_gradients_make_the_update_g_over_g_plus_epsilon(size: float, steps: int) -> None:
    weight = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    holder = nn.Module()
    holder.weight = weight
    optimizer = torch.optim.AdamW([weight], lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    monitor = Monitor(holder, optimizer, probes="updates")
    for step in range(steps):
        weight.grad = torch.full_like(weight, size)
        optimizer.step()
        monitor.step(step)
    assert value(monitor, "update rms", "weight", steps - 1) == pytest.approx(size / (size + 1e-8), rel=1e-12)


def test_the_update_is_the_step_that_adamw_takes() -> None:
    network = model().double()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.0, amsgrad=True)
    monitor = Monitor(network, optimizer, probes=["updates"])
    for step in range(3):
        before = copy.deepcopy(dict(network.named_parameters()))
        train(network, optimizer, 1)
        monitor.step(step)
    for name, weight in network.named_parameters():
        moved = float((weight - before[name]).detach().square().mean()) ** 0.5 / 1e-3
        assert value(monitor, "update rms", name, 2) == pytest.approx(moved, rel=1e-6)


def test_gradients_of_accumulated_parts_are_those_of_the_sum_and_before_clip_replaces_them() -> None:
    network = model().double()
    monitor = Monitor(network, probes="gradients")
    inputs, targets = batch(0)
    for part in (slice(0, 2), slice(2, 4)):
        (F.cross_entropy(network(inputs[part]).flatten(0, 1), targets[part].flatten()) / 2).backward()
    whole = float(network.head.weight.grad.square().mean()) ** 0.5
    monitor.step(0)
    assert value(monitor, "gradient rms", "head.weight") == pytest.approx(whole, rel=1e-12)
    network(inputs).sum().backward()
    network.head.weight.grad.mul_(0).add_(3.0)
    monitor.before_clip()
    monitor.step(1)
    assert value(monitor, "gradient rms", "head.weight", 1) == pytest.approx(3.0)


def test_evaluation_does_not_count_and_a_batch_of_ones_own_does() -> None:
    network = model()
    monitor = Monitor(network, every=5, probes=["output", "attention"])
    monitor.step(0)
    assert monitor.table().empty
    monitor = Monitor(network, every=5, probes=["output", "attention"])
    with torch.no_grad():
        network(batch(9)[0])
    network(batch(1)[0])
    monitor.step(0)
    monitor.step(1)
    with torch.no_grad():
        expected = float(torch.logsumexp(network(batch(1)[0]), -1).mean())
    assert value(monitor, "log z", "") == pytest.approx(expected, rel=1e-6)
    logits = monitor.measure(batch(2)[0], step=77)
    assert value(monitor, "log z", "", 77) == pytest.approx(
        float(torch.logsumexp(logits, -1).mean()), rel=1e-6
    )
    assert not network._forward_hooks  # between measured steps there is none


def test_within_our_loop_and_on_a_replica_of_a_stack() -> None:
    class Source:
        def batch(self, step: int) -> tuple[Tensor, Tensor]:
            return batch(step)

    network = model()
    optimizer = AdamWIndependent(network.parameters(), 1e-2)
    with Monitor(network, optimizer, every=3) as monitor:
        fit(
            network, Source(), optimizer=optimizer, horizons=7, schedule=constant,
            progress=lambda done, total, **_: monitor.step(done - 1),
        )  # fmt: skip
    table = monitor.table()
    assert table["step"].unique().tolist() == [0, 3, 6]
    counts = table.groupby(["step", "quantity"]).size().unstack("quantity")
    assert counts["gradient rms"].tolist() == [len(list(network.parameters()))] * 3
    assert np.isfinite(table["value"]).all()
    replica = Stack([model(), network]).unstack(1)
    other = Monitor(replica, probes="attention")
    other.measure(batch(0)[0])
    assert other.table()["quantity"].unique().tolist() == ["max attention logit", "attention entropy"]


def test_transformers_models_are_measured_whole() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=32,
    )  # fmt: skip
    network = transformers.LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    monitor = Monitor(network, optimizer)
    inputs, _ = batch(0)
    network(input_ids=inputs, labels=inputs).loss.backward()
    optimizer.step()
    monitor.step(0)
    assert monitor.missing == {}
    table = monitor.table().groupby("quantity")["module"].apply(list)
    assert table["residual rms"] == ["model.layers.0", "model.layers.1"]
    assert table["max attention logit"] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    assert len(table["update rms"]) == len(list(network.parameters()))


def test_what_cannot_be_measured_is_named() -> None:
    network = nn.Sequential(nn.Linear(4, 3))
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    monitor = Monitor(network, optimizer)
    network(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    monitor.step(0)
    assert set(monitor.missing) == {"attention", "residual", "updates"}
    assert "SGD" in monitor.missing["updates"]


@pytest.mark.parametrize(
    "wrap", [lambda y: (y, None), lambda y: [torch.zeros(()), y], lambda y: {"logits": y}]
)
def test_logits_are_found_among_several_outputs(wrap: Callable[[Tensor], object]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> object:
            return wrap(self.layer(x))

    model = Model()
    monitor = Monitor(model, probes="output")
    monitor.measure(torch.ones(2, 4))
    truth = torch.logsumexp(model.layer(torch.ones(2, 4)), -1).mean()
    assert value(monitor, "log z", "") == pytest.approx(float(truth), rel=1e-6)


def test_gradients_that_are_zero_but_for_rounding_are_no_alarm() -> None:
    """A constant in all keys changes no attention, so the gradient of their bias is zero."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))

    torch.manual_seed(0)
    model = Attention()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    monitor = Monitor(model, optimizer)
    model(torch.randn(8, 12, 16)).square().mean().backward()
    optimizer.step()
    monitor.step(0)
    assert 0 < value(monitor, "gradient rms", "key.bias") < 1e-8
    assert not len(monitor.alerts())
    assert summarise(monitor)["gradient rms"] > 1e-6
    low = monitor.alerts({"gradient rms": (1.0, None)})["module"].tolist()
    assert "key.weight" in low
    assert "key.bias" not in low


def test_output_logits_too_coarse_for_half_precision_are_an_alarm() -> None:
    model = nn.Linear(2, 3)
    monitor = Monitor(model, probes="output")
    for step, shift in enumerate((0.0, 127.0, 130.0, -140.0)):
        nn.init.zeros_(model.weight)
        nn.init.constant_(model.bias, shift - math.log(3))
        monitor.measure(torch.ones(1, 2), step=step)
    assert monitor.alerts()["step"].tolist() == [2, 3]


def test_ones_own_probe() -> None:
    network = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
    dead = Probe("share of zeros", nn.ReLU, lambda x: (x == 0).float().mean())
    size = Probe("input size", "2", lambda x: float(x.abs().amax()), of="input")
    monitor = Monitor(network, probes=[dead, size])
    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    network(x)
    monitor.step(0)
    hidden = network[:2](x).detach()
    assert value(monitor, "share of zeros", "1") == pytest.approx(float((hidden == 0).float().mean()))
    assert value(monitor, "input size", "2") == pytest.approx(float(hidden.max()))


def test_alerts_name_what_is_beyond_and_what_is_not_finite() -> None:
    network = model(qk_norm=None)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, eps=1e-3)
    with torch.no_grad():
        network.blocks[1].attention.qkv.weight.mul_(300.0)
    with Monitor(network, optimizer) as monitor:
        train(network, optimizer, 1, monitor)
        alerts = monitor.alerts()
        hot = alerts[alerts["quantity"] == "max attention logit"]
        assert hot["module"].tolist() == ["blocks.1.attention"]
        small = alerts[alerts["quantity"] == "gradient rms"]
        assert len(small)
        assert (small["value"] < 1e-3).all()
        assert monitor.alerts({"log z": 1e9}).empty
        low = monitor.alerts({"parameter norm": (1e9, None)})
        assert len(low) == len(list(network.parameters()))
        with torch.no_grad():
            network.norm.weight.fill_(torch.nan)
        network(batch(0)[0])
        monitor.step(1)
        assert "log z" in set(monitor.alerts({})["quantity"])
        with pytest.raises(ValueError, match="'speed' was not measured; measured were attention entropy"):
            monitor.alerts({"speed": 1.0})


def test_bad_settings_are_told() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Monitor(model(), every=0)
    with pytest.raises(ValueError, match="unknown probe 'logits'"):
        Monitor(model(), probes=["logits"])
    assert "attention" in PROBES
