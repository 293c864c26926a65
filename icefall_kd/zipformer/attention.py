"""Attention weights and the modules that use them, after icefall's ``zipformer.py``.

A layer computes its weights once, in RelPositionMultiheadAttentionWeights.  Two
SelfAttention modules and NonlinAttention use them.  The names are icefall's.

Source: Yao et al., Zipformer, 2023, arXiv:2310.11230, section 3.2.
"""

import math
import random
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icefall_kd.zipformer.cpu.attention_weights import compute_weights
from icefall_kd.zipformer.modules import whitening_schedule
from icefall_kd.zipformer.regularisers import Balancer, Whiten
from icefall_kd.zipformer.scaling import ScheduledFloat, scaled_linear


class CompactRelPositionalEncoding(nn.Module):
    """Encode time differences in few dimensions, with more precision for small ones.

    A difference t is compressed to sign(t) sqrt(D) ln(1 + |t| / sqrt(D)), and atan maps
    that to an angle.  The encoding is the cosines and sines of multiples of the angle.
    Its last dimension is 1, for a bias.

    Args:
      dim: D, even.
    Raises:
      ValueError: if ``dim`` is odd.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % 2 != 0:
            raise ValueError(f"model.encoder.pos_dim must be even, got {dim}")
        self.dim = dim

    def forward(self, num_frames: int, left_context: int, device: torch.device):
        """Return the encodings of the differences (source frame - target frame).

        Args:
          num_frames: T, target frames.
          left_context: L, source frames before the first target frame.
          device: of the result.
        Returns:
          (L + 2 T, D) float32, of the differences -(L + T - 1) ... T.  No two frames
          have the difference T, but with it `align_positions` needs no padding.
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

    The scores are not divided by sqrt(query_head_dim).  The initial weights of the
    projection contain this factor, because ScaledAdam's step is relative to a
    parameter's magnitude.

    Args:
      channels: C.
      pos_dim: dimension of the positional encoding.
      num_heads: H.
      query_head_dim, pos_head_dim: dimensions of the queries and of the projected
        positions of a head.
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
        self.whiten_keys = Whiten(num_heads, whitening_schedule(3.0), grad_scale=0.025)
        # A constant that is added to all keys does not change the weights.  Rounding
        # errors would let it grow; the balancer prevents that.
        self.balance_keys = Balancer(
            min_positive=0.4, max_positive=0.6, min_abs=0.0, max_abs=100.0, prob=0.025
        )
        self.pos_emb_skip_rate = ScheduledFloat((0.0, 0.5), (4000.0, 0.0))

    def forward(
        self,
        x: Tensor,
        pos_emb: Tensor,
        mask: Optional[Tensor] = None,
        cache: Optional[Tensor] = None,
    ) -> tuple[Tensor, Optional[Tensor]]:
        """Return the weights of the source frames for each target frame.

        Args:
          x: (N, T, C).
          pos_emb: (L + 2 T, pos_dim); L is 0 without a cache.
          mask: bool, broadcasts to (N, 1, T, L + T); True for a source frame that a
            target frame must not attend to.
          cache: (L, N, H * query_head_dim), keys before ``x``, in streaming.
        Returns:
          (N, H, T, L + T), and the next cache if a cache was given.
        """
        batch = x.shape[0]
        skip_rate = float(self.pos_emb_skip_rate)
        use_positions = not (self.training and random.random() < skip_rate)
        bias = self.in_proj.bias
        if not use_positions:
            # Distributed training needs a gradient for every parameter in each step.
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
        if use_positions:
            pos_query = pos_query.reshape(*shape, self.widths[2] // self.num_heads)
            pos_query = pos_query.transpose(1, 2)
            pos_key = self.linear_pos(pos_emb.to(pos_query.dtype))
            pos_key = pos_key.reshape(-1, self.num_heads, pos_query.shape[-1])
            pos_key = pos_key.permute(1, 2, 0)  # (H, pos_head_dim, L + 2 T)
        else:
            pos_query = pos_key = None
        penalize = self.training and random.random() < 0.1
        weights = compute_weights(query, key, pos_query, pos_key, mask, penalize)
        return weights, cache


def attend(weights: Tensor, values: Tensor) -> Tensor:
    """Return the weighted sums of ``values``.

    Args:
      weights: (N, H, T, S).
      values: (N, S, C); each head has C / H channels.
    Returns:
      (N, T, C).
    """
    batch, num_sources, channels = values.shape
    heads = weights.shape[1]
    values = values.reshape(batch, -1, heads, channels // heads).transpose(1, 2)
    return (weights @ values).transpose(1, 2).reshape(batch, -1, channels)


class SelfAttention(nn.Module):
    """Linear, weighted sums by given attention weights, linear.

    Args:
      channels: C.
      num_heads: H.
      value_head_dim: dimension of the values of a head.
    """

    def __init__(self, channels: int, num_heads: int, value_head_dim: int) -> None:
        super().__init__()
        hidden = num_heads * value_head_dim
        self.in_proj = nn.Linear(channels, hidden)
        self.out_proj = scaled_linear(hidden, channels, initial_scale=0.05)
        self.whiten = Whiten(1, whitening_schedule(7.5, ratio=3.0), grad_scale=0.01)

    def forward(
        self, x: Tensor, weights: Tensor, cache: Optional[Tensor] = None
    ) -> tuple[Tensor, Optional[Tensor]]:
        """Apply the module.

        Args:
          x: (N, T, C).
          weights: (N, H, T, L + T).
          cache: (L, N, H * value_head_dim), values before ``x``, in streaming.
        Returns:
          (N, T, C), and the next cache if a cache was given.
        """
        values = self.in_proj(x)
        if cache is not None:
            left_context = cache.shape[0]
            values = torch.cat([cache.transpose(0, 1), values], dim=1)
            cache = values[:, -left_context:].transpose(0, 1)
        return self.whiten(self.out_proj(attend(weights, values))), cache


class NonlinAttention(nn.Module):
    """Gated attention: linear(attention(tanh(s) * x) * y) with one head's weights.

    Args:
      channels: C.
      hidden: width of s, x and y, which a linear layer computes from the input.
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
        self.whiten1 = Whiten(1, whitening_schedule(5.0), grad_scale=0.01)
        self.whiten2 = Whiten(1, whitening_schedule(5.0, ratio=3.0), grad_scale=0.01)
        self.out_proj = scaled_linear(hidden, channels, initial_scale=0.05)

    def forward(
        self, x: Tensor, weights: Tensor, cache: Optional[Tensor] = None
    ) -> tuple[Tensor, Optional[Tensor]]:
        """Apply the module.

        Args:
          x: (N, T, C).
          weights: (N, 1, T, L + T), of one head.
          cache: (1, N, L, hidden), gated frames before ``x``, in streaming.
        Returns:
          (N, T, C), and the next cache if a cache was given.
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
    """Return equal weights for all source frames whose weight is above zero.

    Training sometimes uses them, so that the module also learns the mean over time.
    """
    allowed = (weights > 0.0).to(weights.dtype)
    return allowed / allowed.sum(dim=-1, keepdim=True)
