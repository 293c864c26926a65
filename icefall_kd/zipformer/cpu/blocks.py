"""Blocks that fit a core's cache, and the dtypes of products and sums."""

import contextlib
from collections.abc import Iterator
from typing import ContextManager

import torch
from torch import Tensor, nn

BLOCK_ELEMENTS = 1 << 18  # 1 MiB of float32, so that a few blocks fit a core's cache


def get_block_rows(x: Tensor, width: int) -> int:
    """Return the number of rows of ``width`` elements in a block; all rows on a GPU."""
    if x.is_cuda:
        return max(1, x.numel())
    return max(1, BLOCK_ELEMENTS // width)


def split_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split contiguous tensors of one shape; yield matching 1-D views of each block."""
    size = get_block_rows(tensors[0], 1)
    return zip(*(t.view(-1).split(size) for t in tensors))


def get_product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of matrix products of ``x``: autocast's, or that of ``x``.

    A custom autograd function casts its inputs itself, because its backward pass runs
    without autocast.
    """
    kind = x.device.type
    if hasattr(torch, "get_autocast_dtype"):  # torch 2.4 and later
        on = torch.is_autocast_enabled(kind)
        return torch.get_autocast_dtype(kind) if on else x.dtype
    if x.is_cuda:
        on = torch.is_autocast_enabled()
        return torch.get_autocast_gpu_dtype() if on else x.dtype
    on = torch.is_autocast_cpu_enabled()
    return torch.get_autocast_cpu_dtype() if on else x.dtype


def widen(x: Tensor) -> Tensor:
    """Return ``x`` with half precision converted to float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class LogSoftmax(nn.LogSoftmax):
    """Log-softmax in float32 or float64, also under autocast on a CPU.

    In bfloat16 the probabilities of a frame do not add up to 1, and the tail of the
    distribution is lost.  Autocast uses float32 only on CUDA.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(widen(x))


def disable_cpu_autocast(x: Tensor) -> ContextManager:
    """Return a context without autocast if ``x`` is on a CPU, else a null context.

    oneDNN generates bfloat16 code for each shape of a matrix product.  Each new batch
    length has 200 shapes, which take 70 ms and 60 MB.  For the encoder's stacks that
    outweighs the speed of bfloat16.  The front end has few and large products, so it
    keeps autocast.
    """
    if x.device.type == "cpu":
        return torch.autocast("cpu", enabled=False)
    return contextlib.nullcontext()
