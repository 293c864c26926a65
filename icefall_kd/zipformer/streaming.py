"""Encode streams chunk by chunk; icefall's get_init_states and streaming_forward.

The states are a flat list in sherpa-onnx's order and shapes: six tensors for each layer
of all stacks (`LayerCache`), the cache of the front end, and the number of processed
frames at 50 Hz.  K is the chunk size and L the left context, in frames at 50 Hz.
"""

from collections.abc import Sequence
from typing import Union

import torch
from torch import Tensor

from icefall_kd.zipformer.encoder import Zipformer2
from icefall_kd.zipformer.layers import LayerCache
from icefall_kd.zipformer.subsampling import STREAMING_OVERLAP, Conv2dSubsampling

STATES_PER_LAYER = len(LayerCache._fields)
# Batch axis of each state of a layer.
LAYER_BATCH_AXES = LayerCache(key=1, nonlin=1, value1=1, value2=1, conv1=0, conv2=0)


def window_frames(chunk_size: int) -> int:
    """Return the fbank frames of the window of a chunk: 2 K + 13."""
    return 2 * chunk_size + STREAMING_OVERLAP


def hop_frames(chunk_size: int) -> int:
    """Return the fbank frames between the starts of two windows: 2 K."""
    return 2 * chunk_size


def get_streaming_chunk(encoder: Zipformer2) -> tuple[int, int]:
    """Return the chunk size and left context of streaming, in frames at 50 Hz.

    Raises:
      ValueError: if the encoder is not causal, or if chunk size or left context is
        unlimited or not a multiple of the largest downsampling factor.
    """
    if not encoder.causal:
        raise ValueError(
            "streaming needs an encoder trained with model.encoder.causal: true"
        )
    config = encoder.config
    chunk_size, left_context = encoder.fixed_chunk or (
        config.chunk_size[0],
        config.left_context_frames[0],
    )
    slowest = max(config.downsampling_factor)
    if chunk_size <= 0 or left_context < slowest:
        raise ValueError(
            f"streaming needs a chunk size > 0 and a left context >= {slowest} frames, "
            f"got {chunk_size} and {left_context}; set --chunk-size and --left-context"
        )
    for name, value in (("chunk size", chunk_size), ("left context", left_context)):
        if value % slowest:
            raise ValueError(
                f"streaming needs a {name} that is a multiple of {slowest} frames, the "
                f"largest downsampling factor, got {value}"
            )
    return chunk_size, left_context


def init_states(
    encoder_embed: Conv2dSubsampling,
    encoder: Zipformer2,
    batch_size: int = 1,
    device: Union[str, torch.device] = "cpu",
) -> list[Tensor]:
    """Return the states at the start of streams, all zero.

    Returns:
      for each layer, the float32 tensors of `LayerCache` with L // downsampling factor
      frames; the front end's cache (N, channels[2], 3, out_width) float32; and the
      number of processed frames (N,) int64.
    Raises:
      ValueError: see `get_streaming_chunk`.
    """
    _, left_context = get_streaming_chunk(encoder)
    config = encoder.config
    states: list[Tensor] = []
    for i, factor in enumerate(config.downsampling_factor):
        left = left_context // factor
        heads, channels = config.num_heads[i], config.encoder_dim[i]
        value = (left, batch_size, heads * config.value_head_dim[i])
        conv = (batch_size, channels, config.cnn_module_kernel[i] // 2)
        shapes = LayerCache(
            key=(left, batch_size, heads * config.query_head_dim[i]),
            nonlin=(1, batch_size, left, 3 * channels // 4),
            value1=value,
            value2=value,
            conv1=conv,
            conv2=conv,
        )
        for _ in range(config.num_encoder_layers[i]):
            states += [torch.zeros(shape, device=device) for shape in shapes]
    states.append(encoder_embed.init_cache(batch_size, device))
    states.append(torch.zeros(batch_size, dtype=torch.int64, device=device))
    return states


def streaming_forward(
    encoder_embed: Conv2dSubsampling,
    encoder: Zipformer2,
    x: Tensor,
    states: Sequence[Tensor],
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Encode one window of each stream.

    Args:
      x: (N, 2 K + 13, F) float32, fbank; the next window starts 2 K frames later.
      states: from `init_states` or the previous call.
    Returns:
      encoder_out (N, K / 2, C), its frames (N,) int64, and the next states.
    Raises:
      ValueError: if ``x`` has another length, or the number of states is wrong.
    """
    chunk_size, left_context = get_streaming_chunk(encoder)
    num_layers = sum(encoder.config.num_encoder_layers)
    if len(states) != STATES_PER_LAYER * num_layers + 2:
        raise ValueError(
            f"got {len(states)} states for {num_layers} layers, expected "
            f"{STATES_PER_LAYER} for each and 2 more"
        )
    if not torch.jit.is_tracing() and x.shape[1] != window_frames(chunk_size):
        raise ValueError(
            f"a window for chunk {chunk_size} has {window_frames(chunk_size)} frames, "
            f"got x of {tuple(x.shape)}"
        )
    *flat, embed_cache, processed = states
    y, embed_cache = encoder_embed.streaming_forward(x, embed_cache)
    caches = [
        LayerCache(*flat[STATES_PER_LAYER * i : STATES_PER_LAYER * (i + 1)])
        for i in range(num_layers)
    ]
    mask = make_start_mask(processed, left_context, chunk_size)
    y, caches = encoder.streaming_forward(y, caches, mask)
    lens = torch.full_like(processed, chunk_size)
    next_states = [state for cache in caches for state in cache]
    next_states += [embed_cache, processed + lens]
    return y, encoder.output_lens(lens), next_states


def make_start_mask(processed: Tensor, left_context: int, chunk_size: int) -> Tensor:
    """Return the mask of left-context frames before the start of a stream.

    Args:
      processed: (N,) int64, processed frames of each stream at 50 Hz.
      left_context, chunk_size: L and K.
    Returns:
      (N, L + K) bool, True before the start.
    """
    age = torch.arange(left_context, 0, -1, device=processed.device)
    before = age.unsqueeze(0) > processed.unsqueeze(1)
    now = torch.zeros(
        processed.shape[0], chunk_size, dtype=torch.bool, device=processed.device
    )
    return torch.cat([before, now], dim=1)


def state_batch_dims(num_states: int) -> list[int]:
    """Return the batch axis of each state.

    Raises:
      ValueError: if no model has this number of states.
    """
    layers, rest = divmod(num_states - 2, STATES_PER_LAYER)
    if rest or layers < 1:
        raise ValueError(
            f"got {num_states} states, expected {STATES_PER_LAYER} for each layer and "
            "2 more"
        )
    return list(LAYER_BATCH_AXES) * layers + [0, 0]
