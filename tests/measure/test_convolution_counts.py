"""Counts of image networks: the published integers, another library's networks, torch's own counter."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from allometry.measure import complexity, convolution_counts
from allometry.models import RegNetConfig, regnet


def test_a_layer_by_hand():
    """Multiply-adds, biases, pools with a window; a pool over all counts nothing."""
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AvgPool2d(3, stride=1, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip
    counts = convolution_counts(model, torch.zeros(2, 4, 7, 7))
    places = 2 * 6 * 4 * 4
    assert counts.flops == places * (9 * 4 // 2 + 1) + 2 * 5 * (6 + 1)
    assert counts.activations == places + places + 2 * 5
    assert counts.parameters == sum(one.numel() for one in model.parameters())
    by_module = counts.table.set_index("module")
    assert by_module.loc["0", "activations"] == by_module.loc["3", "activations"] == places


@pytest.mark.parametrize("shape", [(3, 8), (2, 3, 8), (2, 8, 3)])
def test_a_bias_counts_whatever_the_shape_of_the_inputs(shape):
    """A dense layer takes several ways through the dispatcher: matrix, batch, strided batch."""
    inputs = torch.zeros(shape) if shape[-1] == 8 else torch.zeros(shape).transpose(1, 2)
    rows = inputs.numel() // 8
    counts = convolution_counts(nn.Linear(8, 5), inputs)
    assert (counts.flops, counts.activations) == (rows * 5 * 9, rows * 5)


def test_torch_counts_twice_as_many_where_nothing_has_a_bias():
    model = regnet(RegNetConfig((16, 32), (1, 2), (8, 8), resolution=32, classes=10)).eval()
    model.head = nn.Linear(32, 10, bias=False)
    images = torch.zeros(2, 3, 32, 32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    counts = convolution_counts(model, images)
    assert counter.get_total_flops() == 2 * counts.flops
    assert complexity(model, images).flops == 2 * counts.flops
    assert complexity(model, images).activations == counts.activations


@pytest.mark.parametrize("layer", ["x", "y"])
def test_another_librarys_regnet_has_the_same_counts(layer):
    """The RegNet of ``transformers``, whose default is Y-4.0GF (its SE also reduces the input's width)."""
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        theirs = transformers.RegNetForImageClassification(
            transformers.RegNetConfig(layer_type=layer, num_labels=1000)
        )
        ours = regnet(RegNetConfig.generate(22, 96, 31.41, 2.24, 64, squeeze=0.25 if layer == "y" else 0.0))
    found = [convolution_counts(one, torch.zeros(1, 3, 224, 224)) for one in (theirs, ours)]
    assert found[0].parameters == found[1].parameters
    assert found[0].flops == found[1].flops
    assert found[0].activations == found[1].activations
    if layer == "y":
        assert found[1].flops == 3_973_301_344


@pytest.mark.parametrize(("layer", "first"), [("x", True), ("y", False)])
def test_a_configuration_of_another_library_is_taken_over(layer, first):
    transformers = pytest.importorskip("transformers")
    config = transformers.RegNetConfig(
        hidden_sizes=[24, 48, 96], depths=[1, 2, 1], groups_width=8, layer_type=layer, num_labels=7,
        downsample_in_first_stage=first, embedding_size=16, num_channels=1,
    )  # fmt: skip
    ours = RegNetConfig.from_transformers(config, resolution=40)
    with torch.device("meta"):
        networks = (transformers.RegNetForImageClassification(config), ours.build())
    found = [convolution_counts(one, torch.zeros(1, 1, 40, 40)) for one in networks]
    assert found[0].parameters == found[1].parameters
    assert (found[0].flops, found[0].activations) == (found[1].flops, found[1].activations)
    config.hidden_act = "gelu"
    with pytest.raises(ValueError, match="ReLU here"):
        RegNetConfig.from_transformers(config)


def test_attention_writes_its_scores():
    """Two products a head: (L, D/H) with (D/H, L), and (L, L) with (L, D/H), beside four dense layers."""
    length, width, heads = 6, 8, 2
    layer = nn.MultiheadAttention(width, heads, batch_first=True)
    x = torch.zeros(1, length, width)
    counts = convolution_counts(layer, (x, x, x))
    dense = length * width * (width + 1)
    assert counts.flops == 4 * dense + 2 * length * length * width
    assert counts.activations == 4 * length * width + heads * length * length + length * width


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    model[2].eval()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    state = torch.random.get_rng_state()
    convolution_counts(model, torch.zeros(1, 3, 5, 5))
    assert [one.training for one in model] == [True, True, False]
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())


class _Looks(nn.Module):
    def forward(self, x):
        return F.relu(x) if bool((x > 0).any()) else x


def test_a_pass_that_looks_at_values_runs_once_for_real():
    """But not on the meta device, where it can not."""
    model = nn.Sequential(nn.Linear(3, 4), _Looks(), nn.BatchNorm1d(4)).train()
    assert convolution_counts(model, torch.ones(2, 3)).flops == 2 * 4 * (3 + 1)
    assert model.training
    assert model[2].num_batches_tracked == 0
    with pytest.raises(ValueError, match="looks at values"):
        convolution_counts(model.to("meta"), torch.ones(2, 3))


def test_a_masked_encoder_of_another_library_is_counted():
    """BERT asks whether its mask is all ones; beside MACs only biases of dense layers count here."""
    transformers = pytest.importorskip("transformers")
    model = transformers.BertModel(
        transformers.BertConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=50
        ),
        add_pooling_layer=False,
    )
    tokens = torch.ones(3, 10, dtype=torch.long)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    macs, biases = complexity(model, inputs).macs, 2 * 30 * (4 * 16 + 32 + 16)
    assert macs == 30 * 2 * (4 * 16 * 16 + 2 * 16 * 32 + 2 * 10 * 16)
    assert convolution_counts(model, inputs).flops == macs + biases
