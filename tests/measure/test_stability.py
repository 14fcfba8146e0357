"""When instabilities bite, in worlds whose powers are known, and on real small models."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from allometry import measure
from allometry.measure import forecast_onset, plot_stability, stability_forecast, summarise

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
    exponents, inside = [], []
    for _ in range(300):
        # a new run at the largest size with a threshold of its own: has it crossed when it may have?
        new = 2.0 * 40**0.5 * math.exp(0.2 * generator.standard_normal())
        table = world(0.5, 1.0, noise=0.2, generator=generator)
        row = stability_forecast(table, 0.02, thresholds={LOGIT: (None, new)}).loc[LOGIT]
        exponents.append(
            [row["size_low"] <= 0.5 <= row["size_high"], row["rate_low"] <= 1.0 <= row["rate_high"]]
        )
        inside.append(row["low"] <= 4e6 <= row["high"])
    assert np.mean(exponents, axis=0) == pytest.approx([0.9, 0.9], abs=0.05)  # 300 worlds: 0.017 by chance
    assert np.mean(inside) == pytest.approx(0.9, abs=0.05)


def test_one_rate_agrees_with_forecast_onset_and_tells_no_exponent_of_it():
    table = world(0.5, 1.0, noise=0.1, generator=np.random.default_rng(3))
    one = pd.concat([table[table["learning_rate"] == 0.03]] * 2, ignore_index=True)
    one["value"] *= np.exp(0.1 * np.random.default_rng(4).standard_normal(len(one)))
    row = stability_forecast(one, 0.03).loc[LOGIT]
    onset = forecast_onset(one["size"], one["value"], 1e4)
    assert math.isnan(row["rate_exponent"])
    assert row["size"] == pytest.approx(onset.scale, rel=1e-6)
    # limits are quantiles of random draws, read off lines of 81 and 161 points
    assert [row["low"], row["high"]] == pytest.approx([onset.low, onset.high], rel=0.1)


def test_limits_are_those_of_students_t():
    from scipy.stats import t

    table = world(0.5, 1.0, noise=0.2, generator=np.random.default_rng(5))
    row = stability_forecast(table, 0.02).loc[LOGIT]
    size, rate = np.log(table["size"]), np.log(table["learning_rate"])
    design = np.stack([np.ones(9), size, rate], axis=1)
    theta, (misfit,), *_ = np.linalg.lstsq(design, np.log(table["value"]), rcond=None)
    error = math.sqrt(misfit / 6) * np.sqrt(np.diag(np.linalg.inv(design.T @ design)))
    half = t.ppf(0.95, 6) * error
    assert [row["size_exponent"], row["rate_exponent"]] == pytest.approx(theta[1:], abs=1e-9)
    assert row["size_high"] - row["size_low"] == pytest.approx(2 * half[1], rel=0.12)
    assert row["rate_high"] - row["rate_low"] == pytest.approx(2 * half[2], rel=0.12)


def test_a_row_a_run_says_the_same_as_a_row_a_number():
    long = world(0.5, 1.0, noise=0.1, generator=np.random.default_rng(6))
    wide = long.rename(columns={"size": "width", "value": LOGIT}).drop(columns="quantity")
    wide[GRADIENT] = 1e-3 / wide["width"]
    found = stability_forecast(wide, 0.02, size="width")
    assert found.index.tolist() == [LOGIT, GRADIENT]
    assert found["met_from"].tolist() == ["below", "above"]
    pd.testing.assert_series_equal(found.loc[LOGIT], stability_forecast(long, 0.02).loc[LOGIT])


def test_small_runs_that_are_lost_already_do_not_turn_the_direction_round():
    row = stability_forecast(world(0.5, 1.0, at=2e4), 0.01).loc[LOGIT]
    assert (row["verdict"], row["met_from"]) == ("already", "below")
    falling = world(-0.5, 1.0, at=2e4)
    row = stability_forecast(falling, 0.01, thresholds={LOGIT: (5e3, None)}).loc[LOGIT]
    assert row["size"] == pytest.approx(1.6e6, rel=1e-6)
    assert (row["met_from"], row["extrapolated"]) == ("above", pytest.approx(1.0))


def test_a_module_without_gradients_is_named_and_stops_no_other():
    table = pd.concat([world(0.5, 1.0).assign(module="0"), world(0.5, 1.0, at=0.0).assign(module="1")])
    each = stability_forecast(table, 0.01, by_module=True, thresholds={LOGIT: 100.0})
    assert each["verdict"].tolist() == ["at this size", "zero"]
    assert each["size"].iloc[0] == stability_forecast(table, 0.01, thresholds={LOGIT: 100.0})["size"].iloc[0]


def test_gradients_that_are_rounding_errors_foretell_nothing():
    rows = []
    for size in (64, 128, 256, 512):
        for rate in (1e-3, 1e-2):
            rows.append((size, rate, "gradient rms", "weight", 1e-2 / size))
            rows.append((size, rate, "gradient rms", "key.bias", 1e-12))
    table = pd.DataFrame(rows, columns=["width", "learning_rate", "quantity", "module", "value"])
    found = stability_forecast(table, 1e-2).loc["gradient rms"]
    assert found["size"] == pytest.approx(1e6, rel=1e-3)
    assert found["verdict"] == "at this size"


def test_a_figure_has_a_panel_for_each_quantity():
    table = pd.concat([world(0.5, 1.0), world(-0.5, -0.25, quantity=GRADIENT, at=1e-5)])
    figure = plot_stability(table, 0.05)
    first, second = figure.axes
    assert first.get_title() == "at this size 4e+11"  # 1e5 (1e4 / 5)^2
    assert first.get_legend_handles_labels()[1] == ["rate 0.01", "rate 0.03", "rate 0.1", "at 0.05"]
    assert second.get_ylabel() == GRADIENT


def _told(*rows):
    return pd.DataFrame(rows, columns=["step", "quantity", "module", "value"])


def test_a_run_is_summed_up_by_its_worst():
    told = _told(
        (0, LOGIT, "a", 9.0), (1, LOGIT, "a", 2.0), (1, LOGIT, "b", 3.0),
        (0, GRADIENT, "a", 0.1), (1, GRADIENT, "a", 0.4), (1, GRADIENT, "b", 0.2), (1, "log z", "", -5.0),
    )  # fmt: skip
    assert summarise(told) == {LOGIT: 3.0, GRADIENT: 0.2, "log z": 5.0}
    assert summarise(told, "training") == {LOGIT: 9.0, GRADIENT: 0.1, "log z": 5.0}
    assert math.isnan(summarise(_told((0, LOGIT, "a", np.inf), (0, LOGIT, "b", 1.0)))[LOGIT])
    with pytest.raises(ValueError, match="nothing to summarise"):
        summarise(_told())
    with pytest.raises(ValueError, match="'end' or 'training'"):
        summarise(told, "middle")


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
        (lambda t: t[t["learning_rate"] == 0.03], {}, "learning rate of 0.03 only"),
        (lambda t: t[(t["learning_rate"] == 0.1) & (t["size"] > 1e5)], {}, "3 runs that were not lost"),
        (lambda t: t.assign(value=-1.0), {}, "is -1 in a run; a power law needs positive"),
        (lambda t: t.assign(value=t["value"] - 1.0), {}, "is 0 in a run; a power law needs positive"),
        (lambda t: t.assign(learning_rate=np.nan), {}, "learning_rate must be positive"),
        (lambda t: t.assign(value=np.nan), {}, "it has 0 and 0"),
        (lambda t: t, {"thresholds": {LOGIT: (1.0, 2.0)}}, "give 'max attention logit' one threshold"),
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
            optimizer = torch.optim.AdamW(model.parameters(), rate, eps=1e-7)
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
    assert found.loc[GRADIENT, "threshold"] == 1e-7  # the optimizers' own
    rows = [{"width": width, "learning_rate": rate, **summarise(told)} for width, rate, told in runs]
    wide = stability_forecast(pd.DataFrame(rows), 1e-2, thresholds={LOGIT: 1e4, GRADIENT: (1e-7, None)})
    pd.testing.assert_frame_equal(wide, found.loc[[LOGIT, GRADIENT]])
    assert np.isfinite(found[["size_exponent", "rate_exponent"]]).all(axis=None)
    each = stability_forecast(runs, 1e-2, by_module=True, thresholds={GRADIENT: 1e-8, "update rms": 0.05})
    assert len(each) == 2 * len(list(make(16).parameters()))
