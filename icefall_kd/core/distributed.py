"""Several processes: torchrun's environment in, one small object out."""

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
    """Place of this process among all.

    Attributes:
      rank: 0 .. size - 1; rank 0 writes files and logs.
      size: number of processes.
      device: where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True for the process that writes."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Tell whether ``flag`` is true in any process; all get the same answer."""
        return self.sum([float(flag)])[0] > 0

    def sum(self, values: list[float]) -> list[float]:
        """Return each value's sum over all processes."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: object) -> list:
        """Return every process's ``value``, by rank."""
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
      ValueError: if the name is unknown, or CUDA is asked for and absent.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device is '{name}'; it can be auto, cpu or cuda")
    if name != "auto":
        check_device(name)
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank)


def check_device(name: str) -> None:
    """Refuse a device that this machine lacks, before anything is loaded.

    Args:
      name: "cpu", "cuda", or "cuda:1" for the second GPU.
    Raises:
      ValueError: with the remedy.
    """
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if match is None:
        raise ValueError(f"device is '{name}'; it can be cpu, cuda or cuda:<number>")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name != "cpu" and int(match[1] or 0) >= count:
        raise ValueError(
            f"device is {name}, but torch sees {count or 'none'} of its kind; use cpu, "
            "or see what 'python -m icefall_kd.bin.doctor' finds"
        )


def init_world(device: str, timeout: float = 600.0) -> World:
    """Join the processes that torchrun started; alone without torchrun.

    Args:
      device: "auto", "cpu" or "cuda".
      timeout: s that a process waits for the others before it gives up.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    place = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1:
        return World(0, 1, place)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group(
        backend="nccl" if place.type == "cuda" else "gloo",
        timeout=datetime.timedelta(seconds=timeout),
    )
    return World(dist.get_rank(), size, place)


def assign_device(device: str) -> str:
    """Return ``device``, where it is "cuda" the GPU of this process among several.

    For processes that share work without a common model: ``init_world("cpu")`` tells
    their places.

    Raises:
      ValueError: as :func:`check_device`.
    """
    check_device(device)
    if device != "cuda" or torch.cuda.device_count() < 2:
        return device
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    return f"cuda:{local_rank % torch.cuda.device_count()}"


def wrap_ddp(module: nn.Module) -> nn.Module:
    """Return ``module`` in DistributedDataParallel; its reducer is never freed.

    Freeing the reducer frees gloo's process group while this thread holds the GIL.  A
    thread of gloo may then wait for the GIL to free a tensor of the last collective,
    and both wait forever (torch 1.13).  One reducer a process is the price.
    """
    # A term without a target in one process leaves parameters unused there.
    wrapped = DistributedDataParallel(
        module, find_unused_parameters=True, broadcast_buffers=False
    )
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(wrapped.reducer))
    return wrapped


def close_world() -> None:
    """Leave the group of processes, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
