"""Windows over long utterances, and batches of pieces of similar length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor

from icefall_kd import SAMPLE_RATE

WINDOW = 30 * SAMPLE_RATE  # samples, the longest input in Whisper's training
OVERLAP = 2 * SAMPLE_RATE  # samples shared by two consecutive windows
MAX_LENGTH_RATIO = 1.25  # longest to shortest piece of a batch


@dataclass(frozen=True)
class Piece:
    """A part of an utterance that a model encodes in one call.

    Attributes:
      row:        index of the utterance in its batch.
      start, end: the piece is samples [start, end) of the utterance.
      total:      number of samples of the utterance.
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
    """Return the (start, end) of overlapping windows that cover [0, num_samples).
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
      window:    maximum number of samples of a piece.
      overlap:   samples shared by two consecutive pieces.
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
    equal_lengths: bool = False,
) -> list[list[Piece]]:
    """Return batches of pieces of similar length, the shortest first.

    Args:
      length:      function that returns the padded length of a piece in samples.
      max_samples: maximum of a batch, with padding; a single piece may exceed it.
      equal_lengths: whether all pieces of a batch must have the same padded length;
                   otherwise lengths may differ by a quarter.
    """
    batches: list[list[Piece]] = []
    ratio = 1.0 if equal_lengths else MAX_LENGTH_RATIO
    for piece in sorted(pieces, key=length):
        last = batches[-1] if batches else []
        limit = ratio * length(last[0]) if last else 0
        if length(piece) <= min(limit, max_samples / (len(last) + 1)):
            last.append(piece)
        else:
            batches.append([piece])
    return batches


def gather_audio(waves: Tensor, pieces: Sequence[Piece], samples: int) -> Tensor:
    """Return the audio of pieces, (len(pieces), samples) float32, zero-padded.

    Args:
      waves: (N, S) float32, utterances of the batch.
    """
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

    An overlap of two pieces is split in the middle: the first half is written from the
    earlier piece, the second half from the later one.

    Args:
      x:     (len(pieces), T, D), frames of the pieces.
      lens:  valid frames of each piece.
      frame: samples from one frame to the next; divides the start of every piece.
      out:   (N, T', D), frames of the utterances, modified in place.
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

    It is the clip plus the context, rounded up to a multiple of the bucket, so that
    clips of similar length share a batch.

    Args:
      num_samples: of the clip.
      context: silence after the clip, in seconds.
      bucket:  in seconds; rounded down to a multiple of the frame, at least one frame.
      frame:   samples from one frame to the next.
      window:  maximum of the result, in samples.
    """
    step = max(frame, round(bucket * SAMPLE_RATE) // frame * frame)
    wanted = num_samples + round(context * SAMPLE_RATE)
    return min(window, -(-wanted // step) * step)
