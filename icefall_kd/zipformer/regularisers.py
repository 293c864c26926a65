"""Balancer and Whiten of icefall's ``scaling.py``.

Both return their input in the forward pass and change its gradient in the backward
pass.  The change has a closed form in statistics of the channels, so neither module
builds an autograd graph.

Source: Yao et al., Zipformer, 2023, arXiv:2310.11230, sections 3.4 and A.3.
"""

import math
import random
from typing import Optional

import torch
from torch import Tensor, nn

from icefall_kd.zipformer.cpu.blocks import get_block_rows, widen
from icefall_kd.zipformer.scaling import FloatLike, ScheduledFloat

TINY = 1e-20
DEAD_POWER = 1e-14  # a channel with less power gets no gradient


def is_idle(module: nn.Module, x: Tensor) -> bool:
    """Return whether a regulariser has no effect: evaluation, tracing, no gradient."""
    return not module.training or not x.requires_grad or torch.jit.is_tracing()


class BalancerFunction(torch.autograd.Function):
    """Add |g| (a + b x) to the gradient g; `compute_balancer_terms` returns a and b."""

    @staticmethod
    def forward(ctx, x: Tensor, limits: tuple[float, ...], scale: float):
        ctx.save_for_backward(x)
        ctx.limits, ctx.scale = limits, scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        rows = x.reshape(-1, x.shape[-1])
        moments = channel_moments(rows)
        offset, slope = compute_balancer_terms(*moments, ctx.limits, ctx.scale)
        out = grad.clone(memory_format=torch.contiguous_format)
        size = get_block_rows(rows, rows.shape[1])
        for g, r in zip(out.view(rows.shape).split(size), rows.split(size)):
            g.addcmul_(g.abs(), torch.addcmul(offset, slope, widen(r)).to(g.dtype))
        return out, None, None


def channel_moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return E[x] and E[x^2] of the columns of ``rows`` (frames, C), each (C,)."""
    total = widen(rows.new_zeros(rows.shape[1]))
    power = torch.zeros_like(total)
    for block in rows.split(get_block_rows(rows, rows.shape[1])):
        block = widen(block)
        total += block.sum(0)
        power += (block * block).sum(0)
    return total / rows.shape[0], power / rows.shape[0]


def compute_balancer_terms(
    mean: Tensor, power: Tensor, limits: tuple[float, ...], scale: float
) -> tuple[Tensor, Tensor]:
    """Return a and b of the relative change a + b x of each channel's gradient.

    The penalty of a channel is |m - clip(m)| + |ln(clip(r) / r)| with m = mean/stddev
    and r the root mean square.  Its derivative by x is linear in x.  The derivative is
    scaled to the root mean square ``scale``.

    Args:
      mean, power: (C,) float32, E[x] and E[x^2] of each channel.
      limits: (min m, max m, min r, max r).
      scale: root mean square of a + b x for a channel outside its limits.
    Returns:
      a and b, each (C,), zero for channels within their limits.
    """
    low_mean, high_mean, low_rms, high_rms = limits
    alive = (power > DEAD_POWER).to(mean.dtype)
    power = power.clamp(min=DEAD_POWER)
    # A variance below a ten-millionth of the power is rounding error.
    variance = (power - mean * mean).maximum(1e-7 * power)
    stddev, rms = variance.sqrt(), power.sqrt()
    ratio = mean / stddev
    sign_mean = (ratio > high_mean).to(mean.dtype) - (ratio < low_mean).to(mean.dtype)
    sign_rms = (rms > high_rms).to(mean.dtype) - (rms < low_rms).to(mean.dtype)
    slope = sign_rms / power - sign_mean * mean / (variance * stddev)
    offset = sign_mean * (1.0 / stddev + mean * mean / (variance * stddev))
    # E[(offset + slope x)^2], expanded around the mean: for a channel with little
    # variance, a sum of the plain moments would cancel to zero or below.
    centre = sign_mean / stddev + sign_rms * mean / power
    size = centre * centre + (slope * stddev) ** 2
    unit = alive * scale * size.clamp(min=TINY).rsqrt()
    return offset * unit, slope * unit


def abs_to_rms(mean_abs: float) -> float:
    """Return the root mean square of a zero-mean Gaussian whose mean |x| is given."""
    return math.sqrt(math.pi / 2.0) * mean_abs


def positive_to_mean(share_positive: float) -> float:
    """Return the approximate mean/stddev of a Gaussian with a share of positive values.

    As in icefall, atanh / (sqrt(pi) ln 2) replaces the inverse error function, because
    icefall's limits were tuned with it.
    """
    x = 2.0 * share_positive - 1.0
    eps = 1e-10  # keeps the limits finite at 0 and 1
    atanh = (math.log(1.0 + x + eps) - math.log(1.0 - x + eps)) / 2.0
    return atanh / (math.sqrt(math.pi) * math.log(2.0))


class Balancer(nn.Module):
    """Keep the signs and the magnitude of each channel (last axis) within limits.

    With probability ``prob``, the gradient of a channel outside its limits changes by
    about ``grad_scale`` of each element's absolute value, towards the limits.

    Args:
      min_positive, max_positive: limits of the share of positive values.
      min_abs, max_abs: limits of the mean absolute value.
      grad_scale: root mean square of the relative change of the gradient.
      prob: probability for each batch; None falls from 0.5 to 0.125 at batch 8000.
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
        """Return the current (min mean/stddev, max mean/stddev, min rms, max rms)."""
        return (
            positive_to_mean(float(self.min_positive)),
            positive_to_mean(float(self.max_positive)),
            abs_to_rms(float(self.min_abs)),
            abs_to_rms(float(self.max_abs)),
        )

    def draw(self) -> bool:
        """Return whether to change the gradient of this batch."""
        return self.training and random.random() < float(self.prob)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, (..., C)."""
        if is_idle(self, x) or not self.draw():
            return x
        return BalancerFunction.apply(x, self.limits(), self.grad_scale)


class WhitenFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, module: "Whiten"):
        ctx.save_for_backward(x)
        ctx.module = module
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        return ctx.module.add_penalty_gradient(x, grad), None


class Whiten(nn.Module):
    """Keep the covariance of each group of channels near a multiple of the identity.

    The metric is the mean of the squared eigenvalues of the covariance, divided by
    their squared mean.  It is 1 for white data.  If a sampled batch exceeds
    ``whitening_limit``, the metric's gradient is added to the gradient.

    Args:
      num_groups: number of equal groups of channels.
      whitening_limit: limit of the metric, >= 1.
      grad_scale: norm of the added gradient, relative to the norm of the gradient.
      prob: probabilities to sample a batch: if the last sampled batch was within the
        limit, and if it was above.
    """

    def __init__(
        self,
        num_groups: int,
        whitening_limit: FloatLike,
        grad_scale: float,
        prob: tuple[float, float] = (0.025, 0.25),
    ) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.whitening_limit = whitening_limit
        self.grad_scale = grad_scale
        self.min_prob, self.max_prob = prob
        self.prob = self.max_prob

    def forward(self, x: Tensor) -> Tensor:
        if is_idle(self, x) or random.random() >= self.prob:
            return x
        return WhitenFunction.apply(x, self)

    def add_penalty_gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        """Return ``grad`` plus the metric's gradient, if ``x`` exceeds the limit.

        It also sets the probability of the next sample.
        """
        rows = widen(x).reshape(-1, self.num_groups, x.shape[-1] // self.num_groups)
        rows = rows.transpose(0, 1)  # (G, frames, C/G)
        rows = rows - rows.mean(dim=1, keepdim=True)
        covariance = rows.transpose(1, 2) @ rows
        metric, direction = whitening_metric(covariance)
        if not metric >= float(self.whitening_limit):
            self.prob = self.min_prob
            return grad
        self.prob = self.max_prob
        # |rows @ direction|^2, without a pass over the frames.
        norm = (direction * (covariance @ direction)).sum().clamp(min=0).sqrt()
        factor = self.grad_scale * widen(grad).norm() / (norm + TINY)
        penalty_grad = (rows @ (direction * factor)).transpose(0, 1).reshape(x.shape)
        return grad + penalty_grad.to(grad.dtype)


def whitening_metric(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the whitening metric, and the matrix M of its gradient.

    With C the covariances of G groups of n channels, the metric is
    (sum C^2 / Gn) / (tr C / Gn)^2.  Its gradient by the centred rows X is X M with M
    proportional to C - (sum C^2 / tr C) I.

    Args:
      covariance: (G, n, n) float32, X^T X of each group.
    Returns:
      scalar, and M (G, n, n).
    """
    groups, n, _ = covariance.shape
    square = (covariance * covariance).sum() / (groups * n)
    trace = covariance.diagonal(dim1=1, dim2=2).mean()
    metric = square / (trace * trace + TINY)
    unit = torch.eye(n, dtype=covariance.dtype, device=covariance.device)
    direction = covariance - (square / (trace + TINY)) * unit
    return metric, direction * (4.0 / (groups * n * (trace * trace + TINY)))
