"""Attention weights, and the two kinds of module that share them.

A layer computes its weights once; two self-attention modules and the non-linear
attention consume them.  Source: Yao et al., Zipformer, 2023, arXiv:2310.11230, 3.2.
"""

import math
import random
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icefall_kd.zipformer.cpu.scores import softmax_of_scores
from icefall_kd.zipformer.modules import whitening_limit
from icefall_kd.zipformer.regularisers import Balancer, ScheduledFloat, Whiten
from icefall_kd.zipformer.scaling import scaled_linear


class CompactRelPositionalEncoding(nn.Module):
    """Encoding of time differences in few dimensions.

    A difference t is compressed to sign(t) sqrt(D) ln(1 + |t| / sqrt(D)), bent by atan
    on to a finite interval, and its harmonics are the encoding: near differences are
    told apart, far ones hardly.  The last dimension is 1, a bias.

    Args:
      dim: D, even.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % 2 != 0:
            raise ValueError(f"pos_dim must be even, got {dim}")
        self.dim = dim

    def forward(self, num_frames: int, left_context: int, device: torch.device):
        """Return the encodings of the differences source - target, in order.

        Args:
          num_frames: T, target frames.
          left_context: L, source frames before the first target frame.
        Returns:
          (L + 2 T, D) float32, of the differences -(L + T - 1) ... T.  The last one
          occurs for no pair; it lets `align_positions` go without padding.
        """
        first = -(left_context + num_frames - 1)
        t = torch.arange(first, num_frames + 1, device=device).float().unsqueeze(1)
        root = math.sqrt(self.dim)
        compressed = root * t.sign() * ((t.abs() + root).log() - math.log(root))
        angle = (compressed * (2.0 * math.pi / self.dim)).atan()
        harmonics = torch.arange(1, self.dim // 2 + 1, device=device).float()
        angle = angle * harmonics
        table = torch.stack([angle.cos(), angle.sin()], dim=-1).flatten(1)
        table = torch.cat([table[:, :-1], torch.ones_like(t)], dim=1)
        return F.dropout(table, 0.15, self.training)


class RelPositionMultiheadAttentionWeights(nn.Module):
    """Multi-head attention weights with relative positions.

    The usual 1/sqrt(dim) is in the initial weights of the projection, since the
    optimiser learns relative to a parameter's scale.

    Args:
      channels: C.
      pos_dim: of the position encoding.
      num_heads: H.
      query_head_dim, pos_head_dim: per head.
    """

    def __init__(
        self,
        channels: int,
        pos_dim: int,
        num_heads: int,
        query_head_dim: int,
        pos_head_dim: int,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.widths = [
            query_head_dim * num_heads,
            query_head_dim * num_heads,
            pos_head_dim * num_heads,
        ]
        self.in_proj = scaled_linear(
            channels, sum(self.widths), initial_scale=query_head_dim**-0.25
        )
        self.linear_pos = scaled_linear(
            pos_dim, num_heads * pos_head_dim, initial_scale=0.05, bias=False
        )
        self.whiten_keys = Whiten(num_heads, whitening_limit(3.0), grad_scale=0.025)
        # The weights do not depend on a constant in the keys; without this, rounding
        # errors would let it drift.
        self.balance_keys = Balancer(
            min_positive=0.4, max_positive=0.6, min_abs=0.0, max_abs=100.0, prob=0.025
        )
        self.position_skip_rate = ScheduledFloat((0.0, 0.5), (4000.0, 0.0))

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        mask: Optional[Tensor] = None,
        cache: Optional[Tensor] = None,
    ) -> tuple[Tensor, Optional[Tensor]]:
        """Return the weights of the source frames for each target frame.

        Args:
          x: (N, T, C).
          positions: (L + 2 T, pos_dim), L is 0 without a cache.
          mask: bool, broadcasts to (N, 1, T, L + T), True is not attended to.
          cache: (L, N, H * query_head_dim), keys before ``x``, when streaming.
        Returns:
          (N, H, T, L + T), and the next cache when one was given.
        """
        batch, num_frames, _ = x.shape
        by_position = not self._skips_positions()
        bias = self.in_proj.bias
        if not by_position:
            # Each parameter takes part in each step, which distributed training wants.
            bias = bias + 0.0 * self.linear_pos.weight.sum()
        projected = F.linear(x, self.in_proj.weight, bias)
        query, key, pos_query = projected.split(self.widths, dim=-1)
        key = self.whiten_keys(self.balance_keys(key))
        if cache is not None:
            left_context = cache.shape[0]
            key = torch.cat([cache.transpose(0, 1), key], dim=1)
            cache = key[:, -left_context:].transpose(0, 1)
        shape = (batch, -1, self.num_heads)
        query = query.reshape(*shape, self.widths[0] // self.num_heads)
        key = key.reshape(*shape, self.widths[1] // self.num_heads)
        query, key = query.transpose(1, 2), key.transpose(1, 2)
        if by_position:
            pos_query = pos_query.reshape(*shape, self.widths[2] // self.num_heads)
            pos_query = pos_query.transpose(1, 2)
            positions = self.linear_pos(positions.to(pos_query.dtype))
            positions = positions.reshape(-1, self.num_heads, pos_query.shape[-1])
            positions = positions.permute(1, 2, 0)  # (H, pos_head_dim, L + 2 T)
        else:
            pos_query = positions = None
        limited = self.training and random.random() < 0.1
        parts = (query, key, pos_query, positions)
        return softmax_of_scores(*parts, mask, limited), cache

    def _skips_positions(self) -> bool:
        return self.training and random.random() < float(self.position_skip_rate)


def attend(weights: Tensor, values: Tensor) -> Tensor:
    """Return the weighted sums of ``values``.

    Args:
      weights: (N, H, T, S).
      values: (N, S, C), C is split over the H heads.
    Returns:
      (N, T, C).
    """
    batch, num_sources, channels = values.shape
    heads = weights.shape[1]
    values = values.reshape(batch, -1, heads, channels // heads).transpose(1, 2)
    return (weights @ values).transpose(1, 2).reshape(batch, -1, channels)


class SelfAttention(nn.Module):
    """Projects the frames to values, attends, projects back.

    Args:
      channels: C.
      num_heads, value_head_dim: of the values.
    """

    def __init__(self, channels: int, num_heads: int, value_head_dim: int) -> None:
        super().__init__()
        hidden = num_heads * value_head_dim
        self.in_proj = nn.Linear(channels, hidden)
        self.out_proj = scaled_linear(hidden, channels, initial_scale=0.05)
        self.whiten = Whiten(1, whitening_limit(7.5, ratio=3.0), grad_scale=0.01)

    def forward(
        self, x: Tensor, weights: Tensor, cache: Optional[Tensor] = None
    ) -> tuple[Tensor, Optional[Tensor]]:
        """Attend.

        Args:
          x: (N, T, C).
          weights: (N, H, T, L + T).
          cache: (L, N, H * value_head_dim), values before ``x``, when streaming.
        Returns:
          (N, T, C), and the next cache when one was given.
        """
        values = self.in_proj(x)
        if cache is not None:
            left_context = cache.shape[0]
            values = torch.cat([cache.transpose(0, 1), values], dim=1)
            cache = values[:, -left_context:].transpose(0, 1)
        return self.whiten(self.out_proj(attend(weights, values))), cache


class NonlinAttention(nn.Module):
    """Attention of one head over gated frames, gated again.

    Source: the paper above, 3.2: (attention of (tanh(s) * x)) * y, then linear.

    Args:
      channels: C.
      hidden: width of s, x and y.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(channels, 3 * hidden)
        self.balancer = Balancer(
            min_positive=ScheduledFloat((0.0, 0.25), (20000.0, 0.05)),
            max_positive=ScheduledFloat((0.0, 0.75), (20000.0, 0.95)),
            min_abs=0.5,
            max_abs=5.0,
        )
        self.whiten1 = Whiten(1, whitening_limit(5.0), grad_scale=0.01)
        self.whiten2 = Whiten(1, whitening_limit(5.0, ratio=3.0), grad_scale=0.01)
        self.out_proj = scaled_linear(hidden, channels, initial_scale=0.05)

    def forward(
        self, x: Tensor, weights: Tensor, cache: Optional[Tensor] = None
    ) -> tuple[Tensor, Optional[Tensor]]:
        """Attend.

        Args:
          x: (N, T, C).
          weights: (N, 1, T, L + T), those of one head.
          cache: (1, N, L, hidden), gated frames before ``x``, when streaming.
        Returns:
          (N, T, C), and the next cache when one was given.
        """
        gate, x, out_gate = self.in_proj(x).chunk(3, dim=-1)
        x = self.whiten1(x) * self.balancer(gate).tanh()
        if cache is not None:
            left_context = cache.shape[2]
            x = torch.cat([cache.squeeze(0), x], dim=1)
            cache = x[:, -left_context:].unsqueeze(0)
        x = attend(weights, x) * out_gate
        return self.whiten2(self.out_proj(x)), cache


def flatten_weights(weights: Tensor) -> Tensor:
    """Return weights that are equal over the frames that may be attended to.

    A module trained with them at times learns to average over time as well.
    """
    allowed = (weights > 0.0).to(weights.dtype)
    return allowed / allowed.sum(dim=-1, keepdim=True)
