"""Modules of a Zipformer layer, after icefall's ``zipformer.py`` and ``scaling.py``.

FeedforwardModule, ConvolutionModule, ChunkCausalDepthwiseConv1d, BypassModule and
SimpleDownsample have icefall's names; `upsample` is its SimpleUpsample.

Source: Yao et al., Zipformer, 2023, arXiv:2310.11230.
"""

from typing import Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icefall_kd.zipformer.cpu.depthwise import depthwise_frames
from icefall_kd.zipformer.cpu.pointwise import pointwise_pair
from icefall_kd.zipformer.regularisers import Balancer, Whiten
from icefall_kd.zipformer.scaling import (
    FloatLike,
    ScheduledFloat,
    limit_param_value,
    scaled_linear,
    swoosh_r,
)


def whitening_schedule(start: float, ratio: float = 2.0) -> ScheduledFloat:
    """Return a limit for Whiten that grows ``ratio``-fold over 20000 batches."""
    return ScheduledFloat((0.0, start), (20000.0, ratio * start), default=start)


def make_channel_dropout(
    x: Tensor, channels: int, rate: FloatLike, training: bool
) -> Optional[Tensor]:
    """Return a dropout mask that all frames of a sequence share; icefall's Dropout3.

    Args:
      x: (N, T, C); the mask has its N, dtype and device.
      channels: C', channels of the mask.
      rate: share of the channels to drop.
      training: False disables dropout.
    Returns:
      (N, 1, C') of 0 and 1 / (1 - rate); None if nothing is dropped.
    """
    rate = float(rate) if training else 0.0
    if rate == 0.0:
        return None
    keep = torch.rand(x.shape[0], 1, channels, device=x.device) >= rate
    return keep.to(x.dtype).mul_(1.0 / (1.0 - rate))


class FeedforwardModule(nn.Module):
    """Linear, SwooshL, dropout, linear; input and output are (N, T, C).

    Args:
      channels: C.
      hidden: width after the first linear layer.
      dropout: share of hidden channels that training drops.
    """

    def __init__(self, channels: int, hidden: int, dropout: FloatLike) -> None:
        super().__init__()
        self.in_proj = nn.Linear(channels, hidden)
        self.hidden_balancer = Balancer(
            min_positive=0.3, max_positive=1.0, min_abs=0.75, max_abs=5.0
        )
        self.dropout = dropout
        self.out_proj = scaled_linear(hidden, channels, initial_scale=0.1)
        self.out_whiten = Whiten(1, whitening_schedule(7.5), grad_scale=0.01)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.in_proj.out_features
        keep = make_channel_dropout(x, hidden, self.dropout, self.training)
        x = pointwise_pair(x, self.in_proj, self.out_proj, self.hidden_balancer, keep)
        return self.out_whiten(x)


def convolve_frames(x: Tensor, conv: nn.Conv1d, padding: int) -> Tensor:
    """Return the depthwise convolution of frames.

    Args:
      x: (N, T, C).
      conv: depthwise; its own padding is ignored.
      padding: zero frames on either side.
    Returns:
      (N, T + 2 * padding - kernel + 1, C).
    """
    if x.device.type == "cpu" and not torch.jit.is_tracing():
        return depthwise_frames(x, conv.weight, conv.bias, padding)
    x = x.transpose(1, 2)
    y = F.conv1d(x, conv.weight, conv.bias, padding=padding, groups=conv.groups)
    return y.transpose(1, 2)


class ChunkCausalDepthwiseConv1d(nn.Module):
    """Depthwise convolution over the past and the rest of the current chunk.

    The output is the sum of a causal convolution of half the width and a convolution
    within the chunk.  The second is scaled by a learned factor for each distance to the
    edges of the chunk.

    Args:
      channels: C.
      kernel_size: odd.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        half = (kernel_size + 1) // 2
        self.kernel_size = kernel_size
        self.causal_conv = nn.Conv1d(channels, channels, half, groups=channels)
        nn.init.uniform_(self.causal_conv.bias, -0.1, 0.1)
        self.chunkwise_conv = nn.Conv1d(
            channels, channels, kernel_size, groups=channels
        )
        # The scale is 1 plus these values.  [0] is indexed from the left edge of the
        # chunk, [1] ends at its right edge.
        self.chunkwise_conv_scale = nn.Parameter(torch.zeros(2, channels, kernel_size))

    def forward(
        self, x: Tensor, chunk_size: int, cache: Optional[Tensor] = None
    ) -> tuple[Tensor, Tensor]:
        """Convolve frames.

        Args:
          x: (N, T, C).
          chunk_size: frames in a chunk; if not positive, all frames are one chunk.
          cache: (N, kernel_size // 2, C), the frames before ``x``; None is zeros.
        Returns:
          (N, T, C) and the next cache.
        """
        num_frames = x.shape[1]
        left_pad = self.kernel_size // 2
        if cache is None:
            cache = x.new_zeros(x.shape[0], left_pad, x.shape[2])
        padded = torch.cat([cache, x], dim=1)
        causal = convolve_frames(padded, self.causal_conv, padding=0)
        chunkwise = self._convolve_chunks(x, chunk_size)
        return causal + chunkwise[:, :num_frames], padded[:, -left_pad:]

    def _convolve_chunks(self, x: Tensor, chunk_size: int) -> Tensor:
        batch, num_frames, channels = x.shape
        padding = self.kernel_size // 2
        tracing = torch.jit.is_tracing()
        if chunk_size <= 0 or (not tracing and chunk_size >= num_frames):
            y = convolve_frames(x, self.chunkwise_conv, padding)
            return y * self._edge_scale(num_frames)
        x = F.pad(x, (0, 0, 0, -num_frames % chunk_size))
        x = x.reshape(-1, chunk_size, channels)
        y = convolve_frames(x, self.chunkwise_conv, padding)
        y = y * self._edge_scale(chunk_size)
        return y.reshape(batch, -1, channels)

    def _edge_scale(self, chunk_size: int) -> Tensor:
        """Return the scale, (chunk_size, C); ``chunk_size`` may be a traced length."""
        left, right = self.chunkwise_conv_scale.transpose(1, 2)  # (kernel, C) each
        pad = left.new_zeros(chunk_size, left.shape[1])
        left = torch.cat([left, pad])[:chunk_size]
        right = torch.cat([pad, right])[self.kernel_size :]
        return 1.0 + left + right


class ConvolutionModule(nn.Module):
    """Linear, sigmoid gate, depthwise convolution, SwooshR, linear.

    Args:
      channels: C.
      kernel_size: of the depthwise convolution, odd.
      causal: whether a frame depends on no frame after its chunk.
    Raises:
      ValueError: if ``kernel_size`` is even.
    """

    def __init__(self, channels: int, kernel_size: int, causal: bool) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(
                f"model.encoder.cnn_module_kernel must be odd, got {kernel_size}"
            )
        self.in_proj = nn.Linear(channels, 2 * channels)
        # Large inputs of the sigmoid have sparse gradients.
        self.balancer1 = Balancer(
            min_positive=ScheduledFloat((0.0, 0.05), (8000.0, 0.025)),
            max_positive=1.0,
            min_abs=1.5,
            max_abs=ScheduledFloat((0.0, 5.0), (8000.0, 10.0), default=1.0),
        )
        if causal:
            self.depthwise_conv = ChunkCausalDepthwiseConv1d(channels, kernel_size)
        else:
            self.depthwise_conv = nn.Conv1d(
                channels, channels, kernel_size, groups=channels
            )
        self.causal = causal
        self.balancer2 = Balancer(
            min_positive=ScheduledFloat((0.0, 0.1), (8000.0, 0.05)),
            max_positive=1.0,
            min_abs=ScheduledFloat((0.0, 0.2), (20000.0, 0.5)),
            max_abs=10.0,
        )
        self.whiten = Whiten(1, whitening_schedule(7.5), grad_scale=0.01)
        self.out_proj = scaled_linear(channels, channels, initial_scale=0.05)

    def forward(
        self,
        x: Tensor,
        pad_mask: Optional[Tensor] = None,
        chunk_size: int = -1,
        cache: Optional[Tensor] = None,
    ) -> tuple[Tensor, Optional[Tensor]]:
        """Convolve frames.

        Args:
          x: (N, T, C).
          pad_mask: (N, T) bool, True at padding.
          chunk_size: frames in a chunk, -1 is one chunk.
          cache: (N, C, kernel_size // 2), gated frames before ``x``, in streaming of a
            causal module.
        Returns:
          (N, T, C), and the next cache if a cache was given.
        """
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        x = x * self.balancer1(gate).sigmoid()
        if pad_mask is not None:
            x = x.masked_fill(pad_mask.unsqueeze(-1), 0.0)
        if self.causal:
            past = None if cache is None else cache.transpose(1, 2)
            x, past = self.depthwise_conv(x, chunk_size, past)
            cache = None if cache is None else past.transpose(1, 2)
        else:
            conv = self.depthwise_conv
            x = convolve_frames(x, conv, padding=conv.kernel_size[0] // 2)
        x = self.whiten(self.balancer2(x))
        return self.out_proj(swoosh_r(x)), cache


def make_sequence_dropout_mask(x: Tensor, rate: float) -> Union[Tensor, float]:
    """Return a (N, 1, 1) mask that is 0 for a share ``rate`` of sequences, else 1."""
    if rate == 0.0:
        return 1.0
    return (torch.rand(x.shape[0], 1, 1, device=x.device) >= rate).to(x.dtype)


class BypassModule(nn.Module):
    """Interpolate between input and output of a module, with a scale per channel.

    Early in training the scale has a high minimum, so that every module learns.

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
        """Return before + (after - before) * scale.

        Args:
          before, after: (N, T, C), input and output of the module.
        """
        scale = self.bypass_scale
        if self.training:
            scale = limit_param_value(scale, float(self.scale_min), 1.0)
            scale = scale * make_sequence_dropout_mask(after, float(self.skip_rate))
        return before + (after - before) * scale


class SimpleDownsample(nn.Module):
    """Weighted mean of each group of ``factor`` frames, with learned weights."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.bias = nn.Parameter(torch.zeros(factor))

    def forward(self, x: Tensor, exact: bool = False) -> Tensor:
        """Return (N, ceil(T / factor), C) of (N, T, C).

        Args:
          x: (N, T, C).
          exact: whether T is a multiple of the factor.  Otherwise the last frame is
            repeated.
        """
        if not exact:
            x = self._pad(x)
        weights = self.bias.softmax(dim=0)
        frames = x.reshape(x.shape[0], -1, self.factor, x.shape[2])
        total = frames[:, :, 0] * weights[0]
        for i in range(1, self.factor):
            total = total + frames[:, :, i] * weights[i]
        return total

    def _pad(self, x: Tensor) -> Tensor:
        num_frames = x.shape[1]
        pad = -num_frames % self.factor
        if torch.jit.is_tracing():
            # An index keeps the number of frames dynamic in an exported graph.
            index = torch.arange(num_frames + pad, device=x.device)
            return x.index_select(1, index.clamp(max=num_frames - 1))
        if pad == 0:
            return x
        return torch.cat([x, x[:, -1:].expand(-1, pad, -1)], dim=1)


def upsample(x: Tensor, factor: int) -> Tensor:
    """Return (N, T * factor, C) of (N, T, C), each frame repeated."""
    return x.unsqueeze(2).expand(-1, -1, factor, -1).flatten(1, 2)
