"""Windows over long utterances, and batches of pieces of similar length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor

from icefall_kd import SAMPLE_RATE

WINDOW = 30 * SAMPLE_RATE  # samples, the longest input in Whisper's training
OVERLAP = 2 * SAMPLE_RATE  # samples shared by two windows of a longer utterance
MAX_LENGTH_RATIO = 1.25  # of the longest to the shortest piece of a batch


@dataclass(frozen=True)
class Piece:
    """A part of an utterance that a model encodes in one call.

    Attributes:
      row:        of the utterance in its batch.
      start, end: samples [start, end) of the utterance.
      total:      samples of the utterance.
    """

    row: int
    start: int
    end: int
    total: int

    @property
    def samples(self) -> int:
        """Return the number of samples."""
        return self.end - self.start


def split_windows(
    num_samples: int, window: int = WINDOW, overlap: int = OVERLAP
) -> list[tuple[int, int]]:
    """Return overlapping windows that cover [0, num_samples).

    >>> split_windows(40 * 16000)
    [(0, 480000), (448000, 640000)]
    """
    spans, start = [], 0
    while start + window < num_samples:
        spans.append((start, start + window))
        start += window - overlap
    return spans + [(start, num_samples)]


def split_pieces(
    wave_lens: Tensor, window: int = WINDOW, overlap: int = OVERLAP
) -> list[Piece]:
    """Return the pieces of all utterances of a batch.

    Args:
      wave_lens: (N,) int64, valid samples.
    """
    return [
        Piece(row, start, end, total)
        for row, total in enumerate(wave_lens.tolist())
        for start, end in split_windows(total, window, overlap)
    ]


def batch_pieces(
    pieces: Sequence[Piece],
    length: Callable[[Piece], int],
    max_samples: int,
    equal: bool = False,
) -> list[list[Piece]]:
    """Return batches of pieces of similar length, the shortest first.

    Args:
      length:      returns the samples of a piece with its padding.
      max_samples: maximum of a batch, with padding; a single piece may exceed it.
      equal:       whether all pieces of a batch must have one length; otherwise lengths
                   may differ by a quarter.
    """
    batches: list[list[Piece]] = []
    for piece in sorted(pieces, key=length):
        last = batches[-1] if batches else []
        limit = length(last[0]) * (1.0 if equal else MAX_LENGTH_RATIO) if last else 0
        if length(piece) <= min(limit, max_samples / (len(last) + 1)):
            last.append(piece)
        else:
            batches.append([piece])
    return batches


def gather_audio(waves: Tensor, pieces: Sequence[Piece], samples: int) -> Tensor:
    """Return the audio of pieces, (len(pieces), samples), zero-padded."""
    batch = torch.zeros(len(pieces), samples, device=waves.device)
    for row, piece in enumerate(pieces):
        batch[row, : piece.samples] = waves[piece.row, piece.start : piece.end]
    return batch


def stitch_frames(
    x: Tensor,
    lens: Sequence[int],
    pieces: Sequence[Piece],
    frame: int,
    out: Tensor,
    overlap: int = OVERLAP,
) -> None:
    """Write the frames of pieces to their positions in the utterances.

    In an overlap, each window provides the half that is farther from its end.

    Args:
      x:     (len(pieces), T, D), frames of the pieces.
      lens:  valid frames of each piece.
      frame: samples from one frame to the next; divides the start of every piece.
      out:   (N, T', D), frames of the utterances; written to.
    """
    x = x.to(out.device, out.dtype)
    half = overlap // 2 // frame
    for row, (piece, valid) in enumerate(zip(pieces, lens)):
        offset = piece.start // frame
        first = half if piece.start > 0 else 0
        last = valid if piece.end == piece.total else piece.samples // frame - half
        out[piece.row, offset + first : offset + last] = x[row, first:last]


def count_padded_samples(
    num_samples: int, context: float, bucket: float, frame: int, window: int = WINDOW
) -> int:
    """Return the input length of Whisper for a clip, in samples.

    Whisper has no mask.  A clip is followed by some silence and rounded up to a
    multiple of the bucket, so that clips of similar length share a batch.  The result
    depends only on the clip.

    Args:
      context: silence after the clip, in seconds.
      bucket:  in seconds; rounded down to whole frames.
      frame:   samples of a frame.
      window:  maximum number of samples.
    """
    step = max(frame, round(bucket * SAMPLE_RATE) // frame * frame)
    wanted = num_samples + round(context * SAMPLE_RATE)
    return min(window, -(-wanted // step) * step)
