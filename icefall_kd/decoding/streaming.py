"""Simulated streaming: a causal model decodes chunk by chunk, as in sherpa-onnx.

C is the chunk size in 50 Hz frames.  A step reads T = 2C + 13 fbank frames (7 for the
subsampling, 2 * 3 for the right context of the ConvNeXt layer), advances by 2C frames
and returns C / 2 output frames of 40 ms.  As in sherpa-onnx, a step runs only if more
than T frames are left.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from icefall_kd import FBANK_SHIFT, SAMPLE_RATE
from icefall_kd.data.features import WINDOW
from icefall_kd.decoding import DecodeOptions, Hypothesis, make_search
from icefall_kd.zipformer.streaming import state_batch_dims

FRONTEND_FRAMES = 13  # fbank frames after a chunk that its last output depends on
EXTRA_PADDING = 0.3  # s; models emit symbols with a delay


def window_frames(chunk_size: int) -> int:
    """Return T, the number of fbank frames that a step reads."""
    return 2 * chunk_size + FRONTEND_FRAMES


def hop_frames(chunk_size: int) -> int:
    """Return the fbank frames between two steps (sherpa-onnx: decode_chunk_len)."""
    return 2 * chunk_size


def num_steps(num_frames: int, chunk_size: int) -> int:
    """Return how many steps run for ``num_frames`` fbank frames, as in sherpa-onnx."""
    spare = num_frames - window_frames(chunk_size) - 1
    return 0 if spare < 0 else spare // hop_frames(chunk_size) + 1


def step_time(step: int, chunk_size: int) -> float:
    """Return the seconds of audio after which a step can start.

    A step starts when T + 1 of its fbank frames are complete.  The last of them has the
    index 2C * step + T, its centre is at (index + 0.5) * 10 ms, and its window is 25 ms
    long.  For C = 16, the steps start after 0.4675 s, 0.7875 s, ...  The computation
    time is not included.
    """
    last = step * hop_frames(chunk_size) + window_frames(chunk_size)
    return (last + 0.5) * FBANK_SHIFT + WINDOW / SAMPLE_RATE / 2


def tail_padding(chunk_size: int) -> float:
    """Return the seconds of silence to append to the audio.

    With T frames of silence, the steps read every frame of the audio.  Another 0.3 s
    let the model emit the last word.  The sum is 0.75 s for C = 16, 1.07 s for C = 32
    and 1.71 s for C = 64.
    """
    return round(window_frames(chunk_size) * FBANK_SHIFT + EXTRA_PADDING, 2)


def pad_tail(wave: Tensor, chunk_size: int) -> Tensor:
    """Append :func:`tail_padding` seconds of zeros to a wave (S,).

    The fbank of zeros is -15.94, the floor of the logarithm.  Padding of feature
    batches differs: it is ln(1e-10).
    """
    zeros = round(tail_padding(chunk_size) * SAMPLE_RATE)
    return torch.cat([wave, wave.new_zeros(zeros)])


def encode_chunks(
    model: nn.Module, features: Sequence[Tensor], chunk_size: int, left_context: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Encode N streams chunk by chunk; each step skips the finished streams.

    Args:
      model: causal ``AsrModel`` in eval mode.
      features: N tensors (F_n, 80) float32, the longest first.
      chunk_size, left_context: in 50 Hz frames.
    Yields:
      encoder_out (n, C / 2, D) and lens (n,) of the n streams that are not finished.
    Raises:
      ValueError: if ``chunk_size`` is not positive and even.
    """
    if chunk_size < 2 or chunk_size % 2:
        raise ValueError(f"chunk_size must be positive and even, got {chunk_size}")
    model.encoder.set_chunk(chunk_size, left_context)
    window, hop = window_frames(chunk_size), hop_frames(chunk_size)
    steps = [num_steps(f.size(0), chunk_size) for f in features]
    states = model.init_states(len(steps), features[0].device)
    batch_dims = state_batch_dims(len(states))
    for step in range(max(steps)):
        n = sum(count > step for count in steps)
        states = [s.narrow(dim, 0, n) for s, dim in zip(states, batch_dims)]
        begin = step * hop
        x = torch.stack([f[begin : begin + window] for f in features[:n]])
        encoder_out, lens, states = model.streaming_forward(x, states)
        yield encoder_out, lens


@torch.no_grad()
def decode_streaming(
    model: nn.Module,
    features: Sequence[Tensor],
    chunk_size: int,
    left_context: int,
    options: DecodeOptions,
) -> list[Hypothesis]:
    """Decode N streams in one batch, chunk by chunk.

    Args:
      model: causal ``AsrModel`` in eval mode.
      features: N tensors (F_n, 80) float32 of waves padded by :func:`pad_tail`; a
        stream shorter than a window gives an empty hypothesis.
      chunk_size, left_context: in 50 Hz frames.
    Returns:
      N hypotheses in the order of ``features``.
    Raises:
      ValueError: if ``chunk_size`` is not positive and even, or there is no stream.
    """
    if not features:
        raise ValueError("features: no streams to decode; give at least one")
    order = sorted(range(len(features)), key=lambda i: -features[i].size(0))
    ordered = [features[i] for i in order]
    search = make_search(model, len(order), options)
    for encoder_out, lens in encode_chunks(model, ordered, chunk_size, left_context):
        search.advance(encoder_out, lens)
    found = dict(zip(order, search.hypotheses()))
    return [found[i] for i in range(len(order))]
