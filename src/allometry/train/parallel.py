"""One program in several processes: started here or by ``torchrun``, replicated (DDP) or sharded (FSDP2).

Data parallelism with bucketed all-reduce: Li and others, 2020. arXiv:2006.15704. Fully sharded: Zhao and
others, 2023. arXiv:2304.11277, in its second form, ``torch.distributed.fsdp.fully_shard``.

* :func:`launch` starts n processes as ``torchrun --nproc-per-node n`` would, and joins them; inside a program
  that ``torchrun`` itself started it only runs the function. Either way the process group is gone afterwards.
* :func:`shard` wraps a model. Gradients are averaged over processes, so n processes with a batch each make
  the step of one process with the n batches put together.
* :func:`clip_grad_norm` uses the norm of the whole gradient, also where each process holds a part of it.
* :func:`full_state_dict` is what a single process would save; :func:`load_full_state_dict` takes it back.
* The processor is enough: gloo carries both strategies.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

_OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def launch(
    function: Callable[..., Any],
    processes: int,
    *arguments: Any,
    backend: Literal["gloo", "nccl"] | None = None,
    threads: int | None = None,
    timeout: float = 600.0,
) -> None:
    """Run ``function(*arguments)`` in ``processes`` processes that can talk to each other.

    Parameters
    ----------
    function : callable
        Importable by name (defined at the top of a module), because new processes import it.
    processes : int
        Ignored where ``torchrun`` has started this very program: its own number holds.
    *arguments
        Given to every process; must be picklable.
    backend : "gloo" or "nccl", optional
        nccl where every process has a CUDA device of its own, gloo otherwise.
    threads : int, optional
        Threads of each process; by default an equal share of the processors, at least 1.
    timeout : float
        Seconds that a collective may take before the run fails.

    Raises
    ------
    ValueError
        If ``processes`` is less than 1.
    RuntimeError
        If a process group exists already.
    torch.multiprocessing.ProcessRaisedException
        With the traceback of the first process that failed; the others are ended.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    if dist.is_initialized():
        raise RuntimeError("launch was called inside a running process group; call the function itself there")
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:  # torchrun was here
        with _group(backend, timeout):
            function(*arguments)
        return
    threads = threads or max(1, torch.get_num_threads() // processes)
    with socket.socket() as free:  # the system picks a port; gone again before anyone could miss it
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(
        _process,
        args=(processes, port, threads, backend, timeout, function, arguments),
        nprocs=processes,
        join=True,
    )


def _process(
    rank: int,
    processes: int,
    port: int,
    threads: int,
    backend: Literal["gloo", "nccl"] | None,
    timeout: float,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(threads)
    values = (rank, processes, rank, "127.0.0.1", port)
    os.environ.update({name: str(value) for name, value in zip(_OURS, values, strict=True)})
    if sys.platform == "linux":  # gloo would look its own host name up, which can take a minute off line
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        with _group(backend, timeout):
            function(*arguments)
    except RuntimeError:
        # most likely a connection that another process lost when it failed: let that one be reported
        time.sleep(2.0)
        raise
    # Leaving by the ordinary door, a process with sharded models now and then aborts while C++ tears down
    # threads that the group left behind ("terminate called without an active exception"). All is done here.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextmanager
def _group(backend: Literal["gloo", "nccl"] | None, timeout: float) -> Iterator[None]:
    local, processes = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ["WORLD_SIZE"])
    per_machine = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    if backend is None:
        backend = "nccl" if torch.cuda.is_available() and torch.cuda.device_count() >= per_machine else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(local)
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    try:
        yield
        dist.barrier()  # nobody leaves while another still talks
    finally:
        gc.collect()  # what still holds the group goes before it
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, 0 where there is only one.

    >>> rank()
    0
    """
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes, 1 where no group exists.

    >>> world_size()
    1
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that writes and speaks.

    >>> is_main()
    True
    """
    return rank() == 0


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """The modules that a model repeats: the members of its longest ``ModuleList`` of one class.

    Empty where there is none. Of two equally long lists the one nearer to the root.

    >>> blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    >>> len(find_blocks(nn.ModuleDict({"blocks": blocks, "head": nn.Linear(2, 1)})))
    3
    """
    best: list[nn.Module] = []
    for module in model.modules():  # from the root down
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1:
            members = list(module)
            if len({type(member) for member in members}) == 1 and len(members) > len(best):
                best = members if any(True for _ in members[0].parameters()) else best
    return best


def shard(model: nn.Module, how: Literal["ddp", "fsdp2"] | None = None) -> nn.Module:
    """Wrap ``model`` so that its gradients are the mean over all processes.

    Parameters
    ----------
    model : nn.Module
        With the same weights in every process, or with any under "ddp", which starts from process 0's.
    how : "ddp", "fsdp2" or None
        Replicate; or shard parameters, gradients and optimizer state over the processes, block by block
        (:func:`find_blocks`), in place; or leave the model alone. With a single process always the last.

    Returns
    -------
    nn.Module
        Make the optimizer from *its* parameters, after this call.

    Raises
    ------
    ValueError
        For another ``how``, or a strategy without a process group (:func:`launch`).
    """
    if how is None:
        return model
    if how not in ("ddp", "fsdp2"):
        raise ValueError(f"how is 'ddp', 'fsdp2' or None, got {how!r}")
    if not dist.is_initialized():
        if "RANK" in os.environ:
            raise ValueError(
                f"shard(model, {how!r}) needs a process group; run your function through train.launch"
            )
        return model
    device = next(model.parameters()).device
    if how == "ddp":
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world_size(),))
    for block in find_blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def unwrap(model: nn.Module) -> nn.Module:
    """The module that :func:`shard` was given."""
    from torch.nn.parallel import DistributedDataParallel

    return model.module if isinstance(model, DistributedDataParallel) else model


def clip_grad_norm(model: nn.Module, max_norm: float) -> Tensor:
    """``torch.nn.utils.clip_grad_norm_`` with the norm of the whole gradient, whoever holds its parts.

    Returns the norm before, shape (), the same on every process.
    """
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def local(value: Tensor) -> Tensor:
    """This process's part of a sharded tensor, or the tensor itself."""
    return value.to_local() if hasattr(value, "to_local") else value


class Crew:
    """What the processes of one sharded run share out and must agree on, step by step.

    Alone, or with a model that :func:`shard` left as it was, every method gives back what it was given.

    >>> crew = Crew(nn.Linear(2, 2))
    >>> crew.agree([1.5], False), crew.share(torch.arange(4)).tolist()
    (([1.5], [False]), [0, 1, 2, 3])
    """

    def __init__(self, model: nn.Module) -> None:
        from torch.nn.parallel import DistributedDataParallel

        sharded = isinstance(model, DistributedDataParallel) or any(
            hasattr(parameter, "to_local") for parameter in model.parameters()
        )
        self.size = world_size() if sharded else 1
        self.rank = rank() if sharded else 0
        self._device = next(iter(model.parameters())).device

    def share(self, batch: Tensor) -> Tensor:
        """This process's rows of a batch that all processes hold.

        Raises
        ------
        ValueError
            If the rows cannot be divided evenly: means over unequal shares would not be the batch's mean.
        """
        if self.size == 1:
            return batch
        if len(batch) % self.size:
            raise ValueError(f"a batch of {len(batch)} cannot be divided evenly among {self.size} processes")
        return batch.chunk(self.size)[self.rank]

    def agree(self, values: list[float], *flags: bool) -> tuple[list[float], list[bool]]:
        """Means of the processes' values, and for each flag whether any process raised it."""
        if self.size == 1:
            return values, list(flags)
        told = torch.tensor([*values, *map(float, flags)], dtype=torch.float64, device=self._device)
        dist.all_reduce(told)
        said = told.tolist()
        means = [value / self.size for value in said[: len(values)]]
        return means, [count > 0 for count in said[len(values) :]]

    def common(self, offered: Collection[tuple[int, ...]]) -> tuple[int, ...] | None:
        """The largest of the offers that every process makes; None where there is none."""
        every: list[Any] = [offered]
        if self.size > 1:
            every = [None] * self.size
            dist.all_gather_object(every, list(offered))
        both = set.intersection(*(set(map(tuple, one)) for one in every))
        return max(both) if both else None

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, whole and on the CPU, under the names of the unwrapped model.

    All processes must call it; the main one gets the tensors, the others an empty dictionary.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    if world_size() == 1:
        return {name: value.detach().cpu() for name, value in unwrap(model).state_dict().items()}
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(unwrap(model), options=options)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)} if is_main() else {}


def load_full_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a sharded, replicated or plain model the state of :func:`full_state_dict`.

    All processes must call it; only the main one's ``state`` is read.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    if world_size() == 1:
        unwrap(model).load_state_dict(dict(state))
        return
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(unwrap(model), dict(state), options=options)


def full_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state, whole: ``state`` by parameter name, and ``param_groups``.

    All processes must call it; the main one gets it, the others an empty dictionary.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    many = world_size() > 1
    options = StateDictOptions(full_state_dict=many, cpu_offload=many)
    state = get_optimizer_state_dict(unwrap(model), optimizer, options=options)
    return dict(state) if is_main() else {}


def load_full_optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> None:
    """Give back what :func:`full_optimizer_state` took, in any number of processes.

    All processes must call it; only the main one's ``state`` is read.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    many = world_size() > 1
    options = StateDictOptions(full_state_dict=many, broadcast_from_rank0=many)
    set_optimizer_state_dict(unwrap(model), optimizer, dict(state), options=options)
