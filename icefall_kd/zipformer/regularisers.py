"""Values that change with the number of training batches seen.

Regularisers that are the identity forward and bend the gradient backward.

Sources: Yao et al., Zipformer, 2023, arXiv:2310.11230, sections 3.4 and A.3 (Balancer,
Whitener); the limits come with the modules that use them.  Both gradients have a
closed form in a few per-channel or per-group statistics, so neither builds an
autograd graph of its own.
"""

import math
import random
from collections.abc import Iterator
from typing import Optional, Union

import torch
from torch import Tensor, nn

from icefall_kd.zipformer.cpu.precision import block_rows, widen

# Batches after which every part of the reference recipe is warmed up.  All points
# of all schedules are written on this axis; `stretch_schedules` fits them to a run.
REFERENCE_WARMUP = 4000.0


class ScheduledFloat(nn.Module):
    """A float that is a piecewise linear function of the batch count.

    ``float(s)`` interpolates between the points and is constant beyond them.
    Outside training, or before a batch count is known, it is ``default``.
    It is a module, without parameters, so that ``model.modules()`` finds it.

    >>> rate = ScheduledFloat((0.0, 0.2), (4000.0, 0.0))
    >>> rate.batch_count = 1000.0
    >>> round(float(rate), 3)
    0.15

    Args:
      points: (batch, value) pairs, in increasing order of batch.
      default: value outside training.
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
        """Return the value at ``batch``, in batches of the unstretched schedule."""
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


def schedules(module: nn.Module) -> Iterator[ScheduledFloat]:
    """Yield every schedule inside ``module``."""
    for child in module.modules():
        if isinstance(child, ScheduledFloat):
            yield child


def set_batch_count(module: nn.Module, batch_count: float) -> None:
    """Tell every schedule inside ``module`` how many batches were trained.

    Args:
      module: a model, wrapped for distributed training or not.
      batch_count: batches of the run so far; where they are not the reference's 600
        s, :func:`stretch_schedules` says so (``model.encoder.warmup_batches``).
    """
    for schedule in schedules(module):
        schedule.batch_count = float(batch_count)


def stretch_schedules(module: nn.Module, warmup_batches: float) -> None:
    """Fit the schedules of ``module`` to a run that is warm after so many batches.

    Every point moves by ``warmup_batches / 4000``: regularisers and dropout of a
    short run then pass through the same values as those of a long one.

    Raises:
      ValueError: if ``warmup_batches`` is not positive.
    """
    if warmup_batches <= 0:
        raise ValueError(f"warmup_batches must be positive, got {warmup_batches}")
    for schedule in schedules(module):
        schedule.stretch = warmup_batches / REFERENCE_WARMUP


TINY = 1e-20
DEAD_POWER = 1e-14  # a channel with less has no direction to be pushed in


def is_idle(module: nn.Module, x: Tensor) -> bool:
    """Return whether a regulariser has nothing to do for ``x``."""
    return not module.training or not x.requires_grad or torch.jit.is_tracing()


class _BendByChannel(torch.autograd.Function):
    """Balancer: g <- g + |g| (a_c + b_c x), see :func:`balance_slopes`."""

    @staticmethod
    def forward(ctx, x: Tensor, limits: tuple[float, ...], scale: float):
        ctx.save_for_backward(x)
        ctx.setting = (limits, scale)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        rows = x.reshape(-1, x.shape[-1])
        offset, slope = balance_slopes(*channel_moments(rows), *ctx.setting)
        out = grad.clone(memory_format=torch.contiguous_format)
        size = block_rows(rows, rows.shape[1])
        for g, r in zip(out.view(rows.shape).split(size), rows.split(size)):
            g.addcmul_(g.abs(), torch.addcmul(offset, slope, widen(r)).to(g.dtype))
        return out, None, None


def channel_moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return E[x] and E[x^2] of the columns of (P, C), each (C,)."""
    total = widen(rows.new_zeros(rows.shape[1]))
    power = torch.zeros_like(total)
    for part in rows.split(block_rows(rows, rows.shape[1])):
        part = widen(part)
        total += part.sum(0)
        power += (part * part).sum(0)
    return total / rows.shape[0], power / rows.shape[0]


def balance_slopes(
    mean: Tensor, power: Tensor, limits: tuple[float, ...], scale: float
) -> tuple[Tensor, Tensor]:
    """Return a, b such that a + b x is the Balancer's push at a value x of a channel.

    The penalty of a channel is |m - clip(m)| + |ln(clip(r) / r)| with m = mean/stddev
    and r the root mean square.  Its derivative is linear in x; it is brought to the
    root mean square ``scale``.

    Args:
      mean, power: float32 of one shape, E[x] and E[x^2] of each channel.
      limits: (min m, max m, min r, max r).
      scale: root mean square of a + b x over a channel that breaks a limit.
    Returns:
      two tensors of that shape, zero for the channels within their limits.
    """
    low_mean, high_mean, low_rms, high_rms = limits
    alive = (power > DEAD_POWER).to(mean.dtype)
    power = power.clamp(min=DEAD_POWER)
    # Below a ten-millionth of the power a variance is rounding error.
    variance = (power - mean * mean).maximum(1e-7 * power)
    stddev, rms = variance.sqrt(), power.sqrt()
    ratio = mean / stddev
    push_mean = (ratio > high_mean).to(mean.dtype) - (ratio < low_mean).to(mean.dtype)
    push_rms = (rms > high_rms).to(mean.dtype) - (rms < low_rms).to(mean.dtype)
    slope = push_rms / power - push_mean * mean / (variance * stddev)
    offset = push_mean * (1.0 / stddev + mean * mean / (variance * stddev))
    # E[(offset + slope x)^2] around the mean: the plain moments of a channel that
    # hardly varies cancel to nothing, or below it.
    centre = push_mean / stddev + push_rms * mean / power
    size = centre * centre + (slope * stddev) ** 2
    unit = alive * scale * size.clamp(min=TINY).rsqrt()
    return offset * unit, slope * unit


def rms_limit(mean_abs: float) -> float:
    """Return the root mean square of a Gaussian whose mean absolute value is given."""
    return math.sqrt(math.pi / 2.0) * mean_abs


def mean_limit(share_positive: float) -> float:
    """Return mean/stddev at which about ``share_positive`` of values are positive.

    The inverse error function is taken as atanh / (sqrt(pi) ln 2), as the reference
    recipe does; the limits below were tuned with it.
    """
    x = 2.0 * share_positive - 1.0
    eps = 1e-10  # keeps the limits finite at 0 and 1
    atanh = (math.log(1.0 + x + eps) - math.log(1.0 - x + eps)) / 2.0
    return atanh / (math.sqrt(math.pi) * math.log(2.0))


class Balancer(nn.Module):
    """Keeps sign balance and magnitude of each channel (last axis) within limits.

    Forward is the identity.  With probability ``prob`` the gradient of a channel that
    breaks a limit gets, at every element, up to about ``grad_scale`` of its own
    absolute value in the direction that mends it.

    Args:
      min_positive, max_positive: limits of the share of positive values.
      min_abs, max_abs: limits of the mean absolute value.
      grad_scale: root mean square of the relative change of the gradient.
      prob: of acting on a batch; None is 0.5, falling to 0.125 at 8000 batches.
    """

    def __init__(
        self,
        min_positive: FloatLike = 0.05,
        max_positive: FloatLike = 0.95,
        min_abs: FloatLike = 0.2,
        max_abs: FloatLike = 100.0,
        grad_scale: float = 0.04,
        prob: Optional[FloatLike] = None,
    ) -> None:
        super().__init__()
        if prob is None:
            prob = ScheduledFloat((0.0, 0.5), (8000.0, 0.125), default=0.4)
        self.min_positive = min_positive
        self.max_positive = max_positive
        self.min_abs = min_abs
        self.max_abs = max_abs
        self.grad_scale = grad_scale
        self.prob = prob

    def limits(self) -> tuple[float, float, float, float]:
        """Return (min mean/stddev, max mean/stddev, min rms, max rms) of now."""
        return (
            mean_limit(float(self.min_positive)),
            mean_limit(float(self.max_positive)),
            rms_limit(float(self.min_abs)),
            rms_limit(float(self.max_abs)),
        )

    def draw(self) -> bool:
        """Return whether to act on this batch."""
        return self.training and random.random() < float(self.prob)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, (..., C)."""
        if is_idle(self, x) or not self.draw():
            return x
        return _BendByChannel.apply(x, self.limits(), self.grad_scale)


class _Whitening(torch.autograd.Function):
    """Whiten: adds a fraction of the gradient of the whiteness measure."""

    @staticmethod
    def forward(ctx, x: Tensor, module: "Whiten"):
        ctx.save_for_backward(x)
        ctx.module = module
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        return ctx.module.bend(x, grad), None


class Whiten(nn.Module):
    """Keeps the covariance of the channels of each group near a multiple of I.

    The measure is the mean of the squared eigenvalues over their squared mean, 1 when
    white.  Forward is the identity; when a drawn batch exceeds ``limit``, the measure's
    gradient is added, scaled to ``grad_scale`` of the norm of the incoming one.

    Args:
      num_groups: the channels are divided into so many equal groups.
      limit: of the measure, >= 1.
      grad_scale: relative to the gradient that passes through.
      prob: of looking at a batch, when the last look was below and above the limit.
    """

    def __init__(
        self,
        num_groups: int,
        limit: FloatLike,
        grad_scale: float,
        prob: tuple[float, float] = (0.025, 0.25),
    ) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.limit = limit
        self.grad_scale = grad_scale
        self.min_prob, self.max_prob = prob
        self.prob = self.max_prob

    def forward(self, x: Tensor) -> Tensor:
        if is_idle(self, x) or random.random() >= self.prob:
            return x
        return _Whitening.apply(x, self)

    def bend(self, x: Tensor, grad: Tensor) -> Tensor:
        """Return ``grad`` with the whitening term added; also sets the next prob."""
        rows = widen(x).reshape(-1, self.num_groups, x.shape[-1] // self.num_groups)
        rows = rows.transpose(0, 1)  # (G, frames, C/G)
        rows = rows - rows.mean(dim=1, keepdim=True)
        covariance = rows.transpose(1, 2) @ rows
        measure, direction = whiteness(covariance)
        if not measure >= float(self.limit):
            self.prob = self.min_prob
            return grad
        self.prob = self.max_prob
        # |rows @ direction|^2 needs no pass over the frames.
        norm = (direction * (covariance @ direction)).sum().clamp(min=0).sqrt()
        factor = self.grad_scale * widen(grad).norm() / (norm + TINY)
        push = (rows @ (direction * factor)).transpose(0, 1).reshape(x.shape)
        return grad + push.to(grad.dtype)


def whiteness(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the whiteness measure and its gradient by centred data, as a matrix.

    With C the covariances of G groups of n channels, the measure is
    (sum C^2 / Gn) / (tr C / Gn)^2 and its gradient by the centred rows X is X M with
    M proportional to C - (sum C^2 / tr C) I.

    Args:
      covariance: (G, n, n) float32, X^T X of each group.
    Returns:
      scalar, and M (G, n, n).
    """
    groups, n, _ = covariance.shape
    square = (covariance * covariance).sum() / (groups * n)
    trace = covariance.diagonal(dim1=1, dim2=2).mean()
    measure = square / (trace * trace + TINY)
    unit = torch.eye(n, dtype=covariance.dtype, device=covariance.device)
    direction = covariance - (square / (trace + TINY)) * unit
    return measure, direction * (4.0 / (groups * n * (trace * trace + TINY)))


class _KeepWithin(torch.autograd.Function):
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
    """Return ``x``; with probability ``prob`` descent may move it only towards range.

    The gradient of elements below ``low`` is made negative and of elements above
    ``high`` positive, so the value is never clipped and never stuck.
    """
    if torch.jit.is_tracing() or random.random() >= prob:
        return x
    return _KeepWithin.apply(x, low, high)


class _ScaleGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, factor: float):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad * ctx.factor, None


def scale_grad(x: Tensor, factor: float) -> Tensor:
    """Return ``x``, its gradient multiplied by ``factor``."""
    return _ScaleGrad.apply(x, factor)
