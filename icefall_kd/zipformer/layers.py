"""The Zipformer layer and stacks of layers, after icefall's ``zipformer.py``.

Zipformer2EncoderLayer, Zipformer2Encoder (a stack at one frame rate) and
DownsampledZipformer2Encoder have icefall's names.

Source: Yao et al., Zipformer, 2023, arXiv:2310.11230, figures 1 and 2.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple, Optional, Union

import torch
from torch import Tensor, nn

from icefall_kd.zipformer.attention import (
    CompactRelPositionalEncoding,
    NonlinAttention,
    RelPositionMultiheadAttentionWeights,
    SelfAttention,
    flatten_weights,
)
from icefall_kd.zipformer.modules import (
    BypassModule,
    ConvolutionModule,
    FeedforwardModule,
    SimpleDownsample,
    make_sequence_dropout_mask,
    upsample,
    whitening_schedule,
)
from icefall_kd.zipformer.regularisers import Balancer, Whiten
from icefall_kd.zipformer.scaling import BiasNorm, FloatLike, ScheduledFloat


class LayerCache(NamedTuple):
    """Streaming state of a layer with L frames of left context.

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


def add_branch(x: Tensor, branch: Tensor, mask: Union[Tensor, float] = 1.0) -> Tensor:
    """Return ``x + branch * mask``; see `make_sequence_dropout_mask`."""
    if isinstance(mask, float):
        return x + branch
    return torch.addcmul(x, branch, mask.to(branch.dtype))


def warmup_schedule(
    start: float, warm: float, *rest: tuple[float, float]
) -> ScheduledFloat:
    """Return a schedule from ``start`` to ``warm`` over the first 4000 batches."""
    return ScheduledFloat((0.0, start), (4000.0, warm), *rest, default=0.0)


class Zipformer2EncoderLayer(nn.Module):
    """Attention, convolution and feed-forward modules in two halves, with bypasses.

    Args:
      channels: C.
      pos_dim: dimension of the positional encoding.
      num_heads, query_head_dim, pos_head_dim, value_head_dim: sizes of the attention.
      feedforward_dim: hidden width of the middle feed-forward module; the first has
        3/4 of it, the last 5/4.
      kernel_size: of the depthwise convolutions.
      dropout: share of hidden channels that the feed-forward modules drop.
      causal: whether a frame depends on no frame after its chunk.
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
        hidden = (feedforward_dim * 3 // 4, feedforward_dim, feedforward_dim * 5 // 4)
        self.feed_forward1 = FeedforwardModule(channels, hidden[0], dropout)
        self.feed_forward2 = FeedforwardModule(channels, hidden[1], dropout)
        self.feed_forward3 = FeedforwardModule(channels, hidden[2], dropout)
        self.nonlin_attention = NonlinAttention(channels, 3 * channels // 4)
        self.conv_module1 = ConvolutionModule(channels, kernel_size, causal)
        self.conv_module2 = ConvolutionModule(channels, kernel_size, causal)
        self.norm = BiasNorm(channels)
        self.bypass = BypassModule(channels, skip_rate)
        self.bypass_mid = BypassModule(channels)
        # Unused, but published checkpoints have this key.  It is a buffer, because a
        # parameter without a gradient fails in distributed training.
        self.register_buffer("bypass_scale", torch.full((channels,), 0.5))
        self._add_regularisers()

    def _add_regularisers(self) -> None:
        self.attention_skip_rate = warmup_schedule(0.2, 0.05, (16000.0, 0.0))
        self.conv_skip_rate = warmup_schedule(0.2, 0.05, (16000.0, 0.0))
        self.const_attention_rate = warmup_schedule(0.25, 0.025)
        self.ff2_skip_rate = warmup_schedule(0.1, 0.01, (50000.0, 0.0))
        self.ff3_skip_rate = warmup_schedule(0.1, 0.01, (50000.0, 0.0))
        even = dict(min_positive=0.45, max_positive=0.55, max_abs=4.0)
        self.balancer1 = Balancer(min_abs=0.2, **even)
        self.balancer2 = Balancer(min_abs=0.1, **even)
        rare = dict(min_positive=0.3, max_positive=0.7, prob=0.05)
        self.balancer_na = Balancer(min_abs=warmup_schedule(0.004, 0.02), **rare)
        self.balancer_ff2 = Balancer(
            min_abs=warmup_schedule(0.0, 0.1), max_abs=2.0, **rare
        )
        self.balancer_ff3 = Balancer(
            min_abs=warmup_schedule(0.0, 0.2), max_abs=4.0, **rare
        )
        self.whiten = Whiten(1, whitening_schedule(4.0, ratio=3.0), grad_scale=0.01)

    def forward(
        self,
        x: Tensor,
        pos_emb: Tensor,
        mask: Optional[Tensor] = None,
        pad_mask: Optional[Tensor] = None,
        chunk_size: int = -1,
        cache: Optional[LayerCache] = None,
    ) -> tuple[Tensor, Optional[LayerCache]]:
        """Apply the layer.

        Args:
          x: (N, T, C).
          pos_emb: (L + 2 T, pos_dim), see `CompactRelPositionalEncoding`.
          mask: bool, broadcasts to (N, 1, T, L + T); True for a source frame that a
            target frame must not attend to.
          pad_mask: (N, T) bool, True at padding.
          chunk_size: frames in a chunk of the convolutions; -1 is one chunk.
          cache: state after the frames before ``x``, in streaming.
        Returns:
          (N, T, C), and the next cache if a cache was given.
        """
        past = cache if cache is not None else NO_CACHE
        original = x
        weights, key = self.self_attn_weights(x, pos_emb, mask, past[0])
        attention_mask = self._get_dropout_mask(x, self.attention_skip_rate)

        x = x + self.feed_forward1(x)
        y, nonlin = self.nonlin_attention(x, self._first_head(weights), past[1])
        x = add_branch(x, self.balancer_na(y), attention_mask)
        y, value1 = self.self_attn1(x, weights, past[2])
        x = add_branch(x, y, attention_mask)
        y, conv1 = self.conv_module1(x, pad_mask, chunk_size, past[4])
        x = add_branch(x, y, self._get_dropout_mask(x, self.conv_skip_rate))
        y = self.balancer_ff2(self.feed_forward2(x))
        x = add_branch(x, y, self._get_dropout_mask(x, self.ff2_skip_rate))

        x = self.bypass_mid(original, x)

        y, value2 = self.self_attn2(x, weights, past[3])
        x = add_branch(x, y, attention_mask)
        y, conv2 = self.conv_module2(x, pad_mask, chunk_size, past[5])
        x = add_branch(x, y, self._get_dropout_mask(x, self.conv_skip_rate))
        y = self.balancer_ff3(self.feed_forward3(x))
        x = add_branch(x, y, self._get_dropout_mask(x, self.ff3_skip_rate))

        x = self.norm(self.balancer1(x))
        x = self.bypass(original, x)
        x = self.whiten(self.balancer2(x))
        if cache is not None:
            cache = LayerCache(key, nonlin, value1, value2, conv1, conv2)
        return x, cache

    def _get_dropout_mask(self, x: Tensor, rate: FloatLike) -> Union[Tensor, float]:
        return make_sequence_dropout_mask(x, float(rate)) if self.training else 1.0

    def _first_head(self, weights: Tensor) -> Tensor:
        first = weights[:, :1]
        if self.training and random.random() < float(self.const_attention_rate):
            return flatten_weights(first)
        return first


class Zipformer2Encoder(nn.Module):
    """A stack: layers at one frame rate.

    Args:
      layers: in order.
      pos_dim: dimension of the positional encoding.
    """

    def __init__(self, layers: Sequence[Zipformer2EncoderLayer], pos_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.encoder_pos = CompactRelPositionalEncoding(pos_dim)

    def forward(
        self,
        x: Tensor,
        mask: Optional[Tensor] = None,
        pad_mask: Optional[Tensor] = None,
        chunk_size: int = -1,
        feature_mask: Optional[Tensor] = None,
        caches: Optional[list[LayerCache]] = None,
    ) -> tuple[Tensor, Optional[list[LayerCache]]]:
        """Apply the layers.

        Args:
          x: (N, T, C).
          mask, pad_mask, chunk_size: as for a layer, at this stack's frame rate.
          feature_mask: (N, 1, C); multiplies the input and each layer's output.
          caches: one for each layer, in streaming.
        Returns:
          (N, T, C), and the next caches if caches were given.
        """
        left_context = 0 if caches is None else caches[0].key.shape[0]
        pos_emb = self.encoder_pos(x.shape[1], left_context, x.device)
        if feature_mask is not None:
            x = x * feature_mask
        next_caches = []
        for i, layer in enumerate(self.layers):
            cache = None if caches is None else caches[i]
            x, cache = layer(x, pos_emb, mask, pad_mask, chunk_size, cache)
            next_caches.append(cache)
            if feature_mask is not None:
                x = x * feature_mask
        return x, None if caches is None else next_caches


class DownsampledZipformer2Encoder(nn.Module):
    """A stack at a lower frame rate, with a bypass at the rate of its input.

    Args:
      encoder: the stack.
      channels: C.
      factor: ratio of the frame rates.
    """

    def __init__(self, encoder: Zipformer2Encoder, channels: int, factor: int) -> None:
        super().__init__()
        self.downsample = SimpleDownsample(factor)
        self.encoder = encoder
        self.out_combiner = BypassModule(channels)

    def forward(
        self, x: Tensor, *args, caches: Optional[list[LayerCache]] = None, **kwargs
    ) -> tuple[Tensor, Optional[list[LayerCache]]]:
        """Apply the stack.

        Args:
          x: (N, T, C), at the higher frame rate.
          args, caches, kwargs: of :meth:`Zipformer2Encoder.forward`; masks and chunk
            size are at the lower frame rate.
        Returns:
          (N, T, C), and the next caches if caches were given.
        """
        y = self.downsample(x, exact=caches is not None)
        y, caches = self.encoder(y, *args, caches=caches, **kwargs)
        y = upsample(y, self.downsample.factor)[:, : x.shape[1]]
        return self.out_combiner(x, y), caches
