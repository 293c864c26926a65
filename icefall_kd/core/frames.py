"""The one padding mask.

Bring a teacher's frames to the student's frame times; the one place for it.

Where a student frame lies.  Fbank frame f is centred at (f + 0.5) * 10 ms.  The
front end's three convolutions (kernel 3; strides 1, 2, 1; no padding in time) let
its output frame j see fbank frames 2j .. 2j+8, centre 2j+4; the encoder then joins
frames 2i and 2i+1, centre 4i+5.  So output frame i is centred at 40 * i + 55 ms, and
frame j of a stack of the encoder, 50 Hz, at 20 * j + 45 ms.

A teacher's frame k stands for the time k * shift .. (k + 1) * shift.

Frames of kinds ``ctc`` and ``path``: the k most probable tokens, and the rest.

A frame of kind ``ctc`` is 2 k + 1 float32: k token ids, best first, their k
log-probabilities in nats, and the probability mass of all other tokens.  A frame of
kind ``path`` has one more before these: the token that the one-best path of a
transducer emits there, 0 for the blank; the distribution is the joiner's at the node
where the path crosses the frame.  Ids below 2^24 are exact in float32.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from icefall_kd import ENCODER_SHIFT, FBANK_SHIFT

Batch = Mapping[str, Any]  # as icefall_kd.dataset.loader describes it


def make_pad_mask(lens: Tensor, max_len: Optional[int] = None) -> Tensor:
    """Return the mask that is True at padding.

    >>> make_pad_mask(torch.tensor([1, 3]))
    tensor([[False,  True,  True],
            [False, False, False]])

    Args:
      lens:    (N,) int64, valid frames of each sequence.
      max_len: number of columns; the longest length when None.
    Returns:
      (N, max_len) bool.
    Raises:
      ValueError: if ``lens`` is not 1-D.
    """
    if lens.dim() != 1:
        raise ValueError(f"lens must be (N,), got {tuple(lens.shape)}")
    # Kept as a tensor so that an exported graph has a dynamic number of frames.
    end = lens.max() if max_len is None else max_len
    return torch.arange(end, device=lens.device).unsqueeze(0) >= lens.unsqueeze(1)


ENCODER_FIRST_CENTRE = 5.5 * FBANK_SHIFT  # s, centre of the student's frame 0
STACK_SHIFT = 2 * FBANK_SHIFT  # s, of the outputs of the encoder's stacks
STACK_FIRST_CENTRE = 4.5 * FBANK_SHIFT  # s, centre of their frame 0


def frame_windows(
    lens: Tensor,
    frame_shift: float,
    out_lens: Tensor,
    num_out: int,
    out_shift: float,
    first_centre: float,
) -> tuple[Tensor, Tensor]:
    """Return the stretch of input that each output frame averages.

    Each window is ``out_shift`` wide around its frame's centre.  The first reaches
    back to 0 and the last on to the end of the input (two more frames at most),
    so that no input frame is lost; none leaves the input, and past its end the
    last window stays.

    Returns:
      begin and end, (N, num_out) float64, in input frames, 0 <= begin < end <= lens.
    """
    n = torch.arange(num_out, device=lens.device, dtype=torch.float64).unsqueeze(0)
    total = lens.to(torch.float64).unsqueeze(1)
    width = (out_shift / frame_shift) * torch.ones_like(total)
    begin = (first_centre + n * out_shift) / frame_shift - width / 2
    last = n == (out_lens.unsqueeze(1) - 1)
    end = begin + torch.where(last, 3 * width, width)
    # A short input: keep a whole window of it, or all that there is.
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

    Works for any ratio of the two frame shifts: several input frames in one output
    frame are averaged by their overlap in time, a longer input frame is repeated
    (two of them mixed by overlap).  A constant stays what it is.

    Args:
      x:           (N, T, D) float, input frames.
      lens:        (N,) int64, valid input frames, 1 <= lens <= T.
      frame_shift: s, of the input.
      out_lens:    (N,) int64, valid output frames.
      out_shift:   s, of the output.
      first_centre: s, centre of output frame 0.
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
    begin, end = frame_windows(
        lens, frame_shift, out_lens, num_out, out_shift, first_centre
    )
    # The mean over a window is a difference of the running sum, read between its
    # entries by linear interpolation; float64 keeps the difference exact enough.
    running = x.new_zeros(x.size(0), x.size(1) + 1, x.size(2), dtype=torch.float64)
    torch.cumsum(x.to(torch.float64), dim=1, out=running[:, 1:])
    mean = (_read(running, end) - _read(running, begin)) / (end - begin).unsqueeze(-1)
    valid = torch.arange(num_out, device=x.device) < out_lens.unsqueeze(1)
    return (mean * valid.unsqueeze(-1)).to(x.dtype)


def align_to_stack(
    x: Tensor, lens: Tensor, frame_shift: float, out_lens: Tensor
) -> Tensor:
    """Bring input frames to those of a stack; arguments as in :func:`align_frames`.

    Input of the stacks' own rate is not averaged: each frame is the one nearest in
    time; but the first and the last are means of those that no other reaches.  So a
    Zipformer's own stacks come back as they were, as the family ``zipformer`` of
    teachers lays them on the grid of a field, repeating its ends.

    Returns:
      (N, max(out_lens), D) of x's dtype, frames of 20 ms; zero at padding.
    """
    centre = STACK_FIRST_CENTRE
    if abs(frame_shift - STACK_SHIFT) < 1e-6:
        centre = (round(centre / frame_shift - 0.5) + 0.5) * frame_shift
    return align_frames(x, lens, frame_shift, out_lens, STACK_SHIFT, centre)


def average_frame_pairs(x: Tensor) -> Tensor:
    """Return (N, ceil(T / 2), C): each two frames of (N, T, C) as their mean.

    An odd last frame stands alone.  So the encoder's stacks, at 50 Hz, meet frames of
    25 Hz, as the encoder itself joins them.
    """
    if x.size(1) % 2:
        x = torch.cat([x, x[:, -1:]], dim=1)
    return x.unflatten(1, (-1, 2)).mean(dim=2)


def _read(running: Tensor, position: Tensor) -> Tensor:
    """Interpolate ``running`` (N, T, D) at fractional ``position`` (N, K)."""
    low = position.floor().clamp(max=running.size(1) - 2)
    part = (position - low).unsqueeze(-1)
    index = low.to(torch.int64).unsqueeze(-1).expand(-1, -1, running.size(2))
    return running.gather(1, index) * (1 - part) + running.gather(1, index + 1) * part


def pack_topk(log_probs: Tensor, k: int) -> Tensor:
    """Return the frames of kind ``ctc`` for a distribution.

    Args:
      log_probs: (..., V) float, normalised, natural logarithm.
      k: 1 <= k <= V.
    Returns:
      (..., 2 k + 1) float32.
    Raises:
      ValueError: if k is out of range.
    """
    if not 1 <= k <= log_probs.size(-1):
        raise ValueError(f"k is {k}, must be in 1 .. {log_probs.size(-1)} (tokens)")
    values, ids = log_probs.float().topk(k, dim=-1)
    tail = (1.0 - values.exp().sum(dim=-1, keepdim=True)).clamp(min=0.0)
    # The least that half precision holds: a token of no probability is no -inf.
    values = values.clamp(min=-65504.0)
    return torch.cat([ids.float(), values, tail], dim=-1)


def unpack_topk(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (ids int64 (..., k), log-probabilities (..., k), tail mass (...)).

    Args:
      x: (..., 2 k + 1) float32, as :func:`pack_topk` makes it.
    """
    k = x.size(-1) // 2
    return x[..., :k].round().to(torch.int64), x[..., k : 2 * k], x[..., -1]


def pack_path(emitted: Tensor, frames: Tensor) -> Tensor:
    """Return the frames of kind ``path``.

    Args:
      emitted: (...) int64, token of each frame, 0 for the blank.
      frames:  (..., 2 k + 1) float32, as :func:`pack_topk` makes them.
    Returns:
      (..., 2 k + 2) float32.
    """
    return torch.cat([emitted.unsqueeze(-1).float(), frames], dim=-1)


def unpack_path(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (emitted int64 (...), frames (..., 2 k + 1)) of kind ``path``."""
    return x[..., 0].round().to(torch.int64), x[..., 1:]


def average_probs(
    frames: Sequence[Tensor], weights: Sequence[float], vocab_size: int
) -> Tensor:
    """Return the weighted mean of distributions of one vocabulary, (..., V) float32.

    Each token that a frame does not tell gets an equal share of its tail, which is the
    mean of what these tokens had.

    Args:
      frames:  each (..., 2 k' + 1), of kind ``ctc``.
      weights: of sum 1.
    """
    mean = frames[0].new_zeros(*frames[0].shape[:-1], vocab_size)
    for x, weight in zip(frames, weights):
        ids, log_probs, tail = unpack_topk(x)
        others = max(1, vocab_size - ids.shape[-1])
        probs = (tail / others).unsqueeze(-1).expand_as(mean)
        mean += weight * probs.scatter(-1, ids, log_probs.exp())
    return mean


def average_topk(
    frames: Sequence[Tensor], weights: Sequence[float], vocab_size: int, k: int
) -> Tensor:
    """Return :func:`average_probs` as ``ctc`` frames, (..., 2 k + 1) float32."""
    return pack_topk(average_probs(frames, weights, vocab_size).log(), k)


def move_to_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    """Return the batch with its tensors on ``device``."""
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
