"""Feed-forward module: linear, SwooshL, dropout, linear.

Convolution module of a layer: gated linear unit and depthwise convolution.
"""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icefall_kd.zipformer.cpu.depthwise import depthwise_frames
from icefall_kd.zipformer.cpu.pointwise import pointwise_pair
from icefall_kd.zipformer.regularisers import (
    Balancer,
    FloatLike,
    ScheduledFloat,
    Whiten,
)
from icefall_kd.zipformer.scaling import scaled_linear, swoosh_r


def whitening_limit(start: float, ratio: float = 2.0) -> ScheduledFloat:
    """Return a limit for Whiten that grows ``ratio``-fold over 20000 batches."""
    return ScheduledFloat((0.0, start), (20000.0, ratio * start), default=start)


def keep_channels(
    x: Tensor, channels: int, rate: FloatLike, training: bool
) -> Optional[Tensor]:
    """Return the dropout of whole channels of a sequence, None where there is none.

    Args:
      x: (N, T, C), for N and the dtype; one mask serves all frames of a sequence.
      channels: C'.
      rate: share of the channels to drop.
    Returns:
      (N, 1, C'), 0 or 1 / (1 - rate).
    """
    rate = float(rate) if training else 0.0
    if rate == 0.0:
        return None
    keep = torch.rand(x.shape[0], 1, channels, device=x.device) >= rate
    return keep.to(x.dtype).mul_(1.0 / (1.0 - rate))


class FeedForward(nn.Module):
    """Feed-forward module of a Zipformer layer; (N, T, C) to the same shape."""

    def __init__(self, channels: int, hidden: int, dropout: FloatLike) -> None:
        super().__init__()
        self.in_proj = nn.Linear(channels, hidden)
        self.hidden_balancer = Balancer(
            min_positive=0.3, max_positive=1.0, min_abs=0.75, max_abs=5.0
        )
        self.dropout = dropout
        self.out_proj = scaled_linear(hidden, channels, initial_scale=0.1)
        self.out_whiten = Whiten(1, whitening_limit(7.5), grad_scale=0.01)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.in_proj.out_features
        keep = keep_channels(x, hidden, self.dropout, self.training)
        x = pointwise_pair(x, self.in_proj, self.out_proj, self.hidden_balancer, keep)
        return self.out_whiten(x)


def convolve_frames(x: Tensor, conv: nn.Conv1d, padding: int) -> Tensor:
    """Return the depthwise convolution of the frames of ``x``.

    Args:
      x: (N, T, C).
      conv: depthwise, its own padding is not used.
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
    """Depthwise convolution that sees the past and the rest of its own chunk.

    The sum of a causal convolution of half the width and of one confined to the
    chunk, whose output is scaled by the distance to the edges of the chunk.

    Source: Yao et al., Zipformer, 2023, arXiv:2310.11230, and the chunk-wise layout
    of the published streaming checkpoints.
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
        # What to add to a scale of 1: by frames after the chunk's left edge, and by
        # frames up to its right edge.
        self.chunkwise_conv_scale = nn.Parameter(torch.zeros(2, channels, kernel_size))

    def forward(
        self, x: Tensor, chunk_size: int, cache: Optional[Tensor] = None
    ) -> tuple[Tensor, Tensor]:
        """Convolve the frames of ``x``.

        Args:
          x: (N, T, C).
          chunk_size: frames in a chunk; not positive is one chunk of all frames.
          cache: (N, kernel_size // 2, C), the frames before ``x``; zeros when None.
        Returns:
          (N, T, C) and the cache for the frames that follow.
        """
        num_frames = x.shape[1]
        past_len = self.kernel_size // 2
        if cache is None:
            cache = x.new_zeros(x.shape[0], past_len, x.shape[2])
        padded = torch.cat([cache, x], dim=1)
        past = convolve_frames(padded, self.causal_conv, padding=0)
        within = self._within_chunks(x, chunk_size)
        return past + within[:, :num_frames], padded[:, -past_len:]

    def _within_chunks(self, x: Tensor, chunk_size: int) -> Tensor:
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
        """Return (chunk_size, C); ``chunk_size`` may be a traced length."""
        left, right = self.chunkwise_conv_scale.transpose(1, 2)  # (kernel, C) each
        pad = left.new_zeros(chunk_size, left.shape[1])
        left = torch.cat([left, pad])[:chunk_size]
        right = torch.cat([pad, right])[self.kernel_size :]
        return 1.0 + left + right


class ConvolutionModule(nn.Module):
    """Linear, gate, depthwise convolution, SwooshR, linear.

    Args:
      channels: C.
      kernel_size: of the depthwise convolution, odd.
      causal: whether the convolution is confined to chunks.
    Raises:
      ValueError: if ``kernel_size`` is even.
    """

    def __init__(self, channels: int, kernel_size: int, causal: bool) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"cnn_module_kernel must be odd, got {kernel_size}")
        self.in_proj = nn.Linear(channels, 2 * channels)
        # Gates whose input is too large have sparse gradients.
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
        self.whiten = Whiten(1, whitening_limit(7.5), grad_scale=0.01)
        self.out_proj = scaled_linear(channels, channels, initial_scale=0.05)

    def forward(
        self,
        x: Tensor,
        pad_mask: Optional[Tensor] = None,
        chunk_size: int = -1,
        cache: Optional[Tensor] = None,
    ) -> tuple[Tensor, Optional[Tensor]]:
        """Convolve the frames of ``x``.

        Args:
          x: (N, T, C).
          pad_mask: (N, T) bool, True at padding.
          chunk_size: frames in a chunk, -1 is one chunk.
          cache: (N, C, kernel_size // 2), gated frames before ``x``, when streaming.
        Returns:
          (N, T, C), and the next cache when one was given.
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
