"""The Zipformer encoder: stacks at several frame rates; icefall's Zipformer2.

Source: Yao et al., Zipformer, 2023, arXiv:2310.11230, section 3.1.
"""

import random
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icefall_kd.core.config import ZipformerConfig
from icefall_kd.zipformer.layers import (
    DownsampledZipformer2Encoder,
    LayerCache,
    Zipformer2Encoder,
    Zipformer2EncoderLayer,
)
from icefall_kd.zipformer.modules import SimpleDownsample
from icefall_kd.zipformer.scaling import (
    REFERENCE_WARMUP,
    FloatLike,
    ScheduledFloat,
    stretch_schedules,
)
from icefall_kd.zipformer.subsampling import Conv2dSubsampling


def make_chunk_mask(
    num_frames: int, chunk_size: int, left_context: int, device
) -> Tensor:
    """Return an attention mask for frames in chunks.

    A frame attends to its own chunk and to ``left_context // chunk_size`` chunks before
    it, at least one.  With a negative ``left_context`` it attends to all chunks before.

    Args:
      num_frames: T.
      chunk_size, left_context: in frames.
      device: of the result.
    Returns:
      (T, T) bool, target by source; True for a source frame that a target frame must
      not attend to.
    """
    chunk = torch.div(
        torch.arange(num_frames, device=device), chunk_size, rounding_mode="floor"
    )
    distance = chunk.unsqueeze(0) - chunk.unsqueeze(1)
    mask = distance > 0
    if left_context >= 0:
        mask = mask | (distance < -max(left_context // chunk_size, 1))
    return mask


def convert_num_channels(x: Tensor, channels: int) -> Tensor:
    """Cut or zero-pad the last axis of ``x`` to ``channels``."""
    if x.shape[-1] >= channels:
        return x[..., :channels]
    return F.pad(x, (0, channels - x.shape[-1]))


class Zipformer2(nn.Module):
    """Zipformer encoder: embeddings at 50 Hz to frames at 25 Hz.

    Attributes:
      causal: whether a frame depends on no frame after its chunk, for streaming.
      fixed_chunk: (chunk size, left context) of evaluation, see :meth:`set_chunk`; None
        uses the configuration.
      last_chunk: (chunk size, left context) of the last call of :meth:`forward`.
    Raises:
      ValueError: if sizes do not fit together.
    """

    def __init__(self, config: ZipformerConfig) -> None:
        super().__init__()
        self.config = config
        self.causal = config.causal
        self.fixed_chunk: Optional[tuple[int, int]] = None
        self.last_chunk = (-1, -1)
        unmasked_dim, encoder_dim = config.encoder_unmasked_dim, config.encoder_dim
        if any(u > c for u, c in zip(unmasked_dim, encoder_dim)):
            raise ValueError(
                f"model.encoder.encoder_unmasked_dim {unmasked_dim} exceeds "
                f"model.encoder.encoder_dim {encoder_dim}"
            )
        for chunk_size in config.chunk_size:
            self._check_chunk(chunk_size)
        dropout = dropout_schedule(config.dropout)  # shared by all layers
        self.encoders = nn.ModuleList(
            self._build_stack(i, dropout) for i in range(len(encoder_dim))
        )
        self.downsample_output = SimpleDownsample(config.output_downsampling_factor)
        stretch_schedules(self, config.warmup_hours)

    def _check_chunk(self, chunk_size: int) -> None:
        if chunk_size == -1:
            return
        if not self.causal:
            raise ValueError(
                f"chunk_size {chunk_size} needs an encoder that was trained with "
                "model.encoder.causal: true"
            )
        factors = self.config.downsampling_factor
        if chunk_size <= 0 or any(chunk_size % factor for factor in factors):
            raise ValueError(
                f"chunk_size {chunk_size} must be a positive multiple of each of "
                f"model.encoder.downsampling_factor {factors}"
            )

    def _build_stack(self, i: int, dropout: FloatLike) -> nn.Module:
        config = self.config
        factor = config.downsampling_factor[i]
        num_layers = config.num_encoder_layers[i]
        # The layers warm up one after another.  The first share of the warm-up trains
        # only the front end.
        num_shares = len(config.downsampling_factor) + 1
        begin = REFERENCE_WARMUP * (i + 1) / num_shares
        step = (REFERENCE_WARMUP * (i + 2) / num_shares - begin) / num_layers
        layers = [
            Zipformer2EncoderLayer(
                channels=config.encoder_dim[i],
                pos_dim=config.pos_dim,
                num_heads=config.num_heads[i],
                query_head_dim=config.query_head_dim[i],
                pos_head_dim=config.pos_head_dim[i],
                value_head_dim=config.value_head_dim[i],
                feedforward_dim=config.feedforward_dim[i],
                kernel_size=config.cnn_module_kernel[i],
                dropout=dropout,
                causal=config.causal,
                skip_rate=ScheduledFloat(
                    (begin + j * step, 0.5),
                    (begin + (j + 1) * step, 0.035 * factor**0.5),
                ),
            )
            for j in range(num_layers)
        ]
        stack = Zipformer2Encoder(layers, config.pos_dim)
        if factor == 1:
            return stack
        return DownsampledZipformer2Encoder(stack, config.encoder_dim[i], factor)

    def set_chunk(self, chunk_size: int, left_context_frames: int = -1) -> None:
        """Set the chunk size and left context of evaluation.

        Args:
          chunk_size: frames at 50 Hz; -1 is full context.
          left_context_frames: frames at 50 Hz; -1 is unlimited.
        Raises:
          ValueError: if the model is not causal, or ``chunk_size`` is not a multiple of
            each downsampling factor.
        """
        self._check_chunk(chunk_size)
        self.fixed_chunk = (chunk_size, left_context_frames)

    def get_chunk_info(self) -> tuple[int, int]:
        """Return chunk size and left context in 50 Hz frames; random in training."""
        if not self.causal:
            return -1, -1
        chunk_sizes = self.config.chunk_size
        left_contexts = self.config.left_context_frames
        if self.training:
            return random.choice(chunk_sizes), random.choice(left_contexts)
        return self.fixed_chunk or (chunk_sizes[0], left_contexts[0])

    def forward(
        self, x: Tensor, x_lens: Tensor, pad_mask: Optional[Tensor] = None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Encode utterances.  Unlike in icefall, the batch is the first axis.

        Args:
          x: (N, T, encoder_dim[0]), frames at 50 Hz.
          x_lens: (N,) int64, valid frames.
          pad_mask: (N, T) bool, True at padding.
        Returns:
          encoder_out (N, ceil(T / 2), max(encoder_dim)), its valid frames (N,) int64,
          and the output (N, T, C_i) of each stack.
        """
        self.last_chunk = chunk_size, left_context = self.get_chunk_info()
        chunk_mask = None
        if chunk_size > 0:
            chunk_mask = make_chunk_mask(x.shape[1], chunk_size, left_context, x.device)
        feature_masks = self._get_feature_masks(x)
        outputs: list[Tensor] = []
        for i, stack in enumerate(self.encoders):
            factor = self.config.downsampling_factor[i]
            mask, stack_pad_mask = _downsample_masks(chunk_mask, pad_mask, factor)
            x, _ = stack(
                convert_num_channels(x, self.config.encoder_dim[i]),
                mask=mask,
                pad_mask=stack_pad_mask,
                chunk_size=chunk_size // factor if chunk_size > 0 else -1,
                feature_mask=feature_masks[i],
            )
            outputs.append(x)
        y = self.downsample_output(self._get_full_dim_output(outputs))
        return y, self.output_lens(x_lens), outputs

    def streaming_forward(
        self, x: Tensor, caches: list[LayerCache], mask: Tensor
    ) -> tuple[Tensor, list[LayerCache]]:
        """Encode one chunk of each stream.

        Args:
          x: (N, K, encoder_dim[0]), frames at 50 Hz; K is the chunk size.
          caches: one for each layer of all stacks.
          mask: (N, L + K) bool at 50 Hz, True before the start of the stream.
        Returns:
          encoder_out (N, K / 2, max(encoder_dim)), and the next caches.
        """
        outputs: list[Tensor] = []
        next_caches: list[LayerCache] = []
        for i, stack in enumerate(self.encoders):
            first = len(next_caches)
            x, new = stack(
                convert_num_channels(x, self.config.encoder_dim[i]),
                mask=mask[:, None, None, :: self.config.downsampling_factor[i]],
                caches=caches[first : first + self.config.num_encoder_layers[i]],
            )
            outputs.append(x)
            next_caches.extend(new)
        y = self._get_full_dim_output(outputs)
        return self.downsample_output(y, exact=True), next_caches

    def output_lens(self, x_lens: Tensor) -> Tensor:
        """Return valid output frames (25 Hz) from valid input frames (50 Hz), (N,)."""
        factor = self.downsample_output.factor
        return torch.div(x_lens + factor - 1, factor, rounding_mode="floor")

    def _get_full_dim_output(self, outputs: list[Tensor]) -> Tensor:
        """Return (N, T, max(encoder_dim)): each channel from the last stack with it."""
        pieces = [outputs[-1]]
        for output in reversed(outputs[:-1]):
            have = sum(piece.shape[-1] for piece in pieces)
            if output.shape[-1] > have:
                pieces.append(output[..., have:])
        return torch.cat(pieces, dim=-1) if len(pieces) > 1 else pieces[0]

    def _get_feature_masks(self, x: Tensor) -> list[Optional[Tensor]]:
        """Return a (N, 1, C_i) mask for each stack: 0 for dropped channels, else 1.

        With probability 1/8, a sequence drops the channels from
        ``encoder_unmasked_dim`` on, in all stacks.  Otherwise it drops the upper half
        of these with probability 1/8.
        """
        if not self.training:
            return [None] * len(self.config.encoder_dim)
        keep = torch.rand(2, x.shape[0], 1, 1, device=x.device) >= 0.125
        lower = keep[0].to(x.dtype)
        upper = (keep[0] & keep[1]).to(x.dtype)
        masks: list[Optional[Tensor]] = []
        for channels, unmasked in zip(
            self.config.encoder_dim, self.config.encoder_unmasked_dim
        ):
            half = (channels - unmasked) // 2
            ones = x.new_ones(x.shape[0], 1, unmasked)
            parts = [ones, lower.expand(-1, -1, half)]
            parts.append(upper.expand(-1, -1, channels - unmasked - half))
            masks.append(torch.cat(parts, dim=-1))
        return masks


def _downsample_masks(
    chunk_mask: Optional[Tensor], pad_mask: Optional[Tensor], factor: int
) -> tuple[Optional[Tensor], Optional[Tensor]]:
    """Return the attention mask and the padding mask at a stack's frame rate."""
    if chunk_mask is not None:
        chunk_mask = chunk_mask[::factor, ::factor]
    if pad_mask is None:
        return chunk_mask, None
    pad_mask = pad_mask[:, ::factor]
    mask = pad_mask[:, None, None]
    return (mask if chunk_mask is None else mask | chunk_mask), pad_mask


def dropout_schedule(rate: float) -> ScheduledFloat:
    """Return a dropout rate that falls from ``rate`` to a third over 20000 batches."""
    return ScheduledFloat((0.0, rate), (20000.0, rate / 3.0))


def build_encoder(config: ZipformerConfig) -> tuple[Conv2dSubsampling, Zipformer2]:
    """Return the front end and the encoder of a configuration.

    Raises:
      ValueError: if sizes do not fit together.
    """
    encoder_embed = Conv2dSubsampling(
        feature_dim=config.feature_dim,
        output_dim=config.encoder_dim[0],
        channels=config.frontend_channels,
        convnext_expansion=config.convnext_expansion,
        dropout=dropout_schedule(config.dropout),
    )
    stretch_schedules(encoder_embed, config.warmup_hours)
    return encoder_embed, Zipformer2(config)
