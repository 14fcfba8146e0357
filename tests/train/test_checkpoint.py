"""Whatever happens while a checkpoint is written, one can be read afterwards."""

import builtins
import contextlib
import errno
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from allometry.train.checkpoint import (
    Checkpointer,
    CheckpointError,
    flatten_optimizer,
    load,
    unflatten_optimizer,
    write_atomically,
)


class PowerCut(BaseException):
    """Ends everything, like a signal; no handler for errors catches it."""


def save(checkpointer, number, name="current"):
    checkpointer.save(
        name, {"a": torch.full((1000,), float(number)), "b": torch.tensor(number)}, {"n": number}
    )


def newest(folder, name="current"):
    """The number in the newest readable checkpoint, as a new process finds it; all parts of one save."""
    found = Checkpointer(folder).load(name)
    if found is None:
        return None
    tensors, note = found
    assert tensors["b"].item() == note["n"]
    assert torch.equal(tensors["a"], torch.full((1000,), float(note["n"])))
    return note["n"]


def bits(value):
    return value.contiguous().reshape(-1).view(torch.uint8)


# ---------------------------------------------------------------- what is kept


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(6.0).reshape(2, 3),
        torch.tensor(3),
        torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).T,
        torch.arange(10)[::3],
        torch.ones(3, dtype=torch.bfloat16),
        torch.tensor([True, False]),
        torch.empty(0, 4),
        torch.tensor([float("nan"), float("inf"), -0.0]),
        torch.Generator().manual_seed(1).get_state(),
    ],
    ids=lambda value: f"{value.dtype} {tuple(value.shape)}",
)
def test_tensors_come_back_bit_for_bit(tmp_path, value):
    path = Checkpointer(tmp_path).save("x", {"value": value}, {})
    found = load(path)[0]["value"]
    assert found.dtype == value.dtype
    assert found.shape == value.shape
    assert torch.equal(bits(found), bits(value))


def test_a_note_comes_back_exactly(tmp_path):
    note = {"loss": 0.1 + 0.2, "none": None, "rows": [{"step": 3, "x": 1e-300}], "text": 'ünï "quoted"\n'}
    Checkpointer(tmp_path).save("x", {"t": torch.zeros(1)}, note)
    assert Checkpointer(tmp_path).load("x")[1] == note


def test_shared_memory_is_written_apart(tmp_path):
    table = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    tied = {"table": table, "head": table, "row": table[2], "turned": table.T}
    Checkpointer(tmp_path).save("x", tied, {})
    found = Checkpointer(tmp_path).load("x")[0]
    assert all(torch.equal(found[name], value) for name, value in tied.items())


def test_a_file_is_safetensors_and_nothing_is_pickled(tmp_path, monkeypatch):
    import pickle

    def refuse(*args, **kwargs):
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "dump", "dumps"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    checkpointer = Checkpointer(tmp_path)
    save(checkpointer, 1)
    assert newest(tmp_path) == 1
    with safe_open(checkpointer.path("current"), framework="pt") as file:
        assert sorted(file.keys()) == ["a", "b"]


def test_the_one_before_is_kept_and_removal_takes_both(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    for number in (1, 2, 3):
        save(checkpointer, number)
    assert load(checkpointer.path("current"))[1]["n"] == 3
    assert load(checkpointer.path("current.previous"))[1]["n"] == 2
    assert len(list(tmp_path.iterdir())) == 2
    checkpointer.remove("current")
    assert list(tmp_path.iterdir()) == []
    assert newest(tmp_path) is None


def test_due_by_the_clock(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    checkpointer = Checkpointer(tmp_path, every=10.0)
    assert not checkpointer.due()
    now[0] = 110.0
    assert checkpointer.due()
    save(checkpointer, 1)
    assert not checkpointer.due()


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("keep", [0, 4, 8, 40, -1])
def test_a_file_cut_short_gives_the_one_before(tmp_path, keep):
    checkpointer = Checkpointer(tmp_path)
    save(checkpointer, 1)
    save(checkpointer, 2)
    path = checkpointer.path("current")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.warns(UserWarning, match="not a readable checkpoint.*the one before it.*taken instead"):
        assert newest(tmp_path) == 1


@pytest.mark.parametrize("renames", [0, 1])
def test_a_damaged_file_never_takes_the_place_of_the_one_before(tmp_path, monkeypatch, renames):
    """Fell back to number 1, then a crash while number 3 is written: number 1 must still be there."""
    save(Checkpointer(tmp_path), 1)
    checkpointer = Checkpointer(tmp_path)
    save(checkpointer, 2)
    checkpointer.path("current").write_bytes(b"damaged")
    again = Checkpointer(tmp_path)
    with pytest.warns(UserWarning, match="the one before it"):
        assert again.load("current")[1]["n"] == 1
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", cut_after(renames, Path.replace, []))
        with contextlib.suppress(PowerCut):
            save(again, 3)
    assert newest(tmp_path) in (1, 3)
    save(again, 4)
    save(again, 5)
    assert load(again.path("current.previous"))[1]["n"] == 4
    assert newest(tmp_path) == 5


def test_nothing_readable_is_one_sentence(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    save(checkpointer, 1)
    save(checkpointer, 2)
    for name in ("current", "current.previous"):
        checkpointer.path(name).write_bytes(b"\x10\0\0\0\0\0\0\0 no checkpoint at all")
    with pytest.raises(CheckpointError, match=r"not a readable checkpoint.*delete") as caught:
        Checkpointer(tmp_path).load("current")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert caught.value.__cause__ is None


def test_another_programs_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load(tmp_path / "missing.safetensors")


# ---------------------------------------------------------------- power cuts


def cut_after(allowed, function, log):
    """``function``, that ends everything instead of its call number ``allowed`` (counted over ``log``)."""

    def counted(*args, **kwargs):
        if len(log) == allowed:
            raise PowerCut
        log.append(function)
        return function(*args, **kwargs)

    return counted


def test_a_crash_between_any_two_file_operations_leaves_a_state(tmp_path, monkeypatch):
    """Number 1 is written undisturbed, 2 and 3 until the crash; what is found is whole and not too old."""
    crashes = 0
    for operation in range(100):
        folder = tmp_path / str(operation)
        checkpointer = Checkpointer(folder)
        save(checkpointer, 1)
        log, finished, ended = [], 1, False
        with monkeypatch.context() as patch:
            watched = [(Path, name) for name in ("replace", "open", "unlink", "exists")]
            for owner, name in (*watched, (os, "fsync"), (os, "open")):
                patch.setattr(owner, name, cut_after(operation, getattr(owner, name), log))
            try:
                for number in (2, 3):
                    save(checkpointer, number)
                    finished = number
                ended = True
            except PowerCut:
                crashes += 1
        found = newest(folder)
        assert found in (finished, finished + 1), f"operation {operation}"
        assert not list(folder.glob(".*.part"))  # the next process has tidied up
        if ended:
            break
    assert ended
    assert crashes >= 10


def test_a_crash_in_the_middle_of_a_write_leaves_the_old_file(tmp_path, monkeypatch):
    checkpointer = Checkpointer(tmp_path)
    save(checkpointer, 1)
    real = Path.open

    class Half:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, content):
            self.file.write(content[: len(content) // 2])
            raise PowerCut

    monkeypatch.setattr(Path, "open", lambda self, mode="r": Half(real(self, mode)))
    with pytest.raises(PowerCut):
        save(checkpointer, 2)
    monkeypatch.undo()
    assert len(list(tmp_path.glob(".*.part"))) == 1
    assert newest(tmp_path) == 1
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_at_random_moments(tmp_path):
    """A process that does nothing but save is killed; what it had finished is there, or the one it was at."""
    generator = random.Random(0)
    for attempt in range(25):
        folder = tmp_path / str(attempt)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:  # pragma: no cover
            try:
                checkpointer = Checkpointer(folder)
                for number in range(1, 100_000):
                    save(checkpointer, number)
                    os.write(writer, number.to_bytes(4, "big"))
            finally:
                os._exit(1)
        os.close(writer)
        with builtins.open(reader, "rb") as pipe:
            told = pipe.read(4)  # however busy the machine, one save is through
            time.sleep(generator.uniform(0.0, 0.03))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            told += pipe.read()
        finished = int.from_bytes(told[-4:], "big")
        assert finished == len(told) // 4 >= 1
        assert newest(folder) in (finished, finished + 1)


# ---------------------------------------------------------------- a full disk


@pytest.mark.parametrize("where", ["open", "write", "fsync"])
def test_a_full_disk_is_one_sentence_and_the_old_files_stay(tmp_path, monkeypatch, where):
    checkpointer = Checkpointer(tmp_path)
    save(checkpointer, 1)
    save(checkpointer, 2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        write = full

    with monkeypatch.context() as patch:
        if where == "fsync":
            patch.setattr(os, "fsync", full)
        elif where == "open":
            patch.setattr(Path, "open", full)
        else:
            real = Path.open
            patch.setattr(Path, "open", lambda self, mode="r": Full(real(self, mode)))
        with pytest.raises(OSError, match=r"could not write .*current.*No space left") as caught:
            save(checkpointer, 3)
    assert caught.value.errno == errno.ENOSPC
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    save(checkpointer, 4)  # and once there is room again all goes on
    assert newest(tmp_path) == 4


def test_an_atomic_write_replaces_or_changes_nothing(tmp_path):
    path = tmp_path / "record.json"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]
    with pytest.raises(OSError, match="could not write"):
        write_atomically(tmp_path / "no such folder" / "x", b"three")


# ---------------------------------------------------------------- optimizers

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adamw amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True, betas=(0.8, 0.9)),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_optimizer_goes_on_as_if_it_had_never_stopped(tmp_path, make):
    def start():
        model = torch.nn.Linear(4, 3)
        with torch.no_grad():
            model.weight.copy_(torch.linspace(-1, 1, 12).reshape(3, 4))
            model.bias.zero_()
        groups = [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.003, "weight_decay": 0.0}]
        return model, make(groups)

    def step(model, optimizer, at):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(at))
        optimizer.zero_grad()
        (model(x) ** 2).mean().backward()
        optimizer.step()

    whole, whole_optimizer = start()
    for at in range(8):
        step(whole, whole_optimizer, at)
    first, first_optimizer = start()
    for at in range(5):
        step(first, first_optimizer, at)
    tensors, note = flatten_optimizer(first_optimizer)
    Checkpointer(tmp_path).save("x", tensors, note)
    second, second_optimizer = start()
    second.load_state_dict(first.state_dict())
    unflatten_optimizer(second_optimizer, *Checkpointer(tmp_path).load("x"))
    for at in range(5, 8):
        step(second, second_optimizer, at)
    assert torch.equal(second.weight, whole.weight)
    assert torch.equal(second.bias, whole.bias)
    for ours, theirs in zip(second_optimizer.param_groups, whole_optimizer.param_groups, strict=True):
        assert {k: v for k, v in ours.items() if k != "params"} == {
            k: v for k, v in theirs.items() if k != "params"
        }
