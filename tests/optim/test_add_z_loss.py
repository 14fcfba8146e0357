"""The cures as switches on models of transformers: each in one line, and each doing what it says."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from allometry import init, measure, models, optim

transformers = pytest.importorskip("transformers")


def llama(width=16):
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=32, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, head_dim=8,
        num_attention_heads=width // 8, num_key_value_heads=width // 8, max_position_embeddings=32,
    ))  # fmt: skip


def gpt2(width=16):
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=32, n_embd=width, n_layer=2, n_head=2, n_positions=32,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    ))  # fmt: skip


@pytest.fixture(params=[llama, gpt2])
def model(request):
    return request.param().train()


def tokens(seed=0):
    return torch.randint(32, (3, 12), generator=torch.Generator().manual_seed(seed))


def test_the_loss_is_cross_entropy_with_z_over_the_labelled_positions(model):
    x, labels = tokens(), tokens()
    labels[:, :5] = -100
    plain = model(input_ids=x, labels=labels)
    handle = optim.add_z_loss_(model, 0.1)
    found = model(input_ids=x, labels=labels).loss
    wanted, nats = optim.cross_entropy_with_z(plain.logits[:, :-1], labels[:, 1:], 0.1)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(plain.loss, nats)
    torch.testing.assert_close(model.eval()(input_ids=x, labels=labels).loss, nats)  # what is compared
    assert model.train()(input_ids=x).loss is None
    handle.remove()
    torch.testing.assert_close(model(input_ids=x, labels=labels).loss, nats)


def test_it_draws_log_z_towards_zero(model):
    other = copy.deepcopy(model)
    optim.add_z_loss_(other, 1.0)
    sizes = []
    for one in (model, other):
        optimizer = torch.optim.Adam(one.parameters(), 1e-2)
        for step in range(60):
            x = tokens(step)
            one(input_ids=x, labels=x).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        sizes.append(float(torch.logsumexp(one(input_ids=tokens(99)).logits, -1).abs().mean().detach()))
    assert sizes[1] < 0.5 * sizes[0]


def test_a_model_with_it_is_copied_and_pickled(model):
    optim.add_z_loss_(model, 0.1)
    x = tokens()
    again = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    torch.testing.assert_close(again(input_ids=x, labels=x).loss, model(input_ids=x, labels=x).loss)
    assert set(again.state_dict()) == set(model.state_dict())


def test_what_it_cannot_be_added_to_is_told(model):
    with pytest.raises(ValueError, match="at least 0"):
        optim.add_z_loss_(model, -1.0)
    optim.add_z_loss_(model)
    with pytest.raises(ValueError, match="already"):
        optim.add_z_loss_(model)
    with pytest.raises(ValueError, match="loss and logits"):
        model(input_ids=tokens(), labels=tokens(), return_dict=False)


def test_normalised_queries_and_keys_bound_the_logits(model):
    for name, weight in model.named_parameters():
        if "q_proj" in name or "k_proj" in name or "c_attn" in name:
            weight.data *= 100

    def largest(one):
        with measure.Monitor(one, probes="attention") as monitor:
            monitor.measure(input_ids=tokens())
        return monitor.table().set_index("quantity").loc["max attention logit", "value"].max()

    wild = largest(model)
    models.add_qk_norm_(model)
    assert largest(model) <= math.sqrt(8) * 1.001 < 0.1 * wild  # heads of 8, scales of 1


def test_decay_without_gradients_does_not_depend_on_the_rate(model):
    ends = []
    for rate in (1e-3, 1e-1):
        one = copy.deepcopy(model)
        optimizer = optim.AdamWIndependent(one.parameters(), rate, weight_decay=0.01)
        for weight in one.parameters():
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
        ends.append(torch.cat([weight.flatten() for weight in one.parameters()]))
    torch.testing.assert_close(*ends)


def test_warm_up_starts_low_and_reaches_the_rate(model):
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    scheduler = optim.as_scheduler(optimizer, optim.cosine, 100, warmup=10)
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] <= 0.01 + 1e-9
    assert max(rates) == pytest.approx(0.1)
    assert rates[:10] == sorted(rates[:10])


def test_maximal_update_slows_hidden_matrices_alone():
    wide = init.apply_(llama(32), llama(16))
    groups = optim.param_groups(wide, 0.1, init.roles(wide))
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rate[id(wide.model.layers[0].mlp.up_proj.weight)] == pytest.approx(0.05)
    assert rate[id(wide.model.embed_tokens.weight)] == pytest.approx(0.1)


def test_a_module_without_labels_is_left_alone():
    linear = nn.Linear(2, 2)
    optim.add_z_loss_(linear)
    assert linear(torch.ones(1, 2)).shape == (1, 2)
