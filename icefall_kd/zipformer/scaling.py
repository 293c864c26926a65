"""SwooshL and SwooshR.

swoosh_l(x) = ln(1 + exp(x - 4)) - 0.08 x - 0.035
swoosh_r(x) = ln(1 + exp(x - 1)) - 0.08 x - 0.313261687

Source: Yao et al., Zipformer, 2023, arXiv:2310.11230, eq. 3 and 4.

In training only the input is kept.  On a CPU the work goes by blocks that stay in its
cache, where the passes of a composed function cost next to nothing; exp and log are
the only functions used, being the fastest that torch has there (0.1 ns an element
against 0.5 for a sigmoid and 2.3 for softplus).  With t = x - a, where the constants
vanish, ln(1 + exp(x - shift)) - 0.08 x - offset is ln(exp(t) + b) - 0.08 t.

BiasNorm, and linear layers with scaled initial weights.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icefall_kd.zipformer.cpu.precision import flat_blocks, widen
from icefall_kd.zipformer.regularisers import limit_param_value

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
LARGEST = 1e37  # its reciprocal is not a denormal number of float32


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


class _BiasNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, bias: Tensor, log_scale: Tensor):
        x = widen(x)
        power = (x - bias).square_().mean(dim=-1, keepdim=True)
        scale = power.rsqrt() * log_scale.exp()
        ctx.save_for_backward(x, bias, power, scale)
        return x * scale

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, bias, power, scale = ctx.saved_tensors
        grad = widen(grad)
        by_scale = (grad * x).sum(dim=-1, keepdim=True) * scale  # times scale
        pull = (x - bias).mul_(by_scale / (power * x.shape[-1]))
        grad_bias = pull.reshape(-1, pull.shape[-1]).sum(dim=0)
        return torch.addcmul(-pull, grad, scale), grad_bias, by_scale.sum()


class BiasNorm(nn.Module):
    """y = x / rms(x - bias) * exp(log_scale), rms over the last axis.

    Source: Yao et al., Zipformer, 2023, arXiv:2310.11230, eq. 2.

    Args:
      num_channels: size of the last axis.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(1.0))
        self.bias = nn.Parameter(torch.empty(num_channels).normal_(std=1e-4))

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing() or not torch.is_grad_enabled():
            power = torch.mean((x - self.bias) ** 2, dim=-1, keepdim=True)
            return x * (power**-0.5 * self.log_scale.exp())
        log_scale = self.log_scale
        if self.training:
            log_scale = limit_param_value(log_scale, -1.5, 1.5)
        return _BiasNorm.apply(x, self.bias, log_scale)


def scale_init(layer: nn.Module, initial_scale: float) -> nn.Module:
    """Shrink the fresh weights of a linear or convolution layer, in place.

    With an optimiser that learns relative to a parameter's size, the initial scale is
    how softly a branch starts.  Returns the layer.
    """
    with torch.no_grad():
        layer.weight.mul_(initial_scale)
        if layer.bias is not None:
            layer.bias.uniform_(-0.1 * initial_scale, 0.1 * initial_scale)
    return layer


def scaled_linear(
    in_channels: int, out_channels: int, initial_scale: float, bias: bool = True
) -> nn.Linear:
    """Return a linear layer whose initial weights are scaled, see `scale_init`."""
    return scale_init(nn.Linear(in_channels, out_channels, bias=bias), initial_scale)
