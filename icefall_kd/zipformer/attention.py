"""Attention weights, and the two kinds of module that share them.

A layer computes its weights once; two self-attention modules and the non-linear
attention consume them.  Source: Yao et al., Zipformer, 2023, arXiv:2310.11230, 3.2.
"""

import math
import random
from typing import Iterator, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icefall_kd.zipformer.activations import block_rows
from icefall_kd.zipformer.feedforward import whitening_limit
from icefall_kd.zipformer.norms import scaled_linear
from icefall_kd.zipformer.precision import autocast_dtype, widen
from icefall_kd.zipformer.regularisers import Balancer, Whiten
from icefall_kd.zipformer.schedules import ScheduledFloat

MASKED_SCORE = -1000.0  # exp of it is exactly 0, yet a row of nothing else is no NaN
# A failsafe against implausible scores, whose softmax has no gradient: now and then
# every score beyond the limit is pulled back by a constant gradient.
SCORE_LIMIT = 25.0
SCORE_PENALTY = 1e-4


class RelativePositions(nn.Module):
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


def align_positions(scores: Tensor, num_sources: int) -> Tensor:
    """Turn scores by time difference into scores by source frame.

    Row i of the result is row i of the input from column T - 1 - i on: reading the
    rows with a stride one shorter does that without copying.

    Args:
      scores: (..., T, L + 2 T) over the differences of `RelativePositions`.
      num_sources: L + T.
    Returns:
      (..., T, L + T), a view where ``scores`` is contiguous.
    """
    num_frames, width = scores.shape[-2:]
    flat = scores.flatten(-2)[..., num_frames - 1 :]
    flat = flat[..., : num_frames * (width - 1)]
    rows = flat.reshape(*scores.shape[:-2], num_frames, width - 1)
    return rows[..., :num_sources]


class _Weights(torch.autograd.Function):
    """Softmax of masked scores by content and by position, as one function.

    Scores are the largest tensors of a layer: only the weights are kept, and all else
    is made and used by tiles that stay in a processor's cache.
    """

    @staticmethod
    def forward(ctx, query, key, pos_query, positions, mask, limited):
        dtype = autocast_dtype(query)
        query, key = query.to(dtype), key.to(dtype)
        if pos_query is not None:
            pos_query, positions = pos_query.to(dtype), positions.to(dtype)
        weights = query.new_empty(*query.shape[:3], key.shape[2])
        side = weights.new_empty(weights.shape, dtype=torch.int8) if limited else None
        if mask is not None:
            mask = mask.expand(weights.shape[0], 1, *weights.shape[2:])
        with torch.autocast(query.device.type, enabled=False):
            for seqs, rows, columns in _tiles(weights):
                scores = widen(query[seqs, :, rows] @ key[seqs].transpose(-2, -1))
                if pos_query is not None:
                    by_offset = pos_query[seqs, :, rows] @ positions[..., columns]
                    scores.add_(align_positions(by_offset, scores.shape[-1]))
                if limited:
                    above, below = scores > SCORE_LIMIT, scores < -SCORE_LIMIT
                    side[seqs, :, rows] = above.to(torch.int8) - below.to(torch.int8)
                if mask is not None:
                    scores.masked_fill_(mask[seqs, :, rows], MASKED_SCORE)
                weights[seqs, :, rows] = scores.softmax(dim=-1)
        ctx.save_for_backward(query, key, pos_query, positions, weights, side)
        return weights

    @staticmethod
    def backward(ctx, grad):
        query, key, pos_query, positions, weights, side = ctx.saved_tensors
        grad_query = torch.empty_like(query)
        grad_key = widen(torch.zeros_like(key))
        grad_pos_query = grad_positions = None
        if pos_query is not None:
            grad_pos_query = torch.empty_like(pos_query)
            grad_positions = widen(torch.zeros_like(positions))
        for seqs, rows, columns in _tiles(weights):
            wide = widen(weights[seqs, :, rows])
            # Masked scores have weight 0, and with it no gradient.
            g = widen(grad[seqs, :, rows])
            g = torch._softmax_backward_data(g, wide, -1, wide.dtype)
            if side is not None:
                g.add_(side[seqs, :, rows], alpha=SCORE_PENALTY)
            if pos_query is not None:
                by_offset = query.new_zeros(*g.shape[:3], g.shape[2] + g.shape[3])
                align_positions(by_offset, g.shape[-1]).copy_(g)
                grad_pos_query[seqs, :, rows] = by_offset @ positions[
                    ..., columns
                ].transpose(-2, -1)
                part = pos_query[seqs, :, rows].transpose(-2, -1) @ by_offset
                grad_positions[..., columns] += part.sum(0)
            g = g.to(query.dtype)
            grad_query[seqs, :, rows] = g @ key[seqs]
            grad_key[seqs] += g.transpose(-2, -1) @ query[seqs, :, rows]
        grad_key = grad_key.to(key.dtype)
        if grad_positions is not None:
            grad_positions = grad_positions.to(positions.dtype)
        return grad_query, grad_key, grad_pos_query, grad_positions, None, None


def _tiles(weights: Tensor) -> Iterator[Tuple[slice, slice, slice]]:
    """Yield sequences, target frames and offsets to take at once: all on a GPU.

    The offsets are the columns of the position scores that `align_positions` needs
    for these target frames.

    Args:
      weights: (N, H, T, S).
    """
    batch, heads, num_frames, num_sources = weights.shape
    size = block_rows(weights, heads * num_sources)  # target frames
    step = max(1, size // num_frames)
    size = min(size, num_frames)
    for n in range(0, batch, step):
        for first in range(0, num_frames, size):
            last = min(num_frames, first + size)
            columns = slice(num_frames - last, num_frames - first + num_sources)
            yield slice(n, n + step), slice(first, last), columns


class AttentionWeights(nn.Module):
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
    ) -> Tuple[Tensor, Optional[Tensor]]:
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
        if torch.is_grad_enabled() and not torch.jit.is_tracing():
            limited = self.training and random.random() < 0.1
            args = (query, key, pos_query, positions, mask, limited)
            return _Weights.apply(*args), cache
        scores = query @ key.transpose(2, 3)
        scores = scores + align_positions(pos_query @ positions, key.shape[2])
        if mask is not None:
            scores = scores.masked_fill(mask, MASKED_SCORE)
        return scores.softmax(dim=-1), cache

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
    ) -> Tuple[Tensor, Optional[Tensor]]:
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
    ) -> Tuple[Tensor, Optional[Tensor]]:
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
