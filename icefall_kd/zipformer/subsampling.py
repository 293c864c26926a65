"""Front end: fbank at 100 Hz to embeddings at 50 Hz; icefall's ``subsampling.py``.

Conv2dSubsampling and ConvNeXt have icefall's names.

Source: Yao et al., Zipformer, 2023, arXiv:2310.11230, section 3.1 (Conv-Embed).
"""

from typing import Optional, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icefall_kd.zipformer.cpu.depthwise import depthwise_image
from icefall_kd.zipformer.cpu.pointwise import pointwise_pair
from icefall_kd.zipformer.modules import make_channel_dropout
from icefall_kd.zipformer.regularisers import Balancer, Whiten
from icefall_kd.zipformer.scaling import (
    BiasNorm,
    FloatLike,
    ScheduledFloat,
    scale_grad,
    scale_weights,
    swoosh_r,
)

Frames = TypeVar("Frames", int, Tensor)

CONVNEXT_KERNEL = 7
CONVNEXT_CONTEXT = CONVNEXT_KERNEL // 2  # frames at 50 Hz on either side
MIN_FRAMES = 9  # fbank frames that give one frame of the encoder
# A streaming window has 2 fbank frames for each frame at 50 Hz, 7 more for the three
# convolutions and 6 more for the right context of the ConvNeXt layer.
STREAMING_OVERLAP = 7 + 2 * CONVNEXT_CONTEXT


def conv2d_subsampling_lens(num_frames: Frames) -> Frames:
    """Return the front end's output frames (50 Hz) from fbank frames (100 Hz)."""
    return _floor_half(num_frames - 7)


def encoder_output_lens(num_frames: Frames) -> Frames:
    """Return the encoder's output frames (25 Hz) from fbank frames (100 Hz).

    >>> encoder_output_lens(300)
    73

    Args:
      num_frames: int, or a tensor of int64, at least ``MIN_FRAMES``.
    """
    return _floor_half(conv2d_subsampling_lens(num_frames) + 1)


def _floor_half(n: Frames) -> Frames:
    if isinstance(n, Tensor):
        return torch.div(n, 2, rounding_mode="floor")
    return n // 2


class ConvNeXt(nn.Module):
    """Residual layer: depthwise 7x7 convolution, pointwise, SwooshL, pointwise.

    Source: Liu et al., A ConvNet for the 2020s, 2022, arXiv:2201.03545.

    Args:
      channels: C.
      expansion: ratio of the hidden width to C.
    """

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * channels
        self.depthwise_conv = nn.Conv2d(
            channels, channels, CONVNEXT_KERNEL, groups=channels
        )
        self.pointwise_conv1 = nn.Conv2d(channels, hidden, 1)
        self.hidden_balancer = Balancer(
            min_positive=0.3, max_positive=1.0, min_abs=0.75, max_abs=5.0
        )
        self.pointwise_conv2 = scale_weights(nn.Conv2d(hidden, channels, 1), 0.01)
        self.skip_rate = ScheduledFloat((0.0, 0.2), (20000.0, 0.015))
        self.out_balancer = Balancer(
            min_positive=0.4, max_positive=0.6, min_abs=1.0, max_abs=6.0
        )
        self.out_whiten = Whiten(1, 5.0, grad_scale=0.01)

    def forward(
        self, x: Tensor, cache: Optional[Tensor] = None
    ) -> tuple[Tensor, Optional[Tensor]]:
        """Apply the layer.

        Args:
          x: (N, C, T, F).
          cache: (N, C, 3, F), the frames before ``x``, in streaming.
        Returns:
          (N, C, T, F) and None.  With a cache: (N, C, T - 3, F), because the last three
          frames lack their right context, and the next cache.
        """
        bypass, conv = x, self.depthwise_conv
        side = CONVNEXT_CONTEXT
        if cache is None:
            x = depthwise_image(x, conv.weight, conv.bias, (side, side))
        else:
            num_frames = x.shape[2] - side
            bypass = x[:, :, :num_frames]
            x = torch.cat([cache, x], dim=2)
            cache = x[:, :, num_frames : num_frames + side]
            x = F.conv2d(x, conv.weight, conv.bias, 1, (0, side), groups=conv.groups)
        # The channels of a channels-last tensor are its last axis without a copy.
        x, bypass = x.permute(0, 2, 3, 1), bypass.permute(0, 2, 3, 1)
        x = pointwise_pair(
            x, self.pointwise_conv1, self.pointwise_conv2, self.hidden_balancer
        )
        rate = float(self.skip_rate) if self.training else 0.0
        if rate > 0.0:
            keep = torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= rate
            x = torch.addcmul(bypass, x, keep.to(x.dtype))
        else:
            x = bypass + x
        x = self.out_whiten(self.out_balancer(x))
        return x.permute(0, 3, 1, 2), cache


class Conv2dSubsampling(nn.Module):
    """Three convolutions, a ConvNeXt layer, a linear layer and BiasNorm.

    Args:
      feature_dim: F, mel bins, at least 7.
      output_dim: dimension of the embeddings.
      channels: output channels of each convolution.  sherpa-onnx's streaming recogniser
        needs 128 in the last.
      convnext_expansion: ratio of the ConvNeXt layer's hidden width to its channels.
      dropout: share of output channels that training drops.
    Raises:
      ValueError: if ``feature_dim`` is less than 7.
    """

    def __init__(
        self,
        feature_dim: int,
        output_dim: int,
        channels: tuple[int, int, int] = (8, 32, 128),
        convnext_expansion: int = 3,
        dropout: FloatLike = 0.1,
    ) -> None:
        super().__init__()
        if feature_dim < 7:
            raise ValueError(
                f"model.encoder.feature_dim must be at least 7, got {feature_dim}"
            )
        first, second, third = channels
        # These keys match published checkpoints.
        self.conv = nn.ModuleDict(
            {
                "0": nn.Conv2d(1, first, 3, padding=(0, 1)),
                "4": nn.Conv2d(first, second, 3, stride=2),
                "7": nn.Conv2d(second, third, 3, stride=(1, 2)),
            }
        )
        self.balancers = nn.ModuleList(
            [Balancer(max_abs=limit) for limit in (1.0, 4.0, 4.0)]
        )
        self.convnext = ConvNeXt(third, convnext_expansion)
        self.out_width = ((feature_dim - 1) // 2 - 1) // 2
        self.out = nn.Linear(self.out_width * third, output_dim)
        limit = ScheduledFloat((0.0, 4.0), (20000.0, 8.0), default=4.0)
        self.out_whiten = Whiten(1, limit, grad_scale=0.02)
        self.out_norm = BiasNorm(output_dim)
        self.dropout = dropout

    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Embed utterances.

        Args:
          x: (N, T, F) float32, fbank.
          x_lens: (N,) int64, valid frames, at least 9.
        Returns:
          embeddings (N, (T - 7) // 2, output_dim), and the valid frames, (N,) int64.
        """
        x, _ = self.convnext(self._convolve(x))
        return self._embed(x), conv2d_subsampling_lens(x_lens)

    def streaming_forward(self, x: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """Embed one window of a stream.

        Args:
          x: (N, 2 K + 13, F) float32, fbank, for a chunk of K frames at 50 Hz; the next
            window starts 2 K frames later.
          cache: (N, channels[2], 3, out_width), see `init_cache`.
        Returns:
          embeddings (N, K, output_dim), and the next cache.
        """
        x, cache = self.convnext(self._convolve(x), cache)
        return self._embed(x), cache

    def init_cache(self, batch_size: int, device: torch.device) -> Tensor:
        """Return the cache at the start of a stream, zeros."""
        channels = self.conv["7"].out_channels
        shape = (batch_size, channels, CONVNEXT_CONTEXT, self.out_width)
        return torch.zeros(shape, device=device)

    def _convolve(self, x: Tensor) -> Tensor:
        """Return (N, channels[2], (T - 7) // 2, out_width)."""
        if torch.jit.is_tracing() or x.is_cuda:
            x = x.unsqueeze(1)
        else:
            # In channels-last format, the convolutions and the functions between them
            # need no copy.  With one channel, only the strides define the format.
            x = x.unsqueeze(3).permute(0, 3, 1, 2)
        for i, conv in enumerate(self.conv.values()):
            x = conv(x)
            if i == 0 and self.training:
                # The largest gradients of the model would exceed float16 without this.
                x = scale_grad(x, 0.2)
            x = swoosh_r(self.balancers[i](x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return x

    def _embed(self, x: Tensor) -> Tensor:
        """Return (N, T, output_dim) of (N, C, T, F)."""
        batch, channels, num_frames, _ = x.shape
        if torch.jit.is_tracing():
            x = x.transpose(1, 2).reshape(batch, num_frames, -1)
            x = self.out(x)
        else:
            # Permute the weight to channels-last order, not the frames.
            weight = self.out.weight.unflatten(1, (channels, self.out_width))
            weight = weight.transpose(1, 2).flatten(1)
            x = x.permute(0, 2, 3, 1).reshape(batch, num_frames, -1)
            x = F.linear(x, weight, self.out.bias)
        x = self.out_norm(self.out_whiten(x))
        keep = make_channel_dropout(x, x.shape[-1], self.dropout, self.training)
        return x if keep is None else x * keep
