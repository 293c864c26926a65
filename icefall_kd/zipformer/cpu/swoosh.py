"""SwooshL and SwooshR by blocks; the backward pass needs only the input.

The activation is ln(1 + exp(x - shift)) - 0.08 x - offset.  With t = x - a it equals
ln(exp(t) + b) - 0.08 t, for a = (shift + offset) / 0.92 and b = exp(shift - a).  torch
computes exp and log fast on a CPU: 0.1 ns for each element, against 0.5 for a sigmoid
and 2.3 for softplus.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from icefall_kd.zipformer.cpu.blocks import split_blocks, widen

SLOPE = 0.08
LARGEST = 1e37  # its reciprocal is not a denormal float32


class Swoosh(NamedTuple):
    """The constants of ln(1 + exp(x - shift)) - 0.08 x - offset."""

    shift: float
    offset: float

    @property
    def a(self) -> float:
        return (self.shift + self.offset) / (1.0 - SLOPE)

    @property
    def b(self) -> float:
        return math.exp(self.shift - self.a)


SWOOSH_L = Swoosh(4.0, 0.035)
SWOOSH_R = Swoosh(1.0, 0.313261687)


def compute_swoosh(x: Tensor, kind: Swoosh) -> tuple[Tensor, Tensor]:
    """Return the activation of a block, and exp(t) + b for `compute_slope`.

    Args:
      x: float32 or float64; the absolute error in float32 is about 1e-7.
    """
    t = x - kind.a
    denominator = t.exp().clamp_(max=LARGEST).add_(kind.b)
    y = denominator.log()
    torch.maximum(y, t, out=y)  # where exp exceeds LARGEST
    return y.add_(t, alpha=-SLOPE), denominator


def compute_slope(denominator: Tensor, kind: Swoosh) -> Tensor:
    """Return the derivative from exp(t) + b; overwrite ``denominator``."""
    return denominator.reciprocal_().mul_(-kind.b).add_(1.0 - SLOPE)


def _forward_by_blocks(x: Tensor, kind: Swoosh) -> Tensor:
    if x.is_cuda:
        y = F.softplus(x - kind.shift).sub_(kind.offset)
        return y.add_(x, alpha=-SLOPE)
    x = x.contiguous()
    y = torch.empty_like(x)
    for x_block, y_block in split_blocks(x, y):
        y_block.copy_(compute_swoosh(widen(x_block), kind)[0])
    return y


class SwooshFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, kind: Swoosh):
        x = x.contiguous()
        ctx.save_for_backward(x)
        ctx.kind = kind
        return _forward_by_blocks(x, kind)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = torch.empty_like(x)
        for x_block, grad_block, out in split_blocks(x, grad, grad_x):
            denominator = (widen(x_block) - ctx.kind.a).exp_().add_(ctx.kind.b)
            out.copy_(compute_slope(denominator, ctx.kind).mul_(grad_block))
        return grad_x, None


def apply_swoosh(x: Tensor, kind: Swoosh) -> Tensor:
    """Return the activation of ``x``, of any shape and floating dtype."""
    if torch.jit.is_tracing():
        return F.softplus(x - kind.shift) - SLOPE * x - kind.offset
    if not (x.requires_grad and torch.is_grad_enabled()):
        return _forward_by_blocks(x, kind)
    return SwooshFunction.apply(x, kind)
