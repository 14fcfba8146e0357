"""Several processes make the steps of one with their batches put together."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from allometry.train.parallel import (
    find_blocks,
    full_state_dict,
    is_main,
    launch,
    load_full_state_dict,
    shard,
)

HERE = Path(__file__).resolve().parent


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch):
    """The example program, importable by name in this process and in new ones."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    spec = importlib.util.spec_from_file_location("parallel_program", HERE / "parallel_program.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["parallel_program"] = module
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("parallel_program", None)


def alone(program) -> tuple[nn.Module, list[float]]:
    """Ten steps of one process on whole batches."""
    model = program.Model()
    return model, program.advance(model, program.make_optimizer(model), range(10))


def check(program, file: Path) -> None:
    model, norms = alone(program)
    found = load_file(file)
    assert found.pop("norms").tolist() == pytest.approx(norms, rel=1e-4)
    assert max(norms) > 0.3  # so that clipping was at work
    assert set(found) == set(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.allclose(found[name], value, atol=1e-5, rtol=0), name
    plain = program.Model()
    load_full_state_dict(plain, found)
    assert torch.equal(plain.leave.weight, found["leave.weight"])


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_two_processes_checkpoint_and_resume_like_one(how: str, program, tmp_path: Path) -> None:
    ours = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    before = [os.environ.get(name) for name in ours]
    launch(program.train, 2, how, str(tmp_path), backend="gloo", threads=1)
    check(program, tmp_path / f"{how}.safetensors")
    assert [os.environ.get(name) for name in ours] == before
    assert not dist.is_initialized()


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_the_loop_stops_and_goes_on_in_two_processes_like_one(how: str, program, tmp_path: Path) -> None:
    model, log = program.fit_model(None, None)
    launch(program.loop, 2, how, str(tmp_path), backend="gloo", threads=1)
    found = load_file(tmp_path / f"{how}.safetensors")
    losses = [record["loss"] for record in log.horizons]
    assert len(losses) == 3
    assert found.pop("losses").tolist() == pytest.approx(losses, abs=1e-5)
    for name, value in model.state_dict().items():
        assert torch.allclose(found[name], value, atol=1e-5, rtol=0), name


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_the_same_program_under_torchrun(how: str, program, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*command, str(HERE / "parallel_program.py"), how, str(tmp_path)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    check(program, tmp_path / f"{how}.safetensors")


def test_a_process_that_fails_ends_the_run_with_its_reason(program) -> None:
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match="told to fail"):
        launch(program.fail, 2, backend="gloo", threads=1, timeout=30)
    assert not dist.is_initialized()


def test_one_process_needs_no_group() -> None:
    model = nn.Linear(2, 2)
    assert shard(model, None) is model
    assert shard(model, "ddp") is model
    assert is_main()
    assert full_state_dict(model).keys() == model.state_dict().keys()
    with pytest.raises(ValueError, match="'ddp', 'fsdp2' or None, got 'zero'"):
        shard(model, "zero")
    with pytest.raises(ValueError, match="at least 1, got 0"):
        launch(print, 0)


def test_blocks_are_what_the_model_repeats() -> None:
    model = nn.ModuleDict(
        {
            "norms": nn.ModuleList([nn.LayerNorm(2), nn.Linear(2, 2)]),
            "layers": nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(4)),
        }
    )
    assert find_blocks(model) == list(model["layers"])
    assert find_blocks(nn.Linear(2, 2)) == []
