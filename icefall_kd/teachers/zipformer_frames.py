"""Padding and frame times of a Zipformer teacher.

Padding.  The output near the end of an utterance depends on the following frames in
three places: the front end, the last incomplete group of frames of a downsampled stack,
and the convolutions of a causal model with full context, which see the end of their
chunk.  So that the output does not depend on the batch, enough silence (fbank of
ln 1e-10, as in a training batch) follows each utterance.  For the usual stacks this is
0.2 s after the longest utterance of a batch.  A causal model without chunks also needs
the reach of its widest kernel, 2.8 s in all; a chunk size avoids this.

Time.  Frame j of a stack (50 Hz) is centred at 20 j + 45 ms, and frame i of the output
(25 Hz) at 40 i + 55 ms, see :mod:`icefall_kd.core.frames`.  So the span of a frame
begins at 20 j + 35 ms or 40 i + 35 ms, while frame k of a field begins at 20 k or
40 k ms.  Embeddings are shifted by the nearest number of frames, two at 50 Hz and one
at 25 Hz, and then begin 5 ms before the field's frame.  The first and the last frame
are repeated at the ends.  As a result, the centre of the student's frame i is in the
frame of the field that contains the teacher's frame i.

Outputs of kind "ctc" and "path" are not shifted.  Distributions cannot be averaged over
time, so frame i of the field is for frame i of the student.
"""

import math
from typing import Union

import torch
from torch import Tensor
from torch.nn import functional as F

from icefall_kd import LOG_EPS, NUM_MEL_BINS
from icefall_kd.core.frames import make_pad_mask
from icefall_kd.data.features import WINDOW, compute_fbank
from icefall_kd.teachers.base import TeacherOutput
from icefall_kd.zipformer.encoder import Zipformer2
from icefall_kd.zipformer.subsampling import (
    CONVNEXT_CONTEXT,
    MIN_FRAMES,
    conv2d_subsampling_lens,
)

STACK_STEP = 320  # samples between two frames of a stack, 50 Hz
FIRST_SPAN = 560  # samples, 35 ms: start of the span of a model's frame 0


def compute_padded_fbank(
    waves: Tensor,
    wave_lens: Tensor,
    encoder: Zipformer2,
    device: Union[str, torch.device],
) -> tuple[Tensor, Tensor]:
    """Return the fbank of a batch, followed by silence, and its valid frames.

    The valid frames of an utterance too short for the front end include silence.

    Args:
      waves:     (N, S) float32, 16 kHz, in [-1, 1].
      wave_lens: (N,) int64, valid samples.
      encoder:   determines the duration of the silence.
      device:    of the result.
    Returns:
      (N, T, 80) float32 and (N,) int64, at least 9.
    """
    lens = wave_lens.tolist()
    padded = [F.pad(w[:n], (0, max(0, WINDOW - n))) for w, n in zip(waves, lens)]
    features = compute_fbank(padded, device)
    frames = [max(MIN_FRAMES, len(f)) for f in features]
    shape = (len(features), count_padded_frames(encoder, max(frames)), NUM_MEL_BINS)
    x = torch.full(shape, LOG_EPS, device=device)
    for row, f in zip(x, features):
        row[: len(f)] = f
    return x, torch.tensor(frames, device=device)


def count_padded_frames(encoder: Zipformer2, num_frames: int) -> int:
    """Return the number of fbank frames of a batch, with silence.

    The silence covers the last groups of frames of all stacks and the context of the
    ConvNeXt layer.  With chunks it extends at least to the end of the first chunk, and
    with full context by the reach of the widest causal kernel.

    Args:
      num_frames: fbank frames of the longest utterance.
    """
    factors = [*encoder.config.downsampling_factor, encoder.downsample_output.factor]
    frames = conv2d_subsampling_lens(num_frames)  # of 20 ms
    frames += math.lcm(*factors) - 1 + CONVNEXT_CONTEXT
    chunk_size, _ = encoder.get_chunk_info()
    if chunk_size > 0:
        frames = max(frames, chunk_size)
    elif encoder.causal:
        stacks = zip(
            encoder.config.cnn_module_kernel, encoder.config.downsampling_factor
        )
        frames += max((kernel + 1) * factor for kernel, factor in stacks)
    return 2 * frames + 7


def shift_to_field(
    x: Tensor, lens: Tensor, wave_lens: Tensor, step: int
) -> TeacherOutput:
    """Shift embeddings to the frame times of a field; see the module's docstring.

    Args:
      x:         (N, T, D) float, the model's frames.
      lens:      (N,) int64, valid frames, 1 <= lens <= T.
      wave_lens: (N,) int64, samples.
      step:      samples from one frame to the next.
    Returns:
      ceil(samples / step) frames of each utterance, float32, zero at padding.
    """
    out_lens = torch.div(wave_lens + step - 1, step, rounding_mode="floor")
    k = torch.arange(int(out_lens.max()), device=x.device).unsqueeze(0)
    source = (k - round(FIRST_SPAN / step)).clamp(min=0).minimum(lens.unsqueeze(1) - 1)
    y = x.float().gather(1, source.unsqueeze(2).expand(-1, -1, x.shape[2]))
    return TeacherOutput(y * (k < out_lens.unsqueeze(1)).unsqueeze(2), out_lens)


def mask_padding(x: Tensor, lens: Tensor) -> TeacherOutput:
    """Return the model's frames as float32, not shifted and zero at padding.

    Args:
      x:    (N, T, W) float.
      lens: (N,) int64, valid frames, 1 <= lens <= T.
    """
    x = x[:, : int(lens.max())].float()
    mask = make_pad_mask(lens, x.shape[1])
    return TeacherOutput(x.masked_fill(mask.unsqueeze(-1), 0.0), lens)
