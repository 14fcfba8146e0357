"""µP passes the coordinate check and standard parametrization fails it: perceptrons, GPT-2, Llama."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from allometry.init.depth import depth_scale_
from allometry.init.mup import apply_, roles
from allometry.init.widths import width_dims
from allometry.measure.coordinates import LOGITS, coordinate_check
from allometry.models.gpt import GPT, GPTConfig
from allometry.models.mlp import MLP
from allometry.optim.groups import Role, param_groups

VOCABULARY, WIDTHS = 32, (64, 128, 256, 512)


def gpt2(width):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_embd=width, n_layer=1, n_head=width // 16, vocab_size=VOCABULARY, n_positions=16,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def llama(width):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=1, num_attention_heads=width // 16,
        num_key_value_heads=width // 32, vocab_size=VOCABULARY,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def sentences():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCABULARY, (4, 17), generator=generator).sort(dim=1).values
    return [({"input_ids": tokens[:, :-1]}, tokens[:, 1:])]


def points():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(32, 16, generator=generator), torch.randint(10, (32,), generator=generator))]


def maximal_update(build):
    def make(width):
        with torch.device("meta"):
            base, delta = build(WIDTHS[0]), build(WIDTHS[1])
        return apply_(build(width), base, delta)

    return make


@pytest.mark.parametrize("build", [gpt2, llama])
def test_transformers(build):
    settings = {"widths": (64, 128, 512), "batches": sentences(), "seeds": 2}
    ours = coordinate_check(
        maximal_update(build),
        make_optimizer=lambda m: torch.optim.AdamW(param_groups(m, 0.003, roles(m))),
        **settings,
    )
    assert ours.passed, ours.reasons
    standard = coordinate_check(
        build, make_optimizer=lambda m: torch.optim.AdamW(param_groups(m, 0.003)), **settings
    )
    assert not standard.passed
    # with Adam every entry of a hidden matrix moves by the rate, and n of them add up
    assert standard.slopes[["rms", "rms_delta"]].max().max() > 0.7


@pytest.mark.parametrize("correct", [True, False])
def test_the_reference_language_model(correct):
    def build(width, generator=None):
        return GPT(GPTConfig(width=width, depth=1, vocab_size=VOCABULARY, context=16), generator=generator)

    def make(width, generator):
        return apply_(build(width, generator), build(64), build(128)) if correct else build(width, generator)

    def optimizer(model):
        return torch.optim.AdamW(param_groups(model, 0.01, roles(model) if correct else None))

    batches = [(inputs["input_ids"], targets) for inputs, targets in sentences()]
    check = coordinate_check(make, (64, 128, 256), batches, make_optimizer=optimizer)
    assert check.passed == correct, check.reasons


def test_kinds_of_a_tied_gpt2():
    with torch.device("meta"):
        widths = width_dims(gpt2(128), gpt2(64))
    assert widths["lm_head.weight"] is widths["transformer.wte.weight"]
    assert widths["lm_head.weight"].layer == "shared"
    assert widths["transformer.wpe.weight"].layer == "input"
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        info = widths[f"transformer.h.0.{name}.weight"]
        assert (info.layer, info.fan_in, info.fan_out) == ("hidden", 2.0, 2.0)
        assert widths[f"transformer.h.0.{name}.bias"].layer == "vector"
    assert widths["transformer.ln_f.weight"].layer == "vector"


def test_kinds_of_an_untied_llama():
    with torch.device("meta"):
        widths = width_dims(llama(256), llama(64))
    assert widths["lm_head.weight"].layer == "readout"
    assert widths["model.embed_tokens.weight"].layer == "input"
    hidden = {name for name, info in widths.items() if info.layer == "hidden"}
    assert hidden == {
        f"model.layers.0.{name}.weight"
        for name in (
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
            "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
        )
    }  # fmt: skip


def test_keys_of_fixed_number_are_refused():
    transformers = pytest.importorskip("transformers")

    def build(width):
        config = transformers.LlamaConfig(
            hidden_size=width, intermediate_size=width, num_hidden_layers=1, num_attention_heads=width // 16,
            num_key_value_heads=1, head_dim=16, vocab_size=16,
        )  # fmt: skip
        return transformers.LlamaForCausalLM(config)

    with pytest.raises(ValueError, match=r"k_proj, .*v_proj: from width to a fixed size"):
        apply_(build(64), build(32))


class TestPerceptrons:
    @staticmethod
    def check(make, rate, kind="sgd", rule=lambda model: None, **settings):
        optimizer = torch.optim.SGD if kind == "sgd" else torch.optim.Adam
        return coordinate_check(
            make,
            WIDTHS,
            points(),
            make_optimizer=lambda m: optimizer(param_groups(m, rate, rule(m))),
            **settings,
        )

    @staticmethod
    def build(width, generator):
        return MLP(16, 10, width=width, depth=3, generator=generator)

    @staticmethod
    def build_mup(width, generator):
        model = MLP(16, 10, width=width, depth=3, generator=generator)
        return apply_(model, MLP(16, 10, width=64, depth=3), MLP(16, 10, width=32, depth=3))

    @pytest.mark.parametrize(("kind", "rate"), [("sgd", 0.1), ("adam", 0.01)])
    def test_maximal_update_passes(self, kind, rate):
        check = self.check(self.build_mup, rate, kind, lambda model: roles(model, optimizer=kind))
        assert check.passed, check.reasons
        logits = check.slopes[(check.slopes["module"] == LOGITS) & (check.slopes["step"] == 3)].iloc[0]
        assert abs(logits["rms_delta"]) < 0.1

    @pytest.mark.parametrize(("kind", "rate"), [("sgd", 0.1), ("adam", 0.01)])
    def test_standard_fails(self, kind, rate):
        assert not self.check(self.build, rate, kind).passed

    def test_features_that_stand_still_fail(self):
        # rates that fall like 1/width keep standard parametrization stable, and its features in place
        def rule(model):
            slower = Role(64 / model.readout.in_features)
            return {name: slower for name, _ in model.named_parameters()}

        check = self.check(self.build, 0.1, rule=rule)
        assert not check.passed
        assert all("vanishes" in reason for reason in check.reasons)

    def test_include(self):
        check = self.check(self.build, 0.1, include=r"hidden\.1$", seeds=1)
        assert set(check.table["module"]) == {"hidden.1"}
        assert list(check.table.columns) == ["width", "seed", "step", "module", "rms", "rms_delta"]
        assert len(check.table) == len(WIDTHS) * 4

    def test_figure(self, tmp_path):
        check = self.check(self.build, 0.1, seeds=1)
        axes = check.plot(str(tmp_path / "check.svg"))
        assert (tmp_path / "check.svg").stat().st_size > 1000
        assert axes.get_xscale() == "log"

    def test_random_state_is_left_alone(self):
        before = torch.get_rng_state()
        self.check(self.build, 0.1, seeds=1)
        assert torch.equal(torch.get_rng_state(), before)

    def test_change_is_what_a_hand_computes(self):
        check = coordinate_check(
            self.build, (64, 128), points(), make_optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.1),
            steps=1, seeds=1,
        )  # fmt: skip
        model = self.build(64, torch.Generator().manual_seed(0))
        inputs, targets = points()[0]
        before = model(inputs)
        nn.functional.cross_entropy(before, targets).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
            expected = (model(inputs) - before).square().mean().sqrt().item()
        row = check.table.query("width == 64 and step == 1 and module == @LOGITS")
        assert row["rms_delta"].item() == pytest.approx(expected, rel=1e-5)


class Twice(nn.Module):
    """One hidden layer, used twice."""

    def __init__(self, width):
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x):
        x = self.shared(torch.relu(self.first(x)))
        return self.last(self.shared(torch.relu(x)))


class Residual(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.first = nn.Linear(6, 32)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(depth))
        self.last = nn.Linear(32, 3)

    def forward(self, x):
        x = self.first(x)
        for layer in self.layers:
            x = x + layer(torch.relu(x))
        return self.last(x)


def endless():
    while True:
        yield torch.randn(16, 6, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=3e-3)


def test_a_module_that_is_called_twice_is_compared_call_by_call():
    check = coordinate_check(Twice, [64, 128, 256], endless(), make_optimizer=adam, seeds=2)
    names = set(check.table["module"])
    assert {"shared", "shared (2)"} <= names
    assert check.table.loc[check.table["step"] == 0, "rms_delta"].eq(0).all()
    assert not check.passed
    assert any(reason.startswith("shared (2): its ") for reason in check.reasons)


def test_depths_are_compared_by_what_every_model_has():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bare = coordinate_check(Residual, [2, 4, 8, 16], endless(), make_optimizer=adam)
        ruled = coordinate_check(
            lambda depth: depth_scale_(Residual(depth), r"^layers\.\d+$", base_depth=2), [2, 4, 8, 16],
            endless(), make_optimizer=adam,
        )  # fmt: skip
    assert any(reason.startswith("last: ") for reason in bare.reasons)
    assert ruled.passed
    slopes = bare.slopes.set_index(["step", "module"])["rms_delta"]
    assert np.isfinite(slopes[3, "layers.1"])
    assert np.isnan(slopes[3, "layers.2"])


def test_bad_input():
    def optimizer(model):
        return torch.optim.SGD(model.parameters(), 0.1)

    def build(width):
        return MLP(16, 10, width=width)

    with pytest.raises(ValueError, match="two widths"):
        coordinate_check(build, [64], points(), make_optimizer=optimizer)
    with pytest.raises(ValueError, match="batch"):
        coordinate_check(build, [64, 128], [], make_optimizer=optimizer)
    with pytest.raises(ValueError, match="same weights for every seed"):
        coordinate_check(build, [64, 128], points(), make_optimizer=optimizer)
    with pytest.raises(ValueError, match="no module"):
        coordinate_check(build, [64, 128], points(), make_optimizer=optimizer, include="nothing")
