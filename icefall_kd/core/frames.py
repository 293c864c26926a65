"""Frames: padding masks, alignment by time, top-k distributions.

Times of student frames.  Fbank frame f is centred at (f + 0.5) * 10 ms.  Frame j of the
front end depends on fbank frames 2j .. 2j + 8 (three convolutions: kernel 3; strides 1,
2, 1; no padding in time), so its centre is 20 * j + 45 ms.  Frame j of a stack of the
encoder has the same time.  The encoder's output frame i joins frames 2i and 2i + 1; its
centre is 40 * i + 55 ms.  Frame k of a teacher covers k * shift .. (k + 1) * shift.

Frames of kind ``ctc`` are 2 k + 1 float32: k token ids, best first, their k
log-probabilities in nats, and the probability mass of all other tokens (the tail).
Frames of kind ``path`` begin with one more number: the token that the best path of a
transducer emits in this frame, 0 for the blank.  The rest is the joiner's distribution
at the path's node.  Token ids below 2^24 are exact in float32.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from icefall_kd import ENCODER_SHIFT, FBANK_SHIFT

Batch = Mapping[str, Any]  # see icefall_kd.dataset.dataset

ENCODER_FIRST_CENTRE = 5.5 * FBANK_SHIFT  # s, centre of the encoder's frame 0
STACK_SHIFT = 2 * FBANK_SHIFT  # s, between frames of the encoder's stacks
STACK_FIRST_CENTRE = 4.5 * FBANK_SHIFT  # s, centre of their frame 0

# Frames by which the lengths of audio, teacher and student may differ: a front end
# without padding loses up to two.
LENGTH_TOLERANCE = 2


def matches_duration(num_frames: int, frame_shift: float, duration: float) -> bool:
    """Return True if ``duration`` seconds have ``num_frames``, within the tolerance."""
    expected = duration / frame_shift
    least = math.floor(expected) - LENGTH_TOLERANCE
    return least <= num_frames <= math.ceil(expected) + LENGTH_TOLERANCE


def make_pad_mask(lens: Tensor, max_len: Optional[int] = None) -> Tensor:
    """Return a mask that is True at padding.

    >>> make_pad_mask(torch.tensor([1, 3]))
    tensor([[False,  True,  True],
            [False, False, False]])

    Args:
      lens:    (N,) int64, valid frames of each sequence.
      max_len: number of columns; None means the longest of ``lens``.
    Returns:
      (N, max_len) bool.
    Raises:
      ValueError: if ``lens`` is not 1-D.
    """
    if lens.dim() != 1:
        raise ValueError(f"lens must be (N,), got {tuple(lens.shape)}")
    # A tensor, so that an exported graph has a dynamic number of frames.
    end = lens.max() if max_len is None else max_len
    return torch.arange(end, device=lens.device).unsqueeze(0) >= lens.unsqueeze(1)


def compute_windows(
    lens: Tensor,
    frame_shift: float,
    out_lens: Tensor,
    num_out: int,
    out_shift: float,
    first_centre: float,
) -> tuple[Tensor, Tensor]:
    """Return the interval of the input that each output frame averages.

    A window is ``out_shift`` wide around its frame's centre.  The first window begins
    at 0.  The last one is up to three times as wide, to include the last input frames.
    Windows are moved or cut to fit into the input.

    Args:
      lens:         (N,) int64, valid input frames.
      frame_shift:  seconds between input frames.
      out_lens:     (N,) int64, valid output frames.
      num_out:      number of columns, at least the largest of ``out_lens``.
      out_shift:    seconds between output frames.
      first_centre: seconds, centre of output frame 0.
    Returns:
      begin and end, (N, num_out) float64, in input frames, 0 <= begin < end <= lens.
    """
    n = torch.arange(num_out, device=lens.device, dtype=torch.float64).unsqueeze(0)
    total = lens.to(torch.float64).unsqueeze(1)
    width = (out_shift / frame_shift) * torch.ones_like(total)
    begin = (first_centre + n * out_shift) / frame_shift - width / 2
    last = n == (out_lens.unsqueeze(1) - 1)
    end = begin + torch.where(last, 3 * width, width)
    # A window beyond the end of a short input moves back, at most to its start.
    begin = begin.minimum((total - width).clamp(min=0.0))
    begin = torch.where(n == 0, torch.zeros_like(begin), begin.clamp(min=0.0))
    end = end.maximum(begin + width).minimum(total)
    return begin, end


def align_frames(
    x: Tensor,
    lens: Tensor,
    frame_shift: float,
    out_lens: Tensor,
    out_shift: float = ENCODER_SHIFT,
    first_centre: float = ENCODER_FIRST_CENTRE,
) -> Tensor:
    """Average input frames over the time of each output frame.

    An output frame is the mean of the input frames, weighted by their overlap in time.
    The frame shifts may have any ratio.

    Args:
      x:            (N, T, D) float, input frames.
      lens:         (N,) int64, valid input frames, 1 <= lens <= T.
      frame_shift:  seconds between input frames.
      out_lens:     (N,) int64, valid output frames.
      out_shift:    seconds between output frames.
      first_centre: seconds, centre of output frame 0.
    Returns:
      (N, max(out_lens), D) of x's dtype; zero at padding.
    Raises:
      ValueError: if a length is zero or exceeds T, or a shift is not positive.
    """
    if frame_shift <= 0 or out_shift <= 0:
        raise ValueError(f"frame shifts must be positive: {frame_shift}, {out_shift}")
    if x.dim() != 3 or lens.shape != (x.size(0),) or out_lens.shape != lens.shape:
        raise ValueError(
            f"expected x (N, T, D), lens (N,), out_lens (N,); got {tuple(x.shape)}, "
            f"{tuple(lens.shape)}, {tuple(out_lens.shape)}"
        )
    if lens.min() < 1 or lens.max() > x.size(1):
        raise ValueError(f"lens {lens.tolist()} outside 1..{x.size(1)}")
    lens, out_lens = lens.to(x.device), out_lens.to(x.device)
    num_out = int(out_lens.max())
    begin, end = compute_windows(
        lens, frame_shift, out_lens, num_out, out_shift, first_centre
    )
    # The mean over a window is a difference of the running sum at its ends, with linear
    # interpolation between frames; float64 keeps the difference accurate.
    running = x.new_zeros(x.size(0), x.size(1) + 1, x.size(2), dtype=torch.float64)
    torch.cumsum(x.to(torch.float64), dim=1, out=running[:, 1:])
    total = _interpolate(running, end) - _interpolate(running, begin)
    mean = total / (end - begin).unsqueeze(-1)
    valid = torch.arange(num_out, device=x.device) < out_lens.unsqueeze(1)
    return (mean * valid.unsqueeze(-1)).to(x.dtype)


def align_to_stack(
    x: Tensor, lens: Tensor, frame_shift: float, out_lens: Tensor
) -> Tensor:
    """Align input frames to the frames of an encoder stack, by :func:`align_frames`.

    For input at the stacks' frame rate, an output frame is the nearest input frame, not
    a mean of two.  Only the first and the last output frame are means, because they
    include the remaining input frames at their end.

    Args:
      x, lens, frame_shift: as in :func:`align_frames`.
      out_lens: (N,) int64, valid output frames.
    Returns:
      (N, max(out_lens), D) of x's dtype, frames of 20 ms; zero at padding.
    """
    centre = STACK_FIRST_CENTRE
    if abs(frame_shift - STACK_SHIFT) < 1e-6:
        centre = (round(centre / frame_shift - 0.5) + 0.5) * frame_shift
    return align_frames(x, lens, frame_shift, out_lens, STACK_SHIFT, centre)


def average_frame_pairs(x: Tensor) -> Tensor:
    """Return the means of frame pairs: the encoder's stacks (50 Hz) at 25 Hz.

    Args:
      x: (N, T, C).
    Returns:
      (N, ceil(T / 2), C); the last frame of an odd T is unchanged.
    """
    if x.size(1) % 2:
        x = torch.cat([x, x[:, -1:]], dim=1)
    return x.unflatten(1, (-1, 2)).mean(dim=2)


def _interpolate(running: Tensor, position: Tensor) -> Tensor:
    """Interpolate ``running`` (N, T, D) at fractional ``position`` (N, K)."""
    low = position.floor().clamp(max=running.size(1) - 2)
    part = (position - low).unsqueeze(-1)
    index = low.to(torch.int64).unsqueeze(-1).expand(-1, -1, running.size(2))
    return running.gather(1, index) * (1 - part) + running.gather(1, index + 1) * part


def pack_topk(log_probs: Tensor, k: int) -> Tensor:
    """Return distributions as frames of kind ``ctc``, see the top of this file.

    Args:
      log_probs: (..., V) float, normalised, natural logarithm.
      k: number of stored tokens, 1 <= k <= V.
    Returns:
      (..., 2 k + 1) float32.
    Raises:
      ValueError: if k is out of range.
    """
    if not 1 <= k <= log_probs.size(-1):
        raise ValueError(f"topk must be in 1 .. {log_probs.size(-1)} (tokens), got {k}")
    values, ids = log_probs.float().topk(k, dim=-1)
    tail = (1.0 - values.exp().sum(dim=-1, keepdim=True)).clamp(min=0.0)
    # The lowest float16: a token of probability 0 must not become -inf.
    values = values.clamp(min=-65504.0)
    return torch.cat([ids.float(), values, tail], dim=-1)


def unpack_topk(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (ids int64 (..., k), log-probabilities (..., k), tail mass (...)).

    Args:
      x: (..., 2 k + 1) float32, from :func:`pack_topk`.
    """
    k = x.size(-1) // 2
    return x[..., :k].round().to(torch.int64), x[..., k : 2 * k], x[..., -1]


def pack_path(emitted: Tensor, frames: Tensor) -> Tensor:
    """Return frames of kind ``path``, see the top of this file.

    Args:
      emitted: (...) int64, token of each frame, 0 for the blank.
      frames:  (..., 2 k + 1) float32, from :func:`pack_topk`.
    Returns:
      (..., 2 k + 2) float32.
    """
    return torch.cat([emitted.unsqueeze(-1).float(), frames], dim=-1)


def unpack_path(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (emitted (...) int64, ``ctc`` frames (..., 2 k + 1)).

    Args:
      x: (..., 2 k + 2) float32, from :func:`pack_path`.
    """
    return x[..., 0].round().to(torch.int64), x[..., 1:]


def average_probs(
    frames: Sequence[Tensor], weights: Sequence[float], vocab_size: int
) -> Tensor:
    """Return the weighted mean of distributions over one vocabulary, (..., V) float32.

    The tokens outside a frame's top k share its tail equally.

    Args:
      frames:     of kind ``ctc``, (..., 2 k + 1) each; k may differ.
      weights:    of the distributions, with sum 1.
      vocab_size: V, the blank included.
    """
    mean = frames[0].new_zeros(*frames[0].shape[:-1], vocab_size)
    for x, weight in zip(frames, weights):
        ids, log_probs, tail = unpack_topk(x)
        num_others = max(1, vocab_size - ids.shape[-1])
        probs = (tail / num_others).unsqueeze(-1).expand_as(mean)
        mean += weight * probs.scatter(-1, ids, log_probs.exp())
    return mean


def average_topk(
    frames: Sequence[Tensor], weights: Sequence[float], vocab_size: int, k: int
) -> Tensor:
    """Return :func:`average_probs` as frames of kind ``ctc``, (..., 2 k + 1) float32.

    Args:
      k: number of stored tokens, 1 <= k <= V.
    """
    return pack_topk(average_probs(frames, weights, vocab_size).log(), k)


def move_to_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    """Return a copy of the batch with its tensors on ``device``."""
    moved = dict(batch)
    for name in ("features", "feature_lens"):
        moved[name] = batch[name].to(device)
    moved["fields"] = {
        field: {
            k: v.to(device) if isinstance(v, Tensor) else v for k, v in value.items()
        }
        for field, value in batch.get("fields", {}).items()
    }
    return moved
