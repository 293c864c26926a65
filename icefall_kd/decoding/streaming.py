"""Simulated streaming: a causal model fed chunk by chunk, as sherpa-onnx feeds it.

C is the chunk size in 50 Hz frames.  Each step reads T = 2C + 13 fbank frames (7 for
the subsampling, 2 * 3 for the ConvNeXt layer's right context), moves on by 2C and gives
C / 2 output frames of 40 ms.  A step runs only while more than T frames are left.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from icefall_kd import FBANK_SHIFT, SAMPLE_RATE
from icefall_kd.data.features import WINDOW
from icefall_kd.decoding import DecodeOptions, Hypothesis, make_search
from icefall_kd.zipformer.streaming import state_batch_dims

FRONTEND_FRAMES = 13  # fbank frames that a chunk's last output sees beyond the chunk
EXTRA_PADDING = 0.3  # s; a trained model may emit its last symbols late


def window_frames(chunk_size: int) -> int:
    """Return T, the fbank frames that one step reads."""
    return 2 * chunk_size + FRONTEND_FRAMES


def hop_frames(chunk_size: int) -> int:
    """Return the fbank frames by which a step moves on (decode_chunk_len)."""
    return 2 * chunk_size


def num_steps(num_frames: int, chunk_size: int) -> int:
    """Return how many steps sherpa-onnx runs over ``num_frames`` fbank frames."""
    spare = num_frames - window_frames(chunk_size) - 1
    return 0 if spare < 0 else spare // hop_frames(chunk_size) + 1


def step_time(step: int, chunk_size: int) -> float:
    """Return the seconds of a stream that must be there before a step can run.

    The last of the T + 1 fbank frames that it waits for, number 2C * step + T, is
    centred at (number + 0.5) * 10 ms and reads 25 ms: for chunks of 16 frames the
    steps run at 0.4675 s, 0.7875 s, ...  The time of the computation is not in it.
    """
    last = step * hop_frames(chunk_size) + window_frames(chunk_size)
    return (last + 0.5) * FBANK_SHIFT + WINDOW / SAMPLE_RATE / 2


def tail_padding(chunk_size: int) -> float:
    """Return the seconds of digital silence to append before the end of the input.

    T frames bring every real frame inside a chunk, 0.3 s more let the model finish
    its last word: 0.75 s for chunks of 16 frames, 1.07 s for 32, 1.71 s for 64.
    """
    return round(window_frames(chunk_size) * FBANK_SHIFT + EXTRA_PADDING, 2)


def pad_tail(wave: Tensor, chunk_size: int) -> Tensor:
    """Append the zero samples of :func:`tail_padding` to a wave (S,).

    Zeros are added to the audio, not to the features: their fbank is -15.94, the floor
    of the log, whereas batches are padded with ln(1e-10).
    """
    zeros = round(tail_padding(chunk_size) * SAMPLE_RATE)
    return torch.cat([wave, wave.new_zeros(zeros)])


def narrow_states(states: Sequence[Tensor], batch_size: int) -> list[Tensor]:
    """Keep the first ``batch_size`` streams of batched states."""
    dims = state_batch_dims(len(states))
    return [s.narrow(dim, 0, batch_size) for s, dim in zip(states, dims)]


def encode_chunks(
    model: nn.Module, features: Sequence[Tensor], chunk_size: int, left_context: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Encode N streams chunk by chunk; streams that end drop out of the batch.

    Args:
      model: causal ``AsrModel`` in eval mode.
      features: N tensors (F_n, 80) float32, the longest first.
      chunk_size, left_context: in 50 Hz frames.
    Yields:
      encoder_out (n, C / 2, D) and lens (n,) of the first n streams, which go on.
    Raises:
      ValueError: if ``chunk_size`` is not positive and even.
    """
    if chunk_size < 2 or chunk_size % 2:
        raise ValueError(f"chunk_size must be positive and even, got {chunk_size}")
    model.encoder.set_chunk(chunk_size, left_context)
    window, hop = window_frames(chunk_size), hop_frames(chunk_size)
    steps = [num_steps(f.size(0), chunk_size) for f in features]
    states = model.init_states(len(steps), features[0].device)
    streams = len(steps)
    for step in range(max(steps)):
        active = sum(count > step for count in steps)
        if active < streams:
            states, streams = narrow_states(states, active), active
        begin = step * hop
        x = torch.stack([f[begin : begin + window] for f in features[:active]])
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
    """Decode N streams together, each fed in chunks.

    Args:
      model: causal ``AsrModel`` in eval mode.
      features: N tensors (F_n, 80) float32, each of a wave that :func:`pad_tail`
        lengthened; a stream shorter than one window gives an empty hypothesis.
      chunk_size, left_context: in 50 Hz frames.
      options: see :class:`DecodeOptions`.
    Returns:
      N hypotheses in the order of ``features``.
    Raises:
      ValueError: if ``chunk_size`` is not positive and even, or there is no stream.
    """
    if not features:
        raise ValueError("no stream to decode")
    order = sorted(range(len(features)), key=lambda i: -features[i].size(0))
    ordered = [features[i] for i in order]
    search = make_search(model, len(order), options)
    for encoder_out, lens in encode_chunks(model, ordered, chunk_size, left_context):
        search.advance(encoder_out, lens)
    found = dict(zip(order, search.hypotheses()))
    return [found[i] for i in range(len(order))]
