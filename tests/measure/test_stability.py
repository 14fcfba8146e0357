"""When instabilities bite, in worlds whose powers are known, and on real small models."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from allometry import measure
from allometry.measure import stability_forecast

SIZES, RATES = (1e5, 4e5, 1.6e6), (0.01, 0.03, 0.1)
LOGIT, GRADIENT = "max attention logit", "gradient rms"


def world(size_power, rate_power, *, noise=0.0, generator=None, quantity=LOGIT, at=1.0):
    """Values at at x (size / 1e5)^a (rate / 0.01)^b, a row a run."""
    rows = [
        (n, r, quantity, at * (n / 1e5) ** size_power * (r / 0.01) ** rate_power)
        for n in SIZES
        for r in RATES
    ]
    frame = pd.DataFrame(rows, columns=["size", "learning_rate", "quantity", "value"])
    if noise:
        frame["value"] *= np.exp(noise * generator.standard_normal(len(frame)))
    return frame


def test_exact_powers_in_both_are_found_and_cross_where_they_must():
    row = stability_forecast(world(0.5, 1.5), 0.02, thresholds={LOGIT: 100.0}).loc[LOGIT]
    assert row["size_exponent"] == pytest.approx(0.5, abs=1e-9)
    assert row["rate_exponent"] == pytest.approx(1.5, abs=1e-9)
    assert row["size"] == pytest.approx(1e5 * (100 / 2**1.5) ** 2, rel=1e-6)
    assert row["verdict"] == "at this size"
    falling = world(-0.5, -0.25, quantity=GRADIENT, at=1e-5)
    row = stability_forecast(falling, 0.16).loc[GRADIENT]
    assert row["size"] == pytest.approx(1e5 * 500**2, rel=1e-6)  # 1e-5 / 2 falls to 1e-8


def test_a_higher_rate_bites_at_a_smaller_size():
    table = world(0.5, 1.5, noise=0.05, generator=np.random.default_rng(0))
    sizes = [stability_forecast(table, rate).loc[LOGIT, "size"] for rate in (0.01, 0.03, 0.1)]
    assert sizes[0] > 10 * sizes[1] > 100 * sizes[2]


def test_the_interval_is_of_a_new_run_and_covers():
    generator = np.random.default_rng(1)
    inside, exponents = [], []
    for _ in range(300):
        row = stability_forecast(world(0.5, 1.0, noise=0.2, generator=generator), 0.02).loc[LOGIT]
        exponents.append(row["size_low"] <= 0.5 <= row["size_high"])
        # a new run at the largest size with a threshold of its own: has it crossed when it may have?
        new = 2.0 * 40**0.5 * math.exp(0.2 * generator.standard_normal())
        told = stability_forecast(
            world(0.5, 1.0, noise=0.2, generator=generator), 0.02, thresholds={LOGIT: new}
        ).loc[LOGIT]
        inside.append(told["low"] <= 4e6 <= told["high"])
    assert 0.86 <= np.mean(exponents) <= 0.94
    assert 0.86 <= np.mean(inside) <= 0.95


def test_what_does_not_grow_is_not_seen_to_bite():
    flat = world(0.0, 1.0, noise=0.1, generator=np.random.default_rng(2))
    row = stability_forecast(flat, 0.02).loc[LOGIT]
    assert (row["verdict"], row["size"]) == ("not seen", math.inf)
    row = stability_forecast(world(-0.5, 1.0), 0.02, thresholds={LOGIT: 1e4}).loc[LOGIT]
    assert row["verdict"] == "not seen"  # it moves away
    row = stability_forecast(world(0.5, 2.0, at=10.0), 10.0).loc[LOGIT]
    assert row["verdict"] == "already"
    row = stability_forecast(world(0.01, 1.0), 0.01, reach=10).loc[LOGIT]
    assert row["verdict"] == "beyond reach"


def test_lost_runs_are_counted():
    table = world(0.5, 1.0)
    table.loc[8, "value"] = np.nan
    row = stability_forecast(table, 0.01).loc[LOGIT]
    assert (row["runs"], row["lost"]) == (8, 1)
    assert row["size_exponent"] == pytest.approx(0.5, abs=1e-9)


def test_the_worst_module_counts_or_each_by_itself():
    table = pd.concat([world(0.5, 1.0).assign(module="0"), world(0.25, 1.0, at=0.5).assign(module="1")])
    assert stability_forecast(table, 0.01).loc[LOGIT, "size_exponent"] == pytest.approx(0.5, abs=1e-9)
    each = stability_forecast(table, 0.01, by_module=True)
    assert each["size_exponent"].tolist() == pytest.approx([0.5, 0.25], abs=1e-9)
    assert each.index.tolist() == [(LOGIT, "0"), (LOGIT, "1")]


def test_log_z_counts_in_absolute_value():
    table = world(0.5, 1.0, quantity="log z").assign(value=lambda t: -t["value"])
    assert stability_forecast(table, 0.01).loc["log z", "size"] == pytest.approx(1e5 * 128**2, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda t: t.drop(columns="value"), {}, "lacks value"),
        (lambda t: t[t["size"] == 1e5], {}, "two sizes"),
        (lambda t: t[t["learning_rate"] == 0.1], {}, "two rates"),
        (lambda t: t.assign(size=-1.0), {}, "size must be positive"),
        (lambda t: t.assign(learning_rate=t["size"] * 1e-7), {}, "rates go with sizes"),
        (lambda t: t, {"thresholds": {"no such": 1.0}}, "no such was not measured"),
        (lambda t: t, {"thresholds": {LOGIT: -1.0}}, "must be positive"),
        (lambda t: t.assign(quantity="mine"), {}, "nothing that has a threshold"),
        (lambda t: t, {"learning_rate": 0.0}, "rate is positive"),
    ],
)
def test_bad_input_is_refused(change, settings, message):
    with pytest.raises(ValueError, match=message):
        stability_forecast(change(world(0.5, 1.0)), settings.pop("learning_rate", 0.1), **settings)


def _llama(width):
    transformers = pytest.importorskip("transformers")
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=32, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32,
    ))  # fmt: skip


def _gpt2(width):
    transformers = pytest.importorskip("transformers")
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=32, n_embd=width, n_layer=2, n_head=2, n_positions=32,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    ))  # fmt: skip


class Own(nn.Module):
    """A module of one's own around the fused kernel."""

    def __init__(self, width):
        super().__init__()
        self.embed, self.qkv = nn.Embedding(32, width), nn.Linear(width, 3 * width)
        self.head = nn.Linear(width, 32)

    def forward(self, input_ids, labels):
        q, k, v = self.qkv(self.embed(input_ids)).chunk(3, -1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return nn.functional.cross_entropy(self.head(mixed)[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


@pytest.mark.parametrize("make", [_llama, _gpt2, Own])
def test_monitors_of_any_model_give_a_forecast(make):
    runs = []
    for width in (16, 32):
        for rate in (1e-3, 1e-2):
            torch.manual_seed(0)
            model = make(width)
            optimizer = torch.optim.AdamW(model.parameters(), rate)
            with measure.Monitor(model, optimizer) as monitor:
                for step in range(3):
                    tokens = torch.randint(32, (4, 16), generator=torch.Generator().manual_seed(step))
                    told = model(input_ids=tokens, labels=tokens)
                    getattr(told, "loss", told).backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    monitor.step(step)
            runs.append((width, rate, monitor))
    found = stability_forecast(runs, 1e-2)
    assert {LOGIT, GRADIENT} <= set(found.index)
    assert (found["runs"] == 4).all()
    assert np.isfinite(found[["size_exponent", "rate_exponent"]]).all(axis=None)
    each = stability_forecast(runs, 1e-2, by_module=True, thresholds={GRADIENT: 1e-8, "update rms": 0.05})
    assert len(each) == 2 * len(list(make(16).parameters()))
