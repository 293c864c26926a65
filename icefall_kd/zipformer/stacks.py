"""Stacks of layers at one frame rate, and the changes of rate around them."""

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor, nn

from icefall_kd.zipformer.attention import CompactRelPositionalEncoding
from icefall_kd.zipformer.layers import Bypass, LayerCache, Zipformer2EncoderLayer
from icefall_kd.zipformer.regularisers import ScheduledFloat


class Downsample(nn.Module):
    """Weighted mean of each ``factor`` frames, with learned weights.

    Args:
      factor: frames made one.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.bias = nn.Parameter(torch.zeros(factor))

    def forward(self, x: Tensor, exact: bool = False) -> Tensor:
        """Return (N, ceil(T / factor), C) of (N, T, C).

        Args:
          exact: T is known to be a multiple of the factor; else the last frame is
            repeated up to one.
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


class Stack(nn.Module):
    """Layers at one frame rate.

    Args:
      layers: in order.
      pos_dim: of the position encoding.
    """

    def __init__(self, layers: Sequence[Zipformer2EncoderLayer], pos_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.positions = CompactRelPositionalEncoding(pos_dim)

    def forward(
        self,
        x: Tensor,
        mask: Optional[Tensor] = None,
        pad_mask: Optional[Tensor] = None,
        chunk_size: int = -1,
        feature_mask: Optional[Tensor] = None,
        caches: Optional[list[LayerCache]] = None,
    ) -> tuple[Tensor, Optional[list[LayerCache]]]:
        """Compute the layers.

        Args:
          x: (N, T, C).
          mask, pad_mask, chunk_size: see `Zipformer2EncoderLayer`, at this stack's rate.
          feature_mask: (N, 1, C), multiplies the input and each layer's output.
          caches: one a layer, when streaming.
        Returns:
          (N, T, C), and the next caches when some were given.
        """
        left_context = 0 if caches is None else caches[0].key.shape[0]
        positions = self.positions(x.shape[1], left_context, x.device)
        if feature_mask is not None:
            x = x * feature_mask
        next_caches = []
        for i, layer in enumerate(self.layers):
            cache = None if caches is None else caches[i]
            x, cache = layer(x, positions, mask, pad_mask, chunk_size, cache)
            next_caches.append(cache)
            if feature_mask is not None:
                x = x * feature_mask
        return x, None if caches is None else next_caches


class DownsampledZipformer2Encoder(nn.Module):
    """A stack at a lower rate, its output mixed with its input at the input's rate.

    Args:
      encoder: the stack.
      channels: C.
      factor: of the frame rates.
    """

    def __init__(self, encoder: Stack, channels: int, factor: int) -> None:
        super().__init__()
        self.downsample = Downsample(factor)
        self.encoder = encoder
        self.out_combiner = Bypass(channels)

    @property
    def layers(self) -> nn.ModuleList:
        return self.encoder.layers

    def forward(
        self, x: Tensor, *args, caches: Optional[list[LayerCache]] = None, **kwargs
    ) -> tuple[Tensor, Optional[list[LayerCache]]]:
        """Compute the stack; masks and chunk size are at its own, lower rate."""
        y = self.downsample(x, exact=caches is not None)
        y, caches = self.encoder(y, *args, caches=caches, **kwargs)
        y = upsample(y, self.downsample.factor)[:, : x.shape[1]]
        return self.out_combiner(x, y), caches


def layer_skip_rates(
    num_layers: int, begin: float, end: float, final_rate: float
) -> list[ScheduledFloat]:
    """Return the skip rates of a stack's layers, which warm up one after another.

    Args:
      begin, end: batches between which the stack warms up.
      final_rate: share of sequences that skip a warm layer.
    """
    step = (end - begin) / num_layers
    return [
        ScheduledFloat((begin + i * step, 0.5), (begin + (i + 1) * step, final_rate))
        for i in range(num_layers)
    ]
