"""Windows are a pure function of seed and step, and an epoch reads every window once."""

import pytest
import torch

from allometry.data import Corpus, StackedWindows, Windows, validation_windows

TEXT = torch.arange(1013, dtype=torch.int32)


def test_targets_are_inputs_moved_on_by_one():
    inputs, targets = Windows(TEXT, 16, 4, 0).batch(3)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.shape == targets.shape == (4, 16)
    assert inputs.is_contiguous()
    assert targets.is_contiguous()
    assert torch.equal(inputs + 1, targets)
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(16))


def test_a_batch_does_not_depend_on_what_was_read_before():
    steps = [90, 0, 17, 17, 3, 250, 1]
    one = Windows(TEXT, 16, 4, 5)
    for step in steps:
        fresh = Windows(TEXT, 16, 4, 5)
        assert torch.equal(one.batch(step)[0], fresh.batch(step)[0])
    many = Windows(TEXT, 16, 4, 5).batches(steps)
    assert torch.equal(many[1], torch.stack([one.batch(step)[1] for step in steps]))


@pytest.mark.parametrize("batch", [1, 4, 7, 61])
def test_an_epoch_reads_every_window_exactly_once(batch):
    windows = Windows(TEXT, 16, batch, 2)
    each = windows.windows_per_epoch
    assert each == 1013 // 16 - 1
    steps = -(-3 * each // batch)
    starts = windows.starts(range(steps)).flatten()
    offsets = set()
    for epoch in range(3):
        here = starts[epoch * each : (epoch + 1) * each].sort().values
        assert torch.equal(here.diff(), torch.full((each - 1,), 16))
        assert 0 <= int(here[0]) < 16
        assert int(here[-1]) + 17 <= len(TEXT)
        offsets.add(int(here[0]))
    assert len(offsets) > 1  # other borders in other epochs


@pytest.mark.parametrize("length", [32, 33, 47, 48])
def test_the_shortest_text_is_read_to_its_end_and_never_beyond(length):
    text = torch.arange(length)
    firsts = set()
    for seed in range(200):
        _, targets = Windows(text, 16, 1, seed).batch(0)
        firsts.add(int(targets[0, 0]) - 1)
        assert torch.equal(targets[0], targets[0, 0] + torch.arange(16))
    # 16 offsets, 200 seeds: each is missed with probability 16 · (15/16)^200 = 4e-5.
    assert firsts >= set(range(16))


def test_seeds_give_different_orders_and_the_same_windows_of_text():
    orders = [Windows(TEXT, 16, 60, seed).starts([0])[0] for seed in range(20)]
    assert len({tuple(order.tolist()) for order in orders}) == 20
    consecutive = [Windows(TEXT, 16, 60, 0).starts([step])[0] for step in range(2)]
    assert not torch.equal(*consecutive)


def test_a_larger_batch_takes_more_of_the_same_order():
    small = Windows(TEXT, 16, 5, 3).starts(range(12)).flatten()
    large = Windows(TEXT, 16, 20, 3).starts(range(3)).flatten()
    assert torch.equal(small, large)


def test_order_of_an_epoch_is_uniform():
    """Over many seeds each window comes first equally often (chi-squared, 19 degrees of freedom)."""
    text = torch.arange(21 * 4)
    counts = torch.zeros(20)
    for seed in range(2000):
        counts[int(Windows(text, 4, 1, seed).starts([0])) // 4] += 1
    chi_squared = float(((counts - 100) ** 2 / 100).sum())
    assert chi_squared < 50.8  # exceeded once in ten thousand


def test_a_generator_counts_by_its_seed_and_is_left_alone():
    generator = torch.Generator().manual_seed(11)
    before = Windows(TEXT, 16, 4, generator).batch(2)[0]
    torch.rand(5, generator=generator)
    state = generator.get_state()
    after = Windows(TEXT, 16, 4, generator).batch(2)[0]
    assert torch.equal(before, after)
    assert torch.equal(generator.get_state(), state)
    assert torch.equal(before, Windows(TEXT, 16, 4, 11).batch(2)[0])
    global_state = torch.get_rng_state()
    Windows(TEXT, 16, 4, generator).batch(2)
    assert torch.equal(torch.get_rng_state(), global_state)


def test_epochs_are_windows_read_over_windows_there_are():
    windows = Windows(TEXT, 16, 4, 0)
    assert windows.epochs(0) == 0.0
    assert windows.epochs(31) == 31 * 4 / 62
    assert windows.tokens_per_epoch == 62 * 16
    assert windows.tokens_per_batch == 64


@pytest.mark.parametrize("one_text", [True, False])
def test_stacked_replicas_are_their_single_batches(one_text):
    texts = [TEXT if one_text else TEXT.clone() + replica for replica in range(3)]
    singles = [Windows(text, 16, 4, seed) for seed, text in enumerate(texts)]
    stacked = StackedWindows(singles)
    inputs, targets = stacked.batch(40)
    assert inputs.shape == (3, 4, 16)
    for replica, single in enumerate(singles):
        assert torch.equal(inputs[replica], single.batch(40)[0])
        assert torch.equal(targets[replica], single.batch(40)[1])
    many = stacked.batches([40, 2])
    assert many[0].shape == (2, 3, 4, 16)
    assert torch.equal(many[1][0], targets)


def test_validation_windows_are_even_and_do_not_overlap():
    for n in (1, 2, 7, 63):
        inputs, targets = validation_windows(TEXT, 16, n)
        assert torch.equal(inputs + 1, targets)
        starts = inputs[:, 0]
        assert int(starts[0]) == 0
        if n > 1:
            gaps = starts.diff()
            assert int(gaps.min()) >= 16
            assert int(gaps.max() - gaps.min()) <= 1
            assert int(targets[-1, -1]) == len(TEXT) - 1
    assert len(validation_windows(TEXT, 16)[0]) == 1012 // 16
    assert torch.equal(validation_windows(TEXT, 1012)[1][0], TEXT[1:].long())


def test_bytes_behind_validation_targets_come_from_the_same_windows():
    corpus = Corpus({f"{i}": "été " * 50 + str(i) for i in range(300)})
    tokens = corpus.tokens("validation")
    _, targets = validation_windows(tokens, 32, 10)
    _, lengths = validation_windows(corpus.byte_lengths("validation"), 32, 10)
    assert lengths.shape == targets.shape
    assert int(lengths.sum()) == 320


def test_bad_arguments_get_a_sentence():
    with pytest.raises(ValueError, match="at least 1040 are needed"):
        Windows(TEXT, 16, 64, 0)
    assert Windows(torch.arange(1040), 16, 64, 0).windows_per_epoch == 64  # and that is enough
    with pytest.raises(ValueError, match="context is 0"):
        Windows(TEXT, 0, 4, 0)
    with pytest.raises(ValueError, match="batch is -1"):
        Windows(TEXT, 4, -1, 0)
    with pytest.raises(ValueError, match="step is -1"):
        Windows(TEXT, 4, 4, 0).batch(-1)
    with pytest.raises(TypeError, match="one-dimensional tensor of integers"):
        Windows(TEXT.float(), 4, 4, 0)
    with pytest.raises(ValueError, match="63 windows fit"):
        validation_windows(TEXT, 16, 64)
    with pytest.raises(ValueError, match="too few for 1 windows"):
        validation_windows(torch.arange(10), 16)
    with pytest.raises(ValueError, match="one context and one batch size"):
        StackedWindows([Windows(TEXT, 16, 4, 0), Windows(TEXT, 8, 4, 0)])
    with pytest.raises(ValueError, match="no windows"):
        StackedWindows([])
