"""Building blocks of the Zipformer, after icefall's ``scaling.py``.

The names are icefall's: ScheduledFloat, SwooshL and SwooshR, BiasNorm, ScaledLinear
(`scaled_linear`), limit_param_value, scale_grad.  Balancer and Whiten are in
``regularisers.py``.

Source: Yao et al., Zipformer, 2023, arXiv:2310.11230; BiasNorm is eq. 2, Swoosh eq. 3
and 4.
"""

import random
from collections.abc import Iterator
from typing import Optional, Union

import torch
from torch import Tensor, nn

from icefall_kd.zipformer.cpu.blocks import widen
from icefall_kd.zipformer.cpu.swoosh import SWOOSH_L, SWOOSH_R, apply_swoosh

# Warm-up of icefall's recipe: 4000 batches of 600 s of audio (its ``--ref-duration``).
# The points of all schedules are for these values; `stretch_schedules` scales them for
# another run.
REFERENCE_WARMUP = 4000.0
REFERENCE_DURATION = 600.0


class ScheduledFloat(nn.Module):
    """A float that is a piecewise linear function of the batch count.

    ``float(schedule)`` interpolates between the points and is constant outside them.
    In evaluation, and before `set_batch_count`, it returns ``default``.  The class is a
    module without parameters, so that ``model.modules()`` yields its instances.

    >>> rate = ScheduledFloat((0.0, 0.2), (4000.0, 0.0))
    >>> rate.batch_count = 1000.0
    >>> round(float(rate), 3)
    0.15

    Args:
      points: (batch of 600 s, value) pairs, in increasing order of batch.
      default: value in evaluation.
    Raises:
      ValueError: if there is no point or the batches do not increase.
    """

    def __init__(self, *points: tuple[float, float], default: float = 0.0) -> None:
        super().__init__()
        batches = [batch for batch, _ in points]
        if not points or any(b <= a for a, b in zip(batches, batches[1:])):
            raise ValueError(f"batches of a schedule must increase, got {points}")
        self.points = tuple((float(batch), float(value)) for batch, value in points)
        self.default = float(default)
        self.batch_count: Optional[float] = None
        self.stretch = 1.0

    def __float__(self) -> float:
        if self.batch_count is None or not self.training or torch.jit.is_tracing():
            return self.default
        return self.at(self.batch_count / self.stretch)

    def at(self, batch: float) -> float:
        """Return the value at ``batch`` of the unstretched schedule."""
        left_batch, left = self.points[0]
        if batch <= left_batch:
            return left
        for right_batch, right in self.points[1:]:
            if batch <= right_batch:
                share = (batch - left_batch) / (right_batch - left_batch)
                return left + share * (right - left)
            left_batch, left = right_batch, right
        return left

    def extra_repr(self) -> str:
        return f"{self.points}, stretch={self.stretch:g}, now={float(self):g}"


FloatLike = Union[float, ScheduledFloat]


def find_schedules(module: nn.Module) -> Iterator[ScheduledFloat]:
    """Yield every schedule inside ``module``."""
    return (m for m in module.modules() if isinstance(m, ScheduledFloat))


def set_batch_count(module: nn.Module, batch_count: float) -> None:
    """Set the batch count of every schedule inside ``module``.

    Args:
      module: a model, with or without DistributedDataParallel.
      batch_count: audio since the start of the run, in batches of 600 s, so that the
        schedules do not depend on the size of the batches.
    """
    for schedule in find_schedules(module):
        schedule.batch_count = float(batch_count)


def stretch_schedules(module: nn.Module, warmup_hours: float) -> None:
    """Multiply the points of all schedules, so that the warm-up takes ``warmup_hours``.

    The regularisers and dropout rates of a short run then take the same values as
    those of a long run.

    Args:
      warmup_hours: hours of audio.
    Raises:
      ValueError: if ``warmup_hours`` is not positive.
    """
    if warmup_hours <= 0:
        raise ValueError(
            f"model.encoder.warmup_hours must be positive, got {warmup_hours}"
        )
    batches = 3600 * warmup_hours / REFERENCE_DURATION
    for schedule in find_schedules(module):
        schedule.stretch = batches / REFERENCE_WARMUP


def swoosh_l(x: Tensor) -> Tensor:
    """Return SwooshL: ln(1 + exp(x - 4)) - 0.08 x - 0.035."""
    return apply_swoosh(x, SWOOSH_L)


def swoosh_r(x: Tensor) -> Tensor:
    """Return SwooshR: ln(1 + exp(x - 1)) - 0.08 x - 0.313261687."""
    return apply_swoosh(x, SWOOSH_R)


class BiasNormFunction(torch.autograd.Function):
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
        grad_log_scale = (grad * x).sum(dim=-1, keepdim=True) * scale
        grad_rms = (x - bias).mul_(grad_log_scale / (power * x.shape[-1]))
        grad_bias = grad_rms.reshape(-1, grad_rms.shape[-1]).sum(dim=0)
        grad_x = torch.addcmul(-grad_rms, grad, scale)
        return grad_x, grad_bias, grad_log_scale.sum()


class BiasNorm(nn.Module):
    """y = x / rms(x - bias) * exp(log_scale), rms over the last axis.

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
        return BiasNormFunction.apply(x, self.bias, log_scale)


class _LimitParamValue(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, low: float, high: float):
        ctx.save_for_backward(x)
        ctx.limits = (low, high)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        low, high = ctx.limits
        grad = torch.where(x < low, -grad.abs(), grad)
        return torch.where(x > high, grad.abs(), grad), None, None


def limit_param_value(x: Tensor, low: float, high: float, prob: float = 0.6) -> Tensor:
    """Return ``x``; with probability ``prob``, change its gradient outside the range.

    The gradient becomes negative where ``x < low`` and positive where ``x > high``, so
    that descent moves ``x`` towards the range.  The value is never clipped.
    """
    if torch.jit.is_tracing() or random.random() >= prob:
        return x
    return _LimitParamValue.apply(x, low, high)


class _ScaleGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, factor: float):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad * ctx.factor, None


def scale_grad(x: Tensor, factor: float) -> Tensor:
    """Return ``x``; its gradient is multiplied by ``factor``."""
    return _ScaleGrad.apply(x, factor)


def scale_weights(layer: nn.Module, initial_scale: float) -> nn.Module:
    """Scale the initial weights of a linear or convolution layer in place; return it.

    The biases become uniform in +-0.1 ``initial_scale``.  ScaledAdam's step is relative
    to a parameter's magnitude, so a branch with a small scale also changes slowly.
    """
    with torch.no_grad():
        layer.weight.mul_(initial_scale)
        if layer.bias is not None:
            layer.bias.uniform_(-0.1 * initial_scale, 0.1 * initial_scale)
    return layer


def scaled_linear(
    in_channels: int, out_channels: int, initial_scale: float, bias: bool = True
) -> nn.Linear:
    """Return a linear layer with scaled initial weights; icefall's ScaledLinear."""
    return scale_weights(nn.Linear(in_channels, out_channels, bias=bias), initial_scale)
