"""Checkpoints that survive a power cut: safetensors, written beside, synced, renamed; the one before is kept.

A checkpoint is one file: named tensors, and a JSON note in the file's own header. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

_NOTE = "allometry"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, with the reason."""


def write_atomically(path: Path, content: bytes, *, previous: Path | None = None) -> None:
    """Put ``content`` at ``path``; a reader, or a crash, sees the old file or the new one, never a part.

    With ``previous`` the file so far moves there, once the new one is safely on the disk beside it.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OSError(
            error.errno, f"could not write {path} ({error.strerror}); what was written before is kept"
        ) from None
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and note of one checkpoint file, on the CPU.

    Raises
    ------
    CheckpointError
        If the file is missing, cut short or not a checkpoint.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            note = json.loads((file.metadata() or {})[_NOTE])
            return {name: file.get_tensor(name) for name in file.keys()}, note  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable checkpoint: {error}") from None


class Checkpointer:
    """One run's checkpoints in one folder.

    Parameters
    ----------
    directory : path
        Made if it is missing.
    every : float
        Seconds between the checkpoints that :meth:`due` asks for. Time decides when a state is written,
        never what is in it.
    """

    def __init__(self, directory: str | Path, *, every: float = 20.0) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.every = every
        self._last = time.monotonic()
        self._unreadable: set[str] = set()
        for left in self.directory.glob(".*.part"):  # of a process that died while it wrote
            left.unlink(missing_ok=True)

    def due(self) -> bool:
        """Whether ``every`` seconds have passed since the last checkpoint."""
        return time.monotonic() - self._last >= self.every

    def path(self, name: str) -> Path:
        """Where the checkpoint ``name`` lies."""
        return self.directory / f"{name}.safetensors"

    def save(self, name: str, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> Path:
        """Write a checkpoint; the one of this name so far becomes ``name.previous``."""
        path = self.path(name)
        # tied weights and views are written apart: safetensors refuses shared memory
        apart = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
        content = save(apart, metadata={_NOTE: json.dumps(note)})
        # a file that could not be read must not take the place of the one before, which could
        previous = None if name in self._unreadable else self.path(f"{name}.previous")
        write_atomically(path, content, previous=previous)
        self._unreadable.discard(name)
        self._last = time.monotonic()
        return path

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest readable checkpoint of this name, or None where there is none.

        Where the newest cannot be read, a warning says so and the one before it is returned.

        Raises
        ------
        CheckpointError
            If files are there and none can be read.
        """
        failure: CheckpointError | None = None
        for candidate in (self.path(name), self.path(f"{name}.previous")):
            if not candidate.exists():
                continue
            try:
                found = load(candidate)
                if failure is not None:
                    at = f" (step {found[1]['step']})" if "step" in found[1] else ""
                    warnings.warn(f"{failure}; the one before it{at} is taken instead", stacklevel=2)
                return found
            except CheckpointError as error:
                failure = failure or error
                if candidate == self.path(name):
                    self._unreadable.add(name)
        if failure is not None:
            raise CheckpointError(f"{failure}; delete {self.directory} to train this run again")
        return None

    def every_note(self, name: str) -> list[tuple[dict[str, Tensor], dict[str, Any]]]:
        """All readable checkpoints of this name, the newest first."""
        found = []
        for candidate in (self.path(name), self.path(f"{name}.previous")):
            with contextlib.suppress(CheckpointError):
                found.append(load(candidate))
        return found

    def of_process(self, rank: int, size: int) -> Checkpointer:
        """Where process ``rank`` of ``size`` keeps its own part: a folder inside this one."""
        return Checkpointer(self.directory / f"process-{rank}-of-{size}", every=self.every)

    def remove(self, name: str) -> None:
        """Delete the checkpoint ``name`` and the one before it."""
        for path in (self.path(name), self.path(f"{name}.previous")):
            path.unlink(missing_ok=True)


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors ``"index.name"`` and a JSON note of everything else."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    other: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                other.setdefault(str(index), {})[name] = value
    return tensors, {"groups": state["param_groups"], "other": other}


def _like(weight: Tensor, value: Tensor) -> Tensor:
    """``value`` as a part of a sharded tensor, where ``weight`` is sharded and of that shape."""
    if not hasattr(weight, "to_local") or value.ndim == 0:
        return value
    from torch.distributed.tensor import DTensor

    assert isinstance(weight, DTensor)
    return DTensor.from_local(
        value, weight.device_mesh, weight.placements, shape=weight.shape, stride=weight.stride()
    )


def unflatten_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], note: Mapping[str, Any]
) -> None:
    """Give an optimizer back what :func:`flatten_optimizer` took; tensors are copied.

    Of a sharded parameter (FSDP2) each process has stored its own part.
    """
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in note["other"].items()}
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = _like(weights[int(index)], value.clone())
    groups = [dict(group) for group in note["groups"]]
    for group, now in zip(groups, optimizer.param_groups, strict=False):  # JSON knows no tuples
        group |= {key: tuple(group[key]) for key in group if isinstance(now.get(key), tuple)}
    optimizer.load_state_dict({"state": state, "param_groups": groups})
