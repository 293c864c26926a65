"""Devices, and the processes of a distributed job."""

import ctypes
import datetime
import os
import re
from dataclasses import dataclass

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class World:
    """Rank of this process in its job, and collective operations.

    All processes must call a collective operation (any, sum, gather, barrier).

    Attributes:
      rank: 0 to size - 1; rank 0 writes files and logs.
      size: number of processes.
      device: device of this process.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True for rank 0."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Return True in all processes if ``flag`` is true in any."""
        return self.sum([float(flag)])[0] > 0

    def sum(self, values: list[float]) -> list[float]:
        """Return the sum of each value over all processes."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: object) -> list:
        """Return the ``value`` of every process, by rank."""
        if self.size == 1:
            return [value]
        values: list = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device for "auto", "cpu" or "cuda".

    Raises:
      ValueError: if the name is unknown, or if CUDA is requested and not available.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device '{name}': unknown. Available: auto, cpu, cuda.")
    if name != "auto":
        check_device(name)
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank)


def check_device(name: str) -> None:
    """Raise an error if this machine lacks the device.

    Args:
      name: "cpu", "cuda", or for example "cuda:1" for the second GPU.
    Raises:
      ValueError: if the name is unknown or the device is not available.
    """
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if match is None:
        raise ValueError(
            f"device '{name}': unknown. Available: cpu, cuda, cuda:<number>."
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name != "cpu" and int(match[1] or 0) >= count:
        raise ValueError(
            f"device '{name}': torch finds {count or 'no'} GPU{'s' * (count > 1)}. Use "
            "cpu, or run 'python -m icefall_kd.bin.doctor'."
        )


def assign_device(device: str) -> str:
    """Return the device of this process; for "cuda", one GPU by its LOCAL_RANK.

    Use it after ``init_world("cpu")`` for processes that share work but no model.

    Args:
      device: "cpu", "cuda", or for example "cuda:1", which is returned unchanged.
    Raises:
      ValueError: see :func:`check_device`.
    """
    check_device(device)
    if device != "cuda" or torch.cuda.device_count() < 2:
        return device
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    return f"cuda:{local_rank % torch.cuda.device_count()}"


def init_world(device: str, timeout: float = 600.0) -> World:
    """Join the process group of torchrun; without torchrun, return a group of one.

    Args:
      device: "auto", "cpu" or "cuda".
      timeout: seconds that a collective operation waits for the other processes.
    Raises:
      ValueError: see :func:`pick_device`.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    own_device = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1:
        return World(0, 1, own_device)
    if own_device.type == "cuda":
        torch.cuda.set_device(own_device)
    dist.init_process_group(
        backend="nccl" if own_device.type == "cuda" else "gloo",
        timeout=datetime.timedelta(seconds=timeout),
    )
    return World(dist.get_rank(), size, own_device)


def wrap_ddp(module: nn.Module, find_unused_parameters: bool) -> nn.Module:
    """Return ``module`` in DistributedDataParallel, whose reducer is never freed.

    Freeing the reducer frees gloo's process group while this thread holds the GIL.  A
    gloo thread may then wait for the GIL to free a tensor of the last collective, and
    both wait forever (torch 1.13).  The cost is one reducer per process.

    Args:
      find_unused_parameters: whether a backward pass may miss trained parameters.
    """
    wrapped = DistributedDataParallel(
        module,
        find_unused_parameters=find_unused_parameters,
        broadcast_buffers=False,
    )
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(wrapped.reducer))
    return wrapped


def close_world() -> None:
    """Leave the process group, if any."""
    if dist.is_initialized():
        dist.destroy_process_group()
