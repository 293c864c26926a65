"""Floating types: what autocast asks for, and what sums need."""

import contextlib
from collections.abc import Iterator
from typing import ContextManager

import torch
from torch import Tensor, nn


def autocast_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which matrix products of ``x`` are to be done now.

    A custom autograd function casts by itself: its backward runs without autocast.
    """
    kind = x.device.type
    if hasattr(torch, "get_autocast_dtype"):  # since torch 2.4, by device
        on = torch.is_autocast_enabled(kind)
        return torch.get_autocast_dtype(kind) if on else x.dtype
    if x.is_cuda:
        on = torch.is_autocast_enabled()
        return torch.get_autocast_gpu_dtype() if on else x.dtype
    on = torch.is_autocast_cpu_enabled()
    return torch.get_autocast_cpu_dtype() if on else x.dtype


def widen(x: Tensor) -> Tensor:
    """Return ``x`` in float32 at least."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class LogSoftmax(nn.LogSoftmax):
    """In float32 at least: autocast sees to that on CUDA alone.

    Rounded to bfloat16 the probabilities of a frame no longer add up to 1, and what is
    left of them for a tail of tokens is lost.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return log-probabilities over the dimension it was made for."""
        return super().forward(widen(x))


def full_on_cpu(x: Tensor) -> ContextManager:
    """Return a context without autocast if ``x`` is on a CPU, else one without effect.

    In bfloat16 oneDNN generates code for each shape of a matrix product: 200 of them,
    70 ms and 60 MB, for each new length of a batch.  The stacks gain less from it; the
    front end, with few and large products, gains more.
    """
    if x.device.type == "cpu":
        return torch.autocast("cpu", enabled=False)
    return contextlib.nullcontext()


BLOCK_ELEMENTS = 1 << 18  # 1 MiB of float32: a few of these fit a core's cache


def block_rows(x: Tensor, width: int) -> int:
    """Return how many rows of ``width`` elements to take at once: all on a GPU."""
    if x.is_cuda:
        return max(1, x.numel())
    return max(1, BLOCK_ELEMENTS // width)


def flat_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield matching 1-D parts of contiguous tensors of one shape, as views."""
    size = block_rows(tensors[0], 1)
    return zip(*(t.view(-1).split(size) for t in tensors))
