"""Opened attention is torch's own, can be measured, and can be normalised."""

import copy

import pytest
import torch
from torch import nn

from allometry import measure
from allometry.models import add_qk_norm_, open_attention_


def pair(**settings):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(12, 3, **settings)
    for weight in theirs.parameters():
        nn.init.normal_(weight, std=0.5)
    theirs = theirs.double()
    return theirs, open_attention_(copy.deepcopy(theirs))


def masks(kind):
    causal = torch.ones(5, 7).triu(3).bool()
    return {
        "none": {},
        "boolean": {"attn_mask": causal},
        "float": {"attn_mask": torch.randn(5, 7).double()},
        "each head": {"attn_mask": torch.randn(2 * 3, 5, 7).double()},
        "padding": {"key_padding_mask": torch.arange(7)[None] >= torch.tensor([[6], [4]])},
        "both": {"attn_mask": causal, "key_padding_mask": torch.arange(7)[None] >= torch.tensor([[6], [4]])},
    }[kind]


@pytest.mark.parametrize("kind", ["none", "boolean", "float", "each head", "padding", "both"])
@pytest.mark.parametrize("settings", [{}, {"batch_first": True}, {"bias": False}, {"kdim": 4, "vdim": 6}])
@pytest.mark.parametrize("average", [True, False])
def test_values_weights_and_gradients_are_torchs(kind, settings, average):
    torch.manual_seed(1)
    theirs, ours = pair(**settings)
    first = settings.get("batch_first", False)
    query, key, value = (
        torch.randn(*((2, n) if first else (n, 2)), size).double()
        for n, size in ((5, 12), (7, settings.get("kdim", 12)), (7, settings.get("vdim", 12)))
    )
    chosen, found = masks(kind), []
    for one in (theirs, ours):
        out, weights = one(query, key, value, average_attn_weights=average, **chosen)
        out.square().sum().backward()
        found.append([out, weights, *(weight.grad for weight in one.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_single_sequence_and_no_weights():
    theirs, ours = pair()
    x = torch.randn(5, 12).double()
    torch.testing.assert_close(ours(x, x, x, need_weights=False)[0], theirs(x, x, x)[0])
    assert ours(x, x, x, need_weights=False)[1] is None


def encoder():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(12, 3, 16, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def test_a_whole_encoder_is_the_same_in_training_and_evaluation():
    theirs = encoder()
    ours = open_attention_(copy.deepcopy(theirs))
    x, hidden = torch.randn(2, 6, 12), torch.ones(6, 6).triu(1).bool()
    torch.testing.assert_close(ours(x, hidden), theirs(x, hidden))
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x, hidden), theirs.eval()(x, hidden))
    assert set(ours.state_dict()) == set(theirs.state_dict())


def test_the_monitor_sees_the_same_opened_or_not():
    hidden, seen = encoder(), open_attention_(encoder())
    x, logits = torch.randn(2, 6, 12), []
    for model in (hidden, seen):
        with measure.Monitor(model, probes="attention") as monitor:
            monitor.measure(x)
        table = monitor.table()
        logits.append(table[table["quantity"] == "max attention logit"].set_index("module")["value"])
    assert logits[0].to_dict() == pytest.approx(logits[1].to_dict(), rel=1e-5)
    first = seen.layers[0].self_attn
    q, k = (
        (x @ w.T + b).unflatten(-1, (3, 4)).transpose(1, 2)
        for w, b in list(zip(first.in_proj_weight.chunk(3), first.in_proj_bias.chunk(3), strict=True))[:2]
    )
    assert logits[1]["layers.0.self_attn"] == pytest.approx(
        float((q @ k.mT / 2).detach().abs().max()), rel=1e-5
    )


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_norms_bound_logits_and_make_the_size_of_projections_irrelevant(norm):
    model = add_qk_norm_(encoder(), norm)
    larger = copy.deepcopy(model)
    for layer in larger.layers:
        layer.self_attn.in_proj_weight.data[:24] *= 1000  # queries and keys
        layer.self_attn.in_proj_bias.data[:24] *= 1000
    x = torch.randn(2, 6, 12)
    for mode in (True, False):  # torch's fused path would go around the norms in evaluation
        with torch.no_grad():
            torch.testing.assert_close(larger.train(mode)(x), model.train(mode)(x), rtol=1e-3, atol=1e-4)
    with measure.Monitor(larger, probes="attention") as monitor:
        monitor.measure(x)
    table = monitor.table()
    assert table[table["quantity"] == "max attention logit"]["value"].max() <= 2.001  # root of heads of 4
    with pytest.raises(ValueError, match="already"):
        add_qk_norm_(model, norm)


def test_what_cannot_be_opened_is_told():
    with pytest.raises(ValueError, match="MultiheadAttention to open"):
        open_attention_(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="add_zero_attn"):
        open_attention_(nn.MultiheadAttention(4, 2, add_zero_attn=True))
    model = open_attention_(nn.MultiheadAttention(4, 2))
    assert open_attention_(model) is model
    with pytest.raises(ValueError, match="hint"):
        model(*[torch.ones(2, 4)] * 3, is_causal=True)
