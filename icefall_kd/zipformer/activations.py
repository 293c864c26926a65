"""SwooshL and SwooshR.

swoosh_l(x) = ln(1 + exp(x - 4)) - 0.08 x - 0.035
swoosh_r(x) = ln(1 + exp(x - 1)) - 0.08 x - 0.313261687

Source: Yao et al., Zipformer, 2023, arXiv:2310.11230, eq. 3 and 4.

In training only the input is kept.  On a CPU the work goes by blocks that stay in its
cache, where the passes of a composed function cost next to nothing; exp and log are
the only functions used, being the fastest that torch has there (0.1 ns an element
against 0.5 for a sigmoid and 2.3 for softplus).  With t = x - a, where the constants
vanish, ln(1 + exp(x - shift)) - 0.08 x - offset is ln(exp(t) + b) - 0.08 t.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from icefall_kd.zipformer.precision import widen

SLOPE = 0.08


class Swoosh(NamedTuple):
    """The constants of ln(1 + exp(x - shift)) - 0.08 x - offset."""

    shift: float
    offset: float

    @property
    def centre(self) -> float:
        """a above."""
        return (self.shift + self.offset) / (1.0 - SLOPE)

    @property
    def floor(self) -> float:
        """b above."""
        return math.exp(self.shift - self.centre)


SWOOSH_L = Swoosh(4.0, 0.035)
SWOOSH_R = Swoosh(1.0, 0.313261687)

BLOCK_ELEMENTS = 1 << 18  # 1 MiB of float32: a few of these fit a core's cache
LARGEST = 1e37  # its reciprocal is not a denormal number of float32


def block_rows(x: Tensor, width: int) -> int:
    """Return how many rows of ``width`` elements to take at once: all on a GPU."""
    if x.is_cuda:
        return max(1, x.numel())
    return max(1, BLOCK_ELEMENTS // width)


def flat_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield matching 1-D parts of contiguous tensors of one shape, as views."""
    size = block_rows(tensors[0], 1)
    return zip(*(t.view(-1).split(size) for t in tensors))


def swoosh_parts(x: Tensor, kind: Swoosh) -> tuple[Tensor, Tensor]:
    """Return the activation, and exp(t) + b: see `swoosh_slope`.

    Absolute error 1e-7.

    Args:
      x: float32 (or float64), small enough for the cache.
    """
    t = x - kind.centre
    above = t.exp().clamp_(max=LARGEST).add_(kind.floor)
    y = above.log()
    torch.maximum(y, t, out=y)  # where exp is beyond the limit
    return y.add_(t, alpha=-SLOPE), above


def swoosh_slope(above: Tensor, kind: Swoosh) -> Tensor:
    """Return the slope where exp(t) + b is ``above``, which is overwritten."""
    return above.reciprocal_().mul_(-kind.floor).add_(1.0 - SLOPE)


def swoosh_values(x: Tensor, kind: Swoosh) -> Tensor:
    """Return the activation of ``x`` without a graph of its own."""
    if x.is_cuda:
        y = F.softplus(x - kind.shift).sub_(kind.offset)
        return y.add_(x, alpha=-SLOPE)
    x = x.contiguous()
    y = torch.empty_like(x)
    for x_part, y_part in flat_blocks(x, y):
        y_part.copy_(swoosh_parts(widen(x_part), kind)[0])
    return y


class _Swoosh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, kind: Swoosh):
        x = x.contiguous()
        ctx.save_for_backward(x)
        ctx.kind = kind
        return swoosh_values(x, kind)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = torch.empty_like(x)
        for x_part, g_part, out in flat_blocks(x, grad, grad_x):
            above = (widen(x_part) - ctx.kind.centre).exp_().add_(ctx.kind.floor)
            out.copy_(swoosh_slope(above, ctx.kind).mul_(g_part))
        return grad_x, None


def _swoosh(x: Tensor, kind: Swoosh) -> Tensor:
    if torch.jit.is_tracing():
        return F.softplus(x - kind.shift) - SLOPE * x - kind.offset
    if not (x.requires_grad and torch.is_grad_enabled()):
        return swoosh_values(x, kind)
    return _Swoosh.apply(x, kind)


def swoosh_l(x: Tensor) -> Tensor:
    """Return SwooshL of ``x``, any shape and floating dtype: small inputs are off."""
    return _swoosh(x, SWOOSH_L)


def swoosh_r(x: Tensor) -> Tensor:
    """Return SwooshR of ``x``, any shape and floating dtype: zero at zero."""
    return _swoosh(x, SWOOSH_R)
