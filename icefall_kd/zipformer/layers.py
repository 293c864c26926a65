"""The Zipformer layer: how the modules are put together, and the bypass."""

import random
from typing import NamedTuple, Optional, Union

import torch
from torch import Tensor, nn

from icefall_kd.zipformer.attention import (
    NonlinAttention,
    RelPositionMultiheadAttentionWeights,
    SelfAttention,
    flatten_weights,
)
from icefall_kd.zipformer.modules import ConvolutionModule, FeedForward, whitening_limit
from icefall_kd.zipformer.regularisers import (
    Balancer,
    FloatLike,
    ScheduledFloat,
    Whiten,
    limit_param_value,
)
from icefall_kd.zipformer.scaling import BiasNorm


class LayerCache(NamedTuple):
    """What a layer remembers of the frames before a chunk; L frames of left context.

    Attributes:
      key: (L, N, H * query_head_dim).
      nonlin: (1, N, L, 3 C / 4).
      value1, value2: (L, N, H * value_head_dim).
      conv1, conv2: (N, C, kernel // 2).
    """

    key: Tensor
    nonlin: Tensor
    value1: Tensor
    value2: Tensor
    conv1: Tensor
    conv2: Tensor


NO_CACHE = (None,) * len(LayerCache._fields)


def keep_sequences(x: Tensor, rate: float) -> Union[Tensor, float]:
    """Return a (N, 1, 1) mask that is 0 for a share ``rate`` of sequences, else 1."""
    if rate == 0.0:
        return 1.0
    return (torch.rand(x.shape[0], 1, 1, device=x.device) >= rate).to(x.dtype)


def add_branch(x: Tensor, branch: Tensor, keep: Union[Tensor, float] = 1.0) -> Tensor:
    """Return ``x`` plus the output of a branch, for the sequences that are kept."""
    if isinstance(keep, float):
        return x + branch
    return torch.addcmul(x, branch, keep.to(branch.dtype))


class Bypass(nn.Module):
    """Mixes input and output of a module by a learned share of each channel.

    Early in training the share of the output is kept high, so that every module
    learns something, and whole sequences may skip the module.

    Source: Yao et al., Zipformer, 2023, arXiv:2310.11230, 3.2.

    Args:
      channels: C.
      skip_rate: share of the sequences that skip the module in training.
    """

    def __init__(self, channels: int, skip_rate: FloatLike = 0.0) -> None:
        super().__init__()
        self.bypass_scale = nn.Parameter(torch.full((channels,), 0.5))
        self.skip_rate = skip_rate
        self.scale_min = ScheduledFloat((0.0, 0.9), (20000.0, 0.2), default=0.0)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Return before + (after - before) * scale, all (N, T, C)."""
        scale = self.bypass_scale
        if self.training:
            scale = limit_param_value(scale, float(self.scale_min), 1.0)
            keep = keep_sequences(after, float(self.skip_rate))
            scale = scale * keep
        return before + (after - before) * scale


class Zipformer2EncoderLayer(nn.Module):
    """One layer: feed-forward, attention and convolution twice, around a mid bypass.

    Source: Yao et al., Zipformer, 2023, arXiv:2310.11230, figure 2.

    Args:
      channels: C.
      pos_dim: of the position encoding.
      num_heads, query_head_dim, pos_head_dim, value_head_dim: of the attention.
      feedforward_dim: hidden width of the middle feed-forward; the first has 3/4 of
        it, the last 5/4.
      kernel_size: of the depthwise convolutions.
      dropout: in the feed-forward modules.
      causal: whether convolutions are confined to chunks.
      skip_rate: share of sequences that skip the layer in training.
    """

    def __init__(
        self,
        channels: int,
        pos_dim: int,
        num_heads: int,
        query_head_dim: int,
        pos_head_dim: int,
        value_head_dim: int,
        feedforward_dim: int,
        kernel_size: int,
        dropout: FloatLike,
        causal: bool,
        skip_rate: FloatLike,
    ) -> None:
        super().__init__()
        self.self_attn_weights = RelPositionMultiheadAttentionWeights(
            channels, pos_dim, num_heads, query_head_dim, pos_head_dim
        )
        self.self_attn1 = SelfAttention(channels, num_heads, value_head_dim)
        self.self_attn2 = SelfAttention(channels, num_heads, value_head_dim)
        self.feed_forward1 = FeedForward(channels, feedforward_dim * 3 // 4, dropout)
        self.feed_forward2 = FeedForward(channels, feedforward_dim, dropout)
        self.feed_forward3 = FeedForward(channels, feedforward_dim * 5 // 4, dropout)
        self.nonlin_attention = NonlinAttention(channels, 3 * channels // 4)
        self.conv_module1 = ConvolutionModule(channels, kernel_size, causal)
        self.conv_module2 = ConvolutionModule(channels, kernel_size, causal)
        self.norm = BiasNorm(channels)
        self.bypass = Bypass(channels, skip_rate)
        self.bypass_mid = Bypass(channels)
        # Of no effect; published checkpoints carry it.  As a buffer it is no
        # parameter that never gets a gradient.
        self.register_buffer("bypass_scale", torch.full((channels,), 0.5))
        self._add_regularisers()

    def _add_regularisers(self) -> None:
        self.attention_skip_rate = _early(0.2, 0.05, (16000.0, 0.0))
        self.conv_skip_rate = _early(0.2, 0.05, (16000.0, 0.0))
        self.const_attention_rate = _early(0.25, 0.025)
        self.ff2_skip_rate = _early(0.1, 0.01, (50000.0, 0.0))
        self.ff3_skip_rate = _early(0.1, 0.01, (50000.0, 0.0))
        self.balancer1 = Balancer(
            min_positive=0.45, max_positive=0.55, min_abs=0.2, max_abs=4.0
        )
        self.balancer2 = Balancer(
            min_positive=0.45, max_positive=0.55, min_abs=0.1, max_abs=4.0
        )
        rare = dict(min_positive=0.3, max_positive=0.7, prob=0.05)
        self.balancer_na = Balancer(min_abs=_early(0.004, 0.02), **rare)
        self.balancer_ff2 = Balancer(min_abs=_early(0.0, 0.1), max_abs=2.0, **rare)
        self.balancer_ff3 = Balancer(min_abs=_early(0.0, 0.2), max_abs=4.0, **rare)
        self.whiten = Whiten(1, whitening_limit(4.0, ratio=3.0), grad_scale=0.01)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        mask: Optional[Tensor] = None,
        pad_mask: Optional[Tensor] = None,
        chunk_size: int = -1,
        cache: Optional[LayerCache] = None,
    ) -> tuple[Tensor, Optional[LayerCache]]:
        """Compute the layer.

        Args:
          x: (N, T, C).
          positions: (L + 2 T, pos_dim), see `CompactRelPositionalEncoding`.
          mask: bool, broadcasts to (N, 1, T, L + T), True is not attended to.
          pad_mask: (N, T) bool, True at padding.
          chunk_size: frames in a chunk of the convolutions, -1 is one chunk.
          cache: of the frames before ``x``, when streaming.
        Returns:
          (N, T, C), and the next cache when one was given.
        """
        past = cache if cache is not None else NO_CACHE
        begin = x
        weights, key = self.self_attn_weights(x, positions, mask, past[0])
        keep_attention = self._keep(x, self.attention_skip_rate)

        x = x + self.feed_forward1(x)
        y, nonlin = self.nonlin_attention(x, self._first_head(weights), past[1])
        x = add_branch(x, self.balancer_na(y), keep_attention)
        y, value1 = self.self_attn1(x, weights, past[2])
        x = add_branch(x, y, keep_attention)
        y, conv1 = self.conv_module1(x, pad_mask, chunk_size, past[4])
        x = add_branch(x, y, self._keep(x, self.conv_skip_rate))
        y = self.balancer_ff2(self.feed_forward2(x))
        x = add_branch(x, y, self._keep(x, self.ff2_skip_rate))

        x = self.bypass_mid(begin, x)

        y, value2 = self.self_attn2(x, weights, past[3])
        x = add_branch(x, y, keep_attention)
        y, conv2 = self.conv_module2(x, pad_mask, chunk_size, past[5])
        x = add_branch(x, y, self._keep(x, self.conv_skip_rate))
        y = self.balancer_ff3(self.feed_forward3(x))
        x = add_branch(x, y, self._keep(x, self.ff3_skip_rate))

        x = self.norm(self.balancer1(x))
        x = self.bypass(begin, x)
        x = self.whiten(self.balancer2(x))
        if cache is not None:
            cache = LayerCache(key, nonlin, value1, value2, conv1, conv2)
        return x, cache

    def _keep(self, x: Tensor, rate: FloatLike) -> Union[Tensor, float]:
        return keep_sequences(x, float(rate)) if self.training else 1.0

    def _first_head(self, weights: Tensor) -> Tensor:
        first = weights[:, :1]
        if self.training and random.random() < float(self.const_attention_rate):
            return flatten_weights(first)
        return first


def _early(start: float, warm: float, *rest: tuple[float, float]) -> ScheduledFloat:
    """Return a schedule from ``start`` to ``warm`` over the first 4000 batches."""
    return ScheduledFloat((0.0, start), (4000.0, warm), *rest, default=0.0)
